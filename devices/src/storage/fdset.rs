//! Descriptors that the operator gives to the process, in sets with numbers, for images that are called `/dev/fdset/N`.
//!
//! The scheme is QEMU's (QMP: `add-fd`, `remove-fd`, `query-fdsets`). A set is of one file or block device; its descriptors may be
//! open for different things. It stays until its descriptors are removed, and a removed one is closed when no disk uses it.
//!
//! What was given is used itself and never opened again: it may have no name, or none that this process may open. Locks and
//! status flags (direct I/O among them) are those of an open file description, so each serves one disk at a time.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File, Metadata};
use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use thiserror::Error;

pub(super) use super::flags::Buffered;
use super::flags::set_flags;
use super::same::is_same;
use super::{OpenError, Sharing, lock, sys};

/// What the images of sets are called, with the number behind it.
const PREFIX: &str = "/dev/fdset/";
/// Descriptors at most, in all sets: each takes a place among the open files of the process.
const MOST: usize = 1024;
/// Places among the open files that are left to others, such as the kernel that a reset reads, or a quarter of all where that
/// is less.
const LEFT: u64 = 64;
/// Bytes of a text that describes a descriptor, at most.
const OPAQUE_MAX: usize = 1024;
/// The highest number of a set: JSON and TOML have integers of 64 bits with a sign.
pub const NUMBER_MAX: u64 = i64::MAX as u64;

/// All sets. Descriptors are those of the process, and so are these. Nothing waits for the host while it is locked.
static SETS: Mutex<Sets> = Mutex::new(Sets(BTreeMap::new()));

/// Why a descriptor is not taken, or not found.
#[derive(Debug, Error)]
pub enum FdSetError {
    /// None came.
    #[error("no descriptor came with the request (SCM_RIGHTS)")]
    NotGiven,
    /// It is of something else.
    #[error("the descriptor is of a {0}, expected one of a regular file or a block device")]
    Kind(&'static str),
    /// Neither read nor written.
    #[error("the descriptor is open for nothing (O_PATH); expected O_RDWR, or O_RDONLY for a read-only disk")]
    Nothing,
    /// It cannot be read.
    #[error("the descriptor is open for writing only; expected O_RDWR, or O_RDONLY for a read-only disk")]
    WriteOnly,
    /// One set, one file.
    #[error("set {0} is of another file; leave out \"fdset-id\" to have a set of its own")]
    OtherFile(u64),
    /// Those of one request.
    #[error("the descriptors are of different files; expected one file for each set")]
    Several,
    /// See [`MOST`].
    #[error(
        "there are {MOST} descriptors already, which is the most; remove those that no disk needs with remove-fd"
    )]
    TooMany,
    /// See [`LEFT`].
    #[error(
        "the process has hardly any place left for open files; remove descriptors that no disk needs with remove-fd, or raise \
         its limit (LimitNOFILE= of its service, or ulimit -n)"
    )]
    NoRoom,
    /// See [`OPAQUE_MAX`].
    #[error("\"opaque\" has more than {OPAQUE_MAX} bytes")]
    Opaque,
    /// No such set.
    #[error("there is no set {0}")]
    NoSet(u64),
    /// No such descriptor in the set.
    #[error("there is no descriptor {1} in set {0}")]
    NoDescriptor(u64, RawFd),
    /// The host says.
    #[error("cannot look at the descriptor: {0}")]
    Host(#[source] io::Error),
}

/// A descriptor of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its number in this process.
    pub fd: RawFd,
    /// What the operator said of it.
    pub opaque: Option<String>,
}

/// Device, inode and number as a device.
pub(super) type Id = (u64, u64, u64);

/// What a descriptor is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Used {
    No,
    /// For a disk, or by who looks at what it holds.
    Yes,
    /// Its user has gone, but perhaps not yet all that the host does for it. Somebody may watch that.
    Leaving {
        watched: bool,
    },
    /// What was locked is being released.
    Ending,
}

