//! The machine: built from a configuration, run until the guest, the operator or a failure ends it.

mod buses;
mod chipset;
mod control;
mod events;
mod signals;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use boot::linux::Source;
use boot::{AddrRange, Entry, RamLayout, layout};
use devices::mem::GuestRam;
use devices::pci::{Resources, assign_resources, gsi_for, program_chipset};
use devices::platform::sink::{NoSink, Sink};
use kvm_ioctls::VmFd;

pub(crate) use buses::Buses;
pub(crate) use control::{Control, Crash, Event, Order};

use crate::config::{Boot, Config, Restart};
use crate::exit::{Outcome, complain};
use crate::kvm::{Backing, Hypervisor, InitialChips, allocate_ram};
use crate::vcpu::{CpuidTemplate, Vcpu, VcpuThread, install_kick};
use chipset::{Chipset, Parts};
use events::MainLoop;

/// Where the power management registers are when no firmware moves them.
const PM_BASE: u16 = 0x600;

struct Tmp;
impl Sink for Tmp {
    fn put(&self, b: &[u8]) {
        use std::io::Write;
        let mut o = std::io::stdout();
        let _ = o.write_all(b);
        let _ = o.flush();
    }
}

/// What a direct boot starts from, again after each reset.
struct DirectBoot {
    source: Source,
    tables: boot::acpi::TableSet,
}

/// A machine with everything plugged in, not yet running.
pub struct Machine {
    config: Config,
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
    layout: RamLayout,
    physical_bits: u8,
    chipset: Chipset,
    control: Arc<Control>,
    boot: DirectBoot,
    chips: InitialChips,
    vcpus: Vec<Vcpu>,
    signals: File,
}

impl Machine {
    /// Builds the machine that `config` describes. `start` is when the process began, for the trace of times.
    pub fn build(config: Config, start: Instant) -> Result<Self> {
        let signals = signals::block().context("signals")?;
        install_kick().context("signals")?;
        let hypervisor = Hypervisor::open(Path::new("/dev/kvm"))?;
        let layout = RamLayout::new(config.vm.memory)?;
        let vm = hypervisor.create_vm()?;
        let ram = allocate_ram(&vm, &layout, Backing::Anonymous, config.vm.huge_pages)?;
        trace(start, "memory mapped");

        let cpus = u32::from(config.vm.cpus);
        let cpuid = CpuidTemplate::new(hypervisor.kvm(), cpus)?;
        let control = Control::new(cpus).context("machine control")?;
        let console: Arc<dyn Sink> = Arc::new(Tmp);
        let chipset = Chipset::new(&Parts {
            vm: &vm,
            ram: &ram,
            layout: &layout,
            physical_bits: cpuid.physical_bits(),
            config: &config,
            machine: control.clone(),
            console,
        })?;
        let chips = InitialChips::capture(&vm)?;
        let boot = direct_boot(&config, &layout, cpuid.physical_bits())?;
        trace(start, "devices built");
        let vcpus = (0..cpus)
            .map(|index| Vcpu::new(hypervisor.kvm(), &vm, &cpuid, index))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let physical_bits = cpuid.physical_bits();
        let machine =
            Self { config, vm, ram, layout, physical_bits, chipset, control, boot, chips, vcpus, signals };
        let entry = machine.load()?;
        if entry.needs_64bit {
            hypervisor.require_64bit()?;
        }
        for vcpu in &machine.vcpus {
            vcpu.prepare(Some(&entry)).context("setting the first registers")?;
        }
        trace(start, "kernel loaded");
        Ok(machine)
    }

    /// Does what firmware would: chipset, BARs, tables, kernel.
    fn load(&self) -> Result<Entry> {
        let host = &self.chipset.host;
        program_chipset(host, PM_BASE, layout::ECAM.base);
        let resources = Resources {
            ports: chipset::IO_BARS,
            memory32: layout::MEM32.as_range(),
            memory64: self.layout.mem64_window(self.physical_bits).map(|w: AddrRange| w.as_range()),
            decode: false,
        };
        assign_resources(host, &resources)?;
        Ok(boot::linux::load(&self.ram, &self.layout, &self.boot.source, &self.boot.tables)?)
    }

