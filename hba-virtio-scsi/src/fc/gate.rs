//! The gate before the targets (section 6): commands to a port that was lost a moment ago wait until it is back or given up, and then go on
//! in the order in which they came.
//!
//! A command that finds the gate open has read one atomic number. One that waits is a future, and has no thread and nothing of the host.
//! It waits for as long as the fabric says that the port is blocked: see [`RemoteState::Blocked`].

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use devices::scsi::TransportFault;

use super::RemoteState;
use crate::queue::TaskId;

/// The ways to all targets of an HBA.
pub(crate) struct Gate {
    /// Whether commands go on at once: the port is online.
    open: [AtomicBool; 256],
    state: Mutex<State>,
}

struct State {
    /// How the ports are; `None` where there never was one.
    ports: [Option<RemoteState>; 256],
    /// By target, and as they came.
    held: BTreeMap<(u8, u64), Held>,
    serial: u64,
    closed: bool,
}

struct Held {
    task: TaskId,
    /// The queue that it came by.
    queue: u16,
    waker: Waker,
    /// What becomes of it; `None` while it waits.
    verdict: Option<Verdict>,
}

/// A command goes on, or ends.
type Verdict = Result<(), TransportFault>;

/// Where a command comes from: a queue by its number, and whether that runs.
#[derive(Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) queue: u16,
    pub(crate) is_running: &'a dyn Fn() -> bool,
}

impl Gate {
    pub(crate) fn new() -> Self {
        let state = State { ports: [None; 256], held: BTreeMap::new(), serial: 0, closed: false };
        Self { open: [const { AtomicBool::new(false) }; 256], state: Mutex::new(state) }
    }

    /// Whether commands to `target` go on at once.
    pub(crate) fn is_open(&self, target: u8) -> bool {
        self.open.get(usize::from(target)).is_some_and(|open| open.load(Ordering::Acquire))
    }

    /// Whether there is, or was, a port with this number.
    pub(crate) fn knows(&self, target: u8) -> bool {
        self.lock().port(target).is_some()
    }

    /// What becomes at once of a command to `target`; `None` when it waits. `patient`: it waits for a port that may be back soon.
    pub(crate) fn verdict(&self, target: u8, patient: bool) -> Option<Verdict> {
        self.lock().verdict(target, patient)
    }

    /// The port of `target` is like this now. Commands that wait go on, or fail.
    pub(crate) fn set(&self, target: u8, port: RemoteState) {
        let mut state = self.lock();
        if let Some(place) = state.ports.get_mut(usize::from(target)) {
            *place = Some(port);
        }
        if let Some(open) = self.open.get(usize::from(target)) {
            open.store(port == RemoteState::Online, Ordering::Release);
        }
        // All at once: if each waited for the one before it, new ones would come as fast as old ones go, and the gate would not open.
        match port {
            RemoteState::Online => wake(state, |held| held.task.target == target, Ok(())),
            RemoteState::Blocked => 0,
            RemoteState::Lost => {
                wake(state, |held| held.task.target == target, Err(TransportFault::PathLost))
            }
        };
    }

    /// Waits until a command may go to its target.
    ///
    /// # Errors
    /// The port is lost, or the command was ended meanwhile.
    pub(crate) async fn pass(&self, task: TaskId, from: Origin<'_>) -> Verdict {
        let mut place = Place { gate: self, target: task.target, serial: None };
        poll_fn(|cx| self.poll(&mut place, task, from, cx)).await
    }

