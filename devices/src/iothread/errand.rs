//! What is done on a helper thread while a future waits for it.
//!
//! An [`Errand`] is where both meet: the helper takes the work from it and leaves work and result there. Work of the same kind that is done
//! again and again, such as a device's commands, has [`Errands`], which are used again: then nothing is allocated, and what the work has
//! goes back to the I/O thread that it is of.

use std::future::{Future, poll_fn};
use std::io;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use super::blocking::{AGAIN, Job, Owner, lock};
use super::outside::Touches;
use super::{Io, Scope, UNTRIED_PAUSE, UNTRIED_TRIES};

/// So many errands are kept for the next ones.
const SPARE: usize = 256;

/// Work that may block.
pub(crate) trait Work: Send + 'static {
    /// What it ends with.
    type Result: Send + 'static;

    /// Does it, once.
    fn run(&mut self) -> Self::Result;
}

/// A closure that is work.
struct Call<F, T>(Option<F>, PhantomData<fn() -> T>);

impl<T: Send + 'static, F: FnOnce() -> T + Send + 'static> Work for Call<F, T> {
    type Result = io::Result<T>;

    fn run(&mut self) -> io::Result<T> {
        self.0.take().map(|call| call()).ok_or_else(unfinished)
    }
}

fn unfinished() -> io::Error {
    io::Error::other("the work of a helper thread did not finish")
}

struct State<W: Work> {
    /// Before the helper has begun, and when it is done.
    work: Option<W>,
    result: Option<io::Result<W::Result>>,
    waker: Option<Waker>,
    /// Nobody waits for the result any more.
    orphan: bool,
    /// And it has ended since.
    over: bool,
}

struct Errand<W: Work>(Mutex<State<W>>);

