//! Files of values: whole, or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StateError;
use crate::sysfs::{self, Unreadable};

pub(crate) fn make(directory: &Path) -> Result<(), StateError> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
    made.map_err(|error| StateError::Files { path: directory.into(), what: "make the directory", error })
}

/// What a file says; `None` if there is none.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    let text = match sysfs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StateError::Files { path: path.into(), what: "read", error }),
    };
    let broken = |why: String| StateError::Broken { path: path.into(), why };
    let parsed = toml::from_str(&text);
    parsed.map(Some).map_err(|error| broken(error.message().replace('\n', " ")))
}

/// The names of the files of values in a directory; none if there is none.
pub(crate) fn stems(directory: &Path) -> Result<Vec<String>, StateError> {
    let names = match sysfs::list(directory) {
        Ok(names) => names,
        Err(Unreadable { error, .. }) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(Unreadable { path, error }) => return Err(StateError::Files { path, what: "read", error }),
    };
    Ok(names.iter().filter_map(|name| name.strip_suffix(".toml").map(str::to_owned)).collect())
}

/// How a file is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// In place of what is there, until the host starts anew.
    Passing,
    /// It is not there yet, and is on the disk then.
    ForGood,
    /// In place of what is there, and it is on the disk then.
    InPlace,
}

/// Writes a file: whole, or not at all.
pub(crate) fn put(path: &Path, value: &impl Serialize, how: Put) -> Result<(), StateError> {
    let for_good = how != Put::Passing;
    let failed = |error| StateError::Files { path: path.into(), what: "write", error };
    let text = toml::to_string(value).map_err(|error| failed(io::Error::other(error)))?;
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = directory.join(format!(".{name}.{}", std::process::id()));
    // Of a process of this number that was ended here.
    let _ = fs::remove_file(&beside);
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o644).open(&beside)?;
        file.write_all(text.as_bytes())?;
        if for_good {
            file.sync_all()?;
        }
        match how {
            Put::InPlace | Put::Passing => fs::rename(&beside, path),
            Put::ForGood => fs::hard_link(&beside, path),
        }
    };
    let result = written();
    let _ = fs::remove_file(&beside);
    result.map_err(failed)?;
    if for_good { flush(directory) } else { Ok(()) }
}

/// What is in a directory is on the disk.
pub(crate) fn flush(directory: &Path) -> Result<(), StateError> {
    let flushed = File::open(directory).and_then(|directory| directory.sync_all());
    flushed.map_err(|error| StateError::Files { path: directory.into(), what: "flush", error })
}
