//! From a recording to what a loss of power leaves.

use std::collections::HashMap;

use super::{SECTOR, State};
use crate::iothread::record::{Change, Event, FileId, Part};
use crate::testing::conformance::Random;

/// Events after something that was left out in which it is looked for.
const EXPOSED: u32 = 60;

/// And those in which it is looked for most.
const FRESH: u32 = 6;

/// What the host is told to forget: each must be found missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Without {
    /// Nothing: everything works as it should.
    #[default]
    Nothing,
    /// The barriers of this name.
    Barrier(&'static str),
    /// Writes that are to be stable at once are not.
    StableWrites,
}

/// A change that is not stable yet.
struct Pending {
    /// Its place in the order of all changes.
    order: u32,
    id: u64,
    kind: Kind,
    ended: bool,
    /// A sync failed: the host may have forgotten it, and no later sync makes it stable.
    forgotten: bool,
}

enum Kind {
    /// Contents of sectors from a first one on.
    Data(usize, Vec<u32>, bool),
    Length(u64),
}

/// A sync under way.
struct Syncing {
    id: u64,
    /// It does nothing.
    left_out: bool,
    /// Changes up to here had ended when it began.
    covers: Vec<u64>,
}

/// Goes through a recording of one file.
pub struct Replay {
    /// What the page cache has.
    live: State,
    /// What is stable.
    stable: State,
    /// For each sector, and for the length: the change that it is of.
    orders: Vec<u32>,
    length_order: u32,
    pending: Vec<Pending>,
    syncs: Vec<Syncing>,
    file: FileId,
    others: HashMap<u64, ()>,
    next: u32,
    without: Without,
    /// For so many events more, what was left out is likely to be missed.
    exposed: u32,
}

impl Replay {
    /// Begins with a stable state of `file`.
    pub fn new(file: FileId, start: State, without: Without) -> Self {
        Self {
            live: start.clone(),
            orders: vec![0; start.sectors.len()],
            stable: start,
            length_order: 0,
            pending: Vec::new(),
            syncs: Vec::new(),
            file,
            others: HashMap::new(),
            next: 1,
            without,
            exposed: 0,
        }
    }

    /// How many losses of power to look at now for what was left out: most before the next sync makes up for it.
    pub fn attempts(&self) -> u64 {
        match self.exposed {
            _ if !matches!(self.without, Without::Barrier(_)) => 4,
            0 => 0,
            left if left + FRESH > EXPOSED => 40,
            _ => 4,
        }
    }

    /// Takes the next event.
    pub fn step(&mut self, event: &Event) {
        self.exposed = self.exposed.saturating_sub(1);
        match event {
            Event::Begin { id, file, .. } if *file != self.file => drop(self.others.insert(*id, ())),
            Event::End { id, .. } if self.others.remove(id).is_some() => {}
            Event::Begin { id, change, .. } => self.begin(*id, change),
            Event::End { id, good } => self.end(*id, *good),
        }
    }

    fn begin(&mut self, id: u64, change: &Change) {
        let kind = match change {
            Change::Write { at, len, parts, stable } => {
                assert!(at + len <= self.live.len, "a write beyond the end of the file");
                let stable = *stable && self.without != Without::StableWrites;
                self.data(*at, *len, parts, stable)
            }
            Change::Zero { at, len } => {
                self.data(*at, (*len).min(self.live.len.saturating_sub(*at)), &[], false)
            }
            Change::Resize(len) => {
                assert!(*len >= self.live.len, "a file never becomes shorter");
                self.live.resize(*len);
                Kind::Length(*len)
            }
            Change::Sync(name) => {
                let left_out = name.is_some_and(|name| self.without == Without::Barrier(name));
                let ended = self.pending.iter().filter(|change| change.ended && !change.forgotten);
                let ended = ended.filter(|_| !left_out);
                self.syncs.push(Syncing { id, left_out, covers: ended.map(|change| change.id).collect() });
                return;
            }
        };
        let order = self.next;
        self.next += 1;
        self.pending.push(Pending { order, id, kind, ended: false, forgotten: false });
    }

