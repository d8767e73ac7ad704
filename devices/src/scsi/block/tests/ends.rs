//! How commands end where the ring has an error, and how the unit ends.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::iothread::mischief::{Trick, Victim};
use crate::log::recorded;
use crate::scsi::suite::block_on;
use crate::scsi::{Residual, Status, TaskManagement, TaskManagementReply};
use crate::storage::{Action, BlockErrorKind};
use crate::testing::{Effect, Fault, FaultDisk, RamDisk, on_io_thread};

/// Everything on the ring fails so.
fn fail(io: &Io, error: i32) {
    io.plot(move |_| Some(Trick::Fail(error)));
}

#[test]
fn an_error_of_the_ring_is_one_command_more_and_the_device_says_why() {
    on_io_thread(|io| async move {
        let medium = |command: &Command| match command.cdb.opcode() {
            0x28 => Some(Ok(Answer { residual: 512, ..check(command, 2, (3, 0x11, 0x04)) })),
            0x2a => Some(Ok(check(command, 2, (3, 0x0c, 0x02)))),
            _ => None,
        };
        for (bounce, error) in [(false, libc::EIO), (false, libc::ENODATA), (true, libc::EREMOTEIO)] {
            let bench = Bench::new(&io, Setup { bounce, ..Setup::saying(medium) }).await;
            fail(&io, error);
            let (reply, _) = bench.send(&io, &ten(0x28, 3, 2), &[], 2 * BLOCK).await;
            let reply = reply.unwrap();
            assert_eq!((codes(&reply), reply.residual_in), ((3, 0x11, 0x04), Residual::Under(512)));
            assert_eq!(bench.cdbs(), [ten(0x28, 3, 2)]);
            let bytes = [pattern(1), pattern(2)].concat();
            let (reply, _) = bench.send(&io, &ten(0x2a, 3, 2), &bytes, 0).await;
            let reply = reply.unwrap();
            assert_eq!((codes(&reply), reply.residual_out), ((3, 0x0c, 0x02), Residual::Under(1024)));
            assert_eq!(bench.seen(), [(ten(0x2a, 3, 2).to_vec(), bytes)]);
            io.plot(|_| None);
        }
    });
}

/// The host had more patience the second time, or a write had been carried out after all.
#[test]
fn what_succeeds_the_second_time_is_good() {
    on_io_thread(|io| async move {
        let bench = Bench::new(&io, Setup::new()).await;
        fail(&io, libc::EIO);
        let (reply, data) = bench.send(&io, &ten(0x28, 3, 1), &[], BLOCK).await;
        assert_eq!((reply.unwrap().status, data), (Status::Good, pattern(3)));
        io.plot(|_| Some(Trick::Doubt(libc::ETIMEDOUT)));
        let (reply, _) = bench.send(&io, &ten(0x2a, 3, 1), &pattern(9), 0).await;
        let reply = reply.unwrap();
        assert_eq!((reply.status, reply.residual_out), (Status::Good, Residual::Exact));
        assert_eq!((bench.blocks(3, 1), bench.cdbs().len()), (pattern(9), 2));
    });
}

/// More than the host takes with one command goes in pieces the second time.
#[test]
fn a_long_one_goes_in_pieces_the_second_time() {
    on_io_thread(|io| async move {
        let bench = Bench::new(&io, Setup::new()).await;
        fail(&io, libc::EIO);
        let (reply, data) = bench.send(&io, &ten(0x28, 3, 300), &[], 300 * BLOCK).await;
        assert_eq!((reply.unwrap().status, data == bench.blocks(3, 300)), (Status::Good, true));
        assert_eq!(bench.cdbs(), [ten(0x28, 3, 128), ten(0x28, 131, 128), ten(0x28, 259, 44)]);
    });
}

