//! Booting firmware: its image in memory, and what fw_cfg tells it about the machine.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use boot::acpi::{Blob, TableSet};
use boot::e820::E820Map;
use boot::firmware::Image;
use boot::{RamLayout, smbios};
use devices::mem::{Dma, GuestRam};
use devices::pci::Bdf;
use devices::platform::fw_cfg::{Content, FW_CFG_BASE, FW_CFG_LEN, FwCfg, FwCfgBuilder, Make, key};
use devices::platform::ports::LineLog;
use devices::platform::serial::COM1_BASE;
use devices::platform::sink::Sink;
use kvm_ioctls::VmFd;
use vm_memory::GuestMemoryBackend;

use super::chipset::Chipset;
use super::debug_file::DebugFile;
use super::tables::FirmwareTables;
use crate::config::{BootDevice, Config, Hba};
use crate::kvm::{Rom, map_rom};

/// Bytes that the directory announces for files whose content is made later. Firmware ignores the zeroes behind it.
const TABLES_LEN: usize = 128 << 10;
const LOADER_LEN: usize = 4 << 10;
const RSDP_LEN: usize = 36;
/// Bytes that an option ROM's own length field can say: 255 units of 512.
const LARGEST_ROM: u64 = 255 * 512;
/// What an option ROM begins with (PCI Firmware Specification 3.0, 5.1).
const ROM_SIGNATURE: &[u8] = &[0x55, 0xaa];
/// `etc/boot-fail-wait`: do not start over when nothing boots.
const NEVER: u32 = u32::MAX;

/// What a firmware boot is built from.
pub struct Wiring<'a> {
    pub vm: &'a VmFd,
    pub ram: &'a Arc<GuestRam>,
    pub layout: &'a RamLayout,
    pub physical_bits: u8,
    /// CPUID leaf 1: EAX in the lower half, EDX in the upper one.
    pub processor_id: u64,
    pub config: &'a Config,
    pub chipset: &'a Chipset,
    /// PCI address of each `[[hba]]`, in the order of the configuration.
    pub hbas: &'a [Bdf],
}

/// What the configuration gives firmware besides the machine itself.
pub struct Files<'a> {
    /// Devices to boot from, first to last.
    pub order: &'a [BootDevice],
    /// Names and texts of `opt/` files.
    pub fw_cfg: &'a [(String, String)],
    /// Names of fw_cfg and paths of option ROMs.
    pub option_roms: &'a [(String, PathBuf)],
}

/// A machine's firmware, ready to start and to start again.
pub struct FirmwareBoot {
    image: Image,
    ram: Arc<GuestRam>,
    fw_cfg: Arc<FwCfg>,
    /// Held as long as the VM.
    _rom: Rom,
}

impl FirmwareBoot {
    /// Maps the firmware at `path` and puts fw_cfg on the bus. [`FirmwareBoot::restart`] comes before each start.
    pub fn new(wiring: &Wiring<'_>, path: &Path, files: &Files<'_>) -> Result<Self> {
        let image = Image::read(path)?;
        let slot = u32::try_from(wiring.ram.num_regions()).context("memory slots")?;
        let rom = map_rom(wiring.vm, slot, image.address(), image.bytes())
            .context("mapping the firmware (KVM_CAP_READONLY_MEM)")?;
        let mut builder = numbers(wiring.config);
        for (name, content) in machine_files(wiring, files.order)? {
            builder.file(name, content)?;
        }
        for (name, text) in files.fw_cfg {
            builder.file(name, Content::fixed(text))?;
        }
        for (name, path) in files.option_roms {
            builder.file(name, Content::fixed(option_rom(path)?))?;
        }
        let dma = Dma::new(wiring.ram.clone());
        // Not a PCI function: no bus master bit holds it back.
        dma.set_bus_master(true);
        let fw_cfg = Arc::new(builder.build(dma));
        wiring.chipset.buses.ports.map(FW_CFG_BASE, FW_CFG_LEN, fw_cfg.clone())?;
        Ok(Self { image, ram: wiring.ram.clone(), fw_cfg, _rom: rom })
    }

    /// What is wrong with the files that firmware is started from.
    pub fn check(path: &Path, option_roms: &[(String, PathBuf)]) -> Vec<anyhow::Error> {
        let image = Image::read(path).err().map(Into::into);
        let roms = option_roms.iter().filter_map(|(_, path)| option_rom(path).err());
        image.into_iter().chain(roms).collect()
    }

