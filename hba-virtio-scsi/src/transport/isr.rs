//! Interrupts: messages where the driver enabled them, else the wire with the ISR status register (4.1.4.5).

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use devices::irq::MsiVector;

use crate::spec::{NO_VECTOR, isr};

/// How interrupts leave a function.
pub(crate) trait Signal: Send + Sync {
    /// Whether MSI-X is enabled.
    fn has_messages(&self) -> bool;
    /// Sends the message of `vector`, or raises the wire when MSI-X is not enabled.
    fn notify(&self, vector: u16);
    /// Takes what the message of `vector` needs; false when that is not to be had.
    fn reserve(&self, vector: u16) -> bool;
    /// Lowers the wire.
    fn deassert(&self);
    /// What delivers the message of `vector` past this process; `None` while only [`notify`](Self::notify) does.
    fn direct(&self, vector: u16) -> Option<Arc<dyn MsiVector>>;
}

/// The ISR status register and what raises it.
#[derive(Default)]
pub(super) struct Isr {
    signal: OnceLock<Box<dyn Signal>>,
    /// Held while the wire changes, so that register and wire agree.
    status: Mutex<u8>,
}

impl Isr {
    pub(super) fn connect(&self, signal: Box<dyn Signal>) {
        // A second signal would be a defect of the caller; the first stays.
        let _ = self.signal.set(signal);
    }

    /// Whether MSI-X is enabled.
    pub(super) fn has_messages(&self) -> bool {
        self.signal.get().is_some_and(|signal| signal.has_messages())
    }

    /// The vector that an event is mapped to when the driver wants `vector`: NO_VECTOR when there is nothing to map it to, which
    /// the driver reads back (4.1.5.1.2.1).
    pub(super) fn map(&self, vector: u16, vectors: u16) -> u16 {
        let has = vector < vectors && self.signal.get().is_none_or(|signal| signal.reserve(vector));
        if has { vector } else { NO_VECTOR }
    }

    /// What delivers queue interrupts of `vector` past this process, at the moment.
    pub(super) fn direct(&self, vector: u16) -> Option<Arc<dyn MsiVector>> {
        self.signal.get()?.direct(vector)
    }

    /// A queue interrupt. The status bit is for drivers without MSI-X only (4.1.4.5.1).
    pub(super) fn queue(&self, vector: u16) {
        let Some(signal) = self.signal.get() else { return };
        if signal.has_messages() {
            if vector != NO_VECTOR {
                signal.notify(vector);
            }
            return;
        }
        let mut status = self.lock();
        *status |= isr::QUEUE;
        signal.notify(NO_VECTOR);
    }

    /// A configuration interrupt. The status bit is set in any case (4.1.4.5.1).
    pub(super) fn config(&self, vector: u16) {
        let Some(signal) = self.signal.get() else { return };
        let mut status = self.lock();
        *status |= isr::CONFIG;
        if !signal.has_messages() || vector != NO_VECTOR {
            signal.notify(vector);
        }
    }

    /// Reads and clears the register, and lowers the wire.
    pub(super) fn take(&self) -> u8 {
        let mut status = self.lock();
        if let Some(signal) = self.signal.get() {
            signal.deassert();
        }
        std::mem::take(&mut *status)
    }

    fn lock(&self) -> MutexGuard<'_, u8> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
