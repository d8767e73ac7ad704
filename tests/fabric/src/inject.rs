//! Faults of commands.

use std::fmt;

use crate::scsi::luns::Lun;
use crate::scsi::sense::Sense;

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// As if it never came.
    Drop,
    /// It is known, and never answered.
    Hang,
    /// It is done so many milliseconds later.
    Delay(u64),
    /// It ends with this status.
    Status(u8),
    /// It ends with this sense data.
    Sense(Sense),
}

/// Commands that have a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Injection {
    /// None of these three is any.
    pub(crate) lun: Option<u16>,
    pub(crate) code: Option<u8>,
    pub(crate) port: Option<usize>,
    pub(crate) left: u32,
    pub(crate) fault: Fault,
}

impl fmt::Display for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let any = || "any".to_owned();
        let lun = self.lun.map_or_else(any, |lun| lun.to_string());
        let code = self.code.map_or_else(any, |code| format!("{code:02x}"));
        write!(f, "{lun} {code} {} {:?}", self.left, self.fault)?;
        self.port.map_or(Ok(()), |port| write!(f, " {}", port + 1))
    }
}

/// All of them, in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct Injections {
    pub(crate) rules: Vec<Injection>,
    /// Commands that had a fault.
    count: u64,
}

impl fmt::Display for Injections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "injected: {}", self.count)?;
        self.rules.iter().try_for_each(|rule| write!(f, "; {rule}"))
    }
}

impl Injections {
    /// The fault of this command; it is used up then.
    pub(crate) fn take(&mut self, port: usize, lun: Lun, code: u8) -> Option<Fault> {
        let fits = |injection: &&mut Injection| {
            injection.lun.is_none_or(|number| lun == Lun::Number(number))
                && injection.code.is_none_or(|wanted| wanted == code)
                && injection.port.is_none_or(|wanted| wanted == port)
        };
        let found = self.rules.iter_mut().find(fits)?;
        found.left = found.left.saturating_sub(1);
        let fault = found.fault;
        self.rules.retain(|injection| injection.left > 0);
        self.count += 1;
        Some(fault)
    }
}
