//! The event log: a ring of records with sequence numbers that never go back.

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use zerocopy::FromZeros;

use super::journal::{Journal, Marks};
use crate::spec::event::{LogInfo, Record, arg};

/// Records kept.
pub(super) const CAPACITY: usize = 256;

/// Which events somebody wants (`megasas_evt_class_locale`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// First sequence number.
    pub(crate) from: u32,
    /// Least importance.
    pub(crate) class: i8,
    /// Any of these.
    pub(crate) locale: u16,
}

impl Filter {
    /// From the words of a mailbox: sequence number, then class and locale.
    pub(crate) fn new(from: u32, class_locale: u32) -> Self {
        let [low, high, _, class] = class_locale.to_le_bytes();
        Self { from, class: i8::from_le_bytes([class]), locale: u16::from_le_bytes([low, high]) }
    }

    fn takes(&self, record: &Record) -> bool {
        record.seq.get() >= self.from && record.class >= self.class && record.locale.get() & self.locale != 0
    }
}

/// What an event says besides its text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) code: u32,
    pub(crate) locale: u16,
    pub(crate) class: i8,
    pub(crate) subject: Subject,
}

/// What an event is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Subject {
    /// Nothing in particular.
    None,
    /// A physical drive: device ID, enclosure index, slot.
    Physical(u16, u8, u8),
    /// A logical drive: target, index.
    Logical(u16, u8),
}

/// The log.
#[derive(Debug)]
pub(crate) struct Log {
    records: VecDeque<Record>,
    next: u32,
    marks: Marks,
    /// Where the log is kept, if anywhere.
    journal: Option<Journal>,
}

impl Default for Log {
    fn default() -> Self {
        Self { records: VecDeque::with_capacity(CAPACITY), next: 1, marks: Marks::default(), journal: None }
    }
}

