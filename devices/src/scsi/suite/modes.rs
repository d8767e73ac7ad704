//! Mode pages: SPC-5, 6.11 to 6.14 and 7.5; SBC-4, 6.5.

use super::{BLOCK, Initiator, Test, bad_field, check, exact, good, settle};

pub(super) const TESTS: &[(&str, Test)] = &[
    ("mode sense of one page", one_page),
    ("mode sense of all pages", all_pages),
    ("mode sense headers and block descriptors", headers),
    ("mode sense bad fields", bad_fields),
    ("changeable and default values", page_control),
    ("informational exceptions are on", informational_exceptions),
    ("write cache off and on", write_cache),
    ("descriptor sense", descriptor_sense),
    ("software write protect", software_write_protect),
    ("mode select refusals", select_refusals),
    ("mode select lists that are too short", short_lists),
];

/// MODE SENSE (6) of a page without block descriptors: the page.
fn page(i: &mut dyn Initiator, control: u8, code: u8) -> Vec<u8> {
    let data = good(i, &[0x1a, 0x08, control << 6 | code, 0, 255, 0], &[], 255);
    let len = 1 + usize::from(data[0]);
    data[4..len].to_vec()
}

fn one_page(i: &mut dyn Initiator) {
    settle(i);
    for (code, len) in [(0x01u8, 12), (0x02, 16), (0x08, 20), (0x0a, 12), (0x1a, 40), (0x1c, 12)] {
        let page = page(i, 0, code);
        assert_eq!(page.len(), len, "{code:02x}");
        assert_eq!((page[0], usize::from(page[1])), (code, len - 2));
    }
    assert_eq!(page(i, 0, 0x08)[2] & 0x05, 0x04, "WCE set, RCD clear");
    let control = page(i, 0, 0x0a);
    assert_eq!(control[2] & 0xe4, 0, "one task set, fixed format sense");
    assert_eq!(control[3], 0x10, "unrestricted reordering, QERR 0");
}

/// smartd passes over a disk whose exceptions are disabled. They are told on request only: REQUEST SENSE and log page 2Fh.
fn informational_exceptions(i: &mut dyn Initiator) {
    settle(i);
    let page = page(i, 0, 0x1c);
    assert_eq!((page[2] & 0x08, page[3]), (0, 0x06), "DEXCPT, MRIE");
    let log = good(i, &[0x4d, 0, 0x6f, 0, 0, 0, 0, 0, 12, 0], &[], 12);
    assert_eq!((log[0], log[8], log[9]), (0x2f, 0, 0), "none");
}

fn all_pages(i: &mut dyn Initiator) {
    settle(i);
    let codes = |data: &[u8]| {
        let (mut at, mut codes) = (0, Vec::new());
        while at < data.len() {
            let long = data[at] & 0x40 != 0;
            codes.push((data[at] & 0x3f, if long { data[at + 1] } else { 0 }));
            at += if long {
                4 + usize::from(u16::from_be_bytes([data[at + 2], data[at + 3]]))
            } else {
                2 + usize::from(data[at + 1])
            };
        }
        assert_eq!(at, data.len());
        codes
    };
    let pages = codes(&page(i, 0, 0x3f));
    assert_eq!(pages, [(1, 0), (2, 0), (8, 0), (0x0a, 0), (0x1a, 0), (0x1c, 0)]);
    let data = good(i, &[0x1a, 0x08, 0x3f, 0xff, 255, 0], &[], 255);
    let pages = codes(&data[4..1 + usize::from(data[0])]);
    assert_eq!(pages, [(1, 0), (2, 0), (8, 0), (0x0a, 0), (0x0a, 1), (0x1a, 0), (0x1c, 0)]);
    let data = good(i, &[0x1a, 0x08, 0x0a, 0xff, 255, 0], &[], 255);
    assert_eq!(codes(&data[4..1 + usize::from(data[0])]), [(0x0a, 0), (0x0a, 1)]);
    let data = good(i, &[0x1a, 0x08, 0x0a, 0x01, 255, 0], &[], 255);
    assert_eq!(data[4..8], [0x4a, 0x01, 0x00, 0x1c]);
    assert_eq!(data[0], 3 + 32);
}

