//! Configuration space, capabilities and the common configuration structure.

use std::collections::BTreeMap;
use std::time::Duration;

use devices::bus::Space;
use devices::iothread::IoThread;
use devices::pci::PciFunction;
use devices::testing::irq::RecordingMsi;
use devices::testing::pci::{TestSeat, config_dword, set_config_dword, set_config_word};
use hba_virtio_scsi::{Error, Options, VirtioScsi};

use crate::guest::{CHANGE, EVENT_IDX, Guest, HOTPLUG, INDIRECT, RAM, RING_RESET, VERSION_1};

fn guest(options: Options) -> Guest {
    Guest::new(options, 1, BTreeMap::new())
}

#[test]
fn identity_is_the_one_that_drivers_know() {
    let guest = guest(Options::default());
    let hba = &*guest.hba;
    assert_eq!(config_dword(hba, 0x00), 0x1048_1af4);
    assert_eq!(config_dword(hba, 0x08), 0x0100_0001, "class 010000 revision 1");
    assert_eq!(config_dword(hba, 0x2c), 0x1100_1af4);
    assert_eq!(config_dword(hba, 0x3c) >> 8 & 0xff, 1, "INTA#");
    assert_eq!(config_dword(hba, 0x10), 0, "BAR 0 is for a transitional device");
    for bar in [1, 4] {
        set_config_dword(hba, 0x10 + 4 * bar, 0xffff_ffff);
        assert_eq!(config_dword(hba, 0x10 + 4 * bar) & 0xf, 0, "BAR {bar} is 32-bit memory");
    }
}

#[test]
fn options_are_checked() {
    let guest = guest(Options::default());
    let seat = || guest.seat.seat.clone();
    let make = |options| VirtioScsi::new(seat(), BTreeMap::new(), vec![], options).err().unwrap();
    let options = Options::default();
    assert!(matches!(make(options), Error::NoIoThread));
    assert!(matches!(make(Options { request_queues: 0, ..options }), Error::RequestQueues(0)));
    for size in [0, 2, 3, 100, 2048] {
        assert!(matches!(make(Options { queue_size: size, ..options }), Error::QueueSize(_)), "{size}");
    }
}

#[test]
fn offers_what_the_standard_needs_and_nothing_it_cannot_do() {
    let options = Options { request_queues: 4, ..Options::default() };
    let with = guest(Options { access_platform: true, ..options });
    let without = guest(options);
    let features = 1 | HOTPLUG | CHANGE | INDIRECT | EVENT_IDX | VERSION_1 | RING_RESET;
    assert_eq!(without.offered(), features);
    assert_eq!(with.offered(), features | 1 << 33);
    assert_eq!(self::guest(Options { protection: true, ..options }).offered(), features | 8);
    without.write(without.at.common, &2_u32.to_le_bytes());
    assert_eq!(without.read::<4>(without.at.common + 4), [0; 4], "no third half");
    assert_eq!(without.read::<2>(without.at.common + 18), [6, 0], "num_queues");
}

#[test]
fn features_are_refused_by_clearing_features_ok() {
    let mut guest = guest(Options::default());
    assert!(!guest.negotiate(EVENT_IDX), "without VERSION_1");
    assert!(!guest.negotiate(VERSION_1 | 8), "T10_PI is not on offer without disks that have it");
    assert!(!guest.negotiate(VERSION_1 | 1 << 34), "packed rings are not on offer");
    guest.set_status(3 | 8 | 4);
    assert_eq!(guest.status(), 3, "no DRIVER_OK without FEATURES_OK");
    assert!(guest.negotiate(VERSION_1 | EVENT_IDX));
    // Later writes change nothing.
    guest.write(guest.at.common + 8, &0_u32.to_le_bytes());
    guest.write(guest.at.common + 12, &1_u32.to_le_bytes());
    assert_eq!(u32::from_le_bytes(guest.read(guest.at.common + 12)), EVENT_IDX as u32);
}

