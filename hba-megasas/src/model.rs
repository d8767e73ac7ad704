//! The boards: what differs between them.

/// A MegaRAID SAS board.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Model {
    /// SAS2108: MegaRAID SAS 9260-8i (1000:0079).
    #[default]
    Gen2,
    /// SAS1078: MegaRAID SAS 8708EM2 (1000:0060).
    Sas1078,
}

impl Model {
    /// PCI device ID.
    pub(crate) fn device_id(self) -> u16 {
        match self {
            Self::Gen2 => 0x0079,
            Self::Sas1078 => 0x0060,
        }
    }

    /// PCI subsystem ID; the subsystem vendor is the vendor.
    pub(crate) fn subsystem_id(self) -> u16 {
        match self {
            Self::Gen2 => 0x9261,
            Self::Sas1078 => 0x1013,
        }
    }

    /// PCI revision ID.
    pub(crate) fn revision(self) -> u8 {
        match self {
            Self::Gen2 => 5,
            Self::Sas1078 => 4,
        }
    }

    /// Commands in flight at most, as the status word says. Windows is said to insist on these numbers.
    pub(crate) fn max_commands(self) -> u16 {
        match self {
            Self::Gen2 => 1008,
            Self::Sas1078 => 1000,
        }
    }

    /// Elements of a scatter-gather list at most. Where lists may be of the 16-byte kind, Linux has room in its
    /// frames for 60.
    pub(crate) fn max_sges(self) -> u8 {
        match self {
            Self::Gen2 => 60,
            Self::Sas1078 => 80,
        }
    }

    /// The bit of the interrupt status that says that there are completions.
    pub(crate) fn reply_bit(self) -> u32 {
        match self {
            Self::Gen2 => 0x1,
            Self::Sas1078 => 0x8000_0000,
        }
    }

    /// Product name as the firmware gives it.
    pub(crate) fn product(self) -> &'static str {
        match self {
            Self::Gen2 => "LSI MegaRAID SAS 9260-8i",
            Self::Sas1078 => "LSI MegaRAID SAS 8708EM2",
        }
    }

    /// Version of the firmware package.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Self::Gen2 => "12.12.0-0124",
            Self::Sas1078 => "11.0.1-0040",
        }
    }

    /// Version of the firmware proper.
    pub(crate) fn firmware(self) -> &'static str {
        match self {
            Self::Gen2 => "1.80",
            Self::Sas1078 => "1.70",
        }
    }
}
