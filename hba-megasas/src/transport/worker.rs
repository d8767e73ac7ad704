//! The task that takes frames on an I/O thread, and what it keeps.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use devices::iothread::{Io, Poller, TaskPool, Watch};
use devices::mem::ToGuest;
use devices::moderation::Moderation;
use devices::scsi::{Status as ScsiStatus, Tag};
use zerocopy::IntoBytes;

use super::addresses::Addresses;
use super::execute;
use super::frame::{Fetcher, Frame};
use super::port::{Done, Port};
use super::token::{FrameToken, Ticket};
use crate::firmware::{Filter, Firmware, Place};
use crate::spec::Status;

type Map = BTreeMap<u8, Arc<Place>>;

/// How often to look whether a full reply ring has room again.
const FULL_RING_POLL: Duration = Duration::from_millis(1);

/// What is begun in one round of the I/O thread at most, so that others of the thread have their turns: frames, and bytes of
/// them. Enough for the usual batch of small ones; of large ones, one at a time.
const FRAMES_PER_ROUND: u32 = 64;
const BYTES_PER_ROUND: u64 = 256 << 10;

/// Bytes from which on a frame is long. Others overtake those that wait for their turn: a board has one queue, and who reads a
/// little would wait there for all that somebody else reads.
const LONG: u64 = 64 << 10;

/// An EVENT_WAIT that no event has answered yet.
struct Parked {
    ticket: Ticket,
    filter: Filter,
    buffer: ToGuest,
}

/// What the tasks of one adapter share on their thread.
pub(crate) struct Worker {
    io: Io,
    port: Arc<Port>,
    firmware: Arc<Firmware>,
    done: RefCell<Vec<Done>>,
    /// Address and context of the frames in flight.
    active: RefCell<Addresses<u64>>,
    parked: RefCell<Option<Parked>>,
    drives: RefCell<(u64, Arc<Map>)>,
    serial: Cell<u64>,
    moderation: RefCell<Moderation>,
    /// How many events had happened at the last look.
    events: Cell<u64>,
    /// There is something to do without a doorbell.
    seen: Cell<bool>,
    /// The last round left frames for the next.
    left: Cell<bool>,
    /// [`Self::retry`] runs.
    retrying: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Worker {
    pub(crate) fn new(io: Io, port: Arc<Port>, firmware: Arc<Firmware>) -> Rc<Self> {
        let limit = Port::queue_limit(port.model());
        let moderation = RefCell::new(Moderation::new(true, io.polling_bound()));
        let drives = RefCell::new((firmware.drives().version(), firmware.drives().all()));
        Rc::new(Self {
            io,
            port,
            firmware,
            done: RefCell::new(Vec::with_capacity(limit)),
            active: RefCell::new(super::addresses::with_room(2 * limit)),
            parked: RefCell::default(),
            drives,
            serial: Cell::new(0),
            moderation,
            events: Cell::new(0),
            seen: Cell::new(false),
            left: Cell::new(false),
            retrying: Cell::new(false),
            waker: Cell::new(None),
        })
    }

    pub(crate) fn io(&self) -> &Io {
        &self.io
    }

    pub(crate) fn port(&self) -> &Arc<Port> {
        &self.port
    }

    pub(crate) fn firmware(&self) -> &Arc<Firmware> {
        &self.firmware
    }

    /// The drive at `id` now.
    pub(crate) fn place(&self, id: u8) -> Option<Arc<Place>> {
        let mut drives = self.drives.borrow_mut();
        let version = self.firmware.drives().version();
        if drives.0 != version {
            *drives = (version, self.firmware.drives().all());
        }
        drives.1.get(&id).cloned()
    }

    /// A tag for a command; below those of the firmware's own.
    pub(crate) fn next_tag(&self) -> Tag {
        let serial = self.serial.get();
        self.serial.set(serial.wrapping_add(1) & (u64::MAX >> 1));
        Tag(serial)
    }

    /// Notes a frame for the end of the batch.
    pub(crate) fn done(&self, address: u64, done: Done) {
        self.active.borrow_mut().remove(&address);
        self.done.borrow_mut().push(done);
    }

    /// Posts what is done, with an interrupt when it is time for one.
    pub(crate) fn flush(self: &Rc<Self>) {
        let mut done = self.done.borrow_mut();
        let mut moderation = self.moderation.borrow_mut();
        if done.is_empty() && moderation.is_idle() {
            return;
        }
        let now = self.io.now();
        if !done.is_empty() {
            moderation
                .completed(now, done.iter().filter(|done| done.context.is_some()).map(|done| done.taken));
            if self.port.complete(&mut done) && moderation.is_idle() {
                // They had to wait for room, and were counted when they came.
                self.port.signal();
            }
            if self.port.is_holding() && !self.retrying.replace(true) {
                let worker = self.clone();
                self.io.spawn(async move { worker.retry().await });
            }
        }
        if moderation.is_due(now, self.port.in_flight(), self.port.has_waiting()) {
            moderation.signalled();
            self.port.signal();
        }
    }

    /// Looks for room in a reply ring that was full: a driver that takes completions need not say so.
    async fn retry(&self) {
        while self.port.is_holding() && !self.port.is_closed() {
            self.io.sleep(FULL_RING_POLL).await;
            if self.port.complete(&mut self.done.borrow_mut()) {
                self.port.signal();
            }
        }
        self.retrying.set(false);
    }

    /// Interrupts for what was posted.
    pub(crate) fn signal(&self) {
        let mut moderation = self.moderation.borrow_mut();
        if !moderation.is_idle() {
            moderation.signalled();
            self.port.signal();
        }
    }

    /// Waits for the doorbell, or for frames that are seen without; `false` when the adapter is taken down.
    async fn next_frames(&self, watch: &mut Watch) -> bool {
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
            tracing::error!(%error, "megasas: doorbell lost");
            self.port.fault();
            return false;
        }
        !self.port.is_closed()
    }

