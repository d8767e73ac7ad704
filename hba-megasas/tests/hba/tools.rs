//! What management tools ask, in their order, and what they make of the answers.

use hba_megasas::Model;

use crate::guest::{Frame, Guest, drive, image, le16, le32, le64};

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
    assert_eq!((status, le16(&info, 0x5c0), le16(&info, 0x5c8)), (0, 3, 4), "volumes, disks");
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
