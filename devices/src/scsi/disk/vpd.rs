//! Vital product data (SPC-5, 7.7; SBC-4, 6.6).

use super::{Disk, DiskConfig, ProtectionType, copy};
use crate::scsi::outcome::{Page, Writer};
use crate::scsi::sense::SenseData;
use crate::storage::BlockBackend;

/// Longest transfer of one command, in bytes: MAXIMUM TRANSFER LENGTH.
pub(super) const MAX_TRANSFER: u64 = 32 << 20;
/// Most bytes that one UNMAP or WRITE SAME covers: 2^20 blocks of 512 bytes.
pub(super) const MAX_PROVISION: u64 = 512 << 20;
/// Most block descriptors of one UNMAP.
pub(super) const MAX_UNMAP_DESCRIPTORS: u64 = 256;

/// The relative target port identifier of our only target port (SPC-5, 4.7.1).
const TARGET_PORT: u32 = 1;

/// Seconds that a token may go unused, if its maker says nothing, and at most.
pub(super) const DEFAULT_INACTIVITY: u32 = 60;
pub(super) const MAX_INACTIVITY: u32 = 3600;
/// Most block device range descriptors of one token command.
pub(super) const MAX_RANGES: u16 = 256;
/// Most bytes that one token command moves.
pub(super) const MAX_TOKEN_TRANSFER: u64 = 256 << 20;
/// ROD types (SPC-4, table 118): point in time copy, change vulnerable; block device zero.
pub(super) const ROD_CHANGE_VULNERABLE: u32 = 0x0080_0001;
pub(super) const ROD_ZERO: u32 = 0xffff_0001;

/// The longest page: 8Fh.
type Body = Page<512>;

/// A designator of the logical unit (SPC-5, 7.7.6).
#[derive(Clone, Debug)]
pub(in crate::scsi) struct Designator {
    kind: u8,
    name: Page<60>,
}

/// Designator types.
const T10_VENDOR: u8 = 1;
const EUI_64: u8 = 2;
const NAA: u8 = 3;
const SCSI_NAME: u8 = 8;

impl Designator {
    pub(super) fn new(kind: u8, name: &[u8]) -> Self {
        let mut page = Page::new();
        page.put(name);
        Self { kind, name: page }
    }
    /// CODE SET: binary, ASCII or UTF-8.
    pub(in crate::scsi) fn code_set(&self) -> u8 {
        match self.kind {
            NAA | EUI_64 => 1,
            SCSI_NAME => 3,
            _ => 2,
        }
    }
    /// DESIGNATOR TYPE
    pub(in crate::scsi) fn kind(&self) -> u8 {
        self.kind
    }
    pub(in crate::scsi) fn as_bytes(&self) -> &[u8] {
        self.name.as_bytes()
    }
    /// Whether both name the same.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.kind == other.kind && self.as_bytes() == other.as_bytes()
    }
}

/// The EUI-64 of an IEEE Registered name (NAA 5h): its company identifier, and its 36 bits as 40.
fn eui64(naa: u64) -> Option<u64> {
    (naa >> 60 == 5).then_some((naa >> 36 & 0x00ff_ffff) << 40 | naa & 0x000f_ffff_ffff)
}

impl DiskConfig {
    /// The names of the logical unit, the best first.
    pub(in crate::scsi) fn designators(&self) -> impl Iterator<Item = Designator> {
        [NAA, EUI_64, T10_VENDOR, SCSI_NAME].into_iter().filter_map(|kind| self.designator(kind))
    }

