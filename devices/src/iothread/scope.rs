//! Whose an operation is: a command that is ended waits for what it has begun itself, and for nobody else's.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use super::Io;
use super::executor::Core;
use super::op::Reach;

/// The operations that belong together, such as those of one command. A number: nothing is to be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope(u64);

impl Scope {
    pub(super) fn number(self) -> u64 {
        self.0
    }
}

/// A future whose operations are in a scope.
pub struct Within<'a, F> {
    core: &'a Core,
    scope: Scope,
    work: Pin<&'a mut F>,
}

impl Io {
    /// A scope without operations yet, of this thread.
    pub fn scope(&self) -> Scope {
        // Zero is for what belongs to nobody. 64 bits do not wrap.
        let next = self.core.scopes.get().wrapping_add(1);
        self.core.scopes.set(next);
        Scope(next)
    }

    /// The scope of the work that runs now.
    pub fn current_scope(&self) -> Scope {
        Scope(self.core.scope.get())
    }

    /// Does `work`, with all operations that it begins itself in `scope`; those of tasks that it spawns are not.
    pub fn within<'a, F: Future>(&'a self, scope: Scope, work: Pin<&'a mut F>) -> Within<'a, F> {
        Within { core: &self.core, scope, work }
    }

    /// Waits until no operation of `scope` whose future was dropped can reach memory of the guest any more. A host that
    /// does not answer is waited for without limit.
    pub async fn released(&self, scope: Scope) {
        self.quiet(scope, Reach::Guest).await;
    }

    /// Whether none of those can change a file any more: what is written now is not overtaken by them.
    pub fn is_settled(&self, scope: Scope) -> bool {
        self.core.ring.borrow().is_quiet(Some(scope.0), Reach::File)
    }

    /// Waits until that is so.
    pub async fn settled(&self, scope: Scope) {
        self.quiet(scope, Reach::File).await;
    }

    /// Whether the kernel is done with all of those, whatever they could do.
    pub fn is_over(&self, scope: Scope) -> bool {
        self.core.ring.borrow().is_quiet(Some(scope.0), Reach::Nothing)
    }

    /// Waits until that is so.
    pub async fn over(&self, scope: Scope) {
        self.quiet(scope, Reach::Nothing).await;
    }

    async fn quiet(&self, scope: Scope, least: Reach) {
        poll_fn(|cx| self.core.ring.borrow_mut().poll_quiet(Some(scope.0), least, cx.waker())).await;
    }
}

impl<F: Future> Future for Within<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let before = self.core.scope.replace(self.scope.0);
        let polled = self.work.as_mut().poll(cx);
        self.core.scope.set(before);
        polled
    }
}
