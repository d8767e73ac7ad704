//! Faults of commands.

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

/// All of them, in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct Injections(pub(crate) Vec<Injection>);

impl Injections {
    /// The fault of this command; it is used up then.
    pub(crate) fn take(&mut self, port: usize, lun: Lun, code: u8) -> Option<Fault> {
        let fits = |injection: &&mut Injection| {
            injection.lun.is_none_or(|number| lun == Lun::Number(number))
                && injection.code.is_none_or(|wanted| wanted == code)
                && injection.port.is_none_or(|wanted| wanted == port)
        };
        let found = self.0.iter_mut().find(fits)?;
        found.left = found.left.saturating_sub(1);
        let fault = found.fault;
        self.0.retain(|injection| injection.left > 0);
        Some(fault)
    }
}
