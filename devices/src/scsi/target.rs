//! Targets: the inventory of logical units, and the functions that act on them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use thiserror::Error;

use super::attention::Attention;
use super::cd::{CdError, Tray};
use super::generic::Returning;
use super::lun::MAX_LUNS;
use super::memory::Memory;
use super::nexus::Nexus;
use super::tasks::Ended;
use super::unit::{LogicalUnit, Unit};
use super::{Lun, Tag};
use crate::iothread::Io;
use crate::storage::{BlockError, Image, let_go};

/// A task management function (SAM-6, 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskManagement {
    /// ABORT TASK
    AbortTask(Lun, Tag),
    /// ABORT TASK SET
    AbortTaskSet(Lun),
    /// CLEAR ACA
    ClearAca(Lun),
    /// CLEAR TASK SET
    ClearTaskSet(Lun),
    /// I_T NEXUS RESET
    NexusReset,
    /// LOGICAL UNIT RESET
    LogicalUnitReset(Lun),
    /// QUERY TASK
    QueryTask(Lun, Tag),
    /// QUERY TASK SET
    QueryTaskSet(Lun),
}

/// Its service response (SAM-6, 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskManagementReply {
    /// FUNCTION COMPLETE
    Complete,
    /// FUNCTION SUCCEEDED
    Succeeded,
    /// FUNCTION REJECTED
    Rejected,
    /// INCORRECT LOGICAL UNIT NUMBER
    IncorrectLun,
}

/// What an HBA is told about the targets behind it, so that it can raise its own events. Called on any thread.
pub trait PortEvents: Send + Sync {
    /// A logical unit changed in a way that the initiator should notice; `sense` is ASC and ASCQ.
    fn unit_attention(&self, lun: Lun, sense: (u8, u8));
    /// Logical units came or went: look again.
    fn inventory_changed(&self);
    /// The initiator asks a unit who it is (standard INQUIRY data) that it may take for the one before it. Whether it has
    /// taken note of the removal, so that it takes what answers for new; else it finds nothing there yet.
    fn introduce(&self, lun: Lun) -> bool {
        let _ = lun;
        true
    }
}

/// Why a logical unit was not attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AttachError {
    /// Not a single-level LUN below 16384.
    #[error("not a logical unit number that a target can have")]
    BadLun,
    /// Bytes 6 and 7 are not zero: the fourth of the levels of SAM-6, 4.7.5.
    #[error(
        "the logical unit number has four levels, and virtio-scsi carries three: map the unit to a number of fewer levels at the array"
    )]
    FourLevels,
    /// There is one already.
    #[error("the logical unit number is in use")]
    InUse,
}

/// Targets that belong together: EXTENDED COPY and tokens reach all units of a group, whichever target they are at. What
/// their commands hold of the host's memory has one bound.
#[derive(Clone, Default)]
pub struct TargetGroup {
    targets: Arc<RwLock<Vec<Weak<Target>>>>,
    memory: Arc<Memory>,
}

impl TargetGroup {
    /// Adds a target without logical units.
    pub fn target(&self) -> Arc<Target> {
        let target = Arc::new(Target { group: self.clone(), inventory: RwLock::default() });
        let mut targets = self.targets.write().unwrap_or_else(PoisonError::into_inner);
        targets.retain(|target| target.strong_count() > 0);
        targets.push(Arc::downgrade(&target));
        target
    }

    /// A target that copies of the others do not reach. It shares the bound of memory.
    pub fn target_apart(&self) -> Arc<Target> {
        Self { targets: Arc::default(), memory: self.memory.clone() }.target()
    }

    fn targets(&self) -> Vec<Arc<Target>> {
        let targets = self.targets.read().unwrap_or_else(PoisonError::into_inner);
        targets.iter().filter_map(Weak::upgrade).collect()
    }
}

/// A target device: logical units behind one target port.
pub struct Target {
    group: TargetGroup,
    inventory: RwLock<Inventory>,
}

