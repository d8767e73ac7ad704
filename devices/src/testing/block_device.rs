//! A block device of the host over a file, where tests may make one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempPath;

/// A loop device. It goes when nothing has it open any more, however the tests end.
pub(crate) struct LoopDevice {
    path: PathBuf,
    backing: PathBuf,
    _file: Option<TempPath>,
    _open: File,
}

impl LoopDevice {
    /// A device of `len` bytes with sectors of `sector` bytes; `None`, with a message, where that takes rights or tools
    /// that are not here.
    pub(crate) fn new(len: u64, sector: u32) -> Option<Self> {
        let file = super::temp_file();
        file.as_file().set_len(len).ok()?;
        let file = file.into_temp_path();
        let device = Self::over(&file, &["-b", &sector.to_string()])?;
        Some(Self { _file: Some(file), ..device })
    }

    /// A device over a file or device that stays where it is, as `losetup` makes it with these options.
    pub(crate) fn over(backing: &Path, options: &[&str]) -> Option<Self> {
        let out = Command::new("losetup").args(["-f", "--show"]).args(options).arg(backing).output();
        match out {
            Ok(out) if out.status.success() => {
                let path = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim());
                let open = File::open(&path).ok()?;
                // Takes effect when it is closed last.
                let _ = Command::new("losetup").arg("-d").arg(&path).status();
                Some(Self { path, backing: backing.into(), _file: None, _open: open })
            }
            _ => {
                crate::testing::skipped("no loop device can be made here");
                None
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What it is made of.
    pub(crate) fn backing(&self) -> &Path {
        &self.backing
    }

    /// Makes the device longer.
    pub(crate) fn grow(&self, len: u64) {
        let file = File::options().write(true).open(&self.backing);
        file.and_then(|file| file.set_len(len)).unwrap_or_else(|e| panic!("growing the file: {e}"));
        let done = Command::new("losetup").arg("-c").arg(&self.path).status();
        assert!(done.is_ok_and(|status| status.success()), "losetup -c");
    }
}
