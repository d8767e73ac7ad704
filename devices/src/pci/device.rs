//! An endpoint function: what every PCI device does, so that an HBA adds its registers only.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bar::{Bar, BarIndex, BarKind, Slot};
use super::config::{ConfigSpace, Header, bits};
use super::msix::{MsixSpec, PendingBits, Table};
use super::{Interrupt, InterruptSpec, PciError, PciFunction, PciSeat, express};
use crate::bus::BusDevice;

/// What a configuration write asked of the device beyond what [`PciDevice`] does itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigChange {
    /// Bus Master Enable changed to this. DMA already follows it.
    pub bus_master: Option<bool>,
    /// Initiate Function Level Reset was written: the device has to reset itself, this function included.
    pub function_reset: bool,
}

/// Collects the description of a function.
pub struct PciDeviceBuilder {
    name: Arc<str>,
    config: ConfigSpace,
    bars: Vec<(BarIndex, Bar)>,
    msix: Option<MsixSpec>,
    interrupt: Interrupt,
    express: Option<u16>,
    seat: PciSeat,
}

impl PciDeviceBuilder {
    /// Starts with header and interrupts. MSI and MSI-X get the first capabilities.
    pub fn new(
        name: &str,
        header: &Header,
        interrupts: &InterruptSpec,
        seat: PciSeat,
    ) -> Result<Self, PciError> {
        let mut config = ConfigSpace::new(header);
        let interrupt = Interrupt::new(interrupts, &mut config, header.interrupt_pin, &seat)?;
        let msix = interrupts.msix;
        Ok(Self { name: name.into(), config, bars: Vec::new(), msix, interrupt, express: None, seat })
    }

    /// How the device will interrupt; works at once, so that the windows of BARs can hold it.
    pub fn interrupt(&self) -> Interrupt {
        self.interrupt.clone()
    }

    /// Adds a BAR at register `index`.
    pub fn bar(&mut self, index: BarIndex, bar: Bar) -> &mut Self {
        self.bars.push((index, bar));
        self
    }

    /// Appends a capability at the first free place: `body` follows the ID and the next pointer.
    pub fn capability(&mut self, id: u8, body: &[u8]) -> Result<u16, PciError> {
        self.config.capability(id, body)
    }

    /// Adds the PCI Express capability of a root complex integrated endpoint, at `offset` where one is given.
    /// With `function_level_reset`, the device has to act on [`ConfigChange::function_reset`].
    pub fn express(&mut self, offset: Option<u16>, function_level_reset: bool) -> Result<u16, PciError> {
        let at = express::add(&mut self.config, offset, function_level_reset)?;
        self.express = function_level_reset.then_some(at);
        Ok(at)
    }

