//! Ports and units that come and go.

use super::*;

#[test]
fn ports_and_units_come() {
    let mut world = World::new(wanted());
    world.step();
    world.heard(&["view"]);
    world.target("rport-8:0-0", FIRST, 0, &[0, 5, 0x4201]);
    world.target("rport-8:0-1", SECOND, 1, &[27]);
    world.tree.remote(HOST, "rport-8:0-2", ("0x2100000000000a01", "0x2000000000000a01"), "FCP Initiator", -1);
    world.pass(4);
    world.heard(&[
        "view 0 Online 1 Online",
        "0 0 came at 8:0:0:0",
        "0 5 came at 8:0:0:5",
        "0 513 came at 8:0:0:16897",
        "1 27 came at 8:0:1:27",
        "looked 0",
    ]);
    let first = |name: &str| world.jobs.iter().position(|(_, job)| format!("{job:?}").starts_with(name));
    let tuned = world.jobs[first("Tune").unwrap()].1.clone();
    assert_eq!(tuned, Job::Tune("rport-8:0-0".into(), vec![("fast_io_fail_tmo", 5), ("dev_loss_tmo", 30)]));
    assert!(first("Ask").is_some() && first("Scan").is_none() && first("Delete").is_none());
    assert_eq!(world.jobs.iter().filter(|(_, job)| matches!(job, Job::Tune(..))).count(), 2, "once each");
    // Asked again and again, and nothing comes of it.
    world.jobs.clear();
    world.pass(6);
    world.heard(&[]);
    let asks = world.jobs.iter().filter(|(target, job)| *target == 1 && matches!(job, Job::Ask(..))).count();
    assert_eq!((asks, world.jobs.len()), (4, 8));
}

#[test]
fn what_is_masked_otherwise_comes_and_goes() {
    let mut world = with_units(&[0, 5]);
    world.arrays.insert(0, luns(&[0, 5, 27]));
    world.pass(2);
    world.heard(&["0 27 came at 8:0:0:27"]);
    assert!(world.jobs.iter().any(|(_, job)| *job == Job::Scan("8:0:0:27".parse().unwrap(), true)));
    world.arrays.insert(0, luns(&[0, 27]));
    world.pass(4);
    world.heard(&["0 5 lost", "0 5 gone"]);
    assert!(!world.tree.path("sys/class/scsi_device/8:0:0:5").exists());
    world.pass(4);
    world.heard(&[]);
    // All of them: the unit that is asked says that it is none.
    world.arrays.insert(0, Luns::NoUnit);
    world.pass(6);
    world.heard(&["0 0 lost", "0 0 gone", "0 27 lost", "0 27 gone"]);
    // The kernel looks by itself, and the first that comes is found by that.
    world.arrays.insert(0, luns(&[9]));
    world.pass(4);
    world.heard(&["0 9 came at 8:0:0:9"]);
}

#[test]
fn an_answer_that_is_none_or_wrong_once_takes_nothing_away() {
    let mut world = with_units(&[0, 5]);
    world.arrays.insert(0, Luns::Nothing("busy".into()));
    world.pass(10);
    world.arrays.insert(0, luns(&[0]));
    world.jobs.clear();
    while world.jobs.is_empty() {
        world.now += Duration::from_millis(100);
        world.step();
    }
    world.arrays.insert(0, luns(&[0, 5]));
    world.pass(10);
    world.heard(&[]);
    // What the kernel does not take is tried now and then.
    world.arrays.insert(0, luns(&[0, 5, 7]));
    world.hangs = None;
    world.jobs.clear();
    for _ in 0..80 {
        world.now += Duration::from_millis(500);
        world.step();
        world.remove("8:0:0:7");
        world.inventory.units.remove(&(0, lun(7)));
    }
    let scans = world.jobs.iter().filter(|(_, job)| matches!(job, Job::Scan(..))).count();
    assert_eq!(scans, 2);
}

