//! Units that go while they work, and how far copies reach.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use super::copies::{cscd, list, out_cdb, ranges, segment, using};
use super::local::{Local, block_on, disk, disk_of, target_of};
use super::{DiskConfig, check, config, exact, image, settle};
use crate::iothread::Io;
use crate::iothread::mischief::{Trick, Victim};
use crate::scsi::suite::Request;
use crate::scsi::{
    Image, Lun, Nexus, ScsiReply, Status, Tag, Target, TargetGroup, TaskManagement, TaskManagementReply,
    TransportFault,
};
use crate::storage::{
    Action, BlockError, CacheMode, Parking, Pausing, RawImage, RawOptions, Sharing, SpaceWatch,
};
use crate::testing::{Effect, Fault, FaultDisk, RamDisk, on_io_thread, temp_file};

#[test]
fn detaching_ends_background_work_and_lets_go_of_the_image() {
    on_io_thread(|io| async move {
        let fault = FaultDisk::new(RamDisk::new(8 << 20));
        fault.inject(Fault::every(Action::Zero, Effect::Stall));
        let image = Arc::new(Image::Fault(fault));
        let target = target_of(disk_of(image.clone(), config()));
        let nexus = Nexus::new(target.clone(), None);
        let _ = Request::new(&[0; 6], &[], 0).send(&nexus, &io).await;
        // FORMAT UNIT, IMMED.
        let format = Request::new(&[0x04, 0x10, 0, 0, 0, 0], &[0, 2, 0, 0], 0);
        assert_eq!(format.send(&nexus, &io).await.0.unwrap().status, Status::Good);
        let Image::Fault(fault) = &*image else { panic!("another kind of image") };
        while fault.stalled() == 0 {
            io.sleep(Duration::from_millis(1)).await;
        }
        let mut detach = pin!(target.detach(Lun::default()));
        let first = poll_fn(|cx| Poll::Ready(detach.as_mut().poll(cx))).await;
        assert!(first.is_pending(), "the host still works on the image");
        fault.release();
        detach.await.unwrap().close(&io).await.unwrap();
        assert_eq!(Arc::strong_count(&image), 1, "nobody holds the image any more");
    });
}

/// The last of a disk may take as long as the host does: it does not go on the I/O thread, also where that has no helper.
#[test]
fn a_unit_goes_when_there_is_a_thread_for_it() {
    on_io_thread(|io| async move {
        for end_of_machine in [false, true] {
            let image = Arc::new(Image::Ram(RamDisk::new(1 << 20)));
            let target = target_of(disk_of(image.clone(), config()));
            io.set_no_threads(true);
            match end_of_machine {
                false => target.detach(Lun::default()).await.unwrap().close(&io).await.unwrap(),
                true => target.take(Lun::default()).unwrap().close(&io).await.unwrap(),
            }
            assert_eq!(Arc::strong_count(&image), 2, "dropped on this thread");
            io.set_no_threads(false);
            let gone = async {
                while Arc::strong_count(&image) > 1 {
                    io.sleep(Duration::from_millis(5)).await;
                }
            };
            io.at_most(Duration::from_secs(10), gone).await.expect("it stays");
        }
    });
}

#[derive(Default)]
struct Told(AtomicU32);

