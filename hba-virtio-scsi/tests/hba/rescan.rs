//! RESCAN (docs/virtio-scsi-fc.md, section 3): looks at the fabric, and one target after the other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use devices::pci::PciFunction;
use hba_virtio_scsi::Options;
use hba_virtio_scsi::fc::{Emulated, RemoteState, San, SanListener, View};

use crate::disks::Bench;
use crate::fabric::{ALL, Fabric, lun};
use crate::guest::{Guest, HOTPLUG, Part, RING_RESET, VERSION_1, into, out};

/// Sends a control request; returns what is in the response buffer, and how much of it the device says that it wrote.
pub fn control(guest: &mut Guest, request: &[u8], len: usize) -> (Vec<u8>, u32) {
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

pub fn rescan(guest: &mut Guest, next_id: u32) -> Vec<u8> {
    let mut request = vec![3, 0, 0, 0];
    request.extend(next_id.to_le_bytes());
    let (answer, used) = control(guest, &request, 32);
    assert_eq!(used, 32);
    answer
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
pub struct Slow {
    pub view: Mutex<View>,
    waiting: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
    pub listener: Mutex<Option<Arc<dyn SanListener>>>,
}

impl San for Slow {
    fn view(&self) -> Arc<View> {
        Arc::new(self.view.lock().unwrap().clone())
    }
    fn rescan(&self, done: Box<dyn FnOnce() + Send>) {
        self.waiting.lock().unwrap().push(done);
    }
    fn set_listener(&self, listener: Option<Arc<dyn SanListener>>) {
        *self.listener.lock().unwrap() = listener;
    }
}

pub fn slow() -> (Guest, Arc<Slow>) {
    let view = Mutex::new(View::clone(&Emulated::new("slow", [1]).view()));
    let san = Arc::new(Slow { view, waiting: Mutex::default(), listener: Mutex::default() });
    let mut guest = Guest::with_san(Options::default(), 1, BTreeMap::new(), san.clone());
    guest.start(VERSION_1 | ALL, 16);
    (guest, san)
}

/// Sends a RESCAN; returns its head and where the answer comes.
fn send_rescan(guest: &mut Guest) -> (u16, u64) {
    let request = guest.alloc_with(&[3, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    let response = guest.alloc_with(&[0xee; 32]);
    let head = guest.add(0, &[out(request, 8), into(response, 32)]);
    guest.kick(0);
    (head, response)
}

/// Sends a RESCAN that waits.
fn begin_rescan(guest: &mut Guest, san: &Slow) -> (u16, u64) {
    let before = san.waiting.lock().unwrap().len();
    let (head, response) = send_rescan(guest);
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
    // The look that nobody waits for ends, and the next one can begin.
    san.waiting.lock().unwrap().clear();
    guest.start(VERSION_1 | ALL, 16);
    begin_rescan(guest, san);
}

#[test]
fn a_reset_of_the_control_queue_ends_a_rescan() {
    let (mut guest, san) = slow();
    guest.start(VERSION_1 | RING_RESET | ALL, 16);
    let (_, response) = begin_rescan(&mut guest, &san);
    // Another one, that waits for the next look.
    send_rescan(&mut guest);
    let begin = Instant::now();
    guest.select(0);
    guest.write(guest.at.common + 58, &1_u16.to_le_bytes());
    guest.wait_for("the queue's reset", || guest.queue_word(0, 58) == 0);
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert_eq!(guest.peek(response, 32), [0xee; 32], "memory is the driver's again");
    // It goes on, with others.
    guest.queues.remove(0);
    guest.setup_queue(0, 16, 1);
    guest.queues.rotate_right(1);
    assert_eq!(rescan(&mut guest, 0)[0], 1);
}

#[test]
fn the_machine_ends_while_a_rescan_waits() {
    let (mut guest, san) = slow();
    begin_rescan(&mut guest, &san);
    drop(guest);
    san.waiting.lock().unwrap().pop().unwrap()();
}

/// A driver that asks again and again, and resets the device in between, has the host look once, and once more.
#[test]
fn looks_do_not_pile_up_at_the_host() {
    let (mut guest, san) = slow();
    let (_, _) = begin_rescan(&mut guest, &san);
    for _ in 0..50 {
        guest.start(VERSION_1 | ALL, 16);
        for _ in 0..4 {
            send_rescan(&mut guest);
        }
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(san.waiting.lock().unwrap().len(), 1);
    }
    guest.expect_silence(0);
    // What was asked for while the host looked has a look of its own, all together.
    let done = san.waiting.lock().unwrap().pop().unwrap();
    done();
    guest.wait_for("the next look", || san.waiting.lock().unwrap().len() == 1);
    guest.expect_silence(0);
    let done = san.waiting.lock().unwrap().pop().unwrap();
    done();
    for _ in 0..4 {
        assert_eq!(guest.wait_used(0).1, 32);
    }
    assert!(san.waiting.lock().unwrap().is_empty());
}
