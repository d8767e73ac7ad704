//! Logical units: what the array's disks and tapes answer to CDBs. Nothing here knows of frames.
//!
//! ```text
//! mod ── a unit, and who may do what       alua ── target port groups
//!  ├── inquiry   ├── reserve ── persistent reservations
//!  ├── disk ── memory, referrals           ├── tape
//! sense, luns ── what is said of errors, and how units are numbered
//! ```

pub(crate) mod alua;
pub(crate) mod disk;
mod inquiry;
pub(crate) use inquiry::missing;
pub(crate) mod luns;
pub(crate) mod memory;
pub(crate) mod referrals;
pub(crate) mod reserve;
pub(crate) mod sense;
pub(crate) mod tape;

use crate::bytes::Fields;
use crate::names::Wwn;
use alua::{Groups, Own};
use disk::Disk;
use reserve::{Effects, Reservations};
use sense::{Failure, Sense};
use tape::Tape;

/// Operation codes that this module itself looks at (SPC-4 6.1).
pub(crate) mod op {
    pub(crate) const TEST_UNIT_READY: u8 = 0x00;
    pub(crate) const REQUEST_SENSE: u8 = 0x03;
    pub(crate) const INQUIRY: u8 = 0x12;
    pub(crate) const PERSISTENT_RESERVE_IN: u8 = 0x5e;
    pub(crate) const PERSISTENT_RESERVE_OUT: u8 = 0x5f;
    pub(crate) const REPORT_LUNS: u8 = 0xa0;
    pub(crate) const MAINTENANCE_IN: u8 = 0xa3;
    pub(crate) const MAINTENANCE_OUT: u8 = 0xa4;
}

/// Status codes (SAM-5 5.3.1).
pub(crate) mod status {
    pub(crate) const CHECK_CONDITION: u8 = 0x02;
    pub(crate) const BUSY: u8 = 0x08;
    pub(crate) const RESERVATION_CONFLICT: u8 = 0x18;
    pub(crate) const TASK_SET_FULL: u8 = 0x28;
}

/// An initiator port and a target port of the array: an I_T nexus. The initiator is known by its name, so that what is kept for it
/// outlives its logins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Nexus {
    pub(crate) initiator: Wwn,
    /// The relative target port identifier.
    pub(crate) port: u16,
}

/// What a command wants.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Good,
    /// To send this. With sense data the status is CHECK CONDITION all the same.
    Data(Vec<u8>, Option<Sense>),
    /// To send these bytes of the medium: from where, how many.
    Read(u64, u32),
    /// To have these bytes of the medium written.
    Write(u64, u32),
    /// To have so many bytes before it can be done.
    Wants(u32),
}

/// Commands are done, or fail.
pub(crate) type Done = Result<Outcome, Failure>;

/// Data cut to an allocation length.
pub(crate) fn cut(mut data: Vec<u8>, allocation: impl TryInto<usize>) -> Done {
    data.truncate(allocation.try_into().unwrap_or(usize::MAX));
    Ok(Outcome::Data(data, None))
}

/// What units are.
pub(crate) enum Kind {
    Disk(Disk),
    Tape(Tape),
}

/// A logical unit.
pub(crate) struct Unit {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) reservations: Reservations,
    pub(crate) access: Own,
}

/// Whom a command is from, and the array's ports.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) nexus: Nexus,
    pub(crate) groups: &'a Groups,
    /// Names of the target port that the command came to, and of the array.
    pub(crate) wwpn: Wwn,
    pub(crate) wwnn: Wwn,
}

/// What persistent reservations ask of a command (SPC-4 5.13, table of commands that are allowed, and that of SBC-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Always,
    Read,
    Write,
}

