//! The task that serves one queue on an I/O thread.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use devices::iothread::{Io, Poller, TaskPool, Watch};
use devices::mem::Dma;
use devices::moderation::Moderation;

use crate::queue::{Done, Next, Queue, TaskId};
use crate::ring::{Chain, ChainError, MAX_CHAIN};
use crate::spec::queue::FIRST_REQUEST;
use crate::token::{ChainToken, ResponseArea};
use crate::transport::Transport;

/// What a queue takes in one round of the I/O thread at most, so that the others of the thread have their turns: chains, and
/// bytes of them. Enough for the usual batch of small requests; of large ones, one at a time.
const CHAINS_PER_ROUND: u32 = 64;
const BYTES_PER_ROUND: u64 = 256 << 10;

/// What a chain turned out to be.
pub(crate) struct Parsed<T> {
    /// Where the response goes.
    pub(crate) response: ResponseArea,
    /// Offset of the response byte in it.
    pub(crate) response_at: usize,
    /// The command in it, for task management.
    pub(crate) task: Option<TaskId>,
    /// What to do.
    pub(crate) body: T,
}

/// One queue on its I/O thread.
pub(crate) struct Worker {
    io: Io,
    dma: Dma,
    queue: Arc<Queue>,
    index: u16,
    transport: Arc<Transport>,
    done: RefCell<Vec<Done>>,
    /// When to interrupt for requests; none for other queues, which interrupt at once.
    moderation: Option<RefCell<Moderation>>,
    /// Chains taken that did not come back.
    running: Cell<u32>,
    /// The driver was asked to ring for the next chain.
    armed: Cell<bool>,
    /// The last round left chains for the next.
    left: Cell<bool>,
    /// A chain was seen without a doorbell.
    seen: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Worker {
    pub(crate) fn new(
        io: Io,
        transport: Arc<Transport>,
        index: u16,
        queue: Arc<Queue>,
        dma: Dma,
    ) -> Rc<Self> {
        let done = RefCell::new(Vec::with_capacity(MAX_CHAIN));
        let (armed, seen, left, waker) =
            (Cell::new(true), Cell::new(false), Cell::new(false), Cell::new(None));
        let moderation =
            (index >= FIRST_REQUEST).then(|| RefCell::new(Moderation::new(false, io.polling_bound())));
        let running = Cell::new(0);
        Rc::new(Self {
            io,
            dma,
            queue,
            index,
            transport,
            done,
            moderation,
            running,
            armed,
            left,
            seen,
            waker,
        })
    }

    pub(crate) fn io(&self) -> &Io {
        &self.io
    }

    pub(crate) fn dma(&self) -> &Dma {
        &self.dma
    }

    pub(crate) fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    /// Number of the queue.
    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    pub(crate) fn transport(&self) -> &Arc<Transport> {
        &self.transport
    }

    /// Whether the device is being taken down: then requests may vanish.
    pub(crate) fn is_ending(&self) -> bool {
        self.transport.is_closed()
    }

    /// Notes a chain for the end of the batch.
    pub(crate) fn done(&self, done: Done) {
        self.running.set(self.running.get().saturating_sub(1));
        self.done.borrow_mut().push(done);
    }

    /// The last `count` chains were taken in one go.
    fn arrived(&self, count: u32) {
        if let Some(moderation) = &self.moderation
            && count > 0
        {
            let before = self.running.get().saturating_sub(count);
            moderation.borrow_mut().arrived(self.io.now(), count, before);
        }
    }

    /// Gives back what is done, and interrupts for all of it when it is time to.
    pub(crate) fn flush(&self) {
        let mut done = self.done.borrow_mut();
        if done.is_empty() {
            drop(done);
            return self.signal_if_due();
        }
        let count = done.len();
        let (flushed, result) = self.queue.flush(&mut done);
        drop(done);
        if let Err(error) = result {
            self.transport.fail(self.index, &error);
        }
        match &self.moderation {
            Some(moderation) if flushed.published => {
                let now = self.io.now();
                moderation.borrow_mut().completed(now, std::iter::repeat_n(now, count));
                self.signal_if_due();
            }
            None if flushed.published => self.interrupt(),
            _ => {}
        }
        if flushed.drained {
            self.transport.queue_drained(self.index);
        }
    }

    /// Interrupts for what was given back, if it is time to.
    fn signal_if_due(&self) {
        let due = self.moderation.as_ref().is_some_and(|moderation| {
            let moderation = moderation.borrow();
            // Chains that we left say nothing of whether the driver sends.
            let sends = || !self.left.get() && self.queue.has_waiting();
            !moderation.is_idle() && moderation.is_due(self.io.now(), self.running.get(), sends())
        });
        if due {
            self.signal();
        }
    }

    /// Interrupts for what was given back.
    fn signal(&self) {
        if let Some(moderation) = &self.moderation
            && !moderation.borrow().is_idle()
        {
            moderation.borrow_mut().signalled();
            self.interrupt();
        }
    }

    fn interrupt(&self) {
        match self.queue.wants_interrupt() {
            Ok(true) => self.transport.interrupt_queue(&self.queue),
            Ok(false) => {}
            Err(error) => self.transport.fail(self.index, &error),
        }
    }

    /// What [`Self::next_doorbell`] waits for.
    pub(crate) fn watch(&self) -> Watch {
        self.io.watch(self.queue.doorbell())
    }

    /// Waits for the doorbell, or for a chain that is seen without; `false` when the device is taken down.
    pub(crate) async fn next_doorbell(&self, watch: &mut Watch) -> bool {
        let mut rung = pin!(watch.next());
        let result = poll_fn(|cx| {
            if self.seen.take() {
                return Poll::Ready(Ok(()));
            }
            let known = self.waker.take().filter(|waker| waker.will_wake(cx.waker()));
            self.waker.set(Some(known.unwrap_or_else(|| cx.waker().clone())));
            rung.as_mut().poll(cx)
        });
        if let Err(error) = result.await {
            tracing::error!(queue = self.index, %error, "virtio-scsi: doorbell lost");
            self.queue.fail();
            self.transport.fail(self.index, &error);
            return false;
        }
        !self.transport.is_closed()
    }

    /// Takes one chain; `None` when there is no more to take for now.
    ///
    /// With `arm`, the driver is asked to ring for the next one.
    pub(crate) fn take<T>(
        &self,
        arm: bool,
        chain: &mut Chain,
        parse: impl FnOnce(&mut Chain, Result<(), ChainError>) -> (T, Option<TaskId>),
    ) -> Option<(u16, T)> {
        if self.transport.is_broken() {
            return None;
        }
        match self.queue.take(arm, chain, parse) {
            Ok(Next::Chain(head, parsed)) => {
                self.running.set(self.running.get() + 1);
                Some((head, parsed))
            }
            Ok(Next::Empty | Next::Stopped) => None,
            Err(error) => {
                self.transport.fail(self.index, &error);
                None
            }
        }
    }

    /// Tells the driver that doorbells are not needed while chains are taken.
    pub(crate) fn suppress_doorbell(&self) {
        if !self.armed.replace(false) {
            return;
        }
        if let Err(error) = self.queue.suppress_doorbell() {
            self.transport.fail(self.index, &error);
        }
    }
}

impl Worker {
    fn notice(&self) -> bool {
        self.seen.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        true
    }
}

/// Between doorbells: the queue itself says whether there is something to do.
impl Poller for Worker {
    fn poll(&self) -> bool {
        self.signal_if_due();
        // A queue that is armed rings; one of a broken device waits for the reset, which rings too.
        !self.armed.get() && !self.transport.is_broken() && self.queue.has_waiting() && self.notice()
    }

