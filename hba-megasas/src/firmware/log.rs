//! The event log: a ring of records with sequence numbers that never go back.

use std::collections::VecDeque;

use zerocopy::FromZeros;

use crate::spec::event::{LogInfo, Record, arg};

/// Records kept.
const CAPACITY: usize = 256;

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
    clear: u32,
    shutdown: u32,
    boot: u32,
}

impl Default for Log {
    fn default() -> Self {
        Self { records: VecDeque::with_capacity(CAPACITY), next: 1, clear: 0, shutdown: 0, boot: 0 }
    }
}

impl Log {
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
        seq
    }

    /// Notes that the firmware started with event `seq`.
    pub(crate) fn booted(&mut self, seq: u32) {
        self.boot = seq;
    }

    /// Notes that the driver shut the controller down with event `seq`.
    pub(crate) fn shut_down(&mut self, seq: u32) {
        self.shutdown = seq;
    }

    /// Forgets all records; sequence numbers go on.
    pub(crate) fn clear(&mut self) {
        self.records.clear();
        self.clear = self.next.wrapping_sub(1);
    }

    /// The sequence numbers of interest.
    pub(crate) fn info(&self) -> LogInfo {
        let newest = self.next.wrapping_sub(1);
        LogInfo {
            newest: newest.into(),
            oldest: self.records.front().map_or(newest, |record| record.seq.get()).into(),
            clear: self.clear.into(),
            shutdown: self.shutdown.into(),
            boot: self.boot.into(),
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
}
