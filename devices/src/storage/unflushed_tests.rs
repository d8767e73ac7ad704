//! Forced writes past the page cache, which may hear of what was written before.

use super::*;

/// The device that is flushed for a forced write may have lost what it had taken, and says so once.
#[test]
fn a_forced_write_that_failed_is_for_good_when_something_was_not_flushed() {
    for (flushed, zeroed) in [(false, false), (false, true), (true, false)] {
        let file = file_of(LEN);
        let Some(image) = open(&file, CacheMode::None) else { return };
        on_io_thread(move |io| async move {
            let image = Image::Raw(image).guarded(None, None);
            match zeroed {
                false => put(&io, &image, 4096, Durability::Cached).await.unwrap(),
                true => {
                    let span = Span { at: ByteOffset(0), len: LEN / 2 };
                    image.zero(&io, span, Unmap::Allowed).await.unwrap();
                }
            }
            assert!(image.is_unflushed());
            if flushed {
                image.flush(&io).await.unwrap();
                assert!(!image.is_unflushed());
            }
            io.plot(once(is_stable_write, Trick::Fail(libc::EIO)));
            let failed = kind(put(&io, &image, 0, Durability::Stable).await);
            if flushed {
                assert_eq!(failed, Some(BlockErrorKind::WriteFailed));
                put(&io, &image, 0, Durability::Stable).await.unwrap();
                return image.flush(&io).await.unwrap();
            }
            assert_eq!(failed, UNSTABLE, "zeroed: {zeroed}");
            io.repent();
            is_over(&io, &image, CacheMode::None).await;
        });
    }
}

/// What a full host refuses is not taken for a loss.
#[test]
fn a_forced_write_that_was_refused_is_its_own() {
    let file = file_of(LEN);
    let Some(image) = open(&file, CacheMode::None) else { return };
    on_io_thread(move |io| async move {
        let image = Image::Raw(image).guarded(None, None);
        put(&io, &image, 4096, Durability::Cached).await.unwrap();
        io.plot(once(is_stable_write, Trick::Fail(libc::ENOSPC)));
        let failed = kind(put(&io, &image, 0, Durability::Stable).await);
        assert_eq!(failed, Some(BlockErrorKind::NoSpace));
        image.flush(&io).await.unwrap();
    });
}

#[test]
fn the_short_way_past_the_page_cache_remembers_too() {
    for cached in [false, true] {
        let file = file_of(LEN);
        let Some(image) = open(&file, CacheMode::None) else { return };
        on_io_thread(move |io| async move {
            let mut image = Image::Raw(image);
            if cached {
                put(&io, &image, 4096, Durability::Cached).await.unwrap();
            }
            let Image::Raw(raw) = &mut image else { return };
            // The pipe has no place to write at.
            let real = raw.exchange_file(pipe());
            let wanted = if cached { UNSTABLE } else { Some(BlockErrorKind::WriteFailed) };
            assert_eq!(kind(put(&io, &image, 0, Durability::Stable).await), wanted);
            let Image::Raw(raw) = &mut image else { return };
            raw.exchange_file(real);
            assert_eq!(image.flush(&io).await.is_err(), cached);
        });
    }
}

#[test]
fn one_whose_command_was_aborted_is_not_forgotten() {
    let latch = Stability::new("disk.img".into());
    latch.abandoned(ALONE, -libc::EIO);
    assert!(!latch.has_failed(), "nothing else was written");
    drop(latch.unflushed.change());
    latch.abandoned(ALONE, -libc::ECANCELED);
    assert!(!latch.has_failed());
    latch.abandoned(ALONE, -libc::EIO);
    assert!(latch.has_failed());
}

/// What a flush is for.
#[test]
fn an_image_knows_whether_a_flush_would_do_anything() {
    for cache in CacheMode::ALL {
        let file = file_of(LEN);
        let Some(image) = open(&file, cache) else { continue };
        on_io_thread(move |io| async move {
            let image = Image::Raw(image).guarded(None, None);
            let volatile = matches!(cache, CacheMode::None | CacheMode::Writeback);
            assert!(!image.is_unflushed(), "{cache}");
            put(&io, &image, 0, Durability::Stable).await.unwrap();
            assert!(!image.is_unflushed(), "{cache}: a forced write");
            for long_way in [false, true] {
                if long_way {
                    io.plot(|_| None);
                }
                put(&io, &image, 0, Durability::Cached).await.unwrap();
                assert_eq!(image.is_unflushed(), volatile, "{cache}: a write");
                image.flush(&io).await.unwrap();
                assert!(!image.is_unflushed(), "{cache}: a flush");
            }
            image.zero(&io, Span { at: ByteOffset(0), len: 4096 }, Unmap::Keep).await.unwrap();
            assert_eq!(image.is_unflushed(), volatile, "{cache}: zeroing");
            image.flush(&io).await.unwrap();
        });
    }
}
