//! The short way of transfers: begun at once where they are one operation of the host, which nearly all are.
//!
//! What takes more, such as bounce memory, a wait for a limit or a second try, goes the long way of [`BlockBackend`],
//! whose futures are large. They are in places of their own, so that the short way does not move them about.
//!
//! [`BlockBackend`]: super::BlockBackend

use std::io;

use super::BlockError;
use crate::iothread::Single;

/// How a transfer began.
pub(super) enum Begun<'a, M> {
    /// It is over already.
    Done(Result<(), BlockError>),
    /// The host works on it.
    Running(Single<'a>),
    /// Nothing is done yet: it takes the long way.
    Long(M),
}

impl<'a, M> Begun<'a, M> {
    /// What the ring says.
    pub(super) fn of(started: Result<Single<'a>, M>) -> Self {
        match started {
            Ok(single) => Self::Running(single),
            Err(memory) => Self::Long(memory),
        }
    }
}

/// How a transfer of `len` bytes ended: `Some` when that is its end, `None` when it goes the long way after all, from its
/// beginning. What the host has moved already is moved again then, which makes no difference.
pub(super) fn ended(result: io::Result<u64>, len: u64) -> Option<io::Result<()>> {
    match result {
        Ok(moved) if moved == len => Some(Ok(())),
        Ok(_) => None,
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => None,
        Err(error) => Some(Err(error)),
    }
}
