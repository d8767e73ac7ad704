//! The event queue: hot-plug, changes, and what happens without buffers.

use std::collections::BTreeMap;
use std::sync::Arc;

use devices::scsi::{Image, Lun, Nexus, Target};
use hba_virtio_scsi::Options;

use crate::disks::{Bench, disk};
use crate::guest::{CHANGE, EVENT_IDX, Guest, HOTPLUG, VERSION_1, into};

const LUN3: Lun = Lun([0, 3, 0, 0, 0, 0, 0, 0]);

/// Gives the device a buffer for one event.
fn offer(guest: &mut Guest, len: u32) -> u64 {
    let buffer = guest.alloc_with(&[0xee; 16]);
    guest.add(1, &[into(buffer, len)]);
    guest.kick(1);
    buffer
}

/// The next event: type, address, reason.
fn event(guest: &mut Guest, buffer: u64) -> (u32, [u8; 8], u32) {
    assert_eq!(guest.wait_used(1).1, 16);
    let bytes = guest.peek(buffer, 16);
    let le32 = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    (le32(0), bytes[4..12].try_into().unwrap(), le32(12))
}

fn bench(features: u64) -> Bench {
    Bench::new(Options::default(), 1, features)
}

#[test]
fn units_come_and_go() {
    for features in [HOTPLUG, HOTPLUG | EVENT_IDX] {
        let mut bench = bench(features);
        let buffers: Vec<u64> = (0..4).map(|_| offer(&mut bench.guest, 16)).collect();
        bench.guest.expect_silence(1);
        bench.target.attach(LUN3, disk().1).unwrap();
        assert_eq!(event(&mut bench.guest, buffers[0]), (1, [1, 5, 0, 3, 0, 0, 0, 0], 1), "rescan");
        // Nothing is in flight on the unit: its removal has nothing to wait for.
        let mut gone = Box::pin(bench.target.detach(LUN3));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(gone.as_mut().poll(&mut cx).is_ready());
        assert_eq!(event(&mut bench.guest, buffers[1]), (1, [1, 5, 0, 3, 0, 0, 0, 0], 2), "removed");
        bench.guest.expect_silence(1);
    }
}

#[test]
fn targets_come_and_go() {
    let mut bench = bench(HOTPLUG);
    let buffers: Vec<u64> = (0..3).map(|_| offer(&mut bench.guest, 16)).collect();
    let target = Target::new();
    target.attach(LUN3, disk().1).unwrap();
    bench.guest.hba.attach_target(9, Nexus::new(target, None));
    assert_eq!(event(&mut bench.guest, buffers[0]), (1, [1, 9, 0, 0, 0, 0, 0, 0], 1));
    assert_eq!(bench.guest.command(2, crate::guest::lun(9, 3), &[0x12, 0, 0, 0, 36, 0], &[], 36).response, 0);
    assert!(bench.guest.hba.detach_target(9).is_some());
    assert_eq!(event(&mut bench.guest, buffers[1]), (1, [1, 9, 0, 3, 0, 0, 0, 0], 2));
    assert_eq!(bench.guest.command(2, crate::guest::lun(9, 3), &[0; 6], &[], 0).response, 3);
    assert!(bench.guest.hba.detach_target(9).is_none());
}

/// A guest that does not hear of hot-plug, or has no buffer for it, still means the disk before.
#[test]
fn a_target_in_the_place_of_another_is_used_only_by_a_driver_that_has_met_it() {
    for features in [0, HOTPLUG] {
        let mut bench = bench(features);
        let write = [0x2a, 0, 0, 0, 0, 5, 0, 0, 1, 0];
        let address = crate::guest::lun(9, 0);
        let put = |bench: &mut Bench| {
            let (image, unit) = disk();
            let target = Target::new();
            target.attach(Lun([0; 8]), unit).unwrap();
            bench.guest.hba.attach_target(9, Nexus::new(target, None));
            image
        };
        let send = |bench: &mut Bench, cdb: &[u8], out: &[u8], len: usize| {
            let reply = bench.guest.command(2, address, cdb, out, len);
            (reply.response, reply.status)
        };
        let wrote = |image: &Image| match image {
            Image::Recording(image) => image.operations().len(),
            #[allow(unreachable_patterns)]
            _ => panic!("not a recording image"),
        };
        put(&mut bench);
        assert_eq!(send(&mut bench, &[0; 6], &[], 0), (0, 2));
        assert_eq!(send(&mut bench, &write, &[1; 512], 0), (0, 0));
        bench.guest.hba.detach_target(9).unwrap();
        let second = put(&mut bench);
        // Initiators repeat a write after a unit attention.
        (0..4).for_each(|_| assert_eq!(send(&mut bench, &write, &[1; 512], 0), (0, 2)));
        assert_eq!(wrote(&second), 0);
        send(&mut bench, &[0x12, 0, 0, 0, 36, 0], &[], 36);
        send(&mut bench, &[0; 6], &[], 0);
        assert_eq!(send(&mut bench, &write, &[2; 512], 0), (0, 0));
        assert_eq!(wrote(&second), 1);
        // A driver that begins anew knows nothing of before.
        bench.guest.hba.detach_target(9).unwrap();
        let third = put(&mut bench);
        assert_eq!(send(&mut bench, &write, &[1; 512], 0), (0, 2));
        bench.guest.start(VERSION_1 | features, 16);
        while send(&mut bench, &[0; 6], &[], 0) != (0, 0) {}
        assert_eq!(send(&mut bench, &write, &[3; 512], 0), (0, 0));
        assert_eq!(wrote(&third), 1);
    }
}

