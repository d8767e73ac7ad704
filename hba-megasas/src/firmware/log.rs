//! The event log: a ring of records with sequence numbers that never go back, until they are used up.

use std::collections::VecDeque;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::spec::event::{LogInfo, Record, arg};

/// How many records a log has: the newest.
pub const EVENT_RECORDS: usize = 256;
const CAPACITY: usize = EVENT_RECORDS;
/// No record has this number, which is far from where 32 bits wrap: the log begins anew before. What was kept from before would
/// be newer than all that comes after.
const NUMBERS_END: u32 = 0xffff_0000;

/// Keeps the event log of a controller while the process does not run. The log tells it all that happens to it, in
/// order; nothing here may wait for the host: it is called on the threads that serve the guest. Only its end may.
pub trait EventStore: Send {
    /// What was kept the last time.
    fn load(&mut self) -> KeptEvents;
    /// Keeps a record in the place of the one that is [`EVENT_RECORDS`] numbers older.
    fn keep(&mut self, number: u32, record: &EventRecord);
    /// Keeps the numbers beside the records.
    fn keep_marks(&mut self, marks: EventMarks);
    /// Keeps what the guest has set, whatever it was before. Always as many bytes.
    fn keep_settings(&mut self, settings: &[u8]);
    /// Forgets the records and the numbers beside them: they begin at 1 again.
    fn forget_events(&mut self);
}

/// A record of the log as drivers read it.
pub type EventRecord = [u8; size_of::<Record>()];

/// What an [`EventStore`] kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptEvents {
    /// The records, in any order.
    pub records: Vec<EventRecord>,
    /// The numbers beside them.
    pub marks: EventMarks,
    /// No record had this number or a higher one: 1 if there never was one.
    pub next: u32,
    /// What the guest had set, or as much of it from its beginning as is left.
    pub settings: Vec<u8>,
}

/// Numbers of records that drivers ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventMarks {
    /// The newest when the log was cleared.
    pub clear: u32,
    /// The newest when the controller was shut down.
    pub shutdown: u32,
    /// The first since the firmware started.
    pub boot: u32,
}

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
    /// A physical drive, the state it had, and the one it has.
    PhysicalState(u16, u8, u8, [u16; 2]),
    /// A logical drive: target, index.
    Logical(u16, u8),
    /// A logical drive, the state it had, and the one it has.
    LogicalState(u16, u8, [u8; 2]),
}

impl Subject {
    /// Type of the arguments, and these.
    fn args(self) -> (u8, [u8; 12]) {
        let args = |id: u16, rest: [u8; 2], states: [u16; 2]| {
            let ([low, high], [a, b]) = (id.to_le_bytes(), rest);
            let [[old, old_high], [new, new_high]] = states.map(u16::to_le_bytes);
            [low, high, a, b, old, old_high, 0, 0, new, new_high, 0, 0]
        };
        match self {
            Self::None => (arg::NONE, [0; 12]),
            Self::Physical(id, enclosure, slot) => (arg::PD, args(id, [enclosure, slot], [0; 2])),
            Self::PhysicalState(id, enclosure, slot, states) => {
                (arg::PD_STATE, args(id, [enclosure, slot], states))
            }
            Self::Logical(target, index) => (arg::LD, args(target, [index, 0], [0; 2])),
            Self::LogicalState(target, index, states) => {
                (arg::LD_STATE, args(target, [index, 0], states.map(u16::from)))
            }
        }
    }
}

/// The log.
pub(crate) struct Log {
    records: VecDeque<Record>,
    next: u32,
    marks: EventMarks,
    /// The settings that were kept with it.
    settings: Vec<u8>,
    /// Where the log is kept, if anywhere.
    store: Option<Box<dyn EventStore>>,
}

impl Log {
    /// The log that `store` kept; without a store a new one.
    pub(crate) fn new(mut store: Option<Box<dyn EventStore>>) -> Self {
        let kept = store.as_mut().map(|store| store.load()).unwrap_or_default();
        let mut records: Vec<Record> =
            kept.records.iter().filter_map(|bytes| Record::read_from_bytes(bytes).ok()).collect();
        records.retain(|record| record.seq.get() > kept.marks.clear);
        records.sort_unstable_by_key(|record| record.seq.get());
        records.dedup_by_key(|record| record.seq.get());
        let newest = records.last().map_or(kept.marks.clear, |record| record.seq.get());
        let next = kept.next.max(newest.saturating_add(1));
        let mut ring = VecDeque::with_capacity(CAPACITY);
        ring.extend(records.iter().skip(records.len().saturating_sub(CAPACITY)));
        let mut log = Self { records: ring, next, marks: kept.marks, settings: kept.settings, store };
        log.begin_anew_at_the_end();
        log
    }

