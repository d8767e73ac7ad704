//! Fabrics, links and the array, together: frames in, frames out.

use crate::array::{Array, Sender, payload};
use crate::fabric::{Fabric, Place};
use crate::fip::Operation;
use crate::frame::{ETHERTYPE_FCOE, ETHERTYPE_FIP, Header, ethernet, is_whole, unpack};
use crate::names::{Mac, Wwn};
use crate::outbox::{Outbox, What};

/// A network interface whose far end hosts have.
pub(crate) struct Link {
    pub(crate) name: String,
    /// By its place among the fabrics.
    pub(crate) fabric: usize,
}

/// All there is.
pub struct San {
    pub(crate) fabrics: Vec<Fabric>,
    pub(crate) links: Vec<Link>,
    pub(crate) array: Array,
    /// Frames that came, that went on to another N_Port, and that were for nobody or from nobody.
    pub(crate) received: u64,
    pub(crate) forwarded: u64,
    pub(crate) dropped: u64,
}

impl San {
    /// Fabrics, each with links of these names, and the array with so many target ports at each.
    pub fn new(fabrics: &[Vec<String>], ports: usize) -> Self {
        let mut san = Self {
            fabrics: Vec::new(),
            links: Vec::new(),
            array: Array::default(),
            received: 0,
            forwarded: 0,
            dropped: 0,
        };
        for (number, names) in fabrics.iter().enumerate() {
            let first = san.links.len();
            let link = |name: &String| Link { name: name.clone(), fabric: number };
            san.links.extend(names.iter().map(link));
            let domain = u8::try_from(number + 1).unwrap_or(u8::MAX);
            san.fabrics.push(Fabric::new(domain, (first..san.links.len()).collect()));
            for _ in 0..ports {
                let port = san.array.add_port(number);
                san.attach(port, &mut Outbox::default());
            }
        }
        san
    }

    /// A target port logs in to its fabric.
    fn attach(&mut self, port: usize, out: &mut Outbox) {
        if let Some(target) = self.array.ports.get(port)
            && let Some(fabric) = self.fabrics.get_mut(target.fabric)
        {
            fabric.add_target(port, target.wwpn, Array::WWNN, out);
        }
    }

    /// A frame that came in at a link, at a time in milliseconds.
    pub fn receive(&mut self, link: usize, frame: &[u8], now: u64, out: &mut Outbox) {
        self.received += 1;
        if self.take(link, frame, now, out).is_none() {
            self.dropped += 1;
        }
        self.settle();
    }

    /// None for a frame that is not taken.
    fn take(&mut self, link: usize, frame: &[u8], now: u64, out: &mut Outbox) -> Option<()> {
        let number = self.links.get(link)?.fabric;
        let fabric = self.fabrics.get_mut(number).filter(|fabric| fabric.off_until.is_none())?;
        let (_, from, ethertype) = ethernet(frame)?;
        match ethertype {
            ETHERTYPE_FIP => {
                let operation = Operation::read(frame)?;
                if from != fabric.mac() && !out.losses.take_kind(What::Fip) {
                    fabric.fip(link, from, &operation, now, out);
                }
                Some(())
            }
            ETHERTYPE_FCOE => self.take_fc(link, number, from, frame, now, out),
            _ => None,
        }
    }

    fn take_fc(
        &mut self,
        link: usize,
        number: usize,
        from: Mac,
        frame: &[u8],
        now: u64,
        out: &mut Outbox,
    ) -> Option<()> {
        let fabric = self.fabrics.get_mut(number)?;
        let fc = unpack(frame)?;
        let header = Header::read(fc)?;
        let sender = fabric.sender(link, from, header.s_id, now)?.wwpn;
        if header.d_id.is_well_known() {
            let payload = payload(&header, fc).filter(|_| is_whole(frame, fc))?;
            if !out.losses.take(&header) {
                fabric.service(&header, payload, out);
            }
            return Some(());
        }
        let (sender_port, port) = (fabric.ports.get(&header.s_id)?, fabric.ports.get(&header.d_id)?);
        if !fabric.sees(sender_port, port) {
            return None;
        }
        match port.place {
            Place::Node { .. } => {
                self.forwarded += 1;
                out.forward(fabric.route(port)?, &header, frame);
            }
            Place::Array(target) => {
                let sender = Sender { wwpn: sender, route: fabric.route(sender_port)? };
                let payload = payload(&header, fc).filter(|_| is_whole(frame, fc))?;
                if !out.losses.take(&header) {
                    self.array.receive(target, sender, &header, payload, now, out);
                }
            }
        }
        Some(())
    }

    /// The array hears of ports that are gone.
    fn settle(&mut self) {
        for (number, fabric) in self.fabrics.iter_mut().enumerate() {
            for id in fabric.gone.drain(..) {
                self.array.gone(number, id);
            }
        }
    }

    /// A link has no carrier any more.
    pub fn link_down(&mut self, link: usize, out: &mut Outbox) {
        if let Some(fabric) = self.links.get(link).and_then(|link| self.fabrics.get_mut(link.fabric)) {
            fabric.link_down(link, out);
        }
        self.settle();
    }

    /// Does what is due, and returns when to be called again at the latest.
    pub fn tick(&mut self, now: u64, out: &mut Outbox) -> u64 {
        let mut next = self.array.tick(now, out).unwrap_or(u64::MAX);
        for fabric in &mut self.fabrics {
            next = next.min(fabric.tick(now, out));
        }
        self.settle();
        next
    }

    /// A target port goes down or comes up.
    pub(crate) fn set_target(&mut self, port: usize, is_up: bool, out: &mut Outbox) {
        if !self.array.set_up(port, is_up) {
            return;
        }
        if is_up {
            return self.attach(port, out);
        }
        let wwpn = self.array.ports.get(port).map(|port| (port.fabric, port.wwpn));
        if let Some((fabric, wwpn)) = wwpn
            && let Some(fabric) = self.fabrics.get_mut(fabric)
            && let Some(id) = fabric.by_name(wwpn).map(|port| port.id)
        {
            fabric.remove(id, "port down", out);
        }
        self.settle();
    }

    /// The array loses power, and has it back or not. Its ports go, and with them all logins; those come that were up.
    pub(crate) fn power(&mut self, goes: bool, comes: bool, out: &mut Outbox) {
        if goes {
            for port in 0..self.array.ports.len() {
                let was_up = self.array.ports.get(port).is_some_and(|port| port.is_up);
                self.set_target(port, false, out);
                if was_up && let Some(port) = self.array.ports.get_mut(port) {
                    port.has_power_cut = true;
                }
            }
            self.array.lose_power();
        }
        for port in 0..self.array.ports.len() {
            let target = self.array.ports.get_mut(port);
            if comes && target.is_some_and(|port| std::mem::take(&mut port.has_power_cut)) {
                self.set_target(port, true, out);
            }
        }
    }

    /// A target port's address.
    pub(crate) fn target_id(&self, port: usize) -> Option<crate::names::PortId> {
        let target = self.array.ports.get(port)?;
        Some(self.fabrics.get(target.fabric)?.by_name(target.wwpn)?.id)
    }

    /// A target port's name, for an initiator to look for.
    pub fn target(&self, port: usize) -> Option<Wwn> {
        self.array.ports.get(port).map(|port| port.wwpn)
    }

    /// The names of all links.
    pub fn links(&self) -> impl Iterator<Item = &str> {
        self.links.iter().map(|link| link.name.as_str())
    }

    /// What a command did to logins reaches the array.
    pub(crate) fn settle_after_command(&mut self) {
        self.settle();
    }
}
