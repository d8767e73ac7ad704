//! Who has a logical unit: file systems, swap, the device mapper and the like, and processes. Nothing is opened to find out: a unit
//! whose port is lost would keep us.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use crate::model::Unit;
use crate::sysfs::{self, Roots, all, names, text};

/// More descriptors than are looked at, of one process.
const FILES: usize = 1 << 14;

/// Somebody who has a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A file system is mounted here.
    Mounted(String),
    /// The host swaps to it.
    Swap,
    /// A block device is made of it: `dm-0 (mpatha)`, `md127`.
    Holder(String),
    /// A process has a node of it open.
    Process {
        /// Its number.
        pid: u32,
        /// What it calls itself.
        name: String,
    },
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted(place) => write!(f, "mounted at {place}"),
            Self::Swap => f.write_str("swap"),
            Self::Holder(name) => write!(f, "part of {name}"),
            Self::Process { pid, name } => write!(f, "open by {name} ({pid})"),
        }
    }
}

/// Who has what on the host, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Users {
    /// By number of the device.
    mounts: BTreeMap<String, Vec<String>>,
    /// Paths.
    swaps: BTreeSet<String>,
    /// By path.
    open: BTreeMap<String, Vec<(u32, String)>>,
}

impl Users {
    /// Looks at all processes that this one may look at: all of them as root.
    pub fn read(roots: &Roots) -> Self {
        let mut users = Self::default();
        for line in all(&roots.proc.join("self/mountinfo")).unwrap_or_default().lines() {
            // proc(5): number, parent, device, root, where.
            let fields: Vec<&str> = line.split(' ').take(5).collect();
            if let [_, _, device, _, place] = fields[..] {
                users.mounts.entry(device.to_owned()).or_default().push(unescaped(place));
            }
        }
        let swaps = all(&roots.proc.join("swaps")).unwrap_or_default();
        users
            .swaps
            .extend(swaps.lines().skip(1).filter_map(|line| Some(line.split_whitespace().next()?.into())));
        for pid in names(&roots.proc).iter().filter_map(|name| name.parse::<u32>().ok()) {
            users.look_at(&roots.proc.join(pid.to_string()), pid);
        }
        users
    }

    fn look_at(&mut self, process: &Path, pid: u32) {
        let files = process.join("fd");
        let mut seen = BTreeSet::new();
        for file in names(&files).iter().take(FILES) {
            let Ok(path) = std::fs::read_link(files.join(file)) else { continue };
            let Some(path) = path.to_str().filter(|path| path.starts_with("/dev/")) else { continue };
            if seen.insert(path.to_owned()) {
                let name = text(&process.join("comm")).unwrap_or_default();
                self.open.entry(path.to_owned()).or_default().push((pid, name));
            }
        }
    }

    /// Who has a unit, by whichever of its nodes.
    pub fn of(&self, unit: &Unit) -> Vec<User> {
        let mut users = Vec::new();
        let mut nodes = Vec::new();
        if let Some(block) = &unit.block {
            let disk = unit.directory.join("block").join(block);
            let parts = names(&disk).into_iter().filter(|name| disk.join(name).join("partition").exists());
            let all = std::iter::once((block.clone(), disk.clone()))
                .chain(parts.map(|name| (name.clone(), disk.join(name))));
            for (name, at) in all {
                let mounts = text(&at.join("dev")).and_then(|number| self.mounts.get(&number));
                users.extend(mounts.into_iter().flatten().cloned().map(User::Mounted));
                let path = format!("/dev/{name}");
                users.extend(self.swaps.contains(&path).then_some(User::Swap));
                for holder in names(&at.join("holders")) {
                    let own = text(&at.join("holders").join(&holder).join("dm/name"));
                    users.push(User::Holder(match own {
                        Some(own) => format!("{holder} ({own})"),
                        None => holder,
                    }));
                }
                nodes.push(path);
            }
        }
        nodes.extend(unit.sg.iter().map(|sg| format!("/dev/{sg}")));
        nodes.extend(unit.bsg.iter().map(|bsg| format!("/dev/bsg/{bsg}")));
        // A tape has many, of which these are used.
        nodes.extend(unit.tape.iter().flat_map(|tape| [format!("/dev/{tape}"), format!("/dev/n{tape}")]));
        let mut processes: Vec<_> = nodes.iter().filter_map(|node| self.open.get(node)).flatten().collect();
        processes.sort();
        processes.dedup();
        users
            .extend(processes.into_iter().map(|(pid, name)| User::Process { pid: *pid, name: name.clone() }));
        users
    }
}

