//! Accesses to the board's ports and memory in any order: configuration space both ways, BARs, MSI-X, power management, clock,
//! fw_cfg, serial port, keyboard controller. Afterwards the machine is reset and has to be there.
#![cfg_attr(fuzzing, no_main)]

use std::sync::{Mutex, OnceLock};

use devices::pci::{Bdf, Lpc, Mch};
use devices::platform::i8042::{Key, MouseMotion};
use fuzz::Bytes;
use fuzz::board::{Board, MEGASAS, VIRTIO};

/// Where ports begin that somebody listens to.
const PORTS: [u64; 18] = [
    0x3f8, 0x70, 0x60, 0x64, 0x92, 0xb2, 0x80, 0x402, 0x510, 0x514, 0x518, 0xcf8, 0xcf9, 0xcfc, 0x600, 0x620,
    0xc000, 0xc100,
];
/// Where memory begins that somebody listens to, or may.
const MEMORY: [u64; 12] = [
    0xb000_0000,
    0xe000_0000,
    0xfed1_c000,
    0x8000_0000,
    0xfeb0_0000,
    0xfebf_f000,
    0xc000_0000,
    0xfec0_0000,
    0xfed0_0000,
    0x80_0000_0000,
    0xe0_0000_0000,
    0xffff_ffff_ffff_f000,
];
const FUNCTIONS: [Bdf; 5] = [VIRTIO, MEGASAS, Mch::BDF, Lpc::BDF, Bdf::new(0, 3, 0)];
/// Registers of configuration space that do something.
const REGISTERS: [u8; 20] = [
    0x04, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30, 0x34, 0x3c, 0x40, 0x44, 0x60, 0x64, 0x68, 0x6c, 0x90,
    0x98, 0xa0, 0xf0,
];

fn width(kind: u8, most: u8) -> usize {
    [1, 2, 4, 8][usize::from(kind >> 5 & most)]
}

fn word<const N: usize>(bytes: &mut Bytes<'_>) -> [u8; N] {
    let mut value = [0; N];
    let given = bytes.take(N);
    value[..given.len()].copy_from_slice(given);
    value
}

