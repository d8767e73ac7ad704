//! A disk whose data could not be made stable once, over files.

use std::path::Path;
use std::sync::Arc;

use super::local::{disk_of, target_of};
use super::{Request, config};
use crate::iothread::Io;
use crate::iothread::mischief::{Trick, Victim};
use crate::scsi::{Disk, DiskConfig, Image, LogicalUnit, Lun, Nexus, ProtectionType, Status};
use crate::storage::{CacheMode, RawImage, RawOptions, Sharing};
use crate::testing::{on_io_thread, temp_file};

const SYNCHRONIZE: [u8; 10] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const WRITE: [u8; 10] = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const WRITE_FUA: [u8; 10] = [0x2a, 8, 0, 0, 0, 0, 0, 0, 1, 0];
const WRITE_AND_VERIFY: [u8; 10] = [0x2e, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// HARDWARE ERROR, INTERNAL TARGET FAILURE.
const FAILURE: Option<(u8, u8, u8)> = Some((0x4, 0x44, 0x00));

fn raw(path: &Path, cache: CacheMode) -> Arc<Image> {
    let options = RawOptions { path: path.into(), read_only: false, cache, sharing: Sharing::Unlocked };
    Arc::new(Image::Raw(RawImage::open(&options).unwrap()).guarded(None, None))
}

/// Sends a command with a block of data; sense key and additional sense code, `None` for GOOD.
async fn send(nexus: &Nexus, io: &Io, cdb: &[u8]) -> Option<(u8, u8, u8)> {
    let (out, room) = match cdb[0] {
        0x28 => (0, 512),
        0x2a | 0x2e => (512, 0),
        _ => (0, 0),
    };
    let (reply, _) = Request::new(cdb, &vec![5; out], room).send(nexus, io).await;
    let reply = reply.unwrap();
    let sense = reply.sense.as_ref().map(|sense| sense.as_bytes());
    assert_eq!(sense.is_some(), reply.status == Status::CheckCondition);
    sense.map(|bytes| (bytes[2] & 0x0f, bytes[12], bytes[13]))
}

/// The sync with this number, from 0, fails; the kernel says so once.
fn fail_sync(io: &Io, number: usize) {
    let mut seen = 0;
    io.plot(move |victim| {
        if victim != Victim::Sync {
            return None;
        }
        seen += 1;
        (seen == number + 1).then_some(Trick::Fail(libc::EIO))
    });
}

#[test]
fn the_guest_hears_of_lost_data_at_every_flush() {
    let file = temp_file();
    file.as_file().set_len(1 << 20).unwrap();
    let image = raw(file.path(), CacheMode::Writeback);
    on_io_thread(|io| async move {
        let target = target_of(disk_of(image, config()));
        let nexus = Nexus::new(target.clone(), None);
        let _ = send(&nexus, &io, &[0; 6]).await;
        assert_eq!(send(&nexus, &io, &WRITE).await, None);
        assert!(!target.has_failed(Lun::default()));
        fail_sync(&io, 0);
        for _ in 0..3 {
            assert_eq!(send(&nexus, &io, &SYNCHRONIZE).await, FAILURE);
        }
        assert!(target.has_failed(Lun::default()));
        for cdb in [&WRITE_FUA[..], &WRITE_AND_VERIFY] {
            assert_eq!(send(&nexus, &io, cdb).await, FAILURE, "{cdb:02x?}");
        }
        // START STOP UNIT: STOP makes everything stable first; NO_FLUSH does not.
        assert_eq!(send(&nexus, &io, &[0x1b, 0, 0, 0, 0, 0]).await, FAILURE);
        for cdb in [&WRITE[..], &READ] {
            assert_eq!(send(&nexus, &io, cdb).await, None, "{cdb:02x?}");
        }
        assert_eq!(send(&nexus, &io, &[0x1b, 0, 0, 0, 4, 0]).await, None);
    });
    // The same file, opened anew.
    let image = raw(file.path(), CacheMode::Writeback);
    on_io_thread(|io| async move {
        let nexus = Nexus::new(target_of(disk_of(image, config())), None);
        let _ = send(&nexus, &io, &[0; 6]).await;
        assert_eq!(send(&nexus, &io, &SYNCHRONIZE).await, None);
    });
}

#[test]
fn a_disk_without_a_cache_takes_no_writes_any_more() {
    let file = temp_file();
    file.as_file().set_len(1 << 20).unwrap();
    let image = raw(file.path(), CacheMode::Writethrough);
    on_io_thread(|io| async move {
        let config = DiskConfig { write_cache: false, ..config() };
        let nexus = Nexus::new(target_of(disk_of(image, config)), None);
        let _ = send(&nexus, &io, &[0; 6]).await;
        let mut failed = false;
        io.plot(move |victim| match victim {
            Victim::Write { .. } if !std::mem::replace(&mut failed, true) => Some(Trick::Fail(libc::EIO)),
            _ => None,
        });
        for _ in 0..3 {
            assert_eq!(send(&nexus, &io, &WRITE).await, FAILURE);
        }
        assert_eq!(send(&nexus, &io, &READ).await, None);
    });
}

/// Protection information is in a file of its own, whose flush comes second.
#[test]
fn both_files_of_a_protected_disk_count() {
    for number in [0, 1] {
        let (file, store) = (temp_file(), temp_file());
        file.as_file().set_len(1 << 20).unwrap();
        store.as_file().set_len(16 << 10).unwrap();
        let image = raw(file.path(), CacheMode::Writeback);
        let store = raw(store.path(), CacheMode::Writeback);
        on_io_thread(move |io| async move {
            let disk = Disk::with_protection(image, config(), ProtectionType::Type1, store).unwrap();
            let target = target_of(LogicalUnit::Disk(disk));
            let nexus = Nexus::new(target.clone(), None);
            let _ = send(&nexus, &io, &[0; 6]).await;
            assert_eq!(send(&nexus, &io, &WRITE).await, None);
            fail_sync(&io, number);
            for _ in 0..3 {
                assert_eq!(send(&nexus, &io, &SYNCHRONIZE).await, FAILURE, "file {number}");
            }
            assert!(target.has_failed(Lun::default()));
            assert_eq!(send(&nexus, &io, &WRITE_FUA).await, FAILURE, "file {number}");
            assert_eq!(send(&nexus, &io, &READ).await, None, "file {number}");
        });
    }
}
