//! Faults of commands.

use std::fmt;

use crate::random::Random;
use crate::scsi::luns::Lun;
use crate::scsi::sense::Sense;

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// As if it never came.
    Drop,
    /// It is known, and never answered.
    Hang,
    /// It is done so many milliseconds later: between these two, so that commands overtake each other.
    Delay(u64, u64),
    /// It ends with this status.
    Status(u8),
    /// It ends with this sense data.
    Sense(Sense),
    /// Of task management: it ends with this RSP_CODE, and is not done.
    Code(u8),
}

/// What can have a fault: commands with an operation code, or with any; or task management.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Any,
    Operation(u8),
    Management,
}

impl Of {
    fn is(self, wanted: Self) -> bool {
        self == wanted || (wanted == Self::Any && self != Self::Management)
    }
}

/// Commands that have a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Injection {
    pub(crate) of: Of,
    /// None of these two is any.
    pub(crate) lun: Option<Lun>,
    pub(crate) port: Option<usize>,
    pub(crate) left: u32,
    pub(crate) fault: Fault,
}

impl fmt::Display for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let any = || "any".to_owned();
        let lun = self.lun.map_or_else(any, |lun| lun.to_string());
        let of = match self.of {
            Of::Any => any(),
            Of::Operation(code) => format!("{code:02x}"),
            Of::Management => "tmf".to_owned(),
        };
        write!(f, "{lun} {of} {} {:?}", self.left, self.fault)?;
        self.port.map_or(Ok(()), |port| write!(f, " {}", port + 1))
    }
}

/// All of them, in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct Injections {
    pub(crate) rules: Vec<Injection>,
    /// How many there were that had a fault.
    count: u64,
    random: Random,
}

impl fmt::Display for Injections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "injected: {}", self.count)?;
        self.rules.iter().try_for_each(|rule| write!(f, "; {rule}"))
    }
}

impl Injections {
    /// The fault of what this is; it is used up then.
    pub(crate) fn take(&mut self, port: usize, lun: Lun, of: Of) -> Option<Fault> {
        let fits = |injection: &&mut Injection| {
            injection.lun.is_none_or(|wanted| wanted == lun)
                && of.is(injection.of)
                && injection.port.is_none_or(|wanted| wanted == port)
        };
        let found = self.rules.iter_mut().find(fits)?;
        found.left = found.left.saturating_sub(1);
        let fault = match found.fault {
            Fault::Delay(least, most) => {
                let time = least + self.random.next() % (most - least + 1);
                Fault::Delay(time, time)
            }
            fault => fault,
        };
        self.rules.retain(|injection| injection.left > 0);
        self.count += 1;
        Some(fault)
    }
}