impl SpaceWatch for Told {
    fn no_space(&self, _: &BlockError) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A full host, for which it would wait until somebody makes room.
#[test]
fn formatting_that_waits_for_space_ends_when_the_disk_goes() {
    for end_of_machine in [false, true] {
        let file = temp_file();
        file.as_file().set_len(8 << 20).unwrap();
        let options = RawOptions {
            path: file.path().into(),
            read_only: false,
            cache: CacheMode::Writeback,
            sharing: Sharing::Unlocked,
        };
        let image = RawImage::open(&options).unwrap();
        on_io_thread(move |io| async move {
            let (parking, watch) = (Arc::new(Parking::default()), Arc::new(Told::default()));
            let pausing = Pausing { parking: parking.clone(), watch: watch.clone() };
            let image = Arc::new(Image::Raw(image).guarded(None, Some(pausing)));
            let target = target_of(disk_of(image.clone(), config()));
            let nexus = Nexus::new(target.clone(), None);
            let _ = Request::new(&[0; 6], &[], 0).send(&nexus, &io).await;
            io.plot(|victim| {
                matches!(victim, Victim::Allocate | Victim::Write { .. }).then_some(Trick::Fail(libc::ENOSPC))
            });
            // FORMAT UNIT, IMMED.
            let format = Request::new(&[0x04, 0x10, 0, 0, 0, 0], &[0, 2, 0, 0], 0);
            assert_eq!(format.send(&nexus, &io).await.0.unwrap().status, Status::Good);
            while !parking.is_waiting() {
                io.sleep(Duration::from_millis(1)).await;
            }
            let goes = async {
                match end_of_machine {
                    false => target.detach(Lun::default()).await.unwrap().close(&io).await,
                    true => target.take(Lun::default()).unwrap().close(&io).await,
                }
            };
            io.at_most(Duration::from_secs(10), goes).await.expect("it waits for space").unwrap();
            assert_eq!(Arc::strong_count(&image), 1, "nobody holds the image any more");
            assert_eq!(watch.0.load(Ordering::Relaxed), 1);
        });
    }
}

#[test]
fn formatting_outlasts_the_command_that_began_it() {
    on_io_thread(|io| async move {
        let fault = FaultDisk::new(RamDisk::new(1 << 20));
        fault.inject(Fault::every(Action::Zero, Effect::Stall));
        let image = Arc::new(Image::Fault(fault));
        let Image::Fault(fault) = &*image else { panic!("another kind of image") };
        let nexus = Nexus::new(target_of(disk_of(image.clone(), config())), None);
        let _ = Request::new(&[0; 6], &[], 0).send(&nexus, &io).await;
        let write = Request::new(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[7; 512], 0);
        assert_eq!(write.send(&nexus, &io).await.0.unwrap().status, Status::Good);
        {
            // FORMAT UNIT; the initiator waits, but not for long.
            let mut format = Request::new(&[0x04, 0, 0, 0, 0, 0], &[], 0);
            format.tag = 1;
            let mut format = pin!(format.send(&nexus, &io));
            let first = poll_fn(|cx| Poll::Ready(format.as_mut().poll(cx))).await;
            assert!(first.is_pending() && fault.stalled() > 0);
            let mut abort = pin!(nexus.manage(&io, TaskManagement::AbortTask(Lun::default(), Tag(1))));
            let first = poll_fn(|cx| Poll::Ready(abort.as_mut().poll(cx))).await;
            assert!(first.is_pending(), "the command has not left");
            assert_eq!(format.await.0.unwrap_err(), TransportFault::Aborted);
            assert_eq!(abort.await, TaskManagementReply::Complete);
        }
        let ready = async || Request::new(&[0; 6], &[], 0).send(&nexus, &io).await.0.unwrap();
        for _ in 0..3 {
            let sense = ready().await.sense.expect("FORMAT IN PROGRESS");
            assert_eq!(sense.as_bytes()[12..14], [0x04, 0x04]);
            nexus.manage(&io, TaskManagement::LogicalUnitReset(Lun::default())).await;
            assert_eq!(ready().await.sense.unwrap().as_bytes()[12..14], [0x29, 0x03]);
        }
        fault.heal();
        fault.release();
        while ready().await.status != Status::Good {
            io.sleep(Duration::from_millis(1)).await;
        }
        assert!(fault.disk().bytes().iter().all(|byte| *byte == 0));
    });
}

#[test]
fn copies_reach_all_targets_of_the_group_and_no_others() {
    let names = [0x5000_c500_1234_5678, 0x5000_c500_0000_0001, 0x5000_c500_0000_0002];
    let unit = |name| disk(image(), DiskConfig { wwn: Some(name), ..config() });
    let group = TargetGroup::default();
    let (first, second, stranger) = (group.target(), group.target(), TargetGroup::default().target());
    for (target, name) in [&first, &second, &stranger].into_iter().zip(names) {
        target.attach(Lun::default(), unit(name)).unwrap();
    }
    let (mut a, mut b) = (Local::new(&first), Local::new(&second));
    settle(&mut a);
    settle(&mut b);
    exact(&mut a, &[0x2a, 0, 0, 0, 0, 5, 0, 0, 1, 0], &[7; 512], 0);
    let copy_to = |name| list(1, 0, &[cscd(names[0]), cscd(name)], &[segment(0, 1, 1, 5, 9)]);
    let bytes = copy_to(names[1]);
    exact(&mut a, &out_cdb(0, 0, bytes.len()), &bytes, 0);
    assert_eq!(exact(&mut b, &[0x28, 0, 0, 0, 0, 9, 0, 0, 1, 0], &[], 512), [7; 512]);
    // COPY TARGET DEVICE NOT REACHABLE
    let bytes = copy_to(names[2]);
    check(&mut a, &out_cdb(0, 0, bytes.len()), &bytes, 0, (0xa, 0x0d, 0x02));
}

/// Two disks of one group, the first over an image whose operations of this kind wait; an initiator of each.
fn pair_that_stalls(action: Action) -> (Arc<Image>, [Arc<Target>; 2], [Arc<Nexus>; 2]) {
    let fault = FaultDisk::new(RamDisk::new(8 << 20));
    fault.inject(Fault::every(action, Effect::Stall));
    let slow = Arc::new(Image::Fault(fault));
    let named = |name| DiskConfig { wwn: Some(name), ..config() };
    let group = TargetGroup::default();
    let targets = [group.target(), group.target()];
    targets[0].attach(Lun::default(), disk_of(slow.clone(), named(NAMES[0]))).unwrap();
    targets[1].attach(Lun::default(), disk(image(), named(NAMES[1]))).unwrap();
    let nexuses = [0, 1].map(|index: usize| Nexus::new(targets[index].clone(), None));
    (slow, targets, nexuses)
}

const NAMES: [u64; 2] = [0x5000_c500_0000_0001, 0x5000_c500_0000_0002];

async fn wait_for_stall(io: &Io, image: &Image) {
    let Image::Fault(fault) = image else { panic!("another kind of image") };
    while fault.stalled() == 0 {
        io.sleep(Duration::from_millis(1)).await;
    }
}

type Running = Rc<Cell<Option<ScsiReply>>>;

/// Sends a command and does not wait for it.
fn start(io: &Io, nexus: &Arc<Nexus>, request: Request) -> Running {
    let running = Running::default();
    let (io, nexus, reply) = (io.clone(), nexus.clone(), running.clone());
    io.clone().spawn(async move { reply.set(Some(request.send(&nexus, &io).await.0.unwrap())) });
    running
}

async fn end_of(io: &Io, running: &Running) -> ScsiReply {
    loop {
        if let Some(reply) = running.take() {
            return reply;
        }
        io.sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn a_unit_that_goes_ends_the_copies_of_others_that_use_it() {
    // It is read from, and written to; the segment's number is in the sense data.
    for (action, source, target) in [(Action::Read, 0, 1), (Action::Write, 1, 0)] {
        on_io_thread(move |io| async move {
            let (slow, targets, nexuses) = pair_that_stalls(action);
            let _ = Request::new(&[0; 6], &[], 0).send(&nexuses[1], &io).await;
            let segments = [segment(source, target, 0, 0, 0), segment(source, target, 16, 5, 9)];
            let bytes = list(1, 0, &NAMES.map(cscd), &segments);
            let copy = Request::new(&out_cdb(0, 0, bytes.len()), &bytes, 0);
            let copy = start(&io, &nexuses[1], copy);
            wait_for_stall(&io, &slow).await;
            // Nobody releases the image: the copy ends because its disk goes.
            targets[0].detach(Lun::default()).await.expect("a unit").close(&io).await.unwrap();
            assert_eq!(Arc::strong_count(&slow), 1, "nobody holds the image any more");
            let sense = end_of(&io, &copy).await.sense.expect("COPY TARGET DEVICE NOT REACHABLE");
            let sense = sense.as_bytes();
            assert_eq!((sense[2] & 0xf, &sense[8..14]), (0xa, &[0, 0, 0, 1, 0x0d, 0x02][..]));
        });
    }
}

#[test]
fn a_unit_that_goes_ends_the_use_of_its_tokens() {
    on_io_thread(|io| async move {
        let (slow, targets, nexuses) = pair_that_stalls(Action::Read);
        for nexus in &nexuses {
            let _ = Request::new(&[0; 6], &[], 0).send(nexus, &io).await;
        }
        let bytes = ranges(16, &[(5, 1)]);
        let populate = Request::new(&out_cdb(0x10, 7, bytes.len()), &bytes, 0);
        assert_eq!(populate.send(&nexuses[0], &io).await.0.unwrap().status, Status::Good);
        // RECEIVE ROD TOKEN INFORMATION.
        let receive = [0x84, 7, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0];
        let (reply, data) = Request::new(&receive, &[], 1024).send(&nexuses[0], &io).await;
        assert_eq!(reply.unwrap().status, Status::Good);
        let bytes = using(&data[38..550], 0, &[(9, 1)]);
        let write = Request::new(&out_cdb(0x11, 8, bytes.len()), &bytes, 0);
        let write = start(&io, &nexuses[1], write);
        wait_for_stall(&io, &slow).await;
        targets[0].detach(Lun::default()).await.expect("a unit").close(&io).await.unwrap();
        assert_eq!(Arc::strong_count(&slow), 1, "nobody holds the image any more");
        let sense = end_of(&io, &write).await.sense.expect("COPY TARGET DEVICE NOT REACHABLE");
        assert_eq!((sense.as_bytes()[2] & 0xf, &sense.as_bytes()[12..14]), (0xa, &[0x0d, 0x02][..]));
    });
}

#[test]
fn a_unit_in_the_place_of_another_is_used_only_by_who_has_met_it() {
    let target = target_of(disk(image(), config()));
    let (mut a, mut b) = (Local::new(&target), Local::new(&target));
    settle(&mut a);
    settle(&mut b);
    let far = Lun([0, 7, 0, 0, 0, 0, 0, 0]);
    target.attach(far, disk(image(), config())).unwrap();
    assert!(block_on(target.detach(Lun::default())).is_some());
    let new = Arc::new(Image::Recording(image()));
    target.attach(Lun::default(), disk_of(new.clone(), config())).unwrap();
    let Image::Recording(recorded) = &*new else { panic!("another kind of image") };
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    // What was meant for the one before, again and again, with the unit attention in between.
    for initiator in [&mut a, &mut b] {
        check(initiator, &write, &[1; 512], 0, (0x5, 0x25, 0x00));
        check(initiator, &[0; 6], &[], 0, (0x5, 0x25, 0x00));
        // A page of vital product data is asked for by whoever knows the disk.
        assert_eq!(exact(initiator, &[0x12, 1, 0, 0, 4, 0], &[], 4)[0], 0x7f);
        for cdb in [write, [0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0], [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]] {
            check(initiator, &cdb, &[1; 512], 0, (0x5, 0x25, 0x00));
        }
        check(initiator, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0, (0x5, 0x25, 0x00));
    }
    assert_eq!(recorded.operations(), []);
    assert_eq!(exact(&mut a, &[0x12, 0, 0, 0, 36, 0], &[], 36)[0], 0);
    settle(&mut a);
    exact(&mut a, &write, &[2; 512], 0);
    check(&mut b, &write, &[1; 512], 0, (0x5, 0x25, 0x00));
    assert_eq!(recorded.operations().len(), 1);
    // A place that was never another's, and initiators that begin anew.
    b.lun = far;
    settle(&mut b);
    exact(&mut b, &write, &[3; 512], 0);
    b.lun = Lun::default();
    block_on(target.power_on());
    settle(&mut b);
    exact(&mut b, &write, &[4; 512], 0);
    assert_eq!(recorded.operations().len(), 1);
}
