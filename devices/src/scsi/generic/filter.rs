//! Which commands of a guest a device of the host gets.

use super::kind::Kind;
use super::table::{self, Class};
use crate::scsi::Cdb;
use crate::scsi::opcode::field;
use crate::scsi::sense::{INVALID_OPERATION_CODE, SenseData, SenseKey, WRITE_PROTECTED};

/// What a guest may do to a device of the host (`allow`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allow {
    /// Everything that the kernel lets this process do.
    All,
    /// What reads, and what asks.
    ReadOnly,
    /// What reads and writes the medium. Nothing that changes the device itself, or what others who share it meet: firmware,
    /// formatting, reservations, settings, power, copies by the device, and what this layer does not know, such as vendor
    /// specific commands.
    #[default]
    NoManagement,
}

impl Allow {
    /// The names that they have.
    pub const NAMES: &[&str] = &["all", "read-only", "no-management"];

    /// The one that is called so.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "all" => Self::All,
            "read-only" => Self::ReadOnly,
            "no-management" => Self::NoManagement,
            _ => return None,
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::ReadOnly => "read-only",
            Self::NoManagement => "no-management",
        }
    }

    /// Refuses a command that the guest may not send to a device of this type.
    pub(super) fn check(self, kind: Kind, cdb: &Cdb) -> Result<(), SenseData> {
        match (self, class(kind, cdb)) {
            (Self::All, _) | (_, Class::Read) | (Self::NoManagement, Class::Write) => Ok(()),
            (Self::ReadOnly, Class::Write) => Err(SenseData::new(SenseKey::DataProtect, WRITE_PROTECTED)),
            (_, Class::Manage) => Err(SenseData::illegal(INVALID_OPERATION_CODE)),
        }
    }
}

/// What a command does. What is not known may do anything.
pub(super) fn class(kind: Kind, cdb: &Cdb) -> Class {
    let bytes = cdb.padded();
    match (cdb.opcode(), kind) {
        (0x15 | 0x55, _) => mode_select(kind, bytes[1]),
        (0x1d, _) => diagnostic(bytes),
        (0x3c | 0x9b, _) => read_buffer(kind, bytes[1]),
        // LOG SENSE with SP keeps parameters for good (SPC-5, 6.9).
        (0x4d, _) if bytes[1] & 1 != 0 => Class::Manage,
        // SECURITY PROTOCOL IN: answers of other protocols than the list of them are somebody's, who has asked (SPC-5, 6.40).
        (0xa2, Kind::Disk | Kind::Tape) if bytes[1] != 0 => Class::Manage,
        // MAINTENANCE IN has a service action where SEND KEY of CDs has nothing, and nothing where that has its format.
        (0xa3, Kind::Cd) if bytes[1] & 0x1f == 0 || bytes[10] != 0 => send_key(bytes[10]),
        (0xa3, _) => maintenance_in(bytes[1]),
        (0x1b, Kind::Disk) => start_stop(bytes[4]),
        // ATA PASS-THROUGH (16) and (12): SAT-5, 12.2. For CDs the second is BLANK.
        (0x85, _) => ata(bytes[1], bytes[14], bytes[4]),
        (0xa1, Kind::Disk | Kind::Other) => ata(bytes[1], bytes[9], bytes[3]),
        _ => table::class(kind, cdb),
    }
}

/// MODE SELECT (SPC-5, 6.15): what is saved outlasts the guest. Disks share their settings among initiators; drives for tapes
/// and CDs cannot be used without.
fn mode_select(kind: Kind, flags: u8) -> Class {
    const SP: u8 = 0x01;
    match kind {
        Kind::Tape | Kind::Cd if flags & SP == 0 => Class::Write,
        _ => Class::Manage,
    }
}

/// SEND DIAGNOSTIC (SPC-5, 6.42): the default self-test asks; with parameters it commands enclosures and more, and with UNITOFFL or
/// DEVOFFL it may write over the medium, or disturb others.
fn diagnostic(cdb: &[u8]) -> Class {
    const PF: u8 = 0x10;
    const SELFTEST: u8 = 0x04;
    let default = field(cdb, 1, 1) as u8 & !PF == SELFTEST;
    if default && field(cdb, 3, 2) == 0 { Class::Read } else { Class::Manage }
}

/// READ BUFFER (SPC-5, 6.18 and 6.19): descriptors and echoes. Other modes show the controller's memory, in which may be data of
/// others, or make and end a history of errors that somebody else reads. Drives for CDs are asked for their buffer by those who
/// write.
fn read_buffer(kind: Kind, mode: u8) -> Class {
    match (mode & 0x1f, kind) {
        (0x03 | 0x0a | 0x0b, _) | (0x00 | 0x02, Kind::Cd) => Class::Read,
        _ => Class::Manage,
    }
}

/// SEND KEY (MMC-6, 6.31): key format 6 sets the drive's region, which can be set five times.
fn send_key(format: u8) -> Class {
    if format & 0x3f == 0x06 { Class::Manage } else { Class::Write }
}

