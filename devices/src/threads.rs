//! Every thread of the process starts here, so that what holds for all of them is done in one place: each has a
//! [`Kind`], which says what it is for, and is known as long as it lives.
//!
//! A process that confines itself must reach every thread: [`attend`] gives those that are there and lets no other start
//! meanwhile; later ones call a hook before anything else.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The first one of the process: builds the machine, waits for its end. It does not start here.
    Main,
    /// Runs a virtual CPU and the device accesses of its guest.
    Vcpu,
    /// Executes commands on an io_uring.
    Io,
    /// Makes calls for an I/O thread that may block.
    IoHelper,
    /// Answers an I/O thread that measures what a wake-up costs.
    IoEcho,
    /// Accepts connections to the control socket.
    Control,
    /// Serves one connection to the control socket; opens images.
    Client,
    /// Moves the bytes of the serial line.
    Console,
    /// Writes lines of the log.
    Log,
    /// Writes the event log of a board.
    EventLog,
    /// Writes what firmware prints.
    DebugLog,
    /// Sees to it that a signal ends the process.
    Signals,
    /// Does what may wait for the host in the main thread's place.
    Waits,
    /// Takes an HBA out of service, or ends an I/O thread.
    End,
    /// Tries writes again that wait for space.
    Space,
    /// Reads a part of a kernel into guest memory.
    Load,
    /// Asks loop devices for their files.
    Loops,
    /// Has a network made that is empty.
    Network,
    /// Takes devices of the host that are back.
    Returns,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::Main,
        Self::Vcpu,
        Self::Io,
        Self::IoHelper,
        Self::IoEcho,
        Self::Control,
        Self::Client,
        Self::Console,
        Self::Log,
        Self::EventLog,
        Self::DebugLog,
        Self::Signals,
        Self::Waits,
        Self::End,
        Self::Space,
        Self::Load,
        Self::Loops,
        Self::Network,
        Self::Returns,
    ];
}

/// A thread that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Living {
    /// The system's number for it (gettid(2)).
    pub number: i32,
    /// What it is for.
    pub kind: Kind,
}

struct Registry {
    living: Vec<Living>,
    /// Threads that are being started and are not among the living yet.
    starting: usize,
    /// None is started for now.
    closed: bool,
    hook: Option<fn(Kind)>,
    /// Numbers of those that have done their work last: the system may have them still.
    ended: VecDeque<i32>,
}

/// So many are remembered.
const ENDED: usize = 256;

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    living: Vec::new(),
    starting: 0,
    closed: false,
    hook: None,
    ended: VecDeque::new(),
});
static CHANGED: Condvar = Condvar::new();

thread_local! {
    // Without a destructor, so that a signal handler may look at any time.
    static HERE: Cell<Option<Kind>> = const { Cell::new(None) };
}

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a thread called `name`, of which the system shows 15 bytes.
///
/// # Errors
/// The host has no room for one more.
pub fn spawn<T: Send + 'static>(
    kind: Kind,
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    start(Builder::new(), kind, name, work)
}

/// As [`spawn`], with a stack of so many bytes.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_with_stack<T: Send + 'static>(
    kind: Kind,
    name: &str,
    stack: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    start(Builder::new().stack_size(stack), kind, name, work)
}

fn start<T: Send + 'static>(
    builder: Builder,
    kind: Kind,
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let start = Start::begin();
    builder.name(name.into()).spawn(move || {
        let _here = start.arrive(kind);
        work()
    })
}

/// As [`spawn`], for a thread that ends within `scope`.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    kind: Kind,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    let start = Start::begin();
    Builder::new().name(name.into()).spawn_scoped(scope, move || {
        let _here = start.arrive(kind);
        work()
    })
}

/// Gives all threads, of which there will be no more until it is dropped. Each that is started then calls `hook` before its
/// work.
pub fn attend(hook: fn(Kind)) -> Attention {
    let mut registry = until(|registry| !registry.closed);
    registry.closed = true;
    drop(registry);
    let mut registry = until(|registry| registry.starting == 0);
    registry.hook = Some(hook);
    Attention { living: registry.living.clone(), ended: registry.ended.iter().copied().collect() }
}

/// Those that have begun their work. Others may be on the way.
pub fn living() -> Vec<Living> {
    registry().living.clone()
}

/// While it is there no thread starts; who wants one waits.
#[must_use]
pub struct Attention {
    /// All that were there.
    pub living: Vec<Living>,
    /// Numbers of threads that have done their work, of which some may be on their way out.
    pub ended: Vec<i32>,
}

impl Drop for Attention {
    fn drop(&mut self) {
        registry().closed = false;
        CHANGED.notify_all();
    }
}

