//! Lines for people, written by a thread of their own: whoever has something to say never waits for who reads it.
//!
//! A pipe whose reader stands still, a stopped terminal or a log file on a server that is away would otherwise hold up disks,
//! vCPUs and the end of the process, for as long as that lasts.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use devices::threads::{self, Kind};

use crate::output_file;

/// Bytes that wait at most: what a developer has traced in the time that the thread may have to wait for a processor.
const ROOM: usize = 4 << 20;
/// What a line takes besides its text.
const EACH: usize = 64;

/// How long the end of the process waits for who reads the lines.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who is to have written everything before the process ends.
static WRITERS: Mutex<Vec<Arc<Lines>>> = Mutex::new(Vec::new());

/// Whether the terminal is raw: a line feed alone would not go back to the first column.
static RAW_TERMINAL: AtomicBool = AtomicBool::new(false);

/// Says whether the console has put the terminal into raw mode.
pub fn set_raw_terminal(raw: bool) {
    RAW_TERMINAL.store(raw, Ordering::Relaxed);
}

/// What ends a line on standard error now, before its line feed.
pub(crate) fn line_end() -> &'static str {
    static TERMINAL: OnceLock<bool> = OnceLock::new();
    let raw = RAW_TERMINAL.load(Ordering::Relaxed) && *TERMINAL.get_or_init(|| io::stderr().is_terminal());
    if raw { "\r" } else { "" }
}

/// Lines on their way to one place.
pub(crate) struct Lines {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    taken: usize,
    /// How many found no room since.
    lost: u64,
    /// One is being written.
    busy: bool,
}

impl Waiting {
    fn put(&mut self, line: Vec<u8>) {
        self.taken += line.len() + EACH;
        self.lines.push_back(line);
    }

    /// Says what was lost, at its place.
    fn tell_lost(&mut self) {
        let lost = std::mem::take(&mut self.lost);
        if lost > 0 {
            let end = line_end();
            let what = if lost == 1 { "1 line was" } else { &format!("{lost} lines were") };
            self.put(format!("vmm: {what} lost: nothing took them in time{end}\n").into_bytes());
        }
    }
}

impl Lines {
    /// Starts the thread that hands each line to `write`, which may take for ever.
    pub(crate) fn start(name: &str, mut write: impl FnMut(&[u8]) + Send + 'static) -> io::Result<Arc<Self>> {
        let lines = Arc::new(Self { waiting: Mutex::default(), changed: Condvar::new() });
        let queue = lines.clone();
        threads::spawn(Kind::Log, name, move || {
            loop {
                let line = queue.next();
                write(&line);
            }
        })?;
        WRITERS.lock().unwrap_or_else(PoisonError::into_inner).push(lines.clone());
        Ok(lines)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The line before is written.
    fn next(&self) -> Vec<u8> {
        let mut waiting = self.lock();
        waiting.busy = false;
        self.changed.notify_all();
        loop {
            if waiting.lines.is_empty() {
                waiting.tell_lost();
            }
            if let Some(line) = waiting.lines.pop_front() {
                waiting.taken -= line.len() + EACH;
                waiting.busy = true;
                return line;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Has a line written, or counts it as lost. Never waits for the reader.
    pub(crate) fn push(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.taken + line.len() + EACH > ROOM {
            waiting.lost += 1;
            return;
        }
        waiting.tell_lost();
        waiting.put(line.to_vec());
        self.changed.notify_all();
    }

    /// Waits until all is written; not beyond `until`.
    fn settle(&self, until: Instant) {
        let mut waiting = self.lock();
        while waiting.busy || !waiting.lines.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            waiting = self.changed.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Those on their way to standard error.
static STANDARD_ERROR: OnceLock<Option<Arc<Lines>>> = OnceLock::new();

/// Starts the thread that writes to standard error, if it is not there: in the sandbox who has something to say may be one
/// that starts none.
pub(crate) fn prepare() -> Option<&'static Lines> {
    let start = || {
        // A descriptor of its own: the library's has a lock, which a thread that panics takes.
        let mut file = File::from(io::stderr().as_fd().try_clone_to_owned().ok()?);
        let regular = output_file::is_regular(&file);
        let write = move |line: &[u8]| {
            if regular {
                output_file::follow(&file);
            }
            // Where standard error is closed there is nobody left to tell.
            drop(file.write_all(line));
        };
        Lines::start("log", write).ok()
    };
    STANDARD_ERROR.get_or_init(start).as_deref()
}

/// Has a line written to standard error.
pub(crate) fn standard_error(line: &[u8]) {
    match prepare() {
        Some(lines) => lines.push(line),
        None => drop(io::stderr().write_all(line)),
    }
}

/// Waits until what was said is written, for a second at most. To be called before the process ends.
pub fn settle() {
    let until = Instant::now() + PATIENCE;
    let writer = |at: usize| WRITERS.lock().unwrap_or_else(PoisonError::into_inner).get(at).cloned();
    // Twice: one may have a last word to say through another.
    for _ in 0..2 {
        (0..).map_while(writer).for_each(|lines| lines.settle(until));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn nobody_waits_for_a_reader_and_what_is_lost_is_said_at_its_place() {
        let (written, lines) = mpsc::sync_channel(0);
        let queue = Lines::start("test", move |line| {
            written.send(String::from_utf8_lossy(line).into_owned()).unwrap()
        })
        .unwrap();
        let begin = Instant::now();
        queue.push(b"first\n");
        while !queue.lock().busy {
            thread::yield_now();
        }
        // 1 KiB each with what it takes besides.
        let line = [&[b'x'; 1023 - EACH][..], b"\n"].concat();
        let fit = ROOM >> 10;
        (0..fit + 7).for_each(|_| queue.push(&line));
        queue.settle(begin + Duration::from_millis(100));
        assert!(begin.elapsed() < Duration::from_secs(30));
        assert_eq!(lines.recv().unwrap(), "first\n");
        for _ in 0..fit {
            assert_eq!(lines.recv().unwrap().as_bytes(), line);
        }
        assert_eq!(lines.recv().unwrap(), "vmm: 7 lines were lost: nothing took them in time\n");
        let reader = thread::spawn(move || lines.iter().count());
        queue.push(b"last\n");
        queue.settle(Instant::now() + Duration::from_secs(30));
        let waiting = queue.lock();
        assert!(waiting.lines.is_empty() && !waiting.busy);
        drop((waiting, reader));
    }
}
