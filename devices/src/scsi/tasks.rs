//! The task set of a logical unit (SAM-6, 8): which commands may run now, and how one is ended from outside.
//!
//! A command enters, waits until it is enabled, works, and leaves when its [`Task`] is dropped. One short lock on
//! each of entering and leaving; slots and their signals are reused, so a warm command allocates nothing.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::links::List;
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
    /// Commands in the set, in the order in which they came.
    order: List,
    /// Those that are not enabled yet: at the head of the queue, and others.
    dormant_heads: List,
    dormant: List,
    ordered: usize,
    heads: usize,
    /// An ordered command is enabled: nothing else may start, or COMPARE AND WRITE and its like would not be alone.
    alone: bool,
    /// The unit is detached: who had found it before and comes late finds it no more.
    closed: bool,
    /// Commands ended from outside that have not left yet, by their order of entering.
    ending: BTreeSet<u64>,
    /// Task management functions that wait until those before a mark have left.
    waiting: Vec<Waiting>,
    next_waiting: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    mark: u64,
    waker: Waker,
}

/// The place of one in [`Tasks::waiting`], once it has to wait.
struct Place<'a> {
    set: &'a TaskSet,
    number: Option<u64>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let mut tasks = lock(&self.set.0);
        let place = tasks.waiting.iter().position(|waiting| waiting.number == number);
        let gone = place.map(|place| tasks.waiting.swap_remove(place));
        drop(tasks);
        // Outside of the lock: it may run the HBA's code.
        drop(gone);
    }
}

