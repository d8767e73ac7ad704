//! Commands of tapes go one at a time, once, in the order in which they came; those of disks side by side.

use std::sync::atomic::AtomicBool;

use super::super::places::Places;
use super::*;
use crate::scsi::{Status, TaskAttribute};
use crate::testing::on_io_thread;

/// Sends eight commands at once; the most that were at the device at a time, and their order.
fn eight(device_type: u8, attribute: fn(u64) -> TaskAttribute) -> (usize, Vec<u8>) {
    on_io_thread(move |io| async move {
        let (now, most) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
        let peak = most.clone();
        let fake = Fake::new(move |_| {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(20));
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(Answer::good())
        });
        let fake = Arc::new(fake.of_type(device_type));
        let nexus = nexus_with(&io, &fake, config()).await;
        let left = std::rc::Rc::new(std::cell::Cell::new(8));
        for tag in 0..8 {
            let (nexus, here, left) = (nexus.clone(), io.clone(), left.clone());
            io.spawn(async move {
                let mut write = Request::new(&[0x0a, 1, 0, tag as u8, 1, 0], &[7; 512], 0);
                (write.tag, write.attribute) = (tag, attribute(tag));
                assert_eq!(write.send(&nexus, &here).await.0.unwrap().status, Status::Good);
                left.set(left.get() - 1);
            });
        }
        while left.get() > 0 {
            io.sleep(Duration::from_millis(1)).await;
        }
        (most.load(Ordering::SeqCst), fake.take_seen().iter().map(|seen| seen.cdb[3]).collect())
    })
}

#[test]
fn a_tape_has_one_command_at_a_time_in_order() {
    let (most, order) = eight(1, |_| TaskAttribute::Simple);
    assert_eq!((most, order), (1, (0..8).collect()));
    // Whatever the initiator says.
    let (most, order) =
        eight(1, |tag| if tag % 2 == 0 { TaskAttribute::Simple } else { TaskAttribute::HeadOfQueue });
    assert_eq!((most, order), (1, (0..8).collect()));
}

#[test]
fn a_disk_has_many() {
    let (most, mut order) = eight(0, |_| TaskAttribute::Simple);
    order.sort();
    assert!(most > 2, "{most}");
    assert_eq!(order, (0..8).collect::<Vec<_>>());
}

/// A node of sg has room for 16, and says EDOM to others.
#[test]
fn what_goes_by_sg_waits_for_a_place() {
    for waits in [true, false] {
        on_io_thread(move |io| async move {
            let (places, now, refused) = (Places::new(16), AtomicUsize::new(0), AtomicBool::new(false));
            let take = move || {
                let full = now.fetch_add(1, Ordering::SeqCst) >= 16;
                refused.fetch_or(full, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(5));
                // Without waiting there is one for whom there is no room.
                while !waits && !refused.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                now.fetch_sub(1, Ordering::SeqCst);
                if full { Err(io::Error::from_raw_os_error(libc::EDOM)) } else { Ok(Answer::good()) }
            };
            let fake = Arc::new(Fake::new(move |command| match command.cdb.opcode() {
                0x42 if waits => places.within(&take),
                0x42 => take(),
                _ => Ok(Answer::good()),
            }));
            let nexus = nexus_with(&io, &fake, config()).await;
            let ended = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
            for tag in 0..64 {
                let (nexus, here, ended) = (nexus.clone(), io.clone(), ended.clone());
                io.spawn(async move {
                    let mut unmap = Request::new(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &[0; 24], 0);
                    unmap.tag = tag;
                    let status = unmap.send(&nexus, &here).await.0.unwrap().status;
                    ended.borrow_mut().push(status);
                });
            }
            while ended.borrow().len() < 64 {
                io.sleep(Duration::from_millis(1)).await;
            }
            let good = ended.borrow().iter().filter(|status| **status == Status::Good).count();
            assert_eq!((good == 64, ended.borrow().contains(&Status::Busy)), (waits, !waits), "{good}");
        });
    }
}

#[test]
fn nothing_is_sent_twice() {
    on_io_thread(|io| async move {
        for (error, answer) in [
            (libc::EINTR, None),
            (libc::EAGAIN, None),
            (libc::EIO, None),
            (libc::ENOMEM, None),
            (0, Some((0x08, 0))), // BUSY
            (0, Some((0, 0x02))), // the bus was busy
            (0, Some((0, 0x0b))), // the driver would like it again
            (0, Some((0, 0x03))), // no answer in time
        ] {
            let fake = Fake::new(move |_| match answer {
                Some((status, host)) => Ok(Answer { status, host, ..Answer::good() }),
                None => Err(io::Error::from_raw_os_error(error)),
            });
            let fake = Arc::new(fake.of_type(1));
            let nexus = nexus_with(&io, &fake, config()).await;
            let (reply, _) = send(&io, &nexus, &[0x0a, 0, 0, 2, 0, 0], &[7; 512], 0).await;
            assert!(reply.is_err() || reply.is_ok_and(|reply| reply.status != Status::Good));
            assert_eq!(fake.cdbs(), [[0x0a, 0, 0, 2, 0, 0]], "error {error}, {answer:?}");
        }
    });
}

/// A device that stalls holds up nobody else on the thread.
#[test]
fn a_neighbour_never_waits() {
    on_io_thread(|io| async move {
        let stalled = Arc::new(AtomicBool::new(true));
        let until = stalled.clone();
        let slow = Arc::new(Fake::new(move |_| {
            while until.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(Answer::good())
        }));
        let quick = Arc::new(Fake::new(|_| Ok(Answer::good())));
        let (target, other) = (Target::new(), Lun([0, 1, 0, 0, 0, 0, 0, 0]));
        attach(&target, Lun::default(), &slow, GenericConfig { depth: 2, ..config() });
        attach(&target, other, &quick, config());
        let nexus = Nexus::new(target, None);
        let to = |lun, tag| {
            let mut request = Request::new(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], 512);
            (request.lun, request.tag) = (lun, tag);
            request
        };
        for lun in [Lun::default(), other] {
            assert!(to(lun, 0).send(&nexus, &io).await.0.unwrap().sense.is_some(), "power on");
        }
        let ended = std::rc::Rc::new(std::cell::Cell::new(0));
        for tag in 0..64 {
            let (nexus, here, ended, request) =
                (nexus.clone(), io.clone(), ended.clone(), to(Lun::default(), tag));
            io.spawn(async move {
                request.send(&nexus, &here).await.0.unwrap();
                ended.set(ended.get() + 1);
            });
        }
        for tag in 0..200 {
            let reply =
                io.at_most(Duration::from_secs(5), to(other, tag).send(&nexus, &io)).await.expect("it waits");
            assert_eq!(reply.0.unwrap().status, Status::Good);
        }
        assert_eq!(ended.get(), 0);
        stalled.store(false, Ordering::Relaxed);
        while ended.get() < 64 {
            io.sleep(Duration::from_millis(1)).await;
        }
    });
}
