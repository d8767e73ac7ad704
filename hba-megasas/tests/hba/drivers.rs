//! What real drivers do, in their order.

use devices::scsi::suite::Operation;
use devices::storage::BlockErrorKind;
use hba_megasas::Model;

use crate::guest::{Frame, Guest, IEEE, SGL64, drive, image, le16, le32, le64};

/// SeaBIOS: ports only, no INIT, no interrupts; flags 0x11 for DCMDs and 1 for everything else.
fn seabios(guest: &mut Guest) {
    guest.wait_for("READY", || guest.inp(0xb0) >> 28 == 0xb);
    let list = guest.alloc_with(&[0xcc; 1032]);
    let frame = Frame::dcmd(0x0301_0000, &[]).flags(0x11).len(1032).sge(list, 1032);
    let bios_send = |guest: &mut Guest, frame: Frame| {
        let address = guest.lay(&frame);
        let context = address as u32;
        guest.poke(address + 8, &context.to_le_bytes());
        guest.outp(0x40, address as u32 | 1 << 1 | 1);
        guest.wait_frame(address)
    };
    assert_eq!(bios_send(guest, frame), 0);
    let list = guest.peek(list, 1032);
    assert_eq!(le32(&list, 0), 1, "one volume");
    assert_eq!((list[8], list[12], le64(&list, 16)), (3, 3, 16384), "target, optimal, size");
    let command = |guest: &mut Guest, cdb: &[u8], len: u32| {
        let data = guest.alloc_with(&vec![0xcc; len as usize]);
        // No sense, a CDB length of 16 for everything, no direction.
        let mut frame = Frame::scsi(3, 3, cdb).put(6, &[16]).flags(1).len(len);
        if len > 0 {
            frame = frame.sge(data, len);
        }
        assert_eq!(bios_send(guest, frame), 0, "{cdb:02x?}");
        guest.peek(data, len as usize)
    };
    let inquiry = command(guest, &[0x12, 0, 0, 0, 36, 0], 36);
    assert_eq!((inquiry[0], &inquiry[8..11], &inquiry[16..25]), (0, &b"LSI"[..], &b"MR9260-8i"[..]));
    command(guest, &[0; 6], 0);
    let capacity = command(guest, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8);
    assert_eq!(capacity, [0, 0, 0x3f, 0xff, 0, 0, 2, 0]);
    let write = guest.alloc_with(&[0x5a; 512]);
    let frame = Frame::scsi(3, 3, &[0x2a, 0, 0, 0, 0, 7, 0, 0, 1, 0]).put(6, &[16]).flags(1).len(512);
    assert_eq!(bios_send(guest, frame.sge(write, 512)), 0);
    assert_eq!(command(guest, &[0x28, 0, 0, 0, 0, 7, 0, 0, 1, 0], 512), [0x5a; 512]);
    // It takes 2Dh for success and looks at no SCSI status: what was not read would be run.
    let read = |guest: &mut Guest| {
        let data = guest.alloc(512);
        let frame = Frame::scsi(3, 3, &[0x28, 0, 0, 0, 0, 7, 0, 0, 1, 0]).put(6, &[16]).flags(1).len(512);
        bios_send(guest, frame.sge(data, 512))
    };
    guest.recording(3).fail(Some(BlockErrorKind::ReadFailed));
    assert_eq!(read(guest), 0x2e);
    guest.recording(3).fail(None);
    assert_eq!(read(guest), 0);
    assert_eq!(guest.inp(0x30), 0, "no interrupt");
}

#[test]
fn seabios_on_both_boards() {
    for model in [Model::Gen2, Model::Sas1078] {
        seabios(&mut Guest::new(model, true, &[3]));
    }
}