#[test]
fn statuses_without_sense_data_are_the_devices() {
    on_io_thread(|io| async move {
        for (error, status, wanted) in [
            (libc::EBADE, 0x18, Status::ReservationConflict),
            (libc::EIO, 0x28, Status::TaskSetFull),
            (libc::EIO, 0x08, Status::Busy),
        ] {
            let script = move |command: &Command| {
                matches!(command.cdb.opcode(), 0x28 | 0x2a).then(|| Ok(check(command, status, (0, 0, 0))))
            };
            let bench = Bench::new(&io, Setup::saying(script)).await;
            fail(&io, error);
            let (reply, _) = bench.send(&io, &ten(0x28, 3, 1), &[], BLOCK).await;
            assert_eq!(reply.unwrap().status, wanted);
            let (reply, _) = bench.send(&io, &ten(0x2a, 3, 1), &[7; BLOCK], 0).await;
            assert_eq!((reply.unwrap().status, bench.seen().len()), (wanted, 2));
            assert_eq!(bench.blocks(3, 1), pattern(3));
            io.plot(|_| None);
        }
    });
}

/// It has not gone out: the initiator sends it again when it likes.
#[test]
fn a_host_without_memory_is_busy() {
    on_io_thread(|io| async move {
        for error in [libc::ENOMEM, libc::EAGAIN] {
            let bench = Bench::new(&io, Setup::new()).await;
            fail(&io, error);
            let (reply, _) = bench.send(&io, &ten(0x28, 3, 1), &[], BLOCK).await;
            assert_eq!(reply.unwrap().status, Status::Busy);
            let (reply, _) = bench.send(&io, &ten(0x2a, 3, 1), &[7; BLOCK], 0).await;
            assert_eq!((reply.unwrap().status, bench.seen()), (Status::Busy, vec![]));
            io.plot(|_| None);
        }
    });
}

/// The kernel makes a device that was deleted one of no blocks.
#[test]
fn a_device_that_is_gone_is_no_unit_and_may_come_back() {
    on_io_thread(|io| async move {
        let gone = Arc::new(AtomicUsize::new(0));
        let is_gone = gone.clone();
        let script = move |_: &Command| match is_gone.load(Ordering::Relaxed) {
            0 => None,
            error => errno(error as i32),
        };
        let bench = Bench::new(&io, Setup::saying(script)).await;
        gone.store(libc::ENODEV as usize, Ordering::Relaxed);
        let unsupported = (5, 0x25, 0);
        bench.file.as_file().set_len(0).unwrap();
        let (reply, _) = bench.send(&io, &ten(0x28, 3, 1), &[], BLOCK).await;
        assert_eq!((codes(&reply.unwrap()), bench.seen().len()), (unsupported, 1));
        for error in [libc::ENODEV, libc::ENXIO, libc::ENOSPC] {
            fail(&io, error);
            let (reply, _) = bench.send(&io, &ten(0x28, 3, 1), &[], BLOCK).await;
            assert_eq!(codes(&reply.unwrap()), unsupported);
            let (reply, _) = bench.send(&io, &ten(0x2a, 3, 1), &[7; BLOCK], 0).await;
            assert_eq!((codes(&reply.unwrap()), bench.seen().len()), (unsupported, 2));
        }
        // It was offline, and is not any more.
        gone.store(0, Ordering::Relaxed);
        bench.file.as_file().set_len((BLOCKS * BLOCK) as u64).unwrap();
        io.plot(|_| None);
        let (reply, _) = bench.send(&io, &[0; 6], &[], 0).await;
        assert_eq!(reply.unwrap().status, Status::Good);
        bench.seen();
        let (reply, data) = bench.send(&io, &ten(0x28, 3, 1), &[], BLOCK).await;
        assert_eq!((reply.unwrap().status, data, bench.seen().len()), (Status::Good, vec![0; BLOCK], 0));
    });
}

