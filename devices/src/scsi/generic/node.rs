//! Opening a device of the host: by a node of sg or bsg, by its block device, or by its name. What cannot be, or would harm, is
//! refused with one line that says what to do.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::guard::TABLE;
use super::host::{Answer, Command, Host};
use super::lookout::Wanted;
use super::route::{Part, Routes};
use super::sysfs::{Device, Driver, Other, Sysfs};
use super::taken::Taken;
use super::{Allow, Generic, GenericConfig, GenericError, HostLimits, sys};
use crate::storage::{fdset, try_lock_node, user_of};

/// How long a device is asked for again that is busy with nothing the host tells of, and how often: udev looks at what is new.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// Which device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A node, or a link to one.
    Path(PathBuf),
    /// The NAA or EUI-64 name, in any of the ways in which Linux writes it.
    Name(String),
}

/// How a device of the host is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenericOptions {
    /// Which one.
    pub place: Place,
    /// Others may use it as well, on this host.
    pub shared: bool,
    /// What the guest may do.
    pub allow: Allow,
    /// All data goes through memory of the process.
    pub bounce: bool,
}

impl GenericOptions {
    /// All nodes of the device by which commands can be sent, or that tell who uses it, if there is one now.
    pub fn nodes(&self) -> Vec<PathBuf> {
        let sysfs = Sysfs::default();
        let found = find(&sysfs, &self.place).and_then(|path| look(&sysfs, &path));
        let Ok((device, ..)) = found else { return Vec::new() };
        let nodes = [Driver::Block, Driver::Sg, Driver::Bsg].into_iter();
        nodes.filter_map(|driver| sysfs.node_of(&device, driver)).chain(sysfs.tape_node(&device)).collect()
    }
}

impl Generic {
    /// Opens a device of the host, which may take seconds.
    ///
    /// # Errors
    /// There is none, it is not one that takes SCSI commands, it is in use, or this process may not.
    pub fn open(options: &GenericOptions) -> Result<Self, GenericError> {
        let (node, config) = Node::open(&Sysfs::default(), options)?;
        Self::new(node.into_host(), config)
    }
}

/// A device that is open.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) routes: Routes,
    /// The device as a block device, which the host cannot mount meanwhile.
    claim: Option<File>,
    /// `None` while it is another process that has units.
    _taken: Option<Taken>,
}

impl Host for Node {
    fn execute(&self, command: &Command) -> io::Result<Answer> {
        self.routes.execute(command)
    }

    fn reset(&self) -> io::Result<()> {
        self.routes.reset()
    }
}

impl Node {
    /// What is open, for [`Node::from_files`] of another process.
    pub(super) fn into_files(self) -> Vec<(Part, File)> {
        let claim = self.claim.map(|file| (Part::Claim, file));
        self.routes.into_files().chain(claim).collect()
    }

    /// What another process has opened of the device at this address; `None` if no command can be sent by it.
    pub(super) fn from_files(address: &str, files: Vec<(Part, File)>) -> Option<Self> {
        let (claims, files) = files.into_iter().partition::<Vec<_>, _>(|(part, _)| *part == Part::Claim);
        let claim = claims.into_iter().next().map(|(_, file)| file);
        Some(Self { routes: Routes::from_files(files)?, claim, _taken: Some(Taken::again(address)) })
    }

    /// For a unit of this process: nobody else has a command sent by it.
    pub(super) fn into_host(mut self) -> Arc<dyn Host> {
        self.routes.guard();
        Arc::new(self)
    }

    /// What it is open by.
    pub(super) fn parts(&self) -> Vec<Part> {
        self.routes.parts()
    }

    /// The device that it leads to.
    pub(super) fn device(&self, sysfs: &Sysfs) -> Option<Device> {
        let (file, driver) = self.routes.first()?;
        let number = file.metadata().ok()?.rdev();
        Some(sysfs.device(driver == Driver::Block, number).ok()?.0)
    }

    pub(super) fn open(
        sysfs: &Sysfs,
        options: &GenericOptions,
    ) -> Result<(Self, GenericConfig), GenericError> {
        Self::open_for(sysfs, options, true)
    }

    /// For another process: what hangs while it is opened keeps its address from none that comes there.
    pub(super) fn open_for_another(
        sysfs: &Sysfs,
        options: &GenericOptions,
    ) -> Result<(Self, GenericConfig), GenericError> {
        Self::open_for(sysfs, options, false)
    }

