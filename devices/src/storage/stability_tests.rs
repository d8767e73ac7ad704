//! A host that loses what it had taken, and says so once.

use std::fs::File;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use super::*;
use crate::iothread::Io;
use crate::iothread::mischief::{Trick, Victim};
use crate::mem::{FromGuest, SgList, ToGuest};
use crate::storage::raw::Forcing;
use crate::storage::{
    BlockBackend, ByteOffset, CacheMode, Durability, Image, Parking, Pausing, RawImage, RawOptions, Sharing,
    SpaceWatch, Span, Unmap,
};
use crate::testing::{on_io_thread, temp_file};

const LEN: u64 = 1 << 20;
const CACHED: [CacheMode; 2] = [CacheMode::Writeback, CacheMode::Writethrough];
const DIRECT: [CacheMode; 2] = [CacheMode::None, CacheMode::Directsync];

fn file_of(len: u64) -> tempfile::NamedTempFile {
    let file = temp_file();
    file.as_file().set_len(len).unwrap();
    file
}

/// `None` where the file system has no direct I/O.
fn open(file: &tempfile::NamedTempFile, cache: CacheMode) -> Option<RawImage> {
    let options =
        RawOptions { path: file.path().into(), read_only: false, cache, sharing: Sharing::Unlocked };
    match RawImage::open(&options) {
        Ok(mut image) => {
            // Whatever file system the tests are on.
            image.force_by(Forcing::Flag);
            Some(image)
        }
        Err(e) if cache.is_direct() && e.message.contains("no direct I/O") => None,
        Err(e) => panic!("{e}"),
    }
}

fn data(value: u8) -> FromGuest {
    let mem = ToGuest::new(SgList::host(4096, 4096).unwrap());
    mem.write_at(0, &[value; 4096]);
    FromGuest::new(mem.into_inner())
}

async fn put(io: &Io, image: &impl BlockBackend, at: u64, durability: Durability) -> Result<(), BlockError> {
    image.write(io, ByteOffset(at), data(7), durability).await
}

fn kind(result: Result<(), BlockError>) -> Option<BlockErrorKind> {
    result.err().map(|error| error.kind)
}

const UNSTABLE: Option<BlockErrorKind> = Some(BlockErrorKind::Unstable);

/// Hits the next operation that `wanted` chooses; the kernel reports an error once.
fn once(wanted: impl Fn(Victim) -> bool + 'static, trick: Trick) -> impl FnMut(Victim) -> Option<Trick> {
    let mut left = Some(trick);
    move |victim| if wanted(victim) { left.take() } else { None }
}

fn is_sync(victim: Victim) -> bool {
    victim == Victim::Sync
}

fn is_stable_write(victim: Victim) -> bool {
    matches!(victim, Victim::Write { stable: true, .. })
}

/// Nothing can be made stable; all else works.
async fn is_over(io: &Io, image: &Image, cache: CacheMode) {
    let span = Span { at: ByteOffset(0), len: 4096 };
    assert!(image.has_failed());
    for _ in 0..2 {
        assert_eq!(kind(image.flush(io).await), UNSTABLE, "{cache}: a later flush");
        assert_eq!(kind(put(io, image, 0, Durability::Stable).await), UNSTABLE, "{cache}: a forced write");
        let all = if cache.is_stable() { UNSTABLE } else { None };
        assert_eq!(kind(put(io, image, 0, Durability::Cached).await), all, "{cache}: a write");
        assert_eq!(kind(image.zero(io, span, Unmap::Allowed).await), all, "{cache}: zeroing");
        let into = ToGuest::new(SgList::host(4096, 4096).unwrap());
        assert_eq!(kind(image.read(io, ByteOffset(0), into).await), None, "{cache}: a read");
    }
    assert_eq!(kind(image.close(io).await), UNSTABLE, "{cache}: the end");
}

