//! What must not be written over, what a process that ends leaves, and work that leaves others their turn.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::iothread::mischief::{Trick, Victim};

fn be(bytes: &[u8], at: usize, len: usize) -> usize {
    bytes[at..at + len].iter().fold(0, |value, byte| value << 8 | usize::from(*byte))
}

const OFFSET: usize = 0x00ff_ffff_ffff_fe00;

/// An image with a snapshot whose L2 table is its own; and where its snapshot table, its L1 and its L2 table are.
fn with_snapshot(bench: &Bench) -> (Vec<u8>, [usize; 3]) {
    bench.img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "kept.qcow2", "1M"]);
    bench.io("kept.qcow2", "qcow2", &["write -P 1 0 64k"]);
    bench.img(&["snapshot", "-c", "one", "kept.qcow2"]);
    bench.io("kept.qcow2", "qcow2", &["write -P 2 0 64k"]);
    let bytes = std::fs::read(bench.path("kept.qcow2")).unwrap();
    let table = be(&bytes, 64, 8);
    let l1 = be(&bytes, table, 8);
    let l2 = be(&bytes, l1, 8) & OFFSET;
    (bytes, [table, l1, l2])
}

fn open_bytes(bench: &Bench, name: &str, bytes: &[u8]) -> Qcow2Image {
    std::fs::write(bench.path(name), bytes).unwrap();
    open(&bench.path(name))
}

/// The guest's data must not land in the tables of a snapshot.
#[test]
fn an_entry_that_points_to_tables_of_a_snapshot_is_not_written_through() {
    let Some(bench) = Bench::new() else { return };
    let (bytes, tables) = with_snapshot(&bench);
    let active = be(&bytes, be(&bytes, 40, 8), 8) & OFFSET;
    for target in tables {
        let mut bytes = bytes.clone();
        bytes[active..active + 8].copy_from_slice(&((1u64 << 63) | target as u64).to_be_bytes());
        let image = open_bytes(&bench, "points.qcow2", &bytes);
        let error = on_io_thread(move |io| async move {
            image.write(&io, ByteOffset(0), filled(512, 9), Durability::Stable).await.unwrap_err()
        });
        assert!(error.context.contains("qemu-img check"), "{error}");
        assert!(std::fs::read(bench.path("points.qcow2")).unwrap()[..bytes.len()] == bytes);
    }
}

/// Refcounts that call such a table free, or say that it has one reference, do not have it written over.
#[test]
fn tables_of_snapshots_are_not_allocated_and_not_changed() {
    let Some(bench) = Bench::new() else { return };
    let (bytes, tables) = with_snapshot(&bench);
    let block = be(&bytes, be(&bytes, 48, 8), 8);
    for target in tables {
        let mut bytes = bytes.clone();
        let at = block + target / 4096 * 2;
        bytes[at..at + 2].fill(0);
        let image = open_bytes(&bench, "free.qcow2", &bytes);
        on_io_thread(move |io| async move {
            for n in 0..40 {
                let at = ByteOffset((128 << 10) + n * 4096);
                let _ = image.write(&io, at, filled(4096, 9), Durability::Cached).await;
            }
            let _ = image.flush(&io).await;
        });
        let after = std::fs::read(bench.path("free.qcow2")).unwrap();
        assert!(after[target..target + 4096] == bytes[target..target + 4096], "the table at {target:#x}");
    }
    // The L1 table says that the snapshot's L2 table is its own.
    let (mut bytes, l1) = (bytes.clone(), be(&bytes, 40, 8));
    bytes[l1..l1 + 8].copy_from_slice(&((1u64 << 63) | tables[2] as u64).to_be_bytes());
    let image = open_bytes(&bench, "own.qcow2", &bytes);
    on_io_thread(move |io| async move {
        let write = image.write(&io, ByteOffset(512 << 10), filled(4096, 9), Durability::Stable).await;
        assert!(write.unwrap_err().context.contains("snapshot"));
    });
    let after = std::fs::read(bench.path("own.qcow2")).unwrap();
    assert!(after[tables[2]..tables[2] + 4096] == bytes[tables[2]..tables[2] + 4096]);
}

