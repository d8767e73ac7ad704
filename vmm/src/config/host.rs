//! What the host can give, and whether it has the files that a configuration names.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use devices::sandbox;
use devices::storage::{self, Backing, CacheMode, Content, Ending, Qcow2Image, Qcow2Options, Sharing, fdset};

use super::types::{Disk, Format};

/// What the host can give to a machine.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Memory and swap in bytes; `None` when unknown.
    pub memory: Option<u64>,
    /// The sizes of huge pages in bytes that the host knows, and how many of each are free.
    pub huge_pages: Vec<(u64, u64)>,
    /// Whether this process is root's.
    pub root: bool,
}

impl Host {
    /// Looks at the host that this runs on.
    pub fn probe() -> Self {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let amount = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
        };
        let memory = amount("MemTotal").and_then(|total| total.checked_add(amount("SwapTotal").unwrap_or(0)));
        // SAFETY: no arguments, and it never fails.
        #[allow(unsafe_code)]
        let root = unsafe { libc::geteuid() } == 0;
        Self { memory, huge_pages: huge_pages().unwrap_or_default(), root }
    }
}

/// The pools of huge pages: directories called `hugepages-2048kB`.
fn huge_pages() -> io::Result<Vec<(u64, u64)>> {
    let mut pools = Vec::new();
    for entry in fs::read_dir("/sys/kernel/mm/hugepages")? {
        let entry = entry?;
        let name = entry.file_name();
        let kib = name.to_str().and_then(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB"));
        let Some(size) = kib.and_then(|kib| kib.parse::<u64>().ok()?.checked_mul(1024)) else { continue };
        let count = |file: &str| -> u64 {
            let text = fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            text.trim().parse().unwrap_or(0)
        };
        pools.push((size, count("free_hugepages").saturating_sub(count("resv_hugepages"))));
    }
    pools.sort_unstable();
    Ok(pools)
}

/// The file that says how many huge pages of `size` bytes the host has, and takes a new number.
pub fn huge_page_pool(size: u64) -> String {
    format!("/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", size >> 10)
}

/// Why an error of the host happened, without the number.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((reason, _)) => reason.to_owned(),
        None => text,
    }
}

/// A file or block device, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// By file system and number.
    File(u64, u64),
    /// By device number.
    Device(u64),
}

/// What is at `path`, if there is something.
pub fn medium(path: &Path) -> Option<Medium> {
    let found = fdset::metadata(path).ok()?;
    let is_device = found.file_type().is_block_device();
    Some(if is_device { Medium::Device(found.rdev()) } else { Medium::File(found.dev(), found.ino()) })
}

/// What is at `path`, for people.
fn kind(path: &Path) -> Result<&'static str, String> {
    let found = fdset::metadata(path);
    let found = found.map_err(|error| {
        let why = sandbox::explain_image(path, false, &error).unwrap_or_else(|| reason(&error));
        format!("cannot open {}: {why}", fdset::shown(path))
    })?;
    let kind = found.file_type();
    Ok(if kind.is_file() {
        "file"
    } else if kind.is_dir() {
        "directory"
    } else if kind.is_block_device() {
        "block device"
    } else if kind.is_char_device() {
        "character device"
    } else if kind.is_fifo() {
        "named pipe"
    } else {
        "socket"
    })
}

fn open(path: &Path, write: bool, flags: i32) -> io::Result<File> {
    OpenOptions::new().read(true).write(write).custom_flags(flags | libc::O_NONBLOCK).open(path)
}

/// Checks that `path` is a file that can be read.
pub(super) fn check_file(path: &Path) -> Result<(), String> {
    let kind = kind(path)?;
    if kind != "file" {
        return Err(format!("{} is a {kind}, expected a file", path.display()));
    }
    open(path, false, 0)
        .map(drop)
        .map_err(|error| format!("cannot open {}: {}", path.display(), reason(&error)))
}

