//! `[hba.fc]`: the Fibre Channel port of an HBA, a virtual one of the host or one on an emulated fabric.

use fc::allowed::{Allowed, Ranges};
use fc::choose::Rules;
use fc::names::{Known, Names};
use fc::{Wwn, state};

use super::error::Errors;
use super::hba::place;
use super::section::Section;
use super::types::{Allow, Controller, Hba, HbaType, Passthrough, VirtioInterface};

/// Seconds until commands to a port that is lost fail, unless something else is said.
const FAST_IO_FAIL: u32 = 5;
/// The shortest time after which a driver gives up a port of its own accord: that of lpfc (`lpfc_devloss_tmo`).
const DEV_LOSS: u32 = 30;
/// How many ports of its own a guest may have that may have some, unless something else is said.
const VPORTS: u16 = 4;
/// Seconds that the start waits for the fabric, unless something else is said.
const TIMEOUT: u32 = 30;

/// Keys of a virtual port of the host only.
const HOST_KEYS: [&str; 13] = [
    "parent",
    "parent_wwnn",
    "parent_wwpn",
    "parent_fabric",
    "any_oui",
    "dev_loss_tmo",
    "fast_io_fail_tmo",
    "luns",
    "passthrough",
    "allow",
    "shared",
    "bounce",
    "timeout",
];
/// Keys of an emulated fabric only.
const EMULATED_KEYS: [&str; 1] = ["ports"];

/// The Fibre Channel port of an HBA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fc {
    /// On a fabric that is emulated, where `[[hba.lun]]` are the units.
    Emulated(EmulatedPort),
    /// A virtual one of the host, whose units come and go with what the array shows it.
    Virtual(VirtualPort),
}

/// A port on an emulated fabric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmulatedPort {
    /// Its names; `None` makes them from those of machine and HBA.
    pub names: Option<Names>,
    /// Other names, which it logs in with when it is told to.
    pub secondary: Option<Names>,
    /// Ports that the guest may create.
    pub vports: Option<Allowed>,
    /// How many remote ports there are: targets 0 and on.
    pub ports: u8,
}

/// A virtual port of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualPort {
    /// On which port of the host.
    pub rules: Rules,
    /// Its names; `None` for those that are stored for machine and HBA, or made and stored.
    pub names: Option<Names>,
    /// Names of a company whose hardware has such are fine.
    pub any_oui: bool,
    /// Other names, which it logs in with when it is told to.
    pub secondary: Option<Names>,
    /// Ports that the guest may create.
    pub vports: Option<Allowed>,
    /// Seconds until the host gives up a remote port that is lost; `None` for what its driver has.
    pub dev_loss_tmo: Option<u32>,
    /// Seconds until commands to a remote port that is lost fail.
    pub fast_io_fail_tmo: u32,
    /// Numbers of the units to show, from and to; all when empty.
    pub luns: Vec<(u64, u64)>,
    /// How they are shown.
    pub passthrough: Passthrough,
    /// What the guest may do to them.
    pub allow: Allow,
    /// Others of the host may use them as well.
    pub shared: bool,
    /// Data goes through memory of the process.
    pub bounce: bool,
    /// Seconds that the start waits for the fabric.
    pub timeout: u32,
}

impl Fc {
    /// The names that are written.
    pub fn names(&self) -> Option<Names> {
        match self {
            Self::Emulated(port) => port.names,
            Self::Virtual(port) => port.names,
        }
    }

    /// Other names that are written.
    pub fn secondary(&self) -> Option<Names> {
        match self {
            Self::Emulated(port) => port.secondary,
            Self::Virtual(port) => port.secondary,
        }
    }
}

impl Fc {
    /// Ports that the guest may create.
    fn vports(&self) -> Option<&Allowed> {
        match self {
            Self::Emulated(port) => port.vports.as_ref(),
            Self::Virtual(port) => port.vports.as_ref(),
        }
    }
}

impl Hba {
    /// The virtual port of the host that it has.
    pub fn virtual_port(&self) -> Option<&VirtualPort> {
        match &self.fc {
            Some(Fc::Virtual(port)) => Some(port),
            _ => None,
        }
    }
}

