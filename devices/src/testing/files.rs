//! Files for tests: in Cargo's target folder, a real file system with direct I/O, where what a killed run leaves behind
//! is in nobody's way.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use tempfile::{NamedTempFile, TempDir};

/// The folder named `tmp` beside the folders of Cargo's profiles; it is made if it is not there.
fn place() -> PathBuf {
    // This program is in deps, which is in the folder of a profile.
    let program = std::env::current_exe().unwrap();
    let place = program.ancestors().nth(3).unwrap().join("tmp");
    std::fs::create_dir_all(&place).unwrap();
    place
}

/// An empty file, gone when dropped.
pub(crate) fn temp_file() -> NamedTempFile {
    NamedTempFile::new_in(place()).unwrap()
}

/// An empty folder, gone when dropped.
pub(crate) fn temp_dir() -> TempDir {
    tempfile::tempdir_in(place()).unwrap()
}
