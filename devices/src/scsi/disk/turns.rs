//! Turns of tasks, on whatever threads, at work that must not be divided.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Who may work now: readers together, a writer alone. A writer that waits lets no more readers in.
#[derive(Default)]
pub(super) struct Turns(Mutex<State>);

#[derive(Default)]
struct State {
    readers: usize,
    writing: bool,
    writers_waiting: usize,
    wakers: Vec<Waker>,
}

/// A turn; it ends when dropped.
pub(super) struct Turn {
    turns: Arc<Turns>,
    alone: bool,
}

/// A writer that waits.
struct Waiting<'a>(&'a Turns);

impl Turns {
    /// Waits for a turn together with others.
    pub(super) async fn shared(self: &Arc<Self>) -> Turn {
        self.wait(|state| {
            let free = !state.writing && state.writers_waiting == 0;
            state.readers += usize::from(free);
            free
        })
        .await;
        Turn { turns: self.clone(), alone: false }
    }

    /// Waits for a turn alone.
    pub(super) async fn alone(self: &Arc<Self>) -> Turn {
        self.lock().writers_waiting += 1;
        let waiting = Waiting(self);
        self.wait(|state| {
            let free = !state.writing && state.readers == 0;
            state.writing |= free;
            free
        })
        .await;
        drop(waiting);
        Turn { turns: self.clone(), alone: true }
    }

    async fn wait(&self, mut enter: impl FnMut(&mut State) -> bool) {
        poll_fn(|cx| {
            let mut state = self.lock();
            if enter(&mut state) {
                return Poll::Ready(());
            }
            if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.wakers.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let alone = self.alone;
        self.turns.change(|state| match alone {
            true => state.writing = false,
            false => state.readers = state.readers.saturating_sub(1),
        });
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.writers_waiting = state.writers_waiting.saturating_sub(1));
    }
}
