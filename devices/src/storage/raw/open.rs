//! Opening a host file or block device: what it is and what it demands.

use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::RawOptions;
use super::forcing::Forcing;
use crate::iothread::PieceLimits;
use crate::sandbox;
use crate::storage::fdset::{self, Lease, Mode, Taken};
use crate::storage::lock::{self, Sharing};
use crate::storage::probe::{Looked, open_quietly};
use crate::storage::sys::{self, DirectAlign};
use crate::storage::{CacheMode, OpenError, in_use, stacked};

/// Physical block size told to guests for regular files at most: larger file system blocks are no sector size.
const PHYSICAL_MAX: u64 = 4096;

/// Devices that are stacked on each other at most, to look below them.
const STACK_MAX: u32 = 16;

/// What was found out about an opened image.
pub(super) struct Host {
    pub(super) file: Arc<File>,
    /// The same file through the page cache, when `file` is opened for direct I/O.
    pub(super) buffered: Option<File>,
    pub(super) is_device: bool,
    /// See [`claim`].
    pub(super) claim: Option<File>,
    /// What a block device is made of, locked.
    pub(super) below: Vec<File>,
    /// The same file once more, for syncs alone, where there are any; `None` as well where it could not be had.
    pub(super) audit: Option<Arc<File>>,
    /// Of what is of a set.
    pub(super) leases: Vec<Lease>,
    /// What makes a single write stable.
    pub(super) forcing: Forcing,
    /// The device does FUA itself, or has no cache.
    pub(super) forces: bool,
    /// Of a block device; 1 for files.
    pub(super) logical_block: u32,
    pub(super) align: DirectAlign,
    pub(super) physical_block: u32,
    /// See [`Geometry::atomic`](crate::storage::Geometry::atomic).
    pub(super) atomic: u32,
    pub(super) discard_granularity: u32,
    /// What the device takes at once, or the cache.
    pub(super) pieces: PieceLimits,
}

/// Opens an image for reading only, as one that is looked at: whether it can be written is another question.
pub(in crate::storage) fn probe(options: &RawOptions) -> Result<Looked, OpenError> {
    let kind = kind_of(&options.path)?;
    let file: Looked = match take(options)? {
        Some(taken) => taken.into(),
        None => open_first(&RawOptions { read_only: true, ..options.clone() })?.into(),
    };
    if options.cache.is_direct() {
        let sizes = if kind.is_block_device() { sys::block_sizes(&file).ok() } else { None };
        demands(&file, sizes, options)?;
    }
    Ok(file)
}

fn open_first(options: &RawOptions) -> Result<File, OpenError> {
    open_one(options, options.cache.is_direct()).map_err(|e| refused(options, e))
}

/// What an image that is called so has in its set, if it is of one.
fn take(options: &RawOptions) -> Result<Option<Taken>, OpenError> {
    let Some(number) = fdset::number(&options.path) else { return Ok(None) };
    let taken = fdset::take(number, Mode::exact(!options.read_only), options.cache.is_direct());
    taken.map(Some).map_err(|e| refused(options, e))
}

fn refused(options: &RawOptions, e: io::Error) -> OpenError {
    match e.raw_os_error() {
        Some(libc::EINVAL) if options.cache.is_direct() => no_direct_io(options),
        _ => cannot_open(&options.path, !options.read_only, e),
    }
}

impl Host {
    /// Of a block device that is open for direct I/O, locked, and its opener's alone. Nothing is looked up by a path.
    pub(super) fn of_device(
        file: File,
        options: &RawOptions,
        pieces: PieceLimits,
    ) -> Result<Self, OpenError> {
        let shown = options.path.display();
        let asked = |e| OpenError::host(format!("{shown}: cannot ask the device for its block size"), e);
        let (logical, physical) = sys::block_sizes(&file).map_err(asked)?;
        let align = demands(&file, Some((logical, physical)), options)?;
        Ok(Self {
            file: Arc::new(file),
            buffered: None,
            is_device: true,
            claim: None,
            below: Vec::new(),
            audit: None,
            leases: Vec::new(),
            forcing: Forcing::Flag,
            // What only sysfs tells is not promised.
            forces: false,
            logical_block: logical.max(1),
            align,
            physical_block: if physical.is_power_of_two() { physical.max(512) } else { 512 },
            atomic: 0,
            discard_granularity: 0,
            pieces,
        })
    }

