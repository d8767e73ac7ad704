//! The event queue: hot-plug, changes, and what happens without buffers.

use std::collections::BTreeMap;
use std::sync::Arc;

use devices::scsi::{Image, Lun, Nexus, Target};
use hba_virtio_scsi::Options;

use crate::disks::{Bench, disk};
use crate::guest::{CHANGE, EVENT_IDX, Guest, HOTPLUG, VERSION_1, into};

const LUN3: Lun = Lun([0, 3, 0, 0, 0, 0, 0, 0]);

/// Gives the device a buffer for one event.
pub fn offer(guest: &mut Guest, len: u32) -> u64 {
    let buffer = guest.alloc_with(&[0xee; 16]);
    guest.add(1, &[into(buffer, len)]);
    guest.kick(1);
    buffer
}

/// The next event: type, address, reason.
pub fn event(guest: &mut Guest, buffer: u64) -> (u32, [u8; 8], u32) {
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

/// Its device was not there when a driver looked, and is back.
#[test]
fn a_unit_that_is_back_is_looked_for() {
    let mut bench = bench(HOTPLUG);
    bench.target.attach(LUN3, disk().1).unwrap();
    for _ in 0..2 {
        assert_eq!(next_event(&mut bench), (1, [1, 5, 0, 3, 0, 0, 0, 0], 1));
        bench.guest.hba.look_again(5, LUN3);
    }
    assert_eq!(next_event(&mut bench), (1, [1, 5, 0, 3, 0, 0, 0, 0], 1));
    // What is none of its units.
    bench.guest.hba.look_again(5, Lun([0, 4, 0, 0, 0, 0, 0, 0]));
    bench.guest.hba.look_again(6, LUN3);
    offer(&mut bench.guest, 16);
    bench.guest.expect_silence(1);
}

#[test]
fn targets_come_and_go() {
    let mut bench = bench(HOTPLUG);
    let buffers: Vec<u64> = (0..4).map(|_| offer(&mut bench.guest, 16)).collect();
    let target = Target::new();
    target.attach(LUN3, disk().1).unwrap();
    bench.guest.hba.attach_target(9, Nexus::new(target, None));
    assert_eq!(event(&mut bench.guest, buffers[0]), (1, [1, 9, 0, 0, 0, 0, 0, 0], 1));
    // FreeBSD and Linux before 5.10 look at the unit that an event names, and at no other.
    assert_eq!(event(&mut bench.guest, buffers[1]), (1, [1, 9, 0, 3, 0, 0, 0, 0], 1));
    assert_eq!(bench.guest.command(2, crate::guest::lun(9, 3), &[0x12, 0, 0, 0, 36, 0], &[], 36).response, 0);
    assert!(bench.guest.hba.detach_target(9).is_some());
    assert_eq!(event(&mut bench.guest, buffers[2]), (1, [1, 9, 0, 3, 0, 0, 0, 0], 2));
    assert_eq!(bench.guest.command(2, crate::guest::lun(9, 3), &[0; 6], &[], 0).response, 3);
    assert!(bench.guest.hba.detach_target(9).is_none());
}

const WRITE: [u8; 10] = [0x2a, 0, 0, 0, 0, 5, 0, 0, 1, 0];
/// Events of target 5.
const REMOVED: (u32, [u8; 8], u32) = (1, [1, 5, 0, 0, 0, 0, 0, 0], 2);
const RESCAN: (u32, [u8; 8], u32) = (1, [1, 5, 0, 0, 0, 0, 0, 0], 1);

/// Another disk at target 5, as `change` puts it there.
fn change(bench: &Bench) -> Arc<Image> {
    bench.guest.hba.detach_target(5).unwrap();
    let (image, unit) = disk();
    let target = Target::new();
    target.attach(Lun([0; 8]), unit).unwrap();
    bench.guest.hba.attach_target(5, Nexus::new(target, None));
    image
}

fn send(bench: &mut Bench, cdb: &[u8], out: &[u8], len: usize) -> (u8, u8, Vec<u8>) {
    bench.guest.reset_heap();
    let reply = bench.guest.command(2, crate::guest::lun(5, 0), cdb, out, len);
    (reply.response, reply.status, reply.data)
}

/// The peripheral qualifier and device type that INQUIRY finds.
fn inquiry(bench: &mut Bench) -> u8 {
    let (response, status, data) = send(bench, &[0x12, 0, 0, 0, 36, 0], &[], 36);
    assert_eq!((response, status), (0, 0));
    data[0]
}

/// Whether a write reaches the disk, tried as stubbornly as initiators do.
fn writes(bench: &mut Bench, image: &Image) -> bool {
    let Image::Recording(image) = image else { panic!("not a recording image") };
    let before = image.operations().len();
    let good = (0..4).any(|_| send(bench, &WRITE, &[1; 512], 0).1 == 0);
    assert_eq!(image.operations().len() > before, good);
    good
}

fn next_event(bench: &mut Bench) -> (u32, [u8; 8], u32) {
    let buffer = offer(&mut bench.guest, 16);
    event(&mut bench.guest, buffer)
}

/// The machine is reset, and a driver starts.
fn boot(bench: &mut Bench, features: u64) {
    devices::pci::PciFunction::reset(&*bench.guest.hba);
    bench.guest.place();
    bench.guest.start(VERSION_1 | features, 16);
}

#[test]
fn a_disk_in_the_place_of_another_is_used_by_a_driver_that_has_found_the_place_empty() {
    let mut bench = bench(HOTPLUG);
    let second = change(&bench);
    // Tools send INQUIRY as well, through the disk that was.
    for _ in 0..3 {
        assert!(!writes(&mut bench, &second));
        assert_eq!(inquiry(&mut bench), 0x7f, "the driver has not been told");
    }
    assert_eq!([next_event(&mut bench), next_event(&mut bench)], [REMOVED, RESCAN]);
    assert!(!writes(&mut bench, &second));
    assert_eq!(inquiry(&mut bench), 0x7f, "whoever still has the old disk finds that it is gone");
    assert_eq!(inquiry(&mut bench), 0x7f, "not told again yet");
    assert!(!writes(&mut bench, &second));
    assert_eq!(next_event(&mut bench), RESCAN);
    assert_eq!(inquiry(&mut bench), 0);
    assert!(writes(&mut bench, &second));
    bench.guest.reset_heap();
    offer(&mut bench.guest, 16);
    bench.guest.expect_silence(1);
}

/// Linux: the unit alone at its target, not at LUN 0. Its first INQUIRY to a target that it does not know has the LUN in the CDB.
#[test]
fn a_lone_unit_is_found_by_an_inquiry_as_linux_sends_it() {
    let mut bench = bench(HOTPLUG);
    let at_3 = |bench: &Bench| {
        let target = Target::new();
        target.attach(LUN3, disk().1).unwrap();
        bench.guest.hba.attach_target(9, Nexus::new(target, None));
    };
    let inquiry = |bench: &mut Bench| {
        bench.guest.reset_heap();
        bench.guest.command(2, crate::guest::lun(9, 3), &[0x12, 0x60, 0, 0, 36, 0], &[], 36).data[0]
    };
    at_3(&bench);
    let event_of = |lun: u8, reason: u32| (1, [1, 9, 0, lun, 0, 0, 0, 0], reason);
    assert_eq!([next_event(&mut bench), next_event(&mut bench)], [event_of(0, 1), event_of(3, 1)]);
    assert_eq!(inquiry(&mut bench), 0);
    bench.guest.hba.detach_target(9).unwrap();
    at_3(&bench);
    let events = [(); 3].map(|()| next_event(&mut bench));
    assert_eq!(events, [event_of(3, 2), event_of(0, 1), event_of(3, 1)]);
    assert_eq!(inquiry(&mut bench), 0x7f, "the old disk is gone");
    assert_eq!(next_event(&mut bench), event_of(3, 1));
    assert_eq!(inquiry(&mut bench), 0);
}

#[test]
fn a_driver_without_hot_plug_gets_the_disk_in_the_place_of_another_when_the_machine_is_reset() {
    let mut bench = bench(0);
    let second = change(&bench);
    for _ in 0..3 {
        assert!(!writes(&mut bench, &second));
        assert_eq!(inquiry(&mut bench), 0x7f);
    }
    bench.guest.start(VERSION_1, 16);
    assert!(!writes(&mut bench, &second), "it may keep its disks over a reset of the device");
    boot(&mut bench, 0);
    assert_eq!(inquiry(&mut bench), 0);
    assert!(writes(&mut bench, &second));
}

/// Linux resets the device when it goes to sleep and when it wakes up, and keeps its disks: it asks nobody who they are.
#[test]
fn a_guest_that_slept_hears_of_a_change_and_does_not_write_to_the_other_disk() {
    let mut bench = bench(HOTPLUG | CHANGE);
    bench.guest.set_status(0);
    let second = change(&bench);
    bench.guest.start(VERSION_1 | HOTPLUG | CHANGE, 16);
    assert!(!writes(&mut bench, &second));
    assert_eq!([next_event(&mut bench), next_event(&mut bench)], [REMOVED, RESCAN]);
    assert!(!writes(&mut bench, &second));
    assert_eq!(inquiry(&mut bench), 0x7f);
    assert_eq!(next_event(&mut bench), RESCAN);
    assert_eq!(inquiry(&mut bench), 0);
    assert!(writes(&mut bench, &second));
    // Nor does one that was awake when the change was made, and had no buffer for the events.
    let third = change(&bench);
    bench.guest.start(VERSION_1 | HOTPLUG, 16);
    assert!(!writes(&mut bench, &third));
    assert_eq!([next_event(&mut bench), next_event(&mut bench)], [REMOVED, RESCAN]);
}

#[test]
fn a_change_before_any_driver_came_is_none() {
    for reset in [false, true] {
        let mut bench = Bench::cold(Options::default(), 1);
        if reset {
            bench.guest.start(VERSION_1 | HOTPLUG, 16);
            bench.settle();
            change(&bench);
            devices::pci::PciFunction::reset(&*bench.guest.hba);
            bench.guest.place();
        }
        let second = change(&bench);
        bench.guest.start(VERSION_1, 16);
        assert_eq!(inquiry(&mut bench), 0);
        assert!(writes(&mut bench, &second));
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
fn events_beyond_measure_set_the_missed_bit_once_after_the_others() {
    let mut bench = bench(HOTPLUG);
    for target in 100..170 {
        bench.guest.hba.attach_target(target, Nexus::new(Target::new(), None));
    }
    for target in 100..164 {
        let buffer = offer(&mut bench.guest, 16);
        assert_eq!(event(&mut bench.guest, buffer), (1, [1, target, 0, 0, 0, 0, 0, 0], 1));
    }
    let buffer = offer(&mut bench.guest, 16);
    assert_eq!(event(&mut bench.guest, buffer), (0x8000_0000, [0; 8], 0));
    offer(&mut bench.guest, 16);
    bench.guest.expect_silence(1);
}

#[test]
fn events_outlast_a_reset_of_the_device_for_those_who_want_them_and_none_that_of_the_machine() {
    for machine in [false, true] {
        for features in [0, HOTPLUG] {
            let mut bench = bench(HOTPLUG);
            bench.target.attach(LUN3, disk().1).unwrap();
            if machine {
                boot(&mut bench, features);
            } else {
                bench.guest.start(VERSION_1 | features, 16);
            }
            let buffer = offer(&mut bench.guest, 16);
            if !machine && features == HOTPLUG {
                assert_eq!(event(&mut bench.guest, buffer), (1, [1, 5, 0, 3, 0, 0, 0, 0], 1));
                offer(&mut bench.guest, 16);
            }
            bench.guest.expect_silence(1);
        }
    }
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
