//! Admission of transfers to an image: ranges that must not be changed meanwhile, and memory for aligned copies. Who leaves lets in
//! whom it kept out, and nobody else is woken.

use std::collections::VecDeque;
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
    entries: VecDeque<Entry>,
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
    /// A gate that lends out `budget` bytes of memory for aligned copies at most.
    pub(super) fn new(budget: u64) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), budget })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for admission to `range` with `bytes` of memory for aligned copies; it lasts until the last hold is gone.
    pub(super) async fn enter(self: &Arc<Self>, range: Range<u64>, access: Access, bytes: u64) -> Hold {
        let id = self.queue(range, access, bytes);
        let hold = Hold::new(self.clone(), id);
        poll_fn(|cx| self.poll_admission(id, cx)).await;
        hold
    }

    /// Admission without memory for aligned copies, if nothing excludes it; else `None`.
    pub(super) fn try_enter(self: &Arc<Self>, range: Range<u64>, access: Access) -> Option<Hold> {
        let mut state = self.lock();
        if access == Access::Modify || state.modifications > 0 {
            return None;
        }
        let id = state.next;
        state.next += 1;
        state.entries.push_back(Entry {
            id,
            range,
            access,
            bytes: 0,
            admitted: true,
            holders: 1,
            waker: None,
        });
        drop(state);
        Some(Hold::new(self.clone(), id))
    }

    fn queue(&self, range: Range<u64>, access: Access, bytes: u64) -> u64 {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        state.modifications += usize::from(access == Access::Modify);
        state.entries.push_back(Entry { id, range, access, bytes, admitted: false, holders: 1, waker: None });
        id
    }

    fn poll_admission(&self, id: u64, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        let Ok(place) = state.entries.binary_search_by_key(&id, |entry| entry.id) else {
            return Poll::Ready(());
        };
        let Some(entry) = state.entries.get(place) else { return Poll::Ready(()) };
        if entry.admitted {
            return Poll::Ready(());
        }
        // Memory goes in order too, so that a large request is not overtaken for ever.
        let starved = entry.bytes > 0
            && (!state.has_room(entry.bytes, self.budget)
                || state.entries.range(..place).any(|e| e.bytes > 0 && !e.admitted));
        let admitted = !starved && !state.is_excluded(place);
        let State { entries, used, .. } = &mut *state;
        let Some(entry) = entries.get_mut(place) else { return Poll::Ready(()) };
        if admitted {
            entry.admitted = true;
            *used += entry.bytes;
            return Poll::Ready(());
        }
        // Dropped after the lock.
        let _before = entry.waker.replace(cx.waker().clone());
        drop(state);
        Poll::Pending
    }
}

impl State {
    /// Whether so much memory can be lent. One alone always gets it.
    fn has_room(&self, bytes: u64, budget: u64) -> bool {
        self.used == 0 || self.used + bytes <= budget
    }

    /// Whether an earlier one excludes the one at this place.
    fn is_excluded(&self, place: usize) -> bool {
        self.modifications > 0
            && self
                .entries
                .get(place)
                .is_some_and(|entry| self.entries.range(..place).any(|e| e.excludes(entry)))
    }

    /// Lets in who waited for the one that is gone, or for its memory; returns whom to wake.
    fn admit(&mut self, gone: &Entry, budget: u64) -> Vec<Waker> {
        let (mut wakers, mut memory_waits) = (Vec::new(), false);
        for place in 0..self.entries.len() {
            let Some(entry) = self.entries.get(place).filter(|entry| !entry.admitted) else { continue };
            let may = match entry.bytes {
                0 => gone.excludes(entry),
                bytes => !memory_waits && self.has_room(bytes, budget),
            };
            let admitted = may && !self.is_excluded(place);
            let State { entries, used, .. } = self;
            let Some(entry) = entries.get_mut(place) else { continue };
            if admitted {
                entry.admitted = true;
                *used += entry.bytes;
                wakers.extend(entry.waker.take());
            } else {
                memory_waits |= entry.bytes > 0;
            }
        }
        wakers
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
        let Some(gone) = state.entries.remove(place) else { return };
        state.modifications -= usize::from(gone.access == Access::Modify);
        if gone.admitted {
            state.used -= gone.bytes;
        }
        let wakers = state.admit(&gone, self.budget);
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

    #[derive(Default)]
    struct Count(std::sync::atomic::AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    #[test]
    fn only_those_are_woken_that_are_let_in() {
        for access in [Access::Read, Access::Modify] {
            let gate = Gate::new(100);
            let mut held = vec![poll(pin!(gate.enter(0..8, access, 50))).unwrap()];
            let counts: Vec<_> = (0..1000).map(|_| Arc::<Count>::default()).collect();
            let mut waiting: Vec<_> = counts
                .iter()
                .map(|count| {
                    let mut enter = Box::pin(gate.enter(0..8, access, 50));
                    let waker = Waker::from(count.clone());
                    match enter.as_mut().poll(&mut Context::from_waker(&waker)) {
                        Poll::Ready(hold) => held.push(hold),
                        Poll::Pending => {}
                    }
                    enter
                })
                .collect();
            let at_once = held.len();
            assert_eq!(at_once, if access == Access::Read { 2 } else { 1 });
            for next in waiting.iter_mut().skip(at_once - 1) {
                drop(held.remove(0));
                let woken = |count: &Arc<Count>| count.0.swap(0, std::sync::atomic::Ordering::Relaxed);
                assert_eq!(counts.iter().map(woken).sum::<usize>(), 1, "{access:?}");
                held.push(poll(next.as_mut()).expect("it was woken"));
            }
            // Also who gives up before it looks.
            drop((held, waiting));
            let state = gate.lock();
            assert_eq!((state.used, state.entries.len()), (0, 0));
        }
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
