//! Disks with protection information: no command takes corrupt blocks for good ones, and none makes them look good.

use std::sync::Arc;

use super::copies::{cscd, list, make, out_cdb, segment, using};
use super::local::{Local, block_on, disk_of, target_of};
use super::management::Running;
use super::nexuses::ram;
use super::{BLOCK, BLOCKS, Initiator, RecordingDisk, blocks_of, check, config, exact, image, settle};
use crate::iothread::Io;
use crate::scsi::{Disk, DiskConfig, Image, LogicalUnit, Lun, ProtectionType, Status};

const LUN_1: Lun = Lun([0, 1, 0, 0, 0, 0, 0, 0]);
const NAMES: [u64; 2] = [0x5000_c500_0000_0001, 0x5000_c500_0000_0002];
/// GUARD CHECK FAILED, as the disk itself says it.
const GUARD: (u8, u8, u8) = (0xb, 0x10, 0x01);
const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0];

/// A protected disk with a corrupt block 3 at LUN 0, a plain one at LUN 1.
struct Bench {
    protected: Local,
    plain: Local,
    image: Arc<Image>,
}

impl Bench {
    fn new() -> Self {
        let named = |index: usize, serial: &str| DiskConfig {
            wwn: Some(NAMES[index]),
            serial: serial.into(),
            ..config()
        };
        let image = Arc::new(Image::Recording(image()));
        let store = Arc::new(Image::Recording(RecordingDisk::new(BLOCKS as usize * 8)));
        let disk = Disk::with_protection(image.clone(), named(0, "P"), ProtectionType::Type1, store).unwrap();
        let target = target_of(LogicalUnit::Disk(disk));
        let plain = Arc::new(Image::Recording(super::image()));
        target.attach(LUN_1, disk_of(plain, named(1, "Q"))).unwrap();
        let [mut protected, mut plain] = [(), ()].map(|()| Local::new(&target));
        plain.lun = LUN_1;
        settle(&mut protected);
        settle(&mut plain);
        exact(&mut protected, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0], &blocks_of(1, 8), 0);
        ram(&image).poke(3 * BLOCK + 100, &[0x55, 0xaa]);
        Self { protected, plain, image }
    }

    /// What lies in the corrupt blocks, right or not.
    fn raw(&self) -> Vec<u8> {
        let buffer = crate::mem::SgList::host(8 * BLOCK, 512).unwrap();
        let into = crate::mem::ToGuest::new(buffer.window(0, u64::MAX));
        let io = Io::for_test();
        use crate::storage::BlockBackend;
        block_on(self.image.read(&io, crate::storage::ByteOffset(0), into)).unwrap();
        let mut bytes = vec![0; 8 * BLOCK];
        crate::mem::FromGuest::new(buffer).read_at(0, &mut bytes);
        bytes
    }

    /// The block is known to be corrupt, as before.
    fn still_corrupt(&mut self, what: &str) {
        let outcome = self.protected.command(&READ, &[], 8 * BLOCK);
        let sense = &outcome.sense;
        assert_eq!((outcome.status, sense[2] & 0xf, sense[12], sense[13]), (2, 0xb, 0x10, 1), "{what}");
        assert_eq!(sense[3..7], [0, 0, 0, 3], "{what}: which block");
    }
}

#[test]
fn copies_of_corrupt_blocks_end_with_an_error() {
    let mut bench = Bench::new();
    // To itself and to a plain disk: nothing gets there.
    for target in [0, 1] {
        let copy = list(3, 0, &NAMES.map(cscd), &[segment(0, target, 8, 0, 1000)]);
        check(&mut bench.protected, &out_cdb(0, 0, copy.len()), &copy, 0, (0xa, 0x0d, 0x01));
    }
    let read = [0x28, 0, 0, 0, 1000_u16.to_be_bytes()[0], 1000_u16.to_be_bytes()[1], 0, 0, 8, 0];
    for disk in [&mut bench.protected, &mut bench.plain] {
        assert_eq!(exact(disk, &read, &[], 8 * BLOCK), vec![0; 8 * BLOCK]);
    }
    let token = make(&mut bench.protected, &[(0, 8)])[38..550].to_vec();
    let using = using(&token, 0, &[(1000, 8)]);
    let sense = check(&mut bench.plain, &out_cdb(0x11, 6, using.len()), &using, 0, GUARD);
    assert_eq!(sense[3..7], [0, 0, 0, 3]);
    check(&mut bench.protected, &out_cdb(0x11, 6, using.len()), &using, 0, GUARD);
    for disk in [&mut bench.protected, &mut bench.plain] {
        assert_eq!(exact(disk, &read, &[], 8 * BLOCK), vec![0; 8 * BLOCK]);
    }
    bench.still_corrupt("copies");
}

