//! One logical unit behind a target port.

use std::time::{Duration, Instant};

use devices::scsi::generic::{Identity, Wanted as Device};
use fc::Address;
use fc::glimpse::Sighting;

use super::super::UnitNews;
use super::{Job, SURE, TIMES};

/// Devices of one target port that are being opened at a time.
pub(super) const MOST: usize = 64;
/// The same with those that nobody waits for any more.
pub(super) const THREADS: usize = 4 * MOST;
/// How soon a device is tried again that lacks a node yet, and how long it may lack it.
const SOON: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon one that cannot be opened is tried again.
const AGAIN: Duration = Duration::from_secs(15);
/// The same, where it is something that happens to it: to try is to cause such events.
const STIRRED: Duration = Duration::from_secs(1);
/// How soon one is offered again that the machine did not take: twice as late each time, up to this, as long as that goes on.
const OFFER: (Duration, Duration) = (AGAIN, Duration::from_secs(300));
const TAKEN: Duration = Duration::from_secs(600);
/// How soon one that did not say who it is is asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long its commands wait until it has said that.
const HELD: Duration = Duration::from_secs(20);
/// How often one is asked who it is without a reason: the host hears of no change that its target does not tell of.
const CHECK: Duration = Duration::from_secs(60);

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

/// It may be another one than it was: it is asked.
#[derive(Clone, Copy)]
struct Doubt {
    /// What was asked before counts no more.
    since: Instant,
    /// It is asked then.
    next: Instant,
    /// Since when its commands wait for that.
    held: Option<Instant>,
    /// It has said something else of itself, which the kernel has to hear.
    suspected: bool,
    /// It did not answer.
    silent: bool,
    /// How often in a row it said that it is another one: once may be a mistake.
    others: u32,
}

