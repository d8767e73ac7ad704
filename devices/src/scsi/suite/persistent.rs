//! Persistent reservations among three initiators: SPC-5, 5.13.

use super::local::{Local, block_on};
use super::management::{Running, manage};
use super::nexuses::{LUN_0, READ, READY, WRITE, ram, rig};
use super::{BLOCK, Initiator, check, config, exact, good, settle};
use crate::iothread::Io;
use crate::scsi::{Status, TaskManagement, TransportFault};

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const REGISTER_AND_IGNORE: u8 = 6;

const CONFLICT: u8 = 0x18;

fn list(key: u64, action_key: u64) -> Vec<u8> {
    let mut list = [key.to_be_bytes(), action_key.to_be_bytes()].concat();
    list.resize(24, 0);
    list
}

fn out_cdb(action: u8, kind: u8) -> [u8; 10] {
    [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0]
}

/// PERSISTENT RESERVE OUT: the status.
fn out(i: &mut Local, action: u8, kind: u8, key: u64, action_key: u64) -> u8 {
    let outcome = i.command(&out_cdb(action, kind), &list(key, action_key), 0);
    assert!(outcome.sense.is_empty(), "{outcome:02x?}");
    outcome.status
}

/// PERSISTENT RESERVE IN: the data.
fn get(i: &mut Local, action: u8) -> Vec<u8> {
    let data = good(i, &[0x5e, action, 0, 0, 0, 0, 0, 2, 0, 0], &[], 512);
    if action == 2 {
        return data[..8].to_vec();
    }
    let len = 8 + u32::from_be_bytes([data[4], data[5], data[6], data[7]]) as usize;
    data[..len].to_vec()
}

fn keys(i: &mut Local) -> Vec<u64> {
    get(i, 0)[8..].chunks(8).map(|key| u64::from_be_bytes(key.try_into().unwrap())).collect()
}

/// Three initiators; A has key 0xa and B key 0xb, C is not registered.
fn three() -> (std::sync::Arc<crate::scsi::Image>, Local, Local, Local) {
    let (target, image, mut a, mut b) = rig(config());
    let mut c = Local::new(&target);
    settle(&mut c);
    assert_eq!(out(&mut a, REGISTER, 0, 0, 0xa), 0);
    assert_eq!(out(&mut b, REGISTER_AND_IGNORE, 0, 0x77, 0xb), 0);
    (image, a, b, c)
}

#[test]
fn registrations() {
    let (_, mut a, mut b, mut c) = three();
    assert_eq!(get(&mut c, 0)[..8], [0, 0, 0, 2, 0, 0, 0, 16]);
    assert_eq!(keys(&mut c), [0xa, 0xb]);
    // A wrong key, and a key where there is no registration.
    assert_eq!(out(&mut a, REGISTER, 0, 0xb, 1), CONFLICT);
    assert_eq!(out(&mut c, REGISTER, 0, 0xa, 1), CONFLICT);
    assert_eq!(out(&mut c, REGISTER, 0, 0, 0), 0);
    assert_eq!(out(&mut a, REGISTER, 0, 0xa, 0xaa), 0);
    assert_eq!(out(&mut b, REGISTER, 0, 0xb, 0), 0);
    assert_eq!(get(&mut c, 0)[..8], [0, 0, 0, 4, 0, 0, 0, 8]);
    assert_eq!(keys(&mut c), [0xaa]);
    assert_eq!(get(&mut c, 2), [0, 8, 0x00, 0x80, 0xea, 0x01, 0, 0]);
    // The list is 24 bytes; SPEC_I_PT, ALL_TG_PT and APTPL are not supported.
    check(&mut c, &[0x5f, 0, 0, 0, 0, 0, 0, 0, 25, 0], &[0; 25], 0, (0x5, 0x1a, 0x00));
    check(&mut c, &out_cdb(REGISTER, 0), &[0; 23], 0, (0x5, 0x1a, 0x00));
    for (bit, value) in [(0, 0x01u8), (2, 0x04), (3, 0x08)] {
        let mut list = list(0, 1);
        list[20] = value;
        let sense = check(&mut c, &out_cdb(REGISTER, 0), &list, 0, (0x5, 0x26, 0x00));
        assert_eq!(sense[15..18], [0x88 | bit, 0, 20]);
    }
}

