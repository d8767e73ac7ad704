//! What units answer.

use super::*;

/// READ(16) and WRITE(16).
pub(super) fn rw16(code: u8, block: u64, count: u32) -> Vec<u8> {
    [&[code, 0][..], &block.to_be_bytes(), &count.to_be_bytes(), &[0, 0]].concat()
}

pub(super) fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * 7 + at / 2048 + seed) % 253) as u8).collect()
}

#[test]
fn a_session_reads_and_writes() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let luns = bed.scsi(one, to, 0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 2, 0], 512, &[]);
    assert_eq!(luns.residual, 512 - 40);
    let luns = luns.good();
    assert_eq!(luns[..8], [0, 0, 0, 32, 0, 0, 0, 0]);
    let numbers: Vec<_> = luns[8..].chunks(8).map(|lun| lun[..2].to_vec()).collect();
    assert_eq!(numbers, [[0, 0], [0, 5], [0, 27], [0x42, 1]]);
    // 20 sectors: five frames each way. Then the shortest form, at the unit with the longest number.
    let data = pattern(10240, 1);
    assert_eq!(bed.scsi(one, to, 513, &rw16(0x8a, 100, 20), 0, &data).good(), []);
    assert_eq!(bed.scsi(one, to, 513, &rw16(0x88, 100, 20), 10240, &[]).good(), data);
    assert_eq!(bed.scsi(one, to, 513, &[0x08, 0, 0, 101, 1, 0], 512, &[]).good(), data[512..1024]);
    assert_eq!(bed.scsi(one, to, 513, &[0x28, 0, 0, 0, 0, 119, 0, 0, 1, 0], 512, &[]).good(), data[9728..]);
    assert_eq!(bed.scsi(one, to, 5, &rw16(0x88, 100, 1), 512, &[]).good(), [0; 512]);
    // It is in the array's memory, and the same through the other port.
    let read = bed.tell("read d3 51200 4");
    assert_eq!(read.trim(), data[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let other = bed.target(2);
    bed.session(one, other);
    assert_eq!(bed.scsi(one, other, 513, &[0], 0, &[]).sense, Some((6, 0x29, 0)));
    assert_eq!(bed.scsi(one, other, 513, &rw16(0x88, 100, 20), 10240, &[]).good(), data);
}

#[test]
fn lengths_that_do_not_fit_are_said() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let data = pattern(2048, 3);
    // The initiator allows less than the command has, and more.
    let answer = bed.scsi(one, to, 0, &rw16(0x8a, 0, 8), 0, &data);
    assert_eq!((answer.status, answer.residual), (0, -2048));
    let answer = bed.scsi(one, to, 0, &rw16(0x88, 0, 8), 1024, &[]);
    assert_eq!((answer.status, answer.residual, answer.data == data[..1024]), (0, -3072, true));
    let answer = bed.scsi(one, to, 0, &rw16(0x88, 0, 1), 4096, &[]);
    assert_eq!((answer.status, answer.residual, answer.data.len()), (0, 3584, 512));
    assert_eq!(bed.scsi(one, to, 0, &[0], 0, &data).residual, 2048);
    for (cdb, sense) in [
        (rw16(0x88, 131_072, 1), (5, 0x21, 0)),
        (rw16(0x88, u64::MAX, 2), (5, 0x21, 0)),
        (rw16(0x88, 0, 16385), (5, 0x24, 0)),
        (vec![0x28, 0x20, 0, 0, 0, 0, 0, 0, 1, 0], (5, 0x24, 0)),
        (vec![0xfe], (5, 0x20, 0)),
    ] {
        let answer = bed.scsi(one, to, 0, &cdb, 512, &[]);
        assert_eq!((answer.status, answer.sense, answer.residual), (2, Some(sense), 512), "{cdb:02x?}");
    }
    // No blocks are no error.
    assert_eq!(bed.scsi(one, to, 0, &rw16(0x88, 0, 0), 0, &[]).good(), []);
}