/// How far it is with one whom the kernel takes for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vouched {
    No,
    /// It has said itself that it is who it was, and the kernel is to hear that: until then it is not opened.
    Said,
    /// The kernel has asked it anew.
    Heard,
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
    /// By which it was given to the machine last, and when.
    offer: Option<(u64, Instant)>,
    /// How often in a row the machine did not take it.
    refusals: u32,
    /// What was said last of why it cannot be opened.
    said: Option<String>,
    /// When it was tried last and could not be opened.
    failed: Option<Instant>,
    doubt: Option<Doubt>,
    vouched: Vouched,
    /// When it was asked last who it is.
    checked: Instant,
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
            offer: None,
            refusals: 0,
            said: None,
            failed: None,
            doubt: None,
            vouched: Vouched::No,
            checked: now,
        }
    }

    /// It is there now: what the machine hears of that, and whether it calls itself otherwise than before.
    pub(super) fn see(&mut self, sighting: &Sighting, now: Instant) -> (Option<UnitNews>, bool) {
        let mut news = None;
        let mut renamed = false;
        let same = self
            .seat
            .as_ref()
            .is_some_and(|seat| seat.number == sighting.number && seat.address == sighting.address);
        if same {
            let before = self.seat.as_ref().and_then(|seat| seat.wwid.as_ref());
            let another = before.zip(sighting.wwid.as_ref()).is_some_and(|(before, after)| before != after);
            renamed = another && self.is_told();
            if another && self.stage == Stage::Closed {
                self.be_another(now);
            }
        } else {
            match self.stage {
                Stage::There => {
                    news = Some(UnitNews::Lost);
                    self.stage = Stage::Away;
                }
                // It went, and the target has it again.
                Stage::Going => self.be_another(now),
                Stage::Closed | Stage::Away => {}
            }
            (self.since, self.next, self.ticket, self.failed) = (now, now, None, None);
            (self.doubt, self.vouched) = (None, Vouched::No);
        }
        self.seat = Some(sighting.clone());
        (news, renamed)
    }

    /// It is not there now: whether the unit stays, and what the machine hears.
    pub(super) fn vanish(&mut self) -> (bool, Option<UnitNews>) {
        self.seat = None;
        (self.ticket, self.doubt, self.vouched) = (None, None, Vouched::No);
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
        running
            && self.ticket.is_none()
            && self.doubt.is_none()
            && self.vouched != Vouched::Said
            && matches!(self.stage, Stage::Closed | Stage::Away)
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

    /// It is open, and the machine has it: the number by which it does.
    pub(super) fn come(&mut self, device: Option<Box<Device>>, now: Instant) -> u64 {
        self.device = device.or(self.device.take());
        let offer = self.ticket.unwrap_or_default();
        self.offer = Some((offer, now));
        (self.stage, self.ticket, self.said, self.failed) = (Stage::There, None, None, None);
        (self.checked, self.vouched) = (now, Vouched::No);
        offer
    }

    /// The machine did not take what it was given, if that was the last: it is offered again, as a new one if the machine does not `know`
    /// it. Whether the machine keeps commands back from it: then it is lost, for nothing else ends that.
    pub(super) fn be_refused(&mut self, offer: u64, knows: bool, now: Instant) -> bool {
        let last = self.offer.filter(|(last, _)| *last == offer && self.stage == Stage::There);
        let Some((_, given)) = last else { return false };
        let held = self.doubt.as_mut().is_some_and(|doubt| doubt.held.take().is_some());
        self.refusals = if now >= given + TAKEN { 0 } else { self.refusals };
        let pause = OFFER.0.saturating_mul(1 << self.refusals.min(10)).min(OFFER.1);
        self.refusals = self.refusals.saturating_add(1);
        if knows {
            // It may be another one.
            self.stage = Stage::Away;
            self.doubt(now);
        } else {
            (self.stage, self.device, self.doubt) = (Stage::Closed, None, None);
        }
        (self.since, self.next, self.failed) = (now, now + pause, Some(now));
        held && knows
    }

    /// It is not who it was.
    pub(super) fn be_another(&mut self, now: Instant) {
        (self.stage, self.device, self.ticket) = (Stage::Closed, None, None);
        (self.since, self.next, self.missing, self.failed) = (now, now, 0, None);
        (self.doubt, self.vouched, self.refusals) = (None, Vouched::No, 0);
    }

    /// The kernel has its place since it was opened, and keeps what it knew of it.
    pub(super) fn is_of_kernels_memory(&self) -> bool {
        let seat = self.seat.as_ref();
        seat.zip(self.device.as_ref()).is_some_and(|(seat, device)| seat.number == device.number)
    }

    /// The kernel takes it for another one: whether that is to be believed. It is asked first, for the kernel may have heard it badly. At a
    /// port that is `young` it may hear it badly again: it has all the time that the port has.
    pub(super) fn is_taken_for_another(&mut self, young: bool, now: Instant) -> bool {
        self.ticket = None;
        let again = self.vouched == Vouched::Heard;
        if again && !young {
            return true;
        }
        let is_asked = self.suspect(now);
        if again && is_asked {
            // The others do not wait for that.
            self.failed = Some(now);
            self.doubt.iter_mut().for_each(|doubt| doubt.next = now + PAUSE);
        }
        !is_asked
    }

    /// The kernel has asked it anew who it is. It is asked here, too, once more: it may have become another one meanwhile.
    pub(super) fn is_heard(&mut self, now: Instant) {
        if self.vouched == Vouched::Said {
            self.vouched = Vouched::Heard;
            self.doubt(now);
        }
    }

    /// The kernel does not ask it anew: it is opened later, and what the kernel says of it then counts no more than before.
    pub(super) fn is_not_heard(&mut self, now: Instant) {
        if self.vouched == Vouched::Said {
            (self.vouched, self.next, self.failed) = (Vouched::No, now + AGAIN, Some(now));
        }
    }

    /// It is asked whether it is who it was, if the machine has it and the kernel, too. In what state the kernel has it does not matter:
    /// of a port that has just come back that is an old one.
    pub(super) fn doubt(&mut self, now: Instant) {
        if self.seat.is_none() || !self.is_told() || self.device.is_none() {
            return;
        }
        let doubt = self.doubt.get_or_insert(Doubt {
            since: now,
            next: now,
            held: None,
            suspected: false,
            silent: false,
            others: 0,
        });
        (doubt.since, doubt.next, doubt.silent) = (now, now, false);
        // What waits for a port that was lost has waited for nothing else.
        doubt.held = doubt.held.map(|_| now);
    }

    /// It says something else of itself: whether it is asked who it is.
    pub(super) fn suspect(&mut self, now: Instant) -> bool {
        let held = self.doubt.and_then(|doubt| doubt.held);
        self.ticket = None;
        self.doubt(now);
        self.doubt.as_mut().is_some_and(|doubt| {
            // One that says so again and again is not waited for longer.
            (doubt.suspected, doubt.held) = (true, held);
            true
        })
    }

    /// The machine shall send it nothing until it is known who it is: whether that is news.
    pub(super) fn hold(&mut self, now: Instant) -> bool {
        let there = self.stage == Stage::There;
        let doubt = self.doubt.as_mut().filter(|doubt| there && doubt.held.is_none());
        doubt.is_some_and(|doubt| doubt.held.replace(now).is_none())
    }

    /// The job to ask it, if it is doubted and it is time.
    pub(super) fn asks(&self, now: Instant) -> Option<Job> {
        self.doubt.filter(|doubt| doubt.next <= now).and_then(|_| self.who())
    }

    fn who(&self) -> Option<Job> {
        let (seat, device) = self.seat.as_ref().zip(self.device.as_ref())?;
        Some(Job::Who(seat.address, Box::new(device.identity.clone())))
    }

    /// The same of one that nobody doubts, which has not been asked for long, and since when it was not.
    pub(super) fn check(&self, now: Instant) -> Option<(Instant, Job)> {
        let due = self.stage == Stage::There && self.doubt.is_none() && now >= self.checked + CHECK;
        Some((self.checked, if due { self.who()? } else { return None }))
    }

    /// When it is asked next, if it is not being `asked`; or not waited for any more.
    pub(super) fn next_question(&self, asked: bool) -> Option<Instant> {
        let doubt = self.doubt?;
        let over = doubt.held.filter(|_| self.stage == Stage::There).map(|held| held + HELD);
        over.into_iter().chain((!asked && self.seat.is_some()).then_some(doubt.next)).min()
    }

    /// Whether its commands have waited long enough.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        let held = self.doubt.and_then(|doubt| doubt.held).filter(|_| self.stage == Stage::There);
        held.is_some_and(|held| now >= held + HELD)
    }

    /// Whether the others of its port wait for it, which is back. `looked`: what was to be found is.
    pub(super) fn holds_up(&self, looked: bool) -> bool {
        // One that says that it is another one says so for as long as it takes to be sure.
        let answers = self.doubt.is_none_or(|doubt| !doubt.silent && doubt.others == 0);
        match (self.stage, &self.seat) {
            (Stage::There, _) => self.doubt.is_some() && answers,
            (Stage::Away, Some(_)) => self.failed.is_none() && answers,
            (Stage::Away, None) => !looked,
            (Stage::Closed | Stage::Going, _) => false,
        }
    }

    pub(super) fn is_doubted(&self) -> bool {
        self.doubt.is_some()
    }

    /// Where it is, if it is asked at this address whether it is this one.
    pub(super) fn asked(&self, address: Address, was: &Identity) -> Option<Sighting> {
        let seat = self.seat.as_ref().filter(|seat| self.is_told() && seat.address == address)?;
        self.device.as_ref().filter(|device| device.identity == *was)?;
        Some(seat.clone())
    }

    /// It is who it was, as it has said when it was asked at `begun`: whether the kernel has to hear what else it says, and whether the
    /// machine has to hear that.
    pub(super) fn believe(&mut self, begun: Option<Instant>, now: Instant) -> (bool, bool) {
        self.checked = now;
        let Some(doubt) = self.doubt.take_if(|doubt| begun >= Some(doubt.since)) else {
            return (false, false);
        };
        let is_there = self.stage == Stage::There;
        // Nodes that others have yet, as the machine has, are tried again soon.
        self.since = now;
        if self.failed.is_none() || self.vouched == Vouched::Heard {
            self.next = now;
        }
        // The kernel hears it first, and has just heard it of one for which that was waited.
        let again = self.vouched == Vouched::Heard && !doubt.suspected;
        if doubt.suspected && !is_there {
            self.vouched = Vouched::Said;
        }
        (doubt.suspected || !is_there && !again, doubt.held.is_some() && is_there)
    }

    /// It is another one, as it says: whether that is sure. At a port that is `young` nothing is.
    pub(super) fn disbelieve(&mut self, young: bool, now: Instant) -> bool {
        if self.doubt.is_none() {
            self.doubt(now);
        }
        self.doubt.as_mut().is_some_and(|doubt| {
            doubt.others = doubt.others.saturating_add(1);
            let pause = if doubt.others < TIMES { SURE } else { PAUSE };
            (doubt.next, doubt.silent) = (now + pause, false);
            doubt.others >= TIMES && !young
        })
    }

    /// It did not say who it is.
    pub(super) fn be_silent(&mut self, now: Instant) {
        self.checked = now;
        if let Some(doubt) = &mut self.doubt {
            (doubt.silent, doubt.others, doubt.next) = (true, 0, now + PAUSE);
        }
    }

    /// It is taken from the machine for now: whether that is news.
    pub(super) fn lose(&mut self) -> bool {
        self.ticket = None;
        let had = self.stage == Stage::There;
        if had {
            self.stage = Stage::Away;
        }
        if let Some(doubt) = &mut self.doubt {
            doubt.held = None;
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
        // One that the machine did not take causes events each time it does not.
        if let Some(failed) = self.failed.filter(|_| self.refusals == 0) {
            self.next = self.next.min(now.max(failed + STIRRED));
        }
    }
}