/// MAINTENANCE IN (SPC-5, 6.31 and others): REPORT IDENTIFYING INFORMATION, TARGET PORT GROUPS, ALIASES, SUPPORTED OPERATION CODES,
/// SUPPORTED TASK MANAGEMENT FUNCTIONS, PRIORITY, TIMESTAMP, and management protocols.
fn maintenance_in(action: u8) -> Class {
    if matches!(action & 0x1f, 0x05 | 0x0a..=0x10) { Class::Read } else { Class::Manage }
}

/// START STOP UNIT (SBC-4, 5.31): to start a disk harms nobody, to stop it all who share it.
fn start_stop(flags: u8) -> Class {
    const POWER_CONDITION: u8 = 0xf0;
    const LOEJ: u8 = 0x02;
    const START: u8 = 0x01;
    if flags & (POWER_CONDITION | LOEJ | START) == START { Class::Read } else { Class::Manage }
}

/// Commands of ATA that only ask (ACS-4, 7): CHECK POWER MODE, IDENTIFY DEVICE, IDENTIFY PACKET DEVICE, READ LOG EXT and DMA EXT,
/// and of SMART: READ DATA, READ THRESHOLDS, READ LOG, RETURN STATUS. PROTOCOL (SAT-5, 12.2.2) must be one that sends them, without
/// data or with data from the disk: others reset it, whatever the command.
fn ata(flags: u8, command: u8, features: u8) -> Class {
    // Non-data, PIO in, DMA, UDMA in.
    let sends = matches!(flags >> 1 & 0x0f, 3 | 4 | 6 | 10);
    match (command, features) {
        (0xe5 | 0xec | 0xa1 | 0x2f | 0x47, _) | (0xb0, 0xd0 | 0xd1 | 0xd5 | 0xda) if sends => Class::Read,
        _ => Class::Manage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::sense::Failure;

    fn verdicts(kind: Kind, cdb: &[u8]) -> [Option<(u8, u8, u8)>; 3] {
        [Allow::All, Allow::NoManagement, Allow::ReadOnly].map(|allow| {
            let sense = allow.check(kind, &Cdb::new(cdb)).err()?;
            let Failure::Check(sense) = Failure::from(sense) else { return None };
            let bytes = sense.encode(false);
            let bytes = bytes.as_bytes();
            Some((bytes[2], bytes[12], bytes[13]))
        })
    }

    const FREE: [Option<(u8, u8, u8)>; 3] = [None; 3];
    const WRITES: [Option<(u8, u8, u8)>; 3] = [None, None, Some((7, 0x27, 0))];
    const MANAGES: [Option<(u8, u8, u8)>; 3] = [None, Some((5, 0x20, 0)), Some((5, 0x20, 0))];

    #[test]
    fn names_are_those_of_the_configuration() {
        for name in Allow::NAMES {
            assert_eq!(Allow::named(name).map(Allow::name), Some(*name));
        }
        assert_eq!(Allow::named("everything"), None);
        assert_eq!(Allow::default(), Allow::NoManagement, "shared arrays");
    }

    #[test]
    fn disks_are_read_and_written_and_not_managed() {
        let of = |cdb: &[u8]| verdicts(Kind::Disk, cdb);
        for cdb in [
            &[0x00][..], // TEST UNIT READY
            &[0x12],
            &[0x28],
            &[0x5e],
            &[0x9e, 0x10],
            &[0xa3, 0x0a],
            &[0xa3, 0x0c],
            &[0x3c, 0x03],
            &[0x9b, 0x0a],
            &[0x4d, 0],
            &[0xa2, 0],
            &[0x1d, 0x14],
            &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 9],
            &[0x1b, 0, 0, 0, 1],
            &[0x1d, 0x04],
        ] {
            assert_eq!(of(cdb), FREE, "{cdb:02x?}");
        }
        for cdb in [
            &[0x2a][..],
            &[0x0a],
            &[0x42],
            &[0x93],
            &[0x89],
            &[0x35],
            &[0x94, 4],
            &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 0xb],
        ] {
            assert_eq!(of(cdb), WRITES, "{cdb:02x?}");
        }
        for cdb in [
            &[0x04][..], // FORMAT UNIT
            &[0x07],
            &[0x48, 1],
            &[0x3b, 5],
            &[0x5f],
            &[0x15, 0x10],
            &[0x55, 0x11],
            &[0x16],
            &[0x57],
            &[0x83],
            &[0x84],
            &[0x4c],
            &[0xa4, 0x0a],
            &[0xb5],
            &[0x9f, 0x11],
            &[0x9e, 0x18],
            &[0x1b, 0, 0, 0, 0],
            &[0x1b, 0, 0, 0, 0x31],
            &[0x1d, 0x10],
            &[0x1d, 0x04, 0, 0, 8],
            &[0x1d, 0x24],
            &[0x1d, 0x05], // SELFTEST with UNITOFFL, DEVOFFL, both
            &[0x1d, 0x06],
            &[0x1d, 0x07],
            &[0x3c, 0x01],
            &[0x3c, 0x02],
            &[0x3c, 0x1c],
            &[0x9b, 0x1c],
            &[0x4d, 0x01],
            &[0xa2, 0x01],
            &[0xa3, 0x1f],
            &[0xc0],
            &[0xff],
            &[0x02],
            &[0x20], // vendor specific, or nothing
            &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0x88, 1],
        ] {
            assert_eq!(of(cdb), MANAGES, "{cdb:02x?}");
        }
    }

    #[test]
    fn tapes_are_moved_and_set_but_not_partitioned() {
        let of = |cdb: &[u8]| verdicts(Kind::Tape, cdb);
        for cdb in [
            &[0x01][..],
            &[0x05],
            &[0x08],
            &[0x11],
            &[0x34],
            &[0x1b],
            &[0x2b],
            &[0x92],
            &[0x44],
            &[0x16],
            &[0x17],
        ] {
            assert_eq!(of(cdb), FREE, "{cdb:02x?}");
        }
        for cdb in [&[0x0a][..], &[0x10], &[0x19], &[0x80], &[0x8a], &[0x93], &[0x15, 0x10], &[0x8d]] {
            assert_eq!(of(cdb), WRITES, "{cdb:02x?}");
        }
        for cdb in
            [&[0x04][..], &[0x0b], &[0x15, 0x11], &[0xb5], &[0x5f], &[0x3b], &[0x28], &[0x1d, 5], &[0x1d, 6]]
        {
            assert_eq!(of(cdb), MANAGES, "{cdb:02x?}");
        }
    }

    #[test]
    fn the_same_code_is_another_command_for_another_type() {
        assert_eq!(verdicts(Kind::Cd, &[0xa1]), WRITES, "BLANK");
        assert_eq!(verdicts(Kind::Cd, &[0xa4]), FREE, "REPORT KEY");
        assert_eq!(verdicts(Kind::Cd, &[0x04]), WRITES, "FORMAT UNIT of a medium");
        assert_eq!(verdicts(Kind::Cd, &[0x1b, 0, 0, 0, 2]), FREE, "eject");
        assert_eq!(verdicts(Kind::Changer, &[0xa5]), WRITES, "MOVE MEDIUM");
        assert_eq!(verdicts(Kind::Changer, &[0xb8]), FREE);
        assert_eq!(verdicts(Kind::Changer, &[0x07]), FREE, "INITIALIZE ELEMENT STATUS");
        assert_eq!(verdicts(Kind::Enclosure, &[0x1c]), FREE);
        assert_eq!(verdicts(Kind::Enclosure, &[0x1d, 0x10, 0, 0, 4]), MANAGES, "slots are switched off so");
        assert_eq!(verdicts(Kind::Cd, &[0x3c, 0]), FREE, "READ BUFFER");
        let mut key = [0; 12];
        key[0] = 0xa3;
        assert_eq!(verdicts(Kind::Cd, &key), WRITES, "SEND KEY");
        key[10] = 0x86;
        assert_eq!(verdicts(Kind::Cd, &key), MANAGES, "its region");
        key[1] = 0x0c;
        assert_eq!(verdicts(Kind::Cd, &key), MANAGES, "a drive that knows no service action");
        key[10] = 0;
        assert_eq!(verdicts(Kind::Cd, &key), FREE, "REPORT SUPPORTED OPERATION CODES");
        key[1] = 0x1f;
        assert_eq!(verdicts(Kind::Cd, &key), MANAGES, "MAINTENANCE IN of vendors");
        assert_eq!(verdicts(Kind::Processor, &[0x0a]), MANAGES, "enclosures are told what to do so");
        assert_eq!(verdicts(Kind::Other, &[0x0a]), MANAGES);
        assert_eq!(verdicts(Kind::Other, &[0x12]), FREE);
    }

    #[test]
    fn ata_is_asked_and_not_told() {
        let with = |protocol: u8, command: u8, features: u8| {
            let (mut sixteen, mut twelve) = ([0; 16], [0; 12]);
            (sixteen[0], sixteen[1], sixteen[4], sixteen[14]) = (0x85, protocol << 1, features, command);
            (twelve[0], twelve[1], twelve[3], twelve[9]) = (0xa1, protocol << 1, features, command);
            (verdicts(Kind::Disk, &sixteen), verdicts(Kind::Disk, &twelve))
        };
        for (command, features) in [(0xec, 0), (0xb0, 0xd0), (0xb0, 0xda), (0x2f, 0), (0xe5, 0)] {
            assert_eq!(with(4, command, features), (FREE, FREE), "{command:02x}h");
            // ATA hardware reset, SRST, PIO out, DEVICE RESET
            for protocol in [0, 1, 5, 9] {
                assert_eq!(
                    with(protocol, command, features),
                    (MANAGES, MANAGES),
                    "{command:02x}h by {protocol}"
                );
            }
        }
        // SECURITY ERASE UNIT, DOWNLOAD MICROCODE, SMART DISABLE, SMART EXECUTE OFFLINE, WRITE DMA
        for (command, features) in [(0xf4, 0), (0x92, 7), (0xb0, 0xd9), (0xb0, 0xd4), (0xca, 0)] {
            assert_eq!(with(3, command, features), (MANAGES, MANAGES), "{command:02x}h");
        }
    }
}
