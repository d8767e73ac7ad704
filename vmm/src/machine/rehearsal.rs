//! `--check`: what a start would find wrong, without the start.
//!
//! It opens what a start opens, as far as the same functions leave everything as it is, in the order of a start, and goes
//! on after each error. What a configuration says by itself was checked before.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Error, Result};
use boot::RamLayout;
use devices::mem::GuestRam;
use devices::storage::{Qcow2Image, Rehearsal};
use fc::choose::Rules;
use fc::names::{Known, Names};
use fc::state::{Definition, Life, StateError, Store};
use fc::{Roots, San};

use super::chipset::{ChipsetError, SLOTS};
use super::control::Control;
use super::firmware::{DebugOutput, FirmwareBoot};
use super::host_unit::HostUnit;
use super::identity::Identities;
use super::{hbas, protection, raid};
use crate::config::{
    self, Boot, Cd, Config, Controller, Device, Disk, Format, Hba, HostDevice, Lun, VirtualPort,
};
use crate::console::Console;
use crate::exit::explain;
use crate::jail;
use crate::kvm::Hypervisor;
use crate::listen;
use crate::vcpu::CpuidTemplate;
use crate::vhost::Vhost;
use vm_memory::GuestAddress;

/// Bits of a physical address where nobody can be asked.
const PHYSICAL_BITS: u8 = 36;

/// Everything for which a machine of this configuration would not start, a line each. Nothing is changed.
pub fn rehearse(config: &Config) -> Vec<String> {
    let mut all = Problems::default();
    let hypervisor = all.note(Hypervisor::open(Path::new("/dev/kvm")).map_err(Error::from));
    let layout = all.note(RamLayout::new(config.vm.memory).map_err(Error::from));
    let cpuid = hypervisor.as_ref().and_then(|hypervisor| {
        all.note(hypervisor.create_vm().map_err(Error::from));
        all.note(CpuidTemplate::new(hypervisor.kvm(), config.vm.cpus.into()).map_err(Error::from))
    });
    all.note(Console::check(&config.serial).map_err(Error::from));
    all.note(DebugOutput::check(config.debug_log.as_deref()));
    adapters(config, &mut all);
    let bits = cpuid.map(|cpuid| cpuid.mapped_bits());
    if let (Some(layout), Some(bits)) = (&layout, bits) {
        all.note(layout.within(bits).map_err(Error::from));
    }
    let bits = bits.unwrap_or(PHYSICAL_BITS);
    let needs_64bit = layout.is_some_and(|layout| boot(config, &layout, bits, &mut all));
    if let Some(hypervisor) = hypervisor.filter(|_| needs_64bit) {
        all.note(hypervisor.require_64bit().map_err(Error::from));
    }
    if let Some(path) = &config.control {
        let checked = listen::look(path).with_context(|| format!("control socket {}", path.display()));
        all.note(checked);
    }
    all.note(jail::check(config));
    all.0
}

#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        let line = match result {
            Ok(value) => return Some(value),
            Err(error) => explain(&error),
        };
        // One fault of the host may concern several parts.
        if !self.0.contains(&line) {
            self.0.push(line);
        }
        None
    }
}

