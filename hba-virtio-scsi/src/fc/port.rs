//! The port that the guest has: what it was shown last, and what follows from a change.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use devices::scsi::{Nexus, Target};

use super::gate::Gate;
use super::rescan::Looks;
use super::wire::{self, FcConfig};
use super::{LocalPort, RemotePort, RemoteState, San};
use crate::event::{Events, look_again, rport};
use crate::transport::Transport;

/// The port of an HBA on its fabric.
pub(crate) struct Port {
    san: Arc<dyn San>,
    /// The ways to the targets.
    pub(crate) gate: Gate,
    /// Looks at the fabric that a driver waits for.
    pub(crate) looks: Looks,
    /// Answers for ports of which no logical unit is known.
    pub(crate) nobody: Arc<Nexus>,
    events: Arc<Events>,
    transport: OnceLock<Weak<Transport>>,
    /// Who tells of a change does so before the next one looks.
    telling: Mutex<()>,
    shown: Mutex<Shown>,
    generation: AtomicU8,
}

struct Shown {
    remotes: BTreeMap<u8, RemotePort>,
    local: LocalPort,
}

/// What became of a remote port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It was never there before.
    Came,
    /// It was lost.
    Lost,
    /// It is back. Whether it was given up meanwhile.
    Back { was_given_up: bool },
    /// It has another name or N_Port_ID.
    Changed,
}

/// What changed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Change {
    /// What the configuration space says.
    config: bool,
    /// Remote ports, by target number.
    turns: Vec<(u8, Turn)>,
}

impl Port {
    pub(crate) fn new(san: Arc<dyn San>, events: Arc<Events>) -> Self {
        let shown = Shown { remotes: BTreeMap::new(), local: LocalPort::default() };
        let port = Self {
            san,
            gate: Gate::new(),
            looks: Looks::default(),
            nobody: Nexus::new(Target::new(), None),
            events,
            transport: OnceLock::new(),
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

    /// Says where changes are told.
    pub(crate) fn connect(&self, transport: &Arc<Transport>) {
        let _ = self.transport.set(Arc::downgrade(transport));
    }

    /// The target with the smallest number from `from` on.
    pub(crate) fn target(&self, from: u8) -> Option<(u8, RemotePort)> {
        self.lock().remotes.range(from..).next().map(|(id, port)| (*id, *port))
    }

    /// The fabric says something else than before: tells the driver.
    pub(crate) fn changed(&self) {
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let Change { config, turns } = self.look();
        let Some(transport) = self.transport.get().and_then(Weak::upgrade) else { return };
        if config && transport.has(wire::feature::FC_HOST) {
            transport.config_changed();
        }
        for (target, turn) in turns {
            let (reason, is_news) = match turn {
                Turn::Came => (wire::event::RPORT_BACK, true),
                Turn::Back { was_given_up } => (wire::event::RPORT_BACK, was_given_up),
                Turn::Lost => (wire::event::RPORT_LOST, false),
                Turn::Changed => (wire::event::RPORT_CHANGED, false),
            };
            self.events.tell(&transport, rport(target, reason));
            // Others look for what they have not found there before.
            if is_news && !transport.has(wire::feature::RPORT_EVENTS) {
                self.events.tell(&transport, look_again(target));
            }
        }
    }

    /// `config_generation`: another one after each change of [`Self::config`].
    pub(crate) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// The part of the configuration space that is the fabric's.
    pub(crate) fn config(&self) -> FcConfig {
        FcConfig::of(&self.lock().local)
    }

    /// Takes over what the fabric says now, and returns what that changes.
    fn look(&self) -> Change {
        // Who looks later has what is later.
        let mut shown = self.lock();
        let view = self.san.view();
        let mut change = Change::default();
        if shown.local != view.local {
            change.config = FcConfig::of(&shown.local) != FcConfig::of(&view.local);
            shown.local = view.local;
            self.generation.fetch_add(u8::from(change.config), Ordering::Release);
        }
        for (&id, &now) in &view.remotes {
            let before = shown.remotes.insert(id, now);
            self.turn(&mut change, id, before, now);
        }
        // Numbers stay: a port that is not said to be there any more is lost.
        for (&id, port) in shown.remotes.iter_mut().filter(|(id, _)| !view.remotes.contains_key(id)) {
            let before = *port;
            port.state = RemoteState::Lost;
            self.turn(&mut change, id, Some(before), *port);
        }
        change
    }

    fn turn(&self, change: &mut Change, id: u8, before: Option<RemotePort>, now: RemotePort) {
        if before == Some(now) {
            return;
        }
        let is_online = now.state == RemoteState::Online;
        let turn = match before {
            None => Some(Turn::Came),
            Some(before) => {
                if (before.names, before.port_id) != (now.names, now.port_id) {
                    change.turns.push((id, Turn::Changed));
                }
                let was_given_up = before.state == RemoteState::Lost;
                match (before.state == RemoteState::Online, is_online) {
                    (true, false) => Some(Turn::Lost),
                    (false, true) => Some(Turn::Back { was_given_up }),
                    _ => None,
                }
            }
        };
        change.turns.extend(turn.map(|turn| (id, turn)));
        self.gate.set(id, now.state);
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
