//! Ports that are lost and back.

use super::*;

#[test]
fn a_port_that_is_lost_and_back_has_its_units_again() {
    let mut world = with_units(&[0, 5]);
    world.remote_state("rport-8:0-0", "Blocked");
    world.step();
    world.heard(&["view 0 Blocked"]);
    world.jobs.clear();
    world.pass(4);
    world.heard(&[]);
    assert!(world.jobs.is_empty(), "nothing waits for it");
    world.pass(1);
    world.heard(&["view 0 Lost"]);
    // Within dev_loss_tmo: the same devices.
    world.remote_state("rport-8:0-0", "Online");
    world.pass(2);
    world.heard(&["view 0 Blocked", "view 0 Online"]);
    // The kernel fails commands sooner than was thought.
    world.remote_state("rport-8:0-0", "Blocked");
    world.unit_state("8:0:0:5", "transport-offline");
    world.step();
    world.heard(&["view 0 Lost"]);
    // And then it forgets the units.
    world.remote_state("rport-8:0-0", "Not Present");
    world.tree.file("sys/class/fc_remote_ports/rport-8:0-0/node_name", "0xffffffffffffffff\n");
    world.tree.file("sys/class/fc_remote_ports/rport-8:0-0/roles", "unknown\n");
    for unit in ["8:0:0:0", "8:0:0:5"] {
        world.remove(unit);
    }
    world.pass(60);
    world.heard(&["0 0 lost", "0 5 lost"]);
    // Another remote port of the kernel's, with another target, is the same to the guest.
    fs::remove_file(world.tree.path("sys/class/fc_remote_ports/rport-8:0-0")).unwrap();
    world.target("rport-8:0-7", FIRST, 3, &[0, 5]);
    world.pass(3);
    world.heard(&["view 0 Blocked", "0 0 back at 8:0:3:0", "0 5 back at 8:0:3:5", "view 0 Online"]);
}

#[test]
fn what_is_another_device_than_before_is_another_unit() {
    let mut world = with_units(&[0, 5, 6]);
    // While it was away.
    world.remote_state("rport-8:0-0", "Not Present");
    ["8:0:0:0", "8:0:0:5", "8:0:0:6"].iter().for_each(|unit| world.remove(unit));
    world.step();
    world.heard(&["view 0 Lost", "0 0 lost", "0 5 lost", "0 6 lost"]);
    world.names.insert("8:0:1:5".into(), "naa.6other".into());
    world.says.insert("8:0:1:5".into(), "naa.6other".into());
    fs::remove_file(world.tree.path("sys/class/fc_remote_ports/rport-8:0-0")).unwrap();
    // One is not there any more, too.
    world.target("rport-8:0-1", FIRST, 1, &[0, 5]);
    world.pass(32);
    let moved =
        "LUN 5 of target 0 (8:0:1:5) has become another device at the array; the guest gets it as a new one";
    world.heard(&[
        "view 0 Blocked",
        "0 0 back at 8:0:1:0",
        "view 0 Online",
        "0 5 gone",
        moved,
        "0 6 gone",
        "0 5 came at 8:0:1:5",
    ]);
}

#[test]
fn a_target_without_units_that_is_back_has_none() {
    let mut world = with_units(&[0]);
    world.remote_state("rport-8:0-0", "Not Present");
    world.remove("8:0:0:0");
    world.step();
    world.heard.clear();
    world.arrays.insert(0, luns(&[]));
    world.remote_state("rport-8:0-0", "Online");
    world.pass(2);
    world.heard(&["view 0 Blocked", "view 0 Online"]);
    world.pass(27);
    world.heard(&[]);
    world.pass(5);
    world.heard(&["0 0 gone"]);
}