fn adapters(config: &Config, all: &mut Problems) {
    let (mut images, identities) = (Rehearsal::default(), Identities::default());
    // They live as long as their names are taken.
    let mut disks: Vec<Arc<()>> = Vec::new();
    let mut hosts = Vec::new();
    if config.hbas.len() > SLOTS {
        all.note::<()>(Err(ChipsetError::NoSlot.into()));
    }
    let control = all.note(Control::new(0).map_err(Error::from));
    let mut ports = Known::default();
    for hba in &config.hbas {
        if let Some(control) = &control {
            all.note(hbas::threads(hba, control));
        }
        if let Controller::Megasas(board) = &hba.controller {
            all.note(raid::check_events(board).with_context(|| format!("hba {}", hba.id)));
        }
        if let Controller::VhostScsi(wanted) = &hba.controller {
            all.note(vhost(&hba.id, wanted).with_context(|| format!("hba {}", hba.id)));
        }
        if let Some(port) = hba.virtual_port() {
            let owner = config::fc_owner(&config.vm.name, &hba.id);
            all.note(virtual_port(&owner, port, &mut ports).with_context(|| format!("hba {}", hba.id)));
        }
        for lun in &hba.luns {
            let board = matches!(hba.controller, Controller::Megasas(_));
            let checked = match &lun.device {
                Device::Disk(disk) => self::disk(hba, lun, disk, &mut images, &identities, &mut disks),
                Device::Cd(cd) => drive(hba, lun, cd, &mut images, &identities, &mut disks),
                Device::Generic(host) | Device::Block(host) => device(lun, host, &mut hosts),
            };
            all.note(match board {
                true => checked.with_context(|| format!("hba {}, target {}", hba.id, lun.target)),
                false => checked,
            });
        }
    }
}

/// The target of the kernel is there and free, for a machine with a page of memory.
fn vhost(id: &str, wanted: &config::VhostScsi) -> Result<()> {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 4096)])?;
    Ok(Vhost::open(id, wanted, Arc::new(ram)).map(drop)?)
}

/// There is a port of the host that it could be created on, and its names are fit for it, as far as it has them already: `taken` are those
/// of the ports before it.
fn virtual_port(owner: &str, port: &VirtualPort, taken: &mut Known) -> Result<()> {
    let (roots, store) = (Roots::default(), Store::default());
    let san = San::read(&roots);
    let stored = match store.definition(owner) {
        Ok(stored) => Some(stored),
        Err(StateError::Missing(_)) => None,
        Err(error) if port.names.is_none() => return Err(error.into()),
        Err(_) => None,
    };
    let names = port.names.or(stored.as_ref().map(Definition::names));
    let mut is_used = |names: Names, any_oui| is_used(names, any_oui, owner, &san, (&roots, &store), taken);
    let is_there = names.map(|names| is_used(names, port.any_oui || port.names.is_none())).transpose()?;
    // Those that it has later: to hear it then would be late.
    port.secondary.map(|names| is_used(names, port.any_oui).context("its second names")).transpose()?;
    if is_there == Some(true) {
        return Ok(());
    }
    let rules = match stored {
        Some(stored) if port.names.is_none() && port.rules == Rules::default() => stored.rules,
        _ => port.rules.clone(),
    };
    let host = rules.wanted().choose(&san)?;
    let file = roots.sys.join(format!("class/fc_host/{}/vport_create", host.name()));
    let opened = OpenOptions::new().write(true).open(&file);
    opened.map(drop).with_context(|| {
        format!(
            "cannot write {}, which creates virtual ports: it takes root, and sysfs as on the host",
            file.display()
        )
    })
}

/// Whether a port with these names is there and nobody's, so that it is used.
///
/// # Errors
/// Somebody has them: another one on the host, or one of those that `taken` are of, to which they are added.
fn is_used(
    names: Names,
    any_oui: bool,
    owner: &str,
    san: &San,
    (roots, store): (&Roots, &Store),
    taken: &mut Known,
) -> Result<bool> {
    names.check(taken, true)?;
    taken.promise(names.wwpn, format!("{owner} has it"));
    let life = store.record_of(names.wwpn)?.map(|record| record.life(roots));
    let there = san.vport(names.wwpn).filter(|vport| vport.wwnn == Some(names.wwnn));
    match (there, life) {
        (Some(_), None | Some(Life::OtherStart)) => return Ok(true),
        // What a process has left that was killed is deleted first.
        (_, Some(Life::Ended)) => {}
        _ => names.check(&Known::of(san), any_oui)?,
    }
    Ok(false)
}

