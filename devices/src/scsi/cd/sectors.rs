//! What is in the drive: a disc of one session with one track of data, in mode 1, of sectors of 2048 bytes.

use std::sync::Arc;

use super::commands::Id;
use super::raw::{self, DATA, HEADER, SECTOR, SYNC};
use super::{Cd, CdError};
use crate::iothread::Io;
use crate::mem::{FromGuest, ToGuest};
use crate::scsi::memory::Scratch;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Done, Outcome, Page, Writer};
use crate::scsi::sense::{
    Failure, ILLEGAL_MODE_FOR_THIS_TRACK, INCOMPATIBLE_FORMAT, LBA_OUT_OF_RANGE, SenseData,
};
use crate::scsi::unit::Context;
use crate::scsi::{DataBuffers, Status};
use crate::storage::{BlockBackend, ByteOffset};

/// Bytes of a sector, and how often they double from one.
pub(super) const BLOCK: u64 = 2048;
const SHIFT: u32 = 11;
/// Longest transfer of one command, in bytes.
const MAX_TRANSFER: u64 = 32 << 20;
/// More than this is no CD: 80 minutes of 75 sectors a second.
const MAX_CD: u64 = 80 * 60 * raw::FRAMES as u64;
/// Sectors completed before others have their turn; with codes, each takes some microseconds.
const AT_ONCE: u64 = 32;
const WITH_CODES: u64 = 4;

/// A disc.
pub(super) struct Disc<B> {
    image: Arc<B>,
    sectors: u64,
}

impl<B: BlockBackend> Disc<B> {
    /// The disc that an image is of. A last part of a sector is none.
    pub(super) fn new(image: Arc<B>) -> Result<Self, CdError> {
        let sectors = (image.geometry().len >> SHIFT).min(u64::from(u32::MAX));
        if sectors == 0 {
            return Err(CdError::Empty);
        }
        Ok(Self { image, sectors })
    }

    pub(super) fn image(&self) -> &Arc<B> {
        &self.image
    }

    /// Number of sectors.
    pub(super) fn sectors(&self) -> u32 {
        self.sectors as u32
    }

    /// Whether it is a CD. Else it is a DVD.
    pub(super) fn is_cd(&self) -> bool {
        self.sectors <= MAX_CD
    }

    /// READ CAPACITY (MMC-6, 6.24).
    pub(super) fn read_capacity(&self, data: &DataBuffers) -> Outcome {
        let mut page = Page::<8>::new();
        page.u32(self.sectors().saturating_sub(1)).u32(BLOCK as u32);
        let mut writer = Writer::new(&data.data_in, 8);
        writer.put(page.as_bytes());
        Ok(writer.finish())
    }

    /// SEEK (10) (MMC-6, 6.40): there is nothing to move.
    pub(super) fn seek(&self, cdb: &[u8]) -> Outcome {
        self.check(field(cdb, 2, 4), 0).map(|_| Done::good())
    }

    /// Where `count` sectors are, if all of them are there. INFORMATION is the first that was asked for, of which nothing has come:
    /// Linux takes what is before INFORMATION for read, also with this sense key, and also where VALID is zero.
    fn check(&self, lba: u64, count: u64) -> Result<u64, Failure> {
        if lba >= self.sectors || count > self.sectors - lba {
            return Err(SenseData::illegal(LBA_OUT_OF_RANGE).with_information(lba).into());
        }
        Ok(lba << SHIFT)
    }

    /// READ (10) and (12) (MMC-6, 6.16 and 6.17), and READ (6) (SBC-3, 5.10), whose addresses have 21 bits and whose count of
    /// zero is 256.
    pub(super) async fn read(&self, io: &Io, cdb: &[u8], len: usize, data: &mut DataBuffers) -> Outcome {
        let (lba, count_at, count) = match len {
            6 => (field(cdb, 1, 3) & 0x1f_ffff, 4, (field(cdb, 4, 1) + 255) % 256 + 1),
            10 => (field(cdb, 2, 4), 7, field(cdb, 7, 2)),
            _ => (field(cdb, 2, 4), 6, field(cdb, 6, 4)),
        };
        if count > MAX_TRANSFER >> SHIFT {
            return Err(SenseData::cdb_field(count_at, None).into());
        }
        let at = self.check(lba, count)?;
        self.read_data(io, at, count << SHIFT, data).await
    }

    async fn read_data(&self, io: &Io, at: u64, len: u64, data: &mut DataBuffers) -> Outcome {
        let into = &mut data.data_in;
        into.truncate(len);
        if !into.is_empty() {
            // Without INFORMATION: Linux takes what that says for the end of the disc, where it is near it.
            self.image.read(io, ByteOffset(at), into.take()).await?;
        }
        Ok(Done::sent(len))
    }
}

/// Which parts of a sector are asked for: bits of byte 9 of READ CD (MMC-6, 6.19.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts {
    from: usize,
    len: usize,
}

impl Parts {
    /// Of a sector in mode 1, which has no subheader. None where what is asked for is not in one piece.
    fn of(byte: u8) -> Option<Self> {
        let bit = |bit: u8| byte & 1 << bit != 0;
        let (sync, subheader, header, data, code) = (bit(7), bit(6), bit(5), bit(4), bit(3));
        if sync && subheader && !header {
            return None;
        }
        let parts = [(sync, SYNC), (header, HEADER), (data, DATA), (code, SECTOR - SYNC - HEADER - DATA)];
        let mut found: Option<Self> = None;
        let mut at = 0;
        for (wanted, len) in parts {
            if wanted {
                found = match found {
                    None => Some(Self { from: at, len }),
                    Some(before) if before.from + before.len == at => {
                        Some(Self { len: before.len + len, ..before })
                    }
                    Some(_) => return None,
                };
            }
            at += len;
        }
        Some(found.unwrap_or(Self { from: 0, len: 0 }))
    }
}