/// megaraid_sas of Linux, up to the event registration.
fn linux_probe(guest: &mut Guest) {
    // The READY handshake, from whatever the BIOS left behind.
    if guest.state() == 0xc {
        guest.write(0x34, u32::MAX);
        guest.write(0x20, 0x07);
    }
    guest.wait_ready();
    let word = guest.read(0xb0);
    let (ieee, commands) = (word & 1 << 26 != 0, word & 0xffff);
    if ieee {
        guest.enable_msix();
    }
    guest.write(0x34, u32::MAX);
    assert_eq!(guest.init(commands), 0);
    assert_eq!(guest.state(), 0xc);
    assert_eq!(guest.reply(), None, "INIT is not posted");
    let (status, info) = guest.dcmd(0x0101_0000, &[1], 0x960);
    assert_eq!(status, 0);
    check_info(guest, &info);
    guest.enable_interrupts();
    let (status, list) = guest.dcmd(0x0201_0100, &[5], 8192);
    assert_eq!(status, 0);
    let exposed = le32(&list, 4);
    assert_eq!(le32(&list, 0), 8 + 24 * exposed);
    let (status, volumes) = guest.dcmd(0x0301_0100, &[1], 268);
    assert_eq!(status, 0);
    scan(guest, &list, &volumes);
    let at = guest.alloc(20);
    guest.send(&Frame::dcmd(0x0104_0100, &[]).context(7).len(20).sge(at, 20));
    assert_eq!(guest.wait_reply(), 7, "this one comes by interrupt");
    let newest = guest.word(at);
    assert!(newest >= 1);
    let mailbox = [(newest + 1).to_le_bytes(), 0xfe00_ffff_u32.to_le_bytes()].concat();
    let record = guest.alloc(256);
    guest.send(&Frame::dcmd(0x0104_0500, &mailbox).context(8).len(256).sge(record, 256));
    guest.expect_silence();
}

fn check_info(guest: &Guest, info: &[u8]) {
    let device = if guest.model == Model::Gen2 { 0x0079 } else { 0x0060 };
    assert_eq!((le16(info, 0), le16(info, 2)), (0x1000, device));
    assert_eq!(info[0x53f], 64);
    let product: &[u8] = if guest.model == Model::Gen2 {
        b"LSI MegaRAID SAS 9260-8i\0"
    } else {
        b"LSI MegaRAID SAS 8708EM2\0"
    };
    assert_eq!(&info[0x540..0x540 + product.len()], product);
    assert_eq!(&info[0x590..0x59a], b"SV1234567\0");
    assert_eq!(le16(info, 0x5d0), 512, "MR(512MB)");
    let word = guest.read(0xb0);
    assert_eq!(u32::from(le16(info, 0x5b8)), word & 0xffff);
    assert_eq!(u32::from(le16(info, 0x5ba)), word >> 16 & 0xff);
    // max_sectors as Linux computes it; forced to 256 later when lists are IEEE.
    let strips = u32::from(le16(info, 0x5da)) << info[0x5e8];
    let sectors = strips.min(le32(info, 0x5bc)).min((word >> 16 & 0xff) * 8);
    assert_eq!(sectors, if guest.model == Model::Gen2 { 480 } else { 640 });
    assert_eq!(le32(info, 0x620) & 1 << 10, 0, "OCR enabled");
    assert_eq!(le16(info, 0x624), 0);
    assert!(info[0x6a0..0x800].iter().all(|&byte| byte == 0));
    assert!(info[0x800..].iter().all(|&byte| byte == 0xcc), "no more than there is");
}

/// scsi_scan_host: INQUIRY to the disks of the list and to every possible volume.
fn scan(guest: &mut Guest, list: &[u8], volumes: &[u8]) {
    for entry in 0..le32(list, 4) as usize {
        let id = le16(list, 8 + 24 * entry);
        let reply = guest.scsi(4, id as u8, &[0x12, 0, 0, 0, 36, 0], &[], 36);
        assert_eq!((reply.status, reply.data[0]), (0, 0));
        let (status, info) = guest.dcmd(0x0202_0000, &id.to_le_bytes(), 512);
        assert_eq!((status, le16(&info, 0), le16(&info, 0xb8)), (0, id, 0x40));
    }
    let count = le32(volumes, 4) as usize;
    // Channel 2, and channel 3, whose IDs come as 128 and more.
    for target in (0..64_u8).chain(128..192) {
        let reply = guest.scsi(3, target, &[0x12, 0, 0, 0, 36, 0], &[], 36);
        let there = volumes[11..11 + count].contains(&target);
        assert_eq!(reply.status, if there { 0 } else { 0x0c }, "target {target}");
        if there {
            let ready = guest.scsi(3, target, &[0; 6], &[], 0);
            assert_eq!(ready.status, 0, "no \"Unit Not Ready\"");
            let other = Frame::scsi(3, target, &[0x12, 0, 0, 0, 36, 0]).put(5, &[1]);
            assert_eq!(guest.poll(other), 0x0c, "no unit but the first");
        }
    }
}

