//! Logical units: what is behind a LUN, and what every kind of it shares.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use super::attention::{Attention, Attentions};
use super::background::{Background, Medium, SETTLE, Working};
use super::block::Block;
use super::cd::{self, Cd, CdError, Tray};
use super::disk::{self, Disk, Image};
use super::generic::{Generic, HostDevice, Reset};
use super::memory::Memory;
use super::nexus::Nexus;
use super::outcome::Outcome;
use super::passed::Passed;
use super::reservation::Reservations;
use super::sense::Failure;
use super::tasks::{NexusId, TaskSet};
use super::{Cdb, DataBuffers, Lun, PortEvents, TaskAttribute};
use crate::iothread::{Io, Scope};
use crate::storage::BlockError;

/// A device server. The CDB stays raw up to here, so a unit that passes commands through is one more variant.
pub enum LogicalUnit {
    /// A direct access block device (SBC-4).
    Disk(Disk<Image>),
    /// A drive for CDs and DVDs (MMC-6).
    Cd(Cd<Image>),
    /// A device of the host, passed through.
    Generic(Generic),
    /// A disk of the host, passed through but for its blocks.
    Block(Block),
}

/// What a unit is told of a command besides its CDB and data.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) io: &'a Io,
    pub(crate) nexus: &'a Nexus,
    pub(crate) path: &'a Path,
}

impl LogicalUnit {
    /// What its commands hold of the host's memory counts together with that of others.
    pub(crate) fn join(&self, memory: &Arc<Memory>) {
        match self {
            Self::Disk(disk) => disk.memory.join(memory),
            Self::Cd(cd) => cd.memory.join(memory),
            Self::Generic(generic) => generic.memory.join(memory),
            Self::Block(block) => block.generic().memory.join(memory),
        }
    }

    /// Makes the medium whole, when the unit goes.
    pub(crate) async fn close(&self, io: &Io) -> Result<(), BlockError> {
        match self {
            Self::Disk(disk) => disk.close(io).await,
            Self::Cd(cd) => cd.close(io).await,
            // Its cache is the device's own, and the guest's to flush.
            Self::Generic(generic) => {
                generic.close(io).await;
                Ok(())
            }
            Self::Block(block) => block.close(io).await,
        }
    }

    /// The unit goes: nothing waits for space on the host any more.
    fn stop_waiting(&self) {
        match self {
            Self::Disk(disk) => disk.stop_waiting(),
            // Nothing is written.
            Self::Cd(_) => {}
            // The device's word on a lack of space goes to the guest.
            Self::Generic(_) | Self::Block(_) => {}
        }
    }

    /// Whether the medium could not be made stable.
    pub(crate) fn has_failed(&self) -> bool {
        match self {
            Self::Disk(disk) => disk.has_failed(),
            Self::Cd(_) => false,
            Self::Generic(_) | Self::Block(_) => false,
        }
    }

    /// The device of the host that is passed through.
    pub(crate) fn generic(&self) -> Option<&Generic> {
        match self {
            Self::Disk(_) | Self::Cd(_) => None,
            Self::Generic(generic) => Some(generic),
            Self::Block(block) => Some(block.generic()),
        }
    }

    /// See [`Nexus::host_device`].
    pub(crate) fn host_device(&self) -> Option<HostDevice> {
        self.generic().map(Generic::known)
    }

    /// Answers what must not wait for other commands, and can be answered without any.
    pub(crate) fn ahead(&self, nexus: &Nexus, path: &Path, cdb: &Cdb, data: &DataBuffers) -> Option<Outcome> {
        self.generic()?.ahead(nexus, path, cdb, data)
    }

    pub(crate) async fn execute(&self, context: Context<'_>, cdb: &Cdb, data: &mut DataBuffers) -> Outcome {
        match self {
            Self::Disk(disk) => disk.execute(context, cdb, data).await,
            Self::Cd(cd) => cd.execute(context, cdb, data).await,
            Self::Generic(generic) => generic.execute(context, cdb, data).await,
            Self::Block(block) => block.execute(context, cdb, data).await,
        }
    }

    /// RESERVATION CONFLICT if a reservation of others stands against a command.
    pub(crate) fn check_reservations(&self, path: &Path, cdb: &Cdb) -> Result<(), Failure> {
        match self {
            Self::Disk(disk) => disk.check_reservations(path, cdb),
            Self::Cd(cd) => cd.check_reservations(path, cdb),
            // Reservations are the device's.
            Self::Generic(_) | Self::Block(_) => Ok(()),
        }
    }