/// A place as it is: the kernel writes space, tab, newline and backslash as octal numbers.
fn unescaped(place: &str) -> String {
    let mut parts = place.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.split_at_checked(3);
        match code.and_then(|(digits, rest)| Some((u8::from_str_radix(digits, 8).ok()?, rest))) {
            Some((code, rest)) => {
                text.push(if code.is_ascii_control() { ' ' } else { char::from(code) });
                text.push_str(rest);
            }
            None => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    text
}

/// When a process started, in ticks since the start of the host: together with its number it is one process for good (proc(5)).
pub(crate) fn start_of(roots: &Roots, pid: u32) -> Option<u64> {
    let stat = sysfs::all(&roots.proc.join(pid.to_string()).join("stat"))?;
    // Its name, in parentheses, may have any of these characters.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::San;
    use crate::testing::Tree;

    #[test]
    fn who_has_a_unit_is_said() {
        let tree = Tree::lpfc();
        let sdc = "devices/pci0000:00/0000:00:04.0/0000:10:00.0/host5/vport-5:0-0/host8/rport-8:0-0/target8:0:0/8:0:0:0/block/sdc";
        tree.files(&[
            (&format!("sys/{sdc}/dev"), "8:32\n"),
            (&format!("sys/{sdc}/sdc1/partition"), "1\n"),
            (&format!("sys/{sdc}/sdc1/dev"), "8:33\n"),
            (&format!("sys/{sdc}/sdc2/partition"), "2\n"),
            (&format!("sys/{sdc}/sdc2/holders/dm-3/dm/name"), "vg-root\n"),
            (&format!("sys/{sdc}/sdc2/holders/md127/level"), "raid1\n"),
            (&format!("sys/{sdc}/queue/rotational"), "0\n"),
            (
                "proc/self/mountinfo",
                "29 1 8:33 / /srv/a\\040b\\134\\012 rw - ext4 /dev/sdc1 rw\nbroken\n30 1 8:98 / /x rw - ext4 x rw\n",
            ),
            ("proc/swaps", "Filename\t\tType\n/dev/sdc2  partition 1 0 -2\n"),
            ("proc/4711/comm", "qemu\n"),
            ("proc/4712/comm", "vmm\n"),
            ("proc/4712/stat", "4712 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 987654 20\n"),
        ]);
        tree.link("proc/4711/fd/7", "/dev/sdc");
        tree.link("proc/4711/fd/8", "/dev/sdc");
        tree.link("proc/4711/fd/9", "socket:[1]");
        tree.link("proc/4712/fd/3", "/dev/sg2");
        let (san, users) = (San::read(&tree.roots()), Users::read(&tree.roots()));
        let unit = san.units.iter().find(|unit| unit.block.as_deref() == Some("sdc")).unwrap();
        let said: Vec<String> = users.of(unit).iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "mounted at /srv/a b\\ ",
                "swap",
                "part of dm-3 (vg-root)",
                "part of md127",
                "open by qemu (4711)",
                "open by vmm (4712)"
            ]
        );
        let other = san.units.iter().find(|unit| unit.block.as_deref() == Some("sdb")).unwrap();
        assert_eq!(users.of(other), []);
        assert_eq!(start_of(&tree.roots(), 4712), Some(987654));
        assert_eq!(start_of(&tree.roots(), 4711), None);
    }
}
