//! Random frames, lists, direct commands and register writes: each costs itself, none reaches memory that it does not
//! name, and the adapter serves again after a reset.
//!
//! `FUZZ_CASES` says how many cases each of these runs.

use std::cell::RefCell;

use hba_megasas::Model;
use proptest::prelude::*;

use crate::guest::{DONT_POST, Frame, Guest, IEEE, RAM, SGL64};

/// Memory that nothing names, and what it holds.
const CANARY: (u64, usize) = (RAM as u64 - (1 << 20), 1 << 20);
const FILL: u8 = 0xa7;

/// Cases in an ordinary run.
const CASES: u32 = 24;

fn config() -> ProptestConfig {
    let cases = std::env::var("FUZZ_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig { cases: cases.unwrap_or(CASES), failure_persistence: None, ..ProptestConfig::default() }
}

/// An adapter of each board, with volumes and with plain disks; made once for each test, since cases are many.
fn adapters() -> &'static [RefCell<Guest>] {
    fn make() -> Vec<RefCell<Guest>> {
        let kinds =
            [Model::Gen2, Model::Sas1078].into_iter().flat_map(|model| [(model, true), (model, false)]);
        kinds
            .map(|(model, raid)| {
                let guest = Guest::new(model, raid, &[0, 1]);
                guest.poke(CANARY.0, &vec![FILL; CANARY.1]);
                RefCell::new(guest)
            })
            .collect()
    }
    thread_local!(static GUESTS: &'static [RefCell<Guest>] = Vec::leak(make()));
    GUESTS.with(|guests| *guests)
}

/// Starts the adapter with the ring of FreeBSD.
fn start(guest: &mut Guest) {
    guest.init(129);
    guest.enable_interrupts();
}

/// Resets the adapter, and asks it and a disk that is not there something.
fn assert_serves(guest: &mut Guest) {
    guest.write(0x20, 0x40);
    guest.wait_ready();
    assert_eq!(guest.dcmd(0x0101_0000, &[], 2048).0, 0);
    assert_eq!(guest.scsi(3, 9, &[0; 6], &[], 0).status, 0x0c);
}

fn assert_untouched(guest: &Guest) {
    let memory = guest.peek(CANARY.0, CANARY.1);
    assert!(memory.iter().all(|&byte| byte == FILL), "something wrote where nothing was named");
}

/// An address in memory below the canary, or in no memory.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0x200_0000_u64..CANARY.0 - 0x1_0000,
        1 => Just(0xc000_0000),
        1 => Just(RAM as u64),
        1 => Just(u64::MAX - 3),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![6 => 0_u32..0x1_0000, 1 => Just(u32::MAX), 1 => Just(0x8000_0000)]
}

fn list() -> impl Strategy<Value = Vec<(u64, u32)>> {
    // What is short ends below the canary, and what is long ends beyond memory.
    let element = || (address(), length());
    prop_oneof![4 => prop::collection::vec(element(), 0..4), 1 => prop::collection::vec(element(), 0..90)]
}

fn opcode() -> impl Strategy<Value = u32> {
    const KNOWN: &[u32] = &[
        0x0100_e100,
        0x0101_0000,
        0x0102_0100,
        0x0102_0200,
        0x0103_0100,
        0x0104_0100,
        0x0104_0200,
        0x0104_0300,
        0x0104_0400,
        0x0104_0500,
        0x0105_0000,
        0x0106_0000,
        0x0108_0101,
        0x0108_0102,
        0x0108_0201,
        0x010c_0100,
        0x010c_0200,
        0x010e_0201,
        0x0110_1000,
        0x0201_0000,
        0x0201_0100,
        0x0202_0000,
        0x0203_0100,
        0x0207_0100,
        0x0301_0000,
        0x0301_0100,
        0x0302_0000,
        0x0303_0000,
        0x0304_0000,
        0x0401_0000,
        0x0402_0000,
        0x0406_0100,
        0x0501_0000,
        0x0801_0200,
    ];
    prop_oneof![6 => prop::sample::select(KNOWN), 1 => any::<u32>()]
}

