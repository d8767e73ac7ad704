//! Helper threads for host calls that may block and that the ring does not offer.
//!
//! Each job has an owner, such as an image. A call that never returns holds up what else its owner has to do, and nobody
//! else: an owner with something to do gets a helper of its own.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

#[cfg(test)]
use super::Io;
use super::Remote;
use crate::threads::{self, Kind};

/// A helper without work for this long ends.
const IDLE: Duration = Duration::from_secs(10);
/// How long until the host is asked again for a thread that it could not start.
pub(super) const AGAIN: Duration = Duration::from_millis(100);
/// How long one waits for its turn that was chosen for it at that very moment, before it looks again.
const MOMENT: Duration = Duration::from_millis(1);

/// What is to be done on a helper thread.
pub(super) trait Job: Send + Sync {
    /// Does it, for `owner`. It does not panic.
    fn run(&self, owner: &Owner);
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whose jobs wait for each other, and for nobody else's. Kept by what they are about; any I/O thread may give it some.
#[derive(Clone)]
pub struct Owner(Arc<Shared>);

struct Shared {
    line: Mutex<Line>,
    /// Jobs under way that nobody waits for any more.
    orphans: AtomicUsize,
}

/// The jobs of an owner.
pub(super) struct Line {
    /// Those that have not begun, in the order of their numbers.
    jobs: VecDeque<Queued>,
    next: u64,
    /// Helpers that work for it, or are about to: each goes on until there is no job left.
    helpers: usize,
    /// Those of them that have not taken a job yet.
    coming: usize,
    helpers_max: usize,
    /// When the last of the orphans became one.
    since: Option<Instant>,
}

struct Queued {
    number: u64,
    job: Arc<dyn Job>,
    /// Those of the I/O thread that waits for it.
    helpers: Arc<Helpers>,
}

impl Owner {
    /// One whose jobs are done side by side, so many of them at once.
    pub fn with_helpers(helpers_max: usize) -> Self {
        let (jobs, since) = (VecDeque::new(), None);
        let line = Line { jobs, next: 0, helpers: 0, coming: 0, helpers_max, since };
        Self(Arc::new(Shared { line: Mutex::new(line), orphans: AtomicUsize::new(0) }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Line> {
        lock(&self.0.line)
    }

    /// How many of its jobs are under way although nobody waits for them any more.
    pub(crate) fn orphans(&self) -> usize {
        self.0.orphans.load(Ordering::Acquire)
    }

    /// How long ago the last of those became one; not at all if there never was any.
    pub(crate) fn orphaned(&self) -> Duration {
        self.lock().since.map_or(Duration::MAX, |since| since.elapsed())
    }

    /// Nobody waits for one any more that is under way. With its lock held, so that it does not end before.
    pub(super) fn add_orphan(&self, line: &mut Line) {
        line.since = Some(Instant::now());
        self.0.orphans.fetch_add(1, Ordering::AcqRel);
    }

    /// One of those is over.
    pub(super) fn remove_orphan(&self) {
        self.0.orphans.fetch_sub(1, Ordering::AcqRel);
    }

    /// Works for it until there is nothing left to do, on a helper of `own`.
    fn serve(&self, own: &Helpers) {
        let mut coming = 1;
        loop {
            let mut line = self.lock();
            line.coming -= coming;
            let Some(Queued { job, .. }) = line.jobs.pop_front() else {
                line.helpers -= 1;
                return;
            };
            let (calls, asked) = if coming == 1 { self.more(own, &mut line) } else { Default::default() };
            drop(line);
            coming = 0;
            drop(calls);
            if let Some(asked) = asked {
                asked.thread.see_to_short();
            }
            job.run(self);
        }
    }

    /// Who has come sees to it that two more come where that is not enough: so there are soon as many as there are jobs, and none is woken
    /// for those that are done by then. It starts no thread itself: where too few are idle, the I/O thread that it gives back is to be told.
    fn more(&self, own: &Helpers, line: &mut Line) -> ([Option<Call>; 2], Option<Arc<Helpers>>) {
        let mut calls = [None, None];
        for call in &mut calls {
            if !line.needs_more() {
                break;
            }
            *call = own.call_idle(self).or_else(|| line.call_idle(self));
            if call.is_none() {
                return (calls, line.ask(self));
            }
            line.add_coming();
        }
        (calls, None)
    }

    /// Has another I/O thread do what one was to do for it that ends.
    fn pass_on(&self) {
        let line = self.lock();
        let asked = if line.needs_more() { line.ask(self) } else { None };
        drop(line);
        if let Some(asked) = asked {
            asked.thread.see_to_short();
        }
    }
}

/// One whose jobs are done one after the other.
impl Default for Owner {
    fn default() -> Self {
        Self::with_helpers(1)
    }
}

impl Line {
    /// Takes a job back; false if it has begun.
    pub(super) fn withdraw(&mut self, number: u64) -> bool {
        let place = self.jobs.binary_search_by_key(&number, |queued| queued.number);
        place.is_ok_and(|place| self.jobs.remove(place).is_some())
    }

    /// Whether one more helper is wanted: there are more jobs than helpers on their way, and no more are on their way than have come.
    /// While there are jobs and helpers, one is on its way, or all are at work that there may be, or an I/O thread is to send one. While
    /// there are jobs and none, who waits for them looks for one.
    fn needs_more(&self) -> bool {
        let here = self.helpers - self.coming;
        self.jobs.len() > self.coming && self.coming <= here && self.helpers < self.helpers_max
    }

    fn add_coming(&mut self) {
        self.helpers += 1;
        self.coming += 1;
    }

    /// Chooses an idle helper for `owner`, of an I/O thread that waits for one of its jobs.
    fn call_idle(&self, owner: &Owner) -> Option<Call> {
        let mut last = None;
        self.jobs.iter().map(|queued| &queued.helpers).find_map(|helpers| {
            // Mostly they come in a row, or all from one.
            let seen = last.replace(helpers).is_some_and(|last| Arc::ptr_eq(last, helpers));
            if seen { None } else { helpers.call_idle(owner) }
        })
    }

    /// An I/O thread that waits for one of the jobs of `owner`, and is to send one more helper from now on. It is still to be told so.
    fn ask(&self, owner: &Owner) -> Option<Arc<Helpers>> {
        self.jobs.iter().map(|queued| &queued.helpers).find(|helpers| helpers.keep(owner)).cloned()
    }
}

#[derive(Default)]
struct State {
    /// Those that have nothing to do; the last one has been at work most recently.
    idle: Vec<Arc<Seat>>,
    threads: usize,
    /// Owners that are to have one more as soon as the host starts it.
    short: Vec<Owner>,
    closed: bool,
    /// The host starts none.
    #[cfg(test)]
    no_threads: bool,
    #[cfg(test)]
    refused: usize,
}

impl State {
    /// Chooses an idle one.
    fn call(&mut self, owner: &Owner) -> Option<Call> {
        Some(Call { seat: self.idle.pop()?, owner: owner.clone() })
    }
}

/// The helper threads of one I/O thread, started when needed.
pub(super) struct Helpers {
    state: Mutex<State>,
    /// It starts them: no other thread may in the sandbox.
    thread: Remote,
}

/// Where a helper waits.
struct Seat {
    thread: Thread,
    turn: Mutex<Option<Owner>>,
}

/// A helper that was chosen to work for an owner. It is told so when this is dropped, which is to be without any lock.
pub(super) struct Call {
    seat: Arc<Seat>,
    owner: Owner,
}

impl Drop for Call {
    fn drop(&mut self) {
        *lock(&self.seat.turn) = Some(self.owner.clone());
        self.seat.thread.unpark();
    }
}

/// Owners that an I/O thread has given jobs in this round, and the helpers that were chosen for them. These are woken at its end, as the ring
/// gets then what is for it: to wake a thread takes longer than a short job, and one may do many.
#[derive(Default)]
pub(super) struct Given(RefCell<Vec<(Owner, Option<Call>)>>);

impl Given {
    /// Gives `owner` a job: its number, and whether there is a helper that comes to it; fails when the I/O thread ends.
    pub(super) fn queue(
        &self,
        helpers: &Arc<Helpers>,
        owner: &Owner,
        job: Arc<dyn Job>,
    ) -> io::Result<(u64, bool)> {
        let mut given = self.0.borrow_mut();
        let known = given.iter().any(|(other, _)| Arc::ptr_eq(&other.0, &owner.0));
        let (number, served, call) = helpers.queue(owner, job, !known)?;
        if !known || call.is_some() {
            given.push((owner.clone(), call));
        }
        Ok((number, served))
    }

    /// The round is over: whether an owner stays short of helpers.
    pub(super) fn call(&self, helpers: &Arc<Helpers>) -> bool {
        let mut short = false;
        for (owner, call) in self.0.borrow_mut().drain(..) {
            drop(call);
            short |= helpers.see_to(&owner);
        }
        short
    }
}

impl Helpers {
    /// See [`Given::queue`]. Without `now`, and with a helper for that owner, another is asked for later.
    fn queue(
        self: &Arc<Self>,
        owner: &Owner,
        job: Arc<dyn Job>,
        now: bool,
    ) -> io::Result<(u64, bool, Option<Call>)> {
        let mut line = owner.lock();
        let number = line.next;
        line.next += 1;
        line.jobs.push_back(Queued { number, job, helpers: self.clone() });
        let asked = if now || line.helpers == 0 { self.ask(owner, number, &mut line) } else { Ok(None) };
        let served = line.helpers > 0;
        match asked {
            Err(e) if !served && lock(&self.state).closed && line.withdraw(number) => Err(e),
            // One that could not be started for an owner that has others is asked for again at the end of the round.
            asked => Ok((number, served, asked.ok().flatten())),
        }
    }

    /// Those of the thread behind `thread`.
    pub(super) fn new(thread: Remote) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), thread })
    }

