//! The machine: built from a configuration, run until the guest, the operator or a failure ends it.

mod adapter;
mod buses;
mod chipset;
mod clocks;
mod closing;
mod control;
mod debug_file;
mod ending;
mod event_file;
mod events;
mod fabric;
mod firmware;
mod hbas;
mod host_unit;
mod identity;
mod protection;
mod raid;
mod rehearsal;
mod requests;
mod seats;
mod smbios;
mod socket;
mod space;
mod symbols;
mod tables;
#[cfg(feature = "testing")]
pub mod testing;
mod trace;
mod units;
mod virtual_port;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use boot::linux::Source;
use boot::{AddrRange, Entry, RamLayout, layout};
use devices::mem::GuestRam;
use devices::pci::{Resources, assign_resources, gsi_for, program_chipset};
use kvm_ioctls::VmFd;

pub(crate) use buses::Buses;
pub(crate) use control::{Control, Crash, Event, Order};
pub(crate) use host_unit::generic_options;
pub use rehearsal::rehearse;
pub(crate) use requests::receive;

use crate::config::{Boot, Config, Restart};
use crate::console::{Console, Request, Signals, suspend};
use crate::exit::{Outcome, complain, explain, is_out_of_descriptors};
use crate::fc_port::{FcPorts, REMOVAL};
use crate::jail;
use crate::keeper::Keeper;
use crate::kvm::{Backing, Hypervisor, InitialChips, add_chips, allocate_ram};
use crate::logging;
use crate::vcpu::{CpuidTemplate, Vcpu, VcpuThread, install_kick};
use chipset::{Chipset, Parts};
use clocks::Clocks;
use ending::{Over, Patience, Waits};
use events::MainLoop;
use firmware::{DebugOutput, FirmwareBoot, Wiring};
use hbas::Hbas;
use socket::{Service, Socket};
use space::Space;

/// Where the power management registers are when no firmware moves them.
const PM_BASE: u16 = 0x600;

/// How long vCPUs may take to stop before the process is stopped all the same.
const SUSPEND_AFTER: Duration = Duration::from_secs(1);

/// How soon a reset looks again whether it can open the kernel.
const DESCRIPTORS_AGAIN: Duration = Duration::from_millis(100);

/// What a direct boot starts from, again after each reset.
struct DirectBoot {
    source: Source,
    tables: boot::acpi::TableSet,
    smbios: boot::smbios::Tables,
}

/// What the machine starts.
enum Boots {
    Kernel(DirectBoot),
    Firmware(FirmwareBoot),
}

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this outcome.
    Exit(Outcome),
    /// By this signal, of which the process is to die.
    Signal(i32),
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
    boot: Boots,
    chips: InitialChips,
    vcpus: Vec<Vcpu>,
    signals: Arc<Signals>,
    console: Console,
    debug: DebugOutput,
    socket: Option<Socket>,
    hbas: Hbas,
    space: Arc<Space>,
    waits: Waits,
}

