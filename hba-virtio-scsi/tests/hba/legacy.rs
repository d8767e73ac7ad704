//! The legacy interface, as drivers older than version 1 use it: Linux's legacy PCI driver, and SeaBIOS's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use devices::bus::{Doorbell, Space};
use devices::scsi::{Image, LogicalUnit, Lun, Nexus, Target};
use devices::testing::pci::{config_dword, find_capability, set_config_dword, set_config_word};
use hba_virtio_scsi::{Interface, Options};

use crate::guest::{CHANGE, EVENT_IDX, Guest, GuestQueue, HOTPLUG, INDIRECT, VERSION_1, into, lun, out};

const PORTS: u64 = 0xc000;
/// VIRTIO_F_ANY_LAYOUT (virtio 1.3, 6.3).
const ANY_LAYOUT: u64 = 1 << 27;
const READ_10: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const TEST_UNIT_READY: [u8; 6] = [0; 6];

fn options(interface: Interface) -> Options {
    Options { interface, queue_size: 16, ..Options::default() }
}

/// A machine whose firmware has placed the ports.
fn guest(interface: Interface, targets: BTreeMap<u8, Arc<Nexus>>) -> Guest {
    let guest = Guest::new(options(interface), 1, targets);
    set_config_dword(&*guest.hba, 0x10, PORTS as u32);
    set_config_word(&*guest.hba, 4, 0x7);
    guest
}

fn target(disk: LogicalUnit) -> BTreeMap<u8, Arc<Nexus>> {
    let target = Target::new();
    target.attach(Lun([0; 8]), disk).unwrap();
    [(0, Nexus::new(target, None))].into()
}

fn disk() -> BTreeMap<u8, Arc<Nexus>> {
    target(crate::disks::disk().1)
}

impl Guest {
    fn port<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xee; N];
        self.seat.ports.read(PORTS + offset, &mut data);
        data
    }

    fn port16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.port(offset))
    }

    fn port32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.port(offset))
    }

    fn set_port(&self, offset: u64, data: &[u8]) {
        self.seat.ports.write(PORTS + offset, data);
    }

    fn legacy_queue(&mut self, index: u16) {
        self.set_port(14, &index.to_le_bytes());
        assert_eq!(self.port32(8), 0, "a queue that is in use");
        let size = self.port16(12);
        let desc = 0x1_0000 * (1 + u64::from(index));
        self.poke(desc, &[0; 0x1_0000]);
        let avail = desc + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4096);
        self.set_port(8, &((desc >> 12) as u32).to_le_bytes());
        assert_eq!(u64::from(self.port32(8)), desc >> 12);
        self.queues.push(GuestQueue::new(index, size, [desc, avail, used], 0));
    }

    /// Initialises as a legacy driver does; the features are in force without FEATURES_OK.
    fn start_legacy(&mut self, features: u64) {
        self.queues.clear();
        self.set_port(18, &[0]);
        assert_eq!(self.port(18), [0]);
        self.set_port(18, &[1]);
        self.set_port(18, &[3]);
        self.set_port(4, &(features as u32).to_le_bytes());
        self.features = features;
        for index in 0..3 {
            self.legacy_queue(index);
        }
        self.set_port(18, &[7]);
        assert_eq!(self.port(18), [7]);
    }

    /// Sends a command and rings at the port.
    fn legacy_command(&mut self, cdb: &[u8], data_in: u32) -> crate::guest::Reply {
        let (response, data) = self.send(cdb, data_in);
        let (_, used) = self.wait_used(2);
        self.reply(response, used, data, data_in as usize)
    }

    fn send(&mut self, cdb: &[u8], data_in: u32) -> (u64, u64) {
        let request = self.alloc_with(&Self::request_head(lun(0, 0), 7, cdb));
        let response = self.alloc_with(&[0xee; 108]);
        let data = self.alloc_with(&vec![0xdd; data_in as usize]);
        self.add(2, &[out(request, 51), into(response, 108), into(data, data_in)]);
        let bell = Doorbell { addr: PORTS + 16, space: Space::Port, width: 2, value: Some(2) };
        assert!(self.seat.doorbells.ring(bell), "the hypervisor knows the doorbell");
        (response, data)
    }
}

#[test]
fn identity_is_the_one_that_legacy_drivers_know() {
    for interface in [Interface::Transitional, Interface::Legacy] {
        let guest = guest(interface, BTreeMap::new());
        let hba = &*guest.hba;
        assert_eq!(config_dword(hba, 0x00), 0x1004_1af4);
        assert_eq!(config_dword(hba, 0x08), 0x0100_0000, "revision 0");
        assert_eq!(config_dword(hba, 0x2c), 0x0008_1af4, "subsystem ID is the device type");
        set_config_dword(hba, 0x10, 0xffff_ffff);
        assert_eq!(config_dword(hba, 0x10), 0xffff_ffc1, "64 ports");
        let modern = interface == Interface::Transitional;
        assert_eq!(find_capability(hba, 9).is_some(), modern);
        set_config_dword(hba, 0x20, 0xffff_ffff);
        assert_eq!(config_dword(hba, 0x20) != 0, modern, "BAR of the structures");
    }
}

