//! Letting go of images: the last close of a file may wait for the host, as a lock may that goes with it.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::fdset;
use crate::iothread::{Io, Owner};

/// How often a thread is asked for that images can go on.
const AGAIN: Duration = Duration::from_secs(1);
/// How soon it is looked again whether the host is done with a file, first and later.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Lets go of `what`, which may be the last to have an image. The kernel may write back what it has of a device when the last
/// descriptor goes: not on this thread. Where there is no other, it goes as soon as there is one.
///
/// A file that the operator passed stays open, and the host may not be done with what was given up: then its locks go later,
/// without anybody asking for that.
pub async fn let_go(io: &Io, what: impl Send + 'static) {
    let what = Arc::new(Mutex::new(Some(what)));
    if !drop_elsewhere(io, &what).await {
        let later = io.clone();
        io.spawn(async move {
            while !drop_elsewhere(&later, &what).await {
                later.sleep(AGAIN).await;
            }
            settle_left(&later);
        });
    } else {
        settle_left(io);
    }
}

/// Sees to the end of passed files whose images have gone, and that the host is not done with. What was let go elsewhere than
/// by [`let_go`] is seen to by whoever calls this.
pub fn settle_left(io: &Io) {
    for file in fdset::left() {
        io.spawn(settle(io.clone(), file));
    }
}

async fn settle(io: Io, file: Weak<File>) {
    let (mut pause, longest) = PAUSES;
    while let Some(done) = fdset::is_done(&file) {
        let of_helper = file.clone();
        // To unlock may wait for the host.
        let settle = move || fdset::settle(&of_helper);
        if done && io.blocking_on(&Owner::default(), settle).await.is_ok() {
            continue;
        }
        io.sleep(pause).await;
        pause = longest.min(pause * 2);
    }
}

async fn drop_elsewhere(io: &Io, what: &Arc<Mutex<Option<impl Send + 'static>>>) -> bool {
    let what = what.clone();
    let work = move || drop(what.lock().unwrap_or_else(PoisonError::into_inner).take());
    io.blocking_on(&Owner::default(), work).await.is_ok()
}
