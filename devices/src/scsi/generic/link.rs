//! What is behind a unit, as it said it when it came, and how far initiators have heard of it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use super::asking;
use super::cache;
use super::doubt::Doubt;
use super::identity::Identity;
use super::inquiry::{self, Page};
use super::kept::Pages;
use super::kind::Kind;
use super::status::{self, Verdict};
use super::who::{self, Who};
use super::{Answer, COPIED_MAX, Command, GenericConfig, GenericError, Host, HostLimits, probe};
use crate::iothread::Permit;
use crate::scsi::attention::Attention;
use crate::scsi::unit::Unit;
use crate::storage::Image;

/// VERSION of those that have vital product data for sure (SPC-5, 6.7.2).
const SPC_2: u8 = 0x04;
/// ALLOCATION LENGTH that these take: SPC-2 has one byte for it.
const SPC_2_MOST: u8 = 0xfc;
/// Bytes of standard INQUIRY data that are looked at.
const STANDARD: usize = 36;

// What initiators have not heard of yet.
const RETURNED: u8 = 1;
const OTHER_INQUIRY: u8 = 2;
const OTHER_CAPACITY: u8 = 4;

/// What is behind a unit, from when it came until it goes.
pub(super) struct Link {
    /// Its node.
    pub(super) name: String,
    pub(super) host: Arc<dyn Host>,
    /// What its queue at the host takes with one command.
    pub(super) limits: HostLimits,
    pub(super) page: Page,
    /// Bytes of a logical block; 0 while nobody knows.
    pub(super) block: AtomicU32,
    /// Its length in bytes, where the host knows.
    size: Option<u64>,
    /// It may lose what was written and not flushed.
    writes_back: AtomicBool,
    standard: [u8; STANDARD],
    /// All of that, as it said it when it came.
    kept: Vec<u8>,
    pages: Pages,
    /// How many there were before it at this unit.
    number: u64,
    /// Its blocks, where they are read and written in another way than by commands: the host gets that node back with the others.
    blocks: OnceLock<Arc<Image>>,
    untold: AtomicU8,
    gone: AtomicBool,
    way: Arc<Way>,
}

/// Whether something may still be sent to a device: asked as late as can be.
#[derive(Default)]
pub(super) struct Way {
    /// It was taken away: what has not been sent is not sent any more.
    cut: AtomicBool,
    /// The unit's.
    doubt: Arc<Doubt>,
}

impl Way {
    /// To what comes in the place of a device, at the same unit.
    fn onward(&self) -> Arc<Self> {
        Arc::new(Self { cut: AtomicBool::new(false), doubt: self.doubt.clone() })
    }
}

impl Permit for Way {
    fn may_begin(&self) -> bool {
        !self.cut.load(Ordering::Acquire) && !self.doubt.is()
    }
}

impl Link {
    /// Asks a device who it is, which may take a minute.
    pub(super) fn new(host: Arc<dyn Host>, config: &GenericConfig) -> Result<Self, GenericError> {
        let of_thread = config.clone();
        asking::in_time(&config.name, move || Self::ask(host, &of_thread))
            .unwrap_or_else(|why| Err(GenericError::Silent { path: config.name.clone(), why }))
    }

    /// The same of one that is back, for which nobody waits. It is asked for its names as well: what the host's kernel takes for them it
    /// may have heard long ago.
    pub(super) fn of_returned(
        host: Arc<dyn Host>,
        config: &GenericConfig,
        was: Option<&Identity>,
    ) -> Result<Self, GenericError> {
        let (of_thread, was) = (config.clone(), was.cloned());
        let ask = move || {
            let path = || of_thread.name.clone();
            match was.map(|was| who::ask(&*host, &was)) {
                None | Some(Who::Same) => Self::ask(host, &of_thread),
                Some(Who::Other) => Err(GenericError::Stranger { path: path() }),
                Some(Who::Nothing(why)) => Err(GenericError::Silent { path: path(), why }),
            }
        };
        asking::in_its_time(&config.name, ask)
            .unwrap_or_else(|why| Err(GenericError::Silent { path: config.name.clone(), why }))
    }