#[test]
fn who_may_do_what_under_each_type() {
    // Status for: B (registered) reads, writes, asks for mode pages; C (not registered) the same. 1 means conflict.
    let table = [
        (1u8, [0, 1, 0], [0, 1, 0]),
        (3, [1, 1, 1], [1, 1, 1]),
        (5, [0, 0, 0], [0, 1, 0]),
        (6, [0, 0, 0], [1, 1, 1]),
        (7, [0, 0, 0], [0, 1, 0]),
        (8, [0, 0, 0], [1, 1, 1]),
    ];
    for (kind, registered, stranger) in table {
        let (_, mut a, mut b, mut c) = three();
        assert_eq!(out(&mut a, RESERVE, kind, 0xa, 0), 0);
        let try_all = |i: &mut Local| {
            let reads = i.command(&READ, &[], BLOCK).status;
            let writes = i.command(&WRITE, &[0; BLOCK], 0).status;
            let modes = i.command(&[0x1a, 0, 0x3f, 0, 255, 0], &[], 255).status;
            // These are nobody's secret.
            for cdb in [&READY[..], &[0x12, 0, 0, 0, 36, 0], &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
                assert_eq!(i.command(cdb, &[], 96).status, 0, "{cdb:02x?}");
            }
            // To start the medium and to allow its removal takes nothing from anyone; the opposites are as writes.
            for cdb in [[0x1b, 0, 0, 0, 0x01, 0], [0x1e, 0, 0, 0, 0, 0]] {
                assert_eq!(i.command(&cdb, &[], 0).status, 0, "{cdb:02x?}");
            }
            for cdb in [[0x1b, 0, 0, 0, 0x00, 0], [0x1b, 0, 0, 0, 0x11, 0], [0x1e, 0, 0, 0, 1, 0]] {
                let status = i.command(&cdb, &[], 0).status;
                assert_eq!(status / CONFLICT, writes / CONFLICT, "{cdb:02x?}");
                let _ = i.command(&[0x1b, 0, 0, 0, 0x01, 0], &[], 0);
            }
            [reads, writes, modes].map(|status| status / CONFLICT)
        };
        assert_eq!(try_all(&mut a), [0, 0, 0], "type {kind}");
        assert_eq!(try_all(&mut b), registered, "type {kind}");
        assert_eq!(try_all(&mut c), stranger, "type {kind}");
        let wanted_key = if kind >= 7 { 0 } else { 0xa };
        let data = get(&mut c, 1);
        assert_eq!(data[4..16], [&[0, 0, 0, 16][..], &u64::to_be_bytes(wanted_key)].concat());
        assert_eq!(data[21], kind);
    }
}

#[test]
fn reserve_and_release() {
    let (_, mut a, mut b, mut c) = three();
    assert_eq!(out(&mut c, RESERVE, 1, 0, 0), CONFLICT);
    assert_eq!(out(&mut a, RESERVE, 1, 0xb, 0), CONFLICT);
    let sense = check(&mut a, &out_cdb(RESERVE, 2), &list(0xa, 0), 0, (0x5, 0x24, 0x00));
    assert_eq!(sense[17], 2);
    assert_eq!(out(&mut a, RESERVE, 5, 0xa, 0), 0);
    assert_eq!(out(&mut a, RESERVE, 5, 0xa, 0), 0);
    assert_eq!(out(&mut a, RESERVE, 1, 0xa, 0), CONFLICT, "another type");
    assert_eq!(out(&mut b, RESERVE, 5, 0xb, 0), CONFLICT);
    // Who does not hold it releases nothing; the holder must name the type.
    assert_eq!(out(&mut b, RELEASE, 5, 0xb, 0), 0);
    assert_eq!(get(&mut b, 1).len(), 24);
    check(&mut a, &out_cdb(RELEASE, 1), &list(0xa, 0), 0, (0x5, 0x26, 0x04));
    assert_eq!(out(&mut a, RELEASE, 5, 0xa, 0), 0);
    assert_eq!(get(&mut c, 1).len(), 8);
    check(&mut b, &READY, &[], 0, (0x6, 0x2a, 0x04));
    good(&mut a, &READY, &[], 0);
    good(&mut c, &READY, &[], 0);
    assert_eq!(get(&mut a, 0)[..4], [0, 0, 0, 2], "neither changes the generation");
}

#[test]
fn the_end_of_a_registration_ends_its_reservation() {
    let (_, mut a, mut b, _) = three();
    assert_eq!(out(&mut a, RESERVE, 6, 0xa, 0), 0);
    assert_eq!(out(&mut a, REGISTER, 0, 0xa, 0), 0);
    check(&mut b, &READY, &[], 0, (0x6, 0x2a, 0x04));
    assert_eq!(get(&mut b, 1).len(), 8);
    // With the all registrants types only the last one does.
    assert_eq!(out(&mut a, REGISTER, 0, 0, 0xa), 0);
    assert_eq!(out(&mut a, RESERVE, 8, 0xa, 0), 0);
    assert_eq!(out(&mut a, REGISTER, 0, 0xa, 0), 0);
    good(&mut b, &READY, &[], 0);
    assert_eq!(get(&mut b, 1).len(), 24);
    // An initiator that is gone takes its registration along.
    drop(b);
    assert_eq!((keys(&mut a).len(), get(&mut a, 1).len()), (0, 8));
}

