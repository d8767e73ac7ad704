//! What can go wrong with an image, in kinds that a layer above can act on.

use std::fmt;
use std::io;

use thiserror::Error;

use crate::iothread::{is_untried, is_withheld};

/// The stable kind of a storage error: the SCSI layer turns each into sense data by one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockErrorKind {
    /// The medium could not be read (EIO on a read).
    ReadFailed,
    /// The medium could not be written (EIO on a write or flush).
    WriteFailed,
    /// The host's file system or thin pool has no space left (ENOSPC, EDQUOT).
    NoSpace,
    /// What was written may not be stable, and nothing can be made stable until the image is opened anew.
    Unstable,
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
    /// The host has no memory, descriptors or threads left for it.
    HostResources,
    /// It was not handed to the host: whoever has the image let nothing more be begun.
    Withheld,
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

/// What is done to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reading data.
    Read,
    /// Writing data.
    Write,
    /// Making writes stable.
    Flush,
    /// Zeroing a range.
    Zero,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "reading",
            Self::Write => "writing",
            Self::Flush => "flushing",
            Self::Zero => "zeroing",
        })
    }
}

impl BlockError {
    /// An error of `kind` that the host has no part in.
    pub fn new(kind: BlockErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// The host's error on `action`; `place` names the image and where in it.
    pub fn host(action: Action, place: impl fmt::Display, source: io::Error) -> Self {
        let kind = kind_of(action, &source);
        let mut context = format!("{action} {place} failed");
        if is_untried(&source) {
            context.push_str(", for the kernel could start no thread for it (see pids.max of the cgroup)");
        }
        if source.raw_os_error() == Some(libc::EFBIG) {
            context
                .push_str(", for the limit of file sizes (ulimit -f) or that of the file system is reached");
        }
        Self { kind, context, source: Some(source) }
    }
}

/// The kind of a host error. The host's block layer reports its own status as error numbers (Linux,
/// block/blk-core.c): ENODATA for medium errors, EREMOTEIO for target errors, EILSEQ for protection errors,
/// ENOLINK for lost paths, EBADE for reservation conflicts.
fn kind_of(action: Action, e: &io::Error) -> BlockErrorKind {
    let failed =
        if action == Action::Read { BlockErrorKind::ReadFailed } else { BlockErrorKind::WriteFailed };
    match e.raw_os_error() {
        _ if is_withheld(e) => BlockErrorKind::Withheld,
        // Guests are held to the disk's length before, so that a file too large is the host's limit.
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => BlockErrorKind::NoSpace,
        Some(libc::EROFS | libc::EPERM | libc::EACCES | libc::EBADF) if action != Action::Read => {
            BlockErrorKind::ReadOnly
        }
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY) => BlockErrorKind::Unsupported,
        Some(
            libc::ENODEV
            | libc::ENXIO
            | libc::ENOLINK
            | libc::ETIMEDOUT
            | libc::ESHUTDOWN
            | libc::ESTALE
            | libc::ENOTCONN
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENOMEDIUM,
        ) => BlockErrorKind::Lost,
        Some(libc::EBADE) => BlockErrorKind::ReservationConflict,
        Some(libc::ENOMEM | libc::EAGAIN | libc::ECANCELED | libc::ENOBUFS | libc::EMFILE | libc::ENFILE) => {
            BlockErrorKind::HostResources
        }
        _ => failed,
    }
}

/// Why an image cannot be used; says what to do about it where that is known.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct OpenError {
    /// What is wrong, naming the file, and the remedy.
    pub message: String,
    /// The host's error.
    pub source: Option<io::Error>,
}

impl OpenError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    pub(super) fn host(message: impl Into<String>, source: io::Error) -> Self {
        Self { message: message.into(), source: Some(source) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_errors_have_kinds() {
        let kind = |action, code| kind_of(action, &io::Error::from_raw_os_error(code));
        // Numbers of asm-generic/errno.h.
        assert_eq!(kind(Action::Read, 5), BlockErrorKind::ReadFailed);
        assert_eq!(kind(Action::Write, 5), BlockErrorKind::WriteFailed);
        assert_eq!(kind(Action::Flush, 5), BlockErrorKind::WriteFailed);
        assert_eq!(kind(Action::Write, 28), BlockErrorKind::NoSpace);
        assert_eq!(kind(Action::Zero, 122), BlockErrorKind::NoSpace);
        assert_eq!(kind(Action::Write, 27), BlockErrorKind::NoSpace);
        assert_eq!(kind(Action::Write, 30), BlockErrorKind::ReadOnly);
        assert_eq!(kind(Action::Write, 52), BlockErrorKind::ReservationConflict);
        assert_eq!(kind(Action::Read, 67), BlockErrorKind::Lost);
        assert_eq!(kind(Action::Read, 19), BlockErrorKind::Lost);
        assert_eq!(kind(Action::Read, 61), BlockErrorKind::ReadFailed);
        assert_eq!(kind(Action::Read, 12), BlockErrorKind::HostResources);
        assert_eq!(kind(Action::Flush, 125), BlockErrorKind::HostResources);
        assert_eq!(kind(Action::Zero, 95), BlockErrorKind::Unsupported);
    }
}
