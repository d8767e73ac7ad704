//! Whether a unit is who it was. The kernel does not ask again where it has a device: when the array puts another one behind a LUN, the
//! guest's writes for the one would reach the other. So a unit is asked when there is a reason to doubt, and one after the other without
//! a reason, for not every array tells. That it says once that it is another one may be a mistake: it gets nothing, and is asked again.

use devices::scsi::generic::{Identity, Who};
use fc::Address;

use super::*;

impl Inventory {
    /// All units of a target that the machine has are asked who they are.
    pub(super) fn doubt_all(&mut self, number: u8, now: Instant) {
        let units = self.units.range_mut((number, [0; 8])..=(number, [0xff; 8]));
        units.for_each(|(_, unit)| unit.doubt(now));
    }

    /// A unit says something else of itself: nothing reaches it until it is known what.
    pub(super) fn suspect(&mut self, number: u8, lun: Lun, now: Instant) {
        let Some(unit) = self.units.get_mut(&(number, lun)) else { return };
        if unit.suspect(now) {
            let target = self.targets.get_mut(&number).filter(|target| target.is_online());
            target.zip(unit.asks(now)).into_iter().for_each(|(target, job)| target.lanes.hurry(job));
            self.hold(number, lun, now);
        }
    }

    /// Nothing reaches a unit from now on, until it has said who it is.
    fn hold(&mut self, number: u8, lun: Lun, now: Instant) {
        if self.units.get_mut(&(number, lun)).is_some_and(|unit| unit.hold(now)) {
            self.orders.push(Order::Say(News::Unit(number, lun, UnitNews::Doubted)));
        }
    }

    /// The same of those of a target that were to say it by now.
    pub(super) fn hold_doubted(&mut self, number: u8, now: Instant) {
        let units = self.units.range((number, [0; 8])..=(number, [0xff; 8]));
        let doubted = units.filter(|(_, unit)| unit.is_doubted()).map(|((_, lun), _)| *lun);
        let doubted: Vec<Lun> = doubted.collect();
        doubted.into_iter().for_each(|lun| self.hold(number, lun, now));
    }

    /// Those that are doubted are asked, again and again; but their commands do not wait for ever.
    pub(super) fn ask_doubted(&mut self, now: Instant) {
        for ((number, lun), unit) in self.units.iter_mut().filter(|(_, unit)| unit.is_doubted()) {
            let target = self.targets.get_mut(number).filter(|target| target.is_online());
            let (Some(target), Some(seat)) = (target, unit.seat.as_ref()) else { continue };
            if !target.lanes.asks_who(seat.address) {
                unit.asks(now).into_iter().for_each(|job| target.lanes.add(job));
            }
            if unit.is_overdue(now) && unit.lose() {
                self.orders.push(Order::Say(News::Unit(*number, *lun, UnitNews::Lost)));
            }
        }
    }

    /// The unit of a target that was not asked for longest, if that is long, is asked who it is.
    pub(super) fn check_one(&mut self, number: u8, now: Instant) {
        let Some(target) = self.targets.get_mut(&number).filter(|target| target.lanes.can_check()) else {
            return;
        };
        let units = self.units.range((number, [0; 8])..=(number, [0xff; 8]));
        let asked = |unit: &Unit| unit.seat.as_ref().is_some_and(|seat| target.lanes.asks_who(seat.address));
        let due = units.filter_map(|(_, unit)| unit.check(now).filter(|_| !asked(unit)));
        if let Some((_, job)) = due.min_by_key(|(checked, _)| *checked) {
            target.lanes.add(job);
        }
    }

    /// What a unit said of who it is, which `was` this one, when it was asked at `begun`.
    pub(super) fn said_who(
        &mut self,
        number: u8,
        (address, was): (Address, &Identity),
        who: &Who,
        begun: Option<Instant>,
        now: Instant,
    ) {
        let lun = address.lun.bytes();
        let (Some(target), Some(unit)) = (self.targets.get_mut(&number), self.units.get_mut(&(number, lun)))
        else {
            return;
        };
        // It is another one already, or elsewhere.
        let Some(seat) = unit.asked(address, was) else { return };
        let young = target.is_young(now);
        let say = |news| Order::Say(News::Unit(number, lun, news));
        match who {
            Who::Same => {
                let (is_changed, goes_on) = unit.believe(begun, now);
                if is_changed {
                    // What it says otherwise is for the kernel, too.
                    target.lanes.add(Job::Rescan(seat, false));
                }
                self.orders.extend(goes_on.then(|| say(UnitNews::Trusted)));
            }
            Who::Other if !unit.disbelieve(young, now) => self.hold(number, lun, now),
            Who::Other => {
                // At once: what goes takes its time, and the port may be online before.
                self.orders.extend(unit.lose().then(|| say(UnitNews::Lost)));
                self.orders.push(say(UnitNews::Gone));
                self.forget(number, lun, seat, now);
                let shown = fc::Lun::from_bytes(lun);
                self.warn(format!(
                    "LUN {shown} of target {number} ({address}) has become another device at the array; the guest gets it as a new one"
                ));
            }
            // It is asked again.
            Who::Nothing(_) => unit.be_silent(now),
        }
    }

    /// The kernel shall forget a unit that is another one now, and what it knew of the former one: its length, its limits.
    pub(super) fn forget(&mut self, number: u8, lun: Lun, seat: Sighting, now: Instant) {
        let (Some(target), Some(unit)) = (self.targets.get_mut(&number), self.units.get_mut(&(number, lun)))
        else {
            return;
        };
        unit.be_another(now);
        unit.stage = Stage::Going;
        target.forget(lun);
        target.lanes.add(Job::Delete(seat));
    }
}
