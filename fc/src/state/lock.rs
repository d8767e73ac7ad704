//! Who is at work: locks of files, which go with the process that has them. Only root can open the files, so that nobody else keeps it waiting.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::file::make;
use super::{StateError, Store};
use crate::wwn::Wwn;

/// The owner's alone.
const MODE: u32 = 0o600;

/// Nobody else is at work on the same, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Store {
    /// That of what is stored, if nobody has it. It is had while files are read and written, and never while the kernel is asked for something.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn try_lock(&self) -> Result<Option<Lock>, StateError> {
        try_lock(&self.run, &self.lock_path())
    }

    /// That of what the kernel is asked of one virtual port, if nobody has it.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn try_lock_one(&self, wwpn: Wwn) -> Result<Option<Lock>, StateError> {
        try_lock(&self.run.join("locks"), &self.lock_path_of(wwpn))
    }

    pub(crate) fn lock_path(&self) -> PathBuf {
        self.run.join("lock")
    }

    pub(crate) fn lock_path_of(&self, wwpn: Wwn) -> PathBuf {
        self.run.join("locks").join(wwpn.to_string())
    }
}

fn try_lock(directory: &Path, path: &Path) -> Result<Option<Lock>, StateError> {
    let failed = |error| StateError::Files { path: path.into(), what: "lock", error };
    make(directory)?;
    let file = OpenOptions::new().create(true).append(true).mode(MODE).open(path).map_err(failed)?;
    // An older version made it for everybody to open.
    if file.metadata().map_err(failed)?.permissions().mode() & 0o777 != MODE {
        file.set_permissions(Permissions::from_mode(MODE)).map_err(failed)?;
    }
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock { _file: file })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}
