//! Persistent reservations between two names.

use super::units::{pattern, rw16};
use super::*;

/// Two initiators that are mapped the same disk, at the first target port.
struct Two {
    bed: Bed,
    ids: [PortId; 2],
    to: PortId,
}

const CONFLICT: u8 = 0x18;

impl Two {
    fn new() -> Self {
        let mut bed = Bed::new();
        bed.tell("map 2100000000000a02 0=d0");
        let (one, to) = bed.ready();
        let two = bed.log_in(0, TWO, true).unwrap();
        bed.session(two, to);
        assert_eq!(bed.scsi(two, to, 0, &[0], 0, &[]).sense, Some((6, 0x29, 0)));
        Self { bed, ids: [one, two], to }
    }

    /// PERSISTENT RESERVE OUT by one of them: action, type, its key, the action's key, flags.
    fn out(&mut self, who: usize, action: u8, kind: u8, key: u64, other: u64, flags: u8) -> Answer {
        let list = [&key.to_be_bytes()[..], &other.to_be_bytes(), &[0, 0, 0, 0, flags, 0, 0, 0]].concat();
        let cdb = [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
        self.bed.scsi(self.ids[who], self.to, 0, &cdb, 0, &list)
    }

    fn report(&mut self, who: usize, action: u8) -> Vec<u8> {
        let cdb = [0x5e, action, 0, 0, 0, 0, 0, 2, 0, 0];
        self.bed.scsi(self.ids[who], self.to, 0, &cdb, 512, &[]).good()
    }

    /// Whether one of them may read, and write: by its statuses.
    fn access(&mut self, who: usize) -> (u8, u8) {
        let (id, to) = (self.ids[who], self.to);
        let read = self.bed.scsi(id, to, 0, &rw16(0x88, 0, 1), 512, &[]).status;
        (read, self.bed.scsi(id, to, 0, &rw16(0x8a, 0, 1), 0, &[1; 512]).status)
    }

    /// The array loses power, and with it all logins; they log in anew and hear of its start as if it was the first.
    fn lose_power(&mut self) {
        self.bed.tell("power");
        for id in self.ids {
            assert_eq!(self.bed.els(id, self.to, &[0x52; 28]), [1, 0, 0, 0, 0, 9, 0x1e, 0]);
            self.bed.session(id, self.to);
        }
        assert_eq!([self.hears(0), self.hears(1)], [Some((6, 0x29, 0)); 2]);
    }

    /// What one of them hears with its next command.
    fn hears(&mut self, who: usize) -> Option<(u8, u8, u8)> {
        self.bed.scsi(self.ids[who], self.to, 0, &[0], 0, &[]).sense
    }
}

#[test]
fn each_type_keeps_out_whom_it_should() {
    // Of another one that is registered, and of one that is not: reading and writing.
    let (all, read, none) = ((0, 0), (0, CONFLICT), (CONFLICT, CONFLICT));
    for (kind, registered, unregistered) in
        [(1, read, read), (3, none, none), (5, all, read), (6, all, none), (7, all, read), (8, all, none)]
    {
        let mut two = Two::new();
        assert_eq!(two.out(0, 1, kind, 0xa, 0, 0).status, CONFLICT);
        assert_eq!(two.out(0, 0, 0, 0, 0xa, 0).status, 0);
        assert_eq!(two.out(0, 1, kind, 0xb, 0, 0).status, CONFLICT);
        assert_eq!(two.out(0, 1, kind, 0xa, 0, 0).status, 0);
        assert_eq!((two.access(0), two.access(1)), (all, unregistered), "{kind}");
        assert_eq!(two.out(1, 0, 0, 5, 0xb, 0).status, CONFLICT);
        assert_eq!(two.out(1, 0, 0, 0, 0xb, 0).status, 0);
        assert_eq!(two.access(1), registered, "{kind}");
        // What is always allowed, and reservations of others' types, which are not.
        assert_eq!(two.bed.scsi(two.ids[1], two.to, 0, &[0x25], 8, &[]).status, 0);
        let other = if kind == 1 { 3 } else { 1 };
        assert_eq!(two.out(1, 1, other, 0xb, 0, 0).status, CONFLICT);
        let reservation = two.report(1, 1);
        let key = if kind >= 7 { 0_u64 } else { 0xa };
        assert_eq!((reservation.be64(8), reservation[21]), (Some(key), kind));
        // Release: a wrong type is said. Registrants hear of it where they could all write.
        assert_eq!(two.out(0, 2, other, 0xa, 0, 0).sense, Some((5, 0x26, 4)));
        assert_eq!(two.out(0, 2, kind, 0xa, 0, 0).status, 0);
        assert_eq!(two.hears(1), (kind >= 5).then_some((6, 0x2a, 4)), "{kind}");
        assert_eq!(two.access(1), all);
    }
}

#[test]
fn reports_name_the_ports() {
    let mut two = Two::new();
    assert_eq!(two.report(0, 0), [0; 8]);
    assert_eq!(two.report(0, 1), [0; 8]);
    assert_eq!(two.report(0, 2), [0, 8, 5, 0x80, 0xea, 1, 0, 0]);
    two.out(0, 6, 0, 99, 0x1111, 1);
    two.out(1, 0, 0, 0, 0x2222, 0);
    two.out(1, 1, 5, 0x2222, 0, 0);
    assert_eq!(two.report(0, 0)[..16], [0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0x11, 0x11]);
    let full = two.report(0, 3);
    assert_eq!((full.be32(0), full.be32(4), full.len()), (Some(2), Some(96), 104));
    let second = &full[56..];
    assert_eq!((second.be64(0), second[12], second[13]), (Some(0x2222), 1, 5));
    assert_eq!((second.be16(18), second.be32(20)), (Some(1), Some(24)));
    // TransportID of Fibre Channel, with the name of the vport.
    assert_eq!(second[24..48], [&[0; 8][..], &TWO.to_be_bytes(), &[0; 8]].concat());
    assert_eq!((full[8 + 12], full[8 + 13], full.be64(8 + 32)), (0, 0, Some(ONE)));
    // Registered at all target ports at once.
    two.out(0, 6, 0, 0, 0x3333, 4);
    let full = two.report(0, 3);
    assert_eq!((full.be32(4), full[8 + 12]), (Some(144), 2));
    let bad = two.out(0, 0, 0, 0x3333, 1, 8);
    assert_eq!(bad.sense, Some((5, 0x26, 0)));
    let short = two.bed.scsi(two.ids[0], two.to, 0, &[0x5f, 0, 0, 0, 0, 0, 0, 0, 8, 0], 0, &[0; 8]);
    assert_eq!(short.sense, Some((5, 0x1a, 0)));
    assert_eq!(
        two.bed.scsi(two.ids[0], two.to, 0, &[0x5e, 9, 0, 0, 0, 0, 0, 0, 8], 8, &[]).sense,
        Some((5, 0x24, 0))
    );
}

#[test]
fn preempt_and_abort_fences() {
    let mut two = Two::new();
    two.out(0, 0, 0, 0, 0xa, 0);
    two.out(1, 0, 0, 0, 0xb, 0);
    two.out(0, 1, 5, 0xa, 0, 0);
    assert_eq!((two.access(0), two.access(1)), ((0, 0), (0, 0)));
    // The first one has a write under way when it is fenced: no more of it reaches the disk, and it is not answered.
    let (one, to) = (two.ids[0], two.to);
    two.bed.out.clear();
    let write = two.bed.command(one, to, 0, &rw16(0x8a, 8, 8), 0, 4096);
    let ready = two.bed.take();
    let data = pattern(4096, 4);
    two.bed.data(write, ready[0].header.rx_id, &data[..2048], 2048);
    assert_eq!(two.out(1, 5, 5, 0xb, 0xcc, 0).status, CONFLICT);
    assert_eq!(two.out(1, 5, 5, 0xb, 0xa, 0).status, 0);
    let mut rest = write;
    rest.parameter = 2048;
    (rest.r_ctl, rest.rx_id, rest.f_ctl) = (1, ready[0].header.rx_id, 8);
    two.bed.send(rest, &data[2048..]);
    assert!(two.bed.answer(write).is_none());
    assert_eq!(two.bed.tell("read d0 6144 4").trim(), "00000000");
    assert_eq!(two.hears(0), Some((6, 0x2a, 5)));
    assert_eq!((two.access(0), two.access(1)), ((0, CONFLICT), (0, 0)));
    assert_eq!(two.report(1, 0)[4..], [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0xb]);
    // The fence holds through a new login of the same name, and the loss of the array's power if it was told so.
    two.out(1, 0, 0, 0xb, 0xb, 1);
    two.ids[0] = two.bed.log_in(0, ONE, true).unwrap();
    two.bed.session(two.ids[0], to);
    assert_eq!(two.hears(0), Some((6, 0x29, 7)));
    two.lose_power();
    assert_eq!((two.access(0), two.access(1)), ((0, CONFLICT), (0, 0)));
    two.out(1, 0, 0, 0xb, 0xb, 0);
    two.lose_power();
    assert_eq!(two.access(0), (0, 0));
}

#[test]
fn registrations_come_and_go() {
    let mut two = Two::new();
    two.out(0, 0, 0, 0, 0xa, 0);
    two.out(1, 0, 0, 0, 0xb, 0);
    // All hold it: it lasts until the last of them is gone.
    two.out(0, 1, 8, 0xa, 0, 0);
    assert_eq!(two.out(1, 1, 8, 0xb, 0, 0).status, 0);
    assert_eq!(two.out(0, 0, 0, 0xa, 0, 0).status, 0);
    assert_eq!((two.access(0), two.access(1)), ((CONFLICT, CONFLICT), (0, 0)));
    two.out(1, 0, 0, 0xb, 0, 0);
    assert_eq!(two.report(1, 1).len(), 8);
    // Preempting all that hold it, with the key zero.
    two.out(0, 0, 0, 0, 0xa, 0);
    two.out(1, 0, 0, 0, 0xb, 0);
    two.out(0, 1, 7, 0xa, 0, 0);
    assert_eq!(two.out(1, 4, 1, 0xb, 0, 0).status, 0);
    assert_eq!(two.hears(0), Some((6, 0x2a, 5)));
    assert_eq!(two.report(1, 1)[16..], [0, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(two.out(1, 4, 1, 0xb, 0, 0).sense, Some((5, 0x26, 0)));
    // The holder's registration ends, and with it the reservation; CLEAR ends all.
    two.out(1, 0, 0, 0xb, 0, 0);
    assert_eq!(two.access(0), (0, 0));
    two.out(0, 0, 0, 0, 0xa, 0);
    two.out(1, 0, 0, 0, 0xb, 0);
    two.out(1, 1, 3, 0xb, 0, 0);
    assert_eq!(two.out(0, 3, 0, 0xa, 0, 0).status, 0);
    assert_eq!(two.hears(1), Some((6, 0x2a, 3)));
    assert_eq!((two.access(0), two.report(0, 0).len()), ((0, 0), 8));
    // An unknown service action, and a scope that is not the whole unit.
    two.out(0, 0, 0, 0, 0xa, 0);
    assert_eq!(two.out(0, 0x1f, 1, 0xa, 0, 0).sense, Some((5, 0x24, 0)));
    assert_eq!(two.out(0, 1, 0x11, 0xa, 0, 0).sense, Some((5, 0x24, 0)));
}
