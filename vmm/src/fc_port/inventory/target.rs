//! One target port.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use fc::model::RemotePort as Seen;
use fc::{Address, Wwn};
use hba_virtio_scsi::fc::RemoteState;

use super::super::{Lun, Wanted};
use super::{ASK, FIRST_ASK, Job, SCAN, TRY};

pub(super) struct Target {
    pub(super) wwpn: Wwn,
    /// Its node's name, the last that it had.
    pub(super) wwnn: u64,
    pub(super) port_id: u32,
    pub(super) state: RemoteState,
    /// `rport-8:0-2`
    name: String,
    /// Host, channel and target of its units, by which the kernel finds them.
    place: Option<Address>,
    /// Since when it is blocked.
    blocked: Option<Instant>,
    /// Since when it is back, once it was lost.
    back: Option<Instant>,
    /// It was online before.
    known: bool,
    /// Its times were written.
    tuned: bool,
    jobs: VecDeque<Job>,
    /// Since when there is one under way.
    busy: Option<Instant>,
    /// When it is asked next, or the kernel looks next.
    ask: Instant,
    /// When the last answer or look of the kernel began that is over, and when the last job was over.
    asked: Option<Instant>,
    over: Option<Instant>,
    /// How often the kernel has looked for a unit and there was none.
    pub(super) scans: u32,
    /// When the kernel was told last of units that it did not take.
    tried: BTreeMap<Lun, Instant>,
    /// It has said that its units are others; they are asked who they are when it has said which.
    doubts: bool,
}

/// Ports of one name: that which counts.
pub(super) fn rank(state: &str) -> u8 {
    match state {
        "Online" | "Marginal" => 0,
        "Blocked" => 1,
        _ => 2,
    }
}

impl Target {
    pub(super) fn new(wwpn: Wwn, now: Instant) -> Self {
        Self {
            wwpn,
            wwnn: 0,
            port_id: 0,
            state: RemoteState::Lost,
            name: String::new(),
            place: None,
            blocked: None,
            back: None,
            known: false,
            tuned: false,
            jobs: VecDeque::new(),
            busy: None,
            ask: now,
            asked: None,
            over: None,
            scans: 0,
            tried: BTreeMap::new(),
            doubts: false,
        }
    }

    /// What the kernel says of it now, `offline` if it fails commands; whether it has come online by that.
    pub(super) fn see(&mut self, remote: &Seen, offline: bool, wanted: &Wanted, now: Instant) -> bool {
        // What the kernel keeps of one that is lost has no names.
        self.wwnn = remote.wwnn.map_or(self.wwnn, Wwn::bits);
        self.port_id = remote.port_id.unwrap_or(self.port_id);
        if self.name != remote.name {
            self.name.clone_from(&remote.name);
            self.tuned = false;
        }
        let before = self.state;
        match rank(&remote.state) {
            0 if remote.is_target() => {
                self.blocked = None;
                self.state = RemoteState::Online;
                self.place = remote.target.map(|target| Address {
                    host: remote.host,
                    channel: 0,
                    target,
                    lun: fc::Lun(0),
                });
                if before != RemoteState::Online {
                    self.back = self.known.then_some(now);
                    self.known = true;
                    (self.ask, self.scans) = (now + FIRST_ASK, 0);
                    (self.tuned, self.asked) = (false, None);
                    self.tried.clear();
                }
                self.tune(remote, wanted);
            }
            1 => {
                let since = *self.blocked.get_or_insert(now);
                let fails = offline || now >= since + Duration::from_secs(wanted.fast_io_fail_tmo.into());
                self.state = if fails { RemoteState::Lost } else { RemoteState::Blocked };
            }
            _ => self.lose(),
        }
        if self.state != RemoteState::Online {
            self.let_go_of_jobs();
        }
        (before == RemoteState::Online) != (self.state == RemoteState::Online)
    }

    /// It is not there any more.
    pub(super) fn lose(&mut self) {
        (self.state, self.blocked) = (RemoteState::Lost, None);
        self.let_go_of_jobs();
    }

    /// What comes again by itself when it is back.
    fn let_go_of_jobs(&mut self) {
        self.jobs.retain(|job| matches!(job, Job::Delete(_) | Job::Rescan(..)));
    }

