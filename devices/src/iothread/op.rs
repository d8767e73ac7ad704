//! Operations and their submission entries.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags, Timespec};
use io_uring::{opcode, squeue};
use vmm_sys_util::eventfd::EventFd;

use super::Hold;
use super::lanes::{Copied, LONG_COPY};
use super::pieces::{Cached, PieceLimits, Pieces, pieces};
use crate::mem::SgList;

/// Segments of one vectored transfer at most (UIO_MAXIOV of Linux).
pub(super) const SEGMENTS_MAX: usize = 1024;

/// What the kernel shall do, with everything it needs for it.
///
/// A `hold` ends with the operation.
pub(super) enum Op {
    /// Fills the segments of `mem` from number `first` on, at most [`SEGMENTS_MAX`] of them.
    Read { file: Arc<File>, at: u64, mem: SgList, first: usize, limits: PieceLimits, hold: Hold },
    /// Writes the segments of `mem` from number `first` on, at most [`SEGMENTS_MAX`] of them.
    Write {
        file: Arc<File>,
        at: u64,
        mem: SgList,
        first: usize,
        stable: bool,
        limits: PieceLimits,
        hold: Hold,
    },
    /// fdatasync(2).
    Sync { file: Arc<File>, hold: Hold },
    /// fallocate(2).
    Allocate { file: Arc<File>, mode: i32, at: u64, len: u64, hold: Hold },
    /// Waits until the descriptor can be read.
    Readable { file: Arc<File> },
    /// Waits for the event and takes its count.
    Event(Arc<EventFd>),
    /// Reports a signal of the event, with `multishot` every one until cancelled; the count stays in the event.
    Watch { event: Arc<EventFd>, multishot: bool },
    /// Waits for the time to pass.
    Sleep(Duration),
}

/// What an operation that nobody waits for any more can still do, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// Nothing that anybody sees.
    Nothing,
    /// It changes the file, out of memory of its own.
    File,
    /// It reads or writes memory of the guest.
    Guest,
}

