//! Base address registers: sizing, mapping and re-mapping of windows with their doorbells (PCI 3.0, 6.2.5).

use std::sync::Arc;

use crate::log_limited;
use vmm_sys_util::eventfd::EventFd;

use super::config::{ConfigSpace, bits, reg};
use super::{PciError, PciSeat, RegisterPage};
use crate::bus::{BusDevice, Doorbell, Space};

/// Number of a BAR: 0 to 5, or [`ROM_BAR`].
pub type BarIndex = u8;

/// The expansion ROM, which has a register and an enable bit of its own.
pub const ROM_BAR: BarIndex = 6;

/// Bit 0 of the expansion ROM register: decode, provided memory decoding is on (PCI 3.0, 6.2.5.2).
const ROM_ENABLE: u32 = 1;

/// Which space a BAR decodes, and how many registers it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes the following register too.
    Memory64,
    /// I/O ports.
    Port,
    /// Expansion ROM; only at [`ROM_BAR`].
    Rom,
}

/// A guest write in a BAR that signals an event descriptor.
#[derive(Clone)]
pub struct BarDoorbell {
    /// Offset in the BAR.
    pub offset: u64,
    /// Width of the write in bytes (1, 2, 4, 8), 0 for any.
    pub width: u8,
    /// The value that rings; `None` for any.
    pub value: Option<u64>,
    /// What it signals.
    pub event: Arc<EventFd>,
}

/// Description of a BAR.
#[derive(Clone)]
pub struct Bar {
    kind: BarKind,
    prefetchable: bool,
    size: u64,
    device: Option<Arc<dyn BusDevice>>,
    doorbells: Vec<BarDoorbell>,
    page: Option<Arc<RegisterPage>>,
}

impl Bar {
    /// A window of `size` bytes (a power of two) that `device` answers.
    pub fn new(kind: BarKind, size: u64, device: Arc<dyn BusDevice>) -> Self {
        Self { kind, prefetchable: false, size, device: Some(device), doorbells: Vec::new(), page: None }
    }

    /// A window with nothing in it but the MSI-X structures placed there; the rest reads zero.
    pub fn empty(kind: BarKind, size: u64) -> Self {
        Self { kind, prefetchable: false, size, device: None, doorbells: Vec::new(), page: None }
    }

    /// Reads have no side effects: firmware may place the BAR in a prefetchable window.
    #[must_use]
    pub fn prefetchable(mut self) -> Self {
        self.prefetchable = true;
        self
    }

    /// Adds a doorbell. It is a short cut only: the device has to take the same write through its window too,
    /// because not every path comes through the hypervisor and not every doorbell can be attached.
    #[must_use]
    pub fn doorbell(mut self, bell: BarDoorbell) -> Self {
        self.doorbells.push(bell);
        self
    }

    /// Reads of the first 4 KiB may be answered from `page`. A short cut only: the device has to answer the same.
    #[must_use]
    pub fn page(mut self, page: Arc<RegisterPage>) -> Self {
        self.page = Some(page);
        self
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn kind(&self) -> BarKind {
        self.kind
    }

    fn register(index: BarIndex) -> u16 {
        if index == ROM_BAR { reg::ROM } else { reg::BAR0 + 4 * u16::from(index) }
    }

    /// Defines the registers of this BAR.
    fn add_to(&self, config: &mut ConfigSpace, index: BarIndex) -> Result<(), PciError> {
        let wrong = |why| Err(PciError::Bar { index, why });
        let (smallest, largest) = match self.kind {
            BarKind::Memory32 => (16, 1 << 31),
            BarKind::Memory64 => (16, 1 << 62),
            BarKind::Port => (4, 256),
            BarKind::Rom => (2048, 1 << 24),
        };
        if !self.size.is_power_of_two() || !(smallest..=largest).contains(&self.size) {
            return wrong("not a power of two in the range of its kind");
        }
        let last = if self.kind == BarKind::Memory64 { 4 } else { 5 };
        if (self.kind == BarKind::Rom) != (index == ROM_BAR) || index != ROM_BAR && index > last {
            return wrong("no such register for its kind");
        }
        let prefetch = u32::from(self.prefetchable) << 3;
        let flags = match self.kind {
            BarKind::Memory32 => prefetch,
            BarKind::Memory64 => 0b100 | prefetch,
            BarKind::Port => 1,
            BarKind::Rom => 0,
        };
        let mask = !(self.size - 1);
        let enable = if self.kind == BarKind::Rom { ROM_ENABLE } else { 0 };
        let register = Self::register(index);
        config.register(register, &flags.to_le_bytes(), &(mask as u32 | enable).to_le_bytes());
        if self.kind == BarKind::Memory64 {
            config.register(register + 4, &[0; 4], &((mask >> 32) as u32).to_le_bytes());
        }
        Ok(())
    }
}

/// What answers in a BAR: the device, with the MSI-X structures laid over it.
pub(super) struct Contents {
    pub(super) device: Option<Arc<dyn BusDevice>>,
    /// Offset, length and window.
    pub(super) overlays: Vec<(u64, u64, Arc<dyn BusDevice>)>,
    pub(super) name: Arc<str>,
}

impl Contents {
    fn find(&self, offset: u64) -> Option<(&dyn BusDevice, u64)> {
        let inside = |&&(base, len, _): &&(u64, u64, _)| offset >= base && offset - base < len;
        match self.overlays.iter().find(inside) {
            Some((base, _, device)) => Some((device.as_ref(), offset - base)),
            None => self.device.as_deref().map(|device| (device, offset)),
        }
    }
}

impl BusDevice for Contents {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.find(offset) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(offset) {
            device.write(offset, data);
        }
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// A BAR of a built function: where it is mapped, and what of it.
pub(super) struct Slot {
    index: BarIndex,
    bar: Bar,
    contents: Arc<dyn BusDevice>,
    mapped: Option<u64>,
    /// Where the machine refused it, so that the log says it once.
    refused: Option<u64>,
    attached: Vec<(Doorbell, Arc<EventFd>)>,
    /// The machine shows the page at this address.
    shown: Option<u64>,
}

impl Slot {
    pub(super) fn new(
        index: BarIndex,
        bar: Bar,
        name: Arc<str>,
        overlays: Vec<(u64, u64, Arc<dyn BusDevice>)>,
        config: &mut ConfigSpace,
    ) -> Result<Self, PciError> {
        bar.add_to(config, index)?;
        let whole = |(base, ..): &(u64, u64, _)| *base >= RegisterPage::LEN;
        let fits = bar.size >= RegisterPage::LEN && overlays.iter().all(whole);
        if bar.page.is_some() && (bar.kind == BarKind::Port || !fits) {
            return Err(PciError::Bar { index, why: "no room for a page of registers" });
        }
        let device = bar.device.clone();
        let contents = match device {
            Some(device) if overlays.is_empty() => device,
            device => Arc::new(Contents { device, overlays, name }),
        };
        Ok(Self { index, bar, contents, mapped: None, refused: None, attached: Vec::new(), shown: None })
    }

