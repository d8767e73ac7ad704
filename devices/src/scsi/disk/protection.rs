//! Protection information (SBC-4, 4.21): eight bytes for each logical block, which say what is in it and where it
//! belongs.
//!
//! They are in an image of their own, at eight times the LBA, with every bit turned over: what was never written reads as
//! bytes FFh there, which is what a medium has after FORMAT UNIT and what disables the checks of a block.
//! Data and protection information are written one after the other; within the process no read comes between, and the end
//! of a command neither. A host that loses power in between leaves a block whose guard does not match.

use std::sync::Arc;
use std::time::Duration;

use super::Disk;
use super::config::ProtectionType;
use super::crc::crc_t10dif;
use super::finishing::Finishing;
use super::transfer::Extent;
use super::turns::{Turn, Turns};
use super::verify::CHUNK;
use crate::iothread::Io;
use crate::mem::{FromGuest, SgList, ToGuest};
use crate::scsi::memory::{LEAST, Scratch};
use crate::scsi::outcome::{Done, Outcome};
use crate::scsi::sense::{Failure, GUARD_CHECK_FAILED, REFERENCE_TAG_CHECK_FAILED, SenseData, SenseKey};
use crate::scsi::{Cdb, DataBuffers};
use crate::storage::{BlockBackend, BlockError, ByteOffset, Durability, Span, Unmap};

/// Bytes of protection information for a block.
pub(super) const TUPLE: u64 = 8;
/// The longest logical block, in bytes.
const MAX_BLOCK: usize = 4096;
/// How long data and tuples of a command that was ended go on being written: longer, and the host has no space or hangs.
pub(in crate::scsi) const FINISH: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// RDPROTECT and WRPROTECT: the top bits of byte 1.
const PROTECT_BIT: u8 = 7;

/// The protection information of a disk.
pub(super) struct Protection<B> {
    pub(super) kind: ProtectionType,
    pub(super) store: Arc<B>,
    /// Where in it the first tuple is.
    first: u64,
    pub(super) turns: Arc<Turns>,
}

impl<B: BlockBackend> Protection<B> {
    pub(super) fn new(kind: ProtectionType, store: Arc<B>, first: u64) -> Self {
        Self { kind, store, first, turns: Arc::default() }
    }

    /// For how many blocks there is room.
    pub(super) fn blocks(&self) -> u64 {
        self.store.geometry().len.saturating_sub(self.first) / TUPLE
    }

    /// Where the tuple of a block is.
    fn place(&self, lba: u64) -> ByteOffset {
        ByteOffset(self.first + lba * TUPLE)
    }
}

/// Of one block: guard, application tag, reference tag, big-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple([u8; TUPLE as usize]);

impl Tuple {
    /// What the device server makes for a block that came without (SBC-4, 4.21.3). Nobody else owns the application tag.
    fn generate(kind: ProtectionType, lba: u64, block: &[u8]) -> Self {
        let [g, h] = crc_t10dif(block).to_be_bytes();
        let reference = match kind {
            ProtectionType::Type1 => lba as u32,
            ProtectionType::Type3 => u32::MAX,
        };
        let [a, b, c, d] = reference.to_be_bytes();
        Self([g, h, 0, 0, a, b, c, d])
    }

    fn guard(self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }

    fn reference(self) -> u32 {
        u32::from_be_bytes([self.0[4], self.0[5], self.0[6], self.0[7]])
    }

    /// Whether the tags say that the block is not to be checked when it is read.
    fn escapes(self, kind: ProtectionType) -> bool {
        let application = u16::from_be_bytes([self.0[2], self.0[3]]) == u16::MAX;
        application && (kind == ProtectionType::Type1 || self.reference() == u32::MAX)
    }

