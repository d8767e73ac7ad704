//! Why a virtual port does not come, or go: in one line, with what to do.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::kernel::WriteError;
use crate::choose::NoPort;
use crate::model::{Host, San, Vport, VportState};
use crate::names::{Names, Unfit};
use crate::state::StateError;
use crate::sysfs::{Roots, Unreadable};
use crate::wwn::Wwn;

/// What a driver has against a virtual port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objection {
    /// The link, or the fabric, is not there yet: it may take it later.
    Link,
    /// It has no room for another one.
    Room,
    /// It has a port of that name.
    Name,
    /// Anything else.
    Other,
}

/// Why a virtual port was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// No port for it.
    #[error(transparent)]
    Port(#[from] NoPort),
    /// Not these names.
    #[error(transparent)]
    Names(#[from] Unfit),
    /// What is stored.
    #[error(transparent)]
    State(#[from] StateError),
    /// What there is.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// What an ended process has left cannot be deleted.
    #[error("what an ended process has left is still there: {0}")]
    Clean(DeleteError),
    /// Who this process is, is not to be seen.
    #[error(
        "{0} does not show this process, or not sys/kernel/random/boot_id (ProcSubset=pid of a service), so that nobody could clean up after \
         it; mount /proc whole"
    )]
    NoProcess(PathBuf),
    /// The kernel, or the driver, did not take it.
    #[error("{host} does not create the virtual port: {why}")]
    Refused {
        /// `host5`
        host: String,
        /// The reason, and what to do.
        why: String,
        /// What that comes to.
        because: Objection,
    },
    /// A process has it.
    #[error(
        "the virtual port {wwpn} is there, but goes with process {pid} ({owner}); end that, and start this anew"
    )]
    Owned {
        /// Its name.
        wwpn: Wwn,
        /// Whose.
        owner: String,
        /// Its process.
        pid: u32,
    },
    /// A process has had it, and whether that still runs cannot be seen.
    #[error(
        "the virtual port {wwpn} is there, but goes with process {pid} ({owner}), and whether that runs cannot be seen from here; look \
         where it would, or vmm fc delete --force {wwpn}"
    )]
    Unclear {
        /// Its name.
        wwpn: Wwn,
        /// Whose.
        owner: String,
        /// Its process, where it was started.
        pid: u32,
    },
    /// The fabric did not take it.
    #[error("the virtual port {wwpn} is \"{state}\" after {waited} s: {why}", state = .state.word(), waited = .waited.as_secs())]
    NotActive {
        /// Its name.
        wwpn: Wwn,
        /// Its state at the end.
        state: VportState,
        /// How long it had time.
        waited: Duration,
        /// What that means, and what to do.
        why: String,
    },
    /// It was there.
    #[error(
        "the virtual port {wwpn} has gone again: somebody else has deleted it, or the adapter was reset or taken away"
    )]
    Gone {
        /// Its name.
        wwpn: Wwn,
    },
    /// The kernel said yes, and there is none.
    #[error(
        "host{parent} has taken the names of {wwpn}, and there is no virtual port; see the kernel's log (dmesg)"
    )]
    Nothing {
        /// The port.
        parent: u32,
        /// Its name.
        wwpn: Wwn,
    },
    /// The user wanted an end.
    #[error("interrupted before the fabric had the virtual port {wwpn}")]
    Interrupted {
        /// Its name.
        wwpn: Wwn,
    },
    /// It failed, and something is left.
    #[error("{error}; and it is still there: {left}")]
    Left {
        /// The failure.
        error: Box<CreateError>,
        /// Why it could not be deleted.
        left: Box<DeleteError>,
    },
}

impl CreateError {
    /// Whether it may be otherwise a moment later, while the host starts.
    pub(super) fn passes(&self) -> bool {
        match self {
            Self::Port(NoPort::Incapable { for_good, .. }) => !for_good,
            Self::Port(NoPort::Full { .. }) => false,
            Self::Refused { because, .. } => *because == Objection::Link,
            // The fabric may still tell of what this host had before it was started anew.
            Self::Names(Unfit::LoggedIn(..)) => true,
            Self::Port(_) | Self::NotActive { .. } | Self::Gone { .. } | Self::Owned { .. } => true,
            _ => false,
        }
    }
}