#[test]
fn snapshot_tables_that_make_no_sense_are_refused() {
    let Some(bench) = Bench::new() else { return };
    let (bytes, [table, l1, _]) = with_snapshot(&bench);
    // The number of snapshots; the place of the table; the place and the length of an L1 table; the table in the header;
    // an L2 table beyond the end of the file.
    for (at, value, why) in [
        (60, 70_000u32, "damaged"),
        (60, 5_000, "damaged"),
        (68, 123, "damaged"),
        (table + 4, 0x7fff_f000, "damaged"),
        (table + 8, u32::MAX, "damaged"),
        (68, 0x1000, "overlap"),
        (l1 + 4, bytes.len().next_multiple_of(4096) as u32, "damaged"),
        (l1 + 4, 0x7fff_f000, "damaged"),
    ] {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        std::fs::write(bench.path("odd.qcow2"), &bytes).unwrap();
        let opened = Qcow2Image::open(&options(&bench.path("odd.qcow2")));
        let message = opened.err().map_or("it opened".into(), |e| e.message);
        assert!(message.contains("qemu-img check"), "{at} {value:#x} {why}: {message}");
        let looked = Qcow2Image::inspect(&options(&bench.path("odd.qcow2")));
        assert_eq!(looked.err().map(|e| e.message), Some(message), "before the start");
    }
}

/// How many tables there are is up to the image, and the memory is the host's.
#[test]
fn snapshots_with_more_tables_than_memory_allows_are_refused() {
    let Some(bench) = Bench::new() else { return };
    bench.img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "many.qcow2", "1M"]);
    bench.io("many.qcow2", "qcow2", &["write -P 1 0 1M"]);
    bench.img(&["snapshot", "-c", "one", "many.qcow2"]);
    let (bytes, file) = (
        std::fs::read(bench.path("many.qcow2")).unwrap(),
        std::fs::File::open(bench.path("many.qcow2")).unwrap(),
    );
    let header = super::super::header::Header::parse(&bytes).unwrap();
    let found = |most| super::super::snapshots::at_most(most, &file, bytes.len() as u64, &header);
    // The snapshot table, one cluster of an L1 table, and 32 L2 tables of 32 KiB each.
    assert_eq!(found(34).map(|clusters| clusters.len()), Ok(34));
    assert!(found(32).unwrap_err().contains("too many snapshots"));
}

/// The header was written, and yet the host said that it was not.
#[test]
fn growth_that_fails_at_the_header_frees_nothing_that_the_header_names() {
    let Some(bench) = Bench::new() else { return };
    bench.img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "doubt.qcow2", "1M"]);
    let path = bench.path("doubt.qcow2");
    let image = open(&path);
    let copy = bench.path("left.qcow2");
    on_io_thread(move |io| async move {
        image.write(&io, ByteOffset(0), filled(100 << 10, 1), Durability::Stable).await.unwrap();
        io.plot(|victim| matches!(victim, Victim::Write { at: 36, .. }).then_some(Trick::Doubt(libc::EIO)));
        image.grow(&io, 8 << 20).await.unwrap_err();
        io.repent();
        for n in 1..8u64 {
            let at = ByteOffset(n * (100 << 10));
            image.write(&io, at, filled(100 << 10, n as u8 + 1), Durability::Cached).await.unwrap();
            image.flush(&io).await.unwrap();
        }
        std::fs::copy(&path, &copy).unwrap();
        image.grow(&io, 8 << 20).await.unwrap();
        image.close(&io).await.unwrap();
    });
    for name in ["left.qcow2", "doubt.qcow2"] {
        let (code, text) = bench.run_unlocked("qemu-img", &["check", "-f", "qcow2", name]);
        assert!(matches!(code, 0 | 3), "{name}: {text}");
        let bytes = bench.oracle(name);
        assert!(bytes[..800 << 10].iter().zip(0..).all(|(byte, at)| *byte == (at / (100 << 10)) as u8 + 1));
    }
    bench.check_clean("doubt.qcow2");
}