fn drive(
    hba: &Hba,
    lun: &Lun,
    cd: &Cd,
    images: &mut Rehearsal,
    identities: &Identities,
    drives: &mut Vec<Arc<()>>,
) -> Result<()> {
    if let Some(disc) = &cd.disc {
        image(disc, images)?;
    }
    let names = Arc::new(());
    identities.take_drive(&hba.id, lun, &hbas::cd_config(&hba.id, lun, cd), &names)?;
    drives.push(names);
    Ok(())
}

/// It is opened, and asked who it is.
fn device(lun: &Lun, host: &HostDevice, hosts: &mut Vec<HostUnit>) -> Result<()> {
    hosts.push(HostUnit::open(&lun.device, host)?);
    Ok(())
}

fn image(disk: &Disk, images: &mut Rehearsal) -> Result<()> {
    match disk.format {
        Format::Raw => images.raw(&hbas::raw_options(disk))?,
        Format::Qcow2 => images.qcow2(&hbas::qcow2_options(disk))?,
    }
    Ok(())
}

fn disk(
    hba: &Hba,
    lun: &Lun,
    disk: &Disk,
    images: &mut Rehearsal,
    identities: &Identities,
    disks: &mut Vec<Arc<()>>,
) -> Result<()> {
    image(disk, images)?;
    let shown = hbas::disk_config(disk)?;
    let alive = Arc::new(());
    identities.take(&hba.id, lun, &disk.image, &shown, &alive)?;
    disks.push(alive);
    let Some(protection) = &disk.protection else { return Ok(()) };
    let ending = match disk.format {
        Format::Raw => devices::storage::Ending::find(&disk.image)?,
        Format::Qcow2 => Qcow2Image::inspect(&hbas::qcow2_options(disk))?,
    };
    let len = ending.shown(disk.block_size.into());
    protection::rehearse(protection, hbas::cache_mode(disk.cache), len, &shown, images)
        .with_context(|| format!("hba {}, target {}", hba.id, lun.target))
}

/// What runs first, read into memory that no machine has. Says whether it needs a 64-bit processor.
fn boot(config: &Config, layout: &RamLayout, physical_bits: u8, all: &mut Problems) -> bool {
    match &config.boot {
        Boot::Kernel { kernel, initrd, cmdline } => {
            let load = || {
                let source = super::source(kernel, initrd.as_deref(), cmdline)?;
                let tables = super::direct_tables(config, layout, physical_bits)?;
                let ram =
                    GuestRam::from_ranges(&layout.regions()).context("memory to read the kernel into")?;
                Ok(boot::linux::load(&ram, layout, &source, &tables)?.needs_64bit)
            };
            all.note(load()).unwrap_or(false)
        }
        Boot::Firmware { firmware, option_roms, .. } => {
            for problem in FirmwareBoot::check(firmware, option_roms) {
                all.note::<()>(Err(problem));
            }
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use fc::Wwn;
    use fc::testing::Tree;

    use super::*;

    #[test]
    fn names_that_somebody_has_are_said() {
        let tree = Tree::lpfc();
        let (roots, store) = (tree.roots(), Store::below(&tree.path("")));
        let (san, mut taken) = (San::read(&roots), Known::default());
        let mut used = |wwnn, wwpn| {
            let names = Names { wwnn: Wwn::new(wwnn), wwpn: Wwn::new(wwpn) };
            is_used(names, true, "vm1.fc0", &san, (&roots, &store), &mut taken)
                .map_err(|error| error.to_string())
        };
        assert_eq!(used(0x2000_0212_3456_789a, 0x2100_0212_3456_789a), Ok(false));
        // A port that is there and nobody's.
        assert_eq!(used(0x2000_0000_0000_0a01, 0x2100_0000_0000_0a01), Ok(true));
        let said = used(0x2001_0212_3456_789a, 0x2100_0212_3456_789a).unwrap_err();
        assert!(said.contains("vm1.fc0 has it"), "{said}");
        // The adapter's own.
        let said = used(0x2000_0000_c9aa_bb05, 0x1000_0000_c9aa_bb05).unwrap_err();
        assert!(said.contains("10000000c9aabb05") && said.contains("host5"), "{said}");
    }
}
