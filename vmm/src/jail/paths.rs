//! Which files of the host the process can still open once it has confined itself (Landlock).
//!
//! What is open stays so. By path the machine opens afterwards only what is listed in [`rules`]; whatever else may be done
//! to files by their names (making, linking, renaming, running them), TCP, and signals and abstract sockets of others are
//! refused, as far as the kernel knows how to.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use devices::sandbox::Reach;
use devices::storage::fdset;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Erratum, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope, make_bitflags,
};

use crate::config::{self, Boot, Config, Restart, Sandbox, Serial};

/// The newest version of the kernel's interface that this was written for; older ones refuse less.
const NEWEST: ABI = ABI::V10;

/// File systems of which nothing has to stay open, so that the host can unmount them (linux/magic.h): ext2 to ext4, XFS, F2FS, on
/// a device. Rules are about inodes, and there an inode is found again by its number as long as there is a rule about it. On
/// others it is a new one with each look, unless somebody has the name open: at once on file systems of some servers, after a
/// while in /proc. The number alone says nothing: 9p gives that of what its server has below.
const LASTING: [u32; 3] = [0xef53, 0x5846_5342, 0xf2f5_2010];

type Rights = BitFlags<AccessFs>;

/// Images that come, and files of protection information, which may be made.
const IMAGES: Rights =
    make_bitflags!(AccessFs::{ReadFile | WriteFile | ReadDir | Truncate | IoctlDev | MakeReg});
/// Images that come to be read only, backing files among them.
const READABLE_IMAGES: Rights = make_bitflags!(AccessFs::{ReadFile | ReadDir | IoctlDev});
/// One image.
const WRITABLE: Rights = make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate | IoctlDev});
const READABLE: Rights = make_bitflags!(AccessFs::{ReadFile | IoctlDev});
/// What a reset reads again.
const BOOT: Rights = make_bitflags!(AccessFs::{ReadFile});
/// What the kernel tells of devices and of this process.
const LOOK: Rights = make_bitflags!(AccessFs::{ReadFile | ReadDir});
const LIST: Rights = make_bitflags!(AccessFs::{ReadDir});
/// Where names of this process are, which it removes at its end. The right is one to a directory with all that is below.
const NAMES: Rights = make_bitflags!(AccessFs::{RemoveFile});

/// What may be done to a file, or to a directory with all that is below.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    path: PathBuf,
    rights: Rights,
    what: What,
}

/// What a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Directory,
    Boot,
    Image,
    Name,
    Kernel,
}

/// The rules, ready for the threads to confine themselves by.
pub(super) struct Paths {
    /// For landlock_restrict_self(2).
    pub(super) ruleset: OwnedFd,
    /// For [`devices::sandbox::confined`], once they have.
    pub(super) reach: Reach,
    /// Names that rules need to be of use: see [`LASTING`].
    _held: Vec<PathFd>,
}

/// Makes the rules for a machine; `None` where it shall not have them, or the kernel has none.
pub(super) fn prepare(config: &Config) -> Result<Option<Paths>> {
    match config.security.sandbox {
        Sandbox::On => {
            let made = made_of(config)?;
            if made.is_none() {
                tracing::warn!(
                    "this host has no Landlock: the sandbox does not limit which files the machine opens by their paths; Linux \
                     5.13 or newer has it, where `landlock` is in the list of security modules (`lsm=` on the kernel's command \
                     line, /sys/kernel/security/lsm) and no container forbids it"
                );
            }
            Ok(made)
        }
        Sandbox::Log => {
            tracing::warn!(
                "sandbox = \"log\": which files are opened is not logged, and nothing of that is refused"
            );
            Ok(None)
        }
        Sandbox::Off => Ok(None),
    }
}

/// The rules of a machine with a sandbox, and no line of the log.
pub(super) fn made_of(config: &Config) -> Result<Option<Paths>> {
    made(&rules(config)).context("the sandbox's rules of paths")
}

/// The rules of the process that looks for devices of the host: what the kernel tells of them, and their nodes. What may be done with an
/// open node was decided by the rules of who has opened it, so that commands are not refused here.
pub(super) fn of_keeper() -> Result<Option<Paths>> {
    const NODES: Rights = make_bitflags!(AccessFs::{ReadFile | WriteFile | ReadDir | IoctlDev});
    let rule = |(path, rights): (&str, _)| Rule { path: path.into(), rights, what: What::Kernel };
    let all = [
        ("/dev", NODES),
        ("/sys", LOOK),
        ("/proc/self", LOOK),
        ("/proc/swaps", BOOT),
        ("/proc/locks", BOOT),
        // What udev has done with.
        ("/run/udev", LOOK),
    ];
    made(&all.map(rule)).context("rules of paths")
}

