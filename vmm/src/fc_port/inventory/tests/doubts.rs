//! Units that may be others than they were.

use super::*;

/// What the array has behind a LUN is another device, which the kernel does not see.
fn remap(world: &mut World, number: u64) {
    let address = format!("8:0:0:{number}");
    world.names.insert(address.clone(), "naa.6other".into());
    world.says.insert(address, "naa.6other".into());
}

fn uevent(world: &mut World, number: u64, reason: Reason) {
    let thing = Thing::Unit(format!("8:0:0:{number}").parse().unwrap());
    let change = Change::Device(Uevent { action: fc::watch::Action::Changed, thing, reason: Some(reason) });
    world.inventory.heard(&change, world.now);
}

const ANOTHER: &str =
    "LUN 5 of target 0 (8:0:0:5) has become another device at the array; the guest gets it as a new one";

#[test]
fn a_unit_that_says_something_else_gets_nothing_until_it_is_known_who_it_is() {
    let mut world = with_units(&[0, 5]);
    uevent(&mut world, 5, Reason::Inquiry);
    for order in world.inventory.work(world.now) {
        match order {
            Order::Say(news) => world.hear(news),
            Order::Do(target, job) => {
                assert!(matches!(job, Job::Who(..)), "{job:?}");
                world.heard(&["0 5 lost"]);
                let done = world.work_on(target, job.clone());
                world.inventory.done(target, &job, done, world.now);
            }
            other => panic!("{other:?}"),
        }
    }
    world.step();
    world.heard(&["0 5 back at 8:0:0:5"]);
    assert!(world.jobs.iter().any(|(_, job)| matches!(job, Job::Rescan(_, false))));
    // It does not say who it is: it is asked again.
    world.says.insert("8:0:0:5".into(), String::new());
    uevent(&mut world, 5, Reason::Inquiry);
    world.pass(4);
    world.heard(&["0 5 lost"]);
    world.says.clear();
    world.pass(2);
    world.heard(&["0 5 back at 8:0:0:5"]);
    // It is another one.
    remap(&mut world, 5);
    uevent(&mut world, 5, Reason::Inquiry);
    world.pass(2);
    world.heard(&["0 5 lost", "0 5 gone", ANOTHER, "0 5 came at 8:0:0:5"]);
    let deleted = |job: &Job| matches!(job, Job::Delete(unit) if unit.address.to_string() == "8:0:0:5");
    assert!(world.jobs.iter().any(|(_, job)| deleted(job)));
}

#[test]
fn units_are_asked_who_they_are_when_their_target_says_that_they_are_others() {
    let mut world = with_units(&[0, 5]);
    remap(&mut world, 5);
    world.pass(4);
    world.heard(&[]);
    uevent(&mut world, 0, Reason::Luns);
    world.pass(2);
    world.heard(&["0 5 lost", "0 5 gone", ANOTHER, "0 5 came at 8:0:0:5"]);
    world.jobs.clear();
    world.pass(10);
    world.heard(&[]);
    assert!(!world.jobs.iter().any(|(_, job)| matches!(job, Job::Who(..))), "once");
}

#[test]
fn commands_that_waited_for_a_port_do_not_reach_another_device() {
    let mut world = with_units(&[0, 5]);
    // The kernel has its units run again a moment after the port is online.
    let states = |world: &World, state| ["8:0:0:0", "8:0:0:5"].map(|unit| world.unit_state(unit, state));
    world.remote_state("rport-8:0-0", "Blocked");
    states(&world, "blocked");
    world.step();
    remap(&mut world, 5);
    world.remote_state("rport-8:0-0", "Online");
    world.step();
    states(&world, "running");
    world.pass(2);
    let moved = ["0 5 lost", "0 5 gone", ANOTHER, "view 0 Online", "0 5 came at 8:0:0:5"];
    world.heard(&[&["view 0 Blocked"][..], &moved].concat());
}

/// That it does not say who it is, says nothing: what it says later counts.
#[test]
fn a_unit_that_did_not_answer_is_asked_again() {
    let mut world = with_units(&[0, 5]);
    world.remote_state("rport-8:0-0", "Blocked");
    world.step();
    world.says.insert("8:0:0:5".into(), String::new());
    world.remote_state("rport-8:0-0", "Online");
    world.step();
    world.heard(&["view 0 Blocked"]);
    remap(&mut world, 5);
    world.pass(3);
    world.heard(&["0 5 lost", "0 5 gone", ANOTHER, "view 0 Online", "0 5 came at 8:0:0:5"]);
}
