//! What the layer itself costs: 4 KiB reads of a disk in memory, one after the other.
//!
//! `cargo test --release -p devices speed -- --ignored --nocapture` prints commands a second. Instructions for each
//! command are the difference of two runs, with `SPEED_COMMANDS` of 10000 and 30000, under
//! `valgrind --tool=callgrind`, or of longer ones under `perf stat -e instructions:u`.

use std::sync::Arc;
use std::time::Instant;

use super::config;
use super::local::{block_on, target_of};
use crate::iothread::Io;
use crate::mem::{FromGuest, SgList, ToGuest};
use crate::scsi::{
    Cdb, DataBuffers, Disk, Image, LogicalUnit, Lun, Nexus, ScsiRequest, Status, Tag, TaskAttribute,
};
use crate::storage::{BlockBackend, ByteOffset, CacheMode, Durability, RawImage, RawOptions, Sharing};
use crate::testing::RamDisk;

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
    assert!(size <= 1312, "{size} bytes");
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
