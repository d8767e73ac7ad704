//! Work at one target port: what is to be done, what is under way, and what is tried again. What the kernel changes it changes one after
//! the other. What is asked goes beside that, and each unit for itself: one that does not answer holds up no other, nor what is to be
//! found.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use fc::Address;

use super::super::Lun;
use super::Job;
use super::queue::Queue;

/// Units that are asked at a time, besides those that do not answer; all of them; and up to how many without a reason.
const UNITS: usize = 16;
const MOST: usize = 4 * UNITS;
const CHECKS: usize = UNITS / 2;
/// After how long a unit is one that does not answer, and another is asked; and how many for what their target has.
const LATE: Duration = Duration::from_secs(3);
const ASKS: usize = 3;
/// How often the kernel is told what it did not take, and the pause, which grows.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_secs(2);

/// What goes one after the other.
#[derive(PartialEq, Eq)]
enum Lane {
    Kernel,
    Ask,
    Unit(Address),
}

fn lane(job: &Job) -> Lane {
    match job {
        Job::Tune(..) | Job::Scan(..) | Job::Delete(_) => Lane::Kernel,
        Job::Ask(_) => Lane::Ask,
        Job::Who(address, _) => Lane::Unit(*address),
        Job::Rescan(seat, _) => Lane::Unit(seat.address),
    }
}

/// The unit that is asked by a job.
fn unit_of(job: &Job) -> Option<Address> {
    match lane(job) {
        Lane::Unit(address) => Some(address),
        Lane::Kernel | Lane::Ask => None,
    }
}

/// What the kernel did not do.
struct Failed {
    job: Job,
    times: u32,
    /// When it is told again, unless it is being told.
    again: Option<Instant>,
}

#[derive(Default)]
pub(super) struct Lanes {
    waiting: Queue,
    under_way: Vec<(Job, Instant)>,
    /// Where units are asked who they are, or will be.
    who: BTreeSet<Address>,
    failed: Vec<Failed>,
    /// When one of those that are asked has not answered for so long that another has its turn, if one waits for that.
    late: Option<Instant>,
    /// When the last was over.
    over: Option<Instant>,
}

impl Lanes {
    /// One more job; not twice the same.
    pub(super) fn add(&mut self, job: Job) {
        let is_new = match &job {
            Job::Who(address, _) => self.who.insert(*address),
            _ => true,
        };
        if is_new {
            self.waiting.push_back(job);
        }
    }

