//! What guests did to virtio devices elsewhere, each by its number.

use std::collections::BTreeMap;

use hba_virtio_scsi::Options;

use crate::disks::Bench;
use crate::guest::{Guest, INDIRECT, INDIRECT_TABLE, Part, VERSION_1, into, lun, out};

fn started(features: u64) -> Guest {
    let mut guest = Guest::new(Options::default(), 1, BTreeMap::new());
    guest.start(VERSION_1 | features, 16);
    guest
}

fn assert_serves(guest: &mut Guest) {
    assert_eq!(guest.command(2, lun(0, 0), &[0; 6], &[], 0).response, 3);
    assert_eq!(guest.status(), 15);
}

/// A good request and 108 bytes for its response.
fn request(guest: &mut Guest) -> (u64, u64) {
    let request = guest.alloc_with(&Guest::request_head(lun(0, 0), 1, &[0; 6]));
    (request, guest.alloc_with(&[0xee; 108]))
}

fn send(guest: &mut Guest, parts: &[Part]) -> u32 {
    let indirect = guest.features & INDIRECT != 0;
    let head = if indirect { guest.add_indirect(2, parts) } else { guest.add(2, parts) };
    guest.kick(2);
    let (used, len) = guest.wait_used(2);
    assert_eq!(used, head);
    len
}

/// A transfer that a reset cuts off goes nowhere any more: not to its own blocks, and not to the first.
#[test]
fn cve_2023_5088_writes_that_a_reset_cuts_off() {
    let mut bench = Bench::new(Options::default(), 1, 0);
    // READ (10) of sixteen blocks, and WRITE (10) of two from block 9.
    let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 16, 0];
    let write = [0x2a, 0, 0, 0, 0, 9, 0, 0, 2, 0];
    let before = bench.guest.command(2, lun(5, 0), &read, &[], 8192).data;
    bench.image().hold(true);
    let arrived = bench.image().arrived();
    for id in 1..=3 {
        let request = bench.guest.alloc_with(&Guest::request_head(lun(5, 0), id, &write));
        let data = bench.guest.alloc_with(&[0x77; 1024]);
        let response = bench.guest.alloc_with(&[0xee; 108]);
        bench.guest.add(2, &[out(request, 51), out(data, 1024), into(response, 108)]);
    }
    bench.guest.kick(2);
    bench.guest.wait_for("held writes", || bench.image().arrived() == arrived + 3);
    bench.guest.reset();
    bench.image().hold(false);
    bench.guest.start(VERSION_1, 16);
    bench.settle();
    assert_eq!(bench.guest.command(2, lun(5, 0), &read, &[], 8192).data, before);
    // They had got there, and later ones do.
    let reply = bench.guest.command(2, lun(5, 0), &write, &[0x78; 1024], 0);
    assert_eq!((reply.response, reply.status), (0, 0));
    let mut expected = before;
    expected[9 * 512..11 * 512].fill(0x78);
    assert_eq!(bench.guest.command(2, lun(5, 0), &read, &[], 8192).data, expected);
}

#[test]
fn cve_2013_2016_configuration_beyond_its_end() {
    let mut guest = started(0);
    let at = guest.at.device;
    let before: [u8; 36] = guest.read(at);
    for offset in (0..64).chain([0x7f, 0xff, 0xffc, 0xfff]) {
        for width in 1..=8 {
            guest.write(at + offset, &[0xff; 8][..width]);
            let mut data = [0xee; 8];
            guest.seat.memory.read(at + offset, &mut data[..width]);
            let wanted: Vec<u8> =
                (0..width).map(|i| before.get(offset as usize + i).copied().unwrap_or(0)).collect();
            assert_eq!(data[..width], wanted, "{offset:#x} {width}");
        }
    }
    assert_serves(&mut guest);
}

#[test]
fn cve_2016_6490_buffers_without_bytes() {
    for features in [0, INDIRECT] {
        let mut guest = started(features);
        let (good, response) = request(&mut guest);
        let nowhere = 0x8000_0000;
        let empty = [out(good, 0), into(response, 0), into(nowhere, 0)];
        assert_eq!(send(&mut guest, &empty), 0);
        let parts = [
            out(nowhere, 0),
            out(good, 51),
            out(good, 0),
            into(u64::MAX, 0),
            into(response, 108),
            into(response, 0),
        ];
        send(&mut guest, &parts);
        assert_serves(&mut guest);
    }
}

#[test]
fn cve_2016_7422_and_2026_48914_buffers_of_any_length() {
    let mut guest = started(0);
    let (good, response) = request(&mut guest);
    for len in [0x7fff_ffff, 0x8000_0000, 0xffff_f000, u32::MAX - 159, u32::MAX] {
        for (what, parts) in [
            ("data-in", [out(good, 51), into(response, 108), into(response, len)]),
            ("data-out", [out(good, 51), out(good, len), into(response, 108)]),
        ] {
            guest.poke(response, &[0xee; 108]);
            let used = send(&mut guest, &parts);
            let answer = guest.peek(response, 108);
            assert!(matches!((used, answer[11]), (12, 9) | (0, 0xee)), "{what} {len:#x}: {used}");
            assert_serves(&mut guest);
        }
        // The response is at the start of its buffer, and what is behind it stays.
        guest.poke(response, &[0xee; 108]);
        send(&mut guest, &[out(good, 51), into(response, len)]);
        assert_serves(&mut guest);
    }
    for len in 0..12 {
        guest.poke(response, &[0xee; 108]);
        assert_eq!(send(&mut guest, &[out(good, 51), into(response, len)]), 0);
        assert_eq!(guest.peek(response, 108), [0xee; 108], "{len}");
    }
}

