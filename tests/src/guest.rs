//! Describes a guest and starts it under our VMM or under QEMU.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::bed::{Bed, build_mischievous_vmm};
use crate::cloud;
use crate::config::{Boot, Config, Hba, Lun, Machine, Serial};
use crate::grub::{self, Terminal};
use crate::images::script_archive;
use crate::kernel::Debian;
use crate::qemu;
use crate::tools::Tools;
use crate::vm::Vm;
use crate::wire::Launch;

/// Under emulation on a busy machine, 90 seconds are not enough for systemd to find the serial port. The kernel is
/// quiet, and so is systemd: each byte on the serial port is an exit, which takes long there.
pub const SYSTEM_CMDLINE: &str = "console=ttyS0 root=LABEL=root rw quiet systemd.show_status=false \
    systemd.default_timeout_start_sec=900 systemd.default_device_timeout_sec=900";

/// What runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vmm {
    /// The vmm binary of this workspace.
    Ours,
    /// The pinned QEMU, with KVM.
    Qemu,
    /// A Cloud Hypervisor that whoever measures has built, see [`Guest::program`]; with virtio-blk disks.
    CloudHypervisor,
}

impl Vmm {
    /// Its name on the screen.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "vmm",
            Self::Qemu => "qemu",
            Self::CloudHypervisor => "cloud",
        }
    }
}

/// The kind of HBA a disk is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HbaKind {
    /// virtio-scsi.
    Virtio,
    /// MegaRAID SAS.
    Megasas,
}

#[derive(Clone, Debug)]
enum Source {
    Root(Debian),
    Grub(Debian, Terminal),
    Empty(String),
    File(String),
}

/// A disk of a guest: a virtio-scsi one in raw format with direct I/O, unless told otherwise.
#[derive(Clone, Debug)]
pub struct Disk {
    source: Source,
    hba: HbaKind,
    kind: &'static str,
    format: &'static str,
    cache: String,
    more: toml::Table,
}

impl Disk {
    fn new(source: Source) -> Self {
        let more = toml::Table::new();
        Self { source, hba: HbaKind::Virtio, kind: "disk", format: "raw", cache: "none".into(), more }
    }

    /// A fresh copy of a stock Debian root file system.
    pub fn debian_root(debian: Debian) -> Self {
        Self::new(Source::Root(debian))
    }

    /// A disk that boots a fresh copy of a stock Debian root file system with the release's GRUB, for a BIOS.
    pub fn debian_grub(debian: Debian, terminal: Terminal) -> Self {
        Self::new(Source::Grub(debian, terminal))
    }

    /// An empty disk of this size, such as "2G".
    pub fn empty(size: &str) -> Self {
        Self::new(Source::Empty(size.to_string()))
    }

    /// A file or device that is there already.
    pub fn file(path: &str) -> Self {
        Self::new(Source::File(path.to_string()))
    }

    /// Puts the disk on another HBA.
    pub fn on(mut self, hba: HbaKind) -> Self {
        self.hba = hba;
        self
    }

    /// Sets the cache mode.
    pub fn cache(mut self, mode: &str) -> Self {
        self.cache = mode.to_string();
        self
    }

    /// Makes it a qcow2 image.
    pub fn qcow2(mut self) -> Self {
        self.format = "qcow2";
        self
    }

    /// Makes it a CD.
    pub fn cd(mut self) -> Self {
        self.kind = "cd";
        self
    }

    /// A SCSI device of the host, as `type = "generic"` or `"block"`. Without a node its `wwn` has to be set.
    pub fn passed(kind: &'static str, node: &str) -> Self {
        Self { kind, ..Self::file(node) }
    }

    /// Whether it has no image.
    fn is_passed(&self) -> bool {
        matches!(self.kind, "generic" | "block")
    }

    /// Adds a key of `[[hba.lun]]`.
    pub fn set(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        self.more.insert(key.to_string(), value.into());
        self
    }
}

#[derive(Clone, Debug)]
enum System {
    /// The kernel package's image with the quick initramfs and this script.
    Quick(Option<String>),
    /// The root image's own kernel and initrd.
    Debian,
    /// The release's SeaBIOS, which boots a disk.
    SeaBios,
    /// This Linux boot image, as the package ships it.
    Kernel(String),
}