    /// What the checks find wrong.
    fn check(self, kind: ProtectionType, checks: Checks, lba: u64, block: &[u8]) -> Result<(), SenseData> {
        let failed = |code| Err(SenseData::new(SenseKey::AbortedCommand, code).with_information(lba));
        if checks.guard && self.guard() != crc_t10dif(block) {
            return failed(GUARD_CHECK_FAILED);
        }
        // Type 3 leaves the reference tag to the application.
        if checks.reference && kind == ProtectionType::Type1 && self.reference() != lba as u32 {
            return failed(REFERENCE_TAG_CHECK_FAILED);
        }
        Ok(())
    }
}

/// What is checked: the application tag never is, as VPD page 86h says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Checks {
    guard: bool,
    reference: bool,
}

impl Checks {
    /// By RDPROTECT or WRPROTECT (SBC-4, 5.13 and 5.42); the other codes are reserved.
    fn of(protect: u8) -> Result<Self, SenseData> {
        let (guard, reference) = match protect {
            0 | 1 | 5 => (true, true),
            2 => (false, true),
            3 => (false, false),
            4 => (true, false),
            _ => return Err(SenseData::cdb_field(1, Some(PROTECT_BIT))),
        };
        Ok(Self { guard, reference })
    }
}

/// How protection information lies in the buffers of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// There is none.
    Plain,
    /// In a buffer of its own.
    Separate,
    /// After each block.
    Interleaved,
}

impl Layout {
    /// `separate`: bytes of the buffer for tuples alone.
    fn of(protect: u8, separate: u64) -> Self {
        match (protect, separate) {
            (0, _) => Self::Plain,
            (_, 0) => Self::Interleaved,
            _ => Self::Separate,
        }
    }

    /// Bytes from one block to the next in the data buffer.
    fn stride(self, block: u64) -> u64 {
        if self == Self::Interleaved { block + TUPLE } else { block }
    }

    /// Where in which buffer the tuple of block `index` is.
    fn tuple_at(self, block: u64, index: u64) -> u64 {
        if self == Self::Interleaved { index * (block + TUPLE) + block } else { index * TUPLE }
    }

    /// What a command on `extent` moves, to be compared with the data buffer: a buffer for the tuples that is too short
    /// counts as if the data buffer were.
    fn wanted(self, extent: Extent, block: u64, separate: u64) -> u64 {
        let tuples = extent.blocks * TUPLE;
        let missing = if self == Self::Separate { tuples.saturating_sub(separate) } else { 0 };
        extent.blocks * self.stride(block) + missing
    }
}

/// Some blocks and their tuples on the way, in host memory.
struct Chunk {
    lba: u64,
    blocks: u64,
    data: SgList,
    tuples: SgList,
}

/// Room for blocks and, behind them, for their tuples.
struct Room {
    /// Bytes of blocks.
    len: u64,
    scratch: Scratch,
}

impl<B: BlockBackend> Disk<B> {
    /// Takes RDPROTECT, WRPROTECT and FMTPINFO out of a CDB, which mean something on a disk with protection information
    /// only: the rest of it decodes as on any other disk.
    pub(super) fn split_protect(&self, cdb: &Cdb) -> (u8, Cdb) {
        let mask = self.protect_bits(cdb.opcode());
        if mask == 0 {
            return (0, *cdb);
        }
        let mut bytes = *cdb.padded();
        let protect = (bytes[1] & mask) >> mask.trailing_zeros();
        bytes[1] &= !mask;
        (protect, Cdb::new(bytes.get(..cdb.as_bytes().len()).unwrap_or(&bytes)))
    }

    /// Where byte 1 of commands with this operation code has those fields.
    pub(super) fn protect_bits(&self, opcode: u8) -> u8 {
        match opcode {
            _ if self.protection.is_none() => 0,
            0x28 | 0x2a | 0x88 | 0x8a | 0xa8 | 0xaa => 0xe0,
            0x04 => 0xc0,
            _ => 0,
        }
    }

    /// FORMAT UNIT keeps the type of protection information, as it does the block length; returns the PROTECTION FIELD
    /// USAGE that goes with it (SBC-4, 5.4.2).
    pub(super) fn check_format(&self, fmtpinfo: u8) -> Result<u64, SenseData> {
        let (wanted, usage) = match self.protection.as_ref().map(|protection| protection.kind) {
            None => (0, 0),
            Some(ProtectionType::Type1) => (2, 0),
            Some(ProtectionType::Type3) => (3, 1),
        };
        if fmtpinfo == wanted { Ok(usage) } else { Err(SenseData::cdb_field(1, Some(PROTECT_BIT))) }
    }

