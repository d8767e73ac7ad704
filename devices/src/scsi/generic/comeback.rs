//! What is behind a unit now, and how something else takes its place: a device that was gone and is back, perhaps at another
//! address and by another node.
//!
//! Commands that have begun keep what they began with. The first one after a return is not sent: a device that is back may have lost
//! everything that it was told, so all initiators hear POWER ON first.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use super::beside::{for_unit, shown};
use super::identity::Identity;
use super::link::Link;
use super::lookout::{Arrival, Found, Wanted};
use super::past::Past;
use super::route::Part;
use super::{Generic, GenericConfig, GenericError, Host};
use crate::iothread::PieceLimits;
use crate::storage::{Image, RawImage};

/// How long a device that is back is asked again who it is while it does not answer, and how often: some times at least, for the kernel
/// may take longer than that to give up on one command.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 60 });
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 500 });
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

    /// Puts what is made in the place of what is there, with its blocks; false if nothing is.
    fn replace(&self, blocks: Option<Arc<Image>>, make: impl FnOnce(&Link) -> Option<Link>) -> bool {
        let mut link = self.link.write().unwrap_or_else(PoisonError::into_inner);
        let Some(mut next) = make(&link) else { return false };
        next.succeed(&link);
        blocks.into_iter().for_each(|blocks| next.set_blocks(blocks));
        let next = Arc::new(next);
        let before = std::mem::replace(&mut *link, next);
        drop(link);
        Past::take(&self.past, before);
        true
    }

    fn lose(&self) {
        // Of others somebody else tells who looks for them: they are many, behind a port of a fabric.
        if self.link().lost() && self.config.wanted.is_some() {
            tracing::error!(
                "\"{}\": the device was taken away from the host; the unit goes on with it when it is back",
                self.config.name
            );
        }
        self.replace(None, |link| {
            link.cut();
            Some(link.without_device())
        });
    }

    /// Goes on with a device that answers; false if what is there now is not what had the number `before`.
    pub(super) fn take(
        &self,
        before: u64,
        next: Link,
        blocks: Option<Arc<Image>>,
    ) -> Result<bool, GenericError> {
        let wanted = self.link().peripheral();
        if next.peripheral() != wanted {
            return Err(GenericError::Other { found: next.peripheral(), path: next.name, wanted });
        }
        let blocks = blocks.filter(|_| !next.is_removable());
        let mut next = Some(next);
        // What is not taken is closed after that, not while others wait for the link.
        Ok(self.replace(blocks, |link| {
            let next = next.take_if(|_| link.number() == before)?;
            next.follows(link);
            Some(next)
        }))
    }
}

/// Goes on with a device that is back; false if something else became of the unit meanwhile. A device that does not answer yet, as
/// devices do not just after a login to the fabric, is asked again for a while; and whether it `was` this one. The unit may go at any
/// time: it is not held meanwhile, and its device is let go of.
pub(super) fn go_on(
    plug: &Weak<Plug>,
    host: &Arc<dyn Host>,
    blocks: Option<Arc<Image>>,
    config: &GenericConfig,
    was: Option<&Identity>,
) -> Result<bool, GenericError> {
    let number = || plug.upgrade().map(|plug| plug.peek(Link::number));
    let Some(before) = number() else { return Ok(false) };
    let (begin, mut tries) = (Instant::now(), 0);
    let next = loop {
        let made = Link::of_returned(host.clone(), config, was);
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
            plug.link().doubt().end();
        }
    }

    /// It may be another device now: until [`Returning::trusted`] or [`Returning::lost`] nothing is sent to it. Commands end with BUSY, for
    /// which no initiator gives a path up; after a minute as on a path that is lost.
    pub fn doubted(&self) {
        if let Some(plug) = self.plug.upgrade() {
            tracing::debug!("\"{}\": it may be another device; it is asked who it is", plug.config.name);
            plug.link().doubt().begin();
        }
    }

    /// It is who it was. All initiators hear that it says something else of itself, for it has said so to one, or to the host alone.
    pub fn trusted(&self) {
        let Some(plug) = self.plug.upgrade() else { return };
        let link = plug.link();
        if link.is_doubted() {
            link.speaks_otherwise();
            link.doubt().end();
            tracing::debug!("\"{}\": it is the same device", plug.config.name);
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
        if !go_on(&self.plug, &host, blocks, &config, Some(&self.wanted.identity))? {
            return Ok(());
        }
        if config.wanted.is_some() {
            // As loud as its loss.
            tracing::warn!(
                "\"{}\": the device is back as {} at {}, {} bytes with one command",
                shown,
                found.path,
                found.address,
                config.limits.transfer()
            );
        }
        Ok(())
    }
}

impl Generic {
    /// Whether it is the unit that goes and comes back so.
    pub(in crate::scsi) fn returns_by(&self, returning: &Returning) -> bool {
        std::ptr::eq(returning.plug.as_ptr(), Arc::as_ptr(&self.plug))
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
    /// For tests: it has been doubted for long.
    pub(super) fn age_doubt(&self) {
        self.link().doubt().age();
    }

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
            Some(host) => go_on(&Arc::downgrade(self), &host, blocks, config, None).map(drop),
            None => {
                self.lose();
                Ok(())
            }
        }
    }
}