/// The device does not reach itself: no register of any device changes by what a device does.
#[test]
fn cve_2021_3750_and_2024_3446_buffers_in_the_device() {
    let mut guest = started(INDIRECT);
    let (good, response) = request(&mut guest);
    let at = guest.at;
    for inside in [at.common, at.common + 20, at.notify, at.isr, at.device, 0xc010_0000] {
        for (what, parts, answered) in [
            ("request", [out(inside, 51), into(response, 108), into(response, 0)], true),
            ("response", [out(good, 51), into(inside, 108), into(response, 8)], false),
            ("data-in", [out(good, 51), into(response, 108), into(inside, 512)], true),
            ("data-out", [out(good, 51), out(inside, 512), into(response, 108)], true),
        ] {
            guest.poke(response, &[0xee; 108]);
            let used = send(&mut guest, &parts);
            assert_eq!(used, if answered { 12 } else { 0 }, "{what} at {inside:#x}");
            assert_eq!(guest.peek(response + 11, 1), [if answered { 9 } else { 0xee }], "{what}");
        }
        let desc = guest.queues[2].desc;
        guest.descriptor(desc, 10, inside, 32, INDIRECT_TABLE, 0);
        guest.publish(2, 10);
        guest.kick(2);
        assert_eq!(guest.wait_used(2), (10, 0), "table at {inside:#x}");
        assert_serves(&mut guest);
    }
}

/// What a device tells of more than it wrote is taken from memory of the process elsewhere.
#[test]
fn cve_2024_8612_no_more_is_told_than_was_written() {
    let mut bench = Bench::new(Options::default(), 1, 0);
    let guest = &mut bench.guest;
    for (len, cdb_len) in [(512, 36), (37, 36), (4096, 5)] {
        let reply = guest.command(2, lun(5, 0), &[0x12, 0, 0, 0, cdb_len, 0], &[], len);
        assert_eq!((reply.response, reply.status), (0, 0));
        assert_eq!(reply.residual as usize, len - usize::from(cdb_len));
        assert_eq!(reply.used, 108 + u32::from(cdb_len));
        assert!(reply.data[usize::from(cdb_len)..].iter().all(|byte| *byte == 0xdd));
    }
    // Sense data ends before its area does, and the area keeps what it had.
    let request = guest.alloc_with(&Guest::request_head(lun(5, 0), 1, &[0xc0]));
    let response = guest.alloc_with(&[0xee; 108]);
    send(guest, &[out(request, 51), into(response, 108)]);
    let bytes = guest.peek(response, 108);
    assert_eq!((bytes[0], bytes[10], bytes[11]), (18, 2, 0));
    assert_eq!(bytes[12 + 18..], [0xee; 78]);
}

#[test]
fn cve_2026_5747_registers_of_a_running_queue() {
    let mut guest = started(0);
    let common = guest.at.common;
    for queue in 0..3 {
        let words = |guest: &Guest| [24, 28, 30].map(|offset| guest.queue_word(queue, offset));
        let places = |guest: &Guest| [32, 40, 48].map(|offset| guest.read::<8>(common + offset));
        guest.select(queue);
        let before = (words(&guest), places(&guest));
        for (offset, value) in [
            (24, &2_u16.to_le_bytes()[..]),
            (24, &1024_u16.to_le_bytes()),
            (24, &0x8000_u16.to_le_bytes()),
            (28, &0_u16.to_le_bytes()),
            (30, &7_u16.to_le_bytes()),
            (32, &[0xff; 8]),
            (36, &[0xff; 4]),
            (40, &[0xff; 8]),
            (44, &[0; 4]),
            (48, &[0; 8]),
            (52, &[0xff; 4]),
        ] {
            guest.write(common + offset, value);
            assert_eq!((words(&guest), places(&guest)), before, "queue {queue} offset {offset}");
        }
    }
    assert_serves(&mut guest);
}

#[test]
fn cve_2026_45782_a_head_is_in_flight_once() {
    let mut bench = Bench::new(Options::default(), 1, 0);
    let (head, response, data) = bench.held_read(2, 7);
    let begun = bench.image().arrived();
    bench.guest.publish(2, head);
    let notify = bench.guest.queues[2].notify;
    bench.guest.ring(notify, 2);
    bench.guest.wait_for("needs reset", || bench.guest.status() & 0x40 != 0);
    assert_eq!(bench.image().arrived(), begun, "the second was not begun");
    bench.guest.set_status(0);
    bench.image().hold(false);
    bench.guest.wait_for("reset", || bench.guest.status() == 0);
    let left = (bench.guest.peek(response, 108), bench.guest.peek(data, 512));
    bench.guest.start(VERSION_1, 16);
    bench.settle();
    assert_eq!((bench.guest.peek(response, 108), bench.guest.peek(data, 512)), left, "nothing comes late");
}
