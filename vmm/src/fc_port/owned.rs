//! The virtual port of one HBA: found or made at the start, and deleted at the end if it was made.

use std::collections::BTreeSet;
use std::time::Duration;

use fc::choose::Rules;
use fc::model::{Host, San, Vport, VportState};
use fc::names::{Names, random};
use fc::state::{Definition, Life, Record, StateError, Store};
use fc::vport::{CreateError, Kernel, Pause, Ports, Request};
use fc::{Roots, Wwn};

use super::{HostPort, Origin, Wanted};

/// How often a port that is there already is looked at while it is not active.
const STEP: Duration = Duration::from_millis(100);

/// The port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owned {
    /// `vport-5:0-0`
    pub(super) vport: String,
    /// The number of its host.
    pub(super) host: u32,
    pub(super) names: Names,
    /// How it came.
    pub(super) origin: Origin,
    /// Its names were made just now.
    pub(super) named: bool,
    /// By which rules its place was chosen, those stored with its names or the configuration's: a port with other names has the same.
    pub(super) rules: Rules,
}

/// Finds or makes the port that an HBA wants, and waits until the fabric has it. `kernel` makes it.
///
/// # Errors
/// Why there is none, in one line; then nothing is left of it.
pub(super) fn own<K: Kernel>(
    wanted: &Wanted,
    roots: &Roots,
    store: &Store,
    mut kernel: impl FnMut() -> K,
) -> Result<Owned, String> {
    let Named { names, definition, new } = names(wanted, roots, store, &mut kernel)?;
    let deadline = Duration::from_secs(wanted.timeout.into());
    let rules = match definition {
        Some(definition) if wanted.rules == Default::default() => definition.rules,
        _ => wanted.rules.clone(),
    };
    let seen = San::try_read(roots).map_err(|error| error.to_string())?;
    let there = seen.vport(names.wwpn).cloned();
    if let Some(vport) = there
        && is_adopted(&vport, wanted, names, roots, store)?
    {
        let origin =
            if is_defined(names, store).unwrap_or(false) { Origin::Persistent } else { Origin::Adopted };
        return adopt(
            vport,
            Owned { vport: String::new(), host: 0, names, origin, named: false, rules },
            roots,
            deadline,
            kernel(),
        );
    }
    let request = Request {
        wanted: rules.wanted(),
        names,
        definition: wanted.names.is_none().then_some(&*wanted.owner),
        // Those that are stored were looked at when they were made.
        any_oui: wanted.any_oui || wanted.names.is_none(),
        deadline,
        owner: Some(&wanted.owner),
        spares: false,
    };
    let vport =
        Ports::new(roots, store, kernel()).create_in_time(&request).map_err(|error| error.to_string())?;
    let host = vport.host.ok_or_else(|| format!("{} has no host", vport.name))?;
    Ok(Owned { vport: vport.name, host, names, origin: Origin::Made, named: new, rules })
}

impl Owned {
    /// What the operator wants to know of it.
    pub(super) fn shown(&self, roots: &Roots) -> HostPort {
        let san = San::read(roots);
        let parent = san.vport(self.names.wwpn).and_then(|vport| san.host(vport.parent));
        HostPort {
            vport: self.vport.clone(),
            host: self.host,
            wwpn: self.names.wwpn.bits(),
            wwnn: self.names.wwnn.bits(),
            parent: parent.map(Host::name).unwrap_or_default(),
            driver: parent.map(|host| host.driver.clone()).unwrap_or_default(),
            device: parent.and_then(|host| host.parent.clone()).unwrap_or_default(),
            origin: self.origin,
        }
    }
}

/// Deletes the port, if it was made.
///
/// # Errors
/// Why it is still there. Its record stays then, and the next start or vmm fc clean tries again.
pub(super) fn disown<K: Kernel>(
    owned: &Owned,
    roots: &Roots,
    store: &Store,
    kernel: K,
) -> Result<(), String> {
    if owned.origin != Origin::Made {
        return Ok(());
    }
    delete(owned.names.wwpn, roots, store, kernel)
}

