//! Block ranges and the commands that move them: READ, WRITE, SYNCHRONIZE CACHE (SBC-4, 5).

use super::Disk;
use super::vpd::MAX_TRANSFER;
use crate::iothread::Io;
use crate::scsi::DataBuffers;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Done, Outcome};
use crate::scsi::sense::{LBA_OUT_OF_RANGE, SenseData};
use crate::storage::{BlockBackend, ByteOffset, Durability, Span};

/// A range of logical blocks, as a CDB names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::scsi) struct Extent {
    pub(in crate::scsi) lba: u64,
    pub(in crate::scsi) blocks: u64,
    /// Where the CDB has the number of blocks, for field pointers.
    count_at: u16,
    /// DPO, FUA, BYTCHK and others: the byte before the LBA, or for 32-byte CDBs two before.
    pub(super) flags: u8,
}

/// FUA in [`Extent::flags`].
const FUA: u8 = 0x08;

impl Extent {
    /// Takes the range out of a CDB of `len` bytes: SPC-5, 4.2.2 gives each length one layout.
    pub(in crate::scsi) fn of(cdb: &[u8], len: usize) -> Self {
        let (lba_at, lba_len, count_at, count_len, flags_at) = match len {
            6 => (1, 3, 4, 1, 1),
            10 => (2, 4, 7, 2, 1),
            12 => (2, 4, 6, 4, 1),
            16 => (2, 8, 10, 4, 1),
            _ => (12, 8, 28, 4, 10),
        };
        let (lba, blocks) = (field(cdb, lba_at, lba_len), field(cdb, count_at, count_len));
        let flags = field(cdb, flags_at, 1) as u8;
        match len {
            // READ (6) and WRITE (6): 21 bits of LBA, no flags, and 0 stands for 256.
            6 => {
                let blocks = if blocks == 0 { 256 } else { blocks };
                Self { lba: lba & 0x1f_ffff, blocks, count_at: 4, flags: 0 }
            }
            _ => Self { lba, blocks, count_at: count_at as u16, flags },
        }
    }

    /// Its bytes, if all its blocks are among the first `capacity`, of `1 << shift` bytes each. The one range check.
    pub(in crate::scsi) fn span(self, shift: u32, capacity: u64) -> Result<Span, SenseData> {
        let out_of_range = |lba| Err(SenseData::illegal(LBA_OUT_OF_RANGE).with_information(lba));
        if self.lba >= capacity {
            return out_of_range(self.lba);
        }
        if self.blocks > capacity - self.lba {
            return out_of_range(capacity);
        }
        Ok(Span { at: ByteOffset(self.lba << shift), len: self.blocks << shift })
    }

    /// FUA.
    pub(super) fn is_forced(&self) -> bool {
        self.flags & FUA != 0
    }

    pub(super) fn bytchk(&self) -> u8 {
        self.flags >> 1 & 3
    }
}

impl<B: BlockBackend> Disk<B> {
    /// The bytes of `extent`, if all its blocks are on the medium.
    pub(super) fn span(&self, extent: Extent) -> Result<Span, SenseData> {
        extent.span(self.block_shift, self.blocks())
    }

    /// As [`Disk::span`], for commands that MAXIMUM TRANSFER LENGTH holds for.
    pub(super) fn transfer_span(&self, extent: Extent) -> Result<Span, SenseData> {
        self.at_most(extent, MAX_TRANSFER)
    }

    /// The bytes of `extent`, if they are no more than `max`.
    pub(super) fn at_most(&self, extent: Extent, max: u64) -> Result<Span, SenseData> {
        if extent.blocks > max >> self.block_shift {
            return Err(SenseData::cdb_field(extent.count_at, None));
        }
        self.span(extent)
    }

    /// What a write with these flags must promise.
    pub(super) fn durability(&self, flags: u8) -> Durability {
        let stable = flags & FUA != 0 || !self.mode.write_cache();
        if stable { Durability::Stable } else { Durability::Cached }
    }

    pub(super) async fn read(
        &self,
        io: &Io,
        cdb: &[u8],
        len: usize,
        protect: u8,
        data: &mut DataBuffers,
    ) -> Outcome {
        let extent = Extent::of(cdb, len);
        if let Some(protection) = &self.protection {
            return Box::pin(self.read_protected(io, extent, protect, data.take(), protection)).await;
        }
        let span = self.transfer_span(extent)?;
        if extent.is_forced() && self.is_unflushed() {
            // SBC-4, 5.13: what the cache has is written to the medium before it is read there.
            Box::pin(self.flush(io)).await?;
        }
        let into = &mut data.data_in;
        into.truncate(span.len);
        if !into.is_empty() {
            self.image.read(io, span.at, into.take()).await?;
        }
        Ok(Done::sent(span.len))
    }

    /// Writes the whole blocks that the initiator sent; blocks that it named and did not send stay as they are.
    pub(super) async fn write(
        &self,
        io: &Io,
        cdb: &[u8],
        len: usize,
        protect: u8,
        data: &mut DataBuffers,
    ) -> Outcome {
        let extent = Extent::of(cdb, len);
        if protect != 0
            && let Some(protection) = &self.protection
        {
            return Box::pin(self.write_protected(io, extent, protect, data.take(), protection)).await;
        }
        let span = self.transfer_span(extent)?;
        let from = &mut data.data_out;
        let whole = self.whole_blocks(from.len().min(span.len));
        from.truncate(whole);
        if !from.is_empty() {
            self.store(io, span.at, from.take(), self.durability(extent.flags)).await?;
        }
        Ok(Done::received(span.len))
    }

    /// `len` without its last part of a block.
    pub(super) fn whole_blocks(&self, len: u64) -> u64 {
        len >> self.block_shift << self.block_shift
    }

    /// PRE-FETCH (SBC-4, 5.16): there is no cache here that could take the blocks: GOOD, not CONDITION MET. No blocks
    /// stands for all up to the last.
    pub(super) fn pre_fetch(&self, cdb: &[u8], len: usize) -> Outcome {
        self.span(Extent::of(cdb, len))?;
        Ok(Done::good())
    }

    /// SYNCHRONIZE CACHE: of everything, whatever the range. IMMED may be answered at the end as well.
    pub(super) async fn synchronize_cache(&self, io: &Io, cdb: &[u8], len: usize) -> Outcome {
        let extent = Extent::of(cdb, len);
        self.span(extent)?;
        if !self.is_read_only() {
            self.flush(io).await?;
        }
        Ok(Done::good())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cdb_length_has_its_layout() {
        let extent = Extent::of(&[0x08, 0xff, 0x02, 0x03, 0, 0], 6);
        assert_eq!((extent.lba, extent.blocks, extent.flags), (0x1f_0203, 256, 0));
        let extent = Extent::of(&[0x28, 0x08, 1, 2, 3, 4, 0, 0, 0, 0], 10);
        assert_eq!((extent.lba, extent.blocks, extent.flags), (0x0102_0304, 0, 8));
        let extent = Extent::of(&[0xa8, 0x08, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0], 12);
        assert_eq!((extent.lba, extent.blocks), (0x0102_0304, 0x0506_0708));
        let extent = Extent::of(&[0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0], 16);
        assert_eq!((extent.lba, extent.blocks), (0x0102_0304_0506_0708, 0x090a_0b0c));
        let mut cdb = [0; 32];
        (cdb[10], cdb[12], cdb[19], cdb[31]) = (0x08, 1, 2, 3);
        let extent = Extent::of(&cdb, 32);
        assert_eq!((extent.lba, extent.blocks, extent.flags), (1 << 56 | 2, 3, 8));
    }
}
