//! PCI: configuration space, BARs, capabilities, MSI-X, and the host bridge that routes to functions.
//!
//! ```text
//!   ConfigPorts (CF8/CFC), EcamWindow          vCPU accesses to configuration space
//!              \      /
//!              PciHost                          bus 0: slots x functions
//!            /    |     \
//!         Mch    Lpc    an HBA's function       each a PciFunction
//!                          |
//!                       PciDevice               registers, BARs, interrupts of an endpoint
//!                      /    |    \
//!            ConfigSpace   Bar   Interrupt      -> BarWindow, PageWindow, Doorbells; MsiAllocator, IntxRouter
//! ```

pub mod config;

mod assign;
mod bar;
mod decode;
mod device;
mod express;
mod host;
mod interrupt;
mod intx;
mod lpc;
mod mch;
mod msi;
mod msix;
mod page;
mod seat;
mod vectors;
mod window;

#[cfg(test)]
mod tests;

use std::fmt;

use thiserror::Error;

pub use assign::{NoRoom, Resources, assign_resources, program_chipset};
pub use bar::{Bar, BarDoorbell, BarIndex, BarKind, ROM_BAR};
pub use config::{ConfigSpace, Header};
pub use device::{ConfigChange, PciDevice, PciDeviceBuilder};
pub use host::{ConfigPorts, PciHost};
pub use interrupt::{Interrupt, InterruptMode, InterruptSpec};
pub use intx::{IntxRouter, gsi_for, pirq_for};
pub use lpc::{Lpc, LpcWiring};
pub use mch::Mch;
pub use msi::MsiSpec;
pub use msix::MsixSpec;
pub use page::{PageWindow, RegisterPage};
pub use seat::{BarWindow, PciSeat};
pub use window::BusWindows;

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

/// Bus, device and function number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf(u16);

impl Bdf {
    /// Device numbers have 5 bits and function numbers 3; higher bits are dropped.
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u16) << 8 | (device as u16 & 31) << 3 | function as u16 & 7)
    }

    /// The 16 bits of a requester ID.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Bus number.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Device number, the slot: 0 to 31.
    pub const fn device(self) -> u8 {
        (self.0 >> 3) as u8 & 31
    }

    /// Function number: 0 to 7.
    pub const fn function(self) -> u8 {
        self.0 as u8 & 7
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

impl fmt::Debug for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A function that cannot be built or plugged: a mistake in its description, never a guest's.
#[derive(Debug, Error)]
pub enum PciError {
    /// Configuration space is full, or the wanted place is taken.
    #[error("no room in configuration space for capability {id:#04x}")]
    NoRoom {
        /// Capability ID.
        id: u8,
    },
    /// An unusable BAR.
    #[error("BAR {index}: {why}")]
    Bar {
        /// Number of the BAR.
        index: BarIndex,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A count of messages that MSI does not know.
    #[error("MSI takes 1, 2, 4, 8, 16 or 32 messages")]
    Msi,
    /// MSI-X structures that cannot be.
    #[error("MSI-X takes 1 to 2048 vectors, and table and pending bits at multiples of 8 inside memory BARs")]
    Msix,
    /// The slot is taken.
    #[error("{bdf} already holds {other}")]
    SlotTaken {
        /// The place wanted.
        bdf: Bdf,
        /// The function already there.
        other: String,
    },
}