    /// Everything as after power-on. The processors' own power-on state starts the firmware.
    pub fn restart(&self) -> Result<()> {
        self.fw_cfg.reset();
        self.image.fill_bios_area(&self.ram).context("filling the BIOS area")
    }
}

/// The items with numbers.
fn numbers(config: &Config) -> FwCfgBuilder {
    let cpus = u16::from(config.vm.cpus).to_le_bytes();
    FwCfgBuilder::new()
        .key(key::UUID, &config.vm.uuid.map_or([0; 16], |uuid| uuid.0))
        .key(key::RAM_SIZE, &config.vm.memory.to_le_bytes())
        .key(key::NO_GRAPHIC, &[0; 2])
        .key(key::CPUS, &cpus)
        .key(key::NUMA, &[0; 8])
        .key(key::BOOT_MENU, &[0; 2])
        .key(key::MAX_CPUS, &cpus)
        .key(key::OLD_ACPI, &[0; 2])
        .key(key::OLD_SMBIOS, &[0; 2])
        // As `kvm::irq` routes it, and as the MADT says.
        .key(key::IRQ0_OVERRIDE, &[1])
        .key(key::OLD_E820, &[0; 4])
}

/// The files that describe the machine.
fn machine_files(wiring: &Wiring<'_>, order: &[BootDevice]) -> Result<Vec<(&'static str, Content)>> {
    let config = wiring.config;
    let structures = super::smbios::tables(wiring, smbios::Version::V2);
    let mut files = vec![
        ("etc/e820", Content::fixed(E820Map::firmware(wiring.layout).to_bytes())),
        (smbios::ANCHOR_FILE, Content::fixed(structures.entry_point(0))),
        (smbios::TABLES_FILE, Content::fixed(structures.bytes())),
        ("etc/sercon-port", Content::fixed((COM1_BASE as u16).to_le_bytes())),
        ("etc/boot-fail-wait", Content::fixed(NEVER.to_le_bytes())),
    ];
    if !order.is_empty() {
        files.push(("bootorder", Content::fixed(boot_order(order, &config.hbas, wiring.hbas)?)));
    }
    let tables = FirmwareTables::new(wiring);
    files.extend(table_files(&Arc::new(tables)));
    Ok(files)
}

/// Reads an option ROM.
fn option_rom(path: &Path) -> Result<Vec<u8>> {
    let shown = path.display();
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("boot.option_roms: {shown}"))?;
    file.take(LARGEST_ROM + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("boot.option_roms: {shown}"))?;
    ensure!(
        bytes.starts_with(ROM_SIGNATURE),
        "boot.option_roms: {shown} is no option ROM: it does not begin with 55 AA"
    );
    ensure!(bytes.len() as u64 <= LARGEST_ROM, "boot.option_roms: {shown} has more than {LARGEST_ROM} bytes");
    Ok(bytes)
}

/// The ACPI tables and the script that links them. Firmware reads the script first, when it has programmed the chipset.
pub(super) fn table_files(tables: &Arc<FirmwareTables>) -> [(&'static str, Content); 3] {
    let file = |len, part: fn(&TableSet) -> Vec<u8>, anew: bool| {
        let tables = tables.clone();
        let make: Make = Arc::new(move || part(&tables.get(anew)));
        Content::Lazy { len, make }
    };
    [
        ("etc/table-loader", file(LOADER_LEN, TableSet::loader_script, true)),
        (Blob::Tables.file_name(), file(TABLES_LEN, |set| set.bytes(Blob::Tables).to_vec(), false)),
        (Blob::Rsdp.file_name(), file(RSDP_LEN, |set| set.bytes(Blob::Rsdp).to_vec(), false)),
    ]
}

/// Open Firmware paths of the devices to boot from, a line each, then a NUL.
fn boot_order(order: &[BootDevice], hbas: &[Hba], addresses: &[Bdf]) -> Result<String> {
    let mut text = String::new();
    for device in order {
        let found = hbas.iter().zip(addresses).find(|(hba, _)| hba.id == device.hba);
        let (_, address) = found.ok_or_else(|| anyhow!("boot order: no hba {}", device.hba))?;
        let BootDevice { target, lun, .. } = device;
        let slot = address.device();
        // Writing into a String does not fail.
        let _ = match address.function() {
            0 => writeln!(text, "/pci@i0cf8/scsi@{slot:x}/channel@0/disk@{target:x},{lun:x}"),
            function => {
                writeln!(text, "/pci@i0cf8/scsi@{slot:x},{function:x}/channel@0/disk@{target:x},{lun:x}")
            }
        };
    }
    // The NUL takes the place of the last line's end.
    text.pop();
    text.push('\0');
    Ok(text)
}

/// Where the debug console prints to: the file at `path`, or the log. `None` when the log's filter lets none of it
/// pass: then the machine has no such console, as by default under QEMU, and firmware prints nothing.
#[derive(Clone)]
pub enum DebugOutput {
    File(Arc<DebugFile>),
    Log(Option<Arc<dyn Sink>>),
}

impl DebugOutput {
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::Log(logged_console())) };
        Ok(Self::File(Arc::new(DebugFile::open(path)?)))
    }

    /// What [`Self::open`] would find wrong. Changes nothing.
    pub fn check(path: Option<&Path>) -> Result<()> {
        path.map_or(Ok(()), DebugFile::check)
    }

    pub fn sink(&self) -> Option<Arc<dyn Sink>> {
        match self {
            Self::File(file) => Some(file.clone()),
            Self::Log(log) => log.clone(),
        }
    }

    /// The machine starts: takes away what an earlier run left in the file.
    pub fn begin(&self) -> Result<()> {
        if let Self::File(file) = self { file.begin() } else { Ok(()) }
    }

    /// The machine has ended.
    pub fn end(&self) {
        if let Self::File(file) = self {
            file.end();
        }
    }
}

