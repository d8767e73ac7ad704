//! Locks on what this process may not open: the kernel lists those of all processes (proc_locks(5)).

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Where the file or device at `path` is, as the kernel writes it there, if somebody has a lock on one of these bytes.
pub(super) fn place_if_taken(path: &Path, bytes: &[i64]) -> io::Result<Option<String>> {
    let found = fs::metadata(path)?;
    let (major, minor) = (libc::major(found.dev()), libc::minor(found.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", found.ino());
    let list = fs::read_to_string("/proc/locks")?;
    Ok(is_taken(&list, &place, bytes).then_some(place))
}

fn is_taken(list: &str, place: &str, bytes: &[i64]) -> bool {
    let mut locks = list.lines().filter_map(lock).filter(|(of, _)| *of == place);
    locks.any(|(_, range)| bytes.iter().any(|byte| range.contains(byte)))
}

/// Of which file a lock is, and of which bytes of it. One that somebody waits for is none.
fn lock(line: &str) -> Option<(&str, RangeInclusive<i64>)> {
    // Number, class, kind, type, process, file, first byte, last byte.
    let mut words = line.split_whitespace().skip(1);
    if !matches!(words.next()?, "OFDLCK" | "POSIX") {
        return None;
    }
    let (place, first, last) = (words.nth(3)?, words.next()?, words.next()?);
    let last = if last == "EOF" { i64::MAX } else { last.parse().ok()? };
    Some((place, first.parse().ok()?..=last))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::storage::sys::{release_byte, share_byte};
    use crate::testing::temp_file;

    #[test]
    fn a_lock_is_found_by_file_and_byte() {
        let list = "\
            1: OFDLCK ADVISORY  READ -1 00:05:123 100 101\n\
            2: POSIX  ADVISORY  WRITE 711 00:05:124 201 EOF\n\
            2: -> POSIX  ADVISORY  WRITE 712 00:05:124 100 100\n\
            3: FLOCK  ADVISORY  WRITE 713 00:05:125 0 EOF\n\
            4: LEASE  ACTIVE    READ 714 00:05:126\n";
        let taken = |place, bytes: &[i64]| is_taken(list, place, bytes);
        assert!(taken("00:05:123", &[99, 101]) && !taken("00:05:123", &[99, 102]));
        assert!(taken("00:05:124", &[203]) && !taken("00:05:124", &[100]));
        assert!(!taken("00:05:125", &[100]) && !taken("00:05:126", &[100]) && !taken("00:05:12", &[100]));
    }

    #[test]
    fn the_kernel_lists_what_others_have_locked() {
        let file = temp_file();
        let taken = || place_if_taken(file.path(), &[201, 203]).unwrap().is_some();
        let other = File::open(file.path()).unwrap();
        share_byte(&other, 101).unwrap();
        assert!(!taken());
        share_byte(&other, 203).unwrap();
        assert!(taken());
        release_byte(&other, 203).unwrap();
        assert!(!taken());
    }
}