    fn notice(&self) -> bool {
        self.seen.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        true
    }

    /// Looks at a frame and starts it.
    fn accept(
        self: &Rc<Self>,
        (address, epoch, taken): (u64, u64, Instant),
        fetcher: &mut Fetcher,
    ) -> Option<(FrameToken, Frame)> {
        let forget = || self.done.borrow_mut().push(Done { epoch, context: None, taken });
        let Some(frame) = fetcher.fetch(self.port.dma(), address, self.port.model().max_sges()) else {
            devices::log_limited!(warn, "megasas: no frame at {address:#x}");
            forget();
            return None;
        };
        let context = frame.header.context.get();
        let parked = self
            .parked
            .borrow()
            .as_ref()
            .is_some_and(|parked| (parked.ticket.address, parked.ticket.epoch) == (address, epoch));
        match self.active.borrow_mut().entry(address) {
            Entry::Vacant(entry) if !parked => {
                entry.insert(context);
            }
            _ => {
                devices::log_limited!(warn, "megasas: frame at {address:#x} is in flight already");
                forget();
                return None;
            }
        }
        let flags = frame.header.flags.get();
        Some((FrameToken::new(self.clone(), Ticket { address, context, flags, epoch, taken }), frame))
    }

    /// Answers an EVENT_WAIT, or keeps it. Of two, the first stays.
    pub(crate) fn wait_for_event(self: &Rc<Self>, token: FrameToken, filter: Filter, buffer: ToGuest) {
        let epoch = self.port.epoch();
        let busy = self.parked.borrow().as_ref().is_some_and(|parked| parked.ticket.epoch == epoch);
        if busy {
            return token.complete(Status::WrongState);
        }
        let ticket = token.park();
        *self.parked.borrow_mut() = Some(Parked { ticket, filter, buffer });
        self.firmware.asked(filter.from);
        self.deliver_event();
    }

