//! What a guest sees otherwise than the device says it: block limits, and that it cannot write. Nothing else.

use super::kind::Kind;
use super::limits::HostLimits;
use crate::scsi::Cdb;
use crate::scsi::opcode::field;

/// VPD page B0h, Block Limits (SBC-4, 6.6.4).
pub(super) const BLOCK_LIMITS: u8 = 0xb0;
/// Its length, with its header.
const BLOCK_LIMITS_LEN: usize = 64;
/// What of the answer to commands that are looked at is looked at: more than any of them has.
pub(super) const LONGEST: u64 = 64 << 10;

/// How a device tells its block limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// It has the page, or is none that could.
    Own,
    /// It has vital product data without it: it is added.
    Missing,
}

/// What is done with the answer to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing.
    Not,
    /// Where there is no device, the unit answers as if it were none.
    Standard,
    /// The page of block limits is the device's; its lengths become those that the host takes.
    BlockLimits,
    /// The device has no such page: the whole of it is made here.
    MakeBlockLimits,
    /// The page is added to those that the device has.
    Pages,
    /// The length of blocks is noted, which is at this byte.
    BlockLength(usize),
    /// The medium is said to be write protected, at this byte.
    WriteProtected(usize),
}

/// Whether the answer to a command is looked at.
pub(super) fn look(kind: Kind, page: Page, read_only: bool, cdb: &Cdb) -> Look {
    const EVPD: u8 = 0x01;
    const READ_CAPACITY_16: u8 = 0x10;
    let bytes = cdb.padded();
    match (cdb.opcode(), kind) {
        // The LUN of SCSI-2 may be in byte 1.
        (0x12, _) if bytes[1] & 0x1f == 0 && bytes[2] == 0 => Look::Standard,
        (0x12, Kind::Disk) if bytes[1] & EVPD != 0 => match (bytes[2], page) {
            (BLOCK_LIMITS, Page::Own) => Look::BlockLimits,
            (BLOCK_LIMITS, Page::Missing) => Look::MakeBlockLimits,
            (0, Page::Missing) => Look::Pages,
            _ => Look::Not,
        },
        (0x25, Kind::Disk | Kind::Cd) => Look::BlockLength(4),
        (0x9e, Kind::Disk) if bytes[1] & 0x1f == READ_CAPACITY_16 => Look::BlockLength(8),
        // DEVICE-SPECIFIC PARAMETER, WP (SBC-4, 6.5.1; SSC-5, 8.3.1), of MODE SENSE(6) and (10).
        (0x1a, Kind::Disk | Kind::Tape) if read_only => Look::WriteProtected(2),
        (0x5a, Kind::Disk | Kind::Tape) if read_only => Look::WriteProtected(3),
        _ => Look::Not,
    }
}

/// How much of the answer is wanted (ALLOCATION LENGTH of INQUIRY).
pub(super) fn wanted(cdb: &Cdb) -> usize {
    field(cdb.padded(), 3, 2) as usize
}

/// The same INQUIRY with room for all of the answer.
pub(super) fn whole(cdb: &Cdb) -> Cdb {
    let mut bytes = *cdb.padded();
    (bytes[3], bytes[4]) = (0x01, 0x00);
    Cdb::new(bytes.get(..6).unwrap_or(&bytes))
}

/// The longest answer to it, in bytes: what a page of less than 256 page codes needs.
pub(super) const WHOLE_LEN: u64 = 0x100;

/// Sets a big-endian field of four bytes, if all of it is there.
fn change(bytes: &mut [u8], at: usize, to: impl Fn(u32) -> u32) {
    if let Some(place) = bytes.get_mut(at..at + 4).and_then(|part| part.first_chunk_mut::<4>()) {
        *place = to(u32::from_be_bytes(*place)).to_be_bytes();
    }
}

