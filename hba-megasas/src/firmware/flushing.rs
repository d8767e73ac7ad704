//! One flush of a disk for all who ask for one: a guest may ask as often as it has frames, and a host that is slow with one
//! flush is slower with a thousand.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use devices::iothread::Io;
use devices::mem::SgList;
use devices::scsi::{Lun, Nexus, ScsiReply, Status};

use super::drives::{Place, flush, request, sense_key, settle, synchronize};

/// How long the firmware waits for a disk that it flushes, as long as Linux does for a SYNCHRONIZE CACHE of its own.
const FLUSH_PATIENCE: Duration = Duration::from_secs(60);
/// Sense keys (SPC-5, 4.5.6).
const NOT_READY: u8 = 2;
const ILLEGAL_REQUEST: u8 = 5;

/// The flushes of a disk: one at a time.
#[derive(Default)]
pub(super) struct Flushing(Mutex<State>);

#[derive(Default)]
struct State {
    /// How many have begun; the number of the last.
    begun: u64,
    /// The last one is under way.
    running: bool,
    /// The last that came to its end: its number, and whether it was good.
    ended: (u64, bool),
    /// How often all who wait were told to end.
    told: u64,
    waiting: Vec<Waker>,
}

/// What is to be done.
enum Turn {
    /// Nothing: a flush that counts has ended so.
    Ended(bool),
    /// To flush, under this number.
    Begin(u64),
}

impl Flushing {
    /// How a flush ended that began after this was called: only such a one counts for what was written before. `flush`
    /// is called when there is none that somebody else makes.
    pub(super) async fn share<F: Future<Output = bool>>(&self, flush: impl FnOnce() -> F) -> bool {
        let before = {
            let state = self.lock();
            (state.begun, state.told)
        };
        match poll_fn(|cx| self.poll_turn(before, cx)).await {
            Turn::Ended(good) => good,
            Turn::Begin(number) => {
                let mut running = Running { flushing: self, ended: None };
                let good = flush().await;
                running.ended = Some((number, good));
                good
            }
        }
    }

