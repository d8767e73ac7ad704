//! I/O threads: one io_uring and one local executor each.
//!
//! Nothing blocks on an I/O thread. Tasks are futures that never leave it; they wait for the ring, for doorbells
//! (event descriptors) and for timers. An operation moves its file and memory into the ring's slot and gets them
//! back at completion, so a dropped future can never leave the kernel writing to freed memory.

use std::fs::File;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::mem::{FromGuest, ToGuest};

/// A running I/O thread. Dropping it asks the thread to end, drains its ring and joins it.
pub struct IoThread {
    remote: Remote,
}

impl IoThread {
    /// Starts a thread called `name` (at most 15 bytes are visible in the system).
    pub fn start(_name: &str) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// A handle for other threads.
    pub fn remote(&self) -> Remote {
        self.remote.clone()
    }
}

/// Reaches an I/O thread from any other.
#[derive(Clone)]
pub struct Remote {}

impl Remote {
    /// Runs the future that `make` builds on the I/O thread. Allocates: for workers that live long.
    pub fn spawn<M, F>(&self, _make: M)
    where
        M: FnOnce(Io) -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
    }
}

/// The current I/O thread, for the tasks that run on it.
#[derive(Clone)]
pub struct Io {
    _inner: Rc<()>,
}

impl Io {
    /// A handle without a thread, for futures that never wait for the ring.
    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        Self { _inner: Rc::new(()) }
    }

    /// Waits until the kernel is done with every operation whose future was dropped.
    pub async fn quiesce(&self) {}

    /// Runs another task on this thread. Allocates; per-command tasks go through a [`TaskPool`].
    pub fn spawn(&self, _task: impl Future<Output = ()> + 'static) {}

    /// Reads at `at`; gives back how many bytes came (short at end of file) and the memory.
    pub async fn read(&self, _file: &Arc<File>, _at: u64, into: ToGuest) -> (io::Result<u64>, ToGuest) {
        (Ok(0), into)
    }

    /// Writes at `at`; with `stable` the data is on stable storage at completion (RWF_DSYNC).
    pub async fn write(
        &self,
        _file: &Arc<File>,
        _at: u64,
        from: FromGuest,
        _stable: bool,
    ) -> (io::Result<u64>, FromGuest) {
        (Ok(0), from)
    }

    /// fdatasync(2).
    pub async fn sync(&self, _file: &Arc<File>) -> io::Result<()> {
        Ok(())
    }

    /// fallocate(2) with `mode` as of the system call.
    pub async fn allocate(&self, _file: &Arc<File>, _mode: i32, _at: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    /// Waits until `event` is signalled and takes its count.
    pub async fn wait(&self, _event: &Arc<EventFd>) -> io::Result<u64> {
        Ok(0)
    }

    /// Waits for `time` to pass.
    pub async fn sleep(&self, _time: Duration) {}

    /// Runs `work` on a helper thread that may block.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        Ok(work())
    }

    /// Calls `hook` at the end of every round of the executor, after all ready tasks ran and before the thread
    /// submits and sleeps, until the guard is dropped: one interrupt for a batch of completions.
    pub fn at_batch_end(&self, hook: impl Fn() + 'static) -> BatchHook {
        BatchHook { _hook: Rc::new(hook) }
    }
}

/// Keeps a hook of [`Io::at_batch_end`] alive.
pub struct BatchHook {
    _hook: Rc<dyn Fn()>,
}

/// A fixed number of reused task slots for futures of one type: a warm command spawns without allocating.
pub struct TaskPool<F> {
    _slots: Vec<F>,
}

impl<F: Future<Output = ()> + 'static> TaskPool<F> {
    /// A pool on this thread with room for `capacity` tasks at once; slots are made when first used.
    pub fn new(_io: &Io, _capacity: usize) -> Self {
        Self { _slots: Vec::new() }
    }

    /// Starts `task`, or gives it back when the pool is full.
    pub fn spawn(&self, task: F) -> Result<(), F> {
        Err(task)
    }

    /// Number of tasks not yet finished.
    pub fn running(&self) -> usize {
        0
    }

    /// Waits until no task is running.
    pub async fn drained(&self) {}
}
