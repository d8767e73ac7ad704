//! The life of a device without I/O threads: this test is the worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use devices::irq::MsiVector;
use devices::mem::{Dma, GuestRam};
use vm_memory::{Bytes, GuestAddress};

use super::{Device, Limits, Signal, Transport};
use crate::queue::{Done, Flushed, Next, Queue};
use crate::ring::Chain;
use crate::spec::legacy;

#[derive(Default)]
struct Recorder {
    aborts: AtomicU32,
    resets: AtomicU32,
}

impl Device for Recorder {
    fn unfinished(&self) -> String {
        String::new()
    }
    fn features(&self) -> u64 {
        0
    }
    fn negotiate(&self, _: u64) -> bool {
        true
    }
    fn read_config(&self, _: u64, _: &mut [u8], _: u64) {}
    fn queue_stopped(&self, _: u16) {}
    fn config_generation(&self) -> u8 {
        0
    }
    fn write_config(&self, _: u64, _: &[u8]) {}
    fn abort(&self, _: Arc<Transport>) {
        self.aborts.fetch_add(1, Ordering::Relaxed);
    }
    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }
}

struct Silent;

impl Signal for Silent {
    fn has_messages(&self) -> bool {
        true
    }
    fn notify(&self, _: u16) {}
    fn reserve(&self, _: u16) -> bool {
        true
    }
    fn deassert(&self) {}
    fn direct(&self, _: u16) -> Option<Arc<dyn MsiVector>> {
        None
    }
}

struct Bench {
    ram: Arc<GuestRam>,
    device: Arc<Recorder>,
    transport: Arc<Transport>,
}

const RINGS: u64 = 0x1000;

impl Bench {
    /// Two queues of 4 descriptors, enabled and running; each has two chains available.
    fn new() -> Self {
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap());
        let dma = Dma::new(ram.clone());
        dma.set_bus_master(true);
        let device = Arc::new(Recorder::default());
        let queues = (0..2).map(|_| Arc::new(Queue::new(dma.clone()).unwrap())).collect();
        let limits = Limits { queue_size: 4, vectors: 3, access_platform: false };
        let transport = Transport::new(device.clone(), queues, limits);
        transport.connect(Box::new(Silent));
        let bench = Self { ram, device, transport };
        bench.start();
        bench
    }

    fn start(&self) {
        self.write(20, &[1]);
        self.write(20, &[3]);
        self.write(8, &1_u32.to_le_bytes());
        // VERSION_1 and RING_RESET, bits 32 and 40.
        self.write(12, &0x101_u32.to_le_bytes());
        self.write(20, &[11]);
        for queue in 0..2 {
            let base = RINGS * (1 + 3 * queue);
            self.ram.write_slice(&[0; 0x3000], GuestAddress(base)).unwrap();
            for descriptor in 0..4 {
                let bytes = [0, 0xf0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 2, 0, 0, 0];
                self.ram.write_slice(&bytes, GuestAddress(base + 16 * descriptor)).unwrap();
            }
            // flags 0, idx 2, ring 0 1
            self.ram.write_slice(&[0, 0, 2, 0, 0, 0, 1, 0], GuestAddress(base + RINGS)).unwrap();
            self.write(22, &(queue as u16).to_le_bytes());
            for (offset, part) in [(32, 0), (40, 1), (48, 2)] {
                self.write(offset, &(base + part * RINGS).to_le_bytes());
            }
            self.write(28, &[1, 0]);
        }
        self.write(20, &[15]);
        assert_eq!(self.status(), 15);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.transport.write(offset, data);
    }

    fn word(&self, offset: u64) -> u16 {
        let mut data = [0; 2];
        self.transport.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    fn status(&self) -> u8 {
        let mut data = [0];
        self.transport.read(20, &mut data);
        data[0]
    }

    fn queue(&self, index: usize) -> &Queue {
        &self.transport.queues()[index]
    }

    fn take(&self, index: usize) -> Option<u16> {
        match self.queue(index).take(true, &mut Chain::default(), |_, _| ((), None)).unwrap() {
            Next::Chain(head, ()) => Some(head),
            Next::Empty | Next::Stopped => None,
        }
    }

    /// Gives a chain back as the worker does.
    fn give(&self, index: usize, head: u16) -> Flushed {
        let (flushed, result) = self.queue(index).flush(&mut vec![Done { head, len: Some(7) }]);
        result.unwrap();
        if flushed.drained {
            self.transport.queue_drained(index as u16);
        }
        flushed
    }

    fn used(&self, index: u64) -> u16 {
        self.ram.read_obj(GuestAddress(RINGS * (3 + 3 * index) + 2)).unwrap()
    }

    fn resets(&self) -> u32 {
        self.device.resets.load(Ordering::Relaxed)
    }
}

