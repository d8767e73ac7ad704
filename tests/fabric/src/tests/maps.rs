//! Who sees what, where, and hears that it changed.

use super::units::rw16;
use super::*;

#[test]
fn target_ports_show_what_is_mapped_there() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let other = bed.target(2);
    bed.session(one, other);
    while bed.scsi(one, other, 5, &[0], 0, &[]).sense.is_some() {}
    // Number 5 is another disk at the second port; who is mapped at that port sees nothing of the common map there.
    bed.tell("map 2100000000000a01@2 0=d0 5=d2");
    assert_eq!(bed.scsi(one, to, 5, &[0], 0, &[]).status, 0);
    assert_eq!(bed.scsi(one, other, 5, &[0], 0, &[]).sense, Some((6, 0x29, 0)));
    while bed.scsi(one, other, 5, &[0], 0, &[]).sense.is_some() {}
    let serial =
        |bed: &mut Bed, to| bed.scsi(one, to, 5, &[0x12, 1, 0x80, 1, 0, 0], 256, &[]).good()[4..].to_vec();
    assert_eq!((serial(&mut bed, to), serial(&mut bed, other)), (b"d1".to_vec(), b"d2".to_vec()));
    bed.scsi(one, to, 5, &rw16(0x8a, 0, 1), 0, &[1; 512]).good();
    bed.scsi(one, other, 5, &rw16(0x8a, 0, 1), 0, &[2; 512]).good();
    assert_eq!((bed.tell("read d1 0 1").trim(), bed.tell("read d2 0 1").trim()), ("01", "02"));
    let report = [0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64];
    assert_eq!(bed.scsi(one, other, 0, &report, 64, &[]).good().len(), 24);
    assert_eq!(bed.scsi(one, to, 0, &report, 64, &[]).good().len(), 40);
    // A resize is heard where the disk is, and nowhere else.
    bed.tell("resize d1 128M");
    assert_eq!(bed.scsi(one, other, 5, &[0], 0, &[]).status, 0);
    assert_eq!(bed.scsi(one, to, 5, &[0], 0, &[]).sense, Some((6, 0x2a, 9)));
    bed.tell("unmap 2100000000000a01@2");
    assert_eq!(serial(&mut bed, other), b"d1");
    // The nearest wins: a name at a port, a name, a port, all.
    let common = |bed: &mut Bed, to| bed.scsi(one, to, 9, &[0x12, 1, 0x80, 1, 0, 0], 256, &[]).data;
    bed.tell("unmap 2100000000000a01");
    bed.tell("map any 9=d0");
    bed.tell("map any@1 9=d1");
    assert_eq!((&common(&mut bed, to)[4..], &common(&mut bed, other)[4..]), (&b"d1"[..], &b"d0"[..]));
    bed.tell("map 2100000000000a01 9=d3");
    assert_eq!((&common(&mut bed, to)[4..], &common(&mut bed, other)[4..]), (&b"d3"[..], &b"d3"[..]));
    bed.tell("unmap 2100000000000a01");
    bed.tell("unmap any@1");
    assert_eq!(&common(&mut bed, to)[4..], b"d0");
}

