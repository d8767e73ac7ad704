//! The short way of transfers: begun at once where they are one operation of the host, which nearly all are.
//!
//! What takes more, such as memory for aligned copies, a wait for a limit or a second try, goes the long way of [`BlockBackend`],
//! whose futures are large. They are in places of their own, so that the short way does not move them about.
//!
//! [`BlockBackend`]: super::BlockBackend

use std::io;

use super::BlockError;
use super::stability::Attempt;
use super::unflushed::Change;
use crate::iothread::Single;

/// How a transfer began.
pub(super) enum Begun<'a, 'b, M> {
    /// It is over already.
    Done(Result<(), BlockError>),
    /// The host works on it.
    Running(Single<'a>, Kept<'b>),
    /// Nothing is done yet: it takes the long way.
    Long(M),
}

/// What lasts as long as a transfer.
pub(super) enum Kept<'a> {
    /// Nothing: of reads, and of forced writes past the page cache.
    Nothing,
    /// Of what is to be stable then.
    Attempt(Attempt),
    /// Of what is not.
    Change { _change: Change<'a> },
}

impl<'a, 'b, M> Begun<'a, 'b, M> {
    /// What the ring says.
    pub(super) fn of(started: Result<Single<'a>, M>, kept: Kept<'b>) -> Self {
        match started {
            Ok(single) => Self::Running(single, kept),
            Err(memory) => Self::Long(memory),
        }
    }

    /// Of a transfer in private memory in the place of the guest's: which of the guest's it is for, if it runs. The long way
    /// begins with the guest's.
    pub(super) fn instead_of(self, guest: M) -> (Self, Option<M>) {
        match self {
            Self::Long(_) => (Self::Long(guest), None),
            Self::Done(result) => (Self::Done(result), None),
            running => (running, Some(guest)),
        }
    }
}

/// How a transfer of `len` bytes ended: `Some` when that is its end, `None` when it goes the long way after all, from its
/// beginning. What the host has moved already is moved again then, which makes no difference.
pub(super) fn ended(result: io::Result<u64>, len: u64) -> Option<io::Result<()>> {
    match result {
        Ok(moved) if moved == len => Some(Ok(())),
        Ok(_) => None,
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::ECANCELED)) => {
            None
        }
        Err(error) => Some(Err(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_done_at_once_takes_the_long_way() {
        let of = |result: Result<u64, i32>| {
            let ended = ended(result.map_err(io::Error::from_raw_os_error), 4096);
            ended.map(|result| result.map_err(|error| error.raw_os_error()))
        };
        assert_eq!(of(Ok(4096)), Some(Ok(())));
        for short in [Ok(4095), Ok(512), Ok(0), Err(libc::EAGAIN), Err(libc::EINTR), Err(libc::ECANCELED)] {
            assert_eq!(of(short), None, "{short:?}");
        }
        for error in [libc::EIO, libc::ENOSPC, libc::EINVAL] {
            assert_eq!(of(Err(error)), Some(Err(Some(error))));
        }
    }
}
