//! Admission of transfers to an image: ranges that must not be changed meanwhile, and bounce memory.

use std::future::poll_fn;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::iothread::{Claims, Hold};

/// What a transfer does with its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Only reads it, and cares for nobody.
    Read,
    /// Replaces it; may go on beside other writes.
    Write,
    /// Reads it, changes a part and writes it back: nobody else may write to it meanwhile.
    Modify,
}

struct Entry {
    id: u64,
    range: Range<u64>,
    access: Access,
    bytes: u64,
    admitted: bool,
    holders: u32,
    waker: Option<Waker>,
}

impl Entry {
    fn excludes(&self, other: &Self) -> bool {
        let apart = self.range.end <= other.range.start || other.range.end <= self.range.start;
        let peaceful = self.access == Access::Read
            || other.access == Access::Read
            || (self.access == Access::Write && other.access == Access::Write);
        !apart && !peaceful
    }
}

#[derive(Default)]
struct State {
    /// In the order of arrival, which is the order of ids.
    entries: Vec<Entry>,
    next: u64,
    used: u64,
    /// Entries that exclude writes.
    modifications: usize,
}

/// Lets transfers in, first come first served where they exclude each other.
pub(super) struct Gate {
    state: Mutex<State>,
    budget: u64,
}

impl Gate {
    /// A gate that lends out `budget` bytes of bounce memory at most.
    pub(super) fn new(budget: u64) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), budget })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for admission to `range` with `bytes` of bounce memory; it lasts until the last hold is gone.
    pub(super) async fn enter(self: &Arc<Self>, range: Range<u64>, access: Access, bytes: u64) -> Hold {
        let id = self.queue(range, access, bytes);
        let hold = Hold::new(self.clone(), id);
        poll_fn(|cx| self.poll_admission(id, cx)).await;
        hold
    }

    /// Admission without bounce memory, if nothing excludes it; else `None`.
    pub(super) fn try_enter(self: &Arc<Self>, range: Range<u64>, access: Access) -> Option<Hold> {
        let mut state = self.lock();
        if access == Access::Modify || state.modifications > 0 {
            return None;
        }
        let id = state.next;
        state.next += 1;
        state.entries.push(Entry { id, range, access, bytes: 0, admitted: true, holders: 1, waker: None });
        drop(state);
        Some(Hold::new(self.clone(), id))
    }

    fn queue(&self, range: Range<u64>, access: Access, bytes: u64) -> u64 {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        state.modifications += usize::from(access == Access::Modify);
        state.entries.push(Entry { id, range, access, bytes, admitted: false, holders: 1, waker: None });
        id
    }

    fn poll_admission(&self, id: u64, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        let State { entries, used, modifications, .. } = &mut *state;
        let Ok(place) = entries.binary_search_by_key(&id, |entry| entry.id) else { return Poll::Ready(()) };
        let (earlier, rest) = entries.split_at_mut(place);
        let Some(entry) = rest.first_mut() else { return Poll::Ready(()) };
        if entry.bytes == 0 && *modifications == 0 {
            entry.admitted = true;
            return Poll::Ready(());
        }
        // Memory goes in order too, so that a large request is not overtaken for ever. One alone always gets it.
        let starved = entry.bytes > 0
            && ((*used > 0 && *used + entry.bytes > self.budget)
                || earlier.iter().any(|e| e.bytes > 0 && !e.admitted));
        if starved || earlier.iter().any(|e| e.excludes(entry)) {
            entry.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        entry.admitted = true;
        *used += entry.bytes;
        Poll::Ready(())
    }
}

impl Claims for Gate {
    fn retain(&self, id: u64) {
        let mut state = self.lock();
        if let Ok(place) = state.entries.binary_search_by_key(&id, |entry| entry.id)
            && let Some(entry) = state.entries.get_mut(place)
        {
            entry.holders += 1;
        }
    }

