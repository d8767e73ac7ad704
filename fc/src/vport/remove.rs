//! Virtual ports go: those that somebody wants to go, and those of processes that are no more.

use std::time::Duration;

use super::{Kernel, Ports, SETTLED, STEP, WriteError, error, line};
use crate::model::{San, Vport, vports};
use crate::names::Names;
use crate::state::{Life, Record, StateError};
use crate::users::{User, Users};
use crate::vport::DeleteError;
use crate::wwn::Wwn;

/// How long the drivers may take to remove one, counted from what they say first. It logs out at the fabric: lpfc takes half a minute for
/// one attempt, and may need several.
pub(super) const REMOVAL: Duration = Duration::from_secs(150);
/// When to ask again for what was not done.
const AGAIN: Duration = Duration::from_millis(500);

/// What became of a virtual port whose process is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleaned {
    /// It was there, and is deleted.
    Deleted,
    /// It was gone already.
    Gone,
    /// It stays: a definition wants it whenever the host runs.
    Kept,
    /// It stays: nobody can see from here whether that process is no more.
    Unclear,
}

/// The record of a process that is no more, with what became of its port.
pub type CleanedUp = (Record, Result<Cleaned, DeleteError>);

/// What was done for processes that are no more.
#[derive(Debug, Default)]
pub struct Cleanup {
    /// For each of their ports.
    pub done: Vec<CleanedUp>,
    /// Files that do not say whose a port is.
    pub broken: Vec<StateError>,
}

/// Which virtual port is to go: that one, and none that has its names later.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) parent: u32,
    pub(super) names: Names,
    /// What the kernel calls it, and [`Vport::id`], if that is known.
    known: Option<(String, u64)>,
}

impl Target {
    /// Names of a virtual port that the kernel has.
    pub(super) fn of(vport: &Vport) -> Option<Self> {
        let names = Names { wwpn: vport.wwpn?, wwnn: vport.wwnn? };
        Some(Self { parent: vport.parent, names, known: Some((vport.name.clone(), vport.id)) })
    }

    /// Whether it is that one already, and not any of its names.
    pub(super) fn is_known(&self) -> bool {
        self.known.is_some()
    }

    /// It is this one.
    pub(super) fn note(&mut self, vport: &Vport) {
        self.known.get_or_insert_with(|| (vport.name.clone(), vport.id));
    }

    pub(super) fn is(&self, vport: &Vport) -> bool {
        let is_known = self.known.as_ref().is_none_or(|(name, id)| *name == vport.name && *id == vport.id);
        is_known && vport.wwpn == Some(self.names.wwpn) && vport.wwnn == Some(self.names.wwnn)
    }
}

impl From<&Record> for Target {
    fn from(record: &Record) -> Self {
        let known = record.vport.clone().zip(record.id);
        Self { parent: record.parent, names: record.names(), known }
    }
}

