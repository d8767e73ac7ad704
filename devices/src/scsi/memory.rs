//! Host memory that commands take for data on its way: what is copied, compared, written as a pattern, or has protection
//! information.
//!
//! The guest decides how many such commands there are, so all units of a machine have one bound together. Nobody waits for
//! memory: at first a command gets what it asks for, then 64 KiB, then 4 KiB at a time, and when that is used up it answers BUSY.
//! No unit gets more than it leaves to the others, and each has a little that is its own: units that hang with all that they
//! hold make the pieces of others smaller, and no more.

use std::any::Any;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::mem::SgList;

/// All that is held at a time, in bytes, but for what each unit has of its own.
const LIMIT: u64 = 64 << 20;
/// What a unit can hold whatever the others do.
const OWN: u64 = 64 << 10;
/// The smallest piece: no logical block is longer.
pub(crate) const LEAST: u64 = 4 << 10;
/// Pieces that commands get, and how much may be held together with one of that size.
const STEPS: [(u64, u64); 3] = [(1 << 20, LIMIT / 2), (64 << 10, LIMIT / 4 * 3), (LEAST, LIMIT)];

/// What all units of a machine hold.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    held: u64,
    units: u64,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> u64 {
        self.lock().held
    }
}

#[derive(Debug, Default)]
struct Account {
    memory: OnceLock<Arc<Memory>>,
    /// Changed under the lock of the memory.
    held: AtomicU64,
}

impl Account {
    fn memory(&self) -> &Arc<Memory> {
        self.memory.get_or_init(Arc::default)
    }

    fn add(&self, len: u64) {
        self.held.fetch_add(len, Ordering::Relaxed);
    }

    fn subtract(&self, len: u64) {
        self.held.fetch_sub(len, Ordering::Relaxed);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.get() {
            let mut all = memory.lock();
            all.units = all.units.saturating_sub(1);
        }
    }
}

/// What one unit holds of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Share(Arc<Account>);

impl Share {
    /// The unit is one of a machine; until then it has a bound of its own.
    pub(crate) fn join(&self, memory: &Arc<Memory>) {
        if self.0.memory.set(memory.clone()).is_ok() {
            memory.lock().units += 1;
        }
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> u64 {
        self.0.held.load(Ordering::Relaxed)
    }

    /// Takes as much of `want` as there is, at least [`LEAST`] of it, and how much that is. With so many bytes go those that
    /// `beside` says. `other` is a unit that will hold it as well.
    pub(crate) fn take(
        &self,
        want: u64,
        beside: impl Fn(u64) -> u64,
        other: Option<&Self>,
    ) -> Option<(u64, Claim)> {
        STEPS.iter().find_map(|&(piece, limit)| {
            let len = want.min(piece);
            Some((len, self.claim(len + beside(len), limit, other)?))
        })
    }

    /// Takes all of `len` bytes or nothing.
    pub(crate) fn take_all(&self, len: u64, other: Option<&Self>) -> Option<Claim> {
        let (_, limit) = STEPS.iter().rev().find(|(piece, _)| len <= *piece)?;
        self.claim(len, *limit, other)
    }

    /// As [`Self::take_all`], for more than the longest piece: what cannot be divided.
    pub(crate) fn take_whole(&self, len: u64) -> Option<Claim> {
        match self.take_all(len, None) {
            None if len > STEPS[0].0 => self.claim(len, STEPS[0].1, None),
            claim => claim,
        }
    }

    /// Takes `len` bytes beyond all bounds: where each command has a little, as it has room for itself.
    pub(crate) fn take_anyway(&self, len: u64) -> Claim {
        self.0.memory().lock().held += len;
        self.0.add(len);
        Claim { share: Mutex::new(self.clone()), len }
    }

    fn claim(&self, len: u64, limit: u64, other: Option<&Self>) -> Option<Claim> {
        let held = |share: &Self| share.0.held.load(Ordering::Relaxed);
        let mut all = self.0.memory().lock();
        let (own, together) =
            (held(self).max(other.map_or(0, held)).checked_add(len)?, all.held.checked_add(len)?);
        let leaves_as_much = limit.checked_sub(together).is_some_and(|left| own <= left);
        let its_own = limit == LIMIT && own <= OWN && together <= LIMIT + OWN * all.units;
        if !leaves_as_much && !its_own {
            return None;
        }
        all.held = together;
        self.0.add(len);
        Some(Claim { share: Mutex::new(self.clone()), len })
    }
}

/// Memory that is held, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    share: Mutex<Share>,
    len: u64,
}

impl Claim {
    /// From now on another unit holds it: the one whose host must answer before it can go.
    fn pass_to(&self, other: &Share) {
        let mut share = self.share.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = share.0.memory().clone();
        if Arc::ptr_eq(&share.0, &other.0) || !Arc::ptr_eq(&memory, other.0.memory()) {
            return;
        }
        let _all = memory.lock();
        share.0.subtract(self.len);
        other.0.add(self.len);
        *share = other.clone();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let share = self.share.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut all = share.0.memory().lock();
        all.held = all.held.saturating_sub(self.len);
        share.0.subtract(self.len);
    }
}

