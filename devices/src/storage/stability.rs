//! Whether what an image calls stable can be believed.
//!
//! When the kernel cannot write a page back, it marks the page clean and reports the error once for each open file
//! description: the next fdatasync(2) succeeds although the data is gone. The latch here remembers: after the first
//! failure no flush and no stable write of the image succeeds, until it is opened anew.
//!
//! "Once" also means that of several operations under way only one hears of the error. So success is believed only when
//! all that were under way at the same time have ended, and none of them failed. Those whose futures were dropped are
//! waited for as well: the ring says how they ended, see [`Claims::abandoned`].
//!
//! A forced write that failed may only have been refused, which a sync finds out. Where nobody gets to know, because that sync is given
//! up or never begun, the doubt stays for those that were under way with it: they are not believed.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::error::Action;
use super::unflushed::{Seen, Unflushed};
use super::{BlockError, BlockErrorKind};
use crate::iothread::{Claims, Hold};

/// Doubts that are told apart.
const DOUBTS_MAX: usize = 64;

/// The latch of one image.
pub(super) struct Stability {
    name: Arc<str>,
    failed: AtomicBool,
    /// Nothing more will be asked of the image.
    closing: AtomicBool,
    state: Mutex<State>,
    /// What was written and not flushed.
    pub(super) unflushed: Unflushed,
}

/// The number of forced writes that nothing else is under way with, as nobody takes errors from others: see
/// [`Stability::hold_alone`].
const ALONE: u64 = u64::MAX;

#[derive(Default)]
struct State {
    /// In the order of their start, which is that of their numbers.
    under_way: Vec<UnderWay>,
    next: u64,
    /// Not settled yet.
    doubts: Vec<Doubt>,
    waiting: Vec<Waker>,
}

/// A forced write failed: those that were under way with it may not be stable.
#[derive(Clone, Copy)]
struct Doubt {
    /// Its number.
    number: u64,
    /// The number of the first that began after it had failed.
    end: u64,
}

struct UnderWay {
    number: u64,
    holders: u32,
}

/// An operation that makes something stable, from before the kernel gets it to when its end is judged.
pub(super) struct Attempt {
    stability: Arc<Stability>,
    number: u64,
    /// When it began.
    seen: Seen,
}

