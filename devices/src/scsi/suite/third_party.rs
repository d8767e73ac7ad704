//! Copies between disks while others write, over ranges that overlap, and with names that are not unique.

use std::sync::Arc;

use super::copies::{cscd, list, make, out_cdb, read, segment, using, write};
use super::local::{Local, disk_of, target_of};
use super::management::Running;
use super::nexuses::ram;
use super::{BLOCK, Initiator, Operation, blocks_of, check, config, exact, good, image, settle};
use crate::iothread::Io;
use crate::scsi::{DiskConfig, Image, Lun, ScsiReply, Status, Target};

const LUN_1: Lun = Lun([0, 1, 0, 0, 0, 0, 0, 0]);
const LUN_2: Lun = Lun([0, 2, 0, 0, 0, 0, 0, 0]);
/// Blocks of the megabyte that a copy moves at a time.
const MIB: u16 = 2048;

/// A source at LUN 0 and a target at LUN 1 with their images.
struct Pair {
    source: Local,
    /// Another initiator of the source.
    other: Local,
    target: Local,
    source_image: Arc<Image>,
    target_image: Arc<Image>,
    behind: Arc<Target>,
}

fn named(wwn: u64, serial: &str) -> DiskConfig {
    DiskConfig { wwn: Some(wwn), serial: serial.into(), ..config() }
}

fn pair() -> Pair {
    let images = [(), ()].map(|()| Arc::new(Image::Recording(image())));
    let [source_image, target_image] = images;
    let behind = target_of(disk_of(source_image.clone(), named(0x5000_c500_0000_0001, "A")));
    behind.attach(LUN_1, disk_of(target_image.clone(), named(0x5000_c500_0000_0002, "B"))).unwrap();
    let [mut source, mut other, mut target] = [(), (), ()].map(|()| Local::new(&behind));
    target.lun = LUN_1;
    for initiator in [&mut source, &mut other, &mut target] {
        settle(initiator);
    }
    Pair { source, other, target, source_image, target_image, behind }
}

fn sense(reply: &ScsiReply) -> (u8, u8, u8) {
    let sense = reply.sense.expect("sense data");
    let bytes = sense.as_bytes();
    (bytes[2] & 0xf, bytes[12], bytes[13])
}

/// What RECEIVE ROD TOKEN INFORMATION has of list identifier 6: COPY OPERATION STATUS, and blocks moved.
fn told(i: &mut dyn Initiator) -> (u8, u64) {
    let data = exact(i, &[0x84, 7, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0], &[], 24);
    (data[5], u64::from_be_bytes(data[16..24].try_into().unwrap()))
}

fn write_at(i: &mut dyn Initiator, lba: u16, blocks: usize, seed: u8) {
    for at in (0..blocks).step_by(128) {
        write(i, lba + at as u16, &blocks_of(seed ^ (at / 128) as u8, 128.min(blocks - at)));
    }
}

fn content(i: &mut dyn Initiator, lba: u16, blocks: usize) -> Vec<u8> {
    (0..blocks).step_by(128).flat_map(|at| read(i, lba + at as u16, 128.min(blocks - at) as u8)).collect()
}

/// Everything that changes a block of the source: with it the token's point in time is gone.
fn changes() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let [high, low] = (MIB + 5).to_be_bytes();
    let mut unmap = vec![0, 22, 0, 16, 0, 0, 0, 0];
    unmap.extend(u64::from(MIB + 5).to_be_bytes());
    unmap.extend([0, 0, 0, 1, 0, 0, 0, 0]);
    let copy = list(3, 0, &[cscd(0x5000_c500_0000_0001)], &[segment(0, 0, 1, 9000, u64::from(MIB + 5))]);
    let block = vec![0x77; BLOCK];
    vec![
        ("WRITE", vec![0x2a, 0, 0, 0, high, low, 0, 0, 1, 0], block.clone()),
        ("WRITE AND VERIFY", vec![0x2e, 0, 0, 0, high, low, 0, 0, 1, 0], block.clone()),
        ("WRITE SAME", vec![0x41, 0, 0, 0, high, low, 0, 0, 1, 0], block.clone()),
        ("WRITE SAME of zeros", vec![0x41, 8, 0, 0, high, low, 0, 0, 1, 0], vec![0; BLOCK]),
        ("UNMAP", vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], unmap),
        ("ORWRITE", vec![0x8b, 0, 0, 0, 0, 0, 0, 0, high, low, 0, 0, 0, 1, 0, 0], block),
        ("EXTENDED COPY", out_cdb(0, 0, copy.len()).to_vec(), copy),
        ("FORMAT UNIT", vec![0x04, 0, 0, 0, 0, 0], vec![]),
    ]
}

