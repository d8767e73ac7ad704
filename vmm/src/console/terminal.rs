//! Raw mode of the user's terminal, and its end in every way that the process can end.
//!
//! The state is global because panics and signals are: whoever ends the process calls [`leave`].

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use super::sys;

/// The terminal that was put into raw mode last.
struct Saved {
    /// Ours alone and never closed, so that it is there at the very end.
    file: File,
    cooked: libc::termios,
    raw: libc::termios,
    /// Told whenever raw mode begins or ends. Runs in signal handlers too: atomics only.
    changed: fn(bool),
}

static SAVED: AtomicPtr<Saved> = AtomicPtr::new(ptr::null_mut());
static RAW: AtomicBool = AtomicBool::new(false);
/// There is a [`RawTerminal`]: raw mode may begin again after the process was stopped.
static WANTED: AtomicBool = AtomicBool::new(false);

/// Signals that end the process in the middle of anything.
const FATAL: [libc::c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGQUIT];

/// Raw mode, until dropped.
pub(super) struct RawTerminal(&'static Saved);

impl RawTerminal {
    /// Remembers the settings of `terminal` and enters raw mode. `None` if it is no terminal. A process in
    /// the background leaves the terminal alone until [`renew`].
    ///
    /// `changed` is told when raw mode begins and ends; it may run in a signal handler.
    pub(super) fn enter(terminal: BorrowedFd<'_>, changed: fn(bool)) -> io::Result<Option<Self>> {
        let Ok(cooked) = sys::get_terminal(terminal.as_raw_fd()) else { return Ok(None) };
        catch_the_end()?;
        let file = sys::duplicate(terminal)?;
        // Never freed: a signal handler may be reading it. There is one for each console that is opened.
        let saved = Box::leak(Box::new(Saved { file, cooked, raw: sys::raw_settings(cooked), changed }));
        SAVED.store(saved, Ordering::Release);
        WANTED.store(true, Ordering::Release);
        renew();
        Ok(Some(Self(saved)))
    }

    /// Whether another job has the terminal. Reading from it would stop the process.
    pub(super) fn in_background(&self) -> bool {
        self.0.in_background()
    }
}

impl Saved {
    fn in_background(&self) -> bool {
        sys::in_background(self.file.as_raw_fd())
    }

    fn apply(&self, settings: &libc::termios) -> io::Result<()> {
        sys::set_terminal(self.file.as_raw_fd(), settings)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        WANTED.store(false, Ordering::Release);
        leave();
    }
}

#[allow(unsafe_code)]
fn saved() -> Option<&'static Saved> {
    // SAFETY: null, or from `Box::leak` in `enter`; nothing writes to it afterwards.
    unsafe { SAVED.load(Ordering::Acquire).as_ref() }
}

/// Enters raw mode, first or again, unless the terminal is in the hands of another job.
pub(super) fn renew() {
    if WANTED.load(Ordering::Acquire)
        && let Some(saved) = saved()
        && !saved.in_background()
        && saved.apply(&saved.raw).is_ok()
    {
        RAW.store(true, Ordering::Release);
        (saved.changed)(true);
    }
}

/// Gives the terminal back as it was found. Does nothing when it is not raw. Safe to call in a signal handler.
pub(super) fn leave() {
    if !RAW.swap(false, Ordering::AcqRel) {
        return;
    }
    if let Some(saved) = saved() {
        // In the background the terminal has the settings of another job.
        if !saved.in_background() {
            let _ = saved.apply(&saved.cooked);
        }
        (saved.changed)(false);
    }
}

/// Sees to it that a panic and a fatal signal leave raw mode first.
fn catch_the_end() -> io::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            leave();
            previous(info);
        }));
        result = FATAL.iter().try_for_each(|signal| catch(*signal));
    });
    result
}

#[allow(unsafe_code)]
fn catch(signal: libc::c_int) -> io::Result<()> {
    extern "C" fn on_fatal(signal: libc::c_int) {
        leave();
        // The handler is gone (SA_RESETHAND) and the signal open (SA_NODEFER): this ends the process.
        // SAFETY: no pointers; `raise` may be called in signal handlers.
        unsafe { libc::raise(signal) };
    }
    // SAFETY: all-zero bytes are a valid `sigaction` (integers and null pointers).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_fatal as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_RESETHAND | libc::SA_NODEFER | libc::SA_ONSTACK;
    // SAFETY: the action is live and its handler does only what signal handlers may.
    sys::check(unsafe { libc::sigaction(signal, &action, ptr::null_mut()) }).map(drop)
}
