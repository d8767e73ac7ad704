//! The format of the file as one table: every key, what it takes, and whether this version builds it.
//!
//! This is the only place that says what is supported. A key, a value or a table that is [`NotYet`](Status::NotYet)
//! is parsed like any other and then refused by name, never ignored.

use devices::storage::Backing;

use super::types::{
    Allow, Cache, Discard, Format, HbaType, LunType, MegasasMode, MegasasModel, NoSpace, Passthrough,
    Polling, Restart, RtcBase, Sandbox, SerialMode, VirtioInterface, WritePolicy,
};

/// Whether this version builds what a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It does.
    Built,
    /// It will: refused with "is not supported yet".
    NotYet,
}

use Status::{Built, NotYet};

/// One key of a table.
#[derive(Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Whether it is supported.
    pub status: Status,
}

/// What a key takes.
#[derive(Debug)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// An integer within these bounds.
    Integer(u64, u64),
    /// Bytes as an integer, or a string with a binary unit.
    Size,
    /// `true`, `false`, or a size.
    BoolOrSize,
    /// Printable ASCII, not empty and at most so many characters.
    Ascii(usize),
    /// Text of at least so many characters, none of them a control character.
    Text(usize),
    /// One of these integers.
    OneOf(&'static [u64]),
    /// A UUID.
    Uuid,
    /// A world wide name of 16 hexadecimal digits.
    Wwn,
    /// A World Wide Name of a port or its node, in all forms that people write.
    PortName,
    /// A path, relative to the file.
    Path,
    /// One of a set of names.
    Choice(Choices),
    /// `true`, `false`, or one of a set of names.
    BoolOrChoice(Choices),
    /// One of a set of names, or a list of strings.
    ChoiceOrStrings(Choices),
    /// A list of strings.
    Strings,
    /// A table of strings whose keys are free.
    Texts,
    /// `[key]`
    Table(&'static [Key]),
    /// `[[key]]`
    Tables(&'static [Key]),
    /// A table of later versions, which this one does not look into.
    Later,
}

/// The names that a key takes.
#[derive(Debug)]
pub struct Choices {
    /// All of them.
    pub names: &'static [&'static str],
    /// Those that are not supported yet.
    pub not_yet: &'static [&'static str],
}

const fn key(name: &'static str, kind: Kind, status: Status) -> Key {
    Key { name, kind, status }
}

const fn choice(names: &'static [&'static str], not_yet: &'static [&'static str]) -> Kind {
    Kind::Choice(Choices { names, not_yet })
}

/// Operations in a second at most, as in QEMU.
const RATE_MAX: u64 = 1_000_000_000_000_000;

/// The tables of the file.
pub const ROOT: &[Key] = &[
    key("vm", Kind::Table(VM), Built),
    key("boot", Kind::Table(BOOT), Built),
    key("serial", Kind::Table(SERIAL), Built),
    key("hba", Kind::Tables(HBA), Built),
    key("net", Kind::Later, NotYet),
    key("display", Kind::Later, NotYet),
    key("control", Kind::Table(CONTROL), Built),
    key("security", Kind::Table(SECURITY), Built),
];

const CONTROL: &[Key] = &[key("path", Kind::Path, Built)];

const SECURITY: &[Key] = &[
    key("sandbox", choice(Sandbox::NAMES, &[]), Built),
    key("directories", Kind::Strings, Built),
    key("readonly_directories", Kind::Strings, Built),
    key("host_devices", Kind::Bool, Built),
    key("user", Kind::Text(1), Built),
];

const VM: &[Key] = &[
    key("name", Kind::Text(1), Built),
    key("cpus", Kind::Integer(1, 255), Built),
    key("memory", Kind::Size, Built),
    key("uuid", Kind::Uuid, Built),
    key("hugepages", Kind::BoolOrSize, Built),
    key("shared_memory", Kind::Bool, Built),
    key("hyperv", Kind::Bool, NotYet),
    key("rtc", choice(RtcBase::NAMES, &[]), Built),
    key("smbios", Kind::Table(SMBIOS), Built),
    key("on_reset", choice(Restart::NAMES, &[]), Built),
    key("on_crash", choice(Restart::NAMES, &[]), Built),
    key("shutdown_timeout", Kind::Integer(1, 3600), Built),
];

