//! GET CONFIGURATION (MMC-6, 6.5): the features of the drive, and which the disc in it makes current.

use super::Cd;
use super::sectors::BLOCK;
use crate::scsi::DataBuffers;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Outcome, Page, Writer};
use crate::scsi::sense::SenseData;
use crate::storage::BlockBackend;

/// Profiles (MMC-6, table 93).
const CD_ROM: u16 = 0x0008;
const DVD_ROM: u16 = 0x0010;

/// A feature: code, version, whether it is always current, and what it is of a disc (MMC-6, table 91).
struct Feature {
    code: u16,
    version: u8,
    persistent: bool,
    current: bool,
    data: Page<40>,
}

impl<B: BlockBackend> Cd<B> {
    pub(super) fn get_configuration(&self, cdb: &[u8], data: &DataBuffers) -> Outcome {
        let first = field(cdb, 2, 2) as u16;
        let kind = field(cdb, 1, 1) & 3;
        if kind == 3 {
            return Err(SenseData::cdb_field(1, Some(1)).into());
        }
        let (cd, dvd) = match self.drive.disc() {
            Some(disc) => (disc.is_cd(), !disc.is_cd()),
            None => (false, false),
        };
        let selected = |feature: &&Feature| match kind {
            0 => feature.code >= first,
            1 => feature.code >= first && (feature.current || feature.persistent),
            _ => feature.code == first,
        };
        let profile = if cd {
            CD_ROM
        } else if dvd {
            DVD_ROM
        } else {
            0
        };
        let mut page = Page::<256>::new();
        // The length comes at the end.
        page.u32(0).u16(0).u16(profile);
        for feature in self.features(cd, dvd).iter().filter(selected) {
            let current = u8::from(feature.current || feature.persistent);
            page.u16(feature.code);
            page.u8(feature.version << 2 | u8::from(feature.persistent) << 1 | current);
            page.u8(feature.data.len() as u8).put(feature.data.as_bytes());
        }
        page.patch(0, &((page.len() - 4) as u32).to_be_bytes());
        let mut writer = Writer::new(&data.data_in, field(cdb, 7, 2));
        writer.put(page.as_bytes());
        Ok(writer.finish())
    }

    /// All features, ascending.
    fn features(&self, cd: bool, dvd: bool) -> Vec<Feature> {
        let mut all = Vec::with_capacity(11);
        let mut add = |code, version, persistent, current, bytes: &[u8]| {
            let mut data = Page::new();
            data.put(bytes);
            while !data.len().is_multiple_of(4) {
                // Of the only one that needs it, the serial number: spaces.
                data.u8(b' ');
            }
            all.push(Feature { code, version, persistent, current, data });
        };
        let profile = |code: u16, current: bool| {
            let [high, low] = code.to_be_bytes();
            [high, low, u8::from(current), 0]
        };
        // Profile list, the best first.
        let [a, b, c, d] = profile(DVD_ROM, dvd);
        let [e, f, g, h] = profile(CD_ROM, cd);
        add(0x0000, 0, true, true, &[a, b, c, d, e, f, g, h]);
        // Core: the interface is SCSI; no other inquiry data, no events of a busy device.
        add(0x0001, 2, true, true, &[0, 0, 0, 1, 0, 0, 0, 0]);
        // Morphing: events are polled for.
        add(0x0002, 1, true, true, &[0, 0, 0, 0]);
        // Removable medium: a tray that ejects and loads and can be locked.
        add(0x0003, 1, true, true, &[0x39, 0, 0, 0]);
        // Random readable: a sector at a time, or as many as a block of error correction of a DVD has; there is the page of
        // error recovery.
        let [i, j, k, l] = (BLOCK as u32).to_be_bytes();
        add(0x0010, 0, false, cd || dvd, &[i, j, k, l, 0, if dvd { 16 } else { 1 }, 1, 0]);
        // Multi-read, CD read, DVD read.
        add(0x001d, 0, false, cd, &[]);
        add(0x001e, 2, false, cd, &[0, 0, 0, 0]);
        add(0x001f, 0, false, dvd, &[]);
        // Power management.
        add(0x0100, 0, true, true, &[]);
        // Timeouts: page 1Dh, in seconds, not in units of its own.
        add(0x0105, 1, true, true, &[0, 0, 0, 0]);
        if !self.config.serial.is_empty() {
            add(0x0108, 0, true, true, self.config.serial.as_bytes());
        }
        all
    }
}
