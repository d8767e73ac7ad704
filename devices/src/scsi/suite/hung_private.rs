//! A host that does not answer for a disk whose transfers go through private memory: commands end at once, nothing of them
//! reaches the guest later, and what they wrote is not overtaken.

use std::future::poll_fn;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::hung::{FAR, LUN_1, begun, both, far_read, memory};
use super::nexuses::LUN_0;
use super::{BLOCK, Request, config};
use crate::iothread::Io;
use crate::iothread::mischief::{Trick, Victim};
use crate::mem::Dma;
use crate::scsi::{
    Cdb, DataBuffers, Disk, LogicalUnit, Lun, Nexus, ScsiReply, ScsiRequest, Status, Tag, Target,
    TaskAttribute, TaskManagement, TaskManagementReply, TransportFault,
};
use crate::storage::{CacheMode, Image, Limits, RawImage, RawOptions, Sharing};
use crate::testing::{on_io_thread, temp_file};

/// What is in the images, in the guest's memory, and what the guest writes.
const OLD: u8 = 0x55;
const GUEST: u8 = 0xdd;
const NEW: u8 = 0x11;
const MIB: usize = 1 << 20;
/// READ (10) of the block that hangs.
const READ_FAR: [u8; 10] = [0x28, 0, 0, 0, 0, FAR, 0, 0, 1, 0];

/// How the host hangs: on the way of nearly all transfers, or on the one that the others take.
#[derive(Clone, Copy, Debug)]
enum Way {
    Short,
    Long,
}

/// A disk that may hang at LUN 0, and a healthy one.
struct Bench {
    nexus: Arc<Nexus>,
    dma: Dma,
    files: Vec<tempfile::NamedTempFile>,
}

impl Bench {
    async fn new(io: &Io, cache: CacheMode, dress: impl Fn(Image) -> Image) -> Self {
        let target = Target::new();
        let attach = |lun: Lun| {
            let file = temp_file();
            std::fs::write(file.path(), vec![OLD; 32 * MIB]).unwrap();
            let options =
                RawOptions { path: file.path().into(), read_only: false, cache, sharing: Sharing::Exclusive };
            let image = dress(Image::Raw(RawImage::open(&options).unwrap()));
            target.attach(lun, LogicalUnit::Disk(Disk::new(Arc::new(image), config()).unwrap())).unwrap();
            file
        };
        let files = [LUN_0, LUN_1].map(attach).into();
        let bench = Self { nexus: Nexus::new(target, None), dma: memory(), files };
        for lun in [LUN_0, LUN_1] {
            let mut ready = Request::new(&[0; 6], &[], 0);
            ready.lun = lun;
            let _ = ready.send(&bench.nexus, io).await;
        }
        bench.fill(GUEST);
        bench
    }

    /// What far transfers of LUN 0 hang for from now on; the other disk is read elsewhere.
    fn hang(io: &Io, way: Way) {
        let far = u64::from(FAR) * BLOCK as u64;
        match way {
            Way::Short => io.hang_from(far),
            Way::Long => io.plot(move |victim| match victim {
                Victim::Read { at, .. } | Victim::Write { at, .. } if at >= far => Some(Trick::Hang),
                _ => None,
            }),
        }
    }

    fn fill(&self, byte: u8) {
        self.dma.write(0x1000, &[byte; BLOCK]).unwrap();
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        self.dma.ram().unwrap().read_slice(&mut bytes, GuestAddress(0x1000)).unwrap();
        bytes
    }

    fn block(&self) -> Vec<u8> {
        let all = std::fs::read(self.files[0].path()).unwrap();
        all[usize::from(FAR) * BLOCK..][..BLOCK].to_vec()
    }

    /// WRITE (10) of the block that hangs, out of the guest's memory.
    fn far_write(&self) -> ScsiRequest {
        ScsiRequest {
            tag: Tag(8),
            lun: LUN_0,
            cdb: Cdb::new(&[0x2a, 0, 0, 0, 0, FAR, 0, 0, 1, 0]),
            attribute: TaskAttribute::Simple,
            priority: 0,
            data: DataBuffers::from_initiator(self.dma.from_guest([(0x1000, BLOCK as u32)]).unwrap()),
        }
    }

