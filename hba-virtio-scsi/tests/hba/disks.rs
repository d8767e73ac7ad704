//! Disks behind the HBA: data, task management, and resets with commands in flight.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use devices::pci::PciFunction;
use devices::scsi::suite::{self, Initiator, Outcome, RecordingDisk};
use devices::scsi::{Disk, Image, LogicalUnit, Lun, Nexus, Residual, Target, TransferLimits};
use hba_virtio_scsi::Options;

use crate::guest::{EVENT_IDX, Guest, INDIRECT, RING_RESET, Reply, VERSION_1, into, lun, out};

/// A target with one disk at LUN 0.
pub struct Bench {
    pub guest: Guest,
    pub target: Arc<Target>,
    pub disk: Arc<Image>,
}

pub fn disk() -> (Arc<Image>, LogicalUnit) {
    let image = Arc::new(Image::Recording(suite::image()));
    (image.clone(), LogicalUnit::Disk(Disk::new(image, suite::config()).unwrap()))
}

impl Bench {
    /// The disk at target 5, initialised with `features` and 16 descriptors a queue, unit attentions fetched.
    pub fn new(options: Options, threads: usize, features: u64) -> Self {
        let mut bench = Self::cold(options, threads);
        bench.guest.start(VERSION_1 | features, 16);
        bench.settle();
        bench
    }

    pub fn cold(options: Options, threads: usize) -> Self {
        let target = Target::new();
        let (disk, unit) = disk();
        target.attach(Lun([0; 8]), unit).unwrap();
        let nexus = Nexus::new(target.clone(), None);
        let guest = Guest::new(options, threads, BTreeMap::from([(5, nexus)]));
        Self { guest, target, disk }
    }

    pub fn settle(&mut self) {
        for _ in 0..8 {
            let reply = self.guest.command(2, lun(5, 0), &[0; 6], &[], 0);
            if (reply.response, reply.status) == (0, 0) {
                return;
            }
        }
        panic!("TEST UNIT READY does not become GOOD");
    }

    pub fn image(&self) -> &RecordingDisk {
        match &*self.disk {
            Image::Recording(image) => image,
            #[allow(unreachable_patterns)]
            _ => panic!("not a RAM image"),
        }
    }

    /// Sends a READ of one block that the image holds back; returns its head, response and buffer.
    pub fn held_read(&mut self, queue: usize, id: u64) -> (u16, u64, u64) {
        self.image().hold(true);
        let before = self.image().arrived();
        let request = self.guest.alloc_with(&Guest::request_head(lun(5, 0), id, &read10(0, 1)));
        let response = self.guest.alloc_with(&[0xee; 108]);
        let data = self.guest.alloc_with(&[0xdd; 512]);
        let head = self.guest.add(queue, &[out(request, 51), into(response, 108), into(data, 512)]);
        self.guest.kick(queue);
        self.guest.wait_for("held read", || self.image().arrived() > before);
        (head, response, data)
    }
}

fn read10(block: u32, count: u16) -> [u8; 10] {
    let [a, b, c, d] = block.to_be_bytes();
    let [e, f] = count.to_be_bytes();
    [0x28, 0, a, b, c, d, 0, e, f, 0]
}

fn write10(block: u32, count: u16) -> [u8; 10] {
    let mut cdb = read10(block, count);
    cdb[0] = 0x2a;
    cdb
}

fn one() -> Options {
    Options::default()
}

