//! A fabric: who is logged in at which of its ports, the initialization protocol, and who may see whom.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::addresses::Addresses;
use crate::bytes::Fields;
use crate::directory::Entry;
use crate::els::{self, Answers, Reject};
use crate::fip::{self, List, Operation, descriptor};
use crate::frame::{HEADER, Header, kind, r_ctl};
use crate::names::{FC_MAP, Mac, PortId, Wwn, mac_text};
use crate::outbox::{Outbox, Route};

/// Where an N_Port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On a node at the far end of a link.
    Node { link: usize, node: Mac },
    /// A port of the array, which is in this process.
    Array(usize),
}

/// An N_Port that is logged in.
pub(crate) struct NPort {
    pub(crate) id: PortId,
    pub(crate) wwpn: Wwn,
    pub(crate) wwnn: Wwn,
    pub(crate) place: Place,
    /// By FDISC.
    pub(crate) is_virtual: bool,
    /// Whether it wants to hear of changes.
    pub(crate) is_registered: bool,
    pub(crate) entry: Entry,
    heard: u64,
}

/// A login that can be rejected on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Login {
    Flogi,
    Fdisc,
    Plogi,
}

/// A fabric, with one switch.
pub(crate) struct Fabric {
    pub(crate) domain: u8,
    pub(crate) links: Vec<usize>,
    pub(crate) ports: BTreeMap<PortId, NPort>,
    pub(crate) addresses: Addresses,
    pub(crate) zones: BTreeMap<String, BTreeSet<Wwn>>,
    pub(crate) npiv: bool,
    pub(crate) rejects: BTreeMap<Login, (Option<Wwn>, Reject)>,
    /// FKA_ADV_PERIOD, in milliseconds.
    pub(crate) period: u32,
    /// Whether nodes that send no keep-alive are logged out.
    pub(crate) wants_keep_alive: bool,
    next_advertisement: u64,
    /// It is off until then.
    pub(crate) off_until: Option<u64>,
    /// Nodes that were logged in when it went off.
    forgotten: BTreeSet<(usize, Mac)>,
    /// Ports that are gone, for the array to hear of.
    pub(crate) gone: Vec<PortId>,
}

impl Fabric {
    pub(crate) fn new(domain: u8, links: Vec<usize>) -> Self {
        Self {
            domain,
            links,
            ports: BTreeMap::new(),
            addresses: Addresses::default(),
            zones: BTreeMap::new(),
            npiv: true,
            rejects: BTreeMap::new(),
            period: 8000,
            wants_keep_alive: true,
            next_advertisement: 0,
            off_until: None,
            forgotten: BTreeSet::new(),
            gone: Vec::new(),
        }
    }

    /// The forwarder's address: locally administered, as are the company's bytes in all names here.
    pub(crate) fn mac(&self) -> Mac {
        [0x02, 0xfc, 0xf0, 0, 0, self.domain]
    }

    /// The switch's name, which is the fabric's as well: format 1, of its address.
    pub(crate) fn name(&self) -> Wwn {
        Wwn(0x1000_02fc_f000_0000 | u64::from(self.domain))
    }

    /// The name of the port that a link is at.
    pub(crate) fn port_name(&self, link: usize) -> Wwn {
        Wwn(0x2000_02fc_f000_0000 | u64::from(self.area(link)) << 48 | u64::from(self.domain))
    }

    fn area(&self, link: usize) -> u8 {
        let at = self.links.iter().position(|&other| other == link).unwrap_or_default();
        u8::try_from(at + 1).unwrap_or(u8::MAX)
    }

    pub(crate) fn route(&self, port: &NPort) -> Option<Route> {
        match port.place {
            Place::Node { link, .. } => Some(Route { link, to: port.id.mac(), from: self.mac() }),
            Place::Array(_) => None,
        }
    }

    pub(crate) fn by_name(&self, wwpn: Wwn) -> Option<&NPort> {
        self.ports.values().find(|port| port.wwpn == wwpn)
    }

    /// Whether two ports are in a zone together. Without zones all are.
    pub(crate) fn sees(&self, one: &NPort, other: &NPort) -> bool {
        let both = |zone: &BTreeSet<Wwn>| zone.contains(&one.wwpn) && zone.contains(&other.wwpn);
        self.zones.is_empty() || self.zones.values().any(both)
    }

