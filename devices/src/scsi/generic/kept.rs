//! Vital product data by which a host knows a device, as the device said them when it came: for when it takes its time to say them again.

use super::inquiry::{self, Page};
use super::{Host, probe};
use crate::scsi::opcode::field;

/// What is kept besides the list of pages: Unit Serial Number and Device Identification (SPC-5, 7.7.19 and 7.7.6).
const KEPT: [u8; 2] = [0x80, 0x83];
/// What is asked for at first: nobody has less than one byte for it in a CDB.
const SHORT: usize = 0xfc;
/// The longest page that is kept, in bytes.
const LONGEST: usize = 4096;

/// Whole pages.
#[derive(Clone, Default)]
pub(super) struct Pages(Vec<Vec<u8>>);

impl Pages {
    /// Asks for those that are in the list of a device's pages, and keeps the list as guests see it.
    pub(super) fn ask(host: &dyn Host, list: &[u8], block_limits: Page) -> Self {
        let Some(list) = whole(list, 0) else { return Self::default() };
        let codes = list.get(4..).unwrap_or_default();
        let wanted = KEPT.into_iter().filter(|code| codes.contains(code));
        let mut pages: Vec<_> = wanted.filter_map(|code| ask(host, code)).collect();
        let mut list = list.to_vec();
        if block_limits == Page::Missing {
            inquiry::add_page(&mut list);
        }
        pages.push(list);
        Self(pages)
    }

    /// One of them.
    pub(super) fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.iter().find(|page| page.get(1) == Some(&code)).map(|page| &**page)
    }
}

fn ask(host: &dyn Host, code: u8) -> Option<Vec<u8>> {
    let get = |len: usize| {
        let mut page = vec![0; len];
        let [high, low] = u16::try_from(len).ok()?.to_be_bytes();
        let got = probe(host, &[0x12, 1, code, high, low, 0], &mut page).ok()?;
        page.truncate(got);
        Some(page)
    };
    let first = get(SHORT)?;
    let len = field(&first, 2, 2) as usize + 4;
    let all = if first.len() == SHORT && (SHORT + 1..=LONGEST).contains(&len) { get(len)? } else { first };
    whole(&all, code).map(<[u8]>::to_vec)
}

/// The page in an answer, if it is the one with this code and all there.
fn whole(answer: &[u8], code: u8) -> Option<&[u8]> {
    let len = field(answer.get(..4)?, 2, 2) as usize + 4;
    answer.get(..len).filter(|page| page.get(1) == Some(&code))
}
