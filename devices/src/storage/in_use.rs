//! Block devices that the host itself uses: mounted, swapped to, or below another device.
//!
//! Image locks do not tell, since nobody but virtual machines takes them. The kernel does: who opens a device with O_EXCL
//! has it for himself, and mounting it, or opening it so again, fails with EBUSY (open(2)), its partitions and the disk
//! that it is a partition of included.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
#[cfg(test)]
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::lock::locks_of;
use super::loops::loops_over;
use super::sys::block_device;
use super::sysfs::{below, device_of, entry, parts};
use super::{OpenError, fdset};

/// How long a device is asked for again that is busy with nothing the host tells of, and how often: udev and its helpers
/// have a device for themselves while they look what is on it, such as after somebody had it open for writing.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// Takes the block device at `path`, which is open as `file`, from the host for as long as the result is open.
pub(super) fn claim(path: &Path, file: &File) -> Result<File, OpenError> {
    let failed = |e| OpenError::host(format!("{}: cannot claim the device", path.display()), e);
    let begin = Instant::now();
    let claim = loop {
        let claim = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(path);
        match claim {
            Ok(claim) => break claim,
            Err(e) if e.raw_os_error() != Some(libc::EBUSY) => return Err(failed(e)),
            Err(_) if begin.elapsed() < PATIENCE && user_of(path).is_none() => std::thread::sleep(PAUSE),
            Err(_) => return Err(busy(path, file)),
        }
    };
    // Another device may have come to the name meanwhile.
    let device = |file: &File| file.metadata().map(|found| found.rdev());
    if device(&claim).map_err(failed)? != device(file).map_err(failed)? {
        return Err(OpenError::new(format!(
            "{}: another device while it was opened; try again",
            path.display()
        )));
    }
    Ok(claim)
}

/// As [`claim`] for a device of a set, which nobody can open again by its name: an error if the host is known to use it.
pub(super) fn look(path: &Path, file: &File) -> Result<(), OpenError> {
    if user_of(path).is_some() { Err(busy(path, file)) } else { Ok(()) }
}

/// The host, or this machine itself, uses the image at `path`, which is open as `file`.
pub(super) fn busy(path: &Path, file: &File) -> OpenError {
    let user = user_of(path);
    if user.is_none() && is_ours(file) {
        return used_twice(path);
    }
    let path = fdset::shown(path);
    let user = user.unwrap_or_else(|| "another program has it for itself".into());
    OpenError::new(format!(
        "{path} is in use by the host, and a second writer would destroy what is on it: {user}; free it, use another \
         device, or set readonly = true"
    ))
}

/// Two disks have the device at `path`, or parts of it.
pub(super) fn used_twice(path: &Path) -> OpenError {
    OpenError::new(format!(
        "{}: two disks of this machine use the same device, or parts of it, and at least one writes to it; give each its \
         own, or make both readonly",
        fdset::shown(path)
    ))
}

/// The device itself, its partitions, and what it is a part of.
pub(super) fn related(number: u64) -> HashSet<u64> {
    parts(number).into_iter().map(|(_, number)| number).chain(below(number)).collect()
}

/// Whether this process has the device, its disk or a partition of it open as another image.
fn is_ours(file: &File) -> bool {
    let Ok(found) = file.metadata() else { return false };
    let related = related(found.rdev());
    let own = file.as_raw_fd();
    let descriptors = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    descriptors
        .filter_map(|descriptor| descriptor.file_name().to_str()?.parse().ok())
        .filter(|descriptor| *descriptor != own)
        // The server of another image may not answer.
        .filter(|descriptor| block_device(*descriptor).is_some_and(|number| related.contains(&number)))
        .any(|descriptor| !locks_of("self", descriptor).is_empty())
}

/// What the host uses the image at `path` for, or parts of it, as the end of a sentence; `None` if nothing that it tells.
/// A file is used where a loop device over it is. Claims nothing.
pub fn user_of(path: &Path) -> Option<String> {
    let file = match fdset::number(path) {
        Some(number) => fdset::any(number).ok()?,
        None => OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).ok()?,
    };
    let device =
        block_device(file.as_raw_fd()).and_then(|number| user_of_device(number, &fdset::shown(path), ""));
    device.or_else(|| user_of_loops(&loops_over(&file)))
}

/// What the host uses loop devices over a file for.
pub(super) fn user_of_loops(loops: &[(PathBuf, u64)]) -> Option<String> {
    loops.iter().find_map(|(node, number)| {
        user_of_device(*number, &node.display().to_string(), ", a device over it,")
    })
}

fn user_of_device(number: u64, shown: &str, what: &str) -> Option<String> {
    parts(number).into_iter().find_map(|(name, number)| {
        let name = name.unwrap_or_else(|| shown.to_owned()) + what;
        mounted(number)
            .map(|place| format!("{name} is mounted at {place}"))
            .or_else(|| swapped(number).then(|| format!("{name} is swap space")))
            .or_else(|| holder(number).map(|holder| format!("{name} is part of {holder}")))
    })
}

/// Where a device is mounted (proc(5), mountinfo: the device, the place, and behind a dash type and source).
fn mounted(number: u64) -> Option<String> {
    mounted_by(&fs::read_to_string("/proc/self/mountinfo").ok()?, number)
}

