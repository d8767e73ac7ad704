//! The configuration of a virtual machine, complete and checked: what the machine is built from.
//!
//! Every default is filled in and every path is resolved against the file that named it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use devices::storage::Backing;
use hba_megasas::Difference;

use super::fc::Fc;
use super::smbios::Smbios;

/// An enumeration whose values have names in the file.
macro_rules! named {
    ($(#[$attr:meta])* $name:ident { $($(#[$value_attr:meta])* $value:ident = $text:literal),+ $(,)? }) => {
        $(#[$attr])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$value_attr])* $value),+ }

        impl $name {
            /// The names, in the order of the documentation.
            pub const NAMES: &[&str] = &[$($text),+];

            /// The value called `name`.
            pub fn named(name: &str) -> Option<Self> {
                match name {
                    $($text => Some(Self::$value),)+
                    _ => None,
                }
            }

            /// The name in the file.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $text),+
                }
            }
        }
    };
}

/// A whole machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[vm]`
    pub vm: Vm,
    /// `[boot]`
    pub boot: Boot,
    /// `boot.debug_log`: the file that takes what firmware prints to its debug console; `None` for the log.
    pub debug_log: Option<PathBuf>,
    /// `[serial]`
    pub serial: Serial,
    /// `[control]`: the path of its socket.
    pub control: Option<PathBuf>,
    /// `[security]`
    pub security: Security,
    /// `[[hba]]`, in the order of the file
    pub hbas: Vec<Hba>,
    /// The directory of the file, which paths are relative to.
    pub directory: PathBuf,
    /// What the machine uses besides its disks.
    pub own: Vec<Own>,
}

/// A path that the machine uses for something else than a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// What it is, with the place where it is written: "`path` in [serial] of line 9".
    pub what: String,
    /// The path.
    pub path: PathBuf,
    /// It is only read.
    pub read: bool,
}

/// `[vm]`: the machine itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Vm {
    /// What the machine is called in logs and in the guest's SMBIOS tables.
    pub name: String,
    /// Number of vCPUs, 1 to 255.
    pub cpus: u8,
    /// Size of guest RAM in bytes, a multiple of 4 KiB.
    pub memory: u64,
    /// The machine's identity, bytes in the order of the text form.
    pub uuid: Option<Uuid>,
    /// Size in bytes of the huge pages to back guest RAM with; `None` for ordinary pages.
    pub huge_pages: Option<u64>,
    /// Whether guest RAM is a memfd, mapped shared, instead of private memory.
    pub shared_memory: bool,
    /// Whether the guest is shown the Hyper-V interface.
    pub hyperv: bool,
    /// What the real-time clock counts.
    pub rtc: RtcBase,
    /// What the guest's SMBIOS tables say.
    pub smbios: Smbios,
    /// What a reset by the guest does.
    pub on_reset: Restart,
    /// What a triple fault does.
    pub on_crash: Restart,
    /// How long the end of the process waits for the host.
    pub shutdown_timeout: Duration,
}

