//! A virtio driver that is mostly right and knows what it may get back: which chains, how long, and where the device may
//! have written.

use std::sync::OnceLock;

use crate::Bytes;
use crate::race::{Bits, race};
use crate::virtio::{PATIENCE, QUEUES, RAM, Rig, SIZE, ring};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Where tables and buffers are. What is below belongs to the rings.
const HEAP: u64 = 0x4_0000;
/// More than any response: it goes to the start of a descriptor that claims to be longer than it is.
const RESPONSE: u64 = 512;
/// Bytes beyond the heap, and at the end of memory, that are looked at.
const BEYOND: u64 = 0x2000;
/// No chain takes more of the heap.
const CHAIN: u64 = 7 * (600 + RESPONSE + 16);
/// So many bytes in a row, at a multiple of that, that still are as the driver left them were not written.
const GAP: usize = 8;
/// Commands that a disk knows: at their best, a fuzzer's bytes seldom hit one.
const OPCODES: &[u8] = &[
    0x12, 0x28, 0x2a, 0x00, 0x03, 0x1a, 0x5a, 0x25, 0x9e, 0x88, 0x8a, 0xa0, 0x4d, 0x5e, 0x5f, 0x41, 0x93,
    0x42, 0x2f, 0x8f, 0x89, 0x3c, 0x3b, 0x04, 0x1b, 0x35, 0xa3, 0x83, 0x84, 0x15, 0x55, 0x37, 0xb7, 0x2e,
    0x8e, 0xa8, 0xaa, 0x08,
];
/// Queues on which each chain comes back: not that of events.
const ANSWERED: [u16; 3] = [0, 2, 3];

/// What fresh buffers for the device hold, by their addresses: nothing else looks like it.
fn filler() -> &'static [u8] {
    static FILLER: OnceLock<Vec<u8>> = OnceLock::new();
    FILLER.get_or_init(|| (0..RAM).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 53) as u8).collect())
}

/// What the driver left in memory, and where the device may have written since.
struct Memory {
    bytes: Vec<u8>,
    /// Addresses from and to.
    writable: Vec<(u64, u64)>,
    /// All that was ever allocated.
    buffers: Vec<(u64, u64)>,
    /// Nobody knows where the device may write.
    is_anything: bool,
    /// The device may have read what was put there to show that it did not write.
    is_copied: bool,
}

impl Memory {
    fn get<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        let at = usize::try_from(at).ok()?;
        self.bytes.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn descriptor(&self, at: u64) -> Option<Descriptor> {
        self.get(at).map(Descriptor::of)
    }

    /// A descriptor names `len` bytes there for the device to write.
    fn offer(&mut self, addr: u64, len: u64) {
        self.writable.push((addr.min(RAM), addr.saturating_add(len).min(RAM)));
    }

    /// A descriptor that nobody chose.
    fn offer_any(&mut self, it: Descriptor) {
        let is_ram = it.len > 0 && it.addr < RAM;
        // Rings and tables that the device writes say what nobody knows.
        self.is_anything |= is_ram && it.flags & WRITE != 0;
        self.is_copied |= is_ram;
    }
}

#[derive(Clone, Copy)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn of(bytes: [u8; 16]) -> Self {
        let number = |from: usize, len: usize| {
            bytes[from..from + len].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        Self {
            addr: number(0, 8),
            len: number(8, 4) as u32,
            flags: number(12, 2) as u16,
            next: number(14, 2) as u16,
        }
    }
}

/// A chain that was made available and did not come back.
struct Offer {
    head: u16,
    /// Descriptors of the queue's table that are in it: a bit each.
    slots: u32,
    /// Where the device may write, in order; `None` when the chain changed while it was there to take.
    writable: Option<Vec<(u64, u32)>>,
}

/// The driver.
pub struct Driver<'a> {
    rig: &'a Rig,
    memory: Memory,
    heap: u64,
    next: [u16; QUEUES as usize],
    available: [u16; QUEUES as usize],
    used: [u16; QUEUES as usize],
    offers: [Vec<Offer>; QUEUES as usize],
    /// Queues whose available ring makes no sense: what comes back is the device's guess.
    is_odd: [bool; QUEUES as usize],
    /// Whether another processor changes memory meanwhile.
    races: bool,
    /// What it may change.
    bits: Vec<Bits>,
}

