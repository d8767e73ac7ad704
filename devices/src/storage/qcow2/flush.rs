//! Writing tables back, in an order that survives a crash at any moment.
//!
//! 1. Data and refcounts of what was allocated, and then a barrier;
//! 2. the refcount table, if it names new blocks, and then a barrier; the header, if the table moved, and another;
//! 3. L2 tables, then a barrier and the L1 table if it names new ones, and a barrier;
//! 4. only then references that are gone are counted down, in memory: they reach the file with the next flush.
//!
//! So nothing in the file ever points to what is not there yet, and a cluster is used anew only when nothing in
//! the file points to it any more. A crash leaves clusters that are counted but not used, and nothing else.

use super::alloc::{refcount, set_refcount};
use super::header::{L1_FIELD, REFTABLE_FIELD, l1_field};
use super::layer::Layer;
use super::meta::Free;
use crate::iothread::{Hold, Io};
use crate::storage::BlockError;
use crate::storage::barrier::Barrier;
use crate::storage::error::Action;

/// Bytes of a sector of the L1 or refcount table.
const SECTOR: u64 = 512;

impl Layer {
    /// Writes all tables back. `turn` is the caller's turn, which the operations hold too.
    pub(super) async fn write_back(&self, io: &Io, turn: &Hold, discard: bool) -> Result<(), BlockError> {
        // After a barrier that failed, nothing that counted on it may reach the file.
        self.file.check_stability(Action::Flush)?;
        self.write_blocks(io, turn).await?;
        self.file.barrier(io, Barrier::Counts).await?;
        self.write_reftable(io, turn).await?;
        self.write_tables(io, turn).await?;
        self.settle();
        self.free(io, turn, discard).await
    }

    async fn write_blocks(&self, io: &Io, turn: &Hold) -> Result<(), BlockError> {
        let dirty: Vec<usize> =
            self.meta().blocks.iter().filter(|(_, block)| block.dirty).map(|(index, _)| *index).collect();
        for index in dirty {
            let (at, bytes) = {
                let meta = self.meta();
                let Some(block) = meta.blocks.get(&index) else { continue };
                (meta.reftable.get(index).copied().unwrap_or(0), block.bytes.clone())
            };
            self.write_bytes(io, at, &bytes, turn).await?;
        }
        Ok(())
    }

    async fn write_reftable(&self, io: &Io, turn: &Hold) -> Result<(), BlockError> {
        let (table, at, dirty, moved) = {
            let meta = self.meta();
            if meta.reftable_dirty.is_empty() && meta.old_reftables.is_empty() {
                return Ok(());
            }
            (
                big_endian(&meta.reftable),
                meta.reftable_at,
                meta.reftable_dirty.clone(),
                !meta.old_reftables.is_empty(),
            )
        };
        if !moved {
            self.write_sectors(io, at, &table, dirty, turn).await?;
            return self.file.barrier(io, Barrier::Reftable).await;
        }
        self.write_bytes(io, at, &table, turn).await?;
        self.file.barrier(io, Barrier::ReftableMoved).await?;
        let clusters = (table.len() as u64 / self.header.cluster()) as u32;
        let field: Vec<u8> = at.to_be_bytes().into_iter().chain(clusters.to_be_bytes()).collect();
        self.write_bytes(io, REFTABLE_FIELD, &field, turn).await?;
        self.file.barrier(io, Barrier::ReftableNamed).await?;
        let mut meta = self.meta();
        for old in std::mem::take(&mut meta.old_reftables) {
            meta.frees.push(Free { first: old.at / self.header.cluster(), count: old.clusters });
        }
        Ok(())
    }

    async fn write_tables(&self, io: &Io, turn: &Hold) -> Result<(), BlockError> {
        let dirty: Vec<usize> =
            self.meta().tables.iter().filter(|(_, table)| table.dirty).map(|(index, _)| *index).collect();
        for index in &dirty {
            let (at, bytes) = {
                let meta = self.meta();
                let Some(table) = meta.tables.get(index) else { continue };
                let l1 = meta.l1.get(*index).copied().unwrap_or(0);
                (super::entry::offset(l1), big_endian(&table.entries))
            };
            self.write_bytes(io, at, &bytes, turn).await?;
        }
        let named = self.name_l1(io, turn).await?;
        let (l1, l1_at, l1_dirty) = {
            let meta = self.meta();
            let l1 = if meta.l1_dirty.is_empty() { Vec::new() } else { big_endian(&meta.l1) };
            (l1, meta.l1_at, meta.l1_dirty.clone())
        };
        if !l1_dirty.is_empty() {
            self.file.barrier(io, Barrier::Tables).await?;
            self.write_sectors(io, l1_at, &l1, l1_dirty, turn).await?;
        } else if dirty.is_empty() && !named {
            return Ok(());
        }
        self.file.barrier(io, Barrier::Published).await?;
        let mut meta = self.meta();
        let doubtful = meta.l1_doubt.take();
        meta.frees.extend(doubtful);
        Ok(())
    }

