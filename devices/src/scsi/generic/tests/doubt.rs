//! Devices that may be others than they were.

use std::sync::Weak;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::scsi::generic::comeback::{Plug, go_on};
use crate::scsi::generic::{Driver, GenericError, Identity, Part, Returning, Wanted};
use crate::scsi::{Status, TaskManagement, TaskManagementReply};
use crate::testing::on_io_thread;

const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const WRITE: [u8; 10] = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];

fn identity(names: &[&str]) -> Identity {
    Identity {
        address: "8:0:0:0".into(),
        device_type: 0,
        names: names.iter().map(|name| (*name).into()).collect(),
        vendor: String::new(),
        product: String::new(),
        serial: String::new(),
    }
}

struct Bench {
    nexus: Arc<Nexus>,
    plug: Arc<Plug>,
    returning: Returning,
}

impl Bench {
    /// A unit behind a port, of which POWER ON was heard.
    async fn new(io: &Io, fake: &Arc<Fake>, depth: usize) -> Self {
        let target = Target::new();
        let mut unit = Generic::new(fake.clone(), GenericConfig { depth, ..config() }).unwrap();
        unit.behind_port = true;
        let plug = unit.plug.clone();
        let (driver, parts, allow, shared) = (Driver::Sg, vec![Part::Sg], Allow::All, false);
        let (identity, directory) = (identity(&[]), "/nowhere".into());
        let wanted = Wanted { identity, driver, parts, allow, shared, directory, number: 0 };
        let returning = Returning::new(wanted, &plug);
        returning.watch();
        target.attach(Lun::default(), LogicalUnit::Generic(unit)).unwrap();
        let bench = Self { nexus: Nexus::new(target, None), plug, returning };
        bench.heard(io, &[(0x29, 0x00)]).await;
        fake.take_seen();
        bench
    }

    /// These are the unit attentions that are pending, and no more.
    async fn heard(&self, io: &Io, codes: &[(u8, u8)]) {
        for wanted in codes {
            let (reply, _) = send(io, &self.nexus, &[0; 6], &[], 0).await;
            let (key, asc, ascq) = self::codes(&reply.unwrap());
            assert_eq!((key, (asc, ascq)), (6, *wanted));
        }
        let (reply, _) = send(io, &self.nexus, &[0; 6], &[], 0).await;
        assert_eq!(reply.unwrap().status, Status::Good);
    }

    async fn all(&self, io: &Io) -> Vec<Result<Status, TransportFault>> {
        let mut all = Vec::new();
        for cdb in [&READ[..], &[0; 6], &[0x12, 0, 0, 0, 36, 0], &[0x12, 1, 0x83, 0, 64, 0]] {
            all.push(send(io, &self.nexus, cdb, &[], 512).await.0.map(|reply| reply.status));
        }
        all.push(send(io, &self.nexus, &WRITE, &[0; 512], 0).await.0.map(|reply| reply.status));
        all
    }
}

fn good() -> Arc<Fake> {
    Arc::new(Fake::new(|_| Ok(Answer::good())))
}

#[test]
fn nothing_is_sent_until_it_is_known_who_it_is() {
    on_io_thread(|io| async move {
        let fake = good();
        let bench = Bench::new(&io, &fake, 8).await;
        let mut said = Vec::new();
        let lines = crate::log::recorded(tracing::Level::INFO, || bench.returning.doubted());
        said.extend(bench.all(&io).await);
        assert_eq!(said, [const { Ok(Status::Busy) }; 5]);
        let reset = bench.nexus.manage(&io, TaskManagement::LogicalUnitReset(Lun::default())).await;
        assert_eq!(reset, TaskManagementReply::Complete);
        assert_eq!((fake.take_seen(), fake.resets.load(Ordering::Relaxed)), (vec![], 0));
        bench.returning.trusted();
        // It says something else of itself, as it has said to the host.
        let (reply, _) = send(&io, &bench.nexus, &READ, &[], 512).await;
        assert_eq!(codes(&reply.unwrap()), (6, 0x29, 3), "of the reset");
        bench.heard(&io, &[(0x3f, 0x03)]).await;
        bench.returning.trusted();
        bench.heard(&io, &[]).await;
        assert_eq!(lines, [] as [&str; 0]);
    });
}