    fn ask(host: Arc<dyn Host>, config: &GenericConfig) -> Result<Self, GenericError> {
        let mut standard = [0; STANDARD];
        let silent = |why| GenericError::Silent { path: config.name.clone(), why };
        let ask = |len: u8, into: &mut [u8]| probe(&*host, &[0x12, 0, 0, 0, len, 0], into);
        let len = ask(STANDARD as u8, &mut standard).map_err(silent)?;
        let peripheral = standard.first().copied().filter(|_| len >= 5).unwrap_or(0x7f);
        if peripheral >> 5 != 0 {
            return Err(GenericError::Absent { path: config.name.clone(), qualifier: peripheral >> 5 });
        }
        let mut kept = standard.get(..len).map(<[u8]>::to_vec).unwrap_or_default();
        // ADDITIONAL LENGTH (SPC-5, 6.7.2). Nobody has to answer more than the standard asks for at least.
        let [_, _, _, _, additional, ..] = standard;
        let whole = additional.saturating_add(5);
        if usize::from(whole) > STANDARD && len == STANDARD {
            let mut more = vec![0; whole.into()];
            if let Ok(len @ STANDARD..) = ask(whole, &mut more) {
                more.truncate(len);
                kept = more;
            }
        }
        let mut pages = [0; inquiry::WHOLE_LEN as usize];
        // Devices that are older than SPC-2 may take the bit for another one.
        let [_, _, version, ..] = standard;
        let is_disk = Kind::of(peripheral) == Kind::Disk;
        let has_pages = is_disk || version >= SPC_2;
        let list = has_pages.then(|| probe(&*host, &[0x12, 1, 0, 0, SPC_2_MOST, 0], &mut pages));
        let list = list.and_then(|len| pages.get(..len.ok()?)).unwrap_or_default();
        let page = if is_disk && inquiry::lacks_block_limits(list) { Page::Missing } else { Page::Own };
        let pages = Pages::ask(&*host, list, page);
        let mut limits = config.limits;
        if config.bounce {
            limits.max_bytes = limits.max_bytes.min(COPIED_MAX);
        }
        Ok(Self {
            name: config.name.clone(),
            host,
            limits,
            page,
            block: AtomicU32::new(config.block.unwrap_or(0)),
            size: config.size,
            writes_back: AtomicBool::new(true),
            standard,
            kept,
            pages,
            number: 0,
            blocks: OnceLock::new(),
            untold: AtomicU8::new(0),
            gone: AtomicBool::new(false),
            way: Arc::default(),
        })
    }

    /// First byte of its INQUIRY data.
    pub(super) fn peripheral(&self) -> u8 {
        let [first, ..] = self.standard;
        first
    }

    /// Standard INQUIRY data, as the device said it when it came; `None` while there is none.
    pub(super) fn kept(&self) -> Option<&[u8]> {
        (!self.is_gone()).then_some(&self.kept)
    }

    /// Whether it stands for a device that is not there, and asks none.
    pub(super) fn is_empty(&self) -> bool {
        // No device has come without.
        self.kept.is_empty()
    }

    /// A page of vital product data, as the device said it when it came; `None` of most.
    pub(super) fn page_kept(&self, code: u8) -> Option<&[u8]> {
        self.pages.get(code).filter(|_| !self.is_gone())
    }

    /// Its length in bytes when it came, where the host knows.
    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    /// Whether what was written may be in its cache alone, or may have been when it went.
    pub(super) fn writes_back(&self) -> bool {
        self.writes_back.load(Ordering::Relaxed)
    }

    /// A command has ended well, and moved so many bytes.
    pub(super) fn note(&self, command: &Command, moved: u64) {
        if let Some(writes_back) = cache::writes_back(command, moved) {
            self.writes_back.store(writes_back, Ordering::Relaxed);
        }
    }

    /// RMB of that (SPC-5, 6.7.2): its medium may become another one.
    pub(super) fn is_removable(&self) -> bool {
        const RMB: u8 = 0x80;
        let [_, second, ..] = self.standard;
        second & RMB != 0
    }