    /// Ends all commands of LUN 0, which must not take longer than this.
    async fn abort<T>(&self, io: &Io, most: Duration, command: impl Future<Output = T>) -> T {
        let begin = Instant::now();
        let abort = self.nexus.manage(io, TaskManagement::AbortTaskSet(LUN_0));
        let (reply, ended) = io.at_most(Duration::from_secs(8), both(abort, command)).await.expect("at once");
        assert_eq!(reply, TaskManagementReply::Complete);
        assert!(begin.elapsed() < most, "{:?}", begin.elapsed());
        ended
    }

    async fn send(&self, io: &Io, lun: Lun, cdb: &[u8], len: usize) -> (ScsiReply, Vec<u8>) {
        let mut request = Request::new(cdb, &[], len);
        request.lun = lun;
        let (reply, data) = request.send(&self.nexus, io).await;
        (reply.unwrap(), data)
    }
}

fn throttled(image: Image) -> Image {
    let limits = Limits { iops: Some(1000), ..Limits::default() };
    image.guarded(Some(&limits), None).private()
}

type Dress = fn(Image) -> Image;
const DRESSES: [(&str, CacheMode, Dress); 4] = [
    ("writeback", CacheMode::Writeback, Image::private),
    ("none", CacheMode::None, Image::private),
    ("writethrough", CacheMode::Writethrough, Image::private),
    ("throttled", CacheMode::Writeback, throttled),
];

#[test]
fn a_read_that_lands_late_reaches_nothing_of_the_guest() {
    on_io_thread(|io| async move {
        for ((name, cache, dress), way) in
            DRESSES.into_iter().flat_map(|all| [(all, Way::Short), (all, Way::Long)])
        {
            let bench = Bench::new(&io, cache, dress).await;
            Bench::hang(&io, way);
            let mut far = Box::pin(bench.nexus.execute(&io, far_read(&bench.dma, LUN_0)));
            begun(&io, far.as_mut()).await;
            let ended = bench.abort(&io, Duration::from_millis(900), far).await;
            assert_eq!(ended.unwrap_err(), TransportFault::Aborted, "{name} {way:?}");
            assert_eq!(
                bench.send(&io, LUN_1, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], BLOCK).await.1,
                [OLD; BLOCK]
            );
            io.land();
            assert_eq!(bench.memory(), [GUEST; BLOCK], "{name} {way:?}");
            io.repent();
            let again = bench.nexus.execute(&io, far_read(&bench.dma, LUN_0)).await;
            assert_eq!((again.unwrap().status, bench.memory()), (Status::Good, vec![OLD; BLOCK]));
        }
    });
}

#[test]
fn a_write_that_lands_late_is_what_the_guest_wrote_and_overtakes_nothing() {
    on_io_thread(|io| async move {
        for ((name, cache, dress), way) in
            DRESSES.into_iter().flat_map(|all| [(all, Way::Short), (all, Way::Long)])
        {
            let bench = Bench::new(&io, cache, dress).await;
            Bench::hang(&io, way);
            bench.fill(NEW);
            let mut far = Box::pin(bench.nexus.execute(&io, bench.far_write()));
            while io.hanging() == 0 {
                begun(&io, far.as_mut()).await;
            }
            // It waits for a moment, lest the disk be busy for nothing.
            let ended = bench.abort(&io, Duration::from_secs(4), far).await;
            assert_eq!(ended.unwrap_err(), TransportFault::Aborted, "{name} {way:?}");
            // The memory is the guest's again.
            bench.fill(GUEST);
            let mut later = Box::pin(bench.nexus.execute(&io, bench.far_write()));
            begun(&io, later.as_mut()).await;
            assert_eq!(bench.block(), [OLD; BLOCK], "{name} {way:?}");
            io.land();
            assert_eq!(bench.block(), [NEW; BLOCK], "{name} {way:?}");
            io.repent();
            assert_eq!(later.await.unwrap().status, Status::Good);
            assert_eq!(bench.block(), [GUEST; BLOCK], "{name} {way:?}");
        }
    });
}