#[test]
fn a_tree_that_says_nothing_loses_ports_and_nothing_else() {
    let mut world = with_units(&[0]);
    world.inventory.saw(None, world.now);
    world.inventory.work(world.now).into_iter().for_each(|order| match order {
        Order::Say(news) => world.heard.push(format!("{news:?}").split('(').next().unwrap().to_owned()),
        other => panic!("{other:?}"),
    });
    world.heard(&["View", "Warning", "Unit"]);
    world.pass(1);
    world.heard(&["view 0 Blocked", "0 0 back at 8:0:0:0", "view 0 Online"]);
    world.tree.file("sys/class/fc_remote_ports/rport-8:0-0/port_name", "nonsense\n");
    world.step();
    world.heard(&["view 0 Lost", "0 0 lost"]);
}

/// Its commands are answered when it has said who it is.
#[test]
fn a_unit_that_does_not_answer_holds_up_no_other_when_its_port_is_back() {
    let mut world = with_units(&[0, 5]);
    let back = |world: &mut World| {
        world.remote_state("rport-8:0-0", "Blocked");
        world.step();
        world.heard(&["view 0 Blocked"]);
        world.remote_state("rport-8:0-0", "Online");
    };
    back(&mut world);
    world.says.insert("8:0:0:5".into(), String::new());
    world.step();
    world.heard(&["0 5 doubted", "view 0 Online"]);
    world.says.clear();
    world.pass(2);
    world.heard(&["0 5 trusted"]);
    // One that says nothing at all is waited for for a while.
    world.stuck = |job| matches!(job, Job::Who(address, _) if address.lun.0 == 5);
    back(&mut world);
    world.pass(8);
    world.heard(&[]);
    world.pass(1);
    world.heard(&["0 5 doubted", "view 0 Online"]);
    // Nothing is sent to it, and not for ever.
    world.pass(20);
    world.heard(&["0 5 lost"]);
    world.stuck = |_| false;
    for (target, job) in std::mem::take(&mut world.kept) {
        let done = world.work_on(target, job.clone());
        world.inventory.done(target, &job, done, world.now);
    }
    world.pass(2);
    world.heard(&["0 5 back at 8:0:0:5"]);
}

#[test]
fn a_port_that_is_shown_to_be_back_is_not_blocked_again() {
    let mut world = with_units(&[0, 5]);
    world.remote_state("rport-8:0-0", "Blocked");
    world.step();
    world.remote_state("rport-8:0-0", "Online");
    world.step();
    world.heard(&["view 0 Blocked", "view 0 Online"]);
    world.stuck = |job| matches!(job, Job::Who(..));
    uevent(&mut world, 0, Reason::Luns);
    world.pass(4);
    assert_eq!(world.kept.len(), 2);
    world.remove("8:0:0:5");
    world.pass(2);
    world.heard(&["0 5 lost", "0 5 back at 8:0:0:5"]);
}

#[test]
fn a_unit_that_cannot_be_opened_holds_up_no_other_when_its_port_is_back() {
    let mut world = with_units(&[0, 5]);
    world.remote_state("rport-8:0-0", "Not Present");
    ["8:0:0:0", "8:0:0:5"].iter().for_each(|unit| world.remove(unit));
    world.step();
    world.heard.clear();
    world.busy.insert("8:0:0:5".into(), "it is in use".into());
    world.remote_state("rport-8:0-0", "Online");
    world.pass(3);
    world.heard(&[
        "view 0 Blocked",
        "0 0 back at 8:0:0:0",
        "LUN 5 of target 0 (8:0:0:5) is not shown to the guest: it is in use",
        "view 0 Online",
    ]);
}

/// An array that has just started may have little to say at first.
#[test]
fn a_port_that_has_come_may_not_know_all_its_units_yet() {
    let mut world = World::new(wanted());
    world.target("rport-8:0-0", FIRST, 0, &[0, 5]);
    world.step();
    world.arrays.insert(0, luns(&[0]));
    world.pass(29);
    world.heard(&["view 0 Online", "0 0 came at 8:0:0:0", "0 5 came at 8:0:0:5", "looked 0"]);
    world.arrays.insert(0, luns(&[0, 5]));
    world.pass(10);
    world.heard(&[]);
}
