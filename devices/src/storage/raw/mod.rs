//! Raw images: regular files and block devices of the host, byte for byte what the guest sees.

mod container;
mod file;
mod forcing;
mod lost;
mod open;
mod single;
mod stable;
mod zero;

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::alignment::{Alignment, Direct};
use super::barrier::Barrier;
use super::ending::SECTOR;
use super::error::Action;
use super::fdset::{self, Buffered, Lease};
use super::lock::Sharing;
use super::sys;
use super::{
    BlockBackend, BlockError, BlockErrorKind, ByteOffset, CacheMode, Durability, Ending, Extent, Geometry,
    OpenError, Span, Unmap,
};
use crate::iothread::{Hold, Io, Owner, Permit, PieceLimits};
use crate::mem::{FromGuest, ToGuest};
pub(super) use container::fill_zeros;
use file::HostFile;
#[cfg(test)]
pub(super) use forcing::Forcing;
use open::Host;
#[cfg(test)]
pub(super) use open::whole_blocks;
pub(super) use open::{cannot_open, kind_of, length, probe};
use stable::Stable;

/// What to open and how.
#[derive(Clone, Debug)]
pub struct RawOptions {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Refuse writes.
    pub read_only: bool,
    /// How the host caches it.
    pub cache: CacheMode,
    /// Who else may use it at the same time.
    pub sharing: Sharing,
}

/// Tells a recording, in tests, what the next sync is for.
fn note(io: &Io, which: Barrier) {
    #[cfg(any(test, feature = "testing"))]
    io.name_sync(which.name());
    let _ = (io, which);
}

/// A raw image. May be shared by several I/O threads.
pub struct RawImage {
    host: HostFile,
    /// Whom transfers ask when their turn comes.
    permit: OnceLock<Arc<dyn Permit>>,
    /// For when it is closed and something was lost.
    known_as: Option<lost::Id>,
    /// The last block of a file that ends within one: direct I/O cannot write it without making the file longer.
    edge: Option<Box<HostFile>>,
    stable: Stable,
    alignment: Alignment,
    /// Length of the host's file in bytes.
    host_len: Arc<AtomicU64>,
    /// The host is being asked for the length.
    asking: Arc<AtomicBool>,
    cache: CacheMode,
    read_only: bool,
    /// A block device, whose length is the host's business.
    is_device: bool,
    /// Keeps the host from using the device meanwhile.
    _claim: Option<File>,
    /// And the files below it are locked as it is.
    _below: Vec<File>,
    logical_block: u32,
    physical_block: u32,
    atomic: u32,
    dma_align: u32,
    discard_granularity: u32,
    /// Makes those calls to the host that may block, one after the other.
    calls: Owner,
    /// The host has said that it cannot give back space.
    cannot_punch: AtomicBool,
    /// The host has said that it cannot zero ranges.
    cannot_zero: AtomicBool,
    /// Of what is of a set. Behind all that holds its files, so that they have gone when these do.
    leases: Vec<Lease>,
}

impl RawImage {
    /// Opens and locks an image.
    ///
    /// Its length is as [`Ending`] counts, of which whoever makes a disk of it can warn. Errors name the file and the remedy.
    pub fn open(options: &RawOptions) -> Result<Self, OpenError> {
        Self::of(options, Host::open(options, false)?)
    }

    /// As [`RawImage::open`], of a block device that the caller has taken from the host already (O_EXCL), and keeps.
    pub fn open_claimed(options: &RawOptions) -> Result<Self, OpenError> {
        Self::of(options, Host::open(options, true)?)
    }

    /// A block device, called `name`, that another process has opened with [`RawImage::open_claimed`] and direct I/O, and passed on.
    pub fn of_device(file: File, name: &str, pieces: PieceLimits) -> Result<Self, OpenError> {
        let flags = sys::status_flags(&file)
            .map_err(|e| OpenError::host(format!("{name}: cannot ask how it is open"), e))?;
        let is_device = file.metadata().is_ok_and(|found| found.file_type().is_block_device());
        if !is_device || flags & libc::O_DIRECT == 0 {
            return Err(OpenError::new(format!("{name}: it is no block device that is open for direct I/O")));
        }
        let options = RawOptions {
            path: name.into(),
            read_only: flags & libc::O_ACCMODE == libc::O_RDONLY,
            cache: CacheMode::None,
            sharing: Sharing::Unlocked,
        };
        Self::of(&options, Host::of_device(file, &options, pieces)?)
    }