impl Machine {
    /// Builds the machine that `config` describes. `start` is when the process began, for the trace of times;
    /// `signals` were blocked before the first thread. `keeper`: who finds devices of the host again, of a machine that has some.
    /// `ports`: who has its virtual Fibre Channel ports.
    pub fn build(
        config: Config,
        signals: Arc<Signals>,
        keeper: Option<Keeper>,
        ports: Option<FcPorts>,
        start: Instant,
    ) -> Result<Self> {
        jail::prepare(&config);
        install_kick().context("signals")?;
        let hypervisor = Hypervisor::open(Path::new("/dev/kvm"))?;
        let layout = RamLayout::new(config.vm.memory)?;
        let vm = hypervisor.create_vm()?;
        let cpus = u32::from(config.vm.cpus);
        let cpuid = CpuidTemplate::new(hypervisor.kvm(), cpus)?;
        layout.within(cpuid.mapped_bits())?;
        let backing = if config.vm.shared_memory { Backing::Shared } else { Backing::Anonymous };
        let ram = allocate_ram(&vm, &layout, backing, config.vm.huge_pages)?;
        add_chips(&vm)?;
        trace(start, "memory mapped");

        let control = Control::new(cpus).context("machine control")?;
        let console = Console::open(&config.serial, logging::set_raw_terminal)?;
        let debug = DebugOutput::open(config.debug_log.as_deref())?;
        let chipset = Chipset::new(&Parts {
            vm: &vm,
            ram: &ram,
            layout: &layout,
            physical_bits: cpuid.mapped_bits(),
            config: &config,
            machine: control.clone(),
            console: console.sink(),
            debug: debug.sink(),
        })?;
        let space = Space::new(control.clone());
        let hbas = Hbas::plug(&config, &chipset, &space, ports)?;
        if let Some(keeper) = keeper {
            let adapters = hbas.adapters().to_vec();
            keeper.begin(Box::new(move |unit| adapters.iter().for_each(|adapter| adapter.returned(unit))));
        }
        let chips = InitialChips::capture(&vm)?;
        let boot = boots(&Wiring {
            vm: &vm,
            ram: &ram,
            layout: &layout,
            physical_bits: cpuid.mapped_bits(),
            processor_id: cpuid.processor_id(),
            config: &config,
            chipset: &chipset,
            hbas: hbas.addresses(),
        })?;
        trace(start, "devices built");
        let vcpus = (0..cpus)
            .map(|index| Vcpu::new(hypervisor.kvm(), &vm, &cpuid, index))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let physical_bits = cpuid.mapped_bits();
        let machine = Self {
            config,
            vm,
            ram,
            layout,
            physical_bits,
            chipset,
            control,
            boot,
            chips,
            vcpus,
            signals,
            console,
            debug,
            socket: None,
            hbas,
            space,
            waits: Waits::start().context("starting a thread")?,
        };
        let entry = machine.load()?;
        trace(start, "kernel or firmware loaded");
        if entry.as_ref().is_some_and(|entry| entry.needs_64bit) {
            hypervisor.require_64bit()?;
        }
        for vcpu in &machine.vcpus {
            vcpu.prepare(entry.as_ref()).context("setting the first registers")?;
        }
        trace(start, "registers set");
        Ok(machine)
    }

    /// Puts what runs first into memory: a kernel with its entry, or firmware, which starts at power-on.
    fn load(&self) -> Result<Option<Entry>> {
        match &self.boot {
            Boots::Kernel(boot) => self.load_kernel(boot).map(Some),
            Boots::Firmware(boot) => boot.restart().map(|()| None),
        }
    }

    /// The same at a reset. Where nothing can be opened now because too much is open, it waits: what a client of the control
    /// socket holds is no reason to end the machine. `None` when the operator wants the end meanwhile.
    fn load_again(
        &self,
        events: &mut MainLoop,
        patience: &mut Patience<'_>,
    ) -> Result<Option<Option<Entry>>> {
        loop {
            match self.load() {
                Err(error) if is_out_of_descriptors(&error) => {
                    devices::log_limited!(warn, "the reset waits: {}", explain(&error));
                    if !patience.lasts() {
                        return Ok(None);
                    }
                    events.turn(DESCRIPTORS_AGAIN);
                }
                loaded => return loaded.map(Some),
            }
        }
    }

    /// Does what firmware would: chipset, BARs, tables, kernel.
    fn load_kernel(&self, boot: &DirectBoot) -> Result<Entry> {
        let host = &self.chipset.host;
        program_chipset(host, PM_BASE, layout::ECAM.base);
        let resources = Resources {
            ports: chipset::IO_BARS,
            memory32: layout::MEM32.as_range(),
            memory64: self.layout.mem64_window(self.physical_bits).map(|w: AddrRange| w.as_range()),
            decode: false,
        };
        assign_resources(host, &resources)?;
        let entry = boot::linux::load(&self.ram, &self.layout, &boot.source, &boot.tables)?;
        boot.smbios.install(&self.ram).context("SMBIOS structures")?;
        Ok(entry)
    }

    /// Runs the machine to its end.
    pub fn run(mut self) -> End {
        let outcome = self.main_loop().and_then(|mut events| {
            let outcome = self.start().and_then(|threads| self.serve(threads, &mut events));
            // Of a machine that did not start.
            let patience = Patience::limited(&self.control, REMOVAL);
            self.close_ports(&mut events, patience);
            outcome
        });
        self.console.close();
        self.debug.end();
        outcome.unwrap_or_else(|e| {
            complain(explain(&e));
            End::Exit(Outcome::Failed)
        })
    }

    fn start(&mut self) -> Result<Vec<VcpuThread>> {
        if let Some(path) = &self.config.control {
            self.socket = Some(self.listen(path)?);
        }
        // From here on nothing of others is in the way.
        self.debug.begin()?;
        let control = self.control.clone();
        self.console.start(self.chipset.serial.clone(), move || control.post(Event::Quit))?;
        let threads = self.start_vcpus().context("starting vCPU threads")?;
        // All is open and all threads are there; the guest has not run yet.
        jail::enter(&self.config)?;
        Ok(threads)
    }

