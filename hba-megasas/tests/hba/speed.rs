//! What a frame costs the I/O thread on its whole way: queue, SCSI layer, a raw image in the host's cache, io_uring.
//!
//! `cargo test --release -p hba-megasas speed -- --ignored --nocapture`, with `SPEED_COMMANDS`, `SPEED_DEPTH` and
//! `SPEED_WRITE` in the environment. Instructions for each command are the difference of two runs under
//! `valgrind --tool=callgrind --separate-threads=yes`, in the file of the I/O thread; see docs/performance.md.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::iothread::{IoThread, Polling, Settings};
use devices::scsi::Image;
use devices::storage::{CacheMode, RawImage, RawOptions, Sharing};
use hba_megasas::{Model, Options};

use crate::guest::{Frame, Guest, IEEE, drive, options};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// A guest with a raw image of `len` bytes that the host has in its cache.
fn started(len: usize, bounce: bool, polling: Polling) -> Guest {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![1; len]).unwrap();
    let (path, sharing) = (file.path().to_owned(), Sharing::Unlocked);
    let raw = RawImage::open(&RawOptions { path, read_only: false, cache: CacheMode::Writeback, sharing });
    let image = Image::Raw(raw.unwrap()).guarded(None, None);
    let image = Arc::new(if bounce { image.private() } else { image });
    let thread = IoThread::with("speed", Settings { polling, ..Settings::default() }).unwrap();
    let drives = BTreeMap::from([(0, drive(&image, true))]);
    let options = Options { write_back: true, ..options(Model::Gen2) };
    let mut guest = Guest::on(thread, options, drives, BTreeMap::from([(0, image)]));
    assert_eq!(guest.init(1009), 0);
    guest.enable_interrupts();
    guest
}

/// A guest with `depth` frames of 4 KiB as Linux makes them.
fn laid_out(depth: u64, write: bool) -> (Guest, Vec<u64>) {
    // No polling: what that costs depends on how long there is nothing to do.
    let mut guest = started(4 << 20, false, Polling::Off);
    let frames = (0..depth)
        .map(|slot| {
            let data = guest.alloc(8192).next_multiple_of(4096);
            let frame = Frame::io(write, 0, slot * 8, 8).context(slot as u32).flags(IEEE).sge(data, 4096);
            guest.lay(&frame)
        })
        .collect();
    (guest, frames)
}

/// All of them, one after the other.
fn send(guest: &mut Guest, frames: &[u64]) {
    for &frame in frames {
        guest.poke(frame + 2, &[0xff]);
        guest.fire(frame);
    }
}

/// Frames of 4 KiB, `SPEED_DEPTH` at a time: the next ones when all are done.
#[test]
#[ignore = "a measurement"]
fn frames_of_4_kib() {
    let (count, depth) = (number("SPEED_COMMANDS", 200_000), number("SPEED_DEPTH", 32));
    let (mut guest, frames) = laid_out(depth, number("SPEED_WRITE", 0) != 0);
    let start = Instant::now();
    for _ in 0..count.div_ceil(depth) {
        send(&mut guest, &frames);
        for _ in 0..depth {
            let context = guest.wait_reply();
            assert_eq!(guest.status_of(frames[context as usize]), 0);
        }
        guest.write(0xa0, u32::MAX);
    }
    println!("{:.0} commands a second", count as f64 / start.elapsed().as_secs_f64());
}

/// Reads of 4 KiB, one after the other, beside `SPEED_DEPTH` of 128 KiB at any time: those are not to wait for many of these.
#[test]
#[ignore = "a measurement"]
fn a_small_reader_beside_a_greedy_one() {
    const LEN: u32 = 128 << 10;
    let (seconds, depth) = (number("SPEED_SECONDS", 5), number("SPEED_DEPTH", 128) as u32);
    let mut guest = started(64 << 20, number("SPEED_BOUNCE", 1) != 0, Polling::Auto);
    let data = guest.alloc(2 * LEN as usize).next_multiple_of(4096);
    let mut lay = |context: u32, len: u32| {
        let lba = u64::from(context % 128 * LEN / 512);
        guest.lay(&Frame::io(false, 0, lba, len / 512).context(context).flags(IEEE).sge(data, len))
    };
    let frames: Vec<u64> =
        (0..=depth).map(|slot| lay(slot, if slot == depth { 4096 } else { LEN })).collect();
    let (start, mut sent) = (Instant::now(), Instant::now());
    let (mut times, mut bytes, mut under_way) = (Vec::new(), 0, frames.len());
    send(&mut guest, &frames);
    while under_way > 0 {
        let context = guest.wait_reply();
        guest.write(0xa0, u32::MAX);
        if context == depth {
            times.push(sent.elapsed());
            sent = Instant::now();
        } else {
            bytes += u64::from(LEN);
        }
        if start.elapsed() < Duration::from_secs(seconds) {
            send(&mut guest, &[frames[context as usize]]);
        } else {
            under_way -= 1;
        }
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "{} small reads, p50 {:?}, p99 {:?}, slowest {:?}; {} MB/s",
        times.len(),
        at(50),
        at(99),
        at(100),
        bytes / 1_000_000 / seconds
    );
}

/// Where the host's clock is slow, reading it for each command would cost more than all else that is done for it.
#[test]
fn a_batch_reads_the_clock_twice() {
    let (mut guest, frames) = laid_out(32, false);
    let remote = guest._thread.remote();
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
        send(&mut guest, &frames);
        go.send(()).unwrap();
        (0..32).for_each(|_| assert!(guest.wait_reply() < 32));
        guest.write(0xa0, u32::MAX);
        readings() - before
    });
    let fewest = turns.min().unwrap();
    assert!(fewest <= 2, "the clock was read {fewest} times for a batch of 32");
}
