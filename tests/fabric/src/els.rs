//! Extended Link Services (FC-LS-3): commands and payloads.

use crate::frame::{RECEIVE_SIZE, kind};
use crate::names::{PortId, Wwn};

/// Command codes (FC-LS-3, table of ELS commands).
pub(crate) mod command {
    pub(crate) const LS_RJT: u8 = 0x01;
    pub(crate) const LS_ACC: u8 = 0x02;
    pub(crate) const PLOGI: u8 = 0x03;
    pub(crate) const LOGO: u8 = 0x05;
    pub(crate) const RTV: u8 = 0x0e;
    pub(crate) const ECHO: u8 = 0x10;
    pub(crate) const RRQ: u8 = 0x12;
    pub(crate) const REC: u8 = 0x13;
    pub(crate) const PRLI: u8 = 0x20;
    pub(crate) const PRLO: u8 = 0x21;
    pub(crate) const PDISC: u8 = 0x50;
    pub(crate) const ADISC: u8 = 0x52;
    pub(crate) const RSCN: u8 = 0x61;
    pub(crate) const SCR: u8 = 0x62;
}

/// Why a request is rejected: reason and explanation (FC-LS-3, tables of LS_RJT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reject(pub(crate) u8, pub(crate) u8);

impl Reject {
    /// Logical error: the exchange is none that there is.
    pub(crate) const UNKNOWN_EXCHANGE: Self = Self(0x03, 0x17);
    /// Logical error: the payload is too short.
    pub(crate) const LENGTH: Self = Self(0x03, 0x2d);
    /// Unable to perform: who asks has not logged in.
    pub(crate) const LOGIN_REQUIRED: Self = Self(0x09, 0x1e);
    pub(crate) const NOT_SUPPORTED: Self = Self(0x0b, 0x00);

    pub(crate) fn payload(self) -> [u8; 8] {
        [command::LS_RJT, 0, 0, 0, 0, self.0, self.1, 0]
    }
}

/// An LS_ACC without more.
pub(crate) const ACCEPT: [u8; 4] = [command::LS_ACC, 0, 0, 0];

/// R_A_TOV and E_D_TOV, in milliseconds.
pub(crate) const R_A_TOV: u32 = 10_000;
pub(crate) const E_D_TOV: u32 = 2_000;

/// The length of logins and of what accepts them.
pub(crate) const LOGIN: usize = 116;

/// Who answers a login: the fabric, with NPIV or without, or an N_Port.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    /// To FLOGI or FDISC; `npiv` is whether more names may log in.
    Fabric { npiv: bool },
    /// To PLOGI.
    Port,
}

/// What accepts FLOGI, FDISC or PLOGI: service parameters of class 3 (FC-LS-3 6.6).
pub(crate) fn login(answers: Answers, port: Wwn, node: Wwn) -> Vec<u8> {
    let mut payload = ACCEPT.to_vec();
    // Common: the highest and lowest version, buffer-to-buffer credit, features, receive size.
    payload.extend([0x20, 0x20, 0, 8]);
    match answers {
        Answers::Fabric { npiv } => {
            // An F_Port; with multiple N_Port_IDs granted in the bit for NPIV.
            payload.extend(if npiv { 0x3000_u16 } else { 0x1000 }.to_be_bytes());
            payload.extend(RECEIVE_SIZE.to_be_bytes());
            payload.extend(R_A_TOV.to_be_bytes());
        }
        Answers::Port => {
            // Continuously increasing relative offset, and the valid-version bit.
            payload.extend(0x8800_u16.to_be_bytes());
            payload.extend(RECEIVE_SIZE.to_be_bytes());
            // Concurrent sequences in all; relative offset in categories 0 to 4.
            payload.extend([0, 255, 0, 0x1f]);
        }
    }
    payload.extend(E_D_TOV.to_be_bytes());
    payload.extend(port.0.to_be_bytes());
    payload.extend(node.0.to_be_bytes());
    // Classes 1 and 2 are not there. Class 3: valid, sequential delivery; receive size, concurrent sequences, one open sequence.
    payload.extend([0; 32]);
    payload.extend([0x88, 0, 0, 0, 0, 0]);
    payload.extend(RECEIVE_SIZE.to_be_bytes());
    payload.extend([0, 255, 0, 0, 0, 1, 0, 0]);
    payload.resize(LOGIN, 0);
    payload
}

