//! Logical block provisioning: UNMAP (SBC-4, 5.35), WRITE SAME (SBC-4, 5.49), GET LBA STATUS (SBC-4, 5.6).

use super::Disk;
use super::transfer::Extent;
use super::vpd::{MAX_PROVISION, MAX_UNMAP_DESCRIPTORS};
use crate::iothread::Io;
use crate::mem::FromGuest;
use crate::scsi::DataBuffers;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Done, Outcome, Page, Writer};
use crate::scsi::sense::{Failure, LBA_OUT_OF_RANGE, PARAMETER_LIST_LENGTH_ERROR, SenseData};
use crate::storage::{BlockBackend, ByteOffset, Durability, Span, Unmap};

/// Bytes of a pattern written at a time.
const CHUNK: u64 = 64 << 10;
/// Header of the UNMAP parameter list, and each of its block descriptors.
const UNMAP_HEADER: u64 = 8;
const UNMAP_DESCRIPTOR: u64 = 16;

impl<B: BlockBackend> Disk<B> {
    pub(super) async fn unmap(&self, io: &Io, cdb: &[u8], data: DataBuffers) -> Outcome {
        let len = field(cdb, 7, 2);
        if len == 0 {
            return Ok(Done::good());
        }
        let descriptors = self.check_unmap_list(len, &data.data_out)?;
        let mut total = 0;
        for index in 0..descriptors {
            // Read anew and checked anew: what the initiator changes meanwhile is its own affair.
            let span = self.next_unmap_span(&data.data_out, index, &mut total)?;
            if span.len > 0 {
                self.clear(io, span, Unmap::Allowed).await?;
            }
        }
        self.settle(io).await?;
        Ok(Done::received(len))
    }

    /// Checks the whole list before anything is unmapped; returns the number of descriptors.
    fn check_unmap_list(&self, len: u64, list: &FromGuest) -> Result<u64, SenseData> {
        let mut header = [0; UNMAP_HEADER as usize];
        if len.min(list.len()) < UNMAP_HEADER {
            return Err(SenseData::illegal(PARAMETER_LIST_LENGTH_ERROR));
        }
        list.read_at(0, &mut header);
        // A last part of a descriptor is ignored, and so is a length beyond the list.
        let room = len.min(list.len()) - UNMAP_HEADER;
        let descriptors = field(&header, 2, 2).min(room) / UNMAP_DESCRIPTOR;
        if descriptors > MAX_UNMAP_DESCRIPTORS {
            return Err(SenseData::parameter_field(2, None));
        }
        let mut total = 0;
        for index in 0..descriptors {
            self.next_unmap_span(list, index, &mut total)?;
        }
        Ok(descriptors)
    }

    /// The span of a descriptor, which adds to the `total` of those before it.
    fn next_unmap_span(&self, list: &FromGuest, index: u64, total: &mut u64) -> Result<Span, SenseData> {
        let span = self.unmap_span(list, index)?;
        *total = total.saturating_add(span.len);
        if *total > MAX_PROVISION {
            let at = UNMAP_HEADER + index * UNMAP_DESCRIPTOR + 8;
            return Err(SenseData::parameter_field(at as u16, None));
        }
        Ok(span)
    }

    fn unmap_span(&self, list: &FromGuest, index: u64) -> Result<Span, SenseData> {
        let mut descriptor = [0; UNMAP_DESCRIPTOR as usize];
        list.read_at(UNMAP_HEADER + index * UNMAP_DESCRIPTOR, &mut descriptor);
        let (lba, blocks) = (field(&descriptor, 0, 8), field(&descriptor, 8, 4));
        let capacity = self.blocks();
        if lba > capacity || blocks > capacity - lba {
            let first = lba.max(capacity);
            return Err(SenseData::illegal(LBA_OUT_OF_RANGE).with_information(first));
        }
        Ok(Span { at: ByteOffset(lba << self.block_shift), len: blocks << self.block_shift })
    }

