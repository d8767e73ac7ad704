//! Register accesses of all widths, configuration space, and commands in between.
#![cfg_attr(fuzzing, no_main)]

use devices::pci::PciFunction;
use fuzz::Bytes;
use fuzz::megasas::{guest::Frame, with_adapter};

const REGISTERS: &[u64] = &[0x00, 0x18, 0x20, 0x30, 0x34, 0x40, 0xa0, 0xb0, 0xc0, 0xc4, 0xf8, 0xfc];
const KEYS: &[u32] = &[0, 4, 0xb, 2, 7, 0xd];

fuzz::target!(|input: &[u8]| {
    let mut bytes = Bytes(input);
    with_adapter(bytes.u8(), |guest| {
        for _ in 0..64 {
            if bytes.is_empty() {
                break;
            }
            let (kind, at, value) = (bytes.u8(), bytes.u8(), bytes.u16());
            let register = REGISTERS[usize::from(at) % REGISTERS.len()];
            match kind % 10 {
                0..=2 => guest.write(register, value.into()),
                3 => guest.write(register, u32::from(value) << 16 | u32::from(bytes.u16())),
                4 => guest.raw_write(u64::from(value) % 0x4000, bytes.take(usize::from(at) % 9)),
                5 => drop(guest.read(register)),
                6 => KEYS.iter().for_each(|&key| guest.write(0xfc, key)),
                7 => guest.hba.inject_fault(),
                8 => {
                    let data = guest.alloc(512);
                    guest.send(&Frame::io(at & 1 == 1, at >> 1 & 3, value.into(), 1).sge(data, 512));
                }
                // Bus mastering off and on; in between the board may not touch memory.
                _ => {
                    guest.hba.config_write(4, &[3, 0]);
                    guest.hba.config_write(4, &[7, 0]);
                }
            }
        }
        // Out of FAULT.
        guest.write(0x20, 0x40);
    });
});