/// Checks that `path` is an image that can be opened as wanted. Changes nothing.
pub(super) fn check_image(path: &Path, read_only: bool, direct: bool) -> Result<(), String> {
    let shown = fdset::shown(path);
    let kind = kind(path)?;
    if !matches!(kind, "file" | "block device") {
        return Err(format!("{shown} is a {kind}, expected an image file or a block device"));
    }
    if kind == "file" && fdset::metadata(path).is_ok_and(|found| found.len() == 0) {
        return Err(format!("{shown} is empty, expected an image of the disk's size"));
    }
    if let Some(number) = fdset::number(path) {
        fdset::check(number, !read_only, direct).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) if direct => no_direct_io(&shown),
            _ => format!("cannot open {shown}: {}", reason(&error)),
        })?;
        return check_unused(path, read_only, &shown);
    }
    open(path, false, 0).map_err(|error| {
        let why = sandbox::explain_image(path, !read_only, &error).unwrap_or_else(|| reason(&error));
        format!("cannot open {shown}: {why}")
    })?;
    if !read_only {
        open(path, true, 0).map_err(|error| match sandbox::explain_image(path, true, &error) {
            Some(why) => format!("cannot write {shown}: {why}"),
            None => format!(
                "cannot write {shown}: {}; expected a writable image or `readonly = true`",
                reason(&error)
            ),
        })?;
    }
    check_unused(path, read_only, &shown)?;
    if direct && open(path, false, libc::O_DIRECT).is_err() {
        return Err(no_direct_io(&shown));
    }
    Ok(())
}

fn check_unused(path: &Path, read_only: bool, shown: &str) -> Result<(), String> {
    let Some(user) = storage::user_of(path).filter(|_| !read_only) else { return Ok(()) };
    Err(format!(
        "{shown} is in use by the host: {user}; free it, use another device, or set `readonly = true`"
    ))
}

fn no_direct_io(shown: &str) -> String {
    format!(
        "the file system of {shown} has no direct I/O, expected `cache` to be \"writeback\" or \"writethrough\""
    )
}

/// Checks that an image, which can be opened, is of its format, and what a qcow2 image is made of. Changes and locks nothing.
/// Says where the disk ends.
///
/// A format that was `written` is taken at its word.
pub(super) fn check_content(
    path: &Path,
    format: Format,
    written: bool,
    read_only: bool,
    backing: &Backing,
) -> Result<Ending, String> {
    let shown = fdset::shown(path);
    if format == Format::Qcow2 {
        return Qcow2Image::inspect(&unlocked(path, read_only, backing)).map_err(|error| {
            match &error.source {
                Some(source) => format!("{error}: {}", reason(source)),
                None => error.to_string(),
            }
        });
    }
    let cannot_read = |error| format!("cannot read {shown}: {}", reason(&error));
    let found = Content::of(path).map_err(cannot_read)?;
    let ending = Ending::find(path).map_err(cannot_read)?;
    let Some(content) = found else { return Ok(ending) };
    let (what, remedy) = (content.what, content.remedy(path));
    if written {
        tracing::warn!(
            "{shown} is {what}; with format = \"raw\" the guest sees and changes its bytes as they are"
        );
        return Ok(ending);
    }
    Err(format!(
        "{shown} is {what}; {remedy}, or set format = \"raw\" if the guest shall have its bytes as they are"
    ))
}

fn unlocked(path: &Path, read_only: bool, backing: &Backing) -> Qcow2Options {
    Qcow2Options {
        path: path.to_owned(),
        read_only,
        cache: CacheMode::Writeback,
        sharing: Sharing::Unlocked,
        backing: backing.clone(),
        discard: false,
    }
}

/// What a disk uses besides its image: backing files, and the files below loop devices, each with the words for it. Nothing
/// where it cannot be opened.
pub(crate) fn files_below(disk: &Disk) -> Vec<(&'static str, PathBuf)> {
    let images = match disk.format {
        Format::Raw => vec![disk.image.clone()],
        Format::Qcow2 => {
            let options = unlocked(&disk.image, disk.read_only, &disk.backing);
            Qcow2Image::files(&options).unwrap_or_default()
        }
    };
    let below: Vec<_> = images.iter().flat_map(|image| storage::files_below(image)).collect();
    let backing = images.into_iter().skip(1).map(|path| ("backing file", path));
    backing.chain(below.into_iter().map(|path| ("file below the device", path))).collect()
}

/// Checks that an image has a whole block of a disk with blocks of `block` bytes, and warns of an end that it will not show.
pub(super) fn check_ending(path: &Path, ending: Ending, block: u64) -> Result<(), String> {
    let shown = fdset::shown(path);
    if ending.shown(block) == 0 {
        let block = block.max(ending.unit);
        return Err(format!("{shown} is too short: it has not one whole block of {block} bytes"));
    }
    ending.warning(shown, block).into_iter().for_each(|line| tracing::warn!("{line}"));
    Ok(())
}

