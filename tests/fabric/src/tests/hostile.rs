//! Frames that nobody should send: none of them stops the fabric.

use super::units::rw16;
use super::*;

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Frames as they are, sent on the way of a session.
fn samples(bed: &mut Bed, one: PortId, to: PortId) -> Vec<(Header, Vec<u8>)> {
    let mut samples = Vec::new();
    let mut add = |r_ctl: u8, kind: u8, d_id: PortId, payload: Vec<u8>| {
        samples.push((Header::request(r_ctl, kind, one, d_id, 0x99), payload));
    };
    for code in 0..=255 {
        add(0x22, 1, to, [&[code][..], &[0; 115]].concat());
        add(0x22, 1, PortId(0xff_fff0 | u32::from(code & 15)), [&[code >> 1][..], &[0; 115]].concat());
        let command = [&[0; 11][..], &[code], &[0; 20], &[0, 0, 0xff, 0xff], &[0; 240]].concat();
        add(6, 8, to, command);
        let mut cdb = [&[0; 11][..], &[3, code], &[0xff; 15], &[0, 1, 0, 0], &[0, 1, 0, 0]].concat();
        add(6, 8, to, cdb.clone());
        cdb[13..28].fill(1);
        add(6, 8, to, cdb.clone());
        cdb[13..28].fill(0);
        cdb[10] = code;
        add(6, 8, to, cdb);
        let mut request = vec![1, 0, 0, 0, 0xfc, 2, 0, 0, code & 7, code];
        request.resize(60, 0xff);
        add(2, 0x20, PortId::DIRECTORY, request.clone());
        request.truncate(16 + usize::from(code & 3) * 4);
        add(2, 0x20, PortId::DIRECTORY, request);
    }
    add(1, 8, to, vec![7; 2048]);
    add(0x81, 0, to, Vec::new());
    bed.out.clear();
    samples
}

#[test]
fn every_code_is_answered_or_ignored() {
    let mut bed = Bed::new();
    bed.tell("tape t0");
    bed.tell("map 2100000000000a01 0=t0 5=d0");
    let (one, to) = {
        bed.log_in(0, BASE, false).unwrap();
        let one = bed.log_in(0, ONE, true).unwrap();
        let to = bed.target(1);
        bed.session(one, to);
        (one, to)
    };
    for (header, payload) in samples(&mut bed, one, to) {
        for lun in [0, 5, 9] {
            let mut payload = payload.clone();
            if header.kind == 8 {
                payload[1] = lun;
            }
            for length in [payload.len(), 0, 4, 12, 24, 31].into_iter().filter(|at| *at <= payload.len()) {
                bed.send(header, &payload[..length]);
                // Whatever it took away: logins, parameters of the tape.
                if !bed.tell("info").contains(&format!("session {ONE:016x}")) {
                    if bed.san.fabrics[0].ports.contains_key(&one) {
                        bed.session(one, to);
                    } else {
                        bed.log_in(0, BASE, false).unwrap();
                        bed.log_in(0, ONE, true).unwrap();
                        bed.session(one, to);
                    }
                }
                bed.out.clear();
            }
        }
    }
    bed.session(one, to);
    bed.scsi(one, to, 5, &[0], 0, &[]);
    assert_eq!(bed.scsi(one, to, 5, &rw16(0x88, 0, 1), 512, &[]).status, 0);
}

