//! What was seen of the host: target ports, and the units that the kernel has.

use super::*;

impl Inventory {
    /// What was seen of the host; `None` if there is none any more.
    pub(in crate::fc_port) fn saw(&mut self, glimpse: Option<&Glimpse>, now: Instant) {
        let (none, told) = (Glimpse::default(), self.orders.len());
        if glimpse.is_none() {
            self.warn(
                "its virtual port has gone: somebody has deleted it, or the adapter was reset or taken away; start the machine anew"
                    .into(),
            );
        }
        let seen = glimpse.unwrap_or(&none);
        self.see_ports(seen, now);
        self.see_units(seen, now);
        self.local = self.made_local(glimpse);
        let before = self.view.clone();
        if let Some(view) = self.other_view(now) {
            let is_online = |view: &View, number| {
                view.remotes.get(number).is_some_and(|remote| remote.state == RemoteState::Online)
            };
            let opens =
                view.remotes.keys().any(|number| is_online(&view, number) && !is_online(&before, number));
            // Ports first, then what has become of their units; but before commands go on it is known which units have gone. Behind all
            // that was to be told before.
            let place = if opens { self.orders.len() } else { told };
            self.orders.insert(place, Order::Say(News::View(view)));
        }
        self.looks.saw(now);
    }

    /// The target ports among those that are seen.
    pub(super) fn see_ports(&mut self, seen: &Glimpse, now: Instant) {
        let mut best: BTreeMap<u8, &Seen> = BTreeMap::new();
        let mut changed = false;
        for remote in &seen.remotes {
            let Some(wwpn) = remote.wwpn else { continue };
            let number = match self.numbers.get(wwpn) {
                Some(number) => Some(number),
                None if remote.is_target() => self.numbers.of(wwpn).map(|(number, new)| {
                    changed |= new;
                    number
                }),
                None => continue,
            };
            let Some(number) = number else {
                self.warn(
                    "there are more than 256 target ports, and the guest does not see the others; zone fewer to this port".into(),
                );
                continue;
            };
            // One that is back may have an entry of its former life.
            let place = best.entry(number).or_insert(remote);
            if target::rank(&remote.state) < target::rank(&place.state) {
                *place = remote;
            }
        }
        if changed {
            self.orders.push(Order::Keep(self.numbers.all().clone()));
        }
        let mut back = Vec::new();
        for (number, remote) in &best {
            let Some(wwpn) = remote.wwpn else { continue };
            let target = self.targets.entry(*number).or_insert_with(|| {
                self.looks.changed(now);
                Target::new(wwpn, now)
            });
            let offline =
                seen.units.iter().any(|unit| unit.remote == remote.name && unit.state == "transport-offline");
            if target.see(remote, offline, &self.wanted, now) {
                self.looks.changed(now);
                back.extend(target.returns().map(|_| *number));
            }
        }
        back.into_iter().for_each(|number| self.doubt_all(number, now));
        for (number, target) in &mut self.targets {
            if !best.contains_key(number) {
                target.lose();
            }
        }
    }

    /// The number of the target that a unit is at, and its own.
    pub(super) fn place_of(&self, seen: &Glimpse, sighting: &Sighting) -> Option<(u8, Lun)> {
        let remote = seen.remotes.iter().find(|remote| remote.name == sighting.remote)?;
        let number = self.numbers.get(remote.wwpn?)?;
        Some((number, sighting.address.lun.bytes()))
    }

    pub(super) fn see_units(&mut self, seen: &Glimpse, now: Instant) {
        let (mut there, mut renamed) = (BTreeSet::new(), Vec::new());
        for sighting in &seen.units {
            let Some((target, lun)) = self.place_of(seen, sighting) else { continue };
            if !self.wants(target, lun) {
                continue;
            }
            there.insert((target, lun));
            let unit = self.units.entry((target, lun)).or_insert_with(|| Unit::new(sighting.clone(), now));
            let (news, is_renamed) = unit.see(sighting, now);
            self.orders.extend(news.map(|news| Order::Say(News::Unit(target, lun, news))));
            renamed.extend(is_renamed.then_some((target, lun)));
        }
        // The array has put another one in its place, or its names have become more.
        renamed.into_iter().for_each(|(target, lun)| self.suspect(target, lun, now));
        self.units.retain(|(target, lun), unit| {
            if there.contains(&(*target, *lun)) {
                return true;
            }
            if let Some(target) = self.targets.get_mut(target).filter(|_| unit.stage == Stage::Going) {
                // What is there now is found as soon as the kernel has forgotten what was.
                target.ask_at(now);
            }
            let (stays, news) = unit.vanish();
            self.orders.extend(news.map(|news| Order::Say(News::Unit(*target, *lun, news))));
            stays
        });
    }

    /// Whether the guest shall see a unit of this number at a target.
    pub(super) fn wants(&mut self, target: u8, lun: Lun) -> bool {
        let [first, _, _, _, _, _, seventh, eighth] = lun;
        // Well known units (SAM-6, 4.7.7.5.1) are the target's own.
        const WELL_KNOWN: u8 = 0xc1;
        let fits = |number: u64| self.wanted.luns.iter().any(|(from, to)| (*from..=*to).contains(&number));
        let own = fc::Lun::from_bytes(lun);
        let number = own.flat().map_or(u64::from_be_bytes(lun), u64::from);
        if first == WELL_KNOWN || !(self.wanted.luns.is_empty() || fits(number)) {
            return false;
        }
        let has_room = (seventh, eighth) == (0, 0);
        if !has_room {
            // An array may name any number of them.
            self.warn_as(format!("levels {target}"), || {
                format!(
                    "LUN {own} of target {target} has four levels, of which a guest can be told three; it is left out, as all such of that \
                     target are"
                )
            });
        }
        has_room
    }

    pub(super) fn made_local(&self, glimpse: Option<&Glimpse>) -> LocalPort {
        let state = |word: &str| match word {
            "Online" | "Bypassed" | "Diagnostics" | "Loopback" => PortState::Online,
            "Not Present" => PortState::NotPresent,
            "Offline" => PortState::Offline,
            "Blocked" => PortState::Blocked,
            "Linkdown" => PortState::LinkDown,
            "Error" => PortState::Error,
            _ => PortState::Unknown,
        };
        let local = glimpse.map_or(PortState::NotPresent, |seen| state(&seen.host.state));
        LocalPort {
            primary: self.names,
            secondary: self.wanted.secondary,
            active: if local == PortState::NotPresent { Active::None } else { self.active },
            state: local,
            port_id: glimpse.and_then(|seen| seen.host.port_id).unwrap_or(0),
            fabric: glimpse.and_then(|seen| seen.host.fabric).map_or(0, Wwn::bits),
            speed: glimpse.map_or(0, Glimpse::speed),
            classes: glimpse.map_or(0, |seen| seen.classes),
            max_frame: glimpse.map_or(0, |seen| seen.max_frame),
        }
    }
}
