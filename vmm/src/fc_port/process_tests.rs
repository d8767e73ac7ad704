//! What becomes of ports that are made, left and deleted, with a kernel that does it or not.

use std::fs;
use std::path::Path;

use fc::names::Names as Pair;
use fc::testing::{NPORT, Port, Tree};
use fc::vport::{Kernel, WriteError};
use hba_virtio_scsi::fc::Active;

use super::super::inventory::Opening;
use super::super::message::tests::{arrival, device};
use super::super::owned::tests::{tree, wanted as plain};
use super::super::{Origin, switch};
use super::*;

const LONG: Duration = Duration::from_secs(60);

/// A kernel that makes one port of this name, with a host of this number.
struct Maker<'a>(&'a Tree, &'a str, u32);

impl Kernel for Maker<'_> {
    fn write(&mut self, path: &Path, text: &str) -> Result<(), WriteError> {
        assert!(path.ends_with("vport_create"), "{path:?}");
        let (wwpn, wwnn) = text.split_once(':').unwrap();
        let names = (&*format!("0x{wwpn}"), &*format!("0x{wwnn}"));
        self.0.vport(BASE, self.1, names, "Active", Some(self.2));
        Ok(())
    }

    fn pause(&mut self, _: Duration) -> Pause {
        Pause::Over
    }

    fn now(&mut self) -> Duration {
        Duration::ZERO
    }
}

const BASE: &str = "devices/pci0000:00/0000:00:04.0/0000:11:00.0/host7";

/// The names of a port.
fn names(number: u64) -> Pair {
    Pair { wwnn: Wwn::new(0x2000_0212_3456_0000 | number), wwpn: Wwn::new(0x2100_0212_3456_0000 | number) }
}

/// A host, what is stored, and the machine's end of the process.
struct Bench {
    tree: Tree,
    store: Store,
    machine: UnixStream,
    process: UnixStream,
    tell: Tell,
}

impl Bench {
    /// With what the process hears.
    fn new() -> (Self, Receiver<Event>) {
        let (tree, store) = tree();
        let port = Port {
            number: 7,
            wwpn: "0x2100001b32a90007",
            wwnn: "0x2000001b32a90007",
            state: "Online",
            kind: NPORT,
            driver: "qla2xxx",
            npiv: Some((254, 0)),
        };
        tree.host(BASE.rsplit_once('/').unwrap().0, &port);
        let (machine, process) = sys::pair().unwrap();
        machine.set_read_timeout(Some(LONG)).unwrap();
        let (tell, events) = mpsc::channel();
        (Self { tree, store, machine, process, tell }, events)
    }

    /// A process with these HBAs, none of which has a port.
    fn process(&self, list: &[Wanted]) -> Process<'_> {
        let (roots, store) = (self.tree.roots(), self.store.clone());
        let mut process = Process::new(roots, store, &self.process, self.tell.clone(), list.to_vec());
        for hba in &mut process.hbas {
            let names = Names { wwnn: 1, wwpn: 2 };
            hba.settled = true;
            hba.inventory =
                Some(Inventory::new(hba.wanted.clone(), names, Default::default(), Instant::now()));
        }
        process
    }

    /// A port that this process has made.
    fn made(&self, wanted: &Wanted, names: Pair, vport: &str, host: u32) -> Owned {
        let rules = fc::choose::Rules { parent: Some("host7".into()), ..Default::default() };
        let wanted = Wanted { names: Some((names.wwnn, names.wwpn)), rules, ..wanted.clone() };
        owned::own(&wanted, &self.tree.roots(), &self.store, || Maker(&self.tree, vport, host)).unwrap()
    }

    fn file(&self) -> std::path::PathBuf {
        self.tree.path("sys/class/fc_host/host7/vport_delete")
    }

    /// The kernel takes what it is told, or not.
    fn takes(&self, takes: bool) {
        if takes {
            fs::remove_dir(self.file()).unwrap();
            fs::write(self.file(), "").unwrap();
        } else {
            fs::remove_file(self.file()).unwrap();
            fs::create_dir(self.file()).unwrap();
        }
    }

    /// Waits until it is told to delete this port, and does it.
    #[track_caller]
    fn deletes(&self, vport: &str, host: u32, names: Pair) {
        let (until, line) = (Instant::now() + LONG, format!("{}:{}", names.wwpn, names.wwnn));
        while fs::read_to_string(self.file()).unwrap() != line {
            assert!(Instant::now() < until, "nobody has it delete {line}");
            thread::sleep(Duration::from_millis(5));
        }
        let class = |name: String| self.tree.path("sys/class").join(name);
        let device = fs::canonicalize(class(format!("fc_vports/{vport}/device"))).unwrap();
        for link in
            [format!("fc_vports/{vport}"), format!("fc_host/host{host}"), format!("scsi_host/host{host}")]
        {
            fs::remove_file(class(link)).unwrap();
        }
        fs::remove_dir_all(device).unwrap();
    }

    /// What the machine is told next.
    #[track_caller]
    fn told(&self) -> (usize, String) {
        let mut bytes = vec![0; LENGTH];
        let len = (&self.machine).read(&mut bytes).unwrap();
        let (hba, news) = message::read_news(&bytes[..len], vec![]).unwrap();
        (hba, format!("{news:?}"))
    }
}

