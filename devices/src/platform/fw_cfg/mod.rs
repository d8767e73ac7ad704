//! fw_cfg: how firmware learns about the machine. A selector, a stream of bytes, and the same by DMA.
//!
//! ```text
//!   510h  selector, 16 bits        key ──> item ──> bytes from offset 0
//!   511h  data, one byte           the next byte
//!   514h  DMA address, high half   \ big-endian; writing the low half carries out
//!   518h  DMA address, low half    /  the descriptor found there, before the write returns
//! ```
//!
//! Document: QEMU, docs/specs/fw_cfg.rst; keys and files as SeaBIOS and OVMF read them.

mod items;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{GuestAddress, GuestMemoryBackend};

pub use items::{Content, FwCfgBuilder, FwCfgError, MAX_NAME, key};
use items::{Item, Selected};

use crate::bus::BusDevice;
use crate::mem::{Dma, DmaError};

/// First port.
pub const FW_CFG_BASE: u64 = 0x510;
/// Ports, from the selector to the end of the DMA address.
pub const FW_CFG_LEN: u64 = 12;

/// Ports by their distance from [`FW_CFG_BASE`].
const SELECTOR: u64 = 0;
const DATA: u64 = 1;
const DMA_HIGH: u64 = 4;
const DMA_LOW: u64 = 8;
/// What the DMA address register reads as.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";

/// Bits of a descriptor's control field. The upper half is the key to select.
mod control {
    pub(super) const ERROR: u32 = 1 << 0;
    pub(super) const READ: u32 = 1 << 1;
    pub(super) const SKIP: u32 = 1 << 2;
    pub(super) const SELECT: u32 = 1 << 3;
    pub(super) const WRITE: u32 = 1 << 4;
}

/// A descriptor in guest memory, all fields big-endian: control, length in bytes, address.
const DESCRIPTOR_LEN: usize = 16;
/// Bytes of one transfer at most, unless an item is longer: the vCPU that started it waits for the end.
const MAX_TRANSFER: usize = 1 << 20;
/// Zeroes that a read beyond the end of an item is filled from.
static ZEROES: [u8; 4096] = [0; 4096];

/// The device. Its items are fixed once it is built.
pub struct FwCfg {
    items: Vec<(u16, Item)>,
    longest: usize,
    dma: Dma,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    selected: Selected,
    offset: usize,
    dma_high: u32,
}

impl FwCfg {
    fn new(items: Vec<(u16, Item)>, dma: Dma) -> Self {
        let longest = items.iter().map(|(_, item)| item.len()).max().unwrap_or(0);
        let device = Self { items, longest, dma, state: Mutex::default() };
        device.reset();
        device
    }

