//! FC frames, and how Ethernet carries them.

use crate::bytes::{Fields, three};
use crate::crc::crc32;
use crate::names::{Mac, PortId};

/// The type of Ethernet frames with FC frames (FC-BB-5 7.7).
pub const ETHERTYPE_FCOE: u16 = 0x8906;
/// The type of those of the FCoE Initialization Protocol (FC-BB-5 7.8).
pub const ETHERTYPE_FIP: u16 = 0x8914;

/// Ethernet's addresses and type.
pub(crate) const ETHERNET: usize = 14;
/// Version, reserved bytes and the start of frame, before the FC frame (FC-BB-5 7.7, figure of the FCoE PDU).
pub(crate) const ENCAPSULATION: usize = 14;
/// The FC frame header (FC-FS-3 clause 9).
pub(crate) const HEADER: usize = 24;
/// The CRC, the end of frame and reserved bytes.
pub(crate) const TRAILER: usize = 8;
/// What of a frame's data field is used: four sectors, so that each frame of data has whole ones. The receive size in logins is
/// 2112, the most there is.
pub(crate) const PAYLOAD: usize = 2048;
/// The receive data field size of all logins.
pub(crate) const RECEIVE_SIZE: u16 = 2112;

/// Delimiters of class 3 in FCoE (FC-BB-5 7.7, tables of SOF and EOF codes).
pub(crate) const SOF_I3: u8 = 0x2e;
pub(crate) const SOF_N3: u8 = 0x36;
pub(crate) const EOF_N: u8 = 0x41;
pub(crate) const EOF_T: u8 = 0x42;

/// R_CTL (FC-FS-3 9.3: routing and information).
pub(crate) mod r_ctl {
    pub(crate) const SOLICITED_DATA: u8 = 0x01;
    pub(crate) const UNSOLICITED_CONTROL: u8 = 0x02;
    pub(crate) const SOLICITED_CONTROL: u8 = 0x03;
    pub(crate) const DATA_DESCRIPTOR: u8 = 0x05;
    pub(crate) const UNSOLICITED_COMMAND: u8 = 0x06;
    pub(crate) const COMMAND_STATUS: u8 = 0x07;
    pub(crate) const ELS_REQUEST: u8 = 0x22;
    pub(crate) const ELS_REPLY: u8 = 0x23;
    pub(crate) const ABTS: u8 = 0x81;
    pub(crate) const BA_ACC: u8 = 0x84;
}

/// TYPE (FC-FS-3 9.6).
pub(crate) mod kind {
    pub(crate) const BLS: u8 = 0x00;
    pub(crate) const ELS: u8 = 0x01;
    pub(crate) const FCP: u8 = 0x08;
    pub(crate) const CT: u8 = 0x20;
}

/// F_CTL (FC-FS-3 9.7).
pub(crate) mod f_ctl {
    /// The sender is the exchange's responder.
    pub(crate) const RESPONDER: u32 = 0x80_0000;
    pub(crate) const FIRST_SEQUENCE: u32 = 0x20_0000;
    pub(crate) const LAST_SEQUENCE: u32 = 0x10_0000;
    pub(crate) const END_SEQUENCE: u32 = 0x08_0000;
    /// The sequence initiative passes to the other side.
    pub(crate) const TRANSFER: u32 = 0x01_0000;
    /// The parameter field is the relative offset.
    pub(crate) const RELATIVE_OFFSET: u32 = 0x00_0008;
    /// How many bytes at the end of the data field are no data.
    pub(crate) const FILL: u32 = 0x00_0003;
    /// All there is of a request, and of a reply.
    pub(crate) const REQUEST: u32 = FIRST_SEQUENCE | END_SEQUENCE | TRANSFER;
    pub(crate) const REPLY: u32 = RESPONDER | LAST_SEQUENCE | END_SEQUENCE;
}

/// The header of an FC frame, with the names of FC-FS-3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) r_ctl: u8,
    pub(crate) d_id: PortId,
    pub(crate) s_id: PortId,
    pub(crate) kind: u8,
    pub(crate) f_ctl: u32,
    pub(crate) seq_id: u8,
    pub(crate) df_ctl: u8,
    pub(crate) seq_cnt: u16,
    pub(crate) ox_id: u16,
    pub(crate) rx_id: u16,
    pub(crate) parameter: u32,
}

