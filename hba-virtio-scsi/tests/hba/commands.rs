//! Commands, control requests and interrupts of well-behaved drivers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use devices::iothread::{IoThread, Polling, Settings};
use hba_virtio_scsi::Options;

use crate::guest::{EVENT_IDX, Guest, INDIRECT, VERSION_1, into, lun, out};

const TEST_UNIT_READY: [u8; 6] = [0; 6];

fn empty(options: Options, threads: usize) -> Guest {
    Guest::new(options, threads, BTreeMap::new())
}

#[test]
fn absent_targets_answer_bad_target_at_once() {
    for features in [0, EVENT_IDX, INDIRECT, EVENT_IDX | INDIRECT] {
        let mut guest = empty(Options::default(), 1);
        guest.start(VERSION_1 | features, 8);
        for target in 0..=255 {
            let reply = guest.command(2, lun(target, 0), &TEST_UNIT_READY, &[], 36);
            assert_eq!((reply.response, reply.status), (3, 0), "target {target}");
            assert_eq!((reply.residual, reply.used), (36, 12));
            assert!(reply.data.iter().all(|&byte| byte == 0xdd), "data is untouched");
        }
    }
}

#[test]
fn luns_of_no_known_form_are_bad_targets() {
    let mut guest = empty(Options::default(), 1);
    guest.start(VERSION_1, 8);
    for field in [[0; 8], [0xc1, 1, 0, 0, 0, 0, 0, 0], [2, 0, 0x40, 0, 0, 0, 0, 0], [0xff; 8]] {
        assert_eq!(guest.command(2, field, &TEST_UNIT_READY, &[], 0).response, 3, "{field:?}");
        assert_eq!(guest.tmf(5, field, 0), 3, "{field:?}");
    }
}

#[test]
fn head_and_response_may_be_cut_anywhere() {
    let mut guest = empty(Options::default(), 1);
    guest.start(VERSION_1, 256);
    let head = Guest::request_head(lun(1, 0), 7, &TEST_UNIT_READY);
    for step in [1, 2, 7, 50] {
        let request = guest.alloc_with(&head);
        let response = guest.alloc_with(&[0xee; 108]);
        let mut parts: Vec<_> =
            (0..51).step_by(step).map(|i| out(request + i, (51 - i).min(step as u64) as u32)).collect();
        parts.push(out(0, 0));
        parts.extend((0..108).step_by(step).map(|i| into(response + i, (108 - i).min(step as u64) as u32)));
        guest.add(2, &parts);
        guest.kick(2);
        guest.wait_used(2);
        let bytes = guest.peek(response, 108);
        assert_eq!(bytes[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3], "step {step}");
        assert!(bytes[12..].iter().all(|&byte| byte == 0xee), "sense area is untouched");
    }
}

#[test]
fn head_and_data_may_share_descriptors() {
    let mut guest = empty(Options::default(), 1);
    guest.start(VERSION_1, 8);
    let mut head = Guest::request_head(lun(1, 0), 7, &TEST_UNIT_READY);
    head.extend([0x5a; 512]);
    let request = guest.alloc_with(&head);
    let response = guest.alloc_with(&[0xee; 108]);
    guest.add(2, &[out(request, head.len() as u32), into(response, 108)]);
    guest.kick(2);
    guest.wait_used(2);
    assert_eq!(guest.peek(response, 12), [0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 3], "residual 512");
}

#[test]
fn data_in_both_directions_fails_without_inout() {
    let mut guest = empty(Options::default(), 1);
    guest.start(VERSION_1, 8);
    let reply = guest.command(2, lun(0, 0), &TEST_UNIT_READY, &[1; 8], 8);
    assert_eq!((reply.response, reply.used), (9, 12));
}

#[test]
fn sizes_chosen_by_the_driver_move_the_data() {
    let mut guest = empty(Options::default(), 1);
    guest.enable_msix();
    guest.negotiate(VERSION_1);
    guest.write(guest.at.device + 20, &20_u32.to_le_bytes());
    guest.write(guest.at.device + 24, &6_u32.to_le_bytes());
    for index in 0..3 {
        guest.setup_queue(index, 8, index + 1);
    }
    guest.set_status(15);
    let mut head = Guest::request_head(lun(9, 0), 7, &TEST_UNIT_READY);
    head.truncate(19 + 6);
    let request = guest.alloc_with(&head);
    let response = guest.alloc_with(&[0xee; 40]);
    guest.add(2, &[out(request, 25), into(response, 40)]);
    guest.kick(2);
    assert_eq!(guest.wait_used(2).1, 12);
    assert_eq!(guest.peek(response, 12), [0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 3], "8 of 40 bytes are data");
}