    /// Whether a command is carried out whatever unit attention condition is pending, which stays.
    pub(crate) fn passes_attention(&self, opcode: u8) -> bool {
        // SAM-6, 5.14: REQUEST SENSE, INQUIRY, REPORT LUNS.
        matches!(opcode, 0x03 | 0x12 | 0xa0) || matches!(self, Self::Cd(_)) && cd::passes_attention(opcode)
    }

    /// The task attribute that a command has here: some must run alone whatever the initiator says.
    pub(crate) fn attribute(&self, cdb: &Cdb, asked: TaskAttribute) -> TaskAttribute {
        match self {
            Self::Disk(_) if disk::runs_alone(cdb) => TaskAttribute::Ordered,
            Self::Disk(_) | Self::Cd(_) => asked,
            Self::Generic(generic) => generic.attribute(asked),
            Self::Block(_) => asked,
        }
    }

    /// Whether a command works on media only as a visitor, at this unit as at others.
    fn only_visits(&self, cdb: &Cdb) -> bool {
        match self {
            Self::Disk(_) => disk::is_extended_copy(cdb),
            Self::Cd(_) => false,
            Self::Generic(_) | Self::Block(_) => false,
        }
    }

    /// Whether sense data goes out in descriptor format.
    pub(crate) fn descriptor_sense(&self) -> bool {
        match self {
            Self::Disk(disk) => disk.mode().descriptor_sense(),
            Self::Cd(_) => false,
            Self::Generic(_) | Self::Block(_) => false,
        }
    }

    /// Whether commands ended by another initiator report TASK ABORTED.
    pub(crate) fn task_aborted_status(&self) -> bool {
        match self {
            Self::Disk(disk) => disk.mode().task_aborted_status(),
            Self::Cd(_) => false,
            Self::Generic(_) | Self::Block(_) => false,
        }
    }

    /// Notices a new size: true once for each change.
    fn take_capacity_change(&self) -> bool {
        match self {
            Self::Disk(disk) => disk.take_capacity_change(),
            // A disc does not grow.
            Self::Cd(_) => false,
            // The device says so itself.
            Self::Generic(_) | Self::Block(_) => false,
        }
    }

    /// Logical unit reset, or power on when `power` is set (SAM-6, 6.3.3).
    fn reset(&self, power: bool) {
        match self {
            Self::Disk(disk) => disk.reset(power),
            Self::Cd(cd) => cd.reset(power),
            Self::Generic(_) | Self::Block(_) => {}
        }
    }

    /// What a device said, which an outcome has the number of.
    pub(crate) fn passed(&self, number: u32) -> Option<Passed> {
        self.generic()?.words.take(number)
    }

    /// How to reset what is behind the unit, where that is not the unit itself. It does not hold the unit.
    pub(crate) fn reset_device(&self) -> Option<Reset> {
        self.generic()?.reset_device()
    }

    /// There is no such initiator any more.
    fn gone(&self, nexus: NexusId) {
        match self {
            Self::Disk(_) | Self::Generic(_) | Self::Block(_) => {}
            Self::Cd(cd) => cd.gone(nexus),
        }
    }

    /// Forgets what an initiator whose nexus is lost had asked for.
    fn forget(&self, nexus: NexusId) {
        match self {
            Self::Disk(disk) => disk.forget(nexus),
            Self::Cd(cd) => cd.forget(nexus),
            Self::Generic(_) | Self::Block(_) => {}
        }
    }
}

/// A logical unit in its place within a target.
pub(crate) struct Unit {
    pub(crate) lun: Lun,
    pub(crate) logical: LogicalUnit,
    /// Shared with those who wait for commands to leave: they do not hold the unit meanwhile.
    pub(crate) tasks: Arc<TaskSet>,
    pub(crate) reservations: Reservations,
    pub(crate) background: Arc<Background>,
    paths: RwLock<Vec<Weak<Path>>>,
}

impl Unit {
    pub(crate) fn new(lun: Lun, logical: LogicalUnit) -> Arc<Self> {
        Arc::new(Self {
            lun,
            logical,
            tasks: Arc::default(),
            reservations: Reservations::default(),
            background: Arc::default(),
            paths: RwLock::default(),
        })
    }

