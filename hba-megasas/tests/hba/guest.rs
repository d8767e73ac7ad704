//! A guest driver for tests: configuration space, registers, and frames in guest RAM.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::iothread::IoThread;
use devices::scsi::suite::{self, RecordingDisk};
use devices::scsi::{Disk, DiskConfig, Image, LogicalUnit, Lun, Nexus, Target, TransferLimits};
use devices::testing::pci::{TestSeat, find_capability, set_config_dword, set_config_word};
use hba_megasas::{Differences, Drive, EventStore, Megasas, Model, Options};
use vm_memory::{Bytes, GuestAddress};

pub const RAM: usize = 48 << 20;
/// Where frames and buffers go; what is above is for tests that name memory themselves.
pub const HEAP: u64 = 0x10_0000;
const HEAP_END: u64 = 0x200_0000;
const BAR: u64 = 0xc000_0000;
const PORTS: u64 = 0xc000;
pub const MSI_ADDRESS: u64 = 0xfee0_1000;
const PATIENCE: Duration = Duration::from_secs(10);

pub const QUEUE_INFO: u64 = 0x1000;
pub const PRODUCER: u64 = 0x1100;
pub const CONSUMER: u64 = 0x1104;
pub const RING: u64 = 0x8000;

/// Flags of a frame.
pub const DONT_POST: u16 = 1;
pub const SGL64: u16 = 2;
pub const IEEE: u16 = 0x20;

pub struct Guest {
    pub seat: TestSeat,
    pub hba: Arc<Megasas>,
    pub model: Model,
    pub entries: u32,
    pub consumer: u32,
    pub heap: u64,
    pub images: BTreeMap<u8, Arc<Image>>,
    // Last: the HBA goes first.
    pub _thread: IoThread,
}

/// A frame to be sent.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    pub bytes: Vec<u8>,
    pub sges: Vec<(u64, u32)>,
    pub list_at: usize,
}

impl Frame {
    pub fn new(cmd: u8, list_at: usize) -> Self {
        let mut bytes = vec![0; 64];
        bytes[0] = cmd;
        bytes[2] = 0xff;
        Self { bytes, sges: Vec::new(), list_at }
    }
    pub fn put(mut self, at: usize, data: &[u8]) -> Self {
        self.bytes[at..at + data.len()].copy_from_slice(data);
        self
    }
    pub fn flags(self, flags: u16) -> Self {
        self.put(0x10, &flags.to_le_bytes())
    }
    pub fn context(self, context: u32) -> Self {
        self.put(8, &context.to_le_bytes())
    }
    pub fn target(self, target: u8) -> Self {
        self.put(4, &[target])
    }
    pub fn len(self, len: u32) -> Self {
        self.put(0x14, &len.to_le_bytes())
    }
    pub fn sge(mut self, addr: u64, len: u32) -> Self {
        self.sges.push((addr, len));
        self
    }
    pub fn dcmd(opcode: u32, mailbox: &[u8]) -> Self {
        Self::new(5, 0x28).put(0x18, &opcode.to_le_bytes()).put(0x1c, mailbox)
    }
    pub fn scsi(cmd: u8, target: u8, cdb: &[u8]) -> Self {
        Self::new(cmd, 0x30).target(target).put(6, &[cdb.len() as u8]).put(0x20, cdb)
    }
    pub fn io(write: bool, target: u8, lba: u64, blocks: u32) -> Self {
        Self::new(if write { 2 } else { 1 }, 0x28).target(target).len(blocks).put(0x20, &lba.to_le_bytes())
    }
    /// The bytes as they lie in memory.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[7] = self.sges.len() as u8;
        let flags = u16::from_le_bytes([bytes[0x10], bytes[0x11]]);
        let mut at = self.list_at;
        bytes.resize(bytes.len().max(at + 16 * self.sges.len()), 0);
        for (addr, len) in &self.sges {
            let mut element = Vec::new();
            if flags & (SGL64 | IEEE) != 0 {
                element.extend(addr.to_le_bytes());
                element.extend(len.to_le_bytes());
                if flags & IEEE != 0 {
                    element.extend([0; 4]);
                }
            } else {
                element.extend((*addr as u32).to_le_bytes());
                element.extend(len.to_le_bytes());
            }
            bytes[at..at + element.len()].copy_from_slice(&element);
            at += element.len();
        }
        bytes
    }
}

