//! Initiators that remember what they wrote, over real images, with and without a host that misbehaves.
//!
//! Every sector holds a stamp of its write. What was acknowledged must be there; a sector of a write that failed has the
//! old or the new bytes, and from the first look on the same ones.

use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::local::{disk_of, target_of};
use super::request::{Request, check_reply};
use super::{DiskConfig, FILL, config};
use crate::iothread::mischief::{self, Host};
use crate::iothread::{Io, TaskPool};
use crate::scsi::{Image, Lun, Nexus, ScsiReply, Status, TaskAttribute};
use crate::storage::{CacheMode, OpenError, Qcow2Image, Qcow2Options, RawImage, RawOptions, Sharing};
use crate::testing::conformance::Random;
use crate::testing::{on_io_thread, temp_dir, temp_file};

const SECTOR: usize = 512;
/// Bytes that one initiator has for itself.
const REGION: u64 = 1 << 20;
const INITIATORS: u64 = 8;
const LEN: u64 = REGION * INITIATORS;

/// What a sector may hold: stamps, 0 for zeros.
type Sector = Vec<u64>;

fn fill(sector: u64, stamp: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if stamp != 0 {
        let mut random = Random::new(stamp << 20 ^ sector);
        bytes.chunks_mut(8).for_each(|part| part.copy_from_slice(&random.below(1 << 56).to_le_bytes()));
        bytes[..8].copy_from_slice(&stamp.to_le_bytes());
    }
    bytes
}

/// One initiator with its part of the disk.
struct Initiator {
    nexus: Arc<Nexus>,
    io: Io,
    block: u64,
    /// The first sector of its part.
    first: u64,
    sectors: Vec<Sector>,
    random: Random,
    stamp: u64,
    failed: u32,
}

impl Initiator {
    fn new(nexus: &Arc<Nexus>, io: &Io, number: u64, block: u64, seed: u64) -> Self {
        Self {
            nexus: nexus.clone(),
            io: io.clone(),
            block,
            first: number * REGION / SECTOR as u64,
            sectors: vec![vec![0]; (REGION / SECTOR as u64) as usize],
            random: Random::new(seed * 1000 + number + 1),
            stamp: number << 32,
            failed: 0,
        }
    }

    async fn send(&self, cdb: &[u8], data_out: &[u8], data_in_len: usize) -> (ScsiReply, Vec<u8>) {
        let mut request = Request::new(cdb, data_out, data_in_len);
        request.attribute = TaskAttribute::Simple;
        let (reply, data_in) = request.send(&self.nexus, &self.io).await;
        let reply = reply.unwrap();
        // A read that fails on the way leaves what came before, whatever the residual says.
        let untouched = vec![FILL; data_in_len];
        let seen = if reply.status == Status::Good { &data_in } else { &untouched };
        check_reply(cdb, data_out.len(), seen, &reply);
        (reply, data_in)
    }