#[test]
fn chains_made_available_before_driver_ok_are_taken_after_it() {
    let mut guest = empty(Options::default(), 1);
    guest.negotiate(VERSION_1);
    guest.setup_queue(2, 8, 0xffff);
    let queue = 0;
    let request = guest.alloc_with(&Guest::request_head(lun(0, 0), 0, &TEST_UNIT_READY));
    let response = guest.alloc(108);
    guest.add(queue, &[out(request, 51), into(response, 108)]);
    guest.kick(queue);
    guest.expect_silence(queue);
    guest.set_status(15);
    assert_eq!(guest.wait_used(queue).1, 12);
}

#[test]
fn task_management_of_absent_targets() {
    let mut guest = empty(Options::default(), 1);
    guest.start(VERSION_1, 8);
    for subtype in 0..8 {
        assert_eq!(guest.tmf(subtype, lun(4, 0), 1), 3, "subtype {subtype}");
    }
    assert_eq!(guest.tmf(8, lun(4, 0), 1), 11, "an unknown function is rejected");
}

#[test]
fn asynchronous_notification_of_absent_targets() {
    let mut guest = empty(Options::default(), 1);
    guest.start(VERSION_1, 8);
    for kind in [1_u32, 2] {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(lun(4, 0));
        bytes.extend(0x7e_u32.to_le_bytes());
        let request = guest.alloc_with(&bytes);
        let response = guest.alloc_with(&[0xee; 5]);
        guest.add(0, &[out(request, 16), into(response, 5)]);
        guest.kick(0);
        assert_eq!(guest.wait_used(0).1, 5);
        assert_eq!(guest.peek(response, 5), [0, 0, 0, 0, 3]);
    }
}

#[test]
fn each_queue_interrupts_by_its_own_vector() {
    let mut guest = empty(Options { request_queues: 4, ..Options::default() }, 2);
    guest.start(VERSION_1, 8);
    for queue in 2..6 {
        guest.seat.msi.take();
        guest.command(queue, lun(0, 0), &TEST_UNIT_READY, &[], 0);
        guest.wait_for("interrupt", || {
            let delivered = guest.seat.msi.take();
            assert!(delivered.iter().all(|message| message.data == queue as u32 + 1), "{delivered:?}");
            !delivered.is_empty()
        });
    }
    assert!(!guest.seat.intx.is_high());
    assert_eq!(guest.read::<1>(guest.at.isr), [0], "no queue bit with MSI-X");
}

#[test]
fn without_msix_the_wire_and_the_isr_register() {
    let mut guest = empty(Options::default(), 1);
    guest.negotiate(VERSION_1);
    for index in 0..3 {
        guest.setup_queue(index, 8, 0xffff);
    }
    guest.set_status(15);
    guest.command(2, lun(0, 0), &TEST_UNIT_READY, &[], 0);
    guest.wait_for("wire", || guest.seat.intx.is_high());
    assert_eq!(guest.read::<1>(guest.at.isr), [1]);
    assert!(!guest.seat.intx.is_high(), "reading lowers the wire");
    assert_eq!(guest.read::<1>(guest.at.isr), [0]);
}

#[test]
fn drivers_can_do_without_interrupts() {
    for features in [0, EVENT_IDX] {
        let mut guest = empty(Options::default(), 1);
        guest.start(VERSION_1 | features, 8);
        guest.seat.msi.take();
        // VIRTQ_AVAIL_F_NO_INTERRUPT, or a used_event far away.
        let (avail, size) = (guest.queues[2].avail, 8);
        guest.poke(avail, &1_u16.to_le_bytes());
        let request = guest.alloc_with(&Guest::request_head(lun(0, 0), 0, &TEST_UNIT_READY));
        let response = guest.alloc(108);
        guest.poke(avail + 4 + 2 * size, &0x7000_u16.to_le_bytes());
        guest.add(2, &[out(request, 51), into(response, 108)]);
        guest.kick(2);
        let at = guest.queues[2].used + 2;
        guest.wait_for("used", || guest.peek16(at) == 1);
        std::thread::sleep(std::time::Duration::from_millis(10));
        assert_eq!(guest.seat.msi.take(), [], "features {features:#x}");
    }
}

