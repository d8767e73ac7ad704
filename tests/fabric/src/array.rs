//! The array: target ports, units, who is mapped what, and what initiators have yet to hear.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::attentions::Attentions;
use crate::els::Reject;
use crate::frame::{HEADER, Header, f_ctl, kind, r_ctl};
use crate::inject::Injections;
use crate::names::{PortId, Wwn};
use crate::outbox::{Outbox, Route};
use crate::scsi::alua::Groups;
use crate::scsi::disk::Disk;
use crate::scsi::luns::{Lun, Method};
use crate::scsi::sense::Sense;
use crate::scsi::tape::Tape;
use crate::scsi::{Context, Kind, Nexus, Unit};
use crate::services::aborted;
use crate::tasks::{Key, Task};

/// A target port.
pub(crate) struct TargetPort {
    pub(crate) wwpn: Wwn,
    /// The fabric it is at, by its place among them.
    pub(crate) fabric: usize,
    pub(crate) is_up: bool,
    /// It was up when the array lost its power.
    pub(crate) has_power_cut: bool,
    /// Nothing is heard at it, and nothing said.
    pub(crate) is_silent: bool,
    /// Commands that it took, and frames that it did not hear.
    pub(crate) commands: u64,
    pub(crate) unheard: u64,
}

/// Whom a map is for: an initiator of this name, or without one all that have none of their own; at a target port, by its place
/// among them, or at all of them.
pub(crate) type Whom = (Option<Wwn>, Option<usize>);

/// Which unit is where.
pub(crate) type Map = BTreeMap<Lun, usize>;

/// An initiator port that is logged in to a target port.
pub(crate) struct Session {
    pub(crate) nexus: Nexus,
    pub(crate) route: Route,
    /// PRLI is done.
    pub(crate) is_process: bool,
    /// Commands that it sent.
    pub(crate) commands: u64,
}

/// Whom a frame is from.
#[derive(Clone, Copy)]
pub(crate) struct Sender {
    pub(crate) wwpn: Wwn,
    pub(crate) route: Route,
}

/// Initiators that are remembered, at all target ports together.
const MOST_KNOWN: usize = 10_000;

/// The array.
#[derive(Default)]
pub(crate) struct Array {
    pub(crate) units: Vec<Unit>,
    pub(crate) ports: Vec<TargetPort>,
    pub(crate) groups: Groups,
    pub(crate) method: Method,
    /// Numbers are taken by that method alone.
    pub(crate) is_strict: bool,
    /// At number 0 there is something that is not connected, where no unit is.
    pub(crate) has_lunz: bool,
    pub(crate) maps: HashMap<Whom, Map>,
    /// Of data that are written, no more than this is asked for at once.
    pub(crate) burst: Option<u32>,
    /// REC is not supported.
    pub(crate) has_no_rec: bool,
    /// By target port and the initiator's address.
    pub(crate) sessions: BTreeMap<(usize, PortId), Session>,
    pub(crate) attentions: Attentions,
    /// By the request's code, PLOGI or PRLI: the initiator's name, the target port, and why. None of the first two is any.
    pub(crate) rejects: BTreeMap<u8, (Option<Wwn>, Option<usize>, Reject)>,
    /// Initiators that heard of the start.
    known: BTreeSet<Nexus>,
    pub(crate) injections: Injections,
    pub(crate) tasks: BTreeMap<Key, Task>,
}

impl Array {
    /// The name of the whole: format 5, of the same company as all others here.
    pub(crate) const WWNN: Wwn = Wwn(0x502f_cf00_0000_0000);

    /// Adds a target port at a fabric; its number.
    pub(crate) fn add_port(&mut self, fabric: usize) -> usize {
        let number = self.ports.len();
        let relative = relative(number);
        let wwpn = Wwn(Self::WWNN.0 | u64::from(relative));
        let (is_up, has_power_cut, is_silent, commands, unheard) = (true, false, false, 0, 0);
        self.ports.push(TargetPort { wwpn, fabric, is_up, has_power_cut, is_silent, commands, unheard });
        self.groups.place(relative, relative);
        number
    }

