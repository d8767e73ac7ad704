//! What a helper thread does in the name of a command, with memory of the guest or to a device: it counts for the command as
//! operations of the ring do, also when the command's future is gone.

use std::task::Waker;

use super::op::Reach;
use super::{Io, Scope};
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

impl Io {
    /// Work of `scope` goes on although nobody waits for it any more: the scope has one abandoned operation until it is `over`.
    pub(super) fn left_outside(
        &self,
        scope: Scope,
        touches: Touches,
        over: impl Future<Output = ()> + 'static,
    ) {
        let (io, reach) = (self.clone(), touches.0);
        io.core.ring.borrow_mut().abandoned_outside(scope.number(), reach);
        self.spawn(async move {
            over.await;
            let wakers = io.core.ring.borrow_mut().over_outside(scope.number(), reach);
            wakers.into_iter().for_each(Waker::wake);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::iothread::{Errands, Owner, Work};
    use crate::testing::on_io_thread;

    struct Does(Box<dyn FnMut() + Send>);

    impl Work for Does {
        type Result = ();

        fn run(&mut self) {
            (self.0)();
        }
    }

    fn does(work: impl FnMut() + Send + 'static) -> Does {
        Does(Box::new(work))
    }

    /// A scope whose future is dropped while its work hangs on the helper thread.
    #[test]
    fn work_that_goes_on_counts_for_its_scope() {
        on_io_thread(|io| async move {
            let (errands, scope, other) = (Errands::new(Owner::default()), io.scope(), io.scope());
            let (go, gone) = mpsc::channel::<()>();
            let (begun, started) = mpsc::channel();
            {
                let work = async {
                    let hangs = does(move || {
                        begun.send(()).unwrap();
                        gone.recv().unwrap();
                    });
                    errands.run(&io, Touches(Reach::File), hangs).await
                };
                let mut work = pin!(work);
                let mut work = pin!(io.within(scope, work.as_mut()));
                assert!(io.at_most(Duration::from_millis(20), work.as_mut()).await.is_none());
                started.recv().unwrap();
            }
            assert_eq!(errands.owner().orphans(), 1);
            assert!(io.is_settled(other) && !io.is_settled(scope) && !io.is_over(scope));
            io.released(scope).await;
            assert!(io.at_most(Duration::from_millis(20), io.settled(scope)).await.is_none());
            go.send(()).unwrap();
            io.quiesce().await;
            assert!(io.is_over(scope));
            assert_eq!(errands.owner().orphans(), 0);
        });
    }

    /// Work behind other work of its owner never begins when its future is dropped, and is nothing to wait for.
    #[test]
    fn work_that_never_began_is_nothing() {
        on_io_thread(|io| async move {
            let errands = Errands::new(Owner::default());
            let (go, gone) = mpsc::channel::<()>();
            let hangs = does(move || gone.recv().unwrap());
            let mut first = pin!(errands.run(&io, Touches(Reach::Nothing), hangs));
            assert!(io.at_most(Duration::from_millis(20), first.as_mut()).await.is_none());
            let scope = io.scope();
            {
                let never = async { errands.run(&io, Touches(Reach::Guest), does(|| panic!("never"))).await };
                let mut second = pin!(never);
                let mut second = pin!(io.within(scope, second.as_mut()));
                assert!(io.at_most(Duration::from_millis(20), second.as_mut()).await.is_none());
            }
            assert!(io.is_over(scope));
            go.send(()).unwrap();
            first.await.unwrap();
            assert!(errands.run(&io, Touches(Reach::Nothing), does(|| ())).await.is_ok());
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
