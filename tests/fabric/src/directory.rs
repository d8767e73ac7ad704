//! The directory server's name service (FC-GS-7 clause 6): what ports there are, and what they say of themselves.

use crate::bytes::Fields;
use crate::fabric::{Fabric, NPort};
use crate::frame::{Header, kind, r_ctl};
use crate::names::{PortId, Wwn};
use crate::outbox::Outbox;

/// Command codes of the name service (FC-GS-7 6.2.2, table of request command codes).
mod command {
    pub(super) const GA_NXT: u16 = 0x0100;
    pub(super) const GPN_ID: u16 = 0x0112;
    pub(super) const GNN_ID: u16 = 0x0113;
    pub(super) const GFT_ID: u16 = 0x0117;
    pub(super) const GSPN_ID: u16 = 0x0118;
    pub(super) const GFF_ID: u16 = 0x011f;
    pub(super) const GID_PN: u16 = 0x0121;
    pub(super) const GID_FT: u16 = 0x0171;
    pub(super) const GPN_FT: u16 = 0x0172;
    pub(super) const GNN_FT: u16 = 0x0173;
    pub(super) const RPN_ID: u16 = 0x0212;
    pub(super) const RNN_ID: u16 = 0x0213;
    pub(super) const RCS_ID: u16 = 0x0214;
    pub(super) const RFT_ID: u16 = 0x0217;
    pub(super) const RSPN_ID: u16 = 0x0218;
    pub(super) const RPT_ID: u16 = 0x021a;
    pub(super) const RFF_ID: u16 = 0x021f;
    pub(super) const RSNN_NN: u16 = 0x0239;
    pub(super) const DA_ID: u16 = 0x0300;
    pub(super) const ACCEPT: u16 = 0x8002;
    pub(super) const REJECT: u16 = 0x8001;
}

/// The CT preamble (FC-GS-7 4.3).
const PREAMBLE: usize = 16;
/// Directory service, name server (FC-GS-7, tables of GS_Type and GS_Subtype).
const NAME_SERVER: (u8, u8) = (0xfc, 0x02);

/// Reason and explanation (FC-GS-7 4.4.4, and for the explanations 6.2.4).
#[derive(Debug, PartialEq, Eq)]
struct Reject(u8, u8);

const INVALID_SIZE: Reject = Reject(0x04, 0);
const NO_PORT_ID: Reject = Reject(0x09, 0x01);
const NO_PORT_NAME: Reject = Reject(0x09, 0x02);
const NO_TYPE: Reject = Reject(0x09, 0x07);
const ACCESS_DENIED: Reject = Reject(0x09, 0x10);
const NOT_SUPPORTED: Reject = Reject(0x0b, 0);

/// What a port registered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    /// A bit for each FC-4 type, in words of 32.
    types: [u8; 32],
    /// Bits of each type that has some: 1 target, 2 initiator.
    features: Vec<(u8, u8)>,
    symbolic: Vec<u8>,
}

impl Entry {
    /// A target of FCP.
    pub(crate) fn target() -> Self {
        let mut types = [0; 32];
        types[2] = 1;
        Self { types, features: vec![(kind::FCP, 1)], symbolic: b"array".to_vec() }
    }

    /// Whether it can do this FC-4 type (FC-GS-7 6.2.3.4: words of 32 types, bit 0 the least).
    fn does(&self, kind: u8) -> bool {
        let at = usize::from(kind >> 5) * 4 + 3 - usize::from((kind >> 3) & 3);
        self.types.get(at).is_some_and(|byte| byte >> (kind & 7) & 1 == 1)
    }

    fn feature(&self, kind: u8) -> u8 {
        self.features.iter().find_map(|(of, bits)| (*of == kind).then_some(*bits)).unwrap_or_default()
    }