struct Descriptor {
    file: Arc<File>,
    opaque: Option<Arc<str>>,
    writable: bool,
    removed: bool,
    used: Used,
    /// How many have it to ask what it is of, which is no use.
    asked: usize,
    /// Its user may have locked the image through it. Only then are locks released at the end of its use: a duplicate that was
    /// refused would give back those of the disk that runs.
    locked: bool,
}

struct Set {
    id: Id,
    descriptors: Vec<Descriptor>,
}

struct Sets(BTreeMap<u64, Set>);

fn sets() -> MutexGuard<'static, Sets> {
    SETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds descriptors of one file to the set with this number, or to the first that is free. Says which it is, and how the
/// descriptors are numbered here. Those that are refused are closed.
pub fn add(
    given: Vec<OwnedFd>,
    number: Option<u64>,
    opaque: Option<&str>,
) -> Result<(u64, Vec<RawFd>), FdSetError> {
    if opaque.is_some_and(|text| text.len() > OPAQUE_MAX) {
        return Err(FdSetError::Opaque);
    }
    let opaque: Option<Arc<str>> = opaque.map(Into::into);
    let (mut new, mut id) = (Vec::with_capacity(given.len()), None);
    for one in given {
        let (found, descriptor) = Descriptor::of(one.into(), opaque.clone())?;
        if *id.get_or_insert(found) != found {
            return Err(FdSetError::Several);
        }
        new.push(descriptor);
    }
    let id = id.ok_or(FdSetError::NotGiven)?;
    if !new.first().is_some_and(|one| has_room(&one.file)) {
        return Err(FdSetError::NoRoom);
    }
    let numbers = new.iter().map(|one| one.file.as_raw_fd()).collect();
    // What is refused stays in `new` and is closed after the lock.
    let number = sets().insert(&mut new, id, number)?;
    Ok((number, numbers))
}

/// Takes a descriptor out of a set, or all. Those that no disk uses are closed at once.
pub fn remove(number: u64, fd: Option<RawFd>) -> Result<(), FdSetError> {
    let mut all = sets();
    let set = all.0.get_mut(&number).ok_or(FdSetError::NoSet(number))?;
    let chosen = |one: &&mut Descriptor| !one.removed && fd.is_none_or(|fd| one.file.as_raw_fd() == fd);
    let marked = set.descriptors.iter_mut().filter(chosen).map(|one| one.removed = true).count();
    if let (0, Some(fd)) = (marked, fd) {
        return Err(FdSetError::NoDescriptor(number, fd));
    }
    let closed = all.tidy();
    drop(all);
    drop(closed);
    Ok(())
}

/// All sets by their numbers. One without descriptors is still used by a disk.
pub fn list() -> Vec<(u64, Vec<Listed>)> {
    let listed = |one: &Descriptor| Listed {
        fd: one.file.as_raw_fd(),
        opaque: one.opaque.as_deref().map(str::to_owned),
    };
    let all = sets();
    let listed = |set: &Set| set.descriptors.iter().filter(|one| !one.removed).map(listed).collect();
    all.0.iter().map(|(number, set)| (*number, listed(set))).collect()
}

/// The number of the set whose image is called so.
pub fn number(path: &Path) -> Option<u64> {
    let digits = path.to_str()?.strip_prefix(PREFIX)?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|number| plain && *number <= NUMBER_MAX)
}

/// What an image is called in messages: its path, and with a set what the operator said of it.
pub fn shown(path: &Path) -> String {
    let opaque = number(path).and_then(|number| {
        let all = sets();
        all.0.get(&number)?.descriptors.iter().find_map(|one| one.opaque.clone())
    });
    match opaque {
        Some(text) => format!("{} (\"{}\")", path.display(), text.escape_debug()),
        None => path.display().to_string(),
    }
}

/// What the file or device at `path` is, also where that is a set.
pub fn metadata(path: &Path) -> io::Result<Metadata> {
    match number(path) {
        Some(number) => any(number)?.metadata(),
        None => fs::metadata(path),
    }
}

