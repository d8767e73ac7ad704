//! Files that claim to be the event log of a MegaRAID SAS board: read at the start, then by the guest's driver, then written.
#![cfg_attr(fuzzing, no_main)]

use std::collections::BTreeMap;
use std::io::Write;

use devices::iothread::IoThread;
use fuzz::Bytes;
use fuzz::megasas::guest::{Guest, drive, image, options};
use hba_megasas::Model;
use vmm::machine::testing::event_log;

const BLOCK: usize = 512;
const CHECKSUM: usize = BLOCK - 8;

/// A block as the log writes it.
fn block(content: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let len = content.len().min(CHECKSUM);
    block[..len].copy_from_slice(&content[..len]);
    let sum = block[..CHECKSUM].iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    block[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
    block
}

/// Blocks with right checksums in their places, then what is not a whole one.
fn file(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut file = Vec::new();
    let count = bytes.u8() % 24;
    for _ in 0..count {
        let (kind, slot, len) = (bytes.u8(), usize::from(bytes.u16()), usize::from(bytes.u8()) * 2);
        // The header, a record where its number puts it, what the guest has set.
        let (slot, begin) = match kind % 4 {
            0 => (0, b"MFIEVLG2".to_vec()),
            1 => (1 + slot % 256, (slot as u32 | u32::from(kind) << 24).to_le_bytes().to_vec()),
            2 => (257 + slot % 64, b"MFISET01".to_vec()),
            _ => (slot % 330, Vec::new()),
        };
        let block = block(&[&begin, bytes.take(len)].concat());
        file.resize(file.len().max((slot + 1) * BLOCK), 0);
        file[slot * BLOCK..][..BLOCK].copy_from_slice(&block);
    }
    let rest = bytes.u16();
    file.extend(bytes.take(usize::from(rest) % 1024));
    file
}

fuzz::target!(|input: &[u8]| {
    let mut bytes = Bytes(input);
    let raw = bytes.u8() & 1 == 1;
    let content = if raw { bytes.0.to_vec() } else { file(&mut bytes) };
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file in memory");
    file.write_all(&content).expect("space in memory");
    let Ok((mut store, checked)) = event_log(file.path()) else { return };
    assert!(checked, "--check refuses what the machine takes");
    let kept = store.load();
    let numbers =
        kept.records.iter().map(|record| u32::from_le_bytes(*record.first_chunk().expect("a number")));
    let newest = numbers.max().unwrap_or(0);
    // An empty file is one that has just been made.
    let goes_on = kept.next > newest || newest == u32::MAX || content.is_empty();
    assert!(kept.records.len() <= 256 && goes_on, "{} after {newest}", kept.next);
    if !raw {
        let drives = BTreeMap::from([(0, drive(&image(), true))]);
        let thread = IoThread::start("fuzz").expect("an I/O thread");
        let mut guest = Guest::kept_by(Some(store), thread, options(Model::Gen2), drives, BTreeMap::new());
        assert_eq!(guest.init(9), 0, "INIT");
        // The log's state, then the records from any number on, then what was set.
        let (status, state) = guest.dcmd(0x0104_0100, &[], 20);
        assert_eq!(status, 0, "the state of the log");
        for from in [&state[12..16], &state[..4], bytes.take(4), &[0xff; 4]] {
            let mut mailbox = from.to_vec();
            mailbox.resize(8, 0xff);
            let (_, events) = guest.dcmd(0x0104_0300, &mailbox, 8 + 256 * 4);
            assert!(events[0] <= 4 || events[0] == 0xcc, "more events than fit");
        }
        for (opcode, len) in
            [(0x0102_0100, 64), (0x0101_0000, 2048), (0x010c_0100, 64), (0x0108_0101, 8), (0x0300_0000, 384)]
        {
            guest.dcmd(opcode, &[], len);
        }
        guest.dcmd(0x0302_0000, &[0], 384);
        guest.dcmd(0x0104_0200, &[], 0);
        drop(guest);
    } else {
        drop(store);
    }
    // It is a log once it was one, and numbers go on.
    let (mut store, checked) = event_log(file.path()).expect("still a log");
    assert!(checked && (!raw || store.load().next >= kept.next), "{} after {}", store.load().next, kept.next);
});