    /// Configuration space, for registers of the device's own and masks of its capabilities.
    pub fn config(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    /// Checks that everything fits and builds the function in its power-on state.
    pub fn build(mut self) -> Result<PciDevice, PciError> {
        self.check_msix()?;
        let mut used = 0_u8;
        let mut slots = Vec::with_capacity(self.bars.len());
        for (index, bar) in std::mem::take(&mut self.bars) {
            let registers = if bar.kind() == BarKind::Memory64 { 0b11_u8 } else { 1 };
            let registers = registers.checked_shl(index.into()).unwrap_or(0);
            if used & registers != 0 {
                return Err(PciError::Bar { index, why: "shares a register with another one" });
            }
            used |= registers;
            let overlays = self.overlays(index);
            slots.push(Slot::new(index, bar, self.name.clone(), overlays, &mut self.config)?);
        }
        self.config.seal();
        let state = State { config: self.config, slots };
        let Self { name, interrupt, express, seat, .. } = self;
        Ok(PciDevice { name, interrupt, express, seat, state: Mutex::new(state) })
    }

    fn check_msix(&self) -> Result<(), PciError> {
        let Some(msix) = &self.msix else { return Ok(()) };
        let fits = |(index, offset): (BarIndex, u32), len: u64| {
            self.bars.iter().any(|(i, bar)| {
                let memory = matches!(bar.kind(), BarKind::Memory32 | BarKind::Memory64);
                *i == index && memory && u64::from(offset) + len <= bar.size()
            })
        };
        let (table, pba) = (u64::from(msix.table.1), u64::from(msix.pba.1));
        let overlap =
            msix.table.0 == msix.pba.0 && table < pba + msix.pba_len() && pba < table + msix.table_len();
        if overlap || !fits(msix.table, msix.table_len()) || !fits(msix.pba, msix.pba_len()) {
            return Err(PciError::Msix);
        }
        Ok(())
    }

    fn overlays(&self, index: BarIndex) -> Vec<(u64, u64, Arc<dyn BusDevice>)> {
        let mut overlays: Vec<(u64, u64, Arc<dyn BusDevice>)> = Vec::new();
        if let (Some(spec), Some(msix)) = (&self.msix, self.interrupt.msix()) {
            if spec.table.0 == index {
                overlays.push((spec.table.1.into(), spec.table_len(), Arc::new(Table(msix.clone()))));
            }
            if spec.pba.0 == index {
                overlays.push((spec.pba.1.into(), spec.pba_len(), Arc::new(PendingBits(msix.clone()))));
            }
        }
        overlays
    }
}

/// A built function: configuration registers with all their effects.
///
/// A device wraps it: its [`PciFunction`] forwards to this one and adds what is its own.
pub struct PciDevice {
    name: Arc<str>,
    interrupt: Interrupt,
    /// Offset of the PCI Express capability, when it offers Function Level Reset.
    express: Option<u16>,
    seat: PciSeat,
    state: Mutex<State>,
}

struct State {
    config: ConfigSpace,
    slots: Vec<Slot>,
}

impl PciDevice {
    /// How to interrupt the driver.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// What the function was plugged into.
    pub fn seat(&self) -> &PciSeat {
        &self.seat
    }

    /// The command register as it is now.
    pub fn command(&self) -> u16 {
        self.lock().config.command()
    }

    /// Fills `data` from configuration space.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let mut state = self.lock();
        self.interrupt.show(&mut state.config);
        state.config.read(offset, data);
    }

    /// Takes a configuration write with all its effects, and says what the device itself has to do about it.
    pub fn write(&self, offset: u16, data: &[u8]) -> ConfigChange {
        let mut state = self.lock();
        let before = state.config.command();
        state.config.write(offset, data);
        self.settle(&mut state);
        let after = state.config.command();
        let bus_master = after & bits::BUS_MASTER != 0;
        let changed = (before ^ after) & bits::BUS_MASTER != 0;
        ConfigChange {
            bus_master: changed.then_some(bus_master),
            function_reset: self.asks_reset(offset, data),
        }
    }

    /// Back to power-on: DMA revoked, BARs unmapped, interrupts off.
    pub fn reset_registers(&self) {
        let mut state = self.lock();
        state.config.reset();
        self.interrupt.reset();
        self.settle(&mut state);
    }

    /// What answers in BAR `index` and its size, for accesses that do not come over the bus (the configuration
    /// access window of virtio).
    pub fn bar(&self, index: BarIndex) -> Option<(Arc<dyn BusDevice>, u64)> {
        let state = self.lock();
        let slot = state.slots.iter().find(|slot| slot.index() == index)?;
        Some((slot.contents().clone(), slot.size()))
    }

    /// Makes everything outside follow the registers.
    fn settle(&self, state: &mut State) {
        let State { config, slots } = state;
        self.seat.dma.set_bus_master(config.command() & bits::BUS_MASTER != 0);
        self.interrupt.follow(config);
        // First all that goes, then all that comes: BARs may trade places.
        slots.iter_mut().for_each(|slot| slot.release(config, &self.seat));
        slots.iter_mut().for_each(|slot| slot.claim(config, &self.seat));
    }

    fn asks_reset(&self, offset: u16, data: &[u8]) -> bool {
        let Some(express) = self.express else { return false };
        let [_, high] = express::INITIATE_FLR.to_le_bytes();
        let at = usize::from(express + express::DEVICE_CONTROL + 1);
        let value = at.checked_sub(offset.into()).and_then(|i| data.get(i));
        value.is_some_and(|value| value & high != 0)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PciFunction for PciDevice {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        if self.write(offset, data).function_reset {
            self.reset_registers();
        }
    }

    fn reset(&self) {
        self.reset_registers();
    }

    fn name(&self) -> &str {
        &self.name
    }
}
