//! A disk in memory that misbehaves on demand.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::RamDisk;
use crate::iothread::Io;
use crate::mem::{FromGuest, ToGuest};
use crate::storage::{
    Action, BlockBackend, BlockError, BlockErrorKind, ByteOffset, Durability, Extent, Geometry, Span, Unmap,
};

/// What happens to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails and does nothing.
    Fail(BlockErrorKind),
    /// It moves this many bytes and then fails.
    Short(u64, BlockErrorKind),
    /// It takes this long and then succeeds.
    Delay(Duration),
    /// It waits for [`FaultDisk::release`] and then succeeds.
    Stall,
}

/// Which operations an effect is for.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// What is done; `None` for anything.
    pub action: Option<Action>,
    /// Operations that touch this range; `None` for all. Flushes touch every range.
    pub span: Option<Span>,
    /// How many operations it hits before it is used up; `None` for all.
    pub times: Option<u32>,
    /// What happens.
    pub effect: Effect,
}

impl Fault {
    /// Hits every operation of one kind.
    pub fn every(action: Action, effect: Effect) -> Self {
        Self { action: Some(action), span: None, times: None, effect }
    }

    /// Hits the next operation of one kind.
    pub fn next(action: Action, effect: Effect) -> Self {
        Self { times: Some(1), ..Self::every(action, effect) }
    }

    fn hits(&self, action: Action, at: u64, len: u64) -> bool {
        let within = self.span.is_none_or(|span| {
            action == Action::Flush || (at < span.at.0.saturating_add(span.len) && span.at.0 < at + len)
        });
        within && self.action.is_none_or(|wanted| wanted == action)
    }
}

#[derive(Default)]
struct State {
    faults: Vec<Fault>,
    seen: Vec<Action>,
    stalled: usize,
    releases: u64,
    wakers: Vec<Waker>,
}

/// A disk in memory that misbehaves on demand. The first fault that hits an operation decides.
pub struct FaultDisk {
    disk: RamDisk,
    state: Mutex<State>,
    at_end: Mutex<Option<Work>>,
}

type Work = Box<dyn FnOnce() + Send>;

impl Drop for FaultDisk {
    fn drop(&mut self) {
        if let Some(work) = self.at_end.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            work();
        }
    }
}

impl FaultDisk {
    /// Behaves well until [`FaultDisk::inject`].
    pub fn new(disk: RamDisk) -> Self {
        Self { disk, state: Mutex::default(), at_end: Mutex::default() }
    }

