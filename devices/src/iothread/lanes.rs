//! Whose turn it is to hand a transfer to the kernel: every file of the host has a queue of its own, and they take turns.
//!
//! A host that stopped answering for one file keeps its transfers, abandoned ones too. What it can keep is bounded, so that
//! it never takes the room of the others.

use std::collections::VecDeque;

use super::ring::Key;

/// Entries of the ring that every file may always have in flight, however many the others have.
const OWN: usize = 32;

struct Lane {
    /// Transfers that the kernel has not got, and their bytes.
    queue: VecDeque<(Key, u64)>,
    /// Entries that it has.
    in_flight: usize,
    /// It is in [`Lanes::turns`].
    listed: bool,
}

/// The queues of all files, by number of their descriptors: an operation keeps its descriptor open.
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    /// Those with something in their queue, the next one first.
    turns: VecDeque<u32>,
    /// Entries in flight, of the whole ring, up to which a file may have more than [`OWN`].
    max: usize,
}

impl Lanes {
    pub(super) fn new(max: usize) -> Self {
        Self { lanes: Vec::new(), turns: VecDeque::new(), max }
    }

    fn at(&mut self, lane: u32) -> Option<&mut Lane> {
        self.lanes.get_mut(lane as usize)
    }

    /// Queues a transfer.
    pub(super) fn push(&mut self, lane: u32, key: Key, bytes: u64) {
        let index = lane as usize;
        if index >= self.lanes.len() {
            let empty = || Lane { queue: VecDeque::new(), in_flight: 0, listed: false };
            self.lanes.resize_with(index + 1, empty);
        }
        let Some(lane) = self.lanes.get_mut(index) else { return };
        lane.queue.push_back((key, bytes));
        if !std::mem::replace(&mut lane.listed, true) {
            self.turns.push_back(index as u32);
        }
    }

    /// Takes a transfer back that the kernel has not got.
    pub(super) fn forget(&mut self, lane: u32, key: Key) {
        let Some(found) = self.at(lane) else { return };
        if let Some(place) = found.queue.iter().position(|&(other, _)| other == key) {
            found.queue.remove(place);
        }
        if found.queue.is_empty() && std::mem::take(&mut found.listed) {
            self.turns.retain(|&other| other != lane);
        }
    }

    /// The transfer whose turn it is, and its bytes; `None` when none may begin before others end. `in_flight` are the
    /// entries of the whole ring.
    pub(super) fn next(&mut self, in_flight: usize) -> Option<(Key, u64)> {
        let max = self.max;
        for _ in 0..self.turns.len() {
            let lane = *self.turns.front()?;
            // Half of them at most: a second busy file does not have to live on its own ones.
            let begins =
                |lane: &&mut Lane| lane.in_flight < OWN || (in_flight < max && lane.in_flight < max / 2);
            if let Some(lane) = self.at(lane).filter(begins) {
                return lane.queue.front().copied();
            }
            self.turns.rotate_left(1);
        }
        None
    }

    /// What [`Self::next`] said was begun: the next file has its turn.
    pub(super) fn took(&mut self) {
        let Some(number) = self.turns.pop_front() else { return };
        let Some(lane) = self.at(number) else { return };
        lane.queue.pop_front();
        lane.listed = !lane.queue.is_empty();
        if lane.listed {
            self.turns.push_back(number);
        }
    }

    /// The kernel has so many entries more.
    pub(super) fn begun(&mut self, lane: u32, entries: usize) {
        if let Some(lane) = self.at(lane) {
            lane.in_flight += entries;
        }
    }

    /// The kernel has one entry less.
    pub(super) fn ended(&mut self, lane: u32) {
        if let Some(lane) = self.at(lane) {
            lane.in_flight = lane.in_flight.saturating_sub(1);
        }
    }
}
