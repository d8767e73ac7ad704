//! A warm frame allocates nothing on its I/O thread.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]
#![allow(dead_code, unreachable_pub)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use hba_megasas::Model;

#[path = "hba/guest.rs"]
mod guest;
use guest::{Frame, Guest};

static COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

// SAFETY: everything is the system allocator's; counting allocates nothing.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTED.try_with(Cell::get).unwrap_or(false) {
            COUNT.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Frames that the SCSI layer answers by itself; those that are posted, with an interrupt, and those that are polled.
#[test]
fn warm_frames_do_not_allocate() {
    for model in [Model::Gen2, Model::Sas1078] {
        let mut guest = Guest::new(model, true, &[0]);
        guest._thread.remote().spawn(|_| {
            COUNTED.set(true);
            async {}
        });
        assert_eq!(guest.init(129), 0);
        guest.enable_interrupts();
        let data = guest.alloc(4096);
        let ready = Frame::scsi(3, 0, &[0; 6]).context(7);
        let nothing = Frame::io(false, 0, 0, 0).context(8).sge(data, 512).sge(data + 512, 512);
        let nobody = Frame::scsi(3, 9, &[0; 6]).context(9);
        let round = |guest: &mut Guest| {
            for (frame, context, status) in [(&ready, 7, 0), (&nothing, 8, 0), (&nobody, 9, 0x0c)] {
                let at = guest.send(frame);
                assert_eq!((guest.wait_reply(), guest.status_of(at)), (context, status));
                guest.write(0xa0, u32::MAX);
            }
            assert_eq!(guest.poll(ready.clone()), 0);
        };
        (0..200).for_each(|_| round(&mut guest));
        let before = COUNT.load(Ordering::Relaxed);
        assert!(before > 0, "the counter counts");
        (0..500).for_each(|_| round(&mut guest));
        // The recorder of interrupts grows its list now and then; a frame that allocated would make 500 or more.
        let allocated = COUNT.load(Ordering::Relaxed) - before;
        assert!(allocated < 16, "{allocated} allocations");
    }
}