/// Whoever asks it has ended, or hangs.
#[test]
fn it_is_not_waited_for_for_ever() {
    on_io_thread(|io| async move {
        let fake = good();
        let bench = Bench::new(&io, &fake, 8).await;
        bench.returning.doubted();
        bench.plug.age_doubt();
        assert_eq!(bench.all(&io).await, [const { Err(TransportFault::PathLost) }; 5]);
        assert_eq!(fake.take_seen(), []);
        bench.returning.trusted();
        bench.heard(&io, &[(0x3f, 0x03)]).await;
    });
}

/// A device that takes one command at a time, which it holds until it is told to go on.
fn slow() -> (Arc<Fake>, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (gate, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (waits, count) = (gate.clone(), begun.clone());
    let fake = Fake::new(move |command| {
        if command.cdb.opcode() == 0x2a {
            count.fetch_add(1, Ordering::Relaxed);
            while !waits.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(Answer::good())
    });
    (Arc::new(fake), gate, begun)
}

#[test]
fn what_waits_for_the_device_already_is_not_sent_either() {
    for is_lost in [false, true] {
        on_io_thread(move |io| async move {
            let (fake, gate, begun) = slow();
            let bench = Bench::new(&io, &fake, 1).await;
            let mut first = Box::pin(send(&io, &bench.nexus, &WRITE, &[1; 512], 0));
            while begun.load(Ordering::Relaxed) == 0 {
                assert!(io.at_most(Duration::from_millis(5), first.as_mut()).await.is_none());
            }
            let mut second = Box::pin(send(&io, &bench.nexus, &WRITE, &[2; 512], 0));
            assert!(io.at_most(Duration::from_millis(20), second.as_mut()).await.is_none());
            bench.returning.doubted();
            if is_lost {
                bench.returning.lost();
            }
            gate.store(true, Ordering::Relaxed);
            assert_eq!(first.await.0.unwrap().status, Status::Good, "it was sent before");
            let second = second.await.0.map(|reply| reply.status);
            let expected = if is_lost { Err(TransportFault::PathLost) } else { Ok(Status::Busy) };
            assert_eq!((second, begun.load(Ordering::Relaxed)), (expected, 1));
        });
    }
}

#[test]
fn a_device_that_comes_meanwhile_is_doubted_as_well() {
    on_io_thread(|io| async move {
        let first = good();
        let bench = Bench::new(&io, &first, 8).await;
        bench.returning.lost();
        bench.returning.doubted();
        let second = good();
        bench.plug.put(Some(second.clone()), &config()).unwrap();
        second.take_seen();
        let (reply, _) = send(&io, &bench.nexus, &READ, &[], 512).await;
        assert_eq!(codes(&reply.unwrap()), (6, 0x29, 0));
        assert_eq!(bench.all(&io).await, [const { Ok(Status::Busy) }; 5]);
        assert_eq!(second.take_seen(), []);
        // One that is lost and comes back was asked.
        bench.returning.lost();
        bench.plug.put(Some(second.clone()), &config()).unwrap();
        bench.heard(&io, &[(0x29, 0x00)]).await;
    });
}

/// INQUIRY data alone are alike where an array has made both.
#[test]
fn a_device_that_is_back_says_its_names() {
    on_io_thread(|io| async move {
        let bench = Bench::new(&io, &good(), 8).await;
        let named = |last: u8| -> Arc<dyn Host> {
            let page = [0, 0x83, 0, 12, 1, 3, 0, 8, 0x60, 1, 2, 3, 4, 5, 6, last];
            Arc::new(Fake::new(move |command| match command.cdb.as_bytes()[..3] {
                [0x12, 1, 0x83] => give(command, &page),
                _ => Ok(Answer::good()),
            }))
        };
        let back = |host: Arc<dyn Host>| {
            let plug: Weak<Plug> = Arc::downgrade(&bench.plug);
            go_on(&plug, &host, None, &config(), Some(&identity(&["6001020304050607"])))
        };
        bench.returning.lost();
        let said = back(named(8)).unwrap_err();
        assert!(matches!(said, GenericError::Stranger { .. }), "{said}");
        let (reply, _) = send(&io, &bench.nexus, &READ, &[], 512).await;
        assert_eq!(reply.unwrap_err(), TransportFault::PathLost);
        assert!(back(named(7)).unwrap());
        bench.heard(&io, &[(0x29, 0x00)]).await;
        // One that does not say them is asked again, for a while.
        let said = back(good()).unwrap_err();
        assert!(matches!(said, GenericError::Silent { .. }), "{said}");
    });
}
