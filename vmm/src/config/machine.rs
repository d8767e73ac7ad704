//! `[vm]`, `[boot]` and `[serial]`: from the sections of the file to the checked types.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::Errors;
use super::host::{self, Host};
use super::section::Section;
use super::types::{Boot, BootDevice, Controller, Hba, Restart, RtcBase, Serial, SerialMode, Uuid, Vm};
use super::{size, smbios, spell, volumes};

/// How long the end of the process waits for the host: less than service managers wait.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// Size in bytes of the pages that guest memory is made of.
const PAGE: u64 = 4 << 10;
/// Least guest memory in bytes.
const LEAST_MEMORY: u64 = boot::layout::MIN_RAM;
/// Size in bytes of the huge pages that `hugepages = true` means.
const HUGE_PAGE: u64 = 2 << 20;
/// Longest path of a UNIX socket in bytes (unix(7)), its NUL not counted.
const LONGEST_SOCKET: usize = 107;
/// Longest name of a file of fw_cfg.
const LONGEST_FW_CFG: usize = devices::platform::fw_cfg::MAX_NAME;

/// Reads `[vm]`. The name of the file `file` is the default for the machine's.
pub(super) fn vm(section: &Section<'_>, file: &Path, host: &Host, errors: &mut Errors) -> Option<Vm> {
    let named = |key| section.text(key);
    let restart = |key| named(key).and_then(Restart::named).unwrap_or(Restart::Restart);
    let huge_pages = huge_pages(section, host, errors);
    let memory = memory(section, huge_pages, host, errors);
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    Some(Vm {
        name: named("name").map(str::to_owned).or(stem).unwrap_or_else(|| "vm".into()),
        cpus: section.integer("cpus").map_or(Some(1), |cpus| u8::try_from(cpus).ok())?,
        memory: memory?,
        uuid: section.wide("uuid").map(|uuid| Uuid(uuid.to_be_bytes())),
        huge_pages,
        shared_memory: section.boolean("shared_memory").unwrap_or(false),
        hyperv: section.boolean("hyperv").unwrap_or(false),
        rtc: named("rtc").and_then(RtcBase::named).unwrap_or(RtcBase::Utc),
        smbios: smbios::smbios(section, errors),
        on_reset: restart("on_reset"),
        on_crash: restart("on_crash"),
        shutdown_timeout: section.integer("shutdown_timeout").map_or(SHUTDOWN_TIMEOUT, Duration::from_secs),
    })
}

fn memory(section: &Section<'_>, huge_pages: Option<u64>, host: &Host, errors: &mut Errors) -> Option<u64> {
    section.require("memory", "the size of guest memory such as \"1GiB\"", errors);
    let memory = section.integer("memory")?;
    let page = huge_pages.unwrap_or(PAGE);
    if memory < LEAST_MEMORY || !memory.is_multiple_of(page) {
        let page = size::show(page);
        section.refuse("memory", &format!("expected a multiple of {page}, at least 4MiB"), errors);
        return None;
    }
    if let Some(most) = host.memory.filter(|most| memory > *most) {
        let hint = format!("expected at most the {} of memory and swap that this host has", size::show(most));
        section.refuse("memory", &hint, errors);
        return None;
    }
    let free = host.huge_pages.iter().find(|(size, _)| Some(*size) == huge_pages).map(|(_, free)| *free);
    if let Some(free) = free.filter(|free| memory / page > *free) {
        let hint = format!(
            "but this host has free pages of {}: {free}, needed: {}; raise {}",
            size::show(page),
            memory / page,
            host::huge_page_pool(page)
        );
        section.refuse("hugepages", &hint, errors);
    }
    Some(memory)
}

fn huge_pages(section: &Section<'_>, host: &Host, errors: &mut Errors) -> Option<u64> {
    let wanted = match section.boolean("hugepages") {
        Some(true) => HUGE_PAGE,
        Some(false) => return None,
        None => section.integer("hugepages")?,
    };
    if !host.huge_pages.iter().any(|(size, _)| *size == wanted) {
        let sizes: Vec<String> = host.huge_pages.iter().map(|(bytes, _)| size::show(*bytes)).collect();
        let sizes: Vec<&str> = sizes.iter().map(String::as_str).collect();
        let hint = match sizes.is_empty() {
            true => "but this host has no huge pages".to_owned(),
            false => format!("expected a size of this host: {}", spell::any_of(&sizes, '"')),
        };
        section.refuse("hugepages", &hint, errors);
        return None;
    }
    Some(wanted)
}