    /// Runs the machine to its end.
    pub fn run(mut self) -> Outcome {
        let threads = match self.start_vcpus() {
            Ok(threads) => threads,
            Err(e) => {
                complain(format!("starting vCPU threads: {e:#}"));
                return Outcome::Failed;
            }
        };
        let mut events = match self.main_loop() {
            Ok(events) => events,
            Err(e) => {
                complain(format!("{e:#}"));
                return Outcome::Failed;
            }
        };
        self.control.resume();
        let outcome = loop {
            let event = events.next();
            self.control.pause(&threads);
            match self.handle(event) {
                Ok(None) => self.control.resume(),
                Ok(Some(outcome)) => break outcome,
                Err(e) => {
                    complain(format!("{e:#}"));
                    break Outcome::Failed;
                }
            }
        };
        self.control.exit();
        threads.into_iter().for_each(VcpuThread::join);
        self.chipset.host.reset();
        outcome
    }

    fn start_vcpus(&mut self) -> Result<Vec<VcpuThread>> {
        let vcpus = std::mem::take(&mut self.vcpus);
        vcpus
            .into_iter()
            .map(|vcpu| Ok(vcpu.start(self.control.clone(), self.chipset.buses.clone())?))
            .collect()
    }

    fn main_loop(&self) -> Result<MainLoop> {
        let failed = |e| anyhow!("cannot make the main loop: {e}");
        let mut events = MainLoop::new(self.control.clone()).map_err(failed)?;
        let control = self.control.clone();
        let signals = self.signals.try_clone().context("signals")?;
        events.watch(signals, "signals", move |descriptor| signals::take(descriptor, &control));
        let pm = self.chipset.pm.clone();
        events.watch(self.chipset.pm_alarm.clone(), "the ACPI timer", move |_| pm.timer_expired());
        let cmos = self.chipset.cmos.clone();
        events.watch(self.chipset.cmos_alarm.clone(), "the clock", move |_| cmos.timer_expired());
        Ok(events)
    }

    /// Acts on an event while the vCPUs are stopped: `None` to run on.
    fn handle(&self, event: Event) -> Result<Option<Outcome>> {
        match event {
            Event::PowerOff => {
                tracing::info!("the guest powered off");
                Ok(Some(Outcome::PoweredOff))
            }
            Event::Stop(why) => {
                tracing::info!("stopping: {why}");
                Ok(Some(Outcome::PoweredOff))
            }
            Event::Reset(register) if self.config.vm.on_reset == Restart::Exit => {
                tracing::info!("the guest reset ({register}), and resets end this machine");
                Ok(Some(Outcome::Reset))
            }
            Event::Reset(register) => {
                tracing::info!("the guest reset ({register})");
                self.reset()?;
                Ok(None)
            }
            Event::Crash(Crash::Host(what)) => Err(anyhow!("{what}")),
            Event::Crash(Crash::Guest(what)) if self.config.vm.on_crash == Restart::Exit => {
                complain(what);
                Ok(Some(Outcome::Crashed))
            }
            Event::Crash(Crash::Guest(what)) => {
                tracing::warn!("{what}; restarting");
                self.reset()?;
                Ok(None)
            }
        }
    }

    /// System reset: everything as after power-on, then the boot.
    fn reset(&self) -> Result<()> {
        self.chipset.reset();
        self.chips.restore(&self.vm)?;
        let entry = self.load()?;
        self.control.reset(Some(Arc::new(entry)));
        Ok(())
    }
}

/// The step of the way to the first guest instruction that is done now.
fn trace(start: Instant, step: &str) {
    tracing::debug!(target: "vmm::start", "{:>7} us: {step}", start.elapsed().as_micros());
}

fn direct_boot(config: &Config, layout: &RamLayout, physical_bits: u8) -> Result<DirectBoot> {
    let Boot::Kernel { kernel, initrd, cmdline } = &config.boot else {
        return Err(anyhow!("booting firmware is not supported yet"));
    };
    let source = Source::new(Some(kernel.clone()), initrd.clone(), Some(cmdline.clone()))?
        .ok_or_else(|| anyhow!("no kernel"))?;
    let apic_ids = (0..u32::from(config.vm.cpus)).collect();
    let mut machine = boot::acpi::Machine::direct_boot(layout, physical_bits, apic_ids, gsi_for);
    // As `kvm::irq` routes it, and as on every PC.
    machine.irq0_to_gsi2 = true;
    let tables = machine.tables().context("ACPI tables")?;
    Ok(DirectBoot { source, tables })
}