#[test]
fn damaged_frames_cost_themselves() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    let mut random = Random(0x1234_5678_9abc_def1);
    let samples = samples(&mut bed, one, to);
    let rounds = std::env::var("FRAMES").ok().and_then(|count| count.parse().ok()).unwrap_or(60_000);
    for round in 0..rounds {
        let (mut header, mut payload) = samples[random.below(samples.len())].clone();
        for _ in 0..random.below(4) {
            match random.below(10) {
                0 => header.f_ctl = random.next() as u32 & 0xff_ffff,
                1 => header.df_ctl = random.next() as u8,
                2 => header.ox_id = random.next() as u16,
                3 => header.parameter = random.next() as u32,
                4 => header.rx_id = random.next() as u16,
                5 => payload.truncate(random.below(payload.len() + 1)),
                _ if payload.is_empty() => {}
                _ => {
                    let at = random.below(payload.len().min(40));
                    payload[at] = random.next() as u8;
                }
            }
        }
        bed.send(header, &payload);
        if round % 64 == 0 {
            // Bytes of no form at all.
            let mut frame: Vec<u8> = (0..random.below(200)).map(|_| random.next() as u8).collect();
            if frame.len() > 14 {
                frame[12..14].copy_from_slice(&[[0x89, 0x06], [0x89, 0x14]][random.below(2)]);
            }
            bed.receive(random.below(3), &frame);
            let list: Vec<u8> = (0..random.below(40) * 4).map(|_| random.next() as u8 & 0x0f).collect();
            bed.fip(0, NODE, random.below(5) as u16, random.below(3) as u8, &list);
            bed.now += 1;
            bed.san.tick(bed.now, &mut bed.out);
            // And the session begins anew, with whatever is left of it.
            bed.out.clear();
            bed.out.notes.clear();
            if bed.log_in(0, BASE, false).is_ok() && bed.log_in(0, ONE, true).is_ok() {
                bed.session(one, to);
            }
        }
        bed.out.clear();
    }
    bed.tell("map 2100000000000a01 0=d0");
    bed.session(one, to);
    while bed.scsi(one, to, 0, &[0], 0, &[]).sense.is_some() {}
    assert_eq!(bed.scsi(one, to, 0, &[0x12, 0, 0, 0, 36], 36, &[]).status, 0);
}

#[test]
fn frames_of_others_are_not_taken() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    bed.log_in(1, BASE + 1, false).unwrap();
    let dropped = |bed: &Bed| bed.san.dropped;
    let before = dropped(&bed);
    // From another link, from another address, with a wrong CRC, to nobody.
    let header = bed.request(0x22, 1, one, to);
    let mut frame = vec![2, 0xfc, 0xf0, 0, 0, 1];
    frame.extend(one.mac());
    frame.extend([0x89, 0x06]);
    frame.extend([0; 13]);
    frame.push(0x2e);
    let at = frame.len();
    header.append(&mut frame);
    frame.extend([0x0e, 0, 0, 0]);
    let crc = crc32(&frame[at..]);
    frame.extend(crc.to_le_bytes());
    frame.extend([0x42, 0, 0, 0]);
    bed.out.clear();
    bed.receive(1, &frame);
    frame[6] ^= 2;
    bed.receive(0, &frame);
    frame[6] ^= 2;
    frame[at + 24 + 3] ^= 1;
    bed.receive(0, &frame);
    frame[at + 24 + 3] ^= 1;
    assert_eq!((dropped(&bed) - before, bed.take().len()), (3, 0));
    bed.receive(0, &frame);
    assert_eq!(bed.take().len(), 1);
    bed.receive(9, &frame);
    assert_eq!(dropped(&bed) - before, 4);
}

#[test]
fn data_past_what_was_asked_for_are_not_taken() {
    let mut bed = Bed::new();
    let (one, to) = bed.ready();
    bed.out.clear();
    let write = bed.command(one, to, 0, &rw16(0x8a, 0, 4), 0, 2048);
    let rx_id = bed.take()[0].header.rx_id;
    let send = |bed: &mut Bed, offset: u32, length: usize| {
        let header = Header { r_ctl: 1, rx_id, parameter: offset, f_ctl: 8, ..write };
        bed.send(header, &vec![0xee; length]);
    };
    send(&mut bed, u32::MAX, 512);
    send(&mut bed, 1024, 512);
    send(&mut bed, 0, 2052);
    let other = Header { r_ctl: 1, rx_id: rx_id ^ 1, f_ctl: 8, ..write };
    bed.send(other, &[0xee; 512]);
    assert_eq!(bed.tell("read d0 0 8").trim(), "0000000000000000");
    send(&mut bed, 0, 2048);
    assert_eq!(bed.answer(write).map(|answer| answer.status), Some(0));
    // An exchange has one command: a second one ends the first.
    let first = bed.command(one, to, 0, &rw16(0x8a, 0, 4), 0, 2048);
    let rx_id = bed.take()[0].header.rx_id;
    let mut payload = vec![0; 32];
    payload[12] = 0x25;
    (payload[11], payload[31]) = (2, 8);
    bed.send(first, &payload);
    assert_eq!(bed.answer(first).map(|answer| answer.data.len()), Some(8));
    bed.data(first, rx_id, &[1; 2048], 2048);
    assert!(bed.answer(first).is_none());
    // So many and no more.
    bed.tell("inject any any 3000 hang");
    for _ in 0..2048 {
        bed.command(one, to, 0, &[0], 0, 0);
    }
    bed.out.clear();
    assert_eq!(bed.scsi(one, to, 0, &[0], 0, &[]).status, 0x28);
}