    pub(super) async fn write_same(&self, io: &Io, cdb: &[u8], len: usize, data: DataBuffers) -> Outcome {
        let extent = Extent::of(cdb, len);
        if extent.blocks == 0 {
            // WSNZ: no blocks would mean all up to the last, which is over any limit.
            return Err(SenseData::cdb_field(if len == 10 { 7 } else { 10 }, None).into());
        }
        let span = self.at_most(extent, MAX_PROVISION)?;
        let (unmap, no_data) = (extent.flags & 0x08 != 0, extent.flags & 0x01 != 0);
        if unmap && !self.is_thin() {
            return Err(SenseData::cdb_field(1, Some(3)).into());
        }
        let pattern = if no_data {
            None
        } else if data.data_out.len() < self.block_size() {
            // Nothing is written of a block that was not sent; the residual says so.
            return Ok(Done::received(self.block_size()));
        } else {
            self.pattern(&data.data_out, CHUNK.min(span.len))?
        };
        match pattern {
            None => self.clear(io, span, if unmap { Unmap::Allowed } else { Unmap::Keep }).await?,
            Some(pattern) => {
                let mut at = 0;
                while at < span.len {
                    let part = FromGuest::new(pattern.window(0, span.len - at));
                    let len = part.len();
                    self.store(io, ByteOffset(span.at.0 + at), part, Durability::Cached).await?;
                    at += len;
                }
            }
        }
        self.settle(io).await?;
        Ok(Done::received(if no_data { 0 } else { self.block_size() }))
    }

    /// Without a write cache, what was written is stable before the command ends.
    async fn settle(&self, io: &Io) -> Result<(), Failure> {
        if !self.mode.write_cache() {
            self.flush(io).await?;
        }
        Ok(())
    }

    /// GET LBA STATUS: runs of blocks that take space ("mapped or unknown") or not ("deallocated"), as many as the
    /// initiator has room for.
    pub(super) async fn get_lba_status(&self, io: &Io, cdb: &[u8], data: &DataBuffers) -> Outcome {
        let (lba, allocation) = (field(cdb, 2, 8), field(cdb, 10, 4));
        if lba >= self.blocks() {
            return Err(SenseData::illegal(LBA_OUT_OF_RANGE).with_information(lba).into());
        }
        let room = (allocation.saturating_sub(8) / 16).clamp(1, MAX_STATUS) as usize;
        let mut writer = Writer::new(&data.data_in, allocation);
        writer.put(&[0; 8]);
        let mut told = 0;
        let mut tell = |run: &Run| {
            let mut page = Page::<16>::new();
            page.u64(run.lba).u32(run.blocks as u32).u8(if run.mapped { 0 } else { 1 }).put(&[0; 3]);
            writer.put(page.as_bytes());
            told += 1;
            told < room
        };
        let (mut next, mut walked, mut last) = (Some(lba), 0, None::<Run>);
        // Until a run is known to end, unless the walk becomes too long. Then the last one is shorter than it could be, and the
        // initiator asks for what comes after it (SBC-4, 5.6.1).
        while let Some(lba) = next.filter(|_| walked < MAX_WALK) {
            if walked > 0 && walked.is_multiple_of(WALK_STEP) {
                io.give_way().await;
            }
            walked += 1;
            let run = self.run(io, lba).await?;
            next = run.end().filter(|end| *end < self.blocks());
            match last.as_mut().filter(|last| last.mapped == run.mapped) {
                Some(last) if last.blocks + run.blocks <= u64::from(u32::MAX) => last.blocks += run.blocks,
                _ => {
                    if let Some(over) = last.replace(run)
                        && !tell(&over)
                    {
                        last = None;
                        break;
                    }
                }
            }
        }
        if let Some(last) = &last {
            tell(last);
        }
        // PARAMETER DATA LENGTH counts from the byte after it.
        writer.put_at(0, &(4 + 16 * told as u32).to_be_bytes());
        Ok(writer.finish())
    }

    /// How the blocks from `lba` on are stored. A block takes space when a part of it does.
    async fn run(&self, io: &Io, lba: u64) -> Result<Run, Failure> {
        let most = (self.blocks() - lba).min(u64::from(u32::MAX));
        let span = Span { at: ByteOffset(lba << self.block_shift), len: most << self.block_shift };
        if !self.is_thin() {
            return Ok(Run { lba, blocks: most, mapped: true });
        }
        let extent = self.image.extent(io, span).await?;
        // What is said of more than was asked for is nobody's business here.
        let len = extent.len.min(span.len);
        let whole = len >> self.block_shift;
        if !extent.allocated && whole > 0 {
            return Ok(Run { lba, blocks: whole, mapped: false });
        }
        let touched = len.div_ceil(self.block_size()).clamp(1, most);
        Ok(Run { lba, blocks: touched, mapped: true })
    }
}

/// Most descriptors of one GET LBA STATUS.
const MAX_STATUS: u64 = 1024;
/// How often one GET LBA STATUS asks the image, and how often before others have a turn.
const MAX_WALK: u32 = 4096;
const WALK_STEP: u32 = 64;

/// Blocks in a row that are stored alike.
struct Run {
    lba: u64,
    blocks: u64,
    mapped: bool,
}

