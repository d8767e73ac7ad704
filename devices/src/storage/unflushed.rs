//! Whether something was written that no flush has made stable yet.

use std::sync::atomic::{AtomicU64, Ordering};

/// One more change that has begun. Below it: how many are under way, for which an I/O thread has 1024 places.
const BEGUN: u64 = 1 << 24;

/// Account of changes and flushes of one image. A change that was under way when a flush began counts as not flushed.
#[derive(Default)]
pub(super) struct Unflushed {
    /// How many changes have begun, times [`BEGUN`], and how many are under way.
    changes: AtomicU64,
    /// The same when a flush began that went well, and nothing was under way.
    flushed: AtomicU64,
}

/// A change that is under way. Not for those that are stable when they end.
pub(super) struct Change<'a>(&'a Unflushed);

/// What had changed at a moment: as [`Unflushed::changes`], while nothing is changing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen(u64);

impl Unflushed {
    /// A change begins.
    pub(super) fn change(&self) -> Change<'_> {
        self.changes.fetch_add(BEGUN + 1, Ordering::AcqRel);
        Change(self)
    }

    /// A flush begins.
    pub(super) fn now(&self) -> Seen {
        Seen(self.changes.load(Ordering::Acquire))
    }

    /// A flush that began then went well.
    pub(super) fn flushed(&self, seen: Seen) {
        if seen.0.is_multiple_of(BEGUN) {
            self.flushed.store(seen.0, Ordering::Release);
        }
    }

    /// Whether there is something.
    pub(super) fn any(&self) -> bool {
        self.changes.load(Ordering::Acquire) != self.flushed.load(Ordering::Acquire)
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.0.changes.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_covers_what_had_ended_before_it_began() {
        let unflushed = Unflushed::default();
        let flush = || unflushed.flushed(unflushed.now());
        assert!(!unflushed.any());
        drop(unflushed.change());
        assert!(unflushed.any());
        flush();
        assert!(!unflushed.any());
        // Under way all the time.
        let long = unflushed.change();
        flush();
        assert!(unflushed.any());
        drop(long);
        assert!(unflushed.any());
        flush();
        assert!(!unflushed.any());
        // Begun while the flush was under way.
        let seen = unflushed.now();
        drop(unflushed.change());
        unflushed.flushed(seen);
        assert!(unflushed.any());
    }
}
