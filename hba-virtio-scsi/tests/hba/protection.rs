//! Protection information (T10 PI): apart from the data, as Linux's driver sends it with VIRTIO_SCSI_F_T10_PI, and between
//! the blocks without.

use std::collections::BTreeMap;
use std::sync::Arc;

use devices::scsi::{Disk, Image, LogicalUnit, Lun, Nexus, ProtectionType, Target, suite};
use hba_virtio_scsi::Options;

use crate::guest::{Guest, Reply, VERSION_1, into, lun, out};

/// VIRTIO_SCSI_F_T10_PI
const T10_PI: u64 = 1 << 3;
const BLOCK: usize = 512;

struct Bench {
    guest: Guest,
    image: Arc<Image>,
}

/// The guard, bit by bit (SBC-4, 4.21.4).
fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(
            crc ^ u16::from(*byte) << 8,
            |crc: u16, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x8bb7 }
            },
        )
    })
}

fn tuple(guard: u16, application: u16, reference: u32) -> Vec<u8> {
    [&guard.to_be_bytes()[..], &application.to_be_bytes(), &reference.to_be_bytes()].concat()
}

/// Right tuples for `data` from block `lba` on.
fn tuples(data: &[u8], lba: u32) -> Vec<u8> {
    (lba..).zip(data.chunks(BLOCK)).flat_map(|(lba, block)| tuple(crc(block), 0x1234, lba)).collect()
}

fn data(blocks: usize, seed: u8) -> Vec<u8> {
    (0..blocks * BLOCK).map(|i| (i / BLOCK) as u8 ^ (i % 251) as u8 ^ seed).collect()
}

/// READ or WRITE (10) with RDPROTECT or WRPROTECT.
fn cdb(opcode: u8, protect: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let ([a, b, c, d], [e, f]) = (lba.to_be_bytes(), blocks.to_be_bytes());
    [opcode, protect << 5, a, b, c, d, 0, e, f, 0]
}

const READ: u8 = 0x28;
const WRITE: u8 = 0x2a;

impl Bench {
    fn new(kind: Option<ProtectionType>, features: u64) -> Self {
        let image = Arc::new(Image::Recording(suite::image()));
        // Eight bytes a block.
        let store = Arc::new(Image::Recording(suite::RecordingDisk::new(suite::BLOCKS as usize * 8)));
        let disk = match kind {
            Some(kind) => Disk::with_protection(image.clone(), suite::config(), kind, store).unwrap(),
            None => Disk::new(image.clone(), suite::config()).unwrap(),
        };
        let target = Target::new();
        target.attach(Lun([0; 8]), LogicalUnit::Disk(disk)).unwrap();
        let targets = BTreeMap::from([(0, Nexus::new(target, None))]);
        let options = Options { protection: true, ..Options::default() };
        let mut guest = Guest::new(options, 1, targets);
        guest.start(VERSION_1 | features, 16);
        let mut bench = Self { guest, image };
        bench.send(&[0; 6], &[], &[], 0, 0);
        bench
    }

    /// Sends a command with protection information in buffers of its own, if there is the feature; returns what came
    /// with the data.
    fn send(
        &mut self,
        cdb: &[u8],
        pi_out: &[u8],
        data_out: &[u8],
        pi_in: usize,
        data_in: usize,
    ) -> (Reply, Vec<u8>) {
        let guest = &mut self.guest;
        guest.reset_heap();
        if guest.features & T10_PI == 0 {
            assert!(pi_out.is_empty() && pi_in == 0);
            return (guest.command(2, lun(0, 0), cdb, data_out, data_in), vec![]);
        }
        let mut head = lun(0, 0).to_vec();
        head.extend(7_u64.to_le_bytes());
        head.extend([0; 3]);
        head.extend((pi_out.len() as u32).to_le_bytes());
        head.extend((pi_in as u32).to_le_bytes());
        head.extend(cdb);
        head.resize(19 + 8 + 32, 0);
        let request = guest.alloc_with(&head);
        let (pi_from, from) = (guest.alloc_with(pi_out), guest.alloc_with(data_out));
        let response = guest.alloc_with(&[0xee; 108]);
        let (pi_to, to) = (guest.alloc_with(&vec![0xcc; pi_in]), guest.alloc_with(&vec![0xdd; data_in]));
        guest.add(
            2,
            &[
                out(request, head.len() as u32),
                out(pi_from, pi_out.len() as u32),
                out(from, data_out.len() as u32),
                into(response, 108),
                into(pi_to, pi_in as u32),
                into(to, data_in as u32),
            ],
        );
        guest.kick(2);
        let (_, used) = guest.wait_used(2);
        (guest.reply(response, used, to, data_in), guest.peek(pi_to, pi_in))
    }