/// A driver that waits for each request hears of each; one that sends on without waiting is left alone while it does.
#[test]
fn interrupts_go_by_what_the_driver_waits_for() {
    const COUNT: usize = 2000;
    let polling = Polling::Fixed(Duration::from_millis(20));
    let thread = IoThread::with("poll", Settings { polling, ..Settings::default() }).unwrap();
    let mut guest = Guest::on(vec![thread], Options::default(), BTreeMap::new());
    guest.start(VERSION_1 | EVENT_IDX, 64);
    let request = guest.alloc_with(&Guest::request_head(lun(0, 0), 0, &TEST_UNIT_READY));
    let response = guest.alloc(108);
    let parts = [out(request, 51), into(response, 108)];
    guest.seat.msi.take();
    for n in 0..100 {
        guest.add(2, &parts);
        guest.kick(2);
        guest.wait_for("an interrupt", || !guest.seat.msi.take().is_empty());
        guest.wait_used(2);
        assert_eq!(guest.seat.msi.take(), [], "request {n} was told twice");
    }
    let mut round = || {
        let (mut told, mut in_flight) = (0, 0);
        for _ in 0..COUNT {
            guest.add(2, &parts);
            guest.kick(2);
            in_flight += 1;
            let pause = Instant::now();
            // As Linux: what is used is looked at after an interrupt.
            while pause.elapsed() < Duration::from_micros(20) || in_flight > 24 {
                if !guest.seat.msi.take().is_empty() {
                    told += 1;
                    while guest.used(2).is_some() {
                        in_flight -= 1;
                    }
                }
            }
        }
        guest.wait_for("the rest", || guest.peek16(guest.queues[2].used + 2) == guest.queues[2].avail_idx);
        while guest.used(2).is_some() {}
        told
    };
    // On a busy computer the driver and the device take turns, and then each request is waited for.
    let mut all = Vec::new();
    while all.last().is_none_or(|told| *told >= COUNT / 2) {
        assert!(all.len() < 8, "{all:?} interrupts for {COUNT} requests");
        all.push(round());
    }
    guest.seat.msi.take();
    guest.add(2, &parts);
    guest.kick(2);
    guest.wait_for("the last interrupt", || !guest.seat.msi.take().is_empty());
}

#[test]
fn full_rings_on_all_queues_come_back_whole() {
    let mut guest = empty(Options { request_queues: 4, queue_size: 64, ..Options::default() }, 2);
    guest.start(VERSION_1 | EVENT_IDX, 64);
    let request = guest.alloc_with(&Guest::request_head(lun(3, 0), 0, &TEST_UNIT_READY));
    let response = guest.alloc(108);
    for _round in 0..50 {
        for queue in 2..6 {
            for _ in 0..32 {
                guest.add(queue, &[out(request, 51), into(response, 108)]);
            }
            guest.kick(queue);
        }
        for queue in 2..6 {
            let mut heads: Vec<u16> = (0..32).map(|_| guest.wait_used(queue).0).collect();
            heads.sort_unstable();
            assert_eq!(heads, (0..64).step_by(2).collect::<Vec<u16>>(), "queue {queue}");
        }
    }
}

#[test]
fn a_queue_can_be_reset_and_used_again() {
    let mut guest = empty(Options::default(), 1);
    guest.start(VERSION_1 | crate::guest::RING_RESET, 8);
    guest.command(2, lun(0, 0), &TEST_UNIT_READY, &[], 0);
    guest.select(2);
    guest.write(guest.at.common + 58, &1_u16.to_le_bytes());
    guest.wait_for("queue reset", || guest.queue_word(2, 58) == 0);
    assert_eq!(guest.queue_word(2, 28), 0);
    guest.queues.truncate(2);
    guest.setup_queue(2, 4, 3);
    assert_eq!(guest.command(2, lun(0, 0), &TEST_UNIT_READY, &[], 0).response, 3);
}
