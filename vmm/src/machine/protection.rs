//! The file of a disk's protection information: a header that says whose it is, then eight bytes for each logical block, with
//! holes where nothing was written. Numbers in the header are big-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 0-7 | `VMM-PI` and two zeros |
//! | 8-11 | version: 1 |
//! | 12-15 | logical block length of the disk in bytes |
//! | 16-19 | type of protection: 1 or 3 |
//! | 20-23 | length of the serial number |
//! | 24- | serial number of the disk, which follows its image |
//!
//! Files of earlier versions have no header, and are known by their length.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use devices::sandbox;
use devices::scsi::{DiskConfig, DiskError};
use devices::storage::{BlockBackend, CacheMode, Image, RawImage, RawOptions, Rehearsal, Sharing};

use crate::config;
use crate::output_file;

const MAGIC: &[u8; 8] = b"VMM-PI\0\0";
const VERSION: u32 = 1;
/// Bytes before the first tuple.
const HEADER: usize = 4096;
/// Bytes of protection information for each block.
const TUPLE: u64 = 8;
/// No serial number of a disk is longer.
const SERIAL_MAX: usize = 252;

/// Whose protection information a file keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    block_size: u32,
    kind: u32,
    serial: Vec<u8>,
}

/// What a file is by its first bytes.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// Nothing was ever written to it, or its header not to its end.
    Nothing,
    Ours(Owner),
    Newer(u32),
    Other,
}

/// The file of a disk's protection information, made if it is not there, and where in it the first tuple is.
///
/// # Errors
/// A file that is something else, or another disk's, is refused and stays as it is.
pub(super) fn store(
    protection: &config::Protection,
    cache: CacheMode,
    image: &Image,
    config: &DiskConfig,
) -> Result<(Arc<Image>, u64)> {
    let (path, owner) = (&protection.image, owner(protection, config));
    let tuples = tuples(image.geometry().len, config);
    if !config.read_only {
        prepare(path, &owner, HEADER as u64 + tuples)?;
    }
    let first = check(path, &owner, tuples)?;
    let options = options(protection, cache, config.read_only);
    // Its writes count as parts of the disk's, which have waited for their limits.
    Ok((Arc::new(Image::Raw(RawImage::open(&options)?).guarded(None, image.pausing())), first))
}

/// Says what [`store`] would, for an image of `len` bytes, of a file that is there; nothing is made or changed.
pub(super) fn rehearse(
    protection: &config::Protection,
    cache: CacheMode,
    len: u64,
    config: &DiskConfig,
    images: &mut Rehearsal,
) -> Result<()> {
    let (path, owner) = (&protection.image, owner(protection, config));
    let name = path.display();
    if !config.read_only {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            file => file.map_err(|error| cannot_open(path, true, error))?,
        };
        let now = file.metadata().with_context(|| format!("looking at {name}"))?;
        ensure!(now.is_file(), "{name} is no regular file");
        let found = read(&file).with_context(|| format!("reading {name}"))?;
        if now.len() <= HEADER as u64 && is_to_be_made(&found, &owner) {
            return Ok(());
        }
    }
    let first = check(path, &owner, tuples(len, config))?;
    images.raw(&options(protection, cache, config.read_only))?;
    let room = std::fs::metadata(path)?.len() / 512 * 512;
    if room.saturating_sub(first) / TUPLE < len / u64::from(config.block_size) {
        return Err(DiskError::ProtectionStore.into());
    }
    Ok(())
}

fn cannot_open(path: &Path, write: bool, error: std::io::Error) -> Error {
    let name = path.display();
    match sandbox::explain(path, write, &error) {
        Some(why) => anyhow!("opening {name}: {why}"),
        None => Error::new(error).context(format!("opening {name}")),
    }
}

fn owner(protection: &config::Protection, config: &DiskConfig) -> Owner {
    let kind = if protection.type_3 { 3 } else { 1 };
    Owner { block_size: config.block_size, kind, serial: config.serial.clone().into_bytes() }
}

/// Bytes of the tuples of an image of `len` bytes.
fn tuples(len: u64, config: &DiskConfig) -> u64 {
    (len / u64::from(config.block_size) * TUPLE).next_multiple_of(512)
}

fn options(protection: &config::Protection, cache: CacheMode, read_only: bool) -> RawOptions {
    // Pieces of eight bytes are no work for direct I/O.
    let cache = match cache {
        CacheMode::None => CacheMode::Writeback,
        CacheMode::Directsync => CacheMode::Writethrough,
        cache => cache,
    };
    RawOptions { path: protection.image.clone(), read_only, cache, sharing: Sharing::default() }
}