    fn write(&mut self, protect: u8, lba: u32, pi: &[u8], data: &[u8]) -> Reply {
        self.send(&cdb(WRITE, protect, lba, (data.len() / BLOCK) as u16), pi, data, 0, 0).0
    }

    fn read(&mut self, protect: u8, lba: u32, blocks: usize) -> (Reply, Vec<u8>) {
        let pi = if protect == 0 { 0 } else { 8 * blocks };
        self.send(&cdb(READ, protect, lba, blocks as u16), &[], &[], pi, BLOCK * blocks)
    }
}

#[track_caller]
fn good(reply: &Reply) {
    assert_eq!((reply.response, reply.status, reply.residual), (0, 0, 0), "{:02x?}", reply.sense);
}

/// ABORTED COMMAND with this additional code at this block.
#[track_caller]
fn refused(reply: &Reply, code: (u8, u8), lba: u8) {
    assert_eq!((reply.response, reply.status), (0, 2));
    assert_eq!((reply.sense[2] & 0xf, reply.sense[12], reply.sense[13]), (0xb, code.0, code.1));
    assert_eq!(reply.sense[3..7], [0, 0, 0, lba], "INFORMATION");
}

const GUARD: (u8, u8) = (0x10, 0x01);
const REFERENCE: (u8, u8) = (0x10, 0x03);

#[test]
fn the_disk_says_what_it_has() {
    for (kind, capacity, checks) in
        [(None, 0, 0), (Some(ProtectionType::Type1), 0x01, 0x05), (Some(ProtectionType::Type3), 0x05, 0x24)]
    {
        let mut bench = Bench::new(kind, T10_PI);
        let mut read_capacity = [0; 16];
        (read_capacity[0], read_capacity[1], read_capacity[13]) = (0x9e, 0x10, 32);
        assert_eq!(bench.send(&read_capacity, &[], &[], 0, 32).0.data[12], capacity, "P_TYPE, PROT_EN");
        let inquiry = bench.send(&[0x12, 0, 0, 0, 96, 0], &[], &[], 0, 96).0;
        assert_eq!(inquiry.data[5] & 1, u8::from(kind.is_some()), "PROTECT");
        let extended = bench.send(&[0x12, 1, 0x86, 0, 64, 0], &[], &[], 0, 64).0;
        assert_eq!(extended.data[4], checks, "SPT, GRD_CHK, REF_CHK");
        let usage = bench.send(&[0xa3, 0x0c, 1, 0x28, 0, 0, 0, 0, 0, 64, 0, 0], &[], &[], 0, 64).0;
        assert_eq!(usage.data[5] >> 5, if kind.is_some() { 7 } else { 0 }, "RDPROTECT is looked at");
    }
}

#[test]
fn tuples_are_checked_and_kept() {
    let mut bench = Bench::new(Some(ProtectionType::Type1), T10_PI);
    // More than is moved at a time within.
    let (data, lba) = (data(200, 3), 40);
    let pi = tuples(&data, lba);
    good(&bench.write(1, lba, &pi, &data));
    let (reply, back) = bench.read(1, lba, 200);
    good(&reply);
    assert!(reply.data == data && back == pi);
    let (reply, _) = bench.read(0, lba, 200);
    good(&reply);
    assert!(reply.data == data, "without the tuples");
    assert_eq!(reply.used as usize, 108 + data.len());
}