impl<W: Work> Errand<W> {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            work: None,
            result: None,
            waker: None,
            orphan: false,
            over: false,
        })))
    }

    fn poll_done(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.0);
        if state.result.is_some() {
            return Poll::Ready(());
        }
        match &state.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => state.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Waits until work that nobody wants any more has ended, and let go of what it had.
    async fn over(&self) {
        poll_fn(|cx| {
            let mut state = lock(&self.0);
            if state.over {
                return Poll::Ready(());
            }
            state.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl<W: Work> Job for Errand<W> {
    fn run(&self, owner: &Owner) {
        let Some(mut work) = lock(&self.0).work.take() else { return };
        let result = catch_unwind(AssertUnwindSafe(|| work.run())).map_err(|_| unfinished());
        let mut state = lock(&self.0);
        if state.orphan {
            drop(state);
            // A panic of what it has shall not end the helper, which is counted as the work is.
            let _ = catch_unwind(AssertUnwindSafe(|| drop((work, result))));
            owner.remove_orphan();
            state = lock(&self.0);
            state.over = true;
        } else {
            (state.work, state.result) = (Some(work), Some(result));
        }
        let waker = state.waker.take();
        drop(state);
        // From here on it may have been given the next work.
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The work of an owner that is all of one kind.
pub(crate) struct Errands<W: Work> {
    owner: Owner,
    spare: Mutex<Vec<Arc<Errand<W>>>>,
}

impl<W: Work> Errands<W> {
    /// Those of `owner`.
    pub(crate) fn new(owner: Owner) -> Self {
        Self { owner, spare: Mutex::default() }
    }

    /// Whose they are.
    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Has `work` done on a helper thread, as [`Io::blocking_on`] does, in the name of the command that runs now: who ends the command
    /// waits for work that `touches` something as for an operation of the ring. What it needs moves into it, memory before all. The result
    /// comes with the work itself.
    pub(crate) fn run<'a>(&'a self, io: &'a Io, touches: Touches, work: W) -> Doing<'a, W> {
        let errand = lock(&self.spare).pop().unwrap_or_else(Errand::new);
        let mut running = Doing::start(io, &self.owner, errand, work);
        (running.touches, running.home) = (Some(touches), Some(self));
        running
    }
}

/// Work under way: the future of its end.
pub(crate) struct Doing<'a, W: Work> {
    io: &'a Io,
    owner: &'a Owner,
    /// `None` when it is over.
    errand: Option<Arc<Errand<W>>>,
    /// Of the job.
    number: u64,
    /// While no helper comes to it; or why it did not begin.
    search: Option<Pin<Box<dyn Future<Output = io::Result<()>> + 'a>>>,
    scope: Scope,
    /// What it can still do when nobody waits for it any more, if that counts for the scope.
    touches: Option<Touches>,
    /// Where the errand goes back to.
    home: Option<&'a Errands<W>>,
}

/// Looks for a helper for job `number` until there is one, or the work is done all the same.
async fn search<W: Work>(io: &Io, owner: &Owner, number: u64, errand: Arc<Errand<W>>) -> io::Result<()> {
    let mut tries = 0;
    loop {
        // Threads that others have may become free; where there is none at all, it is as with operations of the kernel.
        let pause = if tries < UNTRIED_TRIES { UNTRIED_PAUSE } else { AGAIN };
        if io.at_most(pause, poll_fn(|cx| errand.poll_done(cx))).await.is_some() {
            return Ok(());
        }
        tries += 1;
        if io.core.helpers.look_again(owner, number, tries >= UNTRIED_TRIES)? {
            return Ok(());
        }
    }
}

impl<'a, W: Work> Doing<'a, W> {
    fn start(io: &'a Io, owner: &'a Owner, errand: Arc<Errand<W>>, work: W) -> Self {
        lock(&errand.0).work = Some(work);
        let scope = io.current_scope();
        let mut running =
            Self { io, owner, errand: None, number: 0, search: None, scope, touches: None, home: None };
        match io.core.give(owner, errand.clone()) {
            Ok((number, served)) => {
                running.number = number;
                if !served {
                    running.search = Some(Box::pin(search(io, owner, number, errand.clone())));
                }
                running.errand = Some(errand);
            }
            Err(e) => running.search = Some(Box::pin(std::future::ready(Err(e)))),
        }
        running
    }

    fn put_back(&self, errand: Arc<Errand<W>>) {
        if let Some(home) = self.home {
            let mut spare = lock(&home.spare);
            if spare.len() < SPARE {
                spare.push(errand);
            }
        }
    }
}

impl<W: Work> Future for Doing<'_, W> {
    type Output = io::Result<(W, W::Result)>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(search) = &mut self.search {
            ready!(search.as_mut().poll(cx))?;
            self.search = None;
        }
        let Some(errand) = &self.errand else { return Poll::Pending };
        ready!(errand.poll_done(cx));
        let Some(errand) = self.errand.take() else { return Poll::Pending };
        let mut state = lock(&errand.0);
        let (work, result) = (state.work.take(), state.result.take());
        drop(state);
        self.put_back(errand);
        let (Some(work), Some(result)) = (work, result) else { return Poll::Ready(Err(unfinished())) };
        Poll::Ready(result.map(|result| (work, result)))
    }
}

impl<W: Work> Drop for Doing<'_, W> {
    /// What has not begun never will. What has goes on without anyone, and is an orphan of its owner.
    fn drop(&mut self) {
        let Some(errand) = self.errand.take() else { return };
        let mut line = self.owner.lock();
        let withdrawn = line.withdraw(self.number);
        let mut state = lock(&errand.0);
        let (work, result, waker) = (state.work.take(), state.result.take(), state.waker.take());
        let (over, again) = (work.is_some(), withdrawn || result.is_some());
        if !over {
            state.orphan = true;
            self.owner.add_orphan(&mut line);
        }
        drop(state);
        drop(line);
        drop((work, result, waker));
        if again {
            self.put_back(errand);
        } else if !over && let Some(touches) = self.touches {
            self.io.left_outside(self.scope, touches, async move { errand.over().await });
        }
    }
}

impl Io {
    /// Runs `work`, which may block, on a helper thread, after what `owner` has to do already and beside all that others
    /// have. When the future is dropped, `work` is dropped too if it has not begun; else it goes on.
    pub async fn blocking_on<T: Send + 'static>(
        &self,
        owner: &Owner,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        Doing::start(self, owner, Errand::new(), Call(Some(work), PhantomData)).await?.1
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc::{self, Receiver, Sender};
    use std::time::Duration;

    use super::*;
    use crate::mem::SgList;
    use crate::testing::{allocations, on_io_thread};

    /// Waits to be released, if it is to; and what it has meanwhile.
    struct Waits(Option<(Sender<()>, Receiver<()>)>, Option<Arc<()>>);

    impl Work for Waits {
        type Result = u64;

        fn run(&mut self) -> u64 {
            let Self(release, _has) = self;
            if let Some((begun, release)) = release {
                let _ = (begun.send(()), release.recv());
            }
            allocations()
        }
    }

    fn touches() -> Touches {
        Touches::of(&SgList::empty(), false)
    }

    #[test]
    fn what_was_used_is_used_again() {
        on_io_thread(|io| async move {
            let errands = Errands::new(Owner::default());
            let mut helper = 0;
            let mut before = 0;
            for round in 0..200 {
                if round == 100 {
                    before = allocations();
                }
                let (work, count) = errands.run(&io, touches(), Waits(None, None)).await.unwrap();
                drop(work);
                assert!(round < 100 || count == helper, "the helper allocates");
                helper = count;
                // Before it is idle another thread is started for the next one.
                while io.core.helpers.idle() == 0 {
                    io.give_way().await;
                }
            }
            assert_eq!(allocations() - before, 0);
            assert_eq!(lock(&errands.spare).len(), 1);
        });
    }

    /// It would be taken for the one after it.
    #[test]
    fn what_goes_on_alone_is_not_used_again() {
        on_io_thread(|io| async move {
            let (errands, claim) = (Errands::new(Owner::with_helpers(2)), Arc::new(()));
            let ((begin, begun), (release, released)) = (mpsc::channel(), mpsc::channel());
            {
                let hangs = Waits(Some((begin.clone(), released)), Some(claim.clone()));
                let mut hangs = pin!(errands.run(&io, touches(), hangs));
                while begun.try_recv().is_err() {
                    assert!(io.at_most(Duration::from_millis(1), hangs.as_mut()).await.is_none());
                }
            }
            assert_eq!((lock(&errands.spare).len(), errands.owner().orphans()), (0, 1));
            errands.run(&io, touches(), Waits(None, None)).await.unwrap();
            assert_eq!((lock(&errands.spare).len(), Arc::strong_count(&claim)), (1, 2));
            drop(release);
            io.quiesce().await;
            assert_eq!((lock(&errands.spare).len(), Arc::strong_count(&claim)), (1, 1));
            // One that never began, and one that has ended before it was given up.
            let (release, released) = mpsc::channel();
            let mut both: Vec<_> = Vec::new();
            for _ in 0..2 {
                both.push(Box::pin(errands.run(&io, touches(), Waits(None, Some(claim.clone())))));
            }
            io.sleep(Duration::from_millis(20)).await;
            drop(both);
            let one = errands.run(&io, touches(), Waits(Some((begin, released)), None));
            drop((one, release));
            while errands.owner().orphans() > 0 {
                io.sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(Arc::strong_count(&claim), 1);
            assert!(lock(&errands.spare).len() <= 2);
            for _ in 0..3 {
                errands.run(&io, touches(), Waits(None, None)).await.unwrap();
            }
        });
    }

    /// Waits to be released, and panics when it goes.
    struct Fails(Sender<()>, Receiver<()>);

    impl Work for Fails {
        type Result = ();

        fn run(&mut self) {
            let _ = (self.0.send(()), self.1.recv());
        }
    }

    impl Drop for Fails {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }

    #[test]
    fn what_goes_on_alone_is_over_also_when_it_panics() {
        on_io_thread(|io| async move {
            let errands = Errands::new(Owner::default());
            let ((begin, begun), (release, released)) = (mpsc::channel(), mpsc::channel());
            {
                let mut hangs = pin!(errands.run(&io, touches(), Fails(begin, released)));
                while begun.try_recv().is_err() {
                    assert!(io.at_most(Duration::from_millis(1), hangs.as_mut()).await.is_none());
                }
            }
            drop(release);
            let next = io.blocking_on(errands.owner(), || 7);
            let next = io.at_most(Duration::from_secs(10), next).await;
            assert_eq!(next.expect("its helper is still waited for").unwrap(), 7);
            assert_eq!(errands.owner().orphans(), 0);
            io.at_most(Duration::from_secs(10), io.quiesce()).await.expect("it is still waited for");
        });
    }
}
