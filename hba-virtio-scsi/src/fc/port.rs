//! The port that the guest has: what it was shown last, and what follows from a change.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use devices::scsi::{Nexus, Target};

use super::gate::Gate;
use super::rescan::Looks;
use super::vports::Vports;
use super::wire::{self, FcConfig};
use super::{LocalPort, Names, RemotePort, RemoteState, San};
use crate::event::{Events, look_again, rport};
use crate::transport::Transport;

/// The port of an HBA on its fabric.
pub(crate) struct Port {
    san: Arc<dyn San>,
    /// The ways to the targets.
    pub(crate) gate: Gate,
    /// Looks at the fabric that a driver waits for.
    pub(crate) looks: Looks,
    /// Ports that the driver has created.
    pub(crate) vports: Vports,
    /// Answers for ports of which no logical unit is known.
    pub(crate) nobody: Arc<Nexus>,
    events: Arc<Events>,
    driver: OnceLock<Driver>,
    /// Who tells of a change does so before the next one looks.
    telling: Mutex<()>,
    shown: Mutex<Shown>,
    generation: AtomicU8,
}

/// Who is told of changes.
struct Driver {
    transport: Weak<Transport>,
    /// A port with this number is there which a driver has not found there before.
    came: Box<dyn Fn(u8) + Send + Sync>,
}

struct Shown {
    remotes: BTreeMap<u8, Remote>,
    local: LocalPort,
    /// Those that the driver has created.
    vports: BTreeMap<u16, LocalPort>,
}

/// A remote port, as it was shown.
struct Remote {
    port: RemotePort,
    /// It has never been online, or was given up since: who looks for units then finds none.
    is_news: bool,
}

/// What became of a remote port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It was lost.
    Lost,
    /// It is there: for the first time, or back. Whether a driver may have found nothing there before.
    Online { is_news: bool },
    /// It has another name or N_Port_ID.
    Changed,
}

/// What changed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Change {
    /// What the configuration space says.
    config: bool,
    /// What the ports that the driver has created are like.
    vports: bool,
    /// Remote ports, by target number.
    turns: Vec<(u8, Turn)>,
}

/// What a driver knows a remote port by, and who sees it.
fn identity(port: &RemotePort) -> (Names, u32, u16) {
    (port.names, port.port_id, port.vport)
}

impl Port {
    pub(crate) fn new(san: Arc<dyn San>, events: Arc<Events>) -> Self {
        let shown = Shown { remotes: BTreeMap::new(), local: LocalPort::default(), vports: BTreeMap::new() };
        let port = Self {
            san,
            gate: Gate::new(),
            looks: Looks::default(),
            vports: Vports::default(),
            nobody: Nexus::new(Target::new(), None),
            events,
            driver: OnceLock::new(),
            telling: Mutex::default(),
            shown: Mutex::new(shown),
            generation: AtomicU8::new(0),
        };
        port.look();
        port
    }

    pub(crate) fn san(&self) -> &dyn San {
        &*self.san
    }

    /// Says where changes are told, and who tells a driver that looks for itself of a port that came.
    pub(crate) fn connect(&self, transport: &Arc<Transport>, came: impl Fn(u8) + Send + Sync + 'static) {
        let driver = Driver { transport: Arc::downgrade(transport), came: Box::new(came) };
        // Once.
        let _ = self.driver.set(driver);
    }

    /// The target with the smallest number from `from` on; `vports`: of all ports of the guest, not of the adapter's own alone.
    pub(crate) fn target(&self, from: u8, vports: bool) -> Option<(u8, RemotePort)> {
        let shown = self.lock();
        let mut all = shown.remotes.range(from..).map(|(id, remote)| (*id, remote.port));
        all.find(|(_, port)| vports || port.vport == 0)
    }

    /// A port that the driver has created.
    pub(crate) fn vport(&self, number: u16) -> Option<LocalPort> {
        self.lock().vports.get(&number).copied()
    }

    /// Whether a port of the adapter's own may be called that.
    pub(crate) fn has_name(&self, wwpn: u64) -> bool {
        let local = self.lock().local;
        [local.primary.wwpn, local.secondary.wwpn].contains(&wwpn)
    }

