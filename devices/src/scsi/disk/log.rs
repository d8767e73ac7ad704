//! LOG SENSE (SPC-5, 6.8).

use super::Disk;
use crate::scsi::DataBuffers;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Outcome, Writer};
use crate::scsi::sense::SenseData;
use crate::storage::BlockBackend;

/// Supported log pages (SPC-5, 7.3.22).
const PAGES: &[u8] = &[0x00];

impl<B: BlockBackend> Disk<B> {
    pub(super) fn log_sense(&self, cdb: &[u8], data: &DataBuffers) -> Outcome {
        let mut writer = Writer::new(&data.data_in, field(cdb, 7, 2));
        if field(cdb, 5, 2) != 0 {
            // PARAMETER POINTER: the lists of pages have no parameters.
            return Err(SenseData::cdb_field(5, Some(7)).into());
        }
        match (field(cdb, 2, 1) & 0x3f, field(cdb, 3, 1)) {
            (0x00, 0x00) => {
                writer.put(&[0x00, 0x00, 0, PAGES.len() as u8]);
                writer.put(PAGES);
            }
            (0x00, 0xff) => {
                // With subpages: SPF is set, each entry is a page and a subpage (SPC-5, 7.3.21).
                writer.put(&[0x40, 0xff, 0, PAGES.len() as u8 * 2 + 2]);
                for page in PAGES {
                    writer.put(&[*page, 0x00]);
                }
                writer.put(&[0x00, 0xff]);
            }
            (0x00, _) => return Err(SenseData::cdb_field(3, Some(7)).into()),
            _ => return Err(SenseData::cdb_field(2, Some(5)).into()),
        }
        Ok(writer.finish())
    }
}
