//! What is made to go wrong.

use super::units::{pattern, rw16};
use super::*;

#[test]
fn commands_fail_as_they_are_told_to() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    bed.tell("inject 5 88 2 busy");
    bed.tell("inject any 28 1 sense=3/11/0");
    bed.tell("inject 27 any 1 full 2");
    assert_eq!(bed.scsi(one, to, 0, &rw16(0x88, 0, 1), 512, &[]).status, 0);
    for status in [8, 8, 0] {
        assert_eq!(bed.scsi(one, to, 5, &rw16(0x88, 0, 1), 512, &[]).status, status);
    }
    let answer = bed.scsi(one, to, 513, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1], 512, &[]);
    assert_eq!((answer.status, answer.sense, answer.residual), (2, Some((3, 0x11, 0)), 512));
    // The last one is for the other target port.
    assert_eq!(bed.scsi(one, to, 27, &[0], 0, &[]).status, 0);
    let other = bed.target(2);
    bed.session(one, other);
    assert_eq!(bed.scsi(one, other, 27, &[0], 0, &[]).status, 0x28);
    assert_eq!(bed.scsi(one, other, 27, &[0], 0, &[]).status, 2);
    bed.tell("inject any any 100 conflict");
    bed.tell("inject off");
    assert_eq!(bed.scsi(one, to, 27, &[0], 0, &[]).status, 0);
    for line in
        ["inject", "inject x 0 1 busy", "inject 0 0 1 odd", "inject 0 0 1 sense=1/2", "inject 0 0 1 busy 9"]
    {
        assert!(bed.san.command(line, 0, &mut bed.out).is_err(), "{line}");
    }
}

#[test]
fn commands_wait_and_are_aborted() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    bed.tell("inject 0 any 1 delay=500");
    bed.out.clear();
    let late = bed.command(one, to, 0, &rw16(0x88, 0, 1), 512, 0);
    assert!(bed.answer(late).is_none());
    bed.san.tick(bed.now + 499, &mut bed.out);
    assert!(bed.answer(late).is_none());
    bed.san.tick(bed.now + 500, &mut bed.out);
    assert_eq!(bed.answer(late).map(Answer::good), Some(vec![0; 512]));
    // One that is never answered is known to REC; one that is dropped is not.
    let rec = |bed: &mut Bed, of: Header| {
        let [a, b, c] = one.bytes();
        let [high, low] = of.ox_id.to_be_bytes();
        bed.els(one, to, &[0x13, 0, 0, 0, 0, a, b, c, high, low, 0xff, 0xff])
    };
    bed.tell("inject 0 any 1 hang");
    let hangs = bed.command(one, to, 0, &[0], 0, 0);
    let accept = rec(&mut bed, hangs);
    assert_eq!((accept[0], accept.be16(4), accept.len()), (2, Some(hangs.ox_id), 24));
    bed.tell("inject 0 any 1 drop");
    let lost = bed.command(one, to, 0, &[0], 0, 0);
    assert_eq!(rec(&mut bed, lost), [1, 0, 0, 0, 0, 3, 0x17, 0]);
    // ABTS: accepted, and nothing is left.
    bed.take();
    let abort = Header { r_ctl: 0x81, kind: 0, ..hangs };
    bed.send(abort, &[]);
    let frames = bed.take();
    assert_eq!((frames[0].header.r_ctl, frames[0].header.kind, frames.len()), (0x84, 0, 1));
    assert_eq!(frames[0].payload[4..6], hangs.ox_id.to_be_bytes());
    assert_eq!(frames[0].payload[8..], [0, 0, 0xff, 0xff]);
    assert_eq!(rec(&mut bed, hangs)[0], 1);
}