    /// What is open of it, with its locks, for [`RawImage::of_device`] of another process.
    ///
    /// # Errors
    /// This process may have no more files open.
    pub fn into_file(self) -> std::io::Result<File> {
        self.host.file.try_clone()
    }

    fn of(options: &RawOptions, host: Host) -> Result<Self, OpenError> {
        let known_as = lost::opened(&host.file);
        let name: Arc<str> = fdset::shown(&options.path).into();
        let main = HostFile::new(host.file, &name, u64::from(host.align.block), host.pieces);
        let edge = |buffered| Box::new(HostFile::new(buffered, &name, 1, PieceLimits::FILE_CACHE));
        let image = Self {
            permit: OnceLock::new(),
            known_as,
            stable: Stable::new(&name, host.audit, !options.cache.is_direct(), host.forcing).on(host.forces),
            alignment: Alignment::new(host.align),
            dma_align: host.align.memory.max(host.align.block),
            host: main,
            edge: host.buffered.map(edge),
            host_len: Arc::default(),
            asking: Arc::default(),
            cache: options.cache,
            read_only: options.read_only,
            is_device: host.is_device,
            _claim: host.claim,
            _below: host.below,
            logical_block: host.logical_block,
            physical_block: host.physical_block,
            atomic: host.atomic,
            discard_granularity: host.discard_granularity,
            calls: Owner::default(),
            cannot_punch: AtomicBool::new(false),
            cannot_zero: AtomicBool::new(false),
            leases: host.leases,
        };
        if image.measure()? < SECTOR {
            let message = "is too short for a disk image, which has 512 bytes at least";
            return Err(OpenError::new(format!("{name} {message}")));
        }
        Ok(image)
    }

    /// From now on transfers, however long they wait in this process, are handed to the host only if `permit` lets them. Said once.
    pub(in crate::storage) fn ask_before(&self, permit: Arc<dyn Permit>) {
        // A second one would be of another unit, which has no part in this image.
        let _ = self.permit.set(permit);
    }

    /// What each transfer has with it.
    fn hold(&self) -> Hold {
        Hold::none().under(self.permit.get())
    }

    /// Which file of the host it is: device and inode.
    pub(in crate::storage) fn id(&self) -> std::io::Result<(u64, u64)> {
        self.host.file.metadata().map(|found| (found.dev(), found.ino()))
    }

    /// The number of the block device that it is.
    pub fn device(&self) -> std::io::Result<u64> {
        self.host.file.metadata().map(|found| found.rdev())
    }

    /// Asks the host for the length again, which may have grown; returns what the guest may use, in bytes.
    pub(in crate::storage) fn measure(&self) -> Result<u64, OpenError> {
        let len = open::length(&self.host.file)
            .map_err(|e| OpenError::host(format!("{}: cannot find out its length", self.host.name), e))?;
        self.host_len.store(len, Ordering::Relaxed);
        Ok(self.ending().shown(SECTOR))
    }

    /// Where it ends.
    pub fn ending(&self) -> Ending {
        let len = self.host_len.load(Ordering::Relaxed);
        if self.is_device { Ending::of_device(len, self.logical_block) } else { Ending::of_file(len) }
    }

    /// As [`RawImage::measure`], in bytes of the host, without waiting for it on this thread. An image that became shorter is left as it
    /// was: its end fails to be read, and the guest hears of that.
    ///
    /// The length is as the host said last when this is dropped, and for others while the host has not answered: one that
    /// hangs holds up nobody else.
    async fn look_at_length(&self, io: &Io) -> u64 {
        if let Some(asking) = Asking::begin(&self.asking) {
            let (file, known) = (self.host.file.clone(), self.host_len.clone());
            let look = move || {
                if let Ok(len) = open::length(&file) {
                    known.fetch_max(len, Ordering::Relaxed);
                }
                drop(asking);
            };
            let _ = io.blocking_on(&self.calls, look).await;
        }
        self.host_len.load(Ordering::Relaxed)
    }