    /// Whether the kernel may be told of one more unit to look for.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.has_room()
    }

    /// How many units the kernel is to look for.
    pub(super) fn scans(&self) -> usize {
        self.waiting.scans()
    }

    /// The kernel looks for no unit but these.
    pub(super) fn keep_scans(&mut self, luns: &BTreeSet<Lun>) {
        self.waiting.keep_scans(luns);
    }

    /// A unit is asked who it is before others are.
    pub(super) fn hurry(&mut self, job: Job) {
        let is_new = matches!(&job, Job::Who(address, _) if self.who.insert(*address));
        if is_new || self.waiting.has(&job) {
            self.waiting.push_front(job);
        }
    }

    /// What comes again by itself is let go of.
    pub(super) fn let_go(&mut self) {
        self.waiting.retain(|job| matches!(job, Job::Delete(_) | Job::Rescan(..)));
        let at = |(job, _): &(Job, Instant)| match job {
            Job::Who(address, _) => Some(*address),
            _ => None,
        };
        self.who = self.under_way.iter().filter_map(at).collect();
    }

    /// Begins with the next that can begin.
    pub(super) fn begin(&mut self, now: Instant) -> Option<Job> {
        let due = |failed: &&mut Failed| failed.again.is_some_and(|again| again <= now);
        for failed in self.failed.iter_mut().filter(due) {
            failed.again = None;
            self.waiting.push_back(failed.job.clone());
        }
        let (kernel, room) = (self.is_kernel_idle(), self.can_ask(now));
        let busy: BTreeSet<Address> = self.under_way.iter().filter_map(|(job, _)| unit_of(job)).collect();
        let is_free = |job: &Job| unit_of(job).map_or(kernel, |unit| room && !busy.contains(&unit));
        let job = if kernel || room { self.waiting.take(is_free) } else { None };
        let waits = job.is_none() && self.waiting.iter().any(|job| unit_of(job).is_some());
        let late = self.asked_units().map(|begun| *begun + LATE).filter(|late| waits && *late > now);
        self.late = late.min();
        let job = job?;
        self.start(job.clone(), now);
        Some(job)
    }

    /// A job is under way.
    pub(super) fn start(&mut self, job: Job, now: Instant) {
        self.under_way.push((job, now));
    }

    /// Whether a unit may be asked that is not being asked.
    fn can_ask(&self, now: Instant) -> bool {
        let answering = self.asked_units().filter(|begun| now < **begun + LATE).count();
        answering < UNITS && self.asked_units().count() < MOST
    }

    /// When those began that are under way at units.
    fn asked_units(&self) -> impl Iterator<Item = &Instant> {
        self.under_way.iter().filter(|(job, _)| unit_of(job).is_some()).map(|(_, begun)| begun)
    }

    /// Whether a unit may be asked that nobody doubts.
    pub(super) fn can_check(&self) -> bool {
        self.asked_units().count() < CHECKS
    }

    /// Whether the kernel changes nothing now.
    pub(super) fn is_kernel_idle(&self) -> bool {
        self.under_way.iter().all(|(job, _)| lane(job) != Lane::Kernel)
    }

    /// When a unit may be asked for what its target has, as far as others are: not for ever for one that does not answer.
    pub(super) fn may_ask(&self) -> MayAsk {
        let asks = self.under_way.iter().filter(|(job, _)| lane(job) == Lane::Ask);
        match (asks.clone().count(), asks.map(|(_, begun)| *begun).max()) {
            (0, _) | (_, None) => MayAsk::Now,
            (1..ASKS, Some(last)) => MayAsk::From(last + LATE),
            _ => MayAsk::Not,
        }
    }

    /// Whether this unit is asked for what its target has.
    pub(super) fn asks(&self, address: Address) -> bool {
        self.under_way.iter().any(|(job, _)| *job == Job::Ask(address))
    }

    /// Whether this unit is asked who it is, or will be.
    pub(super) fn asks_who(&self, address: Address) -> bool {
        self.who.contains(&address)
    }

    /// A job is over: when it had begun.
    pub(super) fn ends(&mut self, job: &Job, now: Instant) -> Option<Instant> {
        self.over = Some(now);
        let place = self.under_way.iter().position(|(other, _)| other == job)?;
        if let Job::Who(address, _) = job {
            self.who.remove(address);
        }
        Some(self.under_way.swap_remove(place).1)
    }

    /// The kernel did it, or has given it up for good.
    pub(super) fn done(&mut self, job: &Job) {
        self.failed.retain(|failed| failed.job != *job);
    }

    /// The kernel did not do it: whether it is told again.
    pub(super) fn fails(&mut self, job: &Job, now: Instant) -> bool {
        if !self.failed.iter().any(|failed| failed.job == *job) {
            self.failed.push(Failed { job: job.clone(), times: 0, again: None });
        }
        let Some(failed) = self.failed.iter_mut().find(|failed| failed.job == *job) else { return false };
        failed.times += 1;
        failed.again = (failed.times < TRIES).then(|| now + PAUSE * failed.times);
        let again = failed.again.is_some();
        if !again {
            self.done(job);
        }
        again
    }

    /// When it has something to do again without being told.
    pub(super) fn next(&self) -> Option<Instant> {
        self.failed.iter().filter_map(|failed| failed.again).chain(self.late).min()
    }

    /// When the last job was over, if none is left but those of units that do not answer.
    pub(super) fn idle(&self, now: Instant) -> Option<Option<Instant>> {
        let silent = |(job, begun): &(Job, Instant)| matches!(job, Job::Who(..)) && now >= *begun + LATE;
        (self.waiting.is_empty() && self.under_way.iter().all(silent)).then_some(self.over)
    }

    /// The same of what finds units.
    pub(super) fn has_looked(&self) -> Option<Option<Instant>> {
        let finds = |job: &Job| matches!(lane(job), Lane::Kernel | Lane::Ask);
        let mut all = self.waiting.iter().chain(self.under_way.iter().map(|(job, _)| job));
        (!all.any(finds)).then_some(self.over)
    }
}

/// Whether a unit may be asked for what its target has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MayAsk {
    Now,
    From(Instant),
    /// Too many are.
    Not,
}