#[test]
fn a_change_of_the_source_ends_the_copy_before_newer_data() {
    for (name, cdb, data) in changes() {
        let mut pair = pair();
        let io = Io::for_test();
        write_at(&mut pair.source, 0, 3 * usize::from(MIB), 1);
        let old = content(&mut pair.source, 0, usize::from(MIB));
        let token = make(&mut pair.source, &[(0, 3 * u32::from(MIB))])[38..550].to_vec();
        let using = using(&token, 0, &[(0, 3 * u32::from(MIB))]);
        // The first megabyte is read, and its write is held back.
        ram(&pair.target_image).hold(true);
        let mut copying =
            Running::start_at(&pair.target.nexus, &io, (1, LUN_1), &out_cdb(0x11, 6, using.len()), &using);
        exact(&mut pair.other, &cdb, &data, 0);
        ram(&pair.target_image).hold(false);
        let reply = copying.poll().unwrap_or_else(|| panic!("{name}: over")).unwrap();
        drop(copying);
        assert_eq!(reply.status, Status::CheckCondition, "{name}");
        assert_eq!(sense(&reply), (0x5, 0x23, 0x06), "{name}: TOKEN REVOKED");
        assert_eq!(told(&mut pair.target), (2, u64::from(MIB)), "{name}: what was moved before");
        assert_eq!(content(&mut pair.target, 0, usize::from(MIB)), old, "{name}");
        let rest = content(&mut pair.target, MIB, 2 * usize::from(MIB));
        assert!(rest.iter().all(|byte| *byte == 0), "{name}: nothing newer than the token");
    }
}

#[test]
fn what_was_read_beside_a_write_is_not_used() {
    let mut pair = pair();
    let io = Io::for_test();
    write(&mut pair.source, 0, &blocks_of(1, 8));
    let token = make(&mut pair.source, &[(0, 8)])[38..550].to_vec();
    let using = using(&token, 0, &[(0, 8)]);
    ram(&pair.source_image).hold(true);
    let mut copying =
        Running::start_at(&pair.target.nexus, &io, (1, LUN_1), &out_cdb(0x11, 6, using.len()), &using);
    let newer = blocks_of(2, 1);
    let mut writing = Running::start(&pair.other.nexus, &io, 2, &[0x2a, 0, 0, 0, 0, 3, 0, 0, 1, 0], &newer);
    ram(&pair.source_image).hold(false);
    assert_eq!(writing.poll().unwrap().unwrap().status, Status::Good);
    let reply = copying.poll().unwrap().unwrap();
    drop((copying, writing));
    assert_eq!(sense(&reply), (0x5, 0x23, 0x06));
    assert_eq!(told(&mut pair.target), (2, 0));
    assert_eq!(content(&mut pair.target, 0, 8), vec![0; 8 * BLOCK]);
}

