//! What tells disks apart: a name that follows the image where the configuration gives none, and no name for two.
//!
//! A guest that finds a known name takes the disk for the one that it knows: it goes on with what it had of it, and
//! multipath software joins both. So a name belongs to the data, not to the place where a disk is plugged in.

use std::any::Any;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, anyhow};
use devices::scsi::{CdConfig, DiskConfig};
use devices::storage::fdset;

use crate::config::{self, Medium};

/// Where the kernel tells what a block device is called, the best first: device mapper (LVM, multipath), NVMe, SCSI, virtio,
/// MD.
const NAMES: [&str; 6] = ["dm/uuid", "wwid", "device/wwid", "serial", "device/serial", "md/uuid"];
/// Partitions and loop devices are of something else, which is no further away than this.
const DEPTH: u8 = 4;

/// The serial number of a disk whose configuration has none: the same for the same image at every start, wherever it is
/// plugged in, and another one for another image, also at the same path.
pub(super) fn default_serial(path: &Path) -> Result<String> {
    let found = fdset::metadata(path).with_context(|| format!("looking at {}", fdset::shown(path)))?;
    // Also of an image that was passed: its file is the same one, however it came here.
    let path = &fdset::origin(path);
    let key = if found.file_type().is_block_device() {
        let (major, minor) = (libc::major(found.rdev()), libc::minor(found.rdev()));
        let known = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"));
        // As it is written: numbers in names such as /dev/zd16 change from start to start, links stay.
        let written = || format!("path {}", std::path::absolute(path).unwrap_or(path.into()).display());
        known.ok().and_then(|directory| device_key(&directory, DEPTH)).unwrap_or_else(written)
    } else {
        file_key(path, &found)
    };
    Ok(format!("{:016X}", hash(&key)))
}

/// The serial number of a drive whose configuration has none: that of its place in the machine.
pub(super) fn place_serial(place: &str) -> String {
    format!("{:016X}", hash(&format!("drive {place}")))
}

/// What makes a file that one: its number and when it came to be, which no other file gets, however it is called. A file
/// system that does not know the time leaves number and path.
fn file_key(path: &Path, found: &Metadata) -> String {
    let since = found.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    match since.filter(|since| !since.is_zero()) {
        Some(since) => format!("file {} {}", found.ino(), since.as_nanos()),
        None => {
            let path = fs::canonicalize(path).unwrap_or(path.into());
            format!("file {} {}", found.ino(), path.display())
        }
    }
}

