//! Work that goes on after its command has ended. It holds its unit, and ends when the unit is detached.

use std::future::poll_fn;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::unit::Unit;

#[derive(Debug, Default)]
struct State {
    running: usize,
    ending: bool,
    waiting: Vec<Waker>,
}

/// The background work of a unit.
#[derive(Debug, Default)]
pub(crate) struct Background(Mutex<State>);

impl Background {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all work to end, and waits until it has let go of the unit.
    pub(crate) async fn end(&self) {
        self.lock().ending = true;
        poll_fn(|cx| {
            let mut state = self.lock();
            if state.running == 0 {
                return Poll::Ready(());
            }
            if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

/// A piece of background work, for as long as it lives.
pub(crate) struct Working {
    // Dropped in this order: whoever waits for the end may rely on the unit not being held any more.
    unit: Arc<Unit>,
    place: Place,
}

struct Place(Arc<Background>);

impl Working {
    /// Work on `unit` begins.
    pub(crate) fn on(unit: Arc<Unit>) -> Self {
        let background = unit.background.clone();
        background.lock().running += 1;
        Self { unit, place: Place(background) }
    }

    /// Whether it was told to end.
    pub(crate) fn must_end(&self) -> bool {
        self.place.0.lock().ending
    }
}

impl Deref for Working {
    type Target = Unit;

    fn deref(&self) -> &Unit {
        &self.unit
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.running -= 1;
        let wakers = std::mem::take(&mut state.waiting);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}