/// What the file of a set is called, or was, by the kernel; other paths as they are.
pub fn origin(path: &Path) -> PathBuf {
    let known = number(path).and_then(|number| any(number).ok());
    let name = known.and_then(|file| fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok());
    name.unwrap_or_else(|| path.to_owned())
}

/// Whether a disk could use the set now, and writing to it or not, with direct I/O or not.
///
/// # Errors
/// What the set lacks, or the host's: `EINVAL` where there is no direct I/O.
pub fn check(number: u64, write: bool, direct: bool) -> io::Result<()> {
    take(number, Mode::exact(write), direct).map(drop)
}

/// What a descriptor has to be open for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Reading and writing.
    Write,
    /// Reading and nothing else.
    Read,
    /// Reading at least.
    Any,
}

impl Mode {
    pub(super) fn exact(write: bool) -> Self {
        if write { Self::Write } else { Self::Read }
    }

    fn fits(self, one: &Descriptor) -> bool {
        match self {
            Self::Write => one.writable,
            Self::Read => !one.writable,
            Self::Any => true,
        }
    }
}

/// A descriptor that is used by nobody else until this is dropped.
pub(super) struct Taken {
    pub(super) file: Arc<File>,
    id: Id,
    pub(super) lease: Lease,
}

impl Taken {
    /// Locks the image through it until the lease ends. Who takes it without this gives no locks back.
    pub(super) fn lock(
        &self,
        shown: impl Display,
        read_only: bool,
        sharing: Sharing,
    ) -> Result<(), OpenError> {
        if sharing != Sharing::Unlocked
            && let Some(one) = sets().find(&self.lease)
        {
            one.locked = true;
        }
        lock::lock(&self.file, shown, read_only, sharing)
    }
}

impl Deref for Taken {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

/// Descriptors that somebody asks about and does not use. What ends their use does not wait for that.
struct Asked(Vec<Arc<File>>);

impl Drop for Asked {
    fn drop(&mut self) {
        let mut all = sets();
        self.0.retain(|file| match all.all().find(|one| Arc::ptr_eq(&one.file, file)) {
            Some(one) => {
                // And this reference goes under the lock, so that both are seen or none. It is not the last.
                one.asked = one.asked.saturating_sub(1);
                false
            }
            // Closed after the lock.
            None => true,
        });
    }
}

/// The right to use a descriptor. To be dropped when its user does nothing more with it; what the host still does is waited for.
#[derive(Debug)]
pub(super) struct Lease {
    number: u64,
    fd: RawFd,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let left = sets().find(self).map(|one| {
            one.used = Used::Leaving { watched: false };
            Arc::downgrade(&one.file)
        });
        if let Some(file) = left {
            settle(&file);
        }
    }
}

/// Takes a descriptor from a set, past the page cache or not.
pub(super) fn take(number: u64, mode: Mode, direct: bool) -> io::Result<Taken> {
    let left = sets().done_of(number);
    left.iter().for_each(settle);
    let (taken, rivals) = {
        let mut all = sets();
        let (id, one) = all.choose(number, mode)?;
        one.used = Used::Yes;
        let file = one.file.clone();
        let rivals = all.ask_used_of(id, &file);
        drop(all);
        (Taken { lease: Lease { number, fd: file.as_raw_fd() }, file, id }, rivals)
    };
    for rival in &rivals.0 {
        match is_same(taken.id, &taken.file, rival) {
            Ok(false) => {}
            Ok(true) => {
                return Err(io::Error::other(
                    "its descriptor is a duplicate of one that another disk uses; open the file once for each disk",
                ));
            }
            // Without locks they are what they are.
            Err(error) if lock::is_unsupported(&error) => {}
            Err(error) => return Err(error),
        }
    }
    drop(rivals);
    set_flags(&taken.file, direct)?;
    Ok(taken)
}

/// One more of the same set and for the same, but of an open file description of its own, through the page cache.
pub(super) fn another(taken: &Taken, mode: Mode) -> Option<Taken> {
    let other = take(taken.lease.number, mode, false).ok()?;
    is_same(taken.id, &taken.file, &other.file).is_ok_and(|same| !same).then_some(other)
}

