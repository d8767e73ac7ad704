//! LOG SENSE (SPC-5, 6.8) and the log pages (SPC-5, 7.3; SBC-4, 6.4).

use super::Disk;
use crate::scsi::DataBuffers;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Outcome, Page, Writer};
use crate::scsi::sense::SenseData;
use crate::storage::BlockBackend;

/// Supported log pages, ascending: the list itself, temperature, start-stop cycle counter, background scan,
/// informational exceptions.
const PAGES: &[u8] = &[0x00, 0x0d, 0x0e, 0x15, 0x2f];

/// FORMAT AND LINKING 01b and 11b: the parameter is a list of ASCII characters, or of bytes (SPC-5, 7.3.2.2.2.5).
const ASCII_LIST: u8 = 0x01;
const BINARY_LIST: u8 = 0x03;
/// A temperature that is not known (SPC-5, 7.3.24).
const NO_TEMPERATURE: u8 = 0xff;

/// What comes after the header of a page.
struct Body {
    page: Page<64>,
    /// The first parameter that the initiator wants.
    pointer: u16,
}

impl Body {
    fn parameter(&mut self, code: u16, control: u8, value: &[u8]) {
        if code >= self.pointer {
            self.page.u16(code).u8(control).u8(value.len() as u8).put(value);
        }
    }
}

impl<B: BlockBackend> Disk<B> {
    pub(super) fn log_sense(&self, cdb: &[u8], data: &DataBuffers) -> Outcome {
        let (code, subpage) = (field(cdb, 2, 1) as u8 & 0x3f, field(cdb, 3, 1) as u8);
        if !PAGES.contains(&code) {
            return Err(SenseData::cdb_field(2, Some(5)).into());
        }
        if subpage != 0 && (code, subpage) != (0x00, 0xff) {
            return Err(SenseData::cdb_field(3, Some(7)).into());
        }
        let pointer = field(cdb, 5, 2) as u16;
        let mut body = Body { page: Page::new(), pointer };
        match code {
            0x00 if subpage == 0 => {
                body.page.put(PAGES);
            }
            0x00 => {
                body.page.put(&[0x00, 0x00, 0x00, 0xff]);
                for page in PAGES.iter().skip(1) {
                    body.page.put(&[*page, 0x00]);
                }
            }
            0x0d => temperature(&mut body),
            0x0e => self.start_stop_cycles(&mut body),
            0x15 => self.background_scan(&mut body),
            _ => informational_exceptions(&mut body),
        }
        let body = body.page;
        if pointer != 0 && (code == 0x00 || body.len() == 0) {
            // PARAMETER POINTER beyond all parameters: lists of pages have none (SPC-5, 6.8).
            return Err(SenseData::cdb_field(5, Some(7)).into());
        }
        // SPF is set where there is a subpage code.
        let spf = if subpage == 0 { 0 } else { 0x40 };
        let [high, low] = (body.len() as u16).to_be_bytes();
        let mut writer = Writer::new(&data.data_in, field(cdb, 7, 2));
        writer.put(&[spf | code, subpage, high, low]);
        writer.put(body.as_bytes());
        Ok(writer.finish())
    }

    /// Start-stop cycle counter: the accumulated cycles. When it was made is nobody's knowledge: blanks.
    fn start_stop_cycles(&self, body: &mut Body) {
        for code in [0x0001, 0x0002] {
            // Year and week of manufacture; accounting date.
            body.parameter(code, ASCII_LIST, b"      ");
        }
        body.parameter(0x0004, BINARY_LIST, &self.power.cycles().to_be_bytes());
    }

    /// Background scan: none is ever made; the time since power on is told in minutes.
    fn background_scan(&self, body: &mut Body) {
        let minutes = u32::try_from(self.power.on_for().as_secs() / 60).unwrap_or(u32::MAX);
        let [a, b, c, d] = minutes.to_be_bytes();
        body.parameter(0x0000, BINARY_LIST, &[a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}

fn temperature(body: &mut Body) {
    for code in [0x0000, 0x0001] {
        body.parameter(code, BINARY_LIST, &[0, NO_TEMPERATURE]);
    }
}

/// Nothing to report: additional sense code 00/00.
fn informational_exceptions(body: &mut Body) {
    body.parameter(0x0000, BINARY_LIST, &[0, 0, NO_TEMPERATURE, 0]);
}