#[test]
fn the_machine_sees_what_it_shall() {
    let mut world =
        World::new(Wanted { luns: vec![(5, 20), (513, 513), (0x4010_0000_0000_0000, u64::MAX)], ..wanted() });
    // 0xc101: a well known unit.
    world.target("rport-8:0-0", FIRST, 0, &[0, 5, 21, 0x4201, 0x400a_4010, 0xc101, 0x0001_0000_0000_4010]);
    world.tree.file("sys/class/scsi_device/8:0:0:5/device/type", "1\n");
    world.pass(4);
    world.heard(&[
        "LUN 0x4010000000000001 of target 0 has four levels, of which a guest can be told three; it is left out, as all such of that target \
         are",
        "view 0 Online",
        "0 5 came at 8:0:0:5",
        "0 0x4010400a00000000 came at 8:0:0:1074413584",
        "0 513 came at 8:0:0:16897",
        "looked 0",
    ]);
    world.arrays.insert(0, luns(&[0, 5, 6, 22, 0x4201, 0x400a_4010]));
    world.jobs.clear();
    world.pass(3);
    world.heard(&["0 6 came at 8:0:0:6"]);
    let scans: Vec<_> = world.jobs.iter().filter(|(_, job)| matches!(job, Job::Scan(..))).collect();
    assert_eq!(scans.len(), 1, "{scans:?}");
}

#[test]
fn numbers_of_targets_stay_over_a_restart() {
    let mut world = World::new(wanted());
    world.target("rport-8:0-0", SECOND, 0, &[1]);
    world.pass(2);
    world.target("rport-8:0-1", FIRST, 1, &[2]);
    world.pass(2);
    world.heard(&[
        "view 0 Online",
        "0 1 came at 8:0:0:1",
        "looked 0",
        "view 0 Online 1 Online",
        "1 2 came at 8:0:1:2",
    ]);
    // The kernel finds them in another order now.
    let mut next = World::new(wanted());
    next.stored = world.stored;
    next.restart(wanted());
    next.target("rport-8:0-0", FIRST, 0, &[2]);
    next.step();
    next.heard(&["view 1 Online", "1 2 came at 8:0:0:2"]);
    next.target("rport-8:0-1", SECOND, 1, &[1]);
    next.step();
    next.heard(&["view 0 Online 1 Online", "0 1 came at 8:0:1:1"]);
}

#[test]
fn more_ports_than_there_are_numbers_are_said() {
    let mut world = World::new(wanted());
    for number in 0..258 {
        let wwpn = format!("0x50060160446{number:05x}");
        world.tree.remote(HOST, &format!("rport-8:0-{number}"), (&wwpn, FIRST.1), "FCP Target", number);
    }
    world.step();
    assert_eq!(world.inventory.targets.len(), 256);
    let said: Vec<_> = world.heard.iter().filter(|line| !line.starts_with("view")).cloned().collect();
    assert_eq!(
        said,
        [
            "there are more than 256 target ports, and the guest does not see the others; zone fewer to this port"
        ]
    );
}

#[test]
fn a_unit_that_is_in_use_costs_no_other() {
    let mut world = World::new(wanted());
    world.target("rport-8:0-0", FIRST, 0, &[0, 5]);
    world.busy.insert("8:0:0:0".into(), "/dev/sdc is in use: part of dm-0 (mpatha)".into());
    world.pass(30);
    world.heard(&[
        "view 0 Online",
        "LUN 0 of target 0 (8:0:0:0) is not shown to the guest: /dev/sdc is in use: part of dm-0 (mpatha)",
        "0 5 came at 8:0:0:5",
        "looked 0",
    ]);
    world.busy.clear();
    world.pass(16);
    world.heard(&["0 0 came at 8:0:0:0"]);
}

#[test]
fn sizes_and_lists_that_change_are_heard_of() {
    let mut world = with_units(&[0, 5]);
    let event = |reason| {
        Change::Device(Uevent {
            action: fc::watch::Action::Changed,
            thing: Thing::Unit("8:0:0:5".parse().unwrap()),
            reason: Some(reason),
        })
    };
    world.inventory.heard(&event(Reason::Capacity), world.now);
    world.step();
    world.heard(&["0 5 resized"]);
    assert!(matches!(&world.jobs[..], [(0, Job::Rescan(unit, true))] if unit.address.lun.0 == 5));
    world.pass(2);
    world.arrays.insert(0, luns(&[0, 5, 6]));
    world.inventory.heard(&event(Reason::Luns), world.now);
    world.step();
    world.heard(&["0 6 came at 8:0:0:6"]);
    world.inventory.heard(&event(Reason::Inquiry), world.now);
    world.step();
    world.heard(&["0 5 doubted", "0 5 trusted"]);
}

