//! Whether udev has done with a device that has come. It asks the device for what its links are called by: a node that is this process's
//! alone by then leaves the device without them, and a tape or changer gives no second one a node at all.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::sysfs::Device;

/// What the clock of files may be behind.
const COARSE: Duration = Duration::from_millis(20);

/// After how long udev has heard for sure that a node has gone, and has no entry for it any more.
const BEHIND: Duration = Duration::from_secs(60);

/// What udev knows, and what of that is of nodes that have gone: the kernel gives their numbers away at once, udev keeps its entry until
/// it hears of it.
pub(super) struct Udev {
    /// Where it keeps it; elsewhere in tests.
    directory: PathBuf,
    /// When nodes went, by their numbers. As files have their times.
    gone: BTreeMap<String, SystemTime>,
    /// When it was not to be known which have gone.
    any: Option<SystemTime>,
}

impl Default for Udev {
    fn default() -> Self {
        Self { directory: "/run/udev".into(), gone: BTreeMap::new(), any: None }
    }
}

impl Udev {
    #[cfg(test)]
    pub(super) fn at(directory: &std::path::Path) -> Self {
        Self { directory: directory.into(), ..Self::default() }
    }

    /// Nodes with these numbers have gone: what it knows of them now is of none that come with the same.
    pub(super) fn went(&mut self, nodes: impl IntoIterator<Item = String>) {
        let now = SystemTime::now();
        self.gone.retain(|_, then| counts(*then));
        self.gone.extend(nodes.into_iter().map(|node| (node, now)));
    }

    /// Any may have gone.
    pub(super) fn any_went(&mut self) {
        self.any = Some(SystemTime::now());
    }

    /// Whether there is none, or it has done with all nodes of the device that the kernel has made.
    pub(super) fn has_done(&self, device: &Device) -> bool {
        let runs = fs::symlink_metadata(self.directory.join("control")).is_ok();
        !runs || device.node_numbers().iter().all(|node| self.knows(node))
    }

    /// Whether it has an entry for a node, such as `b8:32`. One that has nothing to say of a node keeps an empty file.
    fn knows(&self, node: &str) -> bool {
        let since = self.gone.get(node).copied().max(self.any).filter(|then| counts(*then));
        let entry = self.directory.join("data").join(node);
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

/// Whether udev may not know yet what was so then.
fn counts(then: SystemTime) -> bool {
    then.elapsed().unwrap_or_default() < BEHIND
}

#[cfg(test)]
mod tests {
    use super::super::sysfs::tests::Tree;
    use super::*;

    #[test]
    fn udev_has_done_when_it_has_an_entry_for_each_node() {
        let tree = Tree::new();
        let mut udev = Udev::at(&tree.path().join("run/udev"));
        let device = tree.sysfs().all().into_iter().find(|device| device.address == "2:0:0:5").unwrap();
        assert_eq!(device.node_numbers(), ["b8:32", "c21:2", "c250:1"]);
        assert!(udev.has_done(&device), "there is none");
        tree.file("run/udev/control", "");
        tree.file("run/udev/data/b8:32", "S:disk/by-id/x\nI:17\nE:ID_SERIAL=x\n");
        tree.file("run/udev/data/c250:1", "");
        assert!(!udev.has_done(&device), "sg is not known");
        tree.file("run/udev/data/c21:2", "");
        assert!(udev.has_done(&device));
        tree.file("run/udev/data/b8:32", "S:disk/by-id/x\nI:17\nE:ID_PROCESSING=1\nV:1\n");
        assert!(!udev.has_done(&device), "it has begun");
        tree.file("run/udev/data/b8:32", "I:17\n");
        let settle = || std::thread::sleep(Duration::from_millis(50));
        settle();
        udev.went(["b8:160".into()]);
        assert!(udev.has_done(&device), "that was another number");
        udev.went(["b8:32".into()]);
        assert!(!udev.has_done(&device), "of what was there before");
        tree.file("run/udev/data/b8:32", "I:18\n");
        assert!(udev.has_done(&device));
        settle();
        udev.any_went();
        assert!(!udev.has_done(&device), "nobody knows of which it is");
        // It has heard of everything that was then.
        let then = SystemTime::now() - BEHIND;
        (udev.any, udev.gone) = (Some(then), [("b8:32".into(), then)].into());
        let entry = fs::File::options().write(true).open(tree.path().join("run/udev/data/b8:32")).unwrap();
        entry.set_modified(then - BEHIND).unwrap();
        assert!(udev.has_done(&device));
        udev.went([]);
        assert!(udev.gone.is_empty());
    }
}
