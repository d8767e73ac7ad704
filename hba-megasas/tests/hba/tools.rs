//! What management tools ask, in their order, and what they make of the answers.

use hba_megasas::Model;

use crate::guest::{Frame, Guest, drive, image, le16, le32, le64, options};

/// A DCMD as the ioctls of the drivers send it: posted, with an interrupt.
fn ask(guest: &mut Guest, opcode: u32, mailbox: &[u8], len: usize) -> (u8, Vec<u8>) {
    let at = guest.alloc_with(&vec![0; len]);
    let mut frame = Frame::dcmd(opcode, mailbox).context(11).len(len as u32);
    if len > 0 {
        frame = frame.sge(at, len as u32);
    }
    let address = guest.send(&frame);
    assert_eq!(guest.wait_reply(), 11);
    (guest.status_of(address), guest.peek(at, len))
}

/// Volumes whose targets have gaps, and a plain disk in one of them.
fn mixed() -> Guest {
    let mut guest = Guest::new(Model::Gen2, true, &[2, 5, 9]);
    guest.hba.attach_drive(4, drive(&image(), false)).unwrap();
    assert_eq!(guest.init(1009), 0);
    guest.enable_interrupts();
    guest
}

/// bioctl of OpenBSD and NetBSD: the reference of a span to its array is an index into the arrays of the configuration.
#[test]
fn bioctl_finds_the_disk_of_each_volume() {
    let mut guest = mixed();
    let (status, info) = ask(&mut guest, 0x0101_0000, &[], 2048);
    assert_eq!((status, le16(&info, 0x5c0), le16(&info, 0x5c8)), (0, 10, 4), "targets up to the last, disks");
    // First as much as holds one array, to see how long it is.
    let (status, part) = ask(&mut guest, 0x0401_0000, &[], 32 + 0x120);
    let size = le32(&part, 0) as usize;
    assert_eq!((status, size), (0, 32 + 3 * (0x120 + 0x100)));
    let (_, config) = ask(&mut guest, 0x0401_0000, &[], size);
    let (arrays, array_size) = (usize::from(le16(&config, 4)), usize::from(le16(&config, 6)));
    let (volumes, volume_size) = (usize::from(le16(&config, 8)), usize::from(le16(&config, 10)));
    let (_, list) = ask(&mut guest, 0x0301_0000, &[], 1032);
    assert_eq!((arrays, volumes, le32(&list, 0)), (3, 3, 3));
    for (volume, target) in [2, 5, 9].into_iter().enumerate() {
        let listed = &list[8 + 16 * volume..];
        assert_eq!((listed[0], listed[4]), (target, 3), "optimal");
        let (_, info) = ask(&mut guest, 0x0302_0000, &[target], 384);
        let configured = &config[32 + arrays * array_size + volume * volume_size..];
        assert_eq!(configured[..volume_size], info[..volume_size]);
        assert_eq!((configured[0], info[0x24], info[0x25], le64(&info, 0x100)), (target, 1, 1, 16384));
        let array = &config[32 + usize::from(le16(configured, 0x50)) * array_size..];
        let disk = le16(array, 0x20);
        assert_eq!((disk, le16(array, 0x24), array[0x27]), (target.into(), 0x18, target), "online, its slot");
        let (status, disk) = ask(&mut guest, 0x0202_0000, &disk.to_le_bytes(), 512);
        assert_eq!((status, le64(&disk, 0xf8), &disk[12..16]), (0, 16384, &b"ACME"[..]));
    }
}

/// mfiutil of FreeBSD: what "show volumes" and "cache" make of the policies, and what the latter may change.
#[test]
fn mfiutil_shows_the_cache_that_there_is() {
    for write_back in [false, true] {
        let image = image();
        let options = hba_megasas::Options { write_back, ..options(Model::Gen2) };
        let drives = [(6, drive(&image, true))].into();
        let mut guest = Guest::with(options, drives, [(6, image)].into());
        assert_eq!(guest.init(129), 0);
        let (_, info) = ask(&mut guest, 0x0302_0000, &[6], 384);
        let (status, mut properties) = ask(&mut guest, 0x0303_0000, &[6], 32);
        assert_eq!((status, &properties[..]), (0, &info[..32]));
        // Otherwise: "Cache Disabled Due to Dead Battery".
        assert_eq!(properties[0x14], properties[0x17]);
        // Write-back, also with a bad battery; caching of writes, of reads; the disk's own cache.
        let policy = properties[0x14];
        let bits = [0x01, 0x10, 0x20, 0x40].map(|bit| policy & bit != 0);
        assert_eq!(bits, [write_back, write_back, write_back, false], "{policy:#x}");
        assert_eq!(properties[0x16], if write_back { 1 } else { 2 });
        // The name, with the reference as mfiutil stores it: target, reserved, sequence number.
        properties[4..10].copy_from_slice(b"backup");
        let reference: [u8; 4] = properties[..4].try_into().unwrap();
        assert_eq!(guest.dcmd_with(0x0304_0000, &reference, &properties).0, 0);
        assert_eq!(&ask(&mut guest, 0x0302_0000, &[6], 384).1[4..11], b"backup\0");
        properties[0x14] ^= 1;
        assert_eq!(guest.dcmd_with(0x0304_0000, &reference, &properties).0, 0x32);
    }
}

