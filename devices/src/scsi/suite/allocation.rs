//! A warm command allocates nothing.

use std::sync::Arc;

use super::hung::memory;
use super::local::{disk_of, target_of};
use super::{Request, config};
use crate::iothread::Io;
use crate::mem::{FromGuest, SgList, ToGuest};
use crate::scsi::{Cdb, DataBuffers, Image, Lun, Nexus, ScsiRequest, Status, Tag, TaskAttribute};
use crate::storage::{CacheMode, RawImage, RawOptions, Sharing};
use crate::testing::{RamDisk, allocations, on_io_thread, temp_file};

/// Executes a command and says how many allocations that took.
async fn execute(nexus: &Nexus, io: &Io, buffer: &SgList, cdb: &[u8], write: bool) -> u64 {
    let data = match write {
        true => DataBuffers::from_initiator(FromGuest::new(buffer.window(0, 4096))),
        false => DataBuffers::to_initiator(ToGuest::new(buffer.window(0, 4096))),
    };
    let request = ScsiRequest {
        tag: Tag(1),
        lun: Lun::default(),
        cdb: Cdb::new(cdb),
        attribute: TaskAttribute::Simple,
        priority: 0,
        data,
    };
    let before = allocations();
    let reply = nexus.execute(io, request).await;
    let count = allocations() - before;
    assert_eq!(reply.unwrap().status, Status::Good, "{cdb:02x?}");
    count
}

#[test]
fn warm_commands_allocate_nothing() {
    let file = temp_file();
    file.as_file().set_len(1 << 20).unwrap();
    let open = |cache| {
        let (path, sharing) = (file.path().to_owned(), Sharing::Unlocked);
        let raw = RawImage::open(&RawOptions { path, read_only: false, cache, sharing });
        Image::Raw(raw.unwrap()).guarded(None, None)
    };
    let images = [
        ("memory", Image::Ram(RamDisk::new(1 << 20))),
        ("writeback", open(CacheMode::Writeback)),
        ("none", open(CacheMode::None)),
        ("private, writeback", open(CacheMode::Writeback).private()),
        ("private, none", open(CacheMode::None).private()),
    ];
    on_io_thread(|io| async move {
        // Private memory is for the guest's only.
        let buffer = memory().to_guest([(0x1000, 4096)]).unwrap().into_inner();
        for (name, image) in images {
            let nexus = Nexus::new(target_of(disk_of(Arc::new(image), config())), None);
            let _ = Request::new(&[0; 6], &[], 0).send(&nexus, &io).await;
            for (cdb, write) in [
                (&[0, 0, 0, 0, 0, 0][..], false),
                (&[0x12, 0, 0, 0, 96, 0], false),
                (&[0x1a, 0, 0x3f, 0, 192, 0], false),
                (&[0x28, 0, 0, 0, 0, 8, 0, 0, 8, 0], false),
                (&[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0], false),
                (&[0x2a, 0, 0, 0, 0, 8, 0, 0, 8, 0], true),
                (&[0x2a, 8, 0, 0, 0, 8, 0, 0, 8, 0], true),
                (&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], false),
            ] {
                for _ in 0..50 {
                    execute(&nexus, &io, &buffer, cdb, write).await;
                }
                let mut count = 0;
                for _ in 0..200 {
                    count += execute(&nexus, &io, &buffer, cdb, write).await;
                }
                assert_eq!(count, 0, "{name}: {cdb:02x?}");
            }
        }
    });
}
