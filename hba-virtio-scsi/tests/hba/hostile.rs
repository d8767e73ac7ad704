//! Drivers that break the rules: each costs its request or its device, never more.

use std::collections::BTreeMap;

use devices::pci::PciFunction;
use hba_virtio_scsi::Options;
use proptest::prelude::*;

use crate::guest::{
    EVENT_IDX, Guest, INDIRECT, INDIRECT_TABLE, MSIX, NEXT, VERSION_1, WRITE, into, lun, out,
};

const NOWHERE: u64 = 0x8000_0000;

fn started(features: u64) -> Guest {
    let mut guest = Guest::new(Options::default(), 1, BTreeMap::new());
    guest.start(VERSION_1 | features, 16);
    guest
}

/// The device still serves, on the same queue.
fn assert_serves(guest: &mut Guest) {
    assert_eq!(guest.command(2, lun(0, 0), &[0; 6], &[], 0).response, 3);
    assert_eq!(guest.status(), 15);
}

fn request(guest: &mut Guest) -> u64 {
    guest.alloc_with(&Guest::request_head(lun(0, 0), 1, &[0; 6]))
}

#[test]
fn short_or_misplaced_parts_fail_the_request() {
    let mut guest = started(0);
    let (good, response) = (request(&mut guest), guest.alloc_with(&[0xee; 108]));
    let cases: Vec<(&str, Vec<_>)> = vec![
        ("short request", vec![out(good, 50), into(response, 108)]),
        ("no request", vec![into(response, 108)]),
        ("request out of RAM", vec![out(NOWHERE, 51), into(response, 108)]),
        ("request at the end of the address space", vec![out(u64::MAX - 3, 51), into(response, 108)]),
        ("data out of RAM", vec![out(good, 51), into(response, 108), into(NOWHERE, 512)]),
        ("data-out out of RAM", vec![out(good, 51), out(NOWHERE, 512), into(response, 108)]),
        ("readable after writable", vec![out(good, 51), into(response, 108), out(good, 8)]),
        ("writable request", vec![into(good, 51), into(response, 108)]),
        ("short response", vec![out(good, 51), into(response, 107)]),
        ("response without sense", vec![out(good, 51), into(response, 12)]),
    ];
    for (what, parts) in cases {
        guest.poke(good, &Guest::request_head(lun(0, 0), 1, &[0; 6]));
        guest.poke(response, &[0xee; 108]);
        guest.add(2, &parts);
        guest.kick(2);
        let (_, used) = guest.wait_used(2);
        assert_eq!(used, 12, "{what}");
        // A writable request takes the response's place.
        let at = if what == "writable request" { good } else { response };
        assert_eq!(guest.peek(at + 11, 1), [9], "{what}");
        assert_serves(&mut guest);
    }
}

#[test]
fn responses_that_cannot_be_written_come_back_empty() {
    let mut guest = started(0);
    let (good, response) = (request(&mut guest), guest.alloc_with(&[0xee; 108]));
    for (what, parts) in [
        ("no response", vec![out(good, 51)]),
        ("11 bytes", vec![out(good, 51), into(response, 11)]),
        ("out of RAM", vec![out(good, 51), into(NOWHERE, 108)]),
        ("no bytes at all", vec![out(good, 0)]),
    ] {
        guest.add(2, &parts);
        guest.kick(2);
        assert_eq!(guest.wait_used(2).1, 0, "{what}");
        assert_serves(&mut guest);
    }
    assert_eq!(guest.peek(response, 108), [0xee; 108]);
}

#[test]
fn chains_that_do_not_end_fail_the_request() {
    let mut guest = started(INDIRECT);
    let good = request(&mut guest);
    let desc = guest.queues[2].desc;
    // A loop, a next beyond the table; the good commands in between use the first ones.
    for (next, what) in [(10, "loop"), (16, "beyond the table"), (0xffff, "far beyond")] {
        guest.descriptor(desc, 10, good, 51, NEXT, next);
        guest.publish(2, 10);
        guest.kick(2);
        assert_eq!(guest.wait_used(2), (10, 0), "{what}");
        assert_serves(&mut guest);
    }
    // A whole request with such an end is answered, but not carried out.
    let response = guest.alloc_with(&[0xee; 108]);
    for next in [11, 16, 0xffff] {
        guest.poke(response, &[0xee; 108]);
        guest.descriptor(desc, 10, good, 51, NEXT, 11);
        guest.descriptor(desc, 11, response, 108, WRITE | NEXT, next);
        guest.publish(2, 10);
        guest.kick(2);
        assert_eq!(guest.wait_used(2), (10, 12), "next {next}");
        assert_eq!(guest.peek(response + 11, 1), [9], "next {next}");
        assert_serves(&mut guest);
    }
}