    /// How programs may show it.
    pub(crate) fn text(&self) -> String {
        let roles = ["", " target", " initiator", " target initiator"];
        let role = roles.get(usize::from(self.feature(kind::FCP) & 3)).copied().unwrap_or_default();
        format!("{}{role}", String::from_utf8_lossy(&self.symbolic).escape_debug())
    }
}

impl Fabric {
    /// A request to the directory.
    pub(crate) fn directory(&mut self, header: &Header, payload: &[u8], out: &mut Outbox) {
        let Some(preamble) = payload.chunk::<PREAMBLE>(0) else { return };
        let [revision, a, b, c, service, subtype, _, _, high, low, ..] = preamble;
        let code = u16::from_be_bytes([high, low]);
        let arguments = payload.get(PREAMBLE..).unwrap_or_default();
        let answer = if (service, subtype) == NAME_SERVER {
            self.name_service(header.s_id, code, arguments, out)
        } else {
            Err(NOT_SUPPORTED)
        };
        let (code, Reject(reason, explanation), data) = match answer {
            Ok(data) => (command::ACCEPT, Reject(0, 0), data),
            Err(reject) => (command::REJECT, reject, Vec::new()),
        };
        let mut reply = vec![revision, a, b, c, service, subtype, 0, 0];
        reply.extend(code.to_be_bytes());
        reply.extend([0, 0, 0, reason, explanation, 0]);
        reply.extend(data);
        reply.resize(reply.len().next_multiple_of(4), 0);
        self.answer(header, r_ctl::SOLICITED_CONTROL, &reply, out);
    }

    fn name_service(
        &mut self,
        asks: PortId,
        code: u16,
        arguments: &[u8],
        out: &mut Outbox,
    ) -> Result<Vec<u8>, Reject> {
        match code {
            command::RPN_ID..=command::DA_ID => {
                self.register(asks, code, arguments, out).map(|()| Vec::new())
            }
            _ => self.query(asks, code, arguments),
        }
    }

    /// What a port says of itself. Of others it may say nothing.
    fn register(
        &mut self,
        asks: PortId,
        code: u16,
        arguments: &[u8],
        out: &mut Outbox,
    ) -> Result<(), Reject> {
        let Some(port) = self.ports.get_mut(&asks) else { return Err(NO_PORT_ID) };
        if code == command::RSNN_NN {
            let own = arguments.be64(0) == Some(port.wwnn.0);
            return if own { Ok(()) } else { Err(ACCESS_DENIED) };
        }
        if arguments.be24(1) != Some(asks.0) {
            return Err(ACCESS_DENIED);
        }
        match code {
            command::RFT_ID => {
                port.entry.types = arguments.chunk(4).ok_or(INVALID_SIZE)?;
                // Only now others that look for its type find it.
                if port.entry.does(kind::FCP) {
                    self.announce(asks, "came", out);
                }
            }
            command::RFF_ID => {
                let (bits, of) =
                    (arguments.byte(6).ok_or(INVALID_SIZE)?, arguments.byte(7).ok_or(INVALID_SIZE)?);
                port.entry.features.retain(|(known, _)| *known != of);
                port.entry.features.push((of, bits));
            }
            command::RSPN_ID => {
                let length = usize::from(arguments.byte(4).ok_or(INVALID_SIZE)?);
                port.entry.symbolic = arguments.cut(5, length).ok_or(INVALID_SIZE)?.to_vec();
            }
            command::RPN_ID | command::RNN_ID | command::RCS_ID | command::RPT_ID | command::DA_ID => {}
            _ => return Err(NOT_SUPPORTED),
        }
        Ok(())
    }