/// What the kernel knows of the block device with this directory in sysfs.
fn device_key(directory: &Path, depth: u8) -> Option<String> {
    let text = |name: &str| {
        let text = fs::read_to_string(directory.join(name)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    if let Some(number) = text("partition") {
        let whole = device_key(directory.parent()?, depth.checked_sub(1)?)?;
        return Some(format!("partition {number} of {whole}"));
    }
    if let Some(file) = text("loop/backing_file") {
        let (path, offset) = (PathBuf::from(&file), text("loop/offset").unwrap_or_default());
        let file = fs::metadata(&path).map_or(file, |found| file_key(&path, &found));
        return Some(format!("from {offset} of {file}"));
    }
    NAMES.iter().find_map(|name| Some(format!("device {name} {}", text(name)?)))
}

/// FNV-1a: stable across versions, which is all that is asked of it.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The names of the disks of a machine.
#[derive(Default)]
pub struct Identities(Mutex<Vec<Taken>>);

/// A disk and its names, for as long as it has its image open.
struct Taken {
    place: String,
    serial: String,
    wwn: Option<u64>,
    medium: Option<Medium>,
    image: Weak<dyn Any + Send + Sync>,
}

impl Taken {
    fn at(hba: &str, lun: &config::Lun, image: &Arc<impl Any + Send + Sync>) -> Self {
        let weak = Arc::downgrade(image);
        let image: Weak<dyn Any + Send + Sync> = weak;
        let place = format!("hba {hba}, target {}, lun {}", lun.target, lun.lun);
        Self { place, serial: String::new(), wwn: None, medium: None, image }
    }
}

impl Identities {
    /// Takes the names of a disk, unless another one has them. Disks of the same file or device are one disk on several
    /// paths, and the one that comes to a place may be called like the one that goes.
    pub(super) fn take(
        &self,
        hba: &str,
        lun: &config::Lun,
        path: &Path,
        disk: &DiskConfig,
        image: &Arc<impl Any + Send + Sync>,
    ) -> Result<()> {
        let (serial, medium) = (disk.serial.clone(), config::medium(path));
        let new = Taken { serial, wwn: disk.wwn, medium, ..Taken::at(hba, lun, image) };
        self.add(new).map_err(|what| anyhow!("{}: {what}", fdset::shown(path)))
    }

    /// The same for a CD drive, which is called so for as long as `names` lives, whatever disc is in it.
    pub(super) fn take_drive(
        &self,
        hba: &str,
        lun: &config::Lun,
        drive: &CdConfig,
        names: &Arc<()>,
    ) -> Result<()> {
        let serial = drive.serial.clone();
        let new = Taken { serial, wwn: drive.wwn, ..Taken::at(hba, lun, names) };
        self.add(new).map_err(|what| anyhow!("{what}"))
    }

    fn add(&self, new: Taken) -> Result<(), String> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|other| other.image.strong_count() > 0);
        let others = taken.iter().filter(|other| {
            other.place != new.place && (other.medium.is_none() || other.medium != new.medium)
        });
        for other in others {
            let place = &other.place;
            let what = match (new.wwn, &new.serial) {
                (_, serial) if *serial == other.serial => format!("serial \"{serial}\""),
                (Some(wwn), _) if other.wwn == Some(wwn) => format!("wwn \"{wwn:016x}\""),
                _ => continue,
            };
            return Err(format!("{what} is that of the unit at {place}; give each its own"));
        }
        taken.push(new);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::storage::{CacheMode, Image, RawImage, RawOptions, Sharing};

    fn file(path: &Path) {
        fs::write(path, [0; 512]).unwrap();
    }

    #[test]
    fn the_default_serial_follows_the_image() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other, link) =
            (directory.path().join("a"), directory.path().join("b"), directory.path().join("link"));
        file(&one);
        file(&other);
        let serial = |path: &Path| default_serial(path).unwrap();
        let first = serial(&one);
        assert_eq!(first.len(), 16);
        assert_eq!(serial(&one), first, "the same at every start");
        assert_ne!(serial(&other), first);
        // Written to, longer, and by another name.
        fs::write(&one, [7; 4096]).unwrap();
        std::os::unix::fs::symlink(&one, &link).unwrap();
        assert_eq!((serial(&one), serial(&link)), (first.clone(), first.clone()));
        if fs::metadata(&one).unwrap().created().is_ok() {
            fs::rename(&one, directory.path().join("moved")).unwrap();
            assert_eq!(serial(&directory.path().join("moved")), first, "it goes where the image goes");
            fs::rename(directory.path().join("moved"), &one).unwrap();
        }
        // Another image at the same path.
        fs::rename(&other, &one).unwrap();
        assert_ne!(serial(&one), first);
    }

    #[test]
    fn a_device_is_called_what_the_kernel_calls_it() {
        let sysfs = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = sysfs.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let key = |name: &str| device_key(&sysfs.path().join(name), DEPTH);
        write("nameless/size", "1");
        write("vda/serial", "\n");
        assert_eq!((key("nameless"), key("vda")), (None, None));
        write("nvme0n1/wwid", "eui.0011\n");
        write("nvme0n1/nvme0n1p1/partition", "1\n");
        write("nvme0n1/nvme0n1p2/partition", "2\n");
        write("dm-0/dm/uuid", "LVM-x\n");
        let keys =
            ["nvme0n1", "nvme0n1/nvme0n1p1", "nvme0n1/nvme0n1p2", "dm-0"].map(|name| key(name).unwrap());
        assert!(keys.iter().enumerate().all(|(at, key)| !keys[..at].contains(key)), "{keys:?}");
        assert_eq!(keys[0], "device wwid eui.0011");
        // A loop device is its file from an offset on.
        let backing = sysfs.path().join("backing");
        file(&backing);
        let path = backing.to_str().unwrap();
        for (name, offset) in [("loop0", "0"), ("loop1", "0"), ("loop2", "512")] {
            write(&format!("{name}/loop/backing_file"), &format!("{path}\n"));
            write(&format!("{name}/loop/offset"), offset);
        }
        assert_eq!(key("loop0"), key("loop1"));
        assert_ne!(key("loop0"), key("loop2"));
    }

    #[test]
    fn a_name_belongs_to_one_disk() {
        let directory = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| directory.path().join(name));
        paths.iter().for_each(|path| file(path));
        let open = |path: &Path| {
            let options = RawOptions {
                path: path.into(),
                read_only: true,
                cache: CacheMode::Writeback,
                sharing: Sharing::default(),
            };
            Arc::new(Image::Raw(RawImage::open(&options).unwrap()))
        };
        let lun = |target: u8, path: &Path| {
            let text = format!("[[hba]]\n[[hba.lun]]\ntarget = {target}\nimage = \"{}\"\n", path.display());
            config::parse_hba(&text, Path::new("")).unwrap().luns.remove(0)
        };
        let named = |serial: &str, wwn| DiskConfig { serial: serial.into(), wwn, ..DiskConfig::default() };
        let [a, b] = &paths;
        let (disk_a, disk_b) = (open(a), open(b));
        let identities = Identities::default();
        let take = |target, path: &Path, disk: &DiskConfig, image: &Arc<Image>| {
            identities.take("scsi0", &lun(target, path), path, disk, image).map_err(|e| e.to_string())
        };
        let wwn = Some(0x5000_c500_0000_0001);
        assert_eq!(take(0, a, &named("S1", wwn), &disk_a), Ok(()));
        let b_is = b.display();
        let place = "is that of the unit at hba scsi0, target 0, lun 0; give each its own";
        assert_eq!(take(1, b, &named("S1", None), &disk_b), Err(format!("{b_is}: serial \"S1\" {place}")));
        assert_eq!(
            take(1, b, &named("S2", wwn), &disk_b),
            Err(format!("{b_is}: wwn \"5000c50000000001\" {place}"))
        );
        // A second path to the same file; what takes the place of the first one; what comes when that is gone.
        let second = open(a);
        assert_eq!(take(2, a, &named("S1", wwn), &second), Ok(()));
        drop(second);
        assert_eq!(take(0, b, &named("S1", wwn), &disk_b), Ok(()));
        drop((disk_a, disk_b));
        let disk_b = open(b);
        assert_eq!(take(1, b, &named("S1", wwn), &disk_b), Ok(()));
    }
}