/// Lowers what page B0h promises to what the host takes, in blocks of `block` bytes. `bytes` are those that came.
pub(super) fn lower(bytes: &mut [u8], limits: &HostLimits, block: u32) {
    // PAGE LENGTH; a page of SBC-2 is shorter, and what is behind its end is none of it.
    let len = (field(bytes, 2, 2) as usize).saturating_add(4).min(bytes.len());
    let Some(page) = bytes.get_mut(..len) else { return };
    if page.get(1) != Some(&BLOCK_LIMITS) {
        return;
    }
    let most = blocks(limits.transfer(), block);
    // MAXIMUM COMPARE AND WRITE LENGTH: twice as much goes with it.
    if let Some(compare) = page.get_mut(5) {
        *compare = (*compare).min(u8::try_from(most / 2).unwrap_or(u8::MAX));
    }
    // MAXIMUM TRANSFER LENGTH: zero says nothing. OPTIMAL and MAXIMUM ATOMIC TRANSFER LENGTH: zero says that there is none.
    change(page, 8, |own| if own == 0 { most } else { own.min(most) });
    change(page, 12, |own| own.min(blocks(limits.transfer().min(limits.preferred_bytes), block)));
    change(page, 44, |own| own.min(most));
}

/// The page for a device that has none.
pub(super) fn made(peripheral: u8, limits: &HostLimits, block: u32) -> [u8; BLOCK_LIMITS_LEN] {
    let mut page = [0; BLOCK_LIMITS_LEN];
    (page[0], page[1], page[3]) = (peripheral, BLOCK_LIMITS, BLOCK_LIMITS_LEN as u8 - 4);
    lower(&mut page, limits, block);
    page
}

/// Adds page B0h to the list of pages `bytes`, which is whole.
pub(super) fn add_page(bytes: &mut Vec<u8>) {
    let len = field(bytes, 2, 2) as usize;
    let Some(pages) = bytes.get(4..).and_then(|pages| pages.get(..len)) else { return };
    if pages.contains(&BLOCK_LIMITS) {
        return;
    }
    // In ascending order (SPC-5, 7.7.16).
    let place = pages.iter().position(|page| *page > BLOCK_LIMITS).unwrap_or(len);
    bytes.truncate(4 + len);
    bytes.insert(4 + place, BLOCK_LIMITS);
    let [high, low] = (len as u16).saturating_add(1).to_be_bytes();
    if let Some(field) = bytes.get_mut(2..4) {
        field.copy_from_slice(&[high, low]);
    }
}

/// Whether a list of pages, as it came, shows that the device has no page B0h.
pub(super) fn lacks_block_limits(bytes: &[u8]) -> bool {
    let len = field(bytes, 2, 2) as usize;
    let pages = bytes.get(4..).and_then(|pages| pages.get(..len));
    bytes.get(1) == Some(&0)
        && pages.is_some_and(|pages| pages.first() == Some(&0) && !pages.contains(&BLOCK_LIMITS))
}

