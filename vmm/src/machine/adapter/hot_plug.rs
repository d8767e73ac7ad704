//! What an HBA does that takes targets while the machine runs.

use std::sync::Arc;

use anyhow::Result;
use devices::scsi::generic::Returning;
use devices::scsi::{Cd, CdConfig, DiskConfig, LogicalUnit, Lun, Nexus, Target, TransferLimits};
use devices::storage::Image;
use hba_megasas::Arrival;
use hba_virtio_scsi::VirtioScsi;

use super::Adapter;
use crate::config;
use crate::machine::hbas;

/// An HBA that takes targets at run time.
pub trait HotPlug: Send + Sync {
    /// The logical units that show one image, each at a target of its own where there is more than one.
    fn units(&self, lun: &config::Lun, image: &Arc<Image>, disk: DiskConfig) -> Result<Vec<LogicalUnit>>;
    /// A CD drive with this disc.
    fn drive(&self, disc: Option<Arc<Image>>, drive: CdConfig) -> Result<LogicalUnit> {
        Ok(LogicalUnit::Cd(Cd::new(disc, drive)?))
    }
    /// A device of the host.
    fn host(&self, unit: LogicalUnit) -> Result<LogicalUnit> {
        Ok(unit)
    }
    /// What it has told the guest can be sent with one command.
    fn transfer_limits(&self) -> TransferLimits {
        TransferLimits::default()
    }
    /// Whether disks are shown as volumes.
    fn makes_volumes(&self) -> bool {
        false
    }
    /// Puts the targets of these units behind the HBA, and tells the guest's driver; or has them wait.
    fn attach_targets(&self, id: u8, targets: &[Arc<Target>]) -> Result<Arrival>;
    /// Targets are about to go: from here on the HBA may keep new commands from them.
    fn close_targets(&self, _id: u8) {}
    /// Takes them away, and tells the guest's driver. Their commands have ended.
    fn detach_targets(&self, id: u8) -> Result<()>;
    /// The device of a unit was not there, and is back: who has looked for units meanwhile has not found it.
    fn look_again(&self, _id: u8, _lun: Lun) {}
    /// What is right with the unit, but not for every guest.
    fn warning(&self, _lun: &config::Lun) -> Option<String> {
        None
    }
    /// The places where something went, and the driver has not yet acted on that: what comes there waits.
    fn unnoticed(&self) -> Vec<u8> {
        Vec::new()
    }
}

impl HotPlug for VirtioScsi {
    fn units(&self, lun: &config::Lun, image: &Arc<Image>, disk: DiskConfig) -> Result<Vec<LogicalUnit>> {
        Ok(vec![hbas::logical_unit(lun, image, disk)?])
    }

    fn transfer_limits(&self) -> TransferLimits {
        VirtioScsi::transfer_limits(self)
    }

    fn attach_targets(&self, id: u8, targets: &[Arc<Target>]) -> Result<Arrival> {
        for target in targets {
            self.attach_target(id, Nexus::new(target.clone(), None));
        }
        Ok(Arrival::There)
    }

    fn detach_targets(&self, id: u8) -> Result<()> {
        self.detach_target(id);
        Ok(())
    }

    fn look_again(&self, id: u8, lun: Lun) {
        VirtioScsi::look_again(self, id, lun);
    }
}

impl Adapter {
    /// A unit goes on with its device, if it is one of this HBA: the guest is told to look again.
    pub(in crate::machine) fn returned(&self, unit: &Returning) {
        let Some(device) = self.device.get() else { return };
        let inventory = self.lock();
        let all = inventory.targets.iter().flat_map(|(id, all)| all.iter().map(move |target| (*id, target)));
        let of_unit = all.filter_map(|(id, target)| Some((id, target.lun_of(unit)?)));
        for (id, lun) in of_unit {
            // It may raise an interrupt, which the thread of a return may not do in the sandbox.
            let device = device.clone();
            self.remote.spawn(move |_| async move { device.look_again(id, lun) });
        }
    }
}
