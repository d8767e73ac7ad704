//! What the process tells the machine.

use std::fmt;

use devices::scsi::generic::Arrival;
use hba_virtio_scsi::fc::{Active, View, VportRefusal};

/// A logical unit number as the target port reports it (SAM-6, 4.7).
pub type Lun = [u8; 8];

/// What has changed behind the port of an HBA.
#[derive(Debug)]
pub enum News {
    /// How the port and the ports that it sees are.
    View(View),
    /// A logical unit at a target.
    Unit(u8, Lun, UnitNews),
    /// It has heard what was refused, and may be told more.
    Heard,
    /// It has looked as often as it was asked to: what was found was told before this.
    Looked(u64),
    /// The virtual port that it has.
    Port(Box<HostPort>),
    /// Why the start takes longer: a line without the name of the HBA.
    Waits(String),
    /// The port with this WWPN, which was made, is deleted, or why it is not: of the one that another has followed, of one that was given up
    /// while it was made, and of all at the end.
    /// [`Process::close`](super::Process::close) says it then.
    Closed(u64, Option<String>),
    /// The virtual port with other names, which is there beside it for the request of this number to log in with those.
    Other(u64, Box<HostPort>),
    /// What became of the request of this number: it has these names now, or keeps those that it has, and why.
    Activated(u64, Active, Option<String>),
    /// The guest does not get a port that it wanted to create: a line without the name of the HBA.
    NotCreated(VportRefusal, String),
    /// Of the port that the guest has created with this number.
    Of(u16, Box<News>),
    /// Something that the operator should read: a line without the name of the HBA.
    Warning(String),
    /// The port does not come: why, and what to do. The start fails.
    Failed(String),
}

/// How a virtual port has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was made for the machine, and goes with it.
    Made,
    /// It was there already and nobody's, and stays.
    Adopted,
    /// The same, and a definition has it back when the host starts anew.
    Persistent,
}

impl Origin {
    /// All of them in words.
    pub const WORDS: [(Self, &str); 3] =
        [(Self::Made, "made"), (Self::Adopted, "adopted"), (Self::Persistent, "persistent")];

    /// It in a word.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(origin, _)| *origin == self).map_or("", |(_, word)| word)
    }
}

/// A virtual port as the host has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// `vport-5:0-3`
    pub vport: String,
    /// The number of its own SCSI host.
    pub host: u32,
    /// Its name.
    pub wwpn: u64,
    /// The name of its node.
    pub wwnn: u64,
    /// The port that it is on: `host5`.
    pub parent: String,
    /// The driver of that: `lpfc`.
    pub driver: String,
    /// What that is a part of: the bus address of an adapter, or a network interface.
    pub device: String,
    /// How it has come.
    pub origin: Origin,
}

/// A line for people.
impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vport, host, wwpn, wwnn, parent, driver, device, origin } = self;
        write!(f, "WWPN {wwpn:016x}, WWNN {wwnn:016x}, {vport} with host{host}")?;
        let adapter: Vec<&str> =
            [driver, device].into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        if !parent.is_empty() {
            write!(f, " on {parent} ({})", adapter.join(", "))?;
        }
        f.write_str(match origin {
            Origin::Made => "; made, and goes with the machine",
            Origin::Adopted => "; adopted: it was there and nobody's, and stays",
            Origin::Persistent => "; persistent: its definition has it start with the host, and it stays",
        })
    }
}

/// What has become of a logical unit.
#[derive(Debug)]
pub enum UnitNews {
    /// It is there for the first time, or again after it had been [`UnitNews::Gone`]: how it is opened, the nodes, and a number for
    /// [`Refused`].
    Came(Box<devices::scsi::generic::Wanted>, Box<Arrival>, u64),
    /// It may be another one than it was, and is asked: it gets nothing until one of the others follows.
    Doubted,
    /// It is who it was, and goes on.
    Trusted,
    /// The host has lost it with its remote port: it may come back, and stays with the guest.
    Lost,
    /// The host has it again; with a number for [`Refused`].
    Back(Box<Arrival>, u64),
    /// Its size has changed at the array.
    Resized,
    /// The array does not show it any more.
    Gone,
}

/// A logical unit that the machine could not take, as it was told of it: it is told again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refused {
    /// The number of its target.
    pub target: u8,
    /// Its own.
    pub lun: Lun,
    /// That of the news.
    pub offer: u64,
    /// The machine knows how it is opened, or has it.
    pub knows: bool,
}
