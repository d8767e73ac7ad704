//! What was done to SCSI targets elsewhere, each by its number: none of it reaches anything here.

use std::sync::Arc;

use super::local::{Local, disk_of, target_of};
use super::nexuses::{ram, rig};
use super::{BLOCK, BLOCKS, FILL, Initiator, RecordingDisk, Request, check, config, exact, good};
use crate::iothread::mischief::{Trick, Victim};
use crate::scsi::{Disk, DiskConfig, Image, LogicalUnit, Lun, Nexus, Status, Target};
use crate::storage::{CacheMode, RawImage, RawOptions, Sharing};
use crate::testing::{on_io_thread, temp_file};

const READ_CAPACITY: [u8; 10] = [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn started() -> (Arc<Image>, Local) {
    let (_target, image, initiator, _) = rig(config());
    (image, initiator)
}

fn filled(data: &[u8]) -> bool {
    data.iter().all(|byte| *byte == FILL)
}

/// A CDB of 16 bytes with an LBA and a count of blocks.
fn long_cdb(opcode: u8, lba: u64, count: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&count.to_be_bytes());
    cdb
}

#[test]
fn cve_2008_0928_and_2020_29443_blocks_beyond_the_end() {
    let (image, mut a) = started();
    // The third one is block 0 when bytes are counted in 64 bits.
    for (lba, count) in [
        (BLOCKS, 1_u32),
        (BLOCKS - 1, 2),
        (1 << 55, 1),
        ((1 << 55) - 1, 2),
        (i64::MAX as u64, 1),
        (u64::MAX, 1),
        (u64::MAX, 2),
    ] {
        let len = count as usize * BLOCK;
        for (opcode, out) in [(0x88, 0), (0x8a, len), (0x8e, len), (0x8f, 0), (0x91, 0), (0x93, BLOCK)] {
            let len = if opcode == 0x88 { len } else { 0 };
            let sense = check(&mut a, &long_cdb(opcode, lba, count), &vec![7; out], len, (0x5, 0x21, 0x00));
            assert_eq!(sense[0] & 0x7f, 0x70, "{opcode:#x} {lba:#x}");
        }
        let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
        list.extend(lba.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
        check(&mut a, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list, 0, (0x5, 0x21, 0x00));
    }
    assert_eq!(ram(&image).operations(), []);
}

#[test]
fn cve_2011_3346_read_capacity_into_any_length() {
    let (_, mut a) = started();
    for len in [0, 1, 7, 8, 9, 31, 32, 33, 64] {
        let outcome = a.command(&READ_CAPACITY, &[], len);
        assert_eq!(outcome.status, 0);
        assert!(filled(&outcome.data_in[len.min(8)..]), "{len}");
        for allocation in [0, 1, 8, 31, 32, 33, 4096, u32::MAX] {
            let mut cdb = long_cdb(0x9e, 0, allocation);
            cdb[1] = 0x10;
            let outcome = a.command(&cdb, &[], len);
            assert_eq!(outcome.status, 0);
            let end = len.min(32).min(allocation as usize);
            assert!(filled(&outcome.data_in[end..]), "{allocation:#x} into {len}");
        }
    }
}

#[test]
fn cve_2013_4344_reports_of_very_many_units() {
    const UNITS: u16 = 300;
    let lun = |n: u16| Lun([if n < 256 { 0 } else { 0x40 | (n >> 8) as u8 }, n as u8, 0, 0, 0, 0, 0, 0]);
    let image = Arc::new(Image::Recording(RecordingDisk::new(1 << 20)));
    let target = Target::new();
    for n in 0..UNITS {
        let disk = Disk::new(image.clone(), DiskConfig::default()).unwrap();
        target.attach(lun(n), LogicalUnit::Disk(disk)).unwrap();
    }
    let mut a = Local::new(&target);
    for allocation in [16_usize, 2056, 2057, 2064, 2408, 2409, 4096] {
        let [high, low] = (allocation as u16).to_be_bytes();
        let data = good(&mut a, &[0xa0, 0, 0, 0, 0, 0, 0, 0, high, low, 0, 0], &[], 4096);
        let end = allocation.min(8 + 8 * usize::from(UNITS));
        assert_eq!(data[..8], [0, 0, 9, 0x60, 0, 0, 0, 0], "{allocation}");
        for (n, entry) in (0..).zip(data[8..end].chunks(8)) {
            assert_eq!(entry, &lun(n).0[..entry.len()], "{allocation}");
        }
        assert!(filled(&data[end..]), "{allocation}");
    }
}

#[test]
fn cve_2015_5158_commands_of_no_known_length() {
    let (image, mut a) = started();
    for opcode in (0x60..0x7f).chain(0xc0..=0xff_u8) {
        for len in [1, 6, 10, 12, 16, 32] {
            let mut cdb = vec![0; len];
            cdb[0] = opcode;
            check(&mut a, &cdb, &[], 64, (0x5, 0x20, 0x00));
        }
    }
    // Those that say how long they are.
    for additional in 0..=255 {
        for len in [1, 8, 16, 32] {
            let mut cdb = [0; 32];
            (cdb[0], cdb[7]) = (0x7f, additional);
            let outcome = a.command(&cdb[..len], &[], 64);
            assert_eq!((outcome.status, outcome.sense[2]), (2, 5), "{additional}");
            assert!(filled(&outcome.data_in));
        }
    }
    assert_eq!(ram(&image).operations(), []);
}

#[test]
fn cve_2021_3930_mode_select_of_all_pages() {
    let (_, mut a) = started();
    let pages = |a: &mut Local| good(a, &[0x1a, 0, 0x3f, 0xff, 255, 0], &[], 255);
    let before = pages(&mut a);
    for (first, subpage) in [(0x3f, 10), (0x7f, 0), (0x7f, 0xff), (0xbf, 10), (0xff, 0xff)] {
        let mut page = vec![first, subpage];
        page.extend([0; 10]);
        let list = [&[0; 4][..], &page].concat();
        check(&mut a, &[0x15, 0x10, 0, 0, 16, 0], &list, 0, (0x5, 0x26, 0x00));
        let list = [&[0; 8][..], &page].concat();
        check(&mut a, &[0x55, 0x10, 0, 0, 0, 0, 0, 0, 20, 0], &list, 0, (0x5, 0x26, 0x00));
    }
    assert_eq!(pages(&mut a), before);
}

#[test]
fn cve_2021_3947_and_2023_4135_log_pages_from_any_offset() {
    let (_, mut a) = started();
    for page in 0..=255 {
        for pointer in [0_u16, 1, 0x7fff, 0xffff] {
            for allocation in [0_u16, 4, 512, 0xffff] {
                let ([p, q], [r, s]) = (pointer.to_be_bytes(), allocation.to_be_bytes());
                let outcome = a.command(&[0x4d, 0, page, 0, 0, p, q, r, s, 0], &[], 600);
                let end = match outcome.status {
                    0 => usize::from(allocation).min(600),
                    _ => 0,
                };
                assert!(filled(&outcome.data_in[end..]), "{page:#x} {pointer:#x} {allocation:#x}");
                assert!(outcome.status == 0 || outcome.sense[2] == 5, "{outcome:02x?}");
            }
        }
    }
}

#[test]
fn cve_2022_21546_write_same_without_a_buffer() {
    let (_, mut a) = started();
    exact(&mut a, &long_cdb(0x8a, 4, 3), &[9; 3 * BLOCK], 0);
    // NDOB, and the same with a buffer that it does not want.
    for data in [&[][..], &[5; BLOCK]] {
        let mut cdb = long_cdb(0x93, 5, 1);
        cdb[1] = 0x01;
        let outcome = a.command(&cdb, data, 0);
        assert_eq!(outcome.status, 0);
        let data = good(&mut a, &long_cdb(0x88, 4, 3), &[], 3 * BLOCK);
        assert!(data[..BLOCK].iter().chain(&data[2 * BLOCK..]).all(|byte| *byte == 9));
        assert_eq!(data[BLOCK..2 * BLOCK], [0; BLOCK]);
    }
}

#[test]
fn cve_2023_42467_no_block_length_but_its_own() {
    let (_, mut a) = started();
    for length in [0_u32, 1, 255, 256, 511, 513, 520, 1024, 4096, 65024, 0xff_ffff] {
        let [_, b, c, d] = length.to_be_bytes();
        let list = [0, 0, 0, 8, 0, 0, 0, 0, 0, b, c, d];
        check(&mut a, &[0x15, 0x10, 0, 0, 12, 0], &list, 0, (0x5, 0x26, 0x00));
        let mut list = vec![0, 0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        list.extend(length.to_be_bytes());
        check(&mut a, &[0x55, 0x10, 0, 0, 0, 0, 0, 0, 24, 0], &list, 0, (0x5, 0x26, 0x00));
    }
    exact(&mut a, &[0x15, 0x10, 0, 0, 12, 0], &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 2, 0], 0);
    assert_eq!(exact(&mut a, &READ_CAPACITY, &[], 8), [0, 0, 0x3f, 0xff, 0, 0, 2, 0]);
}

#[test]
fn cve_2024_42416_reports_of_any_operation_code() {
    let (_, mut a) = started();
    for (options, opcode) in (0..=255_u8).flat_map(|opcode| (0..16_u8).map(move |options| (options, opcode)))
    {
        // RCTD is the highest bit of the byte.
        let options = options & 7 | (options & 8) << 4;
        for action in [0_u16, 1, 0x1f, 0xffff] {
            for allocation in [0_u8, 3, 64] {
                let [high, low] = action.to_be_bytes();
                let cdb = [0xa3, 0x0c, options, opcode, high, low, 0, 0, 0, allocation, 0, 0];
                let outcome = a.command(&cdb, &[], 72);
                let end = if outcome.status == 0 { usize::from(allocation) } else { 0 };
                assert!(filled(&outcome.data_in[end..]), "{cdb:02x?}");
                assert!(outcome.status == 0 || outcome.sense[2] == 5, "{cdb:02x?}: {outcome:02x?}");
            }
        }
    }
}

#[test]
fn cve_2024_43110_sense_data_of_any_length() {
    let (_, mut a) = started();
    for format in [0, 1] {
        let whole = good(&mut a, &[0x03, format, 0, 0, 252, 0], &[], 252);
        for allocation in 0..=255 {
            let data = good(&mut a, &[0x03, format, 0, 0, allocation, 0], &[], 260);
            let end = usize::from(allocation).min(252);
            assert_eq!(data[..end], whole[..end], "{allocation}");
            assert!(filled(&data[end..]), "{allocation}");
        }
    }
}

#[test]
fn cve_2024_45063_and_2024_8178_the_device_lends_no_buffer() {
    let (_, mut a) = started();
    for mode in 0..=255 {
        check(&mut a, &[0x3c, mode, 0, 0, 0, 0, 0, 1, 0, 0], &[], 256, (0x5, 0x20, 0x00));
        check(&mut a, &[0x3b, mode, 0, 0, 0, 0, 0, 1, 0, 0], &[1; 256], 0, (0x5, 0x20, 0x00));
        check(&mut a, &[0x9b, mode, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[], 256, (0x5, 0x20, 0x00));
    }
}

/// Data goes through memory of the process, in which the block before was.
#[test]
fn cve_2014_4027_and_2024_8612_a_read_that_fails_shows_no_memory() {
    let file = temp_file();
    std::fs::write(file.path(), vec![0x5a; 1 << 20]).unwrap();
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let options =
            RawOptions { path: file.path().into(), read_only: false, cache, sharing: Sharing::Unlocked };
        let Ok(image) = RawImage::open(&options) else { continue };
        on_io_thread(move |io| async move {
            let image = Arc::new(Image::Raw(image).private());
            let nexus = Nexus::new(target_of(disk_of(image, config())), None);
            let send = |cdb: &[u8], len| Request::new(cdb, &[], len).send(&nexus, &io);
            let _ = send(&[0; 6], 0).await;
            let (reply, data) = send(&long_cdb(0x88, 0, 8), 8 * BLOCK).await;
            assert_eq!((reply.unwrap().status, data), (Status::Good, vec![0x5a; 8 * BLOCK]));
            io.plot(|victim| matches!(victim, Victim::Read { .. }).then_some(Trick::Fail(libc::EIO)));
            let (reply, data) = send(&long_cdb(0x88, 16, 8), 8 * BLOCK).await;
            assert_eq!(reply.unwrap().status, Status::CheckCondition);
            assert!(filled(&data));
        });
    }
}
