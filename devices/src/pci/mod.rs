//! PCI: configuration space, BARs, capabilities, MSI-X, and the host bridge that routes to functions.

mod seat;

pub use seat::{BarWindow, PciSeat};

/// A PCI function as the host bridge sees it: its configuration space.
///
/// Called on vCPU threads. Offsets are 0 to 4095 (PCI Express extended space included), widths 1, 2 or 4
/// within one aligned dword.
pub trait PciFunction: Send + Sync {
    /// Fills `data` from configuration space at `offset`.
    fn config_read(&self, offset: u16, data: &mut [u8]);
    /// Takes a configuration write at `offset`. BARs, Bus Master Enable and MSI-X take effect before it returns.
    fn config_write(&self, offset: u16, data: &[u8]);
    /// Back to the state after power-on. Returns when no request of the time before can touch guest memory.
    fn reset(&self);
    /// The name for traces and errors.
    fn name(&self) -> &str;
}
