use std::fs;

use devices::storage::Ending;
use devices::testing::RamDisk;

use super::*;

const LEN: u64 = 1 << 20;
/// Tuples for blocks of 512 bytes.
const TUPLES: u64 = LEN / 512 * 8;

fn open(path: &Path, serial: &str, change: impl FnOnce(&mut DiskConfig, &mut bool)) -> Result<u64, String> {
    let mut config = DiskConfig { serial: serial.into(), block_size: 512, ..DiskConfig::default() };
    let mut type_3 = false;
    change(&mut config, &mut type_3);
    let protection = config::Protection { type_3, image: path.into() };
    let image = Image::Ram(RamDisk::new(LEN as usize));
    store(&protection, CacheMode::Writeback, &image, &config)
        .map(|(_, first)| first)
        .map_err(|error| format!("{error:#}"))
}

fn same(_: &mut DiskConfig, _: &mut bool) {}

#[test]
fn a_file_says_whose_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.pi");
    assert_eq!(open(&path, "ONE", same), Ok(4096), "made");
    assert_eq!(Ending::find(&path).unwrap().len, 4096 + TUPLES);
    let before = fs::read(&path).unwrap();
    assert_eq!(before[..27], *b"VMM-PI\0\0\0\0\0\x01\0\0\x02\0\0\0\0\x01\0\0\0\x03ONE");
    assert_eq!(open(&path, "ONE", same), Ok(4096), "known again");
    assert_eq!(open(&path, "ONE", |config, _| config.read_only = true), Ok(4096));
    let refused = |result: Result<u64, String>, remedy: &str| {
        let said = result.unwrap_err();
        assert!(said.contains(remedy) && said.contains("a.pi"), "{said}");
    };
    refused(open(&path, "TWO", same), "set serial = \"ONE\"");
    refused(open(&path, "ONE", |config, _| config.block_size = 4096), "set block_size = 512");
    refused(open(&path, "ONE", |_, type_3| *type_3 = true), "set protection = 1");
    assert_eq!(fs::read(&path).unwrap(), before, "unchanged");
    let mut newer = before.clone();
    newer[11] = 2;
    fs::write(&path, newer).unwrap();
    refused(open(&path, "ONE", same), "version 2");
}

/// Another disk's image, a backup, anything: the first write of the guest would change it.
#[test]
fn a_file_that_is_something_else_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.pi");
    for bytes in [vec![0x5a; 1 << 20], vec![0x5a; 100], vec![0; 1 << 20]] {
        fs::write(&path, &bytes).unwrap();
        let said = open(&path, "ONE", same).unwrap_err();
        assert!(said.contains("left as it is"), "{said}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "unchanged");
    }
}

#[test]
fn a_file_of_an_earlier_version_is_known_by_its_length() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.pi");
    for value in [0, 0x5a] {
        fs::write(&path, vec![value; TUPLES as usize]).unwrap();
        assert_eq!(open(&path, "ONE", same), Ok(0));
        assert_eq!(fs::read(&path).unwrap(), vec![value; TUPLES as usize], "unchanged");
    }
}

/// The power failed while it was made.
#[test]
fn a_file_that_was_not_finished_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.pi");
    assert_eq!(open(&path, "ONE", same), Ok(4096));
    let whole = fs::read(&path).unwrap();
    for left in [vec![], vec![0; 4096], whole[..4096].to_vec()] {
        fs::write(&path, left).unwrap();
        assert_eq!(open(&path, "ONE", same), Ok(4096));
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
    // Not another's.
    fs::write(&path, &whole[..4096]).unwrap();
    assert!(open(&path, "TWO", same).is_err());
    assert_eq!(fs::read(&path).unwrap(), whole[..4096]);
}
