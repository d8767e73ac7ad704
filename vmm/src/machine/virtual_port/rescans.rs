//! Who has asked for a look at the fabric, and hears when what was found is there.
//!
//! Work that news have brought has numbers. Who asked hears when the work is done whose numbers are lower than that of the look.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

type Done = Box<dyn FnOnce() + Send>;

/// Looks that were asked for, and the work that has not been done yet.
pub(super) struct Rescans {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Of the last look that was asked for.
    number: u64,
    asked: Vec<(u64, Done)>,
    /// Looks that are over: who asked, and before which work that is to be done.
    looked: Vec<(Done, u64)>,
    /// Of the next work.
    next: u64,
    under_way: BTreeSet<u64>,
    ended: bool,
}

impl State {
    fn is_done(&self, before: u64) -> bool {
        self.under_way.first().is_none_or(|first| *first >= before)
    }

    /// Those who need not wait any more.
    fn take_done(&mut self) -> Vec<Done> {
        let all = std::mem::take(&mut self.looked);
        let (done, waiting) = all.into_iter().partition::<Vec<_>, _>(|(_, before)| self.is_done(*before));
        self.looked = waiting;
        done.into_iter().map(|(done, _)| done).collect()
    }
}

/// Work that somebody may wait for; it is over when this is dropped.
pub(super) struct Work {
    number: u64,
    rescans: Arc<Rescans>,
}

impl Drop for Work {
    fn drop(&mut self) {
        let mut state = self.rescans.lock();
        state.under_way.remove(&self.number);
        let done = state.take_done();
        drop(state);
        self.rescans.changed.notify_all();
        done.into_iter().for_each(|done| done());
    }
}

impl Rescans {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: Condvar::new() })
    }

    /// There is work to do that news have brought.
    pub(super) fn work(self: &Arc<Self>) -> Work {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.under_way.insert(number);
        Work { number, rescans: self.clone() }
    }

    /// Somebody asks for a look, whose number is at least 1; `None` when nobody looks any more.
    pub(super) fn begin(&self, done: Done) -> Option<u64> {
        let mut state = self.lock();
        if state.ended {
            return None;
        }
        state.number += 1;
        let number = state.number;
        state.asked.push((number, done));
        Some(number)
    }

    /// The process has looked for all who asked up to this number, and told what it has found.
    pub(super) fn looked(&self, number: u64) {
        let mut state = self.lock();
        let before = state.next;
        let all = std::mem::take(&mut state.asked);
        let (over, waiting) = all.into_iter().partition::<Vec<_>, _>(|(asked, _)| *asked <= number);
        state.asked = waiting;
        state.looked.extend(over.into_iter().map(|(_, done)| (done, before)));
        let done = state.take_done();
        drop(state);
        done.into_iter().for_each(|done| done());
    }

    /// Nobody looks any more.
    pub(super) fn ended(&self) {
        let mut state = self.lock();
        state.ended = true;
        let (asked, looked) = (std::mem::take(&mut state.asked), std::mem::take(&mut state.looked));
        drop((state, asked));
        looked.into_iter().for_each(|(done, _)| done());
    }

    /// Waits until all work of now is done, as long as `patience` lasts; false if it is not.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let state = self.lock();
        let before = state.next;
        let waited = self.changed.wait_timeout_while(state, patience, |state| !state.is_done(before));
        waited.unwrap_or_else(PoisonError::into_inner).0.is_done(before)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
