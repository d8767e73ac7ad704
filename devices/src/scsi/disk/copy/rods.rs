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

/// What a token stands for.
#[derive(Clone, Debug)]
pub(super) struct Rod {
    pub(super) token: Token,
    pub(super) spans: Arc<[Span]>,
    pub(super) timeout: Duration,
    pub(super) used: Instant,
}

/// A copy that reads what a token stands for.
#[derive(Debug)]
struct Reader {
    id: u64,
    spans: Arc<[Span]>,
    /// Something else has changed a block of it.
    broken: bool,
}

#[derive(Debug, Default)]
struct State {
    live: Vec<Rod>,
    readers: Vec<Reader>,
    /// Where copies write.
    writers: Vec<(u64, Span)>,
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

fn meet(a: Span, b: Span) -> bool {
    a.at.0 < b.at.0.saturating_add(b.len) && b.at.0 < a.at.0.saturating_add(a.len)
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
        let touched = |spans: &[Span]| spans.iter().any(|span| meet(*span, changed));
        self.with(|state| {
            state.live.retain(|rod| !touched(&rod.spans));
            for reader in state.readers.iter_mut().filter(|reader| Some(reader.id) != by) {
                reader.broken |= touched(&reader.spans);
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
            if state.writers.iter().any(|(_, writes)| rod.spans.iter().any(|span| meet(*span, *writes))) {
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

    /// A copy is about to write to these bytes.
    pub(super) fn writing(self: &Arc<Self>, at: u64, len: u64) -> Writing {
        let mut state = self.lock();
        let id = state.id();
        state.writers.push((id, Span { at: ByteOffset(at), len }));
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
    spans: Arc<[Span]>,
}

impl Reading {
    /// Begins one, if the token is one of `unit` and lives.
    pub(super) fn begin(unit: &Arc<Unit>, token: &[u8]) -> Option<Self> {
        disk(unit).copies.rods.with(|state| {
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
        &self.spans
    }

    /// Whether all that was read so far is what the token stands for (SPC-4, 5.16.6: a change vulnerable point in time
    /// copy ends with the first change).
    pub(super) fn check(&self) -> Result<(), SenseData> {
        let state = disk(&self.unit).copies.rods.lock();
        let intact = state.readers.iter().any(|reader| reader.id == self.id && !reader.broken);
        if intact { Ok(()) } else { Err(SenseData::illegal(TOKEN_REVOKED)) }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        disk(&self.unit).copies.rods.with(|state| state.readers.retain(|reader| reader.id != self.id));
    }
}