impl<K: Kernel> Ports<'_, K> {
    /// Has the kernel remove one, and waits until it is gone. Whose it is `claim` says, if it is that process's: it stays when it is somebody
    /// else's. Whether it was removed, or was not there.
    pub(super) fn remove(&mut self, target: &Target, claim: Option<&Record>) -> Result<bool, DeleteError> {
        let begin = self.kernel.now();
        let (mut first, mut last) = (None, None);
        loop {
            match vports(self.roots) {
                Ok(vports) if !vports.iter().any(|vport| target.is(vport)) => return Ok(true),
                Ok(_) => {}
                Err(error) if self.kernel.now().saturating_sub(begin) >= SETTLED => return Err(error.into()),
                Err(_) => {
                    let _ = self.kernel.pause(STEP);
                    continue;
                }
            }
            let now = self.kernel.now();
            if last.is_none_or(|last| now.saturating_sub(last) >= AGAIN) && self.ask(target, claim)? {
                let now = self.kernel.now();
                (first, last) = (first.or(Some(now)), Some(now));
                continue;
            }
            if let Some(record) = claim
                && !self.store.is_record(record)?
            {
                return Ok(false);
            }
            if now.saturating_sub(first.unwrap_or(begin)) >= REMOVAL {
                let waited = now.saturating_sub(begin).as_secs();
                return Err(DeleteError::Stays { parent: target.parent, wwpn: target.names.wwpn, waited });
            }
            // A signal does not end this: it is what the signal asks for.
            let _ = self.kernel.pause(if now.saturating_sub(begin) < SETTLED { STEP } else { AGAIN });
        }
    }

    /// Asks the kernel, unless somebody else does, or it is not there. Whether it was asked.
    fn ask(&mut self, target: &Target, claim: Option<&Record>) -> Result<bool, DeleteError> {
        let Some(_one) = self.store.try_lock_one(target.names.wwpn)? else { return Ok(false) };
        if let Some(record) = claim
            && !self.store.is_record(record)?
        {
            return Ok(false);
        }
        // Its names alone are what the kernel is told, and they may have become another one's.
        if !vports(self.roots)?.iter().any(|vport| target.is(vport)) {
            return Ok(false);
        }
        match self.kernel.write(&self.file(target.parent, "vport_delete"), &line(target.names)) {
            Ok(()) => {}
            // It is being created, or somebody else removes it: the list says when it has gone.
            Err(WriteError::Open(error) | WriteError::Write(error)) if error::is_gone(&error) => {}
            // lpfc: the fabric has not answered the logout yet.
            Err(WriteError::Write(error))
                if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN)) => {}
            Err(error) => return Err(error::not_deleted(target.parent, target.names, &error)),
        }
        Ok(true)
    }

    /// Deletes what a process has made under a name, by what was written down of it. It is done where that is gone, or somebody else has the
    /// name since.
    ///
    /// # Errors
    /// It is still there.
    pub fn delete_own(&mut self, wwpn: Wwn, pid: u32) -> Result<(), DeleteError> {
        let Some(record) = self.store.record_of(wwpn)?.filter(|record| record.pid == pid) else {
            return Ok(());
        };
        if self.remove(&Target::from(&record), Some(&record))? {
            self.forget(&record)?;
        }
        Ok(())
    }

    /// Deletes what belonged to processes that are no more. Nothing else: ports without a record are of others, or for good.
    ///
    /// # Errors
    /// Whose ports are cannot be read. Those of each port are with it.
    pub fn clean(&mut self) -> Result<Cleanup, DeleteError> {
        let mut cleanup = Cleanup::default();
        for record in self.store.records()? {
            match record {
                Ok(record) => {
                    let result = self.clean_one(&record).transpose();
                    cleanup.done.extend(result.map(|result| (record, result)));
                }
                Err(error) => cleanup.broken.push(error),
            }
        }
        Ok(cleanup)
    }

    /// The same, of one name.
    ///
    /// # Errors
    /// What is left is still there.
    pub fn clean_name(&mut self, wwpn: Wwn) -> Result<(), DeleteError> {
        if let Some(record) = self.store.record_of(wwpn)? {
            self.clean_one(&record)?;
        }
        Ok(())
    }

    /// `None` if the process lives.
    fn clean_one(&mut self, record: &Record) -> Result<Option<Cleaned>, DeleteError> {
        let what = match record.life(self.roots) {
            Life::Lives => return Ok(None),
            Life::Unknown => return Ok(Some(Cleaned::Unclear)),
            // All ports went with that start.
            Life::OtherStart => Cleaned::Gone,
            Life::Ended => self.clean_ended(record)?,
        };
        self.forget(record)?;
        Ok(Some(what))
    }

    fn clean_ended(&mut self, record: &Record) -> Result<Cleaned, DeleteError> {
        let san = San::try_read(self.roots)?;
        let target = Target::from(record);
        let found = san
            .vports
            .iter()
            .find_map(|vport| Target::of(vport).filter(|_| target.is(vport)).zip(Some(vport)));
        let Some((target, vport)) = found else { return Ok(Cleaned::Gone) };
        for (_, definition) in self.store.definitions()? {
            // One that cannot be read may be of this port.
            let definition = definition?;
            if definition.boot && definition.wwpn == record.wwpn {
                return Ok(Cleaned::Kept);
            }
        }
        let users = Users::read(self.roots);
        self.is_free(&san, vport, &users, |user| !users.goes_with_port(user))?;
        Ok(if self.remove(&target, Some(record))? { Cleaned::Deleted } else { Cleaned::Kept })
    }

    /// Whether nobody has units of a virtual port, of those that count.
    ///
    /// # Errors
    /// Somebody has; or who has them cannot be seen.
    pub(super) fn is_free(
        &self,
        san: &San,
        vport: &Vport,
        users: &Users,
        counts: impl Fn(&User) -> bool,
    ) -> Result<(), DeleteError> {
        let units = vport.host.into_iter().flat_map(|host| san.units_of(host));
        let mut all = units.flat_map(|unit| users.of(unit).into_iter().map(move |user| (unit, user)));
        if let Some((unit, user)) = all.find(|(_, user)| counts(user)) {
            let unit = unit.block.clone().unwrap_or_else(|| unit.address.to_string());
            return Err(DeleteError::InUse { vport: vport.name.clone(), unit, user: user.to_string() });
        }
        match users.unseen() {
            Some(why) => Err(DeleteError::Unseen { vport: vport.name.clone(), why: why.to_owned() }),
            None => Ok(()),
        }
    }
}