    fn serve(&self, threads: Vec<VcpuThread>, events: &mut MainLoop) -> Result<End> {
        let mut clocks = Clocks::new(&self.vm, &self.chipset);
        self.control.resume();
        let end = loop {
            let event = events.next();
            // A vCPU that waits for a reader of the console would never stop.
            self.console.release();
            let event = self.stop(&threads, event, events);
            match event {
                Event::Suspend => {
                    clocks.hold(&threads);
                    suspend();
                }
                Event::Continued => clocks::were_stopped(&threads),
                _ => {}
            }
            match self.handle(event, events) {
                Ok(None) if self.control.is_paused() || self.space.is_short() => clocks.hold(&threads),
                Ok(None) => {
                    clocks.release(&threads);
                    self.control.resume();
                }
                other => break other,
            }
        };
        let end = end.map(|end| end.unwrap_or(End::Exit(Outcome::Failed)));
        self.end(threads, events, end)
    }

    /// Stops the vCPUs for `event`, which is handled then; or what the operator wants instead when one does not stop. At the
    /// end of the machine they stop together with the rest.
    fn stop(&self, threads: &[VcpuThread], event: Event, events: &mut MainLoop) -> Event {
        if self.is_last(&event) {
            return event;
        }
        let mut patience = match event {
            Event::Suspend => Patience::limited(&self.control, SUSPEND_AFTER),
            _ => Patience::endless(&self.control),
        };
        let stopped = self.control.pause(threads, || {
            events.turn(Duration::ZERO);
            patience.lasts() && !self.control.is_revoked(&event)
        });
        self.console.bind();
        if stopped { event } else { self.control.take_instead(&event).unwrap_or(event) }
    }

    /// Whether the machine ends by `event`.
    fn is_last(&self, event: &Event) -> bool {
        match event {
            Event::Quit | Event::Signal(_) | Event::PowerOff | Event::Crash(Crash::Host(_)) => true,
            Event::Reset(_) => self.config.vm.on_reset == Restart::Exit,
            Event::Crash(Crash::Guest(_)) => self.config.vm.on_crash == Restart::Exit,
            Event::Pause(_) | Event::NoSpace(_) | Event::SpaceAgain => false,
            Event::Suspend | Event::Continued => false,
        }
    }

    fn listen(&self, path: &Path) -> Result<Socket> {
        let pm = self.chipset.pm.clone();
        let service = Service {
            name: self.config.vm.name.clone(),
            directory: self.config.directory.clone(),
            own: self.config.own.clone(),
            control: self.control.clone(),
            adapters: self.hbas.adapters().to_vec(),
            space: self.space.clone(),
            power_button: Box::new(move || pm.press_power_button()),
        };
        Socket::listen(path, service)
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
        let (control, look_again) = (self.control.clone(), self.console.waker());
        events.watch(self.signals.clone(), "signals", move |signals| {
            while let Ok(Some(request)) = signals.next() {
                control.post(match request {
                    Request::Terminate(number) => Event::Signal(number),
                    Request::Suspend => Event::Suspend,
                    Request::Continued => {
                        look_again();
                        Event::Continued
                    }
                    Request::Rotated => {
                        devices::log_limited!(
                            warn,
                            "SIGHUP: the machine goes on, and writes to the files that it has open, renamed or not; to rotate its \
                             logs let logrotate use `copytruncate`"
                        );
                        continue;
                    }
                });
            }
        });
        let pm = self.chipset.pm.clone();
        events.watch(self.chipset.pm_alarm.clone(), "the ACPI timer", move |_| pm.timer_expired());
        let cmos = self.chipset.cmos.clone();
        events.watch(self.chipset.cmos_alarm.clone(), "the clock", move |_| cmos.timer_expired());
        Ok(events)
    }

