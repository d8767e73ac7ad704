//! The threads themselves: their start, and their end.

use std::io;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use super::executor::Core;
use super::wake::Shared;
use super::{Remote, Settings, polling};
use crate::threads::{self, Kind};

/// A running I/O thread. Dropping it asks the thread to end, drains its ring and joins it.
///
/// Tasks that still run are dropped. Operations that the host does not finish hold the drop up.
pub struct IoThread {
    remote: Remote,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts a thread called `name` (at most 15 bytes are visible in the system).
    ///
    /// Fails, saying what to do, when the host offers no io_uring.
    pub fn start(name: &str) -> io::Result<Self> {
        Self::with(name, Settings::default())
    }

    /// As [`IoThread::start`], with settings.
    pub fn with(name: &str, settings: Settings) -> io::Result<Self> {
        Self::told(name, settings, |e| {
            tracing::error!("an I/O thread ends because its io_uring failed: {e}");
        })
    }

    /// As [`IoThread::with`]. `failed` is called on the thread should its io_uring fail later: then the thread ends, and nothing
    /// serves what it had.
    pub fn told(
        name: &str,
        settings: Settings,
        failed: impl FnOnce(io::Error) + Send + 'static,
    ) -> io::Result<Self> {
        let Settings { polling, cpus, workers } = settings;
        let shared = Arc::new(Shared::new()?);
        let remote = Remote { shared: shared.clone() };
        let (started, result) = mpsc::sync_channel(1);
        let main = move || match pin(&cpus).and_then(|()| Core::new(shared, polling, &workers)) {
            Ok(core) => {
                let _ = started.send(Ok(()));
                serve(core, failed);
            }
            Err(e) => drop(started.send(Err(e))),
        };
        let thread = threads::spawn(Kind::Io, name, main)?;
        let thread = Self { remote, thread: Some(thread) };
        match result.recv() {
            Ok(result) => result.map(|()| thread),
            Err(_) => Err(io::Error::other("an I/O thread ended at once")),
        }
    }

    /// A handle for other threads.
    pub fn remote(&self) -> Remote {
        self.remote.clone()
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.remote.shared.post(|inbox| inbox.stop = true);
        let ended = self.thread.take().map(JoinHandle::join);
        if let Some(Err(panic)) = ended
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// The body of an I/O thread. Cleans up also when a task panics.
fn serve(core: Rc<Core>, failed: impl FnOnce(io::Error)) {
    struct ShutDown(Rc<Core>);
    impl Drop for ShutDown {
        fn drop(&mut self) {
            self.0.shut_down();
        }
    }
    let guard = ShutDown(core);
    if let Err(e) = guard.0.run() {
        // At once: the kernel may never let go of what is to be cleaned up.
        failed(e);
    }
}

/// Restricts the calling thread to these CPUs; to none when there are none.
fn pin(cpus: &[usize]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    polling::set_affinity(cpus).map_err(|e| {
        let list: Vec<String> = cpus.iter().map(ToString::to_string).collect();
        let what = format!(
            "this process may not run on CPU {} ({e}); choose among those of Cpus_allowed_list in /proc/self/status",
            list.join(", ")
        );
        io::Error::new(e.kind(), what)
    })
}