fn access(cdb: &[u8; 16]) -> Access {
    let [code, second, _, _, fifth, ..] = *cdb;
    match (code, second & 0x1f) {
        // TEST UNIT READY, REQUEST SENSE, READ BLOCK LIMITS, INQUIRY, LOG SENSE, READ CAPACITY, REPORT REFERRALS.
        (0x00 | 0x03 | 0x05 | 0x12 | 0x25 | 0x4d | 0x5e | 0x5f | 0xa0 | 0xa3, _) | (0x9e, 0x10 | 0x13) => {
            Access::Always
        }
        // PREVENT ALLOW: only to prevent is a conflict. START STOP UNIT: only to stop.
        (0x1e | 0x1b, _) if (code == 0x1e) != (fifth & 1 == 1) => Access::Always,
        // READ, MODE SENSE, VERIFY, READ POSITION.
        (0x08 | 0x28 | 0x88 | 0xa8 | 0x1a | 0x5a | 0x2f | 0x8f | 0xaf | 0x34, _) => Access::Read,
        _ => Access::Write,
    }
}

impl Unit {
    pub(crate) fn new(name: &str, kind: Kind) -> Self {
        Self { name: name.to_owned(), kind, reservations: Reservations::default(), access: Own::new() }
    }

    pub(crate) fn lose_power(&mut self) {
        self.reservations.lose_power();
        if let Kind::Tape(tape) = &mut self.kind {
            tape.lose_power();
        }
    }

    /// Names of format 6, with the array's company and a number made of the unit's name.
    pub(crate) fn naa(&self) -> [u8; 16] {
        // FNV-1a.
        let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = self.name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, mix);
        (0x602f_cf00_0000_0000_u128 << 64 | u128::from(hash)).to_be_bytes()
    }

    /// Looks at a command and does it, unless it needs data first.
    pub(crate) fn execute(&mut self, cdb: &[u8; 16], context: Context<'_>) -> Done {
        let [code, second, ..] = *cdb;
        let allowed = match access(cdb) {
            Access::Always => true,
            Access::Read => self.reservations.allows(context.nexus, false),
            Access::Write => self.reservations.allows(context.nexus, true),
        };
        if !allowed {
            return Err(Failure::Status(status::RESERVATION_CONFLICT));
        }
        if let Some(sense) = context.groups.state_at(context.nexus.port, &self.access).refuses(code) {
            return Err(sense.into());
        }
        match (code, second & 0x1f) {
            (op::INQUIRY, _) => self.inquiry(cdb, context),
            (op::REQUEST_SENSE, _) => cut(Sense::NONE.bytes(), cdb[4]),
            (op::PERSISTENT_RESERVE_IN, action) => {
                cut(self.reservations.report(action)?, cdb.be16(7).unwrap_or_default())
            }
            (op::PERSISTENT_RESERVE_OUT, _) => Ok(Outcome::Wants(cdb.be32(5).unwrap_or_default())),
            (op::MAINTENANCE_IN, alua::TARGET_PORT_GROUPS) => {
                cut(context.groups.report(second >> 5, &self.access)?, cdb.be32(6).unwrap_or_default())
            }
            (op::MAINTENANCE_OUT, alua::TARGET_PORT_GROUPS) => {
                Ok(Outcome::Wants(cdb.be32(6).unwrap_or_default()))
            }
            _ => match &mut self.kind {
                Kind::Disk(disk) => disk.execute(cdb, context.groups.group_of(context.nexus.port)),
                Kind::Tape(tape) => tape.execute(cdb),
            },
        }
    }

    /// Does a command with the data that it wanted. The array itself changes target port groups.
    pub(crate) fn finish(
        &mut self,
        cdb: &[u8; 16],
        data: &[u8],
        context: Context<'_>,
    ) -> Result<Effects, Failure> {
        if cdb[0] == op::PERSISTENT_RESERVE_OUT {
            let ports = context.groups.ports();
            return self.reservations.change(cdb, data, context.nexus, &ports);
        }
        match &mut self.kind {
            Kind::Disk(disk) => disk.finish(cdb, data)?,
            Kind::Tape(tape) => tape.finish(cdb, data)?,
        }
        Ok(Effects::default())
    }
}