#[test]
fn status_bits_are_only_added_until_reset() {
    let mut guest = guest(Options::default());
    guest.reset();
    guest.set_status(1);
    guest.set_status(2);
    assert_eq!(guest.status(), 3);
    guest.set_status(0x40 | 0x30);
    assert_eq!(guest.status(), 3, "DEVICE_NEEDS_RESET is the device's, the others are reserved");
    guest.set_status(0x80);
    assert_eq!(guest.status(), 0x83);
    guest.set_status(0);
    assert_eq!(guest.status(), 0, "an idle device is reset when the write returns");
}

#[test]
fn queue_sizes_are_powers_of_two_up_to_the_offer() {
    let mut guest = guest(Options { queue_size: 256, ..Options::default() });
    guest.negotiate(VERSION_1);
    for size in [0_u16, 3, 255, 512, 32768, 65535] {
        guest.select(2);
        guest.write(guest.at.common + 24, &size.to_le_bytes());
        assert_eq!(guest.queue_word(2, 24), 256, "{size} is refused");
    }
    guest.write(guest.at.common + 24, &8_u16.to_le_bytes());
    assert_eq!(guest.queue_word(2, 24), 8);
    guest.setup_queue(2, 16, 0xffff);
    guest.write(guest.at.common + 24, &8_u16.to_le_bytes());
    assert_eq!(guest.queue_word(2, 24), 16, "an enabled queue keeps its size");
    guest.write(guest.at.common + 32, &[0xff; 4]);
    assert_eq!(guest.read::<4>(guest.at.common + 32), [0, 0, 3, 0], "and its place");
    guest.write(guest.at.common + 28, &0_u16.to_le_bytes());
    assert_eq!(guest.queue_word(2, 28), 1, "writing 0 does not disable");
}

#[test]
fn queues_beyond_the_last_do_not_exist() {
    let guest = guest(Options { request_queues: 2, ..Options::default() });
    for index in [4_u16, 5, 0x7fff, 0xffff] {
        assert_eq!(guest.queue_word(index, 24), 0, "queue_size of {index}");
        for offset in (24..=54).step_by(2) {
            guest.write(guest.at.common + offset, &1_u16.to_le_bytes());
        }
        assert_eq!(guest.queue_word(index, 28), 0);
        assert_eq!(guest.queue_word(index, 22), index);
        guest.ring(guest.at.notify + u64::from(index) * guest.at.multiplier, index);
    }
    assert_eq!(guest.queue_word(3, 24), 256);
}

#[test]
fn vectors_beyond_the_table_read_back_as_none() {
    let guest = guest(Options { request_queues: 2, ..Options::default() });
    let set = |offset, vector: u16| {
        guest.write(guest.at.common + offset, &vector.to_le_bytes());
        u16::from_le_bytes(guest.read(guest.at.common + offset))
    };
    guest.select(1);
    for offset in [16, 26] {
        assert_eq!(u16::from_le_bytes(guest.read(guest.at.common + offset)), 0xffff, "none at first");
        assert_eq!(set(offset, 4), 4);
        assert_eq!(set(offset, 5), 0xffff);
        assert_eq!(set(offset, 0), 0);
        assert_eq!(set(offset, 0xffff), 0xffff);
    }
}

/// As Linux sets up: MSI-X is enabled with all vectors masked, and each is mapped before it is unmasked. What has no route
/// is told by NO_VECTOR (virtio 1.3, 4.1.5.1.2.1), upon which drivers share vectors.
#[test]
fn a_vector_that_the_hypervisor_has_no_route_for_reads_back_as_none() {
    let seat = TestSeat::with_msi(RAM, RecordingMsi::with_limit(2));
    let options = Options { request_queues: 2, ..Options::default() };
    let guest = Guest::in_seat(seat, vec![IoThread::start("io").unwrap()], options, BTreeMap::new());
    let map = |queue, offset, vector: u16| {
        guest.select(queue);
        guest.write(guest.at.common + offset, &vector.to_le_bytes());
        u16::from_le_bytes(guest.read(guest.at.common + offset))
    };
    assert_eq!([map(0, 16, 0), map(2, 26, 1), map(3, 26, 2)], [0, 1, 0xffff]);
    assert_eq!(map(3, 26, 1), 1, "a shared one costs nothing more");
    assert_eq!(guest.seat.msi.allocated(), 2);
}

