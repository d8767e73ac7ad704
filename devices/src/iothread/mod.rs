//! I/O threads: one io_uring and one local executor each.
//!
//! Nothing blocks on an I/O thread. Tasks are futures that never leave it; they wait for the ring, for doorbells
//! (event descriptors) and for timers. An operation moves its file and memory into the ring's slot and gets them
//! back at completion, so a dropped future can never leave the kernel writing to freed memory.
//!
//! ```text
//!   run ready tasks -> batch hooks -> enter the ring (submit, and wait if nothing is ready) -> reap -> ...
//! ```
//!
//! # Dropping a future
//! A future of this module may be dropped at any await point, for example by an abort of the command it serves.
//! What the kernel has not got yet is simply forgotten. What it has is cancelled, which may come too late: the
//! operation then runs to its end without anyone to tell. [`Io::released`] waits for that end, after which no
//! abandoned operation of a [`Scope`] touches memory any more; [`Io::quiesce`] does so for the whole thread.

mod abandoned;
mod blocking;
mod clock;
mod copies;
mod errand;
mod event;
mod executor;
mod hold;
pub(crate) mod kernel;
mod lanes;
#[cfg(any(test, feature = "testing"))]
pub mod mischief;
mod op;
mod outside;
mod pieces;
mod polling;
mod pool;
#[cfg(any(test, feature = "testing"))]
pub mod record;
mod ring;
mod scope;
mod setup;
mod single;
mod slots;
mod thread;
mod wake;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::mem::{FromGuest, SgList, ToGuest};
use executor::Core;
use op::{Op, Reach};
use ring::Outcome;
use slots::Key;
use wake::Shared;

pub use blocking::Owner;
pub(crate) use errand::{Doing, Errands, Work};
pub use event::Watch;
pub use hold::{Claims, Hold, Permit};
pub(crate) use outside::Touches;
pub use pieces::PieceLimits;
pub use polling::{Poller, Polling};
pub use pool::TaskPool;
pub use scope::{Scope, Within};
pub(crate) use single::Single;
pub use thread::IoThread;

/// Submission entries of a thread's ring.
const RING_ENTRIES: u32 = 256;
/// How often a transfer that the host answers with "try again" is tried.
const TRIES: usize = 16;
/// How often again an operation is begun that the kernel could not begin for want of a thread, and how long before.
const UNTRIED_TRIES: usize = 5;
const UNTRIED_PAUSE: Duration = Duration::from_millis(20);

/// How an I/O thread works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Whether it looks for work before it sleeps.
    pub polling: Polling,
    /// The host's CPUs it may run on, by number; any when empty.
    pub cpus: Vec<usize>,
    /// Those for the threads of the kernel that block, or copy, in its place; any when empty. Linux before 5.14 does not let us.
    pub workers: Vec<usize>,
}

/// Reaches an I/O thread from any other.
#[derive(Clone)]
pub struct Remote {
    shared: Arc<Shared>,
}

impl Remote {
    /// Runs the future that `make` builds on the I/O thread. Allocates: for workers that live long.
    ///
    /// When the thread has ended, `make` is dropped.
    pub fn spawn<M, F>(&self, make: M)
    where
        M: FnOnce(Io) -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        self.shared.post(|inbox| inbox.starts.push(Box::new(move |io: &Io| io.spawn(make(io.clone())))));
    }

    /// Has the thread start helpers for owners that have too few.
    fn see_to_short(&self) {
        self.shared.post(|inbox| inbox.starts.push(Box::new(|io: &Io| io.core.see_to_short())));
    }
}

/// The current I/O thread, for the tasks that run on it.
#[derive(Clone)]
pub struct Io {
    core: Rc<Core>,
}