/// A guest to be started.
pub struct Guest<'a> {
    bed: &'a Bed,
    vmm: Vmm,
    debian: Debian,
    system: System,
    cmdline: String,
    machine: Machine,
    disks: Vec<Disk>,
    options: Vec<String>,
    terminal: Option<(u16, u16)>,
    archives: Vec<PathBuf>,
    megasas: toml::Table,
    hba_keys: toml::Table,
    fabrics: Vec<(String, toml::Table)>,
    adapters: Vec<Hba>,
    program: Option<PathBuf>,
    qemu: Option<Tools>,
    mischief: Option<u64>,
}

impl<'a> Guest<'a> {
    pub(crate) fn new(bed: &'a Bed) -> Self {
        Self {
            bed,
            vmm: Vmm::Ours,
            debian: Debian::Trixie,
            system: System::Debian,
            cmdline: String::new(),
            machine: Machine {
                name: "guest".into(),
                cpus: 1,
                memory: "1GiB".into(),
                on_crash: "exit".into(),
            },
            disks: Vec::new(),
            options: Vec::new(),
            terminal: None,
            archives: Vec::new(),
            megasas: toml::Table::new(),
            hba_keys: toml::Table::new(),
            fabrics: Vec::new(),
            adapters: Vec::new(),
            program: None,
            qemu: None,
            mischief: None,
        }
    }

    /// The program of [`Vmm::CloudHypervisor`].
    pub fn program(mut self, path: PathBuf) -> Self {
        self.program = Some(path);
        self
    }

    /// The QEMU of [`Vmm::Qemu`]; the pinned one by default.
    pub fn qemu(mut self, tools: &Tools) -> Self {
        self.qemu = Some(tools.clone());
        self
    }

    /// Runs it under a VMM of ours whose host misbehaves, the same way for the same seed.
    pub fn mischief(mut self, seed: u64) -> Self {
        self.mischief = Some(seed);
        self
    }

    /// What runs it; ours by default.
    pub fn vmm(mut self, vmm: Vmm) -> Self {
        self.vmm = vmm;
        self
    }

    /// The release whose kernel and initrd it boots; Debian 13 by default.
    pub fn kernel(mut self, debian: Debian) -> Self {
        self.debian = debian;
        self
    }

    /// Boots the quick initramfs and runs this script in it.
    pub fn script(mut self, script: &str) -> Self {
        self.system = System::Quick(Some(script.to_string()));
        self
    }

    /// Boots the quick initramfs to a shell on the console.
    pub fn quick_shell(mut self) -> Self {
        self.system = System::Quick(None);
        self
    }

    /// Starts the release's SeaBIOS instead of a kernel: a disk brings one.
    pub fn seabios(mut self) -> Self {
        self.system = System::SeaBios;
        self
    }

    /// Starts this boot image with nothing but the command line.
    pub fn boot_image(mut self, path: &str) -> Self {
        self.system = System::Kernel(path.to_string());
        self
    }

