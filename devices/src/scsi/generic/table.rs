//! What commands do, by type of device. Whatever is not here may do anything.
//!
//! Operation codes: SPC-5, SBC-4, ZBC-2, SSC-5, SMC-3, MMC-6, SES-4; the whole list is in SPC-5, annex F.

use super::host::Direction;
use super::kind::Kind;
use crate::scsi::Cdb;
use crate::scsi::opcode::VARIABLE_LENGTH;

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Asks, reads, or moves the medium about.
    Read,
    /// Changes what is on the medium.
    Write,
    /// Changes the device, or what others meet.
    Manage,
}

type Codes = &'static [u8];

/// Of all types (SPC-5): those that read, those that write. REPORT LUNS never gets here.
const ANY: (Codes, Codes) = (
    &[
        0x00, // TEST UNIT READY
        0x03, // REQUEST SENSE
        0x12, // INQUIRY
        0x1a, // MODE SENSE(6)
        0x1c, // RECEIVE DIAGNOSTIC RESULTS
        0x1e, // PREVENT ALLOW MEDIUM REMOVAL
        0x3c, // READ BUFFER(10)
        0x4d, // LOG SENSE
        0x5a, // MODE SENSE(10)
        0x5e, // PERSISTENT RESERVE IN
        0x8c, // READ ATTRIBUTE
        0x9b, // READ BUFFER(16)
        0xa2, // SECURITY PROTOCOL IN
        0xa3, // MAINTENANCE IN
        0xab, // SERVICE ACTION IN(12)
    ],
    &[
        0x8d, // WRITE ATTRIBUTE
    ],
);

/// Direct access (SBC-4, ZBC-2).
const DISK: (Codes, Codes) = (
    &[
        0x08, // READ(6)
        0x0b, // SEEK(6)
        0x25, // READ CAPACITY(10)
        0x28, // READ(10)
        0x2b, // SEEK(10)
        0x2f, // VERIFY(10)
        0x34, // PRE-FETCH(10)
        0x37, // READ DEFECT DATA(10)
        0x3e, // READ LONG(10)
        0x52, // XDREAD(10)
        0x88, // READ(16)
        0x8f, // VERIFY(16)
        0x90, // PRE-FETCH(16)
        0x95, // ZONE MANAGEMENT IN
        0xa8, // READ(12)
        0xaf, // VERIFY(12)
        0xb7, // READ DEFECT DATA(12)
    ],
    &[
        0x0a, // WRITE(6)
        0x2a, // WRITE(10)
        0x2e, // WRITE AND VERIFY(10)
        0x35, // SYNCHRONIZE CACHE(10): what was written before must be stable
        0x41, // WRITE SAME(10)
        0x42, // UNMAP
        0x50, // XDWRITE(10)
        0x51, // XPWRITE(10)
        0x89, // COMPARE AND WRITE
        0x8a, // WRITE(16)
        0x8b, // ORWRITE(16)
        0x8e, // WRITE AND VERIFY(16)
        0x91, // SYNCHRONIZE CACHE(16)
        0x93, // WRITE SAME(16)
        0x94, // ZONE MANAGEMENT OUT
        0x9a, // WRITE STREAM(16)
        0x9c, // WRITE ATOMIC(16)
        0xaa, // WRITE(12)
        0xae, // WRITE AND VERIFY(12)
    ],
);

/// Sequential access (SSC-5). Who reserves a drive keeps others from his tape.
const TAPE: (Codes, Codes) = (
    &[
        0x01, // REWIND
        0x05, // READ BLOCK LIMITS
        0x08, // READ(6)
        0x0f, // READ REVERSE(6)
        0x11, // SPACE(6)
        0x13, // VERIFY(6)
        0x14, // RECOVER BUFFERED DATA
        0x16, // RESERVE(6)
        0x17, // RELEASE(6)
        0x1b, // LOAD UNLOAD
        0x2b, // LOCATE(10)
        0x34, // READ POSITION
        0x44, // REPORT DENSITY SUPPORT
        0x56, // RESERVE(10)
        0x57, // RELEASE(10)
        0x81, // READ REVERSE(16)
        0x88, // READ(16)
        0x8f, // VERIFY(16)
        0x91, // SPACE(16)
        0x92, // LOCATE(16)
    ],
    &[
        0x0a, // WRITE(6)
        0x10, // WRITE FILEMARKS(6)
        0x19, // ERASE(6)
        0x80, // WRITE FILEMARKS(16)
        0x82, // ALLOW OVERWRITE
        0x8a, // WRITE(16)
        0x93, // ERASE(16)
    ],
);