#[test]
fn linux_on_both_boards_in_both_modes() {
    for model in [Model::Gen2, Model::Sas1078] {
        for raid in [true, false] {
            let mut guest = Guest::new(model, raid, &[0, 5, 63]);
            linux_probe(&mut guest);
            let (_, list) = guest.dcmd(0x0201_0100, &[5], 8192);
            assert_eq!(le32(&list, 4), if raid { 0 } else { 3 });
        }
    }
}

#[test]
fn linux_takes_over_from_seabios() {
    let mut guest = Guest::new(Model::Gen2, true, &[3]);
    seabios(&mut guest);
    linux_probe(&mut guest);
    let (status, data) = guest.io(false, 3, 7, &[0; 512]);
    assert_eq!((status, data), (0, vec![0x5a; 512]));
}

#[test]
fn linux_finds_a_controller_that_another_kernel_left_operational() {
    let mut guest = Guest::new(Model::Gen2, true, &[0]);
    linux_probe(&mut guest);
    let (_, data) = guest.held_read(0, 99);
    guest.write(0x34, u32::MAX);
    guest.write(0x20, 0x07);
    guest.wait_ready();
    guest.poke(data, &[0x77; 512]);
    guest.recording(0).hold(false);
    linux_probe(&mut guest);
    assert_eq!(guest.peek(data, 512), [0x77; 512]);
    assert_eq!(guest.poll(Frame::new(0xff, 0x28)), 1, "a frame as a crash kernel fills them");
}

/// mfi of FreeBSD: MSI, a ring of 129 entries, events by EVENT_GET, volumes by LD_GET_LIST and LD_GET_INFO.
#[test]
fn freebsd_probe() {
    let mut guest = Guest::new(Model::Gen2, true, &[0, 1]);
    guest.enable_msi();
    guest.write(0x20, 0x08);
    guest.wait_ready();
    assert_eq!(guest.init(129), 0);
    guest.enable_interrupts();
    assert_eq!(guest.dcmd(0x0101_0000, &[], 2048).0, 0);
    let (status, info) = guest.dcmd(0x0104_0100, &[], 20);
    assert_eq!(status, 0);
    let mut seq = le32(&info, 12);
    for _ in 0..100 {
        let mailbox = [seq.to_le_bytes(), 0xfe00_ffff_u32.to_le_bytes()].concat();
        let (status, events) = guest.dcmd(0x0104_0300, &mailbox, 8 + 15 * 256);
        if status == 0x23 {
            break;
        }
        assert_eq!(status, 0);
        let count = le32(&events, 0);
        assert!((1..=15).contains(&count));
        let next = le32(&events, 8 + 256 * (count as usize - 1)) + 1;
        assert!(next > seq);
        seq = next;
    }
    assert_eq!(seq, le32(&info, 0) + 1, "all read, then NOT_FOUND");
    let (status, list) = guest.dcmd(0x0301_0000, &[], 1032);
    assert_eq!((status, le32(&list, 0)), (0, 2));
    for entry in 0..2_u8 {
        let (status, info) = guest.dcmd(0x0302_0000, &[entry], 384);
        assert_eq!((status, info[0], info[0x26], le64(&info, 0x100)), (0, entry, 3, 16384));
    }
    // I/O with 12-byte elements, and the handler: status, acknowledge, drain, consumer.
    let data = guest.alloc(4096);
    guest.seat.msi.take();
    for context in 0..400 {
        let frame =
            Frame::io(false, 1, 8, 8).flags(SGL64).context(context).sge(data, 512).sge(data + 512, 3584);
        guest.send(&frame);
        guest.wait_for("interrupt", || guest.read(0x30) & 1 != 0);
        guest.write(0xa0, guest.read(0x30));
        assert_eq!(guest.wait_reply(), context);
    }
    let messages = guest.seat.msi.take();
    assert_eq!((messages.len(), messages[0].data), (400, 0x42));
}