/// What the guest changes while the host writes is not written, and a short transfer is continued.
#[test]
fn transfers_that_come_short_are_whole_in_the_end() {
    on_io_thread(|io| async move {
        let bench = Bench::new(&io, CacheMode::Writeback, Image::private).await;
        io.plot(|victim| match victim {
            Victim::Read { len, .. } | Victim::Write { len, .. } if len > 100 => Some(Trick::Short(100)),
            _ => None,
        });
        bench.fill(NEW);
        assert_eq!(bench.nexus.execute(&io, bench.far_write()).await.unwrap().status, Status::Good);
        assert_eq!(bench.block(), [NEW; BLOCK]);
        bench.fill(GUEST);
        let read = bench.nexus.execute(&io, far_read(&bench.dma, LUN_0)).await;
        assert_eq!((read.unwrap().status, bench.memory()), (Status::Good, vec![NEW; BLOCK]));
        // One that fails on the way leaves the guest's memory as it is.
        bench.fill(GUEST);
        io.plot(|victim| match victim {
            Victim::Read { len, .. } if len == BLOCK as u64 => Some(Trick::Short(100)),
            Victim::Read { .. } => Some(Trick::Fail(libc::EIO)),
            _ => None,
        });
        let read = bench.nexus.execute(&io, far_read(&bench.dma, LUN_0)).await;
        assert_eq!((read.unwrap().status, bench.memory()), (Status::CheckCondition, vec![GUEST; BLOCK]));
    });
}

/// Commands beyond what a disk has memory for wait, and are ended with the others; the memory of the healthy disk is its own.
#[test]
fn a_disk_that_hangs_uses_up_its_own_memory() {
    on_io_thread(|io| async move {
        let bench = Bench::new(&io, CacheMode::Writeback, Image::private).await;
        Bench::hang(&io, Way::Short);
        let dma =
            Dma::new(Arc::new(crate::mem::GuestRam::from_ranges(&[(GuestAddress(0), 2 * MIB)]).unwrap()));
        dma.set_bus_master(true);
        let large = |tag: u64, lun: Lun, at: u8| ScsiRequest {
            tag: Tag(tag),
            lun,
            // 2048 blocks: a MiB.
            cdb: Cdb::new(&[0x28, 0, 0, 0, at, FAR, 0, 8, 0, 0]),
            attribute: TaskAttribute::Simple,
            priority: 0,
            data: DataBuffers::to_initiator(dma.to_guest([(0, MIB as u32)]).unwrap()),
        };
        let mut many: Vec<_> =
            (0..40).map(|tag| Box::pin(bench.nexus.execute(&io, large(tag, LUN_0, 0)))).collect();
        for one in &mut many {
            begun(&io, one.as_mut()).await;
        }
        io.repent();
        let other = bench.nexus.execute(&io, large(100, LUN_1, 1)).await;
        assert_eq!(other.unwrap().status, Status::Good, "while the other disk has used up all of its own");
        let all = async {
            for one in many {
                assert_eq!(one.await.unwrap_err(), TransportFault::Aborted);
            }
        };
        bench.abort(&io, Duration::from_millis(900), all).await;
        // What hangs keeps its memory: commands wait for that, and can be ended.
        let mut waits = Box::pin(bench.nexus.execute(&io, large(101, LUN_0, 1)));
        begun(&io, waits.as_mut()).await;
        assert_eq!(
            bench.abort(&io, Duration::from_millis(900), waits).await.unwrap_err(),
            TransportFault::Aborted
        );
        io.land();
        let again = bench.nexus.execute(&io, large(102, LUN_0, 1)).await;
        assert_eq!(again.unwrap().status, Status::Good);
    });
}

/// OpenBSD and NetBSD take a status without sense data for success on virtio-scsi: others wait until the host has answered.
#[test]
fn a_disk_with_very_many_unanswered_commands_has_the_others_wait() {
    on_io_thread(|io| async move {
        let bench = Bench::new(&io, CacheMode::Writeback, Image::private).await;
        Bench::hang(&io, Way::Short);
        let read = |tag: u64| ScsiRequest { tag: Tag(tag), ..far_read(&bench.dma, LUN_0) };
        let mut many: Vec<_> =
            (0..70).map(|tag| Box::pin(bench.nexus.execute(&io, read(1000 + tag)))).collect();
        for one in &mut many {
            begun(&io, one.as_mut()).await;
        }
        let all = async {
            for one in many {
                assert_eq!(one.await.unwrap_err(), TransportFault::Aborted);
            }
        };
        bench.abort(&io, Duration::from_secs(4), all).await;
        io.repent();
        let near = [0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0];
        let mut waits = Box::pin(bench.send(&io, LUN_0, &near, BLOCK));
        begun(&io, waits.as_mut()).await;
        assert_eq!(bench.send(&io, LUN_0, &[0x12, 0, 0, 0, 36, 0], 36).await.0.status, Status::Good);
        let early = io.at_most(Duration::from_millis(200), waits.as_mut()).await;
        assert_eq!(early.map(|(reply, _)| reply.status), None, "answered while the host is silent");
        io.land();
        let (reply, data) = waits.await;
        assert_eq!((reply.status, data), (Status::Good, vec![OLD; BLOCK]));
    });
}

