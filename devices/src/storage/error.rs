//! What can go wrong with an image, in kinds that a layer above can act on.

use std::io;

use thiserror::Error;

/// The stable kind of a storage error: the SCSI layer turns each into sense data by one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockErrorKind {
    /// The medium could not be read (EIO on a read).
    ReadFailed,
    /// The medium could not be written (EIO on a write or flush).
    WriteFailed,
    /// The host's file system or thin pool has no space left (ENOSPC, EDQUOT).
    NoSpace,
    /// The image is read-only.
    ReadOnly,
    /// The range is not within the image.
    OutOfRange,
    /// The backend cannot do this.
    Unsupported,
    /// The device is gone or its paths are down (ENODEV, ENXIO, ENOLINK, ETIMEDOUT).
    Lost,
    /// A reservation of another initiator forbids it (EBADE from the host's SCSI layer).
    ReservationConflict,
    /// The host has no memory or descriptors left for it.
    HostResources,
}

/// A storage error: kind, what was being done, and the host's own error where there is one.
#[derive(Debug, Error)]
#[error("{context}")]
pub struct BlockError {
    /// What a layer above acts on.
    pub kind: BlockErrorKind,
    /// What was being done, naming the image.
    pub context: String,
    /// The host's error.
    pub source: Option<io::Error>,
}
