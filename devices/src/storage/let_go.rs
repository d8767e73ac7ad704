//! Letting go of images: the last close of a file may wait for the host, as a lock may that goes with it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::iothread::{Io, Owner};

/// How often a thread is asked for that images can go on.
const AGAIN: Duration = Duration::from_secs(1);

/// Lets go of `what`, which may be the last to have an image. The kernel may write back what it has of a device when the last
/// descriptor goes: not on this thread. Where there is no other, it goes as soon as there is one.
pub async fn let_go(io: &Io, what: impl Send + 'static) {
    let what = Arc::new(Mutex::new(Some(what)));
    if !drop_elsewhere(io, &what).await {
        let later = io.clone();
        io.spawn(async move {
            while !drop_elsewhere(&later, &what).await {
                later.sleep(AGAIN).await;
            }
        });
    }
}

async fn drop_elsewhere(io: &Io, what: &Arc<Mutex<Option<impl Send + 'static>>>) -> bool {
    let what = what.clone();
    let work = move || drop(what.lock().unwrap_or_else(PoisonError::into_inner).take());
    io.blocking_on(&Owner::default(), work).await.is_ok()
}