/// Medium changers (SMC-3). Media that are moved are away from where they were.
const CHANGER: (Codes, Codes) = (
    &[
        0x07, // INITIALIZE ELEMENT STATUS
        0x16, // RESERVE(6)
        0x17, // RELEASE(6)
        0x2b, // POSITION TO ELEMENT
        0x37, // INITIALIZE ELEMENT STATUS WITH RANGE
        0x44, // REPORT VOLUME TYPES SUPPORTED
        0x56, // RESERVE(10)
        0x57, // RELEASE(10)
        0xb5, // REQUEST VOLUME ELEMENT ADDRESS
        0xb8, // READ ELEMENT STATUS
    ],
    &[
        0x1b, // OPEN/CLOSE IMPORT/EXPORT ELEMENT
        0xa5, // MOVE MEDIUM
        0xa6, // EXCHANGE MEDIUM
        0xb6, // SEND VOLUME TAG
    ],
);

/// CD and DVD (MMC-6).
const CD: (Codes, Codes) = (
    &[
        0x1b, // START STOP UNIT
        0x23, // READ FORMAT CAPACITIES
        0x25, // READ CAPACITY
        0x28, // READ(10)
        0x2b, // SEEK(10)
        0x2f, // VERIFY(10)
        0x42, // READ SUB-CHANNEL
        0x43, // READ TOC/PMA/ATIP
        0x44, // READ HEADER
        0x45, // PLAY AUDIO(10)
        0x46, // GET CONFIGURATION
        0x47, // PLAY AUDIO MSF
        0x48, // PLAY AUDIO TRACK INDEX
        0x4a, // GET EVENT STATUS NOTIFICATION
        0x4b, // PAUSE/RESUME
        0x4e, // STOP PLAY/SCAN
        0x51, // READ DISC INFORMATION
        0x52, // READ TRACK INFORMATION
        0x5c, // READ BUFFER CAPACITY
        0xa4, // REPORT KEY
        0xa6, // LOAD/UNLOAD MEDIUM
        0xa7, // SET READ AHEAD
        0xa8, // READ(12)
        0xac, // GET PERFORMANCE
        0xad, // READ DISC STRUCTURE
        0xb6, // SET STREAMING
        0xb9, // READ CD MSF
        0xba, // SCAN
        0xbb, // SET CD SPEED
        0xbd, // MECHANISM STATUS
        0xbe, // READ CD
    ],
    &[
        0x04, // FORMAT UNIT
        0x2a, // WRITE(10)
        0x2e, // WRITE AND VERIFY(10)
        0x35, // SYNCHRONIZE CACHE
        0x53, // RESERVE TRACK
        0x54, // SEND OPC INFORMATION
        0x58, // REPAIR TRACK
        0x5b, // CLOSE TRACK SESSION
        0x5d, // SEND CUE SHEET
        0xa1, // BLANK
        0xa2, // SEND EVENT
        0xa3, // SEND KEY
        0xaa, // WRITE(12)
        0xbf, // SEND DISC STRUCTURE
    ],
);

/// Processors (SPC-2, 9): RECEIVE. What SEND does is the processor's own: enclosures and RAID controllers are managed by it.
const PROCESSOR: (Codes, Codes) = (&[0x08], &[]);

/// Service actions of SERVICE ACTION IN(16), 9Eh, that only ask (SBC-4, annex): READ CAPACITY(16), READ LONG(16), GET LBA STATUS(16),
/// REPORT REFERRALS, GET STREAM STATUS, GET PHYSICAL ELEMENT STATUS.
const ASKS_16: Codes = &[0x10, 0x11, 0x12, 0x13, 0x16, 0x17];
/// Of variable length commands those that read: GET LBA STATUS, READ, VERIFY.
const READS_32: &[u16] = &[0x0012, 0x0009, 0x000a];
/// And those that write: XDWRITE, XPWRITE, WRITE, WRITE AND VERIFY, WRITE SAME, ORWRITE, WRITE ATOMIC, WRITE STREAM.
const WRITES_32: &[u16] = &[0x0004, 0x0006, 0x000b, 0x000c, 0x000d, 0x000e, 0x000f, 0x0010];

/// Commands of a type beside those of all.
fn own(kind: Kind) -> (Codes, Codes) {
    match kind {
        Kind::Disk => DISK,
        Kind::Tape => TAPE,
        Kind::Changer => CHANGER,
        Kind::Cd => CD,
        Kind::Processor => PROCESSOR,
        Kind::Enclosure | Kind::Other => (&[][..], &[][..]),
    }
}

/// XDWRITEREAD (10, 32) of disks: data both ways, which no kernel sends.
pub(super) fn goes_both_ways(kind: Kind, cdb: &Cdb) -> bool {
    let bytes = cdb.padded();
    kind == Kind::Disk && matches!((bytes[0], bytes[8], bytes[9]), (0x53, ..) | (VARIABLE_LENGTH, 0, 7))
}

