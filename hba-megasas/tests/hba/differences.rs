//! Each switch: what this board answers, and what QEMU's does.

use std::collections::BTreeMap;

use hba_megasas::{Difference, Model, Options};

use crate::guest::{Frame, Guest, PRODUCER, drive, image, options};

/// Boards with a volume at target 0 that answer as this one does, and as QEMU's in this case.
fn both(difference: Difference) -> [Guest; 2] {
    [vec![], vec![difference]].map(|differences| {
        let options = Options { differences: differences.into_iter().collect(), ..options(Model::Gen2) };
        let image = image();
        Guest::with(options, BTreeMap::from([(0, drive(&image, true))]), [(0, image)].into())
    })
}

/// A frame that is posted; returns whether it was, after it has completed.
fn is_posted(guest: &mut Guest, context: u32) -> bool {
    let frame = guest.send(&Frame::dcmd(0x0108_0201, &[]).context(context));
    assert_eq!(guest.wait_frame(frame), 0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    let reply = guest.reply();
    assert!(reply.is_none_or(|reply| reply == context));
    reply.is_some()
}

#[test]
fn unknown_dcmd() {
    let [mut ours, mut qemu] = both(Difference::UnknownDcmd);
    for unknown in [0x0300_e101, 0x0119_0100, u32::MAX] {
        assert_eq!(ours.dcmd(unknown, &[], 64), (0x02, vec![0xcc; 64]));
        assert_eq!(qemu.dcmd(unknown, &[], 64), (0, vec![0xcc; 64]), "done, and no data");
    }
    assert_eq!(qemu.dcmd(0x0402_0000, &[], 64).0, 0x32, "what is known is as it was");
}

#[test]
fn init_twice() {
    for (index, mut guest) in both(Difference::InitTwice).into_iter().enumerate() {
        assert_eq!(guest.init(1009), 0);
        guest.enable_interrupts();
        assert!(is_posted(&mut guest, 7));
        let (producer, consumer) = (guest.peek(PRODUCER, 8), guest.consumer);
        // It says other entries, which nobody looks at.
        let status = guest.init(129);
        assert_eq!(status, [0x32, 0][index]);
        // `init` zeroes what the driver has.
        guest.poke(PRODUCER, &producer);
        (guest.entries, guest.consumer) = (1009, consumer);
        assert_eq!(guest.state(), 0xc);
        for context in 0..200 {
            assert!(is_posted(&mut guest, context), "the first queue, of 1009 entries, stays");
        }
    }
}

#[test]
fn ready_in_fault() {
    let [ours, qemu] = both(Difference::ReadyInFault);
    for guest in [&ours, &qemu] {
        guest.write(0x20, 0x20);
        guest.wait_for("FAULT", || guest.state() == 0xf);
        guest.write(0x20, 0x07);
    }
    qemu.wait_ready();
    assert_eq!(ours.state(), 0xf);
    ours.write(0x20, 0x40);
    ours.wait_ready();
}

#[test]
fn scratch_pad_1() {
    let [ours, qemu] = both(Difference::ScratchPad1);
    assert_eq!((ours.read(0xb4), ours.inp(0xb4)), (0, 0));
    assert_eq!((qemu.read(0xb4), qemu.inp(0xb4)), (15, 15));
    qemu.write(0x20, 0x07);
    qemu.wait_ready();
    assert_eq!(qemu.read(0xb4), 15, "also after a reset");
}

#[test]
fn doorbell_clear() {
    for (index, mut guest) in both(Difference::DoorbellClear).into_iter().enumerate() {
        assert_eq!(guest.init(1009), 0);
        guest.enable_interrupts();
        assert_eq!(guest.read(0xa0), 0);
        guest.send(&Frame::dcmd(0x0108_0201, &[]).context(7));
        guest.wait_for("interrupt", || guest.read(0x30) != 0);
        let expected = [0, 1][index];
        assert_eq!((guest.read(0xa0), guest.inp(0xa0)), (expected, expected));
        guest.write(0xa0, u32::MAX);
        assert_eq!((guest.read(0x30), guest.read(0xa0)), (0, 0));
    }
}

#[test]
fn masked_completions() {
    for (index, mut guest) in both(Difference::MaskedCompletions).into_iter().enumerate() {
        assert_eq!(guest.init(1009), 0);
        // All interrupts are still masked.
        assert_eq!(is_posted(&mut guest, 7), index == 0);
        guest.enable_interrupts();
        assert!(is_posted(&mut guest, 8), "and what was lost stays lost");
        guest.write(0x34, u32::MAX);
        assert_eq!(is_posted(&mut guest, 9), index == 0);
        guest.write(0x34, !0x4);
        assert!(is_posted(&mut guest, 10), "one that is not masked is enough");
    }
}

#[test]
fn after_shutdown() {
    for (index, mut guest) in both(Difference::AfterShutdown).into_iter().enumerate() {
        assert_eq!(guest.init(1009), 0);
        guest.enable_interrupts();
        assert!(is_posted(&mut guest, 7));
        assert_eq!(guest.dcmd(0x0105_0000, &[], 0).0, 0);
        guest.wait_ready();
        assert_eq!(is_posted(&mut guest, 8), index == 1);
        // The next driver has a queue of its own, also without a reset.
        assert_eq!(guest.init(129), 0);
        assert_eq!(guest.state(), 0xc);
        assert!(is_posted(&mut guest, 9));
        assert_eq!(guest.dcmd(0x0105_0000, &[], 0).0, 0);
        guest.wait_ready();
        guest.write(0x20, 0x07);
        guest.wait_ready();
        assert!(!is_posted(&mut guest, 10), "a reset forgets the queue");
    }
}
