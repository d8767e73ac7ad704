//! Names in the file system that belong to this process as long as it runs: its sockets, and links to its pseudoterminals.
//!
//! Who makes or removes one has the lock of its directory meanwhile, so that two starts at once do not take each other's away.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::parent;

/// How long the lock of a directory is waited for: whoever has it for longer is no start of a machine.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// Keeps other machines from making and removing names beside `path` while it lives. Without it where there are no locks: then
/// the names may be mixed up by starts at the same moment only.
pub(crate) fn turn(path: &Path) -> Option<File> {
    wait_for(File::open(parent(path)).ok()?)
}

fn wait_for(directory: File) -> Option<File> {
    let begin = Instant::now();
    while let Err(error) = directory.try_lock() {
        match error {
            TryLockError::WouldBlock if begin.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
            _ => return None,
        }
    }
    Some(directory)
}

/// A name that this process made. Dropping it removes it, unless something of others is there by then; what it stands for has
/// to be open until then, for its number or path to be nobody else's.
#[derive(Debug)]
pub(crate) struct Name {
    path: PathBuf,
    mark: Mark,
    /// For its lock: in the sandbox it cannot be opened.
    directory: Option<File>,
}

#[derive(Debug, PartialEq, Eq)]
enum Mark {
    /// Device and inode.
    Node(u64, u64),
    /// Where a link leads.
    Link(PathBuf),
}

impl Mark {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        match found.is_symlink() {
            true => fs::read_link(path).map(Self::Link),
            false => Ok(Self::Node(found.dev(), found.ino())),
        }
    }
}

impl Name {
    /// The name of what this process has just made at `path`.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let directory = File::open(parent(path)).ok();
        Ok(Self { path: path.into(), mark: Mark::of(path)?, directory })
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _turn = self.directory.take().and_then(wait_for);
        if Mark::of(&self.path).is_ok_and(|mark| mark == self.mark) {
            // Whoever removed it meanwhile wanted that.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("name");
        for others in [false, true] {
            std::os::unix::fs::symlink("mine", &path).unwrap();
            let name = Name::of(&path).unwrap();
            if others {
                fs::remove_file(&path).unwrap();
                std::os::unix::fs::symlink("theirs", &path).unwrap();
            }
            drop(name);
            assert_eq!(fs::symlink_metadata(&path).is_ok(), others);
        }
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("theirs"));
    }

    #[test]
    fn a_turn_is_waited_for_but_not_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("name");
        let first = turn(&path).unwrap();
        let begin = Instant::now();
        assert!(turn(&path).is_none());
        assert!(begin.elapsed() >= PATIENCE);
        let holder = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(first);
        });
        assert!(turn(&path).is_some());
        holder.join().unwrap();
    }
}
