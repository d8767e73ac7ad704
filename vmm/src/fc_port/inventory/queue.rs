//! Jobs that wait at one target port: none of them twice, and however many an array causes, each is found at once.

use std::collections::{BTreeSet, VecDeque};

use fc::Address;

use super::super::Lun;
use super::Job;

/// Single units that wait for the kernel to look for them, at most. The others have their turn when the target is asked again.
const SCANS: usize = 1024;

/// What a job does, and where.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Tune(String),
    Scan(Address, bool),
    Ask(Address),
    Who(Address),
    Delete(Address, u64),
    Rescan(Address, u64, bool),
}

fn key(job: &Job) -> Key {
    match job {
        Job::Tune(remote, _) => Key::Tune(remote.clone()),
        Job::Scan(address, one) => Key::Scan(*address, *one),
        Job::Ask(address) => Key::Ask(*address),
        Job::Who(address, _) => Key::Who(*address),
        Job::Delete(seat) => Key::Delete(seat.address, seat.number),
        Job::Rescan(seat, size) => Key::Rescan(seat.address, seat.number, *size),
    }
}

#[derive(Default)]
pub(super) struct Queue {
    jobs: VecDeque<Job>,
    keys: BTreeSet<Key>,
    /// How many of them have the kernel look for one unit.
    scans: usize,
}

impl Queue {
    /// One more job, unless it waits already.
    pub(super) fn push_back(&mut self, job: Job) {
        if self.keys.insert(key(&job)) {
            self.scans += usize::from(is_scan(&job));
            self.jobs.push_back(job);
        }
    }

    /// A job that goes before all others, whether it waits already or not.
    pub(super) fn push_front(&mut self, job: Job) {
        if self.keys.insert(key(&job)) {
            self.scans += usize::from(is_scan(&job));
        } else {
            let wanted = key(&job);
            self.jobs.retain(|other| key(other) != wanted);
        }
        self.jobs.push_front(job);
    }

    pub(super) fn has(&self, job: &Job) -> bool {
        self.keys.contains(&key(job))
    }

    /// Whether one more unit may be looked for.
    pub(super) fn has_room(&self) -> bool {
        self.scans < SCANS
    }

    /// Takes the first of these.
    pub(super) fn take(&mut self, is: impl Fn(&Job) -> bool) -> Option<Job> {
        let place = self.jobs.iter().position(is)?;
        let job = self.jobs.remove(place)?;
        self.keys.remove(&key(&job));
        self.scans -= usize::from(is_scan(&job));
        Some(job)
    }

    pub(super) fn retain(&mut self, stays: impl Fn(&Job) -> bool) {
        let (keys, scans) = (&mut self.keys, &mut self.scans);
        self.jobs.retain(|job| {
            let stays = stays(job);
            if !stays {
                keys.remove(&key(job));
                *scans -= usize::from(is_scan(job));
            }
            stays
        });
    }

    /// Only these single units are looked for.
    pub(super) fn keep_scans(&mut self, luns: &BTreeSet<Lun>) {
        if self.scans > 0 {
            self.retain(|job| !matches!(job, Job::Scan(at, true) if !luns.contains(&at.lun.bytes())));
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// How many single units wait to be looked for.
    pub(super) fn scans(&self) -> usize {
        self.scans
    }
}

fn is_scan(job: &Job) -> bool {
    matches!(job, Job::Scan(_, true))
}