/// What the process hears next.
#[track_caller]
fn next(events: &Receiver<Event>) -> Event {
    events.recv_timeout(LONG).unwrap()
}

fn wanted(hba: &str, names: Pair) -> Wanted {
    let other = Names { wwnn: 0x2001_0212_3456_0001, wwpn: 0x2101_0212_3456_0001 };
    Wanted {
        hba: format!("hba {hba}"),
        owner: format!("vm1.{hba}"),
        names: Some((names.wwnn, names.wwpn)),
        secondary: other,
        timeout: 1,
        any_oui: true,
        ..plain()
    }
}

fn second() -> Pair {
    Pair { wwnn: Wwn::new(0x2001_0212_3456_0001), wwpn: Wwn::new(0x2101_0212_3456_0001) }
}

fn closed(names: Pair, why: Option<&str>) -> String {
    format!("{:?}", News::Closed(names.wwpn.bits(), why.map(Into::into)))
}

/// The fabric does not answer the logout of one; the end of the machine may have 25 seconds for all.
#[test]
fn a_deletion_that_hangs_holds_up_no_other_port_at_the_end() {
    let (bench, events) = Bench::new();
    let list = [wanted("fc0", names(1)), wanted("fc1", names(2)), wanted("fc2", names(3))];
    let mut process = bench.process(&list);
    // One that has changed its names and is being left, one that changes them, one that is being made.
    let port = bench.made(&list[1], names(2), "vport-7:0-2", 12);
    let hangs = Owned { names: names(9), ..port.clone() };
    process.hbas[0].change = Some(Switch::Leaving(hangs));
    process.hbas[1].owned = Some(port);
    process.hbas[1].change = Some(Switch::Making(Request { number: 1, to: Active::Secondary }));
    process.hbas[2].settled = false;
    thread::scope(|scope| {
        let end = scope.spawn(move || process.end(&events));
        bench.deletes("vport-7:0-2", 12, names(2));
        assert_eq!(bench.told(), (1, closed(names(2), None)));
        // What becomes known late goes, too, and has time of its own.
        let late = bench.made(&list[2], names(3), "vport-7:0-3", 13);
        fs::write(bench.file(), "").unwrap();
        bench.tell.send(Event::Owned(2, Ok(late))).unwrap();
        bench.deletes("vport-7:0-3", 13, names(3));
        assert_eq!(bench.told(), (2, closed(names(3), None)));
        bench.tell.send(Event::Other(1, Err("the machine ends".into()))).unwrap();
        assert!(!end.is_finished());
        bench.tell.send(Event::Left(0, names(9).wwpn, Ok(()))).unwrap();
        assert_eq!(bench.told(), (0, closed(names(9), None)));
    });
    assert!(bench.store.records().unwrap().is_empty());
}

/// It changes its names, and the kernel does not delete the former port.
#[test]
fn a_port_that_was_not_deleted_is_used_again_or_deleted_at_the_end() {
    let (bench, events) = Bench::new();
    let list = [wanted("fc0", names(1))];
    let mut process = bench.process(&list);
    process.hbas[0].owned = Some(bench.made(&list[0], names(1), "vport-7:0-1", 11));
    let former = bench.made(&list[0], second(), "vport-7:0-2", 12);
    bench.takes(false);
    process.leave(0, former.clone());
    let left = |process: &mut Process<'_>| {
        process.take(next(&events), Instant::now()).unwrap();
        assert!(process.hbas[0].change.is_none());
        let (_, warned) = bench.told();
        assert!(
            warned.contains("is still there; it is deleted when the machine goes back to that name, or ends"),
            "{warned}"
        );
        let (_, closed) = bench.told();
        assert!(closed.starts_with("Closed(") && closed.contains("Is a directory"), "{closed}");
    };
    left(&mut process);
    // It goes back to those names.
    process.activate(0, Request { number: 5, to: Active::Secondary }).unwrap();
    process.take(next(&events), Instant::now()).unwrap();
    assert_eq!(process.hbas[0].change.as_ref().and_then(Switch::port), Some(&former));
    assert!(process.hbas[0].kept.is_empty());
    let (_, told) = bench.told();
    assert!(told.starts_with("Other(5, HostPort { vport: \"vport-7:0-2\""), "{told}");
    // And leaves them again. By the end the kernel takes it.
    process.hbas[0].change = None;
    process.leave(0, former);
    while !process.hbas[0].kept.contains(&second().wwpn) {
        process.take(next(&events), Instant::now()).unwrap();
    }
    let _ = [bench.told(), bench.told()];
    bench.takes(true);
    process.hbas[0].owned = None;
    fs::remove_file(bench.store.record_path(names(1).wwpn)).unwrap();
    thread::scope(|scope| {
        scope.spawn(move || process.end(&events));
        bench.deletes("vport-7:0-2", 12, second());
        assert_eq!(bench.told(), (0, closed(second(), None)));
    });
    assert!(bench.store.records().unwrap().is_empty());
}