    /// Its number at this unit: no other has it.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Whether the kernel said last that there is no such device.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// What is there while a device is not.
    pub(super) fn without_device(&self) -> Self {
        Self {
            name: self.name.clone(),
            host: Arc::new(Nothing),
            limits: self.limits,
            page: self.page,
            block: AtomicU32::new(self.block.load(Ordering::Relaxed)),
            size: self.size,
            writes_back: AtomicBool::new(self.writes_back()),
            standard: self.standard,
            kept: Vec::new(),
            pages: Pages::default(),
            number: self.number,
            blocks: OnceLock::new(),
            untold: AtomicU8::new(self.untold.load(Ordering::Relaxed)),
            gone: AtomicBool::new(true),
            way: self.way.onward(),
        }
    }

    /// It takes the place of the other.
    pub(super) fn follows(&self, other: &Self) {
        self.writes_back.store(other.writes_back(), Ordering::Relaxed);
        let mut untold = RETURNED | other.untold.load(Ordering::Relaxed);
        if self.standard != other.standard {
            untold |= OTHER_INQUIRY;
        }
        // Where the host does not know, the guest had better look.
        let block = |link: &Self| Some(link.block.load(Ordering::Relaxed)).filter(|block| *block > 0);
        let same_block = block(self).zip(block(other)).is_none_or(|(new, old)| new == old);
        let known = self.size.is_some() && self.size == other.size && same_block;
        if Kind::of(self.peripheral()) == Kind::Disk && !known {
            untold |= OTHER_CAPACITY;
        }
        self.untold.store(untold, Ordering::Release);
    }

    /// Whether initiators have to hear that it is new here.
    pub(super) fn is_untold(&self) -> bool {
        self.untold.load(Ordering::Acquire) != 0
    }

    /// All initiators hear it. Commands that come meanwhile find the link untold and do the same.
    pub(super) fn tell(&self, unit: &Unit) {
        let untold = self.untold.load(Ordering::Acquire);
        for (bit, attention) in [
            (RETURNED, Attention::PowerOn),
            (OTHER_INQUIRY, Attention::InquiryChanged),
            (OTHER_CAPACITY, Attention::CapacityChanged),
        ] {
            if untold & bit != 0 {
                unit.raise(attention, None);
            }
        }
        self.untold.fetch_and(!untold, Ordering::AcqRel);
    }

    /// Its blocks, if they are read and written in another way than by commands.
    pub(super) fn blocks(&self) -> Option<&Image> {
        self.blocks.get().map(|image| &**image)
    }

    /// From now on `image` has its blocks. It belongs to the unit by now: what waits for the ring of the image asks the unit before it
    /// goes.
    pub(super) fn set_blocks(&self, image: Arc<Image>) {
        image.ask_before(self.way.clone());
        let _ = self.blocks.set(image);
    }

    /// It comes to the unit of the other.
    pub(super) fn succeed(&mut self, other: &Self) {
        self.number = other.number.wrapping_add(1);
        self.way = other.way.onward();
    }

    /// It was taken away.
    pub(super) fn cut(&self) {
        self.way.cut.store(true, Ordering::Release);
    }

    /// All initiators are to hear that it says something else of itself.
    pub(super) fn speaks_otherwise(&self) {
        self.untold.fetch_or(OTHER_INQUIRY, Ordering::AcqRel);
    }

    /// Whether it may be another one than it was; of the unit, whatever is behind it.
    pub(super) fn doubt(&self) -> &Doubt {
        &self.way.doubt
    }

    /// Whether it may be another one than it was.
    pub(super) fn is_doubted(&self) -> bool {
        self.way.doubt.is()
    }

    /// How a command ends that is not sent there.
    pub(super) fn keeps_back(&self) -> Option<Verdict> {
        if self.way.cut.load(Ordering::Acquire) { Some(status::gone()) } else { self.way.doubt.verdict() }
    }

    /// A command was not sent, for there is no such device: whether that is new.
    pub(super) fn lost(&self) -> bool {
        !self.gone.swap(true, Ordering::Relaxed)
    }

    /// A command was sent: whether none was before, since there was no such device.
    pub(super) fn answers_again(&self) -> bool {
        self.gone.load(Ordering::Relaxed) && self.gone.swap(false, Ordering::Relaxed)
    }
}

/// No device.
struct Nothing;

impl Host for Nothing {
    fn execute(&self, _: &Command) -> io::Result<Answer> {
        Err(io::Error::from_raw_os_error(libc::ENODEV))
    }

    fn reset(&self) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENODEV))
    }
}