    /// Answers the EVENT_WAIT if there is what it waits for.
    fn deliver_event(self: &Rc<Self>) {
        self.events.set(self.firmware.event_count());
        let event = match &*self.parked.borrow() {
            Some(parked) => self.firmware.first_event(&parked.filter),
            None => None,
        };
        if let Some(event) = event
            && let Some((token, buffer)) = self.unpark(|_| true)
        {
            buffer.write_at(0, event.as_bytes());
            token.complete(Status::Ok);
        }
    }

    /// Takes the held frame back into flight, if `wanted` says so and no reset came in between.
    fn unpark(self: &Rc<Self>, wanted: impl FnOnce(&Ticket) -> bool) -> Option<(FrameToken, ToGuest)> {
        let mut slot = self.parked.borrow_mut();
        let parked = slot.take_if(|parked| wanted(&parked.ticket))?;
        let resumed = self.port.resume(parked.ticket.epoch);
        resumed.then(|| (FrameToken::new(self.clone(), parked.ticket), parked.buffer))
    }

    /// The driver goes: what it let wait for events comes back as if it had aborted that, and no event is written to its
    /// memory any more.
    pub(crate) fn end_wait(self: &Rc<Self>) {
        if let Some((token, _)) = self.unpark(|_| true) {
            token.complete(Status::Invalid);
        }
    }

    /// ABORT of the frame at `address`. A held frame comes back before the ABORT does; others run to their end.
    pub(crate) fn abort(self: &Rc<Self>, context: u64, address: u64) -> Status {
        // Drivers fill in the low half only.
        let same = |other: u64| other as u32 == context as u32;
        let epoch = self.port.epoch();
        let parked = self.parked.borrow().as_ref().map(|parked| parked.ticket);
        if let Some(ticket) = parked.filter(|ticket| (ticket.address, ticket.epoch) == (address, epoch)) {
            if !same(ticket.context) {
                return Status::AbortNotPossible;
            }
            if let Some((token, _)) = self.unpark(|_| true) {
                token.complete(Status::Invalid);
            }
            return Status::Ok;
        }
        if self.active.borrow().contains_key(&address) { Status::AbortNotPossible } else { Status::Ok }
    }
}

/// Between doorbells: the port itself says whether there is something to do.
impl Poller for Worker {
    fn poll(&self) -> bool {
        let waiting = self.port.has_waiting();
        let due = {
            let moderation = self.moderation.borrow();
            !moderation.is_idle() && moderation.is_due(self.io.now(), self.port.in_flight(), waiting)
        };
        if due {
            self.signal();
        }
        (waiting || self.left.get()) && self.notice()
    }

    fn is_holding(&self) -> bool {
        !self.moderation.borrow().is_idle()
    }

    fn arm(&self) -> bool {
        self.signal();
        (!self.port.arm() | self.left.get()) && self.notice()
    }
}

/// Frames that were taken from the port and not begun.
struct Batch {
    frames: Vec<u64>,
    /// How many of them were begun.
    begun: usize,
    epoch: u64,
    taken: Instant,
}

impl Batch {
    fn next(&mut self) -> Option<u64> {
        let frame = self.frames.get(self.begun).copied();
        self.begun += usize::from(frame.is_some());
        frame
    }

    fn is_empty(&self) -> bool {
        self.begun >= self.frames.len()
    }
}

impl Worker {
    /// Takes what waits at the port, once all of the batch before was begun.
    fn take(&self, batch: &mut Batch, running: usize) {
        if !batch.is_empty() {
            return;
        }
        batch.frames.clear();
        (batch.begun, batch.epoch) = (0, self.port.take(&mut batch.frames));
        if batch.frames.is_empty() {
            if self.port.complete(&mut self.done.borrow_mut()) {
                // The driver has made room in a full ring.
                self.port.signal();
            }
            return;
        }
        batch.taken = self.io.now();
        self.moderation.borrow_mut().arrived(batch.taken, batch.frames.len() as u32, running as u32);
    }

    /// Forgets what was not begun: a reset came in between.
    fn forget(&self, batch: &mut Batch) {
        let (epoch, taken) = (batch.epoch, batch.taken);
        let mut done = self.done.borrow_mut();
        done.extend(std::iter::from_fn(|| batch.next()).map(|_| Done { epoch, context: None, taken }));
    }
}

