//! Tables of one file in memory.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::entry::{self, Entry};
use super::header::Header;
use crate::iothread::{Claims, Hold};
use crate::storage::{BlockError, BlockErrorKind};

/// Tables of one file kept in memory at most, in bytes. Half of it may be waiting to be written.
pub(super) const CACHE: u64 = 32 << 20;
/// Abandoned or freed ranges that may wait before they are dealt with.
const FREES_MAX: usize = 1024;

/// An L2 table.
pub(super) struct Table {
    pub(super) entries: Box<[u64]>,
    pub(super) dirty: bool,
    /// Looked at since the cache was last searched for something to drop.
    used: bool,
    /// An entry points into the metadata of the file.
    pub(super) bad: bool,
}

/// A refcount block.
pub(super) struct Block {
    pub(super) bytes: Box<[u8]>,
    pub(super) dirty: bool,
}

/// Clusters whose reference is gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Free {
    pub(super) first: u64,
    pub(super) count: u64,
}

/// A refcount table that was replaced by a larger one.
#[derive(Clone, Copy, Debug)]
pub(super) struct OldReftable {
    pub(super) at: u64,
    pub(super) clusters: u64,
}

/// The tables of one file. Whoever changes more than the caches holds the file's turn.
#[derive(Default)]
pub(super) struct Meta {
    pub(super) l1: Vec<u64>,
    pub(super) l1_at: u64,
    /// Sectors of the L1 table that are to be written.
    pub(super) l1_dirty: BTreeSet<usize>,
    pub(super) tables: HashMap<usize, Table>,
    /// Counts what makes a table that is being loaded outdated.
    pub(super) changes: u64,
    pub(super) reftable: Vec<u64>,
    pub(super) reftable_at: u64,
    pub(super) reftable_dirty: BTreeSet<usize>,
    /// The first of them is still in the header.
    pub(super) old_reftables: Vec<OldReftable>,
    pub(super) blocks: HashMap<usize, Block>,
    /// Clusters that hold metadata in use.
    pub(super) reserved: HashSet<u64>,
    /// Clusters that hold metadata of internal snapshots.
    pub(super) kept: HashSet<u64>,
    /// A place for a larger L1 table that the header may name, although it does not hold the table in use.
    pub(super) l1_doubt: Option<Free>,
    /// Clusters that were in use and not counted.
    pub(super) uncounted: u64,
    /// No cluster below is free.
    pub(super) hint: u64,
    /// Clusters from here on were never used and read as zeros.
    pub(super) virgin: u64,
    pub(super) frees: Vec<Free>,
    /// What is left of the one that is being dealt with.
    pub(super) freeing: Option<Free>,
    /// Clusters with a reference, taken by writes that found no space: for those that try next.
    pub(super) spares: Vec<Free>,
    pub(super) dirty_tables: u64,
    pub(super) dirty_blocks: u64,
}

/// What a lookup found: how a run of bytes is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The L2 table must be loaded first.
    NotLoaded,
    /// This many bytes from the offset on are like that; only [`Entry::Compressed`] is at the start of the cluster.
    Run(Entry, u64),
    /// The tables make no sense.
    Damaged,
}

impl Meta {
    pub(super) fn locked(meta: &Mutex<Self>) -> MutexGuard<'_, Self> {
        meta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the bytes at `at` are stored, and how many of the next `len` are stored the same way in a row.
    pub(super) fn find(&mut self, header: &Header, at: u64, len: u64) -> Found {
        let (bits, cluster) = (header.cluster_bits, header.cluster());
        let l1_index = (at >> (bits + header.l2_bits())) as usize;
        let Some(&l1) = self.l1.get(l1_index) else { return Found::Damaged };
        let in_table = at & ((cluster << header.l2_bits()) - 1);
        if entry::offset(l1) == 0 {
            return Found::Run(Entry::Unallocated, len.min((cluster << header.l2_bits()) - in_table));
        }
        let Some(table) = self.tables.get_mut(&l1_index) else { return Found::NotLoaded };
        table.used = true;
        if table.bad {
            return Found::Damaged;
        }
        let within = at & (cluster - 1);
        let mut entries = table.entries.iter().skip((in_table >> bits) as usize);
        let read = |raw: &u64| Entry::new(*raw, bits, header.version);
        let Some(first) = entries.next().map(read) else { return Found::Damaged };
        let mut run = cluster - within;
        while run < len {
            let Some(next) = entries.next().map(read) else { break };
            let same = match (first, next) {
                (Entry::Data { at, owned }, next) => {
                    Some(next) == at.checked_add(run + within).map(|at| Entry::Data { at, owned })
                }
                (Entry::Zero { .. }, Entry::Zero { .. }) | (Entry::Unallocated, Entry::Unallocated) => true,
                _ => false,
            };
            if !same {
                break;
            }
            run += cluster;
        }
        let entry = match first {
            Entry::Data { at, .. } if !at.is_multiple_of(cluster) => return Found::Damaged,
            Entry::Data { at, owned } => Entry::Data { at: at + within, owned },
            other => other,
        };
        Found::Run(entry, run.min(len))
    }

