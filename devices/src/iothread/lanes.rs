//! Whose turn it is to hand a transfer to the kernel: every file of the host has a queue of its own, and they take turns.
//!
//! A host that stopped answering for one file keeps its transfers, abandoned ones too. What it can keep is bounded, so that
//! it never takes the room of the others.
//!
//! Long copies of a file, to or from the host's cache, are in a second queue. Threads of the kernel make them, so that they share
//! the processors, but only so many at a time: what waits for a thread there waits behind all that were handed over before.
//! The others of the file wait here for no more bytes of long copies than the first of these has, and the long ones
//! for no more of them.

use std::collections::VecDeque;

use super::ring::Key;

/// Bytes from which on a copy to or from the host's cache is long.
pub(super) const LONG_COPY: u64 = 64 << 10;
/// Bytes from which on one never holds up its I/O thread.
const VERY_LONG_COPY: u64 = 256 << 10;
/// How many long copies of one file the kernel gets at a time, between these bounds: one for each processor, and a few more for
/// those that find nothing in the cache and wait for the device.
const LONG_MIN: usize = 4;
const LONG_MAX: usize = 16;

/// Entries of the ring that every file may always have in flight, however many the others have.
const OWN: usize = 32;

/// A transfer that the kernel has not got, and its bytes.
type Queued = (Key, u64);

#[derive(Default)]
struct Lane {
    queue: VecDeque<Queued>,
    /// Long copies.
    long: VecDeque<Queued>,
    /// Entries that the kernel has.
    in_flight: usize,
    /// Long copies that it has.
    long_in_flight: usize,
    /// Bytes of others that were taken since a long copy could have been.
    passed: u64,
    /// It is in [`Lanes::turns`].
    listed: bool,
}

/// A transfer that may begin.
pub(super) struct Turn {
    pub(super) key: Key,
    /// Bytes that may be copied within the system call that hands it over.
    pub(super) bytes: u64,
    /// A thread of the kernel shall copy them.
    pub(super) apart: bool,
}

/// Which queue of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Other,
    Long,
}

impl Lane {
    fn queue(&mut self, kind: Kind) -> &mut VecDeque<Queued> {
        match kind {
            Kind::Other => &mut self.queue,
            Kind::Long => &mut self.long,
        }
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.long.is_empty()
    }

    /// Whether the next long copy is left to a thread of the kernel. One that is not very long, with no other, is made at once:
    /// there is nothing to gain by two switches of threads.
    fn copies_apart(&self) -> bool {
        let long = |&(_, bytes): &Queued| bytes >= VERY_LONG_COPY;
        self.long_in_flight > 0 || self.long.len() > 1 || self.long.front().is_some_and(long)
    }

    /// From which queue the next one is, if it may begin.
    fn next(&self, long_max: usize) -> Option<Kind> {
        let long = self.long.front().filter(|_| self.long_in_flight < long_max);
        match (self.queue.front(), long) {
            (Some(_), Some(&(_, bytes))) if self.passed >= bytes => Some(Kind::Long),
            (Some(_), _) => Some(Kind::Other),
            (None, Some(_)) => Some(Kind::Long),
            (None, None) => None,
        }
    }
}

/// The queues of all files, by number of their descriptors: an operation keeps its descriptor open.
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    /// Those with something in a queue, the next one first.
    turns: VecDeque<u32>,
    /// Entries in flight, of the whole ring, up to which a file may have more than [`OWN`].
    max: usize,
    /// Long copies of a file in flight.
    long_max: usize,
    /// What [`Self::next`] gave out last.
    chosen: Option<(u32, Kind)>,
}

impl Lanes {
    /// For a ring with `max` completion entries.
    pub(super) fn new(max: usize) -> Self {
        let cpus = std::thread::available_parallelism().map_or(LONG_MIN, usize::from);
        Self::with(max, cpus.clamp(LONG_MIN, LONG_MAX))
    }

    fn with(max: usize, long_max: usize) -> Self {
        Self { lanes: Vec::new(), turns: VecDeque::new(), max, long_max, chosen: None }
    }

    fn at(&mut self, lane: u32) -> Option<&mut Lane> {
        self.lanes.get_mut(lane as usize)
    }

    /// Queues a transfer.
    pub(super) fn push(&mut self, lane: u32, key: Key, bytes: u64, long: bool) {
        let index = lane as usize;
        if index >= self.lanes.len() {
            self.lanes.resize_with(index + 1, Lane::default);
        }
        let Some(lane) = self.lanes.get_mut(index) else { return };
        lane.queue(if long { Kind::Long } else { Kind::Other }).push_back((key, bytes));
        if !std::mem::replace(&mut lane.listed, true) {
            self.turns.push_back(index as u32);
        }
    }

    /// Takes a transfer back that the kernel has not got.
    pub(super) fn forget(&mut self, lane: u32, key: Key) {
        let Some(found) = self.at(lane) else { return };
        for kind in [Kind::Other, Kind::Long] {
            let queue = found.queue(kind);
            if let Some(place) = queue.iter().position(|&(other, _)| other == key) {
                queue.remove(place);
            }
        }
        if found.is_empty() && std::mem::take(&mut found.listed) {
            self.turns.retain(|&other| other != lane);
        }
    }

