//! Split virtqueues (2.7): taking chains, giving them back, and who wants to be notified of what.

use std::sync::atomic::Ordering;

use devices::mem::{Dma, DmaError, GuestRam};
use thiserror::Error;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// Most descriptors of one chain; also the largest queue size, and what one readv takes.
pub(crate) const MAX_CHAIN: usize = 1024;

/// VIRTQ_AVAIL_F_NO_INTERRUPT (2.7.7).
const AVAIL_F_NO_INTERRUPT: u16 = 1;

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
    #[error("{0}")]
    Ring(virtio_queue::Error),
    #[error("the available ring cannot be read")]
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

/// A chain copied out of guest memory once: address and length of each descriptor with a length, in order.
///
/// Kept by the worker and reused, so that taking a chain does not allocate.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    pub(crate) readable: Vec<(u64, u32)>,
    pub(crate) writable: Vec<(u64, u32)>,
}

impl Chain {
    fn fill(&mut self, descriptors: virtio_queue::DescriptorChain<&GuestRam>) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        let mut ended = false;
        for descriptor in descriptors {
            if self.readable.len() + self.writable.len() >= MAX_CHAIN {
                return Err(ChainError::TooLong);
            }
            ended = !descriptor.has_next();
            let part = (descriptor.addr().0, descriptor.len());
            if descriptor.is_write_only() {
                self.writable.push(part);
            } else if self.writable.is_empty() {
                self.readable.push(part);
            } else {
                return Err(ChainError::Order);
            }
        }
        // The iterator ends silently at whatever it cannot follow. A chain that is whole ends with a descriptor
        // that names no next one.
        if ended { Ok(()) } else { Err(ChainError::Broken) }
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
    queue: Queue,
}

impl Ring {
    /// A ring at the start of its life. `event_idx`: VIRTIO_F_RING_EVENT_IDX is negotiated.
    pub(crate) fn new(at: RingAddress, event_idx: bool) -> Result<Self, RingError> {
        let mut queue = Queue::new(MAX_CHAIN as u16).map_err(RingError::Ring)?;
        queue.try_set_size(at.size).map_err(RingError::Ring)?;
        queue.try_set_desc_table_address(GuestAddress(at.desc)).map_err(RingError::Ring)?;
        queue.try_set_avail_ring_address(GuestAddress(at.driver)).map_err(RingError::Ring)?;
        queue.try_set_used_ring_address(GuestAddress(at.device)).map_err(RingError::Ring)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(Self { queue })
    }

    /// Takes the next available chain and fills `chain` with its descriptors.
    pub(crate) fn take(&mut self, dma: &Dma, chain: &mut Chain) -> Result<Option<Taken>, RingError> {
        let ram = dma.ram()?;
        if self.waiting(dma)? == 0 {
            return Ok(None);
        }
        let size = self.queue.size();
        let mut available = self.queue.iter(&**ram).map_err(RingError::Ring)?;
        // There is an entry, so none means that it cannot be read.
        let descriptors = available.next().ok_or(RingError::Available)?;
        let head = descriptors.head_index();
        if head >= size {
            return Err(RingError::Head(head));
        }
        Ok(Some(Taken { head, shape: chain.fill(descriptors) }))
    }

    /// Gives a chain back; `len` bytes of its writable part were written. The driver sees it at once.
    pub(crate) fn give_back(&mut self, dma: &Dma, head: u16, len: u32) -> Result<(), RingError> {
        self.queue.add_used(&**dma.ram()?, head, len).map_err(RingError::Ring)
    }

    /// Whether the driver wants an interrupt for what was given back since the last call.
    pub(crate) fn wants_interrupt(&mut self, dma: &Dma) -> Result<bool, RingError> {
        let ram = dma.ram()?;
        if !self.queue.needs_notification(&**ram).map_err(RingError::Ring)? {
            return Ok(false);
        }
        if self.queue.event_idx_enabled() {
            return Ok(true);
        }
        let flags: u16 = ram
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(|_| RingError::Available)?;
        Ok(u16::from_le(flags) & AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Tells the driver that doorbells are not needed for now.
    pub(crate) fn suppress_doorbell(&mut self, dma: &Dma) -> Result<(), RingError> {
        self.queue.disable_notification(&**dma.ram()?).map_err(RingError::Ring)
    }

    /// Asks the driver to ring for the next chain; returns whether there is one already.
    pub(crate) fn want_doorbell(&mut self, dma: &Dma) -> Result<bool, RingError> {
        self.queue.enable_notification(&**dma.ram()?).map_err(RingError::Ring)
    }

    /// The position in the available ring up to which chains are taken; counts without end, modulo 65536.
    pub(crate) fn position(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Guest address of the driver's index of the available ring: after its flags (2.7.6).
    pub(crate) fn index_at(&self) -> u64 {
        self.queue.avail_ring().wrapping_add(2)
    }

    /// How many chains the driver has made available and the device not taken.
    pub(crate) fn waiting(&self, dma: &Dma) -> Result<u16, RingError> {
        let idx = self.queue.avail_idx(&**dma.ram()?, Ordering::Acquire).map_err(RingError::Ring)?;
        Ok(idx.0.wrapping_sub(self.queue.next_avail()))
    }
}
