//! Claims that last as long as the kernel works on an operation.

use std::fmt;
use std::sync::Arc;

/// Keeps account of numbered claims. Called from any thread, also while an I/O thread reaps its ring.
pub trait Claims: Send + Sync {
    /// There is one holder more of claim `id`.
    fn retain(&self, id: u64);
    /// There is one holder less of claim `id`; the last one ends it.
    fn release(&self, id: u64);
    /// An operation that holds claim `id` ended with `result` after its future was dropped: nobody else hears of that.
    fn abandoned(&self, _id: u64, _result: i32) {}
}

/// A claim, such as a locked range, that an operation carries into the ring.
///
/// When the operation's future is dropped, the claim stays until the kernel is done: what it protects cannot be
/// overtaken by an abandoned write that is still under way.
#[derive(Default)]
pub struct Hold(Option<(Arc<dyn Claims>, u64)>);

impl Hold {
    /// Nothing to hold.
    pub fn none() -> Self {
        Self(None)
    }

    /// Holds claim `id` of `claims`, which counts this holder already.
    pub fn new(claims: Arc<dyn Claims>, id: u64) -> Self {
        Self(Some((claims, id)))
    }

    /// Both claims, held together.
    pub fn with(self, other: &Hold) -> Self {
        match (&self.0, &other.0) {
            (None, _) => other.clone(),
            (_, None) => self,
            _ => Self::new(Arc::new(Both(self, other.clone())), 0),
        }
    }

    /// Tells the claim how an operation ended whose future is gone.
    pub(super) fn abandoned(&self, result: i32) {
        if let Some((claims, id)) = &self.0 {
            claims.abandoned(*id, result);
        }
    }
}

/// Two claims that end together, when the last reference to the pair goes.
struct Both(Hold, Hold);

impl Claims for Both {
    fn retain(&self, _id: u64) {}
    fn release(&self, _id: u64) {}
    fn abandoned(&self, _id: u64, result: i32) {
        self.0.abandoned(result);
        self.1.abandoned(result);
    }
}

impl Clone for Hold {
    fn clone(&self) -> Self {
        if let Some((claims, id)) = &self.0 {
            claims.retain(*id);
        }
        Self(self.0.clone())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some((claims, id)) = &self.0 {
            claims.release(*id);
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hold({:?})", self.0.as_ref().map(|(_, id)| id))
    }
}
