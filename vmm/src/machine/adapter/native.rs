//! Units with numbers that an array has given them, which come and go with what it shows.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use devices::scsi::{Lun, Target};

use super::{Adapter, Attached, ensure_empty};
use crate::machine::closing::CloseError;
use crate::machine::host_unit::HostUnit;

impl Adapter {
    /// The target with this number. If there is none it is made, without units, and put behind the HBA, if that is there yet.
    pub(in crate::machine) fn target(&self, id: u8) -> Result<Arc<Target>> {
        let mut inventory = self.lock();
        ensure!(!inventory.over, "the machine ends");
        if let Some(target) = inventory.targets.get(&id).and_then(|all| all.first()) {
            return Ok(target.clone());
        }
        let target = self.group.target();
        if let Some(device) = self.device.get() {
            device.attach_targets(id, std::slice::from_ref(&target))?;
        }
        inventory.targets.insert(id, vec![target.clone()]);
        self.add_port(id);
        Ok(target)
    }

    /// Attaches a unit of the host at a number that the array has given it. The guest is told.
    pub(in crate::machine) fn attach_native(
        &self,
        target: u8,
        lun: Lun,
        unit: HostUnit,
        read_only: bool,
        bounce: bool,
    ) -> Result<()> {
        if let Some(device) = self.device.get() {
            self.warn_of_limits(device, &unit);
        }
        let at = self.target(target)?;
        let known = Attached::passed(&unit, read_only, bounce);
        let mut inventory = self.lock();
        ensure!(!inventory.over, "the machine ends");
        ensure_empty(&inventory, target, lun)?;
        at.attach_native(lun, unit.unit())?;
        inventory.units.insert((target, lun), known);
        Ok(())
    }

    /// Detaches such a unit. It waits for the host as [`Adapter::detach`] does; the guest has lost the unit in any case.
    ///
    /// # Errors
    /// What was not flushed may be lost, or the unit is not closed yet.
    pub(in crate::machine) fn detach_native(&self, target: u8, lun: Lun) -> Result<()> {
        self.detach_at(target, lun).map_err(|error| match error.downcast_ref() {
            // The array has taken it away, and a disk that is gone cannot be flushed.
            Some(CloseError::Failed(why)) => {
                anyhow!("what the guest wrote there last and did not flush may be lost: {why}")
            }
            _ => error,
        })
    }

    /// The capacity of such a unit has changed. The guest is told.
    pub(in crate::machine) fn resized_native(&self, target: u8, lun: Lun) -> Result<()> {
        let inventory = self.lock();
        let at = inventory.targets.get(&target).and_then(|all| all.first()).context("no such target")?;
        at.capacity_changed(lun);
        Ok(())
    }
}
