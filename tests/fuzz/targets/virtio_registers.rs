//! Accesses to everything a virtio-scsi function has: structures, legacy ports, configuration space, in any order.
#![cfg_attr(fuzzing, no_main)]

use devices::pci::PciFunction;
use fuzz::Bytes;
use fuzz::virtio::{LEGACY, PORTS, QUEUES, STRUCTURES, VERSION_1, ring, with_rig};

/// Fields of the common configuration, where most accesses go.
const COMMON: [u64; 20] = [0, 4, 8, 12, 16, 18, 20, 21, 22, 24, 26, 28, 30, 32, 36, 40, 44, 48, 56, 58];

fuzz::target!(|input: &[u8]| {
    with_rig(|rig| {
        let mut bytes = Bytes(input);
        let mut steps = 0;
        while !bytes.is_empty() && steps < 200 {
            steps += 1;
            let (what, place) = (bytes.u8(), bytes.u16());
            let width = [1_usize, 2, 4, 8][usize::from(what >> 4 & 3)];
            let mut value = [0; 8];
            let given = bytes.take(width);
            value[..given.len()].copy_from_slice(given);
            let value = &mut value[..width];
            let common = COMMON[usize::from(place) % COMMON.len()];
            match what & 15 {
                0 | 1 => rig.seat.memory.write(STRUCTURES + common, value),
                2 => rig.seat.memory.write(STRUCTURES + u64::from(place % 0x4000), value),
                3 => rig.seat.memory.read(STRUCTURES + u64::from(place % 0x4000), value),
                4 | 5 => rig.seat.ports.write(LEGACY + u64::from(place % 64), value),
                6 => rig.seat.ports.read(LEGACY + u64::from(place % 64), value),
                7 => rig.hba.config_write(place % 256, value),
                8 => rig.hba.config_read(place % 256, value),
                9 => rig.ring_doorbell(place % (QUEUES + 1)),
                10 => rig.seat.ports.write(PORTS + u64::from(place % 32), value),
                // Legacy drivers ring with the number of the queue.
                11 => rig.seat.ports.write(LEGACY + 16, &(place % (QUEUES + 1)).to_le_bytes()),
                12 => {
                    // A whole beginning, so that what comes after hits a device that runs.
                    rig.place();
                    let features = u64::from(place) | u64::from(value[0]) << 24;
                    rig.start(VERSION_1 | features & 0x3000_000f);
                }
                13 => {
                    // One chain in a queue.
                    let [desc, avail, _] = ring(place % QUEUES);
                    rig.poke(desc, &[0, 0x80, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 1, 0, 1, 0]);
                    rig.poke(desc + 16, &[0, 0x90, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0, 2, 0, 0, 0]);
                    rig.poke(0x8000, value);
                    rig.poke(avail + 2, &[value[0], 0, 0, 0]);
                }
                14 => rig.settle(),
                _ => rig.hba.reset(),
            }
        }
    });
});