    /// With `claimed`, the caller has the device for itself.
    pub(super) fn open(options: &RawOptions, claimed: bool) -> Result<Self, OpenError> {
        let path = options.path.as_path();
        let shown = fdset::shown(path);
        let kind = kind_of(path)?;
        let direct = options.cache.is_direct();
        let taken = take(options)?;
        let file = match &taken {
            Some(taken) => taken.file.clone(),
            None => Arc::new(open_first(options)?),
        };
        match &taken {
            Some(taken) => taken.lock(&shown, options.read_only, options.sharing)?,
            None => lock::lock(&file, &shown, options.read_only, options.sharing)?,
        }
        let below = match kind.is_block_device() {
            true => stacked::lock_below(path, &file, options.read_only, options.sharing)?,
            false => Vec::new(),
        };
        stacked::look_above(path, &file, options.read_only, options.sharing)?;
        // After the lock, which knows the other virtual machine. Readers, and those who share, do not exclude each other.
        let alone = !claimed && !options.read_only && options.sharing == Sharing::Exclusive;
        let claim = match &taken {
            _ if !kind.is_block_device() || !alone => None,
            Some(_) => {
                in_use::look(path, &file)?;
                None
            }
            None => Some(in_use::claim(path, &file)?),
        };
        let sizes = if kind.is_block_device() {
            Some(sys::block_sizes(&file).map_err(|e| {
                OpenError::host(format!("{shown}: cannot ask the device for its block size"), e)
            })?)
        } else {
            None
        };
        let align =
            if direct { demands(&file, sizes, options)? } else { DirectAlign { memory: 1, block: 1 } };
        let coarse = direct && sizes.is_none() && align.block > 512;
        let buffered = match &taken {
            _ if !coarse => None,
            Some(_) => whole_blocks(&file, align.block, &shown).map(|()| None)?,
            None => Some(open_again(options, &file)?),
        };
        let synced = !options.read_only && options.cache != CacheMode::Unsafe;
        let second = match &taken {
            Some(taken) if synced && !direct => fdset::another(taken, Mode::Write),
            _ => None,
        };
        let audit = match (&taken, &second) {
            (None, _) => synced.then(|| open_again(options, &file).map(Arc::new)).transpose()?,
            (Some(_), second) => second.as_ref().map(|second| second.file.clone()),
        };
        // Where a write takes the error of data that was lost before, nobody hears of it again: so it does not sync.
        let forcing = match &taken {
            Some(_) if synced && !direct && audit.is_none() => Forcing::Sync,
            _ => Forcing::of(&file, path, sizes.is_some()),
        };
        let stat = file.metadata().map_err(|e| cannot_open(path, false, e))?;
        let physical = match sizes {
            Some((_, physical)) => physical,
            None => stat.blksize().clamp(512, PHYSICAL_MAX) as u32,
        };
        Ok(Self {
            forcing,
            leases: taken.into_iter().chain(second).map(|taken| taken.lease).collect(),
            forces: sizes.is_some() && forces(stat.rdev()),
            file,
            buffered,
            is_device: sizes.is_some(),
            claim,
            below,
            audit,
            logical_block: sizes.map_or(1, |(logical, _)| logical.max(1)),
            align,
            physical_block: if physical.is_power_of_two() { physical.max(512) } else { 512 },
            atomic: match sizes {
                Some((_, physical)) if direct => atomic(stat.rdev(), physical),
                // The page cache may be written out while a page changes, and file systems tear as they like.
                _ => 0,
            },
            discard_granularity: match sizes {
                Some(_) => queue_limit(stat.rdev(), "discard_granularity").unwrap_or(0) as u32,
                None => u32::try_from(stat.blksize()).unwrap_or(0),
            },
            pieces: match sizes {
                Some(_) if !direct => PieceLimits::DEVICE_CACHE,
                None if !direct => PieceLimits::FILE_CACHE,
                Some(_) => piece_limits(stat.rdev()),
                // The device below the file system, where it has one.
                None => piece_limits(stat.dev()),
            },
        })
    }
}

/// A regular file or a block device, the only ones that can be images. Looked at before opening: a pipe would wait for its
/// other end.
pub(in crate::storage) fn kind_of(path: &Path) -> Result<FileType, OpenError> {
    let kind = fdset::metadata(path).map_err(|e| cannot_open(path, false, e))?.file_type();
    if is_image(kind) {
        return Ok(kind);
    }
    let message = "is neither a regular file nor a block device and cannot be a disk image";
    Err(OpenError::new(format!("{} {message}", fdset::shown(path))))
}

