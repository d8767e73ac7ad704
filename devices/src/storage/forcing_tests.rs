//! File systems that do nothing for RWF_DSYNC, or sync what a descriptor has written only.

use std::cell::RefCell;

use super::*;

fn open_unknown(file: &tempfile::NamedTempFile, cache: CacheMode) -> Option<RawImage> {
    let mut image = open(file, cache)?;
    image.force_by(Forcing::Sync);
    Some(image)
}

#[test]
fn a_forced_write_is_a_write_and_a_sync() {
    for cache in CACHED.into_iter().chain(DIRECT) {
        let file = file_of(LEN);
        let Some(image) = open_unknown(&file, cache) else { continue };
        on_io_thread(move |io| async move {
            let image = Image::Raw(image).guarded(None, None);
            let seen = Rc::new(RefCell::new(Vec::new()));
            let list = seen.clone();
            io.plot(move |victim| {
                list.borrow_mut().push(victim);
                None
            });
            put(&io, &image, 0, Durability::Stable).await.unwrap();
            let write = Victim::Write { at: 0, len: 4096, stable: false };
            // With the page cache, the descriptor that nothing is written through is asked as well.
            let syncs = if cache.is_direct() { 1 } else { 2 };
            let wanted: Vec<_> =
                std::iter::once(write).chain(std::iter::repeat_n(Victim::Sync, syncs)).collect();
            assert_eq!(seen.take(), wanted, "{cache}");
            image.flush(&io).await.unwrap();
            assert_eq!(seen.take(), wanted[1..], "{cache}");
        });
    }
}

#[test]
fn its_sync_is_for_good_and_its_write_is_not() {
    for cache in CACHED.into_iter().chain(DIRECT) {
        for (last, error) in [(false, libc::EIO), (false, libc::ENOSPC), (true, libc::EIO)] {
            let file = file_of(LEN);
            let Some(image) = open_unknown(&file, cache) else { continue };
            on_io_thread(move |io| async move {
                let image = Image::Raw(image).guarded(None, None);
                let mut earlier = u32::from(last && !cache.is_direct());
                io.plot(move |victim| {
                    let hit = is_sync(victim) && std::mem::replace(&mut earlier, 0) == 0;
                    hit.then_some(Trick::Fail(error))
                });
                assert_eq!(kind(put(&io, &image, 0, Durability::Stable).await), UNSTABLE, "{cache}, {error}");
                io.repent();
                is_over(&io, &image, cache).await;
            });
        }
        let file = file_of(LEN);
        let Some(image) = open_unknown(&file, cache) else { continue };
        on_io_thread(move |io| async move {
            let image = Image::Raw(image).guarded(None, None);
            io.plot(once(|victim| matches!(victim, Victim::Write { .. }), Trick::Fail(libc::ENOSPC)));
            let failed = kind(put(&io, &image, 0, Durability::Stable).await);
            assert_eq!(failed, Some(BlockErrorKind::NoSpace), "{cache}");
            put(&io, &image, 0, Durability::Stable).await.unwrap();
            image.flush(&io).await.unwrap();
        });
    }
}

/// As on sshfs, where the descriptor that wrote hears how the writes ended, and no other.
#[test]
fn a_flush_is_of_the_descriptor_that_wrote() {
    for cache in CACHED.into_iter().chain(DIRECT) {
        let file = file_of(LEN);
        let Some(mut image) = open_unknown(&file, cache) else { continue };
        // The kernel syncs no pipe.
        let real = image.exchange_file(pipe());
        on_io_thread(move |io| async move {
            let mut image = Image::Raw(image);
            assert_eq!(kind(image.flush(&io).await), UNSTABLE, "{cache}");
            let Image::Raw(raw) = &mut image else { return };
            raw.exchange_file(real);
            is_over(&io, &image, cache).await;
        });
    }
    // And of what hears of pages that were lost.
    let file = file_of(LEN);
    let mut image = open_unknown(&file, CacheMode::Writeback).unwrap();
    image.exchange_audit(pipe());
    on_io_thread(move |io| async move {
        assert_eq!(kind(Image::Raw(image).flush(&io).await), UNSTABLE);
    });
}
