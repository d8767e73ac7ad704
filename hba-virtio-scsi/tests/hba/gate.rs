//! Commands to a port that is lost (docs/virtio-scsi-fc.md, section 6): held, released, failed and ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::pci::PciFunction;
use devices::scsi::{Lun, Nexus, Target};
use hba_virtio_scsi::Options;
use hba_virtio_scsi::fc::{Emulated, RemoteState};

use crate::disks::disk;
use crate::fabric::{ALL, Fabric, lun};
use crate::guest::{Guest, HOTPLUG, RING_RESET, VERSION_1, into, out};

const INQUIRY: [u8; 6] = [0x12, 0, 0, 0, 36, 0];
const REPORT_LUNS: [u8; 12] = [0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
const READY: [u8; 6] = [0; 6];

/// A command that was sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    head: u16,
    response: u64,
}

fn begin(guest: &mut Guest, lun: [u8; 8], id: u64, cdb: &[u8]) -> Sent {
    begin_in(guest, 2, lun, id, cdb)
}

fn begin_in(guest: &mut Guest, queue: usize, lun: [u8; 8], id: u64, cdb: &[u8]) -> Sent {
    let request = guest.alloc_with(&Guest::request_head(lun, id, cdb));
    let (response, data) = (guest.alloc_with(&[0xee; 108]), guest.alloc_with(&[0xdd; 64]));
    let head = guest.add(queue, &[out(request, 51), into(response, 108), into(data, 64)]);
    guest.kick(queue);
    Sent { head, response }
}

impl Sent {
    /// The response, after the command is the next to end.
    fn ends(self, guest: &mut Guest) -> u8 {
        assert_eq!(guest.wait_used(2).0, self.head);
        self.response(guest)
    }

    fn response(self, guest: &Guest) -> u8 {
        guest.peek(self.response, 12)[11]
    }
}

/// A driver that is not told of ports, and a disk at LUN 0 of target 5, which is lost a moment ago; target 6 is there.
fn blocked(threads: usize) -> (Guest, Arc<Emulated>) {
    let san = Emulated::new("gate", [5, 6]);
    let targets = [5, 6].map(|id| {
        let target = Target::new();
        target.attach_native(Lun([0; 8]), disk().1).unwrap();
        target.attach_native(Lun([0, 3, 0, 0, 0, 0, 0, 0]), disk().1).unwrap();
        (id, Nexus::new(target, None))
    });
    let options = Options { request_queues: threads as u16, ..Options::default() };
    let mut guest = Guest::with_san(options, threads, BTreeMap::from(targets), san.clone());
    guest.start(VERSION_1 | HOTPLUG, 64);
    for target in [5, 6] {
        for unit in [0, 3] {
            assert!((0..8).any(|_| guest.command(2, lun(target, unit), &READY, &[], 0).status == 0));
        }
    }
    san.set_state(5, RemoteState::Blocked);
    (guest, san)
}

#[test]
fn commands_to_a_blocked_port_wait_and_go_on_in_order() {
    let (mut guest, san) = blocked(1);
    let cdbs: [&[u8]; 4] = [&INQUIRY, &READY, &REPORT_LUNS, &INQUIRY];
    let sent: Vec<_> =
        (0..12).map(|i| begin(&mut guest, lun(5, 3 * (i % 2)), i.into(), cdbs[usize::from(i) % 4])).collect();
    guest.expect_silence(2);
    // No other target waits for it.
    assert_eq!(guest.command(2, lun(6, 0), &READY, &[], 0).response, 0);
    san.set_state(6, RemoteState::Blocked);
    san.set_state(6, RemoteState::Online);
    assert_eq!(guest.command(2, lun(6, 3), &INQUIRY, &[], 36).data[0], 0);
    guest.expect_silence(2);
    san.set_state(5, RemoteState::Online);
    for command in sent {
        assert_eq!(command.ends(&mut guest), 0);
    }
    assert_eq!(guest.command(2, lun(5, 0), &READY, &[], 0).response, 0);
}

