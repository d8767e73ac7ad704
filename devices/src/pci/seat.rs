//! What a function gets from the slot it is plugged into.

use std::sync::Arc;

use super::RegisterPage;
use crate::bus::{BusDevice, Doorbells, Space};
use crate::irq::{IrqLine, MsiAllocator};
use crate::mem::Dma;

/// Maps the windows of base address registers as the guest programs them.
pub trait BarWindow: Send + Sync {
    /// The window now answers at `base..base+len`. An overlap with another device is the guest's mistake: it is
    /// logged and the window stays unmapped; returns whether it is mapped.
    fn map(&self, space: Space, base: u64, len: u64, device: Arc<dyn BusDevice>) -> bool;
    /// The window no longer answers at `base`.
    fn unmap(&self, space: Space, base: u64);
    /// Reads of the mapped window at `base` in memory may be answered from `page`; returns whether they are.
    fn show(&self, base: u64, page: &Arc<RegisterPage>) -> bool;
    /// They no longer are.
    fn hide(&self, base: u64);
}

/// Everything a function may touch outside itself, handed to its constructor. Tests hand in fakes.
#[derive(Clone)]
pub struct PciSeat {
    /// Guest memory, open while Bus Master Enable is set.
    pub dma: Dma,
    /// The INTA# wire of the slot, already routed to a GSI. Level-triggered, shared.
    pub intx: Arc<dyn IrqLine>,
    /// Message-signalled interrupts.
    pub msi: Arc<dyn MsiAllocator>,
    /// Where BARs appear.
    pub bars: Arc<dyn BarWindow>,
    /// Doorbells in BARs.
    pub doorbells: Arc<dyn Doorbells>,
}
