//! The PCI function: identity, BARs, capabilities, and the configuration access window (4.1.2, 4.1.4).

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use devices::bus::BusDevice;
use devices::irq::MsiVector;
use devices::pci::config::cap as pci_cap;
use devices::pci::{
    Bar, BarDoorbell, BarKind, Header, Interrupt, InterruptMode, InterruptSpec, MsixSpec, PciDevice,
    PciDeviceBuilder, PciError, PciFunction, PciSeat,
};

use crate::queue::Queue;
use crate::spec::{ScsiConfig, cap, legacy};
use crate::transport::{BAR_SIZE, NOTIFY_MULTIPLIER, Signal, Transport, Window};

/// BAR of the legacy registers, at I/O ports (4.1.4.10).
const LEGACY_BAR: u8 = 0;
/// BAR of the MSI-X structures.
const MSIX_BAR: u8 = 1;
/// BAR of the virtio structures: 32-bit, so that firmware without paging reaches it.
const STRUCTURES_BAR: u8 = 4;

/// BAR of doorbells at I/O ports. A write to a port tells the hypervisor all about itself, where a write to memory
/// makes some hypervisors decode an instruction; so this window comes first, which drivers prefer (4.1.4.4.1).
const PORTS_BAR: u8 = 5;
/// Length of an I/O BAR in bytes at most (PCI 3.0, 6.2.5.1).
const PORTS_MAX: u32 = 256;
/// Length of the legacy BAR in bytes: a header with vectors and the device configuration, as a power of two.
const LEGACY_SIZE: u32 =
    (legacy::HEADER_WITH_VECTORS as u32 + size_of::<ScsiConfig>() as u32).next_power_of_two();

/// For how long taking bus mastering away waits for the host at most.
const LAST_DMA: Duration = Duration::from_secs(30);

/// Offsets in the capability that describes the access window (4.1.4.9).
mod window {
    pub(super) const BAR: u16 = 4;
    pub(super) const OFFSET: u16 = 8;
    pub(super) const LENGTH: u16 = 12;
    pub(super) const DATA: u16 = 16;
}

/// Which register interfaces the function has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interface {
    /// That of version 1 only.
    #[default]
    Modern,
    /// That of version 1, and the legacy one for older drivers.
    Transitional,
    /// The legacy one only.
    Legacy,
}

impl Interface {
    fn header(self) -> Header {
        match self {
            Self::Modern => HEADER,
            Self::Transitional | Self::Legacy => LEGACY_HEADER,
        }
    }
}

/// Identity: a SCSI host device that is not transitional (4.1.2.1). Revision and subsystem are those that drivers
/// know; a subsystem ID of 0x40 or more keeps legacy drivers away.
const HEADER: Header = Header {
    vendor: 0x1af4,
    device: 0x1048,
    revision: 1,
    class: 0x01_00_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
    interrupt_pin: 1,
    multifunction: false,
};

/// Identity of a device that legacy drivers know: device IDs of its own, revision 0, and the device type as subsystem
/// ID (4.1.2.1, 4.1.2.3).
const LEGACY_HEADER: Header = Header { device: 0x1004, revision: 0, subsystem: 8, ..HEADER };

/// The function of one HBA.
pub(crate) struct Function {
    device: PciDevice,
    transport: Arc<Transport>,
    /// Offset of the access window's capability, where there is one.
    window: Option<u16>,
}

/// Number of message-signalled interrupt vectors for `queues` queues: one for each, and one for configuration.
pub(crate) fn vectors(queues: u16) -> u16 {
    queues.saturating_add(1)
}

impl Function {
    pub(crate) fn new(
        seat: PciSeat,
        transport: Arc<Transport>,
        interface: Interface,
    ) -> Result<Self, PciError> {
        let queues = transport.queues().len() as u16;
        let vectors = vectors(queues);
        let table_len = u32::from(vectors) * 16;
        let msix_len = (table_len + u32::from(vectors).div_ceil(64) * 8).next_power_of_two().max(0x1000);
        let msix = MsixSpec { vectors, table: (MSIX_BAR, 0), pba: (MSIX_BAR, table_len), offset: None };
        let interrupts = InterruptSpec { msi: None, msix: Some(msix) };
        let mut builder = PciDeviceBuilder::new("virtio-scsi", &interface.header(), &interrupts, seat)?;
        builder.bar(MSIX_BAR, Bar::empty(BarKind::Memory32, msix_len.into()));
        if interface != Interface::Modern {
            builder.bar(LEGACY_BAR, legacy_bar(&transport));
        }
        let window = match interface {
            Interface::Legacy => None,
            Interface::Modern | Interface::Transitional => Some(add_structures(&mut builder, &transport)?),
        };
        transport.connect(Box::new(Wire(builder.interrupt())));
        Ok(Self { device: builder.build()?, transport, window })
    }

