//! What the board says of the commands that it takes, and that it takes others, too.

use std::collections::BTreeMap;

use devices::iothread::IoThread;
use devices::scsi::TransferLimits;
use hba_megasas::Model;

use crate::guest::{Frame, Guest, IEEE, SGL64, drive, image, options};

fn limited(model: Model, transfer: TransferLimits) -> Guest {
    let (thread, image) = (IoThread::start("io").unwrap(), image());
    let drives = BTreeMap::from([(0, drive(&image, true))]);
    Guest::limited(None, thread, options(model), transfer, drives, [(0, image)].into())
}

/// The status word below the state; max_cmds, max_sge and max_request; max_strips_per_io; log2 of the strip in sectors, least and
/// most: `megasas_ctrl_info`.
fn told(guest: &mut Guest) -> (u32, Vec<u8>, Vec<u8>, Vec<u8>) {
    let word = guest.read(0xb0) & 0x0fff_ffff;
    let (status, info) = guest.dcmd(0x0101_0000, &[], 2048);
    assert_eq!(status, 0);
    (word, info[0x5b8..0x5c0].to_vec(), info[0x5da..0x5dc].to_vec(), info[0x5e8..0x5ec].to_vec())
}

#[test]
fn without_limits_all_bytes_are_those_of_the_board() {
    for (model, word, sizes, strips) in [
        (Model::Gen2, 0x043c_03f0, [0xf0, 3, 60, 0, 0xff, 0xff, 0, 0], [60, 0]),
        (Model::Sas1078, 0x0050_03e8, [0xe8, 3, 80, 0, 0xff, 0xff, 0, 0], [80, 0]),
    ] {
        let wanted = (word, sizes.to_vec(), strips.to_vec(), vec![3, 3, 0, 0]);
        assert_eq!(told(&mut Guest::new(model, true, &[0])), wanted);
        // Nor when the host takes more than the board.
        let guest = &mut limited(model, TransferLimits::new(512 << 10, 128));
        let (word, mut sizes, strips, strip) = wanted;
        sizes[4..].copy_from_slice(&[0, 4, 0, 0]);
        assert_eq!(
            told(guest),
            (word, sizes, strips, strip),
            "1024 sectors are more than there are elements for"
        );
        let told = guest.hba.transfer_limits();
        let most = if model == Model::Gen2 { (240 << 10, 60) } else { (320 << 10, 80) };
        assert_eq!((told.max_bytes(), told.max_segments()), most);
    }
}

#[test]
fn drivers_are_told_what_the_host_takes() {
    for (model, commands, ieee) in [(Model::Gen2, [0xf0, 3], 1 << 26), (Model::Sas1078, [0xe8, 3], 0)] {
        let all = u32::from(u16::from_le_bytes(commands));
        let of = |bytes, segments| {
            let transfer = TransferLimits::new(bytes, segments);
            let mut guest = limited(model, transfer);
            assert_eq!(guest.hba.transfer_limits(), transfer);
            let (word, sizes, strips, strip) = told(&mut guest);
            assert_eq!((&sizes[..2], strip), (&commands[..], vec![3, 3, 0, 0]));
            (word - all, sizes[2..].to_vec(), strips)
        };
        assert_eq!(of(128 << 10, 32), (32 << 16 | ieee, vec![32, 0, 0, 1, 0, 0], vec![32, 0]));
        // USB disks: 240 sectors. With IEEE lists Linux would send 256.
        assert_eq!(of(120 << 10, 128), (31 << 16, vec![31, 0, 240, 0, 0, 0], vec![30, 0]));
        assert_eq!(
            of(0, 0),
            (17 << 16, vec![17, 0, 16, 0, 0, 0], vec![2, 0]),
            "what all drivers can work with"
        );
    }
}

#[test]
fn longer_commands_are_carried_out_all_the_same() {
    for (model, count, flags) in
        [(Model::Gen2, 60_u32, IEEE), (Model::Gen2, 60, SGL64), (Model::Sas1078, 80, 0)]
    {
        let mut guest = limited(model, TransferLimits::new(0, 0));
        assert_eq!(guest.init(16), 0);
        let bytes: Vec<u8> = (0..count * 4096).map(|n| (n >> 9) as u8 ^ n as u8).collect();
        let mut transfer = |write, fill: &[u8]| {
            let at = guest.alloc_with(fill);
            let mut frame = Frame::io(write, 0, 7, count * 8).flags(flags);
            // Backwards, so that no two are one.
            for n in (0..count).rev() {
                frame = frame.sge(at + u64::from(n) * 4096, 4096);
            }
            assert_eq!(guest.poll(frame), 0, "{model:?}, {flags:#x}");
            guest.peek(at, fill.len())
        };
        transfer(true, &bytes);
        assert!(transfer(false, &vec![0xcc; bytes.len()]) == bytes);
    }
}
