//! The tray of a drive, who has locked it, and the events that hosts ask for (MMC-6, 6.6 and 6.7).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use super::sectors::Disc;
use crate::scsi::DataBuffers;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Done, Outcome, Writer};
use crate::scsi::sense::{
    Failure, MEDIUM_REMOVAL_PREVENTED, NO_DISC_TRAY_CLOSED, NO_DISC_TRAY_OPEN, SenseData, SenseKey,
};
use crate::scsi::tasks::NexusId;

/// A guest has locked the tray. It is told that somebody wants it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the guest has locked the tray")]
pub struct Locked;

/// Event codes of the class media (MMC-6, 6.6.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Event {
    EjectRequest = 1,
    NewMedia = 2,
    MediaRemoval = 3,
}

/// Notification classes: power management, media. As bits of the request they are 2^class.
const POWER: u8 = 2;
const MEDIA: u8 = 4;
const SUPPORTED: u8 = 1 << POWER | 1 << MEDIA;
/// No event available.
const NEA: u8 = 0x80;

/// A tray.
pub(super) struct Drive<B>(Mutex<State<B>>);

/// What of a tray a person could see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tray {
    /// It is out.
    pub open: bool,
    /// A guest has locked it: only that guest opens it, or force.
    pub locked: bool,
}

struct State<B> {
    /// What lies in the tray.
    disc: Option<Arc<Disc<B>>>,
    open: bool,
    /// Hosts that keep everybody from opening the tray.
    locks: Vec<NexusId>,
    /// Hosts that have taken the button over, and open the tray themselves.
    buttons: Vec<NexusId>,
    /// The last change of the disc, how many there were, and the number of the last by which a disc went.
    change: Option<Event>,
    changes: u64,
    removal: u64,
    /// How often somebody wanted the tray open in vain since it was open last.
    wishes: u64,
    /// How many changes and wishes each host has heard of. Those that never asked have heard of none.
    heard: Vec<(NexusId, u64, u64)>,
}

impl<B> State<B> {
    fn changes(&mut self, event: Event) {
        self.change = Some(event);
        self.changes += 1;
        if event == Event::MediaRemoval {
            self.removal = self.changes;
        }
        // They are fulfilled, or were for another disc.
        self.end_wishes();
    }

    fn end_wishes(&mut self) {
        self.wishes = 0;
        self.heard.iter_mut().for_each(|(_, _, wishes)| *wishes = 0);
    }

    /// Nobody holds the tray any more: what was wanted in vain can be had now.
    fn unlocked(&mut self) {
        if self.locks.is_empty() && self.buttons.is_empty() {
            self.end_wishes();
        }
    }

    /// The event that a host has not heard of yet, changes first; with `take` it has then.
    fn event_for(&mut self, nexus: NexusId, take: bool) -> Option<Event> {
        let known = |(other, _, _): &(NexusId, u64, u64)| *other == nexus;
        let (changes, wishes) = self
            .heard
            .iter()
            .find(|one| known(one))
            .map_or((0, 0), |&(_, changes, wishes)| (changes, wishes));
        let (event, heard) = if changes < self.removal && self.removal < self.changes {
            // First that the old disc went: Windows tells nobody of a new one where it knows of one.
            (Some(Event::MediaRemoval), (nexus, self.removal, wishes))
        } else if changes != self.changes {
            (self.change, (nexus, self.changes, wishes))
        } else if wishes != self.wishes {
            (Some(Event::EjectRequest), (nexus, changes, self.wishes))
        } else {
            return None;
        };
        if take {
            self.heard.retain(|one| !known(one));
            self.heard.push(heard);
        }
        event
    }

    /// Opens the tray.
    fn open(&mut self) {
        if !self.open {
            self.open = true;
            self.changes(Event::MediaRemoval);
        }
    }

    /// The operator's way to the disc: a lock is in it unless `force` ends that. Whoever has locked it hears of the wish.
    fn reach(&mut self, force: bool) -> Result<(), Locked> {
        if force {
            self.locks.clear();
            self.buttons.clear();
        }
        // Of an open tray nothing is kept.
        if self.open || self.locks.is_empty() && self.buttons.is_empty() {
            return Ok(());
        }
        self.wishes += 1;
        Err(Locked)
    }
}