#[test]
fn a_token_is_not_made_while_its_blocks_are_written() {
    let mut pair = pair();
    let io = Io::for_test();
    let populate = super::copies::ranges(16, &[(0, 8)]);
    ram(&pair.source_image).hold(true);
    let newer = blocks_of(2, 8);
    let mut writing = Running::start(&pair.other.nexus, &io, 2, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0], &newer);
    let mut making = Running::start(&pair.source.nexus, &io, 1, &out_cdb(0x10, 5, populate.len()), &populate);
    ram(&pair.source_image).hold(false);
    assert_eq!(writing.poll().unwrap().unwrap().status, Status::Good);
    assert_eq!(making.poll().unwrap().unwrap().status, Status::Good);
    drop((making, writing));
    // A copy from another disk is not in this one's task set: the initiator is told to come again.
    let copy =
        list(3, 0, &[cscd(0x5000_c500_0000_0001), cscd(0x5000_c500_0000_0002)], &[segment(1, 0, 8, 0, 4)]);
    ram(&pair.source_image).hold(true);
    let mut copying =
        Running::start_at(&pair.target.nexus, &io, (3, LUN_1), &out_cdb(0, 0, copy.len()), &copy);
    let outcome = pair.source.command(&out_cdb(0x10, 5, populate.len()), &populate, 0);
    assert_eq!(outcome.status, Status::Busy as u8);
    ram(&pair.source_image).hold(false);
    assert_eq!(copying.poll().unwrap().unwrap().status, Status::Good);
    drop(copying);
    exact(&mut pair.source, &out_cdb(0x10, 5, populate.len()), &populate, 0);
}

/// What a token stood for lands in its own blocks, whichever piece overwrites which.
#[test]
fn a_token_written_onto_its_own_source_says_what_was_there() {
    type Parts = &'static [(u64, u32)];
    let cases: &[(Parts, Parts)] = &[
        // Up and down, by less than is moved at a time and over more than that.
        (&[(0, 6000)], &[(100, 6000)]),
        (&[(100, 6000)], &[(0, 6000)]),
        // The first piece overwrites what the second one needs.
        (&[(0, 8)], &[(4, 4), (100, 4)]),
        (&[(0, 4000), (4000, 4000)], &[(4000, 4000), (9000, 4000)]),
        (&[(0, 3), (10, 3), (20, 3)], &[(10, 3), (20, 3), (30, 3)]),
        // Round in a circle.
        (&[(0, 4), (4, 4)], &[(4, 4), (0, 4)]),
    ];
    for (from, to) in cases {
        let mut pair = pair();
        write_at(&mut pair.source, 0, 8192, 9);
        let piece = |i: &mut Local, parts: Parts| -> Vec<u8> {
            parts.iter().flat_map(|(lba, blocks)| content(i, *lba as u16, *blocks as usize)).collect()
        };
        let wanted = piece(&mut pair.source, from);
        let token = make(&mut pair.source, from)[38..550].to_vec();
        let using = using(&token, 0, to);
        exact(&mut pair.source, &out_cdb(0x11, 6, using.len()), &using, 0);
        assert!(piece(&mut pair.source, to) == wanted, "{from:?} to {to:?}");
        // Its blocks have changed, so it is gone.
        check(&mut pair.source, &out_cdb(0x11, 6, using.len()), &using, 0, (0x5, 0x23, 0x04));
    }
}

#[test]
fn a_large_circle_is_refused_before_anything_is_written() {
    let mut pair = pair();
    write_at(&mut pair.source, 0, 8192, 9);
    let token = make(&mut pair.source, &[(0, 4096), (4096, 4096)])[38..550].to_vec();
    let using = using(&token, 0, &[(4096, 4096), (0, 4096)]);
    ram(&pair.source_image).operations();
    check(&mut pair.source, &out_cdb(0x11, 6, using.len()), &using, 0, (0x5, 0x23, 0x00));
    let wrote = |operation: &Operation| matches!(operation, Operation::Write(..));
    assert!(!ram(&pair.source_image).operations().iter().any(wrote));
}

