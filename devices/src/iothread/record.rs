//! What an I/O thread does to the files of the host, in order: from this, tests model what a loss of power leaves.
//!
//! A change is noted when the kernel may get it and when it has ended, a sync likewise. What the page cache or the device
//! does in between is for the model to choose, see [`crate::testing::power`].

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Io;
use super::op::{Op, segments};

/// Bytes of a write are kept in parts of this many, but for those that are zeros.
const PART: usize = 4096;

/// A file of the host, by device and number: all descriptors of it are one.
pub type FileId = (u64, u64);

/// A part of a write: where it begins, in the file, and its bytes.
pub type Part = (u64, Box<[u8]>);

/// What is asked of a file.
#[derive(Clone, Debug)]
pub enum Change {
    /// A write of `len` bytes at `at`.
    Write {
        /// Where, in bytes.
        at: u64,
        /// How many bytes.
        len: u64,
        /// The parts that are not zeros.
        parts: Vec<Part>,
        /// It is stable when it has ended (RWF_DSYNC).
        stable: bool,
    },
    /// A range becomes zeros (fallocate(2)).
    Zero {
        /// Where, in bytes.
        at: u64,
        /// How many bytes.
        len: u64,
    },
    /// The file becomes so long (ftruncate(2)).
    Resize(u64),
    /// What has ended before becomes stable (fdatasync(2)); with the name of the barrier that it is, if it has one.
    Sync(Option<&'static str>),
}

/// A moment of a recording.
#[derive(Clone, Debug)]
pub enum Event {
    /// From here on a change may be in the file.
    Begin {
        /// Names it until it ends.
        id: u64,
        /// Of what.
        file: FileId,
        /// What is to be done.
        change: Change,
    },
    /// It has ended.
    End {
        /// Which.
        id: u64,
        /// Whether it went well.
        good: bool,
    },
}

#[derive(Default)]
struct Log {
    events: Vec<Event>,
    next: u64,
    name: Option<&'static str>,
}

/// A recording. Clones share it; it may be used by several I/O threads.
#[derive(Clone, Default)]
pub struct Recorder(Arc<Mutex<Log>>);

impl Recorder {
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A recording of what was not done by an I/O thread.
    pub fn starting_with(events: impl IntoIterator<Item = Event>) -> Self {
        let recorder = Self::default();
        recorder.lock().events.extend(events);
        recorder
    }

    /// How many events there are: a moment, as what a client asks for and is told is dated.
    pub fn now(&self) -> usize {
        self.lock().events.len()
    }

    /// Takes all events.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.lock().events)
    }

    fn begin(&self, file: &File, change: Change) -> Option<u64> {
        let meta = file.metadata().ok()?;
        let mut log = self.lock();
        let id = log.next;
        log.next += 1;
        log.events.push(Event::Begin { id, file: (meta.dev(), meta.ino()), change });
        Some(id)
    }

    fn end(&self, id: u64, good: bool) {
        self.lock().events.push(Event::End { id, good });
    }
}

/// The recorder of a ring, with what is under way there.
#[derive(Default)]
pub(super) struct Tape {
    recorder: Option<Recorder>,
    running: HashMap<u32, u64>,
}

impl Tape {
    /// The operation of slot `index` is queued.
    pub(super) fn begin(&mut self, index: u32, op: &Op) {
        let Some(recorder) = &self.recorder else { return };
        let (file, change) = match op {
            Op::Write { file, at, mem, first, stable, .. } => {
                let (len, parts) = parts(*at, segments(mem, *first));
                (file, Change::Write { at: *at, len, parts, stable: *stable })
            }
            Op::Allocate { file, at, len, .. } => (file, Change::Zero { at: *at, len: *len }),
            Op::Sync { file, .. } => (file, Change::Sync(recorder.lock().name.take())),
            _ => return,
        };
        if let Some(id) = recorder.begin(file, change) {
            self.running.insert(index, id);
        }
    }

    /// It has ended, also when nobody waits for it any more.
    pub(super) fn end(&mut self, index: u32, result: i32) {
        if let (Some(recorder), Some(id)) = (&self.recorder, self.running.remove(&index)) {
            recorder.end(id, result >= 0);
        }
    }
}

/// Length of a write, and its parts that are not zeros.
fn parts(at: u64, list: &[libc::iovec]) -> (u64, Vec<Part>) {
    let mut bytes = Vec::with_capacity(list.iter().map(|part| part.iov_len).sum());
    for part in list {
        // SAFETY: the operation owns this memory until its end, and in tests nobody writes to it meanwhile.
        #[allow(unsafe_code)]
        let part = unsafe { std::slice::from_raw_parts(part.iov_base.cast::<u8>(), part.iov_len) };
        bytes.extend_from_slice(part);
    }
    let whole = bytes.len() as u64;
    let parts = (0..).step_by(PART).zip(bytes.chunks(PART));
    let parts = parts.filter(|(_, part)| part.iter().any(|byte| *byte != 0));
    (whole, parts.map(|(place, part)| (at + place, part.into())).collect())
}

impl Io {
    /// From now on `recorder` notes what this thread does to files.
    pub fn record(&self, recorder: &Recorder) {
        self.core.ring.borrow_mut().tape.recorder = Some(recorder.clone());
    }

    /// The next sync of this thread is the barrier `name`.
    pub(crate) fn name_sync(&self, name: &'static str) {
        if let Some(recorder) = &self.core.ring.borrow().tape.recorder {
            recorder.lock().name = Some(name);
        }
    }

    /// A helper thread is about to make `file` so long. What comes back must be called when it has.
    pub(crate) fn note_resize(&self, file: &File, len: u64) -> impl FnOnce(bool) + use<> {
        let recorder = self.core.ring.borrow().tape.recorder.clone();
        let noted =
            recorder.and_then(|recorder| Some((recorder.begin(file, Change::Resize(len))?, recorder)));
        move |good| {
            if let Some((id, recorder)) = noted {
                recorder.end(id, good);
            }
        }
    }
}
