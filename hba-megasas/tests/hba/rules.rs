//! The design rules that are easy to get wrong, one test each, by their numbers.

use std::collections::BTreeMap;

use devices::scsi::suite::{self, Operation};
use devices::scsi::{Disk, LogicalUnit, Lun};
use devices::storage::Durability;
use hba_megasas::Model;

use crate::guest::{DONT_POST, Frame, Guest, IEEE, drive, image, le16, options};

fn gen2() -> Guest {
    Guest::new(Model::Gen2, true, &[0])
}

fn started(model: Model) -> Guest {
    let mut guest = Guest::new(model, true, &[0]);
    assert_eq!(guest.init(model_entries(model)), 0);
    guest.enable_interrupts();
    guest
}

fn model_entries(model: Model) -> u32 {
    if model == Model::Gen2 { 1009 } else { 1001 }
}

/// One queue for all that the guest does: who reads a block does not wait for all the long reads before his. What is no command
/// to a disk stays behind those, for a flush may come after writes that nobody waited for.
#[test]
fn short_commands_overtake_long_ones_that_wait() {
    let mut guest = Guest::new(Model::Gen2, true, &[0]);
    assert_eq!(guest.init(1009), 0);
    assert_eq!(guest.io(false, 0, 0, &[0; 512]).0, 0, "settled");
    guest.recording(0).operations();
    let data = guest.alloc(128 << 10);
    // All of it is there when the board first looks.
    guest._thread.remote().spawn(|_| async { std::thread::sleep(std::time::Duration::from_millis(100)) });
    for context in 0..32 {
        guest.send(&Frame::io(true, 0, 256 * u64::from(context), 256).context(context).sge(data, 128 << 10));
    }
    guest.send(&Frame::dcmd(0x0110_1000, &[]).context(100));
    guest.send(&Frame::io(false, 0, 9999, 1).context(101).sge(data, 512));
    let order: Vec<u32> = (0..34).map(|_| guest.wait_reply()).collect();
    let place = |context| order.iter().position(|&one| one == context).unwrap();
    assert!(place(101) <= 4, "the short one after {} others: {order:?}", place(101));
    assert!(place(100) >= 32, "the flush before a write that was sent before: {order:?}");
}

#[test]
fn rule_1_frames_work_in_ready_without_init() {
    let mut guest = gen2();
    guest.poke(crate::guest::RING, &[0x77; 4096]);
    assert_eq!(guest.state(), 0xb);
    assert_eq!(guest.dcmd(0x0301_0000, &[], 1032).0, 0);
    // Not even without DONT_POST is anything but the status written.
    let address = guest.send(&Frame::scsi(3, 0, &[0; 6]).context(5));
    assert_eq!(guest.wait_frame(address), 0);
    assert_eq!(guest.peek(crate::guest::RING, 4096), [0x77; 4096]);
    assert_eq!((guest.read(0x30), guest.state()), (0, 0xb));
}

#[test]
fn rule_2_the_ring_wraps_at_the_entries_of_the_guest() {
    for entries in [2, 129, 1009] {
        let mut guest = gen2();
        assert_eq!(guest.init(entries), 0);
        guest.poke(crate::guest::RING + 4 * u64::from(entries), &[0x77; 64]);
        for context in 0..2 * entries + 3 {
            guest.send(&Frame::scsi(3, 0, &[0; 6]).context(context));
            assert_eq!(guest.wait_reply(), context);
        }
        assert_eq!(guest.peek(crate::guest::RING + 4 * u64::from(entries), 64), [0x77; 64]);
    }
}

#[test]
fn rule_3_dont_post_neither_posts_nor_interrupts() {
    for model in [Model::Gen2, Model::Sas1078] {
        let mut guest = started(model);
        let address = guest.send(&Frame::scsi(3, 0, &[0; 6]).flags(DONT_POST).context(9));
        assert_eq!(guest.wait_frame(address), 0);
        guest.expect_silence();
        assert_eq!((guest.read(0x30), guest.seat.intx.is_high()), (0, false));
    }
}

