//! The task set of a logical unit (SAM-6, 8): which commands may run now, and how one is ended from outside.
//!
//! A command enters, waits until it is enabled, works, and leaves when its [`Task`] is dropped. One short lock on
//! each of entering and leaving; slots and their signals are reused, so a warm command allocates nothing.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::{Tag, TaskAttribute};

/// Commands in one task set before TASK SET FULL.
const MAX_TASKS: usize = 1 << 16;

/// Identifies an I_T nexus within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NexusId(pub(crate) u64);

/// Why a command was ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Ended {
    /// By ABORT TASK or ABORT TASK SET of its own nexus, or CLEAR TASK SET.
    Aborted = 1,
    /// By LOGICAL UNIT RESET or I_T NEXUS RESET.
    Reset = 2,
    /// The logical unit was detached.
    Detached = 3,
    /// By another nexus while the control mode page's TAS bit is one: TASK ABORTED status.
    TaskAborted = 4,
}

impl Ended {
    fn from_bits(bits: u8) -> Option<Self> {
        [Self::Aborted, Self::Reset, Self::Detached, Self::TaskAborted].into_iter().find(|e| *e as u8 == bits)
    }
}

/// Set in [`Signal::state`] when the task set allows the command to run; below it is the reason of its end, or 0.
const ENABLED: u8 = 0x80;

#[derive(Debug, Default)]
struct Signal {
    state: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

impl Signal {
    fn ended(&self) -> Option<Ended> {
        Ended::from_bits(self.state.load(Ordering::Acquire) & !ENABLED)
    }
    fn is_enabled(&self) -> bool {
        self.state.load(Ordering::Acquire) & ENABLED != 0
    }
    /// Remembers who to wake. The caller looks at the state once more afterwards.
    fn register(&self, waker: &Waker) {
        let mut slot = lock(&self.waker);
        match slot.as_ref() {
            Some(old) if old.will_wake(waker) => {}
            _ => *slot = Some(waker.clone()),
        }
    }
    fn take_waker(&self) -> Option<Waker> {
        lock(&self.waker).take()
    }
}

#[derive(Debug)]
struct Slot {
    signal: Arc<Signal>,
    live: bool,
    nexus: NexusId,
    tag: Tag,
    attribute: TaskAttribute,
    /// Order of entering.
    sequence: u64,
}

#[derive(Debug, Default)]
struct Tasks {
    slots: Vec<Slot>,
    free: Vec<usize>,
    next_sequence: u64,
    live: usize,
    /// Commands that are not enabled yet.
    dormant: usize,
    ordered: usize,
    heads: usize,
    /// An ordered command is enabled: nothing else may start, or COMPARE AND WRITE and its like would not be alone.
    alone: bool,
    /// Commands ended from outside that have not left yet.
    ending: usize,
    /// Task management functions that wait for them to leave.
    waiting: Vec<Waker>,
}

/// A task set.
#[derive(Debug, Default)]
pub(crate) struct TaskSet(Mutex<Tasks>);

/// A command within a task set; leaves it when dropped.
#[derive(Debug)]
pub(crate) struct Task<'a> {
    set: &'a TaskSet,
    slot: usize,
    signal: Arc<Signal>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere must not take the unit down; all updates here leave the state whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TaskSet {
    /// Enters a command; `None` when the set is full.
    pub(crate) fn enter(&self, nexus: NexusId, tag: Tag, attribute: TaskAttribute) -> Option<Task<'_>> {
        let mut tasks = lock(&self.0);
        if tasks.live >= MAX_TASKS {
            return None;
        }
        let enabled = match attribute {
            TaskAttribute::HeadOfQueue => !tasks.alone,
            TaskAttribute::Ordered => tasks.live == 0,
            TaskAttribute::Simple | TaskAttribute::Aca => tasks.ordered == 0 && tasks.heads == 0,
        };
        tasks.alone |= enabled && attribute == TaskAttribute::Ordered;
        let (slot, signal) = tasks.insert(nexus, tag, attribute);
        signal.state.store(if enabled { ENABLED } else { 0 }, Ordering::Release);
        tasks.dormant += usize::from(!enabled);
        Some(Task { set: self, slot, signal })
    }

    /// Ends the commands that `which` selects; `which` sees nexus and tag and names the reason.
    /// Returns the mark to give to [`TaskSet::left`].
    pub(crate) fn end(&self, mut which: impl FnMut(NexusId, Tag) -> Option<Ended>) -> u64 {
        let mut wakers = Vec::new();
        let mut tasks = lock(&self.0);
        let mut ending = 0;
        for slot in tasks.slots.iter().filter(|slot| slot.live && slot.signal.ended().is_none()) {
            if let Some(why) = which(slot.nexus, slot.tag) {
                // The lock is held: nobody else ends it between the look and the mark.
                slot.signal.state.fetch_or(why as u8, Ordering::AcqRel);
                ending += 1;
                wakers.extend(slot.signal.take_waker());
            }
        }
        tasks.ending += ending;
        let mark = tasks.next_sequence;
        drop(tasks);
        wakers.into_iter().for_each(Waker::wake);
        mark
    }

