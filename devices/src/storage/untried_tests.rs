//! A kernel that can start no thread for what it is asked.

use super::*;

/// As where the kernel can start no thread for it: nothing was begun, and nothing is wrong with the data.
#[test]
fn what_the_kernel_never_began_is_begun_again_and_ends_nothing() {
    /// The first `count` operations that `wanted` chooses are not begun.
    fn not_begun(wanted: fn(Victim) -> bool, count: usize) -> impl FnMut(Victim) -> Option<Trick> {
        let mut left = count;
        move |victim| {
            let hit = wanted(victim) && left > 0;
            left -= usize::from(hit);
            hit.then_some(Trick::Fail(libc::ECANCELED))
        }
    }
    const RESOURCES: Option<BlockErrorKind> = Some(BlockErrorKind::HostResources);
    for cache in CACHED.into_iter().chain(DIRECT) {
        let file = file_of(LEN);
        let Some(image) = open(&file, cache) else { continue };
        let path = file.path().to_owned();
        on_io_thread(move |io| async move {
            let image = Image::Raw(image).guarded(None, None);
            for syncs in [true, false] {
                let wanted = if syncs { is_sync } else { is_stable_write };
                for (count, ends) in [(2, None), (usize::MAX, RESOURCES)] {
                    io.plot(not_begun(wanted, count));
                    let forced = kind(put(&io, &image, 0, Durability::Stable).await);
                    let flush = kind(image.flush(&io).await);
                    let (of_sync, of_write) = if syncs { (ends, None) } else { (None, ends) };
                    assert_eq!((flush, forced), (of_sync, of_write), "{cache}, {count}");
                    assert!(!image.has_failed(), "{cache}, {count}");
                }
            }
            assert_eq!(std::fs::read(path).unwrap()[0], 7, "{cache}: its data is there");
            // What it was asked for while it had no thread is no answer to what it says then.
            io.plot(not_begun(is_stable_write, usize::MAX));
            assert_eq!(kind(put(&io, &image, 4096, Durability::Stable).await), RESOURCES, "{cache}");
            io.repent();
            image.flush(&io).await.unwrap();
            let mut left = 2;
            io.plot(move |victim| {
                let hit = is_sync(victim).then_some(Trick::Fail(libc::EIO))?;
                left -= 1;
                Some(if left > 0 { Trick::Fail(libc::ECANCELED) } else { hit })
            });
            assert_eq!(kind(image.flush(&io).await), UNSTABLE, "{cache}");
            io.repent();
            is_over(&io, &image, cache).await;
        });
    }
}

/// A forced write that was not begun, or not all of it, beside data that is lost.
#[test]
fn a_forced_write_that_was_not_begun_does_not_hide_a_loss() {
    for cache in CACHED {
        let file = file_of(LEN);
        let image = open(&file, cache).unwrap();
        on_io_thread(move |io| async move {
            let image = Image::Raw(image).guarded(None, None);
            io.plot(|victim| match victim {
                Victim::Write { stable: true, .. } => Some(Trick::Fail(libc::ECANCELED)),
                Victim::Sync => Some(Trick::Fail(libc::EIO)),
                _ => None,
            });
            assert_eq!(kind(put(&io, &image, 0, Durability::Stable).await), UNSTABLE, "{cache}");
            io.repent();
            is_over(&io, &image, cache).await;
        });
    }
}

/// Who gives a flush up has it cancelled, and it is not begun again.
#[test]
fn a_flush_that_is_given_up_is_not_begun_again() {
    let file = file_of(LEN);
    let image = open(&file, CacheMode::Writeback).unwrap();
    on_io_thread(move |io| async move {
        let image = Image::Raw(image);
        let syncs = Rc::new(std::cell::Cell::new(0));
        let seen = syncs.clone();
        io.plot(move |victim| {
            seen.set(seen.get() + u32::from(is_sync(victim)));
            is_sync(victim).then_some(Trick::Fail(libc::ECANCELED))
        });
        assert!(io.at_most(Duration::from_millis(2), image.flush(&io)).await.is_none());
        io.sleep(Duration::from_millis(200)).await;
        assert_eq!((syncs.get(), image.has_failed()), (1, false));
        io.repent();
        image.flush(&io).await.unwrap();
    });
}

/// One forced write hears of what another has lost, and is not told by a sync what it was.
#[test]
fn what_nobody_can_tell_is_not_believed() {
    for aborted in [false, true] {
        let file = file_of(LEN);
        let image = open(&file, CacheMode::Writethrough).unwrap();
        on_io_thread(move |io| async move {
            let image = Image::Raw(image).guarded(None, None);
            io.plot(move |victim| match victim {
                Victim::Write { at: 0, .. } => Some(Trick::Fail(libc::ENOSPC)),
                Victim::Write { .. } => Some(Trick::Delay(Duration::from_millis(20))),
                Victim::Sync if aborted => Some(Trick::Delay(Duration::from_secs(3600))),
                Victim::Sync => Some(Trick::Fail(libc::ECANCELED)),
                _ => None,
            });
            let mut other = pin!(put(&io, &image, 4096, Durability::Stable));
            assert!(poll_fn(|cx| Poll::Ready(other.as_mut().poll(cx).is_pending())).await);
            {
                let mut heard = pin!(put(&io, &image, 0, Durability::Stable));
                if aborted {
                    assert!(io.at_most(Duration::from_millis(5), heard.as_mut()).await.is_none());
                } else {
                    assert!(heard.await.is_err());
                }
            }
            assert_eq!(kind(other.await), Some(BlockErrorKind::HostResources), "aborted: {aborted}");
            assert!(!image.has_failed());
            // Nothing was lost after all: those after it are believed, with a flush between or not.
            io.repent();
            assert_eq!(kind(put(&io, &image, 8192, Durability::Stable).await), None);
            image.flush(&io).await.unwrap();
            assert_eq!(kind(put(&io, &image, 4096, Durability::Stable).await), None);
        });
    }
}
