//! The common configuration structure (4.1.4.3) and the device status that it drives (2.1).

use zerocopy::IntoBytes;

use super::{Server, Transport};
use crate::config::copy_image;
use crate::ring::{MAX_CHAIN, RingAddress};
use crate::spec::{CommonCfg, NO_VECTOR, feature, status};

/// What the driver programmed.
#[derive(Debug)]
pub(super) struct Registers {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    pub(super) config_vector: u16,
    /// The configuration has changed since the driver accepted features, and it is not there yet.
    pub(super) config_news: bool,
    pub(super) status: u8,
    queue_select: u16,
    pub(super) queues: Box<[QueueRegisters]>,
    /// A reset has begun and waits for commands in flight.
    pub(super) resetting: bool,
    /// The device still ends commands for the reset.
    pub(super) aborting: bool,
    /// What has come since is to be ended too.
    pub(super) abort_again: bool,
}

/// What the driver programmed for one queue.
#[derive(Clone, Debug)]
pub(super) struct QueueRegisters {
    pub(super) at: RingAddress,
    enabled: bool,
    /// The queue is stopped and commands of it are still in flight.
    pub(super) draining: bool,
}

impl QueueRegisters {
    pub(super) fn new(size: u16) -> Self {
        Self { at: RingAddress { size, desc: 0, driver: 0, device: 0 }, enabled: false, draining: false }
    }

    /// Sets the place of a queue and enables it, unless it is enabled or not yet at rest.
    pub(super) fn place(&mut self, at: RingAddress) -> bool {
        let free = !self.enabled && !self.draining;
        if free {
            (self.at, self.enabled) = (at, true);
        }
        free
    }
}

impl Registers {
    pub(super) fn new(queues: usize, queue_size: u16) -> Self {
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            config_news: false,
            status: 0,
            queue_select: 0,
            queues: vec![QueueRegisters::new(queue_size); queues].into(),
            resetting: false,
            aborting: false,
            abort_again: false,
        }
    }

    pub(super) fn queue_select(&self) -> u16 {
        self.queue_select
    }

    pub(super) fn driver_features(&self) -> u64 {
        self.driver_features
    }

    pub(super) fn set_driver_features(&mut self, features: u64) {
        self.driver_features = features;
    }

    fn selected(&mut self) -> Option<&mut QueueRegisters> {
        self.queues.get_mut(usize::from(self.queue_select))
    }
}

/// Half `select` of a 64-bit set of feature bits; there is nothing beyond.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// Replaces the low (`half` 0) or high (1) dword.
fn put_half(value: u64, half: u32, dword: u32) -> u64 {
    match half {
        0 => value & !0xffff_ffff | u64::from(dword),
        1 => value & 0xffff_ffff | u64::from(dword) << 32,
        _ => value,
    }
}

impl Transport {
    /// Reads at any offset and width.
    pub(super) fn read_common(&self, offset: u64, data: &mut [u8]) {
        let registers = self.lock();
        let mut image = CommonCfg {
            device_feature_select: registers.device_feature_select.into(),
            device_feature: half(self.offered(), registers.device_feature_select).into(),
            driver_feature_select: registers.driver_feature_select.into(),
            driver_feature: half(registers.driver_features, registers.driver_feature_select).into(),
            config_msix_vector: registers.config_vector.into(),
            num_queues: (self.queues.len() as u16).into(),
            device_status: registers.status,
            config_generation: self.device.config_generation(),
            queue_select: registers.queue_select.into(),
            queue_msix_vector: NO_VECTOR.into(),
            ..CommonCfg::default()
        };
        let index = usize::from(registers.queue_select);
        if let (Some(state), Some(queue)) = (registers.queues.get(index), self.queues.get(index)) {
            image.queue_size = state.at.size.into();
            image.queue_msix_vector = queue.vector().into();
            image.queue_enable = u16::from(state.enabled).into();
            image.queue_notify_off = registers.queue_select.into();
            image.queue_desc = state.at.desc.into();
            image.queue_driver = state.at.driver.into();
            image.queue_device = state.at.device.into();
            image.queue_reset = u16::from(state.draining && !registers.resetting).into();
        }
        copy_image(image.as_bytes(), offset, data);
    }

