//! Places that change hands: a drive at a place where the driver may still know another one.
//!
//! Drivers know a drive by its number and nothing else. What they have queued for the drive that went would reach the one
//! that came; so a new drive is not there before the driver has acted on the removal: its lists do not show it, its frames
//! end with "device not found", and no event tells of it. There is no word of a driver's that says so. What counts:
//!
//! 1. It reads the list that the drive is missing from, after it went: volumes LD_GET_LIST or LD_LIST_QUERY, disks
//!    PD_LIST_QUERY of what is exposed to the host. Tools read PD_GET_LIST, which is not the driver's list.
//! 2. After that it asks for events after the removal's last one. Linux (since 2.6.33) does both for each event, and in
//!    between it removes the devices that are missing, waiting until nothing of them is left: so a registration that
//!    follows the look is the end of that.
//! 3. Or its life ends: a reset of the machine, or CTRL_SHUTDOWN. Not an adapter reset: recovery keeps the devices and
//!    sends what was under way again. A driver that starts anew reads the lists and asks for events, as above.
//!
//! FreeBSD and illumos ask for events before they act, and read no list then: they get the new drive at their next start,
//! when they would look anyway, or when a tool has them look and there is an event after that. OpenBSD and NetBSD ask for
//! no events: at the next start. Drivers that ask for events after the removal without having looked were elsewhere
//! when it was told (at their start, or asleep): they are told once more.
//!
//! Without a driver (before INIT: option ROM, boot loader) nothing waits.

use std::collections::BTreeMap;

use super::drives::{Drive, Kind, Place};

/// A drive that went and the driver that may not know.
struct Handover {
    /// Number of the last event of its removal.
    seq: u32,
    /// What the guest's disk was: the volume, or the disk itself.
    kind: Kind,
    /// The driver has read the list that it is missing from.
    looked: bool,
    /// It was told once more.
    reminded: bool,
    /// What comes to its place.
    next: Option<Drive>,
}

/// All places that change hands.
#[derive(Default)]
pub(super) struct Handovers {
    /// A driver is at work, since INIT.
    driver: bool,
    places: BTreeMap<u8, Handover>,
}

/// What a driver that reads a list will see missing: place, and event of the removal.
#[derive(Debug, Default)]
pub(super) struct Look(Vec<(u8, u32)>);

/// What follows from a registration for events.
#[derive(Default)]
pub(super) struct Asked {
    /// Places whose old drive the driver is done with, and what comes there.
    pub(super) over: Vec<(u8, Option<Drive>)>,
    /// Removals that it has to be told once more.
    pub(super) again: Vec<(u8, Kind)>,
}

impl Handovers {
    /// A driver begins its life.
    pub(super) fn driver_came(&mut self) {
        self.driver = true;
    }

    /// Whether one is at work.
    pub(super) fn has_driver(&self) -> bool {
        self.driver
    }

    /// The adapter was reset: what the driver has looked at before does not count with what it does after.
    pub(super) fn reset(&mut self) {
        for place in self.places.values_mut() {
            (place.looked, place.reminded) = (false, false);
        }
    }

    /// The driver and all it knew are gone: what waited may come.
    pub(super) fn driver_went(&mut self) -> Vec<(u8, Drive)> {
        self.driver = false;
        std::mem::take(&mut self.places)
            .into_iter()
            .filter_map(|(id, place)| Some((id, place.next?)))
            .collect()
    }

    /// Notes that the drive of `place` went, with the last event of that.
    pub(super) fn went(&mut self, place: &Place, seq: u32) {
        if self.driver {
            let kind = if place.drive.logical.is_some() { Kind::Logical } else { Kind::Physical };
            let handover = Handover { seq, kind, looked: false, reminded: false, next: None };
            self.places.insert(place.id, handover);
        }
    }

    /// Has `drive` wait for `id`; gives it back when there is nothing to wait for, and what waited before.
    pub(super) fn comes(&mut self, id: u8, drive: Drive) -> Result<Option<Drive>, Drive> {
        match self.places.get_mut(&id) {
            Some(place) => Ok(place.next.replace(drive)),
            None => Err(drive),
        }
    }

    /// Takes back what waits for `id`.
    pub(super) fn withdraw(&mut self, id: u8) -> Option<Drive> {
        self.places.get_mut(&id)?.next.take()
    }

    /// The places that the driver has yet to take note of.
    pub(super) fn ids(&self) -> Vec<u8> {
        self.places.keys().copied().collect()
    }

    /// The driver begins to read the list of drives of this kind.
    pub(super) fn look(&self, kind: Kind) -> Look {
        let of_kind = self.places.iter().filter(|(_, place)| place.kind == kind);
        Look(of_kind.map(|(&id, place)| (id, place.seq)).collect())
    }

    /// It has read that.
    pub(super) fn looked(&mut self, look: &Look) {
        for (id, seq) in &look.0 {
            if let Some(place) = self.places.get_mut(id).filter(|place| place.seq == *seq) {
                (place.looked, place.reminded) = (true, false);
            }
        }
    }

    /// The driver asks for events from number `from` on.
    pub(super) fn asked(&mut self, from: u32) -> Asked {
        let mut asked = Asked::default();
        for (&id, place) in self.places.iter_mut().filter(|(_, place)| from > place.seq) {
            if place.looked {
                asked.over.push((id, place.next.take()));
            } else if !place.reminded {
                place.reminded = true;
                asked.again.push((id, place.kind));
            }
        }
        for (id, _) in &asked.over {
            self.places.remove(id);
        }
        asked
    }

    /// The removal of `id` was told again, as event `seq`.
    pub(super) fn told(&mut self, id: u8, seq: u32) {
        if let Some(place) = self.places.get_mut(&id) {
            place.seq = seq;
        }
    }
}
