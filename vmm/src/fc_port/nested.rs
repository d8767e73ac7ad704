//! Ports that the guest of an HBA creates beside that of the HBA, on the same port of the host. Each has a slot as an HBA has; what names it may
//! have, and how many there may be, was said before the guest ran.
//!
//! ```text
//!   create ──> Making ──> There ──> Leaving ──> (free), or Kept
//!                 └── delete, a reset ──┘
//! ```

use std::io;
use std::time::Instant;

use devices::threads::{self, Kind};
use fc::Wwn;
use fc::choose::Rules;
use fc::vport::Live;
use hba_virtio_scsi::fc::{Names, VportRefusal};

use super::created::{self, Known, NotMade};
use super::inventory::Inventory;
use super::owned::{self, Owned};
use super::process::{Event, Process, interruptible, say, sleep};
use super::{News, VPORTS, Wanted, place, slot, work};
use crate::config::reason;

/// How a slot is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Vport {
    /// It has no port.
    #[default]
    Free,
    /// The port is being made; whether it is deleted as soon as it is.
    Making { leaves: bool },
    /// The fabric has it.
    There,
    /// It is being deleted.
    Leaving,
    /// It could not be: it is tried again at the end.
    Kept,
}

impl Process<'_> {
    /// The slots of the ports that the guest of an HBA may have.
    pub(super) fn vports(&self, hba: usize) -> impl Iterator<Item = usize> + use<> {
        let hbas = self.count;
        (1..=VPORTS as u16).filter_map(move |vport| slot(hbas, hba, vport))
    }

    /// The machine wants a port for its guest. It was asked whether the guest may have it, and is not believed: the guest may have taken it over.
    pub(super) fn create(&mut self, hba: usize, vport: u16, names: Names) -> io::Result<()> {
        let Some(slot) = slot(self.count, hba, vport).filter(|slot| *slot < self.hbas.len() && vport > 0)
        else {
            return Ok(());
        };
        let (wanted, known) = match self.wanted(hba, slot, names) {
            Ok(wanted) => wanted,
            Err((refusal, why)) => return say(self.machine, slot, News::NotCreated(refusal, why)),
        };
        let Some(of) = self.hbas.get_mut(slot) else { return Ok(()) };
        of.wanted = wanted.clone();
        (of.settled, of.vport) = (false, Vport::Making { leaves: false });
        let (roots, store) = (self.roots.clone(), self.store.clone());
        let (tell, ending) = (self.tell.clone(), self.ending.clone());
        let own = move || {
            let kernel = || Live::new(interruptible(ending.clone()));
            let made = created::make(&wanted, known, &roots, &store, kernel);
            let _ = tell.send(Event::Created(slot, made));
        };
        if let Err(error) = threads::spawn(Kind::Returns, "fc-own", own) {
            let why = format!("there is no thread for it: {}", reason(&error));
            let _ = self.tell.send(Event::Created(slot, Err((VportRefusal::Failed, why))));
        }
        Ok(())
    }

    /// What is wanted of a port with these names.
    fn wanted(&self, hba: usize, slot: usize, names: Names) -> Result<(Wanted, Known), NotMade> {
        let failed = |why: &str| (VportRefusal::Failed, why.to_owned());
        let of = self.hbas.get(hba).ok_or_else(|| failed("there is no such HBA"))?;
        let (Some(owned), Some(inventory)) = (&of.owned, &of.inventory) else {
            return Err(failed("the HBA has no port of its own"));
        };
        if self.hbas.get(slot).is_none_or(|of| of.vport != Vport::Free || of.owned.is_some()) {
            return Err(failed("a port with this number is there, or is being deleted"));
        }
        let asked = fc::names::Names { wwnn: Wwn::new(names.wwnn), wwpn: Wwn::new(names.wwpn) };
        let allowed = of.wanted.vports.as_ref();
        let allowed = allowed.ok_or_else(|| (VportRefusal::NotAllowed, "it may have none".to_owned()))?;
        let node = Wwn::new(inventory.first_names().wwnn);
        allowed.check(asked, node).map_err(|why| (VportRefusal::NotAllowed, why.to_string()))?;
        let taken = |slot: &usize| self.hbas.get(*slot).is_some_and(|of| of.vport != Vport::Free);
        if self.vports(hba).filter(taken).count() >= allowed.most.into() {
            return Err((
                VportRefusal::NoRoom,
                format!("it has {} already (`vports` of [hba.fc])", allowed.most),
            ));
        }
        // Where the HBA's own is, whatever the rules would choose now.
        let parent = Some(owned.shown(&self.roots).parent).filter(|parent| !parent.is_empty());
        let rules = parent.map(|parent| Rules { parent: Some(parent), ..Rules::default() });
        let wanted = Wanted {
            rules: rules.unwrap_or_else(|| of.wanted.rules.clone()),
            names: Some((asked.wwnn, asked.wwpn)),
            secondary: Names::default(),
            vports: None,
            ..of.wanted.clone()
        };
        Ok((wanted, Known { node, is_left: of.kept.contains(&asked.wwpn) }))
    }

    /// The port is there, or not.
    pub(super) fn created(
        &mut self,
        slot: usize,
        made: Result<Owned, NotMade>,
        now: Instant,
    ) -> io::Result<()> {
        let (hba, _) = place(self.count, slot);
        let space = self.hbas.get(hba).map(|of| of.space.clone()).unwrap_or_default();
        let Some(of) = self.hbas.get_mut(slot) else { return Ok(()) };
        of.settled = true;
        let owned = match made {
            Ok(owned) => owned,
            Err((refusal, why)) => {
                of.vport = Vport::Free;
                self.keep_made(slot, &why);
                return say(self.machine, slot, News::NotCreated(refusal, why));
            }
        };
        self.forget(hba, owned.names.wwpn);
        say(self.machine, slot, News::Port(Box::new(owned.shown(&self.roots))))?;
        let Some(of) = self.hbas.get_mut(slot) else { return Ok(()) };
        let (host, leaves) = (owned.host, of.vport == Vport::Making { leaves: true });
        let names = Names { wwnn: owned.names.wwnn.bits(), wwpn: owned.names.wwpn.bits() };
        (of.owned, of.vport) = (Some(owned), Vport::There);
        (of.asked, of.looked) = (0, 0);
        if leaves {
            return self.leave_vport(slot);
        }
        self.lives += 1;
        // As many as one life never has.
        let tickets = self.lives << 40;
        of.inventory = Some(Inventory::of_vport(of.wanted.clone(), names, space, tickets, now));
        match work::look(&self.roots, &self.tell, slot, host) {
            Ok(look) => of.look = Some(look),
            Err(error) => {
                let why = format!("there is no thread that looks what is behind it: {}", reason(&error));
                say(self.machine, slot, News::NotCreated(VportRefusal::Failed, why))?;
                return self.leave_vport(slot);
            }
        }
        Ok(())
    }

    /// A port of a guest was given up while it was made. If it is there all the same it is its HBA's, and tried again.
    pub(super) fn keep_made(&mut self, slot: usize, why: &str) -> Option<Wwn> {
        let wanted = &self.hbas.get(slot)?.wanted;
        let (_, wwpn) = wanted.names?;
        let hba = place(self.count, slot).0;
        if owned::made(wanted, &self.store).contains(&wwpn) {
            self.keep(hba, wwpn, why);
            return Some(wwpn);
        }
        self.forget(hba, wwpn);
        None
    }

    /// Nothing is left any more of a port that an HBA has kept.
    fn forget(&mut self, hba: usize, wwpn: Wwn) {
        if let Some(of) = self.hbas.get_mut(hba)
            && of.kept.remove(&wwpn)
        {
            let _ = say(self.machine, hba, News::Closed(wwpn.bits(), None));
        }
    }

    /// The machine wants a port of its guest's no more.
    pub(super) fn delete(&mut self, hba: usize, vport: u16) -> io::Result<()> {
        let Some(slot) = slot(self.count, hba, vport).filter(|_| vport > 0) else { return Ok(()) };
        let Some(of) = self.hbas.get_mut(slot) else { return Ok(()) };
        match &mut of.vport {
            Vport::Making { leaves } => {
                *leaves = true;
                Ok(())
            }
            Vport::There => self.leave_vport(slot),
            Vport::Free | Vport::Leaving | Vport::Kept => Ok(()),
        }
    }

    fn leave_vport(&mut self, slot: usize) -> io::Result<()> {
        let Some(of) = self.hbas.get_mut(slot) else { return Ok(()) };
        let (inventory, Some(owned)) = (of.inventory.take(), of.owned.clone()) else { return Ok(()) };
        (of.vport, of.look) = (Vport::Leaving, None);
        for news in inventory.map(Inventory::part).unwrap_or_default() {
            say(self.machine, slot, news)?;
        }
        // Nobody waits for it any more.
        self.end_looks(place(self.count, slot).0)?;
        let (roots, store, tell) = (self.roots.clone(), self.store.clone(), self.tell.clone());
        let wwpn = owned.names.wwpn.bits();
        let delete = move || {
            let deleted = owned::disown(&owned, &roots, &store, Live::new(sleep));
            let _ = tell.send(Event::Deleted(slot, wwpn, deleted));
        };
        if let Err(error) = threads::spawn(Kind::Returns, "fc-disown", delete) {
            let why = format!("there is no thread that deletes it: {}", reason(&error));
            let _ = self.tell.send(Event::Deleted(slot, wwpn, Err(why)));
        }
        Ok(())
    }

    /// The port is deleted, or not. One that is not has its slot, and is tried again at the end.
    pub(super) fn deleted(&mut self, slot: usize, wwpn: u64, deleted: Result<(), String>) -> io::Result<()> {
        match self.hbas.get_mut(slot) {
            Some(of) if deleted.is_ok() => (of.owned, of.vport) = (None, Vport::Free),
            Some(of) => of.vport = Vport::Kept,
            None => {}
        }
        say(self.machine, slot, News::Closed(wwpn, deleted.err()))
    }

    /// All ports of an HBA are to be looked at.
    pub(super) fn look(&mut self, hba: usize, number: u64, now: Instant) {
        if hba >= self.count {
            return;
        }
        let all: Vec<usize> = std::iter::once(hba).chain(self.vports(hba)).collect();
        for slot in all {
            let Some(of) = self.hbas.get_mut(slot) else { break };
            if let Some(inventory) = &mut of.inventory {
                inventory.look(number, now);
                of.asked = number;
            }
            self.poke(slot);
        }
    }

    /// One of the ports of an HBA was looked at, up to this number.
    pub(super) fn looked(&mut self, slot: usize, number: u64) -> io::Result<()> {
        let (hba, vport) = place(self.count, slot);
        if let Some(of) = self.hbas.get_mut(slot) {
            of.looked = number;
        }
        if vport == 0 && number == 0 {
            return say(self.machine, hba, News::Looked(0));
        }
        self.end_looks(hba)
    }

    /// Says up to which number all ports of an HBA were looked at, if that is news. One that has come since is not waited for.
    fn end_looks(&mut self, hba: usize) -> io::Result<()> {
        let all = self.vports(hba).filter_map(|slot| self.hbas.get(slot));
        let open = all.filter(|of| of.inventory.is_some() && of.asked > of.looked).map(|of| of.looked).min();
        let Some(own) = self.hbas.get_mut(hba) else { return Ok(()) };
        let done = open.map_or(own.looked, |open| open.min(own.looked));
        if done <= own.said {
            return Ok(());
        }
        own.said = done;
        say(self.machine, hba, News::Looked(done))
    }
}

#[cfg(test)]
#[path = "nested_tests.rs"]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
