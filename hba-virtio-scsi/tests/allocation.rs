//! A warm command allocates nothing on its I/O thread.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]
#![allow(dead_code, unreachable_pub)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::scsi::{Disk, Image, LogicalUnit, Lun, Nexus, Target, suite};
use hba_virtio_scsi::Options;
use hba_virtio_scsi::fc::Emulated;

#[path = "hba/guest.rs"]
mod guest;
use guest::{EVENT_IDX, FC_HOST, Guest, HOTPLUG, INDIRECT, NATIVE, RESCAN, RPORT_EVENTS, VERSION_1, lun};

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

#[test]
fn warm_commands_do_not_allocate() {
    let target = Target::new();
    let image = Arc::new(Image::Recording(suite::image()));
    target.attach(Lun([0; 8]), LogicalUnit::Disk(Disk::new(image, suite::config()).unwrap())).unwrap();
    let targets = BTreeMap::from([(0, Nexus::new(target, None))]);
    let fabric = RESCAN | NATIVE | FC_HOST | RPORT_EVENTS | HOTPLUG;
    for features in [0, EVENT_IDX, EVENT_IDX | INDIRECT, fabric, fabric | EVENT_IDX | INDIRECT] {
        let targets = targets.clone();
        let mut guest = if features & fabric == 0 {
            Guest::new(Options::default(), 1, targets)
        } else {
            Guest::with_san(Options::default(), 1, targets, Emulated::new("warm", [0]))
        };
        guest.start(VERSION_1 | features, 64);
        guest.remotes[0].spawn(|_| {
            COUNTED.set(true);
            async {}
        });
        let (tur, inquiry) = ([0; 6], [0x12, 0, 0, 0, 96, 0]);
        for _ in 0..200 {
            guest.reset_heap();
            guest.command(2, [1, 0, 0, 0, 0, 0, 0, 0], &tur, &[], 0);
            guest.command(2, [1, 0, 0, 0, 0, 0, 0, 0], &inquiry, &[], 96);
            guest.command(2, lun(9, 0), &inquiry, &[], 96);
        }
        let before = COUNT.load(Ordering::Relaxed);
        assert!(before > 0, "the counter counts");
        for _ in 0..500 {
            guest.reset_heap();
            assert_eq!(guest.command(2, [1, 0, 0, 0, 0, 0, 0, 0], &tur, &[], 0).status, 0);
            assert_eq!(guest.command(2, lun(9, 0), &inquiry, &[], 96).response, 3);
        }
        // The recorder of interrupts grows its list now and then; a command that allocated would make 500 or more.
        let allocated = COUNT.load(Ordering::Relaxed) - before;
        assert!(allocated < 16, "{allocated} allocations with features {features:#x}");
    }
}