#[test]
fn units_have_any_number() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    bed.tell("map 2100000000000a01 5=d1 4010400a00000000=d2 d205000700000000=d3");
    let command = |bed: &mut Bed, lun: [u8; 8], cdb: &[u8], read: u8| {
        let mut payload = [&lun[..], &[0, 0, 0, 2], cdb].concat();
        payload.resize(31, 0);
        payload.push(read);
        let header = bed.request(6, 8, one, to);
        bed.out.clear();
        bed.send(header, &payload);
        bed.answer(header).unwrap()
    };
    let serial = |bed: &mut Bed, lun| {
        let mut data = command(bed, lun, &[0x12, 1, 0x80, 1, 0, 0], 255).data;
        String::from_utf8(data.split_off(data.len().min(4))).unwrap()
    };
    let list = command(&mut bed, [0; 8], &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64], 64).good();
    let luns = [[0, 5, 0, 0, 0, 0, 0, 0], [0x40, 0x10, 0x40, 0x0a, 0, 0, 0, 0], [0xd2, 5, 0, 7, 0, 0, 0, 0]];
    assert_eq!(list[8..], luns.concat());
    assert_eq!(luns.map(|lun| serial(&mut bed, lun)), ["d1", "d2", "d3"]);
    // Less of it is nothing; the number alone is there in both methods, unless one alone is taken.
    assert_eq!(serial(&mut bed, [0x40, 0x10, 0, 0, 0, 0, 0, 0]), "");
    let flat = [0x40, 5, 0, 0, 0, 0, 0, 0];
    assert_eq!(serial(&mut bed, flat), "d1");
    bed.tell("method peripheral strict");
    assert_eq!([flat, luns[0], luns[1]].map(|lun| serial(&mut bed, lun)), ["", "d1", "d2"]);
    bed.tell("method flat strict");
    assert_eq!([flat, luns[0], luns[1]].map(|lun| serial(&mut bed, lun)), ["d1", "", "d2"]);
    bed.tell("method peripheral");
    // Faults of such a unit.
    bed.tell("inject 4010400a00000000 12 1 busy");
    assert!(bed.tell("info").contains("; 4010400a00000000 12 1 Status(8)"));
    assert_eq!(serial(&mut bed, luns[0]), "d1");
    assert_eq!(command(&mut bed, luns[1], &[0x12, 0, 0, 0, 36], 36).status, 8);
    // Number 0 without a unit: not there, or one that is never there.
    let inquiry = |bed: &mut Bed| command(bed, [0; 8], &[0x12, 0, 0, 0, 36], 36).good()[0];
    assert_eq!(inquiry(&mut bed), 0x7f);
    bed.tell("lun0 z");
    assert_eq!(inquiry(&mut bed), 0x20);
    assert_eq!(command(&mut bed, [0, 1, 0, 0, 0, 0, 0, 0], &[0x12, 0, 0, 0, 36], 36).good()[0], 0x7f);
    assert_eq!(command(&mut bed, [0; 8], &[0], 0).sense, Some((5, 0x25, 0)));
    bed.tell("lun0 absent");
    assert_eq!(inquiry(&mut bed), 0x7f);
}

#[test]
fn changes_are_heard_once() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    bed.tell("resize d1 128M");
    assert_eq!(bed.scsi(one, to, 5, &[0], 0, &[]).sense, Some((6, 0x2a, 9)));
    assert_eq!(bed.scsi(one, to, 5, &[0x25], 8, &[]).good()[..4], [0, 3, 0xff, 0xff]);
    bed.tell("map 2100000000000a01 0=d0 5=d1 6=d2");
    assert_eq!(bed.scsi(one, to, 27, &[0], 0, &[]).sense, Some((5, 0x25, 0)));
    assert_eq!(bed.scsi(one, to, 5, &[0], 0, &[]).sense, Some((6, 0x3f, 0x0e)));
    assert_eq!(bed.scsi(one, to, 5, &[0], 0, &[]).status, 0);
    // Who asks for the list need not hear of it at the others.
    assert_eq!(bed.scsi(one, to, 0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64], 64, &[]).good().len(), 32);
    assert_eq!(bed.scsi(one, to, 0, &[0], 0, &[]).status, 0);
    // INQUIRY leaves it, REQUEST SENSE has it as its data.
    bed.tell("resize d1 64M");
    bed.scsi(one, to, 5, &[0x12, 0, 0, 0, 36], 36, &[]).good();
    let sense = bed.scsi(one, to, 5, &[3, 0, 0, 0, 18], 18, &[]).good();
    assert_eq!((sense[2], sense[12], sense[13]), (6, 0x2a, 9));
    assert_eq!(bed.scsi(one, to, 5, &[0], 0, &[]).status, 0);
    // Logging in anew is the loss of the nexus before.
    bed.session(one, to);
    assert_eq!(bed.scsi(one, to, 5, &[0], 0, &[]).sense, Some((6, 0x29, 7)));
    // An initiator without a map of its own sees the common one.
    bed.tell("map any 3=d3");
    bed.tell("unmap 2100000000000a01");
    assert_eq!(bed.scsi(one, to, 3, &[0], 0, &[]).sense, Some((6, 0x3f, 0x0e)));
}

