//! The tokens of a unit, the copies that read what one stands for, and the copies that write into the unit.
//!
//! What changes a block says so before and after. Before: from then on nothing that is read may pass for what was there
//! when the token was made. After: a token that was made meanwhile is none either.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::disk;
use super::token::Token;
use crate::scsi::sense::{SenseData, TOKEN_REVOKED};
use crate::scsi::unit::Unit;
use crate::storage::{ByteOffset, Span};

/// Tokens of one unit that live at a time.
const MAX_TOKENS: usize = 64;

/// Ranges of blocks, of which none meets another.
#[derive(Debug)]
pub(super) struct Spans {
    /// As the initiator gave them.
    pub(super) listed: Box<[Span]>,
    /// By address, without empty ones.
    sorted: Box<[Span]>,
}

impl Spans {
    pub(super) fn new(listed: Box<[Span]>) -> Self {
        let mut sorted: Box<[Span]> = listed.iter().copied().filter(|span| span.len > 0).collect();
        sorted.sort_unstable_by_key(|span| span.at.0);
        Self { listed, sorted }
    }

    /// Whether one of them meets `other`.
    fn meet(&self, other: Span) -> bool {
        let end = |span: &Span| span.at.0.saturating_add(span.len);
        let first = self.sorted.partition_point(|span| end(span) <= other.at.0);
        self.sorted.get(first).is_some_and(|span| span.at.0 < end(&other) && other.len > 0)
    }
}

/// What a token stands for.
#[derive(Clone, Debug)]
pub(super) struct Rod {
    pub(super) token: Token,
    pub(super) spans: Arc<Spans>,
    pub(super) timeout: Duration,
    pub(super) used: Instant,
}

/// A copy that reads what a token stands for.
#[derive(Debug)]
struct Reader {
    id: u64,
    spans: Arc<Spans>,
    /// Something else has changed a block of it.
    broken: bool,
}

#[derive(Debug, Default)]
struct State {
    live: Vec<Rod>,
    readers: Vec<Reader>,
    /// Where copies write.
    writers: Vec<(u64, Box<[Span]>)>,
    next_id: u64,
}

impl State {
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

/// The tokens of one unit.
#[derive(Debug, Default)]
pub(super) struct Rods {
    /// Whether there is any token or reader: while not, writes need no lock.
    any: AtomicBool,
    state: Mutex<State>,
}

impl Rods {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = act(&mut state);
        self.any.store(!state.live.is_empty() || !state.readers.is_empty(), Ordering::SeqCst);
        result
    }

    /// Bytes at `at` change. The copy `by` has seen to it that it needs them no more.
    pub(super) fn changed(&self, at: u64, len: u64, by: Option<u64>) {
        if !self.any.load(Ordering::SeqCst) {
            return;
        }
        let changed = Span { at: ByteOffset(at), len };
        self.with(|state| {
            state.live.retain(|rod| !rod.spans.meet(changed));
            for reader in state.readers.iter_mut().filter(|reader| Some(reader.id) != by) {
                reader.broken |= reader.spans.meet(changed);
            }
        });
    }

    /// Copies under way go on: what they read is as it was.
    pub(super) fn clear(&self) {
        self.with(|state| state.live.clear());
    }

    /// Adds a token; false while a copy writes to its blocks.
    pub(super) fn add(&self, rod: Rod) -> bool {
        self.with(|state| {
            if state.writers.iter().any(|(_, writes)| writes.iter().any(|span| rod.spans.meet(*span))) {
                return false;
            }
            state.live.retain(|rod| rod.used.elapsed() < rod.timeout);
            if state.live.len() >= MAX_TOKENS {
                state.live.remove(0);
            }
            state.live.push(rod);
            true
        })
    }

    pub(super) fn delete(&self, token: &[u8]) {
        self.with(|state| state.live.retain(|rod| rod.token.as_bytes() != token));
    }

    #[cfg(test)]
    pub(super) fn writers(&self) -> usize {
        self.lock().writers.len()
    }

    /// A copy is about to write there.
    pub(super) fn writing(self: &Arc<Self>, spans: Box<[Span]>) -> Writing {
        let mut state = self.lock();
        let id = state.id();
        state.writers.push((id, spans));
        Writing { rods: self.clone(), id }
    }
}

/// A copy that writes.
pub(super) struct Writing {
    rods: Arc<Rods>,
    id: u64,
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.rods.lock().writers.retain(|(id, _)| *id != self.id);
    }
}

/// A copy of what a token stands for.
pub(super) struct Reading {
    unit: Arc<Unit>,
    id: u64,
    spans: Arc<Spans>,
}

impl Reading {
    /// Begins one, if the token is one of `unit` and lives.
    pub(super) fn begin(unit: &Arc<Unit>, token: &[u8]) -> Option<Self> {
        disk(unit).ok()?.copies.rods.with(|state| {
            let found = state.live.iter_mut().find(|rod| rod.token.as_bytes() == token)?;
            if found.used.elapsed() >= found.timeout {
                return None;
            }
            found.used = Instant::now();
            let spans = found.spans.clone();
            let id = state.id();
            state.readers.push(Reader { id, spans: spans.clone(), broken: false });
            Some(Self { unit: unit.clone(), id, spans })
        })
    }

    pub(super) fn unit(&self) -> &Arc<Unit> {
        &self.unit
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn spans(&self) -> &[Span] {
        &self.spans.listed
    }

    /// Whether all that was read so far is what the token stands for (SPC-4, 5.16.6: a change vulnerable point in time
    /// copy ends with the first change).
    pub(super) fn check(&self) -> Result<(), SenseData> {
        let state = disk(&self.unit)?.copies.rods.lock();
        let intact = state.readers.iter().any(|reader| reader.id == self.id && !reader.broken);
        if intact { Ok(()) } else { Err(SenseData::illegal(TOKEN_REVOKED)) }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let Ok(disk) = disk(&self.unit) {
            disk.copies.rods.with(|state| state.readers.retain(|reader| reader.id != self.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_meet_what_has_a_byte_in_common() {
        let span = |(at, len)| Span { at: ByteOffset(at), len };
        let spans = Spans::new([(50, 10), (10, 5), (70, 0), (20, 5), (15, 5)].map(span).into());
        for (other, meets) in [
            ((0, 10), false),
            ((0, 11), true),
            ((24, 1), true),
            ((25, 25), false),
            ((25, 26), true),
            ((59, 1), true),
            ((60, 100), false),
            ((0, u64::MAX), true),
            ((12, 0), false),
            ((u64::MAX, 5), false),
        ] {
            assert_eq!(spans.meet(span(other)), meets, "{other:?}");
        }
        assert!(!Spans::new([].into()).meet(span((0, 9))));
    }
}
