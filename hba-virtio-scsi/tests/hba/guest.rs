//! A guest driver for tests: finds the device as Linux does, through configuration space and BAR accesses only, and
//! lays out rings in guest RAM.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::bus::{Doorbell, Space};
use devices::iothread::{IoThread, Remote};
use devices::scsi::Nexus;
use devices::testing::pci::{TestSeat, config_dword, find_capability, set_config_dword, set_config_word};
use hba_virtio_scsi::fc::San;
use hba_virtio_scsi::{Options, VirtioScsi};
use vm_memory::{Bytes, GuestAddress};

pub const RAM: usize = 16 << 20;
const HEAP: u64 = 0x40_0000;
const BAR: u64 = 0xc000_0000;
pub const MSIX: u64 = 0xc010_0000;
/// Address of the message of vector 0; each vector has its number as data.
pub const MSI_ADDRESS: u64 = 0xfee0_1000;
const PATIENCE: Duration = Duration::from_secs(10);

/// Feature bits (virtio 1.3, 6 and 5.6.3).
pub const HOTPLUG: u64 = 1 << 1;
pub const CHANGE: u64 = 1 << 2;
/// Of docs/virtio-scsi-fc.md, section 1.
pub const RESCAN: u64 = 1 << 4;
pub const NATIVE: u64 = 1 << 5;
pub const FC_HOST: u64 = 1 << 6;
pub const RPORT_EVENTS: u64 = 1 << 7;
pub const VPORT: u64 = 1 << 8;
pub const INDIRECT: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const VERSION_1: u64 = 1 << 32;
pub const RING_RESET: u64 = 1 << 40;

/// Descriptor flags (2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT_TABLE: u16 = 4;

/// Where the structures are, from the capabilities.
#[derive(Clone, Copy, Debug, Default)]
pub struct Structures {
    pub common: u64,
    pub notify: u64,
    pub multiplier: u64,
    pub isr: u64,
    pub device: u64,
    /// Offset of the capability of the configuration access window.
    pub window: u16,
}

pub struct Guest {
    pub seat: TestSeat,
    pub hba: Arc<VirtioScsi>,
    pub at: Structures,
    pub queues: Vec<GuestQueue>,
    pub features: u64,
    #[allow(dead_code, reason = "not every test binary reaches behind the device")]
    pub remotes: Vec<Remote>,
    heap: u64,
    // Last: the HBA goes first.
    _threads: Vec<IoThread>,
}

/// The driver's half of a split virtqueue.
#[derive(Clone, Debug)]
pub struct GuestQueue {
    pub index: u16,
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub notify: u64,
    next_desc: u16,
    pub avail_idx: u16,
    pub used_idx: u16,
    /// The available index at the last look at whether to ring.
    rung_idx: u16,
}

impl GuestQueue {
    /// A queue nobody has used yet, with its three parts and its doorbell.
    pub fn new(index: u16, size: u16, [desc, avail, used]: [u64; 3], notify: u64) -> Self {
        Self { index, size, desc, avail, used, notify, next_desc: 0, avail_idx: 0, used_idx: 0, rung_idx: 0 }
    }
}

/// A part of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub addr: u64,
    pub len: u32,
    pub write: bool,
}

pub fn out(addr: u64, len: u32) -> Part {
    Part { addr, len, write: false }
}

pub fn into(addr: u64, len: u32) -> Part {
    Part { addr, len, write: true }
}

/// A response as it lies in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub sense: Vec<u8>,
    pub residual: u32,
    pub status: u8,
    pub response: u8,
    pub used: u32,
    pub data: Vec<u8>,
}

impl Guest {
    /// A machine with the HBA plugged in and its BARs placed; the device is not initialised yet.
    pub fn new(options: Options, threads: usize, targets: BTreeMap<u8, Arc<Nexus>>) -> Self {
        let start = |i| IoThread::start(&format!("io{i}")).unwrap();
        Self::on((0..threads).map(start).collect(), options, targets)
    }