#[test]
fn registers_are_where_the_standard_puts_them() {
    let guest = guest(Interface::Transitional, BTreeMap::new());
    let features = 1 | HOTPLUG | CHANGE | INDIRECT | EVENT_IDX | ANY_LAYOUT;
    assert_eq!(u64::from(guest.port32(0)), features);
    guest.set_port(4, &u32::MAX.to_le_bytes());
    assert_eq!(u64::from(guest.port32(4)), features, "no more than was on offer");
    assert_eq!(guest.port16(12), 16, "queue_size");
    guest.set_port(14, &3_u16.to_le_bytes());
    assert_eq!((guest.port16(12), guest.port32(8), guest.port16(14)), (0, 0, 3), "no fourth queue");
    guest.set_port(8, &1_u32.to_le_bytes());
    guest.set_port(16, &3_u16.to_le_bytes());
    assert_eq!(guest.port32(8), 0);
    // Device configuration, byte by byte as Linux reads it.
    assert_eq!(
        [guest.port::<1>(20), guest.port(24), guest.port(36), guest.port(40)],
        [[1], [14], [16], [96]]
    );
    assert_eq!(guest.port32(44), 32, "cdb_size");
    assert_eq!(guest.port::<8>(52 - 4), [0, 0, 255, 0, 255, 0x3f, 0, 0], "max_channel, max_target, max_lun");
    // As Linux writes it.
    for (at, byte) in (40..).zip(252_u32.to_le_bytes()) {
        guest.set_port(at, &[byte]);
    }
    assert_eq!(guest.port32(40), 252);
    guest.set_port(20, &[9]);
    assert_eq!(guest.port(20), [1], "num_queues is not to be written");
    // Widths and places of no field.
    for offset in 0..64 {
        for width in [1, 2, 3, 4, 8] {
            if offset + width <= 18 && offset != 14 && !(offset == 4 && width == 4) && offset != 8 {
                guest.set_port(offset, &[0x55; 8][..width as usize]);
            }
        }
    }
    assert_eq!((u64::from(guest.port32(4)), guest.port(18)), (features, [0]));
    let mut across = [0; 4];
    guest.seat.ports.read(PORTS + 18, &mut across);
    assert_eq!(across, [0, 0, 1, 0], "status, ISR and the start of the configuration");
}

#[test]
fn the_configuration_moves_while_messages_are_enabled() {
    let guest = guest(Interface::Transitional, BTreeMap::new());
    assert_eq!(guest.port32(24), 14, "seg_max");
    guest.enable_msix();
    assert_eq!((guest.port32(24), guest.port32(28)), (1, 14), "num_queues, seg_max");
    assert_eq!((guest.port16(20), guest.port16(22)), (0xffff, 0xffff));
    guest.set_port(20, &1_u16.to_le_bytes());
    guest.set_port(22, &3_u16.to_le_bytes());
    assert_eq!((guest.port16(20), guest.port16(22)), (1, 3));
    guest.set_port(22, &4_u16.to_le_bytes());
    assert_eq!(guest.port16(22), 0xffff, "beyond the table");
}

#[test]
fn commands_run_with_the_wire() {
    for (interface, features) in [
        (Interface::Legacy, 0),
        (Interface::Legacy, INDIRECT | EVENT_IDX),
        (Interface::Transitional, 0),
        (Interface::Transitional, EVENT_IDX),
    ] {
        let mut guest = guest(interface, disk());
        guest.start_legacy(features);
        let reply = guest.legacy_command(&TEST_UNIT_READY, 0);
        assert_eq!((reply.response, reply.status, reply.sense[2] & 0xf), (0, 2, 6), "power on");
        let reply = guest.legacy_command(&READ_10, 512);
        assert_eq!((reply.response, reply.status, reply.used), (0, 0, 108 + 512));
        assert_eq!(reply.data, [0; 512]);
        guest.wait_for("INTA#", || guest.seat.intx.is_high());
        assert_eq!(guest.port(19), [1]);
        assert_eq!((guest.port(19), guest.seat.intx.is_high()), ([0], false), "reading clears it");
    }
}

#[test]
fn commands_run_with_messages() {
    let mut guest = guest(Interface::Transitional, disk());
    guest.enable_msix();
    guest.start_legacy(EVENT_IDX);
    guest.set_port(14, &2_u16.to_le_bytes());
    guest.set_port(22, &2_u16.to_le_bytes());
    // Who looks at the used ring before the message has come tells the device that there need not be one.
    let (response, data) = guest.send(&TEST_UNIT_READY, 0);
    guest.wait_for("a message", || guest.seat.msi.take().iter().any(|message| message.data == 2));
    assert_eq!(guest.port(19), [0]);
    let (_, used) = guest.wait_used(2);
    assert_eq!(guest.reply(response, used, data, 0).response, 0);
}

