//! Writing: in place where clusters are ours, into new clusters elsewhere.

use std::sync::Arc;

use super::entry::{Entry, OWNED};
use super::layer::{Layer, buffer};
use super::meta::Allocation;
use super::{Access, Chain, Piece};
use crate::iothread::{Hold, Io};
use crate::mem::{FromGuest, ToGuest};
use crate::storage::{BlockError, BlockErrorKind, CacheMode, Durability};

/// New clusters are taken for this many bytes at once at most.
const STEP: u64 = 16 << 20;
/// What is copied from below goes through buffers of this many bytes at most.
const COPY: u64 = 256 << 10;

impl Chain {
    /// Whether a write must be on stable storage when it completes.
    pub(super) fn must_be_stable(&self, durability: Durability) -> bool {
        self.cache.is_stable() || (durability == Durability::Stable && self.cache != CacheMode::Unsafe)
    }

    /// A write whose range was checked.
    pub(super) async fn put(
        &self,
        io: &Io,
        at: u64,
        mut from: FromGuest,
        stable: bool,
    ) -> Result<(), BlockError> {
        let len = from.len();
        let (mut done, mut moved) = (0, false);
        while done < len {
            let hold = self.gate.enter(at + done..at + len, Access::Write, 0).await;
            let (entry, run) = self.top()?.lookup(io, at + done, len - done).await?;
            if let Entry::Data { at: place, owned: true } = entry {
                let part = if run == len {
                    std::mem::replace(&mut from, FromGuest::empty())
                } else {
                    from.window(done, run)
                };
                self.top()?.file.store_at(io, place, part, stable, &hold).await?;
                done += run;
                continue;
            }
            drop(hold);
            let rest = from.window(done, len - done);
            // Boxed, as what follows: large futures, which writes in place shall not be moved about with.
            done += Box::pin(self.put_new(io, at + done, &rest)).await?;
            moved = true;
        }
        // A write in place is not stable before the tables that lead to it are.
        let flush = stable && (moved || self.top()?.meta().is_dirty());
        if flush { Box::pin(self.flush(io)).await } else { Ok(()) }
    }

    /// Writes the start of `from` into new clusters; returns how much. 0 if someone else was faster.
    async fn put_new(&self, io: &Io, at: u64, from: &FromGuest) -> Result<u64, BlockError> {
        let top = self.top()?;
        let (bits, cluster) = (top.header.cluster_bits, top.header.cluster());
        let first = at >> bits;
        // Within one L2 table.
        let table_end = ((first >> top.header.l2_bits()) + 1) << (top.header.l2_bits() + bits);
        let end = (at + from.len().min(STEP)).min(table_end);
        let start = first << bits;
        let close = end.next_multiple_of(cluster);
        let copies = if start != at || close != end { 2 * cluster.min(COPY) } else { 0 };
        let range = self.gate.enter(start..close, Access::Modify, copies).await;
        let new = self.count_new(io, start, close).await?;
        if new == 0 {
            return Ok(0);
        }
        let clusters = {
            let turn = self.turn().await;
            if top.meta().is_full(&top.header) {
                self.write_back(io, &turn).await?;
            }
            top.ensure_table(io, top.l1_index(at), &turn).await?;
            match top.allocate(io, new, range.clone(), &turn).await {
                // What was freed lately is room too, once the tables say so.
                Err(full) if full.kind == BlockErrorKind::NoSpace && top.meta().has_frees() => {
                    self.write_back(io, &turn).await?;
                    top.ensure_table(io, top.l1_index(at), &turn).await?;
                    top.allocate(io, new, range, &turn).await?
                }
                taken => taken?,
            }
        };
        let end = end.min(start + clusters.count * cluster);
        let filled = self.fill_new(io, at, from.window(0, end - at), &clusters).await;
        clusters.ended(&filled);
        filled.map(|()| end - at)
    }

    /// Writes to new clusters, what is around it too, and makes them the guest's.
    async fn fill_new(
        &self,
        io: &Io,
        at: u64,
        from: FromGuest,
        clusters: &Arc<Allocation>,
    ) -> Result<(), BlockError> {
        let top = self.top()?;
        let (bits, cluster) = (top.header.cluster_bits, top.header.cluster());
        let first = at >> bits;
        let start = first << bits;
        let (end, close) = (at + from.len(), start + clusters.count * cluster);
        let to = |guest: u64| (clusters.first << bits) + (guest - start);
        self.copy_up(io, start, at, to(start), clusters).await?;
        top.file.store_at(io, to(at), from, false, &clusters.hold()).await?;
        self.copy_up(io, end, close, to(end), clusters).await?;
        let turn = self.turn().await;
        top.link(io, first, clusters, &turn).await
    }

    /// How many clusters from `start` to `end` in a row need new ones.
    async fn count_new(&self, io: &Io, start: u64, end: u64) -> Result<u64, BlockError> {
        let top = self.top()?;
        let mut at = start;
        while at < end {
            let (entry, run) = top.lookup(io, at, end - at).await?;
            if matches!(entry, Entry::Data { owned: true, .. }) {
                break;
            }
            at += run;
        }
        Ok((at - start).div_ceil(top.header.cluster()))
    }

    /// Copies what the guest sees from `from` to `to` into new clusters, at offset `place` of the file.
    async fn copy_up(
        &self,
        io: &Io,
        mut from: u64,
        to: u64,
        place: u64,
        clusters: &Arc<Allocation>,
    ) -> Result<(), BlockError> {
        let start = from;
        while from < to {
            let (piece, run) = self.resolve(io, from, to - from).await?;
            let zero = matches!(piece, Piece::Zero);
            let run = if zero { run } else { run.min(COPY) };
            let (file, here) = (&self.top()?.file, place + (from - start));
            if !zero {
                let bytes = buffer(run)?;
                let data = FromGuest::new(bytes.window(0, run));
                self.read_piece(io, piece, ToGuest::new(bytes), &Hold::none()).await?;
                file.store_at(io, here, data, false, &clusters.hold()).await?;
            } else if !clusters.virgin {
                file.zero_at(io, here, run, &clusters.hold()).await?;
            }
            from += run;
        }
        Ok(())
    }
}

impl Layer {
    /// Makes new clusters those of the guest's clusters from `first` on. The caller has the turn.
    async fn link(&self, io: &Io, first: u64, clusters: &Allocation, turn: &Hold) -> Result<(), BlockError> {
        let (bits, l2_bits) = (self.header.cluster_bits, self.header.l2_bits());
        let index = (first >> l2_bits) as usize;
        let slot = (first & ((1 << l2_bits) - 1)) as usize;
        loop {
            self.ensure_table(io, index, turn).await?;
            let mut meta = self.meta();
            // Dropped from memory meanwhile?
            let Some(table) = meta.tables.get(&index) else { continue };
            let old: Vec<u64> =
                table.entries.iter().skip(slot).take(clusters.count as usize).copied().collect();
            for (n, raw) in old.into_iter().enumerate() {
                meta.set_l2(index, slot + n, (clusters.first + n as u64) << bits | OWNED);
                meta.release(Entry::new(raw, bits, self.header.version), bits);
            }
            clusters.link();
            return Ok(());
        }
    }
}