#[test]
fn clear() {
    let (_, mut a, mut b, mut c) = three();
    assert_eq!(out(&mut b, RESERVE, 3, 0xb, 0), 0);
    assert_eq!(out(&mut c, CLEAR, 0, 0, 0), CONFLICT);
    assert_eq!(out(&mut a, CLEAR, 0, 0xa, 0), 0);
    assert_eq!((keys(&mut a).len(), get(&mut a, 1).len()), (0, 8));
    check(&mut b, &READY, &[], 0, (0x6, 0x2a, 0x03));
    good(&mut a, &READY, &[], 0);
}

#[test]
fn preempt() {
    let (_, mut a, mut b, mut c) = three();
    assert_eq!(out(&mut c, REGISTER, 0, 0, 0xc), 0);
    assert_eq!(out(&mut a, RESERVE, 5, 0xa, 0), 0);
    // Of one that holds nothing: only its registration goes.
    assert_eq!(out(&mut b, PREEMPT, 1, 0xb, 0xc), 0);
    check(&mut c, &READY, &[], 0, (0x6, 0x2a, 0x05));
    assert_eq!(keys(&mut a), [0xa, 0xb]);
    assert_eq!(get(&mut a, 1)[21], 5);
    // Of a key that nobody has; of no key.
    assert_eq!(out(&mut b, PREEMPT, 1, 0xb, 0xdead), CONFLICT);
    let sense = check(&mut b, &out_cdb(PREEMPT, 1), &list(0xb, 0), 0, (0x5, 0x26, 0x00));
    assert_eq!(sense[15..18], [0x80, 0, 8]);
    // Of the holder: the reservation changes hands and type.
    assert_eq!(out(&mut b, PREEMPT, 1, 0xb, 0xa), 0);
    assert_eq!(keys(&mut b), [0xb]);
    let data = get(&mut b, 1);
    assert_eq!((data[15], data[21]), (0xb, 1));
    check(&mut a, &READY, &[], 0, (0x6, 0x2a, 0x05));
    assert_eq!(a.command(&WRITE, &[0; BLOCK], 0).status, CONFLICT);
    exact(&mut b, &WRITE, &[0; BLOCK], 0);
}

#[test]
fn a_new_type_is_told_to_those_who_stay() {
    // SPC-4, 5.13.11.2.4: whichever type it was before, but not if it stays the same.
    let (_, mut a, mut b, mut c) = three();
    assert_eq!(out(&mut c, REGISTER, 0, 0, 0xc), 0);
    assert_eq!(out(&mut a, RESERVE, 3, 0xa, 0), 0);
    assert_eq!(out(&mut b, PREEMPT, 1, 0xb, 0xa), 0);
    check(&mut c, &READY, &[], 0, (0x6, 0x2a, 0x04));
    good(&mut b, &READY, &[], 0);
    check(&mut a, &READY, &[], 0, (0x6, 0x2a, 0x05));
    assert_eq!(out(&mut a, REGISTER, 0, 0, 0xa), 0);
    assert_eq!(out(&mut a, PREEMPT, 1, 0xa, 0xb), 0);
    good(&mut c, &READY, &[], 0);
}

#[test]
fn a_conflict_comes_before_all_attentions_but_those_of_resets() {
    // SAM-5, 5.3.3. What is not reported stays.
    let (_, mut a, mut b, mut c) = three();
    assert_eq!(out(&mut a, RESERVE, 5, 0xa, 0), 0);
    assert_eq!(out(&mut a, RELEASE, 5, 0xa, 0), 0);
    assert_eq!(out(&mut a, RESERVE, 3, 0xa, 0), 0);
    assert_eq!(b.command(&READ, &[], BLOCK).status, CONFLICT);
    assert_eq!(b.command(&[0xff; 6], &[], 0).sense[12..14], [0x2a, 0x04]);
    assert_eq!(b.command(&READ, &[], BLOCK).status, CONFLICT);
    good(&mut b, &READY, &[], 0);
    manage(&c.nexus, TaskManagement::LogicalUnitReset(LUN_0), &mut []);
    check(&mut b, &READ, &[], BLOCK, (0x6, 0x29, 0x03));
    assert_eq!(b.command(&READ, &[], BLOCK).status, CONFLICT);
    settle(&mut c);
}

