//! What the layer itself costs: 4 KiB reads of a disk in memory, one after the other.
//!
//! `cargo test --release -p devices speed -- --ignored --nocapture` prints commands a second. Instructions for each
//! command are the difference of two runs, with `SPEED_COMMANDS` of 10000 and 30000, under
//! `valgrind --tool=callgrind`, or of longer ones under `perf stat -e instructions:u`.

use std::sync::Arc;
use std::time::Instant;

use vm_memory::GuestAddress;

use super::config;
use super::local::{block_on, target_of};
use crate::iothread::Io;
use crate::mem::{Dma, FromGuest, GuestRam, SgList, ToGuest};
use crate::scsi::{
    Cdb, DataBuffers, Disk, Image, LogicalUnit, Lun, Nexus, ScsiRequest, Status, Tag, TaskAttribute,
};
use crate::storage::{BlockBackend, ByteOffset, CacheMode, Durability, RawImage, RawOptions, Sharing};
use crate::testing::{RamDisk, on_io_thread, temp_file};

/// Each command moves its future into a slot: what is in it beyond need is copied each time.
#[test]
fn the_future_of_a_command_is_small() {
    let io = Io::for_test();
    let raw = tempfile::NamedTempFile::new().unwrap();
    raw.as_file().set_len(1 << 20).unwrap();
    let options = RawOptions {
        path: raw.path().into(),
        read_only: false,
        cache: CacheMode::Writeback,
        sharing: Sharing::default(),
    };
    let image = Arc::new(Image::Raw(RawImage::open(&options).unwrap()));
    let (at, list) = (ByteOffset(0), SgList::empty);
    println!("image read: {}", size_of_val(&image.read(&io, at, ToGuest::new(list()))));
    let write = image.write(&io, at, FromGuest::new(list()), Durability::Cached);
    println!("image write: {}", size_of_val(&write));
    println!("image flush: {}", size_of_val(&image.flush(&io)));
    drop(write);
    let nexus = Nexus::new(target_of(LogicalUnit::Disk(Disk::new(image, config()).unwrap())), None);
    let request = ScsiRequest {
        tag: Tag(0),
        lun: Lun::default(),
        cdb: Cdb::new(&[0; 6]),
        attribute: TaskAttribute::Simple,
        priority: 0,
        data: DataBuffers::none(),
    };
    println!("request: {}", size_of_val(&request));
    let size = size_of_val(&nexus.execute(&io, request));
    println!("command: {size}");
    assert!(size <= 1456, "{size} bytes");
}

#[test]
#[ignore = "a measurement"]
fn reads_of_4_kib() {
    let count = std::env::var("SPEED_COMMANDS").map_or(2_000_000, |text| text.parse().unwrap());
    let image = Arc::new(Image::Ram(RamDisk::new(16 << 20)));
    let target = target_of(LogicalUnit::Disk(Disk::new(image, config()).unwrap()));
    let (nexus, io) = (Nexus::new(target, None), Io::for_test());
    let buffer = SgList::host(4096, 4096).unwrap();
    let read = |n: u64| {
        let [_, _, _, _, a, b, c, d] = (n * 8 % 32768).to_be_bytes();
        ScsiRequest {
            tag: Tag(n),
            lun: Lun::default(),
            cdb: Cdb::new(&[0x28, 0, a, b, c, d, 0, 0, 8, 0]),
            attribute: TaskAttribute::Simple,
            priority: 0,
            data: DataBuffers::to_initiator(ToGuest::new(buffer.window(0, 4096))),
        }
    };
    let (start, mut good) = (Instant::now(), 0u64);
    block_on(async {
        for n in 0..count {
            good += u64::from(nexus.execute(&io, read(n)).await.unwrap().status == Status::Good);
        }
    });
    println!("{} bytes of state for a command", size_of_val(&nexus.execute(&io, read(0))));
    assert_eq!(good, count - 1, "all but the first, which finds the unit attention");
    println!("{:.0} commands a second", count as f64 / start.elapsed().as_secs_f64());
}

/// What it costs to go through private memory: reads of a file that the host has in its cache, out of which and into which the
/// processor copies. On a device of the host there is one copy, not two, and the device's own time.
#[test]
#[ignore = "a measurement"]
fn reads_through_private_memory() {
    const SPAN: u64 = 64 << 20;
    let file = temp_file();
    std::fs::write(file.path(), vec![0x5a; SPAN as usize]).unwrap();
    let open = || {
        let options = RawOptions {
            path: file.path().into(),
            read_only: false,
            cache: CacheMode::Writeback,
            sharing: Sharing::Unlocked,
        };
        Image::Raw(RawImage::open(&options).unwrap()).guarded(None, None)
    };
    let images = [open(), open().private()];
    on_io_thread(|io| async move {
        let nexuses = images.map(|image| {
            let unit = LogicalUnit::Disk(Disk::new(Arc::new(image), config()).unwrap());
            Nexus::new(target_of(unit), None)
        });
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap();
        let dma = Dma::new(Arc::new(ram));
        dma.set_bus_master(true);
        let request = |n: u64, len: u64, depth: u64| {
            let blocks = (len / 512) as u16;
            let lba = (n.wrapping_mul(7919) % (SPAN / len) * (len / 512)) as u32;
            let mut cdb = [0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            cdb[2..6].copy_from_slice(&lba.to_be_bytes());
            cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
            ScsiRequest {
                tag: Tag(n),
                lun: Lun::default(),
                cdb: Cdb::new(&cdb),
                attribute: TaskAttribute::Simple,
                priority: 0,
                data: DataBuffers::to_initiator(dma.to_guest([(n % depth * len, len as u32)]).unwrap()),
            }
        };
        for nexus in &nexuses {
            let _ = nexus.execute(&io, request(0, 4096, 1)).await;
        }
        for (len, depth, count) in [
            (4096, 1, 40_000),
            (4096, 16, 80_000),
            (65536, 1, 20_000),
            (1 << 20, 1, 2000),
            (1 << 20, 16, 3000),
        ] {
            let mut best = [f64::MAX; 2];
            for _ in 0..5 {
                for (nexus, best) in nexuses.iter().zip(&mut best) {
                    let start = Instant::now();
                    let next = std::cell::Cell::new(0);
                    let one = || async {
                        while next.get() < count {
                            let n = next.replace(next.get() + 1);
                            let reply = nexus.execute(&io, request(n, len, depth)).await.unwrap();
                            assert_eq!(reply.status, Status::Good);
                        }
                    };
                    let mut all: Vec<_> = (0..depth).map(|_| Some(Box::pin(one()))).collect();
                    std::future::poll_fn(|cx| {
                        for slot in &mut all {
                            if slot.as_mut().is_some_and(|one| one.as_mut().poll(cx).is_ready()) {
                                *slot = None;
                            }
                        }
                        let over = all.iter().all(Option::is_none);
                        if over { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
                    })
                    .await;
                    *best = best.min(start.elapsed().as_secs_f64() / count as f64);
                }
            }
            let [plain, private] = best.map(|time| time * 1e6);
            println!(
                "{len} bytes, {depth} at a time: {plain:.2} us, through private memory {private:.2} us, {:.2} times",
                private / plain
            );
        }
    });
}
