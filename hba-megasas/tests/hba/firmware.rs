//! Direct commands, as tools use them.

use hba_megasas::Model;

use crate::guest::{Frame, Guest, drive, le16, le32, le64};

fn raid() -> Guest {
    Guest::new(Model::Gen2, true, &[0, 2])
}

#[test]
fn physical_drives() {
    let mut guest = raid();
    let (status, list) = guest.dcmd(0x0201_0000, &[], 8192);
    assert_eq!((status, le32(&list, 0), le32(&list, 4)), (0, 56, 2));
    assert_eq!(le64(&list, 8 + 8), 0x5000_c500_1234_5678, "the name of the disk");
    let (_, info) = guest.dcmd(0x0202_0000, &[2, 0], 512);
    assert_eq!(le64(&info, 0xc8), 0x5000_c500_1234_5678);
    assert_eq!((le16(&info, 0xb8), le16(&info, 0xbc)), (0x18, 0x2002), "online, SAS, in a volume");
    assert_eq!((&info[4 + 8..4 + 12], le64(&info, 0xe8), le16(&info, 0x194)), (&b"ACME"[..], 16384, 512));
    assert_eq!(info[0x65], 0x83);
    let reply = guest.scsi(4, 2, &[0x12, 1, 0x83, 0, 252, 0], &[], 252);
    let end = 0x64 + 4 + usize::from(info[0x67]);
    let mut designators = &info[0x68..end];
    assert!(!designators.is_empty());
    while let [_, _, _, len, ..] = designators {
        let (designator, rest) = designators.split_at(4 + usize::from(*len));
        assert!(reply.data.windows(designator.len()).any(|part| part == designator), "as by INQUIRY");
        designators = rest;
    }
    // A list that does not fit says how long it is.
    let (_, list) = guest.dcmd(0x0201_0000, &[], 32);
    assert_eq!(le32(&list, 0), 56);
    assert_eq!(guest.dcmd(0x0201_0100, &[6], 8192).0, 3);
}

/// Which drives there are of a state, power state, kind of medium or speed.
#[test]
fn physical_drives_by_what_they_are() {
    let mut guest = raid();
    guest.hba.attach_drive(5, drive(&guest.images[&0].clone(), false)).unwrap();
    let cases: [(u8, u8, &[u16]); 14] = [
        (0, 0, &[0, 2, 5]),
        (0, 99, &[0, 2, 5]),
        (1, 0x18, &[0, 2]),
        (1, 0x40, &[5]),
        (1, 0, &[]),
        (2, 0, &[0, 2, 5]),
        (2, 1, &[]),
        (3, 0, &[0, 2, 5]),
        (3, 1, &[]),
        (3, 2, &[]),
        (4, 2, &[0, 2, 5]),
        (4, 3, &[]),
        (5, 0, &[5]),
        (5, 7, &[5]),
    ];
    for (query, value, expected) in cases {
        let (status, list) = guest.dcmd(0x0201_0100, &[query, value], 8192);
        let count = le32(&list, 4) as usize;
        let ids: Vec<_> = (0..count).map(|entry| le16(&list, 8 + 24 * entry)).collect();
        assert_eq!(
            (status, le32(&list, 0) as usize, &ids[..]),
            (0, 8 + 24 * count, expected),
            "{query} {value:#x}"
        );
    }
}

