//! The board of a machine without KVM around it, wired as `vmm` wires it: both buses with all that is on them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use boot::{RamLayout, layout};
use devices::bus::{Bus, BusDevice};
use devices::iothread::IoThread;
use devices::irq::IrqLine;
use devices::mem::{Dma, GuestRam};
use devices::pci::{
    Bdf, BusWindows, ConfigPorts, IntxRouter, Lpc, LpcWiring, Mch, PciFunction, PciHost, PciSeat, Resources,
    assign_resources, program_chipset,
};
use devices::platform::clock::{Alarm, Clock};
use devices::platform::cmos::{BootDevice, CMOS_BASE, CMOS_LEN, Cmos, CmosConfig};
use devices::platform::fw_cfg::{Content, FW_CFG_BASE, FW_CFG_LEN, FwCfg, FwCfgBuilder, key};
use devices::platform::i8042::{I8042, I8042_BASE, I8042_LEN};
use devices::platform::pm::{ClockLine, PowerManagement};
use devices::platform::ports::{
    APM_BASE, ApmPorts, DMA_PAGE_BASE, DebugConsole, DmaPagePorts, LineLog, SystemControlPortA,
};
use devices::platform::serial::{COM1_BASE, SERIAL_LEN, Serial};
use devices::platform::sink::NoSink;
use devices::platform::{MachineControl, MachineRequest};
use devices::scsi::{Disk, DiskConfig, Image, LogicalUnit, Lun, Nexus, Target};
use devices::testing::RamDisk;
use devices::testing::irq::{RecordingIrq, RecordingMsi};
use devices::testing::pci::FakeDoorbells;
use hba_megasas::{Differences, Megasas, Model};
use hba_virtio_scsi::{Interface, VirtioScsi};
use vm_memory::{Bytes as _, GuestAddress};
use vmm::machine::testing::acpi_files;

use crate::io_thread;

/// Guest RAM in bytes.
pub const RAM: usize = 1 << 20;
/// Where the HBAs are.
pub const VIRTIO: Bdf = Bdf::new(0, 1, 0);
pub const MEGASAS: Bdf = Bdf::new(0, 2, 0);

/// Time that passes when it is told to.
#[derive(Default)]
pub struct Time {
    now: AtomicU64,
    /// Seconds that somebody set the host's clock by.
    step: AtomicI64,
}

