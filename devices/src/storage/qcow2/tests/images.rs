//! Images of all kinds.

use std::os::unix::fs::MetadataExt;

use super::*;

#[test]
fn images_of_all_shapes_conform() {
    let Some(bench) = Bench::new() else { return };
    let shapes = [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=512,refcount_bits=64",
        "cluster_size=4096,refcount_bits=1",
        "cluster_size=4096,compat=0.10",
        "cluster_size=2M",
        "cluster_size=2M,refcount_bits=8",
        "preallocation=metadata",
        "preallocation=falloc,cluster_size=8192",
        "preallocation=full,compat=0.10",
        "lazy_refcounts=on",
    ];
    for (n, shape) in shapes.into_iter().enumerate() {
        eprintln!("{shape}");
        let name = format!("{n}.qcow2");
        bench.img(&["create", "-q", "-f", "qcow2", "-o", shape, &name, "5M"]);
        conforms(&bench, &name, options(&bench.path(&name)), 100 + n as u64, 150);
    }
}

#[test]
fn every_cache_mode_conforms() {
    let Some(bench) = Bench::new() else { return };
    for cache in CacheMode::ALL {
        let name = format!("{cache}.qcow2");
        bench.img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=16k", &name, "3147264"]);
        let options = Qcow2Options { cache, ..options(&bench.path(&name)) };
        match Qcow2Image::open(&options) {
            Err(e) if cache.is_direct() && e.message.contains("no direct I/O") => continue,
            image => assert_eq!(image.unwrap().geometry().len, 3_147_264),
        }
        conforms(&bench, &name, options, 7, 60);
    }
}

/// What lies in several clusters is written in several pieces.
#[test]
fn no_physical_block_is_larger_than_a_cluster() {
    let Some(bench) = Bench::new() else { return };
    for (cluster, physical) in [("512", 512), ("1k", 1024), ("64k", 4096)] {
        let shape = format!("cluster_size={cluster}");
        bench.img(&["create", "-q", "-f", "qcow2", "-o", &shape, "small.qcow2", "4M"]);
        let path = bench.path("small.qcow2");
        let host = std::fs::metadata(&path).unwrap().blksize() as u32;
        assert_eq!(open(&path).geometry().physical_block, physical.min(host), "{cluster}");
    }
}

#[test]
fn chains_conform() {
    let Some(bench) = Bench::new() else { return };
    for compat in ["1.1", "0.10"] {
        // The base ends within a sector, and the middle is shorter than both others.
        let mut base = vec![1; 3_000_100];
        base[1 << 20..2 << 20].fill(0);
        base[2 << 20..].fill(2);
        base[2_999_808..].fill(3);
        std::fs::write(bench.path("base.raw"), base).unwrap();
        let middle = ["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "middle.qcow2", "3M"];
        bench.img(&middle);
        bench.io("middle.qcow2", "qcow2", &["write -P 4 512k 300k", "write -z 64k 128k"]);
        let shape = format!("compat={compat},cluster_size=32k");
        bench.img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &shape,
            "-b",
            "middle.qcow2",
            "-F",
            "qcow2",
            "top.qcow2",
            "5M",
        ]);
        bench.io("top.qcow2", "qcow2", &["write -P 5 700k 100k", "write -c -P 6 1M 32k"]);
        let below = [std::fs::read(bench.path("base.raw")), std::fs::read(bench.path("middle.qcow2"))];
        conforms(&bench, "top.qcow2", options(&bench.path("top.qcow2")), 21, 150);
        let after = [std::fs::read(bench.path("base.raw")), std::fs::read(bench.path("middle.qcow2"))];
        assert!(below.map(Result::unwrap) == after.map(Result::unwrap), "backing files are never written to");
    }
}