/// What accepts Read Timeout Value.
pub(crate) fn timeouts() -> Vec<u8> {
    [ACCEPT, R_A_TOV.to_be_bytes(), E_D_TOV.to_be_bytes(), [0; 4]].concat()
}

/// What accepts Discover Address.
pub(crate) fn addresses(port: Wwn, node: Wwn, id: PortId) -> Vec<u8> {
    [&ACCEPT[..], &[0; 4], &port.0.to_be_bytes(), &node.0.to_be_bytes(), &id.0.to_be_bytes()].concat()
}

/// A Registered State Change Notification of a port, or without one of the whole fabric (FC-LS-3 4.21).
pub(crate) fn rscn(about: Option<PortId>) -> [u8; 8] {
    // The address format: 0 for a port, 3 for the fabric.
    let (format, id) = about.map_or((3, PortId(0)), |id| (0, id));
    let [a, b, c] = id.bytes();
    [command::RSCN, 4, 0, 8, format, a, b, c]
}

/// Logout by the port of these names.
pub(crate) fn logo(id: PortId, port: Wwn) -> Vec<u8> {
    [&[command::LOGO, 0, 0, 0][..], &id.0.to_be_bytes(), &port.0.to_be_bytes()].concat()
}

/// Process logout: one page, of FCP.
pub(crate) fn prlo() -> Vec<u8> {
    [&[command::PRLO, 16, 0, 20, kind::FCP][..], &[0; 15]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Fields;

    #[test]
    fn the_fabric_accepts_logins_as_the_driver_wants_it() {
        let accept =
            login(Answers::Fabric { npiv: true }, Wwn(0x2001_0000_0000_0001), Wwn(0x1000_0000_0000_0002));
        assert_eq!(accept.len(), 116);
        assert_eq!(
            accept[..20],
            [2, 0, 0, 0, 0x20, 0x20, 0, 8, 0x30, 0, 0x08, 0x40, 0, 0, 0x27, 0x10, 0, 0, 0x07, 0xd0]
        );
        assert_eq!(
            (accept.be64(20), accept.be64(28)),
            (Some(0x2001_0000_0000_0001), Some(0x1000_0000_0000_0002))
        );
        assert_eq!(accept[68..84], [0x88, 0, 0, 0, 0, 0, 0x08, 0x40, 0, 255, 0, 0, 0, 1, 0, 0]);
        let without = login(Answers::Fabric { npiv: false }, Wwn(1), Wwn(2));
        assert_eq!(without[8..10], [0x10, 0]);
        let port = login(Answers::Port, Wwn(1), Wwn(2));
        assert_eq!(port[4..20], [0x20, 0x20, 0, 8, 0x88, 0, 0x08, 0x40, 0, 255, 0, 0x1f, 0, 0, 0x07, 0xd0]);
    }

    #[test]
    fn small_payloads() {
        assert_eq!(rscn(Some(PortId(0x01_f000))), [0x61, 4, 0, 8, 0, 0x01, 0xf0, 0]);
        assert_eq!(rscn(None), [0x61, 4, 0, 8, 3, 0, 0, 0]);
        assert_eq!(Reject::UNKNOWN_EXCHANGE.payload(), [1, 0, 0, 0, 0, 3, 0x17, 0]);
        assert_eq!(logo(PortId(0x01_f000), Wwn(5)), [5, 0, 0, 0, 0, 1, 0xf0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
        assert_eq!(timeouts(), [2, 0, 0, 0, 0, 0, 0x27, 0x10, 0, 0, 0x07, 0xd0, 0, 0, 0, 0]);
    }
}
