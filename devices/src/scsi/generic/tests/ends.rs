//! Commands that are ended while the device does not answer.

use std::pin::pin;
use std::sync::Condvar;
use std::sync::atomic::AtomicU16;
use std::time::Instant;

use vm_memory::GuestAddress;

use super::*;
use crate::mem::{Dma, GuestRam};
use crate::scsi::{
    Cdb, DataBuffers, Residual, ScsiRequest, Status, Tag, TaskAttribute, TaskManagement, TaskManagementReply,
};
use crate::testing::on_io_thread;

const WRITE: [u8; 10] = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Stops whatever writes or rewinds until it is opened; or every command, from when it is closed.
#[derive(Clone, Default)]
struct Door(Arc<(Mutex<Stops>, Condvar)>);

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stops {
    #[default]
    Work,
    All,
    Nothing,
}

impl Door {
    fn open(&self) {
        *self.0.0.lock().unwrap() = Stops::Nothing;
        self.0.1.notify_all();
    }

    fn close(&self) {
        *self.0.0.lock().unwrap() = Stops::All;
    }

    fn fake(&self) -> Fake {
        let (door, opener) = (self.clone(), self.clone());
        let mut fake = Fake::new(|_| Ok(Answer::good()));
        fake.gate = Box::new(move |command| {
            let work = matches!(command.cdb.opcode(), 0x2a | 0x01 | 0x28 | 0x17);
            let stopped = |stops: &mut Stops| *stops == Stops::All || *stops == Stops::Work && work;
            let stops = door.0.0.lock().unwrap();
            drop(door.0.1.wait_while(stops, stopped).unwrap());
        });
        // A reset brings commands back.
        fake.on_reset = Box::new(move || {
            opener.open();
            Ok(())
        });
        fake
    }
}

fn memory() -> Dma {
    let dma = Dma::new(Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()));
    dma.set_bus_master(true);
    dma
}

/// A write out of memory of the guest.
fn write(dma: &Dma, tag: u64) -> ScsiRequest {
    ScsiRequest {
        tag: Tag(tag),
        lun: Lun::default(),
        cdb: Cdb::new(&WRITE),
        attribute: TaskAttribute::Simple,
        priority: 0,
        data: DataBuffers::from_initiator(dma.from_guest([(0x1000, 512)]).unwrap()),
    }
}

async fn begun(io: &Io, fake: &Fake, count: usize) {
    while fake.seen.lock().unwrap().len() < count {
        io.sleep(Duration::from_millis(1)).await;
    }
}

/// Its memory is the guest's: it is not given back while the device may read it.
#[test]
fn an_abort_waits_for_memory_of_the_guest() {
    on_io_thread(|io| async move {
        let (door, dma) = (Door::default(), memory());
        let fake = Arc::new(door.fake());
        let nexus = nexus_with(&io, &fake, config()).await;
        let mut first = Box::pin(nexus.execute(&io, write(&dma, 7)));
        assert!(io.at_most(Duration::from_millis(30), first.as_mut()).await.is_none());
        begun(&io, &fake, 1).await;
        let mut abort = Box::pin(nexus.manage(&io, TaskManagement::AbortTask(Lun::default(), Tag(7))));
        assert!(io.at_most(Duration::from_millis(1300), abort.as_mut()).await.is_none());
        assert!(io.at_most(Duration::from_millis(10), first.as_mut()).await.is_none());
        assert_eq!(fake.resets.load(Ordering::Relaxed), 0, "one command's end is no reset for all");
        door.open();
        assert_eq!(first.await.unwrap_err(), TransportFault::Aborted);
        assert_eq!(abort.await, TaskManagementReply::Complete);
    });
}

