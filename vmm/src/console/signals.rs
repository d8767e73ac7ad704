//! Signals as events: the process learns of them in its event loop, where it can end in good order.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{sys, terminal};

/// Signals that ask the process to end.
const TERMINATING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// End in good order, then [`die`] of this signal.
    Terminate(i32),
    /// [`suspend`] the process.
    Suspend,
    /// The process was stopped and goes on. The terminal has followed.
    Continued,
}

/// The signals SIGTERM, SIGINT, SIGHUP, SIGTSTP and SIGCONT.
pub struct Signals {
    file: File,
}

impl Signals {
    /// Blocks the signals in this thread and all threads that it starts later. To be called first in `main`.
    ///
    /// A terminating signal that the process was told to ignore (by `nohup`, or a shell that starts it in the
    /// background) stays ignored.
    pub fn block() -> io::Result<Self> {
        let mut set = empty_set();
        for signal in TERMINATING.into_iter().filter(|signal| !ignored(*signal)) {
            add(&mut set, signal);
        }
        add(&mut set, libc::SIGTSTP);
        add(&mut set, libc::SIGCONT);
        change_mask(libc::SIG_BLOCK, &set)?;
        open(&set).map(|file| Self { file })
    }

    /// Takes the next signal that has arrived, if any.
    pub fn next(&self) -> io::Result<Option<Request>> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        match (&self.file).read(&mut info) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        // The signal's number is the first field.
        let number = info.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes)).cast_signed();
        Ok(Some(match number {
            libc::SIGTSTP => Request::Suspend,
            libc::SIGCONT => {
                terminal::renew();
                Request::Continued
            }
            number => Request::Terminate(number),
        }))
    }
}

/// Ends the process by a signal while its main thread does something that the host may never end, and hears nothing.
pub struct Watch {
    over: Arc<EventFd>,
}

impl Watch {
    /// Until it is dropped, a signal that ends the process does so when nobody has taken it for as long as `grace`: usually
    /// the main thread soon does, in better order.
    pub fn start(signals: &Arc<Signals>, grace: Duration) -> io::Result<Self> {
        let over = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let (signals, ended) = (signals.clone(), over.clone());
        thread::Builder::new().name("signals".into()).spawn(move || {
            while let Ok(true) = signals.wait(&ended, grace) {
                match signals.next() {
                    Ok(Some(Request::Terminate(number))) => {
                        tracing::error!(
                            "ended by signal {number} before the start: the host does not answer"
                        );
                        die(number);
                    }
                    Ok(Some(Request::Suspend)) => suspend(),
                    _ => {}
                }
            }
        })?;
        Ok(Self { over })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Fails only when the thread has been told already.
        let _ = self.over.write(1);
    }
}

impl Signals {
    /// Waits until a signal has been there for `grace`; false when `over` comes before.
    fn wait(&self, over: &EventFd, grace: Duration) -> io::Result<bool> {
        let over = sys::entry(Some(over.as_raw_fd()), libc::POLLIN);
        let mut both = [over, sys::entry(Some(self.as_raw_fd()), libc::POLLIN)];
        sys::poll(&mut both, None)?;
        let mut over = [over];
        sys::poll(&mut over, Some(grace))?;
        Ok(over.iter().all(|entry| entry.revents == 0))
    }
}

impl AsRawFd for Signals {
    /// Readable when a signal has arrived.
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Ends the process by the signal, as its parent expects. Gives the terminal back first.
#[allow(unsafe_code)]
pub fn die(signal: i32) -> ! {
    terminal::leave();
    let mut set = empty_set();
    add(&mut set, signal);
    // SAFETY: the default action is no function of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: no pointers. The signal is blocked here and waits.
    unsafe { libc::raise(signal) };
    let _ = change_mask(libc::SIG_UNBLOCK, &set);
    // A signal that does not end processes.
    std::process::exit(128 + signal)
}

/// Stops the process, as a shell expects it of a job, until somebody continues it. The terminal is given back meanwhile.
#[allow(unsafe_code)]
pub fn suspend() {
    terminal::leave();
    // SAFETY: no pointers.
    unsafe { libc::raise(libc::SIGSTOP) };
    terminal::renew();
}

#[allow(unsafe_code)]
fn ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only asks; the old one goes to a live value.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all-zero bytes are a valid `sigaction`, and the call at most filled it.
    result == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

#[allow(unsafe_code)]
fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the pointer is to a live value.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the call initialised it.
    unsafe { set.assume_init() }
}

#[allow(unsafe_code)]
fn add(set: &mut libc::sigset_t, signal: libc::c_int) {
    // SAFETY: the set is initialised; a wrong number is an error without effect.
    unsafe { libc::sigaddset(set, signal) };
}

#[allow(unsafe_code)]
fn change_mask(how: libc::c_int, set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: the set is initialised; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(how, set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[allow(unsafe_code)]
fn open(set: &libc::sigset_t) -> io::Result<File> {
    // SAFETY: the set is initialised.
    let fd = sys::check(unsafe { libc::signalfd(-1, set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) })?;
    // SAFETY: the call just gave us this descriptor, which nobody else owns.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    #[allow(unsafe_code)]
    fn a_signal_is_left_to_the_main_thread_for_a_while() {
        // It comes to this thread alone.
        let signals = Signals::block().unwrap();
        let over = EventFd::new(EFD_NONBLOCK).unwrap();
        // SAFETY: no pointers.
        assert_eq!(unsafe { libc::raise(libc::SIGTERM) }, 0);
        let (begin, grace) = (Instant::now(), Duration::from_millis(50));
        assert!(signals.wait(&over, grace).unwrap());
        assert!(begin.elapsed() >= grace);
        over.write(1).unwrap();
        assert!(!signals.wait(&over, Duration::from_secs(3600)).unwrap());
        assert_eq!(signals.next().unwrap(), Some(Request::Terminate(libc::SIGTERM)), "nobody took it");
        assert!(!signals.wait(&over, Duration::from_secs(3600)).unwrap(), "the start is over");
    }
}
