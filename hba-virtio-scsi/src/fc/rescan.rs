//! The control request RESCAN (section 3): the driver asks for one target after the other.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use devices::iothread::Io;

use super::San;
use super::port::Port;
use super::wire::{NO_ID, RescanResponse};
use crate::queue::Queue;

/// For how long a driver waits for the host to look at the fabric. What is found later it hears of by events.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers with the target that has the smallest number from `next_id` on; all ones ask for a look at the fabric first. `vports`: of all
/// ports of the guest. `queue` is the one that it came by.
pub(crate) async fn next(io: &Io, port: &Port, next_id: u32, vports: bool, queue: &Queue) -> RescanResponse {
    let from = if next_id == NO_ID {
        look(io, port, queue).await;
        0
    } else {
        next_id
    };
    let Ok(from) = u8::try_from(from) else { return RescanResponse::none() };
    // Before the driver hears of a target, it can be reached.
    port.changed();
    port.target(from, vports)
        .map_or_else(RescanResponse::none, |(id, remote)| RescanResponse::of(id, &remote))
}

async fn look(io: &Io, port: &Port, queue: &Queue) {
    let is_running = || queue.is_running();
    if io.at_most(PATIENCE, port.looks.one(port.san(), &is_running)).await.is_none() {
        devices::log_limited!(
            info,
            "virtio-scsi: the host still looks at the fabric after {} s; the driver hears of the rest by events",
            PATIENCE.as_secs()
        );
    }
}

/// Looks at the fabric that are waited for. One is under way at a time, and all that come meanwhile wait for the next: a driver that
/// asks again and again, and resets the device in between, does not pile them up at the host.
#[derive(Default)]
pub(crate) struct Looks(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// How many the host was asked for, and how many of these have ended: one less at most.
    begun: u64,
    ended: u64,
    /// How often those that waited were sent away.
    resets: u64,
    closed: bool,
    /// By numbers of their own.
    waiting: BTreeMap<u64, Waker>,
    next: u64,
}

/// Somebody who waits, and leaves nothing behind when he does not any more.
struct Place<'a> {
    state: &'a Mutex<State>,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(self.state).waiting.remove(&self.number);
    }
}

impl Looks {
    /// Waits for a look that begins now or later, or for [`Self::end`]: whoever stops a queue calls that afterwards, and `is_running` says
    /// whether it runs.
    async fn one(&self, san: &dyn San, is_running: &dyn Fn() -> bool) {
        let (wanted, reset, place) = {
            let mut state = lock(&self.0);
            let number = state.next;
            state.next += 1;
            (state.begun + 1, state.resets, Place { state: &self.0, number })
        };
        poll_fn(|cx| {
            loop {
                let mut state = lock(&self.0);
                if state.closed || state.resets != reset || state.ended >= wanted || !is_running() {
                    return Poll::Ready(());
                }
                if state.begun > state.ended {
                    state.waiting.insert(place.number, cx.waker().clone());
                    return Poll::Pending;
                }
                state.begun += 1;
                drop(state);
                let end = End(self.0.clone());
                san.rescan(Box::new(move || drop(end)));
            }
        })
        .await;
    }

    /// Nobody waits any more: the device is reset, or the control queue.
    pub(crate) fn end(&self) {
        send_away(lock(&self.0), |state| state.resets += 1);
    }

    /// Nobody will wait any more: the HBA goes.
    pub(crate) fn close(&self) {
        send_away(lock(&self.0), |state| state.closed = true);
    }
}

/// Changes what those are waiting for who wait, and has them look.
fn send_away(mut state: MutexGuard<'_, State>, change: impl FnOnce(&mut State)) {
    change(&mut state);
    let waiting = std::mem::take(&mut state.waiting);
    drop(state);
    waiting.into_values().for_each(Waker::wake);
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The end of a look, which the host calls or drops.
struct End(Arc<Mutex<State>>);

impl Drop for End {
    fn drop(&mut self) {
        send_away(lock(&self.0), |state| state.ended += 1);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use super::super::Emulated;
    use super::*;

    /// The process that looks is stopped, and a driver asks again and again.
    #[test]
    fn who_gives_up_leaves_nothing_behind() {
        let looks = Looks::default();
        let san = Emulated::new("stopped", [1]);
        lock(&looks.0).begun += 1;
        for _ in 0..3 {
            let mut all: Vec<_> = (0..100).map(|_| Box::pin(looks.one(&*san, &|| true))).collect();
            for waits in &mut all {
                // Each has a waker of its own.
                let waker = Waker::from(Arc::new(Nobody));
                assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
                assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            }
            assert_eq!(lock(&looks.0).waiting.len(), 100);
            drop(all);
            assert_eq!(lock(&looks.0).waiting.len(), 0);
        }
    }

    struct Nobody;

    impl std::task::Wake for Nobody {
        fn wake(self: Arc<Self>) {}
    }

    /// A request may have its turn only after all that waited were sent away.
    #[test]
    fn nobody_waits_once_the_hba_has_gone() {
        let looks = Looks::default();
        let cx = &mut Context::from_waker(Waker::noop());
        let san = Emulated::new("end", [1]);
        assert!(pin!(looks.one(&*san, &|| true)).poll(cx).is_ready());
        // One that the host does not end.
        lock(&looks.0).begun += 1;
        let mut waits = pin!(looks.one(&*san, &|| true));
        assert!(waits.as_mut().poll(cx).is_pending());
        looks.close();
        assert!(waits.poll(cx).is_ready() && pin!(looks.one(&*san, &|| true)).poll(cx).is_ready());
        let state = lock(&looks.0);
        assert_eq!((state.begun, state.ended, state.waiting.len()), (2, 1, 0));
    }
}