#[derive(Default)]
struct Inventory {
    /// By the LUNs that REPORT LUNS has.
    units: BTreeMap<Lun, Arc<Unit>>,
    /// Units have the LUNs that somebody else gave them: two may differ in the method alone.
    native: bool,
    nexuses: Vec<Weak<Nexus>>,
}

impl Inventory {
    fn nexuses(&self) -> impl Iterator<Item = Arc<Nexus>> {
        self.nexuses.iter().filter_map(Weak::upgrade)
    }

    /// The LUN by which a unit is known here that the owner of the target calls `lun`.
    fn name(&self, lun: Lun) -> Option<Lun> {
        let known = |lun: &Lun| self.units.contains_key(lun);
        if self.native { Some(lun).filter(known) } else { lun.synonyms().find(known) }
    }

    fn get(&self, lun: Lun) -> Option<&Arc<Unit>> {
        self.units.get(&self.name(lun)?)
    }
}

impl Target {
    /// A target without logical units, in a group of its own.
    #[allow(clippy::new_ret_no_self, reason = "a target is always shared")]
    pub fn new() -> Arc<Self> {
        TargetGroup::default().target()
    }

    /// Adds a logical unit at `lun` (any addressing method). Every nexus finds it at once: REPORTED LUNS DATA HAS
    /// CHANGED on the other units, POWER ON on the new one.
    pub fn attach(&self, lun: Lun, logical: LogicalUnit) -> Result<(), AttachError> {
        let number = lun.number().filter(|number| *number < MAX_LUNS).ok_or(AttachError::BadLun)?;
        let inventory = self.write();
        if lun.synonyms().any(|lun| inventory.units.contains_key(&lun)) {
            return Err(AttachError::InUse);
        }
        self.add(inventory, Lun::from_number(number), logical);
        Ok(())
    }

    /// As [`Target::attach`], for a logical unit of which another target says that its LUN is `lun`: of one to three levels, in any
    /// method. REPORT LUNS has it unaltered. From then on the functions here know units by exactly the LUNs that they were attached with;
    /// initiators reach one of a single level by any method, unless there is a unit at just the LUN that they use. What has more levels is
    /// for initiators that were told of LUNs as they are: see [`Nexus::address_natively`].
    ///
    /// # Errors
    /// There is a unit with this LUN, or it has four levels, or is no unit's.
    pub fn attach_native(&self, lun: Lun, logical: LogicalUnit) -> Result<(), AttachError> {
        if !lun.is_native() {
            let [.., a, b] = lun.0;
            return Err(if (a, b) == (0, 0) { AttachError::BadLun } else { AttachError::FourLevels });
        }
        let mut inventory = self.write();
        if inventory.units.contains_key(&lun) {
            return Err(AttachError::InUse);
        }
        inventory.native = true;
        self.add(inventory, lun, logical);
        Ok(())
    }

    fn add(&self, mut inventory: RwLockWriteGuard<'_, Inventory>, lun: Lun, logical: LogicalUnit) {
        logical.join(&self.group.memory);
        let unit = Unit::new(lun, logical);
        let nexuses: Vec<_> = inventory.nexuses().collect();
        for nexus in &nexuses {
            nexus.connect(&unit);
        }
        let others: Vec<_> = inventory.units.values().cloned().collect();
        inventory.units.insert(lun, unit);
        drop(inventory);
        announce(&others, &nexuses);
    }

    /// Takes a logical unit away; `None` when there was none. Its commands end with LOGICAL UNIT NOT SUPPORTED. When
    /// this returns they have left, and what went on in the background or for commands of other units has ended,
    /// wherever it was: nobody but the caller has the unit any more.
    pub async fn detach(&self, lun: Lun) -> Option<Detached> {
        let (unit, mark) = {
            let (unit, others, nexuses) = self.remove(lun)?;
            let mark = unit.end();
            announce(&others, &nexuses);
            // The others are let go: one that goes while this waits is its own caller's alone.
            (unit, mark)
        };
        unit.tasks.left(mark).await;
        unit.background.end().await;
        Some(Detached(unit))
    }

