//! Asymmetric access: states of ports, and failovers.

use super::units::rw16;
use super::*;

#[test]
fn ports_have_access_states() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let groups = |bed: &mut Bed, format: u8| {
        bed.scsi(one, to, 0, &[0xa3, 0x0a | format << 5, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], 256, &[]).good()
    };
    assert_eq!(
        groups(&mut bed, 0),
        [0, 0, 0, 24, 0, 0xcf, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0xcf, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2]
    );
    assert_eq!(groups(&mut bed, 1)[..8], [0, 0, 0, 28, 0x10, 10, 0, 0]);
    bed.tell("alua 1 standby");
    assert_eq!(bed.scsi(one, to, 0, &[0], 0, &[]).sense, Some((6, 0x2a, 6)));
    assert_eq!(bed.scsi(one, to, 0, &rw16(0x88, 0, 1), 512, &[]).sense, Some((2, 4, 0x0b)));
    assert_eq!(groups(&mut bed, 0)[4..12], [2, 0xcf, 0, 1, 0, 2, 0, 1]);
    bed.tell("alua 1 unavailable");
    bed.scsi(one, to, 0, &[0], 0, &[]);
    assert_eq!(bed.scsi(one, to, 0, &[0], 0, &[]).sense, Some((2, 4, 0x0c)));
    // SET TARGET PORT GROUPS: this one becomes non-optimized, the other one standby. Others hear of it.
    let list = [0, 0, 0, 0, 1, 0, 0, 1, 2, 0, 0, 2];
    let cdb = [0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0];
    bed.scsi(one, to, 0, &cdb, 0, &list).good();
    assert_eq!(groups(&mut bed, 0)[4..10], [1, 0xcf, 0, 1, 0, 1]);
    assert_eq!(bed.scsi(one, to, 0, &rw16(0x88, 0, 1), 512, &[]).status, 0);
    let bad = bed.scsi(one, to, 0, &cdb, 0, &[0, 0, 0, 0, 1, 0, 0, 9, 0, 0, 0, 1]);
    assert_eq!(bad.sense, Some((5, 0x26, 0)));
    // Both ports in one group.
    bed.tell("group 2 1");
    assert_eq!(bed.scsi(one, to, 0, &[0], 0, &[]).sense, Some((6, 0x2a, 6)));
    assert_eq!(groups(&mut bed, 0)[8..20], [0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2]);
    assert!(bed.san.command("alua 2 standby", 0, &mut bed.out).is_err());
}

#[test]
fn a_failover_moves_the_other_group_away() {
    let mut bed = Bed::new();
    bed.tell("map 2100000000000a02 0=d0");
    let (one, to) = bed.ready();
    let groups = |bed: &mut Bed, lun: u16| {
        let list = bed.scsi(one, to, lun, &[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], 256, &[]).good();
        let row = |at: usize| (list[at], list[at + 5]);
        (row(4), row(16))
    };
    let set = |bed: &mut Bed, lun: u16, group: u8, state: u8| {
        let list = [0, 0, 0, 0, state, 0, 0, group];
        bed.scsi(one, to, lun, &[0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0], 0, &list).good();
    };
    // Both are optimized at first. One is asked for: the other is not any more, by the array itself.
    set(&mut bed, 0, 2, 0);
    assert_eq!(groups(&mut bed, 0), ((1, 2), (0, 1)));
    set(&mut bed, 0, 1, 0);
    assert_eq!(groups(&mut bed, 5), ((0, 1), (1, 2)));
    // One that is in standby stays there, and another state moves nothing.
    bed.tell("alua 2 standby");
    while bed.scsi(one, to, 0, &[0], 0, &[]).sense.is_some() {}
    set(&mut bed, 0, 1, 0);
    assert_eq!(groups(&mut bed, 0), ((0, 1), (2, 2)));
    set(&mut bed, 0, 1, 1);
    assert_eq!(groups(&mut bed, 0), ((1, 1), (2, 2)));
    // A unit with states of its own: what is set there is set there alone.
    bed.tell("alua 1 standby d1");
    bed.tell("alua 2 optimized d1");
    assert_eq!(bed.scsi(one, to, 5, &[0], 0, &[]).sense, Some((6, 0x2a, 6)));
    assert_eq!(bed.scsi(one, to, 5, &[0], 0, &[]).sense, Some((2, 4, 0x0b)));
    assert_eq!(bed.scsi(one, to, 0, &[0], 0, &[]).sense, None);
    assert_eq!((groups(&mut bed, 0), groups(&mut bed, 5)), (((1, 1), (2, 2)), ((2, 2), (0, 2))));
    set(&mut bed, 5, 1, 0);
    assert_eq!((groups(&mut bed, 0), groups(&mut bed, 5)), (((1, 1), (2, 2)), ((0, 1), (1, 2))));
    assert!(
        bed.tell("info").contains("disk d1 67108864 bytes, 0 held, group 1 Optimized, group 2 NonOptimized")
    );
    bed.tell("alua 1 common d1");
    bed.tell("alua 2 common d1");
    while bed.scsi(one, to, 5, &[0], 0, &[]).sense.is_some() {}
    assert_eq!(groups(&mut bed, 5), ((1, 1), (2, 2)));
    // The preferred one has its bit.
    bed.tell("pref 2 on");
    assert_eq!(groups(&mut bed, 0), ((1, 1), (0x82, 2)));
    bed.tell("pref 2 off");
    assert_eq!(groups(&mut bed, 0), ((1, 1), (2, 2)));
}

#[test]
fn each_state_does_what_it_may() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let answers = |bed: &mut Bed, state: &str| {
        bed.tell(&format!("alua 1 {state}"));
        assert_eq!(bed.scsi(one, to, 0, &[0], 0, &[]).sense, Some((6, 0x2a, 6)));
        let mut refused = Vec::new();
        for cdb in [
            &[0x00][..],
            &[0x12, 0, 0, 0, 36],
            &[0x03, 0, 0, 0, 18],
            &[0x1a, 0, 0x3f, 0, 0xff],
            &[0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 0xff],
            &[0x25],
            &[0x5e, 0, 0, 0, 0, 0, 0, 0, 8],
            &[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 64],
            &[0xa4, 0x0a],
        ] {
            let sense = bed.scsi(one, to, 0, cdb, 255, &[]).sense;
            if sense.is_some_and(|(key, asc, _)| (key, asc) == (2, 4)) {
                refused.push((cdb[0], sense.unwrap_or_default().2));
            }
        }
        refused
    };
    assert_eq!(answers(&mut bed, "non-optimized"), []);
    assert_eq!(answers(&mut bed, "standby"), [(0, 0x0b), (0x25, 0x0b)]);
    let all = |qualifier| [0, 0x1a, 0x5a, 0x25, 0x5e].map(|code| (code, qualifier));
    assert_eq!(answers(&mut bed, "unavailable"), all(0x0c));
    assert_eq!(answers(&mut bed, "offline"), all(0x12));
    assert_eq!(answers(&mut bed, "transitioning"), [&all(0x0a)[..], &[(0xa4, 0x0a)]].concat());
}