#[test]
fn wrong_tuples_are_refused_as_far_as_they_are_checked() {
    let mut bench = Bench::new(Some(ProtectionType::Type1), T10_PI);
    let data = data(4, 9);
    let right = tuples(&data, 8);
    let (mut guard, mut reference) = (right.clone(), right.clone());
    guard[17] ^= 1;
    reference[31] ^= 1;
    for protect in [1, 4, 5] {
        refused(&bench.write(protect, 8, &guard, &data), GUARD, 10);
    }
    for protect in [1, 2, 5] {
        refused(&bench.write(protect, 8, &reference, &data), REFERENCE, 11);
    }
    let (reply, pi) = bench.read(1, 10, 2);
    good(&reply);
    assert_eq!((reply.data, pi), (vec![0; 1024], vec![0xff; 16]), "not written");
    good(&bench.write(4, 8, &reference, &data));
    good(&bench.write(2, 8, &guard, &data));
    // Reading finds it, again as far as it looks, and hands over what comes before.
    for protect in [0, 1, 4] {
        let (reply, _) = bench.read(protect, 8, 4);
        refused(&reply, GUARD, 10);
        assert_eq!((reply.residual, &reply.data[..1024]), (1024, &data[..1024]));
    }
    for protect in [2, 3] {
        let (reply, pi) = bench.read(protect, 8, 4);
        good(&reply);
        assert_eq!((reply.data, pi), (data.clone(), guard.clone()));
    }
    for protect in [6, 7] {
        let (reply, _) = bench.read(protect, 8, 1);
        assert_eq!((reply.status, reply.sense[2] & 0xf, reply.sense[12]), (2, 5, 0x24), "reserved");
        assert_eq!(reply.sense[15..18], [0xcf, 0, 1], "byte 1 from bit 7");
    }
}

#[test]
fn plain_writes_make_tuples_and_zeros_forget_them() {
    for (kind, reference) in [(ProtectionType::Type1, 77), (ProtectionType::Type3, u32::MAX)] {
        let mut bench = Bench::new(Some(kind), T10_PI);
        let data = data(1, 1);
        good(&bench.write(0, 77, &[], &data));
        let (reply, pi) = bench.read(1, 77, 1);
        good(&reply);
        assert_eq!(pi, tuple(crc(&data), 0, reference));
        // WRITE SAME (16) with UNMAP and NDOB.
        let mut zero = [0; 16];
        (zero[0], zero[1], zero[9], zero[13]) = (0x93, 0x09, 77, 1);
        good(&bench.send(&zero, &[], &[], 0, 0).0);
        let (reply, pi) = bench.read(1, 77, 1);
        good(&reply);
        assert_eq!((reply.data, pi), (vec![0; BLOCK], vec![0xff; 8]));
    }
}

#[test]
fn a_medium_that_changed_by_itself_is_found_out() {
    let mut bench = Bench::new(Some(ProtectionType::Type1), T10_PI);
    let data = data(2, 1);
    good(&bench.write(0, 0, &[], &data));
    let Image::Recording(image) = &*bench.image else { panic!("the image of the suite") };
    image.poke(BLOCK + 100, &[!data[BLOCK + 100]]);
    refused(&bench.read(0, 0, 2).0, GUARD, 1);
    good(&bench.read(3, 0, 2).0);
}

#[test]
fn type_3_leaves_the_reference_tag_to_the_application() {
    let mut bench = Bench::new(Some(ProtectionType::Type3), T10_PI);
    let data = data(1, 5);
    let pi = tuple(crc(&data), 0xbeef, 0xdead_beef);
    good(&bench.write(1, 3, &pi, &data));
    assert_eq!(bench.read(1, 3, 1).1, pi);
    refused(&bench.write(1, 3, &tuple(crc(&data) ^ 1, 0, 0), &data), GUARD, 3);
    // Only both tags together disable the checks here.
    good(&bench.write(3, 3, &tuple(0, 0xffff, 0), &data));
    refused(&bench.read(1, 3, 1).0, GUARD, 3);
    good(&bench.write(3, 3, &tuple(0, 0xffff, u32::MAX), &data));
    good(&bench.read(1, 3, 1).0);
}

