//! The file of the debug console. A thread of its own writes it, so that no virtual CPU waits for the host's file system.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use devices::platform::sink::Sink;
use devices::threads::{self, Kind};

use crate::output_file::{self, OutputError};

/// Bytes that wait for the host at most.
const KEPT: usize = 1 << 20;
/// From one write to the next: firmware prints byte by byte. So much is missing in the file when the process is killed.
const PAUSE: Duration = Duration::from_millis(10);
/// How long the end of the machine waits for the host.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// The file.
pub struct DebugFile {
    shared: Arc<Shared>,
    /// Until the machine starts.
    file: Mutex<Option<File>>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// The thread sleeps until there are any.
    idle: bool,
    /// Bytes that found no room since the host last took some.
    lost: u64,
    /// There is a thread that writes.
    written: bool,
    ended: bool,
}

impl DebugFile {
    /// Opens the file, and leaves what is in it for now.
    pub fn open(path: &Path) -> Result<Self> {
        let file = output_file::open(path).map_err(|error| no_file(path, &error))?;
        Ok(Self { shared: Arc::default(), file: Mutex::new(Some(file)) })
    }

    /// What [`Self::open`] would find wrong. Changes nothing.
    pub fn check(path: &Path) -> Result<()> {
        output_file::look(path).map_err(|error| no_file(path, &error))
    }

    /// The machine starts: takes away what an earlier run left.
    pub fn begin(&self) -> Result<()> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(file) = file else { return Ok(()) };
        output_file::empty(&file).context("boot.debug_log: cannot empty the file")?;
        self.shared.start(file).context("boot.debug_log: cannot start the thread that writes it")
    }

    /// Nothing more comes: what was printed is in the file then, unless the host does not answer.
    pub fn end(&self) {
        let mut waiting = self.shared.lock();
        waiting.ended = true;
        self.shared.changed.notify_all();
        let over = self.shared.changed.wait_timeout_while(waiting, END_PATIENCE, |waiting| waiting.written);
        if over.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            tracing::error!("boot.debug_log: the last output is lost: the host's disk does not answer");
        }
    }
}

fn no_file(path: &Path, error: &OutputError) -> anyhow::Error {
    anyhow!("boot.debug_log: {}: {error}", path.display())
}

impl Sink for DebugFile {
    fn put(&self, bytes: &[u8]) {
        self.shared.put(bytes);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, bytes: &[u8]) {
        let mut waiting = self.lock();
        let room = bytes.len().min(KEPT.saturating_sub(waiting.bytes.len()));
        waiting.bytes.extend(bytes.iter().take(room));
        let lost = bytes.len() - room;
        if lost > 0 {
            if waiting.lost == 0 {
                devices::log_limited!(
                    warn,
                    "boot.debug_log: the host's disk takes nothing; output is lost until it does"
                );
            }
            waiting.lost = waiting.lost.saturating_add(lost as u64);
        }
        if std::mem::take(&mut waiting.idle) {
            drop(waiting);
            self.changed.notify_all();
        }
    }

    fn start(self: &Arc<Self>, to: impl Write + Send + 'static) -> io::Result<()> {
        self.lock().written = true;
        let own = self.clone();
        let thread = threads::spawn(Kind::DebugLog, "debug-log", move || own.write(to));
        thread.map(drop).inspect_err(|_| self.lock().written = false)
    }

    /// Writes what comes until the end.
    fn write(&self, mut to: impl Write) {
        let mut taken = Vec::new();
        loop {
            let mut waiting = self.lock();
            waiting.idle = true;
            let idle = |waiting: &mut Waiting| waiting.bytes.is_empty() && !waiting.ended;
            let waited = self.changed.wait_while(waiting, idle);
            waiting = waited.unwrap_or_else(PoisonError::into_inner);
            waiting.idle = false;
            if waiting.bytes.is_empty() {
                waiting.written = false;
                drop(waiting);
                return self.changed.notify_all();
            }
            std::mem::swap(&mut taken, &mut waiting.bytes);
            drop(waiting);
            if let Err(error) = to.write_all(&taken) {
                devices::log_limited!(warn, "boot.debug_log: {error}");
            }
            taken.clear();
            waiting = self.lock();
            let lost = std::mem::take(&mut waiting.lost);
            if lost > 0 {
                devices::log_limited!(warn, "boot.debug_log: {lost} bytes of output were lost");
            }
            let paused = self.changed.wait_timeout_while(waiting, PAUSE, |waiting| !waiting.ended);
            drop(paused.unwrap_or_else(PoisonError::into_inner));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// A file system that hangs until it is told to go on.
    struct Hung(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Hung {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().unwrap();
            self.1.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_who_prints_waits_for_the_host() {
        let shared = Arc::<Shared>::default();
        let ((go_on, wait), (tell, told)) = (mpsc::channel(), mpsc::channel());
        shared.start(Hung(wait, tell)).unwrap();
        shared.put(b"first");
        while !shared.lock().bytes.is_empty() {
            std::thread::yield_now();
        }
        let begin = Instant::now();
        let text: Vec<u8> = (0..2 * KEPT).map(|at| (at / 7) as u8).collect();
        text.chunks(4096).for_each(|part| shared.put(part));
        assert!(begin.elapsed() < Duration::from_secs(5), "a virtual CPU stands still");
        assert_eq!(shared.lock().lost, KEPT as u64);
        let file = DebugFile { shared, file: Mutex::default() };
        file.end();
        (0..2).for_each(|_| go_on.send(()).unwrap());
        assert_eq!(told.recv().unwrap(), b"first");
        assert_eq!(told.recv().unwrap(), text[..KEPT], "the oldest, in order");
    }

    #[test]
    fn what_was_printed_is_in_the_file_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("debug.log");
        std::fs::write(&path, "of an earlier run").unwrap();
        let file = DebugFile::open(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"of an earlier run");
        file.begin().unwrap();
        (0..1000).for_each(|n| file.put(format!("line {n}\n").as_bytes()));
        file.end();
        let lines: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), lines);
        // A machine that never started.
        DebugFile::open(&directory.path().join("other.log")).unwrap().end();
    }
}