/// SeaBIOS and old FreeBSD drivers queue before DRIVER_OK (3.1.2).
#[test]
fn queues_live_from_the_moment_they_have_a_page() {
    let mut guest = guest(Interface::Legacy, disk());
    guest.start_legacy(0);
    guest.queues.clear();
    guest.set_port(18, &[0]);
    guest.set_port(18, &[3]);
    for index in 0..3 {
        guest.legacy_queue(index);
    }
    assert_eq!(guest.legacy_command(&READ_10, 512).response, 0);
    assert_eq!(guest.port(18), [3]);
}

#[test]
fn cve_2011_2512_doorbells_of_queues_that_do_not_exist() {
    let mut guest = guest(Interface::Legacy, disk());
    guest.start_legacy(0);
    for number in [3_u16, 4, 0x7fff, 0x8000, 0xfffe, 0xffff] {
        guest.set_port(16, &number.to_le_bytes());
        guest.set_port(14, &number.to_le_bytes());
        assert_eq!((guest.port16(12), guest.port32(8)), (0, 0), "{number:#x}");
        guest.set_port(8, &[0xff; 4]);
        assert_eq!(guest.port32(8), 0, "{number:#x}");
    }
    assert_eq!(guest.port(18), [7]);
    assert_eq!(guest.legacy_command(&TEST_UNIT_READY, 0).response, 0);
}

#[test]
fn cve_2017_17381_a_ring_that_was_taken_away() {
    let mut guest = guest(Interface::Legacy, disk());
    guest.start_legacy(0);
    guest.set_port(14, &2_u16.to_le_bytes());
    guest.set_port(8, &[0; 4]);
    assert_eq!(guest.port32(8), 0);
    for queue in [0_u16, 1, 2] {
        guest.set_port(16, &queue.to_le_bytes());
    }
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(guest.port(18), [7]);
    guest.start_legacy(0);
    assert_eq!(guest.legacy_command(&TEST_UNIT_READY, 0).response, 0);
}

/// Legacy drivers do not look at the status after a reset: nothing may write to memory once the write is done.
#[test]
fn a_reset_has_ended_what_was_in_flight() {
    for take_queue in [false, true] {
        let (image, unit) = crate::disks::disk();
        let mut guest = guest(Interface::Legacy, target(unit));
        guest.start_legacy(0);
        guest.legacy_command(&TEST_UNIT_READY, 0);
        let hold = |held| match &*image {
            Image::Recording(image) => {
                image.hold(held);
                image.arrived()
            }
            #[allow(unreachable_patterns)]
            _ => panic!("not the image of the suite"),
        };
        let before = hold(true);
        let (response, data) = guest.send(&READ_10, 512);
        guest.wait_for("the read", || hold(true) > before);
        if take_queue {
            // It goes on by itself and has ended when the write returns.
            let image = image.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                if let Image::Recording(image) = &*image {
                    image.hold(false);
                }
            });
        }
        if take_queue {
            guest.set_port(14, &2_u16.to_le_bytes());
            guest.set_port(8, &[0; 4]);
            assert_eq!((guest.port32(8), guest.port(18)), (0, [7]));
        } else {
            guest.set_port(18, &[0]);
            assert_eq!(guest.port(18), [0]);
        }
        guest.poke(data, &[0xaa; 512]);
        guest.poke(response, &[0xaa; 108]);
        hold(false);
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(guest.peek(data, 512), [0xaa; 512]);
        assert_eq!(guest.peek(response, 108), [0xaa; 108]);
        guest.start_legacy(0);
        assert_eq!(guest.legacy_command(&READ_10, 512).response, 0, "and it starts anew");
    }
}

#[test]
fn a_broken_ring_needs_a_reset() {
    let mut guest = guest(Interface::Legacy, disk());
    guest.start_legacy(0);
    let avail = guest.queues[2].avail;
    // 17 of 16.
    guest.poke(avail, &[0, 0, 17, 0]);
    guest.set_port(16, &2_u16.to_le_bytes());
    guest.wait_for("DEVICE_NEEDS_RESET", || guest.port(18) == [0x47]);
    assert_eq!(guest.port::<1>(19)[0] & 2, 2, "configuration interrupt");
    guest.set_port(14, &2_u16.to_le_bytes());
    guest.start_legacy(0);
    assert_eq!(guest.legacy_command(&READ_10, 512).response, 0);
}

#[test]
fn a_transitional_device_is_a_modern_one_too() {
    let mut guest = guest(Interface::Transitional, disk());
    guest.start(VERSION_1 | EVENT_IDX | INDIRECT, 8);
    assert_eq!(guest.offered() & ANY_LAYOUT, 0, "for legacy drivers only");
    assert_eq!(guest.command(2, lun(0, 0), &READ_10, &[], 512).response, 0);
    assert_eq!(guest.port(18), [15], "the status is the same");
    // A kexec'd kernel of the older kind takes over.
    guest.reset();
    guest.set_port(18, &[0]);
    set_config_word(&*guest.hba, find_capability(&*guest.hba, 0x11).unwrap() + 2, 0);
    guest.start_legacy(EVENT_IDX);
    assert_eq!(guest.legacy_command(&READ_10, 512).response, 0);
}
