//! The control request RESCAN (section 3): the driver asks for one target after the other.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use devices::iothread::Io;

use super::port::Port;
use super::wire::{NO_ID, RescanResponse};

/// For how long a driver waits for the host to look at the fabric. What is found later it hears of by events.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers with the target that has the smallest number from `next_id` on; all ones ask for a look at the fabric first.
pub(crate) async fn next(io: &Io, port: &Port, next_id: u32) -> RescanResponse {
    let from = if next_id == NO_ID {
        look(io, port).await;
        0
    } else {
        next_id
    };
    let Ok(from) = u8::try_from(from) else { return RescanResponse::none() };
    // Before the driver hears of a target, it can be reached.
    port.changed();
    port.target(from).map_or_else(RescanResponse::none, |(id, remote)| RescanResponse::of(id, &remote))
}

async fn look(io: &Io, port: &Port) {
    let look = port.looks.begin();
    let end = End(look.clone());
    port.san().rescan(Box::new(move || drop(end)));
    if io.at_most(PATIENCE, look.ended()).await.is_none() {
        devices::log_limited!(
            info,
            "virtio-scsi: the host still looks at the fabric after {} s; the driver hears of the rest by events",
            PATIENCE.as_secs()
        );
    }
}

/// Looks at the fabric that are waited for.
#[derive(Default)]
pub(crate) struct Looks(Mutex<Vec<Weak<Look>>>);

impl Looks {
    fn begin(&self) -> Arc<Look> {
        let look = Arc::new(Look::default());
        let mut all = self.lock();
        all.retain(|look| look.strong_count() > 0);
        all.push(Arc::downgrade(&look));
        look
    }

    /// Nobody waits any more: the device is reset.
    pub(crate) fn end(&self) {
        let all = std::mem::take(&mut *self.lock());
        all.iter().filter_map(Weak::upgrade).for_each(|look| look.end());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Look>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One look at the fabric.
#[derive(Default)]
struct Look(Mutex<(bool, Option<Waker>)>);

impl Look {
    async fn ended(&self) {
        poll_fn(|cx| {
            let mut state = self.lock();
            if state.0 {
                return Poll::Ready(());
            }
            state.1 = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn end(&self) {
        let waker = {
            let mut state = self.lock();
            state.0 = true;
            state.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, (bool, Option<Waker>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of a look, which the host calls or drops.
struct End(Arc<Look>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.end();
    }
}