/// Reads the `fc` of an `[[hba]]`, if it has one.
pub(super) fn fc(hba: &Section<'_>, kind: HbaType, errors: &mut Errors) -> Option<Fc> {
    let section = hba.sections("fc").first()?;
    if kind == HbaType::Megasas {
        let reason = "a MegaRAID SAS board has no Fibre Channel port; expected type = \"virtio-scsi\"";
        hba.reject("fc", reason, errors);
        return None;
    }
    if kind == HbaType::VhostScsi {
        let reason =
            "what the kernel's target has the guest sees as its own; expected type = \"virtio-scsi\"";
        hba.reject("fc", reason, errors);
        return None;
    }
    let emulated = section.boolean("emulated").unwrap_or(false);
    let any_oui = emulated || section.boolean("any_oui").unwrap_or(false);
    let names = names(section, ["wwnn", "wwpn"], any_oui, errors);
    let secondary = self::names(section, ["secondary_wwnn", "secondary_wwpn"], any_oui, errors);
    if secondary.zip(names).is_some_and(|(secondary, names)| secondary.wwpn == names.wwpn) {
        let reason = "is the first name of the port as well; expected another one, or none";
        section.reject("secondary_wwpn", reason, errors);
    }
    let vports = vports(section, any_oui, errors);
    if emulated {
        section.meaningless(&HOST_KEYS, "with emulated = true", errors);
        let ports = ports(hba, section, errors);
        return Some(Fc::Emulated(EmulatedPort { names, secondary, vports, ports }));
    }
    section.meaningless(&EMULATED_KEYS, "without emulated = true", errors);
    if let Some(lun) = hba.sections("lun").first() {
        let message = "[[hba.lun]] at an [[hba]] with a virtual port, which has the units that the array shows it; expected them at \
                       another [[hba]], or emulated = true in [hba.fc]";
        errors.add(&lun.origin, message);
    }
    let (fast_io_fail_tmo, dev_loss_tmo) = timeouts(section, errors);
    Some(Fc::Virtual(VirtualPort {
        rules: rules(section, errors),
        names,
        any_oui,
        secondary,
        vports,
        dev_loss_tmo,
        fast_io_fail_tmo,
        luns: luns(section, errors),
        passthrough: section.text("passthrough").and_then(Passthrough::named).unwrap_or_default(),
        allow: section.text("allow").and_then(Allow::named).unwrap_or(Allow::NoManagement),
        shared: section.boolean("shared").unwrap_or(false),
        bounce: section.boolean("bounce").unwrap_or(false),
        timeout: seconds(section, "timeout").unwrap_or(TIMEOUT),
    }))
}

fn seconds(section: &Section<'_>, key: &str) -> Option<u32> {
    section.integer(key).and_then(|seconds| u32::try_from(seconds).ok())
}

fn wwn(section: &Section<'_>, key: &str) -> Option<Wwn> {
    section.wide(key).and_then(|name| u64::try_from(name).ok()).map(Wwn::new)
}

/// Both names of a port, or none.
fn names(
    section: &Section<'_>,
    [node, port]: [&str; 2],
    any_oui: bool,
    errors: &mut Errors,
) -> Option<Names> {
    for (key, other) in [(node, port), (port, node)] {
        if section.written(key).is_none() && section.written(other).is_some() {
            let reason = format!("a port has two names; expected `{key}` as well, or neither");
            section.reject(other, &reason, errors);
        }
    }
    let names = Names { wwnn: wwn(section, node)?, wwpn: wwn(section, port)? };
    if let Err(unfit) = names.check(&Known::default(), any_oui) {
        let reason = unfit.to_string().replace("--any-oui", "any_oui = true");
        let key = if reason.starts_with("WWNN ") { node } else { port };
        section.reject(key, &reason, errors);
    }
    Some(names)
}

