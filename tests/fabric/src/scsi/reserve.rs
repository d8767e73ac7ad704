//! Persistent reservations (SPC-4 5.13, 6.16, 6.17).

use std::collections::BTreeMap;

use super::sense::{Failure, Sense};
use super::{Nexus, status};
use crate::bytes::Fields;

/// Service actions of PERSISTENT RESERVE OUT (SPC-4 6.17.2).
mod action {
    pub(super) const REGISTER: u8 = 0;
    pub(super) const RESERVE: u8 = 1;
    pub(super) const RELEASE: u8 = 2;
    pub(super) const CLEAR: u8 = 3;
    pub(super) const PREEMPT: u8 = 4;
    pub(super) const PREEMPT_AND_ABORT: u8 = 5;
    pub(super) const REGISTER_AND_IGNORE: u8 = 6;
}

/// Types (SPC-4 6.16.3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    WriteExclusive = 1,
    ExclusiveAccess = 3,
    WriteExclusiveRegistrants = 5,
    ExclusiveAccessRegistrants = 6,
    WriteExclusiveAll = 7,
    ExclusiveAccessAll = 8,
}

impl Type {
    /// Of the whole unit: no other scope is known.
    fn read(scope_and_type: u8) -> Option<Self> {
        Some(match scope_and_type {
            1 => Self::WriteExclusive,
            3 => Self::ExclusiveAccess,
            5 => Self::WriteExclusiveRegistrants,
            6 => Self::ExclusiveAccessRegistrants,
            7 => Self::WriteExclusiveAll,
            8 => Self::ExclusiveAccessAll,
            _ => return None,
        })
    }

    /// Whether every registrant holds it.
    fn is_held_by_all(self) -> bool {
        matches!(self, Self::WriteExclusiveAll | Self::ExclusiveAccessAll)
    }

    /// Whether every registrant may do what the holder may.
    fn is_for_registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    fn allows_reads(self) -> bool {
        matches!(self, Self::WriteExclusive | Self::WriteExclusiveRegistrants | Self::WriteExclusiveAll)
    }
}

/// The mask of all types in REPORT CAPABILITIES (SPC-4 6.16.4).
const TYPES: [u8; 2] = [0xea, 0x01];

/// Registrations of a unit.
const MOST_KEYS: usize = 1024;

/// The reservation: its type, and its holder, unless all registrants are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reservation {
    kind: Type,
    holder: Option<Nexus>,
}

/// What others hear of a change, and whose tasks end.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    pub(crate) attentions: Vec<(Nexus, Sense)>,
    pub(crate) abort: Vec<Nexus>,
}

/// The registrations and the reservation of a unit.
#[derive(Default)]
pub(crate) struct Reservations {
    generation: u32,
    keys: BTreeMap<Nexus, u64>,
    /// Those that were registered for all target ports.
    everywhere: Vec<Nexus>,
    reservation: Option<Reservation>,
    /// Whether all this is kept through a loss of power.
    persists: bool,
}

/// What a parameter list of PERSISTENT RESERVE OUT says (SPC-4 6.17.3).
struct Parameters {
    key: u64,
    action_key: u64,
    all_ports: bool,
    persists: bool,
}

impl Parameters {
    fn read(data: &[u8]) -> Result<Self, Failure> {
        let bytes: [u8; 24] = data.try_into().map_err(|_| Sense::PARAMETER_LIST_LENGTH_ERROR)?;
        let flags = bytes[20];
        // SPEC_I_PT is not supported.
        if flags & 0x08 != 0 {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.into());
        }
        let (key, action_key) = (bytes.be64(0).unwrap_or_default(), bytes.be64(8).unwrap_or_default());
        Ok(Self { key, action_key, all_ports: flags & 0x04 != 0, persists: flags & 0x01 != 0 })
    }
}

const CONFLICT: Failure = Failure::Status(status::RESERVATION_CONFLICT);

impl Reservations {
    /// Whether a nexus may read, or write.
    pub(crate) fn allows(&self, nexus: Nexus, writes: bool) -> bool {
        let Some(reservation) = self.reservation else { return true };
        let may_all = if reservation.kind.is_for_registrants() {
            self.keys.contains_key(&nexus)
        } else {
            reservation.holder == Some(nexus)
        };
        may_all || (!writes && reservation.kind.allows_reads())
    }

