//! Events of remote ports and of units (docs/virtio-scsi-fc.md, section 5).

use devices::scsi::{Lun, Nexus, Target};
use hba_virtio_scsi::fc::{Emulated, RemotePort, RemoteState, San};

use crate::disks::disk;
use crate::events::{event, offer};
use crate::fabric::{ALL, Fabric, detach, lun};
use crate::guest::{Guest, HOTPLUG, VERSION_1};
use crate::rescan::{rescan, slow};

/// Events of target 5 and 9.
const LOOK_AGAIN: (u32, [u8; 8], u32) = (1, [1, 5, 0, 0, 0, 0, 0, 0], 1);
const fn rport(target: u8, reason: u32) -> (u32, [u8; 8], u32) {
    (4, [1, target, 0, 0, 0, 0, 0, 0], reason)
}

fn next(fabric: &mut Fabric) -> (u32, [u8; 8], u32) {
    let buffer = offer(&mut fabric.guest, 16);
    event(&mut fabric.guest, buffer)
}

fn silence(fabric: &mut Fabric) {
    offer(&mut fabric.guest, 16);
    fabric.guest.expect_silence(1);
}

#[test]
fn ports_come_and_go_by_events_of_their_own() {
    let mut fabric = Fabric::new(ALL);
    for state in [RemoteState::Blocked, RemoteState::Lost, RemoteState::Online, RemoteState::Blocked] {
        assert!(fabric.san.set_state(9, state));
    }
    fabric.san.set_state(9, RemoteState::Online);
    fabric.san.add(7);
    for expected in [rport(9, 1), rport(7, 1)] {
        assert_eq!(next(&mut fabric), expected);
    }
    for (state, reason) in [(RemoteState::Blocked, 0), (RemoteState::Lost, 0), (RemoteState::Online, 1)] {
        fabric.san.set_state(9, state);
        if state != RemoteState::Lost {
            assert_eq!(next(&mut fabric), rport(9, reason));
        }
    }
    silence(&mut fabric);
    assert!(!fabric.san.set_state(200, RemoteState::Lost));
}

#[test]
fn a_port_that_has_another_name_has_changed() {
    let (mut guest, san) = slow();
    san.view.lock().unwrap().remotes.get_mut(&1).unwrap().port_id = 0x03_0303;
    assert_eq!(rescan(&mut guest, 0)[24..28], [3, 3, 3, 0], "the host says nothing of it by itself");
    let buffer = offer(&mut guest, 16);
    assert_eq!(event(&mut guest, buffer), rport(1, 2));
}

/// Drivers that do not know of ports look for what they have not found yet.
#[test]
fn without_events_of_ports_new_ones_are_looked_for() {
    let mut fabric = Fabric::new(HOTPLUG);
    fabric.san.set_state(9, RemoteState::Blocked);
    fabric.san.set_state(9, RemoteState::Online);
    fabric.san.add(7);
    assert_eq!(next(&mut fabric), (1, [1, 7, 0, 0, 0, 0, 0, 0], 1));
    fabric.san.set_state(9, RemoteState::Lost);
    fabric.san.set_state(9, RemoteState::Online);
    assert_eq!(next(&mut fabric), (1, [1, 9, 0, 0, 0, 0, 0, 0], 1));
    silence(&mut fabric);
}

#[test]
fn units_that_come_are_one_event_for_those_who_know_luns() {
    let mut fabric = Fabric::new(ALL);
    for unit in 1..9 {
        fabric.target.attach_native(Lun([0, unit, 0, 1, 0, 0, 0, 0]), disk().1).unwrap();
    }
    fabric.san.units_changed(5);
    assert_eq!(next(&mut fabric), LOOK_AGAIN);
    silence(&mut fabric);
    detach(&fabric, Lun([0, 3, 0, 1, 0, 0, 0, 0]));
    // A buffer is there already.
    assert_eq!(fabric.guest.wait_used(1).1, 16);
    silence(&mut fabric);
}

/// Nothing comes or goes here: a device that was not there is back. Whatever else the driver was told of, it may have looked before.
#[test]
fn who_has_looked_hears_of_what_is_back() {
    for features in [ALL, HOTPLUG] {
        let mut fabric = Fabric::new(features);
        fabric.target.attach_native(Lun([0, 3, 0, 0, 0, 0, 0, 0]), disk().1).unwrap();
        let came = if features == ALL { LOOK_AGAIN } else { (1, [1, 5, 0, 3, 0, 0, 0, 0], 1) };
        assert_eq!(next(&mut fabric), came);
        fabric.san.units_changed(5);
        assert_eq!(next(&mut fabric), LOOK_AGAIN);
        for _ in 0..3 {
            fabric.san.units_changed(5);
        }
        assert_eq!(next(&mut fabric), LOOK_AGAIN);
        silence(&mut fabric);
    }
}

const MISSED: (u32, [u8; 8], u32) = (0x8000_0000, [0; 8], 0);

