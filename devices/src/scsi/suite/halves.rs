//! Disks with protection information: a command that is ended half way leaves no block whose guard does not match.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::copies::{out_cdb, ranges, using};
use super::hung::begun;
use super::local::target_of;
use super::nexuses::ram;
use super::{BLOCK, BLOCKS, RecordingDisk, Request, blocks_of, config};
use crate::iothread::Io;
use crate::iothread::mischief::Trick;
use crate::mem::{SgList, ToGuest};
use crate::scsi::disk::FINISH;
use crate::scsi::{
    Disk, DiskConfig, Image, LogicalUnit, Lun, Nexus, ProtectionType, Status, Target, TaskManagement,
};
use crate::testing::{on_io_thread, temp_file};

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

/// What a command had begun goes on after its end: no token stands for what is there before that is over.
#[test]
fn a_token_is_not_made_while_an_ended_command_still_writes() {
    for held in [0, 1] {
        on_io_thread(move |io| async move {
            let images: Images =
                [BLOCK, 8].map(|len| Arc::new(Image::Recording(RecordingDisk::new(len * BLOCKS as usize))));
            let (_target, nexus) = made(&images);
            assert_eq!(send(&nexus, &io, &WRITE, &blocks_of(1, 8), 0).await.0, Status::Good);
            ram(&images[held]).hold(true);
            let newer = blocks_of(9, 8);
            let mut write = Box::pin(Request::new(&WRITE, &newer, 0).send(&nexus, &io));
            begun(&io, write.as_mut()).await;
            let mut abort = Box::pin(nexus.manage(&io, TaskManagement::AbortTaskSet(Lun::default())));
            begun(&io, abort.as_mut()).await;
            assert!(write.await.0.is_err());
            abort.await;
            let list = ranges(16, &[(0, 8)]);
            let cdb = out_cdb(0x10, 5, list.len());
            let mut making = Box::pin(send(&nexus, &io, &cdb, &list, 0));
            begun(&io, making.as_mut()).await;
            ram(&images[held]).hold(false);
            let made = io.at_most(Duration::from_secs(20), making).await.expect("it is over");
            assert_eq!(made.0, Status::Good);
            let told = [0x84, 7, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 2, 0x26, 0, 0];
            let token = send(&nexus, &io, &told, &[], 550).await.1;
            let list = using(&token[38..], 0, &[(100, 8)]);
            assert_eq!(send(&nexus, &io, &out_cdb(0x11, 6, list.len()), &list, 0).await.0, Status::Good);
            let mut there = READ;
            there[5] = 100;
            assert_eq!(send(&nexus, &io, &there, &[], 8 * BLOCK).await.1, newer);
        });
    }
}

/// Whoever gives up on a host that does not answer waits for what it has begun itself, and for no other disk.
#[test]
fn what_is_given_up_waits_for_no_neighbour() {
    on_io_thread(|io| async move {
        let images: Images =
            [BLOCK, 8].map(|len| Arc::new(Image::Recording(RecordingDisk::new(len * BLOCKS as usize))));
        let (_target, nexus) = made(&images);
        assert_eq!(send(&nexus, &io, &WRITE, &blocks_of(1, 8), 0).await.0, Status::Good);
        // Something else of the thread hangs, and nobody waits for it any more.
        let file = temp_file();
        file.as_file().set_len(4096).unwrap();
        let file = Arc::new(file.into_file());
        io.plot(|_| Some(Trick::Hang));
        let mut hung = Box::pin(io.read(&file, 0, ToGuest::new(SgList::host(512, 512).unwrap())));
        begun(&io, hung.as_mut()).await;
        drop(hung);
        ram(&images[0]).hold(true);
        let newer = blocks_of(9, 8);
        let mut write = Box::pin(Request::new(&WRITE, &newer, 0).send(&nexus, &io));
        begun(&io, write.as_mut()).await;
        nexus.reset();
        assert!(write.await.0.is_err());
        // Longer than it goes on by itself.
        io.sleep(2 * FINISH).await;
        ram(&images[0]).hold(false);
        let read = io.at_most(Duration::from_secs(5), send(&nexus, &io, &READ, &[], 8 * BLOCK)).await;
        assert_eq!(read.expect("an answer").1, blocks_of(1, 8), "nothing was written");
        io.answer();
    });
}
