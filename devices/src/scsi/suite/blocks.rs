//! Reading, writing, verifying: SBC-4.

use super::{BLOCK, BLOCKS, FILL, Initiator, Test, bad_field, blocks_of, check, exact, good, settle};
use crate::scsi::Residual;

pub(super) const TESTS: &[(&str, Test)] = &[
    ("every length of read and write", every_length),
    ("six byte transfers of 256 blocks", six_byte_256),
    ("zero length transfers", zero_length),
    ("out of range", out_of_range),
    ("over the maximum transfer length", too_long),
    ("protection fields", protection_fields),
    ("reserved bits", reserved_bits),
    ("buffers shorter and longer than the transfer", other_buffers),
    ("synchronize cache", synchronize_cache),
    ("verify without data", verify_medium),
    ("verify with data", verify_data),
    ("verify one block", verify_one_block),
    ("write and verify", write_and_verify),
    ("compare and write", compare_and_write),
    ("orwrite", or_write),
    ("pre-fetch", pre_fetch),
    ("read defect data", read_defect_data),
    ("start and stop", start_stop),
    ("prevent and allow", prevent_allow),
    ("reserve and release", reserve_release),
];

/// READ or WRITE CDBs of 10, 12, 16 and 32 bytes; `read` is the operation code of the 10-byte one.
fn all_cdbs(write: bool, lba: u32, blocks: u16) -> [Vec<u8>; 4] {
    let [a, b, c, d] = lba.to_be_bytes();
    let [h, l] = blocks.to_be_bytes();
    let w = if write { 2 } else { 0 };
    let mut long = vec![0; 32];
    (long[0], long[7], long[9]) = (0x7f, 0x18, 9 + w);
    long[16..20].copy_from_slice(&lba.to_be_bytes());
    long[30..32].copy_from_slice(&blocks.to_be_bytes());
    [
        vec![0x28 + w, 0, a, b, c, d, 0, h, l, 0],
        vec![0xa8 + w, 0, a, b, c, d, 0, 0, h, l, 0, 0],
        vec![0x88 + w, 0, 0, 0, 0, 0, a, b, c, d, 0, 0, h, l, 0, 0],
        long,
    ]
}

/// Those that the transport carries.
fn cdbs(i: &dyn Initiator, write: bool, lba: u32, blocks: u16) -> Vec<Vec<u8>> {
    all_cdbs(write, lba, blocks).into_iter().filter(|cdb| cdb.len() <= i.longest_cdb()).collect()
}

fn read(i: &mut dyn Initiator, lba: u32, blocks: u16) -> Vec<u8> {
    exact(i, &all_cdbs(false, lba, blocks)[0], &[], usize::from(blocks) * BLOCK)
}

fn write(i: &mut dyn Initiator, lba: u32, data: &[u8]) {
    exact(i, &all_cdbs(true, lba, (data.len() / BLOCK) as u16)[0], data, 0);
}

fn every_length(i: &mut dyn Initiator) {
    settle(i);
    for (n, (write, read)) in cdbs(i, true, 0x123, 3).iter().zip(&cdbs(i, false, 0x123, 3)).enumerate() {
        let data = blocks_of(n as u8, 3);
        exact(i, write, &data, 0);
        assert_eq!(exact(i, read, &[], 3 * BLOCK), data, "CDB {read:02x?}");
    }
    let data = blocks_of(99, 3);
    exact(i, &[0x0a, 0, 1, 0x23, 3, 0], &data, 0);
    assert_eq!(exact(i, &[0x08, 0, 1, 0x23, 3, 0], &[], 3 * BLOCK), data);
    // DPO and FUA are taken everywhere (DPOFUA).
    exact(i, &[0x2a, 0x18, 0, 0, 1, 0x23, 0, 0, 3, 0], &data, 0);
    exact(i, &[0x28, 0x18, 0, 0, 1, 0x23, 0, 0, 3, 0], &[], 3 * BLOCK);
    // The neighbours are untouched.
    assert_eq!(read_one(i, 0x122), vec![0; BLOCK]);
    assert_eq!(read_one(i, 0x126), vec![0; BLOCK]);
}

fn read_one(i: &mut dyn Initiator, lba: u32) -> Vec<u8> {
    read(i, lba, 1)
}

fn six_byte_256(i: &mut dyn Initiator) {
    settle(i);
    let data = blocks_of(5, 256);
    exact(i, &[0x0a, 0, 0, 7, 0, 0], &data, 0);
    assert_eq!(exact(i, &[0x08, 0, 0, 7, 0, 0], &[], 256 * BLOCK), data);
}