/// Refuses a file of a set whose end direct I/O cannot reach: that would take one more description, through the page cache.
pub(in crate::storage) fn whole_blocks(file: &File, block: u32, shown: &str) -> Result<(), OpenError> {
    let len = length(file).map_err(|e| OpenError::host(format!("{shown}: cannot find out its length"), e))?;
    if len.is_multiple_of(block.into()) {
        return Ok(());
    }
    Err(OpenError::new(format!(
        "{shown}: its length of {len} bytes is no multiple of {block}, which direct I/O on a passed descriptor needs; make it \
         longer, or set cache = \"writeback\" or \"writethrough\""
    )))
}

fn is_image(kind: FileType) -> bool {
    kind.is_file() || kind.is_block_device()
}

/// The length of a file or block device now, in bytes.
pub(in crate::storage) fn length(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

fn open_one(options: &RawOptions, direct: bool) -> io::Result<File> {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    // The name may lead elsewhere since it was looked at, and opening a pipe would wait for its other end.
    let held = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&options.path)?;
    if !is_image(held.metadata()?.file_type()) {
        return Err(io::Error::other("it was replaced while it was opened; try again"));
    }
    let same = format!("/proc/self/fd/{}", held.as_raw_fd());
    OpenOptions::new().read(true).write(!options.read_only).custom_flags(flags).open(same)
}

/// The same file through the page cache, with an error cursor of its own.
fn open_again(options: &RawOptions, file: &File) -> Result<File, OpenError> {
    let path = options.path.as_path();
    let again = open_one(options, false).map_err(|e| cannot_open(path, !options.read_only, e))?;
    let id = |file: &File| file.metadata().map(|found| (found.dev(), found.ino(), found.rdev()));
    match (id(file), id(&again)) {
        (Ok(first), Ok(second)) if first == second => Ok(again),
        (Err(e), _) | (_, Err(e)) => Err(cannot_open(path, false, e)),
        _ => {
            let message = "another file took its place while it was opened; try again";
            Err(OpenError::new(format!("{}: {message}", path.display())))
        }
    }
}

/// What direct I/O on the file demands.
fn demands(file: &File, sizes: Option<(u32, u32)>, options: &RawOptions) -> Result<DirectAlign, OpenError> {
    let told = sys::direct_align(file);
    if told == Some(DirectAlign { memory: 0, block: 0 }) && sizes.is_none() {
        return Err(no_direct_io(options));
    }
    let sound = |a: &DirectAlign| a.memory.is_power_of_two() && a.block.is_power_of_two();
    if let Some(told) = told.filter(sound) {
        return Ok(told);
    }
    if let Some((logical, _)) = sizes.filter(|(logical, _)| logical.is_power_of_two()) {
        return Ok(DirectAlign { memory: logical, block: logical });
    }
    // Kernels before 6.1 do not say: try. An empty file cannot be tried and gets the larger one.
    for block in [512, 4096] {
        if try_read(file, block).is_ok() {
            return Ok(DirectAlign { memory: block as u32, block: block as u32 });
        }
    }
    Err(no_direct_io(options))
}

/// Reads one block at an offset of one block into a buffer aligned to it and to no more.
fn try_read(file: &File, block: usize) -> io::Result<usize> {
    let mut buffer = vec![0; 4 * 4096];
    let odd = buffer.as_ptr().align_offset(4096) + block % 4096;
    let target = buffer.get_mut(odd..odd + block).unwrap_or_default();
    file.read_at(target, block as u64)
}

/// What sysfs says of a block device in a file; `None` where it says nothing.
fn sysfs(device: u64, name: &str) -> Option<i64> {
    sysfs_text(device, name)?.parse().ok()
}

fn sysfs_text(device: u64, name: &str) -> Option<String> {
    let base = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
    Some(fs::read_to_string(format!("{base}/{name}")).ok()?.trim().to_owned())
}

/// As [`queue_limit`], of what is no number.
fn queue_text(device: u64, name: &str) -> Option<String> {
    let of = |queue| sysfs_text(device, &format!("{queue}/{name}"));
    of("queue").or_else(|| of("../queue"))
}

/// A limit of a block device's queue; `None` where it is not told. Partitions ask their disk.
fn queue_limit(device: u64, name: &str) -> Option<u64> {
    let of = |queue| sysfs(device, &format!("{queue}/{name}"));
    of("queue").or_else(|| of("../queue"))?.try_into().ok()
}

