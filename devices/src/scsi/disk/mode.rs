//! Mode parameters and MODE SENSE (SPC-5, 6.13; SBC-4, 6.5).

use std::sync::atomic::{AtomicU8, Ordering};

use super::Disk;
use crate::scsi::DataBuffers;
use crate::scsi::opcode::field;
use crate::scsi::outcome::{Outcome, Page, Writer};
use crate::scsi::sense::{SAVING_PARAMETERS_NOT_SUPPORTED, SenseData};
use crate::storage::BlockBackend;

/// A parameter that initiators can change: one bit of one page.
pub(super) struct Parameter {
    page: u8,
    byte: usize,
    mask: u8,
    /// Its bit in [`ModeParameters`].
    flag: u8,
}

const WCE: u8 = 1;
const D_SENSE: u8 = 2;
const SWP: u8 = 4;
const TAS: u8 = 8;

const PARAMETERS: [Parameter; 4] = [
    Parameter { page: 0x08, byte: 2, mask: 0x04, flag: WCE },
    Parameter { page: 0x0a, byte: 2, mask: 0x04, flag: D_SENSE },
    Parameter { page: 0x0a, byte: 4, mask: 0x08, flag: SWP },
    Parameter { page: 0x0a, byte: 5, mask: 0x40, flag: TAS },
];

/// A mode page, header included, with all changeable bits zero.
pub(super) struct ModePage {
    pub(super) code: u8,
    pub(super) subpage: u8,
    bytes: &'static [u8],
}

/// Longest mode page.
pub(super) const MAX_PAGE: usize = 40;

