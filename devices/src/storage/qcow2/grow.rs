//! A longer disk: the size in the header, and before that a larger L1 table where it takes one.

use std::sync::atomic::Ordering;

use super::entry::offset;
use super::header::{L1_BYTES_MAX, L1_FIELD, SIZE_FIELD, l1_field};
use super::layer::Layer;
use super::meta::Free;
use super::{Access, Chain, Unmap};
use crate::iothread::{Hold, Io};
use crate::storage::barrier::Barrier;
use crate::storage::error::Action;
use crate::storage::{BlockError, BlockErrorKind};

/// How often room for a table is looked for in a file full of holes.
const TRIES: usize = 64;

impl Chain {
    /// Makes the disk `len` bytes long, unless it is longer. The file says so last.
    pub(super) async fn grow(&self, io: &Io, len: u64) -> Result<(), BlockError> {
        self.check(Action::Write, 0, 0)?;
        let top = self.top()?;
        top.file.check_stability(Action::Write)?;
        self.begin_changes(io).await?;
        // One after the other, or the size that the file says last would be that of whoever was slowest.
        let _growing = self.growing.enter(0..1, Access::Modify, 0).await;
        let turn = self.turn().await;
        let old = self.len();
        if len <= old {
            return Ok(());
        }
        if top.header.snapshots > 0 {
            return Err(top.cannot_grow("it has snapshots, which keep its size"));
        }
        let entries = len.div_ceil(top.header.cluster() << top.header.l2_bits());
        if len > i64::MAX as u64 - top.header.cluster() || entries * 8 > L1_BYTES_MAX {
            return Err(top.cannot_grow("its L1 table would become too large; larger clusters need less"));
        }
        if entries > top.meta().l1.len() as u64 {
            self.write_back(io, &turn).await?;
            top.grow_l1(io, entries, &turn).await?;
        }
        drop(turn);
        top.len.store(len, Ordering::Relaxed);
        let result = self.finish_growing(io, old, len).await;
        match result {
            // Whoever hears of it earlier writes there, and may be told that it is stable.
            Ok(()) => self.len.store(len, Ordering::Relaxed),
            Err(_) => top.len.store(old, Ordering::Relaxed),
        }
        result
    }

    /// What a longer backing file has there must not show, nor what is left in the image of a disk that was longer once: QEMU
    /// leaves the rest of the last cluster. Then the header.
    async fn finish_growing(&self, io: &Io, old: u64, len: u64) -> Result<(), BlockError> {
        let below = match self.layers.get(1) {
            Some(layer) => Some(layer.len()),
            None => self.base.as_ref().map(|base| base.host_len()),
        };
        let top = self.top()?;
        let last =
            top.meta().l1.iter().rposition(|entry| offset(*entry) != 0).map_or(0, |index| index as u64 + 1);
        let own = last.saturating_mul(top.header.cluster() << top.header.l2_bits());
        let reach = below.unwrap_or(0).max(own).min(len);
        if reach > old {
            self.make_zero(io, old, reach - old, Unmap::Allowed).await?;
            self.flush(io).await?;
        }
        let turn = self.turn().await;
        top.write_bytes(io, SIZE_FIELD, &len.to_be_bytes(), &turn).await?;
        top.file.barrier(io, Barrier::Size).await
    }
}

impl Layer {
    fn cannot_grow(&self, why: &str) -> BlockError {
        let context = format!("\"{}\" cannot be made longer: {why}", self.file.name());
        BlockError::new(BlockErrorKind::Unsupported, context)
    }

    /// Moves the L1 table, which is as in the file, to a place for `entries`.
    async fn grow_l1(&self, io: &Io, entries: u64, turn: &Hold) -> Result<(), BlockError> {
        let (cluster, bits) = (self.header.cluster(), self.header.cluster_bits);
        let want = (entries * 8).div_ceil(cluster);
        // What is too small is given back when all is done.
        let mut small = Vec::new();
        let place = loop {
            let found = self.allocate(io, want, Hold::none(), turn).await?;
            if found.count >= want {
                break found;
            }
            small.push(found);
            if small.len() >= TRIES {
                return Err(self.cannot_grow("there is no room for its L1 table in one piece"));
            }
        };
        let mut table: Vec<u8> = self.meta().l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        table.resize((want * cluster) as usize, 0);
        // The references to the new place, and the table, before the header names it.
        self.write_back(io, turn, false).await?;
        let at = place.first << bits;
        self.write_bytes(io, at, &table, turn).await?;
        self.file.barrier(io, Barrier::L1Moved).await?;
        // From here on the header may name the place, also when writing it fails or is given up: until it is known to name
        // another one, it is not free.
        place.link();
        self.meta().l1_doubt = Some(Free { first: place.first, count: place.count });
        self.write_bytes(io, L1_FIELD, &l1_field(entries, at), turn).await?;
        // No barrier: the new table is written to, and the old place used anew, only behind those of writing tables back,
        // and the size of the disk has its own.
        let mut meta = self.meta();
        meta.l1_doubt = None;
        let old = Free { first: meta.l1_at >> bits, count: (meta.l1.len() as u64 * 8).div_ceil(cluster) };
        for number in old.first..old.first + old.count {
            meta.reserved.remove(&number);
        }
        meta.reserved.extend(place.first..place.first + place.count);
        meta.l1.resize(entries as usize, 0);
        meta.l1_at = at;
        meta.frees.push(old);
        Ok(())
    }
}
