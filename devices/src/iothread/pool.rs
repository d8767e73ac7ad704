//! Reused task slots for the commands of an adapter.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::Io;
use super::executor::{Core, Run};
use super::wake::TaskWaker;

/// A fixed number of reused task slots for futures of one type: a warm command spawns without allocating.
///
/// Dropping the pool drops the tasks in it.
pub struct TaskPool<F> {
    core: Rc<Core>,
    capacity: usize,
    inner: Rc<Inner<F>>,
}

struct Inner<F> {
    slots: RefCell<Vec<Rc<Slot<F>>>>,
    free: RefCell<Vec<usize>>,
    running: Cell<usize>,
    unstarted: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
}

struct Slot<F> {
    index: u32,
    flag: Arc<TaskWaker>,
    waker: Waker,
    place: usize,
    future: RefCell<Pin<Box<Option<F>>>>,
    cancelled: Cell<bool>,
    /// Its task was not polled yet.
    unstarted: Cell<bool>,
    pool: Weak<Inner<F>>,
}

impl<F: Future<Output = ()> + 'static> TaskPool<F> {
    /// A pool on this thread with room for `capacity` tasks at once; slots are made when first used.
    pub fn new(io: &Io, capacity: usize) -> Self {
        let inner = Inner {
            slots: RefCell::default(),
            free: RefCell::default(),
            running: Cell::new(0),
            unstarted: Cell::new(0),
            waiting: RefCell::default(),
        };
        Self { core: io.core.clone(), capacity, inner: Rc::new(inner) }
    }

    /// Starts `task`, or gives it back when the pool is full or the thread is ending.
    ///
    /// The task is first polled in the current round of the executor, after the tasks that are already ready.
    pub fn spawn(&self, task: F) -> Result<(), F> {
        let Some(slot) = self.vacant() else { return Err(task) };
        slot.future.borrow_mut().set(Some(task));
        self.inner.running.set(self.inner.running.get() + 1);
        self.inner.unstarted.set(self.inner.unstarted.get() + 1);
        slot.unstarted.set(true);
        // On its own thread: as a wake, without looking for the thread.
        if slot.flag.mark() {
            self.core.queue(slot.index);
        }
        Ok(())
    }

    /// Number of tasks not yet finished.
    pub fn running(&self) -> usize {
        self.inner.running.get()
    }

    /// Whether the thread has begun all tasks. While it has not, further ones only grow the queue that tasks of others come
    /// behind.
    pub fn has_begun_all(&self) -> bool {
        self.inner.unstarted.get() == 0
    }

    /// Waits until no task is running.
    pub async fn drained(&self) {
        let inner = self.inner.clone();
        poll_fn(move |cx| {
            if inner.running.get() == 0 {
                return Poll::Ready(());
            }
            let mut waiting = inner.waiting.borrow_mut();
            if !waiting.iter().any(|w| w.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    fn vacant(&self) -> Option<Rc<Slot<F>>> {
        let place = self.inner.free.borrow_mut().pop();
        if let Some(place) = place {
            return self.inner.slots.borrow().get(place).cloned();
        }
        let mut slots = self.inner.slots.borrow_mut();
        let place = slots.len();
        if place >= self.capacity {
            return None;
        }
        let pool = Rc::downgrade(&self.inner);
        let slot = self.core.add(|index| {
            let flag = Arc::new(TaskWaker::new(self.core.shared.clone(), index));
            let future = RefCell::new(Box::pin(None));
            let waker = flag.clone().into();
            let (cancelled, unstarted) = (Cell::new(false), Cell::new(false));
            Rc::new(Slot { index, waker, flag, place, future, cancelled, unstarted, pool })
        })?;
        slots.push(slot.clone());
        Some(slot)
    }
}

impl<F> Drop for TaskPool<F> {
    fn drop(&mut self) {
        let slots = std::mem::take(&mut *self.inner.slots.borrow_mut());
        for slot in slots {
            self.core.remove(slot.index);
            slot.drop_task();
        }
    }
}

impl<F> Slot<F> {
    fn drop_task(&self) {
        match self.future.try_borrow_mut() {
            Ok(mut future) => {
                let had = future.is_some();
                future.set(None);
                drop(future);
                self.begin();
                if had {
                    self.done();
                }
            }
            // The task itself is what drops it: it goes when its poll is over.
            Err(_) => self.cancelled.set(true),
        }
    }

    /// The task is polled, or goes.
    fn begin(&self) {
        if self.unstarted.replace(false)
            && let Some(pool) = self.pool.upgrade()
        {
            pool.unstarted.set(pool.unstarted.get().saturating_sub(1));
        }
    }

    fn done(&self) {
        let Some(pool) = self.pool.upgrade() else { return };
        pool.running.set(pool.running.get().saturating_sub(1));
        pool.free.borrow_mut().push(self.place);
        if pool.running.get() == 0 {
            loop {
                let waiting = pool.waiting.borrow_mut().pop();
                let Some(waker) = waiting else { break };
                waker.wake();
            }
        }
    }
}

impl<F: Future<Output = ()>> Run for Slot<F> {
    fn run(&self) -> bool {
        self.flag.clear();
        let Ok(mut future) = self.future.try_borrow_mut() else { return false };
        let Some(task) = future.as_mut().as_pin_mut() else { return false };
        self.begin();
        let ended = task.poll(&mut Context::from_waker(&self.waker)).is_ready();
        if ended || self.cancelled.get() {
            future.set(None);
            drop(future);
            self.done();
        }
        false
    }

    fn cancel(&self) {
        self.drop_task();
    }
}
