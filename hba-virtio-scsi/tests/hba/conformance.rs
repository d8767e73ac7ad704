//! Statements of the standard about devices ("the device MUST") that no other test covers, one test each.

use std::collections::BTreeMap;

use devices::testing::pci::config_dword;
use hba_virtio_scsi::Options;

use crate::guest::{EVENT_IDX, Guest, INDIRECT, INDIRECT_TABLE, NEXT, VERSION_1, WRITE, into, lun, out};

const TEST_UNIT_READY: [u8; 6] = [0; 6];

fn started(features: u64) -> Guest {
    let mut guest = Guest::new(Options::default(), 1, BTreeMap::new());
    guest.start(VERSION_1 | features, 16);
    guest
}

/// A request and room for its response.
fn request(guest: &mut Guest) -> (u64, u64) {
    let request = guest.alloc_with(&Guest::request_head(lun(0, 0), 1, &TEST_UNIT_READY));
    (request, guest.alloc_with(&[0xee; 108]))
}

/// 2.7.5.3.2: the device ignores the write-only flag in the descriptor that refers to an indirect table.
#[test]
fn the_write_flag_of_an_indirect_descriptor_is_ignored() {
    let mut guest = started(INDIRECT);
    let (request, response) = request(&mut guest);
    let head = guest.add_indirect(2, &[out(request, 51), into(response, 108)]);
    let at = guest.queues[2].desc + 16 * u64::from(head) + 12;
    guest.poke(at, &(INDIRECT_TABLE | WRITE).to_le_bytes());
    guest.kick(2);
    assert_eq!(guest.wait_used(2), (head, 12));
    assert_eq!(guest.peek(response + 11, 1), [3]);
}

/// 2.7.5.3.2: zero or more normal chained descriptors followed by a single indirect one.
#[test]
fn normal_descriptors_may_come_before_an_indirect_one() {
    let mut guest = started(INDIRECT);
    let (request, response) = request(&mut guest);
    let table = (guest.alloc(32) + 15) & !15;
    guest.descriptor(table, 0, request + 30, 21, NEXT, 1);
    guest.descriptor(table, 1, response, 108, WRITE, 0);
    let desc = guest.queues[2].desc;
    guest.descriptor(desc, 4, request, 30, NEXT, 5);
    guest.descriptor(desc, 5, table, 32, INDIRECT_TABLE, 0);
    guest.publish(2, 4);
    guest.kick(2);
    assert_eq!(guest.wait_used(2), (4, 12));
    assert_eq!(guest.peek(response + 11, 1), [3]);
}

/// 2.7.7.2: with VIRTIO_F_EVENT_IDX the lower bit of the driver's flags is ignored, without it used_event is.
#[test]
fn the_other_means_of_suppression_is_ignored() {
    for features in [0, EVENT_IDX] {
        let mut guest = started(features);
        let (avail, size) = (guest.queues[2].avail, 16);
        guest.seat.msi.take();
        let (flags, used_event) = if features == 0 { (0_u16, 0x7000_u16) } else { (1, 0) };
        guest.poke(avail, &flags.to_le_bytes());
        guest.poke(avail + 4 + 2 * size, &used_event.to_le_bytes());
        let (request, response) = request(&mut guest);
        guest.add(2, &[out(request, 51), into(response, 108)]);
        guest.kick(2);
        guest.wait_for("an interrupt", || !guest.seat.msi.take().is_empty());
    }
}

/// 2.7.10.1: flags of the used ring are 0 or 1 without VIRTIO_F_EVENT_IDX, and 0 with it.
#[test]
fn flags_of_the_used_ring() {
    for features in [0, EVENT_IDX] {
        let mut guest = started(features);
        for _ in 0..50 {
            guest.command(2, lun(0, 0), &TEST_UNIT_READY, &[], 0);
            let flags = guest.peek16(guest.queues[2].used);
            assert!(flags <= u16::from(features == 0), "{flags}");
        }
    }
}

/// 2.7.10.1: the device handles spurious notifications.
#[test]
fn doorbells_without_buffers_do_nothing() {
    let mut guest = started(EVENT_IDX);
    for queue in 0..3_u16 {
        let notify = guest.queues[usize::from(queue)].notify;
        (0..100).for_each(|_| guest.ring(notify, queue));
    }
    guest.expect_silence(2);
    assert_eq!(guest.command(2, lun(0, 0), &TEST_UNIT_READY, &[], 0).response, 3);
}

/// 4.1.5.3.1 and 4.1.5.4.1: with MSI-X and no vector there is no interrupt, neither for a queue nor for the configuration.
#[test]
fn without_a_vector_there_is_no_interrupt() {
    let mut guest = started(0);
    guest.select(2);
    for offset in [16, 26] {
        guest.write(guest.at.common + offset, &0xffff_u16.to_le_bytes());
    }
    guest.seat.msi.take();
    guest.command(2, lun(0, 0), &TEST_UNIT_READY, &[], 0);
    // A ring that breaks is a change of the configuration.
    guest.poke(guest.queues[2].avail + 2, &0x4000_u16.to_le_bytes());
    guest.ring(guest.queues[2].notify, 2);
    guest.wait_for("DEVICE_NEEDS_RESET", || guest.status() & 0x40 != 0);
    assert_eq!((guest.seat.msi.take(), guest.seat.intx.is_high()), (vec![], false));
    assert_eq!(guest.read::<1>(guest.at.isr), [2], "but it is in the ISR status");
}

/// 4.1.4.5.1: without MSI-X the Interrupt Status bit of PCI is the logical OR of the ISR status.
#[test]
fn the_pci_status_follows_the_isr_status() {
    let mut guest = Guest::new(Options::default(), 1, BTreeMap::new());
    guest.negotiate(VERSION_1);
    (0..3).for_each(|index| guest.setup_queue(index, 8, 0xffff));
    guest.set_status(15);
    let interrupt_status = |guest: &Guest| config_dword(&*guest.hba, 4) >> 19 & 1;
    assert_eq!(interrupt_status(&guest), 0);
    guest.command(2, lun(0, 0), &TEST_UNIT_READY, &[], 0);
    guest.wait_for("Interrupt Status", || interrupt_status(&guest) == 1);
    assert_eq!(guest.read::<1>(guest.at.isr), [1]);
    assert_eq!(interrupt_status(&guest), 0);
}

/// 2.1.2 and 3.1.1: after DEVICE_NEEDS_RESET nothing is taken until the reset.
#[test]
fn a_broken_device_takes_nothing() {
    let mut guest = started(0);
    guest.poke(guest.queues[2].avail + 2, &0x4000_u16.to_le_bytes());
    guest.ring(guest.queues[2].notify, 2);
    guest.wait_for("DEVICE_NEEDS_RESET", || guest.status() & 0x40 != 0);
    let (request, response) = request(&mut guest);
    guest.add(0, &[out(request, 24), into(response, 1)]);
    guest.ring(guest.queues[0].notify, 0);
    guest.expect_silence(0);
    guest.start(VERSION_1, 16);
    assert_eq!(guest.tmf(5, lun(0, 0), 0), 3);
}
