//! Data that the host has lost and still shows.
//!
//! A page that the kernel could not write is clean afterwards, so it is read as if it were on the disk, until the kernel
//! needs its memory and what was there before comes back. Whoever opens the image next shall see at once what there is.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::RawImage;
use crate::iothread::{Io, Owner};
use crate::storage::sys;

/// How long it is waited for at a close.
const PATIENCE: Duration = Duration::from_secs(1);

/// A file or device: that of its file system, its number there, and its number as a device.
pub(super) type Id = (u64, u64, u64);

/// Images that could not be made stable and were not opened since. What the kernel gave up only after they were closed is
/// still to be forgotten.
static CLOSED: Mutex<Vec<Id>> = Mutex::new(Vec::new());

fn id(file: &File) -> Option<Id> {
    file.metadata().ok().map(|found| (found.dev(), found.ino(), found.rdev()))
}

/// An image was opened: returns what it is known by, since a server that is asked for it later may not answer.
pub(super) fn opened(file: &File) -> Option<Id> {
    let id = id(file)?;
    let mut closed = CLOSED.lock().unwrap_or_else(PoisonError::into_inner);
    let before = closed.len();
    closed.retain(|other| *other != id);
    let was_lost = closed.len() < before;
    drop(closed);
    if was_lost {
        sys::forget_cached(file);
    }
    Some(id)
}

/// An image that has failed is closed. Makes no call to the host.
fn note(id: Id) {
    let mut closed = CLOSED.lock().unwrap_or_else(PoisonError::into_inner);
    if !closed.contains(&id) {
        closed.push(id);
    }
}

impl RawImage {
    /// Has the host forget what it shows of lost data, if there may be some. What it has yet to write stays.
    pub(in crate::storage) async fn forget_lost(&self, io: &Io) {
        if self.has_failed() {
            let file: Arc<File> = self.host.file.clone();
            // Also where there is no thread for the rest, or the host does not answer: whoever opens it does that then.
            if let Some(id) = self.known_as {
                note(id);
            }
            // Not after what the image has to do: that may hang. The host begins to write what it can; on a device that hangs
            // that takes as long as it does, and the thread goes on alone.
            let owner = Owner::default();
            let forget = io.blocking_on(&owner, move || sys::forget_cached(&file));
            let _ = io.at_most(PATIENCE, forget).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::iothread::mischief::{Trick, Victim};
    use crate::storage::{BlockBackend, CacheMode, Image, RawOptions, Sharing};
    use crate::testing::{FileServer, on_io_thread, temp_file};

    /// Whether a file's first page is in the page cache; `None` where that cannot be found out.
    fn is_cached(file: &File) -> Option<bool> {
        let mut bytes = [0u8; 512];
        let part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: one segment, of a buffer that lives on.
        #[allow(unsafe_code)]
        let got = unsafe { libc::preadv2(file.as_raw_fd(), &raw const part, 1, 0, libc::RWF_NOWAIT) };
        match std::io::Error::last_os_error().raw_os_error() {
            _ if got > 0 => Some(true),
            Some(libc::EAGAIN) => Some(false),
            _ => None,
        }
    }

    /// The test writes and syncs what is in the cache: it is clean, as what the kernel gave up is.
    #[test]
    fn what_the_host_shows_of_lost_data_is_forgotten() {
        for fails in [false, true] {
            let mut file = temp_file();
            file.write_all(&[7; 1 << 16]).unwrap();
            file.as_file().sync_all().unwrap();
            if is_cached(file.as_file()) != Some(true) {
                crate::testing::skipped("this file system does not tell what is cached");
                return;
            }
            let path = file.path().to_owned();
            let options = RawOptions {
                path,
                read_only: false,
                cache: CacheMode::Writeback,
                sharing: Sharing::Unlocked,
            };
            let image = RawImage::open(&options).unwrap();
            assert_eq!(is_cached(file.as_file()), Some(true), "opened, and nothing lost");
            on_io_thread(move |io| async move {
                let image = Image::Raw(image).guarded(None, None);
                io.plot(move |victim| (fails && victim == Victim::Sync).then_some(Trick::Fail(libc::EIO)));
                assert_eq!(image.close(&io).await.is_err(), fails);
            });
            assert_eq!(is_cached(file.as_file()), Some(!fails), "closed, failed: {fails}");
            // What the kernel gives up after that.
            drop(std::fs::read(file.path()).unwrap());
            assert_eq!(is_cached(file.as_file()), Some(true));
            for anew in [!fails, true] {
                drop(RawImage::open(&options).unwrap());
                assert_eq!(is_cached(file.as_file()), Some(anew), "opened anew, failed: {fails}");
                drop(std::fs::read(file.path()).unwrap());
            }
        }
    }

    /// An image that is opened again shows nothing that was lost, where the host had no thread for it when it was closed.
    #[test]
    fn what_was_lost_is_known_without_a_helper_thread() {
        let mut file = temp_file();
        file.write_all(&[7; 1 << 16]).unwrap();
        file.as_file().sync_all().unwrap();
        if is_cached(file.as_file()) != Some(true) {
            crate::testing::skipped("this file system does not tell what is cached");
            return;
        }
        let path = file.path().to_owned();
        let options =
            RawOptions { path, read_only: false, cache: CacheMode::Writeback, sharing: Sharing::Unlocked };
        let image = RawImage::open(&options).unwrap();
        on_io_thread(move |io| async move {
            io.set_no_threads(true);
            let image = Image::Raw(image).guarded(None, None);
            io.plot(|victim| (victim == Victim::Sync).then_some(Trick::Fail(libc::EIO)));
            image.close(&io).await.unwrap_err();
        });
        drop(RawImage::open(&options).unwrap());
        assert_eq!(is_cached(file.as_file()), Some(false));
    }

    /// An image that has failed is closed without its server.
    #[test]
    fn a_server_that_hangs_holds_up_no_close() {
        let Some(server) = FileServer::new() else { return };
        let options = RawOptions {
            path: server.file(),
            read_only: false,
            cache: CacheMode::Writeback,
            sharing: Sharing::Unlocked,
        };
        let image = Arc::new(Image::Raw(RawImage::open(&options).unwrap()).guarded(None, None));
        let (closed, said) = std::sync::mpsc::channel();
        let of_thread = image.clone();
        let hangs = server.hangs();
        std::thread::spawn(move || {
            on_io_thread(move |io| async move {
                io.plot(|victim| (victim == Victim::Sync).then_some(Trick::Fail(libc::EIO)));
                of_thread.flush(&io).await.unwrap_err();
                hangs.store(true, Ordering::SeqCst);
                let _ = closed.send(of_thread.close(&io).await.is_err());
            });
        });
        let said = said.recv_timeout(Duration::from_secs(10));
        // What hangs goes on.
        drop(server);
        assert_eq!(said, Ok(true), "the I/O thread waits for the server");
        drop(image);
    }
}
