//! The port on a fabric (docs/virtio-scsi-fc.md): what a driver is shown, what it can ask for, and how it addresses units.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use devices::pci::PciFunction;
use devices::scsi::{Image, Lun, Nexus, Target};
use hba_virtio_scsi::fc::{Active, Emulated, PortState, RemoteState, San, SanListener, View};
use hba_virtio_scsi::{Interface, Options};

use crate::disks::{Bench, disk};
use crate::events::{event, offer};
use crate::guest::{
    CHANGE, FC_HOST, Guest, HOTPLUG, NATIVE, Part, RESCAN, RPORT_EVENTS, VERSION_1, into, lun, out,
};

pub const ALL: u64 = HOTPLUG | RESCAN | NATIVE | FC_HOST | RPORT_EVENTS;

/// A driver on a fabric with targets 5 and 9; only 5 has a target, with a disk at LUN 0.
pub struct Fabric {
    pub guest: Guest,
    pub san: Arc<Emulated>,
    pub target: Arc<Target>,
}

impl Fabric {
    pub fn new(features: u64) -> Self {
        let mut fabric = Self::cold();
        fabric.guest.start(VERSION_1 | features, 16);
        fabric.settle(lun(5, 0));
        fabric
    }

    pub fn cold() -> Self {
        let san = Emulated::new("test", [5, 9]);
        let target = Target::new();
        target.attach_native(Lun([0; 8]), disk().1).unwrap();
        let targets = BTreeMap::from([(5, Nexus::new(target.clone(), None))]);
        let guest = Guest::with_san(Options::default(), 1, targets, san.clone());
        Self { guest, san, target }
    }

    /// Fetches the unit attentions of a unit.
    pub fn settle(&mut self, lun: [u8; 8]) {
        let ready = |guest: &mut Guest| guest.command(2, lun, &[0; 6], &[], 0);
        assert!((0..8).any(|_| ready(&mut self.guest).status == 0));
    }

    pub fn send(&mut self, lun: [u8; 8], cdb: &[u8], len: usize) -> (u8, u8, Vec<u8>) {
        self.guest.reset_heap();
        let reply = self.guest.command(2, lun, cdb, &[], len);
        (reply.response, reply.status, reply.data)
    }

    /// The peripheral qualifier and device type.
    fn inquiry(&mut self, lun: [u8; 8]) -> u8 {
        let (response, status, data) = self.send(lun, &[0x12, 0, 0, 0, 36, 0], 36);
        assert_eq!((response, status), (0, 0));
        data[0]
    }

    fn luns(&mut self, lun: [u8; 8]) -> Vec<[u8; 8]> {
        let (response, status, data) = self.send(lun, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], 256);
        assert_eq!((response, status), (0, 0));
        let len = u32::from_be_bytes(data[..4].try_into().unwrap()) as usize;
        data[8..8 + len].chunks(8).map(|lun| lun.try_into().unwrap()).collect()
    }

    fn config(&self, offset: u64, len: usize) -> Vec<u8> {
        (0..len as u64).map(|i| self.guest.read::<1>(self.guest.at.device + offset + i)[0]).collect()
    }

    fn generation(&self) -> u8 {
        self.guest.read::<1>(self.guest.at.common + 21)[0]
    }
}

/// Sends a control request; returns what is in the response buffer, and how much of it the device says that it wrote.
fn control(guest: &mut Guest, request: &[u8], len: usize) -> (Vec<u8>, u32) {
    let response = guest.alloc_with(&vec![0xee; len]);
    let mut parts = vec![];
    if !request.is_empty() {
        let request_at = guest.alloc_with(request);
        parts.push(out(request_at, request.len() as u32));
    }
    if len > 0 {
        parts.push(into(response, len as u32));
    }
    let sent = guest.add(0, &parts);
    guest.kick(0);
    let (head, used) = guest.wait_used(0);
    assert_eq!(head, sent);
    (guest.peek(response, len), used)
}

