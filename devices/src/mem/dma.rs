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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn memory() -> Dma {
        let dma = Dma::new(Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 4096)]).unwrap()));
        dma.set_bus_master(true);
        dma
    }

    /// An index of which one half is of before and the other of after is far from both.
    #[test]
    fn cve_2020_13759_an_index_is_read_whole() {
        let dma = memory();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for value in [0x00ff, 0xff00] {
                        dma.store_u16(6, value, Ordering::Release).unwrap();
                    }
                }
            });
            dma.store_u16(6, 0x00ff, Ordering::Release).unwrap();
            for _ in 0..if cfg!(miri) { 200 } else { 200_000 } {
                let value = dma.load_u16(6, Ordering::Acquire).unwrap();
                if !matches!(value, 0x00ff | 0xff00) {
                    stop.store(true, Ordering::Relaxed);
                    panic!("{value:#06x}");
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        // Where that cannot be, there is no index.
        for addr in [7, 4095, 4096, u64::MAX - 1, u64::MAX] {
            assert!(dma.load_u16(addr, Ordering::Acquire).is_err(), "{addr:#x}");
            assert!(dma.store_u16(addr, 0, Ordering::Release).is_err(), "{addr:#x}");
        }
    }

    #[test]
    fn cve_2017_11334_and_2023_41051_ranges_are_in_ram_as_a_whole() {
        let dma = memory();
        dma.write(0, &[0x5a; 4096]).unwrap();
        for (addr, len) in [(4095_u64, 2_usize), (4096, 1), (0, 4097), (u64::MAX, 1), (u64::MAX - 1, 4)] {
            let mut bytes = vec![0; len];
            assert!(dma.read(addr, &mut bytes).is_err(), "{addr:#x} {len}");
            assert!(dma.write(addr, &bytes).is_err(), "{addr:#x} {len}");
            assert!(dma.to_guest([(addr, len as u32)]).is_err(), "{addr:#x} {len}");
            assert!(dma.from_guest([(0, 8), (addr, len as u32)]).is_err(), "{addr:#x} {len}");
        }
        assert!(dma.from_guest([(0, u32::MAX)]).is_err());
        dma.set_bus_master(false);
        assert!(matches!(dma.read(0, &mut [0; 8]), Err(DmaError::Revoked)));
    }
}