#[derive(Clone, Debug)]
enum Access {
    Register(u64, u32),
    Bytes(u64, Vec<u8>),
    Fault,
}

fn access() -> impl Strategy<Value = Access> {
    let register =
        prop::sample::select(&[0x20_u64, 0x30, 0x34, 0x40, 0xa0, 0xb0, 0xc0, 0xc4, 0xf8, 0xfc][..]);
    prop_oneof![
        6 => (register, prop_oneof![0_u32..256, any::<u32>()]).prop_map(|(at, value)| Access::Register(at, value)),
        2 => (0_u64..0x4000, prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, data)| Access::Bytes(at, data)),
        1 => Just(Access::Fault),
    ]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn frames(
        frames in prop::collection::vec((prop::collection::vec(any::<u8>(), 64), 0_u8..10, list()), 1..20)
    ) {
        for guest in adapters() {
            let guest = &mut *guest.borrow_mut();
            start(guest);
            for (bytes, cmd, list) in &frames {
                let mut bytes = bytes.clone();
                bytes[0] = *cmd;
                bytes[4] &= 1;
                // Sense data and queue information may be anywhere below the canary.
                bytes[0x1b] = 0;
                bytes[0x1a] &= 1;
                bytes[0x1c..0x20].fill(0);
                let list_at = if matches!(cmd, 3 | 4) { 0x30 } else { 0x28 };
                guest.send(&Frame { bytes, sges: list.clone(), list_at });
            }
            assert_serves(guest);
            assert_untouched(guest);
        }
    }

    #[test]
    fn lists(
        list in list(),
        flags in prop::sample::select(&[0, SGL64, IEEE, SGL64 | IEEE][..]),
        lba in prop_oneof![0_u64..64, any::<u64>()],
        blocks in prop_oneof![0_u32..256, any::<u32>()],
        write in any::<bool>(),
    ) {
        for guest in adapters() {
            let guest = &mut *guest.borrow_mut();
            let io = Frame { sges: list.clone(), ..Frame::io(write, 0, lba, blocks).flags(flags | DONT_POST) };
            let cdb = [0x28, 0, 0, 0, 0, 0, 0, 0, 4, 0];
            let scsi = Frame { sges: list.clone(), ..Frame::scsi(4, 1, &cdb).len(2048).flags(flags | DONT_POST) };
            for frame in [io, scsi] {
                let at = guest.send(&frame);
                let status = guest.wait_frame(at);
                prop_assert!(matches!(status, 0 | 0x0c | 0x2d | 0x2e | 0x3c), "{status:#x}");
            }
            assert_untouched(guest);
        }
    }

    #[test]
    fn direct_commands(
        commands in prop::collection::vec((opcode(), any::<[u8; 12]>(), 0_usize..9000), 1..20)
    ) {
        for guest in adapters() {
            let guest = &mut *guest.borrow_mut();
            start(guest);
            for (opcode, mailbox, len) in &commands {
                let data = guest.alloc_with(&vec![0xcc; len + 64]);
                let mut frame = Frame::dcmd(*opcode, mailbox).len(*len as u32);
                if *len > 0 {
                    frame = frame.sge(data, *len as u32);
                }
                let at = guest.send(&frame);
                // One that waits for an event may stay.
                if *opcode != 0x0104_0500 {
                    guest.wait_frame(at);
                }
                prop_assert_eq!(guest.peek(data + *len as u64, 64), [0xcc; 64]);
            }
            assert_serves(guest);
            assert_untouched(guest);
        }
    }

    #[test]
    fn registers(accesses in prop::collection::vec(access(), 1..200)) {
        for guest in adapters() {
            let guest = &mut *guest.borrow_mut();
            start(guest);
            for access in &accesses {
                match access {
                    Access::Register(at, value) => guest.write(*at, *value),
                    Access::Bytes(at, data) => guest.raw_write(*at, data),
                    Access::Fault => guest.hba.inject_fault(),
                }
            }
            assert_serves(guest);
        }
    }
}