    /// After growth that failed, the header may name a table that is not in use: it is written again.
    async fn name_l1(&self, io: &Io, turn: &Hold) -> Result<bool, BlockError> {
        let field = {
            let meta = self.meta();
            match meta.l1_doubt {
                None => return Ok(false),
                Some(_) => l1_field(meta.l1.len() as u64, meta.l1_at),
            }
        };
        self.write_bytes(io, L1_FIELD, &field, turn).await?;
        Ok(true)
    }

    async fn write_sectors(
        &self,
        io: &Io,
        at: u64,
        table: &[u8],
        sectors: impl IntoIterator<Item = usize>,
        turn: &Hold,
    ) -> Result<(), BlockError> {
        for sector in sectors {
            if let Some(bytes) = table.chunks(SECTOR as usize).nth(sector) {
                self.write_bytes(io, at + sector as u64 * SECTOR, bytes, turn).await?;
            }
        }
        Ok(())
    }

    /// Everything is in the file. The turn has kept changes away meanwhile.
    fn settle(&self) {
        let mut meta = self.meta();
        meta.blocks.values_mut().for_each(|block| block.dirty = false);
        meta.tables.values_mut().for_each(|table| table.dirty = false);
        (meta.dirty_blocks, meta.dirty_tables) = (0, 0);
        meta.reftable_dirty.clear();
        meta.l1_dirty.clear();
    }

    /// Counts references down that are gone from the file, and gives clusters without any back to the host.
    async fn free(&self, io: &Io, turn: &Hold, discard: bool) -> Result<(), BlockError> {
        for n in 1u64.. {
            if n.is_multiple_of(256) {
                io.give_way().await;
            }
            let next = {
                let mut meta = self.meta();
                // What a dropped future left half done comes first.
                meta.freeing = meta.freeing.take().or_else(|| meta.frees.pop()).or_else(|| meta.spares.pop());
                meta.freeing
            };
            match next {
                None => return Ok(()),
                Some(Free { count: 0, .. }) => self.meta().freeing = None,
                Some(free) => self.free_some(io, free, turn, discard).await?,
            }
        }
        Ok(())
    }

    /// Counts the start of `free` down, as far as the block and the kind of refcount go.
    async fn free_some(&self, io: &Io, free: Free, turn: &Hold, discard: bool) -> Result<(), BlockError> {
        let (bits, order) = (self.header.block_bits(), self.header.refcount_order);
        let first = free.first;
        let index = (first >> bits) as usize;
        let slot = |cluster: u64| (cluster & ((1 << bits) - 1)) as usize;
        let counted = self.meta().reftable.get(index).is_some_and(|at| *at != 0);
        if counted {
            self.ensure_block(io, index, turn).await?;
        }
        let last = (first + free.count).min((index as u64 + 1) << bits);
        let (until, count) = {
            let meta = self.meta();
            let count = |cluster: u64| {
                meta.blocks
                    .get(&index)
                    .and_then(|block| refcount(&block.bytes, order, slot(cluster)))
                    .unwrap_or(0)
            };
            // The last reference to a table in use is not gone, whatever the counts say.
            let is = |n: &u64, wanted| count(*n) == wanted && !(wanted == 1 && meta.is_metadata(*n));
            match count(first) {
                1 if meta.is_metadata(first) => (first + 1, 0),
                wanted @ (0 | 1) => {
                    ((first..last).take_while(|n| is(n, wanted)).last().unwrap_or(first) + 1, wanted)
                }
                count => (first + 1, count),
            }
        };
        if count == 0 {
            // Once: a guest can have it happen for every cluster of a damaged image.
            let name = self.file.name();
            if self.meta().uncounted == 0 {
                tracing::warn!(
                    "{name}: cluster {first} is in use and was not counted; run qemu-img check on it"
                );
            }
            self.meta().uncounted += until - first;
        } else if count == 1 && discard {
            // Before they can be allocated again.
            let cluster = self.header.cluster_bits;
            self.file.punch(io, first << cluster, (until - first) << cluster, turn).await;
        }
        let mut meta = self.meta();
        if let Some(block) = meta.block_mut(index).filter(|_| count > 0) {
            (first..until).for_each(|cluster| set_refcount(block, order, slot(cluster), count - 1));
        }
        if count == 1 {
            meta.hint = meta.hint.min(first);
        }
        meta.freeing = Some(Free { first: until, count: free.count - (until - first) });
        Ok(())
    }
}

fn big_endian(table: &[u64]) -> Vec<u8> {
    table.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}
