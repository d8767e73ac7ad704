//! Transfers that direct I/O would refuse go through an aligned host buffer.
//!
//! What is aligned passes untouched and uncopied. A write that covers a block only in part reads the block,
//! changes it and writes it back; [`Gate`] keeps other writes off the block meanwhile, so that writes to
//! neighbouring sectors of one block never undo each other.

use std::sync::Arc;

use super::gate::{Access, Gate};
use super::sys::DirectAlign;
use super::{BlockError, BlockErrorKind};
use crate::iothread::{Hold, Io};
use crate::mem::{FromGuest, SgList, ToGuest};

/// Memory of one image for aligned copies at most, in bytes.
const BUDGET: u64 = 2 << 20;
/// Longer transfers go in pieces of this many bytes.
const PIECE: u64 = 256 << 10;

/// Whole transfers that must be aligned.
pub(super) trait Direct {
    /// Fills `into`.
    async fn fetch(&self, io: &Io, at: u64, into: ToGuest, hold: &Hold) -> Result<(), BlockError>;
    /// Writes all of `from`.
    async fn store(
        &self,
        io: &Io,
        at: u64,
        from: FromGuest,
        stable: bool,
        hold: &Hold,
    ) -> Result<(), BlockError>;
}

/// Adapts any transfer to what direct I/O on an image demands.
pub(super) struct Alignment {
    align: DirectAlign,
    gate: Arc<Gate>,
}

impl Alignment {
    /// For an image with these demands, powers of two; 1 and 1 for none.
    pub(super) fn new(align: DirectAlign) -> Self {
        Self { align, gate: Gate::new(BUDGET) }
    }

    fn block(&self) -> u64 {
        u64::from(self.align.block)
    }

    /// Whether the transfer can go to the host as it is.
    pub(super) fn fits(&self, at: u64, mem: &SgList) -> bool {
        let (memory, block) = (self.align.memory as usize - 1, self.align.block as usize - 1);
        if memory | block == 0 {
            return true;
        }
        at & (self.block() - 1) == 0
            && mem.iovecs().iter().all(|v| v.iov_base.addr() & memory == 0 && v.iov_len & block == 0)
    }

    /// Admission for something that replaces whole blocks of the image.
    ///
    /// The guest's smallest block is 512 bytes: where the host's is not larger, no block is ever shared.
    pub(super) async fn replace(&self, at: u64, len: u64) -> Hold {
        if self.align.block <= 512 {
            return Hold::none();
        }
        self.gate.enter(at..at.saturating_add(len), Access::Write, 0).await
    }

    /// As [`Alignment::replace`]; `None` when that would have to wait.
    pub(super) fn try_replace(&self, at: u64, len: u64) -> Option<Hold> {
        if self.align.block <= 512 {
            return Some(Hold::none());
        }
        self.gate.try_enter(at..at.saturating_add(len), Access::Write)
    }

    /// Fills `into`; the operations hold `outer` until the kernel is done with them.
    pub(super) async fn read(
        &self,
        host: &impl Direct,
        io: &Io,
        at: u64,
        into: ToGuest,
        outer: &Hold,
    ) -> Result<(), BlockError> {
        if self.fits(at, &into) {
            return host.fetch(io, at, into, outer).await;
        }
        let mut done = 0;
        while done < into.len() {
            let piece = self.piece(at + done, into.len() - done);
            let hold = self.gate.enter(piece.start..piece.end, Access::Read, piece.len()).await.with(outer);
            let buffer = self.buffer(piece.len())?;
            host.fetch(io, piece.start, ToGuest::new(buffer.window(0, piece.len())), &hold).await?;
            let from = buffer.window(piece.at - piece.start, piece.inner);
            from.copy_to(&into.window(done, piece.inner));
            done += piece.inner;
        }
        Ok(())
    }

    /// Writes `from`; the operations hold `outer` until the kernel is done with them.
    pub(super) async fn write(
        &self,
        host: &impl Direct,
        io: &Io,
        at: u64,
        from: FromGuest,
        stable: bool,
        outer: &Hold,
    ) -> Result<(), BlockError> {
        if self.fits(at, &from) {
            let hold = self.replace(at, from.len()).await.with(outer);
            return host.store(io, at, from, stable, &hold).await;
        }
        let mut done = 0;
        while done < from.len() {
            let piece = self.piece(at + done, from.len() - done);
            let data = from.window(done, piece.inner);
            // Boxed: a large future, which whole blocks shall not be moved about with.
            Box::pin(self.write_piece(host, io, &piece, data, stable, outer)).await?;
            done += piece.inner;
        }
        Ok(())
    }

    async fn write_piece(
        &self,
        host: &impl Direct,
        io: &Io,
        piece: &Piece,
        data: FromGuest,
        stable: bool,
        outer: &Hold,
    ) -> Result<(), BlockError> {
        let block = self.block();
        let head = piece.at != piece.start;
        let tail = piece.at + piece.inner != piece.end;
        let access = if head || tail { Access::Modify } else { Access::Write };
        let hold = self.gate.enter(piece.start..piece.end, access, piece.len()).await.with(outer);
        let buffer = self.buffer(piece.len())?;
        let last = piece.len() - block;
        if (head && tail && last > 0 && last <= block) || (tail && self.align.memory > self.align.block) {
            // Both ends in one go, also where the last block alone would be misaligned in the buffer.
            host.fetch(io, piece.start, ToGuest::new(buffer.window(0, piece.len())), &hold).await?;
        } else {
            if head || (tail && last == 0) {
                host.fetch(io, piece.start, ToGuest::new(buffer.window(0, block)), &hold).await?;
            }
            if tail && last > 0 {
                host.fetch(io, piece.start + last, ToGuest::new(buffer.window(last, block)), &hold).await?;
            }
        }
        data.copy_to(&ToGuest::new(buffer.window(piece.at - piece.start, piece.inner)));
        drop(data);
        host.store(io, piece.start, FromGuest::new(buffer), stable, &hold).await
    }

    /// The next piece of a transfer that has `left` bytes to go from `at` on.
    fn piece(&self, at: u64, left: u64) -> Piece {
        let mask = self.block() - 1;
        let start = at & !mask;
        let inner = left.min(PIECE.max(self.block()) - (at - start));
        Piece { start, at, inner, end: (at + inner + mask) & !mask }
    }

    fn buffer(&self, len: u64) -> Result<SgList, BlockError> {
        let align = self.align.memory.max(self.align.block) as usize;
        usize::try_from(len).ok().and_then(|len| SgList::host(len, align)).ok_or_else(|| {
            BlockError::new(BlockErrorKind::HostResources, "no host memory for an unaligned transfer")
        })
    }
}

/// A part of a transfer, and the blocks it lies in.
struct Piece {
    /// First byte of its first block.
    start: u64,
    /// First byte of the transfer.
    at: u64,
    /// Bytes of the transfer.
    inner: u64,
    /// End of its last block.
    end: u64,
}

impl Piece {
    fn len(&self) -> u64 {
        self.end - self.start
    }
}

#[cfg(test)]
#[path = "alignment_tests.rs"]
mod tests;
