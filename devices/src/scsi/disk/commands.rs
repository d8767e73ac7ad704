//! The commands of a disk: SBC-4, table 34, and what SPC-5 adds.

use super::super::absent::REPORT_LUNS_USAGE;
use super::super::opcode::{Command, Properties, field, starts};

/// What a disk does with a CDB; the lengths of one command share a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Id {
    TestUnitReady,
    RequestSense,
    FormatUnit,
    Read,
    Write,
    Inquiry,
    ModeSelect,
    Reserve,
    Release,
    ModeSense,
    PersistentReserveIn,
    PersistentReserveOut,
    StartStopUnit,
    SendDiagnostic,
    PreventAllow,
    ReadCapacity10,
    WriteAndVerify,
    Verify,
    SynchronizeCache,
    WriteSame,
    Unmap,
    LogSense,
    ReadCapacity16,
    GetLbaStatus,
    CompareAndWrite,
    OrWrite,
    PreFetch,
    ReadDefectData,
    ExtendedCopy,
    PopulateToken,
    WriteUsingToken,
    ReceiveCopyResults,
    WriteAtomic,
    ReportLuns,
    SupportedOperationCodes,
    SupportedTaskManagement,
}

impl Id {
    /// Whether it does I/O, but is none of those that move data all day.
    pub(super) fn takes_long(self) -> bool {
        matches!(
            self,
            Self::CompareAndWrite
                | Self::ExtendedCopy
                | Self::FormatUnit
                | Self::GetLbaStatus
                | Self::ModeSelect
                | Self::OrWrite
                | Self::PersistentReserveOut
                | Self::PopulateToken
                | Self::ReadCapacity10
                | Self::ReadCapacity16
                | Self::StartStopUnit
                | Self::Unmap
                | Self::Verify
                | Self::WriteAndVerify
                | Self::WriteAtomic
                | Self::WriteSame
                | Self::WriteUsingToken
        )
    }

    /// What holds for a command with this CDB, if `properties` hold for it in general: to start the medium or to allow its
    /// removal takes nothing from who has a reservation (SBC-3, table 13).
    pub(super) fn properties(self, properties: Properties, cdb: &[u8]) -> Properties {
        let harmless = match self {
            // START, and no POWER CONDITION.
            Self::StartStopUnit => field(cdb, 4, 1) & 0xf1 == 0x01,
            Self::PreventAllow => field(cdb, 4, 1) & 0x03 == 0,
            _ => false,
        };
        if harmless { properties.and(SHARED) } else { properties }
    }
}

/// Changes something other than the medium.
const NONE: Properties = Properties::NONE;
/// Says something that is no secret.
const SHARED: Properties = Properties::SHARED.and(Properties::ALWAYS);
const ALWAYS: Properties = Properties::ALWAYS;
/// Says something of the unit that those whom a reservation shuts out need not know.
const INFORM: Properties = Properties::READ;
const SUPPORTED: Properties = Properties::SHARED.and(INFORM);
const MEDIUM: Properties = Properties::MEDIUM;
const READ: Properties = MEDIUM.and(Properties::READ);
const CAPACITY: Properties = MEDIUM.and(Properties::ALWAYS);
const WRITE: Properties = MEDIUM.and(Properties::WRITE);
/// Allowed when an earlier one failed.
const WIPE: Properties = Properties::WRITE;
const UNMAP: Properties = WRITE.and(Properties::THIN);

const fn plain(id: Id, properties: Properties, usage: &'static [u8]) -> Command<Id> {
    Command::new(id, None, usage, properties)
}

const fn action(id: Id, properties: Properties, action: u16, usage: &'static [u8]) -> Command<Id> {
    Command::new(id, Some(action), usage, properties)
}

