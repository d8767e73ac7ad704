//! MODE SELECT (SPC-5, 6.11): the list is copied once, checked as a whole, and only then obeyed.

use super::Disk;
use super::mode::{ModePage, ModeParameters, PAGES};
use crate::scsi::DataBuffers;
use crate::scsi::attention::Attention;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Done, Outcome};
use crate::scsi::sense::{PARAMETER_LIST_LENGTH_ERROR, SenseData};
use crate::scsi::unit::Context;
use crate::storage::BlockBackend;

/// Longest list that can be right: header, long block descriptor, and each page once, with room to spare.
const MAX_LIST: usize = 512;

impl<B: BlockBackend> Disk<B> {
    pub(super) async fn mode_select(&self, context: Context<'_>, cdb: &[u8], data: DataBuffers) -> Outcome {
        let short = field(cdb, 0, 1) == 0x15;
        let len = if short { field(cdb, 4, 1) } else { field(cdb, 7, 2) };
        if len == 0 {
            return Ok(Done::good());
        }
        let (flags, mask) = self.parse_mode_list(short, len as usize, &data)?;
        // Copies that other units were asked for ask for the mode at each piece.
        let _alone = self.turns.alone().await;
        let before = self.mode.set(flags, mask);
        if (before ^ flags) & mask != 0 {
            context.path.unit.raise(Attention::ModeChanged, Some(context.path.nexus));
        }
        if ModeParameters::speaks_of_cache(mask) && !self.mode.write_cache() {
            // What was written while the cache was on must not be the less stable for what follows. Also when it was off
            // already: who sent that may not have waited for the flush, or heard that it had failed.
            self.flush(context.io).await?;
        }
        Ok(Done::received(len))
    }

    /// Returns the flags that the list sets, and which flags it speaks of.
    fn parse_mode_list(&self, short: bool, len: usize, data: &DataBuffers) -> Result<(u8, u8), SenseData> {
        let too_short = SenseData::illegal(PARAMETER_LIST_LENGTH_ERROR);
        let mut copy = [0; MAX_LIST];
        let list = copy.get_mut(..len).ok_or(too_short)?;
        let list = if data.data_out.read_at(0, list) == len { &*list } else { return Err(too_short) };
        let header_len = if short { 4 } else { 8 };
        if list.len() < header_len {
            return Err(too_short);
        }
        let (long_lba, descriptor_len, descriptor_at) = if short {
            (false, field(list, 3, 1) as usize, 3)
        } else {
            (field(list, 4, 1) & 1 != 0, field(list, 6, 2) as usize, 6)
        };
        if descriptor_len != 0 && descriptor_len != if long_lba { 16 } else { 8 } {
            return Err(SenseData::parameter_field(descriptor_at, None));
        }
        let pages_at = header_len + descriptor_len;
        let descriptor = list.get(header_len..pages_at).ok_or(too_short)?;
        self.check_descriptor(descriptor, header_len as u16)?;
        let (mut flags, mut mask, mut at) = (0, 0, pages_at);
        while at < list.len() {
            let rest = list.get(at..).unwrap_or_default();
            let page = self.check_page(rest, at as u16)?;
            flags = (flags & !page.all_flags()) | page.flags(rest);
            mask |= page.all_flags();
            at += page.len();
        }
        Ok((flags, mask))
    }

    /// The medium keeps its format: the block descriptor may only say what is so.
    fn check_descriptor(&self, descriptor: &[u8], at: u16) -> Result<(), SenseData> {
        if descriptor.is_empty() {
            return Ok(());
        }
        let (count_len, size_at, size_len) = if descriptor.len() == 16 { (8, 12, 4) } else { (4, 5, 3) };
        let blocks = field(descriptor, 0, count_len);
        let all_ones = u64::MAX >> (64 - 8 * count_len);
        if blocks != 0 && blocks != all_ones && blocks != self.blocks() {
            return Err(SenseData::parameter_field(at, None));
        }
        if field(descriptor, size_at, size_len) != self.block_size() {
            return Err(SenseData::parameter_field(at + size_at as u16, None));
        }
        Ok(())
    }

    /// Checks the page that `list` starts with: known, whole, and different from now only in what can be changed.
    fn check_page(&self, list: &[u8], at: u16) -> Result<&'static ModePage, SenseData> {
        let first = field(list, 0, 1) as u8;
        let (code, has_subpage) = (first & 0x3f, first & 0x40 != 0);
        if list.len() < if has_subpage { 4 } else { 2 } {
            return Err(SenseData::illegal(PARAMETER_LIST_LENGTH_ERROR));
        }
        let subpage = if has_subpage { field(list, 1, 1) as u8 } else { 0 };
        let page = PAGES
            .iter()
            .find(|page| page.code == code && page.subpage == subpage && has_subpage == (page.subpage != 0))
            .ok_or(SenseData::parameter_field(at, Some(5)))?;
        let length_at = if has_subpage { 2 } else { 1 };
        let length = field(list, length_at, if has_subpage { 2 } else { 1 }) as usize;
        if length != page.len() - page.header_len() {
            return Err(SenseData::parameter_field(at + length_at as u16, None));
        }
        let current = page.with(self.mode.current());
        let sent = list.get(..page.len()).ok_or(SenseData::illegal(PARAMETER_LIST_LENGTH_ERROR))?;
        for (i, (new, old)) in sent.iter().zip(current.as_bytes()).enumerate().skip(page.header_len()) {
            let wrong = (new ^ old) & !page.mask(i, self.mode.fixed());
            if wrong != 0 {
                let bit = 7 - wrong.leading_zeros() as u8;
                return Err(SenseData::parameter_field(at + i as u16, Some(bit)));
            }
        }
        Ok(page)
    }
}
