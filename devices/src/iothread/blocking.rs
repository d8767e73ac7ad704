//! Helper threads for host calls that may block and that the ring does not offer.
//!
//! Each job has an owner, such as an image. A call that never returns holds up what else its owner has to do, and nobody
//! else: an owner with something to do gets a helper of its own.

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::{Io, UNTRIED_PAUSE, UNTRIED_TRIES};
use crate::threads::{self, Kind};

/// A helper without work for this long ends.
const IDLE: Duration = Duration::from_secs(10);
/// How often a helper is asked for again where the host could not start one.
const AGAIN: Duration = Duration::from_millis(100);

type Job = Box<dyn FnOnce() + Send>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whose jobs wait for each other, and for nobody else's. Kept by what they are about; any I/O thread may give it some.
#[derive(Clone)]
pub struct Owner(Arc<Mutex<Line>>);

/// The jobs of an owner.
struct Line {
    /// Those that have not begun, in the order of their numbers.
    jobs: BTreeMap<u64, Job>,
    next: u64,
    /// Helpers that work for it, or are about to: each goes on until there is no job left.
    helpers: usize,
    helpers_max: usize,
}

impl Owner {
    /// One whose jobs are done side by side, so many of them at once.
    pub fn with_helpers(helpers_max: usize) -> Self {
        Self(Arc::new(Mutex::new(Line { jobs: BTreeMap::new(), next: 0, helpers: 0, helpers_max })))
    }

    /// Works for it until there is nothing left to do.
    fn serve(&self) {
        loop {
            let mut line = lock(&self.0);
            let Some((_, job)) = line.jobs.pop_first() else {
                line.helpers -= 1;
                return;
            };
            drop(line);
            // A job that panics reports through its delivery; the helper itself goes on.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
        }
    }
}

/// One whose jobs are done one after the other.
impl Default for Owner {
    fn default() -> Self {
        Self::with_helpers(1)
    }
}

#[derive(Default)]
struct State {
    /// Owners that an idle helper is to work for.
    turns: VecDeque<Owner>,
    threads: usize,
    idle: usize,
    closed: bool,
    /// The host starts none.
    #[cfg(test)]
    no_threads: bool,
    #[cfg(test)]
    refused: usize,
}

/// The helper threads of one I/O thread, started when needed.
#[derive(Default)]
pub(super) struct Helpers {
    state: Mutex<State>,
    work: Condvar,
}

/// A job that was given to an owner; one that has not begun goes with this.
struct Queued<'a> {
    owner: &'a Owner,
    number: u64,
    /// There is a helper that comes to it.
    served: bool,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let job = lock(&self.owner.0).jobs.remove(&self.number);
        drop(job);
    }
}