    /// READ, with the checks that `protect` asks for.
    pub(super) async fn read_protected(
        &self,
        io: &Io,
        extent: Extent,
        protect: u8,
        data: DataBuffers,
        protection: &Protection<B>,
    ) -> Outcome {
        let (checks, block) = (Checks::of(protect)?, self.block_size());
        self.transfer_span(extent)?;
        if extent.is_forced() && self.is_unflushed() {
            self.flush(io).await?;
        }
        let layout = Layout::of(protect, data.protection_in());
        let done = Done::sent(layout.wanted(extent, block, data.protection_in()));
        if layout == Layout::Separate && data.protection_in() < extent.blocks * TUPLE {
            return Ok(done);
        }
        let wanted = extent.blocks.min(data.data_in.len().div_ceil(layout.stride(block)));
        match self.read_checked(io, (extent.lba, wanted), layout, checks, &data, protection).await? {
            None => Ok(done),
            Some((blocks, sense)) => Ok(Done::sent(blocks * layout.stride(block)).but(sense)),
        }
    }

    /// Reads so many blocks from `lba` on and checks them; what fails comes with the number of blocks before it.
    async fn read_checked(
        &self,
        io: &Io,
        (lba, blocks): (u64, u64),
        layout: Layout,
        checks: Checks,
        data: &DataBuffers,
        protection: &Protection<B>,
    ) -> Result<Option<(u64, SenseData)>, Failure> {
        let _turn = protection.turns.shared().await;
        let room = self.room(blocks)?;
        let mut at = 0;
        while at < blocks {
            let chunk = self.chunk(&room, lba + at, blocks - at);
            let span = self.span_of(&chunk);
            self.image.read(io, span.at, ToGuest::new(chunk.data.window(0, span.len))).await?;
            let (from, len) = (protection.place(chunk.lba), chunk.blocks * TUPLE);
            protection.store.read(io, from, ToGuest::new(chunk.tuples.window(0, len))).await?;
            if let Err((before, sense)) = self.deliver(&chunk, at, layout, checks, data, protection.kind) {
                return Ok(Some((at + before, sense)));
            }
            at += chunk.blocks;
        }
        Ok(None)
    }

    /// Reads whole blocks for a command that goes on with them instead of handing them to its initiator: what fails the
    /// checks must not be taken for good, and least of all get a good guard by being written.
    pub(super) async fn fetch_checked(
        &self,
        io: &Io,
        at: ByteOffset,
        into: ToGuest,
        protection: &Protection<B>,
    ) -> Result<(), Failure> {
        let (lba, blocks) = (at.0 >> self.block_shift, into.len() >> self.block_shift);
        let (checks, data) = (Checks::of(0)?, DataBuffers::to_initiator(into));
        match self.read_checked(io, (lba, blocks), Layout::Plain, checks, &data, protection).await? {
            None => Ok(()),
            Some((_, sense)) => Err(sense.into()),
        }
    }

    /// Checks blocks and hands them to the initiator, from its block number `first` on; what fails comes with the number
    /// of blocks before it.
    fn deliver(
        &self,
        chunk: &Chunk,
        first: u64,
        layout: Layout,
        checks: Checks,
        data: &DataBuffers,
        kind: ProtectionType,
    ) -> Result<(), (u64, SenseData)> {
        let block = self.block_size();
        let source = FromGuest::new(chunk.data.window(0, u64::MAX));
        let tuples = FromGuest::new(chunk.tuples.window(0, u64::MAX));
        let mut buffer = [0; MAX_BLOCK];
        let bytes = buffer.get_mut(..block as usize).unwrap_or_default();
        for index in 0..chunk.blocks {
            source.read_at(index * block, bytes);
            let mut tuple = [0; TUPLE as usize];
            tuples.read_at(index * TUPLE, &mut tuple);
            let tuple = Tuple(tuple.map(|byte| !byte));
            if !tuple.escapes(kind) {
                tuple.check(kind, checks, chunk.lba + index, bytes).map_err(|sense| (index, sense))?;
            }
            let number = first + index;
            data.data_in.write_at(number * layout.stride(block), bytes);
            let at = layout.tuple_at(block, number);
            match (layout, &data.protection) {
                (Layout::Separate, Some(protection)) => protection.data_in.write_at(at, &tuple.0),
                (Layout::Interleaved, _) => data.data_in.write_at(at, &tuple.0),
                _ => 0,
            };
        }
        Ok(())
    }