    /// Where the part of the image starts that direct I/O cannot reach, if there is one.
    fn edge(&self) -> Option<(u64, &HostFile)> {
        let len = self.host_len.load(Ordering::Relaxed);
        let start = len - len % self.host.block;
        self.edge.as_deref().filter(|_| start != len).map(|edge| (start, edge))
    }

    fn check(&self, action: Action, at: u64, len: u64) -> Result<(), BlockError> {
        if action != Action::Read && self.read_only {
            let context = format!("{action} \"{}\" failed: the image is read-only", self.host.name);
            return Err(BlockError::new(BlockErrorKind::ReadOnly, context));
        }
        let end = self.geometry().len;
        if at.checked_add(len).is_some_and(|stop| stop <= end) {
            return Ok(());
        }
        let context = format!(
            "{action} {len} bytes at {at} of \"{}\" failed: the image has {end} bytes",
            self.host.name
        );
        Err(BlockError::new(BlockErrorKind::OutOfRange, context))
    }

    /// Direct I/O on a file of a set cannot reach an end within a block: there is nothing else to reach it with.
    fn check_end(&self, len: u64) -> Result<(), BlockError> {
        let block = self.host.block;
        if self.leases.is_empty() || len.is_multiple_of(block) {
            return Ok(());
        }
        let context = format!(
            "\"{}\" cannot have {len} bytes: direct I/O on a passed descriptor needs a multiple of {block}",
            self.host.name
        );
        Err(BlockError::new(BlockErrorKind::Unsupported, context))
    }

    /// For who reads and writes small pieces of a passed file before it is used, in any place; `None` for other files.
    pub(in crate::storage) fn buffered(&self) -> Option<std::io::Result<Buffered<'_>>> {
        (!self.leases.is_empty()).then(|| Buffered::new(&self.host.file, self.cache.is_direct()))
    }

    /// Whether a write must be on stable storage when it completes.
    fn must_be_stable(&self, durability: Durability) -> bool {
        self.cache.is_stable() || (durability == Durability::Stable && self.cache != CacheMode::Unsafe)
    }

    fn has_to_flush(&self) -> bool {
        !self.read_only && self.cache != CacheMode::Unsafe
    }

    /// A read whose range was checked.
    async fn get(&self, io: &Io, at: u64, mut into: ToGuest, hold: &Hold) -> Result<(), BlockError> {
        if let Some((start, edge)) = self.edge()
            && at + into.len() > start
        {
            let rest = ToGuest::new(into.split_off(start.saturating_sub(at)));
            edge.fetch(io, at.max(start), rest, hold).await?;
        }
        self.alignment.read(&self.host, io, at, into, hold).await
    }

    /// A write whose range was checked.
    async fn put(
        &self,
        io: &Io,
        at: u64,
        from: FromGuest,
        stable: bool,
        hold: &Hold,
    ) -> Result<(), BlockError> {
        if stable {
            return self.put_stable(io, at, from, hold).await;
        }
        let _change = self.stable.latch.unflushed.change();
        self.place(io, at, from, false, hold).await
    }

    async fn place(
        &self,
        io: &Io,
        at: u64,
        mut from: FromGuest,
        stable: bool,
        hold: &Hold,
    ) -> Result<(), BlockError> {
        if let Some((start, edge)) = self.edge()
            && at + from.len() > start
        {
            self.stable.pass_page_cache();
            let rest = FromGuest::new(from.split_off(start.saturating_sub(at)));
            // The file may become longer meanwhile, and others then read the block, change it and write it back.
            let kept = self.alignment.replace(start, self.host.block).await.with(hold);
            edge.store(io, at.max(start), rest, stable, &kept).await?;
        }
        self.alignment.write(&self.host, io, at, from, stable, hold).await
    }
}

