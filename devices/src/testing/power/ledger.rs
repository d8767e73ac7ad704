//! What a client asked of a disk and was told.

use std::collections::HashMap;

use super::SECTOR;
use crate::iothread::record::Recorder;

/// A sector whose bytes tell which it is and which write it is of.
pub fn stamped(sector: u64, stamp: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    for part in bytes.chunks_mut(16) {
        part[..8].copy_from_slice(&sector.to_le_bytes());
        part[8..].copy_from_slice(&stamp.to_le_bytes());
    }
    bytes
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Sectors get the stamp; 0 for zeros.
    Write {
        /// The first sector.
        first: u64,
        /// How many.
        count: u64,
        /// What is written, see [`stamped`].
        stamp: u64,
    },
    /// Everything becomes stable.
    Flush,
}

/// An operation under way.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    operation: Operation,
    began: usize,
    id: u64,
}

/// A content that a sector was given.
#[derive(Clone, Copy, Debug)]
struct Version {
    id: u64,
    stamp: u64,
    began: usize,
    /// When the client heard that it was there.
    ended: usize,
    /// When the client heard that it was stable.
    stable: usize,
}

const NEVER: usize = usize::MAX;

/// What a client was told. Operations of different tickets under way at the same time must not overlap.
#[derive(Default)]
pub struct Ledger {
    recorder: Recorder,
    sectors: HashMap<u64, Vec<Version>>,
    /// Lengths of the disk in sectors that were asked for and when they were told to be there.
    lengths: Vec<(u64, usize, usize)>,
    stamps: u64,
    tickets: u64,
}

impl Ledger {
    /// For a disk whose changes `recorder` notes.
    pub fn new(recorder: Recorder) -> Self {
        Self { recorder, stamps: 1000, ..Self::default() }
    }

    /// A stamp that no other write has.
    pub fn stamp(&mut self) -> u64 {
        self.stamps += 1;
        self.stamps
    }

    /// Something is asked for.
    pub fn begin(&mut self, operation: Operation) -> Ticket {
        let began = self.recorder.now();
        self.tickets += 1;
        let id = self.tickets;
        if let Operation::Write { first, count, stamp } = operation {
            for sector in first..first + count {
                let version = Version { id, stamp, began, ended: NEVER, stable: NEVER };
                self.sectors.entry(sector).or_default().push(version);
            }
        }
        Ticket { operation, began, id }
    }

    /// It was acknowledged; with `stable` also that it is on stable storage. A flush that failed is not acknowledged.
    pub fn end(&mut self, ticket: Ticket, stable: bool) {
        let now = self.recorder.now();
        match ticket.operation {
            Operation::Write { first, count, .. } => {
                for sector in first..first + count {
                    let versions = self.sectors.get_mut(&sector).unwrap();
                    let version = versions.iter_mut().rfind(|version| version.id == ticket.id).unwrap();
                    version.ended = now;
                    version.stable = if stable { now } else { NEVER };
                }
            }
            Operation::Flush => {
                for version in self.sectors.values_mut().flatten() {
                    if version.ended <= ticket.began && version.ended != NEVER {
                        version.stable = version.stable.min(now);
                    }
                }
            }
        }
    }

    /// The disk has so many sectors from the start.
    pub fn starts_with(&mut self, sectors: u64) {
        self.lengths.push((sectors, 0, 0));
    }

    /// The disk shall have so many sectors.
    pub fn ask_length(&mut self, sectors: u64) {
        self.lengths.push((sectors, self.recorder.now(), NEVER));
    }

    /// It has them.
    pub fn told_length(&mut self) {
        let now = self.recorder.now();
        if let Some(last) = self.lengths.last_mut() {
            last.2 = now;
        }
    }

    /// Whether a disk of so many sectors is one that a loss of power at `moment` may leave.
    pub fn check_length(&self, moment: usize, sectors: u64) -> Result<(), String> {
        let least = self.lengths.iter().filter(|(_, _, told)| *told <= moment).map(|(len, ..)| *len).max();
        let fits = |(len, asked, _): &(u64, usize, usize)| *len == sectors && *asked <= moment;
        if least.is_some_and(|least| sectors < least) || !self.lengths.iter().any(fits) {
            return Err(format!("the disk has {sectors} sectors, and {:?} was promised", least));
        }
        Ok(())
    }

    /// Sectors that were ever written.
    pub fn touched(&self) -> impl Iterator<Item = u64> + '_ {
        self.sectors.keys().copied()
    }

    /// Whether the sector may hold `found` after a loss of power at `moment`. `before` is what it held at the start.
    pub fn check(&self, moment: usize, sector: u64, found: u64, before: u64) -> Result<(), String> {
        let versions = self.sectors.get(&sector).map_or(&[][..], |versions| versions);
        let floor = versions.iter().rposition(|version| version.stable <= moment);
        let mut allowed = versions.iter().skip(floor.unwrap_or(0)).filter(|version| version.began <= moment);
        if (floor.is_none() && found == before) || allowed.any(|version| version.stamp == found) {
            return Ok(());
        }
        let promised = floor.map_or(before, |place| versions[place].stamp);
        let known = versions.iter().any(|version| version.stamp == found);
        let history = if known { "an older one" } else { "nobody's" };
        Err(format!("sector {sector} holds {found}, {history}, and {promised} is promised"))
    }
}

/// Which stamp a sector has; an error when it is not its own.
pub(super) fn stamp_of(sector: u64, bytes: &[u8; SECTOR]) -> Result<u64, String> {
    if *bytes == [0; SECTOR] {
        return Ok(0);
    }
    let stamp = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
    if *bytes == stamped(sector, stamp) {
        return Ok(stamp);
    }
    Err(format!("sector {sector} holds what was never written there: {:02x?}", &bytes[..16]))
}