#[test]
fn a_segment_that_overlaps_itself_copies_what_was_there() {
    for (from, to) in [(0_u16, 300_u16), (300, 0), (0, 5000), (5000, 0)] {
        let mut pair = pair();
        write_at(&mut pair.source, 0, 11000, 9);
        let wanted = content(&mut pair.source, from, 6000);
        let copy = list(3, 0, &[cscd(0x5000_c500_0000_0001)], &[segment(0, 0, 6000, from.into(), to.into())]);
        exact(&mut pair.source, &out_cdb(0, 0, copy.len()), &copy, 0);
        assert!(content(&mut pair.source, to, 6000) == wanted, "{from} to {to}");
    }
}

#[test]
fn a_name_of_two_disks_is_the_name_of_none() {
    // Two disks that were given one name, and one more disk to copy from.
    let mut pair = pair();
    let third = Arc::new(Image::Recording(image()));
    pair.behind.attach(LUN_2, disk_of(third.clone(), named(0x5000_c500_0000_0002, "C"))).unwrap();
    let both = [cscd(0x5000_c500_0000_0001), cscd(0x5000_c500_0000_0002)];
    settle(&mut pair.source);
    write(&mut pair.source, 0, &blocks_of(1, 8));
    ram(&pair.target_image).operations();
    for segment in [segment(0, 1, 8, 0, 0), segment(1, 0, 8, 0, 0)] {
        let copy = list(3, 0, &both, &[segment]);
        check(&mut pair.source, &out_cdb(0, 0, copy.len()), &copy, 0, (0xa, 0x0d, 0x02));
    }
    // Also where the disk that is asked has that name; its own number says which one is meant.
    settle(&mut pair.target);
    let copy = list(3, 0, &both, &[segment(0, 1, 8, 0, 0)]);
    check(&mut pair.target, &out_cdb(0, 0, copy.len()), &copy, 0, (0xa, 0x0d, 0x02));
    assert_eq!((ram(&pair.target_image).operations(), ram(&third).operations()), (vec![], vec![]));
    let copy = list(3, 0, &both, &[segment(0, 0xffff, 8, 0, 0)]);
    exact(&mut pair.target, &out_cdb(0, 0, copy.len()), &copy, 0);
    assert_eq!(read(&mut pair.target, 0, 8), blocks_of(1, 8));
}

/// Disks without serial number have no name by vendor and product: others have the same.
#[test]
fn vendor_and_product_are_no_name() {
    let nameless = DiskConfig { serial: String::new(), wwn: Some(0x5000_c500_0000_0003), ..config() };
    let mut i = Local::new(&target_of(disk_of(Arc::new(Image::Recording(image())), nameless)));
    settle(&mut i);
    let data = good(&mut i, &[0x12, 1, 0x83, 0, 255, 0], &[], 255);
    let len = 4 + usize::from(data[3]);
    let mut at = 4;
    while at < len {
        assert_ne!(data[at + 1], 0x01, "a T10 vendor name");
        at += 4 + usize::from(data[at + 3]);
    }
}

#[test]
fn a_copy_from_another_disk_does_not_divide_compare_and_write() {
    let mut pair = pair();
    let io = Io::for_test();
    write(&mut pair.source, 0, &blocks_of(1, 1));
    write(&mut pair.target, 0, &blocks_of(3, 1));
    let copy =
        list(3, 0, &[cscd(0x5000_c500_0000_0001), cscd(0x5000_c500_0000_0002)], &[segment(1, 0, 1, 0, 0)]);
    ram(&pair.source_image).hold(true);
    let swap = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    let both = [blocks_of(1, 1), blocks_of(2, 1)].concat();
    let mut swapping = Running::start(&pair.source.nexus, &io, 1, &swap, &both);
    let mut copying =
        Running::start_at(&pair.target.nexus, &io, (2, LUN_1), &out_cdb(0, 0, copy.len()), &copy);
    assert_eq!(ram(&pair.source_image).arrived(), 1, "only what is compared has reached the image");
    ram(&pair.source_image).hold(false);
    assert!(copying.poll().is_none());
    assert_eq!(swapping.poll().unwrap().unwrap().status, Status::Good);
    assert_eq!(copying.poll().unwrap().unwrap().status, Status::Good);
    drop((copying, swapping));
    assert_eq!(read(&mut pair.source, 0, 1), blocks_of(3, 1));
}

