//! A PCI slot without a machine around it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::irq::{RecordingIrq, RecordingMsi};
use crate::bus::{Bus, Doorbell, Doorbells};
use crate::mem::{Dma, GuestRam};
use crate::pci::{BusWindows, PciFunction, PciSeat};

/// Where memory BARs of a [`TestSeat`] may be; RAM is below.
pub const TEST_MEMORY_WINDOWS: [std::ops::Range<u64>; 2] =
    [0xc000_0000..0xfec0_0000, 0x80_0000_0000..0x100_0000_0000];
/// Where I/O BARs of a [`TestSeat`] may be.
pub const TEST_PORT_WINDOW: std::ops::Range<u64> = 0x1000..0x1_0000;

/// Doorbells that the test rings itself.
#[derive(Default)]
pub struct FakeDoorbells {
    attached: Mutex<Vec<(Doorbell, EventFd)>>,
}

impl FakeDoorbells {
    /// No doorbells.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// What is attached now.
    pub fn attached(&self) -> Vec<Doorbell> {
        self.lock().iter().map(|(bell, _)| *bell).collect()
    }

    /// A guest write: signals the doorbells it matches and returns whether there was one, in which case the
    /// write does not reach the bus.
    pub fn ring(&self, write: Doorbell) -> bool {
        let matches = |bell: &Doorbell| {
            let same = (bell.addr, bell.space) == (write.addr, write.space);
            let width = bell.width == 0 || bell.width == write.width;
            same && width && (bell.value.is_none() || bell.value == write.value)
        };
        let bells = self.lock();
        let mut rang = false;
        for (_, event) in bells.iter().filter(|(bell, _)| matches(bell)) {
            rang |= event.write(1).is_ok();
        }
        rang
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Doorbell, EventFd)>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Doorbells for FakeDoorbells {
    fn attach(&self, bell: Doorbell, event: &EventFd) -> io::Result<()> {
        let mut bells = self.lock();
        if bells.iter().any(|(other, _)| *other == bell) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        bells.push((bell, event.try_clone()?));
        Ok(())
    }

    fn detach(&self, bell: Doorbell, _: &EventFd) -> io::Result<()> {
        let mut bells = self.lock();
        let at = bells.iter().position(|(other, _)| *other == bell).ok_or(io::ErrorKind::NotFound)?;
        bells.remove(at);
        Ok(())
    }
}

/// A slot with RAM, buses and interrupt sinks of its own.
pub struct TestSeat {
    /// What the device under test gets.
    pub seat: PciSeat,
    /// Guest RAM from address 0.
    pub ram: Arc<GuestRam>,
    /// Memory accesses of the guest.
    pub memory: Arc<Bus>,
    /// Port accesses of the guest.
    pub ports: Arc<Bus>,
    /// The INTA# wire.
    pub intx: Arc<RecordingIrq>,
    /// Message-signalled interrupts.
    pub msi: Arc<RecordingMsi>,
    /// Doorbells.
    pub doorbells: Arc<FakeDoorbells>,
}

impl TestSeat {
    /// `ram_size` bytes of RAM from address 0.
    pub fn new(ram_size: usize) -> Self {
        Self::with_msi(ram_size, RecordingMsi::new())
    }

    /// As [`new`](Self::new), with an allocator that may run out.
    #[allow(clippy::expect_used)]
    pub fn with_msi(ram_size: usize, msi: Arc<RecordingMsi>) -> Self {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), ram_size)]).expect("anonymous memory");
        let ram = Arc::new(ram);
        let (memory, ports) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let (intx, doorbells) = (RecordingIrq::new(), FakeDoorbells::new());
        let windows = BusWindows::new(
            memory.clone(),
            ports.clone(),
            TEST_MEMORY_WINDOWS.into(),
            vec![TEST_PORT_WINDOW],
        );
        let seat = PciSeat {
            dma: Dma::new(ram.clone()),
            intx: intx.clone(),
            msi: msi.clone(),
            bars: Arc::new(windows),
            doorbells: doorbells.clone(),
        };
        Self { seat, ram, memory, ports, intx, msi, doorbells }
    }
}

/// Reads the dword of `function` at `offset`.
pub fn config_dword(function: &dyn PciFunction, offset: u16) -> u32 {
    let mut data = [0; 4];
    function.config_read(offset, &mut data);
    u32::from_le_bytes(data)
}

/// Writes the dword of `function` at `offset`.
pub fn set_config_dword(function: &dyn PciFunction, offset: u16, value: u32) {
    function.config_write(offset, &value.to_le_bytes());
}

/// Writes the word of `function` at `offset`.
pub fn set_config_word(function: &dyn PciFunction, offset: u16, value: u16) {
    function.config_write(offset, &value.to_le_bytes());
}

/// The offset of the capability `id`, found as a driver does.
pub fn find_capability(function: &dyn PciFunction, id: u8) -> Option<u16> {
    let mut at = config_dword(function, 0x34) & 0xfc;
    for _ in 0..48 {
        if at == 0 {
            return None;
        }
        let [found, next, ..] = config_dword(function, at as u16).to_le_bytes();
        if found == id {
            return Some(at as u16);
        }
        at = u32::from(next) & 0xfc;
    }
    None
}
