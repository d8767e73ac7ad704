//! What answers at the fabric's well-known addresses: link services of the F_Port, the fabric controller and the directory.

use crate::bytes::Fields;
use crate::els::{self, Answers, Reject, command};
use crate::fabric::{Fabric, Login};
use crate::frame::{Header, kind, r_ctl};
use crate::names::{PortId, Wwn};
use crate::outbox::Outbox;

impl Fabric {
    /// A frame from the port `header.s_id`, which is logged in, to a well-known address.
    pub(crate) fn service(&mut self, header: &Header, payload: &[u8], out: &mut Outbox) {
        match (header.r_ctl, header.kind) {
            (r_ctl::ELS_REQUEST, kind::ELS) => self.service_els(header, payload, out),
            (r_ctl::UNSOLICITED_CONTROL, kind::CT) if header.d_id == PortId::DIRECTORY => {
                self.directory(header, payload, out);
            }
            (r_ctl::ABTS, kind::BLS) => self.answer(header, r_ctl::BA_ACC, &aborted(header), out),
            _ => {}
        }
    }

    /// Answers in the exchange that `header` began.
    pub(crate) fn answer(&self, header: &Header, r_ctl: u8, payload: &[u8], out: &mut Outbox) {
        if let Some(route) = self.ports.get(&header.s_id).and_then(|port| self.route(port)) {
            let header = header.reply(r_ctl, out.exchange());
            out.send(route, &header, payload);
        }
    }

    fn service_els(&mut self, header: &Header, payload: &[u8], out: &mut Outbox) {
        let (id, to) = (header.s_id, header.d_id);
        let Some(wwpn) = self.ports.get(&id).map(|port| port.wwpn) else { return };
        let answers = to == PortId::DIRECTORY || to == PortId::FABRIC_CONTROLLER;
        let mut leaves = false;
        let reply = match payload.byte(0).unwrap_or_default() {
            command::PLOGI if answers => match self.reject(Login::Plogi, wwpn) {
                Some(reject) => reject.payload().to_vec(),
                None => {
                    let port =
                        Wwn(0x2100_02fc_f000_0000 | u64::from(to.0 & 0xff) << 8 | u64::from(self.domain));
                    els::login(Answers::Port, port, self.name())
                }
            },
            command::SCR if to == PortId::FABRIC_CONTROLLER => match payload.byte(7) {
                // 1 to 3 are what to register for, 255 is for nothing any more.
                Some(function @ (1..=3 | 0xff)) => {
                    if let Some(port) = self.ports.get_mut(&id) {
                        port.is_registered = function != 0xff;
                    }
                    els::ACCEPT.to_vec()
                }
                _ => Reject::LENGTH.payload().to_vec(),
            },
            command::LOGO => {
                leaves = to == PortId::F_PORT;
                els::ACCEPT.to_vec()
            }
            command::RTV => els::timeouts(),
            command::RRQ => els::ACCEPT.to_vec(),
            command::ECHO => [&[command::LS_ACC], payload.get(1..).unwrap_or_default()].concat(),
            _ => Reject::NOT_SUPPORTED.payload().to_vec(),
        };
        self.answer(header, r_ctl::ELS_REPLY, &reply, out);
        if leaves {
            self.remove(id, "LOGO", out);
        }
    }
}

/// What accepts an ABTS of a whole exchange (FC-FS-3 16.3, BA_ACC).
pub(crate) fn aborted(header: &Header) -> Vec<u8> {
    let ids = [header.ox_id.to_be_bytes(), header.rx_id.to_be_bytes()].concat();
    [&[0; 4], &ids[..], &[0, 0, 0xff, 0xff]].concat()
}