fn zero_length(i: &mut dyn Initiator) {
    settle(i);
    for cdb in cdbs(i, false, 0, 0).iter().chain(&cdbs(i, true, BLOCKS as u32 - 1, 0)) {
        exact(i, cdb, &[], 0);
    }
    // The LBA is checked all the same.
    for cdb in cdbs(i, false, BLOCKS as u32, 0).iter().chain(&cdbs(i, true, BLOCKS as u32, 0)) {
        check(i, cdb, &[], 0, (0x5, 0x21, 0x00));
    }
}

fn out_of_range(i: &mut dyn Initiator) {
    settle(i);
    let last = BLOCKS as u32 - 1;
    for (lba, blocks, first) in [(last, 2u16, BLOCKS as u32), (BLOCKS as u32 + 5, 1, BLOCKS as u32 + 5)] {
        for cdb in cdbs(i, false, lba, blocks) {
            let sense = check(i, &cdb, &[], usize::from(blocks) * BLOCK, (0x5, 0x21, 0x00));
            assert_eq!((sense[0], &sense[3..7]), (0xf0, &first.to_be_bytes()[..]));
        }
        for cdb in cdbs(i, true, lba, blocks) {
            check(i, &cdb, &blocks_of(1, usize::from(blocks)), 0, (0x5, 0x21, 0x00));
        }
    }
    assert_eq!(read_one(i, last), vec![0; BLOCK], "nothing of a refused write is done");
    // The end of the address space must not wrap; INFORMATION beyond 32 bits is not valid in fixed format.
    let cdb = [0x88, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 2, 0, 0];
    let sense = check(i, &cdb, &[], 2 * BLOCK, (0x5, 0x21, 0x00));
    assert_eq!(sense[0], 0x70);
}

fn too_long(i: &mut dyn Initiator) {
    settle(i);
    // 65537 blocks are more than MAXIMUM TRANSFER LENGTH.
    bad_field(i, &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0], &[], BLOCK, 10, None);
    bad_field(i, &[0xaa, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0], &[0; BLOCK], 0, 6, None);
}

fn protection_fields(i: &mut dyn Initiator) {
    settle(i);
    // Without protection information RDPROTECT and WRPROTECT must be zero (SBC-4, 5.13 and 5.42).
    bad_field(i, &[0x28, 0x20, 0, 0, 0, 0, 0, 0, 1, 0], &[], BLOCK, 1, Some(5));
    bad_field(i, &[0x2a, 0x80, 0, 0, 0, 0, 0, 0, 1, 0], &[0; BLOCK], 0, 1, Some(7));
    bad_field(i, &[0x88, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], &[], BLOCK, 1, Some(6));
    bad_field(i, &[0x8f, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], &[], 0, 1, Some(5));
    bad_field(i, &[0x93, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], &[0; BLOCK], 0, 1, Some(5));
}

fn reserved_bits(i: &mut dyn Initiator) {
    settle(i);
    bad_field(i, &[0x00, 0, 0x10, 0, 0, 0], &[], 0, 2, Some(4));
    bad_field(i, &[0x28, 0, 0, 0, 0, 0, 0x40, 0, 1, 0], &[], BLOCK, 6, Some(6));
    bad_field(i, &[0x25, 0, 0, 0, 0, 0, 0x01, 0, 0, 0], &[], 8, 6, Some(0));
    if i.longest_cdb() >= 32 {
        let mut cdb = all_cdbs(false, 0, 1)[3].clone();
        cdb[7] = 0x10;
        bad_field(i, &cdb, &[], BLOCK, 7, None);
    }
}

fn other_buffers(i: &mut dyn Initiator) {
    settle(i);
    let data = blocks_of(3, 4);
    write(i, 100, &data);
    // Longer: the rest is not touched.
    let outcome = i.command(&all_cdbs(false, 100, 2)[0], &[], 4 * BLOCK);
    assert_eq!(outcome.data_in[..2 * BLOCK], data[..2 * BLOCK]);
    assert!(outcome.data_in[2 * BLOCK..].iter().all(|byte| *byte == FILL));
    assert!(matches!(outcome.residual, None | Some(Residual::Under(1024))), "{:?}", outcome.residual);
    // Shorter: what fits is moved, and the residual says that there was more.
    let outcome = i.command(&all_cdbs(false, 100, 4)[0], &[], BLOCK + 100);
    assert!(matches!(outcome.residual, None | Some(Residual::Over(1436))), "{:?}", outcome.residual);
    if outcome.status == 0 {
        assert_eq!(outcome.data_in, data[..BLOCK + 100]);
    }
    // A write must not touch blocks that were not sent.
    let new = blocks_of(0x80, 2);
    let outcome = i.command(&all_cdbs(true, 100, 4)[0], &new[..BLOCK + 1], 0);
    assert!(matches!(outcome.residual, None | Some(Residual::Over(1535))), "{:?}", outcome.residual);
    assert_eq!(read(i, 101, 3), data[BLOCK..]);
}

