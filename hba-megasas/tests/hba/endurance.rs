//! Many reads and writes at depth 256 on a file, as Linux's driver sends them: driven by interrupts alone, the ring
//! round and round, and every block that comes back compared.
//!
//! `COMMANDS` says how many of each kind; `cargo ci` runs fewer than the million this is made for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::scsi::{Disk, DiskConfig, Image, LogicalUnit, Lun, Nexus, Target};
use devices::storage::{CacheMode, RawImage, RawOptions, Sharing};
use hba_megasas::{Drive, Model};

use crate::guest::{Frame, Guest, IEEE, SGL64, options};

const DEPTH: u32 = 256;
const LEN: usize = 4096;
const BLOCKS: u64 = (LEN / 512) as u64;
/// Places of its own that each command slot reads and writes.
const PLACES: u64 = 16;
/// Commands in an ordinary run.
const COMMANDS: u32 = 30_000;

fn commands() -> u32 {
    std::env::var("COMMANDS").ok().and_then(|text| text.parse().ok()).unwrap_or(COMMANDS)
}

fn file_drive(file: &tempfile::NamedTempFile) -> Drive {
    file.as_file().set_len(u64::from(DEPTH) * PLACES * LEN as u64).unwrap();
    let raw = RawOptions {
        path: file.path().into(),
        read_only: false,
        cache: CacheMode::Writeback,
        sharing: Sharing::default(),
    };
    let image = Arc::new(Image::Raw(RawImage::open(&raw).unwrap()));
    let nexus = || {
        let target = Target::new();
        let disk = Disk::new(image.clone(), DiskConfig::default()).unwrap();
        target.attach(Lun::default(), LogicalUnit::Disk(disk)).unwrap();
        Nexus::new(target, None)
    };
    Drive { logical: Some(nexus()), physical: nexus() }
}

/// One command of the driver.
struct Slot {
    frame: u64,
    data: u64,
    /// How often each place was written.
    written: [u32; PLACES as usize],
    place: usize,
    write: bool,
    busy: bool,
}

/// What is at a place after so many writes.
fn pattern(slot: u32, place: usize, count: u32) -> Vec<u8> {
    let word = u64::from(slot) << 40 | (place as u64) << 32 | u64::from(count);
    (0..LEN as u64 / 8)
        .flat_map(|at| if count == 0 { [0; 8] } else { (word ^ at << 48).to_le_bytes() })
        .collect()
}

struct Driver {
    guest: Guest,
    slots: Vec<Slot>,
    random: u64,
    flags: u16,
}

impl Driver {
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn submit(&mut self, index: u32) {
        let random = self.next();
        let slot = &mut self.slots[index as usize];
        assert!(!slot.busy);
        (slot.place, slot.write, slot.busy) =
            ((random >> 8) as usize % PLACES as usize, random & 1 == 1, true);
        if slot.write {
            slot.written[slot.place] += 1;
            let data = pattern(index, slot.place, slot.written[slot.place]);
            self.guest.poke(slot.data, &data);
        } else {
            self.guest.poke(slot.data, &[0xee; LEN]);
        }
        let lba = (u64::from(index) * PLACES + slot.place as u64) * BLOCKS;
        let frame = Frame::io(slot.write, 0, lba, BLOCKS as u32).context(index).flags(self.flags);
        let bytes = frame.sge(slot.data, LEN as u32).encode();
        self.guest.poke(slot.frame, &bytes);
        self.guest.fire(slot.frame);
    }

    fn finish(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        assert!(std::mem::take(&mut slot.busy), "completed without being sent, or twice");
        assert_eq!(self.guest.status_of(slot.frame), 0);
        if !slot.write {
            let data = self.guest.peek(slot.data, LEN);
            assert!(
                data == pattern(index, slot.place, slot.written[slot.place]),
                "read what was not written"
            );
        }
    }

    fn wait_for_interrupt(&self) {
        let start = Instant::now();
        loop {
            let came = if self.guest.model == Model::Gen2 {
                !self.guest.seat.msi.take().is_empty()
            } else {
                self.guest.seat.intx.is_high()
            };
            if came {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "an interrupt is missing");
            std::thread::yield_now();
        }
    }
}

fn endure(model: Model) {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    let drives = std::iter::once((0, file_drive(&file))).collect();
    let mut guest = Guest::with(options(model), drives, Default::default());
    let entries = if model == Model::Gen2 { 1008 } else { 1000 };
    assert_eq!(guest.init(entries), 0);
    if model == Model::Gen2 {
        guest.enable_msix();
    }
    guest.enable_interrupts();
    let slot = |guest: &mut Guest| Slot {
        frame: guest.alloc(256),
        data: guest.alloc(LEN),
        written: [0; PLACES as usize],
        place: 0,
        write: false,
        busy: false,
    };
    let slots = (0..DEPTH).map(|_| slot(&mut guest)).collect();
    let flags = if model == Model::Gen2 { IEEE | SGL64 } else { SGL64 };
    let mut driver = Driver { guest, slots, random: 0x9e37_79b9_7f4a_7c15, flags };
    let total = commands();
    let (mut sent, mut done, mut interrupts) = (0, 0, 0_u32);
    let start = Instant::now();
    while sent < DEPTH {
        driver.submit(sent);
        sent += 1;
    }
    while done < total {
        driver.wait_for_interrupt();
        interrupts += 1;
        // The order of the drivers: acknowledge, then look.
        let status = driver.guest.read(0x30);
        driver.guest.write(0xa0, status);
        while let Some(index) = driver.guest.reply() {
            driver.finish(index);
            done += 1;
            if sent < total {
                driver.submit(index);
                sent += 1;
            }
        }
    }
    assert_eq!(done, total);
    assert!(driver.slots.iter().all(|slot| !slot.busy));
    println!("{model:?}: {total} commands, {interrupts} interrupts, {:.1?}", start.elapsed());
}

#[test]
fn gen2_with_msix() {
    endure(Model::Gen2);
}

#[test]
fn sas1078_with_the_wire() {
    endure(Model::Sas1078);
}
