//! Logins, the directory, zones and notifications.

use super::*;

#[test]
fn the_fabric_advertises_itself() {
    let mut bed = Bed::new();
    let next = bed.san.tick(bed.now, &mut bed.out);
    assert_eq!(next, bed.now + 8000);
    let frames: Vec<_> = bed.out.frames().map(|(link, frame)| (link, frame.to_vec())).collect();
    assert_eq!(frames.iter().map(|(link, _)| *link).collect::<Vec<_>>(), [0, 1]);
    let expected = [
        // To all nodes, from the forwarder.
        0x01, 0x10, 0x18, 0x01, 0x00, 0x01, 0x02, 0xfc, 0xf0, 0, 0, 1, 0x89, 0x14,
        // Version, operation, subcode, words, flags.
        0x10, 0, 0, 1, 0, 2, 0, 12, 0x80, 0x05,
        // Priority, address, name, fabric with the FC-MAP, period.
        1, 1, 0, 128, 2, 2, 2, 0xfc, 0xf0, 0, 0, 1, //
        4, 3, 0, 0, 0x10, 0, 2, 0xfc, 0xf0, 0, 0, 1, //
        5, 4, 0, 0, 0, 0x0e, 0xfc, 0, 0x10, 0, 2, 0xfc, 0xf0, 0, 0, 1, //
        12, 2, 0, 0, 0, 0, 0x1f, 0x40,
    ];
    assert_eq!(frames[0].1, expected);
    bed.out.clear();
    // A node that asks gets one of its own, with the flag that says so.
    bed.fip(0, NODE, 1, 1, &[2, 2, 2, 0xaa, 0, 0, 0, 1]);
    let (_, frame) = bed.out.frames().next().unwrap();
    assert_eq!((&frame[..6], &frame[22..24]), (&NODE[..], &[0x80, 0x07][..]));
    bed.out.clear();
    bed.fip(0, NODE, 4, 1, &[]);
    assert_eq!(bed.take_fip(), [(4, 2, [2, 2, 2, 0xfc, 0xf0, 0, 0, 1, 14, 1, 0, 0].to_vec().tap(36))]);
}

trait Tap {
    fn tap(self, length: usize) -> Self;
}

impl Tap for Vec<u8> {
    /// Padded as Ethernet does.
    fn tap(mut self, length: usize) -> Self {
        self.resize(length, 0);
        self
    }
}

#[test]
fn a_node_logs_in_with_many_names() {
    let mut bed = Bed::new();
    assert_eq!(bed.log_in(0, ONE, true), Err((9, 0x1e)));
    assert_eq!(bed.log_in(0, BASE, false), Ok(PortId(0x01_0101)));
    assert_eq!(bed.log_in(0, ONE, true), Ok(PortId(0x01_0102)));
    assert_eq!(bed.log_in(0, TWO, true), Ok(PortId(0x01_0103)));
    // The same name again is the same port; on another link, or the node's own, it is refused.
    assert_eq!(bed.log_in(0, ONE, true), Ok(PortId(0x01_0102)));
    assert_eq!(bed.log_in(0, BASE, true), Err((3, 0x0d)));
    assert_eq!(bed.log_in(1, BASE + 1, false), Ok(PortId(0x01_0201)));
    assert_eq!(bed.log_in(1, ONE, true), Err((3, 0x0d)));
    // LOGO of one name. It gets its address again when it is back, though others came.
    let reply = bed.link_service(0, NODE, 9, 0x01_0102, ONE);
    assert_eq!((&reply[1..4], &reply[24..28]), (&[1, 1, 2][..], &[2, 0, 0, 0][..]));
    assert_eq!(bed.log_in(0, 77, true), Ok(PortId(0x01_0104)));
    assert_eq!(bed.log_in(0, ONE, true), Ok(PortId(0x01_0102)));
    // FLOGI ends them all.
    assert_eq!(bed.log_in(0, BASE, false), Ok(PortId(0x01_0101)));
    assert!(!bed.tell("info").contains(&format!("{ONE:016x}")));
    assert_eq!(bed.log_in(0, ONE, true), Ok(PortId(0x01_0102)));
    bed.san.link_down(0, &mut bed.out);
    assert!(!bed.tell("info").contains("FLOGI at sw0"));
}

#[test]
fn there_is_an_end_to_names() {
    let mut bed = Bed::new();
    bed.log_in(0, BASE, false).unwrap();
    for name in 1..254 {
        bed.log_in(0, name, true).unwrap();
    }
    assert_eq!(bed.log_in(0, 254, true), Err((9, 0x29)));
}

