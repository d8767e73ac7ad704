//! Sense data: what it says, in which of two formats, and which storage error becomes which.

use super::{Sense, Status};
use crate::storage::{BlockError, BlockErrorKind};

/// Sense keys (SPC-5, 4.4.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum SenseKey {
    NoSense = 0x0,
    NotReady = 0x2,
    MediumError = 0x3,
    HardwareError = 0x4,
    IllegalRequest = 0x5,
    UnitAttention = 0x6,
    DataProtect = 0x7,
    CopyAborted = 0xa,
    AbortedCommand = 0xb,
    Miscompare = 0xe,
}

/// Additional sense code and qualifier (SPC-5, annex F; the current list is T10's asc-num.txt).
pub(crate) type Code = (u8, u8);

pub(crate) const NO_ADDITIONAL_SENSE: Code = (0x00, 0x00);
pub(crate) const INITIALIZING_COMMAND_REQUIRED: Code = (0x04, 0x02);
pub(crate) const FORMAT_IN_PROGRESS: Code = (0x04, 0x04);
pub(crate) const COMMUNICATION_FAILURE: Code = (0x08, 0x00);
pub(crate) const WRITE_ERROR: Code = (0x0c, 0x00);
pub(crate) const THIRD_PARTY_DEVICE_FAILURE: Code = (0x0d, 0x01);
pub(crate) const COPY_TARGET_NOT_REACHABLE: Code = (0x0d, 0x02);
pub(crate) const GUARD_CHECK_FAILED: Code = (0x10, 0x01);
pub(crate) const REFERENCE_TAG_CHECK_FAILED: Code = (0x10, 0x03);
pub(crate) const UNRECOVERED_READ_ERROR: Code = (0x11, 0x00);
pub(crate) const PARAMETER_LIST_LENGTH_ERROR: Code = (0x1a, 0x00);
pub(crate) const MISCOMPARE_DURING_VERIFY: Code = (0x1d, 0x00);
pub(crate) const INVALID_OPERATION_CODE: Code = (0x20, 0x00);
pub(crate) const LBA_OUT_OF_RANGE: Code = (0x21, 0x00);
pub(crate) const INVALID_TOKEN_OPERATION: Code = (0x23, 0x00);
pub(crate) const UNSUPPORTED_TOKEN_TYPE: Code = (0x23, 0x01);
pub(crate) const TOKEN_UNKNOWN: Code = (0x23, 0x04);
pub(crate) const TOKEN_REVOKED: Code = (0x23, 0x06);
pub(crate) const INVALID_TOKEN_LENGTH: Code = (0x23, 0x0a);
pub(crate) const INVALID_FIELD_IN_CDB: Code = (0x24, 0x00);
pub(crate) const LUN_NOT_SUPPORTED: Code = (0x25, 0x00);
pub(crate) const INVALID_FIELD_IN_PARAMETER_LIST: Code = (0x26, 0x00);
pub(crate) const INVALID_RELEASE: Code = (0x26, 0x04);
pub(crate) const TOO_MANY_TARGETS: Code = (0x26, 0x06);
pub(crate) const UNSUPPORTED_TARGET_TYPE: Code = (0x26, 0x07);
pub(crate) const TOO_MANY_SEGMENTS: Code = (0x26, 0x08);
pub(crate) const UNSUPPORTED_SEGMENT_TYPE: Code = (0x26, 0x09);
pub(crate) const UNEXPECTED_INEXACT_SEGMENT: Code = (0x26, 0x0a);
pub(crate) const INLINE_DATA_LENGTH_EXCEEDED: Code = (0x26, 0x0b);
pub(crate) const WRITE_PROTECTED: Code = (0x27, 0x00);
pub(crate) const SOFTWARE_WRITE_PROTECTED: Code = (0x27, 0x02);
pub(crate) const SPACE_ALLOCATION_FAILED: Code = (0x27, 0x07);
pub(crate) const INCOMPATIBLE_FORMAT: Code = (0x30, 0x02);
pub(crate) const MEDIUM_FORMAT_CORRUPTED: Code = (0x31, 0x00);
pub(crate) const SAVING_PARAMETERS_NOT_SUPPORTED: Code = (0x39, 0x00);
pub(crate) const MEDIUM_NOT_PRESENT: Code = (0x3a, 0x00);
pub(crate) const NO_DISC_TRAY_CLOSED: Code = (0x3a, 0x01);
pub(crate) const NO_DISC_TRAY_OPEN: Code = (0x3a, 0x02);
pub(crate) const INTERNAL_TARGET_FAILURE: Code = (0x44, 0x00);
pub(crate) const INVALID_MESSAGE_ERROR: Code = (0x49, 0x00);
pub(crate) const MEDIUM_REMOVAL_PREVENTED: Code = (0x53, 0x02);
pub(crate) const INSUFFICIENT_RESOURCES: Code = (0x55, 0x03);
pub(crate) const ILLEGAL_MODE_FOR_THIS_TRACK: Code = (0x64, 0x00);