impl Io {
    /// A handle without a thread, for futures that never wait for the ring.
    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        let shared = wake::Shared::new().expect("an event descriptor");
        Self { core: executor::Core::new(shared.into(), Polling::Off, &[]).expect("io_uring") }
    }

    /// Runs another task on this thread. Allocates; per-command tasks go through a [`TaskPool`].
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.core.spawn(task);
    }

    /// Reads at `at`; gives back how many bytes came (short at end of file) and the memory.
    pub async fn read(&self, file: &Arc<File>, at: u64, into: ToGuest) -> (io::Result<u64>, ToGuest) {
        self.read_held(file, at, into, PieceLimits::NONE, &Hold::none()).await
    }

    /// As [`Io::read`], with a claim that lasts until the kernel is done.
    pub async fn read_held(
        &self,
        file: &Arc<File>,
        at: u64,
        into: ToGuest,
        limits: PieceLimits,
        hold: &Hold,
    ) -> (io::Result<u64>, ToGuest) {
        let limits = limits.of_part();
        let op = |mem, first, at| Op::Read { file: file.clone(), at, mem, first, limits, hold: hold.clone() };
        let (result, mem) = self.transfer(at, into.into_inner(), op).await;
        (result, ToGuest::new(mem))
    }

    /// Writes at `at`; gives back how many bytes went and the memory.
    ///
    /// With `stable` the data is on stable storage at completion (RWF_DSYNC).
    pub async fn write(
        &self,
        file: &Arc<File>,
        at: u64,
        from: FromGuest,
        stable: bool,
    ) -> (io::Result<u64>, FromGuest) {
        self.write_held(file, at, from, stable, PieceLimits::NONE, &Hold::none()).await
    }

    /// As [`Io::write`], with a claim that lasts until the kernel is done.
    pub async fn write_held(
        &self,
        file: &Arc<File>,
        at: u64,
        from: FromGuest,
        stable: bool,
        limits: PieceLimits,
        hold: &Hold,
    ) -> (io::Result<u64>, FromGuest) {
        let limits = limits.of_part();
        let op = |mem, first, at| Op::Write {
            file: file.clone(),
            at,
            mem,
            first,
            stable,
            limits,
            hold: hold.clone(),
        };
        let (result, mem) = self.transfer(at, from.into_inner(), op).await;
        (result, FromGuest::new(mem))
    }

    /// fdatasync(2).
    pub async fn sync(&self, file: &Arc<File>) -> io::Result<()> {
        self.sync_held(file, &Hold::none()).await
    }

    /// As [`Io::sync`], with a claim that lasts until the kernel is done.
    pub async fn sync_held(&self, file: &Arc<File>, hold: &Hold) -> io::Result<()> {
        self.begin(|| Op::Sync { file: file.clone(), hold: hold.clone() }).await
    }

    /// fallocate(2) with `mode` as of the system call.
    pub async fn allocate(&self, file: &Arc<File>, mode: i32, at: u64, len: u64) -> io::Result<()> {
        self.allocate_held(file, mode, at, len, &Hold::none()).await
    }

    /// As [`Io::allocate`], with a claim that lasts until the kernel is done.
    pub async fn allocate_held(
        &self,
        file: &Arc<File>,
        mode: i32,
        at: u64,
        len: u64,
        hold: &Hold,
    ) -> io::Result<()> {
        self.begin(|| Op::Allocate { file: file.clone(), mode, at, len, hold: hold.clone() }).await
    }

    /// Runs what `make` makes, again and again while the kernel has no thread to begin it.
    async fn begin(&self, make: impl Fn() -> Op) -> io::Result<()> {
        let mut tries = 0;
        loop {
            match check(self.run(make()).await.result) {
                Err(e) if tries < UNTRIED_TRIES && is_untried(&e) => {
                    tries += 1;
                    Box::pin(self.sleep(UNTRIED_PAUSE)).await;
                }
                result => return result.map(drop),
            }
        }
    }

    /// Waits until `file` can be read without blocking (poll(2), POLLIN): for devices that are not block devices.
    pub async fn readable(&self, file: &Arc<File>) -> io::Result<()> {
        check(self.run(Op::Readable { file: file.clone() }).await.result).map(drop)
    }

    /// Waits until `event` is signalled and takes its count. Dropping the future may lose a count it has taken.
    pub async fn wait(&self, event: &Arc<EventFd>) -> io::Result<u64> {
        loop {
            let outcome = self.run(Op::Event(event.clone())).await;
            match outcome.result {
                // Another reader was faster.
                again if again == -libc::EAGAIN => {}
                result => return check(result).map(|_| outcome.count),
            }
        }
    }

    /// Watches `event` without taking its count: cheaper than [`Io::wait`] when it is signalled often.
    pub fn watch(&self, event: &Arc<EventFd>) -> Watch {
        Watch::new(self, event)
    }

    /// Waits for `time` to pass.
    pub async fn sleep(&self, time: Duration) {
        self.run(Op::Sleep(time)).await;
    }

    /// What `work` ends with; `None` when that takes longer than `limit`, and then it is dropped.
    pub async fn at_most<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        let (mut work, mut late) = (pin!(work), pin!(self.sleep(limit)));
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => late.as_mut().poll(cx).map(|()| None),
        })
        .await
    }

    /// This thread has copied so much itself: that holds the others up as a transfer does that the kernel copies.
    pub(crate) fn moved(&self, bytes: u64) {
        self.core.ring.borrow_mut().moved(bytes);
    }

    /// Lets other tasks run that are ready: for long work that seldom waits.
    pub(crate) async fn give_way(&self) {
        let mut gave = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut gave, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Waits until no operation whose future was dropped is in flight on this thread any more: from then on the
    /// host neither reads nor writes memory or files for any of them.
    pub async fn quiesce(&self) {
        poll_fn(|cx| self.core.ring.borrow_mut().poll_quiet(None, Reach::Nothing, cx.waker())).await;
    }

    /// Calls `hook` at the end of every round of the executor, after all ready tasks ran and before the thread
    /// submits and sleeps, until the guard is dropped: one interrupt for a batch of completions.
    pub fn at_batch_end(&self, hook: impl Fn() + 'static) -> BatchHook {
        let hook: Rc<dyn Fn()> = Rc::new(hook);
        self.core.add_hook(Rc::downgrade(&hook));
        BatchHook { _hook: hook }
    }

    /// The time of this round of the thread, which is read once: when it came back from the kernel, or began to look for work. Good
    /// for what takes longer than a round, and costs nothing where the host's clock is slow.
    pub fn now(&self) -> Instant {
        self.core.clock.now()
    }

    /// How often this thread has read the host's clock.
    #[cfg(any(test, feature = "testing"))]
    pub fn clock_readings(&self) -> u64 {
        self.core.clock.readings()
    }

    /// How long it pays on this host to look for work instead of sleeping; zero where that is switched off.
    pub fn polling_bound(&self) -> Duration {
        self.core.polling_bound()
    }

    /// Asks `poller` for work while the thread has nothing else to do, until its last strong reference goes.
    pub fn add_poller(&self, poller: Weak<dyn Poller>) {
        self.core.add_poller(poller);
    }

    /// Moves all of `mem`, in as many operations as its segments need; ends early when one comes short.
    async fn transfer(
        &self,
        at: u64,
        mut mem: SgList,
        make: impl Fn(SgList, usize, u64) -> Op,
    ) -> (io::Result<u64>, SgList) {
        let (mut first, mut done, mut tries) = (0, 0u64, 0);
        loop {
            let wanted: u64 = op::segments(&mem, first).iter().map(|v| v.iov_len as u64).sum();
            if wanted == 0 {
                return (Ok(done), mem);
            }
            // The kernel takes an offset of all ones for "the current position".
            let Some(here) = at.checked_add(done).filter(|&here| i64::try_from(here).is_ok()) else {
                return (Err(io::ErrorKind::InvalidInput.into()), mem);
            };
            let outcome = self.run(make(mem, first, here)).await;
            // An error that came with stability is not made good by what follows.
            let stable = matches!(outcome.op, Op::Write { stable: true, .. });
            mem = match outcome.op {
                Op::Read { mem, .. } | Op::Write { mem, .. } => mem,
                _ => SgList::empty(),
            };
            match check(outcome.result) {
                Ok(moved) => {
                    done += moved;
                    if moved < wanted {
                        return (Ok(done), mem);
                    }
                    first += op::SEGMENTS_MAX;
                    tries = 0;
                }
                Err(e) if tries < TRIES && matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {
                    tries += 1;
                }
                Err(e) if tries < UNTRIED_TRIES && is_untried(&e) => {
                    tries += 1;
                    Box::pin(self.sleep(UNTRIED_PAUSE)).await;
                }
                Err(_) if done > 0 && !stable => return (Ok(done), mem),
                Err(e) => return (Err(e), mem),
            }
        }
    }

    /// Runs `op` to its end.
    async fn run(&self, op: Op) -> Outcome {
        #[cfg(any(test, feature = "testing"))]
        let op = match self.core.mischief.is_planned() {
            false => op,
            // Boxed: the futures of others shall not be larger for it.
            true => match Box::pin(self.meddle(op)).await {
                Ok(outcome) => return outcome,
                Err(op) => op,
            },
        };
        self.perform(op).await
    }

    /// Hands `op` to the ring and waits for its end.
    fn perform(&self, op: Op) -> Running<'_> {
        #[cfg(any(test, feature = "testing"))]
        if self.core.mischief.hangs(&op) {
            return self.hang(op);
        }
        Running { core: &self.core, key: Some(self.core.start(op)) }
    }
}