#[test]
fn good_blocks_are_copied_and_get_guards_of_their_own() {
    let mut bench = Bench::new();
    exact(&mut bench.plain, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0], &blocks_of(7, 8), 0);
    let there_and_on = [segment(1, 0, 8, 0, 500), segment(0, 0, 8, 500, 700), segment(0, 1, 8, 700, 900)];
    let copy = list(3, 0, &NAMES.map(cscd), &there_and_on);
    exact(&mut bench.protected, &out_cdb(0, 0, copy.len()), &copy, 0);
    let read = |lba: u16| [0x28, 0, 0, 0, lba.to_be_bytes()[0], lba.to_be_bytes()[1], 0, 0, 8, 0];
    assert_eq!(exact(&mut bench.protected, &read(500), &[], 8 * BLOCK), blocks_of(7, 8));
    assert_eq!(exact(&mut bench.protected, &read(700), &[], 8 * BLOCK), blocks_of(7, 8));
    assert_eq!(exact(&mut bench.plain, &read(900), &[], 8 * BLOCK), blocks_of(7, 8));
    // A guard that goes with what was copied, not with whatever is there.
    ram(&bench.image).poke(502 * BLOCK, &[0xff, 0x00, 0xff]);
    check(&mut bench.protected, &[0x28, 0, 0, 0, 0x01, 0xf6, 0, 0, 1, 0], &[], BLOCK, GUARD);
}

#[test]
fn what_reads_before_it_writes_checks_what_it_read() {
    let mut bench = Bench::new();
    let raw = bench.raw();
    let block = raw[3 * BLOCK..4 * BLOCK].to_vec();
    // ORWRITE of nothing would give the corrupt block a good guard.
    check(&mut bench.protected, &[0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0], &[0; BLOCK], 0, GUARD);
    bench.still_corrupt("ORWRITE");
    // COMPARE AND WRITE and VERIFY that expect just the corrupt bytes.
    let both = [block.clone(), vec![9; BLOCK]].concat();
    check(&mut bench.protected, &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0], &both, 0, GUARD);
    bench.still_corrupt("COMPARE AND WRITE");
    check(&mut bench.protected, &[0x2f, 0x02, 0, 0, 0, 3, 0, 0, 1, 0], &block, 0, GUARD);
    check(&mut bench.protected, &[0x2f, 0x00, 0, 0, 0, 0, 0, 0, 8, 0], &[], 0, GUARD);
    assert_eq!(bench.raw(), raw);
    // To write it anew is what mends it.
    exact(&mut bench.protected, &[0x2a, 0, 0, 0, 0, 3, 0, 0, 1, 0], &[9; BLOCK], 0);
    exact(&mut bench.protected, &[0x2f, 0x00, 0, 0, 0, 0, 0, 0, 8, 0], &[], 0);
}

/// Data and guards are zeroed as one: a read beside it sees both or none.
#[test]
fn a_read_beside_an_unmap_finds_no_wrong_guard() {
    let bench = Bench::new();
    let io = Io::for_test();
    let mut unmap = vec![0, 22, 0, 16, 0, 0, 0, 0];
    unmap.extend(0_u64.to_be_bytes());
    unmap.extend([0, 0, 0, 8, 0, 0, 0, 0]);
    ram(&bench.image).hold(true);
    let mut reading = Running::start(&bench.protected.nexus, &io, 2, &READ, &[]);
    let mut clearing =
        Running::start(&bench.protected.nexus, &io, 1, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &unmap);
    ram(&bench.image).hold(false);
    // The read has begun and has the guards still to come; whether the data is zeroed meanwhile is the question.
    let early = clearing.poll();
    let reply = reading.poll().unwrap().unwrap();
    let cleared = early.or_else(|| clearing.poll()).unwrap().unwrap();
    assert_eq!((cleared.status, reply.status), (Status::Good, Status::Good), "{:?}", reply.sense);
}

#[test]
fn a_write_that_brings_its_guards_ends_a_token() {
    let mut bench = Bench::new();
    exact(&mut bench.protected, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0], &blocks_of(1, 8), 0);
    let token = make(&mut bench.protected, &[(0, 8)])[38..550].to_vec();
    // WRPROTECT 011b: nothing of the tuple is checked.
    exact(&mut bench.protected, &[0x2a, 0x60, 0, 0, 0, 5, 0, 0, 1, 0], &[3; BLOCK + 8], 0);
    let using = using(&token, 0, &[(0, 8)]);
    check(&mut bench.plain, &out_cdb(0x11, 6, using.len()), &using, 0, (0x5, 0x23, 0x04));
}
