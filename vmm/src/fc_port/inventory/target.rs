//! One target port.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fc::model::RemotePort as Seen;
use fc::{Address, Wwn};
use hba_virtio_scsi::fc::RemoteState;

use super::super::{Lun, Wanted};
use super::lanes::{Lanes, MayAsk};
use super::{ASK, FIRST_ASK, Job, RECOVERY, RETURN, SCAN, TRY};

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
    /// Since when it is online.
    online: Option<Instant>,
    /// It was lost, and its units are not all back: it is not shown to be there yet.
    returning: bool,
    /// It was online before.
    known: bool,
    /// Its times were written.
    tuned: bool,
    pub(super) lanes: Lanes,
    /// When it is asked next, or the kernel looks next.
    ask: Instant,
    /// When the last answer or look of the kernel began that is over.
    asked: Option<Instant>,
    /// When that answer began by which its units are known.
    known_since: Option<Instant>,
    /// How often the kernel has looked for a unit and there was none.
    pub(super) scans: u32,
    /// When the kernel was told last of units that it did not take: of those that the target still names, and lately.
    pub(super) tried: BTreeMap<Lun, Instant>,
    /// The last of these: the next one has its turn then.
    last_tried: Option<Lun>,
    /// There are more for which the kernel is to look than could be told.
    has_more: bool,
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
            online: None,
            returning: false,
            known: false,
            tuned: false,
            lanes: Lanes::default(),
            ask: now,
            asked: None,
            known_since: None,
            scans: 0,
            tried: BTreeMap::new(),
            last_tried: None,
            has_more: false,
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
                    (self.online, self.returning) = (Some(now), self.known);
                    self.known = true;
                    (self.ask, self.scans) = (now + FIRST_ASK, 0);
                    (self.tuned, self.asked) = (false, None);
                    self.tried.clear();
                    self.has_more = false;
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
            // What comes again by itself when it is back.
            self.lanes.let_go();
        }
        (before == RemoteState::Online) != (self.state == RemoteState::Online)
    }

    /// It is not there any more.
    pub(super) fn lose(&mut self) {
        (self.state, self.blocked) = (RemoteState::Lost, None);
        self.lanes.let_go();
    }

    pub(super) fn is_online(&self) -> bool {
        self.state == RemoteState::Online
    }

    /// Whether the kernel waits for it no more: it is not there, or was lost for longer than its `dev_loss_tmo`.
    pub(super) fn is_given_up(&self) -> bool {
        self.state == RemoteState::Lost && self.blocked.is_none()
    }

    /// Whether it has come, or come back, so lately that it may not know all its units yet.
    pub(super) fn is_young(&self, now: Instant) -> bool {
        self.is_online() && self.online.is_some_and(|online| now < online + RECOVERY)
    }

    /// Until when its units have time to be back, if they are not yet.
    pub(super) fn returns(&self) -> Option<Instant> {
        self.online.filter(|_| self.is_online() && self.returning).map(|online| online + RETURN)
    }

    /// It is shown to be there.
    pub(super) fn has_returned(&mut self) {
        self.returning = false;
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
            self.lanes.add(Job::Tune(self.name.clone(), times));
        }
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

    /// The kernel looks for units that the target has and it has not, in the order of their numbers, if it has not just done that: for some
    /// at a time, each in its turn. It looks for nothing that is not among `all` that the target has.
    pub(super) fn find(&mut self, asked: Address, all: &BTreeSet<Lun>, lacking: &[Lun], now: Instant) {
        self.tried.retain(|lun, then| all.contains(lun) && now < *then + TRY);
        self.lanes.keep_scans(all);
        self.has_more = false;
        let place = lacking.partition_point(|lun| self.last_tried.is_some_and(|last| *lun <= last));
        let (before, after) = lacking.split_at_checked(place).unwrap_or((lacking, &[]));
        for lun in after.iter().chain(before) {
            if self.tried.contains_key(lun) {
                continue;
            }
            if !self.lanes.has_room() {
                self.has_more = true;
                return;
            }
            self.tried.insert(*lun, now);
            self.last_tried = Some(*lun);
            self.lanes.add(Job::Scan(Address { lun: fc::Lun::from_bytes(*lun), ..asked }, true));
        }
    }

    /// The next job, if there is one that can begin. `unit`: which is asked; it `runs` where it has one.
    pub(super) fn begin(&mut self, unit: Option<Address>, runs: bool, now: Instant) -> Option<Job> {
        if !self.is_online() {
            return None;
        }
        if let Some(job) = self.lanes.begin(now) {
            return Some(job);
        }
        let job = match (unit, self.place) {
            _ if self.next_ask(unit.is_some(), runs).is_none_or(|when| now < when) => return None,
            (Some(unit), _) => Job::Ask(unit),
            (None, place) => Job::Scan(place?, false),
        };
        self.lanes.start(job.clone(), now);
        Some(job)
    }

    /// When it is asked, or the kernel looks. `asks`: a unit is there that is not being asked.
    fn next_ask(&self, asks: bool, runs: bool) -> Option<Instant> {
        match (asks, self.lanes.may_ask()) {
            (true, MayAsk::Now) => Some(self.ask),
            (true, MayAsk::From(when)) => Some(self.ask.max(when)),
            (true, MayAsk::Not) => None,
            (false, _) => (!runs && self.place.is_some() && self.lanes.is_kernel_idle()).then_some(self.ask),
        }
    }

    /// A job is over: when it had begun.
    pub(super) fn over(&mut self, job: &Job, now: Instant) -> Option<Instant> {
        let begun = self.lanes.ends(job, now)?;
        match job {
            Job::Ask(_) => {
                (self.asked, self.ask, self.scans) = (self.asked.max(Some(begun)), now + ASK, 0);
            }
            Job::Scan(_, false) => {
                (self.asked, self.ask) = (self.asked.max(Some(begun)), now + SCAN);
                self.scans = self.scans.saturating_add(1);
            }
            Job::Scan(_, true) if self.has_more && self.lanes.scans() == 0 => self.ask_at(now),
            _ => {}
        }
        Some(begun)
    }

    /// Whether an answer that began then is newer than what is known.
    pub(super) fn is_news(&mut self, begun: Option<Instant>) -> bool {
        let is_news = self.is_online() && begun >= self.known_since && begun >= self.online;
        if is_news {
            self.known_since = begun;
        }
        is_news
    }

    /// When it has something to do without being told.
    pub(super) fn next(&self, asks: bool, runs: bool) -> Option<Instant> {
        let all = [self.next_ask(asks, runs), self.lanes.next(), self.returns()];
        if self.is_online() { all.into_iter().flatten().min() } else { None }
    }

    /// Whether it was asked since then, and all that came of it was `seen`.
    pub(super) fn has_settled(&self, since: Instant, seen: Option<Instant>, now: Instant) -> bool {
        let asked = self.asked.is_some_and(|asked| asked >= since);
        asked && !self.has_more && self.lanes.idle(now).is_some_and(|over| seen >= over)
    }

    /// Whether it was asked since it is online, and the kernel has what was found.
    pub(super) fn has_looked(&self, seen: Option<Instant>) -> bool {
        let looked = self.lanes.has_looked().is_some_and(|over| seen >= over);
        self.asked >= self.online && !self.has_more && looked
    }
}
