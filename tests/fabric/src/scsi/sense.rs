//! Sense data, in fixed format (SPC-4 4.5.3), or in descriptor format (SPC-4 4.5.2) where a test wants that.

use super::alua::State;
use super::referrals::Segment;

/// What a command's failure, or a unit attention, says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sense {
    pub(crate) key: u8,
    pub(crate) asc: u8,
    pub(crate) ascq: u8,
    /// FILEMARK, EOM and ILI, as in the byte with the key.
    flags: u8,
    information: Option<u64>,
    is_descriptor: bool,
    segment: Option<Segment>,
}

const fn sense(key: u8, asc: u8, ascq: u8) -> Sense {
    Sense { key, asc, ascq, flags: 0, information: None, is_descriptor: false, segment: None }
}

/// With the names of SPC-4, annex of additional sense codes.
impl Sense {
    pub(crate) const NONE: Self = sense(0, 0, 0);
    pub(crate) const NONE_FILEMARK: Self = sense(0, 0x00, 0x01);
    pub(crate) const END_OF_PARTITION: Self = sense(0, 0x00, 0x02);
    pub(crate) const BEGINNING_OF_PARTITION: Self = sense(0, 0x00, 0x04);
    pub(crate) const ASYMMETRIC_TRANSITION: Self = sense(2, 0x04, 0x0a);
    pub(crate) const TARGET_PORT_IN_STANDBY_STATE: Self = sense(2, 0x04, 0x0b);
    pub(crate) const TARGET_PORT_IN_UNAVAILABLE_STATE: Self = sense(2, 0x04, 0x0c);
    pub(crate) const LOGICAL_UNIT_NOT_READY_OFFLINE: Self = sense(2, 0x04, 0x12);
    pub(crate) const MEDIUM_NOT_PRESENT: Self = sense(2, 0x3a, 0x00);
    pub(crate) const PARAMETER_LIST_LENGTH_ERROR: Self = sense(5, 0x1a, 0x00);
    pub(crate) const INVALID_COMMAND_OPERATION_CODE: Self = sense(5, 0x20, 0x00);
    pub(crate) const LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE: Self = sense(5, 0x21, 0x00);
    pub(crate) const INVALID_FIELD_IN_CDB: Self = sense(5, 0x24, 0x00);
    pub(crate) const LOGICAL_UNIT_NOT_SUPPORTED: Self = sense(5, 0x25, 0x00);
    pub(crate) const INVALID_FIELD_IN_PARAMETER_LIST: Self = sense(5, 0x26, 0x00);
    pub(crate) const INVALID_RELEASE: Self = sense(5, 0x26, 0x04);
    pub(crate) const INSUFFICIENT_REGISTRATION_RESOURCES: Self = sense(5, 0x55, 0x04);
    pub(crate) const MEDIUM_MAY_HAVE_CHANGED: Self = sense(6, 0x28, 0x00);
    pub(crate) const POWER_ON: Self = sense(6, 0x29, 0x00);
    pub(crate) const I_T_NEXUS_LOSS: Self = sense(6, 0x29, 0x07);
    pub(crate) const DEVICE_RESET: Self = sense(6, 0x29, 0x03);
    pub(crate) const RESERVATIONS_PREEMPTED: Self = sense(6, 0x2a, 0x03);
    pub(crate) const RESERVATIONS_RELEASED: Self = sense(6, 0x2a, 0x04);
    pub(crate) const REGISTRATIONS_PREEMPTED: Self = sense(6, 0x2a, 0x05);
    pub(crate) const ASYMMETRIC_STATE_CHANGED: Self = sense(6, 0x2a, 0x06);
    pub(crate) const CAPACITY_DATA_HAS_CHANGED: Self = sense(6, 0x2a, 0x09);
    pub(crate) const COMMANDS_CLEARED: Self = sense(6, 0x2f, 0x00);
    pub(crate) const INQUIRY_DATA_HAS_CHANGED: Self = sense(6, 0x3f, 0x03);
    pub(crate) const REPORTED_LUNS_DATA_HAS_CHANGED: Self = sense(6, 0x3f, 0x0e);
    pub(crate) const BLANK_CHECK: Self = sense(8, 0x00, 0x05);
    pub(crate) const ABORTED_INSPECT_REFERRALS: Self = sense(0xb, 0x3f, 0x15);
    pub(crate) const COMPLETED_INSPECT_REFERRALS: Self = sense(0xf, 0x3f, 0x15);
    pub(crate) const VOLUME_OVERFLOW: Self = sense(0xd, 0x00, 0x02);
    pub(crate) const MISCOMPARE: Self = sense(0xe, 0x1d, 0x00);

    pub(crate) const FILEMARK: u8 = 0x80;
    pub(crate) const EOM: u8 = 0x40;
    pub(crate) const ILI: u8 = 0x20;

    pub(crate) fn new(key: u8, asc: u8, ascq: u8) -> Self {
        sense(key & 0xf, asc, ascq)
    }

    /// With flags, and what the information field says.
    pub(crate) fn with(mut self, flags: u8, information: i64) -> Self {
        self.flags = flags;
        // Two's complement, as SSC has it.
        self.information = Some((information as u32).into());
        self
    }

    /// About this block.
    pub(crate) fn about(mut self, block: u64) -> Self {
        self.information = Some(block);
        self
    }

    /// In descriptor format.
    pub(crate) fn in_descriptors(mut self) -> Self {
        self.is_descriptor = true;
        self
    }

    /// With the user data segment referral sense data descriptor (SBC-4 4.18), which only the descriptor format has.
    pub(crate) fn referring(mut self, segment: Segment) -> Self {
        self.segment = Some(segment);
        self.in_descriptors()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        if self.is_descriptor {
            // The information descriptor, if there is information.
            let information = self.information.map(|block| block.to_be_bytes());
            let mut list: Vec<u8> =
                information.iter().flat_map(|block| [&[0, 10, 0x80, 0], &block[..]].concat()).collect();
            if let Some(segment) = self.segment {
                // All segments that it is about are there: NOT_ALL_R is zero.
                let referral = segment.bytes(State::Optimized);
                list.extend([0x0b, u8::try_from(referral.len() + 2).unwrap_or_default(), 0, 0]);
                list.extend(referral);
            }
            let length = u8::try_from(list.len()).unwrap_or_default();
            let mut bytes = vec![0x72, self.key, self.asc, self.ascq, 0, 0, 0, length];
            bytes.extend(list);
            return bytes;
        }
        // An address that does not fit is not valid.
        let information = self.information.and_then(|block| u32::try_from(block).ok());
        let valid = u8::from(information.is_some()) << 7;
        let [a, b, c, d] = information.unwrap_or_default().to_be_bytes();
        let key = self.flags | self.key;
        vec![valid | 0x70, 0, key, a, b, c, d, 10, 0, 0, 0, 0, self.asc, self.ascq, 0, 0, 0, 0]
    }
}

/// Why a command is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Check(Sense),
    /// Another status, which has no sense data.
    Status(u8),
}

impl From<Sense> for Failure {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}
