use std::fs::{self, File};
use std::future::poll_fn;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::*;
use crate::iothread::mischief::{Trick, Victim};
use crate::iothread::record::{Change, Event, Recorder};
use crate::mem::SgList;
use crate::storage::Image;
use crate::storage::alignment::Alignment;
use crate::storage::sys::DirectAlign;
use crate::testing::conformance::{check, check_neighbours, contents};
use crate::testing::{LoopDevice, allocated_bytes, on_io_thread, temp_file};

fn options(path: &Path, cache: CacheMode) -> RawOptions {
    RawOptions { path: path.into(), read_only: false, cache, sharing: Sharing::Exclusive }
}

fn file_of(len: u64) -> tempfile::NamedTempFile {
    let file = temp_file();
    file.as_file().set_len(len).unwrap();
    file
}

/// Opens in `cache`, or `None` where this file system has no direct I/O.
fn open(file: &tempfile::NamedTempFile, cache: CacheMode) -> Option<RawImage> {
    match RawImage::open(&options(file.path(), cache)) {
        Ok(image) => Some(image),
        Err(e) if cache.is_direct() && e.message.contains("no direct I/O") => None,
        Err(e) => panic!("{e}: {:?}", e.source),
    }
}

fn zeros(len: usize) -> FromGuest {
    FromGuest::new(SgList::host(len, 4096).unwrap())
}

#[test]
fn a_larger_size_is_stable_when_it_is_told() {
    for cache in CacheMode::ALL {
        let file = file_of(1 << 20);
        let Some(image) = open(&file, cache) else { continue };
        let recorder = Recorder::default();
        let events = on_io_thread({
            let recorder = recorder.clone();
            move |io| async move {
                io.record(&recorder);
                image.grow(&io, 2 << 20).await.unwrap();
                recorder.take()
            }
        });
        let done: Vec<String> = events
            .iter()
            .map(|event| match event {
                Event::Begin { change, .. } => format!("{change:?}"),
                Event::End { good, .. } => format!("{good}"),
            })
            .collect();
        let mut expected = vec!["Resize(2097152)", "true"];
        if cache.name() != "unsafe" {
            expected.extend(["Sync(None)", "true"]);
        }
        assert_eq!(done, expected, "{}", cache.name());
    }
}

#[test]
fn a_size_that_could_not_be_made_stable_is_never_told() {
    for (error, again) in [(libc::EIO, Some(BlockErrorKind::Unstable)), (libc::ECANCELED, None)] {
        let file = file_of(1 << 20);
        let image = open(&file, CacheMode::Writeback).unwrap();
        let (first, second) = on_io_thread(move |io| async move {
            io.plot(move |victim| (victim == Victim::Sync).then_some(Trick::Fail(error)));
            let first = image.grow(&io, 2 << 20).await.err().map(|error| error.kind);
            io.repent();
            let recorder = Recorder::default();
            io.record(&recorder);
            let second = image.grow(&io, 2 << 20).await.err().map(|error| error.kind);
            if second.is_none() {
                let synced = |event: &Event| matches!(event, Event::Begin { change: Change::Sync(_), .. });
                assert!(recorder.take().iter().any(synced), "said to be larger without a sync");
            }
            (first, second)
        });
        assert!(first.is_some(), "{error}");
        assert_eq!(second, again, "{error}");
    }
}

#[test]
fn every_cache_mode_conforms() {
    for cache in CacheMode::ALL {
        let file = file_of(3 << 20);
        let Some(image) = open(&file, cache) else { continue };
        on_io_thread(move |io| async move {
            check(&io, &image, 11, 200).await;
            assert_eq!(
                image.geometry().volatile_cache,
                !matches!(cache.name(), "writethrough" | "directsync")
            );
            // The short way of transfers, as disks use it.
            let image = Image::Raw(image).guarded(None, None);
            check(&io, &image, 13, 200).await;
            check(&io, &image.private(), 15, 200).await;
        });
        assert_eq!(file.as_file().metadata().unwrap().len(), 3 << 20);
    }
}

