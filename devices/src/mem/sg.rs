//! Scatter-gather lists: guest ranges, checked once, ready for the kernel.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, VolatileSlice};

use super::host::{HostBuffer, Lendable, Loan};
use super::{DmaError, GuestRam};

/// Lists kept for reuse by each thread, so that a warm command allocates nothing.
const POOLED_LISTS: usize = 256;
/// A list that grew beyond this many segments is freed, not kept.
const POOLED_SEGMENTS: usize = 512;

thread_local! {
    static POOL: RefCell<Vec<Vec<libc::iovec>>> = const { RefCell::new(Vec::new()) };
}

/// What keeps the memory behind a list mapped.
#[derive(Clone)]
#[expect(dead_code, reason = "held for its Drop")]
enum Backing {
    Nothing,
    Ram(Arc<GuestRam>),
    Host(Arc<HostBuffer>),
    Lent(Loan),
}

/// An owned list of memory segments: guest RAM, resolved to host addresses, or a host bounce buffer.
///
/// The segments stay valid as long as the list lives. The bytes are shared with the guest and may change at
/// any time, so they are only reached by volatile copies here or by the kernel.
pub struct SgList {
    backing: Backing,
    iov: Vec<libc::iovec>,
    len: u64,
}

// SAFETY: the pointers lead into memory that `backing` keeps mapped and that has no thread affinity; access
// is by volatile copies or by the kernel, both of which allow concurrent use by other threads and the guest.
#[allow(unsafe_code)]
unsafe impl Send for SgList {}

impl SgList {
    /// A list of no bytes.
    pub fn empty() -> Self {
        Self { backing: Backing::Nothing, iov: Vec::new(), len: 0 }
    }

    /// A zeroed host buffer of `len` bytes whose address is a multiple of `align` (a power of two).
    ///
    /// Returns `None` when the host has no memory for it.
    pub fn host(len: usize, align: usize) -> Option<Self> {
        Self::host_keeping(len, align, None)
    }

