//! Resets, faults and recovery, with commands in flight.

use std::time::Duration;

use devices::pci::PciFunction;
use devices::scsi::suite::Operation;
use hba_megasas::Model;

use crate::guest::{Frame, Guest, PRODUCER};

fn started() -> Guest {
    let mut guest = Guest::new(Model::Gen2, true, &[0]);
    assert_eq!(guest.init(1009), 0);
    guest.enable_interrupts();
    guest
}

/// Whatever ends the time before: nothing of it lands later, and the adapter serves again.
fn canary(reset: impl Fn(&Guest)) {
    let mut guest = started();
    let (frame, data) = guest.held_read(0, 3);
    let record = guest.alloc_with(&[0xcc; 256]);
    let mailbox = [u32::MAX.to_le_bytes(), 0xfe00_ffff_u32.to_le_bytes()].concat();
    guest.send(&Frame::dcmd(0x0104_0500, &mailbox).context(4).len(256).sge(record, 256));
    guest.expect_silence();
    reset(&guest);
    guest.wait_ready();
    assert_eq!((guest.read(0x30), guest.read(0x34), guest.seat.intx.is_high()), (0, u32::MAX, false));
    let producer = guest.word(PRODUCER);
    for (at, len) in [(frame, 64), (data, 512), (record, 256)] {
        guest.poke(at, &vec![0x77; len]);
    }
    guest.recording(0).hold(false);
    std::thread::sleep(Duration::from_millis(20));
    for (at, len) in [(frame, 64), (data, 512), (record, 256)] {
        assert_eq!(guest.peek(at, len), vec![0x77; len]);
    }
    assert_eq!(guest.word(PRODUCER), producer);
    assert_eq!(guest.init(1009), 0);
    guest.send(&Frame::scsi(3, 0, &[0; 6]).context(1));
    assert_eq!(guest.wait_reply(), 1);
    let (status, _) = guest.io(false, 0, 0, &[0; 512]);
    assert_eq!(status, 0, "no unit attention of the firmware's own doing");
}

#[test]
fn adapter_reset_of_both_generations() {
    canary(Guest::adapter_reset);
    canary(|guest| guest.write(0x20, 0x40));
}

#[test]
fn ready_by_doorbell() {
    canary(|guest| guest.write(0x20, 0x07));
    canary(|guest| guest.write(0x20, 0x02));
}

#[test]
fn bus_mastering_off_and_on() {
    canary(|guest| {
        guest.hba.config_write(4, &3_u16.to_le_bytes());
        guest.wait_ready();
        guest.hba.config_write(4, &7_u16.to_le_bytes());
    });
}

/// Nothing lands after the write that takes bus mastering away has returned: a kernel that starts another one hands its memory
/// over then.
#[test]
fn bus_mastering_off_waits_for_what_is_under_way() {
    let mut guest = started();
    let (frame, data) = guest.held_read(0, 3);
    // The host has answered, the thread has something else to do first.
    let (begun, begins) = std::sync::mpsc::channel();
    guest._thread.remote().spawn(move |_| async move {
        begun.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    });
    begins.recv().unwrap();
    guest.recording(0).hold(false);
    guest.hba.config_write(4, &3_u16.to_le_bytes());
    for (at, len) in [(frame, 64), (data, 512)] {
        guest.poke(at, &vec![0x77; len]);
    }
    std::thread::sleep(Duration::from_millis(100));
    for (at, len) in [(frame, 64), (data, 512)] {
        assert_eq!(guest.peek(at, len), vec![0x77; len]);
    }
}

#[test]
fn system_reset() {
    canary(|guest| {
        guest.hba.reset();
        guest.place();
        assert_eq!(guest.state(), 0xb, "quiet when it returns");
    });
}

#[test]
fn stop_and_recovery() {
    canary(|guest| {
        guest.write(0x20, 0x20);
        assert_eq!(guest.state(), 0xf);
        guest.write(0x20, 0x07);
        assert_eq!(guest.state(), 0xf, "a doorbell does not revive it");
        guest.adapter_reset();
    });
}

#[test]
fn a_fault_interrupts_and_frames_are_ignored() {
    canary(|guest| {
        guest.enable_msix();
        guest.hba.inject_fault();
        assert_eq!((guest.state(), guest.read(0x30)), (0xf, 4));
        assert_eq!(guest.seat.msi.take().len(), 1);
        guest.adapter_reset();
    });
    let mut guest = started();
    guest.hba.inject_fault();
    assert!(guest.seat.intx.is_high());
    let address = guest.send(&Frame::scsi(3, 0, &[0; 6]));
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(guest.status_of(address), 0xff);
}

