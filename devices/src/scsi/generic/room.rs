//! How much of a unit's data is in memory of the process at a time. Who comes when that is used up waits in order, instead of
//! hearing BUSY: some initiators give up on that.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

#[derive(Default)]
struct State {
    used: u64,
    /// By their numbers.
    waiting: VecDeque<(u64, u64, Option<Waker>)>,
    next: u64,
}

/// So many bytes, or one command if that has more.
#[derive(Clone)]
pub(super) struct Room(Arc<Shared>);

struct Shared {
    bytes: u64,
    state: Mutex<State>,
}

/// A part of it, until it is dropped.
pub(super) struct Part {
    room: Arc<Shared>,
    len: u64,
}

/// Somebody who waits.
struct Place<'a> {
    room: &'a Shared,
    number: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes who is first, if there is room for him.
    fn call(&self, mut state: MutexGuard<'_, State>) {
        let used = state.used;
        let first = state.waiting.front_mut().filter(|(_, len, _)| self.has(used, *len));
        let waker = first.and_then(|(_, _, waker)| waker.take());
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn has(&self, used: u64, len: u64) -> bool {
        used == 0 || used.saturating_add(len) <= self.bytes
    }
}

impl Room {
    pub(super) fn new(bytes: u64) -> Self {
        Self(Arc::new(Shared { bytes, state: Mutex::default() }))
    }

    /// Waits for `len` bytes. Who does not wait any more leaves nothing behind.
    pub(super) async fn take(&self, len: u64) -> Part {
        let number = {
            let mut state = self.0.lock();
            let number = state.next;
            state.next += 1;
            state.waiting.push_back((number, len, None));
            number
        };
        let place = Place { room: &self.0, number };
        poll_fn(|cx| {
            let mut state = self.0.lock();
            let first = state.waiting.front().is_some_and(|(first, ..)| *first == number);
            if first && self.0.has(state.used, len) {
                state.used += len;
                return Poll::Ready(());
            }
            if let Some((.., waker)) = state.waiting.iter_mut().find(|(other, ..)| *other == number) {
                *waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
        let part = Part { room: self.0.clone(), len };
        drop(place);
        part
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.room.lock();
        state.waiting.retain(|(number, ..)| *number != self.number);
        self.room.call(state);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut state = self.room.lock();
        state.used = state.used.saturating_sub(self.len);
        self.room.call(state);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use super::*;
    use crate::testing::Count;

    #[test]
    fn who_comes_later_waits_in_order() {
        let (room, (count, waker)) = (Room::new(100), Count::waker());
        let mut cx = Context::from_waker(&waker);
        macro_rules! poll {
            ($future:expr) => {
                match $future.as_mut().poll(&mut cx) {
                    Poll::Ready(part) => Some(part),
                    Poll::Pending => None,
                }
            };
        }
        // More than there is goes alone.
        let all = poll!(pin!(room.take(500))).unwrap();
        let (mut first, mut second, mut third) =
            (Box::pin(room.take(60)), Box::pin(room.take(60)), Box::pin(room.take(10)));
        assert!(poll!(first).is_none() && poll!(second).is_none() && poll!(third).is_none());
        drop(all);
        assert_eq!(count.get(), 1);
        assert!(poll!(third).is_none(), "not before the others");
        let part = poll!(first).unwrap();
        assert!(poll!(second).is_none() && poll!(third).is_none());
        // One that does not wait any more makes way.
        drop(second);
        let last = poll!(third).unwrap();
        drop((part, last));
        let state = room.0.lock();
        assert_eq!((state.used, state.waiting.len()), (0, 0));
    }
}
