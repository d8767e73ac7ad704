//! What answers where there is no logical unit: SPC-5, 4.2.4 and 6.7.2 (INQUIRY), 9.2 (REPORT LUNS).

use super::lun::Address;
use super::nexus::Nexus;
use super::opcode::{Command, Properties, decode, field, starts};
use super::outcome::{Done, Outcome, Page, Writer};
use super::sense::{LUN_NOT_SUPPORTED, NO_ADDITIONAL_SENSE, SenseData, SenseKey};
use super::{Cdb, DataBuffers, Lun};

#[derive(Clone, Copy)]
enum Id {
    TestUnitReady,
    RequestSense,
    Inquiry,
    ReportLuns,
}

const NONE: Properties = Properties::NONE;
const COMMANDS: &[Command<Id>] = &[
    Command::new(Id::TestUnitReady, None, &[0x00, 0, 0, 0, 0, 0], NONE),
    Command::new(Id::RequestSense, None, &[0x03, 1, 0, 0, 0xff, 0], NONE),
    Command::new(Id::Inquiry, None, &[0x12, 1, 0xff, 0xff, 0xff, 0], NONE),
    Command::new(Id::ReportLuns, None, REPORT_LUNS_USAGE, NONE),
];

/// Where each operation code begins.
static STARTS: [u8; 256] = starts(COMMANDS);

/// CDB usage data of REPORT LUNS, for the tables of other units.
pub(crate) const REPORT_LUNS_USAGE: &[u8] = &[0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];

/// Peripheral qualifier 011b, device type 1Fh: nothing here, and nothing can be here (SPC-5, 6.7.2).
const NOT_CAPABLE: u8 = 0x7f;
/// Peripheral device type of a well known logical unit (SPC-5, 6.7.2).
const WELL_KNOWN: u8 = 0x1e;

/// Executes a command that was sent to a LUN without a logical unit, or to the REPORT LUNS well known one.
pub(crate) fn execute(nexus: &Nexus, lun: &Lun, cdb: &Cdb, data: &DataBuffers) -> Outcome {
    let well_known = lun.address() == Address::ReportLuns;
    let absent = SenseData::illegal(LUN_NOT_SUPPORTED);
    let bytes = cdb.padded();
    let command = match decode(COMMANDS, &STARTS, |_| true, cdb) {
        Ok(command) => command.id,
        // Whatever is wrong with the CDB, an absent unit is the first thing wrong.
        Err(sense) if well_known => return Err(sense.into()),
        Err(sense) if matches!(cdb.opcode(), 0x03 | 0x12) => return Err(sense.into()),
        Err(_) => return Err(absent.into()),
    };
    match command {
        Id::Inquiry => inquiry(bytes, if well_known { WELL_KNOWN } else { NOT_CAPABLE }, data),
        Id::ReportLuns if well_known || lun.address() == Address::Unit(0) => report_luns(nexus, bytes, data),
        Id::RequestSense => {
            let nothing = SenseData::new(SenseKey::NoSense, NO_ADDITIONAL_SENSE);
            Ok(request_sense(bytes, if well_known { nothing } else { absent }, data))
        }
        Id::TestUnitReady if well_known => Ok(Done::good()),
        Id::TestUnitReady | Id::ReportLuns => Err(absent.into()),
    }
}

/// REQUEST SENSE (SPC-5, 6.39) with `sense` as its parameter data.
pub(crate) fn request_sense(cdb: &[u8], sense: SenseData, data: &DataBuffers) -> Done {
    let descriptor = field(cdb, 1, 1) & 1 != 0;
    let mut writer = Writer::new(&data.data_in, field(cdb, 4, 1));
    writer.put(sense.encode(descriptor).as_bytes());
    writer.finish()
}

fn inquiry(cdb: &[u8], peripheral: u8, data: &DataBuffers) -> Outcome {
    let page_code = field(cdb, 2, 1) as u8;
    let mut writer = Writer::new(&data.data_in, field(cdb, 3, 2));
    if field(cdb, 1, 1) & 1 != 0 {
        if page_code != 0 {
            return Err(SenseData::cdb_field(2, Some(7)).into());
        }
        writer.put(&[peripheral, 0, 0, 1, 0]);
        return Ok(writer.finish());
    }
    if page_code != 0 {
        return Err(SenseData::cdb_field(2, Some(7)).into());
    }
    writer.put(standard(peripheral).as_bytes());
    Ok(writer.finish())
}

/// Standard INQUIRY data (SPC-5, 6.7.2) with nothing in it but its first byte.
fn standard(peripheral: u8) -> Page<36> {
    let mut page = Page::new();
    page.put(&[peripheral, 0, 0x07, 0x12, 31, 0, 0, 0]).ascii("", 28);
    page
}

/// What a unit says of itself whose device is not there: as if there were no unit. Linux looks at no unit behind one that answers
/// INQUIRY with an error, and passes over one with this qualifier. With 001b, which says what would be there, some of its versions
/// have a device without a driver, and do not look again when there is more.
pub(crate) fn away() -> Page<36> {
    standard(NOT_CAPABLE)
}

/// REPORT LUNS (SPC-5, 6.33). Any logical unit of the target answers it.
pub(crate) fn report_luns(nexus: &Nexus, cdb: &[u8], data: &DataBuffers) -> Outcome {
    let allocation = field(cdb, 6, 4);
    if allocation < 16 {
        return Err(SenseData::cdb_field(6, Some(7)).into());
    }
    // SELECT REPORT: addressable units, well known units, both. Units of a conglomerate do not exist here.
    let (ordinary, well_known) = match field(cdb, 2, 1) {
        0 => (true, false),
        1 => (false, true),
        2 => (true, true),
        _ => return Err(SenseData::cdb_field(2, Some(7)).into()),
    };
    // Before the look: of what comes after it the initiator shall hear.
    nexus.clear_luns_changed();
    let mut count = u32::from(well_known);
    let mut writer = Writer::new(&data.data_in, allocation);
    writer.put(&[0; 8]);
    if ordinary {
        nexus.for_each_lun(|lun| {
            writer.put(&lun.0);
            count += 1;
        });
    }
    if well_known {
        writer.put(&Lun::REPORT_LUNS.0);
    }
    // The list length counts all units, whether they fitted or not.
    data.data_in.write_at(0, &(count * 8).to_be_bytes());
    Ok(writer.finish())
}
