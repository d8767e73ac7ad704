//! Two queues of one I/O thread: what one of them does while the other has something to do.

use super::tests::{Nothing, parse_one};
use super::*;
use crate::ring::RingAddress;
use crate::transport::{Device, Limits};
use devices::iothread::{IoThread, Polling, Settings};
use devices::mem::GuestRam;
use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress};

const MIB: u32 = 1 << 20;
/// Requests of the greedy queue in all.
const LIMIT: u32 = 1000;
/// The small queue gets its next request after this many of the greedy one.
const EVERY: u32 = 20;

/// A ring of 256 chains of one writable descriptor each: all have `len` bytes at the same place.
struct Driver {
    ram: Arc<GuestRam>,
    at: RingAddress,
    next: Cell<u16>,
}

impl Driver {
    fn new(ram: &Arc<GuestRam>, base: u64, data: u64, len: u32) -> Self {
        let at = RingAddress { size: 256, desc: base, driver: base + 0x1000, device: base + 0x2000 };
        for slot in 0..u64::from(at.size) {
            ram.write_obj(data.to_le(), GuestAddress(at.desc + 16 * slot)).unwrap();
            ram.write_obj([len.to_le(), 2_u32.to_le()], GuestAddress(at.desc + 16 * slot + 8)).unwrap();
        }
        Self { ram: ram.clone(), at, next: Cell::new(0) }
    }

    /// Makes the next chain available, without a doorbell.
    fn publish(&self) {
        let next = self.next.get();
        self.next.set(next + 1);
        let head = next % self.at.size;
        let element = self.at.driver + 4 + 2 * u64::from(head);
        self.ram.write_obj(head.to_le(), GuestAddress(element)).unwrap();
        self.ram.store((next + 1).to_le(), GuestAddress(self.at.driver + 2), Ordering::Release).unwrap();
    }
}

/// What happens, all of it on the I/O thread.
#[derive(Default)]
struct Story {
    /// Requests of the greedy queue that began.
    begun: Cell<u32>,
    /// How many had begun when the small queue got its request, until that is taken up.
    arrived: Cell<Option<u32>>,
    /// How many began in between, each time.
    between: RefCell<Vec<u32>>,
}

/// A driver that sends its next 1 MiB read from the completion of the last, 16 under way, must not keep the other queue
/// from being looked at, whose doorbell is suppressed.
#[test]
fn a_greedy_queue_leaves_the_other_its_turn() {
    assert_fair(Greed { len: MIB, depth: 16 }, 2);
}

/// Nor may a great many of them wait as tasks, which those of the other queue come behind.
#[test]
fn a_deep_queue_leaves_the_other_its_turn() {
    assert_fair(Greed { len: 64 << 10, depth: 128 }, 8);
}

/// What the greedy queue does: bytes of each read, and how many are under way.
#[derive(Clone, Copy)]
struct Greed {
    len: u32,
    depth: u16,
}

fn assert_fair(greed: Greed, most: u32) {
    let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap());
    let dma = Dma::new(ram.clone());
    dma.set_bus_master(true);
    let queues: [Arc<Queue>; 2] = std::array::from_fn(|_| Arc::new(Queue::new(dma.clone()).unwrap()));
    let limits = Limits { queue_size: 256, vectors: 1, access_platform: false };
    let device: Arc<dyn Device> = Arc::new(Nothing);
    let transport = Transport::new(device, queues.clone().into(), limits);
    let polling = Polling::Fixed(Duration::from_secs(20));
    let thread = IoThread::with("fair", Settings { polling, ..Settings::default() }).unwrap();
    let file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut &file, &vec![1; MIB as usize]).unwrap();
    let (tell, told) = mpsc::channel();
    let closer = transport.clone();
    thread.remote().spawn(move |io| play(io, dma, queues, transport, ram, Arc::new(file), tell, greed));
    let between: Vec<u32> = told.recv_timeout(Duration::from_secs(60)).unwrap();
    closer.close();
    assert!(between.iter().all(|&count| count <= most), "greedy requests that went before: {between:?}");
    assert!(between.len() >= 10, "{between:?}");
}

#[allow(clippy::too_many_arguments)]
async fn play(
    io: Io,
    dma: Dma,
    [first, second]: [Arc<Queue>; 2],
    transport: Arc<Transport>,
    ram: Arc<GuestRam>,
    file: Arc<File>,
    tell: mpsc::Sender<Vec<u32>>,
    Greed { len, depth }: Greed,
) {
    let greedy = Rc::new(Driver::new(&ram, 0x1_0000, 0x10_0000, len));
    let small = Rc::new(Driver::new(&ram, 0x2_0000, 0x8000, 4096));
    let story = Rc::new(Story::default());
    let (tale, driver, other, memory) = (story.clone(), greedy.clone(), small.clone(), dma.clone());
    let reader = io.clone();
    let read = move |token: ChainToken, ()| {
        let (io, dma, file, tell) = (reader.clone(), memory.clone(), file.clone(), tell.clone());
        let (story, greedy, small) = (tale.clone(), driver.clone(), other.clone());
        async move {
            let begun = story.begun.get() + 1;
            story.begun.set(begun);
            if begun % EVERY == 0 && story.arrived.get().is_none() {
                story.arrived.set(Some(begun));
                small.publish();
            }
            let into = dma.to_guest([(0x10_0000, len)]).unwrap();
            let (count, _) = io.read(&file, 0, into).await;
            assert_eq!(count.unwrap(), u64::from(len));
            match begun {
                LIMIT => {
                    story.between.borrow_mut().extend(story.arrived.take().map(|arrived| begun - arrived));
                    tell.send(story.between.take()).unwrap();
                }
                _ if begun + u32::from(depth) <= LIMIT => greedy.publish(),
                _ => {}
            }
            token.complete(&[1, 2, 3, 4], 4);
        }
    };
    let worker = |index, queue: &Arc<Queue>| {
        Worker::new(io.clone(), transport.clone(), index, queue.clone(), dma.clone())
    };
    io.spawn(serve(worker(0, &first), parse_one, read));
    let tale = story.clone();
    io.spawn(serve(worker(1, &second), parse_one, move |token, ()| {
        let tale = tale.clone();
        async move {
            if let Some(arrived) = tale.arrived.take() {
                tale.between.borrow_mut().push(tale.begun.get() - arrived);
            }
            token.complete(&[1, 2, 3, 4], 4)
        }
    }));
    (0..depth).for_each(|_| greedy.publish());
    // Taken up at once: from then on its doorbell is suppressed, as the thread does not sleep.
    small.publish();
    second.start(small.at, true).unwrap();
    first.start(greedy.at, true).unwrap();
}