/// In order of operation codes and service actions.
///
/// RDPROTECT and its like are not in the masks: without protection information they are invalid fields (SBC-4, 5.13).
/// RARC is, because it is ignored without rebuild assist; so is FUA_NV, which old initiators may still set.
/// SANITIZE is missing on purpose: it promises that no copy of the data is left anywhere and that it goes on after a loss of
/// power (SBC-4, 4.11), and an image can promise neither.
pub(super) const COMMANDS: &[Command<Id>] = &[
    plain(Id::TestUnitReady, ALWAYS, &[0x00, 0, 0, 0, 0, 0]),
    plain(Id::RequestSense, SHARED, &[0x03, 0x01, 0, 0, 0xff, 0]),
    plain(Id::FormatUnit, WIPE, &[0x04, 0x3f, 0, 0, 0, 0]),
    plain(Id::Read, READ, &[0x08, 0x1f, 0xff, 0xff, 0xff, 0]),
    plain(Id::Write, WRITE, &[0x0a, 0x1f, 0xff, 0xff, 0xff, 0]),
    plain(Id::Inquiry, SHARED, &[0x12, 0x01, 0xff, 0xff, 0xff, 0]),
    plain(Id::ModeSelect, NONE, &[0x15, 0x10, 0, 0, 0xff, 0]),
    plain(Id::Reserve, ALWAYS, &[0x16, 0, 0, 0, 0, 0]),
    plain(Id::Release, SHARED, &[0x17, 0, 0, 0, 0, 0]),
    plain(Id::ModeSense, INFORM, &[0x1a, 0x08, 0xff, 0xff, 0xff, 0]),
    plain(Id::StartStopUnit, NONE, &[0x1b, 0x01, 0, 0x0f, 0xf7, 0]),
    plain(Id::SendDiagnostic, NONE, &[0x1d, 0x17, 0, 0, 0, 0]),
    plain(Id::PreventAllow, NONE, &[0x1e, 0, 0, 0, 0x03, 0]),
    plain(Id::ReadCapacity10, CAPACITY, &[0x25, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01, 0]),
    plain(Id::Read, READ, &[0x28, 0x1e, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, 0]),
    plain(Id::Write, WRITE, &[0x2a, 0x1a, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, 0]),
    plain(Id::WriteAndVerify, WRITE, &[0x2e, 0x16, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, 0]),
    plain(Id::Verify, READ, &[0x2f, 0x16, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, 0]),
    plain(Id::PreFetch, READ, &[0x34, 0x02, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, 0]),
    plain(Id::SynchronizeCache, MEDIUM, &[0x35, 0x06, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, 0]),
    plain(Id::ReadDefectData, READ, &[0x37, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0]),
    plain(Id::WriteSame, WRITE, &[0x41, 0x08, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, 0]),
    plain(Id::Unmap, UNMAP, &[0x42, 0, 0, 0, 0, 0, 0x3f, 0xff, 0xff, 0]),
    plain(Id::LogSense, SHARED, &[0x4d, 0, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    plain(Id::ModeSelect, NONE, &[0x55, 0x10, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    plain(Id::Reserve, ALWAYS, &[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    plain(Id::Release, SHARED, &[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    plain(Id::ModeSense, INFORM, &[0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0]),
    action(Id::PersistentReserveIn, ALWAYS, 0, &persistent_in(0)),
    action(Id::PersistentReserveIn, ALWAYS, 1, &persistent_in(1)),
    action(Id::PersistentReserveIn, ALWAYS, 2, &persistent_in(2)),
    action(Id::PersistentReserveIn, ALWAYS, 3, &persistent_in(3)),
    action(Id::PersistentReserveOut, ALWAYS, 0, &persistent_out(0)),
    action(Id::PersistentReserveOut, ALWAYS, 1, &persistent_out(1)),
    action(Id::PersistentReserveOut, ALWAYS, 2, &persistent_out(2)),
    action(Id::PersistentReserveOut, ALWAYS, 3, &persistent_out(3)),
    action(Id::PersistentReserveOut, ALWAYS, 4, &persistent_out(4)),
    action(Id::PersistentReserveOut, ALWAYS, 5, &persistent_out(5)),
    action(Id::PersistentReserveOut, ALWAYS, 6, &persistent_out(6)),
    action(Id::Read, READ, 0x0009, &LONG_READ),
    action(Id::Verify, READ, 0x000a, &LONG_VERIFY),
    action(Id::Write, WRITE, 0x000b, &LONG_WRITE),
    action(Id::WriteAndVerify, WRITE, 0x000c, &LONG_WRITE_AND_VERIFY),
    action(Id::ExtendedCopy, MEDIUM, 0x00, &third_party_out(0x00, 0)),
    action(Id::ExtendedCopy, MEDIUM, 0x01, &third_party_out(0x01, 0)),
    action(Id::PopulateToken, READ, 0x10, &third_party_out(0x10, 0xff)),
    action(Id::WriteUsingToken, WRITE, 0x11, &third_party_out(0x11, 0xff)),
    action(Id::ReceiveCopyResults, SUPPORTED, 0x00, &third_party_in(0x00, 0xff, 0)),
    action(Id::ReceiveCopyResults, SUPPORTED, 0x03, &third_party_in(0x03, 0, 0)),
    action(Id::ReceiveCopyResults, SUPPORTED, 0x04, &third_party_in(0x04, 0xff, 0)),
    action(Id::ReceiveCopyResults, SUPPORTED, 0x05, &third_party_in(0x05, 0xff, 0xff)),
    action(Id::ReceiveCopyResults, SUPPORTED, 0x07, &third_party_in(0x07, 0xff, 0xff)),
    plain(Id::Read, READ, &long_lba(0x88, 0x1e)),
    plain(
        Id::CompareAndWrite,
        WRITE,
        &[0x89, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0x3f, 0],
    ),
    plain(Id::Write, WRITE, &long_lba(0x8a, 0x1a)),
    plain(Id::OrWrite, WRITE, &long_lba(0x8b, 0x18)),
    plain(Id::WriteAndVerify, WRITE, &long_lba(0x8e, 0x16)),
    plain(Id::Verify, READ, &long_lba(0x8f, 0x16)),
    plain(Id::PreFetch, READ, &long_lba(0x90, 0x02)),
    plain(Id::SynchronizeCache, MEDIUM, &long_lba(0x91, 0x06)),
    plain(Id::WriteSame, WRITE, &long_lba(0x93, 0x09)),
    plain(
        Id::WriteAtomic,
        WRITE,
        &[0x9c, 0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0xff, 0xff, 0x3f, 0],
    ),
    action(
        Id::ReadCapacity16,
        CAPACITY,
        0x10,
        &[0x9e, 0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0],
    ),
    action(
        Id::GetLbaStatus,
        READ,
        0x12,
        &[0x9e, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
    ),
    plain(Id::ReportLuns, SHARED, REPORT_LUNS_USAGE),
    action(
        Id::SupportedOperationCodes,
        SUPPORTED,
        0x0c,
        &[0xa3, 0x0c, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
    ),
    action(
        Id::SupportedTaskManagement,
        SUPPORTED,
        0x0d,
        &[0xa3, 0x0d, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
    ),
    plain(Id::Read, READ, &[0xa8, 0x1e, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0]),
    plain(Id::Write, WRITE, &[0xaa, 0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0]),
    plain(Id::WriteAndVerify, WRITE, &[0xae, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0]),
    plain(Id::Verify, READ, &[0xaf, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0]),
    plain(Id::ReadDefectData, READ, &[0xb7, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
];

/// Where each operation code begins.
pub(super) static STARTS: [u8; 256] = starts(COMMANDS);

/// Usage of the 16-byte commands with an 8-byte LBA, a 4-byte count and a group number.
const fn long_lba(opcode: u8, flags: u8) -> [u8; 16] {
    let f = 0xff;
    [opcode, flags, f, f, f, f, f, f, f, f, f, f, f, f, 0x3f, 0]
}

/// Usage of third-party copy out: a list identifier where the token commands have one, and the parameter list length.
const fn third_party_out(action: u8, id: u8) -> [u8; 16] {
    let f = 0xff;
    [0x83, action, 0, 0, 0, 0, id, id, id, id, f, f, f, f, if id == 0 { 0 } else { 0x3f }, 0]
}

/// Usage of third-party copy in: a list identifier of one byte or four.
const fn third_party_in(action: u8, id: u8, long: u8) -> [u8; 16] {
    let f = 0xff;
    [0x84, action, id, long, long, long, 0, 0, 0, 0, f, f, f, f, 0, 0]
}

const fn persistent_in(action: u8) -> [u8; 10] {
    [0x5e, action, 0, 0, 0, 0, 0, 0xff, 0xff, 0]
}

const fn persistent_out(action: u8) -> [u8; 10] {
    [0x5f, action, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]
}

/// Usage of the 32-byte commands (SBC-4, 5.17): the fields of protection information are ignored without it.
const fn variable(action: u8, flags: u8) -> [u8; 32] {
    let f = 0xff;
    [
        0x7f, 0, 0, 0, 0, 0, 0x3f, f, 0, action, flags, 0, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f,
        f, f, f,
    ]
}

const LONG_READ: [u8; 32] = variable(0x09, 0x1e);
const LONG_VERIFY: [u8; 32] = variable(0x0a, 0x16);
const LONG_WRITE: [u8; 32] = variable(0x0b, 0x1a);
const LONG_WRITE_AND_VERIFY: [u8; 32] = variable(0x0c, 0x16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_lengths_follow_the_group_code() {
        let key = |c: &Command<Id>| (c.opcode(), c.action);
        assert!(COMMANDS.windows(2).all(|pair| key(&pair[0]) < key(&pair[1])));
        for command in COMMANDS {
            // SPC-5, 4.2.5.1: the group code is the top three bits of the operation code.
            let len = match command.opcode() >> 5 {
                0 => 6,
                1 | 2 => 10,
                3 => 32,
                4 => 16,
                _ => 12,
            };
            assert_eq!(command.usage.len(), len, "{:#x}", command.opcode());
        }
    }
}
