//! Commands that no other command may come between: COMPARE AND WRITE (SBC-4, 5.3) and ORWRITE (SBC-4, 5.14), which
//! read, decide and write, WRITE ATOMIC (SBC-4, 5.48), POPULATE TOKEN, whose point in time no write may straddle, and MODE
//! SELECT, which may switch the write cache off: no write that counted on it may end later.
//! The task set sees to that: these commands enter it as ordered, whatever the initiator said, so they run alone. Copies that
//! another unit was asked for are not in it: with them the commands take turns.

use super::Disk;
use super::transfer::Extent;
use super::verify::CHUNK;
use crate::iothread::Io;
use crate::mem::{FromGuest, ToGuest};
use crate::scsi::background::Lasting;
use crate::scsi::memory::Scratch;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Done, Outcome};
use crate::scsi::sense::SenseData;
use crate::scsi::{Cdb, DataBuffers};
use crate::storage::{BlockBackend, ByteOffset, Span};

/// Most bytes that one COMPARE AND WRITE compares.
const MAX_COMPARE: u64 = 64 << 10;

/// Whether a command must have the unit for itself.
pub(in crate::scsi) fn runs_alone(cdb: &Cdb) -> bool {
    const POPULATE_TOKEN: u8 = 0x10;
    match cdb.opcode() {
        0x15 | 0x55 | 0x89 | 0x8b | 0x9c => true,
        0x83 => cdb.padded()[1] & 0x1f == POPULATE_TOKEN,
        _ => false,
    }
}

impl<B: BlockBackend> Disk<B> {
    /// MAXIMUM COMPARE AND WRITE LENGTH, in blocks.
    pub(super) fn max_compare(&self) -> u8 {
        (MAX_COMPARE >> self.block_shift).min(0xff) as u8
    }

    /// COMPARE AND WRITE: the data-out buffer has the expected blocks, then the new ones.
    pub(super) async fn compare_and_write(&self, io: &Io, cdb: &[u8], data: DataBuffers) -> Outcome {
        let blocks = field(cdb, 13, 1);
        if blocks > u64::from(self.max_compare()) {
            return Err(SenseData::cdb_field(13, None).into());
        }
        let mut extent = Extent::of(cdb, 16);
        extent.blocks = blocks;
        let span = self.span(extent)?;
        let done = Done::received(span.len * 2);
        if span.len == 0 || data.data_out.len() < span.len * 2 {
            // Without all the data nothing happens; the residual says why.
            return Ok(done);
        }
        let _alone = Lasting::new(io, self.turns.alone().await);
        if let Some(miss) = self.differs(io, span, &data.data_out).await? {
            return Ok(done.but(miss));
        }
        let new = data.data_out.window(span.len, span.len);
        self.store(io, span.at, new, self.durability(extent.flags)).await?;
        Ok(done)
    }

    /// WRITE ATOMIC (16): one unit that the host's device writes as a whole (SBC-4, 5.48).
    pub(super) async fn write_atomic(&self, io: &Io, cdb: &[u8], data: DataBuffers) -> Outcome {
        let (mut extent, unit) = (Extent::of(cdb, 16), u64::from(self.atomic_blocks()));
        extent.blocks = field(cdb, 12, 2);
        let span = self.span(extent)?;
        if extent.blocks > unit || !extent.blocks.is_multiple_of(unit.max(1)) {
            return Err(SenseData::cdb_field(12, None).into());
        }
        if !extent.lba.is_multiple_of(unit.max(1)) {
            return Err(SenseData::cdb_field(2, None).into());
        }
        let mut from = data.data_out;
        if from.len() < span.len || span.len == 0 {
            // All or nothing; the residual says why.
            return Ok(Done::received(span.len));
        }
        from.truncate(span.len);
        let _alone = Lasting::new(io, self.turns.alone().await);
        self.store(io, span.at, from, self.durability(extent.flags)).await?;
        Ok(Done::received(span.len))
    }

    /// ORWRITE: sets in the blocks the bits that are set in the data-out buffer.
    pub(super) async fn or_write(&self, io: &Io, cdb: &[u8], data: DataBuffers) -> Outcome {
        let extent = Extent::of(cdb, 16);
        let span = self.transfer_span(extent)?;
        let sent = self.whole_blocks(span.len.min(data.data_out.len()));
        if sent > 0 {
            let scratch = self.scratch(CHUNK.min(sent))?;
            let _alone = Lasting::new(io, self.turns.alone().await);
            let mut at = 0;
            while at < sent {
                let part = Span { at: ByteOffset(span.at.0 + at), len: scratch.len().min(sent - at) };
                self.fetch(io, part.at, ToGuest::new(scratch.window(0, part.len))).await?;
                merge(&scratch, part.len, &data.data_out, at);
                let new = FromGuest::new(scratch.window(0, part.len));
                self.store(io, part.at, new, self.durability(extent.flags)).await?;
                at += part.len;
            }
        }
        Ok(Done::received(span.len))
    }
}

/// Sets in the first `len` bytes of `medium` the bits that are set in `data` from `at` on.
fn merge(medium: &Scratch, len: u64, data: &FromGuest, at: u64) {
    const STEP: u64 = 512;
    let (source, target) = (FromGuest::new(medium.window(0, len)), ToGuest::new(medium.window(0, len)));
    let (mut old, mut new) = ([0u8; STEP as usize], [0u8; STEP as usize]);
    let mut done = 0;
    while done < len {
        source.read_at(done, &mut old);
        data.read_at(at + done, &mut new);
        old.iter_mut().zip(&new).for_each(|(old, new)| *old |= new);
        target.write_at(done, &old);
        done += STEP;
    }
}
