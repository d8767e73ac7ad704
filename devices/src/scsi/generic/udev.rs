//! Whether udev has done with a device that has come. It asks the device for what its links are called by: a node that is this process's
//! alone by then leaves the device without them, and a tape or changer gives no second one a node at all.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::sysfs::Device;

/// What the clock of files may be behind.
const COARSE: Duration = Duration::from_millis(20);

/// Where udev keeps what it knows; elsewhere in tests.
pub(super) struct Udev(PathBuf);

impl Default for Udev {
    fn default() -> Self {
        Self("/run/udev".into())
    }
}

impl Udev {
    #[cfg(test)]
    pub(super) fn at(directory: &std::path::Path) -> Self {
        Self(directory.into())
    }

    /// Whether there is none, or it has done with all nodes of the device that the kernel has made. What it knew before `since` is of
    /// another device, which had the number of one of them.
    pub(super) fn has_done(&self, device: &Device, since: Option<SystemTime>) -> bool {
        let runs = fs::symlink_metadata(self.0.join("control")).is_ok();
        !runs || device.node_numbers().iter().all(|node| self.knows(node, since))
    }

    /// Whether it has an entry for a node, such as `b8:32`. One that has nothing to say of a node keeps an empty file.
    fn knows(&self, node: &str, since: Option<SystemTime>) -> bool {
        let entry = self.0.join("data").join(node);
        let found = match fs::metadata(&entry) {
            Ok(found) => found,
            Err(error) => return error.kind() != io::ErrorKind::NotFound,
        };
        let old = since.zip(found.modified().ok()).is_some_and(|(since, then)| then + COARSE < since);
        // From version 257 on there is an entry before it has done.
        let busy = || fs::read_to_string(&entry).is_ok_and(|text| text.contains("\nE:ID_PROCESSING=1\n"));
        !old && !busy()
    }
}

#[cfg(test)]
mod tests {
    use super::super::sysfs::tests::Tree;
    use super::*;

    #[test]
    fn udev_has_done_when_it_has_an_entry_for_each_node() {
        let tree = Tree::new();
        let udev = Udev::at(&tree.path().join("run/udev"));
        let device = tree.sysfs().all().into_iter().find(|device| device.address == "2:0:0:5").unwrap();
        assert_eq!(device.node_numbers(), ["b8:32", "c21:2", "c250:1"]);
        let done = |since| udev.has_done(&device, since);
        assert!(done(None), "there is none");
        tree.file("run/udev/control", "");
        tree.file("run/udev/data/b8:32", "S:disk/by-id/x\nI:17\nE:ID_SERIAL=x\n");
        tree.file("run/udev/data/c250:1", "");
        assert!(!done(None), "sg is not known");
        tree.file("run/udev/data/c21:2", "");
        assert!(done(None));
        let now = SystemTime::now();
        assert!(done(Some(now)) && !done(Some(now + Duration::from_secs(1))), "of what was there before");
        tree.file("run/udev/data/b8:32", "S:disk/by-id/x\nI:17\nE:ID_PROCESSING=1\nV:1\n");
        assert!(!done(None), "it has begun");
    }
}