#[test]
fn an_idle_device_resets_at_once() {
    let bench = Bench::new();
    let head = bench.take(0).unwrap();
    assert!(bench.give(0, head).published);
    assert!(bench.queue(0).wants_interrupt().unwrap());
    assert_eq!(bench.used(0), 1);
    bench.write(20, &[0]);
    assert_eq!((bench.status(), bench.resets(), bench.device.aborts.load(Ordering::Relaxed)), (0, 1, 0));
    assert_eq!(bench.take(0), None, "what is left on the ring is not taken");
    bench.start();
    assert_eq!(bench.take(0), Some(0), "and a new life starts at the start of the ring");
}

#[test]
fn status_is_zero_only_when_all_is_back() {
    let bench = Bench::new();
    let heads = [bench.take(0).unwrap(), bench.take(0).unwrap()];
    let other = bench.take(1).unwrap();
    bench.write(20, &[0]);
    assert_eq!((bench.status(), bench.device.aborts.load(Ordering::Relaxed)), (15, 1));
    // A driver that does not wait is not heard.
    bench.write(20, &[1]);
    bench.write(28, &[1, 0]);
    bench.write(20, &[0]);
    assert_eq!((bench.status(), bench.device.aborts.load(Ordering::Relaxed)), (15, 1));
    assert_eq!(bench.give(0, heads[0]), Flushed { published: false, drained: false });
    assert_eq!(bench.give(0, heads[1]), Flushed { published: false, drained: true });
    assert_eq!(bench.status(), 15, "one queue of two");
    bench.transport.aborted();
    assert_eq!(bench.status(), 15);
    assert!(bench.give(1, other).drained);
    assert_eq!((bench.status(), bench.resets()), (0, 1));
    assert_eq!((bench.used(0), bench.used(1)), (0, 0), "nothing was given back");
    bench.start();
    assert_eq!((bench.take(0), bench.take(1)), (Some(0), Some(0)));
}

#[test]
fn a_reset_waits_for_the_device_to_end_aborting() {
    let bench = Bench::new();
    let head = bench.take(0).unwrap();
    bench.write(20, &[0]);
    assert!(bench.give(0, head).drained);
    assert_eq!(bench.status(), 15, "commands of the next life must not be aborted");
    bench.transport.aborted();
    assert_eq!(bench.status(), 0);
}

#[test]
fn a_queue_reset_waits_for_its_queue_only() {
    let bench = Bench::new();
    let head = bench.take(1).unwrap();
    let _other = bench.take(0).unwrap();
    bench.write(22, &[1, 0]);
    bench.write(58, &[1, 0]);
    assert_eq!((bench.word(58), bench.word(28)), (1, 1));
    assert!(bench.give(1, head).drained);
    assert_eq!((bench.word(58), bench.word(28), bench.word(26)), (0, 0, 0xffff));
    assert_eq!((bench.used(1), bench.status()), (0, 15));
}

#[test]
fn a_device_reset_overtakes_a_queue_reset() {
    let bench = Bench::new();
    let head = bench.take(1).unwrap();
    bench.write(22, &[1, 0]);
    bench.write(58, &[1, 0]);
    bench.write(20, &[0]);
    assert_eq!((bench.status(), bench.word(58)), (15, 0));
    bench.transport.aborted();
    assert!(bench.give(1, head).drained);
    assert_eq!(bench.status(), 0);
}

#[test]
fn chains_in_flight_cannot_be_made_available_again() {
    let bench = Bench::new();
    bench.take(0).unwrap();
    bench.take(0).unwrap();
    // idx 3, third entry names descriptor 1 again.
    bench.ram.write_slice(&[3, 0, 0, 0, 1, 0, 1, 0], GuestAddress(2 * RINGS + 2)).unwrap();
    let taken = bench.queue(0).take(true, &mut Chain::default(), |_, _| ((), None));
    assert!(taken.is_err());
    assert!(!bench.queue(0).is_running());
}

#[test]
fn failure_is_shown_once_and_survives_until_reset() {
    let bench = Bench::new();
    bench.queue(0).fail();
    bench.transport.fail(0, &"a test");
    assert_eq!(bench.status(), 15 | 0x40);
    bench.write(20, &[0x8f]);
    assert_eq!(bench.status(), 0xcf);
    let mut isr = [0];
    bench.transport.read(0x1000, &mut isr);
    assert_eq!(isr, [2], "configuration bit");
    bench.queue(1).fail();
    bench.transport.fail(1, &"a test");
    bench.transport.read(0x1000, &mut isr);
    assert_eq!(isr, [0], "once");
    bench.write(20, &[0]);
    assert_eq!((bench.status(), bench.transport.is_broken()), (0, false));
}

/// The worker's word may come late: what failed was ended by a reset since, and the next driver's device is a new one.
#[test]
fn a_failure_before_a_reset_is_not_one_after_it() {
    let bench = Bench::new();
    bench.queue(0).fail();
    bench.write(20, &[0]);
    bench.transport.fail(0, &"a test");
    assert_eq!((bench.status(), bench.transport.is_broken()), (0, false));
    bench.start();
    bench.transport.fail(0, &"a test");
    assert_eq!(bench.status(), 15);
}

