//! Standard input, output and error, which whoever starts the process has given it, and perhaps others as well: what could be
//! done with them beside what the machine does is given up.
//!
//! The kernel lets a descriptor be opened anew by its name in /proc, and no rule of Landlock is about pipes without a name. So
//! who has taken over a thread that opens files could write to a pipe that is there to be read, such as that by which a shell
//! gets its commands, or read what others write to one. And what a process in the background of a terminal asks of it stops all
//! processes of its group.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

/// File system type of pipes that have no name (linux/magic.h, PIPEFS_MAGIC).
const PIPES: i64 = 0x5049_5045;

/// Has output to a terminal read nothing from it. To be called before anybody has a duplicate of it.
pub(super) fn narrow_output() {
    for fd in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // Where the terminal is another user's, it stays as it is.
        let _ = write_only(fd);
    }
}

/// To be called when everything is open. `console`: they are that of the machine.
pub(super) fn narrow(console: bool) -> io::Result<()> {
    if !console {
        // Where there is no such device, a pipe at its end is as good.
        let nothing = match File::open("/dev/null") {
            Ok(null) => null.into(),
            Err(_) => OwnedFd::from(io::pipe()?.0),
        };
        sys::replace(libc::STDIN_FILENO, nothing.as_fd())?;
    }
    narrow_pipes();
    Ok(())
}

/// Lets each pipe without a name be opened anew only for what this process has it open for.
fn narrow_pipes() {
    let standard = [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO];
    let listed = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let listed: Vec<RawFd> = listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let all = if listed.is_empty() { standard.to_vec() } else { listed };
    let mut pipes = BTreeMap::<u64, (RawFd, libc::mode_t)>::new();
    for fd in all {
        let Some(number) = pipe(fd) else { continue };
        let mode = match sys::access(fd) {
            libc::O_RDONLY => 0o400,
            libc::O_WRONLY => 0o200,
            _ => 0o600,
        };
        pipes.entry(number).or_insert((fd, 0)).1 |= mode;
    }
    for (fd, mode) in pipes.into_values() {
        // Another user's cannot be changed, nor opened.
        let _ = sys::change_mode(fd, mode);
    }
}

/// The pipe without a name that the descriptor is an end of: its number.
fn pipe(fd: RawFd) -> Option<u64> {
    sys::with(fd, |file| {
        let found = file.metadata().ok()?;
        (found.file_type().is_fifo() && sys::file_system(file) == Some(PIPES)).then(|| found.ino())
    })
}

/// The side of a pseudoterminal that gives a new one each time it is opened stays as it is.
fn write_only(fd: RawFd) -> io::Result<()> {
    if !sys::is_terminal(fd) || sys::is_master(fd) {
        return Ok(());
    }
    // A serial line might wait for its carrier.
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    let again = OpenOptions::new().write(true).custom_flags(flags).open(format!("/proc/self/fd/{fd}"))?;
    sys::wait_for(again.as_raw_fd())?;
    sys::replace(fd, again.as_fd())
}

#[allow(unsafe_code)]
mod sys {
    use std::fs::File;
    use std::mem::{ManuallyDrop, MaybeUninit};
    use std::os::fd::FromRawFd;

    use super::{AsRawFd, BorrowedFd, RawFd, io};

    fn check(result: libc::c_int) -> io::Result<()> {
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Looks at what is open as `fd`; at nothing if there is none.
    pub(super) fn with<T>(fd: RawFd, look: impl FnOnce(&File) -> T) -> T {
        // SAFETY: it is not closed here, and nothing is done with it but calls that fail if it is not open.
        let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
        look(&file)
    }

    /// Has `fd` be what `by` is.
    pub(super) fn replace(fd: RawFd, by: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: no pointers. Standard descriptors are nobody's in this process.
        check(unsafe { libc::dup2(by.as_raw_fd(), fd) })
    }

    pub(super) fn change_mode(fd: RawFd, mode: libc::mode_t) -> io::Result<()> {
        // SAFETY: no pointers.
        check(unsafe { libc::fchmod(fd, mode) })
    }

    pub(super) fn is_terminal(fd: RawFd) -> bool {
        // SAFETY: no pointers.
        unsafe { libc::isatty(fd) == 1 }
    }

    /// Whether it is the side of a pseudoterminal that is opened by `/dev/ptmx`.
    pub(super) fn is_master(fd: RawFd) -> bool {
        let mut number = 0;
        // SAFETY: the kernel writes an integer of this size.
        unsafe { libc::ioctl(fd, libc::TIOCGPTN, &raw mut number) == 0 }
    }

    /// What it is open for: O_RDONLY, O_WRONLY or O_RDWR.
    pub(super) fn access(fd: RawFd) -> libc::c_int {
        // SAFETY: no pointers.
        unsafe { libc::fcntl(fd, libc::F_GETFL) & 3 }
    }

    /// Calls wait from now on.
    pub(super) fn wait_for(fd: RawFd) -> io::Result<()> {
        // SAFETY: no pointers.
        check(unsafe { libc::fcntl(fd, libc::F_SETFL, 0) })
    }

    pub(super) fn file_system(file: &File) -> Option<i64> {
        let mut found = MaybeUninit::<libc::statfs>::zeroed();
        // SAFETY: the call writes such a structure.
        check(unsafe { libc::fstatfs(file.as_raw_fd(), found.as_mut_ptr()) }).ok()?;
        // SAFETY: it was all zero, and any integers are valid.
        Some(unsafe { found.assume_init() }.f_type)
    }
}