    /// The driver has gone, and with it its ports: what they have seen is reached by nobody any more, whatever the fabric still says.
    /// True when it has the fabric delete any.
    pub(crate) fn reset(&self) -> bool {
        let deletes = self.vports.reset();
        let mut shown = self.lock();
        if !std::mem::take(&mut shown.vports).is_empty() {
            self.generation.fetch_add(1, Ordering::Release);
        }
        let of_vports = |(id, remote): (&u8, &Remote)| (remote.port.vport != 0).then_some((*id, remote.port));
        let gone: Vec<_> = shown.remotes.iter().filter_map(of_vports).collect();
        // Nobody is told: there is no driver, and what its ports saw is nothing to the next one.
        let change = &mut Change::default();
        for (id, port) in gone {
            self.show(&mut shown, change, id, RemotePort { state: RemoteState::Lost, ..port });
        }
        deletes
    }

    /// The fabric says something else than before: tells the driver.
    pub(crate) fn changed(&self) {
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let Change { config, vports, turns } = self.look();
        let Some(driver) = self.driver.get() else { return };
        let Some(transport) = driver.transport.upgrade() else { return };
        if config && transport.has(wire::feature::FC_HOST) || vports && transport.has(wire::feature::VPORT) {
            transport.config_changed();
        }
        for (target, turn) in turns {
            let (reason, is_news) = match turn {
                Turn::Online { is_news } => (wire::event::RPORT_BACK, is_news),
                Turn::Lost => (wire::event::RPORT_LOST, false),
                Turn::Changed => (wire::event::RPORT_CHANGED, false),
            };
            self.events.tell(&transport, rport(target, reason));
            // Others look for what they have not found there before.
            if is_news && !transport.has(wire::feature::RPORT_EVENTS) {
                (driver.came)(target);
            }
        }
    }

    /// Tells the driver of a target that has no units.
    pub(crate) fn target_came(&self, target: u8) {
        if let Some(transport) = self.driver.get().and_then(|driver| driver.transport.upgrade()) {
            self.events.tell(&transport, look_again(target));
        }
    }

    /// `config_generation`: another one after each change of [`Self::config`].
    pub(crate) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// The part of the configuration space that is the fabric's. `vports`: the driver may create ports, or has not decided yet.
    pub(crate) fn config(&self, vports: bool) -> FcConfig {
        FcConfig::of(&self.lock().local, if vports { self.san.max_vports() } else { 0 })
    }

    /// Takes over what the fabric says now, and returns what that changes.
    fn look(&self) -> Change {
        // Who looks later has what is later.
        let mut shown = self.lock();
        let view = self.san.view();
        let mut change = Change::default();
        if shown.local != view.local {
            change.config = FcConfig::of(&shown.local, 0) != FcConfig::of(&view.local, 0);
            shown.local = view.local;
        }
        // The fabric may still have ports of a driver that has gone.
        let live = self.vports.live();
        let vports: BTreeMap<_, _> = view
            .vports
            .iter()
            .filter(|(number, _)| live.contains(number))
            .map(|(&n, &port)| (n, port))
            .collect();
        if shown.vports != vports {
            change.vports = true;
            shown.vports = vports;
        }
        self.generation.fetch_add(u8::from(change.config || change.vports), Ordering::Release);
        let is_there = |port: &RemotePort| port.vport == 0 || live.contains(&port.vport);
        for (&id, &now) in view.remotes.iter().filter(|(_, port)| is_there(port)) {
            self.show(&mut shown, &mut change, id, now);
        }
        // Numbers stay: a port that is not said to be there any more is lost.
        let gone = shown.remotes.iter().filter(|(id, _)| !view.remotes.get(id).is_some_and(is_there));
        let gone: Vec<_> = gone.map(|(id, remote)| (*id, remote.port)).collect();
        for (id, port) in gone {
            self.show(&mut shown, &mut change, id, RemotePort { state: RemoteState::Lost, ..port });
        }
        change
    }

    fn show(&self, shown: &mut Shown, change: &mut Change, id: u8, now: RemotePort) {
        let before = shown.remotes.get(&id).map(|remote| remote.port);
        if before == Some(now) {
            return;
        }
        if before.is_some_and(|before| identity(&before) != identity(&now)) {
            change.turns.push((id, Turn::Changed));
        }
        let remote = shown.remotes.entry(id).or_insert(Remote { port: now, is_news: true });
        remote.port = now;
        let was_online = before.is_some_and(|before| before.state == RemoteState::Online);
        let turn = match now.state {
            RemoteState::Online if !was_online => {
                Some(Turn::Online { is_news: std::mem::take(&mut remote.is_news) })
            }
            RemoteState::Blocked | RemoteState::Lost if was_online => Some(Turn::Lost),
            _ => None,
        };
        remote.is_news |= now.state == RemoteState::Lost;
        change.turns.extend(turn.map(|turn| (id, turn)));
        self.events.of_vport(id, now.vport != 0);
        self.gate.set(id, now.state);
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