/// The sense-key specific bytes (SPC-5, 4.4.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Specific {
    None,
    /// Field in error: in the CDB or in the parameter list, byte, and its leftmost bit where that says more.
    Field {
        in_cdb: bool,
        byte: u16,
        bit: Option<u8>,
    },
    /// Progress indication, in 65536ths.
    Progress(u16),
}

/// Sense data before it takes a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SenseData {
    key: SenseKey,
    code: Code,
    information: Option<u64>,
    /// COMMAND-SPECIFIC INFORMATION, in the four bytes that the fixed format has.
    command: Option<u32>,
    specific: Specific,
}

impl SenseData {
    pub(crate) const fn new(key: SenseKey, code: Code) -> Self {
        Self { key, code, information: None, command: None, specific: Specific::None }
    }

    /// ILLEGAL REQUEST with `code`.
    pub(crate) const fn illegal(code: Code) -> Self {
        Self::new(SenseKey::IllegalRequest, code)
    }

    /// INVALID FIELD IN CDB, pointing at a byte and perhaps at the leftmost bit of the field.
    pub(crate) const fn cdb_field(byte: u16, bit: Option<u8>) -> Self {
        let mut sense = Self::illegal(INVALID_FIELD_IN_CDB);
        sense.specific = Specific::Field { in_cdb: true, byte, bit };
        sense
    }

    /// INVALID FIELD IN PARAMETER LIST, likewise.
    pub(crate) const fn parameter_field(byte: u16, bit: Option<u8>) -> Self {
        let mut sense = Self::illegal(INVALID_FIELD_IN_PARAMETER_LIST);
        sense.specific = Specific::Field { in_cdb: false, byte, bit };
        sense
    }

    /// Adds the INFORMATION field: its meaning depends on the code (an LBA, an offset).
    pub(crate) const fn with_information(mut self, information: u64) -> Self {
        self.information = Some(information);
        self
    }

    /// Adds the COMMAND-SPECIFIC INFORMATION field.
    pub(crate) const fn with_command(mut self, command: u32) -> Self {
        self.command = Some(command);
        self
    }

    /// ASC and ASCQ.
    pub(crate) const fn code(&self) -> Code {
        self.code
    }

    /// Whether the sense key is `key`.
    pub(crate) fn is(&self, key: SenseKey) -> bool {
        self.key == key
    }

    /// Adds a progress indication.
    pub(crate) const fn with_progress(mut self, progress: u16) -> Self {
        self.specific = Specific::Progress(progress);
        self
    }

    /// As bytes, in descriptor format (SPC-5, 4.4.2) or in fixed format (SPC-5, 4.4.3).
    pub(crate) fn encode(&self, descriptor: bool) -> Sense {
        if descriptor { self.descriptor_format() } else { self.fixed_format() }
    }

