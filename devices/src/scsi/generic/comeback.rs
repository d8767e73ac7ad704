//! What is behind a unit now, and how something else takes its place: a device that was gone and is back, perhaps at another
//! address and by another node.
//!
//! Commands that have begun keep what they began with. The first one after a return is not sent: a device that is back may have lost
//! everything that it was told, so all initiators hear POWER ON first.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use super::asking;
use super::beside::{for_unit, shown};
use super::inquiry::{self, Page};
use super::kept::Pages;
use super::kind::Kind;
use super::lookout::{Arrival, Found, Wanted};
use super::past::Past;
use super::route::Part;
use super::{Answer, COPIED_MAX, Command, GenericConfig, GenericError, Host, HostLimits, probe};
use crate::iothread::PieceLimits;
use crate::scsi::attention::Attention;
use crate::scsi::unit::Unit;
use crate::storage::{Image, RawImage};

/// How long a device that is back is asked again who it is while it does not answer, and how often: some times at least, for the kernel
/// may take longer than that to give up on one command.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 60 });
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 500 });
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
    standard: [u8; STANDARD],
    /// All of that, as it said it when it came.
    kept: Vec<u8>,
    pages: Pages,
    /// How many there were before it at this unit.
    number: u64,
    /// Its blocks, where they are read and written in another way than by commands: the host gets that node back with the others.
    pub(super) blocks: OnceLock<Arc<Image>>,
    untold: AtomicU8,
    gone: AtomicBool,
}

impl Link {
    /// Asks a device who it is, which may take a minute.
    pub(super) fn new(host: Arc<dyn Host>, config: &GenericConfig) -> Result<Self, GenericError> {
        let of_thread = config.clone();
        asking::in_time(&config.name, move || Self::ask(host, &of_thread))
            .unwrap_or_else(|why| Err(GenericError::Silent { path: config.name.clone(), why }))
    }

