//! Who has a logical unit: file systems, swap, the device mapper and the like, and processes. Nothing is opened to find out: a unit
//! whose port is lost would keep us.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::model::Unit;
use crate::sysfs::{self, Roots, Unreadable, all, list, names, text};

/// Longer than any list of mounts.
const MOUNTS: u64 = 64 << 20;

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
    /// `/sys`
    sys: PathBuf,
    /// Places, by number of the device.
    mounts: BTreeMap<String, BTreeSet<String>>,
    /// The same, by its name: some file systems have a number of their own.
    sources: BTreeMap<String, BTreeSet<String>>,
    /// Names.
    swaps: BTreeSet<String>,
    /// By name of the device: what the kernel does not list among its holders.
    parts: BTreeMap<String, Vec<String>>,
    /// By path.
    open: BTreeMap<String, Vec<(u32, String)>>,
    /// What could not be looked at.
    unseen: Option<String>,
}

impl Users {
    /// Looks at all processes that this one may look at: all of them as root.
    pub fn read(roots: &Roots) -> Self {
        let mut users = Self { sys: roots.sys.clone(), ..Self::default() };
        let mut namespaces = BTreeSet::new();
        users.mounted(roots, &roots.proc.join("self"), &mut namespaces);
        let swaps = all(&roots.proc.join("swaps")).unwrap_or_default();
        let swaps = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        users.swaps.extend(swaps.filter_map(|path| node(roots, path)));
        users.kernel(roots);
        let processes = list(&roots.proc).unwrap_or_else(|error| {
            users.unseen = Some(error.to_string());
            Vec::new()
        });
        let pids: Vec<u32> = processes.iter().filter_map(|name| name.parse().ok()).collect();
        if pids.is_empty() {
            users.unseen.get_or_insert(format!("{} shows no processes; mount proc", roots.proc.display()));
        }
        for pid in pids {
            let process = roots.proc.join(pid.to_string());
            users.mounted(roots, &process, &mut namespaces);
            users.opened(&process, pid);
        }
        users
    }

    /// Why there may be more users than are known, if so: what is not seen may have a unit open.
    pub fn unseen(&self) -> Option<&str> {
        self.unseen.as_deref()
    }

