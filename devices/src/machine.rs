//! What devices ask of the machine as a whole.

use std::sync::Arc;

/// What a device asks of the machine as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineRequest {
    /// Power off: ACPI S5.
    PowerOff,
    /// System reset, and which register asked for it (for the log).
    Reset(&'static str),
}

/// Where such requests go. Called on vCPU threads: takes note and returns at once.
pub trait MachineControl: Send + Sync {
    /// Asks for `what`; the vCPUs stop soon after.
    fn request(&self, what: MachineRequest);
}

/// Shared handle to [`MachineControl`].
pub type Machine = Arc<dyn MachineControl>;
