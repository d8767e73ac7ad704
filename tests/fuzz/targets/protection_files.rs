//! Files that claim to be the protection information of a disk, and commands at that disk.
#![cfg_attr(fuzzing, no_main)]

use std::io::Write;
use std::sync::Arc;

use devices::scsi::suite::{Request, check_reply};
use devices::scsi::{DiskConfig, Image, Lun, Nexus, Target};
use devices::testing::RamDisk;
use fuzz::{Bytes, Command, on_io_thread};
use vmm::machine::testing::protected_disk;

/// Length of the disk in blocks of 512 bytes.
const BLOCKS: usize = 128;

fuzz::target!(|input: &[u8]| {
    let mut bytes = Bytes(input);
    let (shape, len) = (bytes.u8(), usize::from(bytes.u16()));
    let type_3 = shape & 1 == 1;
    let mut content = Vec::new();
    if shape & 2 == 0 {
        // The header of this disk, and the tuples of its first blocks.
        content.extend(b"VMM-PI\0\0");
        for number in [1, 512, if type_3 { 3 } else { 1_u32 }, 1] {
            content.extend(number.to_be_bytes());
        }
        content.push(b'S');
        content.resize(4096, 0);
        content.extend(bytes.take(len % 1025));
        content.resize(4096 + 8 * BLOCKS, shape >> 4);
    } else {
        content.extend(bytes.take(len % 8192));
        if shape & 4 == 0 {
            content.resize(4096 + 8 * BLOCKS, 0);
        }
    }
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file in memory");
    file.write_all(&content).expect("space in memory");
    let image = Arc::new(Image::Ram(RamDisk::new(512 * BLOCKS)));
    let config = DiskConfig { serial: "S".into(), read_only: shape & 8 != 0, ..DiskConfig::default() };
    let Ok((disk, checked)) = protected_disk(&image, file.path(), type_3, config) else { return };
    assert!(checked, "--check refuses what the machine takes");
    let mut commands = Vec::new();
    while !bytes.is_empty() && commands.len() < 24 {
        commands.push(command(&mut bytes));
    }
    on_io_thread(move |io| async move {
        let target = Target::new();
        target.attach(Lun::from_number(0), disk).expect("a free LUN");
        let nexus = Nexus::new(target, None);
        let _ = Request::new(&[0; 6], &[], 0).send(&nexus, &io).await;
        for Command { cdb, data_out, data_in_len } in commands {
            let (reply, data_in) = Request::new(&cdb, &data_out, data_in_len).send(&nexus, &io).await;
            check_reply(&cdb, data_out.len(), &data_in, &reply.expect("nothing ends commands here"));
        }
    });
});

/// Reads, writes and verifies with and without protection information, or anything.
fn command(bytes: &mut Bytes<'_>) -> Command {
    let (which, protect, lba, blocks) = (bytes.u8(), bytes.u8(), bytes.u8(), bytes.u8() % 8);
    let opcode = [0x28, 0x2a, 0x2f, 0x2e, 0x88, 0x8a, 0x8f, 0x8e, 0x41, 0x93, 0x7f][usize::from(which) % 11];
    let each = if protect & 0xe0 != 0 { 520 } else { 512 };
    let (out, lba) = (usize::from(blocks) * each, lba % (BLOCKS as u8 + 2));
    let cdb = match opcode {
        0x7f => return Command::read(bytes),
        0x80.. => vec![opcode, protect, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, blocks, 0, 0],
        _ => vec![opcode, protect, 0, 0, 0, lba, 0, 0, blocks, 0],
    };
    let sends = !matches!(opcode, 0x28 | 0x88) && (!matches!(opcode, 0x2f | 0x8f) || protect & 2 != 0);
    let mut data_out = bytes.take(if sends { out } else { 0 }).to_vec();
    data_out.resize(if sends { out } else { 0 }, 0);
    Command { cdb, data_out, data_in_len: if sends { 0 } else { out } }
}
