//! Frames with their lists, a few in flight at once, and a second processor that changes them while the board reads them.
#![cfg_attr(fuzzing, no_main)]

use std::time::{Duration, Instant};

use fuzz::Bytes;
use fuzz::megasas::{CANARY, element, guest::Frame, guest::Guest, with_adapter};
use fuzz::race::{Bits, race};

/// How long a race goes on at most: the board has answered, or does something that takes long.
const RACE: Duration = Duration::from_millis(1);

/// What changes of a frame: nothing that makes a list out of what is none, or names memory that no input names.
fn bits(frame: &Frame, address: u64, choice: u8) -> Vec<Bits> {
    let encoded = frame.encode();
    let flags = u16::from_le_bytes([encoded[0x10], encoded[0x11]]);
    // The context, the length, the direction, and whether an answer is posted.
    let mut places: Vec<(usize, u8)> = vec![(8, 0xff), (0x10, 0x19), (0x14, 0x0f), (0x15, 0x03)];
    // Fewer elements.
    places.push((7, encoded[7] & choice));
    match encoded[0] {
        0 => {}
        // Read or write, the drive, the address of the first block.
        1 | 2 => places.extend([(0, 3), (4, 1), (0x20, 0xff), (0x21, 7)]),
        // Volume or drive, the drive, lengths of CDB and sense data, the CDB.
        3 | 4 => places.extend([(0, 7), (4, 1), (6, 0x1f), (1, 0xff), (0x20, 0xff), (0x23, 3), (0x28, 0xff)]),
        // What is asked for, the mailbox.
        5 => places.extend([(0x18, 0xff), (0x19, 3), (0x1c, 0xff), (0x20, 0xff)]),
        _ => places.push((0x20, 0x3f)),
    }
    let (size, length_at) = match flags {
        _ if flags & 0x20 != 0 => (16, 8),
        _ if flags & 2 != 0 => (12, 8),
        _ => (8, 4),
    };
    // Addresses and lengths of elements, if that leads nowhere near the end of memory.
    for (index, _) in frame.sges.iter().enumerate().filter(|(_, it)| it.0 < CANARY.0 - (1 << 20)).take(3) {
        let at = frame.list_at + size * index;
        places.extend([(at + 1, choice), (at + length_at, choice), (at + length_at + 1, 3)]);
    }
    let bits = places.into_iter().map(|(at, mask)| (address + at as u64, mask));
    bits.filter(|bits| bits.1 != 0).collect()
}

fn fire(guest: &mut Guest, address: u64, control: u8) {
    guest.fire(address);
    match control & 7 {
        0 => guest.write(0x20, 0x01),
        1 => guest.write(0xa0, u32::MAX),
        2 => guest.fire(address),
        3 => std::thread::yield_now(),
        _ => {}
    }
}

fuzz::target!(|input: &[u8]| {
    let mut bytes = Bytes(input);
    let choice = bytes.u8();
    let races = choice >> 6 == 3;
    with_adapter(choice, |guest| {
        // What an INIT may find.
        let mut info = bytes.take(32).to_vec();
        info.resize(32, 0);
        for at in [8, 16, 24] {
            // Rings and indices are below the data.
            info[at + 3..at + 8].fill(0);
        }
        guest.poke(0x1_0000, &info);
        for _ in 0..12 {
            if bytes.is_empty() {
                break;
            }
            let (control, elements) = (bytes.u8(), bytes.u8());
            let mut frame = bytes.take(64).to_vec();
            frame.resize(64, 0);
            frame[0] %= 11;
            frame[2] = 0xff;
            frame[4] &= 3;
            // Sense data and queue information are below the data.
            frame[0x1b..0x20].fill(0);
            if frame[0] == 0 {
                frame[0x18..0x1b].copy_from_slice(&[0, 0, 1]);
            }
            let sges = (0..elements % 90).map(|_| element(&mut bytes)).collect();
            let list_at = if matches!(frame[0], 3 | 4) { 0x30 } else { 0x28 };
            let frame = Frame { bytes: frame, sges, list_at };
            let address = guest.lay(&frame);
            if races {
                let ram = guest.seat.ram.clone();
                race(&ram, &bits(&frame, address, control ^ elements), || {
                    let begin = Instant::now();
                    fire(guest, address, control);
                    while guest.status_of(address) == 0xff && begin.elapsed() < RACE {
                        std::thread::yield_now();
                    }
                });
            } else {
                fire(guest, address, control);
            }
            guest.reply();
        }
    });
});
