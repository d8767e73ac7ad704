//! Signal handlers that do only what signal handlers may.

use std::io;
use std::ptr;

/// As sigaction(2) takes it.
pub(super) type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Has `handler` called for a signal, with `flags` besides SA_SIGINFO. No other signal comes in between, unless the flags let
/// the same one.
#[allow(unsafe_code)]
pub(super) fn catch(signal: libc::c_int, handler: Handler, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `sigaction` (integers and null pointers).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | flags;
    if flags & libc::SA_NODEFER == 0 {
        // SAFETY: the set is live.
        unsafe { libc::sigfillset(&raw mut action.sa_mask) };
    }
    // SAFETY: the action is live; who calls this says that the handler does only what signal handlers may.
    let result = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends a signal to a thread of this process. False when it has ended.
#[allow(unsafe_code)]
pub(super) fn send(thread: i32, signal: libc::c_int) -> io::Result<bool> {
    let process = std::process::id().cast_signed();
    // SAFETY: no pointers.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(true),
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        error => Err(error),
    }
}
