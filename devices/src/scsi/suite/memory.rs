//! How much of the host's memory commands hold, whatever a guest sends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::copies::{cscd, list, make, out_cdb, segment, using};
use super::local::{Local, disk_of, target_of};
use super::management::{Reply, Running};
use super::nexuses::ram;
use super::{BLOCK, BLOCKS, RecordingDisk, Request, blocks_of, config, exact, image, settle};
use crate::iothread::Io;
use crate::mem::{SgList, ToGuest};
use crate::scsi::{
    Cdb, DataBuffers, Disk, DiskConfig, Image, LogicalUnit, Lun, Nexus, ProtectionType, ScsiRequest, Status,
    Tag, Target, TaskAttribute,
};
use crate::testing::allocated_bytes;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// What a command allocates for itself at most, in bytes.
const BESIDE: i64 = 16 << 10;
/// Blocks of a megabyte.
const MIB_BLOCKS: u16 = 2048;

fn name(number: u8) -> u64 {
    0x5000_c500_0000_0000 | u64::from(number)
}

fn lun(number: u8) -> Lun {
    Lun([0, number, 0, 0, 0, 0, 0, 0])
}

/// Some disks, and an initiator whose commands are sent by hand.
struct Disks {
    images: Vec<Arc<Image>>,
    target: Arc<Target>,
    nexus: Arc<Nexus>,
    io: Io,
}

impl Disks {
    fn new(count: u8) -> Self {
        let images: Vec<_> = (0..count).map(|_| Arc::new(Image::Recording(image()))).collect();
        let target = Target::new();
        for (number, image) in (0..).zip(&images) {
            let config = DiskConfig { wwn: Some(name(number)), ..config() };
            target.attach(lun(number), disk_of(image.clone(), config)).unwrap();
        }
        let disks = Self { images, nexus: Nexus::new(target.clone(), None), target, io: Io::for_test() };
        for number in 0..count {
            settle(&mut disks.initiator(number));
        }
        disks
    }

    fn initiator(&self, number: u8) -> Local {
        let mut local = Local::new(&self.target);
        (local.nexus, local.lun) = (self.nexus.clone(), lun(number));
        local
    }

    fn held(&self) -> u64 {
        self.target.memory().held()
    }

    /// EXTENDED COPY of so many blocks from one disk to another: its status if it is over at once.
    fn copy(&self, from: u8, to: u8, blocks: u16) -> Result<Status, Sent<'_>> {
        let both = [cscd(name(from)), cscd(name(to))];
        let bytes = list(0, 3, &both, &[segment(0, 1, blocks, 0, 4000)]);
        self.send(from, &out_cdb(0, 0, bytes.len()), &bytes)
    }

    fn send(&self, number: u8, cdb: &[u8], out: &[u8]) -> Result<Status, Sent<'_>> {
        let mut request = Request::new(cdb, out, BLOCK);
        request.lun = lun(number);
        let mut sent = Sent { command: Box::pin(request.send(&self.nexus, &self.io)), bytes: 0 };
        let before = allocated_bytes();
        match sent.poll() {
            Some(reply) => Ok(reply.unwrap().status),
            // The buffers are the initiator's.
            None => Err(Sent { bytes: allocated_bytes() - before - (out.len() + BLOCK) as i64, ..sent }),
        }
    }

    /// Sends commands until one is over at once; the others, and the status of that one.
    fn until_over<'a>(&'a self, send: impl Fn() -> Result<Status, Sent<'a>>) -> (Vec<Sent<'a>>, Status) {
        let mut sent = Vec::new();
        loop {
            match send() {
                Ok(status) => return (sent, status),
                Err(one) => sent.push(one),
            }
            assert!(sent.len() < 4000, "no bound at {} bytes", self.held());
        }
    }
}

/// A command under way.
struct Sent<'a> {
    command: Pin<Box<dyn Future<Output = (Reply, Vec<u8>)> + 'a>>,
    /// What it has allocated until it waits.
    bytes: i64,
}

impl Sent<'_> {
    fn poll(&mut self) -> Option<Reply> {
        match self.command.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready((reply, _)) => Some(reply),
            Poll::Pending => None,
        }
    }
}

