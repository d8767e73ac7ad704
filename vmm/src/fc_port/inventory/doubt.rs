//! Whether a unit is who it was. The kernel does not ask again where it has a device: when the array puts another one behind a LUN, the
//! guest's writes for the one would reach the other. So a unit is asked when there is a reason to doubt.

use devices::scsi::generic::{Identity, Who};
use fc::Address;

use super::*;

impl Inventory {
    /// All units of a target that the machine has are asked who they are.
    pub(super) fn doubt_all(&mut self, number: u8) {
        let Some(target) = self.targets.get_mut(&number) else { return };
        for (_, unit) in self.units.range_mut((number, [0; 8])..=(number, [0xff; 8])) {
            target.jobs_of_doubt(unit.doubt());
        }
    }

    /// Those that are doubted still, for they did not answer.
    pub(super) fn ask_doubted(&mut self, number: u8) {
        let Some(target) = self.targets.get_mut(&number) else { return };
        let units = self.units.range_mut((number, [0; 8])..=(number, [0xff; 8]));
        units.filter(|(_, unit)| unit.is_doubted()).for_each(|(_, unit)| target.jobs_of_doubt(unit.doubt()));
    }

    /// Whether units that the machine has are being asked.
    pub(super) fn doubts_any(&self, number: u8) -> bool {
        let mut units = self.units.range((number, [0; 8])..=(number, [0xff; 8]));
        units.any(|(_, unit)| unit.is_doubted())
    }

    /// A unit says something else of itself: nothing reaches it until it is known what.
    pub(super) fn suspect(&mut self, number: u8, lun: Lun) {
        let (Some(target), Some(unit)) = (self.targets.get_mut(&number), self.units.get_mut(&(number, lun)))
        else {
            return;
        };
        if unit.lose() {
            self.orders.push(Order::Say(News::Unit(number, lun, UnitNews::Lost)));
        }
        target.jobs_of_doubt(unit.doubt());
    }

    /// What a unit said of who it is, which `was` this one.
    pub(super) fn said_who(&mut self, number: u8, address: Address, was: &Identity, who: &Who, now: Instant) {
        let lun = address.lun.bytes();
        let (Some(target), Some(unit)) = (self.targets.get_mut(&number), self.units.get_mut(&(number, lun)))
        else {
            return;
        };
        // It is another one already, or elsewhere.
        let Some(seat) = unit.doubted(address, was) else { return };
        match who {
            Who::Same => {
                if unit.stage == Stage::Away {
                    // What it says otherwise is for the kernel, too.
                    target.add(Job::Rescan(seat, false));
                }
                unit.believe(now);
            }
            Who::Other => {
                // At once: what goes takes its time, and the port may be online before.
                if unit.lose() {
                    self.orders.push(Order::Say(News::Unit(number, lun, UnitNews::Lost)));
                }
                self.orders.push(Order::Say(News::Unit(number, lun, UnitNews::Gone)));
                unit.be_another(now);
                // The kernel would take its own for it.
                unit.stage = Stage::Going;
                target.forget(lun);
                target.add(Job::Delete(seat));
                target.ask_at(now);
                let shown = fc::Lun::from_bytes(lun);
                self.warn(format!(
                    "LUN {shown} of target {number} ({address}) has become another device at the array; the guest gets it as a new one"
                ));
            }
            // It is asked again.
            Who::Nothing(_) => {}
        }
    }
}
