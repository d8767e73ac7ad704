//! Names and addresses.

use std::fmt;
use std::str::FromStr;

use crate::bytes::three;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A World Wide Name (FC-FS-3 clause 14), most significant byte first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wwn(pub u64);

impl fmt::Display for Wwn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Wwn {
    type Err = String;

    /// Sixteen hexadecimal digits, with 0x before them or colons between them if need be.
    fn from_str(text: &str) -> Result<Self, String> {
        let digits: String = text.trim_start_matches("0x").chars().filter(|&c| c != ':').collect();
        match u64::from_str_radix(&digits, 16) {
            Ok(name) if digits.len() == 16 => Ok(Self(name)),
            _ => Err(format!("{text} is no World Wide Name of 16 hexadecimal digits")),
        }
    }
}

/// An N_Port_ID: domain, area and port, a byte each (FC-FS-3 clause 9.4: address identifiers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PortId(pub(crate) u32);

impl PortId {
    /// Well-known addresses (FC-FS-3, table of well-known address identifiers).
    pub(crate) const F_PORT: Self = Self(0xff_fffe);
    pub(crate) const FABRIC_CONTROLLER: Self = Self(0xff_fffd);
    pub(crate) const DIRECTORY: Self = Self(0xff_fffc);

    pub(crate) fn is_well_known(self) -> bool {
        self.0 >= 0xff_fff0
    }

    pub(crate) fn bytes(self) -> [u8; 3] {
        three(self.0)
    }

    /// The address that a fabric provides for it: the FC-MAP, then the N_Port_ID (FC-BB-5 7.6, FPMA).
    pub(crate) fn mac(self) -> Mac {
        let ([a, b, c], [d, e, f]) = (three(FC_MAP), self.bytes());
        [a, b, c, d, e, f]
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}", self.0)
    }
}

/// The default FC-MAP (FC-BB-5 7.6).
pub(crate) const FC_MAP: u32 = 0x0e_fc00;

/// An address as programs print it.
pub(crate) fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_programs_print_them() {
        for text in ["2100000000000a01", "0x2100000000000a01", "21:00:00:00:00:00:0a:01"] {
            assert_eq!(text.parse(), Ok(Wwn(0x2100_0000_0000_0a01)), "{text}");
        }
        for text in ["", "0x", "2100000000000a0", "2100000000000a011", "2100000000000g01"] {
            assert!(text.parse::<Wwn>().is_err(), "{text}");
        }
        assert_eq!(Wwn(0xa01).to_string(), "0000000000000a01");
    }

    #[test]
    fn the_fabric_provides_addresses() {
        assert_eq!(mac_text(PortId(0x01_0102).mac()), "0e:fc:00:01:01:02");
    }
}