    /// Adds a unit, unless there is one of this name.
    pub(crate) fn add_unit(&mut self, name: &str, kind: Kind) -> Result<(), String> {
        let unit = Unit::new(name, kind);
        if self.units.iter().any(|other| other.name == name || other.naa() == unit.naa()) {
            return Err(format!("there is a unit {name} already"));
        }
        self.units.push(unit);
        Ok(())
    }

    pub(crate) fn add_disk(&mut self, name: &str, size: u64, block: u32) -> Result<(), String> {
        self.add_unit(name, Kind::Disk(Disk::new(size - size % u64::from(block), block)))
    }

    pub(crate) fn add_tape(&mut self, name: &str) -> Result<(), String> {
        self.add_unit(name, Kind::Tape(Tape::default()))
    }

    pub(crate) fn unit(&self, name: &str) -> Result<usize, String> {
        let found = self.units.iter().position(|unit| unit.name == name);
        found.ok_or_else(|| format!("there is no unit {name}"))
    }

    /// What an initiator sees at a target port. Its name goes before the port.
    pub(crate) fn map_of(&self, nexus: Nexus) -> impl Iterator<Item = (Lun, usize)> {
        let (name, port) = (Some(nexus.initiator), Some(usize::from(nexus.port).wrapping_sub(1)));
        let whom: [Whom; 4] = [(name, port), (name, None), (None, port), (None, None)];
        let map = whom.iter().find_map(|whom| self.maps.get(whom));
        map.into_iter().flatten().map(|(lun, unit)| (*lun, *unit))
    }

    /// The unit that a command of an initiator is for. What is mapped at this very LUN goes first.
    pub(crate) fn unit_at(&self, nexus: Nexus, lun: [u8; 8]) -> Option<usize> {
        let is_it = |known: Lun| known.is_named_by(lun, self.method, self.is_strict);
        let is_very = |(known, _): &(Lun, usize)| *known == Lun::Other(lun);
        let found = self.map_of(nexus).find(is_very).or_else(|| self.map_of(nexus).find(|at| is_it(at.0)));
        found.map(|(_, unit)| unit)
    }

    /// Changes a map. Those that it is for hear of it at what they see then.
    pub(crate) fn map(&mut self, whom: Whom, map: Option<Map>) {
        let before: HashMap<Nexus, Map> =
            self.nexuses().into_iter().map(|nexus| (nexus, self.map_of(nexus).collect())).collect();
        match map {
            Some(map) => self.maps.insert(whom, map),
            None => self.maps.remove(&whom),
        };
        for (nexus, before) in before {
            let now: Map = self.map_of(nexus).collect();
            if now != before {
                self.map_changed(nexus, &before);
                // What is in the way of a unit that is no longer there is not answered.
                let still: BTreeSet<usize> = self.map_of(nexus).map(|(_, unit)| unit).collect();
                self.abort(|task| task.nexus == nexus && !still.contains(&task.unit));
            }
        }
    }

    /// All that are logged in.
    pub(crate) fn nexuses(&self) -> BTreeSet<Nexus> {
        self.sessions.values().filter(|session| session.is_process).map(|session| session.nexus).collect()
    }

    /// PRLI: the first time an initiator hears of the start, later of the loss of its nexus.
    pub(crate) fn begin(&mut self, nexus: Nexus) {
        if self.known.len() >= MOST_KNOWN {
            self.known.clear();
            let here = self.nexuses();
            self.attentions.retain(|nexus, _| here.contains(&nexus));
        }
        let first = self.known.insert(nexus);
        let sense = if first { Sense::POWER_ON } else { Sense::I_T_NEXUS_LOSS };
        let units: Vec<usize> = self.map_of(nexus).map(|(_, unit)| unit).collect();
        for unit in units {
            self.attentions.retain(|of, at| (of, at) != (nexus, unit));
            self.attentions.add(nexus, unit, sense);
        }
    }

