//! Whose a virtual port is.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::file::{Put, make, put, read, stems};
use super::{StateError, Store};
use crate::names::Names;
use crate::process::{Life, Process};
use crate::sysfs::Roots;
use crate::wwn::Wwn;

/// Whose a virtual port is: it goes when that process is no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its name.
    pub wwpn: Wwn,
    /// The name of its node.
    pub wwnn: Wwn,
    /// The port that it is on.
    pub parent: u32,
    /// The process.
    pub pid: u32,
    /// When that started, in ticks since the start of the host.
    pub start: u64,
    /// The start of the host that these count from.
    pub boot: String,
    /// The PID namespace that has the process by this number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<u64>,
    /// What the process calls itself: a machine.
    pub owner: String,
    /// What the kernel calls the port, once it is there: the names may be another one's later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vport: Option<String>,
    /// What tells it from another one that the kernel calls so ([`Vport::id`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
}

impl Record {
    /// For a virtual port of this process, or another one that lives.
    pub(crate) fn new(roots: &Roots, names: Names, parent: u32, pid: u32, owner: &str) -> Option<Self> {
        let Process { pid, start, boot, namespace } = Process::read(roots, pid)?;
        let Names { wwpn, wwnn } = names;
        let owner = owner.to_owned();
        Some(Self { wwpn, wwnn, parent, pid, start, boot, namespace, owner, vport: None, id: None })
    }

    /// Whether the process is still there: that one, not another with its number.
    pub fn life(&self, roots: &Roots) -> Life {
        self.process().life(roots)
    }

    fn process(&self) -> Process {
        let Self { pid, start, ref boot, namespace, .. } = *self;
        Process { pid, start, boot: boot.clone(), namespace }
    }

    /// Both names of the port.
    pub fn names(&self) -> Names {
        Names { wwpn: self.wwpn, wwnn: self.wwnn }
    }

    /// Whether two are of one process and one port.
    fn is_same(&self, other: &Self) -> bool {
        let fits = self.vport.is_none() || other.vport.is_none() || self.vport == other.vport;
        self.names() == other.names() && self.process() == other.process() && fits
    }
}

impl Store {
    /// Whose virtual ports are, with the errors of those that cannot be read.
    ///
    /// # Errors
    /// Which there are cannot be read.
    pub fn records(&self) -> Result<Vec<Result<Record, StateError>>, StateError> {
        let directory = self.run.join("vports");
        let paths = stems(&directory)?.into_iter().map(|name| directory.join(format!("{name}.toml")));
        // One that has just gone is none.
        Ok(paths.filter_map(|path| read(&path).transpose()).collect())
    }

    /// Whose one virtual port is, if it is somebody's.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn record_of(&self, wwpn: Wwn) -> Result<Option<Record>, StateError> {
        read(&self.record_path(wwpn))
    }

    /// Writes down whose a virtual port is, in place of what is written. Whoever does so has looked at that, and has the lock.
    pub(crate) fn record(&self, record: &Record) -> Result<(), StateError> {
        make(&self.run.join("vports"))?;
        put(&self.record_path(record.wwpn), record, Put::Passing)
    }

    /// Whether this is still what is written.
    pub(crate) fn is_record(&self, record: &Record) -> Result<bool, StateError> {
        Ok(self.record_of(record.wwpn)?.is_some_and(|written| written.is_same(record)))
    }

    /// It is nobody's any more, or no more: unless it has become somebody else's. Whoever does so has the lock.
    pub(crate) fn forget(&self, record: &Record) -> Result<(), StateError> {
        if !self.is_record(record)? {
            return Ok(());
        }
        let path = self.record_path(record.wwpn);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StateError::Files { path, what: "remove", error })
            }
            _ => Ok(()),
        }
    }

    /// Where it is written down whose a port of this name is.
    pub fn record_path(&self, wwpn: Wwn) -> PathBuf {
        self.run.join("vports").join(format!("{wwpn}.toml"))
    }
}
