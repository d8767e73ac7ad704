//! Rings, descriptor chains and what is in them: commands, control requests and event buffers on a running device. What
//! comes back, and what is written, is what the driver has a right to; see `fuzz::rings`.
#![cfg_attr(fuzzing, no_main)]

use fuzz::Bytes;
use fuzz::rings::Driver;
use fuzz::virtio::{QUEUES, SIZE, VERSION_1, ring, with_rig};

fuzz::target!(|input: &[u8]| {
    with_rig(|rig| {
        let mut bytes = Bytes(input);
        // INOUT, HOTPLUG, CHANGE, T10_PI, and of the ring: indirect descriptors, event index. The rest: whether another
        // processor changes memory meanwhile, or the driver knows of a fabric: of all of it, or of RESCAN alone.
        let features = u64::from(bytes.u8());
        let races = features >> 6 == 3;
        let fabric = [0, 0x10, 0x1f2, 0];
        let fabric = fabric.get((features >> 6) as usize).copied().unwrap_or(0);
        let features = VERSION_1 | features & 0xf | fabric | (features >> 4 & 3) << 28;
        rig.start(features);
        let mut driver = Driver::new(rig, races);
        let mut steps = 0;
        while !bytes.is_empty() && steps < 60 {
            steps += 1;
            let what = bytes.u8();
            let queue = u16::from(what >> 4) % QUEUES;
            match what & 15 {
                0..=4 => driver.chain(queue, &mut bytes),
                5 | 6 => driver.request(2 + queue % 2, features & 8 != 0, &mut bytes),
                7 | 8 => rig.ring_doorbell(queue),
                9 => driver.settle(what >> 4 ^ steps),
                // Raw: an entry of the descriptor table, of the available ring, or its index.
                10 => driver.raw_descriptor(queue, u16::from(bytes.u8() % 16), bytes.take(16)),
                11 => driver.publish(queue, bytes.u16() % (SIZE + 2)),
                12 => driver.jump(queue, bytes.u16()),
                13 => driver.poke(ring(queue)[1] + 4 + 2 * u64::from(SIZE), bytes.take(2)),
                // sense_size and cdb_size.
                14 => rig.write(0x2000 + if what & 16 == 0 { 20 } else { 24 }, &[bytes.u8(), 0, 0, 0]),
                _ if what & 0x40 != 0 => rig.plug(what & 0x80 != 0),
                // The fabric.
                _ if what & 0x20 != 0 => rig.disturb(bytes.u8()),
                _ => {
                    // RING_RESET was not negotiated, so this does nothing; DRIVER_OK again does nothing either.
                    rig.write(22, &queue.to_le_bytes());
                    rig.write(58, &[1, 0]);
                    rig.write(20, &[15]);
                }
            }
        }
        // What waits for a port goes on.
        rig.disturb(0);
        driver.finish();
    });
});
