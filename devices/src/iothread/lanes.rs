//! Whose turn it is to hand a transfer to the kernel: every file of the host has a queue of its own, and they take turns.
//!
//! A host that stopped answering for one file keeps its transfers, abandoned ones too. What it can keep is bounded, so that
//! it never takes the room of the others.
//!
//! Long copies of a file, to or from the host's cache, are in a second queue. Threads of the kernel make them, so that they share
//! the processors, but only so many at a time: what waits for a thread there waits behind all that were handed over before.
//! The others of the file wait here for no more bytes of long copies than the first of these has, and the long ones
//! for no more of them.
//!
//! Writes to regular files are not left to those threads: the kernel makes them one at a time there, and now and then those of
//! two files, so that one that hangs would hold up the other (`io_prep_async_work`, `hash_reg_file`; 64 places for all files
//! of a ring).

use std::collections::VecDeque;

use super::slots::Key;

/// Bytes from which on a copy to or from the host's cache is long.
pub(super) const LONG_COPY: u64 = 64 << 10;
/// Bytes from which on one never holds up its I/O thread.
const VERY_LONG_COPY: u64 = 256 << 10;

/// How many long copies of one file the kernel gets at a time, between these bounds: one for each processor, and a few more for
/// those that find nothing in the cache and wait for the device. Where they have few bytes, more of them.
const LONG_MIN: usize = 4;
const LONG_MAX: usize = 16;
const LONG_BYTES: u64 = 2 << 20;
/// How many it gets of all files, beyond one of each.
const LONG_TOTAL: usize = 64;
/// How many that are made here.
const HERE_MAX: usize = 2;
/// Long copies that are made here after the kernel could start no thread for one.
const WITHOUT_THREADS: u32 = 256;

/// Entries of the ring that every file may always have in flight, however many the others have.
const OWN: usize = 32;

/// A transfer that the kernel has not got, its bytes, and what kind of copy it is.
type Queued = (Key, u64, Copied);

/// What a transfer means to the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Copied {
    /// Nothing much.
    #[default]
    Little,
    /// A long copy, within the system call, or as the kernel thinks right.
    Here,
    /// A long copy that a thread of the kernel may make.
    Apart,
}

/// What a long copy counts for as long as it is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    copied: Copied,
    bytes: u64,
    /// It was left to a thread of the kernel.
    pub(super) apart: bool,
}

#[derive(Default)]
struct Lane {
    queue: VecDeque<Queued>,
    /// Long copies.
    long: VecDeque<Queued>,
    /// Entries that the kernel has.
    in_flight: usize,
    /// Long copies that it has and somebody waits for, their bytes, and those of them that are made here.
    long_in_flight: usize,
    long_bytes: u64,
    here: usize,
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
    /// What it counts for.
    pub(super) share: Share,
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
    /// there is nothing to gain by two switches of threads, unless this thread is `busy` with copies of its own.
    fn copies_apart(&self, busy: bool) -> bool {
        self.long.front().is_some_and(|&(_, bytes, copied)| {
            let alone = self.long_in_flight == 0 && self.long.len() == 1;
            copied == Copied::Apart && (busy || !alone || bytes >= VERY_LONG_COPY)
        })
    }

    /// Whether one more long copy may begin, with `total` of all files under way.
    fn has_room(&self, copied: Copied, long_max: usize, total: usize) -> bool {
        let few = self.long_in_flight < long_max || self.long_bytes < LONG_BYTES;
        let room = self.long_in_flight == 0 || (few && total < LONG_TOTAL);
        room && (copied != Copied::Here || self.here < HERE_MAX)
    }

    /// From which queue the next one is, if it may begin.
    fn next(&self, long_max: usize, total: usize) -> Option<Kind> {
        let long = self.long.front().filter(|&&(_, _, copied)| self.has_room(copied, long_max, total));
        match (self.queue.front(), long) {
            (Some(_), Some(&(_, bytes, _))) if self.passed >= bytes => Some(Kind::Long),
            (Some(_), _) => Some(Kind::Other),
            (None, Some(_)) => Some(Kind::Long),
            (None, None) => None,
        }
    }
}

