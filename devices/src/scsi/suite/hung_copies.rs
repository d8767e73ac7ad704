//! Copies between disks of which one hangs on the host, or which have nothing to do with one that hangs.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::copies::{cscd, list, out_cdb, ranges, segment, using};
use super::hung::{FAR, LUN_1, begun, far_read, memory, open};
use super::nexuses::LUN_0;
use super::{BLOCK, DiskConfig, config};
use crate::iothread::Io;
use crate::iothread::mischief::{Trick, Victim};
use crate::scsi::suite::Request;
use crate::scsi::{
    Disk, LogicalUnit, Lun, Nexus, ScsiReply, Status, TaskManagement, TaskManagementReply, TransportFault,
};
use crate::storage::Image;
use crate::testing::{on_io_thread, temp_file};

const LUN_2: Lun = Lun([0, 2, 0, 0, 0, 0, 0, 0]);
const LUNS: [Lun; 3] = [LUN_0, LUN_1, LUN_2];
/// What is written or read here takes a while.
const SLOW: u8 = 32;
/// More than anything may take that does not hang.
const SOON: Duration = Duration::from_secs(8);

fn name(lun: Lun) -> u64 {
    0x5000_c500_0000_0000 | u64::from(lun.0[1])
}

/// Three disks on files, each with something else in it.
struct Disks {
    nexus: Arc<Nexus>,
    files: Vec<tempfile::NamedTempFile>,
}

impl Disks {
    async fn new(io: &Io) -> Self {
        let target = crate::scsi::Target::new();
        let attach = |lun: Lun| {
            let file = temp_file();
            std::fs::write(file.path(), vec![lun.0[1] + 1; 1 << 20]).unwrap();
            let image = Arc::new(Image::Raw(open(file.path()).unwrap()));
            let config = DiskConfig { wwn: Some(name(lun)), ..config() };
            target.attach(lun, LogicalUnit::Disk(Disk::new(image, config).unwrap())).unwrap();
            file
        };
        let files = LUNS.map(attach).into();
        let disks = Self { nexus: Nexus::new(target, None), files };
        for lun in LUNS {
            let _ = disks.send(io, lun, &[0; 6], &[], 0).await;
        }
        disks
    }

    fn request(lun: Lun, cdb: &[u8], out: &[u8], len: usize) -> Request {
        let mut request = Request::new(cdb, out, len);
        request.lun = lun;
        request
    }

    async fn send(
        &self,
        io: &Io,
        lun: Lun,
        cdb: &[u8],
        out: &[u8],
        len: usize,
    ) -> Result<ScsiReply, TransportFault> {
        Self::request(lun, cdb, out, len).send(&self.nexus, io).await.0
    }

    async fn status(&self, io: &Io, lun: Lun, cdb: &[u8], out: &[u8], len: usize) -> Status {
        self.send(io, lun, cdb, out, len).await.unwrap().status
    }

    /// EXTENDED COPY of a block, sent to the disk that is read.
    async fn copy(&self, io: &Io, from: (Lun, u8), to: (Lun, u8)) -> Result<ScsiReply, TransportFault> {
        let bytes = list(
            1,
            0,
            &[cscd(name(from.0)), cscd(name(to.0))],
            &[segment(0, 1, 1, from.1.into(), to.1.into())],
        );
        self.send(io, from.0, &out_cdb(0, 0, bytes.len()), &bytes, 0).await
    }

    /// POPULATE TOKEN, and what it made.
    async fn token(&self, io: &Io, lun: Lun, parts: &[(u64, u32)]) -> Vec<u8> {
        let bytes = ranges(16, parts);
        let populate = self.status(io, lun, &out_cdb(0x10, 7, bytes.len()), &bytes, 0).await;
        assert_eq!(populate, Status::Good);
        let receive = [0x84, 7, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0];
        let (_, data) = Self::request(lun, &receive, &[], 1024).send(&self.nexus, io).await;
        data[38..550].to_vec()
    }

    async fn abort(&self, io: &Io, lun: Lun) {
        let reply = self.nexus.manage(io, TaskManagement::AbortTaskSet(lun)).await;
        assert_eq!(reply, TaskManagementReply::Complete);
    }

