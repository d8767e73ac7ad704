//! The state of persistent reservations (SPC-5, 5.13): registrations, at most one reservation, and what others must be
//! told when they change.

use super::Access;
use crate::scsi::Status;
use crate::scsi::attention::Attention;
use crate::scsi::sense::{Failure, INVALID_RELEASE, SenseData};
use crate::scsi::tasks::NexusId;

/// Reservation type (SPC-5, table 216); the discriminants are the wire values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    WriteExclusive = 1,
    ExclusiveAccess = 3,
    WriteExclusiveRegistrantsOnly = 5,
    ExclusiveAccessRegistrantsOnly = 6,
    WriteExclusiveAllRegistrants = 7,
    ExclusiveAccessAllRegistrants = 8,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    /// From the SCOPE and TYPE byte of a CDB. The only scope is the logical unit.
    pub(super) fn from_scope_and_type(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
    /// Others may still read.
    fn only_writing(self) -> bool {
        matches!(
            self,
            Self::WriteExclusive | Self::WriteExclusiveRegistrantsOnly | Self::WriteExclusiveAllRegistrants
        )
    }
    /// Every registered nexus may do all.
    fn shared(self) -> bool {
        self as u8 >= 5
    }
    /// Every registered nexus holds the reservation.
    fn held_by_all(self) -> bool {
        self as u8 >= 7
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registrant {
    pub(super) nexus: NexusId,
    pub(super) key: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reservation {
    /// Who made it; with the all registrants types, one of several holders.
    holder: NexusId,
    kind: Kind,
}

/// What a service action means for other initiators.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// Unit attention conditions to establish.
    pub(super) attentions: Vec<(NexusId, Attention)>,
    /// Nexuses that lost their registration by preemption.
    pub(super) preempted: Vec<NexusId>,
}

const CONFLICT: Failure = Failure::Status(Status::ReservationConflict);

/// Registrations and the reservation.
#[derive(Debug, Default)]
pub(super) struct Persistent {
    generation: u32,
    registrants: Vec<Registrant>,
    reservation: Option<Reservation>,
}

impl Persistent {
    pub(super) fn allows(&self, nexus: NexusId, access: Access) -> bool {
        let Some(Reservation { kind, .. }) = self.reservation else { return true };
        let registered = self.key_of(nexus).is_some();
        if self.is_holder(nexus) || (kind.shared() && registered) {
            return true;
        }
        match access {
            Access::Always => true,
            Access::Read => kind.only_writing(),
            Access::Write => false,
        }
    }

    pub(super) fn has_registrants(&self) -> bool {
        !self.registrants.is_empty()
    }
    pub(super) fn is_reserved(&self) -> bool {
        self.reservation.is_some()
    }
    /// PRGENERATION
    pub(super) fn generation(&self) -> u32 {
        self.generation
    }
    pub(super) fn registrants(&self) -> &[Registrant] {
        &self.registrants
    }
    /// Type of the reservation and the key of its holder, zero when all registrants hold it.
    pub(super) fn reservation(&self) -> Option<(Kind, u64)> {
        let reservation = self.reservation?;
        let key = if reservation.kind.held_by_all() { None } else { self.key_of(reservation.holder) };
        Some((reservation.kind, key.unwrap_or(0)))
    }
    pub(super) fn is_holder(&self, nexus: NexusId) -> bool {
        self.reservation.is_some_and(|reservation| {
            if reservation.kind.held_by_all() {
                self.key_of(nexus).is_some()
            } else {
                reservation.holder == nexus
            }
        })
    }

    /// REGISTER, and with `ignore` REGISTER AND IGNORE EXISTING KEY.
    pub(super) fn register(
        &mut self,
        nexus: NexusId,
        key: u64,
        new: u64,
        ignore: bool,
    ) -> Result<Effects, Failure> {
        let known = self.key_of(nexus);
        if !ignore && key != known.unwrap_or(0) {
            return Err(CONFLICT);
        }
        match (known, new) {
            (None, 0) => return Ok(Effects::default()),
            (None, _) => self.registrants.push(Registrant { nexus, key: new }),
            (Some(_), 0) => {
                self.bump();
                return Ok(self.unregister(nexus));
            }
            (Some(_), _) => {
                for registrant in self.registrants.iter_mut().filter(|r| r.nexus == nexus) {
                    registrant.key = new;
                }
            }
        }
        self.bump();
        Ok(Effects::default())
    }

    /// Takes a registration away, and with the holder's its reservation (SPC-5, 5.13.11.2).
    pub(super) fn unregister(&mut self, nexus: NexusId) -> Effects {
        let held = self.is_holder(nexus);
        self.registrants.retain(|registrant| registrant.nexus != nexus);
        let mut effects = Effects::default();
        if let Some(Reservation { kind, .. }) = self.reservation
            && held
            && (!kind.held_by_all() || self.registrants.is_empty())
        {
            self.reservation = None;
            if kind.shared() {
                self.tell_registrants(&mut effects, nexus, Attention::ReservationsReleased);
            }
        }
        effects
    }

    /// RESERVE
    pub(super) fn reserve(&mut self, nexus: NexusId, key: u64, kind: Kind) -> Result<Effects, Failure> {
        self.check_key(nexus, key)?;
        match self.reservation {
            None => self.reservation = Some(Reservation { holder: nexus, kind }),
            Some(reservation) if self.is_holder(nexus) && reservation.kind == kind => {}
            Some(_) => return Err(CONFLICT),
        }
        Ok(Effects::default())
    }

    /// RELEASE; `None` is a scope or type that does not exist.
    pub(super) fn release(
        &mut self,
        nexus: NexusId,
        key: u64,
        kind: Option<Kind>,
    ) -> Result<Effects, Failure> {
        self.check_key(nexus, key)?;
        let mut effects = Effects::default();
        match self.reservation {
            Some(reservation) if self.is_holder(nexus) => {
                if Some(reservation.kind) != kind {
                    return Err(SenseData::illegal(INVALID_RELEASE).into());
                }
                self.reservation = None;
                if reservation.kind.shared() {
                    self.tell_registrants(&mut effects, nexus, Attention::ReservationsReleased);
                }
            }
            _ => {}
        }
        Ok(effects)
    }

    /// CLEAR
    pub(super) fn clear(&mut self, nexus: NexusId, key: u64) -> Result<Effects, Failure> {
        self.check_key(nexus, key)?;
        let mut effects = Effects::default();
        self.tell_registrants(&mut effects, nexus, Attention::ReservationsPreempted);
        self.registrants.clear();
        self.reservation = None;
        self.bump();
        Ok(effects)
    }

    /// PREEMPT of those registered with `victim` (SPC-5, 5.13.11.2.4 and on). `kind` is for the case that the
    /// reservation changes hands.
    pub(super) fn preempt(
        &mut self,
        nexus: NexusId,
        key: u64,
        victim: u64,
        kind: Option<Kind>,
    ) -> Result<Effects, Failure> {
        self.check_key(nexus, key)?;
        let (takes_over, everyone) = match self.reservation() {
            None => (false, false),
            Some((old, _)) if old.held_by_all() => (victim == 0, victim == 0),
            Some((_, holder_key)) => (holder_key == victim, false),
        };
        if victim == 0 && !takes_over {
            // SERVICE ACTION RESERVATION KEY names nobody.
            return Err(SenseData::parameter_field(8, None).into());
        }
        let matches = |registrant: &Registrant| everyone || registrant.key == victim;
        if !takes_over && !self.registrants.iter().any(matches) {
            return Err(CONFLICT);
        }
        let new_kind = match (takes_over, kind) {
            (true, None) => return Err(SenseData::cdb_field(2, Some(7)).into()),
            (true, kind) => kind,
            (false, _) => None,
        };
        let mut effects = Effects::default();
        // Who takes the reservation over stays registered, even under the key that it preempts.
        let leaves = |r: &Registrant| matches(r) && !(takes_over && r.nexus == nexus);
        effects.preempted = self.registrants.iter().filter(|r| leaves(r)).map(|r| r.nexus).collect();
        effects.preempted.retain(|other| *other != nexus);
        self.registrants.retain(|r| !leaves(r));
        effects.attentions =
            effects.preempted.iter().map(|nexus| (*nexus, Attention::RegistrationsPreempted)).collect();
        if let (Some(kind), Some(old)) = (new_kind, self.reservation) {
            self.reservation = Some(Reservation { holder: nexus, kind });
            if old.kind != kind {
                self.tell_registrants(&mut effects, nexus, Attention::ReservationsReleased);
            }
        } else if self.registrants.is_empty() {
            self.reservation = None;
        }
        self.bump();
        Ok(effects)
    }

    fn tell_registrants(&self, effects: &mut Effects, but: NexusId, attention: Attention) {
        let others = self.registrants.iter().filter(|registrant| registrant.nexus != but);
        effects.attentions.extend(others.map(|registrant| (registrant.nexus, attention)));
    }

    fn key_of(&self, nexus: NexusId) -> Option<u64> {
        self.registrants.iter().find(|registrant| registrant.nexus == nexus).map(|r| r.key)
    }

    fn check_key(&self, nexus: NexusId, key: u64) -> Result<(), Failure> {
        if self.key_of(nexus) == Some(key) { Ok(()) } else { Err(CONFLICT) }
    }

    fn bump(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }
}
