//! Whether two descriptors of a file are of one open file description, which only its locks tell.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::fdset::Id;
use super::sys;

/// How long who asks waits for another who asks about the same file.
const PATIENCE: Duration = Duration::from_secs(30);

/// Files that are being asked about. Their servers may not answer: nobody else waits for them.
static ASKED: Mutex<BTreeSet<Id>> = Mutex::new(BTreeSet::new());
static CHANGED: Condvar = Condvar::new();

/// Whether two descriptors of the file `id` are of one open file description: then a lock through one is no other's for the
/// other.
pub(super) fn is_same(id: Id, one: &File, other: &File) -> io::Result<bool> {
    let _turn = Turn::take(id, PATIENCE)?;
    // A place that no other process and no image lock has.
    let place = (1 << 40) + i64::from(std::process::id());
    sys::share_byte(one, place)?;
    let seen = sys::is_byte_taken(other, place);
    sys::release_byte(one, place)?;
    Ok(!seen?)
}

/// One asks about a file at a time: another's lock, through a third descriptor, would be taken for this one's.
struct Turn(Id);

impl Turn {
    fn take(id: Id, patience: Duration) -> io::Result<Self> {
        let asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
        let others = CHANGED.wait_timeout_while(asked, patience, |asked| asked.contains(&id));
        let mut asked = others.unwrap_or_else(PoisonError::into_inner).0;
        if asked.insert(id) {
            return Ok(Self(id));
        }
        let why = "the host does not answer: the locks of its file are being asked for already";
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        ASKED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
        CHANGED.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_about_another_file_does_not_wait() {
        let (one, other) = ((u64::MAX, 1, 0), (u64::MAX, 2, 0));
        let turn = Turn::take(one, PATIENCE).unwrap();
        drop(Turn::take(other, Duration::ZERO).unwrap());
        let refused = Turn::take(one, Duration::from_millis(5)).err().unwrap().to_string();
        assert!(refused.starts_with("the host does not answer"), "{refused}");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| Turn::take(one, PATIENCE).is_ok());
            drop(turn);
            assert!(waits.join().unwrap());
        });
    }
}