/// The path that `key` gives, against the directory of the configuration file.
pub(super) fn path(section: &Section<'_>, key: &str, directory: &Path) -> Option<PathBuf> {
    section.text(key).map(|path| directory.join(path))
}

/// Reads `[control]`: the socket, if there is to be one.
pub(super) fn control(section: &Section<'_>, directory: &Path, errors: &mut Errors) -> Option<PathBuf> {
    let path = path(section, "path", directory)?;
    if let Err(reason) = host::check_creatable(&path, "socket") {
        section.reject("path", &reason, errors);
    }
    if path.as_os_str().len() > LONGEST_SOCKET {
        section.reject("path", &format!("expected at most {LONGEST_SOCKET} bytes for a socket"), errors);
    }
    Some(path)
}

/// Reads `[boot]`. Boot devices are looked up among `hbas` if those could be read.
pub(super) fn boot(
    section: &Section<'_>,
    directory: &Path,
    hbas: Option<&[Hba]>,
    errors: &mut Errors,
) -> Option<Boot> {
    let mut file = |key| {
        let path = path(section, key, directory)?;
        if let Err(reason) = host::check_file(&path) {
            section.reject(key, &reason, errors);
        }
        Some(path)
    };
    let (kernel, initrd, firmware, vars) = (file("kernel"), file("initrd"), file("firmware"), file("vars"));
    if section.written("firmware").is_none() {
        section.require("kernel", "the Linux kernel to boot", errors);
        section.meaningless(&["vars", "order", "fw_cfg", "option_roms"], "without `firmware`", errors);
        let cmdline = section.text("cmdline").unwrap_or_default().to_owned();
        return kernel.map(|kernel| Boot::Kernel { kernel, initrd, cmdline });
    }
    section.meaningless(&["kernel", "initrd", "cmdline"], "with `firmware`, which finds them itself", errors);
    let order = section.strings("order").iter().filter_map(|text| {
        let found = boot_device(text, hbas);
        if let Err(reason) = &found {
            section.reject("order", reason, errors);
        }
        let warning = found.as_ref().ok().and_then(|device| volumes::warning(text, device, hbas?));
        warning.into_iter().for_each(|line| tracing::warn!("{line}"));
        found.ok()
    });
    let order = order.collect();
    let fw_cfg = section.texts("fw_cfg").to_vec();
    for (name, _) in fw_cfg.iter().filter(|(name, _)| !is_fw_cfg_name(name)) {
        let reason =
            format!("\"{name}\" is no name, expected \"opt/\" and up to {LONGEST_FW_CFG} characters in all");
        section.reject("fw_cfg", &reason, errors);
    }
    let option_roms = option_roms(section, directory, errors);
    firmware.map(|firmware| Boot::Firmware { firmware, vars, order, fw_cfg, option_roms })
}

/// Reads `boot.option_roms`: names of fw_cfg that SeaBIOS looks for, and files.
fn option_roms(section: &Section<'_>, directory: &Path, errors: &mut Errors) -> Vec<(String, PathBuf)> {
    let mut roms = Vec::new();
    for (name, path) in section.texts("option_roms") {
        if !is_rom_name(name) {
            let reason = format!(
                "\"{name}\" is no name, expected \"genroms/...\", \"vgaroms/...\" or \"pciVVVV,DDDD.rom\" \
                 with hexadecimal digits in lower case, and up to {LONGEST_FW_CFG} characters"
            );
            section.reject("option_roms", &reason, errors);
        }
        let path = directory.join(path);
        if let Err(reason) = host::check_file(&path) {
            section.reject("option_roms", &reason, errors);
        }
        roms.push((name.clone(), path));
    }
    roms
}

