//! The event log of a MegaRAID SAS board in a file, so that it outlives the process.
//!
//! A header of 512 bytes, then as many slots of 512 bytes as the log has records, each in the place that its number
//! gives it, then what the guest has set of the board, in blocks of 512 bytes if it has set anything.
//! Header, slots and blocks end with a checksum: what a crash leaves half-written is left out at the next start. A
//! thread writes, so that the threads that serve the guest never wait for the host's disk. What the thread had not written
//! when the process was killed is lost. Numbers are not used twice: after a process that did not close the file they go
//! on a whole log later. More than that cannot be promised where more events came while the disk stood still, or between two
//! writes: a guest makes as many as it likes, and the thread writes a few times a second.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use devices::threads::{self, Kind};
use hba_megasas::{EVENT_RECORDS, EventMarks, EventRecord, EventStore, KeptEvents};

use crate::output_file::{self, OutputError};

const MAGIC: &[u8; 8] = b"MFIEVLG2";
/// Bytes of the header and of each slot: what disks write in one piece.
const BLOCK: usize = 512;
/// Offset of the checksum in a block.
const CHECKSUM: usize = BLOCK - 8;
/// How blocks with what the guest has set begin.
const SETTINGS: &[u8; 8] = b"MFISET01";
/// Bytes of it in each block: a multiple of what belongs together, so that each setting is the old or the new one.
const PART: usize = 448;
/// Blocks of it at most.
const PARTS: usize = 64;
/// How long the end waits for the host's disk: what ends after this log, disk images above all, is worth more.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// From one write to the next: each makes the host's disk stable, whose other users would feel a guest that makes events in a loop.
const PAUSE: Duration = Duration::from_millis(200);

type Block = [u8; BLOCK];

/// What is to be written.
#[derive(Default)]
struct Pending {
    /// By slot: of two for one slot the newer is enough, so a writer that stands still makes this no larger than a log.
    records: BTreeMap<usize, (u32, EventRecord)>,
    marks: Option<EventMarks>,
    settings: Option<Vec<u8>>,
    /// The records in the file are to go, before others are written.
    forget: bool,
    /// The newest number that was handed in, and the newest of those before it that are all in the file.
    newest: u32,
    written: u32,
    /// It was said that the file is a whole log behind.
    behind: bool,
    ended: bool,
    /// All is written, and the thread is gone.
    over: bool,
}

struct Shared {
    pending: Mutex<Pending>,
    /// There is something to do, or something was done.
    changed: Condvar,
}

/// The file.
pub(super) struct EventFile {
    shared: Arc<Shared>,
    kept: KeptEvents,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl EventFile {
    /// Looks at what [`Self::open`] would find.
    pub(super) fn check(path: &Path) -> io::Result<()> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        // For a moment only, which a start waits for.
        file.try_lock_shared().map_err(in_use)?;
        if file.metadata()?.len() > 0 {
            read(&file)?;
        }
        Ok(())
    }

    /// Opens the file or makes it, for this process alone.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(output_file::MODE);
        let file = options.open(path)?;
        output_file::lock(&file).map_err(in_use)?;
        let kept = if file.metadata()?.len() == 0 { KeptEvents::default() } else { read(&file)? };
        // Open from now on: whoever finds it so knows that its process did not end well.
        file.write_all_at(&header(kept.marks, 0), 0)?;
        file.sync_data()?;
        let newest = kept.next.saturating_sub(1);
        let pending = Pending { newest, written: newest, ..Pending::default() };
        let shared = Arc::new(Shared { pending: Mutex::new(pending), changed: Condvar::new() });
        let (writer, name) = (shared.clone(), path.display().to_string());
        let (marks, settings) = (kept.marks, kept.settings.clone());
        let write = move || writer.write(&file, &name, marks, settings);
        let thread = threads::spawn(Kind::EventLog, "event-log", write)?;
        Ok(Self { shared, kept, path: path.into(), thread: Some(thread) })
    }
}

/// Why the file cannot be had alone.
fn in_use(error: TryLockError) -> io::Error {
    match error {
        TryLockError::WouldBlock => io::Error::other(OutputError::InUse),
        TryLockError::Error(error) => error,
    }
}

