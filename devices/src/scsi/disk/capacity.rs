//! READ CAPACITY (SBC-4, 5.20 and 5.21) and READ DEFECT DATA (SBC-4, 5.23 and 5.24).

use super::{Disk, ProtectionType};
use crate::scsi::DataBuffers;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Outcome, Page, Writer};
use crate::scsi::sense::SenseData;
use crate::storage::BlockBackend;

/// PMI and its LBA are gone since SBC-3, but old initiators still ask how far it goes on without delay from an LBA: to the
/// last block. An LBA without PMI was an error then (SBC-2, 5.10).
fn check_pmi(pmi: u64, lba: u64) -> Result<(), SenseData> {
    if pmi == 0 && lba != 0 { Err(SenseData::cdb_field(2, Some(7))) } else { Ok(()) }
}

impl<B: BlockBackend> Disk<B> {
    pub(super) fn read_capacity_10(&self, cdb: &[u8], data: &DataBuffers) -> Outcome {
        check_pmi(field(cdb, 8, 1), field(cdb, 2, 4))?;
        let last = self.last_lba();
        let mut page = Page::<8>::new();
        // A last LBA that does not fit reads as FFFFFFFFh: the initiator goes on to READ CAPACITY (16).
        page.u32(u32::try_from(last).unwrap_or(u32::MAX)).u32(self.config.block_size);
        // There is no allocation length: the data is always eight bytes.
        let mut writer = Writer::new(&data.data_in, 8);
        writer.put(page.as_bytes());
        Ok(writer.finish())
    }

    pub(super) fn read_capacity_16(&self, cdb: &[u8], data: &DataBuffers) -> Outcome {
        check_pmi(field(cdb, 14, 1), field(cdb, 2, 8))?;
        // LBPME and LBPRZ: space given back reads as zeros, by the contract of images.
        let provisioning = if self.is_thin() { 0xc0 } else { 0 };
        let mut page = Page::<32>::new();
        page.u64(self.last_lba()).u32(self.config.block_size);
        // P_TYPE and PROT_EN (SBC-4, 5.21.2).
        let protection = match self.protection.as_ref().map(|protection| protection.kind) {
            None => 0,
            Some(ProtectionType::Type1) => 0x01,
            Some(ProtectionType::Type3) => 0x05,
        };
        page.u8(protection).u8(self.physical_exponent()).u8(provisioning).u8(0).pad_to(32);
        let mut writer = Writer::new(&data.data_in, field(cdb, 10, 4));
        writer.put(page.as_bytes());
        Ok(writer.finish())
    }

    /// READ DEFECT DATA: empty lists in the format that was asked for.
    pub(super) fn read_defect_data(&self, cdb: &[u8], data: &DataBuffers) -> Outcome {
        let short = field(cdb, 0, 1) == 0x37;
        // REQ_PLIST, REQ_GLIST and DEFECT LIST FORMAT come back as they are.
        let asked = field(cdb, if short { 2 } else { 1 }, 1) as u8 & 0x1f;
        let (header, allocation): (&[u8], _) = if short {
            (&[0, asked, 0, 0], field(cdb, 7, 2))
        } else {
            (&[0, asked, 0, 0, 0, 0, 0, 0], field(cdb, 6, 4))
        };
        let mut writer = Writer::new(&data.data_in, allocation);
        writer.put(header);
        Ok(writer.finish())
    }

    fn last_lba(&self) -> u64 {
        self.blocks().saturating_sub(1)
    }

    /// LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT. The first block is aligned.
    pub(super) fn physical_exponent(&self) -> u8 {
        let physical = self.config.physical_block_size.unwrap_or(self.image.geometry().physical_block);
        let physical = physical.checked_next_power_of_two().unwrap_or(1);
        physical.trailing_zeros().saturating_sub(self.block_shift).min(15) as u8
    }
}
