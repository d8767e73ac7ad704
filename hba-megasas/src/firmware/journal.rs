//! The event log in a file, so that it outlives the process.
//!
//! A header of 256 bytes, then as many records as the log keeps, each in the place that its sequence number gives it.
//! A record is written before the header that counts on it; what a crash leaves half-written is left out at the next
//! start, by its sequence number.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::log::CAPACITY;
use crate::spec::event::Record;

const MAGIC: [u8; 8] = *b"MFIEVLG1";
const RECORD: u64 = size_of::<Record>() as u64;

/// What the file begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    clear: U32,
    shutdown: U32,
    boot: U32,
}

/// Sequence numbers that the log remembers beside its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) clear: u32,
    pub(super) shutdown: u32,
    pub(super) boot: u32,
}

/// The file.
#[derive(Debug)]
pub(super) struct Journal(File);

impl Journal {
    /// Opens the file or makes it, for this process alone; returns what it holds, oldest first.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Vec<Record>, Marks)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.try_lock()?;
        if file.metadata()?.len() == 0 {
            let journal = Self(file);
            journal.write_marks(Marks::default())?;
            return Ok((journal, Vec::new(), Marks::default()));
        }
        let mut bytes = [0; size_of::<Header>()];
        file.read_exact_at(&mut bytes, 0).map_err(|_| foreign())?;
        let header = Header::read_from_bytes(&bytes).map_err(|_| foreign())?;
        if header.magic != MAGIC {
            return Err(foreign());
        }
        let marks =
            Marks { clear: header.clear.get(), shutdown: header.shutdown.get(), boot: header.boot.get() };
        let journal = Self(file);
        let records = journal.records(marks.clear);
        Ok((journal, records, marks))
    }

    /// The records after `clear`, oldest first.
    fn records(&self, clear: u32) -> Vec<Record> {
        let mut records: Vec<Record> = (0..CAPACITY as u64)
            .filter_map(|place| {
                let mut bytes = [0; size_of::<Record>()];
                self.0.read_exact_at(&mut bytes, RECORD * (place + 1)).ok()?;
                let record = Record::read_from_bytes(&bytes).ok()?;
                let seq = record.seq.get();
                (seq > clear && at(seq) == RECORD * (place + 1)).then_some(record)
            })
            .collect();
        records.sort_unstable_by_key(|record| record.seq.get());
        let newest = records.last().map_or(0, |record| record.seq.get());
        records.retain(|record| newest - record.seq.get() < CAPACITY as u32);
        records
    }

    /// Writes a record.
    pub(super) fn write(&self, record: &Record) -> io::Result<()> {
        self.0.write_all_at(record.as_bytes(), at(record.seq.get()))
    }

    /// Writes the marks.
    pub(super) fn write_marks(&self, marks: Marks) -> io::Result<()> {
        let Marks { clear, shutdown, boot } = marks;
        let header =
            Header { magic: MAGIC, clear: clear.into(), shutdown: shutdown.into(), boot: boot.into() };
        self.0.write_all_at(header.as_bytes(), 0)
    }
}

/// Where a record of this sequence number is.
fn at(seq: u32) -> u64 {
    RECORD * (1 + u64::from(seq) % CAPACITY as u64)
}

fn foreign() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is no event log of this program")
}
