//! Where vCPU accesses meet devices: one map for memory-mapped I/O and one for ports.

mod doorbell;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use thiserror::Error;

pub use doorbell::{Doorbell, Doorbells, Space};

/// A device, or a window of one, that answers accesses at an offset within its range.
///
/// Called on vCPU threads, by several at once: an implementation locks for the time of the access only and
/// never waits for I/O. Any width and alignment can arrive; what a device does not define reads as all ones.
pub trait BusDevice: Send + Sync {
    /// Fills `data` (1 to 8 bytes for one access) with the value at `offset`, little-endian.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes the value of a write of `data.len()` bytes at `offset`, little-endian.
    fn write(&self, offset: u64, data: &[u8]);
    /// The name for traces and errors.
    fn name(&self) -> &str;
}

/// Why a range could not be mapped.
#[derive(Debug, Error)]
pub enum MapError {
    /// Another device answers a part of the range.
    #[error("{name} at {base:#x} length {len:#x} overlaps {other} at {other_base:#x}")]
    Overlap {
        /// The device to be mapped.
        name: String,
        /// First address wanted.
        base: u64,
        /// Length wanted in bytes.
        len: u64,
        /// The device already there.
        other: String,
        /// Its first address.
        other_base: u64,
    },
    /// A length of zero, or an end beyond the address space.
    #[error("{name}: no such range {base:#x} length {len:#x}")]
    Range {
        /// The device to be mapped.
        name: String,
        /// First address wanted.
        base: u64,
        /// Length wanted in bytes.
        len: u64,
    },
}

struct Entry {
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// An address space of devices: physical addresses or I/O ports.
///
/// Lookups take a read lock and leave it before the device runs, so a device may remap the bus it was
/// reached through (a PCI BAR does).
#[derive(Default)]
pub struct Bus {
    map: RwLock<BTreeMap<u64, Entry>>,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Maps `device` at `base..base+len`.
    pub fn map(&self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), MapError> {
        let name = || device.name().to_owned();
        let last = base.checked_add(len.wrapping_sub(1)).filter(|_| len > 0);
        let Some(last) = last else { return Err(MapError::Range { name: name(), base, len }) };
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((&other_base, other)) = map.range(..=last).next_back()
            && other_base + (other.len - 1) >= base
        {
            return Err(MapError::Overlap {
                name: name(),
                base,
                len,
                other: other.device.name().into(),
                other_base,
            });
        }
        map.insert(base, Entry { len, device });
        Ok(())
    }

    /// Takes away what is mapped at exactly `base`; returns whether there was something.
    pub fn unmap(&self, base: u64) -> bool {
        self.map.write().unwrap_or_else(PoisonError::into_inner).remove(&base).is_some()
    }

    /// The device that answers at `addr`, and the offset within its range.
    pub fn find(&self, addr: u64) -> Option<(Arc<dyn BusDevice>, u64)> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        let (&base, entry) = map.range(..=addr).next_back()?;
        let offset = addr - base;
        (offset < entry.len).then(|| (entry.device.clone(), offset))
    }

    /// Reads; an address that nobody claims gives all ones, as on a real bus.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        match self.find(addr) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes; an address that nobody claims swallows the value.
    pub fn write(&self, addr: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(addr) {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    struct Cell(&'static str, Mutex<u8>);
    impl BusDevice for Cell {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(*self.1.lock().unwrap() + offset as u8);
        }
        fn write(&self, _: u64, data: &[u8]) {
            *self.1.lock().unwrap() = data[0];
        }
        fn name(&self) -> &str {
            self.0
        }
    }

    #[test]
    fn finds_by_range_and_reads_ones_elsewhere() {
        let bus = Bus::new();
        bus.map(0x10, 4, Arc::new(Cell("a", Mutex::new(7)))).unwrap();
        let mut b = [0];
        bus.read(0x12, &mut b);
        assert_eq!(b, [9]);
        bus.write(0x10, &[1]);
        bus.read(0x10, &mut b);
        assert_eq!(b, [1]);
        for addr in [0xf, 0x14, u64::MAX] {
            bus.read(addr, &mut b);
            assert_eq!(b, [0xff], "{addr:#x}");
        }
    }

    #[test]
    fn refuses_overlap_and_wrap() {
        let bus = Bus::new();
        let cell = || Arc::new(Cell("c", Mutex::new(0)));
        bus.map(0x10, 0x10, cell()).unwrap();
        for (base, len) in [(0x8, 0x9), (0x1f, 1), (0, 0x100), (0x10, 0x10)] {
            assert!(matches!(bus.map(base, len, cell()), Err(MapError::Overlap { .. })), "{base:#x}");
        }
        assert!(matches!(bus.map(5, 0, cell()), Err(MapError::Range { .. })));
        assert!(matches!(bus.map(u64::MAX, 2, cell()), Err(MapError::Range { .. })));
        bus.map(0x20, 1, cell()).unwrap();
        assert!(bus.unmap(0x10) && !bus.unmap(0x10));
    }
}
