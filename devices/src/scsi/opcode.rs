//! Operation code tables: one table of a unit decides what a CDB is, which of its bits mean something, and what
//! REPORT SUPPORTED OPERATION CODES says.

use super::reservation::Access;
use super::sense::{INVALID_OPERATION_CODE, SenseData};
use super::{Cdb, MAX_CDB};

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
    /// The bits that must be zero.
    reserved: [u8; MAX_CDB],
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
    pub(crate) const fn new(
        id: C,
        action: Option<u16>,
        usage: &'static [u8],
        properties: Properties,
    ) -> Self {
        Self { id, action, usage, properties, reserved: reserved(usage, action.is_some()) }
    }

    pub(crate) fn opcode(&self) -> u8 {
        self.usage.first().copied().unwrap_or(0)
    }

    /// Refuses set bits that no field has (SPC-5, 4.2.1: reserved) and NACA (SAM-6, 5.2: not supported).
    fn check(&self, cdb: &Cdb) -> Result<(), SenseData> {
        // All at once first: nearly every command is as it should be.
        let bits = || cdb.padded().iter().zip(&self.reserved).map(|(value, reserved)| value & reserved);
        if bits().fold(0, |all, wrong| all | wrong) != 0
            && let Some((byte, wrong)) = bits().enumerate().find(|&(_, wrong)| wrong != 0)
        {
            return Err(SenseData::cdb_field(byte as u16, Some(7 - wrong.leading_zeros() as u8)));
        }
        // ADDITIONAL CDB LENGTH counts from the byte after it.
        if self.opcode() == VARIABLE_LENGTH && usize::from(cdb.padded()[7]) + 8 != self.usage.len() {
            return Err(SenseData::cdb_field(7, None));
        }
        Ok(())
    }
}

/// The bits of a command with this usage that must be zero; none in byte 0.
#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const fn reserved(usage: &[u8], has_action: bool) -> [u8; MAX_CDB] {
    let mut reserved = [0; MAX_CDB];
    let variable = usage[0] == VARIABLE_LENGTH;
    let control = if variable { 1 } else { usage.len() - 1 };
    let mut byte = 1;
    while byte < usage.len() {
        let action = match byte {
            8 | 9 if has_action && variable => 0xff,
            1 if has_action && !variable => 0x1f,
            _ => 0,
        };
        let lun = if byte == 1 && had_lun(usage[0]) { LUN_OF_SCSI_2 } else { 0 };
        reserved[byte] = if byte == control { CONTROL_RESERVED } else { !(usage[byte] | action | lun) };
        byte += 1;
    }
    reserved
}

/// The LUN in byte 1 (SCSI-2, 7.2.2), which is not looked at: what counts is where a command was sent to.
const LUN_OF_SCSI_2: u8 = 0xe0;

/// Commands that initiators send to units that they know nothing of yet. Linux takes those for units of SCSI-2 and writes the
/// LUN into byte 1, where it is reserved since SPC-2: an error would be a unit that is not there.
const fn had_lun(opcode: u8) -> bool {
    // TEST UNIT READY, REQUEST SENSE, INQUIRY, REPORT LUNS.
    matches!(opcode, 0x00 | 0x03 | 0x12 | 0xa0)
}

/// Where each operation code begins in `table`, which is in their order and has fewer than 256 commands.
#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
pub(crate) const fn starts<C>(table: &[Command<C>]) -> [u8; 256] {
    let mut starts = [table.len() as u8; 256];
    let mut place = table.len();
    while place > 0 {
        place -= 1;
        starts[table[place].usage[0] as usize] = place as u8;
    }
    starts
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

/// Finds the command of a CDB in `table`, which is in order of operation codes that [`starts`] says of, and checks its
/// reserved bits.
pub(crate) fn decode<'t, C>(
    table: &'t [Command<C>],
    starts: &[u8; 256],
    supported: impl Fn(&Command<C>) -> bool,
    cdb: &Cdb,
) -> Result<&'t Command<C>, SenseData> {
    let mut known = false;
    let first = starts.get(usize::from(cdb.opcode())).copied().map_or(table.len(), usize::from);
    let same =
        table.get(first..).unwrap_or_default().iter().take_while(|command| command.opcode() == cdb.opcode());
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
        Command::new(1, None, &[0x12, 1, 0xff, 0xff, 0xff, 0], Properties::NONE),
        Command::new(
            2,
            Some(0x10),
            &[0x9e, 0x10, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
            Properties::NONE,
        ),
    ];

    fn decoded(bytes: &[u8]) -> Result<u8, [u8; 4]> {
        let found = decode(TABLE, &starts(TABLE), |_| true, &Cdb::new(bytes));
        found.map(|command| command.id).map_err(|sense| {
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
        assert_eq!(
            decoded(&[0x12, 0x82, 0, 0, 36, 0]),
            Err([0x24, 0xc9, 0, 1]),
            "CMDDT, not the LUN of SCSI-2"
        );
        assert_eq!(decoded(&[0x9e, 0x30]), Err([0x24, 0xcd, 0, 1]));
        assert_eq!(decoded(&[0x12, 0, 0, 0, 36, 0x04]), Err([0x24, 0xca, 0, 5]), "NACA");
        assert_eq!(decoded(&[0x12, 0, 0, 0, 36, 0xc0]), Ok(1), "vendor specific bits of CONTROL");
    }
}
