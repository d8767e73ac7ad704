//! One virtqueue as vCPU threads and its worker share it.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::mem::Dma;
use devices::scsi::{Lun, Tag};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::ring::{Chain, ChainError, MAX_CHAIN, Ring, RingAddress, RingError};
use crate::spec::NO_VECTOR;

/// Which command a chain carries, for task management to find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TaskId {
    pub(crate) target: u8,
    pub(crate) lun: Lun,
    pub(crate) tag: Tag,
}

/// A chain that the device has taken and not given back.
#[derive(Clone, Copy, Debug)]
struct Held {
    serial: u64,
    task: Option<TaskId>,
}

/// A chain on its way back to the driver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) head: u16,
    /// Bytes written to the writable part; `None` when the driver is not to get the chain back.
    pub(crate) len: Option<u32>,
}

/// What [`Queue::take`] found.
#[derive(Debug)]
pub(crate) enum Next<T> {
    /// A chain, and what was made of it.
    Chain(u16, T),
    /// Nothing more; the driver will ring.
    Empty,
    /// The queue does not run.
    Stopped,
}

/// What follows from chains given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flushed {
    /// The driver may want an interrupt: [`Queue::wants_interrupt`] tells.
    pub(crate) published: bool,
    /// The queue is stopped and nothing of it is in flight any more.
    pub(crate) drained: bool,
}

/// A task found by [`Queue::tasks`]: stays valid when the descriptor is used again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TaskMark {
    head: u16,
    serial: u64,
}

/// A position in the available ring, see [`Queue::backlog`], in one life of the queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backlog {
    life: u64,
    position: u16,
}

/// One virtqueue. The lock is taken by its worker for the time of one chain or one batch of completions, and by
/// vCPU threads when they start and stop the queue; no two queues share one.
pub(crate) struct Queue {
    dma: Dma,
    doorbell: Arc<EventFd>,
    vector: AtomicU16,
    running: AtomicBool,
    /// Where the driver's available index is while the queue runs, else [`NOWHERE`]; and how far chains were taken. For
    /// looks without the lock.
    index_at: AtomicU64,
    taken: AtomicU16,
    state: Mutex<State>,
}

/// No guest address: the whole index would have to fit below.
const NOWHERE: u64 = u64::MAX;

struct State {
    ring: Option<Ring>,
    held: Box<[Option<Held>]>,
    in_flight: u16,
    serial: u64,
    /// How often the queue was started.
    life: u64,
    /// An error ended this life of the queue.
    failed: bool,
}

impl Queue {
    pub(crate) fn new(dma: Dma) -> std::io::Result<Self> {
        let held = vec![None; MAX_CHAIN].into();
        let state = State { ring: None, held, in_flight: 0, serial: 0, life: 0, failed: false };
        Ok(Self {
            dma,
            doorbell: Arc::new(EventFd::new(EFD_NONBLOCK)?),
            vector: AtomicU16::new(NO_VECTOR),
            running: AtomicBool::new(false),
            index_at: AtomicU64::new(NOWHERE),
            taken: AtomicU16::new(0),
            state: Mutex::new(state),
        })
    }

    /// What the driver's notifications signal.
    pub(crate) fn doorbell(&self) -> &Arc<EventFd> {
        &self.doorbell
    }

    /// Wakes the worker.
    pub(crate) fn ring_doorbell(&self) {
        // It fails only when the counter is full: then the worker wakes anyway.
        let _ = self.doorbell.write(1);
    }

    /// The interrupt vector of the queue.
    pub(crate) fn vector(&self) -> u16 {
        self.vector.load(Ordering::Relaxed)
    }

    pub(crate) fn set_vector(&self, vector: u16) {
        self.vector.store(vector, Ordering::Relaxed);
    }

    /// Whether chains are being taken. A hint without the lock.
    pub(crate) fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    /// Starts to take chains. Nothing of an earlier life may be in flight.
    pub(crate) fn start(&self, at: RingAddress, event_idx: bool) -> Result<(), RingError> {
        let ring = Ring::new(at, event_idx)?;
        let mut state = self.lock();
        self.taken.store(ring.position(), Ordering::Relaxed);
        self.index_at.store(ring.index_at(), Ordering::Relaxed);
        (state.ring, state.failed) = (Some(ring), false);
        state.life = state.life.wrapping_add(1);
        self.running.store(true, Ordering::Relaxed);
        drop(state);
        // Chains may have been made available before.
        self.ring_doorbell();
        Ok(())
    }

