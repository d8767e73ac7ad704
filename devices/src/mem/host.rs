//! Memory of the process, for data that the guest does not see.

use std::any::Any;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// Page-aligned or better host memory, zeroed.
pub(super) struct HostBuffer {
    start: *mut u8,
    layout: std::alloc::Layout,
    _keep: Option<Arc<dyn Any + Send + Sync>>,
}

// SAFETY: plain memory without thread affinity, only reached through volatile copies and the kernel.
#[allow(unsafe_code)]
unsafe impl Send for HostBuffer {}
// SAFETY: as above; there is no safe way to a reference into the buffer.
#[allow(unsafe_code)]
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    /// `keep` goes with the buffer.
    pub(super) fn new(len: usize, align: usize, keep: Option<Arc<dyn Any + Send + Sync>>) -> Option<Self> {
        let layout = std::alloc::Layout::from_size_align(len.max(1), align.max(16)).ok()?;
        // SAFETY: the layout has a non-zero size.
        #[allow(unsafe_code)]
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        (!start.is_null()).then_some(Self { start, layout, _keep: keep })
    }

    pub(super) fn start(&self) -> *mut u8 {
        self.start
    }

    pub(super) fn len(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this very layout and is freed once.
        #[allow(unsafe_code)]
        unsafe {
            std::alloc::dealloc(self.start, self.layout);
        }
    }
}

/// A buffer that is lent out again and again, to one at a time.
pub(crate) struct Lendable {
    memory: HostBuffer,
    /// Lists that lead into it.
    holders: AtomicUsize,
    lender: Weak<dyn Lender>,
}

impl Lendable {
    /// A zeroed buffer of `len` bytes at a multiple of `align` (a power of two), which `lender` lends; `None` when the host
    /// has no memory for it.
    pub(crate) fn new(len: usize, align: usize, lender: Weak<dyn Lender>) -> Option<Arc<Self>> {
        let memory = HostBuffer::new(len, align, None)?;
        Some(Arc::new(Self { memory, holders: AtomicUsize::new(0), lender }))
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.memory.len()
    }
}

/// Who lends buffers. Called from any thread, also while an I/O thread reaps its ring.
pub(crate) trait Lender: Send + Sync {
    /// No list leads into the buffer any more: whoever had it is done with it, and so is the kernel.
    fn take_back(&self, buffer: Arc<Lendable>);
}

/// A buffer that is lent, for one list. The lender gets it back when the last of them goes, wherever that is: an operation
/// that was abandoned has its list until the kernel has completed it.
pub(super) struct Loan(Arc<Lendable>);

impl Loan {
    pub(super) fn new(buffer: Arc<Lendable>) -> Self {
        buffer.holders.fetch_add(1, Ordering::Relaxed);
        Self(buffer)
    }

    pub(super) fn start(&self) -> *mut u8 {
        self.0.memory.start()
    }
}

impl Clone for Loan {
    fn clone(&self) -> Self {
        Self::new(self.0.clone())
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        // Whatever the others did with it comes before what the next borrower does.
        if self.0.holders.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(lender) = self.0.lender.upgrade()
        {
            lender.take_back(self.0.clone());
        }
    }
}