    /// Waits until every ended command that had entered before `mark` has left.
    pub(crate) async fn left(&self, mark: u64) {
        poll_fn(|cx| {
            let mut tasks = lock(&self.0);
            let staying = tasks.ending > 0
                && tasks.slots.iter().any(|s| s.live && s.sequence < mark && s.signal.ended().is_some());
            if !staying {
                return Poll::Ready(());
            }
            if !tasks.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                tasks.waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Whether a command that `which` selects is in the set.
    pub(crate) fn holds(&self, which: impl Fn(NexusId, Tag) -> bool) -> bool {
        lock(&self.0).slots.iter().any(|slot| slot.live && which(slot.nexus, slot.tag))
    }

    /// Whether a command that was ended has not left: the host still works on it.
    pub(crate) fn is_ending(&self) -> bool {
        lock(&self.0).ending > 0
    }

    fn leave(&self, slot: usize) {
        let mut wakers = Vec::new();
        let mut tasks = lock(&self.0);
        tasks.remove(slot, &mut wakers);
        if tasks.dormant > 0 {
            tasks.enable(&mut wakers);
        }
        drop(tasks);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Tasks {
    fn insert(&mut self, nexus: NexusId, tag: Tag, attribute: TaskAttribute) -> (usize, Arc<Signal>) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.live += 1;
        self.ordered += usize::from(attribute == TaskAttribute::Ordered);
        self.heads += usize::from(attribute == TaskAttribute::HeadOfQueue);
        if let Some(index) = self.free.pop()
            && let Some(slot) = self.slots.get_mut(index)
        {
            (slot.live, slot.nexus, slot.tag) = (true, nexus, tag);
            (slot.attribute, slot.sequence) = (attribute, sequence);
            return (index, slot.signal.clone());
        }
        let signal = Arc::new(Signal::default());
        self.slots.push(Slot { signal: signal.clone(), live: true, nexus, tag, attribute, sequence });
        (self.slots.len() - 1, signal)
    }

    fn remove(&mut self, index: usize, wakers: &mut Vec<Waker>) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        slot.live = false;
        self.live -= 1;
        self.ordered -= usize::from(slot.attribute == TaskAttribute::Ordered);
        self.heads -= usize::from(slot.attribute == TaskAttribute::HeadOfQueue);
        let enabled = slot.signal.is_enabled();
        self.alone &= !(enabled && slot.attribute == TaskAttribute::Ordered);
        self.dormant -= usize::from(!enabled);
        if slot.signal.ended().is_some() {
            self.ending -= 1;
            wakers.append(&mut self.waiting);
        }
        self.free.push(index);
    }

    /// Enables what the task attributes now allow (SAM-6, 8.9): the head of the queue once no ordered command is at work,
    /// simple commands once everything at the head of the queue and every older ordered command is gone, an ordered
    /// command once it is the oldest.
    fn enable(&mut self, wakers: &mut Vec<Waker>) {
        if self.alone {
            return;
        }
        let heads = self.heads > 0;
        let live = || self.slots.iter().filter(|slot| slot.live);
        let oldest = live().map(|slot| slot.sequence).min();
        let barrier = live().filter(|s| s.attribute == TaskAttribute::Ordered).map(|s| s.sequence).min();
        let (mut enabled, mut alone) = (0, false);
        for slot in live().filter(|slot| !slot.signal.is_enabled()) {
            let may = match slot.attribute {
                TaskAttribute::HeadOfQueue => true,
                _ if heads => false,
                TaskAttribute::Ordered => Some(slot.sequence) == oldest,
                _ => barrier.is_none_or(|barrier| slot.sequence < barrier),
            };
            if may {
                slot.signal.state.fetch_or(ENABLED, Ordering::AcqRel);
                enabled += 1;
                alone |= slot.attribute == TaskAttribute::Ordered;
                wakers.extend(slot.signal.take_waker());
            }
        }
        self.alone = alone;
        self.dormant -= enabled;
    }
}

impl Task<'_> {
    /// Does `work` once the task set allows it. When the command is ended from outside, the reason is returned with
    /// `work` wherever it is; the caller drops it then. It stays with the caller because a future that takes another one
    /// holds it twice.
    pub(crate) async fn run<T>(&self, mut work: Pin<&mut impl Future<Output = T>>) -> Result<T, Ended> {
        poll_fn(|cx| {
            loop {
                if let Some(why) = self.signal.ended() {
                    return Poll::Ready(Err(why));
                }
                let enabled = self.signal.is_enabled();
                if enabled && let Poll::Ready(done) = work.as_mut().poll(cx) {
                    return Poll::Ready(Ok(done));
                }
                self.signal.register(cx.waker());
                // Whoever changed the state before the waker was there has woken nobody.
                if self.signal.ended().is_none() && self.signal.is_enabled() == enabled {
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        // The waker goes with the command, lest an idle slot keep the HBA's task alive; outside the set's lock,
        // because to drop it may run the HBA's code.
        drop(self.signal.take_waker());
        self.set.leave(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use super::*;

    const NEXUS: NexusId = NexusId(1);

    fn started(set: &TaskSet, tag: u64, attribute: TaskAttribute) -> (Task<'_>, bool) {
        let task = set.enter(NEXUS, Tag(tag), attribute).unwrap();
        let running = is_running(&task);
        (task, running)
    }

    /// Whether the command may work now.
    fn is_running(task: &Task<'_>) -> bool {
        let mut work = pin!(async {});
        let work = pin!(task.run(work.as_mut()));
        work.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn ordered_waits_for_the_older_and_holds_the_younger() {
        use TaskAttribute::{Ordered, Simple};
        let set = TaskSet::default();
        let (a, a_runs) = started(&set, 1, Simple);
        let (b, b_runs) = started(&set, 2, Ordered);
        let (c, c_runs) = started(&set, 3, Simple);
        assert_eq!((a_runs, b_runs, c_runs), (true, false, false));
        drop(a);
        assert!(is_running(&b) && !is_running(&c));
        drop(b);
        assert!(is_running(&c));
    }

    #[test]
    fn head_of_queue_runs_at_once_and_holds_what_has_not_started() {
        use TaskAttribute::{HeadOfQueue, Ordered, Simple};
        let set = TaskSet::default();
        let (a, _) = started(&set, 1, Simple);
        let (ordered, _) = started(&set, 2, Ordered);
        let (head, head_runs) = started(&set, 3, HeadOfQueue);
        let (b, b_runs) = started(&set, 4, Simple);
        assert_eq!((is_running(&a), head_runs, b_runs), (true, true, false));
        drop(a);
        assert!(!is_running(&ordered) && !is_running(&b));
        drop(head);
        assert!(is_running(&ordered) && !is_running(&b));
        drop(ordered);
        assert!(is_running(&b));
    }

    #[test]
    fn head_of_queue_waits_for_what_must_be_alone_and_for_nothing_else() {
        use TaskAttribute::{HeadOfQueue, Ordered, Simple};
        let set = TaskSet::default();
        let (alone, alone_runs) = started(&set, 1, Ordered);
        let (next, _) = started(&set, 2, Ordered);
        let (simple, _) = started(&set, 3, Simple);
        let (head, head_runs) = started(&set, 4, HeadOfQueue);
        let (second, second_runs) = started(&set, 5, HeadOfQueue);
        assert_eq!((alone_runs, head_runs, second_runs), (true, false, false));
        drop(alone);
        assert!(is_running(&head) && is_running(&second) && !is_running(&next) && !is_running(&simple));
        drop(head);
        assert!(!is_running(&next));
        drop(second);
        assert!(is_running(&next) && !is_running(&simple));
        drop(next);
        assert!(is_running(&simple));
    }

    #[test]
    fn an_ended_command_that_waited_frees_those_behind_it() {
        use TaskAttribute::{Ordered, Simple};
        let set = TaskSet::default();
        let (_a, _) = started(&set, 1, Simple);
        let (b, _) = started(&set, 2, Ordered);
        let (c, c_runs) = started(&set, 3, Simple);
        assert!(!c_runs);
        set.end(|_, tag| (tag == Tag(2)).then_some(Ended::Aborted));
        {
            let mut work = pin!(async {});
            let work = pin!(b.run(work.as_mut()));
            let end = work.poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(end, Poll::Ready(Err(Ended::Aborted)));
        }
        assert!(!is_running(&c));
        drop(b);
        assert!(is_running(&c));
    }

    #[test]
    fn an_end_before_the_waker_is_there_is_not_lost() {
        let set = TaskSet::default();
        let task = set.enter(NEXUS, Tag(1), TaskAttribute::Simple).unwrap();
        // The end comes while the work is polled for the first time: nobody can be woken yet.
        let work = poll_fn(|_| {
            set.end(|_, _| Some(Ended::Reset));
            Poll::<()>::Pending
        });
        let mut work = pin!(work);
        let run = pin!(task.run(work.as_mut()));
        assert_eq!(run.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(Ended::Reset)));
    }

    #[test]
    fn slots_are_reused() {
        let set = TaskSet::default();
        for tag in 0..100 {
            let (task, runs) = started(&set, tag, TaskAttribute::Ordered);
            assert!(runs);
            drop(task);
        }
        let tasks = lock(&set.0);
        assert_eq!((tasks.slots.len(), tasks.live, tasks.dormant, tasks.ordered), (1, 0, 0, 0));
    }
}