    /// Keeps a table, and drops others that were not used lately when there are too many.
    pub(super) fn keep(&mut self, index: usize, entries: Box<[u64]>, dirty: bool, bad: bool) {
        let max = (CACHE / (entries.len() as u64 * 8)).max(8) as usize;
        if self.tables.len() >= max {
            self.changes += 1;
            let before = self.tables.len();
            self.tables.retain(|_, table| table.dirty || std::mem::take(&mut table.used));
            if self.tables.len() == before {
                self.tables.retain(|_, table| table.dirty);
            }
        }
        if dirty {
            self.dirty_tables += 1;
        }
        self.tables.insert(index, Table { entries, dirty, used: true, bad });
    }

    /// Sets an L1 entry.
    pub(super) fn set_l1(&mut self, index: usize, value: u64) {
        if let Some(slot) = self.l1.get_mut(index) {
            *slot = value;
            self.changes += 1;
            self.l1_dirty.insert(index / 64);
        }
    }

    /// Changes an entry of an L2 table that is loaded.
    pub(super) fn set_l2(&mut self, index: usize, slot: usize, value: u64) {
        let Some(table) = self.tables.get_mut(&index) else { return };
        if let Some(entry) = table.entries.get_mut(slot) {
            *entry = value;
            self.dirty_tables += u64::from(!table.dirty);
            table.dirty = true;
        }
    }

    /// The reference of an old L2 entry is gone.
    pub(super) fn release(&mut self, old: Entry, cluster_bits: u32) {
        let (at, len) = match old {
            Entry::Data { at, .. } => (at, 1),
            Entry::Zero { kept } if kept != 0 => (kept, 1),
            Entry::Compressed(packed) => packed.sectors(),
            _ => return,
        };
        let first = at >> cluster_bits;
        let count = ((at + len - 1) >> cluster_bits) - first + 1;
        match self.frees.last_mut() {
            // Neighbours are freed together. Not so for compressed clusters, which share clusters of the file.
            Some(last) if len == 1 && last.first + last.count == first => last.count += 1,
            _ => self.frees.push(Free { first, count }),
        }
    }

    /// Up to `want` clusters in a row of those that a write without space has left.
    pub(super) fn take_spare(&mut self, want: u64) -> Option<Free> {
        let Free { first, count } = self.spares.pop()?;
        let taken = count.min(want.max(1));
        if taken < count {
            self.spares.push(Free { first: first + taken, count: count - taken });
        }
        Some(Free { first, count: taken })
    }

    /// Whether a cluster holds metadata: nothing else may be written there.
    pub(super) fn is_metadata(&self, cluster: u64) -> bool {
        self.reserved.contains(&cluster) || self.kept.contains(&cluster)
    }

    /// Whether anything waits to be written or freed.
    pub(super) fn is_pending(&self) -> bool {
        self.is_dirty() || self.has_frees()
    }

    /// Whether clusters wait to be freed.
    pub(super) fn has_frees(&self) -> bool {
        !self.frees.is_empty() || self.freeing.is_some() || !self.spares.is_empty()
    }

    /// Whether tables wait to be written.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty_tables + self.dirty_blocks > 0
            || !self.l1_dirty.is_empty()
            || !self.reftable_dirty.is_empty()
            || !self.old_reftables.is_empty()
            || self.l1_doubt.is_some()
    }

    /// Whether so much waits that it should be written now.
    pub(super) fn is_full(&self, header: &Header) -> bool {
        (self.dirty_tables + self.dirty_blocks) * header.cluster() > CACHE / 2
            || self.frees.len() + self.spares.len() > FREES_MAX
    }
}

/// Clusters with a reference that nothing has yet: given back when the last holder goes, unless they were linked.
pub(super) struct Allocation {
    pub(super) meta: Arc<Mutex<Meta>>,
    pub(super) first: u64,
    pub(super) count: u64,
    /// The clusters read as zeros.
    pub(super) virgin: bool,
    pub(super) linked: AtomicBool,
    /// Whoever tries next shall have them.
    pub(super) spare: AtomicBool,
    /// The guest's range, which stays closed until the last write to the clusters ended.
    pub(super) range: Hold,
}

impl Allocation {
    /// The clusters belong to the image now.
    pub(super) fn link(&self) {
        self.linked.store(true, Ordering::Release);
    }

    /// What was done with the clusters ended like this. Where the host had no space for it, the next try takes them again:
    /// a paused machine tries for hours. Other errors may be those of one place.
    pub(super) fn ended<T>(&self, result: &Result<T, BlockError>) {
        if result.as_ref().is_err_and(|error| error.kind == BlockErrorKind::NoSpace) {
            self.spare.store(true, Ordering::Release);
        }
    }

    /// A claim on it for operations that write to the clusters.
    pub(super) fn hold(self: &Arc<Self>) -> Hold {
        Hold::new(self.clone(), 0)
    }
}

impl Claims for Allocation {
    // The reference count is that of the Arc.
    fn retain(&self, _id: u64) {}
    fn release(&self, _id: u64) {}
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if !*self.linked.get_mut() {
            let mut meta = Meta::locked(&self.meta);
            let list = if *self.spare.get_mut() { &mut meta.spares } else { &mut meta.frees };
            list.push(Free { first: self.first, count: self.count });
        }
        self.range = Hold::none();
    }
}
