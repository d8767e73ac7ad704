//! The images that a disk of a target can have: a closed set, dispatched statically.

use crate::iothread::Io;
use crate::mem::{FromGuest, ToGuest};
#[cfg(any(test, feature = "testing"))]
use crate::scsi::suite::RamImage;
use crate::storage::{BlockBackend, BlockError, ByteOffset, Durability, Geometry, Span, Unmap};

/// An image.
pub enum Image {
    /// Memory, for tests.
    #[cfg(any(test, feature = "testing"))]
    Ram(RamImage),
}

#[cfg_attr(not(any(test, feature = "testing")), expect(unused_variables, reason = "no variant, no body"))]
impl BlockBackend for Image {
    fn geometry(&self) -> Geometry {
        match *self {
            #[cfg(any(test, feature = "testing"))]
            Self::Ram(ref image) => image.geometry(),
        }
    }
    async fn read(&self, io: &Io, at: ByteOffset, into: ToGuest) -> Result<(), BlockError> {
        match *self {
            #[cfg(any(test, feature = "testing"))]
            Self::Ram(ref image) => image.read(io, at, into).await,
        }
    }
    async fn write(
        &self,
        io: &Io,
        at: ByteOffset,
        from: FromGuest,
        durability: Durability,
    ) -> Result<(), BlockError> {
        match *self {
            #[cfg(any(test, feature = "testing"))]
            Self::Ram(ref image) => image.write(io, at, from, durability).await,
        }
    }
    async fn flush(&self, io: &Io) -> Result<(), BlockError> {
        match *self {
            #[cfg(any(test, feature = "testing"))]
            Self::Ram(ref image) => image.flush(io).await,
        }
    }
    async fn zero(&self, io: &Io, span: Span, unmap: Unmap) -> Result<(), BlockError> {
        match *self {
            #[cfg(any(test, feature = "testing"))]
            Self::Ram(ref image) => image.zero(io, span, unmap).await,
        }
    }
}
