//! A port changes its names: from the first to the second, or back. The port with the others is made beside it and is not shown before it
//! sees all that the guest has; then all units go over to it, and the first is deleted when what the host had of them has ended.
//!
//! ```text
//!   activate ──> Making ──> Comparing ──> Moving ──> Lingering ──> Leaving ──> (none)
//!                   │  both are logged in    └── units do not go on: back ───┘
//! ```

use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use devices::threads::{self, Kind};
use fc::glimpse::Glimpse;
use fc::state::Store;
use fc::vport::Live;
use fc::{Roots, Wwn};
use hba_virtio_scsi::fc::Active;

use super::inventory::Inventory;
use super::owned::{self, Owned};
use super::process::{Event, Hba, Process, interruptible, say, sleep};
use super::{News, Wanted, work};
use crate::config::reason;

/// How long the port stays that another has followed: what it was sent before ends there.
const LINGER: Duration = Duration::from_secs(5);

/// How long units have to go on behind it, else all goes back. The machine waits for longer.
const MOVE: Duration = Duration::from_secs(30);

/// What the machine has asked for.
#[derive(Clone, Copy)]
pub(super) struct Request {
    /// The machine's number of it.
    pub(super) number: u64,
    /// The names.
    pub(super) to: Active,
}

impl Request {
    /// What became of it.
    fn done(self, why: Option<String>) -> News {
        News::Activated(self.number, self.to, why)
    }
}

/// How far a change has come.
pub(super) enum Switch {
    /// The port with the other names is being made.
    Making(Request),
    /// It is there; whether it sees all is looked at until then. What it did not see last.
    Comparing { of: Request, port: Owned, look: Sender<()>, until: Instant, missing: Vec<String> },
    /// All has gone over to it; commands wait for the units, until then. The former one, and what looks at that, for all may go back.
    Moving { of: Request, from: Active, port: Owned, look: Option<Sender<()>>, until: Instant },
    /// The former one, until then.
    Lingering { port: Owned, until: Instant },
    /// It is being deleted.
    Leaving(Owned),
}

impl Switch {
    /// When there is something to do without being told.
    pub(super) fn next(&self) -> Option<Instant> {
        match self {
            Self::Comparing { until, .. } | Self::Lingering { until, .. } => Some(*until),
            Self::Making(_) | Self::Moving { .. } | Self::Leaving(_) => None,
        }
    }

    /// Whether it is not known yet what becomes of a port that is being made.
    pub(super) fn is_making(&self) -> bool {
        matches!(self, Self::Making(_))
    }

    /// Has it look at once at a host, if that is of the port with the other names.
    pub(super) fn poke(&self, host: Option<u32>) {
        if let Self::Comparing { port, look, .. } = self
            && host.is_none_or(|host| host == port.host)
        {
            let _ = look.send(());
        }
    }

    /// The port that is not the machine's.
    pub(super) fn port(&self) -> Option<&Owned> {
        match self {
            Self::Making(_) => None,
            Self::Comparing { port, .. } | Self::Moving { port, .. } | Self::Lingering { port, .. } => {
                Some(port)
            }
            Self::Leaving(port) => Some(port),
        }
    }
}

/// The first of some, and how many more there are.
fn first_of(all: Vec<String>) -> Option<String> {
    let more = all.len().saturating_sub(1);
    let first = all.into_iter().next()?;
    Some(if more == 0 { first } else { format!("{first}, and {more} more") })
}

/// What is wanted of the port with these names.
pub(super) fn wanted(of: &Hba, to: Active) -> Result<Wanted, String> {
    let Some((inventory, owned)) = of.inventory.as_ref().zip(of.owned.as_ref()) else {
        return Err("it has no port yet".into());
    };
    if of.change.is_some() {
        return Err("it is changing its names already; try again in a moment".into());
    }
    let second = of.wanted.secondary;
    if second.wwpn == 0 {
        return Err("it has no other names; set secondary_wwnn and secondary_wwpn".into());
    }
    let names = match to {
        Active::None => return Err("it cannot have none of its names".into()),
        Active::Secondary => second,
        Active::Primary => inventory.first_names(),
    };
    let names = Some((Wwn::new(names.wwnn), Wwn::new(names.wwpn)));
    // The first ones it had already.
    let any_oui = of.wanted.any_oui || to == Active::Primary;
    Ok(Wanted { names, any_oui, rules: owned.rules.clone(), ..of.wanted.clone() })
}

