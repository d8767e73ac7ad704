//! Where the kernel has something: hosts, channels, targets, LUNs, and ports by their numbers.

use std::fmt;
use std::str::FromStr;

/// Where a logical unit is: host, channel, target and LUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// The host (`host5`): a port, or a virtual one.
    pub host: u32,
    /// The channel, which is 0 with Fibre Channel.
    pub channel: u32,
    /// The target that the kernel has bound a remote port to.
    pub target: u32,
    /// The logical unit number.
    pub lun: Lun,
}

/// A logical unit number, as the kernel counts them: the 8 bytes of SAM-5 (4.7), each level of two bytes a digit, the first level the
/// lowest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lun(pub u64);

impl Lun {
    /// The 8 bytes that the array knows it by.
    pub const fn bytes(self) -> [u8; 8] {
        let levels = [self.0 as u16, (self.0 >> 16) as u16, (self.0 >> 32) as u16, (self.0 >> 48) as u16];
        let [[a, b], [c, d], [e, f], [g, h]] = [
            levels[0].to_be_bytes(),
            levels[1].to_be_bytes(),
            levels[2].to_be_bytes(),
            levels[3].to_be_bytes(),
        ];
        [a, b, c, d, e, f, g, h]
    }

    /// The number for the 8 bytes of an array.
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self(
            u16::from_be_bytes([a, b]) as u64
                | (u16::from_be_bytes([c, d]) as u64) << 16
                | (u16::from_be_bytes([e, f]) as u64) << 32
                | (u16::from_be_bytes([g, h]) as u64) << 48,
        )
    }

    /// Its number among the units of the target, where it has just one level of peripheral or flat space addressing (SAM-5, 4.7.5).
    pub const fn flat(self) -> Option<u16> {
        match (self.0 >> 16, (self.0 as u16) >> 14) {
            (0, 0 | 1) => Some(self.0 as u16 & 0x3fff),
            _ => None,
        }
    }
}

/// The number at the end of `text`, after `prefix`: digits alone, without a sign.
pub(crate) fn number_after(text: &str, prefix: &str) -> Option<u32> {
    number(text.strip_prefix(prefix)?)
}

fn number<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Host, channel and number of a port: `rport-5:0-2`, `vport-5:0-0`.
pub(crate) fn port(text: &str, prefix: &str) -> Option<(u32, u32, u32)> {
    let (host, rest) = text.strip_prefix(prefix)?.split_once(':')?;
    let (channel, port) = rest.split_once('-')?;
    Some((number(host)?, number(channel)?, number(port)?))
}

/// What is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an address is host, channel, target and LUN, such as 5:0:0:27")]
pub struct NoAddress;

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        let mut parts = text.split(':');
        let mut next = || parts.next().and_then(number::<u32>).ok_or(NoAddress);
        let (host, channel, target) = (next()?, next()?, next()?);
        let lun = parts.next().and_then(number).ok_or(NoAddress)?;
        match parts.next() {
            None => Ok(Self { host, channel, target, lun: Lun(lun) }),
            Some(_) => Err(NoAddress),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}:{}:{}:{}", self.host, self.channel, self.target, self.lun.0))
    }
}

impl fmt::Display for Lun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.flat() {
            Some(number) => f.pad(&number.to_string()),
            None => f.pad(&format!("{:#018x}", u64::from_be_bytes(self.bytes()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel does it: SAM-5, 4.7, bytes written from the standard.
    #[test]
    fn numbers_of_the_kernel_are_bytes_of_the_array() {
        for (number, bytes, flat) in [
            (0, [0, 0, 0, 0, 0, 0, 0, 0], Some(0)),
            (27, [0, 27, 0, 0, 0, 0, 0, 0], Some(27)),
            // Flat space addressing: 0x4000 | 513.
            (0x4201, [0x42, 0x01, 0, 0, 0, 0, 0, 0], Some(513)),
            // Two levels, as arrays of IBM count them on zfcp.
            (0x400a_4010, [0x40, 0x10, 0x40, 0x0a, 0, 0, 0, 0], None),
            // The well known unit REPORT LUNS.
            (0xc101, [0xc1, 0x01, 0, 0, 0, 0, 0, 0], None),
            (0x0708_0506_0304_0102, [1, 2, 3, 4, 5, 6, 7, 8], None),
            (u64::MAX, [0xff; 8], None),
        ] {
            assert_eq!(Lun(number).bytes(), bytes);
            assert_eq!(Lun::from_bytes(bytes), Lun(number));
            assert_eq!(Lun(number).flat(), flat, "{number:x}");
        }
        assert_eq!(Lun(0x4201).to_string(), "513");
        assert_eq!(Lun(0x400a_4010).to_string(), "0x4010400a00000000");
    }

    #[test]
    fn addresses_are_four_numbers() {
        let address: Address = "5:0:1:16897".parse().unwrap();
        assert_eq!(address, Address { host: 5, channel: 0, target: 1, lun: Lun(0x4201) });
        assert_eq!(address.to_string(), "5:0:1:16897");
        assert_eq!("0:0:0:18446744073709551615".parse::<Address>().unwrap().lun, Lun(u64::MAX));
        for text in
            ["", "5:0:1", "5:0:1:2:3", "5:0:1:", "+5:0:1:2", "5:0:-1:2", "a:0:0:0", "4294967296:0:0:0"]
        {
            assert_eq!(text.parse::<Address>(), Err(NoAddress), "{text}");
        }
        assert_eq!(port("rport-5:0-2", "rport-"), Some((5, 0, 2)));
        for text in ["rport-5:0", "rport-5-0:2", "vport-5:0-2", "rport-:0-2", "rport-5:0-2x", "rport-5:0-2-3"]
        {
            assert_eq!(port(text, "rport-"), None, "{text}");
        }
        assert_eq!(number_after("host12", "host"), Some(12));
        assert_eq!(number_after("host", "host"), None);
        assert_eq!(number_after("host+1", "host"), None);
    }
}
