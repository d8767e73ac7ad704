//! A command that goes by a node of sg is sent once, also where the process is stopped (SIGSTOP) or frozen (cgroup, suspend) meanwhile.
//!
//! Of all nodes sg alone lets go of the thread then, and the kernel begins the ioctl anew when the process goes on: from the header, which it
//! reads again. So a thread beside it looks for the command among those that the node has, and when it is there, makes the header in memory
//! one that the kernel does not take. Until it has looked, for some microseconds, a stop still has the command sent again.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::threads::{self, Kind};

/// How long it waits before it looks for a command again, first and at most.
const PAUSE: Duration = Duration::from_micros(20);
const PAUSE_MAX: Duration = Duration::from_millis(10);

/// For longer than this the thread sleeps so that it can be woken, which costs more than to look.
const NAP: Duration = Duration::from_micros(200);

/// How often in sequence a node does not tell of its commands before nobody asks any more.
const FAILURES: u32 = 10;

/// Commands that a node of sg takes of one open file, and can tell of (SG_MAX_QUEUE of Linux).
pub(super) const TABLE: usize = 16;

/// `interface_id` of a header on the stack of a thread that has a [`Watched`].
struct Interface(*const AtomicI32);

// SAFETY: it is used under the lock of the state only, in which it is no longer than the header lives; and it is atomic.
#[allow(unsafe_code)]
unsafe impl Send for Interface {}

/// A command that the kernel may not have begun.
struct Waiting {
    /// The node that it goes by, and its number there.
    node: u64,
    number: i32,
    interface: Interface,
    /// When it is looked for again, and how long after that.
    due: Instant,
    pause: Duration,
}

/// The numbers of the commands that a node has; without any, zeros. `None`: it never will have any again.
type Table = dyn Fn() -> Option<io::Result<[i32; TABLE]>> + Send + Sync;

#[derive(Default)]
struct State {
    waiting: Vec<Waiting>,
    nodes: BTreeMap<u64, Arc<Table>>,
    next: u64,
    /// The thread is there.
    running: bool,
    /// It has to be woken.
    sleeps: bool,
}

/// All nodes, and one thread for them: a machine may have thousands, and none of them keeps the thread waiting.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

static ALL: LazyLock<Arc<Shared>> = LazyLock::new(Arc::default);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of the thread: makes headers unusable that the kernel has read, as long as there are nodes.
    fn serve(&self) {
        let (mut nodes, mut looks) = (Vec::new(), Vec::<(u64, Arc<Table>)>::new());
        loop {
            let mut state = self.lock();
            if state.nodes.is_empty() {
                state.running = false;
                return;
            }
            let now = Instant::now();
            let Some(next) = state.waiting.iter().map(|waiting| waiting.due).min() else {
                state.sleeps = true;
                self.work.wait(state).unwrap_or_else(PoisonError::into_inner).sleeps = false;
                continue;
            };
            let pause = next.saturating_duration_since(now);
            if pause > NAP {
                state.sleeps = true;
                let (mut state, _) =
                    self.work.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner);
                state.sleeps = false;
                continue;
            }
            if !pause.is_zero() {
                drop(state);
                std::thread::sleep(pause);
                continue;
            }
            nodes.extend(
                state.waiting.iter().filter(|waiting| waiting.due <= now).map(|waiting| waiting.node),
            );
            nodes.sort_unstable();
            nodes.dedup();
            looks.extend(nodes.drain(..).filter_map(|node| Some((node, state.nodes.get(&node)?.clone()))));
            drop(state);
            for (node, table) in looks.drain(..) {
                self.look(node, table());
            }
        }
    }

    /// Of a node these are the commands that the kernel has begun with.
    fn look(&self, node: u64, begun: Option<io::Result<[i32; TABLE]>>) {
        let Some(begun) = begun else {
            let mut state = self.lock();
            state.waiting.retain(|waiting| waiting.node != node);
            let table = state.nodes.remove(&node);
            drop((state, table));
            return;
        };
        let begun = begun.unwrap_or_else(|error| {
            crate::log_limited!(
                warn,
                "a node of sg does not tell its commands ({error}): until it does, a stop of this process may have some sent again"
            );
            [0; TABLE]
        });
        let now = Instant::now();
        self.lock().waiting.retain_mut(|waiting| {
            if waiting.node != node {
                return true;
            }
            let is_begun = begun.contains(&waiting.number);
            if is_begun {
                // SAFETY: the header is there while the state has it.
                #[allow(unsafe_code)]
                unsafe { &*waiting.interface.0 }.store(0, Ordering::Release);
            }
            waiting.due = now + waiting.pause;
            waiting.pause = (waiting.pause * 2).min(PAUSE_MAX);
            !is_begun
        });
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

/// A node that is watched.
pub(super) struct Guard {
    shared: Arc<Shared>,
    node: u64,
    last: AtomicI32,
}

impl Guard {
    /// Takes a node in. `table` has the numbers of the commands that the node has; without any, zeros. It waits for nothing.
    ///
    /// # Errors
    /// The host starts no thread.
    pub(super) fn start(
        table: impl Fn() -> Option<io::Result<[i32; TABLE]>> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        Self::with(&ALL, table)
    }

    fn with(
        shared: &Arc<Shared>,
        table: impl Fn() -> Option<io::Result<[i32; TABLE]>> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let mut state = shared.lock();
        if !state.running {
            let there = shared.clone();
            threads::spawn(Kind::IoHelper, "sg-guard", move || there.serve())?;
            state.running = true;
        }
        let node = state.next;
        state.next += 1;
        state.nodes.insert(node, Arc::new(table));
        drop(state);
        Ok(Self { shared: shared.clone(), node, last: AtomicI32::new(0) })
    }

    /// What the node is to know a command by. Others have zero.
    pub(super) fn number(&self) -> i32 {
        (self.last.fetch_add(1, Ordering::Relaxed) & 0x3fff_ffff) + 1
    }

    /// Watches over a header that is about to be given to the kernel with this number in it, until what this gives back is dropped.
    ///
    /// # Safety
    /// The header must live that long.
    #[allow(unsafe_code)]
    pub(super) unsafe fn watch(&self, number: i32, interface: *const AtomicI32) -> Watched<'_> {
        let (node, interface) = (self.node, Interface(interface));
        let mut state = self.shared.lock();
        state.waiting.push(Waiting { node, number, interface, due: Instant::now(), pause: PAUSE });
        // Not taken back before it is awake: who comes until then must not go on before it was woken for him, either.
        let sleeps = state.sleeps;
        drop(state);
        if sleeps {
            self.shared.work.notify_one();
        }
        Watched { guard: self, number }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let table = state.nodes.remove(&self.node);
        let is_last = state.nodes.is_empty();
        drop((state, table));
        if is_last {
            self.shared.work.notify_one();
        }
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guard")
    }
}

