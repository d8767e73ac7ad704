//! Virtio over PCI (4.1), modern and legacy: the registers, the life of the device, interrupts. Knows no SCSI.
//!
//! ```text
//!   vCPU ── register access ──> Transport ── start, stop ──> Queue <── take, flush ── Worker (I/O thread)
//!                                  ^                                                     |
//!                                  └──────── fail, drained, interrupt ───────────────────┘
//! ```
//! A reset stops the queues at once. When nothing is in flight it is complete before the register write returns:
//! firmware drivers go on without a look at the status. Otherwise the status stays as it was until the last command
//! has ended, and only then reads zero (4.1.4.3.1).

mod bar;
mod common;
mod isr;
mod legacy;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

pub(crate) use bar::{BAR_SIZE, NOTIFY_MULTIPLIER, Window};
pub(crate) use isr::Signal;

use crate::queue::Queue;
use crate::ring::RingAddress;
use crate::spec::{NO_VECTOR, feature, status};
use common::Registers;
use devices::irq::MsiVector;
use isr::Isr;

/// What stands behind the transport.
pub(crate) trait Device: Send + Sync {
    /// Feature bits of the device type on offer.
    fn features(&self) -> u64;
    /// Takes the features that a driver accepts, or says that they make no sense together.
    fn negotiate(&self, features: u64) -> bool;
    /// Reads the device configuration, as far as it belongs to `features`.
    fn read_config(&self, offset: u64, data: &mut [u8], features: u64);
    /// Another one after each change of the configuration.
    fn config_generation(&self) -> u8;
    /// Writes the device configuration.
    fn write_config(&self, offset: u64, data: &[u8]);
    /// A reset has begun with commands in flight, or bus mastering was taken away: end them. Returns at once;
    /// [`Transport::aborted`] says when it is done.
    fn abort(&self, transport: Arc<Transport>);
    /// A queue was stopped alone with commands in flight: ends those that wait for nothing of the host. The rest come to their own end.
    fn queue_stopped(&self, index: u16);
    /// The disks that the host does not answer for, which hold a reset up; empty when there is none.
    fn unfinished(&self) -> String;
    /// Nothing is in flight any more: back to the defaults.
    fn reset(&self);
    /// Feature bits of the transport on offer.
    fn transport_features(&self) -> u64 {
        TRANSPORT_FEATURES
    }
    /// Who serves the rings in place of workers of this process.
    fn server(&self) -> Option<&dyn Server> {
        None
    }
}

/// Serves the rings of all queues in place of workers: the host's kernel.
///
/// Its queues are in flight as a whole while it does. [`Device::abort`] ends that: then [`Queue::returned`] and
/// [`Transport::queue_drained`] say so for each of them.
pub(crate) trait Server {
    /// Starts with what the driver accepted, and the rings that it enabled, by queue number: returns at once. Where it turns out later that it
    /// cannot, [`Transport::server_failed`] says so.
    ///
    /// # Errors
    /// It cannot: a line for people.
    fn start(&self, features: u64, rings: &[Option<RingAddress>])
    -> Result<(), Box<dyn Error + Send + Sync>>;
    /// A queue may interrupt in another way from now on.
    fn vector_changed(&self);
}

/// Feature bits of the transport that this crate can do (6).
pub(crate) const TRANSPORT_FEATURES: u64 =
    feature::VERSION_1 | feature::RING_INDIRECT_DESC | feature::RING_EVENT_IDX | feature::RING_RESET;

/// How long a reset waits for whoever serves the rings in place of workers: firmware goes on without a look at the status.
const SHORT_RESET: Duration = Duration::from_millis(100);

/// After how long a wait for commands says so; after twice as long again, and so on.
const SLOW_RESET: Duration = Duration::from_secs(5);

/// Properties fixed when the device is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Size of each queue on offer, in descriptors.
    pub(crate) queue_size: u16,
    /// Number of message-signalled interrupt vectors.
    pub(crate) vectors: u16,
    /// Offer VIRTIO_F_ACCESS_PLATFORM.
    pub(crate) access_platform: bool,
}

/// The transport of one device.
pub(crate) struct Transport {
    this: Weak<Self>,
    device: Arc<dyn Device>,
    queues: Box<[Arc<Queue>]>,
    limits: Limits,
    registers: Mutex<Registers>,
    /// Signalled when a reset is complete, or commands have been ended without one.
    quiet: Condvar,
    isr: Isr,
    negotiated: AtomicU64,
    broken: AtomicBool,
    closed: AtomicBool,
}

