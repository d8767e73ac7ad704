//! Zeroing: whole clusters in the tables, the rest by writing.

use super::entry::{Entry, OWNED, ZERO, offset};
use super::{Access, Chain, Piece};
use crate::iothread::Io;
use crate::storage::zeros::{ZEROS, zeros};
use crate::storage::{BlockError, Unmap};

impl Chain {
    /// Zeroes a range that was checked.
    pub(super) async fn make_zero(&self, io: &Io, at: u64, len: u64, unmap: Unmap) -> Result<(), BlockError> {
        let top = self.top()?;
        let cluster = top.header.cluster();
        let end = at + len;
        let first = at.next_multiple_of(cluster).min(end);
        // Nobody sees what is behind the end of the disk.
        let last = if end == top.len() & !511 { end.next_multiple_of(cluster) } else { end - end % cluster };
        let last = if first == end { end } else { last.max(first) };
        self.write_zeros(io, at, first).await?;
        // Version 2 has no zero clusters, only unallocated ones.
        let marks = top.header.version == 3 || (unmap == Unmap::Allowed && !self.has_backing());
        let span = cluster << top.header.l2_bits();
        let mut done = first;
        while done < last {
            // Where nothing is allocated, nothing has to wait.
            io.give_way().await;
            let next = last.min((done / span + 1) * span);
            if marks {
                self.mark_zero(io, done, next, unmap).await?;
            } else {
                self.write_zeros(io, done, next.min(end)).await?;
            }
            done = next;
        }
        self.write_zeros(io, last.min(end), end).await
    }

    /// Makes whole clusters of one L2 table zeros, by their entries.
    async fn mark_zero(&self, io: &Io, start: u64, end: u64, unmap: Unmap) -> Result<(), BlockError> {
        let top = self.top()?;
        let (bits, l2_bits, version) = (top.header.cluster_bits, top.header.l2_bits(), top.header.version);
        let _range = self.gate.enter(start..end, Access::Modify, 0).await;
        let index = top.l1_index(start);
        if !self.has_backing() && top.meta().l1.get(index).is_some_and(|l1| offset(*l1) == 0) {
            return Ok(());
        }
        let turn = self.turn().await;
        if top.meta().is_full(&top.header) {
            self.write_back(io, &turn).await?;
        }
        let from = ((start >> bits) & ((1 << l2_bits) - 1)) as usize;
        loop {
            top.ensure_table(io, index, &turn).await?;
            let mut meta = top.meta();
            for slot in from..from + ((end - start) >> bits) as usize {
                let Some(&raw) = meta.tables.get(&index).and_then(|table| table.entries.get(slot)) else {
                    break;
                };
                let old = Entry::new(raw, bits, version);
                let (new, gone) = match old {
                    Entry::Unallocated if !self.has_backing() => continue,
                    Entry::Unallocated => (ZERO, false),
                    Entry::Zero { kept: 0 } => continue,
                    Entry::Zero { .. } | Entry::Data { owned: true, .. }
                        if unmap == Unmap::Keep && raw & OWNED != 0 =>
                    {
                        (raw | ZERO, false)
                    }
                    _ => (if version == 3 { ZERO } else { 0 }, true),
                };
                if new != raw {
                    meta.set_l2(index, slot, new);
                }
                if gone {
                    meta.release(old, bits);
                }
            }
            // Dropped from memory meanwhile?
            if meta.tables.contains_key(&index) {
                return Ok(());
            }
        }
    }

    /// Writes zeros from `at` to `end` where there is something else.
    async fn write_zeros(&self, io: &Io, mut at: u64, end: u64) -> Result<(), BlockError> {
        while at < end {
            io.give_way().await;
            let (piece, run) = self.resolve(io, at, end - at).await?;
            if !matches!(piece, Piece::Zero) {
                let mut done = 0;
                while done < run {
                    let step = ZEROS.min(run - done);
                    self.put(io, at + done, zeros(step)?, self.cache.is_stable()).await?;
                    done += step;
                }
            }
            at += run;
        }
        Ok(())
    }
}