#[test]
fn task_management_ends_tasks() {
    let mut bed = Bed::new();
    bed.tell("map 2100000000000a02 0=d0");
    let (one, to) = bed.ready();
    let two = bed.log_in(0, TWO, true).unwrap();
    bed.session(two, to);
    bed.scsi(two, to, 0, &[0], 0, &[]);
    let manage = |bed: &mut Bed, lun: u8, flags: u8| {
        let mut payload = vec![0, lun, 0, 0, 0, 0, 0, 0, 0, 0, flags, 0];
        payload.resize(32, 0);
        bed.out.clear();
        let header = bed.request(6, 8, one, to);
        bed.send(header, &payload);
        bed.answer(header).unwrap().code
    };
    let hang = |bed: &mut Bed, who| {
        bed.tell("inject 0 any 1 hang");
        bed.command(who, to, 0, &[0], 0, 0);
    };
    let tasks = |bed: &mut Bed| {
        let info = bed.tell("info");
        let count = |line: &str| line.split(' ').rev().nth(1).and_then(|n| n.parse::<usize>().ok());
        info.lines().filter(|line| line.starts_with("session")).filter_map(count).sum::<usize>()
    };
    hang(&mut bed, one);
    hang(&mut bed, two);
    assert_eq!((manage(&mut bed, 0, 0x02), tasks(&mut bed)), (Some(0), 1));
    assert_eq!((manage(&mut bed, 0, 0x04), tasks(&mut bed)), (Some(0), 0));
    assert_eq!(bed.scsi(two, to, 0, &[0], 0, &[]).sense, Some((6, 0x2f, 0)));
    hang(&mut bed, two);
    assert_eq!((manage(&mut bed, 0, 0x10), tasks(&mut bed)), (Some(0), 0));
    // All hear of it, who wanted it too.
    assert_eq!(bed.scsi(two, to, 0, &[0], 0, &[]).sense, Some((6, 0x29, 3)));
    assert_eq!(bed.scsi(one, to, 0, &[0], 0, &[]).sense, Some((6, 0x29, 3)));
    assert_eq!(manage(&mut bed, 0, 0x40), Some(4));
    assert_eq!(manage(&mut bed, 1, 0x10), Some(9));
    // A target is what the initiator sees of it: others' units are not reset.
    bed.tell("disk d9 1M");
    bed.tell("map 2100000000000a02 0=d0 9=d9");
    for lun in [0, 9] {
        while bed.scsi(two, to, lun, &[0], 0, &[]).sense.is_some() {}
    }
    assert_eq!(manage(&mut bed, 0, 0x20), Some(0));
    assert_eq!(bed.scsi(two, to, 9, &[0], 0, &[]).sense, None);
    assert_eq!(bed.scsi(two, to, 0, &[0], 0, &[]).sense, Some((6, 0x29, 3)));
    assert_eq!(bed.scsi(one, to, 513, &[0], 0, &[]).sense, Some((6, 0x29, 3)));
}

#[test]
fn task_management_fails() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let manage = |bed: &mut Bed, flags: u8| {
        let mut payload = vec![0; 32];
        payload[10] = flags;
        let header = bed.request(6, 8, one, to);
        bed.out.clear();
        bed.send(header, &payload);
        bed.answer(header).map(|answer| answer.code)
    };
    bed.tell("inject 0 any 1 hang");
    bed.command(one, to, 0, &[0], 0, 0);
    for (fault, answer) in [("drop", None), ("reject", Some(Some(4))), ("fail", Some(Some(5)))] {
        bed.tell(&format!("inject any tmf 1 {fault}"));
        assert_eq!(manage(&mut bed, 0x10), answer, "{fault}");
        assert!(bed.tell("info").contains(", 1 tasks"), "it was done: {fault}");
    }
    assert!(bed.tell("info").contains("injected: 4\n"), "{}", bed.tell("info"));
    // What is for any command is not for these.
    bed.tell("inject any any 1 busy");
    assert_eq!(manage(&mut bed, 0x10), Some(Some(0)));
    assert!(!bed.tell("info").contains(", 1 tasks"));
    for line in
        ["inject any tmf 1 busy", "inject any tmf 1 hang", "inject any 28 1 reject", "inject any any 1 fail"]
    {
        assert!(bed.san.command(line, 0, &mut bed.out).is_err(), "{line}");
    }
}

