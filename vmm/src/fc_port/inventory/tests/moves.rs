//! A port that changes its names: another host sees the same.

use super::*;

const OTHER: &str = "devices/pci0/host5/vport-5:0-1/host12";

/// The host of the port with the other names, with a target port that has these units, under these names.
fn other(world: &World, remote: &str, units: &[(u64, &str)]) {
    let port = Port {
        number: 12,
        wwpn: "0x210102123456789a",
        wwnn: "0x200102123456789a",
        state: "Online",
        kind: NPORT,
        driver: "lpfc",
        npiv: None,
    };
    world.tree.host(&OTHER[..OTHER.rfind('/').unwrap()], &port);
    world.tree.remote(OTHER, remote, FIRST, "FCP Target", 3);
    units.iter().for_each(|(number, name)| unit(world, remote, *number, name));
}

fn unit(world: &World, remote: &str, number: u64, name: &str) {
    let at =
        world.tree.unit(&format!("{OTHER}/{remote}"), &format!("12:0:3:{number}"), 0, &[("block", "sdx")]);
    world.tree.file(&format!("sys/{at}/wwid"), &format!("{name}\n"));
}

fn seen(world: &World) -> Glimpse {
    Glimpse::read(&world.tree.roots(), 12).unwrap().unwrap()
}

const NAMES: [&str; 2] = ["naa.6000000000000000", "naa.6000000000000005"];

#[test]
fn all_units_go_on_behind_the_other_names() {
    let mut world = with_units(&[0, 5]);
    other(&world, "rport-12:0-0", &[(0, NAMES[0]), (5, NAMES[1])]);
    let seen = seen(&world);
    assert_eq!(world.inventory.missing(&seen), Vec::<String>::new());
    assert_eq!((world.inventory.active(), world.inventory.has_moved()), (Active::Primary, true));
    world.arrays.insert(3, luns(&[0, 5]));
    world.inventory.move_to(Active::Secondary, &seen, world.now);
    assert!(!world.inventory.has_moved());
    world.host = 12;
    world.pass(1);
    // Commands wait before a unit has no device, and until all have one again. No port was lost, as the guest sees it.
    world.heard(&[
        "view 0 Blocked",
        "0 0 lost",
        "0 5 lost",
        "0 0 back at 12:0:3:0",
        "0 5 back at 12:0:3:5",
        "view 0 Online",
    ]);
    assert_eq!((world.inventory.active(), world.inventory.has_moved()), (Active::Secondary, true));
    assert_eq!(world.inventory.view.local.active, Active::Secondary);
    assert!(world.jobs.iter().any(|(_, job)| *job
        == Job::Tune("rport-12:0-0".into(), vec![("fast_io_fail_tmo", 5), ("dev_loss_tmo", 30)])));
    world.pass(60);
    world.heard(&[]);
    // And back, by which it is known already.
    let first = Glimpse::read(&world.tree.roots(), 8).unwrap().unwrap();
    assert_eq!(world.inventory.missing(&first), Vec::<String>::new());
    world.inventory.move_to(Active::Primary, &first, world.now);
    world.host = 8;
    world.pass(1);
    world.heard(&[
        "view 0 Blocked",
        "0 0 lost",
        "0 5 lost",
        "0 0 back at 8:0:0:0",
        "0 5 back at 8:0:0:5",
        "view 0 Online",
    ]);
    assert_eq!(world.inventory.view.local.active, Active::Primary);
}

#[test]
fn what_the_other_names_do_not_see_is_known_before() {
    let mut world = with_units(&[0, 5]);
    assert_eq!(
        world.inventory.missing(&Glimpse::default()),
        ["target 0 (port 5006016044602198) is not there"]
    );
    other(&world, "rport-12:0-0", &[(0, NAMES[0])]);
    assert_eq!(world.inventory.missing(&seen(&world)), ["LUN 5 of target 0 is not there"]);
    unit(&world, "rport-12:0-0", 5, "naa.6other");
    assert_eq!(world.inventory.missing(&seen(&world)), ["LUN 5 of target 0 is another one"]);
    world.remote_state("rport-12:0-0", "Blocked");
    assert_eq!(world.inventory.missing(&seen(&world)).len(), 1);
    // What the machine has not itself is not wanted there either.
    world.remote_state("rport-12:0-0", "Online");
    world.arrays.insert(0, luns(&[0]));
    world.remove("8:0:0:5");
    world.pass(40);
    assert_eq!(world.inventory.missing(&seen(&world)), Vec::<String>::new());
}

