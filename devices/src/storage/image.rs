//! The closed set of image formats, dispatched statically.

use std::sync::Arc;

use super::{
    BlockBackend, BlockError, ByteOffset, Durability, Extent, Geometry, Limits, Parking, Pausing, Qcow2Image,
    RawImage, SpaceWatch, Span, Throttled, Unmap,
};
use crate::iothread::Io;
use crate::mem::{FromGuest, ToGuest};
#[cfg(any(test, feature = "testing"))]
use crate::testing::{FaultDisk, RamDisk, RecordingDisk};

/// An image of any format. Shared by the I/O threads of a logical unit in an `Arc`.
pub enum Image {
    /// A raw file or block device.
    Raw(RawImage),
    /// A qcow2 image with its backing files.
    Qcow2(Qcow2Image),
    /// A raw image with limits of rate.
    ThrottledRaw(Throttled<RawImage>),
    /// A qcow2 image with limits of rate.
    ThrottledQcow2(Throttled<Qcow2Image>),
    /// A raw image whose writes wait for space.
    PausingRaw(Pausing<RawImage>),
    /// A qcow2 image whose writes wait for space.
    PausingQcow2(Pausing<Qcow2Image>),
    /// Both: limits of rate over writes that wait.
    ThrottledPausingRaw(Throttled<Pausing<RawImage>>),
    /// Both, for qcow2.
    ThrottledPausingQcow2(Throttled<Pausing<Qcow2Image>>),
    /// Memory, for tests.
    #[cfg(any(test, feature = "testing"))]
    Ram(RamDisk),
    /// Memory with errors on demand, for tests.
    #[cfg(any(test, feature = "testing"))]
    Fault(FaultDisk),
    /// Memory that records what is asked of it, for tests.
    #[cfg(any(test, feature = "testing"))]
    Recording(RecordingDisk),
}

macro_rules! each {
    ($image:expr, $backend:ident => $call:expr) => {
        match $image {
            Image::Raw($backend) => $call,
            Image::Qcow2($backend) => $call,
            Image::ThrottledRaw($backend) => $call,
            Image::ThrottledQcow2($backend) => $call,
            Image::PausingRaw($backend) => $call,
            Image::PausingQcow2($backend) => $call,
            Image::ThrottledPausingRaw($backend) => $call,
            Image::ThrottledPausingQcow2($backend) => $call,
            #[cfg(any(test, feature = "testing"))]
            Image::Ram($backend) => $call,
            #[cfg(any(test, feature = "testing"))]
            Image::Fault($backend) => $call,
            #[cfg(any(test, feature = "testing"))]
            Image::Recording($backend) => $call,
        }
    };
}

impl Image {
    /// The same image with limits of rate. Only files have them; others stay as they are.
    pub fn throttled(self, limits: &Limits) -> Self {
        match self {
            Self::Raw(image) => Self::ThrottledRaw(Throttled::new(image, limits)),
            Self::Qcow2(image) => Self::ThrottledQcow2(Throttled::new(image, limits)),
            Self::PausingRaw(image) => Self::ThrottledPausingRaw(Throttled::new(image, limits)),
            Self::PausingQcow2(image) => Self::ThrottledPausingQcow2(Throttled::new(image, limits)),
            other => other,
        }
    }

    /// The same image with writes that wait in `parking` when the host has no space, instead of failing. Comes before
    /// [`Image::throttled`], so that a repeated write counts once.
    pub fn pausing(self, parking: &Arc<Parking>, watch: &Arc<dyn SpaceWatch>) -> Self {
        let (parking, watch) = (parking.clone(), watch.clone());
        match self {
            Self::Raw(image) => Self::PausingRaw(Pausing::new(image, parking, watch)),
            Self::Qcow2(image) => Self::PausingQcow2(Pausing::new(image, parking, watch)),
            other => other,
        }
    }
}

impl BlockBackend for Image {
    fn geometry(&self) -> Geometry {
        each!(self, backend => backend.geometry())
    }

    async fn read(&self, io: &Io, at: ByteOffset, into: ToGuest) -> Result<(), BlockError> {
        each!(self, backend => backend.read(io, at, into).await)
    }

    async fn write(
        &self,
        io: &Io,
        at: ByteOffset,
        from: FromGuest,
        durability: Durability,
    ) -> Result<(), BlockError> {
        each!(self, backend => backend.write(io, at, from, durability).await)
    }

    async fn flush(&self, io: &Io) -> Result<(), BlockError> {
        each!(self, backend => backend.flush(io).await)
    }

    async fn zero(&self, io: &Io, span: Span, unmap: Unmap) -> Result<(), BlockError> {
        each!(self, backend => backend.zero(io, span, unmap).await)
    }

    async fn extent(&self, io: &Io, span: Span) -> Result<Extent, BlockError> {
        each!(self, backend => backend.extent(io, span).await)
    }

    async fn refresh(&self, io: &Io) {
        each!(self, backend => backend.refresh(io).await)
    }
}

/// Several I/O threads use one image.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Image>();
};
