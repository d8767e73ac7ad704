//! Reference counts and the allocation of clusters. Only for whoever has the file's turn.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::entry::{self, OWNED};
use super::header::REFTABLE_BYTES_MAX;
use super::layer::{Layer, buffer};
use super::meta::{Allocation, Block, Free, Meta, OldReftable};
use crate::iothread::{Hold, Io};
use crate::mem::FromGuest;
use crate::storage::BlockError;
use crate::storage::error::Action;

/// Refcount blocks kept in memory at most, in bytes.
const BLOCKS: u64 = 16 << 20;
/// Zeros written at once, in bytes.
const CLAIM: u64 = 1 << 20;
/// The file grows by at least this much at a time, in bytes, so that it seldom must.
const GROW_MIN: u64 = 1 << 20;
/// And at most by this much at once, in bytes, beyond what is needed.
const GROW_MAX: u64 = 64 << 20;

/// Offsets in the file are below this: entries of tables have 56 bits for them.
const HOST_OFFSETS: u64 = 1 << 56;

/// The refcount with number `index` in a block; `None` outside.
pub(super) fn refcount(block: &[u8], order: u32, index: usize) -> Option<u64> {
    if order < 3 {
        let bit = index << order;
        let mask = (1u8 << (1 << order)).wrapping_sub(1);
        return block.get(bit / 8).map(|byte| u64::from(byte >> (bit % 8) & mask));
    }
    let width = 1 << (order - 3);
    let bytes = block.get(index * width..)?.get(..width)?;
    Some(bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// The first refcount of zero from number `start` on. A block may have 2^24, so those of a word are looked at together.
fn first_free(block: &[u8], order: u32, start: usize) -> Option<usize> {
    let (width, each) = (1u32 << order, 64usize >> order);
    let low = u64::MAX / (u64::MAX >> (64 - width));
    let high = low << (width - 1);
    // Where a part is zero, taking one away borrows into its top bit. Other parts may look so above it, never below.
    let has_zero = |word: u64| word.wrapping_sub(low) & !word & high != 0;
    let words = block.as_chunks::<8>().0.iter().enumerate().skip(start / each);
    words
        .filter(|(_, bytes)| has_zero(u64::from_le_bytes(**bytes)))
        .flat_map(|(word, _)| word * each..(word + 1) * each)
        .find(|index| *index >= start && refcount(block, order, *index) == Some(0))
}

/// Sets a refcount. The value must fit.
pub(super) fn set_refcount(block: &mut [u8], order: u32, index: usize, value: u64) {
    if order < 3 {
        let bit = index << order;
        let mask = (1u8 << (1 << order)).wrapping_sub(1);
        if let Some(byte) = block.get_mut(bit / 8) {
            *byte = *byte & !(mask << (bit % 8)) | (value as u8 & mask) << (bit % 8);
        }
        return;
    }
    let width = 1 << (order - 3);
    let range = index * width..(index + 1) * width;
    let bytes = value.to_be_bytes();
    if let (Some(to), Some(from)) = (block.get_mut(range), bytes.get(8 - width..)) {
        to.copy_from_slice(from);
    }
}

impl Meta {
    /// A refcount block that is loaded, about to be changed.
    pub(super) fn block_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        let block = self.blocks.get_mut(&index)?;
        self.dirty_blocks += u64::from(!block.dirty);
        block.dirty = true;
        Some(&mut block.bytes)
    }

    fn new_block(&mut self, index: usize, at: u64, cluster: u64) {
        self.blocks.insert(index, Block { bytes: vec![0; cluster as usize].into(), dirty: true });
        self.dirty_blocks += 1;
        if let Some(entry) = self.reftable.get_mut(index) {
            *entry = at;
        }
        self.reftable_dirty.insert(index / 64);
    }
}

impl Layer {
    /// Takes up to `want` free clusters in a row, with a reference each. `range` is held by what comes back, `turn` is the
    /// caller's, which writes of tables hold too.
    pub(super) async fn allocate(
        &self,
        io: &Io,
        want: u64,
        range: Hold,
        turn: &Hold,
    ) -> Result<Arc<Allocation>, BlockError> {
        let (bits, order) = (self.header.block_bits(), self.header.refcount_order);
        let spare = self.meta().take_spare(want);
        if let Some(Free { first, count }) = spare {
            // The file reaches there, and what is in them is anything.
            return Ok(self.allocation(first..first + count, false, range));
        }
        let (index, taken) = loop {
            let hint = self.meta().hint;
            let index = (hint >> bits) as usize;
            if !self.ensure_block(io, index, turn).await? {
                continue;
            }
            match self.find_free(index, want)? {
                Some(taken) => break (index, taken),
                None => io.give_way().await,
            }
        };
        // Before they are taken: a write that finds no room is tried again and again, and must leave no trace.
        self.grow_file(io, taken.end).await?;
        let mut meta = self.meta();
        // It is still there: only who has the turn drops it.
        let block = meta.block_mut(index);
        let block = block.ok_or_else(|| self.damaged(Action::Write, "its refcounts are not to be had"))?;
        let slot = |cluster: u64| (cluster & ((1 << bits) - 1)) as usize;
        taken.clone().for_each(|cluster| set_refcount(block, order, slot(cluster), 1));
        meta.hint = taken.end;
        let virgin = taken.start >= meta.virgin;
        meta.virgin = meta.virgin.max(taken.end);
        drop(meta);
        Ok(self.allocation(taken, virgin, range))
    }

    fn allocation(&self, taken: Range<u64>, virgin: bool, range: Hold) -> Arc<Allocation> {
        let (first, count) = (taken.start, taken.end - taken.start);
        let (meta, linked, spare) = (self.meta.clone(), AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Allocation { meta, first, count, virgin, linked, spare, range })
    }

    /// Up to `want` free clusters in a row of those that a block in memory counts, from the hint on; where there are none the hint goes
    /// on to the next block.
    fn find_free(&self, index: usize, want: u64) -> Result<Option<Range<u64>>, BlockError> {
        let (bits, order) = (self.header.block_bits(), self.header.refcount_order);
        let mut meta = self.meta();
        let Some(block) = meta.blocks.get(&index) else { return Ok(None) };
        let (start, end) = ((meta.hint & ((1 << bits) - 1)) as usize, 1usize << bits);
        let Some(from) = first_free(&block.bytes, order, start) else {
            meta.hint = (index as u64 + 1) << bits;
            return Ok(None);
        };
        let free = |i: &usize| refcount(&block.bytes, order, *i) == Some(0);
        let to = (from..end).take(want.max(1) as usize).take_while(free).last().unwrap_or(from) + 1;
        let base = (index as u64) << bits;
        let taken = base + from as u64..base + to as u64;
        if taken.clone().any(|cluster| meta.is_metadata(cluster)) {
            return Err(self.damaged(Action::Write, "its refcounts call a table in use free"));
        }
        Ok(Some(taken))
    }

    /// Makes the file reach to cluster `end`, if the format can name the last before it.
    async fn grow_file(&self, io: &Io, end: u64) -> Result<(), BlockError> {
        let need = end.checked_mul(self.header.cluster()).filter(|need| *need <= HOST_OFFSETS);
        let need =
            need.ok_or_else(|| self.damaged(Action::Write, "its refcounts leave no cluster to take"))?;
        let now = self.file.host_len();
        if need <= now {
            return Ok(());
        }
        let ample = need + (now / 16).clamp(GROW_MIN, GROW_MAX);
        self.file.extend(io, need, ample.next_multiple_of(self.header.cluster().max(4096))).await
    }

    /// Loads a refcount block, or makes it; false when it had to be made and the caller must look again.
    pub(super) async fn ensure_block(&self, io: &Io, index: usize, turn: &Hold) -> Result<bool, BlockError> {
        let entry = self.meta().reftable.get(index).copied();
        match entry {
            None => {
                self.grow_reftable(io, index, turn).await?;
                Ok(false)
            }
            Some(0) => {
                // Its own range has no refcounts, so it is free.
                let first = (index as u64) << self.header.block_bits();
                self.grow_file(io, first + 1).await?;
                if self.meta().is_metadata(first) {
                    return Err(self.damaged(Action::Write, "its refcounts lack a table in use"));
                }
                let at = first << self.header.cluster_bits;
                self.claim_space(io, at, self.header.cluster(), turn).await?;
                let mut meta = self.meta();
                meta.new_block(index, at, self.header.cluster());
                if let Some(block) = meta.block_mut(index) {
                    set_refcount(block, self.header.refcount_order, 0, 1);
                }
                meta.reserved.insert(first);
                meta.virgin = meta.virgin.max(first + 1);
                Ok(false)
            }
            Some(at) => {
                if !self.meta().blocks.contains_key(&index) {
                    self.load_block(io, index, at).await?;
                }
                Ok(true)
            }
        }
    }

    /// Takes the host's space for a table that is new, so that a full host fails the write that needs it, and no
    /// later one, nor a flush. Nothing points there yet.
    async fn claim_space(&self, io: &Io, at: u64, len: u64, turn: &Hold) -> Result<(), BlockError> {
        let mut done = 0;
        while done < len {
            let step = (len - done).min(CLAIM);
            self.file.store_at(io, at + done, FromGuest::new(buffer(step)?), false, turn).await?;
            done += step;
        }
        Ok(())
    }

    async fn load_block(&self, io: &Io, index: usize, at: u64) -> Result<(), BlockError> {
        let cluster = self.header.cluster();
        if !at.is_multiple_of(cluster) || at >= self.file.host_len() {
            return Err(self.damaged(Action::Write, "its refcount table is damaged"));
        }
        let bytes = self.read_bytes(io, at, cluster).await?;
        let mut meta = self.meta();
        if meta.blocks.len() as u64 * cluster >= BLOCKS {
            meta.blocks.retain(|_, block| block.dirty);
        }
        meta.blocks.insert(index, Block { bytes: bytes.into(), dirty: false });
        Ok(())
    }

    /// A larger refcount table, for a block with number `index` at least.
    ///
    /// It lies with new blocks for itself in the first clusters that the old one does not count.
    async fn grow_reftable(&self, io: &Io, index: usize, turn: &Hold) -> Result<(), BlockError> {
        let (cluster, bits) = (self.header.cluster(), self.header.block_bits());
        let old_len = self.meta().reftable.len();
        let start = (old_len as u64) << bits;
        let (mut blocks, mut tables) = (1u64, 1u64);
        loop {
            let len = (old_len as u64 + blocks).max(index as u64 + 1).max(old_len as u64 * 3 / 2);
            let next_tables = (len * 8).div_ceil(cluster);
            let next_blocks = (blocks + next_tables).div_ceil(1 << bits).max(1);
            if (next_tables, next_blocks) == (tables, blocks) {
                break;
            }
            (tables, blocks) = (next_tables.max(tables), next_blocks.max(blocks));
        }
        if tables * cluster > REFTABLE_BYTES_MAX {
            return Err(self.damaged(Action::Write, "its refcount table cannot grow any more"));
        }
        self.grow_file(io, start + blocks + tables).await?;
        let taken = start..start + blocks + tables;
        let in_use = |meta: &Meta| taken.clone().any(|cluster| meta.is_metadata(cluster));
        if in_use(&self.meta()) {
            return Err(self.damaged(Action::Write, "its refcounts lack a table in use"));
        }
        self.claim_space(io, start * cluster, (blocks + tables) * cluster, turn).await?;
        let mut meta = self.meta();
        meta.reftable.resize((tables * cluster / 8) as usize, 0);
        for n in 0..blocks {
            meta.new_block(old_len + n as usize, (start + n) * cluster, cluster);
        }
        for n in taken.clone() {
            let slot = (n & ((1 << bits) - 1)) as usize;
            if let Some(block) = meta.block_mut((n >> bits) as usize) {
                set_refcount(block, self.header.refcount_order, slot, 1);
            }
        }
        let old = OldReftable { at: meta.reftable_at, clusters: (old_len as u64 * 8) / cluster };
        (old.at / cluster..old.at / cluster + old.clusters).for_each(|n| {
            meta.reserved.remove(&n);
        });
        meta.reserved.extend(taken.clone());
        meta.reftable_at = (start + blocks) * cluster;
        meta.old_reftables.push(old);
        meta.virgin = meta.virgin.max(taken.end);
        Ok(())
    }

    /// Makes sure that an L2 table is loaded and may be changed.
    pub(super) async fn ensure_table(&self, io: &Io, index: usize, turn: &Hold) -> Result<(), BlockError> {
        loop {
            let (l1, loaded) = {
                let meta = self.meta();
                (meta.l1.get(index).copied(), meta.tables.get(&index).map(|table| table.bad))
            };
            let l1 = l1.ok_or_else(|| self.damaged(Action::Write, "its L1 table is damaged"))?;
            match (entry::offset(l1), loaded) {
                (_, Some(true)) => return Err(self.damaged(Action::Write, "its L2 tables are damaged")),
                (0, _) => self.new_table(io, index, None, turn).await?,
                (_, None) => self.load(io, index).await?,
                // A snapshot has it too, whatever the entry says.
                (at, Some(_))
                    if l1 & OWNED != 0 && self.meta().kept.contains(&(at >> self.header.cluster_bits)) =>
                {
                    return Err(self.damaged(Action::Write, "its L1 table calls a snapshot's table its own"));
                }
                (_, Some(_)) if l1 & OWNED != 0 => return Ok(()),
                (at, Some(_)) => self.new_table(io, index, Some(at), turn).await?,
            }
        }
    }

    /// A new L2 table: an empty one, or a copy of the one at `old` that a snapshot uses too.
    ///
    /// May do nothing: the caller looks again.
    async fn new_table(
        &self,
        io: &Io,
        index: usize,
        old: Option<u64>,
        turn: &Hold,
    ) -> Result<(), BlockError> {
        let allocation = self.allocate(io, 1, Hold::none(), turn).await?;
        let bits = self.header.cluster_bits;
        let claimed = self.claim_space(io, allocation.first << bits, self.header.cluster(), turn).await;
        allocation.ended(&claimed);
        claimed?;
        let mut meta = self.meta();
        match old {
            None => meta.keep(index, vec![0; 1 << self.header.l2_bits()].into(), true, false),
            Some(at) => {
                // Dropped from memory meanwhile: the caller looks again.
                let Some(table) = meta.tables.get_mut(&index) else { return Ok(()) };
                let newly = u64::from(!table.dirty);
                table.dirty = true;
                meta.dirty_tables += newly;
                meta.reserved.remove(&(at >> bits));
                meta.release(entry::Entry::Data { at, owned: false }, bits);
            }
        }
        meta.reserved.insert(allocation.first);
        meta.set_l1(index, allocation.first << bits | OWNED);
        allocation.link();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::conformance::Random;

    #[test]
    fn refcounts_of_all_widths() {
        // Widths below a byte count from the least significant bit, others are big-endian.
        for (order, index, value, bytes) in [
            (0, 9, 1, [0, 2, 0, 0, 0, 0, 0, 0]),
            (1, 3, 2, [0x80, 0, 0, 0, 0, 0, 0, 0]),
            (2, 1, 9, [0x90, 0, 0, 0, 0, 0, 0, 0]),
            (3, 2, 200, [0, 0, 200, 0, 0, 0, 0, 0]),
            (4, 1, 0x102, [0, 0, 1, 2, 0, 0, 0, 0]),
            (5, 1, 0x102, [0, 0, 0, 0, 0, 0, 1, 2]),
            (6, 0, 0x102, [0, 0, 0, 0, 0, 0, 1, 2]),
        ] {
            let mut block = [0; 8];
            set_refcount(&mut block, order, index, value);
            assert_eq!((block, refcount(&block, order, index)), (bytes, Some(value)));
            set_refcount(&mut block, order, index, 0);
            assert_eq!(block, [0; 8]);
        }
        assert_eq!(refcount(&[0; 8], 4, 4), None);
    }

    #[test]
    fn the_first_free_one_of_all_widths() {
        let mut random = Random::new(7);
        for order in 0..=6 {
            let count = (4096 * 8) >> order;
            for round in 0..200 {
                // Few that are free, and values that only have a top or a low bit.
                let mut block = vec![0; 4096];
                let width = 1u32 << order;
                let values = [1, 1 << (width - 1), u64::MAX >> (64 - width)];
                for index in 0..count {
                    let value =
                        if random.below(1000) < round / 50 { 0 } else { values[random.below(3) as usize] };
                    set_refcount(&mut block, order, index, value);
                }
                let start = random.below(count as u64) as usize;
                let plain = (start..count).find(|index| refcount(&block, order, *index) == Some(0));
                assert_eq!(first_free(&block, order, start), plain, "order {order} from {start} on");
            }
        }
    }
}
