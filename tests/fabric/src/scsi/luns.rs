//! How units are numbered (SAM-5 4.7), and the list of them (SPC-4 6.35).

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

/// What a LUN in a command names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lun {
    Number(u16),
    /// The well-known logical unit that reports LUNs.
    Report,
    /// More levels than one, or a method that no unit here has.
    Other,
}

/// The highest number of flat space addressing.
pub(crate) const LAST: u16 = 0x3fff;

/// Takes a LUN apart. Both methods name the same units.
pub(crate) fn read(lun: [u8; 8]) -> Lun {
    let [high, low, rest @ ..] = lun;
    if rest != [0; 6] {
        return Lun::Other;
    }
    match (high >> 6, high & 0x3f) {
        // Peripheral device addressing, of the only bus.
        (0, 0) => Lun::Number(low.into()),
        (1, upper) => Lun::Number(u16::from_be_bytes([upper, low])),
        // Extended addressing: a well-known logical unit, number 1 (SAM-5 4.7.7.5).
        (3, 1) if low == 1 => Lun::Report,
        _ => Lun::Other,
    }
}

fn written(number: u16, method: Method) -> [u8; 8] {
    let flat = number > 0xff || method == Method::Flat;
    let [high, low] = number.to_be_bytes();
    [if flat { 0x40 | high } else { 0 }, low, 0, 0, 0, 0, 0, 0]
}

/// The answer to REPORT LUNS: units of these numbers. None for a field that does not fit.
pub(crate) fn report(cdb: &[u8; 16], numbers: impl Iterator<Item = u16>, method: Method) -> Option<Vec<u8>> {
    let numbers: Vec<u16> = match cdb[2] {
        // All, or all but those that are well known.
        0 | 2 => numbers.collect(),
        // Well-known ones alone.
        1 => Vec::new(),
        _ => return None,
    };
    let length = u32::try_from(numbers.len() * 8).ok()?;
    let mut list = length.to_be_bytes().to_vec();
    list.extend([0; 4]);
    numbers.into_iter().for_each(|number| list.extend(written(number, method)));
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
        let list = report(&cdb, [0, 5, 27, 513].into_iter(), Method::Peripheral).unwrap();
        assert_eq!(list[..8], [0, 0, 0, 32, 0, 0, 0, 0]);
        let luns: Vec<&[u8]> = list[8..].chunks(8).map(|lun| &lun[..2]).collect();
        assert_eq!(luns, [[0, 0], [0, 5], [0, 27], [0x42, 0x01]]);
        let flat = report(&cdb, [5].into_iter(), Method::Flat).unwrap();
        assert_eq!(flat[8..10], [0x40, 5]);
        cdb[2] = 3;
        assert_eq!(report(&cdb, [5].into_iter(), Method::Flat), None);
    }

    #[test]
    fn both_methods_name_a_unit() {
        let lun = |high, low| read([high, low, 0, 0, 0, 0, 0, 0]);
        assert_eq!([lun(0, 27), lun(0x40, 27), lun(0x42, 1)], [27, 27, 513].map(Lun::Number));
        assert_eq!(lun(0x7f, 0xff), Lun::Number(LAST));
        assert_eq!(lun(0xc1, 1), Lun::Report);
        for other in [lun(1, 0), lun(0x80, 0), lun(0xc1, 2), lun(0xd2, 0), read([0, 0, 0, 1, 0, 0, 0, 0])] {
            assert_eq!(other, Lun::Other);
        }
    }
}