impl EventStore for EventFile {
    fn load(&mut self) -> KeptEvents {
        self.kept.clone()
    }

    fn keep(&mut self, number: u32, record: &EventRecord) {
        let mut pending = self.shared.lock();
        pending.records.insert(number as usize % EVENT_RECORDS, (number, *record));
        pending.newest = number;
        let behind = number.wrapping_sub(pending.written) > EVENT_RECORDS as u32;
        if behind && !std::mem::replace(&mut pending.behind, behind) {
            let path = self.path.display();
            devices::log_limited!(
                warn,
                "event log {path} is {EVENT_RECORDS} events behind: the guest makes very many, or the host's disk does not answer"
            );
        }
        self.shared.changed.notify_all();
    }

    fn keep_marks(&mut self, marks: EventMarks) {
        self.shared.lock().marks = Some(marks);
        self.shared.changed.notify_all();
    }

    fn keep_settings(&mut self, settings: &[u8]) {
        self.shared.lock().settings = Some(settings.to_vec());
        self.shared.changed.notify_all();
    }

    fn forget_events(&mut self) {
        let mut pending = self.shared.lock();
        pending.records.clear();
        (pending.marks, pending.forget) = (Some(EventMarks::default()), true);
        (pending.newest, pending.written, pending.behind) = (0, 0, false);
        self.shared.changed.notify_all();
    }
}