/// A UUID (RFC 9562), bytes in the order of the text form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// Reads the form 8-4-4-4-12.
    pub fn parse(text: &str) -> Option<Self> {
        let groups: Vec<&str> = text.split('-').collect();
        if groups.iter().map(|group| group.len()).ne([8, 4, 4, 4, 12]) {
            return None;
        }
        hex(&groups.concat()).map(|value| Self(value.to_be_bytes()))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let dash = if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The value of `digits`, hexadecimal digits and nothing else.
pub(super) fn hex(digits: &str) -> Option<u128> {
    let all = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    all.then(|| u128::from_str_radix(digits, 16).ok()).flatten()
}

named! {
    /// What the real-time clock counts.
    RtcBase {
        /// Universal time, as Linux expects.
        Utc = "utc",
        /// The host's local time, as Windows expects.
        LocalTime = "localtime",
    }
}

named! {
    /// What happens when the guest resets or crashes.
    Restart {
        /// The machine starts again.
        Restart = "restart",
        /// The process ends with the exit code for it.
        Exit = "exit",
    }
}

/// `[boot]`: what runs first.
#[derive(Clone, Debug, PartialEq)]
pub enum Boot {
    /// A Linux kernel, loaded without firmware.
    Kernel {
        /// Kernel image (bzImage or ELF).
        kernel: PathBuf,
        /// Initial RAM disk.
        initrd: Option<PathBuf>,
        /// Kernel command line.
        cmdline: String,
    },
    /// A firmware image.
    Firmware {
        /// SeaBIOS or OVMF code.
        firmware: PathBuf,
        /// OVMF's variable store, written by the guest.
        vars: Option<PathBuf>,
        /// Devices to try, first to last; empty for the firmware's own order.
        order: Vec<BootDevice>,
        /// Files of fw_cfg by name, for firmware and guest: `opt/...`.
        fw_cfg: Vec<(String, String)>,
        /// Option ROMs by name in fw_cfg.
        option_roms: Vec<(String, PathBuf)>,
    },
}

/// A boot device: `hba:target[:lun]`.
#[derive(Clone, Debug, PartialEq)]
pub struct BootDevice {
    /// The HBA's `id`.
    pub hba: String,
    /// Target.
    pub target: u8,
    /// Logical unit number.
    pub lun: u16,
}

/// `[serial]`: where the first serial port leads.
#[derive(Clone, Debug, PartialEq)]
pub enum Serial {
    /// The process's standard input and output.
    Stdio,
    /// Output to a file, which is emptied first; no input.
    File(PathBuf),
    /// A pseudoterminal, with an optional symbolic link to it.
    Pty(Option<PathBuf>),
    /// A UNIX stream socket that the process listens on.
    Socket(PathBuf),
    /// Nowhere: the port is there, output is lost.
    Off,
}

named! {
    /// `serial.mode` as it is written.
    SerialMode {
        /// [`Serial::Stdio`]
        Stdio = "stdio",
        /// [`Serial::File`]
        File = "file",
        /// [`Serial::Pty`]
        Pty = "pty",
        /// [`Serial::Socket`]
        Socket = "socket",
        /// [`Serial::Off`]
        Off = "off",
    }
}

/// `[security]`: what the process may still do when the machine has started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// Whether it is confined.
    pub sandbox: Sandbox,
    /// Where images that come at run time may be, with all that is below.
    pub directories: Vec<PathBuf>,
    /// The same for images that are only read: read-only disks, backing files.
    pub readonly_directories: Vec<PathBuf>,
    /// Commands can be sent to devices of the host: such devices are there, or may come.
    pub host_devices: bool,
    /// Who it becomes; `None` to stay who started it.
    pub user: Option<User>,
}

named! {
    /// Whether the process is confined.
    #[derive(Default)]
    Sandbox {
        /// To what a machine needs.
        #[default]
        On = "on",
        /// Not at all, but what would be refused is logged.
        Log = "log",
        /// Not at all.
        Off = "off",
    }
}

/// A user of the host, never root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// As it is written.
    pub name: String,
    /// Number of the user.
    pub uid: u32,
    /// Number of the user's own group.
    pub gid: u32,
    /// Numbers of the other groups that the user is in.
    pub groups: Vec<u32>,
}

/// `[[hba]]`: a host bus adapter and what is behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Hba {
    /// Its name, unique in the machine.
    pub id: String,
    /// What the guest sees.
    pub controller: Controller,
    /// The threads that serve it.
    pub threads: IoThreads,
    /// `[hba.fc]`: the port that it has on a Fibre Channel fabric, if it has one.
    pub fc: Option<Fc>,
    /// `[[hba.lun]]`, in the order of the file; no two with the same target and LUN.
    pub luns: Vec<Lun>,
}

named! {
    /// How the units behind a virtual port are shown.
    #[derive(Default)]
    Passthrough {
        /// Disks as [`Device::Block`], all others as [`Device::Generic`].
        #[default]
        Block = "block",
        /// All as [`Device::Generic`].
        Generic = "generic",
    }
}

/// The I/O threads of an HBA.
#[derive(Clone, Debug, PartialEq)]
pub struct IoThreads {
    /// How many; request queues are spread over them.
    pub count: u8,
    /// Whether they look for work before they sleep.
    pub polling: Polling,
    /// How long, in microseconds, for [`Polling::Adaptive`] and [`Polling::Fixed`].
    pub polling_us: u32,
    /// CPUs of the host for them, one each in turn; all may use all when empty.
    pub cpus: Vec<usize>,
}

impl Default for IoThreads {
    fn default() -> Self {
        Self { count: 1, polling: Polling::Auto, polling_us: 50, cpus: Vec::new() }
    }
}

named! {
    /// Whether an I/O thread looks for work before it sleeps.
    Polling {
        /// While it pays, with a bound that fits the host.
        Auto = "auto",
        /// While it pays, with a given bound.
        Adaptive = "adaptive",
        /// Always for a given time.
        Fixed = "fixed",
        /// Never.
        Off = "off",
    }
}

/// The kind of an HBA.
#[derive(Clone, Debug, PartialEq)]
pub enum Controller {
    /// virtio-scsi
    VirtioScsi(VirtioScsi),
    /// MegaRAID SAS
    Megasas(Megasas),
    /// virtio-scsi, served by the host's kernel
    VhostScsi(VhostScsi),
}

/// A virtio-scsi adapter of which a target of the host's kernel serves the queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostScsi {
    /// The name of the target.
    pub wwpn: String,
    /// Number of request queues.
    pub queues: u8,
    /// Size of each queue on offer, in descriptors: a power of two.
    pub queue_size: u16,
}

