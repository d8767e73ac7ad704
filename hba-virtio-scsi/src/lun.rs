//! The `lun` field of requests: a target and a logical unit, or the REPORT LUNS well-known unit (5.6.6.1).

use devices::scsi::Lun;

/// What a `lun` field addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A logical unit of a target.
    Unit {
        /// Target number.
        target: u8,
        /// The unit, in the form in which REPORT LUNS gives it.
        lun: Lun,
    },
    /// The REPORT LUNS well-known unit of the device, of no target in particular.
    ReportLuns,
}

/// The REPORT LUNS well-known logical unit (SAM-6, 4.7.6.4).
pub(crate) const REPORT_LUNS: Lun = Lun([0xc1, 1, 0, 0, 0, 0, 0, 0]);

/// Decodes a `lun` field; `None` when its first byte names neither form.
///
/// Byte 0 is 1, byte 1 the target, bytes 2 to 7 the unit. Drivers use flat space addressing for any unit; units
/// below 256 are also known by peripheral device addressing, which is what the SCSI layer uses (SAM-6, 4.7.7.3).
/// Other formats go through as they are: the target says that it has no such unit. With `native`, which is
/// VIRTIO_SCSI_F_NATIVE_LUN (docs/virtio-scsi-fc.md, section 4), all do.
pub(crate) fn decode(field: [u8; 8], native: bool) -> Option<Address> {
    match field {
        [0xc1, 1, 0, 0, 0, 0, 0, 0] => Some(Address::ReportLuns),
        [1, target, 0x40, low, 0, 0, 0, 0] if !native => {
            Some(Address::Unit { target, lun: Lun([0, low, 0, 0, 0, 0, 0, 0]) })
        }
        [1, target, a, b, c, d, e, f] => Some(Address::Unit { target, lun: Lun([a, b, c, d, e, f, 0, 0]) }),
        _ => None,
    }
}

/// The field that addresses `lun` of `target` in an event: the unit as REPORT LUNS gives it, which is how drivers
/// know it.
pub(crate) fn encode(target: u8, lun: Lun) -> [u8; 8] {
    let Lun([a, b, c, d, e, f, _, _]) = lun;
    [1, target, a, b, c, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(target: u8, lun: [u8; 8]) -> Option<Address> {
        Some(Address::Unit { target, lun: Lun(lun) })
    }

    #[test]
    fn single_level_forms_name_the_same_unit() {
        assert_eq!(decode([1, 7, 0, 5, 0, 0, 0, 0], false), unit(7, [0, 5, 0, 0, 0, 0, 0, 0]));
        assert_eq!(decode([1, 7, 0x40, 5, 0, 0, 0, 0], false), unit(7, [0, 5, 0, 0, 0, 0, 0, 0]));
        assert_eq!(
            decode([1, 255, 0x7f, 0xff, 0, 0, 0, 0], false),
            unit(255, [0x7f, 0xff, 0, 0, 0, 0, 0, 0])
        );
    }

    #[test]
    fn well_known_unit_with_and_without_target() {
        assert_eq!(decode([0xc1, 1, 0, 0, 0, 0, 0, 0], false), Some(Address::ReportLuns));
        assert_eq!(decode([1, 3, 0xc1, 1, 0, 0, 0, 0], false), unit(3, [0xc1, 1, 0, 0, 0, 0, 0, 0]));
    }

    #[test]
    fn other_first_bytes_name_nothing() {
        for field in
            [[0; 8], [2, 0, 0, 0, 0, 0, 0, 0], [0xc1, 2, 0, 0, 0, 0, 0, 0], [0xc1, 1, 0, 1, 0, 0, 0, 0]]
        {
            assert_eq!(decode(field, false), None, "{field:?}");
        }
    }

    #[test]
    fn a_second_level_is_not_mistaken_for_the_first() {
        assert_eq!(decode([1, 0, 0x40, 5, 0, 1, 0, 0], false), unit(0, [0x40, 5, 0, 1, 0, 0, 0, 0]));
    }

    #[test]
    fn native_units_are_what_the_target_calls_them() {
        for lun in [[0x40, 5, 0, 0, 0, 0, 0, 0], [0, 5, 1, 2, 0, 0, 0, 0], [0xd2, 0, 0, 5, 0, 0, 0, 0]] {
            let [a, b, c, d, e, f, ..] = lun;
            assert_eq!(decode([1, 7, a, b, c, d, e, f], true), unit(7, lun));
        }
        assert_eq!(decode([0xc1, 1, 0, 0, 0, 0, 0, 0], true), Some(Address::ReportLuns));
    }

    #[test]
    fn events_use_the_form_of_report_luns() {
        assert_eq!(encode(9, Lun([0, 3, 0, 0, 0, 0, 0, 0])), [1, 9, 0, 3, 0, 0, 0, 0]);
        assert_eq!(encode(9, Lun([0x41, 3, 0, 0, 0, 0, 0, 0])), [1, 9, 0x41, 3, 0, 0, 0, 0]);
    }
}
