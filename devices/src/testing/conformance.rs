//! A suite that every backend must pass: random operations against a plain vector.

#![allow(clippy::panic, clippy::indexing_slicing, clippy::unwrap_used)]

use std::rc::Rc;
use std::sync::Arc;

use vm_memory::GuestAddress;

use crate::iothread::{Io, TaskPool};
use crate::mem::{Dma, FromGuest, GuestRam, SgList, ToGuest};
use crate::storage::{BlockBackend, BlockErrorKind, ByteOffset, Durability, Span, Unmap};

/// Transfers of the suite are at most this many sectors of 512 bytes.
const SECTORS_MAX: u64 = 1300;

/// A small generator of pseudo-random numbers (xorshift64), so that failures repeat.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts a sequence; the seed must not be 0.
    pub fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) % limit.max(1)
    }
}

/// A list of `len` bytes of a guest's memory, at an odd address when `align` is 1.
///
/// # Panics
/// When the host has no memory.
pub fn memory(random: &mut Random, len: u64, align: u64) -> SgList {
    let offset = random.below(8) * align;
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), (len + offset) as usize)]).unwrap();
    let dma = Dma::new(Arc::new(ram));
    dma.set_bus_master(true);
    dma.to_guest([(offset, len as u32)]).unwrap().into_inner()
}

/// Checks reads, writes, zeroing, flushes and refusals of a writable backend, with memory of any alignment.
///
/// # Panics
/// When the backend does anything that a plain vector would not.
pub async fn check(io: &Io, backend: &impl BlockBackend, seed: u64, rounds: u32) {
    let len = backend.geometry().len;
    assert!(len > 0 && len.is_multiple_of(512));
    let mut random = Random::new(seed);
    let mut oracle = contents(io, backend).await;
    for round in 0..rounds {
        let sectors = 1 + random.below(SECTORS_MAX.min(len / 512));
        let at = random.below(len / 512 - sectors + 1) * 512;
        let size = sectors * 512;
        let range = at as usize..(at + size) as usize;
        // Mostly as drivers do it, sometimes as a hostile guest does.
        let align = [4096, 512, 4, 1][random.below(4) as usize];
        let what = format!("seed {seed} round {round}: {size} bytes at {at}, memory aligned to {align}");
        match random.below(8) {
            0..3 => {
                let mem = memory(&mut random, size, align);
                let watch = FromGuest::new(mem.window(0, size));
                backend.read(io, ByteOffset(at), ToGuest::new(mem)).await.unwrap();
                let mut got = vec![0; size as usize];
                watch.read_at(0, &mut got);
                assert!(got == oracle[range], "{what}: read something else");
            }
            3..6 => {
                let data: Vec<u8> = (0..size).map(|i| (i / 512) as u8 ^ random.0 as u8 ^ i as u8).collect();
                let mem = ToGuest::new(memory(&mut random, size, align));
                mem.write_at(0, &data);
                let durability = if random.below(4) == 0 { Durability::Stable } else { Durability::Cached };
                let from = FromGuest::new(mem.into_inner());
                backend.write(io, ByteOffset(at), from, durability).await.unwrap();
                oracle[range].copy_from_slice(&data);
            }
            6 => {
                let unmap = if random.below(2) == 0 { Unmap::Keep } else { Unmap::Allowed };
                backend.zero(io, Span { at: ByteOffset(at), len: size }, unmap).await.unwrap();
                oracle[range].fill(0);
            }
            _ => backend.flush(io).await.unwrap(),
        }
    }
    assert!(contents(io, backend).await == oracle, "seed {seed}: the image ended up different");
    refusals(io, backend, len).await;
    assert!(contents(io, backend).await == oracle, "a refused operation changed the image");
}