fn mounted_by(mounts: &str, number: u64) -> Option<String> {
    let device = format!("{}:{}", libc::major(number), libc::minor(number));
    mounts.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        let mut head = head.split(' ').skip(2);
        let (found, place) = (head.next()?, head.nth(1)?);
        // Some file systems, such as btrfs, have a number of their own. With FUSE, which anybody may mount, the source is
        // a text that anybody chose.
        let (kind, source) = tail.split_once(' ')?;
        let chosen = kind == "fuse" || kind.starts_with("fuse.");
        let source = || source.split(' ').next().filter(|source| source.starts_with('/') && !chosen);
        (found == device || source().and_then(|source| device_of(Path::new(source))) == Some(number))
            .then(|| place.replace("\\040", " "))
    })
}

fn swapped(number: u64) -> bool {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    // A file, which may be on a server, is none.
    let partition = |line: &&str| line.split_whitespace().nth(1) == Some("partition");
    swaps
        .lines()
        .filter(partition)
        .filter_map(|line| line.split_whitespace().next())
        .any(|swap| device_of(Path::new(swap)) == Some(number))
}

/// A device above, such as a RAID array, a volume or a path's multipath device.
fn holder(number: u64) -> Option<String> {
    let holder = fs::read_dir(entry(number).join("holders")).ok()?.flatten().next()?;
    let name = holder.file_name().to_string_lossy().into_owned();
    let label = fs::read_to_string(holder.path().join("dm/name")).ok();
    Some(match label {
        Some(label) => format!("/dev/mapper/{}", label.trim()),
        None => format!("/dev/{name}"),
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::storage::{CacheMode, RawImage, RawOptions, Sharing};
    use crate::testing::{LoopDevice, temp_dir};

    fn options(device: &LoopDevice) -> RawOptions {
        let path = device.path().into();
        RawOptions { path, read_only: false, cache: CacheMode::Writeback, sharing: Sharing::Exclusive }
    }

    fn exclusive(device: &LoopDevice) -> io::Result<File> {
        OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device.path())
    }

    fn refusal(options: &RawOptions) -> String {
        RawImage::open(options).err().expect("it opened").message
    }

    #[test]
    fn a_device_is_ours_alone_while_we_write_to_it() {
        let Some(device) = LoopDevice::new(1 << 20, 512) else { return };
        let host = exclusive(&device).unwrap();
        let writable = options(&device);
        let said = refusal(&writable);
        assert!(said.contains("in use by the host"), "{said}");
        let reader = RawOptions { read_only: true, ..writable.clone() };
        let shared = RawOptions { sharing: Sharing::Shared, ..writable.clone() };
        drop(RawImage::open(&reader).unwrap());
        drop(RawImage::open(&shared).unwrap());
        drop(host);
        let image = RawImage::open(&writable).unwrap();
        assert_eq!(exclusive(&device).unwrap_err().raw_os_error(), Some(libc::EBUSY), "as mount would find");
        // Another virtual machine is called by its name, not taken for the host.
        assert!(refusal(&writable).contains("two disks of this machine"), "{}", refusal(&writable));
        drop(image);
        drop(exclusive(&device).unwrap());
        let readers = [RawImage::open(&reader).unwrap(), RawImage::open(&reader).unwrap()];
        drop(exclusive(&device).unwrap());
        drop(readers);
    }

    #[test]
    fn a_device_that_is_looked_at_for_a_moment_is_waited_for() {
        let Some(device) = LoopDevice::new(1 << 20, 512) else { return };
        let host = exclusive(&device).unwrap();
        let look = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(host);
        });
        let begin = Instant::now();
        drop(RawImage::open(&options(&device)).unwrap());
        assert!(begin.elapsed() < PATIENCE, "it opens as soon as it can");
        look.join().unwrap();
    }

    #[test]
    fn the_source_of_a_mount_counts_where_not_anybody_chose_it() {
        let Some(device) = LoopDevice::new(1 << 20, 512) else { return };
        let (path, number) = (device.path().display(), device_of(device.path()).unwrap());
        let place = |tail: &str| mounted_by(&format!("1 1 0:99 / /mnt/a\\040b rw - {tail} rw\n"), number);
        assert_eq!(place(&format!("btrfs {path}")), Some("/mnt/a b".into()));
        assert_eq!(place(&format!("fuse.sshfs {path}")), None);
        assert_eq!(place(&format!("fuse {path}")), None);
        assert_eq!(place("tmpfs none"), None);
    }

    struct Mount(tempfile::TempDir);

    impl Drop for Mount {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.0.path()).status();
        }
    }

    #[test]
    fn a_mounted_device_is_refused_with_its_place() {
        let Some(device) = LoopDevice::new(4 << 20, 512) else { return };
        let run = |name: &str, args: &[&std::ffi::OsStr]| {
            Command::new(name).args(args).output().is_ok_and(|out| out.status.success())
        };
        let directory = temp_dir();
        let place = directory.path().as_os_str().to_owned();
        if !run("mkfs.ext4", &["-q".as_ref(), device.path().as_os_str()])
            || !run("mount", &[device.path().as_os_str(), &place])
        {
            crate::testing::skipped("nothing can be mounted here");
            return;
        }
        let mount = Mount(directory);
        let said = format!("{} is mounted at {}", device.path().display(), place.to_string_lossy());
        assert_eq!(user_of(device.path()), Some(said.clone()));
        assert!(refusal(&options(&device)).contains(&said), "{}", refusal(&options(&device)));
        drop(mount);
        assert_eq!(user_of(device.path()), None);
    }
}
