//! Ports that the guest creates (docs/virtio-scsi-fc.md, section 7).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use devices::scsi::{Lun, Nexus, Target};
use hba_virtio_scsi::Options;
use hba_virtio_scsi::fc::{
    Emulated, LocalPort, Names, PortState, RemotePort, RemoteState, San, SanListener, View, VportRefusal,
};

use crate::disks::disk;
use crate::events::{event, offer};
use crate::fabric::{ALL, lun};
use crate::guest::{FC_HOST, Guest, HOTPLUG, RESCAN, RING_RESET, VERSION_1, VPORT, into, out};
use crate::rescan::{control, rescan};

const NODE: u64 = 0x2000_0200_0000_0001;
const PORT: u64 = 0x2100_0200_0000_0002;

fn create_request(wwnn: u64, wwpn: u64) -> Vec<u8> {
    let mut bytes = vec![4, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend(wwnn.to_be_bytes());
    bytes.extend(wwpn.to_be_bytes());
    bytes
}

/// Number, response and reason.
fn create(guest: &mut Guest, wwpn: u64) -> (u8, u8, u8) {
    let (answer, used) = control(guest, &create_request(NODE, wwpn), 8);
    assert_eq!((used, &answer[1..4], &answer[6..]), (8, &[0, 0, 0][..], &[0, 0][..]));
    (answer[0], answer[4], answer[5])
}

fn delete(guest: &mut Guest, vport: u32) -> (u8, u8) {
    let (answer, used) = control(guest, &[&[5, 0, 0, 0], &vport.to_le_bytes()[..]].concat(), 4);
    assert_eq!((used, &answer[2..]), (4, &[0, 0][..]));
    (answer[0], answer[1])
}

fn show(guest: &mut Guest, vport: u32) -> Vec<u8> {
    let (answer, used) = control(guest, &[&[6, 0, 0, 0], &vport.to_le_bytes()[..]].concat(), 28);
    assert_eq!(used, 28);
    answer
}

/// What "show" says of a port that is not there.
fn unknown() -> Vec<u8> {
    let mut bytes = vec![0; 28];
    bytes[6..8].copy_from_slice(&[9, 5]);
    bytes
}

/// An emulated fabric with `max` ports for the guest, but not of the name 66.
fn emulated(max: u16, features: u64) -> (Guest, Arc<Emulated>) {
    let san = Emulated::new("vports", [5]);
    san.allow_vports(max, |names| names.wwpn != 66);
    let mut guest = Guest::with_san(Options::default(), 1, BTreeMap::new(), san.clone());
    guest.start(VERSION_1 | features, 16);
    (guest, san)
}

fn max_vports(guest: &Guest) -> [u8; 2] {
    [guest.read::<1>(guest.at.device + 74)[0], guest.read::<1>(guest.at.device + 75)[0]]
}

#[test]
fn the_feature_is_offered_where_there_is_room() {
    for max in [0, 1, 0x0102] {
        let san = Emulated::new("vports", [5]);
        san.allow_vports(max, |_| true);
        let mut guest = Guest::with_san(Options::default(), 1, BTreeMap::new(), san);
        assert_eq!(guest.offered() & VPORT != 0, max > 0);
        assert_eq!(max_vports(&guest), max.to_le_bytes(), "before anything is accepted");
        assert_eq!(guest.negotiate(VERSION_1 | RESCAN | FC_HOST | VPORT), max > 0);
        assert_eq!(max_vports(&guest), if max > 0 { max.to_le_bytes() } else { [0, 0] });
        assert!(!guest.negotiate(VERSION_1 | RESCAN | VPORT), "without FC_HOST");
        assert!(guest.negotiate(VERSION_1 | ALL));
        assert_eq!(max_vports(&guest), [0, 0]);
        assert_eq!(guest.read::<1>(guest.at.device + 36), [1]);
    }
}

/// Byte by byte.
#[test]
fn ports_are_created_shown_and_deleted() {
    let (mut guest, san) = emulated(2, ALL | VPORT);
    assert_eq!(control(&mut guest, &create_request(NODE, PORT), 8), (vec![1, 0, 0, 0, 0, 0, 0, 0], 8));
    let names = san.view().vports[&1].primary;
    assert_eq!((names.wwnn, names.wwpn), (NODE, PORT));
    san.set_vport(1, |port| {
        (port.port_id, port.state, port.fabric) = (0x01_02_03, PortState::LinkDown, NODE);
        (port.speed, port.classes, port.max_frame) = (32_000, 8, 2048);
    });
    let mut expected = vec![3, 2, 1, 0, 7, 1, 0, 0];
    expected.extend([0x20, 0, 2, 0, 0, 0, 0, 1]);
    expected.extend([0, 0x7d, 0, 0, 8, 0, 0, 0, 0, 8, 0, 0]);
    assert_eq!(show(&mut guest, 1), expected);
    assert_eq!(show(&mut guest, 2), unknown());
    assert_eq!(show(&mut guest, 0x1_0001), unknown());
    assert_eq!(create(&mut guest, PORT + 1), (2, 0, 0));
    for (wwpn, reason) in [(66, 1), (PORT, 2), (san.view().local.primary.wwpn, 2), (PORT + 2, 3), (0, 1)] {
        assert_eq!(create(&mut guest, wwpn), (0, 9, reason), "{wwpn:x}");
    }
    let (answer, _) = control(&mut guest, &create_request(0, PORT + 3), 8);
    assert_eq!(answer, [0, 0, 0, 0, 9, 1, 0, 0]);
    for (vport, said) in
        [(0, (9, 5)), (3, (9, 5)), (0x1_0001, (9, 5)), (u32::MAX, (9, 5)), (1, (0, 0)), (1, (9, 5))]
    {
        assert_eq!(delete(&mut guest, vport), said, "{vport}");
    }
    assert_eq!(show(&mut guest, 1), unknown());
    assert_eq!(create(&mut guest, PORT), (1, 0, 0));
}

#[test]
fn requests_that_are_not_understood_fail() {
    let (mut guest, san) = emulated(4, ALL | VPORT);
    let failure = |len: usize, at: usize| {
        let mut bytes = vec![0xee; len];
        bytes[..=at].fill(0);
        bytes[at] = 9;
        bytes
    };
    let requests = [
        (create_request(NODE, PORT), 4, 8),
        (vec![5, 0, 0, 0, 1, 0, 0, 0], 0, 4),
        (vec![6, 0, 0, 0, 1, 0, 0, 0], 6, 28),
    ];
    for (request, at, whole) in &requests {
        for len in 0..*at + 1 {
            assert_eq!(control(&mut guest, request, len), (vec![0xee; len], 0), "{len}");
        }
        for len in at + 1..*whole {
            let used = *at as u32 + 1;
            assert_eq!(control(&mut guest, request, len), (failure(len, *at), used), "{len}");
        }
        for len in 4..request.len() {
            assert_eq!(control(&mut guest, &request[..len], 32), (failure(32, 0), 1), "{len}");
        }
        guest.reset_heap();
    }
    for flags in [1, 0x80] {
        let mut request = create_request(NODE, PORT);
        request[4 + usize::from(flags == 1)] = flags;
        assert_eq!(control(&mut guest, &request, 8), (vec![0, 0, 0, 0, 9, 0, 0, 0], 8));
    }
    assert_eq!(control(&mut guest, &[7, 0, 0, 0, 0, 0, 0, 0], 32), (failure(32, 0), 1));
    // Without the feature there are no such requests.
    guest.start(VERSION_1 | ALL, 16);
    for (request, _, _) in &requests {
        assert_eq!(control(&mut guest, request, 32), (failure(32, 0), 1));
    }
    assert!(san.view().vports.is_empty());
}

/// Vector 0 is that of the configuration.
fn config_interrupts(guest: &Guest) -> usize {
    guest.seat.msi.take().iter().filter(|message| message.data == 0).count()
}

fn generation(guest: &Guest) -> u8 {
    guest.read::<1>(guest.at.common + 21)[0]
}

#[test]
fn a_change_of_a_port_is_told() {
    let (mut guest, san) = emulated(2, ALL | VPORT);
    let mut before = generation(&guest);
    let mut changed = |guest: &Guest| {
        let now = generation(guest);
        (now.wrapping_sub(std::mem::replace(&mut before, now)), config_interrupts(guest))
    };
    changed(&guest);
    assert_eq!(create(&mut guest, PORT), (1, 0, 0));
    assert_eq!(changed(&guest), (1, 1));
    for changes in [1, 0] {
        san.set_vport(1, |port| port.state = PortState::Offline);
        assert_eq!(changed(&guest), (changes, changes.into()));
    }
    san.set_local(|port| port.port_id = 5);
    assert_eq!(changed(&guest), (1, 1));
    assert_eq!(delete(&mut guest, 1), (0, 0));
    assert_eq!(changed(&guest), (1, 1));
}

#[test]
fn ports_go_with_the_driver() {
    let (mut guest, san) = emulated(2, ALL | VPORT);
    assert_eq!(create(&mut guest, PORT), (1, 0, 0));
    // At once, or soon.
    guest.reset();
    guest.wait_for("deletion", || san.view().vports.is_empty());
    guest.start(VERSION_1 | ALL | VPORT, 16);
    assert_eq!(show(&mut guest, 1), unknown());
    for round in 0..50 {
        assert_eq!(
            create(&mut guest, PORT),
            (1, 0, 0),
            "{round}: before the driver's request there is none left"
        );
        guest.reset_heap();
        guest.start(VERSION_1 | ALL | VPORT, 16);
    }
    assert_eq!(create(&mut guest, PORT), (1, 0, 0));
    devices::pci::PciFunction::reset(&*guest.hba);
    guest.wait_for("deletion", || san.view().vports.is_empty());
    guest.place();
    guest.start(VERSION_1 | ALL | VPORT, 16);
    assert_eq!(create(&mut guest, PORT), (1, 0, 0));
    drop(guest);
    assert!(san.view().vports.is_empty(), "the machine has ended");
}

type Answer = Box<dyn FnOnce(Result<u16, VportRefusal>) + Send>;
type Deleted = Box<dyn FnOnce(Result<(), VportRefusal>) + Send>;

/// A fabric that does what the test wishes, when it wishes.
#[derive(Default)]
struct Hosts {
    view: Mutex<View>,
    creating: Mutex<Vec<(Names, Answer)>>,
    deleting: Mutex<Vec<(u16, Deleted)>>,
    all_deleted: Mutex<u32>,
    listener: Mutex<Option<Arc<dyn SanListener>>>,
}

impl San for Hosts {
    fn view(&self) -> Arc<View> {
        Arc::new(self.view.lock().unwrap().clone())
    }
    fn rescan(&self, done: Box<dyn FnOnce() + Send>) {
        done();
    }
    fn set_listener(&self, listener: Option<Arc<dyn SanListener>>) {
        *self.listener.lock().unwrap() = listener;
    }
    fn max_vports(&self) -> u16 {
        3
    }
    fn create_vport(&self, names: Names, done: Answer) {
        self.creating.lock().unwrap().push((names, done));
    }
    fn delete_vport(&self, vport: u16, done: Deleted) {
        self.deleting.lock().unwrap().push((vport, done));
    }
    fn delete_all_vports(&self) {
        *self.all_deleted.lock().unwrap() += 1;
    }
}

impl Hosts {
    fn change(&self, change: impl FnOnce(&mut View)) {
        change(&mut self.view.lock().unwrap());
        let listener = self.listener.lock().unwrap().clone();
        if let Some(listener) = listener {
            listener.changed();
        }
    }

    /// Ends the oldest create that waits with a port of this number; returns the names that were asked for.
    fn created(&self, number: u16) -> Names {
        let (names, done) = self.creating.lock().unwrap().remove(0);
        self.change(|view| {
            let port =
                LocalPort { primary: names, port_id: number.into(), state: PortState::Online, ..view.local };
            view.vports.insert(number, port);
        });
        done(Ok(number));
        names
    }

    fn sees(&self, vport: u16, target: u8, state: RemoteState) {
        let port = Emulated::new("hosts", [target]).view().remotes[&target];
        self.change(|view| {
            view.remotes.insert(target, RemotePort { vport, state, ..port });
        });
    }
}

/// Target 5 is the adapter's own; at 7 there is a disk, whoever sees it.
fn hosts(features: u64) -> (Guest, Arc<Hosts>) {
    let san = Arc::new(Hosts::default());
    *san.view.lock().unwrap() = View::clone(&Emulated::new("hosts", [5]).view());
    let target = Target::new();
    target.attach_native(Lun([0; 8]), disk().1).unwrap();
    let targets = BTreeMap::from([(7, Nexus::new(target, None))]);
    let mut guest = Guest::with_san(Options::default(), 1, targets, san.clone());
    guest.start(VERSION_1 | RING_RESET | features, 16);
    (guest, san)
}

/// Sends a request that waits; returns its head and where the answer comes.
fn begin(guest: &mut Guest, request: &[u8], len: usize) -> (u16, u64) {
    let request_at = guest.alloc_with(request);
    let response = guest.alloc_with(&vec![0xee; len]);
    let head = guest.add(0, &[out(request_at, request.len() as u32), into(response, len as u32)]);
    guest.kick(0);
    (head, response)
}

fn begin_create(guest: &mut Guest, san: &Hosts, wwpn: u64) -> (u16, u64) {
    let before = san.creating.lock().unwrap().len();
    let begun = begin(guest, &create_request(NODE, wwpn), 8);
    guest.wait_for("a create", || san.creating.lock().unwrap().len() > before);
    begun
}

/// Has a port created.
fn create_now(guest: &mut Guest, san: &Hosts, number: u16, wwpn: u64) {
    let (head, response) = begin_create(guest, san, wwpn);
    assert_eq!(san.created(number), Names { wwnn: NODE, wwpn });
    assert_eq!(guest.wait_used(0), (head, 8));
    let [low, high] = number.to_le_bytes();
    assert_eq!(guest.peek(response, 8), [low, high, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn what_takes_long_holds_up_nothing_else() {
    let (mut guest, san) = hosts(ALL | VPORT);
    create_now(&mut guest, &san, 9, PORT);
    let (first, response) = begin_create(&mut guest, &san, PORT + 1);
    let (second, deleted) = begin(&mut guest, &[5, 0, 0, 0, 9, 0, 0, 0], 4);
    guest.wait_for("a delete", || !san.deleting.lock().unwrap().is_empty());
    guest.expect_silence(0);
    assert_eq!(rescan(&mut guest, 0)[0], 5);
    assert_eq!(guest.tmf(5, lun(5, 0), 0), 12);
    assert_eq!(show(&mut guest, 9)[..8], [9, 0, 0, 0, 2, 1, 0, 0]);
    let (vport, done) = san.deleting.lock().unwrap().remove(0);
    assert_eq!(vport, 9);
    san.change(|view| {
        view.vports.remove(&9);
    });
    done(Ok(()));
    assert_eq!((guest.wait_used(0), guest.peek(deleted, 4)), ((second, 4), vec![0; 4]));
    // Who drops it has failed.
    san.creating.lock().unwrap().clear();
    assert_eq!((guest.wait_used(0), guest.peek(response, 8)), ((first, 8), vec![0, 0, 0, 0, 9, 4, 0, 0]));
}

#[test]
fn a_hostile_driver_has_few_under_way() {
    let (mut guest, san) = hosts(ALL | VPORT);
    for number in 0..3 {
        begin_create(&mut guest, &san, PORT + number);
    }
    assert_eq!(create(&mut guest, PORT + 4), (0, 9, 3));
    // Not by a reset either.
    for _ in 0..20 {
        guest.start(VERSION_1 | ALL | VPORT, 16);
        guest.reset_heap();
        assert_eq!(create(&mut guest, PORT + 4), (0, 9, 3));
    }
    assert_eq!(san.creating.lock().unwrap().len(), 3);
    // What comes of a driver that has gone is nobody's.
    san.created(1);
    assert_eq!(show(&mut guest, 1), unknown());
    assert_eq!(delete(&mut guest, 1), (9, 5));
    create_later(&mut guest, &san);
}

/// There is room again.
fn create_later(guest: &mut Guest, san: &Hosts) {
    let (_, response) = begin_create(guest, san, PORT + 5);
    let (names, done) = san.creating.lock().unwrap().pop().unwrap();
    san.change(|view| {
        view.vports.insert(2, LocalPort { primary: names, ..LocalPort::default() });
    });
    done(Ok(2));
    guest.wait_used(0);
    assert_eq!(guest.peek(response, 8), [2, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_reset_ends_a_create() {
    let (mut guest, san) = hosts(ALL | VPORT);
    let (_, response) = begin_create(&mut guest, &san, PORT);
    let begun = Instant::now();
    guest.reset();
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(guest.peek(response, 8), [0xee; 8], "memory is the driver's again");
    guest.wait_for("deletion", || *san.all_deleted.lock().unwrap() == 1);
    san.created(1);
    guest.start(VERSION_1 | ALL | VPORT, 16);
    assert_eq!(show(&mut guest, 1), unknown());
    // A driver that has asked for none leaves none behind.
    guest.reset();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(*san.all_deleted.lock().unwrap(), 1);
}

#[test]
fn a_reset_of_the_control_queue_ends_the_wait_and_no_more() {
    let (mut guest, san) = hosts(ALL | VPORT);
    let (_, response) = begin_create(&mut guest, &san, PORT);
    let begun = Instant::now();
    guest.select(0);
    guest.write(guest.at.common + 58, &1_u16.to_le_bytes());
    guest.wait_for("the queue's reset", || guest.queue_word(0, 58) == 0);
    assert!(begun.elapsed() < Duration::from_secs(2));
    guest.queues.remove(0);
    guest.setup_queue(0, 16, 1);
    guest.queues.rotate_right(1);
    san.created(1);
    assert_eq!(guest.peek(response, 8), [0xee; 8]);
    assert_eq!(show(&mut guest, 1)[..8], [1, 0, 0, 0, 2, 1, 0, 0], "it was created");
    assert_eq!(*san.all_deleted.lock().unwrap(), 0);
}

#[test]
fn the_machine_ends_while_a_create_waits() {
    let (mut guest, san) = hosts(ALL | VPORT);
    begin_create(&mut guest, &san, PORT);
    drop(guest);
    assert_eq!(*san.all_deleted.lock().unwrap(), 1);
    san.created(1);
}

fn next(guest: &mut Guest) -> (u32, [u8; 8], u32) {
    let buffer = offer(guest, 16);
    event(guest, buffer)
}

fn rport(target: u8, reason: u32) -> (u32, [u8; 8], u32) {
    (4, [1, target, 0, 0, 0, 0, 0, 0], reason)
}

const INQUIRY: [u8; 6] = [0x12, 0, 0, 0, 36, 0];

#[test]
fn targets_say_whose_they_are() {
    let (mut guest, san) = hosts(ALL | VPORT);
    create_now(&mut guest, &san, 0x0103, PORT);
    san.sees(0x0103, 7, RemoteState::Online);
    assert_eq!(next(&mut guest), rport(7, 1));
    assert_eq!(rescan(&mut guest, 0)[28..], [2, 0, 0, 0], "the adapter's own");
    let answer = rescan(&mut guest, 6);
    assert_eq!((answer[0], &answer[28..]), (7, &[2, 0, 3, 1][..]));
    assert_eq!(guest.command(2, lun(7, 0), &INQUIRY, &[], 36).response, 0);
    // The number is another one's now.
    create_now(&mut guest, &san, 2, PORT + 1);
    san.sees(2, 7, RemoteState::Online);
    assert_eq!(next(&mut guest), rport(7, 2));
    assert_eq!(rescan(&mut guest, 6)[28..], [2, 0, 2, 0]);
    // With its port it is given up.
    let (_, deleted) = begin(&mut guest, &[5, 0, 0, 0, 2, 0, 0, 0], 4);
    guest.wait_for("a delete", || !san.deleting.lock().unwrap().is_empty());
    let (_, done) = san.deleting.lock().unwrap().remove(0);
    san.change(|view| {
        view.vports.remove(&2);
        view.remotes.remove(&7);
    });
    done(Ok(()));
    guest.wait_used(0);
    assert_eq!(guest.peek(deleted, 4), [0; 4]);
    assert_eq!(next(&mut guest), rport(7, 0));
    assert_eq!(rescan(&mut guest, 6)[28..], [1, 0, 2, 0]);
    assert_eq!(guest.command(2, lun(7, 0), &INQUIRY, &[], 36).response, 6);
}

/// The fabric has not deleted them yet, and says so again and again.
#[test]
fn the_next_driver_reaches_nothing_of_the_ports_before() {
    let (mut guest, san) = hosts(ALL | VPORT);
    create_now(&mut guest, &san, 1, PORT);
    san.sees(1, 7, RemoteState::Online);
    for features in [HOTPLUG, ALL, ALL | VPORT] {
        guest.start(VERSION_1 | features, 16);
        if features & VPORT == 0 {
            guest.hba.look_again(7, Lun([0; 8]));
        }
        san.change(|_| ());
        let buffer = offer(&mut guest, 16);
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(guest.peek(buffer, 16), [0xee; 16], "{features:#x}");
        assert_eq!(guest.command(2, lun(7, 0), &INQUIRY, &[], 36).response, 6);
        if features & RESCAN != 0 {
            let given_up = rescan(&mut guest, 6);
            let id = if features & VPORT != 0 { 7 } else { 0xff };
            assert_eq!((given_up[0], given_up[28] == 2), (id, false));
        }
    }
    assert_eq!(show(&mut guest, 1), unknown());
}

/// A driver that knows ports but none of its own.
#[test]
fn without_the_feature_there_are_no_targets_of_ports() {
    let (mut guest, san) = hosts(ALL | VPORT);
    create_now(&mut guest, &san, 1, PORT);
    san.sees(1, 7, RemoteState::Online);
    san.sees(0, 8, RemoteState::Online);
    // What waits for the driver before is nothing to this one.
    guest.start(VERSION_1 | ALL, 16);
    assert_eq!(next(&mut guest), rport(8, 1));
    offer(&mut guest, 16);
    guest.expect_silence(1);
    let ids: Vec<_> = [0, 6, 9].map(|from| rescan(&mut guest, from)[0]).into();
    assert_eq!(ids, [5, 8, 0xff]);
}
