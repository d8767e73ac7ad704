//! The parameter lists of EXTENDED COPY (SPC-4, 6.4.3 and 6.5.2): checked as a whole before anything is copied.

use super::{MAX_CSCDS, MAX_DESCRIPTORS, MAX_SEGMENT, MAX_SEGMENTS};
use crate::scsi::disk::vpd::Designator;
use crate::scsi::opcode::field;
use crate::scsi::sense::{
    INLINE_DATA_LENGTH_EXCEEDED, PARAMETER_LIST_LENGTH_ERROR, SenseData, TOO_MANY_SEGMENTS, TOO_MANY_TARGETS,
    UNSUPPORTED_SEGMENT_TYPE, UNSUPPORTED_TARGET_TYPE,
};

/// Longest list that is looked at, in bytes: longer ones have too many descriptors, and that is what is said.
pub(super) const MAX_LIST: usize = 48 + MAX_DESCRIPTORS;

/// Descriptor type codes (SPC-4, table 109): block device to block device, the same with byte offsets, and the
/// identification CSCD descriptor.
pub(crate) const BLOCK_TO_BLOCK: u8 = 0x02;
pub(crate) const BLOCK_TO_BLOCK_OFFSET: u8 = 0x0a;
pub(crate) const IDENTIFICATION: u8 = 0xe4;
/// CSCD descriptor ID of the logical unit that copies (SPC-4, table 112).
pub(crate) const OWN_ID: u16 = 0xffff;

const CSCD_LEN: usize = 32;

/// Index of a CSCD descriptor, or [`OWN_ID`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CscdId(u16);

/// A device of a copy.
pub(super) enum Cscd {
    /// The unit that the command was sent to.
    Own,
    /// The unit with this designator.
    Designated(Designator),
}

/// What one segment descriptor asks for.
pub(super) struct Segment {
    pub(super) source: CscdId,
    pub(super) target: CscdId,
    pub(super) source_lba: u64,
    pub(super) target_lba: u64,
    /// Bytes into the first block.
    pub(super) source_offset: u64,
    pub(super) target_offset: u64,
    /// Blocks, or bytes.
    pub(super) count: u64,
    pub(super) in_bytes: bool,
    /// DC: the count is in blocks of the target.
    pub(super) counts_target: bool,
}

/// A list that is well formed.
#[derive(Debug)]
pub(super) struct List<'a> {
    pub(super) id: u32,
    /// Whether the result stays for RECEIVE COPY STATUS.
    pub(super) keeps_result: bool,
    cscds: &'a [u8],
    segments: &'a [u8],
}

impl<'a> List<'a> {
    pub(super) fn parse(bytes: &'a [u8], lid4: bool) -> Result<Self, SenseData> {
        let wrong_len = SenseData::illegal(PARAMETER_LIST_LENGTH_ERROR);
        let header = if lid4 { 48 } else { 16 };
        if bytes.len() < header {
            return Err(wrong_len);
        }
        if lid4 {
            check_lid4_header(bytes)?;
        }
        let usage = field(bytes, 1, 1) >> 3 & 3;
        let (id, id_at) = if lid4 { (field(bytes, 20, 4), 20) } else { (field(bytes, 0, 1), 0) };
        match usage {
            1 => return Err(SenseData::parameter_field(1, Some(4))),
            3 if id != 0 => return Err(SenseData::parameter_field(id_at, None)),
            _ => {}
        }
        let (cscds_at, segments_at, inline_at) = if lid4 { (42, 44, 46) } else { (2, 8, 12) };
        let (long, short) = if lid4 { (2, 2) } else { (4, 2) };
        let cscds = field(bytes, cscds_at, short) as usize;
        let segments = field(bytes, segments_at, long) as usize;
        if field(bytes, inline_at, long) != 0 {
            return Err(SenseData::illegal(INLINE_DATA_LENGTH_EXCEEDED));
        }
        if cscds.checked_add(segments).is_none_or(|len| len > MAX_DESCRIPTORS) {
            return Err(wrong_len);
        }
        if !cscds.is_multiple_of(CSCD_LEN) {
            return Err(SenseData::parameter_field(cscds_at as u16, None));
        }
        if cscds / CSCD_LEN > MAX_CSCDS {
            return Err(SenseData::illegal(TOO_MANY_TARGETS));
        }
        let segments_start = header + cscds;
        let list = Self {
            id: id as u32,
            keeps_result: usage == 0,
            cscds: bytes.get(header..segments_start).ok_or(wrong_len)?,
            segments: bytes.get(segments_start..segments_start + segments).ok_or(wrong_len)?,
        };
        list.check(header, segments_start)?;
        Ok(list)
    }