    /// Has those who wait for somebody else's flush end as failed.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.told += 1;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    fn poll_turn(&self, (begun, told): (u64, u64), cx: &mut Context<'_>) -> Poll<Turn> {
        let mut state = self.lock();
        match state.ended {
            (number, good) if number > begun => Poll::Ready(Turn::Ended(good)),
            _ if state.told != told => Poll::Ready(Turn::Ended(false)),
            _ if state.running => {
                if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                    state.waiting.push(cx.waker().clone());
                }
                Poll::Pending
            }
            _ => {
                state.running = true;
                state.begun += 1;
                Poll::Ready(Turn::Begin(state.begun))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A flush under way. One that is given up counts for nobody: the others make another.
struct Running<'a> {
    flushing: &'a Flushing,
    ended: Option<(u64, bool)>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.flushing.lock();
        state.running = false;
        state.ended = self.ended.unwrap_or(state.ended);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Place {
    /// Makes everything stable that was written; false, and a line in the log, when the disk could not, or not in time.
    pub(crate) async fn flush(&self, io: &Io) -> bool {
        self.flushing.share(|| self.flush_in_time(io)).await
    }

    async fn flush_in_time(&self, io: &Io) -> bool {
        let why = match io.at_most(FLUSH_PATIENCE, self.try_flush(io)).await {
            Some(true) => return true,
            Some(false) => "the disk says that it could not",
            None => "the host does not answer",
        };
        let name = self.own_slow.medium(&Lun::default()).unwrap_or_default();
        devices::log_limited!(warn, "megasas: target {} \"{name}\" is not flushed: {why}", self.id);
        false
    }

    async fn try_flush(&self, io: &Io) -> bool {
        if let Some(device) = self.own_slow.host_device(&Lun::default()) {
            return !device.is_written || flush_device(io, &self.own_slow).await;
        }
        settle(io, &self.own_slow).await;
        let reply = synchronize(io, &self.own_slow).await;
        match reply.as_ref().map(|reply| (reply.status, sense_key(reply))) {
            Some((Status::Good, _)) => true,
            // Where the guest has reserved the disk, only the guest's way is open.
            Some((Status::ReservationConflict, _)) => {
                flush(io, self.drive.logical.as_ref().unwrap_or(&self.drive.physical)).await
            }
            // A disk that was stopped has flushed by then, unless the guest did not want it to; one that is being wiped has
            // nothing to keep.
            Some((Status::CheckCondition, NOT_READY)) => true,
            _ => false,
        }
    }
}

/// Has a disk of the host write what is in its cache; false when it could not. The driver has not sent it: what the disk has to
/// tell waits for a command of the driver.
async fn flush_device(io: &Io, nexus: &Nexus) -> bool {
    // SYNCHRONIZE CACHE(10) of the whole medium (SBC-4, 5.35): for that of 16 bytes the host's kernel may want more rights.
    let mut request = request(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], SgList::empty());
    let Ok(reply) = Box::pin(nexus.execute_for(io, &mut request)).await else { return false };
    match (reply.status, sense_key(&reply)) {
        (Status::Good, _) => true,
        // INITIALIZING COMMAND REQUIRED: it was stopped, and has flushed by then. FORMAT IN PROGRESS: it has nothing to keep.
        (Status::CheckCondition, NOT_READY) => matches!(code(&reply), Some((0x04, 0x02 | 0x04))),
        // INVALID COMMAND OPERATION CODE: without a cache there is no such command.
        (Status::CheckCondition, ILLEGAL_REQUEST) => matches!(code(&reply), Some((0x20, _))),
        _ => false,
    }
}

/// Additional sense code and qualifier, in fixed or descriptor format (SPC-5, 4.4).
fn code(reply: &ScsiReply) -> Option<(u8, u8)> {
    match reply.sense.as_ref()?.as_bytes() {
        [0x72, _, code, qualifier, ..] => Some((*code, *qualifier)),
        bytes => Some((*bytes.get(12)?, *bytes.get(13)?)),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::pin::Pin;

    use super::*;

    /// A disk whose flushes end when the test says so.
    #[derive(Default)]
    struct Disk {
        flushing: Flushing,
        /// How many were begun.
        begun: Cell<u32>,
        /// How each one ends, in order.
        ends: RefCell<Vec<bool>>,
    }

    impl Disk {
        async fn flush(&self) -> bool {
            let number = self.begun.get() as usize;
            self.begun.set(self.begun.get() + 1);
            poll_fn(|_| self.ends.borrow().get(number).map_or(Poll::Pending, |good| Poll::Ready(*good))).await
        }

        /// A frame that asks for a flush.
        fn frame(&self) -> Pin<Box<dyn Future<Output = bool> + '_>> {
            Box::pin(self.flushing.share(|| self.flush()))
        }
    }

    fn poll(frame: &mut Pin<Box<dyn Future<Output = bool> + '_>>) -> Option<bool> {
        match frame.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(good) => Some(good),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_flush_is_shared_by_those_who_came_before_it_began() {
        let disk = Disk::default();
        let mut first = disk.frame();
        assert_eq!(poll(&mut first), None);
        // These come while it is under way: it may have passed what they stand for.
        let mut late: Vec<_> = (0..100).map(|_| disk.frame()).collect();
        assert!(late.iter_mut().all(|frame| poll(frame).is_none()));
        assert_eq!(disk.begun.get(), 1);
        disk.ends.borrow_mut().push(true);
        assert_eq!(poll(&mut first), Some(true));
        assert!(late.iter_mut().all(|frame| poll(frame).is_none()), "that one does not count");
        assert_eq!(disk.begun.get(), 2, "one for all of them");
        let mut last = disk.frame();
        assert_eq!(poll(&mut last), None);
        disk.ends.borrow_mut().push(false);
        assert!(late.iter_mut().all(|frame| poll(frame) == Some(false)), "as it ended");
        assert_eq!(poll(&mut last), None);
        disk.ends.borrow_mut().push(true);
        assert_eq!((poll(&mut last), disk.begun.get()), (Some(true), 3));
    }

    #[test]
    fn a_flush_that_is_given_up_counts_for_nobody() {
        let disk = Disk::default();
        let (mut first, mut second, mut third) = (disk.frame(), disk.frame(), disk.frame());
        for frame in [&mut first, &mut second, &mut third] {
            assert_eq!(poll(frame), None);
        }
        drop(first);
        assert_eq!((poll(&mut second), disk.begun.get()), (None, 2));
        drop(second);
        disk.ends.borrow_mut().extend([true, true, false]);
        assert_eq!((poll(&mut third), disk.begun.get()), (Some(false), 3));
        let mut alone = disk.frame();
        disk.ends.borrow_mut().push(true);
        assert_eq!((poll(&mut alone), disk.begun.get()), (Some(true), 4));
    }
}