/// ROMs of no device, of the display, or of the PCI device with this vendor and device, four hexadecimal digits each.
fn is_rom_name(name: &str) -> bool {
    let digits = |text: &str| text.len() == 4 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let free = ["genroms/", "vgaroms/"].into_iter().find_map(|start| name.strip_prefix(start));
    let free =
        free.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| matches!(byte, b'!'..=b'~')));
    let pci = name.strip_prefix("pci").and_then(|rest| rest.strip_suffix(".rom")?.split_once(','));
    let pci = pci.is_some_and(|(vendor, device)| digits(vendor) && digits(device));
    (free || pci) && name.len() <= LONGEST_FW_CFG
}

/// Names below `opt/` are the user's; all others belong to the machine.
fn is_fw_cfg_name(name: &str) -> bool {
    let rest = name.strip_prefix("opt/").filter(|rest| !rest.is_empty());
    rest.is_some() && name.len() <= LONGEST_FW_CFG && name.bytes().all(|byte| matches!(byte, b'!'..=b'~'))
}

/// Reads `boot.debug_log`.
pub(super) fn debug_log(section: &Section<'_>, directory: &Path, errors: &mut Errors) -> Option<PathBuf> {
    let path = path(section, "debug_log", directory)?;
    if let Err(reason) = host::check_creatable(&path, "file") {
        section.reject("debug_log", &reason, errors);
    }
    Some(path)
}

/// Reads `hba:target[:lun]`, which must be there.
fn boot_device(text: &str, hbas: Option<&[Hba]>) -> Result<BootDevice, String> {
    let mut parts = text.split(':');
    let hba = parts.next().unwrap_or_default().to_owned();
    let target = parts.next().and_then(|target| target.parse().ok());
    let lun = parts.next().map_or(Some(0), |lun| lun.parse().ok());
    let (Some(target), Some(lun), None) = (target, lun, parts.next()) else {
        return Err(format!("\"{text}\" is no device, expected \"hba:target\" or \"hba:target:lun\""));
    };
    let device = BootDevice { hba, target, lun };
    let Some(hbas) = hbas else { return Ok(device) };
    let Some(adapter) = hbas.iter().find(|adapter| adapter.id == device.hba) else {
        let ids: Vec<&str> = hbas.iter().map(|adapter| adapter.id.as_str()).collect();
        return Err(match ids.is_empty() {
            true => format!("\"{text}\" names no [[hba]]: there is none"),
            false => format!("\"{text}\" names no [[hba]], expected {}", spell::any_of(&ids, '`')),
        });
    };
    // What is behind a virtual port, or a target of the kernel, is not known yet.
    let may_come = adapter.virtual_port().is_some() || matches!(adapter.controller, Controller::VhostScsi(_));
    if !may_come && !adapter.luns.iter().any(|unit| unit.target == target && unit.lun == lun) {
        return Err(format!("\"{text}\" names no [[hba.lun]] of `{}`", device.hba));
    }
    Ok(device)
}

/// Reads `[serial]`.
pub(super) fn serial(section: &Section<'_>, directory: &Path, errors: &mut Errors) -> Option<Serial> {
    let mode = match section.written("mode") {
        Some(_) => SerialMode::named(section.text("mode")?)?,
        None => SerialMode::Stdio,
    };
    let with = format!("with mode = \"{}\"", mode.name());
    let path = path(section, "path", directory);
    let mut needed = |replaced: &str, expected: &str| {
        section.require("path", expected, errors);
        let path = path.clone()?;
        if let Err(reason) = host::check_creatable(&path, replaced) {
            section.reject("path", &reason, errors);
        }
        Some(path)
    };
    match mode {
        SerialMode::File => needed("file", "the file that takes the output").map(Serial::File),
        SerialMode::Socket => {
            let path = needed("socket", "the UNIX socket to listen on")?;
            if path.as_os_str().len() > LONGEST_SOCKET {
                section.reject(
                    "path",
                    &format!("expected at most {LONGEST_SOCKET} bytes for a socket"),
                    errors,
                );
            }
            Some(Serial::Socket(path))
        }
        SerialMode::Pty => Some(Serial::Pty(path)),
        SerialMode::Stdio | SerialMode::Off => {
            section.meaningless(&["path"], &with, errors);
            Some(if mode == SerialMode::Off { Serial::Off } else { Serial::Stdio })
        }
    }
}