#[test]
fn broken_indirect_tables_fail_the_request() {
    let mut guest = started(INDIRECT);
    let (good, response) = (request(&mut guest), guest.alloc_with(&[0xee; 108]));
    let (desc, table) = (guest.queues[2].desc, guest.alloc(256));
    let inner = guest.alloc(64);
    guest.descriptor(inner, 0, good, 51, NEXT, 1);
    guest.descriptor(inner, 1, response, 108, WRITE, 0);
    let tables: [(&str, u64, u32, u16); 5] = [
        ("indirect in indirect", table, 32, 0),
        ("no whole descriptor", table, 8, 0),
        ("empty", table, 0, 0),
        ("out of RAM", NOWHERE, 32, 0),
        ("too long", table, 16 * 0x1_0000, 0),
    ];
    for (what, addr, len, next) in tables {
        guest.descriptor(table, 0, inner, 32, INDIRECT_TABLE, 0);
        guest.descriptor(desc, 10, addr, len, INDIRECT_TABLE, next);
        guest.publish(2, 10);
        guest.kick(2);
        assert_eq!(guest.wait_used(2), (10, 0), "{what}");
        assert_serves(&mut guest);
    }
    assert_eq!(guest.peek(response, 108), [0xee; 108]);
}

#[test]
fn a_huge_indirect_loop_costs_little() {
    let mut guest = started(INDIRECT);
    let table = 0x20_0000;
    for index in 0..0xffff_u16 {
        guest.descriptor(table, index, 0x1000, 1, NEXT, index.wrapping_add(1) % 0xffff);
    }
    let desc = guest.queues[2].desc;
    guest.descriptor(desc, 10, table, 16 * 0xffff, INDIRECT_TABLE, 0);
    guest.publish(2, 10);
    guest.kick(2);
    assert_eq!(guest.wait_used(2), (10, 0));
    assert_serves(&mut guest);
}

