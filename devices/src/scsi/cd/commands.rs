//! The commands of a drive: MMC-6, table 228, those of a reader, and what SPC-5 adds.

use crate::scsi::absent::REPORT_LUNS_USAGE;
use crate::scsi::opcode::{Command, Properties, starts};

/// What a drive does with a CDB; the lengths of one command share a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Id {
    TestUnitReady,
    RequestSense,
    Inquiry,
    ModeSelect,
    Reserve,
    Release,
    ModeSense,
    StartStopUnit,
    SendDiagnostic,
    PreventAllow,
    ReadCapacity,
    Read,
    Seek,
    SynchronizeCache,
    ReadToc,
    GetConfiguration,
    EventStatus,
    ReadDiscInformation,
    ReadTrackInformation,
    ReadDiscStructure,
    ReadCdMsf,
    SetCdSpeed,
    MechanismStatus,
    ReadCd,
    ReportLuns,
    SupportedOperationCodes,
    SupportedTaskManagement,
}

/// Changes something of the drive.
const NONE: Properties = Properties::NONE;
/// Says something that is no secret.
const SHARED: Properties = Properties::SHARED.and(Properties::ALWAYS);
const ALWAYS: Properties = Properties::ALWAYS;
const READ: Properties = Properties::READ;
const SUPPORTED: Properties = Properties::SHARED.and(READ);

const fn plain(id: Id, properties: Properties, usage: &'static [u8]) -> Command<Id> {
    Command::new(id, None, usage, properties)
}

/// In order of operation codes and service actions. READ (6) is not MMC's, but drivers of BSDs read CDs of SCSI with it. The audio
/// commands, GET PERFORMANCE and REPORT KEY are missing: no
/// audio can be played, no disc is encrypted, and every sector comes as fast as the host has it. SYNCHRONIZE CACHE is for
/// whoever flushes all units, whatever they are.
pub(super) const COMMANDS: &[Command<Id>] = &[
    plain(Id::TestUnitReady, ALWAYS, &[0x00, 0, 0, 0, 0, 0]),
    plain(Id::RequestSense, SHARED, &[0x03, 0x01, 0, 0, 0xff, 0]),
    plain(Id::Read, READ, &[0x08, 0x1f, 0xff, 0xff, 0xff, 0]),
    plain(Id::Inquiry, SHARED, &[0x12, 0x01, 0xff, 0xff, 0xff, 0]),
    plain(Id::ModeSelect, NONE, &[0x15, 0x10, 0, 0, 0xff, 0]),
    plain(Id::Reserve, ALWAYS, &[0x16, 0, 0, 0, 0, 0]),
    plain(Id::Release, SHARED, &[0x17, 0, 0, 0, 0, 0]),
    plain(Id::ModeSense, READ, &[0x1a, 0x08, 0xff, 0xff, 0xff, 0]),
    plain(Id::StartStopUnit, NONE, &[0x1b, 0x01, 0, 0x0f, 0xf7, 0]),
    plain(Id::SendDiagnostic, NONE, &[0x1d, 0xf7, 0, 0, 0, 0]),
    plain(Id::PreventAllow, NONE, &[0x1e, 0, 0, 0, 0x03, 0]),
    plain(Id::ReadCapacity, ALWAYS, &[0x25, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01, 0]),
    plain(Id::Read, READ, &[0x28, 0x1a, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, 0]),
    plain(Id::Seek, READ, &[0x2b, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
    plain(Id::SynchronizeCache, NONE, &[0x35, 0x06, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, 0]),
    // The format that ATAPI had in the byte CONTROL is vendor specific there.
    plain(Id::ReadToc, READ, &[0x43, 0x02, 0x0f, 0, 0, 0, 0xff, 0xff, 0xff, 0]),
    plain(Id::GetConfiguration, SHARED, &[0x46, 0x03, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0]),
    plain(Id::EventStatus, SHARED, &[0x4a, 0x01, 0, 0, 0xff, 0, 0, 0xff, 0xff, 0]),
    plain(Id::ReadDiscInformation, READ, &[0x51, 0x07, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    plain(Id::ReadTrackInformation, READ, &[0x52, 0x07, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(Id::ModeSelect, NONE, &[0x55, 0x10, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    plain(Id::Reserve, ALWAYS, &[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    plain(Id::Release, SHARED, &[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    plain(Id::ModeSense, READ, &[0x5a, 0x08, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0]),
    plain(
        Id::SynchronizeCache,
        NONE,
        &[0x91, 0x06, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0],
    ),
    plain(Id::ReportLuns, SHARED, REPORT_LUNS_USAGE),
    Command::new(
        Id::SupportedOperationCodes,
        Some(0x0c),
        &[0xa3, 0x0c, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        SUPPORTED,
    ),
    Command::new(
        Id::SupportedTaskManagement,
        Some(0x0d),
        &[0xa3, 0x0d, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        SUPPORTED,
    ),
    plain(Id::Read, READ, &[0xa8, 0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbf, 0]),
    plain(
        Id::ReadDiscStructure,
        READ,
        &[0xad, 0x0f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xc0, 0],
    ),
    plain(Id::ReadCdMsf, READ, &[0xb9, 0x1e, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0x07, 0]),
    plain(Id::SetCdSpeed, NONE, &[0xbb, 0x03, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0]),
    plain(Id::MechanismStatus, READ, &[0xbd, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0]),
    plain(Id::ReadCd, READ, &[0xbe, 0x1e, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0x07, 0]),
];

/// Where each operation code begins.
pub(super) static STARTS: [u8; 256] = starts(COMMANDS);

/// Commands that report no unit attention condition, beside those of SPC-5: GET CONFIGURATION and GET EVENT STATUS
/// NOTIFICATION (MMC-6, 4.1.6.1).
pub(in crate::scsi) fn passes_attention(opcode: u8) -> bool {
    matches!(opcode, 0x46 | 0x4a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order() {
        let key = |command: &Command<Id>| (command.opcode(), command.action);
        assert!(COMMANDS.windows(2).all(|pair| key(&pair[0]) < key(&pair[1])));
    }
}
