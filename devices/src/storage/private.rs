//! Transfers through memory that the guest does not see, so that they can be abandoned at any moment: the kernel cannot be
//! made to give memory back while the host does not answer, but then it is not the guest's.
//!
//! A read is copied to the guest when it has arrived, if somebody still waits for it. A write is copied from the guest before it
//! begins; what the guest does to its memory afterwards changes nothing. Each image has some memory of its own, and may have more
//! of what all have in common: a disk that hangs uses up no other's, and nobody waits for another.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::error::Action;
use super::{BlockBackend, BlockError, BlockErrorKind, ByteOffset, Durability};
use crate::iothread::Io;
use crate::mem::{FromGuest, Lendable, Lender, SgList, ToGuest};

/// Bytes of a buffer from which on its transfer is long. Short ones have memory of their own, and wait for no long one's.
const LONG: u64 = 64 << 10;
/// Memory of one image at most, in bytes, for short transfers and for long ones.
const BUDGETS: (u64, u64) = (2 << 20, 14 << 20);
/// And of one that goes through the host's cache. The kernel gets less than that at a time (see [`crate::iothread`]), and this
/// thread copies it once more: what waited for that in more memory would be out of the processor's cache.
const CACHED: (u64, u64) = (2 << 20, 3 << 20);
/// What all images of the process have at most beyond the own of each, in bytes.
const COMMON: u64 = 256 << 20;
/// What each may always have of both, in bytes: the largest buffer, so that who waits does so for transfers of the same image.
const OWN: (u64, u64) = (LONG, PIECE);
/// What an image keeps for the next transfers at most, and all images of the process, in bytes.
const KEPT: u64 = 4 << 20;
const ALL_KEPT: u64 = 128 << 20;
/// And for how long after the last one.
const IDLE: Duration = Duration::from_secs(5);
/// Longer transfers go in pieces of this many bytes: the largest buffer.
pub(crate) const PIECE: u64 = 1 << 20;
/// The smallest buffer, in bytes.
const SMALLEST: u64 = 4096;
/// Sizes of buffers: powers of two.
const SIZES: usize = (PIECE / SMALLEST).trailing_zeros() as usize + 1;

/// What several images have in common.
struct Common {
    taken: AtomicU64,
    most: u64,
    kept: AtomicU64,
    idle: Duration,
}

static COMMON_MEMORY: Common = Common::new(COMMON, IDLE);

impl Common {
    const fn new(most: u64, idle: Duration) -> Self {
        Self { taken: AtomicU64::new(0), most, kept: AtomicU64::new(0), idle }
    }

