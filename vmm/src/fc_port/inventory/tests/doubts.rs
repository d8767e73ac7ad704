//! Units that may be others than they were.

use super::*;

#[test]
fn a_unit_that_says_something_else_gets_nothing_until_it_is_known_who_it_is() {
    let mut world = with_units(&[0, 5]);
    uevent(&mut world, 5, Reason::Inquiry);
    for order in world.inventory.work(world.now) {
        match order {
            Order::Say(news) => world.hear(news),
            Order::Do(target, job) => {
                assert!(matches!(job, Job::Who(..)), "{job:?}");
                world.heard(&["0 5 doubted"]);
                let done = world.work_on(target, job.clone());
                world.inventory.done(target, &job, done, world.now);
            }
            other => panic!("{other:?}"),
        }
    }
    world.step();
    world.heard(&["0 5 trusted"]);
    assert!(world.jobs.iter().any(|(_, job)| matches!(job, Job::Rescan(_, false))));
    // It does not say who it is: it is asked again, for a while.
    world.says.insert("8:0:0:5".into(), String::new());
    uevent(&mut world, 5, Reason::Inquiry);
    world.pass(19);
    world.heard(&["0 5 doubted"]);
    // To say it again and again is no answer.
    uevent(&mut world, 5, Reason::Inquiry);
    world.pass(1);
    world.heard(&["0 5 lost"]);
    world.says.clear();
    world.pass(3);
    world.heard(&["0 5 back at 8:0:0:5"]);
    // It is another one.
    remap(&mut world, 5);
    uevent(&mut world, 5, Reason::Inquiry);
    world.pass(2);
    world.heard(&["0 5 doubted", "0 5 lost", "0 5 gone", ANOTHER, "0 5 came at 8:0:0:5"]);
    let deleted = |job: &Job| matches!(job, Job::Delete(unit) if unit.address.to_string() == "8:0:0:5");
    assert!(world.jobs.iter().any(|(_, job)| deleted(job)));
}

/// After an update of an array all its units say so.
#[test]
fn units_that_are_who_they_were_stay() {
    let numbers: Vec<u64> = (0..100).collect();
    let mut world = with_units(&numbers);
    numbers.iter().for_each(|number| uevent(&mut world, *number, Reason::Inquiry));
    world.pass(3);
    let count = |what: &str| world.heard.iter().filter(|line| line.ends_with(what)).count();
    assert_eq!((count("doubted"), count("trusted"), world.heard.len()), (100, 100, 200));
}

#[test]
fn a_unit_that_says_once_that_it_is_another_one_may_be_mistaken() {
    let mut world = with_units(&[0, 5]);
    world.says.insert("8:0:0:5".into(), "naa.6other".into());
    uevent(&mut world, 5, Reason::Inquiry);
    world.step();
    world.heard(&["0 5 doubted"]);
    world.says.clear();
    world.pass(5);
    world.heard(&["0 5 trusted"]);
}

/// It was asked before the change, and has answered after it.
#[test]
fn an_answer_of_before_counts_no_more() {
    let mut world = with_units(&[0, 5]);
    world.stuck = |job| matches!(job, Job::Who(..));
    uevent(&mut world, 5, Reason::Inquiry);
    world.pass(1);
    world.heard(&["0 5 doubted"]);
    remap(&mut world, 5);
    uevent(&mut world, 5, Reason::Inquiry);
    world.pass(1);
    assert_eq!(world.kept.len(), 1, "one after the other");
    let (target, job) = world.kept.remove(0);
    world.inventory.done(target, &job, Done::Who(Who::Same), world.now);
    world.stuck = |_| false;
    world.pass(3);
    world.heard(&["0 5 lost", "0 5 gone", ANOTHER, "0 5 came at 8:0:0:5"]);
}

#[test]
fn a_unit_that_the_kernel_calls_otherwise_is_asked_and_the_kernel_forgets_another_one() {
    let mut world = with_units(&[0, 5]);
    world.names.insert("8:0:0:5".into(), "naa.6more".into());
    let rename = |world: &World| {
        let name = world.name_of("8:0:0:5");
        world.tree.file("sys/class/scsi_device/8:0:0:5/device/wwid", &format!("{name}\n"));
    };
    rename(&world);
    world.pass(2);
    world.heard(&["0 5 doubted", "0 5 trusted"]);
    world.jobs.clear();
    remap(&mut world, 5);
    rename(&world);
    world.pass(3);
    world.heard(&["0 5 doubted", "0 5 lost", "0 5 gone", ANOTHER, "0 5 came at 8:0:0:5"]);
    let place = |name: &str| world.jobs.iter().position(|(_, job)| format!("{job:?}").starts_with(name));
    assert!(place("Delete").unwrap() < place("Scan").unwrap());
}

/// Just after a return it may not have said all its names.
#[test]
fn a_unit_that_the_kernel_has_heard_badly_is_asked() {
    let mut world = with_units(&[0, 5]);
    let comes_back = |world: &mut World, kept: &str| {
        world.remote_state("rport-8:0-0", "Not Present");
        ["8:0:0:0", "8:0:0:5"].iter().for_each(|unit| world.remove(unit));
        world.step();
        world.heard.clear();
        world.names.insert("8:0:0:5".into(), kept.into());
        world.unit("rport-8:0-0", "8:0:0:0");
        world.unit("rport-8:0-0", "8:0:0:5");
        world.remote_state("rport-8:0-0", "Online");
    };
    comes_back(&mut world, "naa.6bad");
    world.names.clear();
    world.pass(4);
    world.heard(&["view 0 Blocked", "0 0 back at 8:0:0:0", "0 5 back at 8:0:0:5", "view 0 Online"]);
    // It hears it so again.
    comes_back(&mut world, "naa.6bad");
    world.pass(29);
    world.heard(&["view 0 Blocked", "0 0 back at 8:0:0:0", "view 0 Online"]);
    world.pass(8);
    world.heard(&["0 5 gone", "0 5 came at 8:0:0:5"]);
}