    /// What was looked at, if it is still there.
    fn seen<T>(&mut self, result: Result<T, Unreadable>) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        if error.error.kind() == io::ErrorKind::PermissionDenied {
            self.may_not(&error.path);
        } else if !sysfs::is_gone(&error.error) {
            self.unseen.get_or_insert(error.to_string());
        }
        None
    }

    /// It has given up its rights over other processes, as in a sandbox, a container, or a service of few capabilities; or never had them.
    fn may_not(&mut self, path: &Path) {
        self.unseen.get_or_insert_with(|| {
            format!("{} may not be read; be root, with CAP_SYS_PTRACE", path.display())
        });
    }

    /// The file systems of the mount namespace that a process is in.
    fn mounted(&mut self, roots: &Roots, process: &Path, namespaces: &mut BTreeSet<PathBuf>) {
        let namespace = fs::read_link(process.join("ns/mnt")).unwrap_or_else(|_| process.into());
        if !namespaces.insert(namespace) {
            return;
        }
        let path = process.join("mountinfo");
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(MOUNTS).read_to_end(&mut bytes)) {
            Ok(len) if len as u64 == MOUNTS => {
                self.unseen.get_or_insert(format!("{} is too long", path.display()));
            }
            Ok(_) => {}
            // It has ended.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return,
            Err(error) => {
                let _: Option<()> = self.seen(Err(Unreadable { path, error }));
                return;
            }
        }
        for line in String::from_utf8_lossy(&bytes).lines() {
            // proc(5): number, parent, device, root, where; behind a dash: type, source.
            let Some((head, tail)) = line.split_once(" - ") else { continue };
            let (head, tail): (Vec<&str>, Vec<&str>) = (head.split(' ').collect(), tail.split(' ').collect());
            let ([_, _, device, _, place, ..], [kind, source, ..]) = (&head[..], &tail[..]) else { continue };
            self.mounts.entry((*device).to_owned()).or_default().insert(unescaped(place));
            // With FUSE, which anybody may mount, the source is a text that anybody chose.
            let chosen = *kind == "fuse" || kind.starts_with("fuse.");
            if let Some(name) = node(roots, &unescaped(source)).filter(|_| !chosen) {
                self.sources.entry(name).or_default().insert(unescaped(place));
            }
        }
    }

    /// What the kernel itself has, and does not list among the holders.
    fn kernel(&mut self, roots: &Roots) {
        let mut found = Vec::new();
        let read = |path: PathBuf| text(&path).and_then(|path| node(roots, &path));
        let below = |at: &Path| names(at).into_iter().map(|name| (at.join(&name), name)).collect::<Vec<_>>();
        for (at, name) in below(&roots.sys.join("class/block")) {
            found.extend(read(at.join("loop/backing_file")).map(|node| (node, name)));
        }
        // Targets (LIO) of what the host offers to others.
        for (at, kind) in below(&roots.sys.join("kernel/config/target/core")) {
            for (at, name) in below(&at) {
                found.extend(read(at.join("udev_path")).map(|node| (node, format!("target {kind}/{name}"))));
            }
        }
        for (at, system) in below(&roots.sys.join("kernel/config/nvmet/subsystems")) {
            for (at, name) in below(&at.join("namespaces")) {
                found.extend(
                    read(at.join("device_path")).map(|node| (node, format!("nvmet {system}/{name}"))),
                );
            }
        }
        // The first device of such a file system is the source of its mount.
        for (at, name) in below(&roots.sys.join("fs/btrfs")) {
            for device in names(&at.join("devices")) {
                if !self.sources.contains_key(&device) {
                    found.push((device, format!("btrfs {name}")));
                }
            }
        }
        for (node, what) in found {
            self.parts.entry(node).or_default().push(what);
        }
    }

    fn opened(&mut self, process: &Path, pid: u32) {
        let directory = process.join("fd");
        let failed = |error| Unreadable { path: directory.clone(), error };
        let Some(files) = self.seen(fs::read_dir(&directory).map_err(failed)) else { return };
        let mut seen = BTreeSet::new();
        for file in files {
            let Some(file) = self.seen(file.map_err(failed)) else { break };
            let path = match fs::read_link(file.path()) {
                Ok(path) => path,
                // It may list them, and no more.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    self.may_not(&file.path());
                    return;
                }
                Err(_) => continue,
            };
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
                self.of_block(&name, &at, &mut users);
                nodes.push(format!("/dev/{name}"));
            }
        }
        nodes.extend(unit.sg.iter().map(|sg| format!("/dev/{sg}")));
        nodes.extend(unit.bsg.iter().map(|bsg| format!("/dev/bsg/{bsg}")));
        for class in ["scsi_tape", "scsi_changer"] {
            nodes.extend(names(&unit.directory.join(class)).iter().map(|name| format!("/dev/{name}")));
        }
        self.of_nodes(&nodes, &mut users);
        users
    }

    /// Who has a block device, other than processes.
    fn of_block(&self, name: &str, at: &Path, users: &mut Vec<User>) {
        let by_number = text(&at.join("dev")).and_then(|number| self.mounts.get(&number));
        let places = by_number.into_iter().chain(self.sources.get(name)).flatten();
        users.extend(places.collect::<BTreeSet<_>>().into_iter().cloned().map(User::Mounted));
        users.extend(self.swaps.contains(name).then_some(User::Swap));
        let holders = at.join("holders");
        match list(&holders) {
            Ok(names) => users.extend(names.into_iter().map(|holder| {
                User::Holder(match text(&holders.join(&holder).join("dm/name")) {
                    Some(own) => format!("{holder} ({own})"),
                    None => holder,
                })
            })),
            Err(error) if sysfs::is_gone(&error.error) => {}
            Err(error) => users.push(User::Holder(format!("something unknown ({error})"))),
        }
        users.extend(self.parts.get(name).into_iter().flatten().cloned().map(User::Holder));
    }

    fn of_nodes(&self, nodes: &[String], users: &mut Vec<User>) {
        let mut processes: Vec<_> = nodes.iter().filter_map(|node| self.open.get(node)).flatten().collect();
        processes.sort();
        processes.dedup();
        users
            .extend(processes.into_iter().map(|(pid, name)| User::Process { pid: *pid, name: name.clone() }));
    }

    /// Whether a user notices that a port goes, and loses nothing by it: multipathd, and a map of paths that nobody has.
    pub(crate) fn goes_with_port(&self, user: &User) -> bool {
        self.goes(user, 4)
    }

    /// `depth`: how many block devices may be made of each other.
    fn goes(&self, user: &User, depth: u32) -> bool {
        let holder = match user {
            User::Process { name, .. } => return name == "multipathd",
            User::Holder(name) => name.split(' ').next().unwrap_or_default(),
            User::Mounted(_) | User::Swap => return false,
        };
        let at = self.sys.join("class/block").join(holder);
        let uuid = text(&at.join("dm/uuid")).unwrap_or_default();
        let is_map = uuid.starts_with("mpath-") || uuid.starts_with("part") && uuid.contains("-mpath-");
        let mut users = Vec::new();
        self.of_block(holder, &at, &mut users);
        self.of_nodes(&[format!("/dev/{holder}")], &mut users);
        is_map && depth > 0 && users.iter().all(|user| self.goes(user, depth - 1))
    }
}

/// The name of the node that a path leads to: `sdc1`, `dm-3`.
fn node(roots: &Roots, path: &str) -> Option<String> {
    let path = roots.dev.join(path.strip_prefix("/dev/")?);
    let path = fs::canonicalize(&path).unwrap_or(path);
    Some(path.file_name()?.to_str()?.to_owned())
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

#[cfg(test)]
mod tests;