fn synchronize_cache(i: &mut dyn Initiator) {
    settle(i);
    exact(i, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0);
    exact(i, &[0x35, 0x02, 0, 0, 0, 5, 0, 0, 9, 0], &[], 0);
    exact(i, &[0x91, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0);
    let sense = check(i, &[0x35, 0, 0, 0, 0x3f, 0xff, 0, 0, 2, 0], &[], 0, (0x5, 0x21, 0x00));
    assert_eq!(sense[3..7], [0, 0, 0x40, 0]);
}

fn verify_medium(i: &mut dyn Initiator) {
    settle(i);
    exact(i, &[0x2f, 0, 0, 0, 0, 0, 0, 0x40, 0, 0], &[], 0);
    exact(i, &[0xaf, 0x10, 0, 0, 0, 3, 0, 0, 0, 7, 0, 0], &[], 0);
    exact(i, &[0x8f, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 7, 0, 0], &[], 0);
    check(i, &[0x8f, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 1, 0, 0], &[], 0, (0x5, 0x21, 0x00));
}

fn verify_data(i: &mut dyn Initiator) {
    settle(i);
    let mut data = blocks_of(11, 200);
    write(i, 50, &data);
    let cdb = [0x2f, 0x02, 0, 0, 0, 50, 0, 0, 200, 0];
    exact(i, &cdb, &data, 0);
    // INFORMATION is the offset of the first difference.
    let at = 150 * BLOCK + 17;
    data[at] ^= 1;
    let sense = check(i, &cdb, &data, 0, (0xe, 0x1d, 0x00));
    assert_eq!((sense[0], &sense[3..7]), (0xf0, &(at as u32).to_be_bytes()[..]));
    // BYTCHK 10b is reserved.
    bad_field(i, &[0x2f, 0x04, 0, 0, 0, 50, 0, 0, 1, 0], &data[..BLOCK], 0, 1, Some(2));
}

fn verify_one_block(i: &mut dyn Initiator) {
    settle(i);
    let block = blocks_of(0, 1);
    let data: Vec<_> = std::iter::repeat_n(&block[..], 10).flatten().copied().collect();
    write(i, 30, &data);
    let cdb = [0x8f, 0x06, 0, 0, 0, 0, 0, 0, 0, 30, 0, 0, 0, 10, 0, 0];
    exact(i, &cdb, &block, 0);
    let mut other = block.clone();
    other[511] ^= 0x80;
    let sense = check(i, &cdb, &other, 0, (0xe, 0x1d, 0x00));
    assert_eq!(sense[3..7], [0, 0, 1, 0xff]);
}

fn write_and_verify(i: &mut dyn Initiator) {
    settle(i);
    for (n, cdb) in [
        vec![0x2e, 0, 0, 0, 0, 40, 0, 0, 2, 0],
        vec![0x2e, 0x02, 0, 0, 0, 40, 0, 0, 2, 0],
        vec![0xae, 0x02, 0, 0, 0, 40, 0, 0, 0, 2, 0, 0],
        vec![0x8e, 0x12, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0, 2, 0, 0],
    ]
    .into_iter()
    .enumerate()
    {
        let data = blocks_of(n as u8 + 60, 2);
        exact(i, &cdb, &data, 0);
        assert_eq!(read(i, 40, 2), data);
    }
    bad_field(i, &[0x2e, 0x06, 0, 0, 0, 40, 0, 0, 1, 0], &[0; BLOCK], 0, 1, Some(2));
}

fn compare_and_write(i: &mut dyn Initiator) {
    settle(i);
    let (old, new) = (blocks_of(1, 3), blocks_of(2, 3));
    write(i, 20, &old);
    let cdb = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0];
    let both = [&old[..], &new].concat();
    exact(i, &cdb, &both, 0);
    assert_eq!(read(i, 20, 3), new);
    // The second time the medium differs; INFORMATION is where.
    let sense = check(i, &cdb, &both, 0, (0xe, 0x1d, 0x00));
    assert_eq!((sense[0], &sense[3..7]), (0xf0, &[0, 0, 0, 0][..]));
    let mut almost = [&new[..], &old].concat();
    almost[2 * BLOCK + 3] ^= 1;
    let sense = check(i, &cdb, &almost, 0, (0xe, 0x1d, 0x00));
    assert_eq!(sense[3..7], [0, 0, 4, 3]);
    assert_eq!(read(i, 20, 3), new, "a miscompare writes nothing");
    let outcome = i.command(&cdb, &both[..5 * BLOCK], 0);
    assert!(matches!(outcome.residual, None | Some(Residual::Over(512))));
    assert_eq!(read(i, 20, 3), new, "nothing is written unless all was sent");
    exact(i, &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0], &[], 0);
    bad_field(i, &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 129, 0, 0], &both, 0, 13, None);
    check(i, &[0x89, 0, 0, 0, 0, 0, 0, 0, 0x3f, 0xff, 0, 0, 0, 2, 0, 0], &both, 0, (0x5, 0x21, 0x00));
}