/// Why a command does not enter a task set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There are too many in it.
    Full,
    /// The logical unit was detached.
    Detached,
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
    /// Enters a command.
    pub(crate) fn enter(
        &self,
        nexus: NexusId,
        tag: Tag,
        attribute: TaskAttribute,
    ) -> Result<Task<'_>, Refused> {
        let mut tasks = lock(&self.0);
        if tasks.closed {
            return Err(Refused::Detached);
        }
        if tasks.live >= MAX_TASKS {
            return Err(Refused::Full);
        }
        let enabled = match attribute {
            TaskAttribute::HeadOfQueue => !tasks.alone,
            TaskAttribute::Ordered => tasks.live == 0,
            TaskAttribute::Simple | TaskAttribute::Aca => tasks.ordered == 0 && tasks.heads == 0,
        };
        tasks.alone |= enabled && attribute == TaskAttribute::Ordered;
        let (slot, signal) = tasks.insert(nexus, tag, attribute);
        signal.state.store(if enabled { ENABLED } else { 0 }, Ordering::Release);
        if !enabled {
            tasks.dormant_with(attribute).push(slot);
        }
        Ok(Task { set: self, slot, signal })
    }

    /// Ends all commands because the unit is detached, and lets none in any more.
    /// Returns the mark to give to [`TaskSet::left`].
    pub(crate) fn close(&self) -> u64 {
        // Before the others are ended: what enters until then is ended with them.
        lock(&self.0).closed = true;
        self.end(|_, _| Some(Ended::Detached))
    }

    /// Ends the commands that `which` selects; `which` sees nexus and tag and names the reason.
    /// Returns the mark to give to [`TaskSet::left`].
    pub(crate) fn end(&self, mut which: impl FnMut(NexusId, Tag) -> Option<Ended>) -> u64 {
        let mut wakers = Vec::new();
        let mut tasks = lock(&self.0);
        let Tasks { slots, order, ending, .. } = &mut *tasks;
        let live = order.iter().filter_map(|slot| slots.get(slot));
        for slot in live.filter(|slot| slot.signal.ended().is_none()) {
            if let Some(why) = which(slot.nexus, slot.tag) {
                // The lock is held: nobody else ends it between the look and the mark.
                slot.signal.state.fetch_or(why as u8, Ordering::AcqRel);
                ending.insert(slot.sequence);
                wakers.extend(slot.signal.take_waker());
            }
        }
        let mark = tasks.next_sequence;
        drop(tasks);
        wakers.into_iter().for_each(Waker::wake);
        mark
    }

    /// Waits until every ended command that had entered before `mark` has left.
    pub(crate) async fn left(&self, mark: u64) {
        let mut place = Place { set: self, number: None };
        poll_fn(|cx| {
            let mut tasks = lock(&self.0);
            if tasks.ending.first().is_none_or(|first| *first >= mark) {
                return Poll::Ready(());
            }
            let number = *place.number.get_or_insert_with(|| {
                tasks.next_waiting += 1;
                tasks.next_waiting
            });
            match tasks.waiting.iter_mut().find(|waiting| waiting.number == number) {
                Some(waiting) => waiting.waker.clone_from(cx.waker()),
                None => tasks.waiting.push(Waiting { number, mark, waker: cx.waker().clone() }),
            }
            Poll::Pending
        })
        .await
    }

    /// Whether a command that `which` selects is in the set.
    pub(crate) fn holds(&self, which: impl Fn(NexusId, Tag) -> bool) -> bool {
        let tasks = lock(&self.0);
        let mut live = tasks.order.iter().filter_map(|slot| tasks.slots.get(slot));
        live.any(|slot| which(slot.nexus, slot.tag))
    }

    /// Whether a command that was ended has not left: the host still works on it.
    pub(crate) fn is_ending(&self) -> bool {
        !lock(&self.0).ending.is_empty()
    }

    fn leave(&self, slot: usize) {
        let mut wakers = Vec::new();
        let mut tasks = lock(&self.0);
        tasks.remove(slot, &mut wakers);
        tasks.enable(&mut wakers);
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
            (slot.nexus, slot.tag) = (nexus, tag);
            (slot.attribute, slot.sequence) = (attribute, sequence);
            self.order.push(index);
            return (index, slot.signal.clone());
        }
        let signal = Arc::new(Signal::default());
        let index = self.slots.len();
        self.slots.push(Slot { signal: signal.clone(), nexus, tag, attribute, sequence });
        self.order.push(index);
        (index, signal)
    }

    /// Where those with this attribute are until they are enabled.
    fn dormant_with(&mut self, attribute: TaskAttribute) -> &mut List {
        match attribute {
            TaskAttribute::HeadOfQueue => &mut self.dormant_heads,
            TaskAttribute::Ordered | TaskAttribute::Simple | TaskAttribute::Aca => &mut self.dormant,
        }
    }

    fn remove(&mut self, index: usize, wakers: &mut Vec<Waker>) {
        let Some(slot) = self.slots.get(index) else { return };
        let (attribute, sequence) = (slot.attribute, slot.sequence);
        let (enabled, ended) = (slot.signal.is_enabled(), slot.signal.ended().is_some());
        self.order.remove(index);
        self.live -= 1;
        self.ordered -= usize::from(attribute == TaskAttribute::Ordered);
        self.heads -= usize::from(attribute == TaskAttribute::HeadOfQueue);
        if enabled {
            self.alone &= attribute != TaskAttribute::Ordered;
        } else {
            self.dormant_with(attribute).remove(index);
        }
        if ended {
            self.ending.remove(&sequence);
            let first = self.ending.first().copied().unwrap_or(u64::MAX);
            let over = self.waiting.extract_if(.., |waiting| waiting.mark <= first);
            wakers.extend(over.map(|waiting| waiting.waker));
        }
        self.free.push(index);
    }

    /// Enables what the task attributes now allow (SAM-6, 8.9): the head of the queue once no ordered command is at work,
    /// simple commands once everything at the head of the queue and every older ordered command is gone, an ordered
    /// command once it is the oldest.
    fn enable(&mut self, wakers: &mut Vec<Waker>) {
        while !self.alone
            && let Some(head) = self.dormant_heads.first()
        {
            self.dormant_heads.remove(head);
            self.wake(head, wakers);
        }
        // The first ordered command is a barrier to all that came after it.
        while !self.alone
            && self.heads == 0
            && let Some(first) = self.dormant.first()
        {
            let ordered = self.slots.get(first).is_some_and(|slot| slot.attribute == TaskAttribute::Ordered);
            if ordered && self.order.first() != Some(first) {
                break;
            }
            self.alone = ordered;
            self.dormant.remove(first);
            self.wake(first, wakers);
        }
    }

    fn wake(&self, slot: usize, wakers: &mut Vec<Waker>) {
        if let Some(slot) = self.slots.get(slot) {
            slot.signal.state.fetch_or(ENABLED, Ordering::AcqRel);
            wakers.extend(slot.signal.take_waker());
        }
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
#[path = "tasks_model.rs"]
mod model;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::pin::pin;
    use std::task::Context;

    use super::super::links::LOOKS;
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

    /// Whoever waits may be ended itself, again and again while a command hangs.
    #[test]
    fn who_waits_no_more_leaves_nothing_behind() {
        let set = TaskSet::default();
        let (hung, _) = started(&set, 1, TaskAttribute::Simple);
        let mark = set.end(|_, _| Some(Ended::Aborted));
        for more in 0..1000 {
            let mut waits = pin!(set.left(mark + more));
            for _ in 0..2 {
                assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            }
            assert_eq!(lock(&set.0).waiting.len(), 1);
        }
        assert_eq!(lock(&set.0).waiting.len(), 0);
        drop(hung);
        assert!(pin!(set.left(mark)).poll(&mut Context::from_waker(Waker::noop())).is_ready());
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

    /// What one command costs does not grow with how many there are.
    #[test]
    fn entering_and_leaving_look_at_few_others() {
        use TaskAttribute::{HeadOfQueue, Ordered, Simple};
        let looked = |attributes: &[TaskAttribute], many: u64| {
            let set = TaskSet::default();
            let mut tasks: VecDeque<_> = (0..many)
                .map(|tag| set.enter(NEXUS, Tag(tag), attributes[tag as usize % attributes.len()]).unwrap())
                .collect();
            LOOKS.set(0);
            for tag in 0..many {
                drop(tasks.pop_front());
                tasks.push_back(
                    set.enter(NEXUS, Tag(tag), attributes[tag as usize % attributes.len()]).unwrap(),
                );
            }
            LOOKS.get() / many
        };
        for attributes in [
            &[Simple][..],
            &[Ordered],
            &[Simple, Ordered],
            &[Ordered, HeadOfQueue],
            &[Simple, Ordered, HeadOfQueue],
        ] {
            assert!(looked(attributes, 4000) <= 4, "{attributes:?}: {}", looked(attributes, 4000));
        }
    }

    /// Functions that wait look again when what they wait for has left, not whenever anything has.
    #[test]
    fn functions_that_wait_are_woken_once() {
        let set = TaskSet::default();
        let mut tasks: VecDeque<_> =
            (0..1000).map(|tag| set.enter(NEXUS, Tag(tag), TaskAttribute::Simple).unwrap()).collect();
        let mark = set.end(|_, _| Some(Ended::Aborted));
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut waiting = pin!(set.left(mark));
        let mut left = || waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        assert!(!left());
        let last = tasks.pop_back();
        for task in tasks {
            drop(task);
            let woken = count.0.load(Ordering::Relaxed);
            assert!(woken == 0, "woken too soon");
        }
        assert!(!left());
        drop(last);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(left());
    }

    #[derive(Default)]
    struct Count(std::sync::atomic::AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
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

    /// A command that had found the unit before it was detached: nobody would wait for it, and its image is closed.
    #[test]
    fn who_comes_late_finds_no_unit() {
        let set = TaskSet::default();
        let (early, _) = started(&set, 1, TaskAttribute::Simple);
        let mark = set.close();
        assert_eq!(set.enter(NEXUS, Tag(2), TaskAttribute::HeadOfQueue).err(), Some(Refused::Detached));
        let mut left = pin!(set.left(mark));
        assert!(left.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(early);
        assert!(left.poll(&mut Context::from_waker(Waker::noop())).is_ready());
        assert_eq!(set.enter(NEXUS, Tag(3), TaskAttribute::Simple).err(), Some(Refused::Detached));
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
        assert_eq!((tasks.slots.len(), tasks.live, tasks.dormant.is_empty(), tasks.ordered), (1, 0, true, 0));
    }
}
