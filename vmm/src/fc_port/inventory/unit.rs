//! One logical unit behind a target port.

use std::time::{Duration, Instant};

use devices::scsi::generic::{Identity, Wanted as Device};
use fc::Address;
use fc::glimpse::Sighting;

use super::super::UnitNews;
use super::Job;

/// Devices of one target port that are being opened at a time.
pub(super) const MOST: usize = 64;
/// How soon a device is tried again that lacks a node yet, and how long it may lack it.
const SOON: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon one that cannot be opened is tried again.
const AGAIN: Duration = Duration::from_secs(15);
/// The same, where it is something that happens to it: to try is to cause such events.
const STIRRED: Duration = Duration::from_secs(1);

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It is to be opened, or cannot be.
    Closed,
    /// The machine has it.
    There,
    /// The host has lost it, and the machine has its unit still.
    Away,
    /// The target does not know it any more; the kernel forgets it.
    Going,
}

pub(super) struct Unit {
    /// Where the kernel has it.
    pub(super) seat: Option<Sighting>,
    pub(super) stage: Stage,
    /// How often in a row the target did not know it.
    pub(super) missing: u32,
    /// How often in a row it did not answer what the target has.
    pub(super) silent: u32,
    /// Who it is, once the machine has it.
    device: Option<Box<Device>>,
    /// The kernel has had it since.
    since: Instant,
    /// It is tried then.
    next: Instant,
    ticket: Option<u64>,
    /// What was said last of why it cannot be opened.
    said: Option<String>,
    /// When it was tried last and could not be opened.
    failed: Option<Instant>,
    /// It may be another one than it was: it is asked.
    doubted: bool,
}

impl Unit {
    pub(super) fn new(seat: Sighting, now: Instant) -> Self {
        Self {
            seat: Some(seat),
            stage: Stage::Closed,
            missing: 0,
            silent: 0,
            device: None,
            since: now,
            next: now,
            ticket: None,
            said: None,
            failed: None,
            doubted: false,
        }
    }

    /// It is there now: what the machine hears of that.
    pub(super) fn see(&mut self, sighting: &Sighting, now: Instant) -> Vec<UnitNews> {
        let mut news = Vec::new();
        let same = self
            .seat
            .as_ref()
            .is_some_and(|seat| seat.number == sighting.number && seat.address == sighting.address);
        if same {
            let before = self.seat.as_ref().and_then(|seat| seat.wwid.as_ref());
            let another = before.zip(sighting.wwid.as_ref()).is_some_and(|(before, after)| before != after);
            if another && self.stage != Stage::Going {
                // The array has put another one in its place.
                news.extend((self.stage == Stage::There).then_some(UnitNews::Lost));
                news.extend(self.is_told().then_some(UnitNews::Gone));
                self.be_another(now);
            }
        } else {
            match self.stage {
                Stage::There => {
                    news.push(UnitNews::Lost);
                    self.stage = Stage::Away;
                }
                // It went, and the target has it again.
                Stage::Going => self.be_another(now),
                Stage::Closed | Stage::Away => {}
            }
            (self.since, self.next, self.ticket, self.failed) = (now, now, None, None);
            self.doubted = false;
        }
        self.seat = Some(sighting.clone());
        news
    }

    /// It is not there now: whether the unit stays, and what the machine hears.
    pub(super) fn vanish(&mut self) -> (bool, Option<UnitNews>) {
        self.seat = None;
        (self.ticket, self.doubted) = (None, false);
        match self.stage {
            Stage::Closed if self.device.is_none() => (false, None),
            Stage::Going => (false, None),
            Stage::There => {
                self.stage = Stage::Away;
                (true, Some(UnitNews::Lost))
            }
            Stage::Away | Stage::Closed => (true, None),
        }
    }

    /// Whether the machine has it.
    pub(super) fn is_told(&self) -> bool {
        matches!(self.stage, Stage::There | Stage::Away)
    }

    pub(super) fn ticket(&self) -> Option<u64> {
        self.ticket
    }

    pub(super) fn is_opening(&self) -> bool {
        self.ticket.is_some()
    }

    fn can_be_opened(&self) -> bool {
        let running = self.seat.as_ref().is_some_and(Sighting::is_running);
        running && self.ticket.is_none() && !self.doubted && matches!(self.stage, Stage::Closed | Stage::Away)
    }

    /// Whether something comes of it soon: it is being opened, or will be for the first time.
    pub(super) fn is_about_to_come(&self) -> bool {
        self.is_opening() || self.can_be_opened() && self.failed.is_none()
    }

    /// When it is tried next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.can_be_opened().then_some(self.next)
    }

    /// Begins to open it, if it is time: its address, who it was, and whether nodes of it may be missing yet.
    pub(super) fn begin(&mut self, ticket: u64, now: Instant) -> Option<(String, Option<Box<Device>>, bool)> {
        if !self.can_be_opened() || now < self.next {
            return None;
        }
        let address = self.seat.as_ref()?.address.to_string();
        self.ticket = Some(ticket);
        Some((address, self.device.clone(), now < self.since + PATIENCE))
    }

    /// It is open, and the machine has it.
    pub(super) fn come(&mut self, device: Option<Box<Device>>) {
        self.device = device.or(self.device.take());
        (self.stage, self.ticket, self.said, self.failed) = (Stage::There, None, None, None);
    }

    /// It is not who it was.
    pub(super) fn be_another(&mut self, now: Instant) {
        (self.stage, self.device, self.ticket) = (Stage::Closed, None, None);
        (self.since, self.next, self.missing, self.failed) = (now, now, 0, None);
        self.doubted = false;
    }

    /// It is asked whether it is who it was: the job for that, if the machine has it and the kernel, too. In what state the kernel has it
    /// does not matter: of a port that has just come back that is an old one.
    pub(super) fn doubt(&mut self) -> Option<Job> {
        let seat = self.seat.as_ref().filter(|_| self.is_told())?;
        let identity = self.device.as_ref()?.identity.clone();
        let job = Job::Who(seat.address, Box::new(identity));
        self.doubted = true;
        Some(job)
    }

    pub(super) fn is_doubted(&self) -> bool {
        self.doubted
    }

    /// Where it is, if it is doubted at this address whether it is this one.
    pub(super) fn doubted(&self, address: Address, was: &Identity) -> Option<Sighting> {
        let seat = self.seat.as_ref().filter(|seat| self.doubted && seat.address == address)?;
        self.device.as_ref().filter(|device| device.identity == *was)?;
        Some(seat.clone())
    }

    /// It is not doubted any more. Nodes that others have yet, as the machine has, are tried again soon.
    pub(super) fn believe(&mut self, now: Instant) {
        (self.doubted, self.since, self.next) = (false, now, now);
    }

    /// It is taken from the machine for now: whether that is news.
    pub(super) fn lose(&mut self) -> bool {
        self.ticket = None;
        let had = self.stage == Stage::There;
        if had {
            self.stage = Stage::Away;
        }
        had
    }

    /// Its nodes are not all there yet.
    pub(super) fn fail_for_now(&mut self, now: Instant) {
        (self.ticket, self.next) = (None, now + SOON);
    }

    /// It cannot be opened: whether that is news.
    pub(super) fn fail(&mut self, why: &str, now: Instant) -> bool {
        (self.ticket, self.next, self.failed) = (None, now + AGAIN, Some(now));
        self.said.replace(why.to_owned()).as_deref() != Some(why)
    }

    /// Something has happened to it.
    pub(super) fn stir(&mut self, now: Instant) {
        if let Some(failed) = self.failed {
            self.next = self.next.min(now.max(failed + STIRRED));
        }
    }
}
