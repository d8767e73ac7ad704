//! What came of jobs at target ports: which units they have, and which they have not any more.

use super::*;

impl Inventory {
    /// A job is over.
    pub(in crate::fc_port) fn done(&mut self, number: u8, job: &Job, done: Done, now: Instant) {
        let Some(target) = self.targets.get_mut(&number) else { return };
        target.over(job, now);
        match (job, done) {
            (Job::Ask(address), Done::Asked(luns)) => self.answered(number, *address, luns, now),
            (Job::Ask(_), Done::Over(_)) => {}
            (Job::Who(address, was), Done::Who(who)) => self.said_who(number, *address, was, &who, now),
            (Job::Scan(_, false), _) => self.scanned(number, now),
            (Job::Rescan(sighting, true), _) => {
                let lun = sighting.address.lun.bytes();
                if self.units.get(&(number, lun)).is_some_and(|unit| unit.stage == Stage::There) {
                    self.orders.push(Order::Say(News::Unit(number, lun, UnitNews::Resized)));
                }
            }
            (Job::Tune(remote, _), Done::Over(Some(why))) => {
                let text =
                    format!("{remote} does not take the times of [hba.fc]: {why}; it keeps its driver's own");
                self.warn(text);
            }
            // One line for all that are alike.
            (Job::Scan(address, true), Done::Over(Some(why))) => self.warn_as(
                format!("scan {number} {why}"),
                format!("the guest does not get LUN {} of target {number}: {why}", address.lun),
            ),
            (_, Done::Over(Some(why))) => tracing::debug!("{job:?}: {why}"),
            _ => {}
        }
    }

    /// What a target port said that its units are.
    pub(super) fn answered(&mut self, number: u8, asked: Address, luns: Luns, now: Instant) {
        let all = match luns {
            Luns::All(all) => all,
            // It knows nothing of this one.
            Luns::NoUnit => {
                self.miss(number, &|lun| lun == asked.lun.bytes(), now);
                return;
            }
            // Another one may answer.
            Luns::Nothing(_) => {
                if let Some(unit) = self.units.get_mut(&(number, asked.lun.bytes())) {
                    unit.silent = unit.silent.saturating_add(1);
                }
                return;
            }
        };
        let known: BTreeSet<Lun> = all.iter().copied().collect();
        self.miss(number, &|lun| !known.contains(&lun), now);
        for (_, unit) in self.units.range_mut((number, [0; 8])..=(number, [0xff; 8])) {
            if unit.seat.as_ref().is_some_and(|seat| known.contains(&seat.address.lun.bytes())) {
                unit.missing = 0;
                if unit.seat.as_ref().is_some_and(|seat| seat.address == asked) {
                    unit.silent = 0;
                }
            }
        }
        if self.targets.get_mut(&number).is_some_and(Target::takes_doubt) {
            self.doubt_all(number);
        }
        self.ask_doubted(number);
        for lun in all {
            let seated = self.units.get(&(number, lun)).is_some_and(|unit| unit.seat.is_some());
            if !seated
                && self.wants(lun)
                && let Some(target) = self.targets.get_mut(&number)
            {
                target.find(asked, lun, now);
            }
        }
    }

    /// Units that the target does not know any more.
    pub(super) fn miss(&mut self, number: u8, is: &dyn Fn(Lun) -> bool, now: Instant) {
        let Some(target) =
            self.targets.get_mut(&number).filter(|target| !target.is_back_since(RECOVERY, now))
        else {
            return;
        };
        let orders = &mut self.orders;
        let mut gone = Vec::new();
        for ((_, lun), unit) in self.units.range_mut((number, [0; 8])..=(number, [0xff; 8])) {
            if !is(*lun) || !unit.is_told() {
                continue;
            }
            unit.missing += 1;
            if unit.missing < TIMES {
                target.ask_at(now + SURE);
                continue;
            }
            orders.push(Order::Say(News::Unit(number, *lun, UnitNews::Gone)));
            match unit.seat.clone() {
                Some(seat) => {
                    unit.stage = Stage::Going;
                    target.add(Job::Delete(seat));
                }
                None => gone.push(*lun),
            }
        }
        gone.into_iter().for_each(|lun| drop(self.units.remove(&(number, lun))));
    }

    /// The kernel has looked at a target that had no unit.
    pub(super) fn scanned(&mut self, number: u8, now: Instant) {
        let known = |target: &&Target| target.scans >= SCANS && !target.is_back_since(RECOVERY, now);
        let Some(target) = self.targets.get(&number).filter(known) else { return };
        if target.state != RemoteState::Online {
            return;
        }
        let orders = &mut self.orders;
        self.units.retain(|(target, lun), unit| {
            let over = *target == number && unit.seat.is_none() && unit.is_told();
            if over {
                orders.push(Order::Say(News::Unit(number, *lun, UnitNews::Gone)));
            }
            !over
        });
    }
}
