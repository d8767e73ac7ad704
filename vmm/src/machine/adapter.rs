//! One HBA while the machine runs: what is behind it, and units that come, go and change.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use anyhow::{Context, Result, anyhow, bail, ensure};
use devices::iothread::{Io, Remote};
use devices::scsi::{LogicalUnit, Lun, Nexus, Target, TargetGroup};
use devices::storage::{BlockBackend, Image};
use hba_virtio_scsi::VirtioScsi;

use super::hbas;
use super::space::Space;
use crate::config::{self, Device, HbaType};

/// An HBA that takes targets at run time. Both calls tell the guest's driver.
pub trait HotPlug: Send + Sync {
    /// Puts a target behind the HBA.
    fn attach_target(&self, id: u8, nexus: Arc<Nexus>) -> Result<()>;
    /// Takes a target away, whose commands have ended.
    fn detach_target(&self, id: u8) -> Result<()>;
}

impl HotPlug for VirtioScsi {
    fn attach_target(&self, id: u8, nexus: Arc<Nexus>) -> Result<()> {
        Self::attach_target(self, id, nexus);
        Ok(())
    }

    fn detach_target(&self, id: u8) -> Result<()> {
        Self::detach_target(self, id);
        Ok(())
    }
}

/// A logical unit and the image behind it.
struct Attached {
    image: Arc<Image>,
    path: PathBuf,
    read_only: bool,
    /// It has protection information.
    protected: bool,
}

impl Attached {
    fn new(disk: &config::Disk, image: Arc<Image>) -> Self {
        let protected = disk.protection.is_some();
        Self { image, path: disk.image.clone(), read_only: disk.read_only, protected }
    }
}

#[derive(Default)]
struct Inventory {
    targets: BTreeMap<u8, Arc<Target>>,
    units: BTreeMap<(u8, u16), Attached>,
}

/// What is known of one logical unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitInfo {
    /// Its target.
    pub target: u8,
    /// Its number at the target.
    pub lun: u16,
    /// The image's file or device.
    pub image: PathBuf,
    /// Length in bytes now.
    pub size: u64,
    /// Whether the guest may not write.
    pub read_only: bool,
}

/// An HBA with what is behind it.
pub struct Adapter {
    /// The name of the configuration.
    pub id: String,
    /// What the guest sees.
    pub kind: HbaType,
    /// None for an HBA that cannot take targets at run time.
    device: Option<Arc<dyn HotPlug>>,
    /// The thread on which units end their commands.
    remote: Remote,
    /// Where writes of units that come wait when the host has no space.
    space: Arc<Space>,
    /// What new targets join.
    group: TargetGroup,
    inventory: Mutex<Inventory>,
}

impl Adapter {
    /// An HBA with nothing behind it.
    pub fn new(id: &str, kind: HbaType, remote: Remote, space: &Arc<Space>, group: &TargetGroup) -> Self {
        let (space, group) = (space.clone(), group.clone());
        Self { id: id.into(), kind, device: None, remote, space, group, inventory: Mutex::default() }
    }

    /// The targets of the machine.
    pub fn group(&self) -> &TargetGroup {
        &self.group
    }

    /// Where writes wait when the host has no space.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Says who shows targets that come from now on.
    pub fn connect(&mut self, device: Arc<dyn HotPlug>) {
        self.device = Some(device);
    }

    /// Takes note of a target that was there from the start.
    pub fn add_target(&self, id: u8, target: &Arc<Target>) {
        self.lock().targets.insert(id, target.clone());
    }

    /// Takes note of a unit that was there from the start.
    pub fn add_unit(&self, lun: &config::Lun, image: &Arc<Image>) {
        let Device::Disk(disk) = &lun.device else { return };
        let unit = Attached::new(disk, image.clone());
        self.lock().units.insert((lun.target, lun.lun), unit);
    }

    /// All logical units, by target and number.
    pub fn units(&self) -> Vec<UnitInfo> {
        let inventory = self.lock();
        let info = |(&(target, lun), unit): (&(u8, u16), &Attached)| UnitInfo {
            target,
            lun,
            image: unit.path.clone(),
            size: unit.image.geometry().len,
            read_only: unit.read_only,
        };
        inventory.units.iter().map(info).collect()
    }

    /// The first target without a unit.
    pub fn free_target(&self) -> Option<u8> {
        let inventory = self.lock();
        (0..=u8::MAX).find(|id| !inventory.targets.contains_key(id))
    }

