//! The main thread's sources of events.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use super::control::{Control, Crash, Event};
use super::ending::Patience;

/// How often to ask whether to go on waiting.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// A descriptor and what to do when it is readable.
struct Source<D> {
    descriptor: D,
    what: &'static str,
    action: Box<dyn FnMut(&D)>,
}

impl<D: AsRawFd> MutEventSubscriber for Source<D> {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        (self.action)(&self.descriptor);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(e) = ops.add(Events::new(&self.descriptor, EventSet::IN)) {
            tracing::error!("watching {}: {e}", self.what);
        }
    }
}

/// Waits for descriptors and hands out the machine's events one by one.
pub struct MainLoop {
    manager: EventManager<Box<dyn MutEventSubscriber>>,
    control: Arc<Control>,
}

impl MainLoop {
    /// Watches nothing but `control` yet.
    pub fn new(control: Arc<Control>) -> Result<Self, event_manager::Error> {
        let mut main_loop = Self { manager: EventManager::new()?, control: control.clone() };
        let wake = control.clone();
        main_loop.watch(WakeFd(control), "machine requests", move |_| {
            // Taking the count makes the descriptor unreadable; the events themselves are in the queue.
            let _ = wake.wake().read();
        });
        Ok(main_loop)
    }

    /// Calls `action` on the main thread whenever `descriptor` is readable; it must make it unreadable again.
    pub fn watch<D: AsRawFd + 'static>(
        &mut self,
        descriptor: D,
        what: &'static str,
        action: impl FnMut(&D) + 'static,
    ) {
        self.manager.add_subscriber(Box::new(Source { descriptor, what, action: Box::new(action) }));
    }

    /// Handles what has come for the sources, and waits for it at most for `time`.
    pub fn turn(&mut self, time: Duration) {
        let millis = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
        if let Err(e) = self.manager.run_with_timeout(millis) {
            // Whoever waits goes on asking.
            tracing::error!("the main loop failed: {e}");
            std::thread::sleep(time);
        }
    }

    /// What `done` brings; `None` when `patience` is at its end before. Whoever brings it has to
    /// [nudge](Control::nudge).
    pub fn wait<T>(&mut self, done: &Receiver<T>, patience: &mut Patience<'_>) -> Option<T> {
        loop {
            match done.try_recv() {
                Ok(value) => return Some(value),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) if !patience.lasts() => return None,
                Err(TryRecvError::Empty) => self.turn(ASK_AGAIN),
            }
        }
    }

    /// Waits for the next event.
    pub fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.control.take_event() {
                return event;
            }
            if let Err(e) = self.manager.run() {
                return Event::Crash(Crash::Host(format!("the main loop failed: {e}")));
            }
        }
    }
}

struct WakeFd(Arc<Control>);

impl AsRawFd for WakeFd {
    fn as_raw_fd(&self) -> i32 {
        self.0.wake().as_raw_fd()
    }
}