impl<'a> Driver<'a> {
    /// Of a device that has just been started.
    pub fn new(rig: &'a Rig, races: bool) -> Self {
        let memory = Memory {
            bytes: vec![0; RAM as usize],
            writable: Vec::new(),
            buffers: Vec::new(),
            is_anything: false,
            is_copied: false,
        };
        Self {
            rig,
            memory,
            heap: HEAP,
            next: [0; QUEUES as usize],
            available: [0; QUEUES as usize],
            used: [0; QUEUES as usize],
            offers: Default::default(),
            is_odd: [false; QUEUES as usize],
            races,
            bits: Vec::new(),
        }
    }

    /// Writes guest memory that no descriptor names.
    pub fn poke(&mut self, at: u64, bytes: &[u8]) {
        if let Some(range) =
            usize::try_from(at).ok().and_then(|at| self.memory.bytes.get_mut(at..at + bytes.len()))
        {
            range.copy_from_slice(bytes);
            self.rig.poke(at, bytes);
        }
    }

    fn alloc(&mut self, bytes: &[u8], len: u64) -> u64 {
        let at = self.heap;
        self.heap += len;
        self.memory.buffers.push((at, at + len));
        self.poke(at, bytes);
        at
    }

    fn descriptor(&mut self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let parts = [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
        self.poke(at, &parts.concat());
    }

    /// Descriptors of a queue's table are about to change: chains that have them are what nobody knows.
    fn change(&mut self, queue: u16, slot: u16) {
        for offer in &mut self.offers[usize::from(queue)] {
            if offer.slots & 1 << slot != 0 {
                offer.writable = None;
            }
        }
    }

    /// Lays out a chain as the bytes say, and makes it available.
    pub fn chain(&mut self, queue: u16, bytes: &mut Bytes<'_>) {
        let (shape, count) = (bytes.u8(), u16::from(bytes.u8() % 8));
        if self.heap + CHAIN > RAM - BEYOND {
            return;
        }
        let [desc, ..] = ring(queue);
        let head = self.next[usize::from(queue)];
        let indirect = shape & 1 != 0;
        let table = if indirect { self.alloc(&[], 16 * u64::from(count.max(1))) } else { desc };
        for index in 0..count {
            let (flags, len) = (bytes.u8(), u32::from(bytes.u16() % 600));
            let content = bytes.take(if flags & 1 == 0 { len.min(80) as usize } else { 0 });
            let (write, kind) = (flags & 1 != 0, flags >> 4);
            let room = u64::from(len) + if kind == 3 { RESPONSE } else { 0 };
            let mut addr = self.alloc(content, room);
            if write {
                self.fill(addr, room);
            } else if self.races {
                let places = (0..len.min(80)).step_by(7).map(u64::from);
                self.bits.extend(places.map(|n| (addr + n, shape.rotate_left(n as u32) ^ flags)));
            }
            // Some of what drivers do not do: no RAM, a chain that goes on, a length that is none.
            let (mut len, mut more) = (len, if index + 1 < count { NEXT } else { 0 });
            match kind {
                1 => {
                    addr = RAM - 3;
                    if write || self.races {
                        self.memory.offer(addr, len.into());
                    }
                }
                2 => addr = u64::MAX - 7,
                3 => len |= 0x8000_0000,
                4 => more ^= NEXT,
                5 => {
                    more |= INDIRECT;
                    self.offer_table(addr, len);
                }
                _ => {}
            }
            let (here, next) = if indirect {
                (index, index + 1)
            } else {
                ((head + index) % SIZE, (head + index + 1) % SIZE)
            };
            if !indirect {
                self.change(queue, here);
            }
            let at = table + 16 * u64::from(here);
            self.descriptor(at, addr, len, if write { WRITE } else { 0 } | more, next);
            if self.races {
                // The direction, whether it goes on, where, and what it is short of.
                self.bits.extend([
                    (at + 12, flags >> 1 & 3),
                    (at + 14, shape >> 2 & 15),
                    (at + 8, len as u8 & shape),
                ]);
            }
        }
        if indirect {
            let len = 16 * u32::from(count) + u32::from(shape >> 6);
            self.change(queue, head);
            self.descriptor(desc + 16 * u64::from(head), table, len, INDIRECT | u16::from(shape & 2), 0);
        }
        self.next[usize::from(queue)] = (head + if indirect { 1 } else { count.max(1) }) % SIZE;
        self.publish(queue, head);
    }

    /// Makes a command available as drivers do it, which a disk gets.
    pub fn request(&mut self, queue: u16, protection: bool, bytes: &mut Bytes<'_>) {
        let (choice, which, target) = (bytes.u8(), bytes.u8(), bytes.u8());
        if self.heap + CHAIN > RAM - BEYOND {
            return;
        }
        let (len_out, len_in) = (u32::from(bytes.u8()) * 8, u32::from(bytes.u8()) * 8);
        let mut head =
            vec![1, target % 4, 0x40, 0, 0, 0, 0, 0, choice, 0, 0, 0, 0, 0, 0, 0, choice >> 6, 0, 0];
        if protection {
            let len = if choice & 1 != 0 { [bytes.u8(), 0, 0, 0, bytes.u8(), 0, 0, 0] } else { [0; 8] };
            head.extend(len);
        }
        let mut cdb = bytes.take(16).to_vec();
        cdb.resize(32, 0);
        if choice & 2 != 0 {
            cdb[0] = OPCODES[usize::from(which) % OPCODES.len()];
        }
        if choice & 4 != 0 {
            // A block that is there, and few of them.
            [2, 3, 4, 7].into_iter().for_each(|at| cdb[at] = 0);
        }
        head.extend(cdb);
        let data = bytes.take(if choice & 8 != 0 { len_out.min(64) as usize } else { 0 });
        let [desc, ..] = ring(queue);
        let first = self.next[usize::from(queue)];
        let head_len = head.len() as u32;
        // The response with its sense area (5.6.6.1).
        let parts = [(head_len, false), (len_out, false), (12 + 96, true), (len_in, true)];
        let mut parts: Vec<_> = parts.into_iter().filter(|(len, _)| *len > 0).collect();
        if choice & 16 != 0 && len_in > 8 {
            // In two pieces, at no boundary.
            parts.pop();
            parts.extend([(len_in / 3, true), (len_in - len_in / 3, true)]);
        }
        let count = parts.len() as u16;
        for ((index, (len, write)), number) in parts.into_iter().enumerate().zip(0..) {
            let content = [&head[..], data][index.min(1)];
            let addr = self.alloc(if write { &[] } else { content }, len.into());
            if write {
                self.fill(addr, len.into());
            } else if self.races {
                self.bits.extend((0..len.min(64)).map(|n| (addr + u64::from(n), choice.rotate_left(n))));
            }
            let here = (first + number) % SIZE;
            self.change(queue, here);
            let flags = if write { WRITE } else { 0 } | if number + 1 < count { NEXT } else { 0 };
            self.descriptor(desc + 16 * u64::from(here), addr, len, flags, (here + 1) % SIZE);
        }
        self.next[usize::from(queue)] = (first + count) % SIZE;
        self.publish(queue, first);
    }

    /// Memory for the device to write.
    fn fill(&mut self, addr: u64, len: u64) {
        self.poke(addr, &filler()[addr as usize..(addr + len) as usize]);
        self.memory.offer(addr, len);
    }

    /// A buffer that a descriptor calls a table: what its contents name.
    fn offer_table(&mut self, at: u64, len: u32) {
        // Another processor changes contents, too.
        self.memory.is_anything |= self.races;
        for index in 0..u64::from(len / 16) {
            if let Some(it) = self.memory.descriptor(at + 16 * index) {
                self.memory.offer_any(it);
            }
        }
    }

    /// Any 16 bytes as a descriptor of a queue's table.
    pub fn raw_descriptor(&mut self, queue: u16, slot: u16, bytes: &[u8]) {
        self.change(queue, slot);
        let at = ring(queue)[0] + 16 * u64::from(slot);
        self.poke(at, bytes);
        let Some(it) = self.memory.descriptor(at) else { return };
        // Whatever is there now may be a table, also what the device writes there later.
        self.memory.is_anything |= it.flags & INDIRECT != 0 || self.races;
        self.memory.offer_any(it);
    }

    /// Makes a chain available.
    pub fn publish(&mut self, queue: u16, head: u16) {
        let [_, avail, _] = ring(queue);
        let index = self.available[usize::from(queue)];
        let slot = avail + 4 + 2 * u64::from(index % SIZE);
        self.collect(queue);
        // One more than there is room for takes the place of another.
        self.is_odd[usize::from(queue)] |= self.offers[usize::from(queue)].len() >= usize::from(SIZE);
        self.poke(slot, &head.to_le_bytes());
        self.offer(queue, head);
        if self.races {
            self.bits.push((slot, 1));
        }
        self.set_available(queue, index.wrapping_add(1));
    }

    fn set_available(&mut self, queue: u16, index: u16) {
        self.available[usize::from(queue)] = index;
        self.poke(ring(queue)[1] + 2, &index.to_le_bytes());
    }

    /// Says that chains are available up to there: what the ring has at those places, or none if that is no sense.
    pub fn jump(&mut self, queue: u16, index: u16) {
        self.collect(queue);
        let from = self.available[usize::from(queue)];
        let count = index.wrapping_sub(from);
        if usize::from(count) + self.offers[usize::from(queue)].len() > usize::from(SIZE) {
            self.is_odd[usize::from(queue)] = true;
        } else {
            for n in 0..count {
                let place = from.wrapping_add(n) % SIZE;
                let head = self.memory.get(ring(queue)[1] + 4 + 2 * u64::from(place)).map(u16::from_le_bytes);
                self.offer(queue, head.expect("a ring in memory"));
            }
        }
        self.set_available(queue, index);
    }

    /// Notes what the device is given with this head.
    fn offer(&mut self, queue: u16, head: u16) {
        let mut offer = Offer { head, slots: 0, writable: None };
        let (mut writable, mut table, mut slots, mut at, mut is_own) =
            (Vec::new(), ring(queue)[0], SIZE, head, true);
        let mut left = SIZE;
        while left > 0 && at < slots {
            let Some(it) = self.memory.descriptor(table.saturating_add(16 * u64::from(at))) else { break };
            if is_own {
                offer.slots |= 1 << at;
            }
            if it.flags & INDIRECT != 0 {
                if !is_own {
                    break;
                }
                slots = u16::try_from(it.len / 16).unwrap_or(0);
                (table, at, left, is_own) = (it.addr, 0, slots, false);
                continue;
            }
            if it.flags & WRITE != 0 {
                writable.push((it.addr, it.len));
            }
            if it.flags & NEXT == 0 {
                break;
            }
            (at, left) = (it.next, left - 1);
        }
        offer.writable = Some(writable);
        self.offers[usize::from(queue)].push(offer);
    }

    /// Lets the device work, and looks at what came back.
    pub fn settle(&mut self, choice: u8) {
        let rig = self.rig;
        // A few of the bits, and other ones at another time.
        let step = self.bits.len() / 12 + 1;
        let start = usize::from(choice) % step;
        let bits: Vec<Bits> =
            self.bits.iter().copied().skip(start).step_by(step).filter(|bits| bits.1 != 0).collect();
        race(&rig.seat.ram, &bits, || rig.settle());
        (0..QUEUES).for_each(|queue| self.collect(queue));
    }

    /// Looks at the used ring: each chain comes back once for each time that it was made available, with no more than fits.
    fn collect(&mut self, queue: u16) {
        let (q, [_, _, used]) = (usize::from(queue), ring(queue));
        let index = u16::from_le_bytes(self.rig.peek(used + 2));
        if self.is_odd[q] || self.memory.is_anything {
            self.used[q] = index;
            self.offers[q].clear();
            return;
        }
        let count = index.wrapping_sub(self.used[q]);
        assert!(
            usize::from(count) <= self.offers[q].len(),
            "queue {queue}: {count} chains came back of {}",
            self.offers[q].len()
        );
        while self.used[q] != index {
            let at = used + 4 + 8 * u64::from(self.used[q] % SIZE);
            let (id, len) =
                (u32::from_le_bytes(self.rig.peek(at)), u32::from_le_bytes(self.rig.peek(at + 4)));
            self.used[q] = self.used[q].wrapping_add(1);
            assert!(id < u32::from(SIZE), "queue {queue}: descriptor {id} came back");
            if self.races {
                // Which one it was may have changed.
                self.offers[q].pop();
                continue;
            }
            let place = self.offers[q].iter().position(|offer| u32::from(offer.head) == id);
            let offer =
                self.offers[q].remove(place.unwrap_or_else(|| panic!("queue {queue}: {id} came back twice")));
            if let Some(writable) = &offer.writable {
                self.check_written(queue, writable, len);
            }
        }
    }

    /// Whether `len` bytes fit into these descriptors and were written.
    fn check_written(&self, queue: u16, writable: &[(u64, u32)], len: u32) {
        let mut left = u64::from(len);
        for &(addr, room) in writable {
            let here = left.min(room.into());
            left -= here;
            // Of an end that is no memory, nothing was written.
            let now = self.rig.peek_all(addr, here.min(4096) as usize);
            if self.memory.is_copied || now.is_empty() {
                continue;
            }
            let range = addr as usize..addr as usize + now.len();
            let (before, filler) = (&self.memory.bytes[range.clone()], &filler()[range]);
            let parts = now.chunks_exact(GAP).zip(before.chunks_exact(GAP)).zip(filler.chunks_exact(GAP));
            for (index, ((now, before), filler)) in parts.enumerate() {
                let at = addr as usize + GAP * index;
                assert!(
                    now != before || now != filler,
                    "queue {queue}: {len} bytes written, but not those at {at:#x}"
                );
            }
        }
        assert_eq!(left, 0, "queue {queue}: {len} bytes were written, so many more than fit");
    }

    /// At the end: the device works or says that it does not, has given everything back, and has written nowhere else.
    pub fn finish(&mut self) {
        (0..QUEUES).for_each(|queue| self.rig.ring_doorbell(queue));
        let begin = std::time::Instant::now();
        loop {
            self.settle(0);
            let status = self.rig.read::<1>(20)[0];
            assert!(matches!(status, 15 | 0x4f), "device status {status:#x}");
            let is_back = |queue: u16| self.offers[usize::from(queue)].is_empty();
            if status != 15 || ANSWERED.into_iter().all(is_back) {
                break;
            }
            assert!(begin.elapsed() < PATIENCE, "chains do not come back");
            std::thread::yield_now();
        }
        self.check_memory();
    }

    fn check_memory(&mut self) {
        if self.memory.is_anything {
            return;
        }
        let mut holes = std::mem::take(&mut self.memory.writable);
        for queue in 0..QUEUES {
            let [_, _, used] = ring(queue);
            holes.push((used, used + 6 + 8 * u64::from(SIZE)));
        }
        if self.races {
            // Directions change, too.
            holes.append(&mut self.memory.buffers);
        }
        holes.sort_unstable();
        for (from, to) in [(ring(0)[0], HEAP / 2), (HEAP, self.heap + BEYOND), (RAM - BEYOND, RAM)] {
            let mut at = from;
            for &(hole, end) in holes.iter().filter(|(_, end)| *end > from) {
                self.check_part(at, hole.min(to));
                at = at.max(end);
            }
            self.check_part(at, to);
        }
    }

    fn check_part(&self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let now = self.rig.peek_all(from, (to - from) as usize);
        let before = &self.memory.bytes[from as usize..to as usize];
        if now != before {
            let place = now.iter().zip(before).position(|(now, before)| now != before);
            panic!("{:#x} was written, which nothing named", from + place.unwrap_or(0) as u64);
        }
    }
}
