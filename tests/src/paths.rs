//! Where things are: the workspace, the cache, the build results.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of the workspace this crate was built in.
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The cache folder: `VMM_TEST_CACHE`, or `.cache` in the workspace. Made if it is not there.
pub fn cache() -> Result<PathBuf> {
    let dir = match std::env::var_os("VMM_TEST_CACHE") {
        Some(dir) => PathBuf::from(dir),
        None => workspace().join(".cache"),
    };
    make_dir(&dir)?;
    dir.canonicalize().with_context(|| format!("{}", dir.display()))
}

/// This program's own file.
pub fn program() -> Result<PathBuf> {
    std::env::current_exe().context("finding this program's own file")
}

/// Cargo's target folder, which this program was built into.
pub fn target() -> Result<PathBuf> {
    let program = program()?;
    let dir = program.parent().and_then(Path::parent);
    dir.map(Path::to_path_buf).context("this program is not in a target folder")
}

/// The folder for consoles and other results of runs.
pub fn runs() -> Result<PathBuf> {
    let dir = target()?.join("testbed");
    make_dir(&dir)?;
    Ok(dir)
}

/// Makes a folder and those above it.
pub fn make_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))
}
