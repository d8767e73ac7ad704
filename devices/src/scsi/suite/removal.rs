//! Units that go while they work, and how far copies reach.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::copies::{cscd, list, out_cdb, segment};
use super::local::{Local, disk, disk_of, target_of};
use super::{DiskConfig, check, config, exact, image, settle};
use crate::scsi::suite::Request;
use crate::scsi::{
    Image, Lun, Nexus, Status, Tag, TargetGroup, TaskManagement, TaskManagementReply, TransportFault,
};
use crate::storage::Action;
use crate::testing::{Effect, Fault, FaultDisk, RamDisk, on_io_thread};

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
        assert!(detach.await);
        assert_eq!(Arc::strong_count(&image), 1, "nobody holds the image any more");
    });
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