/// What comes back here may not come there: the second WWPN may not be zoned to it.
#[test]
fn what_is_lost_at_the_moment_counts() {
    let mut world = with_units(&[0, 5]);
    world.target("rport-8:0-1", SECOND, 1, &[7]);
    world.pass(40);
    other(&world, "rport-12:0-0", &[(0, NAMES[0]), (5, NAMES[1])]);
    let missing = |world: &World| world.inventory.missing(&seen(world));
    assert_eq!(missing(&world), ["target 1 (port 5006016144602198) is not there"]);
    let second = "target 1 (port 5006016144602198) is not there, and is lost here at the moment";
    world.remote_state("rport-8:0-1", "Blocked");
    world.step();
    assert_eq!(missing(&world), [second]);
    // Its commands fail, and the kernel waits for it still.
    world.pass(10);
    assert_eq!(missing(&world), [second]);
    // The other names see it, and not its unit.
    world.tree.remote(OTHER, "rport-12:0-1", SECOND, "FCP Target", 4);
    assert_eq!(missing(&world), ["LUN 7 of target 1 is not there"]);
    world.remote_state("rport-12:0-1", "Not Present");
    // Nobody waits any more for one that the kernel has given up, unless nothing else is left.
    world.remote_state("rport-8:0-1", "Not Present");
    world.step();
    assert_eq!(missing(&world), Vec::<String>::new());
    world.remote_state("rport-8:0-0", "Not Present");
    world.step();
    assert_eq!(missing(&world), [second]);
    assert_eq!(world.inventory.missing(&Glimpse::default()).len(), 2);
}

#[test]
fn a_unit_that_has_just_vanished_counts() {
    let mut world = with_units(&[0, 5]);
    other(&world, "rport-12:0-0", &[(0, NAMES[0])]);
    world.remove("8:0:0:5");
    world.stuck = |job| matches!(job, Job::Scan(..));
    world.step();
    world.heard(&["0 5 lost"]);
    let lost = "LUN 5 of target 0 is not there, and is lost here at the moment";
    assert_eq!(world.inventory.missing(&seen(&world)), [lost]);
    unit(&world, "rport-12:0-0", 5, NAMES[1]);
    assert_eq!(world.inventory.missing(&seen(&world)), Vec::<String>::new());
}

/// The array shows it there, and somebody else of that host has it open; or it takes its time.
#[test]
fn units_that_do_not_come_back_are_left_behind() {
    let mut world = with_units(&[0, 5]);
    other(&world, "rport-12:0-0", &[(0, NAMES[0]), (5, NAMES[1])]);
    let seen = seen(&world);
    world.arrays.insert(3, luns(&[0, 5]));
    world.busy.insert("12:0:3:5".into(), "in use".into());
    world.inventory.move_to(Active::Secondary, &seen, world.now);
    world.host = 12;
    world.pass(10);
    // The port is there by now, and the unit is not.
    assert!(world.inventory.targets.values().all(|target| target.returns().is_none()));
    assert!(!world.inventory.has_moved());
    assert_eq!(world.inventory.left_behind(), ["LUN 5 of target 0"]);
    // It goes back, and has all.
    let first = Glimpse::read(&world.tree.roots(), 8).unwrap().unwrap();
    world.inventory.move_to(Active::Primary, &first, world.now);
    assert!(!world.inventory.has_moved());
    world.host = 8;
    world.pass(2);
    assert_eq!((world.inventory.left_behind(), world.inventory.has_moved()), (vec![], true));
    // One that comes late has moved.
    world.inventory.move_to(Active::Secondary, &seen, world.now);
    world.host = 12;
    world.pass(12);
    assert!(!world.inventory.has_moved());
    world.busy.clear();
    world.pass(20);
    assert!(world.inventory.has_moved());
}