    /// A 16-byte CDB for a range of sectors of this part.
    fn cdb(&self, opcode: u8, flags: u8, at: usize, count: usize) -> [u8; 16] {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1]) = (opcode, flags);
        let per_block = self.block / SECTOR as u64;
        cdb[2..10].copy_from_slice(&((self.first + at as u64) / per_block).to_be_bytes());
        cdb[10..14].copy_from_slice(&((count as u64 / per_block) as u32).to_be_bytes());
        cdb
    }

    /// A range of whole blocks.
    fn range(&mut self) -> (usize, usize) {
        let per_block = (self.block as usize) / SECTOR;
        let blocks = self.sectors.len() / per_block;
        let count = 1 + self.random.below([8, 64, 200][self.random.clone().below(3) as usize]) as usize;
        let count = count.min(blocks);
        let at = self.random.below((blocks - count + 1) as u64) as usize;
        (at * per_block, count * per_block)
    }

    /// The reply to something that writes: afterwards the sectors hold `stamp`, or perhaps so.
    fn wrote(&mut self, reply: &ScsiReply, at: usize, count: usize, stamp: u64) {
        let good = reply.status == Status::Good;
        if !good {
            self.failed += 1;
            let sense = reply.sense.unwrap();
            let bytes = sense.as_bytes();
            let code = (bytes[2] & 0x0f, bytes[12], bytes[13]);
            // WRITE ERROR; SPACE ALLOCATION FAILED WRITE PROTECT; INTERNAL TARGET FAILURE.
            assert!(matches!(code, (3, 0x0c, 0x00) | (7, 0x27, 0x07) | (4, 0x44, 0x00)), "{code:x?}");
        }
        for sector in &mut self.sectors[at..at + count] {
            if good {
                sector.clear();
            }
            if !sector.contains(&stamp) {
                sector.push(stamp);
            }
        }
    }

    async fn step(&mut self) {
        let (at, count) = self.range();
        self.stamp += 1;
        let stamp = self.stamp;
        let fua = if self.random.below(8) == 0 { 0x08 } else { 0 };
        match self.random.below(16) {
            0..6 => {
                let data: Vec<u8> =
                    (at..at + count).flat_map(|n| fill(self.first + n as u64, stamp)).collect();
                let (reply, _) = self.send(&self.cdb(0x8a, fua, at, count), &data, 0).await;
                self.wrote(&reply, at, count, stamp);
            }
            6..12 => self.look(at, count).await,
            12 => {
                // WRITE SAME (16) with UNMAP and NDOB: zeros.
                let (reply, _) = self.send(&self.cdb(0x93, 0x09, at, count), &[], 0).await;
                self.wrote(&reply, at, count, 0);
            }
            13 => {
                let cdb = self.cdb(0, 0, at, count);
                let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
                list.extend(&cdb[2..14]);
                list.extend([0; 4]);
                let (reply, _) = self.send(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list, 0).await;
                self.wrote(&reply, at, count, 0);
            }
            14 => {
                // WRITE AND VERIFY (16), bytes compared.
                let data: Vec<u8> =
                    (at..at + count).flat_map(|n| fill(self.first + n as u64, stamp)).collect();
                let (reply, _) = self.send(&self.cdb(0x8e, 0x02, at, count), &data, 0).await;
                if reply.status == Status::CheckCondition
                    && matches!(reply.sense.unwrap().as_bytes()[2] & 0x0f, 0x3)
                    && reply.sense.unwrap().as_bytes()[12] == 0x11
                {
                    // Written, but not read back.
                    self.failed += 1;
                    self.sectors[at..at + count].iter_mut().for_each(|sector| sector.push(stamp));
                } else {
                    self.wrote(&reply, at, count, stamp);
                }
            }
            _ => {
                let (reply, _) = self.send(&self.cdb(0x91, 0, at, count), &[], 0).await;
                self.failed += u32::from(reply.status != Status::Good);
            }
        }
    }

    /// Reads and compares.
    async fn look(&mut self, at: usize, count: usize) {
        let (reply, data) = self.send(&self.cdb(0x88, 0, at, count), &[], count * SECTOR).await;
        if reply.status != Status::Good {
            self.failed += 1;
            let sense = reply.sense.unwrap();
            let code = (sense.as_bytes()[2] & 0x0f, sense.as_bytes()[12], sense.as_bytes()[13]);
            // UNRECOVERED READ ERROR; INTERNAL TARGET FAILURE.
            assert!(matches!(code, (3, 0x11, 0x00) | (4, 0x44, 0x00)), "{code:x?}");
            return;
        }
        for (n, bytes) in (at..at + count).zip(data.chunks(SECTOR)) {
            let place = self.first + n as u64;
            let held = self.sectors[n].iter().copied().find(|stamp| fill(place, *stamp) == bytes);
            let Some(held) = held else {
                panic!("sector {place} holds {:02x?}, none of {:x?}", &bytes[..16], self.sectors[n]);
            };
            self.sectors[n] = vec![held];
        }
    }

    async fn look_at_all(&mut self) {
        let all = self.sectors.len();
        for at in (0..all).step_by(256) {
            let failed = self.failed;
            self.look(at, 256.min(all - at)).await;
            assert_eq!(self.failed, failed, "the host works again");
        }
    }
}

/// Runs all initiators at once, then with a good host looks at everything.
/// Returns how many commands failed.
fn run(image: Image, block: u32, steps: u32, seed: u64, host: Host) -> (u32, Vec<Vec<Sector>>) {
    on_io_thread(move |io| async move {
        let config = DiskConfig { block_size: block, discard: true, ..config() };
        let target = target_of(disk_of(Arc::new(image), config));
        let nexus = Nexus::new(target.clone(), None);
        let _ = Request::new(&[0; 6], &[], 0).send(&nexus, &io).await;
        io.plot(mischief::host(host, seed));
        let pool = TaskPool::new(&io, INITIATORS as usize);
        let ended = Rc::new(std::cell::RefCell::new(Vec::new()));
        for number in 0..INITIATORS {
            let mut initiator = Initiator::new(&nexus, &io, number, u64::from(block), seed);
            let ended = ended.clone();
            let task = async move {
                for _ in 0..steps {
                    initiator.step().await;
                }
                ended.borrow_mut().push(initiator);
            };
            assert!(pool.spawn(task).is_ok());
        }
        pool.drained().await;
        io.repent();
        let mut initiators = ended.take();
        assert_eq!(initiators.len(), INITIATORS as usize);
        for initiator in &mut initiators {
            initiator.look_at_all().await;
        }
        initiators.sort_by_key(|initiator| initiator.first);
        let disk = target.detach(Lun::default()).await.expect("a disk");
        disk.close(&io).await.unwrap();
        let failed = initiators.iter().map(|initiator| initiator.failed).sum();
        (failed, initiators.into_iter().map(|initiator| initiator.sectors).collect())
    })
}

