//! A host that does not answer for one disk, beside others on the same thread that it serves.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::GuestAddress;

use super::nexuses::{LUN_0, READ};
use super::{BLOCK, config};
use crate::iothread::Io;
use crate::iothread::mischief::{Trick, Victim};
use crate::mem::{Dma, GuestRam};
use crate::scsi::suite::Request;
use crate::scsi::{
    Cd, CdConfig, Cdb, DataBuffers, Disk, LogicalUnit, Lun, Nexus, ScsiReply, ScsiRequest, Status, Tag,
    Target, TaskAttribute, TaskManagement, TaskManagementReply, TransportFault,
};
use crate::storage::{CacheMode, Image, OpenError, RawImage, RawOptions, Sharing};
use crate::testing::{on_io_thread, temp_file};

pub(super) const LUN_1: Lun = Lun([0, 1, 0, 0, 0, 0, 0, 0]);
/// The disk that hangs is asked for what is here, in blocks.
pub(super) const FAR: u8 = 64;

pub(super) fn open(path: &std::path::Path) -> Result<RawImage, OpenError> {
    RawImage::open(&RawOptions {
        path: path.into(),
        read_only: false,
        cache: CacheMode::Writeback,
        sharing: Sharing::Exclusive,
    })
}

/// A target with two disks on files.
fn target() -> (Arc<Target>, Vec<tempfile::NamedTempFile>) {
    let target = Target::new();
    let files: Vec<_> = [LUN_0, LUN_1]
        .into_iter()
        .map(|lun| {
            let file = temp_file();
            file.as_file().set_len(1 << 20).unwrap();
            let image = Arc::new(Image::Raw(open(file.path()).unwrap()));
            target.attach(lun, LogicalUnit::Disk(Disk::new(image, config()).unwrap())).unwrap();
            file
        })
        .collect();
    (target, files)
}

/// Whatever is far away hangs.
fn plot(io: &Io) {
    io.plot(|victim| match victim {
        Victim::Read { at, .. } | Victim::Write { at, .. } if at >= u64::from(FAR) * BLOCK as u64 => {
            Some(Trick::Hang)
        }
        _ => None,
    });
}

pub(super) fn memory() -> Dma {
    let dma = Dma::new(Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()));
    dma.set_bus_master(true);
    dma
}

/// READ(10) of the block that hangs, into memory of the guest.
pub(super) fn far_read(dma: &Dma, lun: Lun) -> ScsiRequest {
    ScsiRequest {
        tag: Tag(7),
        lun,
        cdb: Cdb::new(&[0x28, 0, 0, 0, 0, FAR, 0, 0, 1, 0]),
        attribute: TaskAttribute::Simple,
        priority: 0,
        data: DataBuffers::to_initiator(dma.to_guest([(0x1000, BLOCK as u32)]).unwrap()),
    }
}

pub(super) async fn begun<T>(io: &Io, mut future: std::pin::Pin<&mut impl Future<Output = T>>) {
    for _ in 0..3 {
        let polled =
            std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_ready())).await;
        assert!(!polled, "the host does not answer");
        io.sleep(Duration::from_millis(1)).await;
    }
}

async fn settle(nexus: &Nexus, io: &Io) {
    for lun in [LUN_0, LUN_1] {
        let mut ready = Request::new(&[0; 6], &[], 0);
        ready.lun = lun;
        let _ = ready.send(nexus, io).await;
    }
}

async fn read(nexus: &Nexus, io: &Io, lun: Lun) -> Result<ScsiReply, TransportFault> {
    let mut read = Request::new(&READ, &[], BLOCK);
    read.lun = lun;
    read.send(nexus, io).await.0
}

