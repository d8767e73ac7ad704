//! What units answer.

use super::*;

/// READ(16) and WRITE(16).
pub(super) fn rw16(code: u8, block: u64, count: u32) -> Vec<u8> {
    [&[code, 0][..], &block.to_be_bytes(), &count.to_be_bytes(), &[0, 0]].concat()
}

pub(super) fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * 7 + at / 2048 + seed) % 253) as u8).collect()
}

#[test]
fn a_session_reads_and_writes() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let luns = bed.scsi(one, to, 0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 2, 0], 512, &[]);
    assert_eq!(luns.residual, 512 - 40);
    let luns = luns.good();
    assert_eq!(luns[..8], [0, 0, 0, 32, 0, 0, 0, 0]);
    let numbers: Vec<_> = luns[8..].chunks(8).map(|lun| lun[..2].to_vec()).collect();
    assert_eq!(numbers, [[0, 0], [0, 5], [0, 27], [0x42, 1]]);
    // 20 sectors: five frames each way. Then the shortest form, at the unit with the longest number.
    let data = pattern(10240, 1);
    assert_eq!(bed.scsi(one, to, 513, &rw16(0x8a, 100, 20), 0, &data).good(), []);
    assert_eq!(bed.scsi(one, to, 513, &rw16(0x88, 100, 20), 10240, &[]).good(), data);
    assert_eq!(bed.scsi(one, to, 513, &[0x08, 0, 0, 101, 1, 0], 512, &[]).good(), data[512..1024]);
    assert_eq!(bed.scsi(one, to, 513, &[0x28, 0, 0, 0, 0, 119, 0, 0, 1, 0], 512, &[]).good(), data[9728..]);
    assert_eq!(bed.scsi(one, to, 5, &rw16(0x88, 100, 1), 512, &[]).good(), [0; 512]);
    // It is in the array's memory, and the same through the other port.
    let read = bed.tell("read d3 51200 4");
    assert_eq!(read.trim(), data[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let other = bed.target(2);
    bed.session(one, other);
    assert_eq!(bed.scsi(one, other, 513, &[0], 0, &[]).sense, Some((6, 0x29, 0)));
    assert_eq!(bed.scsi(one, other, 513, &rw16(0x88, 100, 20), 10240, &[]).good(), data);
}

#[test]
fn lengths_that_do_not_fit_are_said() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let data = pattern(2048, 3);
    // The initiator allows less than the command has, and more.
    let answer = bed.scsi(one, to, 0, &rw16(0x8a, 0, 8), 0, &data);
    assert_eq!((answer.status, answer.residual), (0, -2048));
    let answer = bed.scsi(one, to, 0, &rw16(0x88, 0, 8), 1024, &[]);
    assert_eq!((answer.status, answer.residual, answer.data == data[..1024]), (0, -3072, true));
    let answer = bed.scsi(one, to, 0, &rw16(0x88, 0, 1), 4096, &[]);
    assert_eq!((answer.status, answer.residual, answer.data.len()), (0, 3584, 512));
    assert_eq!(bed.scsi(one, to, 0, &[0], 0, &data).residual, 2048);
    for (cdb, sense) in [
        (rw16(0x88, 131_072, 1), (5, 0x21, 0)),
        (rw16(0x88, u64::MAX, 2), (5, 0x21, 0)),
        (rw16(0x88, 0, 16385), (5, 0x24, 0)),
        (vec![0x28, 0x20, 0, 0, 0, 0, 0, 0, 1, 0], (5, 0x24, 0)),
        (vec![0xfe], (5, 0x20, 0)),
    ] {
        let answer = bed.scsi(one, to, 0, &cdb, 512, &[]);
        assert_eq!((answer.status, answer.sense, answer.residual), (2, Some(sense), 512), "{cdb:02x?}");
    }
    // No blocks are no error.
    assert_eq!(bed.scsi(one, to, 0, &rw16(0x88, 0, 0), 0, &[]).good(), []);
}

