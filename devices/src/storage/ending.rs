//! Where an image ends for a guest: a disk shows whole blocks, and what is behind the last one is not shown.

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::probe::open_quietly;
use super::raw::length;
use super::sys;

/// Bytes of the smallest block that a disk can have.
pub(super) const SECTOR: u64 = 512;

/// How long an image is, and in which units that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Length in bytes.
    pub len: u64,
    /// The smallest block that a disk can have of it, in bytes: a device of the host refuses parts of its own.
    pub unit: u64,
}

impl Ending {
    /// Of `len` bytes in a file.
    pub const fn of_file(len: u64) -> Self {
        Self { len, unit: SECTOR }
    }

    /// Of `len` bytes of a device with logical blocks of `block` bytes.
    pub fn of_device(len: u64, block: u32) -> Self {
        Self { len, unit: SECTOR.max(block.into()) }
    }

    /// Of the file or block device at `path`.
    ///
    /// # Errors
    /// Those of opening it, and of asking it.
    pub fn find(path: &Path) -> io::Result<Self> {
        let file = open_quietly(path)?;
        Self::of(&file)
    }

    /// Of an opened file or block device.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let len = length(file)?;
        if !file.metadata()?.file_type().is_block_device() {
            return Ok(Self::of_file(len));
        }
        Ok(Self::of_device(len, sys::block_sizes(file)?.0))
    }

    /// How many bytes a disk with blocks of `block` bytes shows.
    pub fn shown(&self, block: u64) -> u64 {
        self.len - self.len % self.unit.max(block)
    }

    /// What to tell the operator, when such a disk does not show the end of the image `name`.
    pub fn warning(&self, name: impl Display, block: u64) -> Option<String> {
        let (len, hidden) = (self.len, self.len - self.shown(block));
        let unit = self.unit.max(block);
        (hidden != 0).then(|| {
            format!(
                "{name}: its length of {len} bytes is no multiple of {unit}; the guest does not see the last {hidden}"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_are_shown() {
        let file = Ending::of_file(300_000_000);
        assert_eq!((file.shown(512), file.shown(4096)), (300_000_000 - 256, 300_000_000 - 768));
        assert_eq!(Ending::of_file(8192).warning("a", 4096), None);
        assert_eq!(
            Ending::of_device(4096 + 512, 4096).warning("a", 512).unwrap(),
            "a: its length of 4608 bytes is no multiple of 4096; the guest does not see the last 512"
        );
        assert_eq!(Ending::of_device(100, 4096).shown(512), 0);
    }
}