/// Deletes a port that this process has made.
///
/// # Errors
/// The same.
pub(super) fn delete<K: Kernel>(wwpn: Wwn, roots: &Roots, store: &Store, kernel: K) -> Result<(), String> {
    // Somebody may have deleted it before, and another one may have its name by now.
    let deleted = Ports::new(roots, store, kernel).delete_own(wwpn, std::process::id());
    deleted.map_err(|error| error.to_string())
}

/// The names of ports that this process has made for an HBA, and which may still be there: what is written down of one stays as long as it
/// does.
pub(super) fn made(wanted: &Wanted, store: &Store) -> BTreeSet<Wwn> {
    let own = std::process::id();
    let all = store.records().unwrap_or_default().into_iter().flatten();
    all.filter(|record| record.pid == own && record.owner == wanted.owner).map(|record| record.wwpn).collect()
}

/// Sees to what is left of a port that this process has made with these names and does not use any more, for it could not delete it. It is
/// deleted now; or used again, where the kernel does not delete it and it is as it was.
///
/// # Errors
/// Why neither can be.
pub(super) fn regain<K: Kernel>(
    wanted: &Wanted,
    roots: &Roots,
    store: &Store,
    kernel: K,
) -> Result<Option<Owned>, String> {
    let Some((wwnn, wwpn)) = wanted.names else { return Ok(None) };
    let record = store.record_of(wwpn).map_err(|error| error.to_string())?;
    let is_own = |record: &Record| record.owner == wanted.owner && is_this_process(record, roots);
    let Some(record) = record.filter(is_own) else { return Ok(None) };
    let Err(why) = delete(wwpn, roots, store, kernel) else { return Ok(None) };
    let san = San::try_read(roots).map_err(|error| error.to_string())?;
    let is_it = |vport: &&Vport| record.vport.as_ref() == Some(&vport.name) && record.id == Some(vport.id);
    let active = san.vport(wwpn).filter(is_it).filter(|vport| vport.state == VportState::Active);
    if let Some((vport, host)) = active.and_then(|vport| Some((vport.name.clone(), vport.host?))) {
        let names = Names { wwnn, wwpn };
        return Ok(Some(Owned {
            vport,
            host,
            names,
            origin: Origin::Made,
            named: false,
            rules: wanted.rules.clone(),
        }));
    }
    Err(format!(
        "its virtual port {wwpn} of before is still there and logs in no more, and it cannot be deleted: {why}; try again when vmm fc list \
         does not show it any more (vmm fc delete --force {wwpn})"
    ))
}

/// Whether a port is one that this very process has made.
fn is_this_process(record: &Record, roots: &Roots) -> bool {
    record.pid == std::process::id() && record.life(roots) == Life::Lives
}

/// The names of a port.
struct Named {
    names: Names,
    /// Where they are stored with rules.
    definition: Option<Definition>,
    /// They were made just now.
    new: bool,
}