    pub(super) fn index(&self) -> BarIndex {
        self.index
    }

    pub(super) fn contents(&self) -> &Arc<dyn BusDevice> {
        &self.contents
    }

    pub(super) fn size(&self) -> u64 {
        self.bar.size
    }

    fn space(&self) -> Space {
        if self.bar.kind == BarKind::Port { Space::Port } else { Space::Memory }
    }

    /// Where the registers say that the BAR decodes; `None` while decoding is off, the address is zero (never
    /// assigned) or ends at the top of the space (all ones, written for sizing).
    fn wanted(&self, config: &ConfigSpace) -> Option<u64> {
        let enable = if self.bar.kind == BarKind::Port { bits::IO_SPACE } else { bits::MEMORY_SPACE };
        if config.command() & enable == 0 {
            return None;
        }
        let register = Bar::register(self.index);
        let low = config.u32(register);
        let (raw, top) = match self.bar.kind {
            BarKind::Port => (low.into(), 0x1_0000),
            BarKind::Memory32 => (low.into(), u64::from(u32::MAX)),
            BarKind::Rom if low & ROM_ENABLE == 0 => return None,
            BarKind::Rom => (low.into(), u64::from(u32::MAX)),
            BarKind::Memory64 => (u64::from(low) | u64::from(config.u32(register + 4)) << 32, u64::MAX),
        };
        let base = raw & !(self.bar.size - 1);
        let last = base.checked_add(self.bar.size - 1)?;
        (base != 0 && last < top).then_some(base)
    }

    /// Takes the window away when the registers no longer want it where it is.
    pub(super) fn release(&mut self, config: &ConfigSpace, seat: &PciSeat) {
        let wanted = self.wanted(config);
        if wanted != self.refused {
            self.refused = None;
        }
        let Some(base) = self.mapped.filter(|_| self.mapped != wanted) else { return };
        for (bell, event) in self.attached.drain(..) {
            if let Err(error) = seat.doorbells.detach(bell, &event) {
                log_limited!(warn, "{}: doorbell {bell:?} stays attached: {error}", self.contents.name());
            }
        }
        if let Some(base) = self.shown.take() {
            seat.bars.hide(base);
        }
        seat.bars.unmap(self.space(), base);
        self.mapped = None;
        log_limited!(debug, "{}: BAR {} unmapped from {base:#x}", self.contents.name(), self.index);
    }

    /// Maps the window where the registers want it. What the machine refuses is tried again on every call, as
    /// the device in its way may have moved.
    pub(super) fn claim(&mut self, config: &ConfigSpace, seat: &PciSeat) {
        let Some(base) = self.wanted(config).filter(|_| self.mapped.is_none()) else { return };
        let (space, size) = (self.space(), self.bar.size);
        if !seat.bars.map(space, base, size, self.contents.clone()) {
            if self.refused.replace(base) != Some(base) {
                log_limited!(debug, "{}: BAR {} cannot be at {base:#x}", self.contents.name(), self.index);
            }
            return;
        }
        self.mapped = Some(base);
        log_limited!(debug, "{}: BAR {} of {size:#x} mapped at {base:#x}", self.contents.name(), self.index);
        self.shown = self.bar.page.as_ref().filter(|page| seat.bars.show(base, page)).map(|_| base);
        for bell in &self.bar.doorbells {
            let addr = base + bell.offset;
            let at = Doorbell { addr, space, width: bell.width, value: bell.value };
            match seat.doorbells.attach(at, &bell.event) {
                Ok(()) => self.attached.push((at, bell.event.clone())),
                // The writes reach the window then, which is slower but right.
                Err(error) => log_limited!(warn, "{}: no doorbell at {at:?}: {error}", self.contents.name()),
            }
        }
    }
}