fn or_write(i: &mut dyn Initiator) {
    settle(i);
    let (old, more) = (blocks_of(0x21, 150), blocks_of(0x5c, 150));
    write(i, 7, &old);
    exact(i, &[0x8b, 0x08, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 150, 0, 0], &more, 0);
    let wanted: Vec<_> = old.iter().zip(&more).map(|(a, b)| a | b).collect();
    assert_eq!(read(i, 7, 150), wanted);
    assert_eq!(read(i, 157, 1), vec![0; BLOCK]);
}

fn pre_fetch(i: &mut dyn Initiator) {
    settle(i);
    // GOOD or CONDITION MET: whether the blocks fit into a cache.
    for cdb in [&[0x34, 2, 0, 0, 0, 5, 0, 0, 3, 0][..], &[0x90, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0]]
    {
        assert!(matches!(i.command(cdb, &[], 0).status, 0x00 | 0x04));
    }
    check(i, &[0x34, 0, 0, 0, 0x3f, 0xff, 0, 0, 2, 0], &[], 0, (0x5, 0x21, 0x00));
}

fn read_defect_data(i: &mut dyn Initiator) {
    settle(i);
    // Both lists in physical sector format, which have nothing in them.
    let data = exact(i, &[0x37, 0, 0x1d, 0, 0, 0, 0, 0, 4, 0], &[], 4);
    assert_eq!(data, [0, 0x1d, 0, 0]);
    let data = exact(i, &[0xb7, 0x1d, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0], &[], 8);
    assert_eq!(data, [0, 0x1d, 0, 0, 0, 0, 0, 0]);
}

fn start_stop(i: &mut dyn Initiator) {
    settle(i);
    exact(i, &[0x1b, 0, 0, 0, 0, 0], &[], 0);
    check(i, &[0x00, 0, 0, 0, 0, 0], &[], 0, (0x2, 0x04, 0x02));
    check(i, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], BLOCK, (0x2, 0x04, 0x02));
    good(i, &[0x12, 0, 0, 0, 36, 0], &[], 36);
    let data = exact(i, &[0x03, 0, 0, 0, 18, 0], &[], 18);
    assert_eq!((data[2], data[12], data[13]), (0x2, 0x04, 0x02));
    exact(i, &[0x1b, 1, 0, 0, 1, 0], &[], 0);
    good(i, &[0x00, 0, 0, 0, 0, 0], &[], 0);
    // Neither power conditions nor a medium to eject.
    bad_field(i, &[0x1b, 0, 0, 0, 0x20, 0], &[], 0, 4, Some(7));
    // POWER CONDITION ACTIVE starts, LU_CONTROL does nothing; START and LOEJ do not count then.
    exact(i, &[0x1b, 0, 0, 0, 0, 0], &[], 0);
    exact(i, &[0x1b, 0, 0, 0, 0x72, 0], &[], 0);
    check(i, &[0x00; 6], &[], 0, (0x2, 0x04, 0x02));
    exact(i, &[0x1b, 0, 0, 0, 0x12, 0], &[], 0);
    good(i, &[0x00; 6], &[], 0);
    bad_field(i, &[0x1b, 0, 0, 0, 0x02, 0], &[], 0, 4, Some(1));
}

fn prevent_allow(i: &mut dyn Initiator) {
    settle(i);
    exact(i, &[0x1e, 0, 0, 0, 1, 0], &[], 0);
    exact(i, &[0x1e, 0, 0, 0, 0, 0], &[], 0);
    bad_field(i, &[0x1e, 0, 0, 0, 2, 0], &[], 0, 4, Some(1));
}

fn reserve_release(i: &mut dyn Initiator) {
    settle(i);
    for (reserve, release) in [(0x16, 0x17), (0x56, 0x57)] {
        let (mut on, mut off) = (vec![0; 10], vec![0; 10]);
        (on[0], off[0]) = (reserve, release);
        let len = if reserve == 0x16 { 6 } else { 10 };
        exact(i, &on[..len], &[], 0);
        exact(i, &on[..len], &[], 0);
        good(i, &[0x00, 0, 0, 0, 0, 0], &[], 0);
        exact(i, &off[..len], &[], 0);
        exact(i, &off[..len], &[], 0);
    }
}