    fn check(&self, cscds_at: usize, segments_at: usize) -> Result<(), SenseData> {
        for (index, cscd) in self.cscds.chunks(CSCD_LEN).enumerate() {
            if field(cscd, 0, 1) as u8 != IDENTIFICATION {
                return Err(SenseData::illegal(UNSUPPORTED_TARGET_TYPE));
            }
            // DESIGNATOR LENGTH: the field has 20 bytes.
            if field(cscd, 7, 1) > 20 {
                let at = cscds_at + index * CSCD_LEN + 7;
                return Err(SenseData::parameter_field(at as u16, None));
            }
        }
        let (mut rest, mut at, mut count) = (self.segments, segments_at, 0);
        while !rest.is_empty() {
            let wanted = match field(rest, 0, 1) as u8 {
                BLOCK_TO_BLOCK => 0x18,
                BLOCK_TO_BLOCK_OFFSET => 0x1c,
                _ => return Err(SenseData::illegal(UNSUPPORTED_SEGMENT_TYPE)),
            };
            if rest.len() < 4 + wanted {
                return Err(SenseData::illegal(PARAMETER_LIST_LENGTH_ERROR));
            }
            if field(rest, 2, 2) != wanted as u64 {
                return Err(SenseData::parameter_field(at as u16 + 2, None));
            }
            if wanted == 0x1c && field(rest, 8, 4) > MAX_SEGMENT {
                return Err(SenseData::parameter_field(at as u16 + 8, None));
            }
            count += 1;
            if count > MAX_SEGMENTS {
                return Err(SenseData::illegal(TOO_MANY_SEGMENTS));
            }
            rest = rest.get(4 + wanted..).unwrap_or_default();
            at += 4 + wanted;
        }
        Ok(())
    }

    /// The segments in their order.
    pub(super) fn segments(&self) -> impl Iterator<Item = Segment> {
        let mut rest = self.segments;
        std::iter::from_fn(move || {
            let len = field(rest, 2, 2) as usize + 4;
            let (bytes, after) = rest.split_at_checked(len)?;
            rest = after;
            Some(segment(bytes))
        })
    }

    /// The device with this number, if the list has it.
    pub(super) fn cscd(&self, id: CscdId) -> Option<Cscd> {
        if id.0 == OWN_ID {
            return Some(Cscd::Own);
        }
        let start = usize::from(id.0) * CSCD_LEN;
        let cscd = self.cscds.get(start..start + CSCD_LEN)?;
        let len = field(cscd, 7, 1) as usize;
        let name = cscd.get(8..8 + len)?;
        Some(Cscd::Designated(Designator::new(field(cscd, 5, 1) as u8 & 0x0f, name)))
    }
}

/// EXTENDED COPY (LID4) says of its header what it could have had instead.
fn check_lid4_header(bytes: &[u8]) -> Result<(), SenseData> {
    // PARAMETER LIST FORMAT, HEADER CSCD DESCRIPTOR LIST LENGTH and TYPE CODE.
    for (at, len, wanted) in [(0, 1, 0x01), (2, 2, 0x20), (16, 1, 0xff)] {
        if field(bytes, at, len) != wanted {
            return Err(SenseData::parameter_field(at as u16, None));
        }
    }
    Ok(())
}

fn segment(bytes: &[u8]) -> Segment {
    let in_bytes = field(bytes, 0, 1) as u8 == BLOCK_TO_BLOCK_OFFSET;
    let offset = |at| if in_bytes { field(bytes, at, 2) } else { 0 };
    Segment {
        source: CscdId(field(bytes, 4, 2) as u16),
        target: CscdId(field(bytes, 6, 2) as u16),
        source_lba: field(bytes, 12, 8),
        target_lba: field(bytes, 20, 8),
        source_offset: offset(28),
        target_offset: offset(30),
        count: if in_bytes { field(bytes, 8, 4) } else { field(bytes, 10, 2) },
        in_bytes,
        counts_target: field(bytes, 1, 1) & 2 != 0,
    }
}
