//! Link services of target ports: who logs in to them (FC-LS-3; PRLI of FCP: FCP-4 6.3).

use crate::array::{Array, Sender, Session, relative};
use crate::bytes::Fields;
use crate::els::{self, Answers, Reject, command};
use crate::frame::{Header, kind, r_ctl};
use crate::names::{PortId, Wwn};
use crate::outbox::Outbox;
use crate::scsi::Nexus;
use crate::tasks::Key;

/// The service parameter page's length, and that of a payload with one.
const PAGE: u8 = 16;
const PAYLOAD: u8 = 20;
/// Request executed; with an image pair established.
const EXECUTED: u16 = 0x0100;
const ESTABLISHED: u16 = 0x2000;
/// TARGET FUNCTION, and READ FCP_XFER_RDY DISABLED (FCP-4, table of PRLI accept parameters).
const TARGET: u32 = 0x0000_0012;

/// What accepts PRLI and PRLO: one page.
fn process(flags: u16, parameters: u32) -> Vec<u8> {
    let mut reply = vec![command::LS_ACC, PAGE, 0, PAYLOAD, kind::FCP, 0];
    reply.extend(flags.to_be_bytes());
    reply.extend([0; 8]);
    reply.extend(parameters.to_be_bytes());
    reply
}

impl Array {
    /// An extended link service request to a target port.
    pub(crate) fn els(
        &mut self,
        port: usize,
        from: Sender,
        header: &Header,
        payload: &[u8],
        out: &mut Outbox,
    ) {
        let key = (port, header.s_id);
        let Some(wwpn) = self.ports.get(port).map(|port| port.wwpn) else { return };
        let request = payload.byte(0).unwrap_or_default();
        let reply = match request {
            _ if let Some(reject) = self.reject(request, from.wwpn, port) => {
                out.notes.push(format!("{} at port {}: {reject:?}", from.wwpn, port + 1));
                if request == command::PLOGI {
                    self.end_session(port, header.s_id);
                }
                reject.payload().to_vec()
            }
            command::PLOGI if payload.len() < els::LOGIN => Reject::LENGTH.payload().to_vec(),
            command::PLOGI => {
                // It ends what there was.
                self.end_session(port, header.s_id);
                let nexus = Nexus { initiator: from.wwpn, port: relative(port) };
                self.sessions
                    .insert(key, Session { nexus, route: from.route, is_process: false, commands: 0 });
                els::login(Answers::Port, wwpn, Self::WWNN)
            }
            command::PDISC | command::ADISC if !self.sessions.contains_key(&key) => {
                Reject::LOGIN_REQUIRED.payload().to_vec()
            }
            command::PDISC => els::login(Answers::Port, wwpn, Self::WWNN),
            command::ADISC => els::addresses(wwpn, Self::WWNN, header.d_id),
            command::PRLI => self.log_in_process(port, header.s_id, payload, out),
            command::PRLO => {
                self.end_process(key);
                process(EXECUTED, 0)
            }
            command::LOGO => {
                self.end_session(port, header.s_id);
                els::ACCEPT.to_vec()
            }
            command::RTV => els::timeouts(),
            command::RRQ => els::ACCEPT.to_vec(),
            command::REC if self.has_no_rec => Reject::NOT_SUPPORTED.payload().to_vec(),
            command::REC => self.exchange(port, header, payload),
            _ => Reject::NOT_SUPPORTED.payload().to_vec(),
        };
        let header = header.reply(r_ctl::ELS_REPLY, out.exchange());
        out.send(from.route, &header, &reply);
    }

    /// The reject for this login, if a test wants one.
    fn reject(&self, request: u8, initiator: Wwn, port: usize) -> Option<Reject> {
        let (name, at, reject) = self.rejects.get(&request)?;
        (name.is_none_or(|name| name == initiator) && at.is_none_or(|at| at == port)).then_some(*reject)
    }

    fn log_in_process(&mut self, port: usize, id: PortId, payload: &[u8], out: &mut Outbox) -> Vec<u8> {
        let Some(session) = self.sessions.get_mut(&(port, id)) else {
            return Reject::LOGIN_REQUIRED.payload().to_vec();
        };
        let (Some(of), Some(flags)) = (payload.byte(4), payload.be16(6)) else {
            return Reject::LENGTH.payload().to_vec();
        };
        if of != kind::FCP {
            return Reject::NOT_SUPPORTED.payload().to_vec();
        }
        let establishes = flags & ESTABLISHED != 0;
        if establishes {
            session.is_process = true;
            let nexus = session.nexus;
            out.notes.push(format!("{} logged in at port {}", nexus.initiator, nexus.port));
            self.tasks.retain(|key, _| (key.port, key.initiator) != (port, id));
            self.begin(nexus);
        }
        process(EXECUTED | if establishes { ESTABLISHED } else { 0 }, TARGET)
    }

    fn end_process(&mut self, key: (usize, PortId)) {
        if let Some(session) = self.sessions.get_mut(&key) {
            session.is_process = false;
        }
        self.tasks.retain(|task, _| (task.port, task.initiator) != key);
    }

    /// REC: how far an exchange is (FC-LS-3 4.38).
    fn exchange(&self, port: usize, header: &Header, payload: &[u8]) -> Vec<u8> {
        let (Some(originator), Some(ox_id)) = (payload.be24(5), payload.be16(8)) else {
            return Reject::LENGTH.payload().to_vec();
        };
        let key = Key { port, initiator: header.s_id, ox_id };
        let Some(task) = self.tasks.get(&key).filter(|_| originator == header.s_id.0) else {
            return Reject::UNKNOWN_EXCHANGE.payload().to_vec();
        };
        let mut reply = els::ACCEPT.to_vec();
        reply.extend(ox_id.to_be_bytes());
        reply.extend(task.rx_id.to_be_bytes());
        reply.extend(header.s_id.0.to_be_bytes());
        reply.extend(header.d_id.0.to_be_bytes());
        reply.extend(task.moved().to_be_bytes());
        // E_STAT: the responder's side. The initiative is ours unless data are awaited.
        let waits = if task.awaits_data() { 0 } else { 0x4000_0000 };
        reply.extend((0x8000_0000_u32 | waits).to_be_bytes());
        reply
    }

    /// A target port logs initiators out: all of a name. One that is silent does not.
    pub(crate) fn send_logo(&mut self, port: usize, id: PortId, initiator: Wwn, out: &mut Outbox) {
        let speaks = self.ports.get(port).filter(|port| !port.is_silent);
        let Some(wwpn) = speaks.map(|port| port.wwpn) else { return };
        let named = self
            .sessions
            .iter()
            .filter(|((at, _), session)| *at == port && session.nexus.initiator == initiator);
        let ids: Vec<_> = named.map(|((_, id), session)| (*id, session.route)).collect();
        for (initiator, route) in ids {
            let header = Header::request(r_ctl::ELS_REQUEST, kind::ELS, id, initiator, out.exchange());
            out.send(route, &header, &els::logo(id, wwpn));
            self.end_session(port, initiator);
        }
    }
}
