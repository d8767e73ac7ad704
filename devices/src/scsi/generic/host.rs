//! What a unit asks of a device of the host, and what the host's kernel says.

use std::io;
use std::time::Duration;

use crate::mem::SgList;
use crate::scsi::{Cdb, MAX_SENSE};

/// Which way a command's data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// There is none.
    None,
    /// From the device.
    In,
    /// To the device.
    Out,
}

/// A command on its way to the device.
#[derive(Debug)]
pub struct Command {
    /// The command, exactly as long as it is.
    pub cdb: Cdb,
    /// Which way `data` goes.
    pub direction: Direction,
    /// Memory for the data; empty without any.
    pub data: SgList,
    /// After how long the host's kernel aborts it.
    pub timeout: Duration,
}

/// What the kernel says of a command that it has carried out, unchecked.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// SCSI status byte.
    pub status: u8,
    /// What the host's adapter and its driver say (`DID_*` of Linux, scsi/scsi_status.h).
    pub host: u16,
    /// What older kernels say beside that (`DRIVER_*`).
    pub driver: u16,
    /// Bytes that were not transferred.
    pub residual: i32,
    /// Sense data.
    pub sense: [u8; MAX_SENSE],
    /// How much of it there is.
    pub sense_len: u8,
}

impl Answer {
    /// GOOD, with everything transferred.
    pub fn good() -> Self {
        Self { status: 0, host: 0, driver: 0, residual: 0, sense: [0; MAX_SENSE], sense_len: 0 }
    }
}

/// A device of the host. Its functions may block for long: they are called on helper threads.
pub trait Host: Send + Sync {
    /// Carries out one command, once.
    ///
    /// # Errors
    /// The kernel has not sent it: it has no such device any more (ENODEV), does not let this process (EPERM), or lacks something.
    fn execute(&self, command: &Command) -> io::Result<Answer>;

    /// LOGICAL UNIT RESET of the device, and of nothing else.
    ///
    /// # Errors
    /// The kernel does not let this process, its driver has none, or it failed.
    fn reset(&self) -> io::Result<()>;
}
