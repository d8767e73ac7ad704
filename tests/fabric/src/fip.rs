//! The FCoE Initialization Protocol (FC-BB-5 7.8).

use crate::bytes::Fields;
use crate::frame::ETHERNET;
use crate::names::Mac;

/// Operation and subcode together (FC-BB-5, table of FIP operation codes).
pub(crate) const SOLICITATION: (u16, u8) = (1, 1);
pub(crate) const ADVERTISEMENT: (u16, u8) = (1, 2);
pub(crate) const LINK_SERVICE_REQUEST: (u16, u8) = (2, 1);
pub(crate) const LINK_SERVICE_REPLY: (u16, u8) = (2, 2);
pub(crate) const KEEP_ALIVE: (u16, u8) = (3, 1);
pub(crate) const CLEAR_VIRTUAL_LINKS: (u16, u8) = (3, 2);
pub(crate) const VLAN_REQUEST: (u16, u8) = (4, 1);
pub(crate) const VLAN_NOTIFICATION: (u16, u8) = (4, 2);

/// Types of descriptors (FC-BB-5, table of FIP descriptors).
pub(crate) mod descriptor {
    pub(crate) const PRIORITY: u8 = 1;
    pub(crate) const MAC_ADDRESS: u8 = 2;
    pub(crate) const NAME_IDENTIFIER: u8 = 4;
    pub(crate) const FABRIC: u8 = 5;
    pub(crate) const FLOGI: u8 = 7;
    pub(crate) const FDISC: u8 = 8;
    pub(crate) const LOGO: u8 = 9;
    pub(crate) const VN_PORT: u8 = 11;
    pub(crate) const FKA_ADV_PERIOD: u8 = 12;
    pub(crate) const VLAN: u8 = 14;
}

/// Flags: fabric-provided addresses, available for logins, solicited, from a forwarder.
pub(crate) const FP: u16 = 0x8000;
pub(crate) const A: u16 = 0x0004;
pub(crate) const S: u16 = 0x0002;
pub(crate) const F: u16 = 0x0001;

/// All nodes that look for forwarders (FC-BB-5, table of multicast addresses).
pub(crate) const ALL_ENODE_MACS: Mac = [0x01, 0x10, 0x18, 0x01, 0x00, 0x01];

/// Version 1, in the upper four bits.
const VERSION: u8 = 0x10;
/// The FIP header, after Ethernet's.
const HEADER: usize = 10;

/// An operation as it came.
pub(crate) struct Operation<'a> {
    pub(crate) code: (u16, u8),
    list: &'a [u8],
}

impl<'a> Operation<'a> {
    /// What an Ethernet frame of this protocol says.
    pub(crate) fn read(frame: &'a [u8]) -> Option<Self> {
        let fip = frame.get(ETHERNET..)?;
        let length = usize::from(fip.be16(6)?) * 4;
        (fip.byte(0)? == VERSION).then_some(())?;
        Some(Self { code: (fip.be16(2)?, fip.byte(5)?), list: fip.cut(HEADER, length)? })
    }

    /// The descriptors: their types, and what is after type and length. A descriptor without a length, or one longer than the rest, ends the list.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = (u8, &'a [u8])> {
        let mut rest = self.list;
        std::iter::from_fn(move || {
            let (kind, length) = (rest.byte(0)?, usize::from(rest.byte(1)?) * 4);
            let body = rest.get(2..length)?;
            rest = rest.get(length..)?;
            Some((kind, body))
        })
    }

    /// The first descriptor of a type.
    pub(crate) fn descriptor(&self, wanted: u8) -> Option<&'a [u8]> {
        self.descriptors().find_map(|(kind, body)| (kind == wanted).then_some(body))
    }
}

/// Builds an operation's descriptors.
#[derive(Default)]
pub(crate) struct List(Vec<u8>);

impl List {
    /// Adds one. With its two bytes of type and length the body is made up to whole words.
    pub(crate) fn with(mut self, kind: u8, body: &[&[u8]]) -> Self {
        let length = (2 + body.iter().map(|part| part.len()).sum::<usize>()).div_ceil(4);
        let end = self.0.len() + length * 4;
        self.0.extend([kind, length.try_into().unwrap_or(u8::MAX)]);
        body.iter().for_each(|part| self.0.extend_from_slice(part));
        self.0.resize(end, 0);
        self
    }

    /// The operation, from after the Ethernet header on.
    pub(crate) fn operation(&self, (operation, subcode): (u16, u8), flags: u16) -> Vec<u8> {
        let words = u16::try_from(self.0.len() / 4).unwrap_or(u16::MAX);
        let mut bytes = vec![VERSION, 0];
        bytes.extend(operation.to_be_bytes());
        bytes.extend([0, subcode]);
        bytes.extend(words.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend_from_slice(&self.0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_written_and_read() {
        let list = List::default()
            .with(descriptor::PRIORITY, &[&[0, 128]])
            .with(descriptor::MAC_ADDRESS, &[&[2, 0xfc, 0xf0, 0, 0, 1]]);
        let bytes = list.operation(ADVERTISEMENT, FP | A | F);
        let expected = [0x10, 0, 0, 1, 0, 2, 0, 3, 0x80, 0x05, 1, 1, 0, 128, 2, 2, 2, 0xfc, 0xf0, 0, 0, 1];
        assert_eq!(bytes, expected);
        let frame = [&[0; ETHERNET][..], &bytes].concat();
        let operation = Operation::read(&frame).unwrap();
        assert_eq!(operation.code, ADVERTISEMENT);
        assert_eq!(operation.descriptor(descriptor::MAC_ADDRESS), Some(&[2, 0xfc, 0xf0, 0, 0, 1][..]));
        assert_eq!(operation.descriptor(descriptor::VLAN), None);
    }

    #[test]
    fn lists_that_lie_of_their_length_end() {
        let of = |list: &[u8], words: u8| {
            let mut frame = vec![0; ETHERNET];
            frame.extend([0x10, 0, 0, 1, 0, 1, 0, words, 0, 0]);
            frame.extend(list);
            Operation::read(&frame).map(|operation| operation.descriptors().count())
        };
        assert_eq!(of(&[1, 1, 0, 0], 1), Some(1));
        // No length, a length past the end, more words than there are.
        assert_eq!(of(&[1, 0, 0, 0], 1), Some(0));
        assert_eq!(of(&[1, 1, 0, 0, 1, 9, 0, 0], 2), Some(1));
        assert_eq!(of(&[1, 1, 0, 0], 2), None);
        assert!(Operation::read(&[0; 23]).is_none());
    }
}