impl Op {
    /// Whether the kernel reads or writes memory that others see, and how much of it may be queued is bounded.
    pub(super) fn is_transfer(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Write { .. } | Self::Sync { .. } | Self::Allocate { .. })
    }

    /// Of a transfer: which file it is of, by the number of its descriptor.
    pub(super) fn lane(&self) -> Option<u32> {
        match self {
            Self::Read { file, .. }
            | Self::Write { file, .. }
            | Self::Sync { file, .. }
            | Self::Allocate { file, .. } => u32::try_from(file.as_raw_fd()).ok(),
            Self::Readable { .. } | Self::Event(_) | Self::Watch { .. } | Self::Sleep(_) => None,
        }
    }

    /// Whether the kernel may get it, after it has waited for its turn.
    pub(super) fn may_begin(&self) -> bool {
        match self {
            Self::Read { hold, .. }
            | Self::Write { hold, .. }
            | Self::Sync { hold, .. }
            | Self::Allocate { hold, .. } => hold.may_begin(),
            Self::Readable { .. } | Self::Event(_) | Self::Watch { .. } | Self::Sleep(_) => true,
        }
    }

    /// Tells who holds something for it how it ended after its future was dropped.
    pub(super) fn abandoned(&self, result: i32) {
        if let Self::Read { hold, .. }
        | Self::Write { hold, .. }
        | Self::Sync { hold, .. }
        | Self::Allocate { hold, .. } = self
        {
            hold.abandoned(result);
        }
    }

    /// What an abandoned operation may still do to others.
    pub(super) fn reach(&self) -> Reach {
        match self {
            Self::Read { mem, .. } if mem.is_private() => Reach::Nothing,
            Self::Write { mem, .. } if mem.is_private() => Reach::File,
            Self::Read { .. } | Self::Write { .. } => Reach::Guest,
            Self::Allocate { .. } => Reach::File,
            Self::Sync { .. }
            | Self::Readable { .. }
            | Self::Event(_)
            | Self::Watch { .. }
            | Self::Sleep(_) => Reach::Nothing,
        }
    }

    /// Bytes that it moves at most.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Read { mem, .. } | Self::Write { mem, .. } => mem.len(),
            _ => 0,
        }
    }

    /// Where each piece of a transfer that is cut begins, and its segments: an entry for each. `None` for all else, which
    /// nearly everything is.
    pub(super) fn pieces(&self) -> Option<Pieces<'_>> {
        match self {
            Self::Read { at, mem, first, limits, .. } | Self::Write { at, mem, first, limits, .. }
                if limits.cut() =>
            {
                Some(pieces(segments(mem, *first), *at, *limits))
            }
            _ => None,
        }
    }

    /// Whether it is a long copy to or from the host's cache, and who makes it.
    pub(super) fn copied(&self) -> Copied {
        let (mem, cached, writes) = match self {
            Self::Read { mem, limits, .. } => (mem, limits.cached(), false),
            Self::Write { mem, limits, .. } => (mem, limits.cached(), true),
            _ => return Copied::Little,
        };
        match cached {
            Cached::No => Copied::Little,
            _ if mem.len() < LONG_COPY => Copied::Little,
            Cached::File if writes => Copied::Here,
            Cached::File | Cached::Device => Copied::Apart,
        }
    }

    /// Submission entries it takes.
    pub(super) fn entries(&self) -> usize {
        match (self, self.pieces()) {
            (Self::Event(_), _) => 2,
            (_, Some(pieces)) => pieces.count(),
            _ => 1,
        }
    }

    /// The submission entry of a piece of a transfer, under the conditions of [`Self::entry`].
    pub(super) fn piece_entry(&self, at: u64, list: &[libc::iovec]) -> squeue::Entry {
        let fd = |file: &Arc<File>| Fd(file.as_raw_fd());
        match self {
            Self::Read { file, .. } => match list {
                [one] if let Ok(len) = u32::try_from(one.iov_len) => {
                    opcode::Read::new(fd(file), one.iov_base.cast(), len).offset(at).build()
                }
                _ => opcode::Readv::new(fd(file), list.as_ptr(), list.len() as u32).offset(at).build(),
            },
            Self::Write { file, stable, .. } => {
                let flags = if *stable { libc::RWF_DSYNC } else { 0 };
                match list {
                    [one] if let Ok(len) = u32::try_from(one.iov_len) => {
                        let base = one.iov_base.cast_const().cast();
                        opcode::Write::new(fd(file), base, len).offset(at).rw_flags(flags).build()
                    }
                    _ => opcode::Writev::new(fd(file), list.as_ptr(), list.len() as u32)
                        .offset(at)
                        .rw_flags(flags)
                        .build(),
                }
            }
            _ => opcode::Nop::new().build(),
        }
    }

    /// The submission entry. It points into the operation, to `count` and to `time`: all three must stay where they
    /// are, and the operation unchanged, until the kernel has completed it.
    pub(super) fn entry(&self, count: &AtomicU64, time: &Cell<Timespec>) -> squeue::Entry {
        let fd = |file: &Arc<File>| Fd(file.as_raw_fd());
        match self {
            Self::Read { at, mem, first, .. } | Self::Write { at, mem, first, .. } => {
                self.piece_entry(*at, segments(mem, *first))
            }
            Self::Sync { file, .. } => opcode::Fsync::new(fd(file)).flags(FsyncFlags::DATASYNC).build(),
            Self::Allocate { file, mode, at, len, .. } => {
                opcode::Fallocate::new(fd(file), *len).offset(*at).mode(*mode).build()
            }
            Self::Readable { file } => opcode::PollAdd::new(fd(file), libc::POLLIN as u32).build(),
            Self::Event(event) => {
                opcode::Read::new(Fd(event.as_raw_fd()), count.as_ptr().cast(), size_of::<u64>() as u32)
                    .build()
            }
            Self::Watch { event, multishot } => {
                opcode::PollAdd::new(Fd(event.as_raw_fd()), libc::POLLIN as u32).multi(*multishot).build()
            }
            Self::Sleep(span) => {
                time.set(Timespec::new().sec(span.as_secs()).nsec(span.subsec_nanos()));
                opcode::Timeout::new(time.as_ptr()).build()
            }
        }
    }
}

/// The segments that one operation moves.
pub(super) fn segments(mem: &SgList, first: usize) -> &[libc::iovec] {
    let rest = mem.iovecs().get(first..).unwrap_or_default();
    rest.get(..SEGMENTS_MAX).unwrap_or(rest)
}
