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

/// Says whether operations may go to the kernel. Asked from any thread, for each operation, when its turn comes.
pub trait Permit: Send + Sync {
    /// Whether one that has waited may still be begun. If not, it ends, and the kernel never hears of it: see
    /// [`is_withheld`](super::is_withheld).
    fn may_begin(&self) -> bool;
}

/// A claim, such as a locked range, that an operation carries into the ring; and who is asked before the kernel gets it.
///
/// When the operation's future is dropped, the claim stays until the kernel is done: what it protects cannot be
/// overtaken by an abandoned write that is still under way.
#[derive(Default)]
pub struct Hold {
    claim: Option<(Arc<dyn Claims>, u64)>,
    permit: Option<Arc<dyn Permit>>,
}

impl Hold {
    /// Nothing to hold.
    pub fn none() -> Self {
        Self::default()
    }

    /// Holds claim `id` of `claims`, which counts this holder already.
    pub fn new(claims: Arc<dyn Claims>, id: u64) -> Self {
        Self { claim: Some((claims, id)), permit: None }
    }

    /// The same, for operations that need this permit to begin; without one, they need none but what they need already.
    pub fn under(mut self, permit: Option<&Arc<dyn Permit>>) -> Self {
        if let Some(permit) = permit {
            self.permit = Some(permit.clone());
        }
        self
    }

    /// Both claims, held together. Of permits there is one at most: they are of the file.
    pub fn with(mut self, other: &Hold) -> Self {
        let permit = self.permit.take().or_else(|| other.permit.clone());
        let both = match (&self.claim, &other.claim) {
            (None, _) => other.clone(),
            (_, None) => self,
            _ => Self::new(Arc::new(Both(self, other.clone())), 0),
        };
        both.under(permit.as_ref())
    }

    /// Whether an operation may be begun that has waited for its turn.
    pub(super) fn may_begin(&self) -> bool {
        self.permit.as_ref().is_none_or(|permit| permit.may_begin())
    }

    /// Tells the claim how an operation ended whose future is gone.
    pub(super) fn abandoned(&self, result: i32) {
        if let Some((claims, id)) = &self.claim {
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
        if let Some((claims, id)) = &self.claim {
            claims.retain(*id);
        }
        Self { claim: self.claim.clone(), permit: self.permit.clone() }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some((claims, id)) = &self.claim {
            claims.release(*id);
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hold({:?})", self.claim.as_ref().map(|(_, id)| id))
    }
}