    /// Sends `owner` one more helper where that has too few: whether it has too few all the same, and [`Self::see_to_short`] is to be called
    /// later. To be called on the I/O thread.
    fn see_to(self: &Arc<Self>, owner: &Owner) -> bool {
        let mut line = owner.lock();
        // Where there is none at all the first who waits asks the host.
        let has_some = line.helpers > 0;
        let sent = if line.needs_more() { self.send(owner, &mut line, has_some) } else { Ok(None) };
        drop(line);
        let short = sent.is_err() && has_some;
        drop(sent);
        if short && !self.keep(owner) {
            owner.pass_on();
        }
        short
    }

    /// As [`Self::see_to`], for all owners that have too few.
    pub(super) fn see_to_short(self: &Arc<Self>) -> bool {
        let owners = std::mem::take(&mut lock(&self.state).short);
        owners.iter().fold(false, |short, owner| self.see_to(owner) | short)
    }

    /// Keeps `owner` for [`Self::see_to_short`]; false when the I/O thread ends.
    fn keep(&self, owner: &Owner) -> bool {
        let mut state = lock(&self.state);
        if !state.closed && !state.short.iter().any(|other| Arc::ptr_eq(&other.0, &owner.0)) {
            state.short.push(owner.clone());
        }
        !state.closed
    }