/// Nobody waits for it any more: the error of the ring is nobody's, and nothing is sent for it.
#[test]
fn a_command_that_was_ended_is_not_sent_once_more() {
    on_io_thread(|io| async move {
        let bench = Bench::new(&io, Setup::new()).await;
        let late = Duration::from_millis(200);
        io.plot(move |victim| {
            matches!(victim, Victim::Write { .. }).then_some(Trick::FailLate(late, libc::EIO))
        });
        for function in [
            TaskManagement::AbortTask(Lun::default(), crate::scsi::Tag(0)),
            TaskManagement::LogicalUnitReset(Lun::default()),
        ] {
            let cdb = ten(0x2a, 3, 1);
            let mut write = Box::pin(bench.send(&io, &cdb, &[7; BLOCK], 0));
            assert!(io.at_most(Duration::from_millis(30), write.as_mut()).await.is_none());
            let mut manage = Box::pin(bench.nexus.manage(&io, function));
            assert!(io.at_most(Duration::ZERO, manage.as_mut()).await.is_none());
            assert!(write.await.0.is_err());
            assert_eq!(manage.await, TaskManagementReply::Complete);
            io.sleep(2 * late).await;
            assert_eq!(bench.seen(), []);
            // What the reset left to be heard.
            let _ = bench.send(&io, &[0; 6], &[], 0).await;
            bench.seen();
        }
        assert_eq!(bench.blocks(3, 1), pattern(3));
    });
}

const SYNCHRONIZE: [u8; 10] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn what_was_written_is_flushed_when_the_unit_goes() {
    on_io_thread(|io| async move {
        // What the device says, one after the other; and how it ends, and how many were sent.
        let good = (0, (0, 0, 0));
        type Said = (u8, (u8, u8, u8));
        let cases: [(&[Said], Option<&str>, usize); 6] = [
            (&[good], None, 1),
            // Unit attentions come before; without the command there is no cache.
            (&[(2, (6, 0x29, 0)), (2, (6, 0x2a, 9)), good], None, 3),
            (&[(2, (5, 0x20, 0))], None, 1),
            // The array does not show it any more.
            (&[(2, (5, 0x25, 0))], Some("sense 5h, 25h, 00h"), 1),
            (&[(2, (3, 0x0c, 0))], Some("sense 3h, 0ch, 00h"), 1),
            (&[(0x18, (0, 0, 0))], Some("status 18h"), 1),
        ];
        for (said, wanted, count) in cases {
            let (said, next) = (said.to_vec(), AtomicUsize::new(0));
            let script = move |command: &Command| {
                (command.cdb.opcode() == 0x35).then(|| {
                    let (status, sense) = said[next.fetch_add(1, Ordering::Relaxed)];
                    Ok(check(command, status, sense))
                })
            };
            let bench = Bench::new(&io, Setup::saying(script)).await;
            let (reply, _) = bench.send(&io, &ten(0x2a, 3, 1), &[7; BLOCK], 0).await;
            assert_eq!(reply.unwrap().status, Status::Good);
            let closed = bench.target.detach(Lun::default()).await.unwrap().close(&io).await;
            let said = closed.err().map(|error| error.to_string());
            let full = wanted.map(|wanted| format!("flushing \"/dev/sdz\" failed: {wanted}"));
            assert_eq!(said, full);
            assert_eq!(bench.cdbs(), vec![SYNCHRONIZE.to_vec(); count]);
            assert_eq!(Arc::strong_count(&bench.device), 1, "nobody has it any more");
        }
        // What was only read has nothing to flush; what was written by a command has.
        for (cdb, count) in
            [(ten(0x28, 3, 1), 0), ([0x2a, 8, 0, 0, 0, 3, 0, 0, 1, 0], 1), (ten(0x41, 3, 1), 1)]
        {
            let bench = Bench::new(&io, Setup::new()).await;
            let write = cdb[0] != 0x28;
            let (out, room) = if write { (&[7; BLOCK][..], 0) } else { (&[][..], BLOCK) };
            let (reply, _) = bench.send(&io, &cdb, out, room).await;
            assert_eq!(reply.unwrap().status, Status::Good);
            bench.seen();
            bench.target.detach(Lun::default()).await.unwrap().close(&io).await.unwrap();
            assert_eq!(bench.cdbs(), vec![SYNCHRONIZE.to_vec(); count]);
        }
    });
}

