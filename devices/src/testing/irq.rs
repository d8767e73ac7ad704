//! Interrupt sinks that remember what reached them.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::irq::{IrqLine, MsiAllocator, MsiMessage, MsiVector};

/// A wire that remembers its level and how often it rose.
#[derive(Default)]
pub struct RecordingIrq {
    high: AtomicBool,
    rises: AtomicUsize,
}

impl RecordingIrq {
    /// A wire at low level.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The level now.
    pub fn is_high(&self) -> bool {
        self.high.load(Ordering::SeqCst)
    }

    /// How often the level went from low to high.
    pub fn rises(&self) -> usize {
        self.rises.load(Ordering::SeqCst)
    }
}

impl IrqLine for RecordingIrq {
    fn set_level(&self, high: bool) {
        if !self.high.swap(high, Ordering::SeqCst) && high {
            self.rises.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn pulse(&self) {
        self.set_level(true);
        self.set_level(false);
    }
}

/// What happened to the message-signalled interrupts of one allocator.
#[derive(Default)]
struct MsiLog {
    delivered: Vec<MsiMessage>,
    routes: usize,
    allocated: usize,
}

/// An MSI allocator whose vectors log the messages they deliver.
#[derive(Default)]
pub struct RecordingMsi {
    log: Arc<Mutex<MsiLog>>,
    limit: Option<usize>,
}

impl RecordingMsi {
    /// Vectors without end.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The routing table holds `limit` vectors.
    pub fn with_limit(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: Some(limit), ..Self::default() })
    }

    /// The messages delivered since the last call, in order.
    pub fn take(&self) -> Vec<MsiMessage> {
        std::mem::take(&mut lock(&self.log).delivered)
    }

    /// How many vectors were allocated.
    pub fn allocated(&self) -> usize {
        lock(&self.log).allocated
    }

    /// How often a message was routed.
    pub fn routes(&self) -> usize {
        lock(&self.log).routes
    }
}

impl MsiAllocator for RecordingMsi {
    fn allocate(&self) -> io::Result<Arc<dyn MsiVector>> {
        let mut log = lock(&self.log);
        if self.limit.is_some_and(|limit| log.allocated >= limit) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        log.allocated += 1;
        Ok(Arc::new(RecordingVector { log: self.log.clone(), message: Mutex::new(None) }))
    }
}

struct RecordingVector {
    log: Arc<Mutex<MsiLog>>,
    message: Mutex<Option<MsiMessage>>,
}

impl MsiVector for RecordingVector {
    fn route(&self, message: MsiMessage) -> io::Result<()> {
        *lock(&self.message) = Some(message);
        lock(&self.log).routes += 1;
        Ok(())
    }

    fn trigger(&self) {
        if let Some(message) = *lock(&self.message) {
            lock(&self.log).delivered.push(message);
        }
    }

    fn eventfd(&self) -> Option<&EventFd> {
        None
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
