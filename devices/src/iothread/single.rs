//! Transfers that are one operation of the host: the way of nearly all of them, without the state of the others.

use std::fs::File;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::op::{Op, SEGMENTS_MAX};
use super::{Hold, Io, PieceLimits, Running, check};
use crate::mem::{FromGuest, SgList, ToGuest};

/// A transfer that the ring has; ends with what the kernel said of it, and the memory.
pub(crate) struct Single<'a>(Running<'a>);

impl Future for Single<'_> {
    type Output = (io::Result<u64>, SgList);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = ready!(Pin::new(&mut self.0).poll(cx));
        let mem = match outcome.op {
            Op::Read { mem, .. } | Op::Write { mem, .. } => mem,
            _ => SgList::empty(),
        };
        Poll::Ready((check(outcome.result), mem))
    }
}

impl Io {
    /// Starts a read of all of `into` at `at`, in pieces within `limits`; gives it back when it takes more than one operation.
    pub(crate) fn read_single(
        &self,
        file: &Arc<File>,
        at: u64,
        into: ToGuest,
        limits: PieceLimits,
        hold: Hold,
    ) -> Result<Single<'_>, ToGuest> {
        if !self.is_single(at, &into) {
            return Err(into);
        }
        let mut mem = into.into_inner();
        let limits = limits.prepare(&mut mem);
        let op = Op::Read { file: file.clone(), at, mem, first: 0, limits, hold };
        Ok(Single(self.perform(op)))
    }

    /// As [`Io::read_single`], for a write; with `stable` the data is on stable storage at completion.
    pub(crate) fn write_single(
        &self,
        file: &Arc<File>,
        at: u64,
        from: FromGuest,
        stable: bool,
        limits: PieceLimits,
        hold: Hold,
    ) -> Result<Single<'_>, FromGuest> {
        if !self.is_single(at, &from) {
            return Err(from);
        }
        let mut mem = from.into_inner();
        let limits = limits.prepare(&mut mem);
        let op = Op::Write { file: file.clone(), at, mem, first: 0, stable, limits, hold };
        Ok(Single(self.perform(op)))
    }

    /// Starts fdatasync(2).
    pub(crate) fn sync_single(&self, file: &Arc<File>, hold: Hold) -> Option<Single<'_>> {
        #[cfg(any(test, feature = "testing"))]
        if self.core.mischief.is_planned() {
            return None;
        }
        Some(Single(self.perform(Op::Sync { file: file.clone(), hold })))
    }

    fn is_single(&self, at: u64, mem: &SgList) -> bool {
        #[cfg(any(test, feature = "testing"))]
        if self.core.mischief.is_planned() {
            return false;
        }
        // The kernel takes no offset beyond, and moves no more than INT_MAX bytes at once.
        (1..=SEGMENTS_MAX).contains(&mem.segments()) && at <= i64::MAX as u64 && !mem.is_empty()
    }
}