#[test]
fn copies_hold_a_bounded_number_of_bytes() {
    let disks = Disks::new(2);
    ram(&disks.images[0]).hold(true);
    let (mut copies, status) = disks.until_over(|| disks.copy(0, 1, MIB_BLOCKS));
    assert_eq!(status, Status::Busy);
    // Half of 64 MiB: 16 of a megabyte, 8 MiB in pieces of 64 KiB, as much in those of 4 KiB.
    assert_eq!((disks.held(), copies.len()), (32 * MIB, 16 + 128 + 2048));
    ram(&disks.images[0]).hold(false);
    for copy in &mut copies {
        assert_eq!(copy.poll().expect("over").unwrap().status, Status::Good);
    }
    assert_eq!(disks.held(), 0);
}

#[test]
fn what_began_small_becomes_larger() {
    let disks = Disks::new(2);
    exact(&mut disks.initiator(0), &[0x2a, 0, 0, 0, 0, 0, 0, 0, 64, 0], &blocks_of(5, 64), 0);
    ram(&disks.images[0]).hold(true);
    let (mut all, _) = disks.until_over(|| disks.copy(0, 1, MIB_BLOCKS));
    // The last has 4 KiB; the others go, and it goes on with what it needs.
    let mut last = all.pop().unwrap();
    drop(all);
    assert_eq!(disks.held(), 4 * KIB);
    ram(&disks.images[1]).operations();
    ram(&disks.images[0]).hold(false);
    assert_eq!(last.poll().expect("over").unwrap().status, Status::Good);
    assert_eq!(ram(&disks.images[1]).operations().len(), 2, "4 KiB, and the rest at once");
    let there = exact(&mut disks.initiator(1), &[0x28, 0, 0, 0, 0x0f, 0xa0, 0, 0, 64, 0], &[], 64 * BLOCK);
    assert_eq!(there, blocks_of(5, 64));
}

#[test]
fn a_disk_that_hangs_takes_nothing_from_copies_between_others() {
    for (from, to) in [(0, 1), (1, 0)] {
        let disks = Disks::new(3);
        // Disk 1 hangs, as source or target; disk 0 has copies with it.
        ram(&disks.images[1]).hold(true);
        let (_hung, status) = disks.until_over(|| disks.copy(from, to, MIB_BLOCKS));
        assert_eq!((disks.held(), status), (32 * MIB, Status::Busy));
        for (from, to) in [(0, 2), (2, 0), (0, 0), (2, 2)] {
            let copied = disks.copy(from, to, MIB_BLOCKS);
            assert_eq!(copied.ok(), Some(Status::Good), "{from} to {to}");
        }
        assert_eq!(disks.held(), 32 * MIB);
    }
}

#[test]
fn what_must_be_read_at_once_is_busy_without_memory() {
    let disks = Disks::new(2);
    let mut initiator = disks.initiator(1);
    let token = make(&mut initiator, &[(0, 1024), (1024, 1024)])[38..550].to_vec();
    // Round in a circle, which has no order; and what has one.
    let circle = using(&token, 0, &[(1024, 1024), (0, 1024)]);
    let line = using(&token, 0, &[(1024, 1024), (5000, 1024)]);
    ram(&disks.images[0]).hold(true);
    let (hung, _) = disks.until_over(|| disks.copy(0, 0, MIB_BLOCKS));
    let send = |list: &[u8]| disks.send(1, &out_cdb(0x11, 6, list.len()), list).ok();
    assert_eq!(send(&circle), Some(Status::Busy));
    assert_eq!(send(&line), Some(Status::Good));
    drop(hung);
    let token = make(&mut initiator, &[(0, 1024), (1024, 1024)])[38..550].to_vec();
    let circle = using(&token, 0, &[(1024, 1024), (0, 1024)]);
    assert_eq!(send(&circle), Some(Status::Good));
    assert_eq!(disks.held(), 0);
}