    /// Looks again for a helper for job `number` that has none: whether there is one. Fails, if it is the `last` time, where there is no
    /// thread at all: then the job is not done any more.
    pub(super) fn look_again(self: &Arc<Self>, owner: &Owner, number: u64, last: bool) -> io::Result<bool> {
        let mut line = owner.lock();
        let asked = if line.helpers == 0 { self.ask(owner, number, &mut line) } else { Ok(None) };
        let served = line.helpers > 0;
        match asked {
            Err(e) if last && lock(&self.state).threads == 0 && line.withdraw(number) => Err(e),
            asked => {
                drop(line);
                // Who was found is called.
                drop(asked);
                Ok(served)
            }
        }
    }

    /// Asks for a helper for job `number`. Where there is none only the first of a line asks the host: each time costs it.
    fn ask(self: &Arc<Self>, owner: &Owner, number: u64, line: &mut Line) -> io::Result<Option<Call>> {
        if !line.needs_more() {
            return Ok(None);
        }
        let may_start = line.helpers > 0 || line.jobs.front().is_some_and(|first| first.number == number);
        self.send(owner, line, may_start)
    }

    /// Sends `owner` one more helper: an idle one, which is to be called, or a new one if it `may_start` one.
    fn send(self: &Arc<Self>, owner: &Owner, line: &mut Line, may_start: bool) -> io::Result<Option<Call>> {
        let mut state = lock(&self.state);
        #[cfg(test)]
        if state.no_threads {
            state.refused += usize::from(may_start);
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        if state.closed {
            return Err(io::Error::other("the I/O thread is ending"));
        }
        let mut call = state.call(owner);
        drop(state);
        if call.is_none() {
            if !may_start {
                return Err(io::Error::from_raw_os_error(libc::EAGAIN));
            }
            call = line.call_idle(owner);
        }
        if call.is_none() {
            self.start(owner.clone())?;
        }
        line.add_coming();
        Ok(call)
    }

    /// Starts one more, for `first`.
    fn start(self: &Arc<Self>, first: Owner) -> io::Result<()> {
        // Before it may end.
        lock(&self.state).threads += 1;
        let helpers = self.clone();
        let started = threads::spawn(Kind::IoHelper, "io-helper", move || helpers.serve(first));
        started.map(drop).inspect_err(|_| lock(&self.state).threads -= 1)
    }

    /// Chooses an idle one for `owner`.
    fn call_idle(&self, owner: &Owner) -> Option<Call> {
        lock(&self.state).call(owner)
    }

    /// The I/O thread ends. Lets idle helpers end, and other threads do what was asked of this one. Running jobs finish on their own; what
    /// has not begun goes with its future.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.idle.iter().for_each(|seat| seat.thread.unpark());
        let short = std::mem::take(&mut state.short);
        drop(state);
        short.iter().for_each(Owner::pass_on);
    }