#[test]
fn a_fabric_without_npiv_says_so() {
    let mut bed = Bed::new();
    bed.tell("npiv off");
    let reply = bed.link_service(0, NODE, 7, 0, BASE);
    assert_eq!(reply[24 + 8..24 + 10], [0x10, 0]);
    assert_eq!(bed.log_in(0, ONE, true), Err((9, 0x1e)));
    bed.tell("npiv on");
    assert!(bed.log_in(0, ONE, true).is_ok());
}

#[test]
fn logins_are_rejected_by_command() {
    let mut bed = Bed::new();
    bed.tell("reject flogi any 5 0");
    assert_eq!(bed.log_in(0, BASE, false), Err((5, 0)));
    bed.tell("reject flogi off");
    bed.tell(&format!("reject fdisc {ONE:016x} 9 29"));
    bed.log_in(0, BASE, false).unwrap();
    assert_eq!(bed.log_in(0, ONE, true), Err((9, 0x29)));
    let two = bed.log_in(0, TWO, true).unwrap();
    bed.tell("reject plogi any 3 1");
    assert_eq!(bed.els(two, PortId::DIRECTORY, &[&[3][..], &[0; 115]].concat())[..7], [1, 0, 0, 0, 0, 3, 1]);
    assert!(bed.san.command("@2 npiv off", 0, &mut bed.out).is_err());
    bed.tell("@1 reject fdisc off");
    assert!(bed.log_in(0, ONE, true).is_ok());
}

#[test]
fn the_directory_knows_who_is_there() {
    let mut bed = Bed::new();
    bed.log_in(0, BASE, false).unwrap();
    let one = bed.log_in(0, ONE, true).unwrap();
    bed.register(one);
    // GPN_FT of type 8: both target ports, 16 bytes each; the last has its bit.
    let (code, _, _, rows) = bed.ct(one, 0x172, &[0, 0, 0, 8]);
    assert_eq!((code, rows.len()), (0x8002, 32));
    assert_eq!(rows[..16], [0, 1, 0xf0, 0, 0, 0, 0, 0, 0x50, 0x2f, 0xcf, 0, 0, 0, 0, 1]);
    assert_eq!(rows[16..], [0x80, 1, 0xf0, 1, 0, 0, 0, 0, 0x50, 0x2f, 0xcf, 0, 0, 0, 0, 2]);
    assert_eq!(bed.ct(one, 0x171, &[0, 0, 0, 8]).3, [0, 1, 0xf0, 0, 0x80, 1, 0xf0, 1]);
    // Of another type there is none.
    assert_eq!(bed.ct(one, 0x172, &[0, 0, 0, 5]), (0x8001, 9, 7, vec![]));
    assert_eq!(bed.ct(one, 0x112, &[0, 1, 0xf0, 1]).3, 0x502f_cf00_0000_0002_u64.to_be_bytes());
    assert_eq!(bed.ct(one, 0x113, &[0, 1, 0xf0, 1]).3, 0x502f_cf00_0000_0000_u64.to_be_bytes());
    assert_eq!(bed.ct(one, 0x112, &[0, 1, 0xf0, 9]), (0x8001, 9, 1, vec![]));
    assert_eq!(bed.ct(one, 0x121, &0x502f_cf00_0000_0002_u64.to_be_bytes()).3, [0, 1, 0xf0, 1]);
    assert_eq!(bed.ct(one, 0x121, &[0; 8]), (0x8001, 9, 2, vec![]));
    assert_eq!(bed.ct(one, 0x117, &[0, 1, 0xf0, 1]).3[..4], [0, 0, 1, 0]);
    assert_eq!(bed.ct(one, 0x11f, &[0, 1, 0xf0, 1]).3[..8], [0, 0, 0, 0, 0, 0, 0, 1]);
    // A name of its own, and of another, which is none of its business.
    assert_eq!(bed.ct(one, 0x218, &[0, 1, 1, 2, 3, b'a', b'b', b'c']).0, 0x8002);
    assert_eq!(bed.ct(one, 0x118, &[0, 1, 1, 2]).3, [3, b'a', b'b', b'c']);
    assert_eq!(bed.ct(one, 0x218, &[0, 1, 0xf0, 0, 1, b'a']), (0x8001, 9, 0x10, vec![]));
    assert_eq!(bed.ct(one, 0x218, &[0, 1, 1, 2, 9, b'a']), (0x8001, 4, 0, vec![]));
    assert_eq!(bed.ct(one, 0x239, &0x1000_02aa_0000_0001_u64.to_be_bytes()).0, 0x8002);
    assert_eq!(bed.ct(one, 0x7777, &[0; 4]), (0x8001, 0x0b, 0, vec![]));
    let next = bed.ct(one, 0x100, &[0, 1, 1, 2]).3;
    assert_eq!(next[..12], [1, 1, 0xf0, 0, 0x50, 0x2f, 0xcf, 0, 0, 0, 0, 1]);
}

