//! Interrupts: the routing table, wires into the in-kernel controllers, and message-signalled vectors.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::irq::{IrqLine, MsiAllocator, MsiMessage, MsiVector};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Pins of the in-kernel IOAPIC; message-signalled vectors get the numbers after them.
const IOAPIC_PINS: u32 = 24;
/// Most routes that KVM keeps (KVM_MAX_IRQ_ROUTES).
const MAX_ROUTES: usize = 4096;

/// The VM's interrupt routing table: global system interrupts to controller pins and messages.
pub struct InterruptRouter {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Message of each vector, `None` until the guest has programmed it. Index 0 is GSI 24.
    messages: Vec<Option<MsiMessage>>,
    /// Vectors that were given back.
    free: Vec<u32>,
}

impl InterruptRouter {
    /// Installs the routes of the wired interrupts: the PICs, and the IOAPIC with the timer on pin 2.
    pub fn new(vm: Arc<VmFd>) -> io::Result<Arc<Self>> {
        let router = Self { vm, table: Mutex::default() };
        router.install(&router.lock())?;
        Ok(Arc::new(router))
    }

    /// The wire of GSI `gsi`, for edges through an irqfd and for levels.
    pub fn line(&self, gsi: u32) -> io::Result<Arc<KvmLine>> {
        let edge = EventFd::new(EFD_NONBLOCK)?;
        self.vm.register_irqfd(&edge, gsi)?;
        Ok(Arc::new(KvmLine { vm: self.vm.clone(), gsi, edge }))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn install(&self, table: &Table) -> io::Result<()> {
        let mut entries = wired_routes();
        for (gsi, message) in (IOAPIC_PINS..).zip(&table.messages) {
            if let Some(message) = message {
                entries.push(message_route(gsi, *message));
            }
        }
        let routing =
            KvmIrqRouting::from_entries(&entries).map_err(|e| io::Error::other(format!("{e:?}")))?;
        Ok(self.vm.set_gsi_routing(&routing)?)
    }

    fn route(&self, gsi: u32, message: Option<MsiMessage>) -> io::Result<()> {
        let mut table = self.lock();
        let Some(slot) = table.messages.get_mut((gsi - IOAPIC_PINS) as usize) else { return Ok(()) };
        if *slot == message {
            return Ok(());
        }
        *slot = message;
        self.install(&table)
    }

    fn free(&self, gsi: u32) {
        let mut table = self.lock();
        if let Some(slot) = table.messages.get_mut((gsi - IOAPIC_PINS) as usize) {
            *slot = None;
        }
        table.free.push(gsi);
        // The stale route leads nowhere: its irqfd is gone. The next change drops it from the kernel's table.
    }
}

/// Interrupt requests 0 to 15 reach a PIC and the IOAPIC, 16 to 23 the IOAPIC. Request 0 is the timer, which PCs
/// wire to IOAPIC pin 2; request 2 is the cascade and leads nowhere.
fn wired_routes() -> Vec<kvm_irq_routing_entry> {
    let mut entries = Vec::with_capacity(64);
    for gsi in 0..IOAPIC_PINS {
        let pic = if gsi < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
        if gsi < 16 {
            entries.push(chip_route(gsi, pic, gsi % 8));
        }
        match gsi {
            0 => entries.push(chip_route(0, KVM_IRQCHIP_IOAPIC, 2)),
            2 => {}
            pin => entries.push(chip_route(gsi, KVM_IRQCHIP_IOAPIC, pin)),
        }
    }
    entries
}

fn chip_route(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 { irqchip: kvm_irq_routing_irqchip { irqchip, pin } },
        ..Default::default()
    }
}

fn message_route(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let msi = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..Default::default()
    }
}

/// A wire into the interrupt controllers.
pub struct KvmLine {
    vm: Arc<VmFd>,
    gsi: u32,
    edge: EventFd,
}

impl IrqLine for KvmLine {
    fn set_level(&self, high: bool) {
        // A level must be true at every moment, also while masked and polled, so it goes by KVM_IRQ_LINE and not
        // by an irqfd, which only knows edges and their acknowledgement.
        if let Err(e) = self.vm.set_irq_line(self.gsi, high) {
            tracing::error!("interrupt {}: {e}", self.gsi);
        }
    }

    fn pulse(&self) {
        signal(&self.edge, self.gsi);
    }
}

/// Signals an irqfd. A full counter means that KVM has not taken the last signal yet: nothing is lost.
fn signal(event: &EventFd, gsi: u32) {
    match event.write(1) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
        Err(e) => tracing::error!("interrupt {gsi}: {e}"),
    }
}

struct Vector {
    router: Arc<InterruptRouter>,
    gsi: u32,
    event: EventFd,
}

impl MsiVector for Vector {
    fn route(&self, message: MsiMessage) -> io::Result<()> {
        self.router.route(self.gsi, Some(message))
    }

    fn trigger(&self) {
        signal(&self.event, self.gsi);
    }

    fn eventfd(&self) -> Option<&EventFd> {
        Some(&self.event)
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        if let Err(e) = self.router.vm.unregister_irqfd(&self.event, self.gsi) {
            tracing::warn!("interrupt {}: releasing: {e}", self.gsi);
        }
        self.router.free(self.gsi);
    }
}

/// Hands out vectors of a router.
pub struct Vectors(pub Arc<InterruptRouter>);

impl MsiAllocator for Vectors {
    fn allocate(&self) -> io::Result<Arc<dyn MsiVector>> {
        let gsi = {
            let mut table = self.0.lock();
            match table.free.pop() {
                Some(gsi) => gsi,
                None if wired_routes().len() + table.messages.len() < MAX_ROUTES => {
                    table.messages.push(None);
                    IOAPIC_PINS + table.messages.len() as u32 - 1
                }
                None => return Err(io::Error::other("the interrupt routing table is full (4096 routes)")),
            }
        };
        let event = EventFd::new(EFD_NONBLOCK)?;
        self.0.vm.register_irqfd(&event, gsi)?;
        Ok(Arc::new(Vector { router: self.0.clone(), gsi, event }))
    }
}
