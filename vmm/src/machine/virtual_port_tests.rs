//! News in all orders, of units that answer, fail or hang.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Weak;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::Instant;

use anyhow::anyhow;
use devices::iothread::IoThread;
use devices::mem::ToGuest;
use devices::scsi::generic::{
    Answer, Arrival, Command, Driver, Found, GenericConfig, Host, Identity, Part, Wanted,
};
use devices::scsi::{Allow, Generic, Nexus, Target, TargetGroup};
use devices::storage::Image;
use hba_megasas::Arrival as State;
use hba_virtio_scsi::fc::{LocalPort, RemotePort, RemoteState};

use super::opener::{Made, Returns};
use super::*;
use crate::config::HbaType;
use crate::fc_port::Refused;
use crate::machine::adapter::{HotPlug, UnitState};
use crate::machine::control::Control;
use crate::machine::host_unit::HostUnit;
use crate::machine::space::Space;

const LONG: Duration = Duration::from_secs(60);
const FIRST: [u8; 8] = [0, 5, 0, 0, 0, 0, 0, 0];
const FLAT: [u8; 8] = [0x42, 0x01, 0, 0, 0, 0, 0, 0];
const LEVELS: [u8; 8] = [0, 1, 0, 2, 0, 0, 0, 0];

/// A disk that answers who it is.
struct Disk;

impl Host for Disk {
    fn execute(&self, command: &Command) -> io::Result<Answer> {
        let mut inquiry = [0; 36];
        (inquiry[2], inquiry[3], inquiry[4]) = (6, 2, 31);
        let wrote = ToGuest::new(command.data.window(0, u64::MAX)).write_at(0, &inquiry);
        Ok(Answer { residual: (command.data.len() - wrote as u64) as i32, ..Answer::good() })
    }

    fn reset(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What was done, and devices that hang while they are held.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    held: Mutex<Vec<String>>,
    changed: Condvar,
}

impl Log {
    fn add(&self, line: String) {
        self.lines.lock().unwrap().push(line);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.lines.lock().unwrap())
    }

    fn hold(&self, path: &str) {
        self.held.lock().unwrap().push(path.into());
    }

    fn release(&self) {
        self.held.lock().unwrap().clear();
        self.changed.notify_all();
    }

    fn wait(&self, path: &str) {
        let is_held = |held: &mut Vec<String>| held.iter().any(|held| held == path);
        drop(self.changed.wait_while(self.held.lock().unwrap(), is_held).unwrap());
    }
}

struct Fakes(Arc<Log>);

impl Opens for Fakes {
    fn open(&self, wanted: Wanted, arrival: Arrival) -> Result<Made> {
        let path = arrival.path().to_owned();
        self.0.wait(&path);
        if path == "/dev/dumb" {
            return Err(anyhow!("it does not answer"));
        }
        let limits = HostLimits {
            max_bytes: if path == "/dev/small" { 65536 } else { 1 << 20 },
            ..HostLimits::default()
        };
        let config = GenericConfig {
            name: path.clone(),
            allow: wanted.allow,
            bounce: false,
            shared: false,
            depth: 1,
            limits,
            block: None,
            size: None,
            wanted: None,
        };
        self.0.add(format!("open {path}"));
        let unit = HostUnit::Generic(Generic::new(Arc::new(Disk), config)?);
        Ok(Made { unit, returns: Arc::new(Way(path, self.0.clone())) })
    }

    fn read_only(&self) -> bool {
        false
    }

    fn bounces(&self) -> bool {
        false
    }
}

struct Way(String, Arc<Log>);

impl Returns for Way {
    fn doubted(&self) {
        self.1.wait("doubt");
        self.1.add(format!("{} is doubted", self.0));
    }

    fn trusted(&self) {
        self.1.add(format!("{} is trusted", self.0));
    }

    fn lost(&self) {
        self.1.add(format!("lost {}", self.0));
    }

    fn coming(&self) {
        self.1.add(format!("{} is coming", self.0));
    }

    fn back(&self, arrival: Arrival) -> Result<()> {
        self.1.wait(arrival.path());
        if arrival.path() == "/dev/dumb" {
            return Err(anyhow!("it does not answer"));
        }
        self.1.add(format!("{} back as {}", self.0, arrival.path()));
        Ok(())
    }
}

