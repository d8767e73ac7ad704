//! Whether a device may be another one than it was: the array may have put another disk behind its number. Until somebody has asked it who
//! it is, nothing is sent there, whatever waits for it already.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::BUSY;
use super::status::Verdict;
use crate::scsi::TransportFault;

/// How long commands end with BUSY; after that whoever asks it has most likely ended, and the path is as good as lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// Of all that are or were behind a unit.
#[derive(Default)]
pub(super) struct Doubt {
    is: AtomicBool,
    since: Mutex<Option<Instant>>,
}

impl Doubt {
    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self) {
        self.since().get_or_insert_with(Instant::now);
        self.is.store(true, Ordering::SeqCst);
    }

    /// Whether there was one.
    pub(super) fn end(&self) -> bool {
        *self.since() = None;
        self.is.swap(false, Ordering::SeqCst)
    }

    pub(super) fn is(&self) -> bool {
        self.is.load(Ordering::SeqCst)
    }

    /// How commands end that are not sent.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        if !self.is() {
            return None;
        }
        let is_over = self.since().is_some_and(|since| since.elapsed() >= PATIENCE);
        Some(if is_over { Verdict::Fault(TransportFault::PathLost) } else { Verdict::Failed(BUSY) })
    }

    /// It has begun so much sooner.
    #[cfg(test)]
    pub(super) fn age(&self) {
        let mut since = self.since();
        *since = since.and_then(|since| since.checked_sub(PATIENCE));
    }
}