    /// WRITE with protection information: what the checks refuse is not written.
    pub(super) async fn write_protected(
        &self,
        io: &Io,
        extent: Extent,
        protect: u8,
        data: DataBuffers,
        protection: &Protection<B>,
    ) -> Outcome {
        let (checks, block) = (Checks::of(protect)?, self.block_size());
        self.transfer_span(extent)?;
        let layout = Layout::of(protect, data.protection_out());
        let done = Done::received(layout.wanted(extent, block, data.protection_out()));
        if layout == Layout::Separate && data.protection_out() < extent.blocks * TUPLE {
            return Ok(done);
        }
        let sent = extent.blocks.min(data.data_out.len() / layout.stride(block));
        let durability = self.durability(extent.flags);
        let turn = Arc::new(protection.turns.alone().await);
        let room = self.room(sent)?;
        let mut at = 0;
        while at < sent {
            let chunk = self.chunk(&room, extent.lba + at, sent - at);
            if let Err((blocks, sense)) = self.collect(&chunk, at, layout, checks, &data, protection.kind) {
                return Ok(Done::received((at + blocks) * layout.stride(block)).but(sense));
            }
            // As with every write: what tokens stand for is gone.
            let span = self.span_of(&chunk);
            self.copies.changed(span.at.0, span.len);
            at += chunk.blocks;
            let result = self.put(io, chunk, durability, protection, &turn).await;
            self.copies.changed(span.at.0, span.len);
            result?;
        }
        Ok(done)
    }

    /// Copies blocks and tuples of the initiator, from its block number `first` on, and checks them.
    fn collect(
        &self,
        chunk: &Chunk,
        first: u64,
        layout: Layout,
        checks: Checks,
        data: &DataBuffers,
        kind: ProtectionType,
    ) -> Result<(), (u64, SenseData)> {
        let block = self.block_size();
        let target = ToGuest::new(chunk.data.window(0, u64::MAX));
        let tuples = ToGuest::new(chunk.tuples.window(0, u64::MAX));
        let mut buffer = [0; MAX_BLOCK];
        let bytes = buffer.get_mut(..block as usize).unwrap_or_default();
        for index in 0..chunk.blocks {
            let (number, lba) = (first + index, chunk.lba + index);
            data.data_out.read_at(number * layout.stride(block), bytes);
            let (mut tuple, at) = ([0; TUPLE as usize], layout.tuple_at(block, number));
            let source = match (layout, &data.protection) {
                (Layout::Separate, Some(protection)) => Some(&protection.data_out),
                (Layout::Interleaved, _) => Some(&data.data_out),
                _ => None,
            };
            let tuple = match source {
                None => Tuple::generate(kind, lba, bytes),
                Some(source) => {
                    source.read_at(at, &mut tuple);
                    Tuple(tuple)
                }
            };
            tuple.check(kind, checks, lba, bytes).map_err(|sense| (index, sense))?;
            target.write_at(index * block, bytes);
            tuples.write_at(index * TUPLE, &tuple.0.map(|byte| !byte));
        }
        Ok(())
    }