impl<B> Drive<B> {
    /// A closed tray.
    pub(super) fn new(disc: Option<Disc<B>>) -> Self {
        Self(Mutex::new(State {
            disc: disc.map(Arc::new),
            open: false,
            locks: Vec::new(),
            buttons: Vec::new(),
            change: None,
            changes: 0,
            removal: 0,
            wishes: 0,
            heard: Vec::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disc, if it can be read; else NOT READY.
    pub(super) fn ready(&self) -> Result<Arc<Disc<B>>, Failure> {
        let state = self.lock();
        match &state.disc {
            Some(disc) if !state.open => Ok(disc.clone()),
            _ if state.open => Err(SenseData::new(SenseKey::NotReady, NO_DISC_TRAY_OPEN).into()),
            _ => Err(SenseData::new(SenseKey::NotReady, NO_DISC_TRAY_CLOSED).into()),
        }
    }

    /// The disc in the closed tray.
    pub(super) fn disc(&self) -> Option<Arc<Disc<B>>> {
        self.ready().ok()
    }

    /// The disc, wherever the tray is.
    pub(super) fn inserted(&self) -> Option<Arc<Disc<B>>> {
        self.lock().disc.clone()
    }

    pub(super) fn tray(&self) -> Tray {
        let state = self.lock();
        Tray { open: state.open, locked: !state.locks.is_empty() || !state.buttons.is_empty() }
    }

    /// A host opens the tray, and the disc stays in it: whether it was closed.
    pub(super) fn eject(&self, nexus: NexusId) -> Result<bool, Failure> {
        let mut state = self.lock();
        let others = state.buttons.iter().any(|other| *other != nexus);
        if !state.open && (!state.locks.is_empty() || others) {
            // MMC-6, 6.42: what kind of error it is depends on the disc.
            let key = if state.disc.is_some() { SenseKey::IllegalRequest } else { SenseKey::NotReady };
            return Err(SenseData::new(key, MEDIUM_REMOVAL_PREVENTED).into());
        }
        let moves = !state.open;
        state.open();
        Ok(moves)
    }

    /// The tray closes: whether it was open. If there is a disc now that could not be read before, `tell` is called first, as below: whoever reads
    /// it can see that it is new.
    pub(super) fn load(&self, tell: impl FnOnce()) -> bool {
        let mut state = self.lock();
        if state.open && state.disc.is_some() {
            tell();
            state.changes(Event::NewMedia);
        }
        std::mem::replace(&mut state.open, false)
    }

    /// The operator opens the tray and takes the disc out. With `force` locks do not matter, and end.
    pub(super) fn remove(&self, force: bool) -> Result<Option<Arc<Disc<B>>>, Locked> {
        let mut state = self.lock();
        state.reach(force)?;
        state.open();
        Ok(state.disc.take())
    }

    /// The operator puts a disc in and closes the tray. Gives back a disc that lies there already, and does nothing then.
    pub(super) fn insert(&self, disc: Disc<B>, tell: impl FnOnce()) -> Result<(), Disc<B>> {
        let mut state = self.lock();
        if state.disc.is_some() {
            return Err(disc);
        }
        tell();
        state.disc = Some(Arc::new(disc));
        state.open = false;
        state.changes(Event::NewMedia);
        Ok(())
    }

    /// Both at once: returns what was there. No host finds the drive without a disc in between.
    pub(super) fn change(
        &self,
        disc: Disc<B>,
        force: bool,
        tell: impl FnOnce(),
    ) -> Result<Option<Arc<Disc<B>>>, Locked> {
        let mut state = self.lock();
        if state.disc.is_some() {
            state.reach(force)?;
            state.open();
        }
        tell();
        state.open = false;
        state.changes(Event::NewMedia);
        Ok(state.disc.replace(Arc::new(disc)))
    }

    /// PREVENT ALLOW MEDIUM REMOVAL (MMC-6, 6.15). With PERSISTENT a host does not lock the tray: it takes the button over,
    /// hears when somebody presses it, and opens the tray itself.
    pub(super) fn prevent(&self, nexus: NexusId, cdb: &[u8]) -> Outcome {
        let mut state = self.lock();
        let bits = field(cdb, 4, 1);
        let list = if bits & 2 != 0 { &mut state.buttons } else { &mut state.locks };
        list.retain(|other| *other != nexus);
        if bits & 1 != 0 {
            list.push(nexus);
        }
        state.unlocked();
        Ok(Done::good())
    }

    /// GET EVENT STATUS NOTIFICATION (MMC-6, 6.6).
    pub(super) fn event_status(&self, nexus: NexusId, cdb: &[u8], data: &DataBuffers) -> Outcome {
        if field(cdb, 1, 1) & 1 == 0 {
            // Asynchronous notification is no part of this.
            return Err(SenseData::cdb_field(1, Some(0)).into());
        }
        let (asked, allocation) = (field(cdb, 4, 1) as u8 & SUPPORTED, field(cdb, 7, 2));
        let mut writer = Writer::new(&data.data_in, allocation);
        if asked == 0 {
            // The length of what follows it.
            writer.put(&[0, 2, NEA, SUPPORTED]);
            return Ok(writer.finish());
        }
        let mut state = self.lock();
        // Who takes the header only has not heard of the event.
        let event = match asked & 1 << MEDIA {
            0 => None,
            _ => state.event_for(nexus, allocation > 4),
        };
        // The lowest class with an event, else the lowest that was asked for.
        let media = event.is_some() || asked & 1 << POWER == 0;
        if media {
            let status = u8::from(state.open) | if state.disc.is_some() && !state.open { 2 } else { 0 };
            writer.put(&[0, 6, MEDIA, SUPPORTED, event.map_or(0, |event| event as u8), status, 0, 0]);
        } else {
            // No change; active.
            writer.put(&[0, 6, POWER, SUPPORTED, 0, 1, 0, 0]);
        }
        Ok(writer.finish())
    }

    /// MECHANISM STATUS (MMC-6, 6.12): no changer, and a door that may be open.
    pub(super) fn mechanism_status(&self, cdb: &[u8], data: &DataBuffers) -> Outcome {
        let mut writer = Writer::new(&data.data_in, field(cdb, 8, 2));
        let door = if self.tray().open { 0x10 } else { 0 };
        writer.put(&[0, door, 0, 0, 0, 0, 0, 0]);
        Ok(writer.finish())
    }

    /// A reset ends all locks. The tray stays as it is, but at power on it closes, as those of computers do, and nobody has
    /// heard of anything.
    pub(super) fn reset(&self, power: bool) {
        let mut state = self.lock();
        state.locks.clear();
        state.buttons.clear();
        state.unlocked();
        if power {
            state.open = false;
            (state.change, state.changes, state.removal) = (None, 0, 0);
            state.heard.clear();
        }
    }

    /// The nexus of a host is lost, and its locks end. What it has heard it need not hear again.
    pub(super) fn forget(&self, nexus: NexusId) {
        let mut state = self.lock();
        state.locks.retain(|other| *other != nexus);
        state.buttons.retain(|other| *other != nexus);
        state.unlocked();
    }

    /// There is no such host any more.
    pub(super) fn gone(&self, nexus: NexusId) {
        self.lock().heard.retain(|(other, _, _)| *other != nexus);
    }
}