#[test]
fn volumes() {
    let mut guest = raid();
    let (status, list) = guest.dcmd(0x0301_0000, &[], 4104);
    assert_eq!((status, le32(&list, 0), list[8], list[24]), (0, 2, 0, 2));
    assert!(list[1032..].iter().all(|&byte| byte == 0xcc));
    for query in 0..3 {
        let (status, ids) = guest.dcmd(0x0301_0100, &[query], 268);
        assert_eq!((status, le32(&ids, 0), le32(&ids, 4), &ids[11..13]), (0, 13, 2, &[0, 2][..]));
    }
    assert_eq!(guest.dcmd(0x0301_0100, &[3], 268).0, 3);
    let (_, info) = guest.dcmd(0x0302_0000, &[2, 0], 384);
    assert_eq!((info[0], info[0x20], info[0x24], info[0x25], info[0x26], info[0x2f]), (2, 0, 1, 1, 3, 0));
    assert_eq!((le64(&info, 0x48), le16(&info, 0x50), le64(&info, 0x100)), (16384, 1, 16384));
    assert_eq!(guest.dcmd(0x0302_0000, &[1, 0], 384).0, 0x0c);
    // The name can be set, the cache policy not.
    let (_, mut properties) = guest.dcmd(0x0303_0000, &[2], 32);
    properties[4..8].copy_from_slice(b"data");
    assert_eq!(guest.dcmd_with(0x0304_0000, &[2], &properties).0, 0);
    assert_eq!(guest.dcmd(0x0303_0000, &[2], 32).1, properties);
    // Nothing that has no effect is taken: cache, access, the disk's cache, the cache now, initialisation.
    for (at, bits) in [(0x14, 1), (0x15, 2), (0x16, 3), (0x17, 1), (0x18, 1)] {
        let mut other = properties.clone();
        other[at] ^= bits;
        other[4] = b'x';
        assert_eq!(guest.dcmd_with(0x0304_0000, &[2], &other).0, 0x32, "{at:#x}");
        assert_eq!(guest.dcmd(0x0303_0000, &[2], 32).1, properties);
    }
    // The name is the volume's, which may be at home there again later.
    let image = guest.images[&2].clone();
    guest.hba.detach_drive(2).unwrap();
    guest.hba.attach_drive(2, drive(&image, true)).unwrap();
    assert_eq!(&guest.dcmd(0x0303_0000, &[2], 32).1[4..8], b"data");
}

/// What FreeBSD's mfiutil and MegaCli show of a volume that cannot be written: 2, as mfireg.h has it.
#[test]
fn a_read_only_volume_says_so() {
    let mut guest = raid();
    guest.recording(2).set_geometry(|geometry| geometry.read_only = true);
    for (target, policy) in [(0, 0), (2, 2)] {
        assert_eq!(guest.dcmd(0x0303_0000, &[target], 32).1[0x15], policy, "its properties");
        assert_eq!(guest.dcmd(0x0302_0000, &[target], 384).1[0x15], policy, "its information");
        let config = guest.dcmd(0x0401_0000, &[], 4096).1;
        assert_eq!(config[32 + 2 * 0x120 + 0x80 * usize::from(target) + 0x15], policy, "the configuration");
    }
    // What was read can be written back. Whether it can be written is not the guest's to choose.
    let mut properties = guest.dcmd(0x0303_0000, &[2], 32).1;
    assert_eq!(guest.dcmd_with(0x0304_0000, &[2], &properties).0, 0);
    properties[0x15] = 0;
    assert_eq!(guest.dcmd_with(0x0304_0000, &[2], &properties).0, 0x32);
    // Who keeps the volume for himself hides that from the firmware, which remembers it.
    guest.scsi(3, 2, &[0x16, 0, 0, 0, 0, 0], &[], 0);
    assert_eq!(guest.scsi(3, 2, &[0x16, 0, 0, 0, 0, 0], &[], 0).scsi_status, 0);
    assert_eq!(guest.dcmd(0x0303_0000, &[2], 32).1[0x15], 2);
}

#[test]
fn configuration() {
    let mut guest = raid();
    let (status, config) = guest.dcmd(0x0401_0000, &[], 4096);
    assert_eq!((status, le32(&config, 0)), (0, 32 + 2 * 0x120 + 2 * 0x100));
    let words: Vec<u16> = (4..16).step_by(2).map(|at| le16(&config, at)).collect();
    assert_eq!(words, [2, 0x120, 2, 0x100, 0, 0x28]);
    let array = &config[32 + 0x120..];
    assert_eq!((le64(array, 0), array[8], le16(array, 10), le16(array, 0x20)), (16384, 1, 1, 2));
    assert_eq!(le16(array, 0x28), 0xffff);
    assert_eq!(config[32 + 2 * 0x120], 0);
    assert_eq!(config[32 + 2 * 0x120 + 0x100], 2);
    for change in [0x0402_0000, 0x0403_0000, 0x0404_0000, 0x0309_0000, 0x0306_0100, 0x0203_0100] {
        assert_eq!(guest.dcmd(change, &[], 64).0, 0x32, "{change:#x}");
    }
}

