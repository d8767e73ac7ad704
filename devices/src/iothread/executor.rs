//! The local executor: tasks, the ready queue and the root loop of an I/O thread.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::blocking::{AGAIN, Given, Helpers, Job, Owner};
use super::clock::Clock;
use super::copies::Copies;
use super::op::Op;
use super::polling::{Poller, Polling, Window};
use super::ring::{BYTES_PER_ENTER, Reaped, Ring};
use super::slots::Key;
use super::wake::{Inbox, Shared, TaskWaker};
use super::{Io, RING_ENTRIES, Remote};

/// Tasks polled before the thread looks at the ring and at the queues again: a task that always wakes itself starves nobody,
/// and what is done goes back before long.
const POLLS_PER_ROUND: usize = 256;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// Queues a task slot if the calling thread is the I/O thread behind `shared`.
pub(super) fn queue_here(shared: &Arc<Shared>, index: u32) -> bool {
    let queue = |current: &RefCell<Option<Rc<Core>>>| match &*current.borrow() {
        Some(core) if Arc::ptr_eq(&core.shared, shared) => {
            core.ready.borrow_mut().push_back(index);
            true
        }
        _ => false,
    };
    CURRENT.try_with(queue).unwrap_or(false)
}

/// A task slot as the executor sees it.
pub(super) trait Run {
    /// Polls the task if there is one; true when the slot is used up.
    fn run(&self) -> bool;
    /// Drops the task.
    fn cancel(&self);
}

/// The state of one I/O thread.
pub(super) struct Core {
    pub(super) shared: Arc<Shared>,
    pub(super) ring: RefCell<Ring>,
    pub(super) helpers: Arc<Helpers>,
    given: Given,
    /// Owners that have too few helpers are seen to before long.
    sees_to_short: Cell<bool>,
    ready: RefCell<VecDeque<u32>>,
    /// Tasks that were ready when a round ended early; behind what becomes ready until the next.
    postponed: RefCell<VecDeque<u32>>,
    /// What this thread copies itself, and has put off.
    pub(super) copies: Copies,
    tasks: RefCell<Tasks>,
    hooks: RefCell<Vec<Weak<dyn Fn()>>>,
    pollers: RefCell<Vec<Weak<dyn Poller>>>,
    /// The poller to be asked first the next time: each has its turn.
    first: Cell<usize>,
    window: RefCell<Window>,
    pub(super) clock: Clock,
    /// Its rounds go on; without them what is left for the end of one is done at once.
    is_running: Cell<bool>,
    closing: Cell<bool>,
    /// The scope of what is polled now, and the newest.
    pub(super) scope: Cell<u64>,
    pub(super) scopes: Cell<u64>,
    #[cfg(any(test, feature = "testing"))]
    pub(super) mischief: super::mischief::Mischief,
}

#[derive(Default)]
struct Tasks {
    slots: Vec<Option<Rc<dyn Run>>>,
    free: Vec<u32>,
}

impl Core {
    /// Of the calling thread. The kernel's threads for it are restricted to the CPUs `workers`, see [`super::setup::make`].
    pub(super) fn new(shared: Arc<Shared>, polling: Polling, workers: &[usize]) -> io::Result<Rc<Self>> {
        let helpers = Helpers::new(Remote { shared: shared.clone() });
        Ok(Rc::new(Self {
            shared,
            ring: RefCell::new(Ring::new(RING_ENTRIES, workers)?),
            helpers,
            given: Given::default(),
            sees_to_short: Cell::new(false),
            ready: RefCell::default(),
            postponed: RefCell::default(),
            copies: Copies::default(),
            tasks: RefCell::default(),
            hooks: RefCell::default(),
            pollers: RefCell::default(),
            first: Cell::new(0),
            window: RefCell::new(Window::new(polling)),
            clock: Clock::new(Instant::now),
            is_running: Cell::new(false),
            closing: Cell::new(false),
            scope: Cell::new(0),
            scopes: Cell::new(0),
            #[cfg(any(test, feature = "testing"))]
            mischief: Default::default(),
        }))
    }

