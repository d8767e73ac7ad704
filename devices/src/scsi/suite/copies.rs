//! EXTENDED COPY, tokens, and WRITE ATOMIC: SPC-4, SBC-4.

use super::{BLOCK, BLOCKS, Initiator, Test, bad_field, blocks_of, check, exact, settle};

pub(super) const TESTS: &[(&str, Test)] = &[
    ("extended copy", extended_copy),
    ("extended copy with a long list identifier", extended_copy_lid4),
    ("extended copy refusals", extended_copy_refusals),
    ("extended copy aborted", extended_copy_aborted),
    ("receive copy results", receive_copy_results),
    ("token", token),
    ("token refusals", token_refusals),
    ("token of what changed", token_of_what_changed),
    ("write atomic", write_atomic),
];

pub(super) fn write(i: &mut dyn Initiator, lba: u16, data: &[u8]) {
    let [high, low] = lba.to_be_bytes();
    exact(i, &[0x2a, 0, 0, 0, high, low, 0, 0, (data.len() / BLOCK) as u8, 0], data, 0);
}

pub(super) fn read(i: &mut dyn Initiator, lba: u16, blocks: u8) -> Vec<u8> {
    let [high, low] = lba.to_be_bytes();
    exact(i, &[0x28, 0, 0, 0, high, low, 0, 0, blocks, 0], &[], usize::from(blocks) * BLOCK)
}

