//! Standard input, output and error, which whoever starts the process has given it, and perhaps others as well: what could be
//! done with them beside what the machine does is given up.
//!
//! The kernel lets a descriptor be opened anew by its name in /proc, and no rule of Landlock is about pipes without a name. So
//! who has taken over a thread that opens files could write to a pipe that is there to be read, such as that by which a shell
//! gets its commands, or read what others write to one. And what a process in the background of a terminal asks of it stops all
//! processes of its group.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

/// File system type of pipes that have no name (linux/magic.h, PIPEFS_MAGIC).
const PIPES: i64 = 0x5049_5045;

/// To be called when everything is open. `console`: they are that of the machine.
pub(super) fn narrow(console: bool) -> io::Result<()> {
    if !console {
        sys::replace(libc::STDIN_FILENO, File::open("/dev/null")?.as_fd())?;
    }
    let standard = [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO];
    let pipes = standard.map(pipe);
    for (fd, own) in standard.into_iter().zip(pipes) {
        let reads = fd == libc::STDIN_FILENO;
        // One that is used both ways has to stay so.
        let both = own.is_some()
            && pipes
                .iter()
                .zip(standard)
                .any(|(other, at)| *other == own && (at == libc::STDIN_FILENO) != reads);
        if own.is_some() && !both {
            // Another user's cannot be changed, nor opened.
            let _ = sys::change_mode(fd, if reads { 0o400 } else { 0o200 });
        } else if !reads {
            write_only(fd)?;
        }
    }
    Ok(())
}

/// The pipe without a name that the descriptor is an end of: its number.
fn pipe(fd: RawFd) -> Option<u64> {
    sys::with(fd, |file| {
        let found = file.metadata().ok()?;
        (found.file_type().is_fifo() && sys::file_system(file) == Some(PIPES)).then(|| found.ino())
    })
}

/// Output to a terminal reads nothing from it. Where the terminal is another user's, it stays as it is.
fn write_only(fd: RawFd) -> io::Result<()> {
    if !sys::is_terminal(fd) {
        return Ok(());
    }
    // A serial line might wait for its carrier.
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    let Ok(again) = OpenOptions::new().write(true).custom_flags(flags).open(format!("/proc/self/fd/{fd}"))
    else {
        return Ok(());
    };
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