/// Frames that were looked at and wait for their turn, in their order.
struct Backlog {
    frames: VecDeque<(FrameToken, Frame)>,
    /// The next begins whatever else did in this round.
    may: bool,
}

impl Backlog {
    /// Keeps a long frame, and what must not overtake one; gives others back.
    fn sort(&mut self, token: FrameToken, frame: Frame) -> Option<(FrameToken, Frame)> {
        let waits = if frame.is_command() { frame.bytes() >= LONG } else { !self.frames.is_empty() };
        if !waits {
            return Some((token, frame));
        }
        self.frames.push_back((token, frame));
        None
    }

    /// The next one, when it may begin after so many bytes.
    fn next(&mut self, bytes: u64) -> Option<(FrameToken, Frame)> {
        let begins = std::mem::take(&mut self.may) || bytes < BYTES_PER_ROUND;
        if begins { self.frames.pop_front() } else { None }
    }

    /// Ends what is of a time before a reset, which is nobody's any more.
    fn forget(&mut self) {
        while self.frames.front().is_some_and(|(token, _)| token.is_stale()) {
            self.end_first();
        }
    }

    fn end_first(&mut self) {
        if let Some((token, _)) = self.frames.pop_front() {
            token.complete(Status::ScsiIoFailed);
        }
    }
}

/// Serves the port for as long as it lives.
pub(crate) async fn serve(worker: Rc<Worker>) {
    let port = worker.port.clone();
    let limit = Port::queue_limit(port.model());
    let pool = TaskPool::new(&worker.io, limit);
    let at_end = worker.clone();
    let hook = worker.io.at_batch_end(move || at_end.flush());
    let poller: Rc<dyn Poller> = worker.clone();
    worker.io.add_poller(Rc::downgrade(&poller));
    drop(poller);
    let mut watch = worker.io.watch(port.doorbell());
    let frames = Vec::with_capacity(limit);
    let mut batch = Batch { frames, begun: 0, epoch: 0, taken: worker.io.now() };
    let mut fetcher = Fetcher::default();
    let mut backlog = Backlog { frames: VecDeque::with_capacity(limit), may: false };
    let begin = |token: FrameToken, frame| {
        if let Err(task) = pool.spawn(execute::run(token, frame)) {
            worker.io.spawn(task);
        }
    };
    while worker.next_frames(&mut watch).await {
        if worker.events.get() != worker.firmware.event_count() {
            worker.deliver_event();
        }
        worker.take(&mut batch, pool.running());
        if batch.epoch != port.epoch() {
            worker.forget(&mut batch);
        }
        backlog.forget();
        // Otherwise the thread has enough of them for now.
        if pool.has_begun_all() {
            let (mut count, mut bytes) = (0, 0);
            while count < FRAMES_PER_ROUND
                && bytes < BYTES_PER_ROUND
                && let Some(address) = batch.next()
            {
                count += 1;
                let at = (address, batch.epoch, batch.taken);
                let Some((token, frame)) = worker.accept(at, &mut fetcher) else { continue };
                // Those that wait count too: a guest that sends more than the adapter takes must not have them all kept.
                if pool.running() + backlog.frames.len() >= limit {
                    token.complete_scsi(ScsiStatus::Busy, 0);
                } else if let Some((token, frame)) = backlog.sort(token, frame) {
                    bytes += frame.bytes();
                    begin(token, frame);
                }
            }
            backlog.may = true;
            while let Some((token, frame)) = backlog.next(bytes) {
                bytes += frame.bytes();
                begin(token, frame);
            }
        }
        worker.left.set(!batch.is_empty() || !backlog.frames.is_empty());
    }
    worker.forget(&mut batch);
    while !backlog.frames.is_empty() {
        backlog.end_first();
    }
    pool.drained().await;
    drop(hook);
    worker.flush();
    worker.signal();
}