fn blocks(bytes: u64, block: u32) -> u32 {
    u32::try_from(bytes / u64::from(block.max(1))).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> HostLimits {
        HostLimits { max_bytes: 64 << 10, preferred_bytes: 8 << 10, max_segments: 4, ..HostLimits::default() }
    }

    #[test]
    fn lengths_become_those_that_the_host_takes() {
        let mut page = made(0, &limits(), 512);
        assert_eq!(page[..16], [0, 0xb0, 0, 60, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0, 0]);
        page[5] = 255;
        page[8..16].copy_from_slice(&[0, 0, 0, 8, 0, 0, 0xff, 0xff]);
        page[44..48].copy_from_slice(&[0, 1, 0, 0]);
        page[20..24].copy_from_slice(&[0xff; 4]);
        lower(&mut page, &limits(), 512);
        assert_eq!(page[5], 16);
        assert_eq!(page[8..16], [0, 0, 0, 8, 0, 0, 0, 16], "its own is less; what the host likes is less");
        assert_eq!(page[44..48], [0, 0, 0, 32]);
        assert_eq!(page[20..24], [0xff; 4], "UNMAP has a list only");
        lower(&mut page, &limits(), 4096);
        assert_eq!(page[8..16], [0, 0, 0, 4, 0, 0, 0, 2]);
    }

    #[test]
    fn what_did_not_come_is_not_touched() {
        let full = made(0, &limits(), 512);
        for len in 0..12 {
            let mut page = full[..len].to_vec();
            lower(&mut page, &HostLimits::default(), 512);
            assert_eq!(page, full[..len], "{len}");
        }
        // The page of SBC-2 ends before; a device that says another page, or that its own is shorter.
        let mut old = full;
        old[3] = 0x0c;
        old[44..48].copy_from_slice(b"....");
        lower(&mut old, &limits(), 512);
        assert_eq!(old[44..48], *b"....");
        let mut other = full;
        (other[1], other[8]) = (0xb1, 9);
        let before = other;
        lower(&mut other, &limits(), 512);
        assert_eq!(other, before);
    }

    #[test]
    fn the_page_is_added_where_it_belongs() {
        let mut pages = vec![0, 0, 0, 4, 0x00, 0x80, 0x83, 0xb1, 0xee, 0xee];
        assert!(lacks_block_limits(&pages));
        add_page(&mut pages);
        assert_eq!(pages, [0, 0, 0, 5, 0x00, 0x80, 0x83, 0xb0, 0xb1]);
        assert!(!lacks_block_limits(&pages));
        add_page(&mut pages);
        assert_eq!(pages.len(), 9, "once");
        let mut last = vec![0, 0, 0, 2, 0x00, 0x83];
        add_page(&mut last);
        assert_eq!(last, [0, 0, 0, 3, 0x00, 0x83, 0xb0]);
        // Lists that lie about their length.
        for mut bad in
            [vec![], vec![0, 0], vec![0, 0, 0xff, 0xff, 0], vec![0, 0, 0, 0], vec![0, 0x80, 0, 1, 0]]
        {
            let before = bad.clone();
            assert!(!lacks_block_limits(&bad), "{bad:02x?}");
            if bad.len() != 4 && bad.get(1) != Some(&0x80) {
                add_page(&mut bad);
                assert_eq!(bad, before);
            }
        }
    }

    #[test]
    fn only_what_must_differ_is_looked_at() {
        let of = |cdb: &[u8]| look(Kind::Disk, Page::Own, false, &Cdb::new(cdb));
        assert_eq!(of(&[0x12, 0, 0, 0, 96, 0]), Look::Standard);
        assert_eq!(of(&[0x12, 0, 0x80, 0, 96, 0]), Look::Not);
        assert_eq!(of(&[0x12, 1, 0, 0, 96, 0]), Look::Not);
        assert_eq!(of(&[0x12, 1, 0xb0, 0, 96, 0]), Look::BlockLimits);
        assert_eq!(of(&[0x12, 1, 0x83, 0, 96, 0]), Look::Not);
        assert_eq!(of(&[0x1a, 0, 0x3f, 0, 96, 0]), Look::Not);
        assert_eq!(of(&[0x25]), Look::BlockLength(4));
        assert_eq!(of(&[0x9e, 0x10]), Look::BlockLength(8));
        assert_eq!(of(&[0x9e, 0x12]), Look::Not);
        let missing = |cdb: &[u8]| look(Kind::Disk, Page::Missing, true, &Cdb::new(cdb));
        assert_eq!(missing(&[0x12, 1, 0, 0, 96, 0]), Look::Pages);
        assert_eq!(missing(&[0x12, 1, 0xb0, 0, 96, 0]), Look::MakeBlockLimits);
        assert_eq!(missing(&[0x1a]), Look::WriteProtected(2));
        assert_eq!(missing(&[0x5a]), Look::WriteProtected(3));
        // Page B0h of tapes is another one.
        assert_eq!(look(Kind::Tape, Page::Own, false, &Cdb::new(&[0x12, 1, 0xb0])), Look::Not);
        assert_eq!(wanted(&Cdb::new(&[0x12, 1, 0, 1, 2, 0])), 0x102);
        assert_eq!(whole(&Cdb::new(&[0x12, 1, 0, 0, 2, 0])).as_bytes(), [0x12, 1, 0, 1, 0, 0]);
    }
}