#[test]
fn rule_4_sixty_ieee_elements_or_eighty() {
    for (model, most) in [(Model::Gen2, 60_u32), (Model::Sas1078, 80)] {
        let mut guest = started(model);
        assert_eq!(guest.read(0xb0) >> 16 & 0xff, most);
        assert_eq!(guest.read(0xb0) & 1 << 26 != 0, model == Model::Gen2);
        let data = guest.alloc(64 * 128);
        for (count, status) in [(most, 0), (most + 1, 0x3c), (255, 0x3c)] {
            let mut frame = Frame::scsi(3, 0, &[0x12, 0, 0, 0, 96, 0]).flags(IEEE).len(96);
            for i in 0..count {
                frame = frame.sge(data + u64::from(i % 80) * 64, 2);
            }
            assert_eq!(guest.poll(frame), status, "{count} elements");
        }
    }
}

#[test]
fn rule_5_byte_5_of_io_is_cdb_byte_1_and_byte_6_is_nothing() {
    let mut options = options(Model::Gen2);
    options.write_back = true;
    let image = image();
    let drives = [(0, drive(&image, true))].into();
    let mut guest = Guest::with(options, drives, [(0, image)].into());
    let data = guest.alloc(512);
    for (access, durability) in [(0, Durability::Cached), (8, Durability::Stable), (0x18, Durability::Stable)]
    {
        for byte_6 in [0, 10, 255] {
            guest.recording(0).operations();
            let frame = Frame::io(true, 0, 5, 1).put(5, &[access]).put(6, &[byte_6]).sge(data, 512);
            assert_eq!(guest.poll(frame), 0);
            let wrote = Operation::Write(2560, 512, durability);
            assert_eq!(guest.recording(0).operations(), [wrote], "access {access:#x}");
        }
    }
}

#[test]
fn rule_6_volume_writes_are_stable_when_completed() {
    let mut guest = gen2();
    assert_eq!(guest.scsi(3, 0, &[0; 6], &[], 0).status, 0);
    guest.recording(0).operations();
    assert_eq!(guest.io(true, 0, 1, &[1; 1024]).0, 0);
    assert_eq!(guest.recording(0).operations(), [Operation::Write(512, 1024, Durability::Stable)]);
    // The same by CDB, with and without FUA, also of the kind that has none.
    let cdbs: [&[u8]; 3] =
        [&[0x2a, 0, 0, 0, 0, 1, 0, 0, 1, 0], &[0x0a, 0, 0, 1, 1, 0], &[0x41, 0, 0, 0, 0, 1, 0, 0, 8, 0]];
    for cdb in cdbs {
        assert_eq!(guest.scsi(3, 0, cdb, &[2; 512], 0).status, 0, "{cdb:02x?}");
        let operations = guest.recording(0).operations();
        assert_eq!(operations.last(), Some(&Operation::Flush), "{cdb:02x?}: {operations:?}");
    }
    // COMPARE AND WRITE of zeros, WRITE ATOMIC, WRITE SAME and UNMAP of a unit whose write cache is on.
    let (_, zeros) = guest.io(true, 0, 8, &[0; 4096]);
    let unmap = [0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0];
    let cdbs: [(&[u8], &[u8]); 4] = [
        (&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0], &zeros[..1024]),
        (&[0x9c, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0], &zeros),
        (&[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0], &zeros[..512]),
        (&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &unmap),
    ];
    for (cdb, data) in cdbs {
        guest.recording(0).operations();
        let reply = guest.scsi(3, 0, cdb, data, 0);
        assert_eq!(reply.status, 0, "{cdb:02x?}: {:02x?}", reply.sense);
        let operations = guest.recording(0).operations();
        assert_eq!(operations.last(), Some(&Operation::Flush), "{cdb:02x?}: {operations:?}");
    }
    // EXTENDED COPY(LID1) of block 8 to block 80: the unit by its name, then one segment of blocks.
    let names = guest.scsi(3, 0, &[0x12, 1, 0x83, 0, 252, 0], &[], 252).data;
    let naa = designator(&names, 3);
    let mut unit = vec![0xe4, 0, 0, 0];
    unit.extend(&naa);
    unit.resize(28, 0);
    unit.extend([0, 0, 2, 0]);
    let mut segment = vec![2, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 1];
    segment.extend(8_u64.to_be_bytes());
    segment.extend(80_u64.to_be_bytes());
    let list = [&[7, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0][..], &unit, &segment].concat();
    let cdb = [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, list.len() as u8, 0, 0];
    let reply = guest.scsi(3, 0, &cdb, &list, 0);
    assert_eq!(reply.status, 0, "{:02x?}", reply.sense);
    assert_eq!(guest.recording(0).operations().last(), Some(&Operation::Flush), "EXTENDED COPY");
    // And the controller says that it does not cache.
    let (_, info) = guest.dcmd(0x0302_0000, &[0], 384);
    assert_eq!((info[0x14] & 1, info[0x17] & 1, info[0x16]), (0, 0, 2));
}