    /// Somebody else has the ring, and it is in flight as a whole until [`Self::returned`].
    pub(crate) fn lend(&self) {
        self.lock().in_flight = 1;
    }

    /// Nobody else has the ring any more.
    pub(crate) fn returned(&self) {
        self.lock().in_flight = 0;
    }

    /// Ends taking and giving back; returns whether nothing is in flight.
    pub(crate) fn stop(&self) -> bool {
        let mut state = self.lock();
        self.halt(&mut state);
        state.failed = false;
        state.in_flight == 0
    }

    /// Ends taking and giving back because of an error.
    pub(crate) fn fail(&self) {
        self.fail_locked(&mut self.lock());
    }

    /// Whether an error ended taking and giving back, and nobody stopped or started the queue since: what its worker says
    /// of it may come after a reset.
    pub(crate) fn has_failed(&self) -> bool {
        self.lock().failed
    }

    fn fail_locked(&self, state: &mut State) {
        self.halt(state);
        state.failed = true;
    }

    fn halt(&self, state: &mut State) {
        state.ring = None;
        self.running.store(false, Ordering::Relaxed);
        self.index_at.store(NOWHERE, Ordering::Relaxed);
    }

    /// Takes the next chain and lets `parse` look at it. When there is none and `arm` is set, asks the driver to
    /// ring for the next one; otherwise [`Queue::arm`] does later.
    ///
    /// The chain is in flight from here until it comes back through [`Queue::flush`].
    pub(crate) fn take<T>(
        &self,
        arm: bool,
        chain: &mut Chain,
        parse: impl FnOnce(&mut Chain, Result<(), ChainError>) -> (T, Option<TaskId>),
    ) -> Result<Next<T>, RingError> {
        let mut state = self.lock();
        let result = state.take(&self.dma, arm, chain, parse);
        match &state.ring {
            Some(ring) if result.is_ok() => self.taken.store(ring.position(), Ordering::Relaxed),
            _ if result.is_ok() => self.halt(&mut state),
            _ => self.fail_locked(&mut state),
        }
        result
    }

    /// Asks the driver to ring for the next chain; true when there is one already.
    pub(crate) fn arm(&self) -> Result<bool, RingError> {
        let mut state = self.lock();
        let result = state.ring.as_mut().map_or(Ok(false), |ring| ring.want_doorbell(&self.dma));
        if result.is_err() {
            self.fail_locked(&mut state);
        }
        result
    }

    /// Whether a chain waits to be taken. A look without the lock, for the queue's worker, which alone takes chains.
    pub(crate) fn has_waiting(&self) -> bool {
        let at = self.index_at.load(Ordering::Relaxed);
        if at == NOWHERE {
            return false;
        }
        // What cannot be read is found out when it is taken.
        let index = self.dma.load_u16(at, Ordering::Acquire);
        index.map_or(true, |index| index != self.taken.load(Ordering::Relaxed))
    }

    /// Tells the driver that its doorbells are not needed while the worker is busy.
    pub(crate) fn suppress_doorbell(&self) -> Result<(), RingError> {
        let mut state = self.lock();
        let result = state.ring.as_mut().map_or(Ok(()), |ring| ring.suppress_doorbell(&self.dma));
        if result.is_err() {
            self.fail_locked(&mut state);
        }
        result
    }

    /// Gives back what is `done`, in order. After [`Queue::stop`] the chains only cease to be in flight.
    pub(crate) fn flush(&self, done: &mut Vec<Done>) -> (Flushed, Result<(), RingError>) {
        let mut state = self.lock();
        let result = state.flush(&self.dma, done);
        if result.is_err() {
            self.fail_locked(&mut state);
        }
        let drained = state.ring.is_none() && state.in_flight == 0;
        let published = *result.as_ref().unwrap_or(&false);
        (Flushed { published, drained }, result.map(|_| ()))
    }