/// The driver is told what the host takes (virtio 1.3, 5.6.4: seg_max at 4, max_sectors at 8), and may send more.
#[test]
fn commands_beyond_what_was_told_are_carried_out() {
    let transfer = TransferLimits::new(8 << 10, 1);
    let mut bench = Bench::new(Options { transfer, ..one() }, 1, INDIRECT);
    assert_eq!(bench.guest.read::<8>(bench.guest.at.device + 4), [17, 0, 0, 0, 16, 0, 0, 0]);
    assert_eq!(bench.guest.hba.transfer_limits(), transfer);
    let bytes: Vec<u8> = (0..128_u32 << 10).map(|n| (n >> 9) as u8 ^ n as u8).collect();
    let reply = bench.guest.command(2, lun(5, 0), &write10(7, 256), &bytes, 0);
    assert_eq!((reply.response, reply.status, reply.residual), (0, 0, 0));
    // In 32 segments, backwards, so that no two are one.
    let request = bench.guest.alloc_with(&Guest::request_head(lun(5, 0), 1, &read10(7, 256)));
    let response = bench.guest.alloc_with(&[0xee; 108]);
    let data = bench.guest.alloc(bytes.len());
    let mut parts = vec![out(request, 51), into(response, 108)];
    parts.extend((0..32).rev().map(|n| into(data + n * 4096, 4096)));
    bench.guest.add_indirect(2, &parts);
    bench.guest.kick(2);
    assert_eq!(bench.guest.wait_used(2).1, 108 + (128 << 10));
    assert_eq!(bench.guest.peek(response, 12), [0; 12], "sense length, residual, qualifier, GOOD, OK");
    let read: Vec<u8> = (0..32).rev().flat_map(|n| bench.guest.peek(data + n * 4096, 4096)).collect();
    assert!(read == bytes);
}

pub struct ThroughHba(pub Bench);

impl Initiator for ThroughHba {
    fn command(&mut self, cdb: &[u8], data_out: &[u8], data_in_len: usize) -> Outcome {
        let guest = &mut self.0.guest;
        guest.reset_heap();
        let Reply { sense, residual, status, response, mut data, .. } =
            guest.command(2, lun(5, 0), cdb, data_out, data_in_len);
        assert!(matches!(response, 0 | 1), "CDB {cdb:02x?}: response {response}");
        let left = residual as usize;
        // What the driver filled its buffer with is not what the suite fills its own with.
        for byte in data.iter_mut().skip(data_in_len.saturating_sub(left)) {
            if *byte == 0xdd {
                *byte = suite::FILL;
            }
        }
        if status == 2 {
            data.iter_mut().filter(|byte| **byte == 0xdd).for_each(|byte| *byte = suite::FILL);
        }
        let residual = match response {
            // The amount of an overrun is not on the wire.
            1 => None,
            _ if residual == 0 => Some(Residual::Exact),
            _ => Some(Residual::Under(residual.into())),
        };
        Outcome { status, sense, data_in: data, residual }
    }
}

#[test]
fn the_conformance_suite_of_the_scsi_layer_passes_through_the_hba() {
    for (name, test) in suite::tests() {
        let mut bench = Bench::cold(one(), 1);
        bench.guest.start(VERSION_1 | EVENT_IDX | INDIRECT, 256);
        println!("{name}");
        test(&mut ThroughHba(bench));
    }
}

#[test]
fn data_arrives_whole_however_it_is_cut() {
    let mut bench = Bench::new(one(), 1, INDIRECT);
    let guest = &mut bench.guest;
    let data: Vec<u8> = (0..1024_u32).map(|i| (i * 31 % 251) as u8).collect();
    for (first, rest) in [(1, 1023), (511, 513), (512, 512), (1000, 24)] {
        // Request head and the start of the data in one descriptor, the rest in another.
        let mut head = Guest::request_head(lun(5, 0), 1, &write10(8, 2));
        head.extend(&data[..first]);
        let request = guest.alloc_with(&head);
        let tail = guest.alloc_with(&data[first..]);
        let response = guest.alloc_with(&[0xee; 108]);
        guest.add_indirect(2, &[out(request, head.len() as u32), out(tail, rest), into(response, 108)]);
        guest.kick(2);
        assert_eq!(guest.wait_used(2).1, 12);
        assert_eq!(guest.peek(response, 12), [0; 12]);

        // Response and the start of the data in one descriptor.
        let request = guest.alloc_with(&Guest::request_head(lun(5, 0), 1, &read10(8, 2)));
        let shared = guest.alloc_with(&vec![0xee; 108 + first]);
        let tail = guest.alloc(rest as usize);
        guest.add_indirect(2, &[out(request, 51), into(shared, 108 + first as u32), into(tail, rest)]);
        guest.kick(2);
        assert_eq!(guest.wait_used(2).1, 108 + 1024);
        assert_eq!(guest.peek(shared, 108), [0; 108], "no gaps before the data");
        let mut got = guest.peek(shared + 108, first);
        got.extend(guest.peek(tail, rest as usize));
        assert_eq!(got, data, "cut at {first}");
    }
}