/// FreeBSD, and Linux before 5.10, look at the unit alone that an event names: each has its own as long as there are places. Where there
/// are not, one stands for all of the target, and they look at everything because events were missed.
#[test]
fn many_units_of_a_port_are_one_event() {
    let mut fabric = Fabric::new(HOTPLUG);
    let unit = |unit| Lun([0, unit, 0, 0, 0, 0, 0, 0]);
    for number in 1..64 {
        fabric.target.attach_native(unit(number), disk().1).unwrap();
    }
    for number in 1..64 {
        assert_eq!(next(&mut fabric), (1, [1, 5, 0, number, 0, 0, 0, 0], 1));
    }
    let lost_and_back = |fabric: &Fabric| {
        for state in [RemoteState::Lost, RemoteState::Online] {
            fabric.san.set_state(5, state);
        }
    };
    lost_and_back(&fabric);
    for number in 0..64 {
        assert_eq!(next(&mut fabric), (1, [1, 5, 0, number, 0, 0, 0, 0], 1));
    }
    // One more, and they are many.
    for number in 64..200 {
        fabric.target.attach_native(unit(number), disk().1).unwrap();
    }
    assert_eq!([next(&mut fabric), next(&mut fabric)], [LOOK_AGAIN, MISSED]);
    lost_and_back(&fabric);
    assert_eq!([next(&mut fabric), next(&mut fabric)], [LOOK_AGAIN, MISSED]);
    // What goes is told of before what has come is looked for.
    detach(&fabric, unit(7));
    lost_and_back(&fabric);
    detach(&fabric, unit(8));
    fabric.target.attach_native(unit(201), disk().1).unwrap();
    assert_eq!(next(&mut fabric), (1, [1, 5, 0, 7, 0, 0, 0, 0], 2));
    assert_eq!(next(&mut fabric), (1, [1, 5, 0, 8, 0, 0, 0, 0], 2));
    assert_eq!([next(&mut fabric), next(&mut fabric)], [LOOK_AGAIN, MISSED]);
    silence(&mut fabric);
}

#[test]
fn units_of_many_ports_are_an_event_each_before_any_is_dropped() {
    let mut fabric = Fabric::new(HOTPLUG);
    let targets = 20..80_u8;
    for id in targets.clone() {
        fabric.san.add(id);
        let target = Target::new();
        for number in 0..8 {
            target.attach_native(Lun([0, number, 0, 0, 0, 0, 0, 0]), disk().1).unwrap();
        }
        fabric.guest.hba.attach_target(id, Nexus::new(target, None));
    }
    let (mut seen, mut count) = (std::collections::BTreeSet::new(), 0);
    while seen.len() < targets.len() {
        let (kind, lun, reason) = next(&mut fabric);
        assert_eq!((kind, reason), (1, 1), "none is dropped");
        if lun[3] == 0 {
            seen.insert(lun[1]);
        }
        count += 1;
        assert!(count <= 64);
    }
}

#[test]
fn a_stock_driver_hears_of_each_unit_that_it_can_address() {
    let mut fabric = Fabric::new(HOTPLUG);
    let five = Lun([0, 5, 0, 0, 0, 0, 0, 0]);
    fabric.target.attach_native(five, disk().1).unwrap();
    // It would take this for LUN 5.
    let deep = Lun([0, 5, 1, 2, 0, 0, 0, 0]);
    fabric.target.attach_native(deep, disk().1).unwrap();
    fabric.target.attach_native(Lun([0x42, 1, 0, 0, 0, 0, 0, 0]), disk().1).unwrap();
    assert_eq!(next(&mut fabric), (1, [1, 5, 0, 5, 0, 0, 0, 0], 1));
    assert_eq!(next(&mut fabric), (1, [1, 5, 0x42, 1, 0, 0, 0, 0], 1));
    detach(&fabric, deep);
    silence(&mut fabric);
    detach(&fabric, five);
    assert_eq!(fabric.guest.wait_used(1).1, 16);
}

/// Of a port that comes and goes the newest state is told. When too much else waits, the driver is told last to look: what is older
/// would have it remove the disks of a port that is there.
#[test]
fn what_is_told_last_is_true() {
    let mut fabric = Fabric::new(ALL);
    let flap = |fabric: &Fabric, end: RemoteState| {
        for _ in 0..40 {
            fabric.san.set_state(9, RemoteState::Lost);
            fabric.san.set_state(9, RemoteState::Online);
        }
        fabric.san.set_state(9, end);
    };
    flap(&fabric, RemoteState::Online);
    assert_eq!(next(&mut fabric), rport(9, 1));
    flap(&fabric, RemoteState::Lost);
    assert_eq!(next(&mut fabric), rport(9, 0));
    let luns: Vec<_> = (1..=64).map(|unit| Lun([0, unit, 0, 0, 0, 0, 0, 0])).collect();
    for &lun in &luns {
        fabric.target.attach_native(lun, disk().1).unwrap();
    }
    assert_eq!(next(&mut fabric), LOOK_AGAIN);
    silence(&mut fabric);
    luns.iter().for_each(|&lun| detach(&fabric, lun));
    flap(&fabric, RemoteState::Online);
    // A buffer is there already.
    assert_eq!(fabric.guest.wait_used(1).1, 16);
    for &Lun([a, b, ..]) in &luns[1..] {
        assert_eq!(next(&mut fabric), (1, [1, 5, a, b, 0, 0, 0, 0], 2));
    }
    assert_eq!(next(&mut fabric), rport(9, 1));
    silence(&mut fabric);
}

