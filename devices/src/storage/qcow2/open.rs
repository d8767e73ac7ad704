//! Opening a chain of files.
//!
//! The format of a file is never guessed: that of the top is configured, and those of backing files are recorded in
//! the headers. A guest that writes a header into a raw disk must not decide what the host opens next.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File};
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use super::entry;
use super::header::{Backing, Header};
use super::layer::{Layer, UNPACKED_AT_ONCE};
use super::meta::Meta;
use super::snapshots;
use super::{BUDGET, Chain, Qcow2Options, UNPACKING};
use crate::iothread::Owner;
use crate::storage::fdset::{self, Buffered};
use crate::storage::gate::Gate;
use crate::storage::probe::open_quietly;
use crate::storage::raw::{cannot_open, kind_of, length};
use crate::storage::{CacheMode, Content, Ending, OpenError, RawImage, RawOptions, Sharing};

/// Files of a chain at most.
const DEPTH: usize = 64;
/// The header and its names are within the first cluster, which has this many bytes at most.
const HEADER_MAX: u64 = 2 << 20;

/// A file of a chain.
pub(super) struct Next {
    pub(super) path: PathBuf,
    qcow2: bool,
    /// What was found to be allowed: its numbers go to no other file while this is open.
    _held: Option<File>,
}

/// A backing file that is allowed.
struct Found {
    path: PathBuf,
    qcow2: bool,
    /// The file itself (O_PATH). Whoever can write to a directory on the way may have another one at the name by now.
    held: File,
}

/// The way down a chain: which file comes next, and whether it may.
pub(super) struct Walk<'a> {
    options: &'a Qcow2Options,
    /// Device and inode of each file; zeros if it is not there, which opening will say.
    seen: Vec<(u64, u64)>,
    next: Option<Found>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(options: &'a Qcow2Options) -> Self {
        Self { options, seen: Vec::new(), next: None }
    }

    /// Whether the file that came last is the one that was configured.
    fn at_top(&self) -> bool {
        self.seen.len() <= 1
    }

    pub(super) fn step(&mut self) -> Result<Option<Next>, OpenError> {
        let (path, qcow2, held) = match self.next.take() {
            Some(Found { path, qcow2, held }) => (path, qcow2, Some(held)),
            None if self.seen.is_empty() => (self.options.path.clone(), true, None),
            None => return Ok(None),
        };
        // Before it is locked: two uses of one file would exclude each other.
        let found = held.as_ref().map_or_else(|| fdset::metadata(&path), File::metadata);
        let id = found.map_or((0, 0), |m| (m.dev(), m.ino()));
        if self.seen.contains(&id) {
            let show = fdset::shown(&path);
            return Err(OpenError::new(format!(
                "{show} is its own backing file, directly or through others"
            )));
        }
        self.seen.push(id);
        if self.seen.len() > DEPTH {
            let place = fdset::shown(&self.options.path);
            return Err(OpenError::new(format!(
                "{place} is a chain of more than {DEPTH} files; shorten it with qemu-img commit or rebase"
            )));
        }
        Ok(Some(Next { path, qcow2, _held: held }))
    }

    /// Notes which file `step`'s one was when it was opened.
    pub(super) fn opened(&mut self, path: &Path, id: (u64, u64)) -> Result<(), OpenError> {
        let top = self.at_top();
        match self.seen.last_mut() {
            // Whoever configured it may also put another one there; and opening one of a lower layer of an overlayfs
            // for writing makes a copy with numbers of its own.
            Some(seen) if top => *seen = id,
            Some(seen) if *seen == id => {}
            _ => return Err(replaced(path)),
        }
        Ok(())
    }

    /// Goes on with the backing file that the header of the image at `path` names.
    pub(super) fn below(&mut self, path: &Path, header: &Header) -> Result<(), OpenError> {
        let Some(backing) = &header.backing else { return Ok(()) };
        let (file, qcow2) = find(path, backing)?;
        let (show, name) = (fdset::shown(path), &backing.name);
        let failed = |e| OpenError::host(format!("{show}: cannot open its backing file \"{name}\""), e);
        // First the file, then whether it may be: a name can lead elsewhere a moment later.
        let (held, real) = match fdset::number(&file) {
            Some(number) => (fdset::any(number).map_err(failed)?, file.clone()),
            None => {
                let held =
                    File::options().read(true).custom_flags(libc::O_PATH).open(&file).map_err(failed)?;
                let real = fs::read_link(format!("/proc/self/fd/{}", held.as_raw_fd())).map_err(failed)?;
                (held, real)
            }
        };
        let regular = held.metadata().map_err(failed)?.is_file();
        let rule = &self.options.backing;
        rule.allows(&self.options.path, &real, regular).map_err(|why| {
            // Where links lead is no name of a device: /dev/dm-3 is another one after the next start.
            let lasting = if regular { real } else { std::path::absolute(&file).unwrap_or(file.clone()) };
            let remedy = rule.remedy(&lasting, regular);
            OpenError::new(format!("{show} names the backing file \"{name}\", and {why}; {remedy}"))
        })?;
        self.next = Some(Found { path: file, qcow2, held });
        Ok(())
    }
}

