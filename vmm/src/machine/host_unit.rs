//! Units that are devices of the host.

use anyhow::{Result, ensure};
use devices::scsi::{Allow, Block, Generic, GenericOptions, HostLimits, LogicalUnit, Place};

use crate::config::{self, Device, HostPlace, LunType};

/// A unit that is a device of the host.
pub(super) enum HostUnit {
    Generic(Generic),
    Block(Block),
}

impl HostUnit {
    /// Opens it.
    pub(super) fn open(device: &Device, host: &config::HostDevice) -> Result<Self> {
        ensure!(
            devices::sandbox::has_host_devices(),
            "{}: the sandbox lets no devices of the host come to this machine; set host_devices = true in [security] and start \
             the machine anew",
            host.place
        );
        let options = generic_options(host);
        Ok(match device {
            Device::Block(_) => Self::Block(Block::open(&options)?),
            _ => Self::Generic(Generic::open(&options)?),
        })
    }

    /// What messages call it.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Generic(device) => device.name(),
            Self::Block(disk) => disk.name(),
        }
    }

    /// Its type.
    pub(super) fn kind(&self) -> LunType {
        match self {
            Self::Generic(_) => LunType::Generic,
            Self::Block(_) => LunType::Block,
        }
    }

    /// What it takes with one command.
    pub(super) fn limits(&self) -> HostLimits {
        match self {
            Self::Generic(device) => device.limits(),
            Self::Block(disk) => disk.limits(),
        }
    }

    /// Whether it is a tape or a changer.
    pub(super) fn is_sequential(&self) -> bool {
        matches!(self, Self::Generic(device) if device.is_sequential())
    }

    /// The logical unit that shows it.
    pub(super) fn unit(self) -> LogicalUnit {
        match self {
            Self::Generic(device) => LogicalUnit::Generic(device),
            Self::Block(disk) => LogicalUnit::Block(disk),
        }
    }
}

/// How a device of the host is opened.
pub(crate) fn generic_options(host: &config::HostDevice) -> GenericOptions {
    GenericOptions {
        place: match &host.place {
            HostPlace::Path(path) => Place::Path(path.clone()),
            HostPlace::Wwn(name) => Place::Name(name.clone()),
        },
        shared: host.shared,
        allow: allow(host.allow),
        bounce: host.bounce,
    }
}

/// What the guest may do to a device of the host.
pub(super) fn allow(allow: config::Allow) -> Allow {
    match allow {
        config::Allow::All => Allow::All,
        config::Allow::NoManagement => Allow::NoManagement,
        config::Allow::ReadOnly => Allow::ReadOnly,
    }
}