/// What the guest may create, by names that are fit for a port.
fn vports(section: &Section<'_>, any_oui: bool, errors: &mut Errors) -> Option<Allowed> {
    let Some(text) = section.text("vport_names") else {
        if section.written("vports").is_some() {
            let reason =
                "the guest may create no port as long as it may have no name; expected `vport_names` as well";
            section.reject("vports", reason, errors);
        }
        return None;
    };
    let Ok(names) = text.parse::<Ranges>() else {
        let hint = "expected names and ranges of names such as \"2100020000000001, 2100020000000100-21000200000001ff\"";
        section.refuse("vport_names", hint, errors);
        return None;
    };
    // Both ends are of one company where the range is no mistake.
    for name in names.iter().flat_map(|(from, to)| [from, to]) {
        // As that of a port, beside a node that is fit.
        let both = Names { wwnn: Wwn::new(name.bits() ^ 1), wwpn: name };
        if let Err(unfit) = both.check(&Known::default(), any_oui) {
            let reason = unfit.to_string().replace("--any-oui", "any_oui = true");
            section.reject("vport_names", &reason.replacen("WWNN ", "", 1).replacen("WWPN ", "", 1), errors);
            break;
        }
    }
    let most = section.integer("vports").and_then(|most| u16::try_from(most).ok()).unwrap_or(VPORTS);
    Some(Allowed { most, names })
}

fn rules(section: &Section<'_>, errors: &mut Errors) -> Rules {
    let written = |keys: &[&str]| keys.iter().any(|key| section.written(key).is_some());
    let mut ways = 0;
    for keys in [&["parent"][..], &["parent_wwnn", "parent_wwpn"], &["parent_fabric"]] {
        if !written(keys) {
            continue;
        }
        ways += 1;
        if let (2.., Some(key)) = (ways, keys.iter().find(|key| section.written(key).is_some())) {
            let reason = "is a second way to choose the port of the host; expected `parent`, or its names (`parent_wwnn`, \
                          `parent_wwpn`), or `parent_fabric`";
            section.reject(key, reason, errors);
        }
    }
    Rules {
        parent: section.text("parent").map(str::to_owned),
        parent_wwnn: wwn(section, "parent_wwnn"),
        parent_wwpn: wwn(section, "parent_wwpn"),
        parent_fabric: wwn(section, "parent_fabric"),
    }
}

/// `fast_io_fail_tmo` and `dev_loss_tmo`. The kernel takes the first only where it is less than the second (Linux,
/// scsi_transport_fc.c, store_fc_rport_fast_io_fail_tmo).
fn timeouts(section: &Section<'_>, errors: &mut Errors) -> (u32, Option<u32>) {
    let (fast, loss) = (seconds(section, "fast_io_fail_tmo"), seconds(section, "dev_loss_tmo"));
    let time = fast.unwrap_or(FAST_IO_FAIL);
    match (fast, loss) {
        (None, Some(loss)) if loss <= FAST_IO_FAIL => {
            let hint = format!(
                "expected more than {FAST_IO_FAIL} s, after which commands fail (`fast_io_fail_tmo`), or less there"
            );
            section.refuse("dev_loss_tmo", &hint, errors);
        }
        (Some(fast), Some(loss)) if fast >= loss => {
            let hint = format!("expected less than the {loss} s of `dev_loss_tmo`");
            section.refuse("fast_io_fail_tmo", &hint, errors);
        }
        (Some(DEV_LOSS..), None) => {
            let hint = format!(
                "expected `dev_loss_tmo` as well, which is more: drivers give a port up after {DEV_LOSS} s or later"
            );
            section.refuse("fast_io_fail_tmo", &hint, errors);
        }
        _ => {}
    }
    (time, loss)
}

/// Numbers of units from and to, in order.
fn luns(section: &Section<'_>, errors: &mut Errors) -> Vec<(u64, u64)> {
    let Some(text) = section.text("luns") else { return Vec::new() };
    ranges(text).unwrap_or_else(|| {
        let hint = "expected numbers of LUNs such as \"0-63,513\", those of several levels with all their 16 digits: \
                    \"0x0001000200000000\"";
        section.refuse("luns", hint, errors);
        Vec::new()
    })
}

fn ranges(text: &str) -> Option<Vec<(u64, u64)>> {
    let number = |text: &str| {
        let text = text.trim();
        let (digits, base) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
        let all = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        all.then(|| u64::from_str_radix(digits, base).ok()).flatten()
    };
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        (first <= last).then_some((first, last))
    };
    text.split(',').map(range).collect()
}

