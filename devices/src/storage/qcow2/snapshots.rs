//! Internal snapshots: where their tables are. Nobody writes to them here; an image that is damaged, or made up, must not
//! have us write over them.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::entry;
use super::header::{Header, L1_BYTES_MAX};

/// Snapshots at most: what QEMU accepts.
const SNAPSHOTS_MAX: u32 = 65536;
/// Bytes of the snapshot table at most: what QEMU accepts.
const TABLE_MAX: u64 = 64 << 20;
/// Bytes of the L1 tables of all snapshots at most.
const L1_TOTAL_MAX: u64 = 1 << 30;
/// Clusters of these tables at most: with clusters of 64 KiB the L2 tables of 2 PiB that no two snapshots share. The image
/// says how many there are, and the memory is the host's.
const CLUSTERS_MAX: usize = 4 << 20;
/// Bytes of an entry of the snapshot table before those of variable length.
const ENTRY: usize = 40;

/// Clusters with the snapshot table, and the L1 and L2 tables of all snapshots. The error ends a sentence that begins with
/// the file.
pub(super) fn tables(file: &File, len: u64, header: &Header) -> Result<HashSet<u64>, String> {
    at_most(CLUSTERS_MAX, file, len, header)
}

/// The same with another limit.
pub(super) fn at_most(most: usize, file: &File, len: u64, header: &Header) -> Result<HashSet<u64>, String> {
    let mut clusters = HashSet::new();
    if header.snapshots == 0 {
        return Ok(clusters);
    }
    let too_many = || "it has too many snapshots of too large a disk; delete some with qemu-img".to_owned();
    let damaged = || "its snapshot table is damaged; run qemu-img check on it".to_owned();
    if header.snapshots > SNAPSHOTS_MAX || !header.snapshots_at.is_multiple_of(header.cluster()) {
        return Err(damaged());
    }
    let (mut at, mut total) = (header.snapshots_at, 0);
    for _ in 0..header.snapshots {
        let mut fixed = [0; ENTRY];
        file.read_exact_at(&mut fixed, at).map_err(|_| damaged())?;
        let (l1_at, l1_bytes) = (number(&fixed, 0, 8), number(&fixed, 8, 4) * 8);
        let names = number(&fixed, 12, 2) + number(&fixed, 14, 2) + number(&fixed, 36, 4);
        at = (at + ENTRY as u64 + names).next_multiple_of(8);
        let inside = l1_at.is_multiple_of(header.cluster())
            && l1_bytes <= L1_BYTES_MAX
            && l1_at.checked_add(l1_bytes).is_some_and(|end| end <= len);
        if !inside || at - header.snapshots_at > TABLE_MAX {
            return Err(damaged());
        }
        total += l1_bytes;
        if total > L1_TOTAL_MAX {
            return Err(too_many());
        }
        add(&mut clusters, header, l1_at, l1_bytes);
        let mut l1 = vec![0; l1_bytes as usize];
        file.read_exact_at(&mut l1, l1_at).map_err(|_| damaged())?;
        let entries = l1.as_chunks::<8>().0.iter().map(|bytes| entry::offset(u64::from_be_bytes(*bytes)));
        for table in entries.filter(|at| *at != 0) {
            if table >= len {
                return Err(damaged());
            }
            clusters.insert(table >> header.cluster_bits);
            if clusters.len() > most {
                return Err(too_many());
            }
        }
    }
    add(&mut clusters, header, header.snapshots_at, at - header.snapshots_at);
    Ok(clusters)
}

fn add(clusters: &mut HashSet<u64>, header: &Header, at: u64, len: u64) {
    clusters.extend(at >> header.cluster_bits..(at + len).div_ceil(header.cluster()));
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes.iter().skip(at).take(len).fold(0, |value, byte| value << 8 | u64::from(*byte))
}