#[test]
fn control_requests_are_checked_too() {
    let mut guest = started(0);
    let response = guest.alloc_with(&[0xee; 8]);
    for (bytes, parts_in, used, what) in [
        (vec![0; 23], 1, 1, "short task management"),
        (vec![1, 0, 0, 0, 1, 0], 5, 1, "short notification"),
        (vec![77, 0, 0, 0], 1, 1, "unknown type"),
        (vec![0; 3], 1, 1, "no type"),
        (vec![0; 24], 0, 0, "no room for a response"),
        (vec![1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 4, 0, "no room for the response byte"),
    ] {
        guest.poke(response, &[0xee; 8]);
        let addr = guest.alloc_with(&bytes);
        guest.add(0, &[out(addr, bytes.len() as u32), into(response, parts_in)]);
        guest.kick(0);
        assert_eq!(guest.wait_used(0).1, used, "{what}");
        if used > 0 {
            assert_eq!(guest.peek(response, 2), [9, 0xee], "{what}");
        }
        assert_eq!(guest.tmf(6, lun(0, 0), 0), 3, "{what}");
    }
}

/// The device waits for a reset, has said so, and works again after it.
fn assert_needs_reset(mut guest: Guest, what: &str) {
    guest.wait_for(what, || guest.status() == 15 | 0x40);
    let config = || guest.seat.msi.take().iter().any(|message| message.data == 0);
    guest.wait_for("configuration interrupt", config);
    assert_eq!(guest.read::<1>(guest.at.isr), [2], "{what}");
    guest.ring(guest.at.notify, 0);
    guest.start(VERSION_1, 8);
    assert_serves(&mut guest);
}

#[test]
fn broken_rings_need_a_reset() {
    // More available than the ring holds.
    let mut guest = started(0);
    let q = guest.queues[2].clone();
    guest.poke(q.avail + 2, &17_u16.to_le_bytes());
    guest.ring(q.notify, 2);
    assert_needs_reset(guest, "index jump");

    // A head beyond the table.
    guest = started(EVENT_IDX);
    guest.publish(2, 16);
    guest.ring(q.notify, 2);
    assert_needs_reset(guest, "head");

    // The same head twice in one batch: it cannot be free again yet.
    guest = started(0);
    let good = request(&mut guest);
    guest.descriptor(q.desc, 3, good, 51, 0, 0);
    guest.publish(2, 3);
    guest.publish(2, 3);
    guest.ring(q.notify, 2);
    assert_needs_reset(guest, "head in use");
}

#[test]
fn rings_out_of_ram_need_a_reset() {
    // CVE-2020-27821: the last is the table of its own MSI-X vectors.
    for (field, nowhere) in [32, 40, 48].into_iter().flat_map(|field| [(field, NOWHERE), (field, MSIX)]) {
        let mut guest = Guest::new(Options::default(), 1, BTreeMap::new());
        guest.enable_msix();
        guest.negotiate(VERSION_1);
        guest.write(guest.at.common + 16, &0_u16.to_le_bytes());
        guest.setup_queue(0, 8, 1);
        guest.select(2);
        for offset in [32, 40, 48] {
            let addr = if offset == field { nowhere } else { 0x3_0000 + 0x1000 * offset };
            guest.write(guest.at.common + offset, &addr.to_le_bytes());
        }
        guest.poke(0x3_0000 + 0x1000 * 40 + 2, &1_u16.to_le_bytes());
        guest.write(guest.at.common + 28, &1_u16.to_le_bytes());
        guest.set_status(15);
        if field == 32 {
            // The table is only looked at chain by chain: this one comes back as a broken one.
            let used = 0x3_0000 + 0x1000 * 48 + 2;
            guest.wait_for("used", || guest.peek16(used) == 1);
        } else {
            assert_needs_reset(guest, "ring out of RAM");
        }
    }
}

#[test]
fn bus_mastering_off_stops_the_device_only() {
    let mut guest = started(0);
    let (good, response) = (request(&mut guest), guest.alloc_with(&[0xee; 108]));
    guest.hba.config_write(4, &2_u16.to_le_bytes());
    guest.add(2, &[out(good, 51), into(response, 108)]);
    guest.ring(guest.queues[2].notify, 2);
    guest.wait_for("needs reset", || guest.status() & 0x40 != 0);
    assert_eq!(guest.peek(response, 108), [0xee; 108]);
    assert_eq!(guest.used(2), None);
    guest.hba.config_write(4, &6_u16.to_le_bytes());
    guest.start(VERSION_1, 8);
    assert_serves(&mut guest);
}

#[test]
fn nothing_is_taken_between_reset_and_driver_ok() {
    let guest = started(0);
    let q = guest.queues[2].clone();
    guest.set_status(0);
    guest.poke(q.avail + 2, &1_u16.to_le_bytes());
    for index in 0..3 {
        guest.ring(guest.at.notify + index * guest.at.multiplier, index as u16);
    }
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(guest.peek16(q.used + 2), 0);
    assert_eq!(guest.status(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Any register traffic: no panic, and a reset always brings the device back.
    #[test]
    fn random_register_writes(writes: Vec<(u16, u8, u64)>) {
        let mut guest = started(0);
        for (offset, width, value) in writes {
            let width = usize::from(width % 8) + 1;
            let addr = guest.at.common + u64::from(offset % 0x4000);
            guest.write(addr, &value.to_le_bytes()[..width]);
            let mut data = [0; 8];
            guest.seat.memory.read(addr, &mut data[..width]);
        }
        guest.reset();
        guest.start(VERSION_1, 8);
        assert_serves(&mut guest);
    }

    /// Any rings and descriptors: no panic, no hang; a reset always brings the device back.
    #[test]
    fn random_rings(
        bytes in proptest::collection::vec(any::<u8>(), 512),
        descriptors in proptest::collection::vec((0_u64..0x120_0000, 0_u32..0x2000, 0_u16..8, 0_u16..18), 16),
        heads in proptest::collection::vec(0_u16..17, 0..16),
    ) {
        let mut guest = started(INDIRECT | EVENT_IDX);
        guest.poke(0x40_0000, &bytes);
        for queue in 0..3 {
            let desc = guest.queues[queue].desc;
            for (index, &(addr, len, flags, next)) in (0..).zip(&descriptors) {
                guest.descriptor(desc, index, addr, len, flags, next);
            }
            for &head in &heads {
                guest.publish(queue, head);
            }
            guest.ring(guest.queues[queue].notify, queue as u16);
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
        guest.reset();
        guest.start(VERSION_1, 8);
        assert_serves(&mut guest);
    }
}