#[test]
fn compressed_and_zero_clusters_conform() {
    let Some(bench) = Bench::new() else { return };
    bench.img(&["create", "-q", "-f", "raw", "source", "4M"]);
    bench.io("source", "raw", &["write -P 7 0 1M", "write -P 8 1M 100k", "write -P 9 3M 512k"]);
    for shape in ["cluster_size=512", "cluster_size=64k", "cluster_size=2M", "compat=0.10"] {
        bench.img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", shape, "source", "packed.qcow2"]);
        conforms(&bench, "packed.qcow2", options(&bench.path("packed.qcow2")), 31, 100);
    }
    bench.img(&["create", "-q", "-f", "qcow2", "zero.qcow2", "4M"]);
    bench.io(
        "zero.qcow2",
        "qcow2",
        &["write -P 1 0 2M", "write -z 128k 512k", "write -zu 1M 256k", "discard 1536k 64k"],
    );
    conforms(&bench, "zero.qcow2", options(&bench.path("zero.qcow2")), 32, 100);
}

#[test]
fn snapshots_keep_what_they_hold() {
    let Some(bench) = Bench::new() else { return };
    for shape in ["compat=1.1", "cluster_size=4k,compat=0.10"] {
        bench.img(&["create", "-q", "-f", "qcow2", "-o", shape, "snap.qcow2", "4M"]);
        bench.io("snap.qcow2", "qcow2", &["write -P 1 0 3M"]);
        bench.img(&["snapshot", "-c", "one", "snap.qcow2"]);
        conforms(&bench, "snap.qcow2", options(&bench.path("snap.qcow2")), 41, 100);
        bench.img(&["convert", "-f", "qcow2", "-O", "raw", "-l", "snapshot.name=one", "snap.qcow2", "old"]);
        let old = std::fs::read(bench.path("old")).unwrap();
        assert!(old[..3 << 20].iter().all(|&b| b == 1) && old[3 << 20..].iter().all(|&b| b == 0));
        bench.img(&["snapshot", "-d", "one", "snap.qcow2"]);
        bench.check_clean("snap.qcow2");
    }
}

/// The refcount table of an image of 512-byte clusters has one cluster for 32 MiB at first, and must grow and move.
#[test]
fn the_refcount_table_grows() {
    let Some(bench) = Bench::new() else { return };
    bench.img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=512,refcount_bits=64",
        "grow.qcow2",
        "64M",
    ]);
    let image = open(&bench.path("grow.qcow2"));
    on_io_thread(move |io| async move {
        for mib in 0..48u8 {
            let at = ByteOffset(u64::from(mib) << 20);
            image.write(&io, at, filled(1 << 20, mib + 1), Durability::Cached).await.unwrap();
        }
        image.close(&io).await.unwrap();
    });
    bench.check_clean("grow.qcow2");
    let all = bench.oracle("grow.qcow2");
    assert!(
        all.chunks(1 << 20)
            .enumerate()
            .all(|(n, mib)| mib.iter().all(|&b| b == if n < 48 { n as u8 + 1 } else { 0 }))
    );
}

#[test]
fn unmapping_gives_space_back() {
    let Some(bench) = Bench::new() else { return };
    bench.img(&["create", "-q", "-f", "qcow2", "space.qcow2", "64M"]);
    let path = bench.path("space.qcow2");
    let image = open(&path);
    assert_eq!(image.geometry().discard_granularity, 65536);
    on_io_thread(move |io| async move {
        let blocks = || std::fs::metadata(&path).unwrap().blocks() * 512;
        image.write(&io, ByteOffset(0), filled(32 << 20, 1), Durability::Stable).await.unwrap();
        assert!(blocks() >= 32 << 20);
        let span = Span { at: ByteOffset(0), len: 32 << 20 };
        image.zero(&io, span, Unmap::Keep).await.unwrap();
        image.flush(&io).await.unwrap();
        assert!(blocks() >= 32 << 20, "space is kept");
        image.zero(&io, span, Unmap::Allowed).await.unwrap();
        image.flush(&io).await.unwrap();
        assert!(blocks() < 4 << 20, "space is given back: {}", blocks());
        // And is used again.
        image.write(&io, ByteOffset(0), filled(32 << 20, 2), Durability::Stable).await.unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() < 48 << 20);
        image.close(&io).await.unwrap();
    });
    bench.check_clean("space.qcow2");
}