const SMBIOS: &[Key] = &[
    key("bios", Kind::Table(SMBIOS_BIOS), Built),
    key("system", Kind::Table(SMBIOS_SYSTEM), Built),
    key("chassis", Kind::Table(SMBIOS_CHASSIS), Built),
    key("processor", Kind::Table(SMBIOS_PROCESSOR), Built),
    key("memory", Kind::Table(SMBIOS_MEMORY), Built),
];

/// A text of SMBIOS: tools expect no more (DSP0134, 6.1.3).
const SMBIOS_TEXT: Kind = Kind::Ascii(64);

const SMBIOS_BIOS: &[Key] =
    &[key("vendor", SMBIOS_TEXT, Built), key("version", SMBIOS_TEXT, Built), key("date", SMBIOS_TEXT, Built)];

const SMBIOS_SYSTEM: &[Key] = &[
    key("manufacturer", SMBIOS_TEXT, Built),
    key("product", SMBIOS_TEXT, Built),
    key("version", SMBIOS_TEXT, Built),
    key("serial", SMBIOS_TEXT, Built),
    key("sku", SMBIOS_TEXT, Built),
    key("family", SMBIOS_TEXT, Built),
];

const SMBIOS_CHASSIS: &[Key] = &[
    key("manufacturer", SMBIOS_TEXT, Built),
    key("version", SMBIOS_TEXT, Built),
    key("serial", SMBIOS_TEXT, Built),
    key("asset", SMBIOS_TEXT, Built),
    key("sku", SMBIOS_TEXT, Built),
];

const SMBIOS_PROCESSOR: &[Key] = &[
    key("manufacturer", SMBIOS_TEXT, Built),
    key("version", SMBIOS_TEXT, Built),
    key("serial", SMBIOS_TEXT, Built),
    key("asset", SMBIOS_TEXT, Built),
    key("part", SMBIOS_TEXT, Built),
];

const SMBIOS_MEMORY: &[Key] = &[
    key("manufacturer", SMBIOS_TEXT, Built),
    key("serial", SMBIOS_TEXT, Built),
    key("asset", SMBIOS_TEXT, Built),
    key("part", SMBIOS_TEXT, Built),
];

const BOOT: &[Key] = &[
    key("kernel", Kind::Path, Built),
    key("initrd", Kind::Path, Built),
    key("cmdline", Kind::Text(0), Built),
    key("firmware", Kind::Path, Built),
    key("vars", Kind::Path, NotYet),
    key("order", Kind::Strings, Built),
    key("fw_cfg", Kind::Texts, Built),
    key("option_roms", Kind::Texts, Built),
    key("debug_log", Kind::Path, Built),
];

const SERIAL: &[Key] = &[key("mode", choice(SerialMode::NAMES, &[]), Built), key("path", Kind::Path, Built)];

const HBA: &[Key] = &[
    key("id", Kind::Ascii(32), Built),
    key("type", choice(HbaType::NAMES, &[]), Built),
    key("wwpn", Kind::Ascii(223), Built),
    key("queues", Kind::Integer(1, 255), Built),
    key("queue_size", Kind::OneOf(&[4, 8, 16, 32, 64, 128, 256, 512, 1024]), Built),
    key("interface", choice(VirtioInterface::NAMES, &[]), Built),
    key("io_threads", Kind::Integer(1, 64), Built),
    key("io_cpus", Kind::Text(1), Built),
    key("polling", choice(Polling::NAMES, &[]), Built),
    key("polling_us", Kind::Integer(1, 1_000_000), Built),
    key("model", choice(MegasasModel::NAMES, &[]), Built),
    key("mode", choice(MegasasMode::NAMES, &[]), Built),
    key("write_policy", choice(WritePolicy::NAMES, &[]), Built),
    key("serial", Kind::Ascii(31), Built),
    key("sas_address", Kind::Wwn, Built),
    key("event_log", Kind::Path, Built),
    key("qemu_answers", Kind::Strings, Built),
    key("lun", Kind::Tables(LUN), Built),
    key("fc", Kind::Table(FC), Built),
];

