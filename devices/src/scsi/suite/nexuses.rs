//! What one initiator cannot see alone: other initiators, other logical units, the image below.

use std::sync::{Arc, Mutex};

use super::local::{Local, block_on, target_of};
use super::management::manage;
use super::{BLOCK, Initiator, Operation, RecordingDisk, check, config, exact, good, image, settle};
use crate::scsi::{
    AttachError, Disk, DiskConfig, DiskError, Image, LogicalUnit, Lun, Nexus, PortEvents, Target,
    TaskManagement,
};
use crate::storage::{BlockErrorKind, ByteOffset, Durability, Span, Unmap};

pub(super) const LUN_0: Lun = Lun([0; 8]);
pub(super) const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
pub(super) const WRITE: [u8; 10] = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
pub(super) const READY: [u8; 6] = [0; 6];

/// A target with a disk at LUN 0, its image, and two initiators that have seen POWER ON.
pub(super) fn rig(config: DiskConfig) -> (Arc<Target>, Arc<Image>, Local, Local) {
    let image = Arc::new(Image::Recording(image()));
    let target = target_of(LogicalUnit::Disk(Disk::new(image.clone(), config).unwrap()));
    let (mut a, mut b) = (Local::new(&target), Local::new(&target));
    settle(&mut a);
    settle(&mut b);
    (target, image, a, b)
}

pub(super) fn ram(image: &Image) -> &RecordingDisk {
    let Image::Recording(ram) = image else { panic!("another kind of image") };
    ram
}

fn small_disk() -> LogicalUnit {
    let image = Arc::new(Image::Recording(RecordingDisk::new(1 << 20)));
    LogicalUnit::Disk(Disk::new(image, DiskConfig::default()).unwrap())
}

#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl Log {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl PortEvents for Log {
    fn unit_attention(&self, lun: Lun, (asc, ascq): (u8, u8)) {
        self.0.lock().unwrap().push(format!("{:02x?} {asc:02x}/{ascq:02x}", &lun.0[..2]));
    }
    fn inventory_changed(&self) {
        self.0.lock().unwrap().push("inventory".into());
    }
}

#[test]
fn targets_and_nexuses_go_anywhere() {
    fn check<T: Send + Sync>() {}
    check::<Target>();
    check::<Nexus>();
}

#[test]
fn each_initiator_has_its_own_attentions() {
    let target = target_of(small_disk());
    let (mut a, mut b) = (Local::new(&target), Local::new(&target));
    check(&mut a, &READY, &[], 0, (0x6, 0x29, 0x00));
    good(&mut a, &READY, &[], 0);
    check(&mut b, &READY, &[], 0, (0x6, 0x29, 0x00));
}

#[test]
fn mode_changes_are_told_to_the_others() {
    let (_target, _, mut a, mut b) = rig(config());
    let (log_a, log_b) = (Arc::new(Log::default()), Arc::new(Log::default()));
    a.nexus.set_events(Some(log_a.clone()));
    b.nexus.set_events(Some(log_b.clone()));
    let mut list = vec![0; 4];
    list.extend(&good(&mut a, &[0x1a, 8, 8, 0, 24, 0], &[], 24)[4..]);
    exact(&mut a, &[0x15, 0x10, 0, 0, 24, 0], &list, 0);
    good(&mut b, &READY, &[], 0);
    list[4 + 2] ^= 0x04;
    exact(&mut a, &[0x15, 0x10, 0, 0, 24, 0], &list, 0);
    good(&mut a, &READY, &[], 0);
    check(&mut b, &READY, &[], 0, (0x6, 0x2a, 0x01));
    assert_eq!((log_a.take(), log_b.take()), (vec![], vec!["[00, 00] 2a/01".to_string()]));
}

