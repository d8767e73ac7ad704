//! What is known of a logical unit behind an HBA.

use std::path::PathBuf;
use std::sync::Arc;

use devices::storage::{BlockBackend, Image, fdset};

use crate::config::{self, LunType};
use crate::machine::hbas::Opened;
use crate::machine::host_unit::HostUnit;

/// A logical unit.
pub(in crate::machine) struct Attached {
    /// Its image.
    pub(super) image: Behind,
    /// The image's file or device.
    pub(super) path: PathBuf,
    /// In messages.
    pub(super) shown: String,
    /// The guest may not write.
    pub(super) read_only: bool,
    /// Its transfers go through memory of the process.
    pub(super) bounce: bool,
    /// Logical block length in bytes.
    pub(super) block_size: u64,
    /// It has protection information.
    pub(super) protected: bool,
    /// It is a CD drive, which is called what it is called while this lives.
    pub(super) drive: Option<Arc<()>>,
    /// Its type, if it is a device of the host.
    pub(super) host: Option<LunType>,
}

/// The image behind a unit.
pub(super) enum Behind {
    Image(Arc<Image>),
    /// A drive without a disc.
    Nothing,
    /// A device of the host, which knows its size itself.
    Host,
    /// The guest has lost the unit. Whoever closes the image, of this length in bytes, has it: to let go of it may take as long as
    /// the host does.
    Leaving(u64),
}

impl Attached {
    /// What was opened for `lun`.
    pub(in crate::machine) fn new(lun: &config::Lun, opened: &Opened) -> Self {
        match (opened, lun.device.image()) {
            (Opened::Disk(image, _), Some(disk)) => Self::disk(disk, image.clone()),
            (Opened::Cd(Some(image), _, names), Some(disc)) => {
                Self { drive: Some(names.clone()), ..Self::disk(disc, image.clone()) }
            }
            (Opened::Cd(_, _, names), _) => Self { drive: Some(names.clone()), ..Self::empty() },
            (Opened::Disk(..), None) => Self::empty(),
            (Opened::Host(device), _) => Self::host(lun, device),
        }
    }

    fn host(lun: &config::Lun, device: &HostUnit) -> Self {
        let host = lun.device.host();
        let read_only = host.is_some_and(|host| host.allow == config::Allow::ReadOnly);
        Self {
            host: Some(lun.device.kind()),
            ..Self::passed(device, read_only, host.is_some_and(|host| host.bounce))
        }
    }

    /// A device of the host.
    pub(super) fn passed(device: &HostUnit, read_only: bool, bounce: bool) -> Self {
        Self {
            host: Some(device.kind()),
            image: Behind::Host,
            path: device.name().into(),
            shown: device.name().to_owned(),
            read_only,
            bounce,
            ..Self::empty()
        }
    }

    pub(super) fn empty() -> Self {
        Self {
            image: Behind::Nothing,
            path: PathBuf::new(),
            shown: "an empty drive".into(),
            read_only: true,
            bounce: false,
            block_size: 0,
            protected: false,
            drive: None,
            host: None,
        }
    }

    pub(super) fn disk(disk: &config::Disk, image: Arc<Image>) -> Self {
        Self {
            image: Behind::Image(image),
            path: disk.image.clone(),
            shown: fdset::shown(&disk.image),
            read_only: disk.read_only,
            bounce: disk.bounce,
            block_size: disk.block_size.into(),
            protected: disk.protection.is_some(),
            drive: None,
            host: None,
        }
    }

    /// What it is.
    pub(super) fn kind(&self) -> LunType {
        match (&self.drive, self.host) {
            (Some(_), _) => LunType::Cd,
            (None, Some(host)) => host,
            (None, None) => LunType::Disk,
        }
    }

    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.image, Behind::Leaving(_))
    }

    /// Its image's length in bytes.
    pub(super) fn len(&self) -> u64 {
        match &self.image {
            Behind::Image(image) => image.geometry().len,
            Behind::Nothing | Behind::Host => 0,
            Behind::Leaving(len) => *len,
        }
    }
}
