//! Ports that the guest creates.

use hba_virtio_scsi::fc::PortState;

use super::*;

/// Who has ports created: writes down what it is told.
pub(super) struct Orders(pub(super) Sender<String>);

impl vports::Creates for Orders {
    fn create(&self, vport: u16, names: Names) -> io::Result<()> {
        self.0.send(format!("create {vport} {:x}", names.wwpn)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn delete(&self, vport: u16) -> io::Result<()> {
        self.0.send(format!("delete {vport}")).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

pub(super) fn allowed() -> Option<fc::allowed::Allowed> {
    Some(fc::allowed::Allowed { most: 2, names: "2100020000000001-2100020000000003".parse().unwrap() })
}

const WWPN: u64 = 0x2100_0200_0000_0001;

impl Bench {
    /// What becomes of a port that the guest wants.
    fn create(&self, wwpn: u64) -> mpsc::Receiver<Result<u16, VportRefusal>> {
        let (tell, told) = mpsc::channel();
        let names = Names { wwnn: 0x2000_0200_0000_0009, wwpn };
        self.port.create_vport(names, Box::new(move |result| tell.send(result).unwrap()));
        told
    }

    fn delete(&self, vport: u16) -> mpsc::Receiver<Result<(), VportRefusal>> {
        let (tell, told) = mpsc::channel();
        self.port.delete_vport(vport, Box::new(move |result| tell.send(result).unwrap()));
        told
    }

    fn of(&self, vport: u16, news: News) {
        self.port.take(News::Of(vport, Box::new(news)));
    }

    /// A machine whose own port is known.
    fn with_port() -> Self {
        let bench = Self::new();
        let local = LocalPort {
            primary: Names { wwnn: 0x2000_0200_0000_0009, wwpn: WWPN + 2 },
            ..Default::default()
        };
        bench.port.take(News::View(View { local, ..View::default() }));
        bench.done();
        bench
    }

    fn orders(&self) -> Vec<String> {
        self.orders.try_iter().collect()
    }
}

/// A view with one target.
fn seen(target: u8) -> View {
    let port = RemotePort {
        names: Names { wwnn: 1, wwpn: 2 },
        port_id: 3,
        state: RemoteState::Online,
        transport: 0,
        vport: 0,
    };
    let local = LocalPort { primary: Names { wwnn: 9, wwpn: WWPN }, ..Default::default() };
    View { local, remotes: [(target, port)].into(), ..View::default() }
}

#[test]
fn a_port_of_the_guest_is_there_when_it_is_seen_and_gone_when_it_is_deleted() {
    let bench = Bench::with_port();
    let told = bench.create(WWPN);
    assert_eq!(bench.orders(), ["create 1 2100020000000001"]);
    bench.of(1, News::Port(Box::new(crate::fc_port::tests_host_port())));
    assert!(told.try_recv().is_err(), "nothing is known of it");
    bench.of(1, News::View(seen(255)));
    assert_eq!(told.try_recv(), Ok(Ok(1)));
    let view = bench.port.view();
    assert_eq!((view.vports[&1].primary.wwpn, view.remotes[&255].vport), (WWPN, 1));
    bench.done();
    bench.of(1, News::Unit(255, [0, 5, 0, 0, 0, 0, 0, 0], came("/dev/sdz")));
    bench.done();
    assert_eq!(bench.units().len(), 1);
    // The HBA's own port sees something else, and its guest's what it saw.
    bench.port.take(News::View(View { local: bench.port.view().local, ..View::default() }));
    assert!(bench.port.view().remotes.contains_key(&255));
    let told = bench.delete(1);
    assert_eq!(bench.orders(), ["delete 1"]);
    bench.of(1, News::Unit(255, [0, 5, 0, 0, 0, 0, 0, 0], UnitNews::Gone));
    bench.of(1, News::View(View::default()));
    assert!(told.try_recv().is_err());
    bench.of(1, News::Closed(WWPN, None));
    assert_eq!(told.try_recv(), Ok(Ok(())));
    assert!(bench.port.view().vports.is_empty() && bench.port.view().remotes.is_empty());
    bench.done();
    assert!(bench.units().is_empty());
    assert_eq!(bench.delete(1).recv(), Ok(Err(VportRefusal::Unknown)));
}

#[test]
fn what_the_guest_may_not_have_is_not_asked_for() {
    let bench = Bench::with_port();
    assert_eq!(bench.port.max_vports(), 2);
    assert_eq!(bench.create(7).recv(), Ok(Err(VportRefusal::NotAllowed)));
    assert_eq!(bench.create(WWPN + 2).recv(), Ok(Err(VportRefusal::InUse)), "the HBA's own");
    let first = bench.create(WWPN);
    assert_eq!(bench.create(WWPN).recv(), Ok(Err(VportRefusal::InUse)));
    bench.of(1, News::NotCreated(VportRefusal::NoRoom, "the adapter has none".into()));
    assert_eq!(first.recv(), Ok(Err(VportRefusal::NoRoom)));
    assert_eq!(bench.orders(), ["create 1 2100020000000001"]);
    // The number is free again, and there are no more than two.
    drop((bench.create(WWPN), bench.create(WWPN + 1)));
    assert_eq!(bench.orders(), ["create 1 2100020000000001", "create 2 2100020000000002"]);
}

/// A guest that is reset wants the same ports again before they have gone.
#[test]
fn a_name_is_waited_for_until_it_is_free() {
    let bench = Bench::with_port();
    let first = bench.create(WWPN);
    bench.of(1, News::View(seen(255)));
    assert_eq!(first.recv(), Ok(Ok(1)));
    let second = bench.create(WWPN + 1);
    bench.port.delete_all_vports();
    assert_eq!(second.recv(), Ok(Err(VportRefusal::Failed)));
    bench.orders();
    let again = bench.create(WWPN);
    assert!(again.try_recv().is_err() && bench.orders().is_empty());
    assert_eq!(bench.create(WWPN).recv(), Ok(Err(VportRefusal::InUse)), "one waits already");
    bench.of(1, News::Closed(WWPN, None));
    assert_eq!(bench.orders(), ["create 1 2100020000000001"]);
    // The other has come late, and goes.
    bench.of(2, News::Port(Box::new(crate::fc_port::tests_host_port())));
    bench.of(2, News::Closed(WWPN + 1, None));
    bench.of(1, News::View(seen(255)));
    assert_eq!(again.recv(), Ok(Ok(1)));
    // Who waits for a port that stays hears so.
    let gone = bench.delete(1);
    let next = bench.create(WWPN);
    bench.of(1, News::Closed(WWPN, Some("busy".into())));
    assert_eq!((gone.recv(), next.recv()), (Ok(Err(VportRefusal::Failed)), Ok(Err(VportRefusal::InUse))));
}

/// What is told of a port comes after it is shown.
#[test]
fn a_port_is_out_of_sight_before_its_end_is_told() {
    let bench = Bench::with_port();
    let first = bench.create(WWPN);
    bench.of(1, News::View(seen(255)));
    assert_eq!(first.recv(), Ok(Ok(1)));
    let (tell, told) = mpsc::channel();
    let port = bench.port.clone();
    let says =
        move |result| tell.send((result, port.view().vports.len(), port.view().remotes.len())).unwrap();
    bench.port.delete_vport(1, Box::new(says.clone()));
    // While it goes nothing is behind it that anybody waits for.
    bench.port.take(News::View(View { local: bench.port.view().local, ..View::default() }));
    let view = bench.port.view();
    assert_eq!((view.vports[&1].state, view.remotes[&255].state), (PortState::NotPresent, RemoteState::Lost));
    bench.of(1, News::Closed(WWPN, None));
    assert_eq!(told.recv(), Ok((Ok(()), 0, 0)));
    let second = bench.create(WWPN);
    bench.of(1, News::View(seen(255)));
    assert_eq!(second.recv(), Ok(Ok(1)));
    bench.port.delete_vport(1, Box::new(says));
    bench.of(1, News::NotCreated(VportRefusal::Failed, "it has gone".into()));
    assert_eq!(told.recv(), Ok((Ok(()), 0, 0)));
}

/// The process hangs, or the driver of the host.
#[test]
fn nobody_waits_for_ever() {
    let bench = Bench::with_port();
    let expire = |after| bench.port.vports.expire(Instant::now() + after);
    let (first, second) = (bench.create(WWPN), bench.create(WWPN + 1));
    bench.of(1, News::View(seen(255)));
    assert_eq!(first.recv(), Ok(Ok(1)));
    let deleted = bench.delete(1);
    let next = bench.create(WWPN);
    bench.orders();
    let deletes = fc::vport::DELETION + Duration::from_secs(30);
    expire(deletes - Duration::from_secs(10));
    assert!(deleted.try_recv().is_err() && next.try_recv().is_err() && second.try_recv().is_err());
    expire(deletes);
    assert_eq!(deleted.recv(), Ok(Err(VportRefusal::Failed)));
    assert_eq!(next.recv(), Ok(Err(VportRefusal::Failed)));
    // The fabric may take its time.
    assert!(second.try_recv().is_err());
    expire(deletes + LONG);
    assert_eq!(second.recv(), Ok(Err(VportRefusal::Failed)));
    assert_eq!(bench.orders(), ["delete 2"]);
    // What comes later is not shown, and goes; then its number and its name are free.
    bench.of(2, News::Port(Box::new(crate::fc_port::tests_host_port())));
    bench.of(2, News::Closed(WWPN + 1, None));
    bench.of(1, News::Closed(WWPN, None));
    assert!(bench.port.view().vports.is_empty());
    drop((bench.create(WWPN + 1), bench.create(WWPN)));
    assert_eq!(bench.orders().len(), 2);
}

#[test]
fn the_thread_of_a_port_looks_who_waits() {
    let bench = Bench::with_port();
    assert_eq!(bench.port.vports.until(), Some(Duration::from_secs(30)));
    let none = Vports::new("fc0", None, Box::new(Orders(mpsc::channel().0)), LONG);
    assert_eq!(none.until(), None);
}

#[test]
fn the_log_takes_some_lines_of_what_a_guest_creates() {
    let written = recorded(|| {
        let bench = Bench::with_port();
        for round in 0..50 {
            let told = bench.create(WWPN);
            bench.of(1, News::Port(Box::new(crate::fc_port::tests_host_port())));
            bench.of(1, News::Warning(format!("line {round}")));
            bench.of(1, News::View(seen(255)));
            assert_eq!(told.recv(), Ok(Ok(1)));
            let told = bench.delete(1);
            bench.of(1, News::Closed(WWPN, None));
            assert_eq!(told.recv(), Ok(Ok(())));
        }
    });
    for line in ["the guest has created", "is deleted", "line ", "is target 255"] {
        let lines = written.lines().filter(|written| written.contains(line)).count();
        assert!(lines < 20, "{line}: {lines}");
    }
}

#[test]
fn nobody_waits_for_a_process_that_has_ended() {
    let bench = Bench::with_port();
    let first = bench.create(WWPN);
    bench.of(1, News::View(seen(255)));
    assert_eq!(first.recv(), Ok(Ok(1)));
    let (deleted, next, other) = (bench.delete(1), bench.create(WWPN), bench.create(WWPN + 1));
    bench.port.vports.ended();
    assert!(bench.port.vports.ports().is_empty());
    assert_eq!(deleted.recv(), Ok(Err(VportRefusal::Failed)));
    assert_eq!((next.recv(), other.recv()), (Ok(Err(VportRefusal::Failed)), Ok(Err(VportRefusal::Failed))));
    let Bench { orders, port, .. } = bench;
    drop(orders);
    let (tell, told) = mpsc::channel();
    let names = Names { wwnn: 0x2000_0200_0000_0009, wwpn: WWPN };
    port.create_vport(names, Box::new(move |result| tell.send(result).unwrap()));
    assert_eq!(told.recv(), Ok(Err(VportRefusal::Failed)));
}