/// What each command holds while it waits for the disk, and that nothing of it stays.
#[test]
fn each_command_holds_what_is_said_of_it() {
    let disks = Disks::new(1);
    let long = blocks_of(1, 512);
    let block = blocks_of(2, 1);
    let copy = list(0, 3, &[cscd(name(0))], &[segment(0, 0, MIB_BLOCKS, 0, 4000)]);
    // As many ranges as there may be, of a block each.
    let parts = |from: u64| (0..256).map(|part| (from + 2 * part, 1)).collect::<Vec<_>>();
    let token = make(&mut disks.initiator(0), &parts(0))[38..550].to_vec();
    let write_using_token = using(&token, 0, &parts(5000));
    let commands: &[(&str, &[u8], &[u8], u64)] = &[
        // A block of each range, and 80 bytes of lists.
        ("token", &out_cdb(0x11, 6, write_using_token.len()), &write_using_token, 256 * 512 + 512 * 80),
        ("READ", &[0x28, 0, 0, 0, 0, 0, 0, 2, 0, 0], &[], 0),
        ("WRITE", &[0x2a, 0, 0, 0, 0, 0, 0, 2, 0, 0], &long, 0),
        ("VERIFY", &[0x2f, 0, 0, 0, 0, 0, 0, 2, 0, 0], &[], 64 * KIB),
        ("VERIFY of a block", &[0x2f, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], 512),
        ("WRITE AND VERIFY", &[0x2e, 0, 0, 0, 0, 0, 0, 2, 0, 0], &long, 64 * KIB),
        ("COMPARE AND WRITE", &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0], &long, 64 * KIB),
        ("ORWRITE", &[0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0], &long, 64 * KIB),
        ("WRITE SAME", &[0x41, 0, 0, 0, 0, 0, 0, 2, 0, 0], &block, 64 * KIB),
        ("EXTENDED COPY", &out_cdb(0, 0, copy.len()), &copy, MIB),
    ];
    for (name, cdb, out, held) in commands {
        ram(&disks.images[0]).hold(true);
        let sent = disks.send(0, cdb, out).err().unwrap_or_else(|| panic!("{name}: over"));
        assert_eq!(disks.held(), *held, "{name}");
        let beside = sent.bytes - *held as i64;

        assert!(beside < BESIDE, "{name}: {beside} bytes beside");
        drop(sent);
        assert_eq!(disks.held(), 0, "{name}");
    }
    // Thousands of them.
    let (verifying, status) = disks.until_over(|| disks.send(0, commands[3].1, &[]));
    assert_eq!((disks.held(), status), (32 * MIB, Status::Busy));
    assert_eq!(verifying.len(), 384 + 2048, "24 MiB in pieces of 64 KiB, the rest in those of 4");
}

#[test]
fn protection_information_is_read_and_written_with_the_least_memory() {
    let images = [BLOCK, 8].map(|len| Arc::new(Image::Recording(RecordingDisk::new(len * BLOCKS as usize))));
    let [data, store] = images.clone();
    let disk = Disk::with_protection(data, config(), ProtectionType::Type1, store).unwrap();
    let target = target_of(LogicalUnit::Disk(disk));
    let mut initiator = Local::new(&target);
    let (nexus, io, buffer) =
        (initiator.nexus.clone(), Io::for_test(), SgList::host(256 << 10, 4096).unwrap());
    settle(&mut initiator);
    let long = blocks_of(1, 512);
    let (write, read) = ([0x2a, 0, 0, 0, 0, 0, 0, 2, 0, 0], [0x28, 0, 0, 0, 0, 0, 0, 2, 0, 0]);
    exact(&mut initiator, &write, &long, 0);
    ram(&images[0]).hold(true);
    // All into the same memory.
    let start = |tag| {
        let mut command = Box::pin(nexus.execute(&io, reading(&read, tag, &buffer)));
        assert!(command.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        command
    };
    let reads: Vec<_> = (0..3000).map(start).collect();
    // The little that each has beyond the bound: eight blocks and their tuples.
    let (piece, least) = (65 * KIB, 4 * KIB + 64);
    let pieces = 24 * MIB / piece;
    let small = (32 * MIB - pieces * piece) / least;
    let beyond = 3000 - pieces - small;
    let held = target.memory().held();
    assert_eq!(held, pieces * piece + (small + beyond) * least);
    assert!(held < 32 * MIB + 3000 * least, "{held}");
    drop(reads);
    assert_eq!(target.memory().held(), 0);
    let mut writing = Running::start(&nexus, &io, 1, &write, &long);
    assert_eq!(target.memory().held(), piece);
    ram(&images[0]).hold(false);
    assert_eq!(writing.poll().unwrap().unwrap().status, Status::Good);
    drop(writing);
    assert_eq!(exact(&mut initiator, &read, &[], 512 * BLOCK), long);
    assert_eq!(target.memory().held(), 0);
}

fn reading(cdb: &[u8], tag: u64, buffer: &SgList) -> ScsiRequest {
    ScsiRequest {
        tag: Tag(tag),
        lun: Lun::default(),
        cdb: Cdb::new(cdb),
        attribute: TaskAttribute::Simple,
        priority: 0,
        data: DataBuffers::to_initiator(ToGuest::new(buffer.window(0, buffer.len()))),
    }
}