/// Ranges beyond the end are refused, also those whose end overflows; nothing at the end is allowed.
async fn refusals(io: &Io, backend: &impl BlockBackend, len: u64) {
    let list = |size| SgList::host(size, 4096).unwrap();
    for (at, size) in [(len, 512), (len - 512, 1024), (u64::MAX - 511, 512), (u64::MAX, 512), (1 << 63, 4096)]
    {
        let read = backend.read(io, ByteOffset(at), ToGuest::new(list(size))).await;
        assert_eq!(read.unwrap_err().kind, BlockErrorKind::OutOfRange, "read at {at}");
        let write = backend.write(io, ByteOffset(at), FromGuest::new(list(size)), Durability::Cached).await;
        assert_eq!(write.unwrap_err().kind, BlockErrorKind::OutOfRange, "write at {at}");
        let span = Span { at: ByteOffset(at), len: size as u64 };
        let zero = backend.zero(io, span, Unmap::Allowed).await;
        assert_eq!(zero.unwrap_err().kind, BlockErrorKind::OutOfRange, "zero at {at}");
    }
    for at in [0, 512, len] {
        backend.read(io, ByteOffset(at), ToGuest::empty()).await.unwrap();
        backend.write(io, ByteOffset(at), FromGuest::empty(), Durability::Cached).await.unwrap();
        backend.zero(io, Span { at: ByteOffset(at), len: 0 }, Unmap::Keep).await.unwrap();
    }
}

/// Checks that writes to neighbouring sectors at the same time never undo each other.
///
/// Each of the first 64 sectors has one writer, which counts up in it. Each 4096 bytes of the next 64 sectors have
/// one writer that counts up in all of them, and one that disturbs the first sector only.
///
/// # Panics
/// When a sector does not end with its writer's last count.
pub async fn check_neighbours(io: &Io, backend: Rc<impl BlockBackend + 'static>, rounds: u8) {
    assert!(backend.geometry().len >= 128 * 512);
    let pool = TaskPool::new(io, 80);
    let writer = |at: u64, len: u64, disturb: bool, align: u64| {
        let (io, backend) = (io.clone(), backend.clone());
        async move {
            let mut random = Random::new(at + 1);
            for count in 1..=rounds {
                let mem = ToGuest::new(memory(&mut random, len, align));
                mem.write_at(0, &vec![if disturb { 0xee } else { count }; len as usize]);
                let from = FromGuest::new(mem.into_inner());
                backend.write(&io, ByteOffset(at), from, Durability::Cached).await.unwrap();
            }
        }
    };
    for sector in 0..64 {
        assert!(pool.spawn(writer(sector * 512, 512, false, 512)).is_ok());
    }
    for block in 8..16 {
        assert!(pool.spawn(writer(block * 4096, 4096, false, 4096)).is_ok());
        assert!(pool.spawn(writer(block * 4096, 512, true, 512)).is_ok());
    }
    pool.drained().await;
    let got = contents(io, &*backend).await;
    for (sector, bytes) in got.chunks(512).take(128).enumerate() {
        let disturbed = sector >= 64 && sector % 8 == 0;
        assert!(disturbed || bytes.iter().all(|&b| b == rounds), "sector {sector} lost its last write");
    }
}

/// Everything on the image.
///
/// # Panics
/// When it cannot be read.
pub async fn contents(io: &Io, backend: &impl BlockBackend) -> Vec<u8> {
    let len = backend.geometry().len;
    let mem = SgList::host(len as usize, 4096).unwrap();
    let watch = FromGuest::new(mem.window(0, len));
    backend.read(io, ByteOffset(0), ToGuest::new(mem)).await.unwrap();
    let mut bytes = vec![0; len as usize];
    watch.read_at(0, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FaultDisk, RamDisk, on_io_thread};

    #[test]
    fn the_ram_disk_conforms() {
        on_io_thread(|io| async move {
            check(&io, &RamDisk::new(1 << 20), 1, 300).await;
            check(&io, &FaultDisk::new(RamDisk::new(64 << 10)), 2, 300).await;
            check_neighbours(&io, Rc::new(RamDisk::new(1 << 20)), 20).await;
        });
    }
}
