//! What a command costs the I/O thread on its whole way: ring, SCSI layer, a raw image in the host's cache, io_uring.
//!
//! `cargo test --release -p hba-virtio-scsi speed -- --ignored --nocapture`, with `SPEED_COMMANDS`, `SPEED_DEPTH`,
//! `SPEED_PAGES` and `SPEED_WRITE` in the environment. Instructions for each command are the difference of two runs under
//! `valgrind --tool=callgrind --separate-threads=yes`, in the file of the I/O thread; see docs/performance.md.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::iothread::{IoThread, Polling, Settings};
use devices::scsi::{Disk, Image, LogicalUnit, Lun, Nexus, Target, suite};
use devices::storage::{CacheMode, RawImage, RawOptions, Sharing};
use hba_virtio_scsi::Options;

use crate::guest::{EVENT_IDX, Guest, INDIRECT, INDIRECT_TABLE, NEXT, VERSION_1, WRITE, lun};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// A guest with `depth` requests of 4 KiB, or of so many pages, laid out as Linux makes them, in the first slots of its queue.
fn laid_out(depth: u64, pages: u64, write: bool) -> Guest {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![1; 4 << 20]).unwrap();
    let (path, sharing) = (file.path().to_owned(), Sharing::Unlocked);
    let raw = RawImage::open(&RawOptions { path, read_only: false, cache: CacheMode::Writeback, sharing });
    let image = Arc::new(Image::Raw(raw.unwrap()).guarded(None, None));
    let target = Target::new();
    target.attach(Lun([0; 8]), LogicalUnit::Disk(Disk::new(image, suite::config()).unwrap())).unwrap();
    // No polling: what that costs depends on how long there is nothing to do.
    let thread = IoThread::with("speed", Settings { polling: Polling::Off, ..Settings::default() }).unwrap();
    let targets = BTreeMap::from([(0, Nexus::new(target, None))]);
    let mut guest = Guest::on(vec![thread], Options::default(), targets);
    guest.start(VERSION_1 | EVENT_IDX | INDIRECT, 128);
    guest.command(2, lun(0, 0), &[0; 6], &[], 0);
    let desc = guest.queues[2].desc;
    for slot in 0..depth {
        let [_, _, _, _, a, b, c, d] = (slot * 8 * pages).to_be_bytes();
        let [.., high, low] = (8 * pages).to_be_bytes();
        let cdb = [if write { 0x2a } else { 0x28 }, 0, a, b, c, d, 0, high, low, 0];
        let request = guest.alloc_with(&Guest::request_head(lun(0, 0), slot, &cdb));
        let (response, flags) = ((guest.alloc(108), 108, WRITE), if write { 0 } else { WRITE });
        // Every other page, so that none continues the one before.
        let data = (0..pages).map(|page| (0x80_0000 + 0x2000 * (slot * pages + page), 4096, flags));
        let mut parts = vec![(request, 51, 0)];
        match write {
            false => parts.extend(std::iter::once(response).chain(data)),
            true => parts.extend(data.chain([response])),
        }
        let last = parts.len() as u16 - 1;
        let table = guest.alloc(16 * parts.len() + 16).next_multiple_of(16);
        for ((addr, len, flags), i) in parts.into_iter().zip(0..) {
            guest.descriptor(table, i, addr, len, flags | if i < last { NEXT } else { 0 }, i + 1);
        }
        guest.descriptor(desc, slot as u16, table, 16 * (u32::from(last) + 1), INDIRECT_TABLE, 0);
    }
    guest
}

/// All of them at once.
fn send(guest: &mut Guest, depth: u64) {
    (0..depth).for_each(|slot| guest.publish(2, slot as u16));
    guest.kick(2);
}

/// Requests of 4 KiB, or of `SPEED_PAGES`, `SPEED_DEPTH` at a time: the next ones when all are done.
#[test]
#[ignore = "a measurement"]
fn commands() {
    let (count, depth) = (number("SPEED_COMMANDS", 200_000), number("SPEED_DEPTH", 32));
    let (write, pages) = (number("SPEED_WRITE", 0) != 0, number("SPEED_PAGES", 1));
    let mut guest = laid_out(depth, pages, write);
    let start = Instant::now();
    for _ in 0..count.div_ceil(depth) {
        send(&mut guest, depth);
        for _ in 0..depth {
            assert_eq!(guest.wait_used(2).1, if write { 12 } else { 108 + 4096 * pages as u32 });
        }
    }
    println!("{:.0} commands a second", count as f64 / start.elapsed().as_secs_f64());
}

/// Where the host's clock is slow, reading it for each command would cost more than all else that is done for it.
#[test]
fn a_batch_reads_the_clock_twice() {
    let mut guest = laid_out(32, 1, false);
    let remote = guest.remotes[0].clone();
    let readings = || {
        let (tell, told) = std::sync::mpsc::channel();
        remote.spawn(move |io| async move { tell.send(io.clock_readings()).unwrap() });
        told.recv_timeout(Duration::from_secs(20)).unwrap()
    };
    // The fewest of some turns: the host may answer in parts.
    let turns = (0..8).map(|_| {
        let before = readings();
        // It finds all of them at once.
        let (go, wait) = std::sync::mpsc::channel();
        remote.spawn(move |_| {
            wait.recv().unwrap();
            async {}
        });
        send(&mut guest, 32);
        go.send(()).unwrap();
        (0..32).for_each(|_| assert_eq!(guest.wait_used(2).1, 108 + 4096));
        readings() - before
    });
    let fewest = turns.min().unwrap();
    assert!(fewest <= 2, "the clock was read {fewest} times for a batch of 32");
}