impl Process<'_> {
    /// The machine wants the port to have these names.
    pub(super) fn activate(&mut self, hba: usize, request: Request) -> io::Result<()> {
        let Some(of) = self.hbas.get_mut(hba) else { return Ok(()) };
        let has = |inventory: &Inventory| inventory.active() == request.to;
        if of.change.is_none() && of.inventory.as_ref().is_some_and(has) {
            return say(self.machine, hba, request.done(None));
        }
        let wanted = match wanted(of, request.to) {
            Ok(wanted) => wanted,
            Err(why) => return say(self.machine, hba, request.done(Some(why))),
        };
        of.change = Some(Switch::Making(request));
        let (roots, store) = (self.roots.clone(), self.store.clone());
        let (tell, ending) = (self.tell.clone(), self.ending.clone());
        let own = move || {
            let kernel = || Live::new(interruptible(ending.clone()));
            let made = owned::regain(&wanted, &roots, &store, Live::new(sleep)).and_then(|port| match port {
                Some(port) => Ok(port),
                None if ending.load(Ordering::Relaxed) => Err("the machine ends".into()),
                None => owned::own(&wanted, &roots, &store, kernel),
            });
            let _ = tell.send(Event::Other(hba, made));
        };
        if let Err(error) = threads::spawn(Kind::Returns, "fc-own", own) {
            let why = format!("there is no thread for the port with the other names: {}", reason(&error));
            let _ = self.tell.send(Event::Other(hba, Err(why)));
        }
        Ok(())
    }

    /// The port with the other names is there, or not.
    pub(super) fn has_other(
        &mut self,
        hba: usize,
        owned: Result<Owned, String>,
        now: Instant,
    ) -> io::Result<()> {
        let Some(of_hba) = self.hbas.get_mut(hba) else { return Ok(()) };
        let Some(Switch::Making(of)) = of_hba.change.take() else { return Ok(()) };
        let port = match owned {
            Ok(port) => port,
            Err(why) => {
                self.say_left(hba, &why);
                return say(self.machine, hba, of.done(Some(why)));
            }
        };
        of_hba.kept.remove(&port.names.wwpn);
        say(self.machine, hba, News::Other(of.number, Box::new(port.shown(&self.roots))))?;
        match work::look(&self.roots, &self.tell, hba, port.host) {
            Ok(look) => {
                let until = now + Duration::from_secs(of_hba.wanted.timeout.into());
                of_hba.change = Some(Switch::Comparing { of, port, look, until, missing: Vec::new() });
                Ok(())
            }
            Err(error) => {
                let why = format!("there is no thread that looks what is behind it: {}", reason(&error));
                self.leave(hba, port);
                say(self.machine, hba, of.done(Some(why)))
            }
        }
    }

    /// What the host has by the port that is not the machine's: all goes over to it, once it sees all; or back to it, where units do not go
    /// on behind the other.
    pub(super) fn compare(
        &mut self,
        hba: usize,
        host: u32,
        seen: Option<&Glimpse>,
        now: Instant,
    ) -> io::Result<()> {
        let Some(of_hba) = self.hbas.get_mut(hba) else { return Ok(()) };
        let (Some(inventory), Some(own)) = (&mut of_hba.inventory, &mut of_hba.owned) else { return Ok(()) };
        let is_due = match &mut of_hba.change {
            Some(Switch::Comparing { port, missing, .. }) if port.host == host => {
                *missing = inventory.missing(seen.unwrap_or(&Glimpse::default()));
                missing.is_empty()
            }
            Some(Switch::Moving { port, until, .. }) => {
                port.host == host && now >= *until && !inventory.has_moved()
            }
            _ => false,
        };
        let Some(seen) = seen.filter(|_| is_due) else { return Ok(()) };
        match of_hba.change.take() {
            Some(Switch::Comparing { of, port, look, .. }) => {
                let from = inventory.active();
                inventory.move_to(of.to, seen, now);
                let look = of_hba.look.replace(look);
                let port = std::mem::replace(own, port);
                of_hba.change = Some(Switch::Moving { of, from, port, look, until: now + MOVE });
                Ok(())
            }
            Some(Switch::Moving { of, from, port, look, .. }) => {
                let left = first_of(inventory.left_behind()).unwrap_or_else(|| "a target port".into());
                inventory.move_to(from, seen, now);
                of_hba.look = look;
                let port = std::mem::replace(own, port);
                let wwpn = port.names.wwpn;
                of_hba.change = Some(Switch::Lingering { port, until: now + LINGER });
                let why = format!(
                    "not all goes on by its other names: {left} did not within {} s; all is back by the names that it had. See whether \
                     somebody on the host has it by the port {wwpn}, or what the array says to that",
                    MOVE.as_secs()
                );
                say(self.machine, hba, of.done(Some(why)))
            }
            other => {
                of_hba.change = other;
                Ok(())
            }
        }
    }

    /// The port with the other names does not see all in time: it goes again.
    fn give_up(&mut self, hba: usize, of: Request, port: Owned, missing: Vec<String>) -> io::Result<()> {
        let wwpn = port.names.wwpn;
        self.leave(hba, port);
        let what = first_of(missing).unwrap_or_else(|| "nobody has looked at it".into());
        let why = format!(
            "the port with its other names sees less: {what}; zone {wwpn}, and map the LUNs to it under the same numbers, as for the names \
             that it has"
        );
        say(self.machine, hba, of.done(Some(why)))
    }

    /// What has come to its end or its time.
    pub(super) fn end_changes(&mut self, now: Instant) -> io::Result<()> {
        for hba in 0..self.hbas.len() {
            let Some(of_hba) = self.hbas.get_mut(hba) else { continue };
            let has_moved = of_hba.inventory.as_ref().is_some_and(Inventory::has_moved);
            match of_hba.change.take() {
                Some(Switch::Comparing { of, port, missing, until, .. }) if now >= until => {
                    self.give_up(hba, of, port, missing)?;
                }
                Some(Switch::Moving { of, port, .. }) if has_moved => {
                    of_hba.change = Some(Switch::Lingering { port, until: now + LINGER });
                    say(self.machine, hba, of.done(None))?;
                }
                Some(Switch::Lingering { port, until }) if now >= until => self.leave(hba, port),
                other => of_hba.change = other,
            }
        }
        Ok(())
    }

    /// Deletes a port that is not the machine's any more.
    pub(super) fn leave(&mut self, hba: usize, port: Owned) {
        let Some(of) = self.hbas.get_mut(hba) else { return };
        of.change = Some(Switch::Leaving(port.clone()));
        self.delete_port(hba, port.names.wwpn, move |roots, store| {
            owned::disown(&port, roots, store, Live::new(sleep))
        });
    }

    /// Deletes a port on a thread of its own; [`Event::Left`] says what became of it.
    pub(super) fn delete_port(
        &self,
        hba: usize,
        wwpn: Wwn,
        delete: impl FnOnce(&Roots, &Store) -> Result<(), String> + Send + 'static,
    ) {
        let (roots, store, tell) = (self.roots.clone(), self.store.clone(), self.tell.clone());
        let work = move || drop(tell.send(Event::Left(hba, wwpn, delete(&roots, &store))));
        if let Err(error) = threads::spawn(Kind::Returns, "fc-disown", work) {
            let why = format!("there is no thread that deletes it: {}", reason(&error));
            let _ = self.tell.send(Event::Left(hba, wwpn, Err(why)));
        }
    }

    /// A port is deleted, or not. One that is not is tried again when the machine goes back to its names, and at the end.
    pub(super) fn has_left(&mut self, hba: usize, wwpn: Wwn, left: Result<(), String>) -> io::Result<()> {
        let Some(of) = self.hbas.get_mut(hba) else { return Ok(()) };
        of.change.take_if(|change| matches!(change, Switch::Leaving(port) if port.names.wwpn == wwpn));
        match &left {
            Ok(()) => drop(of.kept.remove(&wwpn)),
            Err(why) => {
                of.kept.insert(wwpn);
                let text = format!(
                    "the virtual port {wwpn}, which it does not use any more, is still there; it is deleted when the machine goes back to \
                     that name, or ends: {why}"
                );
                say(self.machine, hba, News::Warning(text))?;
            }
        }
        say(self.machine, hba, News::Closed(wwpn.bits(), left.err()))
    }
}