#[test]
fn a_long_answer_takes_many_frames() {
    let mut bed = Bed::new();
    bed.log_in(0, BASE, false).unwrap();
    let ids: Vec<PortId> = (1..200).map(|name| bed.log_in(0, name, true).unwrap()).collect();
    for id in &ids {
        let [a, b, c] = id.bytes();
        bed.ct(*id, 0x217, &[&[0, a, b, c, 0, 0, 1, 0][..], &[0; 28]].concat());
    }
    let header = bed.request(2, 0x20, ids[0], PortId::DIRECTORY);
    let request = [1, 0, 0, 0, 0xfc, 2, 0, 0, 1, 0x72, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8];
    bed.out.clear();
    bed.send(header, &request);
    let frames = bed.take();
    assert_eq!(frames.len(), 2);
    assert_eq!(frames.iter().map(|frame| frame.payload.len()).sum::<usize>(), 16 + 200 * 16);
    assert_eq!((frames[0].header.f_ctl, frames[1].header.f_ctl), (0x80_0000, 0x98_0000));
}

/// RSCNs that came: to whom, and their page.
fn notifications(bed: &mut Bed) -> Vec<(u32, Vec<u8>)> {
    let is_rscn = |frame: &Frame| frame.header.r_ctl == 0x22 && frame.payload[0] == 0x61;
    let frames = bed.take().into_iter().filter(is_rscn);
    frames.map(|frame| (frame.header.d_id.0, frame.payload[4..].to_vec())).collect()
}

#[test]
fn changes_are_told_to_those_who_want_to_hear() {
    let mut bed = Bed::new();
    bed.log_in(0, BASE, false).unwrap();
    let one = bed.log_in(0, ONE, true).unwrap();
    bed.register(one);
    let two = bed.log_in(0, TWO, true).unwrap();
    // A login alone is none of it, as the port cannot be found by its type yet.
    assert_eq!(notifications(&mut bed), []);
    let header = bed.request(2, 0x20, two, PortId::DIRECTORY);
    let mut types = vec![1, 0, 0, 0, 0xfc, 2, 0, 0, 2, 0x17, 0, 0, 0, 0, 0, 0, 0, 1, 1, 3, 0, 0, 1];
    types.resize(52, 0);
    bed.send(header, &types);
    assert_eq!(notifications(&mut bed), [(one.0, vec![0, 1, 1, 3])]);
    bed.tell("port 2 down");
    assert_eq!(notifications(&mut bed), [(one.0, vec![0, 1, 0xf0, 1])]);
    assert_eq!(bed.ct(one, 0x172, &[0, 0, 0, 8]).3.len(), 32);
    bed.tell("port 2 up");
    assert_eq!(notifications(&mut bed), [(one.0, vec![0, 1, 0xf0, 1])]);
    bed.tell("rscn");
    assert_eq!(notifications(&mut bed), [(one.0, vec![3, 0, 0, 0])]);
    // Who no longer wants to hear does not.
    bed.els(one, PortId::FABRIC_CONTROLLER, &[0x62, 0, 0, 0, 0, 0, 0, 0xff]);
    bed.tell("rscn");
    assert_eq!(notifications(&mut bed), []);
}

