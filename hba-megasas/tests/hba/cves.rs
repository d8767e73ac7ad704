//! What guests did to the other emulation of this board: each row of its history as a test, by number where it has one.

use hba_megasas::Model;

use crate::guest::{DONT_POST, Frame, Guest, PRODUCER, RING, le32};

fn started() -> Guest {
    let mut guest = Guest::new(Model::Gen2, true, &[0]);
    assert_eq!(guest.init(1009), 0);
    guest.enable_interrupts();
    guest
}

fn assert_serves(guest: &mut Guest) {
    assert_eq!(guest.scsi(3, 0, &[0; 6], &[], 0).status, 0);
}

#[test]
fn cve_2015_8613_controller_info_into_any_length() {
    let mut guest = started();
    for len in [1, 511, 2047, 2048, 2049, 0x10_0000] {
        let (status, info) = guest.dcmd(0x0101_0000, &[], len);
        assert_eq!(status, 0);
        assert!(info[len.min(2048)..].iter().all(|&byte| byte == 0xcc), "{len}");
    }
}

#[test]
fn cve_2016_5105_replies_have_no_stale_bytes() {
    let mut guest = Guest::new(Model::Gen2, true, &[]);
    let (status, config) = guest.dcmd(0x0401_0000, &[], 4096);
    assert_eq!((status, le32(&config, 0)), (0, 32));
    assert!(config[16..32].iter().all(|&byte| byte == 0) && config[32..].iter().all(|&byte| byte == 0xcc));
    // With volumes: arrays of 288 bytes, volumes of 256. Whatever was in the buffer, all of it is written, and nothing behind.
    for (raid, ids) in [(true, &[0, 1, 5][..]), (false, &[0, 1][..])] {
        let mut guest = Guest::new(Model::Gen2, raid, ids);
        let [one, other] = [0x55, 0xaa].map(|fill| guest.dcmd_with(0x0401_0000, &[], &[fill; 8192]));
        let len = le32(&one.1, 0) as usize;
        assert_eq!((one.0, other.0, len), (0, 0, if raid { 32 + 3 * (288 + 256) } else { 32 }));
        assert!(one.1[..len] == other.1[..len], "bytes that nobody set");
        assert!(one.1[len..].iter().all(|&byte| byte == 0x55), "bytes behind the reply");
    }
}

#[test]
fn cve_2016_5106_properties_of_any_length() {
    let mut guest = started();
    for len in [0, 1, 63] {
        assert_eq!(guest.dcmd_with(0x0102_0200, &[], &vec![0xff; len]).0, 3, "{len}");
    }
    assert_eq!(guest.dcmd_with(0x0102_0200, &[], &vec![0xff; 0x10_0000]).0, 0x32);
    assert_eq!(guest.dcmd_with(0x0102_0200, &[], &vec![0; 0x10_0000]).0, 0);
    assert_serves(&mut guest);
}

#[test]
fn cve_2016_5107_and_2020_13362_initial_producer_index() {
    for index in [1009_u32, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let mut guest = Guest::new(Model::Gen2, true, &[0]);
        let mut info = [0_u32.to_le_bytes(), 1009_u32.to_le_bytes()].concat();
        for address in [RING, PRODUCER, PRODUCER + 4] {
            info.extend(address.to_le_bytes());
        }
        guest.poke(0x1000, &info);
        guest.poke(PRODUCER, &index.to_le_bytes());
        assert_eq!(guest.poll(Frame::new(0, 0x28).put(0x18, &0x1000_u64.to_le_bytes())), 3, "{index:#x}");
        assert_serves(&mut guest);
    }
}