const FC: &[Key] = &[
    key("emulated", Kind::Bool, Built),
    key("ports", Kind::Integer(1, 255), Built),
    key("parent", Kind::Text(1), Built),
    key("parent_wwnn", Kind::PortName, Built),
    key("parent_wwpn", Kind::PortName, Built),
    key("parent_fabric", Kind::PortName, Built),
    key("wwnn", Kind::PortName, Built),
    key("wwpn", Kind::PortName, Built),
    key("secondary_wwnn", Kind::PortName, Built),
    key("secondary_wwpn", Kind::PortName, Built),
    key("vports", Kind::Integer(1, 64), Built),
    key("vport_names", Kind::Text(1), Built),
    key("any_oui", Kind::Bool, Built),
    // The most that scsi_transport_fc of Linux has ("infinity"), and SCSI_DEVICE_BLOCK_MAX_TIMEOUT.
    key("dev_loss_tmo", Kind::Integer(1, 0x7fff_ffff), Built),
    key("fast_io_fail_tmo", Kind::Integer(0, 600), Built),
    key("luns", Kind::Text(1), Built),
    key("passthrough", choice(Passthrough::NAMES, &[]), Built),
    key("allow", choice(Allow::NAMES, &[]), Built),
    key("shared", Kind::Bool, Built),
    key("bounce", Kind::Bool, Built),
    key("timeout", Kind::Integer(1, 3600), Built),
];

const LUN: &[Key] = &[
    key("target", Kind::Integer(0, 255), Built),
    key("lun", Kind::Integer(0, 16383), Built),
    key("type", choice(LunType::NAMES, &[]), Built),
    key("image", Kind::Path, Built),
    key("format", choice(Format::NAMES, &[]), Built),
    key("backing", Kind::ChoiceOrStrings(Choices { names: Backing::NAMES, not_yet: &[] }), Built),
    key("cache", choice(Cache::NAMES, &[]), Built),
    key("bounce", Kind::Bool, Built),
    key("readonly", Kind::Bool, Built),
    key("serial", Kind::Ascii(36), Built),
    key("wwn", Kind::Wwn, Built),
    key("vendor", Kind::Ascii(8), Built),
    key("product", Kind::Ascii(16), Built),
    key("revision", Kind::Ascii(4), Built),
    key("block_size", Kind::OneOf(&[512, 4096]), Built),
    key("physical_block_size", Kind::Integer(512, 2 << 20), Built),
    key("rotation_rate", Kind::Integer(0, 65534), Built),
    key("discard", Kind::BoolOrChoice(Choices { names: Discard::NAMES, not_yet: &[] }), Built),
    key("on_no_space", choice(NoSpace::NAMES, &[]), Built),
    key("throttle", Kind::Table(THROTTLE), Built),
    key("protection", Kind::OneOf(&[0, 1, 3]), Built),
    key("protection_image", Kind::Path, Built),
    key("allow", choice(Allow::NAMES, &[]), Built),
    key("shared", Kind::Bool, Built),
];

const THROTTLE: &[Key] = &[
    key("iops", Kind::Integer(1, RATE_MAX), Built),
    key("iops_read", Kind::Integer(1, RATE_MAX), Built),
    key("iops_write", Kind::Integer(1, RATE_MAX), Built),
    key("bps", Kind::Size, Built),
    key("bps_read", Kind::Size, Built),
    key("bps_write", Kind::Size, Built),
    key("burst_seconds", Kind::Integer(1, 3600), Built),
];