#[test]
fn changes_are_heard_as_loudly_as_is_wanted() {
    let mut bed = Bed::new();
    bed.tell("map 2100000000000a02 0=d0 5=d1 27=d2 513=d3");
    let (one, to) = bed.ready();
    let two = bed.log_in(0, TWO, true).unwrap();
    bed.session(two, to);
    let hears = |bed: &mut Bed, who, lun| bed.scsi(who, to, lun, &[0], 0, &[]).sense;
    [0, 5, 27, 513].iter().for_each(|lun| assert_eq!(hears(&mut bed, two, *lun), Some((6, 0x29, 0))));
    let luns = Some((6, 0x3f, 0x0e));
    // At the first number alone, and nowhere.
    bed.tell("attentions 3f/0e first");
    bed.tell("map 2100000000000a01 0=d0 5=d1 27=d2");
    assert_eq!([5, 27, 0, 0].map(|lun| hears(&mut bed, one, lun)), [None, None, luns, None]);
    bed.tell("attentions 3f/0e off");
    bed.tell("map 2100000000000a01 0=d0 5=d1 27=d2 513=d3");
    assert_eq!([0, 5, 27, 513].map(|lun| hears(&mut bed, one, lun)), [None; 4]);
    // Another disk at a number that stays: what is known of the unit is no longer so.
    bed.tell("map 2100000000000a01 0=d0 5=d2 27=d1 513=d3");
    let data = Some((6, 0x3f, 3));
    assert_eq!([0, 5, 5, 27, 513].map(|lun| hears(&mut bed, one, lun)), [None, data, None, data, None]);
    bed.tell("attentions 3f/03 off");
    bed.tell("map 2100000000000a01 0=d0 5=d1 27=d2 513=d3");
    assert_eq!([0, 5, 27].map(|lun| hears(&mut bed, one, lun)), [None; 3]);
    // Of a unit itself: one initiator, or none.
    bed.tell("attentions 2a/09 first");
    bed.tell("resize d1 128M");
    assert_eq!([one, two].map(|who| hears(&mut bed, who, 5)), [Some((6, 0x2a, 9)), None]);
    assert!(
        bed.tell("info").contains("attentions 2a/09 first, 3f/03 off, 3f/0e off\n"),
        "{}",
        bed.tell("info")
    );
    bed.tell("attentions all off");
    bed.tell("resize d1 64M");
    bed.tell("alua 1 non-optimized");
    assert_eq!([one, two].map(|who| hears(&mut bed, who, 5)), [None, None]);
    bed.tell("attentions all all");
    bed.tell("resize d1 128M");
    assert_eq!([one, two].map(|who| hears(&mut bed, who, 5)), [Some((6, 0x2a, 9)); 2]);
    assert!(!bed.tell("info").contains("attentions"));
}

#[test]
fn commands_are_counted_by_session_and_port() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let other = bed.target(2);
    bed.session(one, other);
    (0..3).for_each(|_| drop(bed.scsi(one, other, 0, &[0], 0, &[])));
    let line = |bed: &mut Bed, of: &str| {
        let info = bed.tell("info");
        info.lines().find(|line| line.starts_with(of)).unwrap_or_default().to_owned()
    };
    // Four each that heard of the start.
    assert!(line(&mut bed, "target 1").ends_with(", 4 commands"), "{}", bed.tell("info"));
    assert!(line(&mut bed, "target 2").ends_with(", 3 commands"));
    let session = format!("session {ONE:016x} {one} target 2 PRLI, 3 commands, 0 tasks");
    assert_eq!(line(&mut bed, &session), session);
    // A session that begins anew has none yet; the port goes on counting.
    bed.session(one, other);
    bed.scsi(one, other, 0, &[0], 0, &[]);
    assert!(line(&mut bed, "target 2").ends_with(", 4 commands"));
    assert!(bed.tell("info").contains("target 2 PRLI, 1 commands, 0 tasks"));
    bed.scsi(one, to, 0, &[0], 0, &[]);
    assert!(bed.tell("info").contains("target 1 PRLI, 5 commands, 0 tasks"));
}