    /// The name of this kind, if it has one.
    fn designator(&self, kind: u8) -> Option<Designator> {
        let naa = self.naa();
        match kind {
            NAA => naa.map(|naa| Designator::new(NAA, &naa.to_be_bytes())),
            EUI_64 => naa.and_then(eui64).map(|eui64| Designator::new(EUI_64, &eui64.to_be_bytes())),
            SCSI_NAME => {
                naa.map(|naa| Designator::new(SCSI_NAME, format!("naa.{naa:016X}\0\0\0\0").as_bytes()))
            }
            // Without a serial number others are called the same, so it is no name where there is a better one.
            T10_VENDOR if naa.is_none() || !self.serial.is_empty() => {
                // Vendor, then what makes it unique.
                let mut name = Page::<60>::new();
                name.ascii(&self.vendor, 8).ascii(&self.product, 16).ascii(&self.serial, self.serial.len());
                Some(Designator { kind, name })
            }
            _ => None,
        }
    }
}

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
                body.put(&[0x83, 0x86, 0x87, 0x8f, 0xb0, 0xb1, 0xb2]);
                true
            }
            0x80 => {
                body.ascii(&self.config.serial, self.config.serial.len());
                self.has_serial()
            }
            0x83 => {
                self.device_identification(&mut body);
                true
            }
            0x86 => {
                // Extended INQUIRY data: SPT, GRD_CHK, REF_CHK; HEADSUP, ORDSUP, SIMPSUP; V_SUP, a cache that forgets.
                let checks = match self.protection.as_ref().map(|protection| protection.kind) {
                    None => 0,
                    Some(ProtectionType::Type1) => 0x05,
                    Some(ProtectionType::Type3) => 0x24,
                };
                body.put(&[checks, 0x07, 0x01]).pad_to(0x3c);
                true
            }
            0x87 => {
                // Mode page policy: all pages and subpages are shared by all initiators.
                body.put(&[0x3f, 0xff, 0x00, 0]);
                true
            }
            0x8f => {
                self.third_party_copy(&mut body);
                true
            }
            0xb0 => {
                self.block_limits(&mut body);
                true
            }
            0xb1 => {
                // WABEREQ and WACEREQ 00b: there is no SANITIZE.
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

    /// Whether this is one of the names.
    pub(super) fn is_named(&self, name: &Designator) -> bool {
        self.config.designator(name.kind).is_some_and(|own| own.is(name))
    }

    /// Device identification (SPC-5, 7.7.6): each designator has code set, association and type, 0, length.
    fn device_identification(&self, body: &mut Body) {
        for designator in self.config.designators() {
            let name = designator.as_bytes();
            body.put(&[designator.code_set(), designator.kind(), 0, name.len() as u8]).put(name);
        }
        // Binary, target port, relative target port identifier.
        body.put(&[0x01, 0x14, 0, 4]).u32(TARGET_PORT);
    }

    /// Block limits (SBC-4, 6.6.4).
    fn block_limits(&self, body: &mut Body) {
        let blocks = |bytes: u64| (bytes >> self.block_shift) as u32;
        let geometry = self.image.geometry();
        body.put(&[0x01, self.max_compare()]); // WSNZ: WRITE SAME of no blocks is refused
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
        // Maximum length, alignment and granularity are the same; no boundaries.
        let atomic = self.atomic_blocks();
        body.u32(atomic).u32(atomic).u32(atomic).u32(0).u32(0);
    }

    /// Blocks of one WRITE ATOMIC, at a multiple of which it starts: what the host's device guarantees, whatever the
    /// physical block is said to be. 0 where there is no WRITE ATOMIC: protection information is written apart.
    pub(super) fn atomic_blocks(&self) -> u32 {
        let none = self.is_read_only() || self.protection.is_some();
        if none { 0 } else { self.image.geometry().atomic >> self.block_shift }
    }

    /// Third-party copy (SPC-4, 7.8.17; SBC-4, 6.6.9): descriptors of a type, a length, and fields.
    fn third_party_copy(&self, body: &mut Body) {
        // Block device ROD token limits.
        let tokens = MAX_TOKEN_TRANSFER >> self.block_shift;
        body.u16(0x0000).u16(0x20).put(&[0; 6]).u16(MAX_RANGES).u32(MAX_INACTIVITY).u32(DEFAULT_INACTIVITY);
        body.u64(tokens).u64(tokens);
        // Supported commands: operation code, number of service actions, service actions; padded.
        let commands = [0x83, 4, 0x00, 0x01, 0x10, 0x11, 0x84, 5, 0x00, 0x03, 0x04, 0x05, 0x07];
        body.u16(0x0001).u16(16).u8(commands.len() as u8).put(&commands).put(&[0; 2]);
        // Parameter data.
        body.u16(0x0004).u16(0x1c).put(&[0; 4]).u16(copy::MAX_CSCDS as u16).u16(copy::MAX_SEGMENTS as u16);
        body.u32(copy::MAX_DESCRIPTORS as u32).put(&[0; 16]);
        // Supported descriptors, and supported CSCD descriptor IDs beyond those of the list.
        body.u16(0x0008).u16(4).put(&[3, 0x02, 0x0a, 0xe4]);
        body.u16(0x000c).u16(4).u16(2).u16(0xffff);
        // Supported ROD types: made and taken; taken only.
        body.u16(0x0108).u16(4 + 2 * 64).put(&[0; 2]).u16(2 * 64);
        for (rod, made) in [(ROD_CHANGE_VULNERABLE, 0x03), (ROD_ZERO, 0x02)] {
            body.u32(rod).u8(made).put(&[0; 59]);
        }
        // General copy operations: copies, those with a list identifier, segment length, granularity of 512 bytes.
        let held = copy::MAX_HELD as u32;
        body.u16(0x8001).u16(0x20).u32(held).u32(held).u32(copy::MAX_SEGMENT as u32).u8(9).put(&[0; 19]);
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