    /// The transfer whose turn it is; `None` when none may begin before others end. `in_flight` are the entries of the whole
    /// ring.
    pub(super) fn next(&mut self, in_flight: usize) -> Option<Turn> {
        let (max, long_max) = (self.max, self.long_max);
        for _ in 0..self.turns.len() {
            let number = *self.turns.front()?;
            // Half of them at most: a second busy file does not have to live on its own ones.
            let begins =
                |lane: &&mut Lane| lane.in_flight < OWN || (in_flight < max && lane.in_flight < max / 2);
            if let Some(lane) = self.at(number).filter(begins)
                && let Some(kind) = lane.next(long_max)
            {
                let apart = kind == Kind::Long && lane.copies_apart();
                let next = lane.queue(kind).front().copied();
                self.chosen = Some((number, kind));
                return next.map(|(key, bytes)| Turn { key, bytes: if apart { 0 } else { bytes }, apart });
            }
            self.turns.rotate_left(1);
        }
        None
    }

    /// What [`Self::next`] said was begun: the next file has its turn.
    pub(super) fn took(&mut self) {
        let Some((number, kind)) = self.chosen.take() else { return };
        let Some(lane) = self.at(number) else { return };
        let bytes = lane.queue(kind).pop_front().map_or(0, |(_, bytes)| bytes);
        match kind {
            Kind::Other if !lane.long.is_empty() => lane.passed = lane.passed.saturating_add(bytes),
            Kind::Other | Kind::Long => lane.passed = 0,
        }
        let listed = !lane.is_empty();
        lane.listed = listed;
        // It is the first: `next` has seen to that.
        self.turns.pop_front();
        if listed {
            self.turns.push_back(number);
        }
    }

    /// The kernel has so many entries more.
    pub(super) fn begun(&mut self, lane: u32, entries: usize, long: bool) {
        if let Some(lane) = self.at(lane) {
            lane.in_flight += entries;
            lane.long_in_flight += usize::from(long);
        }
    }

    /// The kernel has one entry less.
    pub(super) fn ended(&mut self, lane: u32, long: bool) {
        if let Some(lane) = self.at(lane) {
            lane.in_flight = lane.in_flight.saturating_sub(1);
            lane.long_in_flight = lane.long_in_flight.saturating_sub(usize::from(long));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    fn key(index: u32) -> Key {
        Key { index, generation: 0 }
    }

    /// Begins what may begin; the numbers of what was, with those that a thread of the kernel copies marked.
    fn begin(lanes: &mut Lanes, in_flight: &mut usize) -> Vec<(u32, bool)> {
        let mut begun = Vec::new();
        while let Some(Turn { key, apart, .. }) = lanes.next(*in_flight) {
            lanes.begun(7, 1, key.index >= 100);
            lanes.took();
            *in_flight += 1;
            begun.push((key.index, apart));
        }
        begun
    }

    /// Numbers from 100 on are long copies.
    #[test]
    fn short_ones_do_not_wait_for_long_copies() {
        let (mut lanes, mut in_flight) = (Lanes::with(1024, 2), 0);
        (100..116).for_each(|index| lanes.push(7, key(index), 1024 * KIB, true));
        assert_eq!(begin(&mut lanes, &mut in_flight), [(100, true), (101, true)], "two at a time");
        lanes.push(7, key(1), 4 * KIB, false);
        assert_eq!(begin(&mut lanes, &mut in_flight), [(1, false)]);
        lanes.push(7, key(2), 4 * KIB, false);
        lanes.ended(7, true);
        assert_eq!(begin(&mut lanes, &mut in_flight), [(2, false), (102, true)]);
        lanes.forget(7, key(103));
        lanes.ended(7, true);
        assert_eq!(begin(&mut lanes, &mut in_flight), [(104, true)]);
        lanes.ended(7, false);
        assert_eq!(
            begin(&mut lanes, &mut in_flight),
            [],
            "a short one that ends makes no room for a long one"
        );
    }

    #[test]
    fn long_copies_do_not_wait_for_more_than_their_own_bytes() {
        let (mut lanes, mut in_flight) = (Lanes::with(1024, 4), 0);
        lanes.push(7, key(100), 64 * KIB, true);
        (1..=32).for_each(|index| lanes.push(7, key(index), 16 * KIB, false));
        let order: Vec<u32> = begin(&mut lanes, &mut in_flight).into_iter().map(|(index, _)| index).collect();
        assert_eq!(order.iter().position(|&index| index == 100), Some(4), "{order:?}");
        assert_eq!(order.len(), 33);
    }

    #[test]
    fn one_copy_alone_needs_no_thread_unless_it_is_very_long() {
        let (mut lanes, mut in_flight) = (Lanes::with(1024, 4), 0);
        lanes.push(7, key(100), 64 * KIB, true);
        assert_eq!(begin(&mut lanes, &mut in_flight), [(100, false)]);
        lanes.push(7, key(101), 64 * KIB, true);
        assert_eq!(begin(&mut lanes, &mut in_flight), [(101, true)], "beside another");
        lanes.ended(7, true);
        lanes.ended(7, true);
        lanes.push(7, key(102), 1024 * KIB, true);
        assert_eq!(begin(&mut lanes, &mut in_flight), [(102, true)]);
    }
}
