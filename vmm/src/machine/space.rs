//! A host without space: the machine stands still until there is some again (`on_no_space = "pause"`).

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use devices::storage::{BlockError, Parking, Pausing, SpaceWatch};
use devices::threads::{self, Kind};

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
    /// What tries the writes again; there is one once a disk may wait.
    retry: Mutex<Option<Arc<Retry>>>,
}

/// Tries waiting writes again, on a thread of its own: the main thread may wait for a virtual CPU, and that for one of them.
#[derive(Default)]
struct Retry {
    wanted: Mutex<bool>,
    changed: Condvar,
}

impl Retry {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want(&self) {
        *self.lock() = true;
        self.changed.notify_all();
    }

    fn run(&self, parking: &Parking, control: &Control) {
        loop {
            let wait = self.changed.wait_while(self.lock(), |wanted| !*wanted);
            drop(wait.unwrap_or_else(PoisonError::into_inner));
            loop {
                thread::sleep(AGAIN);
                // What is wanted by now is done by this.
                *self.lock() = false;
                parking.resume();
                thread::sleep(SETTLE);
                if !parking.is_waiting() {
                    break;
                }
            }
            control.post(Event::SpaceAgain);
        }
    }
}

struct Watch {
    control: Arc<Control>,
    retry: Arc<Retry>,
}

impl SpaceWatch for Watch {
    fn no_space(&self, error: &BlockError) {
        self.control.post(Event::NoSpace(told(error)));
        self.retry.want();
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
        let (parking, short, retry) = Default::default();
        Arc::new(Self { parking, control, short, retry })
    }

    /// Where the writes of a disk wait, and who is told. Fails where the host can start no thread to try them again.
    pub fn waits(&self) -> Result<Pausing> {
        let mut slot = self.retry.lock().unwrap_or_else(PoisonError::into_inner);
        let retry = match &*slot {
            Some(retry) => retry.clone(),
            None => {
                let retry = Arc::<Retry>::default();
                let (own, parking, control) = (retry.clone(), self.parking.clone(), self.control.clone());
                threads::spawn(Kind::Space, "space", move || own.run(&parking, &control))
                    .context("starting the thread for on_no_space = \"pause\"")?;
                slot.insert(retry).clone()
            }
        };
        let watch = Arc::new(Watch { control: self.control.clone(), retry });
        Ok(Pausing { parking: self.parking.clone(), watch })
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
            devices::log_limited!(
                warn,
                "{what}; the machine is paused and goes on by itself once the host has space again"
            );
        }
    }

    /// No write waited when that was looked at.
    pub fn end(&self) {
        // One that waits by now will be tried again too.
        if !self.parking.is_waiting() && self.lock().take().is_some() {
            devices::log_limited!(warn, "the host has space again; the machine goes on");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use devices::iothread::IoThread;
    use devices::iothread::mischief::{Trick, Victim};
    use devices::mem::{FromGuest, SgList};
    use devices::storage::{
        Action, BlockBackend, ByteOffset, CacheMode, Durability, Image, RawImage, RawOptions, Sharing,
    };

    use super::*;

    #[test]
    fn the_line_says_why_there_is_no_space() {
        let error = BlockError::host(Action::Write, "\"a.img\"", std::io::Error::from_raw_os_error(27));
        let line = "writing \"a.img\" failed, for the limit of file sizes (ulimit -f) or that of the file system is \
                    reached: File too large";
        assert_eq!(told(&error), line);
        let error = BlockError::host(Action::Write, "\"a.img\"", std::io::Error::from_raw_os_error(28));
        assert_eq!(told(&error), "writing \"a.img\" failed: No space left on device");
    }

    fn next(control: &Control) -> Option<Event> {
        let begin = Instant::now();
        while begin.elapsed() < 20 * AGAIN {
            if let Some(event) = control.take_event() {
                return Some(event);
            }
            thread::sleep(SETTLE / 10);
        }
        None
    }

    fn full() -> BlockError {
        BlockError::host(Action::Write, "\"a.img\"", std::io::Error::from_raw_os_error(28))
    }

    #[test]
    fn the_machine_stands_still_until_nothing_waits() {
        let control = Control::new(1).unwrap();
        let space = Space::new(control.clone());
        let watch = space.waits().unwrap().watch;
        assert!(!space.is_short());
        for _ in 0..2 {
            watch.no_space(&full());
            let Some(Event::NoSpace(what)) = control.take_event() else { panic!("nobody was told") };
            space.begin(&what);
        }
        assert!(space.is_short());
        assert_eq!(next(&control), Some(Event::SpaceAgain));
        space.end();
        assert!(!space.is_short());
        thread::sleep(AGAIN);
        assert_eq!(control.take_event(), None, "one answer for both");
    }

    /// The main thread may wait for a virtual CPU that waits for just this write.
    #[test]
    fn writes_are_tried_again_whatever_the_main_thread_does() {
        let control = Control::new(1).unwrap();
        let space = Space::new(control.clone());
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let (path, sharing) = (file.path().into(), Sharing::default());
        let options = RawOptions { path, read_only: false, cache: CacheMode::Writeback, sharing };
        let image = Image::Raw(RawImage::open(&options).unwrap()).guarded(None, Some(space.waits().unwrap()));
        let thread = IoThread::start("test").unwrap();
        let (send, done) = std::sync::mpsc::channel();
        thread.remote().spawn(move |io| {
            // The host has no space the second time either.
            let mut full = [Trick::Fail(libc::ENOSPC); 2].into_iter();
            io.plot(move |victim| matches!(victim, Victim::Write { .. }).then(|| full.next()).flatten());
            async move {
                let bytes = FromGuest::new(SgList::host(512, 512).unwrap());
                let result = image.write(&io, ByteOffset(0), bytes, Durability::Cached).await;
                send.send(result.map_err(|error| error.kind)).unwrap();
            }
        });
        assert_eq!(done.recv_timeout(20 * AGAIN), Ok(Ok(())), "nobody tries it again");
        drop(thread);
    }
}
