//! Cutting transfers where the host's device would cut them.
//!
//! A request that is larger than a device takes at once is cut by the kernel, but not without waiting: io_uring then hands it
//! to a worker thread of the kernel, with two switches between threads and the copy of everything it needs. Where what the
//! device takes is known, the ring gets pieces that fit, all at once.
//!
//! What goes through the host's cache is not cut: there the kernel copies, and the large ones are left to its threads, see
//! [`super::lanes`].

use super::op::SEGMENTS_MAX;
use crate::mem::SgList;

/// Pieces of one transfer at most; what needs more is left to the kernel.
const PIECES_MAX: usize = 32;
/// Pieces are multiples of this, in bytes.
const UNIT: u64 = 4096;

/// What a device takes in one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceLimits {
    bytes: u64,
    segments: usize,
    cached: Cached,
}

/// Whose cache a transfer goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cached {
    /// None.
    No,
    /// That of a regular file.
    File,
    /// That of a block device.
    Device,
}

impl PieceLimits {
    /// Nothing is cut.
    pub const NONE: Self = Self { bytes: u64::MAX, segments: usize::MAX, cached: Cached::No };
    /// It is the host's cache of a regular file that takes it: nothing is cut, and every byte is copied.
    pub const FILE_CACHE: Self = Self { cached: Cached::File, ..Self::NONE };
    /// It is that of a block device.
    pub const DEVICE_CACHE: Self = Self { cached: Cached::Device, ..Self::NONE };

    /// At most so many bytes, and so many segments. What is less than a page, or no segment, means nothing: no limit.
    pub fn new(bytes: u64, segments: usize) -> Self {
        let bytes = bytes - bytes % UNIT;
        if bytes == 0 || segments == 0 { Self::NONE } else { Self { bytes, segments, cached: Cached::No } }
    }

    /// Whether a transfer is a copy by the processor.
    pub(super) fn cached(self) -> Cached {
        self.cached
    }

    /// For a transfer that may be a part of what is wanted: it is not cut.
    pub(super) fn of_part(self) -> Self {
        if self.cached == Cached::No { Self::NONE } else { self }
    }

    /// Whether there are any.
    pub(super) fn cut(self) -> bool {
        (self.bytes, self.segments) != (Self::NONE.bytes, Self::NONE.segments)
    }

    /// Makes a list such that it can be cut between its segments, if it has to be; returns how it is cut.
    pub(super) fn prepare(self, mem: &mut SgList) -> Self {
        if self.cached != Cached::No {
            return self;
        }
        if mem.len() <= self.bytes && mem.segments() <= self.segments {
            return Self::NONE;
        }
        // Cutting makes a segment more for each piece at most, and one operation takes only so many.
        let (count, room) = (mem.len().div_ceil(self.bytes), SEGMENTS_MAX.saturating_sub(PIECES_MAX));
        if count > PIECES_MAX as u64 || mem.segments() > room {
            return Self::NONE;
        }
        mem.cut_segments(self.bytes);
        if pieces(mem.iovecs(), 0, self).count() <= PIECES_MAX { self } else { Self::NONE }
    }
}

/// The pieces of a transfer at `at`: where each begins, and its segments.
pub(super) fn pieces(list: &[libc::iovec], at: u64, limits: PieceLimits) -> Pieces<'_> {
    let len: u64 = list.iter().map(|part| part.iov_len as u64).sum();
    // As many as are needed, and alike: the last one is not a small rest.
    let count = len.div_ceil(limits.bytes).max(1);
    let even = len.div_ceil(count).checked_next_multiple_of(UNIT).unwrap_or(len);
    Pieces { rest: list, at, limits, even }
}