    /// Whether the driver wants an interrupt for what was given back since the last call.
    pub(crate) fn wants_interrupt(&self) -> Result<bool, RingError> {
        let mut state = self.lock();
        let result = state.ring.as_mut().map_or(Ok(false), |ring| ring.wants_interrupt(&self.dma));
        if result.is_err() {
            self.fail_locked(&mut state);
        }
        result
    }

    /// Whether anything is in flight.
    pub(crate) fn is_busy(&self) -> bool {
        self.lock().in_flight > 0
    }

    /// The tasks in flight that `select` wants.
    pub(crate) fn tasks(&self, select: impl Fn(&TaskId) -> bool) -> Vec<TaskMark> {
        let state = self.lock();
        let wanted = |held: &Held| held.task.as_ref().is_some_and(&select);
        let marked = |(head, held): (usize, &Option<Held>)| {
            let held = held.as_ref().filter(|held| wanted(held))?;
            Some(TaskMark { head: head as u16, serial: held.serial })
        };
        state.held.iter().enumerate().filter_map(marked).collect()
    }

    /// Whether any of `tasks` is still in flight.
    pub(crate) fn holds_any(&self, tasks: &[TaskMark]) -> bool {
        let state = self.lock();
        let is_held = |mark: &TaskMark| {
            let held = state.held.get(usize::from(mark.head)).copied().flatten();
            held.is_some_and(|held| held.serial == mark.serial)
        };
        tasks.iter().any(is_held)
    }

    /// The position up to which the driver has made chains available; `None` when all of them are taken.
    pub(crate) fn backlog(&self) -> Option<Backlog> {
        let state = self.lock();
        let ring = state.ring.as_ref()?;
        let waiting = ring.waiting(&self.dma).ok().filter(|&waiting| waiting > 0)?;
        Some(Backlog { life: state.life, position: ring.position().wrapping_add(waiting) })
    }

    /// How many chains of those available at `backlog` are still to be taken; 0 also when they never will be.
    pub(crate) fn left_of(&self, backlog: Backlog) -> u16 {
        let state = self.lock();
        let Some(ring) = state.ring.as_ref().filter(|_| state.life == backlog.life) else { return 0 };
        // Positions wrap; a backlog is at most one ring ahead.
        let left = backlog.position.wrapping_sub(ring.position());
        if left as i16 > 0 { left } else { 0 }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take<T>(
        &mut self,
        dma: &Dma,
        arm: bool,
        chain: &mut Chain,
        parse: impl FnOnce(&mut Chain, Result<(), ChainError>) -> (T, Option<TaskId>),
    ) -> Result<Next<T>, RingError> {
        let Some(ring) = &mut self.ring else { return Ok(Next::Stopped) };
        let taken = match ring.take(dma, chain)? {
            Some(taken) => taken,
            None if !arm => return Ok(Next::Empty),
            None if !ring.want_doorbell(dma)? => return Ok(Next::Empty),
            None => match ring.take(dma, chain)? {
                Some(taken) => taken,
                None => return Err(RingError::Available),
            },
        };
        // A descriptor that is still in use would come back twice: the driver has lost count.
        let slot = self.held.get_mut(usize::from(taken.head)).filter(|slot| slot.is_none());
        let Some(slot) = slot else { return Err(RingError::Head(taken.head)) };
        let (parsed, task) = parse(chain, taken.shape);
        *slot = Some(Held { serial: self.serial, task });
        self.serial = self.serial.wrapping_add(1);
        // Bounded by the number of slots.
        self.in_flight += 1;
        Ok(Next::Chain(taken.head, parsed))
    }

    fn flush(&mut self, dma: &Dma, done: &mut Vec<Done>) -> Result<bool, RingError> {
        let mut result = Ok(());
        for Done { head, len } in done.drain(..) {
            if let Some(slot) = self.held.get_mut(usize::from(head))
                && slot.take().is_some()
            {
                self.in_flight -= 1;
            }
            if let (Some(len), Some(ring), Ok(())) = (len, &mut self.ring, &result) {
                result = ring.give_back(dma, head, len);
            }
        }
        result?;
        let Some(ring) = &mut self.ring else { return Ok(false) };
        ring.publish(dma)?;
        Ok(true)
    }
}