    /// What a loss of power leaves.
    pub(crate) fn lose_power(&mut self) {
        if !self.persists {
            *self = Self::default();
        }
    }

    fn is_holder(&self, nexus: Nexus) -> bool {
        let registered = self.keys.contains_key(&nexus);
        self.reservation
            .is_some_and(|reservation| reservation.holder.map_or(registered, |holder| holder == nexus))
    }

    /// PERSISTENT RESERVE IN.
    pub(crate) fn report(&self, action: u8) -> Result<Vec<u8>, Sense> {
        let mut rows = Vec::new();
        match action {
            // READ KEYS.
            0 => self.keys.values().for_each(|key| rows.extend(key.to_be_bytes())),
            // READ RESERVATION.
            1 => {
                if let Some(reservation) = self.reservation {
                    let key = reservation.holder.and_then(|holder| self.keys.get(&holder));
                    rows.extend(key.copied().unwrap_or_default().to_be_bytes());
                    rows.extend([0, 0, 0, 0, 0, reservation.kind as u8, 0, 0]);
                }
            }
            // REPORT CAPABILITIES: ATP_C and PTPL_C; the type mask is valid; PTPL_A.
            2 => return Ok(vec![0, 8, 0x05, 0x80 | u8::from(self.persists), TYPES[0], TYPES[1], 0, 0]),
            // READ FULL STATUS.
            3 => self.keys.iter().for_each(|(nexus, key)| rows.extend(self.full_status(*nexus, *key))),
            _ => return Err(Sense::INVALID_FIELD_IN_CDB),
        }
        let length = u32::try_from(rows.len()).unwrap_or_default();
        Ok([&self.generation.to_be_bytes()[..], &length.to_be_bytes(), &rows].concat())
    }

    fn full_status(&self, nexus: Nexus, key: u64) -> Vec<u8> {
        let holds = self.is_holder(nexus);
        let kind = self.reservation.filter(|_| holds).map_or(0, |reservation| reservation.kind as u8);
        let mut row = key.to_be_bytes().to_vec();
        row.extend([0, 0, 0, 0, u8::from(self.everywhere.contains(&nexus)) << 1 | u8::from(holds), kind]);
        row.extend([0; 4]);
        row.extend(nexus.port.to_be_bytes());
        row.extend(24_u32.to_be_bytes());
        // TransportID of Fibre Channel (SPC-4 7.6.4.2): the protocol, then the N_Port_Name.
        row.extend([0; 8]);
        row.extend(nexus.initiator.0.to_be_bytes());
        row.extend([0; 8]);
        row
    }