/// Whether a block device makes a single write stable without a flush of its cache. What nobody says is no.
fn forces(device: u64) -> bool {
    queue_limit(device, "fua") == Some(1)
        || queue_text(device, "write_cache").as_deref() == Some("write through")
}

/// What a block device writes as a whole.
fn atomic(device: u64, physical: u32) -> u32 {
    let entry = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
    let below =
        fs::canonicalize(entry).map_or(0, |entry| hardware_block(Path::new("/sys"), &entry, STACK_MAX));
    atomic_unit(
        physical.min(below),
        sysfs(device, "alignment_offset"),
        queue_limit(device, "atomic_write_unit_max_bytes"),
    )
}

/// A physical block is the smallest unit that a device writes atomically (Linux, Documentation/ABI/stable/sysfs-block),
/// where the device begins at one. Larger units, which newer devices have, take writes of a kind of their own.
fn atomic_unit(physical: u32, alignment_offset: Option<i64>, unit_max: Option<u64>) -> u32 {
    let largest = unit_max.filter(|max| *max > 0).unwrap_or(u64::MAX);
    let sound = physical >= 512 && physical.is_power_of_two() && u64::from(physical) <= largest;
    if sound && alignment_offset == Some(0) { physical } else { 0 }
}

/// The smallest physical block of the hardware below the device or partition at `entry` of sysfs; 0 where none is known.
/// What the kernel makes up states what somebody chose: dm-crypt the size of its sectors, nbd and loop that of their
/// users, and what is below them may be a file.
fn hardware_block(sysfs: &Path, entry: &Path, depth: u32) -> u32 {
    let disk = if entry.join("partition").exists() { entry.parent().unwrap_or(entry) } else { entry };
    let slaves = fs::read_dir(disk.join("slaves")).into_iter().flatten().flatten();
    let below = slaves.map(|slave| match (fs::canonicalize(slave.path()), depth.checked_sub(1)) {
        (Ok(slave), Some(depth)) => hardware_block(sysfs, &slave, depth),
        _ => 0,
    });
    let stated = || {
        let block = fs::read_to_string(disk.join("queue/physical_block_size")).ok()?;
        block.trim().parse().ok().filter(|_| !disk.starts_with(sysfs.join("devices/virtual/block")))
    };
    below.min().or_else(stated).unwrap_or(0)
}

/// What a block device takes in one request.
fn piece_limits(device: u64) -> PieceLimits {
    let Some(kib) = queue_limit(device, "max_sectors_kb") else { return PieceLimits::NONE };
    let segments = queue_limit(device, "max_segments").unwrap_or(u64::MAX);
    PieceLimits::new(kib.saturating_mul(1024), usize::try_from(segments).unwrap_or(usize::MAX))
}

/// The error for a file that cannot be opened, for writing or not.
pub(in crate::storage) fn cannot_open(path: &Path, write: bool, e: io::Error) -> OpenError {
    if let Some(why) = sandbox::explain(path, write, &e) {
        return OpenError::new(format!("cannot open the image {}: {why}", path.display()));
    }
    let hint = match e.kind() {
        io::ErrorKind::NotFound => "; there is no such file",
        io::ErrorKind::PermissionDenied if write && open_quietly(path).is_ok() => {
            "; check its owner and mode, or set readonly = true"
        }
        io::ErrorKind::PermissionDenied => "; check its owner and mode",
        io::ErrorKind::ReadOnlyFilesystem => "; set readonly = true",
        _ => "",
    };
    OpenError::host(format!("cannot open the image {}{hint}", fdset::shown(path)), e)
}