    /// Adds a task slot that `make` builds around its number; `None` when the thread is ending.
    pub(super) fn add<T: Run + 'static>(&self, make: impl FnOnce(u32) -> Rc<T>) -> Option<Rc<T>> {
        if self.closing.get() {
            return None;
        }
        let mut tasks = self.tasks.borrow_mut();
        let index = tasks.free.pop().unwrap_or(tasks.slots.len() as u32);
        let task = make(index);
        match tasks.slots.get_mut(index as usize) {
            Some(slot) => *slot = Some(task.clone()),
            None => tasks.slots.push(Some(task.clone())),
        }
        Some(task)
    }

    /// Takes a task slot out of use.
    pub(super) fn remove(&self, index: u32) {
        let mut tasks = self.tasks.borrow_mut();
        let gone = tasks.slots.get_mut(index as usize).and_then(Option::take);
        if gone.is_some() {
            tasks.free.push(index);
        }
        drop(tasks);
    }

    pub(super) fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let make = |index| {
            let flag = Arc::new(TaskWaker::new(self.shared.clone(), index));
            let future: Pin<Box<dyn Future<Output = ()>>> = Box::pin(task);
            Rc::new(Boxed { waker: flag.clone().into(), flag, future: RefCell::new(Some(future)) })
        };
        if let Some(task) = self.add(make) {
            task.waker.wake_by_ref();
        }
    }

    /// Queues a task slot that is marked as queued.
    pub(super) fn queue(&self, index: u32) {
        self.ready.borrow_mut().push_back(index);
    }

    /// Gives `owner` a job: its number, and whether there is a helper that comes to it; fails when the thread ends.
    pub(super) fn give(self: &Rc<Self>, owner: &Owner, job: Arc<dyn Job>) -> io::Result<(u64, bool)> {
        let queued = self.given.queue(&self.helpers, owner, job);
        if !self.is_running.get() {
            self.call_helpers();
        }
        queued
    }

    /// Calls the helpers that were chosen in this round.
    fn call_helpers(self: &Rc<Self>) {
        if self.given.call(&self.helpers) {
            self.see_to_short_later();
        }
    }

    /// Sends helpers to owners that have too few, now and until they have enough.
    pub(super) fn see_to_short(self: &Rc<Self>) {
        if self.helpers.see_to_short() {
            self.see_to_short_later();
        }
    }

    fn see_to_short_later(self: &Rc<Self>) {
        if self.sees_to_short.replace(true) {
            return;
        }
        let io = Io { core: self.clone() };
        self.spawn(async move {
            io.sleep(AGAIN).await;
            io.core.sees_to_short.set(false);
            io.core.see_to_short();
        });
    }

    pub(super) fn add_hook(&self, hook: Weak<dyn Fn()>) {
        self.hooks.borrow_mut().push(hook);
    }

    pub(super) fn polling_bound(&self) -> Duration {
        let mut window = self.window.borrow_mut();
        window.calibrate();
        window.bound()
    }

    pub(super) fn add_poller(&self, poller: Weak<dyn Poller>) {
        self.window.borrow_mut().calibrate();
        self.pollers.borrow_mut().push(poller);
    }

    pub(super) fn start(&self, op: Op) -> Key {
        self.ring.borrow_mut().start(op, self.scope.get())
    }

    pub(super) fn abandon(&self, key: Key) {
        let gone = self.ring.borrow_mut().abandon(key);
        if let Some(gone) = gone {
            gone.settle();
        }
    }

    /// Serves tasks until another thread asks to stop.
    pub(super) fn run(self: &Rc<Self>) -> io::Result<()> {
        CURRENT.set(Some(self.clone()));
        self.is_running.set(true);
        let io = Io { core: self.clone() };
        // Other threads ring this bell; the task only has to make the ring return.
        let bell = io.clone();
        self.spawn(async move { while bell.wait(&bell.core.shared.bell).await.is_ok() {} });
        let mut inbox = Inbox::default();
        let mut reaped = Reaped::default();
        let end = loop {
            if self.shared.take(&mut inbox) {
                if inbox.stop {
                    break Ok(());
                }
                self.ready.borrow_mut().extend(inbox.wakes.drain(..));
                inbox.starts.drain(..).for_each(|start| start(&io));
            }
            self.run_ready();
            self.call_helpers();
            self.run_hooks();
            let busy = self.is_busy();
            self.ring.borrow_mut().copies_wait(!self.copies.is_empty());
            let entered = if busy { self.ring.borrow_mut().enter(false) } else { self.wait() };
            if let Err(e) = entered {
                break Err(e);
            }
            self.ring.borrow_mut().reap(&mut reaped);
            reaped.settle();
            if busy {
                self.clock.forget();
                // Before what was postponed: a queue waits for one round of the others at most.
                self.ask();
            }
            self.ready.borrow_mut().append(&mut self.postponed.borrow_mut());
        };
        drop(inbox);
        end
    }

    /// Whether there is more to do than to wait.
    fn is_busy(&self) -> bool {
        !self.postponed.borrow().is_empty()
            || !self.ready.borrow().is_empty()
            || !self.copies.is_empty()
            || self.ring.borrow().has_more_to_enter()
    }

    /// Hands operations to the kernel and waits until there is something to do. All pollers were asked, or armed, when it
    /// returns.
    fn wait(&self) -> io::Result<()> {
        if self.pollers.borrow().is_empty() || !self.window.borrow().is_open() {
            return self.sleep();
        }
        let polls = !self.window.borrow().length().is_zero() || self.is_holding();
        if polls {
            self.ring.borrow_mut().enter(false)?;
        }
        self.clock.forget();
        let begin = self.clock.now();
        if polls && self.poll_until(begin) {
            return Ok(());
        }
        let result = self.sleep();
        self.window.borrow_mut().slept(self.clock.now().saturating_duration_since(begin));
        result
    }

    /// Sleeps in the ring until something completes, unless there is work already.
    fn sleep(&self) -> io::Result<()> {
        // Each is armed, also after one has found work: then no signal is missed while that is done.
        let found = self.pollers().fold(false, |found, poller| poller.arm() | found);
        let sleep = !found && self.ready.borrow().is_empty() && self.shared.fall_asleep();
        let entered = self.ring.borrow_mut().enter(sleep);
        self.shared.wake_up();
        self.clock.forget();
        entered
    }

    /// Looks for work until the window closes; false when there was none.
    fn poll_until(&self, begin: Instant) -> bool {
        let end = self.window.borrow().length();
        loop {
            // The queues also when something is done: their doorbells may stay silent for as long as we do not sleep.
            if self.ask() | self.shared.is_filled() || self.ring.borrow_mut().has_completions() {
                return true;
            }
            if self.clock.looked().saturating_duration_since(begin) >= end && !self.is_holding() {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    /// Asks all pollers for work, each time another first; whether one has some.
    fn ask(&self) -> bool {
        self.first.set(self.first.get().wrapping_add(1));
        self.pollers().fold(false, |found, poller| poller.poll() | found)
    }

    fn is_holding(&self) -> bool {
        self.pollers().any(|poller| poller.is_holding())
    }

    /// All pollers, from the one whose turn it is.
    fn pollers(&self) -> impl Iterator<Item = Rc<dyn Poller>> + '_ {
        let count = self.pollers.borrow().len();
        let first = self.first.get() % count.max(1);
        let places = (first..count).chain(0..first);
        places.filter_map(|place| self.pollers.borrow().get(place).and_then(Weak::upgrade))
    }

    /// Drops all tasks and waits until the kernel has let go of their memory.
    pub(super) fn shut_down(&self) {
        self.closing.set(true);
        self.is_running.set(false);
        drop(self.shared.close());
        self.helpers.close();
        self.given.call(&self.helpers);
        loop {
            let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
            if tasks.slots.is_empty() {
                break;
            }
            tasks.slots.iter().flatten().for_each(|task| task.cancel());
        }
        let drained = self.ring.borrow_mut().drain();
        match drained {
            Ok(mut reaped) => reaped.settle(),
            Err(e) => tracing::error!("an I/O thread could not drain its ring: {e}"),
        }
        CURRENT.set(None);
    }

    /// Whether the task that is polled holds nobody up.
    pub(super) fn has_time(&self) -> bool {
        let idle =
            self.ready.borrow().is_empty() && self.postponed.borrow().is_empty() && self.copies.is_empty();
        idle && self.ring.borrow().queued_bytes() == 0
    }

    fn run_ready(&self) {
        let mut polls = 0;
        while polls < POLLS_PER_ROUND
            && let Some(index) = self.next_ready()
        {
            polls += 1;
            self.run_task(index);
            if self.has_moved_enough() {
                self.postponed.borrow_mut().append(&mut self.ready.borrow_mut());
                break;
            }
        }
        if self.copies.is_due(polls > 0) {
            self.run_copies();
        }
    }

    /// Long copies, as many as there is time for: one at least.
    fn run_copies(&self) {
        while let Some(waker) = self.copies.grant() {
            let before = self.ready.borrow().len();
            waker.wake();
            let woken =
                if self.ready.borrow().len() > before { self.ready.borrow_mut().pop_back() } else { None };
            if let Some(index) = woken {
                self.run_task(index);
            }
            if self.has_moved_enough() {
                return;
            }
        }
    }

    fn next_ready(&self) -> Option<u32> {
        self.ready.borrow_mut().pop_front()
    }

    fn run_task(&self, index: u32) {
        let task = self.tasks.borrow().slots.get(index as usize).cloned().flatten();
        if task.is_some_and(|task| task.run()) {
            self.remove(index);
        }
    }

    fn has_moved_enough(&self) -> bool {
        self.ring.borrow().queued_bytes() >= BYTES_PER_ENTER
    }

    fn run_hooks(&self) {
        let mut dead = false;
        let count = self.hooks.borrow().len();
        for i in 0..count {
            let hook = self.hooks.borrow().get(i).and_then(Weak::upgrade);
            match hook {
                Some(hook) => hook(),
                None => dead = true,
            }
        }
        if dead {
            self.hooks.borrow_mut().retain(|hook| hook.strong_count() > 0);
            self.pollers.borrow_mut().retain(|poller| poller.strong_count() > 0);
        }
    }
}

/// A task of its own kind, in its own allocation.
struct Boxed {
    flag: Arc<TaskWaker>,
    waker: Waker,
    future: RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
}

impl Run for Boxed {
    fn run(&self) -> bool {
        self.flag.clear();
        let Some(mut future) = self.future.borrow_mut().take() else { return false };
        if let Poll::Ready(()) = future.as_mut().poll(&mut Context::from_waker(&self.waker)) {
            return true;
        }
        *self.future.borrow_mut() = Some(future);
        false
    }

    fn cancel(&self) {
        let future = self.future.borrow_mut().take();
        drop(future);
    }
}
