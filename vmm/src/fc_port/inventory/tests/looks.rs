//! What the machine waits for.

use super::*;

#[test]
fn a_look_is_over_when_all_was_told_or_it_takes_too_long() {
    let mut world = with_units(&[0]);
    world.arrays.insert(0, luns(&[0, 1]));
    world.inventory.look(7, world.now);
    world.step();
    world.heard(&["0 1 came at 8:0:0:1", "looked 7"]);
    // A port that does not answer keeps a guest waiting for five seconds, and no other port.
    world.target("rport-8:0-1", SECOND, 1, &[3]);
    world.pass(2);
    world.heard.clear();
    world.hangs = Some(0);
    world.inventory.look(8, world.now);
    world.arrays.insert(1, luns(&[3, 4]));
    world.pass(4);
    world.heard(&["1 4 came at 8:0:1:4"]);
    world.pass(1);
    world.heard(&["looked 8"]);
}

#[test]
fn the_first_look_waits_for_targets_but_not_for_ever() {
    let mut world = World::new(wanted());
    world.pass(9);
    world.heard(&["view"]);
    world.pass(1);
    world.heard(&[
        "its port 0000000000000002 sees no target port on the fabric; look at the zoning of that WWPN, and whether the array's ports are \
         online",
        "looked 0",
    ]);
    let mut world = World::new(wanted());
    world.target("rport-8:0-0", FIRST, 0, &[0]);
    world.hangs = Some(0);
    world.pass(29);
    world.heard(&["view 0 Online", "0 0 came at 8:0:0:0"]);
    world.pass(1);
    world.heard(&["looked 0"]);
}