/// mfi of OpenBSD: the wire, elements of 8 bytes, and a CACHE_FLUSH for each flush of a file system. It takes the number of
/// volumes for that of the targets and looks at no other, as NetBSD does.
#[test]
fn openbsd_attach_and_io() {
    for model in [Model::Gen2, Model::Sas1078] {
        let mut guest = Guest::new(model, true, &[0, 3]);
        guest.wait_ready();
        let commands = guest.read(0xb0) & 0xffff;
        assert_eq!(guest.init(commands + 1), 0);
        let (status, info) = guest.dcmd(0x0101_0000, &[], 2048);
        let last = le16(&info, 0x5c0) as u8 - 1;
        assert_eq!((status, last), (0, 3), "there is a volume behind a gap");
        guest.enable_interrupts();
        let data = guest.alloc(4096);
        let send = |guest: &mut Guest, frame: Frame, context: u32| {
            let at = guest.send(&frame.context(context));
            guest.wait_for("the wire", || guest.seat.intx.is_high());
            let status = guest.read(0x30);
            assert_eq!(status & guest.reply_bit(), guest.reply_bit());
            guest.write(0xa0, status);
            assert!(!guest.seat.intx.is_high());
            assert_eq!((guest.wait_reply(), guest.status_of(at)), (context, 0));
        };
        for context in 0..100 {
            let (write, target) = (context % 2 == 0, if context % 3 == 1 { last } else { 0 });
            let frame = Frame::io(write, target, u64::from(context), 8).flags(if write { 8 } else { 0x10 });
            send(&mut guest, frame.sge(data, 1024).sge(data + 1024, 3072), context);
        }
        guest.recording(last).operations();
        send(&mut guest, Frame::dcmd(0x0110_1000, &[3]), 7);
        assert_eq!(guest.recording(last).operations(), [Operation::Flush]);
        let mut none = Guest::new(model, true, &[]);
        assert_eq!(none.init(commands + 1), 0);
        assert_eq!(le16(&none.dcmd(0x0101_0000, &[], 2048).1, 0x5c0), 0);
    }
}

/// mr_sas of illumos: the registration for events is the same frame each time, fired by the handler of the one before.
#[test]
fn illumos_fires_the_same_registration_again() {
    let mut guest = Guest::new(Model::Gen2, true, &[0]);
    assert_eq!(guest.init(1009), 0);
    let (_, info) = guest.dcmd(0x0104_0100, &[], 20);
    let record = guest.alloc(256);
    let mailbox = [(le32(&info, 0) + 1).to_le_bytes(), 0x0000_ffff_u32.to_le_bytes()].concat();
    let frame = Frame::dcmd(0x0104_0500, &mailbox).flags(0x10).context(8).len(256).sge(record, 256);
    let registration = guest.send(&frame);
    for id in 1..6 {
        guest.hba.attach_drive(id, drive(&image(), true)).unwrap();
        guest.hba.detach_drive(id).unwrap();
    }
    let mut codes = Vec::new();
    while codes.len() < 40 {
        assert_eq!((guest.wait_reply(), guest.status_of(registration)), (8, 0));
        let event = guest.peek(record, 256);
        codes.push((le32(&event, 8), le16(&event, 0x20)));
        guest.poke(record, &[0; 256]);
        guest.poke(registration + 2, &[0]);
        guest.poke(registration + 0x1c, &(le32(&event, 0) + 1).to_le_bytes());
        guest.fire(registration);
    }
    let all = |codes: &[u32]| -> Vec<(u32, u16)> {
        (1..6).flat_map(|id| codes.iter().map(move |&code| (code, id))).collect()
    };
    assert_eq!(codes[..25], all(&[0x5b, 0x8a, 0x51, 0x8b, 0x70]));
    // It has read no list since: each removal is told once more.
    assert_eq!(codes[25..], all(&[0x51, 0x8b, 0x70]));
    guest.expect_silence();
}

#[test]
fn lists_of_all_three_kinds() {
    let mut guest = Guest::new(Model::Gen2, true, &[0]);
    let pattern: Vec<u8> = (0..4096_u32).map(|i| (i / 512 * 17 + i % 251) as u8).collect();
    assert_eq!(guest.io(true, 0, 100, &pattern).0, 0);
    for flags in [0, SGL64, IEEE, IEEE | SGL64] {
        let at = guest.alloc_with(&[0xcc; 4096]);
        // Sixty elements, the last ones far into the following frames.
        let mut frame = Frame::io(false, 0, 100, 8).flags(flags);
        for i in 0..59_u32 {
            frame = frame.sge(at + u64::from(i) * 64, 64);
        }
        frame = frame.sge(at + 59 * 64, 4096 - 59 * 64);
        assert_eq!(guest.poll(frame), 0, "flags {flags:#x}");
        assert_eq!(guest.peek(at, 4096), pattern, "flags {flags:#x}");
    }
}
