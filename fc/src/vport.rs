//! Virtual ports come and go. The kernel takes the names and says yes at once; whether the fabric has the port, only its state says, some
//! time later. So who creates one waits, and on failure nothing of it is left.

mod error;
mod kernel;

use std::path::PathBuf;
use std::time::Duration;

use crate::address::number_after;
use crate::choose::Wanted;
use crate::model::{San, Vport, VportState, vports};
use crate::names::{Known, Names, Unfit};
use crate::state::{Lock, Record, StateError, Store};
use crate::sysfs::Roots;
use crate::users::Users;
use crate::wwn::Wwn;

pub use error::{CreateError, DeleteError};
pub use kernel::{Kernel, Live, Pause, WriteError};

/// How often the state is looked at.
const STEP: Duration = Duration::from_millis(50);
/// How long a state that does not get better by itself may last: a link that has just come up passes through some.
const SETTLED: Duration = Duration::from_secs(5);
/// How long the kernel may take to remove one: it logs out at the fabric first.
const REMOVAL: Duration = Duration::from_secs(20);
/// How long others may have the lock.
const PATIENCE: Duration = Duration::from_secs(30);

/// A virtual port that is to be.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// On which port.
    pub wanted: Wanted,
    /// Its names.
    pub names: Names,
    /// Names of a company whose hardware has such are fine.
    pub any_oui: bool,
    /// How long it may take until the fabric has it.
    pub deadline: Duration,
    /// Whose it is. It stays when this process has ended, else.
    pub owner: Option<&'a str>,
}

/// Creates and deletes virtual ports.
pub struct Ports<'a, K> {
    roots: &'a Roots,
    store: &'a Store,
    kernel: K,
}

/// What became of a virtual port whose process is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleaned {
    /// It was there, and is deleted.
    Deleted,
    /// It was gone already.
    Gone,
    /// It stays: a definition wants it whenever the host runs.
    Kept,
}

/// The record of a process that is no more, with what became of its port.
pub type CleanedUp = (Record, Result<Cleaned, DeleteError>);

impl<'a, K: Kernel> Ports<'a, K> {
    /// With what the kernel shows, what is stored, and the kernel itself.
    pub fn new(roots: &'a Roots, store: &'a Store, kernel: K) -> Self {
        Self { roots, store, kernel }
    }

    /// Creates a virtual port, and gives it back once the fabric has it.
    ///
    /// # Errors
    /// [`CreateError`] says why not; then nothing is left of it, or the error says what is.
    pub fn create(&mut self, request: &Request<'_>) -> Result<Vport, CreateError> {
        let lock = self.lock()?;
        // What a process of this name has left that was ended.
        self.clean_one(request.names.wwpn).map_err(CreateError::Clean)?;
        let begin = self.kernel.now();
        let (san, checked) = loop {
            let san = San::read(self.roots);
            let checked = request.names.check(&self.known(&san, request.names), request.any_oui);
            let passes = matches!(checked, Err(Unfit::LoggedIn(..)));
            if !passes || self.kernel.now().saturating_sub(begin) >= SETTLED {
                break (san, checked);
            }
            // It may be what was deleted a moment ago.
            if self.kernel.pause(STEP) == Pause::Interrupted {
                break (san, checked);
            }
        };
        let host = request.wanted.choose(&san)?;
        checked?;
        let (parent, names) = (host.number, request.names);
        // Before the port, so that it is found whatever becomes of this process meanwhile.
        let owner = request.owner.unwrap_or("vmm fc create");
        match Record::new(self.roots, names, parent, std::process::id(), owner) {
            Some(record) => self.store.record(&record)?,
            None => return Err(CreateError::NoProcess(self.roots.proc.clone())),
        }
        let begun = self.kernel.write(&self.file(parent, "vport_create"), &line(names));
        drop(lock);
        if let Err(error) = begun {
            self.store.forget(names.wwpn)?;
            return Err(error::refused(host, &error));
        }
        match self.wait(parent, names, request.deadline) {
            Ok(vport) => {
                if request.owner.is_none() {
                    self.store.forget(names.wwpn)?;
                }
                Ok(vport)
            }
            Err(error) => match self.remove(parent, names) {
                Ok(()) => Err(error),
                Err(left) => Err(CreateError::Left { error: Box::new(error), left: Box::new(left) }),
            },
        }
    }

