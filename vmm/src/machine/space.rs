//! A host without space: the machine stands still until there is some again (`on_no_space = "pause"`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use devices::storage::{BlockError, Parking, Pausing, SpaceWatch};

use super::control::{Control, Event};
use crate::config::reason;

/// How often waiting writes are tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a write that is tried again may take to find that there is still no space.
const SETTLE: Duration = Duration::from_millis(300);

/// The writes of all disks that wait for space, and whether the machine stands still for them.
pub struct Space {
    parking: Arc<Parking>,
    control: Arc<Control>,
    /// Which write waits, while the machine stands still.
    short: Mutex<Option<String>>,
}

struct Watch(Arc<Control>);

impl SpaceWatch for Watch {
    fn no_space(&self, error: &BlockError) {
        self.0.post(Event::NoSpace(told(error)));
    }
}

/// The error and why the host has it.
fn told(error: &BlockError) -> String {
    match &error.source {
        Some(source) => format!("{error}: {}", reason(source)),
        None => error.to_string(),
    }
}

impl Space {
    /// Enough of it.
    pub fn new(control: Arc<Control>) -> Arc<Self> {
        Arc::new(Self { parking: Arc::default(), control, short: Mutex::default() })
    }

    /// Where the writes of a disk wait, and who is told.
    pub fn waits(&self) -> Pausing {
        Pausing { parking: self.parking.clone(), watch: Arc::new(Watch(self.control.clone())) }
    }

    /// Who is told.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Whether the machine has to stand still.
    pub fn is_short(&self) -> bool {
        self.lock().is_some()
    }

    /// What the machine stands still for: which write of which image waits.
    pub fn shortage(&self) -> Option<String> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.short.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write waits, `what` says which.
    pub fn begin(&self, what: &str) {
        // Told again after each try, perhaps of another image.
        if self.lock().replace(what.to_owned()).is_none() {
            tracing::warn!(
                "{what}; the machine is paused and goes on by itself once the host has space again"
            );
            self.after(AGAIN, Event::TrySpace);
        }
    }

    /// Lets the writes try again.
    pub fn try_again(&self) {
        self.parking.resume();
        self.after(SETTLE, Event::SpaceTried);
    }

    /// Looks whether writes still wait.
    pub fn tried(&self) {
        if self.parking.is_waiting() {
            self.after(AGAIN, Event::TrySpace);
        } else if self.lock().take().is_some() {
            tracing::warn!("the host has space again; the machine goes on");
        }
    }

    fn after(&self, time: Duration, event: Event) {
        let control = self.control.clone();
        let timer = thread::Builder::new().name("space".into());
        let started = timer.spawn(move || {
            thread::sleep(time);
            control.post(event);
        });
        if let Err(e) = started {
            tracing::error!("cannot wait for space: {e}; the machine goes on and the guest waits");
            self.lock().take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::storage::Action;

    #[test]
    fn the_line_says_why_there_is_no_space() {
        let error = BlockError::host(Action::Write, "\"a.img\"", std::io::Error::from_raw_os_error(27));
        let line = "writing \"a.img\" failed, for the limit of file sizes (ulimit -f) or that of the file system is \
                    reached: File too large";
        assert_eq!(told(&error), line);
        let error = BlockError::host(Action::Write, "\"a.img\"", std::io::Error::from_raw_os_error(28));
        assert_eq!(told(&error), "writing \"a.img\" failed: No space left on device");
    }

    #[test]
    fn the_machine_stands_still_until_nothing_waits() {
        let control = Control::new(1).unwrap();
        let space = Space::new(control.clone());
        assert!(!space.is_short());
        space.begin("writing \"disk.img\" failed");
        space.begin("writing \"disk.img\" failed");
        assert!(space.is_short());
        thread::sleep(AGAIN * 2);
        assert_eq!(control.take_event(), Some(Event::TrySpace));
        assert_eq!(control.take_event(), None, "one timer for both");
        space.try_again();
        thread::sleep(SETTLE * 2);
        assert_eq!(control.take_event(), Some(Event::SpaceTried));
        space.tried();
        assert!(!space.is_short());
    }
}