/// A buffer. It is held for as long as anybody has a part of it, the kernel among them.
#[derive(Debug)]
pub(crate) struct Scratch {
    list: SgList,
    claim: Arc<Claim>,
}

impl Scratch {
    /// A buffer of `len` bytes for which `claim` was taken; `None` when the host has no memory for it.
    pub(crate) fn new(len: u64, align: usize, claim: Claim) -> Option<Self> {
        let claim = Arc::new(claim);
        let keep: Arc<dyn Any + Send + Sync> = claim.clone();
        let list = SgList::host_keeping(usize::try_from(len).ok()?, align, Some(keep))?;
        Some(Self { list, claim })
    }

    /// A list over all of it.
    pub(crate) fn all(&self) -> SgList {
        self.list.window(0, u64::MAX)
    }

    /// From now on another unit holds it.
    pub(crate) fn pass_to(&self, share: &Share) {
        self.claim.pass_to(share);
    }
}

impl Deref for Scratch {
    type Target = SgList;

    fn deref(&self) -> &SgList {
        &self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Takes all that a unit gets; the sizes of the pieces, each once, and the claims.
    fn fill(share: &Share, want: u64) -> (Vec<u64>, Vec<Claim>) {
        let taken: Vec<_> = std::iter::from_fn(|| share.take(want, |_| 0, None)).collect();
        let mut sizes: Vec<_> = taken.iter().map(|(len, _)| *len).collect();
        sizes.dedup();
        (sizes, taken.into_iter().map(|(_, claim)| claim).collect())
    }

    fn joined(memory: &Arc<Memory>) -> Share {
        let share = Share::default();
        share.join(memory);
        share
    }

    #[test]
    fn pieces_become_small_before_there_is_nothing() {
        let memory = Arc::new(Memory::default());
        let (a, b) = (joined(&memory), joined(&memory));
        let (sizes, claims) = fill(&a, MIB);
        assert_eq!(sizes, [MIB, 64 << 10, 4 << 10]);
        assert_eq!((a.held(), memory.held()), (32 * MIB, 32 * MIB), "half of it");
        assert!(a.take_all(1, None).is_none());
        // What it leaves is there for others, in smaller pieces.
        assert!(b.take_all(MIB, None).is_none());
        let (sizes, others) = fill(&b, MIB);
        assert_eq!(sizes, [64 << 10, 4 << 10]);
        assert_eq!((b.held(), memory.held()), (16 * MIB, 48 * MIB));
        drop((claims, others));
        assert_eq!((a.held(), b.held(), memory.held()), (0, 0, 0));
    }

    #[test]
    fn what_cannot_be_divided_is_taken_while_there_is_much() {
        let memory = Arc::new(Memory::default());
        let (a, b) = (joined(&memory), joined(&memory));
        assert!(a.take_whole(33 * MIB).is_none());
        let four: Vec<_> = std::iter::from_fn(|| a.take_whole(4 * MIB)).collect();
        assert_eq!((four.len(), a.held()), (4, 16 * MIB), "no more than it leaves");
        assert!(b.take_whole(4 * MIB).is_some() && b.take_whole(512).is_some());
    }

    #[test]
    fn many_that_hang_leave_something() {
        let memory = Arc::new(Memory::default());
        let units: Vec<_> = (0..31).map(|_| joined(&memory)).collect();
        let (last, others) = units.split_last().unwrap();
        let hung: Vec<_> = others.iter().map(|unit| fill(unit, MIB).1).collect();
        let claims = fill(last, MIB).1;
        assert_eq!(last.held(), OWN);
        assert!(memory.held() <= LIMIT + 31 * OWN);
        drop((hung, claims));
        assert_eq!(memory.held(), 0);
    }

    #[test]
    fn who_waits_for_the_host_holds_it() {
        let memory = Arc::new(Memory::default());
        let (a, b, c) = (joined(&memory), joined(&memory), joined(&memory));
        let scratch = Scratch::new(MIB, 4096, a.take_all(MIB, None).unwrap()).unwrap();
        scratch.pass_to(&b);
        assert_eq!((a.held(), b.held()), (0, MIB));
        // A window keeps all of it.
        let window = scratch.window(0, 1);
        drop(scratch);
        assert_eq!(memory.held(), MIB);
        drop(window);
        assert_eq!((b.held(), memory.held()), (0, 0));
        // A copy is bounded by what either of its units holds.
        let _full = fill(&a, MIB);
        assert!(b.take(MIB, |_| 0, Some(&a)).is_none());
        assert!(b.take(MIB, |_| 0, Some(&c)).is_some());
    }
}
