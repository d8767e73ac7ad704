//! Signals as events: the process learns of them in its event loop, where it can end in good order.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use devices::threads::{self, Kind};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{sys, terminal};

/// Signals that ask the process to end.
const TERMINATING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// How often to look whether a signal still waits.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Lets signals end the process by themselves, until [`Signals::block`], whatever the program that started it has blocked.
/// Those that end nothing then do not do so before.
pub fn let_signals_end() {
    let (mut end, mut wait) = (empty_set(), empty_set());
    for signal in TERMINATING {
        let ends = signal != libc::SIGHUP || ignored(signal) || has_terminal();
        add(if ends { &mut end } else { &mut wait }, signal);
    }
    // It fails for no set of signals.
    let _ = change_mask(libc::SIG_UNBLOCK, &end);
    let _ = change_mask(libc::SIG_BLOCK, &wait);
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// End in good order, then [`die`] of this signal.
    Terminate(i32),
    /// [`suspend`] the process.
    Suspend,
    /// The process was stopped and goes on. The terminal has followed.
    Continued,
    /// Nothing: SIGHUP of a process without a terminal that could hang up. Daemons open their logs again then.
    Rotated,
}

/// The signals SIGTERM, SIGINT, SIGHUP, SIGTSTP and SIGCONT.
pub struct Signals {
    file: File,
    /// The first that ends the process and was taken; 0 for none.
    taken: AtomicI32,
    /// Readable once there is one.
    heard: EventFd,
    /// There is a terminal, whose end SIGHUP tells of.
    terminal: bool,
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
        // Those by which threads are told something. Whoever started the process may have had them blocked.
        let mut told = empty_set();
        add(&mut told, libc::SIGRTMIN());
        add(&mut told, libc::SIGRTMIN() + 1);
        change_mask(libc::SIG_UNBLOCK, &told)?;
        let heard = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        open(&set).map(|file| Self { file, taken: AtomicI32::new(0), heard, terminal: has_terminal() })
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
            libc::SIGHUP if !self.terminal => Request::Rotated,
            libc::SIGCONT => {
                terminal::renew();
                Request::Continued
            }
            number => {
                if self.taken.compare_exchange(0, number, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                    // A count of one has room.
                    let _ = self.heard.write(1);
                }
                Request::Terminate(number)
            }
        }))
    }
}

/// Sees to it that a signal which ends the process does so, whatever its main thread waits for. Until it is dropped.
pub struct Watch {
    over: Arc<EventFd>,
    /// In milliseconds.
    grace: Arc<AtomicU64>,
}

impl Watch {
    /// A signal ends the process when nobody has taken it for as long as `grace`, or the process is still there so long after
    /// it was taken: usually the main thread ends it sooner, in better order.
    pub fn start(signals: &Arc<Signals>, grace: Duration) -> io::Result<Self> {
        let over = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let watch = Self { over: over.clone(), grace: Arc::default() };
        watch.allow(grace);
        let (signals, grace) = (signals.clone(), watch.grace.clone());
        threads::spawn(Kind::Signals, "signals", move || {
            let grace = || Duration::from_millis(grace.load(Ordering::Relaxed));
            if let Ok(Some(number)) = signals.deadly(&over, grace) {
                tracing::error!("ended by signal {number} in no order: the host does not answer");
                crate::logging::give_up();
                die(number);
            }
        })?;
        Ok(watch)
    }