/// The array takes a disk away that was written. Whether anything may be lost with it, the disk has said to the guest.
#[test]
fn a_disk_that_does_not_write_back_loses_nothing_when_it_goes() {
    on_io_thread(|io| async move {
        const SENSE: [u8; 6] = [0x1a, 0x08, 0x08, 0, 7, 0];
        const SELECT: [u8; 10] = [0x55, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
        for (wce, selects, gone, lost) in [
            (0x04, false, false, true),
            (0x00, false, false, false),
            (0x04, false, true, true),
            (0x00, false, true, false),
            // The guest has perhaps switched it on.
            (0x00, true, false, true),
            (0x00, true, true, true),
        ] {
            let script = move |command: &Command| match command.cdb.opcode() {
                0x1a => Some(give(command, &[6, 0, 0, 0, 0x88, 18, wce])),
                0x35 => Some(Ok(check(command, 2, (5, 0x25, 0)))),
                _ => None,
            };
            let bench = Bench::new(&io, Setup::saying(script)).await;
            // As Linux asks when it finds the disk.
            let (reply, _) = bench.send(&io, &SENSE, &[], 7).await;
            assert_eq!(reply.unwrap().status, Status::Good);
            let (reply, _) = bench.send(&io, &ten(0x2a, 3, 1), &[7; BLOCK], 0).await;
            assert_eq!(reply.unwrap().status, Status::Good);
            if selects {
                assert_eq!(bench.send(&io, &SELECT, &[], 0).await.0.unwrap().status, Status::Good);
            }
            if gone {
                (bench.successor)(None, None, &bench.config);
            }
            let closed = bench.target.detach(Lun::default()).await.unwrap().close(&io).await;
            assert_eq!(closed.is_err(), lost, "{wce} {selects} {gone}");
        }
    });
}

/// Who has flushed it himself loses nothing, whatever becomes of the disk.
#[test]
fn what_the_guest_has_flushed_is_not_flushed_again() {
    on_io_thread(|io| async move {
        const IMMEDIATE: [u8; 10] = [0x35, 2, 0, 0, 0, 0, 0, 0, 0, 0];
        const PART: [u8; 10] = [0x35, 0, 0, 0, 0, 3, 0, 0, 1, 0];
        const LONG: [u8; 16] = [0x91, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let write = ten(0x2a, 3, 1);
        let by_command = [0x2a, 8, 0, 0, 0, 3, 0, 0, 1, 0];
        let cases: [(&[&[u8]], usize); 7] = [
            (&[&write, &SYNCHRONIZE], 0),
            (&[&by_command, &LONG], 0),
            (&[&SYNCHRONIZE], 0),
            (&[&write, &SYNCHRONIZE, &write], 1),
            (&[&write, &IMMEDIATE], 1),
            (&[&write, &PART], 1),
            (&[&write, &SYNCHRONIZE, &write, &SYNCHRONIZE], 0),
        ];
        for (cdbs, count) in cases {
            let bench = Bench::new(&io, Setup::new()).await;
            for cdb in cdbs {
                let out = if cdb[0] == 0x2a { &[7; BLOCK][..] } else { &[] };
                let (reply, _) = bench.send(&io, cdb, out, 0).await;
                assert_eq!(reply.unwrap().status, Status::Good);
            }
            bench.seen();
            bench.target.detach(Lun::default()).await.unwrap().close(&io).await.unwrap();
            assert_eq!(bench.cdbs(), vec![SYNCHRONIZE.to_vec(); count], "{cdbs:02x?}");
        }
        // One that the device refuses is none.
        let next = AtomicUsize::new(0);
        let script = move |command: &Command| {
            (command.cdb.opcode() == 0x35).then(|| {
                let first = next.fetch_add(1, Ordering::Relaxed) == 0;
                Ok(check(command, if first { 2 } else { 0 }, if first { (3, 0x0c, 0) } else { (0, 0, 0) }))
            })
        };
        let bench = Bench::new(&io, Setup::saying(script)).await;
        let (reply, _) = bench.send(&io, &write, &[7; BLOCK], 0).await;
        assert_eq!(reply.unwrap().status, Status::Good);
        let (reply, _) = bench.send(&io, &SYNCHRONIZE, &[], 0).await;
        assert_eq!(reply.unwrap().status, Status::CheckCondition);
        bench.target.detach(Lun::default()).await.unwrap().close(&io).await.unwrap();
        assert_eq!(bench.cdbs(), vec![SYNCHRONIZE.to_vec(); 2]);
    });
}

/// What has taken the place of the device was never asked for this, and perhaps heard of it before. Its own blocks are reached by commands.
#[test]
fn what_was_begun_at_a_device_that_is_gone_does_not_come_to_the_next_one() {
    on_io_thread(|io| async move {
        let write = ten(0x2a, 3, 1);
        let late = Duration::from_millis(100);
        for told in [false, true] {
            let bench = Bench::new(&io, Setup::new()).await;
            io.plot(move |_| Some(Trick::FailLate(late, libc::EIO)));
            let bytes = pattern(9);
            let mut first = Box::pin(bench.send(&io, &write, &bytes, 0));
            assert!(io.at_most(Duration::from_millis(20), first.as_mut()).await.is_none());
            bench.replace();
            bench.seen();
            if told {
                let mut request = Request::new(&[0; 6], &[], 0);
                request.tag = 1;
                let (reply, _) = request.send(&bench.nexus, &io).await;
                assert_eq!(codes(&reply.unwrap()), (6, 0x29, 0));
            }
            let wanted = if told { (0x0b, 0, 0) } else { (6, 0x29, 0) };
            assert_eq!(codes(&first.await.0.unwrap()), wanted);
            assert_eq!(bench.seen(), []);
            // Initiators look at it again, and go on.
            let _ = bench.send(&io, &[0; 6], &[], 0).await;
            bench.seen();
            let (reply, _) = bench.send(&io, &write, &pattern(8), 0).await;
            assert_eq!(reply.unwrap().status, Status::Good);
            assert_eq!(bench.seen(), [(write.to_vec(), pattern(8))], "the old node is nobody's any more");
            io.plot(|_| None);
        }
    });
}

/// The host has its node open again, as it had before.
#[test]
fn a_disk_that_is_back_is_read_and_written_by_the_ring() {
    for bounce in [false, true] {
        on_io_thread(move |io| async move {
            let bench = Bench::new(&io, Setup { bounce, ..Setup::new() }).await;
            let disk = Arc::new(Image::Ram(RamDisk::new(BLOCKS * BLOCK)));
            // What comes first hears that it is back, whatever it is.
            for (cdb, out, room) in [(ten(0x28, 3, 1), vec![], BLOCK), (ten(0x2a, 3, 1), pattern(9), 0)] {
                bench.replace_with(Some(disk.clone()));
                bench.seen();
                let (reply, _) = bench.send(&io, &cdb, &out, room).await;
                assert_eq!((codes(&reply.unwrap()), bench.seen()), ((6, 0x29, 0), vec![]));
            }
            assert!(!bench.target.is_away(Lun::default()));
            let (reply, data) = bench.send(&io, &ten(0x28, 3, 1), &[], BLOCK).await;
            assert_eq!((reply.unwrap().status, data), (Status::Good, vec![0; BLOCK]), "nothing was written");
            let (reply, _) = bench.send(&io, &ten(0x2a, 3, 1), &pattern(8), 0).await;
            assert_eq!((reply.unwrap().status, bench.seen()), (Status::Good, vec![]));
            let (reply, data) = bench.send(&io, &ten(0x28, 3, 1), &[], BLOCK).await;
            assert_eq!((reply.unwrap().status, data, bench.seen()), (Status::Good, pattern(8), vec![]));
            // It goes once more, for good.
            (bench.successor)(None, None, &bench.config);
            let until = std::time::Instant::now() + Duration::from_secs(10);
            while Arc::strong_count(&disk) > 1 {
                assert!(std::time::Instant::now() < until, "its node is open");
                io.sleep(Duration::from_millis(1)).await;
            }
            let (reply, _) = bench.send(&io, &ten(0x28, 3, 1), &[], BLOCK).await;
            assert_eq!(codes(&reply.unwrap()), (5, 0x25, 0));
            assert!(bench.target.is_away(Lun::default()));
        });
    }
}

/// The last close of a node may wait for the host: what is under way holds more than the blocks.
#[test]
fn who_transfers_last_does_not_close_the_disk() {
    on_io_thread(|io| async move {
        let bench = Bench::new(&io, Setup::new()).await;
        let next = RamDisk::new(BLOCKS * BLOCK);
        let blocks = {
            let (path, sharing) = (bench.file.path().into(), Sharing::Unlocked);
            let cache = CacheMode::Writeback;
            let image = RawImage::open(&RawOptions { path, read_only: false, cache, sharing }).unwrap();
            Arc::new(Image::Raw(image))
        };
        bench.replace_with(Some(blocks.clone()));
        let alive = Arc::downgrade(&blocks);
        drop(blocks);
        let _ = bench.send(&io, &[0; 6], &[], 0).await;
        io.plot(|_| Some(Trick::FailLate(Duration::from_millis(100), libc::EIO)));
        let mut read = Box::pin(bench.send(&io, &[0x28, 0, 0, 0, 0, 3, 0, 0, 1, 0], &[], BLOCK));
        assert!(io.at_most(Duration::from_millis(20), read.as_mut()).await.is_none());
        assert_eq!(alive.strong_count(), 1, "the device that has them counts");
        bench.replace_with(Some(Arc::new(Image::Ram(next))));
        assert_eq!(codes(&read.await.0.unwrap()), (6, 0x29, 0));
        io.plot(|_| None);
    });
}

/// Nobody else has told the log that the guest has an error.
#[test]
fn what_bounces_and_ends_well_the_second_time_is_no_error_of_the_guest() {
    on_io_thread(|io| async move {
        let bench = Bench::new(&io, Setup { bounce: true, ..Setup::new() }).await;
        fail(&io, libc::EIO);
        let (mut lines, read) = (Vec::new(), ten(0x28, 3, 1));
        let mut read = Box::pin(bench.send(&io, &read, &[], BLOCK));
        let (reply, _) = std::future::poll_fn(|cx| {
            let mut polled = std::task::Poll::Pending;
            lines.extend(recorded(tracing::Level::WARN, || polled = read.as_mut().poll(cx)));
            polled
        })
        .await;
        assert_eq!(reply.unwrap().status, Status::Good);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].ends_with("; sent once more as a SCSI command it ended well"), "{lines:?}");
    });
}

