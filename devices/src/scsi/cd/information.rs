//! What is said of a disc besides its table of contents: READ DISC INFORMATION (MMC-6, 6.21), READ TRACK INFORMATION (6.26)
//! and READ DISC STRUCTURE (6.22).

use super::Cd;
use super::sectors::Disc;
use crate::scsi::DataBuffers;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Outcome, Page, Writer};
use crate::scsi::sense::{INCOMPATIBLE_FORMAT, LBA_OUT_OF_RANGE, SenseData};
use crate::storage::BlockBackend;

impl<B: BlockBackend> Disc<B> {
    pub(super) fn read_disc_information(&self, cdb: &[u8], data: &DataBuffers) -> Outcome {
        // Only the standard information: a reader has no resources to assign.
        if field(cdb, 1, 1) & 7 != 0 {
            return Err(SenseData::cdb_field(1, Some(2)).into());
        }
        let mut page = Page::<34>::new();
        // The last session and the disc are complete; the first track; sessions; the first and last track of the last.
        page.u16(32).put(&[0x0e, 1, 1, 1, 1]);
        // For unrestricted use; a disc of CD-DA or CD-ROM, or no CD.
        page.u8(0x20).u8(if self.is_cd() { 0 } else { 0xff });
        page.pad_to(34);
        let mut writer = Writer::new(&data.data_in, field(cdb, 7, 2));
        writer.put(page.as_bytes());
        Ok(writer.finish())
    }

    pub(super) fn read_track_information(&self, cdb: &[u8], data: &DataBuffers) -> Outcome {
        let number = field(cdb, 2, 4);
        // By a sector in it, by its number, by its session.
        let found = match field(cdb, 1, 1) & 7 {
            0 => number < u64::from(self.sectors()),
            1 | 2 => number == 1,
            _ => return Err(SenseData::cdb_field(1, Some(1)).into()),
        };
        if !found && field(cdb, 1, 1) & 7 == 0 {
            return Err(SenseData::illegal(LBA_OUT_OF_RANGE).with_information(number).into());
        }
        if !found {
            return Err(SenseData::cdb_field(2, None).into());
        }
        let mut page = Page::<36>::new();
        // Track and session, then: a data track recorded uninterrupted, mode 1, nothing to be written.
        page.u16(34).put(&[1, 1, 0, 0x04, 0x01, 0]);
        page.u32(0).u32(0).u32(0).u32(0).u32(self.sectors()).pad_to(36);
        let mut writer = Writer::new(&data.data_in, field(cdb, 7, 2));
        writer.put(page.as_bytes());
        Ok(writer.finish())
    }
}

/// Formats of READ DISC STRUCTURE that there are: the physical one, copyright, the manufacturer's, and the list of them.
const PHYSICAL: u8 = 0x00;
const COPYRIGHT: u8 = 0x01;
const MANUFACTURER: u8 = 0x04;
const LIST: u8 = 0xff;
/// Physical sector 0 of the data zone of a DVD-ROM (ECMA-267, 16).
const DATA_ZONE: u32 = 0x03_0000;
/// Physical sectors have numbers of 24 bits.
const LAST_SECTOR: u32 = 0xff_ffff;
/// More sectors have two layers (ECMA-267: 4,700,000,000 bytes).
const ONE_LAYER: u32 = 2_295_104;

impl<B: BlockBackend> Cd<B> {
    pub(super) fn read_disc_structure(&self, cdb: &[u8], data: &DataBuffers) -> Outcome {
        let (format, layer) = (field(cdb, 7, 1) as u8, field(cdb, 6, 1));
        // Of DVD, not of BD.
        if field(cdb, 1, 1) & 0x0f != 0 {
            return Err(SenseData::cdb_field(1, Some(3)).into());
        }
        let mut page = Page::<2052>::new();
        page.put(&[0; 4]);
        if format == LIST {
            for (code, len) in [(PHYSICAL, 2052u16), (COPYRIGHT, 8), (MANUFACTURER, 2052), (LIST, 20)] {
                // It can be read, not sent.
                page.put(&[code, 0x40]).u16(len);
            }
        } else {
            let disc = self.drive.ready()?;
            if disc.is_cd() {
                return Err(SenseData::illegal(INCOMPATIBLE_FORMAT).into());
            }
            let layers: u32 = if disc.sectors() > ONE_LAYER { 2 } else { 1 };
            if layer >= u64::from(layers) {
                return Err(SenseData::cdb_field(6, None).into());
            }
            match format {
                PHYSICAL => {
                    // DVD-ROM, 120 mm, no rate; layers, parallel, embossed; densities.
                    page.put(&[0x01, 0x0f, ((layers - 1) as u8) << 5 | 0x01, 0]);
                    // The layers follow each other, each counted from the same sector. Images may be longer than any disc.
                    let first = disc.sectors().div_ceil(layers);
                    let sectors = if layer == 0 { first } else { disc.sectors() - first };
                    page.u32(DATA_ZONE).u32((DATA_ZONE - 1).saturating_add(sectors).min(LAST_SECTOR)).u32(0);
                    page.pad_to(2052);
                }
                // No protection system, all regions.
                COPYRIGHT => {
                    page.put(&[0; 4]);
                }
                MANUFACTURER => {
                    page.pad_to(2052);
                }
                _ => return Err(SenseData::cdb_field(7, None).into()),
            }
        }
        page.patch(0, &((page.len() - 2) as u16).to_be_bytes());
        let mut writer = Writer::new(&data.data_in, field(cdb, 8, 2));
        writer.put(page.as_bytes());
        Ok(writer.finish())
    }
}