/// Reset does not stop what is started after it began, so nothing may be: its ring would be the next driver's memory.
#[test]
fn no_queue_is_placed_during_a_reset() {
    let bench = Bench::new();
    bench.write(22, &[1, 0]);
    bench.write(58, &[1, 0]);
    assert_eq!(bench.word(28), 0);
    let head = bench.take(0).unwrap();
    bench.write(20, &[0]);
    assert_eq!(bench.status(), 15);
    bench.transport.write_legacy(legacy::QUEUE_SELECT, &[1, 0]);
    bench.transport.write_legacy(legacy::QUEUE_ADDRESS, &4_u32.to_le_bytes());
    bench.transport.write_legacy(legacy::DEVICE_STATUS, &[0x80]);
    assert_eq!((bench.queue(1).is_running(), bench.status()), (false, 15));
    let ended = AtomicU32::new(0);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            bench.transport.write_legacy(legacy::DEVICE_STATUS, &[0]);
            ended.store(1, Ordering::Relaxed);
        });
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!((ended.load(Ordering::Relaxed), bench.status()), (0, 15), "a legacy reset joins it");
        assert!(bench.give(0, head).drained);
        bench.transport.aborted();
    });
    assert_eq!((bench.status(), bench.resets(), bench.device.aborts.load(Ordering::Relaxed)), (0, 1, 1));
    assert!(!bench.queue(1).is_running());
}

/// Bus mastering went, which stops no queue, and then comes a reset: it must not wait until the host has done what was begun
/// between the two.
#[test]
fn what_came_while_the_device_was_aborting_is_aborted_by_the_reset() {
    let bench = Bench::new();
    let early = bench.take(0).unwrap();
    bench.transport.quiesce(Duration::from_millis(1));
    let late = bench.take(1).unwrap();
    bench.write(20, &[0]);
    assert!(bench.give(0, early).drained);
    bench.transport.aborted();
    assert_eq!((bench.status(), bench.device.aborts.load(Ordering::Relaxed)), (15, 2));
    assert!(bench.give(1, late).drained);
    bench.transport.aborted();
    assert_eq!((bench.status(), bench.resets(), bench.device.aborts.load(Ordering::Relaxed)), (0, 1, 2));
}

/// Virtual CPUs are not held up for as long as a host hangs, and a reset that comes meanwhile is one.
#[test]
fn bus_mastering_off_waits_within_bounds() {
    let bench = Bench::new();
    bench.transport.quiesce(Duration::from_secs(100));
    assert_eq!(bench.device.aborts.load(Ordering::Relaxed), 0, "nothing is in flight");
    let head = bench.take(0).unwrap();
    bench.transport.quiesce(Duration::from_millis(10));
    assert_eq!((bench.status(), bench.device.aborts.load(Ordering::Relaxed)), (15, 1));
    std::thread::scope(|threads| {
        threads.spawn(|| bench.transport.quiesce(Duration::from_secs(100)));
        bench.write(20, &[0]);
        assert!(bench.give(0, head).drained);
        assert_eq!(bench.status(), 15);
        bench.transport.aborted();
    });
    assert_eq!((bench.status(), bench.resets(), bench.device.aborts.load(Ordering::Relaxed)), (0, 1, 1));
    let head = {
        bench.start();
        bench.take(1).unwrap()
    };
    std::thread::scope(|threads| {
        threads.spawn(|| bench.transport.quiesce(Duration::from_secs(100)));
        while bench.device.aborts.load(Ordering::Relaxed) < 2 {
            std::thread::yield_now();
        }
        bench.give(1, head);
        bench.transport.aborted();
    });
    assert_eq!((bench.status(), bench.resets()), (15, 1), "the device lives");
}

/// A virtual CPU waits for it: nothing else may be what ends it, for a command may wait for as long as the machine stands still.
#[test]
fn a_legacy_queue_is_given_back_by_ending_what_is_in_flight() {
    let bench = Bench::new();
    let give_back = |queue: u16| {
        bench.transport.write_legacy(legacy::QUEUE_SELECT, &queue.to_le_bytes());
        bench.transport.write_legacy(legacy::QUEUE_ADDRESS, &0_u32.to_le_bytes());
    };
    give_back(1);
    assert_eq!(bench.device.aborts.load(Ordering::Relaxed), 0, "nothing is in flight");
    let head = bench.take(0).unwrap();
    let ended = AtomicU32::new(0);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            give_back(0);
            ended.store(1, Ordering::Relaxed);
        });
        let begin = std::time::Instant::now();
        while bench.device.aborts.load(Ordering::Relaxed) == 0 && begin.elapsed() < Duration::from_secs(10) {
            std::thread::yield_now();
        }
        let aborts = bench.device.aborts.load(Ordering::Relaxed);
        let waited = ended.load(Ordering::Relaxed) == 0;
        bench.give(0, head);
        bench.transport.aborted();
        assert_eq!((aborts, waited), (1, true), "aborts asked for, and the CPU waits until they are done");
    });
    assert_eq!(
        (ended.load(Ordering::Relaxed), bench.word(28), bench.status()),
        (1, 0, 15),
        "the device lives"
    );
}