    fn serve(&self, first: Owner) {
        let seat = Arc::new(Seat { thread: std::thread::current(), turn: Mutex::default() });
        let mut next = Some(first);
        while let Some(owner) = next {
            owner.serve(self);
            drop(owner);
            next = self.next_turn(&seat);
        }
    }

    /// The next owner that wants the helper of this seat; `None` when it is to end.
    fn next_turn(&self, seat: &Arc<Seat>) -> Option<Owner> {
        let begin = Instant::now();
        let mut state = lock(&self.state);
        if state.closed {
            state.threads -= 1;
            return None;
        }
        state.idle.push(seat.clone());
        drop(state);
        loop {
            std::thread::park_timeout(IDLE.saturating_sub(begin.elapsed()).max(MOMENT));
            if let Some(owner) = lock(&seat.turn).take() {
                return Some(owner);
            }
            let mut state = lock(&self.state);
            if !state.closed && begin.elapsed() < IDLE {
                continue;
            }
            // One that is not there any more was chosen, and is about to be called.
            if let Some(place) = state.idle.iter().position(|other| Arc::ptr_eq(other, seat)) {
                state.idle.remove(place);
                state.threads -= 1;
                return None;
            }
        }
    }
}

#[cfg(test)]
impl Io {
    /// As [`Helpers::set_no_threads`].
    pub(crate) fn set_no_threads(&self, no_threads: bool) {
        self.core.helpers.set_no_threads(no_threads);
    }
}

#[cfg(test)]
impl Helpers {
    /// Whether the host starts threads from now on.
    pub(super) fn set_no_threads(&self, no_threads: bool) {
        lock(&self.state).no_threads = no_threads;
    }

    pub(super) fn threads(&self) -> usize {
        lock(&self.state).threads
    }

    pub(super) fn idle(&self) -> usize {
        lock(&self.state).idle.len()
    }

    /// How often one was asked for in vain.
    pub(super) fn refused(&self) -> usize {
        lock(&self.state).refused
    }
}
