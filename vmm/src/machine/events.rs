//! The main thread's sources of events.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use super::control::{Control, Crash, Event};

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