    /// Writes whole blocks that came without protection information, which is made here.
    pub(super) async fn store_generated(
        &self,
        io: &Io,
        at: ByteOffset,
        from: FromGuest,
        durability: Durability,
        protection: &Protection<B>,
    ) -> Result<(), Failure> {
        let checks = Checks { guard: false, reference: false };
        let (lba, blocks) = (at.0 >> self.block_shift, from.len() >> self.block_shift);
        let data = DataBuffers::from_initiator(from);
        let turn = Arc::new(protection.turns.alone().await);
        let room = self.room(blocks)?;
        let mut done = 0;
        while done < blocks {
            let chunk = self.chunk(&room, lba + done, blocks - done);
            // Nothing is checked, so nothing is refused.
            let _ = self.collect(&chunk, done, Layout::Plain, checks, &data, protection.kind);
            done += chunk.blocks;
            self.put(io, chunk, durability, protection, &turn).await?;
        }
        Ok(())
    }

    /// Forgets the protection information of blocks, which are not checked then, and zeroes them or gives them back. No read
    /// comes between.
    pub(super) async fn clear_protected(
        &self,
        io: &Io,
        span: Span,
        unmap: Unmap,
        protection: &Protection<B>,
    ) -> Result<(), BlockError> {
        let turn = protection.turns.alone().await;
        let (image, store, own) = (self.image.clone(), protection.store.clone(), io.clone());
        let blocks = |bytes: u64| bytes >> self.block_shift;
        let theirs = Span { at: protection.place(blocks(span.at.0)), len: blocks(span.len) * TUPLE };
        let work = Box::pin(async move {
            store.zero(&own, theirs, Unmap::Allowed).await?;
            image.zero(&own, span, unmap).await
        });
        Finishing::keeping(io, FINISH, turn, work).await
    }

    /// Writes data and tuples, which are both written also when the command is ended meanwhile; nobody else has the turn
    /// before.
    async fn put(
        &self,
        io: &Io,
        chunk: Chunk,
        durability: Durability,
        protection: &Protection<B>,
        turn: &Arc<Turn>,
    ) -> Result<(), BlockError> {
        let (image, store, own) = (self.image.clone(), protection.store.clone(), io.clone());
        let (span, place) = (self.span_of(&chunk), protection.place(chunk.lba));
        let work = Box::pin(async move {
            let data = FromGuest::new(chunk.data.window(0, span.len));
            image.write(&own, span.at, data, durability).await?;
            let tuples = FromGuest::new(chunk.tuples.window(0, chunk.blocks * TUPLE));
            store.write(&own, place, tuples, durability).await
        });
        Finishing::keeping(io, FINISH, turn.clone(), work).await
    }

    /// Room for so many blocks, or some of them. Reading and writing take all commands here, and those that have memory
    /// already: a little there always is.
    fn room(&self, blocks: u64) -> Result<Room, Failure> {
        let tuples = |len: u64| (len >> self.block_shift) * TUPLE;
        let want = CHUNK.min(blocks << self.block_shift);
        let (len, claim) = self.memory.take(want, tuples, None).unwrap_or_else(|| {
            let len = want.min(LEAST);
            (len, self.memory.take_anyway(len + tuples(len)))
        });
        Ok(Room { len, scratch: self.buffer(len + tuples(len), claim)? })
    }

    /// As many of the blocks from `lba` on as there is room for.
    fn chunk(&self, room: &Room, lba: u64, blocks: u64) -> Chunk {
        let blocks = blocks.min(room.len >> self.block_shift);
        let data = room.scratch.window(0, blocks << self.block_shift);
        Chunk { lba, blocks, data, tuples: room.scratch.window(room.len, blocks * TUPLE) }
    }

    fn span_of(&self, chunk: &Chunk) -> Span {
        Span { at: ByteOffset(chunk.lba << self.block_shift), len: chunk.blocks << self.block_shift }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_select_the_checks() {
        let checks = |protect| Checks::of(protect).ok().map(|checks| (checks.guard, checks.reference));
        let expected = [Some((true, true)), Some((true, true)), Some((false, true)), Some((false, false))];
        assert_eq!([0, 1, 2, 3].map(checks), expected);
        assert_eq!([4, 5, 6, 7].map(checks), [Some((true, false)), Some((true, true)), None, None]);
    }
}
