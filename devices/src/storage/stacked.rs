//! Files below block devices and loop devices over files: who writes to one of them writes to the others.
//!
//! An image lock is that of one file of the host. So a loop device is locked together with the file that it is made of. What
//! is made of parts of it, as partitions and volumes are, may be used by several, each with its own: of these the kernel
//! takes care (O_EXCL).

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::lock::{self, Sharing};
use super::loops::loops_over;
use super::{OpenError, fdset, in_use, sys, sysfs};
use crate::sandbox;

/// A file below a block device.
pub(super) struct Below {
    pub(super) file: File,
    /// Its name.
    path: PathBuf,
    /// For messages.
    pub(super) shown: String,
    /// How it is to be locked.
    pub(super) sharing: Sharing,
}

/// What a loop device is made of.
struct Backing {
    file: File,
    /// The device is not the whole of it.
    part: bool,
}

/// Locks all files below the block device `file` at `path`, for as long as the result is open.
pub(super) fn lock_below(
    path: &Path,
    file: &File,
    read_only: bool,
    sharing: Sharing,
) -> Result<Vec<File>, OpenError> {
    let mut held = Vec::new();
    for below in below(path, file, sharing)? {
        lock::lock(&below.file, &below.shown, read_only, below.sharing)?;
        let is_device = below.file.metadata().is_ok_and(|found| found.file_type().is_block_device());
        if is_device && !read_only && below.sharing == Sharing::Exclusive {
            held.push(in_use::claim(&below.path, &below.file)?);
        }
        held.push(below.file);
    }
    Ok(held)
}

/// All files below the block device `file` at `path`, of which a user shares it so. Those that cannot be opened are told of.
pub(super) fn below(path: &Path, file: &File, sharing: Sharing) -> Result<Vec<Below>, OpenError> {
    let mut found = Vec::new();
    if sharing == Sharing::Unlocked {
        return Ok(found);
    }
    let failed = |e| OpenError::host(format!("{}: cannot look at the device", fdset::shown(path)), e);
    let mut devices = vec![(file.metadata().map_err(failed)?.rdev(), false)];
    let mut seen = HashSet::new();
    while let Some((device, part)) = devices.pop() {
        if !seen.insert(device) {
            continue;
        }
        devices.extend(sysfs::below(device).into_iter().map(|device| (device, true)));
        let Some(name) = sysfs::backing_file(&sysfs::entry(device)) else { continue };
        let backing = match open(device, &name) {
            Ok(backing) => backing,
            // Its name is gone, so nobody can open it any more.
            Err(e)
                if e.kind() == io::ErrorKind::NotFound && name.to_string_lossy().ends_with(" (deleted)") =>
            {
                continue;
            }
            Err(e) => {
                let why = sandbox::explain(&name, false, &e).unwrap_or_else(|| e.to_string());
                tracing::warn!(
                    "{} is made of {}, which cannot be locked: {why}; nothing protects it from a second writer",
                    fdset::shown(path),
                    name.display()
                );
                continue;
            }
        };
        let part = part || backing.part;
        let file = backing.file;
        let kind = file.metadata().map_err(failed)?;
        if kind.file_type().is_block_device() {
            devices.push((kind.rdev(), part));
        }
        let shown = format!("{}, which is made of {}", fdset::shown(path), name.display());
        found.push(Below { file, path: name, shown, sharing: if part { Sharing::Shared } else { sharing } });
    }
    Ok(found)
}

/// Refuses the image `file` at `path` if somebody uses a loop device over it who knows nothing of the file: another
/// program, or the host.
pub(super) fn look_above(
    path: &Path,
    file: &File,
    read_only: bool,
    sharing: Sharing,
) -> Result<(), OpenError> {
    if sharing == Sharing::Unlocked {
        return Ok(());
    }
    let loops = loops_over(file);
    for (node, _) in &loops {
        let shown = format!("{}, of which {} is made", fdset::shown(path), node.display());
        match quietly(node) {
            Ok(device) => lock::look(&device, &shown, read_only, sharing)?,
            Err(error) => lock::look_unopened(node, &shown, read_only, sharing).unwrap_or_else(|_| {
                // Who may not open it cannot tell; but outside the sandbox somebody could.
                let why = sandbox::explain(node, false, &error);
                why.map_or(Ok(()), |why| {
                    Err(OpenError::new(format!("{shown}: cannot find out who uses that: {why}")))
                })
            })?,
        }
    }
    if !read_only && sharing == Sharing::Exclusive && in_use::user_of_loops(&loops).is_some() {
        return Err(in_use::busy(path, file));
    }
    Ok(())
}

/// The file of a loop device, which the kernel calls so.
fn open(device: u64, name: &Path) -> io::Result<Backing> {
    let file = quietly(name)?;
    let found = file.metadata()?;
    if !found.is_file() && !found.file_type().is_block_device() {
        return Err(io::Error::other("another file is there"));
    }
    // The name may be that of another root directory. Who may not ask the device takes it at its word.
    let status = sysfs::node(device).and_then(|node| quietly(&node).ok()).map(|node| sys::loop_status(&node));
    let Some(Ok(status)) = status else { return Ok(Backing { file, part: false }) };
    if (status.device, status.inode) != (found.dev(), found.ino()) {
        return Err(io::Error::other("another file is there"));
    }
    let end = status.offset.saturating_add(status.limit);
    let short = status.limit > 0 && super::raw::length(&file)? > end;
    Ok(Backing { file, part: status.offset > 0 || short })
}

fn quietly(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}