    /// Takes a disk away, which must not take long, while `command` goes on; its end.
    async fn detach<T>(&self, io: &Io, lun: Lun, command: impl Future<Output = T>) -> T {
        let detach = async { self.nexus.target().detach(lun).await.expect("a unit").close(io).await };
        let (mut command, mut ended) = (pin!(command), None);
        let beside = poll_fn(|cx| {
            if ended.is_none()
                && let Poll::Ready(end) = command.as_mut().poll(cx)
            {
                ended = Some(end);
            }
            Poll::<()>::Pending
        });
        let (mut detach, mut beside) = (pin!(detach), pin!(beside));
        let both = poll_fn(|cx| {
            let _ = beside.as_mut().poll(cx);
            detach.as_mut().poll(cx)
        });
        io.at_most(SOON, both).await.expect("detached at once").unwrap();
        match ended {
            Some(end) => end,
            None => command.await,
        }
    }
}

const fn read(lba: u8) -> [u8; 10] {
    [0x28, 0, 0, 0, 0, lba, 0, 0, 1, 0]
}

const fn write(lba: u8) -> [u8; 10] {
    [0x2a, 0, 0, 0, 0, lba, 0, 0, 1, 0]
}

/// What is far away hangs where `hangs` says so, and what is not so far takes a while.
fn plot(io: &Io, hangs: fn(Victim) -> bool) {
    io.plot(move |victim| match victim {
        Victim::Read { at, .. } | Victim::Write { at, .. } => match at / BLOCK as u64 {
            far if far >= FAR.into() => hangs(victim).then_some(Trick::Hang),
            slow if slow >= SLOW.into() => Some(Trick::Delay(Duration::from_millis(100))),
            _ => None,
        },
        _ => None,
    });
}

const fn writes(victim: Victim) -> bool {
    matches!(victim, Victim::Write { .. })
}

const fn all(_: Victim) -> bool {
    true
}

fn refused(reply: ScsiReply) {
    let sense = reply.sense.expect("COPY ABORTED, THIRD PARTY DEVICE FAILURE");
    let sense = sense.as_bytes();
    assert_eq!((sense[2] & 0x0f, sense[12], sense[13]), (0x0a, 0x0d, 0x01));
}

/// COMPARE AND WRITE of a block that is all `old`, by one that is all `new`.
fn compare_and_write(lun: Lun, lba: u8, old: u8, new: u8) -> Request {
    let cdb = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, 1, 0, 0];
    Disks::request(lun, &cdb, &[[old; BLOCK], [new; BLOCK]].concat(), 0)
}

#[test]
fn an_aborted_copy_makes_the_disk_busy_that_it_may_still_write_to() {
    on_io_thread(|io| async move {
        let disks = Disks::new(&io).await;
        plot(&io, writes);
        let mut copy = Box::pin(disks.copy(&io, (LUN_0, 1), (LUN_1, FAR)));
        begun(&io, copy.as_mut()).await;
        // Waits for its turn: nothing of others may land between its reading and its writing.
        let mut alone = Box::pin(compare_and_write(LUN_1, 8, 2, 9).send(&disks.nexus, &io));
        begun(&io, alone.as_mut()).await;
        let mut abort = Box::pin(disks.abort(&io, LUN_0));
        begun(&io, abort.as_mut()).await;
        assert_eq!(copy.await.unwrap_err(), TransportFault::Aborted);
        abort.await;
        begun(&io, alone.as_mut()).await;
        let (near, again) = (write(8), read(8));
        let mut newer = Box::pin(disks.status(&io, LUN_1, &near, &[7; BLOCK], 0));
        begun(&io, newer.as_mut()).await;
        let mut look = Box::pin(disks.status(&io, LUN_1, &again, &[], BLOCK));
        begun(&io, look.as_mut()).await;
        for lun in [LUN_0, LUN_2] {
            assert_eq!(disks.status(&io, lun, &write(8), &[7; BLOCK], 0).await, Status::Good, "{lun:?}");
        }
        // Neither read nor written by others.
        refused(disks.copy(&io, (LUN_2, 1), (LUN_1, 8)).await.unwrap());
        refused(disks.copy(&io, (LUN_2, 1), (LUN_1, FAR)).await.unwrap());
        let bytes = list(1, 0, &[1, 2].map(|n| cscd(name(LUNS[n]))), &[segment(0, 1, 1, 0, 0)]);
        refused(disks.send(&io, LUN_2, &out_cdb(0, 0, bytes.len()), &bytes, 0).await.unwrap());
        io.answer();
        assert_eq!(alone.await.0.unwrap().status, Status::Good);
        assert_eq!([newer.await, look.await], [Status::Good; 2]);
        assert_eq!(disks.copy(&io, (LUN_2, 1), (LUN_1, 8)).await.unwrap().status, Status::Good);
    });
}