#[test]
fn units_say_what_they_are() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let inquiry = |page: u8| [0x12, u8::from(page != 0xff), if page == 0xff { 0 } else { page }, 1, 0, 0];
    let standard = bed.scsi(one, to, 27, &inquiry(0xff), 256, &[]).good();
    assert_eq!(standard[..8], [0, 0, 6, 0x12, 31, 0x30, 0x10, 2]);
    assert_eq!(&standard[8..32], b"FABRIC  DISK            ");
    assert_eq!(
        bed.scsi(one, to, 27, &inquiry(0), 256, &[]).good(),
        [0, 0, 0, 6, 0, 0x80, 0x83, 0xb0, 0xb1, 0xb2]
    );
    assert_eq!(bed.scsi(one, to, 27, &inquiry(0x80), 256, &[]).good(), [0, 0x80, 0, 2, b'd', b'2']);
    let page = bed.scsi(one, to, 27, &inquiry(0x83), 256, &[]).good();
    assert_eq!(page[..12], [0, 0x83, 0, 60, 1, 3, 0, 16, 0x60, 0x2f, 0xcf, 0]);
    assert_eq!(page[24..36], [1, 0x93, 0, 8, 0x50, 0x2f, 0xcf, 0, 0, 0, 0, 1]);
    assert_eq!(page[36..52], [1, 0x94, 0, 4, 0, 0, 0, 1, 1, 0x95, 0, 4, 0, 0, 0, 1]);
    assert_eq!(page[52..64], [1, 0xa3, 0, 8, 0x50, 0x2f, 0xcf, 0, 0, 0, 0, 0]);
    let limits = bed.scsi(one, to, 27, &inquiry(0xb0), 256, &[]).good();
    assert_eq!((limits.len(), limits.be32(8), limits.be32(12)), (64, Some(16384), Some(2048)));
    assert_eq!(bed.scsi(one, to, 27, &inquiry(0xb2), 256, &[]).good(), [0, 0xb2, 0, 4, 0, 0xe4, 2, 0]);
    assert_eq!(bed.scsi(one, to, 27, &inquiry(0xb9), 256, &[]).sense, Some((5, 0x24, 0)));
    let capacity = bed.scsi(one, to, 27, &[0x25], 8, &[]).good();
    assert_eq!(capacity, [0, 1, 0xff, 0xff, 0, 0, 2, 0]);
    let long = bed.scsi(one, to, 27, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32], 32, &[]).good();
    assert_eq!((long.be64(0), long.be32(8), long[14]), (Some(131_071), Some(512), 0xc0));
    let mode = bed.scsi(one, to, 27, &[0x1a, 0, 0x3f, 0, 0xff], 255, &[]).good();
    assert_eq!((mode[0], mode[2], mode[4], mode.len()), (35, 0x10, 8, 36));
    // At a number without a unit, and for an initiator without any.
    let missing = bed.scsi(one, to, 1, &inquiry(0xff), 36, &[]).good();
    assert_eq!((missing[0], missing.len()), (0x7f, 36));
    assert_eq!(bed.scsi(one, to, 1, &[0], 0, &[]).sense, Some((5, 0x25, 0)));
    let base = bed.log_in(1, BASE + 1, false).unwrap();
    bed.session(base, to);
    assert_eq!(bed.scsi(base, to, 0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64], 64, &[]).good(), [0; 8]);
    assert_eq!(bed.scsi(base, to, 0, &rw16(0x88, 0, 1), 512, &[]).sense, Some((5, 0x25, 0)));
    // The list is given by units that are there, by number 0 and the well-known one, and by no other.
    let report = [0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64];
    assert_eq!(bed.scsi(one, to, 513, &report, 64, &[]).good().len(), 40);
    assert_eq!(bed.scsi(one, to, 1, &report, 64, &[]).sense, Some((5, 0x25, 0)));
    assert_eq!(bed.scsi(one, to, 0xc101, &report, 64, &[]).good().len(), 40);
    bed.tell("method flat");
    let luns = bed.scsi(one, to, 0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64], 64, &[]).good();
    assert_eq!(luns[16..18], [0x40, 5]);
}

#[test]
fn blocks_are_unmapped_and_written_the_same() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let data = pattern(8192, 5);
    bed.scsi(one, to, 0, &rw16(0x8a, 0, 16), 0, &data).good();
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend(4_u64.to_be_bytes());
    list.extend([0, 0, 0, 4, 0, 0, 0, 0]);
    bed.scsi(one, to, 0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], 0, &list).good();
    let mut expected = data.clone();
    expected[2048..4096].fill(0);
    assert_eq!(bed.scsi(one, to, 0, &rw16(0x88, 0, 16), 8192, &[]).good(), expected);
    list[8] = 1;
    let answer = bed.scsi(one, to, 0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], 0, &list);
    assert_eq!(answer.sense, Some((5, 0x21, 0)));
    bed.scsi(one, to, 0, &rw16(0x93, 1, 2), 0, &[0xee; 512]).good();
    expected[512..1536].fill(0xee);
    let mut zeros = rw16(0x93, 15, 1);
    zeros[1] = 1;
    bed.scsi(one, to, 0, &zeros, 0, &[]).good();
    expected[7680..].fill(0);
    assert_eq!(bed.scsi(one, to, 0, &rw16(0x88, 0, 16), 8192, &[]).good(), expected);
    // COMPARE AND WRITE: not what is there, then what is there.
    let mut swap = rw16(0x89, 0, 0);
    swap[13] = 1;
    let answer = bed.scsi(one, to, 0, &swap, 0, &[1; 1024]);
    assert_eq!(answer.sense, Some((0xe, 0x1d, 0)));
    bed.scsi(one, to, 0, &swap, 0, &[&data[..512], &[1; 512]].concat()).good();
    assert_eq!(bed.scsi(one, to, 0, &rw16(0x88, 0, 1), 512, &[]).good(), [1; 512]);
}