    /// The sectors that a write makes of those in the page cache.
    fn data(&mut self, at: u64, len: u64, parts: &[Part], stable: bool) -> Kind {
        let sector = SECTOR as u64;
        let (first, end) = ((at / sector) as usize, (at + len).div_ceil(sector) as usize);
        let mut numbers = Vec::with_capacity(end - first);
        let mut parts = parts.iter().peekable();
        for place in first..end {
            let start = place as u64 * sector;
            let whole = start >= at && start + sector <= at + len;
            while parts.next_if(|(from, bytes)| from + bytes.len() as u64 <= start).is_some() {}
            if whole && parts.peek().is_none_or(|(from, _)| *from >= start + sector) {
                numbers.push(0);
                continue;
            }
            let mut bytes = self.live.sector(place as u64);
            let (from, to) = (at.max(start) - start, (at + len).min(start + sector) - start);
            bytes[from as usize..to as usize].fill(0);
            for (from, part) in parts.clone().take_while(|(from, _)| *from < start + sector) {
                let (low, high) = ((*from).max(start), (from + part.len() as u64).min(start + sector));
                bytes[(low - start) as usize..(high - start) as usize]
                    .copy_from_slice(&part[(low - from) as usize..(high - from) as usize]);
            }
            numbers.push(self.live.contents.borrow_mut().number(&bytes));
        }
        numbers.iter().enumerate().for_each(|(n, number)| self.live.set(first + n, *number));
        Kind::Data(first, numbers, stable)
    }

    fn end(&mut self, id: u64, good: bool) {
        if let Some(place) = self.syncs.iter().position(|sync| sync.id == id) {
            let sync = self.syncs.swap_remove(place);
            self.exposed = if sync.left_out { EXPOSED } else { self.exposed };
            for covered in sync.covers {
                let place = self.pending.iter().position(|change| change.id == covered);
                match place {
                    Some(place) if good => self.keep(place),
                    Some(place) => self.pending[place].forgotten = true,
                    None => {}
                }
            }
            return;
        }
        let Some(place) = self.pending.iter().position(|change| change.id == id) else { return };
        self.pending[place].ended = good;
        if good && matches!(self.pending[place].kind, Kind::Data(_, _, true)) {
            self.keep(place);
            // What is needed to find it again, too.
            let grown = |change: &Pending| change.ended && matches!(change.kind, Kind::Length(_));
            while let Some(place) = self.pending.iter().position(grown) {
                self.keep(place);
            }
        }
    }

    /// A change is stable.
    fn keep(&mut self, place: usize) {
        let change = self.pending.remove(place);
        match change.kind {
            Kind::Length(len) if change.order > self.length_order => {
                self.length_order = change.order;
                self.stable.len = len;
            }
            Kind::Length(_) => {}
            Kind::Data(first, numbers, _) => {
                let end = first + numbers.len();
                if end > self.orders.len() {
                    self.orders.resize(end, 0);
                }
                for (sector, number) in (first..).zip(numbers) {
                    if change.order > self.orders[sector] {
                        self.orders[sector] = change.order;
                        self.stable.set(sector, number);
                    }
                }
            }
        }
    }

    /// How many changes are not stable.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// A state that a loss of power may leave now.
    pub fn crash(&self, random: &mut Random) -> State {
        let mut state = self.stable.clone();
        let mut len = self.stable.len;
        let way = random.below(8);
        let one = random.below(self.pending.len() as u64) as usize;
        for (n, change) in self.pending.iter().enumerate() {
            let (all, torn) = match way {
                0 => (true, false),
                1 => (n != one, false),
                2 => (n == one, false),
                // As if written in order, up to one that was under way.
                3 => (n < one, n == one),
                4 => (random.below(8) == 0, false),
                5 => (random.below(8) != 0, random.below(4) == 0),
                _ => (random.below(2) == 0, random.below(3) == 0),
            };
            match &change.kind {
                Kind::Length(new) if all && change.order > self.length_order => len = *new,
                Kind::Length(_) => {}
                Kind::Data(first, numbers, _) if all || torn => {
                    // Of few sectors, one is seldom what makes a difference.
                    let odds = 1 + random.below(4);
                    for (sector, number) in (*first..).zip(numbers) {
                        let newer = self.orders.get(sector).is_none_or(|order| change.order > *order);
                        if newer && (!torn || random.below(5) < odds) {
                            state.set(sector, *number);
                        }
                    }
                }
                Kind::Data(..) => {}
            }
        }
        state.resize(len);
        state
    }
}