#[test]
fn a_token_of_a_busy_disk_is_not_used() {
    on_io_thread(|io| async move {
        let disks = Disks::new(&io).await;
        let token = disks.token(&io, LUN_1, &[(5, 1)]).await;
        plot(&io, writes);
        let far = write(FAR);
        let mut late = Box::pin(disks.send(&io, LUN_1, &far, &[1; BLOCK], 0));
        begun(&io, late.as_mut()).await;
        let mut abort = Box::pin(disks.abort(&io, LUN_1));
        begun(&io, abort.as_mut()).await;
        assert_eq!(late.await.unwrap_err(), TransportFault::Aborted);
        abort.await;
        let bytes = using(&token, 0, &[(9, 1)]);
        let cdb = out_cdb(0x11, 8, bytes.len());
        assert_eq!(disks.status(&io, LUN_0, &cdb, &bytes, 0).await, Status::Busy);
        refused(disks.copy(&io, (LUN_0, 1), (LUN_1, 8)).await.unwrap());
        io.answer();
        while disks.status(&io, LUN_0, &cdb, &bytes, 0).await != Status::Good {
            io.sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn a_token_is_not_made_while_an_abandoned_write_may_land() {
    on_io_thread(|io| async move {
        let disks = Disks::new(&io).await;
        let older = using(&disks.token(&io, LUN_1, &[(FAR.into(), 1)]).await, 0, &[(9, 1)]);
        let bytes = ranges(16, &[(FAR.into(), 1)]);
        let cdb = out_cdb(0x10, 7, bytes.len());
        plot(&io, writes);
        // A write of the disk's own, and one of a copy from another disk.
        for own in [true, false] {
            let (lun, far) = (if own { LUN_1 } else { LUN_0 }, write(FAR));
            let command = async {
                match own {
                    true => disks.send(&io, LUN_1, &far, &[1; BLOCK], 0).await,
                    false => disks.copy(&io, (LUN_0, 1), (LUN_1, FAR)).await,
                }
            };
            let mut late = Box::pin(command);
            begun(&io, late.as_mut()).await;
            let mut abort = Box::pin(disks.abort(&io, lun));
            begun(&io, abort.as_mut()).await;
            assert_eq!(late.await.unwrap_err(), TransportFault::Aborted);
            abort.await;
            let mut making = Box::pin(disks.status(&io, LUN_1, &cdb, &bytes, 0));
            begun(&io, making.as_mut()).await;
            io.answer();
            assert_eq!(making.await, Status::Good);
            // The one before it is gone with the write.
            let sense =
                disks.send(&io, LUN_1, &out_cdb(0x11, 8, older.len()), &older, 0).await.unwrap().sense;
            assert_eq!(sense.expect("TOKEN UNKNOWN").as_bytes()[12..14], [0x23, 0x04]);
        }
    });
}

#[test]
fn what_waited_behind_a_write_that_may_still_land_does_not_begin() {
    on_io_thread(|io| async move {
        let disks = Disks::new(&io).await;
        plot(&io, writes);
        // ORWRITE runs alone, and writes out of memory of its own.
        let mut or_write = [0x8b, 0, 0, 0, 0, 0, 0, 0, 0, FAR, 0, 0, 0, 1, 0, 0];
        let mut late = Disks::request(LUN_0, &or_write, &[0x80; BLOCK], 0);
        late.tag = 1;
        let mut late = Box::pin(late.send(&disks.nexus, &io));
        begun(&io, late.as_mut()).await;
        let near = write(1);
        let mut behind = Box::pin(disks.send(&io, LUN_0, &near, &[5; BLOCK], 0));
        begun(&io, behind.as_mut()).await;
        let abort = TaskManagement::AbortTask(LUN_0, crate::scsi::Tag(1));
        let mut abort = Box::pin(disks.nexus.manage(&io, abort));
        begun(&io, abort.as_mut()).await;
        assert_eq!(late.await.0.unwrap_err(), TransportFault::Aborted);
        assert_eq!(abort.await, TaskManagementReply::Complete);
        begun(&io, behind.as_mut()).await;
        io.answer();
        assert_eq!(behind.await.unwrap().status, Status::Good);
        or_write[9] = 1;
        while disks.status(&io, LUN_0, &or_write, &[4; BLOCK], 0).await != Status::Good {
            io.sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn a_copy_between_healthy_disks_ends_beside_one_that_hangs() {
    on_io_thread(|io| async move {
        let disks = Disks::new(&io).await;
        plot(&io, all);
        // On the third disk a command is ended that the host does not let go of.
        let dma = memory();
        let mut far = Box::pin(disks.nexus.execute(&io, far_read(&dma, LUN_2)));
        begun(&io, far.as_mut()).await;
        let mut reset = Box::pin(disks.nexus.manage(&io, TaskManagement::LogicalUnitReset(LUN_2)));
        begun(&io, reset.as_mut()).await;
        begun(&io, far.as_mut()).await;
        // One copy is aborted and its target goes; the source of the other goes under way.
        let mut copy = Box::pin(disks.copy(&io, (LUN_0, 1), (LUN_1, SLOW)));
        begun(&io, copy.as_mut()).await;
        let mut abort = Box::pin(disks.abort(&io, LUN_0));
        begun(&io, abort.as_mut()).await;
        assert_eq!(copy.await.unwrap_err(), TransportFault::Aborted);
        abort.await;
        disks.detach(&io, LUN_1, async {}).await;
        drop((far, reset));
        while disks.status(&io, LUN_2, &[0; 6], &[], 0).await != Status::Good {}
        let bytes = list(1, 0, &[0, 2].map(|n| cscd(name(LUNS[n]))), &[segment(0, 1, 1, SLOW.into(), 0)]);
        let cdb = out_cdb(0, 0, bytes.len());
        let mut copy = Box::pin(disks.send(&io, LUN_2, &cdb, &bytes, 0));
        begun(&io, copy.as_mut()).await;
        let sense = disks.detach(&io, LUN_0, copy).await.unwrap().sense.expect("NOT REACHABLE");
        assert_eq!(sense.as_bytes()[12..14], [0x0d, 0x02]);
        io.answer();
    });
}

#[test]
fn one_disk_of_a_copy_goes_while_the_other_hangs() {
    for (source, target, goes, hangs) in [(1, FAR, LUN_0, writes as fn(Victim) -> bool), (FAR, 1, LUN_1, all)]
    {
        on_io_thread(move |io| async move {
            let disks = Disks::new(&io).await;
            plot(&io, hangs);
            let mut copy = Box::pin(disks.copy(&io, (LUN_0, source), (LUN_1, target)));
            begun(&io, copy.as_mut()).await;
            let copied = disks.detach(&io, goes, copy).await.unwrap();
            assert!(copied.sense.is_some());
            io.answer();
        });
    }
}

/// The source of a copy goes while its write may still land: nothing newer is overtaken by it.
#[test]
fn what_a_copy_without_its_source_may_still_write_is_waited_for() {
    on_io_thread(|io| async move {
        // A third disk is asked to copy, or the target to use a token.
        for asked in [LUN_2, LUN_1] {
            let disks = Disks::new(&io).await;
            let bytes = if asked == LUN_2 {
                list(1, 0, &[0, 1].map(|n| cscd(name(LUNS[n]))), &[segment(0, 1, 1, 1, FAR.into())])
            } else {
                using(&disks.token(&io, LUN_0, &[(1, 1)]).await, 0, &[(FAR.into(), 1)])
            };
            let cdb = out_cdb(if asked == LUN_2 { 0 } else { 0x11 }, 0, bytes.len());
            plot(&io, writes);
            let mut copy = Box::pin(disks.send(&io, asked, &cdb, &bytes, 0));
            begun(&io, copy.as_mut()).await;
            let copied = disks.detach(&io, LUN_0, copy).await.unwrap();
            assert_eq!(copied.sense.expect("NOT REACHABLE").as_bytes()[12..14], [0x0d, 0x02]);
            // That a disk has gone is told once.
            while disks.status(&io, LUN_1, &[0; 6], &[], 0).await != Status::Good {}
            let near = write(8);
            let mut newer = Box::pin(disks.status(&io, LUN_1, &near, &[7; BLOCK], 0));
            begun(&io, newer.as_mut()).await;
            refused(disks.copy(&io, (LUN_2, 1), (LUN_1, 8)).await.unwrap());
            io.answer();
            assert_eq!(newer.await, Status::Good);
            io.repent();
        }
    });
}

#[test]
fn what_a_disk_that_hangs_may_hold_is_bounded() {
    on_io_thread(|io| async move {
        let disks = Disks::new(&io).await;
        plot(&io, all);
        // VERIFY reads into memory of its own: it is ended at once, and what the host works on stays.
        let verify = [0x2f, 0, 0, 0, 0, FAR, 0, 0, 1, 0];
        for (lun, copied) in [(LUN_0, false), (LUN_1, true)] {
            let mut ended = 0;
            let patience = Duration::from_millis(300);
            while io.at_most(patience, disks.status(&io, lun, &read(1), &[], BLOCK)).await.is_some() {
                ended += 1;
                assert!(ended < 200, "never too many");
                let command = async {
                    match copied {
                        true => disks.copy(&io, (lun, FAR), (LUN_2, 1)).await,
                        false => disks.send(&io, lun, &verify, &[], 0).await,
                    }
                };
                let mut command = Box::pin(command);
                begun(&io, command.as_mut()).await;
                let mut abort = Box::pin(disks.abort(&io, lun));
                let first = poll_fn(|cx| Poll::Ready(abort.as_mut().poll(cx))).await;
                assert!(first.is_pending());
                assert_eq!(command.await.unwrap_err(), TransportFault::Aborted);
                abort.await;
            }
            assert_eq!(disks.status(&io, LUN_2, &read(1), &[], BLOCK).await, Status::Good);
        }
        io.answer();
        for lun in [LUN_0, LUN_1] {
            while disks.status(&io, lun, &read(1), &[], BLOCK).await != Status::Good {
                io.sleep(Duration::from_millis(1)).await;
            }
        }
    });
}

#[test]
fn ordered_commands_leave_their_turn_when_nothing_of_them_can_land() {
    on_io_thread(|io| async move {
        let disks = Disks::new(&io).await;
        plot(&io, writes);
        let mut late = Box::pin(compare_and_write(LUN_1, FAR, 2, 9).send(&disks.nexus, &io));
        begun(&io, late.as_mut()).await;
        let mut copy = Box::pin(disks.copy(&io, (LUN_0, 1), (LUN_1, FAR - 1)));
        begun(&io, copy.as_mut()).await;
        let mut abort = Box::pin(disks.abort(&io, LUN_1));
        begun(&io, abort.as_mut()).await;
        begun(&io, late.as_mut()).await;
        begun(&io, copy.as_mut()).await;
        io.answer();
        assert_eq!(late.await.0.unwrap_err(), TransportFault::Aborted);
        abort.await;
        assert_eq!(copy.await.unwrap().status, Status::Good);
    });
}

/// The copy waits for the disk that it writes to; the one that it reads from is nobody's any more.
#[test]
fn a_target_that_hangs_when_it_goes_does_not_hold_the_source() {
    on_io_thread(|io| async move {
        let disks = Disks::new(&io).await;
        io.plot(|victim| match victim {
            Victim::Write { at, .. } if at >= u64::from(FAR) * BLOCK as u64 => Some(Trick::Hang),
            _ => None,
        });
        let (names, segments) =
            ([LUN_1, LUN_2].map(|lun| cscd(name(lun))), [segment(0, 1, 1, 0, FAR.into())]);
        let bytes = list(1, 0, &names, &segments);
        let cdb = out_cdb(0, 0, bytes.len());
        let mut copy = Box::pin(disks.send(&io, LUN_0, &cdb, &bytes, 0));
        begun(&io, copy.as_mut()).await;
        let target = disks.nexus.target();
        let mut goes = Box::pin(target.detach(LUN_2));
        begun(&io, goes.as_mut()).await;
        begun(&io, copy.as_mut()).await;
        target.detach(LUN_1).await.unwrap().close(&io).await.unwrap();
        open(disks.files[1].path()).unwrap_or_else(|e| panic!("it is held: {e}"));
        begun(&io, copy.as_mut()).await;
        io.answer();
        assert_eq!(copy.await.unwrap().status, Status::CheckCondition);
        goes.await.unwrap().close(&io).await.unwrap();
    });
}