#[test]
fn get_lba_status_is_bounded_and_lets_others_run() {
    let mut pair = pair();
    let io = Io::for_test();
    write_at(&mut pair.source, 0, 16384, 1);
    // Each question tells of one block: 16384 of them in a row, all mapped.
    ram(&pair.source_image).set_grain(BLOCK as u64);
    let cdb = |lba: u32| {
        let [a, b, c, d] = lba.to_be_bytes();
        [0x9e, 0x12, 0, 0, 0, 0, a, b, c, d, 0, 0, 0, 24, 0, 0]
    };
    let mut walking = Running::start(&pair.source.nexus, &io, 1, &cdb(0), &[]);
    assert!(ram(&pair.source_image).asked() <= 128, "{} at once", ram(&pair.source_image).asked());
    // A poll more each time somebody else had his turn.
    let mut polls = 1;
    while walking.poll().is_none() {
        polls += 1;
    }
    drop(walking);
    assert!(polls > 10 && ram(&pair.source_image).asked() <= 5000, "{}", ram(&pair.source_image).asked());
    // What it tells of is true, and asking on gets to the end.
    let (mut lba, mut commands) = (0_u32, 0);
    while lba < 16384 {
        let data = exact(&mut pair.source, &cdb(lba), &[], 24);
        assert_eq!((&data[..4], &data[12..16]), (&20_u32.to_be_bytes()[..], &lba.to_be_bytes()[..]));
        let blocks = u32::from_be_bytes(data[16..20].try_into().unwrap());
        assert!(blocks > 0 && data[20] == 0);
        (lba, commands) = (lba + blocks, commands + 1);
    }
    assert!((2..=8).contains(&commands), "{commands}");
}

/// What is read without waiting for the host, as holes of a qcow2 image are, leaves others their turn as well.
#[test]
fn verify_lets_others_run() {
    let mut pair = pair();
    let io = Io::for_test();
    ram(&pair.source_image).set_geometry(|geometry| geometry.len = 64 << 20);
    settle(&mut pair.source);
    // VERIFY (16) of 128 Ki blocks.
    let cdb = [0x8f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0];
    let mut verifying = Running::start(&pair.source.nexus, &io, 1, &cdb, &[]);
    let mut polls = 1;
    while verifying.poll().is_none() {
        polls += 1;
    }
    assert!(polls >= 32, "{polls}");
}

/// Segments that move nothing cost the search for their disks.
#[test]
fn segments_let_others_run() {
    let pair = pair();
    let io = Io::for_test();
    let copy = list(3, 0, &[cscd(0x5000_c500_0000_0001)], &vec![segment(0, 0, 0, 0, 0); 64]);
    let mut copying = Running::start(&pair.source.nexus, &io, 1, &out_cdb(0, 0, copy.len()), &copy);
    let mut polls = 1;
    while copying.poll().is_none() {
        polls += 1;
    }
    assert!(polls >= 32, "{polls}");
}

/// What a write costs does not grow with what copies write elsewhere.
#[test]
fn pieces_of_a_copy_are_told_of_once() {
    let mut pair = pair();
    let io = Io::for_test();
    let parts = |from: u64| (0..256).map(|part| (from + 2 * part, 1)).collect::<Vec<_>>();
    let token = make(&mut pair.source, &parts(0))[38..550].to_vec();
    let using = using(&token, 0, &parts(5000));
    ram(&pair.source_image).hold(true);
    let copying = Running::start(&pair.source.nexus, &io, 1, &out_cdb(0x11, 6, using.len()), &using);
    assert_eq!(pair.behind.copies_writing(Lun::default()), 1);
    drop(copying);
    assert_eq!(pair.behind.copies_writing(Lun::default()), 0);
}
