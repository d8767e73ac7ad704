//! What came of jobs at target ports: which units they have, and which they have not any more.

use super::*;

impl Inventory {
    /// A job is over.
    pub(in crate::fc_port) fn done(&mut self, number: u8, job: &Job, done: Done, now: Instant) {
        let Some(target) = self.targets.get_mut(&number) else { return };
        let begun = target.over(job, now);
        match (job, done) {
            (Job::Ask(address), Done::Asked(luns)) => self.answered(number, *address, luns, begun, now),
            (Job::Ask(_), Done::Over(_)) => {}
            (Job::Who(address, was), done) => {
                let who = match done {
                    Done::Who(who) => who,
                    _ => Who::Nothing("there was nobody to ask it".into()),
                };
                self.said_who(number, (*address, was), &who, begun, now);
            }
            (Job::Scan(_, false), _) => self.scanned(number, now),
            (Job::Delete(seat) | Job::Rescan(seat, _), Done::Over(Some(why))) => {
                self.not_done(number, job, seat, &why, now);
            }
            (Job::Rescan(sighting, true), _) => {
                target.lanes.done(job);
                let lun = sighting.address.lun.bytes();
                if self.units.get(&(number, lun)).is_some_and(|unit| unit.stage == Stage::There) {
                    self.orders.push(Order::Say(News::Unit(number, lun, UnitNews::Resized)));
                }
            }
            (Job::Tune(remote, _), Done::Over(Some(why))) => {
                self.warn_as(format!("tune {number} {why}"), || {
                    format!("{remote} does not take the times of [hba.fc]: {why}; it keeps its driver's own")
                });
            }
            (Job::Rescan(sighting, false), Done::Over(None)) => {
                target.lanes.done(job);
                if let Some(unit) = self.seated(number, sighting) {
                    unit.is_heard(now);
                }
            }
            // One line for all that are alike.
            (Job::Scan(address, true), Done::Over(Some(why))) => {
                self.warn_as(format!("scan {number} {why}"), || {
                    format!("the guest does not get LUN {} of target {number}: {why}", address.lun)
                });
            }
            _ => target.lanes.done(job),
        }
    }

    /// The unit of a target that is where it was seen.
    fn seated(&mut self, number: u8, seat: &Sighting) -> Option<&mut Unit> {
        let unit = self.units.get_mut(&(number, seat.address.lun.bytes()))?;
        let is_it = |has: &Sighting| has.number == seat.number && has.address == seat.address;
        unit.seat.as_ref().is_some_and(is_it).then_some(unit)
    }

    /// The kernel did not do what it was told. A few times it is told again.
    fn not_done(&mut self, number: u8, job: &Job, seat: &Sighting, why: &str, now: Instant) {
        let is_there =
            self.units.values().any(|unit| unit.seat.as_ref().is_some_and(|has| has.number == seat.number));
        let Some(target) = self.targets.get_mut(&number) else { return };
        if !is_there {
            target.lanes.done(job);
        } else if !target.lanes.fails(job, now) {
            if matches!(job, Job::Rescan(_, false))
                && let Some(unit) = self.seated(number, seat)
            {
                unit.is_not_heard(now);
            }
            let (lun, address) = (seat.address.lun, seat.address);
            let (what, then) = match job {
                Job::Delete(_) => ("delete", "the guest does not get what the array has there now"),
                _ => ("rescan", "what the host knows of it may be old"),
            };
            self.warn(format!(
                "LUN {lun} of target {number} ({address}): the host's kernel does not take {what} ({why}); {then}; write 1 to {} by hand",
                seat.directory.join(what).display()
            ));
        }
    }

    /// What a target port said that its units are, when it was asked at `begun`.
    pub(super) fn answered(
        &mut self,
        number: u8,
        asked: Address,
        luns: Luns,
        begun: Option<Instant>,
        now: Instant,
    ) {
        // One that took its time may be older than what another unit has said since, or than a loss of the port.
        let nothing = matches!(luns, Luns::Nothing(_));
        if !nothing && self.targets.get_mut(&number).is_none_or(|target| !target.is_news(begun)) {
            return;
        }
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
        let known: BTreeSet<Lun> = all.into_iter().collect();
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
            self.doubt_all(number, now);
        }
        let mut lacking = Vec::new();
        for lun in &known {
            let seated = self.units.get(&(number, *lun)).is_some_and(|unit| unit.seat.is_some());
            if !seated && self.wants(number, *lun) {
                lacking.push(*lun);
            }
        }
        if let Some(target) = self.targets.get_mut(&number) {
            target.find(asked, &known, &lacking, now);
        }
    }

    /// Units that the target does not know any more.
    pub(super) fn miss(&mut self, number: u8, is: &dyn Fn(Lun) -> bool, now: Instant) {
        let Some(target) =
            self.targets.get_mut(&number).filter(|target| target.is_online() && !target.is_young(now))
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
            // At once: what goes takes its time, and another one may have its place by then.
            orders.extend(unit.lose().then_some(Order::Say(News::Unit(number, *lun, UnitNews::Lost))));
            orders.push(Order::Say(News::Unit(number, *lun, UnitNews::Gone)));
            match unit.seat.clone() {
                Some(seat) => {
                    unit.stage = Stage::Going;
                    target.lanes.add(Job::Delete(seat));
                }
                None => gone.push(*lun),
            }
        }
        gone.into_iter().for_each(|lun| drop(self.units.remove(&(number, lun))));
    }

    /// The kernel has looked at a target that had no unit.
    pub(super) fn scanned(&mut self, number: u8, now: Instant) {
        let known = |target: &&Target| target.is_online() && target.scans >= SCANS && !target.is_young(now);
        if self.targets.get(&number).filter(known).is_none() {
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
