//! What firmware does before it starts a kernel, for machines that boot a kernel directly.

use std::cmp::Reverse;
use std::ops::Range;

use thiserror::Error;

use super::config::{bits, reg};
use super::{Bdf, Lpc, Mch, PciHost, pirq_for};

/// 64-bit BARs from this size on go above 4 GiB even when they are not prefetchable.
const LARGE: u64 = 16 << 20;

/// ISA interrupts that firmware routes PIRQ A to D, and E to H, to.
const ISA_ROUTES: [u8; 4] = [10, 10, 11, 11];

/// Where BARs may go.
#[derive(Clone, Debug)]
pub struct Resources {
    /// I/O ports.
    pub ports: Range<u64>,
    /// Memory below 4 GiB.
    pub memory32: Range<u64>,
    /// Memory above 4 GiB, for large and prefetchable 64-bit BARs.
    pub memory64: Option<Range<u64>>,
    /// Switch decoding on. Kernels do that themselves.
    pub decode: bool,
}

/// A window is too small for the devices.
#[derive(Debug, Error)]
#[error("{bdf}: no room for BAR {bar} of {size:#x} bytes")]
pub struct NoRoom {
    /// The function.
    pub bdf: Bdf,
    /// Number of its BAR.
    pub bar: u16,
    /// Its size in bytes.
    pub size: u64,
}

/// A BAR as sizing found it.
struct Found {
    bdf: Bdf,
    bar: u16,
    size: u64,
    port: bool,
    wide: bool,
    prefetchable: bool,
}

/// Gives every BAR an address, largest first, and every function with an interrupt pin its line. Expansion ROMs
/// stay where they are.
pub fn assign_resources(host: &PciHost, resources: &Resources) -> Result<(), NoRoom> {
    let mut found = Vec::new();
    for (bdf, _) in host.functions() {
        // Sizing with decoding on would map the BAR where the ones point to.
        let command = read(host, bdf, reg::COMMAND) as u16 & !(bits::IO_SPACE | bits::MEMORY_SPACE);
        host.write(bdf, reg::COMMAND, &command.to_le_bytes());
        if byte(host, bdf, reg::HEADER_TYPE) & 0x7f == 0 {
            found.extend(size_bars(host, bdf));
        }
        let pin = byte(host, bdf, reg::INTERRUPT_PIN);
        if (1..=4).contains(&pin) {
            let pirq = usize::from(pirq_for(bdf.device(), pin - 1) & 3);
            let line = ISA_ROUTES.get(pirq).copied().unwrap_or(0xff);
            host.write(bdf, reg::INTERRUPT_LINE, &[line]);
        }
    }
    // Naturally aligned powers of two leave no gaps when the largest come first.
    found.sort_by_key(|bar| Reverse(bar.size));
    let mut ports = Space::new(resources.ports.clone());
    let mut low = Space::new(resources.memory32.clone());
    let mut high = Space::new(resources.memory64.clone().unwrap_or_default());
    for bar in &found {
        let base = if bar.port {
            ports.take(bar.size)
        } else if bar.wide && (bar.prefetchable || bar.size >= LARGE) {
            high.take(bar.size).or_else(|| low.take(bar.size))
        } else {
            low.take(bar.size).or_else(|| high.take(bar.size).filter(|_| bar.wide))
        };
        let base = base.ok_or(NoRoom { bdf: bar.bdf, bar: bar.bar, size: bar.size })?;
        place(host, bar, base, resources.decode);
    }
    Ok(())
}

/// Programs the chipset as SeaBIOS and OVMF do: power management ports, interrupt routes, chipset registers and
/// ECAM.
pub fn program_chipset(host: &PciHost, pm_base: u16, ecam_base: u64) {
    let write = |bdf, offset, value: u32| host.write(bdf, offset, &value.to_le_bytes());
    write(Lpc::BDF, 0x40, u32::from(pm_base) | 1);
    host.write(Lpc::BDF, 0x44, &[0x80]);
    host.write(Lpc::BDF, 0x60, &ISA_ROUTES);
    host.write(Lpc::BDF, 0x68, &ISA_ROUTES);
    write(Lpc::BDF, 0xf0, 0xfed1_c001);
    write(Mch::BDF, 0x60, 0);
    write(Mch::BDF, 0x64, (ecam_base >> 32) as u32);
    write(Mch::BDF, 0x60, ecam_base as u32 | 1);
}

fn read(host: &PciHost, bdf: Bdf, offset: u16) -> u32 {
    let mut data = [0; 4];
    host.read(bdf, offset, &mut data);
    u32::from_le_bytes(data)
}

fn byte(host: &PciHost, bdf: Bdf, offset: u16) -> u8 {
    let mut data = [0];
    host.read(bdf, offset, &mut data);
    u8::from_le_bytes(data)
}

/// Writes all ones and reads the mask back (PCI 3.0, 6.2.5.1), leaving the register zero.
fn mask(host: &PciHost, bdf: Bdf, offset: u16) -> u32 {
    host.write(bdf, offset, &[0xff; 4]);
    let mask = read(host, bdf, offset);
    host.write(bdf, offset, &[0; 4]);
    mask
}

fn size_bars(host: &PciHost, bdf: Bdf) -> Vec<Found> {
    let mut found = Vec::new();
    let mut bar = 0;
    while bar < 6 {
        let offset = reg::BAR0 + 4 * bar;
        let low = mask(host, bdf, offset);
        let port = low & 1 != 0;
        let wide = !port && low & 0b110 == 0b100;
        let address = if port { u64::from(low & !3 | 0xffff_0000) } else { u64::from(low & !15) };
        let high = if wide { mask(host, bdf, offset + 4) } else { u32::MAX };
        let size = (address | u64::from(high) << 32).wrapping_neg();
        if low != 0 && size != 0 {
            found.push(Found { bdf, bar, size, port, wide, prefetchable: !port && low & 8 != 0 });
        }
        bar += if wide { 2 } else { 1 };
    }
    found
}

fn place(host: &PciHost, bar: &Found, base: u64, decode: bool) {
    let offset = reg::BAR0 + 4 * bar.bar;
    host.write(bar.bdf, offset, &(base as u32).to_le_bytes());
    if bar.wide {
        host.write(bar.bdf, offset + 4, &((base >> 32) as u32).to_le_bytes());
    }
    if decode {
        let bit = if bar.port { bits::IO_SPACE } else { bits::MEMORY_SPACE };
        let command = read(host, bar.bdf, reg::COMMAND) as u16 | bit;
        host.write(bar.bdf, reg::COMMAND, &command.to_le_bytes());
    }
}

/// What is left of a window.
struct Space {
    next: u64,
    end: u64,
}

impl Space {
    fn new(range: Range<u64>) -> Self {
        Self { next: range.start, end: range.end }
    }

    /// `size` bytes, a power of two, naturally aligned.
    fn take(&mut self, size: u64) -> Option<u64> {
        let base = self.next.checked_next_multiple_of(size)?;
        let end = base.checked_add(size).filter(|end| *end <= self.end)?;
        self.next = end;
        Some(base)
    }
}