/// The rules of the process that has Fibre Channel ports: what the kernel tells of them, and of who uses what; what it is told of them, in
/// files of sysfs; nodes; and the process' own files, whose directories it makes.
pub(super) fn of_port() -> Result<Option<Paths>> {
    const NODES: Rights = make_bitflags!(AccessFs::{ReadFile | WriteFile | ReadDir | IoctlDev});
    const TOLD: Rights = make_bitflags!(AccessFs::{ReadFile | WriteFile | ReadDir});
    const OWN: Rights = make_bitflags!(AccessFs::{ReadFile | WriteFile | ReadDir | Truncate | MakeReg | MakeDir | RemoveFile});
    const KEPT: [&str; 2] = ["/run/vmm/fc", "/var/lib/vmm/fc"];
    // Who may not make them hears of that when something is to be kept there.
    let _ = KEPT.map(|path| fs::DirBuilder::new().recursive(true).mode(0o755).create(path));
    let rule = |(path, rights): (&str, _)| Rule { path: path.into(), rights, what: What::Kernel };
    let all = [("/dev", NODES), ("/sys", LOOK), ("/sys/devices", TOLD), ("/proc", LOOK)];
    let own = KEPT.map(|path| (path, OWN));
    made(&all.into_iter().chain(own).map(rule).collect::<Vec<_>>()).context("rules of paths")
}

/// The kernel's version of Landlock.
pub(super) fn version() -> io::Result<libc::c_long> {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: no structure, as is told by its length: this asks for the version.
    #[allow(unsafe_code)]
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, LANDLOCK_CREATE_RULESET_VERSION)
    };
    if version < 0 { Err(io::Error::last_os_error()) } else { Ok(version) }
}

fn made(rules: &[Rule]) -> Result<Option<Paths>> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(scopes())?
        .create()?;
    let (mut reach, mut held) = (Reach::default(), Vec::new());
    for rule in rules {
        let place = match PathFd::new(&rule.path) {
            Ok(place) => place,
            // Not every host has every part of /sys and /proc, and what is not there now is not needed.
            Err(_) if matches!(rule.what, What::Kernel | What::Image | What::Name) => continue,
            Err(error) => return Err(error).context(rule.path.display().to_string()),
        };
        note(rule, &mut reach);
        ruleset = ruleset
            .add_rule(PathBeneath::new(&place, rule.rights))
            .with_context(|| rule.path.display().to_string())?;
        if !lasts(&place) {
            held.push(place);
        }
    }
    let ruleset: Option<OwnedFd> = ruleset.into();
    Ok(ruleset.map(|ruleset| Paths { ruleset, reach, _held: held }))
}

/// Whether a file is on a file system of [`LASTING`].
fn lasts(place: &PathFd) -> bool {
    // SAFETY: a structure of integers.
    #[allow(unsafe_code)]
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills a structure, which outlives it.
    #[allow(unsafe_code)]
    let result = unsafe { libc::fstatfs(place.as_fd().as_raw_fd(), &raw mut stat) };
    let device = fs::metadata(format!("/proc/self/fd/{}", place.as_fd().as_raw_fd()));
    result == 0
        && LASTING.contains(&(stat.f_type as u32))
        && device.is_ok_and(|found| libc::major(found.dev()) != 0)
}

/// Threads confine themselves one by one, and before a fix of the kernel they could then not kick each other.
fn scopes() -> BitFlags<Scope> {
    let all = Scope::from_all(NEWEST);
    if Erratum::current().contains(Erratum::ScopedSignalHandling) { all } else { all & !Scope::Signal }
}

/// Takes note of a rule for whoever is refused.
fn note(rule: &Rule, reach: &mut Reach) {
    match rule.what {
        What::Directory if rule.rights.contains(AccessFs::WriteFile) => {
            reach.writable.extend(fs::canonicalize(&rule.path));
        }
        What::Directory => reach.readable.extend(fs::canonicalize(&rule.path)),
        What::Boot => reach.boot.extend(fs::canonicalize(&rule.path)),
        What::Image => reach.files.extend(
            fs::metadata(&rule.path)
                .map(|found| (found.dev(), found.ino(), rule.rights.contains(AccessFs::WriteFile))),
        ),
        What::Name | What::Kernel => {}
    }
}