#[test]
fn a_write_that_lost_a_frame_is_not_done() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let data = pattern(8192, 2);
    bed.tell("lose data 1");
    bed.out.clear();
    let write = bed.command(one, to, 0, &rw16(0x8a, 0, 16), 0, 8192);
    let rx_id = bed.take()[0].header.rx_id;
    bed.data(write, rx_id, &data, 2048);
    assert!(bed.answer(write).is_none());
    // The driver gives up on it and sends it again, in smaller frames.
    let abort = Header { r_ctl: 0x81, kind: 0, ..write };
    bed.send(abort, &[]);
    bed.out.clear();
    let again = bed.command(one, to, 0, &rw16(0x8a, 0, 16), 0, 8192);
    let rx_id = bed.take()[0].header.rx_id;
    bed.data(again, rx_id, &data, 1001);
    assert_eq!(bed.answer(again).map(|answer| answer.status), Some(0));
    assert_eq!(bed.scsi(one, to, 0, &rw16(0x88, 0, 16), 8192, &[]).good(), data);
    // Lost commands and responses.
    for what in ["cmnd", "rsp"] {
        bed.tell(&format!("lose {what} 1"));
        let lost = bed.command(one, to, 0, &[0], 0, 0);
        assert!(bed.answer(lost).is_none(), "{what}");
    }
    bed.tell("lose ready 1");
    bed.command(one, to, 0, &rw16(0x8a, 0, 16), 0, 8192);
    assert_eq!(bed.take().len(), 0);
    bed.tell("lose any 1/1");
    assert_eq!(bed.els(one, PortId::F_PORT, &[0x0e, 0, 0, 0]), []);
    bed.tell("lose off");
    assert!(bed.tell("info").contains("lost on purpose: 5"), "{}", bed.tell("info"));
}

#[test]
fn writes_go_in_bursts() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    bed.tell("burst 4096");
    let data = pattern(10240, 3);
    bed.out.clear();
    let write = bed.command(one, to, 0, &rw16(0x8a, 0, 20), 0, 10240);
    let mut ids = Vec::new();
    for (begin, length) in [(0, 4096), (4096, 4096), (8192, 2048)] {
        let frames = bed.take();
        assert_eq!((frames.len(), frames[0].header.r_ctl, frames[0].header.f_ctl), (1, 5, 0x89_0000));
        assert_eq!((frames[0].payload.be32(0), frames[0].payload.be32(4)), (Some(begin), Some(length)));
        ids.push(frames[0].header.rx_id);
        let send = |bed: &mut Bed, at: u32, length: u32| {
            let header = Header { r_ctl: 1, rx_id: ids[0], f_ctl: 8, parameter: at, ..write };
            bed.send(header, &data[at as usize..(at + length) as usize]);
        };
        // No more is asked for before all of it is here, and no more is taken.
        for at in (begin..begin + length - 512).step_by(512) {
            send(&mut bed, at, 512);
        }
        if begin < 8192 {
            send(&mut bed, begin + length - 512, 1024);
        }
        assert!(bed.out.is_empty());
        send(&mut bed, begin + length - 512, 512);
    }
    assert_eq!(ids, [ids[0]; 3]);
    assert_eq!(bed.answer(write).map(|answer| (answer.status, answer.residual)), Some((0, 0)));
    assert_eq!(bed.scsi(one, to, 0, &rw16(0x88, 0, 20), 10240, &[]).good(), data);
    bed.tell("burst off");
    bed.scsi(one, to, 0, &rw16(0x8a, 0, 20), 0, &data).good();
}

#[test]
fn sense_data_have_their_forms() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let sense = |bed: &mut Bed, what: &str| {
        bed.tell(&format!("inject 0 any 1 {what}"));
        bed.out.clear();
        bed.command(one, to, 0, &[0], 0, 0);
        let frame = bed.take().remove(0);
        assert_eq!(frame.payload.be32(16).map(|length| length as usize), Some(frame.payload.len() - 24));
        frame.payload[24..].to_vec()
    };
    // The information field of both formats; an address that does not fit the shorter one is not valid there.
    let fixed = |valid: u8, at: [u8; 4]| {
        [&[valid | 0x70, 0, 3][..], &at, &[10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0]].concat()
    };
    assert_eq!(sense(&mut bed, "sense=3/11/0"), fixed(0, [0; 4]));
    assert_eq!(sense(&mut bed, "sense=3/11/0@4660"), fixed(0x80, [0, 0, 0x12, 0x34]));
    assert_eq!(sense(&mut bed, "sense=3/11/0@4294967296"), fixed(0, [0; 4]));
    assert_eq!(sense(&mut bed, "sense=3/11/0+d"), [0x72, 3, 0x11, 0, 0, 0, 0, 0]);
    assert_eq!(
        sense(&mut bed, "sense=3/11/0@4294967296+d"),
        [0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    );
}

