//! What the controller knows and does, apart from how frames reach it: a front of another generation uses the same.

mod clock;
mod configuration;
mod dcmd;
mod drives;
mod flushing;
mod handover;
mod identity;
mod info;
mod lists;
mod log;
mod policy;
mod settings;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use zerocopy::IntoBytes;

use crate::differences::Differences;
use crate::limits::Limits;
use crate::spec::drive::{LD_OFFLINE, LD_OPTIMAL};
use crate::spec::event::{class, code, locale};
use clock::Clock;
use handover::Handovers;
use log::{Event, Subject};
use settings::Settings;

pub(crate) use dcmd::{Dcmd, Reply};
pub use drives::Drive;
pub(crate) use drives::{Drives, Kind, Place, synchronize};
pub(crate) use info::MAX_LDS;
pub use log::{EVENT_RECORDS, EventMarks, EventRecord, EventStore, KeptEvents};
pub(crate) use log::{Filter, Log};
pub(crate) use policy::{changes_medium, only_reads, write_protected};

/// What tells one controller from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Personality {
    /// The board, and what it says of the commands that it takes.
    pub(crate) limits: Limits,
    /// At most 32 characters.
    pub(crate) serial: String,
    pub(crate) sas_address: u64,
    /// Completed writes to logical drives may be lost until the cache is flushed.
    pub(crate) write_back: bool,
    pub(crate) differences: Differences,
}

/// The state of the firmware.
pub(crate) struct Firmware {
    personality: Personality,
    drives: Drives,
    log: Mutex<Log>,
    clock: Clock,
    /// Locked before the log.
    settings: Mutex<Settings>,
    /// Called when there is a new event.
    listener: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// How many events there were.
    events: AtomicU64,
    /// Places that the driver has yet to see empty. Locked before the drives and the log.
    handovers: Mutex<Handovers>,
    /// Called when a drive that waited is there.
    arrivals: OnceLock<Box<dyn Fn(u8) + Send + Sync>>,
    /// The guest has touched the controller.
    running: AtomicBool,
}

impl Firmware {
    /// Just started, without drives, with the events of before.
    pub(crate) fn new(personality: Personality, log: Log) -> Self {
        let settings = Settings::new(log.settings());
        let firmware = Self {
            drives: Drives::new(personality.sas_address),
            personality,
            log: Mutex::new(log),
            clock: Clock::new(settings.ahead.get()),
            settings: Mutex::new(settings),
            listener: OnceLock::new(),
            events: AtomicU64::new(0),
            handovers: Mutex::default(),
            arrivals: OnceLock::new(),
            running: AtomicBool::new(false),
        };
        firmware.started();
        firmware
    }

    /// Says who is called when there is a new event. Once.
    pub(crate) fn listen(&self, listener: Box<dyn Fn() + Send + Sync>) {
        let _ = self.listener.set(listener);
    }

    /// Says who is called when a drive that had to wait is there. Once.
    pub(crate) fn on_arrival(&self, listener: Box<dyn Fn(u8) + Send + Sync>) {
        let _ = self.arrivals.set(listener);
    }

    pub(crate) fn personality(&self) -> &Personality {
        &self.personality
    }

    /// Whether a driver is at work, not the firmware of the machine or a boot loader.
    pub(crate) fn has_driver(&self) -> bool {
        lock(&self.handovers).has_driver()
    }

    pub(crate) fn drives(&self) -> &Drives {
        &self.drives
    }

    /// The adapter was reset: the firmware starts anew, its log goes on.
    pub(crate) fn started(&self) {
        self.drives.unsettle();
        lock(&self.handovers).reset();
        let event = Event {
            code: code::FIRMWARE_INIT,
            locale: locale::CTRL,
            class: class::INFO,
            subject: Subject::None,
        };
        let time = self.clock.seconds();
        let mut log = self.log();
        let seq = log.append(time, &event, "Firmware initialization started");
        log.booted(seq);
    }

    /// The guest begins to use the controller: drives that come from now on are events.
    pub(crate) fn begin(&self) {
        self.running.store(true, Ordering::Relaxed);
    }

    /// Puts a drive at `id`, with its events; false when it waits, see [`handover`]. Nothing is at `id`.
    pub(crate) fn attach(&self, id: u8, drive: Drive) -> bool {
        match lock(&self.handovers).comes(id, drive) {
            Ok(_) => false,
            Err(drive) => {
                self.arrive(id, drive);
                true
            }
        }
    }

    fn arrive(&self, id: u8, drive: Drive) {
        let logical = drive.logical.is_some();
        self.drives.set(id, Some(drive));
        // What is there from the start says nothing new, and a log that is kept would hold little else: drivers read the lists first.
        if !self.running.load(Ordering::Relaxed) {
            return;
        }
        self.report(physical(code::PD_INSERTED, id), &format!("Inserted: PD {id:02x}(e0xff/s{id})"));
        if logical {
            self.report(volume(code::LD_CREATED, id), &format!("Created VD {id:02x}/{id}"));
        }
    }