    fn open_for(
        sysfs: &Sysfs,
        options: &GenericOptions,
        is_unit: bool,
    ) -> Result<(Self, GenericConfig), GenericError> {
        let path = find(sysfs, &options.place)?;
        let (device, driver, number) = look(sysfs, &path)?;
        let name = path.display().to_string();
        let taken = is_unit.then(|| Taken::new(&device.address));
        if matches!(taken, Some(None)) {
            return Err(GenericError::Twice { path: name, address: device.address });
        }
        let block = if driver == Driver::Block { Some(path.clone()) } else { sysfs.block_node(&device) };
        let user = block.as_deref().filter(|_| !options.shared).and_then(user_of);
        if let Some(user) = user {
            return Err(GenericError::InUse { path: name, user });
        }
        if let Some(tape) = sysfs.tape_node(&device).filter(|_| !options.shared) {
            leave_to_its_driver(&tape)?;
        }
        let file = open_as(&path, driver, options)?;
        if file.metadata().map_err(|e| failed(&path, e))?.rdev() != number {
            let error = io::Error::other("another device came to its name meanwhile; try again");
            return Err(GenericError::Host { path: name, error });
        }
        lock(&path, &file, options.shared)?;
        if !sys::speaks_sg(&file) {
            return Err(GenericError::NotScsi {
                path: name,
                what: "a device whose driver takes no commands (SG_IO)".into(),
            });
        }
        let beside = |driver| sibling(sysfs, &device, driver, options);
        let routes = arrange(file, driver, device.is_sequential(), beside)?;
        let claim = match block.filter(|_| !options.shared && routes.driver() != Driver::Block) {
            // Who may not open it may still use the device by another node. Then only what is known of it counts.
            Some(block) => match open_node(&block, false, true)
                .and_then(|claim| lock(&block, &claim, options.shared).map(|()| claim))
            {
                Err(busy @ GenericError::InUse { .. }) => return Err(busy),
                claim => claim.ok(),
            },
            None => None,
        };
        if routes.sg().is_none() && device.is_sequential() {
            tracing::warn!(
                "\"{name}\": there is no node of sg beside it that this process may open, and by bsg the host's kernel may send a \
                 command twice, which moves the medium once more, and without CAP_SYS_RAWIO refuses most; load the module sg, and let \
                 this process read and write its node"
            );
        } else if routes.sg().is_none() {
            tracing::warn!(
                "\"{name}\": there is no node of sg beside it that this process may open: without CAP_SYS_RAWIO the host's kernel \
                 refuses what does not just read and write, such as PERSISTENT RESERVE and COMPARE AND WRITE; load the module sg, \
                 and let this process read and write its node"
            );
        }
        // While the drive of a CD is open for one who writes, the kernel leaves it alone.
        let left_alone = device.device_type() == Some(0x05)
            && !options.shared
            && routes.block().is_some_and(sys::is_writable);
        if let Some((block, pause)) = sysfs.polled(&device).filter(|_| !left_alone) {
            tracing::warn!(
                "\"{name}\": the host looks for another medium every {pause} ms, and hears of it in the guest's place; have it leave that: \
                 echo 0 > /sys/block/{block}/events_poll_msecs"
            );
        }
        let (limits, block) = limits(sysfs, &device, &routes);
        // Of one that is not ready, or has no medium, the kernel shows blocks that it has made up.
        let size = device.size().filter(|size| *size > 0);
        let block = block.filter(|_| size.is_some());
        let config = GenericConfig {
            name,
            allow: options.allow,
            bounce: options.bounce,
            shared: options.shared,
            depth: if routes.driver() == Driver::Sg { device.depth().min(TABLE) } else { device.depth() },
            limits,
            block,
            size,
            wanted: Wanted::new(&device, driver, routes.parts(), options),
        };
        tracing::info!(
            "\"{}\": {} at {}, {} bytes with one command",
            config.name,
            device.title(),
            device.address,
            limits.transfer()
        );
        Ok((Self { routes, claim, _taken: taken.flatten() }, config))
    }
}

/// By which nodes commands go, of the one that was named and those `beside` it.
fn arrange(
    file: File,
    driver: Driver,
    sequential: bool,
    beside: impl Fn(Driver) -> Result<Option<File>, GenericError>,
) -> Result<Routes, GenericError> {
    let (steady, sg) = match driver {
        // By bsg the kernel may send a command twice.
        Driver::Sg if sequential => (None, Some(file)),
        Driver::Bsg if sequential => match beside(Driver::Sg)? {
            Some(sg) => (None, Some(sg)),
            None => (Some((file, driver)), None),
        },
        Driver::Sg => {
            let steady = match beside(Driver::Block)? {
                Some(file) => Some((file, Driver::Block)),
                None => beside(Driver::Bsg)?.map(|file| (file, Driver::Bsg)),
            };
            (steady, Some(file))
        }
        Driver::Block | Driver::Bsg => (Some((file, driver)), beside(Driver::Sg)?),
    };
    Ok(Routes::new(steady, sg))
}

