//! What makes a single write stable on a file system of the host.
//!
//! RWF_DSYNC asks for it, and not every file system does it. 9p and the network file systems that write past the page
//! cache through netfs do nothing (Linux, fs/9p/vfs_file.c, fs/netfs/direct_write.c), OCFS2 looks at the descriptor only
//! (fs/ocfs2/file.c), and FUSE leaves it to its server (fs/fuse/file.c), most of which do not look. Servers of FUSE may also
//! keep what was written, and its errors, for each open file: there fsync(2) is of the descriptor that wrote. overlayfs does
//! what the file system below does, and does not tell which that is.

use std::fs::File;
use std::path::Path;

use crate::storage::{fdset, sys};

/// File systems that honour RWF_DSYNC, with and without the page cache, and whose fsync(2) is of the file.
const KNOWN: [u32; 9] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // btrfs
    0xf2f5_2010, // F2FS
    0x2fc1_2fc1, // ZFS
    0x0102_1994, // tmpfs
    0x6969,      // NFS
    0x00c3_6400, // Ceph
    0x0116_1970, // GFS2
];

/// How a forced write is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) enum Forcing {
    /// With RWF_DSYNC. A sync through any descriptor is of the whole file.
    Flag,
    /// As a plain write, then a sync through the descriptor that wrote.
    Sync,
}

impl Forcing {
    /// For a file or block device.
    pub(super) fn of(file: &File, path: &Path, is_device: bool) -> Self {
        let kind = if is_device { None } else { Some(sys::file_system(file).unwrap_or(0)) };
        let forcing = kind.map_or(Self::Flag, Self::on);
        tracing::debug!(
            "{}: forced writes are {}{}",
            fdset::shown(path),
            if forcing == Self::Flag {
                "writes with RWF_DSYNC"
            } else {
                "writes with an fdatasync after each"
            },
            kind.map(|kind| format!("; its file system is of type {kind:#x}")).unwrap_or_default()
        );
        forcing
    }

    fn on(file_system: u32) -> Self {
        if KNOWN.contains(&file_system) { Self::Flag } else { Self::Sync }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_is_not_known_is_synced() {
        assert_eq!(Forcing::on(0xef53), Forcing::Flag);
        // 9p, FUSE, SMB, overlayfs, OCFS2.
        for other in [0x0102_1997, 0x6573_5546, 0xff53_4d42, 0xfe53_4d42, 0x794c_7630, 0x7461_636f, 0] {
            assert_eq!(Forcing::on(other), Forcing::Sync, "{other:#x}");
        }
        // proc is no place of images, and one that every host has.
        let path = Path::new("/proc/version");
        let file = File::open(path).unwrap();
        assert_eq!(sys::file_system(&file).unwrap(), 0x9fa0);
        assert_eq!(Forcing::of(&file, path, false), Forcing::Sync);
        assert_eq!(Forcing::of(&file, path, true), Forcing::Flag);
    }
}