#[test]
fn a_flush_that_failed_fails_until_the_image_is_opened_anew() {
    let errors = [libc::EIO, libc::ENOSPC, libc::EDQUOT, libc::EFBIG, libc::EINTR, libc::EROFS, libc::EBADE];
    for cache in CACHED.into_iter().chain(DIRECT) {
        for error in errors {
            let file = file_of(LEN);
            for fails in [true, false] {
                let Some(image) = open(&file, cache) else { continue };
                on_io_thread(move |io| async move {
                    let image = Image::Raw(image).guarded(None, None);
                    put(&io, &image, 0, Durability::Cached).await.unwrap();
                    if !fails {
                        image.flush(&io).await.unwrap();
                        assert!(!image.has_failed());
                        return image.close(&io).await.unwrap();
                    }
                    io.plot(once(is_sync, Trick::Fail(error)));
                    assert_eq!(kind(image.flush(&io).await), UNSTABLE, "{cache}, {error}");
                    io.repent();
                    is_over(&io, &image, cache).await;
                });
            }
        }
    }
}

#[test]
fn a_forced_write_that_failed_in_the_page_cache_ends_stability() {
    for cache in CACHED {
        for error in [libc::EIO, libc::EROFS, libc::ENODEV] {
            let file = file_of(LEN);
            let image = open(&file, cache).unwrap();
            on_io_thread(move |io| async move {
                let image = Image::Raw(image).guarded(None, None);
                io.plot(once(is_stable_write, Trick::Fail(error)));
                assert_eq!(kind(put(&io, &image, 0, Durability::Stable).await), UNSTABLE, "{cache}, {error}");
                io.repent();
                is_over(&io, &image, cache).await;
            });
        }
    }
}

/// Nothing is in the page cache: the error is that of the write alone, which the guest repeats.
#[test]
fn a_forced_write_that_failed_past_the_page_cache_may_be_repeated() {
    for cache in DIRECT {
        let file = file_of(LEN);
        let Some(image) = open(&file, cache) else { continue };
        on_io_thread(move |io| async move {
            let image = Image::Raw(image).guarded(None, None);
            io.plot(once(is_stable_write, Trick::Fail(libc::EIO)));
            let failed = kind(put(&io, &image, 0, Durability::Stable).await);
            assert_eq!(failed, Some(BlockErrorKind::WriteFailed));
            put(&io, &image, 0, Durability::Stable).await.unwrap();
            image.flush(&io).await.unwrap();
            assert!(!image.has_failed());
        });
    }
}

/// With direct I/O the end of a file that ends within a block goes through the page cache, forced or not.
#[test]
fn an_odd_edge_is_in_the_page_cache() {
    for (edge, error, wanted) in [
        (Durability::Stable, libc::EIO, UNSTABLE),
        (Durability::Stable, libc::ENOSPC, Some(BlockErrorKind::NoSpace)),
        (Durability::Cached, libc::EIO, Some(BlockErrorKind::WriteFailed)),
    ] {
        let file = file_of(LEN + 512);
        let Some(image) = open(&file, CacheMode::None) else { continue };
        let image = crate::storage::raw::coarse(image, file.path());
        on_io_thread(move |io| async move {
            let image = Image::Raw(image).guarded(None, None);
            let sector = |n: usize| FromGuest::new(SgList::host(n, 4096).unwrap());
            let at_edge = |victim| matches!(victim, Victim::Write { at, .. } if at >= LEN);
            io.plot(once(at_edge, Trick::Fail(error)));
            let result = image.write(&io, ByteOffset(LEN), sector(512), edge).await;
            assert_eq!(kind(result), wanted);
            let over = if wanted == UNSTABLE { UNSTABLE } else { None };
            assert_eq!(kind(image.flush(&io).await), over);
            if over.is_some() {
                return;
            }
            // What lies there can be lost, and another forced write can be the one that hears of it.
            image.write(&io, ByteOffset(LEN), sector(512), Durability::Cached).await.unwrap();
            io.plot(once(is_stable_write, Trick::Fail(libc::EIO)));
            assert_eq!(kind(put(&io, &image, 0, Durability::Stable).await), UNSTABLE);
            assert_eq!(kind(image.flush(&io).await), UNSTABLE);
        });
    }
}

