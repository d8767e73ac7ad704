//! The right of one device to reach guest memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::{FromGuest, GuestRam, SgList, ToGuest};

/// Why a device could not reach guest memory. It costs the request that named the address, never the device.
#[derive(Debug, Error)]
pub enum DmaError {
    /// The function's Bus Master Enable bit is clear.
    #[error("bus mastering is off")]
    Revoked,
    /// The range is not RAM, or not wholly RAM.
    #[error("guest address {addr:#x} length {len:#x} is not in RAM")]
    NotRam {
        /// Guest physical address of the first byte.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// One device's access to guest memory, revoked while its PCI Bus Master Enable bit is clear.
///
/// Clones share the revocation. Every method checks it anew.
#[derive(Clone, Debug)]
pub struct Dma {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    ram: Arc<GuestRam>,
    bus_master: AtomicBool,
}

impl Dma {
    /// A capability over all of `ram`, revoked until [`Dma::set_bus_master`] grants it.
    pub fn new(ram: Arc<GuestRam>) -> Self {
        Self { inner: Arc::new(Inner { ram, bus_master: AtomicBool::new(false) }) }
    }

    /// Follows the Bus Master Enable bit of the function's command register (PCI 3.0, 6.2.2).
    pub fn set_bus_master(&self, on: bool) {
        self.inner.bus_master.store(on, Ordering::Release);
    }

    /// Guest RAM, while bus mastering is on.
    pub fn ram(&self) -> Result<&Arc<GuestRam>, DmaError> {
        if self.inner.bus_master.load(Ordering::Acquire) {
            Ok(&self.inner.ram)
        } else {
            Err(DmaError::Revoked)
        }
    }

    /// Copies a plain structure out of guest memory: the copy is what gets checked and used.
    pub fn read_obj<T: FromBytes + FromZeros + IntoBytes>(&self, addr: u64) -> Result<T, DmaError> {
        let mut value = T::new_zeroed();
        self.read(addr, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Copies a plain structure into guest memory.
    pub fn write_obj<T: IntoBytes + Immutable>(&self, addr: u64, value: &T) -> Result<(), DmaError> {
        self.write(addr, value.as_bytes())
    }

    /// Fills `into` from guest memory.
    pub fn read(&self, addr: u64, into: &mut [u8]) -> Result<(), DmaError> {
        let (ram, len) = (self.ram()?, into.len());
        // Nearly everything is within one region: then there is no list of pieces to go through.
        if let Ok(slice) = ram.get_slice(GuestAddress(addr), len) {
            slice.copy_to(into);
            return Ok(());
        }
        ram.read_slice(into, GuestAddress(addr)).map_err(|e| not_ram(&e, addr, len))
    }

    /// Writes `from` into guest memory.
    pub fn write(&self, addr: u64, from: &[u8]) -> Result<(), DmaError> {
        let ram = self.ram()?;
        if let Ok(slice) = ram.get_slice(GuestAddress(addr), from.len()) {
            slice.copy_from(from);
            return Ok(());
        }
        ram.write_slice(from, GuestAddress(addr)).map_err(|e| not_ram(&e, addr, from.len()))
    }

    /// Loads a little-endian word at a multiple of two, at once.
    pub fn load_u16(&self, addr: u64, order: Ordering) -> Result<u16, DmaError> {
        let slice = self.ram()?.get_slice(GuestAddress(addr), 2).map_err(|e| not_ram(&e, addr, 2))?;
        slice.load(0, order).map(u16::from_le).map_err(|_| DmaError::NotRam { addr, len: 2 })
    }

    /// Stores a little-endian word at a multiple of two, at once.
    pub fn store_u16(&self, addr: u64, value: u16, order: Ordering) -> Result<(), DmaError> {
        let slice = self.ram()?.get_slice(GuestAddress(addr), 2).map_err(|e| not_ram(&e, addr, 2))?;
        slice.store(value.to_le(), 0, order).map_err(|_| DmaError::NotRam { addr, len: 2 })
    }

    /// Resolves guest ranges that the device will write to (data-in).
    pub fn to_guest(&self, parts: impl IntoIterator<Item = (u64, u32)>) -> Result<ToGuest, DmaError> {
        Ok(ToGuest(SgList::resolve(self.ram()?, parts)?))
    }

    /// Resolves guest ranges that the device will read from (data-out).
    pub fn from_guest(&self, parts: impl IntoIterator<Item = (u64, u32)>) -> Result<FromGuest, DmaError> {
        Ok(FromGuest(SgList::resolve(self.ram()?, parts)?))
    }
}

fn not_ram(_: &GuestMemoryError, addr: u64, len: usize) -> DmaError {
    DmaError::NotRam { addr, len: len as u64 }
}