    fn is_holding(&self) -> bool {
        self.moderation.as_ref().is_some_and(|moderation| !moderation.borrow().is_idle())
    }

    fn arm(&self) -> bool {
        self.signal();
        if self.armed.replace(true) || self.transport.is_broken() {
            return false;
        }
        match self.queue.arm() {
            Ok(false) => false,
            Ok(true) => self.notice(),
            Err(error) => {
                self.transport.fail(self.index, &error);
                false
            }
        }
    }
}

/// Serves a queue whose chains are requests: `parse` looks at each chain once, `run` carries it out as a task.
///
/// Ends when the device is taken down, after its tasks.
pub(crate) async fn serve<T, F>(
    worker: Rc<Worker>,
    parse: impl Fn(&mut Chain, Result<(), ChainError>) -> Parsed<T>,
    run: impl Fn(ChainToken, T) -> F,
) where
    F: Future<Output = ()> + 'static,
{
    let pool = TaskPool::new(worker.io(), MAX_CHAIN);
    let at_end = worker.clone();
    let hook = worker.io().at_batch_end(move || at_end.flush());
    let poller: Rc<dyn Poller> = worker.clone();
    worker.io().add_poller(Rc::downgrade(&poller));
    drop(poller);
    let (mut chain, mut watch) = (Chain::default(), worker.watch());
    while worker.next_doorbell(&mut watch).await {
        worker.suppress_doorbell();
        if !pool.has_begun_all() {
            // The thread has enough of this queue: what waits is looked at again when it has begun that.
            worker.left.set(true);
            continue;
        }
        let parse = |chain: &mut Chain, shape| {
            let parsed = parse(chain, shape);
            ((parsed.response, parsed.response_at, parsed.body), parsed.task)
        };
        let (mut count, mut bytes) = (0, 0);
        while count < CHAINS_PER_ROUND
            && bytes < BYTES_PER_ROUND
            && let Some((head, (response, response_at, body))) = worker.take(false, &mut chain, parse)
        {
            count += 1;
            bytes += chain.bytes();
            let token = ChainToken::new(worker.clone(), head, response, response_at);
            // Never full: it has a slot for every descriptor of the largest queue. If it were, a task of its own
            // would still serve the request.
            if let Err(task) = pool.spawn(run(token, body)) {
                worker.io().spawn(task);
            }
        }
        worker.arrived(count);
        // The rest is found with the next look at all queues, for which this thread does not sleep first.
        worker.left.set(count >= CHAINS_PER_ROUND || bytes >= BYTES_PER_ROUND);
    }
    pool.drained().await;
    drop(hook);
    worker.flush();
    worker.signal();
}

#[cfg(test)]
#[path = "fairness_tests.rs"]
mod fairness;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::RingAddress;
    use crate::transport::{Device, Limits};
    use devices::iothread::IoThread;
    use devices::mem::GuestRam;
    use std::time::Duration;
    use vm_memory::{Bytes, GuestAddress};