#[test]
fn results_that_nobody_waits_for_are_given_back() {
    let mut world = World::new(wanted());
    assert!(world.inventory.opened(77, Opened::Later, world.now).is_some());
    world.inventory.done(3, &Job::Ask("8:0:0:0".parse().unwrap()), Done::Over(None), world.now);
    assert!(world.inventory.work(world.now).is_empty());
}

#[test]
fn the_operator_hears_of_ports_without_luns_and_of_luns_that_the_host_does_not_take() {
    let mut world = World::new(wanted());
    world.target("rport-8:0-0", FIRST, 0, &[]);
    world.pass(4);
    world.heard(&[
        "view 0 Online",
        "its port 0000000000000002 sees 1 target port and no LUN; map LUNs to that WWPN at the array",
        "looked 0",
    ]);
    for number in [300, 301] {
        let job = Job::Scan(format!("8:0:0:{number}").parse().unwrap(), true);
        world.inventory.done(0, &job, Done::Over(Some("above the limit".into())), world.now);
    }
    world.step();
    world.heard(&["the guest does not get LUN 300 of target 0: above the limit"]);
}

/// An array, or who has taken it over, that names ever new ones.
#[test]
fn units_of_four_levels_have_one_line_for_each_target() {
    let mut world = with_units(&[0]);
    world.target("rport-8:0-1", SECOND, 1, &[1]);
    world.pass(31);
    world.heard.clear();
    for round in 0..3 {
        for target in 0..2 {
            let levels = (0..10_000).map(|number| lun(0x0001_0000_0000_0000 * (1 + round) + number));
            let all = [lun(target.into())].into_iter().chain(levels).collect();
            world.arrays.insert(target, Luns::All(all));
        }
        world.pass(2);
    }
    assert!(world.heard.iter().all(|line| line.contains("has four levels")), "{:?}", world.heard);
    assert_eq!((world.heard.len(), world.inventory.told.len()), (2, 2));
}

/// The main loop goes on, and no memory grows, while the kernel looks for what it is told of.
#[test]
fn an_array_that_names_ever_new_units_stalls_nobody() {
    let mut world = with_units(&[0]);
    world.stuck = |job| matches!(job, Job::Scan(..));
    let mut shortest = Duration::MAX;
    for round in 0..4 {
        let others = (1..=65535).map(|number| lun(round << 16 | number));
        world.arrays.insert(0, Luns::All([lun(0)].into_iter().chain(others).collect()));
        let begin = Instant::now();
        world.pass(2);
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        let target = &world.inventory.targets[&0];
        assert!((1..=1024).contains(&target.lanes.scans()), "{}", target.lanes.scans());
        assert!(target.tried.len() <= 1025, "{}", target.tried.len());
        let begin = Instant::now();
        world.inventory.work(world.now);
        shortest = shortest.min(begin.elapsed());
    }
    assert!(shortest < Duration::from_millis(20), "{shortest:?}");
    assert_eq!(world.kept.len(), 1);
    // What it does not name any more is not looked for.
    world.arrays.insert(0, luns(&[0]));
    world.pass(2);
    assert_eq!(world.inventory.targets[&0].lanes.scans(), 0);
    assert!(world.inventory.targets[&0].tried.is_empty());
}

#[test]
fn of_many_units_that_the_kernel_does_not_take_each_has_its_turn() {
    let mut world = with_units(&[0]);
    world.fails = |job| matches!(job, Job::Scan(_, true)).then_some("above the limit");
    world.arrays.insert(0, luns(&(0..3000).collect::<Vec<_>>()));
    world.pass(90);
    let scan = |job: &Job| match job {
        Job::Scan(address, true) => Some(address.lun),
        _ => None,
    };
    let tried: BTreeSet<_> = world.jobs.iter().filter_map(|(_, job)| scan(job)).collect();
    assert_eq!(tried.len(), 2999);
    world.heard(&["the guest does not get LUN 1 of target 0: above the limit"]);
}
