//! Transfers through memory that the guest does not see, so that they can be abandoned at any moment: the kernel cannot be
//! made to give memory back while the host does not answer, but then it is not the guest's.
//!
//! A read is copied to the guest when it has arrived, if somebody still waits for it. A write is copied from the guest before it
//! begins; what the guest does to its memory afterwards changes nothing. Each image has memory of its own: a disk that hangs
//! uses up no other's.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use super::error::Action;
use super::{BlockBackend, BlockError, BlockErrorKind, ByteOffset, Durability};
use crate::iothread::Io;
use crate::mem::{FromGuest, Lendable, Lender, SgList, ToGuest};

/// Memory of one image at most, in bytes.
const BUDGET: u64 = 16 << 20;
/// What is kept for the next transfers at most, in bytes.
const KEPT: u64 = 4 << 20;
/// Longer transfers go in pieces of this many bytes: the largest buffer.
pub(super) const PIECE: u64 = 1 << 20;
/// The smallest buffer, in bytes.
const SMALLEST: u64 = 4096;
/// Sizes of buffers: powers of two.
const SIZES: usize = (PIECE / SMALLEST).trailing_zeros() as usize + 1;

#[derive(Default)]
struct State {
    /// Buffers that nobody has, by size.
    free: [Vec<Arc<Lendable>>; SIZES],
    /// Bytes of those.
    kept: u64,
    /// Bytes that are lent.
    lent: u64,
    /// In the order of arrival, which is that of their numbers.
    waiting: VecDeque<Waiting>,
    next: u64,
}

struct Waiting {
    number: u64,
    size: u64,
    /// Its bytes are counted as lent.
    granted: bool,
    waker: Option<Waker>,
}

/// The private memory of an image.
pub(super) struct PrivateMemory {
    /// What direct I/O demands of addresses, and no less than a page.
    align: usize,
    budget: u64,
    state: Mutex<State>,
}

/// A place in the queue, for as long as somebody waits there.
struct Place<'a> {
    memory: &'a PrivateMemory,
    number: u64,
}

impl PrivateMemory {
    /// For an image whose transfers are to be aligned so.
    pub(super) fn new(dma_align: u32) -> Arc<Self> {
        Self::with_budget(dma_align, BUDGET)
    }

    fn with_budget(dma_align: u32, budget: u64) -> Arc<Self> {
        let align = (dma_align as usize).next_power_of_two().max(SMALLEST as usize);
        Arc::new(Self { align, budget, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer of `len` bytes, if there is one without waiting.
    pub(super) fn try_lend(self: &Arc<Self>, len: u64) -> Option<SgList> {
        let size = size_for(len)?;
        let mut state = self.lock();
        if !state.waiting.is_empty() || state.lent + size > self.budget {
            return None;
        }
        state.lent += size;
        self.buffer(state, size, len)
    }

    /// Waits for a buffer of `len` bytes, [`PIECE`] at most. Who does not wait any more leaves nothing behind.
    pub(super) async fn lend(self: &Arc<Self>, len: u64) -> Result<SgList, BlockError> {
        let none = || BlockError::new(BlockErrorKind::HostResources, "no host memory for a transfer");
        let size = size_for(len).ok_or_else(none)?;
        let place = self.queue(size);
        poll_fn(|cx| self.poll_grant(place.number, cx)).await;
        self.buffer(self.lock(), size, len).ok_or_else(none)
    }

    /// A buffer whose bytes are counted as lent already.
    fn buffer(self: &Arc<Self>, mut state: MutexGuard<'_, State>, size: u64, len: u64) -> Option<SgList> {
        let free = state.free.get_mut(class(size)).and_then(Vec::pop);
        state.kept -= if free.is_some() { size } else { 0 };
        drop(state);
        let make = || {
            let lender: Weak<Self> = Arc::downgrade(self);
            Lendable::new(size as usize, self.align, lender)
        };
        match free.or_else(make) {
            Some(buffer) => Some(SgList::lent(buffer, len as usize)),
            None => {
                self.returned(size);
                None
            }
        }
    }

    fn queue(&self, size: u64) -> Place<'_> {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.waiting.push_back(Waiting { number, size, granted: false, waker: None });
        // Perhaps one before, whose turn came this moment.
        let waker = self.grant(&mut state);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Place { memory: self, number }
    }

    fn poll_grant(&self, number: u64, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        let Ok(place) = state.waiting.binary_search_by_key(&number, |one| one.number) else {
            return Poll::Ready(());
        };
        let Some(one) = state.waiting.get_mut(place) else { return Poll::Ready(()) };
        if !one.granted {
            one.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.waiting.remove(place);
        Poll::Ready(())
    }

    /// Lets in the one whose turn it is, if the budget goes so far; whoever is let in is to be woken.
    fn grant(&self, state: &mut State) -> Option<Waker> {
        let State { waiting, lent, .. } = state;
        let one = waiting.iter_mut().find(|one| !one.granted)?;
        if *lent + one.size > self.budget {
            return None;
        }
        *lent += one.size;
        one.granted = true;
        one.waker.take()
    }

    /// So many bytes are not lent any more.
    fn returned(&self, size: u64) {
        let mut state = self.lock();
        state.lent -= size;
        // Nearly always there is nothing more to do.
        while state.kept > KEPT || !state.waiting.is_empty() {
            let (excess, before) = (state.excess(), state.lent);
            let waker = self.grant(&mut state);
            let over = excess.is_none() && state.lent == before;
            drop(state);
            drop(excess);
            if let Some(waker) = waker {
                waker.wake();
            }
            if over {
                return;
            }
            state = self.lock();
        }
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
            backend.read(io, ByteOffset(at), ToGuest::new(buffer.window(0, len))).await?;
            arrived(io, &buffer, &into.window(done, len));
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
            let part = fetched(io, &from.window(done, len), buffer);
            backend.write(io, ByteOffset(at), part, durability).await?;
            done += len;
        }
        Ok(())
    }
}

impl State {
    /// A buffer that is too much to be kept.
    fn excess(&mut self) -> Option<Arc<Lendable>> {
        if self.kept <= KEPT {
            return None;
        }
        // Of the size that has most, so that each size in use has some.
        let fullest = self.free.iter_mut().enumerate().max_by_key(|(class, free)| free.len() << class)?.1;
        let buffer = fullest.pop()?;
        self.kept -= buffer.len() as u64;
        Some(buffer)
    }
}

impl Lender for PrivateMemory {
    fn take_back(&self, buffer: Arc<Lendable>) {
        let size = buffer.len() as u64;
        let mut state = self.lock();
        if let Some(free) = state.free.get_mut(class(size)) {
            free.push(buffer);
            state.kept += size;
        }
        drop(state);
        self.returned(size);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.memory.lock();
        let Ok(place) = state.waiting.binary_search_by_key(&self.number, |one| one.number) else { return };
        let gone = state.waiting.remove(place);
        drop(state);
        // Also when it had nothing yet: the next may need less.
        self.memory.returned(gone.filter(|one| one.granted).map_or(0, |one| one.size));
    }
}

/// What a read brought goes to the guest.
pub(super) fn arrived(io: &Io, buffer: &SgList, to: &ToGuest) {
    buffer.copy_to(to);
    io.moved(buffer.len());
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