#[test]
fn units_are_asked_who_they_are_when_their_target_says_that_they_are_others() {
    let mut world = with_units(&[0, 5]);
    remap(&mut world, 5);
    world.pass(4);
    world.heard(&[]);
    uevent(&mut world, 0, Reason::Luns);
    world.pass(3);
    world.heard(&["0 5 doubted", "0 5 lost", "0 5 gone", ANOTHER, "0 5 came at 8:0:0:5"]);
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
    // The others do not wait for it, and it is not taken away while the array may not know its units yet.
    world.pass(19);
    world.heard(&["view 0 Blocked", "0 5 doubted", "view 0 Online"]);
    world.pass(10);
    world.heard(&["0 5 lost"]);
    world.pass(3);
    world.heard(&["0 5 gone", ANOTHER, "0 5 came at 8:0:0:5"]);
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
    world.heard(&["view 0 Blocked", "0 5 doubted", "view 0 Online"]);
    remap(&mut world, 5);
    world.pass(32);
    world.heard(&["0 5 lost", "0 5 gone", ANOTHER, "0 5 came at 8:0:0:5"]);
}

/// An array that has just taken over may say other names for a while.
#[test]
fn a_port_that_is_back_has_time_to_say_who_its_units_are() {
    let mut world = with_units(&[0, 5]);
    world.remote_state("rport-8:0-0", "Blocked");
    world.step();
    world.says.insert("8:0:0:5".into(), "naa.6other".into());
    world.remote_state("rport-8:0-0", "Online");
    world.pass(15);
    world.heard(&["view 0 Blocked", "0 5 doubted", "view 0 Online"]);
    world.says.clear();
    world.pass(3);
    world.heard(&["0 5 trusted"]);
}

/// Twice in a row: between the two it may have been another array that answers.
#[test]
fn a_unit_that_is_silent_between_has_said_nothing_in_a_row() {
    let mut world = with_units(&[0, 5]);
    world.stuck = |job| matches!(job, Job::Who(..));
    uevent(&mut world, 5, Reason::Inquiry);
    let answer = |world: &mut World, who: Who| {
        world.pass(2);
        let (target, job) = world.kept.remove(0);
        world.inventory.done(target, &job, Done::Who(who), world.now);
        world.step();
    };
    answer(&mut world, Who::Other);
    answer(&mut world, Who::Nothing("busy".into()));
    answer(&mut world, Who::Other);
    world.heard(&["0 5 doubted"]);
    answer(&mut world, Who::Same);
    world.heard(&["0 5 trusted"]);
}

/// It has gone only if the kernel has heard anew who it is, and takes it for another one still.
#[test]
fn a_unit_that_says_who_it_is_waits_for_the_kernel_to_hear_it() {
    let mut world = with_units(&[0, 5]);
    world.remote_state("rport-8:0-0", "Not Present");
    ["8:0:0:0", "8:0:0:5"].iter().for_each(|unit| world.remove(unit));
    world.step();
    world.heard.clear();
    world.names.insert("8:0:0:5".into(), "naa.6bad".into());
    world.unit("rport-8:0-0", "8:0:0:0");
    world.unit("rport-8:0-0", "8:0:0:5");
    world.names.clear();
    world.stuck = |job| matches!(job, Job::Rescan(..));
    world.remote_state("rport-8:0-0", "Online");
    world.pass(40);
    world.heard(&["view 0 Blocked", "0 0 back at 8:0:0:0", "view 0 Online"]);
    assert_eq!(world.kept.len(), 1, "{:?}", world.kept);
    world.stuck = |_| false;
    world.jobs.clear();
    let (target, job) = world.kept.remove(0);
    let done = world.work_on(target, job.clone());
    world.inventory.done(target, &job, done, world.now);
    world.pass(2);
    world.heard(&["0 5 back at 8:0:0:5"]);
    let of = |name: &str| world.jobs.iter().filter(|(_, job)| format!("{job:?}").starts_with(name)).count();
    // The kernel calls it otherwise now, which is a reason of its own.
    assert_eq!((of("Rescan"), of("Who")), (2, 2), "and it is asked once more");
}

/// What the kernel knows of it stays old: nothing is taken away for that.
#[test]
fn a_unit_of_which_the_kernel_does_not_hear_anew_stays_away() {
    let mut world = with_units(&[0, 5]);
    world.remote_state("rport-8:0-0", "Not Present");
    ["8:0:0:0", "8:0:0:5"].iter().for_each(|unit| world.remove(unit));
    world.step();
    world.names.insert("8:0:0:5".into(), "naa.6bad".into());
    world.unit("rport-8:0-0", "8:0:0:0");
    world.unit("rport-8:0-0", "8:0:0:5");
    world.names.clear();
    world.fails = |job| matches!(job, Job::Rescan(..)).then_some("No such device");
    world.remote_state("rport-8:0-0", "Online");
    world.pass(120);
    assert!(!world.heard.iter().any(|line| line.contains("gone")), "{:?}", world.heard);
    assert!(world.heard.iter().any(|line| line.contains("does not take rescan")), "{:?}", world.heard);
    world.fails = |_| None;
    world.heard.clear();
    world.pass(30);
    world.heard(&["0 5 back at 8:0:0:5"]);
}
