//! What the host's adapter takes with one command.

use crate::mem::SgList;

/// What the kernel counts segments in: memory of a guest may be anywhere, page by page.
const PAGE: u64 = 4096;
/// Segments of one list that the kernel takes (UIO_MAXIOV of Linux).
const LIST_MAX: usize = 1024;

/// What the queue of a device of the host takes with one command. Longer or more scattered ones are split or copied before they
/// get there; an initiator that keeps to these has neither. Memory that is not aligned as the queue wants it (`dma_alignment`,
/// `virt_boundary_mask`) the kernel copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLimits {
    /// Bytes of one command at most (`max_hw_sectors_kb`).
    pub max_bytes: u64,
    /// Bytes that the host would send itself (`max_sectors_kb`); not more than `max_bytes`.
    pub preferred_bytes: u64,
    /// Segments of memory at most (`max_segments`).
    pub max_segments: u64,
    /// Bytes of one segment at most (`max_segment_size`).
    pub max_segment_bytes: u64,
    /// Whether the kernel takes lists of segments (not for nodes of bsg).
    pub lists: bool,
}

impl Default for HostLimits {
    /// Where nothing is known: what Linux gives to an adapter that says nothing itself.
    fn default() -> Self {
        Self {
            max_bytes: 512 << 10,
            preferred_bytes: 512 << 10,
            max_segments: 128,
            max_segment_bytes: 64 << 10,
            lists: true,
        }
    }
}

impl HostLimits {
    /// Of a node of sg alone that takes so many bytes, in so many elements of `element` bytes, into which it copies: where memory is
    /// scattered does not matter.
    pub(super) fn of_sg(bytes: u64, elements: u64, element: u64) -> Self {
        let unknown = Self::default();
        // One that is longer than a segment is several.
        let element = element.clamp(PAGE, unknown.max_segment_bytes);
        let max_bytes = bytes.min(elements.saturating_mul(element));
        // All that a list can be.
        let max_segments = max_bytes / PAGE + 2 * LIST_MAX as u64;
        Self { max_bytes, preferred_bytes: max_bytes, max_segments, ..unknown }
    }

    /// What both take.
    pub fn and(self, other: Self) -> Self {
        Self {
            max_bytes: self.max_bytes.min(other.max_bytes),
            preferred_bytes: self.preferred_bytes.min(other.preferred_bytes),
            max_segments: self.max_segments.min(other.max_segments),
            max_segment_bytes: self.max_segment_bytes.min(other.max_segment_bytes),
            lists: self.lists && other.lists,
        }
    }

    /// Bytes that always go with one command, wherever whole pages of memory are: the most that an initiator should send.
    pub fn transfer(&self) -> u64 {
        self.max_bytes.min(self.max_segments.saturating_mul(self.segment())).max(512)
    }

    /// What a page counts for at least.
    fn segment(&self) -> u64 {
        PAGE.min(self.max_segment_bytes).max(512)
    }

    /// Whether the kernel sends `list` with one command.
    pub(super) fn admit(&self, list: &SgList) -> bool {
        let parts = list.iovecs();
        if list.len() > self.max_bytes || parts.len() > LIST_MAX || (!self.lists && parts.len() > 1) {
            return false;
        }
        let segment = self.segment();
        let pieces = |part: &libc::iovec| {
            let first = part.iov_base.addr() as u64 % segment;
            (first + part.iov_len as u64).div_ceil(segment)
        };
        parts.iter().map(pieces).sum::<u64>() <= self.max_segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(max_bytes: u64, max_segments: u64) -> HostLimits {
        HostLimits { max_bytes, max_segments, ..HostLimits::default() }
    }

    #[test]
    fn the_smaller_limit_counts() {
        assert_eq!(limits(64 << 10, 4).transfer(), 16 << 10);
        assert_eq!(limits(64 << 10, 128).transfer(), 64 << 10);
        let small = HostLimits { max_segment_bytes: 1024, ..limits(64 << 10, 4) };
        assert_eq!(small.transfer(), 4096);
        let both = limits(64 << 10, 128).and(HostLimits { lists: false, ..limits(1 << 20, 4) });
        let wanted = HostLimits {
            max_bytes: 64 << 10,
            preferred_bytes: 512 << 10,
            max_segments: 4,
            lists: false,
            ..HostLimits::default()
        };
        assert_eq!(both, wanted);
    }

    /// LTFS has records of 512 KiB, and many adapters 64 segments or less.
    #[test]
    fn by_sg_pages_do_not_count() {
        let limits = HostLimits::of_sg(4 << 20, 64, 32 << 10);
        assert_eq!((limits.transfer(), limits.preferred_bytes), (2 << 20, 2 << 20));
        let all = SgList::host(1 << 20, 4096).unwrap();
        let mut record = all.window(1, 4096);
        for part in 1..100 {
            record.append(&all.window(part * 8192 + 1, 5000));
        }
        assert!(limits.admit(&record));
        assert_eq!(HostLimits::of_sg(512 << 10, 128, 32 << 10).transfer(), 512 << 10);
        assert_eq!(HostLimits::of_sg(8 << 20, 16, 1 << 20).transfer(), 1 << 20, "segments have an end");
        assert_eq!(HostLimits::of_sg(8 << 20, 16, 0).transfer(), 64 << 10);
    }

    #[test]
    fn pages_count_whatever_the_segments_are() {
        let all = SgList::host(64 << 10, 4096).unwrap();
        assert!(limits(64 << 10, 16).admit(&all));
        assert!(!limits(64 << 10, 15).admit(&all));
        assert!(!limits(32 << 10, 16).admit(&all));
        // One byte into a page: it takes one page more.
        let off = all.window(1, 16 << 10);
        assert!(!limits(64 << 10, 4).admit(&off));
        assert!(limits(64 << 10, 5).admit(&off));
        let mut scattered = all.window(0, 512);
        scattered.append(&all.window(4096, 512));
        assert!(limits(64 << 10, 2).admit(&scattered));
        assert!(!limits(64 << 10, 1).admit(&scattered));
        assert!(!HostLimits { lists: false, ..limits(64 << 10, 2) }.admit(&scattered));
        assert!(limits(0, 0).admit(&SgList::empty()));
    }
}