/// As on a host disk of 4096-byte sectors.
pub(in crate::storage) fn coarse(mut image: RawImage, path: &Path) -> RawImage {
    let align = DirectAlign { memory: 4096, block: 4096 };
    image.alignment = Alignment::new(align);
    image.host.block = 4096;
    let file = File::options().read(true).write(true).open(path).unwrap();
    image.edge = Some(Box::new(HostFile::new(file, &image.host.name, 1, PieceLimits::FILE_CACHE)));
    image
}

#[test]
fn large_host_blocks_and_a_ragged_end_conform() {
    // Three sectors are beyond the last whole block, and 100 bytes beyond the last sector.
    let len = (1 << 20) + 3 * 512 + 100;
    for cache in [CacheMode::None, CacheMode::Writeback] {
        let file = file_of(len);
        let Some(image) = open(&file, cache) else { continue };
        let image = coarse(image, file.path());
        assert_eq!(image.geometry().len, (1 << 20) + 3 * 512);
        on_io_thread(move |io| async move {
            check(&io, &image, 12, 200).await;
            let image = Image::Raw(image).guarded(None, None);
            check(&io, &image, 14, 200).await;
            let image = image.private();
            check(&io, &image, 16, 200).await;
            check_neighbours(&io, Rc::new(image), 20).await;
        });
        let after = fs::metadata(file.path()).unwrap();
        assert_eq!(after.len(), len, "the file keeps its length");
        let mut rest = [9; 200];
        assert_eq!(file.as_file().read_at(&mut rest, len - 100).unwrap(), 100);
        assert_eq!(rest[..100], [0; 100]);
    }
}