/// The HBA, and who hears of its fabric.
struct Hba {
    log: Arc<Log>,
    nexuses: Mutex<BTreeMap<u8, Arc<Nexus>>>,
    port: Mutex<Weak<VirtualPort>>,
}

impl HotPlug for Hba {
    fn units(
        &self,
        _: &config::Lun,
        _: &Arc<Image>,
        _: devices::scsi::DiskConfig,
    ) -> Result<Vec<devices::scsi::LogicalUnit>> {
        Err(anyhow!("no images"))
    }

    fn attach_targets(&self, id: u8, targets: &[Arc<Target>]) -> Result<State> {
        self.nexuses.lock().unwrap().insert(id, Nexus::new(targets[0].clone(), None));
        Ok(State::There)
    }

    fn detach_targets(&self, id: u8) -> Result<()> {
        self.log.add(format!("target {id} went"));
        Ok(())
    }
}

impl SanListener for Hba {
    fn changed(&self) {
        let view = self.port.lock().unwrap().upgrade().unwrap().view();
        // What the guest is shown has a target by then.
        assert!(view.remotes.keys().all(|target| self.nexuses.lock().unwrap().contains_key(target)));
        let states: Vec<_> = view
            .remotes
            .iter()
            .map(|(target, port)| format!("{target} {}", port_state(port.state)))
            .collect();
        self.log.add(format!("view: {}", states.join(", ")));
    }

    fn units_changed(&self, target: u8) {
        self.log.add(format!("units of {target}"));
    }
}

struct Bench {
    thread: IoThread,
    adapter: Arc<Adapter>,
    port: Arc<VirtualPort>,
    log: Arc<Log>,
    hba: Arc<Hba>,
    asked: mpsc::Receiver<u64>,
    refused: mpsc::Receiver<Refused>,
    activates: mpsc::Receiver<(u64, Active)>,
    orders: mpsc::Receiver<String>,
}

impl Bench {
    fn new() -> Self {
        Self::with_limit(LONG)
    }

    /// With a port that may be blocked for so long.
    fn with_limit(limit: Duration) -> Self {
        Self::with_times(limit, LONG)
    }

    /// The same, whose names may take so long to change.
    fn with_times(limit: Duration, names_time: Duration) -> Self {
        let thread = IoThread::start("test").unwrap();
        let space = Space::new(Control::new(0).unwrap());
        let (group, log) = (TargetGroup::default(), Arc::<Log>::default());
        let adapter = Arc::new(Adapter::new("fc0", HbaType::VirtioScsi, thread.remote(), &space, &group));
        let (ask, asked): (Sender<u64>, _) = mpsc::channel();
        let (refuse, refused): (Sender<Refused>, _) = mpsc::channel();
        let (activate, activates): (Sender<(u64, Active)>, _) = mpsc::channel();
        let (order, orders) = mpsc::channel();
        let calls = Calls {
            ask: Box::new(move |number| ask.send(number).unwrap()),
            refuse: Box::new(move |one| refuse.send(one).unwrap()),
            activate: Box::new(move |number, active| {
                activate.send((number, active)).map_err(|_| io::ErrorKind::BrokenPipe.into())
            }),
            vports: Vports::new("fc0", of_guests::allowed(), Box::new(of_guests::Orders(order)), LONG),
        };
        let port = VirtualPort::with(&adapter, Arc::new(Fakes(log.clone())), calls, limit, names_time);
        adapter.join(crate::machine::adapter::Fabric::Host(port.clone()));
        let (nexuses, weak) = (Mutex::default(), Mutex::new(Arc::downgrade(&port)));
        let hba = Arc::new(Hba { log: log.clone(), nexuses, port: weak });
        adapter.connect(hba.clone());
        port.set_listener(Some(hba.clone()));
        Self { thread, adapter, port, log, hba, asked, refused, activates, orders }
    }

    fn unit(&self, target: u8, lun: [u8; 8], news: UnitNews) {
        self.port.take(News::Unit(target, lun, news));
    }

    /// Waits until all is done, and says what was.
    #[track_caller]
    fn done(&self) -> Vec<String> {
        assert!(self.port.rescans.wait(LONG), "something hangs");
        while !self.port.units.is_told() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Changes of the fabric are told on the I/O thread.
        let (tell, told) = mpsc::channel();
        self.thread.remote().spawn(move |_| async move { tell.send(()).unwrap() });
        told.recv_timeout(LONG).unwrap();
        self.log.take()
    }