/// Any descriptor of a set, used or not: to be asked what it is of, not to be read.
pub(super) fn any(number: u64) -> io::Result<File> {
    let all = sets();
    let set = all.0.get(&number).ok_or_else(|| nothing(number))?;
    // Another descriptor of the same description, so that its use is not longer for that. The host is not asked.
    set.descriptors.first().ok_or_else(|| nothing(number))?.file.try_clone()
}

/// Whether there is room for more than those that are open. The lowest number that is free, which a duplicate gets, is one
/// that so many are below.
fn has_room(any: &File) -> bool {
    let Ok(most) = sys::open_files_max() else { return true };
    let next = any.try_clone().map(|file| u64::try_from(file.as_raw_fd()).unwrap_or(0));
    next.is_ok_and(|next| next < most - LEFT.min(most / 4))
}

fn nothing(number: u64) -> io::Error {
    io::Error::other(format!("no descriptors were added as set {number} (add-fd)"))
}

/// Ends the use of a descriptor whose disk has gone, if the host is done with it since: its locks go. May wait for the host, so
/// only those do that have to do with its file: who used it, who wants it, and who watches.
pub(super) fn settle(file: &Weak<File>) {
    let mut all = sets();
    let this = |one: &&mut Descriptor| Arc::as_ptr(&one.file) == file.as_ptr();
    let Some(one) = all.all().find(this).filter(|one| one.is_done()) else { return };
    let ending = one.locked.then(|| {
        one.used = Used::Ending;
        one.file.clone()
    });
    match &ending {
        None => one.used = Used::No,
        Some(file) => {
            drop(all);
            lock::release(file);
            all = sets();
            for one in all.all().filter(|one| Arc::ptr_eq(file, &one.file)) {
                (one.used, one.locked) = (Used::No, false);
            }
        }
    }
    let closed = all.tidy();
    drop(all);
    drop((ending, closed));
}

/// Those whose disks have gone and that nobody watches: the caller does from now on.
pub(super) fn left() -> Vec<Weak<File>> {
    let mut all = sets();
    let left = all.all().filter(|one| one.used == Used::Leaving { watched: false });
    left.map(|one| {
        one.used = Used::Leaving { watched: true };
        Arc::downgrade(&one.file)
    })
    .collect()
}

/// Whether the host is done with one whose disk has gone; `None` when its use has ended.
pub(super) fn is_done(file: &Weak<File>) -> Option<bool> {
    let mut all = sets();
    let one = all.all().find(|one| Arc::as_ptr(&one.file) == file.as_ptr())?;
    matches!(one.used, Used::Leaving { .. }).then(|| one.is_done())
}

impl Descriptor {
    /// Its user has gone, and the host is done with it.
    fn is_done(&self) -> bool {
        matches!(self.used, Used::Leaving { .. }) && Arc::strong_count(&self.file) == 1 + self.asked
    }

    fn of(file: File, opaque: Option<Arc<str>>) -> Result<(Id, Self), FdSetError> {
        let found = file.metadata().map_err(FdSetError::Host)?;
        let kind = found.file_type();
        let what = match () {
            () if kind.is_file() || kind.is_block_device() => None,
            () if kind.is_dir() => Some("directory"),
            () if kind.is_char_device() => Some("character device"),
            () if kind.is_fifo() => Some("pipe"),
            () if kind.is_socket() => Some("socket"),
            () if kind.is_symlink() => Some("symbolic link"),
            () => Some("kernel object"),
        };
        if let Some(what) = what {
            return Err(FdSetError::Kind(what));
        }
        let flags = sys::status_flags(&file).map_err(FdSetError::Host)?;
        let writable = match flags & libc::O_ACCMODE {
            _ if flags & libc::O_PATH != 0 => return Err(FdSetError::Nothing),
            libc::O_RDONLY => false,
            libc::O_RDWR => true,
            _ => return Err(FdSetError::WriteOnly),
        };
        let id = (found.dev(), found.ino(), found.rdev());
        Ok((
            id,
            Self {
                file: Arc::new(file),
                opaque,
                writable,
                removed: false,
                used: Used::No,
                asked: 0,
                locked: false,
            },
        ))
    }
}

