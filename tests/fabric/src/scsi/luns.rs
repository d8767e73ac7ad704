//! How units are numbered (SAM-5 4.7), and the list of them (SPC-4 6.35).

use std::fmt;
use std::str::FromStr;

use crate::bytes::Fields;

/// How numbers below 256 are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Method {
    /// Peripheral device addressing (SAM-5 4.7.7.2).
    #[default]
    Peripheral,
    /// Flat space addressing (SAM-5 4.7.7.3), as all higher numbers.
    Flat,
}

/// What a LUN in a command names, and what units are mapped at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lun {
    Number(u16),
    /// The well-known logical unit that reports LUNs.
    Report,
    /// More levels than one, or another method: all of it.
    Other([u8; 8]),
}

impl fmt::Display for Lun {
    /// A number, or eight bytes in hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Report => f.write_str("c101000000000000"),
            Self::Other(bytes) => write!(f, "{:016x}", u64::from_be_bytes(*bytes)),
        }
    }
}

impl FromStr for Lun {
    type Err = String;

    /// A number, or all eight bytes as sixteen hexadecimal digits, which then are this LUN and nothing else.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() == 16 {
            let bytes =
                u64::from_str_radix(text, 16).map_err(|_| format!("{text} is no LUN of 16 digits"))?;
            return Ok(Self::Other(bytes.to_be_bytes()));
        }
        let number = text.parse().ok().filter(|number| *number <= LAST);
        number
            .map(Self::Number)
            .ok_or_else(|| format!("{text} is no number up to {LAST}, nor 16 hexadecimal digits"))
    }
}

impl Lun {
    /// Whether the LUN of a command is this one. The array takes all methods for a number, or only the one that it reports.
    pub(crate) fn is_named_by(self, lun: [u8; 8], method: Method, is_strict: bool) -> bool {
        match self {
            Self::Number(_) if !is_strict => read(lun) == self,
            _ => self.bytes(method) == lun,
        }
    }

    /// As it is reported.
    fn bytes(self, method: Method) -> [u8; 8] {
        match self {
            Self::Number(number) => written(number, method),
            Self::Report => [0xc1, 0x01, 0, 0, 0, 0, 0, 0],
            Self::Other(bytes) => bytes,
        }
    }
}

/// The highest number of flat space addressing.
pub(crate) const LAST: u16 = 0x3fff;

/// Takes a LUN apart. Both methods name the same units.
pub(crate) fn read(lun: [u8; 8]) -> Lun {
    let [high, low, rest @ ..] = lun;
    if rest != [0; 6] {
        return Lun::Other(lun);
    }
    match (high >> 6, high & 0x3f) {
        // Peripheral device addressing, of the only bus.
        (0, 0) => Lun::Number(low.into()),
        (1, upper) => Lun::Number(u16::from_be_bytes([upper, low])),
        // Extended addressing: a well-known logical unit, number 1 (SAM-5 4.7.7.5).
        (3, 1) if low == 1 => Lun::Report,
        _ => Lun::Other(lun),
    }
}

fn written(number: u16, method: Method) -> [u8; 8] {
    let flat = number > 0xff || method == Method::Flat;
    let [high, low] = number.to_be_bytes();
    [if flat { 0x40 | high } else { 0 }, low, 0, 0, 0, 0, 0, 0]
}

/// The answer to REPORT LUNS: units at these. None for a field that does not fit.
pub(crate) fn report(cdb: &[u8; 16], luns: impl Iterator<Item = Lun>, method: Method) -> Option<Vec<u8>> {
    let luns: Vec<Lun> = match cdb[2] {
        // All, or all but those that are well known.
        0 | 2 => luns.collect(),
        // Well-known ones alone.
        1 => Vec::new(),
        _ => return None,
    };
    let length = u32::try_from(luns.len() * 8).ok()?;
    let mut list = length.to_be_bytes().to_vec();
    list.extend([0; 4]);
    luns.into_iter().for_each(|lun| list.extend(lun.bytes(method)));
    list.truncate(usize::try_from(cdb.be32(6)?).ok()?);
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_by_their_method() {
        let mut cdb = [0; 16];
        cdb[0] = 0xa0;
        cdb[8] = 1;
        let list = report(&cdb, [0, 5, 27, 513].map(Lun::Number).into_iter(), Method::Peripheral).unwrap();
        assert_eq!(list[..8], [0, 0, 0, 32, 0, 0, 0, 0]);
        let luns: Vec<&[u8]> = list[8..].chunks(8).map(|lun| &lun[..2]).collect();
        assert_eq!(luns, [[0, 0], [0, 5], [0, 27], [0x42, 0x01]]);
        let flat = report(&cdb, [Lun::Number(5)].into_iter(), Method::Flat).unwrap();
        assert_eq!(flat[8..10], [0x40, 5]);
        cdb[2] = 3;
        assert_eq!(report(&cdb, [Lun::Number(5)].into_iter(), Method::Flat), None);
    }

    #[test]
    fn both_methods_name_a_unit() {
        let lun = |high, low| read([high, low, 0, 0, 0, 0, 0, 0]);
        assert_eq!([lun(0, 27), lun(0x40, 27), lun(0x42, 1)], [27, 27, 513].map(Lun::Number));
        assert_eq!(lun(0x7f, 0xff), Lun::Number(LAST));
        assert_eq!(lun(0xc1, 1), Lun::Report);
        let more = [0, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(read(more), Lun::Other(more));
        for (high, low) in [(1, 0), (0x80, 0), (0xc1, 2), (0xd2, 0)] {
            assert_eq!(lun(high, low), Lun::Other([high, low, 0, 0, 0, 0, 0, 0]));
        }
    }
}