    fn fixed_format(&self) -> Sense {
        // An INFORMATION value that four bytes cannot hold leaves the VALID bit zero.
        let (valid, information) = match self.information.map(u32::try_from) {
            Some(Ok(value)) => (0x80, value.to_be_bytes()),
            _ => (0, [0; 4]),
        };
        let [i0, i1, i2, i3] = information;
        let [s0, s1, s2] = self.specific_bytes();
        let (asc, ascq) = self.code;
        let key = self.key as u8;
        let [c0, c1, c2, c3] = self.command.unwrap_or(0).to_be_bytes();
        Sense::from_bytes(&[
            0x70 | valid,
            0,
            key,
            i0,
            i1,
            i2,
            i3,
            10,
            c0,
            c1,
            c2,
            c3,
            asc,
            ascq,
            0,
            s0,
            s1,
            s2,
        ])
    }

    fn descriptor_format(&self) -> Sense {
        let (asc, ascq) = self.code;
        let mut bytes = [0u8; 40];
        let mut len = 8;
        let mut add = |part: &[u8]| {
            for (to, from) in bytes.iter_mut().skip(len).zip(part) {
                *to = *from;
            }
            len += part.len();
        };
        if let Some(information) = self.information {
            let [a, b, c, d, e, f, g, h] = information.to_be_bytes();
            add(&[0x00, 0x0a, 0x80, 0, a, b, c, d, e, f, g, h]);
        }
        if let Some(command) = self.command {
            let [a, b, c, d] = command.to_be_bytes();
            add(&[0x01, 0x0a, 0, 0, 0, 0, 0, 0, a, b, c, d]);
        }
        if self.specific != Specific::None {
            let [s0, s1, s2] = self.specific_bytes();
            add(&[0x02, 0x06, 0, 0, s0, s1, s2, 0]);
        }
        let header = [0x72, self.key as u8, asc, ascq, 0, 0, 0, (len - 8) as u8];
        for (to, from) in bytes.iter_mut().zip(header) {
            *to = from;
        }
        Sense::from_bytes(bytes.get(..len).unwrap_or(&bytes))
    }

    fn specific_bytes(&self) -> [u8; 3] {
        match self.specific {
            Specific::None => [0; 3],
            Specific::Progress(progress) => {
                let [high, low] = progress.to_be_bytes();
                [0x80, high, low]
            }
            Specific::Field { in_cdb, byte, bit } => {
                let in_cdb = if in_cdb { 0x40 } else { 0 };
                let bit = bit.map_or(0, |bit| 0x08 | (bit & 7));
                let [high, low] = byte.to_be_bytes();
                [0x80 | in_cdb | bit, high, low]
            }
        }
    }
}

/// Why a command did not do what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// CHECK CONDITION with this sense data.
    Check(SenseData),
    /// Another status, without sense data.
    Status(Status),
    /// What a device of the host said, or its adapter: the unit has it under this number, since it is long and seldom.
    Passed(u32),
}

impl From<SenseData> for Failure {
    fn from(sense: SenseData) -> Self {
        Self::Check(sense)
    }
}

