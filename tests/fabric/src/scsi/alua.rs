//! Asymmetric logical unit access (SPC-4 5.11): groups of target ports and their states.

use std::collections::BTreeMap;

use super::op;
use super::sense::Sense;
use crate::bytes::Fields;

/// The service action of REPORT and SET TARGET PORT GROUPS.
pub(crate) const TARGET_PORT_GROUPS: u8 = 0x0a;

/// Asymmetric access states (SPC-4 6.37, table of them).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    #[default]
    Optimized = 0x0,
    NonOptimized = 0x1,
    Standby = 0x2,
    Unavailable = 0x3,
    Offline = 0xe,
    Transitioning = 0xf,
}

/// The names of states in commands.
pub(crate) const STATES: [(&str, State); 6] = [
    ("optimized", State::Optimized),
    ("non-optimized", State::NonOptimized),
    ("standby", State::Standby),
    ("unavailable", State::Unavailable),
    ("offline", State::Offline),
    ("transitioning", State::Transitioning),
];

impl State {
    /// What a command hears in this state, if that is not done in it (SPC-4 5.11.2.4 to 5.11.2.7, what is done in each).
    pub(crate) fn refuses(self, code: u8) -> Option<Sense> {
        // PERSISTENT RESERVE IN and OUT, MODE SENSE, MODE SELECT, LOG SENSE.
        let is_of_port = matches!(code, op::PERSISTENT_RESERVE_IN | op::PERSISTENT_RESERVE_OUT)
            || matches!(code, 0x1a | 0x5a | 0x15 | 0x55 | 0x4d);
        let sense = match self {
            Self::Optimized | Self::NonOptimized => return None,
            Self::Standby if is_of_port => return None,
            Self::Standby => Sense::TARGET_PORT_IN_STANDBY_STATE,
            Self::Unavailable => Sense::TARGET_PORT_IN_UNAVAILABLE_STATE,
            Self::Offline => Sense::LOGICAL_UNIT_NOT_READY_OFFLINE,
            Self::Transitioning => Sense::ASYMMETRIC_TRANSITION,
        };
        let is_free = matches!(code, op::INQUIRY | op::REQUEST_SENSE | op::MAINTENANCE_IN)
            || (code == op::MAINTENANCE_OUT && self != Self::Transitioning);
        (!is_free).then_some(sense)
    }
}

/// A state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) state: State,
    /// How it came to that: 0 not at all, 1 by SET TARGET PORT GROUPS, 2 by the array itself.
    pub(crate) cause: u8,
}

/// States of groups that a unit has of its own, where they are not those of the whole array.
pub(crate) type Own = BTreeMap<u16, Access>;

/// A group.
#[derive(Clone, Debug, Default)]
struct Group {
    access: Access,
    is_preferred: bool,
    /// Relative target port identifiers.
    ports: Vec<u16>,
}

/// All groups, by their numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups(BTreeMap<u16, Group>);

impl Groups {
    /// Puts a port into a group, and out of the one it was in.
    pub(crate) fn place(&mut self, port: u16, group: u16) {
        self.0.values_mut().for_each(|group| group.ports.retain(|other| *other != port));
        self.0.entry(group).or_default().ports.push(port);
        self.0.retain(|_, group| !group.ports.is_empty());
    }

    pub(crate) fn has(&self, group: u16) -> bool {
        self.0.contains_key(&group)
    }

    /// The group of a port.
    pub(crate) fn group_of(&self, port: u16) -> u16 {
        self.0.iter().find(|(_, group)| group.ports.contains(&port)).map_or(0, |(number, _)| *number)
    }

    /// The state in which a port has a unit.
    pub(crate) fn state_at(&self, port: u16, own: &Own) -> State {
        self.access(self.group_of(port), own).state
    }

    fn access(&self, group: u16, own: &Own) -> Access {
        let access = own.get(&group).or_else(|| self.0.get(&group).map(|group| &group.access));
        access.copied().unwrap_or_default()
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        self.0.values().flat_map(|group| group.ports.iter().copied()).collect()
    }

    /// Changes a group's state at all units without one of their own.
    pub(crate) fn set(&mut self, group: u16, access: Access) {
        if let Some(group) = self.0.get_mut(&group) {
            group.access = access;
        }
    }

    pub(crate) fn prefer(&mut self, group: u16, is_preferred: bool) {
        if let Some(group) = self.0.get_mut(&group) {
            group.is_preferred = is_preferred;
        }
    }

    /// REPORT TARGET PORT GROUPS, in one of the two formats of its parameter data (SPC-4 6.37).
    pub(crate) fn report(&self, format: u8, own: &Own) -> Result<Vec<u8>, Sense> {
        let mut list = match format {
            0 => Vec::new(),
            // With a header that says how long transitions take, in seconds.
            1 => vec![0x10, 10, 0, 0],
            _ => return Err(Sense::INVALID_FIELD_IN_CDB),
        };
        for (number, group) in &self.0 {
            let access = self.access(*number, own);
            // All states but the one that depends on block addresses are supported.
            list.extend([access.state as u8 | u8::from(group.is_preferred) << 7, 0xcf]);
            list.extend(number.to_be_bytes());
            list.extend([0, access.cause, 0, u8::try_from(group.ports.len()).unwrap_or(u8::MAX)]);
            for port in &group.ports {
                list.extend([0, 0]);
                list.extend(port.to_be_bytes());
            }
        }
        let length = u32::try_from(list.len()).unwrap_or_default().to_be_bytes();
        Ok([&length[..], &list].concat())
    }

    /// What SET TARGET PORT GROUPS (SPC-4 6.45) changes: all of it is looked at first. When a group becomes optimized, the array
    /// takes the others that were out of that state: a failover.
    pub(crate) fn asked(&self, data: &[u8], own: &Own) -> Result<Own, Sense> {
        let invalid = Sense::INVALID_FIELD_IN_PARAMETER_LIST;
        let mut asked = Own::new();
        for row in data.get(4..).unwrap_or_default().chunks_exact(4) {
            let state = match row.byte(0).unwrap_or_default() & 0xf {
                0 => State::Optimized,
                1 => State::NonOptimized,
                2 => State::Standby,
                3 => State::Unavailable,
                _ => return Err(invalid),
            };
            let number = row.be16(2).filter(|number| self.has(*number)).ok_or(invalid)?;
            asked.insert(number, Access { state, cause: 1 });
        }
        if asked.values().any(|access| access.state == State::Optimized) {
            for number in self.0.keys() {
                if self.access(*number, own).state == State::Optimized {
                    asked.entry(*number).or_insert(Access { state: State::NonOptimized, cause: 2 });
                }
            }
        }
        Ok(asked)
    }
}
