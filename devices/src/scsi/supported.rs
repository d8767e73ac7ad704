//! REPORT SUPPORTED OPERATION CODES (SPC-5, 6.34) and REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-5, 6.35).

use super::DataBuffers;
use super::opcode::{Command, field};
use super::outcome::{Outcome, Writer};
use super::sense::SenseData;

/// Commands take as long as the host's storage: nothing nominal, and this many seconds as a recommendation.
const RECOMMENDED_TIMEOUT: u32 = 60;
/// Length of a command timeouts descriptor (SPC-5, 6.34.4).
const TIMEOUTS_LEN: u32 = 12;

/// REPORT SUPPORTED OPERATION CODES over the commands of `table` that are `supported`; `more` has bits of byte 1 that the
/// unit looks at besides those of the table.
pub(crate) fn operation_codes<C>(
    table: &[Command<C>],
    supported: impl Fn(&Command<C>) -> bool,
    more: impl Fn(&Command<C>) -> u8,
    cdb: &[u8],
    data: &DataBuffers,
) -> Outcome {
    let options = field(cdb, 2, 1);
    let with_timeouts = options & 0x80 != 0;
    let opcode = field(cdb, 3, 1) as u8;
    let action = field(cdb, 4, 2) as u16;
    let writer = Writer::new(&data.data_in, field(cdb, 6, 4));
    let of_code = || table.iter().filter(|command| command.opcode() == opcode && supported(command));
    let has_actions = of_code().any(|command| command.action.is_some());
    let plain = of_code().find(|command| command.action.is_none());
    let with_action = of_code().find(|command| command.action == Some(action));
    let found = match options & 0x07 {
        0 => return Ok(all(writer, table.iter().filter(|command| supported(command)), with_timeouts)),
        1 if has_actions => return Err(SenseData::cdb_field(2, Some(2)).into()),
        1 => plain,
        2 if plain.is_some() => return Err(SenseData::cdb_field(2, Some(2)).into()),
        2 => with_action,
        3 => with_action.or(plain.filter(|_| action == 0)),
        _ => return Err(SenseData::cdb_field(2, Some(2)).into()),
    };
    Ok(one(writer, found, found.map_or(0, more), with_timeouts))
}

/// The all_commands format (SPC-5, 6.34.2).
fn all<'t, C: 't>(
    mut writer: Writer<'_>,
    commands: impl Iterator<Item = &'t Command<C>> + Clone,
    with_timeouts: bool,
) -> super::outcome::Done {
    let each = 8 + if with_timeouts { TIMEOUTS_LEN } else { 0 };
    let count = commands.clone().count() as u32;
    writer.put(&(count * each).to_be_bytes());
    for command in commands {
        let [high, low] = command.action.unwrap_or(0).to_be_bytes();
        let flags = u8::from(command.action.is_some()) | if with_timeouts { 0x02 } else { 0 };
        let [len_high, len_low] = (command.usage.len() as u16).to_be_bytes();
        writer.put(&[command.opcode(), 0, high, low, 0, flags, len_high, len_low]);
        if with_timeouts {
            timeouts(&mut writer);
        }
    }
    writer.finish()
}

/// The one_command format (SPC-5, 6.34.3): SUPPORT is 001b for not supported, 011b for as the standard says.
fn one<C>(
    mut writer: Writer<'_>,
    command: Option<&Command<C>>,
    more: u8,
    with_timeouts: bool,
) -> super::outcome::Done {
    let Some(command) = command else {
        writer.put(&[0, 0x01, 0, 0]);
        return writer.finish();
    };
    let flags = 0x03 | if with_timeouts { 0x80 } else { 0 };
    let [high, low] = (command.usage.len() as u16).to_be_bytes();
    writer.put(&[0, flags, high, low]);
    if let Some((first, rest)) = command.usage.split_first_chunk::<2>() {
        writer.put(&[first[0], first[1] | more]);
        writer.put(rest);
    }
    if with_timeouts {
        timeouts(&mut writer);
    }
    writer.finish()
}

fn timeouts(writer: &mut Writer<'_>) {
    writer.put(&[0, 0x0a, 0, 0]);
    writer.put(&0u32.to_be_bytes());
    writer.put(&RECOMMENDED_TIMEOUT.to_be_bytes());
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS: what [`super::Nexus::manage`] does.
pub(crate) fn task_management(cdb: &[u8], data: &DataBuffers) -> Outcome {
    let allocation = field(cdb, 6, 4);
    if allocation < 4 {
        return Err(SenseData::cdb_field(6, Some(7)).into());
    }
    let extended = field(cdb, 2, 1) & 0x80 != 0;
    let mut writer = Writer::new(&data.data_in, allocation);
    // ATS, ATSS, CTSS, LURS, QTS; QTSS, ITNRS. The long form adds timeouts: none are specified.
    writer.put(&[0xdc, 0x03, 0, if extended { 12 } else { 0 }]);
    if extended {
        writer.put(&[0; 12]);
    }
    Ok(writer.finish())
}
