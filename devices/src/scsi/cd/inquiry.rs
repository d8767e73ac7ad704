//! INQUIRY (SPC-5, 6.7) of a drive.

use super::Cd;
use crate::scsi::DataBuffers;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Outcome, Page, Writer};
use crate::scsi::sense::SenseData;
use crate::storage::BlockBackend;

/// Peripheral device type: CD or DVD (SPC-5, 6.7.2).
const CD_DVD: u8 = 0x05;
/// Standards claimed: SAM-5, SPC-4, MMC-6, each without a version.
const VERSION_DESCRIPTORS: [u16; 3] = [0x00a0, 0x0460, 0x04e0];

impl<B: BlockBackend> Cd<B> {
    pub(super) fn inquiry(&self, cdb: &[u8], data: &DataBuffers) -> Outcome {
        let page_code = field(cdb, 2, 1) as u8;
        let mut writer = Writer::new(&data.data_in, field(cdb, 3, 2));
        if field(cdb, 1, 1) & 1 != 0 {
            self.vital_product_data(page_code, &mut writer)?;
        } else if page_code == 0 {
            let mut page = Page::<96>::new();
            // Removable; VERSION SPC-4; HISUP and RESPONSE DATA FORMAT 2; commands are queued.
            page.put(&[CD_DVD, 0x80, 0x06, 0x12, 96 - 5, 0, 0, 0x02]);
            page.ascii(&self.config.vendor, 8)
                .ascii(&self.config.product, 16)
                .ascii(&self.config.revision, 4);
            page.pad_to(58);
            for descriptor in VERSION_DESCRIPTORS {
                page.u16(descriptor);
            }
            page.pad_to(96);
            writer.put(page.as_bytes());
        } else {
            return Err(SenseData::cdb_field(2, Some(7)).into());
        }
        Ok(writer.finish())
    }

    fn vital_product_data(&self, code: u8, writer: &mut Writer<'_>) -> Result<(), SenseData> {
        let serial = &self.config.serial;
        let mut body = Page::<256>::new();
        match code {
            0x00 if serial.is_empty() => body.put(&[0x00, 0x83]),
            0x00 => body.put(&[0x00, 0x80, 0x83]),
            0x80 if !serial.is_empty() => body.ascii(serial, serial.len()),
            0x83 => {
                for designator in self.config.names().designators() {
                    let name = designator.as_bytes();
                    body.put(&[designator.code_set(), designator.kind(), 0, name.len() as u8]).put(name);
                }
                // Binary, target port, relative target port identifier 1.
                body.put(&[0x01, 0x14, 0, 4]).u32(1)
            }
            _ => return Err(SenseData::cdb_field(2, Some(7))),
        };
        let [high, low] = (body.len() as u16).to_be_bytes();
        writer.put(&[CD_DVD, code, high, low]);
        writer.put(body.as_bytes());
        Ok(())
    }
}