/// With `bounce` it leaves after a second, and what comes later waits until the device has answered.
#[test]
fn an_abort_does_not_wait_for_memory_of_the_process() {
    on_io_thread(|io| async move {
        let (door, dma) = (Door::default(), memory());
        let fake = Arc::new(door.fake());
        let nexus = nexus_with(&io, &fake, GenericConfig { bounce: true, ..config() }).await;
        let mut first = Box::pin(nexus.execute(&io, write(&dma, 7)));
        assert!(io.at_most(Duration::from_millis(30), first.as_mut()).await.is_none());
        begun(&io, &fake, 1).await;
        let begin = Instant::now();
        let mut abort = Box::pin(nexus.manage(&io, TaskManagement::AbortTask(Lun::default(), Tag(7))));
        assert!(io.at_most(Duration::from_millis(10), abort.as_mut()).await.is_none());
        assert_eq!(first.await.unwrap_err(), TransportFault::Aborted);
        assert_eq!(abort.await, TaskManagementReply::Complete);
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        let mut second = Box::pin(nexus.execute(&io, write(&dma, 8)));
        assert!(io.at_most(Duration::from_millis(50), second.as_mut()).await.is_none());
        assert_eq!(fake.take_seen().len(), 1, "the old one may still land");
        // Who it is is known meanwhile; what else needs no medium is the device's to answer, or not.
        door.close();
        let (reply, data) = soon(&io, &nexus, &INQUIRY, 36).await;
        assert_eq!((reply.status, &data[8..12]), (Status::Good, &b"FAKE"[..]));
        assert_eq!(fake.take_seen(), []);
        let mut asks = Box::pin(send(&io, &nexus, &[0; 6], &[], 0));
        assert!(io.at_most(Duration::from_millis(400), asks.as_mut()).await.is_none());
        assert_eq!(fake.cdbs(), [[0; 6]]);
        door.open();
        assert_eq!(asks.await.0.unwrap().status, Status::Good);
        assert_eq!(second.await.unwrap().status, Status::Good);
    });
}

const INQUIRY: [u8; 6] = [0x12, 0, 0, 0, 36, 0];

/// The answer to a command that has one within a second.
async fn soon(io: &Io, nexus: &Nexus, cdb: &[u8], room: usize) -> (ScsiReply, Vec<u8>) {
    let answer = io.at_most(Duration::from_secs(1), send(io, nexus, cdb, &[], room)).await;
    let (reply, data) = answer.unwrap_or_else(|| panic!("{cdb:02x?} waits"));
    (reply.unwrap(), data)
}

/// Commands that a device is asked with, but standard INQUIRY.
const ASKS: [&[u8]; 8] = [
    &[0; 6],
    &[0x03, 0, 0, 0, 18, 0],
    &[0x12, 1, 0x83, 0, 96, 0],
    &[0x1a, 0, 0x3f, 0, 64, 0],
    &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    &[0x4d, 0, 0x40, 0, 0, 0, 0, 0, 64, 0],
    &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0],
    &[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0],
];

/// It gives up all units for one that does not answer what is repeated after a reset, whatever that is.
#[test]
fn an_initiator_in_a_hurry_has_an_answer_whatever_it_asks() {
    on_io_thread(|io| async move {
        for lost in [&INQUIRY[..]].iter().chain(&ASKS) {
            let door = Door::default();
            let fake = Arc::new(door.fake());
            let nexus = nexus_with(&io, &fake, GenericConfig { bounce: true, ..config() }).await;
            nexus.hurry(true);
            door.close();
            let mut first = Box::pin(send(&io, &nexus, lost, &[], 64));
            assert!(io.at_most(Duration::from_millis(30), first.as_mut()).await.is_none());
            begun(&io, &fake, 1).await;
            nexus.reset();
            assert_eq!(first.await.0.unwrap_err(), TransportFault::Reset);
            let (reply, data) = soon(&io, &nexus, &INQUIRY, 96).await;
            assert_eq!((reply.status, reply.residual_in), (Status::Good, Residual::Under(60)));
            assert_eq!(data[..36], fake.inquiry);
            let (reply, data) = soon(&io, &nexus, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], 64).await;
            assert_eq!((reply.status, data[3]), (Status::Good, 8));
            let (told, _) = soon(&io, &nexus, &[0; 6], 0).await;
            assert_eq!(codes(&told), (6, 0x29, 0x07));
            for cdb in ASKS {
                assert_eq!(
                    soon(&io, &nexus, cdb, 64).await.0.status,
                    Status::Busy,
                    "{cdb:02x?} after {lost:02x?}"
                );
            }
            assert_eq!(fake.take_seen().len(), 1);
            door.open();
            while soon(&io, &nexus, &[0; 6], 0).await.0.status != Status::Good {}
        }
    });
}

