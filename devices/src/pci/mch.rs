//! The q35 host bridge, device 00:00.0 (Intel 3 Series Express Chipset datasheet, DRAM controller
//! registers, D0:F0).

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::config::{ConfigSpace, Header};
use super::decode::Decode;
use super::host::{EcamWindow, PciHost};
use super::{Bdf, PciFunction};
use crate::bus::Bus;

/// PCI Express register range base: enable, length, base (PCIEXBAR).
const PCIEXBAR: u16 = 0x60;
/// Programmable attribute maps of the ROM areas (PAM0 to PAM6): read and write enables.
const PAM: u16 = 0x90;
/// System management RAM control (SMRAM). Storage: there is no system management mode.
const SMRAM: u16 = 0x9d;

/// Memory controller hub: its registers are storage for firmware, but for the base of ECAM.
pub struct Mch {
    state: Mutex<State>,
}

struct State {
    config: ConfigSpace,
    ecam: Decode,
}

impl Mch {
    /// Where the host bridge is.
    pub const BDF: Bdf = Bdf::new(0, 0, 0);

    /// The bridge onto `host`, whose ECAM appears on `memory` once firmware enables it. Not yet added to `host`.
    pub fn new(host: &Arc<PciHost>, memory: Arc<Bus>) -> Arc<Self> {
        let mut config = ConfigSpace::new(&Header {
            vendor: 0x8086,
            device: 0x29c0,
            class: 0x06_00_00,
            // SeaBIOS takes this subsystem as the sign of fw_cfg.
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            ..Header::default()
        });
        // Base in bits 35 to 26, the lower two with the shorter lengths only; length; enable.
        config.allow(PCIEXBAR, &0x0000_000f_fc00_0007_u64.to_le_bytes());
        config.allow(PAM, &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
        config.register(SMRAM, &[0x02], &[0x78]);
        config.seal();
        let window = Arc::new(EcamWindow { host: Arc::downgrade(host) });
        Arc::new(Self { state: Mutex::new(State { config, ecam: Decode::new(memory, window) }) })
    }

    /// Guest physical addresses of ECAM, 1 MiB for each bus from 0, while it is enabled.
    pub fn ecam(&self) -> Option<Range<u64>> {
        self.lock().ecam.mapped()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The range that the register enables.
fn ecam_range(register: u64) -> Option<Range<u64>> {
    let len = match register & 0b111 {
        0b001 => 256 << 20,
        0b011 => 128 << 20,
        0b101 => 64 << 20,
        _ => return None,
    };
    let base = register & !0x7 & !(len - 1);
    Some(base..base.checked_add(len)?)
}

impl State {
    fn settle(&mut self) {
        let register = u64::from(self.config.u32(PCIEXBAR)) | u64::from(self.config.u32(PCIEXBAR + 4)) << 32;
        self.ecam.follow(ecam_range(register));
    }
}

impl PciFunction for Mch {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.lock().config.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let mut state = self.lock();
        state.config.write(offset, data);
        state.settle();
    }

    fn reset(&self) {
        let mut state = self.lock();
        state.config.reset();
        state.settle();
    }

    fn name(&self) -> &str {
        "host-bridge"
    }
}