#[test]
fn abort_by_doorbell_ends_commands_and_stays_operational() {
    let mut guest = started();
    let (frame, _) = guest.held_read(0, 3);
    guest.write(0x20, 0x01);
    assert_eq!((guest.wait_reply(), guest.status_of(frame), guest.state()), (3, 0x2e, 0xc));
    guest.recording(0).hold(false);
    assert_eq!(guest.io(false, 0, 0, &[0; 512]).0, 0);
}

#[test]
fn shutdown_is_posted_and_then_ready() {
    let mut guest = started();
    guest.recording(0).operations();
    guest.send(&Frame::dcmd(0x0105_0000, &[]).context(6));
    guest.wait_ready();
    assert!(guest.seat.intx.is_high(), "the completion can still be seen");
    assert_eq!(guest.wait_reply(), 6);
    assert!(!guest.recording(0).operations().is_empty(), "flushed");
    assert_eq!(guest.init(1009), 0, "another driver");
}

/// Linux and FreeBSD abort their registration before; whoever does not gets it back, and no event is written later to
/// memory that may be somebody else's by then.
#[test]
fn shutdown_ends_the_wait_for_events() {
    let mut guest = started();
    let record = guest.alloc_with(&[0xcc; 256]);
    let mailbox = [u32::MAX.to_le_bytes(), 0xfe00_ffff_u32.to_le_bytes()].concat();
    let wait = guest.send(&Frame::dcmd(0x0104_0500, &mailbox).context(4).len(256).sge(record, 256));
    guest.expect_silence();
    guest.send(&Frame::dcmd(0x0105_0000, &[]).context(6));
    assert_eq!((guest.wait_reply(), guest.wait_reply(), guest.status_of(wait)), (4, 6, 0xff));
    guest.wait_ready();
    guest.poke(wait, &[0x77; 64]);
    guest.hba.detach_drive(0).unwrap();
    guest.expect_silence();
    assert_eq!((guest.peek(record, 256), guest.peek(wait, 64)), (vec![0xcc; 256], vec![0x77; 64]));
}

/// What the firmware itself does on a disk that hangs holds up no reset.
#[test]
fn a_flush_that_hangs_holds_up_no_reset() {
    for raid in [true, false] {
        let mut guest = Guest::new(Model::Gen2, raid, &[0]);
        assert_eq!(guest.init(1009), 0);
        guest.recording(0).hold(true);
        let before = guest.recording(0).arrived();
        let flush = guest.send(&Frame::dcmd(0x0110_1000, &[3]).context(6));
        guest.wait_for("flush", || guest.recording(0).arrived() > before);
        // IDB 01h alone has it fail.
        guest.write(0x20, 0x01);
        assert_eq!((guest.wait_reply(), guest.status_of(flush)), (6, 0x2e));
        let before = guest.recording(0).arrived();
        let flush = guest.send(&Frame::dcmd(0x0110_1000, &[3]).context(7));
        guest.wait_for("flush", || guest.recording(0).arrived() > before);
        guest.adapter_reset();
        guest.wait_ready();
        assert_eq!(guest.status_of(flush), 0xff);
        guest.recording(0).hold(false);
        assert_eq!(guest.init(1009), 0);
        guest.recording(0).operations();
        assert_eq!(guest.dcmd(0x0110_1000, &[3], 0).0, 0);
        assert_eq!(guest.recording(0).operations().len(), 1);
    }
}

/// Those that wait for a flush of another frame end with it.
#[test]
fn the_doorbell_s_abort_ends_all_flushes() {
    let mut guest = Guest::new(Model::Gen2, true, &[0]);
    assert_eq!(guest.init(1009), 0);
    guest.recording(0).hold(true);
    let before = guest.recording(0).arrived();
    let flush = Frame::dcmd(0x0110_1000, &[3]);
    let mut frames = vec![guest.send(&flush.clone().context(0))];
    guest.wait_for("flush", || guest.recording(0).arrived() > before);
    frames.extend((1..3).map(|context| guest.send(&flush.clone().context(context))));
    guest.send(&Frame::dcmd(0x0201_0000, &[]).context(1000));
    assert_eq!(guest.wait_reply(), 1000);
    guest.write(0x20, 0x01);
    let mut replies: Vec<_> = frames.iter().map(|_| guest.wait_reply()).collect();
    replies.sort_unstable();
    assert_eq!(replies, [0, 1, 2]);
    assert!(frames.iter().all(|frame| guest.status_of(*frame) == 0x2e));
    // Those that come later are flushed.
    guest.recording(0).hold(false);
    assert_eq!(guest.dcmd(0x0110_1000, &[3], 0).0, 0);
}

