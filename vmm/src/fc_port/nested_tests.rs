use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use fc::allowed::Allowed;
use fc::glimpse::Glimpse;
use fc::testing::Tree;
use hba_virtio_scsi::fc::{Names, VportRefusal};

use super::super::message::{self, LENGTH};
use super::super::owned::Owned;
use super::super::owned::tests::{tree, wanted};
use super::super::process::{Event, Process};
use super::super::{News, Origin, Wanted, place, slot};
use super::Vport;
use crate::keeper::sys;

const NODE: u64 = 0x2000_0212_3456_789a;
const FIRST: u64 = 0x2100_0200_0000_0001;

fn owned(host: u32, wwnn: u64, wwpn: u64) -> Owned {
    let names = fc::names::Names { wwnn: fc::Wwn::new(wwnn), wwpn: fc::Wwn::new(wwpn) };
    Owned {
        vport: format!("vport-3:0-{host}"),
        host,
        names,
        origin: Origin::Made,
        named: false,
        rules: Default::default(),
    }
}

fn names(wwpn: u64) -> Names {
    Names { wwnn: NODE, wwpn }
}

struct Bench {
    tree: Tree,
    machine: UnixStream,
    events: Receiver<Event>,
}

impl Bench {
    /// Calls `test` with a process of one HBA that has its port, and the machine's end.
    fn run(test: impl FnOnce(&Self, &mut Process<'_>)) {
        let (tree, store) = tree();
        let (machine, theirs) = sys::pair().unwrap();
        machine.set_nonblocking(true).unwrap();
        let (tell, events) = mpsc::channel();
        let vports = Some(Allowed { most: 2, names: "2100020000000001-2100020000000003".parse().unwrap() });
        let list = vec![Wanted { vports, names: None, ..wanted() }];
        let mut process = Process::new(tree.roots(), store, &theirs, tell, list);
        let bench = Self { tree, machine, events };
        process.own(0, Ok(owned(7, NODE, 0xa00)), Instant::now()).unwrap();
        process.work(Instant::now()).unwrap();
        bench.heard();
        test(&bench, &mut process);
    }

    /// What the machine has heard, of which port.
    fn heard(&self) -> Vec<(u16, News)> {
        let (mut all, mut bytes) = (Vec::new(), vec![0; LENGTH]);
        while let Ok(len) = (&self.machine).read(&mut bytes) {
            let (slot, news) = message::read_news(&bytes[..len], Vec::new()).unwrap();
            let (hba, vport) = place(1, slot);
            assert_eq!(hba, 0);
            all.push((vport, news));
        }
        all
    }

    /// The next thing that a thread has done.
    fn event(&self) -> Event {
        loop {
            match self.events.recv_timeout(Duration::from_secs(30)).unwrap() {
                Event::Glimpse(..) => {}
                event => return event,
            }
        }
    }
}

#[test]
fn each_port_has_a_slot_of_its_own() {
    assert_eq!((slot(2, 1, 0), slot(2, 0, 1), slot(2, 1, 64)), (Some(1), Some(2), Some(2 + 127)));
    for (hba, vport) in [(0, 0), (1, 0), (0, 1), (0, 64), (1, 1), (1, 64)] {
        assert_eq!(place(2, slot(2, hba, vport).unwrap()), (hba, vport));
    }
    assert_eq!((slot(2, 2, 0), slot(2, 0, 65), slot(2, usize::MAX, 1)), (None, None, None));
}

/// Whoever has taken over the machine asks for what its guest may not have.
#[test]
fn names_and_numbers_are_looked_at_here_as_well() {
    Bench::run(|bench, process| {
        let refused = |bench: &Bench| match &bench.heard()[..] {
            [(vport, News::NotCreated(refusal, why))] => (*vport, *refusal, why.clone()),
            other => panic!("{other:?}"),
        };
        process.create(0, 1, names(FIRST + 3)).unwrap();
        let said = "its WWPN 2100020000000004 is not among vport_names of [hba.fc]; add it there to allow it";
        assert_eq!(refused(bench), (1, VportRefusal::NotAllowed, said.into()));
        process.create(0, 2, Names { wwnn: NODE + 1, wwpn: FIRST }).unwrap();
        assert!(matches!(refused(bench), (2, VportRefusal::NotAllowed, why) if why.starts_with("its WWNN ")));
        // What no port can be is not answered.
        for (hba, vport) in [(0, 0), (0, 65), (1, 1), (usize::MAX, u16::MAX)] {
            process.create(hba, vport, names(FIRST)).unwrap();
            process.delete(hba, vport).unwrap();
        }
        assert!(bench.heard().is_empty());
        for vport in [1, 2] {
            process.hbas[slot(1, 0, vport).unwrap()].vport = Vport::There;
        }
        process.create(0, 3, names(FIRST)).unwrap();
        assert_eq!(refused(bench).1, VportRefusal::NoRoom);
        process.create(0, 1, names(FIRST)).unwrap();
        assert_eq!(refused(bench).1, VportRefusal::Failed, "there is one");
    });
}

#[test]
fn a_port_is_shown_looked_at_and_parted_with() {
    Bench::run(|bench, process| {
        let at = slot(1, 0, 1).unwrap();
        process.hbas[at].vport = Vport::Making { leaves: false };
        process.created(at, Ok(owned(8, NODE, FIRST)), Instant::now()).unwrap();
        assert!(matches!(&bench.heard()[..], [(1, News::Port(port))] if port.wwpn == FIRST));
        process.work(Instant::now()).unwrap();
        // A look is over when both ports were looked at.
        bench.heard();
        process.look(0, 9, Instant::now());
        assert_eq!((process.hbas[0].asked, process.hbas[at].asked), (9, 9));
        process.looked(0, 9).unwrap();
        assert!(bench.heard().is_empty());
        process.looked(at, 9).unwrap();
        assert!(matches!(bench.heard()[..], [(0, News::Looked(9))]));
        process.look(0, 10, Instant::now());
        process.looked(0, 10).unwrap();
        assert!(bench.heard().is_empty());
        // Nobody waits for one that goes.
        process.delete(0, 1).unwrap();
        let told = bench.heard();
        let [(1, News::View(view)), (0, News::Looked(10))] = &told[..] else { panic!("{told:?}") };
        assert!(view.remotes.is_empty());
        assert!(process.hbas[at].inventory.is_none() && process.hbas[at].vport == Vport::Leaving);
        // What comes of its life is nobody's.
        let late = Event::Glimpse(at, 8, Some(Box::new(Glimpse::default())));
        process.take(late, Instant::now()).unwrap();
        let Event::Deleted(slot, wwpn, result) = bench.event() else { panic!() };
        process.deleted(slot, wwpn, result).unwrap();
        assert!(matches!(bench.heard()[..], [(1, News::Closed(FIRST, None))]));
        assert!(process.hbas[at].owned.is_none() && process.hbas[at].vport == Vport::Free);
    });
}

/// The guest was reset meanwhile.
#[test]
fn one_that_is_not_wanted_any_more_goes_as_soon_as_it_has_come() {
    Bench::run(|bench, process| {
        let at = slot(1, 0, 2).unwrap();
        process.hbas[at].vport = Vport::Making { leaves: false };
        process.delete(0, 2).unwrap();
        assert!(bench.heard().is_empty());
        process.created(at, Ok(owned(8, NODE, FIRST)), Instant::now()).unwrap();
        assert!(matches!(bench.heard()[..], [(2, News::Port(_))]));
        assert!(matches!(bench.event(), Event::Deleted(..)) && process.hbas[at].inventory.is_none());
        // One that did not come has its place free.
        process.hbas[at].vport = Vport::Making { leaves: true };
        process.created(at, Err((VportRefusal::InUse, "taken".into())), Instant::now()).unwrap();
        assert!(matches!(bench.heard()[..], [(2, News::NotCreated(VportRefusal::InUse, _))]));
        assert_eq!(process.hbas[at].vport, Vport::Free);
    });
}

/// What cannot be deleted is kept for the end.
#[test]
fn one_that_stays_keeps_its_slot() {
    Bench::run(|bench, process| {
        let at = slot(1, 0, 1).unwrap();
        (process.hbas[at].vport, process.hbas[at].owned) = (Vport::Leaving, Some(owned(8, NODE, FIRST)));
        process.deleted(at, FIRST, Err("busy".into())).unwrap();
        assert!(matches!(&bench.heard()[..], [(1, News::Closed(FIRST, Some(why)))] if why == "busy"));
        process.create(0, 1, names(FIRST + 1)).unwrap();
        assert!(matches!(bench.heard()[..], [(1, News::NotCreated(VportRefusal::Failed, _))]));
        assert!(process.hbas[at].owned.is_some());
    });
}

/// It was given up half-made, and the driver does not take it back.
#[test]
fn what_is_left_of_one_is_not_forgotten() {
    Bench::run(|bench, process| {
        let at = slot(1, 0, 1).unwrap();
        let (wwnn, wwpn) = (fc::Wwn::new(NODE), fc::Wwn::new(FIRST));
        let half = Wanted { names: Some((wwnn, wwpn)), ..wanted() };
        super::super::owned::tests::owned(&bench.tree, &process.store, &half).unwrap();
        process.hbas[at].vport = Vport::Making { leaves: false };
        process.hbas[at].wanted.names = Some((wwnn, wwpn));
        let failed = |process: &mut Process<'_>| {
            let made = Err((VportRefusal::Failed, "and it is still there".into()));
            process.take(Event::Created(at, made), Instant::now()).unwrap();
        };
        failed(process);
        let told = bench.heard();
        let [(0, News::Closed(FIRST, Some(why))), (1, News::NotCreated(VportRefusal::Failed, _))] = &told[..]
        else {
            panic!("{told:?}")
        };
        assert_eq!(why, "and it is still there");
        assert!(process.hbas[0].kept.contains(&wwpn) && process.hbas[at].vport == Vport::Free);
        // It is told once, and is known when the name is wanted again.
        process.hbas[at].vport = Vport::Making { leaves: false };
        failed(process);
        assert!(matches!(bench.heard()[..], [(1, News::NotCreated(..))]));
        let (_, known) = process.wanted(0, at, names(FIRST)).unwrap();
        assert_eq!((known.is_left, known.node), (true, wwnn));
        assert!(!process.wanted(0, at, names(FIRST + 1)).unwrap().1.is_left);
        // By now it has gone.
        process.hbas[at].vport = Vport::Making { leaves: false };
        process.take(Event::Created(at, Ok(owned(8, NODE, FIRST))), Instant::now()).unwrap();
        assert!(matches!(bench.heard()[..], [(0, News::Closed(FIRST, None)), (1, News::Port(_))]));
        assert!(process.hbas[0].kept.is_empty());
    });
}
