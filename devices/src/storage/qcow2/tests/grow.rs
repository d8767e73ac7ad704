//! Longer disks, and clusters that zstd compressed.

use std::future::poll_fn;
use std::task::Poll;

use super::*;
use crate::iothread::mischief::{Trick, Victim};
use crate::testing::allocated_bytes;

/// Makes an image longer while it is written to; QEMU reads the same afterwards.
fn grows(bench: &Bench, shape: &str, backing: Option<&str>, from: u64, to: u64) {
    let what = format!("{shape} {backing:?} from {from} to {to}");
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", shape];
    if let Some(backing) = backing {
        args.extend(["-b", backing, "-F", "raw"]);
    }
    let len = from.to_string();
    bench.img(&[&args[..], &["grow.qcow2", &len]].concat());
    let path = bench.path("grow.qcow2");
    let image = open(&path);
    let after = on_io_thread(move |io| async move {
        let image = Rc::new(image);
        image.write(&io, ByteOffset(from - 1024), filled(1024, 7), Durability::Cached).await.unwrap();
        let beyond = image.write(&io, ByteOffset(from), filled(512, 7), Durability::Cached).await;
        assert_eq!(beyond.unwrap_err().kind, BlockErrorKind::OutOfRange);
        image.grow(&io, from.saturating_sub(512)).await.unwrap();
        assert_eq!(image.geometry().len, from, "never shorter");
        image.grow(&io, to).await.unwrap();
        assert_eq!(image.geometry().len, to);
        image.write(&io, ByteOffset(to - 4096), filled(4096, 8), Durability::Cached).await.unwrap();
        image.grow(&io, to + 512).await.unwrap();
        image.write(&io, ByteOffset(to), filled(512, 9), Durability::Cached).await.unwrap();
        image.close(&io).await.unwrap();
        contents(&io, &*image).await
    });
    assert_eq!(after.len() as u64, to + 512, "{what}");
    let mut expected = vec![0; after.len()];
    if let Some(backing) = backing {
        let bytes = std::fs::read(bench.path(backing)).unwrap();
        let visible = bytes.len().min(from as usize);
        expected[..visible].copy_from_slice(&bytes[..visible]);
    }
    expected[from as usize - 1024..from as usize].fill(7);
    expected[to as usize - 4096..to as usize].fill(8);
    expected[to as usize..].fill(9);
    assert!(after == expected, "{what}: the disk holds something else");
    bench.check_clean("grow.qcow2");
    assert!(bench.oracle("grow.qcow2") == after, "{what}: QEMU reads something else");
    assert!(read_all(open(&path)) == after, "{what}: a second opening differs");
}

/// What QEMU leaves in the last cluster of a disk that it makes shorter is not there when the disk is longer again.
#[test]
fn what_was_cut_off_does_not_come_back() {
    let Some(bench) = Bench::new() else { return };
    for shape in ["cluster_size=64k", "cluster_size=64k,compat=0.10"] {
        bench.img(&["create", "-q", "-f", "qcow2", "-o", shape, "cut.qcow2", "1M"]);
        bench.io("cut.qcow2", "qcow2", &["write -P 7 0 1M"]);
        bench.img(&["resize", "-q", "-f", "qcow2", "--shrink", "cut.qcow2", "263168"]);
        let image = open(&bench.path("cut.qcow2"));
        let after = on_io_thread(move |io| async move {
            image.grow(&io, 1 << 20).await.unwrap();
            image.close(&io).await.unwrap();
            contents(&io, &image).await
        });
        let sevens = after.iter().position(|byte| *byte != 7);
        assert_eq!(sevens, Some(263_168), "{shape}");
        assert!(after[263_168..].iter().all(|byte| *byte == 0), "{shape}: what was cut off is there again");
        bench.check_clean("cut.qcow2");
        assert!(bench.oracle("cut.qcow2") == after, "{shape}");
    }
}

#[test]
fn disks_become_longer() {
    let Some(bench) = Bench::new() else { return };
    std::fs::write(bench.path("below.raw"), vec![5; 3 << 20]).unwrap();
    for shape in ["cluster_size=64k", "cluster_size=512", "compat=0.10,cluster_size=4k"] {
        // Within the L1 table, and with a larger one.
        grows(&bench, shape, None, 1 << 20, 1 << 21);
        grows(&bench, shape, None, (1 << 20) + 512, 40 << 20);
        // What a longer backing file has there must not show.
        grows(&bench, shape, Some("below.raw"), (1 << 20) + 512, 2 << 20);
        grows(&bench, shape, Some("below.raw"), 1 << 20, 8 << 20);
    }
}

