//! Where vCPU threads and the worker meet: registers, frames on their way in, completions on their way out.
//!
//! A write to a queue port costs a vCPU the exit, a short lock, and a signal when the worker is not busy anyway. A
//! reset moves on to the next epoch: what belongs to an older one is neither completed nor posted, and READY shows
//! only when none of it is in flight any more.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use devices::bus::BusDevice;
use devices::mem::Dma;
use devices::pci::{Interrupt, InterruptMode, RegisterPage};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::registers::{Effect, Registers, frame_address};
use super::ring::ReplyRing;
use crate::differences::{Difference, Differences};
use crate::limits::Limits;
use crate::model::Model;
use crate::spec::{QueueInfo, State, Status, register};

/// After how long a reset of the machine says that it still waits; after twice as long again, and so on.
const SLOW_RESET: Duration = Duration::from_secs(5);
/// All of the board's interrupts.
const VECTOR: u16 = 0;

/// What the port needs of the rest of the adapter.
pub(crate) trait Adapter: Send + Sync {
    /// Ends all commands early, on the I/O thread; calls [`Port::aborted`] when nothing is in flight.
    fn abort(&self, port: Arc<Port>);
    /// Ends all commands early; they complete.
    fn cancel(&self);
    /// The firmware starts anew.
    fn restart(&self);
    /// Whether the driver is one that recovers the adapter, and gives it up when disks do not answer soon after that.
    fn hurry(&self, hurried: bool);
    /// The disks that the host does not answer for, which hold a reset up; empty when there is none.
    fn unfinished(&self) -> String;
}

/// A frame that is done with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) epoch: u64,
    /// What to post; `None` when there is nothing to post.
    pub(crate) context: Option<u64>,
    /// When the frame was taken from the queue.
    pub(crate) taken: Instant,
}

struct Inbound {
    frames: Vec<u64>,
    open: bool,
    /// The worker wants the doorbell for the next frame; otherwise it looks by itself.
    armed: bool,
}

struct Inner {
    registers: Registers,
    ring: Option<ReplyRing>,
    /// The firmware starts anew when everything is quiet; else it only waits for the next driver.
    restarting: bool,
    /// The I/O thread is ending commands.
    aborting: bool,
    /// The controller was shut down, and no driver has come since.
    shut_down: bool,
}

/// The port of one adapter.
pub(crate) struct Port {
    this: Weak<Self>,
    model: Model,
    differences: Differences,
    dma: Dma,
    adapter: Arc<dyn Adapter>,
    doorbell: Arc<EventFd>,
    page: Arc<RegisterPage>,
    inbound: Mutex<Inbound>,
    /// Whether there are frames in `inbound`: a hint for a worker that looks often.
    waiting: AtomicBool,
    inner: Mutex<Inner>,
    epoch: AtomicU64,
    in_flight: AtomicU32,
    /// There are completions that the reply ring had no room for.
    holding: AtomicBool,
    closed: AtomicBool,
    quiet: Condvar,
    interrupt: OnceLock<Interrupt>,
}

impl Port {
    pub(crate) fn new(
        limits: Limits,
        dma: Dma,
        adapter: Arc<dyn Adapter>,
        differences: Differences,
    ) -> std::io::Result<Arc<Self>> {
        let model = limits.model();
        let doorbell = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let frames = Vec::with_capacity(Self::queue_limit(model));
        let page = Arc::new(RegisterPage::new()?);
        let registers = Registers::new(limits, page.clone(), differences);
        let inner = Inner { registers, ring: None, restarting: false, aborting: false, shut_down: false };
        Ok(Arc::new_cyclic(|this| Self {
            this: this.clone(),
            model,
            differences,
            dma,
            adapter,
            doorbell,
            page,
            inbound: Mutex::new(Inbound { frames, open: true, armed: true }),
            waiting: AtomicBool::new(false),
            inner: Mutex::new(inner),
            epoch: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            holding: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            quiet: Condvar::new(),
            interrupt: OnceLock::new(),
        }))
    }

    /// Frames that wait for the worker at most: a correct driver has no more in flight.
    pub(crate) fn queue_limit(model: Model) -> usize {
        usize::from(model.max_commands()) + 8
    }

    /// Says how interrupts leave. Once, before the guest runs.
    pub(crate) fn connect(&self, interrupt: Interrupt) {
        let _ = self.interrupt.set(interrupt);
    }

    pub(crate) fn model(&self) -> Model {
        self.model
    }

    pub(crate) fn dma(&self) -> &Dma {
        &self.dma
    }

    pub(crate) fn doorbell(&self) -> &Arc<EventFd> {
        &self.doorbell
    }

