//! Remote ports that nobody tells of any more: commands wait for one that is blocked, and they must not do so for ever. Such a port is
//! shown as if it were there, and the host's kernel decides what becomes of each command, as it does without this. Commands to one that is
//! lost wait for nothing, and it stays so: when it is back its units may be others, and nobody has asked them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hba_virtio_scsi::fc::{RemoteState, View};

/// What was told of ports, and how long some have been blocked.
pub(super) struct Blocked {
    /// How long the process has to tell what became of one.
    limit: Duration,
    told: View,
    /// Since when each that is blocked is, and whether it is shown as if it were not.
    since: BTreeMap<u8, (Instant, bool)>,
    /// Nobody tells anything any more.
    is_over: bool,
}

impl Blocked {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, told: View::default(), since: BTreeMap::new(), is_over: false }
    }

    /// Takes what is told; gives what is to be shown.
    pub(super) fn take(&mut self, told: View, now: Instant) -> View {
        let is_over = self.is_over;
        let is_blocked = |target: &u8| {
            !is_over && told.remotes.get(target).is_some_and(|port| port.state == RemoteState::Blocked)
        };
        self.since.retain(|target, _| is_blocked(target));
        for target in told.remotes.keys().filter(|target| is_blocked(target)) {
            self.since.entry(*target).or_insert((now, false));
        }
        self.told = told;
        self.shown(now)
    }

    /// What is to be shown when nothing new is told.
    pub(super) fn shown(&mut self, now: Instant) -> View {
        let mut view = self.told.clone();
        for (target, (since, is_over)) in &mut self.since {
            *is_over |= now.saturating_duration_since(*since) >= self.limit;
            if let Some(port) = view.remotes.get_mut(target).filter(|_| *is_over) {
                port.state = RemoteState::Online;
            }
        }
        let blocked = view.remotes.values_mut().filter(|port| port.state == RemoteState::Blocked);
        if self.is_over {
            blocked.for_each(|port| port.state = RemoteState::Online);
        }
        view
    }

    /// Nobody tells anything any more: from now on no port is shown as blocked. One that is lost stays so.
    pub(super) fn end(&mut self) {
        self.is_over = true;
        self.since.clear();
    }

    /// When something else is to be shown, if nothing is told before; `None` if nothing will be.
    pub(super) fn until(&self, now: Instant) -> Option<Duration> {
        let waits = self.since.values().filter(|(_, is_over)| !is_over);
        waits.map(|(since, _)| self.limit.saturating_sub(now.saturating_duration_since(*since))).min()
    }
}

#[cfg(test)]
mod tests {
    use hba_virtio_scsi::fc::{Names, RemotePort};

    use super::RemoteState::{Blocked as Waits, Lost, Online};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn view(states: &[RemoteState]) -> View {
        let port = |state| RemotePort {
            names: Names { wwnn: 1, wwpn: 2 },
            port_id: 3,
            state,
            transport: 0,
            vport: 0,
        };
        View { remotes: (0..).zip(states.iter().copied().map(port)).collect(), ..View::default() }
    }

    fn states(view: &View) -> Vec<RemoteState> {
        view.remotes.values().map(|port| port.state).collect()
    }

    #[test]
    fn a_port_is_blocked_for_so_long_and_then_the_kernel_decides() {
        let (mut ports, begin) = (Blocked::new(5 * SECOND), Instant::now());
        assert_eq!(states(&ports.take(view(&[Waits, Lost, Online]), begin)), [Waits, Lost, Online]);
        assert_eq!(ports.until(begin + SECOND), Some(4 * SECOND));
        let later = ports.take(view(&[Waits, Lost, Waits]), begin + 2 * SECOND);
        assert_eq!(states(&later), [Waits, Lost, Waits]);
        assert_eq!(ports.until(begin + 6 * SECOND), Some(Duration::ZERO));
        assert_eq!(states(&ports.shown(begin + 5 * SECOND)), [Online, Lost, Waits]);
        assert_eq!(ports.until(begin + 5 * SECOND), Some(2 * SECOND));
        // The same told once more changes nothing, and another state begins anew.
        assert_eq!(states(&ports.take(view(&[Waits, Lost, Lost]), begin + 6 * SECOND)), [Online, Lost, Lost]);
        assert_eq!(ports.until(begin + 6 * SECOND), None);
        ports.take(view(&[Lost, Lost, Lost]), begin + 7 * SECOND);
        assert_eq!(states(&ports.take(view(&[Waits]), begin + 8 * SECOND)), [Waits]);
    }

    #[test]
    fn without_anybody_who_tells_no_port_is_waited_for() {
        let (mut ports, begin) = (Blocked::new(SECOND), Instant::now());
        ports.take(view(&[Waits, Lost, Online]), begin);
        ports.end();
        assert_eq!(
            states(&ports.shown(begin)),
            [Online, Lost, Online],
            "what is lost may be another one by now"
        );
        assert_eq!(ports.until(begin), None);
        assert_eq!(states(&ports.take(view(&[Waits, Waits, Lost]), begin)), [Online, Online, Lost]);
        assert_eq!(ports.until(begin), None);
    }
}
