//! ACPI tables for firmware: from what the chipset's registers say when the guest asks for them.

use std::sync::{Arc, Mutex, PoisonError};

use boot::acpi::TableSet;
use boot::layout::{MAX_LOW_TOP, MEM32};
use boot::{AddrRange, RamLayout, acpi};
use devices::pci::{Bdf, Lpc, Mch, PciHost, gsi_for};

use super::PM_BASE;
use super::firmware::Wiring;

/// Registers of configuration space (PCI 3.0, 6.1): header type and the six BARs.
const HEADER_TYPE: u16 = 0x0e;
const BAR0: u16 = 0x10;
const BARS: u16 = 6;
/// Of the LPC bridge: base of the power management ports.
const PMBASE: u16 = 0x40;
/// PCI windows are whole pieces of this size.
const WINDOW_ALIGN: u64 = 1 << 30;

/// Makes the tables, and keeps them while firmware reads them file by file.
pub struct FirmwareTables {
    host: Arc<PciHost>,
    mch: Arc<Mch>,
    layout: RamLayout,
    physical_bits: u8,
    cpus: u32,
    built: Mutex<Option<Arc<TableSet>>>,
}

impl FirmwareTables {
    /// For the machine that `wiring` describes.
    pub fn new(wiring: &Wiring<'_>) -> Self {
        Self {
            host: wiring.chipset.host.clone(),
            mch: wiring.chipset.mch.clone(),
            layout: *wiring.layout,
            physical_bits: wiring.physical_bits,
            cpus: wiring.config.vm.cpus.into(),
            built: Mutex::new(None),
        }
    }

    /// Without a machine around the bridges.
    #[cfg(feature = "testing")]
    pub fn of(host: &Arc<PciHost>, mch: &Arc<Mch>, layout: RamLayout, physical_bits: u8, cpus: u32) -> Self {
        Self { host: host.clone(), mch: mch.clone(), layout, physical_bits, cpus, built: Mutex::new(None) }
    }

    /// The tables; made `anew`, or those that were made last.
    pub fn get(&self, anew: bool) -> Arc<TableSet> {
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        match &*built {
            Some(set) if !anew => set.clone(),
            _ => {
                let set = Arc::new(self.build());
                *built = Some(set.clone());
                set
            }
        }
    }

    fn build(&self) -> TableSet {
        let machine = self.describe();
        tracing::debug!(ecam = ?machine.ecam, mem32 = ?machine.mem32, mem64 = ?machine.mem64, "ACPI tables built");
        machine.tables().unwrap_or_else(|error| {
            // What a guest can program is kept within what can be described; still, no tables are better than none.
            devices::log_limited!(warn, "ACPI tables: {error}");
            TableSet::default()
        })
    }

    fn describe(&self) -> acpi::Machine {
        let apic_ids = (0..self.cpus).collect();
        let mut machine = acpi::Machine::direct_boot(&self.layout, self.physical_bits, apic_ids, gsi_for);
        machine.irq0_to_gsi2 = true;
        machine.fw_cfg = true;
        machine.ecam = self.mch.ecam().map(|range| AddrRange::new(range.start, range.end)).filter(|range| {
            // Elsewhere it hides other devices: nothing to tell an operating system about.
            range.base >= MAX_LOW_TOP && range.end() <= MEM32.end()
        });
        machine.mem32 = low_windows(machine.ecam);
        machine.mem64 = covering(machine.mem64, &bars_above(&self.host, self.layout.end()));
        machine.pm_base = self.pm_base();
        machine
    }

    fn pm_base(&self) -> u16 {
        let mut register = [0; 2];
        self.host.read(Lpc::BDF, PMBASE, &mut register);
        match u16::from_le_bytes(register) & 0xff80 {
            0 => PM_BASE,
            base => base,
        }
    }
}

/// What lies between the highest end of low RAM and the fixed devices, less ECAM.
fn low_windows(ecam: Option<AddrRange>) -> Vec<AddrRange> {
    let Some(ecam) = ecam else { return vec![AddrRange::new(MAX_LOW_TOP, MEM32.end())] };
    let parts = [AddrRange::new(MAX_LOW_TOP, ecam.base), AddrRange::new(ecam.end(), MEM32.end())];
    parts.into_iter().filter(|part| part.size > 0).collect()
}

/// `window`, made larger to hold everything in `used`.
fn covering(window: Option<AddrRange>, used: &[u64]) -> Option<AddrRange> {
    let first = used.iter().min().map(|base| base & !(WINDOW_ALIGN - 1));
    let last = used.iter().max().map(|base| base.saturating_add(WINDOW_ALIGN) & !(WINDOW_ALIGN - 1));
    let (Some(first), Some(last)) = (first, last) else { return window };
    let window = window.unwrap_or(AddrRange::new(first, last));
    Some(AddrRange::new(window.base.min(first), window.end().max(last)))
}

/// Addresses of the 64-bit BARs that are above RAM, which ends at `end`, now.
fn bars_above(host: &PciHost, end: u64) -> Vec<u64> {
    let dword = |bdf: Bdf, offset: u16| {
        let mut bytes = [0; 4];
        host.read(bdf, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    let mut found = Vec::new();
    for (bdf, _) in host.functions() {
        let mut header = [0];
        host.read(bdf, HEADER_TYPE, &mut header);
        if header != [0] && header != [0x80] {
            continue;
        }
        let mut bar = 0;
        while bar < BARS {
            let low = dword(bdf, BAR0 + 4 * bar);
            let wide = low & 0b111 == 0b100;
            if wide && bar + 1 < BARS {
                found.push(u64::from(dword(bdf, BAR0 + 4 * (bar + 1))) << 32 | u64::from(low & !0xf));
            }
            bar += if wide { 2 } else { 1 };
        }
    }
    found.retain(|base| *base >= end);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_windows_leave_ecam_out() {
        let window = AddrRange::new;
        let seabios = window(0xb000_0000, 0xc000_0000);
        assert_eq!(
            low_windows(Some(seabios)),
            [window(0x8000_0000, 0xb000_0000), window(0xc000_0000, 0xfec0_0000)]
        );
        let ovmf = window(0xe000_0000, 0xf000_0000);
        assert_eq!(
            low_windows(Some(ovmf)),
            [window(0x8000_0000, 0xe000_0000), window(0xf000_0000, 0xfec0_0000)]
        );
        assert_eq!(low_windows(Some(window(0x8000_0000, 0x9000_0000))), [window(0x9000_0000, 0xfec0_0000)]);
        assert_eq!(low_windows(None), [window(0x8000_0000, 0xfec0_0000)]);
    }

    #[test]
    fn the_high_window_follows_the_bars() {
        let window = AddrRange::new;
        let default = Some(window(0xe0_0000_0000, 0x100_0000_0000));
        assert_eq!(covering(default, &[]), default);
        assert_eq!(covering(default, &[0xe0_0000_4000]), default);
        assert_eq!(
            covering(default, &[0x1_8000_4000, 0xe0_0000_0000]),
            Some(window(0x1_8000_0000, 0x100_0000_0000))
        );
        assert_eq!(covering(None, &[0x1_8000_4000]), Some(window(0x1_8000_0000, 0x1_c000_0000)));
    }
}