/// Why a virtual port was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// There is none.
    #[error("there is no virtual port {0}; vmm fc list shows what there is")]
    Unknown(String),
    /// It is none.
    #[error("{0} is a port of an adapter, and no virtual one")]
    Physical(String),
    /// A process has it.
    #[error("{vport} belongs to {owner} (process {pid}), which runs; end that, or say --force")]
    Owned {
        /// `vport-5:0-0`
        vport: String,
        /// Whose.
        owner: String,
        /// Its process.
        pid: u32,
    },
    /// Whether a process has it cannot be seen.
    #[error(
        "{vport} belongs to {owner} (process {pid}), and whether that runs cannot be seen from here; look where it would, or say --force"
    )]
    Unclear {
        /// `vport-5:0-0`
        vport: String,
        /// Whose.
        owner: String,
        /// Its process, where it was started.
        pid: u32,
    },
    /// Whether somebody has a unit of it cannot be seen.
    #[error(
        "whether units of {vport} are in use cannot be seen: {why}; vmm fc delete --force {vport} deletes it nevertheless"
    )]
    Unseen {
        /// `vport-5:0-0`
        vport: String,
        /// What could not be looked at.
        why: String,
    },
    /// Somebody has a unit of it.
    #[error("{vport} has units that are in use: {unit} is {user}; free it, or vmm fc delete --force {vport}")]
    InUse {
        /// `vport-5:0-0`
        vport: String,
        /// `sdc`
        unit: String,
        /// By whom.
        user: String,
    },
    /// The kernel did not take it.
    #[error("host{parent} does not delete the virtual port {wwpn}: {why}")]
    Refused {
        /// The port.
        parent: u32,
        /// Its name.
        wwpn: Wwn,
        /// The reason, and what to do.
        why: String,
    },
    /// The kernel said yes, or that it is busy, and it is still there.
    #[error(
        "host{parent} has not deleted the virtual port {wwpn} for {waited} s; vmm fc delete {wwpn} tries again"
    )]
    Stays {
        /// The port.
        parent: u32,
        /// Its name.
        wwpn: Wwn,
        /// How long it had time, in seconds.
        waited: u64,
    },
    /// What is stored.
    #[error(transparent)]
    State(#[from] StateError),
    /// What there is.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

/// Whether what was written to has gone.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Why sysfs cannot be written to.
fn closed(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            "only root may (the files vport_create and vport_delete in sysfs are root's; CAP_DAC_OVERRIDE does it as well)".into()
        }
        Some(libc::EROFS) => "sysfs is mounted read-only, as containers have it; do it on the host".into(),
        Some(libc::ENOENT) => "it has just gone".into(),
        _ => error.to_string(),
    }
}

/// What drivers mean by what they say to the names of a port. The transport's own numbers are those of `VPCERR_*`; lpfc has numbers of
/// its own, from 1 to 4.
pub(super) fn refused(host: &Host, error: &WriteError) -> CreateError {
    let log = "see the kernel's log (dmesg)";
    let why = match error {
        WriteError::Open(error) => closed(error),
        WriteError::Short => format!("the driver failed; {log}"),
        WriteError::Write(error) => match error.raw_os_error() {
            Some(libc::EINVAL) => {
                format!("it has a port of this name already, or does not take the names; {log}")
            }
            Some(libc::ENOTUNIQ) => "the adapter has a port of this name already".into(),
            Some(libc::EOPNOTSUPP) => {
                "there is no fabric, or the switch port does not offer NPIV; enable it there".into()
            }
            Some(libc::ENOSPC) => {
                "all of its virtual ports are in use; delete one, or take another port".into()
            }
            Some(libc::ENOSYS) => "its firmware, or the adapter, has none left or no NPIV".into(),
            Some(libc::ENOENT) if host.driver == "lpfc" => {
                format!("lpfc has NPIV off (option lpfc_enable_npiv), or does not take the names; {log}")
            }
            Some(libc::ESRCH | libc::EINTR | libc::ENOMEM | libc::EAGAIN) => {
                format!("it has no room for another one; {log}")
            }
            Some(libc::EPERM) => format!("the driver failed; {log}"),
            _ => format!("{error}; {log}"),
        },
    };
    let because = match error {
        WriteError::Write(error) => match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EIO) => Objection::Link,
            // qla2xxx says ENOSYS for its last one.
            Some(libc::ENOSPC | libc::ENOSYS | libc::ESRCH | libc::EINTR | libc::ENOMEM | libc::EAGAIN) => {
                Objection::Room
            }
            Some(libc::ENOTUNIQ) => Objection::Name,
            _ => Objection::Other,
        },
        WriteError::Open(_) | WriteError::Short => Objection::Other,
    };
    CreateError::Refused { host: host.name(), why, because }
}

