//! Storage: bytes at offsets, on images and block devices. Knows no SCSI.
//!
//! # Contract of a backend
//! - A transfer is whole or an error: short reads and writes of the host are resumed inside.
//! - Offsets are bytes. A range beyond [`Geometry::len`] is refused with [`BlockErrorKind::OutOfRange`], never a panic.
//! - A write is in the image when it completes; it is stable after a `flush` that started later, or at once
//!   with [`Durability::Stable`].
//! - Operations own their memory until the kernel is done with it. Dropping a future abandons the result, not the
//!   buffer: memory is released when the kernel's completion has come.

mod alignment;
mod backing;
mod barrier;
mod cache;
mod ending;
mod error;
pub mod fdset;
mod flags;
mod gate;
mod guard;
mod image;
mod in_use;
mod let_go;
mod lock;
mod lock_list;
mod loops;
mod no_space;
#[cfg(test)]
mod power;
mod private;
mod probe;
mod qcow2;
mod raw;
mod rehearsal;
mod same;
mod single;
mod stability;
mod stacked;
#[cfg(test)]
mod stacked_tests;
mod sys;
mod sysfs;
mod throttle;
mod unflushed;
mod zeros;

pub use backing::Backing;
pub use cache::CacheMode;
pub use ending::Ending;
pub use error::{Action, BlockError, BlockErrorKind, OpenError};
pub use guard::{Guarded, Pausing};
pub use image::Image;
pub use in_use::user_of;
pub use let_go::{let_go, settle_left};
pub use lock::Sharing;
pub(crate) use lock::try_lock_node;
pub use no_space::{Parking, SpaceWatch};
pub(crate) use private::{PIECE, PrivateMemory};
pub use probe::Content;
pub use qcow2::{Qcow2Image, Qcow2Options};
pub use raw::{RawImage, RawOptions};
pub use rehearsal::Rehearsal;
pub use sysfs::files_below;
pub use throttle::Limits;

use crate::iothread::Io;
use crate::mem::{FromGuest, ToGuest};

/// Offset of a byte in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteOffset(pub u64);

/// A range of bytes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub at: ByteOffset,
    /// Length in bytes.
    pub len: u64,
}

/// What a write promises when it completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// In the image; stable after a flush.
    Cached,
    /// On stable storage (force unit access).
    Stable,
}

/// How zeroing may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmap {
    /// Space must stay allocated.
    Keep,
    /// Space may be given back to the host.
    Allowed,
}

/// How the first bytes of a range are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Whether they take space; what does not reads as zeros.
    pub allocated: bool,
    /// How many bytes in a row are stored so, from the beginning of the range: at least one, at most all.
    pub len: u64,
}

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Length in bytes that the guest may use, a multiple of 512.
    pub len: u64,
    /// Smallest unit the host writes without read-modify-write, in bytes (a power of two).
    pub physical_block: u32,
    /// Length in bytes (a power of two) of a write at a multiple of it that the host's device makes as a whole or not at
    /// all, also when power fails; 0 where nobody guarantees that.
    pub atomic: u32,
    /// Address and length alignment that transfers need without bouncing, in bytes (1 when buffered).
    pub dma_align: u32,
    /// Unit in which space can be given back, in bytes; 0 when it cannot.
    pub discard_granularity: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Whether completed writes may be lost by a host power failure before a flush.
    pub volatile_cache: bool,
}

/// An image or block device. No default bodies: a wrapper forwards everything or does not compile.
///
/// Futures are local to the I/O thread whose handle they were given.
#[allow(async_fn_in_trait)]
pub trait BlockBackend: 'static {
    /// The geometry now; the length may grow at run time.
    fn geometry(&self) -> Geometry;
    /// Reads `into.len()` bytes at `at`.
    async fn read(&self, io: &Io, at: ByteOffset, into: ToGuest) -> Result<(), BlockError>;
    /// Writes all of `from` at `at`.
    async fn write(
        &self,
        io: &Io,
        at: ByteOffset,
        from: FromGuest,
        durability: Durability,
    ) -> Result<(), BlockError>;
    /// Makes every write that completed before this call stable.
    async fn flush(&self, io: &Io) -> Result<(), BlockError>;
    /// Whether something was written or zeroed that no flush has made stable since: false where a flush would do nothing.
    fn is_unflushed(&self) -> bool;
    /// Makes `span` read as zeros.
    async fn zero(&self, io: &Io, span: Span, unmap: Unmap) -> Result<(), BlockError>;
    /// How the beginning of `span`, which is not empty, is stored. Where nobody can tell, all of it takes space.
    async fn extent(&self, io: &Io, span: Span) -> Result<Extent, BlockError>;
    /// Looks whether the host has made the image longer; from then on the geometry says so.
    async fn refresh(&self, io: &Io);
    /// Makes the image `len` bytes long, a multiple of 512, unless it is longer. What is new reads as zeros.
    async fn grow(&self, io: &Io, len: u64) -> Result<(), BlockError>;
    /// Makes the image whole, as a program that opens it next expects it: nothing more will be asked of it.
    async fn close(&self, io: &Io) -> Result<(), BlockError> {
        self.flush(io).await
    }
}
