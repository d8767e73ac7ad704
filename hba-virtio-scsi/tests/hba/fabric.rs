//! The port on a fabric (docs/virtio-scsi-fc.md): what a driver is shown, what it can ask for, and how it addresses units.

use std::collections::BTreeMap;
use std::sync::Arc;

use devices::scsi::{Image, Lun, Nexus, Target};
use hba_virtio_scsi::fc::{Active, Emulated, PortState, RemoteState};
use hba_virtio_scsi::{Interface, Options};

use crate::disks::{Bench, disk};
use crate::guest::{CHANGE, FC_HOST, Guest, HOTPLUG, NATIVE, RESCAN, RPORT_EVENTS, VERSION_1, VPORT};

pub const ALL: u64 = HOTPLUG | RESCAN | NATIVE | FC_HOST | RPORT_EVENTS;

/// A `lun` field as every driver may write it.
pub fn lun(target: u8, unit: u8) -> [u8; 8] {
    [1, target, 0, unit, 0, 0, 0, 0]
}

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
    pub fn inquiry(&mut self, lun: [u8; 8]) -> u8 {
        let (response, status, data) = self.send(lun, &[0x12, 0, 0, 0, 36, 0], 36);
        assert_eq!((response, status), (0, 0));
        data[0]
    }

    pub fn luns(&mut self, lun: [u8; 8]) -> Vec<[u8; 8]> {
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

/// Takes a unit away that nothing is in flight on.
pub fn detach(fabric: &Fabric, lun: Lun) {
    let mut gone = Box::pin(fabric.target.detach(lun));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(matches!(gone.as_mut().poll(&mut cx), std::task::Poll::Ready(Some(_))));
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
        (ALL | VPORT, false),
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

/// A driver looks at the configuration between FEATURES_OK and DRIVER_OK: what changes after that look it hears of as soon as it can.
#[test]
fn a_change_while_a_driver_starts_is_told_when_it_has_started() {
    let mut fabric = Fabric::cold();
    let guest = &mut fabric.guest;
    guest.enable_msix();
    for changes in [true, false] {
        assert!(guest.negotiate(VERSION_1 | ALL));
        guest.write(guest.at.common + 16, &0_u16.to_le_bytes());
        if changes {
            fabric.san.set_local(|port| port.state = PortState::LinkDown);
        }
        assert!(guest.seat.msi.take().is_empty());
        guest.set_status(3 | 8 | 4);
        let data: Vec<_> = guest.seat.msi.take().iter().map(|message| message.data).collect();
        assert_eq!(data, vec![0; usize::from(changes)]);
    }
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