/// All pages in the order in which page code 3Fh returns them (SPC-5, 7.5.1: ascending).
pub(super) const PAGES: [ModePage; 7] = [
    // Read-write error recovery: AWRE and ARRE.
    ModePage { code: 0x01, subpage: 0, bytes: &[0x01, 0x0a, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0] },
    // Disconnect-reconnect: no limits.
    ModePage { code: 0x02, subpage: 0, bytes: &[0x02, 0x0e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] },
    // Caching.
    ModePage {
        code: 0x08,
        subpage: 0,
        bytes: &[0x08, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    },
    // Control: GLTSD, unrestricted reordering, no limit on BUSY.
    ModePage { code: 0x0a, subpage: 0, bytes: &[0x0a, 0x0a, 0x02, 0x10, 0, 0, 0, 0, 0xff, 0xff, 0, 0] },
    // Control extension.
    ModePage {
        code: 0x0a,
        subpage: 1,
        bytes: &[
            0x4a, 0x01, 0, 0x1c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0,
        ],
    },
    // Power condition: none enabled.
    ModePage {
        code: 0x1a,
        subpage: 0,
        bytes: &[
            0x1a, 0x26, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
    },
    // Informational exceptions control: not disabled, told on request only (MRIE 6).
    ModePage { code: 0x1c, subpage: 0, bytes: &[0x1c, 0x0a, 0, 0x06, 0, 0, 0, 0, 0, 0, 0, 0] },
];

impl ModePage {
    /// The page with the changeable bits as `flags` say.
    pub(super) fn with(&self, flags: u8) -> Page<MAX_PAGE> {
        let mut page = Page::new();
        page.put(self.bytes);
        for parameter in self.parameters().filter(|parameter| parameter.flag & flags != 0) {
            let byte = self.bytes.get(parameter.byte).copied().unwrap_or(0);
            page.patch(parameter.byte, &[byte | parameter.mask]);
        }
        page
    }

    /// The page as the mask of what can be changed: all else zero, but for the header. `fixed`: flags that cannot.
    fn changeable(&self, fixed: u8) -> Page<MAX_PAGE> {
        let mut page = Page::new();
        page.put(self.bytes.get(..self.header_len()).unwrap_or_default()).pad_to(self.bytes.len());
        for parameter in self.parameters() {
            page.patch(parameter.byte, &[self.mask(parameter.byte, fixed)]);
        }
        page
    }

    /// Which bits of a byte can be changed, but for the flags `fixed`.
    pub(super) fn mask(&self, byte: usize, fixed: u8) -> u8 {
        let of_byte = |p: &&Parameter| p.byte == byte && p.flag & fixed == 0;
        self.parameters().filter(of_byte).fold(0, |mask, p| mask | p.mask)
    }

    /// The flags that `bytes`, a page of this kind, sets.
    pub(super) fn flags(&self, bytes: &[u8]) -> u8 {
        self.parameters()
            .filter(|p| bytes.get(p.byte).is_some_and(|byte| byte & p.mask != 0))
            .fold(0, |flags, p| flags | p.flag)
    }

    /// The flags that this page carries.
    pub(super) fn all_flags(&self) -> u8 {
        self.parameters().fold(0, |flags, parameter| flags | parameter.flag)
    }

    /// Page code and length take two bytes, with a subpage code four.
    pub(super) fn header_len(&self) -> usize {
        if self.subpage == 0 { 2 } else { 4 }
    }

    /// Length in bytes with the header.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn parameters(&self) -> impl Iterator<Item = &'static Parameter> {
        let page = if self.subpage == 0 { Some(self.code) } else { None };
        PARAMETERS.iter().filter(move |parameter| Some(parameter.page) == page)
    }
}

/// The current values of the changeable parameters: read on every command, hence atomic.
#[derive(Debug)]
pub(crate) struct ModeParameters {
    flags: AtomicU8,
    default: u8,
    /// Those that initiators cannot change.
    fixed: u8,
}

impl ModeParameters {
    pub(super) fn new(write_cache: bool, cache_is_fixed: bool) -> Self {
        let default = if write_cache { WCE } else { 0 };
        let fixed = if cache_is_fixed { WCE } else { 0 };
        Self { flags: AtomicU8::new(default), default, fixed }
    }
    pub(super) fn fixed(&self) -> u8 {
        self.fixed
    }
    pub(super) fn current(&self) -> u8 {
        self.flags.load(Ordering::Acquire)
    }
    /// Sets the flags in `mask` to those in `flags`; returns what they were.
    pub(super) fn set(&self, flags: u8, mask: u8) -> u8 {
        let update = |old: u8| Some((old & !mask) | (flags & mask));
        self.flags.fetch_update(Ordering::AcqRel, Ordering::Acquire, update).unwrap_or_else(|old| old)
    }
    /// Whether WCE is among the flags in `mask`.
    pub(super) fn speaks_of_cache(mask: u8) -> bool {
        mask & WCE != 0
    }
    pub(super) fn reset(&self) {
        self.flags.store(self.default, Ordering::Release);
    }
    /// WCE: a write may complete before it is stable.
    pub(super) fn write_cache(&self) -> bool {
        self.current() & WCE != 0
    }
    /// D_SENSE: sense data goes out in descriptor format.
    pub(crate) fn descriptor_sense(&self) -> bool {
        self.current() & D_SENSE != 0
    }
    /// SWP: initiators have asked for write protection.
    pub(super) fn software_write_protected(&self) -> bool {
        self.current() & SWP != 0
    }
    /// TAS: commands ended by another initiator report TASK ABORTED.
    pub(crate) fn task_aborted_status(&self) -> bool {
        self.current() & TAS != 0
    }
}

impl<B: BlockBackend> Disk<B> {
    /// MODE SENSE (6) and (10).
    pub(super) fn mode_sense(&self, cdb: &[u8], data: &DataBuffers) -> Outcome {
        let short = field(cdb, 0, 1) == 0x1a;
        let (control, code, subpage) =
            (field(cdb, 2, 1) >> 6, field(cdb, 2, 1) as u8 & 0x3f, field(cdb, 3, 1) as u8);
        let (no_descriptor, long_lba) = (field(cdb, 1, 1) & 0x08 != 0, field(cdb, 1, 1) & 0x10 != 0);
        let selected = |page: &&ModePage| {
            (code == 0x3f || page.code == code) && (subpage == 0xff || page.subpage == subpage)
        };
        if PAGES.iter().filter(selected).count() == 0 || (code == 0x3f && !matches!(subpage, 0 | 0xff)) {
            let known = code == 0x3f || PAGES.iter().any(|page| page.code == code);
            let (byte, bit) = if known { (3, 7) } else { (2, 5) };
            return Err(SenseData::cdb_field(byte, Some(bit)).into());
        }
        let mut body = Page::<256>::new();
        let descriptor_len = if no_descriptor { 0 } else { self.block_descriptor(long_lba, &mut body) };
        for page in PAGES.iter().filter(selected) {
            let page = match control {
                0 => page.with(self.mode.current()),
                1 => page.changeable(self.mode.fixed()),
                2 => page.with(self.mode.default),
                _ => return Err(SenseData::illegal(SAVING_PARAMETERS_NOT_SUPPORTED).into()),
            };
            body.put(page.as_bytes());
        }
        // Device-specific parameter: WP, and DPOFUA as DPO and FUA are taken (SBC-4, 6.5.1).
        let protected = self.is_read_only() || self.mode.software_write_protected();
        let specific = if protected { 0x90 } else { 0x10 };
        let mut header = Page::<8>::new();
        if short {
            header.u8((body.len() + 3) as u8).u8(0).u8(specific).u8(descriptor_len);
        } else {
            header.u16((body.len() + 6) as u16).u8(0).u8(specific);
            header.u8(u8::from(long_lba && !no_descriptor)).u8(0).u16(u16::from(descriptor_len));
        }
        let allocation = if short { field(cdb, 4, 1) } else { field(cdb, 7, 2) };
        let mut writer = Writer::new(&data.data_in, allocation);
        writer.put(header.as_bytes());
        writer.put(body.as_bytes());
        Ok(writer.finish())
    }

    /// Appends the mode parameter block descriptor (SBC-4, 6.5.2) and returns its length.
    fn block_descriptor(&self, long_lba: bool, body: &mut Page<256>) -> u8 {
        let blocks = self.blocks();
        if long_lba {
            body.u64(blocks).u32(0).u32(self.config.block_size);
            return 16;
        }
        // A byte is reserved before the three bytes of the block length, which is below 2^24.
        body.u32(u32::try_from(blocks).unwrap_or(u32::MAX)).u32(self.config.block_size);
        8
    }
}