    /// System reset: the selector at key 0, written files as they were first.
    pub fn reset(&self) {
        let mut state = self.lock();
        for (_, item) in &self.items {
            item.reset();
        }
        state.dma_high = 0;
        self.select(&mut state, 0);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn select(&self, state: &mut State, key: u16) {
        // Bit 14 asked for the write channel of old; the item is the same.
        let key = key & !key::WRITE_CHANNEL;
        let found = self.items.binary_search_by_key(&key, |(key, _)| *key).ok();
        let item = found.and_then(|at| self.items.get(at));
        state.selected = item.map_or_else(Selected::default, |(_, item)| item.select());
        state.offset = 0;
    }

    /// Carries out the descriptor at `address`. Without one in RAM there is nobody to tell.
    fn run(&self, state: &mut State, address: u64) {
        let mut descriptor = [0; DESCRIPTOR_LEN];
        if self.dma.read(address, &mut descriptor).is_err() {
            crate::log_limited!(debug, "fw_cfg: descriptor at {address:#x} is not in RAM");
            return;
        }
        let [c0, c1, c2, c3, l0, l1, l2, l3, data @ ..] = descriptor;
        let command = u32::from_be_bytes([c0, c1, c2, c3]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        if command & control::SELECT != 0 {
            self.select(state, (command >> 16) as u16);
        }
        let done = self.transfer(state, command, length, u64::from_be_bytes(data));
        if let Err(e) = &done {
            crate::log_limited!(debug, "fw_cfg: DMA of {length:#x} bytes, command {command:#x}: {e}");
        }
        let status = if done.is_ok() { 0 } else { control::ERROR };
        // The descriptor was readable a moment ago, so it is RAM.
        let _ = self.dma.write(address, &status.to_be_bytes());
    }

    fn transfer(&self, state: &mut State, command: u32, length: usize, address: u64) -> Result<(), Refused> {
        if command & control::READ != 0 {
            self.check_length(length)?;
            self.check_range(address, length)?;
            let rest = state.selected.tail(state.offset);
            let from = rest.get(..length).unwrap_or(rest);
            self.dma.write(address, from)?;
            self.zero(address.wrapping_add(from.len() as u64), length - from.len())?;
        } else if command & control::WRITE != 0 {
            self.check_length(length)?;
            self.check_range(address, length)?;
            let mut data = vec![0; length];
            self.dma.read(address, &mut data)?;
            if !state.selected.write(state.offset, &data) {
                return Err(Refused::NotWritable);
            }
        } else if command & control::SKIP == 0 {
            return Ok(());
        }
        state.offset = state.offset.saturating_add(length);
        Ok(())
    }

    fn check_length(&self, length: usize) -> Result<(), Refused> {
        if length > self.longest.max(MAX_TRANSFER) { Err(Refused::TooLong) } else { Ok(()) }
    }

    /// Refuses a transfer before any of it is done.
    fn check_range(&self, address: u64, length: usize) -> Result<(), Refused> {
        if length > 0 && !self.dma.ram()?.check_range(GuestAddress(address), length) {
            return Err(DmaError::NotRam { addr: address, len: length as u64 }.into());
        }
        Ok(())
    }

    fn zero(&self, mut address: u64, mut length: usize) -> Result<(), Refused> {
        while length > 0 {
            let part = ZEROES.get(..length).unwrap_or(&ZEROES);
            self.dma.write(address, part)?;
            address = address.wrapping_add(part.len() as u64);
            length -= part.len();
        }
        Ok(())
    }
}

/// Why a transfer ended with the error bit.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Dma(#[from] DmaError),
    #[error("longer than any item")]
    TooLong,
    #[error("not a writable file, or beyond its end")]
    NotWritable,
}

impl BusDevice for FwCfg {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (DATA, [byte]) => {
                let mut state = self.lock();
                *byte = state.selected.tail(state.offset).first().copied().unwrap_or(0);
                state.offset = state.offset.saturating_add(1);
            }
            (DMA_HIGH.., data) => {
                let from = usize::try_from(offset - DMA_HIGH).unwrap_or(usize::MAX);
                super::read_bytes(0, data, |at| {
                    let at = usize::try_from(at).unwrap_or(usize::MAX).saturating_add(from);
                    DMA_SIGNATURE.get(at).copied().unwrap_or(0xff)
                });
            }
            (_, data) => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SELECTOR, &[low, high]) => {
                let mut state = self.lock();
                self.select(&mut state, u16::from_le_bytes([low, high]));
            }
            (DMA_HIGH, &[a, b, c, d]) => self.lock().dma_high = u32::from_be_bytes([a, b, c, d]),
            (DMA_LOW, &[a, b, c, d]) => {
                let mut state = self.lock();
                let low = u32::from_be_bytes([a, b, c, d]);
                let address = u64::from(std::mem::take(&mut state.dma_high)) << 32 | u64::from(low);
                self.run(&mut state, address);
            }
            _ => {}
        }
    }

    fn name(&self) -> &str {
        "fw_cfg"
    }
}

/// Called with the bytes of a writable file after each write to it, on the vCPU thread that wrote.
pub type Written = Arc<dyn Fn(&[u8]) + Send + Sync>;
/// Makes the bytes of a file when the guest selects it.
pub type Make = Arc<dyn Fn() -> Vec<u8> + Send + Sync>;
