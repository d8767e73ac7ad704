//! Why a device of the host cannot be passed through.

use thiserror::Error;

/// A device that cannot be passed through.
#[derive(Debug, Error)]
pub enum GenericError {
    /// It did not answer who it is.
    #[error(
        "{path}: the device does not answer INQUIRY ({why}); look whether it is ready, and what the host's kernel says of it"
    )]
    Silent {
        /// What messages call it.
        path: String,
        /// What came instead.
        why: String,
    },
    /// There is a target, and no logical unit.
    #[error(
        "{path}: there is no logical unit behind it (peripheral qualifier {qualifier}); take the node of one that is"
    )]
    Absent {
        /// What messages call it.
        path: String,
        /// SPC-5, 6.7.2.
        qualifier: u8,
    },
}
