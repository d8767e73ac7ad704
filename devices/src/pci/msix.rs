//! MSI-X: a table of messages and an array of pending bits in a BAR (PCI 3.0, 6.8.2).

use std::sync::{Arc, OnceLock};

use super::config::{ConfigSpace, cap};
use super::vectors::Vectors;
use super::{BarIndex, PciError};
use crate::bus::BusDevice;
use crate::irq::{MsiAllocator, MsiMessage, MsiVector};

/// Message Control: MSI-X Enable and Function Mask (PCI 3.0, 6.8.2.3).
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// Bytes of a table entry: address, upper address, data, vector control (PCI 3.0, 6.8.2.6 to 6.8.2.9).
const ENTRY: usize = 16;
/// Table Size holds one less in 11 bits.
const MAX_VECTORS: u16 = 2048;

/// Where a function has its MSI-X structures.
#[derive(Clone, Copy, Debug)]
pub struct MsixSpec {
    /// Vectors, 1 to 2048.
    pub vectors: u16,
    /// BAR of the table and offset in it, a multiple of 8.
    pub table: (BarIndex, u32),
    /// BAR of the pending bit array and offset in it, a multiple of 8.
    pub pba: (BarIndex, u32),
    /// Where the capability has to be; `None` for the first free place.
    pub offset: Option<u16>,
}

impl MsixSpec {
    /// Bytes of the table.
    pub fn table_len(&self) -> u64 {
        u64::from(self.vectors) * ENTRY as u64
    }

    /// Bytes of the pending bit array: whole quadwords.
    pub fn pba_len(&self) -> u64 {
        u64::from(self.vectors).div_ceil(64) * 8
    }

    /// Adds the capability and returns its offset.
    pub(super) fn add_to(&self, config: &mut ConfigSpace) -> Result<u16, PciError> {
        let aligned = (self.table.1 | self.pba.1).is_multiple_of(8);
        let bars = self.table.0 < 6 && self.pba.0 < 6;
        if !(1..=MAX_VECTORS).contains(&self.vectors) || !aligned || !bars {
            return Err(PciError::Msix);
        }
        let mut body = [0; 10];
        let words = [
            (self.vectors - 1).into(),
            self.table.1 | u32::from(self.table.0),
            self.pba.1 | u32::from(self.pba.0),
        ];
        let bytes = words.map(u32::to_le_bytes);
        let [control, table, pba] = &bytes;
        for (to, from) in body.iter_mut().zip(control.iter().take(2).chain(table).chain(pba)) {
            *to = *from;
        }
        let at = match self.offset {
            Some(at) => config.capability_at(at, cap::MSIX, &body)?,
            None => config.capability(cap::MSIX, &body)?,
        };
        config.allow(at + 2, &(ENABLE | FUNCTION_MASK).to_le_bytes());
        Ok(at)
    }
}

/// The vectors of one function, triggered from any thread.
pub(super) struct Msix {
    vectors: Vectors,
    /// Who hears of changes.
    listener: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Msix {
    pub(super) fn new(spec: &MsixSpec, allocator: Arc<dyn MsiAllocator>) -> Self {
        Self { vectors: Vectors::new(spec.vectors, true, allocator), listener: OnceLock::new() }
    }

    pub(super) fn trigger(&self, vector: u16) {
        self.vectors.trigger(vector.into());
    }

    /// What delivers `vector` at the moment; see [`Vectors::direct`].
    pub(super) fn direct(&self, vector: u16) -> Option<Arc<dyn MsiVector>> {
        self.vectors.direct(vector.into())
    }

    /// Has `listener` called after each change of what vectors deliver.
    pub(super) fn listen(&self, listener: Box<dyn Fn() + Send + Sync>) {
        // A second one would be a defect of the caller; the first stays.
        let _ = self.listener.set(listener);
    }

    /// Tells the listener.
    pub(super) fn changed(&self) {
        if let Some(listener) = self.listener.get() {
            listener();
        }
    }

    /// Takes what `vector` needs; see [`Vectors::reserve`].
    pub(super) fn reserve(&self, vector: u16) -> bool {
        self.vectors.reserve(vector.into())
    }

    /// Follows Message Control; returns whether MSI-X is enabled.
    pub(super) fn set_control(&self, control: u16) -> bool {
        let enabled = control & ENABLE != 0;
        self.vectors.set_open(enabled && control & FUNCTION_MASK == 0);
        if !enabled {
            self.vectors.forget_pending();
        }
        enabled
    }

    pub(super) fn reset(&self) {
        self.vectors.reset(true);
    }

    fn entry(&self, index: usize) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        if let Some(program) = self.vectors.program(index) {
            let MsiMessage { address, data } = program.message;
            let control = u32::from(program.masked);
            let all = u128::from(address) | u128::from(data) << 64 | u128::from(control) << 96;
            bytes = all.to_le_bytes();
        }
        bytes
    }

    fn set_entry(&self, index: usize, bytes: [u8; ENTRY]) {
        let all = u128::from_le_bytes(bytes);
        // Message Address is dword aligned: its low two bits are hard-wired to zero.
        let address = all as u64 & !3;
        let message = MsiMessage { address, data: (all >> 64) as u32 };
        self.vectors.set_program(index, message, all >> 96 & 1 != 0);
        self.changed();
    }
}

/// The table as a part of a BAR. Drivers use dwords and quadwords; other widths work byte by byte.
pub(super) struct Table(pub(super) Arc<Msix>);

impl BusDevice for Table {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        for byte in data {
            *byte = self.0.entry(at / ENTRY).get(at % ENTRY).copied().unwrap_or(0);
            at = at.saturating_add(1);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut rest = data;
        // The bytes of one entry take effect together: a quadword write never routes half an address.
        while !rest.is_empty() && at / ENTRY < self.0.vectors.len() {
            let (index, within) = (at / ENTRY, at % ENTRY);
            let (now, later) = rest.split_at(rest.len().min(ENTRY - within));
            let mut entry = self.0.entry(index);
            for (byte, value) in entry.iter_mut().skip(within).zip(now) {
                *byte = *value;
            }
            self.0.set_entry(index, entry);
            rest = later;
            at += now.len();
        }
    }

    fn name(&self) -> &str {
        "msix-table"
    }
}

/// The pending bit array as a part of a BAR: read-only.
pub(super) struct PendingBits(pub(super) Arc<Msix>);

impl BusDevice for PendingBits {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        for byte in data {
            let first = at.saturating_mul(8);
            *byte = (0..8)
                .fold(0, |bits, i| bits | u8::from(self.0.vectors.is_pending(first.saturating_add(i))) << i);
            at = at.saturating_add(1);
        }
    }

    fn write(&self, _: u64, _: &[u8]) {}

    fn name(&self) -> &str {
        "msix-pba"
    }
}
