//! The way from vCPU accesses to functions: configuration mechanism #1 and the memory-mapped one (ECAM).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use tracing::{debug, trace};

use super::{Bdf, PciError, PciFunction};
use crate::bus::BusDevice;
use crate::machine::{Machine, MachineRequest};

/// The functions of the machine by address. Today all are on bus 0; a root port will add buses behind it.
#[derive(Default)]
pub struct PciHost {
    functions: RwLock<BTreeMap<Bdf, Arc<dyn PciFunction>>>,
}

impl PciHost {
    /// No functions.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Plugs `function` in at `bdf`.
    pub fn add(&self, bdf: Bdf, function: Arc<dyn PciFunction>) -> Result<(), PciError> {
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = functions.get(&bdf) {
            return Err(PciError::SlotTaken { bdf, other: other.name().to_owned() });
        }
        debug!(%bdf, function = function.name(), "PCI function added");
        functions.insert(bdf, function);
        Ok(())
    }

    /// Unplugs the function at `bdf`. The caller resets it, which unmaps what it has mapped.
    pub fn remove(&self, bdf: Bdf) -> Option<Arc<dyn PciFunction>> {
        self.functions.write().unwrap_or_else(PoisonError::into_inner).remove(&bdf)
    }

    /// The function at `bdf`.
    pub fn function(&self, bdf: Bdf) -> Option<Arc<dyn PciFunction>> {
        self.functions.read().unwrap_or_else(PoisonError::into_inner).get(&bdf).cloned()
    }

    /// All functions in order of their addresses.
    pub fn functions(&self) -> Vec<(Bdf, Arc<dyn PciFunction>)> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        functions.iter().map(|(bdf, function)| (*bdf, function.clone())).collect()
    }

    /// System reset: every function back to power-on.
    pub fn reset(&self) {
        for (_, function) in self.functions() {
            function.reset();
        }
    }

    /// Reads any bytes of configuration space; an absent function reads as all ones.
    pub fn read(&self, bdf: Bdf, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(function) = self.function(bdf) {
            for (offset, part) in pieces(offset, data.len()) {
                if let Some(part) = data.get_mut(part) {
                    function.config_read(offset, part);
                }
            }
        }
        trace!(%bdf, offset = %format_args!("{offset:#05x}"), ?data, "config read");
    }

    /// Writes any bytes of configuration space; an absent function swallows them.
    pub fn write(&self, bdf: Bdf, offset: u16, data: &[u8]) {
        trace!(%bdf, offset = %format_args!("{offset:#05x}"), ?data, "config write");
        let Some(function) = self.function(bdf) else { return };
        for (offset, part) in pieces(offset, data.len()) {
            if let Some(part) = data.get(part) {
                function.config_write(offset, part);
            }
        }
    }
}

/// Cuts an access into naturally aligned ones of 1, 2 and 4 bytes, up to the end of configuration space.
fn pieces(offset: u16, len: usize) -> impl Iterator<Item = (u16, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = usize::from(offset) + done;
        let width = [4, 2, 1].into_iter().find(|width| at.is_multiple_of(*width) && done + width <= len)?;
        let part = done..done + width;
        done += width;
        u16::try_from(at).ok().filter(|at| *at < 0x1000).map(|at| (at, part))
    })
}

/// CONFIG_ADDRESS: enable, bus, device and function, dword (PCI 3.0, 3.2.2.3.2).
const ADDRESS_ENABLE: u32 = 1 << 31;
const ADDRESS_BITS: u32 = 0x80ff_fffc;

/// Reset Control at port 0xCF9 (ICH9 datasheet, RST_CNT): reset on the rising edge; the stored kind of reset.
const RESET_CPU: u8 = 1 << 2;
const RESET_STORED: u8 = 1 << 1 | 1 << 3;

/// Ports 0xCF8 to 0xCFF: configuration mechanism #1, with the reset register amid the address register.
pub struct ConfigPorts {
    host: Arc<PciHost>,
    machine: Machine,
    address: AtomicU32,
    reset_control: AtomicU8,
}

impl ConfigPorts {
    /// First port.
    pub const BASE: u64 = 0xcf8;
    /// Ports.
    pub const LEN: u64 = 8;

    /// Ports onto the functions of `host`; `machine` takes the reset requests.
    pub fn new(host: Arc<PciHost>, machine: Machine) -> Arc<Self> {
        Arc::new(Self { host, machine, address: AtomicU32::new(0), reset_control: AtomicU8::new(0) })
    }

    /// System reset.
    pub fn reset(&self) {
        self.address.store(0, Ordering::Relaxed);
        self.reset_control.store(0, Ordering::Relaxed);
    }

    /// The register that an access of the data port at `lane` (0 to 3) means, while the address is enabled.
    fn target(&self, lane: u64, len: usize) -> Option<(Bdf, u16)> {
        let address = self.address.load(Ordering::Relaxed);
        let lane = u16::try_from(lane).ok().filter(|lane| usize::from(*lane) + len <= 4)?;
        let register = (address & 0xfc) as u16 | lane;
        (address & ADDRESS_ENABLE != 0).then(|| (Bdf::from_bits((address >> 8) as u16), register))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        match (offset, data) {
            (0, data) if data.len() == 4 => {
                data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes());
            }
            (1, [byte]) => *byte = self.reset_control.load(Ordering::Relaxed),
            (4..=7, data) => {
                if let Some((bdf, register)) = self.target(offset - 4, data.len()) {
                    self.host.read(bdf, register, data);
                }
            }
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            // Only a dword is the address; narrower accesses go on to the ISA side.
            (0, &[a, b, c, d]) => {
                let address = u32::from_le_bytes([a, b, c, d]) & ADDRESS_BITS;
                self.address.store(address, Ordering::Relaxed);
            }
            (1, &[value]) => {
                // The reset bit is not kept, so each write that sets it is a rising edge.
                self.reset_control.store(value & RESET_STORED, Ordering::Relaxed);
                if value & RESET_CPU != 0 {
                    self.machine.request(MachineRequest::Reset("port 0xcf9"));
                }
            }
            (4..=7, data) => {
                if let Some((bdf, register)) = self.target(offset - 4, data.len()) {
                    self.host.write(bdf, register, data);
                }
            }
            _ => {}
        }
    }

    fn name(&self) -> &str {
        "pci-config"
    }
}

/// The memory-mapped configuration space: 1 MiB a bus, 4 KiB a function (PCIe 3.0, 7.2.2).
pub(super) struct EcamWindow {
    /// The host bridge, itself a function of the host, holds this window.
    pub(super) host: Weak<PciHost>,
}

impl EcamWindow {
    fn target(offset: u64) -> (Bdf, u16) {
        (Bdf::from_bits((offset >> 12) as u16), (offset & 0xfff) as u16)
    }
}

impl BusDevice for EcamWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let (bdf, register) = Self::target(offset);
        if let Some(host) = self.host.upgrade() {
            host.read(bdf, register, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (bdf, register) = Self::target(offset);
        if let Some(host) = self.host.upgrade() {
            host.write(bdf, register, data);
        }
    }

    fn name(&self) -> &str {
        "pci-ecam"
    }
}