#[test]
fn properties_time_and_bios_data() {
    let mut guest = raid();
    let (_, mut properties) = guest.dcmd(0x0102_0100, &[], 64);
    assert_eq!((le16(&properties, 4), le16(&properties, 6)), (16, 50));
    properties[8] = 77;
    for (at, switch) in [(0x21, 0x04), (0x21, 0x20), (0x24, 1), (0x25, 0x80)] {
        let mut other = properties.clone();
        other[at] ^= switch;
        let status = guest.dcmd_with(0x0102_0200, &[], &other).0;
        assert_eq!(status, 0x32, "OCR, JBOD and what is of later boards are not the guest's to switch");
    }
    assert_eq!(guest.dcmd(0x0102_0100, &[], 64).1[8], 30);
    assert_eq!(guest.dcmd_with(0x0102_0200, &[], &properties).0, 0);
    assert_eq!(guest.dcmd(0x0102_0100, &[], 64).1[8], 77);
    assert_eq!(guest.dcmd_with(0x0102_0200, &[], &[0; 63]).0, 3);

    assert_eq!(guest.dcmd(0x0108_0102, &[0xe8, 7, 3, 1, 12, 0, 0, 0], 0).0, 0);
    let (_, time) = guest.dcmd(0x0108_0101, &[], 8);
    assert_eq!(time[..5], [0xe8, 7, 3, 1, 12]);
    let (_, seconds) = guest.dcmd(0x0108_0201, &[], 4);
    assert!((0..60).contains(&(i64::from(le32(&seconds, 0)) - (1_709_294_400 - 946_684_800))));
    assert_eq!(guest.dcmd(0x0108_0102, &[0; 8], 0).0, 3);

    assert_eq!(guest.dcmd_with(0x010c_0200, &[], &[0x5a; 64]).0, 0);
    assert_eq!(guest.dcmd(0x010c_0100, &[], 64).1, [0x5a; 64]);
    let (_, defaults) = guest.dcmd(0x010e_0201, &[], 64);
    assert_eq!(le64(&defaults, 0), 0x5006_05b0_0000_1230);
    // Background rate, strip of 4 KiB, flush time; write-through, no battery; no alarm.
    assert_eq!(defaults[8..18], [0, 30, 3, 4, 0, 0, 0, 0, 0, 1]);
    assert!(defaults[18..].iter().all(|&byte| byte == 0));
    // They can be written back, and are not the guest's to change.
    assert_eq!(guest.dcmd_with(0x010e_0202, &[], &defaults).0, 0);
    for at in [0, 12, 63] {
        let mut other = defaults.clone();
        other[at] ^= 1;
        assert_eq!(guest.dcmd_with(0x010e_0202, &[], &other).0, 0x32);
    }
    assert_eq!(guest.dcmd(0x010e_0202, &[], 0).0, 3);
    assert_eq!(guest.dcmd(0x010d_0000, &[], 0).0, 0);
    let factory = guest.dcmd(0x0102_0100, &[], 64).1;
    assert_eq!(
        (factory[8], le16(&factory, 0)),
        (30, 2),
        "the properties are as they were, at the second change"
    );
}

