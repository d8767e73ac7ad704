//! Zeros to write where the host makes none itself.

use std::cell::RefCell;

use super::{BlockError, BlockErrorKind};
use crate::mem::{FromGuest, SgList};

/// Most that there are at once, in bytes.
pub(super) const ZEROS: u64 = 256 << 10;

thread_local! {
    /// Those of this thread. Nobody writes there, so that all commands share them.
    static SHARED: RefCell<Option<SgList>> = const { RefCell::new(None) };
}

/// So many zeros, at most [`ZEROS`].
pub(super) fn zeros(len: u64) -> Result<FromGuest, BlockError> {
    let none = || BlockError::new(BlockErrorKind::HostResources, "no host memory for a block of zeros");
    let window = SHARED.try_with(|shared| {
        let mut shared = shared.try_borrow_mut().ok()?;
        if shared.is_none() {
            *shared = SgList::host(ZEROS as usize, 4096);
        }
        shared.as_ref().map(|all| FromGuest::new(all.window(0, len)))
    });
    window.ok().flatten().ok_or_else(none)
}
