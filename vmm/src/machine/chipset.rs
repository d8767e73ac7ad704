//! The board: host bridge, LPC bridge and the small devices, wired to the hypervisor.

use std::sync::Arc;

use boot::RamLayout;
use boot::layout;
use devices::bus::{Bus, BusDevice, MapError};
use devices::irq::IrqLine;
use devices::mem::{Dma, GuestRam};
use devices::pci::{
    Bdf, BusWindows, ConfigPorts, IntxRouter, Lpc, LpcWiring, Mch, PciError, PciFunction, PciHost, PciSeat,
};
use devices::platform::Machine as MachineHandle;
use devices::platform::clock::{HostAlarm, HostClock, local_utc_offset_secs};
use devices::platform::cmos::{BootDevice, CMOS_BASE, CMOS_LEN, Cmos, CmosConfig, RTC_IRQ};
use devices::platform::i8042::{I8042, I8042_BASE, I8042_LEN, KEYBOARD_IRQ, MOUSE_IRQ};
use devices::platform::pm::{ClockLine, PowerManagement, SCI_GSI};
use devices::platform::ports::{
    APM_BASE, ApmPorts, DMA_PAGE_BASE, DebugConsole, DmaPagePorts, SystemControlPortA,
};
use devices::platform::serial::{COM1_BASE, COM1_IRQ, SERIAL_LEN, Serial};
use devices::platform::sink::Sink;
use kvm_ioctls::VmFd;
use thiserror::Error;

use super::{Buses, trace};
use crate::config::{Config, RtcBase};
use crate::kvm::{InterruptRouter, KvmDoorbells, KvmPages, Vectors};

/// First slot for HBAs and other plugged functions; slot 0 is the host bridge, slot 31 the LPC bridge.
pub const FIRST_SLOT: u8 = 1;
const LAST_SLOT: u8 = 0x1e;
/// HBAs at most.
pub const SLOTS: usize = (LAST_SLOT - FIRST_SLOT + 1) as usize;
/// First port for I/O BARs: everything below belongs to fixed devices.
pub const IO_BARS: std::ops::Range<u64> = 0xc000..0x1_0000;
/// Ports where firmware may put I/O BARs.
const IO_WINDOW: std::ops::Range<u64> = 0x1000..0x1_0000;

