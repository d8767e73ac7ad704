//! What does not answer, or is not done.

use super::*;

#[test]
fn a_unit_that_does_not_answer_hides_no_new_one() {
    let mut world = with_units(&[0, 5]);
    world.stuck = |job| matches!(job, Job::Ask(address) if address.lun.0 == 0);
    world.pass(5);
    assert_eq!(world.kept.len(), 1);
    world.arrays.insert(0, luns(&[0, 5, 27]));
    world.pass(5);
    world.heard(&["0 27 came at 8:0:0:27"]);
    // It answers at last, with what was true when it was asked.
    let (target, job) = world.kept.remove(0);
    world.stuck = |_| false;
    for _ in 0..3 {
        world.inventory.done(target, &job, Done::Asked(luns(&[0, 5])), world.now);
    }
    world.pass(5);
    world.heard(&[]);
    // All of them: no more than some are asked at a time.
    world.stuck = |job| matches!(job, Job::Ask(_));
    world.pass(60);
    assert_eq!(world.kept.len(), 3);
}

#[test]
fn a_unit_that_does_not_say_who_it_is_hides_no_new_one() {
    let mut world = with_units(&[0, 5]);
    world.stuck = |job| matches!(job, Job::Who(..));
    uevent(&mut world, 5, Reason::Inquiry);
    world.arrays.insert(0, luns(&[0, 5, 27]));
    world.pass(3);
    world.heard(&["0 5 doubted", "0 27 came at 8:0:0:27"]);
}

/// Their commands end with BUSY meanwhile: some that hang at the host hold up nobody else. There is an end to threads, too.
#[test]
fn units_that_do_not_say_who_they_are_hold_up_no_other() {
    let numbers: Vec<u64> = (0..100).collect();
    let mut world = with_units(&numbers);
    world.stuck = |job| matches!(job, Job::Who(address, _) if address.lun.0 < 20);
    // The last is asked first.
    numbers.iter().rev().for_each(|number| uevent(&mut world, *number, Reason::Inquiry));
    world.pass(12);
    let trusted = world.heard.iter().filter(|line| line.ends_with("trusted")).count();
    assert_eq!((trusted, world.kept.len()), (80, 20));
    let mut world = with_units(&numbers);
    world.stuck = |job| matches!(job, Job::Who(..));
    numbers.iter().for_each(|number| uevent(&mut world, *number, Reason::Inquiry));
    world.pass(13);
    assert_eq!(world.kept.len(), 64);
}

/// Those whose commands wait do not wait for those whose do not.
#[test]
fn a_unit_that_says_something_else_is_asked_before_others() {
    let numbers: Vec<u64> = (0..40).collect();
    let mut world = with_units(&numbers);
    world.stuck = |job| matches!(job, Job::Who(..));
    uevent(&mut world, 0, Reason::Luns);
    world.pass(2);
    let count = world.kept.len();
    assert!((2..40).contains(&count), "{count}");
    uevent(&mut world, 39, Reason::Inquiry);
    let (target, job) = world.kept.remove(0);
    world.inventory.done(target, &job, Done::Who(Who::Same), world.now);
    world.step();
    assert!(matches!(world.kept.last(), Some((0, Job::Who(address, _))) if address.lun.0 == 39));
}

#[test]
fn the_kernel_is_told_again_what_it_did_not_do() {
    let mut world = with_units(&[0, 5]);
    world.fails = |job| matches!(job, Job::Delete(_)).then_some("Resource temporarily unavailable");
    world.arrays.insert(0, luns(&[0]));
    world.pass(4);
    // At once, for the kernel has its device still.
    world.heard(&["0 5 lost", "0 5 gone"]);
    world.fails = |_| None;
    world.pass(6);
    assert!(!world.tree.path("sys/class/scsi_device/8:0:0:5").exists());
    // Not for ever.
    let mut world = with_units(&[0, 5]);
    world.fails = |job| matches!(job, Job::Delete(_)).then_some("no");
    world.arrays.insert(0, luns(&[0]));
    world.pass(90);
    let at = fs::canonicalize(world.tree.path("sys/class/scsi_device/8:0:0:5/device")).unwrap();
    let said = format!(
        "LUN 5 of target 0 (8:0:0:5): the host's kernel does not take delete (no); the guest does not get what the array has there now; \
         write 1 to {} by hand",
        at.join("delete").display()
    );
    world.heard(&["0 5 lost", "0 5 gone", &said]);
    assert_eq!(world.jobs.iter().filter(|(_, job)| matches!(job, Job::Delete(_))).count(), 4);
}

/// Each return opens all units anew, and those that hang at the host are let go of: there is an end to their threads.
#[test]
fn a_port_that_comes_and_goes_has_no_more_and_more_units_opened() {
    let numbers: Vec<u64> = (0..64).collect();
    let mut world = with_units(&numbers);
    world.opens = false;
    for _ in 0..6 {
        world.remote_state("rport-8:0-0", "Not Present");
        numbers.iter().for_each(|number| world.remove(&format!("8:0:0:{number}")));
        world.pass(1);
        numbers.iter().for_each(|number| world.unit("rport-8:0-0", &format!("8:0:0:{number}")));
        world.remote_state("rport-8:0-0", "Online");
        world.pass(3);
    }
    assert_eq!(world.left_open.len(), 256);
    // Each that ends makes room.
    world.opens = true;
    let ended = std::mem::take(&mut world.left_open);
    ended
        .into_iter()
        .for_each(|opening| drop(world.inventory.opened(opening.ticket, Opened::Later, world.now)));
    world.heard.clear();
    world.pass(2);
    assert_eq!(world.heard.iter().filter(|line| line.contains("back at")).count(), 64, "{:?}", world.heard);
}