/// The registry once it is as wanted.
fn until(wanted: impl Fn(&Registry) -> bool) -> MutexGuard<'static, Registry> {
    CHANGED.wait_while(registry(), |registry| !wanted(registry)).unwrap_or_else(PoisonError::into_inner)
}

/// Whether the thread of this number does its work still.
pub fn lives(number: i32) -> bool {
    registry().living.iter().any(|living| living.number == number)
}

/// What the calling thread is for; `None` of one that was not started here. A signal handler may call it.
pub fn here() -> Option<Kind> {
    HERE.try_with(Cell::get).ok().flatten()
}

/// The system's number for the calling thread. A signal handler may call it.
pub fn number() -> i32 {
    // SAFETY: no arguments, cannot fail.
    #[allow(unsafe_code)]
    unsafe {
        libc::gettid()
    }
}

/// A thread that is being started; it is none when this is dropped.
struct Start(bool);

impl Start {
    fn begin() -> Self {
        until(|registry| !registry.closed).starting += 1;
        Self(true)
    }

    /// On the thread itself.
    fn arrive(mut self, kind: Kind) -> Here {
        HERE.set(Some(kind));
        let number = number();
        self.0 = false;
        let mut registry = registry();
        registry.living.push(Living { number, kind });
        registry.starting -= 1;
        let hook = registry.hook;
        drop(registry);
        CHANGED.notify_all();
        let here = Here(number);
        if let Some(hook) = hook {
            hook(kind);
        }
        here
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        if self.0 {
            registry().starting -= 1;
            CHANGED.notify_all();
        }
    }
}

/// A thread at its work.
struct Here(i32);

impl Drop for Here {
    fn drop(&mut self) {
        let mut registry = registry();
        registry.living.retain(|living| living.number != self.0);
        if registry.ended.len() == ENDED {
            registry.ended.pop_front();
        }
        registry.ended.push_back(self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_thread_is_known_as_long_as_it_works() {
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let thread = spawn(Kind::Load, "known", move || {
            tell.send((number(), here(), std::thread::current().name().map(str::to_owned))).unwrap();
            let _ = ended.recv();
        });
        let (number, kind, name) = told.recv().unwrap();
        assert_eq!((kind, name.as_deref()), (Some(Kind::Load), Some("known")));
        assert!(lives(number) && living().contains(&Living { number, kind: Kind::Load }));
        drop(end);
        thread.unwrap().join().unwrap();
        assert!(!lives(number));
        assert!(registry().ended.contains(&number));
        assert_eq!(here(), None, "the test's own thread began elsewhere");
    }

    #[test]
    fn a_thread_that_panics_is_forgotten_too() {
        let thread = spawn_with_stack(Kind::Load, "panics", 64 << 10, || -> () {
            std::panic::resume_unwind(Box::new(number()));
        });
        let number = *thread.unwrap().join().unwrap_err().downcast::<i32>().unwrap();
        assert!(!lives(number));
    }

    #[test]
    fn each_thread_is_either_found_or_starts_later_and_calls_the_hook() {
        static CALLED: Mutex<Vec<i32>> = Mutex::new(Vec::new());
        fn hook(kind: Kind) {
            if kind == Kind::Loops {
                CALLED.lock().unwrap().push(number());
            }
        }
        let (go, gone) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let starter = std::thread::spawn(move || {
            let thread = |_| {
                let tell = tell.clone();
                let work = move || {
                    tell.send(number()).unwrap();
                    std::thread::sleep(Duration::from_millis(500));
                };
                spawn(Kind::Loops, "either", work).unwrap()
            };
            let threads: Vec<_> = (0..64).map(thread).collect();
            let _ = gone.recv();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        let first = told.recv().unwrap();
        let attention = attend(hook);
        let found: Vec<_> = attention.living.iter().filter(|living| living.kind == Kind::Loops).collect();
        let found: Vec<i32> = found.into_iter().map(|living| living.number).collect();
        std::thread::sleep(Duration::from_millis(50));
        let mut all: Vec<i32> = told.try_iter().chain([first]).collect();
        assert!(found.contains(&first) && all.iter().all(|number| found.contains(number)), "none starts");
        assert_eq!(*CALLED.lock().unwrap(), [0; 0]);
        drop(attention);
        all.extend(told.iter().take(64 - all.len()));
        drop(go);
        starter.join().unwrap();
        let called = CALLED.lock().unwrap().clone();
        assert_eq!(called.len() + found.len(), 64, "{called:?} {found:?}");
        assert!(all.iter().all(|number| found.contains(number) != called.contains(number)));
    }

    #[test]
    fn a_thread_that_cannot_be_started_holds_nobody_up() {
        let stack = usize::MAX >> 8;
        assert!(spawn_with_stack(Kind::Load, "too large", stack, || {}).is_err());
        drop(until(|registry| registry.starting == 0));
    }
}
