//! Helper threads for host calls that may block and that the ring does not offer.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

/// Helper threads of one I/O thread at most.
const HELPERS_MAX: usize = 4;
/// A helper without work for this long ends.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

/// The helper threads of one I/O thread, started when needed.
#[derive(Default)]
pub(super) struct Helpers {
    state: Mutex<State>,
    work: Condvar,
}

impl Helpers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a job; fails when there is no thread for it and none can be started.
    fn queue(self: &Arc<Self>, job: Job) -> io::Result<()> {
        let mut state = self.lock();
        if state.closed {
            return Err(io::Error::other("the I/O thread is ending"));
        }
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() {
            self.work.notify_one();
            return Ok(());
        }
        if state.threads >= HELPERS_MAX {
            return Ok(());
        }
        let helpers = self.clone();
        let started = std::thread::Builder::new().name("io-helper".into()).spawn(move || helpers.serve());
        match started {
            Ok(_) => state.threads += 1,
            Err(e) if state.threads == 0 => {
                state.jobs.pop_back();
                return Err(e);
            }
            Err(_) => {}
        }
        Ok(())
    }

    /// Lets idle helpers end and drops what is queued; running jobs finish on their own.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let jobs = std::mem::take(&mut state.jobs);
        drop(state);
        self.work.notify_all();
        drop(jobs);
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                // A job that panics reports through its delivery; the helper itself goes on.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                state = self.lock();
                continue;
            }
            if state.closed {
                break;
            }
            state.idle += 1;
            let (back, timeout) = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.idle -= 1;
            if timeout.timed_out() && state.jobs.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }
}

/// Where a helper leaves its result.
struct Parcel<T> {
    content: Option<io::Result<T>>,
    waker: Option<Waker>,
}

/// Puts something into the parcel even when the work panics or is never run.
struct Delivery<T> {
    parcel: Arc<Mutex<Parcel<T>>>,
    put: bool,
}

impl<T> Delivery<T> {
    fn put(&mut self, result: io::Result<T>) {
        if std::mem::replace(&mut self.put, true) {
            return;
        }
        let mut parcel = self.parcel.lock().unwrap_or_else(PoisonError::into_inner);
        parcel.content = Some(result);
        let waker = parcel.waker.take();
        drop(parcel);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Drop for Delivery<T> {
    fn drop(&mut self) {
        self.put(Err(io::Error::other("the work of a helper thread did not finish")));
    }
}

/// Runs `work` on a helper thread.
pub(super) async fn run<T: Send + 'static>(
    helpers: &Arc<Helpers>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let parcel = Arc::new(Mutex::new(Parcel { content: None, waker: None }));
    let mut delivery = Delivery { parcel: parcel.clone(), put: false };
    helpers.queue(Box::new(move || {
        let result = work();
        delivery.put(Ok(result));
    }))?;
    poll_fn(|cx| {
        let mut parcel = parcel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(result) = parcel.content.take() {
            return Poll::Ready(result);
        }
        parcel.waker = Some(cx.waker().clone());
        Poll::Pending
    })
    .await
}