/// Why the board could not be put together.
#[derive(Debug, Error)]
pub enum ChipsetError {
    #[error("the machine's devices collide: {0}")]
    Map(#[from] MapError),
    #[error("PCI: {0}")]
    Pci(#[from] PciError),
    #[error("no descriptor for {what}: {source}")]
    Descriptor { what: &'static str, source: std::io::Error },
    #[error("all PCI slots are taken: at most {SLOTS} HBAs")]
    NoSlot,
}

/// What the board is made from.
pub struct Parts<'a> {
    pub vm: &'a Arc<VmFd>,
    pub ram: &'a Arc<GuestRam>,
    pub layout: &'a RamLayout,
    pub physical_bits: u8,
    pub config: &'a Config,
    pub machine: MachineHandle,
    /// Where the first serial port prints to.
    pub console: Arc<dyn Sink>,
    /// Where the debug console prints to, if the machine has one.
    pub debug: Option<Arc<dyn Sink>>,
}

/// The board, ready for functions to be plugged in.
pub struct Chipset {
    pub buses: Arc<Buses>,
    pub host: Arc<PciHost>,
    pub mch: Arc<Mch>,
    pub pm: Arc<PowerManagement>,
    pub cmos: Arc<Cmos>,
    pub serial: Arc<Serial>,
    /// What the devices go by.
    pub clock: Arc<HostClock>,
    pub pm_alarm: Arc<HostAlarm>,
    pub cmos_alarm: Arc<HostAlarm>,
    i8042: Arc<I8042>,
    config_ports: Arc<ConfigPorts>,
    port92: Arc<SystemControlPortA>,
    apm: Arc<ApmPorts>,
    dma_pages: Arc<DmaPagePorts>,
    intx: Arc<IntxRouter>,
    msi: Arc<Vectors>,
    doorbells: Arc<KvmDoorbells>,
    windows: Arc<BusWindows>,
    next_slot: std::cell::Cell<u8>,
}

fn no_descriptor(what: &'static str) -> impl FnOnce(std::io::Error) -> ChipsetError {
    move |source| ChipsetError::Descriptor { what, source }
}

impl Chipset {
    /// Builds the board.
    pub fn new(parts: &Parts<'_>) -> Result<Self, ChipsetError> {
        let router = InterruptRouter::new(parts.vm.clone()).map_err(no_descriptor("interrupt routes"))?;
        let line = |gsi| -> Result<Arc<dyn IrqLine>, ChipsetError> {
            Ok(router.line(gsi).map_err(no_descriptor("an interrupt line"))?)
        };
        let buses = Arc::new(Buses {
            ports: Arc::new(Bus::new()),
            memory: Arc::new(Bus::new()),
            ram: parts.ram.clone(),
        });
        let clock = Arc::new(HostClock::new());
        let alarm = || {
            Ok::<_, ChipsetError>(Arc::new(HostAlarm::new(clock.clone()).map_err(no_descriptor("a timer"))?))
        };
        let (pm_alarm, cmos_alarm) = (alarm()?, alarm()?);
        let machine = &parts.machine;
        let pm =
            Arc::new(PowerManagement::new(line(SCI_GSI)?, machine.clone(), clock.clone(), pm_alarm.clone()));
        let irq = Arc::new(ClockLine::new(line(RTC_IRQ)?, pm.clone()));
        let cmos = Arc::new(Cmos::new(&cmos_config(parts), irq, clock.clone(), cmos_alarm.clone()));
        let serial = Arc::new(
            Serial::new(line(COM1_IRQ)?, parts.console.clone()).map_err(no_descriptor("the serial port"))?,
        );
        let keyboard = Arc::new(I8042::new(line(KEYBOARD_IRQ)?, line(MOUSE_IRQ)?, machine.clone()));
        let intx = IntxRouter::new(pirq_lines(&router)?, isa_lines(&router)?);
        let host = PciHost::new();
        let config_ports = ConfigPorts::new(host.clone(), machine.clone());
        let chipset = Self {
            clock,
            pm_alarm,
            cmos_alarm,
            pm: pm.clone(),
            cmos,
            serial,
            i8042: keyboard,
            config_ports,
            port92: Arc::new(SystemControlPortA::new(machine.clone())),
            apm: Arc::new(ApmPorts::new("APM")),
            dma_pages: Arc::new(DmaPagePorts::new("DMA pages")),
            intx: intx.clone(),
            msi: Arc::new(Vectors(router)),
            doorbells: Arc::new(KvmDoorbells::new(parts.vm.clone())),
            windows: Arc::new(pci_windows(&buses, parts)),
            next_slot: FIRST_SLOT.into(),
            mch: Mch::new(&host, buses.memory.clone()),
            host: host.clone(),
            buses,
        };
        chipset.add_bridges(pm, intx)?;
        chipset.map_ports(parts.debug.clone())?;
        Ok(chipset)
    }

    fn add_bridges(&self, pm: Arc<PowerManagement>, router: Arc<IntxRouter>) -> Result<(), ChipsetError> {
        let lpc = Lpc::new(LpcWiring {
            ports: self.buses.ports.clone(),
            memory: self.buses.memory.clone(),
            pm,
            router,
            // The SCI stays on its line: firmware and kernels leave the selection at IRQ 9.
            sci: Arc::new(|gsi| tracing::debug!("the guest selects GSI {gsi} for the SCI")),
        });
        self.host.add(Mch::BDF, self.mch.clone())?;
        self.host.add(Lpc::BDF, lpc)?;
        Ok(())
    }

    fn map_ports(&self, debug: Option<Arc<dyn Sink>>) -> Result<(), ChipsetError> {
        let map = |base: u64, len: u64, device: Arc<dyn BusDevice>| self.buses.ports.map(base, len, device);
        map(ConfigPorts::BASE, ConfigPorts::LEN, self.config_ports.clone())?;
        map(COM1_BASE, SERIAL_LEN, self.serial.clone())?;
        map(CMOS_BASE, CMOS_LEN, self.cmos.clone())?;
        // The speaker port between them, 61h, is answered in the kernel.
        map(I8042_BASE, I8042_LEN, self.i8042.clone())?;
        map(SystemControlPortA::PORT, 1, self.port92.clone())?;
        map(APM_BASE, self.apm.len(), self.apm.clone())?;
        // Port 92h lies among the DMA page registers' neighbours, not among them: 80h to 8Fh.
        map(DMA_PAGE_BASE, self.dma_pages.len(), self.dma_pages.clone())?;
        if let Some(debug) = debug {
            map(DebugConsole::PORT, 1, Arc::new(DebugConsole::new(debug)))?;
        }
        Ok(())
    }

    /// Everything a function in the next free slot needs, and the address of that slot.
    pub fn seat(&self) -> Result<(Bdf, PciSeat), ChipsetError> {
        let slot = self.next_slot.get();
        if slot > LAST_SLOT {
            return Err(ChipsetError::NoSlot);
        }
        self.next_slot.set(slot + 1);
        let seat = PciSeat {
            dma: Dma::new(self.buses.ram.clone()),
            intx: self.intx.wire(slot, 0),
            msi: self.msi.clone(),
            bars: self.windows.clone(),
            doorbells: self.doorbells.clone(),
        };
        Ok((Bdf::new(0, slot, 0), seat))
    }

    /// The guest's RAM, for what reaches it without the seat of a function.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.buses.ram
    }

    /// Plugs a function into the slot that [`Chipset::seat`] gave.
    pub fn plug(&self, bdf: Bdf, function: Arc<dyn PciFunction>) -> Result<(), ChipsetError> {
        Ok(self.host.add(bdf, function)?)
    }

    /// Has the devices' time go on after it was held, and their timers with it.
    pub fn release_clock(&self) {
        self.clock.release();
        self.pm.timer_expired();
        self.cmos.timer_expired();
    }

    /// System reset of everything but the processors, the interrupt controllers and the PCI functions: those wait for the
    /// host, and are reset before.
    pub fn reset(&self) {
        self.config_ports.reset();
        self.pm.reset();
        self.cmos.reset();
        self.serial.reset();
        self.i8042.reset();
        self.port92.reset();
        self.apm.reset();
        self.dma_pages.reset();
    }
}

fn cmos_config(parts: &Parts<'_>) -> CmosConfig {
    CmosConfig {
        utc_offset_secs: match parts.config.vm.rtc {
            RtcBase::Utc => 0,
            RtcBase::LocalTime => local_utc_offset_secs(),
        },
        vcpus: u32::from(parts.config.vm.cpus),
        boot_order: [BootDevice::HardDisk, BootDevice::CdRom, BootDevice::None],
        ram_below_4g: parts.layout.low_top(),
        ram_above_4g: parts.layout.high().map_or(0, |high| high.size),
    }
}

/// GSI 16 to 23: the PIRQ wires.
fn pirq_lines(router: &InterruptRouter) -> Result<[Arc<dyn IrqLine>; 8], ChipsetError> {
    let line = |gsi| router.line(gsi).map_err(no_descriptor("an interrupt line"));
    Ok([line(16)?, line(17)?, line(18)?, line(19)?, line(20)?, line(21)?, line(22)?, line(23)?])
}

/// The ISA interrupts that a guest without IOAPIC may route PIRQ wires to.
fn isa_lines(router: &InterruptRouter) -> Result<[Option<Arc<dyn IrqLine>>; 16], ChipsetError> {
    let mut lines: [Option<Arc<dyn IrqLine>>; 16] = Default::default();
    for (irq, line) in (0..).zip(&mut lines) {
        // ICH9, 13.1.13: only these can be chosen.
        if matches!(irq, 3..=7 | 9..=12 | 14 | 15) {
            *line = Some(router.line(irq).map_err(no_descriptor("an interrupt line"))?);
        }
    }
    Ok(lines)
}

fn pci_windows(buses: &Buses, parts: &Parts<'_>) -> BusWindows {
    // Firmware may put BARs anywhere between RAM and the fixed devices, and ECAM wherever it likes among them.
    let below_4g = parts.layout.low_top().max(layout::MAX_LOW_TOP)..layout::MEM32.end();
    let above = parts.layout.end()..1 << parts.physical_bits.clamp(33, 52);
    let memory = vec![below_4g, above];
    let windows = BusWindows::new(buses.memory.clone(), buses.ports.clone(), memory, vec![IO_WINDOW]);
    // What is read from a page nobody could trace.
    if trace::is_on() { windows } else { windows.with_pages(Arc::new(KvmPages::new(parts.vm.clone()))) }
}