    /// The port that a frame claims to be from, if it is on this link and has this address.
    pub(crate) fn sender(&mut self, link: usize, mac: Mac, id: PortId, now: u64) -> Option<&NPort> {
        let port = self.ports.get_mut(&id)?;
        let is_there = matches!(port.place, Place::Node { link: at, .. } if at == link) && mac == id.mac();
        is_there.then(|| {
            port.heard = now;
            &*port
        })
    }

    /// An address for a name, on a link.
    fn free_id(&mut self, link: usize, wwpn: Wwn) -> Option<PortId> {
        let base = u32::from(self.domain) << 16 | u32::from(self.area(link)) << 8;
        self.addresses
            .choose(wwpn, (1..=254).map(|port| PortId(base | port)), |id| !self.ports.contains_key(&id))
    }

    /// A port of the array comes.
    pub(crate) fn add_target(&mut self, number: usize, wwpn: Wwn, wwnn: Wwn, out: &mut Outbox) {
        let base = u32::from(self.domain) << 16 | 0xf000;
        let ids = (0..=254).map(|port| PortId(base | port));
        let Some(id) = self.addresses.choose(wwpn, ids, |id| !self.ports.contains_key(&id)) else { return };
        let place = Place::Array(number);
        let (is_virtual, is_registered, entry) = (false, false, Entry::target());
        self.ports.insert(id, NPort { id, wwpn, wwnn, place, is_virtual, is_registered, entry, heard: 0 });
        self.announce(id, "came", out);
    }

    /// Tells who sees the port and wants to hear of it that it came or went.
    pub(crate) fn announce(&self, about: PortId, what: &str, out: &mut Outbox) {
        let Some(port) = self.ports.get(&about) else { return };
        let hears = |other: &&NPort| other.is_registered && other.id != about && self.sees(other, port);
        for other in self.ports.values().filter(hears) {
            out.notes.push(format!("RSCN to {}: {about} {what}", other.id));
            self.notify(other, Some(about), out);
        }
    }

    /// Tells all that want to hear of changes to look at everything anew.
    pub(crate) fn announce_all(&self, out: &mut Outbox) {
        for port in self.ports.values().filter(|port| port.is_registered) {
            self.notify(port, None, out);
        }
    }

    fn notify(&self, port: &NPort, about: Option<PortId>, out: &mut Outbox) {
        let Some(route) = self.route(port) else { return };
        let from = PortId::FABRIC_CONTROLLER;
        let header = Header::request(r_ctl::ELS_REQUEST, kind::ELS, from, port.id, out.exchange());
        out.send(route, &header, &els::rscn(about));
    }

    /// Logs a port out.
    pub(crate) fn remove(&mut self, id: PortId, why: &str, out: &mut Outbox) {
        self.announce(id, "went", out);
        if let Some(port) = self.ports.remove(&id) {
            out.notes.push(format!("{} {id} logged out: {why}", port.wwpn));
            self.gone.push(id);
        }
    }

    fn remove_all(&mut self, which: impl Fn(&NPort) -> bool, why: &str, out: &mut Outbox) {
        let ids: Vec<PortId> = self.ports.values().filter(|port| which(port)).map(|port| port.id).collect();
        ids.into_iter().for_each(|id| self.remove(id, why, out));
    }

    /// A link lost its carrier.
    pub(crate) fn link_down(&mut self, link: usize, out: &mut Outbox) {
        self.remove_all(
            |port| matches!(port.place, Place::Node { link: at, .. } if at == link),
            "link down",
            out,
        );
    }

    /// All logins are forgotten, and nothing is heard or said for so long.
    pub(crate) fn restart(&mut self, until: u64, out: &mut Outbox) {
        for port in self.ports.values() {
            if let Place::Node { link, node } = port.place {
                self.forgotten.insert((link, node));
            }
        }
        // Nobody is there to tell, so first nobody wants to hear.
        self.ports.values_mut().for_each(|port| port.is_registered = false);
        self.remove_all(|port| matches!(port.place, Place::Node { .. }), "fabric restart", out);
        self.off_until = Some(until);
    }

    /// What is due by now. Returns when to look again.
    pub(crate) fn tick(&mut self, now: u64, out: &mut Outbox) -> u64 {
        if let Some(until) = self.off_until {
            if now < until {
                return until;
            }
            self.off_until = None;
            self.next_advertisement = now;
            for (link, node) in std::mem::take(&mut self.forgotten) {
                self.clear_virtual_links(link, node, &[], out);
            }
        }
        if now >= self.next_advertisement {
            for &link in &self.links {
                self.advertise(link, fip::ALL_ENODE_MACS, 0, out);
            }
            self.next_advertisement = now + u64::from(self.period).max(10);
            if self.wants_keep_alive {
                self.expire(now, out);
            }
        }
        self.next_advertisement
    }