/// How many remote ports an emulated fabric has: each has a target, and those of the units are among them.
fn ports(hba: &Section<'_>, section: &Section<'_>, errors: &mut Errors) -> u8 {
    // A unit without a target has the next free one, which may be as many as there are units.
    let luns = hba.sections("lun");
    let written = luns.iter().filter_map(|lun| lun.integer("target")).max().map_or(0, |most| most + 1);
    let free = luns.iter().filter(|lun| lun.written("target").is_none()).count() as u64;
    let needed = u8::try_from(written.max(free)).unwrap_or(u8::MAX).max(1);
    let wanted = section.integer("ports").and_then(|ports| u8::try_from(ports).ok());
    if wanted.is_some_and(|wanted| wanted < needed) {
        let hint = format!("expected {needed} at least: each target of the units is a port");
        section.refuse("ports", &hint, errors);
    }
    wanted.unwrap_or(needed)
}

/// A virtual port is known on the host by the names of the machine and of its HBA. No two may have one name of a port.
/// Names that are not written are stored under it, so the machine's must be `named` by its configuration: two files with one name had one port.
pub(super) fn check(
    sections: &[Section<'_>],
    hbas: &[Hba],
    machine: Option<&str>,
    named: bool,
    errors: &mut Errors,
) {
    let ports: Vec<_> = sections
        .iter()
        .zip(hbas)
        .filter_map(|(section, hba)| Some((section.sections("fc").first()?, hba, hba.fc.as_ref()?)))
        .collect();
    for (index, (section, hba, fc)) in ports.iter().enumerate() {
        if let (Fc::Virtual(_), Some(machine)) = (fc, machine) {
            let owner = owner(machine, &hba.id);
            if !state::is_name(&owner) {
                let message = format!(
                    "[hba.fc]: the port would be known on the host as \"{owner}\", which is no name for it; expected `name` in [vm] \
                     of letters, digits, dots, dashes and underscores, up to 64 with the `id` of the HBA"
                );
                errors.add(&section.origin, message);
            } else if !named && fc.names().is_none() {
                let message = format!(
                    "[hba.fc]: the names of the port would be stored as \"{owner}\", and a machine of another file with this name had \
                     the same port and data; expected `name` in [vm], or `wwnn` and `wwpn` here"
                );
                errors.add(&section.origin, message);
            }
        }
        let all = ports.iter().flat_map(|(section, _, fc)| {
            let both = [fc.names(), fc.secondary()].into_iter().flatten();
            both.map(move |names| (names.wwpn, section))
        });
        for (wwpn, of) in all {
            if fc.vports().is_some_and(|allowed| allowed.names.has(wwpn)) {
                let reason = format!(
                    "has {wwpn} in it, which the [hba.fc] {} has for its own port; expected a list without it",
                    place(&of.origin)
                );
                section.reject("vport_names", &reason, errors);
            }
        }
        for (key, name) in [("wwpn", fc.names()), ("secondary_wwpn", fc.secondary())] {
            let Some(wwpn) = name.map(|names| names.wwpn) else { continue };
            let has = |other: &Fc| {
                [other.names(), other.secondary()].into_iter().flatten().any(|names| names.wwpn == wwpn)
            };
            if let Some((other, ..)) = ports.iter().take(index).find(|(_, _, other)| has(other)) {
                let hint = format!("which the [hba.fc] {} has already", place(&other.origin));
                section.refuse(key, &hint, errors);
            }
        }
    }
}

/// What is right, but not what most want: registers at which no driver is offered what a port has.
pub(super) fn warnings(hbas: &[Hba]) -> impl Iterator<Item = String> {
    let is_legacy = |hba: &&Hba| matches!(&hba.controller, Controller::VirtioScsi(virtio) if virtio.interface == VirtioInterface::Legacy);
    hbas.iter().filter(|hba| hba.fc.is_some()).filter(is_legacy).map(|hba| {
        format!(
            "hba {}: with interface = \"legacy\" no driver is offered what an adapter with [hba.fc] has more than others: the guest sees a \
             plain one, and of the units those with LUNs of one level up to 16383; if its driver knows remote ports, set \
             interface = \"modern\" or \"transitional\"",
            hba.id
        )
    })
}

/// By what a virtual port is known on the host: its names are stored under it, and `vmm fc list` shows it.
pub fn owner(machine: &str, hba: &str) -> String {
    format!("{machine}.{hba}")
}