impl Header {
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            r_ctl: bytes.byte(0)?,
            d_id: PortId(bytes.be24(1)?),
            s_id: PortId(bytes.be24(5)?),
            kind: bytes.byte(8)?,
            f_ctl: bytes.be24(9)?,
            seq_id: bytes.byte(12)?,
            df_ctl: bytes.byte(13)?,
            seq_cnt: bytes.be16(14)?,
            ox_id: bytes.be16(16)?,
            rx_id: bytes.be16(18)?,
            parameter: bytes.be32(20)?,
        })
    }

    pub(crate) fn append(&self, to: &mut Vec<u8>) {
        to.push(self.r_ctl);
        to.extend(self.d_id.bytes());
        to.push(0);
        to.extend(self.s_id.bytes());
        to.push(self.kind);
        to.extend(three(self.f_ctl));
        to.extend([self.seq_id, self.df_ctl]);
        to.extend(self.seq_cnt.to_be_bytes());
        to.extend(self.ox_id.to_be_bytes());
        to.extend(self.rx_id.to_be_bytes());
        to.extend(self.parameter.to_be_bytes());
    }

    /// The first sequence of an exchange of our own.
    pub(crate) fn request(r_ctl: u8, kind: u8, s_id: PortId, d_id: PortId, ox_id: u16) -> Self {
        let (f_ctl, rx_id) = (f_ctl::REQUEST, u16::MAX);
        Self { r_ctl, d_id, s_id, kind, f_ctl, seq_id: 0, df_ctl: 0, seq_cnt: 0, ox_id, rx_id, parameter: 0 }
    }

    /// The last sequence of the exchange of which `self` is the first.
    pub(crate) fn reply(&self, r_ctl: u8, rx_id: u16) -> Self {
        Self {
            r_ctl,
            d_id: self.s_id,
            s_id: self.d_id,
            f_ctl: f_ctl::REPLY,
            df_ctl: 0,
            seq_cnt: 0,
            rx_id,
            parameter: 0,
            ..*self
        }
    }
}

/// An Ethernet frame: to whom, from whom, of what type.
pub(crate) fn ethernet(frame: &[u8]) -> Option<(Mac, Mac, u16)> {
    Some((frame.chunk(0)?, frame.chunk(6)?, frame.be16(12)?))
}

/// The FC frame in an FCoE frame, without looking at its CRC. There is no padding: the least FCoE frame is as long as the least
/// Ethernet frame.
pub(crate) fn unpack(frame: &[u8]) -> Option<&[u8]> {
    let end = frame.len().checked_sub(TRAILER)?;
    let fc = frame.get(ETHERNET + ENCAPSULATION..end)?;
    let version = frame.byte(ETHERNET)? >> 4;
    let ends = matches!(frame.byte(end + 4)?, EOF_N | EOF_T);
    (version == 0 && ends && fc.len() >= HEADER && fc.len() % 4 == 0).then_some(fc)
}

/// Whether the CRC of an FCoE frame is that of its FC frame.
pub(crate) fn is_whole(frame: &[u8], fc: &[u8]) -> bool {
    let at = frame.len().saturating_sub(TRAILER);
    frame.chunk(at).map(u32::from_le_bytes) == Some(crc32(fc))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PLOGI's header as FC-FS-3 9 lays it out.
    const PLOGI: [u8; 24] = [
        0x22, 0xff, 0xff, 0xfc, 0, 0x01, 0x01, 0x02, 0x01, 0x29, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0xff, 0xff, 0,
        0, 0, 0,
    ];

    #[test]
    fn headers_are_read_and_written() {
        let header = Header::request(0x22, 1, PortId(0x01_0102), PortId::DIRECTORY, 0x1234);
        let mut bytes = Vec::new();
        header.append(&mut bytes);
        assert_eq!(bytes, PLOGI);
        assert_eq!(Header::read(&bytes), Some(header));
        for length in 0..24 {
            assert_eq!(Header::read(&PLOGI[..length]), None);
        }
        let reply = header.reply(r_ctl::ELS_REPLY, 0x4321);
        assert_eq!((reply.d_id, reply.s_id, reply.f_ctl), (PortId(0x01_0102), PortId::DIRECTORY, 0x98_0000));
        assert_eq!((reply.ox_id, reply.rx_id), (0x1234, 0x4321));
    }

    #[test]
    fn frames_without_an_end_or_of_odd_length_are_none() {
        let mut frame = vec![0; 28];
        frame.extend(PLOGI);
        frame.extend(crc32(&PLOGI).to_le_bytes());
        frame.extend([EOF_T, 0, 0, 0]);
        assert_eq!(frame.len(), 60);
        assert_eq!(unpack(&frame), Some(&PLOGI[..]));
        assert!(is_whole(&frame, &PLOGI));
        for length in 0..60 {
            let cut = &frame[..length];
            assert!(unpack(cut).is_none_or(|fc| !is_whole(cut, fc)), "{length}");
        }
        frame[56] = 0x50;
        assert_eq!(unpack(&frame), None);
        frame[56] = EOF_N;
        frame[40] ^= 1;
        let fc = unpack(&frame).unwrap();
        assert!(!is_whole(&frame, fc));
    }
}