#[cfg(any(test, feature = "testing"))]
impl Share {
    /// Of one that no thread of the kernel makes.
    pub(super) fn here(copied: Copied, bytes: u64) -> Self {
        Self { copied, bytes, apart: false }
    }
}

/// The queues of all files, by number of their descriptors: an operation keeps its descriptor open.
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    /// Those with something in a queue, the next one first.
    turns: VecDeque<u32>,
    /// Entries in flight, of the whole ring, up to which a file may have more than [`OWN`].
    max: usize,
    /// Long copies of a file in flight, and how many of all files are.
    long_max: usize,
    long_total: usize,
    /// Long copies that are not left to threads for now: there were none to be had.
    without_threads: u32,
    /// The I/O thread has copies of its own to make.
    busy: bool,
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
        Self {
            lanes: Vec::new(),
            turns: VecDeque::new(),
            max,
            long_max,
            long_total: 0,
            without_threads: 0,
            busy: false,
            chosen: None,
        }
    }

    fn at(&mut self, lane: u32) -> Option<&mut Lane> {
        self.lanes.get_mut(lane as usize)
    }

    /// Queues a transfer.
    pub(super) fn push(&mut self, lane: u32, key: Key, bytes: u64, copied: Copied) {
        let index = lane as usize;
        if index >= self.lanes.len() {
            self.lanes.resize_with(index + 1, Lane::default);
        }
        let Some(lane) = self.lanes.get_mut(index) else { return };
        let kind = if copied == Copied::Little { Kind::Other } else { Kind::Long };
        lane.queue(kind).push_back((key, bytes, copied));
        if !std::mem::replace(&mut lane.listed, true) {
            self.turns.push_back(index as u32);
        }
    }

    /// Takes a transfer back that the kernel has not got.
    pub(super) fn forget(&mut self, lane: u32, key: Key) {
        let Some(found) = self.at(lane) else { return };
        for kind in [Kind::Other, Kind::Long] {
            let queue = found.queue(kind);
            if let Some(place) = queue.iter().position(|&(other, ..)| other == key) {
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
        let (max, long_max, total) = (self.max, self.long_max, self.long_total);
        let (threads, busy) = (self.without_threads == 0, self.busy);
        for _ in 0..self.turns.len() {
            let number = *self.turns.front()?;
            // Half of them at most: a second busy file does not have to live on its own ones.
            let begins =
                |lane: &&mut Lane| lane.in_flight < OWN || (in_flight < max && lane.in_flight < max / 2);
            if let Some(lane) = self.at(number).filter(begins)
                && let Some(kind) = lane.next(long_max, total)
            {
                let apart = kind == Kind::Long && threads && lane.copies_apart(busy);
                let (key, bytes, copied) = lane.queue(kind).front().copied()?;
                self.chosen = Some((number, kind));
                let share = Share { copied, bytes, apart };
                return Some(Turn { key, bytes: if apart { 0 } else { bytes }, share });
            }
            self.turns.rotate_left(1);
        }
        None
    }

    /// What [`Self::next`] said was begun: the next file has its turn.
    pub(super) fn took(&mut self) {
        let Some((number, kind)) = self.chosen.take() else { return };
        let Some(lane) = self.at(number) else { return };
        let bytes = lane.queue(kind).pop_front().map_or(0, |(_, bytes, _)| bytes);
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
    pub(super) fn begun(&mut self, lane: u32, entries: usize, share: Share) {
        let Some(found) = self.lanes.get_mut(lane as usize) else { return };
        found.in_flight += entries;
        if share.copied == Copied::Little {
            return;
        }
        found.long_in_flight += 1;
        found.long_bytes = found.long_bytes.saturating_add(share.bytes);
        found.here += usize::from(share.copied == Copied::Here);
        self.long_total += 1;
        if share.copied == Copied::Apart && !share.apart {
            self.without_threads = self.without_threads.saturating_sub(1);
        }
    }

    /// The kernel has one entry less.
    pub(super) fn ended(&mut self, lane: u32) {
        if let Some(lane) = self.at(lane) {
            lane.in_flight = lane.in_flight.saturating_sub(1);
        }
    }

    /// A long copy is over, or nobody waits for it any more: then it is the host that takes long, and it holds up no other.
    pub(super) fn leave(&mut self, lane: u32, share: Share) {
        if share.copied == Copied::Little {
            return;
        }
        let Some(found) = self.lanes.get_mut(lane as usize) else { return };
        found.long_in_flight = found.long_in_flight.saturating_sub(1);
        found.long_bytes = found.long_bytes.saturating_sub(share.bytes);
        found.here = found.here.saturating_sub(usize::from(share.copied == Copied::Here));
        self.long_total = self.long_total.saturating_sub(1);
    }

    /// Whether the I/O thread has copies of its own to make.
    pub(super) fn copies_wait(&mut self, wait: bool) {
        self.busy = wait;
    }

    /// The kernel could start no thread for a long copy.
    pub(super) fn no_thread(&mut self) {
        self.without_threads = WITHOUT_THREADS;
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
        while let Some(Turn { key, share, .. }) = lanes.next(*in_flight) {
            lanes.begun(7, 1, share);
            lanes.took();
            *in_flight += 1;
            begun.push((key.index, share.apart));
        }
        begun
    }

    fn end(lanes: &mut Lanes, bytes: u64, copied: Copied) {
        lanes.ended(7);
        lanes.leave(7, Share::here(copied, bytes));
    }

    /// Numbers from 100 on are long copies.
    #[test]
    fn short_ones_do_not_wait_for_long_copies() {
        let (mut lanes, mut in_flight) = (Lanes::with(1024, 2), 0);
        (100..116).for_each(|index| lanes.push(7, key(index), 1024 * KIB, Copied::Apart));
        assert_eq!(begin(&mut lanes, &mut in_flight), [(100, true), (101, true)], "two at a time");
        lanes.push(7, key(1), 4 * KIB, Copied::Little);
        assert_eq!(begin(&mut lanes, &mut in_flight), [(1, false)]);
        lanes.push(7, key(2), 4 * KIB, Copied::Little);
        end(&mut lanes, 1024 * KIB, Copied::Apart);
        assert_eq!(begin(&mut lanes, &mut in_flight), [(2, false), (102, true)]);
        lanes.forget(7, key(103));
        end(&mut lanes, 1024 * KIB, Copied::Apart);
        assert_eq!(begin(&mut lanes, &mut in_flight), [(104, true)]);
        end(&mut lanes, 4 * KIB, Copied::Little);
        assert_eq!(
            begin(&mut lanes, &mut in_flight),
            [],
            "a short one that ends makes no room for a long one"
        );
    }

    #[test]
    fn long_copies_do_not_wait_for_more_than_their_own_bytes() {
        let (mut lanes, mut in_flight) = (Lanes::with(1024, 4), 0);
        lanes.push(7, key(100), 64 * KIB, Copied::Apart);
        (1..=32).for_each(|index| lanes.push(7, key(index), 16 * KIB, Copied::Little));
        let order: Vec<u32> = begin(&mut lanes, &mut in_flight).into_iter().map(|(index, _)| index).collect();
        assert_eq!(order.iter().position(|&index| index == 100), Some(4), "{order:?}");
        assert_eq!(order.len(), 33);
    }

    #[test]
    fn one_copy_alone_needs_no_thread_unless_it_is_very_long() {
        let (mut lanes, mut in_flight) = (Lanes::with(1024, 4), 0);
        lanes.push(7, key(100), 64 * KIB, Copied::Apart);
        assert_eq!(begin(&mut lanes, &mut in_flight), [(100, false)]);
        lanes.push(7, key(101), 64 * KIB, Copied::Apart);
        assert_eq!(begin(&mut lanes, &mut in_flight), [(101, true)], "beside another");
        end(&mut lanes, 64 * KIB, Copied::Apart);
        end(&mut lanes, 64 * KIB, Copied::Apart);
        lanes.push(7, key(102), 1024 * KIB, Copied::Apart);
        assert_eq!(begin(&mut lanes, &mut in_flight), [(102, true)]);
        end(&mut lanes, 1024 * KIB, Copied::Apart);
        lanes.copies_wait(true);
        lanes.push(7, key(103), 64 * KIB, Copied::Apart);
        assert_eq!(begin(&mut lanes, &mut in_flight), [(103, true)], "this thread has its own to make");
    }

    #[test]
    fn short_long_copies_are_more_at_a_time() {
        let (mut lanes, mut in_flight) = (Lanes::with(1024, 4), 0);
        (100..180).for_each(|index| lanes.push(7, key(index), 128 * KIB, Copied::Apart));
        assert_eq!(begin(&mut lanes, &mut in_flight).len(), 16, "2 MiB");
        end(&mut lanes, 128 * KIB, Copied::Apart);
        assert_eq!(begin(&mut lanes, &mut in_flight).len(), 1);
    }

    /// The kernel makes them one after the other, and a short one waits behind them there.
    #[test]
    fn writes_to_a_file_are_few_at_a_time_and_take_no_thread() {
        let (mut lanes, mut in_flight) = (Lanes::with(1024, 4), 0);
        (100..104).for_each(|index| lanes.push(7, key(index), 1024 * KIB, Copied::Here));
        assert_eq!(begin(&mut lanes, &mut in_flight), [(100, false), (101, false)]);
        end(&mut lanes, 1024 * KIB, Copied::Here);
        assert_eq!(begin(&mut lanes, &mut in_flight), [(102, false)]);
    }

    #[test]
    fn a_copy_that_nobody_waits_for_holds_up_no_other() {
        let (mut lanes, mut in_flight) = (Lanes::with(1024, 4), 0);
        (100..106).for_each(|index| lanes.push(7, key(index), 1024 * KIB, Copied::Apart));
        assert_eq!(begin(&mut lanes, &mut in_flight).len(), 4);
        lanes.leave(7, Share::here(Copied::Apart, 1024 * KIB));
        assert_eq!(begin(&mut lanes, &mut in_flight), [(104, true)]);
    }

    #[test]
    fn all_files_together_have_a_bound_but_each_has_one() {
        let mut lanes = Lanes::with(1024, 16);
        let (mut in_flight, mut begun) = (0, [0; 20]);
        for lane in 0..20 {
            (0..16).for_each(|_| lanes.push(lane, key(lane), 1024 * KIB, Copied::Apart));
        }
        while let Some(Turn { key, share, .. }) = lanes.next(in_flight) {
            lanes.begun(key.index, 1, share);
            lanes.took();
            in_flight += 1;
            begun[key.index as usize] += 1;
        }
        assert_eq!((begun.iter().sum::<u32>(), begun.iter().min()), (64, Some(&3)), "{begun:?}");
    }

    /// A cached read needs none.
    #[test]
    fn without_threads_copies_are_made_here_for_a_while() {
        let (mut lanes, mut in_flight) = (Lanes::with(1024, 4), 0);
        let mut begun = |lanes: &mut Lanes, long| {
            lanes.push(7, key(100), 1024 * KIB, long);
            let begun = begin(lanes, &mut in_flight);
            end(lanes, 1024 * KIB, long);
            begun
        };
        assert_eq!(begun(&mut lanes, Copied::Apart), [(100, true)]);
        lanes.no_thread();
        for _ in 0..WITHOUT_THREADS {
            assert_eq!(begun(&mut lanes, Copied::Apart), [(100, false)]);
        }
        assert_eq!(begun(&mut lanes, Copied::Apart), [(100, true)]);
    }
}