#[test]
fn preempt_under_all_registrants() {
    let (_, mut a, mut b, mut c) = three();
    assert_eq!(out(&mut c, REGISTER, 0, 0, 0xc), 0);
    assert_eq!(out(&mut a, RESERVE, 7, 0xa, 0), 0);
    assert_eq!(out(&mut b, PREEMPT, 7, 0xb, 0xc), 0);
    assert_eq!(keys(&mut a), [0xa, 0xb]);
    // Key zero: everyone else.
    assert_eq!(out(&mut b, PREEMPT, 3, 0xb, 0), 0);
    assert_eq!(keys(&mut b), [0xb]);
    assert_eq!(get(&mut b, 1)[21], 3);
    check(&mut a, &READY, &[], 0, (0x6, 0x2a, 0x05));
    // Preempting one's own key changes the type and keeps the registration.
    assert_eq!(out(&mut b, PREEMPT, 1, 0xb, 0xb), 0);
    assert_eq!((keys(&mut b), get(&mut b, 1)[21]), (vec![0xb], 1));
}

#[test]
fn preempt_and_abort_ends_the_losers_commands() {
    let (image, a, mut b, c) = three();
    let (mut a, io) = (a, Io::for_test());
    assert_eq!(out(&mut a, RESERVE, 1, 0xa, 0), 0);
    ram(&image).hold(true);
    {
        let mut loser = Running::start(&a.nexus, &io, 1, &READ, &[]);
        let mut bystander = Running::start(&c.nexus, &io, 1, &READ, &[]);
        let cdb = out_cdb(PREEMPT_AND_ABORT, 1);
        let mut preempting = Running::start(&b.nexus, &io, 9, &cdb, &list(0xb, 0xa));
        assert!(matches!(loser.poll(), Some(Err(TransportFault::Aborted))));
        assert_eq!(preempting.poll().unwrap().unwrap().status, Status::Good);
        ram(&image).hold(false);
        assert_eq!(bystander.poll().unwrap().unwrap().status, Status::Good);
    }
    check(&mut a, &READY, &[], 0, (0x6, 0x2a, 0x05));
    check(&mut a, &READY, &[], 0, (0x6, 0x2f, 0x00));
    exact(&mut b, &WRITE, &[0; BLOCK], 0);
}

#[test]
fn full_status() {
    let (_, mut a, mut b, _) = three();
    assert_eq!(out(&mut b, RESERVE, 5, 0xb, 0), 0);
    let data = get(&mut a, 3);
    assert_eq!(data[..8], [0, 0, 0, 2, 0, 0, 0, 96]);
    let (first, second) = (&data[8..56], &data[56..104]);
    assert_eq!((first[7], first[12], first[13]), (0xa, 0, 0));
    assert_eq!((second[7], second[12], second[13]), (0xb, 1, 5));
    for one in [first, second] {
        // Relative target port 1; a TransportID of 24 bytes, of the SAS kind, with a locally assigned name.
        assert_eq!(one[18..25], [0, 1, 0, 0, 0, 24, 0x06]);
        assert_eq!(one[28] >> 4, 3);
    }
    assert_ne!(first[28..36], second[28..36]);
}

#[test]
fn what_registrations_outlast() {
    let (_, mut a, mut b, mut c) = three();
    assert_eq!(out(&mut a, RESERVE, 1, 0xa, 0), 0);
    manage(&a.nexus, TaskManagement::NexusReset, &mut []);
    manage(&b.nexus, TaskManagement::LogicalUnitReset(LUN_0), &mut []);
    settle(&mut b);
    assert_eq!((keys(&mut b), get(&mut b, 1).len()), (vec![0xa, 0xb], 24));
    // RESERVE and RELEASE have no place beside registrations.
    for cdb in [[0x16, 0, 0, 0, 0, 0], [0x17, 0, 0, 0, 0, 0]] {
        settle(&mut c);
        assert_eq!(c.command(&cdb, &[], 0).status, CONFLICT);
    }
    block_on(c.nexus.target().power_on());
    settle(&mut b);
    assert_eq!((keys(&mut b).len(), get(&mut b, 1).len()), (0, 8));
    exact(&mut b, &[0x16, 0, 0, 0, 0, 0], &[], 0);
    assert_eq!(out(&mut b, REGISTER, 0, 0, 0xb), CONFLICT, "nor has registering beside RESERVE");
    assert_eq!(b.command(&[0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0], &[], 8).status, CONFLICT, "nor asking");
}