    /// Waits until the fabric has it.
    fn wait(&mut self, parent: u32, names: Names, deadline: Duration) -> Result<Vport, CreateError> {
        let begin = self.kernel.now();
        let mut since = (VportState::Unknown, begin);
        let mut seen = false;
        loop {
            let now = self.kernel.now();
            let waited = now.saturating_sub(begin);
            let found = vports(self.roots).into_iter().find(|vport| is(vport, names));
            match found {
                Some(vport) if vport.state == VportState::Active && vport.host.is_some() => return Ok(vport),
                Some(vport) => {
                    seen = true;
                    if since.0 != vport.state {
                        since = (vport.state.clone(), now);
                    }
                    let settled = is_final(&vport.state) && now.saturating_sub(since.1) >= SETTLED;
                    if settled || waited >= deadline {
                        return Err(error::not_active(self.roots, parent, names, vport.state, waited));
                    }
                }
                // The kernel makes it before it answers, and nobody else has its names.
                None if seen => return Err(CreateError::Gone { wwpn: names.wwpn }),
                None if waited >= deadline => return Err(CreateError::Nothing { parent, wwpn: names.wwpn }),
                None => {}
            }
            if self.kernel.pause(STEP) == Pause::Interrupted {
                return Err(CreateError::Interrupted { wwpn: names.wwpn });
            }
        }
    }

    /// The virtual port that a user means: by its name or WWPN, or by its host.
    ///
    /// # Errors
    /// There is none.
    pub fn find(san: &San, what: &str) -> Result<Vport, DeleteError> {
        let wwpn = what.parse::<Wwn>().ok();
        let host = ["host", "scsi_host"].into_iter().find_map(|prefix| number_after(what, prefix));
        let meant = |vport: &&Vport| {
            vport.name == what || wwpn.is_some() && vport.wwpn == wwpn || host.is_some() && vport.host == host
        };
        san.vports.iter().find(meant).cloned().ok_or_else(|| {
            let base = host.and_then(|number| san.host(number)).is_some();
            if base { DeleteError::Physical(what.to_owned()) } else { DeleteError::Unknown(what.to_owned()) }
        })
    }

    /// Deletes a virtual port. Whoever has its units loses them, so that is refused unless it is meant.
    ///
    /// # Errors
    /// [`DeleteError`]; it stays.
    pub fn delete(&mut self, what: &str, force: bool) -> Result<Vport, DeleteError> {
        let _lock = self.lock()?;
        let san = San::read(self.roots);
        let vport = Self::find(&san, what)?;
        let (Some(wwpn), Some(wwnn)) = (vport.wwpn, vport.wwnn) else {
            return Err(DeleteError::Unknown(what.to_owned()));
        };
        if !force {
            let record = self.store.records().into_iter().find(|record| record.wwpn == wwpn);
            if let Some(record) = record.filter(|record| record.is_alive(self.roots)) {
                return Err(DeleteError::Owned { vport: vport.name, owner: record.owner, pid: record.pid });
            }
            let users = Users::read(self.roots);
            let units = vport.host.into_iter().flat_map(|host| san.units_of(host));
            if let Some((unit, user)) =
                units.flat_map(|unit| users.of(unit).into_iter().map(move |u| (unit, u))).next()
            {
                let unit = unit.block.clone().unwrap_or_else(|| unit.address.to_string());
                return Err(DeleteError::InUse { vport: vport.name, unit, user: user.to_string() });
            }
        }
        self.remove(vport.parent, Names { wwnn, wwpn })?;
        Ok(vport)
    }