impl Drop for EventFile {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let mut pending = self.shared.lock();
        pending.ended = true;
        self.shared.changed.notify_all();
        let waited = self.shared.changed.wait_timeout_while(pending, END_PATIENCE, |pending| !pending.over);
        let over = waited.unwrap_or_else(PoisonError::into_inner).0.over;
        if over {
            // It never panics, and there would be nobody to tell.
            drop(thread.join());
        } else {
            let path = self.path.display();
            tracing::error!("event log {path} is not closed: the host's disk does not answer");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is pending until the end.
    fn write(&self, file: &File, name: &str, mut marks: EventMarks, mut settings: Vec<u8>) {
        loop {
            let idle = |pending: &mut Pending| {
                let nothing = pending.records.is_empty() && pending.settings.is_none();
                nothing && pending.marks.is_none() && !pending.ended
            };
            let mut pending =
                self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
            let (records, newest) = (std::mem::take(&mut pending.records), pending.newest);
            let (new_marks, new_settings) = (pending.marks.take(), pending.settings.take());
            let forget = std::mem::take(&mut pending.forget);
            let ended = pending.ended;
            drop(pending);
            marks = new_marks.unwrap_or(marks);
            let is_set = new_settings.is_some();
            settings = new_settings.unwrap_or(settings);
            // Slots without a checksum.
            let emptied =
                if forget { file.write_all_at(&vec![0; BLOCK * EVENT_RECORDS], at(0)) } else { Ok(()) };
            // The records before the header that counts on them.
            let mut records = records.into_iter();
            let mut result = emptied.and_then(|()| {
                records.try_for_each(|(slot, (_, record))| file.write_all_at(&block(&record), at(slot)))
            });
            let header = header(marks, if ended { newest.wrapping_add(1) } else { 0 });
            // Emptied by somebody else, perhaps since the records were written: without a header it would be refused at the next
            // start, and the guest does not set again what it has set.
            let found = read_block(file, 0);
            let headless = !found.is_some_and(|found| found.starts_with(MAGIC));
            if result.is_ok() && (is_set || headless) {
                let mut parts = (EVENT_RECORDS..).zip(settings.chunks(PART).take(PARTS));
                result = parts.try_for_each(|(slot, part)| {
                    file.write_all_at(&block(&[&SETTINGS[..], part].concat()), at(slot))
                });
            }
            if result.is_ok() && found != Some(header) {
                result = file.write_all_at(&header, 0);
            }
            if let Err(error) = result.and_then(|()| file.sync_data()) {
                // A log that cannot be kept is still a log.
                devices::log_limited!(warn, "event log {name}: not written: {error}");
            }
            let mut pending = self.lock();
            // Not beyond the newest: numbers may have begun anew.
            (pending.written, pending.behind, pending.over) = (newest.min(pending.newest), false, ended);
            self.changed.notify_all();
            if ended {
                return;
            }
            let paused = self.changed.wait_timeout_while(pending, PAUSE, |pending| !pending.ended);
            drop(paused.unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// Where a slot is.
fn at(slot: usize) -> u64 {
    (BLOCK * (1 + slot)) as u64
}

fn block(content: &[u8]) -> Block {
    let mut block = [0; BLOCK];
    block.iter_mut().zip(content).for_each(|(to, from)| *to = *from);
    let sum = checksum(&block);
    block.iter_mut().skip(CHECKSUM).zip(sum.to_le_bytes()).for_each(|(to, from)| *to = from);
    block
}

/// `next`: the number that the next record has; 0 while the file is open.
fn header(marks: EventMarks, next: u32) -> Block {
    let EventMarks { clear, shutdown, boot } = marks;
    let words = [clear, shutdown, boot, next].map(u32::to_le_bytes);
    block(&[MAGIC, words.as_flattened()].concat())
}

/// FNV-1a of all but the checksum.
fn checksum(block: &Block) -> u64 {
    block
        .iter()
        .take(CHECKSUM)
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn word(block: &Block, at: usize) -> u32 {
    block.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// A block that is whole.
fn read_block(file: &File, at: u64) -> Option<Block> {
    let mut block = [0; BLOCK];
    file.read_exact_at(&mut block, at).ok()?;
    (block.get(CHECKSUM..) == Some(&checksum(&block).to_le_bytes())).then_some(block)
}

/// The record in a slot, if it is one of that slot.
fn read_record(file: &File, slot: usize) -> Option<EventRecord> {
    let block = read_block(file, at(slot))?;
    let record: &EventRecord = block.first_chunk()?;
    (word(&block, 0) as usize % EVENT_RECORDS == slot).then_some(*record)
}

/// Whether a file has nothing in the place of a header, records of ours, and no more than an event log has. An empty disk has no records.
fn is_beheaded(file: &File) -> io::Result<bool> {
    let mut first = [0; BLOCK];
    file.read_exact_at(&mut first, 0)?;
    let fits = file.metadata()?.len() <= at(EVENT_RECORDS + PARTS);
    Ok(fits && first == [0; BLOCK] && (0..EVENT_RECORDS).any(|slot| read_record(file, slot).is_some()))
}

fn read(file: &File) -> io::Result<KeptEvents> {
    let found = read_block(file, 0).filter(|header| header.starts_with(MAGIC));
    let header = match found {
        Some(header) => header,
        // Somebody emptied it, and the process was killed when it had written records and no header yet.
        None if is_beheaded(file)? => header(EventMarks::default(), 0),
        None => {
            let message = "it is no event log of this program; choose another path";
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
    };
    let marks = EventMarks { clear: word(&header, 8), shutdown: word(&header, 12), boot: word(&header, 16) };
    let mut records: Vec<EventRecord> =
        (0..EVENT_RECORDS).filter_map(|slot| read_record(file, slot)).collect();
    let number = |record: &EventRecord| record.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let newest = records.iter().map(number).max().unwrap_or(0).max(marks.clear).max(marks.boot);
    records.retain(|record| newest - number(record) < EVENT_RECORDS as u32);
    let next = match word(&header, 20) {
        0 if newest == 0 => 1,
        // The process was killed: some that drivers have seen may not have been written.
        0 => newest.saturating_add(EVENT_RECORDS as u32 + 1),
        next => next.max(newest.saturating_add(1)),
    };
    let part = |slot| {
        let block = read_block(file, at(slot)).filter(|block| block.starts_with(SETTINGS))?;
        block.get(SETTINGS.len()..).and_then(|rest| rest.first_chunk::<PART>()).copied()
    };
    let settings = (EVENT_RECORDS..EVENT_RECORDS + PARTS).map_while(part).flatten().collect();
    Ok(KeptEvents { records, marks, next, settings })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u32) -> EventRecord {
        let mut record = [number as u8; 256];
        record[..4].copy_from_slice(&number.to_le_bytes());
        record
    }

    fn numbers(kept: &KeptEvents) -> Vec<u32> {
        let mut all: Vec<_> =
            kept.records.iter().map(|r| u32::from_le_bytes(r[..4].try_into().unwrap())).collect();
        all.sort_unstable();
        all
    }

    fn fill(path: &Path, numbers: std::ops::RangeInclusive<u32>, marks: EventMarks) {
        let mut file = EventFile::open(path).unwrap();
        numbers.for_each(|number| file.keep(number, &record(number)));
        file.keep_marks(marks);
    }

    /// Emptied by somebody else; and killed before the header was there again.
    #[test]
    fn records_without_a_header_are_those_of_a_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        fill(&path, 1..=3, EventMarks::default());
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        file.write_all_at(&[0; BLOCK], 0).unwrap();
        EventFile::check(&path).unwrap();
        assert_eq!(numbers(&EventFile::open(&path).unwrap().load()), [1, 2, 3]);
        // An empty disk is none, and neither is what is longer.
        for len in [BLOCK as u64, 1 << 20] {
            file.set_len(0).unwrap();
            file.set_len(len).unwrap();
            assert!(EventFile::check(&path).is_err(), "{len} zeros");
        }
        file.set_len(0).unwrap();
        fill(&path, 1..=3, EventMarks::default());
        file.write_all_at(&[0; BLOCK], 0).unwrap();
        file.set_len(1 << 20).unwrap();
        assert!(EventFile::check(&path).is_err());
    }

    #[test]
    fn what_was_kept_is_there_again() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("events");
        let marks = EventMarks { clear: 3, shutdown: 299, boot: 7 };
        fill(&path, 1..=1000, marks);
        let mut file = EventFile::open(&path).unwrap();
        let kept = file.load();
        assert_eq!((kept.marks, kept.next), (marks, 1001));
        assert_eq!(numbers(&kept), (745..=1000).collect::<Vec<_>>());
        assert!(kept.records.contains(&record(900)));
        let refused = EventFile::open(&path).err().unwrap().to_string();
        assert_eq!(refused, "another process writes to it; end it or choose another path");
        assert_eq!(EventFile::check(&path).unwrap_err().to_string(), refused);
    }

    /// As who rotates logs does, whom a pattern such as `*` leads here.
    #[test]
    fn a_file_that_was_emptied_is_an_event_log_still() {
        // Also between two writes: then the first of them is lost, and there is something behind.
        for between in [false, true] {
            let dir = tempfile::TempDir::new().unwrap();
            let path = dir.path().join("events");
            fill(&path, 1..=10, EventMarks { boot: 7, ..EventMarks::default() });
            EventFile::open(&path).unwrap().keep_settings(&[5; PART]);
            let mut file = EventFile::open(&path).unwrap();
            let other = OpenOptions::new().write(true).open(&path).unwrap();
            other.set_len(0).unwrap();
            if between {
                other.write_all_at(&block(&record(10)), at(10)).unwrap();
            }
            file.keep(11, &record(11));
            // What a process that is killed leaves.
            while file.shared.lock().written != 11 {
                std::thread::yield_now();
            }
            let kept = read(&File::open(&path).unwrap()).unwrap();
            let expected = if between { vec![10, 11] } else { vec![11] };
            assert_eq!((numbers(&kept), kept.marks.boot), (expected, 7));
            assert_eq!(kept.settings, [5; PART], "the guest does not set them again");
        }
    }

    #[test]
    fn what_the_guest_has_set_is_there_again() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("events");
        fill(&path, 1..=300, EventMarks::default());
        assert!(EventFile::open(&path).unwrap().load().settings.is_empty());
        let settings: Vec<u8> = (0..2240_u32).map(|at| (at % 251) as u8).collect();
        EventFile::open(&path).unwrap().keep_settings(&settings);
        let mut file = EventFile::open(&path).unwrap();
        assert_eq!((file.load().settings, file.load().next), (settings.clone(), 301));
        // A part that was only half written, and what comes after it.
        drop(file);
        let raw = File::options().write(true).open(&path).unwrap();
        raw.write_all_at(&[0; 256], at(EVENT_RECORDS + 2) + 100).unwrap();
        let kept = EventFile::open(&path).unwrap().load();
        assert_eq!((kept.settings.len(), numbers(&kept).len()), (2 * PART, 256));
        assert_eq!(kept.settings[..], settings[..2 * PART]);
    }

    #[test]
    fn a_disk_that_stands_still_is_not_waited_for() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("events");
        let mut file = EventFile::open(&path).unwrap();
        // A writer that does not come to it.
        let shared = Arc::new(Shared { pending: Mutex::default(), changed: Condvar::new() });
        let writer = std::mem::replace(&mut file.shared, shared.clone());
        let (done, over) = std::sync::mpsc::channel();
        let keeper = std::thread::spawn(move || {
            (1..=1000).for_each(|number| file.keep(number, &record(number)));
            done.send(()).unwrap();
            file
        });
        over.recv_timeout(Duration::from_secs(10)).expect("it waits for the disk");
        let pending = std::mem::take(&mut *shared.lock());
        assert!(pending.behind);
        // The disk is there again: it gets the newest of what came meanwhile, and nothing of before.
        let mut file = keeper.join().unwrap();
        *writer.lock() = pending;
        file.shared = writer;
        drop(file);
        let kept = EventFile::open(&path).unwrap().load();
        assert_eq!((numbers(&kept), kept.next), ((745..=1000).collect(), 1001));
    }

    #[test]
    fn numbers_go_on_behind_what_a_killed_process_may_have_used() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("events");
        fill(&path, 1..=10, EventMarks::default());
        // As the file of a process that was killed: still open.
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&header(EventMarks::default(), 0), 0).unwrap();
        let kept = EventFile::open(&path).unwrap().load();
        assert_eq!((numbers(&kept), kept.next), ((1..=10).collect(), 267));
    }

    /// Nothing else bounds how often a guest has the host's disk made stable.
    #[test]
    fn events_in_a_loop_are_written_a_few_times_a_second() {
        let dir = tempfile::TempDir::new().unwrap();
        let mut file = EventFile::open(&dir.path().join("events")).unwrap();
        let (begin, mut number, mut seen, mut rounds) = (std::time::Instant::now(), 0, 0, 0);
        while begin.elapsed() < Duration::from_secs(2) {
            number += 1;
            file.keep(number, &record(number));
            let written = file.shared.lock().written;
            rounds += u32::from(written != seen);
            seen = written;
            std::thread::sleep(Duration::from_micros(50));
        }
        assert!((1..=2 * 1000 / 200 + 2).contains(&rounds), "{rounds} times in two seconds");
    }

    #[test]
    fn what_was_forgotten_is_not_there_again() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("events");
        fill(&path, 4_294_900_000..=4_294_900_300, EventMarks { clear: 5, shutdown: 6, boot: 4_294_900_001 });
        let mut file = EventFile::open(&path).unwrap();
        assert_eq!(file.load().next, 4_294_900_301);
        file.keep_settings(&[7; PART]);
        file.forget_events();
        (1..=3).for_each(|number| file.keep(number, &record(number)));
        drop(file);
        let kept = EventFile::open(&path).unwrap().load();
        assert_eq!((numbers(&kept), kept.marks, kept.next), (vec![1, 2, 3], EventMarks::default(), 4));
        assert_eq!(kept.settings, [7; PART], "they are no events");
    }

    #[test]
    fn half_written_records_are_left_out() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("events");
        fill(&path, 1..=10, EventMarks::default());
        let file = File::options().write(true).open(&path).unwrap();
        // The second half of number 10 never came; number 4 is where another belongs; the file ends within a slot.
        file.write_all_at(&[0; 256], at(10) + 128).unwrap();
        file.write_all_at(&block(&record(5)), at(4)).unwrap();
        file.set_len(at(9) + 100).unwrap();
        let kept = EventFile::open(&path).unwrap().load();
        assert_eq!(numbers(&kept), [1, 2, 3, 5, 6, 7, 8]);
    }

    #[test]
    fn files_that_are_no_log_are_left_alone() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("disk.img");
        for content in [&b"x"[..], &[0; 4096], b"a text that somebody wrote, longer than a header"] {
            std::fs::write(&path, content).unwrap();
            assert!(EventFile::open(&path).is_err());
            assert_eq!(std::fs::read(&path).unwrap(), content);
        }
        assert!(EventFile::open(&dir.path().join("missing/events")).is_err());
    }
}