/// Checks that there is something at `path`.
pub(super) fn check_exists(path: &Path) -> Result<(), String> {
    kind(path).map(drop)
}

/// Checks that `path` is a directory.
pub(super) fn check_directory(path: &Path) -> Result<(), String> {
    match kind(path)? {
        "directory" => Ok(()),
        kind => Err(format!("{} is a {kind}, expected a directory", path.display())),
    }
}

/// The name of a device in hexadecimal digits: eight bytes, or, of NAA 6h, sixteen.
pub(super) fn device_name(wwn: u128) -> String {
    if wwn >> 64 == 0 { format!("{wwn:016x}") } else { format!("{wwn:032x}") }
}

/// Checks that `path` is a device node of the host.
pub(super) fn check_device(path: &Path) -> Result<(), String> {
    match kind(path)? {
        "character device" | "block device" => Ok(()),
        kind => Err(format!(
            "{} is a {kind}, expected a device; type = \"disk\" and \"cd\" take images",
            path.display()
        )),
    }
}

/// Checks that a file at `path` is not in the host's memory, as in `/dev`: there it would be gone with the next start.
pub(super) fn check_lasting(path: &Path) -> Result<(), String> {
    // Whoever makes it says what else is wrong with the directory.
    let Ok(directory) = fs::canonicalize(parent(path)) else { return Ok(()) };
    let kind = fs::metadata(&directory).ok().and_then(|found| {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        file_system(&mounts, found.dev()).map(str::to_owned)
    });
    let in_memory = kind.filter(|kind| matches!(kind.as_str(), "devtmpfs" | "tmpfs" | "ramfs"));
    if in_memory.is_none() && !directory.starts_with("/dev") {
        return Ok(());
    }
    let kind = in_memory.map(|kind| format!(" ({kind})")).unwrap_or_default();
    let (shown, directory) = (path.display(), directory.display());
    Err(format!("{shown} would be lost when the host restarts, for {directory} is in its memory{kind}"))
}

/// The kind of the file system with this number (proc(5), mountinfo: the number, and behind a dash the kind).
fn file_system(mounts: &str, number: u64) -> Option<&str> {
    let number = format!("{}:{}", libc::major(number), libc::minor(number));
    mounts.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        (head.split(' ').nth(2)? == number).then(|| tail.split(' ').next())?
    })
}

/// The directory that `path` is in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Checks that something can be made at `path` in `directory`.
fn check_writable(path: &Path, directory: &Path) -> Result<(), String> {
    let name = CString::new(directory.as_os_str().as_bytes()).unwrap_or_default();
    // SAFETY: the call reads a string that lives as long as it.
    #[allow(unsafe_code)]
    let result =
        unsafe { libc::faccessat(libc::AT_FDCWD, name.as_ptr(), libc::W_OK | libc::X_OK, libc::AT_EACCESS) };
    if result == 0 {
        return Ok(());
    }
    let why = reason(&io::Error::last_os_error());
    Err(format!("cannot create {}: {why} in {}", path.display(), directory.display()))
}

/// Checks that a file could be made at `path`, or that what is there is called `replaced`.
pub(super) fn check_creatable(path: &Path, replaced: &str) -> Result<(), String> {
    let shown = path.display();
    if fdset::number(path).is_some() {
        return Err(format!("{shown} is a set of descriptors, expected a file"));
    }
    let parent = parent(path);
    match (kind(parent), kind(path)) {
        (Err(_), _) => Err(format!("cannot create {shown}: no directory {}", parent.display())),
        (Ok("directory"), Err(_)) => check_writable(path, parent),
        (Ok("directory"), Ok("file")) if replaced == "file" => Ok(()),
        // Made anew.
        (Ok("directory"), Ok(found)) if found == replaced => check_writable(path, parent),
        // A terminal or /dev/null takes output as a file does.
        (Ok("directory"), Ok("character device")) if replaced == "file" => Ok(()),
        (Ok("directory"), Ok(found)) => {
            Err(format!("{shown} is a {found}, expected a {replaced} or nothing"))
        }
        (Ok(_), _) => Err(format!("cannot create {shown}: {} is no directory", parent.display())),
    }
}
