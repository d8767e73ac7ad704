//! One file of a chain: its header, its tables, and looking things up in them.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::entry::{self, Entry, Packed};
use super::header::{Compression, Header};
use super::meta::{Found, Meta};
use crate::iothread::{Hold, Io, Owner};
use crate::mem::{FromGuest, SgList, ToGuest};
use crate::storage::error::Action;
use crate::storage::{BlockError, BlockErrorKind, RawImage};

/// Compressed clusters of a file that are unpacked side by side.
pub(super) const UNPACKED_AT_ONCE: usize = 4;

/// A qcow2 file.
pub(super) struct Layer {
    pub(super) file: RawImage,
    /// As it was when the file was opened. [`Layer::len`] and [`Meta::l1_at`] may change.
    pub(super) header: Header,
    pub(super) len: AtomicU64,
    pub(super) meta: Arc<Mutex<Meta>>,
    pub(super) read_only: bool,
    /// Whose unpacking is, [`UNPACKED_AT_ONCE`].
    pub(super) unpacking: Owner,
}

impl Layer {
    /// Length of the disk in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    pub(super) fn meta(&self) -> MutexGuard<'_, Meta> {
        Meta::locked(&self.meta)
    }

    /// The error for tables that make no sense.
    pub(super) fn damaged(&self, action: Action, what: &str) -> BlockError {
        let kind =
            if action == Action::Read { BlockErrorKind::ReadFailed } else { BlockErrorKind::WriteFailed };
        let name = self.file.name();
        let context =
            format!("{action} \"{name}\" failed: {what}; stop the machine and run qemu-img check on it");
        BlockError::new(kind, context)
    }

    /// How the bytes at `at` are stored, and how many of the next `len` are stored the same way in a row.
    pub(super) async fn lookup(&self, io: &Io, at: u64, len: u64) -> Result<(Entry, u64), BlockError> {
        loop {
            let found = self.meta().find(&self.header, at, len);
            match found {
                Found::Run(entry, run) => return Ok((entry, run)),
                Found::NotLoaded => Box::pin(self.load(io, self.l1_index(at))).await?,
                Found::Damaged => return Err(self.damaged(Action::Read, "its L2 tables are damaged")),
            }
        }
    }

    /// Index of the L1 entry for an offset of the disk.
    pub(super) fn l1_index(&self, at: u64) -> usize {
        (at >> (self.header.cluster_bits + self.header.l2_bits())) as usize
    }

    /// Loads an L2 table. Does nothing if tables changed meanwhile: the caller looks again.
    pub(super) async fn load(&self, io: &Io, index: usize) -> Result<(), BlockError> {
        let (at, changes) = {
            let meta = self.meta();
            (entry::offset(meta.l1.get(index).copied().unwrap_or(0)), meta.changes)
        };
        if at == 0 || !at.is_multiple_of(self.header.cluster()) || at >= self.file.host_len() {
            return Err(self.damaged(Action::Read, "its L1 table is damaged"));
        }
        let bytes = self.read_bytes(io, at, self.header.cluster()).await?;
        let entries: Box<[u64]> =
            bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect();
        let mut meta = self.meta();
        if meta.changes == changes && !meta.tables.contains_key(&index) {
            let bad = !self.read_only && entries.iter().any(|raw| self.hits_metadata(&meta, *raw));
            meta.keep(index, entries, false, bad);
        }
        Ok(())
    }

    /// Whether an L2 entry claims a cluster that holds metadata: writing to it would destroy the image.
    fn hits_metadata(&self, meta: &Meta, raw: u64) -> bool {
        match Entry::new(raw, self.header.cluster_bits, self.header.version) {
            Entry::Data { at, .. } | Entry::Zero { kept: at } => {
                at != 0 && meta.is_metadata(at >> self.header.cluster_bits)
            }
            _ => false,
        }
    }

    /// Reads a part of the file.
    pub(super) async fn read_bytes(&self, io: &Io, at: u64, len: u64) -> Result<Vec<u8>, BlockError> {
        let buffer = buffer(len)?;
        let view = FromGuest::new(buffer.window(0, len));
        self.file.fill(io, at, ToGuest::new(buffer), &Hold::none()).await?;
        let mut bytes = vec![0; len as usize];
        view.read_at(0, &mut bytes);
        Ok(bytes)
    }

    /// Writes a part of the file. The operation holds `hold`.
    pub(super) async fn write_bytes(
        &self,
        io: &Io,
        at: u64,
        bytes: &[u8],
        hold: &Hold,
    ) -> Result<(), BlockError> {
        let buffer = ToGuest::new(buffer(bytes.len() as u64)?);
        buffer.write_at(0, bytes);
        self.file.store_at(io, at, FromGuest::new(buffer.into_inner()), false, hold).await
    }

    /// Unpacks a compressed cluster, on a helper thread.
    pub(super) async fn unpack(&self, io: &Io, packed: Packed) -> Result<Vec<u8>, BlockError> {
        let bytes = self.read_bytes(io, packed.at, packed.len).await?;
        let (size, compression) = (self.header.cluster() as usize, self.header.compression);
        let unpacked = io.blocking_on(&self.unpacking, move || unpack(compression, &bytes, size)).await;
        match unpacked {
            Ok(Some(cluster)) => Ok(cluster),
            Ok(None) => Err(self.damaged(Action::Read, "a compressed cluster is damaged")),
            Err(e) => Err(BlockError::host(Action::Read, format!("\"{}\"", self.file.name()), e)),
        }
    }
}

/// A zeroed host buffer.
pub(super) fn buffer(len: u64) -> Result<SgList, BlockError> {
    usize::try_from(len).ok().and_then(|len| SgList::host(len, 4096)).ok_or_else(|| {
        BlockError::new(BlockErrorKind::HostResources, "no host memory for a part of a qcow2 image")
    })
}

/// Unpacks a cluster of `size` bytes.
fn unpack(compression: Compression, bytes: &[u8], size: usize) -> Option<Vec<u8>> {
    match compression {
        Compression::Deflate => inflate(bytes, size),
        Compression::Zstandard => {
            let mut out = vec![0; size];
            let mut stream = ruzstd::decoding::StreamingDecoder::new(bytes).ok()?;
            stream.read_exact(&mut out).ok()?;
            Some(out)
        }
    }
}

/// Unpacks a raw deflate stream of exactly `size` bytes, which other bytes may follow.
fn inflate(bytes: &[u8], size: usize) -> Option<Vec<u8>> {
    use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
    let mut out = vec![0; size];
    let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (_, _, written) = decompress(&mut DecompressorOxide::new(), bytes, &mut out, 0, flags);
    (written == size).then_some(out)
}
