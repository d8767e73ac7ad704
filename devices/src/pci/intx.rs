//! INTx: the level of one function, and the wires of the board that functions share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::irq::IrqLine;

/// The INTx# output of one function (PCI 3.0, 2.2.6).
///
/// Driven while the function asserts it, Interrupt Disable is clear and no message-signalled interrupt is
/// enabled.
pub(super) struct Intx {
    line: Option<Arc<dyn IrqLine>>,
    state: Mutex<State>,
}

struct State {
    asserted: bool,
    allowed: bool,
    driven: bool,
}

impl Intx {
    /// `None` for a function without interrupt pin.
    pub(super) fn new(line: Option<Arc<dyn IrqLine>>) -> Self {
        Self { line, state: Mutex::new(State { asserted: false, allowed: true, driven: false }) }
    }

    pub(super) fn assert(&self, on: bool) {
        self.update(|state| state.asserted = on);
    }

    pub(super) fn allow(&self, on: bool) {
        self.update(|state| state.allowed = on);
    }

    /// What the Interrupt Status bit shows: Interrupt Disable does not hide it.
    pub(super) fn is_asserted(&self) -> bool {
        self.line.is_some() && self.lock().asserted
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let Some(line) = &self.line else { return };
        // The lock is held over the call so that levels reach the wire in the order of the changes.
        let mut state = self.lock();
        change(&mut state);
        let level = state.asserted && state.allowed;
        if level != state.driven {
            state.driven = level;
            line.set_level(level);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The PIRQ (0 to 7 for A to H) that pin `pin` (0 for INTA#) of `slot` is wired to, as q35 boards do it.
pub fn pirq_for(slot: u8, pin: u8) -> u8 {
    match slot {
        25..=29 | 31 => slot.wrapping_add(pin) & 3,
        _ => 4 + (slot.wrapping_add(pin) & 3),
    }
}

/// The GSI of pin `pin` (0 for INTA#) of `slot`: PIRQ A to H are GSI 16 to 23. ACPI's _PRT says the same.
pub fn gsi_for(slot: u8, pin: u8) -> u32 {
    16 + u32::from(pirq_for(slot, pin))
}

/// Bit of a PIRQ route register: not routed to an ISA interrupt (ICH9 datasheet, PIRQ[n]_ROUT).
const ROUTE_DISABLED: u8 = 0x80;

/// The wires between slots and interrupt controllers: ORs the functions that share one.
pub struct IntxRouter {
    gsi: [Arc<dyn IrqLine>; 8],
    isa: [Option<Arc<dyn IrqLine>>; 16],
    state: Mutex<Routes>,
}

struct Routes {
    /// Functions that drive each PIRQ high.
    drivers: [usize; 8],
    route: [u8; 8],
    isa_level: [bool; 16],
}

impl IntxRouter {
    /// `gsi` are GSI 16 to 23; `isa` the ISA interrupts a guest in PIC mode may route to:
    /// `None` for 0, 1, 2, 8 and 13, which the chipset reserves.
    pub fn new(gsi: [Arc<dyn IrqLine>; 8], isa: [Option<Arc<dyn IrqLine>>; 16]) -> Arc<Self> {
        let routes = Routes { drivers: [0; 8], route: [ROUTE_DISABLED; 8], isa_level: [false; 16] };
        Arc::new(Self { gsi, isa, state: Mutex::new(routes) })
    }

    /// A wire for one function: pin `pin` (0 for INTA#) of `slot`.
    pub fn wire(self: &Arc<Self>, slot: u8, pin: u8) -> Arc<dyn IrqLine> {
        let pirq = pirq_for(slot, pin).into();
        Arc::new(Wire { router: self.clone(), pirq, high: AtomicBool::new(false) })
    }

    /// The value of the route register of `pirq` (0 to 7): ISA interrupt in the low bits unless bit 7 is set.
    pub fn set_route(&self, pirq: usize, value: u8) {
        let mut state = self.lock();
        if let Some(route) = state.route.get_mut(pirq) {
            *route = value;
            self.drive_isa(&mut state);
        }
    }

    fn drive(&self, wire: &Wire, high: bool) {
        let mut state = self.lock();
        if wire.high.swap(high, Ordering::AcqRel) == high {
            return;
        }
        let pirq = wire.pirq;
        let Some(drivers) = state.drivers.get_mut(pirq) else { return };
        *drivers = if high { drivers.saturating_add(1) } else { drivers.saturating_sub(1) };
        let changed = *drivers == usize::from(high);
        if changed && let Some(line) = self.gsi.get(pirq) {
            line.set_level(high);
            self.drive_isa(&mut state);
        }
    }

    fn drive_isa(&self, state: &mut Routes) {
        let mut want = [false; 16];
        for (&drivers, &route) in state.drivers.iter().zip(&state.route) {
            if drivers > 0
                && route & ROUTE_DISABLED == 0
                && let Some(level) = want.get_mut(usize::from(route & 0xf))
            {
                *level = true;
            }
        }
        for ((level, want), line) in state.isa_level.iter_mut().zip(want).zip(&self.isa) {
            if *level != want {
                *level = want;
                if let Some(line) = line {
                    line.set_level(want);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Wire {
    router: Arc<IntxRouter>,
    pirq: usize,
    /// Changed under the lock of the router only.
    high: AtomicBool,
}

impl IrqLine for Wire {
    fn set_level(&self, high: bool) {
        self.router.drive(self, high);
    }

    fn pulse(&self) {
        self.set_level(true);
        self.set_level(false);
    }
}