    /// The same of one that is back, for which nobody waits.
    fn of_returned(host: Arc<dyn Host>, config: &GenericConfig) -> Result<Self, GenericError> {
        let of_thread = config.clone();
        asking::in_its_time(&config.name, move || Self::ask(host, &of_thread))
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
            standard,
            kept,
            pages,
            number: 0,
            blocks: OnceLock::new(),
            untold: AtomicU8::new(0),
            gone: AtomicBool::new(false),
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
    fn without_device(&self) -> Self {
        Self {
            name: self.name.clone(),
            host: Arc::new(Nothing),
            limits: self.limits,
            page: self.page,
            block: AtomicU32::new(self.block.load(Ordering::Relaxed)),
            size: self.size,
            standard: self.standard,
            kept: Vec::new(),
            pages: Pages::default(),
            number: self.number,
            blocks: OnceLock::new(),
            untold: AtomicU8::new(self.untold.load(Ordering::Relaxed)),
            gone: AtomicBool::new(true),
        }
    }

    /// It takes the place of the other.
    fn follows(&self, other: &Self) {
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
        unit.raise(Attention::PowerOn, None);
        for (bit, attention) in
            [(OTHER_INQUIRY, Attention::InquiryChanged), (OTHER_CAPACITY, Attention::CapacityChanged)]
        {
            if untold & bit != 0 {
                unit.raise(attention, None);
            }
        }
        self.untold.store(0, Ordering::Release);
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

/// Where a unit has its device.
pub(super) struct Plug {
    config: GenericConfig,
    link: RwLock<Arc<Link>>,
    past: Arc<Mutex<Past<Link>>>,
    /// Somebody looks for the device when it goes.
    watched: AtomicBool,
    /// It is back, and about to be asked who it is, since then.
    coming: Mutex<Option<Instant>>,
}

/// Where devices that can be found again are, of units that live.
static PLUGS: Mutex<Vec<Weak<Plug>>> = Mutex::new(Vec::new());

fn plugs() -> MutexGuard<'static, Vec<Weak<Plug>>> {
    PLUGS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Plug {
    /// Whether the device is back, and the unit about to go on with it.
    pub(super) fn is_coming(&self) -> bool {
        self.coming().is_some_and(|since| since.elapsed() < PATIENCE)
    }

    fn set_coming(&self, since: Option<Instant>) {
        *self.coming() = since;
    }

    fn coming(&self) -> MutexGuard<'_, Option<Instant>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn new(link: Link, config: GenericConfig) -> Arc<Self> {
        let findable = config.wanted.is_some();
        let plug = Arc::new(Self {
            config,
            link: RwLock::new(Arc::new(link)),
            past: Arc::default(),
            watched: AtomicBool::new(false),
            coming: Mutex::default(),
        });
        if findable {
            let mut plugs = plugs();
            plugs.retain(|plug| plug.strong_count() > 0);
            plugs.push(Arc::downgrade(&plug));
        }
        plug
    }

    /// What is there now.
    pub(super) fn link(&self) -> Arc<Link> {
        self.link.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at what is there now, and keeps nothing of it.
    pub(super) fn peek<T>(&self, look: impl FnOnce(&Link) -> T) -> T {
        look(&self.link.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the unit goes on by itself when its device is back.
    pub(super) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed)
    }

    /// Puts what is made in the place of what is there; false if nothing is.
    fn replace(&self, make: impl FnOnce(&Link) -> Option<Link>) -> bool {
        let mut link = self.link.write().unwrap_or_else(PoisonError::into_inner);
        let Some(mut next) = make(&link) else { return false };
        next.number = link.number.wrapping_add(1);
        let next = Arc::new(next);
        let before = std::mem::replace(&mut *link, next);
        drop(link);
        Past::take(&self.past, before);
        true
    }

    fn lose(&self) {
        if self.link().lost() {
            tracing::error!(
                "\"{}\": the device was taken away from the host; the unit goes on with it when it is back",
                self.config.name
            );
        }
        self.replace(|link| Some(link.without_device()));
    }

    /// Goes on with a device that answers; false if what is there now is not what had the number `before`.
    pub(super) fn take(
        &self,
        before: u64,
        mut next: Link,
        blocks: Option<Arc<Image>>,
    ) -> Result<bool, GenericError> {
        let wanted = self.link().peripheral();
        if next.peripheral() != wanted {
            return Err(GenericError::Other { found: next.peripheral(), path: next.name, wanted });
        }
        if let Some(blocks) = blocks.filter(|_| !next.is_removable()) {
            next.blocks = OnceLock::from(blocks);
        }
        let mut next = Some(next);
        // What is not taken is closed after that, not while others wait for the link.
        Ok(self.replace(|link| {
            let next = next.take_if(|_| link.number == before)?;
            next.follows(link);
            Some(next)
        }))
    }
}

/// Goes on with a device that is back; false if something else became of the unit meanwhile. A device that does not answer yet, as
/// devices do not just after a login to the fabric, is asked again for a while. The unit may go at any time: it is not held
/// meanwhile, and its device is let go of.
pub(super) fn go_on(
    plug: &Weak<Plug>,
    host: &Arc<dyn Host>,
    blocks: Option<Arc<Image>>,
    config: &GenericConfig,
) -> Result<bool, GenericError> {
    let number = || plug.upgrade().map(|plug| plug.peek(Link::number));
    let Some(before) = number() else { return Ok(false) };
    let (begin, mut tries) = (Instant::now(), 0);
    let next = loop {
        let made = Link::of_returned(host.clone(), config);
        tries += 1;
        match made {
            _ if number() != Some(before) => return Ok(false),
            Err(GenericError::Silent { .. }) if begin.elapsed() < PATIENCE || tries < TRIES => {
                std::thread::sleep(PAUSE);
            }
            made => break made?,
        }
    };
    plug.upgrade().map_or(Ok(false), |plug| plug.take(before, next, blocks))
}

/// Makes something of a device that has just come, which may not answer yet: it is asked again for a while.
pub(super) fn ask_again<T>(mut make: impl FnMut() -> Result<T, GenericError>) -> Result<T, GenericError> {
    let (begin, mut tries) = (Instant::now(), 0);
    loop {
        let made = make();
        tries += 1;
        match made {
            Err(GenericError::Silent { .. }) if begin.elapsed() < PATIENCE || tries < TRIES => {
                std::thread::sleep(PAUSE);
            }
            made => return made,
        }
    }
}

/// A unit whose device may go and come back. It does not hold the unit.
#[derive(Clone)]
pub struct Returning {
    wanted: Wanted,
    plug: Weak<Plug>,
}

impl Returning {
    /// Of a unit whose device only `wanted` is looked for as.
    pub(super) fn new(wanted: Wanted, plug: &Arc<Plug>) -> Self {
        Self { wanted, plug: Arc::downgrade(plug) }
    }

    /// All that live and that the process finds which looks for devices of the configuration.
    pub fn all() -> Vec<Self> {
        let returning = |plug: &Weak<Plug>| {
            let wanted = plug.upgrade()?.config.wanted.clone()?;
            Some(Self { wanted, plug: plug.clone() })
        };
        plugs().iter().filter_map(returning).collect()
    }

    /// What to look for.
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Whether it is the same unit.
    pub fn is(&self, other: &Self) -> bool {
        self.plug.ptr_eq(&other.plug)
    }

    /// Whether there is no such unit any more.
    pub fn is_over(&self) -> bool {
        self.plug.strong_count() == 0
    }

    /// From now on somebody looks for the device when it goes.
    pub fn watch(&self) {
        if let Some(plug) = self.plug.upgrade() {
            plug.watched.store(true, Ordering::Relaxed);
        }
    }

    /// The device is gone. The host lets go of its node, and commands end as those of a device that is not there.
    pub fn lost(&self) {
        if let Some(plug) = self.plug.upgrade() {
            plug.set_coming(None);
            plug.lose();
        }
    }

    /// [`Returning::back`] follows: until it has ended, for a minute at most, commands behind a port of a fabric end with BUSY, for which
    /// no initiator gives a path up.
    pub fn coming(&self) {
        if let Some(plug) = self.plug.upgrade() {
            plug.set_coming(Some(Instant::now()));
        }
    }

    /// The device is back: it is asked who it is, which may take as long as the host waits for it, and the unit goes on with it.
    ///
    /// # Errors
    /// It does not answer, or is another one. Then the unit stays without.
    pub fn back(&self, arrival: Arrival) -> Result<(), GenericError> {
        let Some(mut config) = self.plug.upgrade().map(|plug| plug.config.clone()) else { return Ok(()) };
        // Another may have ended since it was announced.
        self.coming();
        let _coming = Coming(&self.plug);
        let Arrival { node, found, blocks } = arrival;
        let shown = config.name.clone();
        (config.name, config.limits) = (found.path.clone(), found.limits);
        (config.block, config.size) = (found.block, found.size);
        let by_ring = self.wanted.parts.contains(&Part::Ring);
        let blocks = by_ring.then(|| ring(blocks, &found, config.bounce)).flatten();
        let host: Arc<dyn Host> = node.into_host();
        if !go_on(&self.plug, &host, blocks, &config)? {
            return Ok(());
        }
        // As loud as its loss.
        tracing::warn!(
            "\"{}\": the device is back as {} at {}, {} bytes with one command",
            shown,
            found.path,
            found.address,
            config.limits.transfer()
        );
        Ok(())
    }
}

/// A return that is under way.
struct Coming<'a>(&'a Weak<Plug>);

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        if let Some(plug) = self.0.upgrade() {
            plug.set_coming(None);
        }
    }
}