pub(super) fn out_cdb(action: u8, id: u32, len: usize) -> [u8; 16] {
    let mut cdb = [0x83, action, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    cdb[6..10].copy_from_slice(&id.to_be_bytes());
    cdb[10..14].copy_from_slice(&(len as u32).to_be_bytes());
    cdb
}

/// An identification CSCD descriptor with an NAA name.
pub(super) fn cscd(name: u64) -> Vec<u8> {
    let mut cscd = vec![0xe4, 0, 0, 0, 1, 3, 0, 8];
    cscd.extend(name.to_be_bytes());
    cscd.resize(32, 0);
    cscd[30] = 2;
    cscd
}

/// The NAA name of the disk under test.
fn own(i: &mut dyn Initiator) -> Vec<u8> {
    let data = i.command(&[0x12, 1, 0x83, 0, 255, 0], &[], 255).data_in;
    assert_eq!(data[4..8], [0x01, 0x03, 0, 8], "an NAA designator comes first");
    cscd(u64::from_be_bytes(data[8..16].try_into().unwrap()))
}

/// Block to block: so many blocks from and to these addresses.
pub(super) fn segment(source: u16, target: u16, blocks: u16, from: u64, to: u64) -> Vec<u8> {
    let mut segment = vec![0x02, 0, 0, 0x18];
    segment.extend(source.to_be_bytes());
    segment.extend(target.to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(blocks.to_be_bytes());
    segment.extend(from.to_be_bytes());
    segment.extend(to.to_be_bytes());
    segment
}

pub(super) fn list(id: u8, usage: u8, cscds: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
    let (cscds, segments) = (cscds.concat(), segments.concat());
    let mut list = vec![id, usage << 3];
    list.extend((cscds.len() as u16).to_be_bytes());
    list.extend([0; 4]);
    list.extend((segments.len() as u32).to_be_bytes());
    list.extend([0; 4]);
    [list, cscds, segments].concat()
}

fn extended_copy(i: &mut dyn Initiator) {
    settle(i);
    let own = own(i);
    write(i, 0, &blocks_of(3, 32));
    let both = [segment(0, 0, 8, 0, 1000), segment(0xffff, 0, 2, 30, 2000)];
    let bytes = list(7, 0, std::slice::from_ref(&own), &both);
    exact(i, &out_cdb(0, 0, bytes.len()), &bytes, 0);
    assert_eq!(read(i, 1000, 8), blocks_of(3, 8));
    assert_eq!(read(i, 2000, 2), blocks_of(3, 32)[30 * BLOCK..]);
    assert_eq!(read(i, 1008, 1), [0; BLOCK]);
    // In bytes, with offsets that come to whole blocks; and nothing at all.
    let mut bytes_segment = vec![0x0a, 0, 0, 0x1c, 0, 0, 0, 0, 0, 0, 4, 0];
    bytes_segment.extend(1u64.to_be_bytes());
    bytes_segment.extend(3000u64.to_be_bytes());
    bytes_segment.extend([2, 0, 0, 0]);
    let bytes = list(7, 2, std::slice::from_ref(&own), &[bytes_segment]);
    exact(i, &out_cdb(0, 0, bytes.len()), &bytes, 0);
    assert_eq!(read(i, 3000, 2), blocks_of(3, 4)[2 * BLOCK..]);
    exact(i, &out_cdb(0, 0, 0), &[], 0);
    // Overlapping upwards: the source as it was.
    let bytes = list(7, 2, &[own], &[segment(0, 0, 32, 0, 4)]);
    exact(i, &out_cdb(0, 0, bytes.len()), &bytes, 0);
    assert_eq!(read(i, 4, 32), blocks_of(3, 32));
}

fn extended_copy_lid4(i: &mut dyn Initiator) {
    settle(i);
    write(i, 0, &blocks_of(4, 8));
    let mut bytes = vec![0; 48];
    (bytes[0], bytes[3], bytes[16]) = (0x01, 0x20, 0xff);
    bytes[20..24].copy_from_slice(&0x0102_0304u32.to_be_bytes());
    (bytes[43], bytes[45]) = (32, 28);
    bytes.extend(own(i));
    bytes.extend(segment(0, 0, 8, 0, 100));
    exact(i, &out_cdb(1, 0, bytes.len()), &bytes, 0);
    assert_eq!(read(i, 100, 8), blocks_of(4, 8));
    // RECEIVE COPY STATUS (LID4): one segment, 4096 bytes, completed without errors.
    let data = exact(i, &[0x84, 5, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], &[], 32);
    assert_eq!(data[..6], [0, 0, 0, 28, 1, 1]);
    assert_eq!(data[16..26], [0, 0, 0, 0, 0, 0, 0x10, 0, 0, 1]);
    bytes[16] = 0;
    let sense = check(i, &out_cdb(1, 0, bytes.len()), &bytes, 0, (0x5, 0x26, 0x00));
    assert_eq!(sense[15..18], [0x80, 0, 16]);
}

fn extended_copy_refusals(i: &mut dyn Initiator) {
    settle(i);
    let own = own(i);
    let copy = segment(0, 0, 1, 0, 100);
    let good = list(1, 0, std::slice::from_ref(&own), std::slice::from_ref(&copy));
    // Lengths: of the list, of what is in it.
    for len in [1, 15, 20, good.len() - 1] {
        check(i, &out_cdb(0, 0, len), &good[..len], 0, (0x5, 0x1a, 0x00));
    }
    let many = list(1, 0, &vec![own.clone(); 17], std::slice::from_ref(&copy));
    check(i, &out_cdb(0, 0, many.len()), &many, 0, (0x5, 0x26, 0x06));
    let many = list(1, 0, std::slice::from_ref(&own), &vec![copy.clone(); 65]);
    check(i, &out_cdb(0, 0, many.len()), &many, 0, (0x5, 0x26, 0x08));
    for (at, value, sense) in [(16, 0xe0, 0x07), (48, 0x04, 0x09), (15, 1, 0x0b)] {
        let mut other = good.clone();
        other[at] = value;
        check(i, &out_cdb(0, 0, other.len()), &other, 0, (0x5, 0x26, sense));
    }
    // LIST ID USAGE 01b is reserved; 11b goes with list identifier 0.
    for (usage, at) in [(1, [0x8c, 0, 1]), (3, [0x80, 0, 0])] {
        let other = list(1, usage, std::slice::from_ref(&own), std::slice::from_ref(&copy));
        let sense = check(i, &out_cdb(0, 0, other.len()), &other, 0, (0x5, 0x26, 0x00));
        assert_eq!(sense[15..18], at);
    }
    bad_field(i, &[0x83, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0, 1, Some(4));
}

fn extended_copy_aborted(i: &mut dyn Initiator) {
    settle(i);
    let own = own(i);
    write(i, 0, &blocks_of(5, 4));
    // The second segment goes beyond the end: COPY ABORTED names it; the first one is done.
    let segments = [segment(0, 0, 4, 0, 50), segment(0, 0, 4, 0, BLOCKS - 1)];
    let bytes = list(9, 0, std::slice::from_ref(&own), &segments);
    let outcome = i.command(&out_cdb(0, 0, bytes.len()), &bytes, 0);
    assert_eq!((outcome.status, outcome.sense[2], outcome.sense[12]), (2, 0xa, 0));
    assert_eq!(outcome.sense[8..12], [0, 0, 0, 1]);
    assert_eq!(read(i, 50, 4), blocks_of(5, 4));
    let data = exact(i, &[0x84, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0], &[], 12);
    assert_eq!(data, [0, 0, 0, 8, 2, 0, 1, 0, 0, 0, 8, 0]);
    // Told once (SPC-3, 6.17.2); the details of the failure are something else.
    bad_field(i, &[0x84, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0], &[], 12, 2, Some(7));
    let data = exact(i, &[0x84, 4, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 78, 0, 0], &[], 78);
    assert_eq!(
        (&data[..4], &data[58..60], &data[60..63]),
        (&[0, 0, 0, 74][..], &[0, 18][..], &[0x70, 0, 0xa][..])
    );
    // A descriptor that is not there, and a unit that is not.
    let bytes = list(9, 0, &[own], &[segment(0, 1, 4, 0, 50)]);
    check(i, &out_cdb(0, 0, bytes.len()), &bytes, 0, (0xa, 0x0d, 0x02));
    let bytes = list(9, 0, &[cscd(0x5000_c500_dead_beef)], &[segment(0, 0xffff, 4, 0, 50)]);
    check(i, &out_cdb(0, 0, bytes.len()), &bytes, 0, (0xa, 0x0d, 0x02));
}

fn receive_copy_results(i: &mut dyn Initiator) {
    settle(i);
    let data = exact(i, &[0x84, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 47, 0, 0], &[], 47);
    assert_eq!(data[..16], [0, 0, 0, 43, 1, 0, 0, 0, 0, 16, 0, 64, 0, 0, 9, 0]);
    assert_eq!(data[34..38], [0, 32, 32, 9], "copies at a time: as many as VPD page 8Fh says");
    assert_eq!(data[43..], [3, 0x02, 0x0a, 0xe4]);
    bad_field(i, &[0x84, 0, 77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0], &[], 12, 2, Some(7));
    bad_field(i, &[0x84, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0], &[], 12, 1, Some(4));
}

pub(super) fn ranges(head: usize, ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut list = vec![0; head];
    for (lba, blocks) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    let len = list.len() as u16;
    list[..2].copy_from_slice(&(len - 2).to_be_bytes());
    list[head - 2..head].copy_from_slice(&(ranges.len() as u16 * 16).to_be_bytes());
    list
}

/// Makes a token and fetches what there is to know of it.
pub(super) fn make(i: &mut dyn Initiator, parts: &[(u64, u32)]) -> Vec<u8> {
    let list = ranges(16, parts);
    exact(i, &out_cdb(0x10, 5, list.len()), &list, 0);
    exact(i, &[0x84, 7, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 2, 0x26, 0, 0], &[], 550)
}

pub(super) fn using(token: &[u8], offset: u64, parts: &[(u64, u32)]) -> Vec<u8> {
    let mut list = ranges(536, parts);
    list[8..16].copy_from_slice(&offset.to_be_bytes());
    list[16..528].copy_from_slice(token);
    list
}

fn token(i: &mut dyn Initiator) {
    settle(i);
    write(i, 0, &blocks_of(6, 40));
    let data = make(i, &[(0, 8), (20, 8)]);
    // Service action, completed; then after 32 bytes the descriptors: length, restricted field, token.
    assert_eq!(data[..6], [0, 0, 2, 0x22, 0x10, 1]);
    // Transfer count: units F1h, blocks.
    assert_eq!((data[15], &data[16..24]), (0xf1, &16u64.to_be_bytes()[..]));
    assert_eq!(data[32..36], 514u32.to_be_bytes());
    let token = data[38..550].to_vec();
    assert_eq!((&token[..4], &token[6..8]), (&[0x00, 0x80, 0x00, 0x01][..], &[0x01, 0xf8][..]));
    let list = using(&token, 4, &[(5000, 6), (6000, 6)]);
    exact(i, &out_cdb(0x11, 6, list.len()), &list, 0);
    let source = [&blocks_of(6, 8)[4 * BLOCK..], &blocks_of(6, 28)[20 * BLOCK..]].concat();
    assert_eq!(read(i, 5000, 6), source[..6 * BLOCK]);
    assert_eq!(read(i, 6000, 6), source[6 * BLOCK..]);
    // The well known token of zeros.
    let mut zeros = vec![0; 512];
    (zeros[0], zeros[1], zeros[3], zeros[6], zeros[7]) = (0xff, 0xff, 0x01, 0x01, 0xf8);
    let list = using(&zeros, 0, &[(5001, 4)]);
    exact(i, &out_cdb(0x11, 6, list.len()), &list, 0);
    assert_eq!(read(i, 5001, 4), vec![0; 4 * BLOCK]);
    assert_eq!(read(i, 5000, 1), source[..BLOCK]);
    // DEL_TKN.
    let mut list = using(&token, 0, &[(7000, 1)]);
    list[2] = 2;
    exact(i, &out_cdb(0x11, 6, list.len()), &list, 0);
    check(i, &out_cdb(0x11, 6, list.len()), &list, 0, (0x5, 0x23, 0x04));
}

fn token_refusals(i: &mut dyn Initiator) {
    settle(i);
    let list = ranges(16, &[(0, 8), (BLOCKS - 1, 2)]);
    check(i, &out_cdb(0x10, 5, list.len()), &list, 0, (0x5, 0x21, 0x00));
    let list = ranges(16, &[(0, 8), (7, 2)]);
    check(i, &out_cdb(0x10, 5, list.len()), &list, 0, (0x5, 0x26, 0x00));
    check(i, &out_cdb(0x10, 5, 15), &list[..15], 0, (0x5, 0x1a, 0x00));
    check(i, &out_cdb(0x11, 5, 100), &[0; 100], 0, (0x5, 0x1a, 0x00));
    let list = using(&[0; 512], 0, &[(0, 1)]);
    check(i, &out_cdb(0x11, 5, list.len()), &list, 0, (0x5, 0x23, 0x0a));
    let mut other = vec![0; 512];
    (other[6], other[7]) = (0x01, 0xf8);
    let list = using(&other, 0, &[(0, 1)]);
    check(i, &out_cdb(0x11, 5, list.len()), &list, 0, (0x5, 0x23, 0x01));
}

fn token_of_what_changed(i: &mut dyn Initiator) {
    settle(i);
    write(i, 0, &blocks_of(6, 40));
    let token = make(i, &[(10, 4)])[38..550].to_vec();
    let list = using(&token, 0, &[(100, 4)]);
    write(i, 14, &blocks_of(1, 1));
    exact(i, &out_cdb(0x11, 6, list.len()), &list, 0);
    write(i, 13, &blocks_of(1, 1));
    check(i, &out_cdb(0x11, 6, list.len()), &list, 0, (0x5, 0x23, 0x04));
}

fn write_atomic(i: &mut dyn Initiator) {
    settle(i);
    let cdb = |lba: u8, blocks: u8| [0x9c, 0, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, blocks, 0, 0];
    exact(i, &cdb(16, 8), &blocks_of(7, 8), 0);
    assert_eq!(read(i, 16, 8), blocks_of(7, 8));
    exact(i, &cdb(8, 0), &[], 0);
    bad_field(i, &cdb(17, 8), &blocks_of(7, 8), 0, 2, None);
    bad_field(i, &cdb(16, 7), &blocks_of(7, 7), 0, 12, None);
    bad_field(i, &cdb(16, 16), &blocks_of(7, 16), 0, 12, None);
    // ATOMIC BOUNDARY is not supported; beyond the end.
    let mut bounded = cdb(16, 8);
    bounded[11] = 8;
    bad_field(i, &bounded, &blocks_of(7, 8), 0, 11, Some(3));
    let mut beyond = cdb(0, 8);
    beyond[8] = 0x40;
    check(i, &beyond, &blocks_of(7, 8), 0, (0x5, 0x21, 0x00));
}
