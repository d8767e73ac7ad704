//! Finds devices of the host again that were gone: told by events of the kernel what has changed, and by sysfs what is there.
//!
//! Events only say where to look. What is there is known by the number that the kernel has given its directory, which is another
//! one after each return, so that events may be lost, or come late, or twice.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::beside::open_blocks;
use super::identity::Identity;
use super::node::{Node, failed};
use super::opening::{Done, Opener, Openings, Order};
use super::route::Part;
use super::seat::{Failures, Seat};
use super::sysfs::{Device, Driver, Sysfs};
use super::udev::Udev;
use super::{Allow, GenericError, GenericOptions, HostLimits, Place};

/// How long a device that has come may take to be done with by udev, and then to have its node, with the rights that it shall have.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same, of a device that could not be opened once.
const GRACE: Duration = Duration::from_secs(3);
/// How soon it is tried again; twice as long each time.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A device that a unit has, as it is to be found again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Who it is.
    pub identity: Identity,
    /// By which of its nodes it was named.
    pub driver: Driver,
    /// By which it is open: where it had several, the last is waited for.
    pub parts: Vec<Part>,
    /// What the guest may do.
    pub allow: Allow,
    /// Others may use it as well.
    pub shared: bool,
    /// Its directory in sysfs, and the number that the kernel has given that.
    pub directory: PathBuf,
    /// See `directory`.
    pub number: u64,
}

impl Wanted {
    /// What is looked for when `device` goes.
    pub(super) fn new(
        device: &Device,
        driver: Driver,
        parts: Vec<Part>,
        options: &GenericOptions,
    ) -> Option<Self> {
        Some(Self {
            identity: Identity::of(device),
            driver,
            parts,
            allow: options.allow,
            shared: options.shared,
            directory: device.directory.clone(),
            number: device.number().ok()?,
        })
    }

    /// The device is there without a node that it had.
    pub(super) fn lacks(&self, device: &Device) -> GenericError {
        let name = self.identity.names.first().unwrap_or(&self.identity.product).clone();
        GenericError::NoNode { name, address: device.address.clone() }
    }

    fn seat(&self) -> Seat {
        let (address, directory) = (self.identity.address.clone(), self.directory.clone());
        Seat::had_by(&Device { address, directory }, self.number)
    }
}

/// Where a device has come to, and what its queue takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its node.
    pub path: String,
    /// Host, channel, target and LUN.
    pub address: String,
    /// What its queue takes with one command.
    pub limits: HostLimits,
    /// Bytes of a logical block, where the host knows.
    pub block: Option<u32>,
    /// Its length in bytes, where the host knows.
    pub size: Option<u64>,
    /// Commands that it takes at a time.
    pub depth: usize,
}

/// A device that has come, with its node open.
#[derive(Debug)]
pub struct Arrival {
    pub(super) node: Node,
    pub(super) found: Found,
    /// The block device once more, for direct I/O, where the unit has a ring for it.
    pub(super) blocks: Option<File>,
}

impl Arrival {
    /// Its node.
    pub fn path(&self) -> &str {
        &self.found.path
    }

    /// What is open of it, for another process.
    pub fn into_files(self) -> (Found, Vec<(Part, OwnedFd)>) {
        let ring = self.blocks.map(|file| (Part::Ring, file));
        let files = self.node.into_files().into_iter().chain(ring);
        (self.found, files.map(|(part, file)| (part, file.into())).collect())
    }

    /// What another process has opened; `None` if no command can be sent by it.
    pub fn from_files(found: Found, files: Vec<(Part, OwnedFd)>) -> Option<Self> {
        let files = files.into_iter().map(|(part, file)| (part, File::from(file)));
        let (rings, files) = files.partition::<Vec<_>, _>(|(part, _)| *part == Part::Ring);
        let blocks = rings.into_iter().next().map(|(_, file)| file);
        Some(Self { node: Node::from_files(&found.address, files)?, found, blocks })
    }

    /// Whether it has all nodes that were there before.
    pub(super) fn is_whole(&self, wanted: &Wanted) -> bool {
        wanted.parts.iter().all(|part| self.has(*part))
    }

    fn has(&self, part: Part) -> bool {
        if part == Part::Ring { self.blocks.is_some() } else { self.node.parts().contains(&part) }
    }
}