    /// Waits until a port is in this state.
    #[track_caller]
    fn becomes(&self, target: u8, state: RemoteState) {
        let until = Instant::now() + LONG;
        while self.port.view().remotes.get(&target).is_none_or(|port| port.state != state) {
            assert!(Instant::now() < until, "{:?}", self.port.view());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Units with their states.
    fn units(&self) -> Vec<String> {
        let shown = |unit: crate::machine::adapter::UnitInfo| {
            format!("{}:{} {:?}", unit.target, crate::machine::units::shown(unit.lun), unit.state)
        };
        self.adapter.units().into_iter().map(shown).collect()
    }
}

fn arrival(path: &str) -> Arrival {
    let found = Found {
        path: path.into(),
        address: "5:0:0:5".into(),
        limits: HostLimits::default(),
        block: None,
        size: None,
        depth: 1,
    };
    let file = File::open("/dev/null").unwrap();
    Arrival::from_files(found, vec![(Part::Block, file.into())]).unwrap()
}

fn came(path: &str) -> UnitNews {
    let identity = Identity {
        address: "5:0:0:5".into(),
        device_type: 0,
        names: vec!["naa.1".into()],
        vendor: "V".into(),
        product: "P".into(),
        serial: String::new(),
    };
    let wanted = Wanted {
        identity,
        driver: Driver::Block,
        parts: vec![Part::Block],
        allow: Allow::All,
        shared: false,
        directory: "/sys/devices/x".into(),
        number: 1,
    };
    UnitNews::Came(Box::new(wanted), Box::new(arrival(path)), 1)
}

fn back(path: &str) -> UnitNews {
    UnitNews::Back(Box::new(arrival(path)), 2)
}

fn view(states: &[(u8, RemoteState)]) -> News {
    let port = |(target, state): &(u8, RemoteState)| {
        let names = Names { wwnn: 1, wwpn: 0x2100_0200_0000_0000 + u64::from(*target) };
        (*target, RemotePort { names, port_id: 0x01_0200, state: *state, transport: 0, vport: 0 })
    };
    News::View(View { remotes: states.iter().map(port).collect(), ..View::default() })
}

#[test]
fn the_life_of_a_unit() {
    let bench = Bench::new();
    bench.port.take(view(&[(0, RemoteState::Online)]));
    assert_eq!(bench.done(), ["view: 0 online"]);
    bench.unit(0, FIRST, came("/dev/sda"));
    assert_eq!(bench.done(), ["open /dev/sda"]);
    assert_eq!(bench.units(), ["0:5 Attached"]);
    assert_eq!(bench.hba.nexuses.lock().unwrap()[&0].luns(), [Lun(FIRST)]);
    bench.unit(0, FIRST, UnitNews::Resized);
    bench.unit(0, FIRST, UnitNews::Lost);
    assert_eq!(bench.done(), ["lost /dev/sda"]);
    bench.unit(0, FIRST, back("/dev/sdf"));
    assert_eq!(bench.done(), ["/dev/sda is coming", "/dev/sda back as /dev/sdf", "units of 0"]);
    bench.unit(0, FIRST, UnitNews::Gone);
    // Who looked while its device was away may have stopped at it.
    assert_eq!(bench.done(), ["units of 0"]);
    assert_eq!(bench.units(), [] as [&str; 0]);
    assert_eq!(bench.hba.nexuses.lock().unwrap()[&0].luns(), []);
    // Another one at the same number. The target has not gone meanwhile.
    bench.unit(0, FIRST, came("/dev/sdg"));
    assert_eq!(bench.done(), ["open /dev/sdg"]);
    assert_eq!(bench.units(), ["0:5 Attached"]);
}

#[test]
fn a_unit_that_may_be_another_one_is_told_so_whenever_it_hears_of_it() {
    let bench = Bench::new();
    bench.unit(0, FIRST, came("/dev/sda"));
    bench.unit(0, FIRST, UnitNews::Resized);
    bench.done();
    bench.unit(0, FIRST, UnitNews::Doubted);
    bench.unit(0, FIRST, UnitNews::Trusted);
    assert_eq!(bench.done(), ["/dev/sda is doubted", "/dev/sda is trusted"]);
    // While it is opened.
    bench.log.hold("/dev/sdb");
    bench.unit(0, FLAT, came("/dev/sdb"));
    bench.unit(0, FLAT, UnitNews::Doubted);
    bench.log.release();
    assert_eq!(bench.done(), ["open /dev/sdb", "/dev/sdb is doubted"]);
    bench.unit(7, FIRST, UnitNews::Doubted);
    bench.unit(7, FIRST, UnitNews::Trusted);
    assert_eq!(bench.done(), [] as [&str; 0]);
}

/// Between the two the guest would write to what may be another disk.
#[test]
fn a_new_unit_is_doubted_before_the_guest_can_see_it() {
    let bench = Bench::new();
    bench.log.hold("/dev/sda");
    bench.unit(1, FIRST, came("/dev/sda"));
    bench.unit(1, FIRST, UnitNews::Doubted);
    bench.log.hold("doubt");
    bench.log.held.lock().unwrap().retain(|held| held == "doubt");
    bench.log.changed.notify_all();
    let until = Instant::now() + Duration::from_millis(300);
    while Instant::now() < until {
        let nexus = bench.hba.nexuses.lock().unwrap().get(&1).cloned();
        assert!(nexus.is_none_or(|nexus| nexus.luns().is_empty()), "it is visible, and not doubted");
        std::thread::sleep(Duration::from_millis(5));
    }
    bench.log.release();
    assert_eq!(bench.done(), ["open /dev/sda", "/dev/sda is doubted"]);
    assert_eq!(bench.units(), ["1:5 Attached"]);
}

#[test]
fn what_cannot_be_taken_is_said_to_the_process() {
    let bench = Bench::new();
    let refused = |offer, knows| Refused { target: 1, lun: FIRST, offer, knows };
    let said = || {
        bench.done();
        bench.refused.try_iter().collect::<Vec<_>>()
    };
    bench.unit(1, FIRST, back("/dev/sda"));
    assert_eq!(said(), [refused(2, false)]);
    assert!(bench.port.units.is_empty());
    bench.unit(1, FIRST, came("/dev/dumb"));
    assert_eq!(said(), [refused(1, true)]);
    bench.unit(1, FIRST, back("/dev/sda"));
    assert_eq!((said(), bench.units()), (vec![], vec!["1:5 Attached".to_owned()]));
    bench.unit(1, FIRST, UnitNews::Lost);
    bench.unit(1, FIRST, back("/dev/dumb"));
    assert_eq!((said(), bench.units()), (vec![refused(2, true)], vec!["1:5 Attached".to_owned()]));
    bench.unit(1, FIRST, UnitNews::Gone);
    assert_eq!(said(), []);
}

#[test]
fn units_have_the_numbers_of_the_array() {
    let bench = Bench::new();
    for (lun, path) in [(FLAT, "/dev/sdb"), (LEVELS, "/dev/sdc"), (FIRST, "/dev/sda")] {
        bench.unit(3, lun, came(path));
    }
    // A unit may come before its port is shown.
    bench.done();
    assert_eq!(bench.units(), ["3:0x0001000200000000 Attached", "3:5 Attached", "3:513 Attached"]);
    let nexus = bench.hba.nexuses.lock().unwrap()[&3].clone();
    nexus.address_natively(true);
    assert_eq!(nexus.luns(), [Lun(LEVELS), Lun(FIRST), Lun(FLAT)]);
    let host = HostLimits { max_bytes: 1 << 20, ..HostLimits::default() };
    assert_eq!(bench.port.limits(), Some(host));
    bench.unit(3, [0; 8], came("/dev/small"));
    bench.done();
    assert_eq!(bench.port.limits(), Some(HostLimits { max_bytes: 65536, ..host }));
    // Those of the operator's own are at another HBA.
    let said = bench.adapter.detach(3, 5).unwrap_err().to_string();
    let expected = "the units of hba fc0 are those that the array shows its virtual port: map them there, or take another HBA";
    assert_eq!(said, expected);
    assert!(
        bench
            .adapter
            .set_port(Some(3), RemoteState::Lost)
            .unwrap_err()
            .to_string()
            .contains("as the fabric has it")
    );
}

#[test]
fn news_of_what_is_not_there_change_nothing() {
    let bench = Bench::new();
    for news in [UnitNews::Gone, UnitNews::Lost, UnitNews::Resized, back("/dev/sda"), UnitNews::Gone] {
        bench.unit(1, FIRST, news);
    }
    assert_eq!(bench.done(), [] as [&str; 0]);
    assert_eq!(bench.units(), [] as [&str; 0]);
    assert!(bench.port.units.is_empty());
    // One that could not be opened has gone for good, or comes another time.
    bench.unit(1, FIRST, came("/dev/dumb"));
    assert_eq!(bench.done(), [] as [&str; 0]);
    bench.unit(1, FIRST, back("/dev/sda"));
    assert_eq!(bench.done(), ["open /dev/sda"]);
    bench.unit(2, FIRST, came("/dev/dumb"));
    bench.unit(2, FIRST, UnitNews::Gone);
    bench.done();
    assert_eq!(bench.units(), ["1:5 Attached"]);
    // What is there already and comes again is another one.
    bench.unit(1, FIRST, came("/dev/sdx"));
    assert_eq!(bench.done(), ["open /dev/sdx", "units of 1"]);
    bench.unit(1, FIRST, UnitNews::Gone);
    bench.done();
    assert!(bench.port.units.is_empty());
}

#[test]
fn one_that_hangs_holds_up_nobody_and_hears_all() {
    let bench = Bench::new();
    bench.log.hold("/dev/sda");
    bench.unit(0, FIRST, came("/dev/sda"));
    bench.unit(0, FLAT, came("/dev/sdb"));
    let begin = Instant::now();
    while bench.units() != ["0:513 Attached"] {
        assert!(begin.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(1));
    }
    // It is lost while it is asked who it is, and back.
    bench.unit(0, FIRST, UnitNews::Lost);
    bench.unit(0, FIRST, back("/dev/sdc"));
    bench.unit(0, FIRST, UnitNews::Lost);
    bench.log.take();
    bench.log.release();
    assert_eq!(bench.done(), ["open /dev/sda", "lost /dev/sda"]);
    // It goes while it is asked.
    bench.log.hold("/dev/sdd");
    bench.unit(0, FIRST, back("/dev/sdd"));
    bench.unit(0, FIRST, UnitNews::Gone);
    bench.log.release();
    bench.done();
    assert_eq!(bench.units(), ["0:513 Attached"]);
}

#[test]
fn a_thousand_units_come_and_go() {
    let bench = Bench::new();
    bench.port.take(view(&[(0, RemoteState::Online), (1, RemoteState::Online)]));
    let lun = |number: u16| Lun::from_number(number.into()).0;
    let begin = Instant::now();
    for number in 0..500 {
        bench.unit(0, lun(number), came("/dev/sda"));
        bench.unit(1, lun(number), came("/dev/sdb"));
    }
    bench.done();
    assert_eq!(bench.units().len(), 1000);
    println!("1000 units have come after {:?}", begin.elapsed());
    for number in 0..500 {
        for target in 0..2 {
            bench.unit(target, lun(number), UnitNews::Lost);
            bench.unit(target, lun(number), back("/dev/sda"));
        }
    }
    let looks = |target: &str| {
        let of_target = format!("units of {target}");
        move |lines: &[String]| lines.iter().filter(|line| **line == of_target).count()
    };
    let done = bench.done();
    // A look asks all units.
    assert!((1..100).contains(&looks("0")(&done)) && (1..100).contains(&looks("1")(&done)), "{done:?}");
    println!("1000 units are back after {:?}, and have {} looks", begin.elapsed(), looks("0")(&done));
    for number in 0..500 {
        for target in 0..2 {
            bench.unit(target, lun(number), UnitNews::Lost);
            bench.unit(target, lun(number), UnitNews::Gone);
        }
    }
    bench.done();
    assert_eq!(bench.units().len(), 0);
    assert!(bench.port.units.is_empty());
    println!("and are gone after {:?}", begin.elapsed());
}

#[test]
fn who_asks_for_a_look_hears_when_what_was_found_is_there() {
    let bench = Bench::new();
    let (tell, told) = mpsc::channel();
    let rescan = |name: &'static str| {
        let tell = tell.clone();
        bench.port.rescan(Box::new(move || tell.send(name).unwrap()));
    };
    rescan("first");
    rescan("second");
    assert_eq!(bench.asked.try_iter().collect::<Vec<_>>(), [1, 2]);
    bench.log.hold("/dev/sda");
    bench.unit(0, FIRST, came("/dev/sda"));
    bench.port.take(News::Looked(1));
    // What comes later is not waited for.
    bench.log.hold("/dev/late");
    bench.unit(0, FLAT, came("/dev/late"));
    told.recv_timeout(Duration::from_millis(20)).unwrap_err();
    bench.log.held.lock().unwrap().retain(|held| held != "/dev/sda");
    bench.log.changed.notify_all();
    assert_eq!(told.recv_timeout(LONG), Ok("first"));
    told.recv_timeout(Duration::from_millis(20)).unwrap_err();
    bench.log.release();
    bench.port.take(News::Looked(7));
    assert_eq!(told.recv_timeout(LONG), Ok("second"));
    // With the process go those that it never answered, and all that ask later.
    let dropped = Arc::new(());
    let of_first = dropped.clone();
    bench.port.rescan(Box::new(move || drop(of_first)));
    bench.port.rescans.ended();
    let of_second = dropped.clone();
    bench.port.rescan(Box::new(move || drop(of_second)));
    assert_eq!((Arc::strong_count(&dropped), bench.asked.try_iter().collect::<Vec<_>>()), (1, vec![3]));
}

#[test]
fn ports_are_lost_and_back_and_never_go() {
    let bench = Bench::new();
    bench.port.take(view(&[(0, RemoteState::Online), (7, RemoteState::Blocked)]));
    assert_eq!(bench.done(), ["view: 0 online, 7 blocked"]);
    bench.port.take(view(&[(0, RemoteState::Online), (7, RemoteState::Blocked)]));
    assert_eq!(bench.done(), [] as [&str; 0], "nothing has changed");
    bench.port.take(view(&[(0, RemoteState::Lost), (7, RemoteState::Online)]));
    assert_eq!(bench.done(), ["view: 0 lost, 7 online"]);
    assert_eq!(bench.adapter.fabric_view(), Some(bench.port.view()));
    assert_eq!(bench.adapter.targets().len(), 2);
}

/// A command that finds no device, at a port that is there, would fail.
#[test]
fn a_unit_has_its_device_until_its_commands_wait() {
    let bench = Bench::new();
    bench.port.take(view(&[(0, RemoteState::Online)]));
    bench.unit(0, FIRST, came("/dev/sda"));
    bench.done();
    // The thread that tells the HBA has something else to do.
    let (release, held) = mpsc::channel::<()>();
    bench.thread.remote().spawn(move |_| async move {
        let _ = held.recv();
    });
    bench.port.take(view(&[(0, RemoteState::Blocked)]));
    let port = bench.port.clone();
    let lost = std::thread::spawn(move || port.take(News::Unit(0, FIRST, UnitNews::Lost)));
    std::thread::sleep(Duration::from_millis(100));
    assert!(!lost.is_finished() && bench.log.take().is_empty());
    drop(release);
    lost.join().unwrap();
    assert_eq!(bench.done(), ["view: 0 blocked", "lost /dev/sda"]);
    // It does not wait for ever, nor for a thread that has ended.
    let Bench { port, thread, log, .. } = bench;
    port.take(view(&[(0, RemoteState::Online)]));
    drop(thread);
    let begin = Instant::now();
    port.take(view(&[(0, RemoteState::Lost)]));
    port.take(News::Unit(0, FIRST, UnitNews::Lost));
    assert!(begin.elapsed() < HEARS + LONG && log.take().contains(&"lost /dev/sda".to_owned()));
}

/// Commands that wait for a port go on, and the kernel decides.
#[test]
fn when_nobody_tells_any_more_no_port_is_waited_for() {
    let bench = Bench::new();
    let (tell, news) = mpsc::channel();
    bench.port.clone().go_on(news).unwrap();
    tell.send(view(&[(0, RemoteState::Blocked), (7, RemoteState::Lost)])).unwrap();
    bench.becomes(0, RemoteState::Blocked);
    drop(tell);
    bench.becomes(0, RemoteState::Online);
    // Its units may be others when it is back, and nobody asks them.
    assert_eq!(bench.port.view().remotes[&7].state, RemoteState::Lost);
}

/// The process is stopped, or hangs.
#[test]
fn a_port_is_not_blocked_for_ever() {
    let bench = Bench::with_limit(Duration::from_millis(100));
    bench.port.take(view(&[(0, RemoteState::Online), (7, RemoteState::Online)]));
    bench.unit(0, FIRST, came("/dev/sda"));
    bench.unit(7, FIRST, came("/dev/sdb"));
    bench.done();
    let (tell, news) = mpsc::channel();
    bench.port.clone().go_on(news).unwrap();
    tell.send(view(&[(0, RemoteState::Blocked), (7, RemoteState::Lost)])).unwrap();
    bench.becomes(7, RemoteState::Lost);
    bench.becomes(0, RemoteState::Online);
    assert_eq!(bench.port.view().remotes[&7].state, RemoteState::Lost);
    tell.send(view(&[(0, RemoteState::Lost)])).unwrap();
    bench.becomes(0, RemoteState::Lost);
    // Its units may be others, until the process has asked them.
    tell.send(view(&[(0, RemoteState::Online)])).unwrap();
    bench.becomes(0, RemoteState::Online);
    let of_units = || {
        let lines = bench.done().into_iter();
        lines.filter(|line| !line.starts_with("view: ")).collect::<Vec<_>>()
    };
    assert_eq!(of_units(), ["/dev/sda is doubted", "/dev/sda is trusted"]);
    tell.send(view(&[(0, RemoteState::Blocked)])).unwrap();
    bench.becomes(0, RemoteState::Blocked);
    drop(tell);
    bench.becomes(0, RemoteState::Online);
    assert_eq!(of_units(), ["/dev/sda is doubted"]);
}

#[test]
fn the_start_takes_what_was_found_at_first() {
    let bench = Bench::new();
    let (tell, news) = mpsc::channel();
    tell.send(view(&[(0, RemoteState::Online)])).unwrap();
    tell.send(News::Unit(0, FIRST, came("/dev/sda"))).unwrap();
    tell.send(News::Looked(0)).unwrap();
    tell.send(News::Unit(0, FLAT, came("/dev/sdb"))).unwrap();
    bench.port.begin(&news).unwrap();
    assert_eq!(bench.units(), ["0:5 Attached"]);
    tell.send(News::Failed("host5 is Linkdown".into())).unwrap();
    let said = bench.port.begin(&news).unwrap_err().to_string();
    assert_eq!(said, "hba fc0: host5 is Linkdown");
    drop(tell);
    let said = bench.port.begin(&news).unwrap_err().to_string();
    assert!(said.starts_with("hba fc0: the process that has its virtual port has ended"), "{said}");
}

#[test]
fn when_the_machine_ends_nothing_comes_any_more() {
    let bench = Bench::new();
    bench.unit(0, FIRST, came("/dev/sda"));
    bench.done();
    let taken = bench.adapter.take_units();
    assert_eq!(
        taken.units.iter().map(|(name, _)| &**name).collect::<Vec<_>>(),
        ["hba fc0, target 0 lun 5, /dev/sda"]
    );
    bench.unit(0, FLAT, came("/dev/sdb"));
    bench.unit(9, FLAT, came("/dev/sdc"));
    bench.port.take(view(&[(9, RemoteState::Online)]));
    bench.done();
    assert!(bench.adapter.units().is_empty() && bench.adapter.targets().is_empty());
    drop(bench.thread);
}

#[test]
fn a_unit_that_is_away_is_shown_so() {
    // The real way back is that of devices of the host, which has tests of its own: here the state is what the target says.
    let bench = Bench::new();
    bench.unit(0, FIRST, came("/dev/sda"));
    bench.done();
    assert_eq!(bench.adapter.units()[0].state, UnitState::Attached);
    assert_eq!(bench.adapter.units()[0].image.as_deref(), Some(std::path::Path::new("/dev/sda")));
}

fn host_port() -> HostPort {
    HostPort {
        vport: "vport-5:0-3".into(),
        host: 9,
        wwpn: 0x2100_0212_3456_789a,
        wwnn: 0x2000_0212_3456_789a,
        parent: "host5".into(),
        driver: "lpfc".into(),
        device: "0000:10:00.0".into(),
        origin: crate::fc_port::Origin::Made,
    }
}

#[test]
fn the_port_that_the_host_has_is_shown() {
    let bench = Bench::new();
    assert_eq!(bench.adapter.host_port(), None);
    let port = host_port();
    assert_eq!(
        port.to_string(),
        "WWPN 210002123456789a, WWNN 200002123456789a, vport-5:0-3 with host9 on host5 (lpfc, 0000:10:00.0); made, and goes with the \
         machine"
    );
    bench.port.take(News::Port(Box::new(port.clone())));
    assert_eq!(bench.adapter.host_port(), Some(port));
}

/// The port with the other names.
fn second_port() -> HostPort {
    HostPort { wwpn: 7, vport: "vport-5:0-4".into(), host: 12, ..host_port() }
}

/// Who has asked for other names hears what became of that, in the words of the process.
#[test]
fn other_names_are_waited_for() {
    let bench = Bench::new();
    bench.port.take(News::Port(Box::new(host_port())));
    let asks = |names, answers: &dyn Fn(u64) -> Vec<News>| {
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| bench.adapter.set_names(names).map_err(|error| format!("{error:#}")));
            let (number, asked) = bench.activates.recv_timeout(LONG).unwrap();
            assert_eq!(asked, names);
            answers(number).into_iter().for_each(|news| bench.port.take(news));
            waits.join().unwrap()
        })
    };
    let other = |number| News::Other(number, Box::new(second_port()));
    let less = || Some("it sees less".into());
    let fails = |number| vec![other(number), News::Activated(number, Active::Secondary, less())];
    assert_eq!(asks(Active::Secondary, &fails), Err("hba fc0: it sees less".into()));
    assert_eq!(bench.adapter.host_port(), Some(host_port()));
    let has = |number| vec![News::Activated(number, Active::Secondary, None)];
    let goes = |number| vec![other(number), News::Activated(number, Active::Secondary, None)];
    assert_eq!(asks(Active::Secondary, &goes), Ok(()));
    assert_eq!(bench.adapter.host_port(), Some(second_port()));
    // It has them already.
    assert_eq!(asks(Active::Secondary, &has), Ok(()));
    assert_eq!(bench.adapter.host_port(), Some(second_port()));
}