/// Everything that is opened or removed by its path while a machine runs, and when it ends.
fn rules(config: &Config) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut add = |path: &Path, rights, what| {
        let rule = Rule { path: path.to_owned(), rights, what };
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    };
    for (_, file) in read_again(config) {
        add(&boot_directory(file), BOOT, What::Boot);
    }
    for name in names(config) {
        add(config::parent(name), NAMES, What::Name);
    }
    // Without it nothing comes and nothing changes.
    if config.control.is_none() {
        return rules;
    }
    let config::Security { directories, readonly_directories, .. } = &config.security;
    for directory in directories {
        add(directory, IMAGES, What::Directory);
    }
    for directory in readonly_directories {
        add(directory, READABLE_IMAGES, What::Directory);
    }
    // What the machine has open it may open again, so that a disk can come back. A file that has taken its place by
    // then is another one. Where its directory is open to us anyway there is no rule: a rule keeps the file's room on its disk even
    // when the file has been removed (fs/landlock of Linux holds the inode).
    for (image, write) in images(config) {
        if !within(&image, directories) && (write || !within(&image, readonly_directories)) {
            add(&image, if write { WRITABLE } else { READABLE }, What::Image);
        }
    }
    // Who uses a device, what it is made of, what it takes, what it is called. It may be any one.
    add(Path::new("/sys/devices"), LOOK, What::Kernel);
    // Loop devices.
    add(Path::new("/sys/block"), LIST, What::Kernel);
    if config.security.host_devices {
        // Those that take SCSI commands, where one is called by its name.
        add(Path::new("/sys/class/scsi_device"), LIST, What::Kernel);
    }
    // Descriptors, their locks, mounts: of this process. Those of others are refused in any case (ptrace(2)).
    add(Path::new("/proc/self"), LOOK, What::Kernel);
    add(Path::new("/proc/swaps"), BOOT, What::Kernel);
    // Locks of others on devices that the machine may not open.
    add(Path::new("/proc/locks"), BOOT, What::Kernel);
    rules
}

/// Whether a file is below one of the directories, wherever links lead.
fn within(file: &Path, directories: &[PathBuf]) -> bool {
    let Ok(file) = fs::canonicalize(file) else { return false };
    let below = |directory: &PathBuf| fs::canonicalize(directory).is_ok_and(|real| file.starts_with(real));
    directories.iter().any(below)
}

/// What the machine has open and opens again when a disk comes back, and whether to write it; nothing where no disk comes.
pub(super) fn images(config: &Config) -> Vec<(PathBuf, bool)> {
    let mut images = Vec::new();
    for disk in disks(config).filter(|_| config.control.is_some()) {
        let write = !disk.read_only;
        images.push((disk.image.clone(), write));
        images.extend(disk.protection.iter().map(|protection| (protection.image.clone(), write)));
        images.extend(config::files_below(disk).into_iter().map(|(_, below)| (below, false)));
    }
    let luns = config.hbas.iter().flat_map(|hba| &hba.luns).filter(|_| config.control.is_some());
    for host in luns.filter_map(|lun| lun.device.host()) {
        let nodes = crate::machine::generic_options(host).nodes();
        images.extend(nodes.into_iter().map(|node| (node, true)));
    }
    // What was passed as a descriptor is not opened by a name.
    images.retain(|(image, _)| fdset::number(image).is_none());
    images
}

/// The directory of a file that a reset reads again: a new kernel takes the place of the old one by its name.
fn boot_directory(file: &Path) -> PathBuf {
    // Links are read without a right, so where they lead counts.
    let real = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    match config::parent(&real) {
        // The whole host would be below.
        root if root == Path::new("/") => real,
        directory => directory.to_owned(),
    }
}

/// What a reset reads again, and what it is.
pub(super) fn read_again(config: &Config) -> impl Iterator<Item = (&'static str, &Path)> {
    let resets = config.vm.on_reset == Restart::Restart || config.vm.on_crash == Restart::Restart;
    let files = match &config.boot {
        Boot::Kernel { kernel, initrd, .. } if resets => [Some(kernel), initrd.as_ref()],
        _ => [None, None],
    };
    ["kernel", "initrd"].into_iter().zip(files).filter_map(|(what, file)| Some((what, file?.as_path())))
}

/// What this process has made, to be removed at its end.
pub(super) fn names(config: &Config) -> impl Iterator<Item = &Path> {
    let serial = match &config.serial {
        Serial::Socket(path) | Serial::Pty(Some(path)) => Some(path),
        _ => None,
    };
    [config.control.as_ref(), serial].into_iter().flatten().map(PathBuf::as_path)
}

fn disks(config: &Config) -> impl Iterator<Item = &config::Disk> {
    config.hbas.iter().flat_map(|hba| &hba.luns).filter_map(|lun| lun.device.image())
}

#[cfg(test)]
#[path = "paths_tests.rs"]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