#[test]
fn commands_fail_when_the_port_is_given_up() {
    let (mut guest, san) = blocked(1);
    let sent: Vec<_> = (0..3).map(|i| begin(&mut guest, lun(5, 0), i, &READY)).collect();
    guest.expect_silence(2);
    san.set_state(5, RemoteState::Lost);
    for command in sent {
        assert_eq!(command.ends(&mut guest), 6, "TRANSPORT_FAILURE");
    }
    // At once, and nothing answers: not even for units that never were.
    for (lun, cdb) in [(lun(5, 0), &READY[..]), (lun(5, 0), &INQUIRY), (lun(5, 99), &REPORT_LUNS)] {
        assert_eq!(guest.command(2, lun, cdb, &[], 36).response, 6);
    }
    assert_eq!(guest.command(2, [0xc1, 1, 0, 0, 0, 0, 0, 0], &REPORT_LUNS, &[], 64).response, 0, "target 6");
    san.set_state(6, RemoteState::Lost);
    assert_eq!(guest.command(2, [0xc1, 1, 0, 0, 0, 0, 0, 0], &REPORT_LUNS, &[], 64).response, 6);
    san.set_state(5, RemoteState::Online);
    assert_eq!(guest.command(2, lun(5, 0), &READY, &[], 0).response, 0);
}

/// Also those of a driver that is told of ports: they were sent before it could know, and what fails is repeated without a pause.
#[test]
fn commands_wait_whether_the_driver_is_told_of_ports_or_not() {
    let mut fabric = Fabric::new(ALL);
    fabric.san.set_state(5, RemoteState::Blocked);
    let sent: Vec<_> = (0..4).map(|i| begin(&mut fabric.guest, lun(5, 0), i, &READY)).collect();
    fabric.guest.expect_silence(2);
    // The end that the driver makes when its own patience is over.
    assert_eq!(fabric.guest.tmf(0, lun(5, 0), 3), 0);
    assert_eq!(sent[3].ends(&mut fabric.guest), 2);
    fabric.san.set_state(5, RemoteState::Online);
    for (i, command) in sent.into_iter().enumerate().filter(|(i, _)| *i != 3) {
        assert_eq!(command.ends(&mut fabric.guest), 0, "{i}");
    }
    fabric.san.set_state(5, RemoteState::Lost);
    assert_eq!(fabric.send(lun(5, 0), &READY, 0).0, 6);
}

/// Functions of 5.6.6.2 by number, which of the commands they end, and with what.
#[test]
fn functions_end_what_waits() {
    // (subtype, tag, response, which of tags 0 and 1 at LUN 0 and of tag 2 at LUN 3 end)
    for (subtype, tag, response, ended) in [
        (0, 1, 2, vec![1]),
        (1, 0, 2, vec![0, 1]),
        (3, 0, 2, vec![0, 1]),
        (4, 0, 4, vec![0, 1, 2]),
        (5, 0, 4, vec![0, 1]),
    ] {
        let (mut guest, san) = blocked(1);
        let units = [0, 0, 3];
        let sent: Vec<_> =
            (0..3_u8).map(|i| begin(&mut guest, lun(5, units[usize::from(i)]), i.into(), &READY)).collect();
        let begin = Instant::now();
        // What is not on its way to us yet is ended as well: the queue is looked at first.
        assert_eq!(guest.tmf(subtype, lun(5, 0), tag), 0, "function {subtype}");
        assert!(begin.elapsed() < Duration::from_secs(2));
        let mut rest: Vec<usize> = (0..3).collect();
        rest.retain(|i| !ended.contains(i));
        for i in ended {
            assert_eq!(sent[i].ends(&mut guest), response, "function {subtype}, command {i}");
        }
        guest.expect_silence(2);
        san.set_state(5, RemoteState::Online);
        for i in rest {
            assert_eq!(sent[i].ends(&mut guest), 0, "function {subtype}, command {i}");
        }
    }
}

#[test]
fn functions_find_what_waits() {
    let (mut guest, san) = blocked(1);
    let sent = begin(&mut guest, lun(5, 0), 7, &READY);
    guest.expect_silence(2);
    assert_eq!(guest.tmf(6, lun(5, 0), 7), 10, "QUERY TASK: FUNCTION SUCCEEDED");
    assert_eq!(guest.tmf(6, lun(5, 0), 8), 0);
    assert_eq!(guest.tmf(7, lun(5, 0), 0), 10);
    assert_eq!(guest.tmf(7, lun(5, 3), 0), 0);
    // Of another target, nothing.
    assert_eq!(guest.tmf(1, lun(6, 0), 0), 0);
    guest.expect_silence(2);
    san.set_state(5, RemoteState::Online);
    assert_eq!(sent.ends(&mut guest), 0);
}

/// A command for a unit that nobody knows waits like others, and is ended like others.
#[test]
fn functions_end_commands_of_units_that_are_not_there() {
    let (mut guest, _san) = blocked(1);
    let sent = begin(&mut guest, lun(5, 77), 7, &INQUIRY);
    guest.expect_silence(2);
    assert_eq!(guest.tmf(6, lun(5, 77), 7), 10, "QUERY TASK: FUNCTION SUCCEEDED");
    assert_eq!(guest.tmf(0, lun(5, 77), 7), 0);
    assert_eq!(sent.ends(&mut guest), 2);
    assert_eq!(guest.tmf(0, lun(5, 77), 7), 12);
}