/// Why the kernel did not delete it.
pub(super) fn not_deleted(parent: u32, names: Names, error: &WriteError) -> DeleteError {
    let why = match error {
        WriteError::Open(error) => closed(error),
        WriteError::Short => "the driver failed; see the kernel's log (dmesg)".into(),
        WriteError::Write(error) => format!("{error}; see the kernel's log (dmesg)"),
    };
    DeleteError::Refused { parent, wwpn: names.wwpn, why }
}

/// What a state means, and what to do.
pub(super) fn not_active(roots: &Roots, vport: &Vport, names: Names, waited: Duration) -> CreateError {
    let (parent, state) = (vport.parent, vport.state.clone());
    let san = San::read(roots);
    let host = san.host(parent);
    let port = host.map(|host| host.state.as_str()).unwrap_or_default();
    let mut why = match (&state, &vport.last_state) {
        // lpfc says of most refusals only then what they were.
        (VportState::Failed | VportState::Unknown | VportState::Initializing, Some(last))
            if is_reason(last) =>
        {
            format!("it was \"{}\" before: {}", last.word(), meaning(last, parent, names))
        }
        (VportState::Linkdown, _) if port == "Online" => {
            let kind = host.map(|host| host.kind.as_str()).unwrap_or_default();
            format!(
                "host{parent} itself is Online ({kind}), but takes no virtual port: that takes a switch, and no loop; see the kernel's log (dmesg)"
            )
        }
        _ => meaning(&state, parent, names),
    };
    if state != VportState::Linkdown && port != "Online" && !port.is_empty() {
        why = format!("host{parent} itself is {port}; {why}");
    }
    CreateError::NotActive { wwpn: names.wwpn, state, waited, why }
}

/// Whether a state says what the fabric has against it.
fn is_reason(state: &VportState) -> bool {
    matches!(
        state,
        VportState::NoFabricSupport
            | VportState::NoFabricResources
            | VportState::FabricLogout
            | VportState::FabricRejectedWwn
    )
}

fn meaning(state: &VportState, parent: u32, names: Names) -> String {
    match state {
        VportState::Linkdown => format!("the link of host{parent} is down; look at cable, transceiver and switch port"),
        VportState::Initializing | VportState::Unknown => {
            "the fabric does not answer its login (FDISC), or refuses it again and again; look at the switch port: NPIV, its limit of \
             logins, port security, and whether the WWPN is logged in elsewhere"
                .into()
        }
        VportState::NoFabricSupport => format!(
            "the switch port of host{parent} does not offer NPIV, or there is no switch; enable it there (Brocade: portcfgnpivport, \
             Cisco: feature npiv)"
        ),
        VportState::NoFabricResources => {
            "the fabric has no room for another login; raise the limit of logins of the switch port, or take another port".into()
        }
        VportState::FabricRejectedWwn => format!(
            "the fabric does not take the names ({}, node {}); they may be logged in elsewhere, or port security keeps them away",
            names.wwpn, names.wwnn
        ),
        VportState::FabricLogout => "the fabric has logged it out; look at the switch's log".into(),
        VportState::Disabled => "the driver has it disabled; see the kernel's log (dmesg)".into(),
        VportState::Failed => "the driver says no more; see the kernel's log (dmesg) and the switch's log".into(),
        VportState::Active => "it has no host; see the kernel's log (dmesg)".into(),
        VportState::Other(_) => "see the kernel's log (dmesg)".into(),
    }
}
