//! Transfers that go to the host as they are, in one operation.

use super::{BlockError, ByteOffset, Durability, RawImage};
use crate::iothread::{Hold, Io};
use crate::mem::{FromGuest, ToGuest};
use crate::storage::error::Action;
use crate::storage::single::Begun;

impl RawImage {
    /// Begins a read.
    pub(in crate::storage) fn begin_read<'a>(
        &self,
        io: &'a Io,
        at: ByteOffset,
        into: ToGuest,
    ) -> Begun<'a, ToGuest> {
        if let Err(error) = self.check(Action::Read, at.0, into.len()) {
            return Begun::Done(Err(error));
        }
        if self.is_at_edge(at.0, into.len()) || !self.bounce.fits(at.0, &into) {
            return Begun::Long(into);
        }
        Begun::of(io.read_single(&self.host.file, at.0, into, self.pieces, Hold::none()))
    }

    /// Begins a write.
    pub(in crate::storage) fn begin_write<'a>(
        &self,
        io: &'a Io,
        at: ByteOffset,
        from: FromGuest,
        durability: Durability,
    ) -> Begun<'a, FromGuest> {
        if let Err(error) = self.check(Action::Write, at.0, from.len()) {
            return Begun::Done(Err(error));
        }
        if self.is_at_edge(at.0, from.len()) || !self.bounce.fits(at.0, &from) {
            return Begun::Long(from);
        }
        let Some(hold) = self.bounce.try_replace(at.0, from.len()) else { return Begun::Long(from) };
        Begun::of(io.write_single(
            &self.host.file,
            at.0,
            from,
            self.must_be_stable(durability),
            self.pieces,
            hold,
        ))
    }

    /// Begins a flush.
    pub(in crate::storage) fn begin_flush<'a>(&self, io: &'a Io) -> Begun<'a, ()> {
        if !self.has_to_flush() {
            return Begun::Done(Ok(()));
        }
        Begun::of(io.sync_single(&self.host.file).ok_or(()))
    }

    /// The error of a flush, or of a transfer of `len` bytes that was begun at `at`.
    pub(in crate::storage) fn failed(
        &self,
        action: Action,
        at: u64,
        len: u64,
        source: std::io::Error,
    ) -> BlockError {
        if action == Action::Flush {
            return self.flush_error(source);
        }
        self.host.error(action, at, len, source)
    }

    fn is_at_edge(&self, at: u64, len: u64) -> bool {
        self.edge().is_some_and(|(start, _)| at + len > start)
    }
}