    /// As [`SgList::host`]; `keep` goes with the buffer, when nobody has a list over a part of it any more.
    pub(crate) fn host_keeping(
        len: usize,
        align: usize,
        keep: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Option<Self> {
        let buffer = Arc::new(HostBuffer::new(len, align, keep)?);
        let mut iov = take_list();
        iov.push(libc::iovec { iov_base: buffer.start().cast(), iov_len: len });
        Some(Self { backing: Backing::Host(buffer), iov, len: len as u64 })
    }

    /// The first `len` bytes of a buffer, which its lender gets back when the last list over it is gone.
    pub(crate) fn lent(buffer: Arc<Lendable>, len: usize) -> Self {
        let len = len.min(buffer.len());
        let loan = Loan::new(buffer);
        let mut iov = take_list();
        iov.push(libc::iovec { iov_base: loan.start().cast(), iov_len: len });
        Self { backing: Backing::Lent(loan), iov, len: len as u64 }
    }

    pub(super) fn resolve(
        ram: &Arc<GuestRam>,
        parts: impl IntoIterator<Item = (u64, u32)>,
    ) -> Result<Self, DmaError> {
        let mut list = Self { backing: Backing::Ram(ram.clone()), iov: take_list(), len: 0 };
        // Most parts are in the region of the one before.
        let mut near: Option<&GuestRegionMmap<()>> = None;
        for (addr, len) in parts {
            let within = |region: &GuestRegionMmap<()>| {
                let offset = region.to_region_addr(GuestAddress(addr))?;
                region.get_slice(offset, len as usize).ok().map(|slice| slice.ptr_guard_mut().as_ptr())
            };
            match near.and_then(within) {
                Some(start) if len > 0 => list.push(start.cast(), len as usize),
                _ => {
                    list.add_guest(ram, addr, len)?;
                    near = ram.find_region(GuestAddress(addr));
                }
            }
        }
        Ok(list)
    }

    fn add_guest(&mut self, ram: &GuestRam, addr: u64, len: u32) -> Result<(), DmaError> {
        let not_ram = || DmaError::NotRam { addr, len: u64::from(len) };
        if len == 0 {
            return Ok(());
        }
        if let Ok(slice) = ram.get_slice(GuestAddress(addr), len as usize) {
            self.push(slice.ptr_guard_mut().as_ptr().cast(), slice.len());
            return Ok(());
        }
        for slice in ram.get_slices(GuestAddress(addr), len as usize) {
            let slice = slice.map_err(|_| not_ram())?;
            let start = slice.ptr_guard_mut().as_ptr();
            self.push(start.cast(), slice.len());
        }
        Ok(())
    }

    /// Appends a segment, merged with the last one where they touch in host memory.
    fn push(&mut self, start: *mut libc::c_void, len: usize) {
        self.len += len as u64;
        if let Some(last) = self.iov.last_mut()
            && last.iov_base.wrapping_byte_add(last.iov_len) == start
        {
            last.iov_len += len;
            return;
        }
        self.iov.push(libc::iovec { iov_base: start, iov_len: len });
    }

    /// Length of all segments in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the list has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the guest sees none of it.
    pub fn is_private(&self) -> bool {
        !matches!(self.backing, Backing::Ram(_))
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.iov.len()
    }

    /// The segments as the kernel takes them. Valid while the list lives.
    pub fn iovecs(&self) -> &[libc::iovec] {
        &self.iov
    }

    /// Whether each segment's address and length are multiples of `align` (a power of two): O_DIRECT's rule.
    pub fn is_aligned(&self, align: usize) -> bool {
        let mask = align.wrapping_sub(1);
        self.iov.iter().all(|v| (v.iov_base.addr() | v.iov_len) & mask == 0)
    }

    /// Cuts the list in two at `at` bytes: `self` keeps what is before. `at` beyond the end leaves an empty rest.
    pub fn split_off(&mut self, at: u64) -> SgList {
        let mut rest = Self { backing: self.backing.clone(), iov: take_list(), len: 0 };
        let mut before = 0u64;
        let mut keep = self.iov.len();
        for (i, v) in self.iov.iter_mut().enumerate() {
            let len = v.iov_len as u64;
            if before + len <= at {
                before += len;
                continue;
            }
            // The segment at which the cut falls stays only if a part of it is before the cut.
            let head = at.saturating_sub(before) as usize;
            rest.push(v.iov_base.wrapping_byte_add(head), v.iov_len - head);
            keep = keep.min(if head == 0 { i } else { i + 1 });
            v.iov_len = head;
            before += len;
        }
        self.iov.truncate(keep);
        self.len -= rest.len;
        rest
    }

    /// Drops all bytes from `len` on.
    pub fn truncate(&mut self, len: u64) {
        if len < self.len {
            drop(self.split_off(len));
        }
    }

    /// Drops the first `count` bytes.
    pub fn advance(&mut self, count: u64) {
        let rest = self.split_off(count);
        *self = rest;
    }

    /// Makes longer segments of at most `max` bytes each. `max` is not 0.
    pub(crate) fn cut_segments(&mut self, max: u64) {
        let Ok(max) = usize::try_from(max.max(1)) else { return };
        let mut place = 0;
        while let Some(part) = self.iov.get_mut(place) {
            place += 1;
            if part.iov_len > max {
                let rest = libc::iovec {
                    iov_base: part.iov_base.wrapping_byte_add(max),
                    iov_len: part.iov_len - max,
                };
                part.iov_len = max;
                self.iov.insert(place, rest);
            }
        }
    }

    /// Adds the segments of another list over the same memory.
    #[cfg(test)]
    pub(crate) fn append(&mut self, other: &SgList) {
        self.backing = other.backing.clone();
        other.iov.iter().for_each(|part| self.push(part.iov_base, part.iov_len));
    }

    /// A second list over the same bytes from `offset` on, at most `len` of them.
    pub fn window(&self, offset: u64, len: u64) -> SgList {
        let mut out = Self { backing: self.backing.clone(), iov: take_list(), len: 0 };
        let (mut skip, mut left) = (offset, len);
        for v in &self.iov {
            let seg = v.iov_len as u64;
            if skip >= seg {
                skip -= seg;
                continue;
            }
            let take = (seg - skip).min(left);
            if take == 0 {
                break;
            }
            out.push(v.iov_base.wrapping_byte_add(skip as usize), take as usize);
            skip = 0;
            left -= take;
        }
        out
    }

    /// Copies from `bytes` into the list at `offset`; returns how many bytes fitted.
    fn copy_in(&self, offset: u64, bytes: &[u8]) -> usize {
        let mut done = 0;
        self.for_each(offset, bytes.len(), |slice| {
            let end = done + slice.len();
            if let Some(part) = bytes.get(done..end) {
                slice.copy_from(part);
            }
            done = end;
        });
        done
    }

    /// Copies from the list at `offset` into `bytes`; returns how many bytes there were.
    fn copy_out(&self, offset: u64, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        let wanted = bytes.len();
        self.for_each(offset, wanted, |slice| {
            let end = done + slice.len();
            if let Some(part) = bytes.get_mut(done..end) {
                slice.copy_to(part);
            }
            done = end;
        });
        done
    }

    /// Copies to `to` as much as both have, from one segment to the other.
    pub(crate) fn copy_to(&self, to: &ToGuest) {
        let mut done = 0;
        for v in &self.iov {
            let Some(from) = self.part(v, 0, v.iov_len) else { continue };
            let mut offset = 0;
            to.for_each(done, from.len(), |slice| {
                if let Ok(rest) = from.offset(offset) {
                    rest.copy_to_volatile_slice(*slice);
                }
                offset += slice.len();
            });
            done += offset as u64;
        }
    }

    fn for_each(&self, offset: u64, len: usize, mut each: impl FnMut(&VolatileSlice<'_>)) {
        let (mut skip, mut left) = (offset, len);
        for v in &self.iov {
            if skip >= v.iov_len as u64 {
                skip -= v.iov_len as u64;
                continue;
            }
            let Some(slice) = self.part(v, skip as usize, left) else { break };
            skip = 0;
            left -= slice.len();
            each(&slice);
        }
    }

    /// A segment of this list from `skip` on, at most `len` bytes of it; `None` when that is nothing.
    fn part(&self, segment: &libc::iovec, skip: usize, len: usize) -> Option<VolatileSlice<'_>> {
        let start = segment.iov_base.cast::<u8>().wrapping_add(skip);
        let len = segment.iov_len.saturating_sub(skip).min(len);
        // SAFETY: `start..start+len` lies within a segment that `resolve`, `host` or `lent` obtained from the
        // mapping that `self.backing` keeps alive; VolatileSlice makes no claim of exclusive access.
        #[allow(unsafe_code)]
        let slice = unsafe { VolatileSlice::new(start, len) };
        (len > 0).then_some(slice)
    }
}

impl Drop for SgList {
    fn drop(&mut self) {
        let mut iov = std::mem::take(&mut self.iov);
        if iov.capacity() == 0 || iov.capacity() > POOLED_SEGMENTS {
            return;
        }
        iov.clear();
        // A thread that is going away has no pool any more: then the list is simply freed.
        let _ = POOL.try_with(|pool| {
            if let Ok(mut pool) = pool.try_borrow_mut()
                && pool.len() < POOLED_LISTS
            {
                pool.push(iov);
            }
        });
    }
}

fn take_list() -> Vec<libc::iovec> {
    POOL.try_with(|pool| pool.try_borrow_mut().ok().and_then(|mut p| p.pop()))
        .ok()
        .flatten()
        .unwrap_or_default()
}

impl fmt::Debug for SgList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SgList({} bytes in {} segments)", self.len, self.iov.len())
    }
}

