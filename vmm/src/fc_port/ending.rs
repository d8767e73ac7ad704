//! The end of the process: it deletes the ports that it has made, those of HBAs and those that their guests have created.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use fc::Wwn;
use fc::vport::Live;

use super::nested::Vport;
use super::owned::{self, Owned};
use super::process::{Event, Hba, Process, say, sleep};
use super::switch::Switch;
use super::{News, Origin, place};

/// How long ports that are being made or deleted have at the end: all the time that a deletion may take, while the driver logs out.
const LAST: Duration = fc::vport::DELETION;

/// How far the end has come.
struct Ends {
    until: Instant,
    /// What is being deleted.
    going: BTreeSet<Wwn>,
    /// Of these, what was being deleted before the end: it is tried once more.
    before: BTreeSet<Wwn>,
    /// What the end has tried to delete, or was told of that it cannot be.
    tried: BTreeSet<Wwn>,
}

impl Process<'_> {
    /// A port of an HBA was given up while it was made: if it is there all the same, the machine hears it. Its names.
    pub(super) fn say_left(&mut self, hba: usize, why: &str) -> BTreeSet<Wwn> {
        let has: BTreeSet<Wwn> =
            self.all_of(hba).filter_map(|slot| self.hbas.get(slot)).flat_map(Hba::has).collect();
        let Some(of) = self.hbas.get(hba) else { return BTreeSet::new() };
        let left: BTreeSet<Wwn> = owned::made(&of.wanted, &self.store).difference(&has).copied().collect();
        for wwpn in &left {
            self.keep(hba, *wwpn, why);
        }
        left
    }

    /// A port of an HBA is left. It is tried again at the end.
    pub(super) fn keep(&mut self, hba: usize, wwpn: Wwn, why: &str) {
        if let Some(of) = self.hbas.get_mut(hba)
            && of.kept.insert(wwpn)
        {
            // The machine may be no more.
            let _ = say(self.machine, hba, News::Closed(wwpn.bits(), Some(why.to_owned())));
        }
    }

    /// The slots of an HBA's own port and of those that its guest may have.
    fn all_of(&self, hba: usize) -> impl Iterator<Item = usize> + use<> {
        std::iter::once(hba).chain(self.vports(hba))
    }

    /// Deletes the ports that it made, each as soon as it is known: one that is being made, or whose deletion hangs, holds up no other.
    pub(super) fn end(mut self, events: &Receiver<Event>) {
        self.ending.store(true, Ordering::Relaxed);
        let before: BTreeSet<Wwn> = self.hbas.iter().filter_map(Hba::leaving).collect();
        let (until, going) = (Instant::now() + LAST, before.clone());
        let mut ends = Ends { until, going, before, tried: BTreeSet::new() };
        for (slot, of) in self.hbas.iter().enumerate() {
            of.made().into_iter().for_each(|wwpn| self.delete_last(slot, wwpn, &mut ends));
        }
        (0..self.count).for_each(|hba| self.delete_rest(hba, &mut ends));
        while !ends.going.is_empty() || self.hbas.iter().any(Hba::is_open) {
            let left = ends.until.saturating_duration_since(Instant::now());
            let Ok(event) = events.recv_timeout(left) else { break };
            match event {
                Event::Owned(slot, made) | Event::Other(slot, made) => self.is_made(slot, made, &mut ends),
                Event::Created(slot, made) => self.is_made(slot, made.map_err(|(_, why)| why), &mut ends),
                Event::Left(slot, wwpn, result) => self.is_deleted(slot, wwpn, result, &mut ends),
                Event::Deleted(slot, wwpn, result) => {
                    self.is_deleted(slot, Wwn::new(wwpn), result, &mut ends);
                }
                _ => {}
            }
        }
    }

    /// What was being made is known now: it goes, with as much time as the others had.
    fn is_made(&mut self, slot: usize, made: Result<Owned, String>, ends: &mut Ends) {
        let (hba, vport) = place(self.count, slot);
        let Some(of) = self.hbas.get_mut(slot) else { return };
        of.settled = true;
        if of.change.as_ref().is_some_and(Switch::is_making) {
            of.change = None;
        }
        match made {
            Ok(port) => {
                of.kept.remove(&port.names.wwpn);
                if port.origin == Origin::Made {
                    self.delete_last(slot, port.names.wwpn, ends);
                }
            }
            Err(why) if vport == 0 => ends.tried.extend(self.say_left(hba, &why)),
            Err(why) => {
                of.vport = Vport::Free;
                ends.tried.extend(self.keep_made(slot, &why));
            }
        }
        self.delete_rest(hba, ends);
    }

    fn is_deleted(&self, slot: usize, wwpn: Wwn, result: Result<(), String>, ends: &mut Ends) {
        ends.going.remove(&wwpn);
        if ends.before.remove(&wwpn) && result.is_err() {
            return self.delete_last(slot, wwpn, ends);
        }
        // The machine may be no more.
        let _ = say(self.machine, slot, News::Closed(wwpn.bits(), result.err()));
    }

    /// Deletes a port at the end, once.
    fn delete_last(&self, slot: usize, wwpn: Wwn, ends: &mut Ends) {
        if !ends.going.contains(&wwpn) && ends.tried.insert(wwpn) {
            ends.going.insert(wwpn);
            ends.until = Instant::now() + LAST;
            self.delete_port(slot, wwpn, move |roots, store| {
                owned::delete(wwpn, roots, store, Live::new(sleep))
            });
        }
    }

    /// Deletes what else is left of an HBA's, once nothing of it is being made any more.
    fn delete_rest(&self, hba: usize, ends: &mut Ends) {
        let mut all = self.all_of(hba).filter_map(|slot| self.hbas.get(slot));
        if let Some(of) = self.hbas.get(hba).filter(|_| !all.any(Hba::is_open)) {
            let left = owned::made(&of.wanted, &self.store);
            left.into_iter().for_each(|wwpn| self.delete_last(hba, wwpn, ends));
        }
    }
}

impl Hba {
    /// The port that is being deleted.
    fn leaving(&self) -> Option<Wwn> {
        let port = match &self.change {
            Some(Switch::Leaving(port)) => Some(port),
            _ => self.owned.as_ref().filter(|_| self.vport == Vport::Leaving),
        };
        port.map(|port| port.names.wwpn)
    }

    /// The names of the ports that it has and made, but for one that is being deleted.
    fn made(&self) -> BTreeSet<Wwn> {
        let all = self.owned.iter().chain(self.change.as_ref().and_then(Switch::port));
        let all = all.filter(|port| port.origin == Origin::Made).map(|port| port.names.wwpn);
        all.filter(|wwpn| Some(*wwpn) != self.leaving()).collect()
    }

    /// The names of the ports that it has, or that its guest wants.
    fn has(&self) -> BTreeSet<Wwn> {
        let all = self.owned.iter().chain(self.change.as_ref().and_then(Switch::port));
        let wanted = self.wanted.names.filter(|_| self.vport != Vport::Free).map(|(_, wwpn)| wwpn);
        all.map(|port| port.names.wwpn).chain(wanted).collect()
    }

    /// Whether it is not known yet what becomes of a port of it that is being made.
    fn is_open(&self) -> bool {
        !self.settled || self.change.as_ref().is_some_and(Switch::is_making)
    }
}