/// The first designator of a kind in a device identification VPD page, with its header.
fn designator(page: &[u8], kind: u8) -> Vec<u8> {
    let mut rest = &page[4..];
    loop {
        let (this, next) = rest.split_at(4 + usize::from(rest[3]));
        if this[1] & 0x0f == kind {
            return this.to_vec();
        }
        rest = next;
    }
}

/// FORMAT UNIT that goes on in the background (IMMED) is accepted, and is stable at its end.
#[test]
fn rule_6_wiping_in_the_background_is_no_failure() {
    let mut guest = gen2();
    let (cdb, data) = (&[0x04, 0x10, 0, 0, 0, 0], &[0, 2, 0, 0]);
    assert_eq!(guest.io(true, 0, 5, &[7; 512]).0, 0);
    guest.recording(0).operations();
    guest.recording(0).hold(true);
    let reply = guest.scsi(3, 0, cdb, data, 0);
    assert_eq!((reply.status, reply.scsi_status), (0, 0), "{cdb:02x?}");
    let busy = guest.scsi(3, 0, &[0; 6], &[], 0);
    assert_eq!((busy.status, busy.sense[2] & 0xf, busy.sense[12]), (0x2d, 2, 4), "not ready meanwhile");
    guest.recording(0).hold(false);
    let mut ready = || guest.scsi(3, 0, &[0; 6], &[], 0).status == 0;
    let start = std::time::Instant::now();
    while !ready() {
        assert!(start.elapsed().as_secs() < 10, "{cdb:02x?}");
    }
    assert_eq!(guest.recording(0).operations().last(), Some(&Operation::Flush), "{cdb:02x?}");
    assert_eq!(guest.io(false, 0, 5, &[7; 512]), (0, vec![0; 512]));
}

#[test]
fn rule_6_system_drives_get_the_flush_of_the_guest() {
    let mut guest = Guest::new(Model::Gen2, false, &[0]);
    assert_eq!(
        guest.scsi(4, 0, &[0; 6], &[], 0).scsi_status,
        2,
        "the power-on attention is the host's to see"
    );
    guest.recording(0).operations();
    assert_eq!(guest.scsi(4, 0, &[0x2a, 0, 0, 0, 0, 1, 0, 0, 1, 0], &[2; 512], 0).status, 0);
    assert_eq!(guest.recording(0).operations(), [Operation::Write(512, 512, Durability::Cached)]);
    assert_eq!(guest.scsi(4, 0, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0).status, 0);
    assert_eq!(guest.recording(0).operations(), [Operation::Flush]);
}