impl<B: BlockBackend> Cd<B> {
    /// READ CD (MMC-6, 6.19) and READ CD MSF (MMC-6, 6.20).
    pub(super) async fn read_cd(
        &self,
        context: Context<'_>,
        id: Id,
        disc: Arc<Disc<B>>,
        cdb: &[u8],
        data: &mut DataBuffers,
    ) -> Outcome {
        if !disc.is_cd() {
            return Err(SenseData::illegal(INCOMPATIBLE_FORMAT).into());
        }
        let (lba, count) = if id == Id::ReadCd {
            (field(cdb, 2, 4), field(cdb, 6, 3))
        } else {
            let time = |at| raw::lba([at, at + 1, at + 2].map(|at| field(cdb, at, 1) as u8));
            let first = time(3).ok_or(SenseData::cdb_field(3, None))?;
            let end = time(6).ok_or(SenseData::cdb_field(6, None))?;
            let count = end.checked_sub(first).ok_or(SenseData::cdb_field(6, None))?;
            (first.into(), count.into())
        };
        // EXPECTED SECTOR TYPE: any, or mode 1.
        if !matches!(field(cdb, 1, 1) >> 2 & 7, 0 | 2) {
            return Err(SenseData::illegal(ILLEGAL_MODE_FOR_THIS_TRACK).into());
        }
        let parts = Parts::of(field(cdb, 9, 1) as u8).ok_or(SenseData::cdb_field(9, Some(7)))?;
        if field(cdb, 9, 1) & 6 != 0 {
            // No errors are found here that a pointer could lead to.
            return Err(SenseData::cdb_field(9, Some(2)).into());
        }
        if field(cdb, 10, 1) & 7 != 0 {
            // An image has no subchannel.
            return Err(SenseData::cdb_field(10, Some(2)).into());
        }
        if count > MAX_TRANSFER >> SHIFT {
            return Err(SenseData::cdb_field(6, None).into());
        }
        let at = disc.check(lba, count)?;
        if parts == (Parts { from: SYNC + HEADER, len: DATA }) {
            return disc.read_data(context.io, at, count << SHIFT, data).await;
        }
        let wanted = count * parts.len as u64;
        if wanted == 0 || data.data_in.is_empty() {
            return Ok(Done::sent(wanted));
        }
        self.read_parts(context.io, &disc, lba as u32, count, parts, &data.data_in).await?;
        Ok(Done::sent(wanted))
    }

    /// Completes sectors, and gives the parts of them that are wanted and have room.
    async fn read_parts(
        &self,
        io: &Io,
        disc: &Disc<B>,
        first: u32,
        count: u64,
        parts: Parts,
        into: &ToGuest,
    ) -> Result<(), Failure> {
        let busy = Failure::Status(Status::Busy);
        // What is before the data is the same whatever the data are.
        let with_data = parts.from + parts.len > SYNC + HEADER;
        let with_codes = parts.from + parts.len > SYNC + HEADER + DATA;
        let most = if with_codes { WITH_CODES } else { AT_ONCE };
        let (len, claim) = self.memory.take(count.min(most) * BLOCK, |_| 0, None).ok_or(busy)?;
        let align = disc.image.geometry().dma_align.next_power_of_two().max(512);
        let scratch = Scratch::new(len, align as usize, claim).ok_or(busy)?;
        let at_once = scratch.len() >> SHIFT;
        let mut sector = [0; SECTOR];
        let (mut done, mut given) = (0, 0);
        while done < count && given < into.len() {
            let now = at_once.min(count - done);
            let lba = first + done as u32;
            let window = scratch.window(0, now << SHIFT);
            if with_data {
                disc.image.read(io, ByteOffset(u64::from(lba) << SHIFT), ToGuest::new(window)).await?;
            }
            let read = FromGuest::new(scratch.window(0, now << SHIFT));
            for (number, lba) in (0..now).zip(lba..) {
                let place = sector.get_mut(SYNC + HEADER..SYNC + HEADER + DATA).unwrap_or_default();
                read.read_at(number << SHIFT, place);
                raw::begin(&mut sector, lba);
                if with_codes {
                    raw::complete(&mut sector);
                }
                let part = sector.get(parts.from..parts.from + parts.len).unwrap_or_default();
                into.write_at(given, part);
                given += parts.len as u64;
            }
            done += now;
            io.moved(now * SECTOR as u64);
            io.give_way().await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_sector_are_in_one_piece() {
        // MMC-6, table 351, mode 1.
        let expected: [(u8, Option<(usize, usize)>); 18] = [
            (0x00, Some((0, 0))),
            (0x10, Some((16, 2048))),
            (0x18, Some((16, 2336))),
            (0x20, Some((12, 4))),
            (0x28, None),
            (0x30, Some((12, 2052))),
            (0x38, Some((12, 2340))),
            (0x40, Some((0, 0))),
            (0x50, Some((16, 2048))),
            (0x58, Some((16, 2336))),
            (0x78, Some((12, 2340))),
            (0x80, Some((0, 12))),
            (0x90, None),
            (0xa0, Some((0, 16))),
            (0xb0, Some((0, 2064))),
            (0xc0, None),
            (0xf0, Some((0, 2064))),
            (0xf8, Some((0, 2352))),
        ];
        for (byte, parts) in expected {
            assert_eq!(Parts::of(byte), parts.map(|(from, len)| Parts { from, len }), "{byte:#x}");
        }
    }
}
