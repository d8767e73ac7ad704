//! Image locks: two virtual machines must not write to one image.
//!
//! The scheme is QEMU's, so that both programs keep off each other's images (QEMU, block/file-posix.c): a user of
//! an image takes a shared lock on byte 100+n for each permission n it uses and on byte 200+n for each that
//! it does not share. It then looks whether someone else locked 200+n for one that it uses, or 100+n for
//! one that it does not share. The locks belong to the open file description and end with it.

use std::fmt::Display;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use super::sys::{is_byte_taken, release_byte, share_byte};
use super::{OpenError, lock_list};
use crate::threads::{self, Kind};

/// First lock byte of permissions in use.
const USED: i64 = 100;
/// First lock byte of permissions not shared.
const UNSHARED: i64 = 200;

/// Number of the permission to read consistent data.
const READ: i64 = 0;
/// Number of the permission to write.
const WRITE: i64 = 1;
/// Number of the permission to change the size.
const RESIZE: i64 = 3;

/// Who else may use an image at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Readers share with readers; a writer is alone.
    #[default]
    Exclusive,
    /// Other writers are welcome, if they say so too: for cluster file systems.
    Shared,
    /// No lock at all.
    Unlocked,
}

/// What a user of an image locks, and what it looks for.
pub(super) struct Wanted {
    mine: Vec<i64>,
    theirs: Vec<i64>,
}

impl Wanted {
    /// `None` for no lock at all.
    pub(super) fn of(read_only: bool, sharing: Sharing) -> Option<Self> {
        let used: &[i64] = if read_only { &[READ] } else { &[READ, WRITE] };
        let unshared: &[i64] = match sharing {
            Sharing::Exclusive => &[WRITE, RESIZE],
            Sharing::Shared => &[],
            Sharing::Unlocked => return None,
        };
        let mine = used.iter().map(|n| USED + n).chain(unshared.iter().map(|n| UNSHARED + n));
        let theirs = used.iter().map(|n| UNSHARED + n).chain(unshared.iter().map(|n| USED + n));
        Some(Self { mine: mine.collect(), theirs: theirs.collect() })
    }

    /// Whether another user cannot have the image beside this one.
    pub(super) fn excludes(&self, other: &Self) -> bool {
        other.theirs.iter().any(|byte| self.mine.contains(byte))
    }

    fn take(&self, file: &File) -> io::Result<bool> {
        for byte in &self.mine {
            match share_byte(file, *byte) {
                Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => return Ok(false),
                result => result?,
            }
        }
        self.look(file)
    }

