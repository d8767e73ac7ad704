//! qcow2 images: QEMU's format with clusters allocated on demand, backing files, compression and snapshots.
//!
//! Clusters that are allocated are read and written by the container file's own path: guest memory to file without
//! a copy. Tables are looked up in memory; what is not there is loaded. See [`flush`] for the order in which changes
//! reach the file.
//!
//! # Who may do what at the same time
//! - Transfers in place share the guest's range. Whoever changes how a range is stored has it alone, and waits until
//!   the kernel is done with everything in it, also with what was abandoned.
//! - Whoever changes tables or refcounts, or writes them back, has the *turn* of the image.

mod alloc;
mod entry;
mod flush;
mod grow;
mod header;
mod layer;
mod meta;
mod open;
mod snapshots;
mod write;
mod zero;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::barrier::Barrier;
use super::error::Action;
use super::gate::{Access, Gate};
use super::raw::fill_zeros;
use super::{
    Backing, BlockBackend, BlockError, BlockErrorKind, ByteOffset, CacheMode, Durability, Ending, Extent,
    Geometry, OpenError, RawImage, Sharing, Span, Unmap,
};
use crate::iothread::{Hold, Io};
use crate::mem::{FromGuest, ToGuest};
use entry::{Entry, Packed};
use header::AUTOCLEAR_FIELD;
use layer::Layer;

/// Host memory of one image for copies of clusters at most, in bytes.
const BUDGET: u64 = 8 << 20;
/// Unpacked clusters kept.
const UNPACKED: usize = 4;
/// Memory for clusters that are being unpacked, in bytes. One always has it.
const UNPACKING: u64 = 8 << 20;
/// Where flushes are ignored, tables are written back when they have waited so long.
const LATEST: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
/// Clusters that one question after an extent looks at.
const LOOK: u64 = 4096;

/// What to open and how.
#[derive(Clone, Debug)]
pub struct Qcow2Options {
    /// The image at the top of its chain.
    pub path: PathBuf,
    /// Refuse writes.
    pub read_only: bool,
    /// How the host caches the files of the chain.
    pub cache: CacheMode,
    /// Who else may use the top image at the same time; backing files are shared with other readers.
    pub sharing: Sharing,
    /// Which backing files it may have.
    pub backing: Backing,
    /// Give the space of clusters that are freed back to the host.
    pub discard: bool,
}

/// A qcow2 image with its backing files. May be shared by several I/O threads.
///
/// Dropping it writes its tables back.
pub struct Qcow2Image {
    inner: Arc<Chain>,
}

/// The files of an image.
struct Chain {
    /// From the top, which alone is written to.
    layers: Vec<Layer>,
    /// A raw file at the bottom.
    base: Option<RawImage>,
    /// Length of the disk in bytes as anyone hears of it: what the header says for good.
    len: AtomicU64,
    cache: CacheMode,
    read_only: bool,
    discard: bool,
    /// Ranges of the guest.
    gate: Arc<Gate>,
    /// One place: the turn.
    turn: Arc<Gate>,
    /// One place, for who makes the disk longer: that takes several turns.
    growing: Arc<Gate>,
    /// A task is about to write tables back.
    reminded: AtomicBool,
    unpacked: Mutex<VecDeque<Unpacked>>,
    /// Memory for clusters that are being unpacked.
    unpacking: Arc<Gate>,
}

/// A cluster that was unpacked.
struct Unpacked {
    layer: usize,
    packed: Packed,
    bytes: Arc<Vec<u8>>,
}

/// Where bytes of the disk are.
enum Piece {
    Zero,
    Data { layer: usize, at: u64 },
    Packed { layer: usize, packed: Packed, within: u64 },
    Base { at: u64 },
}

impl Qcow2Image {
    /// The name of its file, for messages.
    pub(in crate::storage) fn name(&self) -> &str {
        self.inner.layers.first().map_or("", |layer| layer.file.name())
    }

    /// Opens and locks an image and its backing files. Errors name the file and the remedy.
    pub fn open(options: &Qcow2Options) -> Result<Self, OpenError> {
        Ok(Self { inner: Arc::new(Chain::open(options)?) })
    }

    /// Looks at the headers of an image and its backing files as opening it would, and locks and changes nothing.
    ///
    /// Says where the disk ends.
    pub fn inspect(options: &Qcow2Options) -> Result<Ending, OpenError> {
        open::inspect(options)
    }