/// A process that is killed leaves what the kernel has: with `unsafe`, what was flushed, or has waited.
#[test]
fn tables_of_an_unsafe_image_survive_the_process() {
    let Some(bench) = Bench::new() else { return };
    for flush in [true, false] {
        bench.img(&["create", "-q", "-f", "qcow2", "unsafe.qcow2", "1G"]);
        let path = bench.path("unsafe.qcow2");
        let options = Qcow2Options { cache: CacheMode::Unsafe, ..options(&path) };
        let image = Qcow2Image::open(&options).unwrap();
        let copy = bench.path("left.qcow2");
        on_io_thread(move |io| async move {
            image.write(&io, ByteOffset(1 << 20), filled(1 << 20, 7), Durability::Cached).await.unwrap();
            if flush {
                image.flush(&io).await.unwrap();
            }
            // The second round of writing back is only about leaks.
            let patience = Instant::now() + Duration::from_secs(30);
            while image.inner.top().unwrap().meta().is_dirty() && Instant::now() < patience {
                io.sleep(Duration::from_millis(20)).await;
            }
            std::fs::copy(&path, &copy).unwrap();
        });
        bench.check_clean("left.qcow2");
        let bytes = bench.oracle("left.qcow2");
        assert!(bytes[1 << 20..2 << 20].iter().all(|byte| *byte == 7), "flushed: {flush}");
    }
}

/// Counts warnings.
#[derive(Clone, Default)]
struct Warnings(std::sync::Arc<AtomicU32>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// How many warnings there are meanwhile.
pub(super) fn warnings(run: impl FnOnce()) -> u32 {
    let warnings = Warnings::default();
    let counter = warnings.clone();
    tracing::subscriber::with_default(warnings, run);
    counter.0.load(Ordering::Relaxed)
}

#[test]
fn clusters_that_were_not_counted_are_told_of_twice_at_most() {
    let Some(bench) = Bench::new() else { return };
    bench.img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "lies.qcow2", "4M"]);
    bench.io("lies.qcow2", "qcow2", &["write -P 1 0 2M"]);
    let mut bytes = std::fs::read(bench.path("lies.qcow2")).unwrap();
    let block = be(&bytes, be(&bytes, 48, 8), 8);
    let l2 = be(&bytes, be(&bytes, 40, 8), 8) & OFFSET;
    // Counts of data only.
    for slot in 0..512 {
        let cluster = (be(&bytes, l2 + slot * 8, 8) & OFFSET) / 4096;
        bytes[block + cluster * 2..block + cluster * 2 + 2].fill(0);
    }
    let image = open_bytes(&bench, "lies.qcow2", &bytes);
    let warnings = Warnings::default();
    let counter = warnings.clone();
    let uncounted = on_io_thread(move |io| async move {
        let _guard = tracing::subscriber::set_default(warnings);
        for n in 0..256u64 {
            let span = Span { at: ByteOffset(n * 8192), len: 4096 };
            image.zero(&io, span, Unmap::Allowed).await.unwrap();
            image.flush(&io).await.unwrap();
        }
        let _ = image.close(&io).await;
        image.inner.top().unwrap().meta().uncounted
    });
    assert_eq!((counter.0.load(Ordering::Relaxed), uncounted), (2, 256));
}

/// Nothing is allocated, so nothing has to wait for the host: others have their turn all the same.
#[test]
fn long_work_on_tables_lets_others_run() {
    let Some(bench) = Bench::new() else { return };
    bench.img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "long.qcow2", "1G"]);
    let image = open(&bench.path("long.qcow2"));
    let turns = on_io_thread(move |io| async move {
        let (turns, end) = (Rc::new(Cell::new(0u32)), Rc::new(Cell::new(false)));
        let (counter, ended, own) = (turns.clone(), end.clone(), io.clone());
        io.spawn(async move {
            while !ended.get() {
                counter.set(counter.get() + 1);
                own.give_way().await;
            }
        });
        let all = Span { at: ByteOffset(0), len: 1 << 30 };
        image.zero(&io, all, Unmap::Allowed).await.unwrap();
        let zeroing = turns.take();
        let mut at = 0;
        while at < 1 << 30 {
            let span = Span { at: ByteOffset(at), len: (1 << 30) - at };
            at += image.extent(&io, span).await.unwrap().len;
        }
        end.set(true);
        [zeroing, turns.get()]
    });
    // One L2 table spans 32 KiB.
    assert!(turns.iter().all(|turns| *turns > 1000), "{turns:?}");
}