#[test]
fn a_tape_keeps_blocks_and_marks() {
    let mut bed = Bed::new();
    bed.tell("tape t0");
    bed.tell("map 2100000000000a01 0=t0 5=t0 27=t0 513=t0");
    bed.log_in(0, BASE, false).unwrap();
    let one = bed.log_in(0, ONE, true).unwrap();
    let to = bed.target(1);
    bed.session(one, to);
    let mut tape = |cdb: &[u8], read: u32, write: &[u8]| bed.scsi(one, to, 0, cdb, read, write);
    assert_eq!(tape(&[0], 0, &[]).sense, Some((6, 0x29, 0)));
    assert_eq!(tape(&[0x12, 0, 0, 0, 36], 36, &[]).good()[..2], [1, 0x80]);
    assert_eq!(tape(&[5], 6, &[]).good(), [0, 0x10, 0, 0, 0, 1]);
    let block = pattern(10240, 9);
    for _ in 0..2 {
        tape(&[0x0a, 0, 0, 0x28, 0], 0, &block).good();
    }
    tape(&[0x10, 0, 0, 0, 1], 0, &[]).good();
    tape(&[0x0a, 0, 0, 0, 100], 0, &[7; 100]).good();
    tape(&[0x01], 0, &[]).good();
    assert_eq!(tape(&[0x08, 0, 0, 0x28, 0], 10240, &[]).good(), block);
    // A block shorter than what is asked for is said, unless that is unwanted; then the mark, and the end of data.
    let answer = tape(&[0x08, 0, 0, 0x40, 0], 16384, &[]);
    assert_eq!((answer.sense, answer.data.len(), answer.residual), (Some((0, 0, 0)), 10240, 6144));
    assert_eq!(tape(&[0x08, 0, 0, 0x40, 0], 16384, &[]).sense, Some((0, 0, 1)));
    assert_eq!(tape(&[0x08, 2, 0, 0x40, 0], 16384, &[]).good(), [7; 100]);
    assert_eq!(tape(&[0x08, 2, 0, 0x40, 0], 16384, &[]).sense, Some((8, 0, 5)));
    assert_eq!(tape(&[0x34], 20, &[]).good()[..8], [0, 0, 0, 0, 0, 0, 0, 4]);
    // Back over one mark, and one block.
    tape(&[0x11, 1, 0xff, 0xff, 0xff], 0, &[]).good();
    tape(&[0x11, 0, 0xff, 0xff, 0xff], 0, &[]).good();
    assert_eq!(tape(&[0x34], 20, &[]).good()[..8], [0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(tape(&[0x11, 0, 0xff, 0xff, 0xfe], 0, &[]).sense, Some((0, 0, 4)));
    tape(&[0x11, 3], 0, &[]).good();
    // Fixed blocks of 512 bytes.
    tape(&[0x15, 0x10, 0, 0, 12], 0, &[0, 0, 0x10, 8, 0, 0, 0, 0, 0, 0, 2, 0]).good();
    assert_eq!(tape(&[0x1a, 0, 0, 0, 12], 12, &[]).good(), [11, 0, 0x10, 8, 0, 0, 0, 0, 0, 0, 2, 0]);
    tape(&[0x0a, 1, 0, 0, 4], 0, &block[..2048]).good();
    tape(&[0x11, 0, 0xff, 0xff, 0xfc], 0, &[]).good();
    let answer = tape(&[0x08, 1, 0, 0, 6], 3072, &[]);
    assert_eq!((answer.sense, answer.data == block[..2048]), (Some((8, 0, 5)), true));
    tape(&[0x1b, 0, 0, 0, 0], 0, &[]).good();
    assert_eq!(tape(&[0], 0, &[]).sense, Some((2, 0x3a, 0)));
    tape(&[0x1b, 0, 0, 0, 1], 0, &[]).good();
    assert_eq!(tape(&[0], 0, &[]).status, 0);
}

#[test]
fn a_load_is_heard_by_the_others() {
    let mut bed = Bed::new();
    bed.tell("tape t0");
    bed.tell("map any 0=t0");
    bed.tell("unmap 2100000000000a01");
    bed.log_in(0, BASE, false).unwrap();
    let to = bed.target(1);
    let ids = [ONE, TWO].map(|name| {
        let id = bed.log_in(0, name, true).unwrap();
        bed.session(id, to);
        assert_eq!(bed.scsi(id, to, 0, &[0], 0, &[]).sense, Some((6, 0x29, 0)));
        id
    });
    bed.scsi(ids[0], to, 0, &[0x1b, 0, 0, 0, 0], 0, &[]).good();
    assert_eq!(bed.scsi(ids[1], to, 0, &[0], 0, &[]).sense, Some((2, 0x3a, 0)));
    bed.scsi(ids[0], to, 0, &[0x1b, 0, 0, 0, 1], 0, &[]).good();
    assert_eq!(bed.scsi(ids[1], to, 0, &[0], 0, &[]).sense, Some((6, 0x28, 0)));
    assert_eq!(bed.scsi(ids[1], to, 0, &[0], 0, &[]).status, 0);
    // A tape that is there already is only wound back.
    bed.scsi(ids[0], to, 0, &[0x1b, 0, 0, 0, 1], 0, &[]).good();
    assert_eq!(bed.scsi(ids[1], to, 0, &[0], 0, &[]).status, 0);
}
