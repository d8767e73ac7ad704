//! Units that are asked who they are without a reason: not every array tells that it maps a LUN to another device.

use super::*;

fn asked(world: &mut World) -> Vec<u64> {
    let who = |(_, job): (u8, Job)| match job {
        Job::Who(address, _) => Some(address.lun.0),
        _ => None,
    };
    std::mem::take(&mut world.jobs).into_iter().filter_map(who).collect()
}

#[test]
fn another_device_behind_a_lun_is_seen_within_a_minute_or_two() {
    let mut world = with_units(&[0, 5, 6]);
    remap(&mut world, 5);
    world.pass(64);
    world.heard(&["0 5 doubted", "0 5 lost", "0 5 gone", ANOTHER, "0 5 came at 8:0:0:5"]);
}

#[test]
fn each_is_asked_once_a_minute_at_most() {
    let mut world = with_units(&[0, 5, 6]);
    world.pass(28);
    assert!(asked(&mut world).is_empty());
    world.pass(60);
    let mut all = asked(&mut world);
    all.sort_unstable();
    assert_eq!(all, [0, 5, 6]);
    world.heard(&[]);
}

#[test]
fn of_many_one_is_asked_at_a_time() {
    let numbers: Vec<u64> = (0..100).collect();
    let mut world = with_units(&numbers);
    world.pass(29);
    asked(&mut world);
    for _ in 0..240 {
        world.now += Duration::from_millis(500);
        world.step();
        let whos = world.jobs.iter().filter(|(_, job)| matches!(job, Job::Who(..))).count();
        let asks = world.jobs.iter().filter(|(_, job)| matches!(job, Job::Ask(..))).count();
        assert!(whos <= asks);
    }
    let all = asked(&mut world);
    assert!((70..=81).contains(&all.len()), "{}", all.len());
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "one after the other");
}

#[test]
fn one_that_does_not_answer_is_asked_next_time() {
    let mut world = with_units(&[0, 5]);
    world.says.insert("8:0:0:5".into(), String::new());
    world.pass(40);
    world.says.clear();
    world.pass(60);
    world.heard(&[]);
    world.stuck = |job| matches!(job, Job::Who(..));
    world.arrays.insert(0, luns(&[0, 5, 6]));
    world.pass(130);
    world.heard(&["0 6 came at 8:0:0:6"]);
    assert_eq!(world.kept.len(), 3, "each once");
}
