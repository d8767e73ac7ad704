//! Operation code tables: one table of a unit decides what a CDB is, which of its bits mean something, and what
//! REPORT SUPPORTED OPERATION CODES says.

use super::Cdb;
use super::reservation::Access;
use super::sense::{INVALID_OPERATION_CODE, SenseData};

/// One command of a unit.
#[derive(Debug)]
pub(crate) struct Command<C> {
    /// What the unit calls it.
    pub(crate) id: C,
    /// Service action, for the operation codes that have them.
    pub(crate) action: Option<u16>,
    /// CDB usage data (SPC-5, 6.34.3): the operation code, then a mask of the bits that are looked at, with the service
    /// action in its place. Its length is the length of the CDB.
    pub(crate) usage: &'static [u8],
    /// What [`Properties`] say.
    pub(crate) properties: Properties,
}

/// What holds for a command besides its CDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Properties(u8);

impl Properties {
    /// Needs a medium that is present and started.
    pub(crate) const MEDIUM: Self = Self(1);
    /// Changes the medium: refused when write protected.
    pub(crate) const WRITE: Self = Self(2);
    /// Allowed while another initiator has the unit reserved (SPC-2, 5.5.1).
    pub(crate) const SHARED: Self = Self(4);
    /// Only where space can be given back.
    pub(crate) const THIN: Self = Self(8);
    /// Allowed to everyone under a persistent reservation.
    pub(crate) const ALWAYS: Self = Self(16);
    /// Reads the medium or about it: allowed where only writing is exclusive.
    pub(crate) const READ: Self = Self(64);
    /// None of these.
    pub(crate) const NONE: Self = Self(0);

    /// Both.
    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// What the command is to a persistent reservation.
    pub(crate) const fn access(self) -> Access {
        if self.has(Self::ALWAYS) {
            Access::Always
        } else if self.has(Self::READ) {
            Access::Read
        } else {
            Access::Write
        }
    }
    /// Whether `other` holds.
    pub(crate) const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl<C> Command<C> {
    pub(crate) fn opcode(&self) -> u8 {
        self.usage.first().copied().unwrap_or(0)
    }

    /// Refuses set bits that no field has (SPC-5, 4.2.1: reserved) and NACA (SAM-6, 5.2: not supported).
    fn check(&self, cdb: &Cdb) -> Result<(), SenseData> {
        let control = if self.opcode() == VARIABLE_LENGTH { 1 } else { self.usage.len() - 1 };
        for (byte, (value, usage)) in cdb.padded().iter().zip(self.usage).enumerate().skip(1) {
            let reserved = if byte == control { CONTROL_RESERVED } else { !(usage | self.action_mask(byte)) };
            let wrong = value & reserved;
            if wrong != 0 {
                return Err(SenseData::cdb_field(byte as u16, Some(7 - wrong.leading_zeros() as u8)));
            }
        }
        // ADDITIONAL CDB LENGTH counts from the byte after it.
        if self.opcode() == VARIABLE_LENGTH && usize::from(cdb.padded()[7]) + 8 != self.usage.len() {
            return Err(SenseData::cdb_field(7, None));
        }
        Ok(())
    }

    fn action_mask(&self, byte: usize) -> u8 {
        match (self.action, self.opcode(), byte) {
            (None, ..) => 0,
            (Some(_), VARIABLE_LENGTH, 8 | 9) => 0xff,
            (Some(_), opcode, 1) if opcode != VARIABLE_LENGTH => 0x1f,
            _ => 0,
        }
    }
}

/// CONTROL byte (SAM-6, 5.2): reserved bits 5..3 and NACA; the rest is vendor specific or obsolete and ignored.
const CONTROL_RESERVED: u8 = 0x3c;
/// Variable length CDB (SPC-5, 4.2.3).
pub(crate) const VARIABLE_LENGTH: u8 = 0x7f;

/// The service action that a CDB of this operation code would have.
fn action_of(cdb: &Cdb) -> u16 {
    let bytes = cdb.padded();
    if cdb.opcode() == VARIABLE_LENGTH {
        u16::from_be_bytes([bytes[8], bytes[9]])
    } else {
        u16::from(bytes[1] & 0x1f)
    }
}

/// Finds the command of a CDB in `table`, which is in order of operation codes, and checks its reserved bits.
pub(crate) fn decode<'t, C>(
    table: &'t [Command<C>],
    supported: impl Fn(&Command<C>) -> bool,
    cdb: &Cdb,
) -> Result<&'t Command<C>, SenseData> {
    let mut known = false;
    let first = table.partition_point(|command| command.opcode() < cdb.opcode());
    let same = table.iter().skip(first).take_while(|command| command.opcode() == cdb.opcode());
    for command in same.filter(|command| supported(command)) {
        if command.action.is_none_or(|action| action == action_of(cdb)) {
            command.check(cdb)?;
            return Ok(command);
        }
        known = true;
    }
    // A known operation code with an unknown service action is an invalid field (SPC-5, 4.2.5.2).
    Err(match (known, cdb.opcode()) {
        (false, _) => SenseData::illegal(INVALID_OPERATION_CODE),
        (true, VARIABLE_LENGTH) => SenseData::cdb_field(8, Some(7)),
        (true, _) => SenseData::cdb_field(1, Some(4)),
    })
}

/// Reads a big-endian field of a CDB (or of a copied parameter list): `len` bytes at `at`; absent bytes are zero.
pub(crate) fn field(bytes: &[u8], at: usize, len: usize) -> u64 {
    (at..at + len).fold(0, |value, i| value << 8 | u64::from(bytes.get(i).copied().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Command<u8>] = &[
        Command { id: 1, action: None, usage: &[0x12, 1, 0xff, 0xff, 0xff, 0], properties: Properties::NONE },
        Command {
            id: 2,
            action: Some(0x10),
            usage: &[0x9e, 0x10, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
            properties: Properties::NONE,
        },
    ];

    fn decoded(bytes: &[u8]) -> Result<u8, [u8; 4]> {
        decode(TABLE, |_| true, &Cdb::new(bytes)).map(|command| command.id).map_err(|sense| {
            let sense = sense.encode(false);
            let bytes = sense.as_bytes();
            [bytes[12], bytes[15], bytes[16], bytes[17]]
        })
    }

    #[test]
    fn finds_commands_by_operation_code_and_service_action() {
        assert_eq!(decoded(&[0x12, 0, 0, 0, 36, 0]), Ok(1));
        assert_eq!(decoded(&[0x9e, 0x10]), Ok(2));
        assert_eq!(decoded(&[0x9e, 0x11]), Err([0x24, 0xcc, 0, 1]));
        assert_eq!(decoded(&[0x13]), Err([0x20, 0, 0, 0]));
    }

    #[test]
    fn points_at_reserved_bits() {
        assert_eq!(decoded(&[0x12, 0x82, 0, 0, 36, 0]), Err([0x24, 0xcf, 0, 1]));
        assert_eq!(decoded(&[0x9e, 0x30]), Err([0x24, 0xcd, 0, 1]));
        assert_eq!(decoded(&[0x12, 0, 0, 0, 36, 0x04]), Err([0x24, 0xca, 0, 5]), "NACA");
        assert_eq!(decoded(&[0x12, 0, 0, 0, 36, 0xc0]), Ok(1), "vendor specific bits of CONTROL");
    }
}