#[test]
fn units_come_and_go() {
    let (target, _, mut a, mut b) = rig(config());
    let log = Arc::new(Log::default());
    a.nexus.set_events(Some(log.clone()));
    let far = Lun([0x41, 0x2c, 0, 0, 0, 0, 0, 0]);
    target.attach(far, small_disk()).unwrap();
    assert_eq!(target.attach(far, small_disk()), Err(AttachError::InUse));
    assert_eq!(target.attach(Lun([0xd2, 0, 0x40, 0, 0, 0, 0, 0]), small_disk()), Err(AttachError::BadLun));
    assert_eq!(log.take(), ["inventory"]);
    check(&mut a, &READY, &[], 0, (0x6, 0x3f, 0x0e));
    good(&mut a, &READY, &[], 0);
    // REPORT LUNS shows the new unit and is as good as having been told.
    let data = good(&mut b, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[], 256);
    assert_eq!(data[..24], [0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x41, 0x2c, 0, 0, 0, 0, 0, 0]);
    good(&mut b, &READY, &[], 0);
    (a.lun, b.lun) = (far, Lun([0xd2, 0, 0x01, 0x2c, 0, 0, 0, 0]));
    check(&mut a, &READY, &[], 0, (0x6, 0x29, 0x00));
    check(&mut b, &READY, &[], 0, (0x6, 0x29, 0x00));
    assert!(block_on(target.detach(far)).is_some());
    assert!(block_on(target.detach(far)).is_none());
    check(&mut a, &READY, &[], 0, (0x5, 0x25, 0x00));
    a.lun = LUN_0;
    check(&mut a, &READY, &[], 0, (0x6, 0x3f, 0x0e));
}

#[test]
fn luns_changed_is_reported_once_for_the_target() {
    let (target, _, mut a, _) = rig(config());
    let one = Lun([0, 1, 0, 0, 0, 0, 0, 0]);
    target.attach(one, small_disk()).unwrap();
    a.lun = one;
    settle(&mut a);
    target.attach(Lun([0, 2, 0, 0, 0, 0, 0, 0]), small_disk()).unwrap();
    check(&mut a, &READY, &[], 0, (0x6, 0x3f, 0x0e));
    a.lun = LUN_0;
    good(&mut a, &READY, &[], 0);
}

#[test]
fn absent_units_answer_what_they_must() {
    let target = target_of(small_disk());
    let mut a = Local::new(&target);
    for bytes in [[0, 9, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0], [0x80, 0, 0, 0, 0, 0, 0, 0]] {
        a.lun = Lun(bytes);
        for byte in [0, 0x60] {
            assert_eq!(exact(&mut a, &[0x12, byte, 0, 0, 36, 0], &[], 36)[0], 0x7f);
        }
        let data = exact(&mut a, &[0x03, 0, 0, 0, 18, 0], &[], 18);
        assert_eq!((data[2], data[12], data[13]), (0x5, 0x25, 0x00));
        for cdb in [&READY[..], &READ, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[0xd0]] {
            check(&mut a, cdb, &[], 16, (0x5, 0x25, 0x00));
        }
    }
}

#[test]
fn report_luns_is_answered_without_lun_0_and_by_the_well_known_unit() {
    let target = Target::new();
    target.attach(Lun([0, 7, 0, 0, 0, 0, 0, 0]), small_disk()).unwrap();
    let mut a = Local::new(&target);
    let cdb = [0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0];
    for lun in [LUN_0, Lun([0xc1, 0x01, 0, 0, 0, 0, 0, 0])] {
        a.lun = lun;
        assert_eq!(exact(&mut a, &cdb, &[], 16), [0, 0, 0, 8, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0]);
    }
    assert_eq!(exact(&mut a, &[0x12, 0, 0, 0, 36, 0], &[], 36)[0], 0x1e);
    good(&mut a, &READY, &[], 0);
    check(&mut a, &READ, &[], BLOCK, (0x5, 0x20, 0x00));
    a.lun = LUN_0;
    assert_eq!(exact(&mut a, &[0x12, 0, 0, 0, 36, 0], &[], 36)[0], 0x7f);
    check(&mut a, &READY, &[], 0, (0x5, 0x25, 0x00));
}