impl From<BlockError> for Failure {
    fn from(error: BlockError) -> Self {
        use BlockErrorKind as Kind;
        let check = |key, code| Self::Check(SenseData::new(key, code));
        match error.kind {
            Kind::ReadFailed => check(SenseKey::MediumError, UNRECOVERED_READ_ERROR),
            Kind::WriteFailed => check(SenseKey::MediumError, WRITE_ERROR),
            Kind::NoSpace => check(SenseKey::DataProtect, SPACE_ALLOCATION_FAILED),
            // Of the keys for what is broken for good, Linux ends commands with this one at once, as the target's and not
            // the path's failure; MEDIUM ERROR it tries again. FreeBSD ends this code at once in some versions, and tries
            // it a few times in others.
            Kind::Unstable => check(SenseKey::HardwareError, INTERNAL_TARGET_FAILURE),
            Kind::ReadOnly => check(SenseKey::DataProtect, WRITE_PROTECTED),
            Kind::OutOfRange => check(SenseKey::IllegalRequest, LBA_OUT_OF_RANGE),
            Kind::Unsupported => check(SenseKey::HardwareError, INTERNAL_TARGET_FAILURE),
            Kind::Lost => check(SenseKey::HardwareError, COMMUNICATION_FAILURE),
            Kind::ReservationConflict => Self::Status(Status::ReservationConflict),
            Kind::Withheld => Self::Status(Status::Busy),
            Kind::HostResources => check(SenseKey::AbortedCommand, INSUFFICIENT_RESOURCES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_format_points_at_the_field() {
        // SPC-5, 4.4.3 and 4.4.2.4.2: SKSV, C/D, BPV and bit pointer 7, then byte pointer 1.
        let sense = SenseData::cdb_field(1, Some(7)).encode(false);
        assert_eq!(sense.as_bytes(), [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xcf, 0, 1]);
        let sense = SenseData::parameter_field(0x102, None).encode(false);
        assert_eq!(&sense.as_bytes()[12..], [0x26, 0, 0, 0x80, 1, 2]);
    }

    #[test]
    fn fixed_format_marks_information_that_fits() {
        let sense = SenseData::illegal(LBA_OUT_OF_RANGE).with_information(0x0102_0304);
        assert_eq!(&sense.encode(false).as_bytes()[..8], [0xf0, 0, 5, 1, 2, 3, 4, 10]);
        let sense = SenseData::illegal(LBA_OUT_OF_RANGE).with_information(1 << 32);
        assert_eq!(&sense.encode(false).as_bytes()[..8], [0x70, 0, 5, 0, 0, 0, 0, 10]);
    }

    #[test]
    fn descriptor_format_has_a_descriptor_for_each_part() {
        let sense = SenseData::cdb_field(2, Some(5)).with_information(0x1_0000_0002).encode(true);
        let wanted = [
            0x72, 5, 0x24, 0, 0, 0, 0, 20, // header
            0x00, 0x0a, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 2, // information
            0x02, 0x06, 0, 0, 0xcd, 0, 2, 0, // sense-key specific
        ];
        assert_eq!(sense.as_bytes(), wanted);
        let sense = SenseData::new(SenseKey::NotReady, MEDIUM_NOT_PRESENT).encode(true);
        assert_eq!(sense.as_bytes(), [0x72, 2, 0x3a, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn each_storage_error_has_its_sense() {
        let of = |kind| {
            let error = BlockError { kind, context: String::new(), source: None };
            match Failure::from(error) {
                Failure::Check(sense) => {
                    let bytes = sense.encode(false);
                    let bytes = bytes.as_bytes();
                    (0x02, bytes[2], bytes[12], bytes[13])
                }
                Failure::Status(status) => (status as u8, 0, 0, 0),
                Failure::Passed(number) => panic!("number {number}"),
            }
        };
        assert_eq!(of(BlockErrorKind::ReadFailed), (2, 0x3, 0x11, 0));
        assert_eq!(of(BlockErrorKind::WriteFailed), (2, 0x3, 0x0c, 0));
        assert_eq!(of(BlockErrorKind::NoSpace), (2, 0x7, 0x27, 7));
        assert_eq!(of(BlockErrorKind::Unstable), (2, 0x4, 0x44, 0));
        assert_eq!(of(BlockErrorKind::ReadOnly), (2, 0x7, 0x27, 0));
        assert_eq!(of(BlockErrorKind::OutOfRange), (2, 0x5, 0x21, 0));
        assert_eq!(of(BlockErrorKind::Unsupported), (2, 0x4, 0x44, 0));
        assert_eq!(of(BlockErrorKind::Lost), (2, 0x4, 0x08, 0));
        assert_eq!(of(BlockErrorKind::ReservationConflict), (0x18, 0, 0, 0));
        assert_eq!(of(BlockErrorKind::HostResources), (2, 0xb, 0x55, 3));
    }
}
