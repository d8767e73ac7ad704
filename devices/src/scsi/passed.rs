//! How commands ended in the words of a device that is passed through.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Sense, Status, TransportFault};

/// What is passed on as it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    /// What the device said, and how many bytes were moved each way.
    Reply { status: Status, sense: Option<Box<Sense>>, data_out: u64, data_in: u64 },
    /// The device said nothing.
    Fault(TransportFault),
}

/// Such words on their way from the unit to the nexus, which fetches them at once. The outcome of a command has no room for
/// them: nearly all commands need none.
#[derive(Debug, Default)]
pub(crate) struct Words(Mutex<(u32, BTreeMap<u32, Passed>)>);

impl Words {
    /// Leaves them; gives their number.
    pub(crate) fn leave(&self, passed: Passed) -> u32 {
        let mut words = self.lock();
        let (last, left) = &mut *words;
        *last = last.wrapping_add(1);
        left.insert(*last, passed);
        *last
    }

    /// Fetches them.
    pub(crate) fn take(&self, number: u32) -> Option<Passed> {
        self.lock().1.remove(&number)
    }

    fn lock(&self) -> MutexGuard<'_, (u32, BTreeMap<u32, Passed>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_fetched_once() {
        let words = Words::default();
        let first = words.leave(Passed::Fault(TransportFault::Reset));
        let second = words.leave(Passed::Fault(TransportFault::Busy));
        assert_eq!(words.take(second), Some(Passed::Fault(TransportFault::Busy)));
        assert_eq!(words.take(second), None);
        assert_eq!(words.take(first), Some(Passed::Fault(TransportFault::Reset)));
        assert!(words.lock().1.is_empty());
    }
}