#[test]
fn rule_7_device_ids_are_flat_and_read_as_16_bits() {
    let ids = [0, 1, 17, 63];
    let mut guest = Guest::new(Model::Gen2, false, &ids);
    let (_, list) = guest.dcmd(0x0201_0000, &[], 8192);
    for (entry, id) in ids.into_iter().enumerate() {
        let at = 8 + 24 * entry;
        assert_eq!((le16(&list, at), le16(&list, at + 2), list[at + 5]), (id.into(), 0xffff, id));
        let (status, info) = guest.dcmd(0x0202_0000, &u16::from(id).to_le_bytes(), 512);
        assert_eq!((status, le16(&info, 0), info[0x103]), (0, u16::from(id), id));
    }
    for absent in [2_u16, 0x100, 0x101, 0xffff] {
        assert_eq!(guest.dcmd(0x0202_0000, &absent.to_le_bytes(), 512).0, 0x0c, "{absent:#x}");
    }
}

#[test]
fn rule_8_abort_brings_the_aborted_frame_back_first() {
    let mut guest = started(Model::Gen2);
    let mailbox = [u32::MAX.to_le_bytes(), 0xfe00_ffff_u32.to_le_bytes()].concat();
    let wait = |guest: &mut Guest, context| {
        let record = guest.alloc(256);
        let frame = Frame::dcmd(0x0104_0500, &mailbox).context(context).len(256).sge(record, 256);
        guest.send(&frame)
    };
    let abort = |context: u32, address: u64| {
        Frame::new(6, 0x28).put(0x18, &context.to_le_bytes()).put(0x20, &address.to_le_bytes())
    };
    let held = wait(&mut guest, 40);
    guest.expect_silence();
    assert_eq!(guest.poll(abort(41, held)), 5, "another context");
    let frame = abort(40, held).context(77);
    let address = guest.send(&frame);
    assert_eq!((guest.wait_reply(), guest.wait_reply()), (40, 77));
    assert_eq!((guest.status_of(held), guest.status_of(address)), (0xff, 0));
    assert_eq!(guest.poll(abort(40, held)), 0, "nothing there any more");
    // The next registration is served.
    wait(&mut guest, 42);
    guest.expect_silence();
}

#[test]
fn rule_9_the_direction_is_that_of_the_command() {
    let mut guest = gen2();
    for (flags, fill) in [(0x0001, 1), (0x0009, 2), (0x0011, 3), (0x0019, 4)] {
        let data = guest.alloc_with(&[fill; 512]);
        let write =
            Frame::scsi(3, 0, &[0x2a, 0, 0, 0, 0, 9, 0, 0, 1, 0]).flags(flags).len(512).sge(data, 512);
        assert_eq!(guest.poll(write), 0);
        let back = guest.alloc_with(&[0xcc; 512]);
        let read = Frame::scsi(3, 0, &[0x28, 0, 0, 0, 0, 9, 0, 0, 1, 0]).flags(flags).len(512).sge(back, 512);
        assert_eq!(guest.poll(read), 0);
        assert_eq!(guest.peek(back, 512), [fill; 512], "flags {flags:#x}");
    }
}

#[test]
fn rule_10_no_elements_and_cdbs_of_16() {
    let mut guest = gen2();
    assert_eq!(guest.poll(Frame::scsi(3, 0, &[0; 6]).put(6, &[16])), 0, "TEST UNIT READY");
    assert_eq!(guest.poll(Frame::scsi(3, 0, &[0x1b, 0, 0, 0, 1, 0]).put(6, &[16])), 0, "START STOP UNIT");
    guest.recording(0).operations();
    assert_eq!(guest.poll(Frame::dcmd(0x0110_1000, &[3])), 0, "cache flush");
    assert_eq!(guest.recording(0).operations(), [Operation::Flush]);
    // Bytes beyond the CDB's own length are not looked at.
    assert_eq!(guest.poll(Frame::scsi(3, 0, &[0; 6]).put(6, &[16]).put(0x26, &[0xff; 10])), 0);
}

