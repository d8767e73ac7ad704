//! MSI: messages in configuration space, always with a 64-bit address (PCI 3.0, 6.8.1).

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::PciError;
use super::config::{ConfigSpace, cap};
use super::vectors::Vectors;
use crate::irq::{MsiAllocator, MsiMessage};

/// Message Control (PCI 3.0, 6.8.1.3).
const ENABLE: u16 = 1 << 0;
const MULTIPLE_MESSAGE_ENABLE: u16 = 7 << 4;
const ADDRESS_64: u16 = 1 << 7;
const PER_VECTOR_MASK: u16 = 1 << 8;

/// The MSI capability of a function.
#[derive(Clone, Copy, Debug)]
pub struct MsiSpec {
    /// Messages: a power of two up to 32.
    pub messages: u16,
    /// Mask and pending bits for each message.
    pub per_vector_mask: bool,
    /// Where the capability has to be; `None` for the first free place.
    pub offset: Option<u16>,
}

impl MsiSpec {
    /// Adds the capability and returns its offset.
    pub(super) fn add_to(&self, config: &mut ConfigSpace) -> Result<u16, PciError> {
        if !self.messages.is_power_of_two() || self.messages > 32 {
            return Err(PciError::Msi);
        }
        let log2 = self.messages.ilog2() as u16;
        let mask = if self.per_vector_mask { PER_VECTOR_MASK } else { 0 };
        let mut body = vec![0; if self.per_vector_mask { 22 } else { 12 }];
        for (to, from) in body.iter_mut().zip((log2 << 1 | ADDRESS_64 | mask).to_le_bytes()) {
            *to = from;
        }
        let at = match self.offset {
            Some(at) => config.capability_at(at, cap::MSI, &body)?,
            None => config.capability(cap::MSI, &body)?,
        };
        config.allow(at + 2, &(ENABLE | MULTIPLE_MESSAGE_ENABLE).to_le_bytes());
        config.allow(at + 4, &0xffff_fffc_u32.to_le_bytes());
        config.allow(at + 8, &[0xff; 4]);
        config.allow(at + 12, &[0xff; 2]);
        if self.per_vector_mask {
            let all = u32::MAX >> (32 - u32::from(self.messages));
            config.allow(at + 16, &all.to_le_bytes());
        }
        Ok(at)
    }
}

/// The messages of one function, triggered from any thread.
pub(super) struct Msi {
    vectors: Vectors,
    per_vector_mask: bool,
    messages: u16,
    /// Messages the guest granted, less one. A vector beyond shares the last bits of the number.
    granted: AtomicU16,
}

impl Msi {
    pub(super) fn new(spec: &MsiSpec, allocator: Arc<dyn MsiAllocator>) -> Self {
        Self {
            vectors: Vectors::new(spec.messages, false, allocator),
            per_vector_mask: spec.per_vector_mask,
            messages: spec.messages,
            granted: AtomicU16::new(0),
        }
    }

    pub(super) fn trigger(&self, vector: u16) {
        self.vectors.trigger((vector & self.granted.load(Ordering::Acquire)).into());
    }

    /// Follows the capability at `at`; returns whether MSI is enabled.
    pub(super) fn follow(&self, config: &ConfigSpace, at: u16) -> bool {
        let control = config.u16(at + 2);
        let enabled = control & ENABLE != 0;
        if !enabled {
            self.vectors.set_open(false);
            self.vectors.forget_pending();
            return false;
        }
        let wanted = 1_u16 << ((control & MULTIPLE_MESSAGE_ENABLE) >> 4);
        let granted = wanted.min(self.messages);
        self.granted.store(granted - 1, Ordering::Release);
        let address = u64::from(config.u32(at + 4)) | u64::from(config.u32(at + 8)) << 32;
        // The function fills in the low bits of the data that the grant leaves to it.
        let data = config.u16(at + 12) & !(granted - 1);
        let mask = if self.per_vector_mask { config.u32(at + 16) } else { 0 };
        for n in 0..self.messages {
            // What was not granted stays masked and takes no route.
            let masked = n >= granted || mask >> n & 1 != 0;
            let message = MsiMessage { address, data: (data | n).into() };
            self.vectors.set_program(n.into(), message, masked);
        }
        self.vectors.set_open(true);
        true
    }

    /// Pending bits for the register at capability offset 0x14, when there is one.
    pub(super) fn pending(&self) -> Option<u32> {
        self.per_vector_mask.then(|| {
            (0..self.vectors.len()).fold(0, |bits, n| bits | u32::from(self.vectors.is_pending(n)) << n)
        })
    }

    pub(super) fn reset(&self) {
        self.vectors.reset(false);
        self.granted.store(0, Ordering::Release);
    }
}
