//! The registers of the legacy interface, at I/O ports (4.1.4.10): what drivers older than version 1 know.
//!
//! Their numbers have the guest's byte order, which is little-endian here. Legacy drivers do not wait for a reset:
//! one has ended when the write that asks for it returns, and so has what was in flight.

use std::sync::MutexGuard;

use super::Transport;
use super::common::Registers;
use crate::config::copy_image;
use crate::fc::wire as fc;
use crate::ring::RingAddress;
use crate::spec::{LegacyCfg, NO_VECTOR, feature, legacy, status};

impl Transport {
    /// A read at the ports.
    pub(crate) fn read_legacy(&self, offset: u64, data: &mut [u8]) {
        let header = self.legacy_header();
        if let Some(at) = offset.checked_sub(header) {
            return self.device.read_config(at, data, self.offered_legacy().into());
        }
        let end = offset + data.len() as u64;
        let isr = (offset..end).contains(&legacy::ISR).then(|| self.isr.take());
        let registers = self.lock();
        let index = usize::from(registers.queue_select());
        let (state, queue) = (registers.queues.get(index), self.queues.get(index));
        let image = LegacyCfg {
            device_features: self.offered_legacy().into(),
            driver_features: (registers.driver_features() as u32).into(),
            queue_address: state.map_or(0, |state| (state.at.desc / legacy::PAGE) as u32).into(),
            queue_size: state.map_or(0, |state| state.at.size).into(),
            queue_select: registers.queue_select().into(),
            queue_notify: 0.into(),
            device_status: registers.status,
            isr_status: isr.unwrap_or(0),
            config_msix_vector: registers.config_vector.into(),
            queue_msix_vector: queue.map_or(NO_VECTOR, |queue| queue.vector()).into(),
        };
        drop(registers);
        copy_image(zerocopy::IntoBytes::as_bytes(&image), offset, data);
        // An access across the end of the header: drivers make none.
        let inside = usize::try_from(header - offset).unwrap_or(usize::MAX);
        if let Some(rest) = data.get_mut(inside..) {
            self.device.read_config(0, rest, self.offered_legacy().into());
        }
    }

    /// A write at the ports. Fields take their own width, the device configuration any. During a reset nothing is taken but
    /// another one, which waits for it.
    pub(crate) fn write_legacy(&self, offset: u64, data: &[u8]) {
        if let Some(at) = offset.checked_sub(self.legacy_header()) {
            return self.write_config_bytes(at, data);
        }
        match (offset, data) {
            (legacy::DEVICE_STATUS, &[0]) => self.reset_and_wait(),
            (legacy::DEVICE_STATUS, &[value]) => {
                // FEATURES_OK is not known here (3.1.2).
                let mut registers = self.lock();
                if !registers.resetting {
                    // A driver may accept nothing at all, and then never says so.
                    self.device.negotiate(registers.driver_features());
                    registers.status |= value & status::DRIVER_BITS & !status::FEATURES_OK;
                }
            }
            (legacy::DRIVER_FEATURES, &[a, b, c, d]) => {
                let features = u32::from_le_bytes([a, b, c, d]) & self.offered_legacy();
                let mut registers = self.lock();
                if registers.status & status::DRIVER_OK == 0 && !registers.resetting {
                    registers.set_driver_features(features.into());
                    self.device.negotiate(features.into());
                    self.negotiated.store(features.into(), std::sync::atomic::Ordering::Relaxed);
                }
            }
            (legacy::QUEUE_ADDRESS, &[a, b, c, d]) => self.place_queue(u32::from_le_bytes([a, b, c, d])),
            (legacy::QUEUE_NOTIFY, &[a, b]) => {
                if let Some(queue) = self.queues.get(usize::from(u16::from_le_bytes([a, b]))) {
                    queue.ring_doorbell();
                }
            }
            (legacy::QUEUE_SELECT, &[a, b]) => self.write_legacy_word(22, [a, b]),
            (legacy::CONFIG_VECTOR, &[a, b]) => self.write_legacy_word(16, [a, b]),
            (legacy::QUEUE_VECTOR, &[a, b]) => self.write_legacy_word(26, [a, b]),
            _ => devices::log_limited!(debug, "virtio: {} bytes to legacy port {offset:#x}", data.len()),
        }
    }