macro_rules! direction {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name(pub(super) SgList);

        impl $name {
            /// A list of no bytes.
            pub fn empty() -> Self {
                Self(SgList::empty())
            }
            /// Gives the segments a direction: for bounce buffers and for windows over other lists.
            pub fn new(list: SgList) -> Self {
                Self(list)
            }
            /// A second list over the same bytes from `offset` on, at most `len` of them.
            pub fn window(&self, offset: u64, len: u64) -> Self {
                Self(self.0.window(offset, len))
            }
            /// Takes all of it.
            pub fn take(&mut self) -> Self {
                std::mem::replace(self, Self::empty())
            }
            /// Takes the direction off.
            pub fn into_inner(self) -> SgList {
                self.0
            }
        }
        impl Deref for $name {
            type Target = SgList;
            fn deref(&self) -> &SgList {
                &self.0
            }
        }
        impl DerefMut for $name {
            fn deref_mut(&mut self) -> &mut SgList {
                &mut self.0
            }
        }
    };
}

direction! {
    /// Memory that a device fills: the data-in buffer of a command.
    ToGuest
}
direction! {
    /// Memory that a device reads: the data-out buffer of a command.
    FromGuest
}

impl ToGuest {
    /// Copies `bytes` to the list at `offset` (bytes); returns how many fitted.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> usize {
        self.0.copy_in(offset, bytes)
    }
}