    /// Opens the tray of a drive and takes its disc out; `None` where there was none. With `force` whatever the guest says.
    /// Commands that read the disc go on: they hold its image.
    ///
    /// # Errors
    /// There is no drive, or the guest has locked the tray and now knows that somebody wants it open.
    pub fn eject(&self, lun: Lun, force: bool) -> Result<Option<Arc<Image>>, CdError> {
        self.unit(lun).ok_or(CdError::NoDrive)?.eject(force)
    }

    /// Puts the disc that `image` is of into a drive that has none, closes its tray and tells the guest.
    ///
    /// # Errors
    /// There is no drive, or a disc in it, or the image has not one sector.
    pub fn insert(&self, lun: Lun, image: Arc<Image>) -> Result<(), CdError> {
        self.unit(lun).ok_or(CdError::NoDrive)?.insert(image)
    }

    /// Both at once, with no time in between: the disc that `image` is of comes in the place of what is in the drive, which is
    /// returned. With `force` whatever the guest says.
    ///
    /// # Errors
    /// As of [`Target::eject`], if there is a disc, and of [`Target::insert`].
    pub fn change(&self, lun: Lun, image: Arc<Image>, force: bool) -> Result<Option<Arc<Image>>, CdError> {
        self.unit(lun).ok_or(CdError::NoDrive)?.change(image, force)
    }

    /// How the tray of a drive is; `None` where there is no drive.
    pub fn tray(&self, lun: Lun) -> Option<Tray> {
        self.unit(lun)?.tray()
    }

    /// The node of the host by which a unit is passed through now; `None` of others.
    pub fn node(&self, lun: Lun) -> Option<String> {
        self.unit(lun)?.node()
    }

    /// The unit that passes a device through which has come back, if it is one of this target.
    pub fn lun_of(&self, returning: &Returning) -> Option<Lun> {
        let inventory = self.read();
        let is_it =
            |unit: &Arc<Unit>| unit.logical.generic().is_some_and(|generic| generic.returns_by(returning));
        inventory.units.iter().find(|(_, unit)| is_it(unit)).map(|(lun, _)| *lun)
    }

    /// Whether a device of the host that is passed through is not there.
    pub fn is_away(&self, lun: Lun) -> bool {
        self.unit(lun).is_some_and(|unit| unit.is_away())
    }

    fn unit(&self, lun: Lun) -> Option<Arc<Unit>> {
        self.read().get(lun).cloned()
    }

    #[expect(clippy::type_complexity, reason = "one caller takes it apart at once")]
    fn remove(&self, lun: Lun) -> Option<(Arc<Unit>, Vec<Arc<Unit>>, Vec<Arc<Nexus>>)> {
        let mut inventory = self.write();
        let lun = inventory.name(lun)?;
        let unit = inventory.units.remove(&lun)?;
        let nexuses: Vec<_> = inventory.nexuses().collect();
        for nexus in &nexuses {
            nexus.disconnect(lun);
        }
        Some((unit, inventory.units.values().cloned().collect(), nexuses))
    }

    /// Power on: ends every command of every nexus and puts all units in the state of a machine just switched on.
    pub async fn power_on(&self) {
        let marks: Vec<_> = {
            let (units, nexuses): (Vec<_>, Vec<_>) = {
                let inventory = self.read();
                (inventory.units.values().cloned().collect(), inventory.nexuses().collect())
            };
            nexuses.iter().for_each(|nexus| nexus.trust());
            let end = |unit: Arc<Unit>| {
                let mark = unit.tasks.end(|_, _| Some(Ended::Reset));
                unit.reset(Attention::PowerOn);
                // Without the unit: one that goes while this waits is its own caller's alone.
                (unit.tasks.clone(), mark)
            };
            units.into_iter().map(end).collect()
        };
        for (tasks, mark) in marks {
            tasks.left(mark).await;
        }
    }

