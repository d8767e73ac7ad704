//! Blocks that are at home in a target port group, and how initiators hear where.

use super::units::rw16;
use super::*;

/// How a command ends: its data, its status and its sense data.
fn whole(bed: &mut Bed, from: PortId, to: PortId, cdb: &[u8], read: u32) -> (Vec<u8>, u8, Vec<u8>) {
    bed.take();
    bed.command(from, to, 0, cdb, read, 0);
    let (mut data, mut status, mut sense) = (Vec::new(), 0xff, Vec::new());
    for frame in bed.take() {
        match frame.header.r_ctl {
            1 => data.extend(frame.payload),
            _ => (status, sense) = (frame.payload[11], frame.payload[24..].to_vec()),
        }
    }
    (data, status, sense)
}

/// A user data segment referral descriptor.
fn segment(first: u64, last: u64, group: u8) -> Vec<u8> {
    [&[0, 0, 0, 1][..], &first.to_be_bytes(), &last.to_be_bytes(), &[0, 0, 0, group]].concat()
}

#[test]
fn referrals_are_reported() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let report = |block: u8, one_only: u8| [0x9e, 0x13, 0, 0, 0, 0, 0, 0, 0, block, 0, 0, 1, 0, one_only, 0];
    let page = |page: u8| [0x12, 1, page, 1, 0, 0];
    assert_eq!(bed.scsi(one, to, 0, &report(0, 0), 256, &[]).sense, Some((5, 0x20, 0)));
    assert_eq!(bed.scsi(one, to, 0, &page(0xb3), 256, &[]).sense, Some((5, 0x24, 0)));
    bed.tell("referrals d0 128 1 2 quiet");
    // 64 MiB: 131072 blocks.
    let all = [&[0, 0, 0, 48][..], &segment(0, 0x1_ffff, 1), &segment(128, 0x1_ffff, 2)].concat();
    assert_eq!(bed.scsi(one, to, 0, &report(0, 0), 256, &[]).good(), all);
    let second = [&[0, 0, 0, 24][..], &segment(128, 0x1_ffff, 2)].concat();
    assert_eq!(bed.scsi(one, to, 0, &report(200, 1), 256, &[]).good(), second);
    let beyond = [0x9e, 0x13, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0];
    assert_eq!(bed.scsi(one, to, 0, &beyond, 256, &[]).sense, Some((5, 0x21, 0)));
    // Segments of 128 blocks, each second one of a group.
    let referrals = [0, 0xb3, 0, 12, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0, 2];
    assert_eq!(bed.scsi(one, to, 0, &page(0xb3), 256, &[]).good(), referrals);
    assert_eq!(bed.scsi(one, to, 0, &page(0x86), 256, &[]).good()[..9], [0, 0x86, 0, 60, 0, 0, 0, 0, 0x10]);
    let pages = [0, 0, 0, 8, 0, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2, 0xb3];
    assert_eq!(bed.scsi(one, to, 0, &page(0), 256, &[]).good(), pages);
    bed.tell("referrals d0 off");
    assert_eq!(bed.scsi(one, to, 0, &report(0, 0), 256, &[]).sense, Some((5, 0x20, 0)));
    assert!(bed.san.command("referrals d0 128 quiet", 0, &mut bed.out).is_err());
    assert!(bed.san.command("referrals d0 128 9 quiet", 0, &mut bed.out).is_err());
}

#[test]
fn commands_for_another_group_are_referred() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    bed.scsi(one, to, 0, &rw16(0x8a, 130, 1), 0, &[7; 512]).good();
    let sense =
        |key: u8| [&[0x72, key, 0x3f, 0x15, 0, 0, 0, 28, 0x0b, 26, 0, 0][..], &segment(128, 255, 2)].concat();
    bed.tell("referrals d0 128 1 2 completed");
    assert_eq!(whole(&mut bed, one, to, &rw16(0x88, 0, 1), 512), (vec![0; 512], 0, vec![]));
    // It is done, and says so.
    assert_eq!(whole(&mut bed, one, to, &rw16(0x88, 130, 1), 512), (vec![7; 512], 2, sense(0xf)));
    bed.tell("referrals d0 128 1 2 aborted");
    assert_eq!(whole(&mut bed, one, to, &rw16(0x88, 130, 1), 512), (vec![], 2, sense(0xb)));
    assert_eq!(whole(&mut bed, one, to, &rw16(0x88, 0, 1), 512), (vec![0; 512], 0, vec![]));
    // By the other port it is at home.
    let to = bed.target(2);
    bed.session(one, to);
    bed.scsi(one, to, 0, &[0], 0, &[]);
    assert_eq!(whole(&mut bed, one, to, &rw16(0x88, 130, 1), 512), (vec![7; 512], 0, vec![]));
}