/// What was given up while it was made, and is there all the same, is told at once.
#[test]
fn what_is_left_of_a_change_that_fails_is_told() {
    let (bench, _events) = Bench::new();
    let list = [wanted("fc0", names(1))];
    let mut process = bench.process(&list);
    process.hbas[0].owned = Some(bench.made(&list[0], names(1), "vport-7:0-1", 11));
    bench.made(&list[0], second(), "vport-7:0-2", 12);
    process.hbas[0].change = Some(Switch::Making(Request { number: 7, to: Active::Secondary }));
    process.take(Event::Other(0, Err("it stays".into())), Instant::now()).unwrap();
    assert_eq!(bench.told(), (0, closed(second(), Some("it stays"))));
    assert_eq!(bench.told(), (0, "Activated(7, Secondary, Some(\"it stays\"))".into()));
}

#[test]
fn a_port_with_other_names_is_made_by_the_same_rules() {
    let (bench, _events) = Bench::new();
    let list = [wanted("fc0", names(1))];
    let mut process = bench.process(&list);
    let of = &mut process.hbas[0];
    // As a definition has them: the configuration has none.
    of.owned = Some(bench.made(&list[0], names(1), "vport-7:0-1", 11));
    assert_eq!(of.wanted.rules, fc::choose::Rules::default());
    for to in [Active::Secondary, Active::Primary] {
        assert_eq!(switch::wanted(of, to).unwrap().rules.parent.as_deref(), Some("host7"), "{to:?}");
    }
}

/// Ports that a guest has created go as those of HBAs do, whatever becomes of them at the moment.
#[test]
fn ports_of_guests_go_at_the_end() {
    let (bench, events) = Bench::new();
    let most = "2100021234560001-21000212345600ff".parse().unwrap();
    let list =
        [Wanted { vports: Some(fc::allowed::Allowed { most: 4, names: most }), ..wanted("fc0", names(1)) }];
    let mut process = bench.process(&list);
    let at = |vport| super::super::slot(1, 0, vport).unwrap();
    let name = |number| Some((names(number).wwnn, names(number).wwpn));
    // One that is there, two that are being made, and one that could not be deleted.
    process.hbas[at(1)].owned = Some(bench.made(&list[0], names(2), "vport-7:0-2", 12));
    process.hbas[at(1)].vport = Vport::There;
    for (vport, number) in [(2, 3), (3, 4)] {
        let of = &mut process.hbas[at(vport)];
        (of.settled, of.vport) = (false, Vport::Making { leaves: false });
        of.wanted.names = name(number);
    }
    thread::scope(|scope| {
        let end = scope.spawn(move || process.end(&events));
        bench.deletes("vport-7:0-2", 12, names(2));
        assert_eq!(bench.told(), (at(1), closed(names(2), None)));
        let late = bench.made(&list[0], names(3), "vport-7:0-3", 13);
        fs::write(bench.file(), "").unwrap();
        bench.tell.send(Event::Created(at(2), Ok(late))).unwrap();
        bench.deletes("vport-7:0-3", 13, names(3));
        assert_eq!(bench.told(), (at(2), closed(names(3), None)));
        assert!(!end.is_finished());
        // The driver has had its time with this one.
        bench.made(&list[0], names(4), "vport-7:0-4", 14);
        fs::write(bench.file(), "").unwrap();
        let failed = (hba_virtio_scsi::fc::VportRefusal::Failed, "it stays".into());
        bench.tell.send(Event::Created(at(3), Err(failed))).unwrap();
        assert_eq!(bench.told(), (0, closed(names(4), Some("it stays"))));
    });
    assert_eq!(fs::read_to_string(bench.file()).unwrap(), "");
    assert_eq!(owned::made(&list[0], &bench.store), [names(4).wwpn].into());
    // Nothing but that holds up a later end, which tries once more.
    let (tell, events) = mpsc::channel();
    let mut process = Process { tell, ..bench.process(&list) };
    process.hbas[at(1)].vport = Vport::Kept;
    process.hbas[at(1)].owned = Some(Owned {
        vport: "vport-7:0-4".into(),
        host: 14,
        names: names(4),
        origin: Origin::Made,
        named: false,
        rules: Default::default(),
    });
    thread::scope(|scope| {
        scope.spawn(move || process.end(&events));
        bench.deletes("vport-7:0-4", 14, names(4));
        assert_eq!(bench.told(), (at(1), closed(names(4), None)));
    });
    assert!(bench.store.records().unwrap().is_empty());
}

