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
/// Routes of the wired interrupts: 0 to 15 to a PIC, all but the cascade to the IOAPIC.
const WIRED_ROUTES: usize = 16 + IOAPIC_PINS as usize - 1;
/// Most message-signalled vectors of a VM.
pub const MAX_VECTORS: usize = MAX_ROUTES - WIRED_ROUTES;

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

impl Table {
    /// A number without a route.
    fn take(&mut self) -> Option<u32> {
        if let Some(gsi) = self.free.pop() {
            return Some(gsi);
        }
        let gsi = (self.messages.len() < MAX_VECTORS).then_some(IOAPIC_PINS + self.messages.len() as u32)?;
        self.messages.push(None);
        Some(gsi)
    }
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
        let before = std::mem::replace(slot, message);
        let installed = self.install(&table);
        if installed.is_err()
            && let Some(slot) = table.messages.get_mut((gsi - IOAPIC_PINS) as usize)
        {
            // It would be in the way of every other vector.
            *slot = before;
        }
        installed
    }

    /// Reserves a number, for as long as `make` does not fail with it.
    fn reserve<T>(&self, make: impl FnOnce(u32) -> io::Result<T>) -> io::Result<(u32, T)> {
        let gsi = self.lock().take().ok_or_else(|| {
            io::Error::other(format!("the interrupt routing table is full ({MAX_VECTORS} vectors)"))
        })?;
        match make(gsi) {
            Ok(made) => Ok((gsi, made)),
            Err(e) => {
                self.free(gsi);
                Err(e)
            }
        }
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
            devices::log_limited!(error, "interrupt {}: {e}", self.gsi);
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
        Err(e) => devices::log_limited!(error, "interrupt {gsi}: {e}"),
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
            devices::log_limited!(warn, "interrupt {}: releasing: {e}", self.gsi);
        }
        self.router.free(self.gsi);
    }
}

/// Hands out vectors of a router.
pub struct Vectors(pub Arc<InterruptRouter>);

impl MsiAllocator for Vectors {
    fn allocate(&self) -> io::Result<Arc<dyn MsiVector>> {
        let (gsi, event) = self.0.reserve(|gsi| {
            let event = EventFd::new(EFD_NONBLOCK)?;
            self.0.vm.register_irqfd(&event, gsi)?;
            Ok(event)
        })?;
        Ok(Arc::new(Vector { router: self.0.clone(), gsi, event }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::Hypervisor;
    use std::path::Path;

    fn router() -> Option<Arc<InterruptRouter>> {
        let vm = Hypervisor::open(Path::new("/dev/kvm")).ok()?.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        Some(InterruptRouter::new(vm).unwrap())
    }

    #[test]
    fn the_wired_routes_are_as_many_as_is_said() {
        assert_eq!(wired_routes().len(), WIRED_ROUTES);
    }

    #[test]
    fn a_number_whose_event_cannot_be_had_is_not_lost() {
        let Some(router) = router() else { return };
        for _ in 0..2 * MAX_VECTORS {
            let failed = router.reserve(|_| Err::<(), _>(io::Error::from_raw_os_error(libc::EMFILE)));
            assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::EMFILE));
        }
        let (gsi, ()) = router.reserve(|_| Ok(())).unwrap();
        assert_eq!(gsi, 24);
    }

    #[test]
    fn as_many_vectors_as_kvm_has_routes_for() {
        let Some(router) = router() else { return };
        let message = |n: usize| MsiMessage { address: 0xfee0_0000, data: n as u32 };
        for n in 0..MAX_VECTORS {
            let (gsi, ()) = router.reserve(|_| Ok(())).unwrap();
            // Each call hands KVM the whole table: the last ones tell.
            if n + 2 > MAX_VECTORS {
                router.lock().messages.iter_mut().for_each(|slot| *slot = Some(message(1)));
                router.route(gsi, Some(message(n))).unwrap();
            }
        }
        let error = router.reserve(|_| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "the interrupt routing table is full (4057 vectors)");
    }
}