#[test]
fn abandoned_operations_leave_a_clean_image() {
    let Some(bench) = Bench::new() else { return };
    bench.img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "drop.qcow2", "8M"]);
    let image = open(&bench.path("drop.qcow2"));
    on_io_thread(move |io| async move {
        let mut random = Random::new(5);
        for round in 0..600u64 {
            let at = ByteOffset(random.below(2000) * 4096 + 512);
            let polls = random.below(12);
            let kind = random.below(8);
            let operation = async {
                match kind {
                    0 => image.flush(&io).await,
                    1 => image.zero(&io, Span { at, len: 20480 }, Unmap::Allowed).await,
                    _ => image.write(&io, at, filled(16384, round as u8), Durability::Cached).await,
                }
            };
            let mut operation = Box::pin(operation);
            let mut left = polls;
            std::future::poll_fn(|cx| {
                if left == 0 || operation.as_mut().poll(cx).is_ready() {
                    return std::task::Poll::Ready(());
                }
                left -= 1;
                if left == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            })
            .await;
        }
        io.quiesce().await;
        check(&io, &image, 6, 60).await;
        let image = crate::storage::Image::Qcow2(image).private();
        check(&io, &image, 8, 60).await;
        image.close(&io).await.unwrap();
    });
    bench.check_clean("drop.qcow2");
}