impl FromGuest {
    /// Fills `bytes` from the list at `offset` (bytes); returns how many there were.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> usize {
        self.0.copy_out(offset, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> ToGuest {
        let mut all = SgList::host(64, 16).unwrap();
        // Two segments with a gap of 8 bytes between them.
        let tail = all.window(24, 40);
        all.truncate(16);
        all.iov.extend(tail.iov.iter().copied());
        all.len += 40;
        ToGuest::new(all)
    }

    #[test]
    fn copies_cross_segments() {
        let sg = list();
        assert_eq!((sg.len(), sg.segments()), (56, 2));
        assert_eq!(sg.write_at(14, &[1, 2, 3, 4]), 4);
        let out = FromGuest::new(sg.into_inner());
        let mut got = [9; 6];
        assert_eq!(out.read_at(13, &mut got), 6);
        assert_eq!(got, [0, 1, 2, 3, 4, 0]);
        assert_eq!(out.read_at(54, &mut got), 2);
    }

    #[test]
    fn split_at_every_point_keeps_every_byte() {
        for at in 0..60 {
            let mut head = list().into_inner();
            let all: Vec<u8> = (0..56).collect();
            assert_eq!(head.copy_in(0, &all), 56);
            let tail = head.split_off(at);
            assert_eq!(head.len(), at.min(56));
            assert_eq!(head.len() + tail.len(), 56);
            let (mut a, mut b) = (vec![0; head.len() as usize], vec![0; tail.len() as usize]);
            head.copy_out(0, &mut a);
            tail.copy_out(0, &mut b);
            a.extend(b);
            assert_eq!(a, all, "cut at {at}");
            assert!(head.iov.iter().chain(&tail.iov).all(|v| v.iov_len > 0), "cut at {at}");
        }
    }

    #[test]
    fn lists_are_copied_whatever_their_segments() {
        let bytes: Vec<u8> = (1..=56).collect();
        for offset in 0..56 {
            for (from, to) in [
                (SgList::host(56, 16).unwrap(), list().into_inner()),
                (list().into_inner(), SgList::host(56, 16).unwrap()),
                (list().into_inner(), list().into_inner()),
            ] {
                from.copy_in(0, &bytes);
                let to = ToGuest::new(to);
                from.copy_to(&to.window(offset, 40));
                let mut got = vec![0; 56];
                to.copy_out(0, &mut got);
                let (at, len) = (offset as usize, 40.min(56 - offset as usize));
                assert_eq!(got[at..at + len], bytes[..len], "to {offset}");
                assert!(got[..at].iter().chain(&got[at + len..]).all(|byte| *byte == 0), "to {offset}");
                let part = SgList::host(64, 16).unwrap();
                from.window(offset, 30).copy_to(&ToGuest::new(part.window(0, 64)));
                let mut got = vec![0; 64];
                part.copy_out(0, &mut got);
                let len = 30.min(56 - at);
                assert_eq!(got[..len], bytes[at..at + len], "from {offset}");
                assert!(got[len..].iter().all(|byte| *byte == 0), "from {offset}");
            }
        }
    }

    /// Takes note of what comes back.
    #[derive(Default)]
    struct Notes(std::sync::Mutex<Vec<usize>>);
    impl crate::mem::Lender for Notes {
        fn take_back(&self, buffer: Arc<Lendable>) {
            self.0.lock().unwrap().push(buffer.len());
        }
    }

    #[test]
    fn a_loan_ends_with_its_last_list() {
        let notes = Arc::new(Notes::default());
        let back = || notes.0.lock().unwrap().len();
        let lender: std::sync::Weak<Notes> = Arc::downgrade(&notes);
        let buffer = Lendable::new(8192, 4096, lender).unwrap();
        for round in 1..4 {
            let mut list = SgList::lent(buffer.clone(), 5000);
            assert!(list.is_private() && list.is_aligned(8) && list.len() == 5000);
            let window = list.window(100, 50);
            let tail = list.split_off(1000);
            drop(list);
            drop(tail);
            assert_eq!(back(), round - 1);
            drop(window);
            assert_eq!(back(), round);
        }
    }

    /// Where a region ends another one may begin, or none.
    #[test]
    fn cve_2019_18960_buffers_across_the_ends_of_regions() {
        let regions = [0, 4096, 0x4000].map(|at| (vm_memory::GuestAddress(at), 4096));
        let dma = crate::mem::Dma::new(std::sync::Arc::new(GuestRam::from_ranges(&regions).unwrap()));
        dma.set_bus_master(true);
        let list = dma.to_guest([(4000, 200)]).unwrap();
        assert_eq!((list.len(), list.write_at(0, &[7; 200])), (200, 200));
        for (at, expected) in [(3999, [0, 7]), (4095, [7, 7]), (4199, [7, 0])] {
            let mut bytes = [0; 2];
            dma.read(at, &mut bytes).unwrap();
            assert_eq!(bytes, expected, "at {at}");
        }
        for (at, len) in [(8000, 200), (8191, 2), (0x3ff0, 32), (8000, 0x4000), (0x4fff, 2), (0, 0x5000)] {
            assert!(
                dma.to_guest([(at, len)]).is_err() && dma.from_guest([(at, len)]).is_err(),
                "{at:#x} {len}"
            );
        }
    }

    #[test]
    fn alignment_is_of_address_and_length() {
        let sg = SgList::host(1024, 512).unwrap();
        assert!(sg.is_aligned(512));
        assert!(!sg.window(4, 512).is_aligned(512));
        assert!(!sg.window(0, 100).is_aligned(512));
    }
}
