//! To another port of the host, with other names, which sees the same: all units go on behind that.

use super::*;

impl Inventory {
    /// Which of its names it has logged in with.
    pub(in crate::fc_port) fn active(&self) -> Active {
        self.active
    }

    /// The first of its names.
    pub(in crate::fc_port) fn first_names(&self) -> Names {
        self.names
    }

    /// What the machine has here and another port has not, as that sees it: lines without an end. What is lost here at the moment counts: it
    /// may come back to these names alone. Not so target ports that the kernel has given up, as long as there are others.
    pub(in crate::fc_port) fn missing(&self, seen: &Glimpse) -> Vec<String> {
        let mut missing = Vec::new();
        let has_remote = |target: &Target| {
            let same = |remote: &&Seen| remote.wwpn == Some(target.wwpn) && remote.is_target();
            seen.remotes.iter().filter(same).any(|remote| target::rank(&remote.state) == 0)
        };
        let running = seen.units.iter().filter(|unit| unit.is_running());
        let there: BTreeMap<(u8, Lun), &Sighting> =
            running.filter_map(|unit| Some((self.place_of(seen, unit)?, unit))).collect();
        let all_given_up = self.targets.values().all(Target::is_given_up);
        let counts = |target: &Target| all_given_up || !target.is_given_up();
        for (number, target) in self.targets.iter().filter(|(_, target)| counts(target)) {
            if !has_remote(target) {
                let here = if target.is_online() { "" } else { ", and is lost here at the moment" };
                missing.push(format!("target {number} (port {}) is not there{here}", target.wwpn));
                continue;
            }
            let units = self.units.range((*number, [0; 8])..=(*number, [0xff; 8]));
            for ((_, lun), unit) in units.filter(|(_, unit)| unit.is_told()) {
                let name = |seat: Option<&Sighting>| seat.and_then(|seat| seat.wwid.clone());
                let what = match there.get(&(*number, *lun)).copied() {
                    None if unit.seat.is_none() => "not there, and is lost here at the moment",
                    None => "not there",
                    Some(found) => {
                        let names = name(unit.seat.as_ref()).zip(name(Some(found)));
                        if names.is_none_or(|(here, there)| here == there) {
                            continue;
                        }
                        "another one"
                    }
                };
                missing.push(format!("LUN {} of target {number} is {what}", fc::Lun::from_bytes(*lun)));
            }
        }
        missing
    }

    /// All is seen from another port from now on, with these of its names; what that has `seen`. Commands wait, as they do for ports that
    /// are lost and back, until each unit is open there and has said who it is.
    pub(in crate::fc_port) fn move_to(&mut self, active: Active, seen: &Glimpse, now: Instant) {
        self.active = active;
        let there = self.units.iter().filter(|(_, unit)| unit.stage == Stage::There);
        let there: Vec<_> = there.map(|(place, _)| *place).collect();
        // On the way back it is what was there before.
        let moved = std::mem::take(&mut self.moved).into_iter().filter(|place| self.is_away(place));
        self.moved = moved.chain(there).collect();
        self.targets.values_mut().filter(|target| target.is_online()).for_each(Target::lose);
        self.saw(Some(seen), now);
    }

    /// Whether the machine has a unit still which the host has not.
    fn is_away(&self, place: &(u8, Lun)) -> bool {
        self.units.get(place).is_some_and(|unit| unit.stage == Stage::Away)
    }

    /// What has not come back since all went over to another port. What has gone for good has not to.
    pub(in crate::fc_port) fn left_behind(&self) -> Vec<String> {
        let away = self.moved.iter().filter(|place| self.is_away(place));
        away.map(|(number, lun)| format!("LUN {} of target {number}", fc::Lun::from_bytes(*lun))).collect()
    }

    /// Whether commands go on at all ports, and to all units.
    pub(in crate::fc_port) fn has_moved(&self) -> bool {
        self.targets.values().all(|target| target.returns().is_none())
            && !self.moved.iter().any(|place| self.is_away(place))
    }
}
