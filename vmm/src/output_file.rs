//! Files that take what the guest prints. They are emptied when the machine is certain to start, and not before: a start
//! that fails leaves what an earlier run, or a machine that runs, has in them.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use thiserror::Error;

/// Why there is no such file.
#[derive(Debug, Error)]
pub enum OutputError {
    /// Another process writes to it.
    #[error("another process writes to it; end it or choose another path")]
    InUse,
    /// From the system.
    #[error("cannot open for writing: {}; choose a file that you may write", crate::config::reason(.0).to_lowercase())]
    System(io::Error),
}

/// Opens the file or makes it, for this process alone.
pub(crate) fn open(path: &Path) -> Result<File, OutputError> {
    // Non-blocking for a FIFO, which without a reader cannot be opened at all; a regular file does not care.
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).map_err(OutputError::System)?;
    // Devices are for everybody. Some file systems have no locks.
    if is_regular(&file) && matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
        return Err(OutputError::InUse);
    }
    Ok(file)
}

/// Takes away what an earlier run left.
pub(crate) fn empty(file: &File) -> io::Result<()> {
    if is_regular(file) { file.set_len(0) } else { Ok(()) }
}

fn is_regular(file: &File) -> bool {
    file.metadata().is_ok_and(|found| found.is_file())
}