/// A change of the HBA's own names has nothing to do with what its guest has, and is making.
#[test]
fn what_is_left_of_a_change_is_no_port_of_the_guest() {
    let (bench, _events) = Bench::new();
    let list = [Wanted {
        vports: Some(fc::allowed::Allowed { most: 4, names: "2100021234560001".parse().unwrap() }),
        ..wanted("fc0", names(1))
    }];
    let mut process = bench.process(&list);
    let at = |vport| super::super::slot(1, 0, vport).unwrap();
    process.hbas[at(1)].owned = Some(bench.made(&list[0], names(2), "vport-7:0-2", 12));
    process.hbas[at(1)].vport = Vport::There;
    bench.made(&list[0], names(3), "vport-7:0-3", 13);
    process.hbas[at(2)].wanted.names = Some((names(3).wwnn, names(3).wwpn));
    process.hbas[at(2)].vport = Vport::Making { leaves: false };
    process.hbas[0].change = Some(Switch::Making(Request { number: 7, to: Active::Secondary }));
    process.take(Event::Other(0, Err("no".into())), Instant::now()).unwrap();
    assert_eq!(bench.told(), (0, "Activated(7, Secondary, Some(\"no\"))".into()));
    assert!(process.hbas[0].kept.is_empty());
}

/// Something that the other port has seen does not go on there.
#[test]
fn all_goes_back_if_it_does_not_go_on() {
    let (bench, _events) = Bench::new();
    let list = [wanted("fc0", names(1))];
    let mut process = bench.process(&list);
    let (roots, begin) = (bench.tree.roots(), Instant::now());
    let seen = |host| Glimpse::read(&roots, host).unwrap().map(Box::new);
    let former = bench.made(&list[0], names(1), "vport-7:0-1", 11);
    let other = bench.made(&list[0], second(), "vport-7:0-2", 12);
    let names = ("0x5006016044602198", "0x50060160c4602198");
    for (vport, host) in [("vport-7:0-1", 11), ("vport-7:0-2", 12)] {
        let host_at = format!("{BASE}/{vport}/host{host}");
        let remote = bench.tree.remote(&host_at, &format!("rport-{host}:0-0"), names, "FCP Target", 0);
        bench.tree.unit(&remote, &format!("{host}:0:0:5"), 0, &[("block", "sdx")]);
    }
    let of = &mut process.hbas[0];
    let inventory = of.inventory.as_mut().unwrap();
    inventory.saw(seen(11).as_deref(), begin);
    for order in inventory.work(begin) {
        let Order::Open(Opening { ticket, address, .. }) = order else { continue };
        let (device, arrival) = (device(&address, "naa.6"), arrival(&address));
        let opened = Opened::New(Box::new(device), Box::new(arrival));
        assert!(inventory.opened(ticket, opened, begin).is_none());
    }
    of.owned = Some(former.clone());
    let request = Request { number: 3, to: Active::Secondary };
    let (look, _poked) = mpsc::channel();
    let until = begin + LONG;
    of.change =
        Some(Switch::Comparing { of: request, port: other.clone(), look, until, missing: Vec::new() });
    let told = |process: &mut Process<'_>, host, after| {
        process.take(Event::Glimpse(0, host, seen(host)), begin + Duration::from_secs(after)).unwrap();
    };
    told(&mut process, 12, 0);
    assert_eq!(process.hbas[0].owned.as_ref(), Some(&other));
    assert!(matches!(&process.hbas[0].change, Some(Switch::Moving { port, .. }) if *port == former));
    // It has its time.
    told(&mut process, 11, 29);
    assert!(matches!(process.hbas[0].change, Some(Switch::Moving { .. })));
    told(&mut process, 11, 30);
    let of = &process.hbas[0];
    assert_eq!((of.owned.as_ref(), of.change.as_ref().and_then(Switch::port)), (Some(&former), Some(&other)));
    assert_eq!(of.inventory.as_ref().unwrap().active(), Active::Primary);
    assert!(matches!(of.change, Some(Switch::Lingering { .. })));
    let (_, said) = bench.told();
    let why = "Activated(3, Secondary, Some(\"not all goes on by its other names: LUN 5 of target 0 did not within 30 s; all is back by";
    assert!(said.starts_with(why), "{said}");
}