    pub(super) struct Nothing;
    impl Device for Nothing {
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
        fn abort(&self, _: Arc<Transport>) {}
        fn reset(&self) {}
    }

    /// A request that nobody completes is a defect: debug builds panic, and the driver gets FAILURE in any case.
    #[test]
    fn a_dropped_token_completes_with_failure() {
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap());
        let dma = Dma::new(ram.clone());
        dma.set_bus_master(true);
        let queue = Arc::new(Queue::new(dma.clone()).unwrap());
        let limits = Limits { queue_size: 4, vectors: 1, access_platform: false };
        let transport = Transport::new(Arc::new(Nothing), [queue.clone()].into(), limits);
        let thread = IoThread::start("drop").unwrap();
        let worker = queue.clone();
        thread.remote().spawn(move |io| {
            let parse = |chain: &mut Chain, _: Result<(), ChainError>| {
                let response = ResponseArea::of(&chain.writable, 4);
                Parsed { response, response_at: 3, task: None, body: () }
            };
            serve(Worker::new(io, transport, 0, worker, dma), parse, |token, ()| async move { drop(token) })
        });
        // One writable descriptor of 4 bytes at 0x8000, made available.
        ram.write_slice(&[0, 0x80, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0], GuestAddress(0x1000)).unwrap();
        ram.write_slice(&[0, 0, 1, 0, 0, 0], GuestAddress(0x2000)).unwrap();
        queue.start(RingAddress { size: 4, desc: 0x1000, driver: 0x2000, device: 0x3000 }, false).unwrap();
        let response = || ram.read_obj::<u32>(GuestAddress(0x8000)).unwrap().to_le_bytes();
        for _ in 0..2000 {
            if response() != [0; 4] {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(response(), [0, 0, 0, 9]);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(thread)));
        assert_eq!(ended.is_err(), cfg!(debug_assertions));
    }

    pub(super) fn parse_one(chain: &mut Chain, _: Result<(), ChainError>) -> Parsed<()> {
        Parsed { response: ResponseArea::of(&chain.writable, 4), response_at: 3, task: None, body: () }
    }

    /// A ring with one writable descriptor of 4 bytes at 0x8000, made available `count` times.
    fn make_available(ram: &GuestRam, count: u8) {
        ram.write_slice(&[0, 0x80, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0], GuestAddress(0x1000)).unwrap();
        ram.write_slice(&[0, 0, count, 0, 0, 0, 0, 0], GuestAddress(0x2000)).unwrap();
    }

    fn bench() -> (Arc<GuestRam>, Dma, Arc<Queue>, Arc<Transport>) {
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap());
        let dma = Dma::new(ram.clone());
        dma.set_bus_master(true);
        let queue = Arc::new(Queue::new(dma.clone()).unwrap());
        let limits = Limits { queue_size: 4, vectors: 1, access_platform: false };
        let transport = Transport::new(Arc::new(Nothing), [queue.clone()].into(), limits);
        (ram, dma, queue, transport)
    }

    const AT: RingAddress = RingAddress { size: 4, desc: 0x1000, driver: 0x2000, device: 0x3000 };

    #[test]
    fn while_the_thread_polls_requests_need_no_doorbell() {
        let (ram, dma, queue, transport) = bench();
        let polling = devices::iothread::Polling::Fixed(Duration::from_secs(20));
        let settings = devices::iothread::Settings { polling, ..Default::default() };
        let thread = IoThread::with("poll", settings).unwrap();
        let (worker, at_end) = (queue.clone(), transport.clone());
        thread.remote().spawn(move |io| {
            serve(Worker::new(io, transport, 0, worker, dma), parse_one, |token, ()| async move {
                token.complete(&[1, 2, 3, 4], 4);
            })
        });
        let served = |count: u16| {
            for _ in 0..10_000 {
                if u16::from_le(ram.read_obj(GuestAddress(0x3002)).unwrap()) == count {
                    return true;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            false
        };
        make_available(&ram, 1);
        queue.start(AT, true).unwrap();
        assert!(served(1));
        // avail_event, after the used ring of 4 elements: the driver is not asked to ring for the second one.
        let event: u16 = ram.read_obj(GuestAddress(0x3000 + 4 + 4 * 8)).unwrap();
        make_available(&ram, 2);
        assert!(served(2), "found without a doorbell");
        assert_eq!(u16::from_le(event), 0);
        at_end.close();
    }

    #[test]
    fn a_broken_device_is_not_polled() {
        let (ram, dma, queue, transport) = bench();
        make_available(&ram, 1);
        queue.start(AT, true).unwrap();
        let thread = IoThread::start("broken").unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        thread.remote().spawn(move |io| async move {
            let worker = Worker::new(io, transport.clone(), 0, queue.clone(), dma);
            let look = || (worker.poll(), worker.arm());
            worker.armed.set(false);
            tell.send(look()).unwrap();
            queue.fail();
            transport.fail(0, &"a test");
            worker.armed.set(false);
            tell.send(look()).unwrap();
        });
        let wait = || told.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(wait(), (true, true));
        assert_eq!(wait(), (false, false), "it would be found again and again, and never taken");
    }
}