#[test]
fn addresses_are_set_in_halves_or_whole() {
    let guest = guest(Options::default());
    let common = guest.at.common;
    guest.write(common + 32, &0x1122_3344_5566_7780_u64.to_le_bytes());
    guest.write(common + 44, &0x0102_0304_u32.to_le_bytes());
    guest.write(common + 48, &0x0506_0708_u32.to_le_bytes());
    assert_eq!(u64::from_le_bytes(guest.read(common + 32)), 0x1122_3344_5566_7780);
    assert_eq!(u64::from_le_bytes(guest.read(common + 40)), 0x0102_0304_0000_0000);
    assert_eq!(u64::from_le_bytes(guest.read(common + 48)), 0x0000_0000_0506_0708);
}

#[test]
fn widths_that_fit_no_field_are_ignored() {
    let mut guest = guest(Options::default());
    guest.negotiate(VERSION_1);
    let before: [u8; 64] = whole(&guest);
    for offset in 0..70 {
        for width in [3_usize, 5, 6, 7] {
            guest.write(guest.at.common + offset, &[0xff; 7][..width]);
        }
        if offset != 20 {
            guest.write(guest.at.common + offset, &[0xff]);
        }
    }
    guest.write(guest.at.common + 20, &[0, 0]);
    guest.write(guest.at.common + 23, &[0x55, 0x55]);
    guest.write(guest.at.common + 30, &[0x55; 4]);
    assert_eq!(whole(&guest), before);
    assert_eq!(guest.read::<3>(guest.at.common + 17), [before[17], before[18], before[19]]);
}

fn whole(guest: &Guest) -> [u8; 64] {
    let mut all = [0; 64];
    for (i, chunk) in all.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(&guest.read::<8>(guest.at.common + 8 * i as u64));
    }
    all
}

#[test]
fn device_configuration_through_the_bar() {
    let mut guest = guest(Options { request_queues: 3, queue_size: 128, ..Options::default() });
    let at = guest.at.device;
    assert_eq!(u32::from_le_bytes(guest.read(at)), 3);
    assert_eq!(u32::from_le_bytes(guest.read(at + 4)), 126);
    guest.write(at + 20, &64_u32.to_le_bytes());
    assert_eq!(guest.read::<1>(at + 20), [64]);
    guest.reset();
    assert_eq!(u32::from_le_bytes(guest.read(at + 20)), 96, "a reset restores sense_size");
}

#[test]
fn the_access_window_reaches_the_registers_without_a_mapped_bar() {
    let guest = guest(Options::default());
    let (hba, window) = (&*guest.hba, guest.at.window);
    assert_ne!(window, 0);
    hba.config_write(4, &[0, 0]);
    assert_eq!(guest.read::<1>(guest.at.common + 20), [0xff], "memory decoding is off");
    let aim = |bar: u8, offset: u32, length: u32| {
        hba.config_write(window + 4, &[bar]);
        set_config_dword(hba, window + 8, offset);
        set_config_dword(hba, window + 12, length);
    };
    aim(4, 20, 1);
    hba.config_write(window + 16, &[3]);
    assert_eq!(config_dword(hba, window + 16), 3, "device_status");
    aim(4, 0x2000, 4);
    assert_eq!(config_dword(hba, window + 16), 1, "num_queues of the device configuration");
    aim(4, 18, 2);
    let mut word = [0; 2];
    hba.config_read(window + 16, &mut word);
    assert_eq!(word, [3, 0], "num_queues of the common configuration");
    // Accesses that cannot be do nothing.
    for (bar, offset, length) in
        [(0, 0, 4), (7, 0, 4), (255, 0, 1), (4, 0x4000, 4), (4, 1, 2), (4, 0, 3), (4, u32::MAX, 4)]
    {
        aim(bar, offset, length);
        hba.config_write(window + 16, &[0; 4]);
        assert_eq!(config_dword(hba, window + 16), 0, "{bar} {offset:#x} {length}");
    }
    aim(4, 20, 1);
    assert_eq!(config_dword(hba, window + 16), 3);
}