    /// Acts on an event while the vCPUs are stopped, unless it is the [last](Self::is_last): `None` to run on.
    fn handle(&self, event: Event, events: &mut MainLoop) -> Result<Option<End>> {
        let end = |outcome| Ok(Some(End::Exit(outcome)));
        let exits = |policy| policy == Restart::Exit;
        match event {
            Event::NoSpace(what) => {
                self.space.begin(&what);
                Ok(None)
            }
            Event::SpaceAgain => {
                self.space.end();
                Ok(None)
            }
            // Done, while the vCPUs were stopped.
            Event::Suspend | Event::Continued => Ok(None),
            Event::PowerOff => {
                tracing::info!("the guest powered off");
                end(Outcome::PoweredOff)
            }
            Event::Quit => {
                tracing::info!("the user quit");
                end(Outcome::PoweredOff)
            }
            Event::Pause(pause) => {
                self.control.set_paused(pause);
                Ok(None)
            }
            Event::Signal(number) => {
                tracing::info!("ended by signal {number}");
                Ok(Some(End::Signal(number)))
            }
            Event::Reset(register) => {
                devices::log_limited!(info, "the guest reset ({register})");
                if exits(self.config.vm.on_reset) {
                    return end(Outcome::Reset);
                }
                self.restart(events)
            }
            Event::Crash(Crash::Host(what)) => Err(anyhow!("{what}")),
            Event::Crash(Crash::Guest(what)) => {
                if exits(self.config.vm.on_crash) {
                    complain(what);
                    return end(Outcome::Crashed);
                }
                // A guest may crash again and again, and each time at once.
                devices::log_limited!(warn, "{what}; restarting");
                self.restart(events)
            }
        }
    }

    /// Resets the machine, unless the operator wants the end while that waits.
    fn restart(&self, events: &mut MainLoop) -> Result<Option<End>> {
        if self.reset(events)? {
            return Ok(None);
        }
        match self.control.take_end() {
            Some(event) => self.handle(event, events),
            None => Err(anyhow!("the reset came to no end")),
        }
    }

    /// System reset: everything as after power-on, then the boot. It waits for the host as long as that takes: what is in
    /// flight may still reach guest memory. False when the operator wants the end meanwhile.
    fn reset(&self, events: &mut MainLoop) -> Result<bool> {
        let mut patience = Patience::endless(&self.control);
        let host = self.chipset.host.clone();
        if !self.apart(events, &mut patience, move || host.reset()) {
            return Ok(false);
        }
        self.chipset.reset();
        let (over, done) = Over::new(&self.control);
        self.hbas.power_on(&over);
        drop(over);
        if events.wait(&done, &mut patience).is_none() {
            return Ok(false);
        }
        self.chips.restore(&self.vm)?;
        let Some(entry) = self.load_again(events, &mut patience)? else { return Ok(false) };
        Ok(self.control.reset(entry.map(Arc::new), || {
            events.turn(Duration::ZERO);
            patience.lasts()
        }))
    }
}

/// The step of the way to the first guest instruction that is done now.
fn trace(start: Instant, step: &str) {
    tracing::debug!(target: "vmm::start", "{:>7} us: {step}", start.elapsed().as_micros());
}

fn boots(wiring: &Wiring<'_>) -> Result<Boots> {
    match &wiring.config.boot {
        Boot::Kernel { kernel, initrd, cmdline } => {
            direct_boot(wiring, kernel, initrd.as_deref(), cmdline).map(Boots::Kernel)
        }
        Boot::Firmware { firmware, order, fw_cfg, option_roms, .. } => {
            let files = firmware::Files { order, fw_cfg, option_roms };
            FirmwareBoot::new(wiring, firmware, &files).map(Boots::Firmware)
        }
    }
}

fn direct_boot(
    wiring: &Wiring<'_>,
    kernel: &Path,
    initrd: Option<&Path>,
    cmdline: &str,
) -> Result<DirectBoot> {
    let source = source(kernel, initrd, cmdline)?;
    let tables = direct_tables(wiring.config, wiring.layout, wiring.physical_bits)?;
    let smbios = smbios::tables(wiring, boot::smbios::Version::V3);
    Ok(DirectBoot { source, tables, smbios })
}

fn source(kernel: &Path, initrd: Option<&Path>, cmdline: &str) -> Result<Source> {
    Source::new(Some(kernel.into()), initrd.map(Into::into), Some(cmdline.into()))?
        .ok_or_else(|| anyhow!("no kernel"))
}

fn direct_tables(config: &Config, layout: &RamLayout, physical_bits: u8) -> Result<boot::acpi::TableSet> {
    let apic_ids = (0..u32::from(config.vm.cpus)).collect();
    let mut machine = boot::acpi::Machine::direct_boot(layout, physical_bits, apic_ids, gsi_for);
    // As `kvm::irq` routes it, and as on every PC.
    machine.irq0_to_gsi2 = true;
    machine.tables().context("ACPI tables")
}
