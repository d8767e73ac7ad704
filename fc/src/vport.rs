//! Virtual ports come and go. The kernel takes the names and says yes at once; whether the fabric has the port, only its state says, some
//! time later. So who creates one waits, and on failure nothing of it is left.

mod error;
mod kernel;
mod remove;
mod start;

use std::path::PathBuf;
use std::time::Duration;

use self::remove::Target;
use crate::address::number_after;
use crate::choose::Wanted;
use crate::model::{Host, San, Vport, VportState, vports};
use crate::names::{Known, Names, Unfit};
use crate::state::{Definition, Life, Lock, Record, StateError, Store};
use crate::sysfs::Roots;
use crate::users::Users;
use crate::wwn::Wwn;

pub use error::{CreateError, DeleteError, Objection};
pub use kernel::{Kernel, Live, Pause, WriteError};
pub use remove::{Cleaned, CleanedUp, Cleanup};

/// How often the state is looked at.
const STEP: Duration = Duration::from_millis(50);
/// How long a deletion takes at most: the driver logs out at the fabric first, and is waited for before it says anything and after.
pub const DELETION: Duration = remove::REMOVAL.saturating_add(SETTLED);
/// How long a state that does not get better by itself may last: a link that has just come up passes through some.
const SETTLED: Duration = Duration::from_secs(5);
/// How long others may have a lock.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a process calls itself whose port is to be nobody's.
const TOOL: &str = "vmm fc create";

/// A virtual port that is to be.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// On which port.
    pub wanted: Wanted,
    /// Its names.
    pub names: Names,
    /// The definition that they are of, if they are of one.
    pub definition: Option<&'a str>,
    /// Names of a company whose hardware has such are fine.
    pub any_oui: bool,
    /// How long it may take until the fabric has it.
    pub deadline: Duration,
    /// Whose it is. It stays when this process has ended, else.
    pub owner: Option<&'a str>,
    /// What an ended process has left under the name is in the way, unless that was of the same owner; it is deleted first, else.
    pub spares: bool,
}