/// How a frame came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u8,
    pub scsi_status: u8,
    pub sense: Vec<u8>,
    pub data: Vec<u8>,
}

pub fn options(model: Model) -> Options {
    Options {
        model,
        serial: "SV1234567".into(),
        sas_address: 0x5006_05b0_0000_1230,
        write_back: false,
        differences: Differences::default(),
    }
}

fn nexus(image: &Arc<Image>, config: DiskConfig) -> Arc<Nexus> {
    let target = Target::new();
    let disk = LogicalUnit::Disk(Disk::new(image.clone(), config).unwrap());
    target.attach(Lun([0; 8]), disk).unwrap();
    Nexus::new(target, None)
}

/// A disk of the suite: behind a volume or as itself.
pub fn drive(image: &Arc<Image>, raid: bool) -> Drive {
    let volume =
        DiskConfig { vendor: "LSI".into(), product: "MR9260-8i".into(), wwn: None, ..suite::config() };
    Drive { logical: raid.then(|| nexus(image, volume)), physical: nexus(image, suite::config()) }
}

/// A volume that shows what the suite expects of a disk.
pub fn suite_drive(image: &Arc<Image>) -> Drive {
    Drive { logical: Some(nexus(image, suite::config())), physical: nexus(image, suite::config()) }
}

pub fn image() -> Arc<Image> {
    Arc::new(Image::Recording(suite::image()))
}

impl Guest {
    pub fn new(model: Model, raid: bool, ids: &[u8]) -> Self {
        let images: BTreeMap<u8, _> = ids.iter().map(|&id| (id, image())).collect();
        let drives = images.iter().map(|(&id, image)| (id, drive(image, raid))).collect();
        Self::with(options(model), drives, images)
    }

    pub fn with(options: Options, drives: BTreeMap<u8, Drive>, images: BTreeMap<u8, Arc<Image>>) -> Self {
        Self::on(IoThread::start("io").unwrap(), options, drives, images)
    }

    /// As [`Self::with`], on this thread.
    pub fn on(
        thread: IoThread,
        options: Options,
        drives: BTreeMap<u8, Drive>,
        images: BTreeMap<u8, Arc<Image>>,
    ) -> Self {
        Self::kept_by(None, thread, options, drives, images)
    }

    /// As [`Self::on`], with events and settings in this store.
    pub fn kept_by(
        store: Option<Box<dyn EventStore>>,
        thread: IoThread,
        options: Options,
        drives: BTreeMap<u8, Drive>,
        images: BTreeMap<u8, Arc<Image>>,
    ) -> Self {
        Self::limited(store, thread, options, TransferLimits::default(), drives, images)
    }

    /// As [`Self::kept_by`], with devices of the host behind it that take this much at once.
    pub fn limited(
        store: Option<Box<dyn EventStore>>,
        thread: IoThread,
        options: Options,
        transfer: TransferLimits,
        drives: BTreeMap<u8, Drive>,
        images: BTreeMap<u8, Arc<Image>>,
    ) -> Self {
        let seat = TestSeat::new(RAM);
        let (model, remote) = (options.model, thread.remote());
        let hba = Megasas::with_limits(seat.seat.clone(), BTreeMap::new(), remote, options, store, transfer)
            .unwrap();
        // As the machine does it.
        for (id, drive) in drives {
            hba.attach_drive(id, drive).unwrap();
        }
        let guest = Self { seat, hba, model, entries: 0, consumer: 0, heap: HEAP, images, _thread: thread };
        guest.place();
        guest
    }

    /// What firmware does: BARs placed, memory, ports and bus mastering on.
    pub fn place(&self) {
        let (memory, ports) = if self.model == Model::Gen2 { (0x14, 0x10) } else { (0x10, 0x18) };
        set_config_dword(&*self.hba, memory, BAR as u32);
        if self.model == Model::Sas1078 {
            set_config_dword(&*self.hba, memory + 4, 0);
        }
        set_config_dword(&*self.hba, ports, PORTS as u32);
        set_config_word(&*self.hba, 4, 7);
    }

    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.seat.memory.read(BAR + offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, offset: u64, value: u32) {
        self.seat.memory.write(BAR + offset, &value.to_le_bytes());
    }

