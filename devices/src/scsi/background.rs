//! Work on a unit that is none of its commands: what goes on after its command has ended, and what commands of other
//! units do here. It holds its unit, and ends when the unit is detached.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::num::NonZeroU64;
use std::ops::Deref;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::sense::Failure;
use super::unit::Unit;
use crate::iothread::{Io, Scope};
use crate::storage::{Image, let_go};

/// How long a command that was ended waits for what the host still writes, before it leaves all the same.
pub(super) const SETTLE: Duration = Duration::from_secs(1);
/// Commands that have left while the host does not answer for them, before a unit takes no more: each holds memory.
const MAX_STUCK: usize = 64;

#[derive(Debug, Default)]
struct State {
    running: usize,
    ending: bool,
    /// Those who wait for the end.
    waiting: Vec<Waker>,
    /// Commands that wait until nothing can land late any more, or until the host has answered all that it was asked, by
    /// their tickets.
    held: BTreeMap<NonZeroU64, Waker>,
    last: u64,
    /// Visitors, who are to be told at once.
    visitors: Vec<Waker>,
}

/// The background work of a unit.
#[derive(Debug, Default)]
pub(crate) struct Background {
    state: Mutex<State>,
    /// Commands that have left while the host may still write to the unit for them.
    late: AtomicUsize,
    /// Commands that have left while the host still works for them in any way, at the medium that is there now. Changes with the state
    /// locked.
    stuck: AtomicUsize,
    /// How many media there were before.
    medium: AtomicUsize,
}

impl Background {
    /// Whether visitors must not begin: the host may still write for commands that are no more, and nothing newer shall be
    /// overtaken; or it has not answered for very many. The unit's own commands wait, see [`Self::calm`].
    pub(crate) fn is_busy(&self) -> bool {
        self.is_late() || self.is_stuck()
    }

    /// Whether there are too many commands that have left while the host works for them, to have more.
    fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Acquire) >= MAX_STUCK
    }

    /// Whether the host still works for commands that have left.
    pub(crate) fn has_left_behind(&self) -> bool {
        self.stuck.load(Ordering::Acquire) > 0
    }

    /// To wait until the host may write nothing more for commands that are no more, and does not work for very many of them.
    pub(crate) fn calm(&self) -> Calm<'_> {
        Calm { background: self, ticket: None, answered: false }
    }

    /// To wait until the host has answered all that it was asked for commands that are no more.
    pub(crate) fn answered(&self) -> Calm<'_> {
        Calm { answered: true, ..self.calm() }
    }

    fn is_late(&self) -> bool {
        self.late.load(Ordering::Acquire) > 0
    }

    /// The number of the medium, for commands that begin.
    pub(crate) fn medium(&self) -> usize {
        self.medium.load(Ordering::Acquire)
    }

    /// Another medium has come, at which the host works for nobody yet.
    pub(crate) fn exchange(&self) {
        let mut state = self.lock();
        self.medium.fetch_add(1, Ordering::AcqRel);
        self.stuck.store(0, Ordering::Release);
        let held = std::mem::take(&mut state.held);
        drop(state);
        held.into_values().for_each(Waker::wake);
    }

    /// A command has left that the host still works for.
    fn stuck_at(&self, medium: usize) {
        let _state = self.lock();
        if self.medium() == medium {
            self.stuck.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// The host has done with one.
    fn done_at(&self, medium: usize) {
        let state = self.lock();
        let counts = self.medium() == medium;
        let before = if counts { self.stuck.fetch_sub(1, Ordering::AcqRel) } else { 0 };
        drop(state);
        self.over(before);
    }

    /// One of so many is over.
    fn over(&self, before: usize) {
        // Those who wait do so for the last one, or for the one that makes them few enough.
        if !matches!(before, 1 | MAX_STUCK) {
            return;
        }
        let held = std::mem::take(&mut self.lock().held);
        held.into_values().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A command that waits until nothing can land late, and few enough are unanswered.
pub(crate) struct Calm<'a> {
    background: &'a Background,
    ticket: Option<NonZeroU64>,
    /// And until the host has answered everything.
    answered: bool,
}

impl Calm<'_> {
    fn is_over(&self) -> bool {
        let is_asked = || self.answered && self.background.stuck.load(Ordering::Acquire) > 0;
        !(self.background.is_busy() || is_asked())
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_over() {
            return Poll::Ready(());
        }
        // Dropped after the lock: a waker may be the last that a task has.
        let _before;
        let mut state = self.background.lock();
        // Whoever was the last before this lock has woken nobody of here.
        if self.is_over() {
            return Poll::Ready(());
        }
        let ticket = *self.ticket.get_or_insert_with(|| {
            state.last += 1;
            NonZeroU64::new(state.last).unwrap_or(NonZeroU64::MAX)
        });
        _before = state.held.insert(ticket, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Calm<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let _waker = self.background.lock().held.remove(&ticket);
        }
    }
}

/// A piece of background work, for as long as it lives.
pub(crate) struct Working {
    // Dropped in this order: whoever waits for the end may rely on the unit not being held any more.
    unit: Arc<Unit>,
    place: Place,
    medium: Medium,
}

/// The medium that a command began at.
pub(crate) struct Medium {
    /// How many there were before.
    pub(crate) number: usize,
    /// Held until the host has done with it, where it may be taken out of the unit: whoever closes it waits for that.
    pub(crate) held: Option<Arc<Image>>,
}

struct Place(Arc<Background>);

impl Working {
    /// Work on `unit` begins.
    pub(crate) fn on(unit: Arc<Unit>) -> Self {
        let medium = unit.medium();
        Self::at(unit, medium)
    }

    /// Work that began at a medium of `unit`, which may have gone.
    pub(crate) fn at(unit: Arc<Unit>, medium: Medium) -> Self {
        let background = unit.background.clone();
        background.lock().running += 1;
        Self { unit, place: Place(background), medium }
    }

    /// Whether it was told to end.
    pub(crate) fn must_end(&self) -> bool {
        self.place.0.lock().ending
    }

    /// A command is dropped, with the operations of `scope` perhaps not at their end. While the host may still write for it
    /// the unit is busy, and held: whoever detaches it waits for that.
    pub(crate) fn leave_behind(self, io: &Io, scope: Scope) {
        if io.is_over(scope) {
            return;
        }
        let (background, medium) = (self.place.0.clone(), self.medium.number);
        let (late, thread) = (!io.is_settled(scope), io.clone());
        background.late.fetch_add(usize::from(late), Ordering::AcqRel);
        background.stuck_at(medium);
        io.spawn(async move {
            let mut working = self;
            thread.settled(scope).await;
            if late {
                background.over(background.late.fetch_sub(1, Ordering::AcqRel));
            }
            // Files are held, and locked, by what reads them.
            let _ = thread.at_most(SETTLE, thread.over(scope)).await;
            let held = working.medium.held.take();
            drop(working);
            thread.over(scope).await;
            background.done_at(medium);
            if let Some(held) = held {
                let_go(&thread, held).await;
            }
        });
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

/// Does `work`, which is a part of another unit's command, with `unit`, on which the operations of `scope` work. When
/// `unit` is detached the work is dropped, and once the host has let go of the unit the command hears `gone`. A command
/// that is dropped meanwhile leaves the unit as a command of its own would.
pub(crate) async fn visit<T>(
    io: &Io,
    unit: &Arc<Unit>,
    scope: Scope,
    gone: Failure,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut visit = Visit { io, scope, working: Some(Working::on(unit.clone())) };
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
        io.settled(scope).await;
        // Files are held, and locked, by what reads them.
        let _ = io.at_most(SETTLE, io.over(scope)).await;
    }
    if let Some(working) = visit.working.take()
        && done.is_some()
    {
        // The other unit may have gone, with something under way here.
        working.leave_behind(io, scope);
    }
    done.unwrap_or(Err(gone))
}

/// A visitor, until it has let go of the unit.
struct Visit<'a> {
    io: &'a Io,
    scope: Scope,
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
            working.leave_behind(self.io, self.scope);
        }
    }
}