fn rescan(guest: &mut Guest, next_id: u32) -> Vec<u8> {
    let mut request = vec![3, 0, 0, 0];
    request.extend(next_id.to_le_bytes());
    let (answer, used) = control(guest, &request, 32);
    assert_eq!(used, 32);
    answer
}

#[test]
fn features_are_offered_with_a_fabric_only() {
    let bits = |guest: &Guest| guest.offered() & 0x1f0;
    assert_eq!(bits(&Fabric::cold().guest), 0xf0);
    assert_eq!(bits(&Bench::cold(Options::default(), 1).guest), 0);
}

/// Section 1: what a bit needs.
#[test]
fn features_need_others() {
    let mut guest = Fabric::cold().guest;
    for (features, good) in [
        (0, true),
        (RESCAN, true),
        (NATIVE, true),
        (RESCAN | FC_HOST, true),
        (RESCAN | HOTPLUG | RPORT_EVENTS, true),
        (FC_HOST, false),
        (RPORT_EVENTS | HOTPLUG, false),
        (RPORT_EVENTS | RESCAN, false),
        (ALL | 1 << 8, false),
    ] {
        assert_eq!(guest.negotiate(VERSION_1 | features), good, "{features:#x}");
    }
}

/// Section 2, byte by byte.
#[test]
fn the_configuration_space_has_the_port_of_the_guest() {
    let fabric = Fabric::new(ALL);
    fabric.san.set_local(|port| {
        (port.primary.wwnn, port.primary.wwpn) = (0x2000_0200_0000_0001, 0x2100_0200_0000_0002);
        (port.secondary.wwnn, port.secondary.wwpn) = (0x2000_0200_0000_0003, 0x2100_0200_0000_0004);
        (port.active, port.state) = (Active::Secondary, PortState::LinkDown);
        (port.port_id, port.fabric, port.speed) = (0x01_02_03, 0x1000_0200_0000_0005, 32_000);
        (port.classes, port.max_frame) = (8, 2048);
    });
    let mut expected = vec![1, 0, 0, 0];
    expected.extend([0x20, 0, 2, 0, 0, 0, 0, 1, 0x21, 0, 2, 0, 0, 0, 0, 2]);
    expected.extend([0x20, 0, 2, 0, 0, 0, 0, 3, 0x21, 0, 2, 0, 0, 0, 0, 4]);
    expected.extend([2, 7, 0, 0, 3, 2, 1, 0]);
    expected.extend([0x10, 0, 2, 0, 0, 0, 0, 5]);
    expected.extend([0, 0x7d, 0, 0, 8, 0, 0, 0, 0, 8, 0, 0]);
    assert_eq!(fabric.config(36, 64), expected);
    assert_eq!(fabric.config(100, 16), [0; 16]);
}

/// The standard's part is the same whatever is behind it, and the rest is there for those who want it, or have not decided yet.
#[test]
fn the_configuration_space_is_the_plain_one_without_fc_host() {
    let mut plain = Bench::cold(Options::default(), 1).guest;
    let mut fabric = Fabric::cold();
    let bytes = |guest: &Guest| (0..200).map(|i| guest.read::<1>(guest.at.device + i)[0]).collect::<Vec<_>>();
    let standard = bytes(&plain);
    assert_eq!(bytes(&fabric.guest)[..36], standard[..36]);
    assert_eq!(bytes(&fabric.guest)[36..40], [1, 0, 0, 0], "before anything is accepted");
    assert!(fabric.guest.negotiate(VERSION_1 | HOTPLUG | RESCAN) && plain.negotiate(VERSION_1 | HOTPLUG));
    assert_eq!(bytes(&fabric.guest), standard);
    assert!(fabric.guest.negotiate(VERSION_1 | RESCAN | FC_HOST));
    assert_eq!(bytes(&fabric.guest)[36..40], [1, 0, 0, 0]);
}