/// The names of the port: given, or stored, or made and stored now, for good.
fn names<K: Kernel>(
    wanted: &Wanted,
    roots: &Roots,
    store: &Store,
    kernel: &mut impl FnMut() -> K,
) -> Result<Named, String> {
    let of = |names, definition, new| Ok(Named { names, definition, new });
    if let Some((wwnn, wwpn)) = wanted.names {
        return of(Names { wwnn, wwpn }, None, false);
    }
    match store.definition(&wanted.owner) {
        Ok(definition) => of(definition.names(), Some(definition), false),
        Err(StateError::Missing(_)) => {
            let taken = Ports::new(roots, store, kernel()).taken().map_err(|error| error.to_string())?;
            let made =
                Names::make(&taken, random).map_err(|error| format!("making names for its port: {error}"))?;
            let Names { wwnn, wwpn } = made;
            // The rules are those of the configuration, each time.
            let definition = Definition { wwnn, wwpn, boot: false, rules: Default::default() };
            match store.define(&wanted.owner, &definition) {
                Ok(()) => of(made, None, true),
                // Another first start of this name was quicker. Whoever removed its names lost the data behind them.
                Err(StateError::Exists(..)) => {
                    let stored = store.definition(&wanted.owner).map_err(|error| error.to_string())?;
                    of(stored.names(), Some(stored), false)
                }
                Err(error) => Err(error.to_string()),
            }
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Whether a port that is there is nobody's, so that it is used, and stays. One of an ended process is made anew.
fn is_adopted(
    vport: &Vport,
    wanted: &Wanted,
    names: Names,
    roots: &Roots,
    store: &Store,
) -> Result<bool, String> {
    let record = store.record_of(names.wwpn).map_err(|error| error.to_string())?;
    // What was before the host started anew says nothing of a port that is there.
    match record.filter(|record| record.life(roots) != Life::OtherStart) {
        Some(record) if record.owner == wanted.owner && is_this_process(&record, roots) => Err(format!(
            "this machine has the virtual port {} ({}) already, and two cannot have one name; give one of them another wwpn",
            names.wwpn, vport.name
        )),
        Some(record) if record.owner == wanted.owner && record.life(roots) == Life::Lives => {
            let id = wanted.hba.strip_prefix("hba ").unwrap_or(&wanted.hba);
            let machine = wanted.owner.strip_suffix(&format!(".{id}")).unwrap_or(&wanted.owner);
            Err(format!(
                "machine {machine} runs already, or has ended and its driver logs out at the fabric, which may take {} s: its process \
                 vmm-fcport ({}) has the virtual port {} ({}) of this HBA. End that machine, or give this one another name; if it has \
                 ended, start this one once that process has",
                fc::vport::DELETION.as_secs(),
                record.pid,
                names.wwpn,
                vport.name
            ))
        }
        Some(record) if record.life(roots) == Life::Lives => Err(format!(
            "the virtual port {} ({}) belongs to {} (process {}), which runs; end that, or give this HBA another wwpn",
            names.wwpn, vport.name, record.owner, record.pid
        )),
        Some(record) if record.life(roots) == Life::Unknown => Err(format!(
            "the virtual port {0} ({1}) belongs to {2} (process {3}), and whether that runs cannot be seen from here; look where it \
             would, and if it has ended, vmm fc delete --force {0}; or give this HBA another wwpn",
            names.wwpn, vport.name, record.owner, record.pid
        )),
        // What is defined stays all the same.
        Some(_) => is_defined(names, store).map_err(|error| error.to_string()),
        None if vport.wwnn != Some(names.wwnn) => Err(format!(
            "the virtual port {} is there already ({}), with the WWNN {}, and wwnn is {}; set wwnn to that, or delete the port (vmm fc \
             delete {0})",
            names.wwpn,
            vport.name,
            vport.wwnn.as_ref().map(Wwn::to_string).unwrap_or_default(),
            names.wwnn
        )),
        None => Ok(true),
    }
}

/// Whether a port is there whenever the host runs.
fn is_defined(names: Names, store: &Store) -> Result<bool, StateError> {
    let of_this = |definition: Definition| definition.boot && definition.wwpn == names.wwpn;
    Ok(store.definitions()?.into_iter().any(|(_, definition)| definition.is_ok_and(of_this)))
}

/// Waits until a port that is there is active; `owned` says what else is known of it.
fn adopt(
    mut vport: Vport,
    owned: Owned,
    roots: &Roots,
    deadline: Duration,
    mut kernel: impl Kernel,
) -> Result<Owned, String> {
    let (begin, names) = (kernel.now(), owned.names);
    loop {
        if let (VportState::Active, Some(host)) = (&vport.state, vport.host) {
            return Ok(Owned { vport: vport.name, host, ..owned });
        }
        let waited = kernel.now().saturating_sub(begin);
        if waited >= deadline {
            return Err(format!(
                "the virtual port {} ({}), which was there already, is \"{}\" after {} s; see vmm fc show {0}, or delete it",
                names.wwpn,
                vport.name,
                vport.state.word(),
                waited.as_secs()
            ));
        }
        if kernel.pause(STEP) == Pause::Interrupted {
            return Err(CreateError::Interrupted { wwpn: names.wwpn }.to_string());
        }
        match San::read(roots).vport(names.wwpn) {
            Some(now) => vport = now.clone(),
            None => return Err(CreateError::Gone { wwpn: names.wwpn }.to_string()),
        }
    }
}

#[cfg(test)]
#[path = "owned_tests.rs"]
pub(super) mod tests;