/// One flush of all disks: none waits for another, and one that was stopped is no failure.
#[test]
fn a_flush_of_all_disks_waits_for_none_of_them_before_the_others() {
    let mut guest = Guest::new(Model::Gen2, true, &[0, 2, 5]);
    assert_eq!(guest.init(1009), 0);
    guest.recording(0).hold(true);
    guest.recording(2).operations();
    let before = guest.recording(0).arrived();
    let flush = guest.send(&Frame::dcmd(0x0110_1000, &[3]).context(6));
    guest.wait_for("the flush that hangs", || guest.recording(0).arrived() > before);
    guest.wait_for("the others", || guest.recording(2).operations().contains(&Operation::Flush));
    assert_eq!(guest.status_of(flush), 0xff, "not all of it is done");
    // What the board says of its disks does not wait either.
    guest.send(&Frame::dcmd(0x0201_0000, &[]).context(7));
    assert_eq!(guest.wait_reply(), 7);
    guest.recording(0).hold(false);
    assert_eq!((guest.wait_reply(), guest.status_of(flush)), (6, 0));
    // START STOP UNIT.
    assert_eq!(guest.scsi(3, 5, &[0x1b, 0, 0, 0, 0, 0], &[], 0).status, 0);
    assert_eq!(guest.scsi(3, 5, &[0; 6], &[], 0).scsi_status, 2, "not ready");
    assert_eq!(guest.dcmd(0x0110_1000, &[3], 0).0, 0);
}

/// Many frames that ask for the same: each is answered after a flush that began when it was there.
#[test]
fn frames_that_come_during_a_flush_share_the_next_one() {
    let mut guest = Guest::new(Model::Gen2, true, &[0]);
    assert_eq!(guest.init(1009), 0);
    guest.recording(0).hold(true);
    guest.recording(0).operations();
    let before = guest.recording(0).arrived();
    let flush = Frame::dcmd(0x0110_1000, &[3]);
    let mut frames = vec![guest.send(&flush.clone().context(0))];
    guest.wait_for("the first flush", || guest.recording(0).arrived() > before);
    frames.extend((1..=100).map(|context| guest.send(&flush.clone().context(context))));
    // They are there when this, which comes behind them, is answered.
    guest.send(&Frame::dcmd(0x0201_0000, &[]).context(1000));
    assert_eq!(guest.wait_reply(), 1000);
    guest.expect_silence();
    guest.recording(0).hold(false);
    let mut replies: Vec<_> = frames.iter().map(|_| guest.wait_reply()).collect();
    replies.sort_unstable();
    assert_eq!(replies, (0..=100).collect::<Vec<_>>());
    assert!(frames.iter().all(|frame| guest.status_of(*frame) == 0));
    assert_eq!(guest.recording(0).operations(), [Operation::Flush; 2]);
}

/// A driver may ask for it as often as it likes: what that leaves to do on the host does not pile up.
#[test]
fn aborts_by_doorbell_do_not_pile_up() {
    let mut guest = started();
    for _ in 0..200_000 {
        guest.write(0x20, 0x01);
    }
    let start = std::time::Instant::now();
    assert_eq!(guest.scsi(3, 0, &[0; 6], &[], 0).status & !0x2e, 0);
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
}

/// The driver takes completions from a full ring without another word: those that had no room come all the same, each
/// with an interrupt.
#[test]
fn a_ring_that_was_full_goes_on_by_itself() {
    let mut guest = Guest::new(Model::Gen2, true, &[0]);
    assert_eq!(guest.init(3), 0);
    guest.enable_msix();
    guest.enable_interrupts();
    for context in 0..20 {
        guest.send(&Frame::scsi(3, 0, &[0; 6]).context(context));
    }
    let mut seen = Vec::new();
    while seen.len() < 20 {
        guest.wait_for("interrupt", || !guest.seat.msi.take().is_empty());
        guest.write(0xa0, u32::MAX);
        std::thread::sleep(Duration::from_millis(3));
        seen.extend(std::iter::from_fn(|| guest.reply()));
    }
    seen.sort_unstable();
    assert_eq!(seen, Vec::from_iter(0..20));
}

#[test]
fn init_only_in_ready() {
    let mut guest = started();
    assert_eq!(guest.init(1009), 0x32);
    guest.write(0x20, 0x02);
    guest.wait_ready();
    assert_eq!(guest.init(1009), 0);
}

#[test]
fn driver_reload_fifty_times_under_io() {
    let mut guest = Guest::new(Model::Gen2, true, &[0]);
    let data = guest.alloc(4096);
    for round in 0..50 {
        guest.write(0x20, 0x07);
        guest.wait_ready();
        assert_eq!(guest.init(1008), 0, "round {round}");
        for context in 0..40 {
            guest.send(
                &Frame::io(context % 2 == 1, 0, 8 * u64::from(context), 8).context(context).sge(data, 4096),
            );
        }
        for _ in 0..round % 40 {
            assert!(guest.wait_reply() < 40);
        }
    }
}