#[test]
fn a_new_capacity_is_a_parameter_change() {
    let mut bench = bench(CHANGE);
    let buffer = offer(&mut bench.guest, 16);
    bench.image().set_geometry(|geometry| geometry.len *= 2);
    bench.target.refresh(Lun([0; 8]));
    assert_eq!(event(&mut bench.guest, buffer), (3, [1, 5, 0, 0, 0, 0, 0, 0], 0x092a), "2A/09");
}

#[test]
fn events_need_their_feature() {
    let mut bench = bench(0);
    offer(&mut bench.guest, 16);
    bench.target.attach(LUN3, disk().1).unwrap();
    bench.image().set_geometry(|geometry| geometry.len *= 2);
    bench.target.refresh(Lun([0; 8]));
    bench.guest.expect_silence(1);
}

#[test]
fn events_wait_for_buffers_and_small_buffers_come_back_empty() {
    let mut bench = bench(HOTPLUG);
    for lun in 1..4_u8 {
        bench.target.attach(Lun([0, lun, 0, 0, 0, 0, 0, 0]), disk().1).unwrap();
    }
    bench.guest.expect_silence(1);
    let small = offer(&mut bench.guest, 15);
    assert_eq!(bench.guest.wait_used(1).1, 0);
    assert_eq!(bench.guest.peek(small, 16), [0xee; 16]);
    for lun in 1..4_u8 {
        let buffer = offer(&mut bench.guest, 16);
        assert_eq!(event(&mut bench.guest, buffer), (1, [1, 5, 0, lun, 0, 0, 0, 0], 1));
    }
}

#[test]
fn events_beyond_measure_set_the_missed_bit_once() {
    let mut bench = bench(HOTPLUG);
    for _ in 0..70 {
        bench.guest.hba.attach_target(200, Nexus::new(Target::new(), None));
    }
    let buffer = offer(&mut bench.guest, 16);
    assert_eq!(event(&mut bench.guest, buffer), (0x8000_0001, [1, 200, 0, 0, 0, 0, 0, 0], 1));
    for _ in 1..64 {
        let buffer = offer(&mut bench.guest, 16);
        assert_eq!(event(&mut bench.guest, buffer), (1, [1, 200, 0, 0, 0, 0, 0, 0], 1));
    }
    offer(&mut bench.guest, 16);
    bench.guest.expect_silence(1);
}

#[test]
fn a_reset_forgets_events() {
    let mut bench = bench(HOTPLUG);
    bench.target.attach(LUN3, disk().1).unwrap();
    bench.guest.start(VERSION_1 | HOTPLUG, 16);
    offer(&mut bench.guest, 16);
    bench.guest.expect_silence(1);
}

#[test]
fn targets_share_one_event_queue() {
    let (a, b) = (Target::new(), Target::new());
    let targets = BTreeMap::from([(0, Nexus::new(a.clone(), None)), (255, Nexus::new(b.clone(), None))]);
    let mut guest = Guest::new(Options::default(), 1, targets);
    guest.start(VERSION_1 | HOTPLUG, 8);
    for (target, id) in [(a, 0), (b, 255)] {
        let buffer = offer(&mut guest, 16);
        target.attach(LUN3, disk().1).unwrap();
        assert_eq!(event(&mut guest, buffer), (1, [1, id, 0, 3, 0, 0, 0, 0], 1));
    }
}

#[test]
fn a_nexus_outlives_its_hba() {
    let target = Target::new();
    let nexus = Nexus::new(target.clone(), None);
    let guest = Guest::new(Options::default(), 1, BTreeMap::from([(0, nexus.clone())]));
    drop(guest);
    target.attach(LUN3, disk().1).unwrap();
    assert_eq!(nexus.luns(), [LUN3]);
    let _: Arc<Nexus> = nexus;
}
