//! World Wide Names of ports and nodes: 8 bytes, the first four bits of which say who gave them (FC-FS-3, 14: Name_Identifier formats).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A World Wide Name of 8 bytes. It is printed as 16 hex digits, and read in all forms that people write.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Wwn(u64);

/// What is no World Wide Name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is no World Wide Name: that is 16 hex digits, such as 2100001b32a9da4e or 21:00:00:1b:32:a9:da:4e"
)]
pub struct Malformed(pub String);

/// The company (IEEE company_id) that a name is of: 24 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Oui(u32);

/// What people and programs write before a name.
const PREFIXES: [&str; 4] = ["naa.", "wwn-", "nn-", "pn-"];

/// Group bit of an IEEE address, and of a company (IEEE 802-2014, 8.2): not one station.
const GROUP: u32 = 0x01_0000;
/// Local bit: no company has it.
const LOCAL: u32 = 0x02_0000;

impl Wwn {
    /// The name with these 64 bits, the first byte in the most significant ones.
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// The name as a number.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The name as it is sent: most significant byte first.
    pub const fn bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// Network Address Authority: the first four bits.
    pub const fn naa(self) -> u8 {
        (self.0 >> 60) as u8
    }

    /// The company that has given the name. None of NAA 3 (locally assigned), and of those that are not for ports.
    pub const fn oui(self) -> Option<Oui> {
        let bits = match self.naa() {
            // IEEE 48-bit, IEEE extended: an IEEE address is the last six bytes.
            1 | 2 => self.0 >> 24,
            // IEEE registered.
            5 => self.0 >> 36,
            // IEEE EUI-64 mapped: without the group and the local bit.
            0xc..=0xf => ((self.0 >> 56) & 0x3f) << 18 | ((self.0 >> 40) & 0xffff),
            _ => return None,
        };
        Some(Oui((bits & 0xff_ffff) as u32))
    }
}

impl Oui {
    /// The company with these 24 bits.
    pub const fn new(bits: u32) -> Self {
        Self(bits & 0xff_ffff)
    }

    /// No station's: a group of them.
    pub const fn is_group(self) -> bool {
        self.0 & GROUP != 0
    }

    /// Given by whoever runs the network, not by a company.
    pub const fn is_local(self) -> bool {
        self.0 & LOCAL != 0
    }
}

impl FromStr for Wwn {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = || Malformed(text.chars().take(64).collect());
        let name = text.trim();
        let name = PREFIXES.iter().find_map(|prefix| after(name, prefix)).unwrap_or(name);
        let name = after(name, "0x").unwrap_or(name);
        let digits: String = match name.len() {
            16 => name.to_owned(),
            // Bytes with one separator between them.
            23 => {
                let separator = name.chars().nth(2).filter(|c| ":-.".contains(*c)).ok_or_else(malformed)?;
                let bytes: Vec<&str> = name.split(separator).collect();
                if bytes.len() != 8 || bytes.iter().any(|byte| byte.len() != 2) {
                    return Err(malformed());
                }
                bytes.concat()
            }
            _ => return Err(malformed()),
        };
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(malformed());
        }
        u64::from_str_radix(&digits, 16).map(Self).map_err(|_| malformed())
    }
}

/// What follows `prefix`, in whatever case it is.
fn after<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

impl fmt::Display for Wwn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:016x}", self.0))
    }
}

impl fmt::Debug for Wwn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Oui {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}", self.0)
    }
}

impl fmt::Debug for Oui {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Wwn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Wwn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_that_people_write_are_one_name() {
        for text in [
            "2100001b32a9da4e",
            "2100001B32A9DA4E",
            "0x2100001b32a9da4e",
            "0X2100001b32a9da4e\n",
            "21:00:00:1b:32:a9:da:4e",
            "21-00-00-1B-32-A9-DA-4E",
            "21.00.00.1b.32.a9.da.4e",
            "naa.2100001b32a9da4e",
            "NAA.2100001B32A9DA4E",
            "wwn-0x2100001b32a9da4e",
            "nn-0x2100001b32a9da4e",
            "pn-0x2100001b32a9da4e",
        ] {
            let name: Wwn = text.parse().unwrap();
            assert_eq!(name, Wwn::new(0x2100_001b_32a9_da4e), "{text}");
            assert_eq!(name.to_string(), "2100001b32a9da4e");
        }
        assert_eq!(Wwn::new(0x21).bytes(), [0, 0, 0, 0, 0, 0, 0, 0x21]);
    }

    #[test]
    fn what_is_no_name_is_said_with_what_one_is() {
        for text in [
            "",
            "0x",
            "2100001b32a9da4",
            "2100001b32a9da4e0",
            "2100001b32a9da4g",
            "+100001b32a9da4e",
            "21:00:00:1b:32:a9:da",
            "21:00-00:1b:32:a9:da:4e",
            "2:100:00:1b:32:a9:da:4e",
            "21:00:00:1b:32:a9:da:4e:00",
            "21 00 00 1b 32 a9 da 4e",
            "eui.2100001b32a9da4e",
            "naa.600140512345678900000000000abcde",
            "é100001b32a9da4",
            "ééééééééééé1",
        ] {
            assert_eq!(text.parse::<Wwn>(), Err(Malformed(text.into())), "{text}");
        }
        assert_eq!(
            "20:00".parse::<Wwn>().unwrap_err().to_string(),
            "\"20:00\" is no World Wide Name: that is 16 hex digits, such as 2100001b32a9da4e or 21:00:00:1b:32:a9:da:4e"
        );
        crate::testing::assert_quoted(&"20:00".parse::<Wwn>().unwrap_err().to_string());
        assert_eq!("x".repeat(1 << 20).parse::<Wwn>().unwrap_err().0.len(), 64);
    }

    #[test]
    fn a_name_says_who_gave_it() {
        for (name, naa, oui) in [
            (0x1000_0000_c912_3456, 1, Some("0000c9")),
            (0x2100_001b_32a9_da4e, 2, Some("001b32")),
            (0x5001_a4aa_f3ca_174b, 5, Some("001a4a")),
            (0x5006_0160_4460_2198, 5, Some("006016")),
            (0xc050_76ff_fb00_1230, 0xc, Some("005076")),
            (0x3123_4567_89ab_cdef, 3, None),
            (0x6001_4051_2345_6789, 6, None),
        ] {
            let name = Wwn::new(name);
            assert_eq!((name.naa(), name.oui().map(|oui| oui.to_string()).as_deref()), (naa, oui), "{name}");
        }
        let oui = |name| Wwn::new(name).oui().unwrap();
        assert!(oui(0x2000_02aa_0000_0001).is_local() && !oui(0x2000_02aa_0000_0001).is_group());
        assert!(oui(0x2000_0100_5e00_0001).is_group());
    }
}