#[test]
fn rule_11_nothing_of_an_old_frame_after_a_reset() {
    let mut guest = started(Model::Gen2);
    let (frame, data) = guest.held_read(0, 3);
    guest.adapter_reset();
    guest.wait_ready();
    let header = guest.peek(frame, 64);
    guest.poke(data, &[0x77; 512]);
    guest.recording(0).hold(false);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!((guest.peek(data, 512), guest.peek(frame, 64)), (vec![0x77; 512], header));
    // Linux fires the very same frame again.
    assert_eq!(guest.init(1009), 0);
    guest.enable_interrupts();
    guest.fire(frame);
    assert_eq!(guest.wait_reply(), 3);
    assert_eq!(guest.peek(data, 512), [0; 512]);
    guest.expect_silence();
}

#[test]
fn rule_12_the_status_shows_the_reply_bit_in_every_mode() {
    for model in [Model::Gen2, Model::Sas1078] {
        for mode in 0..3 {
            let mut guest = started(model);
            match mode {
                0 => {}
                1 => guest.enable_msi(),
                _ => guest.enable_msix(),
            }
            guest.send(&Frame::scsi(3, 0, &[0; 6]).context(1));
            guest.wait_for("status", || guest.read(0x30) == guest.reply_bit());
            let messages = guest.seat.msi.take();
            assert_eq!((messages.len(), guest.seat.intx.is_high()), (usize::from(mode > 0), mode == 0));
            assert_eq!(guest.wait_reply(), 1);
            // A driver that does not acknowledge gets the next message all the same.
            guest.send(&Frame::scsi(3, 0, &[0; 6]).context(2));
            guest.wait_for("message", || mode == 0 || !guest.seat.msi.take().is_empty());
            assert_eq!(guest.wait_reply(), 2);
            guest.write(0xa0, guest.reply_bit());
            assert_eq!((guest.read(0x30), guest.seat.intx.is_high()), (0, false));
        }
    }
}

#[test]
fn masked_interrupts_come_when_they_are_unmasked() {
    for mode in 0..2 {
        let mut guest = started(Model::Gen2);
        if mode == 1 {
            guest.enable_msix();
        }
        guest.write(0x34, u32::MAX);
        guest.send(&Frame::scsi(3, 0, &[0; 6]).context(1));
        guest.wait_for("status", || guest.read(0x30) == 1);
        assert_eq!(guest.wait_reply(), 1);
        assert!(!guest.seat.intx.is_high() && guest.seat.msi.take().is_empty());
        guest.write(0x34, !1);
        assert_eq!((guest.seat.intx.is_high(), guest.seat.msi.take().len()), (mode == 0, mode));
    }
}

#[test]
fn the_hba_can_go_with_frames_in_flight() {
    let mut guest = started(Model::Gen2);
    guest.held_read(0, 1);
    drop(guest);
}

/// LD READ and LD WRITE are no commands of the driver's own that could tell it: FreeBSD makes an error of a unit attention there.
#[test]
fn unit_attentions_are_for_scsi_commands() {
    let image = image();
    let drive = drive(&image, true);
    let target = drive.logical.as_ref().unwrap().target().clone();
    let mut guest =
        Guest::with(options(Model::Gen2), BTreeMap::from([(0, drive)]), BTreeMap::from([(0, image.clone())]));
    assert_eq!(guest.init(1009), 0);
    assert_eq!(guest.io(false, 0, 0, &[0; 512]).0, 0);
    let disk = LogicalUnit::Disk(Disk::new(image, suite::config()).unwrap());
    target.attach(Lun([0, 1, 0, 0, 0, 0, 0, 0]), disk).unwrap();
    for write in [false, true, false] {
        assert_eq!(guest.io(write, 0, 0, &[0; 512]).0, 0, "write: {write}");
    }
    let reply = guest.scsi(3, 0, &[0; 6], &[], 0);
    assert_eq!((reply.scsi_status, reply.sense[2], &reply.sense[12..14]), (2, 6, &[0x3f, 0x0e][..]));
    assert_eq!(guest.scsi(3, 0, &[0; 6], &[], 0).status, 0);
}
