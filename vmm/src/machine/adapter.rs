//! One HBA while the machine runs: what is behind it, and units that come, go and change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use devices::iothread::{Io, Remote};
use devices::scsi::{LogicalUnit, Lun, Target, TargetGroup};
use devices::storage::{BlockBackend, BlockError, Image, let_go};
use hba_megasas::Arrival;

use super::closing::{Answer, Asked, close_with_deadline};
use super::hbas::{self, Opened};
use super::host_unit::HostUnit;
use super::identity::Identities;
use super::space::Space;
use super::units;
pub use super::units::{Taken, UnitInfo, UnitState};
use crate::config::{self, HbaType};

mod attached;
mod discs;
mod fabric;
mod hot_plug;
mod native;
mod promised;

pub(super) use attached::Attached;
use attached::Behind;
pub(super) use fabric::{Fabric, names_named, names_word, port_state, state_named};
pub use hot_plug::HotPlug;

/// How long the host may take to end a unit's commands and to close its image before whoever asked hears that it does
/// not answer.
const DETACH: Duration = Duration::from_secs(30);
/// How long a request waits for the host.
const ANSWER: Duration = Duration::from_secs(30);

/// A unit that is about to go.
struct Leave {
    /// Its targets.
    behind: Vec<Arc<Target>>,
    image: Option<Arc<Image>>,
    /// What it is called.
    shown: String,
    /// It is the last unit there.
    last: bool,
    asked: Asked,
}

#[derive(Default)]
struct Inventory {
    targets: BTreeMap<u8, Vec<Arc<Target>>>,
    /// Those that somebody was given as free.
    promised: BTreeSet<u8>,
    units: BTreeMap<(u8, Lun), Attached>,
    /// Units that the guest has lost and whose images are being closed, also those that nobody waits for any more.
    closing: Vec<Arc<Answer>>,
    /// The machine ends: nothing comes any more.
    over: bool,
}

/// An HBA with what is behind it.
pub struct Adapter {
    /// The name of the configuration.
    pub id: String,
    /// What the guest sees.
    pub kind: HbaType,
    /// None for an HBA that cannot take targets at run time, or not yet.
    device: OnceLock<Arc<dyn HotPlug>>,
    /// The fabric that its port is on.
    fabric: OnceLock<Fabric>,
    /// The thread on which units end their commands.
    remote: Remote,
    /// Where writes of units that come wait when the host has no space.
    space: Arc<Space>,
    /// What new targets join.
    group: TargetGroup,
    /// What the disks of the machine are called.
    identities: Arc<Identities>,
    /// How long a detach waits for the host.
    patience: Duration,
    inventory: Mutex<Inventory>,
}

impl Adapter {
    /// An HBA with nothing behind it.
    pub fn new(id: &str, kind: HbaType, remote: Remote, space: &Arc<Space>, group: &TargetGroup) -> Self {
        let (space, group, identities) = (space.clone(), group.clone(), Arc::default());
        let (device, fabric) = (OnceLock::new(), OnceLock::new());
        let (inventory, patience) = (Mutex::default(), DETACH);
        Self { id: id.into(), kind, device, fabric, remote, space, group, identities, patience, inventory }
    }

    /// The thread on which units end their commands and images are closed.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Takes all units away at the end of the machine.
    pub fn take_units(&self) -> Taken {
        let over = Inventory { over: true, ..Inventory::default() };
        let Inventory { targets, units, closing, .. } = std::mem::replace(&mut *self.lock(), over);
        let take = |((target, lun), unit): ((u8, Lun), Attached)| {
            let leaving = targets.get(&target).into_iter().flatten().filter_map(|target| target.take(lun));
            (self.name(target, lun, &unit.shown), leaving.collect())
        };
        let stays = units.into_iter().filter(|(_, unit)| !unit.is_leaving());
        Taken { units: stays.map(take).collect(), closing }
    }

    /// Whether the machine ends.
    pub(super) fn is_over(&self) -> bool {
        self.lock().over
    }

