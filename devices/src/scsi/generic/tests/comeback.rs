//! Devices that go and come back.

use std::sync::Weak;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::iothread::Io;
use crate::scsi::generic::comeback::{Plug, ask_again, ring};
use crate::scsi::generic::link::Link;
use crate::scsi::generic::{Driver, Found, GenericError, Identity, Part, Returning, Wanted};
use crate::scsi::{Residual, Status, TaskManagement};
use crate::testing::on_io_thread;

const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// A unit, and what of it a device comes back to.
async fn unit(io: &Io, fake: &Arc<Fake>) -> (Arc<Nexus>, Arc<Target>, Weak<Plug>) {
    let target = Target::new();
    let unit = Generic::new(fake.clone(), config()).unwrap();
    let plug = Arc::downgrade(&unit.plug);
    target.attach(Lun::default(), LogicalUnit::Generic(unit)).unwrap();
    let nexus = Nexus::new(target.clone(), None);
    heard(io, &nexus, &[(0x29, 0x00)]).await;
    fake.take_seen();
    (nexus, target, plug)
}

/// These are the unit attentions that are pending, and no more.
async fn heard(io: &Io, nexus: &Nexus, codes: &[(u8, u8)]) {
    for wanted in codes {
        let (reply, _) = send(io, nexus, &[0; 6], &[], 0).await;
        let (key, asc, ascq) = self::codes(&reply.unwrap());
        assert_eq!((key, (asc, ascq)), (6, *wanted));
    }
    let (reply, _) = send(io, nexus, &[0; 6], &[], 0).await;
    assert_eq!(reply.unwrap().status, Status::Good);
}

