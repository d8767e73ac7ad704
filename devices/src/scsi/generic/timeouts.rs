//! How long the host's kernel waits for a command before it aborts it. Longer than initiators do: they decide.

use std::time::Duration;

use super::filter;
use super::kind::Kind;
use super::table::Class;
use crate::scsi::Cdb;
use crate::scsi::opcode::VARIABLE_LENGTH;

/// All that is not listed. Not more: Linux on virtio-scsi and on the boards never gives up on a command by itself, so this is how long
/// a frame that was lost holds up the guest; who hears of it repeats the command, for three minutes in Linux.
const COMMON: u64 = 60;
/// All that is not listed, of tapes: the drive may look for the end of the data, or clean itself, before it answers.
const TAPE: u64 = 900;
/// From one end of a tape to the other.
const TAPE_LONG: u64 = 14_000;
/// Writing or reading all of it, as Linux's own driver waits (st, eight times the one before).
const TAPE_WHOLE: u64 = 112_000;
/// All that is not listed, of changers: an arm moves.
const CHANGER: u64 = 1200;

/// Seconds by type and operation code.
const LONG: &[(Kind, &[u8], u64)] = &[
    // REWIND, FORMAT MEDIUM, SPACE (6, 16), LOAD UNLOAD, LOCATE (10, 16)
    (Kind::Tape, &[0x01, 0x04, 0x11, 0x91, 0x1b, 0x2b, 0x92], TAPE_LONG),
    // VERIFY (6, 16), ERASE (6, 16)
    (Kind::Tape, &[0x13, 0x8f, 0x19, 0x93], TAPE_WHOLE),
    // INITIALIZE ELEMENT STATUS, also WITH RANGE
    (Kind::Changer, &[0x07, 0x37], 3600),
    // FORMAT UNIT, FORMAT WITH PRESET, SANITIZE, ATA PASS-THROUGH (16, 12): an erasure that is aborted leaves the disk locked
    (Kind::Disk, &[0x04, 0x38, 0x48, 0x85, 0xa1], 86_400),
    // REASSIGN BLOCKS, START STOP UNIT, SYNCHRONIZE CACHE (10, 16), WRITE SAME (10, 16), UNMAP, VERIFY (10, 12, 16), ZONE MANAGEMENT OUT,
    // and of variable length those and WRITE SAME and VERIFY (32)
    (Kind::Disk, &[0x07, 0x1b, 0x35, 0x91, 0x41, 0x93, 0x42, 0x2f, 0xaf, 0x8f, 0x94, VARIABLE_LENGTH], 600),
    // FORMAT UNIT, BLANK, CLOSE TRACK SESSION, SYNCHRONIZE CACHE, RESERVE TRACK, SEND OPC INFORMATION
    (Kind::Cd, &[0x04, 0xa1, 0x5b, 0x35, 0x53, 0x54], 14_400),
];

/// WRITE BUFFER, SECURITY PROTOCOL IN and OUT, EXTENDED COPY: of all types.
const ANY: (&[u8], u64) = (&[0x3b, 0xa2, 0xb5, 0x83], 600);
/// SEND DIAGNOSTIC: self-tests in the foreground.
const DIAGNOSTIC: (u8, u64) = (0x1d, 14_400);

/// For a command to a device of this type.
pub(super) fn of(kind: Kind, cdb: &Cdb) -> Duration {
    let opcode = cdb.opcode();
    // Of commands of ATA and of self-tests most only ask, and the kernel looks after a disk that hangs when their time is over.
    let asks = matches!((opcode, kind), (0x85, _) | (0xa1, Kind::Disk) | (0x1d, _))
        && filter::class(kind, cdb) == Class::Read;
    if asks {
        return Duration::from_secs(basic(kind));
    }
    // REMOVE ELEMENT AND TRUNCATE, RESTORE ELEMENTS AND REBUILD (SBC-4, 5.21): one that is aborted leaves the disk unusable.
    if kind == Kind::Disk && opcode == 0x9e && matches!(cdb.padded()[1] & 0x1f, 0x18 | 0x19) {
        return Duration::from_secs(86_400);
    }
    let listed = LONG.iter().find(|(of, opcodes, _)| *of == kind && opcodes.contains(&opcode));
    let seconds = match listed {
        Some((_, _, seconds)) => *seconds,
        None if opcode == DIAGNOSTIC.0 => DIAGNOSTIC.1,
        None if ANY.0.contains(&opcode) && kind != Kind::Cd => ANY.1.max(basic(kind)),
        None => basic(kind),
    };
    Duration::from_secs(seconds)
}

fn basic(kind: Kind) -> u64 {
    match kind {
        Kind::Tape => TAPE,
        Kind::Changer => CHANGER,
        Kind::Cd => 2 * COMMON,
        Kind::Disk | Kind::Processor | Kind::Enclosure | Kind::Other => COMMON,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_may() {
        let seconds = |kind, opcode: u8| of(kind, &Cdb::new(&[opcode; 6])).as_secs();
        assert_eq!(seconds(Kind::Disk, 0x28), 60);
        assert_eq!(seconds(Kind::Disk, 0x04), 86_400);
        let of_cdb = |cdb: &[u8]| of(Kind::Disk, &Cdb::new(cdb)).as_secs();
        // IDENTIFY DEVICE and SMART READ DATA; SECURITY ERASE UNIT.
        let ata = |protocol: u8, features: u8, command: u8| {
            of_cdb(&[0x85, protocol << 1, 0, 0, features, 0, 0, 0, 0, 0, 0, 0, 0, 0, command, 0])
        };
        assert_eq!((ata(4, 0, 0xec), ata(4, 0xd0, 0xb0), ata(5, 0, 0xf4)), (60, 60, 86_400));
        assert_eq!((of_cdb(&[0x1d, 4]), of_cdb(&[0x1d, 0xc0])), (60, 14_400));
        assert_eq!((of_cdb(&[0x9e, 0x10]), of_cdb(&[0x9e, 0x18])), (60, 86_400));
        assert_eq!(seconds(Kind::Tape, 0x19), 112_000);
        assert_eq!(seconds(Kind::Tape, 0x08), 900);
        assert_eq!(seconds(Kind::Tape, 0x01), 14_000);
        assert_eq!(seconds(Kind::Tape, 0x3b), 900, "no shorter than others");
        assert_eq!(seconds(Kind::Changer, 0xa5), 1200);
        assert_eq!(seconds(Kind::Enclosure, 0x1d), 14_400);
        assert_eq!(seconds(Kind::Cd, 0xa1), 14_400);
        // The kernel has milliseconds in 31 bits.
        assert!(LONG.iter().all(|(_, _, seconds)| seconds * 1000 < 1 << 31));
    }
}