    /// As [`Self::new`], on these threads.
    pub fn on(threads: Vec<IoThread>, options: Options, targets: BTreeMap<u8, Arc<Nexus>>) -> Self {
        Self::in_seat(TestSeat::new(RAM), threads, options, targets)
    }

    /// As [`Self::on`], in this place.
    pub fn in_seat(
        seat: TestSeat,
        threads: Vec<IoThread>,
        options: Options,
        targets: BTreeMap<u8, Arc<Nexus>>,
    ) -> Self {
        let remotes: Vec<_> = threads.iter().map(IoThread::remote).collect();
        let hba = VirtioScsi::new(seat.seat.clone(), targets, remotes, options).unwrap();
        Self::around(seat, threads, hba)
    }

    /// As [`Self::new`], with a port on a fabric.
    pub fn with_san(
        options: Options,
        threads: usize,
        targets: BTreeMap<u8, Arc<Nexus>>,
        san: Arc<dyn San>,
    ) -> Self {
        let threads: Vec<_> = (0..threads).map(|i| IoThread::start(&format!("io{i}")).unwrap()).collect();
        let (seat, remotes) = (TestSeat::new(RAM), threads.iter().map(IoThread::remote).collect());
        let hba = VirtioScsi::with_san(seat.seat.clone(), targets, remotes, options, san).unwrap();
        Self::around(seat, threads, hba)
    }

    fn around(seat: TestSeat, threads: Vec<IoThread>, hba: Arc<VirtioScsi>) -> Self {
        let remotes: Vec<_> = threads.iter().map(IoThread::remote).collect();
        let mut guest = Self {
            seat,
            hba,
            at: Structures::default(),
            queues: Vec::new(),
            features: 0,
            remotes,
            heap: HEAP,
            _threads: threads,
        };
        guest.place();
        guest
    }

    /// What firmware and the PCI layer do.
    pub fn place(&mut self) {
        let hba = &*self.hba;
        set_config_dword(hba, 0x10 + 4, MSIX as u32);
        set_config_dword(hba, 0x10 + 16, BAR as u32);
        set_config_word(hba, 4, 0x6);
        let mut at = Structures::default();
        let mut cap = config_dword(hba, 0x34) as u16 & 0xfc;
        while cap != 0 {
            let [id, next, _, kind] = config_dword(hba, cap).to_le_bytes();
            if id == 9 {
                let base = BAR + u64::from(config_dword(hba, cap + 8));
                match kind {
                    1 => at.common = base,
                    2 => {
                        at.notify = base;
                        at.multiplier = config_dword(hba, cap + 16).into();
                    }
                    3 => at.isr = base,
                    4 => at.device = base,
                    5 => at.window = cap,
                    other => panic!("capability type {other}"),
                }
            }
            cap = u16::from(next) & 0xfc;
        }
        self.at = at;
    }

    /// Enables MSI-X: vector n sends data n.
    pub fn enable_msix(&self) {
        let cap = find_capability(&*self.hba, 0x11).unwrap();
        let vectors = (config_dword(&*self.hba, cap) >> 16 & 0x7ff) + 1;
        for vector in 0..vectors {
            let entry = MSIX + 16 * u64::from(vector);
            for (i, word) in [MSI_ADDRESS as u32, 0, vector, 0].into_iter().enumerate() {
                self.seat.memory.write(entry + 4 * i as u64, &word.to_le_bytes());
            }
        }
        set_config_word(&*self.hba, cap + 2, 0x8000);
    }

    pub fn read<const N: usize>(&self, addr: u64) -> [u8; N] {
        let mut data = [0; N];
        self.seat.memory.read(addr, &mut data);
        data
    }

    pub fn write(&self, addr: u64, data: &[u8]) {
        self.seat.memory.write(addr, data);
    }