/// What has become of a device, by its number in the list.
#[derive(Debug)]
pub enum Report {
    /// It is gone.
    Lost(usize),
    /// It is back.
    Back(usize, Box<Arrival>),
    /// It is back, and cannot be opened. That is said once, and it is tried again when something happens to it, once in a minute.
    Failed(usize, GenericError),
    /// It is back at this address, and the host does not come back from opening its nodes. It may be back later.
    Slow(usize, String),
    /// It is back at this address, and its nodes are opened when the host has come back from others, of which there are too many.
    Queued(usize, String),
}

/// A device that one of the list may be.
#[derive(Debug)]
struct Attempt {
    index: usize,
    device: Device,
    seat: Seat,
    next: Instant,
    pause: Duration,
    until: Instant,
    /// Until when udev is waited for, once it was.
    settles: Option<Instant>,
    /// It was said that others are waited for.
    queued: bool,
    step: Step,
}

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is tried at its time.
    Waits,
    /// A thread opens it.
    Opens {
        /// The number by which that is known.
        number: u64,
        /// It is the last try.
        last: bool,
        /// Something has happened to it meanwhile.
        again: bool,
        /// It was said that it takes long.
        told: bool,
    },
}

/// Looks for devices that have gone. It takes nothing but what the kernel tells.
pub struct Lookout {
    sysfs: Sysfs,
    udev: Udev,
    openings: Openings,
    /// Of the next opening.
    number: u64,
    wanted: Vec<Wanted>,
    /// Where each is, or was.
    seats: Vec<Seat>,
    attempts: Vec<Attempt>,
    failures: Failures,
    reports: Vec<Report>,
}

impl Lookout {
    /// For these devices, which are there, or were there a moment ago.
    ///
    /// # Errors
    /// The process may have no more files open.
    pub fn new(wanted: Vec<Wanted>) -> io::Result<Self> {
        Self::of(Sysfs::default(), Udev::default(), wanted, Arc::new(open))
    }

    fn of(sysfs: Sysfs, udev: Udev, wanted: Vec<Wanted>, open: Arc<Opener>) -> io::Result<Self> {
        Ok(Self {
            openings: Openings::new(sysfs.clone(), open)?,
            sysfs,
            udev,
            number: 0,
            seats: wanted.iter().map(Wanted::seat).collect(),
            wanted,
            attempts: Vec::new(),
            failures: Failures::default(),
            reports: Vec::new(),
        })
    }

