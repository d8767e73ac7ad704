//! Direct commands one after the other, each with its mailbox and what it sends.
#![cfg_attr(fuzzing, no_main)]

use fuzz::Bytes;
use fuzz::megasas::{guest::Frame, with_adapter};

/// Those that a board knows, and some that it does not.
const OPCODES: &[u32] = &[
    0x0100_e100,
    0x0101_0000,
    0x0102_0100,
    0x0102_0200,
    0x0103_0100,
    0x0103_0200,
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
    0x010d_0000,
    0x010e_0201,
    0x010e_0202,
    0x0110_1000,
    0x0201_0000,
    0x0201_0100,
    0x0202_0000,
    0x0203_0100,
    0x0206_0000,
    0x0207_0100,
    0x0207_0200,
    0x0301_0000,
    0x0301_0100,
    0x0302_0000,
    0x0303_0000,
    0x0304_0000,
    0x0306_0100,
    0x0309_0000,
    0x0401_0000,
    0x0402_0000,
    0x0403_0000,
    0x0406_0100,
    0x0501_0000,
    0x0502_0000,
    0x0800_0000,
    0x0801_0100,
    0x0801_0200,
    0x0300_e101,
];

fuzz::target!(|input: &[u8]| {
    let mut bytes = Bytes(input);
    with_adapter(bytes.u8(), |guest| {
        for _ in 0..16 {
            if bytes.is_empty() {
                break;
            }
            let (which, len) = (bytes.u8(), usize::from(bytes.u16() % 9000));
            let opcode = OPCODES.get(usize::from(which)).copied();
            let opcode = opcode.unwrap_or_else(|| u32::from(bytes.u16()) << 16 | u32::from(bytes.u16()));
            let mut mailbox = bytes.take(12).to_vec();
            mailbox.resize(12, 0);
            let mut data = bytes.take(len.min(512)).to_vec();
            data.resize(len + 64, 0xcc);
            let at = guest.alloc_with(&data);
            let mut frame = Frame::dcmd(opcode, &mailbox).len(len as u32);
            let half = len as u32 / 2;
            if len > 0 {
                frame = frame.sge(at, half).sge(at + u64::from(half), len as u32 - half);
            }
            let address = guest.send(&frame);
            // One that waits for an event may stay.
            if opcode != 0x0104_0500 {
                guest.wait_frame(address);
            }
            assert_eq!(guest.peek(at + len as u64, 64), [0xcc; 64], "longer than the list");
            guest.reply();
        }
    });
});
