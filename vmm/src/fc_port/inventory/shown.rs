//! What the machine is shown of target ports.

use super::*;

impl Inventory {
    /// What the machine is shown, if that is something else than before. A port that is back is not there before its units are: commands
    /// would end at devices that are not open yet, or are others now.
    pub(super) fn other_view(&mut self, now: Instant) -> Option<View> {
        self.end_returns(now);
        let remote = |(number, target): (&u8, &Target)| {
            let names = Names { wwnn: target.wwnn, wwpn: target.wwpn.bits() };
            let state = if target.returns().is_some() { RemoteState::Blocked } else { target.state };
            (*number, RemotePort { names, port_id: target.port_id, state, transport: 0, vport: 0 })
        };
        let view =
            View { local: self.local, remotes: self.targets.iter().map(remote).collect(), ..View::default() };
        (view != self.view).then(|| self.view.clone_from(&view)).map(|()| view)
    }

    /// A port that is back is there when its units are, or say nothing. Once it is there it is so until it is lost.
    fn end_returns(&mut self, now: Instant) {
        let numbers: Vec<u8> = self.targets.keys().copied().collect();
        for number in numbers {
            let Some(target) = self.targets.get_mut(&number) else { continue };
            let Some(until) = target.returns() else { continue };
            let looked = target.has_looked(self.looks.seen());
            let mut units = self.units.range((number, [0; 8])..=(number, [0xff; 8]));
            if now < until && units.any(|(_, unit)| unit.holds_up(looked)) {
                continue;
            }
            target.has_returned();
            // The others do not wait for those that have not said who they are.
            self.hold_doubted(number, now);
        }
    }
}