fn step(board: &Board, bytes: &mut Bytes<'_>) {
    let (kind, place) = (bytes.u8(), bytes.u16());
    let [high, low] = place.to_be_bytes();
    let port = PORTS[usize::from(high) % PORTS.len()] + u64::from(low % 16);
    let function = FUNCTIONS[usize::from(high) % FUNCTIONS.len()];
    let ecam = board.mch.ecam().map_or(0xe000_0000, |range| range.start);
    let in_ecam = ecam + (u64::from(function.device()) << 15) + u64::from(place & 0xfff);
    match kind & 31 {
        0 | 1 => board.out(port, &word::<4>(bytes)[..width(kind, 1).max(width(kind, 2))]),
        2 => board.ports.read(port, &mut [0; 4][..width(kind, 1)]),
        3 => board.out(place.into(), &word::<4>(bytes)[..width(kind, 1)]),
        4 => board.ports.read(place.into(), &mut [0; 4][..width(kind, 1)]),
        5 | 6 => {
            board.select(function, REGISTERS[usize::from(low) % REGISTERS.len()]);
            board.out(0xcfc + u64::from(kind >> 6), &word::<4>(bytes)[..width(kind, 1)]);
        }
        7 => drop(board.config(function, low)),
        8 => board.memory.write(in_ecam, &word::<8>(bytes)[..width(kind, 3)]),
        9 => board.memory.read(in_ecam, &mut [0; 8][..width(kind, 3)]),
        10 | 11 => {
            let at = MEMORY[usize::from(high) % MEMORY.len()].wrapping_add(u64::from(bytes.u16()) & 0x7fff);
            board.memory.write(at, &word::<8>(bytes)[..width(kind, 3)]);
        }
        12 => {
            let at = MEMORY[usize::from(high) % MEMORY.len()].wrapping_add(u64::from(bytes.u16()) & 0x7fff);
            board.memory.read(at, &mut [0; 8][..width(kind, 3)]);
        }
        13 | 14 => {
            // A register of a BAR, wherever it is now.
            let bar = 0x10 + 4 * (low % 6);
            let (base, upper) = (board.config(function, bar), board.config(function, bar + 4));
            let data = word::<8>(bytes);
            let offset = u64::from(high) << (low >> 5 & 7);
            if base & 1 == 1 {
                board.out(u64::from(base & 0xfffc) + offset, &data[..width(kind, 1)]);
            } else {
                let upper = if base & 4 != 0 { u64::from(upper) << 32 } else { 0 };
                board.memory.write(
                    upper.wrapping_add(u64::from(base & !0xf)).wrapping_add(offset),
                    &data[..width(kind, 3)],
                );
            }
        }
        15 | 16 => {
            // A BAR is moved: on top of another, out of all windows, or its size is asked for.
            board.select(function, 0x10 + 4 * (low % 6));
            let places =
                [u32::MAX, 0, 0xc001, 0x3f8, 0xfeb0_0000, 0x8000_0000, 0xe000_0000, 0xfffc_0000, 0x600, 0x1f];
            board.out(0xcfc, &places[usize::from(low >> 3) % places.len()].to_le_bytes());
            board.select(function, 4);
            board.out(0xcfc, &[kind >> 5, 0]);
        }
        17..=20 => {
            // A descriptor of fw_cfg, then its address.
            let (command, len) = (bytes.u8(), u32::from(bytes.u16()) << (high & 15));
            let to = [0x2000_u64, 0xf_fff0, 0, 0x10_0000, u64::MAX - 7][usize::from(low) % 5];
            let descriptor = [
                [
                    0,
                    [0x19, 0, 5, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26][usize::from(high >> 4) % 10],
                    0,
                    command,
                ]
                .to_vec(),
                len.to_be_bytes().to_vec(),
                to.to_be_bytes().to_vec(),
            ];
            let at = [0x1000_u32, 0x2000, 0xf_fff8, 0xffff_fff0][usize::from(low >> 6)];
            board.poke(at.into(), &descriptor.concat());
            if kind & 0x40 != 0 {
                board.out(0x514, &bytes.take(1).repeat(4));
            }
            board.out(0x518, &at.to_be_bytes());
        }
        21 => board.pass(u64::from(place) << (bytes.u8() % 40)),
        22 => board.set_clock((i64::from(place) - 0x8000) << (bytes.u8() % 24)),
        23 => drop(board.serial.receive(bytes.take(usize::from(low) % 64))),
        24 => drop(board.serial.receive_break()),
        25 => {
            let key = if low & 0x80 == 0 { Key::Plain(low & 0x7f) } else { Key::Extended(low & 0x7f) };
            board.keyboard.key(if low == 0 { Key::Pause } else { key }, high & 1 == 1);
        }
        26 => {
            let [dx, dy, wheel] = word::<3>(bytes).map(|byte| i32::from(byte as i8) << (high & 24));
            board.keyboard.mouse(MouseMotion { dx, dy, wheel, buttons: low });
        }
        27 => drop(board.pm.press_power_button()),
        28 => board.pm.raise_gpe(low),
        29 => board.poke(u64::from(place) << 4, bytes.take(16)),
        30 => {
            // The clock: a register and its value.
            board.out(0x70, &[low]);
            board.out(0x71, &[high]);
        }
        _ => board.reset(),
    }
}

fuzz::target!(|input: &[u8]| {
    static BOARD: OnceLock<Mutex<Board>> = OnceLock::new();
    let board = BOARD.get_or_init(|| Mutex::new(Board::new())).lock().expect("no input has failed before");
    board.begin();
    let mut bytes = Bytes(input);
    let mut steps = 0;
    while !bytes.is_empty() && steps < 200 {
        steps += 1;
        step(&board, &mut bytes);
    }
    board.reset();
    let (host, lpc) = (board.config(Mch::BDF, 0), board.config(Lpc::BDF, 0));
    assert_eq!((host, lpc), (0x29c0_8086, 0x2918_8086), "the bridges after a reset");
    assert_eq!(board.config(VIRTIO, 0) & 0xffff, 0x1af4, "the HBA after a reset");
    board.out(0x510, &[0, 0]);
    let signature = [(); 4].map(|()| {
        let mut byte = [0];
        board.ports.read(0x511, &mut byte);
        byte[0]
    });
    assert_eq!(&signature, b"QEMU", "fw_cfg after a reset");
    assert!(board.mch.ecam().is_some(), "ECAM after a direct boot");
});
