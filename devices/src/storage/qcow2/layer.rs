//! One file of a chain: its header, its tables, and looking things up in them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    /// The header names features that are not kept up to date here: it must not when something changes.
    pub(super) autoclear: AtomicBool,
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
        Compression::Zstandard => decompress(bytes, size),
    }
}

/// Unpacks a Zstandard frame (RFC 8878) of exactly `size` bytes, which other bytes may follow.
///
/// The output is the window: a frame costs no more memory than the cluster and the decoder's tables, whatever it says of itself.
fn decompress(bytes: &[u8], size: usize) -> Option<Vec<u8>> {
    let frame = bytes.get(..zstd_safe::find_frame_compressed_size(bytes).ok()?)?;
    let mut out = vec![0; size];
    let written = zstd_safe::decompress(out.as_mut_slice(), frame).ok()?;
    (written == size).then_some(out)
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

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: usize = 65536;
    /// Window_Descriptor of 1 GiB (RFC 8878, 3.1.1.1.2).
    const GIB: u8 = 20 << 3;

    /// A block (RFC 8878, 3.1.1.2): 1 is RLE, 2 is compressed. `size` is Block_Size.
    fn block(kind: u32, size: usize, content: &[u8]) -> Vec<u8> {
        let [a, b, c, _] = (kind << 1 | (size as u32) << 3).to_le_bytes();
        [&[a, b, c], content].concat()
    }

    /// A frame (3.1.1) with `count` such blocks, and an empty raw one at the end.
    fn frame(window: u8, one: &[u8], count: usize) -> Vec<u8> {
        [&[0x28, 0xb5, 0x2f, 0xfd, 0, window], &*one.repeat(count), &[1, 0, 0]].concat()
    }

    /// The same literal, `count` times (3.1.1.3.1: RLE_Literals_Block with 20 bits of Regenerated_Size), then `sequences`.
    fn literals(count: u32, sequences: &[u8]) -> Vec<u8> {
        let [a, b, c, _] = (1 | 3 << 2 | count << 4).to_le_bytes();
        let content = [&[a, b, c, b'x'], sequences].concat();
        block(2, content.len(), &content)
    }

    /// `count` sequences (3.1.1.3.2), each of a literal and a match of 131,074 bytes: all three codes in RLE mode, the newest
    /// offset, which is 1, and 16 bits of length.
    fn sequences(count: u16) -> Vec<u8> {
        let head = match count.checked_sub(0x7f00) {
            Some(rest) => [&[255], &rest.to_le_bytes()[..]].concat(),
            None => vec![(count >> 8) as u8 | 0x80, count as u8],
        };
        [&head, &[0b0101_0100, 1, 0, 52][..], &vec![0xff; 2 * usize::from(count)], &[1]].concat()
    }

    #[test]
    fn frames_of_a_cluster() {
        let unpack = |bytes: &[u8]| unpack(Compression::Zstandard, bytes, CLUSTER);
        let exact = frame(6 << 3, &block(1, CLUSTER, b"x"), 1);
        assert_eq!(unpack(&exact), Some(vec![b'x'; CLUSTER]));
        // What follows is that of the next entry.
        assert_eq!(unpack(&[&exact[..], &exact, b"more"].concat()), Some(vec![b'x'; CLUSTER]));
        let small = block(1, 512, b"x");
        assert_eq!(unpack(&frame(6 << 3, &small, CLUSTER / 512)), Some(vec![b'x'; CLUSTER]));
        assert_eq!(unpack(&frame(6 << 3, &small, CLUSTER / 512 - 1)), None, "too short");
        assert_eq!(unpack(&exact[..exact.len() - 1]), None, "cut off");
        assert_eq!(unpack(&[]), None);
    }

    /// A cluster's bytes must not unpack to more than the cluster, whatever they say: the host's memory pays for it.
    #[test]
    fn frames_that_are_more_than_a_cluster() {
        let bombs = [
            ("a block too much", frame(6 << 3, &block(1, CLUSTER / 2, b"x"), 3)),
            ("RLE blocks in a large window", frame(GIB, &block(1, 128 << 10, b"x"), 100)),
            ("literals of 1 MiB in 8 bytes", frame(GIB, &literals(0xf_ffff, &[0]), 10)),
            ("a block of long matches", frame(GIB, &literals(100, &sequences(100)), 1)),
            ("8 GiB of them", frame(GIB, &literals(65_000, &sequences(65_000)), 1)),
        ];
        for (what, bytes) in bombs {
            assert!(bytes.len() <= 2 * CLUSTER, "{what}: an entry has no room for {}", bytes.len());
            assert!(unpack(Compression::Zstandard, &bytes, CLUSTER).is_none(), "{what}");
        }
    }
}
