//! Turns of tasks, on whatever threads, at work that must not be divided.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Who may work now: readers together, a writer alone; who waits, in the order in which they came.
#[derive(Default)]
pub(super) struct Turns(Mutex<State>);

#[derive(Default)]
struct State {
    readers: usize,
    writing: bool,
    /// By ticket.
    waiting: BTreeMap<u64, Waiter>,
    /// Those whose turn it is, and who have not looked yet.
    called: BTreeSet<u64>,
    next: u64,
}

struct Waiter {
    alone: bool,
    waker: Waker,
}

impl State {
    /// Takes a turn, if it is free.
    fn take(&mut self, alone: bool) -> bool {
        let free = !self.writing && (!alone || self.readers == 0);
        if free && alone {
            self.writing = true;
        } else if free {
            self.readers += 1;
        }
        free
    }

    fn give_back(&mut self, alone: bool) {
        match alone {
            true => self.writing = false,
            false => self.readers = self.readers.saturating_sub(1),
        }
    }

    /// Calls those whose turn it is: the first, and the readers right behind a reader.
    fn call(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while let Some((_, first)) = self.waiting.first_key_value() {
            if !self.take(first.alone) {
                break;
            }
            if let Some((ticket, waiter)) = self.waiting.pop_first() {
                self.called.insert(ticket);
                wakers.push(waiter.waker);
            }
        }
        wakers
    }
}

/// A turn; it ends when dropped.
pub(super) struct Turn {
    turns: Arc<Turns>,
    alone: bool,
}

/// A place among those who wait; `None` once it was called.
struct Place<'a> {
    turns: &'a Turns,
    alone: bool,
    ticket: Option<u64>,
}

impl Turns {
    /// Waits for a turn together with others.
    pub(super) async fn shared(self: &Arc<Self>) -> Turn {
        self.wait(false).await
    }

    /// Waits for a turn alone.
    pub(super) async fn alone(self: &Arc<Self>) -> Turn {
        self.wait(true).await
    }

    async fn wait(self: &Arc<Self>, alone: bool) -> Turn {
        let mut place = Place { turns: self, alone, ticket: None };
        poll_fn(|cx| place.poll(cx)).await;
        Turn { turns: self.clone(), alone }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let wakers = state.call();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Dropped after the lock: a waker may be the last that a task has.
        let _before;
        let mut state = self.turns.lock();
        match self.ticket {
            None if state.waiting.is_empty() && state.take(self.alone) => return Poll::Ready(()),
            None => {
                let ticket = state.next;
                state.next += 1;
                state.waiting.insert(ticket, Waiter { alone: self.alone, waker: cx.waker().clone() });
                self.ticket = Some(ticket);
            }
            Some(ticket) if state.called.remove(&ticket) => {
                self.ticket = None;
                return Poll::Ready(());
            }
            Some(ticket) => {
                if let Some(waiter) =
                    state.waiting.get_mut(&ticket).filter(|w| !w.waker.will_wake(cx.waker()))
                {
                    _before = std::mem::replace(&mut waiter.waker, cx.waker().clone());
                }
            }
        }
        Poll::Pending
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.change(|state| state.give_back(self.alone));
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut _waiter = None;
        self.turns.change(|state| {
            _waiter = state.waiting.remove(&ticket);
            if state.called.remove(&ticket) {
                state.give_back(self.alone);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::Context;

    use super::*;
    use crate::testing::Count;

    type Waits = Pin<Box<dyn Future<Output = Turn>>>;

    fn wait(turns: &Arc<Turns>, alone: bool) -> Waits {
        let turns = turns.clone();
        Box::pin(async move { if alone { turns.alone().await } else { turns.shared().await } })
    }

    fn poll(waits: &mut Waits, count: &Arc<Count>) -> Option<Turn> {
        let waker = Waker::from(count.clone());
        match waits.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        }
    }

    #[test]
    fn readers_are_together_and_a_writer_is_alone() {
        let (turns, count) = (Arc::<Turns>::default(), Arc::default());
        let now = |alone| poll(&mut wait(&turns, alone), &count);
        let (a, b) = (now(false).unwrap(), now(false).unwrap());
        assert!(now(true).is_none());
        drop(a);
        assert!(now(true).is_none());
        drop(b);
        let c = now(true).unwrap();
        assert!(now(false).is_none() && now(true).is_none());
        drop(c);
        assert!(now(false).is_some() && now(true).is_some());
    }

    /// Writers that never cease keep no reader waiting.
    #[test]
    fn a_reader_has_its_turn_among_writers() {
        let (turns, count) = (Arc::<Turns>::default(), Arc::default());
        let mut turn = poll(&mut wait(&turns, true), &count);
        let mut next = wait(&turns, true);
        assert!(poll(&mut next, &count).is_none());
        let mut reader = wait(&turns, false);
        let mut read = false;
        for _ in 0..10 {
            read = read || poll(&mut reader, &count).is_some();
            // One more writer before the one at work is done.
            let mut after = wait(&turns, true);
            assert!(poll(&mut after, &count).is_none());
            drop(turn.take());
            read = read || poll(&mut reader, &count).is_some();
            turn = poll(&mut next, &count);
            next = after;
        }
        assert!(read);
    }

    #[test]
    fn only_those_are_woken_whose_turn_it_is() {
        let (turns, count) = (Arc::<Turns>::default(), Arc::<Count>::default());
        let first = poll(&mut wait(&turns, true), &count);
        let mut waiting: Vec<_> = (0..1000).map(|_| wait(&turns, true)).collect();
        assert!(waiting.iter_mut().all(|waits| poll(waits, &Arc::default()).is_none()));
        let counts: Vec<_> = (0..1000).map(|_| Arc::<Count>::default()).collect();
        assert!(waiting.iter_mut().zip(&counts).all(|(waits, count)| poll(waits, count).is_none()));
        drop(first);
        for waits in &mut waiting {
            let woken = counts.iter().map(|count| count.take()).sum::<usize>();
            assert_eq!(woken, 1);
            assert!(poll(waits, &count).is_some());
        }
    }

    #[test]
    fn who_gives_up_passes_its_turn_on() {
        let (turns, count) = (Arc::<Turns>::default(), Arc::default());
        let first = poll(&mut wait(&turns, false), &count);
        let (mut writer, mut reader) = (wait(&turns, true), wait(&turns, false));
        assert!(poll(&mut writer, &count).is_none() && poll(&mut reader, &count).is_none());
        drop(writer);
        assert!(poll(&mut reader, &count).is_some(), "no writer waits any more");
        // It was told, and goes before it looks.
        let mut writer = wait(&turns, true);
        assert!(poll(&mut writer, &count).is_none());
        drop(first);
        drop(writer);
        assert!(poll(&mut wait(&turns, true), &count).is_some());
    }
}