/// Whether data that goes this way is none that the command has. Of what is not known the initiator knows best.
pub(super) fn contradicts(kind: Kind, cdb: &Cdb, going: Direction) -> bool {
    let opcode = cdb.opcode();
    // VERIFY(6) of tapes with BYTCMP; RESERVE and RELEASE (6, 10) with a list; SEND EVENT of older drives, in the place of which newer
    // have SECURITY PROTOCOL IN; others depend on more than their codes.
    let either = matches!(
        (opcode, kind),
        (0x13, Kind::Tape) | (0xa2, Kind::Cd) | (0x16 | 0x17 | 0x56 | 0x57 | VARIABLE_LENGTH, _)
    );
    let lists = [own(kind).0, own(kind).1, ANY.0, ANY.1];
    let known =
        lists.iter().any(|codes| codes.contains(&opcode)) || kind == Kind::Disk && SENDS.contains(&opcode);
    going != Direction::None && known && !either && going != direction(kind, cdb)
}

/// What the table says of a command.
pub(super) fn class(kind: Kind, cdb: &Cdb) -> Class {
    let (opcode, bytes, own) = (cdb.opcode(), cdb.padded(), own(kind));
    match opcode {
        0x9e if kind == Kind::Disk && ASKS_16.contains(&(bytes[1] & 0x1f)) => Class::Read,
        VARIABLE_LENGTH if kind == Kind::Disk => {
            let action = u16::from_be_bytes([bytes[8], bytes[9]]);
            match (READS_32.contains(&action), WRITES_32.contains(&action)) {
                (true, _) => Class::Read,
                (false, true) => Class::Write,
                (false, false) => Class::Manage,
            }
        }
        _ if own.0.contains(&opcode) => Class::Read,
        _ if own.1.contains(&opcode) => Class::Write,
        _ if ANY.0.contains(&opcode) => Class::Read,
        _ if ANY.1.contains(&opcode) => Class::Write,
        _ => Class::Manage,
    }
}

/// Commands with data for the device, of all types that have no other command of that code in their own table.
const SENDS: Codes = &[
    0x04, 0x07, 0x0a, 0x15, 0x18, 0x1d, 0x2a, 0x2e, 0x2f, 0x39, 0x3a, 0x3b, 0x3d, 0x3f, 0x41, 0x4c, 0x54,
    0x55, 0x5d, 0x5f, 0x83, 0x89, 0x8a, 0x8b, 0x8d, 0x8e, 0x8f, 0x93, 0x9a, 0x9c, 0x9d, 0x9f, 0xaa, 0xae,
    0xaf, 0xb1, 0xbf,
];

/// Those with data for the device of a type's own table.
fn own_sends(kind: Kind) -> Codes {
    match kind {
        Kind::Disk => &[
            0x0a, 0x2a, 0x2e, 0x2f, 0x41, 0x42, 0x50, 0x51, 0x89, 0x8a, 0x8b, 0x8e, 0x8f, 0x93, 0x9a, 0x9c,
            0xaa, 0xae, 0xaf,
        ],
        Kind::Tape => &[0x0a, 0x8a, 0x8f],
        Kind::Changer => &[0xb6],
        Kind::Cd => &[0x04, 0x2a, 0x2e, 0x2f, 0x54, 0x5d, 0xa2, 0xa3, 0xaa, 0xb6, 0xbf],
        Kind::Processor | Kind::Enclosure | Kind::Other => &[],
    }
}

