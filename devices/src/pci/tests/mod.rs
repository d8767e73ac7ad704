//! Whole functions driven through configuration space and their BARs, as firmware and drivers do.

mod bars;
mod board;
mod interrupts;

use std::sync::{Arc, Mutex};

use super::*;
use crate::bus::BusDevice;
use crate::testing::pci::{TestSeat, config_dword, find_capability, set_config_dword, set_config_word};

/// A window that remembers the last write and answers with its tag.
pub(super) struct Window {
    pub(super) tag: u8,
    pub(super) last: Mutex<Option<(u64, Vec<u8>)>>,
}

impl Window {
    pub(super) fn new(tag: u8) -> Arc<Self> {
        Arc::new(Self { tag, last: Mutex::new(None) })
    }
}

impl BusDevice for Window {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(self.tag);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        *self.last.lock().unwrap() = Some((offset, data.to_vec()));
    }
    fn name(&self) -> &str {
        "window"
    }
}

pub(super) fn header() -> Header {
    Header { vendor: 0x1af4, device: 0x1048, class: 0x01_00_00, interrupt_pin: 1, ..Header::default() }
}

/// An HBA like the MegaRAID one: registers with MSI-X structures in a 64-bit BAR, ports, MSI and MSI-X.
pub(super) fn hba(seat: &TestSeat) -> PciDevice {
    let interrupts = InterruptSpec {
        msi: Some(MsiSpec { messages: 1, per_vector_mask: false, offset: Some(0x50) }),
        msix: Some(MsixSpec { vectors: 15, table: (1, 0x2000), pba: (1, 0x3800), offset: Some(0x68) }),
    };
    let mut b = PciDeviceBuilder::new("hba", &header(), &interrupts, seat.seat.clone()).unwrap();
    b.bar(0, Bar::new(BarKind::Port, 256, Window::new(0x10)));
    b.bar(1, Bar::new(BarKind::Memory64, 0x4000, Window::new(0x11)));
    b.bar(3, Bar::new(BarKind::Memory32, 0x4_0000, Window::new(0x13)));
    b.express(Some(0xa0), true).unwrap();
    b.build().unwrap()
}
