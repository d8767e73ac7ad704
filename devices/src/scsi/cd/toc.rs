//! READ TOC/PMA/ATIP (MMC-6, 6.25).

use super::raw::msf;
use super::sectors::Disc;
use crate::scsi::DataBuffers;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Outcome, Page, Writer};
use crate::scsi::sense::SenseData;
use crate::storage::BlockBackend;

/// ADR 1, and a data track that was recorded uninterrupted.
const DATA_TRACK: u8 = 0x14;
/// The number of the lead-out in place of a track's.
const LEAD_OUT: u8 = 0xaa;

impl<B: BlockBackend> Disc<B> {
    pub(super) fn read_toc(&self, cdb: &[u8], data: &DataBuffers) -> Outcome {
        let time = field(cdb, 1, 1) & 2 != 0;
        let number = field(cdb, 6, 1) as u8;
        // Drives for ATAPI (SFF-8020i) had the format in the two upper bits of the last byte, and old hosts write it there.
        let format = match field(cdb, 2, 1) & 0x0f {
            0 => field(cdb, 9, 1) >> 6,
            format => format,
        };
        let mut page = Page::<64>::new();
        match format {
            0 => self.tracks(number, time, &mut page)?,
            // Multi-session information: one session, whose first track is the first.
            1 => {
                page.put(&[0, 10, 1, 1, 0, DATA_TRACK, 1, 0]).put(&address(0, time));
            }
            // The lead-in of a CD (MMC-6, 6.25.3.4): other discs have none that is like it.
            2 if self.is_cd() => self.full(number, &mut page)?,
            // There is no PMA, no ATIP and no CD-TEXT on a pressed disc.
            _ => return Err(SenseData::cdb_field(2, Some(3)).into()),
        }
        let mut writer = Writer::new(&data.data_in, field(cdb, 7, 2));
        writer.put(page.as_bytes());
        Ok(writer.finish())
    }

    /// Format 0: the tracks from `number` on, and the lead-out.
    fn tracks(&self, number: u8, time: bool, page: &mut Page<64>) -> Result<(), SenseData> {
        if number > 1 && number != LEAD_OUT {
            return Err(SenseData::cdb_field(6, None));
        }
        let lead_out = number == LEAD_OUT;
        page.u16(if lead_out { 10 } else { 18 }).put(&[1, 1]);
        if !lead_out {
            page.put(&[0, DATA_TRACK, 1, 0]).put(&address(0, time));
        }
        page.put(&[0, DATA_TRACK, LEAD_OUT, 0]).put(&address(self.sectors(), time));
        Ok(())
    }

    /// Format 2: the Q sub-channel of the lead-in, with times in any case.
    fn full(&self, session: u8, page: &mut Page<64>) -> Result<(), SenseData> {
        if session > 1 {
            return Err(SenseData::cdb_field(6, None));
        }
        let [minute, second, frame] = msf(self.sectors());
        let entry = |point: u8, [a, b, c]: [u8; 3]| [1, DATA_TRACK, 0, point, 0, 0, 0, 0, a, b, c];
        // Length, first and last session.
        page.u16(2 + 4 * 11).put(&[1, 1]);
        // The first track, and a disc of CD-ROM; the last track; the lead-out; track 1.
        page.put(&entry(0xa0, [1, 0, 0])).put(&entry(0xa1, [1, 0, 0]));
        page.put(&entry(0xa2, [minute, second, frame])).put(&entry(1, msf(0)));
        Ok(())
    }
}

/// An address, as a time where asked for.
fn address(lba: u32, time: bool) -> [u8; 4] {
    if time {
        let [minute, second, frame] = msf(lba);
        [0, minute, second, frame]
    } else {
        lba.to_be_bytes()
    }
}