    fn poll(
        &self,
        place: &mut Place<'_>,
        task: TaskId,
        from: Origin<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Verdict> {
        let state = &mut *self.lock();
        let held = place.serial.and_then(|serial| state.held.get_mut(&(task.target, serial)));
        let verdict = match &held {
            Some(held) => held.verdict,
            None => state.verdict(task.target, true),
        };
        if let Some(verdict) = verdict {
            return Poll::Ready(verdict);
        }
        // Whoever stops it ends afterwards what waits here.
        if !(from.is_running)() {
            return Poll::Ready(Err(TransportFault::Reset));
        }
        let serial = *place.serial.get_or_insert(state.serial);
        if serial == state.serial {
            state.serial += 1;
        }
        let held = Held { task, queue: from.queue, waker: cx.waker().clone(), verdict: None };
        state.held.insert((task.target, serial), held);
        Poll::Pending
    }

    /// Ends the commands that wait and that `select` wants; returns how many.
    pub(crate) fn end(&self, select: impl Fn(&TaskId) -> bool, fault: TransportFault) -> usize {
        self.end_held(|held| select(&held.task), fault)
    }

    /// A queue does not run any more: its commands wait no longer.
    pub(crate) fn queue_stopped(&self, queue: u16) {
        self.end_held(|held| held.queue == queue, TransportFault::Reset);
    }

    fn end_held(&self, select: impl Fn(&Held) -> bool, fault: TransportFault) -> usize {
        wake(self.lock(), select, Err(fault))
    }

    /// Whether a command waits that `select` wants.
    pub(crate) fn holds(&self, select: impl Fn(&TaskId) -> bool) -> bool {
        self.lock().held.values().any(|held| held.verdict.is_none() && select(&held.task))
    }

    /// The HBA goes: nothing waits here any more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.end(|_| true, TransportFault::Reset);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn port(&self, target: u8) -> Option<RemoteState> {
        self.ports.get(usize::from(target)).copied().flatten()
    }

    /// What becomes at once of a command that comes now.
    fn verdict(&self, target: u8, patient: bool) -> Option<Verdict> {
        if self.closed {
            return Some(Err(TransportFault::Reset));
        }
        match self.port(target) {
            None => Some(Err(TransportFault::NoTarget)),
            Some(RemoteState::Lost) => Some(Err(TransportFault::PathLost)),
            Some(RemoteState::Blocked) => (!patient).then_some(Err(TransportFault::PathLost)),
            Some(RemoteState::Online) => Some(Ok(())),
        }
    }
}

/// Has those that wait and that `select` wants go on, or end, in the order in which they came; returns how many.
fn wake(mut state: MutexGuard<'_, State>, select: impl Fn(&Held) -> bool, verdict: Verdict) -> usize {
    let mut wakers = Vec::new();
    for held in state.held.values_mut().filter(|held| held.verdict.is_none() && select(held)) {
        held.verdict = Some(verdict);
        wakers.push(held.waker.clone());
    }
    drop(state);
    let count = wakers.len();
    wakers.into_iter().for_each(Waker::wake);
    count
}

/// The place of a command that may wait.
struct Place<'a> {
    gate: &'a Gate,
    target: u8,
    serial: Option<u64>,
}

/// The command goes on, or was given up.
impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(serial) = self.serial {
            self.gate.lock().held.remove(&(self.target, serial));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use devices::scsi::{Lun, Tag};

    use super::*;

    /// New commands come all the time: the gate opens for them, and what waited goes on beside.
    #[test]
    fn the_gate_opens_at_once_for_all() {
        let gate = Gate::new();
        gate.set(5, RemoteState::Blocked);
        let task = |tag| TaskId { target: 5, lun: Lun([0; 8]), tag: Tag(tag) };
        let from = Origin { queue: 2, is_running: &|| true };
        let cx = &mut Context::from_waker(Waker::noop());
        let (mut a, mut b) = (pin!(gate.pass(task(1), from)), pin!(gate.pass(task(2), from)));
        assert!(a.as_mut().poll(cx).is_pending() && b.as_mut().poll(cx).is_pending());
        assert_eq!(gate.end(|task| task.tag == Tag(1), TransportFault::Aborted), 1);
        gate.set(5, RemoteState::Online);
        assert!(gate.is_open(5));
        // Lost again: what was let go goes on, as what just went has done.
        gate.set(5, RemoteState::Blocked);
        assert!(!gate.is_open(5) && !gate.holds(|_| true));
        assert_eq!(b.as_mut().poll(cx), Poll::Ready(Ok(())));
        assert_eq!(a.as_mut().poll(cx), Poll::Ready(Err(TransportFault::Aborted)));
    }
}
