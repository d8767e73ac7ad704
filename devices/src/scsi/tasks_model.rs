//! The task set against the rules as the standard has them, one command at a time.

use super::*;

/// A command as the rules see it.
struct Model {
    attribute: TaskAttribute,
    enabled: bool,
}

/// What SAM-6, 8.9 allows to begin, over all commands in the order in which they came.
fn enable(all: &mut [Model]) {
    use TaskAttribute::{HeadOfQueue, Ordered};
    let is = |model: &Model, attribute| model.attribute == attribute;
    if all.iter().any(|model| is(model, Ordered) && model.enabled) {
        return;
    }
    let heads = all.iter().any(|model| is(model, HeadOfQueue));
    let barrier = all.iter().position(|model| is(model, Ordered)).unwrap_or(usize::MAX);
    for (place, model) in all.iter_mut().enumerate() {
        model.enabled |= match model.attribute {
            HeadOfQueue => true,
            _ if heads => false,
            Ordered => place == 0,
            _ => place < barrier,
        };
    }
}

#[test]
fn what_runs_is_what_the_rules_allow() {
    use TaskAttribute::{HeadOfQueue, Ordered, Simple};
    let mut seed = 1_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % below
    };
    for round in 0..200 {
        let set = TaskSet::default();
        let (mut tasks, mut models): (Vec<Task<'_>>, Vec<Model>) = Default::default();
        for step in 0..200 {
            match random(7) {
                0..=2 if tasks.len() < 40 => {
                    let attribute = [Simple, Simple, Simple, Ordered, HeadOfQueue][random(5)];
                    tasks.push(set.enter(NexusId(1), Tag(step), attribute).unwrap());
                    models.push(Model { attribute, enabled: false });
                }
                3..=5 if !tasks.is_empty() => {
                    // Only what runs, or is ended, leaves.
                    let place = random(tasks.len());
                    if !models[place].enabled && random(4) > 0 {
                        continue;
                    }
                    models.remove(place);
                    drop(tasks.remove(place));
                }
                _ => {
                    let tag = Tag(random(200) as u64);
                    set.end(|_, other| (other == tag).then_some(Ended::Aborted));
                }
            }
            enable(&mut models);
            let runs: Vec<_> = tasks.iter().map(|task| task.signal.is_enabled()).collect();
            let allowed: Vec<_> = models.iter().map(|model| model.enabled).collect();
            assert_eq!(runs, allowed, "round {round}, step {step}");
        }
    }
}