    /// Whether it was lost, and is back for no longer than this.
    pub(super) fn is_back_since(&self, time: Duration, now: Instant) -> bool {
        self.state == RemoteState::Online && self.back.is_some_and(|back| now < back + time)
    }

    /// Its times, in an order in which the kernel takes them: commands fail before units go.
    fn tune(&mut self, remote: &Seen, wanted: &Wanted) {
        if std::mem::replace(&mut self.tuned, true) {
            return;
        }
        let fast = Some(wanted.fast_io_fail_tmo).filter(|fast| remote.fast_io_fail_tmo != Some(*fast));
        let loss = wanted.dev_loss_tmo.filter(|loss| remote.dev_loss_tmo != Some(*loss));
        let mut times: Vec<_> = fast.map(|fast| ("fast_io_fail_tmo", fast)).into_iter().collect();
        times.extend(loss.map(|loss| ("dev_loss_tmo", loss)));
        if remote.dev_loss_tmo.is_some_and(|now| wanted.fast_io_fail_tmo >= now) {
            times.reverse();
        }
        if !times.is_empty() {
            self.jobs.push_back(Job::Tune(self.name.clone(), times));
        }
    }

    /// One more job; not twice the same.
    pub(super) fn add(&mut self, job: Job) {
        if !self.jobs.contains(&job) {
            self.jobs.push_back(job);
        }
    }

    /// A unit is asked who it is.
    pub(super) fn jobs_of_doubt(&mut self, job: Option<Job>) {
        job.into_iter().for_each(|job| self.add(job));
    }

    /// It has said that its units are others.
    pub(super) fn doubts(&mut self) {
        self.doubts = true;
    }

    /// Whether it had said so since the last time.
    pub(super) fn takes_doubt(&mut self) -> bool {
        std::mem::take(&mut self.doubts)
    }

    /// What the kernel was told of a unit counts no more.
    pub(super) fn forget(&mut self, lun: Lun) {
        self.tried.remove(&lun);
    }

    /// It is asked at this time, if not sooner.
    pub(super) fn ask_at(&mut self, when: Instant) {
        self.ask = self.ask.min(when);
    }

    /// The kernel looks for a unit that the target has, if it has not just done that.
    pub(super) fn find(&mut self, asked: Address, lun: Lun, now: Instant) {
        if self.tried.get(&lun).is_none_or(|then| now >= *then + TRY) {
            self.tried.insert(lun, now);
            self.add(Job::Scan(Address { lun: fc::Lun::from_bytes(lun), ..asked }, true));
        }
    }

    /// The next job, if there is one and none is under way. `unit`: which is asked.
    pub(super) fn begin(&mut self, unit: Option<Address>, now: Instant) -> Option<Job> {
        if self.busy.is_some() || self.state != RemoteState::Online {
            return None;
        }
        let due = self.ask <= now;
        let job = match (self.jobs.pop_front(), unit, self.place) {
            (Some(job), ..) => job,
            (None, Some(unit), _) if due => Job::Ask(unit),
            (None, None, Some(place)) if due => Job::Scan(place, false),
            _ => return None,
        };
        self.busy = Some(now);
        Some(job)
    }

    /// A job is over.
    pub(super) fn over(&mut self, job: &Job, now: Instant) {
        let begun = self.busy.take();
        self.over = Some(now);
        match job {
            Job::Ask(_) => (self.asked, self.ask, self.scans) = (begun, now + ASK, 0),
            Job::Scan(_, false) => {
                (self.asked, self.ask, self.scans) = (begun, now + SCAN, self.scans.saturating_add(1));
            }
            _ => {}
        }
    }

    /// When it has something to do; it `runs` where it has a unit.
    pub(super) fn next(&self, runs: bool) -> Option<Instant> {
        let idle = self.busy.is_none() && self.state == RemoteState::Online;
        let can = runs || self.place.is_some();
        idle.then(
            || if self.jobs.is_empty() { can.then_some(self.ask) } else { self.busy.or(Some(self.ask)) },
        )?
    }

    /// Whether it was asked since then, and all that came of it was `seen`.
    pub(super) fn has_settled(&self, since: Instant, seen: Option<Instant>) -> bool {
        let asked = self.asked.is_some_and(|asked| asked >= since);
        asked && self.busy.is_none() && self.jobs.is_empty() && seen >= self.over
    }
}