/// Which way the data of a command goes, where the adapter does not tell.
pub(super) fn direction(kind: Kind, cdb: &Cdb) -> Direction {
    /// ATA PASS-THROUGH, T_DIR: to the initiator (SAT-5, 12.2.2).
    const T_DIR: u8 = 0x08;
    let (opcode, bytes) = (cdb.opcode(), cdb.padded());
    let out = match (opcode, kind) {
        (0x85, _) => bytes[2] & T_DIR == 0,
        // BLANK of CDs has no data.
        (0xa1, Kind::Disk | Kind::Other) => bytes[2] & T_DIR == 0,
        // MAINTENANCE IN has a service action where SEND KEY of CDs has nothing.
        (0xa3, Kind::Cd) => bytes[1] & 0x1f == 0,
        (VARIABLE_LENGTH, _) => {
            let action = u16::from_be_bytes([bytes[8], bytes[9]]);
            action == 0x000a || WRITES_32.contains(&action)
        }
        _ if own(kind).0.contains(&opcode) || own(kind).1.contains(&opcode) => {
            own_sends(kind).contains(&opcode)
        }
        // SANITIZE, UNMAP; MAINTENANCE OUT; SECURITY PROTOCOL OUT.
        (0x42 | 0x48 | 0xa4 | 0xb5, _) => true,
        _ => SENDS.contains(&opcode),
    };
    if out { Direction::Out } else { Direction::In }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_code_is_twice_in_a_table() {
        for (reads, writes) in [ANY, DISK, TAPE, CHANGER, CD, PROCESSOR] {
            let mut all: Vec<_> = reads.iter().chain(writes).collect();
            let count = all.len();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), count);
            assert!(reads.is_sorted() && writes.is_sorted());
        }
    }

    #[test]
    fn data_that_goes_the_other_way_is_told() {
        let of = |kind, cdb: &[u8], going| contradicts(kind, &Cdb::new(cdb), going);
        let (to, from) = (Direction::Out, Direction::In);
        for (kind, cdb, wrong) in [
            (Kind::Disk, &[0x28][..], to),
            (Kind::Disk, &[0x2a], from),
            (Kind::Disk, &[0x42], from),
            (Kind::Cd, &[0x42], to),
            (Kind::Disk, &[0x5e], to),
            (Kind::Disk, &[0x12], to),
            (Kind::Tape, &[0x08], to),
            (Kind::Tape, &[0x0a], from),
            (Kind::Tape, &[0x01], to),
            (Kind::Changer, &[0xb8], to),
            (Kind::Disk, &[0x04], from), // FORMAT UNIT
        ] {
            let right = if wrong == to { from } else { to };
            assert!(of(kind, cdb, wrong) && !of(kind, cdb, right), "{cdb:02x?}");
            assert!(!of(kind, cdb, Direction::None), "{cdb:02x?}");
        }
        for (kind, cdb) in [
            (Kind::Disk, &[0xc0][..]),
            (Kind::Disk, &[0x02]),
            (Kind::Other, &[0x2a]),
            (Kind::Tape, &[0x13, 2]),
            (Kind::Tape, &[0x56]),
            (Kind::Disk, &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0x88, 1]),
        ] {
            assert!(!of(kind, cdb, to) && !of(kind, cdb, from), "{cdb:02x?}");
        }
        let both = |kind, cdb: &[u8]| goes_both_ways(kind, &Cdb::new(cdb));
        assert!(both(Kind::Disk, &[0x53]) && !both(Kind::Cd, &[0x53]), "RESERVE TRACK");
        assert!(both(Kind::Disk, &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 7]));
        assert!(!both(Kind::Disk, &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 9]));
    }

    /// MMC-6 has other commands where SBC has some that write.
    #[test]
    fn commands_of_cds_are_no_disks() {
        let of = |cdb: &[u8]| {
            let cdb = Cdb::new(cdb);
            (direction(Kind::Cd, &cdb), contradicts(Kind::Cd, &cdb, Direction::In))
        };
        // READ DISC INFORMATION, and REPORT SUPPORTED OPERATION CODES in the place of SEND KEY; 50h is none of theirs.
        for cdb in [&[0x51][..], &[0x51, 1], &[0x50], &[0xa3, 0x0c]] {
            assert_eq!(of(cdb), (Direction::In, false), "{cdb:02x?}");
        }
        for code in [
            0x03, 0x12, 0x1a, 0x23, 0x25, 0x28, 0x42, 0x43, 0x44, 0x46, 0x4a, 0x52, 0x5a, 0x5c, 0xa4, 0xa8,
            0xac, 0xad, 0xb9, 0xbd, 0xbe,
        ] {
            assert_eq!(of(&[code]), (Direction::In, false), "{code:02x}h");
        }
        for code in [0x04, 0x15, 0x2a, 0x2e, 0x54, 0x55, 0x5d, 0xa3, 0xaa, 0xb6, 0xbf] {
            assert_eq!(of(&[code]).0, Direction::Out, "{code:02x}h");
        }
        for code in [0x50, 0x51] {
            assert_eq!(direction(Kind::Disk, &Cdb::new(&[code])), Direction::Out, "XDWRITE, XPWRITE");
        }
    }

    #[test]
    fn data_goes_where_the_command_says() {
        let of = |kind, cdb: &[u8]| direction(kind, &Cdb::new(cdb));
        let (to, from) = (Direction::Out, Direction::In);
        for (kind, cdb, wanted) in [
            (Kind::Disk, &[0x12][..], from),
            (Kind::Disk, &[0x2a], to),
            (Kind::Disk, &[0x42], to),
            (Kind::Cd, &[0x42], from),
            (Kind::Disk, &[0x5f], to),
            (Kind::Disk, &[0x5e], from),
            (Kind::Disk, &[0xa3], from),
            (Kind::Cd, &[0xa3], to),
            (Kind::Changer, &[0xb6], to),
            (Kind::Disk, &[0x85, 0x08, 0x0e], from),
            (Kind::Disk, &[0x85, 0x0a, 0x06], to),
            (Kind::Disk, &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 9], from),
            (Kind::Disk, &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 11], to),
            (Kind::Disk, &[0xc0], from),
        ] {
            assert_eq!(of(kind, cdb), wanted, "{cdb:02x?}");
        }
    }
}
