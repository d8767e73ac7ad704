//! A node of sg takes so many commands of one open file. Who comes when that is used up waits until one has ended, as all do, instead of
//! hearing that there is no room: most commands that the kernel filters elsewhere go by sg, and a guest sends many at once.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
pub(super) struct Places {
    free: Mutex<usize>,
    freed: Condvar,
}

/// One of them, until it is dropped.
struct Place<'a>(&'a Places);

impl Places {
    pub(super) fn new(count: usize) -> Self {
        Self { free: Mutex::new(count), freed: Condvar::new() }
    }

    /// Does something in one of the places, which is waited for on the calling thread.
    pub(super) fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        let mut free =
            self.freed.wait_while(self.lock(), |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free = free.saturating_sub(1);
        drop(free);
        let _place = Place(self);
        work()
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.lock() += 1;
        self.0.freed.notify_one();
    }
}