/// One line for each thing that is wrong, and none for what is not.
#[test]
fn the_log_says_once_what_the_kernel_said() {
    let gone: Arc<Script> = Arc::new(|_| errno(libc::ENODEV));
    let medium: Arc<Script> = Arc::new(|command| Some(Ok(check(command, 2, (3, 0x11, 0)))));
    let conflict: Arc<Script> = Arc::new(|command| Some(Ok(check(command, 0x18, (0, 0, 0)))));
    let good: Arc<Script> = Arc::new(|_| Some(Ok(Answer::good())));
    let failed = "WARN reading 512 bytes at 1536: injected; ";
    for (kind, script, wanted) in [
        (
            BlockErrorKind::ReadFailed,
            gone.clone(),
            ("ERROR \"/dev/sdz\": the device is gone", "by another name"),
        ),
        (BlockErrorKind::Lost, gone, ("ERROR \"/dev/sdz\": the device is gone", "by another name")),
        (
            BlockErrorKind::ReadFailed,
            medium,
            (failed, "the guest hears what the device said when it was sent once more"),
        ),
        (
            BlockErrorKind::ReadFailed,
            good.clone(),
            (failed, "sent once more as a SCSI command it ended well"),
        ),
        (BlockErrorKind::HostResources, good, (failed, "the guest hears that the disk is busy")),
        (BlockErrorKind::ReservationConflict, conflict, ("", "")),
    ] {
        let io = Io::for_test();
        let disk = FaultDisk::new(RamDisk::new(BLOCKS * BLOCK));
        disk.inject(Fault::next(Action::Read, Effect::Fail(kind)));
        let script: Box<Script> = Box::new(move |command| match command.cdb.opcode() {
            0x28 => script(command),
            _ => None,
        });
        let bench =
            block_on(Bench::over(&io, Setup { script, ..Setup::new() }, Arc::new(Image::Fault(disk))));
        let lines = recorded(tracing::Level::WARN, || {
            let (reply, _) = block_on(bench.send(&io, &ten(0x28, 3, 1), &[], BLOCK));
            reply.unwrap();
        });
        let (start, end) = wanted;
        assert_eq!(lines.len(), usize::from(!start.is_empty()), "{kind:?}: {lines:?}");
        assert!(
            lines.iter().all(|line| line.starts_with(start) && line.ends_with(end)),
            "{kind:?}: {lines:?}"
        );
    }
}

