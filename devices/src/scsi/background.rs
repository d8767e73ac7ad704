//! Work on a unit that is none of its commands: what goes on after its command has ended, and what commands of other
//! units do here. It holds its unit, and ends when the unit is detached.

use std::future::poll_fn;
use std::ops::Deref;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::sense::Failure;
use super::unit::Unit;
use crate::iothread::Io;

#[derive(Debug, Default)]
struct State {
    running: usize,
    ending: bool,
    /// Those who wait for the end.
    waiting: Vec<Waker>,
    /// Visitors, who are to be told at once.
    visitors: Vec<Waker>,
}

/// The background work of a unit.
#[derive(Debug, Default)]
pub(crate) struct Background(Mutex<State>);

impl Background {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all work to end; none begins any more.
    pub(crate) fn tell(&self) {
        let mut state = self.lock();
        state.ending = true;
        let visitors = std::mem::take(&mut state.visitors);
        drop(state);
        visitors.into_iter().for_each(Waker::wake);
    }

    /// Tells all work to end, and waits until it has let go of the unit.
    pub(crate) async fn end(&self) {
        self.tell();
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
        let visitors = if state.running == 0 { std::mem::take(&mut state.visitors) } else { Vec::new() };
        drop(state);
        drop(visitors);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Does `work`, which is a part of another unit's command, with `unit`. When `unit` is detached the work is dropped, and
/// once the host has let go of it the command hears `gone`. A command that is dropped meanwhile holds the unit for that
/// long, too.
pub(crate) async fn visit<T>(
    io: &Io,
    unit: &Arc<Unit>,
    gone: Failure,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut visit = Visit { io, working: Some(Working::on(unit.clone())) };
    let done = {
        let mut work = pin!(work);
        poll_fn(|cx| {
            if visit.must_end(cx.waker()) {
                return Poll::Ready(None);
            }
            work.as_mut().poll(cx).map(Some)
        })
        .await
    };
    if done.is_none() {
        io.quiesce().await;
    }
    visit.working = None;
    done.unwrap_or(Err(gone))
}

/// A visitor, until it has let go of the unit.
struct Visit<'a> {
    io: &'a Io,
    working: Option<Working>,
}

impl Visit<'_> {
    /// Whether the unit goes; if not, `waker` is woken when it does.
    fn must_end(&self, waker: &Waker) -> bool {
        let Some(working) = &self.working else { return true };
        let mut state = working.place.0.lock();
        if !state.ending && !state.visitors.iter().any(|known| known.will_wake(waker)) {
            state.visitors.push(waker.clone());
        }
        state.ending
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        if let Some(working) = self.working.take() {
            let io = self.io.clone();
            self.io.spawn(async move {
                io.quiesce().await;
                drop(working);
            });
        }
    }
}
