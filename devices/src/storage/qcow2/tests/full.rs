//! A host that is full.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::*;
use crate::iothread::mischief::{Trick, Victim};

/// Pages of the host's file system, in bytes.
const PAGE: u64 = 4096;

/// A file system with so many pages beyond those that the file has.
fn room_for(path: &Path, pages: usize) -> impl FnMut(Victim) -> Option<Trick> + 'static {
    use std::os::unix::fs::MetadataExt;
    let blocks = std::fs::metadata(path).unwrap().blocks();
    // What qemu-img wrote lies at the start.
    let known: BTreeSet<u64> = (0..blocks * 512 / PAGE).collect();
    let limit = known.len() + pages;
    let known = RefCell::new(known);
    move |victim| {
        let Victim::Write { at, len, .. } = victim else { return None };
        let mut known = known.borrow_mut();
        let new: Vec<u64> =
            (at / PAGE..(at + len).div_ceil(PAGE)).filter(|page| !known.contains(page)).collect();
        if known.len() + new.len() > limit {
            return Some(Trick::Fail(libc::ENOSPC));
        }
        known.extend(new);
        None
    }
}

/// Writes one page to each 64 KiB, then to far places that need new tables.
///
/// What was written is there and can be made stable on the full host, and nothing leaks.
#[test]
fn what_does_not_fit_leaves_nothing_behind() {
    let Some(bench) = Bench::new() else { return };
    for (shape, pages) in [
        ("cluster_size=64k", 60),
        ("cluster_size=4k", 41),
        ("cluster_size=4k,refcount_bits=64", 1400),
        ("cluster_size=512", 97),
        ("compat=0.10,cluster_size=4k", 50),
    ] {
        bench.img(&["create", "-q", "-f", "qcow2", "-o", shape, "full.qcow2", "4G"]);
        let path = bench.path("full.qcow2");
        let image = open(&path);
        let plan = path.clone();
        let written = on_io_thread(move |io| async move {
            io.plot(room_for(&plan, pages));
            let mut written = Vec::new();
            let near = (0..4000).map(|n| n * (64 << 10));
            for at in near.chain((1..8).map(|n| n * (512 << 20) + 4096)) {
                let write = image.write(&io, ByteOffset(at), filled(PAGE, 7), Durability::Cached).await;
                match write {
                    Ok(()) => written.push(at),
                    Err(e) => assert_eq!(e.kind, BlockErrorKind::NoSpace, "{shape}: {e}"),
                }
                if written.len() % 8 == 0 {
                    image.flush(&io).await.unwrap_or_else(|e| panic!("{shape}: at {at}: {e}"));
                }
            }
            image.close(&io).await.unwrap();
            assert!(!image.inner.top().unwrap().meta().is_pending(), "{shape}: tables wait");
            written
        });
        assert!((8..3900).contains(&written.len()), "{shape}: {} pages fitted", written.len());
        bench.check_clean("full.qcow2");
        let image = open(&path);
        on_io_thread(move |io| async move {
            for at in written {
                let mem = SgList::host(PAGE as usize, 4096).unwrap();
                let view = FromGuest::new(mem.window(0, PAGE));
                image.read(&io, ByteOffset(at), ToGuest::new(mem)).await.unwrap();
                let mut bytes = vec![0; PAGE as usize];
                view.read_at(0, &mut bytes);
                assert!(bytes.iter().all(|byte| *byte == 7), "{shape}: page at {at}");
            }
        });
    }
}

/// A paused machine tries its write every second, for hours: clusters that were taken for one try are there for the next.
#[test]
fn tries_on_a_full_host_take_the_same_clusters() {
    let Some(bench) = Bench::new() else { return };
    for (shape, room, cluster) in [("cluster_size=64k", 100, 64 << 10), ("cluster_size=4k", 50, 4096)] {
        bench.img(&["create", "-q", "-f", "qcow2", "-o", shape, "again.qcow2", "4G"]);
        let path = bench.path("again.qcow2");
        let image = open(&path);
        let plan = path.clone();
        on_io_thread(move |io| async move {
            io.plot(room_for(&plan, room));
            let taken = || {
                let top = image.inner.top().unwrap();
                (top.file.host_len(), top.meta().hint)
            };
            // Far from each other, so that each needs a table, too.
            let far = |n: u64| ByteOffset(n * (512 << 20) + cluster);
            for first in [0, 4] {
                let mut full = None;
                for n in 0..1 << 12 {
                    let at = if first == 0 { ByteOffset(n * cluster) } else { far(first) };
                    let write = image.write(&io, at, filled(cluster, 7), Durability::Cached).await;
                    if let Err(error) = write {
                        assert_eq!(error.kind, BlockErrorKind::NoSpace, "{shape}: {error}");
                        full = Some(at);
                        break;
                    }
                }
                let at = full.expect("a full host");
                let before = taken();
                for _ in 0..200 {
                    let write = image.write(&io, at, filled(cluster, 7), Durability::Cached).await;
                    assert_eq!(write.unwrap_err().kind, BlockErrorKind::NoSpace, "{shape}");
                }
                assert_eq!(
                    taken(),
                    before,
                    "{shape}: length of the file and the first cluster that may be free"
                );
            }
            io.plot(|_| None);
            for at in [far(4), far(5), ByteOffset(1 << 30)] {
                image.write(&io, at, filled(cluster, 7), Durability::Cached).await.unwrap();
            }
            image.close(&io).await.unwrap();
            assert!(!image.inner.top().unwrap().meta().is_pending(), "{shape}: something waits");
        });
        bench.check_clean("again.qcow2");
    }
}

const LIMITED: &str = "DEVICES_TEST_LIMITED";

/// The part of a process with a limit of file sizes. Does nothing in a normal run.
#[test]
fn limited() {
    let Ok(path) = std::env::var(LIMITED) else { return };
    let image = open(path.as_ref());
    on_io_thread(move |io| async move {
        for n in 0..2 {
            let write = image.write(&io, ByteOffset(n << 16), filled(1 << 16, 7), Durability::Cached).await;
            write.unwrap_or_else(|e| panic!("cluster {n}: {:?}: {e}", e.kind));
        }
        let write = image.write(&io, ByteOffset(2 << 16), filled(1 << 16, 7), Durability::Cached).await;
        let error = write.unwrap_err();
        assert_eq!(error.kind, BlockErrorKind::NoSpace, "{error}");
        assert!(error.to_string().contains("ulimit -f"), "{error}");
        image.close(&io).await.unwrap();
    });
}

/// The file grows by more than a write needs, but not when that is what the host has no room for.
#[test]
fn a_limit_of_file_sizes_is_used_up() {
    let Some(bench) = Bench::new() else { return };
    bench.img(&["create", "-q", "-f", "qcow2", "limited.qcow2", "1G"]);
    let path = bench.path("limited.qcow2");
    // One table and two clusters.
    let limit = std::fs::metadata(&path).unwrap().len().next_multiple_of(1 << 16) + (3 << 16);
    let script = format!("trap '' XFSZ; exec prlimit --fsize={limit} -- \"$@\"");
    let test = std::env::current_exe().unwrap();
    let run = std::process::Command::new("sh")
        .args(["-c", &script, "sh"])
        .arg(test)
        .args(["--exact", "storage::qcow2::tests::full::limited"])
        .env(LIMITED, &path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && said.contains("1 passed"), "{said}");
    bench.check_clean("limited.qcow2");
}