/// As with all devices of the host: who is in a hurry has an answer, by whichever way the disk has hung.
#[test]
fn a_disk_that_answers_nothing_is_busy_and_known() {
    const INQUIRY: [u8; 6] = [0x12, 0, 0, 0, 36, 0];
    on_io_thread(|io| async move {
        let shut = Arc::new(AtomicBool::new(false));
        let gate = shut.clone();
        let hangs = move |_: &Command| {
            while gate.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            None
        };
        let bench = Bench::new(&io, Setup { bounce: true, ..Setup::saying(hangs) }).await;
        bench.nexus.hurry(true);
        shut.store(true, Ordering::Relaxed);
        let mut first = Box::pin(bench.send(&io, &INQUIRY, &[], 36));
        assert!(io.at_most(Duration::from_millis(30), first.as_mut()).await.is_none());
        while bench.device.seen.lock().unwrap().is_empty() {
            io.sleep(Duration::from_millis(1)).await;
        }
        bench.nexus.reset();
        assert_eq!(first.await.0.unwrap_err(), TransportFault::Reset);
        let (told, _) = bench.send(&io, &[0; 6], &[], 0).await;
        assert_eq!(codes(&told.unwrap()), (6, 0x29, 0x07));
        let asks: [(&[u8], Status); 4] = [
            (&INQUIRY, Status::Good),
            (&[0; 6], Status::Busy),
            (&[0x12, 1, 0x83, 0, 36, 0], Status::Busy),
            (&ten(0x28, 3, 1), Status::Busy),
        ];
        for (cdb, wanted) in asks {
            let answer = bench.send(&io, cdb, &[], BLOCK);
            let answer = io.at_most(Duration::from_secs(1), answer).await.expect("it waits");
            assert_eq!(answer.0.unwrap().status, wanted, "{cdb:02x?}");
        }
        shut.store(false, Ordering::Relaxed);
    });
}