/// A header that is watched over.
pub(super) struct Watched<'a> {
    guard: &'a Guard,
    number: i32,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        let Guard { shared, node, .. } = self.guard;
        shared.lock().waiting.retain(|waiting| (waiting.node, waiting.number) != (*node, self.number));
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
        let shared = Arc::<Shared>::default();
        let guard = Guard::with(&shared, move || {
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
        assert!(shared.lock().waiting.is_empty());
        let before = looked.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(looked.load(Ordering::SeqCst), before, "with nothing to look for it sleeps");
        drop(two);
        drop(guard);
        while Arc::strong_count(&shared) > 1 {
            std::thread::yield_now();
        }
        // It comes again with the next node.
        let guard = Guard::with(&shared, || Some(Ok([5; TABLE]))).unwrap();
        let third = AtomicI32::new(83);
        // SAFETY: it lives longer.
        #[allow(unsafe_code)]
        let three = unsafe { guard.watch(5, &raw const third) };
        while third.load(Ordering::SeqCst) != 0 {
            std::thread::yield_now();
        }
        drop(three);
    }

    /// Threads of this process with this name.
    fn threads(name: &str) -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let comm = |task: io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
        };
        tasks.filter_map(comm).filter(|comm| comm.trim_end() == name).count()
    }

    /// A machine with 64 ports of an array, and 64 units behind each.
    #[test]
    fn thousands_of_nodes_have_one_thread() {
        let shared = Arc::<Shared>::default();
        let looks = Arc::new(AtomicUsize::new(0));
        let guards: Vec<_> = (0..4096)
            .map(|node| {
                let looks = looks.clone();
                let table = move || {
                    looks.fetch_add(1, Ordering::Relaxed);
                    // Every other device is looked after by the host, which begins with nothing.
                    Some(Ok([node % 2; TABLE]))
                };
                Guard::with(&shared, table).unwrap()
            })
            .collect();
        assert_eq!(Arc::strong_count(&shared), 4096 + 2, "the test has it, and one thread");
        // Others of other tests.
        assert!(threads("sg-guard") < 10);
        let headers: Vec<_> = guards.iter().map(|_| AtomicI32::new(83)).collect();
        // SAFETY: they live longer.
        #[allow(unsafe_code)]
        let watched: Vec<_> = guards
            .iter()
            .zip(&headers)
            .map(|(guard, header)| unsafe { guard.watch(1, &raw const *header) })
            .collect();
        let begun = |from: usize| {
            headers.iter().skip(from).step_by(2).all(|header| header.load(Ordering::SeqCst) == 0)
        };
        let begin = Instant::now();
        while !begun(1) {
            assert!(begin.elapsed() < Duration::from_secs(60));
            std::thread::yield_now();
        }
        println!("2048 commands after {:?}, {} looks", begin.elapsed(), looks.load(Ordering::Relaxed));
        assert!(headers.iter().step_by(2).all(|header| header.load(Ordering::SeqCst) == 83));
        // One that comes now does not wait for those.
        let late = AtomicI32::new(83);
        let begin = Instant::now();
        // SAFETY: it lives longer.
        #[allow(unsafe_code)]
        let one = unsafe { guards[1].watch(1, &raw const late) };
        while late.load(Ordering::SeqCst) != 0 {
            assert!(begin.elapsed() < Duration::from_secs(5));
            std::thread::yield_now();
        }
        println!("one more after {:?}", begin.elapsed());
        drop((one, watched));
    }
}
