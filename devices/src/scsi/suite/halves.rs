//! Disks with protection information: a command that is ended half way leaves no block whose guard does not match.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use super::local::target_of;
use super::nexuses::ram;
use super::{BLOCK, BLOCKS, RecordingDisk, Request, blocks_of, config};
use crate::iothread::Io;
use crate::scsi::{
    Disk, DiskConfig, Image, LogicalUnit, Lun, Nexus, ProtectionType, Status, Target, TaskManagement,
};
use crate::testing::on_io_thread;

const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0];
const WRITE: [u8; 10] = [0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0];
const UNMAP: [u8; 10] = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];

/// Of the data and of the protection information.
type Images = [Arc<Image>; 2];

fn disk([image, store]: &Images) -> LogicalUnit {
    let config = DiskConfig { discard: true, ..config() };
    let disk = Disk::with_protection(image.clone(), config, ProtectionType::Type1, store.clone());
    LogicalUnit::Disk(disk.unwrap())
}

/// A reply that is no unit attention.
async fn send(nexus: &Nexus, io: &Io, cdb: &[u8], data: &[u8], room: usize) -> (Status, Vec<u8>) {
    loop {
        let (reply, bytes) = Request::new(cdb, data, room).send(nexus, io).await;
        let reply = reply.unwrap();
        if reply.sense.is_none_or(|sense| sense.as_bytes()[2] & 0xf != 6) {
            return (reply.status, bytes);
        }
    }
}

/// Ends a command that waits for an image: by a reset, or because the disk `leaves`.
async fn end_half_way(io: Io, (cdb, data): (Vec<u8>, Vec<u8>), held: usize, leaves: bool) {
    let what = format!("{:02x}: image {held} held, leaves: {leaves}", cdb[0]);
    let images: Images =
        [BLOCK, 8].map(|len| Arc::new(Image::Recording(RecordingDisk::new(len * BLOCKS as usize))));
    let (target, nexus) = made(&images);
    assert_eq!(send(&nexus, &io, &WRITE, &blocks_of(1, 8), 0).await.0, Status::Good);
    ram(&images[held]).hold(true);
    let mut command = pin!(Request::new(&cdb, &data, 0).send(&nexus, &io));
    poll_fn(|cx| {
        assert!(command.as_mut().poll(cx).is_pending(), "{what}");
        if ram(&images[held]).arrived() > 0 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    let end = async {
        match leaves {
            false => drop(nexus.manage(&io, TaskManagement::LogicalUnitReset(Lun::default())).await),
            true => target.detach(Lun::default()).await.unwrap().close(&io).await.unwrap(),
        }
    };
    let (mut end, mut ended) = (pin!(end), [false; 2]);
    poll_fn(|cx| {
        ended[0] = ended[0] || end.as_mut().poll(cx).is_ready();
        ended[1] = ended[1] || command.as_mut().poll(cx).is_ready();
        // The host takes longer than the command.
        if ended[1] {
            ram(&images[held]).hold(false);
        }
        if ended == [true; 2] { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    let nexus = if leaves { made(&images).1 } else { nexus.clone() };
    let (status, bytes) = send(&nexus, &io, &READ, &[], 8 * BLOCK).await;
    assert_eq!(status, Status::Good, "{what}");
    assert!(bytes != blocks_of(1, 8), "{what}: what was begun is done");
}

fn made(images: &Images) -> (Arc<Target>, Arc<Nexus>) {
    let target = target_of(disk(images));
    (target.clone(), Nexus::new(target, None))
}

#[test]
fn a_command_that_is_ended_leaves_no_block_that_cannot_be_read() {
    // Eight blocks from LBA 0.
    let list = [&[0, 22, 0, 16, 0, 0, 0, 0][..], &[0; 11], &[8, 0, 0, 0, 0]].concat();
    let commands = [
        (WRITE.to_vec(), blocks_of(9, 8)),
        (UNMAP.to_vec(), list),
        // WRITE SAME, WRITE AND VERIFY
        (vec![0x41, 0, 0, 0, 0, 0, 0, 0, 8, 0], blocks_of(9, 1)),
        (vec![0x2e, 0, 0, 0, 0, 0, 0, 0, 8, 0], blocks_of(9, 8)),
    ];
    for command in commands {
        for (held, leaves) in [(1, false), (0, false), (1, true), (0, true)] {
            let command = command.clone();
            on_io_thread(move |io| end_half_way(io, command, held, leaves));
        }
    }
}