/// Initiators that give up the adapter hear BUSY soon, of a disk that hangs and of no other; nothing more is asked of the host.
#[test]
fn who_is_in_a_hurry_hears_that_a_disk_hangs() {
    on_io_thread(|io| async move {
        for write in [false, true] {
            let bench = Bench::new(&io, CacheMode::Writeback, Image::private).await;
            bench.nexus.hurry(true);
            Bench::hang(&io, Way::Short);
            let far = || match write {
                true => bench.far_write(),
                false => far_read(&bench.dma, LUN_0),
            };
            let mut first = Box::pin(bench.nexus.execute(&io, far()));
            begun(&io, first.as_mut()).await;
            bench.abort(&io, Duration::from_secs(4), first).await.unwrap_err();
            let begin = Instant::now();
            for cdb in [&READ_FAR[..], &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
                assert_eq!(bench.send(&io, LUN_0, cdb, BLOCK).await.0.status, Status::Busy);
            }
            assert_eq!(bench.nexus.execute(&io, far()).await.unwrap().status, Status::Busy);
            let took = begin.elapsed();
            assert!(took > Duration::from_millis(600) && took < Duration::from_secs(8), "{took:?}");
            for (lun, cdb) in [(LUN_0, &[0; 6][..]), (LUN_0, &[0x12, 0, 0, 0, 36, 0]), (LUN_1, &[0; 6])] {
                assert_eq!(bench.send(&io, lun, cdb, 36).await.0.status, Status::Good);
            }
            // It goes on as soon as the host answers.
            let mut held = Box::pin(bench.send(&io, LUN_0, &READ_FAR, BLOCK));
            begun(&io, held.as_mut()).await;
            io.repent();
            io.land();
            let (reply, data) = held.await;
            let there = if write { GUEST } else { OLD };
            assert_eq!((reply.status, data), (Status::Good, vec![there; BLOCK]));
        }
    });
}

/// Commands that do more with the guest's memory than to move it: none of it is in the hands of the host.
#[test]
fn whatever_uses_the_guest_s_memory_ends_at_once() {
    on_io_thread(|io| async move {
        let bench = Bench::new(&io, CacheMode::Writeback, Image::private).await;
        let cdb_16 = |opcode: u8| [opcode, 0, 0, 0, 0, 0, 0, 0, 0, FAR, 0, 0, 0, 1, 0, 0];
        let cdb_10 = |opcode: u8, flags: u8| [opcode, flags, 0, 0, 0, FAR, 0, 0, 1, 0];
        let cdbs: [(&str, &[u8]); 7] = [
            ("WRITE AND VERIFY", &cdb_10(0x2e, 2)),
            ("VERIFY", &cdb_10(0x2f, 2)),
            ("WRITE SAME", &cdb_10(0x41, 0)),
            ("COMPARE AND WRITE", &cdb_16(0x89)),
            ("ORWRITE", &cdb_16(0x8b)),
            ("WRITE with FUA", &cdb_10(0x2a, 8)),
            ("READ", &READ_FAR),
        ];
        for reads_hang in [true, false] {
            for (name, cdb) in cdbs {
                let far = u64::from(FAR) * BLOCK as u64;
                io.plot(move |victim| match victim {
                    Victim::Read { at, .. } if at >= far && reads_hang => Some(Trick::Hang),
                    Victim::Write { at, .. } if at >= far && !reads_hang => Some(Trick::Hang),
                    _ => None,
                });
                // What COMPARE AND WRITE finds is what it compares with.
                bench.files[0].as_file().write_all_at(&[OLD; BLOCK], far).unwrap();
                bench.dma.write(0x1000, &[[OLD; BLOCK], [NEW; BLOCK]].concat()).unwrap();
                let parts = [(0x1000, 2 * BLOCK as u32)];
                let data = match cdb[0] {
                    0x28 => DataBuffers::to_initiator(bench.dma.to_guest(parts).unwrap()),
                    _ => DataBuffers::from_initiator(bench.dma.from_guest(parts).unwrap()),
                };
                let request = ScsiRequest {
                    tag: Tag(9),
                    lun: LUN_0,
                    cdb: Cdb::new(cdb),
                    attribute: TaskAttribute::Simple,
                    priority: 0,
                    data,
                };
                let mut command = Box::pin(bench.nexus.execute(&io, request));
                let hangs = io.at_most(Duration::from_millis(20), command.as_mut()).await.is_none();
                let (reads, writes) = (!matches!(cdb[0], 0x41 | 0x2a), !matches!(cdb[0], 0x2f | 0x28));
                // What has to be written first is read, if at all, after that.
                let expected = if reads_hang { reads } else { writes };
                assert_eq!(hangs, expected, "{name}, reads hang: {reads_hang}");
                if hangs {
                    bench.abort(&io, Duration::from_secs(4), command).await.unwrap_err();
                }
                io.repent();
                io.land();
                // VERIFY has nothing to flush then, which takes as long as the host does.
                bench.send(&io, LUN_0, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0).await;
            }
        }
    });
}

