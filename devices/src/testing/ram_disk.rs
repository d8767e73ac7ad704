//! A disk in memory.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::iothread::Io;
use crate::mem::{FromGuest, ToGuest};
use crate::storage::{
    Action, BlockBackend, BlockError, BlockErrorKind, ByteOffset, Durability, Extent, Geometry, Span, Unmap,
};

/// A disk in memory. Every operation completes at its first poll.
pub struct RamDisk {
    bytes: Mutex<Vec<u8>>,
    geometry: Geometry,
}

impl RamDisk {
    /// A writable disk of `len` zeros, rounded down to a multiple of 512.
    pub fn new(len: usize) -> Self {
        let len = len - len % 512;
        let geometry = Geometry {
            len: len as u64,
            physical_block: 512,
            atomic: 0,
            dma_align: 1,
            discard_granularity: 512,
            read_only: false,
            volatile_cache: false,
        };
        Self { bytes: Mutex::new(vec![0; len]), geometry }
    }

    /// A disk with `bytes` in it, rounded down to a multiple of 512.
    pub fn with_bytes(bytes: &[u8]) -> Self {
        let disk = Self::new(bytes.len());
        let len = disk.geometry.len as usize;
        disk.lock().copy_from_slice(bytes.get(..len).unwrap_or_default());
        disk
    }

    /// The same disk with another geometry, of the same length.
    pub fn with_geometry(mut self, change: impl FnOnce(&mut Geometry)) -> Self {
        let len = self.geometry.len;
        change(&mut self.geometry);
        self.geometry.len = len;
        self
    }

    /// A copy of what is on the disk.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().clone()
    }

    /// A read, at once.
    pub(crate) fn get(&self, at: ByteOffset, into: &ToGuest) -> Result<(), BlockError> {
        self.with(Action::Read, at.0, into.len(), |part| into.write_at(0, part)).map(|_| ())
    }

    /// A write, at once.
    pub(crate) fn put(&self, at: ByteOffset, from: &FromGuest) -> Result<(), BlockError> {
        self.with(Action::Write, at.0, from.len(), |part| from.read_at(0, part)).map(|_| ())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(
        &self,
        action: Action,
        at: u64,
        len: u64,
        work: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, BlockError> {
        if action != Action::Read && self.geometry.read_only {
            return Err(BlockError::new(BlockErrorKind::ReadOnly, format!("{action} RAM disk: read-only")));
        }
        let range = usize::try_from(at).ok().zip(usize::try_from(at.saturating_add(len)).ok());
        let mut bytes = self.lock();
        match range.and_then(|(from, to)| bytes.get_mut(from..to)) {
            Some(part) => Ok(work(part)),
            None => {
                let context = format!("{action} {len} bytes at {at} of the RAM disk: out of range");
                Err(BlockError::new(BlockErrorKind::OutOfRange, context))
            }
        }
    }
}

/// A sparse file of blocks of 512 bytes: those full of zeros take no space.
pub(super) fn zeros_are_holes(bytes: &[u8]) -> Extent {
    let is_data = |block: &[u8]| block.iter().any(|byte| *byte != 0);
    let mut blocks = bytes.chunks(512).map(is_data);
    let allocated = blocks.next().unwrap_or(true);
    let same = 1 + blocks.take_while(|data| *data == allocated).count();
    Extent { allocated, len: (same as u64 * 512).min(bytes.len() as u64) }
}

impl fmt::Debug for RamDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RamDisk({:?})", self.geometry)
    }
}

impl BlockBackend for RamDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    async fn read(&self, _io: &Io, at: ByteOffset, into: ToGuest) -> Result<(), BlockError> {
        self.get(at, &into)
    }

    async fn write(
        &self,
        _io: &Io,
        at: ByteOffset,
        from: FromGuest,
        _durability: Durability,
    ) -> Result<(), BlockError> {
        self.put(at, &from)
    }

    async fn flush(&self, _io: &Io) -> Result<(), BlockError> {
        Ok(())
    }

    fn is_unflushed(&self) -> bool {
        false
    }

    async fn zero(&self, _io: &Io, span: Span, _unmap: Unmap) -> Result<(), BlockError> {
        self.with(Action::Zero, span.at.0, span.len, |part| part.fill(0))
    }

    async fn extent(&self, _io: &Io, span: Span) -> Result<Extent, BlockError> {
        self.with(Action::Read, span.at.0, span.len, |part| zeros_are_holes(part))
    }

    async fn refresh(&self, _: &Io) {}

    async fn grow(&self, _: &Io, _: u64) -> Result<(), BlockError> {
        Err(BlockError::new(BlockErrorKind::Unsupported, "a disk of a fixed length"))
    }
}