fn logged_console() -> Option<Arc<dyn Sink>> {
    const TARGET: &str = "firmware";
    let listens = tracing::enabled!(target: TARGET, tracing::Level::DEBUG);
    listens.then(|| -> Arc<dyn Sink> {
        Arc::new(LineLog::new(|line| tracing::debug!(target: TARGET, "{line}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Controller, VirtioScsi};

    fn hba(id: &str) -> Hba {
        let controller = Controller::VirtioScsi(VirtioScsi::with_queues(1));
        Hba { id: id.into(), controller, threads: Default::default(), fc: None, luns: Vec::new() }
    }

    #[test]
    fn boot_order_is_a_list_of_paths_that_ends_in_nul() {
        let hbas = [hba("a"), hba("b")];
        let addresses = [Bdf::new(0, 1, 0), Bdf::new(0, 0x1a, 3)];
        let device = |hba: &str, target, lun| BootDevice { hba: hba.into(), target, lun };
        let order = [device("b", 31, 16383), device("a", 0, 0)];
        assert_eq!(
            boot_order(&order, &hbas, &addresses).unwrap(),
            "/pci@i0cf8/scsi@1a,3/channel@0/disk@1f,3fff\n/pci@i0cf8/scsi@1/channel@0/disk@0,0\0"
        );
        assert!(boot_order(&[device("c", 0, 0)], &hbas, &addresses).is_err());
    }

    #[test]
    fn an_option_rom_has_a_signature_and_fits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rom");
        let mut bytes = vec![0x55, 0xaa, 1, 0xcb];
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(option_rom(&path).unwrap(), bytes);
        bytes.resize(255 * 512 + 1, 0);
        std::fs::write(&path, &bytes).unwrap();
        assert!(option_rom(&path).unwrap_err().to_string().ends_with("has more than 130560 bytes"));
        std::fs::write(&path, [0xaa, 0x55]).unwrap();
        assert!(option_rom(&path).unwrap_err().to_string().contains("no option ROM"));
        std::fs::remove_file(&path).unwrap();
        assert!(option_rom(&path).unwrap_err().to_string().starts_with("boot.option_roms: "));
    }

    #[test]
    fn the_debug_console_prints_to_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("debug");
        std::fs::write(&path, "what an earlier run left").unwrap();
        let output = DebugOutput::open(Some(&path)).unwrap();
        assert!(DebugOutput::open(Some(&path)).is_err(), "two writers");
        assert_eq!(std::fs::read(&path).unwrap(), b"what an earlier run left", "before the start");
        output.begin().unwrap();
        let sink = output.sink().unwrap();
        for byte in b"SeaBIOS\npart" {
            sink.put(&[*byte]);
        }
        output.end();
        assert_eq!(std::fs::read(&path).unwrap(), b"SeaBIOS\npart");
        let error = DebugOutput::open(Some(&directory.path().join("gone/x"))).err().unwrap();
        assert!(error.to_string().starts_with("boot.debug_log: "), "{error}");
        // No test listens to the log.
        assert!(DebugOutput::open(None).unwrap().sink().is_none());
    }
}