/// The host has its node back, soon.
fn closed(host: &Arc<impl Host>) {
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while Arc::strong_count(host) > 1 {
        assert!(std::time::Instant::now() < until, "its node is open");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A device whose node takes its time to close.
struct Clinging(Fake, Mutex<std::sync::mpsc::Receiver<()>>);

impl Host for Clinging {
    fn execute(&self, command: &Command) -> std::io::Result<Answer> {
        self.0.execute(command)
    }
    fn reset(&self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Clinging {
    fn drop(&mut self) {
        let _ = self.1.lock().unwrap().recv();
    }
}

/// One thread hears of all devices that go and come.
#[test]
fn a_node_that_does_not_close_holds_up_nobody() {
    on_io_thread(|io| async move {
        let (nexus, _target, plug) = unit(&io, &good()).await;
        let plug = plug.upgrade().unwrap();
        let (go, waits) = std::sync::mpsc::channel();
        let clinging = Arc::new(Clinging(Fake::new(|_| Ok(Answer::good())), Mutex::new(waits)));
        plug.put(Some(clinging), &config()).unwrap();
        let (told, over) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            plug.put(None, &config()).unwrap();
            plug.put(Some(good()), &config()).unwrap();
            told.send(()).unwrap();
        });
        let end = over.recv_timeout(Duration::from_secs(5));
        drop(go);
        assert!(end.is_ok(), "it waits for the host");
        heard(&io, &nexus, &[(0x29, 0x00)]).await;
    });
}

fn good() -> Arc<Fake> {
    Arc::new(Fake::new(|_| Ok(Answer::good())))
}

#[test]
fn a_unit_goes_on_with_a_device_that_is_back_and_all_initiators_hear_of_it() {
    on_io_thread(|io| async move {
        let first = good();
        let (nexus, target, plug) = unit(&io, &first).await;
        let other = Nexus::new(target, None);
        heard(&io, &other, &[(0x29, 0x00)]).await;
        first.take_seen();
        let plug = plug.upgrade().unwrap();
        plug.put(None, &config()).unwrap();
        closed(&first);
        for _ in 0..2 {
            let (reply, _) = send(&io, &nexus, &READ, &[], 512).await;
            assert_eq!(codes(&reply.unwrap()), (5, 0x25, 0));
        }
        let second = good();
        plug.put(Some(second.clone()), &config()).unwrap();
        second.take_seen();
        // Who it is and what is wrong with it is told at once.
        let (reply, _) = send(&io, &nexus, &[0x12, 0, 0, 0, 36, 0], &[], 36).await;
        assert_eq!(reply.unwrap().status, Status::Good);
        assert_eq!(second.take_seen().len(), 1);
        let (reply, _) = send(&io, &nexus, &READ, &[], 512).await;
        assert_eq!(codes(&reply.unwrap()), (6, 0x29, 0x00));
        assert_eq!(second.take_seen(), [], "it is not sent");
        heard(&io, &nexus, &[]).await;
        heard(&io, &other, &[(0x29, 0x00)]).await;
        assert_eq!(first.take_seen(), []);
    });
}

/// Linux looks at no unit behind one that answers with an error, when it looks for units.
#[test]
fn a_unit_without_its_device_says_that_none_is_there_and_others_are_found() {
    on_io_thread(|io| async move {
        let (host, away) = (good(), Arc::new(AtomicBool::new(false)));
        let (nexus, _target, plug) = unit(&io, &host).await;
        let plug = plug.upgrade().unwrap();
        plug.put(None, &config()).unwrap();
        let mut nothing = vec![0x7f, 0, 0x07, 0x12, 31, 0, 0, 0];
        nothing.resize(36, b' ');
        let (reply, data) = send(&io, &nexus, &[0x12, 0, 0, 0, 36, 0], &[], 64).await;
        let reply = reply.unwrap();
        assert_eq!((reply.status, reply.residual_in), (Status::Good, Residual::Under(28)));
        assert_eq!((&data[..36], data[36]), (&*nothing, 0xee));
        let (reply, data) = send(&io, &nexus, &[0x12, 0, 0, 0, 5, 0], &[], 36).await;
        assert_eq!(
            (reply.unwrap().residual_in, &data[..6]),
            (Residual::Under(31), &[0x7f, 0, 7, 0x12, 31, 0xee][..])
        );
        // Who knows the unit keeps what it knows.
        let (reply, _) = send(&io, &nexus, &[0x12, 1, 0x83, 0, 64, 0], &[], 64).await;
        assert_eq!(codes(&reply.unwrap()), (5, 0x25, 0));
        plug.put(Some(good()), &config()).unwrap();
        let (_, data) = send(&io, &nexus, &[0x12, 0, 0, 0, 36, 0], &[], 36).await;
        assert_eq!((data[0], &data[8..12]), (0, &b"FAKE"[..]));
        // The kernel has said it before anybody has heard of it; it may be back under its node.
        let gone = away.clone();
        let sudden = Sudden(Fake::new(|_| Ok(Answer::good())), gone);
        plug.put(Some(Arc::new(sudden)), &config()).unwrap();
        for (is_away, first) in [(true, 0x7f), (true, 0x7f), (false, 0)] {
            away.store(is_away, Ordering::Relaxed);
            let (reply, data) = send(&io, &nexus, &[0x12, 0, 0, 0, 36, 0], &[], 36).await;
            assert_eq!((reply.unwrap().status, data[0]), (Status::Good, first));
        }
    });
}

/// A device that may be away.
struct Sudden(Fake, Arc<AtomicBool>);

impl Host for Sudden {
    fn execute(&self, command: &Command) -> std::io::Result<Answer> {
        match self.1.load(Ordering::Relaxed) {
            true => Err(std::io::Error::from_raw_os_error(libc::ENODEV)),
            false => self.0.execute(command),
        }
    }
    fn reset(&self) -> std::io::Result<()> {
        Ok(())
    }
}

/// 25h/00h would have an initiator take the unit for gone for good.
#[test]
fn behind_a_port_a_device_that_is_not_there_is_a_path_that_is_lost() {
    on_io_thread(|io| async move {
        let target = Target::new();
        let mut unit = Generic::new(good(), config()).unwrap();
        unit.behind_port = true;
        let plug = unit.plug.clone();
        target.attach(Lun::default(), LogicalUnit::Generic(unit)).unwrap();
        let nexus = Nexus::new(target, None);
        heard(&io, &nexus, &[(0x29, 0x00)]).await;
        plug.put(None, &config()).unwrap();
        // INQUIRY, too: Linux removes disks that say that nothing is there.
        for cdb in [&READ[..], &[0; 6], &[0x12, 0, 0, 0, 36, 0]] {
            let (reply, _) = send(&io, &nexus, cdb, &[], 512).await;
            assert_eq!(reply.unwrap_err(), TransportFault::PathLost);
        }
        // A driver that comes looks for units, and finds those behind this one.
        for forgets in [Nexus::reset, Nexus::trust, Nexus::forget_use] {
            forgets(&nexus);
            for cdb in
                [&[0x12, 0, 0, 0, 36, 0][..], &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[3, 0, 0, 0, 18, 0]]
            {
                let _ = send(&io, &nexus, cdb, &[], 36).await;
            }
            let (reply, data) = send(&io, &nexus, &[0x12, 0, 0, 0, 36, 0], &[], 36).await;
            assert_eq!((reply.unwrap().status, data[0]), (Status::Good, 0x7f));
            // It uses the unit, if only to hear of the reset.
            let _ = send(&io, &nexus, &[0; 6], &[], 0).await;
            let (reply, _) = send(&io, &nexus, &[0x12, 0, 0, 0, 36, 0], &[], 36).await;
            assert_eq!(reply.unwrap_err(), TransportFault::PathLost);
        }
        // It is back, and being asked who it is: nobody gives up a path, or a unit, for that.
        let identity = Identity {
            address: "8:0:0:0".into(),
            device_type: 0,
            names: Vec::new(),
            vendor: String::new(),
            product: String::new(),
            serial: String::new(),
        };
        let (driver, parts, allow, shared) = (Driver::Sg, vec![Part::Sg], Allow::All, false);
        let wanted =
            Wanted { identity, driver, parts, allow, shared, directory: "/nowhere".into(), number: 0 };
        let returning = Returning::new(wanted, &plug);
        returning.coming();
        for cdb in [&READ[..], &[0; 6], &[0x12, 0, 0, 0, 36, 0]] {
            let (reply, _) = send(&io, &nexus, cdb, &[], 512).await;
            assert_eq!(reply.unwrap().status, Status::Busy);
        }
        returning.lost();
        let (reply, _) = send(&io, &nexus, &READ, &[], 512).await;
        assert_eq!(reply.unwrap_err(), TransportFault::PathLost);
        plug.put(Some(good()), &config()).unwrap();
        heard(&io, &nexus, &[(0x29, 0x00)]).await;
    });
}

/// What an operator is shown.
#[test]
fn the_node_is_the_one_that_it_is_back_by() {
    on_io_thread(|io| async move {
        let (_nexus, target, plug) = unit(&io, &good()).await;
        let plug = plug.upgrade().unwrap();
        let node = || target.node(Lun::default()).unwrap();
        assert_eq!(node(), "/dev/sg0");
        plug.put(Some(good()), &GenericConfig { name: "/dev/sg7".into(), ..config() }).unwrap();
        assert_eq!(node(), "/dev/sg7");
        plug.put(None, &config()).unwrap();
        assert_eq!(node(), "/dev/sg7");
    });
}

/// The kernel looks after its adapter, for as long as that takes.
#[test]
fn a_device_that_does_not_answer_is_waited_for_and_not_for_ever() {
    let gate = Arc::new(Mutex::new(()));
    let mut fake = Fake::new(|_| Ok(Answer::good()));
    let waits = gate.clone();
    fake.gate = Box::new(move |_| drop(waits.lock()));
    let (fake, closed) = (Arc::new(fake), gate.lock().unwrap());
    let mut made = None;
    let lines =
        crate::log::recorded(tracing::Level::WARN, || made = Some(Generic::new(fake.clone(), config())));
    assert_eq!(lines, ["WARN waiting for \"/dev/sg0\", which does not answer"]);
    let said = made.unwrap().unwrap_err().to_string();
    assert!(
        said.starts_with("/dev/sg0: the device does not answer INQUIRY (nothing for 3 seconds)"),
        "{said}"
    );
    drop(closed);
    self::closed(&fake);
}

/// The same of one that is back, for which nobody waits: a late answer is one.
#[test]
fn a_device_that_is_back_is_waited_for_as_long_as_the_host_does() {
    on_io_thread(|io| async move {
        let (nexus, _target, plug) = unit(&io, &good()).await;
        let plug = plug.upgrade().unwrap();
        plug.put(None, &config()).unwrap();
        let begin = std::time::Instant::now();
        let mut fake = Fake::new(|_| Ok(Answer::good()));
        // Longer than the start waits, and than one is asked that does not answer.
        let slow = begin + Duration::from_millis(3200);
        fake.gate =
            Box::new(move |_| std::thread::sleep(slow.saturating_duration_since(std::time::Instant::now())));
        let (fake, mut end) = (Arc::new(fake), None);
        let lines = crate::log::recorded(tracing::Level::WARN, || {
            end = Some(plug.put(Some(fake), &config()));
        });
        assert_eq!(lines, ["WARN waiting for \"/dev/sg0\", which does not answer"]);
        end.unwrap().unwrap();
        heard(&io, &nexus, &[(0x29, 0x00)]).await;
        // The host has given up on the first command, after a while.
        plug.put(None, &config()).unwrap();
        let (count, begin) = (AtomicUsize::new(0), std::time::Instant::now());
        let slow = Gives(Fake::new(|_| Ok(Answer::good())), move || {
            let first = count.fetch_add(1, Ordering::Relaxed) == 0;
            let until = begin + Duration::from_millis(if first { 2100 } else { 0 });
            std::thread::sleep(until.saturating_duration_since(std::time::Instant::now()));
            first
        });
        plug.put(Some(Arc::new(slow)), &config()).unwrap();
        heard(&io, &nexus, &[(0x29, 0x00)]).await;
    });
}

/// A device of which the host gives up on commands.
struct Gives<F>(Fake, F);

impl<F: Fn() -> bool + Send + Sync> Host for Gives<F> {
    fn execute(&self, command: &Command) -> std::io::Result<Answer> {
        if (self.1)() { Ok(Answer { host: 3, ..Answer::good() }) } else { self.0.execute(command) }
    }
    fn reset(&self) -> std::io::Result<()> {
        Ok(())
    }
}

/// It goes again just as the unit would go on with it.
#[test]
fn what_has_come_meanwhile_stays() {
    on_io_thread(|io| async move {
        let (nexus, _target, plug) = unit(&io, &good()).await;
        let plug = plug.upgrade().unwrap();
        let before = plug.link().number();
        let late = Link::new(good(), &config()).unwrap();
        let newer = good();
        plug.put(Some(newer.clone()), &config()).unwrap();
        assert!(!plug.take(before, late, None).unwrap());
        newer.take_seen();
        heard(&io, &nexus, &[(0x29, 0x00)]).await;
        assert_eq!(newer.take_seen().len(), 1, "it is that which is there");
    });
}

/// Who attaches a unit of type "block" in the place of one of type "generic".
#[test]
fn blocks_that_were_not_opened_are_missed_for_their_own_reason() {
    let said = |size| {
        let found = Found {
            path: "/dev/sdk".into(),
            address: "7:0:0:1".into(),
            limits: HostLimits::default(),
            block: None,
            size,
            depth: 1,
        };
        crate::log::recorded(tracing::Level::WARN, || assert!(ring(None, &found, false).is_none()))
    };
    assert!(said(Some(512))[0].contains("as one of type = \"generic\"; its blocks"), "{:?}", said(Some(512)));
    assert!(said(None)[0].contains("the host does not know how long it is; its blocks"), "{:?}", said(None));
}

/// A device that is busy so many times before it answers.
struct Dazed(Fake, AtomicUsize);

impl Host for Dazed {
    fn execute(&self, command: &Command) -> std::io::Result<Answer> {
        let busy = self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if busy.is_ok() { Ok(Answer { status: 8, ..Answer::good() }) } else { self.0.execute(command) }
    }
    fn reset(&self) -> std::io::Result<()> {
        Ok(())
    }
}

/// As devices do just after a login to the fabric.
#[test]
fn a_device_that_is_busy_at_first_is_asked_again() {
    on_io_thread(|io| async move {
        let first = good();
        let (nexus, _target, plug) = unit(&io, &first).await;
        let plug = plug.upgrade().unwrap();
        plug.put(None, &config()).unwrap();
        let dazed = |times| Arc::new(Dazed(Fake::new(|_| Ok(Answer::good())), AtomicUsize::new(times)));
        plug.put(Some(dazed(3)), &config()).unwrap();
        heard(&io, &nexus, &[(0x29, 0x00)]).await;
        // One that never answers is not gone on with.
        let error = plug.put(Some(dazed(usize::MAX)), &config()).unwrap_err();
        assert!(matches!(error, crate::scsi::generic::GenericError::Silent { .. }), "{error}");
        heard(&io, &nexus, &[]).await;
    });
}

/// The unit is detached while its device, which is back, does not answer.
#[test]
fn a_unit_that_goes_lets_go_of_a_device_that_is_about_to_return() {
    on_io_thread(|io| async move {
        let first = good();
        let (nexus, target, plug) = unit(&io, &first).await;
        let mute = Arc::new(Dazed(Fake::new(|_| Ok(Answer::good())), AtomicUsize::new(usize::MAX)));
        let (host, again): (Arc<dyn Host>, _) = (mute.clone(), plug.clone());
        let thread = std::thread::spawn(move || {
            let end = crate::scsi::generic::comeback::go_on(&again, &host, None, &config(), None);
            drop(host);
            (end, std::time::Instant::now())
        });
        while mute.1.load(Ordering::Relaxed) == usize::MAX {
            std::thread::yield_now();
        }
        drop(nexus);
        if let Some(unit) = target.detach(Lun::default()).await {
            unit.close(&io).await.unwrap();
        }
        drop(target);
        let gone = std::time::Instant::now();
        assert!(plug.upgrade().is_none(), "nobody holds the unit");
        let (end, ended) = thread.join().unwrap();
        assert!(!end.unwrap() && ended.duration_since(gone) < std::time::Duration::from_secs(1));
        assert_eq!(Arc::strong_count(&mute), 1, "the host has its node back");
    });
}

/// A device that is back twice, or was never missed.
#[test]
fn another_node_takes_the_place_of_one_that_is_open() {
    on_io_thread(|io| async move {
        let (first, second) = (good(), good());
        let (nexus, _target, plug) = unit(&io, &first).await;
        let plug = plug.upgrade().unwrap();
        plug.put(Some(second.clone()), &config()).unwrap();
        plug.put(Some(first.clone()), &config()).unwrap();
        closed(&second);
        first.take_seen();
        heard(&io, &nexus, &[(0x29, 0x00)]).await;
        assert_eq!(first.take_seen().len(), 1);
    });
}

#[test]
fn what_has_changed_is_told_after_it() {
    on_io_thread(|io| async move {
        let (nexus, _target, plug) = unit(&io, &good()).await;
        let plug = plug.upgrade().unwrap();
        let mut larger = config();
        larger.size = Some(2 << 30);
        plug.put(Some(good()), &larger).unwrap();
        heard(&io, &nexus, &[(0x29, 0x00), (0x2a, 0x09)]).await;
        plug.put(Some(good()), &GenericConfig { size: None, ..larger.clone() }).unwrap();
        heard(&io, &nexus, &[(0x29, 0x00), (0x2a, 0x09)]).await;
        let mut newer = Fake::new(|_| Ok(Answer::good()));
        newer.inquiry[32..36].copy_from_slice(b"0002");
        let newer = Arc::new(newer);
        larger.size = None;
        plug.put(Some(newer.clone()), &larger).unwrap();
        // Nobody has heard of it when it goes again.
        plug.put(None, &larger).unwrap();
        plug.put(Some(newer), &larger).unwrap();
        heard(&io, &nexus, &[(0x29, 0x00), (0x2a, 0x09), (0x3f, 0x03)]).await;
    });
}

#[test]
fn what_is_another_device_or_does_not_answer_is_not_taken() {
    on_io_thread(|io| async move {
        let first = good();
        let (nexus, _target, plug) = unit(&io, &first).await;
        let plug = plug.upgrade().unwrap();
        let said = |fake: Fake| plug.put(Some(Arc::new(fake)), &config()).unwrap_err().to_string();
        let tape = said(Fake::new(|_| Ok(Answer::good())).of_type(1));
        assert!(
            tape.contains("what came back is a device of type 01h, and the unit is one of type 00h"),
            "{tape}"
        );
        let absent = said(Fake::new(|_| Ok(Answer::good())).of_type(0x7f));
        assert!(absent.contains("no logical unit"), "{absent}");
        let mut empty = Fake::new(|_| Ok(Answer::good()));
        empty.inquiry.truncate(2);
        said(empty);
        heard(&io, &nexus, &[]).await;
        assert!(!first.take_seen().is_empty(), "the unit keeps what it had");
    });
}

/// The command keeps the device that it was sent to, and the host's thread closes its node.
#[test]
fn commands_in_flight_end_where_they_are() {
    on_io_thread(|io| async move {
        let (gate, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (waits, count) = (gate.clone(), opened.clone());
        let slow = Arc::new(Fake::new(move |command| {
            if command.cdb.opcode() == 0x28 {
                count.fetch_add(1, Ordering::Relaxed);
                while !waits.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                return Ok(Answer { host: 1, ..Answer::good() });
            }
            Ok(Answer::good())
        }));
        let (nexus, _target, plug) = unit(&io, &slow).await;
        let plug = plug.upgrade().unwrap();
        let mut read = Box::pin(send(&io, &nexus, &READ, &[], 512));
        while opened.load(Ordering::Relaxed) == 0 {
            assert!(io.at_most(Duration::from_millis(5), read.as_mut()).await.is_none());
        }
        plug.put(None, &config()).unwrap();
        let second = good();
        plug.put(Some(second.clone()), &config()).unwrap();
        second.take_seen();
        heard(&io, &nexus, &[(0x29, 0x00)]).await;
        assert_eq!(second.take_seen().len(), 1, "nothing is sent again");
        gate.store(true, Ordering::Relaxed);
        assert_eq!(read.await.0.unwrap_err(), TransportFault::NoTarget);
        closed(&slow);
    });
}

/// Its queue takes less than that before it: commands are split for this one.
#[test]
fn what_the_queue_takes_is_that_of_the_device_that_is_there() {
    on_io_thread(|io| async move {
        let (nexus, _target, plug) = unit(&io, &good()).await;
        let plug = plug.upgrade().unwrap();
        let small = HostLimits { max_bytes: 8 << 10, max_segments: 2, ..HostLimits::default() };
        let second = good();
        plug.put(Some(second.clone()), &GenericConfig { limits: small, block: Some(4096), ..config() })
            .unwrap();
        heard(&io, &nexus, &[(0x29, 0x00)]).await;
        second.take_seen();
        let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 4, 0];
        let (reply, _) = send(&io, &nexus, &read, &[], 16 << 10).await;
        assert_eq!(reply.unwrap().status, Status::Good);
        let halves = [[0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0], [0x28, 0, 0, 0, 0, 2, 0, 0, 2, 0]];
        assert_eq!(second.cdbs(), halves);
        let reset = nexus.manage(&io, TaskManagement::LogicalUnitReset(Lun::default())).await;
        assert_eq!((reply_of(reset), second.resets.load(Ordering::Relaxed)), (true, 1));
    });
}

fn reply_of(reply: crate::scsi::TaskManagementReply) -> bool {
    reply == crate::scsi::TaskManagementReply::Complete
}

/// Just after a login to the fabric it may not answer yet.
#[test]
fn one_that_has_just_come_is_asked_again() {
    let silent = || GenericError::Silent { path: "/dev/sg0".into(), why: "status 02h".into() };
    let mut tries = 0;
    let made = ask_again(|| {
        tries += 1;
        if tries < 3 { Err(silent()) } else { Ok(tries) }
    });
    assert_eq!(made.unwrap(), 3);
    let mut tries = 0;
    let other = ask_again(|| -> Result<(), _> {
        tries += 1;
        Err(GenericError::Absent { path: "/dev/sg0".into(), qualifier: 3 })
    });
    assert!(matches!(other, Err(GenericError::Absent { .. })) && tries == 1);
    let begin = std::time::Instant::now();
    assert!(matches!(ask_again(|| -> Result<(), _> { Err(silent()) }), Err(GenericError::Silent { .. })));
    assert!(begin.elapsed() >= Duration::from_secs(2), "not for ever, but for a while");
}