impl Transport {
    pub(crate) fn new(device: Arc<dyn Device>, queues: Box<[Arc<Queue>]>, limits: Limits) -> Arc<Self> {
        let registers = Registers::new(queues.len(), limits.queue_size);
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            device,
            queues,
            limits,
            registers: Mutex::new(registers),
            quiet: Condvar::new(),
            isr: Isr::default(),
            negotiated: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        })
    }

    /// Says how interrupts leave. Once, before the guest runs.
    pub(crate) fn connect(&self, signal: Box<dyn Signal>) {
        self.isr.connect(signal);
    }

    pub(crate) fn queues(&self) -> &[Arc<Queue>] {
        &self.queues
    }

    /// All feature bits on offer.
    pub(crate) fn offered(&self) -> u64 {
        let platform = if self.limits.access_platform { feature::ACCESS_PLATFORM } else { 0 };
        self.device.features() | self.device.transport_features() | platform
    }

    /// Whether the driver accepted `feature`.
    pub(crate) fn has(&self, feature: u64) -> bool {
        self.negotiated.load(Ordering::Relaxed) & feature != 0
    }

    /// Whether a driver has accepted features: none of the legacy interface may be.
    pub(crate) fn has_driver(&self) -> bool {
        self.negotiated.load(Ordering::Relaxed) != 0
    }

    /// The features of which the modern interface shows the configuration: until a driver has accepted some, all (2.5.2).
    fn shown(&self) -> u64 {
        match self.negotiated.load(Ordering::Relaxed) {
            0 => self.offered(),
            negotiated => negotiated,
        }
    }

    /// The device configuration has changed: tells the driver, at once or when it is there.
    pub(crate) fn config_changed(&self) {
        let mut registers = self.lock();
        if registers.status & status::DRIVER_OK == 0 {
            registers.config_news = true;
        } else if !registers.resetting {
            self.isr.config(registers.config_vector);
        }
    }

    /// Whether the device waits for a reset after an error.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Whether the device is being taken down.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Takes the device down: workers end.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for queue in &self.queues {
            queue.stop();
            queue.ring_doorbell();
        }
        // Nobody waits for a reset of what is no more.
        drop(self.lock());
        self.quiet.notify_all();
    }

    /// The queue has failed and cannot go on: sets DEVICE_NEEDS_RESET and tells the driver (2.1.2), unless a reset has ended
    /// that life of the queue already. The virtual machine lives on.
    pub(crate) fn fail(&self, index: u16, why: &dyn Display) {
        let mut registers = self.lock();
        if !self.queues.get(usize::from(index)).is_some_and(|queue| queue.has_failed()) {
            return;
        }
        devices::log_limited!(warn, "virtio-scsi: queue {index}: {why}; the device needs a reset");
        self.needs_reset(&mut registers);
    }

    fn needs_reset(&self, registers: &mut Registers) {
        if registers.resetting || self.broken.swap(true, Ordering::Relaxed) {
            return;
        }
        registers.status |= status::DEVICE_NEEDS_RESET;
        if registers.status & status::DRIVER_OK != 0 {
            self.isr.config(registers.config_vector);
        }
    }

    /// Interrupts for buffers used in `queue`.
    pub(crate) fn interrupt_queue(&self, queue: &Queue) {
        self.isr.queue(queue.vector());
    }

    /// What delivers the interrupts of `queue` past this process, at the moment.
    pub(crate) fn direct(&self, queue: &Queue) -> Option<Arc<dyn MsiVector>> {
        self.isr.direct(queue.vector())
    }

    /// Nothing of the queue is in flight any more, and it is stopped.
    pub(crate) fn queue_drained(&self, index: u16) {
        let mut registers = self.lock();
        let Some(queue) = registers.queues.get_mut(usize::from(index)) else { return };
        if !std::mem::take(&mut queue.draining) {
            return;
        }
        if registers.resetting {
            self.finish_reset(&mut registers);
        } else {
            self.finish_queue_reset(&mut registers, index);
        }
    }

    /// The device has ended what it could.
    pub(crate) fn aborted(&self) {
        let mut registers = self.lock();
        registers.aborting = false;
        if std::mem::take(&mut registers.abort_again) && self.is_busy() {
            self.begin_abort(&mut registers);
        }
        if registers.resetting {
            self.finish_reset(&mut registers);
        } else if self.device.server().is_some() {
            // What the rings hold now may be another kernel's memory, also when bus mastering is on again: nobody serves them once more.
            self.needs_reset(&mut registers);
        }
        self.quiet.notify_all();
    }

    /// Who serves the rings in place of workers could not begin; returns whether the driver has been told that it has to reset the device.
    /// Where a reset is under way already that ends the matter.
    pub(crate) fn server_failed(&self) -> bool {
        let mut registers = self.lock();
        if registers.resetting || registers.aborting {
            return false;
        }
        self.queues.iter().for_each(|queue| queue.returned());
        self.needs_reset(&mut registers);
        true
    }

    /// Whether commands of any queue are in flight.
    pub(crate) fn is_busy(&self) -> bool {
        self.queues.iter().any(|queue| queue.is_busy())
    }

    /// Resets and waits until nothing is in flight, or the device is taken down: a reset of the whole machine.
    pub(crate) fn reset_and_wait(&self) {
        let mut registers = self.lock();
        if !registers.resetting {
            self.begin_reset(&mut registers);
        }
        self.wait(registers, "the reset", |registers| registers.resetting, None);
    }

    /// Waits a moment for the end of a reset where others than workers serve the rings: they always have something in flight.
    fn wait_a_moment(&self, registers: MutexGuard<'_, Registers>) {
        if registers.resetting && self.device.server().is_some() {
            self.wait(registers, "the reset", |registers| registers.resetting, Some(SHORT_RESET));
        }
    }

    /// Bus mastering is off: ends what is in flight and waits until none of it can reach guest memory, or the device is taken
    /// down. Linux says nothing else to the device before it hands its memory over to another kernel. Waits for `limit` at most:
    /// guests make no other access to any configuration space while one lasts.
    pub(crate) fn quiesce(&self, limit: Duration) {
        let mut registers = self.lock();
        if !self.is_busy() {
            return;
        }
        self.begin_abort(&mut registers);
        let busy = |registers: &Registers| registers.aborting || registers.resetting;
        if !self.wait(registers, "taking bus mastering away", busy, Some(limit)) {
            devices::log_limited!(
                error,
                "virtio-scsi: bus mastering is off, but the host has not answered{}: what it has begun may still move data to or from \
                 the guest's memory{}",
                self.whom(),
                if self.device.server().is_some() { "" } else { "; disks with `bounce = true` do not" }
            );
        }
    }

    /// Waits while `busy`, for `limit` at most; returns whether that has ended, or the device was taken down.
    fn wait<'a>(
        &'a self,
        mut registers: MutexGuard<'a, Registers>,
        what: &str,
        busy: impl Fn(&Registers) -> bool,
        limit: Option<Duration>,
    ) -> bool {
        let (begin, mut patience) = (Instant::now(), SLOW_RESET);
        let mut word = patience;
        while busy(&registers) && !self.is_closed() {
            let waited = begin.elapsed();
            let left = limit.map_or(Duration::MAX, |limit| limit.saturating_sub(waited));
            if left.is_zero() {
                return false;
            }
            if waited >= word {
                drop(registers);
                devices::log_limited!(
                    warn,
                    "virtio-scsi: {what} waits for the host, which does not answer{}",
                    self.whom()
                );
                patience *= 2;
                word = waited + patience;
                registers = self.lock();
                continue;
            }
            let pause = left.min(word - waited);
            (registers, _) =
                self.quiet.wait_timeout(registers, pause).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// The disks that are waited for. None is known where the disk has been detached, or the host keeps the I/O thread itself.
    fn whom(&self) -> String {
        let disks = self.device.unfinished();
        if disks.is_empty() { disks } else { format!(" for {disks}") }
    }

    fn begin_abort(&self, registers: &mut Registers) {
        // One that is under way may have passed by what has come since.
        registers.abort_again = registers.aborting;
        if !registers.aborting
            && let Some(this) = self.this.upgrade()
        {
            registers.aborting = true;
            self.device.abort(this);
        }
    }

    fn begin_reset(&self, registers: &mut Registers) {
        registers.resetting = true;
        for (queue, state) in self.queues.iter().zip(&mut registers.queues) {
            state.draining = !queue.stop();
        }
        if registers.queues.iter().any(|queue| queue.draining) {
            self.begin_abort(registers);
        }
        self.finish_reset(registers);
    }

    /// Ends a reset once nothing is left of the time before.
    fn finish_reset(&self, registers: &mut Registers) {
        if registers.aborting || registers.queues.iter().any(|queue| queue.draining) {
            return;
        }
        *registers = Registers::new(self.queues.len(), self.limits.queue_size);
        for queue in &self.queues {
            let quiet = queue.stop();
            debug_assert!(quiet, "a queue that was started during the reset");
            queue.set_vector(NO_VECTOR);
        }
        self.negotiated.store(0, Ordering::Relaxed);
        self.broken.store(false, Ordering::Relaxed);
        self.isr.take();
        self.device.reset();
        self.quiet.notify_all();
    }

    fn finish_queue_reset(&self, registers: &mut Registers, index: u16) {
        if let (Some(state), Some(queue)) =
            (registers.queues.get_mut(usize::from(index)), self.queues.get(usize::from(index)))
        {
            *state = common::QueueRegisters::new(self.limits.queue_size);
            queue.set_vector(NO_VECTOR);
        }
        self.quiet.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