#[test]
fn without_the_feature_tuples_lie_between_the_blocks() {
    let mut bench = Bench::new(Some(ProtectionType::Type1), 0);
    let data = data(3, 8);
    let pi = tuples(&data, 20);
    let mixed: Vec<u8> =
        data.chunks(BLOCK).zip(pi.chunks(8)).flat_map(|(block, tuple)| [block, tuple].concat()).collect();
    good(&bench.send(&cdb(WRITE, 1, 20, 3), &[], &mixed, 0, 0).0);
    let (reply, _) = bench.send(&cdb(READ, 1, 20, 3), &[], &[], 0, 3 * 520);
    good(&reply);
    assert_eq!((reply.data, reply.used), (mixed, 108 + 3 * 520));
    let (reply, _) = bench.send(&cdb(READ, 1, 20, 3), &[], &[], 0, 3 * 512);
    assert_eq!(reply.response, 1, "OVERRUN: no room for the tuples");
    let (reply, _) = bench.send(&cdb(READ, 0, 20, 3), &[], &[], 0, 3 * 520);
    assert_eq!((reply.response, reply.residual), (0, 24));
    assert_eq!(reply.data[..1536], data);
}

#[test]
fn buffers_that_are_too_short() {
    let mut bench = Bench::new(Some(ProtectionType::Type1), T10_PI);
    let data = data(2, 8);
    let pi = tuples(&data, 0);
    let reply = bench.send(&cdb(WRITE, 1, 0, 2), &pi[..8], &data, 0, 0).0;
    assert_eq!((reply.response, reply.status), (1, 0), "OVERRUN");
    let (reply, _) = bench.send(&cdb(READ, 1, 0, 2), &[], &[], 8, 1024);
    assert_eq!((reply.response, reply.status), (1, 0));
    assert!(reply.data.iter().all(|byte| *byte == 0xdd));
    // More announced than there is.
    let guest = &mut bench.guest;
    let mut head = Guest::request_head(lun(0, 0), 7, &[]);
    head[19..27].copy_from_slice(&[9, 0, 0, 0, 0, 0, 0, 0]);
    head.resize(19 + 8 + 32 + 8, 0);
    let (request, response) = (guest.alloc_with(&head), guest.alloc_with(&[0xee; 108]));
    guest.add(2, &[out(request, head.len() as u32), into(response, 108)]);
    guest.kick(2);
    guest.wait_used(2);
    assert_eq!(guest.peek(response + 11, 1), [9], "FAILURE");
}

#[test]
fn formatting_keeps_the_type() {
    for (kind, options, usage) in [(ProtectionType::Type1, 0x80, 0), (ProtectionType::Type3, 0xc0, 1)] {
        let mut bench = Bench::new(Some(kind), T10_PI);
        good(&bench.write(0, 5, &[], &data(1, 1)));
        for wrong in [0_u8, 0x40, 0x80, 0xc0].into_iter().filter(|wrong| *wrong != options) {
            let reply = bench.send(&[4, 0x10 | wrong, 0, 0, 0, 0], &[], &[0, 0, 0, 0], 0, 0).0;
            assert_eq!((reply.status, reply.sense[12], reply.sense[17]), (2, 0x24, 1), "{wrong:#x}");
        }
        good(&bench.send(&[4, 0x10 | options, 0, 0, 0, 0], &[], &[usage, 0, 0, 0], 0, 0).0);
        assert_eq!(bench.read(1, 5, 1).1, [0xff; 8]);
    }
}

#[test]
fn a_disk_without_it_refuses_the_fields() {
    let mut bench = Bench::new(None, T10_PI);
    let (reply, _) = bench.read(1, 0, 1);
    assert_eq!((reply.status, reply.sense[2] & 0xf, reply.sense[12]), (2, 5, 0x24));
    good(&bench.read(0, 0, 1).0);
}
