//! UNMAP, WRITE SAME, GET LBA STATUS: SBC-4.

use super::{BLOCK, BLOCKS, Initiator, Test, bad_field, blocks_of, check, exact, settle};

pub(super) const TESTS: &[(&str, Test)] = &[
    ("unmap", unmap),
    ("unmap of nothing", unmap_nothing),
    ("unmap refusals", unmap_refusals),
    ("write same", write_same),
    ("write same of zeros and without data", write_same_zeros),
    ("write same refusals", write_same_refusals),
    ("get lba status", get_lba_status),
    ("format unit", format_unit),
    ("no sanitize", no_sanitize),
];

fn write(i: &mut dyn Initiator, lba: u8, data: &[u8]) {
    exact(i, &[0x2a, 0, 0, 0, 0, lba, 0, 0, (data.len() / BLOCK) as u8, 0], data, 0);
}

fn read(i: &mut dyn Initiator, lba: u8, blocks: u8) -> Vec<u8> {
    exact(i, &[0x28, 0, 0, 0, 0, lba, 0, 0, blocks, 0], &[], usize::from(blocks) * BLOCK)
}

fn list(descriptors: &[(u64, u32)]) -> Vec<u8> {
    let len = descriptors.len() as u16 * 16;
    let mut list = Vec::new();
    list.extend((len + 6).to_be_bytes());
    list.extend(len.to_be_bytes());
    list.extend([0; 4]);
    for (lba, blocks) in descriptors {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

fn unmap_cdb(list: &[u8]) -> [u8; 10] {
    let [high, low] = (list.len() as u16).to_be_bytes();
    [0x42, 0, 0, 0, 0, 0, 0, high, low, 0]
}

fn unmap(i: &mut dyn Initiator) {
    settle(i);
    let data = blocks_of(9, 40);
    write(i, 0, &data);
    let list = list(&[(8, 8), (24, 4), (30, 0)]);
    exact(i, &unmap_cdb(&list), &list, 0);
    let got = read(i, 0, 40);
    // LBPRZ: what was given back reads as zeros, the rest is as before.
    for lba in 0..40 {
        let block = lba * BLOCK..(lba + 1) * BLOCK;
        let gone = (8..16).contains(&lba) || (24..28).contains(&lba);
        assert!(
            if gone { got[block].iter().all(|b| *b == 0) } else { got[block.clone()] == data[block] },
            "{lba}"
        );
    }
}

fn unmap_nothing(i: &mut dyn Initiator) {
    settle(i);
    exact(i, &[0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0);
    let empty = list(&[]);
    exact(i, &unmap_cdb(&empty), &empty, 0);
    // A last part of a descriptor is ignored.
    let mut part = list(&[(0, 8)]);
    part[3] = 12;
    part.truncate(20);
    write(i, 0, &blocks_of(1, 8));
    exact(i, &unmap_cdb(&part), &part, 0);
    assert_eq!(read(i, 0, 8), blocks_of(1, 8));
}

fn unmap_refusals(i: &mut dyn Initiator) {
    settle(i);
    write(i, 0, &blocks_of(2, 8));
    let beyond = list(&[(0, 8), (BLOCKS - 1, 2)]);
    check(i, &unmap_cdb(&beyond), &beyond, 0, (0x5, 0x21, 0x00));
    assert_eq!(read(i, 0, 8), blocks_of(2, 8), "nothing of a refused list is done");
    let wraps = list(&[(u64::MAX, 2)]);
    check(i, &unmap_cdb(&wraps), &wraps, 0, (0x5, 0x21, 0x00));
    check(i, &[0x42, 0, 0, 0, 0, 0, 0, 0, 7, 0], &[0; 7], 0, (0x5, 0x1a, 0x00));
    let many = list(&[(0, 0); 257]);
    check(i, &unmap_cdb(&many), &many, 0, (0x5, 0x26, 0x00));
    // ANCHOR is not supported.
    bad_field(i, &[0x42, 1, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0, 1, Some(0));
}

fn write_same(i: &mut dyn Initiator) {
    settle(i);
    let block = blocks_of(0x55, 1);
    exact(i, &[0x41, 0, 0, 0, 0, 10, 0, 0, 200, 0], &block, 0);
    let got = read(i, 9, 202);
    assert!(got[..BLOCK].iter().all(|byte| *byte == 0));
    assert!(got[BLOCK..201 * BLOCK].chunks(BLOCK).all(|chunk| chunk == block));
    assert!(got[201 * BLOCK..].iter().all(|byte| *byte == 0));
    let block = blocks_of(0x66, 1);
    exact(i, &[0x93, 0x08, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 2, 0, 0], &block, 0);
    assert_eq!(read(i, 10, 1), block, "UNMAP does not change what is read");
}

fn write_same_zeros(i: &mut dyn Initiator) {
    settle(i);
    for cdb in [
        vec![0x41, 0x00, 0, 0, 0, 4, 0, 0, 3, 0],
        vec![0x41, 0x08, 0, 0, 0, 4, 0, 0, 3, 0],
        vec![0x93, 0x08, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 3, 0, 0],
    ] {
        write(i, 0, &blocks_of(8, 8));
        exact(i, &cdb, &[0; BLOCK], 0);
        assert_eq!(read(i, 4, 3), vec![0; 3 * BLOCK], "{cdb:02x?}");
        assert_eq!(read(i, 0, 4), blocks_of(8, 4));
    }
    // NDOB: zeros without a data-out buffer.
    write(i, 0, &blocks_of(8, 8));
    exact(i, &[0x93, 0x01, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 3, 0, 0], &[], 0);
    assert_eq!(read(i, 4, 3), vec![0; 3 * BLOCK]);
}

fn write_same_refusals(i: &mut dyn Initiator) {
    settle(i);
    let block = [1; BLOCK];
    // WSNZ; ANCHOR; more than MAXIMUM WRITE SAME LENGTH; beyond the end.
    bad_field(i, &[0x41, 0, 0, 0, 0, 0, 0, 0, 0, 0], &block, 0, 7, None);
    bad_field(i, &[0x93, 0x18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], &block, 0, 1, Some(4));
    bad_field(i, &[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 1, 0, 0], &block, 0, 10, None);
    let sense = check(i, &[0x41, 0, 0, 0, 0x3f, 0xff, 0, 0, 2, 0], &block, 0, (0x5, 0x21, 0x00));
    assert_eq!(sense[3..7], [0, 0, 0x40, 0]);
}

fn get_lba_status(i: &mut dyn Initiator) {
    settle(i);
    write(i, 0, &blocks_of(9, 64));
    let list = list(&[(8, 16)]);
    exact(i, &unmap_cdb(&list), &list, 0);
    // From LBA 4: four blocks mapped, 16 deallocated, 40 mapped, and the rest was never written.
    let cdb = [0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 72, 0, 0];
    let data = exact(i, &cdb, &[], 72);
    assert_eq!(data[..8], [0, 0, 0, 68, 0, 0, 0, 0]);
    let runs: Vec<_> = data[8..].chunks(16).map(|d| (d[7], d[8..12].to_vec(), d[12])).collect();
    let run = |lba: u8, blocks: u32, status: u8| (lba, blocks.to_be_bytes().to_vec(), status);
    assert_eq!(runs, [run(4, 4, 0), run(8, 16, 1), run(24, 40, 0), run(64, 0x3fc0, 1)]);
    // One descriptor fits: it says no more than is so.
    let cdb = [0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 24, 0, 0];
    let data = exact(i, &cdb, &[], 24);
    assert_eq!((&data[..4], &data[16..21]), (&20u32.to_be_bytes()[..], &[0, 0, 0, 16, 1][..]));
    check(i, &[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 24, 0, 0], &[], 24, (0x5, 0x21, 0x00));
}

fn format_unit(i: &mut dyn Initiator) {
    settle(i);
    for (cdb, list) in [
        ([0x04, 0, 0, 0, 0, 0], &[][..]),
        ([0x04, 0x10, 0, 0, 0, 0], &[0, 0, 0, 0]),
        ([0x04, 0x30, 0, 0, 0, 0], &[0, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        write(i, 0, &blocks_of(8, 8));
        exact(i, &cdb, list, 0);
        assert_eq!(read(i, 0, 8), vec![0; 8 * BLOCK], "{cdb:02x?}");
    }
    // FOV with DPRY, DCRT and STPF.
    exact(i, &[0x04, 0x10, 0, 0, 0, 0], &[0, 0xf0, 0, 0], 0);
    // Protection information, an initialization pattern, defects, DCRT without FOV; no list at all.
    for (list, byte, bit) in [
        ([1, 0, 0, 0], 0, 0x8a),
        ([0, 8, 0, 0], 1, 0x8b),
        ([0, 0, 0, 8], 2, 0x80),
        ([0, 0x20, 0, 0], 1, 0x8d),
    ] {
        let sense = check(i, &[0x04, 0x10, 0, 0, 0, 0], &list, 0, (0x5, 0x26, 0x00));
        assert_eq!(sense[15..18], [bit, 0, byte]);
    }
    // A PROTECTION INTERVAL EXPONENT.
    let sense = check(i, &[0x04, 0x30, 0, 0, 0, 0], &[0, 0, 0, 3, 0, 0, 0, 0], 0, (0x5, 0x26, 0x00));
    assert_eq!(sense[15..18], [0x89, 0, 3]);
    check(i, &[0x04, 0x10, 0, 0, 0, 0], &[], 0, (0x5, 0x1a, 0x00));
    bad_field(i, &[0x04, 0x40, 0, 0, 0, 0], &[], 0, 1, Some(6));
}

/// An image cannot promise what SANITIZE does: it is not there, whatever kind is asked for, and says so everywhere.
fn no_sanitize(i: &mut dyn Initiator) {
    settle(i);
    write(i, 0, &blocks_of(8, 8));
    for action in [0x01, 0x02, 0x03, 0x1f] {
        check(i, &[0x48, action, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0, (0x5, 0x20, 0x00));
        let data = i.command(&[0xa3, 0x0c, 3, 0x48, 0, action, 0, 0, 0, 64, 0, 0], &[], 64).data_in;
        assert_eq!(data[1] & 7, 1, "not supported");
    }
    assert_eq!(read(i, 0, 8), blocks_of(8, 8));
    // WABEREQ and WACEREQ of the block device characteristics, about blocks that were erased.
    let data = i.command(&[0x12, 1, 0xb1, 0, 64, 0], &[], 64).data_in;
    assert_eq!(data[7] & 0xf0, 0);
}