/// See [`Qcow2Image::inspect`](super::Qcow2Image::inspect).
pub(super) fn inspect(options: &Qcow2Options) -> Result<Ending, OpenError> {
    let mut walk = Walk::new(options);
    let mut disk = 0;
    while let Some(next) = walk.step()? {
        let top = walk.at_top();
        let header = look_at(next, &mut walk, options).map_err(|e| in_chain(options, top, e))?;
        match header {
            Some(header) if top => disk = header.len,
            Some(_) => {}
            None => break,
        }
    }
    Ok(Ending::of_file(disk))
}

/// See [`Qcow2Image::files`](super::Qcow2Image::files).
pub(super) fn files(options: &Qcow2Options) -> Result<Vec<PathBuf>, OpenError> {
    let mut walk = Walk::new(options);
    let mut files = Vec::new();
    while let Some(Next { path, qcow2, _held }) = walk.step()? {
        kind_of(&path)?;
        if qcow2 {
            let failed = |e| cannot_open(&path, false, e);
            let file = open_quietly(&path).map_err(failed)?;
            let header = read_header(&file, length(&file).map_err(failed)?, &path, walk.at_top())?;
            walk.below(&path, &header)?;
        }
        files.push(path);
    }
    Ok(files)
}

/// How each file of an image is opened.
pub(super) fn raw_files(options: &Qcow2Options) -> Result<Vec<RawOptions>, OpenError> {
    let files = files(options)?;
    Ok(files.iter().enumerate().map(|(place, path)| raw_options(options, path, place == 0)).collect())
}

/// Looks at one file of a chain; `None` for the raw one at the bottom.
fn look_at(next: Next, walk: &mut Walk<'_>, options: &Qcow2Options) -> Result<Option<Header>, OpenError> {
    let Next { path, qcow2, _held } = next;
    let failed = |e| cannot_open(&path, false, e);
    kind_of(&path)?;
    let file = open_quietly(&path).map_err(failed)?;
    walk.opened(&path, id_of(&file).map_err(failed)?)?;
    let len = length(&file).map_err(failed)?;
    if !qcow2 {
        let ending = Ending::of(&file).map_err(failed)?;
        ending.warning(fdset::shown(&path), 512).into_iter().for_each(|line| tracing::warn!("{line}"));
        return Ok(None);
    }
    let top = walk.at_top();
    let header = read_header(&file, len, &path, top)?;
    check_header(&header, &path, options, top)?;
    read_meta(&file, len, &path, &header, !options.read_only && top)?;
    walk.below(&path, &header)?;
    Ok(Some(header))
}

/// What is wrong with a file below the top, which alone is configured, is told with the image that wants it.
fn in_chain(options: &Qcow2Options, top: bool, error: OpenError) -> OpenError {
    if top {
        return error;
    }
    let OpenError { message, source } = error;
    let message = format!("{} cannot use a backing file: {message}", fdset::shown(&options.path));
    OpenError { message, source }
}

