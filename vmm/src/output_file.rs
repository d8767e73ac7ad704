//! Files that take what the guest prints. They are emptied when the machine is certain to start, and not before: a start
//! that fails leaves what an earlier run, or a machine that runs, has in them.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use thiserror::Error;

/// How long a file is waited for that another process may only be looking at, as with `--check`.
const PATIENCE: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(5);
/// Mode of a file that is made: whatever the umask of the process, nobody else writes to it.
pub(crate) const MODE: u32 = 0o644;

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
    // Non-blocking for a FIFO, which without a reader cannot be opened at all; a regular file does not care. At its end, wherever
    // that is: whoever rotates logs may make it shorter.
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(MODE).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).map_err(OutputError::System)?;
    // Devices are for everybody. Some file systems have no locks.
    if is_regular(&file) && matches!(lock(&file), Err(TryLockError::WouldBlock)) {
        return Err(OutputError::InUse);
    }
    Ok(file)
}

/// Has the file for this process alone.
pub(crate) fn lock(file: &File) -> Result<(), TryLockError> {
    let begin = Instant::now();
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if begin.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
}

/// What [`open`] would find wrong with a file that is there. Changes nothing.
pub(crate) fn look(path: &Path) -> Result<(), OutputError> {
    let file = match OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file.map_err(OutputError::System)?,
    };
    // For a moment only.
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) if is_regular(&file) => Err(OutputError::InUse),
        _ => Ok(()),
    }
}

/// Takes away what an earlier run left.
pub(crate) fn empty(file: &File) -> io::Result<()> {
    if is_regular(file) { file.set_len(0) } else { Ok(()) }
}

/// Goes on at the end of a file that somebody has made shorter, as who rotates logs does: what is between would read as zeros.
/// For files that were opened by others, with whom their flags are shared.
pub(crate) fn follow(mut file: &File) {
    let Ok(found) = file.metadata() else { return };
    // Where it is opened for appending the position means nothing.
    if found.is_file() && file.stream_position().is_ok_and(|position| position > found.len()) {
        let _ = file.seek(SeekFrom::End(0));
    }
}

pub(crate) fn is_regular(file: &File) -> bool {
    file.metadata().is_ok_and(|found| found.is_file())
}
