//! Remote ports that nobody tells of any more: commands wait for one that is blocked, and they must not do so for ever. Such a port is
//! shown as if it were there, and its units are doubted: when it is back they may be others, and nobody has asked them, so that their
//! commands end as on a path that is lost. Commands to a port that is lost wait for nothing, and it stays so.

use std::collections::{BTreeMap, BTreeSet};
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
    /// Targets whose units are doubted here.
    doubted: BTreeSet<u8>,
}

/// What is to be shown.
#[derive(Debug, Default)]
pub(super) struct Shown {
    pub(super) view: View,
    /// Targets whose units get nothing from now on, before it is shown.
    pub(super) doubted: BTreeSet<u8>,
    /// Those whose units do again, but for those that the process doubts.
    pub(super) trusted: BTreeSet<u8>,
}

impl Blocked {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            told: View::default(),
            since: BTreeMap::new(),
            is_over: false,
            doubted: BTreeSet::new(),
        }
    }

    /// Takes what is told; gives what is to be shown.
    pub(super) fn take(&mut self, told: View, now: Instant) -> Shown {
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
    pub(super) fn shown(&mut self, now: Instant) -> Shown {
        for (since, is_over) in self.since.values_mut() {
            *is_over |= now.saturating_duration_since(*since) >= self.limit;
        }
        let mut view = self.told.clone();
        let is_due =
            |target: &u8| self.is_over || self.since.get(target).is_some_and(|(_, is_over)| *is_over);
        let blocked = view.remotes.iter_mut().filter(|(_, port)| port.state == RemoteState::Blocked);
        let mut due = BTreeSet::new();
        for (target, port) in blocked.filter(|(target, _)| is_due(target)) {
            port.state = RemoteState::Online;
            due.insert(*target);
        }
        let is_online = |target: &&u8| {
            self.told.remotes.get(*target).is_some_and(|port| port.state == RemoteState::Online)
        };
        // The process asks all units of a port before it tells that it is there.
        let trusted: BTreeSet<u8> = self.doubted.iter().filter(is_online).copied().collect();
        let doubted = &due - &self.doubted;
        self.doubted = &(&self.doubted - &trusted) | &due;
        Shown { view, doubted, trusted }
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

    fn states(shown: &Shown) -> Vec<RemoteState> {
        shown.view.remotes.values().map(|port| port.state).collect()
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

    /// What is behind a port may be something else when it is back.
    #[test]
    fn units_of_a_port_that_nobody_tells_of_are_doubted() {
        let (mut ports, begin) = (Blocked::new(5 * SECOND), Instant::now());
        let sets = |shown: Shown| {
            (shown.doubted.into_iter().collect::<Vec<_>>(), shown.trusted.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(sets(ports.take(view(&[Waits, Waits, Online]), begin)), (vec![], vec![]));
        assert_eq!(sets(ports.shown(begin + 5 * SECOND)), (vec![0, 1], vec![]));
        assert_eq!(sets(ports.shown(begin + 6 * SECOND)), (vec![], vec![]));
        // The process goes on, and has asked those of one.
        assert_eq!(sets(ports.take(view(&[Online, Lost, Online]), begin + 7 * SECOND)), (vec![], vec![0]));
        assert_eq!(sets(ports.take(view(&[Online, Waits, Online]), begin + 8 * SECOND)), (vec![], vec![]));
        assert_eq!(sets(ports.take(view(&[Waits, Online, Online]), begin + 9 * SECOND)), (vec![], vec![1]));
        ports.end();
        assert_eq!(sets(ports.shown(begin + 9 * SECOND)), (vec![0], vec![]));
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
