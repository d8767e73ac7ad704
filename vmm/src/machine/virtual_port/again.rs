//! Units whose devices are back, of which a guest may have found nothing when it looked: it is told to look again. Those of an array are
//! back in great numbers at once, and each look asks all units of a target: so they have one look together.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devices::iothread::Remote;

/// How long the first one waits for others.
const SOON: Duration = Duration::from_millis(200);

/// Told with a target.
type Tell = dyn Fn(u8) + Send + Sync;

/// Targets at which the guest is to look again.
pub(super) struct Again {
    remote: Remote,
    tell: Arc<Tell>,
    waiting: Arc<Mutex<BTreeSet<u8>>>,
}

impl Again {
    /// Tells on the thread of `remote`: it may raise an interrupt, which threads for units may not do in the sandbox.
    pub(super) fn new(remote: Remote, tell: impl Fn(u8) + Send + Sync + 'static) -> Self {
        Self { remote, tell: Arc::new(tell), waiting: Arc::default() }
    }

    /// A unit of this target is back.
    pub(super) fn look(&self, target: u8) {
        if !lock(&self.waiting).insert(target) {
            return;
        }
        let (tell, waiting) = (self.tell.clone(), self.waiting.clone());
        self.remote.spawn(move |io| async move {
            io.sleep(SOON).await;
            // Who comes from now on has a look of his own.
            lock(&waiting).remove(&target);
            tell(target);
        });
    }

    /// Whether nobody is about to be told anything.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        lock(&self.waiting).is_empty()
    }
}

fn lock(waiting: &Mutex<BTreeSet<u8>>) -> MutexGuard<'_, BTreeSet<u8>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
