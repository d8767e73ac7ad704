//! Doorbells and other events in the ring.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::Io;
use super::kernel::may_have;
use super::op::Op;
use super::slots::Key;

/// An event that is watched without a submission for each signal: for doorbells. It must not block (`EFD_NONBLOCK`).
///
/// An event that was signalled before the watch began counts as signalled once. Nobody else may read its count. Dropping
/// the watch ends it.
pub struct Watch {
    io: Io,
    event: Arc<EventFd>,
    armed: Option<Key>,
    /// Linux 5.13 and newer report every signal to one submission, which leaves the event's count alone. Before that there is a
    /// submission for each, and the count is taken once it is done: not by the kernel, whose result a dropped future would lose.
    multishot: bool,
}

impl Watch {
    pub(super) fn new(io: &Io, event: &Arc<EventFd>) -> Self {
        Self { io: io.clone(), event: event.clone(), armed: None, multishot: may_have((5, 13)) }
    }

    /// As on a kernel before 5.13.
    #[cfg(test)]
    pub(super) fn plain(io: &Io, event: &Arc<EventFd>) -> Self {
        let mut watch = Self::new(io, event);
        watch.multishot = false;
        watch
    }

    /// Waits until the event was signalled since the last return; several signals may be reported as one.
    ///
    /// Dropping the future loses no signal.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let (event, multishot) = (&self.event, self.multishot);
            let core = &self.io.core;
            let arm = || core.start(Op::Watch { event: event.clone(), multishot });
            let key = *self.armed.get_or_insert_with(arm);
            if poll_fn(|cx| core.ring.borrow_mut().poll_watch(key, cx.waker())).await.is_some() {
                return Ok(());
            }
            // It has ended: there is a signal, or the kernel cannot do this at all, or it ran out of room for completions.
            self.armed = None;
            let ended = poll_fn(|cx| core.ring.borrow_mut().poll(key, cx.waker())).await;
            match ended.result {
                error if error == -libc::EINVAL && multishot => self.multishot = false,
                error if error < 0 => return Err(io::Error::from_raw_os_error(-error)),
                _ => {
                    if !multishot {
                        // It fails when nothing is to be taken: then this is one signal too many, which does no harm.
                        let _ = event.read();
                    }
                    return Ok(());
                }
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