    /// Takes a logical unit away at the end of the machine, when there is nobody to tell: its commands end, and what comes
    /// later finds nothing.
    pub fn take(&self, lun: Lun) -> Option<Leaving> {
        let (unit, _, _) = self.remove(lun)?;
        let mark = unit.end();
        Some(Leaving { unit, mark })
    }

    /// Whether a unit's medium could not be made stable: then it cannot be again before its image is opened anew.
    pub fn has_failed(&self, lun: Lun) -> bool {
        self.read().get(lun).is_some_and(|unit| unit.logical.has_failed())
    }

    /// Looks whether a unit's size changed and tells the initiators. Every command looks too; this is for the one
    /// that made the change.
    pub fn refresh(&self, lun: Lun) {
        if let Some(unit) = self.unit(lun) {
            unit.refresh();
        }
    }

    /// Somebody knows that the capacity of a unit has changed which does not notice that itself, as those that are passed through. Tells the
    /// initiators.
    pub fn capacity_changed(&self, lun: Lun) {
        if let Some(unit) = self.unit(lun) {
            unit.raise(Attention::CapacityChanged, None);
        }
    }

    /// How many copies write to a unit.
    #[cfg(test)]
    pub(crate) fn copies_writing(&self, lun: Lun) -> usize {
        let LogicalUnit::Disk(disk) = &self.unit(lun).expect("a unit").logical else {
            return 0;
        };
        disk.copies_writing()
    }

    #[cfg(test)]
    pub(crate) fn memory(&self) -> &Memory {
        &self.group.memory
    }

    /// The logical units that a copy can reach: all of the group, those of this target first.
    pub(crate) fn reachable(&self) -> Vec<Arc<Unit>> {
        let units = |target: &Self| target.read().units.values().cloned().collect::<Vec<_>>();
        let mut all = units(self);
        let targets = self.group.targets();
        all.extend(targets.iter().filter(|target| !std::ptr::eq(&***target, self)).flat_map(|t| units(t)));
        all
    }

    pub(crate) fn join(self: &Arc<Self>, nexus: &Arc<Nexus>) {
        let mut inventory = self.write();
        inventory.nexuses.retain(|nexus| nexus.strong_count() > 0);
        inventory.nexuses.push(Arc::downgrade(nexus));
        inventory.units.values().for_each(|unit| nexus.connect(unit));
    }

    fn read(&self) -> RwLockReadGuard<'_, Inventory> {
        self.inventory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inventory> {
        self.inventory.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A logical unit that was taken away. Whoever took it has to close it: its medium may not be whole before.
#[must_use = "its medium is whole when it was closed"]
pub struct Detached(Arc<Unit>);

impl Detached {
    /// Makes the medium whole. Units that show one image may be closed one after the other.
    pub async fn close(self, io: &Io) -> Result<(), BlockError> {
        let closed = self.0.logical.close(io).await;
        let_go(io, self.0).await;
        closed
    }
}

/// A logical unit that was taken away and whose commands have yet to leave.
#[must_use = "its medium is whole when it was closed"]
pub struct Leaving {
    unit: Arc<Unit>,
    mark: u64,
}

impl Leaving {
    /// Waits for the commands, makes the medium whole and lets go of it.
    pub async fn close(self, io: &Io) -> Result<(), BlockError> {
        self.unit.tasks.left(self.mark).await;
        self.unit.background.end().await;
        let closed = self.unit.logical.close(io).await;
        let_go(io, self.unit).await;
        closed
    }
}

/// Tells initiators and HBAs that the inventory changed.
fn announce(units: &[Arc<Unit>], nexuses: &[Arc<Nexus>]) {
    for unit in units {
        unit.raise(Attention::LunsChanged, None);
    }
    for nexus in nexuses {
        nexus.events().inventory_changed();
    }
}
