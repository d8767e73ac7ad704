//! A command that goes by a node of sg is sent once, also where the process is stopped (SIGSTOP) or frozen (cgroup, suspend) meanwhile.
//!
//! Of all nodes sg alone lets go of the thread then, and the kernel begins the ioctl anew when the process goes on: from the header, which it
//! reads again. So a thread beside it looks for the command among those that the node has, and when it is there, makes the header in memory
//! one that the kernel does not take. Until it has looked, for some microseconds, a stop still has the command sent again.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::threads::{self, Kind};

/// How long it waits before it looks again, first and at most.
const PAUSE: Duration = Duration::from_micros(20);
const PAUSE_MAX: Duration = Duration::from_millis(10);

/// How often in sequence a node does not tell of its commands before nobody asks any more.
const FAILURES: u32 = 10;

/// Commands that a node of sg takes of one open file, and can tell of (SG_MAX_QUEUE of Linux).
pub(super) const TABLE: usize = 16;

/// `interface_id` of a header on the stack of a thread that has a [`Watched`].
struct Interface(*const AtomicI32);

// SAFETY: it is used under the lock of the state only, in which it is no longer than the header lives; and it is atomic.
#[allow(unsafe_code)]
unsafe impl Send for Interface {}

#[derive(Default)]
struct State {
    /// Commands that the kernel may not have begun, by their numbers.
    waiting: Vec<(i32, Interface)>,
    /// The thread has to be woken: that costs more than to look.
    sleeps: bool,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    last: AtomicI32,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes headers unusable that the kernel has read; `table` says which (`None`: it never will again).
    fn serve(&self, table: impl Fn() -> Option<io::Result<[i32; TABLE]>>) {
        let (mut pause, mut complained) = (PAUSE, false);
        loop {
            let mut state = self.lock();
            while state.waiting.is_empty() && !state.closed {
                state.sleeps = true;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.sleeps = false;
                pause = PAUSE;
            }
            if state.closed {
                return;
            }
            drop(state);
            let begun = match table() {
                None => return,
                Some(Ok(begun)) => begun,
                Some(Err(error)) => {
                    if !complained {
                        tracing::warn!(
                            "a node of sg does not tell its commands ({error}): until it does, a stop of this process may have some sent \
                             again"
                        );
                    }
                    complained = true;
                    [0; TABLE]
                }
            };
            let mut state = self.lock();
            state.waiting.retain(|(number, interface)| {
                let is_begun = begun.contains(number);
                if is_begun {
                    // SAFETY: the header is there while the state has it.
                    #[allow(unsafe_code)]
                    unsafe { &*interface.0 }.store(0, Ordering::Release);
                }
                !is_begun
            });
            if state.waiting.is_empty() {
                continue;
            }
            drop(state);
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// Waits until the command with this number, which nobody waits for any more, is none of the node's: until then it may write, and a tape
/// moves. It ends as all do, by the device or by the kernel, which gives up on it in time.
pub(super) fn let_end(number: i32, table: impl Fn() -> io::Result<[i32; TABLE]>, first: Duration) {
    let (mut pause, mut failures) = (first, 0);
    while failures < FAILURES {
        match table() {
            Ok(table) if !table.contains(&number) => return,
            Ok(_) => failures = 0,
            Err(_) => failures += 1,
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(first * 100);
    }
    crate::log_limited!(warn, "a node of sg does not tell whether a command that was let go of has ended");
}

/// The thread for one node.
pub(super) struct Guard(Arc<Shared>);

impl Guard {
    /// Starts it. `table` has the numbers of the commands that the node has; without any, zeros.
    ///
    /// # Errors
    /// The host starts no thread.
    pub(super) fn start(
        table: impl Fn() -> Option<io::Result<[i32; TABLE]>> + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let there = shared.clone();
        threads::spawn(Kind::IoHelper, "sg-guard", move || there.serve(table))?;
        Ok(Self(shared))
    }

    /// What the node is to know a command by. Others have zero.
    pub(super) fn number(&self) -> i32 {
        (self.0.last.fetch_add(1, Ordering::Relaxed) & 0x3fff_ffff) + 1
    }

    /// Watches over a header that is about to be given to the kernel with this number in it, until what this gives back is dropped.
    ///
    /// # Safety
    /// The header must live that long.
    #[allow(unsafe_code)]
    pub(super) unsafe fn watch(&self, number: i32, interface: *const AtomicI32) -> Watched<'_> {
        let mut state = self.0.lock();
        state.waiting.push((number, Interface(interface)));
        // Not taken back before it is awake: who comes until then must not go on before it was woken for him, either.
        let sleeps = state.sleeps;
        drop(state);
        if sleeps {
            self.0.work.notify_one();
        }
        Watched { shared: &self.0, number }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.work.notify_one();
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guard")
    }
}

/// A header that is watched over.
pub(super) struct Watched<'a> {
    shared: &'a Shared,
    number: i32,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.shared.lock().waiting.retain(|(number, _)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn what_nobody_waits_for_has_ended_before_it_is_told() {
        let asked = AtomicUsize::new(0);
        let_end(
            7,
            || match asked.fetch_add(1, Ordering::SeqCst) {
                0 | 4 => Err(io::Error::from_raw_os_error(libc::EFAULT)),
                1..6 => Ok([7; TABLE]),
                _ => Ok([8; TABLE]),
            },
            Duration::from_micros(10),
        );
        assert_eq!(asked.load(Ordering::SeqCst), 7);
        let refuse = || {
            asked.fetch_add(1, Ordering::SeqCst);
            Err(io::Error::from_raw_os_error(libc::ENOTTY))
        };
        let_end(7, refuse, Duration::from_micros(10));
        assert_eq!(asked.load(Ordering::SeqCst), 7 + FAILURES as usize, "there is a way out");
    }

    #[test]
    fn headers_that_the_kernel_has_read_are_unusable() {
        let begun = Arc::new(AtomicI32::new(0));
        let (looked, now) = (Arc::new(AtomicUsize::new(0)), begun.clone());
        let looks = looked.clone();
        let guard = Guard::start(move || {
            looks.fetch_add(1, Ordering::SeqCst);
            let mut table = [0; TABLE];
            table[3] = now.load(Ordering::SeqCst);
            // One failure ends nothing.
            let failed = looks.load(Ordering::SeqCst) % 2 == 1;
            Some(if failed { Err(io::Error::from_raw_os_error(libc::EFAULT)) } else { Ok(table) })
        })
        .unwrap();
        let (first, second) = (AtomicI32::new(83), AtomicI32::new(83));
        let (number, later) = (guard.number(), guard.number());
        assert!(number > 0 && later > 0 && number != later);
        // SAFETY: it lives longer.
        #[allow(unsafe_code)]
        let one = unsafe { guard.watch(number, &raw const first) };
        // SAFETY: it lives longer.
        #[allow(unsafe_code)]
        let two = unsafe { guard.watch(later, &raw const second) };
        let wait = |count| {
            let until = looked.load(Ordering::SeqCst) + count;
            while looked.load(Ordering::SeqCst) < until {
                std::thread::yield_now();
            }
        };
        wait(3);
        assert_eq!((first.load(Ordering::SeqCst), second.load(Ordering::SeqCst)), (83, 83));
        begun.store(later, Ordering::SeqCst);
        wait(4);
        assert_eq!((first.load(Ordering::SeqCst), second.load(Ordering::SeqCst)), (83, 0));
        drop(one);
        begun.store(number, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(first.load(Ordering::SeqCst), 83, "it is over");
        assert!(guard.0.lock().waiting.is_empty());
        let before = looked.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(looked.load(Ordering::SeqCst), before, "with nothing to look for it sleeps");
        let shared = Arc::downgrade(&guard.0);
        drop(two);
        drop(guard);
        while shared.strong_count() > 0 {
            std::thread::yield_now();
        }
    }
}