impl Helpers {
    /// Gives `owner` a job; fails when the I/O thread ends.
    fn queue<'a>(self: &Arc<Self>, owner: &'a Owner, job: Job) -> io::Result<Queued<'a>> {
        let mut line = lock(&owner.0);
        let number = line.next;
        line.next += 1;
        line.jobs.insert(number, job);
        let mut queued = Queued { owner, number, served: true };
        let helped = self.ask(owner, number, &mut line);
        queued.served = line.helpers > 0;
        drop(line);
        match helped {
            Err(e) if !queued.served && lock(&self.state).closed => Err(e),
            _ => Ok(queued),
        }
    }

    /// Looks again for a helper for a job that has none; fails where there is no thread at all.
    fn look_again(self: &Arc<Self>, queued: &mut Queued<'_>) -> io::Result<()> {
        let mut line = lock(&queued.owner.0);
        let helped = self.ask(queued.owner, queued.number, &mut line);
        queued.served = line.helpers > 0;
        drop(line);
        match helped {
            Err(e) if !queued.served && lock(&self.state).threads == 0 => Err(e),
            _ => Ok(()),
        }
    }

    /// Asks for a helper for job `number`. Where there is none only the first of a line asks the host: each time costs it.
    fn ask(self: &Arc<Self>, owner: &Owner, number: u64, line: &mut Line) -> io::Result<()> {
        if line.helpers == 0 && line.jobs.first_key_value().is_none_or(|(first, _)| *first != number) {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        self.help(owner, line)
    }

    /// Sends `owner` a helper, if it may have one more: an idle one or a new one.
    fn help(self: &Arc<Self>, owner: &Owner, line: &mut Line) -> io::Result<()> {
        if line.helpers >= line.helpers_max {
            return Ok(());
        }
        let mut state = lock(&self.state);
        #[cfg(test)]
        if state.no_threads {
            state.refused += 1;
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        if state.closed {
            return Err(io::Error::other("the I/O thread is ending"));
        }
        if state.idle > state.turns.len() {
            state.turns.push_back(owner.clone());
            self.work.notify_one();
        } else {
            let (helpers, first) = (self.clone(), owner.clone());
            threads::spawn(Kind::IoHelper, "io-helper", move || helpers.serve(first))?;
            state.threads += 1;
        }
        line.helpers += 1;
        Ok(())
    }

    /// Lets idle helpers end. Running jobs finish on their own; what has not begun goes with its future.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.work.notify_all();
    }

    fn serve(&self, first: Owner) {
        let mut next = Some(first);
        while let Some(owner) = next {
            owner.serve();
            drop(owner);
            next = self.next_turn();
        }
    }

    /// The next owner that wants a helper; `None` when this one is to end.
    fn next_turn(&self) -> Option<Owner> {
        let mut state = lock(&self.state);
        let mut waited = false;
        loop {
            if let Some(owner) = state.turns.pop_front() {
                return Some(owner);
            }
            if state.closed || waited {
                state.threads -= 1;
                return None;
            }
            state.idle += 1;
            let (back, timeout) = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.idle -= 1;
            waited = timeout.timed_out();
        }
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
        let mut parcel = lock(&self.parcel);
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

/// Runs `work` for `owner` on a helper thread.
pub(super) async fn run<T: Send + 'static>(
    io: &Io,
    owner: &Owner,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let helpers = &io.core.helpers;
    let parcel = Arc::new(Mutex::new(Parcel { content: None, waker: None }));
    let mut delivery = Delivery { parcel: parcel.clone(), put: false };
    let mut queued = helpers.queue(
        owner,
        Box::new(move || {
            let result = work();
            delivery.put(Ok(result));
        }),
    )?;
    let mut tries = 0;
    while !queued.served {
        // Threads that others have may become free; where there is none at all, it is as with operations of the kernel.
        let pause = if tries < UNTRIED_TRIES { UNTRIED_PAUSE } else { AGAIN };
        if let Some(result) = io.at_most(pause, arrival(&parcel)).await {
            return result;
        }
        tries += 1;
        match helpers.look_again(&mut queued) {
            Err(e) if tries >= UNTRIED_TRIES => return Err(e),
            _ => {}
        }
    }
    arrival(&parcel).await
}

fn arrival<T>(parcel: &Mutex<Parcel<T>>) -> impl Future<Output = io::Result<T>> {
    poll_fn(|cx| {
        let mut parcel = lock(parcel);
        if let Some(result) = parcel.content.take() {
            return Poll::Ready(result);
        }
        parcel.waker = Some(cx.waker().clone());
        Poll::Pending
    })
}

#[cfg(test)]
impl Io {
    /// As [`Helpers::set_no_threads`].
    pub(crate) fn set_no_threads(&self, no_threads: bool) {
        self.core.helpers.set_no_threads(no_threads);
    }
}

#[cfg(test)]
impl Helpers {
    /// Whether the host starts threads from now on.
    pub(super) fn set_no_threads(&self, no_threads: bool) {
        lock(&self.state).no_threads = no_threads;
    }

    pub(super) fn threads(&self) -> usize {
        lock(&self.state).threads
    }

    /// How often one was asked for in vain.
    pub(super) fn refused(&self) -> usize {
        lock(&self.state).refused
    }
}