#[test]
fn events_of_ports_that_were_dropped_are_missed() {
    let mut fabric = Fabric::new(ALL);
    for target in 10..80 {
        fabric.san.add(target);
    }
    // The port that is lost last has no place.
    fabric.san.set_state(79, RemoteState::Lost);
    fabric.san.set_state(10, RemoteState::Lost);
    for target in (11..74).chain([10]) {
        assert_eq!(next(&mut fabric), rport(target, u32::from(target != 10)));
    }
    assert_eq!(next(&mut fabric), (0x8000_0000, [0; 8], 0));
    silence(&mut fabric);
}

/// A port that comes in a bad moment is told of when it is there; and that it was given up is not forgotten before.
#[test]
fn a_port_is_told_of_when_it_is_online() {
    for features in [ALL, HOTPLUG] {
        let (mut guest, san) = slow();
        guest.start(VERSION_1 | features, 16);
        let found = Emulated::new("slow", [7]).view().remotes[&7];
        let look = |guest: &mut Guest, state| {
            let listener = san.listener.lock().unwrap().clone().unwrap();
            san.view.lock().unwrap().remotes.insert(7, RemotePort { state, ..found });
            listener.changed();
            guest.used(1).is_some()
        };
        let told = if features == ALL { rport(7, 1) } else { (1, [1, 7, 0, 0, 0, 0, 0, 0], 1) };
        let buffer = offer(&mut guest, 16);
        for state in [RemoteState::Blocked, RemoteState::Lost, RemoteState::Blocked] {
            assert!(!look(&mut guest, state));
        }
        guest.expect_silence(1);
        look(&mut guest, RemoteState::Online);
        guest.wait_for("an event", || guest.peek(buffer, 1) != [0xee]);
        let bytes = guest.peek(buffer, 16);
        assert_eq!((bytes[0], &bytes[4..12], bytes[12]), (told.0 as u8, &told.1[..], told.2 as u8));
    }
}

#[test]
fn a_port_that_was_given_up_is_looked_for_whatever_is_said_in_between() {
    let mut fabric = Fabric::new(HOTPLUG);
    // Linux before 5.10, and FreeBSD, look at no other unit than an event names.
    for unit in [3, 4] {
        fabric.target.attach_native(Lun([0, unit, 0, 0, 0, 0, 0, 0]), disk().1).unwrap();
        assert_eq!(next(&mut fabric), (1, [1, 5, 0, unit, 0, 0, 0, 0], 1));
    }
    for state in [RemoteState::Lost, RemoteState::Blocked, RemoteState::Online] {
        fabric.san.set_state(5, state);
    }
    for unit in [0, 3, 4] {
        assert_eq!(next(&mut fabric), (1, [1, 5, 0, unit, 0, 0, 0, 0], 1));
    }
    for state in [RemoteState::Blocked, RemoteState::Online] {
        fabric.san.set_state(5, state);
    }
    silence(&mut fabric);
}

/// A stock driver would take the first level for the whole, and remove another disk.
#[test]
fn a_driver_that_addresses_in_another_way_hears_nothing_of_the_one_before() {
    let mut fabric = Fabric::cold();
    let deep = Lun([0, 5, 1, 2, 0, 0, 0, 0]);
    fabric.target.attach_native(deep, disk().1).unwrap();
    fabric.guest.start(VERSION_1 | ALL, 16);
    fabric.settle([1, 5, 0, 5, 1, 2, 0, 0]);
    fabric.guest.reset();
    detach(&fabric, deep);
    fabric.guest.start(VERSION_1 | HOTPLUG, 16);
    // It looks instead.
    assert_eq!(next(&mut fabric), (0x8000_0000, [0; 8], 0));
    silence(&mut fabric);
}

#[test]
fn another_driver_addresses_in_its_own_way() {
    let mut fabric = Fabric::new(ALL);
    let deep = Lun([0, 5, 1, 2, 0, 0, 0, 0]);
    fabric.target.attach_native(deep, disk().1).unwrap();
    assert_eq!(fabric.luns(lun(5, 0)).len(), 2);
    fabric.guest.start(VERSION_1 | HOTPLUG, 16);
    assert_eq!(fabric.luns(lun(5, 0)).len(), 1);
    fabric.guest.start(VERSION_1 | ALL, 16);
    assert_eq!(fabric.luns(lun(5, 0)).len(), 2);
}
