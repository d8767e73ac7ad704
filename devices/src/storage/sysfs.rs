//! What the kernel tells of block devices in `/sys`: what they are made of, and what is made of them.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::fdset;

/// Devices below one at most, to look for files.
const DEVICES_MAX: usize = 256;

/// The number of the block device at `path`.
pub(super) fn device_of(path: &Path) -> Option<u64> {
    let found = fdset::metadata(path).ok()?;
    found.file_type().is_block_device().then(|| found.rdev())
}

/// The directory of a device or partition.
pub(super) fn entry(number: u64) -> PathBuf {
    format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number)).into()
}

/// The number of the device with this directory.
pub(super) fn number(entry: &Path) -> Option<u64> {
    let text = fs::read_to_string(entry.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// Where its node is, if that is called as usual.
pub(super) fn node(number: u64) -> Option<PathBuf> {
    let text = fs::read_to_string(entry(number).join("uevent")).ok()?;
    let node = Path::new("/dev").join(text.lines().find_map(|line| line.strip_prefix("DEVNAME="))?);
    (device_of(&node) == Some(number)).then_some(node)
}

/// A device and its partitions, those with their names.
pub(super) fn parts(device: u64) -> Vec<(Option<String>, u64)> {
    let entries = fs::read_dir(entry(device)).into_iter().flatten().flatten();
    let partition = |entry: fs::DirEntry| {
        fs::metadata(entry.path().join("partition")).ok()?;
        Some((Some(format!("/dev/{}", entry.file_name().to_string_lossy())), number(&entry.path())?))
    };
    [(None, device)].into_iter().chain(entries.filter_map(partition)).collect()
}

/// The devices that this one is a part of or made of: the disk of a partition, what the device mapper and MD put together.
pub(super) fn below(device: u64) -> Vec<u64> {
    let Ok(entry) = fs::canonicalize(entry(device)) else { return Vec::new() };
    let disk = entry.join("partition").exists().then(|| entry.parent().and_then(number)).flatten();
    let slaves = fs::read_dir(entry.join("slaves")).into_iter().flatten().flatten();
    disk.into_iter().chain(slaves.filter_map(|slave| number(&slave.path()))).collect()
}

/// The file of the loop device with this directory, as the kernel calls it.
pub(super) fn backing_file(entry: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(entry.join("loop/backing_file")).ok()?;
    text.strip_suffix('\n').filter(|text| !text.is_empty()).map(PathBuf::from)
}

/// The files and block devices that the block device at `path` is made of by way of loop devices, as the kernel calls them;
/// none for anything else.
pub fn files_below(path: &Path) -> Vec<PathBuf> {
    let (mut files, mut seen) = (Vec::new(), Vec::new());
    let mut next: Vec<u64> = device_of(path).into_iter().collect();
    while let Some(device) = next.pop().filter(|_| seen.len() < DEVICES_MAX) {
        if !seen.contains(&device) {
            seen.push(device);
            let file = backing_file(&entry(device));
            next.extend(below(device).into_iter().chain(file.as_deref().and_then(device_of)));
            files.extend(file);
        }
    }
    files
}
