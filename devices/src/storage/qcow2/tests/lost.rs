//! A barrier that failed: what the kernel had taken before it may be gone.

use std::cell::Cell;

use super::*;
use crate::iothread::mischief::{Trick, Victim};

/// Counts syncs, and has the one with number `fails` fail.
fn syncs(fails: Option<usize>) -> (Rc<Cell<usize>>, impl FnMut(Victim) -> Option<Trick> + 'static) {
    let seen = Rc::new(Cell::new(0));
    let counter = seen.clone();
    let plan = move |victim| {
        if victim != Victim::Sync {
            return None;
        }
        counter.set(counter.get() + 1);
        (Some(counter.get() - 1) == fails).then_some(Trick::Fail(libc::EIO))
    };
    (seen, plan)
}

/// New tables of every kind, clusters that are freed, and a longer disk.
async fn work(io: &Io, image: &Qcow2Image) -> Result<(), BlockError> {
    for n in 0..40 {
        image.write(io, ByteOffset(n * (96 << 10)), filled(4096, 3), Durability::Cached).await?;
    }
    image.flush(io).await?;
    image.zero(io, Span { at: ByteOffset(0), len: 1 << 20 }, Unmap::Allowed).await?;
    image.write(io, ByteOffset(5 << 20), filled(64 << 10, 4), Durability::Stable).await?;
    image.grow(io, 256 << 20).await?;
    image.write(io, ByteOffset(200 << 20), filled(4096, 5), Durability::Cached).await?;
    image.flush(io).await
}

/// After a barrier that failed nothing reaches the tables in the file, not even at the end.
#[test]
fn nothing_is_published_after_a_barrier_that_failed() {
    let Some(bench) = Bench::new() else { return };
    for (shape, least) in
        [("cluster_size=512", 10), ("cluster_size=64k", 8), ("compat=0.10,cluster_size=4k", 8)]
    {
        bench.img(&["create", "-q", "-f", "qcow2", "-o", shape, "empty.qcow2", "16M"]);
        let run = |fails: Option<usize>| {
            std::fs::copy(bench.path("empty.qcow2"), bench.path("lost.qcow2")).unwrap();
            let path = bench.path("lost.qcow2");
            let image = open(&path);
            on_io_thread(move |io| async move {
                let (seen, plan) = syncs(fails);
                io.plot(plan);
                let result = work(&io, &image).await;
                let Some(fails) = fails else {
                    result.unwrap();
                    let all = seen.get();
                    image.close(&io).await.unwrap();
                    return all;
                };
                assert_eq!(result.unwrap_err().kind, BlockErrorKind::Unstable, "{shape}, barrier {fails}");
                let before = std::fs::read(&path).unwrap();
                for _ in 0..2 {
                    assert_eq!(image.flush(&io).await.unwrap_err().kind, BlockErrorKind::Unstable);
                    let stable = image.write(&io, ByteOffset(0), filled(512, 9), Durability::Stable).await;
                    assert_eq!(stable.unwrap_err().kind, BlockErrorKind::Unstable);
                    assert_eq!(image.grow(&io, 1 << 30).await.unwrap_err().kind, BlockErrorKind::Unstable);
                    assert_eq!(image.close(&io).await.unwrap_err().kind, BlockErrorKind::Unstable);
                }
                assert!(image.has_failed());
                drop(image);
                assert_eq!(seen.get(), fails + 1, "{shape}, barrier {fails}: another was tried");
                // Data may have gone to clusters that nothing in the file points to; tables have not.
                let after = std::fs::read(&path).unwrap();
                let header = |bytes: &[u8]| bytes[..104].to_vec();
                assert_eq!(header(&before), header(&after), "{shape}, barrier {fails}");
                seen.get()
            })
        };
        let all = run(None);
        bench.check_clean("lost.qcow2");
        assert!(all >= least, "{shape}: {all} barriers");
        for fails in 0..all {
            run(Some(fails));
            // Clusters that are counted and not used at most (3).
            let (code, text) = bench.run("qemu-img", &["check", "-f", "qcow2", "lost.qcow2"]);
            assert!(matches!(code, 0 | 3), "{shape}, barrier {fails}: {text}");
            // Opened anew, it works.
            let image = open(&bench.path("lost.qcow2"));
            on_io_thread(move |io| async move {
                image.write(&io, ByteOffset(0), filled(4096, 6), Durability::Stable).await.unwrap();
                image.close(&io).await.unwrap();
            });
        }
    }
}

/// A barrier that the kernel never began, for want of a thread, took nothing with it: all that was to follow follows later.
#[test]
fn what_a_barrier_that_was_not_begun_held_back_is_done_later() {
    let Some(bench) = Bench::new() else { return };
    for shape in ["cluster_size=512", "cluster_size=64k"] {
        bench.img(&["create", "-q", "-f", "qcow2", "-o", shape, "empty.qcow2", "16M"]);
        let run = |fails: Option<usize>| {
            std::fs::copy(bench.path("empty.qcow2"), bench.path("late.qcow2")).unwrap();
            let image = open(&bench.path("late.qcow2"));
            let all = on_io_thread(move |io| async move {
                let seen = Rc::new(Cell::new(0));
                let counter = seen.clone();
                io.plot(move |victim| {
                    counter.set(counter.get() + usize::from(victim == Victim::Sync));
                    let hit = victim == Victim::Sync && fails.is_some_and(|fails| counter.get() > fails);
                    hit.then_some(Trick::Fail(libc::ECANCELED))
                });
                let result = work(&io, &image).await;
                if fails.is_some() {
                    assert_eq!(result.unwrap_err().kind, BlockErrorKind::HostResources, "{shape}, {fails:?}");
                    io.repent();
                    work(&io, &image).await.unwrap();
                } else {
                    result.unwrap();
                }
                let all = seen.get();
                image.close(&io).await.unwrap();
                assert!(!image.has_failed());
                all
            });
            bench.check_clean("late.qcow2");
            all
        };
        let all = run(None);
        std::fs::copy(bench.path("late.qcow2"), bench.path("wanted.qcow2")).unwrap();
        for fails in 0..all {
            run(Some(fails));
            bench.img(&["compare", "-f", "qcow2", "-F", "qcow2", "late.qcow2", "wanted.qcow2"]);
        }
    }
}

/// A table that could not be written for want of space is still in memory, and goes again with the next flush.
#[test]
fn tables_that_found_no_space_are_written_again() {
    let Some(bench) = Bench::new() else { return };
    bench.img(&["create", "-q", "-f", "qcow2", "full.qcow2", "16M"]);
    let path = bench.path("full.qcow2");
    let image = open(&path);
    on_io_thread(move |io| async move {
        image.write(&io, ByteOffset(0), filled(4096, 3), Durability::Cached).await.unwrap();
        io.plot(|victim| matches!(victim, Victim::Write { .. }).then_some(Trick::Fail(libc::ENOSPC)));
        for _ in 0..2 {
            assert_eq!(image.flush(&io).await.unwrap_err().kind, BlockErrorKind::NoSpace);
        }
        io.repent();
        image.flush(&io).await.unwrap();
        image.close(&io).await.unwrap();
        assert!(!image.has_failed());
    });
    bench.check_clean("full.qcow2");
    assert_eq!(bench.oracle("full.qcow2")[..4096], [3; 4096]);
}