impl Clock for Time {
    fn monotonic_ns(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn unix_ns(&self) -> i128 {
        let secs = 1_790_000_000 + self.step.load(Ordering::Relaxed);
        i128::from(secs) * 1_000_000_000 + i128::from(self.monotonic_ns())
    }
}

#[derive(Default)]
struct Deadline(Mutex<Option<u64>>);

impl Deadline {
    fn is_over(&self, now: u64) -> bool {
        self.0.lock().unwrap().is_some_and(|deadline| deadline <= now)
    }
}

impl Alarm for Deadline {
    fn set(&self, deadline_ns: Option<u64>) {
        *self.0.lock().unwrap() = deadline_ns;
    }
}

/// Takes note of what devices ask for.
struct Requests;

impl MachineControl for Requests {
    fn request(&self, _: MachineRequest) {}
}

pub struct Board {
    pub ram: Arc<GuestRam>,
    pub memory: Arc<Bus>,
    pub ports: Arc<Bus>,
    pub host: Arc<PciHost>,
    pub mch: Arc<Mch>,
    pub pm: Arc<PowerManagement>,
    pub cmos: Arc<Cmos>,
    pub serial: Arc<Serial>,
    pub keyboard: Arc<I8042>,
    pub time: Arc<Time>,
    config_ports: Arc<ConfigPorts>,
    port92: Arc<SystemControlPortA>,
    apm: Arc<ApmPorts>,
    dma_pages: Arc<DmaPagePorts>,
    fw_cfg: Arc<FwCfg>,
    layout: RamLayout,
    pm_alarm: Arc<Deadline>,
    cmos_alarm: Arc<Deadline>,
    msi: Arc<RecordingMsi>,
    /// What the registers of the clock and its memory hold at first.
    clock_memory: Vec<u8>,
    _thread: IoThread,
}

fn line() -> Arc<dyn IrqLine> {
    RecordingIrq::new()
}

impl Board {
    pub fn new() -> Self {
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), RAM)]).expect("memory"));
        let (memory, ports) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let (time, pm_alarm, cmos_alarm) = <(Arc<Time>, Arc<Deadline>, Arc<Deadline>)>::default();
        let machine = Arc::new(Requests);
        let pm = Arc::new(PowerManagement::new(line(), machine.clone(), time.clone(), pm_alarm.clone()));
        let config = CmosConfig {
            utc_offset_secs: 0,
            vcpus: 2,
            boot_order: [BootDevice::HardDisk, BootDevice::CdRom, BootDevice::None],
            ram_below_4g: RAM as u64,
            ram_above_4g: 0,
        };
        let clock_line = Arc::new(ClockLine::new(line(), pm.clone()));
        let cmos = Arc::new(Cmos::new(&config, clock_line, time.clone(), cmos_alarm.clone()));
        let serial = Arc::new(Serial::new(line(), Arc::new(NoSink)).expect("a descriptor"));
        let keyboard = Arc::new(I8042::new(line(), line(), machine.clone()));
        let isa = std::array::from_fn(|irq| matches!(irq, 3..=7 | 9..=12 | 14 | 15).then(line));
        let router = IntxRouter::new(std::array::from_fn(|_| line()), isa);
        let host = PciHost::new();
        let mch = Mch::new(&host, memory.clone());
        let layout = RamLayout::new(64 << 20).expect("a size");
        let dma = Dma::new(ram.clone());
        dma.set_bus_master(true);
        let mut board = Self {
            config_ports: ConfigPorts::new(host.clone(), machine.clone()),
            port92: Arc::new(SystemControlPortA::new(machine.clone())),
            apm: Arc::new(ApmPorts::new("APM")),
            dma_pages: Arc::new(DmaPagePorts::new("DMA pages")),
            fw_cfg: Arc::new(items(&host, &mch, layout).build(dma)),
            msi: RecordingMsi::with_limit(64),
            _thread: io_thread(),
            layout,
            ram,
            memory,
            ports,
            host,
            mch,
            pm,
            cmos,
            serial,
            keyboard,
            time,
            pm_alarm,
            cmos_alarm,
            clock_memory: Vec::new(),
        };
        board.map();
        board.plug(&router);
        board.reset();
        board.clock_memory = (0..128).map(|register| board.clock_register(register)).collect();
        board
    }

    /// A machine that was never used: guest memory, time, and what has a battery are as at first, too.
    pub fn begin(&self) {
        self.time.now.store(0, Ordering::Relaxed);
        self.time.step.store(0, Ordering::Relaxed);
        self.poke(0, &[0; RAM]);
        self.reset();
        // Registers A to D are no memory; while B says SET, the date is.
        let (a, b) = (self.clock_memory[0xa], self.clock_memory[0xb]);
        self.set_clock_register(0xb, b | 0x80);
        for (register, value) in
            (0..).zip(&self.clock_memory).filter(|(register, _)| !(0xa..=0xd).contains(register))
        {
            self.set_clock_register(register, *value);
        }
        // The divider begins anew.
        self.set_clock_register(0xa, 0x70 | a);
        self.set_clock_register(0xa, a);
        self.set_clock_register(0xb, b);
        self.out(CMOS_BASE, &[0]);
    }

    fn clock_register(&self, register: u8) -> u8 {
        let mut value = [0];
        self.out(CMOS_BASE, &[register]);
        self.ports.read(CMOS_BASE + 1, &mut value);
        value[0]
    }

    fn set_clock_register(&self, register: u8, value: u8) {
        self.out(CMOS_BASE, &[register]);
        self.out(CMOS_BASE + 1, &[value]);
    }

    fn map(&self) {
        let map =
            |base, len, device: Arc<dyn BusDevice>| self.ports.map(base, len, device).expect("a free place");
        map(ConfigPorts::BASE, ConfigPorts::LEN, self.config_ports.clone());
        map(COM1_BASE, SERIAL_LEN, self.serial.clone());
        map(CMOS_BASE, CMOS_LEN, self.cmos.clone());
        map(I8042_BASE, I8042_LEN, self.keyboard.clone());
        map(SystemControlPortA::PORT, 1, self.port92.clone());
        map(APM_BASE, self.apm.len(), self.apm.clone());
        map(DMA_PAGE_BASE, self.dma_pages.len(), self.dma_pages.clone());
        map(DebugConsole::PORT, 1, Arc::new(DebugConsole::new(Arc::new(LineLog::new(|_| ())))));
        map(FW_CFG_BASE, FW_CFG_LEN, self.fw_cfg.clone());
    }

    fn plug(&self, router: &Arc<IntxRouter>) {
        let lpc = Lpc::new(LpcWiring {
            ports: self.ports.clone(),
            memory: self.memory.clone(),
            pm: self.pm.clone(),
            router: router.clone(),
            sci: Arc::new(|_| ()),
        });
        let above = self.layout.end()..1 << 40;
        let windows = BusWindows::new(
            self.memory.clone(),
            self.ports.clone(),
            vec![layout::MAX_LOW_TOP..layout::MEM32.end(), above],
            vec![0x1000..0x1_0000],
        );
        let windows = Arc::new(windows);
        let seat = |slot| PciSeat {
            dma: Dma::new(self.ram.clone()),
            intx: router.wire(slot, 0),
            msi: self.msi.clone(),
            bars: windows.clone(),
            doorbells: FakeDoorbells::new(),
        };
        let disk = Disk::new(Arc::new(Image::Ram(RamDisk::new(64 << 10))), DiskConfig::default());
        let target = Target::new();
        target.attach(Lun::default(), LogicalUnit::Disk(disk.expect("a disk"))).expect("a free LUN");
        let targets = BTreeMap::from([(0, Nexus::new(target, None))]);
        let options = hba_virtio_scsi::Options {
            request_queues: 2,
            queue_size: 16,
            access_platform: false,
            protection: false,
            interface: Interface::Transitional,
            ..hba_virtio_scsi::Options::default()
        };
        let remote = self._thread.remote();
        let virtio = VirtioScsi::new(seat(1), targets, vec![remote.clone()], options).expect("an HBA");
        let options = hba_megasas::Options {
            model: Model::Gen2,
            serial: "SV1234567".into(),
            sas_address: 0x5006_05b0_0000_1230,
            write_back: false,
            differences: Differences::default(),
        };
        let megasas = Megasas::new(seat(2), BTreeMap::new(), remote, options, None).expect("an HBA");
        let functions: [(Bdf, Arc<dyn PciFunction>); 4] =
            [(Mch::BDF, self.mch.clone()), (Lpc::BDF, lpc), (VIRTIO, virtio), (MEGASAS, megasas)];
        for (bdf, function) in functions {
            self.host.add(bdf, function).expect("a free slot");
        }
    }

    /// A system reset, and then what a direct boot does.
    pub fn reset(&self) {
        self.host.reset();
        self.config_ports.reset();
        self.pm.reset();
        self.cmos.reset();
        self.serial.reset();
        self.keyboard.reset();
        self.port92.reset();
        self.apm.reset();
        self.dma_pages.reset();
        self.fw_cfg.reset();
        assert_eq!(self.mch.ecam(), None, "ECAM after a reset");
        self.program();
        self.msi.take();
    }

    /// Chipset and BARs as without firmware.
    fn program(&self) {
        program_chipset(&self.host, 0x600, layout::ECAM.base);
        let resources = Resources {
            ports: 0xc000..0x1_0000,
            memory32: layout::MEM32.as_range(),
            memory64: self.layout.mem64_window(40).map(|window| window.as_range()),
            decode: true,
        };
        assign_resources(&self.host, &resources).expect("room for all BARs");
    }

    /// Time passes, and the event loop does what it does.
    pub fn pass(&self, ns: u64) {
        // Where time ends it stands still.
        let now = self.time.monotonic_ns().saturating_add(ns);
        self.time.now.store(now, Ordering::Relaxed);
        let timers: [(&Deadline, &dyn Fn()); 2] = [
            (&self.pm_alarm, &|| self.pm.timer_expired()),
            (&self.cmos_alarm, &|| self.cmos.timer_expired()),
        ];
        for (alarm, expired) in timers {
            let mut turns = 0;
            while alarm.is_over(now) {
                expired();
                turns += 1;
                assert!(turns < 16, "a timer that has no end at {now}");
            }
        }
    }

    /// Somebody sets the host's clock, to no year before 1970 or after 2200.
    pub fn set_clock(&self, secs: i64) {
        self.time.step.store(secs.clamp(-1_700_000_000, 5_400_000_000), Ordering::Relaxed);
    }

    pub fn poke(&self, at: u64, bytes: &[u8]) {
        let _ = self.ram.write_slice(bytes, GuestAddress(at));
    }

    pub fn out(&self, port: u64, data: &[u8]) {
        self.ports.write(port, data);
    }

    pub fn inl(&self, port: u64) -> u32 {
        let mut data = [0; 4];
        self.ports.read(port, &mut data);
        u32::from_le_bytes(data)
    }

    /// A dword of configuration space by mechanism #1.
    pub fn config(&self, bdf: Bdf, offset: u8) -> u32 {
        self.select(bdf, offset);
        self.inl(0xcfc)
    }

    pub fn select(&self, bdf: Bdf, offset: u8) {
        let address = 1 << 31
            | u32::from(bdf.device()) << 11
            | u32::from(bdf.function()) << 8
            | u32::from(offset & 0xfc);
        self.out(0xcf8, &address.to_le_bytes());
    }
}

fn items(host: &Arc<PciHost>, mch: &Arc<Mch>, layout: RamLayout) -> FwCfgBuilder {
    let mut builder =
        FwCfgBuilder::new().key(key::RAM_SIZE, &(RAM as u64).to_le_bytes()).key(key::CPUS, &[2, 0]);
    let mut add = |name: &str, content| builder.file(name, content).expect("a file");
    add("etc/e820", Content::fixed([7; 40]));
    add("opt/note", Content::fixed("a note"));
    add("etc/writable", Content::Writable { first: [1; 24].as_slice().into(), written: Arc::new(|_| ()) });
    for (name, content) in acpi_files(host, mch, layout, 40, 2) {
        add(name, content);
    }
    builder
}