    fn take(&self, bytes: u64) -> bool {
        let more = |taken: u64| taken.checked_add(bytes).filter(|all| *all <= self.most);
        bytes == 0 || self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Whether so many bytes may be kept.
    fn keep(&self, bytes: u64) -> bool {
        let more = |kept: u64| kept.checked_add(bytes).filter(|all| *all <= ALL_KEPT);
        self.kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// So many are not kept any more.
    fn forget(&self, bytes: u64) {
        self.kept.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn give(&self, bytes: u64) {
        if bytes > 0 {
            self.taken.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

#[derive(Default)]
struct State {
    /// Buffers that nobody has, by size.
    free: [Vec<Arc<Lendable>>; SIZES],
    /// Bytes of those.
    kept: u64,
    short: Share,
    long: Share,
    /// How many buffers were lent so far.
    loans: u64,
    next: u64,
}

/// What the short transfers of an image have, or the long ones.
#[derive(Default)]
struct Share {
    /// Bytes that may be lent at most, and what of that is the image's own.
    budget: u64,
    own: u64,
    /// Bytes that are lent.
    lent: u64,
    /// In the order of arrival, which is that of their numbers.
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    number: u64,
    size: u64,
    /// Its bytes are counted as lent.
    granted: bool,
    waker: Option<Waker>,
}

/// The private memory of an image.
pub(crate) struct PrivateMemory {
    /// What direct I/O demands of addresses, and no less than a page.
    align: usize,
    common: &'static Common,
    state: Mutex<State>,
    /// A task looks whether what is kept is still used.
    ageing: AtomicBool,
}

/// A place in the queue, for as long as somebody waits there.
struct Place<'a> {
    memory: &'a PrivateMemory,
    size: u64,
    number: u64,
}

impl PrivateMemory {
    /// For a device of the host, whose commands are to be aligned so; as many bytes for short ones and for long ones at most.
    pub(crate) fn of_device(align: u32, short: u64, long: u64) -> Arc<Self> {
        Self::with_budgets(align, (short, long), &COMMON_MEMORY)
    }

    /// For an image whose transfers are to be aligned so.
    pub(super) fn new(dma_align: u32) -> Arc<Self> {
        // Direct I/O demands more.
        let cached = dma_align <= 1;
        Self::with_budgets(dma_align, if cached { CACHED } else { BUDGETS }, &COMMON_MEMORY)
    }

    fn with_budgets(dma_align: u32, (short, long): (u64, u64), common: &'static Common) -> Arc<Self> {
        let align = (dma_align as usize).next_power_of_two().max(SMALLEST as usize);
        let share = |budget, own| Share { budget, own, ..Share::default() };
        let state = State { short: share(short, OWN.0), long: share(long, OWN.1), ..State::default() };
        Arc::new(Self { align, common, state: Mutex::new(state), ageing: AtomicBool::new(false) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer of `len` bytes, if there is one without waiting.
    pub(super) fn try_lend(self: &Arc<Self>, len: u64) -> Option<SgList> {
        let size = size_for(len)?;
        let mut state = self.lock();
        let share = state.share(size);
        if !share.waiting.is_empty() || !share.count(self.common, size) {
            return None;
        }
        self.buffer(state, size, len)
    }

    /// Waits for a buffer of `len` bytes, [`PIECE`] at most. Who does not wait any more leaves nothing behind.
    pub(crate) async fn lend(self: &Arc<Self>, len: u64) -> Result<SgList, BlockError> {
        let none = || BlockError::new(BlockErrorKind::HostResources, "no host memory for a transfer");
        let size = size_for(len).ok_or_else(none)?;
        let place = self.queue(size);
        poll_fn(|cx| self.poll_grant(&place, cx)).await;
        self.buffer(self.lock(), size, len).ok_or_else(none)
    }

    /// A buffer whose bytes are counted as lent already.
    fn buffer(self: &Arc<Self>, mut state: MutexGuard<'_, State>, size: u64, len: u64) -> Option<SgList> {
        state.loans += 1;
        let free = state.free.get_mut(class(size)).and_then(Vec::pop);
        if free.is_some() {
            state.kept -= size;
            self.common.forget(size);
        }
        drop(state);
        let make = || {
            let lender: Weak<Self> = Arc::downgrade(self);
            Lendable::new(size as usize, self.align, lender)
        };
        match free.or_else(make) {
            Some(buffer) => Some(SgList::lent(buffer, len as usize)),
            None => {
                self.returned(size, size);
                None
            }
        }
    }

    fn queue(&self, size: u64) -> Place<'_> {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        let share = state.share(size);
        share.waiting.push_back(Waiting { number, size, granted: false, waker: None });
        // Perhaps one before, whose turn came this moment.
        let granted = share.grant(self.common);
        drop(state);
        if let Some(waker) = granted.flatten() {
            waker.wake();
        }
        Place { memory: self, size, number }
    }

    fn poll_grant(&self, place: &Place<'_>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        let waiting = &mut state.share(place.size).waiting;
        let Ok(at) = waiting.binary_search_by_key(&place.number, |one| one.number) else {
            return Poll::Ready(());
        };
        let Some(one) = waiting.get_mut(at) else { return Poll::Ready(()) };
        if !one.granted {
            one.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        waiting.remove(at);
        Poll::Ready(())
    }

    /// So many bytes are not lent any more, of those that buffers of this size are of.
    fn returned(&self, bytes: u64, size: u64) {
        let mut state = self.lock();
        state.share(size).give(self.common, bytes);
        // Nearly always there is nothing more to do.
        while state.kept > KEPT || !state.short.waiting.is_empty() || !state.long.waiting.is_empty() {
            let (excess, granted) = (state.excess(self.common), state.grant(self.common));
            let over = excess.is_none() && granted.is_none();
            drop(state);
            drop(excess);
            if let Some(waker) = granted.flatten() {
                waker.wake();
            }
            if over {
                return;
            }
            state = self.lock();
        }
    }

    /// Has what is kept go back some time after it was used last.
    pub(crate) fn age(self: &Arc<Self>, io: &Io) {
        if self.ageing.load(Ordering::Relaxed) || self.ageing.swap(true, Ordering::Relaxed) {
            return;
        }
        let (mut ageing, thread, idle) = (Ageing(Arc::downgrade(self)), io.clone(), self.common.idle);
        io.spawn(async move {
            let mut seen = 0;
            loop {
                thread.sleep(idle).await;
                let Some(memory) = ageing.0.upgrade() else { return };
                if memory.is_forgotten(&mut seen) {
                    std::mem::take(&mut ageing.0);
                    return;
                }
            }
        });
    }

    /// Forgets what is kept if there were no more than `seen` loans; true when there is nothing left to look at.
    fn is_forgotten(&self, seen: &mut u64) -> bool {
        let mut state = self.lock();
        if std::mem::replace(seen, state.loans) != state.loans {
            return false;
        }
        let free = std::mem::take(&mut state.free);
        self.common.forget(std::mem::take(&mut state.kept));
        // What hangs is still to come back. With the lock: who borrows later sees it.
        let over = (state.short.lent, state.long.lent) == (0, 0);
        if over {
            self.ageing.store(false, Ordering::Relaxed);
        }
        drop(state);
        drop(free);
        over
    }

    /// Fills `into`, in as many pieces as it takes.
    pub(super) async fn read<B: BlockBackend>(
        self: &Arc<Self>,
        backend: &B,
        io: &Io,
        at: ByteOffset,
        into: ToGuest,
    ) -> Result<(), BlockError> {
        check(backend, Action::Read, at, into.len())?;
        let mut done = 0;
        while done < into.len() {
            let at = at.0 + done;
            let len = piece(at, into.len() - done);
            let buffer = self.lend(len).await?;
            self.age(io);
            backend.read(io, ByteOffset(at), ToGuest::new(buffer.window(0, len))).await?;
            io.copy(&buffer, &into.window(done, len)).await;
            done += len;
        }
        Ok(())
    }

    /// Writes all of `from`, in as many pieces as it takes.
    pub(super) async fn write<B: BlockBackend>(
        self: &Arc<Self>,
        backend: &B,
        io: &Io,
        at: ByteOffset,
        from: FromGuest,
        durability: Durability,
    ) -> Result<(), BlockError> {
        check(backend, Action::Write, at, from.len())?;
        let mut done = 0;
        while done < from.len() {
            let at = at.0 + done;
            let len = piece(at, from.len() - done);
            let buffer = self.lend(len).await?;
            self.age(io);
            let part = fetched(io, &from.window(done, len), buffer);
            backend.write(io, ByteOffset(at), part, durability).await?;
            done += len;
        }
        Ok(())
    }
}

impl State {
    /// Of which a buffer of this size is.
    fn share(&mut self, size: u64) -> &mut Share {
        if size < LONG { &mut self.short } else { &mut self.long }
    }

    fn grant(&mut self, common: &Common) -> Option<Option<Waker>> {
        self.short.grant(common).or_else(|| self.long.grant(common))
    }

    /// A buffer that is too much to be kept.
    fn excess(&mut self, common: &Common) -> Option<Arc<Lendable>> {
        if self.kept <= KEPT {
            return None;
        }
        // Of the size that has most, so that each size in use has some.
        let fullest = self.free.iter_mut().enumerate().max_by_key(|(class, free)| free.len() << class)?.1;
        let buffer = fullest.pop()?;
        self.kept -= buffer.len() as u64;
        common.forget(buffer.len() as u64);
        Some(buffer)
    }
}

impl Share {
    /// How much of so many bytes is of what all images have in common.
    fn beyond(&self, lent: u64) -> u64 {
        lent.saturating_sub(self.own)
    }

    /// Counts so many bytes more as lent, if the image may have them.
    fn count(&mut self, common: &Common, size: u64) -> bool {
        let lent = self.lent + size;
        let may = lent <= self.budget && common.take(self.beyond(lent) - self.beyond(self.lent));
        if may {
            self.lent = lent;
        }
        may
    }

    /// Lets in the one whose turn it is, if the budget goes so far; whoever is let in is to be woken.
    fn grant(&mut self, common: &Common) -> Option<Option<Waker>> {
        let place = self.waiting.iter().position(|one| !one.granted)?;
        let size = self.waiting.get(place)?.size;
        if !self.count(common, size) {
            return None;
        }
        let one = self.waiting.get_mut(place)?;
        one.granted = true;
        Some(one.waker.take())
    }

    fn give(&mut self, common: &Common, bytes: u64) {
        let before = self.beyond(self.lent);
        self.lent -= bytes;
        common.give(before - self.beyond(self.lent));
    }
}

impl Lender for PrivateMemory {
    fn take_back(&self, buffer: Arc<Lendable>) {
        let size = buffer.len() as u64;
        let mut state = self.lock();
        // Where others keep much, it goes back to the host.
        let mut excess = Some(buffer);
        if let Some(free) = state.free.get_mut(class(size))
            && self.common.keep(size)
        {
            free.extend(excess.take());
            state.kept += size;
        }
        drop(state);
        drop(excess);
        self.returned(size, size);
    }
}

impl Drop for PrivateMemory {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.common.forget(state.kept);
        for share in [&state.short, &state.long] {
            self.common.give(share.beyond(share.lent));
        }
    }
}

/// The task that looks; another may where it goes early.
struct Ageing(Weak<PrivateMemory>);

impl Drop for Ageing {
    fn drop(&mut self) {
        if let Some(memory) = self.0.upgrade() {
            memory.ageing.store(false, Ordering::Relaxed);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.memory.lock();
        let waiting = &mut state.share(self.size).waiting;
        let Ok(place) = waiting.binary_search_by_key(&self.number, |one| one.number) else { return };
        let gone = waiting.remove(place);
        drop(state);
        // Also when it had nothing yet: the next may need less.
        self.memory.returned(gone.filter(|one| one.granted).map_or(0, |one| one.size), self.size);
    }
}

/// What the guest writes, in private memory.
pub(super) fn fetched(io: &Io, from: &FromGuest, buffer: SgList) -> FromGuest {
    let buffer = ToGuest::new(buffer);
    from.copy_to(&buffer);
    io.moved(buffer.len());
    FromGuest::new(buffer.into_inner())
}

/// The size of the buffer for `len` bytes; `None` when there is none so large.
fn size_for(len: u64) -> Option<u64> {
    (len <= PIECE).then(|| len.next_power_of_two().max(SMALLEST))
}

fn class(size: u64) -> usize {
    (size / SMALLEST).trailing_zeros() as usize
}

/// How much of a transfer with `left` bytes to go from `at` on goes at once. Pieces end where blocks of the host do.
fn piece(at: u64, left: u64) -> u64 {
    if left <= PIECE { left } else { PIECE - at % PIECE }
}

/// What does not fit into the image is refused as a whole.
fn check<B: BlockBackend>(backend: &B, action: Action, at: ByteOffset, len: u64) -> Result<(), BlockError> {
    let end = backend.geometry().len;
    if at.0.checked_add(len).is_some_and(|stop| stop <= end) {
        return Ok(());
    }
    let context = format!("{action} {len} bytes at {} failed: the image has {end} bytes", at.0);
    Err(BlockError::new(BlockErrorKind::OutOfRange, context))
}

#[cfg(test)]
#[path = "private_tests.rs"]
mod tests;