#[test]
fn each_queue_has_a_doorbell_in_the_hypervisor() {
    let guest = guest(Options { request_queues: 4, ..Options::default() });
    let bells = || guest.seat.doorbells.attached();
    let mut addresses: Vec<u64> = bells().iter().map(|bell| bell.addr).collect();
    addresses.sort_unstable();
    let wanted: Vec<u64> = (0..6).map(|i| guest.at.notify + i * guest.at.multiplier).collect();
    assert_eq!(addresses, wanted);
    // The ports, once they are decoded.
    set_config_dword(&*guest.hba, 0x10 + 20, 0xc100);
    set_config_word(&*guest.hba, 4, 0x7);
    let ports =
        bells().iter().filter(|bell| bell.space == Space::Port).map(|bell| bell.addr).collect::<Vec<_>>();
    assert_eq!(ports, [0xc100, 0xc104, 0xc108, 0xc10c, 0xc110, 0xc114]);
}

/// The first notification structure is the one drivers use (4.1.4.4.1); more queues than an I/O BAR has room for
/// have doorbells in memory only.
#[test]
fn the_first_doorbells_are_ports_if_they_fit() {
    for (queues, kinds) in [(62, vec![5, 4]), (63, vec![4])] {
        let guest = guest(Options { request_queues: queues, ..Options::default() });
        let mut bars = Vec::new();
        let mut cap = config_dword(&*guest.hba, 0x34) as u16 & 0xfc;
        while cap != 0 {
            let [id, next, _, kind] = config_dword(&*guest.hba, cap).to_le_bytes();
            if (id, kind) == (9, 2) {
                bars.push(config_dword(&*guest.hba, cap + 4) as u8);
                assert_eq!(config_dword(&*guest.hba, cap + 12), (u32::from(queues) + 2) * 4);
                assert_eq!(config_dword(&*guest.hba, cap + 16), 4, "even power of two");
            }
            cap = u16::from(next) & 0xfc;
        }
        assert_eq!(bars, kinds);
    }
}

#[test]
fn misaligned_rings_need_a_reset_and_cost_nobody_else() {
    let mut guest = guest(Options::default());
    for (offset, addr) in [(32, 8_u32), (40, 1), (48, 2)] {
        guest.enable_msix();
        assert!(guest.negotiate(VERSION_1));
        guest.write(guest.at.common + 16, &0_u16.to_le_bytes());
        guest.select(2);
        for field in [32, 40, 48] {
            let addr = if field == offset { addr } else { 0x2_0000 * field as u32 };
            guest.write(guest.at.common + field, &addr.to_le_bytes());
        }
        guest.write(guest.at.common + 28, &1_u16.to_le_bytes());
        guest.seat.msi.take();
        guest.set_status(15);
        assert_eq!(guest.status(), 15 | 0x40);
        assert_eq!(guest.seat.msi.take().len(), 1, "configuration interrupt");
        guest.reset();
    }
}

#[test]
fn a_system_reset_forgets_everything() {
    let mut guest = guest(Options::default());
    guest.start(VERSION_1, 8);
    guest.hba.reset();
    assert_eq!(guest.read::<1>(guest.at.common + 20), [0xff], "BARs are gone");
    guest.place();
    assert_eq!(guest.status(), 0);
    assert_eq!(guest.queue_word(2, 28), 0);
    guest.queues.clear();
    guest.start(VERSION_1, 8);
    std::thread::sleep(Duration::from_millis(1));
    assert_eq!(guest.status(), 15);
}