    /// Number of vCPUs; 1 by default.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.machine.cpus = cpus;
        self
    }

    /// Memory, such as "512MiB"; 1 GiB by default.
    pub fn memory(mut self, size: &str) -> Self {
        self.machine.memory = size.to_string();
        self
    }

    /// Adds a disk. They get targets 0, 1, 2, ... of their HBA in this order, unless they have one set.
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// Starts the guest again when it crashes; else that ends the VMM.
    pub fn restart_after_crash(mut self) -> Self {
        self.machine.on_crash = "restart".into();
        self
    }

    /// Adds words to the kernel's command line.
    pub fn cmdline(mut self, words: &str) -> Self {
        self.cmdline = format!("{} {words}", self.cmdline);
        self
    }

    /// Adds an option of the vmm's own command line. QEMU gets those it knows under the same meaning.
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_string());
        self
    }

    /// Appends an archive to the quick initramfs of a script.
    pub fn archive(mut self, file: PathBuf) -> Self {
        self.archives.push(file);
        self
    }

    /// Sets a key of the virtio-scsi `[[hba]]`, which QEMU does not get.
    pub fn hba_key(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        self.hba_keys.insert(key.to_string(), value.into());
        self
    }

    /// What the machine is called.
    pub fn name(mut self, name: &str) -> Self {
        self.machine.name = name.to_string();
        self
    }

    /// Adds an `[[hba]]` of this type with these keys and without units, which QEMU does not get.
    pub fn adapter(mut self, id: &str, kind: &str, more: toml::Table) -> Self {
        self.adapters.push(Hba { id: id.into(), kind: kind.into(), more, lun: vec![] });
        self
    }

    /// Adds a virtio-scsi `[[hba]]` with these keys of `[hba.fc]`, which QEMU does not get.
    pub fn fabric(mut self, id: &str, keys: toml::Table) -> Self {
        self.fabrics.push((id.to_string(), keys));
        self
    }

    /// Sets keys of the `[[hba]]` that disks on `hba` are on, each as KEY=VALUE.
    pub fn keys(mut self, hba: HbaKind, keys: &[String]) -> Result<Self> {
        for key in keys {
            let (key, value) = key.split_once('=').context("a key is KEY=VALUE")?;
            let value = value.parse().unwrap_or_else(|_| toml::Value::String(value.into()));
            self = match hba {
                HbaKind::Virtio => self.hba_key(key, value),
                HbaKind::Megasas => self.megasas(key, value),
            };
        }
        Ok(self)
    }

    /// Gives the console a terminal of this size instead of pipes.
    pub fn terminal(mut self, size: Option<(u16, u16)>) -> Self {
        self.terminal = size;
        self
    }

    /// Sets a key of the `[[hba]]` that [`HbaKind::Megasas`] disks are on.
    pub fn megasas(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        self.megasas.insert(key.to_string(), value.into());
        self
    }

    /// Starts it.
    pub fn spawn(&self) -> Result<Vm<'a>> {
        let dir = self.bed.new_dir()?;
        let config = self.config(&dir)?;
        let text = config.to_toml()?;
        let file = format!("{dir}/vm.toml");
        self.bed.host().put(&file, text.as_bytes())?;
        let words = self.words(&config, &file)?;
        let env = self.mischief.map(|seed| ("VMM_MISCHIEF".to_string(), seed.to_string()));
        let launch =
            Launch { words, env: env.into_iter().collect(), dir: Some(dir.clone()), terminal: self.terminal };
        Vm::start(self.bed, &launch, dir, text)
    }

    fn words(&self, config: &Config, file: &str) -> Result<Vec<String>> {
        if self.vmm == Vmm::Ours {
            let vmm = match self.mischief {
                Some(_) => build_mischievous_vmm()?,
                None => self.bed.vmm()?,
            };
            let vmm = vmm.to_string_lossy().into_owned();
            let mut words = vec![vmm, "--config".into(), file.into()];
            words.extend(self.options.iter().cloned());
            return Ok(words);
        }
        if self.vmm == Vmm::CloudHypervisor {
            let program = self.program.as_deref().context("no Cloud Hypervisor is named")?;
            return cloud::command_line(config, program);
        }
        let mut words =
            qemu::command_line(config, self.qemu.as_ref().unwrap_or(self.bed.prepared().tools()))?;
        for option in &self.options {
            match option.as_str() {
                "--no-reboot" => words.push("-no-reboot".into()),
                _ => bail!("QEMU has nothing like {option}"),
            }
        }
        Ok(words)
    }

    fn config(&self, dir: &str) -> Result<Config> {
        let prepared = self.bed.prepared();
        let path = |path: &std::path::Path| Some(path.to_string_lossy().into_owned());
        let cmdline = |words: &str| Some(format!("{words}{}", self.cmdline));
        let boot = match &self.system {
            System::Debian => {
                let root = prepared.root(self.debian)?;
                let (kernel, initrd) = (path(&root.kernel()), path(&root.initrd()));
                Boot { kernel, initrd, cmdline: cmdline(SYSTEM_CMDLINE), firmware: None }
            }
            System::Quick(script) => {
                let mut initrd = prepared.quick(self.debian)?.to_string_lossy().into_owned();
                if script.is_some() || !self.archives.is_empty() {
                    let (more, both) = (format!("{dir}/script.cpio"), format!("{dir}/initrd"));
                    let script = script.as_deref().map(script_archive).unwrap_or_default();
                    self.bed.host().put(&more, &script)?;
                    let archives: Vec<_> = self.archives.iter().map(|file| file.to_string_lossy()).collect();
                    let archives = archives.join(" ");
                    self.bed.host().shell(&format!("cat {initrd} {archives} {more} > {both}"), 60)?;
                    initrd = both;
                }
                let kernel = path(&prepared.kernel(self.debian)?.image());
                let cmdline = cmdline("console=ttyS0 quiet panic=-1");
                Boot { kernel, initrd: Some(initrd), cmdline, firmware: None }
            }
            System::SeaBios => Boot { firmware: path(prepared.seabios(self.debian)?), ..Boot::default() },
            System::Kernel(image) => {
                let cmdline = Some(self.cmdline.trim_start().to_string());
                Boot { kernel: Some(image.clone()), cmdline, ..Boot::default() }
            }
        };
        Ok(Config {
            vm: self.machine.clone(),
            boot,
            serial: Serial { mode: "stdio".into() },
            hba: self.hbas(dir)?,
        })
    }

    /// Makes the disks' images and returns the HBAs with them.
    fn hbas(&self, dir: &str) -> Result<Vec<Hba>> {
        let mut virtio =
            Hba { id: "scsi0".into(), kind: "virtio-scsi".into(), more: self.hba_keys.clone(), lun: vec![] };
        let mut megasas =
            Hba { id: "raid0".into(), kind: "megasas".into(), more: self.megasas.clone(), lun: vec![] };
        for (index, disk) in self.disks.iter().enumerate() {
            let image = self.image(disk, &format!("{dir}/disk{index}.{}", disk.format))?;
            let hba = match disk.hba {
                HbaKind::Virtio => &mut virtio,
                HbaKind::Megasas => &mut megasas,
            };
            let mut more = disk.more.clone();
            let target = match more.remove("target").and_then(|target| target.as_integer()) {
                Some(target) => u32::try_from(target)?,
                None => u32::try_from(hba.lun.len())?,
            };
            hba.lun.push(Lun {
                target,
                kind: disk.kind.into(),
                image,
                format: (!disk.is_passed()).then(|| disk.format.into()),
                cache: (!disk.is_passed()).then(|| disk.cache.clone()),
                more,
            });
        }
        let fabrics = self.fabrics.iter().map(|(id, keys)| Hba {
            id: id.clone(),
            kind: "virtio-scsi".into(),
            more: toml::Table::from_iter([("fc".to_string(), keys.clone().into())]),
            lun: vec![],
        });
        Ok([virtio, megasas]
            .into_iter()
            .filter(|hba| !hba.lun.is_empty())
            .chain(fabrics)
            .chain(self.adapters.iter().cloned())
            .collect())
    }

    fn image(&self, disk: &Disk, path: &str) -> Result<String> {
        let host = self.bed.host();
        match &disk.source {
            Source::File(path) => return Ok(path.clone()),
            Source::Grub(debian, terminal) => {
                ensure!(disk.format == "raw", "disks with GRUB are raw images");
                let menu = grub::menu(*terminal, &format!("{SYSTEM_CMDLINE}{}", self.cmdline));
                self.bed.bootable_disk(*debian, &menu, path)?;
            }
            Source::Root(debian) if disk.format == "raw" => self.bed.copy_root(*debian, path)?,
            Source::Root(debian) => {
                let raw = format!("{path}.raw");
                self.bed.copy_root(*debian, &raw)?;
                let convert = self.bed.prepared().tools().words("qemu-img", "qemu-img", None)?.join(" ");
                host.shell(&format!("{convert} convert -O {} {raw} {path}", disk.format), 600)?;
            }
            Source::Empty(size) if disk.format == "raw" => {
                host.shell(&format!("truncate -s {size} {path}"), 30)?;
            }
            Source::Empty(size) => {
                let create = self.bed.prepared().tools().words("qemu-img", "qemu-img", None)?.join(" ");
                host.shell(&format!("{create} create -f {} {path} {size}", disk.format), 60)?;
            }
        }
        Ok(path.to_string())
    }
}