impl Chain {
    pub(super) fn open(options: &Qcow2Options) -> Result<Self, OpenError> {
        let mut layers = Vec::new();
        let mut base = None;
        let mut walk = Walk::new(options);
        while let Some(next) = walk.step()? {
            let top = walk.at_top();
            match open_file(next, &mut walk, options).map_err(|e| in_chain(options, top, e))? {
                Opened::Layer(layer) => layers.push(layer),
                Opened::Raw(file) => {
                    base = Some(file);
                    break;
                }
            }
        }
        Ok(Self {
            len: layers.first().map_or(0, Layer::len).into(),
            layers,
            base,
            cache: options.cache,
            read_only: options.read_only,
            discard: options.discard,
            gate: Gate::new(BUDGET),
            unpacking: Gate::new(UNPACKING),
            turn: Gate::new(0),
            growing: Gate::new(0),
            reminded: AtomicBool::new(false),
            unpacked: Mutex::new(VecDeque::new()),
        })
    }
}

/// A file of a chain that is open.
enum Opened {
    Layer(Layer),
    Raw(RawImage),
}

fn open_file(next: Next, walk: &mut Walk<'_>, options: &Qcow2Options) -> Result<Opened, OpenError> {
    let Next { path, qcow2, _held } = next;
    let top = walk.at_top();
    let file = RawImage::open(&raw_options(options, &path, top))?;
    walk.opened(&path, file.id().map_err(|e| cannot_open(&path, false, e))?)?;
    if !qcow2 {
        return Ok(Opened::Raw(file));
    }
    let layer = open_layer(file, &path, options, top)?;
    walk.below(&path, &layer.header)?;
    Ok(Opened::Layer(layer))
}

fn id_of(file: &File) -> std::io::Result<(u64, u64)> {
    file.metadata().map(|found| (found.dev(), found.ino()))
}

/// What was looked at is not what was opened.
fn replaced(path: &Path) -> OpenError {
    OpenError::new(format!("{} was replaced while it was opened; try again", fdset::shown(path)))
}

fn raw_options(options: &Qcow2Options, path: &Path, top: bool) -> RawOptions {
    let read_only = options.read_only || !top;
    // Direct I/O does not reach the end of a file that ends within a block, and here it can not be made longer.
    let odd = || fdset::metadata(path).is_ok_and(|m| m.is_file() && m.len() % 4096 != 0);
    let cache = match options.cache {
        CacheMode::None if read_only && odd() => CacheMode::Writeback,
        CacheMode::Directsync if read_only && odd() => CacheMode::Writethrough,
        cache => cache,
    };
    let sharing = match options.sharing {
        Sharing::Unlocked => Sharing::Unlocked,
        sharing if top => sharing,
        _ => Sharing::Exclusive,
    };
    RawOptions { path: path.into(), read_only, cache, sharing }
}

/// Where the backing file of the image at `path` is.
fn find(path: &Path, backing: &Backing) -> Result<(PathBuf, bool), OpenError> {
    let show = fdset::shown(path);
    let name = &backing.name;
    let qcow2 = match backing.format.as_deref() {
        Some("qcow2") => true,
        Some("raw") => false,
        Some(other) => {
            let message =
                format!("{show}: its backing file \"{name}\" has the format \"{other}\", and only ");
            return Err(OpenError::new(message + "\"raw\" and \"qcow2\" are supported"));
        }
        None => {
            return Err(OpenError::new(format!(
                "{show} does not say which format its backing file \"{name}\" has, and guessing would let a \
                 guest decide; record it with qemu-img rebase -u -b \"{name}\" -F raw \"{show}\" (or -F qcow2)"
            )));
        }
    };
    let plain = name.strip_prefix("file:").unwrap_or(name);
    if plain != name && !plain.starts_with('/') {
        let format = if qcow2 { "qcow2" } else { "raw" };
        return Err(OpenError::new(format!(
            "{show} names the backing file \"{name}\", which QEMU looks for in its working directory and not beside the \
             image; record it with qemu-img rebase -u -b \"{plain}\" -F {format} \"{show}\""
        )));
    }
    let protocol = plain.split('/').next().is_some_and(|start| start.contains(':'));
    if protocol {
        let message =
            format!("{show}: its backing file \"{name}\" is not a file, and only files are supported");
        return Err(OpenError::new(message));
    }
    // Joining an absolute name replaces the directory.
    Ok((path.parent().unwrap_or(Path::new("")).join(plain), qcow2))
}