/// The blocks of a device that is back, where it has them open. The log says why not, if not.
pub(super) fn ring(blocks: Option<File>, found: &Found, bounce: bool) -> Option<Arc<Image>> {
    let limits = &found.limits;
    let most = usize::try_from(limits.max_segments).unwrap_or(usize::MAX);
    let pieces = PieceLimits::new(limits.preferred_bytes, most);
    let opened = match blocks.map(|file| RawImage::of_device(file, &found.path, pieces)) {
        Some(Ok(image)) => return Some(for_unit(image, bounce)),
        Some(Err(error)) => shown(&error),
        // It was attached in the place of a unit of another type.
        None if found.size.is_some() => format!(
            "{}: the process that finds it has known it since the start as one of type = \"generic\"",
            found.path
        ),
        None => format!("{}: the host does not know how long it is", found.path),
    };
    tracing::warn!("{opened}; its blocks are read and written by commands until it is attached anew");
    None
}

#[cfg(test)]
impl Plug {
    /// For tests: another device takes the place of this one, or none.
    pub(super) fn put(
        self: &Arc<Self>,
        host: Option<Arc<dyn Host>>,
        config: &GenericConfig,
    ) -> Result<(), GenericError> {
        self.put_with(host, None, config)
    }

    /// The same, with its blocks.
    pub(super) fn put_with(
        self: &Arc<Self>,
        host: Option<Arc<dyn Host>>,
        blocks: Option<Arc<Image>>,
        config: &GenericConfig,
    ) -> Result<(), GenericError> {
        match host {
            Some(host) => go_on(&Arc::downgrade(self), &host, blocks, config).map(drop),
            None => {
                self.lose();
                Ok(())
            }
        }
    }
}