#[test]
fn what_cannot_be_used_is_refused_with_the_remedy() {
    let Some(bench) = Bench::new() else { return };
    let try_shape = |shape: &str| {
        bench.img(&["create", "-q", "-f", "qcow2", "-o", shape, "no.qcow2", "1M"]);
        refusal(&options(&bench.path("no.qcow2")))
    };
    assert!(try_shape("extended_l2=on").contains("-o extended_l2=off"));
    assert!(try_shape("data_file=data.raw").contains("keeps its data in another file"));
    bench.img(&["create", "-q", "-f", "raw", "plain.raw", "1M"]);
    assert!(refusal(&options(&bench.path("plain.raw"))).contains("format = \"raw\""));
    // Backing files: no recorded format, a loop, a protocol, a format that is not supported.
    bench.img(&["create", "-q", "-f", "qcow2", "-o", "compat=1.1", "no.qcow2", "1M"]);
    let rebase = |name: &str, format: &[&str]| {
        let args: Vec<&str> =
            ["rebase", "-u", "-b", name].iter().chain(format).chain(&["no.qcow2"]).copied().collect();
        bench.img(&args);
        refusal(&options(&bench.path("no.qcow2")))
    };
    assert!(rebase("no.qcow2", &["-F", "qcow2"]).contains("its own backing file"));
    assert!(rebase("nbd://host/disk", &["-F", "raw"]).contains("only files are supported"));
    assert!(rebase("other.vmdk", &["-F", "vmdk"]).contains("\"vmdk\""));
    assert!(rebase("missing.raw", &["-F", "raw"]).contains("missing.raw"));
    // QEMU will not make an image without a backing format, so the extension's type is changed to an unknown one.
    bench.img(&["create", "-q", "-f", "qcow2", "-b", "plain.raw", "-F", "raw", "guess.qcow2"]);
    let mut bytes = std::fs::read(bench.path("guess.qcow2")).unwrap();
    let place = bytes.windows(4).position(|w| w == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    bytes[place] = 0x11;
    std::fs::write(bench.path("guess.qcow2"), &bytes).unwrap();
    let message = refusal(&options(&bench.path("guess.qcow2")));
    assert!(message.contains("qemu-img rebase -u -b \"plain.raw\" -F raw"), "{message}");
    // The corrupt and dirty bits: not for writing.
    for (bit, remedy) in [(2, "marked as corrupt"), (1, "refcounts are marked as outdated")] {
        bench.img(&["create", "-q", "-f", "qcow2", "bits.qcow2", "1M"]);
        let mut bytes = std::fs::read(bench.path("bits.qcow2")).unwrap();
        bytes[79] |= bit;
        std::fs::write(bench.path("bits.qcow2"), &bytes).unwrap();
        assert!(refusal(&options(&bench.path("bits.qcow2"))).contains(remedy));
        let image = Qcow2Image::open(&Qcow2Options { read_only: true, ..options(&bench.path("bits.qcow2")) });
        assert_eq!(read_all(image.unwrap()), vec![0; 1 << 20]);
    }
}

#[test]
fn locks_are_those_of_qemu_on_every_file() {
    let Some(bench) = Bench::new() else { return };
    bench.img(&["create", "-q", "-f", "raw", "base.raw", "1M"]);
    for name in ["one.qcow2", "two.qcow2"] {
        bench.img(&["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", name]);
    }
    let locked = |name: &str, format: &str| {
        let (_, text) = bench.run("qemu-io", &["-f", format, "-c", "write 0 512", name]);
        text.contains("lock")
    };
    let one = open(&bench.path("one.qcow2"));
    // The backing file is shared with other readers, and with nobody who writes.
    let two = open(&bench.path("two.qcow2"));
    assert!(locked("one.qcow2", "qcow2") && locked("two.qcow2", "qcow2") && locked("base.raw", "raw"));
    assert!(refusal(&options(&bench.path("one.qcow2"))).contains("use the same image"));
    drop((one, two));
    assert!(!locked("one.qcow2", "qcow2") && !locked("base.raw", "raw"));
}

/// 4 KiB reads of an allocated image against the same reads of a raw one.
#[test]
#[ignore = "a measurement: run in release mode with --nocapture"]
fn reads_against_raw() {
    let Some(bench) = Bench::new() else { return };
    const LEN: u64 = 256 << 20;
    bench.img(&["create", "-q", "-f", "qcow2", "speed.qcow2", "256M"]);
    bench.img(&["create", "-q", "-f", "raw", "speed.raw", "256M"]);
    let raw = crate::storage::RawOptions {
        path: bench.path("speed.raw"),
        read_only: false,
        cache: CacheMode::Writeback,
        sharing: Sharing::Exclusive,
    };
    let raw = Rc::new(crate::storage::Image::Raw(RawImage::open(&raw).unwrap()));
    let _ = Rc::try_unwrap(raw).map(|raw| {
        let qcow2 = crate::storage::Image::Qcow2(open(&bench.path("speed.qcow2")));
        on_io_thread(move |io| async move {
            let images = [("raw", Rc::new(raw)), ("qcow2", Rc::new(qcow2))];
            for (_, image) in &images {
                for mib in 0..LEN >> 20 {
                    let at = ByteOffset(mib << 20);
                    image.write(&io, at, filled(1 << 20, mib as u8), Durability::Cached).await.unwrap();
                }
                image.flush(&io).await.unwrap();
            }
            for depth in [1, 32] {
                for round in 0..3 {
                    for (name, image) in &images {
                        let rate = measure(&io, image, depth, LEN).await;
                        eprintln!("depth {depth} round {round} {name}: {rate:.0} ns per read");
                    }
                }
            }
        });
    });
}

async fn measure(io: &Io, image: &Rc<crate::storage::Image>, depth: u64, len: u64) -> f64 {
    const READS: u64 = 200_000;
    let pool = crate::iothread::TaskPool::new(io, depth as usize);
    let start = std::time::Instant::now();
    for task in 0..depth {
        let (io, image) = (io.clone(), image.clone());
        let reads = async move {
            let mut random = Random::new(task + 1);
            let mem = SgList::host(4096, 4096).unwrap();
            for _ in 0..READS / depth {
                let at = ByteOffset(random.below(len / 4096) * 4096);
                image.read(&io, at, ToGuest::new(mem.window(0, 4096))).await.unwrap();
            }
        };
        assert!(pool.spawn(reads).is_ok());
    }
    pool.drained().await;
    start.elapsed().as_nanos() as f64 / READS as f64
}

/// At the end of the process nobody drops the image.
#[test]
fn a_closed_image_is_whole() {
    let Some(bench) = Bench::new() else { return };
    bench.img(&["create", "-q", "-f", "qcow2", "closed.qcow2", "1G"]);
    let path = bench.path("closed.qcow2");
    for cache in [CacheMode::Writeback, CacheMode::Unsafe] {
        let options = Qcow2Options { cache, sharing: Sharing::Unlocked, ..options(&path) };
        let image = Qcow2Image::open(&options).unwrap();
        on_io_thread(move |io| async move {
            image.write(&io, ByteOffset(512), filled(5 << 20, 7), Durability::Cached).await.unwrap();
            let span = Span { at: ByteOffset(1 << 20), len: 1 << 20 };
            image.zero(&io, span, Unmap::Allowed).await.unwrap();
            image.close(&io).await.unwrap();
            std::mem::forget(image);
        });
        bench.check_clean("closed.qcow2");
        let bytes = bench.oracle("closed.qcow2");
        let (before, within) = (&bytes[512..1 << 20], &bytes[1 << 20..2 << 20]);
        assert!(before.iter().all(|byte| *byte == 7) && within.iter().all(|byte| *byte == 0));
        assert!(bytes[2 << 20..(5 << 20) + 512].iter().all(|byte| *byte == 7));
    }
}

/// An incremental backup relies on them: they are lost with the first write, and not before.
#[test]
fn dirty_bitmaps_become_invalid_with_the_first_write() {
    let Some(bench) = Bench::new() else { return };
    for (n, changes) in ["reads and flushes", "writes", "zeroes", "grows"].into_iter().enumerate() {
        bench.img(&["create", "-q", "-f", "qcow2", "dirty.qcow2", "16M"]);
        bench.img(&["bitmap", "--add", "dirty.qcow2", "one"]);
        bench.img(&["bitmap", "--add", "dirty.qcow2", "two"]);
        let image = open(&bench.path("dirty.qcow2"));
        assert_eq!(image.inner.top().unwrap().header.bitmaps, 2);
        on_io_thread(move |io| async move {
            match n {
                0 => drop(contents(&io, &image).await),
                1 => image.write(&io, ByteOffset(0), filled(4096, 1), Durability::Cached).await.unwrap(),
                2 => {
                    let span = Span { at: ByteOffset(0), len: 65536 };
                    image.zero(&io, span, Unmap::Allowed).await.unwrap();
                }
                _ => image.grow(&io, 32 << 20).await.unwrap(),
            }
            image.flush(&io).await.unwrap();
            image.close(&io).await.unwrap();
        });
        let (code, said) = bench.run_unlocked("qemu-img", &["info", "-f", "qcow2", "dirty.qcow2"]);
        assert_eq!(code, 0, "{said}");
        let valid = said.contains("name: one") && !said.contains("inconsistent");
        assert_eq!(valid, n == 0, "{changes}: {said}");
    }
    // It is said once, and only where it can happen.
    bench.img(&["create", "-q", "-f", "qcow2", "dirty.qcow2", "16M"]);
    bench.img(&["bitmap", "--add", "dirty.qcow2", "one"]);
    let path = bench.path("dirty.qcow2");
    let opened = |read_only| drop(Qcow2Image::open(&Qcow2Options { read_only, ..options(&path) }).unwrap());
    assert_eq!(super::guard::warnings(|| opened(false)), 1);
    assert_eq!(super::guard::warnings(|| opened(true)), 0);
}