    /// What a unit is called in messages.
    fn name(&self, target: u8, lun: Lun, image: &str) -> String {
        format!("hba {}, target {target} lun {}, {image}", self.id, units::shown(lun))
    }

    /// Where writes wait when the host has no space.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// The same, whose disks may not be called like those that `identities` knows.
    pub fn with(mut self, identities: &Arc<Identities>) -> Self {
        self.identities = identities.clone();
        self
    }

    /// What the disks of the machine are called.
    pub fn identities(&self) -> &Identities {
        &self.identities
    }

    /// Says who shows targets that come from now on.
    pub fn connect(&self, device: Arc<dyn HotPlug>) {
        // Once.
        let _ = self.device.set(device);
    }

    /// The same, of one that `make` makes for the targets that are there.
    pub fn connect_with<D: HotPlug + 'static>(
        &self,
        make: impl FnOnce(BTreeMap<u8, Arc<Target>>) -> Result<Arc<D>>,
    ) -> Result<Arc<D>> {
        // None comes meanwhile.
        let inventory = self.lock();
        let first = |(id, all): (&u8, &Vec<Arc<Target>>)| Some((*id, all.first()?.clone()));
        let device = make(inventory.targets.iter().filter_map(first).collect())?;
        self.connect(device.clone());
        Ok(device)
    }

    /// Takes note of a unit that was there from the start.
    pub(super) fn add_unit(&self, lun: &config::Lun, unit: Attached) {
        self.lock().units.insert((lun.target, number(lun.lun)), unit);
    }

    /// Whether a device of the host is passed through at this place.
    pub fn passes(&self, target: u8, lun: u16) -> bool {
        self.lock().units.get(&(target, number(lun))).is_some_and(|unit| unit.host.is_some())
    }

    /// All logical units, by target and number.
    pub fn units(&self) -> Vec<UnitInfo> {
        let unnoticed = self.unnoticed();
        let inventory = self.lock();
        let failed = |target, lun| {
            inventory.targets.get(&target).is_some_and(|all| all.iter().any(|target| target.has_failed(lun)))
        };
        let away = |target, lun| {
            inventory.targets.get(&target).is_some_and(|all| all.iter().any(|target| target.is_away(lun)))
        };
        let state = |target: u8, lun, unit: &Attached| match unit.is_leaving() {
            true => UnitState::Detaching,
            false if unnoticed.contains(&target) => UnitState::Waiting,
            false if away(target, lun) => UnitState::Away,
            false => UnitState::Attached,
        };
        let tray = |target, lun, unit: &Attached| {
            let at = inventory.targets.get(&target).filter(|_| unit.drive.is_some())?;
            at.first()?.tray(lun)
        };
        // Of a device of the host that has come back by another node, that one.
        let path = |target, lun, unit: &Attached| {
            let at = inventory.targets.get(&target).filter(|_| matches!(unit.image, Behind::Host));
            let node = at.and_then(|all| all.first()?.node(lun));
            node.map_or_else(|| unit.path.clone(), Into::into)
        };
        let info = |(&(target, lun), unit): (&(u8, Lun), &Attached)| UnitInfo {
            target,
            lun,
            image: (!matches!(unit.image, Behind::Nothing)).then(|| path(target, lun, unit)),
            kind: unit.kind(),
            tray: tray(target, lun, unit),
            size: unit.len(),
            read_only: unit.read_only,
            bounce: unit.bounce,
            flush_failed: failed(target, lun),
            state: state(target, lun, unit),
        };
        inventory.units.iter().map(info).collect()
    }

    /// The targets where something went, and the guest has not taken note of it.
    pub fn unnoticed(&self) -> Vec<u8> {
        self.device.get().map(|device| device.unnoticed()).unwrap_or_default()
    }

    /// Attaches a logical unit. The guest is told; or else it waits until the guest has taken note that something else
    /// has gone from there.
    pub fn attach(&self, lun: &config::Lun) -> Result<UnitState> {
        self.device()?;
        self.ensure_own()?;
        ensure_free(&self.lock(), lun)?;
        let (unit, units) = self.open(lun)?;
        self.insert(lun, unit, units)
    }

    /// The same of what is open already.
    pub(super) fn attach_opened(&self, lun: &config::Lun, opened: Opened) -> Result<UnitState> {
        ensure_free(&self.lock(), lun)?;
        let (unit, units) = self.show(lun, opened)?;
        self.insert(lun, unit, units)
    }

    /// Opens the image of a unit, and makes what shows it.
    fn open(&self, lun: &config::Lun) -> Result<(Attached, Vec<LogicalUnit>)> {
        let device = self.device()?;
        let opened = hbas::open(&self.id, lun, &self.space, &self.identities)?;
        if let Opened::Host(host) = &opened {
            self.warn_of_limits(device, host);
        }
        self.show(lun, opened)
    }

    /// Warns of a device that comes when the guest has been told of more than it takes.
    fn warn_of_limits(&self, device: &Arc<dyn HotPlug>, host: &HostUnit) {
        if !device.transfer_limits().admits(&host.limits()) && host.is_sequential() {
            tracing::warn!(
                "{}: hba {} has told the guest at its start that more can be sent at a time than the {} bytes that this device \
                 takes: records that are longer are refused; have the guest write shorter ones, or start the machine with it",
                host.name(),
                self.id,
                host.limits().transfer()
            );
        }
    }

    /// Makes what shows a unit to the guest.
    fn show(&self, lun: &config::Lun, opened: Opened) -> Result<(Attached, Vec<LogicalUnit>)> {
        let device = self.device()?;
        let known = Attached::new(lun, &opened);
        let units = match opened {
            Opened::Disk(image, disk) => device.units(lun, &image, disk)?,
            Opened::Cd(disc, drive, _) => vec![device.drive(disc, drive)?],
            Opened::Host(host) => vec![device.host(host.unit())?],
        };
        Ok((known, units))
    }

    /// Whether disks are shown as volumes.
    pub fn makes_volumes(&self) -> bool {
        self.device().is_ok_and(|device| device.makes_volumes())
    }

    /// Warns of a unit that is right, but not for every guest. At the start the configuration does that.
    pub fn warn(&self, lun: &config::Lun) {
        let line = self.device().ok().and_then(|device| device.warning(lun));
        line.iter().for_each(|line| tracing::warn!("{line}"));
    }

    fn holds(&self, lun: &config::Lun) -> bool {
        self.lock().units.contains_key(&(lun.target, number(lun.lun)))
    }

    fn insert(&self, lun: &config::Lun, unit: Attached, units: Vec<LogicalUnit>) -> Result<UnitState> {
        let name = unit.shown.clone();
        // What does not get in is closed when this is over, and others wait for the lock no more.
        let (mut units, mut targets) = (units.into_iter(), Vec::new());
        let state = self.place(lun, unit, &mut units, &mut targets)?;
        if state == UnitState::Waiting {
            tracing::warn!(
                "hba {}, target {}: {name} waits until the guest has noticed that the disk before it has gone",
                self.id,
                lun.target
            );
        }
        Ok(state)
    }

    /// Takes as many of `units` as there are targets, new ones among `made`.
    fn place(
        &self,
        lun: &config::Lun,
        unit: Attached,
        units: &mut impl ExactSizeIterator<Item = LogicalUnit>,
        made: &mut Vec<Arc<Target>>,
    ) -> Result<UnitState> {
        let number = number(lun.lun);
        let mut state = UnitState::Attached;
        let mut inventory = self.lock();
        // Another may have been faster since somebody looked.
        ensure_free(&inventory, lun)?;
        if let Some(targets) = inventory.targets.get(&lun.target) {
            for (target, unit) in targets.iter().zip(units) {
                target.attach(number, unit)?;
            }
        } else {
            while let Some(unit) = units.next() {
                // What the guest uses comes last. Copies reach nothing else.
                let last = units.len() == 0;
                let target = if last { self.group.target() } else { self.group.target_apart() };
                made.push(target.clone());
                target.attach(number, unit)?;
            }
            if self.device()?.attach_targets(lun.target, made)? == Arrival::Waits {
                state = UnitState::Waiting;
            }
            inventory.targets.insert(lun.target, made.clone());
            self.add_port(lun.target);
        }
        inventory.units.insert((lun.target, number), unit);
        Ok(state)
    }

    /// Detaches a logical unit, whose commands end, and with the last one its target. The guest is told. When this
    /// returns the image is closed, or an error says why not; the guest has lost the unit in any case.
    pub fn detach(&self, target: u8, lun: u16) -> Result<()> {
        self.ensure_own()?;
        self.detach_at(target, number(lun))
    }

    fn detach_at(&self, target: u8, lun: Lun) -> Result<()> {
        let device = self.device()?;
        let Leave { behind, image, shown, last, asked } = self.begin_leaving(target, lun)?;
        if last {
            device.close_targets(target);
        }
        // Without the lock: it may wait for the host.
        let closed = close_with_deadline(&self.remote, asked, self.patience, move |io| async move {
            let mut leaving = Vec::with_capacity(behind.len());
            for target in &behind {
                leaving.extend(target.detach(lun).await);
            }
            let mut end = Ok(());
            for unit in leaving {
                end = end.and(unit.close(&io).await.map_err(|error| explain(&error)));
            }
            // The last of it, most likely.
            if let Some(image) = image {
                let_go(&io, image).await;
            }
            end
        });
        self.end_leaving(target, lun)?;
        closed.with_context(|| {
            format!("target {target} lun {} has left the guest, but {shown}", units::shown(lun))
        })
    }

    /// Marks a unit as leaving.
    fn begin_leaving(&self, target: u8, lun: Lun) -> Result<Leave> {
        let mut inventory = self.lock();
        let number = units::shown(lun);
        let nothing = || anyhow!("nothing at target {target} lun {number}");
        let behind = inventory.targets.get(&target).cloned().ok_or_else(nothing)?;
        let unit = inventory.units.get_mut(&(target, lun)).ok_or_else(nothing)?;
        ensure!(!unit.is_leaving(), "target {target} lun {number} is being detached already");
        let (len, shown) = (unit.len(), unit.shown.clone());
        let image = match std::mem::replace(&mut unit.image, Behind::Leaving(len)) {
            Behind::Image(image) => Some(image),
            Behind::Nothing | Behind::Host | Behind::Leaving(_) => None,
        };
        let others = |(&(other, _), unit): (&(u8, Lun), &Attached)| other == target && !unit.is_leaving();
        let last = !self.has_fabric() && !inventory.units.iter().any(others);
        let asked = Asked::new(self.name(target, lun, &shown));
        inventory.closing.retain(|answer| !answer.is_over());
        inventory.closing.push(asked.answer());
        Ok(Leave { behind, image, shown, last, asked })
    }

    /// Forgets a unit that has left, and with the last one its target. A port of a fabric stays without units.
    fn end_leaving(&self, target: u8, lun: Lun) -> Result<()> {
        let mut inventory = self.lock();
        inventory.units.remove(&(target, lun));
        if !self.has_fabric() && !inventory.units.keys().any(|&(other, _)| other == target) {
            inventory.targets.remove(&target);
            self.device()?.detach_targets(target)?;
        }
        Ok(())
    }

    /// Looks at the size of an image again, after making it larger when `size` says so. The guest is told.
    pub fn resize(&self, target: u8, lun: u16, size: Option<u64>) -> Result<u64> {
        // Without the lock from then on: it may wait for the host.
        let (image, behind, block) = {
            let inventory = self.lock();
            let unit = inventory.units.get(&(target, number(lun)));
            let unit = unit.ok_or_else(|| anyhow!("nothing at target {target} lun {lun}"))?;
            ensure!(!unit.protected, "a disk with protection information keeps its size");
            ensure!(unit.drive.is_none(), "a disc keeps its size; `change` it for another one");
            ensure!(
                !matches!(unit.image, Behind::Host),
                "a device of the host has the size that it has; the guest asks the device itself"
            );
            let Behind::Image(image) = &unit.image else {
                bail!("target {target} lun {lun} is being detached");
            };
            let behind = inventory.targets.get(&target).cloned().context("no such target")?;
            (image.clone(), behind, unit.block_size)
        };
        if let Some(size) = size {
            let now = image.geometry().len;
            ensure!(size >= now, "{size} bytes are less than the {now} of now: shrinking would lose data");
            ensure!(
                size.is_multiple_of(block),
                "{size} bytes are no multiple of {block}, the length of the disk's blocks"
            );
            let image = image.clone();
            self.on_thread(move |io| async move {
                let grown = image.grow(&io, size).await;
                // A detach may not have waited for this, and then it is the last.
                let_go(&io, image).await;
                grown
            })??;
        }
        let (len, warning) = self.on_thread(move |io| async move {
            image.refresh(&io).await;
            let found = (image.geometry().len, image.ending().warning(image.name(), block));
            let_go(&io, image).await;
            found
        })?;
        warning.into_iter().for_each(|line| tracing::warn!("{line}"));
        behind.iter().for_each(|target| target.refresh(number(lun)));
        Ok(len)
    }

    /// Another image at the same place: the unit goes and a new one comes. The old one stays when the new image cannot
    /// be opened.
    pub fn change(&self, lun: &config::Lun) -> Result<UnitState> {
        self.ensure_own()?;
        ensure!(self.holds(lun), "nothing at target {} lun {}", lun.target, lun.lun);
        let (unit, units) = self.open(lun)?;
        self.detach(lun.target, lun.lun).context("the new image was not attached")?;
        self.insert(lun, unit, units)
    }

    /// The targets now.
    pub fn targets(&self) -> Vec<Arc<Target>> {
        self.lock().targets.values().flatten().cloned().collect()
    }

    fn device(&self) -> Result<&Arc<dyn HotPlug>> {
        let name = self.kind.name();
        self.device.get().ok_or_else(|| anyhow!("a {name} HBA takes no disks at run time yet"))
    }

    /// Runs a task on the I/O thread and waits for it, but not for ever: then it goes on by itself.
    fn on_thread<T, M, F>(&self, make: M) -> Result<T>
    where
        T: Send + 'static,
        M: FnOnce(Io) -> F + Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (done, result) = mpsc::sync_channel(1);
        self.remote.spawn(move |io| {
            let task = make(io);
            async move { drop(done.send(task.await)) }
        });
        result.recv_timeout(ANSWER).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                anyhow!(
                    "the host does not answer: after {} s it is not done, but may be later",
                    ANSWER.as_secs()
                )
            }
            RecvTimeoutError::Disconnected => anyhow!("the I/O thread has ended"),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inventory> {
        self.inventory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ensure_free(inventory: &Inventory, lun: &config::Lun) -> Result<()> {
    ensure_empty(inventory, lun.target, number(lun.lun))
}

fn ensure_empty(inventory: &Inventory, target: u8, lun: Lun) -> Result<()> {
    let number = units::shown(lun);
    match inventory.units.get(&(target, lun)).map(Attached::is_leaving) {
        None => Ok(()),
        Some(true) => bail!("target {target} lun {number} is being detached"),
        Some(false) => bail!("target {target} lun {number} is in use"),
    }
}

/// The LUN of a number that a user gave.
fn number(lun: u16) -> Lun {
    Lun::from_number(u32::from(lun))
}

/// An error of the storage layer in one line.
pub(super) fn explain(error: &BlockError) -> String {
    let cause = error.source.as_ref().map(|e| format!(": {e}")).unwrap_or_default();
    format!("{error}{cause}")
}

#[cfg(test)]
#[path = "adapter_tests.rs"]
mod tests;
