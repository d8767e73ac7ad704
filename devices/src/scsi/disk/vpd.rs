//! Vital product data (SPC-5, 7.7; SBC-4, 6.6).

use super::Disk;
use crate::scsi::outcome::{Page, Writer};
use crate::scsi::sense::SenseData;
use crate::storage::BlockBackend;

/// Longest transfer of one command, in bytes: MAXIMUM TRANSFER LENGTH.
pub(super) const MAX_TRANSFER: u64 = 32 << 20;
/// Most bytes that one UNMAP or WRITE SAME covers.
pub(super) const MAX_PROVISION: u64 = 1 << 30;
/// Most block descriptors of one UNMAP.
pub(super) const MAX_UNMAP_DESCRIPTORS: u64 = 256;

/// The relative target port identifier of our only target port (SPC-5, 4.7.1).
const TARGET_PORT: u32 = 1;

/// The longest page: 83h with all texts at their longest.
type Body = Page<252>;

impl<B: BlockBackend> Disk<B> {
    /// Writes the page `code`, header and all.
    pub(super) fn vital_product_data(&self, code: u8, writer: &mut Writer<'_>) -> Result<(), SenseData> {
        let mut body = Body::new();
        let known = match code {
            0x00 => {
                body.put(&[0x00]);
                if self.has_serial() {
                    body.u8(0x80);
                }
                body.put(&[0x83, 0xb0, 0xb1, 0xb2]);
                true
            }
            0x80 => {
                body.ascii(&self.config.serial, self.config.serial.len());
                self.has_serial()
            }
            0x83 => {
                self.designators(&mut body);
                true
            }
            0xb0 => {
                self.block_limits(&mut body);
                true
            }
            0xb1 => {
                body.u16(self.config.rotation_rate).pad_to(0x3c);
                true
            }
            0xb2 => {
                self.logical_block_provisioning(&mut body);
                true
            }
            _ => false,
        };
        if !known {
            return Err(SenseData::cdb_field(2, Some(7)));
        }
        // Peripheral qualifier 000b and device type 00h, page code, length.
        let [high, low] = (body.len() as u16).to_be_bytes();
        writer.put(&[0x00, code, high, low]);
        writer.put(body.as_bytes());
        Ok(())
    }

    fn has_serial(&self) -> bool {
        !self.config.serial.is_empty()
    }

    /// Device identification (SPC-5, 7.7.6): each designator has code set, association and type, 0, length.
    fn designators(&self, body: &mut Body) {
        if let Some(naa) = self.config.naa() {
            // Binary, logical unit, NAA.
            body.put(&[0x01, 0x03, 0, 8]).u64(naa);
        }
        // ASCII, logical unit, T10 vendor ID based: vendor, then what makes it unique.
        let serial = &self.config.serial;
        body.put(&[0x02, 0x01, 0, (8 + 16 + serial.len()) as u8]);
        body.ascii(&self.config.vendor, 8).ascii(&self.config.product, 16).ascii(serial, serial.len());
        // Binary, target port, relative target port identifier.
        body.put(&[0x01, 0x14, 0, 4]).u32(TARGET_PORT);
    }

    /// Block limits (SBC-4, 6.6.4).
    fn block_limits(&self, body: &mut Body) {
        let blocks = |bytes: u64| (bytes >> self.block_shift) as u32;
        let geometry = self.image.geometry();
        body.put(&[0x01, 0]); // WSNZ: WRITE SAME of no blocks is refused; no COMPARE AND WRITE
        body.u16(0); // OPTIMAL TRANSFER LENGTH GRANULARITY
        body.u32(blocks(MAX_TRANSFER));
        body.u32(0); // OPTIMAL TRANSFER LENGTH: none is better than others
        body.u32(0); // MAXIMUM PREFETCH LENGTH
        if self.is_thin() {
            body.u32(blocks(MAX_PROVISION)).u32(MAX_UNMAP_DESCRIPTORS as u32);
            // Granularity of at least one block, aligned to LBA 0: UGAVALID and 0.
            body.u32(blocks(u64::from(geometry.discard_granularity)).max(1)).u32(0x8000_0000);
        } else {
            body.put(&[0; 16]);
        }
        body.u64(MAX_PROVISION >> self.block_shift); // MAXIMUM WRITE SAME LENGTH
        body.pad_to(0x3c); // no atomic writes
    }

    /// Logical block provisioning (SBC-4, 6.6.6).
    fn logical_block_provisioning(&self, body: &mut Body) {
        if self.is_thin() {
            // No threshold; LBPU, LBPWS, LBPWS10, LBPRZ 001b; PROVISIONING TYPE thin.
            body.put(&[0, 0xe4, 0x02, 0]);
        } else {
            body.put(&[0, 0, 0, 0]);
        }
    }
}
