//! What makes one disk differ from another, as the administrator gives it.

use thiserror::Error;

/// Types of protection information (SBC-4, 4.21.2); type 2 is left out, which only commands of 32 bytes can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtectionType {
    /// The reference tag is the lower half of the LBA.
    Type1,
    /// The reference tag is the application's.
    Type3,
}

/// A disk as it shall appear. Identity is the administrator's: it must stay the same for the life of the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// Logical block length in bytes: 512 or 4096.
    pub block_size: u32,
    /// Physical block length in bytes, a power of two; `None` takes what the image has.
    pub physical_block_size: Option<u32>,
    /// T10 vendor identification: 8 characters of ASCII.
    pub vendor: String,
    /// Product identification: 16 characters of ASCII.
    pub product: String,
    /// Product revision level: 4 characters of ASCII.
    pub revision: String,
    /// Unit serial number, ASCII, at most 36 characters; empty for none.
    pub serial: String,
    /// NAA name of the logical unit; without one it is made from the serial number, if there is one.
    pub wwn: Option<u64>,
    /// Nominal medium rotation rate in rotations a minute: 0 not reported, 1 not rotating (SBC-4, 6.6.2).
    pub rotation_rate: u16,
    /// The medium can be removed.
    pub removable: bool,
    /// Writes are refused even if the image would take them.
    pub read_only: bool,
    /// The guest may give space back where the image can.
    pub discard: bool,
    /// The write cache is on at power on.
    pub write_cache: bool,
    /// Initiators cannot change that (WCE of the caching mode page).
    pub cache_is_fixed: bool,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self {
            block_size: 512,
            physical_block_size: None,
            vendor: "VMM".into(),
            product: "VIRTUAL DISK".into(),
            revision: "1.0".into(),
            serial: String::new(),
            wwn: None,
            rotation_rate: 1,
            removable: false,
            read_only: false,
            discard: true,
            write_cache: true,
            cache_is_fixed: false,
        }
    }
}

/// Longest serial number, in bytes.
const MAX_SERIAL: usize = 36;

/// A disk that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DiskError {
    /// The logical block length is not 512 or 4096.
    #[error("logical block length {0} is not 512 or 4096")]
    BlockSize(u32),
    /// The physical block length is not a power of two, at least the logical one, at most 64 MiB.
    #[error("physical block length {0} is not a power of two from the logical block length to 64 MiB")]
    PhysicalBlockSize(u32),
    /// A text is too long or not printable ASCII.
    #[error("{0} is too long or not printable ASCII")]
    Text(&'static str),
    /// A rotation rate that the standard reserves.
    #[error("rotation rate {0} is reserved")]
    RotationRate(u16),
    /// A name that is no NAA identifier of eight bytes (SPC-5, 7.7.6.6).
    #[error("the world wide name {0:016x} does not begin with 2, 3 or 5, or is nothing else")]
    Name(u64),
    /// The image is smaller than one block.
    #[error("the image is smaller than one block")]
    Empty,
    /// The store of protection information is too small.
    #[error(
        "the store of protection information has not eight bytes for each block; restore it, or move it away: a new one is \
         made, and blocks are checked once they are written again"
    )]
    ProtectionStore,
}

impl DiskConfig {
    pub(in crate::scsi) fn check(&self) -> Result<(), DiskError> {
        if !matches!(self.block_size, 512 | 4096) {
            return Err(DiskError::BlockSize(self.block_size));
        }
        if let Some(physical) = self.physical_block_size
            && !(physical.is_power_of_two() && (self.block_size..=64 << 20).contains(&physical))
        {
            return Err(DiskError::PhysicalBlockSize(physical));
        }
        for (name, text, max) in [
            ("vendor", &self.vendor, 8),
            ("product", &self.product, 16),
            ("revision", &self.revision, 4),
            ("serial", &self.serial, MAX_SERIAL),
        ] {
            if text.len() > max || !text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
                return Err(DiskError::Text(name));
            }
        }
        if let Some(wwn) = self.wwn
            && (!matches!(wwn >> 60, 2 | 3 | 5) || wwn << 4 == 0)
        {
            return Err(DiskError::Name(wwn));
        }
        // SBC-4, table 290: 0002h to 0400h and FFFFh are reserved.
        if matches!(self.rotation_rate, 2..=0x400 | 0xffff) {
            return Err(DiskError::RotationRate(self.rotation_rate));
        }
        Ok(())
    }

    /// The NAA name: the configured one, or a locally assigned one (NAA 3h) made from the serial number.
    pub(super) fn naa(&self) -> Option<u64> {
        if self.wwn.is_some() || self.serial.is_empty() {
            return self.wwn;
        }
        // FNV-1a: stable across versions, which is all that is asked of it.
        let hash = self.serial.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Some(3 << 60 | hash >> 4)
    }
}