    /// The unit goes: its commands end and none enters any more, and what goes on in the background is told to end, also
    /// where it waits for space. Returns the mark to give to [`TaskSet::left`].
    pub(crate) fn end(&self) -> u64 {
        let mark = self.tasks.close();
        self.background.tell();
        self.logical.stop_waiting();
        mark
    }

    /// The medium, for a command that begins.
    pub(crate) fn medium(&self) -> Medium {
        let held = match &self.logical {
            LogicalUnit::Cd(cd) => cd.held(),
            LogicalUnit::Disk(_) | LogicalUnit::Generic(_) | LogicalUnit::Block(_) => None,
        };
        Medium { number: self.background.medium(), held }
    }

    /// Waits until a command that was ended may leave: the host does not reach the guest's memory for it any more. Where
    /// the host may still write what the command had brought, the unit is busy until that is over.
    pub(crate) async fn part(self: &Arc<Self>, io: &Io, scope: Scope, cdb: &Cdb, medium: Medium) {
        io.released(scope).await;
        let _ = io.at_most(SETTLE, io.settled(scope)).await;
        self.leave_behind(io, scope, cdb, medium);
    }

    /// A command is over that began at `medium`. Where the host may still write what it had brought, the unit is busy until that is over too.
    pub(crate) fn leave_behind(self: &Arc<Self>, io: &Io, scope: Scope, cdb: &Cdb, medium: Medium) {
        if !self.logical.only_visits(cdb) {
            Working::at(self.clone(), medium).leave_behind(io, scope);
        }
    }

    /// Whether visitors must not begin.
    pub(crate) fn is_busy(&self) -> bool {
        self.background.is_busy()
    }

    /// What the host calls the medium.
    pub(crate) fn name(&self) -> Cow<'_, str> {
        match &self.logical {
            LogicalUnit::Disk(disk) => disk.image().name().into(),
            LogicalUnit::Cd(cd) => cd.name().into(),
            LogicalUnit::Generic(generic) => generic.name().into(),
            LogicalUnit::Block(block) => block.generic().name().into(),
        }
    }

    /// The drive, if the unit is one.
    fn drive(&self) -> Result<&Cd<Image>, CdError> {
        match &self.logical {
            LogicalUnit::Cd(cd) => Ok(cd),
            LogicalUnit::Disk(_) | LogicalUnit::Generic(_) | LogicalUnit::Block(_) => Err(CdError::NoDrive),
        }
    }

    /// Opens the tray of the drive and takes its disc out.
    pub(crate) fn eject(&self, force: bool) -> Result<Option<Arc<Image>>, CdError> {
        let disc = self.drive()?.remove(force)?;
        self.background.exchange();
        Ok(disc)
    }

    /// Puts a disc into the drive. All initiators hear of it.
    pub(crate) fn insert(&self, image: Arc<Image>) -> Result<(), CdError> {
        self.drive()?.insert(image, || self.raise(Attention::MediumChanged, None))
    }

    /// Puts a disc into the drive in the place of another. All initiators hear of it.
    pub(crate) fn change(&self, image: Arc<Image>, force: bool) -> Result<Option<Arc<Image>>, CdError> {
        let before = self.drive()?.change(image, force, || self.raise(Attention::MediumChanged, None))?;
        self.background.exchange();
        Ok(before)
    }

    /// The node of the device of the host that the unit passes through, if it is one.
    pub(crate) fn node(&self) -> Option<String> {
        match &self.logical {
            LogicalUnit::Disk(_) | LogicalUnit::Cd(_) => None,
            LogicalUnit::Generic(generic) => Some(generic.node()),
            LogicalUnit::Block(block) => Some(block.generic().node()),
        }
    }

    /// Whether it passes a device of the host through that is not there.
    pub(crate) fn is_away(&self) -> bool {
        self.logical.generic().is_some_and(Generic::is_gone)
    }

    /// How the tray of the drive is, if the unit is one.
    pub(crate) fn tray(&self) -> Option<Tray> {
        Some(self.drive().ok()?.tray())
    }

    /// Joins a nexus and this unit. The initiator finds POWER ON.
    pub(crate) fn connect(self: &Arc<Self>, nexus: NexusId, events: &Arc<Events>) -> Arc<Path> {
        let path = Arc::new(Path {
            unit: self.clone(),
            nexus,
            attentions: Attentions::power_on(),
            events: events.clone(),
            strange: AtomicBool::new(false),
            used: AtomicBool::new(false),
        });
        let mut paths = self.paths.write().unwrap_or_else(PoisonError::into_inner);
        paths.retain(|path| path.strong_count() > 0);
        paths.push(Arc::downgrade(&path));
        path
    }

    /// Establishes a unit attention condition for every initiator but `except`, and tells their HBAs of those that
    /// come from outside their own doing.
    pub(crate) fn raise(&self, attention: Attention, except: Option<NexusId>) {
        let paths: Vec<_> = {
            let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
            paths.iter().filter_map(Weak::upgrade).filter(|path| Some(path.nexus) != except).collect()
        };
        for path in paths {
            path.attentions.raise(attention);
            if matches!(attention, Attention::ModeChanged | Attention::CapacityChanged) {
                path.events.unit_attention(self.lun, attention.code());
            }
        }
    }

    /// Establishes a condition for some initiators only.
    pub(crate) fn raise_for(&self, attention: Attention, nexuses: &[NexusId]) {
        let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
        for path in paths.iter().filter_map(Weak::upgrade).filter(|path| nexuses.contains(&path.nexus)) {
            path.attentions.raise(attention);
        }
    }

    /// Looks whether the unit changed by itself.
    pub(crate) fn refresh(&self) {
        if self.logical.take_capacity_change() {
            self.raise(Attention::CapacityChanged, None);
        }
    }

    /// Back to the state after power on or after a logical unit reset; commands are ended by the caller.
    pub(crate) fn reset(&self, attention: Attention) {
        self.reservations.reset(attention == Attention::PowerOn);
        self.logical.reset(attention == Attention::PowerOn);
        self.raise(attention, None);
    }

    /// An initiator is gone for good.
    pub(crate) fn gone(&self, nexus: NexusId) {
        self.forget(nexus);
        self.unregister(nexus);
        self.logical.gone(nexus);
    }

    /// The nexus of an initiator is lost.
    pub(crate) fn forget(&self, nexus: NexusId) {
        self.reservations.nexus_lost(nexus);
        self.logical.forget(nexus);
    }
}

