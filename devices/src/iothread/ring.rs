//! The ring: operations that own what the kernel works on.
//!
//! An operation is moved into a slot and stays there until the kernel has posted its last completion. Its future
//! holds the slot's key only. New operations queue here and reach the kernel when the thread enters it, so a
//! full submission queue makes them wait in order and is never an error. Those of one file wait in order; the files take turns.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::abandoned::Abandoned;
use super::lanes::{Copied, Lanes, Share, Turn};
use super::op::{Op, Reach};
use super::setup;
use super::slots::{Key, Slots, Stage};
use io_uring::types::Fd;
use io_uring::{IoUring, cqueue, opcode, squeue};

/// Bytes of transfers after which the kernel gets them at once, and what is done meanwhile goes back, before more are queued:
/// the client goes on with those while the host moves the others, and nobody waits for much more than this. What is in the
/// host's cache is copied within the system call. One is little beside moving as much.
pub(super) const BYTES_PER_ENTER: u64 = 128 << 10;

/// Bit of the user data that marks the poll before the read of [`Op::Event`].
const PART: u64 = 1 << 31;
/// Error number of what its permit has kept from the kernel, which has none beyond 4095 (Linux, `MAX_ERRNO`).
pub(super) const WITHHELD: i32 = 4096;
/// User data of cancellations, whose own result is of no interest.
const CANCEL: u64 = u64::MAX;

/// What an operation ended with.
pub(super) struct Outcome {
    /// As of the completion entry: a count, or a negative error number.
    pub(super) result: i32,
    /// The count that [`Op::Event`] took.
    pub(super) count: u64,
    /// The operation, with its memory.
    pub(super) op: Op,
}

/// An abandoned operation that the kernel has not got, or has let go of.
pub(super) struct Gone {
    op: Op,
    /// As of the completion entry; 0 where the kernel has not got it.
    result: i32,
}

impl Gone {
    /// Tells who wants to know how it ended, and drops it. Not while the ring is borrowed.
    pub(super) fn settle(self) {
        self.op.abandoned(self.result);
    }
}

/// What came out of the ring, to be dealt with when the ring is not borrowed any more.
#[derive(Default)]
pub(super) struct Reaped {
    pub(super) wakers: Vec<Waker>,
    /// Abandoned operations that the kernel has let go of.
    pub(super) gone: Vec<Gone>,
}