    fn look(&self, file: &File) -> io::Result<bool> {
        for byte in &self.theirs {
            if is_byte_taken(file, *byte)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Locks the image behind `file`, which is `shown` so, for as long as `file`, or any duplicate of it, is open.
pub(super) fn lock(
    file: &File,
    shown: impl Display,
    read_only: bool,
    sharing: Sharing,
) -> Result<(), OpenError> {
    let Some(bytes) = Wanted::of(read_only, sharing) else { return Ok(()) };
    let taken = bytes.take(file);
    #[cfg(test)]
    let taken = tests::without_children(file, taken, || bytes.take(file));
    match taken {
        Ok(true) => Ok(()),
        Ok(false) => {
            // First of all: the description may be open elsewhere, which would be taken for the other user.
            let place = place_of(file);
            release(file);
            Err(conflict(Some(file), place, shown, read_only))
        }
        Err(e) if is_unsupported(&e) => {
            tracing::warn!(
                "{shown}: the file system has no locks ({e}); nothing protects the image from a second writer"
            );
            Ok(())
        }
        Err(e) => Err(OpenError::host(format!("{shown}: cannot lock the image"), e)),
    }
}

/// Locks a node of a device for commands, for as long as `file`, or any duplicate of it, is open: false if somebody else has it. Whoever
/// sends commands may write, whatever he means to do.
///
/// A lock of flock(2) is no help on block devices: udev waits for whoever has one that is not shared, and `udevadm settle` with it.
pub(crate) fn try_lock_node(file: &File, shared: bool) -> io::Result<bool> {
    let sharing = if shared { Sharing::Shared } else { Sharing::Exclusive };
    let Some(bytes) = Wanted::of(false, sharing) else { return Ok(true) };
    let taken = bytes.take(file);
    if !matches!(taken, Ok(true)) {
        release(file);
    }
    taken
}

/// Gives back what [`lock`] took, for a description that stays open.
pub(super) fn release(file: &File) {
    for permission in [READ, WRITE, RESIZE] {
        for byte in [USED + permission, UNSHARED + permission] {
            // Where there are no locks, there is nothing to give back.
            let _ = release_byte(file, byte);
        }
    }
}

/// Whether [`lock`] would find another user. Takes nothing.
pub(super) fn look(
    file: &File,
    shown: impl Display,
    read_only: bool,
    sharing: Sharing,
) -> Result<(), OpenError> {
    let Some(bytes) = Wanted::of(read_only, sharing) else { return Ok(()) };
    match bytes.look(file) {
        Ok(false) => Err(conflict(Some(file), place_of(file), shown, read_only)),
        // Without locks there is nobody to find.
        Ok(true) | Err(_) => Ok(()),
    }
}

/// As [`look`] at what is at `path` and this process may not open; an error if nobody tells.
pub(super) fn look_unopened(
    path: &Path,
    shown: impl Display,
    read_only: bool,
    sharing: Sharing,
) -> io::Result<Result<(), OpenError>> {
    let Some(bytes) = Wanted::of(read_only, sharing) else { return Ok(Ok(())) };
    let place = lock_list::place_if_taken(path, &bytes.theirs)?;
    Ok(place.map_or(Ok(()), |place| Err(conflict(None, Some(place), shown, read_only))))
}

/// Whether the file has no locks, rather than that the host could not say.
pub(super) fn is_unsupported(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL))
}

fn conflict(file: Option<&File>, place: Option<String>, path: impl Display, read_only: bool) -> OpenError {
    let purpose =
        if read_only { "for reading: it is being written to by" } else { "for writing: it is in use by" };
    let mut message = match place.and_then(|place| holder(file, &place)) {
        Some(pid) if pid == std::process::id() => {
            return used_twice(path);
        }
        Some(pid) => match fs::read_to_string(format!("/proc/{pid}/comm")) {
            Ok(name) => format!("{path}: cannot open {purpose} process {pid} ({})", name.trim_end()),
            Err(_) => format!("{path}: cannot open {purpose} process {pid}"),
        },
        None => format!("{path}: cannot open {purpose} another process"),
    };
    message.push_str("; stop that process or use another image");
    OpenError::new(message)
}

/// The image is that of two disks.
pub(super) fn used_twice(shown: impl Display) -> OpenError {
    OpenError::new(format!(
        "{shown}: two disks of this machine use the same image and at least one writes to it; give each its own image, or \
         make both readonly"
    ))
}

/// How long it may take to find who holds a lock. A process that the host keeps may not even be looked at: one that is being
/// started, and whose files hang, holds up who does.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many look at the processes of others, perhaps for ever.
static LOOKING: AtomicUsize = AtomicUsize::new(0);
/// No more do.
const LOOKERS: usize = 8;

/// The process that holds locks on the file at `place`, but with `file`. The kernel does not name it, so every process is asked.
/// What others have open is not touched: its server may not answer.
fn holder(file: Option<&File>, place: &str) -> Option<u32> {
    let own = || {
        let number = file.map(File::as_raw_fd);
        // In the sandbox only this one can be asked.
        has_locks(std::process::id(), place, number).then(std::process::id)
    };
    other_holder(place).or_else(own)
}

fn other_holder(place: &str) -> Option<u32> {
    let free = |looking: usize| (looking < LOOKERS).then_some(looking + 1);
    LOOKING.fetch_update(Ordering::SeqCst, Ordering::SeqCst, free).ok()?;
    let (tell, told) = mpsc::channel();
    let place = place.to_owned();
    let look = move || {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let found = pids.find(|pid| *pid != std::process::id() && has_locks(*pid, &place, None));
        LOOKING.fetch_sub(1, Ordering::SeqCst);
        let _ = tell.send(found);
    };
    match threads::spawn(Kind::Loops, "holder", look) {
        Ok(_) => told.recv_timeout(PATIENCE).ok().flatten(),
        Err(_) => {
            LOOKING.fetch_sub(1, Ordering::SeqCst);
            None
        }
    }
}

/// Whether a process holds locks on the file at `place` with another descriptor than this one.
fn has_locks(pid: u32, place: &str, but: Option<RawFd>) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut descriptors = descriptors.filter_map(|entry| {
        // Of a file or device, not a socket or what belongs to a driver.
        let path = fs::read_link(entry.path()).ok()?;
        path.is_absolute().then(|| entry.file_name().to_str()?.parse::<RawFd>().ok())?
    });
    descriptors.any(|descriptor| {
        Some(descriptor) != but && locks_of(pid, descriptor).iter().any(|one| one.as_str() == place)
    })
}

/// On which files a descriptor of a process holds open-file-description locks, as those of images are: the device of the file
/// system and the inode, as the kernel writes them (proc(5), fdinfo).
pub(super) fn locks_of(pid: impl Display, descriptor: RawFd) -> Vec<String> {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).unwrap_or_default();
    let locks = info.lines().filter(|line| line.starts_with("lock:") && line.contains("OFDLCK"));
    // Number, OFDLCK, kind, type, process, file, range.
    locks
        .filter_map(|line| line.split_whitespace().find(|word| word.contains(':') && !word.ends_with(':')))
        .map(str::to_owned)
        .collect()
}

/// Where a file is, as in [`locks_of`].
fn place_of(file: &File) -> Option<String> {
    let number = file.as_raw_fd();
    if let Some(own) = locks_of("self", number).pop() {
        return Some(own);
    }
    let found = file.metadata().ok()?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
    let value = |key| info.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    // File systems such as btrfs tell programs other numbers than those of the whole.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let whole = value("mnt_id:").and_then(|mount| {
        let of_mount = |line: &&str| line.split(' ').next() == Some(mount);
        let (major, minor) = mounts.lines().find(of_mount)?.split(' ').nth(2)?.split_once(':')?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    });
    let (major, minor) = whole.unwrap_or((libc::major(found.dev()), libc::minor(found.dev())));
    let inode = value("ino:").map_or_else(|| found.ino().to_string(), str::to_owned);
    Some(format!("{major:02x}:{minor:02x}:{inode}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that another test is about to start has our open files, locks included, until it becomes its program.
    pub(super) fn without_children(
        file: &File,
        mut taken: io::Result<bool>,
        again: impl Fn() -> io::Result<bool>,
    ) -> io::Result<bool> {
        for _ in 0..400 {
            let holder = place_of(file).and_then(|place| holder(Some(file), &place));
            if !matches!(taken, Ok(false)) || holder == Some(std::process::id()) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
            taken = again();
        }
        taken
    }
}