    fn release(&self, id: u64) {
        let mut state = self.lock();
        let Ok(place) = state.entries.binary_search_by_key(&id, |entry| entry.id) else { return };
        if let Some(entry) = state.entries.get_mut(place) {
            entry.holders -= 1;
            if entry.holders > 0 {
                return;
            }
        }
        let gone = state.entries.remove(place);
        state.modifications -= usize::from(gone.access == Access::Modify);
        if gone.admitted {
            state.used -= gone.bytes;
        }
        let waiting = state.entries.iter_mut().skip(place).filter_map(|entry| entry.waker.take());
        let wakers: Vec<Waker> = waiting.collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn modifications_exclude_writes_in_order_of_arrival() {
        let gate = Gate::new(100);
        let write = poll(pin!(gate.enter(0..8, Access::Write, 0))).unwrap();
        let beside = poll(pin!(gate.enter(4..12, Access::Write, 0))).unwrap();
        let mut modify = pin!(gate.enter(4..8, Access::Modify, 0));
        assert!(poll(modify.as_mut()).is_none());
        // Comes later, so it waits for the modification although only writes are in.
        let mut late = pin!(gate.enter(0..8, Access::Write, 0));
        assert!(poll(late.as_mut()).is_none());
        assert!(poll(pin!(gate.enter(0..8, Access::Read, 0))).is_some());
        assert!(poll(pin!(gate.enter(8..16, Access::Modify, 0))).is_none(), "excluded by the write to 4..12");
        assert!(poll(pin!(gate.enter(12..16, Access::Modify, 0))).is_some());
        drop(write);
        assert!(poll(modify.as_mut()).is_none());
        drop(beside);
        let modify = poll(modify.as_mut()).unwrap();
        assert!(poll(late.as_mut()).is_none());
        let second = modify.clone();
        drop(modify);
        assert!(poll(late.as_mut()).is_none(), "a hold in the ring keeps the claim");
        drop(second);
        assert!(poll(late.as_mut()).is_some());
        assert!(gate.lock().entries.is_empty());
    }

    #[test]
    fn who_does_not_wait_enters_beside_writes_only() {
        let gate = Gate::new(100);
        let write = gate.try_enter(0..8, Access::Write).unwrap();
        let beside = gate.try_enter(4..12, Access::Write).unwrap();
        assert!(gate.try_enter(20..24, Access::Modify).is_none());
        let mut modify = pin!(gate.enter(4..8, Access::Modify, 0));
        assert!(poll(modify.as_mut()).is_none());
        assert!(gate.try_enter(20..24, Access::Write).is_none(), "it has to look who is there");
        drop((write, beside));
        drop(poll(modify.as_mut()).unwrap());
        drop(gate.try_enter(4..8, Access::Write).unwrap());
        assert!(gate.lock().entries.is_empty());
    }

    #[test]
    fn memory_is_lent_in_order_and_returned() {
        let gate = Gate::new(100);
        let first = poll(pin!(gate.enter(0..1, Access::Read, 60))).unwrap();
        let mut large = Box::pin(gate.enter(0..1, Access::Read, 500));
        assert!(poll(large.as_mut()).is_none());
        let mut small = pin!(gate.enter(0..1, Access::Read, 10));
        assert!(poll(small.as_mut()).is_none(), "not before the one that waits longer");
        drop(first);
        let held = poll(large.as_mut()).unwrap();
        assert!(poll(small.as_mut()).is_none());
        drop(held);
        assert!(poll(small.as_mut()).is_some());
        assert_eq!(gate.lock().used, 0);
        // One that gives up while it waits leaves no trace.
        let _first = poll(pin!(gate.enter(0..1, Access::Read, 60))).unwrap();
        let mut waits = Box::pin(gate.enter(0..1, Access::Read, 60));
        assert!(poll(waits.as_mut()).is_none());
        drop(waits);
        let state = gate.lock();
        assert_eq!((state.used, state.entries.len()), (60, 1));
    }
}
