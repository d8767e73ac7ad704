//! The longest commands that an adapter asks drivers for.

use super::generic::HostLimits;

/// What adapters count bytes in.
const SECTOR: u64 = 512;
/// Pieces that the memory of a guest is in, at worst.
const PAGE: u64 = 4096;
/// Bytes that are always on offer: EDK2 halves what it is told, and then has to read a block of 4096 bytes. Linux takes no disk
/// with less than a page and a block.
const MIN_BYTES: u64 = 2 * PAGE;
/// Segments that are always on offer: OpenBSD takes no adapter with fewer, and NetBSD's disks would have errors: both map 64 KiB
/// that begin anywhere.
const MIN_SEGMENTS: u32 = 17;

/// How long and how scattered a command may be, as an adapter tells its drivers: what the devices of the host behind it take at
/// once. It is advice. A command beyond it is carried out all the same, and costs pieces or a copy; only what has no pieces
/// is refused by the device that it is for.
///
/// There are always 8 KiB and 17 segments in it, and whole pages, because drivers refuse less or divide by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferLimits {
    bytes: u64,
    segments: u32,
}

impl Default for TransferLimits {
    /// Whatever the adapter itself can do.
    fn default() -> Self {
        Self::new(u64::MAX, u32::MAX)
    }
}

impl From<HostLimits> for TransferLimits {
    fn from(host: HostLimits) -> Self {
        Self::new(host.transfer(), u32::try_from(host.max_segments).unwrap_or(u32::MAX))
    }
}

impl TransferLimits {
    /// `bytes` and segments of one command at most, or what comes next to that.
    pub fn new(bytes: u64, segments: u32) -> Self {
        let bytes = (bytes - bytes % PAGE).max(MIN_BYTES);
        // Those that go by the number of segments only, as FreeBSD does, take the first page to be shared with something else.
        let pages = u32::try_from(bytes / PAGE + 1).unwrap_or(u32::MAX);
        Self { bytes, segments: segments.min(pages).max(MIN_SEGMENTS) }
    }

    /// What keeps to both.
    pub fn and(self, other: Self) -> Self {
        Self::new(self.bytes.min(other.bytes), self.segments.min(other.segments))
    }

    /// Bytes of one command at most: whole pages of 4096.
    pub fn max_bytes(&self) -> u64 {
        self.bytes
    }

    /// The same in sectors of 512 bytes, but not more than `most`.
    pub fn sectors(&self, most: u32) -> u32 {
        u32::try_from(self.bytes / SECTOR).unwrap_or(u32::MAX).min(most)
    }

    /// Segments of one command at most.
    pub fn max_segments(&self) -> u32 {
        self.segments
    }

    /// Whether `device` takes whatever keeps to these limits, as far as drivers can be told at all. If not, a driver that was told
    /// these limits sends it commands that cost pieces or copies, and those that have no pieces fail.
    pub fn admits(&self, device: &HostLimits) -> bool {
        self.and(Self::from(*device)) == *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(max_bytes: u64, max_segments: u64) -> HostLimits {
        HostLimits { max_bytes, max_segments, ..HostLimits::default() }
    }

    fn both(limits: TransferLimits) -> (u64, u32) {
        (limits.max_bytes(), limits.max_segments())
    }

    #[test]
    fn what_the_host_takes_in_pages() {
        let of = |bytes, segments| both(host(bytes, segments).into());
        assert_eq!(of(512 << 10, 128), (512 << 10, 128));
        assert_eq!(of(4 << 20, 64), (256 << 10, 64), "64 segments are 64 pages");
        assert_eq!(of(120 << 10, 2048), (120 << 10, 31), "30 pages that begin anywhere");
        assert_eq!(of((120 << 10) + 512, 2048), (120 << 10, 31));
        assert_eq!(of(u64::MAX, u64::MAX).1, u32::MAX);
        let small = HostLimits { max_segment_bytes: 1024, ..host(1 << 20, 64) };
        assert_eq!(both(small.into()), (64 << 10, 17));
    }

    #[test]
    fn drivers_are_never_told_less_than_they_can_work_with() {
        for limits in [TransferLimits::new(0, 0), TransferLimits::new(4096, 1), host(0, 0).into()] {
            assert_eq!((both(limits), limits.sectors(0xffff)), ((8192, 17), 16));
        }
        assert_eq!(both(TransferLimits::new(12287, 16)), (8192, 17));
    }

    #[test]
    fn sectors_end_where_the_field_does() {
        let none = TransferLimits::default();
        assert_eq!((none.sectors(0xffff), none.sectors(u32::MAX)), (0xffff, u32::MAX));
        assert_eq!(none.max_bytes() % 4096, 0);
        let limits = TransferLimits::new(120 << 10, 128);
        assert_eq!((limits.sectors(0xffff), limits.sectors(100)), (240, 100));
    }

    #[test]
    fn several_devices_share_the_least_of_each() {
        let (long, scattered) = (TransferLimits::new(1 << 20, 32), TransferLimits::new(256 << 10, 128));
        assert_eq!(both(long.and(scattered)), (256 << 10, 32));
        assert_eq!(long.and(TransferLimits::default()), long);
        let joined = host(1 << 20, 256).and(host(256 << 10, 128)).into();
        assert_eq!(TransferLimits::from(host(1 << 20, 256)).and(host(256 << 10, 128).into()), joined);
    }

    #[test]
    fn a_device_that_takes_less_than_was_told_is_seen() {
        let told = TransferLimits::from(host(256 << 10, 64));
        assert!(told.admits(&host(256 << 10, 64)));
        assert!(told.admits(&host(1 << 20, 256)));
        assert!(!told.admits(&host(128 << 10, 64)));
        assert!(!told.admits(&host(256 << 10, 63)), "63 pages");
        let small = HostLimits { max_segment_bytes: 512, ..host(256 << 10, 64) };
        assert!(!told.admits(&small));
        // What nobody can be told is no difference.
        let least = host(512, 1);
        assert!(TransferLimits::from(least).admits(&least));
        assert!(!TransferLimits::default().admits(&host(32 << 20, 1024)));
    }
}