/// A virtio-scsi adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioScsi {
    /// Number of request queues.
    pub queues: u8,
    /// Size of each queue on offer, in descriptors: a power of two.
    pub queue_size: u16,
    /// Which registers it has.
    pub interface: VirtioInterface,
}

impl VirtioScsi {
    /// One with `queues` request queues and everything else as when nothing is said.
    pub fn with_queues(queues: u8) -> Self {
        Self { queues, queue_size: 256, interface: VirtioInterface::Modern }
    }
}

named! {
    /// Register interfaces of a virtio device.
    VirtioInterface {
        /// That of version 1 only.
        Modern = "modern",
        /// That of version 1, and the legacy one.
        Transitional = "transitional",
        /// The legacy one only.
        Legacy = "legacy",
    }
}

/// A MegaRAID SAS board.
#[derive(Clone, Debug, PartialEq)]
pub struct Megasas {
    /// The board.
    pub model: MegasasModel,
    /// How disks are presented.
    pub mode: MegasasMode,
    /// When a write to a volume completes.
    pub write_policy: WritePolicy,
    /// Serial number of the board; `None` makes one from the HBA's `id`.
    pub serial: Option<String>,
    /// SAS address of the board; `None` makes one from the HBA's `id`.
    pub sas_address: Option<u64>,
    /// Where the board's events and settings are kept.
    pub event_log: Option<PathBuf>,
    /// Cases in which it answers as QEMU's board does.
    pub qemu_answers: Vec<Difference>,
}

named! {
    /// `hba.type` as it is written.
    HbaType {
        /// [`Controller::VirtioScsi`]
        VirtioScsi = "virtio-scsi",
        /// [`Controller::Megasas`]
        Megasas = "megasas",
        /// [`Controller::VhostScsi`]
        VhostScsi = "vhost-scsi",
    }
}

named! {
    /// A MegaRAID SAS board.
    MegasasModel {
        /// Second generation (SAS2108 family).
        Gen2 = "gen2",
        /// First generation (SAS1078).
        Sas1078 = "1078",
    }
}

named! {
    /// How a MegaRAID SAS board presents its disks.
    MegasasMode {
        /// Each as a RAID volume.
        Raid = "raid",
        /// Each as itself.
        Jbod = "jbod",
    }
}

named! {
    /// When a write to a volume of a MegaRAID SAS board completes.
    WritePolicy {
        /// When it is stable.
        WriteThrough = "write-through",
        /// When the host has it.
        WriteBack = "write-back",
    }
}

/// `[[hba.lun]]`: a logical unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Lun {
    /// Target number on the HBA.
    pub target: u8,
    /// Logical unit number at the target.
    pub lun: u16,
    /// What it is.
    pub device: Device,
}

/// The kind of a logical unit.
#[derive(Clone, Debug, PartialEq)]
pub enum Device {
    /// An emulated disk.
    Disk(Disk),
    /// An emulated CD drive.
    Cd(Cd),
    /// A SCSI device of the host, every command passed through (`/dev/sg*`).
    Generic(HostDevice),
    /// A SCSI disk of the host: reads and writes by its block device, every other command passed through.
    Block(HostDevice),
}

/// A SCSI device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Which one.
    pub place: HostPlace,
    /// What the guest may do to it.
    pub allow: Allow,
    /// Others may use it as well.
    pub shared: bool,
    /// Data goes through memory of the process, so that commands can be abandoned while the device does not answer.
    pub bounce: bool,
}

/// How a device of the host is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPlace {
    /// By its node, or a link to one.
    Path(PathBuf),
    /// By its name: NAA or EUI-64, in hexadecimal digits.
    Wwn(String),
}

impl fmt::Display for HostPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Wwn(name) => write!(f, "wwn {name}"),
        }
    }
}

named! {
    /// What a guest may do to a device of the host.
    Allow {
        /// Everything.
        All = "all",
        /// What reads and writes, and nothing that others would meet who share the device's array.
        NoManagement = "no-management",
        /// What reads.
        ReadOnly = "read-only",
    }
}

impl Device {
    /// What of it is an image: a disk, or the disc in a CD drive.
    pub fn image(&self) -> Option<&Disk> {
        match self {
            Self::Disk(disk) => Some(disk),
            Self::Cd(cd) => cd.disc.as_ref(),
            Self::Generic(_) | Self::Block(_) => None,
        }
    }

    /// Its type as it is written.
    pub fn kind(&self) -> LunType {
        match self {
            Self::Disk(_) => LunType::Disk,
            Self::Cd(_) => LunType::Cd,
            Self::Generic(_) => LunType::Generic,
            Self::Block(_) => LunType::Block,
        }
    }

