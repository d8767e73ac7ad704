//! What the process tells the machine.

use devices::scsi::generic::Arrival;
use hba_virtio_scsi::fc::View;

/// A logical unit number as the target port reports it (SAM-6, 4.7).
pub type Lun = [u8; 8];

/// What has changed behind the port of an HBA.
#[derive(Debug)]
pub enum News {
    /// How the port and the ports that it sees are.
    View(View),
    /// A logical unit at a target.
    Unit(u8, Lun, UnitNews),
    /// It has looked as often as it was asked to: what was found was told before this.
    Looked(u64),
    /// Something that the operator should read: a line without the name of the HBA.
    Warning(String),
    /// The port does not come: why, and what to do. The start fails.
    Failed(String),
}

/// What has become of a logical unit.
#[derive(Debug)]
pub enum UnitNews {
    /// It is there for the first time, or again after it had been [`UnitNews::Gone`]: how it is opened, and the nodes.
    Came(Box<devices::scsi::generic::Wanted>, Box<Arrival>),
    /// The host has lost it with its remote port: it may come back, and stays with the guest.
    Lost,
    /// The host has it again.
    Back(Box<Arrival>),
    /// Its size has changed at the array.
    Resized,
    /// The array does not show it any more.
    Gone,
}
