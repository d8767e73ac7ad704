//! The Fibre Channel face of the HBA: the port that the guest has on a fabric, and the ports that it sees there.
//!
//! Who serves a real adapter, or emulates a fabric, is a [`San`]; the HBA shows what that says, and asks it to look anew. What goes over
//! the wire is in `docs/virtio-scsi-fc.md`; sections cited here are of that page.
//!
//! - `wire`: feature bits, configuration space, requests and events of the extension.
//! - `port`: what the guest was shown last, and what follows from a change.
//! - `gate`: commands to a port that is lost wait, or fail.
//! - `rescan`: the control request by which the guest looks at the fabric.
//! - `vports`: the control requests by which the guest has more ports.
//! - [`Emulated`]: a fabric over nothing.

mod emulated;
pub(crate) mod gate;
pub(crate) mod port;
pub(crate) mod rescan;
pub(crate) mod vports;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use emulated::Emulated;

/// Names of a port (FC-FS-5, 14): 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// World Wide Node Name.
    pub wwnn: u64,
    /// World Wide Port Name.
    pub wwpn: u64,
}

/// The states of a local port that guests are told of, by the numbers of Linux' scsi_transport_fc (FC_PORTSTATE).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum PortState {
    /// Nobody knows.
    #[default]
    Unknown = 0,
    /// There is no such port.
    NotPresent = 1,
    /// Logged in at the fabric.
    Online = 2,
    /// Taken offline.
    Offline = 3,
    /// Waits for its link.
    Blocked = 4,
    /// No link, or no fabric at its end.
    LinkDown = 7,
    /// It failed.
    Error = 8,
}

/// Which of its names a port is logged in with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Active {
    /// With none.
    #[default]
    None = 0,
    /// With the first.
    Primary = 1,
    /// With the second.
    Secondary = 2,
}

/// The port of the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalPort {
    /// Its names.
    pub primary: Names,
    /// Other names that it may change to; none where they are zero.
    pub secondary: Names,
    /// Which are in use.
    pub active: Active,
    /// Its state.
    pub state: PortState,
    /// N_Port_ID, 24 bits; 0 when it is not logged in.
    pub port_id: u32,
    /// Name of the fabric; 0 when there is none.
    pub fabric: u64,
    /// Speed of its link in Mbit/s; 0 when unknown.
    pub speed: u32,
    /// Classes of service as Linux writes them: bit 3 is class 3 (FC_COS_CLASS3).
    pub classes: u32,
    /// Largest frame in bytes; 0 when unknown.
    pub max_frame: u32,
}

/// How a remote port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteState {
    /// Logged in: commands reach it.
    Online,
    /// Lost a moment ago: it may be back within `fast_io_fail_tmo`, and commands wait for that. They have no bound of their own: the [`San`]
    /// sees to it that the port is soon online or lost, also when nobody tells it anything any more.
    Blocked,
    /// Lost for longer: commands fail at once.
    Lost,
}

/// A port that the guest's port sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemotePort {
    /// Its names.
    pub names: Names,
    /// N_Port_ID, 24 bits; the last that it had.
    pub port_id: u32,
    /// How it is.
    pub state: RemoteState,
    /// SPC-5's protocol identifier (7.6.1) of the way there: 0 FCP, 15 none in particular.
    pub transport: u8,
    /// Which port of the guest sees it: 0 is the adapter's own, others are those of [`View::vports`]. What two of them see are two targets.
    pub vport: u16,
}

/// What the fabric looks like at some moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The port of the guest.
    pub local: LocalPort,
    /// Ports that it sees or has seen, by target number. The number of a port, known by its WWPN, stays the same for as long as the
    /// machine lives; those of a port that the guest has created may be another one's when that is deleted.
    pub remotes: BTreeMap<u8, RemotePort>,
    /// Ports that the guest has created, by their numbers: 1 and on.
    pub vports: BTreeMap<u16, LocalPort>,
}

/// Why a port that the guest wants to create or to delete is not created or deleted (section 7). The log says more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VportRefusal {
    /// The configuration does not let the guest have these names.
    NotAllowed = 1,
    /// Somebody has the name of the port.
    InUse = 2,
    /// The guest has as many as it may, or the adapter has no room.
    NoRoom = 3,
    /// The host or the fabric failed it.
    Failed = 4,
    /// There is no such port.
    Unknown = 5,
}

impl std::fmt::Display for VportRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotAllowed => "the configuration does not let it have them",
            Self::InUse => "somebody has the name of the port",
            Self::NoRoom => "it has as many as it may",
            Self::Failed => "the host or the fabric failed it",
            Self::Unknown => "there is no such port",
        })
    }
}

/// A fabric, as the port of the guest sees it. Nothing here waits for the host.
pub trait San: Send + Sync {
    /// What it looks like now.
    fn view(&self) -> Arc<View>;

    /// Asks the host to look at the fabric, and for logical units. `done` is called, or dropped, when [`San::view`] shows what was found,
    /// and units have come and gone accordingly.
    fn rescan(&self, done: Box<dyn FnOnce() + Send>);

    /// Who is to be told of changes, instead of whoever was before.
    fn set_listener(&self, listener: Option<Arc<dyn SanListener>>);

    /// How many ports of its own the guest may have at a time; 0 does not offer it any. Always the same.
    fn max_vports(&self) -> u16 {
        0
    }

    /// Creates a port with these names, which is not the adapter's. `done` hears of its number once it is in [`San::view`], or why there is
    /// none; who drops it has failed. That may take as long as a fabric does; it has a bound.
    fn create_vport(&self, names: Names, done: Box<dyn FnOnce(Result<u16, VportRefusal>) + Send>) {
        let _ = names;
        done(Err(VportRefusal::NotAllowed));
    }

    /// Deletes a port that the guest has created, with its targets and their units. `done` as above, when it is not in [`San::view`] any more.
    fn delete_vport(&self, vport: u16, done: Box<dyn FnOnce(Result<(), VportRefusal>) + Send>) {
        let _ = vport;
        done(Err(VportRefusal::Unknown));
    }

    /// The driver has gone, and with it all ports that it has created or is creating. Returns at once.
    fn delete_all_vports(&self) {}
}

/// Who shows a fabric to the guest.
pub trait SanListener: Send + Sync {
    /// [`San::view`] says something else than before. On any thread.
    fn changed(&self);

    /// Who has looked for logical units of this target may find more now: a device that was not there is back. Of units that come and go the
    /// HBA hears by itself. On any thread.
    fn units_changed(&self, target: u8);
}
