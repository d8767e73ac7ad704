//! Rings, descriptor chains and what is in them: commands, control requests and event buffers on a running device.
#![cfg_attr(fuzzing, no_main)]

use fuzz::Bytes;
use fuzz::virtio::{QUEUES, RAM, Rig, SIZE, VERSION_1, ring, with_rig};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Where tables and buffers are.
const HEAP: u64 = 0x4_0000;

/// A driver that is mostly right.
struct Driver<'a> {
    rig: &'a Rig,
    heap: u64,
    next: [u16; QUEUES as usize],
    available: [u16; QUEUES as usize],
}

impl Driver<'_> {
    fn alloc(&mut self, bytes: &[u8], len: u64) -> u64 {
        if self.heap + len > RAM {
            self.heap = HEAP;
        }
        let at = self.heap;
        self.heap += len;
        self.rig.poke(at, bytes);
        at
    }

    fn descriptor(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        self.rig.poke(at, &addr.to_le_bytes());
        self.rig.poke(at + 8, &len.to_le_bytes());
        self.rig.poke(at + 12, &flags.to_le_bytes());
        self.rig.poke(at + 14, &next.to_le_bytes());
    }

    /// Lays out a chain as the bytes say, and makes it available.
    fn chain(&mut self, queue: u16, bytes: &mut Bytes<'_>) {
        let (shape, count) = (bytes.u8(), u16::from(bytes.u8() % 8));
        let [desc, ..] = ring(queue);
        let head = self.next[usize::from(queue)];
        let indirect = shape & 1 != 0;
        let table = if indirect { self.alloc(&[], 16 * u64::from(count.max(1))) } else { desc };
        for index in 0..count {
            let (flags, len) = (bytes.u8(), u32::from(bytes.u16() % 600));
            let content = bytes.take(if flags & 1 == 0 { len.min(80) as usize } else { 0 });
            let mut addr = self.alloc(content, len.into());
            // Some of what drivers do not do: no RAM, a chain that goes on, a length that is none.
            let (mut len, mut more) = (len, if index + 1 < count { NEXT } else { 0 });
            match flags >> 4 {
                1 => addr = RAM - 3,
                2 => addr = u64::MAX - 7,
                3 => len |= 0x8000_0000,
                4 => more ^= NEXT,
                5 => more |= INDIRECT,
                _ => {}
            }
            let write = if flags & 1 != 0 { WRITE } else { 0 };
            let (here, next) = if indirect {
                (index, index + 1)
            } else {
                ((head + index) % SIZE, (head + index + 1) % SIZE)
            };
            self.descriptor(table + 16 * u64::from(here), addr, len, write | more, next);
        }
        if indirect {
            let len = 16 * u32::from(count) + u32::from(shape >> 6);
            self.descriptor(desc + 16 * u64::from(head), table, len, INDIRECT | u16::from(shape & 2), 0);
        }
        self.next[usize::from(queue)] = (head + if indirect { 1 } else { count.max(1) }) % SIZE;
        self.publish(queue, head);
    }

    fn publish(&mut self, queue: u16, head: u16) {
        let [_, avail, _] = ring(queue);
        let index = &mut self.available[usize::from(queue)];
        self.rig.poke(avail + 4 + 2 * u64::from(*index % SIZE), &head.to_le_bytes());
        *index = index.wrapping_add(1);
        self.rig.poke(avail + 2, &index.to_le_bytes());
    }
}

fuzz::target!(|input: &[u8]| {
    with_rig(|rig| {
        let mut bytes = Bytes(input);
        // INOUT, HOTPLUG, CHANGE, T10_PI, and of the ring: indirect descriptors, event index.
        let features = u64::from(bytes.u8());
        let features = VERSION_1 | features & 0xf | (features >> 4 & 3) << 28;
        rig.start(features);
        let mut driver =
            Driver { rig, heap: HEAP, next: [0; QUEUES as usize], available: [0; QUEUES as usize] };
        let mut steps = 0;
        while !bytes.is_empty() && steps < 60 {
            steps += 1;
            let what = bytes.u8();
            let queue = u16::from(what >> 4) % QUEUES;
            match what & 15 {
                0..=6 => driver.chain(queue, &mut bytes),
                7 | 8 => rig.ring_doorbell(queue),
                9 => rig.settle(),
                // Raw: an entry of the descriptor table, of the available ring, or its index.
                10 => rig.poke(ring(queue)[0] + 16 * u64::from(bytes.u8() % 16), bytes.take(16)),
                11 => driver.publish(queue, bytes.u16() % (SIZE + 2)),
                12 => {
                    let index = bytes.u16();
                    driver.available[usize::from(queue)] = index;
                    rig.poke(ring(queue)[1] + 2, &index.to_le_bytes());
                }
                13 => rig.poke(ring(queue)[1] + 4 + 2 * u64::from(SIZE), bytes.take(2)),
                // sense_size and cdb_size.
                14 => rig.write(0x2000 + if what & 16 == 0 { 20 } else { 24 }, &[bytes.u8(), 0, 0, 0]),
                _ if what & 0x40 != 0 => rig.plug(what & 0x80 != 0),
                _ => {
                    // RING_RESET was not negotiated, so this does nothing; DRIVER_OK again does nothing either.
                    rig.write(22, &queue.to_le_bytes());
                    rig.write(58, &[1, 0]);
                    rig.write(20, &[15]);
                }
            }
        }
        (0..QUEUES).for_each(|queue| rig.ring_doorbell(queue));
        rig.settle();
        let status = rig.read::<1>(20)[0];
        assert!(matches!(status, 15 | 0x4f), "device status {status:#x}");
    });
});