/// An operation under way: a future of few bytes. Abandons it when dropped early.
struct Running<'a> {
    core: &'a Core,
    key: Option<Key>,
}

impl Future for Running<'_> {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let Some(key) = self.key else { return Poll::Pending };
        let polled = self.core.ring.borrow_mut().poll(key, cx.waker());
        if polled.is_ready() {
            self.key = None;
        }
        polled
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.core.abandon(key);
        }
    }
}

/// Whether the kernel has not even begun an operation. What would block is done by threads of the kernel (io-wq), and
/// where it can start none (`pids.max`, RLIMIT_NPROC) it ends all that waits for one with ECANCELED. What we cancel
/// ourselves has no future any more that could hear of it.
pub(crate) fn is_untried(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECANCELED)
}

/// Whether an operation was not handed to the kernel, because its permit (see [`Permit`]) said so when its turn came.
pub(crate) fn is_withheld(error: &io::Error) -> bool {
    error.raw_os_error() == Some(ring::WITHHELD)
}

/// A count, or the error that a negative completion stands for.
fn check(result: i32) -> io::Result<u64> {
    u64::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.saturating_neg()))
}

/// Keeps a hook of [`Io::at_batch_end`] alive.
pub struct BatchHook {
    _hook: Rc<dyn Fn()>,
}