/// Creates and deletes virtual ports.
pub struct Ports<'a, K> {
    roots: &'a Roots,
    store: &'a Store,
    kernel: K,
}

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
        // What a process of this name has left that was ended.
        let may_clean = |record: &Record| {
            let is_old = || record.life(self.roots) == Life::OtherStart;
            !request.spares || request.owner == Some(&*record.owner) || is_old()
        };
        if self.store.record_of(request.names.wwpn)?.is_none_or(|record| may_clean(&record)) {
            self.clean_name(request.names.wwpn).map_err(CreateError::Clean)?;
        }
        let record = self.begin(request)?;
        let mut target = Target::from(&record);
        let mut result = self.wait(&mut target, request.deadline);
        if result.is_ok() && request.owner.is_none() {
            // As long as it is this process's, somebody would delete it.
            result = result.and_then(|vport| Ok(self.forget(&record).map(|()| vport)?));
        }
        let error = match result {
            Ok(vport) => return Ok(vport),
            Err(error) => error,
        };
        let removed = self.remove(&target, Some(&record)).and_then(|_| Ok(self.forget(&record)?));
        Err(match removed {
            Ok(()) => error,
            Err(left) => CreateError::Left { error: Box::new(error), left: Box::new(left) },
        })
    }

    /// Has the kernel create it. What is recorded says which one it is.
    fn begin(&mut self, request: &Request<'_>) -> Result<Record, CreateError> {
        let names = request.names;
        // Nobody deletes one of these names meanwhile, who means another one.
        let _one = self.lock_one(names.wwpn)?;
        let (host, mut record) = self.promise(request)?;
        let begun = self.kernel.write(&self.file(host.number, "vport_create"), &line(names));
        if let Err(error) = begun {
            self.forget(&record)?;
            return Err(error::refused(&host, &error));
        }
        // The kernel makes it before it answers. Where it is not to be seen yet, its names must do: nobody else makes one of them.
        let seen = vports(self.roots).unwrap_or_default();
        let Some(vport) = seen.into_iter().find(|vport| Target::from(&record).is(vport)) else {
            return Ok(record);
        };
        (record.vport, record.id) = (Some(vport.name), Some(vport.id));
        // Without it, whoever cleans goes by the names.
        let _ = self.lock().and_then(|_lock| self.store.record(&record));
        Ok(record)
    }

    /// Chooses a port, looks at the names, and writes down whose the virtual port is before there is one: so it is found whatever becomes
    /// of this process.
    fn promise(&mut self, request: &Request<'_>) -> Result<(Host, Record), CreateError> {
        let (names, begin) = (request.names, self.kernel.now());
        loop {
            let lock = self.lock()?;
            let san = San::try_read(self.roots)?;
            let checked = names.check(&self.known(&san, Some(request))?, request.any_oui);
            let settles = self.kernel.now().saturating_sub(begin) < SETTLED;
            if matches!(checked, Err(Unfit::LoggedIn(..))) && settles {
                // It may be what was deleted a moment ago.
                drop(lock);
                if self.kernel.pause(STEP) == Pause::Interrupted {
                    return Err(CreateError::Interrupted { wwpn: names.wwpn });
                }
                continue;
            }
            let host = request.wanted.choose(&san)?.clone();
            checked?;
            let owner = request.owner.unwrap_or(TOOL);
            let record = Record::new(self.roots, names, host.number, std::process::id(), owner);
            let record = record.ok_or_else(|| CreateError::NoProcess(self.roots.proc.clone()))?;
            self.store.record(&record)?;
            return Ok((host, record));
        }
    }

    /// Waits until the fabric has it, and sees which one it is.
    fn wait(&mut self, target: &mut Target, deadline: Duration) -> Result<Vport, CreateError> {
        let begin = self.kernel.now();
        let mut since = (VportState::Unknown, begin);
        loop {
            let now = self.kernel.now();
            let waited = now.saturating_sub(begin);
            match vports(self.roots) {
                Ok(vports) => {
                    let (parent, wwpn) = (target.parent, target.names.wwpn);
                    let found = vports.into_iter().find(|vport| target.is(vport));
                    let Some(vport) = found else {
                        if target.is_known() {
                            return Err(CreateError::Gone { wwpn });
                        }
                        if waited >= deadline {
                            return Err(CreateError::Nothing { parent, wwpn });
                        }
                        if self.kernel.pause(STEP) == Pause::Interrupted {
                            return Err(CreateError::Interrupted { wwpn });
                        }
                        continue;
                    };
                    target.note(&vport);
                    if vport.state == VportState::Active && vport.host.is_some() {
                        return Ok(vport);
                    }
                    if since.0 != vport.state {
                        since = (vport.state.clone(), now);
                    }
                    let settled = is_final(&vport.state) && now.saturating_sub(since.1) >= SETTLED;
                    if settled || waited >= deadline {
                        return Err(error::not_active(self.roots, &vport, target.names, waited));
                    }
                }
                Err(error) if waited >= deadline => return Err(error.into()),
                Err(_) => {}
            }
            if self.kernel.pause(STEP) == Pause::Interrupted {
                return Err(CreateError::Interrupted { wwpn: target.names.wwpn });
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
        let san = San::try_read(self.roots)?;
        let vport = Self::find(&san, what)?;
        let Some(target) = Target::of(&vport) else { return Err(DeleteError::Unknown(what.to_owned())) };
        let record = match self.store.record_of(target.names.wwpn) {
            Err(_) if force => None,
            record => record?,
        };
        if !force {
            if let Some(record) = &record {
                let (vport, owner, pid) = (vport.name.clone(), record.owner.clone(), record.pid);
                match record.life(self.roots) {
                    Life::Lives => return Err(DeleteError::Owned { vport, owner, pid }),
                    Life::Unknown => return Err(DeleteError::Unclear { vport, owner, pid }),
                    Life::Ended | Life::OtherStart => {}
                }
            }
            let users = Users::read(self.roots);
            self.is_free(&san, &vport, &users, |_| true)?;
        }
        self.remove(&target, None)?;
        if let Some(record) = record {
            self.forget(&record)?;
        }
        Ok(vport)
    }

    /// Names that are taken, or promised to others.
    fn known(&self, san: &San, own: Option<&Request<'_>>) -> Result<Known, StateError> {
        let mut known = Known::of(san);
        for record in self.store.records()?.into_iter().flatten() {
            let Record { pid, owner, .. } = &record;
            let mut whose = format!("process {pid} ({owner}) has it");
            match record.life(self.roots) {
                Life::Unknown => {
                    let path = self.store.record_path(record.wwpn);
                    let path = path.display();
                    whose += &format!(", and cannot be seen from here; if it has ended, remove {path}");
                }
                Life::Ended => whose += ", which has ended; vmm fc clean deletes it",
                Life::Lives | Life::OtherStart => {}
            }
            known.promise(record.wwpn, whose);
        }
        for (name, definition) in self.others(own)? {
            known.promise(definition.wwpn, format!("the definition {name} has it"));
        }
        Ok(known)
    }

    /// The definitions of others. Whoever gives both names of one without its name means that one.
    fn others(&self, own: Option<&Request<'_>>) -> Result<Vec<(String, Definition)>, StateError> {
        let is_own = |name: &str, definition: &Definition| match own {
            Some(Request { definition: Some(own), .. }) => *own == name,
            Some(Request { names, .. }) => *names == definition.names(),
            None => false,
        };
        let all = self.store.definitions()?.into_iter();
        let fine = all.filter_map(|(name, definition)| Some((name, definition.ok()?)));
        Ok(fine.filter(|(name, definition)| !is_own(name, definition)).collect())
    }

    /// Names that are taken, or promised to somebody.
    ///
    /// # Errors
    /// What is stored, or what the host has, cannot be read.
    pub fn taken(&self) -> Result<Known, CreateError> {
        Ok(self.known(&San::try_read(self.roots)?, None)?)
    }

    /// What is stored is read and written by nobody else, until this is dropped. It may take a moment.
    ///
    /// # Errors
    /// The file system's; or somebody else has it for too long.
    pub fn lock(&mut self) -> Result<Lock, StateError> {
        let begin = self.kernel.now();
        loop {
            if let Some(lock) = self.store.try_lock()? {
                return Ok(lock);
            }
            if self.kernel.now().saturating_sub(begin) >= PATIENCE {
                return Err(StateError::Locked(self.store.lock_path()));
            }
            // A signal does not end this: whoever has it does not wait for anything.
            let _ = self.kernel.pause(STEP);
        }
    }

    /// Nobody else asks the kernel for something of this name.
    fn lock_one(&mut self, wwpn: Wwn) -> Result<Lock, CreateError> {
        let begin = self.kernel.now();
        loop {
            if let Some(lock) = self.store.try_lock_one(wwpn)? {
                return Ok(lock);
            }
            if self.kernel.now().saturating_sub(begin) >= PATIENCE {
                return Err(StateError::Locked(self.store.lock_path_of(wwpn)).into());
            }
            if self.kernel.pause(STEP) == Pause::Interrupted {
                return Err(CreateError::Interrupted { wwpn });
            }
        }
    }

    fn forget(&mut self, record: &Record) -> Result<(), StateError> {
        let _lock = self.lock()?;
        self.store.forget(record)
    }

    fn file(&self, host: u32, name: &str) -> PathBuf {
        self.roots.sys.join(format!("class/fc_host/host{host}")).join(name)
    }
}

/// What the kernel takes: port and node, without `0x`.
fn line(names: Names) -> String {
    format!("{}:{}", names.wwpn, names.wwnn)
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
