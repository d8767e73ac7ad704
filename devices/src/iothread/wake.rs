//! Waking tasks: cheap on their own thread, through an inbox from others.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Wake;

use vmm_sys_util::eventfd::EventFd;

use super::Io;
use super::executor;

/// Starts something on the I/O thread.
pub(super) type Start = Box<dyn FnOnce(&Io) + Send>;

/// What other threads leave for an I/O thread.
#[derive(Default)]
pub(super) struct Inbox {
    pub(super) wakes: Vec<u32>,
    pub(super) starts: Vec<Start>,
    pub(super) stop: bool,
    closed: bool,
}

/// The part of an I/O thread that others reach.
///
/// `filled` and `asleep` are a pair: a sender fills, then looks whether the thread sleeps; the thread announces
/// its sleep, then looks whether the inbox was filled. All four accesses are sequentially consistent, so at
/// least one of the two sees the other and no message waits for a sleeping thread.
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    filled: AtomicBool,
    asleep: AtomicBool,
    pub(super) bell: Arc<EventFd>,
}

impl Shared {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            inbox: Mutex::default(),
            filled: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            bell: Arc::new(EventFd::new(libc::EFD_CLOEXEC)?),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a message; dropped when the thread has ended.
    pub(super) fn post(&self, fill: impl FnOnce(&mut Inbox)) {
        let mut inbox = self.lock();
        if inbox.closed {
            return;
        }
        fill(&mut inbox);
        drop(inbox);
        self.filled.store(true, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            // Fails only when the counter is full, and then the thread wakes anyway.
            let _ = self.bell.write(1);
        }
    }

    /// Announces that the thread is about to sleep; false when there is a message to take first.
    pub(super) fn fall_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        !self.filled.load(Ordering::SeqCst)
    }

    /// Says that the thread looks at its inbox again, without a bell.
    pub(super) fn wake_up(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Whether there is a message. A hint: [`Shared::take`] tells.
    pub(super) fn is_filled(&self) -> bool {
        self.filled.load(Ordering::Relaxed)
    }

    /// Exchanges the inbox with an empty one when there is something in it.
    pub(super) fn take(&self, empty: &mut Inbox) -> bool {
        if !self.filled.swap(false, Ordering::SeqCst) {
            return false;
        }
        std::mem::swap(&mut *self.lock(), empty);
        true
    }

    /// Refuses further messages and gives back those not taken.
    pub(super) fn close(&self) -> Inbox {
        std::mem::replace(&mut *self.lock(), Inbox { closed: true, ..Inbox::default() })
    }
}

/// Wakes one task slot. Made once per slot and reused.
pub(super) struct TaskWaker {
    shared: Arc<Shared>,
    index: u32,
    queued: AtomicBool,
}

impl TaskWaker {
    pub(super) fn new(shared: Arc<Shared>, index: u32) -> Self {
        Self { shared, index, queued: AtomicBool::new(false) }
    }

    /// Says that the task is queued; false when it was already.
    pub(super) fn mark(&self) -> bool {
        !self.queued.swap(true, Ordering::AcqRel)
    }

    /// To be called right before the task is polled: wakes from here on queue it again.
    pub(super) fn clear(&self) {
        self.queued.swap(false, Ordering::AcqRel);
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.mark() {
            return;
        }
        if !executor::queue_here(&self.shared, self.index) {
            self.shared.post(|inbox| inbox.wakes.push(self.index));
        }
    }
}