/// Opens a node as its driver wants it, for this unit alone if nobody shares it. What the guest may is told by this layer's own
/// table: a node of sg that is open for reading does not even let a tape wind back.
fn open_as(path: &Path, driver: Driver, options: &GenericOptions) -> Result<File, GenericError> {
    let reads = options.allow == Allow::ReadOnly;
    match driver {
        Driver::Block => open_node(path, !reads, !options.shared),
        // Nobody can have it for himself.
        Driver::Bsg => open_node(path, true, false),
        Driver::Sg => match open_node(path, true, !options.shared) {
            // One that is open for reading is nobody's for himself.
            Err(GenericError::Forbidden { .. } | GenericError::Confined { .. }) if reads => {
                open_node(path, false, false)
            }
            opened => opened,
        },
    }
}

/// Another node of the same device, if there is one that this process may open.
fn sibling(
    sysfs: &Sysfs,
    device: &Device,
    driver: Driver,
    options: &GenericOptions,
) -> Result<Option<File>, GenericError> {
    let Some(path) = sysfs.node_of(device, driver) else { return Ok(None) };
    let file = match open_as(&path, driver, options) {
        Ok(file) => file,
        Err(busy @ GenericError::InUse { .. }) => return Err(busy),
        Err(_) => return Ok(None),
    };
    // Where this process sees other nodes than the kernel made.
    let found = file.metadata().ok();
    let leads = found.is_some_and(|found| {
        let leads = sysfs.device(found.file_type().is_block_device(), found.rdev());
        leads.is_ok_and(|(found, by)| found == *device && by == driver)
    });
    if !leads {
        return Ok(None);
    }
    // Another machine may have been given this one, and be able to open no other.
    lock(&path, &file, options.shared)?;
    Ok(Some(file).filter(sys::speaks_sg))
}

/// Whether the host's own driver of tapes has this one open for somebody.
fn leave_to_its_driver(tape: &Path) -> Result<(), GenericError> {
    match open_node(tape, false, false) {
        Err(busy @ GenericError::InUse { .. }) => Err(busy),
        Err(GenericError::Forbidden { .. } | GenericError::Confined { .. }) => {
            tracing::warn!(
                "{0}: this process may not look whether a program of the host uses the tape by {0}, which it must not meanwhile; let \
                 the process read that node",
                tape.display()
            );
            Ok(())
        }
        // Without a medium nobody can tell.
        _ => Ok(()),
    }
}

/// The path of a node.
pub(super) fn find(sysfs: &Sysfs, place: &Place) -> Result<PathBuf, GenericError> {
    let name = match place {
        Place::Path(path) if fdset::number(path).is_some() => {
            return Err(GenericError::Descriptor { path: path.display().to_string() });
        }
        Place::Path(path) => return Ok(path.clone()),
        Place::Name(name) => name,
    };
    let mut found = sysfs.named(name);
    match (found.pop(), found.is_empty()) {
        (Some(device), true) => sysfs
            .best_node(&device)
            .ok_or(GenericError::NoNode { name: name.clone(), address: device.address }),
        (Some(last), false) => {
            let addresses: Vec<_> = found.into_iter().chain([last]).map(|device| device.address).collect();
            Err(GenericError::Ambiguous { name: name.clone(), addresses: addresses.join(", ") })
        }
        (None, _) => Err(GenericError::Unknown { name: name.clone() }),
    }
}

/// The device that a path leads to, and the number of its node.
pub(super) fn look(sysfs: &Sysfs, path: &Path) -> Result<(Device, Driver, u64), GenericError> {
    let name = || path.display().to_string();
    let not = |what: &str| GenericError::NotScsi { path: name(), what: what.into() };
    let found = fs::metadata(path).map_err(|e| failed(path, e))?;
    let kind = found.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        return Err(not(if kind.is_dir() { "a directory" } else { "no device" }));
    }
    let device = sysfs.device(kind.is_block_device(), found.rdev());
    device.map(|(device, driver)| (device, driver, found.rdev())).map_err(|other| match other {
        Other::Nvme => not("an NVMe namespace"),
        Other::Nothing => not("no SCSI device"),
        Other::Partition(disk) => GenericError::Partition { path: name(), disk },
        Other::Driver(sg) => GenericError::Driver {
            path: name(),
            sg: sg.unwrap_or_else(|| "its node of sg (load the module sg)".into()),
        },
    })
}