    pub fn inp(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.seat.ports.read(PORTS + offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn outp(&self, offset: u64, value: u32) {
        self.seat.ports.write(PORTS + offset, &value.to_le_bytes());
    }

    pub fn raw_write(&self, offset: u64, data: &[u8]) {
        self.seat.memory.write(BAR + offset, data);
    }

    pub fn state(&self) -> u32 {
        self.read(0xb0) >> 28
    }

    pub fn reply_bit(&self) -> u32 {
        if self.model == Model::Gen2 { 1 } else { 0x8000_0000 }
    }

    pub fn recording(&self, id: u8) -> &RecordingDisk {
        match &*self.images[&id] {
            Image::Recording(image) => image,
            #[allow(unreachable_patterns)]
            _ => panic!("not a recording image"),
        }
    }

    pub fn wait_for(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "waited too long: {what}");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    pub fn wait_ready(&self) {
        self.wait_for("READY", || self.state() == 0xb);
    }

    /// Memory of `len` bytes at a multiple of 256.
    pub fn alloc(&mut self, len: usize) -> u64 {
        let addr = self.heap;
        self.heap += (len as u64 + 0x1ff) & !0xff;
        if self.heap > HEAP_END {
            self.heap = HEAP;
            return self.alloc(len);
        }
        addr
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

    pub fn word(&self, addr: u64) -> u32 {
        u32::from_le_bytes(self.peek(addr, 4).try_into().unwrap())
    }

    /// Lays a frame out; returns where.
    pub fn lay(&mut self, frame: &Frame) -> u64 {
        self.alloc_with(&frame.encode())
    }

    pub fn fire(&self, address: u64) {
        self.write(0x40, address as u32 | 1);
    }

    /// Sends a frame and returns its address.
    pub fn send(&mut self, frame: &Frame) -> u64 {
        let address = self.lay(frame);
        self.fire(address);
        address
    }

    pub fn status_of(&self, address: u64) -> u8 {
        self.peek(address + 2, 1)[0]
    }

    pub fn wait_frame(&self, address: u64) -> u8 {
        self.wait_for("frame", || self.status_of(address) != 0xff);
        self.status_of(address)
    }

    /// Polls a frame as drivers do before they have a ring.
    pub fn poll(&mut self, frame: Frame) -> u8 {
        let flags = u16::from_le_bytes([frame.bytes[0x10], frame.bytes[0x11]]) | DONT_POST;
        let address = self.send(&frame.flags(flags));
        self.wait_frame(address)
    }

    /// A polled DCMD with a buffer of `len` bytes that holds `fill` before.
    pub fn dcmd(&mut self, opcode: u32, mailbox: &[u8], len: usize) -> (u8, Vec<u8>) {
        self.dcmd_with(opcode, mailbox, &vec![0xcc; len])
    }

    pub fn dcmd_with(&mut self, opcode: u32, mailbox: &[u8], input: &[u8]) -> (u8, Vec<u8>) {
        let mut frame = Frame::dcmd(opcode, mailbox).len(input.len() as u32);
        let at = self.alloc_with(input);
        if !input.is_empty() {
            frame = frame.sge(at, input.len() as u32);
        }
        let status = self.poll(frame);
        (status, self.peek(at, input.len()))
    }

    /// A polled SCSI command; `cmd` is 3 for logical and 4 for physical drives.
    pub fn scsi(&mut self, cmd: u8, target: u8, cdb: &[u8], out: &[u8], len: usize) -> Reply {
        let data = if out.is_empty() { vec![suite::FILL; len] } else { out.to_vec() };
        let at = self.alloc_with(&data);
        let sense = self.alloc_with(&[0; 252]);
        let mut frame = Frame::scsi(cmd, target, cdb).len(data.len() as u32).put(1, &[252]);
        frame = frame.put(0x18, &sense.to_le_bytes());
        if !data.is_empty() {
            frame = frame.sge(at, data.len() as u32);
        }
        let address = self.send(&frame.flags(DONT_POST));
        let status = self.wait_frame(address);
        let header = self.peek(address, 4);
        let sense = if status == 0x2d { self.peek(sense, header[1].into()) } else { Vec::new() };
        Reply { status, scsi_status: header[3], sense, data: self.peek(at, data.len()) }
    }

    /// Reads or writes blocks of a logical drive, polled.
    pub fn io(&mut self, write: bool, target: u8, lba: u64, data: &[u8]) -> (u8, Vec<u8>) {
        let at = self.alloc_with(data);
        let frame = Frame::io(write, target, lba, (data.len() / 512) as u32).sge(at, data.len() as u32);
        let status = self.poll(frame);
        (status, self.peek(at, data.len()))
    }

    /// INIT with a ring of `entries`; zeroes both indices as drivers do.
    pub fn init(&mut self, entries: u32) -> u8 {
        self.init_flags(entries, 0)
    }

    pub fn init_flags(&mut self, entries: u32, flags: u32) -> u8 {
        self.poke(PRODUCER, &[0; 8]);
        let mut info = Vec::new();
        info.extend(flags.to_le_bytes());
        info.extend(entries.to_le_bytes());
        for address in [RING, PRODUCER, CONSUMER] {
            info.extend(address.to_le_bytes());
        }
        self.poke(QUEUE_INFO, &info);
        self.entries = entries;
        self.consumer = 0;
        self.poll(Frame::new(0, 0x28).put(0x18, &QUEUE_INFO.to_le_bytes()).len(32))
    }

    /// The next posted context, if there is one.
    pub fn reply(&mut self) -> Option<u32> {
        if self.word(PRODUCER) == self.consumer {
            return None;
        }
        let context = self.word(RING + 4 * u64::from(self.consumer));
        self.consumer = (self.consumer + 1) % self.entries;
        self.poke(CONSUMER, &self.consumer.to_le_bytes());
        Some(context)
    }

    pub fn wait_reply(&mut self) -> u32 {
        let start = Instant::now();
        loop {
            if let Some(context) = self.reply() {
                return context;
            }
            assert!(start.elapsed() < PATIENCE, "nothing posted");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    pub fn expect_silence(&mut self) {
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(self.reply(), None);
    }

    /// As Linux and FreeBSD enable interrupts.
    pub fn enable_interrupts(&self) {
        self.write(0xa0, u32::MAX);
        self.write(0x34, if self.model == Model::Gen2 { !5 } else { !0x8000_0000 });
        self.read(0x34);
    }

    pub fn enable_msix(&self) {
        let cap = find_capability(&*self.hba, 0x11).unwrap();
        for (i, word) in [MSI_ADDRESS as u32, 0, 0x41, 0].into_iter().enumerate() {
            self.seat.memory.write(BAR + 0x2000 + 4 * i as u64, &word.to_le_bytes());
        }
        set_config_word(&*self.hba, cap + 2, 0x8000);
    }

    pub fn enable_msi(&self) {
        let cap = find_capability(&*self.hba, 0x05).unwrap();
        set_config_dword(&*self.hba, cap + 4, MSI_ADDRESS as u32);
        set_config_word(&*self.hba, cap + 12, 0x42);
        set_config_word(&*self.hba, cap + 2, 1);
    }

    /// The six keys, then the reset bit; as Linux on gen2.
    pub fn adapter_reset(&self) {
        for key in [0, 4, 0xb, 2, 7, 0xd] {
            self.write(0xfc, key);
        }
        let diag = self.read(0xf8);
        assert_eq!(diag & 0x80, 0x80);
        self.write(0xf8, diag | 4);
        self.wait_for("adapter reset", || self.read(0xf8) & 4 == 0);
    }

    /// A read of one block that the image holds back; returns its frame and buffer.
    pub fn held_read(&mut self, target: u8, context: u32) -> (u64, u64) {
        self.recording(target).hold(true);
        let before = self.recording(target).arrived();
        let data = self.alloc_with(&[0xdd; 512]);
        let frame = Frame::io(false, target, 0, 1).context(context).sge(data, 512);
        let address = self.send(&frame);
        self.wait_for("held read", || self.recording(target).arrived() > before);
        (address, data)
    }
}

pub fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

pub fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