#[test]
fn a_change_of_the_port_is_told() {
    for features in [ALL, HOTPLUG | CHANGE] {
        let fabric = Fabric::new(features);
        // Vector 0 is that of the configuration.
        let interrupts = || fabric.guest.seat.msi.take().iter().filter(|message| message.data == 0).count();
        interrupts();
        let generation = fabric.generation();
        fabric.san.set_local(|port| port.state = PortState::LinkDown);
        assert_eq!(fabric.generation(), generation.wrapping_add(1));
        assert_eq!(interrupts(), usize::from(features == ALL));
        // The same again, and what is not in the configuration space.
        fabric.san.set_local(|port| port.state = PortState::LinkDown);
        fabric.san.set_state(9, RemoteState::Lost);
        assert_eq!(fabric.generation(), generation.wrapping_add(1));
        assert_eq!(interrupts(), 0);
    }
}

/// Section 3: one target after the other.
#[test]
fn rescan_enumerates_the_targets() {
    let mut fabric = Fabric::new(ALL);
    fabric.san.set_state(9, RemoteState::Blocked);
    let view = fabric.san.view();
    let expected = |id: u8, state: u8| {
        let port = view.remotes[&id];
        let mut bytes = vec![id, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(port.names.wwnn.to_be_bytes());
        bytes.extend(port.names.wwpn.to_be_bytes());
        bytes.extend(port.port_id.to_le_bytes());
        bytes.extend([state, 0, 0, 0]);
        bytes
    };
    let mut end = vec![0xff, 0xff, 0xff, 0xff];
    end.resize(32, 0);
    for (next_id, answer) in [
        (0xffff_ffff, expected(5, 2)),
        (0, expected(5, 2)),
        (5, expected(5, 2)),
        (6, expected(9, 4)),
        (10, end.clone()),
        (255, end.clone()),
        (256, end.clone()),
        (0xffff_fffe, end),
    ] {
        assert_eq!(rescan(&mut fabric.guest, next_id), answer, "{next_id:#x}");
    }
    fabric.san.set_state(9, RemoteState::Lost);
    assert_eq!(rescan(&mut fabric.guest, 6), expected(9, 1));
}

#[test]
fn rescan_fails_where_it_cannot_be_answered() {
    let mut fabric = Fabric::new(ALL);
    let request = [3, 0, 0, 0, 0, 0, 0, 0];
    let failure = |len: usize, at: usize| {
        let mut bytes = vec![0xee; len];
        bytes[..=at].fill(0);
        bytes[at] = 9;
        bytes
    };
    for len in [0, 1, 29] {
        assert_eq!(control(&mut fabric.guest, &request, len), (vec![0xee; len], 0), "{len}");
    }
    for len in [30, 31] {
        assert_eq!(control(&mut fabric.guest, &request, len), (failure(len, 29), 30), "{len}");
    }
    assert_eq!(control(&mut fabric.guest, &request[..7], 32), (failure(32, 0), 1), "a short request");
    assert_eq!(control(&mut fabric.guest, &[4, 0, 0, 0, 0, 0, 0, 0], 32), (failure(32, 0), 1), "type 4");
    // Split as no driver does it.
    let (head, tail) = (fabric.guest.alloc_with(&request[..5]), fabric.guest.alloc_with(&request[5..]));
    let at = fabric.guest.alloc_with(&[0xee; 40]);
    let response: Vec<Part> = (0..8).map(|i| into(at + 5 * i, 5)).collect();
    let sent = fabric.guest.add(0, &[vec![out(head, 5), out(tail, 3)], response].concat());
    fabric.guest.kick(0);
    assert_eq!(fabric.guest.wait_used(0), (sent, 32));
    assert_eq!(fabric.guest.peek(at, 1), [5]);
    // Neither without the feature nor without a fabric is there such a request.
    let mut others = [Fabric::new(HOTPLUG).guest, Bench::new(Options::default(), 1, HOTPLUG).guest];
    for guest in &mut others {
        assert_eq!(control(guest, &request, 32), (failure(32, 0), 1));
    }
}

/// A fabric that answers when the test wishes.
struct Slow {
    view: Mutex<View>,
    waiting: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
}

impl San for Slow {
    fn view(&self) -> Arc<View> {
        Arc::new(self.view.lock().unwrap().clone())
    }
    fn rescan(&self, done: Box<dyn FnOnce() + Send>) {
        self.waiting.lock().unwrap().push(done);
    }
    fn set_listener(&self, _: Option<Arc<dyn SanListener>>) {}
}

fn slow() -> (Guest, Arc<Slow>) {
    let view = Mutex::new(View::clone(&Emulated::new("slow", [1]).view()));
    let san = Arc::new(Slow { view, waiting: Mutex::default() });
    let mut guest = Guest::with_san(Options::default(), 1, BTreeMap::new(), san.clone());
    guest.start(VERSION_1 | ALL, 16);
    (guest, san)
}

/// Sends a RESCAN that waits; returns its head and where the answer comes.
fn begin_rescan(guest: &mut Guest, san: &Slow) -> (u16, u64) {
    let request = guest.alloc_with(&[3, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    let response = guest.alloc_with(&[0xee; 32]);
    let before = san.waiting.lock().unwrap().len();
    let head = guest.add(0, &[out(request, 8), into(response, 32)]);
    guest.kick(0);
    guest.wait_for("a rescan", || san.waiting.lock().unwrap().len() > before);
    (head, response)
}

#[test]
fn rescan_waits_for_the_host_and_nothing_else_does() {
    let (mut guest, san) = slow();
    for called in [true, false] {
        let (head, response) = begin_rescan(&mut guest, &san);
        guest.expect_silence(0);
        // A function of another kind, and another enumeration.
        assert_eq!(guest.tmf(1, lun(1, 0), 0), 12, "there is no such unit");
        assert_eq!(rescan(&mut guest, 1)[0], 1);
        // What the host found, of which it has said nothing else yet.
        let found = Emulated::new("slow", [0, 1]).view().remotes[&0];
        san.view.lock().unwrap().remotes.insert(0, found);
        let done = san.waiting.lock().unwrap().pop().unwrap();
        if called {
            done();
        } else {
            drop(done);
        }
        assert_eq!(guest.wait_used(0), (head, 32));
        assert_eq!(guest.peek(response, 1), [0]);
        // What a driver was told of, it can reach.
        assert_eq!(guest.command(2, lun(0, 0), &[0x12, 0, 0, 0, 36, 0], &[], 36).response, 0);
    }
}

#[test]
fn a_host_that_does_not_answer_is_not_waited_for_for_ever() {
    let (mut guest, san) = slow();
    let begin = Instant::now();
    let (head, response) = begin_rescan(&mut guest, &san);
    assert_eq!(guest.wait_used(0), (head, 32));
    assert!(begin.elapsed() > Duration::from_secs(4));
    assert_eq!(guest.peek(response, 1), [1]);
    // Called after all, for nobody.
    san.waiting.lock().unwrap().pop().unwrap()();
    guest.expect_silence(0);
}

#[test]
fn a_reset_ends_a_rescan() {
    let (mut guest, san) = slow();
    let (_, response) = begin_rescan(&mut guest, &san);
    let begin = Instant::now();
    guest.reset();
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert_eq!(guest.peek(response, 32), [0xee; 32], "memory is the driver's again");
    begin_after(&mut guest, &san);
    PciFunction::reset(&*guest.hba);
}

fn begin_after(guest: &mut Guest, san: &Slow) {
    guest.start(VERSION_1 | ALL, 16);
    begin_rescan(guest, san);
}

#[test]
fn the_machine_ends_while_a_rescan_waits() {
    let (mut guest, san) = slow();
    begin_rescan(&mut guest, &san);
    drop(guest);
    san.waiting.lock().unwrap().pop().unwrap()();
}

/// Section 4. The stock driver of Linux sends `lun >> 8 | 0x40` and `lun & 0xff` of the integer that the first two bytes in REPORT LUNS
/// make, low byte last; its integer of flat LUN 513 is 4201h.
#[test]
fn single_level_units_work_with_the_stock_driver() {
    let mut fabric = Fabric::new(HOTPLUG);
    let native = [[0, 5], [0, 27], [0x42, 0x01], [0x40, 0x07]];
    for [a, b] in native {
        fabric.target.attach_native(Lun([a, b, 0, 0, 0, 0, 0, 0]), disk().1).unwrap();
    }
    // What the driver cannot address, or would take for another one.
    let others: [&[u8]; 5] = [&[0, 5, 1, 2], &[0x01, 5], &[0xd2, 0, 0, 5], &[0xd2, 0, 0, 9], &[0x80, 0x05]];
    for bytes in others {
        let mut lun = [0; 8];
        lun[..bytes.len()].copy_from_slice(bytes);
        fabric.target.attach_native(Lun(lun), disk().1).unwrap();
    }
    let luns = fabric.luns(lun(5, 0));
    let first = |lun: &[u8; 8]| [lun[0], lun[1]];
    assert_eq!(luns.iter().map(first).collect::<Vec<_>>(), [[0, 0], [0, 5], [0, 27], [0x40, 7], [0x42, 1]]);
    assert!(luns.iter().all(|lun| lun[2..] == [0; 6]));
    for found in luns {
        let integer = u16::from_be_bytes(first(&found));
        let field = [1, 5, (integer >> 8) as u8 | 0x40, integer as u8, 0, 0, 0, 0];
        assert_eq!(fabric.inquiry(field), 0, "{found:x?}");
        fabric.settle(field);
    }
    for field in [[1, 5, 0, 5, 1, 2, 0, 0], [1, 5, 1, 5, 0, 0, 0, 0], [1, 5, 0x80, 5, 0, 0, 0, 0]] {
        assert_eq!(fabric.inquiry(field), 0x7f, "{field:x?}");
    }
}

#[test]
fn native_units_are_reached_by_the_luns_that_the_array_has() {
    let mut fabric = Fabric::new(ALL);
    let native: [&[u8]; 7] = [
        &[0, 5],
        &[0x40, 5],
        &[0x42, 1],
        &[0, 5, 1, 2],
        &[0, 5, 1, 2, 0x40, 3],
        &[0x80, 5],
        &[0xd2, 0, 0x10, 0],
    ];
    let mut expected = vec![[0; 8]];
    for bytes in native {
        let mut lun = [0; 8];
        lun[..bytes.len()].copy_from_slice(bytes);
        fabric.target.attach_native(Lun(lun), disk().1).unwrap();
        expected.push(lun);
    }
    expected.sort();
    assert_eq!(fabric.luns([1, 5, 0, 0, 0, 0, 0, 0]), expected);
    for [a, b, c, d, e, f, ..] in expected {
        let field = [1, 5, a, b, c, d, e, f];
        let (response, status, data) = fabric.send(field, &[0x12, 1, 0x80, 0, 36, 0], 36);
        assert_eq!((response, status, data[1]), (0, 0, 0x80), "{field:x?}");
        fabric.settle(field);
    }
    // Nor does another method of the same number lead there.
    let synonyms = [[1, 5, 0xd2, 0, 0, 5, 0, 0], [1, 5, 0xd2, 0, 2, 1, 0, 0], [1, 5, 0x50, 0, 0, 0, 0, 0]];
    let others = [[1, 5, 0, 5, 1, 0, 0, 0], [1, 5, 0, 6, 0, 0, 0, 0], [1, 5, 0x80, 6, 0, 0, 0, 0]];
    for field in synonyms.into_iter().chain(others) {
        assert_eq!(fabric.inquiry(field), 0x7f, "{field:x?}");
        let (response, status, _) = fabric.send(field, &[0; 6], 0);
        assert_eq!((response, status), (0, 2));
    }
    // The well known unit, of the target and of the device.
    for field in [[1, 5, 0xc1, 1, 0, 0, 0, 0], [0xc1, 1, 0, 0, 0, 0, 0, 0]] {
        assert_eq!(fabric.luns(field).len(), 8, "{field:x?}");
    }
}

/// The unit that a LUN meant has gone, and another one has the same number: it gets nothing of what is meant for the first.
#[test]
fn a_unit_does_not_take_the_place_of_another_with_its_number() {
    for (features, field) in [(ALL, [1, 5, 0, 5, 0, 0, 0, 0]), (HOTPLUG, [1, 5, 0x40, 5, 0, 0, 0, 0])] {
        let mut fabric = Fabric::cold();
        let (short, flat) = (Lun([0, 5, 0, 0, 0, 0, 0, 0]), Lun([0x40, 5, 0, 0, 0, 0, 0, 0]));
        let (image, second) = disk();
        fabric.target.attach_native(short, disk().1).unwrap();
        fabric.target.attach_native(flat, second).unwrap();
        fabric.guest.start(VERSION_1 | features, 16);
        fabric.settle(field);
        if features == ALL {
            fabric.settle([1, 5, 0x40, 5, 0, 0, 0, 0]);
        }
        detach(&fabric, short);
        let write = [0x2a, 0, 0, 0, 0, 5, 0, 0, 1, 0];
        let reply = fabric.guest.command(2, field, &write, &[7; 512], 0);
        assert_eq!((reply.response, reply.status), (0, 2));
        assert_eq!(reply.sense[2] & 0xf, 5);
        assert_eq!(reply.sense[12..14], [0x25, 0]);
        let Image::Recording(image) = &*image else { panic!("not a recording image") };
        assert_eq!(image.operations(), []);
    }
}

/// A port without units, and one of which nobody has told the HBA more than that it is there.
#[test]
fn ports_without_units_answer() {
    for features in [ALL, 0] {
        let mut fabric = Fabric::new(features);
        for attached in [false, true] {
            if attached {
                fabric.guest.hba.attach_target(9, Nexus::new(Target::new(), None));
            }
            assert_eq!(fabric.inquiry(lun(9, 0)), 0x7f);
            assert_eq!(fabric.luns(lun(9, 0)), [[0; 8]; 0]);
            assert_eq!(fabric.luns([1, 9, 0xc1, 1, 0, 0, 0, 0]), [[0; 8]; 0]);
            let (response, status, _) = fabric.send(lun(9, 0), &[0; 6], 0);
            assert_eq!((response, status), (0, 2));
            assert_eq!(fabric.guest.tmf(5, lun(9, 0), 0), 12);
        }
        // A port that never was, whatever is attached there.
        for attached in [false, true] {
            if attached {
                fabric.guest.hba.attach_target(7, Nexus::new(Target::new(), None));
            }
            assert_eq!(fabric.send(lun(7, 0), &[0x12, 0, 0, 0, 36, 0], 36).0, 3);
            assert_eq!(fabric.guest.tmf(5, lun(7, 0), 0), 3);
        }
    }
}

#[test]
fn no_unit_has_four_levels() {
    let target = Target::new();
    let error = target.attach_native(Lun([0, 1, 0, 2, 0, 3, 0, 4]), disk().1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the logical unit number has four levels, and virtio-scsi carries three: map the unit to a number of fewer levels at the array"
    );
}

/// Events of target 5 and 9.
const LOOK_AGAIN: (u32, [u8; 8], u32) = (1, [1, 5, 0, 0, 0, 0, 0, 0], 1);
const fn rport(target: u8, reason: u32) -> (u32, [u8; 8], u32) {
    (4, [1, target, 0, 0, 0, 0, 0, 0], reason)
}

fn next(fabric: &mut Fabric) -> (u32, [u8; 8], u32) {
    let buffer = offer(&mut fabric.guest, 16);
    event(&mut fabric.guest, buffer)
}

fn silence(fabric: &mut Fabric) {
    offer(&mut fabric.guest, 16);
    fabric.guest.expect_silence(1);
}

/// Takes a unit away that nothing is in flight on.
fn detach(fabric: &Fabric, lun: Lun) {
    let mut gone = Box::pin(fabric.target.detach(lun));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(matches!(gone.as_mut().poll(&mut cx), std::task::Poll::Ready(Some(_))));
}

#[test]
fn ports_come_and_go_by_events_of_their_own() {
    let mut fabric = Fabric::new(ALL);
    for state in [RemoteState::Blocked, RemoteState::Lost, RemoteState::Online, RemoteState::Blocked] {
        assert!(fabric.san.set_state(9, state));
    }
    fabric.san.set_state(9, RemoteState::Online);
    fabric.san.add(7);
    for expected in [rport(9, 1), rport(7, 1)] {
        assert_eq!(next(&mut fabric), expected);
    }
    for (state, reason) in [(RemoteState::Blocked, 0), (RemoteState::Lost, 0), (RemoteState::Online, 1)] {
        fabric.san.set_state(9, state);
        if state != RemoteState::Lost {
            assert_eq!(next(&mut fabric), rport(9, reason));
        }
    }
    silence(&mut fabric);
    assert!(!fabric.san.set_state(200, RemoteState::Lost));
}

#[test]
fn a_port_that_has_another_name_has_changed() {
    let (mut guest, san) = slow();
    san.view.lock().unwrap().remotes.get_mut(&1).unwrap().port_id = 0x03_0303;
    assert_eq!(rescan(&mut guest, 0)[24..28], [3, 3, 3, 0], "the host says nothing of it by itself");
    let buffer = offer(&mut guest, 16);
    assert_eq!(event(&mut guest, buffer), rport(1, 2));
}

/// Drivers that do not know of ports look for what they have not found yet.
#[test]
fn without_events_of_ports_new_ones_are_looked_for() {
    let mut fabric = Fabric::new(HOTPLUG);
    fabric.san.set_state(9, RemoteState::Blocked);
    fabric.san.set_state(9, RemoteState::Online);
    fabric.san.add(7);
    assert_eq!(next(&mut fabric), (1, [1, 7, 0, 0, 0, 0, 0, 0], 1));
    fabric.san.set_state(9, RemoteState::Lost);
    fabric.san.set_state(9, RemoteState::Online);
    assert_eq!(next(&mut fabric), (1, [1, 9, 0, 0, 0, 0, 0, 0], 1));
    silence(&mut fabric);
}

#[test]
fn units_that_come_are_one_event_for_those_who_know_luns() {
    let mut fabric = Fabric::new(ALL);
    for unit in 1..9 {
        fabric.target.attach_native(Lun([0, unit, 0, 1, 0, 0, 0, 0]), disk().1).unwrap();
    }
    fabric.san.units_changed(5);
    assert_eq!(next(&mut fabric), LOOK_AGAIN);
    silence(&mut fabric);
    detach(&fabric, Lun([0, 3, 0, 1, 0, 0, 0, 0]));
    // A buffer is there already.
    assert_eq!(fabric.guest.wait_used(1).1, 16);
    fabric.san.units_changed(5);
    silence(&mut fabric);
    // Nothing that came or went here: the array alone knows.
    fabric.san.units_changed(5);
    assert_eq!(fabric.guest.wait_used(1).1, 16);
}

#[test]
fn a_stock_driver_hears_of_each_unit_that_it_can_address() {
    let mut fabric = Fabric::new(HOTPLUG);
    let five = Lun([0, 5, 0, 0, 0, 0, 0, 0]);
    fabric.target.attach_native(five, disk().1).unwrap();
    // It would take this for LUN 5.
    let deep = Lun([0, 5, 1, 2, 0, 0, 0, 0]);
    fabric.target.attach_native(deep, disk().1).unwrap();
    fabric.target.attach_native(Lun([0x42, 1, 0, 0, 0, 0, 0, 0]), disk().1).unwrap();
    fabric.san.units_changed(5);
    assert_eq!(next(&mut fabric), (1, [1, 5, 0, 5, 0, 0, 0, 0], 1));
    assert_eq!(next(&mut fabric), (1, [1, 5, 0x42, 1, 0, 0, 0, 0], 1));
    detach(&fabric, deep);
    silence(&mut fabric);
    detach(&fabric, five);
    assert_eq!(fabric.guest.wait_used(1).1, 16);
}

/// Of a port that comes and goes the newest state is told. When too much else waits, the driver is told last to look: what is older
/// would have it remove the disks of a port that is there.
#[test]
fn what_is_told_last_is_true() {
    let mut fabric = Fabric::new(ALL);
    let flap = |fabric: &Fabric, end: RemoteState| {
        for _ in 0..40 {
            fabric.san.set_state(9, RemoteState::Lost);
            fabric.san.set_state(9, RemoteState::Online);
        }
        fabric.san.set_state(9, end);
    };
    flap(&fabric, RemoteState::Online);
    assert_eq!(next(&mut fabric), rport(9, 1));
    flap(&fabric, RemoteState::Lost);
    assert_eq!(next(&mut fabric), rport(9, 0));
    let luns: Vec<_> = (1..=64).map(|unit| Lun([0, unit, 0, 0, 0, 0, 0, 0])).collect();
    for &lun in &luns {
        fabric.target.attach_native(lun, disk().1).unwrap();
    }
    assert_eq!(next(&mut fabric), LOOK_AGAIN);
    silence(&mut fabric);
    luns.iter().for_each(|&lun| detach(&fabric, lun));
    flap(&fabric, RemoteState::Online);
    // A buffer is there already.
    assert_eq!(fabric.guest.wait_used(1).1, 16);
    for &Lun([a, b, ..]) in &luns[1..] {
        assert_eq!(next(&mut fabric), (1, [1, 5, a, b, 0, 0, 0, 0], 2));
    }
    assert_eq!(next(&mut fabric), rport(9, 1));
    silence(&mut fabric);
}

#[test]
fn events_of_ports_that_were_dropped_are_missed() {
    let mut fabric = Fabric::new(ALL);
    for target in 10..80 {
        fabric.san.add(target);
    }
    // The port that is lost last has no place.
    fabric.san.set_state(79, RemoteState::Lost);
    fabric.san.set_state(10, RemoteState::Lost);
    for target in (11..74).chain([10]) {
        assert_eq!(next(&mut fabric), rport(target, u32::from(target != 10)));
    }
    assert_eq!(next(&mut fabric), (0x8000_0000, [0; 8], 0));
    silence(&mut fabric);
}

#[test]
fn another_driver_addresses_in_its_own_way() {
    let mut fabric = Fabric::new(ALL);
    let deep = Lun([0, 5, 1, 2, 0, 0, 0, 0]);
    fabric.target.attach_native(deep, disk().1).unwrap();
    assert_eq!(fabric.luns(lun(5, 0)).len(), 2);
    fabric.guest.start(VERSION_1 | HOTPLUG, 16);
    assert_eq!(fabric.luns(lun(5, 0)).len(), 1);
    fabric.guest.start(VERSION_1 | ALL, 16);
    assert_eq!(fabric.luns(lun(5, 0)).len(), 2);
}

/// The legacy registers come from before all of this.
#[test]
fn legacy_drivers_see_nothing_of_a_fabric() {
    use devices::testing::pci::{TestSeat, set_config_dword, set_config_word};
    let (seat, san) = (TestSeat::new(1 << 20), Emulated::new("legacy", [0]));
    let thread = devices::iothread::IoThread::start("io").unwrap();
    let options = Options { interface: Interface::Transitional, ..Options::default() };
    let hba = hba_virtio_scsi::VirtioScsi::with_san(
        seat.seat.clone(),
        BTreeMap::new(),
        vec![thread.remote()],
        options,
        san,
    )
    .unwrap();
    set_config_dword(&*hba, 0x10, 0xc000);
    set_config_word(&*hba, 4, 0x7);
    let port = |at: u64, len: usize| {
        let mut data = vec![0; len];
        seat.ports.read(0xc000 + at, &mut data);
        data
    };
    assert_eq!(port(0, 4)[0] & 0xf0, 0);
    seat.ports.write(0xc000 + 4, &[0xff; 4]);
    assert_eq!(port(4, 4)[0] & 0xf0, 0);
    assert_eq!(port(20 + 36, 4), [0; 4]);
    drop(hba);
}