    /// Has `listener` called after each change of what interrupts need; see [`Interrupt::listen`].
    pub(crate) fn listen(&self, listener: Box<dyn Fn() + Send + Sync>) {
        self.device.interrupt().listen(listener);
    }

    /// The access of the window as the driver described it: BAR contents, offset and length.
    fn window_access(&self) -> Option<(Arc<dyn BusDevice>, u64, usize)> {
        let at = self.window?;
        let mut bar = [0];
        let (mut offset, mut length) = ([0; 4], [0; 4]);
        self.device.read(at + window::BAR, &mut bar);
        self.device.read(at + window::OFFSET, &mut offset);
        self.device.read(at + window::LENGTH, &mut length);
        let [bar] = bar;
        let (offset, length) = (u64::from(u32::from_le_bytes(offset)), u32::from_le_bytes(length));
        let (contents, size) = self.device.bar(bar)?;
        let fits = matches!(length, 1 | 2 | 4)
            && offset.is_multiple_of(length.into())
            && offset.checked_add(length.into()).is_some_and(|end| end <= size);
        fits.then_some((contents, offset, length as usize))
    }

    /// The bytes of an access of `len` bytes at `offset` that lie in the data field of the window, and where.
    fn window_data(&self, offset: u16, len: usize) -> Option<(Range<usize>, usize)> {
        let field = usize::from(self.window? + window::DATA);
        let start = usize::from(offset).max(field);
        let end = (usize::from(offset) + len).min(field + 4);
        (start < end).then(|| (start - usize::from(offset)..end - usize::from(offset), start - field))
    }
}

impl PciFunction for Function {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.device.read(offset, data);
        let Some((part, skip)) = self.window_data(offset, data.len()) else { return };
        let Some((contents, at, length)) = self.window_access() else { return };
        let mut value = [0; 4];
        if let Some(value) = value.get_mut(..length) {
            contents.read(at, value);
        }
        for (to, from) in data.get_mut(part).unwrap_or_default().iter_mut().zip(value.iter().skip(skip)) {
            *to = *from;
        }
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let change = self.device.write(offset, data);
        if change.bus_master == Some(false) {
            self.transport.quiesce(LAST_DMA);
        }
        let Some(capability) = self.window else { return };
        if self.window_data(offset, data.len()).is_none() {
            return;
        }
        let Some((contents, at, length)) = self.window_access() else { return };
        let mut value = [0; 4];
        self.device.read(capability + window::DATA, &mut value);
        contents.write(at, value.get(..length).unwrap_or_default());
    }

    fn reset(&self) {
        self.device.reset_registers();
        self.transport.reset_and_wait();
    }

    fn name(&self) -> &str {
        PciFunction::name(&self.device)
    }
}

fn doorbell(base: u32, index: u16, queue: &Queue) -> BarDoorbell {
    let offset = base + u32::from(index) * NOTIFY_MULTIPLIER;
    // Any width and value: the address says it all, and the hypervisor is fastest when it need not look.
    BarDoorbell { offset: offset.into(), width: 0, value: None, event: queue.doorbell().clone() }
}

/// The legacy registers. A notification there is the number of the queue.
fn legacy_bar(transport: &Arc<Transport>) -> Bar {
    let registers = Arc::new(LegacyRegisters(transport.clone()));
    let mut bar = Bar::new(BarKind::Port, LEGACY_SIZE.into(), registers);
    for (index, queue) in (0_u64..).zip(transport.queues()) {
        let event = queue.doorbell().clone();
        bar = bar.doorbell(BarDoorbell { offset: legacy::QUEUE_NOTIFY, width: 2, value: Some(index), event });
    }
    bar
}

