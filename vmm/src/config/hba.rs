//! `[[hba]]` and `[[hba.lun]]`: from the sections of the file to the checked types.

use std::path::Path;

use devices::storage::fdset;
use hba_megasas::Difference;

use super::error::{Errors, Origin};
use super::fc;
use super::host;
use super::image::ImageOf;
use super::machine::path;
use super::section::Section;
use super::types::{
    Allow, Cd, Controller, Device, Discard, Disk, Format, Hba, HbaType, HostDevice, HostPlace, Identity,
    IoThreads, Lun, LunType, Megasas, MegasasMode, MegasasModel, NoSpace, Polling, Protection, Throttle,
    VhostScsi, VirtioInterface, VirtioScsi, WritePolicy,
};
use crate::kvm::MAX_VECTORS;

/// CPUs of a host at most, as far as they can be named here.
const CPUS: usize = 1024;
/// Most targets of a MegaRAID SAS board: its firmware interface has 64 logical drives.
const MEGASAS_TARGETS: u64 = 64;
/// Keys of a MegaRAID SAS board only.
const MEGASAS_KEYS: [&str; 7] =
    ["model", "mode", "write_policy", "serial", "sas_address", "event_log", "qemu_answers"];
/// Keys of a virtio-scsi adapter only.
const VIRTIO_KEYS: [&str; 4] = ["queues", "queue_size", "interface", "io_threads"];
/// Keys of an adapter that the host's kernel serves only.
const VHOST_KEYS: [&str; 1] = ["wwpn"];
/// Descriptors of a queue of the kernel's, where nothing else is said: before Linux 6.15 each takes some 150 KiB of its memory.
const VHOST_QUEUE_SIZE: u16 = 128;
/// Keys of adapters that threads of this process serve only.
const THREAD_KEYS: [&str; 5] = ["interface", "io_threads", "io_cpus", "polling", "polling_us"];
/// What names of the kernel's targets begin with (vhost_scsi_make_tport, drivers/vhost/scsi.c).
const TARGET_NAMES: [&str; 3] = ["naa.", "fc.", "iqn."];
/// Keys of a device of the host only.
const HOST_KEYS: [&str; 2] = ["allow", "shared"];
/// Targets of a virtio-scsi device: one byte of its LUN field (virtio 1.3, 5.6.6.1).
const VIRTIO_TARGETS: u64 = 256;
/// Interrupt vectors of a virtio-scsi adapter besides one for each request queue: for the two other queues, and for changes of
/// the configuration.
const VIRTIO_VECTORS: usize = 3;
/// Interrupt vectors of a MegaRAID SAS board: those of MSI-X, and that of MSI.
const MEGASAS_VECTORS: usize = 16;

/// Reads every `[[hba]]` of the file, for a machine with `cpus` vCPUs.
pub(super) fn hbas(root: &Section<'_>, directory: &Path, cpus: u8, errors: &mut Errors) -> Option<Vec<Hba>> {
    let sections = root.sections("hba");
    let ids = ids(sections, errors);
    let read: Vec<Option<Hba>> =
        sections.iter().zip(ids).map(|(section, id)| hba(section, id, directory, cpus, errors)).collect();
    identities(sections, directory, errors);
    let hbas: Vec<Hba> = read.into_iter().collect::<Option<_>>()?;
    check_vectors(sections, &hbas, errors);
    Some(hbas)
}

