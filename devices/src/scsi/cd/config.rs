//! What makes one drive differ from another, as the administrator gives it.

use thiserror::Error;

use crate::scsi::{DiskConfig, DiskError};

/// A drive as it shall appear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CdConfig {
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
}

impl Default for CdConfig {
    fn default() -> Self {
        Self {
            vendor: "VMM".into(),
            product: "VIRTUAL DVD-ROM".into(),
            revision: "1.0".into(),
            serial: String::new(),
            wwn: None,
        }
    }
}

/// A drive that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CdError {
    /// Its names.
    #[error(transparent)]
    Names(#[from] DiskError),
    /// The image has less than one sector.
    #[error("the image is smaller than one sector of 2048 bytes")]
    Empty,
    /// There is a disc in the drive.
    #[error("there is a disc in the drive")]
    Occupied,
    /// There is no drive.
    #[error("what is there is no CD drive")]
    NoDrive,
    /// A guest has locked the tray.
    #[error(transparent)]
    Locked(#[from] super::Locked),
}

impl CdConfig {
    /// The names, as those of a disk.
    pub(super) fn names(&self) -> DiskConfig {
        DiskConfig {
            vendor: self.vendor.clone(),
            product: self.product.clone(),
            revision: self.revision.clone(),
            serial: self.serial.clone(),
            wwn: self.wwn,
            ..DiskConfig::default()
        }
    }
}