    /// A register that the common configuration has too, at `offset` there.
    fn write_legacy_word(&self, offset: u64, word: [u8; 2]) {
        self.write_common(offset, &word);
    }

    /// Length of the header: vectors are in it only while MSI-X is enabled.
    fn legacy_header(&self) -> u64 {
        if self.isr.has_messages() { legacy::HEADER_WITH_VECTORS } else { legacy::HEADER }
    }

    /// Feature bits on offer: the low half, and that descriptors may be laid out in any way (6.3). Not what came later than these
    /// registers: no driver for them knows it, and its configuration has no room in the BAR.
    fn offered_legacy(&self) -> u32 {
        (self.offered() & !fc::feature::ALL | feature::ANY_LAYOUT) as u32
    }

    /// Legacy drivers write fields byte by byte; the device takes them whole.
    fn write_config_bytes(&self, offset: u64, data: &[u8]) {
        for (at, &byte) in (offset..).zip(data) {
            let mut dword = [0; 4];
            self.device.read_config(at & !3, &mut dword, self.offered_legacy().into());
            if let Some(to) = dword.get_mut((at & 3) as usize) {
                *to = byte;
            }
            self.device.write_config(at & !3, &dword);
        }
    }

    /// The driver puts the selected queue into page `page`, where it lives at once: legacy drivers were used to
    /// queue buffers before DRIVER_OK (3.1.2). Page 0 takes it away.
    fn place_queue(&self, page: u32) {
        let mut registers = self.lock();
        if registers.resetting {
            // What is started now would outlive the reset.
            return;
        }
        let index = registers.queue_select();
        if page == 0 {
            return self.take_queue_away(registers, index);
        }
        let broken = registers.status & status::DEVICE_NEEDS_RESET != 0;
        let Some(state) = registers.queues.get_mut(usize::from(index)) else { return };
        if broken || !state.place(legacy_ring(page, state.at.size)) {
            return;
        }
        self.start_queue(&mut registers, index);
    }

    /// Returns once nothing of the queue is in flight, as after a reset: the driver frees its pages next. What does not leave by itself
    /// is ended, for the virtual CPU waits meanwhile. That is everything, for drivers only do so when they give up the device.
    fn take_queue_away(&self, mut registers: MutexGuard<'_, Registers>, index: u16) {
        self.reset_queue(&mut registers, index);
        let drains = |registers: &Registers| {
            registers.queues.get(usize::from(index)).is_some_and(|state| state.draining)
        };
        if drains(&registers) {
            self.begin_abort(&mut registers);
        }
        self.wait(registers, "taking a queue away", drains, None);
    }
}

/// The three parts of a ring, one after the other, the last on a page of its own (2.7.2).
fn legacy_ring(page: u32, size: u16) -> RingAddress {
    let (desc, entries) = (u64::from(page) * legacy::PAGE, u64::from(size));
    let driver = desc + 16 * entries;
    // flags, idx, ring, used_event
    let device = (driver + 6 + 2 * entries).next_multiple_of(legacy::PAGE);
    RingAddress { size, desc, driver, device }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_ring_follow_each_other() {
        let ring = |size| {
            let RingAddress { desc, driver, device, .. } = legacy_ring(0x10, size);
            (desc, driver, device)
        };
        assert_eq!(ring(256), (0x1_0000, 0x1_1000, 0x1_2000));
        assert_eq!(ring(4), (0x1_0000, 0x1_0040, 0x1_1000));
        assert_eq!(ring(1024), (0x1_0000, 0x1_4000, 0x1_5000));
        assert_eq!(legacy_ring(u32::MAX, 256).desc, 0x0fff_ffff_f000);
        // Where used_event is the last that fits before a page ends, and where it is not.
        assert_eq!(legacy_ring(0x10, 128).device, 0x1_1000);
    }
}
