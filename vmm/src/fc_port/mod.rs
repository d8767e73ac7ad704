//! The virtual ports of the machine, and a process of its own that has them: it creates them before the guest runs, looks for the ports and
//! logical units behind them, opens those, and deletes the ports when the machine has ended, however that ended.
//!
//! ```text
//!   sysfs, netlink, /dev ── process ── news, descriptors ──> machine (in its sandbox)
//!                                  <── "look anew", what was not taken ──
//! ```
//! [`FcPorts::start`] before the first thread and the sandbox; [`FcPorts::begin`] on the main thread, before the guest runs; then each
//! [`Port`] is its HBA's; [`Process::close`] at the machine's regular end. In the process itself: what `former` lives have left, then the
//! sandbox, then the ports (`owned`), what is behind them (`inventory`), how one changes its names (`switch`), ports that guests create
//! (`nested`, `created`), and the `ending`.

mod created;
mod ending;
mod former;
mod inventory;
mod machine;
mod message;
mod nested;
mod news;
mod owned;
mod process;
mod switch;
#[cfg(test)]
mod tests;
mod work;

pub use machine::{FcPorts, Look, Port, Process, REMOVAL};
pub use news::{HostPort, Lun, News, Origin, Refused, UnitNews};

use fc::Wwn;
use fc::allowed::Allowed;
use fc::choose::Rules;
use hba_virtio_scsi::fc::Names;

#[cfg(test)]
pub(crate) use message::tests::host_port as tests_host_port;

/// How logical units behind a port are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passthrough {
    /// Disks by `type = "block"`, all others by `"generic"`.
    #[default]
    Block,
    /// All by `type = "generic"`.
    Generic,
}

/// A virtual port that an HBA of the machine wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What messages call the HBA.
    pub hba: String,
    /// Owner of the port in its record, and key of what is stored: `<vm name>.<hba id>`.
    pub owner: String,
    /// On which port of the host.
    pub rules: Rules,
    /// Its names; those stored under `owner`, or made and stored there, where there are none.
    pub names: Option<(Wwn, Wwn)>,
    /// Names of a company whose hardware has such are fine.
    pub any_oui: bool,
    /// Other names, which it logs in with when it is told to.
    pub secondary: Names,
    /// Ports that the guest may create besides.
    pub vports: Option<Allowed>,
    /// Seconds until a remote port that is lost is given up; the driver's own where there are none.
    pub dev_loss_tmo: Option<u32>,
    /// Seconds until commands to a remote port that is lost fail.
    pub fast_io_fail_tmo: u32,
    /// Numbers of the units to show, from and to, as the array numbers them (the value of the flat or peripheral address; others by
    /// their 8 bytes as a big-endian number); all where there are none.
    pub luns: Vec<(u64, u64)>,
    /// How they are shown.
    pub passthrough: Passthrough,
    /// What the guest may send to them.
    pub allow: devices::scsi::generic::Allow,
    /// Data goes through memory of the process.
    pub bounce: bool,
    /// Others of the host use the units, too.
    pub shared: bool,
    /// How long the start waits for the fabric, in seconds.
    pub timeout: u32,
}

/// Ports that the guest of one HBA may create at most ([`crate::config`] has no more).
const VPORTS: usize = 64;

/// Ports by numbers of one kind: first those of `hbas` HBAs, then those that the guest has created at the first one, at the second, and so on.
/// `None` of what no port can be.
fn slot(hbas: usize, hba: usize, vport: u16) -> Option<usize> {
    match usize::from(vport) {
        _ if hba >= hbas => None,
        0 => Some(hba),
        vport @ 1..=VPORTS => Some(hbas + hba * VPORTS + vport - 1),
        _ => None,
    }
}

/// The HBA, and the port there: 0 is its own.
fn place(hbas: usize, slot: usize) -> (usize, u16) {
    match slot.checked_sub(hbas) {
        Some(at) => (at / VPORTS, (at % VPORTS + 1) as u16),
        None => (slot, 0),
    }
}