#[test]
fn zones_hide_ports_and_keep_frames_away() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    bed.log_in(1, BASE + 1, false).unwrap();
    let two = bed.log_in(1, TWO, true).unwrap();
    bed.register(two);
    bed.take();
    bed.tell(&format!("zone a {ONE:016x} 502fcf0000000001"));
    bed.tell(&format!("zone b {TWO:016x} 50:2f:cf:00:00:00:00:02"));
    let told = notifications(&mut bed);
    assert_eq!(told.len(), 4);
    assert!(told.iter().all(|(_, page)| page[0] == 3));
    let seen = |bed: &mut Bed, id| bed.ct(id, 0x171, &[0, 0, 0, 8]).3;
    assert_eq!((seen(&mut bed, one), seen(&mut bed, two)), (vec![0x80, 1, 0xf0, 0], vec![0x80, 1, 0xf0, 1]));
    assert_eq!(bed.ct(two, 0x112, &[0, 1, 0xf0, 0]).0, 0x8001);
    assert_eq!(bed.ct(two, 0x121, &0x502f_cf00_0000_0001_u64.to_be_bytes()).0, 0x8001);
    // Hard zones: no frame gets there, of hosts to each other neither.
    assert_eq!(bed.els(two, to, &[&[3][..], &[0; 115]].concat()), []);
    let header = bed.request(0x22, 1, one, two);
    bed.send(header, &[3]);
    assert_eq!(bed.take().len(), 0);
    bed.tell("zone b");
    bed.tell(&format!("zone a {ONE:016x} 502fcf0000000001 {TWO:016x}"));
    bed.take();
    let header = bed.request(0x22, 1, one, two);
    bed.send(header, &[3]);
    let frames = bed.take();
    assert_eq!((frames.len(), frames[0].link, frames[0].to), (1, 1, two.mac()));
    assert_eq!((frames[0].header, &frames[0].payload[..]), (header, &[3, 0, 0, 0][..]));
}

#[test]
fn nodes_that_fall_silent_are_logged_out() {
    let mut bed = Bed::new();
    bed.tell("period 1000");
    bed.log_in(0, BASE, false).unwrap();
    let one = bed.log_in(0, ONE, true).unwrap();
    bed.now += 2000;
    bed.fip(0, NODE, 3, 1, &[2, 2, 2, 0xaa, 0, 0, 0, 1]);
    // That of a port is from the port's own address, and no less one of the node.
    let [a, b, c] = one.bytes();
    let list = [&[2, 2, 2, 0xaa, 0, 0, 0, 1, 11, 5][..], &one.mac(), &[0, a, b, c], &ONE.to_be_bytes()];
    let mut list = list.concat();
    bed.out.clear();
    bed.now += 1000;
    bed.fip(0, one.mac(), 3, 1, &list);
    assert_eq!(bed.take_fip(), []);
    bed.now += 2000;
    bed.san.tick(bed.now, &mut bed.out);
    assert!(bed.tell("info").contains("FDISC at sw0 of 02:aa:00:00:00:01"));
    bed.now += 1001;
    bed.san.tick(bed.now, &mut bed.out);
    assert!(!bed.tell("info").contains("FDISC"));
    // Who is not logged in and sends keep-alives all the same is told: the node, or for a port of it that is not there.
    bed.out.clear();
    bed.fip(0, one.mac(), 3, 1, &list);
    let cleared = bed.take_fip();
    assert_eq!((cleared.len(), cleared[0].0, cleared[0].1, cleared[0].2.len()), (1, 3, 2, 36));
    bed.log_in(0, BASE, false).unwrap();
    bed.out.clear();
    list[19] = 0x77;
    bed.fip(0, one.mac(), 3, 1, &list);
    let cleared = bed.take_fip();
    assert_eq!(
        (cleared.len(), &cleared[0].2[20..32]),
        (1, &[11, 5, 0x0e, 0xfc, 0, 1, 1, 0x77, 0, 1, 1, 0x77][..])
    );
    bed.tell("keep-alive off");
    bed.log_in(0, BASE, false).unwrap();
    bed.now += 100_000;
    bed.san.tick(bed.now, &mut bed.out);
    assert!(bed.tell("info").contains("FLOGI at sw0"));
}

#[test]
fn services_answer_what_they_can() {
    let mut bed = Bed::new();
    let base = bed.log_in(0, BASE, false).unwrap();
    assert_eq!(bed.els(base, PortId::F_PORT, &[0x0e, 0, 0, 0])[..8], [2, 0, 0, 0, 0, 0, 0x27, 0x10]);
    assert_eq!(bed.els(base, PortId::F_PORT, &[0x10, 0, 0, 0, 9, 9, 9, 9]), [2, 0, 0, 0, 9, 9, 9, 9]);
    // The management server is not there.
    let plogi = [&[3][..], &[0; 115]].concat();
    assert_eq!(bed.els(base, PortId(0xff_fffa), &plogi), [1, 0, 0, 0, 0, 0x0b, 0, 0]);
    assert_eq!(bed.els(base, PortId::FABRIC_CONTROLLER, &[0x62, 0, 0, 0, 0, 0, 0, 9])[0], 1);
    assert_eq!(bed.els(base, PortId::DIRECTORY, &[5, 0, 0, 0]), [2, 0, 0, 0]);
    assert_eq!(bed.els(base, PortId::F_PORT, &[5, 0, 0, 0]), [2, 0, 0, 0]);
    assert!(!bed.tell("info").contains("FLOGI"));
}