/// Adds the structures of version 1 and what locates them; returns the offset of the access window's capability.
fn add_structures(builder: &mut PciDeviceBuilder, transport: &Arc<Transport>) -> Result<u16, PciError> {
    let queues = transport.queues().len() as u16;
    let registers = Arc::new(Registers(transport.clone()));
    let mut bar = Bar::new(BarKind::Memory32, BAR_SIZE.into(), registers);
    for (index, queue) in (0..).zip(transport.queues()) {
        bar = bar.doorbell(doorbell(Window::Notify.offset(), index, queue));
    }
    builder.bar(STRUCTURES_BAR, bar);
    let ports = Window::Notify.len(queues).next_power_of_two();
    if ports <= PORTS_MAX {
        let mut bar = Bar::new(BarKind::Port, ports.into(), Arc::new(Ports(transport.clone())));
        for (index, queue) in (0..).zip(transport.queues()) {
            bar = bar.doorbell(doorbell(0, index, queue));
        }
        builder.bar(PORTS_BAR, bar);
    }
    add_capabilities(builder, queues)
}

/// Adds the capabilities that locate the structures; returns the offset of the access window's.
fn add_capabilities(builder: &mut PciDeviceBuilder, queues: u16) -> Result<u16, PciError> {
    let locate = |kind, window: Window, more: &[u8]| {
        structure(kind, STRUCTURES_BAR, window.offset(), window.len(queues), more)
    };
    builder.capability(pci_cap::VENDOR, &locate(cap::COMMON_CFG, Window::Common, &[]))?;
    builder.capability(pci_cap::VENDOR, &locate(cap::ISR_CFG, Window::Isr, &[]))?;
    builder.capability(pci_cap::VENDOR, &locate(cap::DEVICE_CFG, Window::Device, &[]))?;
    let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    if Window::Notify.len(queues) <= PORTS_MAX {
        let ports = structure(cap::NOTIFY_CFG, PORTS_BAR, 0, Window::Notify.len(queues), &multiplier);
        builder.capability(pci_cap::VENDOR, &ports)?;
    }
    builder.capability(pci_cap::VENDOR, &locate(cap::NOTIFY_CFG, Window::Notify, &multiplier))?;
    let at = builder.capability(pci_cap::VENDOR, &structure(cap::PCI_CFG, 0, 0, 0, &[0; 4]))?;
    let config = builder.config();
    config.allow(at + window::BAR, &[0xff]);
    config.allow(at + window::OFFSET, &[0xff; 12]);
    Ok(at)
}

/// What follows ID and next pointer in a virtio capability (4.1.4): length, type, BAR, id, padding, place.
fn structure(kind: u8, bar: u8, offset: u32, length: u32, more: &[u8]) -> Vec<u8> {
    let mut body = vec![(16 + more.len()) as u8, kind, bar, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(more);
    body
}

/// What answers in the BAR.
struct Registers(Arc<Transport>);

impl BusDevice for Registers {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }

    fn name(&self) -> &str {
        "virtio-scsi"
    }
}

/// What answers at the legacy ports.
struct LegacyRegisters(Arc<Transport>);

impl BusDevice for LegacyRegisters {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read_legacy(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write_legacy(offset, data);
    }

    fn name(&self) -> &str {
        "virtio-scsi"
    }
}

/// What answers at the ports: doorbells, which read as zero.
struct Ports(Arc<Transport>);

impl BusDevice for Ports {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, _: &[u8]) {
        self.0.ring_doorbell(offset);
    }

    fn name(&self) -> &str {
        "virtio-scsi"
    }
}

/// How the transport reaches the interrupts of the function.
struct Wire(Interrupt);

impl Signal for Wire {
    fn has_messages(&self) -> bool {
        self.0.mode() == InterruptMode::Msix
    }

    fn notify(&self, vector: u16) {
        self.0.notify(vector);
    }

    fn reserve(&self, vector: u16) -> bool {
        self.0.reserve(vector)
    }

    fn deassert(&self) {
        self.0.deassert_intx();
    }

    fn direct(&self, vector: u16) -> Option<Arc<dyn MsiVector>> {
        self.0.direct(vector)
    }
}
