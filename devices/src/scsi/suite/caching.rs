//! The write cache: switching it off, and reading past it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::local::{Local, disk_of, target_of};
use super::{Initiator, Request, config, exact, good, settle};
use crate::iothread::mischief::{Trick, Victim};
use crate::scsi::{Image, Nexus, Status};
use crate::storage::{Action, CacheMode, RawImage, RawOptions, Sharing};
use crate::testing::{Effect, Fault, FaultDisk, Operation, RamDisk, RecordingDisk, on_io_thread, temp_file};

const WRITE: [u8; 10] = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// MODE SELECT (6) of the caching page, and the list: WCE is 0.
const SELECT: [u8; 6] = [0x15, 0x10, 0, 0, 24, 0];

fn cache_off() -> Vec<u8> {
    let mut list = vec![0, 0, 0, 0, 0x08, 0x12];
    list.resize(24, 0);
    list
}

/// SBC-4, 6.5.5: a write is GOOD only when it is on the medium, also one that began before.
#[test]
fn a_write_under_way_is_stable_before_the_cache_is_off() {
    let image = Arc::new(Image::Fault(FaultDisk::new(RamDisk::new(1 << 20))));
    on_io_thread(|io| async move {
        let Image::Fault(disk) = &*image else { return };
        let nexus = Nexus::new(target_of(disk_of(image.clone(), config())), None);
        let _ = Request::new(&[0; 6], &[], 0).send(&nexus, &io).await;
        disk.inject(Fault::next(Action::Write, Effect::Stall));
        let ended = Rc::new(Cell::new(0));
        let begin = |cdb: &[u8], out: &[u8]| {
            let (nexus, io, ended, request) =
                (nexus.clone(), io.clone(), ended.clone(), Request::new(cdb, out, 0));
            io.clone().spawn(async move {
                let (reply, _) = request.send(&nexus, &io).await;
                assert_eq!(reply.unwrap().status, Status::Good);
                ended.set(ended.get() + 1);
            });
        };
        begin(&WRITE, &[5; 512]);
        while disk.stalled() == 0 {
            io.sleep(Duration::from_millis(1)).await;
        }
        begin(&SELECT, &cache_off());
        io.sleep(Duration::from_millis(50)).await;
        assert_eq!((ended.get(), disk.seen()), (0, vec![Action::Write]), "it waits for the write");
        disk.release();
        while ended.get() < 2 {
            io.sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(disk.seen(), [Action::Write, Action::Flush]);
    });
}

/// The kernel could not begin the first flush: nothing is stable yet, although WCE is 0.
#[test]
fn a_cache_that_is_off_is_flushed_again() {
    let file = temp_file();
    file.as_file().set_len(1 << 20).unwrap();
    let (path, cache) = (file.path().into(), CacheMode::Writeback);
    let options = RawOptions { path, read_only: false, cache, sharing: Sharing::Unlocked };
    let image = Arc::new(Image::Raw(RawImage::open(&options).unwrap()).guarded(None, None));
    on_io_thread(|io| async move {
        let nexus = Nexus::new(target_of(disk_of(image, config())), None);
        let send = async |cdb: &[u8], out: &[u8]| {
            let (reply, _) = Request::new(cdb, out, 0).send(&nexus, &io).await;
            reply.unwrap().status
        };
        send(&[0; 6], &[]).await;
        assert_eq!(send(&WRITE, &[5; 512]).await, Status::Good);
        io.plot(|victim| (victim == Victim::Sync).then_some(Trick::Fail(libc::ECANCELED)));
        assert_eq!(send(&SELECT, &cache_off()).await, Status::CheckCondition);
        let syncs = Rc::new(Cell::new(0));
        let count = syncs.clone();
        io.plot(move |victim| {
            count.set(count.get() + u32::from(victim == Victim::Sync));
            None
        });
        assert_eq!(send(&SELECT, &cache_off()).await, Status::Good);
        assert_eq!(syncs.get(), 1);
    });
}

/// SBC-4, 5.13 and 5.38: what FUA reads, and what VERIFY looks at, is on the medium.
#[test]
fn what_is_read_from_the_medium_is_there() {
    let image = Arc::new(Image::Recording(RecordingDisk::new(1 << 20)));
    let mut initiator = Local::new(&target_of(disk_of(image.clone(), config())));
    let i: &mut dyn Initiator = &mut initiator;
    settle(i);
    let Image::Recording(disk) = &*image else { return };
    let mut read32 = [0; 32];
    (read32[0], read32[7], read32[9], read32[10], read32[31]) = (0x7f, 0x18, 0x09, 0x08, 1);
    let mut commands: Vec<(Vec<u8>, usize)> = vec![
        (vec![0x28, 8, 0, 0, 0, 0, 0, 0, 1, 0], 512),
        (vec![0xa8, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], 512),
        (vec![0x88, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], 512),
        (vec![0x2f, 0, 0, 0, 0, 0, 0, 0, 1, 0], 0),
    ];
    commands.push((read32.into(), 512));
    for (cdb, room) in commands {
        let both = [Operation::Flush, Operation::Read(0, 512)];
        for flushes in [true, false] {
            if flushes {
                exact(i, &WRITE, &[5; 512], 0);
            }
            disk.operations();
            if cdb[0] != 0x7f {
                good(i, &cdb, &[], room);
            } else if i.command(&cdb, &[], room).status != 0 {
                // Only disks with protection information have it.
                continue;
            }
            assert_eq!(disk.operations(), both[usize::from(!flushes)..], "{cdb:02x?}, {flushes}");
        }
        // Without FUA nothing is asked for.
        exact(i, &WRITE, &[5; 512], 0);
        disk.operations();
        good(i, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], 512);
        assert_eq!(disk.operations(), both[1..]);
    }
}