    /// Writes. Fields take their own width (4.1.3.1), 64-bit fields also in halves; the rest is ignored.
    pub(super) fn write_common(&self, offset: u64, data: &[u8]) {
        let mut guard = self.lock();
        let registers = &mut *guard;
        if registers.resetting {
            return;
        }
        match *data {
            [value] if offset == 20 => {
                self.write_status(registers, value);
                self.wait_a_moment(guard);
            }
            [a, b] => self.write_word(registers, offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_dword(registers, offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if matches!(offset, 32 | 40 | 48) => {
                self.write_dword(registers, offset, u32::from_le_bytes([a, b, c, d]));
                self.write_dword(registers, offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => devices::log_limited!(
                debug,
                "virtio: {} bytes to common configuration {offset:#x}",
                data.len()
            ),
        }
    }

    fn write_dword(&self, registers: &mut Registers, offset: u64, value: u32) {
        match offset {
            0 => registers.device_feature_select = value,
            8 => registers.driver_feature_select = value,
            // Accepted features do not change any more (2.2.2).
            12 if registers.status & status::FEATURES_OK == 0 => {
                let select = registers.driver_feature_select;
                registers.driver_features = put_half(registers.driver_features, select, value);
            }
            32..56 if offset.is_multiple_of(4) => {
                let Some(queue) = registers.selected().filter(|queue| !queue.enabled) else { return };
                let half = if offset.is_multiple_of(8) { 0 } else { 1 };
                let field = match offset {
                    32 | 36 => &mut queue.at.desc,
                    40 | 44 => &mut queue.at.driver,
                    _ => &mut queue.at.device,
                };
                *field = put_half(*field, half, value);
            }
            _ => {}
        }
    }

    fn write_word(&self, registers: &mut Registers, offset: u64, value: u16) {
        let vector = || self.isr.map(value, self.limits.vectors);
        let index = usize::from(registers.queue_select);
        match offset {
            16 => registers.config_vector = vector(),
            22 => registers.queue_select = value,
            24 => {
                let fits = value.is_power_of_two() && value <= self.limits.queue_size;
                if let Some(queue) = registers.selected().filter(|queue| fits && !queue.enabled) {
                    queue.at.size = value;
                }
            }
            26 => {
                if let Some(queue) = self.queues.get(index) {
                    queue.set_vector(vector());
                    if let Some(server) = self.device.server() {
                        server.vector_changed();
                    }
                }
            }
            28 if value == 1 => self.enable_queue(registers),
            58 if value == 1 && self.has(feature::RING_RESET) => {
                self.reset_queue(registers, registers.queue_select);
            }
            _ => {}
        }
    }

    fn enable_queue(&self, registers: &mut Registers) {
        let running =
            registers.status & (status::DRIVER_OK | status::DEVICE_NEEDS_RESET) == status::DRIVER_OK;
        let index = registers.queue_select;
        let Some(queue) = registers.selected().filter(|queue| !queue.enabled && !queue.draining) else {
            return;
        };
        queue.enabled = true;
        if running {
            self.start_queue(registers, index);
        }
    }

    pub(super) fn reset_queue(&self, registers: &mut Registers, index: u16) {
        let index_at = usize::from(index);
        let Some(queue) = self.queues.get(index_at) else { return };
        let Some(state) = registers.queues.get_mut(index_at).filter(|state| state.enabled && !state.draining)
        else {
            return;
        };
        state.draining = !queue.stop();
        if state.draining {
            self.device.queue_stopped(index);
        } else {
            self.finish_queue_reset(registers, index);
        }
    }

    /// Takes a new device status. Bits are only ever added (2.1.1); zero resets.
    fn write_status(&self, registers: &mut Registers, value: u8) {
        if value == 0 {
            self.begin_reset(registers);
            return;
        }
        let mut new = value & status::DRIVER_BITS & !registers.status;
        if new & status::FEATURES_OK != 0 && !self.accept_features(registers.driver_features) {
            new &= !status::FEATURES_OK;
        }
        // A driver that did not get FEATURES_OK must not go on (3.1.1).
        let start = new & status::DRIVER_OK != 0 && (registers.status | new) & status::FEATURES_OK != 0;
        if !start {
            new &= !status::DRIVER_OK;
        }
        registers.status |= new;
        if start && registers.status & status::DEVICE_NEEDS_RESET == 0 {
            match self.device.server() {
                Some(server) => self.lend(registers, server),
                None => (0..self.queues.len() as u16).for_each(|index| self.start_queue(registers, index)),
            }
        }
        if start && std::mem::take(&mut registers.config_news) {
            self.isr.config(registers.config_vector);
        }
    }

    fn accept_features(&self, wanted: u64) -> bool {
        let offered = wanted & !self.offered() == 0 && wanted & feature::VERSION_1 != 0;
        let accepted = offered && self.device.negotiate(wanted);
        if accepted {
            self.negotiated.store(wanted, std::sync::atomic::Ordering::Relaxed);
        } else {
            devices::log_limited!(
                info,
                "virtio-scsi: driver wants features {wanted:#x}, which is not to be had"
            );
        }
        accepted
    }

    /// Hands the queues that the driver enabled to `server`, all at once. Of none it hears nothing.
    pub(super) fn lend(&self, registers: &mut Registers, server: &dyn Server) {
        let enabled = |state: &QueueRegisters| state.enabled.then_some(state.at);
        let rings: Vec<_> = registers.queues.iter().map(enabled).collect();
        if rings.iter().all(Option::is_none) {
            return;
        }
        let aligned = rings.iter().flatten().all(RingAddress::is_aligned);
        let started = match aligned {
            true => server.start(self.negotiated.load(std::sync::atomic::Ordering::Relaxed), &rings),
            false => Err("a part of a ring is misaligned".into()),
        };
        match started {
            Ok(()) => {
                let lent = self.queues.iter().zip(&rings).filter(|(_, ring)| ring.is_some());
                lent.for_each(|(queue, _)| queue.lend());
            }
            Err(why) => {
                devices::log_limited!(warn, "virtio-scsi: {why}; the device needs a reset");
                self.needs_reset(registers);
            }
        }
    }

    /// Starts a queue that the driver enabled.
    pub(super) fn start_queue(&self, registers: &mut Registers, index: u16) {
        let (Some(state), Some(queue)) =
            (registers.queues.get(usize::from(index)), self.queues.get(usize::from(index)))
        else {
            return;
        };
        if !state.enabled || state.draining {
            return;
        }
        if self.device.server().is_some() {
            // A driver shall enable its queues before (4.1.4.3.2).
            devices::log_limited!(
                warn,
                "virtio-scsi: queue {index} was enabled after DRIVER_OK; the device needs a reset"
            );
            return self.needs_reset(registers);
        }
        debug_assert!(usize::from(state.at.size) <= MAX_CHAIN);
        let at = state.at;
        let started = if at.is_aligned() {
            queue.start(at, self.has(feature::RING_EVENT_IDX)).map_err(|error| error.to_string())
        } else {
            Err("a part of the ring is misaligned".to_owned())
        };
        if let Err(why) = started {
            devices::log_limited!(warn, "virtio-scsi: queue {index}: {why}; the device needs a reset");
            self.needs_reset(registers);
        }
    }
}