/// Looks at an image that was closed and opened again.
fn look_again(image: Image, block: u32, sectors: Vec<Vec<Sector>>) {
    on_io_thread(move |io| async move {
        let config = DiskConfig { block_size: block, ..config() };
        let nexus = Nexus::new(target_of(disk_of(Arc::new(image), config)), None);
        let _ = Request::new(&[0; 6], &[], 0).send(&nexus, &io).await;
        for (number, sectors) in sectors.into_iter().enumerate() {
            let mut initiator = Initiator::new(&nexus, &io, number as u64, u64::from(block), 1);
            initiator.sectors = sectors;
            initiator.look_at_all().await;
        }
    });
}

/// A process that another test is about to start has our open files, locks included, until it becomes its program.
fn patiently<T>(open: impl Fn() -> Result<T, OpenError>) -> T {
    let patience = Instant::now() + Duration::from_secs(5);
    loop {
        match open() {
            Ok(image) => return image,
            Err(e) if e.message.contains("in use by") && Instant::now() < patience => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(e) => panic!("{e}"),
        }
    }
}

fn raw(path: &Path, cache: CacheMode) -> Image {
    let options = RawOptions { path: path.into(), read_only: false, cache, sharing: Sharing::Exclusive };
    Image::Raw(patiently(|| RawImage::open(&options)))
}

fn qcow2(path: &Path) -> Image {
    let options = Qcow2Options {
        path: path.into(),
        read_only: false,
        cache: CacheMode::Writeback,
        sharing: Sharing::Exclusive,
        discard: true,
        backing: Default::default(),
    };
    Image::Qcow2(patiently(|| Qcow2Image::open(&options)))
}

fn over_raw(steps: u32, host: fn(u64) -> Host) {
    let caches = [CacheMode::None, CacheMode::Writeback, CacheMode::Writethrough];
    for (seed, cache) in caches.into_iter().enumerate() {
        for block in [512, 4096] {
            let file = temp_file();
            file.as_file().set_len(LEN).unwrap();
            // Direct I/O moves whole blocks.
            let host = host(if cache == CacheMode::None { 4096 } else { 1 });
            let (failed, sectors) = run(raw(file.path(), cache), block, steps, seed as u64 + 1, host);
            println!("raw, {cache}, {block}, {host:?}: {failed} commands failed");
            assert_eq!(failed > 0, matches!(host, Host::Bad(_)));
            look_again(raw(file.path(), cache), block, sectors);
        }
    }
}

fn over_qcow2(steps: u32, host: Host) {
    let dir = temp_dir();
    let img = |args: &[&str]| {
        let out = Command::new("qemu-img").args(args).current_dir(dir.path()).output().ok()?;
        let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Some((out.status.code(), text.concat()))
    };
    // The kernel lets go of a file, and with it of its lock, a little after the ring that used it.
    let check = || {
        let checks = (0..100).map(|_| img(&["check", "-f", "qcow2", "disk"]).unwrap());
        let mut free = checks.skip_while(|(_, text)| {
            let locked = text.contains("\" lock");
            locked.then(|| std::thread::sleep(Duration::from_millis(50)));
            locked
        });
        free.next().expect("the lock goes")
    };
    let shapes = [
        ("cluster_size=64k", 512),
        ("cluster_size=4k", 4096),
        ("cluster_size=512", 512),
        ("compat=0.10,cluster_size=64k", 4096),
    ];
    for (seed, (shape, block)) in shapes.into_iter().enumerate() {
        let len = LEN.to_string();
        if img(&["create", "-q", "-f", "qcow2", "-o", shape, "disk", &len]).is_none() {
            crate::testing::skipped("qemu-img is not installed");
            return;
        }
        let path = dir.path().join("disk");
        let (failed, sectors) = run(qcow2(&path), block, steps, seed as u64 + 11, host);
        let (code, text) = check();
        println!("qcow2, {shape}, {block}, {host:?}: {failed} commands failed; qemu-img check: {code:?}");
        assert_eq!(code, Some(0), "{shape}: {text}");
        assert_eq!(failed > 0, matches!(host, Host::Bad(_)));
        look_again(qcow2(&path), block, sectors);
    }
}

#[test]
fn raw_images_keep_what_was_written() {
    over_raw(40, |_| Host::Good);
    over_raw(60, Host::Slow);
}

#[test]
fn raw_images_on_a_bad_host_keep_what_was_acknowledged() {
    over_raw(120, |unit| Host::Bad(unit.max(512)));
}

#[test]
fn qcow2_images_keep_what_was_written() {
    over_qcow2(40, Host::Good);
    over_qcow2(60, Host::Slow(1));
}

#[test]
fn qcow2_images_on_a_bad_host_keep_what_was_acknowledged() {
    over_qcow2(120, Host::Bad(512));
}

/// `cargo test --release -p devices long_workloads -- --ignored --nocapture`
#[test]
#[ignore = "takes minutes"]
fn long_workloads() {
    over_raw(3000, Host::Slow);
    over_raw(3000, |unit| Host::Bad(unit.max(512)));
    over_qcow2(3000, Host::Slow(1));
    over_qcow2(3000, Host::Bad(512));
}