    /// Can be read when there is something to do before [`Lookout::next`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.openings.fd()
    }

    /// Something at this path in sysfs has come or changed (`DEVPATH` of an event).
    pub fn changed(&mut self, path: &str, now: Instant) {
        if let Some(device) = self.sysfs.device_at(path) {
            self.consider(device, now);
        }
    }

    /// What is at this path is about to go, with the node of this number, as udev keeps it: `b8:32`.
    pub fn removed(&mut self, path: &str, node: Option<String>, now: Instant) {
        self.udev.went(node);
        let Some(device) = self.sysfs.device_at(path) else { return };
        let itself = path.rsplit('/').next() == Some(&device.address);
        let is = |seat: &Seat| seat.taken && seat.directory == device.directory;
        if itself && let Some(index) = self.seats.iter().position(is) {
            self.lose(index, now);
        }
    }

    /// Events were lost: anything may have changed.
    pub fn missed(&mut self, now: Instant) {
        self.udev.any_went();
        self.look(now);
    }

    /// Looks what is there now, without an event.
    pub fn look(&mut self, now: Instant) {
        let dead = |seat: &Seat| seat.taken && !seat.lives();
        while let Some(index) = self.seats.iter().position(dead) {
            self.lose(index, now);
        }
        if self.seats.iter().any(|seat| !seat.taken) {
            self.look_at_all(now);
        }
    }

    /// When there is something to do without an event.
    pub fn next(&self) -> Option<Instant> {
        let due = |attempt: &Attempt| match attempt.step {
            Step::Waits => Some(attempt.next),
            Step::Opens { told: false, .. } => Some(attempt.until),
            Step::Opens { .. } => None,
        };
        self.attempts.iter().filter_map(due).min()
    }

    /// Does what is due, and says what has become of devices.
    pub fn work(&mut self, now: Instant) -> Vec<Report> {
        for Done { number, opened } in self.openings.take() {
            let is =
                |attempt: &Attempt| matches!(attempt.step, Step::Opens { number: of, .. } if of == number);
            match self.attempts.iter().position(is) {
                Some(place) => {
                    let attempt = self.attempts.swap_remove(place);
                    self.conclude(attempt, opened, now);
                }
                None => self.openings.let_go(opened),
            }
        }
        let due = |attempt: &Attempt| attempt.step == Step::Waits && attempt.next <= now;
        while let Some(place) = self.attempts.iter().position(due) {
            let attempt = self.attempts.swap_remove(place);
            self.attempt(attempt, now);
        }
        for attempt in self.attempts.iter_mut().filter(|attempt| attempt.until <= now) {
            if let Step::Opens { told, .. } = &mut attempt.step
                && !std::mem::replace(told, true)
            {
                self.reports.push(Report::Slow(attempt.index, attempt.device.address.clone()));
            }
        }
        std::mem::take(&mut self.reports)
    }

    fn lose(&mut self, index: usize, now: Instant) {
        self.leave(index);
        // It may have come to another place before it went from this one.
        self.look_at_all(now);
    }

    fn leave(&mut self, index: usize) {
        if let Some(seat) = self.seats.get_mut(index) {
            seat.taken = false;
            // What comes may have their numbers already.
            match seat.take_nodes() {
                nodes if nodes.is_empty() => self.udev.any_went(),
                nodes => self.udev.went(nodes),
            }
            self.reports.push(Report::Lost(index));
        }
    }

    fn look_at_all(&mut self, now: Instant) {
        for device in self.sysfs.all() {
            self.consider(device, now);
        }
    }

    /// A device has come, or has been there for long: whether one that is gone is this one.
    fn consider(&mut self, device: Device, now: Instant) {
        let Some(seat) = Seat::of(&device) else { return };
        // It is there already; or it goes, and its directory is the last that does.
        if self.seats.iter().any(|other| other.is(&seat)) {
            return;
        }
        let again = self.failures.again(&seat);
        let next = again.unwrap_or(now).max(now);
        if let Some(attempt) = self.attempts.iter_mut().find(|attempt| attempt.seat.is(&seat)) {
            // Perhaps it has its node now. It is waited for no longer than before: to try is to cause such events.
            (attempt.next, attempt.pause) = (next, PAUSE);
            if let Step::Opens { again, .. } = &mut attempt.step {
                *again = true;
            }
            return;
        }
        let identity = Identity::of(&device);
        let mut same: Vec<_> = (0..self.wanted.len())
            .filter(|index| self.wanted.get(*index).is_some_and(|wanted| wanted.identity.is(&identity)))
            .collect();
        // Of several paths to one device each is taken for that which was there.
        let elsewhere = |index: &usize| {
            self.wanted.get(*index).is_none_or(|wanted| wanted.identity.address != identity.address)
        };
        same.sort_by_key(elsewhere);
        // Others may lack a device that nobody tries to open for them yet.
        same.sort_by_key(|index| self.attempts.iter().any(|attempt| attempt.index == *index));
        for index in same {
            match self.seats.get(index) {
                Some(seat) if seat.taken && seat.lives() => continue,
                // Its own event is late, or lost.
                Some(seat) if seat.taken => self.leave(index),
                _ => {}
            }
            self.attempts.push(Attempt {
                index,
                device,
                seat,
                next,
                pause: PAUSE,
                // Who has udev change its nodes has the kernel tell of it at the same moment: so not once.
                until: next + if again.is_some() { GRACE } else { PATIENCE },
                settles: None,
                queued: false,
                step: Step::Waits,
            });
            return;
        }
    }

    /// Whether an attempt is about nothing any more: another one has come in the place of its unit's device, or it has gone again.
    fn is_over(&self, attempt: &Attempt) -> bool {
        self.seats.get(attempt.index).is_none_or(|seat| seat.taken) || !attempt.seat.is_of(&attempt.device)
    }

    fn attempt(&mut self, mut attempt: Attempt, now: Instant) {
        let Some(wanted) = self.wanted.get(attempt.index) else { return };
        if self.is_over(&attempt) {
            return;
        }
        if !self.udev.has_done(&attempt.device) && now < *attempt.settles.get_or_insert(now + PATIENCE) {
            attempt.until = now + PATIENCE;
            return self.try_later(attempt, now);
        }
        let (number, last) = (self.number, now >= attempt.until);
        let order = Order { number, wanted: wanted.clone(), device: attempt.device.clone(), last };
        if !self.openings.begin(order) {
            if last && !std::mem::replace(&mut attempt.queued, true) {
                self.reports.push(Report::Queued(attempt.index, attempt.device.address.clone()));
            }
            return self.try_later(attempt, now);
        }
        self.number += 1;
        if last {
            // For this one to end.
            attempt.until = now + PATIENCE;
        }
        attempt.step = Step::Opens { number, last, again: false, told: false };
        self.attempts.push(attempt);
    }

    fn try_later(&mut self, mut attempt: Attempt, now: Instant) {
        attempt.next = now + attempt.pause;
        attempt.pause = (attempt.pause * 2).min(PAUSE_MAX);
        attempt.step = Step::Waits;
        self.attempts.push(attempt);
    }

    fn conclude(&mut self, mut attempt: Attempt, opened: Result<Arrival, GenericError>, now: Instant) {
        if self.is_over(&attempt) {
            return self.openings.let_go(opened);
        }
        match (opened, attempt.step) {
            (Ok(arrival), _) => {
                self.failures.forget(attempt.index, &attempt.seat);
                // What is open keeps its number, so that this is its own.
                attempt.seat.learn(&attempt.device);
                if let Some(place) = self.seats.get_mut(attempt.index) {
                    *place = attempt.seat;
                }
                self.reports.push(Report::Back(attempt.index, Box::new(arrival)));
                // Another unit may lack what is not needed here.
                let spare = self.attempts.extract_if(.., |other| other.index == attempt.index);
                let spare: Vec<_> = spare.map(|other| other.device).collect();
                spare.into_iter().for_each(|device| self.consider(device, now));
            }
            (Err(error), Step::Opens { last: true, again, .. }) => {
                if self.failures.add(attempt.index, &attempt.seat, &error, now) {
                    self.reports.push(Report::Failed(attempt.index, error));
                }
                if again {
                    self.consider(attempt.device, now);
                }
            }
            (Err(_), Step::Opens { again: true, .. }) => {
                (attempt.step, attempt.next) = (Step::Waits, now);
                self.attempts.push(attempt);
            }
            (Err(_), _) => self.try_later(attempt, now),
        }
    }

    /// Whether something is being opened.
    #[cfg(test)]
    fn is_opening(&self) -> bool {
        self.attempts.iter().any(|attempt| attempt.step != Step::Waits)
    }
}

