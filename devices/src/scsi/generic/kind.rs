//! Types of devices, and what can be told of a CDB by itself.

use crate::scsi::Cdb;
use crate::scsi::opcode::VARIABLE_LENGTH;

/// Peripheral device types (SPC-5, 6.7.2), as far as they make a difference here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Direct access, simplified direct access, optical memory, host managed zoned: 00h, 0Eh, 07h, 14h.
    Disk,
    /// Sequential access: 01h.
    Tape,
    /// Processor: 03h.
    Processor,
    /// CD and DVD: 05h.
    Cd,
    /// Medium changer: 08h.
    Changer,
    /// Enclosure services: 0Dh.
    Enclosure,
    /// Everything else, of which nothing is known but what holds for all types.
    Other,
}

impl Kind {
    /// That of PERIPHERAL DEVICE TYPE.
    pub(super) fn of(device_type: u8) -> Self {
        match device_type & 0x1f {
            0x00 | 0x07 | 0x0e | 0x14 => Self::Disk,
            0x01 => Self::Tape,
            0x03 => Self::Processor,
            0x05 => Self::Cd,
            0x08 => Self::Changer,
            0x0d => Self::Enclosure,
            _ => Self::Other,
        }
    }

    /// Whether commands go one at a time, in the order in which they came: they depend on where the one before has left the
    /// medium.
    pub(super) fn is_sequential(self) -> bool {
        matches!(self, Self::Tape | Self::Changer)
    }
}

/// The command, exactly as long as it is: adapters may have room for more. SPC-5, 4.2.5.1 has the length in the group of the
/// operation code; of vendor specific groups it is what was sent, or, where that is no length that a command has, the
/// shortest one that has all that is not zero.
pub(super) fn trim(cdb: &Cdb) -> Cdb {
    let (bytes, sent) = (cdb.padded(), cdb.as_bytes().len());
    let len = match cdb.opcode() >> 5 {
        0 => 6,
        1 | 2 => 10,
        3 if cdb.opcode() == VARIABLE_LENGTH => (usize::from(bytes[7]) + 8).clamp(12, bytes.len()),
        4 => 16,
        5 => 12,
        _ if matches!(sent, 6 | 10 | 12 | 16) => sent,
        _ => {
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            [10, 12, 16].into_iter().find(|len| used <= *len).unwrap_or(bytes.len())
        }
    };
    Cdb::new(bytes.get(..len).unwrap_or(bytes))
}

/// Where NACA of the CONTROL byte is (SAM-6, 5.2), if it is set: byte and bit.
pub(super) fn naca(cdb: &Cdb) -> Option<(u16, u8)> {
    const NACA: u8 = 0x04;
    let place = match cdb.opcode() {
        VARIABLE_LENGTH => 1,
        // What vendors put there is theirs.
        0xc0.. => return None,
        _ => cdb.as_bytes().len().checked_sub(1)?,
    };
    let byte = cdb.as_bytes().get(place)?;
    (byte & NACA != 0).then_some((place as u16, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_as_long_as_its_group_says() {
        let len = |bytes: &[u8]| trim(&Cdb::new(bytes)).as_bytes().len();
        let sent = |opcode: u8| {
            let mut bytes = [0; 32];
            bytes[0] = opcode;
            bytes
        };
        for (opcode, wanted) in [(0x12, 6), (0x28, 10), (0x5e, 10), (0x88, 16), (0xa0, 12), (0xc1, 10)] {
            assert_eq!(len(&sent(opcode)), wanted, "{opcode:02x}h");
        }
        let mut variable = sent(0x7f);
        variable[7] = 0x18;
        assert_eq!(len(&variable), 32);
        variable[7] = 0xff;
        assert_eq!(len(&variable), 32, "no more than there is");
        let mut vendor = sent(0xe0);
        vendor[11] = 1;
        assert_eq!(len(&vendor), 12);
        vendor[15] = 1;
        assert_eq!(len(&vendor), 16);
        vendor[16] = 1;
        assert_eq!(len(&vendor), 32);
        assert_eq!(len(&[0xc0, 0, 0, 0, 0, 0]), 6, "as it was sent");
        assert_eq!(len(&[0x28, 0]), 10, "the rest is zeros");
    }

    #[test]
    fn naca_is_found_where_the_control_byte_is() {
        let of = |bytes: &[u8]| naca(&trim(&Cdb::new(bytes)));
        assert_eq!(of(&[0x00, 0, 0, 0, 0, 4]), Some((5, 2)));
        assert_eq!(of(&[0x28, 0, 0, 0, 0, 4, 0, 0, 1, 0]), None);
        assert_eq!(of(&[0x28, 0, 0, 0, 0, 4, 0, 0, 1, 4]), Some((9, 2)));
        assert_eq!(of(&[0x7f, 4, 0, 0, 0, 0, 0, 0x18]), Some((1, 2)));
        assert_eq!(of(&[0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 4]), None);
    }
}