#[test]
fn cve_2016_5337_strings_are_terminated() {
    let mut guest = started();
    let (_, info) = guest.dcmd(0x0101_0000, &[], 2048);
    for (at, len) in [(0x540, 80), (0x590, 32), (0x640, 96), (0xb8 + 8, 32)] {
        let text = &info[at..at + len];
        let end = text.iter().position(|&byte| byte == 0).expect("a zero ends it");
        assert!(end > 0 && text[end..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn cve_2017_5856_huge_elements_fail_and_leak_nothing() {
    let mut guest = started();
    let data = guest.alloc(4096);
    for len in [0x8000_0000, u32::MAX, 33 << 20] {
        for _ in 0..2000 / 3 {
            assert_eq!(guest.poll(Frame::dcmd(0x0101_0000, &[]).len(len).sge(data, len)), 0x3c);
        }
    }
    assert_serves(&mut guest);
}

#[test]
fn cve_2017_8380_write_sequence() {
    let guest = started();
    for value in (0..64).chain([u32::MAX]).cycle().take(10_000) {
        guest.write(0xfc, value);
        assert_eq!(guest.read(0xf8) & 0x80, 0, "{value:#x} is no key sequence");
    }
    // The sixth key opens it, and one that is none closes it.
    for (count, key) in [0, 4, 0xb, 2, 7, 0xd, 0x3f].into_iter().enumerate() {
        guest.write(0xfc, key);
        assert_eq!(guest.read(0xf8) & 0x80 != 0, count == 5, "after {} keys", count + 1);
    }
    guest.adapter_reset();
}

#[test]
fn cve_2017_9503_frames_that_change_while_they_are_looked_at() {
    let mut guest = started();
    let data = guest.alloc(512);
    let address = guest.lay(&Frame::io(false, 0, 0, 1).context(5).sge(data, 512));
    let good = guest.peek(address, 64);
    let ram = guest.seat.ram.clone();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use vm_memory::{Bytes, GuestAddress};
            let fields =
                [(0_u64, 5_u8), (1, 255), (6, 255), (7, 255), (0x10, 0x20), (0x14, 255), (0x20, 255)];
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for (at, value) in fields {
                    ram.write_obj(value, GuestAddress(address + at)).unwrap();
                    ram.write_obj(good[at as usize], GuestAddress(address + at)).unwrap();
                }
            }
        });
        for _ in 0..2000 {
            guest.fire(address);
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    guest.write(0x20, 0x07);
    guest.wait_ready();
    assert_serves(&mut guest);
}

#[test]
fn cve_2020_13659_lp1878259_frames_that_are_not_in_memory() {
    let mut guest = started();
    for address in [0xfee0_0000_u32, 0xc000_0000, 0xffff_ffc0, 0x0300_0000, 0x02ff_ffe0] {
        guest.write(0x40, address | 1);
        guest.write(0xc4, 0xffff_ffff);
        guest.write(0xc0, address | 1);
    }
    assert_serves(&mut guest);
}

#[test]
fn lp1878263_no_elements_but_a_length() {
    let mut guest = started();
    guest.raw_write(0xc0, &[0x17]);
    assert_eq!(guest.poll(Frame::io(true, 0, 0, 254)), 0x3c);
    assert_eq!(guest.poll(Frame::io(true, 0, 0, 0)), 0, "nothing to move is no error");
    assert_eq!(guest.poll(Frame::scsi(3, 0, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]).len(512)), 0x3c);
    assert_eq!(guest.poll(Frame::scsi(3, 0, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0])), 0x3c);
    let data = guest.alloc(512);
    assert_eq!(guest.poll(Frame::io(true, 0, 0, 2).sge(data, 512)), 0x3c, "less than the blocks");
}

#[test]
fn cve_2020_35503_frames_cancelled_once() {
    let mut guest = started();
    let (frame, _) = guest.held_read(0, 3);
    guest.write(0x20, 0x01);
    guest.write(0x20, 0x01);
    assert_eq!((guest.wait_reply(), guest.status_of(frame)), (3, 0x2e));
    guest.write(0x20, 0x01);
    guest.recording(0).hold(false);
    guest.expect_silence();
    assert_eq!(guest.io(false, 0, 0, &[0; 512]).0, 0);
}