#[test]
fn commands_overtake_each_other() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    bed.tell("inject any any 20 delay=100-1000");
    let commands: Vec<u16> = (0..20).map(|_| bed.command(one, to, 0, &[0], 0, 0).ox_id).collect();
    bed.san.tick(bed.now + 99, &mut bed.out);
    assert_eq!(bed.take().len(), 0);
    let mut order = Vec::new();
    for time in 100..=1000 {
        bed.san.tick(bed.now + time, &mut bed.out);
        order.extend(
            bed.take().into_iter().filter(|frame| frame.header.r_ctl == 7).map(|frame| frame.header.ox_id),
        );
    }
    assert_ne!(order, commands);
    order.sort_unstable();
    assert_eq!(order, commands);
}

#[test]
fn what_happened_is_counted() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    bed.tell("inject any 00 2 busy");
    bed.tell("inject 5 28 1 drop 2");
    bed.tell("lose rsp 2");
    let info = bed.tell("info");
    assert!(info.contains("injected: 0; any 00 2 Status(8); 5 28 1 Drop 2\n"), "{info}");
    assert!(info.contains("lost on purpose: 0; Response Next(2)"), "{info}");
    let lost = bed.command(one, to, 0, &[0], 0, 0);
    assert!(bed.answer(lost).is_none());
    let info = bed.tell("info");
    assert!(info.contains("injected: 1; any 00 1 Status(8); 5 28 1 Drop 2\n"), "{info}");
    assert!(info.contains("lost on purpose: 1; Response Next(1)"), "{info}");
    // The count outlives the rules.
    bed.tell("inject off");
    bed.tell("lose off");
    assert!(bed.tell("info").contains("injected: 1\n"));
}

#[test]
fn virtual_links_are_cleared() {
    let mut bed = Bed::new();
    let (one, _) = bed.ready();
    let two = bed.log_in(0, TWO, true).unwrap();
    bed.out.clear();
    bed.tell(&format!("cvl {ONE:016x}"));
    let cleared = bed.take_fip();
    let list = [
        &[2, 2, 2, 0xfc, 0xf0, 0, 0, 1, 4, 3, 0, 0, 0x10, 0, 2, 0xfc, 0xf0, 0, 0, 1, 11, 5][..],
        &one.mac(),
        &[0, 1, 1, 2],
        &ONE.to_be_bytes(),
    ];
    assert_eq!(cleared, [(3, 2, list.concat())]);
    let info = bed.tell("info");
    assert!(!info.contains(&format!("{ONE:016x}")) && info.contains(&two.to_string()), "{info}");
    bed.tell(&format!("cvl node {TWO:016x}"));
    let cleared = bed.take_fip();
    assert_eq!((cleared.len(), &cleared[0].2[..20]), (1, &list.concat()[..20]));
    assert!(!bed.tell("info").contains("FLOGI"));
    assert!(bed.san.command("cvl 2100000000000a09", 0, &mut bed.out).is_err());
}

#[test]
fn a_fabric_restarts() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    bed.now += 10;
    bed.san.tick(bed.now, &mut bed.out);
    bed.tell("restart 3000");
    bed.out.clear();
    // Nothing is heard or said.
    assert_eq!(bed.san.tick(bed.now, &mut bed.out), bed.now + 3000);
    bed.fip(0, NODE, 1, 1, &[]);
    let header = bed.command(one, to, 0, &[0], 0, 0);
    assert!(bed.answer(header).is_none() && bed.out.is_empty());
    bed.now += 3000;
    bed.san.tick(bed.now, &mut bed.out);
    // It is there again: nodes hear that their logins are gone, and of the fabric.
    let said: Vec<_> = bed.take_fip().into_iter().map(|(operation, code, _)| (operation, code)).collect();
    assert_eq!(said, [(3, 2), (1, 2), (1, 2)]);
    bed.log_in(0, BASE, false).unwrap();
    assert_eq!(bed.log_in(0, ONE, true), Ok(one));
    bed.session(one, to);
    assert_eq!(bed.scsi(one, to, 0, &[0], 0, &[]).sense, Some((6, 0x29, 7)));
}