#[test]
fn residuals_and_overruns() {
    let mut bench = Bench::new(one(), 1, 0);
    let guest = &mut bench.guest;
    let under = guest.command(2, lun(5, 0), &read10(0, 1), &[], 2048);
    assert_eq!((under.response, under.status, under.residual), (0, 0, 1536));
    assert_eq!(under.used, 108 + 512);
    let over = guest.command(2, lun(5, 0), &read10(0, 2), &[], 512);
    assert_eq!(over.response, 1, "OVERRUN");
    let inquiry = guest.command(2, lun(5, 0), &[0x12, 0, 0, 0, 255, 0], &[], 255);
    assert_eq!((inquiry.response, inquiry.status), (0, 0));
    assert_eq!(u32::from(inquiry.data[4]) + 5, 255 - inquiry.residual, "additional length agrees");
}

/// VIRTIO_SCSI_F_INOUT. No command of a disk moves data both ways, so one of the buffers is residual as a whole (5.6.6.1).
#[test]
fn data_both_ways_with_the_feature() {
    let mut bench = Bench::new(one(), 1, 1);
    let guest = &mut bench.guest;
    let reply = guest.command(2, lun(5, 0), &[0x12, 0, 0, 0, 96, 0], &[7; 16], 96);
    assert_eq!((reply.response, reply.status, reply.residual), (0, 0, 16));
    assert_eq!((&reply.data[8..11], reply.used), (&b"ACM"[..], 108 + 96));
    let reply = guest.command(2, lun(5, 0), &write10(0, 1), &[0x5a; 512], 8);
    assert_eq!((reply.response, reply.status, reply.residual, reply.used), (0, 0, 8, 12));
    assert_eq!(reply.data, [0xdd; 8]);
    assert_eq!(guest.command(2, lun(5, 0), &read10(0, 1), &[], 512).data, [0x5a; 512]);
    let reply = guest.command(2, lun(6, 0), &[0; 6], &[1; 8], 8);
    assert_eq!((reply.response, reply.residual), (3, 16), "nothing moved either way");
}

#[test]
fn sense_data_comes_with_the_response() {
    let mut bench = Bench::new(one(), 1, 0);
    let reply = bench.guest.command(2, lun(5, 0), &[0xff, 0, 0, 0, 0, 0], &[], 64);
    assert_eq!((reply.response, reply.status, reply.residual), (0, 2, 64));
    assert_eq!(
        (reply.sense[0] & 0x7f, reply.sense[2] & 0xf, reply.sense[12], reply.sense[13]),
        (0x70, 5, 0x20, 0)
    );
    assert_eq!(reply.used as usize, 12 + reply.sense.len());
}