/// On a network file system a plain write takes the error of what was lost before, and the guest repeats it.
#[test]
fn a_cached_write_never_takes_the_error_of_lost_data_with_it() {
    for cache in [CacheMode::Writeback, CacheMode::None] {
        for error in [libc::ENOSPC, libc::EDQUOT, libc::EFBIG, libc::EIO] {
            for pauses in [false, true] {
                let file = file_of(LEN);
                let Some(image) = open(&file, cache) else { continue };
                on_io_thread(move |io| async move {
                    let (pausing, watch) = pausing();
                    let parking = pausing.parking.clone();
                    let image = Image::Raw(image).guarded(None, pauses.then_some(pausing));
                    put(&io, &image, 0, Durability::Cached).await.unwrap();
                    io.lose(error, true);
                    let mut second = pin!(put(&io, &image, 4096, Durability::Cached));
                    let ended = poll_fn(|cx| match second.as_mut().poll(cx) {
                        Poll::Pending if watch.0.load(Ordering::Relaxed) > 0 => Poll::Ready(None),
                        ended => ended.map(Some),
                    });
                    match ended.await {
                        Some(result) => assert!(result.is_err(), "{cache}, {error}"),
                        None => {
                            parking.resume();
                            second.await.unwrap();
                        }
                    }
                    assert_eq!(kind(image.flush(&io).await), UNSTABLE, "{cache}, {error}");
                    io.repent();
                    is_over(&io, &image, cache).await;
                });
            }
        }
    }
}

