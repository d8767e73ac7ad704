//! Frames with their lists, a few in flight at once.
#![cfg_attr(fuzzing, no_main)]

use fuzz::Bytes;
use fuzz::megasas::{element, guest::Frame, with_adapter};

fuzz::target!(|input: &[u8]| {
    let mut bytes = Bytes(input);
    with_adapter(bytes.u8(), |guest| {
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
            let address = guest.send(&Frame { bytes: frame, sges, list_at });
            match control & 7 {
                0 => guest.write(0x20, 0x01),
                1 => guest.write(0xa0, u32::MAX),
                2 => guest.fire(address),
                3 => std::thread::yield_now(),
                _ => {}
            }
            guest.reply();
        }
    });
});