#[test]
fn absent_units_and_the_well_known_unit() {
    let mut bench = Bench::new(one(), 1, 0);
    let guest = &mut bench.guest;
    let reply = guest.command(2, lun(5, 1), &[0; 6], &[], 0);
    assert_eq!((reply.response, reply.status), (0, 2));
    assert_eq!((reply.sense[2] & 0xf, reply.sense[12], reply.sense[13]), (5, 0x25, 0));
    for field in [[0xc1, 1, 0, 0, 0, 0, 0, 0], [1, 5, 0xc1, 1, 0, 0, 0, 0], lun(5, 0)] {
        let reply = guest.command(2, field, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[], 16);
        assert_eq!((reply.response, reply.status), (0, 0), "{field:?}");
        assert_eq!(reply.data, [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "{field:?}");
    }
    assert_eq!(guest.tmf(5, lun(5, 3), 0), 12, "INCORRECT LUN");
}

#[test]
fn an_aborted_command_is_back_before_the_function() {
    for (subtype, response) in [(0, 2), (1, 2), (3, 2), (4, 4), (5, 4)] {
        let mut bench = Bench::new(Options { request_queues: 2, ..one() }, 2, EVENT_IDX);
        let (head, at, data) = bench.held_read(3, 77);
        assert_eq!(bench.guest.tmf(6, lun(5, 0), 77), 10, "QUERY TASK finds it");
        assert_eq!(bench.guest.tmf(7, lun(5, 0), 0), 10, "QUERY TASK SET too");
        if subtype == 0 {
            assert_eq!(bench.guest.tmf(0, lun(5, 0), 78), 0, "another tag");
            assert_eq!(bench.guest.used(3), None);
        }
        assert_eq!(bench.guest.tmf(subtype, lun(5, 0), 77), 0);
        assert_eq!(bench.guest.used(3).unwrap().0, head, "subtype {subtype}: it is there already");
        assert_eq!(bench.guest.peek(at + 11, 1), [response], "subtype {subtype}");
        assert_eq!(bench.guest.peek(at + 4, 4), 512_u32.to_le_bytes(), "nothing was transferred");
        assert_eq!(bench.guest.tmf(6, lun(5, 0), 77), 0, "QUERY TASK finds it no more");
        bench.image().hold(false);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(bench.guest.peek(data, 512), [0xdd; 512]);
        bench.settle();
    }
}

/// A task that keeps its I/O thread busy: rounds of the executor take long, and with them what comes at their end.
async fn slow_down(rounds: u32) {
    let mut left = rounds;
    std::future::poll_fn(|cx| {
        std::thread::sleep(Duration::from_millis(2));
        left -= 1;
        if left == 0 {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

#[test]
fn a_function_waits_for_a_slow_thread_to_give_commands_back() {
    let mut bench = Bench::new(Options { request_queues: 2, ..one() }, 2, 0);
    for id in 0..4 {
        let (head, at, _) = bench.held_read(3, id);
        for _ in 0..3 {
            bench.guest.remotes[1].spawn(|_| slow_down(20));
        }
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(bench.guest.tmf(0, lun(5, 0), id), 0);
        assert_eq!(bench.guest.used(3).map(|used| used.0), Some(head));
        assert_eq!(bench.guest.peek(at + 11, 1), [2]);
    }
    bench.image().hold(false);
}

#[test]
fn clear_aca_is_rejected() {
    let mut bench = Bench::new(one(), 1, 0);
    assert_eq!(bench.guest.tmf(2, lun(5, 0), 0), 11);
}

#[test]
fn reset_with_commands_in_flight() {
    let mut bench = Bench::new(Options { request_queues: 2, ..one() }, 2, 0);
    let (_, response, data) = bench.held_read(2, 1);
    let (_, other, _) = bench.held_read(3, 2);
    let (used, other_used) = (bench.guest.queues[2].used + 2, bench.guest.queues[3].used + 2);
    let before = (bench.guest.peek16(used), bench.guest.peek16(other_used));
    bench.guest.reset();
    // From here on all of it is the guest's.
    for (addr, len) in [(response, 108), (other, 108), (data, 512)] {
        bench.guest.poke(addr, &vec![0x77; len]);
    }
    bench.image().hold(false);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.guest.peek(data, 512), [0x77; 512]);
    assert_eq!(bench.guest.peek(response, 108), [0x77; 108]);
    assert_eq!(bench.guest.peek(other, 108), [0x77; 108]);
    assert_eq!((bench.guest.peek16(used), bench.guest.peek16(other_used)), before);
    bench.guest.start(VERSION_1, 16);
    bench.settle();
}

#[test]
fn a_system_reset_returns_when_nothing_is_in_flight() {
    let mut bench = Bench::new(one(), 1, 0);
    let (_, response, data) = bench.held_read(2, 1);
    bench.guest.hba.reset();
    bench.guest.poke(data, &[0x77; 512]);
    bench.image().hold(false);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.guest.peek(data, 512), [0x77; 512]);
    assert_eq!(bench.guest.peek(response, 108), [0xee; 108]);
    bench.guest.place();
    assert_eq!(bench.guest.status(), 0);
    bench.guest.queues.clear();
    bench.guest.start(VERSION_1, 16);
    bench.settle();
}

#[test]
fn sense_data_ends_where_its_area_does() {
    let mut bench = Bench::new(one(), 1, 0);
    for (size, used, sense) in [(96, 30, 18), (8, 20, 8), (0, 12, 0)] {
        bench.guest.write(bench.guest.at.device + 20, &u32::to_le_bytes(size));
        // No operation code.
        let reply = bench.guest.command(2, lun(5, 0), &[0xff; 6], &[], 0);
        assert_eq!((reply.status, reply.used, reply.sense.len()), (2, used, sense), "sense_size {size}");
        assert_eq!(reply.sense, [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0][..sense]);
    }
}

#[test]
fn a_queue_reset_keeps_the_rest_going() {
    let mut bench = Bench::new(Options { request_queues: 2, ..one() }, 1, RING_RESET);
    let (_, response, _) = bench.held_read(2, 1);
    bench.guest.select(2);
    bench.guest.write(bench.guest.at.common + 58, &1_u16.to_le_bytes());
    assert_eq!(bench.guest.queue_word(2, 58), 1, "reset is under way");
    assert_eq!(bench.guest.queue_word(2, 28), 1);
    assert_eq!(bench.guest.command(3, lun(5, 0), &[0; 6], &[], 0).status, 0);
    bench.image().hold(false);
    bench.guest.wait_for("queue reset", || bench.guest.queue_word(2, 58) == 0);
    assert_eq!(bench.guest.queue_word(2, 28), 0);
    assert_eq!(bench.guest.peek(response, 108), [0xee; 108], "abandoned");
    bench.guest.queues.truncate(2);
    bench.guest.setup_queue(2, 16, 3);
    assert_eq!(bench.guest.command(2, lun(5, 0), &[0; 6], &[], 0).status, 0);
}

#[test]
fn bus_mastering_off_in_flight() {
    let mut bench = Bench::new(one(), 1, 0);
    let (_, response, data) = bench.held_read(2, 1);
    let used = bench.guest.queues[2].used + 2;
    let before = bench.guest.peek16(used);
    bench.guest.hba.config_write(4, &2_u16.to_le_bytes());
    // A kernel that starts another one has no other way to take its memory back.
    bench.guest.poke(data, &[0x77; 512]);
    bench.image().hold(false);
    bench.guest.wait_for("needs reset", || bench.guest.status() & 0x40 != 0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.guest.peek(data, 512), [0x77; 512]);
    assert_eq!(bench.guest.peek(response, 108), [0xee; 108]);
    assert_eq!(bench.guest.peek16(used), before);
    bench.guest.hba.config_write(4, &6_u16.to_le_bytes());
    bench.guest.start(VERSION_1, 16);
    bench.settle();
}

#[test]
fn four_queues_on_two_threads_keep_their_data_apart() {
    let mut bench = Bench::new(Options { request_queues: 4, ..one() }, 2, EVENT_IDX | INDIRECT);
    let guest = &mut bench.guest;
    for round in 0..20_u32 {
        guest.reset_heap();
        let mut wanted = Vec::new();
        for queue in 2..6_usize {
            for slot in 0..4_u32 {
                let block = (queue as u32 * 4 + slot) * 8;
                let pattern = [(round * 31 + block) as u8; 4096];
                let request =
                    guest.alloc_with(&Guest::request_head(lun(5, 0), block.into(), &write10(block, 8)));
                let data = guest.alloc_with(&pattern);
                let response = guest.alloc_with(&[0xee; 108]);
                guest.add_indirect(queue, &[out(request, 51), out(data, 4096), into(response, 108)]);
                wanted.push((queue, block, pattern));
            }
            guest.kick(queue);
        }
        for queue in 2..6 {
            (0..4).for_each(|_| assert_eq!(guest.wait_used(queue).1, 12));
        }
        for (queue, block, pattern) in wanted {
            let reply = guest.command(queue, lun(5, 0), &read10(block, 8), &[], 4096);
            assert_eq!((reply.response, reply.status, reply.residual), (0, 0, 0));
            assert_eq!(reply.data, pattern);
        }
    }
}

#[test]
fn the_hba_can_go_with_commands_in_flight() {
    let mut bench = Bench::new(one(), 1, 0);
    bench.held_read(2, 1);
    drop(bench.guest);
}
