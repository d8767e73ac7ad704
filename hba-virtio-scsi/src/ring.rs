//! Split virtqueues (2.7): taking chains, giving them back, and who wants to be notified of what.
//!
//! Written out here, because every access to a ring counts: each index is looked at once for a batch, an indirect table is
//! copied in one piece, and the used index is published once for all chains that were given back.

use std::sync::atomic::{Ordering, fence};

use devices::mem::{Dma, DmaError};
use thiserror::Error;

/// Most descriptors of one chain; also the largest queue size, and what one readv takes.
pub(crate) const MAX_CHAIN: usize = 1024;

/// VIRTQ_AVAIL_F_NO_INTERRUPT (2.7.7).
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// VIRTQ_USED_F_NO_NOTIFY (2.7.10).
const USED_F_NO_NOTIFY: u16 = 1;
/// VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE and VIRTQ_DESC_F_INDIRECT (2.7.5).
const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;
const DESC_F_INDIRECT: u16 = 4;

/// Bytes of a descriptor (2.7.5).
const DESCRIPTOR: usize = 16;
/// Offset of the index in both rings, after the flags; of their elements, and the bytes of one (2.7.6, 2.7.8).
const INDEX: u64 = 2;
const ELEMENTS: u64 = 4;
const AVAIL_ELEMENT: u64 = 2;
const USED_ELEMENT: u64 = 8;

/// Descriptors of an indirect table that are copied at once: enough for 128 KiB in pages, and more than the usual ones have.
const NEAR: usize = 40;

/// Where the driver put a ring, guest physical, and its size in descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingAddress {
    pub(crate) size: u16,
    pub(crate) desc: u64,
    pub(crate) driver: u64,
    pub(crate) device: u64,
}

impl RingAddress {
    /// Whether the parts lie on the boundaries that 2.7 demands: 16, 2 and 4 bytes.
    pub(crate) fn is_aligned(&self) -> bool {
        self.desc.is_multiple_of(16) && self.driver.is_multiple_of(2) && self.device.is_multiple_of(4)
    }
}

/// A ring that can no longer be used: the device needs a reset.
#[derive(Debug, Error)]
pub(crate) enum RingError {
    #[error(transparent)]
    Memory(#[from] DmaError),
    #[error("a ring of no size or place that a ring can have")]
    Shape,
    #[error("the available ring cannot be read, or its index is out of range")]
    Available,
    #[error("descriptor {0} made available beyond the table or while in use")]
    Head(u16),
}

/// What is wrong with a single chain: it costs that request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum ChainError {
    #[error("a descriptor chain loops, leaves its table or nests indirect tables")]
    Broken,
    #[error("a device-readable descriptor follows a device-writable one")]
    Order,
    #[error("more than {MAX_CHAIN} descriptors in a chain")]
    TooLong,
}

/// A descriptor in private memory (2.7.5).
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn of(bytes: &[u8; DESCRIPTOR]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *bytes;
        Self {
            addr: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            len: u32::from_le_bytes([i, j, k, l]),
            flags: u16::from_le_bytes([m, n]),
            next: u16::from_le_bytes([o, p]),
        }
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// The first descriptors of an indirect table.
type Near = [[u8; DESCRIPTOR]; NEAR];

/// A table of descriptors in guest memory. Each descriptor is read once at most for each time that a chain names it.
struct Table {
    at: u64,
    count: u16,
    /// How many of the first are copies.
    copied: u16,
}

impl Table {
    /// An indirect table of `len` bytes, the first descriptors of which go to `near`.
    fn indirect(dma: &Dma, at: u64, len: u32, near: &mut Near) -> Option<Self> {
        if !len.is_multiple_of(DESCRIPTOR as u32) {
            return None;
        }
        let count = u16::try_from(len / DESCRIPTOR as u32).ok()?;
        let copied = count.min(NEAR as u16);
        let near = near.as_flattened_mut().get_mut(..usize::from(copied) * DESCRIPTOR)?;
        // What cannot be read in one piece may still be read one by one.
        let copied = if dma.read(at, near).is_ok() { copied } else { 0 };
        Some(Self { at, count, copied })
    }

    fn get(&self, dma: &Dma, near: &Near, index: u16) -> Option<Descriptor> {
        if index >= self.count {
            return None;
        }
        if index < self.copied {
            return near.get(usize::from(index)).map(Descriptor::of);
        }
        let mut bytes = [0; DESCRIPTOR];
        let at = self.at.checked_add(u64::from(index) * DESCRIPTOR as u64)?;
        dma.read(at, &mut bytes).ok()?;
        Some(Descriptor::of(&bytes))
    }
}

/// A chain copied out of guest memory once: address and length of each descriptor, in order.
///
/// Kept by the worker and reused, so that taking a chain does not allocate.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) readable: Vec<(u64, u32)>,
    pub(crate) writable: Vec<(u64, u32)>,
    /// Bytes of both.
    total: u32,
    near: Near,
}