#[test]
fn units_say_what_they_are() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let inquiry = |page: u8| [0x12, u8::from(page != 0xff), if page == 0xff { 0 } else { page }, 1, 0, 0];
    let standard = bed.scsi(one, to, 27, &inquiry(0xff), 256, &[]).good();
    assert_eq!(standard[..8], [0, 0, 6, 0x12, 31, 0x30, 0x10, 2]);
    assert_eq!(&standard[8..32], b"FABRIC  DISK            ");
    assert_eq!(
        bed.scsi(one, to, 27, &inquiry(0), 256, &[]).good(),
        [0, 0, 0, 6, 0, 0x80, 0x83, 0xb0, 0xb1, 0xb2]
    );
    assert_eq!(bed.scsi(one, to, 27, &inquiry(0x80), 256, &[]).good(), [0, 0x80, 0, 2, b'd', b'2']);
    let page = bed.scsi(one, to, 27, &inquiry(0x83), 256, &[]).good();
    assert_eq!(page[..12], [0, 0x83, 0, 60, 1, 3, 0, 16, 0x60, 0x2f, 0xcf, 0]);
    assert_eq!(page[24..36], [1, 0x93, 0, 8, 0x50, 0x2f, 0xcf, 0, 0, 0, 0, 1]);
    assert_eq!(page[36..52], [1, 0x94, 0, 4, 0, 0, 0, 1, 1, 0x95, 0, 4, 0, 0, 0, 1]);
    assert_eq!(page[52..64], [1, 0xa3, 0, 8, 0x50, 0x2f, 0xcf, 0, 0, 0, 0, 0]);
    let limits = bed.scsi(one, to, 27, &inquiry(0xb0), 256, &[]).good();
    assert_eq!((limits.len(), limits.be32(8), limits.be32(12)), (64, Some(16384), Some(2048)));
    assert_eq!(bed.scsi(one, to, 27, &inquiry(0xb2), 256, &[]).good(), [0, 0xb2, 0, 4, 0, 0xe4, 2, 0]);
    assert_eq!(bed.scsi(one, to, 27, &inquiry(0xb9), 256, &[]).sense, Some((5, 0x24, 0)));
    let capacity = bed.scsi(one, to, 27, &[0x25], 8, &[]).good();
    assert_eq!(capacity, [0, 1, 0xff, 0xff, 0, 0, 2, 0]);
    let long = bed.scsi(one, to, 27, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32], 32, &[]).good();
    assert_eq!((long.be64(0), long.be32(8), long[14]), (Some(131_071), Some(512), 0xc0));
    let mode = bed.scsi(one, to, 27, &[0x1a, 0, 0x3f, 0, 0xff], 255, &[]).good();
    assert_eq!((mode[0], mode[2], mode[4], mode.len()), (35, 0x10, 8, 36));
    // At a number without a unit, and for an initiator without any.
    let missing = bed.scsi(one, to, 1, &inquiry(0xff), 36, &[]).good();
    assert_eq!((missing[0], missing.len()), (0x7f, 36));
    assert_eq!(bed.scsi(one, to, 1, &[0], 0, &[]).sense, Some((5, 0x25, 0)));
    let base = bed.log_in(1, BASE + 1, false).unwrap();
    bed.session(base, to);
    assert_eq!(bed.scsi(base, to, 0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64], 64, &[]).good(), [0; 8]);
    assert_eq!(bed.scsi(base, to, 0, &rw16(0x88, 0, 1), 512, &[]).sense, Some((5, 0x25, 0)));
    // The list is given by units that are there, by number 0 and the well-known one, and by no other.
    let report = [0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64];
    assert_eq!(bed.scsi(one, to, 513, &report, 64, &[]).good().len(), 40);
    assert_eq!(bed.scsi(one, to, 1, &report, 64, &[]).sense, Some((5, 0x25, 0)));
    assert_eq!(bed.scsi(one, to, 0xc101, &report, 64, &[]).good().len(), 40);
    bed.tell("method flat");
    let luns = bed.scsi(one, to, 0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64], 64, &[]).good();
    assert_eq!(luns[16..18], [0x40, 5]);
}

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

