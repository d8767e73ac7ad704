//! Logical unit numbers: the addressing methods of SAM-6, 4.7, and the one number behind them.

use super::Lun;

/// Logical units a target can address: all of the flat space (SAM-6, 4.7.7.3).
pub(crate) const MAX_LUNS: u32 = 1 << 14;

/// What an 8-byte LUN leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A logical unit by its number, whichever addressing method named it.
    Unit(u32),
    /// The REPORT LUNS well known logical unit (SPC-5, 9.2).
    ReportLuns,
    /// Nothing that this target could have.
    Nowhere,
}

impl Lun {
    /// The REPORT LUNS well known logical unit: C1 01 (SPC-5, 9.1).
    pub const REPORT_LUNS: Self = Self([0xc1, 0x01, 0, 0, 0, 0, 0, 0]);

    /// The LUN of unit `number` in the shortest method that holds it: peripheral device addressing up to 255, flat
    /// space addressing up to 16383, extended flat space addressing (3 bytes) beyond. Bits above 24 are dropped.
    pub fn from_number(number: u32) -> Self {
        let [_, high, middle, low] = number.to_be_bytes();
        match number {
            0..=0xff => Self([0, low, 0, 0, 0, 0, 0, 0]),
            0x100..=0x3fff => Self([0x40 | middle, low, 0, 0, 0, 0, 0, 0]),
            _ => Self([0xd2, high, middle, low, 0, 0, 0, 0]),
        }
    }

    /// The unit's number, if this is a single-level LUN in the peripheral (bus 0), flat space or extended flat
    /// space addressing method; `None` for everything else, the well known logical units among it.
    pub fn number(&self) -> Option<u32> {
        match self.address() {
            Address::Unit(number) => Some(number),
            _ => None,
        }
    }

    /// Whether this can be the LUN of a logical unit that an adapter reaches by the first three levels: bytes 6 and 7 are zero (SAM-6,
    /// 4.7.5), and it is no well known unit's and not the one that stands for none (SAM-6, 4.7.7.5).
    pub(crate) fn is_native(&self) -> bool {
        matches!(self.0, [first, .., 0, 0] if !matches!(first, 0xc1 | 0xff))
    }

    /// Whether an initiator with single-level LUNs of 14 bits knows the unit by this one: in the peripheral (bus 0) or the flat space
    /// addressing method.
    pub(crate) fn is_classic(&self) -> bool {
        matches!(self.0, [0 | 0x40..=0x7f, _, 0, 0, 0, 0, 0, 0])
    }

    /// What a single-level LUN may also be called: each of the three methods that hold its number, the shortest first.
    pub(crate) fn synonyms(&self) -> impl Iterator<Item = Self> {
        let number = self.number();
        let [_, high, middle, low] = number.unwrap_or(0).to_be_bytes();
        let flat = Self([0x40 | middle, low, 0, 0, 0, 0, 0, 0]);
        let extended = Self([0xd2, high, middle, low, 0, 0, 0, 0]);
        let all =
            [number.map(Self::from_number), (high == 0 && middle < 0x40).then_some(flat), Some(extended)];
        all.into_iter().flatten().filter(move |_| number.is_some())
    }

    pub(crate) fn address(&self) -> Address {
        if *self == Self::REPORT_LUNS {
            return Address::ReportLuns;
        }
        let number = match self.0 {
            [0, low, 0, 0, 0, 0, 0, 0] => u32::from(low),
            [high @ 0x40..=0x7f, low, 0, 0, 0, 0, 0, 0] => u32::from_be_bytes([0, 0, high & 0x3f, low]),
            [0xd2, a, b, c, 0, 0, 0, 0] => u32::from_be_bytes([0, a, b, c]),
            _ => return Address::Nowhere,
        };
        Address::Unit(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lun(bytes: &[u8]) -> Lun {
        let mut all = [0; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        Lun(all)
    }

    #[test]
    fn three_methods_name_the_same_unit() {
        for bytes in [&[0x00, 0x05][..], &[0x40, 0x05], &[0xd2, 0, 0, 5]] {
            assert_eq!(lun(bytes).number(), Some(5), "{bytes:x?}");
        }
        assert_eq!(lun(&[0x7f, 0xff]).number(), Some(16383));
        assert_eq!(lun(&[0xd2, 0x01, 0, 0]).number(), Some(65536));
    }

    #[test]
    fn a_number_has_up_to_three_names() {
        let names = |bytes: &[u8]| lun(bytes).synonyms().collect::<Vec<_>>();
        let five = [lun(&[0, 5]), lun(&[0x40, 5]), lun(&[0xd2, 0, 0, 5])];
        assert_eq!((names(&[0, 5]), names(&[0x40, 5])), (five.to_vec(), five.to_vec()));
        let flat = lun(&[0x42, 0x01]);
        assert_eq!(names(&[0x42, 0x01]), [flat, flat, lun(&[0xd2, 0, 0x02, 0x01])]);
        let long = lun(&[0xd2, 1, 0, 0]);
        assert_eq!(names(&[0xd2, 1, 0, 0]), [long, long]);
        assert_eq!(names(&[0, 5, 1, 2]), []);
        assert_eq!(names(&[0xc1, 1]), []);
    }

    #[test]
    fn levels_one_to_three_are_native() {
        for bytes in [&[0, 5][..], &[0x42, 1], &[0, 5, 1, 2], &[0x80, 1, 0x40, 2, 0, 3], &[0xd2, 0, 0, 5]] {
            assert!(lun(bytes).is_native(), "{bytes:x?}");
        }
        for bytes in [&[0, 5, 0, 0, 0, 0, 0, 1][..], &[0xc1, 1], &[0xc1, 3], &[0xff; 6]] {
            assert!(!lun(bytes).is_native(), "{bytes:x?}");
        }
    }

    #[test]
    fn other_methods_lead_nowhere() {
        // Peripheral bus 1, logical unit addressing, two levels, other extended methods.
        for bytes in
            [&[0x01, 0x05][..], &[0x80, 0x05], &[0x00, 0x05, 0x00, 0x01], &[0xe2, 0, 0, 0, 5], &[0xc1, 0x02]]
        {
            assert_eq!(lun(bytes).address(), Address::Nowhere, "{bytes:x?}");
        }
        assert_eq!(lun(&[0xc1, 0x01]).address(), Address::ReportLuns);
    }

    #[test]
    fn numbers_take_the_shortest_method() {
        assert_eq!(Lun::from_number(255), lun(&[0, 0xff]));
        assert_eq!(Lun::from_number(256), lun(&[0x41, 0x00]));
        assert_eq!(Lun::from_number(16383), lun(&[0x7f, 0xff]));
        assert_eq!(Lun::from_number(16384), lun(&[0xd2, 0x00, 0x40, 0x00]));
    }
}