/// Nobody waits for what is hung but nobody wants any more: neither who asked in vain, nor others.
#[test]
fn a_command_that_was_dropped_is_one_that_was_ended() {
    on_io_thread(|io| async move {
        for device_type in [0, 1] {
            let door = Door::default();
            let fake = Arc::new(door.fake().of_type(device_type));
            let nexus = nexus_with(&io, &fake, config()).await;
            nexus.hurry(true);
            door.close();
            let mut asks = Box::pin(send(&io, &nexus, &[0x12, 1, 0x83, 0, 96, 0], &[], 96));
            assert!(io.at_most(Duration::from_millis(30), asks.as_mut()).await.is_none());
            begun(&io, &fake, 1).await;
            drop(asks);
            assert_eq!(soon(&io, &nexus, &INQUIRY, 36).await.0.status, Status::Good);
            assert_eq!(soon(&io, &nexus, &[0; 6], 0).await.0.status, Status::Busy);
            door.open();
        }
    });
}

/// What runs for hours is not waited for by the machine's next start.
#[test]
fn a_tape_that_winds_back_holds_up_no_start() {
    on_io_thread(|io| async move {
        let door = Door::default();
        let fake = Arc::new(door.fake().of_type(1));
        let nexus = nexus_with(&io, &fake, config()).await;
        let mut rewind = Box::pin(send(&io, &nexus, &[0x01, 0, 0, 0, 0, 0], &[], 0));
        assert!(io.at_most(Duration::from_millis(30), rewind.as_mut()).await.is_none());
        // Who it is is told ahead of what waits.
        let (reply, data) = soon(&io, &nexus, &INQUIRY, 36).await;
        assert_eq!((reply.status, data), (Status::Good, fake.inquiry.clone()));
        let mut reset = pin!(nexus.target().power_on());
        assert!(io.at_most(Duration::ZERO, reset.as_mut()).await.is_none());
        assert_eq!(rewind.await.0.unwrap_err(), TransportFault::Reset);
        reset.await;
        let (reply, data) = soon(&io, &nexus, &INQUIRY, 36).await;
        assert_eq!((reply.status, data), (Status::Good, fake.inquiry.clone()));
        let (told, _) = soon(&io, &nexus, &[0; 6], 0).await;
        assert_eq!(codes(&told), (6, 0x29, 0x00));
        for cdb in ASKS {
            assert_eq!(soon(&io, &nexus, cdb, 64).await.0.status, Status::Busy, "{cdb:02x?}");
        }
        assert_eq!(fake.cdbs(), [[0x01, 0, 0, 0, 0, 0]]);
        door.open();
        while soon(&io, &nexus, &[0; 6], 0).await.0.status != Status::Good {}
        // From then on it tells itself.
        fake.take_seen();
        let begin = io.now();
        loop {
            assert_eq!(soon(&io, &nexus, &INQUIRY, 36).await.0.status, Status::Good);
            match fake.cdbs() {
                seen if seen.is_empty() => {
                    assert!(io.now() - begin < Duration::from_secs(5), "never");
                    io.sleep(Duration::from_millis(1)).await;
                }
                seen => break assert_eq!(seen, [INQUIRY]),
            }
            // What has to be done for the end of a command is done meanwhile.
            io.sleep(Duration::from_millis(1)).await;
        }
    });
}