#[test]
fn blocks_are_unmapped_and_written_the_same() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let data = pattern(8192, 5);
    bed.scsi(one, to, 0, &rw16(0x8a, 0, 16), 0, &data).good();
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend(4_u64.to_be_bytes());
    list.extend([0, 0, 0, 4, 0, 0, 0, 0]);
    bed.scsi(one, to, 0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], 0, &list).good();
    let mut expected = data.clone();
    expected[2048..4096].fill(0);
    assert_eq!(bed.scsi(one, to, 0, &rw16(0x88, 0, 16), 8192, &[]).good(), expected);
    list[8] = 1;
    let answer = bed.scsi(one, to, 0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], 0, &list);
    assert_eq!(answer.sense, Some((5, 0x21, 0)));
    bed.scsi(one, to, 0, &rw16(0x93, 1, 2), 0, &[0xee; 512]).good();
    expected[512..1536].fill(0xee);
    let mut zeros = rw16(0x93, 15, 1);
    zeros[1] = 1;
    bed.scsi(one, to, 0, &zeros, 0, &[]).good();
    expected[7680..].fill(0);
    assert_eq!(bed.scsi(one, to, 0, &rw16(0x88, 0, 16), 8192, &[]).good(), expected);
    // COMPARE AND WRITE: not what is there, then what is there.
    let mut swap = rw16(0x89, 0, 0);
    swap[13] = 1;
    let answer = bed.scsi(one, to, 0, &swap, 0, &[1; 1024]);
    assert_eq!(answer.sense, Some((0xe, 0x1d, 0)));
    bed.scsi(one, to, 0, &swap, 0, &[&data[..512], &[1; 512]].concat()).good();
    assert_eq!(bed.scsi(one, to, 0, &rw16(0x88, 0, 1), 512, &[]).good(), [1; 512]);
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
fn a_tape_keeps_blocks_and_marks() {
    let mut bed = Bed::new();
    bed.tell("tape t0");
    bed.tell("map 2100000000000a01 0=t0 5=t0 27=t0 513=t0");
    bed.log_in(0, BASE, false).unwrap();
    let one = bed.log_in(0, ONE, true).unwrap();
    let to = bed.target(1);
    bed.session(one, to);
    let mut tape = |cdb: &[u8], read: u32, write: &[u8]| bed.scsi(one, to, 0, cdb, read, write);
    assert_eq!(tape(&[0], 0, &[]).sense, Some((6, 0x29, 0)));
    assert_eq!(tape(&[0x12, 0, 0, 0, 36], 36, &[]).good()[..2], [1, 0x80]);
    assert_eq!(tape(&[5], 6, &[]).good(), [0, 0x10, 0, 0, 0, 1]);
    let block = pattern(10240, 9);
    for _ in 0..2 {
        tape(&[0x0a, 0, 0, 0x28, 0], 0, &block).good();
    }
    tape(&[0x10, 0, 0, 0, 1], 0, &[]).good();
    tape(&[0x0a, 0, 0, 0, 100], 0, &[7; 100]).good();
    tape(&[0x01], 0, &[]).good();
    assert_eq!(tape(&[0x08, 0, 0, 0x28, 0], 10240, &[]).good(), block);
    // A block shorter than what is asked for is said, unless that is unwanted; then the mark, and the end of data.
    let answer = tape(&[0x08, 0, 0, 0x40, 0], 16384, &[]);
    assert_eq!((answer.sense, answer.data.len(), answer.residual), (Some((0, 0, 0)), 10240, 6144));
    assert_eq!(tape(&[0x08, 0, 0, 0x40, 0], 16384, &[]).sense, Some((0, 0, 1)));
    assert_eq!(tape(&[0x08, 2, 0, 0x40, 0], 16384, &[]).good(), [7; 100]);
    assert_eq!(tape(&[0x08, 2, 0, 0x40, 0], 16384, &[]).sense, Some((8, 0, 5)));
    assert_eq!(tape(&[0x34], 20, &[]).good()[..8], [0, 0, 0, 0, 0, 0, 0, 4]);
    // Back over one mark, and one block.
    tape(&[0x11, 1, 0xff, 0xff, 0xff], 0, &[]).good();
    tape(&[0x11, 0, 0xff, 0xff, 0xff], 0, &[]).good();
    assert_eq!(tape(&[0x34], 20, &[]).good()[..8], [0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(tape(&[0x11, 0, 0xff, 0xff, 0xfe], 0, &[]).sense, Some((0, 0, 4)));
    tape(&[0x11, 3], 0, &[]).good();
    // Fixed blocks of 512 bytes.
    tape(&[0x15, 0x10, 0, 0, 12], 0, &[0, 0, 0x10, 8, 0, 0, 0, 0, 0, 0, 2, 0]).good();
    assert_eq!(tape(&[0x1a, 0, 0, 0, 12], 12, &[]).good(), [11, 0, 0x10, 8, 0, 0, 0, 0, 0, 0, 2, 0]);
    tape(&[0x0a, 1, 0, 0, 4], 0, &block[..2048]).good();
    tape(&[0x11, 0, 0xff, 0xff, 0xfc], 0, &[]).good();
    let answer = tape(&[0x08, 1, 0, 0, 6], 3072, &[]);
    assert_eq!((answer.sense, answer.data == block[..2048]), (Some((8, 0, 5)), true));
    tape(&[0x1b, 0, 0, 0, 0], 0, &[]).good();
    assert_eq!(tape(&[0], 0, &[]).sense, Some((2, 0x3a, 0)));
    tape(&[0x1b, 0, 0, 0, 1], 0, &[]).good();
    assert_eq!(tape(&[0], 0, &[]).status, 0);
}

#[test]
fn a_load_is_heard_by_the_others() {
    let mut bed = Bed::new();
    bed.tell("tape t0");
    bed.tell("map any 0=t0");
    bed.tell("unmap 2100000000000a01");
    bed.log_in(0, BASE, false).unwrap();
    let to = bed.target(1);
    let ids = [ONE, TWO].map(|name| {
        let id = bed.log_in(0, name, true).unwrap();
        bed.session(id, to);
        assert_eq!(bed.scsi(id, to, 0, &[0], 0, &[]).sense, Some((6, 0x29, 0)));
        id
    });
    bed.scsi(ids[0], to, 0, &[0x1b, 0, 0, 0, 0], 0, &[]).good();
    assert_eq!(bed.scsi(ids[1], to, 0, &[0], 0, &[]).sense, Some((2, 0x3a, 0)));
    bed.scsi(ids[0], to, 0, &[0x1b, 0, 0, 0, 1], 0, &[]).good();
    assert_eq!(bed.scsi(ids[1], to, 0, &[0], 0, &[]).sense, Some((6, 0x28, 0)));
    assert_eq!(bed.scsi(ids[1], to, 0, &[0], 0, &[]).status, 0);
    // A tape that is there already is only wound back.
    bed.scsi(ids[0], to, 0, &[0x1b, 0, 0, 0, 1], 0, &[]).good();
    assert_eq!(bed.scsi(ids[1], to, 0, &[0], 0, &[]).status, 0);
}
