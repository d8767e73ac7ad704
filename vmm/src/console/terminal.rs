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

/// Signals that end the process in the middle of anything: of all that do, those that [`Signals`](super::Signals) does not
/// take and that can be caught.
const FATAL: [libc::c_int; 17] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
    libc::SIGQUIT,
    libc::SIGXCPU,
    libc::SIGSYS,
    libc::SIGTRAP,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
];

/// `si_code` of a SIGBUS for an address without memory behind it (Linux, asm-generic/siginfo.h).
const BUS_ADRERR: libc::c_int = 2;

/// What is said of it.
const NO_MEMORY: &[u8] =
    b"vmm: error: the host has no memory for what it promised (SIGBUS): its huge pages ran out, \
or the space of a file of memory, or a file became shorter\n";

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

/// Whether there has been a terminal to put into raw mode.
pub(crate) fn has_raw_terminal() -> bool {
    saved().is_some()
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

/// Whether raw mode should begin again and has not: when another job has the terminal, nothing tells that it is ours again.
pub(super) fn is_due() -> bool {
    WANTED.load(Ordering::Acquire) && !RAW.load(Ordering::Acquire)
}

/// Gives the terminal back as it was found. Does nothing when it is not raw. Safe to call in a signal handler.
pub fn leave() {
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
        let caught = FATAL.into_iter().filter(|signal| !super::signals::ignored(*signal));
        result = caught.into_iter().try_for_each(catch);
    });
    result
}

/// Has a machine that ends because the host does not give it memory (SIGBUS) say so.
pub fn explain_bus_errors() -> io::Result<()> {
    catch(libc::SIGBUS)
}

#[allow(unsafe_code)]
fn catch(signal: libc::c_int) -> io::Result<()> {
    // Only what signal handlers may do.
    extern "C" fn on_fatal(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        leave();
        // SAFETY: the kernel hands the handler a live structure (SA_SIGINFO).
        let code = unsafe { info.as_ref() }.map_or(0, |info| info.si_code);
        if signal == libc::SIGBUS && code == BUS_ADRERR {
            // SAFETY: the pointer and the length are those of one constant.
            unsafe { libc::write(libc::STDERR_FILENO, NO_MEMORY.as_ptr().cast(), NO_MEMORY.len()) };
        }
        // The handler is gone (SA_RESETHAND) and the signal open (SA_NODEFER): this ends the process.
        // SAFETY: no pointers; `raise` may be called in signal handlers.
        unsafe { libc::raise(signal) };
    }
    // SAFETY: all-zero bytes are a valid `sigaction` (integers and null pointers).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_fatal as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND | libc::SA_NODEFER | libc::SA_ONSTACK;
    // SAFETY: the action is live and its handler does only what signal handlers may.
    sys::check(unsafe { libc::sigaction(signal, &action, ptr::null_mut()) }).map(drop)
}