/// The rest of mfiutil: adapter, battery, firmware, events, drives, patrol, foreign configurations.
#[test]
fn mfiutil_shows_everything_else() {
    let mut guest = mixed();
    let (_, info) = ask(&mut guest, 0x0101_0000, &[], 2048);
    assert_eq!((le32(&info, 0x5dc), le32(&info, 0x5b0) & 1, info[0x5e8], info[0x5e9]), (1, 0, 3, 3));
    assert_eq!((le32(&info, 0xb4), &info[0xb8..0xbc], le32(&info, 0x2f8)), (1, &b"APP\0"[..], 0));
    assert_eq!(ask(&mut guest, 0x0502_0000, &[], 18).0, 0x22, "no battery, and no error");
    // Drives: a list of one page, longer when that is too short; enclosures and others are skipped.
    let (_, list) = ask(&mut guest, 0x0201_0000, &[], 1024);
    assert_eq!((le32(&list, 0), le32(&list, 4)), (8 + 4 * 24, 4));
    for (entry, id) in [2_u16, 4, 5, 9].into_iter().enumerate() {
        let address = &list[8 + 24 * entry..][..24];
        assert_eq!((le16(address, 0), address[6]), (id, 0), "a disk");
        let (_, disk) = ask(&mut guest, 0x0202_0000, &id.to_le_bytes(), 512);
        assert_eq!(le16(&disk, 0xb8), if id == 4 { 0x40 } else { 0x18 });
        assert_eq!((le16(&disk, 0x100), &disk[0x102..0x104]), (0xffff, &address[4..6]));
        assert_eq!(disk[0xc8..0xd0], address[8..16], "SAS address");
    }
    // Events since the last shutdown, fifteen at a time.
    let (_, log) = ask(&mut guest, 0x0104_0100, &[], 20);
    let (newest, mut from, mut seen) = (le32(&log, 0), le32(&log, 12), 0);
    loop {
        let mailbox = [from.to_le_bytes(), 0x0000_ffff_u32.to_le_bytes()].concat();
        let (status, events) = ask(&mut guest, 0x0104_0300, &mailbox, 8 + 15 * 256);
        if status == 0x23 {
            break;
        }
        let count = le32(&events, 0) as usize;
        assert!(status == 0 && (1..=15).contains(&count));
        seen += count as u32;
        from = le32(&events, 8 + 256 * (count - 1)) + 1;
    }
    assert_eq!((from, seen), (newest + 1, newest));
    assert_eq!(ask(&mut guest, 0x0107_0100, &[], 16), (0, vec![0; 16]));
    assert_eq!(ask(&mut guest, 0x0406_0100, &[], 40), (0, vec![0; 40]), "no foreign configuration");
}

/// smartctl -d megaraid,N: the disk behind a volume, by its device number.
#[test]
fn smartctl_looks_behind_a_volume() {
    let mut guest = mixed();
    for id in [2, 4] {
        guest.scsi(4, id, &[0; 6], &[], 0);
        let cdbs: [(&[u8], usize); 11] = [
            (&[0x12, 0, 0, 0, 36, 0], 36),
            (&[0x12, 1, 0, 0, 252, 0], 252),
            (&[0x12, 1, 0x80, 0, 252, 0], 252),
            (&[0x12, 1, 0x83, 0, 252, 0], 252),
            (&[0x12, 1, 0xb1, 0, 64, 0], 64),
            (&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8),
            (&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], 32),
            (&[0x4d, 0, 0x40, 0, 0, 0, 0, 0, 252, 0], 252),
            (&[0x4d, 0, 0x4d, 0, 0, 0, 0, 0, 252, 0], 252),
            (&[0x4d, 0, 0x6f, 0, 0, 0, 0, 0, 252, 0], 252),
            (&[0x5a, 0, 0x1c, 0, 0, 0, 0, 0, 252, 0], 252),
        ];
        for (cdb, len) in cdbs {
            let reply = guest.scsi(4, id, cdb, &[], len);
            assert_eq!((reply.status, reply.scsi_status), (0, 0), "{cdb:02x?} {:02x?}", reply.sense);
        }
    }
    assert_eq!(guest.scsi(4, 99, &[0x12, 0, 0, 0, 36, 0], &[], 36).status, 0x0c, "Device 99 does not exist");
}