/// The second begins while the first zeroes what a backing file has there.
#[test]
fn the_longest_of_several_sizes_stays() {
    let Some(bench) = Bench::new() else { return };
    std::fs::write(bench.path("below.raw"), vec![5; 8 << 20]).unwrap();
    for sizes in [[6 << 20, 4 << 20], [4 << 20, 6 << 20]] {
        bench.img(&["create", "-q", "-f", "qcow2", "-b", "below.raw", "-F", "raw", "grow.qcow2", "1M"]);
        let image = open(&bench.path("grow.qcow2"));
        let len = on_io_thread(move |io| async move {
            let mut grows = sizes.map(|size| Some(Box::pin(image.grow(&io, size))));
            std::future::poll_fn(|cx| {
                for grow in &mut grows {
                    if let Some(Poll::Ready(result)) = grow.as_mut().map(|grow| grow.as_mut().poll(cx)) {
                        result.unwrap();
                        *grow = None;
                    }
                }
                if grows.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            drop(grows);
            image
                .write(&io, ByteOffset((6 << 20) - 4096), filled(4096, 8), Durability::Cached)
                .await
                .unwrap();
            image.close(&io).await.unwrap();
            image.geometry().len
        });
        assert_eq!(len, 6 << 20, "{sizes:?}");
        bench.check_clean("grow.qcow2");
        assert_eq!(bench.oracle("grow.qcow2").len(), 6 << 20, "{sizes:?}: what its header says");
    }
}

#[test]
fn disks_that_cannot_become_longer_say_why() {
    let Some(bench) = Bench::new() else { return };
    bench.img(&["create", "-q", "-f", "qcow2", "kept.qcow2", "1M"]);
    bench.img(&["snapshot", "-c", "one", "kept.qcow2"]);
    bench.img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "small.qcow2", "1M"]);
    for (name, len, why) in [("kept.qcow2", 2 << 20, "snapshots"), ("small.qcow2", 1 << 50, "L1 table")] {
        let image = open(&bench.path(name));
        let error = on_io_thread(move |io| async move { image.grow(&io, len).await.unwrap_err() });
        assert!(error.kind == BlockErrorKind::Unsupported && error.context.contains(why), "{error}");
        bench.check_clean(name);
    }
}

#[test]
fn clusters_that_zstd_compressed() {
    let Some(bench) = Bench::new() else { return };
    let bytes: Vec<u8> = (0..1 << 20).map(|i: u32| (i / 700) as u8 ^ (i % 13) as u8).collect();
    std::fs::write(bench.path("plain.raw"), bytes).unwrap();
    for shape in ["compression_type=zstd", "compression_type=zstd,cluster_size=4k", "compression_type=zlib"] {
        bench.img(&["convert", "-f", "raw", "-O", "qcow2", "-c", "-o", shape, "plain.raw", "packed.qcow2"]);
        let path = bench.path("packed.qcow2");
        assert!(std::fs::metadata(&path).unwrap().len() < 800 << 10, "it is compressed");
        conforms(&bench, "packed.qcow2", options(&path), 5, 100);
    }
}

/// Clusters may have 2 MiB, and the guest decides how many are read at once.
#[test]
fn what_is_being_unpacked_is_bounded() {
    const CLUSTER: usize = 2 << 20;
    const COUNT: usize = 17;
    let Some(bench) = Bench::new() else { return };
    // Half of each cluster cannot be made smaller.
    let mut seed = 1_u64;
    let mut bytes = vec![0; COUNT * CLUSTER];
    for cluster in bytes.chunks_mut(CLUSTER) {
        for byte in cluster.iter_mut().take(CLUSTER / 2) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (seed >> 56) as u8;
        }
    }
    std::fs::write(bench.path("plain.raw"), bytes).unwrap();
    bench.img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-c",
        "-o",
        "cluster_size=2M",
        "plain.raw",
        "packed.qcow2",
    ]);
    let path = bench.path("packed.qcow2");
    assert!(std::fs::metadata(&path).unwrap().len() < (COUNT * CLUSTER) as u64, "it is compressed");
    let image = open(&path);
    on_io_thread(move |io| async move {
        let read = |cluster: usize| {
            let into = ToGuest::new(SgList::host(512, 512).unwrap());
            Box::pin(image.read(&io, ByteOffset((cluster * CLUSTER) as u64), into))
        };
        // The tables are in memory then.
        read(0).await.unwrap();
        io.plot(|victim| matches!(victim, Victim::Read { .. }).then_some(Trick::Hang));
        let before = allocated_bytes();
        let mut reads: Vec<_> = (1..COUNT).map(read).collect();
        for _ in 0..3 {
            for read in &mut reads {
                assert!(poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx).is_pending())).await);
            }
            io.sleep(Duration::from_millis(1)).await;
        }
        let bytes = allocated_bytes() - before;
        assert!(bytes < 6 << 20, "{bytes}");
        io.repent();
        io.answer();
        // Who could not begin goes on; the others hear of an error.
        let mut good = 0;
        for read in reads {
            good += usize::from(read.await.is_ok());
        }
        assert!(good > COUNT / 2, "{good}");
        image.close(&io).await.unwrap();
    });
}
