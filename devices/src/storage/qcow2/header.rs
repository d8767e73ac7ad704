//! The header of an image (QEMU, docs/interop/qcow2.rst). All numbers are big-endian.

use std::fmt;

/// "QFI\xfb".
const MAGIC: u32 = 0x5146_49fb;
/// L1 table at most, in bytes: what QEMU accepts.
pub(super) const L1_BYTES_MAX: u64 = 32 << 20;
/// Refcount table at most, in bytes: what QEMU accepts.
pub(super) const REFTABLE_BYTES_MAX: u64 = 8 << 20;
/// Header extension: format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Header extension: dirty bitmaps, and first how many.
const BITMAPS: u32 = 0x2385_2875;
/// Autoclear feature: the dirty bitmaps agree with the disk.
const BITMAPS_VALID: u64 = 1 << 0;

/// Incompatible feature: refcounts may be wrong after a crash.
const DIRTY: u64 = 1 << 0;
/// Incompatible feature: metadata is known to be damaged.
const CORRUPT: u64 = 1 << 1;
/// Incompatible feature: data is in another file.
const EXTERNAL_DATA: u64 = 1 << 2;
/// Incompatible feature: the header names the kind of compression.
const COMPRESSION: u64 = 1 << 3;
/// Incompatible feature: subclusters.
const EXTENDED_L2: u64 = 1 << 4;

/// Offset of the size of the disk, in bytes.
pub(super) const SIZE_FIELD: u64 = 24;
/// Offset of the number of entries and the place of the L1 table, in bytes.
pub(super) const L1_FIELD: u64 = 36;
/// What is at [`L1_FIELD`].
pub(super) fn l1_field(entries: u64, at: u64) -> Vec<u8> {
    (entries as u32).to_be_bytes().into_iter().chain(at.to_be_bytes()).collect()
}

/// Offset of the kind of compression, in bytes.
const COMPRESSION_FIELD: u64 = 104;
/// Offset of the field with the place and the length of the refcount table, in bytes.
pub(super) const REFTABLE_FIELD: u64 = 48;
/// Offset of the autoclear features, in bytes.
pub(super) const AUTOCLEAR_FIELD: u64 = 88;

/// The file that an image leaves unallocated clusters to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backing {
    pub(super) name: String,
    pub(super) format: Option<String>,
}

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Deflate,
    Zstandard,
}

/// What the header says, checked for sense.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    /// Length of the disk in bytes.
    pub(super) len: u64,
    pub(super) l1_at: u64,
    pub(super) l1_entries: u64,
    pub(super) reftable_at: u64,
    pub(super) reftable_clusters: u64,
    /// A refcount has 1 << order bits.
    pub(super) refcount_order: u32,
    pub(super) snapshots: u32,
    pub(super) snapshots_at: u64,
    pub(super) compression: Compression,
    pub(super) dirty: bool,
    pub(super) corrupt: bool,
    pub(super) autoclear: u64,
    /// Dirty bitmaps that are valid.
    pub(super) bitmaps: u32,
    pub(super) backing: Option<Backing>,
}

/// Big-endian numbers at offsets.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: u64) -> Result<[u8; N], String> {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk::<N>());
        bytes.copied().ok_or_else(|| "the file ends within the header".to_owned())
    }

    fn u32(&self, at: u64) -> Result<u32, String> {
        self.bytes(at).map(u32::from_be_bytes)
    }

    fn u64(&self, at: u64) -> Result<u64, String> {
        self.bytes(at).map(u64::from_be_bytes)
    }

    fn text(&self, at: u64, len: u64) -> Result<String, String> {
        let range =
            usize::try_from(at).ok().zip(at.checked_add(len).and_then(|end| usize::try_from(end).ok()));
        let bytes = range.and_then(|(start, end)| self.0.get(start..end));
        let bytes = bytes.ok_or("a name in the header is outside the file")?;
        let text = String::from_utf8(bytes.to_vec()).map_err(|_| "a name in the header is not UTF-8")?;
        // It goes into messages, and so to terminals and into logs of one line each.
        if text.contains(char::is_control) {
            return Err("a name in the header has control characters".into());
        }
        Ok(text)
    }
}

/// A number that lets the reader look it up.
struct Bits(u64);

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = (0..64).filter(|bit| self.0 >> bit & 1 != 0);
        if let Some(first) = names.next() {
            write!(f, "{first}")?;
        }
        names.try_for_each(|bit| write!(f, ", {bit}"))
    }
}