/// Reads the header of the image at `path`, of `len` bytes.
fn read_header(file: &File, len: u64, path: &Path, top: bool) -> Result<Header, OpenError> {
    let show = fdset::shown(path);
    let mut start = vec![0; len.min(HEADER_MAX) as usize];
    file.read_exact_at(&mut start, 0)
        .map_err(|e| OpenError::host(format!("{show}: cannot read the header"), e))?;
    Header::parse(&start).map_err(|reason| {
        let advice = match Content::of_start(&start) {
            Some(content) if content.is_qcow2() => String::new(),
            Some(content) => format!(", but {}; {}", content.what, content.remedy(path)),
            None if top => "; for its bytes as they are, set format = \"raw\"".into(),
            None => "; record what it is with qemu-img rebase -u -F in the image that names it".into(),
        };
        OpenError::new(format!("cannot use {show}: {reason}{advice}"))
    })
}

/// Whether the image at `path` can be used as wanted.
fn check_header(header: &Header, path: &Path, options: &Qcow2Options, top: bool) -> Result<(), OpenError> {
    let show = fdset::shown(path);
    if top && header.len < 512 {
        return Err(OpenError::new(format!("{show} is too short for a disk, which has 512 bytes at least")));
    }
    if top && !options.read_only {
        writable(header).map_err(|e| OpenError::new(format!("cannot open {show} for writing: {e}")))?;
    }
    Ok(())
}

/// The L1 table, and what writing takes: the refcount table, and which clusters hold metadata.
fn read_meta(file: &File, len: u64, path: &Path, header: &Header, write: bool) -> Result<Meta, OpenError> {
    let table = |at, bytes, what: &str| {
        let context =
            || format!("{}: cannot read the {what} table; run qemu-img check on it", fdset::shown(path));
        read_table(file, len, at, bytes).map_err(|e| OpenError::host(context(), e))
    };
    let l1 = table(header.l1_at, header.l1_entries * 8, "L1")?;
    let mut meta = Meta { l1, l1_at: header.l1_at, ..Meta::default() };
    if write {
        meta.reftable = table(header.reftable_at, header.reftable_clusters * header.cluster(), "refcount")?;
        meta.reftable_at = header.reftable_at;
        reserve(&mut meta, header);
        let refused =
            |e: String| OpenError::new(format!("cannot open {} for writing: {e}", fdset::shown(path)));
        distinct_blocks(&meta).map_err(refused)?;
        guard_snapshots(&mut meta, header, file, len).map_err(refused)?;
    }
    Ok(meta)
}

fn open_layer(file: RawImage, path: &Path, options: &Qcow2Options, top: bool) -> Result<Layer, OpenError> {
    let read_only = options.read_only || !top;
    let shown = fdset::shown(path);
    let failed = |what: &str, e| OpenError::host(format!("{shown}: {what}"), e);
    let plain = Plain::open(&file, path, read_only).map_err(|e| failed("cannot open the image", e))?;
    let found = plain.metadata().map_err(|e| failed("cannot open the image", e))?;
    if file.id().is_ok_and(|id| id != (found.dev(), found.ino())) {
        return Err(replaced(path));
    }
    let len = file.host_len();
    let header = read_header(&plain, len, path, top)?;
    check_header(&header, path, options, top)?;
    let mut meta = read_meta(&plain, len, path, &header, !read_only)?;
    if !read_only {
        if header.bitmaps > 0 {
            tracing::warn!(
                "{}: the first write makes its dirty bitmaps ({}) invalid, for they are not kept here; the next backup \
                 after that must be a full one",
                shown,
                header.bitmaps
            );
        }
        prepare(&plain, &file, &header).map_err(|e| failed("cannot prepare the image for writing", e))?;
        file.measure()?;
        // What is beyond the end of a device was used by others.
        meta.virgin = if found.is_file() { len.div_ceil(header.cluster()) } else { u64::MAX };
    }
    plain.end().map_err(|e| failed("cannot open the image", e))?;
    let autoclear = AtomicBool::new(!read_only && header.autoclear != 0);
    let len = AtomicU64::new(header.len);
    Ok(Layer {
        file,
        header,
        len,
        meta: Arc::new(Mutex::new(meta)),
        read_only,
        autoclear,
        unpacking: Owner::with_helpers(UNPACKED_AT_ONCE),
    })
}

