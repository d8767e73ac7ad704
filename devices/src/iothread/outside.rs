//! What a helper thread does in the name of a command, with memory of the guest or to a device: it counts for the command as
//! operations of the ring do, also when the command's future is gone.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use super::op::Reach;
use super::{Io, Owner, Scope};
use crate::mem::SgList;

/// What work that nobody waits for any more can still do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Touches(Reach);

impl Touches {
    /// Work with the memory of `list`; `changes` what is on a device or medium.
    pub(crate) fn of(list: &SgList, changes: bool) -> Self {
        Self(match (list.is_empty() || list.is_private(), changes) {
            (false, _) => Reach::Guest,
            (true, true) => Reach::File,
            (true, false) => Reach::Nothing,
        })
    }
}

#[derive(Default)]
struct State {
    over: bool,
    waker: Option<Waker>,
}

/// Tells when the work is over.
#[derive(Clone, Default)]
struct Course(Arc<Mutex<State>>);

impl Course {
    fn is_over(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).over
    }

    async fn over(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if state.over {
                return Poll::Ready(());
            }
            state.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// Goes with the work: it has been done, or will never begin.
struct End(Course);

impl Drop for End {
    fn drop(&mut self) {
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.over = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Goes with the future: where the work goes on without it, the scope has one abandoned operation until it is over.
struct Watched<'a> {
    io: &'a Io,
    scope: Scope,
    touches: Touches,
    course: Course,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if self.course.is_over() {
            return;
        }
        let (io, scope, reach, course) = (self.io.clone(), self.scope, self.touches.0, self.course.clone());
        io.core.ring.borrow_mut().abandoned_outside(scope.number(), reach);
        self.io.spawn(async move {
            course.over().await;
            let wakers = io.core.ring.borrow_mut().over_outside(scope.number(), reach);
            wakers.into_iter().for_each(Waker::wake);
        });
    }
}

impl Io {
    /// As [`Io::blocking_on`], for work that `touches` something in the name of the command that runs now: who ends the
    /// command waits for the work as for an operation of the ring. What the work needs moves into it, memory before all.
    pub(crate) async fn blocking_for<T: Send + 'static>(
        &self,
        owner: &Owner,
        touches: Touches,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::io::Result<T> {
        let course = Course::default();
        let end = End(course.clone());
        // Dropped after the future below: by then work that has not begun never will.
        let _watched = Watched { io: self, scope: self.current_scope(), touches, course };
        self.blocking_on(owner, move || {
            let _end = end;
            work()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::testing::on_io_thread;

    /// A scope whose future is dropped while its work hangs on the helper thread.
    #[test]
    fn work_that_goes_on_counts_for_its_scope() {
        on_io_thread(|io| async move {
            let (owner, scope, other) = (Owner::default(), io.scope(), io.scope());
            let (go, gone) = mpsc::channel::<()>();
            let (begun, started) = mpsc::channel();
            {
                let work = io.blocking_for(&owner, Touches(Reach::File), move || {
                    begun.send(()).unwrap();
                    gone.recv().unwrap();
                });
                let mut work = pin!(work);
                let mut work = pin!(io.within(scope, work.as_mut()));
                assert!(io.at_most(Duration::from_millis(20), work.as_mut()).await.is_none());
                started.recv().unwrap();
            }
            assert!(io.is_settled(other) && !io.is_settled(scope) && !io.is_over(scope));
            io.released(scope).await;
            assert!(io.at_most(Duration::from_millis(20), io.settled(scope)).await.is_none());
            go.send(()).unwrap();
            io.quiesce().await;
            assert!(io.is_over(scope));
        });
    }

    /// Work behind other work of its owner never begins when its future is dropped, and is nothing to wait for.
    #[test]
    fn work_that_never_began_is_nothing() {
        on_io_thread(|io| async move {
            let owner = Owner::default();
            let (go, gone) = mpsc::channel::<()>();
            let first = io.blocking_for(&owner, Touches(Reach::Nothing), move || gone.recv().unwrap());
            let mut first = pin!(first);
            assert!(io.at_most(Duration::from_millis(20), first.as_mut()).await.is_none());
            let scope = io.scope();
            {
                let mut second = pin!(io.blocking_for(&owner, Touches(Reach::Guest), || panic!("never")));
                let mut second = pin!(io.within(scope, second.as_mut()));
                assert!(io.at_most(Duration::from_millis(20), second.as_mut()).await.is_none());
            }
            assert!(io.is_over(scope));
            go.send(()).unwrap();
            first.await.unwrap();
            assert_eq!(io.blocking_for(&owner, Touches(Reach::Nothing), || 7).await.unwrap(), 7);
        });
    }

    #[test]
    fn what_is_touched_depends_on_memory_and_purpose() {
        let private = SgList::host(512, 512).unwrap();
        assert_eq!(Touches::of(&private, false), Touches(Reach::Nothing));
        assert_eq!(Touches::of(&private, true), Touches(Reach::File));
        assert_eq!(Touches::of(&SgList::empty(), true), Touches(Reach::File));
    }
}
