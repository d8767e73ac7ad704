//! Commands that a device works on although nobody waits for them any more: they were ended, or whoever asked has gone. Linux has
//! no way to abort them.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a command waits for what is no more before it hears BUSY, counted from when that was given up.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);

// What has become of a command; changes with the state locked.
const LEFT: u8 = 1;
const OVER: u8 = 2;

#[derive(Debug)]
struct State {
    count: usize,
    /// When the last one was given up.
    since: Instant,
}

/// How many there are.
#[derive(Clone, Debug)]
pub(super) struct Orphans(Arc<Mutex<State>>);

/// Goes with the work on a command: it has been done, or will never begin.
pub(super) struct Work(Command);

/// Goes with who waits for it.
pub(super) struct Wait(Command);

struct Command {
    orphans: Orphans,
    fate: Arc<AtomicU8>,
}

impl Orphans {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State { count: 0, since: Instant::now() })))
    }

    /// A command is handed over. The second part is dropped before the first when it is given up.
    pub(super) fn hand_over(&self) -> (Wait, Work) {
        let fate = Arc::new(AtomicU8::new(0));
        let command = || Command { orphans: self.clone(), fate: fate.clone() };
        (Wait(command()), Work(command()))
    }

    /// Whether there are any.
    pub(super) fn exist(&self) -> bool {
        self.lock().count > 0
    }

    /// If there are `most` or more: how long one who comes has to wait before he hears BUSY.
    pub(super) fn hold_up(&self, most: usize) -> Option<Duration> {
        let state = self.lock();
        (state.count >= most).then(|| PATIENCE.saturating_sub(state.since.elapsed()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut state = self.0.orphans.lock();
        if self.0.fate.swap(LEFT, Ordering::Relaxed) != OVER {
            (state.count, state.since) = (state.count + 1, Instant::now());
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let mut state = self.0.orphans.lock();
        if self.0.fate.swap(OVER, Ordering::Relaxed) == LEFT {
            state.count -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_counts_until_it_is_over() {
        let orphans = Orphans::new();
        let (wait, work) = orphans.hand_over();
        drop((work, wait));
        assert!(!orphans.exist(), "it was over, or never began");
        let (first, second) = (orphans.hand_over(), orphans.hand_over());
        assert!(!orphans.exist());
        drop(first.0);
        drop(second.0);
        assert!(orphans.hold_up(1).is_some_and(|left| left <= PATIENCE));
        assert!(orphans.hold_up(2).is_some() && orphans.hold_up(3).is_none());
        drop(second.1);
        assert!(orphans.exist() && orphans.hold_up(2).is_none());
        drop(first.1);
        assert!(!orphans.exist());
    }
}
