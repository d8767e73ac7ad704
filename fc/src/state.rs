//! What is stored: definitions of virtual ports, for good, and whose a virtual port is, until the host starts anew.
//!
//! A file is written beside its place, flushed, and linked there: it is there whole, or not at all, and never in place of another.

pub(crate) mod file;
mod lock;
mod record;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::file::{Put, flush, make, put, read, stems};
use crate::address::{number_after, port};
use crate::choose::Rules;
use crate::names::Names;
use crate::wwn::Wwn;

pub use self::lock::Lock;
pub use self::record::Record;
pub use crate::process::Life;

/// Where definitions and records are.
#[derive(Clone, Debug)]
pub struct Store {
    /// Of this start of the host: `/run/vmm/fc`
    run: PathBuf,
    /// For good: `/var/lib/vmm/fc`
    pub(crate) keep: PathBuf,
}

/// A virtual port that somebody wants again and again, with names that are its own for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// The name of its node.
    pub wwnn: Wwn,
    /// Its name.
    pub wwpn: Wwn,
    /// It is created when the host starts, and belongs to no machine.
    #[serde(default)]
    pub boot: bool,
    /// On which port.
    #[serde(flatten)]
    pub rules: Rules,
}

impl Definition {
    /// Both names.
    pub fn names(&self) -> Names {
        Names { wwnn: self.wwnn, wwpn: self.wwpn }
    }
}

/// What is defined under a name, or why that cannot be read.
pub type Named = (String, Result<Definition, StateError>);

/// Why something cannot be stored, or read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not a name for a definition.
    #[error(
        "\"{0}\" is no name for a definition: that is up to 64 letters, digits, dots, dashes and underscores, and begins with none of \
             the last three"
    )]
    Name(String),
    /// A name that ports have.
    #[error("\"{0}\" is no name for a definition, for a port may have it; take another one")]
    OfPorts(String),
    /// It is there already.
    #[error("{0} is defined already ({1}); vmm fc undefine {0} removes it, and its names with it")]
    Exists(String, PathBuf),
    /// There is none.
    #[error("{0} is not defined; vmm fc define {0} does it")]
    Missing(String),
    /// The file says something else.
    #[error("{path}: {why}; mend or remove it", path = .path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The file system's.
    #[error("{path}: cannot {what}: {error}{remedy}", path = .path.display(), remedy = remedy(.error))]
    Files {
        /// The file.
        path: PathBuf,
        /// Read, write ...
        what: &'static str,
        /// Why.
        error: io::Error,
    },
    /// Somebody else is at work.
    #[error("another process has been at work on virtual ports for too long ({path} is locked); see what it waits for", path = .0.display())]
    Locked(PathBuf),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; be root, or let this user write there",
        io::ErrorKind::ReadOnlyFilesystem => "; that file system is mounted read-only",
        _ => "",
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

impl Store {
    /// `run/vmm/fc` and `var/lib/vmm/fc` below a directory.
    pub fn below(root: &Path) -> Self {
        Self { run: root.join("run/vmm/fc"), keep: root.join("var/lib/vmm/fc") }
    }

    /// All definitions, by name, with the errors of those that cannot be read.
    ///
    /// # Errors
    /// Which there are cannot be read.
    pub fn definitions(&self) -> Result<Vec<Named>, StateError> {
        let names = stems(&self.keep)?.into_iter().filter(|name| is_name(name));
        Ok(names.map(|name| (name.clone(), self.definition(&name))).collect())
    }

    /// One definition.
    ///
    /// # Errors
    /// [`StateError`]; there is none.
    pub fn definition(&self, name: &str) -> Result<Definition, StateError> {
        read(&self.place(name)?)?.ok_or_else(|| StateError::Missing(name.to_owned()))
    }

    /// Stores a definition, on the disk when this returns.
    ///
    /// # Errors
    /// [`StateError`]; there is one of this name.
    pub fn define(&self, name: &str, definition: &Definition) -> Result<(), StateError> {
        let path = self.place(name)?;
        if is_of_ports(name) {
            return Err(StateError::OfPorts(name.to_owned()));
        }
        make(&self.keep)?;
        match put(&path, definition, Put::ForGood) {
            Err(StateError::Files { error, .. }) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(StateError::Exists(name.to_owned(), path))
            }
            result => result,
        }
    }

    /// Stores another definition in place of one of this name, on the disk when this returns.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn redefine(&self, name: &str, definition: &Definition) -> Result<(), StateError> {
        put(&self.place(name)?, definition, Put::InPlace)
    }

    /// Removes a definition.
    ///
    /// # Errors
    /// [`StateError`]; there is none.
    pub fn undefine(&self, name: &str) -> Result<(), StateError> {
        let path = self.place(name)?;
        match fs::remove_file(&path) {
            Ok(()) => flush(&self.keep),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(StateError::Missing(name.to_owned()))
            }
            Err(error) => Err(StateError::Files { path, what: "remove", error }),
        }
    }

    fn place(&self, name: &str) -> Result<PathBuf, StateError> {
        let place = is_name(name).then(|| self.keep.join(format!("{name}.toml")));
        place.ok_or_else(|| StateError::Name(name.chars().take(64).collect()))
    }
}

/// Whether a definition may have this name, as far as its letters go.
pub fn is_name(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=64).contains(&name.len())
        && name.chars().all(fine)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// Whether a name is one that ports have, too: a definition stands for its port, and would hide that one.
pub fn is_of_ports(name: &str) -> bool {
    ["host", "scsi_host"].into_iter().any(|prefix| number_after(name, prefix).is_some())
        || ["vport-", "rport-"].into_iter().any(|prefix| port(name, prefix).is_some())
        || name.parse::<Wwn>().is_ok()
}

#[cfg(test)]
mod tests;