#[test]
fn cdb_lengths() {
    let mut guest = started();
    let data = guest.alloc(512);
    for (len, status) in [(17, 3), (255, 3), (0, 3), (1, 0), (6, 0), (16, 0)] {
        let frame = Frame::scsi(3, 0, &[0x12, 0, 0, 0, 36, 0]).put(6, &[len]).len(36).sge(data, 36);
        assert_eq!(guest.poll(frame), status, "cdb_len {len}");
    }
}

#[test]
fn unknown_frames() {
    let mut guest = started();
    for cmd in 9..=255 {
        assert_eq!(guest.poll(Frame::new(cmd, 0x28)), 1, "{cmd:#x}");
    }
}

#[test]
fn addresses_of_the_device_itself() {
    let mut guest = started();
    for address in [0xc000_0000_u64, 0xc000_0040, 0xc000_2000] {
        let frame = Frame::scsi(3, 0, &[0x12, 0, 0, 0, 36, 0]).len(36).sge(address, 36);
        assert_eq!(guest.poll(frame), 0x3c, "data");
        let sense = Frame::scsi(3, 0, &[0xff, 0, 0, 0, 0, 0]).put(1, &[96]).put(0x18, &address.to_le_bytes());
        assert_eq!(guest.poll(sense), 0x2d, "sense is left out");
    }
    guest.write(0x20, 0x07);
    guest.wait_ready();
    let mut info = [0_u32.to_le_bytes(), 16_u32.to_le_bytes()].concat();
    for address in [0xc000_0000_u64, PRODUCER, PRODUCER + 4] {
        info.extend(address.to_le_bytes());
    }
    guest.poke(0x1000, &info);
    assert_eq!(guest.poll(Frame::new(0, 0x28).put(0x18, &0x1000_u64.to_le_bytes())), 3, "ring");
    assert_eq!(guest.poll(Frame::new(0, 0x28).put(0x18, &0xc000_0000_u64.to_le_bytes())), 0x20, "queue info");
}

#[test]
fn cve_2015_7549_and_2020_13754_msix_structures_take_any_width() {
    let guest = started();
    for at in (0x1ff0..0x4000).step_by(61) {
        for width in 1..=8 {
            guest.raw_write(at, &[0xff; 8][..width]);
            let mut data = [0; 8];
            guest.seat.memory.read(0xc000_0000 + at, &mut data[..width]);
        }
    }
    assert_eq!(guest.state(), 0xc);
}

#[test]
fn more_frames_than_slots() {
    let mut guest = started();
    guest.recording(0).hold(true);
    let data = guest.alloc(512);
    let frames: Vec<u64> = (0..2500_u32)
        .map(|context| {
            guest.send(&Frame::io(false, 0, 0, 1).flags(DONT_POST).context(context).sge(data, 512))
        })
        .collect();
    std::thread::sleep(std::time::Duration::from_millis(50));
    guest.recording(0).hold(false);
    guest.wait_for("the first", || guest.status_of(frames[0]) != 0xff);
    std::thread::sleep(std::time::Duration::from_millis(100));
    for frame in frames {
        // Done, BUSY, or never taken.
        assert!(matches!(guest.status_of(frame), 0 | 0x2d | 0xff));
    }
    assert_serves(&mut guest);
}

#[test]
fn the_same_frame_twice_runs_once() {
    let mut guest = started();
    let (frame, _) = guest.held_read(0, 3);
    guest.fire(frame);
    guest.fire(frame);
    std::thread::sleep(std::time::Duration::from_millis(10));
    guest.recording(0).hold(false);
    assert_eq!(guest.wait_reply(), 3);
    guest.expect_silence();
}

#[test]
fn lists_larger_than_the_reply() {
    let mut guest = started();
    for len in [1032, 1033, 4104, 65536] {
        assert_eq!(guest.dcmd(0x0301_0000, &[], len).0, 0, "{len}");
    }
}
