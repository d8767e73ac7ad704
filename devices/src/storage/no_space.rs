//! When the host has no space left: requests wait until there is some, instead of failing.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::BlockError;

/// Told about requests that wait for space. Called on I/O threads; must not block.
pub trait SpaceWatch: Send + Sync {
    /// The first request since the last [`Parking::resume`] waits; `error` says on which image.
    fn no_space(&self, error: &BlockError);
}

#[derive(Default)]
struct Waiting {
    /// How often requests were told to try again.
    resumed: u64,
    told: bool,
    wakers: Vec<Waker>,
}

/// Where requests wait for space.
#[derive(Default)]
pub struct Parking {
    waiting: Mutex<Waiting>,
}

impl Parking {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request waits that was announced and not yet told to try again.
    pub fn is_waiting(&self) -> bool {
        self.lock().told
    }

    /// Lets all waiting requests try again.
    pub fn resume(&self) {
        let mut waiting = self.lock();
        waiting.resumed += 1;
        waiting.told = false;
        let wakers = std::mem::take(&mut waiting.wakers);
        drop(waiting);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// How often requests were told to try again.
    pub(super) fn resumed(&self) -> u64 {
        self.lock().resumed
    }

    /// Has all waiting requests look whether they are still to wait.
    pub(super) fn look_again(&self) {
        let wakers = std::mem::take(&mut self.lock().wakers);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Waits until requests were told to try again more often than `seen`; false when it is not to wait, as `goes` says.
    /// `watch` hears of the first that waits.
    pub(super) async fn park(
        &self,
        seen: u64,
        watch: &dyn SpaceWatch,
        error: &BlockError,
        goes: impl Fn() -> bool,
    ) -> bool {
        let first = {
            let mut waiting = self.lock();
            waiting.resumed == seen && !goes() && !std::mem::replace(&mut waiting.told, true)
        };
        if first {
            watch.no_space(error);
        }
        poll_fn(|cx| {
            let mut waiting = self.lock();
            if waiting.resumed != seen {
                return Poll::Ready(true);
            }
            if goes() {
                return Poll::Ready(false);
            }
            if !waiting.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.wakers.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::iothread::TaskPool;
    use crate::mem::{FromGuest, SgList, ToGuest};
    use crate::storage::{Action, BlockBackend, BlockErrorKind, ByteOffset, Durability, Guarded, Pausing};
    use crate::testing::conformance::{check, contents};
    use crate::testing::{Effect, Fault, FaultDisk, RamDisk, on_io_thread};

    #[derive(Default)]
    struct Counter(AtomicU32);

    impl SpaceWatch for Counter {
        fn no_space(&self, error: &BlockError) {
            assert_eq!(error.kind, BlockErrorKind::NoSpace);
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn requests_wait_for_space_and_nothing_is_lost() {
        on_io_thread(|io| async move {
            let (parking, watch) = (Arc::new(Parking::default()), Arc::new(Counter::default()));
            let full = FaultDisk::new(RamDisk::new(1 << 20));
            full.inject(Fault::every(Action::Write, Effect::Fail(BlockErrorKind::NoSpace)));
            let pausing = Pausing { parking: parking.clone(), watch: watch.clone() };
            let disk = std::rc::Rc::new(Guarded::new(full, None, Some(pausing)));
            let pool = TaskPool::new(&io, 8);
            for n in 0..4u64 {
                let (io, disk) = (io.clone(), disk.clone());
                let write = async move {
                    let mem = ToGuest::new(SgList::host(512, 512).unwrap());
                    mem.write_at(0, &[n as u8 + 1; 512]);
                    let from = FromGuest::new(mem.into_inner());
                    disk.write(&io, ByteOffset(n * 512), from, Durability::Cached).await.unwrap();
                };
                assert!(pool.spawn(write).is_ok());
            }
            io.sleep(std::time::Duration::from_millis(20)).await;
            assert_eq!(watch.0.load(Ordering::Relaxed), 1, "told once");
            assert!(parking.is_waiting());
            assert_eq!(contents(&io, &*disk).await[..2048], [0; 2048]);
            // Still full: they wait again, and that is told again.
            parking.resume();
            io.sleep(std::time::Duration::from_millis(20)).await;
            assert_eq!(watch.0.load(Ordering::Relaxed), 2);
            disk.backend().heal();
            parking.resume();
            pool.drained().await;
            assert!(!parking.is_waiting());
            let got = contents(&io, &*disk).await;
            assert!(got[..2048].chunks(512).enumerate().all(|(n, part)| part == [n as u8 + 1; 512]));
            check(&io, &*disk, 9, 100).await;
        });
    }
}