    /// The device of the host that it is, if it is one.
    pub fn host(&self) -> Option<&HostDevice> {
        match self {
            Self::Generic(host) | Self::Block(host) => Some(host),
            Self::Disk(_) | Self::Cd(_) => None,
        }
    }
}

named! {
    /// `hba.lun.type` as it is written.
    LunType {
        /// [`Device::Disk`]
        Disk = "disk",
        /// [`Device::Cd`]
        Cd = "cd",
        /// [`Device::Generic`]
        Generic = "generic",
        /// [`Device::Block`]
        Block = "block",
    }
}

/// An emulated disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Disk {
    /// Image file or block device.
    pub image: PathBuf,
    /// Format of the image.
    pub format: Format,
    /// Which backing files it may have.
    pub backing: Backing,
    /// How the host caches it.
    pub cache: Cache,
    /// Transfers go through memory of the process, so that they can be abandoned while the host does not answer.
    pub bounce: bool,
    /// The guest may not write.
    pub read_only: bool,
    /// What INQUIRY tells.
    pub identity: Identity,
    /// Logical block size in bytes: 512 or 4096.
    pub block_size: u32,
    /// Physical block size in bytes, a power of two not below [`Self::block_size`]; `None` to follow the image.
    pub physical_block_size: Option<u32>,
    /// Medium rotation rate (SBC-4, 6.6.2): 0 not reported, 1 solid state, else revolutions per minute.
    pub rotation_rate: u16,
    /// UNMAP gives space back to the host.
    pub discard: bool,
    /// What happens when the host has no space left.
    pub on_no_space: NoSpace,
    /// Limits of rate.
    pub throttle: Option<Throttle>,
    /// Protection information, and where it is kept.
    pub protection: Option<Protection>,
}

/// Protection information of a disk (SBC-4, 4.21).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protection {
    /// Type 3 instead of type 1: reference tags belong to the guest.
    pub type_3: bool,
    /// The file with eight bytes for each logical block; made when it is not there.
    pub image: PathBuf,
}

/// Limits of rate of a disk. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttle {
    /// Operations in a second.
    pub iops: Option<u64>,
    /// Reads in a second.
    pub iops_read: Option<u64>,
    /// Writes in a second.
    pub iops_write: Option<u64>,
    /// Bytes in a second.
    pub bps: Option<u64>,
    /// Bytes read in a second.
    pub bps_read: Option<u64>,
    /// Bytes written in a second.
    pub bps_write: Option<u64>,
    /// After a pause, what so many seconds allow may come at once; `None` is a tenth of a second.
    pub burst_seconds: Option<u64>,
}

/// An emulated CD drive.
#[derive(Clone, Debug, PartialEq)]
pub struct Cd {
    /// The disc, as a disk that may not be written; `None` for an empty drive.
    pub disc: Option<Disk>,
    /// What INQUIRY tells.
    pub identity: Identity,
}

/// What a logical unit tells about itself. `None` leaves the SCSI layer's own value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identity {
    /// T10 VENDOR IDENTIFICATION, up to 8 printable ASCII characters.
    pub vendor: Option<String>,
    /// PRODUCT IDENTIFICATION, up to 16.
    pub product: Option<String>,
    /// PRODUCT REVISION LEVEL, up to 4.
    pub revision: Option<String>,
    /// PRODUCT SERIAL NUMBER, up to 36.
    pub serial: Option<String>,
    /// World wide name: an NAA designator of 8 bytes.
    pub wwn: Option<u64>,
}

named! {
    /// What happens to a write that finds no space on the host.
    NoSpace {
        /// The guest gets the error.
        Report = "report",
        /// The machine is paused until there is space.
        Pause = "pause",
    }
}

named! {
    /// Format of an image.
    Format {
        /// The bytes of the disk.
        Raw = "raw",
        /// QEMU's format with snapshots, backing files and allocation on demand.
        Qcow2 = "qcow2",
    }
}

named! {
    /// How the host caches an image: the modes of QEMU.
    Cache {
        /// Past the host's page cache (`O_DIRECT`); flushes reach the disk.
        None = "none",
        /// Through the page cache; flushes reach the disk.
        Writeback = "writeback",
        /// Through the page cache; each write is stable when it completes.
        Writethrough = "writethrough",
        /// Past the page cache; each write is stable when it completes.
        Directsync = "directsync",
        /// Through the page cache; flushes are ignored.
        Unsafe = "unsafe",
    }
}

named! {
    /// `hba.lun.discard` as it is written, where it is not a boolean.
    Discard {
        /// UNMAP is not offered.
        Ignore = "ignore",
        /// UNMAP gives space back to the host.
        Unmap = "unmap",
    }
}

impl Cache {
    /// Whether transfers go past the host's page cache (`O_DIRECT`).
    pub fn direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }
}