impl Default for Chain {
    fn default() -> Self {
        Self { readable: Vec::new(), writable: Vec::new(), total: 0, near: [[0; DESCRIPTOR]; NEAR] }
    }
}

impl Chain {
    /// Bytes that it moves at most.
    pub(crate) fn bytes(&self) -> u64 {
        self.total.into()
    }

    /// Follows the chain that begins with descriptor `head` of `table`.
    fn fill(&mut self, dma: &Dma, mut table: Table, head: u16) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        self.total = 0;
        let (mut at, mut indirect) = (head, false);
        // A chain longer than its table loops.
        let mut left = table.count;
        loop {
            let descriptor = table.get(dma, &self.near, at).filter(|_| left > 0).ok_or(ChainError::Broken)?;
            if descriptor.has(DESC_F_INDIRECT) {
                if indirect {
                    return Err(ChainError::Broken);
                }
                let indirect_table = Table::indirect(dma, descriptor.addr, descriptor.len, &mut self.near);
                table = indirect_table.ok_or(ChainError::Broken)?;
                (at, indirect, left) = (0, true, table.count);
                continue;
            }
            // 2.7.5.2: a chain has no more than 2^32 bytes.
            self.total = self.total.checked_add(descriptor.len).ok_or(ChainError::Broken)?;
            if self.readable.len() + self.writable.len() >= MAX_CHAIN {
                return Err(ChainError::TooLong);
            }
            let part = (descriptor.addr, descriptor.len);
            if descriptor.has(DESC_F_WRITE) {
                self.writable.push(part);
            } else if self.writable.is_empty() {
                self.readable.push(part);
            } else {
                return Err(ChainError::Order);
            }
            if !descriptor.has(DESC_F_NEXT) {
                return Ok(());
            }
            (at, left) = (descriptor.next, left - 1);
        }
    }
}

/// A chain taken from the available ring.
#[derive(Debug)]
pub(crate) struct Taken {
    /// Index of its first descriptor, which identifies it.
    pub(crate) head: u16,
    /// Whether the chain that was filled in is to be used.
    pub(crate) shape: Result<(), ChainError>,
}

/// A ring in use. Any error means that the ring is of no more use.
#[derive(Debug)]
pub(crate) struct Ring {
    at: RingAddress,
    event_idx: bool,
    /// The next chain to take, and the driver's index when it was last looked at.
    next_avail: u16,
    seen_avail: u16,
    /// The next element of the used ring, what the driver knows of it, and what it knew at the last interrupt.
    next_used: u16,
    published: u16,
    told: u16,
}

impl Ring {
    /// A ring at the start of its life. `event_idx`: VIRTIO_F_RING_EVENT_IDX is negotiated.
    pub(crate) fn new(at: RingAddress, event_idx: bool) -> Result<Self, RingError> {
        // The parts are no longer than this; so their addresses below cannot wrap around.
        let fits = |part: u64| part.checked_add(1 << 20).is_some();
        let whole = at.size.is_power_of_two() && usize::from(at.size) <= MAX_CHAIN && at.is_aligned();
        if !whole || ![at.desc, at.driver, at.device].into_iter().all(fits) {
            return Err(RingError::Shape);
        }
        Ok(Self { at, event_idx, next_avail: 0, seen_avail: 0, next_used: 0, published: 0, told: 0 })
    }

    fn slot(&self, index: u16) -> u64 {
        u64::from(index & (self.at.size - 1))
    }

