//! What an HBA tells of the units behind it.

use std::path::PathBuf;
use std::sync::Arc;

use devices::scsi::{Leaving, Lun, Tray};

use super::closing::Answer;
use crate::config::LunType;

/// What was behind an HBA at the end of the machine.
pub struct Taken {
    /// For each unit its place and image, for messages, and what is to be closed.
    pub units: Vec<(String, Vec<Leaving>)>,
    /// Units whose images are being closed already.
    pub closing: Vec<Arc<Answer>>,
}

/// What is known of one logical unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitInfo {
    /// Its target.
    pub target: u8,
    /// Its number at the target.
    pub lun: Lun,
    /// What it is.
    pub kind: LunType,
    /// The image's file or device; `None` for a drive without a disc.
    pub image: Option<PathBuf>,
    /// The tray, if it is a CD drive.
    pub tray: Option<Tray>,
    /// Length in bytes now; 0 of a device of the host, which knows its size itself.
    pub size: u64,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// Whether its transfers go through memory of the process.
    pub bounce: bool,
    /// Whether what the guest wrote could not be made stable.
    pub flush_failed: bool,
    /// What the guest has of it.
    pub state: UnitState,
}

/// A logical unit number as users know it: the number, or, of several levels, all 16 digits.
pub(super) fn shown(lun: Lun) -> String {
    match lun.number() {
        Some(number) => number.to_string(),
        None => format!("{:#018x}", u64::from_be_bytes(lun.0)),
    }
}

/// What the guest has of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitState {
    /// All of it.
    Attached,
    /// Nothing yet: the guest has not taken note that the unit before it has gone.
    Waiting,
    /// A unit whose device the host has lost: it goes on when that is back.
    Away,
    /// Nothing any more: its image is being closed.
    Detaching,
}

impl UnitState {
    /// In the words of the control socket.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Waiting => "waiting for the guest to notice the removal",
            Self::Away => "away",
            Self::Detaching => "detaching",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_called_by_their_numbers_where_they_have_one() {
        for (lun, said) in [
            ([0, 27, 0, 0, 0, 0, 0, 0], "27"),
            ([0x42, 0x01, 0, 0, 0, 0, 0, 0], "513"),
            ([0x40, 0x05, 0, 0, 0, 0, 0, 0], "5"),
            ([0x00, 0x01, 0x00, 0x02, 0, 0, 0, 0], "0x0001000200000000"),
        ] {
            assert_eq!(shown(Lun(lun)), said);
        }
    }
}
