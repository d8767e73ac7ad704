//! Images on block devices of the host, which grow.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::iothread::TaskPool;
use crate::storage::{Guarded, Parking, Pausing, SpaceWatch};
use crate::testing::LoopDevice;

const CLUSTER: u64 = 64 << 10;

/// A device of 1 MiB with an image of 16 MiB, and that many of its clusters written.
fn filled_up(bench: &Bench, device: &LoopDevice) -> (Qcow2Image, u64) {
    let path = device.path().to_str().unwrap();
    bench.img(&["create", "-q", "-f", "qcow2", path, "16M"]);
    let image = open(device.path());
    let (image, written) = on_io_thread(move |io| async move {
        for n in 0..256 {
            let write =
                image.write(&io, ByteOffset(n * CLUSTER), filled(CLUSTER, 1), Durability::Cached).await;
            if let Err(error) = write {
                assert_eq!(error.kind, BlockErrorKind::NoSpace, "{error}");
                assert!(error.context.contains("1048576 bytes"), "{error}");
                return (image, n);
            }
        }
        panic!("a device of 1 MiB has no end");
    });
    assert!(written > 8, "{written} clusters in 1 MiB");
    (image, written)
}

#[test]
fn a_longer_device_ends_reports_of_no_space() {
    let Some(bench) = Bench::new() else { return };
    let Some(device) = LoopDevice::new(1 << 20, 512) else { return };
    let (image, written) = filled_up(&bench, &device);
    // Less than the image would like to have, and enough.
    device.grow((1 << 20) + 2 * CLUSTER);
    let image = on_io_thread(move |io| async move {
        let write =
            |n: u64| image.write(&io, ByteOffset(n * CLUSTER), filled(CLUSTER, 2), Durability::Cached);
        write(written).await.unwrap();
        write(written + 1).await.unwrap();
        assert_eq!(write(written + 2).await.unwrap_err().kind, BlockErrorKind::NoSpace);
        image.close(&io).await.unwrap();
        image
    });
    drop(image);
    bench.check_clean(device.path().to_str().unwrap());
}

#[derive(Default)]
struct Counter(AtomicU32);

impl SpaceWatch for Counter {
    fn no_space(&self, _: &BlockError) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_write_that_waits_for_space_goes_on_when_the_device_has_grown() {
    let Some(bench) = Bench::new() else { return };
    let Some(device) = LoopDevice::new(1 << 20, 512) else { return };
    let (image, written) = filled_up(&bench, &device);
    let (device, image) = on_io_thread(move |io| async move {
        let (parking, watch) = (Arc::new(Parking::default()), Arc::new(Counter::default()));
        let pausing = Pausing { parking: parking.clone(), watch: watch.clone() };
        let image = Rc::new(Guarded::new(image, None, Some(pausing)));
        let pool = TaskPool::new(&io, 1);
        let (disk, ring, done) = (image.clone(), io.clone(), Rc::new(Cell::new(false)));
        let is_done = done.clone();
        let write = async move {
            let at = ByteOffset(written * CLUSTER);
            disk.write(&ring, at, filled(CLUSTER, 2), Durability::Stable).await.unwrap();
            is_done.set(true);
        };
        assert!(pool.spawn(write).is_ok());
        while watch.0.load(Ordering::Relaxed) == 0 {
            io.sleep(Duration::from_millis(1)).await;
        }
        device.grow(4 << 20);
        parking.resume();
        while !done.get() {
            assert_eq!(watch.0.load(Ordering::Relaxed), 1, "there is still no space, it says");
            io.sleep(Duration::from_millis(1)).await;
        }
        pool.drained().await;
        image.close(&io).await.unwrap();
        drop(pool);
        (device, Rc::into_inner(image).map(drop))
    });
    assert_eq!(image, Some(()));
    bench.check_clean(device.path().to_str().unwrap());
}

/// While a machine waits for hours, its write is tried every second.
#[test]
fn tries_without_room_take_nothing() {
    let Some(bench) = Bench::new() else { return };
    let Some(device) = LoopDevice::new(1 << 20, 512) else { return };
    let (image, written) = filled_up(&bench, &device);
    on_io_thread(move |io| async move {
        let write =
            |n: u64| image.write(&io, ByteOffset(n * CLUSTER), filled(CLUSTER, 2), Durability::Cached);
        for _ in 0..100 {
            assert_eq!(write(written).await.unwrap_err().kind, BlockErrorKind::NoSpace);
        }
        device.grow((1 << 20) + CLUSTER);
        write(written).await.unwrap();
        // What is unmapped is room for something else, also before the guest flushes.
        let span = Span { at: ByteOffset(0), len: 2 * CLUSTER };
        image.zero(&io, span, Unmap::Allowed).await.unwrap();
        write(written + 1).await.unwrap();
        write(written + 2).await.unwrap();
        image.close(&io).await.unwrap();
        drop(image);
        bench.check_clean(device.path().to_str().unwrap());
    });
}
