//! What an initiator was promised, whenever the power fails: through any transport.
//!
//! A test opens [`Outage::image`], puts it behind its adapter, has the adapter's I/O thread note what it does
//! ([`Io::record`]), and sends commands. The model of [`crate::testing::power`] says what a loss of power may leave.
//!
//! [`Io::record`]: crate::iothread::Io::record

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Initiator, Outcome, settle};
use crate::iothread::record::{Event, FileId, Recorder};
use crate::scsi::Image;
use crate::storage::{Backing, CacheMode, Qcow2Image, Qcow2Options, RawImage, RawOptions, Sharing};
use crate::testing::conformance::Random;
use crate::testing::power::{Ledger, Operation, Replay, SECTOR, State, Without, qcow2, stamped};

/// Sectors of the disk.
const SECTORS: u64 = 8192;
/// Commands of a recording.
const COMMANDS: u32 = 200;

/// When an initiator may count on a write that ended with GOOD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// After SYNCHRONIZE CACHE, or with FUA (SBC-4, 4.15).
    Flushed,
    /// At once: there is no write cache, as far as it is told.
    AtOnce,
}

/// An image in memory whose host may lose its power.
pub struct Outage {
    path: PathBuf,
    qcow2: bool,
    recorder: Recorder,
}

impl Outage {
    /// A new image of zeros; `None`, with a message, for qcow2 where qemu-img is missing.
    pub fn new(qcow2: bool) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("vmm-outage-{}-{number}", std::process::id()));
        let len = SECTORS * SECTOR as u64;
        let outage = Self { path, qcow2, recorder: Recorder::default() };
        if !qcow2 {
            File::create(&outage.path).unwrap().set_len(len).unwrap();
            return Some(outage);
        }
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k"]);
        let Ok(status) = command.arg(&outage.path).arg(len.to_string()).status() else {
            crate::testing::skipped("qemu-img is not installed");
            return None;
        };
        assert!(status.success());
        Some(outage)
    }

    /// The image, cached by the host. Open it once.
    pub fn image(&self) -> Arc<Image> {
        let (path, cache, sharing) = (self.path.clone(), CacheMode::Writeback, Sharing::Unlocked);
        Arc::new(if self.qcow2 {
            let backing = Backing::None;
            let options = Qcow2Options { path, read_only: false, cache, sharing, backing, discard: true };
            Image::Qcow2(Qcow2Image::open(&options).unwrap())
        } else {
            Image::Raw(RawImage::open(&RawOptions { path, read_only: false, cache, sharing }).unwrap())
        })
    }

    /// What notes what the adapter's I/O thread does.
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// Sends commands: WRITE (10), WRITE SAME (16), UNMAP and SYNCHRONIZE CACHE (10). The image must be open.
    pub fn use_disk(&self, initiator: &mut dyn Initiator, promise: Promise, seed: u64) -> History {
        settle(initiator);
        // What comes first does not change the image.
        let start = State::of(&std::fs::read(&self.path).unwrap());
        drop(self.recorder.take());
        let meta = std::fs::metadata(&self.path).unwrap();
        let ledger = Ledger::new(self.recorder.clone());
        let mut client = Client { initiator, promise, ledger, random: Random::new(seed) };
        (0..COMMANDS).for_each(|_| client.step());
        let ledger = client.ledger;
        let file = (meta.dev(), meta.ino());
        History { start, file, events: self.recorder.take(), ledger, qcow2: self.qcow2 }
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

struct Client<'a> {
    initiator: &'a mut dyn Initiator,
    promise: Promise,
    ledger: Ledger,
    random: Random,
}

impl Client<'_> {
    fn step(&mut self) {
        let count = 1 + self.random.below([1, 8, 40][self.random.clone().below(3) as usize]);
        // Few places, so that they are written again and again.
        let first = self.random.below(4) * 1900 + self.random.below(200);
        let (lba, blocks) = ((first as u32).to_be_bytes(), (count as u16).to_be_bytes());
        let at = [lba[0], lba[1], lba[2], lba[3]];
        match self.random.below(12) {
            kind @ 0..7 => {
                let stamp = self.ledger.stamp();
                let data: Vec<u8> =
                    (first..first + count).flat_map(|sector| stamped(sector, stamp)).collect();
                let fua = if kind == 0 { 0x08 } else { 0 };
                let cdb = [0x2a, fua, at[0], at[1], at[2], at[3], 0, blocks[0], blocks[1], 0];
                self.write(Operation::Write { first, count, stamp }, &cdb, &data, kind == 0);
            }
            7 => {
                // WRITE SAME (16) with UNMAP.
                let mut cdb = [0; 16];
                (cdb[0], cdb[1]) = (0x93, 0x08);
                cdb[6..10].copy_from_slice(&at);
                cdb[12..14].copy_from_slice(&blocks);
                self.write(Operation::Write { first, count, stamp: 0 }, &cdb, &[0; SECTOR], false);
            }
            8 => {
                // UNMAP of one range.
                let mut list = vec![0; 24];
                (list[1], list[3]) = (22, 16);
                list[12..16].copy_from_slice(&at);
                list[18..20].copy_from_slice(&blocks);
                let cdb = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
                self.write(Operation::Write { first, count, stamp: 0 }, &cdb, &list, false);
            }
            _ => self.synchronize(),
        }
    }

    fn write(&mut self, operation: Operation, cdb: &[u8], data: &[u8], fua: bool) {
        let ticket = self.ledger.begin(operation);
        let Outcome { status, sense, .. } = self.initiator.command(cdb, data, 0);
        assert_eq!((status, &sense[..]), (0, &[][..]), "CDB {cdb:02x?}");
        self.ledger.end(ticket, fua || self.promise == Promise::AtOnce);
    }

    fn synchronize(&mut self) {
        let ticket = self.ledger.begin(Operation::Flush);
        let outcome = self.initiator.command(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0);
        assert_eq!(outcome.status, 0, "SYNCHRONIZE CACHE: {outcome:02x?}");
        self.ledger.end(ticket, true);
    }
}

/// What happened, and what was told.
pub struct History {
    start: State,
    file: FileId,
    events: Vec<Event>,
    ledger: Ledger,
    qcow2: bool,
}

impl History {
    /// Models losses of power, `each` at every moment; the error says which promise was broken.
    pub fn survives(&self, each: u32, without: Without) -> Result<u32, String> {
        let mut random = Random::new(7);
        let mut replay = Replay::new(self.file, self.start.clone(), without);
        let sectors: Vec<u64> = self.ledger.touched().collect();
        let mut count = 0;
        for (moment, event) in (1..).zip(&self.events) {
            replay.step(event);
            for _ in 0..each {
                let state = replay.crash(&mut random);
                let told = |fault| format!("after {moment} of {} events: {fault}", self.events.len());
                self.look(moment, &state, &sectors).map_err(told)?;
                count += 1;
            }
        }
        Ok(count)
    }

    fn look(&self, moment: usize, state: &State, sectors: &[u64]) -> Result<(), String> {
        let image = if self.qcow2 { Some(qcow2::Image::check(state)?) } else { None };
        for sector in sectors {
            let found = match &image {
                None => qcow2::raw_stamp(state, *sector)?,
                Some(image) => match image.stamp(*sector)? {
                    qcow2::Found::Stamp(stamp) => stamp,
                    _ => 0,
                },
            };
            self.ledger.check(moment, *sector, found, 0)?;
        }
        Ok(())
    }
}
