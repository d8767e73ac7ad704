//! Work that a command has begun and that must not be left half done when the command is ended.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{self, Poll};
use std::time::Duration;

use crate::iothread::{Io, Scope};

/// Goes on by itself once nobody waits for it any more.
pub(super) struct Finishing<'a, T: 'static, K: 'static = ()> {
    io: &'a Io,
    /// Whose the operations are that it begins while somebody waits for it.
    scope: Scope,
    work: Option<Work<T>>,
    /// How long it goes on then, and what is kept until the host is done with it.
    limit: Option<(Duration, K)>,
}

type Work<T> = Pin<Box<dyn Future<Output = T>>>;

impl<'a, T> Finishing<'a, T> {
    /// Goes on until it ends.
    pub(super) fn new(io: &'a Io, work: Work<T>) -> Self {
        Self { io, scope: io.current_scope(), work: Some(work), limit: None }
    }
}

impl<'a, T, K> Finishing<'a, T, K> {
    /// Goes on for so long at most. Until the host has let go of everything of it, also of what was given up, `kept` is not
    /// dropped.
    pub(super) fn keeping(io: &'a Io, limit: Duration, kept: K, work: Work<T>) -> Self {
        Self { io, scope: io.current_scope(), work: Some(work), limit: Some((limit, kept)) }
    }
}

impl<T, K> Unpin for Finishing<'_, T, K> {}

impl<T, K> Future for Finishing<'_, T, K> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let Some(work) = &mut self.work else { return Poll::Pending };
        let result = task::ready!(work.as_mut().poll(cx));
        self.work = None;
        Poll::Ready(result)
    }
}

impl<T, K> Drop for Finishing<'_, T, K> {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else { return };
        let (io, before, limit) = (self.io.clone(), self.scope, self.limit.take());
        self.io.spawn(async move {
            let Some((limit, kept)) = limit else {
                work.await;
                return;
            };
            // Other disks of this thread may hang as well: they are not waited for.
            let own = io.scope();
            let done = {
                let mut work = pin!(work);
                io.at_most(limit, io.within(own, work.as_mut())).await
            };
            if done.is_none() {
                io.over(before).await;
                io.over(own).await;
            }
            drop(kept);
        });
    }
}