    /// Advertises at once, as the period changed.
    pub(crate) fn advertise_now(&mut self) {
        self.next_advertisement = 0;
    }

    /// Logs out nodes that were silent for two and a half periods (FC-BB-5 7.8.6.2 for D bit and period).
    fn expire(&mut self, now: u64, out: &mut Outbox) {
        let mut heard: HashMap<Mac, u64> = HashMap::new();
        for port in self.ports.values() {
            if let Place::Node { node, .. } = port.place {
                let last = heard.entry(node).or_default();
                *last = port.heard.max(*last);
            }
        }
        let limit = u64::from(self.period) * 5 / 2;
        let silent = |node: &Mac| heard.get(node).is_some_and(|last| now.saturating_sub(*last) > limit);
        self.remove_all(
            |port| matches!(port.place, Place::Node { node, .. } if silent(&node)),
            "no keep-alive",
            out,
        );
    }

    fn advertise(&self, link: usize, to: Mac, flags: u16, out: &mut Outbox) {
        let [_, a, b, c] = FC_MAP.to_be_bytes();
        let name = self.name().0.to_be_bytes();
        let operation = List::default()
            .with(descriptor::PRIORITY, &[&[0, 128]])
            .with(descriptor::MAC_ADDRESS, &[&self.mac()])
            .with(descriptor::NAME_IDENTIFIER, &[&[0, 0], &name])
            // The virtual fabric, none, and the FC-MAP.
            .with(descriptor::FABRIC, &[&[0, 0, 0, a, b, c], &name])
            .with(descriptor::FKA_ADV_PERIOD, &[&[0, 0], &self.period.to_be_bytes()])
            .operation(fip::ADVERTISEMENT, fip::FP | fip::A | fip::F | flags);
        out.fip(link, to, self.mac(), &operation);
    }

    /// Clear Virtual Links: of these ports, or without any of the whole node.
    pub(crate) fn clear_virtual_links(
        &self,
        link: usize,
        node: Mac,
        ports: &[(PortId, Wwn)],
        out: &mut Outbox,
    ) {
        let mut list = List::default()
            .with(descriptor::MAC_ADDRESS, &[&self.mac()])
            .with(descriptor::NAME_IDENTIFIER, &[&[0, 0], &self.name().0.to_be_bytes()]);
        for (id, wwpn) in ports {
            let body: [&[u8]; 4] = [&id.mac(), &[0], &id.bytes(), &wwpn.0.to_be_bytes()];
            list = list.with(descriptor::VN_PORT, &body);
        }
        out.fip(link, node, self.mac(), &list.operation(fip::CLEAR_VIRTUAL_LINKS, fip::FP));
    }

    /// An operation of the initialization protocol from a node.
    pub(crate) fn fip(
        &mut self,
        link: usize,
        node: Mac,
        operation: &Operation<'_>,
        now: u64,
        out: &mut Outbox,
    ) {
        match operation.code {
            fip::SOLICITATION => self.advertise(link, node, fip::S, out),
            fip::VLAN_REQUEST => {
                // Zero: frames have no tag.
                let list = List::default()
                    .with(descriptor::MAC_ADDRESS, &[&self.mac()])
                    .with(descriptor::VLAN, &[&[0, 0]]);
                out.fip(link, node, self.mac(), &list.operation(fip::VLAN_NOTIFICATION, fip::FP | fip::A));
            }
            fip::KEEP_ALIVE => self.keep_alive(link, node, operation, now, out),
            fip::LINK_SERVICE_REQUEST => {
                let _ = self.link_service(link, node, operation, now, out);
            }
            _ => {}
        }
    }

    /// A node, or one of its ports, is there. What is not logged in hears so. Those of ports come from the port's address; the
    /// node's is in its descriptor (FC-BB-5, table of FIP operations and their descriptors).
    fn keep_alive(&mut self, link: usize, from: Mac, operation: &Operation<'_>, now: u64, out: &mut Outbox) {
        let node =
            operation.descriptor(descriptor::MAC_ADDRESS).and_then(|body| body.chunk(0)).unwrap_or(from);
        let here = Place::Node { link, node };
        let mut is_known = false;
        for port in self.ports.values_mut().filter(|port| port.place == here) {
            (port.heard, is_known) = (now, true);
        }
        if !is_known {
            return self.clear_virtual_links(link, node, &[], out);
        }
        let port = operation.descriptor(descriptor::VN_PORT);
        let port = port.and_then(|body| Some((PortId(body.be24(7)?), Wwn(body.be64(10)?))));
        if let Some((id, wwpn)) = port
            && self.ports.get(&id).is_none_or(|port| port.place != here)
        {
            self.clear_virtual_links(link, node, &[(id, wwpn)], out);
        }
    }

