//! Transfers that go to the host as they are, in one operation.

use super::{BlockError, ByteOffset, Durability, RawImage, note};
use crate::iothread::Io;
use crate::mem::{FromGuest, ToGuest};
use crate::storage::barrier::Barrier;
use crate::storage::error::Action;
use crate::storage::single::{Begun, Kept};

impl RawImage {
    /// Begins a read.
    pub(in crate::storage) fn begin_read<'a, 'b>(
        &'b self,
        io: &'a Io,
        at: ByteOffset,
        into: ToGuest,
    ) -> Begun<'a, 'b, ToGuest> {
        if let Err(error) = self.check(Action::Read, at.0, into.len()) {
            return Begun::Done(Err(error));
        }
        if self.is_at_edge(at.0, into.len()) || !self.alignment.fits(at.0, &into) {
            return Begun::Long(into);
        }
        let single = io.read_single(&self.host.file, at.0, into, self.host.pieces, self.hold());
        Begun::of(single, Kept::Nothing)
    }

    /// Begins a write.
    pub(in crate::storage) fn begin_write<'a, 'b>(
        &'b self,
        io: &'a Io,
        at: ByteOffset,
        from: FromGuest,
        durability: Durability,
    ) -> Begun<'a, 'b, FromGuest> {
        if let Err(error) = self.check(Action::Write, at.0, from.len()) {
            return Begun::Done(Err(error));
        }
        let stable = self.must_be_stable(durability);
        if self.is_at_edge(at.0, from.len())
            || !self.alignment.fits(at.0, &from)
            || (stable && self.stable.takes_more())
        {
            return Begun::Long(from);
        }
        let Some(hold) = self.alignment.try_replace(at.0, from.len()) else { return Begun::Long(from) };
        let mut hold = hold.under(self.permit.get());
        let latch = &self.stable.latch;
        let kept = match stable.then(|| self.stable.attempt_write()) {
            None => Kept::Change { _change: latch.unflushed.change() },
            Some(Ok(Some(attempt))) => {
                hold = hold.with(&attempt.hold());
                Kept::Attempt(attempt)
            }
            Some(Ok(None)) => {
                hold = hold.with(&self.stable.hold_alone());
                Kept::Nothing
            }
            Some(Err(error)) => return Begun::Done(Err(error)),
        };
        Begun::of(io.write_single(&self.host.file, at.0, from, stable, self.host.pieces, hold), kept)
    }

    /// Begins a flush.
    pub(in crate::storage) fn begin_flush<'a, 'b>(&'b self, io: &'a Io) -> Begun<'a, 'b, ()> {
        if !self.has_to_flush() {
            return Begun::Done(Ok(()));
        }
        if let Err(error) = self.check_stability(Action::Flush) {
            return Begun::Done(Err(error));
        }
        if self.stable.takes_more() {
            return Begun::Long(());
        }
        let attempt = self.stable.latch.attempt();
        note(io, Barrier::Flush);
        let single = io.sync_single(self.audit(), attempt.hold());
        Begun::of(single.ok_or(()), Kept::Attempt(attempt))
    }

    /// The error of a transfer of `len` bytes that was begun at `at`.
    pub(in crate::storage) fn failed(
        &self,
        action: Action,
        at: u64,
        len: u64,
        source: std::io::Error,
    ) -> BlockError {
        self.host.error(action, at, len, source)
    }

    pub(super) fn is_at_edge(&self, at: u64, len: u64) -> bool {
        self.edge().is_some_and(|(start, _)| at + len > start)
    }
}