/// Refuses the first adapter for whose interrupts the hypervisor has no routes any more.
fn check_vectors(sections: &[Section<'_>], hbas: &[Hba], errors: &mut Errors) {
    let mut sum = 0;
    for (section, hba) in sections.iter().zip(hbas) {
        sum += match &hba.controller {
            Controller::VirtioScsi(VirtioScsi { queues, .. })
            | Controller::VhostScsi(VhostScsi { queues, .. }) => usize::from(*queues) + VIRTIO_VECTORS,
            Controller::Megasas(_) => MEGASAS_VECTORS,
        };
        if sum > MAX_VECTORS {
            let reason = format!(
                "with this adapter the machine has {sum} interrupt vectors, {VIRTIO_VECTORS} and one for each request \
                 queue of each virtio-scsi adapter, but KVM has {MAX_VECTORS}; expected fewer queues or adapters"
            );
            return section.reject("queues", &reason, errors);
        }
    }
}

/// No two disks of the machine may be called the same, unless they are one file or device on several paths.
fn identities(sections: &[Section<'_>], directory: &Path, errors: &mut Errors) {
    let luns: Vec<_> = sections.iter().flat_map(|hba| hba.sections("lun")).collect();
    for key in ["serial", "wwn"] {
        let value = |lun: &Section<'_>| match key {
            "serial" => lun.text(key).map(str::to_owned),
            _ => lun.wide(key).map(|wwn| format!("{wwn:x}")),
        };
        let medium_of =
            |lun: &Section<'_>| path(lun, "image", directory).and_then(|image| host::medium(&image));
        for (index, lun) in luns.iter().enumerate().filter(|(_, lun)| value(lun).is_some()) {
            let before = luns.iter().take(index);
            let same = before.filter(|other| value(other) == value(lun)).find(|other| {
                let medium = medium_of(lun);
                medium.is_none() || medium != medium_of(other)
            });
            if let Some(other) = same {
                let hint = format!("which the [[hba.lun]] {} has already", place(&other.origin(key)));
                lun.refuse(key, &hint, errors);
            }
        }
    }
}

/// The identity of each HBA: as written, else `hba0`, `hba1` and so on.
fn ids(sections: &[Section<'_>], errors: &mut Errors) -> Vec<String> {
    let mut ids: Vec<Option<String>> = Vec::new();
    for section in sections {
        let id = section.text("id");
        if let Some(id) = id {
            if !id.starts_with(|first: char| first.is_ascii_alphabetic())
                || !id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
            {
                section.refuse("id", "expected a letter followed by letters, digits, `-` and `_`", errors);
            }
            let same = ids.iter().position(|other| other.as_deref() == Some(id));
            if let Some(other) = same.and_then(|same| sections.get(same)) {
                let hint = format!("which the [[hba]] {} has already", place(&other.origin("id")));
                section.refuse("id", &hint, errors);
            }
        }
        ids.push(id.map(str::to_owned));
    }
    let written: Vec<String> = ids.iter().flatten().cloned().collect();
    let mut free = (0_usize..).map(|n| format!("hba{n}")).filter(|id| !written.contains(id));
    ids.into_iter().map(|id| id.or_else(|| free.next()).unwrap_or_default()).collect()
}

/// Where something else was written, for the middle of a sentence.
pub(super) fn place(origin: &Origin) -> String {
    match origin {
        Origin::File => "of the file".into(),
        Origin::Line(line) => format!("of line {line}"),
        Origin::Set(argument) => format!("of --set {argument}"),
        Origin::LogFile(argument) => format!("of --log-file {argument}"),
    }
}

fn hba(section: &Section<'_>, id: String, directory: &Path, cpus: u8, errors: &mut Errors) -> Option<Hba> {
    let kind = match section.written("type") {
        Some(_) => section.text("type").and_then(HbaType::named),
        None => Some(HbaType::VirtioScsi),
    };
    // With an unknown type the logical units are checked against the wider limits.
    let luns = luns(section, kind.unwrap_or(HbaType::VirtioScsi), directory, errors);
    let controller = match kind? {
        HbaType::VirtioScsi => {
            section.meaningless(&MEGASAS_KEYS, "for type = \"virtio-scsi\"", errors);
            section.meaningless(&VHOST_KEYS, "for type = \"virtio-scsi\"", errors);
            let queues = section.integer("queues").map_or(Some(cpus), |queues| u8::try_from(queues).ok())?;
            let default = VirtioScsi::with_queues(queues);
            let queue_size = section.integer("queue_size").and_then(|size| u16::try_from(size).ok());
            let interface = section.text("interface").and_then(VirtioInterface::named);
            Controller::VirtioScsi(VirtioScsi {
                queue_size: queue_size.unwrap_or(default.queue_size),
                interface: interface.unwrap_or(default.interface),
                ..default
            })
        }
        HbaType::Megasas => {
            section.meaningless(&VIRTIO_KEYS, "for type = \"megasas\"", errors);
            section.meaningless(&VHOST_KEYS, "for type = \"megasas\"", errors);
            let luns = luns.as_deref().unwrap_or_default();
            Controller::Megasas(megasas(section, luns, directory, errors))
        }
        HbaType::VhostScsi => Controller::VhostScsi(vhost(section, cpus, errors)?),
    };
    let threads = match &controller {
        // It has little to do, and nothing to look for.
        Controller::VhostScsi(_) => IoThreads { polling: Polling::Off, ..IoThreads::default() },
        _ => threads(section, &controller, errors),
    };
    let fc = fc::fc(section, kind?, errors);
    Some(Hba { id, controller, threads, fc, luns: luns? })
}

fn vhost(section: &Section<'_>, cpus: u8, errors: &mut Errors) -> Option<VhostScsi> {
    for keys in [&MEGASAS_KEYS[..], &THREAD_KEYS] {
        section.meaningless(keys, "for type = \"vhost-scsi\"", errors);
    }
    if let Some(lun) = section.sections("lun").first() {
        let message = "[[hba.lun]] at an [[hba]] with type = \"vhost-scsi\", which has the units of the kernel's target; expected \
                       them at another [[hba]]";
        errors.add(&lun.origin, message);
    }
    section.require("wwpn", "the name of a target in /sys/kernel/config/target/vhost", errors);
    let wwpn = section.text("wwpn")?;
    if !TARGET_NAMES.iter().any(|start| wwpn.len() > start.len() && wwpn.starts_with(start))
        || wwpn.contains(['/', ' '])
    {
        let hint = "expected the name of a target such as \"naa.5001405a1b2c3d4e\"";
        section.refuse("wwpn", hint, errors);
    }
    let queues = section.integer("queues").map_or(Some(cpus), |queues| u8::try_from(queues).ok())?;
    let queue_size = section.integer("queue_size").and_then(|size| u16::try_from(size).ok());
    Some(VhostScsi { wwpn: wwpn.into(), queues, queue_size: queue_size.unwrap_or(VHOST_QUEUE_SIZE) })
}

fn threads(section: &Section<'_>, controller: &Controller, errors: &mut Errors) -> IoThreads {
    let default = IoThreads::default();
    let count = section.integer("io_threads").and_then(|count| u8::try_from(count).ok());
    if let (Controller::VirtioScsi(VirtioScsi { queues, .. }), Some(count)) = (controller, count)
        && count > *queues
    {
        let hint = format!("expected at most one for each of its {queues} queues");
        section.refuse("io_threads", &hint, errors);
    }
    let polling = section.text("polling").and_then(Polling::named).unwrap_or(default.polling);
    if matches!(polling, Polling::Auto | Polling::Off) {
        section.meaningless(&["polling_us"], "without polling = \"adaptive\" or \"fixed\"", errors);
    }
    let cpus = section.text("io_cpus").map_or(Some(Vec::new()), cpu_list);
    if cpus.is_none() {
        section.refuse("io_cpus", "expected CPU numbers up to 1023 such as \"0-3,8\"", errors);
    }
    let polling_us = section.integer("polling_us").and_then(|time| u32::try_from(time).ok());
    IoThreads {
        count: count.unwrap_or(default.count),
        polling,
        polling_us: polling_us.unwrap_or(default.polling_us),
        cpus: cpus.unwrap_or_default(),
    }
}

/// A list of CPUs as the kernel writes it: numbers and ranges, with commas.
fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= CPUS {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

fn megasas(section: &Section<'_>, luns: &[Lun], directory: &Path, errors: &mut Errors) -> Megasas {
    let mode = section.text("mode").and_then(MegasasMode::named).unwrap_or(MegasasMode::Raid);
    let policy = section.text("write_policy").and_then(WritePolicy::named);
    // The guest never flushes a volume: what a qcow2 image has not yet in its tables would be lost with the process. Disks
    // are flushed by guests that can, and "write-back" is for these only.
    let keeps = |lun: &Lun| !matches!(&lun.device, Device::Disk(disk) if disk.format == Format::Qcow2);
    if mode == MegasasMode::Raid && policy == Some(WritePolicy::WriteBack) && !luns.iter().all(keeps) {
        section.refuse("write_policy", "expected \"write-through\" with qcow2 images", errors);
    }
    // SAS addresses are names of NAA 5h.
    if section
        .wide("sas_address")
        .is_some_and(|address| address >> 60 != 5 || address & (u128::MAX >> 68) == 0)
    {
        section.refuse("sas_address", "expected a name that begins with 5 and says more than that", errors);
    }
    let event_log = path(section, "event_log", directory);
    if let Some(Err(reason)) = event_log.as_deref().map(|path| host::check_creatable(path, "file")) {
        section.reject("event_log", &reason, errors);
    }
    let answers = section.strings("qemu_answers").iter().filter_map(|name| {
        let difference = Difference::named(name);
        if difference.is_none() {
            let names: Vec<_> = Difference::ALL.iter().map(|one| format!("\"{}\"", one.name())).collect();
            let reason = format!("\"{name}\" is none of {}", names.join(", "));
            section.reject("qemu_answers", &reason, errors);
        }
        difference
    });
    let qemu_answers = answers.collect();
    Megasas {
        model: section.text("model").and_then(MegasasModel::named).unwrap_or(MegasasModel::Gen2),
        mode,
        write_policy: policy.unwrap_or(WritePolicy::WriteThrough),
        serial: section.text("serial").map(str::to_owned),
        sas_address: section.wide("sas_address").and_then(|address| address.try_into().ok()),
        event_log,
        qemu_answers,
    }
}

/// Warns of what is right, but not for every guest.
pub(super) fn warn(hbas: &[Hba]) {
    for hba in hbas {
        let Controller::Megasas(Megasas { mode: MegasasMode::Raid, .. }) = hba.controller else { continue };
        let lines = hba.luns.iter().filter_map(|lun| volume_warning(&hba.id, lun));
        lines.for_each(|line| tracing::warn!("{line}"));
    }
}

/// What is to be said of a MegaRAID volume that not every guest can read.
pub fn volume_warning(hba: &str, lun: &Lun) -> Option<String> {
    // FreeBSD's mfi counts in MFI_SECTOR_LEN, and SeaBIOS in its own DISK_SECTOR_SIZE.
    let odd = matches!(&lun.device, Device::Disk(disk) if disk.block_size != 512);
    odd.then(|| {
        format!(
            "hba {hba}, target {}: FreeBSD and SeaBIOS take the blocks of a volume for 512 bytes and cannot read one \
             with block_size = 4096",
            lun.target
        )
    })
}

fn luns(section: &Section<'_>, hba: HbaType, directory: &Path, errors: &mut Errors) -> Option<Vec<Lun>> {
    let sections = section.sections("lun");
    let targets = match hba {
        HbaType::VirtioScsi | HbaType::VhostScsi => VIRTIO_TARGETS,
        HbaType::Megasas => MEGASAS_TARGETS,
    };
    let volumes = hba == HbaType::Megasas && section.text("mode") != Some(MegasasMode::Jbod.name());
    let mut taken: Vec<u64> = sections.iter().filter_map(|lun| lun.integer("target")).collect();
    let mut addresses: Vec<(u64, u64)> = Vec::new();
    let mut luns = Vec::new();
    for section in sections {
        let target = match section.integer("target") {
            Some(target) => Some(target),
            None => (0..targets).find(|target| !taken.contains(target)),
        };
        let Some(target) = target.filter(|target| *target < targets) else {
            let hint = format!("expected 0 to {} and no more units than that", targets - 1);
            section.refuse("target", &hint, errors);
            addresses.push((u64::MAX, 0));
            luns.push(None);
            continue;
        };
        taken.push(target);
        let lun = section.integer("lun").unwrap_or(0);
        if hba == HbaType::Megasas && lun != 0 {
            section.refuse("lun", "expected 0: each disk of a megasas HBA is a target", errors);
        }
        let kind = section.text("type").and_then(LunType::named).unwrap_or(LunType::Disk);
        if volumes && kind != LunType::Disk {
            let what = if kind == LunType::Cd { "a CD drive" } else { "a device of the host" };
            let hint = format!(
                "expected a board with mode = \"jbod\", or a virtio-scsi adapter: no volume is made of {what}"
            );
            section.refuse("type", &hint, errors);
        }
        if hba == HbaType::Megasas && section.integer("protection").is_some_and(|kind| kind != 0) {
            section.refuse("protection", "expected 0 on a megasas HBA, whose volumes have none", errors);
        }
        let same = addresses.iter().position(|address| *address == (target, lun));
        if let Some(other) = same.and_then(|same| sections.get(same)) {
            let other = place(&other.origin);
            let message = format!("target {target} lun {lun} is already the [[hba.lun]] {other}");
            errors.add(&section.origin, message);
        }
        addresses.push((target, lun));
        let device = device(section, hba, directory, errors);
        luns.push((|| {
            Some(Lun { target: target.try_into().ok()?, lun: lun.try_into().ok()?, device: device? })
        })());
    }
    luns.into_iter().collect()
}

fn device(section: &Section<'_>, hba: HbaType, directory: &Path, errors: &mut Errors) -> Option<Device> {
    let kind = match section.written("type") {
        Some(_) => LunType::named(section.text("type")?)?,
        None => LunType::Disk,
    };
    let with = format!("for type = \"{}\"", kind.name());
    match kind {
        LunType::Disk => {
            section.meaningless(&HOST_KEYS, &with, errors);
            disk(section, hba, directory, errors).map(Device::Disk)
        }
        LunType::Cd => {
            let keys = [
                "block_size",
                "physical_block_size",
                "rotation_rate",
                "discard",
                "on_no_space",
                "throttle",
                "protection",
                "protection_image",
            ];
            section.meaningless(&keys, &with, errors);
            // What is so may be said.
            if section.boolean("readonly") == Some(false) {
                section.refuse("readonly", "a disc is never written: leave it out, or set true", errors);
            }
            section.meaningless(&HOST_KEYS, &with, errors);
            cd(section, hba, directory, errors).map(Device::Cd)
        }
        LunType::Generic | LunType::Block => {
            let keys = [
                "format",
                "backing",
                "cache",
                "readonly",
                "serial",
                "vendor",
                "product",
                "revision",
                "block_size",
                "physical_block_size",
                "rotation_rate",
                "discard",
                "on_no_space",
                "throttle",
                "protection",
                "protection_image",
            ];
            section.meaningless(&keys, &with, errors);
            let host = host_device(section, hba, directory, errors)?;
            Some(if kind == LunType::Generic { Device::Generic(host) } else { Device::Block(host) })
        }
    }
}

/// What of a device of the host the guest gets. Opening it finds out the rest.
fn host_device(
    section: &Section<'_>,
    hba: HbaType,
    directory: &Path,
    errors: &mut Errors,
) -> Option<HostDevice> {
    let place = match (section.written("image"), section.written("wwn")) {
        (None, Some(_)) => HostPlace::Wwn(section.wide("wwn").map(host::device_name)?),
        (image, wwn) => {
            if image.is_some() && wwn.is_some() {
                section.reject("wwn", "is a second way to find the device; expected it or `image`", errors);
            }
            section.require("image", "a device of the host (or `wwn`, its name)", errors);
            let image = path(section, "image", directory)?;
            if fdset::number(&image).is_some() {
                let reason =
                    "a device of the host is not passed as a descriptor; expected its node, or `wwn`";
                section.reject("image", reason, errors);
            } else if let Err(reason) = host::check_device(&image) {
                section.reject("image", &reason, errors);
            }
            HostPlace::Path(image)
        }
    };
    Some(HostDevice {
        place,
        allow: section.text("allow").and_then(Allow::named).unwrap_or(Allow::NoManagement),
        shared: section.boolean("shared").unwrap_or(false),
        bounce: section.boolean("bounce").unwrap_or(hba == HbaType::Megasas),
    })
}

/// Bytes of a sector of a CD or DVD.
const CD_SECTOR: u32 = 2048;

fn cd(section: &Section<'_>, hba: HbaType, directory: &Path, errors: &mut Errors) -> Option<Cd> {
    let identity = identity(section, errors);
    if section.written("image").is_none() {
        let keys = ["format", "backing", "cache", "bounce"];
        section.meaningless(&keys, "without `image`, which is the disc in the drive", errors);
        return Some(Cd { disc: None, identity });
    }
    let image = path(section, "image", directory)?;
    let ImageOf { format, backing, cache, bounce } =
        ImageOf::read(section, hba, &image, true, CD_SECTOR.into(), directory, errors);
    let disc = Disk {
        image,
        format,
        backing,
        cache,
        bounce,
        read_only: true,
        identity: Identity::default(),
        block_size: CD_SECTOR,
        physical_block_size: None,
        rotation_rate: 0,
        discard: false,
        on_no_space: NoSpace::Report,
        throttle: None,
        protection: None,
    };
    Some(Cd { disc: Some(disc), identity })
}

fn disk(section: &Section<'_>, hba: HbaType, directory: &Path, errors: &mut Errors) -> Option<Disk> {
    section.require("image", "an image file or a block device", errors);
    let image = path(section, "image", directory);
    let read_only = section.boolean("readonly").unwrap_or(false);
    let block_size = section.integer("block_size").unwrap_or(512);
    let physical = section.integer("physical_block_size");
    if physical.is_some_and(|physical| !physical.is_power_of_two() || physical < block_size) {
        let hint = format!("expected a power of two, at least the logical block size {block_size}");
        section.refuse("physical_block_size", &hint, errors);
    }
    // SBC-4, 6.6.2: 2 to 0400h and FFFFh are reserved.
    let rotation_rate = section.integer("rotation_rate").unwrap_or(0);
    if (2..=0x400).contains(&rotation_rate) {
        let hint = "expected 0 (not reported), 1 (solid state) or 1025 to 65534 revolutions per minute";
        section.refuse("rotation_rate", hint, errors);
    }
    let discard = match section.text("discard").and_then(Discard::named) {
        Some(discard) => discard == Discard::Unmap,
        None => section.boolean("discard").unwrap_or(false),
    };
    let image = image?;
    let protection = protection(section, &image, directory, errors);
    let ImageOf { format, backing, cache, bounce } =
        ImageOf::read(section, hba, &image, read_only, block_size, directory, errors);
    Some(Disk {
        format,
        image,
        backing,
        cache,
        bounce,
        read_only,
        identity: identity(section, errors),
        block_size: block_size.try_into().ok()?,
        physical_block_size: physical.and_then(|physical| physical.try_into().ok()),
        rotation_rate: rotation_rate.try_into().ok()?,
        discard,
        on_no_space: section.text("on_no_space").and_then(NoSpace::named).unwrap_or(NoSpace::Report),
        throttle: section.sections("throttle").first().map(|section| throttle(section, errors)),
        protection,
    })
}

fn protection(
    section: &Section<'_>,
    image: &Path,
    directory: &Path,
    errors: &mut Errors,
) -> Option<Protection> {
    let kind = section.integer("protection").filter(|kind| *kind != 0);
    if kind.is_none() {
        section.meaningless(&["protection_image"], "without protection = 1 or 3", errors);
    }
    let mut beside = image.as_os_str().to_owned();
    beside.push(".pi");
    let is_device = matches!(host::medium(image), Some(host::Medium::Device(_)));
    let (written, beside) = (path(section, "protection_image", directory), beside.into());
    if kind.is_some() && written.is_none() && fdset::number(image).is_some() {
        let reason = "no file can be made beside descriptors; set `protection_image`";
        section.reject("protection", reason, errors);
        return None;
    }
    let image = written.as_ref().unwrap_or(&beside);
    let key = if written.is_some() { "protection_image" } else { "protection" };
    // That of a read-only disk is not made.
    let made = kind.filter(|_| section.boolean("readonly") != Some(true));
    if let (Some(_), Err(reason)) = (made, host::check_creatable(image, "file")) {
        section.reject(key, &reason, errors);
    } else if let (Some(_), None, true) = (kind, &written, is_device)
        && let Err(reason) = host::check_lasting(image)
    {
        // Images in files are in memory themselves then.
        let reason = format!("{reason}; set `protection_image` to a file on a disk");
        section.reject(key, &reason, errors);
    }
    Some(Protection { type_3: kind? == 3, image: image.clone() })
}

fn throttle(section: &Section<'_>, errors: &mut Errors) -> Throttle {
    let mut bytes = |key| {
        let rate = section.integer(key);
        if rate == Some(0) {
            section.refuse(key, "expected at least 1; leave it out for no limit", errors);
        }
        rate
    };
    Throttle {
        bps: bytes("bps"),
        bps_read: bytes("bps_read"),
        bps_write: bytes("bps_write"),
        iops: section.integer("iops"),
        iops_read: section.integer("iops_read"),
        iops_write: section.integer("iops_write"),
        burst_seconds: section.integer("burst_seconds"),
    }
}

fn identity(section: &Section<'_>, errors: &mut Errors) -> Identity {
    // SPC-5, 7.7.6.6: NAA 2h, 3h and 5h have eight bytes, and something after the first digit.
    let wrong = |wwn: u128| !matches!(wwn >> 60, 2 | 3 | 5) || wwn & (u128::MAX >> 68) == 0;
    if section.wide("wwn").is_some_and(wrong) {
        let hint =
            "expected a name that begins with 5 (IEEE registered), 3 (locally assigned) or 2 (IEEE extended)";
        section.refuse("wwn", hint, errors);
    }
    let text = |key| section.text(key).map(str::to_owned);
    Identity {
        vendor: text("vendor"),
        product: text("product"),
        revision: text("revision"),
        serial: text("serial"),
        wwn: section.wide("wwn").and_then(|wwn| wwn.try_into().ok()),
    }
}