/// By its serial number and its name too: what a start asks for ends at once.
#[test]
fn vital_product_data_is_told_while_a_tape_winds_back() {
    on_io_thread(|io| async move {
        let serial = [&[1, 0x80, 0, 4][..], b"1234"].concat();
        let mut names = vec![1, 0x83, 1, 0x0c];
        names.resize(4 + 0x10c, 7);
        let door = Door::default();
        let mut fake = door.fake().of_type(1);
        fake.pages = vec![1, 0, 0, 4, 0, 0x80, 0x83, 0xb0];
        let pages = (serial.clone(), names.clone());
        fake.script = Box::new(move |command| match command.cdb.as_bytes()[..3] {
            [0x12, 1, 0x80] => give(command, &pages.0),
            [0x12, 1, 0x83] => give(command, &pages.1),
            _ => Ok(Answer::good()),
        });
        let fake = Arc::new(fake);
        let nexus = nexus_with(&io, &fake, config()).await;
        let mut rewind = Box::pin(send(&io, &nexus, &[0x01, 0, 0, 0, 0, 0], &[], 0));
        assert!(io.at_most(Duration::from_millis(30), rewind.as_mut()).await.is_none());
        fake.take_seen();
        for (page, wanted) in [(0, &fake.pages), (0x80, &serial), (0x83, &names)] {
            let (reply, data) = soon(&io, &nexus, &[0x12, 1, page, 2, 0, 0], 512).await;
            assert_eq!((reply.status, &data[..wanted.len()]), (Status::Good, &wanted[..]), "{page:02x}h");
            let (reply, data) = soon(&io, &nexus, &[0x12, 1, page, 0, 5, 0], 512).await;
            assert_eq!((reply.residual_in, &data[..5]), (Residual::Under(507), &wanted[..5]), "{page:02x}h");
        }
        assert_eq!(fake.take_seen(), []);
        door.open();
        rewind.await.0.unwrap();
    });
}

/// All of it is kept, not just what every device has.
#[test]
fn who_a_device_is_is_kept_whole() {
    on_io_thread(|io| async move {
        let door = Door::default();
        let mut fake = door.fake().of_type(8);
        fake.inquiry.extend([0xaa; 38]);
        fake.inquiry[4] = 69;
        let fake = Arc::new(fake);
        let nexus = nexus_with(&io, &fake, config()).await;
        door.close();
        let mut asks = Box::pin(send(&io, &nexus, &[0; 6], &[], 0));
        assert!(io.at_most(Duration::from_millis(30), asks.as_mut()).await.is_none());
        let (reply, data) = soon(&io, &nexus, &[0x12, 0, 0, 0, 96, 0], 96).await;
        assert_eq!((reply.status, reply.residual_in), (Status::Good, Residual::Under(22)));
        assert_eq!(data[..74], fake.inquiry);
        assert_eq!(soon(&io, &nexus, &[0x12, 0, 0, 0, 5, 0], 96).await.0.residual_in, Residual::Under(91));
        door.open();
        assert_eq!(asks.await.0.unwrap().status, Status::Good);
    });
}