/// The function is not over while the command is out, and has not failed when there is no such unit: Linux would go on to resets.
#[test]
fn a_function_waits_for_a_command_to_a_unit_that_is_not_there() {
    let (mut guest, _san) = blocked(2);
    let sent = begin_in(&mut guest, 3, lun(5, 77), 7, &INQUIRY);
    guest.expect_silence(3);
    // The thread of the command does something else.
    let (tell, told) = std::sync::mpsc::channel();
    guest.remotes[1].spawn(move |_| async move {
        tell.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    });
    told.recv().unwrap();
    assert_eq!(guest.tmf(0, lun(5, 77), 7), 0);
    assert_eq!((guest.used(3).map(|(head, _)| head), sent.response(&guest)), (Some(sent.head), 2));
}

#[test]
fn a_reset_ends_what_waits() {
    for machine in [false, true] {
        let (mut guest, san) = blocked(2);
        let sent: Vec<_> = (0..4).map(|i| begin(&mut guest, lun(5, 0), i, &READY)).collect();
        guest.expect_silence(2);
        let begin = Instant::now();
        if machine {
            PciFunction::reset(&*guest.hba);
            guest.place();
        } else {
            guest.reset();
        }
        assert!(begin.elapsed() < Duration::from_secs(2));
        assert!(sent.iter().all(|sent| sent.response(&guest) == 0xee), "memory is the driver's again");
        guest.start(VERSION_1, 16);
        assert_eq!(guest.command(2, lun(6, 0), &INQUIRY, &[], 36).response, 0);
        san.set_state(5, RemoteState::Online);
        assert_eq!(guest.command(2, lun(5, 0), &INQUIRY, &[], 36).response, 0);
    }
}

/// A queue that is reset alone does not wait for the port, and others go on as they were.
#[test]
fn a_reset_of_a_queue_ends_what_waits_from_it() {
    let (mut guest, san) = blocked(2);
    guest.start(VERSION_1 | RING_RESET, 64);
    let [first, second] = [2, 3].map(|queue| begin_in(&mut guest, queue, lun(5, 0), 1, &INQUIRY));
    guest.expect_silence(2);
    guest.select(2);
    guest.write(guest.at.common + 58, &1_u16.to_le_bytes());
    guest.wait_for("queue reset", || guest.queue_word(2, 58) == 0);
    assert_eq!(first.response(&guest), 0xee);
    assert_eq!(guest.used(3), None);
    san.set_state(5, RemoteState::Online);
    assert_eq!(guest.wait_used(3).0, second.head);
    assert_eq!(second.response(&guest), 0);
}

#[test]
fn the_machine_ends_while_commands_wait() {
    let (mut guest, _san) = blocked(1);
    let sent = begin(&mut guest, lun(5, 0), 1, &READY);
    guest.expect_silence(2);
    guest.hba.shut_down();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(sent.response(&guest), 0xee);
    // Its threads end.
    drop(guest);
}

/// Ports that go and come while commands of several queues are under way: each ends exactly once.
#[test]
fn no_command_is_lost_or_ends_twice() {
    let (mut guest, san) = blocked(2);
    let flapping = std::thread::spawn(move || {
        for round in 0..400 {
            let state = [RemoteState::Online, RemoteState::Blocked, RemoteState::Lost][round % 3];
            san.set_state(5, state);
            std::thread::sleep(Duration::from_micros(100));
        }
        san.set_state(5, RemoteState::Online);
    });
    let mut counts = [0; 2];
    while !flapping.is_finished() {
        guest.reset_heap();
        let sent: Vec<_> = (0..8).map(|i| begin(&mut guest, lun(5, 0), i, &READY)).collect();
        let mut heads: Vec<_> = sent.iter().map(|sent| sent.head).collect();
        for _ in &sent {
            let (head, _) = guest.wait_used(2);
            let at = heads.iter().position(|known| *known == head).expect("a command that has not ended yet");
            heads.swap_remove(at);
        }
        for command in sent {
            match command.response(&guest) {
                0 => counts[0] += 1,
                6 => counts[1] += 1,
                other => panic!("response {other}"),
            }
        }
    }
    flapping.join().unwrap();
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    assert_eq!(guest.command(2, lun(5, 0), &READY, &[], 0).response, 0);
}