/// Opens the node that a unit had, of the device that has come.
pub(super) fn open(sysfs: &Sysfs, wanted: &Wanted, device: &Device) -> Result<Arrival, GenericError> {
    let path = sysfs.node_of(device, wanted.driver).ok_or_else(|| wanted.lacks(device))?;
    let options = GenericOptions {
        place: Place::Path(path.clone()),
        shared: wanted.shared,
        allow: wanted.allow,
        bounce: false,
    };
    let (node, config) = Node::open_for_another(sysfs, &options)?;
    // Its number is nobody else's while it is open: what sysfs says of it now holds.
    let there = node.device(sysfs).filter(|there| wanted.identity.is(&Identity::of(there)));
    if there.is_none_or(|there| there != *device) {
        return Err(GenericError::Missing { path: path.display().to_string() });
    }
    // Of what is not ready the kernel knows no blocks.
    let by_ring = wanted.parts.contains(&Part::Ring) && config.size.is_some();
    let number = node.routes.block().filter(|_| by_ring).map(File::metadata).transpose();
    let number = number.map_err(|e| failed(&path, e))?.map(|found| found.rdev());
    let blocks = match number.map(|number| open_blocks(&path, number, &options)).transpose()? {
        Some(image) => Some(image.into_file().map_err(|e| failed(&path, e))?),
        None => None,
    };
    let found = Found {
        path: config.name,
        address: device.address.clone(),
        limits: config.limits,
        block: config.block,
        size: config.size,
        depth: config.depth,
    };
    Ok(Arrival { node, found, blocks })
}

#[cfg(test)]
#[path = "lookout_tests.rs"]
mod tests;
