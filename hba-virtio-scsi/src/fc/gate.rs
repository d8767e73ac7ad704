//! The gate before the targets (section 6): commands to a port that was lost a moment ago wait, in order, until it is back or given up.
//!
//! A command that finds the gate open has read one atomic number. One that waits is a future, and has no thread and nothing of the host.

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
    /// Whether commands go on at once: the port is online and none waits for its turn.
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
    /// It was ended.
    fault: Option<TransportFault>,
}

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

    /// What becomes at once of a command to `target`; `None` when it waits. See [`Self::pass`] for `patient`.
    pub(crate) fn verdict(&self, target: u8, patient: bool) -> Option<Result<(), TransportFault>> {
        self.lock().verdict(target, patient, None)
    }

    /// The port of `target` is like this now. Commands that wait go on, or fail.
    pub(crate) fn set(&self, target: u8, port: RemoteState) {
        let mut state = self.lock();
        if let Some(place) = state.ports.get_mut(usize::from(target)) {
            *place = Some(port);
        }
        let wakers = match port {
            RemoteState::Online => state.first(target).into_iter().collect(),
            RemoteState::Blocked => Vec::new(),
            RemoteState::Lost => state.held_by(target).map(|(_, held)| held.waker.clone()).collect(),
        };
        self.show(&state, target);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Waits until a command may go to its target. `patient`: it waits for a port that may be back soon, which is for drivers that are not
    /// told of ports.
    ///
    /// # Errors
    /// The port is lost, or the command was ended meanwhile.
    pub(crate) async fn pass(
        &self,
        task: TaskId,
        from: Origin<'_>,
        patient: bool,
    ) -> Result<(), TransportFault> {
        let mut place = Place { gate: self, target: task.target, serial: None };
        poll_fn(|cx| self.poll(&mut place, task, from, patient, cx)).await
    }

    fn poll(
        &self,
        place: &mut Place<'_>,
        task: TaskId,
        from: Origin<'_>,
        patient: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), TransportFault>> {
        let state = &mut *self.lock();
        let held = place.serial.and_then(|serial| state.held.get_mut(&(task.target, serial)));
        if let Some(fault) = held.and_then(|held| held.fault) {
            return Poll::Ready(Err(fault));
        }
        if let Some(verdict) = state.verdict(task.target, patient, place.serial) {
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
        let held = Held { task, queue: from.queue, waker: cx.waker().clone(), fault: None };
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
        let mut state = self.lock();
        let mut wakers = Vec::new();
        for held in state.held.values_mut().filter(|held| held.fault.is_none() && select(held)) {
            held.fault = Some(fault);
            wakers.push(held.waker.clone());
        }
        drop(state);
        let count = wakers.len();
        wakers.into_iter().for_each(Waker::wake);
        count
    }

    /// Whether a command waits that `select` wants.
    pub(crate) fn holds(&self, select: impl Fn(&TaskId) -> bool) -> bool {
        self.lock().held.values().any(|held| held.fault.is_none() && select(&held.task))
    }

    /// The HBA goes: nothing waits here any more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.end(|_| true, TransportFault::Reset);
    }

    fn show(&self, state: &State, target: u8) {
        let open = state.port(target) == Some(RemoteState::Online) && state.held_by(target).next().is_none();
        if let Some(place) = self.open.get(usize::from(target)) {
            place.store(open, Ordering::Release);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn port(&self, target: u8) -> Option<RemoteState> {
        self.ports.get(usize::from(target)).copied().flatten()
    }

    /// What becomes at once of a command that has this place among those that wait, or none yet.
    fn verdict(&self, target: u8, patient: bool, place: Option<u64>) -> Option<Result<(), TransportFault>> {
        if self.closed {
            return Some(Err(TransportFault::Reset));
        }
        match self.port(target) {
            None => Some(Err(TransportFault::NoTarget)),
            Some(RemoteState::Lost) => Some(Err(TransportFault::PathLost)),
            Some(RemoteState::Blocked) => (!patient).then_some(Err(TransportFault::PathLost)),
            Some(RemoteState::Online) => {
                let first = self.held_by(target).next().map(|(serial, _)| serial);
                (first == place).then_some(Ok(()))
            }
        }
    }

    fn held_by(&self, target: u8) -> impl Iterator<Item = (u64, &Held)> {
        let all = self.held.range((target, 0)..=(target, u64::MAX));
        all.map(|(&(_, serial), held)| (serial, held))
    }

    fn first(&self, target: u8) -> Option<Waker> {
        self.held_by(target).next().map(|(_, held)| held.waker.clone())
    }
}

/// The place of a command that may wait.
struct Place<'a> {
    gate: &'a Gate,
    target: u8,
    serial: Option<u64>,
}

/// The command goes on, or was given up: it is the next one's turn.
impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some(serial) = self.serial else { return };
        let mut state = self.gate.lock();
        state.held.remove(&(self.target, serial));
        let next = (state.port(self.target) == Some(RemoteState::Online)).then(|| state.first(self.target));
        self.gate.show(&state, self.target);
        drop(state);
        if let Some(waker) = next.flatten() {
            waker.wake();
        }
    }
}