    fn query(&self, asks: PortId, code: u16, arguments: &[u8]) -> Result<Vec<u8>, Reject> {
        let me = self.ports.get(&asks).ok_or(NO_PORT_ID)?;
        // The port of this address, if the one who asks may see it.
        let named = || {
            let port = self.ports.get(&PortId(arguments.be24(1)?))?;
            (port.id == asks || self.sees(me, port)).then_some(port)
        };
        match code {
            command::GPN_ID => Ok(named().ok_or(NO_PORT_ID)?.wwpn.0.to_be_bytes().to_vec()),
            command::GNN_ID => Ok(named().ok_or(NO_PORT_ID)?.wwnn.0.to_be_bytes().to_vec()),
            command::GFT_ID => Ok(named().ok_or(NO_PORT_ID)?.entry.types.to_vec()),
            command::GSPN_ID => {
                let symbolic = &named().ok_or(NO_PORT_ID)?.entry.symbolic;
                Ok([&[u8::try_from(symbolic.len()).unwrap_or_default()], &symbolic[..]].concat())
            }
            command::GFF_ID => {
                // Four bits for each of 256 types; type 8 is in the last byte of the second word.
                let entry = &named().ok_or(NO_PORT_ID)?.entry;
                let mut bits = vec![0; 128];
                for (kind, feature) in &entry.features {
                    let at = usize::from(kind >> 3) * 4 + 3 - usize::from((kind & 7) >> 1);
                    if let Some(byte) = bits.get_mut(at) {
                        *byte |= (feature & 0xf) << ((kind & 1) * 4);
                    }
                }
                Ok(bits)
            }
            command::GID_PN => {
                let name = Wwn(arguments.be64(0).ok_or(INVALID_SIZE)?);
                let port = self.by_name(name).filter(|port| self.sees(me, port)).ok_or(NO_PORT_NAME)?;
                Ok([&[0][..], &port.id.bytes()].concat())
            }
            command::GID_FT | command::GPN_FT | command::GNN_FT => {
                let kind = arguments.byte(3).ok_or(INVALID_SIZE)?;
                let finds = |port: &&NPort| port.id != asks && port.entry.does(kind) && self.sees(me, port);
                let ports: Vec<&NPort> = self.ports.values().filter(finds).collect();
                let mut rows = Vec::new();
                for (number, port) in ports.iter().enumerate() {
                    // The control byte says which one is the last.
                    rows.push(if number + 1 == ports.len() { 0x80 } else { 0 });
                    rows.extend(port.id.bytes());
                    let name = if code == command::GPN_FT { port.wwpn } else { port.wwnn };
                    if code != command::GID_FT {
                        rows.extend([0; 4]);
                        rows.extend(name.0.to_be_bytes());
                    }
                }
                if rows.is_empty() { Err(NO_TYPE) } else { Ok(rows) }
            }
            command::GA_NXT => {
                let after = PortId(arguments.be24(1).ok_or(INVALID_SIZE)?);
                let sees = |(_, port): &(&PortId, &NPort)| port.id == asks || self.sees(me, port);
                let next = self.ports.range(after..).filter(|(id, _)| **id != after).find(sees);
                let port = next.or_else(|| self.ports.iter().find(sees)).ok_or(NO_PORT_ID)?.1;
                Ok(next_entry(port))
            }
            _ => Err(NOT_SUPPORTED),
        }
    }
}

/// The accept of GA_NXT (FC-GS-7 6.2.5.2), with what is known here; the rest is zero.
fn next_entry(port: &NPort) -> Vec<u8> {
    let mut entry = vec![0x01];
    entry.extend(port.id.bytes());
    entry.extend(port.wwpn.0.to_be_bytes());
    let mut symbolic =
        [&[u8::try_from(port.entry.symbolic.len()).unwrap_or_default()], &port.entry.symbolic[..]].concat();
    symbolic.resize(256, 0);
    entry.extend(symbolic);
    entry.extend(port.wwnn.0.to_be_bytes());
    // No symbolic node name, initial process associator or IP address; class 3.
    entry.resize(entry.len() + 256 + 8 + 16, 0);
    entry.extend(8_u32.to_be_bytes());
    entry.extend(port.entry.types);
    // No address of the port; fabric port name and hard address.
    entry.resize(entry.len() + 16 + 8 + 4, 0);
    entry
}