impl Stability {
    /// For the image with this name.
    pub(super) fn new(name: Arc<str>) -> Arc<Self> {
        let flag = || AtomicBool::new(false);
        let (state, unflushed) = (Mutex::default(), Unflushed::default());
        Arc::new(Self { name, failed: flag(), closing: flag(), state, unflushed })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// The image is closed: the operator hears other words of what is found from now on.
    pub(super) fn begin_closing(&self) {
        self.closing.store(true, Ordering::Release);
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Fails when something failed before.
    pub(super) fn check(&self, action: Action) -> Result<(), BlockError> {
        if self.has_failed() { Err(self.error(action, None)) } else { Ok(()) }
    }

    /// Something begins that makes data stable.
    pub(super) fn attempt(self: &Arc<Self>) -> Attempt {
        let seen = self.unflushed.now();
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.under_way.push(UnderWay { number, holders: 1 });
        drop(state);
        Attempt { stability: self.clone(), number, seen }
    }

    /// For a forced write past the page cache, which is no attempt: when nobody waits for it any more and it fails, it may
    /// have taken with it what was written before.
    pub(super) fn hold_alone(self: &Arc<Self>) -> Hold {
        Hold::new(self.clone(), ALONE)
    }

    /// What is given to [`Self::settle`] after a sync that begins now.
    pub(super) fn now(&self) -> (u64, Seen) {
        (self.lock().next, self.unflushed.now())
    }

    /// A sync that began at `since` found nothing lost.
    pub(super) fn settle(&self, (since, seen): (u64, Seen)) {
        self.lock().doubts.retain(|doubt| doubt.end > since);
        self.unflushed.flushed(seen);
    }

    /// From now on nothing succeeds. The operator hears of the first time.
    pub(super) fn fail(&self, action: Action, source: io::Error) -> BlockError {
        if !self.failed.swap(true, Ordering::AcqRel) {
            self.complain(&source);
        }
        let waiting = std::mem::take(&mut self.lock().waiting);
        waiting.into_iter().for_each(Waker::wake);
        self.error(action, Some(source))
    }

    fn complain(&self, source: &io::Error) {
        let name = &self.name;
        if self.is_closing() {
            tracing::error!(
                "\"{name}\": the host could not make data stable when the image was closed ({source}): what the guest \
                 wrote since its last flush may be lost; repair the host's storage, and check the file system inside \
                 before the disk is used again"
            );
            return;
        }
        tracing::error!(
            "\"{name}\": the host could not make data stable ({source}): what the guest wrote since its last flush may be \
             lost, and every flush and forced write of this disk fails from now on; shut the guest down, repair the \
             host's storage, start the machine anew (or detach and attach the disk), and check the file system inside"
        );
    }

    fn unknown(&self, action: Action) -> BlockError {
        let context = format!(
            "{action} \"{}\" failed: the host could not say whether the data is stable; it must be written again",
            self.name
        );
        BlockError::new(BlockErrorKind::HostResources, context)
    }

    fn error(&self, action: Action, source: Option<io::Error>) -> BlockError {
        let why = if source.is_some() { "" } else { ": data could not be made stable before" };
        let remedy = if self.is_closing() { "" } else { "; open it anew" };
        let context = format!("{action} \"{}\" failed{why}{remedy}", self.name);
        BlockError { kind: BlockErrorKind::Unstable, context, source }
    }
}

impl Attempt {
    /// For the operations to hold.
    pub(super) fn hold(&self) -> Hold {
        self.stability.retain(self.number);
        Hold::new(self.stability.clone(), self.number)
    }

    /// It is a forced write that failed, perhaps with the error of another that is under way.
    pub(super) fn doubt(&self) {
        let mut state = self.stability.lock();
        let mut doubt = Doubt { number: self.number, end: state.next };
        if state.doubts.len() >= DOUBTS_MAX {
            // One for all: it is about more than it need be.
            doubt.number = state.doubts.iter().map(|other| other.number).fold(doubt.number, u64::min);
            state.doubts.clear();
        }
        state.doubts.push(doubt);
    }

    /// It failed: nothing can be believed any more.
    pub(super) fn failed(self, action: Action, source: io::Error) -> BlockError {
        self.stability.fail(action, source)
    }

    /// It succeeded, which counts when nothing else fails that was under way with it.
    pub(super) fn succeeded(self, action: Action) -> Agreement {
        let (stability, number) = (self.stability.clone(), self.number);
        // Over, before it waits for others: they may wait for it.
        drop(self);
        let end = stability.lock().next;
        Agreement { stability, number, end, action }
    }

    /// It was a sync, from its begin on, that found nothing lost.
    pub(super) fn synced(self, action: Action) -> Agreement {
        self.stability.settle((self.number, self.seen));
        self.succeeded(action)
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.stability.release(self.number);
    }
}

/// Waits for what was under way with an attempt that succeeded. A future of few bytes.
pub(super) struct Agreement {
    stability: Arc<Stability>,
    number: u64,
    /// The number of the first that began later.
    end: u64,
    action: Action,
}

impl Future for Agreement {
    type Output = Result<(), BlockError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.stability.lock();
        let first = state.under_way.first().map_or(u64::MAX, |first| first.number);
        if first < self.end && !self.stability.has_failed() {
            if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.waiting.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
        let together = |doubt: &Doubt| doubt.number < self.end && self.number < doubt.end;
        let in_doubt = self.action != Action::Flush && state.doubts.iter().any(together);
        drop(state);
        Poll::Ready(self.stability.check(self.action).and_then(|()| match in_doubt {
            false => Ok(()),
            // Who has the data writes it again.
            true => Err(self.stability.unknown(self.action)),
        }))
    }
}

impl Claims for Stability {
    fn retain(&self, id: u64) {
        if id == ALONE {
            return;
        }
        let mut state = self.lock();
        if let Some(one) = state.under_way.iter_mut().find(|one| one.number == id) {
            one.holders += 1;
        }
    }

    fn release(&self, id: u64) {
        if id == ALONE {
            return;
        }
        let mut state = self.lock();
        let Some(place) = state.under_way.iter().position(|one| one.number == id) else { return };
        if let Some(one) = state.under_way.get_mut(place) {
            one.holders -= 1;
            if one.holders > 0 {
                return;
            }
        }
        state.under_way.remove(place);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Nobody else hears of it. What was cancelled has not been tried to its end, and took no error with it.
    fn abandoned(&self, id: u64, result: i32) {
        if id == ALONE && !self.unflushed.any() {
            return;
        }
        if result < 0 && !matches!(-result, libc::ECANCELED | libc::EINTR) {
            self.fail(Action::Flush, io::Error::from_raw_os_error(result.saturating_neg()));
        }
    }
}

#[cfg(test)]
#[path = "stability_tests.rs"]
mod tests;