    /// FLOGI, FDISC or LOGO in a descriptor: two bytes, then an FC frame without its CRC.
    fn link_service(
        &mut self,
        link: usize,
        node: Mac,
        operation: &Operation<'_>,
        now: u64,
        out: &mut Outbox,
    ) -> Option<()> {
        let (kind, body) = operation.descriptors().next()?;
        let fc = body.get(2..)?;
        let (header, payload) = (Header::read(fc)?, fc.get(HEADER..)?);
        let reply = match kind {
            descriptor::FLOGI | descriptor::FDISC => {
                let login = if kind == descriptor::FLOGI { Login::Flogi } else { Login::Fdisc };
                match self.log_in(link, node, login, payload, now, out) {
                    Ok(id) => {
                        let npiv = Answers::Fabric { npiv: self.npiv };
                        (id, els::login(npiv, self.port_name(link), self.name()), Some(id.mac()))
                    }
                    Err(reject) => {
                        out.notes.push(format!("{login:?} of {} rejected: {reject:?}", mac_text(node)));
                        (PortId(0), reject.payload().to_vec(), None)
                    }
                }
            }
            descriptor::LOGO => {
                let here = Place::Node { link, node };
                if self.ports.get(&header.s_id).is_some_and(|port| port.place == here) {
                    self.remove(header.s_id, "LOGO", out);
                }
                (header.s_id, els::ACCEPT.to_vec(), Some(header.s_id.mac()))
            }
            _ => return None,
        };
        let (id, payload, mac) = reply;
        let mut header = header.reply(r_ctl::ELS_REPLY, out.exchange());
        (header.d_id, header.s_id) = (id, PortId::F_PORT);
        let mut fc = Vec::new();
        header.append(&mut fc);
        // The link service's own descriptor comes first, then the address that goes with it.
        let mut list = List::default().with(kind, &[&[0, 0], &fc, &payload]);
        if let Some(mac) = mac {
            list = list.with(descriptor::MAC_ADDRESS, &[&mac]);
        }
        out.fip(link, node, self.mac(), &list.operation(fip::LINK_SERVICE_REPLY, fip::FP));
        Some(())
    }

    fn log_in(
        &mut self,
        link: usize,
        node: Mac,
        login: Login,
        payload: &[u8],
        now: u64,
        out: &mut Outbox,
    ) -> Result<PortId, Reject> {
        let short = || Reject::LENGTH;
        let wwpn = Wwn(payload.be64(20).ok_or_else(short)?);
        let wwnn = Wwn(payload.be64(28).ok_or_else(short)?);
        if let Some(reject) = self.reject(login, wwpn) {
            return Err(reject);
        }
        let here = Place::Node { link, node };
        if login == Login::Flogi {
            self.remove_all(|port| port.place == here, "FLOGI anew", out);
        } else if !self.npiv || !self.ports.values().any(|port| port.place == here && !port.is_virtual) {
            return Err(Reject::LOGIN_REQUIRED);
        }
        match self.by_name(wwpn).map(|port| (port.id, port.place, port.is_virtual)) {
            None => {}
            // A name that is somewhere else, or the node's own: invalid N_Port_Name.
            Some((_, place, is_virtual)) if place != here || !is_virtual => return Err(Reject(0x03, 0x0d)),
            Some((id, ..)) => self.remove(id, "FDISC anew", out),
        }
        // Insufficient resources to support the login.
        let id = self.free_id(link, wwpn).ok_or(Reject(0x09, 0x29))?;
        let is_virtual = login == Login::Fdisc;
        let entry = Entry::default();
        self.ports.insert(
            id,
            NPort { id, wwpn, wwnn, place: here, is_virtual, is_registered: false, entry, heard: now },
        );
        out.notes.push(format!("{login:?} of {wwpn}: {id}"));
        Ok(id)
    }

    /// The reject for this login, if a test wants one.
    pub(crate) fn reject(&self, login: Login, wwpn: Wwn) -> Option<Reject> {
        let (who, reject) = self.rejects.get(&login)?;
        who.is_none_or(|who| who == wwpn).then_some(*reject)
    }
}