#[test]
fn an_abort_waits_for_no_neighbour() {
    on_io_thread(|io| async move {
        let (target, _files) = target();
        let nexus = Nexus::new(target, None);
        settle(&nexus, &io).await;
        plot(&io);
        let dma = memory();
        let (far, near) =
            (nexus.execute(&io, far_read(&dma, LUN_0)), nexus.execute(&io, far_read(&dma, LUN_1)));
        let (mut far, mut near) = (Box::pin(far), Box::pin(near));
        begun(&io, far.as_mut()).await;
        begun(&io, near.as_mut()).await;
        // The hung disk's command is ended first, and stays: its operation is abandoned on the thread of all.
        let mut reset = Box::pin(nexus.manage(&io, TaskManagement::LogicalUnitReset(LUN_0)));
        begun(&io, reset.as_mut()).await;
        begun(&io, far.as_mut()).await;
        let mut abort = pin!(nexus.manage(&io, TaskManagement::AbortTask(LUN_1, Tag(9))));
        let reply = std::future::poll_fn(|cx| std::task::Poll::Ready(abort.as_mut().poll(cx))).await;
        assert!(reply.is_ready(), "nothing of that tag");
        assert_eq!(read(&nexus, &io, LUN_1).await.unwrap().status, Status::Good, "at work all the time");
        let host = io.clone();
        io.spawn(async move {
            host.sleep(Duration::from_millis(50)).await;
            host.answer();
        });
        assert_eq!(far.await.unwrap_err(), TransportFault::Reset);
        assert_eq!(reset.await, TaskManagementReply::Complete);
        assert_eq!(near.await.unwrap().status, Status::CheckCondition, "not ended, but failed by the host");
    });
}

#[test]
fn the_commands_of_a_neighbour_end_while_one_disk_hangs() {
    on_io_thread(|io| async move {
        let (target, _files) = target();
        let nexus = Nexus::new(target, None);
        settle(&nexus, &io).await;
        plot(&io);
        let dma = memory();
        let mut far = Box::pin(nexus.execute(&io, far_read(&dma, LUN_0)));
        begun(&io, far.as_mut()).await;
        let mut reset = Box::pin(nexus.manage(&io, TaskManagement::LogicalUnitReset(LUN_0)));
        begun(&io, reset.as_mut()).await;
        begun(&io, far.as_mut()).await;
        // On the other disk a command waits behind one that is ordered; both are ended, and have nothing in the kernel.
        let mut ordered = Request::new(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0);
        (ordered.lun, ordered.tag) = (LUN_1, 1);
        io.plot(|victim| (victim == Victim::Sync).then_some(Trick::Hang));
        let mut sync = Box::pin(ordered.send(&nexus, &io));
        begun(&io, sync.as_mut()).await;
        let abort = nexus.manage(&io, TaskManagement::AbortTaskSet(LUN_1));
        let abort = async {
            let begin = Instant::now();
            (abort.await, begin.elapsed())
        };
        let mut abort = Box::pin(abort);
        begun(&io, abort.as_mut()).await;
        assert_eq!(sync.await.0.unwrap_err(), TransportFault::Aborted);
        let (reply, took) = abort.await;
        assert_eq!(reply, TaskManagementReply::Complete);
        assert!(took < Duration::from_secs(5), "{took:?}");
        io.answer();
        far.await.unwrap_err();
        reset.await;
    });
}

/// Initiators that hear of a failure give the memory of the command to others.
#[test]
fn a_function_waits_for_the_host_and_those_of_other_units_do_not() {
    on_io_thread(|io| async move {
        let (target, files) = target();
        let nexus = Nexus::new(target, None);
        settle(&nexus, &io).await;
        plot(&io);
        let dma = memory();
        let mut far = Box::pin(nexus.execute(&io, far_read(&dma, LUN_0)));
        begun(&io, far.as_mut()).await;
        let mut abort = Box::pin(nexus.manage(&io, TaskManagement::AbortTask(LUN_0, Tag(7))));
        // Longer than it takes to say so in the log.
        assert!(io.at_most(Duration::from_millis(300), abort.as_mut()).await.is_none());
        begun(&io, far.as_mut()).await;
        assert_eq!(nexus.unfinished(), [format!("{:?}", files[0].path())]);
        for other in [TaskManagement::LogicalUnitReset(LUN_1), TaskManagement::QueryTaskSet(LUN_1)] {
            assert_eq!(nexus.manage(&io, other).await, TaskManagementReply::Complete);
        }
        begun(&io, abort.as_mut()).await;
        io.answer();
        assert_eq!(far.await.unwrap_err(), TransportFault::Aborted);
        assert_eq!(abort.await, TaskManagementReply::Complete);
        assert_eq!(nexus.unfinished(), Vec::<String>::new());
    });
}

