//! An image in memory that records what was asked of it and does what a test wants.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a fake: a mistake of the test ends the test"
)]

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::task::{Poll, Waker};

use super::ram_disk::zeros_are_holes;
use crate::iothread::Io;
use crate::mem::{FromGuest, ToGuest};
use crate::storage::{
    BlockBackend, BlockError, BlockErrorKind, ByteOffset, Durability, Extent, Geometry, Span, Unmap,
};

/// One operation that reached the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Offset and length.
    Read(u64, u64),
    /// Offset, length and durability.
    Write(u64, u64, Durability),
    /// A flush.
    Flush,
    /// A range and whether it may be given back.
    Zero(Span, Unmap),
}

/// An image in memory.
pub struct RecordingDisk {
    bytes: Mutex<Vec<u8>>,
    geometry: Mutex<Geometry>,
    operations: Mutex<Vec<Operation>>,
    failure: Mutex<Option<BlockErrorKind>>,
    held: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
    /// How many operations have come to a held gate.
    arrived: AtomicU64,
    /// Bytes that one question about extents tells of at most.
    grain: AtomicU64,
    /// How often it was asked about extents.
    asked: AtomicU64,
    unflushed: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl RecordingDisk {
    /// `len` bytes of zeros that can be discarded in units of 4096.
    pub fn new(len: usize) -> Self {
        let geometry = Geometry {
            len: len as u64,
            physical_block: 4096,
            atomic: 4096,
            dma_align: 1,
            discard_granularity: 4096,
            read_only: false,
            volatile_cache: true,
        };
        Self {
            bytes: Mutex::new(vec![0; len]),
            geometry: Mutex::new(geometry),
            operations: Mutex::default(),
            failure: Mutex::default(),
            held: AtomicBool::new(false),
            waiting: Mutex::default(),
            arrived: AtomicU64::new(0),
            grain: AtomicU64::new(u64::MAX),
            asked: AtomicU64::new(0),
            unflushed: AtomicBool::new(false),
        }
    }

    /// Changes the geometry; the memory follows its length.
    pub fn set_geometry(&self, change: impl FnOnce(&mut Geometry)) {
        let mut geometry = lock(&self.geometry);
        change(&mut geometry);
        lock(&self.bytes).resize(geometry.len as usize, 0);
    }

    /// Changes bytes behind everybody's back.
    pub fn poke(&self, at: usize, bytes: &[u8]) {
        lock(&self.bytes)[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Takes the operations so far.
    pub fn operations(&self) -> Vec<Operation> {
        std::mem::take(&mut lock(&self.operations))
    }

    /// Lets every operation fail, or none.
    pub fn fail(&self, kind: Option<BlockErrorKind>) {
        *lock(&self.failure) = kind;
    }

    /// Holds operations back, or lets them go.
    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::SeqCst);
        lock(&self.waiting).drain(..).for_each(Waker::wake);
    }

    /// How many operations have been held back so far.
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::SeqCst)
    }

    /// Tells of extents piece by piece, as formats do that keep a table.
    pub fn set_grain(&self, bytes: u64) {
        self.grain.store(bytes, Ordering::SeqCst);
    }

    /// How often it was asked about extents so far.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }

    async fn begin(&self, operation: Operation) -> Result<(), BlockError> {
        lock(&self.operations).push(operation);
        let mut first = true;
        poll_fn(|cx| {
            if !self.held.load(Ordering::SeqCst) {
                return Poll::Ready(());
            }
            lock(&self.waiting).push(cx.waker().clone());
            // Who opened the gate before the waker was there has woken nobody.
            if !self.held.load(Ordering::SeqCst) {
                return Poll::Ready(());
            }
            if std::mem::take(&mut first) {
                self.arrived.fetch_add(1, Ordering::SeqCst);
            }
            Poll::Pending
        })
        .await;
        match *lock(&self.failure) {
            Some(kind) => Err(BlockError { kind, context: "a test".into(), source: None }),
            None => Ok(()),
        }
    }

    fn range(&self, at: u64, len: u64) -> Result<std::ops::Range<usize>, BlockError> {
        let end = at.checked_add(len).filter(|end| *end <= lock(&self.geometry).len);
        let end = end.ok_or(BlockError {
            kind: BlockErrorKind::OutOfRange,
            context: "a test".into(),
            source: None,
        })?;
        Ok(at as usize..end as usize)
    }
}

impl BlockBackend for RecordingDisk {
    fn geometry(&self) -> Geometry {
        *lock(&self.geometry)
    }

    async fn read(&self, _: &Io, at: ByteOffset, into: ToGuest) -> Result<(), BlockError> {
        self.begin(Operation::Read(at.0, into.len())).await?;
        let range = self.range(at.0, into.len())?;
        into.write_at(0, &lock(&self.bytes)[range]);
        Ok(())
    }

    async fn write(
        &self,
        _: &Io,
        at: ByteOffset,
        from: FromGuest,
        durability: Durability,
    ) -> Result<(), BlockError> {
        self.begin(Operation::Write(at.0, from.len(), durability)).await?;
        self.unflushed.fetch_or(durability == Durability::Cached, Ordering::SeqCst);
        let range = self.range(at.0, from.len())?;
        from.read_at(0, &mut lock(&self.bytes)[range]);
        Ok(())
    }

    async fn flush(&self, _: &Io) -> Result<(), BlockError> {
        self.begin(Operation::Flush).await?;
        self.unflushed.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn is_unflushed(&self) -> bool {
        self.unflushed.load(Ordering::SeqCst)
    }

    async fn zero(&self, _: &Io, span: Span, unmap: Unmap) -> Result<(), BlockError> {
        self.begin(Operation::Zero(span, unmap)).await?;
        self.unflushed.store(true, Ordering::SeqCst);
        let range = self.range(span.at.0, span.len)?;
        lock(&self.bytes)[range].fill(0);
        Ok(())
    }

    async fn extent(&self, _: &Io, span: Span) -> Result<Extent, BlockError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let range = self.range(span.at.0, span.len.min(self.grain.load(Ordering::SeqCst)))?;
        Ok(zeros_are_holes(&lock(&self.bytes)[range]))
    }

    async fn refresh(&self, _: &Io) {}

    async fn grow(&self, _: &Io, _: u64) -> Result<(), BlockError> {
        Err(BlockError::new(BlockErrorKind::Unsupported, "a disk of a fixed length"))
    }
}