    /// Attaches a logical unit. The guest is told.
    pub fn attach(&self, lun: &config::Lun) -> Result<()> {
        self.device()?;
        ensure!(!self.holds(lun), "target {} lun {} is in use", lun.target, lun.lun);
        let (image, unit) = hbas::unit(&self.id, lun, &self.space)?;
        self.insert(lun, image, unit)
    }

    fn holds(&self, lun: &config::Lun) -> bool {
        self.lock().units.contains_key(&(lun.target, lun.lun))
    }

    fn insert(&self, lun: &config::Lun, image: Arc<Image>, unit: LogicalUnit) -> Result<()> {
        let Device::Disk(disk) = &lun.device else { bail!("only disks can be attached") };
        let device = self.device()?;
        let mut inventory = self.lock();
        let number = Lun::from_number(u32::from(lun.lun));
        match inventory.targets.get(&lun.target) {
            Some(target) => target.attach(number, unit)?,
            None => {
                let target = self.group.target();
                target.attach(number, unit)?;
                device.attach_target(lun.target, Nexus::new(target.clone(), None))?;
                inventory.targets.insert(lun.target, target);
            }
        }
        let unit = Attached::new(disk, image);
        inventory.units.insert((lun.target, lun.lun), unit);
        Ok(())
    }

    /// Detaches a logical unit, whose commands end, and with the last one its target. The guest is told. When this
    /// returns the image is closed.
    pub fn detach(&self, target: u8, lun: u16) -> Result<()> {
        let device = self.device()?;
        let behind = self.lock().targets.get(&target).cloned();
        let behind = behind.ok_or_else(|| anyhow!("nothing at target {target} lun {lun}"))?;
        let number = Lun::from_number(u32::from(lun));
        // Without the lock: it may wait for the host.
        let found = self.on_thread(move |io| async move {
            let found = behind.detach(number).await;
            io.quiesce().await;
            found
        })?;
        ensure!(found, "nothing at target {target} lun {lun}");
        let mut inventory = self.lock();
        inventory.units.remove(&(target, lun));
        if !inventory.units.keys().any(|&(other, _)| other == target) {
            inventory.targets.remove(&target);
            device.detach_target(target)?;
        }
        Ok(())
    }

    /// Looks at the size of an image again, after making it larger when `size` says so. The guest is told.
    pub fn resize(&self, target: u8, lun: u16, size: Option<u64>) -> Result<u64> {
        let inventory = self.lock();
        let unit = inventory.units.get(&(target, lun));
        let unit = unit.ok_or_else(|| anyhow!("nothing at target {target} lun {lun}"))?;
        let image = unit.image.clone();
        ensure!(!unit.protected, "a disk with protection information keeps its size");
        if let Some(size) = size {
            ensure!(
                matches!(&*image, Image::Raw(_)),
                "only raw images without throttle can be made larger here"
            );
            let now = image.geometry().len;
            ensure!(size >= now, "{size} bytes are less than the {now} of now: shrinking would lose data");
            ensure!(size.is_multiple_of(512), "{size} bytes are no multiple of 512");
            let file = OpenOptions::new().write(true).open(&unit.path);
            let file = file.with_context(|| format!("opening {}", unit.path.display()))?;
            file.set_len(size).with_context(|| format!("making {} larger", unit.path.display()))?;
        }
        let len = self.on_thread(|io| async move {
            image.refresh(&io).await;
            image.geometry().len
        })?;
        let behind = inventory.targets.get(&target).context("no such target")?;
        behind.refresh(Lun::from_number(u32::from(lun)));
        Ok(len)
    }

    /// Another image at the same place: the unit goes and a new one comes. The old one stays when the new image cannot
    /// be opened.
    pub fn change(&self, lun: &config::Lun) -> Result<()> {
        ensure!(self.holds(lun), "nothing at target {} lun {}", lun.target, lun.lun);
        let (image, unit) = hbas::unit(&self.id, lun, &self.space)?;
        self.detach(lun.target, lun.lun)?;
        self.insert(lun, image, unit)
    }

    /// The targets now.
    pub fn targets(&self) -> Vec<Arc<Target>> {
        self.lock().targets.values().cloned().collect()
    }

    fn device(&self) -> Result<&Arc<dyn HotPlug>> {
        let name = self.kind.name();
        self.device.as_ref().ok_or_else(|| anyhow!("a {name} HBA takes no disks at run time yet"))
    }

    /// Runs a task on the I/O thread and waits for it.
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
        result.recv().map_err(|_| anyhow!("the I/O thread has ended"))
    }

    fn lock(&self) -> MutexGuard<'_, Inventory> {
        self.inventory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
