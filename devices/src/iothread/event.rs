//! Doorbells and other events in the ring.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::Io;
use super::op::Op;
use super::ring::Key;

/// An event that is watched without a submission for each signal: for doorbells.
///
/// The event's count is left alone, so an event that was signalled before the watch began counts as signalled
/// once. Dropping the watch ends it.
pub struct Watch {
    io: Io,
    event: Arc<EventFd>,
    armed: Option<Key>,
    /// Linux 5.13 and newer report every signal to one submission.
    multishot: bool,
}

impl Watch {
    pub(super) fn new(io: &Io, event: &Arc<EventFd>) -> Self {
        Self { io: io.clone(), event: event.clone(), armed: None, multishot: true }
    }

    /// Waits until the event was signalled since the last return; several signals may be reported as one.
    ///
    /// Dropping the future loses no signal.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            if !self.multishot {
                return self.io.wait(&self.event).await.map(drop);
            }
            let key = match self.armed {
                Some(key) => key,
                None => *self.armed.insert(self.io.core.start(Op::Watch(self.event.clone()))),
            };
            let core = &self.io.core;
            if poll_fn(|cx| core.ring.borrow_mut().poll_watch(key, cx.waker())).await.is_some() {
                return Ok(());
            }
            // The kernel ended the watch: it cannot do this at all, or it ran out of room for completions.
            self.armed = None;
            let ended = poll_fn(|cx| core.ring.borrow_mut().poll(key, cx.waker())).await;
            match ended.result {
                error if error == -libc::EINVAL => self.multishot = false,
                error if error < 0 => return Err(io::Error::from_raw_os_error(-error)),
                _ => return Ok(()),
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(key) = self.armed {
            self.io.core.abandon(key);
        }
    }
}