#[test]
fn a_reservation_keeps_the_others_out() {
    let (_target, _, mut a, mut b) = rig(config());
    exact(&mut a, &[0x16, 0, 0, 0, 0, 0], &[], 0);
    for cdb in [&READY[..], &READ, &[0x16, 0, 0, 0, 0, 0], &[0x1a, 0, 0x3f, 0, 64, 0]] {
        let outcome = b.command(cdb, &[], 0);
        assert_eq!((outcome.status, outcome.sense.len()), (0x18, 0), "{cdb:02x?}");
    }
    good(&mut b, &[0x12, 0, 0, 0, 36, 0], &[], 36);
    good(&mut b, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[], 16);
    good(&mut b, &[0x03, 0, 0, 0, 18, 0], &[], 18);
    // RELEASE of another is GOOD and does nothing.
    exact(&mut b, &[0x17, 0, 0, 0, 0, 0], &[], 0);
    assert_eq!(b.command(&READY, &[], 0).status, 0x18);
    // The holder's nexus loss frees the unit.
    manage(&a.nexus, TaskManagement::NexusReset, &mut []);
    good(&mut b, &READY, &[], 0);
    check(&mut a, &READY, &[], 0, (0x6, 0x29, 0x07));
    // So does a reset by the other.
    exact(&mut a, &[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0);
    manage(&b.nexus, TaskManagement::LogicalUnitReset(LUN_0), &mut []);
    check(&mut b, &READY, &[], 0, (0x6, 0x29, 0x03));
    check(&mut a, &READY, &[], 0, (0x6, 0x29, 0x03));
    good(&mut b, &READY, &[], 0);
    // And the end of its nexus.
    exact(&mut a, &[0x16, 0, 0, 0, 0, 0], &[], 0);
    drop(a);
    good(&mut b, &READY, &[], 0);
}

#[test]
fn a_new_size_is_noticed() {
    let (target, image, mut a, mut b) = rig(config());
    let log = Arc::new(Log::default());
    b.nexus.set_events(Some(log.clone()));
    ram(&image).set_geometry(|geometry| geometry.len += BLOCK as u64 + 100);
    target.refresh(LUN_0);
    target.refresh(LUN_0);
    assert_eq!(log.take(), ["[00, 00] 2a/09"]);
    check(&mut a, &READY, &[], 0, (0x6, 0x2a, 0x09));
    assert_eq!(exact(&mut a, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 8)[..4], [0, 0, 0x40, 0]);
    check(&mut b, &READY, &[], 0, (0x6, 0x2a, 0x09));
    // Without being told, the next command finds out.
    ram(&image).set_geometry(|geometry| geometry.len += BLOCK as u64);
    check(&mut a, &READ, &[], BLOCK, (0x6, 0x2a, 0x09));
}

#[test]
fn durability_follows_fua_and_the_write_cache() {
    let (_target, image, mut a, _) = rig(config());
    let block = [1; BLOCK];
    let wrote = |durability| Operation::Write(0, 512, durability);
    exact(&mut a, &WRITE, &block, 0);
    exact(&mut a, &[0x2a, 0x08, 0, 0, 0, 0, 0, 0, 1, 0], &block, 0);
    assert_eq!(ram(&image).operations(), [wrote(Durability::Cached), wrote(Durability::Stable)]);
    let mut list = vec![0; 4];
    list.extend(&good(&mut a, &[0x1a, 8, 8, 0, 24, 0], &[], 24)[4..]);
    list[4 + 2] &= !0x04;
    exact(&mut a, &[0x15, 0x10, 0, 0, 24, 0], &list, 0);
    assert_eq!(ram(&image).operations(), [Operation::Flush], "the cache is written back when it goes off");
    exact(&mut a, &WRITE, &block, 0);
    exact(&mut a, &[0x41, 8, 0, 0, 0, 0, 0, 0, 2, 0], &[0; BLOCK], 0);
    let span = Span { at: ByteOffset(0), len: 1024 };
    let wanted = [wrote(Durability::Stable), Operation::Zero(span, Unmap::Allowed), Operation::Flush];
    assert_eq!(ram(&image).operations(), wanted);
    // Zeroing without UNMAP keeps the space.
    exact(&mut a, &[0x93, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0], &[], 0);
    assert_eq!(ram(&image).operations(), [Operation::Zero(span, Unmap::Keep), Operation::Flush]);
}

#[test]
fn a_disk_with_its_cache_off_from_the_start() {
    let (_target, image, mut a, _) = rig(DiskConfig { write_cache: false, ..config() });
    assert_eq!(good(&mut a, &[0x1a, 8, 8, 0, 24, 0], &[], 24)[4 + 2], 0);
    exact(&mut a, &WRITE, &[1; BLOCK], 0);
    assert_eq!(ram(&image).operations(), [Operation::Write(0, 512, Durability::Stable)]);
}

#[test]
fn a_cache_that_initiators_cannot_switch_on() {
    let (_target, image, mut a, _) = rig(DiskConfig { write_cache: false, cache_is_fixed: true, ..config() });
    let page = |a: &mut Local, control: u8| good(a, &[0x1a, 8, control << 6 | 8, 0, 24, 0], &[], 24);
    assert_eq!((page(&mut a, 0)[6], page(&mut a, 1)[6]), (0, 0));
    let select = |a: &mut Local, wce: u8| {
        let list = [&[0, 0, 0, 0, 0x08, 0x12, wce][..], &[0; 17]].concat();
        a.command(&[0x15, 0x10, 0, 0, 24, 0], &list, 0)
    };
    assert_eq!(select(&mut a, 0).status, 0, "what is so can be said");
    // INVALID FIELD IN PARAMETER LIST, at the bit.
    let refused = select(&mut a, 4);
    assert_eq!((refused.status, &refused.sense[12..18]), (2, &[0x26, 0, 0, 0x8a, 0, 6][..]));
    ram(&image).operations();
    exact(&mut a, &WRITE, &[1; BLOCK], 0);
    assert_eq!(ram(&image).operations(), [Operation::Write(0, 512, Durability::Stable)]);
}

#[test]
fn image_errors_reach_the_initiator() {
    let (_target, image, mut a, _) = rig(config());
    ram(&image).fail(Some(BlockErrorKind::NoSpace));
    check(&mut a, &WRITE, &[0; BLOCK], 0, (0x7, 0x27, 0x07));
    ram(&image).fail(Some(BlockErrorKind::ReadFailed));
    check(&mut a, &READ, &[], BLOCK, (0x3, 0x11, 0x00));
    ram(&image).fail(Some(BlockErrorKind::WriteFailed));
    check(&mut a, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0, (0x3, 0x0c, 0x00));
    ram(&image).fail(Some(BlockErrorKind::ReservationConflict));
    assert_eq!(a.command(&READ, &[], BLOCK).status, 0x18);
    ram(&image).fail(None);
    good(&mut a, &READ, &[], BLOCK);
}

#[test]
fn read_only_disks_refuse_every_write() {
    for (config, image_read_only) in [(DiskConfig { read_only: true, ..config() }, false), (config(), true)] {
        let (_target, image, mut a, _) = rig(config);
        ram(&image).set_geometry(|geometry| geometry.read_only = image_read_only);
        let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 8, 0];
        let same = [0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        for (cdb, data) in
            [(WRITE, BLOCK), (same, BLOCK), (unmap, 8), ([0x2e, 0, 0, 0, 0, 0, 0, 0, 1, 0], BLOCK)]
        {
            check(&mut a, &cdb, &vec![0; data], 0, (0x7, 0x27, 0x00));
        }
        assert_eq!(good(&mut a, &[0x1a, 8, 8, 0, 24, 0], &[], 24)[2] & 0x80, 0x80);
        good(&mut a, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0);
        assert_eq!(ram(&image).operations(), []);
    }
}

#[test]
fn thick_disks_do_not_know_unmap() {
    let (_target, image, mut a, _) = rig(DiskConfig { discard: false, ..config() });
    check(&mut a, &[0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0, (0x5, 0x20, 0x00));
    let data = good(&mut a, &[0xa3, 0x0c, 1, 0x42, 0, 0, 0, 0, 0, 64, 0, 0], &[], 64);
    assert_eq!(data[1], 1);
    let data = exact(&mut a, &[0x12, 1, 0xb2, 0, 8, 0], &[], 8);
    assert_eq!(data[4..], [0, 0, 0, 0]);
    let data = exact(&mut a, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], &[], 32);
    assert_eq!(data[14], 0);
    check(&mut a, &[0x41, 8, 0, 0, 0, 0, 0, 0, 1, 0], &[0; BLOCK], 0, (0x5, 0x24, 0x00));
    exact(&mut a, &[0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0; BLOCK], 0);
    let span = Span { at: ByteOffset(0), len: 512 };
    assert_eq!(ram(&image).operations(), [Operation::Zero(span, Unmap::Keep)]);
}

#[test]
fn blocks_of_4096_bytes() {
    let (_target, image, mut a, _) = rig(DiskConfig { block_size: 4096, ..config() });
    let data = exact(&mut a, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 8);
    assert_eq!(data, [0, 0, 0x07, 0xff, 0, 0, 0x10, 0]);
    let data = exact(&mut a, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], &[], 32);
    assert_eq!(data[13], 0);
    let data: Vec<u8> = (0..8192u32).map(|i| (i / 3) as u8).collect();
    exact(&mut a, &[0x2a, 0, 0, 0, 0, 3, 0, 0, 2, 0], &data, 0);
    assert_eq!(ram(&image).operations(), [Operation::Write(3 * 4096, 8192, Durability::Cached)]);
    assert_eq!(exact(&mut a, &[0x28, 0, 0, 0, 0, 4, 0, 0, 1, 0], &[], 4096), data[4096..]);
    exact(&mut a, &[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 40, 0, 0], &data[..4096], 0);
    exact(&mut a, &[0x8f, 6, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 40, 0, 0], &data[..4096], 0);
    // Half a block is not written.
    a.command(&[0x2a, 0, 0, 0, 0, 100, 0, 0, 1, 0], &data[..2048], 0);
    assert_eq!(exact(&mut a, &[0x28, 0, 0, 0, 0, 100, 0, 0, 1, 0], &[], 4096), vec![0; 4096]);
}