    /// PERSISTENT RESERVE OUT. `ports` are all target ports.
    pub(crate) fn change(
        &mut self,
        cdb: &[u8; 16],
        data: &[u8],
        nexus: Nexus,
        ports: &[u16],
    ) -> Result<Effects, Failure> {
        let asked = Parameters::read(data)?;
        let (service, kind) = (cdb[1] & 0x1f, Type::read(cdb[2]));
        let kind = || kind.ok_or(Failure::Check(Sense::INVALID_FIELD_IN_CDB));
        let own = self.keys.get(&nexus).copied();
        if service == action::REGISTER || service == action::REGISTER_AND_IGNORE {
            if service == action::REGISTER && own.unwrap_or_default() != asked.key {
                return Err(CONFLICT);
            }
            if own.is_none() && asked.action_key != 0 && self.keys.len() >= MOST_KEYS {
                return Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES.into());
            }
            return Ok(self.register(&asked, nexus, ports));
        }
        if own != Some(asked.key) {
            let known = (action::RESERVE..=action::PREEMPT_AND_ABORT).contains(&service);
            return Err(if known { CONFLICT } else { Sense::INVALID_FIELD_IN_CDB.into() });
        }
        match service {
            action::RESERVE => {
                let kind = kind()?;
                match self.reservation {
                    Some(held) if held.kind != kind || !self.is_holder(nexus) => Err(CONFLICT),
                    Some(_) => Ok(Effects::default()),
                    None => {
                        self.reserve(kind, nexus);
                        Ok(Effects::default())
                    }
                }
            }
            action::RELEASE => {
                let kind = kind()?;
                match self.reservation {
                    Some(held) if self.is_holder(nexus) && held.kind != kind => {
                        Err(Sense::INVALID_RELEASE.into())
                    }
                    Some(_) if self.is_holder(nexus) => Ok(self.release(nexus)),
                    _ => Ok(Effects::default()),
                }
            }
            action::CLEAR => {
                let others = self.others(nexus, Sense::RESERVATIONS_PREEMPTED);
                let generation = self.generation.wrapping_add(1);
                *self = Self { generation, persists: self.persists, ..Self::default() };
                Ok(others)
            }
            action::PREEMPT => self.preempt(kind, asked.action_key, nexus),
            action::PREEMPT_AND_ABORT => {
                let mut effects = self.preempt(kind, asked.action_key, nexus)?;
                effects.abort = effects
                    .attentions
                    .iter()
                    .filter(|(_, sense)| *sense == Sense::REGISTRATIONS_PREEMPTED)
                    .map(|(nexus, _)| *nexus)
                    .collect();
                Ok(effects)
            }
            _ => Err(Sense::INVALID_FIELD_IN_CDB.into()),
        }
    }

    /// All registrants but one hear this.
    fn others(&self, nexus: Nexus, sense: Sense) -> Effects {
        let others = self.keys.keys().filter(|other| **other != nexus);
        Effects { attentions: others.map(|other| (*other, sense)).collect(), abort: Vec::new() }
    }

    fn reserve(&mut self, kind: Type, nexus: Nexus) {
        let holder = (!kind.is_held_by_all()).then_some(nexus);
        self.reservation = Some(Reservation { kind, holder });
    }

    fn release(&mut self, nexus: Nexus) -> Effects {
        match self.reservation.take() {
            Some(held) if held.kind.is_for_registrants() => self.others(nexus, Sense::RESERVATIONS_RELEASED),
            _ => Effects::default(),
        }
    }

    fn register(&mut self, asked: &Parameters, nexus: Nexus, ports: &[u16]) -> Effects {
        let mut effects = Effects::default();
        let ports = if asked.all_ports { ports } else { &[nexus.port][..] };
        for &port in ports {
            let nexus = Nexus { port, ..nexus };
            if asked.action_key != 0 {
                self.keys.insert(nexus, asked.action_key);
            } else if self.keys.contains_key(&nexus) {
                let held_alone = self.reservation.is_some_and(|held| held.holder == Some(nexus));
                let is_last = self.keys.len() == 1;
                self.keys.remove(&nexus);
                if held_alone || is_last {
                    effects.attentions.extend(self.release(nexus).attentions);
                }
            }
            self.everywhere.retain(|other| *other != nexus);
            if asked.all_ports && asked.action_key != 0 {
                self.everywhere.push(nexus);
            }
        }
        self.persists = asked.persists;
        self.generation = self.generation.wrapping_add(1);
        effects
    }

    /// PREEMPT (SPC-4 5.13.11.4): takes registrations away, and the reservation where it is theirs.
    fn preempt(
        &mut self,
        kind: impl Fn() -> Result<Type, Failure>,
        victim: u64,
        nexus: Nexus,
    ) -> Result<Effects, Failure> {
        let held = self.reservation;
        let all = held.is_some_and(|held| held.kind.is_held_by_all());
        let holder_key = held.and_then(|held| self.keys.get(&held.holder?));
        // Whether the reservation becomes ours.
        let takes = if all { victim == 0 } else { holder_key == Some(&victim) && held.is_some() };
        if victim == 0 && !all {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.into());
        }
        if !takes && !self.keys.values().any(|key| *key == victim) {
            return Err(CONFLICT);
        }
        let new = if takes { Some(kind()?) } else { None };
        let goes = |other: &Nexus, key: u64| *other != nexus && (key == victim || (all && victim == 0));
        let gone: Vec<Nexus> =
            self.keys.iter().filter(|(other, key)| goes(other, **key)).map(|(other, _)| *other).collect();
        self.keys.retain(|other, _| !gone.contains(other));
        self.everywhere.retain(|other| !gone.contains(other));
        let mut attentions: Vec<_> =
            gone.into_iter().map(|other| (other, Sense::REGISTRATIONS_PREEMPTED)).collect();
        if let Some(new) = new {
            if held.is_some_and(|held| held.kind != new) {
                attentions.extend(self.others(nexus, Sense::RESERVATIONS_RELEASED).attentions);
            }
            self.reserve(new, nexus);
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(Effects { attentions, abort: Vec::new() })
    }
}