    /// The files of an image: its own, and its backing files from the nearest on. Locks and changes nothing.
    pub fn files(options: &Qcow2Options) -> Result<Vec<PathBuf>, OpenError> {
        open::files(options)
    }

    pub(super) fn raw_files(options: &Qcow2Options) -> Result<Vec<super::RawOptions>, OpenError> {
        open::raw_files(options)
    }

    /// Whether it could not be made stable: then it cannot be again before it is opened anew.
    pub(super) fn has_failed(&self) -> bool {
        self.inner.layers.first().is_some_and(|top| top.file.has_failed())
    }

    /// Where flushes are ignored, the guest may never ask for one: then tables go to the kernel after a while.
    fn remind(&self, io: &Io) {
        struct Reminded(Weak<Chain>);
        impl Drop for Reminded {
            fn drop(&mut self) {
                if let Some(chain) = self.0.upgrade() {
                    chain.reminded.store(false, Ordering::Release);
                }
            }
        }
        let chain = &self.inner;
        let pending = || chain.top().is_ok_and(|top| top.meta().is_pending());
        if chain.cache != CacheMode::Unsafe || !pending() || chain.reminded.swap(true, Ordering::AcqRel) {
            return;
        }
        let (reminded, own) = (Reminded(Arc::downgrade(chain)), io.clone());
        io.spawn(async move {
            own.sleep(LATEST).await;
            let Some(chain) = reminded.0.upgrade() else { return };
            drop(reminded);
            // What fails now is tried again, by the next flush or when the image is closed.
            if let Err(e) = chain.flush(&own).await {
                crate::log_limited!(warn, "{e}: {:?}", e.source);
            }
        });
    }
}

impl Chain {
    /// The layer that is written to.
    fn top(&self) -> Result<&Layer, BlockError> {
        let none = || BlockError::new(BlockErrorKind::Unsupported, "a qcow2 image without a file");
        self.layers.first().ok_or_else(none)
    }

    fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed) & !511
    }

    /// Whether something is below the top.
    fn has_backing(&self) -> bool {
        self.layers.len() > 1 || self.base.is_some()
    }

    fn check(&self, action: Action, at: u64, len: u64) -> Result<(), BlockError> {
        let name = || self.layers.first().map_or("", |layer| layer.file.name());
        if action != Action::Read && self.read_only {
            let context = format!("{action} \"{}\" failed: the image is read-only", name());
            return Err(BlockError::new(BlockErrorKind::ReadOnly, context));
        }
        let end = self.len();
        if at.checked_add(len).is_some_and(|stop| stop <= end) {
            return Ok(());
        }
        let context =
            format!("{action} {len} bytes at {at} of \"{}\" failed: the image has {end} bytes", name());
        Err(BlockError::new(BlockErrorKind::OutOfRange, context))
    }

    /// Where the bytes at `at` are, and how many of the next `len` are there in a row.
    async fn resolve(&self, io: &Io, at: u64, mut len: u64) -> Result<(Piece, u64), BlockError> {
        for (layer, file) in self.layers.iter().enumerate() {
            // A shorter backing file ends in zeros, whatever is below it.
            if at >= file.len() {
                return Ok((Piece::Zero, len));
            }
            let (entry, run) = file.lookup(io, at, len.min(file.len().saturating_sub(at))).await?;
            len = run;
            let piece = match entry {
                Entry::Unallocated => continue,
                Entry::Zero { .. } => Piece::Zero,
                Entry::Data { at, .. } => Piece::Data { layer, at },
                Entry::Compressed(packed) => {
                    Piece::Packed { layer, packed, within: at & (file.header.cluster() - 1) }
                }
            };
            return Ok((piece, len));
        }
        match self.base.as_ref().map(|base| base.host_len()) {
            Some(end) if at < end => Ok((Piece::Base { at }, len.min(end - at))),
            _ => Ok((Piece::Zero, len)),
        }
    }

    /// Reads bytes that are at one place. The operations hold `hold`.
    async fn read_piece(&self, io: &Io, piece: Piece, into: ToGuest, hold: &Hold) -> Result<(), BlockError> {
        match piece {
            Piece::Zero => fill_zeros(&into),
            Piece::Data { layer, at } => {
                if let Some(layer) = self.layers.get(layer) {
                    layer.file.fill(io, at, into, hold).await?;
                }
            }
            Piece::Base { at } => {
                if let Some(base) = &self.base {
                    base.fill(io, at, into, hold).await?;
                }
            }
            Piece::Packed { layer, packed, within } => {
                let cluster = Box::pin(self.unpack(io, layer, packed)).await?;
                if let Some(bytes) = cluster.get(within as usize..) {
                    into.write_at(0, bytes.get(..into.len() as usize).unwrap_or(bytes));
                }
            }
        }
        Ok(())
    }

    async fn unpack(&self, io: &Io, layer: usize, packed: Packed) -> Result<Arc<Vec<u8>>, BlockError> {
        let lock = || self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        let known = |have: &&Unpacked| have.layer == layer && have.packed == packed;
        if let Some(found) = lock().iter().find(known) {
            return Ok(found.bytes.clone());
        }
        let Some(file) = self.layers.get(layer) else { return Ok(Arc::default()) };
        // As it is in the file, once more for who unpacks it, and as it becomes.
        let _memory = self.unpacking.enter(0..0, Access::Read, 2 * packed.len + file.header.cluster()).await;
        // Another command was perhaps faster.
        if let Some(found) = lock().iter().find(known) {
            return Ok(found.bytes.clone());
        }
        let bytes = Arc::new(file.unpack(io, packed).await?);
        let mut unpacked = lock();
        if unpacked.len() >= UNPACKED {
            unpacked.pop_front();
        }
        unpacked.push_back(Unpacked { layer, packed, bytes: bytes.clone() });
        Ok(bytes)
    }

    async fn read(&self, io: &Io, at: u64, mut into: ToGuest) -> Result<(), BlockError> {
        let len = into.len();
        self.check(Action::Read, at, len)?;
        let hold = self.gate.enter(at..at + len, Access::Write, 0).await;
        let mut done = 0;
        while done < len {
            let (piece, run) = self.resolve(io, at + done, len - done).await?;
            let part = if run == len {
                std::mem::replace(&mut into, ToGuest::empty())
            } else {
                into.window(done, run)
            };
            self.read_piece(io, piece, part, &hold).await?;
            done += run;
        }
        Ok(())
    }

    /// Waits for the turn.
    async fn turn(&self) -> Hold {
        self.turn.enter(0..1, Access::Modify, 0).await
    }

    /// Before anything changes: features of the image that are not kept up to date here become invalid, such as dirty bitmaps.
    async fn begin_changes(&self, io: &Io) -> Result<(), BlockError> {
        let top = self.top()?;
        if !top.autoclear.load(Ordering::Acquire) {
            return Ok(());
        }
        let turn = self.turn().await;
        if top.autoclear.load(Ordering::Acquire) {
            top.write_bytes(io, AUTOCLEAR_FIELD, &[0; 8], &turn).await?;
            top.file.barrier(io, Barrier::Autoclear).await?;
            top.autoclear.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Makes everything stable.
    async fn flush(&self, io: &Io) -> Result<(), BlockError> {
        let top = self.top()?;
        let pending = top.meta().is_pending();
        if !pending {
            return top.file.barrier(io, Barrier::Flush).await;
        }
        let turn = self.turn().await;
        Box::pin(self.write_back(io, &turn)).await
    }

    /// Writes all tables back, whatever the cache mode says of flushes.
    async fn close(&self, io: &Io) -> Result<(), BlockError> {
        // What was freed is counted down after the first round; the second writes the counts.
        self.flush(io).await?;
        let top = self.top()?;
        let (pending, uncounted) = {
            let meta = top.meta();
            (meta.is_pending(), meta.uncounted)
        };
        if uncounted > 1 {
            let name = top.file.name();
            tracing::warn!(
                "{name}: {uncounted} clusters were in use and not counted; run qemu-img check on it"
            );
        }
        if pending { self.flush(io).await } else { Ok(()) }
    }

    async fn write_back(&self, io: &Io, turn: &Hold) -> Result<(), BlockError> {
        self.top()?.write_back(io, turn, self.discard).await?;
        // What was freed may be stored again, as something else.
        self.unpacked.lock().unwrap_or_else(PoisonError::into_inner).retain(|have| have.layer != 0);
        Ok(())
    }
}

impl BlockBackend for Qcow2Image {
    fn geometry(&self) -> Geometry {
        let chain = &self.inner;
        let (host, cluster) = match chain.layers.first() {
            Some(top) => (top.file.geometry(), top.header.cluster()),
            None => {
                return Geometry {
                    len: 0,
                    physical_block: 512,
                    atomic: 0,
                    dma_align: 1,
                    discard_granularity: 0,
                    read_only: true,
                    volatile_cache: false,
                };
            }
        };
        Geometry {
            len: chain.len(),
            // A write to several clusters may go to several places, and be torn between them.
            physical_block: host.physical_block.min(cluster as u32),
            // Into a new cluster, which appears as a whole or not at all, or in place.
            atomic: if u64::from(host.atomic) <= cluster { host.atomic } else { 0 },
            discard_granularity: cluster as u32,
            read_only: chain.read_only,
            volatile_cache: !chain.cache.is_stable(),
            ..host
        }
    }

    async fn read(&self, io: &Io, at: ByteOffset, into: ToGuest) -> Result<(), BlockError> {
        self.inner.read(io, at.0, into).await
    }

    async fn write(
        &self,
        io: &Io,
        at: ByteOffset,
        from: FromGuest,
        durability: Durability,
    ) -> Result<(), BlockError> {
        let chain = &self.inner;
        chain.check(Action::Write, at.0, from.len())?;
        if chain.top()?.autoclear.load(Ordering::Acquire) {
            Box::pin(chain.begin_changes(io)).await?;
        }
        chain.put(io, at.0, from, chain.must_be_stable(durability)).await?;
        self.remind(io);
        Ok(())
    }

    async fn flush(&self, io: &Io) -> Result<(), BlockError> {
        if self.inner.read_only {
            return Ok(());
        }
        // Also where barriers are ignored: what the kernel has survives the end of this process.
        self.inner.flush(io).await
    }

    fn is_unflushed(&self) -> bool {
        let chain = &self.inner;
        let tops = chain.layers.first().filter(|_| !chain.read_only && chain.cache != CacheMode::Unsafe);
        tops.is_some_and(|top| top.meta().is_dirty() || top.file.is_unflushed())
    }

    async fn zero(&self, io: &Io, span: Span, unmap: Unmap) -> Result<(), BlockError> {
        let chain = &self.inner;
        chain.check(Action::Zero, span.at.0, span.len)?;
        Box::pin(chain.begin_changes(io)).await?;
        Box::pin(chain.make_zero(io, span.at.0, span.len, unmap)).await?;
        if chain.cache.is_stable() {
            chain.flush(io).await?;
        }
        self.remind(io);
        Ok(())
    }

    async fn extent(&self, io: &Io, span: Span) -> Result<Extent, BlockError> {
        let chain = &self.inner;
        chain.check(Action::Read, span.at.0, span.len)?;
        let _hold = chain.gate.enter(span.at.0..span.at.0 + span.len, Access::Write, 0).await;
        // Whoever asks for all extents of a large disk asks very often, and mostly nothing here has to wait.
        io.give_way().await;
        let most = chain.top()?.header.cluster() * LOOK;
        let (piece, len) = chain.resolve(io, span.at.0, span.len.min(most)).await?;
        Ok(Extent { allocated: !matches!(piece, Piece::Zero), len })
    }

    async fn refresh(&self, _: &Io) {}

    async fn grow(&self, io: &Io, len: u64) -> Result<(), BlockError> {
        Box::pin(self.inner.grow(io, len)).await
    }

    async fn close(&self, io: &Io) -> Result<(), BlockError> {
        if self.inner.read_only {
            return Ok(());
        }
        let file = &self.inner.top()?.file;
        file.begin_closing();
        let result = Box::pin(self.inner.close(io)).await;
        file.forget_lost(io).await;
        result
    }
}

impl Drop for Qcow2Image {
    /// Whoever has the image closes it. Here it is too late: this may be an I/O thread, which never waits.
    fn drop(&mut self) {
        let Some(top) = self.inner.layers.first() else { return };
        // What could not be made stable must not be published, and that was told.
        if !self.inner.read_only && top.meta().is_pending() && !self.has_failed() {
            tracing::error!("{}: not closed: writes since the last flush are lost", top.file.name());
        }
    }
}
