//! Signals as events of the main loop.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::FromRawFd;

use super::control::{Control, Event};

/// What the operator sends to end a machine, and its name for the log.
const ENDING: [(libc::c_int, &str); 3] =
    [(libc::SIGTERM, "SIGTERM"), (libc::SIGINT, "SIGINT"), (libc::SIGHUP, "SIGHUP")];

/// Blocks the ending signals in this thread and in all that it starts, so that only the descriptor sees them. To be
/// called before the first thread is started.
pub fn block() -> io::Result<File> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initializes the set that the later calls read; all pointers are to locals.
    #[allow(unsafe_code, clippy::multiple_unsafe_ops_per_block)]
    let fd = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for (signal, _) in ENDING {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        let failed = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and has no other owner.
    #[allow(unsafe_code)]
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Turns the signals that wait at `descriptor` into [`Event::Stop`].
pub fn take(mut descriptor: &File, control: &Control) {
    let mut record = [0u8; size_of::<libc::signalfd_siginfo>()];
    while descriptor.read_exact(&mut record).is_ok() {
        // The signal number is the first 32-bit word of a record (signalfd(2)).
        let number = record.first_chunk().map_or(0, |n| i32::from_ne_bytes(*n));
        let name = ENDING.iter().find(|(n, _)| *n == number).map_or("a signal", |(_, name)| name);
        control.post(Event::Stop(format!("received {name}")));
    }
}