#[test]
fn removable_media_can_be_ejected_unless_prevented() {
    let (_target, _, mut a, mut b) = rig(DiskConfig { removable: true, ..config() });
    assert_eq!(good(&mut a, &[0x12, 0, 0, 0, 36, 0], &[], 36)[1], 0x80);
    exact(&mut b, &[0x1e, 0, 0, 0, 1, 0], &[], 0);
    check(&mut a, &[0x1b, 0, 0, 0, 2, 0], &[], 0, (0x5, 0x53, 0x02));
    exact(&mut b, &[0x1e, 0, 0, 0, 0, 0], &[], 0);
    exact(&mut a, &[0x1b, 0, 0, 0, 2, 0], &[], 0);
    check(&mut b, &READ, &[], BLOCK, (0x2, 0x3a, 0x00));
    check(&mut b, &[0x1b, 0, 0, 0, 1, 0], &[], 0, (0x2, 0x3a, 0x00));
    exact(&mut a, &[0x1b, 0, 0, 0, 3, 0], &[], 0);
    check(&mut b, &READY, &[], 0, (0x6, 0x28, 0x00));
    good(&mut b, &READ, &[], BLOCK);
}

#[test]
fn identity_is_what_was_configured() {
    let make = |config: DiskConfig| Disk::new(Arc::new(Image::Recording(image())), config).map(|_| ());
    assert_eq!(make(DiskConfig { block_size: 520, ..config() }), Err(DiskError::BlockSize(520)));
    assert_eq!(make(DiskConfig { vendor: "TOO LONG!".into(), ..config() }), Err(DiskError::Text("vendor")));
    assert_eq!(make(DiskConfig { serial: "tab\t".into(), ..config() }), Err(DiskError::Text("serial")));
    assert_eq!(make(DiskConfig { rotation_rate: 5, ..config() }), Err(DiskError::RotationRate(5)));
    for wwn in [0, 0x0ea1_4a8a_0000_0001, 0x6000_c500_0000_0001, 0x5000_0000_0000_0000] {
        assert_eq!(make(DiskConfig { wwn: Some(wwn), ..config() }), Err(DiskError::Name(wwn)));
    }
    // Without serial number and name there is no page 80h and no NAA designator.
    let (_target, _, mut a, _) = rig(DiskConfig { serial: String::new(), wwn: None, ..config() });
    let data = good(&mut a, &[0x12, 1, 0, 0, 64, 0], &[], 64);
    assert_eq!(data[..12], [0, 0, 0, 8, 0x00, 0x83, 0x86, 0x87, 0x8f, 0xb0, 0xb1, 0xb2]);
    assert_eq!(good(&mut a, &[0x12, 1, 0x83, 0, 64, 0], &[], 64)[4..6], [0x02, 0x01]);
    // From a serial number alone comes a locally assigned name, the same every time.
    let (_target, _, mut a, _) = rig(DiskConfig { wwn: None, ..config() });
    let data = good(&mut a, &[0x12, 1, 0x83, 0, 255, 0], &[], 255);
    assert_eq!((data[4..8].to_vec(), data[8] >> 4), (vec![0x01, 0x03, 0, 8], 3));
    let (_target, _, mut b, _) = rig(DiskConfig { wwn: None, ..config() });
    assert_eq!(good(&mut b, &[0x12, 1, 0x83, 0, 255, 0], &[], 255), data);
}