/// A file through the page cache: direct I/O would need aligned buffers. The locks belong to the image.
enum Plain<'a> {
    Opened(File),
    Passed(Buffered<'a>),
}

impl<'a> Plain<'a> {
    fn open(image: &'a RawImage, path: &Path, read_only: bool) -> std::io::Result<Self> {
        match image.buffered() {
            Some(passed) => passed.map(Self::Passed),
            None => File::options().read(true).write(!read_only).open(path).map(Self::Opened),
        }
    }

    fn end(self) -> std::io::Result<()> {
        match self {
            Self::Opened(_) => Ok(()),
            Self::Passed(passed) => passed.end(),
        }
    }
}

impl Deref for Plain<'_> {
    type Target = File;

    fn deref(&self) -> &File {
        match self {
            Self::Opened(file) => file,
            Self::Passed(passed) => passed,
        }
    }
}

fn writable(header: &Header) -> Result<(), String> {
    if header.corrupt {
        return Err(
            "it is marked as corrupt; repair it with qemu-img check -r all, or set readonly = true".into()
        );
    }
    if header.dirty {
        let message =
            "its refcounts are marked as outdated after a crash; repair it with qemu-img check -r all";
        return Err(message.into());
    }
    Ok(())
}

fn read_table(file: &File, len: u64, at: u64, bytes: u64) -> std::io::Result<Vec<u64>> {
    if at.checked_add(bytes).is_none_or(|end| end > len.next_multiple_of(1 << 21)) {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    // A table may reach beyond the end of the file: what is there is zero.
    let mut table = vec![0; bytes as usize];
    let present = len.saturating_sub(at).min(bytes) as usize;
    if let Some(part) = table.get_mut(..present) {
        file.read_exact_at(part, at)?;
    }
    Ok(table.as_chunks::<8>().0.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect())
}

/// Notes which clusters hold metadata.
fn reserve(meta: &mut Meta, header: &Header) {
    let bits = header.cluster_bits;
    let cluster = header.cluster();
    let (l1, reftable) = (header.l1_at >> bits, header.reftable_at >> bits);
    let l1_clusters = (header.l1_entries * 8).div_ceil(cluster);
    let ranges = [0..1, reftable..reftable + header.reftable_clusters, l1..l1 + l1_clusters];
    let tables = meta.l1.iter().map(|l1| entry::offset(*l1) >> bits).filter(|n| *n != 0);
    let blocks = meta.reftable.iter().map(|at| at >> bits).filter(|n| *n != 0);
    meta.reserved = ranges.into_iter().flatten().chain(tables).chain(blocks).collect();
}

/// No refcount block counts for two places of the table. Else a table of a small file could have a write look at 2^20 full ones.
fn distinct_blocks(meta: &Meta) -> Result<(), String> {
    let mut blocks: Vec<u64> = meta.reftable.iter().copied().filter(|at| *at != 0).collect();
    blocks.sort_unstable();
    if blocks.windows(2).any(|pair| matches!(pair, [a, b] if a == b)) {
        return Err("its refcount table names a block twice; repair it with qemu-img check -r all".into());
    }
    Ok(())
}

/// Notes which clusters hold metadata of internal snapshots. L2 tables may be shared with them, all else not.
fn guard_snapshots(meta: &mut Meta, header: &Header, plain: &File, len: u64) -> Result<(), String> {
    let kept = snapshots::tables(plain, len, header)?;
    let tables: HashSet<u64> =
        meta.l1.iter().map(|l1| entry::offset(*l1) >> header.cluster_bits).filter(|n| *n != 0).collect();
    if meta.reserved.iter().any(|cluster| kept.contains(cluster) && !tables.contains(cluster)) {
        return Err("tables of its snapshots overlap others; run qemu-img check on it".into());
    }
    meta.kept = kept;
    Ok(())
}

/// What must be in the file before the first write.
fn prepare(plain: &File, file: &RawImage, header: &Header) -> std::io::Result<()> {
    if plain.metadata()?.is_file() {
        let whole = file.host_len().next_multiple_of(header.cluster().max(4096));
        plain.set_len(whole)?;
    }
    Ok(())
}
