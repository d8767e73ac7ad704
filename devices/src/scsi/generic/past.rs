//! What a unit had, until it is closed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::threads::{self, Kind};

/// How soon it is looked whether the commands of one that is gone have ended, first and later.
const CLOSING: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));

/// Devices that are no more, until the host has ended their commands. The last close of a node may take as long as a command, and is for
/// a thread of its own: neither an I/O thread waits for it, nor who takes other devices that are back.
pub(super) struct Past<T> {
    devices: Vec<Arc<T>>,
    /// The thread is there.
    closing: bool,
}

impl<T> Default for Past<T> {
    fn default() -> Self {
        Self { devices: Vec::new(), closing: false }
    }
}

impl<T: Send + Sync + 'static> Past<T> {
    fn lock(past: &Mutex<Self>) -> MutexGuard<'_, Self> {
        past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(past: &Arc<Mutex<Self>>, device: Arc<T>) {
        let of_thread = past.clone();
        let mut state = Self::lock(past);
        state.devices.push(device);
        if !state.closing {
            let close = move || Self::close(&of_thread);
            // Without a thread they go with the next one, or with the unit.
            state.closing = threads::spawn(Kind::Returns, "return-close", close).is_ok();
        }
    }

    fn close(past: &Mutex<Self>) {
        let (mut pause, longest) = CLOSING;
        loop {
            let mut state = Self::lock(past);
            let over: Vec<_> =
                state.devices.extract_if(.., |device| Arc::strong_count(device) == 1).collect();
            state.closing = !(over.is_empty() && state.devices.is_empty());
            match (state.closing, over.is_empty()) {
                (false, _) => return,
                (true, false) => drop((state, over)),
                (true, true) => {
                    drop(state);
                    std::thread::sleep(pause);
                    pause = longest.min(pause * 2);
                }
            }
        }
    }
}
