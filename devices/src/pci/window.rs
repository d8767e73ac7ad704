//! Where BARs may appear: the machine's buses behind [`BarWindow`].

use std::ops::Range;
use std::sync::Arc;

use crate::log_limited;

use super::{BarWindow, PageWindow, RegisterPage};
use crate::bus::{Bus, BusDevice, Space};

/// Maps BARs on the buses, within the ranges that the machine routes to PCI.
pub struct BusWindows {
    memory: Arc<Bus>,
    ports: Arc<Bus>,
    allowed_memory: Vec<Range<u64>>,
    allowed_ports: Vec<Range<u64>>,
    pages: Option<Arc<dyn PageWindow>>,
}

impl BusWindows {
    /// `allowed_memory` and `allowed_ports` hold no RAM and no legacy range. A BAR has to lie within one of them.
    pub fn new(
        memory: Arc<Bus>,
        ports: Arc<Bus>,
        allowed_memory: Vec<Range<u64>>,
        allowed_ports: Vec<Range<u64>>,
    ) -> Self {
        Self { memory, ports, allowed_memory, allowed_ports, pages: None }
    }

    /// Registers are read from pages where `pages` can show them.
    #[must_use]
    pub fn with_pages(mut self, pages: Arc<dyn PageWindow>) -> Self {
        self.pages = Some(pages);
        self
    }

    fn of(&self, space: Space) -> (&Bus, &[Range<u64>]) {
        match space {
            Space::Memory => (&self.memory, &self.allowed_memory),
            Space::Port => (&self.ports, &self.allowed_ports),
        }
    }
}

impl BarWindow for BusWindows {
    fn map(&self, space: Space, base: u64, len: u64, device: Arc<dyn BusDevice>) -> bool {
        let (bus, allowed) = self.of(space);
        let inside = |range: &Range<u64>| {
            range.start <= base && base.checked_add(len).is_some_and(|end| end <= range.end)
        };
        if !allowed.iter().any(inside) {
            log_limited!(debug, "{}: no PCI window for {len:#x} at {base:#x} in {space:?}", device.name());
            return false;
        }
        bus.map(base, len, device)
            .inspect_err(|error| log_limited!(debug, "BAR overlaps in {space:?}: {error}"))
            .is_ok()
    }

    fn unmap(&self, space: Space, base: u64) {
        self.of(space).0.unmap(base);
    }

    fn show(&self, base: u64, page: &Arc<RegisterPage>) -> bool {
        let Some(pages) = &self.pages else { return false };
        pages
            .show(base, page)
            .inspect_err(|error| log_limited!(warn, "no register page at {base:#x}, reads exit: {error}"))
            .is_ok()
    }

    fn hide(&self, base: u64) {
        if let Some(pages) = &self.pages {
            pages.hide(base);
        }
    }
}
