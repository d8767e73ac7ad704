//! INQUIRY (SPC-5, 6.7): the standard data. Vital product data is in `vpd`.

use super::Disk;
use crate::scsi::DataBuffers;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Outcome, Page, Writer};
use crate::scsi::sense::SenseData;
use crate::storage::BlockBackend;

/// Standards claimed (SPC-5, 6.7.4 and annex): SAM-5, SPC-4, SBC-3, SPC-5, SBC-4, each without a version. The earlier
/// ones are what the VERSION field and many initiators can name.
const VERSION_DESCRIPTORS: [u16; 5] = [0x00a0, 0x0460, 0x04c0, 0x05c0, 0x0600];

impl<B: BlockBackend> Disk<B> {
    pub(super) fn inquiry(&self, cdb: &[u8], data: &DataBuffers) -> Outcome {
        let page_code = field(cdb, 2, 1) as u8;
        let mut writer = Writer::new(&data.data_in, field(cdb, 3, 2));
        if field(cdb, 1, 1) & 1 != 0 {
            self.vital_product_data(page_code, &mut writer)?;
        } else if page_code == 0 {
            writer.put(self.standard_inquiry().as_bytes());
        } else {
            return Err(SenseData::cdb_field(2, Some(7)).into());
        }
        Ok(writer.finish())
    }

    fn standard_inquiry(&self) -> Page<96> {
        let config = &self.config;
        let mut page = Page::new();
        page.u8(0x00) // a direct access block device is connected
            .u8(if config.removable { 0x80 } else { 0 }) // RMB
            .u8(0x06) // VERSION: SPC-4
            .u8(0x12) // HISUP, RESPONSE DATA FORMAT 2
            .u8(96 - 5) // ADDITIONAL LENGTH
            .put(&[0x08 | u8::from(self.protection.is_some()), 0]) // 3PC: third-party copy; PROTECT
            .u8(0x02) // CMDQUE
            .ascii(&config.vendor, 8)
            .ascii(&config.product, 16)
            .ascii(&config.revision, 4)
            .pad_to(58);
        for descriptor in VERSION_DESCRIPTORS {
            page.u16(descriptor);
        }
        page.pad_to(96);
        page
    }
}