/// An I_T_L nexus: one initiator port's view of one logical unit.
pub(crate) struct Path {
    pub(crate) unit: Arc<Unit>,
    pub(crate) nexus: NexusId,
    pub(crate) attentions: Attentions,
    events: Arc<Events>,
    /// The initiator may take the unit for another one: see [`Nexus::distrust`].
    strange: AtomicBool,
    /// The initiator has the unit: it has sent it more than what it asks every place.
    used: AtomicBool,
}

impl Path {
    pub(crate) fn is_strange(&self) -> bool {
        self.strange.load(Ordering::Relaxed)
    }

    pub(crate) fn set_strange(&self, strange: bool) {
        self.strange.store(strange, Ordering::Relaxed);
    }

    /// Whether the initiator has the unit, and will not look for it.
    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// A command has come.
    pub(crate) fn note(&self, opcode: u8) {
        // REQUEST SENSE, INQUIRY, REPORT LUNS.
        if !matches!(opcode, 0x03 | 0x12 | 0xa0) && !self.is_used() {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// The initiator has forgotten the unit, or may have.
    pub(crate) fn forget_use(&self) {
        self.used.store(false, Ordering::Relaxed);
    }
}

/// Where an HBA hears of changes.
#[derive(Default)]
pub(crate) struct Events(Mutex<Option<Arc<dyn PortEvents>>>);

impl Events {
    pub(crate) fn set(&self, events: Option<Arc<dyn PortEvents>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = events;
    }
    fn get(&self) -> Option<Arc<dyn PortEvents>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    pub(crate) fn unit_attention(&self, lun: Lun, code: (u8, u8)) {
        if let Some(events) = self.get() {
            events.unit_attention(lun, code);
        }
    }
    pub(crate) fn introduce(&self, lun: Lun) -> bool {
        self.get().is_none_or(|events| events.introduce(lun))
    }
    pub(crate) fn inventory_changed(&self) {
        if let Some(events) = self.get() {
            events.inventory_changed();
        }
    }
}