fn lun(bytes: &[u8]) -> Lun {
    let mut all = [0; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    Lun(all)
}

/// The LUNs that REPORT LUNS has.
fn reported(i: &mut Local) -> Vec<Lun> {
    let list = good(i, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[], 256);
    let len = u32::from_be_bytes(list[..4].try_into().unwrap()) as usize;
    list[8..8 + len].chunks(8).map(|lun| Lun(lun.try_into().unwrap())).collect()
}

#[test]
fn native_luns_are_reported_unaltered_and_to_those_who_can_use_them() {
    let target = target_of(small_disk());
    let native = [&[0, 5][..], &[0, 5, 1, 2], &[0x40, 5], &[0x42, 1], &[0x80, 3], &[0xd2, 0, 0, 5]].map(lun);
    for lun in native {
        target.attach_native(lun, small_disk()).unwrap();
        assert_eq!(target.attach_native(lun, small_disk()), Err(AttachError::InUse));
    }
    assert_eq!(
        target.attach_native(lun(&[0, 1, 0, 1, 0, 1, 0, 1]), small_disk()),
        Err(AttachError::FourLevels)
    );
    assert_eq!(target.attach_native(Lun::REPORT_LUNS, small_disk()), Err(AttachError::BadLun));
    assert_eq!(target.attach(lun(&[0x42, 1]), small_disk()), Err(AttachError::InUse));
    let mut a = Local::new(&target);
    // LUN 0 goes by any method; of those called 5, the one with the shortest is 5.
    assert_eq!(reported(&mut a), [LUN_0, lun(&[0, 5]), lun(&[0x42, 1])]);
    assert_eq!(a.nexus.luns(), reported(&mut a));
    a.nexus.address_natively(true);
    let mut all = vec![LUN_0];
    all.extend(native);
    all.sort();
    assert_eq!(reported(&mut a), all);
    a.nexus.address_natively(false);
    // What was hidden shows when it is alone.
    assert!(block_on(target.detach(lun(&[0, 5]))).is_some());
    assert_eq!(reported(&mut a), [LUN_0, lun(&[0x40, 5]), lun(&[0x42, 1])]);
    // The owner of the target means what it says.
    assert!(block_on(target.detach(lun(&[0, 5]))).is_none());
    assert_eq!(target.node(lun(&[0x40, 5])), None);
    assert!(target.take(lun(&[0x40, 5])).is_some());
}

#[test]
fn a_unit_with_the_number_of_another_is_not_taken_for_it() {
    let target = target_of(small_disk());
    target.attach_native(lun(&[0x40, 5]), small_disk()).unwrap();
    let mut a = Local::new(&target);
    settle(&mut a);
    // An initiator that knows the unit as 5 would send this one what is meant for that.
    target.attach_native(lun(&[0, 5]), small_disk()).unwrap();
    assert!(a.nexus.is_distrusted());
    let fresh = Local::new(&target);
    assert!(!fresh.nexus.is_distrusted());
}

/// The unit that a LUN meant has gone, and another one has the same number.
#[test]
fn no_unit_inherits_the_commands_for_another() {
    for native in [false, true] {
        let target = target_of(small_disk());
        let (short, flat, long) = (lun(&[0, 5]), lun(&[0x40, 5]), lun(&[0xd2, 0, 0, 5]));
        for lun in [short, flat, long] {
            target.attach_native(lun, small_disk()).unwrap();
        }
        let mut a = Local::new(&target);
        a.nexus.address_natively(native);
        let ready = |a: &mut Local, lun: Lun| {
            a.lun = lun;
            (0..8).any(|_| a.command(&[0; 6], &[], 0).status == 0)
        };
        assert!([short, flat].iter().all(|&lun| ready(&mut a, lun)));
        assert!(block_on(target.detach(short)).is_some());
        assert!(!ready(&mut a, short), "{native}");
        // It is the one that was meant all along, or not before the initiator has asked it who it is.
        assert_eq!(ready(&mut a, flat), native);
        if !native {
            good(&mut a, &[0x12, 0, 0, 0, 36, 0], &[], 36);
            assert!(ready(&mut a, short));
        }
        // Of a unit that is in no list, and of whose end nobody is told, nothing is reached.
        assert!(block_on(target.detach(flat)).is_some());
        assert!([short, flat].iter().all(|&lun| !ready(&mut a, lun)));
        assert_eq!(ready(&mut a, long), native);
    }
}