/// See [`pieces`].
pub(super) struct Pieces<'a> {
    rest: &'a [libc::iovec],
    at: u64,
    limits: PieceLimits,
    even: u64,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = (u64, &'a [libc::iovec]);

    fn next(&mut self) -> Option<Self::Item> {
        let (mut bytes, mut count) = (0u64, 0);
        for part in self.rest {
            let more = bytes.saturating_add(part.iov_len as u64);
            // The first segment always goes: an empty piece would never end.
            if count > 0 && (more > self.limits.bytes || count == self.limits.segments || bytes >= self.even)
            {
                break;
            }
            (bytes, count) = (more, count + 1);
        }
        let (piece, rest) = self.rest.split_at_checked(count)?;
        let at = self.at;
        (self.rest, self.at) = (rest, at.saturating_add(bytes));
        (count > 0).then_some((at, piece))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use super::*;
    use crate::iothread::Hold;
    use crate::mem::{FromGuest, ToGuest};
    use crate::testing::{on_io_thread, temp_file};

    /// Offsets and lengths of the pieces, in KiB, and the segments of each.
    fn cut(lens: &[u64], limits: PieceLimits) -> Vec<(u64, u64, usize)> {
        let total = lens.iter().map(|len| len + 4).sum::<u64>() << 10;
        let host = SgList::host(total as usize, 4096).unwrap();
        let (mut list, mut at) = (SgList::empty(), 0);
        // A page between them, so that they do not touch.
        for len in lens {
            list.append(&host.window(at << 10, len << 10));
            at += len + 4;
        }
        let limits = limits.prepare(&mut list);
        let pieces = pieces(list.iovecs(), 1 << 20, limits);
        let len = |piece: &[libc::iovec]| piece.iter().map(|v| v.iov_len as u64).sum::<u64>() >> 10;
        pieces.map(|(at, piece)| ((at - (1 << 20)) >> 10, len(piece), piece.len())).collect()
    }

    #[test]
    fn what_fits_stays_whole() {
        assert_eq!(cut(&[64, 60], PieceLimits::new(127 << 10, 2)), [(0, 124, 2)]);
        assert_eq!(cut(&[4; 1024], PieceLimits::NONE), [(0, 4096, 1024)]);
        assert_eq!(
            cut(&[4; 1024], PieceLimits::new(4095, 1)),
            [(0, 4096, 1024)],
            "no limit that makes sense"
        );
        assert_eq!(cut(&[4; 1024], PieceLimits::new(1 << 20, 0)), [(0, 4096, 1024)]);
    }

    #[test]
    fn pieces_are_alike() {
        assert_eq!(cut(&[4; 32], PieceLimits::new(127 << 10, 128)), [(0, 64, 16), (64, 64, 16)]);
        assert_eq!(cut(&[128], PieceLimits::new(127 << 10, 128)), [(0, 124, 1), (124, 4, 1)], "one segment");
        assert_eq!(
            cut(&[64, 64, 8], PieceLimits::new(64 << 10, 128)),
            [(0, 64, 1), (64, 64, 1), (128, 8, 1)]
        );
        assert_eq!(cut(&[100, 100], PieceLimits::new(128 << 10, 128)), [(0, 100, 1), (100, 100, 1)]);
    }

    #[test]
    fn segments_count_too() {
        assert_eq!(cut(&[4, 4, 4, 4, 4], PieceLimits::new(1 << 20, 2)), [(0, 8, 2), (8, 8, 2), (16, 4, 1)]);
    }

    #[test]
    fn too_many_pieces_are_none() {
        assert_eq!(cut(&[4; 32], PieceLimits::new(4096, 9)).len(), 32);
        assert_eq!(cut(&[4; 33], PieceLimits::new(4096, 9)), [(0, 132, 33)]);
        assert_eq!(cut(&[264], PieceLimits::new(8192, 9)), [(0, 264, 1)], "not cut in vain");
        assert_eq!(
            cut(&[4; 1000], PieceLimits::new(1 << 20, 9999)),
            [(0, 4000, 1000)],
            "no room for more segments"
        );
    }

    /// Every byte arrives where it belongs, and one count tells of all pieces; a file that ends within one is seen.
    #[test]
    fn transfers_in_pieces() {
        let file = temp_file().into_file();
        file.set_len(300 << 10).unwrap();
        let file = Arc::new(file);
        let (count, short, failed) = on_io_thread(move |io| async move {
            let limits = PieceLimits::new(20 << 10, 3);
            let data: Vec<u8> = (0..200_u32 << 10).map(|n| (n / 512 % 251) as u8).collect();
            let host = SgList::host(400 << 10, 4096).unwrap();
            let mut list = SgList::empty();
            for (at, len) in [(0, 4096), (8192, 100 << 10), (200 << 10, 96 << 10)] {
                list.append(&host.window(at, len));
            }
            assert_eq!(list.len(), 200 << 10);
            let from = FromGuest::new(list);
            ToGuest::new(from.window(0, 200 << 10).into_inner()).write_at(0, &data);
            let single = io.write_single(&file, 4096, from, false, limits, Hold::none());
            let (written, mem) = single.unwrap_or_else(|_| panic!("not at once")).await;
            assert_eq!((written.unwrap(), mem.len()), (200 << 10, 200 << 10));
            let mut found = vec![0; 200 << 10];
            file.read_exact_at(&mut found, 4096).unwrap();
            assert!(found == data);
            let read =
                |at| io.read_single(&file, at, ToGuest::new(host.window(0, 200 << 10)), limits, Hold::none());
            let (count, mem) = read(4096).unwrap_or_else(|_| panic!("not at once")).await;
            let mut found = vec![0; 200 << 10];
            FromGuest::new(mem).read_at(0, &mut found);
            assert!(found == data);
            let (short, _) = read(150 << 10).unwrap_or_else(|_| panic!("not at once")).await;
            let none = Arc::new(std::fs::File::open("/").unwrap());
            let single =
                io.read_single(&none, 0, ToGuest::new(host.window(0, 200 << 10)), limits, Hold::none());
            let (failed, _) = single.unwrap_or_else(|_| panic!("not at once")).await;
            (count, short, failed)
        });
        assert_eq!((count.unwrap(), short.unwrap()), (200 << 10, 150 << 10));
        assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::EISDIR));
    }
}