impl Header {
    /// Reads the header from the first bytes of the file, its first cluster at least. The error ends a sentence
    /// that begins with the file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let fields = Fields(bytes);
        if fields.u32(0).ok() != Some(MAGIC) {
            return Err("it is no qcow2 image".into());
        }
        let version = fields.u32(4)?;
        if !matches!(version, 2 | 3) {
            return Err(format!("its qcow2 version is {version}, and only 2 and 3 are known"));
        }
        if fields.u32(32)? != 0 {
            return Err("it is encrypted, which is not supported; convert it with qemu-img".into());
        }
        let cluster_bits = fields.u32(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(format!("its cluster size of 2^{cluster_bits} bytes is not 512 bytes to 2 MiB"));
        }
        let (mut features, mut autoclear, mut refcount_order, mut header_len) = (0, 0, 4, 72);
        if version == 3 {
            features = fields.u64(72)?;
            autoclear = fields.u64(AUTOCLEAR_FIELD)?;
            refcount_order = fields.u32(96)?;
            header_len = u64::from(fields.u32(100)?);
        }
        refuse_features(features)?;
        if refcount_order > 6 {
            return Err(format!("its refcounts of 2^{refcount_order} bits are too wide"));
        }
        let header = Self {
            version,
            cluster_bits,
            len: fields.u64(SIZE_FIELD)?,
            l1_at: fields.u64(L1_FIELD + 4)?,
            l1_entries: u64::from(fields.u32(L1_FIELD)?),
            reftable_at: fields.u64(REFTABLE_FIELD)?,
            reftable_clusters: u64::from(fields.u32(REFTABLE_FIELD + 8)?),
            refcount_order,
            snapshots: fields.u32(60)?,
            snapshots_at: fields.u64(64)?,
            compression: compression(&fields, features, header_len)?,
            dirty: features & DIRTY != 0,
            corrupt: features & CORRUPT != 0,
            autoclear,
            bitmaps: if autoclear & BITMAPS_VALID != 0 { bitmaps(&fields, header_len) } else { 0 },
            backing: backing(&fields, header_len, 1 << cluster_bits)?,
        };
        header.check_tables(header_len)?;
        Ok(header)
    }

    fn check_tables(&self, header_len: u64) -> Result<(), String> {
        let cluster = self.cluster();
        let aligned = |at: u64| at != 0 && at.is_multiple_of(cluster) && at < 1 << 56;
        let needed = self.len.div_ceil(cluster << self.l2_bits());
        let minimum = if self.version == 3 { 104 } else { 72 };
        let faults = [
            (header_len < minimum || header_len > cluster, "its header has an impossible length"),
            (self.len > i64::MAX as u64 - cluster, "its disk is impossibly large"),
            (self.l1_entries * 8 > L1_BYTES_MAX, "its L1 table is too large"),
            (self.l1_entries < needed, "its L1 table is too small for the disk"),
            (self.l1_entries > 0 && !aligned(self.l1_at), "its L1 table is not at a cluster"),
            (!aligned(self.reftable_at), "its refcount table is not at a cluster"),
            (self.reftable_clusters == 0, "it has no refcount table"),
            (self.reftable_clusters * cluster > REFTABLE_BYTES_MAX, "its refcount table is too large"),
        ];
        match faults.iter().find(|(wrong, _)| *wrong) {
            Some((_, fault)) => Err(format!("{fault}; run qemu-img check on it")),
            None => Ok(()),
        }
    }

    /// Bytes of a cluster.
    pub(super) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// An L2 table has 1 << this entries.
    pub(super) fn l2_bits(&self) -> u32 {
        self.cluster_bits - 3
    }

    /// A refcount block has 1 << this refcounts.
    pub(super) fn block_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.refcount_order
    }
}

fn refuse_features(features: u64) -> Result<(), String> {
    let convert = "which is not supported; convert it with qemu-img convert -O qcow2";
    if features & EXTERNAL_DATA != 0 {
        return Err(format!("it keeps its data in another file, {convert}"));
    }
    if features & EXTENDED_L2 != 0 {
        return Err(format!("it has subclusters (extended_l2), {convert} -o extended_l2=off"));
    }
    match features & !(DIRTY | CORRUPT | COMPRESSION) {
        0 => Ok(()),
        unknown => Err(format!("it has incompatible features that are not known: bits {}", Bits(unknown))),
    }
}

fn compression(fields: &Fields<'_>, features: u64, header_len: u64) -> Result<Compression, String> {
    if features & COMPRESSION == 0 {
        return Ok(Compression::Deflate);
    }
    let [kind] = if header_len > COMPRESSION_FIELD { fields.bytes(COMPRESSION_FIELD)? } else { [0] };
    match kind {
        0 => Ok(Compression::Deflate),
        1 => Ok(Compression::Zstandard),
        other => Err(format!("its kind of compression is {other}, and only 0 (zlib) and 1 (zstd) are known")),
    }
}

/// How many dirty bitmaps there are; none where the extensions make no sense, which concerns nobody who writes none.
fn bitmaps(fields: &Fields<'_>, header_len: u64) -> u32 {
    let mut at = header_len;
    while let (Ok(kind), Ok(size)) = (fields.u32(at), fields.u32(at.saturating_add(4))) {
        match kind {
            0 => break,
            BITMAPS => return fields.u32(at + 8).unwrap_or(0),
            _ => at += 8 + u64::from(size).next_multiple_of(8),
        }
    }
    0
}

fn backing(fields: &Fields<'_>, header_len: u64, cluster: u64) -> Result<Option<Backing>, String> {
    let (at, len) = (fields.u64(8)?, u64::from(fields.u32(16)?));
    if at == 0 || len == 0 {
        return Ok(None);
    }
    if len > 1023 || at.checked_add(len).is_none_or(|end| end > cluster) {
        return Err("the name of its backing file is not within the header".into());
    }
    let mut format = None;
    let mut extension = header_len;
    while extension.checked_add(8).is_some_and(|end| end <= at) {
        let (kind, size) = (fields.u32(extension)?, u64::from(fields.u32(extension + 4)?));
        match kind {
            0 => break,
            BACKING_FORMAT if size <= 16 => format = Some(fields.text(extension + 8, size)?),
            BACKING_FORMAT => return Err("the format of its backing file is not a name".into()),
            _ => {}
        }
        extension += 8 + size.next_multiple_of(8);
    }
    Ok(Some(Backing { name: fields.text(at, len)?, format }))
}