    /// Adds a fault behind those already there.
    pub fn inject(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Removes all faults. Stalled operations stay stalled.
    pub fn heal(&self) {
        self.lock().faults.clear();
    }

    /// Lets all stalled operations go on.
    pub fn release(&self) {
        let mut state = self.lock();
        state.releases += 1;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// What letting go of it takes: the last close of a file waits for its server.
    pub fn at_end(&self, work: impl FnOnce() + Send + 'static) {
        *self.at_end.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(work));
    }

    /// Number of operations that are stalled now.
    pub fn stalled(&self) -> usize {
        self.lock().stalled
    }

    /// All operations so far, in the order of their start.
    pub fn seen(&self) -> Vec<Action> {
        self.lock().seen.clone()
    }

    /// The disk below.
    pub fn disk(&self) -> &RamDisk {
        &self.disk
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn meet(&self, action: Action, at: u64, len: u64) -> Option<Effect> {
        let mut state = self.lock();
        state.seen.push(action);
        let fault = state.faults.iter_mut().find(|f| f.times != Some(0) && f.hits(action, at, len))?;
        fault.times = fault.times.map(|n| n - 1);
        Some(fault.effect)
    }

    /// Runs the effect; `Ok` with how many bytes may move, and the error that comes after them.
    async fn suffer(
        &self,
        io: &Io,
        action: Action,
        at: u64,
        len: u64,
    ) -> Result<Option<(u64, BlockError)>, BlockError> {
        let error = |kind| BlockError::new(kind, format!("{action} {len} bytes at {at}: injected"));
        match self.meet(action, at, len) {
            None => Ok(None),
            Some(Effect::Fail(kind)) => Err(error(kind)),
            Some(Effect::Short(moved, kind)) => Ok(Some((moved.min(len), error(kind)))),
            Some(Effect::Delay(time)) => {
                io.sleep(time).await;
                Ok(None)
            }
            Some(Effect::Stall) => {
                self.stall().await;
                Ok(None)
            }
        }
    }

    async fn stall(&self) {
        struct Stalled<'a>(&'a FaultDisk);
        impl Drop for Stalled<'_> {
            fn drop(&mut self) {
                self.0.lock().stalled -= 1;
            }
        }
        let before = {
            let mut state = self.lock();
            state.stalled += 1;
            state.releases
        };
        let _stalled = Stalled(self);
        poll_fn(|cx| {
            let mut state = self.lock();
            if state.releases > before {
                return Poll::Ready(());
            }
            state.wakers.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl BlockBackend for FaultDisk {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    async fn read(&self, io: &Io, at: ByteOffset, mut into: ToGuest) -> Result<(), BlockError> {
        match self.suffer(io, Action::Read, at.0, into.len()).await? {
            None => self.disk.read(io, at, into).await,
            Some((moved, error)) => {
                into.truncate(moved);
                self.disk.read(io, at, into).await.and(Err(error))
            }
        }
    }

    async fn write(
        &self,
        io: &Io,
        at: ByteOffset,
        mut from: FromGuest,
        durability: Durability,
    ) -> Result<(), BlockError> {
        match self.suffer(io, Action::Write, at.0, from.len()).await? {
            None => self.disk.write(io, at, from, durability).await,
            Some((moved, error)) => {
                from.truncate(moved);
                self.disk.write(io, at, from, durability).await.and(Err(error))
            }
        }
    }

    async fn flush(&self, io: &Io) -> Result<(), BlockError> {
        match self.suffer(io, Action::Flush, 0, 0).await? {
            None => self.disk.flush(io).await,
            Some((_, error)) => Err(error),
        }
    }

    fn is_unflushed(&self) -> bool {
        self.disk.is_unflushed()
    }

    async fn zero(&self, io: &Io, span: Span, unmap: Unmap) -> Result<(), BlockError> {
        match self.suffer(io, Action::Zero, span.at.0, span.len).await? {
            None => self.disk.zero(io, span, unmap).await,
            Some((moved, error)) => {
                self.disk.zero(io, Span { at: span.at, len: moved }, unmap).await.and(Err(error))
            }
        }
    }

    async fn extent(&self, io: &Io, span: Span) -> Result<Extent, BlockError> {
        self.disk.extent(io, span).await
    }

    async fn refresh(&self, io: &Io) {
        self.disk.refresh(io).await
    }

    async fn grow(&self, io: &Io, len: u64) -> Result<(), BlockError> {
        self.disk.grow(io, len).await
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::mem::SgList;
    use crate::testing::on_io_thread;

    fn memory(len: usize) -> ToGuest {
        ToGuest::new(SgList::host(len, 16).unwrap())
    }

    #[test]
    fn faults_hit_what_they_are_for_and_are_used_up() {
        on_io_thread(|io| async move {
            let disk = FaultDisk::new(RamDisk::with_bytes(&[7; 4096]));
            disk.inject(Fault {
                span: Some(Span { at: ByteOffset(1024), len: 512 }),
                ..Fault::next(Action::Read, Effect::Fail(BlockErrorKind::ReadFailed))
            });
            disk.inject(Fault::next(Action::Write, Effect::Short(512, BlockErrorKind::NoSpace)));
            disk.inject(Fault::every(Action::Flush, Effect::Fail(BlockErrorKind::Lost)));
            assert!(disk.read(&io, ByteOffset(0), memory(1024)).await.is_ok());
            let error = disk.read(&io, ByteOffset(512), memory(1024)).await.unwrap_err();
            assert_eq!(error.kind, BlockErrorKind::ReadFailed);
            assert!(disk.read(&io, ByteOffset(512), memory(1024)).await.is_ok());
            let zeros = FromGuest::new(SgList::host(1024, 16).unwrap());
            let error = disk.write(&io, ByteOffset(0), zeros, Durability::Cached).await.unwrap_err();
            assert_eq!(error.kind, BlockErrorKind::NoSpace);
            assert_eq!(disk.disk().bytes()[511..513], [0, 7]);
            for _ in 0..2 {
                assert_eq!(disk.flush(&io).await.unwrap_err().kind, BlockErrorKind::Lost);
            }
            disk.heal();
            assert!(disk.flush(&io).await.is_ok());
            assert_eq!(disk.seen()[..4], [Action::Read, Action::Read, Action::Read, Action::Write]);
        });
    }

    #[test]
    fn stalled_operations_wait_for_release_and_may_be_dropped() {
        on_io_thread(|io| async move {
            let disk = Rc::new(FaultDisk::new(RamDisk::new(4096)));
            disk.inject(Fault::every(Action::Read, Effect::Stall));
            let reader = (disk.clone(), io.clone());
            io.spawn(async move { drop(reader.0.read(&reader.1, ByteOffset(0), memory(512)).await) });
            {
                let mut dropped = std::pin::pin!(disk.read(&io, ByteOffset(0), memory(512)));
                poll_fn(|cx| {
                    assert!(dropped.as_mut().poll(cx).is_pending());
                    Poll::Ready(())
                })
                .await;
                io.sleep(Duration::from_millis(2)).await;
                assert_eq!(disk.stalled(), 2);
            }
            assert_eq!(disk.stalled(), 1);
            disk.release();
            io.sleep(Duration::from_millis(2)).await;
            assert_eq!((disk.stalled(), Rc::strong_count(&disk)), (0, 1));
        });
    }
}