/// Keeps what protects writes of the work that runs now until none of them can land any more, also when that work is
/// dropped.
pub(crate) struct Lasting<'a, T: 'static> {
    io: &'a Io,
    scope: Scope,
    what: Option<T>,
}

impl<'a, T> Lasting<'a, T> {
    pub(crate) fn new(io: &'a Io, what: T) -> Self {
        Self { io, scope: io.current_scope(), what: Some(what) }
    }
}

impl<T> Drop for Lasting<'_, T> {
    fn drop(&mut self) {
        if !self.io.is_settled(self.scope)
            && let Some(what) = self.what.take()
        {
            let (io, scope) = (self.io.clone(), self.scope);
            self.io.spawn(async move {
                io.settled(scope).await;
                drop(what);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Count;

    /// A disc that hangs has been taken out.
    #[test]
    fn what_is_left_behind_at_another_medium_does_not_count() {
        let background = Background::default();
        let first = background.medium();
        background.stuck_at(first);
        assert!(background.has_left_behind());
        let (count, waker) = Count::waker();
        let mut calm = background.answered();
        assert!(calm.poll(&mut Context::from_waker(&waker)).is_pending());
        background.exchange();
        assert_eq!(count.get(), 1);
        assert!(!background.has_left_behind() && calm.is_over());
        background.stuck_at(first);
        assert!(!background.has_left_behind(), "it began there, and was ended later");
        let second = background.medium();
        background.stuck_at(second);
        background.done_at(first);
        background.done_at(first);
        assert!(background.has_left_behind(), "those are none of it");
        background.done_at(second);
        assert!(!background.has_left_behind());
    }

    /// Each command that waits is woken once, when all has landed, and leaves nothing when it is ended.
    #[test]
    fn what_waits_is_woken_when_all_has_landed() {
        let background = Background::default();
        background.late.store(2, Ordering::Release);
        let (count, waker) = Count::waker();
        let mut calms: Vec<_> = (0..100).map(|_| background.calm()).collect();
        let poll = |calm: &mut Calm<'_>| calm.poll(&mut Context::from_waker(&waker)).is_ready();
        for calm in calms.iter_mut().chain([&mut background.calm()]) {
            assert!(!poll(calm) && !poll(calm));
        }
        drop(calms.split_off(50));
        assert_eq!(background.lock().held.len(), 50);
        background.over(background.late.fetch_sub(1, Ordering::AcqRel));
        assert_eq!(count.get(), 0);
        background.over(background.late.fetch_sub(1, Ordering::AcqRel));
        assert_eq!(count.get(), 50);
        assert!(calms.iter_mut().all(poll));
    }
}
