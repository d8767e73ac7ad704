//! A block device of the host over a file, where tests may make one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device. It goes when nothing has it open any more, however the tests end.
pub(crate) struct LoopDevice {
    path: PathBuf,
    file: tempfile::NamedTempFile,
    _open: File,
}

impl LoopDevice {
    /// A device of `len` bytes with sectors of `sector` bytes; `None`, with a message, where that takes rights or tools
    /// that are not here.
    pub(crate) fn new(len: u64, sector: u32) -> Option<Self> {
        let file = super::temp_file();
        file.as_file().set_len(len).ok()?;
        let sector = sector.to_string();
        let out = Command::new("losetup").args(["-f", "--show", "-b", &sector]).arg(file.path()).output();
        match out {
            Ok(out) if out.status.success() => {
                let path = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim());
                let open = File::open(&path).ok()?;
                // Takes effect when it is closed last.
                let _ = Command::new("losetup").arg("-d").arg(&path).status();
                Some(Self { path, file, _open: open })
            }
            _ => {
                eprintln!("SKIPPED: no loop device can be made here");
                None
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the device longer.
    pub(crate) fn grow(&self, len: u64) {
        self.file.as_file().set_len(len).unwrap_or_else(|e| panic!("growing the file: {e}"));
        let done = Command::new("losetup").arg("-c").arg(&self.path).status();
        assert!(done.is_ok_and(|status| status.success()), "losetup -c");
    }
}