    /// Gives the main thread so much time from now on.
    pub fn allow(&self, grace: Duration) {
        self.grace.store(u64::try_from(grace.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Fails only when the thread has been told already.
        let _ = self.over.write(1);
    }
}

impl Signals {
    /// Waits until the process has to die of a signal, which is returned; `None` when `over` comes before.
    fn deadly(&self, over: &EventFd, grace: impl Fn() -> Duration) -> io::Result<Option<i32>> {
        // Since when one waits to be taken, and since when one is taken that ends the process.
        let (mut waits, mut taken) = (None::<Instant>, None::<Instant>);
        loop {
            let quiet = |since: Option<_>, fd: RawFd| Some(fd).filter(|_| since.is_none());
            let mut entries = [
                sys::entry(Some(over.as_raw_fd()), libc::POLLIN),
                sys::entry(quiet(waits, self.as_raw_fd()), libc::POLLIN),
                sys::entry(quiet(taken, self.heard.as_raw_fd()), libc::POLLIN),
            ];
            sys::poll(&mut entries, waits.or(taken).map(|_| LOOK_AGAIN))?;
            if entries.first().is_none_or(|over| over.revents != 0) {
                return Ok(None);
            }
            let mut pending = [sys::entry(Some(self.as_raw_fd()), libc::POLLIN)];
            sys::poll(&mut pending, Some(Duration::ZERO))?;
            // One that comes later has a time of its own.
            let now = Instant::now();
            waits = pending.iter().any(|entry| entry.revents != 0).then(|| waits.unwrap_or(now));
            let number = self.taken.load(Ordering::Acquire);
            if number != 0 && taken.get_or_insert(now).elapsed() >= grace() {
                return Ok(Some(number));
            }
            if waits.is_some_and(|since| since.elapsed() >= grace()) {
                waits = None;
                match self.next()? {
                    Some(Request::Terminate(number)) => return Ok(Some(number)),
                    Some(Request::Suspend) => suspend(),
                    _ => {}
                }
            }
        }
    }
}

/// Whether the process has a terminal that may hang up: a controlling one, or standard input.
fn has_terminal() -> bool {
    // Without a controlling one it cannot be opened (tty(4)).
    File::open("/dev/tty").is_ok() || io::stdin().is_terminal()
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
    crate::logging::settle();
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
pub(super) fn ignored(signal: libc::c_int) -> bool {
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

    #[allow(unsafe_code)]
    fn raise(signal: i32) {
        // SAFETY: no pointers. It comes to this thread alone, which has it blocked.
        assert_eq!(unsafe { libc::raise(signal) }, 0);
    }

    #[test]
    fn a_signal_is_left_to_the_main_thread_for_a_while() {
        let signals = Signals::block().unwrap();
        let over = EventFd::new(EFD_NONBLOCK).unwrap();
        let grace = Duration::from_millis(50);
        let ends = || {
            let begin = Instant::now();
            assert_eq!(signals.deadly(&over, || grace).unwrap(), Some(libc::SIGTERM));
            assert!(begin.elapsed() >= grace);
        };
        raise(libc::SIGTERM);
        ends();
        assert_eq!(signals.next().unwrap(), None);
        // It is taken by now, and nothing came of that.
        ends();
        over.write(1).unwrap();
        assert_eq!(signals.deadly(&over, || Duration::from_secs(3600)).unwrap(), None, "all is over");
    }

    #[test]
    fn sighup_ends_what_has_a_terminal() {
        // As nohup has it.
        if ignored(libc::SIGHUP) {
            return;
        }
        let mut signals = Signals::block().unwrap();
        let requests = [(true, Request::Terminate(libc::SIGHUP)), (false, Request::Rotated)];
        for (terminal, request) in requests {
            signals.terminal = terminal;
            raise(libc::SIGHUP);
            assert_eq!(signals.next().unwrap(), Some(request));
        }
        // Nobody takes it, and it ends nothing.
        let signals =
            Signals { taken: AtomicI32::new(0), heard: EventFd::new(EFD_NONBLOCK).unwrap(), ..signals };
        raise(libc::SIGHUP);
        let over = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let later = std::thread::spawn({
            let over = over.clone();
            move || {
                std::thread::sleep(Duration::from_millis(500));
                over.write(1).unwrap();
            }
        });
        assert_eq!(signals.deadly(&over, || Duration::from_millis(10)).unwrap(), None);
        assert_eq!(signals.next().unwrap(), None, "it was taken");
        later.join().unwrap();
    }

    /// Signals that are taken at once do not count for the one that comes then.
    #[test]
    #[allow(unsafe_code)]
    fn each_signal_has_its_time() {
        let signals = Signals::block().unwrap();
        let over = EventFd::new(EFD_NONBLOCK).unwrap();
        let (begin, grace) = (Instant::now(), Duration::from_secs(1));
        raise(libc::SIGCONT);
        // SAFETY: no pointers.
        let here = unsafe { libc::pthread_self() };
        let later = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(500));
            // SAFETY: that thread waits for this one.
            assert_eq!(unsafe { libc::pthread_kill(here, libc::SIGTERM) }, 0);
        });
        let asked = || {
            // As the main thread takes it, while the watch looks on.
            if begin.elapsed() < Duration::from_millis(500) {
                assert_eq!(signals.next().unwrap(), Some(Request::Continued));
            }
            grace
        };
        assert_eq!(signals.deadly(&over, asked).unwrap(), Some(libc::SIGTERM));
        assert!(begin.elapsed() >= grace + Duration::from_millis(500), "{:?}", begin.elapsed());
        later.join().unwrap();
    }
}