impl Run {
    fn end(&self) -> Option<u64> {
        self.lba.checked_add(self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::mem::{SgList, ToGuest};
    use crate::scsi::DiskConfig;
    use crate::storage::{BlockError, Extent, Geometry};
    use crate::testing::{RamDisk, on_io_thread};

    /// A disk of 1 GiB whose initiator changes its list as soon as the first descriptor has been done.
    struct Changing {
        list: Mutex<ToGuest>,
        cleared: AtomicU64,
    }

    fn descriptor(lba: u64, blocks: u32) -> Vec<u8> {
        [&lba.to_be_bytes()[..], &blocks.to_be_bytes(), &[0; 4]].concat()
    }

    impl BlockBackend for Changing {
        fn geometry(&self) -> Geometry {
            Geometry { len: 1 << 30, ..RamDisk::new(512).geometry() }
        }
        async fn read(&self, _: &Io, _: ByteOffset, _: ToGuest) -> Result<(), BlockError> {
            Ok(())
        }
        async fn write(&self, _: &Io, _: ByteOffset, _: FromGuest, _: Durability) -> Result<(), BlockError> {
            Ok(())
        }
        async fn flush(&self, _: &Io) -> Result<(), BlockError> {
            Ok(())
        }
        fn is_unflushed(&self) -> bool {
            false
        }
        async fn zero(&self, _: &Io, span: Span, _: Unmap) -> Result<(), BlockError> {
            self.cleared.fetch_add(span.len, Ordering::Relaxed);
            self.list.lock().unwrap().write_at(UNMAP_HEADER + UNMAP_DESCRIPTOR, &descriptor(0, 1 << 20));
            Ok(())
        }
        async fn extent(&self, _: &Io, span: Span) -> Result<Extent, BlockError> {
            Ok(Extent { allocated: span.at.0 >= 1 << 20, len: u64::MAX - 511 })
        }
        async fn refresh(&self, _: &Io) {}
        async fn grow(&self, _: &Io, _: u64) -> Result<(), BlockError> {
            Ok(())
        }
    }

    /// An image that tells of more than it was asked for, and than it has.
    #[test]
    fn cve_2020_1711_extents_longer_than_what_was_asked_for() {
        let memory = SgList::host(4096, 512).unwrap();
        let (list, seen) = (ToGuest::new(SgList::empty()), FromGuest::new(memory.window(0, 4096)));
        let image = Arc::new(Changing { list: list.into(), cleared: AtomicU64::new(0) });
        let disk = Disk::new(image, DiskConfig::default()).unwrap();
        on_io_thread(move |io| async move {
            let last = (1 << 30) / 512;
            for (lba, mapped) in [(5_u64, false), (last - 1, true), (1 << 11, true)] {
                let mut cdb = [0; 16];
                (cdb[0], cdb[1], cdb[12]) = (0x9e, 0x12, 0x10);
                cdb[2..10].copy_from_slice(&lba.to_be_bytes());
                let data = DataBuffers::to_initiator(ToGuest::new(memory.window(0, 4096)));
                assert!(disk.get_lba_status(&io, &cdb, &data).await.is_ok());
                let mut got = [0; 24];
                seen.read_at(0, &mut got);
                let mut expected = [0; 24];
                expected[3] = 20;
                expected[8..16].copy_from_slice(&lba.to_be_bytes());
                expected[16..20].copy_from_slice(&((last - lba) as u32).to_be_bytes());
                expected[20] = u8::from(!mapped);
                assert_eq!(got, expected, "from {lba} on");
            }
        });
    }

    /// MAXIMUM UNMAP LBA COUNT holds for what is done, not only for what was looked at first.
    #[test]
    fn a_list_that_grows_while_it_is_done_goes_no_further_than_the_limit() {
        let memory = SgList::host(4096, 512).unwrap();
        let (list, cleared) = (ToGuest::new(memory.window(0, 4096)), AtomicU64::new(0));
        let header = [0, 38, 0, 32, 0, 0, 0, 0];
        list.write_at(0, &[&header[..], &descriptor(0, 8), &descriptor(8, 8)].concat());
        let image = Arc::new(Changing { list: list.into(), cleared });
        let disk = Disk::new(image.clone(), DiskConfig::default()).unwrap();
        let result = on_io_thread(move |io| async move {
            let data = DataBuffers::from_initiator(FromGuest::new(memory));
            disk.unmap(&io, &[0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], data).await.err()
        });
        assert_eq!(image.cleared.load(Ordering::Relaxed), 4096);
        assert_eq!(result, Some(SenseData::parameter_field(32, None).into()));
    }
}