    /// Takes the next available chain and fills `chain` with its descriptors.
    pub(crate) fn take(&mut self, dma: &Dma, chain: &mut Chain) -> Result<Option<Taken>, RingError> {
        // Bus mastering may end between two chains of a batch: then no more are taken.
        dma.ram()?;
        if self.seen_avail == self.next_avail {
            let waiting = self.waiting(dma)?;
            if waiting == 0 {
                return Ok(None);
            }
            // Nobody puts a ring at address 0: the driver has not said where it is.
            if waiting > self.at.size || self.at.driver == 0 {
                return Err(RingError::Available);
            }
            self.seen_avail = self.next_avail.wrapping_add(waiting);
        }
        let element = self.at.driver + ELEMENTS + AVAIL_ELEMENT * self.slot(self.next_avail);
        let head = dma.load_u16(element, Ordering::Relaxed).map_err(|_| RingError::Available)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        if head >= self.at.size {
            return Err(RingError::Head(head));
        }
        let table = Table { at: self.at.desc, count: self.at.size, copied: 0 };
        let shape = chain.fill(dma, table, head);
        Ok(Some(Taken { head, shape }))
    }

    /// Gives a chain back; `len` bytes of its writable part were written. The driver sees it with [`Ring::publish`].
    pub(crate) fn give_back(&mut self, dma: &Dma, head: u16, len: u32) -> Result<(), RingError> {
        if head >= self.at.size {
            return Err(RingError::Head(head));
        }
        let mut element = [0; USED_ELEMENT as usize];
        let (id, written) = element.split_at_mut(4);
        id.copy_from_slice(&u32::from(head).to_le_bytes());
        written.copy_from_slice(&len.to_le_bytes());
        dma.write(self.at.device + ELEMENTS + USED_ELEMENT * self.slot(self.next_used), &element)?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    /// Shows the driver all that was given back.
    pub(crate) fn publish(&mut self, dma: &Dma) -> Result<(), RingError> {
        if self.published != self.next_used {
            dma.store_u16(self.at.device + INDEX, self.next_used, Ordering::Release)?;
            self.published = self.next_used;
        }
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was published since the last call.
    pub(crate) fn wants_interrupt(&mut self, dma: &Dma) -> Result<bool, RingError> {
        // What was published is there before the driver's wish is looked at.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            let flags = dma.load_u16(self.at.driver, Ordering::Relaxed)?;
            return Ok(flags & AVAIL_F_NO_INTERRUPT == 0);
        }
        let event_at = self.at.driver + ELEMENTS + AVAIL_ELEMENT * u64::from(self.at.size);
        let event = dma.load_u16(event_at, Ordering::Relaxed)?;
        let told = std::mem::replace(&mut self.told, self.published);
        // 2.7.7.2: whether the index passed the event since.
        Ok(self.published.wrapping_sub(event).wrapping_sub(1) < self.published.wrapping_sub(told))
    }

    /// Tells the driver that doorbells are not needed for now.
    pub(crate) fn suppress_doorbell(&mut self, dma: &Dma) -> Result<(), RingError> {
        if self.event_idx {
            // An event index that was passed asks for nothing.
            return Ok(());
        }
        Ok(dma.store_u16(self.at.device, USED_F_NO_NOTIFY, Ordering::Relaxed)?)
    }

    /// Asks the driver to ring for the next chain; returns whether there is one already.
    pub(crate) fn want_doorbell(&mut self, dma: &Dma) -> Result<bool, RingError> {
        if self.event_idx {
            let event_at = self.at.device + ELEMENTS + USED_ELEMENT * u64::from(self.at.size);
            dma.store_u16(event_at, self.next_avail, Ordering::Relaxed)?;
        } else {
            dma.store_u16(self.at.device, 0, Ordering::Relaxed)?;
        }
        // The driver sees the wish, or we see its chain.
        fence(Ordering::SeqCst);
        Ok(self.waiting(dma)? != 0)
    }

    /// The position in the available ring up to which chains are taken; counts without end, modulo 65536.
    pub(crate) fn position(&self) -> u16 {
        self.next_avail
    }

    /// Guest address of the driver's index of the available ring: after its flags (2.7.6).
    pub(crate) fn index_at(&self) -> u64 {
        self.at.driver + INDEX
    }

    /// How many chains the driver has made available and the device not taken.
    pub(crate) fn waiting(&self, dma: &Dma) -> Result<u16, RingError> {
        let index = dma.load_u16(self.at.driver + INDEX, Ordering::Acquire)?;
        Ok(index.wrapping_sub(self.next_avail))
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
#[allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
mod tests;
