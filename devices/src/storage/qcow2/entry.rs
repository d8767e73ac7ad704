//! Entries of L1 and L2 tables.

/// The cluster is referenced once: it may be written in place.
pub(super) const OWNED: u64 = 1 << 63;
/// The cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros (version 3).
pub(super) const ZERO: u64 = 1;
/// Offset in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Where an entry of either table points to; 0 for nowhere.
pub(super) fn offset(entry: u64) -> u64 {
    entry & OFFSET
}

/// What an entry of an L2 table stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Nothing here: the backing file has it, or it is zeros.
    Unallocated,
    /// Zeros. A cluster may be kept for it at the offset (0: none).
    Zero { kept: u64 },
    /// Bytes at an offset of the file.
    Data { at: u64, owned: bool },
    /// A deflate stream.
    Compressed(Packed),
}

/// Where a compressed cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    /// Offset in the file, in bytes.
    pub(super) at: u64,
    /// The stream is not longer than this, in bytes.
    pub(super) len: u64,
}

impl Packed {
    /// The whole sectors in which the stream lies: offset and length.
    pub(super) fn sectors(&self) -> (u64, u64) {
        let start = self.at & !511;
        (start, self.at + self.len - start)
    }
}

impl Entry {
    /// Reads a raw entry.
    pub(super) fn new(raw: u64, cluster_bits: u32, version: u32) -> Self {
        if raw & COMPRESSED != 0 {
            let shift = 62 - (cluster_bits - 8);
            let at = raw & ((1 << shift) - 1);
            let sectors = ((raw & (COMPRESSED - 1)) >> shift) + 1;
            return Self::Compressed(Packed { at, len: sectors * 512 - at % 512 });
        }
        match offset(raw) {
            kept if version == 3 && raw & ZERO != 0 => Self::Zero { kept },
            0 => Self::Unallocated,
            at => Self::Data { at, owned: raw & OWNED != 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_mean_what_the_format_says() {
        assert_eq!(Entry::new(0, 16, 3), Entry::Unallocated);
        assert_eq!(Entry::new(1, 16, 3), Entry::Zero { kept: 0 });
        assert_eq!(Entry::new(0x8000_0000_0005_0001, 16, 3), Entry::Zero { kept: 0x5_0000 });
        assert_eq!(Entry::new(0x8000_0000_0005_0000, 16, 3), Entry::Data { at: 0x5_0000, owned: true });
        assert_eq!(Entry::new(0x0000_0000_0005_0000, 16, 2), Entry::Data { at: 0x5_0000, owned: false });
        // Clusters of 64 KiB: offset in bits 0 to 53, additional sectors in bits 54 to 61.
        let packed = Packed { at: 0x5_0123, len: 3 * 512 - 0x123 };
        assert_eq!(Entry::new(0x4080_0000_0005_0123, 16, 3), Entry::Compressed(packed));
        assert_eq!(packed.sectors(), (0x5_0000, 1536));
    }
}