/// Commands that must be alone do not wait for a hung disk one after the other.
#[test]
fn who_is_in_a_hurry_waits_once() {
    on_io_thread(|io| async move {
        let bench = Bench::new(&io, CacheMode::Writeback, Image::private).await;
        bench.nexus.hurry(true);
        Bench::hang(&io, Way::Short);
        let mut first = Box::pin(bench.nexus.execute(&io, far_read(&bench.dma, LUN_0)));
        begun(&io, first.as_mut()).await;
        bench.abort(&io, Duration::from_secs(4), first).await.unwrap_err();
        let begin = Instant::now();
        let compare = |tag: u64| {
            let cdb = Cdb::new(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0]);
            let ranges = [(0x1000, BLOCK as u32), (0x1000, BLOCK as u32)];
            let data = DataBuffers::from_initiator(bench.dma.from_guest(ranges).unwrap());
            ScsiRequest { tag: Tag(100 + tag), cdb, data, ..bench.far_write() }
        };
        let mut all: Vec<_> = (0..40).map(|tag| Box::pin(bench.nexus.execute(&io, compare(tag)))).collect();
        let mut replies = Vec::new();
        poll_fn(|cx| {
            all.retain_mut(|one| match one.as_mut().poll(cx) {
                Poll::Ready(reply) => {
                    replies.push(reply.unwrap().status);
                    false
                }
                Poll::Pending => true,
            });
            if all.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        assert_eq!(replies, [Status::Busy; 40]);
        assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
        io.repent();
        io.land();
    });
}

/// What needs no medium has an answer while newer transfers wait: a disk without a capacity would be gone for its guest.
#[test]
fn a_disk_that_hangs_says_what_it_is() {
    on_io_thread(|io| async move {
        for hurried in [false, true] {
            let bench = Bench::new(&io, CacheMode::Writeback, Image::private).await;
            bench.nexus.hurry(hurried);
            Bench::hang(&io, Way::Short);
            let mut first = Box::pin(bench.nexus.execute(&io, bench.far_write()));
            begun(&io, first.as_mut()).await;
            bench.abort(&io, Duration::from_secs(4), first).await.unwrap_err();
            let commands: [&[u8]; 7] = [
                &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0],
                &[0x1a, 0, 0x3f, 0, 64, 0],
                &[0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 64, 0],
                &[0x4d, 0, 0x40, 0, 0, 0, 0, 0, 64, 0],
                &[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0],
                &[0xa3, 0x0d, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0],
            ];
            for cdb in commands {
                let ask = io.at_most(Duration::from_secs(4), bench.send(&io, LUN_0, cdb, 64)).await;
                let (reply, data) = ask.unwrap_or_else(|| panic!("{cdb:02x?} waits"));
                assert_eq!(reply.status, Status::Good, "{cdb:02x?}");
                if cdb[0] == 0x25 {
                    assert_eq!(data[..4], (32 * MIB as u32 / BLOCK as u32 - 1).to_be_bytes());
                }
            }
            // What asks the image waits.
            let cdb = [0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];
            let ask = io.at_most(Duration::from_secs(2), bench.send(&io, LUN_0, &cdb, 64)).await;
            let status = ask.map(|(reply, _)| reply.status);
            assert_eq!(status, hurried.then_some(Status::Busy));
            io.repent();
            io.land();
        }
    });
}