/// Set while the host is asked for something; one at a time.
struct Asking(Arc<AtomicBool>);

impl Asking {
    fn begin(flag: &Arc<AtomicBool>) -> Option<Self> {
        (!flag.swap(true, Ordering::AcqRel)).then(|| Self(flag.clone()))
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl BlockBackend for RawImage {
    fn geometry(&self) -> Geometry {
        Geometry {
            len: self.ending().shown(SECTOR),
            physical_block: self.physical_block,
            atomic: self.atomic,
            dma_align: self.dma_align,
            discard_granularity: if self.cannot_punch.load(Ordering::Relaxed) {
                0
            } else {
                self.discard_granularity
            },
            read_only: self.read_only,
            volatile_cache: !self.cache.is_stable(),
        }
    }

    async fn read(&self, io: &Io, at: ByteOffset, into: ToGuest) -> Result<(), BlockError> {
        self.check(Action::Read, at.0, into.len())?;
        self.get(io, at.0, into, &self.hold()).await
    }

    async fn write(
        &self,
        io: &Io,
        at: ByteOffset,
        from: FromGuest,
        durability: Durability,
    ) -> Result<(), BlockError> {
        self.check(Action::Write, at.0, from.len())?;
        self.put(io, at.0, from, self.must_be_stable(durability), &self.hold()).await
    }

    async fn flush(&self, io: &Io) -> Result<(), BlockError> {
        if !self.has_to_flush() {
            return Ok(());
        }
        note(io, Barrier::Flush);
        self.sync(io, Action::Flush).await
    }

    fn is_unflushed(&self) -> bool {
        self.has_to_flush() && self.stable.latch.unflushed.any()
    }

    async fn zero(&self, io: &Io, span: Span, unmap: Unmap) -> Result<(), BlockError> {
        self.check(Action::Zero, span.at.0, span.len)?;
        self.make_zero(io, span.at.0, span.len, unmap, &self.hold()).await
    }

    async fn extent(&self, io: &Io, span: Span) -> Result<Extent, BlockError> {
        self.check(Action::Read, span.at.0, span.len)?;
        let (file, at, end) = (self.host.file.clone(), span.at.0, span.at.0 + span.len);
        // On a network file system the host may have to ask the server.
        let found = io.blocking_on(&self.calls, move || sys::stored(&file, at, end)).await;
        match found {
            Ok(Ok((allocated, until))) => Ok(Extent { allocated, len: until - at }),
            Ok(Err(_)) => Ok(Extent { allocated: true, len: span.len }),
            Err(e) => Err(self.host.error(Action::Read, at, span.len, e)),
        }
    }

    async fn close(&self, io: &Io) -> Result<(), BlockError> {
        self.begin_closing();
        let result = self.flush(io).await;
        self.forget_lost(io).await;
        result
    }

    async fn refresh(&self, io: &Io) {
        self.look_at_length(io).await;
    }

    async fn grow(&self, io: &Io, len: u64) -> Result<(), BlockError> {
        self.check(Action::Write, 0, 0)?;
        if !self.is_device {
            if len > self.host_len() {
                self.check_end(len)?;
                self.extend(io, len, len).await?;
            }
            // A disk that was larger before a loss of power than after it makes partitions and volumes of the guest unusable. Also
            // where it is as long already: by a try whose sync failed or still waits, or by others on the host.
            return match self.cache {
                CacheMode::Unsafe => Ok(()),
                _ => self.sync(io, Action::Flush).await,
            };
        }
        let (has, name) = (self.look_at_length(io).await, &self.host.name);
        if len <= has {
            return Ok(());
        }
        let context =
            format!("\"{name}\" is a device of {has} bytes, fewer than {len}; enlarge the device first");
        Err(BlockError::new(BlockErrorKind::Unsupported, context))
    }
}

#[cfg(test)]
pub(super) use tests::coarse;

#[cfg(test)]
mod tests;