/// Also when the unit is detached meanwhile, so that nobody finds it any more.
#[test]
fn a_function_that_waits_says_for_whom() {
    on_io_thread(|io| async move {
        let (target, files) = target();
        let nexus = Nexus::new(target.clone(), None);
        settle(&nexus, &io).await;
        plot(&io);
        let dma = memory();
        let mut far = Box::pin(nexus.execute(&io, far_read(&dma, LUN_0)));
        begun(&io, far.as_mut()).await;
        let mut abort = Box::pin(nexus.manage(&io, TaskManagement::AbortTask(LUN_0, Tag(7))));
        begun(&io, abort.as_mut()).await;
        let mut detach = Box::pin(target.detach(LUN_0));
        begun(&io, detach.as_mut()).await;
        let mut said = Vec::new();
        let waits = std::future::poll_fn(|cx| {
            let mut polled = std::task::Poll::Pending;
            said.extend(crate::log::recorded(tracing::Level::WARN, || polled = abort.as_mut().poll(cx)));
            polled
        });
        assert!(io.at_most(Duration::from_millis(300), waits).await.is_none());
        assert_eq!(said.len(), 1, "{said:?}");
        let name = format!("the host has not answered for {:?} within", files[0].path());
        assert!(said[0].contains(&name), "{}", said[0]);
        begun(&io, far.as_mut()).await;
        io.answer();
        far.await.unwrap_err();
        assert_eq!(abort.await, TaskManagementReply::Complete);
        assert!(detach.await.is_some());
    });
}

/// Whose image is closed then, and can be had by others.
#[test]
fn what_waits_for_one_disk_does_not_hold_another_one() {
    for which in 0..3 {
        on_io_thread(move |io| async move {
            let (target, files) = target();
            let nexus = Nexus::new(target.clone(), None);
            settle(&nexus, &io).await;
            plot(&io);
            let dma = memory();
            let mut far = Box::pin(nexus.execute(&io, far_read(&dma, LUN_0)));
            begun(&io, far.as_mut()).await;
            let mut waits = Box::pin(async {
                match which {
                    0 => target.detach(LUN_0).await.unwrap().close(&io).await.unwrap(),
                    1 => target.power_on().await,
                    _ => drop(nexus.manage(&io, TaskManagement::NexusReset).await),
                }
            });
            begun(&io, waits.as_mut()).await;
            target.detach(LUN_1).await.unwrap().close(&io).await.unwrap();
            open(files[1].path()).unwrap_or_else(|e| panic!("it is held, {which}: {e}"));
            begun(&io, far.as_mut()).await;
            io.answer();
            let _ = far.await;
            waits.await;
        });
    }
}

/// Nor the one that it waited for, once it goes: whoever takes it away comes first here.
#[test]
fn a_function_that_waits_does_not_hold_its_disk() {
    on_io_thread(|io| async move {
        let (target, files) = target();
        let nexus = Nexus::new(target.clone(), None);
        settle(&nexus, &io).await;
        plot(&io);
        let dma = memory();
        let mut far = Box::pin(nexus.execute(&io, far_read(&dma, LUN_0)));
        begun(&io, far.as_mut()).await;
        let mut abort = Box::pin(nexus.manage(&io, TaskManagement::AbortTask(LUN_0, Tag(7))));
        begun(&io, abort.as_mut()).await;
        begun(&io, far.as_mut()).await;
        io.answer();
        far.await.unwrap_err();
        target.detach(LUN_0).await.unwrap().close(&io).await.unwrap();
        open(files[0].path()).unwrap_or_else(|e| panic!("it is held: {e}"));
        assert_eq!(abort.await, TaskManagementReply::Complete);
    });
}