impl Sets {
    fn all(&mut self) -> impl Iterator<Item = &mut Descriptor> {
        self.0.values_mut().flat_map(|set| &mut set.descriptors)
    }

    /// Takes all of `new`, or none.
    fn insert(&mut self, new: &mut Vec<Descriptor>, id: Id, number: Option<u64>) -> Result<u64, FdSetError> {
        if self.all().count() + new.len() > MOST {
            return Err(FdSetError::TooMany);
        }
        let free = || (0..).find(|number| !self.0.contains_key(number)).unwrap_or(NUMBER_MAX);
        let number = number.unwrap_or_else(free);
        let set = self.0.entry(number).or_insert_with(|| Set { id, descriptors: Vec::new() });
        if set.id != id {
            return Err(FdSetError::OtherFile(number));
        }
        set.descriptors.append(new);
        Ok(number)
    }

    /// A descriptor that nobody uses, with what it is of.
    fn choose(&mut self, number: u64, mode: Mode) -> io::Result<(Id, &mut Descriptor)> {
        let set = self.0.get_mut(&number).ok_or_else(|| nothing(number))?;
        let id = set.id;
        let there = || set.descriptors.iter().filter(|one| !one.removed);
        let fits = |one: &&Descriptor| mode.fits(one);
        let lacks = match mode {
            _ if there().count() == 0 => format!("all descriptors of set {number} were removed; add one (add-fd)"),
            _ if there().any(|one| fits(&one)) => {
                "its descriptors are in use by other disks; add one for each disk (add-fd)".to_owned()
            }
            Mode::Write => "it has no descriptor that is open for reading and writing (O_RDWR), only for reading \
                            (O_RDONLY); add one, or set readonly = true"
                .to_owned(),
            _ => "it has no descriptor that is open for reading only (O_RDONLY), as readonly = true needs it, only for \
                  reading and writing (O_RDWR); add one"
                .to_owned(),
        };
        let free = |one: &&mut Descriptor| !one.removed && one.used == Used::No && mode.fits(one);
        let found = set.descriptors.iter_mut().find(free);
        found.map(|one| (id, one)).ok_or_else(|| io::Error::other(lacks))
    }

    /// The other descriptors of a file that are in use.
    fn ask_used_of(&mut self, id: Id, but: &Arc<File>) -> Asked {
        let of_file = self.0.values_mut().filter(|set| set.id == id).flat_map(|set| &mut set.descriptors);
        let rivals = of_file.filter(|one| one.used != Used::No && !Arc::ptr_eq(&one.file, but));
        let ask = |one: &mut Descriptor| {
            one.asked += 1;
            one.file.clone()
        };
        Asked(rivals.map(ask).collect())
    }

    /// Those of the file of a set whose use can end.
    fn done_of(&self, number: u64) -> Vec<Weak<File>> {
        let Some(Set { id, .. }) = self.0.get(&number) else { return Vec::new() };
        let of_file = self.0.values().filter(|set| set.id == *id).flat_map(|set| &set.descriptors);
        of_file.filter(|one| one.is_done()).map(|one| Arc::downgrade(&one.file)).collect()
    }

    fn find(&mut self, lease: &Lease) -> Option<&mut Descriptor> {
        let set = self.0.get_mut(&lease.number)?;
        set.descriptors.iter_mut().find(|one| one.file.as_raw_fd() == lease.fd)
    }

    /// Takes out what was removed and is not used: to be closed where nobody waits.
    fn tidy(&mut self) -> Vec<Descriptor> {
        let mut closed = Vec::new();
        self.0.retain(|_, set| {
            closed.extend(set.descriptors.extract_if(.., |one| one.removed && one.used == Used::No));
            !set.descriptors.is_empty()
        });
        closed
    }
}

#[cfg(test)]
#[path = "fdset_tests.rs"]
mod tests;