impl Log {
    /// The log that the file at `path` keeps, for this process alone; a new one if there is no file.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let (journal, records, marks) = Journal::open(path)?;
        let newest = records.last().map_or(marks.clear, |record| record.seq.get());
        Ok(Self { records: records.into(), next: newest.wrapping_add(1), marks, journal: Some(journal) })
    }

    /// Appends an event that happened at `time`, in seconds since 2000; returns its sequence number.
    pub(crate) fn append(&mut self, time: u32, event: &Event, text: &str) -> u32 {
        let seq = self.next;
        self.next = seq.wrapping_add(1);
        let mut record = Record::new_zeroed();
        record.seq = seq.into();
        record.time = time.into();
        record.code = event.code.into();
        record.locale = event.locale.into();
        record.class = event.class;
        let (kind, args) = match event.subject {
            Subject::None => (arg::NONE, [0; 4]),
            Subject::Physical(id, enclosure, slot) => {
                let [low, high] = id.to_le_bytes();
                (arg::PD, [low, high, enclosure, slot])
            }
            Subject::Logical(target, index) => {
                let [low, high] = target.to_le_bytes();
                (arg::LD, [low, high, index, 0])
            }
        };
        record.arg_type = kind;
        record.args.iter_mut().zip(args).for_each(|(to, from)| *to = from);
        // One byte less than there is: the text always ends with a zero.
        let room = record.description.len() - 1;
        record.description.iter_mut().take(room).zip(text.bytes()).for_each(|(to, from)| *to = from);
        if self.records.len() >= CAPACITY {
            self.records.pop_front();
        }
        self.records.push_back(record);
        self.keep(|journal| journal.write(&record));
        seq
    }

    /// Notes that the firmware started with event `seq`.
    pub(crate) fn booted(&mut self, seq: u32) {
        self.marks.boot = seq;
        self.keep_marks();
    }

    /// Notes that the driver shut the controller down with event `seq`.
    pub(crate) fn shut_down(&mut self, seq: u32) {
        self.marks.shutdown = seq;
        self.keep_marks();
    }

    /// Forgets all records; sequence numbers go on.
    pub(crate) fn clear(&mut self) {
        self.records.clear();
        self.marks.clear = self.next.wrapping_sub(1);
        self.keep_marks();
    }

    fn keep_marks(&self) {
        self.keep(|journal| journal.write_marks(self.marks));
    }

    /// A log that cannot be kept is still a log.
    fn keep(&self, write: impl FnOnce(&Journal) -> io::Result<()>) {
        if let Some(Err(error)) = self.journal.as_ref().map(write) {
            devices::log_limited!(warn, "megasas: event log not written: {error}");
        }
    }

    /// The sequence numbers of interest.
    pub(crate) fn info(&self) -> LogInfo {
        let newest = self.next.wrapping_sub(1);
        LogInfo {
            newest: newest.into(),
            oldest: self.records.front().map_or(newest, |record| record.seq.get()).into(),
            clear: self.marks.clear.into(),
            shutdown: self.marks.shutdown.into(),
            boot: self.marks.boot.into(),
        }
    }

    /// How many records `filter` takes.
    pub(crate) fn count(&self, filter: &Filter) -> u32 {
        self.matching(filter).count() as u32
    }

    /// The records that `filter` takes, oldest first.
    pub(crate) fn matching(&self, filter: &Filter) -> impl Iterator<Item = &Record> {
        let filter = *filter;
        self.records.iter().filter(move |record| filter.takes(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::event::{class, code, locale};
    use zerocopy::IntoBytes;

    fn event(class: i8, locale: u16) -> Event {
        Event { code: code::PD_INSERTED, locale, class, subject: Subject::Physical(0x105, 2, 3) }
    }

    #[test]
    fn a_record_as_drivers_read_it() {
        let mut log = Log::default();
        assert_eq!(log.append(0x11223344, &event(1, locale::PD), "hello"), 1);
        let filter = Filter::new(0, 0xfe00_ffff);
        let record = log.matching(&filter).next().unwrap();
        let bytes = record.as_bytes();
        assert_eq!(bytes[..16], [1, 0, 0, 0, 0x44, 0x33, 0x22, 0x11, 0x5b, 0, 0, 0, 2, 0, 0, 1]);
        assert_eq!((bytes[16], &bytes[0x20..0x25]), (0x0a, &[5, 1, 2, 3, 0][..]));
        assert_eq!(&bytes[0x80..0x86], b"hello\0");
    }

    #[test]
    fn filters_by_sequence_class_and_locale() {
        let mut log = Log::default();
        log.append(0, &event(class::INFO, locale::LD), "");
        log.append(0, &event(3, locale::PD), "");
        log.append(0, &event(class::INFO, locale::CTRL), "");
        let seqs = |from, word| {
            let filter = Filter::new(from, word);
            log.matching(&filter).map(|record| record.seq.get()).collect::<Vec<_>>()
        };
        assert_eq!(seqs(0, 0xfe00_ffff), [1, 2, 3], "class -2, every locale: as Linux");
        assert_eq!(seqs(2, 0xfe00_ffff), [2, 3]);
        assert_eq!(seqs(0, 0x0200_ffff), [2]);
        assert_eq!(seqs(0, 0x0000_0021), [1, 3]);
        assert!(seqs(4, 0xfe00_ffff).is_empty());
    }

    #[test]
    fn the_ring_keeps_the_newest_and_numbers_go_on() {
        let mut log = Log::default();
        for _ in 0..1000 {
            log.append(0, &event(class::INFO, locale::LD), &"x".repeat(500));
        }
        let info = log.info();
        assert_eq!((info.newest.get(), info.oldest.get()), (1000, 745));
        log.clear();
        let info = log.info();
        assert_eq!((info.newest.get(), info.oldest.get(), info.clear.get()), (1000, 1000, 1000));
        assert_eq!(log.append(0, &event(class::INFO, locale::LD), ""), 1001);
    }

    #[test]
    fn a_log_in_a_file_goes_on_where_it_was() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("events");
        let mut log = Log::open(&path).unwrap();
        assert_eq!(log.info().newest.get(), 0);
        for number in 0..300 {
            log.append(number, &event(class::INFO, locale::LD), &format!("event {number}"));
        }
        log.booted(7);
        log.shut_down(299);
        let (info, all) = (log.info(), Filter::new(0, 0xfe00_ffff));
        let texts = |log: &Log| log.matching(&all).map(|record| record.description).collect::<Vec<_>>();
        let before = texts(&log);
        assert!(Log::open(&path).is_err(), "of one process only");
        drop(log);
        let mut log = Log::open(&path).unwrap();
        assert_eq!(log.info().as_bytes(), info.as_bytes());
        assert_eq!((texts(&log), before.len()), (before, 256));
        assert_eq!(log.append(0, &event(class::INFO, locale::LD), ""), 301);
        log.clear();
        drop(log);
        let mut log = Log::open(&path).unwrap();
        assert_eq!((log.count(&all), log.info().clear.get()), (0, 301));
        assert_eq!(log.append(0, &event(class::INFO, locale::LD), ""), 302);
    }

    #[test]
    fn files_that_are_no_log_are_left_alone() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("disk.img");
        for content in [&b"x"[..], &[0; 4096], b"a text that somebody wrote, longer than a header"] {
            std::fs::write(&path, content).unwrap();
            assert!(Log::open(&path).is_err());
            assert_eq!(std::fs::read(&path).unwrap(), content);
        }
        assert!(Log::open(&dir.path().join("missing/events")).is_err());
    }

    #[test]
    fn records_that_were_never_finished_are_left_out() {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("events");
        let mut log = Log::open(&path).unwrap();
        (0..5).for_each(|_| _ = log.append(0, &event(class::INFO, locale::LD), ""));
        drop(log);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        // Of another place, and of a number that leaves the rest far behind.
        file.write_all_at(&9_u32.to_le_bytes(), 256 * 4).unwrap();
        let log = Log::open(&path).unwrap();
        assert_eq!((log.info().oldest.get(), log.info().newest.get()), (1, 5));
        assert_eq!(log.count(&Filter::new(0, 0xfe00_ffff)), 4);
        drop(log);
        file.write_all_at(&(u32::MAX - 251).to_le_bytes(), 256 * 5).unwrap();
        let mut log = Log::open(&path).unwrap();
        assert_eq!(log.count(&Filter::new(0, 0xfe00_ffff)), 1);
        (0..300).for_each(|_| _ = log.append(0, &event(class::INFO, locale::LD), ""));
    }
}