#[test]
fn what_the_guest_does_not_share_is_abandoned_and_commands_wait_while_it_may_be_written() {
    on_io_thread(|io| async move {
        let (target, _files) = target();
        let nexus = Nexus::new(target, None);
        settle(&nexus, &io).await;
        plot(&io);
        // The memory of these requests is the host's own.
        let cdbs: [(&[u8], &[u8], usize); 2] = [
            (&[0x28, 0, 0, 0, 0, FAR, 0, 0, 1, 0], &[], BLOCK),
            (&[0x2a, 0, 0, 0, 0, FAR, 0, 0, 1, 0], &[1; BLOCK], 0),
        ];
        for (cdb, out, len) in cdbs {
            let mut command = Box::pin(Request::new(cdb, out, len).send(&nexus, &io));
            begun(&io, command.as_mut()).await;
            let mut reset = Box::pin(nexus.manage(&io, TaskManagement::AbortTaskSet(LUN_0)));
            begun(&io, reset.as_mut()).await;
            assert_eq!(command.await.0.unwrap_err(), TransportFault::Aborted);
            assert_eq!(reset.await, TaskManagementReply::Complete);
            if len > 0 {
                assert_eq!(read(&nexus, &io, LUN_0).await.unwrap().status, Status::Good, "only read");
            }
            for cdb in [[0x12, 0, 0, 0, 36, 0], [0; 6]] {
                let reply = Request::new(&cdb, &[], 36).send(&nexus, &io).await.0;
                assert_eq!(reply.unwrap().status, Status::Good);
            }
            assert_eq!(read(&nexus, &io, LUN_1).await.unwrap().status, Status::Good);
        }
        let mut ended = Box::pin(read(&nexus, &io, LUN_0));
        begun(&io, ended.as_mut()).await;
        let abort = nexus.manage(&io, TaskManagement::AbortTaskSet(LUN_0));
        let begin = Instant::now();
        let (abort, ended) = both(abort, ended).await;
        assert_eq!((abort, ended.unwrap_err()), (TaskManagementReply::Complete, TransportFault::Aborted));
        assert!(begin.elapsed() < Duration::from_millis(900), "nothing of it is in the kernel");
        let mut held = Box::pin(read(&nexus, &io, LUN_0));
        begun(&io, held.as_mut()).await;
        io.answer();
        assert_eq!(held.await.unwrap().status, Status::Good);
    });
}

/// Both, side by side.
pub(super) async fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (Box::pin(a), Box::pin(b));
    let (mut first, mut second) = (None, None);
    std::future::poll_fn(|cx| {
        use std::task::Poll;
        if first.is_none()
            && let Poll::Ready(done) = a.as_mut().poll(cx)
        {
            first = Some(done);
        }
        if second.is_none()
            && let Poll::Ready(done) = b.as_mut().poll(cx)
        {
            second = Some(done);
        }
        if first.is_some() && second.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    (first.unwrap(), second.unwrap())
}

/// Whoever takes a disc out waits for its image until nobody has it: also the host, for a command that the guest has given up.
#[test]
fn a_disc_is_held_until_the_host_has_done_with_it() {
    on_io_thread(|io| async move {
        let file = temp_file();
        file.as_file().set_len(1 << 20).unwrap();
        let image = Arc::new(Image::Raw(open(file.path()).unwrap()));
        let target = Target::new();
        let drive = Cd::new(Some(image.clone()), CdConfig::default()).unwrap();
        target.attach(LUN_0, LogicalUnit::Cd(drive)).unwrap();
        let nexus = Nexus::new(target.clone(), None);
        settle(&nexus, &io).await;
        plot(&io);
        let dma = memory();
        let mut far = Box::pin(nexus.execute(&io, far_read(&dma, LUN_0)));
        begun(&io, far.as_mut()).await;
        let mut abort = Box::pin(nexus.manage(&io, TaskManagement::AbortTask(LUN_0, Tag(7))));
        begun(&io, abort.as_mut()).await;
        begun(&io, far.as_mut()).await;
        drop(target.eject(LUN_0, true).unwrap());
        io.sleep(Duration::from_millis(50)).await;
        assert_eq!(Arc::strong_count(&image), 2, "the host reads it");
        io.answer();
        assert_eq!(far.await.unwrap_err(), TransportFault::Aborted);
        assert_eq!(abort.await, TaskManagementReply::Complete);
        while Arc::strong_count(&image) > 1 {
            io.sleep(Duration::from_millis(1)).await;
        }
    });
}