/// A sector of the last, odd block is on its way through the page cache, when the block becomes whole and its neighbour is
/// written past it.
#[test]
fn a_sector_at_the_edge_survives_growth() {
    let len = (1 << 20) + 512;
    let file = file_of(len);
    let Some(image) = open(&file, CacheMode::None) else { return };
    let image = coarse(image, file.path());
    on_io_thread(move |io| async move {
        io.plot(move |victim| match victim {
            Victim::Write { len: 512, .. } => Some(Trick::Delay(Duration::from_millis(50))),
            Victim::Write { len: 4096, .. } => Some(Trick::Delay(Duration::from_millis(150))),
            _ => None,
        });
        let sector = |value: u8| {
            let mem = ToGuest::new(SgList::host(512, 4096).unwrap());
            mem.write_at(0, &[value; 512]);
            FromGuest::new(mem.into_inner())
        };
        let mut first = Box::pin(image.write(&io, ByteOffset(len - 512), sector(1), Durability::Cached));
        assert!(poll_fn(|cx| Poll::Ready(first.as_mut().poll(cx).is_pending())).await);
        image.grow(&io, (1 << 20) + 4096).await.unwrap();
        let mut second = Box::pin(image.write(&io, ByteOffset(len), sector(2), Durability::Cached));
        let mut ended = [false; 2];
        poll_fn(|cx| {
            for (ended, write) in ended.iter_mut().zip([&mut first, &mut second]) {
                if !*ended && let Poll::Ready(result) = write.as_mut().poll(cx) {
                    result.unwrap();
                    *ended = true;
                }
            }
            if ended == [true; 2] { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    });
    let mut bytes = [0; 1024];
    file.as_file().read_exact_at(&mut bytes, len - 512).unwrap();
    assert_eq!((bytes[0], bytes[511], bytes[512], bytes[1023]), (1, 1, 2, 2));
}

#[test]
fn two_threads_share_one_image() {
    let file = file_of(1 << 20);
    let image = Arc::new(open(&file, CacheMode::Writeback).unwrap());
    let threads: Vec<_> = (0..2u64)
        .map(|n| {
            let image = image.clone();
            std::thread::spawn(move || {
                on_io_thread(move |io| async move {
                    for i in 0..200 {
                        let mem = ToGuest::new(SgList::host(512, 512).unwrap());
                        mem.write_at(0, &[n as u8 + 1; 512]);
                        let from = FromGuest::new(mem.into_inner());
                        image
                            .write(&io, ByteOffset((i * 2 + n) * 512), from, Durability::Cached)
                            .await
                            .unwrap();
                    }
                });
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    let got = on_io_thread(move |io| async move { contents(&io, &*image).await });
    for (sector, bytes) in got.chunks(512).take(400).enumerate() {
        assert!(bytes.iter().all(|&b| b == (sector % 2) as u8 + 1));
    }
}

#[test]
fn unmapping_gives_space_back_and_zeroing_keeps_it() {
    let file = file_of(1 << 20);
    let image = open(&file, CacheMode::Writeback).unwrap();
    let path = file.path().to_path_buf();
    on_io_thread(move |io| async move {
        let blocks = || fs::metadata(&path).unwrap().blocks();
        let data = ToGuest::new(SgList::host(1 << 20, 4096).unwrap());
        data.write_at(0, &vec![1; 1 << 20]);
        image.write(&io, ByteOffset(0), FromGuest::new(data.into_inner()), Durability::Stable).await.unwrap();
        let full = blocks();
        assert!(full >= 2048);
        let half = Span { at: ByteOffset(512 << 10), len: 512 << 10 };
        image.zero(&io, half, Unmap::Keep).await.unwrap();
        image.flush(&io).await.unwrap();
        assert!(blocks() >= full, "space stays allocated");
        image.zero(&io, half, Unmap::Allowed).await.unwrap();
        image.flush(&io).await.unwrap();
        assert!(blocks() <= full - 1000, "space is given back");
        let got = contents(&io, &image).await;
        assert!(got[..512 << 10].iter().all(|&b| b == 1) && got[512 << 10..].iter().all(|&b| b == 0));
        // Where the host can do neither, zeros are written.
        image.cannot_punch.store(true, Ordering::Relaxed);
        image.cannot_zero.store(true, Ordering::Relaxed);
        assert_eq!(image.geometry().discard_granularity, 0);
        let all = Span { at: ByteOffset(512), len: (1 << 20) - 512 };
        image.zero(&io, all, Unmap::Allowed).await.unwrap();
        let got = contents(&io, &image).await;
        assert!(got[..512].iter().all(|&b| b == 1) && got[512..].iter().all(|&b| b == 0));
    });
}

#[test]
fn a_read_only_image_refuses_writes() {
    let file = file_of(4096);
    let image = RawImage::open(&RawOptions { read_only: true, ..options(file.path(), CacheMode::Writeback) })
        .unwrap();
    assert!(image.geometry().read_only);
    on_io_thread(move |io| async move {
        let write = image.write(&io, ByteOffset(0), zeros(512), Durability::Cached).await;
        let error = write.unwrap_err();
        assert_eq!(error.kind, BlockErrorKind::ReadOnly);
        assert!(error.context.contains(&*image.host.name), "{error}");
        let zero = image.zero(&io, Span { at: ByteOffset(0), len: 512 }, Unmap::Allowed).await;
        assert_eq!(zero.unwrap_err().kind, BlockErrorKind::ReadOnly);
        image.flush(&io).await.unwrap();
        assert_eq!(contents(&io, &image).await, vec![0; 4096]);
    });
}

#[test]
fn a_file_that_shrinks_or_grows_is_noticed() {
    let file = file_of(8192);
    let image = open(&file, CacheMode::Writeback).unwrap();
    let inner = file.reopen().unwrap();
    on_io_thread(move |io| async move {
        inner.set_len(4096).unwrap();
        let image = Image::Raw(image);
        let mem = ToGuest::new(SgList::host(8192, 16).unwrap());
        let error = image.read(&io, ByteOffset(0), mem).await.unwrap_err();
        assert_eq!(error.kind, BlockErrorKind::ReadFailed);
        assert!(error.context.contains("truncated"), "{error}");
        inner.set_len(16384 + 511).unwrap();
        assert_eq!(image.geometry().len, 8192);
        image.refresh(&io).await;
        assert_eq!(image.geometry().len, 16384);
    });
}

#[test]
fn holes_take_no_space() {
    let file = file_of(3 << 20);
    let image = open(&file, CacheMode::Writeback).unwrap();
    file.as_file().write_all_at(&[1; 65536], 1 << 20).unwrap();
    on_io_thread(move |io| async move {
        let mut extents = Vec::new();
        let mut at = 0;
        while at < 3 << 20 {
            let span = Span { at: ByteOffset(at), len: (3 << 20) - at };
            let extent = image.extent(&io, span).await.unwrap();
            extents.push((at, extent.allocated, extent.len));
            at += extent.len;
        }
        let (mib, data) = (1 << 20, 65536);
        assert_eq!(extents, [(0, false, mib), (mib, true, data), (mib + data, false, 2 * mib - data)]);
    });
}

#[test]
fn host_errors_name_the_image() {
    let on = |device: &str, access: &mut fs::OpenOptions| {
        let mut image = RawImage::open(&options(file_of(4096).path(), CacheMode::Writeback)).unwrap();
        image.host.file = Arc::new(access.open(device).unwrap());
        Image::Raw(image).guarded(None, None)
    };
    let image = on("/dev/zero", File::options().read(true));
    on_io_thread(move |io| async move {
        let error = image.write(&io, ByteOffset(512), zeros(512), Durability::Cached).await.unwrap_err();
        assert_eq!(error.kind, BlockErrorKind::ReadOnly);
        assert!(error.context.contains("writing 512 bytes at 512 of"), "{error}");
        assert_eq!(error.source.unwrap().raw_os_error(), Some(libc::EBADF));
    });
    let full = on("/dev/full", File::options().write(true));
    on_io_thread(move |io| async move {
        let error = full.write(&io, ByteOffset(0), zeros(512), Durability::Cached).await.unwrap_err();
        assert_eq!(error.kind, BlockErrorKind::NoSpace);
    });
}

#[test]
fn what_cannot_be_opened_is_explained() {
    let message = |path: &str| {
        let error = RawImage::open(&options(Path::new(path), CacheMode::Writeback)).err().unwrap();
        assert!(error.message.contains(path), "{error}");
        error.message
    };
    assert!(message("/nonexistent/disk.img").contains("no such file"));
    assert!(message("/dev/null").contains("neither a regular file nor a block device"));
    assert!(message("/").contains("neither a regular file nor a block device"));
    let short = file_of(511);
    assert!(message(short.path().to_str().unwrap()).contains("512 bytes at least"));
}

#[test]
fn file_systems_without_direct_io_are_named_with_the_remedy() {
    // proc has regular files and refuses O_DIRECT.
    let options = RawOptions {
        path: "/proc/version".into(),
        read_only: true,
        cache: CacheMode::None,
        sharing: Sharing::Exclusive,
    };
    let error = RawImage::open(&options).err().unwrap();
    assert!(
        error.message.contains("/proc/version") && error.message.contains("cache = \"writeback\""),
        "{error}"
    );
}

mod locks {
    use super::*;
    use std::process::Command;

    fn open_as(path: &Path, read_only: bool, sharing: Sharing) -> Result<RawImage, OpenError> {
        RawImage::open(&RawOptions { read_only, sharing, ..options(path, CacheMode::Writeback) })
    }

    /// A process that another test is about to start has our open files, locks included, until it becomes its program.
    fn opens(path: &Path, read_only: bool, sharing: Sharing) -> RawImage {
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(5);
        loop {
            match open_as(path, read_only, sharing) {
                Ok(image) => return image,
                Err(e) if std::time::Instant::now() > patience => panic!("{e}"),
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
            }
        }
    }

    #[test]
    fn one_writer_or_many_readers() {
        let file = file_of(4096);
        let path = file.path();
        let writer = opens(path, false, Sharing::Exclusive);
        for read_only in [false, true] {
            let error = open_as(path, read_only, Sharing::Exclusive).err().unwrap();
            assert!(error.message.contains(path.to_str().unwrap()), "{error}");
            assert!(error.message.contains("two disks of this machine"), "{error}");
        }
        assert!(open_as(path, false, Sharing::Shared).is_err(), "the first does not share");
        let unlocked = opens(path, false, Sharing::Unlocked);
        drop((writer, unlocked));
        let readers: Vec<_> = (0..3).map(|_| opens(path, true, Sharing::Exclusive)).collect();
        assert!(open_as(path, false, Sharing::Exclusive).is_err());
        drop(readers);
        let shared: Vec<_> = (0..2).map(|_| opens(path, false, Sharing::Shared)).collect();
        assert!(open_as(path, true, Sharing::Exclusive).is_err());
        drop(shared);
        opens(path, false, Sharing::Exclusive);
    }

    /// The bytes of QEMU's scheme (block/file-posix.c), as another process finds them.
    #[test]
    fn lock_bytes_are_where_qemu_looks() {
        let file = file_of(4096);
        let bytes = |read_only, sharing| {
            let image = opens(file.path(), read_only, sharing);
            let probe = File::options().read(true).write(true).open(file.path()).unwrap();
            let taken = (0..400).filter(|&b| crate::storage::sys::is_byte_taken(&probe, b).unwrap());
            let taken: Vec<i64> = taken.collect();
            drop(image);
            taken
        };
        assert_eq!(bytes(false, Sharing::Exclusive), [100, 101, 201, 203]);
        assert_eq!(bytes(true, Sharing::Exclusive), [100, 201, 203]);
        assert_eq!(bytes(false, Sharing::Shared), [100, 101]);
        assert_eq!(bytes(false, Sharing::Unlocked), []);
    }

    #[test]
    fn qemu_and_we_keep_off_each_other() {
        let file = file_of(1 << 20);
        let path = file.path().to_str().unwrap();
        // Whether a lock refused QEMU's tool for writing; `None` where it is not installed.
        let refused = || {
            let run = Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 512", path]).output();
            run.ok().map(|out| String::from_utf8_lossy(&out.stderr).contains("lock"))
        };
        if refused().is_none() {
            return;
        }
        assert_eq!(refused(), Some(false));
        for read_only in [false, true] {
            let _held = opens(file.path(), read_only, Sharing::Exclusive);
            assert_eq!(refused(), Some(true));
        }
        let shared = opens(file.path(), false, Sharing::Shared);
        assert_eq!(refused(), Some(false));
        drop(shared);
        // The other way round: QEMU has it, and the message names the process.
        let mut run = Command::new("qemu-io");
        run.args(["-f", "raw", path]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
        let mut child = run.spawn().unwrap();
        let error = (0..100).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            open_as(file.path(), false, Sharing::Exclusive).err()
        });
        drop(child.stdin.take());
        child.wait().unwrap();
        let message = error.expect("QEMU holds the lock").message;
        assert!(message.contains(&format!("process {} (qemu-io)", child.id())), "{message}");
        opens(file.path(), false, Sharing::Exclusive);
    }
}

/// Destroys what is on the device.
#[test]
#[ignore = "needs a scratch block device of a few MiB in VMM_TEST_DEVICE"]
fn block_devices_conform() {
    let path = std::env::var("VMM_TEST_DEVICE").unwrap();
    for cache in CacheMode::ALL {
        let image = RawImage::open(&options(Path::new(&path), cache)).unwrap();
        let geometry = image.geometry();
        assert_eq!(geometry.dma_align > 1, cache.is_direct());
        on_io_thread(move |io| async move {
            check(&io, &image, 13, 150).await;
            check_neighbours(&io, Rc::new(image), 10).await;
        });
    }
}

#[test]
fn a_file_guarantees_no_atomic_write_whatever_it_is_behind() {
    for cache in CacheMode::ALL {
        let Some(image) = open(&file_of(1 << 20), cache) else { continue };
        assert_eq!(image.geometry().atomic, 0, "a file, {cache}");
    }
    for sector in [512, 4096] {
        let Some(device) = LoopDevice::new(1 << 20, sector) else { return };
        for cache in CacheMode::ALL {
            let image = RawImage::open(&options(device.path(), cache)).unwrap();
            assert_eq!(image.geometry().atomic, 0, "a loop device of sectors of {sector}, {cache}");
        }
    }
}

/// The device's own blocks count: it refuses what ends within one.
#[test]
fn a_device_ends_with_its_last_whole_block() {
    let Some(device) = LoopDevice::new((1 << 20) + 512, 4096) else { return };
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let image = RawImage::open(&options(device.path(), cache)).unwrap();
        on_io_thread(move |io| async move {
            let len = image.geometry().len;
            let into = SgList::host(512, 4096).unwrap();
            image.read(&io, ByteOffset(len - 512), ToGuest::new(into)).await.unwrap();
            assert_eq!(len, 1 << 20, "{cache}");
            let end = image.ending();
            assert_eq!((end.len, end.unit), ((1 << 20) + 512, 4096));
            image.refresh(&io).await;
            assert_eq!(image.geometry().len, 1 << 20, "{cache}");
        });
    }
}

#[test]
fn a_device_is_as_long_as_the_host_makes_it_and_no_longer() {
    let Some(device) = LoopDevice::new(1 << 20, 512) else { return };
    let image = RawImage::open(&options(device.path(), CacheMode::Writeback)).unwrap();
    let name = device.path().display().to_string();
    on_io_thread(move |io| async move {
        let error = image.grow(&io, 2 << 20).await.unwrap_err();
        let said =
            format!("\"{name}\" is a device of 1048576 bytes, fewer than 2097152; enlarge the device first");
        assert_eq!(error.to_string(), said);
        device.grow(4 << 20);
        // Nobody has looked at its size yet. What is asked for is there, and so is the rest.
        image.grow(&io, 2 << 20).await.unwrap();
        assert_eq!(image.geometry().len, 4 << 20);
        image.grow(&io, 4 << 20).await.unwrap();
        assert!(image.grow(&io, (4 << 20) + 512).await.is_err());
        image.write(&io, ByteOffset((4 << 20) - 4096), zeros(4096), Durability::Cached).await.unwrap();
    });
}

/// Zeros that the host cannot make itself are written, however many commands do so, from one buffer.
#[test]
fn zeros_are_in_memory_once() {
    let file = file_of(64 << 20);
    let image = open(&file, CacheMode::Writeback).unwrap();
    on_io_thread(move |io| async move {
        io.plot(|victim| match victim {
            Victim::Allocate => Some(Trick::Fail(libc::EOPNOTSUPP)),
            Victim::Write { .. } => Some(Trick::Hang),
            _ => None,
        });
        let before = allocated_bytes();
        let mut zeroing: Vec<_> = (0..64)
            .map(|at| image.zero(&io, Span { at: ByteOffset(at << 20), len: 1 << 20 }, Unmap::Keep))
            .map(Box::pin)
            .collect();
        for _ in 0..3 {
            for zero in &mut zeroing {
                let pending = poll_fn(|cx| Poll::Ready(zero.as_mut().poll(cx).is_pending())).await;
                assert!(pending);
            }
            io.sleep(Duration::from_millis(1)).await;
        }
        let bytes = allocated_bytes() - before;
        assert!(bytes < 1 << 20, "{bytes}");
        drop(zeroing);
        io.answer();
    });
}