/// Opens a node; O_NONBLOCK: not to wait for a medium, nor for others.
fn open_node(path: &Path, writes: bool, exclusive: bool) -> Result<File, GenericError> {
    let flags = libc::O_NONBLOCK | if exclusive { libc::O_EXCL } else { 0 };
    let open = |writes| OpenOptions::new().read(true).write(writes).custom_flags(flags).open(path);
    let begin = Instant::now();
    loop {
        let opened = match open(writes) {
            // A medium that is write protected.
            Err(e) if writes && e.raw_os_error() == Some(libc::EROFS) => open(false),
            opened => opened,
        };
        match opened {
            Ok(file) => return Ok(file),
            Err(e) if e.raw_os_error() != Some(libc::EBUSY) => return Err(failed(path, e)),
            Err(_) if begin.elapsed() < PATIENCE && user_of(path).is_none() => std::thread::sleep(PAUSE),
            Err(_) => {
                // Block devices can be open elsewhere, nodes of sg and tapes cannot.
                let character = fs::metadata(path).is_ok_and(|found| found.file_type().is_char_device());
                let has = if character {
                    "another program has it open"
                } else {
                    "another program has it for itself"
                };
                let user = user_of(path).unwrap_or_else(|| has.into());
                return Err(GenericError::InUse { path: path.display().to_string(), user });
            }
        }
    }
}

/// Keeps other virtual machines away, or those that do not share: as images are locked, which QEMU knows as well.
fn lock(path: &Path, file: &File, shared: bool) -> Result<(), GenericError> {
    let begin = Instant::now();
    loop {
        match try_lock_node(file, shared) {
            Ok(true) => return Ok(()),
            Ok(false) if begin.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
            Ok(false) => {
                let user = "another virtual machine or program has locked it".into();
                return Err(GenericError::InUse { path: path.display().to_string(), user });
            }
            Err(e) => return Err(failed(path, e)),
        }
    }
}

pub(super) fn failed(path: &Path, error: io::Error) -> GenericError {
    let path_name = path.display().to_string();
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => GenericError::Missing { path: path_name },
        Some(libc::EACCES | libc::EPERM) => match crate::sandbox::explain(path, true, &error) {
            Some(why) => GenericError::Confined { path: path_name, why },
            None => GenericError::Forbidden { path: path_name, remedy: remedy(path) },
        },
        _ => GenericError::Host { path: path_name, error },
    }
}

/// What lets this process open a node.
fn remedy(path: &Path) -> String {
    let Ok(found) = fs::metadata(path) else {
        return "add its user to the group that has the node".into();
    };
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let group = group_named(&groups, found.gid()).unwrap_or_else(|| format!("with number {}", found.gid()));
    remedy_for(found.mode(), &group)
}

/// For a node with this mode of this group: udev has those of disks, tapes and CDs for groups, and leaves others to root.
fn remedy_for(mode: u32, group: &str) -> String {
    const READ_WRITE: u32 = 0o060;
    if mode & READ_WRITE == READ_WRITE {
        return format!("add its user to the group {group}");
    }
    "its owner alone may: have udev give the node to a group of this user's, for enclosures (type 13) by the rule \
     SUBSYSTEM==\"scsi_generic\", ATTRS{type}==\"13\", GROUP=\"...\", MODE=\"0660\""
        .into()
}

/// The name of a group in the text of /etc/group (group(5)).
fn group_named(groups: &str, number: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(number)).then(|| name.to_owned())
    })
}

/// What the queue of a device takes, and the length of its blocks.
fn limits(sysfs: &Sysfs, device: &Device, routes: &Routes) -> (HostLimits, Option<u32>) {
    let (mut limits, block) = device.queue().unwrap_or_else(|| {
        let mut limits = HostLimits::default();
        if let Some(Ok((bytes, segments))) = routes.sg().map(sys::queue_of_sg)
            && bytes > 0
            && segments > 0
        {
            if routes.driver() == Driver::Sg {
                // A tape's record has no pieces: it may be as long as sg takes.
                return (HostLimits::of_sg(bytes, segments, sysfs.sg_element()), None);
            }
            (limits.max_bytes, limits.preferred_bytes, limits.max_segments) = (bytes, bytes, segments);
        }
        (limits, None)
    });
    limits.lists = routes.driver() != Driver::Bsg;
    (limits, block)
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
