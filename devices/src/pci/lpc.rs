//! The ICH9 LPC bridge, device 00:1f.0 (Intel ICH9 datasheet, LPC interface bridge registers, D31:F0):
//! where power management and the interrupt routes are programmed.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::config::{ConfigSpace, Header};
use super::decode::Decode;
use super::{Bdf, IntxRouter, PciFunction};
use crate::bus::{Bus, BusDevice};

/// ACPI base address: ports of the power management block (PMBASE).
const PMBASE: u16 = 0x40;
/// ACPI control: enable, SCI select (ACPI_CNTL).
const ACPI_CNTL: u16 = 0x44;
const ACPI_ENABLE: u8 = 1 << 7;
/// PIRQ A to D and E to H route control (PIRQ[n]_ROUT).
const PIRQ_ROUTES: [u16; 2] = [0x60, 0x68];
/// General power management configuration 1 (GEN_PMCON_1); storage.
const GEN_PMCON_1: u16 = 0xa0;
/// Root complex base address: 16 KiB of chipset registers (RCBA).
const RCBA: u16 = 0xf0;

/// Ports of the power management block.
const PM_LEN: u64 = 128;
const RCBA_LEN: u64 = 16 << 10;
/// General control and status. Its NO_REBOOT bit is strapped: the watchdog of this chipset is not there, and drivers
/// (Linux iTCO_wdt) that cannot clear the bit leave it alone.
const GCS: u64 = 0x3410;
const GCS_NO_REBOOT: u8 = 1 << 5;

/// What the LPC bridge drives.
pub struct LpcWiring {
    /// Where the power management block appears.
    pub ports: Arc<Bus>,
    /// Where the chipset registers appear.
    pub memory: Arc<Bus>,
    /// The power management block: 128 ports.
    pub pm: Arc<dyn BusDevice>,
    /// The interrupt wires whose ISA routes are programmed here.
    pub router: Arc<IntxRouter>,
    /// Called with the GSI of the system control interrupt when that changes, and at reset. Runs under the lock
    /// of the bridge: it must not access configuration space.
    pub sci: Arc<dyn Fn(u32) + Send + Sync>,
}

/// The bridge.
pub struct Lpc {
    router: Arc<IntxRouter>,
    sci: Arc<dyn Fn(u32) + Send + Sync>,
    state: Mutex<State>,
}

struct State {
    config: ConfigSpace,
    pm: Decode,
    rcba: Decode,
    sci: u32,
}

impl Lpc {
    /// Where the bridge is.
    pub const BDF: Bdf = Bdf::new(0, 0x1f, 0);

    /// The bridge in its power-on state. Not yet added to a host.
    pub fn new(wiring: LpcWiring) -> Arc<Self> {
        let mut config = ConfigSpace::new(&Header {
            vendor: 0x8086,
            device: 0x2918,
            revision: 2,
            class: 0x06_01_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            interrupt_pin: 0,
            multifunction: true,
        });
        config.register(PMBASE, &1_u32.to_le_bytes(), &0xff80_u32.to_le_bytes());
        config.allow(ACPI_CNTL, &[ACPI_ENABLE | 0x07]);
        for routes in PIRQ_ROUTES {
            config.register(routes, &[0x80; 4], &[0x8f; 4]);
        }
        config.allow(GEN_PMCON_1, &[0xff; 2]);
        config.allow(RCBA, &0xffff_c001_u32.to_le_bytes());
        config.seal();
        let pm = Decode::new(wiring.ports, wiring.pm);
        let rcba = Decode::new(wiring.memory, Arc::new(ChipsetRegisters));
        let state = State { config, pm, rcba, sci: sci_gsi(0) };
        let lpc = Self { router: wiring.router, sci: wiring.sci, state: Mutex::new(state) };
        lpc.reset();
        Arc::new(lpc)
    }

    /// First port of the power management block, while it is decoded.
    pub fn pm_base(&self) -> Option<u64> {
        self.lock().pm.mapped().map(|range| range.start)
    }

    /// GSI of the system control interrupt.
    pub fn sci(&self) -> u32 {
        self.lock().sci
    }

    /// Makes everything outside follow the registers.
    fn settle(&self, state: &mut State) {
        let State { config, pm, rcba, .. } = state;
        let control = config.u8(ACPI_CNTL);
        let base = u64::from(config.u32(PMBASE) & 0xff80);
        pm.follow((control & ACPI_ENABLE != 0 && base != 0).then(|| range(base, PM_LEN)));
        let register = config.u32(RCBA);
        let base = u64::from(register & 0xffff_c000);
        rcba.follow((register & 1 != 0 && base != 0).then(|| range(base, RCBA_LEN)));
        for (group, routes) in PIRQ_ROUTES.into_iter().enumerate() {
            for (i, route) in config.u32(routes).to_le_bytes().into_iter().enumerate() {
                self.router.set_route(4 * group + i, route);
            }
        }
        let sci = sci_gsi(control);
        if sci != state.sci {
            state.sci = sci;
            (self.sci)(sci);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn range(base: u64, len: u64) -> Range<u64> {
    base..base + len
}

/// SCI select: IRQ 9, 10, 11, 20 or 21; reserved values stay with 9 (ACPI_CNTL).
fn sci_gsi(control: u8) -> u32 {
    match control & 7 {
        1 => 10,
        2 => 11,
        4 => 20,
        5 => 21,
        _ => 9,
    }
}

impl PciFunction for Lpc {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.lock().config.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let mut state = self.lock();
        state.config.write(offset, data);
        self.settle(&mut state);
    }

    fn reset(&self) {
        let mut state = self.lock();
        state.config.reset();
        self.settle(&mut state);
        (self.sci)(state.sci);
    }

    fn name(&self) -> &str {
        "lpc"
    }
}

/// The root complex register block: firmware maps it, and drivers look for a watchdog in it. The rest reads zero.
struct ChipsetRegisters;

impl BusDevice for ChipsetRegisters {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = if at == GCS { GCS_NO_REBOOT } else { 0 };
        }
    }

    fn write(&self, _: u64, _: &[u8]) {}

    fn name(&self) -> &str {
        "rcba"
    }
}
