//! Random frames and register writes: each costs itself, and the adapter still serves after a reset.

use std::cell::RefCell;

use hba_megasas::Model;
use proptest::prelude::*;

use crate::guest::{Frame, Guest};

#[derive(Clone, Debug)]
enum Step {
    Frame { bytes: Vec<u8>, cmd: u8, list: Vec<(u64, u32)> },
    Dcmd { opcode: u32, mailbox: [u8; 12], len: u32 },
    Write(u64, u32),
    Raw(u64, Vec<u8>),
    Fault,
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..48 << 20, Just(0xc000_0000), Just(u64::MAX - 3), any::<u64>()]
}

fn opcode() -> impl Strategy<Value = u32> {
    let known = [
        0x0101_0000,
        0x0102_0100,
        0x0102_0200,
        0x0104_0100,
        0x0104_0200,
        0x0104_0300,
        0x0104_0400,
        0x0104_0500,
        0x0105_0000,
        0x0108_0101,
        0x0108_0102,
        0x010c_0200,
        0x0110_1000,
        0x0201_0000,
        0x0201_0100,
        0x0202_0000,
        0x0207_0100,
        0x0301_0000,
        0x0301_0100,
        0x0302_0000,
        0x0303_0000,
        0x0304_0000,
        0x0401_0000,
        0x0801_0200,
    ];
    prop_oneof![prop::sample::select(known.to_vec()), any::<u32>()]
}

fn step() -> impl Strategy<Value = Step> {
    let length = || prop_oneof![0_u32..8192, Just(u32::MAX), any::<u32>()];
    let list = || prop::collection::vec((address(), length()), 0..6);
    let register = prop::sample::select(vec![0x20_u64, 0x30, 0x34, 0x40, 0xa0, 0xb0, 0xc0, 0xc4, 0xf8, 0xfc]);
    prop_oneof![
        4 => (prop::collection::vec(any::<u8>(), 64), 0_u8..10, list())
            .prop_map(|(bytes, cmd, list)| Step::Frame { bytes, cmd, list }),
        4 => (opcode(), any::<[u8; 12]>(), length()).prop_map(|(opcode, mailbox, len)| Step::Dcmd { opcode, mailbox, len }),
        2 => (register, any::<u32>()).prop_map(|(at, value)| Step::Write(at, value)),
        1 => (0_u64..0x4000, prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, data)| Step::Raw(at, data)),
        1 => Just(Step::Fault),
    ]
}

fn run(guest: &mut Guest, step: Step) {
    match step {
        Step::Frame { mut bytes, cmd, list } => {
            bytes[0] = cmd;
            let list_at = if matches!(cmd, 3 | 4) { 0x30 } else { 0x28 };
            let mut frame = Frame { bytes, sges: list, list_at };
            frame.bytes[4] &= 1;
            guest.send(&frame);
        }
        Step::Dcmd { opcode, mailbox, len } => {
            let data = guest.alloc(8192);
            guest.send(&Frame::dcmd(opcode, &mailbox).len(len).sge(data, len.min(8192)));
        }
        Step::Write(at, value) => guest.write(at, value),
        Step::Raw(at, data) => guest.raw_write(at, &data),
        Step::Fault => guest.hba.inject_fault(),
    }
}

#[test]
fn random_steps() {
    for model in [Model::Gen2, Model::Sas1078] {
        for raid in [true, false] {
            let guest = RefCell::new(Guest::new(model, raid, &[0, 1]));
            let steps = prop::collection::vec(step(), 1..40);
            proptest!(ProptestConfig::with_cases(48), |(steps in steps)| {
                let guest = &mut *guest.borrow_mut();
                guest.init(129);
                guest.enable_interrupts();
                for step in steps {
                    run(guest, step);
                }
                guest.write(0x20, 0x40);
                guest.wait_ready();
                let (status, _) = guest.dcmd(0x0101_0000, &[], 2048);
                prop_assert_eq!(status, 0);
            });
        }
    }
}