impl Reaped {
    /// Wakes and drops all of it.
    pub(super) fn settle(&mut self) {
        self.gone.drain(..).for_each(Gone::settle);
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

/// An io_uring and the operations in it. Used by the thread that made it only.
pub(super) struct Ring {
    uring: IoUring,
    slots: Slots,
    /// Waits and timers: they only wait for room in the submission queue.
    waits: VecDeque<Key>,
    /// Transfers: they also wait for others to end.
    transfers: Lanes,
    cancels: VecDeque<u64>,
    /// The last entry left transfers for the next because of their size.
    cut: bool,
    /// Bytes of transfers that were queued since the kernel was entered last.
    bytes: u64,
    in_flight: usize,
    /// Operations that ended without the kernel since completions were taken last, and who waits for them.
    withheld: usize,
    withheld_wakers: Vec<Waker>,
    /// Transfers whose futures are gone while the kernel still works on them.
    detached: Abandoned,
    #[cfg(any(test, feature = "testing"))]
    stuck: Vec<Key>,
    #[cfg(any(test, feature = "testing"))]
    pub(super) tape: super::record::Tape,
}

impl Ring {
    /// A ring of `entries` submission entries, with the best set-up that the kernel offers. See [`setup::make`].
    pub(super) fn new(entries: u32, workers: &[usize]) -> io::Result<Self> {
        let uring = setup::make(entries, workers)?;
        let in_flight_max = uring.params().cq_entries() as usize;
        Ok(Self {
            uring,
            slots: Slots::default(),
            waits: VecDeque::new(),
            transfers: Lanes::new(in_flight_max),
            cancels: VecDeque::new(),
            cut: false,
            bytes: 0,
            in_flight: 0,
            withheld: 0,
            withheld_wakers: Vec::new(),
            detached: Abandoned::default(),
            #[cfg(any(test, feature = "testing"))]
            stuck: Vec::new(),
            #[cfg(any(test, feature = "testing"))]
            tape: Default::default(),
        })
    }

    /// Queues an operation of `scope`.
    pub(super) fn start(&mut self, op: Op, scope: u64) -> Key {
        let (lane, bytes, copied) = (op.lane(), op.bytes(), op.copied());
        self.bytes += if copied == Copied::Apart { 0 } else { bytes };
        let key = self.occupy(op, scope);
        match lane {
            Some(lane) => self.transfers.push(lane, key, bytes, copied),
            None => self.waits.push_back(key),
        }
        key
    }

    fn occupy(&mut self, op: Op, scope: u64) -> Key {
        let key = self.slots.occupy(op, scope);
        #[cfg(any(test, feature = "testing"))]
        if let Some(slot) = self.slots.named(key) {
            slot.op.borrow().iter().for_each(|op| self.tape.begin(key.index, op));
        }
        key
    }

    /// The outcome once it is there; before that, `waker` is woken when it comes.
    pub(super) fn poll(&mut self, key: Key, waker: &Waker) -> Poll<Outcome> {
        let Some(slot) = self.slots.named(key) else { return Poll::Pending };
        if slot.stage.get() != Stage::Done {
            register(&slot.waker, waker);
            return Poll::Pending;
        }
        let (result, count) = (slot.result.get(), slot.count.load(Ordering::Acquire));
        match self.slots.release(key) {
            Some(op) => Poll::Ready(Outcome { result, count, op }),
            None => Poll::Pending,
        }
    }

    /// Signals of an [`Op::Watch`] since the last call; `None` when it ended and must be released.
    pub(super) fn poll_watch(&mut self, key: Key, waker: &Waker) -> Poll<Option<u64>> {
        let Some(slot) = self.slots.named(key) else { return Poll::Ready(None) };
        let count = slot.count.swap(0, Ordering::AcqRel);
        if count > 0 {
            return Poll::Ready(Some(count));
        }
        if slot.stage.get() == Stage::Done {
            return Poll::Ready(None);
        }
        register(&slot.waker, waker);
        Poll::Pending
    }

    /// Gives up on an operation: cancels it, and frees what it owns when the kernel is done.
    ///
    /// Gives it back if the kernel does not have it; the caller drops it without borrowing the ring.
    pub(super) fn abandon(&mut self, key: Key) -> Option<Gone> {
        let slot = self.slots.named(key)?;
        slot.waker.set(None);
        match slot.stage.get() {
            Stage::Queued => {
                let lane = slot.lane.get();
                self.transfers.forget(lane, key);
                self.slots.release(key).map(|op| Gone { op, result: 0 })
            }
            Stage::Done => {
                let result = slot.result.get();
                self.slots.release(key).map(|op| Gone { op, result })
            }
            Stage::InFlight => {
                slot.stage.set(Stage::Detached);
                let (lane, share) = (slot.lane.get(), slot.share.take());
                let (transfer, event) = match slot.op.borrow().as_ref() {
                    Some(op) => (op.is_transfer().then(|| op.reach()), matches!(op, Op::Event(_))),
                    None => (None, false),
                };
                let scope = slot.scope.get();
                if let Some(reach) = transfer {
                    self.detached.add(scope, reach);
                }
                self.transfers.leave(lane, share);
                if event {
                    self.cancels.push_back(key.user_data() | PART);
                }
                self.cancels.push_back(key.user_data());
                None
            }
            Stage::Free | Stage::Detached => None,
        }
    }

    /// Whether no abandoned transfer of `scope`, of any scope when `None`, can do as much as `least` any more; else
    /// `waker` is woken then.
    pub(super) fn poll_quiet(&mut self, scope: Option<u64>, least: Reach, waker: &Waker) -> Poll<()> {
        self.detached.poll_quiet(scope, least, waker)
    }

    pub(super) fn is_quiet(&self, scope: Option<u64>, least: Reach) -> bool {
        self.detached.is_quiet(scope, least)
    }

    /// A helper thread works on for `scope` whose future is gone, and can do as much as `reach`.
    pub(super) fn abandoned_outside(&mut self, scope: u64, reach: Reach) {
        self.detached.add(scope, reach);
    }

    /// That is over; gives whom it concerns.
    pub(super) fn over_outside(&mut self, scope: u64, reach: Reach) -> Vec<Waker> {
        let mut wakers = Vec::new();
        self.detached.remove(scope, reach, &mut wakers);
        wakers
    }

    /// So much was copied meanwhile without the kernel.
    pub(super) fn moved(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Bytes of transfers that the kernel has not been told of, and of what was copied meanwhile.
    pub(super) fn queued_bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether this thread has copies of its own to make: then it makes no long one for the kernel.
    pub(super) fn copies_wait(&mut self, wait: bool) {
        self.transfers.copies_wait(wait);
    }

    /// Whether entering the kernel again, without waiting for anything, gives it more to do.
    pub(super) fn has_more_to_enter(&self) -> bool {
        self.cut
    }

    /// Hands queued operations to the kernel; with `sleep`, waits until something completes.
    pub(super) fn enter(&mut self, sleep: bool) -> io::Result<()> {
        self.bytes = 0;
        let room = self.fill();
        let idle = self.uring.completion().is_empty();
        let want = usize::from(sleep && room && idle && self.withheld == 0);
        let queue = self.uring.submission();
        let queued = queue.len();
        if want == 0 && queued == 0 && !queue.taskrun() && !queue.cq_overflow() {
            return Ok(());
        }
        drop(queue);
        match self.call(queued, want) {
            Ok(_) => Ok(()),
            Err(e) => match e.raw_os_error() {
                // A signal, or a completion queue that must be emptied first.
                Some(libc::EINTR | libc::EBUSY) => Ok(()),
                // The kernel is out of memory for requests: let others make progress.
                Some(libc::EAGAIN | libc::ENOMEM) => {
                    std::thread::sleep(Duration::from_millis(1));
                    Ok(())
                }
                _ => Err(e),
            },
        }
    }

    /// The one system call. Operations that the device ends at once have their completions when it returns, because it
    /// always looks for events: without that, it would take a second call to get them.
    fn call(&self, queued: usize, want: usize) -> io::Result<usize> {
        // IORING_ENTER_GETEVENTS of the kernel's interface.
        const GETEVENTS: u32 = 1;
        // SAFETY: entries are in the queue already, see `push`; there is no argument that the kernel would read.
        #[allow(unsafe_code)]
        unsafe {
            self.uring.submitter().enter::<libc::sigset_t>(queued as u32, want as u32, GETEVENTS, None)
        }
    }

    /// Whether completions wait, or the kernel has work that makes some.
    pub(super) fn has_completions(&mut self) -> bool {
        self.withheld > 0 || !self.uring.completion().is_empty() || self.uring.submission().taskrun()
    }

    /// Takes all completions; whom to wake and what to drop goes to `reaped`.
    pub(super) fn reap(&mut self, reaped: &mut Reaped) {
        self.withheld = 0;
        reaped.wakers.append(&mut self.withheld_wakers);
        let mut batch = [const { MaybeUninit::<cqueue::Entry>::uninit() }; 64];
        loop {
            let got = self.uring.completion().fill(&mut batch);
            if got.is_empty() {
                return;
            }
            for entry in got {
                self.complete(entry.user_data(), entry.result(), entry.flags(), reaped);
            }
        }
    }

    /// Cancels everything and waits until the kernel has let go of all memory.
    pub(super) fn drain(&mut self) -> io::Result<Reaped> {
        let mut reaped = Reaped::default();
        let all = self.slots.occupied();
        reaped.gone.extend(all.into_iter().filter_map(|key| self.abandon(key)));
        #[cfg(any(test, feature = "testing"))]
        self.unstick(&mut reaped);
        while self.in_flight > 0 {
            self.enter(true)?;
            self.reap(&mut reaped);
        }
        Ok(reaped)
    }

    /// Moves queued operations to the submission queue; false when some are left that do not wait for completions.
    fn fill(&mut self) -> bool {
        while let Some(&target) = self.cancels.front() {
            let entry = opcode::AsyncCancel::new(target).build().user_data(CANCEL);
            if !push(&mut self.uring, &entry) {
                return false;
            }
            self.cancels.pop_front();
        }
        while let Some(&key) = self.waits.front() {
            if !self.submit(key, Share::default()) {
                return false;
            }
            self.waits.pop_front();
        }
        let mut entered = 0;
        self.cut = false;
        while let Some(Turn { key, bytes, share }) = self.transfers.next(self.in_flight) {
            // A large one goes alone: the small ones before it are not held up by its copy.
            self.cut = entered >= BYTES_PER_ENTER || (entered > 0 && bytes >= BYTES_PER_ENTER);
            if self.cut || !self.submit(key, share) {
                return false;
            }
            entered += bytes;
            self.transfers.took();
        }
        true
    }

    /// Puts one operation into the submission queue; false when there is no room. If `share` says so, a thread of the kernel makes it.
    fn submit(&mut self, key: Key, share: Share) -> bool {
        let Some(slot) = self.slots.named(key).filter(|slot| slot.stage.get() == Stage::Queued) else {
            return true;
        };
        let op = slot.op.borrow();
        let Some(op) = op.as_ref() else { return true };
        if !op.may_begin() {
            slot.result.set(-WITHHELD);
            slot.stage.set(Stage::Done);
            self.withheld += 1;
            self.withheld_wakers.extend(slot.waker.take());
            #[cfg(any(test, feature = "testing"))]
            self.tape.end(key.index, -WITHHELD);
            return true;
        }
        let (queue, entries) = (self.uring.submission(), op.entries());
        // The two entries of an event wait are linked, and a link must not be cut by a submission.
        if queue.capacity() - queue.len() < entries {
            return false;
        }
        drop(queue);
        if let Op::Event(event) = op {
            let poll = opcode::PollAdd::new(Fd(event.as_raw_fd()), libc::POLLIN as u32).build();
            push(&mut self.uring, &poll.flags(squeue::Flags::IO_LINK).user_data(key.user_data() | PART));
        }
        match op.pieces() {
            Some(pieces) => pieces.for_each(|(at, list)| {
                push(&mut self.uring, &op.piece_entry(at, list).user_data(key.user_data()));
            }),
            None => {
                let entry = op.entry(&slot.count, &slot.time).user_data(key.user_data());
                push(&mut self.uring, &if share.apart { entry.flags(squeue::Flags::ASYNC) } else { entry });
            }
        }
        slot.stage.set(Stage::InFlight);
        slot.owed.set(entries as u8);
        slot.share.set(share);
        self.in_flight += entries;
        self.transfers.begun(slot.lane.get(), entries, share);
        true
    }

    fn complete(&mut self, user_data: u64, result: i32, flags: u32, reaped: &mut Reaped) {
        if user_data == CANCEL {
            return;
        }
        let key = Key { index: (user_data & (PART - 1)) as u32, generation: (user_data >> 32) as u32 };
        let Some(slot) = self.slots.named(key) else { return };
        if cqueue::more(flags) {
            slot.count.fetch_add(1, Ordering::AcqRel);
            reaped.wakers.extend(slot.waker.take());
            return;
        }
        if user_data & PART == 0 {
            // After a failed poll the linked read is cancelled: the reason is the poll's. Pieces of a transfer add up, and
            // one that was not begun hides no error of another.
            let before = slot.result.get();
            let hidden = before == -libc::ECANCELED && result < 0;
            if before >= 0 || hidden {
                slot.result.set(if result < 0 { result } else { before.saturating_add(result) });
            }
        } else if result < 0 {
            slot.result.set(result);
        }
        let owed = slot.owed.get().saturating_sub(1);
        slot.owed.set(owed);
        let (stage, lane) = (slot.stage.get(), slot.lane.get());
        let share = slot.share.take();
        let waker = if owed == 0 { slot.waker.take() } else { None };
        #[cfg(any(test, feature = "testing"))]
        let result = slot.result.get();
        self.in_flight = self.in_flight.saturating_sub(1);
        self.transfers.ended(lane);
        self.transfers.leave(lane, share);
        if share.apart && result == -libc::ECANCELED {
            self.transfers.no_thread();
        }
        if owed > 0 {
            return;
        }
        #[cfg(any(test, feature = "testing"))]
        self.tape.end(key.index, result);
        if stage == Stage::Detached {
            self.let_go(key, reaped);
        } else if let Some(slot) = self.slots.named(key) {
            slot.stage.set(Stage::Done);
            reaped.wakers.extend(waker);
        }
    }

    /// Frees an abandoned operation whose last completion has come.
    fn let_go(&mut self, key: Key, reaped: &mut Reaped) {
        let Some(slot) = self.slots.named(key) else { return };
        let (result, scope) = (slot.result.get(), slot.scope.get());
        let Some(op) = self.slots.release(key) else { return };
        if op.is_transfer() {
            self.detached.remove(scope, op.reach(), &mut reaped.wakers);
        }
        reaped.gone.push(Gone { op, result });
    }
}

/// Operations that a device of the host never ends.
#[cfg(any(test, feature = "testing"))]
impl Ring {
    /// How many of them.
    pub(super) fn hanging(&self) -> usize {
        self.stuck.len()
    }

    /// As [`Self::start`], but the kernel, as it seems, does not answer.
    pub(super) fn start_stuck(&mut self, op: Op, scope: u64) -> Key {
        let key = self.occupy(op, scope);
        if let Some(slot) = self.slots.named(key) {
            slot.stage.set(Stage::InFlight);
            slot.owed.set(1);
            let lane = slot.lane.get();
            let share =
                slot.op.borrow().as_ref().map_or(Share::default(), |op| Share::here(op.copied(), op.bytes()));
            slot.share.set(share);
            self.transfers.begun(lane, 1, share);
        }
        self.in_flight += 1;
        self.stuck.push(key);
        key
    }

    /// The device fails all that it had not answered.
    pub(super) fn unstick(&mut self, reaped: &mut Reaped) {
        self.end_stuck(|_| -libc::EIO, reaped);
    }

    /// The device ends all that it had not answered: `how` says with which result.
    pub(super) fn end_stuck(&mut self, how: impl Fn(&Op) -> i32, reaped: &mut Reaped) {
        for key in std::mem::take(&mut self.stuck) {
            let result = self.slots.named(key).and_then(|slot| slot.op.borrow().as_ref().map(&how));
            self.complete(key.user_data(), result.unwrap_or(-libc::EIO), 0, reaped);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.drain().is_err() {
            // The kernel may still write to what the slots own: better lost than reused.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

fn push(uring: &mut IoUring, entry: &squeue::Entry) -> bool {
    // SAFETY: entries are cancellations, which point nowhere, or come from [`Op::entry`] for a slot that goes to
    // `InFlight`. Descriptors, segment lists and memory behind them belong to the slot's `op`, other
    // pointers lead into the slot itself. A slot never moves and its `op` is neither changed nor dropped
    // before the last completion was reaped: `release` is only reached from `Queued`, from `Done`, or
    // with nothing owed any more; dropping the ring drains it or leaks the slots.
    #[allow(unsafe_code)]
    unsafe {
        uring.submission().push(entry).is_ok()
    }
}

fn register(place: &Cell<Option<Waker>>, waker: &Waker) {
    let known = place.take();
    place.set(Some(known.filter(|w| w.will_wake(waker)).unwrap_or_else(|| waker.clone())));
}
