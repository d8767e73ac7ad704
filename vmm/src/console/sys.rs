//! The few system calls that the standard library does not have, each behind a safe function.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// The result of a call that gives -1 and sets `errno` on error.
pub(super) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// An entry of [`poll`] that is left out.
pub(super) const NOTHING: libc::pollfd = libc::pollfd { fd: -1, events: 0, revents: 0 };

/// An entry that waits for `events` (and always for errors and hang-ups) on `fd`; `None` is left out.
pub(super) fn entry(fd: Option<RawFd>, events: libc::c_short) -> libc::pollfd {
    fd.map_or(NOTHING, |fd| libc::pollfd { fd, events, revents: 0 })
}

/// Waits until an entry has something or `timeout` is over (`None`: for ever). Signals end the wait early.
#[allow(unsafe_code)]
pub(super) fn poll(entries: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    // Rounded up, so that a wait for a deadline does not end just before it.
    let ms = timeout.map_or(-1, |t| i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
    let count = entries.len() as libc::nfds_t;
    // SAFETY: the pointer and the count are those of one live, exclusively borrowed slice.
    match check(unsafe { libc::poll(entries.as_mut_ptr(), count, ms) }) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            entries.iter_mut().for_each(|entry| entry.revents = 0);
            Ok(())
        }
        result => result.map(drop),
    }
}

/// The settings of the terminal behind `fd`; an error says that it is none.
#[allow(unsafe_code)]
pub(super) fn get_terminal(fd: RawFd) -> io::Result<libc::termios> {
    let mut settings = MaybeUninit::<libc::termios>::zeroed();
    // SAFETY: the pointer is to a live value of the right type, which the call fills.
    check(unsafe { libc::tcgetattr(fd, settings.as_mut_ptr()) })?;
    // SAFETY: the call succeeded; besides, all-zero bytes are a valid `termios` (integers only).
    Ok(unsafe { settings.assume_init() })
}

/// Changes the settings of the terminal behind `fd` at once. Safe to call in a signal handler.
#[allow(unsafe_code)]
pub(super) fn set_terminal(fd: RawFd, settings: &libc::termios) -> io::Result<()> {
    // SAFETY: the pointer is to a live value of the right type, which the call only reads.
    check(unsafe { libc::tcsetattr(fd, libc::TCSANOW, settings) }).map(drop)
}

/// Settings under which every byte passes as it is, both ways.
#[allow(unsafe_code)]
pub(super) fn raw_settings(mut settings: libc::termios) -> libc::termios {
    // SAFETY: the pointer is to a live value of the right type.
    unsafe { libc::cfmakeraw(&mut settings) };
    settings
}

/// Whether the terminal behind `fd` is in the hands of another job of its session. A terminal of no or another
/// session counts as ours. Safe to call in a signal handler.
#[allow(unsafe_code)]
pub(super) fn in_background(fd: RawFd) -> bool {
    // SAFETY: no pointers; a wrong descriptor is an error.
    let foreground = unsafe { libc::tcgetpgrp(fd) };
    // SAFETY: no arguments, cannot fail.
    let ours = unsafe { libc::getpgrp() };
    foreground >= 0 && foreground != ours
}

/// Opens a pseudoterminal's master side, non-blocking, and unlocks its slave side.
#[allow(unsafe_code)]
pub(super) fn open_pty_master() -> io::Result<File> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) })?;
    // SAFETY: the call just gave us this descriptor, which nobody else owns.
    let master = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    // SAFETY: no pointers.
    check(unsafe { libc::grantpt(fd) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::unlockpt(fd) })?;
    set_nonblocking(&master)?;
    Ok(master)
}

/// The path of the slave side of a pseudoterminal.
#[allow(unsafe_code)]
pub(super) fn pty_slave_path(master: &File) -> io::Result<String> {
    let mut number: libc::c_uint = 0;
    // SAFETY: TIOCGPTN writes one unsigned int to the pointer, which is to a live one.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &mut number) })?;
    Ok(format!("/dev/pts/{number}"))
}

/// Makes reads and writes return instead of waiting. For descriptors that nobody shares with us.
#[allow(unsafe_code)]
pub(super) fn set_nonblocking(file: &File) -> io::Result<()> {
    // SAFETY: no pointers.
    let flags = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

/// A second descriptor for one of the process's standard streams.
pub(super) fn duplicate(fd: BorrowedFd<'_>) -> io::Result<File> {
    fd.try_clone_to_owned().map(File::from)
}