    /// Takes the drive at `id` away, with its events; one that waits was never there.
    pub(crate) fn detach(&self, id: u8) -> Option<Drive> {
        // Held until the events are out: a driver that is quick with them finds the place noted.
        let mut handovers = lock(&self.handovers);
        if let Some(drive) = handovers.withdraw(id) {
            return Some(drive);
        }
        let place = self.drives.set(id, None)?;
        let kind = if place.drive.logical.is_some() { Kind::Logical } else { Kind::Physical };
        let seq = self.report_removal(id, kind);
        handovers.went(&place, seq);
        Some(place.drive.clone())
    }

    /// The events of a removal; the number of the last. FreeBSD looks at the state of a volume only, Linux also at that it
    /// is deleted.
    fn report_removal(&self, id: u8, kind: Kind) -> u32 {
        if kind == Kind::Logical {
            let subject = Subject::LogicalState(id.into(), id, [LD_OPTIMAL, LD_OFFLINE]);
            let event = Event { subject, ..volume(code::LD_STATE_CHANGED, id) };
            self.report(event, &format!("State change on VD {id:02x}/{id} from OPTIMAL(3) to OFFLINE(0)"));
            self.report(volume(code::LD_DELETED, id), &format!("Deleted VD {id:02x}/{id}"));
        }
        self.report(physical(code::PD_REMOVED, id), &format!("Removed: PD {id:02x}(e0xff/s{id})"))
    }

    /// The places that the driver has yet to see empty.
    pub(crate) fn unnoticed(&self) -> Vec<u8> {
        lock(&self.handovers).ids()
    }

    /// A driver begins to work.
    pub(crate) fn driver_came(&self) {
        lock(&self.handovers).driver_came();
    }

    /// The driver is gone with all it knew: the machine was reset, or it has shut the controller down.
    pub(crate) fn driver_went(&self) {
        let mut handovers = lock(&self.handovers);
        for (id, drive) in handovers.driver_went() {
            self.arrive(id, drive);
            self.tell_arrival(id);
        }
        for place in self.drives.all().values() {
            place.trust();
        }
    }

    /// The driver waits for events from number `from` on.
    pub(crate) fn asked(&self, from: u32) {
        let mut handovers = lock(&self.handovers);
        let handover::Asked { over, again } = handovers.asked(from);
        for (id, kind) in again {
            let seq = self.report_removal(id, kind);
            handovers.told(id, seq);
        }
        for (id, drive) in over {
            let Some(drive) = drive else { continue };
            // It has to ask who this is before it may touch the medium, should it have taken no note after all.
            drive.distrust();
            self.arrive(id, drive);
            self.tell_arrival(id);
        }
    }

    fn tell_arrival(&self, id: u8) {
        if let Some(listener) = self.arrivals.get() {
            listener(id);
        }
    }

    /// The driver begins to read a list of drives. Before the look at them.
    fn looks(&self, kind: Kind) -> handover::Look {
        lock(&self.handovers).look(kind)
    }

    /// It has read that.
    fn looked(&self, look: &handover::Look) {
        lock(&self.handovers).looked(look);
    }

    /// Logs an event and tells the listener. The tables it is about have to be up to date before.
    fn report(&self, event: Event, text: &str) -> u32 {
        let time = self.clock.seconds();
        let seq = self.log().append(time, &event, text);
        self.events.fetch_add(1, Ordering::Release);
        if let Some(listener) = self.listener.get() {
            listener();
        }
        seq
    }

    /// How many events were reported so far: changes when there is a new one.
    pub(crate) fn event_count(&self) -> u64 {
        self.events.load(Ordering::Acquire)
    }

    /// The first event that `filter` takes.
    pub(crate) fn first_event(&self, filter: &Filter) -> Option<crate::spec::event::Record> {
        self.log().matching(filter).next().copied()
    }

    /// Changes settings and has them kept.
    fn set(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = lock(&self.settings);
        change(&mut settings);
        self.log().keep_settings(settings.as_bytes());
    }

    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.log)
    }
}

fn physical(code: u32, id: u8) -> Event {
    Event { code, locale: locale::PD, class: class::INFO, subject: Subject::Physical(id.into(), 0xff, id) }
}

fn volume(code: u32, id: u8) -> Event {
    Event { code, locale: locale::LD, class: class::INFO, subject: Subject::Logical(id.into(), id) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `text` at the start of `field`, cut so that a zero ends it.
fn put_text(field: &mut [u8], text: &str) {
    let room = field.len().saturating_sub(1);
    field.iter_mut().take(room).zip(text.bytes()).for_each(|(to, from)| *to = from);
}