    fn begin_anew_at_the_end(&mut self) {
        if self.next < NUMBERS_END {
            return;
        }
        devices::log_limited!(warn, "megasas: the numbers of events are used up; the event log begins anew");
        self.records.clear();
        (self.next, self.marks) = (1, EventMarks::default());
        if let Some(store) = &mut self.store {
            store.forget_events();
        }
    }

    /// Appends an event that happened at `time`, in seconds since 2000; returns its sequence number.
    pub(crate) fn append(&mut self, time: u32, event: &Event, text: &str) -> u32 {
        self.begin_anew_at_the_end();
        let seq = self.next;
        self.next = seq.saturating_add(1);
        let mut record = Record::new_zeroed();
        record.seq = seq.into();
        record.time = time.into();
        record.code = event.code.into();
        record.locale = event.locale.into();
        record.class = event.class;
        let (kind, args) = event.subject.args();
        record.arg_type = kind;
        record.args.iter_mut().zip(args).for_each(|(to, from)| *to = from);
        // One byte less than there is: the text always ends with a zero.
        let room = record.description.len() - 1;
        record.description.iter_mut().take(room).zip(text.bytes()).for_each(|(to, from)| *to = from);
        if self.records.len() >= CAPACITY {
            self.records.pop_front();
        }
        self.records.push_back(record);
        if let (Some(store), Ok(bytes)) = (&mut self.store, record.as_bytes().try_into()) {
            store.keep(seq, bytes);
        }
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

    /// Gives the store back, which has all records now.
    #[must_use = "dropping it may take long"]
    pub(crate) fn close(&mut self) -> Option<Box<dyn EventStore>> {
        self.store.take()
    }

    /// Forgets all records; sequence numbers go on.
    pub(crate) fn clear(&mut self) {
        self.records.clear();
        self.marks.clear = self.next.wrapping_sub(1);
        self.keep_marks();
    }

    /// What the guest had set when the log was kept the last time.
    pub(crate) fn settings(&self) -> &[u8] {
        &self.settings
    }

    /// Keeps what the guest has set.
    pub(crate) fn keep_settings(&mut self, settings: &[u8]) {
        match &mut self.store {
            Some(store) => store.keep_settings(settings),
            None => devices::log_limited!(
                warn,
                "megasas: what the guest has set of the board lasts until the process ends: set `event_log` to keep it"
            ),
        }
    }

    fn keep_marks(&mut self) {
        if let Some(store) = &mut self.store {
            store.keep_marks(self.marks);
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
        let mut log = Log::new(None);
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
        let mut log = Log::new(None);
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
        let mut log = Log::new(None);
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

    /// A store in memory.
    #[derive(Clone, Default)]
    struct Memory(std::sync::Arc<std::sync::Mutex<(KeptEvents, Vec<String>)>>);

    impl EventStore for Memory {
        fn load(&mut self) -> KeptEvents {
            self.0.lock().unwrap().0.clone()
        }
        fn keep(&mut self, number: u32, record: &EventRecord) {
            let (kept, order) = &mut *self.0.lock().unwrap();
            kept.records.retain(|old| old[0] != record[0]);
            kept.records.push(*record);
            order.push(format!("record {number}"));
        }
        fn keep_marks(&mut self, marks: EventMarks) {
            let (kept, order) = &mut *self.0.lock().unwrap();
            kept.marks = marks;
            order.push(format!("marks {} {} {}", marks.clear, marks.shutdown, marks.boot));
        }
        fn keep_settings(&mut self, settings: &[u8]) {
            self.0.lock().unwrap().0.settings = settings.to_vec();
        }
        fn forget_events(&mut self) {
            let kept = &mut self.0.lock().unwrap().0;
            *kept = KeptEvents { settings: std::mem::take(&mut kept.settings), ..KeptEvents::default() };
        }
    }

    fn stored(store: &Memory) -> Log {
        Log::new(Some(Box::new(store.clone())))
    }

    #[test]
    fn a_log_that_is_kept_goes_on_where_it_was() {
        let (store, all) = (Memory::default(), Filter::new(0, 0xfe00_ffff));
        let mut log = stored(&store);
        assert_eq!(log.info().newest.get(), 0);
        for number in 0..300 {
            log.append(number, &event(class::INFO, locale::LD), &format!("event {number}"));
        }
        log.booted(7);
        log.shut_down(299);
        let texts = |log: &Log| log.matching(&all).map(|record| record.description).collect::<Vec<_>>();
        let (info, before) = (log.info(), texts(&log));
        drop(log);
        let mut log = stored(&store);
        assert_eq!(log.info().as_bytes(), info.as_bytes());
        assert_eq!((texts(&log), before.len()), (before, 256));
        assert_eq!(log.append(0, &event(class::INFO, locale::LD), ""), 301);
        log.clear();
        drop(log);
        let mut log = stored(&store);
        assert_eq!((log.count(&all), log.info().clear.get()), (0, 301));
        assert_eq!(log.append(0, &event(class::INFO, locale::LD), ""), 302);
        let order = &store.0.lock().unwrap().1;
        assert_eq!(order[298..302], ["record 299", "record 300", "marks 0 0 7", "marks 0 299 7"]);
    }

    #[test]
    fn a_store_is_let_go_at_the_end() {
        let store = Memory::default();
        let mut log = stored(&store);
        log.append(0, &event(class::INFO, locale::LD), "kept");
        drop(log.close());
        assert_eq!(std::sync::Arc::strong_count(&store.0), 1);
        log.append(0, &event(class::INFO, locale::LD), "in memory only");
        assert_eq!((log.info().newest.get(), store.0.lock().unwrap().0.records.len()), (2, 1));
    }

    #[test]
    fn what_a_store_kept_is_believed_only_as_far_as_it_can_be() {
        let store = Memory::default();
        let mut log = stored(&store);
        (0..10).for_each(|_| _ = log.append(0, &event(class::INFO, locale::LD), ""));
        {
            let kept = &mut store.0.lock().unwrap().0;
            // One is missing, one is there twice, one is of before the log was cleared, all in disorder.
            kept.records.remove(5);
            let twice = kept.records[2];
            kept.records.push(twice);
            kept.marks.clear = 1;
            kept.records.reverse();
            kept.next = 900;
        }
        let mut log = stored(&store);
        let all = Filter::new(0, 0xfe00_ffff);
        let seqs: Vec<_> = log.matching(&all).map(|record| record.seq.get()).collect();
        assert_eq!(seqs, [2, 3, 4, 5, 7, 8, 9, 10]);
        assert_eq!(log.append(0, &event(class::INFO, locale::LD), ""), 900, "numbers are never used twice");
    }

    /// A guest that does nothing else gets there in hours, and others may have its log then.
    #[test]
    fn numbers_that_are_used_up_begin_anew() {
        let all = Filter::new(0, 0xfe00_ffff);
        let seqs = |log: &Log| log.matching(&all).map(|record| record.seq.get()).collect::<Vec<_>>();
        for next in [0xffff_0000, u32::MAX] {
            let store = Memory::default();
            {
                let kept = &mut store.0.lock().unwrap().0;
                let mut last = Record::new_zeroed();
                (last.seq, last.locale) = ((next - 1).into(), locale::LD.into());
                kept.records.push(last.as_bytes().try_into().unwrap());
                (kept.next, kept.marks) = (next, EventMarks { clear: next - 5, shutdown: 0, boot: next - 4 });
            }
            let mut log = stored(&store);
            let numbers = [(); 3].map(|()| log.append(0, &event(class::INFO, locale::LD), "")).to_vec();
            assert!(numbers.is_sorted(), "{numbers:?}");
            assert_eq!(seqs(&log), numbers);
            drop(log);
            let log = stored(&store);
            assert_eq!((seqs(&log), log.info().clear.get()), (numbers, 0), "found again");
        }
    }

    #[test]
    fn a_log_begins_anew_before_numbers_wrap() {
        let store = Memory::default();
        store.0.lock().unwrap().0.next = 0xfffe_fffe;
        let mut log = stored(&store);
        let numbers = [(); 4].map(|()| log.append(0, &event(class::INFO, locale::LD), ""));
        assert_eq!(numbers, [0xfffe_fffe, 0xfffe_ffff, 1, 2]);
        assert_eq!((log.info().oldest.get(), log.info().newest.get()), (1, 2));
    }
}