fn no_direct_io(options: &RawOptions) -> OpenError {
    OpenError::new(format!(
        "{}: the file system has no direct I/O, which cache = \"{}\" needs; set cache = \"{}\"",
        fdset::shown(&options.path),
        options.cache,
        if options.cache.is_stable() { "writethrough" } else { "writeback" }
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_alone_is_a_remedy_where_it_can_be_done() {
        let directory = crate::testing::temp_dir();
        let path = directory.path().join("disk");
        let said = |write| cannot_open(&path, write, io::Error::from_raw_os_error(libc::EACCES)).message;
        assert!(said(true).ends_with("disk; check its owner and mode"), "{}", said(true));
        File::create(&path).unwrap();
        assert!(said(true).ends_with("; check its owner and mode, or set readonly = true"), "{}", said(true));
        assert!(said(false).ends_with("disk; check its owner and mode"), "{}", said(false));
    }

    #[test]
    fn a_physical_block_is_atomic_where_the_device_begins_at_one() {
        assert_eq!(atomic_unit(4096, Some(0), None), 4096);
        assert_eq!(atomic_unit(512, Some(0), Some(0)), 512, "a device without larger units");
        assert_eq!(atomic_unit(4096, Some(0), Some(65536)), 4096);
        // A partition at sector 63 of a disk of 4096-byte blocks, or parts of a stack that do not fit together.
        assert_eq!(atomic_unit(4096, Some(3584), None), 0);
        assert_eq!(atomic_unit(4096, Some(-1), None), 0);
        assert_eq!(atomic_unit(4096, None, None), 0, "nobody says");
        assert_eq!(atomic_unit(4096, Some(0), Some(512)), 0, "it contradicts itself");
        assert_eq!(atomic_unit(0, Some(0), None), 0);
    }

    #[test]
    fn a_pipe_that_came_to_the_name_is_not_waited_for() {
        let directory = crate::testing::temp_dir();
        let path = directory.path().join("disk");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.is_ok_and(|made| made.success()));
        let options =
            RawOptions { path, read_only: true, cache: CacheMode::Writeback, sharing: Sharing::Exclusive };
        let (done, over) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(open_one(&options, false).map(drop)));
        let opened = over.recv_timeout(std::time::Duration::from_secs(10)).expect("it waits");
        assert!(opened.unwrap_err().to_string().contains("replaced"));
    }

    #[test]
    fn a_block_is_no_larger_than_that_of_the_hardware_below() {
        let directory = crate::testing::temp_dir();
        let sysfs = fs::canonicalize(directory.path()).unwrap();
        let device = |at: &str, block: u32, slaves: &[&str]| {
            let entry = sysfs.join("devices").join(at);
            fs::create_dir_all(entry.join("queue")).unwrap();
            fs::create_dir_all(entry.join("slaves")).unwrap();
            fs::write(entry.join("queue/physical_block_size"), format!("{block}\n")).unwrap();
            for slave in slaves {
                let name = entry.join("slaves").join(Path::new(slave).file_name().unwrap());
                std::os::unix::fs::symlink(sysfs.join("devices").join(slave), name).unwrap();
            }
        };
        let partition = |at: &str| {
            fs::create_dir_all(sysfs.join("devices").join(at)).unwrap();
            fs::write(sysfs.join("devices").join(at).join("partition"), "1\n").unwrap();
        };
        let found = |at: &str| hardware_block(&sysfs, &sysfs.join("devices").join(at), 4);
        device("pci/block/sda", 512, &[]);
        partition("pci/block/sda/sda1");
        device("pci/block/sdb", 4096, &[]);
        device("virtual/nvme-subsystem/nvme-subsys0/nvme0n1", 4096, &[]);
        device("virtual/block/loop0", 4096, &[]);
        partition("virtual/block/loop0/loop0p1");
        device("virtual/block/dm-0", 4096, &["pci/block/sda/sda1"]);
        device("virtual/block/dm-1", 4096, &["pci/block/sdb", "virtual/nvme-subsystem/nvme-subsys0/nvme0n1"]);
        device("virtual/block/md0", 4096, &["virtual/block/dm-0", "pci/block/sdb"]);
        device("virtual/block/dm-2", 4096, &["pci/block/sdb", "virtual/block/loop0/loop0p1"]);
        device("virtual/block/dm-3", 4096, &["virtual/block/dm-3"]);
        assert_eq!((found("pci/block/sda/sda1"), found("pci/block/sdb")), (512, 4096));
        assert_eq!(found("virtual/nvme-subsystem/nvme-subsys0/nvme0n1"), 4096, "paths to one device");
        assert_eq!(
            (found("virtual/block/loop0"), found("virtual/block/loop0/loop0p1")),
            (0, 0),
            "maybe a file"
        );
        assert_eq!(found("virtual/block/dm-0"), 512, "encrypted in sectors of 4096");
        assert_eq!((found("virtual/block/dm-1"), found("virtual/block/md0")), (4096, 512));
        assert_eq!((found("virtual/block/dm-2"), found("virtual/block/dm-3")), (0, 0));
        assert_eq!(found("pci/block/sdz"), 0);
    }
}