/// Whether a file that is no longer than a header is one that was not made to its end.
fn is_to_be_made(found: &Found, owner: &Owner) -> bool {
    match found {
        Found::Nothing => true,
        Found::Ours(found) => found == owner,
        Found::Newer(_) | Found::Other => false,
    }
}

/// Makes the file if it is not there, or empty. After a loss of power it is there as a whole or counts as empty: the header
/// is stable before the file gets its length.
fn prepare(path: &Path, owner: &Owner, len: u64) -> Result<()> {
    let name = path.display();
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(output_file::MODE).open(path);
    let file = file.map_err(|error| cannot_open(path, true, error))?;
    let now = file.metadata().with_context(|| format!("looking at {name}"))?;
    ensure!(now.is_file(), "{name} is no regular file");
    if now.len() > HEADER as u64 {
        return Ok(());
    }
    if !is_to_be_made(&read(&file).with_context(|| format!("reading {name}"))?, owner) {
        return Ok(());
    }
    let made = || -> std::io::Result<()> {
        file.write_all_at(&header(owner), 0)?;
        file.sync_all()?;
        file.set_len(len)?;
        file.sync_all()?;
        // And its name.
        let absolute = std::path::absolute(path)?;
        absolute.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    };
    made().with_context(|| format!("making {name}"))?;
    tracing::warn!(
        "{name}: made for the protection information of the disk; blocks that were written before are not checked \
         until they are written again"
    );
    Ok(())
}

/// Where the first tuple is, if the file is that of the disk.
fn check(path: &Path, owner: &Owner, tuples: u64) -> Result<u64> {
    let name = path.display();
    let file = File::open(path).map_err(|error| cannot_open(path, false, error))?;
    let (found, len) = (read(&file).with_context(|| format!("reading {name}"))?, file.metadata()?.len());
    let found = match found {
        Found::Ours(found) => found,
        Found::Newer(version) => {
            bail!("{name} is protection information of version {version}, and only {VERSION} is known")
        }
        // With zeros at the start: nothing was written to the first blocks.
        Found::Nothing | Found::Other if len == tuples => {
            tracing::warn!(
                "{name} is protection information of an earlier version: nothing in it says which disk it belongs to"
            );
            return Ok(0);
        }
        Found::Nothing | Found::Other => {
            bail!(
                "{name} is no protection information of this disk and is left as it is; set protection_image to another file"
            )
        }
    };
    let anew = "or move the file away: a new one is made, and blocks are checked once they are written again";
    let serial = |owner: &Owner| String::from_utf8_lossy(&owner.serial).into_owned();
    ensure!(
        found.block_size == owner.block_size,
        "{name} is for blocks of {} bytes, and the disk has {}; set block_size = {0}, {anew}",
        found.block_size,
        owner.block_size
    );
    ensure!(
        found.kind == owner.kind,
        "{name} is for protection = {}, and the disk has {}; set protection = {0}, {anew}",
        found.kind,
        owner.kind
    );
    ensure!(
        found.serial == owner.serial,
        "{name} belongs to the disk with serial number {}, and this one has {}; if it is the same disk, copied together with \
         this file, set serial = \"{0}\", {anew}",
        serial(&found),
        serial(owner)
    );
    Ok(HEADER as u64)
}

fn header(owner: &Owner) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let len = owner.serial.len().min(SERIAL_MAX) as u32;
    let numbers = [VERSION, owner.block_size, owner.kind, len].map(u32::to_be_bytes);
    let bytes = MAGIC.iter().chain(numbers.as_flattened()).chain(owner.serial.iter().take(SERIAL_MAX));
    header.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    header
}

fn read(file: &File) -> std::io::Result<Found> {
    let (mut bytes, mut have) = ([0; HEADER], 0);
    while let Some(rest) = bytes.get_mut(have..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, have as u64)? {
            0 => break,
            more => have += more,
        }
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(Found::Nothing);
    }
    let number = |at: usize| {
        let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
        four.map_or(0, u32::from_be_bytes)
    };
    let serial = bytes.get(24..).and_then(|rest| rest.get(..number(20) as usize));
    Ok(match serial {
        _ if !bytes.starts_with(MAGIC) => Found::Other,
        _ if number(8) != VERSION => Found::Newer(number(8)),
        Some(serial) => {
            Found::Ours(Owner { block_size: number(12), kind: number(16), serial: serial.into() })
        }
        None => Found::Other,
    })
}

#[cfg(test)]
#[path = "protection_tests.rs"]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