    /// Has the kernel remove one, and waits until it is gone; so is the record of whose it was.
    fn remove(&mut self, parent: u32, names: Names) -> Result<(), DeleteError> {
        let begin = self.kernel.now();
        let is_late = |now: Duration| now.saturating_sub(begin) >= REMOVAL;
        let file = self.file(parent, "vport_delete");
        while vports(self.roots).iter().any(|vport| is(vport, names)) {
            match self.kernel.write(&file, &line(names)) {
                // It has just gone.
                Ok(()) => break,
                Err(WriteError::Open(error) | WriteError::Write(error)) if error::is_gone(&error) => break,
                // It is being created, or somebody else removes it.
                Err(WriteError::Write(error)) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error::not_deleted(parent, names, &error)),
            }
            if is_late(self.kernel.now()) {
                return Err(DeleteError::Stays { parent, wwpn: names.wwpn });
            }
            // A signal does not end this: it is what the signal asks for.
            let _ = self.kernel.pause(STEP);
        }
        while vports(self.roots).iter().any(|vport| is(vport, names)) {
            if is_late(self.kernel.now()) {
                return Err(DeleteError::Stays { parent, wwpn: names.wwpn });
            }
            let _ = self.kernel.pause(STEP);
        }
        self.store.forget(names.wwpn)?;
        Ok(())
    }

    /// Deletes what belonged to processes that are no more. Nothing else: ports without a record are of others, or for good.
    ///
    /// # Errors
    /// The lock's. Those of each port are with it.
    pub fn clean(&mut self) -> Result<Vec<CleanedUp>, DeleteError> {
        let mut cleaned = Vec::new();
        for record in self.store.records() {
            let _lock = self.lock()?;
            if let Some(result) = self.clean_one(record.wwpn).transpose() {
                cleaned.push((record, result));
            }
        }
        Ok(cleaned)
    }

    /// The same, of one port. `None` if it is not a process's that is no more.
    fn clean_one(&mut self, wwpn: Wwn) -> Result<Option<Cleaned>, DeleteError> {
        let record = self.store.records().into_iter().find(|record| record.wwpn == wwpn);
        let Some(record) = record.filter(|record| !record.is_alive(self.roots)) else { return Ok(None) };
        let stays = self.store.definitions().into_iter().any(|(_, definition)| {
            definition.is_ok_and(|definition| definition.boot && definition.wwpn == wwpn)
        });
        let names = Names { wwpn, wwnn: record.wwnn };
        let vport = vports(self.roots).into_iter().find(|vport| is(vport, names));
        match vport {
            Some(_) if stays => {
                self.store.forget(wwpn).map(|()| Some(Cleaned::Kept)).map_err(DeleteError::State)
            }
            Some(vport) => self.remove(vport.parent, names).map(|()| Some(Cleaned::Deleted)),
            None => self.store.forget(wwpn).map(|()| Some(Cleaned::Gone)).map_err(DeleteError::State),
        }
    }

    /// Names that are taken, or promised to others than `own`.
    fn known(&self, san: &San, own: Names) -> Known {
        let mut known = Known::of(san);
        for record in self.store.records() {
            known.promise(record.wwpn, format!("process {} ({}) has it", record.pid, record.owner));
        }
        for (name, definition) in self.store.definitions() {
            if let Ok(definition) = definition
                && definition.names() != own
            {
                known.promise(definition.wwpn, format!("the definition {name} has it"));
            }
        }
        known
    }

    /// Names that are taken, or promised to somebody.
    pub fn taken(&self) -> Known {
        self.known(&San::read(self.roots), Names { wwnn: Wwn::new(0), wwpn: Wwn::new(0) })
    }

    fn lock(&mut self) -> Result<Lock, StateError> {
        let begin = self.kernel.now();
        loop {
            if let Some(lock) = self.store.try_lock()? {
                return Ok(lock);
            }
            let late = self.kernel.now().saturating_sub(begin) >= PATIENCE;
            if late || self.kernel.pause(STEP) == Pause::Interrupted {
                return Err(StateError::Locked(self.store.lock_path()));
            }
        }
    }

    fn file(&self, host: u32, name: &str) -> PathBuf {
        self.roots.sys.join(format!("class/fc_host/host{host}")).join(name)
    }
}

/// What the kernel takes: port and node, without `0x`.
fn line(names: Names) -> String {
    format!("{}:{}", names.wwpn, names.wwnn)
}

fn is(vport: &Vport, names: Names) -> bool {
    vport.wwpn == Some(names.wwpn) && vport.wwnn == Some(names.wwnn)
}

/// States in which the drivers try no more by themselves, as long as the link stays as it is.
fn is_final(state: &VportState) -> bool {
    matches!(
        state,
        VportState::NoFabricSupport
            | VportState::NoFabricResources
            | VportState::FabricRejectedWwn
            | VportState::Failed
            | VportState::Disabled
    )
}

#[cfg(test)]
mod tests;