    /// An initiator is logged out of a target port.
    pub(crate) fn end_session(&mut self, port: usize, initiator: PortId) {
        self.sessions.remove(&(port, initiator));
        self.tasks.retain(|key, _| (key.port, key.initiator) != (port, initiator));
    }

    /// An initiator port is no longer in a fabric.
    pub(crate) fn gone(&mut self, fabric: usize, initiator: PortId) {
        let ports: Vec<usize> = (0..self.ports.len()).filter(|port| self.is_at(*port, fabric)).collect();
        ports.into_iter().for_each(|port| self.end_session(port, initiator));
    }

    pub(crate) fn is_silent(&self, port: usize) -> bool {
        self.ports.get(port).is_some_and(|port| port.is_silent)
    }

    fn is_at(&self, port: usize, fabric: usize) -> bool {
        self.ports.get(port).is_some_and(|port| port.fabric == fabric)
    }

    /// A target port goes or comes: whether that is a change. With it all its logins go.
    pub(crate) fn set_up(&mut self, number: usize, is_up: bool) -> bool {
        let Some(port) = self.ports.get_mut(number) else { return false };
        let changes = port.is_up != is_up;
        port.is_up = is_up;
        if !is_up {
            self.sessions.retain(|(port, _), _| *port != number);
            self.tasks.retain(|key, _| key.port != number);
        }
        changes
    }

    /// Power goes: nothing that was not meant to persist is left. Who logs in later hears of a start.
    pub(crate) fn lose_power(&mut self) {
        self.tasks.clear();
        self.units.iter_mut().for_each(Unit::lose_power);
        self.attentions.retain(|_, _| false);
        self.known.clear();
    }

    /// Ends tasks without an answer.
    pub(crate) fn abort(&mut self, which: impl Fn(&Task) -> bool) {
        self.tasks.retain(|_, task| !which(task));
    }

    pub(crate) fn context(&self, nexus: Nexus) -> Context<'_> {
        let port = self.ports.get(usize::from(nexus.port).wrapping_sub(1));
        let wwpn = port.map_or(Wwn(0), |port| port.wwpn);
        Context { nexus, groups: &self.groups, wwpn, wwnn: Self::WWNN }
    }

    /// A frame to a target port. One that is silent does not hear it.
    pub(crate) fn receive(
        &mut self,
        port: usize,
        from: Sender,
        header: &Header,
        payload: &[u8],
        now: u64,
        out: &mut Outbox,
    ) {
        if let Some(silent) = self.ports.get_mut(port).filter(|port| port.is_silent) {
            silent.unheard += 1;
            return;
        }
        match (header.r_ctl, header.kind) {
            (r_ctl::ELS_REQUEST, kind::ELS) => self.els(port, from, header, payload, out),
            (r_ctl::UNSOLICITED_COMMAND, kind::FCP) => self.command(port, from, header, payload, now, out),
            (r_ctl::SOLICITED_DATA, kind::FCP) => self.data(port, header, payload, out),
            (r_ctl::ABTS, kind::BLS) => {
                self.tasks.remove(&Key::of(port, header));
                out.notes.push(format!("ABTS of {} {:04x} at port {}", from.wwpn, header.ox_id, port + 1));
                let reply = header.reply(r_ctl::BA_ACC, header.rx_id);
                out.send(from.route, &reply, &aborted(header));
            }
            _ => {}
        }
    }
}

/// The relative target port identifier of a port's number.
pub(crate) fn relative(number: usize) -> u16 {
    u16::try_from(number + 1).unwrap_or(u16::MAX)
}

/// The data field of a frame, without what fills its last word.
pub(crate) fn payload<'a>(header: &Header, fc: &'a [u8]) -> Option<&'a [u8]> {
    let fill = usize::try_from(header.f_ctl & f_ctl::FILL).ok()?;
    // Optional headers are for what is not spoken here.
    (header.df_ctl == 0).then_some(())?;
    fc.get(HEADER..fc.len().checked_sub(fill)?)
}
