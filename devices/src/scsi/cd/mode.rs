//! Mode parameters of a drive (MMC-6, 7): pages that say what it can do. None of them can be changed.

use super::Cd;
use super::sectors::BLOCK;
use crate::scsi::DataBuffers;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Done, Outcome, Page, Writer};
use crate::scsi::sense::{PARAMETER_LIST_LENGTH_ERROR, SAVING_PARAMETERS_NOT_SUPPORTED, SenseData};
use crate::storage::BlockBackend;

/// Kilobytes a second of a drive of 48 times the speed of audio.
const SPEED: u16 = 8467;
/// Kilobytes of its buffer.
const BUFFER: u16 = 512;

/// All pages but 2Ah, ascending.
const PAGES: [&[u8]; 5] = [
    // Read error recovery: none is left out.
    &[0x01, 0x0a, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
    // CD device parameters: seconds of a minute, frames of a second.
    &[0x0d, 0x06, 0, 0x0d, 0, 60, 0, 75],
    // CD audio control: IMMED; nothing is heard.
    &[0x0e, 0x0e, 0x04, 0, 0, 0, 0, 75, 0, 0, 0, 0, 0, 0, 0, 0],
    // Power condition: none enabled.
    &[0x1a, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    // Timeout and protect: no limits.
    &[0x1d, 0x08, 0, 0, 0, 0, 0, 0, 0, 0],
];

/// Longest list of MODE SELECT that can be right.
const MAX_LIST: usize = 256;

impl<B: BlockBackend> Cd<B> {
    /// The pages with this code, or all, with their current values.
    fn pages(&self, code: u8) -> impl Iterator<Item = Page<32>> {
        let capabilities = self.capabilities();
        let fixed = PAGES.into_iter().map(|bytes| {
            let mut page = Page::new();
            page.put(bytes);
            page
        });
        let selected = move |page: &Page<32>| code == 0x3f || page.as_bytes().first() == Some(&code);
        fixed.chain([capabilities]).filter(selected)
    }

    /// CD/DVD capabilities and mechanical status (MMC-3, 6.3.11).
    fn capabilities(&self) -> Page<32> {
        let mut page = Page::new();
        let locked = if self.drive.tray().locked { 0x02 } else { 0 };
        // CD-R, CD-RW, DVD-ROM, DVD-R, DVD-RAM are read; nothing is written; no audio, mode 2 or sessions; nothing of
        // audio; a tray that ejects and can be locked.
        page.put(&[0x2a, 0x18, 0x3b, 0, 0, 0, 0x29 | locked, 0]);
        page.u16(SPEED).u16(0).u16(BUFFER).u16(SPEED).pad_to(26);
        page
    }

    /// MODE SENSE (6) and (10).
    pub(super) fn mode_sense(&self, cdb: &[u8], data: &DataBuffers) -> Outcome {
        let short = field(cdb, 0, 1) == 0x1a;
        let (control, code) = (field(cdb, 2, 1) >> 6, field(cdb, 2, 1) as u8 & 0x3f);
        if control == 3 {
            return Err(SenseData::illegal(SAVING_PARAMETERS_NOT_SUPPORTED).into());
        }
        // There are no subpages; all of them are those.
        if !matches!(field(cdb, 3, 1), 0 | 0xff) {
            return Err(SenseData::cdb_field(3, Some(7)).into());
        }
        let mut body = Page::<128>::new();
        for page in self.pages(code) {
            if control == 1 {
                // Which bits can be changed: none.
                let len = page.len();
                let mut mask = Page::<32>::new();
                mask.put(page.as_bytes().get(..2).unwrap_or_default()).pad_to(len);
                body.put(mask.as_bytes());
            } else {
                body.put(page.as_bytes());
            }
        }
        if body.len() == 0 {
            return Err(SenseData::cdb_field(2, Some(5)).into());
        }
        // There is no block descriptor (MMC-6, 7.2.2), and nothing specific to the device.
        let mut header = Page::<8>::new();
        if short {
            header.u8((body.len() + 3) as u8).pad_to(4);
        } else {
            header.u16((body.len() + 6) as u16).pad_to(8);
        }
        let mut writer = Writer::new(&data.data_in, if short { field(cdb, 4, 1) } else { field(cdb, 7, 2) });
        writer.put(header.as_bytes());
        writer.put(body.as_bytes());
        Ok(writer.finish())
    }

    /// MODE SELECT (6) and (10): pages that say what is so.
    pub(super) fn mode_select(&self, cdb: &[u8], data: &DataBuffers) -> Outcome {
        let short = field(cdb, 0, 1) == 0x15;
        let len = if short { field(cdb, 4, 1) } else { field(cdb, 7, 2) };
        if len == 0 {
            return Ok(Done::good());
        }
        let too_short = SenseData::illegal(PARAMETER_LIST_LENGTH_ERROR);
        let mut copy = [0; MAX_LIST];
        let list = copy.get_mut(..len as usize).ok_or(too_short)?;
        if data.data_out.read_at(0, list) != len as usize {
            return Err(too_short.into());
        }
        let descriptor_len = if short { field(list, 3, 1) } else { field(list, 6, 2) };
        let mut at = if short { 4 } else { 8 } + descriptor_len as usize;
        if at > list.len() {
            return Err(too_short.into());
        }
        // Of block descriptors there may be the one that says what is so; a length of zero is the length of now.
        let descriptor_at = if short { 4 } else { 8 };
        match descriptor_len {
            0 => {}
            8 if matches!(field(list, descriptor_at + 5, 3), 0 | BLOCK) => {}
            8 => return Err(SenseData::parameter_field(descriptor_at as u16 + 5, None).into()),
            _ => return Err(SenseData::parameter_field(if short { 3 } else { 6 }, None).into()),
        }
        while let Some(rest) = list.get(at..).filter(|rest| !rest.is_empty()) {
            let code = field(rest, 0, 1) as u8 & 0x3f;
            let known = self.pages(code).next().filter(|_| code != 0x3f);
            let known = known.ok_or(SenseData::parameter_field(at as u16, Some(5)))?;
            let sent = rest.get(..known.len()).ok_or(too_short)?;
            let wrong = sent.iter().zip(known.as_bytes()).skip(1).position(|(sent, is)| sent != is);
            if let Some(wrong) = wrong {
                return Err(SenseData::parameter_field((at + 1 + wrong) as u16, None).into());
            }
            at += known.len();
        }
        Ok(Done::received(len))
    }
}