/// The only command that hangs is a WRITE by the ring: nothing is at the device by SG_IO.
#[test]
fn a_disk_that_hangs_by_the_ring_is_busy_and_known() {
    const INQUIRY: [u8; 6] = [0x12, 0, 0, 0, 36, 0];
    on_io_thread(|io| async move {
        let bench = Bench::new(&io, Setup { bounce: true, ..Setup::saying(|_| None) }).await;
        bench.nexus.hurry(true);
        io.plot(|victim| matches!(victim, Victim::Write { .. }).then_some(Trick::Hang));
        let write = ten(0x2a, 3, 1);
        let mut first = Box::pin(bench.send(&io, &write, &[7; BLOCK], 0));
        assert!(io.at_most(Duration::from_millis(30), first.as_mut()).await.is_none());
        bench.nexus.reset();
        assert_eq!(first.await.0.unwrap_err(), TransportFault::Reset);
        io.plot(|_| None);
        let (told, _) = bench.send(&io, &[0; 6], &[], 0).await;
        assert_eq!(codes(&told.unwrap()), (6, 0x29, 0x07));
        let asks: [(&[u8], Status); 4] = [
            (&INQUIRY, Status::Good),
            (&[0; 6], Status::Busy),
            (&[0x12, 1, 0x83, 0, 36, 0], Status::Busy),
            (&ten(0x28, 3, 1), Status::Busy),
        ];
        for (cdb, wanted) in asks {
            let answer = bench.send(&io, cdb, &[], BLOCK);
            let answer = io.at_most(Duration::from_secs(1), answer).await.expect("it waits");
            assert_eq!(answer.0.unwrap().status, wanted, "{cdb:02x?}");
        }
        io.answer();
        let ready = bench.send(&io, &[0; 6], &[], 0);
        let ready = io.at_most(Duration::from_secs(5), ready).await.expect("it waits");
        assert_eq!(ready.0.unwrap().status, Status::Good);
    });
}