#[test]
fn a_reset_of_the_unit_resets_the_device() {
    on_io_thread(|io| async move {
        let (door, dma) = (Door::default(), memory());
        let fake = Arc::new(door.fake());
        let nexus = nexus_with(&io, &fake, config()).await;
        let mut first = Box::pin(nexus.execute(&io, write(&dma, 7)));
        assert!(io.at_most(Duration::from_millis(30), first.as_mut()).await.is_none());
        let mut reset = pin!(nexus.manage(&io, TaskManagement::LogicalUnitReset(Lun::default())));
        assert!(io.at_most(Duration::ZERO, reset.as_mut()).await.is_none());
        assert_eq!(first.await.unwrap_err(), TransportFault::Reset);
        assert_eq!(reset.await, TaskManagementReply::Complete);
        assert_eq!(fake.resets.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn what_others_use_is_not_reset() {
    on_io_thread(|io| async move {
        for (shared, allow) in [(true, Allow::All), (false, Allow::ReadOnly), (false, Allow::NoManagement)] {
            let fake = Arc::new(Fake::new(|_| Ok(Answer::good())));
            let nexus = nexus_with(&io, &fake, GenericConfig { shared, allow, ..config() }).await;
            let reset = nexus.manage(&io, TaskManagement::LogicalUnitReset(Lun::default())).await;
            assert_eq!((reset, fake.resets.load(Ordering::Relaxed)), (TaskManagementReply::Complete, 0));
        }
        // The kernel does not let us, or its driver has none: the function ends all the same.
        let mut fake = Fake::new(|_| Ok(Answer::good()));
        fake.on_reset = Box::new(|| Err(io::Error::from_raw_os_error(libc::EACCES)));
        let fake = Arc::new(fake);
        let nexus = nexus_with(&io, &fake, config()).await;
        for count in 1..3 {
            let reset = nexus.manage(&io, TaskManagement::LogicalUnitReset(Lun::default())).await;
            assert_eq!((reset, fake.resets.load(Ordering::Relaxed)), (TaskManagementReply::Complete, count));
        }
    });
}

/// The kernel's recovery has had the device's own word of it.
#[test]
fn who_waits_too_long_hears_that_the_device_may_have_been_reset() {
    on_io_thread(|io| async move {
        for host in [3, 8] {
            let says = Arc::new(AtomicU16::new(0));
            let word = says.clone();
            let fake = Arc::new(Fake::new(move |_| {
                Ok(Answer { host: word.load(Ordering::Relaxed), ..Answer::good() })
            }));
            let nexus = nexus_with(&io, &fake, config()).await;
            fake.take_seen();
            says.store(host, Ordering::Relaxed);
            let (reply, _) = send(&io, &nexus, &[0; 6], &[], 0).await;
            assert_eq!(reply.unwrap_err(), TransportFault::Reset, "{host}");
            says.store(0, Ordering::Relaxed);
            assert_eq!(fake.take_seen().len(), 1);
            let (reply, _) = send(&io, &nexus, &[0; 6], &[], 0).await;
            let sense = reply.unwrap().sense.unwrap();
            assert_eq!((sense.as_bytes()[2] & 0x0f, sense.as_bytes()[12]), (6, 0x29));
            assert_eq!(fake.take_seen().len(), 0, "nothing goes to a device that may be elsewhere");
            let (reply, _) = send(&io, &nexus, &[0; 6], &[], 0).await;
            assert_eq!(reply.unwrap().status, Status::Good);
        }
    });
}

#[test]
fn what_the_guest_holds_goes_with_the_unit() {
    on_io_thread(|io| async move {
        let (reserve, prevent, allow) = ([0x16, 0, 0, 0, 0, 0], [0x1e, 0, 0, 0, 1, 0], [0x1e, 0, 0, 0, 0, 0]);
        let release = [0x17, 0, 0, 0, 0, 0];
        for (sent, wanted) in [
            (vec![reserve, prevent], vec![allow, release]),
            (vec![reserve, prevent, allow], vec![release]),
            (vec![prevent, reserve, release], vec![allow]),
            (vec![release], vec![]),
        ] {
            let fake = Arc::new(Fake::new(|_| Ok(Answer::good())).of_type(1));
            let target = Target::new();
            attach(&target, Lun::default(), &fake, config());
            let nexus = Nexus::new(target.clone(), None);
            for cdb in [[0; 6]].iter().chain(&sent) {
                let _ = send(&io, &nexus, cdb, &[], 0).await;
            }
            assert_eq!(fake.cdbs(), sent);
            target.detach(Lun::default()).await.unwrap().close(&io).await.unwrap();
            assert_eq!(fake.cdbs(), wanted);
        }
        // One that was refused holds nothing.
        let fake = Arc::new(Fake::new(|_| Ok(Answer { status: 0x18, ..Answer::good() })).of_type(1));
        let target = Target::new();
        attach(&target, Lun::default(), &fake, config());
        let nexus = Nexus::new(target.clone(), None);
        for _ in 0..2 {
            let _ = send(&io, &nexus, &reserve, &[], 0).await;
        }
        assert_eq!(fake.take_seen().len(), 1);
        target.detach(Lun::default()).await.unwrap().close(&io).await.unwrap();
        assert_eq!(fake.take_seen(), []);
    });
}

#[test]
fn a_device_that_does_not_answer_keeps_nobody_from_going() {
    on_io_thread(|io| async move {
        let door = Door::default();
        let fake = Arc::new(door.fake().of_type(1));
        let target = Target::new();
        attach(&target, Lun::default(), &fake, config());
        let nexus = Nexus::new(target.clone(), None);
        for _ in 0..2 {
            let _ = send(&io, &nexus, &[0x16, 0, 0, 0, 0, 0], &[], 0).await;
        }
        let (unit, begin) = (target.detach(Lun::default()).await.unwrap(), Instant::now());
        unit.close(&io).await.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        door.open();
    });
}

/// Behind a tape that winds back commands wait their turn; to end them nothing of the device is needed.
#[test]
fn commands_behind_a_slow_tape_end_at_once() {
    on_io_thread(|io| async move {
        let door = Door::default();
        let fake = Arc::new(door.fake().of_type(1));
        let nexus = nexus_with(&io, &fake, config()).await;
        let mut rewind = Box::pin(send(&io, &nexus, &[0x01, 0, 0, 0, 0, 0], &[], 0));
        assert!(io.at_most(Duration::from_millis(30), rewind.as_mut()).await.is_none());
        let mut read = Request::new(&[0x08, 0, 0, 2, 0, 0], &[], 512);
        read.tag = 9;
        let mut read = Box::pin(read.send(&nexus, &io));
        assert!(io.at_most(Duration::from_millis(30), read.as_mut()).await.is_none());
        let begin = Instant::now();
        let mut abort = Box::pin(nexus.manage(&io, TaskManagement::AbortTask(Lun::default(), Tag(9))));
        assert!(io.at_most(Duration::ZERO, abort.as_mut()).await.is_none());
        assert_eq!(read.await.0.unwrap_err(), TransportFault::Aborted);
        assert_eq!(abort.await, TaskManagementReply::Complete);
        assert!(begin.elapsed() < Duration::from_millis(900), "{:?}", begin.elapsed());
        door.open();
        assert_eq!(rewind.await.0.unwrap().status, Status::Good);
        assert_eq!(fake.cdbs(), [[0x01, 0, 0, 0, 0, 0]], "what was ended was never sent");
    });
}

/// The machine goes on, and who detaches the unit waits for the device.
#[test]
fn a_unit_is_detached_when_the_device_has_answered() {
    on_io_thread(|io| async move {
        let (door, dma) = (Door::default(), memory());
        let fake = Arc::new(door.fake());
        let target = Target::new();
        attach(&target, Lun::default(), &fake, config());
        let nexus = Nexus::new(target.clone(), None);
        let _ = send(&io, &nexus, &[0; 6], &[], 0).await;
        let mut first = Box::pin(nexus.execute(&io, write(&dma, 7)));
        assert!(io.at_most(Duration::from_millis(30), first.as_mut()).await.is_none());
        begun(&io, &fake, 1).await;
        let mut detach = Box::pin(target.detach(Lun::default()));
        assert!(io.at_most(Duration::from_millis(30), detach.as_mut()).await.is_none());
        assert!(io.at_most(Duration::from_millis(30), first.as_mut()).await.is_none());
        door.open();
        assert_eq!(codes(&first.await.unwrap()), (5, 0x25, 0));
        detach.await.unwrap().close(&io).await.unwrap();
        assert_eq!(Arc::strong_count(&fake), 1, "nobody has it any more");
    });
}