#[test]
fn links_go_by_command() {
    let mut bed = Bed::new();
    bed.ready();
    bed.tell("link sw0 down");
    bed.tell("link sw0 up");
    assert_eq!(bed.out.links, [(0, false), (0, true)]);
    assert!(!bed.tell("info").contains("FLOGI"));
    assert!(bed.san.command("link sw9 down", 0, &mut bed.out).is_err());
}

#[test]
fn two_fabrics_share_the_array() {
    let links = vec![vec!["sw0".to_owned()], vec!["sw1".to_owned()]];
    let mut bed = Bed { san: San::new(&links, 1), out: Outbox::default(), now: 0, exchange: 0 };
    bed.tell("disk d0 1G 4096");
    bed.tell("map any 0=d0");
    assert_eq!((bed.target(1), bed.target(2)), (PortId(0x01_f000), PortId(0x02_f000)));
    let base = bed.log_in(0, BASE, false).unwrap();
    let to = bed.target(1);
    bed.session(base, to);
    // The other fabric is another domain, with an address of its own.
    bed.tell("@2 restart 100");
    assert!(bed.tell("info").contains("fabric 2 100002fcf0000002 off"));
    bed.scsi(base, to, 0, &[0], 0, &[]);
    assert_eq!(bed.scsi(base, to, 0, &[0x25], 8, &[]).good(), [0, 3, 0xff, 0xff, 0, 0, 16, 0]);
}

#[test]
fn commands_that_are_wrong_change_nothing() {
    let mut bed = Bed::new();
    let before = bed.tell("info");
    for line in [
        "disk d0 1M",
        "disk x",
        "disk x 1X",
        "disk x 1KM",
        "disk x 99999T",
        "disk x 1M 1024",
        "tape d0",
        "map any 0=zz",
        "map any 0",
        "map any 16384=d0",
        "map 21 0=d0",
        "map 2100000000000a01@3 0=d0",
        "map any@x 0=d0",
        "unmap 2100000000000a01@0",
        "rec maybe",
        "power maybe",
        "address 2100000000000a01 090101",
        "address 2100000000000a01 x",
        "address any 010101",
        "addresses maybe",
        "burst 0",
        "burst 100",
        "inject any any 1 delay=5-1",
        "inject any any 1 delay=1-2-3",
        "inject any any 1 sense=1/2/3@",
        "inject any any 1 sense=1/2/3@x+d",
        "map any 4010400a0000000=d0",
        "map any xx10400a00000000=d0",
        "method flat odd",
        "lun0 maybe",
        "alua 1 standby zz",
        "alua 1 common",
        "pref 9 on",
        "pref 1 maybe",
        "attentions 3f/0e",
        "attentions 3f/ff off",
        "attentions 3f/0e odd",
        "reject prli any 1",
        "reject target-plogi any 1 2 9",
        "reject odd any 1 2",
        "unmap any",
        "method odd",
        "resize zz 1M",
        "read d0 0 2M",
        "alua 9 standby",
        "alua 1 odd",
        "group 9 1",
        "port 0 down",
        "port 3 up",
        "port 1 sideways",
        "logo 1",
        "zone a 5",
        "@3 npiv on",
        "@x npiv on",
        "npiv maybe",
        "reject flogi any 1",
        "restart",
        "period x",
        "lose any",
        "lose odd 1",
        "lose any 1/x",
        "frobnicate",
        "info info",
    ] {
        assert!(bed.san.command(line, 0, &mut bed.out).is_err(), "{line}");
    }
    assert_eq!(bed.tell("info"), before);
    assert_eq!((bed.tell(""), bed.tell("# a comment")), (String::new(), String::new()));
    assert!(bed.tell("help").contains("restart MS"));
}
