//! INQUIRY: what a unit is (SPC-4 6.6) and its vital product data (SPC-4 7.8, SBC-3 6.5).

use super::{Context, Done, Kind, Unit, cut};
use crate::bytes::Fields;
use crate::scsi::disk;
use crate::scsi::sense::Sense;

/// Vital product data pages.
const PAGES: u8 = 0x00;
const UNIT_SERIAL_NUMBER: u8 = 0x80;
const DEVICE_IDENTIFICATION: u8 = 0x83;
const EXTENDED_INQUIRY_DATA: u8 = 0x86;
const BLOCK_LIMITS: u8 = 0xb0;
const BLOCK_DEVICE_CHARACTERISTICS: u8 = 0xb1;
const LOGICAL_BLOCK_PROVISIONING: u8 = 0xb2;
const REFERRALS: u8 = 0xb3;

/// What a LUN answers at which there is no unit: peripheral qualifier 011b, device type 1Fh. Or, by some arrays at number 0 (LUNZ),
/// that a disk could be there and is not: 001b and 00h (SPC-4 6.4.2, table of peripheral qualifiers).
pub(crate) fn missing(cdb: &[u8; 16], is_lunz: bool) -> Done {
    if cdb[1] & 1 != 0 || cdb[2] != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB.into());
    }
    cut(standard(if is_lunz { 0x20 } else { 0x7f }, ""), cdb.be16(3).unwrap_or_default())
}

fn standard(kind: u8, product: &str) -> Vec<u8> {
    // SPC-4, hierarchical LUNs. Target port groups are reported and set; many ports; commands are queued.
    let mut data = vec![kind, if kind == 1 { 0x80 } else { 0 }, 6, 0x12, 31, 0x30, 0x10, 2];
    data.extend(b"FABRIC  ");
    data.extend(format!("{product:16.16}").bytes());
    data.extend(b"1   ");
    data
}

impl Unit {
    fn device_type(&self) -> u8 {
        match self.kind {
            Kind::Disk(_) => 0,
            Kind::Tape(_) => 1,
        }
    }

    pub(super) fn inquiry(&self, cdb: &[u8; 16], context: Context<'_>) -> Done {
        let allocation = cdb.be16(3).unwrap_or_default();
        let (vital, page) = (cdb[1] & 1 == 1, cdb[2]);
        if !vital && page == 0 {
            let product = if self.device_type() == 0 { "DISK" } else { "TAPE" };
            return cut(standard(self.device_type(), product), allocation);
        }
        let body = if vital { self.page(page, context) } else { None };
        let body = body.ok_or(Sense::INVALID_FIELD_IN_CDB)?;
        let length = u16::try_from(body.len()).unwrap_or_default().to_be_bytes();
        cut([&[self.device_type(), page], &length[..], &body].concat(), allocation)
    }

    fn page(&self, page: u8, context: Context<'_>) -> Option<Vec<u8>> {
        let disk = match &self.kind {
            Kind::Disk(disk) => Some(disk),
            Kind::Tape(_) => None,
        };
        Some(match page {
            PAGES => {
                let mut pages = vec![PAGES, UNIT_SERIAL_NUMBER, DEVICE_IDENTIFICATION];
                let refers = disk.is_some_and(|disk| disk.referrals.is_some());
                pages.extend(refers.then_some(EXTENDED_INQUIRY_DATA));
                let of_disks = [BLOCK_LIMITS, BLOCK_DEVICE_CHARACTERISTICS, LOGICAL_BLOCK_PROVISIONING];
                pages.extend(of_disks.into_iter().filter(|_| disk.is_some()));
                pages.extend(refers.then_some(REFERRALS));
                pages
            }
            UNIT_SERIAL_NUMBER => self.name.as_bytes().to_vec(),
            DEVICE_IDENTIFICATION => self.identification(context),
            // R_SUP, and nothing else.
            EXTENDED_INQUIRY_DATA => {
                disk?.referrals.as_ref()?;
                [&[0, 0, 0, 0, 0x10][..], &[0; 55]].concat()
            }
            REFERRALS => disk?.referrals.as_ref()?.page(),
            BLOCK_LIMITS => limits(disk?.block()),
            // No rotation.
            BLOCK_DEVICE_CHARACTERISTICS => [&[0, 1][..], &[0; 58]].concat(),
            // UNMAP and WRITE SAME(16) and (10) unmap; what is unmapped reads as zeros; thin.
            LOGICAL_BLOCK_PROVISIONING if disk.is_some() => vec![0, 0xe4, 2, 0],
            _ => return None,
        })
    }

    /// Designators (SPC-4 7.8.5): code set and protocol, association and type, length.
    fn identification(&self, context: Context<'_>) -> Vec<u8> {
        let port = context.nexus.port;
        let group = context.groups.group_of(port);
        let mut list = vec![0x01, 0x03, 0, 16];
        list.extend(self.naa());
        // Of the target port: its name, its relative identifier and its group.
        list.extend([0x01, 0x93, 0, 8]);
        list.extend(context.wwpn.0.to_be_bytes());
        for (kind, number) in [(0x94, port), (0x95, group)] {
            list.extend([0x01, kind, 0, 4, 0, 0]);
            list.extend(number.to_be_bytes());
        }
        // Of the target device.
        list.extend([0x01, 0xa3, 0, 8]);
        list.extend(context.wwnn.0.to_be_bytes());
        list
    }
}

/// Block limits (SBC-3 6.5.3), counted in blocks.
fn limits(block: u32) -> Vec<u8> {
    // WRITE SAME of zero blocks is none; COMPARE AND WRITE of so many.
    let mut page = vec![1, disk::MOST_COMPARED, 0, 1];
    page.extend((disk::MOST_MOVED / block).to_be_bytes());
    page.extend((disk::MOST_MOVED / block / 8).to_be_bytes());
    page.extend([0; 4]);
    // UNMAP: blocks, descriptors, granularity; its alignment is zero, which bit 7 says is meant.
    page.extend(disk::MOST_UNMAPPED.to_be_bytes());
    page.extend(disk::MOST_DESCRIPTORS.to_be_bytes());
    page.extend((65536 / block).to_be_bytes());
    page.extend([0x80, 0, 0, 0]);
    page.extend(u64::from(disk::MOST_SAME).to_be_bytes());
    page.resize(60, 0);
    page
}