/// The command of a forced write is aborted after that took the error, and before the image has asked what it meant.
#[test]
fn a_forced_write_that_is_aborted_never_takes_the_error_of_lost_data_with_it() {
    for cache in CACHED {
        let file = file_of(LEN);
        let image = open(&file, cache).unwrap();
        on_io_thread(move |io| async move {
            let image = Image::Raw(image).guarded(None, None);
            io.lose(libc::ENOSPC, false);
            let asked = Rc::new(AtomicU32::new(0));
            let (seen, mut delay) = (asked.clone(), Some(Trick::Delay(Duration::from_secs(3600))));
            io.plot(move |victim| {
                let trick = is_sync(victim).then(|| delay.take()).flatten();
                seen.fetch_add(trick.is_some().into(), Ordering::Relaxed);
                trick
            });
            {
                let mut forced = pin!(put(&io, &image, 0, Durability::Stable));
                poll_fn(|cx| {
                    assert!(forced.as_mut().poll(cx).is_pending());
                    if asked.load(Ordering::Relaxed) > 0 { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
            }
            io.quiesce().await;
            assert_eq!(kind(image.flush(&io).await), UNSTABLE, "{cache}");
            io.repent();
            is_over(&io, &image, cache).await;
        });
    }
}

/// With direct I/O the forced write goes through the descriptor that was synced.
#[test]
fn a_forced_write_past_the_page_cache_takes_no_error_of_an_odd_edge_with_it() {
    let file = file_of(LEN + 512);
    let Some(image) = open(&file, CacheMode::None) else { return };
    let image = crate::storage::raw::coarse(image, file.path());
    on_io_thread(move |io| async move {
        let image = Image::Raw(image).guarded(None, None);
        let sector = FromGuest::new(SgList::host(512, 4096).unwrap());
        image.write(&io, ByteOffset(LEN), sector, Durability::Cached).await.unwrap();
        io.lose(libc::ENOSPC, false);
        assert_eq!(kind(put(&io, &image, 0, Durability::Stable).await), UNSTABLE);
        io.repent();
        is_over(&io, &image, CacheMode::None).await;
    });
}

#[derive(Default)]
struct Watch(AtomicU32);

impl SpaceWatch for Watch {
    fn no_space(&self, _: &BlockError) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn pausing() -> (Pausing, Arc<Watch>) {
    let watch = Arc::new(Watch::default());
    (Pausing { parking: Arc::new(Parking::default()), watch: watch.clone() }, watch)
}

#[test]
fn a_flush_without_space_never_waits_for_it() {
    for cache in CACHED.into_iter().chain(DIRECT) {
        for error in [libc::ENOSPC, libc::EDQUOT, libc::EFBIG] {
            let file = file_of(LEN);
            let Some(image) = open(&file, cache) else { continue };
            on_io_thread(move |io| async move {
                let (pausing, watch) = pausing();
                let image = Image::Raw(image).guarded(None, Some(pausing));
                put(&io, &image, 0, Durability::Cached).await.unwrap();
                io.plot(once(is_sync, Trick::Fail(error)));
                assert_eq!(kind(image.flush(&io).await), UNSTABLE, "{cache}, {error}");
                assert_eq!(kind(image.flush(&io).await), UNSTABLE, "{cache}, {error}");
                assert_eq!(watch.0.load(Ordering::Relaxed), 0, "nobody waits");
            });
        }
    }
}

/// A forced write that the full host refused is tried again with its data, if nothing else was lost with it.
#[test]
fn a_forced_write_without_space_waits_unless_something_was_lost() {
    for cache in CACHED {
        for lost in [false, true] {
            let file = file_of(LEN);
            let image = open(&file, cache).unwrap();
            on_io_thread(move |io| async move {
                let (pausing, watch) = pausing();
                let parking = pausing.parking.clone();
                let image = Rc::new(Image::Raw(image).guarded(None, Some(pausing)));
                let (mut write, mut sync) = (Some(libc::ENOSPC), lost.then_some(libc::ENOSPC));
                io.plot(move |victim| match victim {
                    Victim::Write { stable: true, .. } => write.take().map(Trick::Fail),
                    Victim::Sync => sync.take().map(Trick::Fail),
                    _ => None,
                });
                let mut result = pin!(put(&io, &*image, 0, Durability::Stable));
                if lost {
                    assert_eq!(kind(result.await), UNSTABLE, "{cache}");
                    is_over(&io, &image, cache).await;
                    return;
                }
                let parked = poll_fn(|cx| {
                    assert!(result.as_mut().poll(cx).is_pending(), "{cache}: it waits");
                    if watch.0.load(Ordering::Relaxed) > 0 { Poll::Ready(()) } else { Poll::Pending }
                });
                parked.await;
                parking.resume();
                result.await.unwrap();
                image.flush(&io).await.unwrap();
                assert!(!image.has_failed());
            });
            let first = std::fs::read(file.path()).unwrap()[0];
            assert!(lost || first == 7, "{cache}: its data is there");
        }
    }
}

#[test]
fn an_error_that_one_hears_is_that_of_all_under_way() {
    let latch = Stability::new("disk.img".into());
    let mut cx = Context::from_waker(Waker::noop());
    // Before: believed, as nothing else was under way.
    let alone = pin!(latch.attempt().succeeded(Action::Write));
    assert!(matches!(alone.poll(&mut cx), Poll::Ready(Ok(()))));
    let (a, b) = (latch.attempt(), latch.attempt());
    let mut a = pin!(a.succeeded(Action::Write));
    assert!(a.as_mut().poll(&mut cx).is_pending(), "the other may hear of an error that is also ours");
    // What begins later did not take an error from it.
    let later = latch.attempt();
    let mut b = pin!(b.succeeded(Action::Flush));
    assert!(b.as_mut().poll(&mut cx).is_pending());
    assert!(matches!(a.poll(&mut cx), Poll::Ready(Ok(()))));
    let error = later.failed(Action::Flush, io::Error::from_raw_os_error(libc::EIO));
    assert_eq!(error.kind, BlockErrorKind::Unstable);
    assert!(matches!(b.poll(&mut cx), Poll::Ready(Err(_))));
    assert!(latch.lock().under_way.is_empty());
}

/// The same through the ring: the second write hears of the error, the first one not.
#[test]
fn writes_and_flushes_that_overlap_a_failure_fail() {
    for (first_is_flush, late) in [(false, is_stable_write as fn(Victim) -> bool), (true, is_stable_write)] {
        let file = file_of(LEN);
        let image = open(&file, CacheMode::Writeback).unwrap();
        on_io_thread(move |io| async move {
            let image = Image::Raw(image).guarded(None, None);
            io.plot(move |victim| {
                let hit = late(victim) && matches!(victim, Victim::Write { at: 4096, .. });
                hit.then_some(Trick::FailLate(Duration::from_millis(20), libc::EIO))
            });
            let mut second = pin!(put(&io, &image, 4096, Durability::Stable));
            let mut first = pin!(async {
                match first_is_flush {
                    true => image.flush(&io).await,
                    false => put(&io, &image, 0, Durability::Stable).await,
                }
            });
            let mut ends = (None, None);
            poll_fn(|cx| {
                if ends.1.is_none()
                    && let Poll::Ready(result) = second.as_mut().poll(cx)
                {
                    ends.1 = Some(kind(result));
                }
                if ends.0.is_none()
                    && let Poll::Ready(result) = first.as_mut().poll(cx)
                {
                    ends.0 = Some(kind(result));
                }
                if ends.0.is_some() && ends.1.is_some() { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            assert_eq!(ends, (Some(UNSTABLE), Some(UNSTABLE)), "flush: {first_is_flush}");
        });
    }
}

/// Neither synced nor written at a place.
fn pipe() -> Arc<File> {
    let (_, write) = io::pipe().unwrap();
    Arc::new(File::from(std::os::fd::OwnedFd::from(write)))
}

/// On the short way, with an error of the kernel's own: it does not flush pipes.
#[test]
fn the_short_way_remembers_too() {
    let file = file_of(LEN);
    let mut image = open(&file, CacheMode::Writeback).unwrap();
    let real = image.exchange_audit(pipe()).unwrap();
    on_io_thread(move |io| async move {
        let mut image = Image::Raw(image);
        assert_eq!(kind(image.flush(&io).await), UNSTABLE);
        let Image::Raw(raw) = &mut image else { return };
        raw.exchange_audit(real);
        is_over(&io, &image, CacheMode::Writeback).await;
    });
    // A forced write: the pipe has no place to write at.
    let mut image = open(&file, CacheMode::Writeback).unwrap();
    let real = image.exchange_file(pipe());
    on_io_thread(move |io| async move {
        let mut image = Image::Raw(image);
        assert_eq!(kind(put(&io, &image, 0, Durability::Stable).await), UNSTABLE);
        let Image::Raw(raw) = &mut image else { return };
        raw.exchange_file(real);
        is_over(&io, &image, CacheMode::Writeback).await;
    });
}

/// A flush whose command was aborted still takes the kernel's error with it.
#[test]
fn an_abandoned_flush_is_not_forgotten() {
    let file = file_of(LEN);
    let mut image = open(&file, CacheMode::Writeback).unwrap();
    let real = image.exchange_audit(pipe()).unwrap();
    on_io_thread(move |io| async move {
        let mut image = Image::Raw(image);
        {
            let mut flush = Box::pin(image.flush(&io));
            let begun = poll_fn(|cx| Poll::Ready(flush.as_mut().poll(cx).is_pending())).await;
            assert!(begun);
            // The ring ends it meanwhile.
            io.sleep(Duration::from_millis(100)).await;
        }
        io.quiesce().await;
        let Image::Raw(raw) = &mut image else { return };
        raw.exchange_audit(real);
        is_over(&io, &image, CacheMode::Writeback).await;
    });
}

#[test]
fn what_was_cancelled_took_no_error_with_it() {
    let latch = Stability::new("disk.img".into());
    for harmless in [0, 4096, -libc::ECANCELED, -libc::EINTR] {
        latch.abandoned(0, harmless);
        assert!(!latch.has_failed(), "{harmless}");
    }
    latch.abandoned(0, -libc::EIO);
    assert!(latch.has_failed());
}

#[test]
fn the_operator_hears_of_it_once() {
    let said = crate::log::recorded(tracing::Level::WARN, || {
        let latch = Stability::new("/images/disk.img".into());
        for _ in 0..3 {
            latch.fail(Action::Flush, io::Error::from_raw_os_error(libc::EIO));
            assert!(latch.check(Action::Flush).is_err());
        }
    });
    assert_eq!(said.len(), 1, "{said:?}");
    for part in ["/images/disk.img", "Input/output error", "shut the guest down", "check the file system"] {
        assert!(said[0].contains(part), "{}", said[0]);
    }
}

/// The machine ends or the disk is detached already: there is nothing to shut down or to detach.
#[test]
fn what_is_found_when_the_image_is_closed_is_said_so() {
    let file = file_of(LEN);
    let said = crate::log::recorded(tracing::Level::WARN, || {
        let image = open(&file, CacheMode::Writeback).unwrap();
        image.begin_closing();
        let latch = image.latch();
        let error = latch.fail(Action::Flush, io::Error::from_raw_os_error(libc::EIO));
        assert!(!error.to_string().contains("anew"), "{error}");
    });
    assert_eq!(said.len(), 1, "{said:?}");
    for part in ["Input/output error", "when the image was closed", "may be lost", "check the file system"] {
        assert!(said[0].contains(part), "{}", said[0]);
    }
    assert!(!said[0].contains("shut the guest down") && !said[0].contains("from now on"), "{}", said[0]);
}

#[path = "untried_tests.rs"]
mod untried;

#[path = "forcing_tests.rs"]
mod forcing;

#[path = "unflushed_tests.rs"]
mod unflushed;
