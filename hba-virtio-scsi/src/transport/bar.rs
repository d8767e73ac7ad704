//! Where the structures lie in the BAR, and the accesses to each.

use super::Transport;
use crate::spec::CommonCfg;

/// Length of the BAR in bytes.
pub(crate) const BAR_SIZE: u32 = 0x4000;
/// Each structure has a page of its own, so that a guest can map them apart.
const PAGE: u32 = 0x1000;
/// notify_off_multiplier (4.1.4.4): queues have doorbells of their own, 4 bytes apart.
pub(crate) const NOTIFY_MULTIPLIER: u32 = 4;

/// One structure in the BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    Common,
    Isr,
    Device,
    Notify,
}

impl Window {
    /// Offset in the BAR.
    pub(crate) fn offset(self) -> u32 {
        match self {
            Self::Common => 0,
            Self::Isr => PAGE,
            Self::Device => 2 * PAGE,
            Self::Notify => 3 * PAGE,
        }
    }

    /// Length in bytes, with `queues` queues.
    pub(crate) fn len(self, queues: u16) -> u32 {
        match self {
            Self::Common => size_of::<CommonCfg>() as u32,
            // One byte is defined; drivers map a whole number of dwords.
            Self::Isr => 4,
            Self::Device => PAGE,
            Self::Notify => u32::from(queues) * NOTIFY_MULTIPLIER,
        }
    }

    fn at(offset: u64) -> Option<(Self, u64)> {
        let window = match offset / u64::from(PAGE) {
            0 => Self::Common,
            1 => Self::Isr,
            2 => Self::Device,
            3 => Self::Notify,
            _ => return None,
        };
        Some((window, offset % u64::from(PAGE)))
    }
}

impl Transport {
    /// A read in the BAR.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match Window::at(offset) {
            Some((Window::Common, at)) => self.read_common(at, data),
            Some((Window::Isr, 0)) => {
                if let Some(byte) = data.first_mut() {
                    *byte = self.isr.take();
                }
            }
            Some((Window::Device, at)) => self.device.read_config(at, data, self.shown()),
            Some(_) => {}
            None => data.fill(0xff),
        }
    }

    /// A write in the BAR.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        match Window::at(offset) {
            Some((Window::Common, at)) => self.write_common(at, data),
            Some((Window::Device, at)) => self.device.write_config(at, data),
            // Doorbells that reach us and not the hypervisor; the address alone says which queue.
            Some((Window::Notify, at)) => self.ring_doorbell(at),
            _ => {}
        }
    }

    /// A doorbell at `offset` of a notification structure.
    pub(crate) fn ring_doorbell(&self, offset: u64) {
        let queue = usize::try_from(offset / u64::from(NOTIFY_MULTIPLIER)).ok();
        if let Some(queue) = queue.and_then(|index| self.queues.get(index)) {
            queue.ring_doorbell();
        }
    }
}