    /// What the registers read.
    pub(crate) fn page(&self) -> &Arc<RegisterPage> {
        &self.page
    }

    /// Wakes the worker.
    pub(crate) fn ring_doorbell(&self) {
        // Fails only when the counter is full: then the worker wakes anyway.
        let _ = self.doorbell.write(1);
    }

    /// The time between two resets.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Takes the adapter down for good.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let mut inbound = lock(&self.inbound);
        inbound.open = false;
        inbound.frames.clear();
        drop(inbound);
        self.ring_doorbell();
        // Nobody waits for a reset of what is no more.
        drop(lock(&self.inner));
        self.quiet.notify_all();
    }

    fn submit(&self, address: u64) {
        let mut inbound = lock(&self.inbound);
        if !inbound.open {
            return;
        }
        if inbound.frames.len() >= Self::queue_limit(self.model) {
            drop(inbound);
            devices::log_limited!(warn, "megasas: more frames than the adapter takes: {address:#x} dropped");
            return;
        }
        inbound.frames.push(address);
        self.waiting.store(true, Ordering::Relaxed);
        let armed = std::mem::take(&mut inbound.armed);
        drop(inbound);
        if armed {
            self.ring_doorbell();
        }
    }

    /// Whether frames wait, as far as can be seen without the lock.
    pub(crate) fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Asks for the doorbell with the next frame; false when there are frames already.
    pub(crate) fn arm(&self) -> bool {
        let mut inbound = lock(&self.inbound);
        inbound.armed = inbound.frames.is_empty();
        inbound.armed
    }

    /// Moves the frames that wait to `batch`, which is empty; they are in flight from here on. Returns their epoch.
    pub(crate) fn take(&self, batch: &mut Vec<u64>) -> u64 {
        let mut inbound = lock(&self.inbound);
        std::mem::swap(batch, &mut inbound.frames);
        self.waiting.store(false, Ordering::Relaxed);
        self.in_flight.fetch_add(batch.len() as u32, Ordering::AcqRel);
        self.epoch()
    }

    /// Whether INIT came, which the firmware's driver does not send.
    pub(crate) fn is_initialised(&self) -> bool {
        lock(&self.inner).ring.is_some()
    }

    /// Puts a held frame in flight again, unless it is of an older epoch.
    pub(crate) fn resume(&self, epoch: u64) -> bool {
        let _inbound = lock(&self.inbound);
        let current = self.epoch() == epoch;
        if current {
            self.in_flight.fetch_add(1, Ordering::AcqRel);
        }
        current
    }

    /// Frames in flight.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Acquire)
    }

    /// INIT: the reply ring of `info`, which the frame of `epoch` brought. Once until the next reset.
    pub(crate) fn initialise(&self, epoch: u64, info: &QueueInfo) -> Result<(), Status> {
        let mut inner = lock(&self.inner);
        if self.epoch() != epoch {
            return Err(Status::WrongState);
        }
        if inner.ring.is_some() && self.differences.happens(Difference::InitTwice) {
            return Ok(());
        }
        let ready = inner.registers.state() == State::Ready && !inner.registers.is_quiescing();
        if !ready {
            return Err(Status::WrongState);
        }
        inner.ring = Some(ReplyRing::open(&self.dma, info, self.model.max_commands())?);
        inner.shut_down = false;
        inner.registers.operate();
        Ok(())
    }

    /// Takes what is done and posts it; returns whether anything was posted, which [`Self::signal`] tells the driver.
    pub(crate) fn complete(&self, done: &mut Vec<Done>) -> bool {
        let mut inner = lock(&self.inner);
        let epoch = self.epoch();
        let dropped = self.drops(&inner, done, epoch);
        let Inner { ring, .. } = &mut *inner;
        let count = done.len() as u32;
        let posts = |done: &Done| done.epoch == epoch && !dropped;
        let contexts = done.drain(..).filter(posts).filter_map(|done| done.context);
        let posted = match ring {
            Some(ring) => ring.post(&self.dma, contexts),
            // In READY there is nowhere to post to.
            None => {
                drop(contexts);
                Ok(false)
            }
        };
        let posted = posted.unwrap_or_else(|error| {
            devices::log_limited!(warn, "megasas: {error}; the firmware is in FAULT");
            self.fault_locked(&mut inner);
            false
        });
        let holding = inner.ring.as_ref().is_some_and(ReplyRing::holds_back);
        self.holding.store(holding, Ordering::Relaxed);
        self.in_flight.fetch_sub(count, Ordering::AcqRel);
        self.finish(&mut inner);
        posted
    }

    /// Whether what is done is not told of where QEMU's board would not tell of it.
    fn drops(&self, inner: &Inner, done: &[Done], epoch: u64) -> bool {
        let masked = inner.ring.is_some() && inner.registers.mask() == u32::MAX;
        if !masked && !inner.shut_down {
            return false;
        }
        let posts = done.iter().any(|done| done.epoch == epoch && done.context.is_some());
        if posts && inner.shut_down {
            self.differences.happens(Difference::AfterShutdown);
        }
        posts && masked && self.differences.happens(Difference::MaskedCompletions)
    }

    /// Whether the last [`Self::complete`] left completions for which the reply ring has no room.
    pub(crate) fn is_holding(&self) -> bool {
        self.holding.load(Ordering::Relaxed)
    }

    /// Interrupts for what was posted, unless the driver has taken all of it in the meantime.
    pub(crate) fn signal(&self) {
        let mut inner = lock(&self.inner);
        let Inner { registers, ring, .. } = &mut *inner;
        if ring.as_ref().is_some_and(|ring| ring.has_unread(&self.dma)) {
            registers.set_reply();
            if registers.interrupts() {
                self.notify();
            }
        }
    }

    /// The controller is being shut down, and the driver is about to hear of it: what waits is of the time before.
    pub(crate) fn drop_waiting(&self, epoch: u64) {
        let mut inbound = lock(&self.inbound);
        if self.epoch() == epoch {
            self.clear(&mut inbound);
        }
    }

    /// The controller was shut down: what is still in flight ends as at a reset, and READY shows when it has; what was posted
    /// can still be seen. Frames that a driver sends as soon as it hears of the end are taken, as before INIT, while nothing is
    /// in flight.
    pub(crate) fn retire(&self, epoch: u64) {
        let mut inner = lock(&self.inner);
        if self.epoch() == epoch {
            let mut inbound = lock(&self.inbound);
            let open = inbound.open && self.in_flight() == 0;
            if !open {
                self.clear(&mut inbound);
            }
            let ring = inner.ring.take().filter(|_| self.differences.has(Difference::AfterShutdown));
            self.end_epoch(&mut inner, inbound, open);
            (inner.ring, inner.shut_down) = (ring, true);
            self.adapter.hurry(false);
            inner.registers.retire();
            inner.restarting = false;
            self.abort(&mut inner);
        }
    }

    /// The firmware fails: FAULT, with the interrupt that tells drivers to recover.
    pub(crate) fn fault(&self) {
        self.fault_locked(&mut lock(&self.inner));
    }

    fn fault_locked(&self, inner: &mut Inner) {
        let mask = inner.registers.mask();
        self.begin(inner, State::Fault, false);
        inner.registers.keep_mask(mask);
        inner.registers.set_state_change();
        if inner.registers.interrupts() {
            self.notify();
        }
    }

    /// The I/O thread has ended what it could.
    pub(crate) fn aborted(&self) {
        let mut inner = lock(&self.inner);
        inner.aborting = false;
        self.finish(&mut inner);
    }

    /// Back to power-on; returns when nothing of the time before is in flight, or the adapter is taken down.
    pub(crate) fn reset_and_wait(&self) {
        let mut inner = lock(&self.inner);
        self.begin(&mut inner, State::Ready, false);
        self.wait(inner, "the reset", None);
    }

    /// Bus mastering is off: as [`Self::reset_and_wait`], because when it returns the guest hands its memory over to others. But
    /// for `limit` at most: guests make no other access to any configuration space while one lasts.
    pub(crate) fn quiesce(&self, limit: Duration) {
        let mut inner = lock(&self.inner);
        self.begin(&mut inner, State::Ready, false);
        if !self.wait(inner, "taking bus mastering away", Some(limit)) {
            devices::log_limited!(
                error,
                "megasas: bus mastering is off, but the host has not answered{}: what it has begun may still move data to or from \
                 the guest's memory; disks with `bounce = true` do not",
                self.whom()
            );
        }
    }

    /// Waits until everything is quiet, for `limit` at most; returns whether it is, or the adapter was taken down.
    fn wait<'a>(&'a self, mut inner: MutexGuard<'a, Inner>, what: &str, limit: Option<Duration>) -> bool {
        let (begin, mut patience) = (Instant::now(), SLOW_RESET);
        let mut word = patience;
        while inner.registers.is_quiescing() && !self.is_closed() {
            let waited = begin.elapsed();
            let left = limit.map_or(Duration::MAX, |limit| limit.saturating_sub(waited));
            if left.is_zero() {
                return false;
            }
            if waited >= word {
                drop(inner);
                devices::log_limited!(
                    warn,
                    "megasas: {what} waits for the host, which does not answer{}",
                    self.whom()
                );
                patience *= 2;
                word = waited + patience;
                inner = lock(&self.inner);
                continue;
            }
            let pause = left.min(word - waited);
            (inner, _) = self.quiet.wait_timeout(inner, pause).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// The disks that are waited for. None is known where the disk has been detached, or the host keeps the I/O thread itself.
    fn whom(&self) -> String {
        let disks = self.adapter.unfinished();
        if disks.is_empty() { disks } else { format!(" for {disks}") }
    }

    /// Begins a reset that ends in READY or FAULT; `recovers` says that the driver goes on with what it has.
    fn begin(&self, inner: &mut Inner, state: State, recovers: bool) {
        let mut inbound = lock(&self.inbound);
        self.clear(&mut inbound);
        self.end_epoch(inner, inbound, false);
        self.adapter.hurry(recovers);
        inner.registers.begin(state);
        inner.restarting = true;
        self.deassert();
        self.abort(inner);
    }

    fn clear(&self, inbound: &mut Inbound) {
        inbound.frames.clear();
        self.waiting.store(false, Ordering::Relaxed);
    }

    /// No frame of this time is posted any more, and new ones are taken if `open`.
    fn end_epoch(&self, inner: &mut Inner, mut inbound: MutexGuard<'_, Inbound>, open: bool) {
        inbound.open = open;
        self.epoch.fetch_add(1, Ordering::AcqRel);
        drop(inbound);
        (inner.ring, inner.shut_down) = (None, false);
    }

    /// Ends what is in flight.
    fn abort(&self, inner: &mut Inner) {
        if self.in_flight() > 0
            && !inner.aborting
            && let Some(this) = self.this.upgrade()
        {
            inner.aborting = true;
            self.adapter.abort(this);
        }
        self.finish(inner);
    }

    /// Ends a reset or a shutdown once nothing is left of the time before.
    fn finish(&self, inner: &mut Inner) {
        if !inner.registers.is_quiescing() || inner.aborting || self.in_flight() > 0 {
            return;
        }
        // READY comes last: the driver may see it without the lock.
        if inner.registers.state() == State::Ready {
            if inner.restarting {
                self.adapter.restart();
            }
            lock(&self.inbound).open = !self.is_closed();
        }
        inner.registers.quiet();
        self.quiet.notify_all();
    }

    /// Makes the wire follow the registers after the way of interrupting changed.
    pub(crate) fn refresh_interrupt(&self) {
        let inner = lock(&self.inner);
        if self.interrupt.get().is_some_and(|interrupt| interrupt.mode() == InterruptMode::Intx) {
            self.drive(&inner);
        }
    }

    fn drive(&self, inner: &Inner) {
        if inner.registers.interrupts() { self.notify() } else { self.deassert() }
    }

    fn notify(&self) {
        if let Some(interrupt) = self.interrupt.get() {
            interrupt.notify(VECTOR);
        }
    }

    fn deassert(&self) {
        if let Some(interrupt) = self.interrupt.get() {
            interrupt.deassert_intx();
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        if offset == register::INBOUND_QUEUE_PORT {
            // The way of every command: no lock but that of the queue.
            return self.submit(frame_address(value));
        }
        let mut inner = lock(&self.inner);
        match inner.registers.write(offset, value) {
            Effect::None => {}
            Effect::Interrupt => self.interrupt_changed(&inner, offset),
            Effect::Submit(address) => {
                drop(inner);
                self.submit(address);
            }
            Effect::Reset => self.begin(&mut inner, State::Ready, false),
            Effect::AdapterReset => self.begin(&mut inner, State::Ready, true),
            Effect::Stop => self.begin(&mut inner, State::Fault, false),
            Effect::Cancel => self.adapter.cancel(),
        }
    }

    fn interrupt_changed(&self, inner: &Inner, offset: u64) {
        if !inner.registers.interrupts() {
            self.deassert();
        } else if offset == register::OUTBOUND_INTR_MASK {
            // Also as a message: nobody got one while it was masked.
            self.notify();
        }
        if inner.ring.as_ref().is_some_and(ReplyRing::holds_back) {
            self.ring_doorbell();
        }
    }
}

/// The registers in a BAR. Only whole dwords can be written; any part can be read.
pub(crate) struct Window(pub(crate) Arc<Port>);

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let inner = lock(&self.0.inner);
        _ = inner.registers.read_by_guest(offset & !3);
        for (byte, at) in data.iter_mut().zip(offset..) {
            let value = inner.registers.read(at & !3).to_le_bytes();
            *byte = value.get((at & 3) as usize).copied().unwrap_or(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Ok(bytes) = data.try_into()
            && offset.is_multiple_of(4)
        {
            self.0.write_register(offset, u32::from_le_bytes(bytes));
        }
    }

    fn name(&self) -> &str {
        "megasas"
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
