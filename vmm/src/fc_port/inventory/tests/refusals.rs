//! Units that the machine could not take.

use super::*;

/// The machine could not take the unit that it was told of last.
fn refuse(world: &mut World, number: u64, knows: bool) {
    // The numbers are those of what was opened.
    let offer = world.inventory.tickets - 1;
    let refused = Refused { target: 0, lun: lun(number), offer, knows };
    world.inventory.refused(&[refused], world.now);
}

#[test]
fn a_unit_that_was_not_taken_is_offered_again_with_pauses_that_grow() {
    let mut world = World::new(wanted());
    world.target("rport-8:0-0", FIRST, 0, &[5]);
    world.pass(3);
    world.heard(&["view 0 Online", "0 5 came at 8:0:0:5", "looked 0"]);
    refuse(&mut world, 5, false);
    world.pass(14);
    world.heard(&[]);
    world.pass(1);
    world.heard(&["0 5 came at 8:0:0:5"]);
    for pause in [30, 60, 120, 240, 300, 300] {
        refuse(&mut world, 5, true);
        // That it was tried is no reason to try it.
        uevent(&mut world, 5, Reason::Parameters);
        world.pass(pause - 1);
        world.heard(&[]);
        world.pass(1);
        world.heard(&["0 5 back at 8:0:0:5"]);
    }
    world.pass(601);
    refuse(&mut world, 5, true);
    world.pass(15);
    world.heard(&["0 5 back at 8:0:0:5"]);
}

/// The machine keeps commands back until it hears who the unit is, or that it is lost.
#[test]
fn a_doubted_unit_that_was_not_taken_is_lost() {
    let mut world = with_units(&[5]);
    world.says.insert("8:0:0:5".into(), String::new());
    uevent(&mut world, 5, Reason::Inquiry);
    world.pass(1);
    refuse(&mut world, 5, true);
    world.step();
    world.heard(&["0 5 doubted", "0 5 lost"]);
    world.says.clear();
    world.pass(20);
    world.heard(&["0 5 back at 8:0:0:5"]);
}

#[test]
fn what_was_refused_before_the_last_news_counts_no_more() {
    let mut world = with_units(&[5]);
    let before = world.inventory.tickets - 1;
    world.remote_state("rport-8:0-0", "Not Present");
    world.remove("8:0:0:5");
    world.step();
    let refused = Refused { target: 0, lun: lun(5), offer: before, knows: false };
    world.inventory.refused(&[refused], world.now);
    world.remote_state("rport-8:0-0", "Online");
    world.unit("rport-8:0-0", "8:0:0:5");
    world.pass(3);
    world.heard(&["view 0 Lost", "0 5 lost", "view 0 Blocked", "0 5 back at 8:0:0:5", "view 0 Online"]);
    let refused = Refused { target: 0, lun: lun(5), offer: before, knows: true };
    world.inventory.refused(&[refused, Refused { target: 9, ..refused }], world.now);
    world.pass(40);
    world.heard(&[]);
}

/// What came back was not who it was, as the machine has found.
#[test]
fn a_unit_that_was_not_taken_is_asked_who_it_is() {
    let mut world = with_units(&[5]);
    remap(&mut world, 5);
    refuse(&mut world, 5, true);
    world.pass(4);
    world.heard(&["0 5 gone", ANOTHER, "0 5 came at 8:0:0:5"]);
}