    pub fn status(&self) -> u8 {
        self.read::<1>(self.at.common + 20)[0]
    }

    pub fn set_status(&self, status: u8) {
        self.write(self.at.common + 20, &[status]);
    }

    pub fn wait_for(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "waited too long: {what}");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Resets as Linux does: writes zero and polls.
    pub fn reset(&mut self) {
        self.set_status(0);
        self.wait_for("reset", || self.status() == 0);
        self.queues.clear();
    }

    pub fn offered(&self) -> u64 {
        let mut features = 0;
        for select in 0..2_u32 {
            self.write(self.at.common, &select.to_le_bytes());
            features |= u64::from(u32::from_le_bytes(self.read(self.at.common + 4))) << (32 * select);
        }
        features
    }

    /// Up to and with FEATURES_OK; returns whether the device took the features.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.reset();
        self.set_status(1);
        self.set_status(3);
        for select in 0..2_u32 {
            self.write(self.at.common + 8, &select.to_le_bytes());
            self.write(self.at.common + 12, &((features >> (32 * select)) as u32).to_le_bytes());
        }
        self.set_status(3 | 8);
        self.features = features;
        self.status() & 8 != 0
    }

    pub fn select(&self, index: u16) {
        self.write(self.at.common + 22, &index.to_le_bytes());
    }

    pub fn queue_word(&self, index: u16, offset: u64) -> u16 {
        self.select(index);
        u16::from_le_bytes(self.read(self.at.common + offset))
    }

    /// Sets a queue up and enables it.
    pub fn setup_queue(&mut self, index: u16, size: u16, vector: u16) {
        let base = 0x1_0000 * (1 + u64::from(index));
        let (desc, avail, used) = (base, base + 0x8000, base + 0xc000);
        self.seat.ram.write_slice(&[0; 0x1_0000], GuestAddress(base)).unwrap();
        self.select(index);
        let common = self.at.common;
        self.write(common + 24, &size.to_le_bytes());
        for (offset, addr) in [(32, desc), (40, avail), (48, used)] {
            self.write(common + offset, &(addr as u32).to_le_bytes());
            self.write(common + offset + 4, &((addr >> 32) as u32).to_le_bytes());
        }
        self.write(common + 26, &vector.to_le_bytes());
        assert_eq!(self.queue_word(index, 26), vector);
        self.write(common + 28, &1_u16.to_le_bytes());
        let off = u64::from(self.queue_word(index, 30));
        let notify = self.at.notify + off * self.at.multiplier;
        self.queues.push(GuestQueue::new(index, size, [desc, avail, used], notify));
    }

    /// The whole initialisation, all queues at `size`, one vector each (0 is for configuration changes).
    pub fn start(&mut self, features: u64, size: u16) {
        self.enable_msix();
        assert!(self.negotiate(features));
        let count = u16::from_le_bytes(self.read(self.at.common + 18));
        self.write(self.at.common + 16, &0_u16.to_le_bytes());
        for index in 0..count {
            self.setup_queue(index, size, index + 1);
        }
        self.set_status(3 | 8 | 4);
        assert_eq!(self.status(), 15);
    }

    /// Memory for a buffer of `len` bytes, at an odd place on purpose.
    pub fn alloc(&mut self, len: usize) -> u64 {
        let addr = self.heap + 1;
        self.heap += (len as u64 + 0x1f) & !0xf;
        assert!(self.heap < RAM as u64, "guest heap is full");
        addr
    }

    /// Forgets all buffers: nothing may be in flight.
    pub fn reset_heap(&mut self) {
        self.heap = HEAP;
    }

    pub fn alloc_with(&mut self, bytes: &[u8]) -> u64 {
        let addr = self.alloc(bytes.len());
        self.poke(addr, bytes);
        addr
    }

    pub fn poke(&self, addr: u64, bytes: &[u8]) {
        self.seat.ram.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub fn peek(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.seat.ram.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    pub fn peek16(&self, addr: u64) -> u16 {
        u16::from_le_bytes(self.peek(addr, 2).try_into().unwrap())
    }

    /// Writes a descriptor into any table.
    pub fn descriptor(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = table + 16 * u64::from(index);
        self.poke(at, &addr.to_le_bytes());
        self.poke(at + 8, &len.to_le_bytes());
        self.poke(at + 12, &flags.to_le_bytes());
        self.poke(at + 14, &next.to_le_bytes());
    }

    /// Makes descriptor `head` available.
    pub fn publish(&mut self, queue: usize, head: u16) {
        let q = &mut self.queues[queue];
        let slot = q.avail + 4 + 2 * u64::from(q.avail_idx % q.size);
        q.avail_idx = q.avail_idx.wrapping_add(1);
        let (idx_at, idx) = (q.avail + 2, q.avail_idx);
        self.poke(slot, &head.to_le_bytes());
        self.seat.ram.store(idx, GuestAddress(idx_at), std::sync::atomic::Ordering::SeqCst).unwrap();
    }

    /// Lays a chain out in the descriptor table, makes it available and returns its head. Descriptors are used
    /// round robin: tests keep fewer in flight than the table holds.
    pub fn add(&mut self, queue: usize, parts: &[Part]) -> u16 {
        let (desc, size, first) = {
            let q = &mut self.queues[queue];
            let first = q.next_desc;
            q.next_desc = (q.next_desc + parts.len() as u16) % q.size;
            (q.desc, q.size, first)
        };
        for (i, part) in parts.iter().enumerate() {
            let last = i + 1 == parts.len();
            let flags = u16::from(part.write) * WRITE + u16::from(!last) * NEXT;
            let at = (first + i as u16) % size;
            self.descriptor(desc, at, part.addr, part.len, flags, (at + 1) % size);
        }
        self.publish(queue, first);
        first
    }

    /// As [`Self::add`], with the parts in an indirect table.
    pub fn add_indirect(&mut self, queue: usize, parts: &[Part]) -> u16 {
        let table = self.alloc(16 * parts.len());
        for (i, part) in parts.iter().enumerate() {
            let last = i + 1 == parts.len();
            let flags = u16::from(part.write) * WRITE + u16::from(!last) * NEXT;
            self.descriptor(table, i as u16, part.addr, part.len, flags, i as u16 + 1);
        }
        let q = &mut self.queues[queue];
        let head = q.next_desc;
        q.next_desc = (head + 1) % q.size;
        let desc = q.desc;
        self.descriptor(desc, head, table, 16 * parts.len() as u32, INDIRECT_TABLE, 0);
        self.publish(queue, head);
        head
    }

    /// Rings the doorbell if the device wants it (2.7.10): after the event index it named was passed, or unless
    /// VIRTQ_USED_F_NO_NOTIFY is set.
    pub fn kick(&mut self, queue: usize) {
        let q = &mut self.queues[queue];
        let (new, old) = (q.avail_idx, std::mem::replace(&mut q.rung_idx, q.avail_idx));
        let (used, size, notify, index) = (q.used, u64::from(q.size), q.notify, q.index);
        let wanted = if self.features & EVENT_IDX != 0 {
            let event = self.peek16(used + 4 + 8 * size);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.peek16(used) & 1 == 0
        };
        if wanted {
            self.ring(notify, index);
        }
    }

    /// A guest write to a doorbell.
    pub fn ring(&self, addr: u64, value: u16) {
        let bell = Doorbell { addr, space: Space::Memory, width: 2, value: Some(value.into()) };
        if !self.seat.doorbells.ring(bell) {
            self.write(addr, &value.to_le_bytes());
        }
    }

    /// The next used element, if there is one: head and length.
    pub fn used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let q = &mut self.queues[queue];
        let idx: u16 =
            self.seat.ram.load(GuestAddress(q.used + 2), std::sync::atomic::Ordering::SeqCst).unwrap();
        if idx == q.used_idx {
            return None;
        }
        let at = q.used + 4 + 8 * u64::from(q.used_idx % q.size);
        q.used_idx = q.used_idx.wrapping_add(1);
        // As a driver that wants an interrupt for the next one.
        let (event_at, event) = (q.avail + 4 + 2 * u64::from(q.size), q.used_idx);
        self.poke(event_at, &event.to_le_bytes());
        let element = self.peek(at, 8);
        let id = u32::from_le_bytes(element[..4].try_into().unwrap());
        Some((u16::try_from(id).unwrap(), u32::from_le_bytes(element[4..].try_into().unwrap())))
    }

    pub fn wait_used(&mut self, queue: usize) -> (u16, u32) {
        let start = Instant::now();
        loop {
            if let Some(used) = self.used(queue) {
                return used;
            }
            assert!(start.elapsed() < PATIENCE, "queue {queue}: nothing used");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Waits a moment and checks that the device used nothing.
    pub fn expect_silence(&mut self, queue: usize) {
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(self.used(queue), None);
    }

    /// A command's fixed readable part with a CDB of 32 bytes.
    pub fn request_head(lun: [u8; 8], id: u64, cdb: &[u8]) -> Vec<u8> {
        let mut head = lun.to_vec();
        head.extend(id.to_le_bytes());
        head.extend([0, 0, 0]);
        head.extend(cdb);
        head.resize(19 + 32, 0);
        head
    }

    /// Sends a command as Linux does (request, data-out, response, data-in) and waits for its end.
    pub fn command(
        &mut self,
        queue: usize,
        lun: [u8; 8],
        cdb: &[u8],
        data_out: &[u8],
        data_in: usize,
    ) -> Reply {
        let head = Self::request_head(lun, 0x1234, cdb);
        let request = self.alloc_with(&head);
        let response = self.alloc_with(&[0xee; 108]);
        let from = self.alloc_with(data_out);
        let to = self.alloc_with(&vec![0xdd; data_in]);
        let mut parts = vec![out(request, 51)];
        if !data_out.is_empty() {
            parts.push(out(from, data_out.len() as u32));
        }
        parts.push(into(response, 108));
        if data_in > 0 {
            parts.push(into(to, data_in as u32));
        }
        let indirect = self.features & INDIRECT != 0;
        let sent = if indirect { self.add_indirect(queue, &parts) } else { self.add(queue, &parts) };
        self.kick(queue);
        let (head, used) = self.wait_used(queue);
        assert_eq!(head, sent);
        self.reply(response, used, to, data_in)
    }

    pub fn reply(&self, response: u64, used: u32, data: u64, data_len: usize) -> Reply {
        let bytes = self.peek(response, 108);
        let le32 = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let sense_len = (le32(0) as usize).min(96);
        Reply {
            sense: bytes[12..12 + sense_len].to_vec(),
            residual: le32(4),
            status: bytes[10],
            response: bytes[11],
            used,
            data: self.peek(data, data_len),
        }
    }

    /// A task management function; returns the response byte.
    pub fn tmf(&mut self, subtype: u32, lun: [u8; 8], id: u64) -> u8 {
        let mut bytes = vec![0; 4];
        bytes.extend(subtype.to_le_bytes());
        bytes.extend(lun);
        bytes.extend(id.to_le_bytes());
        let request = self.alloc_with(&bytes);
        let response = self.alloc_with(&[0xee]);
        let sent = self.add(0, &[out(request, 24), into(response, 1)]);
        self.kick(0);
        assert_eq!(self.wait_used(0), (sent, 1));
        self.peek(response, 1)[0]
    }
}

/// The `lun` field of a unit as Linux fills it in.
pub fn lun(target: u8, lun: u8) -> [u8; 8] {
    [1, target, 0x40, lun, 0, 0, 0, 0]
}