#[test]
fn what_there_is_not() {
    let mut guest = raid();
    for battery in [0x0501_0000, 0x0502_0000, 0x0503_0000, 0x0504_0000, 0x0505_0100, 0x0505_0200] {
        assert_eq!(guest.dcmd(battery, &[], 64).0, 0x22);
    }
    assert_eq!(guest.dcmd(0, &[], 64), (0, vec![0xcc; 64]), "nothing to do");
    for unknown in [0xffff_ffff, 0x0300_e101, 0x0119_0100, 0x0200_e103] {
        assert_eq!(guest.dcmd(unknown, &[], 64), (2, vec![0xcc; 64]), "{unknown:#x}");
    }
    for dummy in [0x0100_e100, 0x0103_0100, 0x0800_0000] {
        assert_eq!(guest.dcmd(dummy, &[], 64), (0, vec![0; 64]), "{dummy:#x}");
    }
    // It is off, and silent. It cannot be anything else.
    for (alarm, status) in [(0x0103_0200, 0x22), (0x0103_0300, 0), (0x0103_0400, 0), (0x0103_0500, 0x22)] {
        assert_eq!(guest.dcmd(alarm, &[], 0).0, status, "{alarm:#x}");
    }
    for frame in [7, 8] {
        assert_eq!(guest.poll(Frame::new(frame, 0x20)), 0x0c, "SMP and STP");
    }
}

/// What FreeBSD's mfiutil and mfid, and NetBSD's bioctl ask.
#[test]
fn patrol_reads_are_off_and_firmware_stays() {
    let mut guest = raid();
    let (status, properties) = guest.dcmd(0x0107_0200, &[], 208);
    assert_eq!((status, properties[0], &properties[1..]), (0, 2, &[0; 207][..]), "disabled");
    assert_eq!(guest.dcmd(0x0107_0100, &[], 16), (0, vec![0; 16]), "no run, stopped");
    assert_eq!(guest.dcmd_with(0x0107_0300, &[], &properties).0, 0);
    // At once, when asked; how many disks; which volumes not; when.
    for (at, value) in [(0, 0), (0, 1), (1, 8), (3, 1), (4, 1), (207, 1)] {
        let mut other = properties.clone();
        other[at] = value;
        assert_eq!(guest.dcmd_with(0x0107_0300, &[], &other).0, 0x32);
    }
    assert_eq!(guest.dcmd(0x0107_0300, &[], 0).0, 3);
    assert_eq!((guest.dcmd(0x0107_0400, &[], 0).0, guest.dcmd(0x0107_0500, &[], 0).0), (0x32, 0));
    for flash in [0x010f_0100, 0x010f_0200, 0x010f_0300, 0x010f_0400] {
        assert_eq!(guest.dcmd(flash, &[], 64).0, 0x32);
    }
    for foreign in [0x0406_0200, 0x0406_0300] {
        assert_eq!(guest.dcmd(foreign, &[], 64), (0x23, vec![0xcc; 64]));
    }
}

#[test]
fn locate_is_an_event() {
    let mut guest = raid();
    assert_eq!(guest.dcmd(0x0207_0100, &[2, 0], 0).0, 0);
    assert_eq!(guest.dcmd(0x0207_0200, &[2, 0], 0).0, 0);
    assert_eq!(guest.dcmd(0x0207_0100, &[1, 0], 0).0, 0x0c);
    let mailbox = [0, 0, 0, 0, 0xff, 0xff, 0, 0xfe];
    let (status, events) = guest.dcmd(0x0104_0300, &mailbox, 8 + 30 * 256);
    let count = le32(&events, 0) as usize;
    let last = &events[8 + 256 * (count - 1)..][..256];
    assert_eq!(
        (status, le32(last, 8), last[0x10]),
        (0, 0x72, 0x0f),
        "device, enclosure, slot; state before and now"
    );
    assert_eq!(last[0x20..0x2c], [2, 0, 0xff, 2, 0x18, 0, 0, 0, 0x18, 0, 0, 0]);
    assert_eq!(guest.dcmd(0x0104_0200, &[], 0).0, 0, "clear");
    let (_, events) = guest.dcmd(0x0104_0300, &mailbox, 8 + 30 * 256);
    assert_eq!((le32(&events, 0), le32(&events, 8 + 8)), (1, 0x1e), "that it was cleared");
}