fn headers(i: &mut dyn Initiator) {
    settle(i);
    let data = exact(i, &[0x1a, 0, 0x08, 0, 32, 0], &[], 32);
    // DPOFUA; one short block descriptor: 16384 blocks of 512 bytes.
    assert_eq!(data[..12], [31, 0, 0x10, 8, 0, 0, 0x40, 0, 0, 0, 2, 0]);
    let data = exact(i, &[0x5a, 0, 0x08, 0, 0, 0, 0, 0, 36, 0], &[], 36);
    assert_eq!(data[..16], [0, 34, 0, 0x10, 0, 0, 0, 8, 0, 0, 0x40, 0, 0, 0, 2, 0]);
    // LLBAA: the long one.
    let data = exact(i, &[0x5a, 0x10, 0x08, 0, 0, 0, 0, 0, 44, 0], &[], 44);
    assert_eq!(data[..8], [0, 42, 0, 0x10, 1, 0, 0, 16]);
    assert_eq!(data[8..24], [0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
    let data = exact(i, &[0x5a, 0x08, 0x08, 0, 0, 0, 0, 0, 28, 0], &[], 28);
    assert_eq!(data[..9], [0, 26, 0, 0x10, 0, 0, 0, 0, 0x08]);
    // Truncation leaves the length as it is.
    let data = exact(i, &[0x1a, 0, 0x08, 0, 4, 0], &[], 4);
    assert_eq!(data, [31, 0, 0x10, 8]);
}

fn bad_fields(i: &mut dyn Initiator) {
    settle(i);
    bad_field(i, &[0x1a, 0, 0x07, 0, 64, 0], &[], 64, 2, Some(5));
    bad_field(i, &[0x1a, 0, 0x08, 0x05, 64, 0], &[], 64, 3, Some(7));
    bad_field(i, &[0x1a, 0, 0x3f, 0x01, 64, 0], &[], 64, 3, Some(7));
    // Saved values do not exist.
    check(i, &[0x1a, 0, 0xc8, 0, 64, 0], &[], 64, (0x5, 0x39, 0x00));
}

fn page_control(i: &mut dyn Initiator) {
    settle(i);
    let caching = page(i, 1, 0x08);
    assert_eq!((caching[..3].to_vec(), caching.len()), (vec![0x08, 0x12, 0x04], 20));
    assert!(caching[3..].iter().all(|byte| *byte == 0));
    let control = page(i, 1, 0x0a);
    assert_eq!(control[..8], [0x0a, 0x0a, 0x04, 0, 0x08, 0x40, 0, 0]);
    assert_eq!(page(i, 2, 0x08)[2], 0x04);
    // Change the current value: the default stays.
    select(i, 0x08, 2, 0x04, 0);
    assert_eq!((page(i, 0, 0x08)[2], page(i, 2, 0x08)[2]), (0, 0x04));
}

/// Reads a page, changes bits of one byte and writes it back by MODE SELECT (6).
fn select(i: &mut dyn Initiator, code: u8, byte: usize, clear: u8, set: u8) {
    let mut list = vec![0; 4];
    list.extend(page(i, 0, code));
    list[4 + byte] = (list[4 + byte] & !clear) | set;
    exact(i, &[0x15, 0x10, 0, 0, list.len() as u8, 0], &list, 0);
}

fn write_cache(i: &mut dyn Initiator) {
    settle(i);
    select(i, 0x08, 2, 0x04, 0);
    assert_eq!(page(i, 0, 0x08)[2] & 0x04, 0);
    // An initiator's own change is no unit attention for it.
    exact(i, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[7; BLOCK], 0);
    // By MODE SELECT (10) with the block descriptor as it is.
    let mut list = vec![0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0x40, 0, 0, 0, 2, 0];
    list.extend(page(i, 0, 0x08));
    list[16 + 2] |= 0x04;
    exact(i, &[0x55, 0x10, 0, 0, 0, 0, 0, 0, list.len() as u8, 0], &list, 0);
    assert_eq!(page(i, 0, 0x08)[2] & 0x04, 0x04);
}

fn descriptor_sense(i: &mut dyn Initiator) {
    settle(i);
    select(i, 0x0a, 2, 0, 0x04);
    let outcome = i.command(&[0x88, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], &[], BLOCK);
    assert_eq!(outcome.status, 2);
    let wanted = [0x72, 0x5, 0x21, 0x00, 0, 0, 0, 12, 0, 0x0a, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    assert_eq!(outcome.sense, wanted);
    select(i, 0x0a, 2, 0x04, 0);
    check(i, &[0xd0], &[], 0, (0x5, 0x20, 0x00));
}

fn software_write_protect(i: &mut dyn Initiator) {
    settle(i);
    select(i, 0x0a, 4, 0, 0x08);
    check(i, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[1; BLOCK], 0, (0x7, 0x27, 0x02));
    let data = good(i, &[0x1a, 0x08, 0x0a, 0, 255, 0], &[], 255);
    assert_eq!(data[2], 0x90, "WP and DPOFUA");
    good(i, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], BLOCK);
    select(i, 0x0a, 4, 0x08, 0);
    exact(i, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[1; BLOCK], 0);
}

fn select_refusals(i: &mut dyn Initiator) {
    settle(i);
    let caching = page(i, 0, 0x08);
    let mut list = vec![0; 4];
    list.extend(&caching);
    let cdb = [0x15, 0x10, 0, 0, list.len() as u8, 0];
    let refused = |i: &mut dyn Initiator, list: &[u8], byte: u8, bit: Option<u8>| {
        let cdb = [0x15, 0x10, 0, 0, list.len() as u8, 0];
        let sense = check(i, &cdb, list, 0, (0x5, 0x26, 0x00));
        let first = 0x80 | bit.map_or(0, |bit| 0x08 | bit);
        assert_eq!(sense[15..18], [first, 0, byte], "{list:02x?}");
    };
    // RCD cannot be changed; a page that does not exist; a wrong length; another block length.
    let mut bad = list.clone();
    bad[4 + 2] = 0x01;
    refused(i, &bad, 6, Some(0));
    let mut bad = list.clone();
    bad[4] = 0x07;
    refused(i, &bad, 4, Some(5));
    let mut bad = list.clone();
    bad[4 + 1] = 0x0a;
    refused(i, &bad, 5, None);
    let mut bad = vec![0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 16, 0];
    bad.extend(&caching);
    refused(i, &bad, 9, None);
    // Nothing of a list with one bad page is obeyed.
    let mut bad = list.clone();
    bad[4 + 2] = 0;
    bad.extend([0x1c, 0x0a, 0x08, 0x06, 0, 0, 0, 0, 0, 0, 0, 0]);
    refused(i, &bad, 4 + 20 + 2, Some(3));
    assert_eq!(page(i, 0, 0x08), caching);
    // Saving is not supported: SP must be zero.
    bad_field(i, &[0x15, 0x11, 0, 0, cdb[4], 0], &list, 0, 1, Some(0));
}

fn short_lists(i: &mut dyn Initiator) {
    settle(i);
    exact(i, &[0x15, 0x10, 0, 0, 0, 0], &[], 0);
    let mut list = vec![0; 4];
    list.extend(page(i, 0, 0x08));
    for len in [1usize, 3, 5, 12, 23] {
        check(i, &[0x15, 0x10, 0, 0, len as u8, 0], &list[..len], 0, (0x5, 0x1a, 0x00));
    }
    // The initiator sent less than the CDB says.
    check(i, &[0x15, 0x10, 0, 0, 24, 0], &list[..20], 0, (0x5, 0x1a, 0x00));
    // A header alone changes nothing and is no error.
    exact(i, &[0x15, 0x10, 0, 0, 4, 0], &[0; 4], 0);
}
