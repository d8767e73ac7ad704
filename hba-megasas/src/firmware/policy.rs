//! What the firmware lets through to disks and what it does about their caches, whichever way commands come.

use devices::scsi::{Residual, ScsiReply, Sense, Status};

/// Commands that leave the medium and the state of a disk alone: what tools may send to a disk behind a volume.
pub(crate) fn only_reads(opcode: u8) -> bool {
    matches!(
        opcode,
        // TEST UNIT READY, REQUEST SENSE, READ(6), INQUIRY, MODE SENSE(6), RECEIVE DIAGNOSTIC RESULTS
        0x00 | 0x03 | 0x08 | 0x12 | 0x1a | 0x1c
        // READ CAPACITY(10), READ(10), VERIFY(10), PRE-FETCH(10), SYNCHRONIZE CACHE(10), READ DEFECT DATA(10)
        | 0x25 | 0x28 | 0x2f | 0x34 | 0x35 | 0x37
        // LOG SENSE, MODE SENSE(10), PERSISTENT RESERVE IN
        | 0x4d | 0x5a | 0x5e
        // READ(16), VERIFY(16), PRE-FETCH(16), SYNCHRONIZE CACHE(16), SERVICE ACTION IN(16)
        | 0x88 | 0x8f | 0x90 | 0x91 | 0x9e
        // REPORT LUNS, MAINTENANCE IN, READ(12), VERIFY(12), READ DEFECT DATA(12)
        | 0xa0 | 0xa3 | 0xa8 | 0xaf | 0xb7
    )
}

/// Commands that change data and may leave it in a cache: WRITE, WRITE AND VERIFY, WRITE SAME, UNMAP, EXTENDED COPY and
/// WRITE USING TOKEN, COMPARE AND WRITE, ORWRITE, WRITE ATOMIC, of all lengths. FORMAT UNIT flushes by itself,
/// and while it goes on in the background nothing else could.
pub(crate) fn changes_medium(opcode: u8) -> bool {
    matches!(
        opcode,
        0x0a | 0x2a | 0x2e | 0x41 | 0x42 | 0x83 | 0x89 | 0x8a | 0x8b | 0x8e | 0x93 | 0x9c | 0xaa | 0xae
    )
}

/// CHECK CONDITION, DATA PROTECT, WRITE PROTECTED in fixed format (SPC-5, 4.4.3).
pub(crate) fn write_protected() -> ScsiReply {
    let sense = [0x70, 0, 0x07, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x27, 0, 0, 0, 0, 0];
    ScsiReply {
        status: Status::CheckCondition,
        sense: Some(Sense::from_bytes(&sense)),
        residual_out: Residual::Exact,
        residual_in: Residual::Exact,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_command_that_changes_data_reaches_a_disk_behind_a_volume() {
        for opcode in 0..=u8::MAX {
            assert!(!(only_reads(opcode) && changes_medium(opcode)), "{opcode:#x}");
        }
        // MODE SELECT, START STOP UNIT, SEND DIAGNOSTIC, WRITE BUFFER, WRITE LONG, LOG SELECT, PERSISTENT RESERVE OUT,
        // commands of 32 bytes, ATA PASS-THROUGH, SANITIZE, FORMAT UNIT, REASSIGN BLOCKS, SECURITY PROTOCOL OUT.
        let others =
            [0x15, 0x55, 0x1b, 0x1d, 0x3b, 0x3f, 0x4c, 0x5f, 0x7f, 0x85, 0xa1, 0x48, 0x04, 0x07, 0xb5];
        assert!(others.iter().all(|&opcode| !only_reads(opcode)));
    }
}
