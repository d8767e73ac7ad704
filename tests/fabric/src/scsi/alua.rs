//! Asymmetric logical unit access (SPC-4 5.11): groups of target ports and their states.

use std::collections::BTreeMap;

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
    /// What commands that need the medium hear.
    pub(crate) fn refuses(self) -> Option<Sense> {
        match self {
            Self::Optimized | Self::NonOptimized => None,
            Self::Standby => Some(Sense::TARGET_PORT_IN_STANDBY_STATE),
            Self::Unavailable | Self::Offline => Some(Sense::TARGET_PORT_IN_UNAVAILABLE_STATE),
            Self::Transitioning => Some(Sense::ASYMMETRIC_TRANSITION),
        }
    }
}

/// A group.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    pub(crate) state: State,
    /// How it came to that: 0 not at all, 1 by SET TARGET PORT GROUPS, 2 by the array itself.
    pub(crate) cause: u8,
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

    /// The group of a port.
    pub(crate) fn group_of(&self, port: u16) -> u16 {
        self.0.iter().find(|(_, group)| group.ports.contains(&port)).map_or(0, |(number, _)| *number)
    }

    pub(crate) fn state_at(&self, port: u16) -> State {
        self.0.get(&self.group_of(port)).map(|group| group.state).unwrap_or_default()
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        self.0.values().flat_map(|group| group.ports.iter().copied()).collect()
    }

    /// Changes a group's state; whether there is one of this number.
    pub(crate) fn set(&mut self, group: u16, state: State, cause: u8) -> bool {
        let found = self.0.get_mut(&group);
        found.map(|group| (group.state, group.cause) = (state, cause)).is_some()
    }

    /// REPORT TARGET PORT GROUPS, in one of the two formats of its parameter data (SPC-4 6.37).
    pub(crate) fn report(&self, format: u8) -> Result<Vec<u8>, Sense> {
        let mut list = match format {
            0 => Vec::new(),
            // With a header that says how long transitions take, in seconds.
            1 => vec![0x10, 10, 0, 0],
            _ => return Err(Sense::INVALID_FIELD_IN_CDB),
        };
        for (number, group) in &self.0 {
            // All states but the one that depends on block addresses are supported.
            list.extend([group.state as u8, 0xcf]);
            list.extend(number.to_be_bytes());
            list.extend([0, group.cause, 0, u8::try_from(group.ports.len()).unwrap_or(u8::MAX)]);
            for port in &group.ports {
                list.extend([0, 0]);
                list.extend(port.to_be_bytes());
            }
        }
        let length = u32::try_from(list.len()).unwrap_or_default().to_be_bytes();
        Ok([&length[..], &list].concat())
    }

    /// SET TARGET PORT GROUPS (SPC-4 6.45). All of it is looked at first.
    pub(crate) fn change(&mut self, data: &[u8]) -> Result<(), Sense> {
        let invalid = Sense::INVALID_FIELD_IN_PARAMETER_LIST;
        let mut wanted = Vec::new();
        for row in data.get(4..).unwrap_or_default().chunks_exact(4) {
            let state = match row.byte(0).unwrap_or_default() & 0xf {
                0 => State::Optimized,
                1 => State::NonOptimized,
                2 => State::Standby,
                3 => State::Unavailable,
                _ => return Err(invalid),
            };
            let number = row.be16(2).filter(|number| self.0.contains_key(number)).ok_or(invalid)?;
            wanted.push((number, state));
        }
        for (number, state) in wanted {
            self.set(number, state, 1);
        }
        Ok(())
    }
}