/// What became of a request that nobody waits for any more is nobody else's answer, and the port is known all the same.
#[test]
fn a_late_answer_is_not_taken_for_another_one() {
    let bench = Bench::with_times(LONG, Duration::from_secs(2));
    bench.port.take(News::Port(Box::new(host_port())));
    let asks = |names| bench.adapter.set_names(names).map_err(|error| format!("{error:#}"));
    let late = asks(Active::Secondary).unwrap_err();
    assert!(late.contains("nothing was heard of its other names within 2 s"), "{late}");
    let (first, _) = bench.activates.recv_timeout(LONG).unwrap();
    bench.port.take(News::Other(first, Box::new(second_port())));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| asks(Active::Primary));
        let (number, _) = bench.activates.recv_timeout(LONG).unwrap();
        assert_ne!(number, first);
        // One that was refused meanwhile, and then what is late.
        bench.port.take(News::Activated(77, Active::Primary, Some("it is changing its names".into())));
        bench.port.take(News::Activated(first, Active::Secondary, None));
        assert_eq!(bench.adapter.host_port(), Some(second_port()));
        bench.port.take(News::Activated(number, Active::Primary, Some("not now".into())));
        assert_eq!(waits.join().unwrap(), Err("hba fc0: not now".into()));
    });
}

#[test]
fn clients_that_ask_in_turn_hear_each_of_its_own() {
    let bench = Bench::new();
    let (hears, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let client = || {
            for _ in 0..2000 {
                match bench.port.activate(Active::Secondary) {
                    Ok(()) => hears.fetch_add(1, Ordering::Relaxed),
                    Err(error) if error.to_string().contains("being changed already") => continue,
                    Err(error) => {
                        println!("{error:#}");
                        ended.fetch_add(1, Ordering::Relaxed)
                    }
                };
            }
        };
        let clients = [scope.spawn(client), scope.spawn(client)];
        let mut answered = 0;
        while clients.iter().any(|client| !client.is_finished()) {
            if let Ok((number, names)) = bench.activates.recv_timeout(Duration::from_millis(1)) {
                bench.port.take(News::Activated(number, names, None));
                answered += 1;
            }
        }
        assert_eq!(hears.load(Ordering::Relaxed), answered);
    });
    assert_eq!(ended.load(Ordering::Relaxed), 0);
}

/// What is logged meanwhile.
fn recorded(what: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let written = Written::default();
    let writer = written.clone();
    let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(log, what);
    let written = written.0.lock().unwrap().clone();
    String::from_utf8(written).unwrap()
}

/// An array can have the process say any number of them.
#[test]
fn the_log_takes_some_warnings_of_a_port_at_a_time() {
    let bench = Bench::new();
    let written = recorded(|| {
        (0..1000).for_each(|number| bench.port.take(News::Warning(format!("line {number}"))));
    });
    let lines = written.lines().filter(|line| line.contains("hba fc0: line")).count();
    assert!((1..20).contains(&lines), "{lines}");
}

#[path = "virtual_port/vports_tests.rs"]
mod of_guests;
