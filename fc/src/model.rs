//! What the kernel shows of Fibre Channel: its ports, virtual ports, remote ports, and the logical units behind those.
//!
//! ```text
//!   devices/.../host5/vport-5:0-0/host8/rport-8:0-2/target8:0:0/8:0:0:5/block/sdc
//!               port  virtual port |    remote port             logical unit
//!                                  its host
//! ```

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::address::{Address, number_after, port};
use crate::sysfs::{self, Roots, Unreadable, names, number, text};
use crate::wwn::Wwn;

/// All of it, at one moment: what goes meanwhile is left out, or lacks what could not be read any more.
#[derive(Clone, Debug, Default)]
pub struct San {
    /// Ports, by number: those of adapters, and the hosts of virtual ports.
    pub hosts: Vec<Host>,
    /// Virtual ports.
    pub vports: Vec<Vport>,
    /// Ports on the fabric that a host is, or was, logged in at.
    pub remotes: Vec<RemotePort>,
    /// Logical units behind remote ports.
    pub units: Vec<Unit>,
}

/// A port of the host, an N_Port on the fabric (`/sys/class/fc_host/host5`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its number as a SCSI host.
    pub number: u32,
    /// The virtual port that it is the host of.
    pub vport: Option<String>,
    /// Its name.
    pub wwpn: Option<Wwn>,
    /// The name of its node.
    pub wwnn: Option<Wwn>,
    /// The name that the hardware has, where it goes by another one (zfcp).
    pub permanent_wwpn: Option<Wwn>,
    /// The fabric.
    pub fabric: Option<Wwn>,
    /// Its address on the fabric (N_Port_ID), once it is logged in.
    pub port_id: Option<u32>,
    /// `Online`, `Linkdown` ...
    pub state: String,
    /// `NPort (fabric via point-to-point)`, `NPIV VPORT` ...
    pub kind: String,
    /// `16 Gbit`
    pub speed: String,
    /// `4 Gbit, 8 Gbit, 16 Gbit`
    pub supported_speeds: String,
    /// What it calls itself.
    pub symbolic_name: String,
    /// Seconds for which the units of a remote port that is lost stay.
    pub dev_loss_tmo: Option<u32>,
    /// How many virtual ports it may have, if it creates any.
    pub npiv: Option<Npiv>,
    /// The driver: `lpfc`, `qla2xxx`, `fcoe`, `zfcp` ...
    pub driver: String,
    /// What it is a part of: the bus address of an adapter, or a network interface.
    pub parent: Option<String>,
    /// Its directory.
    pub directory: PathBuf,
}

/// Virtual ports of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Npiv {
    /// How many there may be.
    pub max: u32,
    /// How many there are.
    pub in_use: u32,
}

/// A virtual port (`/sys/class/fc_vports/vport-5:0-0`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vport {
    /// `vport-5:0-0`
    pub name: String,
    /// Tells it from another one that has its name later: the number of its directory, which sysfs gives but once while the host runs.
    pub id: u64,
    /// The number of the port that it is on.
    pub parent: u32,
    /// The number of its own host.
    pub host: Option<u32>,
    /// Its name.
    pub wwpn: Option<Wwn>,
    /// The name of its node.
    pub wwnn: Option<Wwn>,
    /// Where it is on its way to the fabric.
    pub state: VportState,
    /// Why it was not active before.
    pub last_state: Option<VportState>,
    /// `NPIV VPORT`
    pub kind: String,
    /// `FCP Initiator`
    pub roles: String,
    /// What it calls itself.
    pub symbolic_name: String,
}

/// Where a virtual port is on its way to the fabric (Linux, Documentation/scsi/scsi_fc_transport.rst).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VportState {
    /// Not begun.
    Unknown,
    /// Logged in at the fabric.
    Active,
    /// Taken off the fabric by hand.
    Disabled,
    /// The link of its port is down.
    Linkdown,
    /// Its login (FDISC) is under way: unanswered, or refused and repeated.
    Initializing,
    /// No fabric, or one whose port does not offer NPIV.
    NoFabricSupport,
    /// The fabric has no room for it.
    NoFabricResources,
    /// The fabric has logged it out.
    FabricLogout,
    /// The fabric does not take its names.
    FabricRejectedWwn,
    /// All else.
    Failed,
    /// What newer kernels may say.
    Other(String),
}

/// States by the words that the kernel has for them.
const STATES: [(&str, VportState); 10] = [
    ("Unknown", VportState::Unknown),
    ("Active", VportState::Active),
    ("Disabled", VportState::Disabled),
    ("Linkdown", VportState::Linkdown),
    ("Initializing", VportState::Initializing),
    ("No Fabric Support", VportState::NoFabricSupport),
    ("No Fabric Resources", VportState::NoFabricResources),
    ("Fabric Logout", VportState::FabricLogout),
    ("Fabric Rejected WWN", VportState::FabricRejectedWwn),
    ("VPort Failed", VportState::Failed),
];

impl VportState {
    fn read(path: &Path) -> Option<Self> {
        let text = text(path)?;
        let known = STATES.iter().find(|(word, _)| *word == text).map(|(_, state)| state.clone());
        Some(known.unwrap_or(Self::Other(text)))
    }

    /// The kernel's word for it.
    pub fn word(&self) -> &str {
        match self {
            Self::Other(word) => word,
            state => STATES.iter().find(|(_, known)| known == state).map_or("", |(word, _)| word),
        }
    }
}

/// A port on the fabric (`/sys/class/fc_remote_ports/rport-5:0-2`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemotePort {
    /// `rport-5:0-2`
    pub name: String,
    /// The host that sees it.
    pub host: u32,
    /// Its name.
    pub wwpn: Option<Wwn>,
    /// The name of its node.
    pub wwnn: Option<Wwn>,
    /// Its address on the fabric.
    pub port_id: Option<u32>,
    /// `FCP Target, FCP Initiator`
    pub roles: String,
    /// `Online`, `Blocked`, `Not Present` ...
    pub state: String,
    /// The target that it is bound to, if it is one.
    pub target: Option<u32>,
    /// Seconds after its loss at which its units go.
    pub dev_loss_tmo: Option<u32>,
    /// Seconds after its loss at which commands fail; they wait for its return otherwise.
    pub fast_io_fail_tmo: Option<u32>,
}

impl RemotePort {
    /// Whether it has units.
    pub fn is_target(&self) -> bool {
        self.roles.split(',').any(|role| role.trim() == "FCP Target")
    }
}

/// A logical unit (`/sys/class/scsi_device/5:0:0:27`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Where it is.
    pub address: Address,
    /// The remote port that it is behind.
    pub remote: Option<String>,
    /// Manufacturer.
    pub vendor: String,
    /// Product.
    pub model: String,
    /// Revision.
    pub revision: String,
    /// Its name, as the kernel has made it of VPD page 83h: `naa.6001405...`.
    pub wwid: Option<String>,
    /// Peripheral device type: 0 disk, 1 tape, 5 CD, 8 changer ...
    pub device_type: Option<u8>,
    /// `running`, `blocked`, `offline`, `transport-offline` ...
    pub state: String,
    /// The block device: `sdc`.
    pub block: Option<String>,
    /// Bytes, of a block device.
    pub bytes: Option<u64>,
    /// The node of sg: `sg2`.
    pub sg: Option<String>,
    /// The node of bsg: `5:0:0:27`.
    pub bsg: Option<String>,
    /// The tape: `st0`.
    pub tape: Option<String>,
    /// Links below `/dev/disk` that stay from start to start: by the path first, then by the name.
    pub links: Vec<String>,
    /// Its directory.
    pub directory: PathBuf,
}

impl San {
    /// What there is now; what cannot be read is left out.
    pub fn read(roots: &Roots) -> Self {
        let class = |class| roots.class(class).unwrap_or_default();
        let vports = class("fc_vports").iter().filter_map(|(name, at)| Vport::read(name, at)).collect();
        Self::of(roots, class("fc_remote_ports"), class("fc_host"), class("scsi_device"), vports)
    }

    /// The same, for whoever takes something away: what is not in it is not there.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn try_read(roots: &Roots) -> Result<Self, Unreadable> {
        let class = |class| roots.class(class);
        let vports = vports(roots)?;
        Ok(Self::of(roots, class("fc_remote_ports")?, class("fc_host")?, class("scsi_device")?, vports))
    }

    fn of(
        roots: &Roots,
        remotes: Vec<(String, PathBuf)>,
        hosts: Vec<(String, PathBuf)>,
        units: Vec<(String, PathBuf)>,
        vports: Vec<Vport>,
    ) -> Self {
        let remotes = remotes.iter().filter_map(|(name, at)| RemotePort::read(name, at)).collect();
        let links = Links::read(roots);
        let hosts: Vec<_> =
            hosts.into_iter().filter_map(|(name, at)| Host::read(roots, &name, &at)).collect();
        let units = units.into_iter().filter_map(|(name, at)| {
            // Of other kinds of hosts there may be thousands.
            let address: Address = name.parse().ok()?;
            hosts.iter().any(|host| host.number == address.host).then_some(())?;
            Unit::read(address, &at, &links)
        });
        Self { units: units.collect(), vports, remotes, hosts }
    }

    /// The port, or host of a virtual port, with this number.
    pub fn host(&self, number: u32) -> Option<&Host> {
        self.hosts.iter().find(|host| host.number == number)
    }

    /// The virtual port of this name of its port.
    pub fn vport(&self, wwpn: Wwn) -> Option<&Vport> {
        self.vports.iter().find(|vport| vport.wwpn == Some(wwpn))
    }

    /// The remote ports that a host sees.
    pub fn remotes_of(&self, host: u32) -> impl Iterator<Item = &RemotePort> {
        self.remotes.iter().filter(move |remote| remote.host == host)
    }

    /// The remote port that a unit is behind.
    pub fn remote_of(&self, unit: &Unit) -> Option<&RemotePort> {
        self.remotes.iter().find(|remote| Some(&remote.name) == unit.remote.as_ref())
    }

    /// The units that a host sees.
    pub fn units_of(&self, host: u32) -> impl Iterator<Item = &Unit> {
        self.units.iter().filter(move |unit| unit.address.host == host)
    }
}

/// The virtual ports of the host. One that is not among them is not there.
///
/// # Errors
/// They cannot be listed, or the names of one cannot be read.
pub(crate) fn vports(roots: &Roots) -> Result<Vec<Vport>, Unreadable> {
    let mut vports = Vec::new();
    for (name, at) in roots.class("fc_vports")? {
        let names = ["port_name", "node_name"].map(|file| at.join(file)).into_iter();
        let unread = names.map(|path| sysfs::read(&path).map(drop).map_err(|error| (path, error)));
        match unread.collect::<Result<Vec<()>, _>>() {
            Ok(_) => vports.extend(Vport::read(&name, &at)),
            Err((_, error)) if sysfs::is_gone(&error) => {}
            Err((path, error)) => return Err(Unreadable { path, error }),
        }
    }
    Ok(vports)
}

/// A name as the kernel shows it: after `0x` as many digits as it takes, for it writes no zeros before them.
fn exact(path: &Path) -> Option<Wwn> {
    let text = text(path)?;
    let digits = text.strip_prefix("0x").unwrap_or(&text);
    let fine = (1..=16).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    fine.then(|| u64::from_str_radix(digits, 16).ok().map(Wwn::new))?
}

/// The same, where all ones and all zeros are none.
fn wwn(path: &Path) -> Option<Wwn> {
    exact(path).filter(|wwn| wwn.bits() != 0 && wwn.bits() != u64::MAX)
}

/// An N_Port_ID, of 24 bits; all ones, or 0, before the login.
fn port_id(path: &Path) -> Option<u32> {
    number::<u32>(path).filter(|id| (1..=0xff_ffff).contains(id))
}

impl Host {
    pub(crate) fn read(roots: &Roots, name: &str, at: &Path) -> Option<Self> {
        let own = number_after(name, "host")?;
        let directory = fs::canonicalize(at.join("device")).ok()?;
        let word = |file: &str| text(&at.join(file)).unwrap_or_default();
        // What the kernel says of what the driver does not tell.
        let speed = |file: &str| {
            Some(word(file)).filter(|word| !word.eq_ignore_ascii_case("unknown")).unwrap_or_default()
        };
        let npiv = at.join("vport_create").exists().then(|| Npiv {
            max: number(&at.join("max_npiv_vports")).unwrap_or(0),
            in_use: number(&at.join("npiv_vports_inuse")).unwrap_or(0),
        });
        let above: Vec<String> =
            directory.iter().rev().skip(1).map(|part| part.to_string_lossy().into_owned()).collect();
        Some(Self {
            number: own,
            vport: above.first().filter(|name| port(name, "vport-").is_some()).cloned(),
            wwpn: wwn(&at.join("port_name")),
            wwnn: wwn(&at.join("node_name")),
            permanent_wwpn: wwn(&at.join("permanent_port_name")),
            fabric: wwn(&at.join("fabric_name")),
            port_id: port_id(&at.join("port_id")),
            state: word("port_state"),
            kind: word("port_type"),
            speed: speed("speed"),
            supported_speeds: speed("supported_speeds"),
            symbolic_name: word("symbolic_name"),
            dev_loss_tmo: number(&at.join("dev_loss_tmo")),
            npiv,
            driver: driver(roots, name, &directory),
            parent: above.into_iter().find(|name| is_outside(name)),
            directory,
        })
    }

    /// Whether it has the fabric.
    pub fn is_online(&self) -> bool {
        self.state == "Online"
    }

    /// `host5`
    pub fn name(&self) -> String {
        format!("host{}", self.number)
    }
}

/// Whether a directory is no part of a port itself, but what it is a part of.
fn is_outside(name: &str) -> bool {
    let own = number_after(name, "host").or(number_after(name, "ctlr_"));
    own.is_none() && port(name, "vport-").is_none()
}

/// The driver: as the host calls it, or else that of the nearest device above that has one.
fn driver(roots: &Roots, name: &str, directory: &Path) -> String {
    let own = text(&roots.sys.join("class/scsi_host").join(name).join("proc_name"));
    // A driver that gives itself no name.
    let own = own.filter(|name| !name.starts_with(['<', '(']));
    let above = || directory.ancestors().take(16).find_map(|at| sysfs::link_name(&at.join("driver")));
    own.or_else(above).unwrap_or_default()
}

impl Vport {
    fn read(name: &str, at: &Path) -> Option<Self> {
        let (parent, ..) = port(name, "vport-")?;
        let word = |file: &str| text(&at.join(file)).unwrap_or_default();
        let host = names(&at.join("device")).iter().find_map(|name| number_after(name, "host"));
        Some(Self {
            name: name.to_owned(),
            id: fs::metadata(at.join("device")).map(|device| device.ino()).unwrap_or_default(),
            parent,
            host,
            // Whatever they are: it is deleted by them.
            wwpn: exact(&at.join("port_name")),
            wwnn: exact(&at.join("node_name")),
            state: VportState::read(&at.join("vport_state")).unwrap_or(VportState::Unknown),
            last_state: VportState::read(&at.join("vport_last_state")),
            kind: word("vport_type"),
            roles: word("roles"),
            symbolic_name: word("symbolic_name"),
        })
    }
}

impl RemotePort {
    pub(crate) fn read(name: &str, at: &Path) -> Option<Self> {
        let (host, ..) = port(name, "rport-")?;
        let word = |file: &str| text(&at.join(file)).unwrap_or_default();
        Some(Self {
            name: name.to_owned(),
            host,
            wwpn: wwn(&at.join("port_name")),
            wwnn: wwn(&at.join("node_name")),
            port_id: port_id(&at.join("port_id")),
            roles: word("roles"),
            state: word("port_state"),
            // -1 for what is no target.
            target: number(&at.join("scsi_target_id")),
            dev_loss_tmo: number(&at.join("dev_loss_tmo")),
            // "off" if there is none.
            fast_io_fail_tmo: number(&at.join("fast_io_fail_tmo")),
        })
    }
}

impl Unit {
    fn read(address: Address, at: &Path, links: &Links) -> Option<Self> {
        let directory = fs::canonicalize(at.join("device")).ok()?;
        let word = |file: &str| text(&directory.join(file)).unwrap_or_default();
        let node = |driver: &str| names(&directory.join(driver)).into_iter().next();
        let remote = directory.iter().rev().skip(1).filter_map(|part| part.to_str());
        let remote = remote.take(2).find(|part| port(part, "rport-").is_some()).map(str::to_owned);
        let block = node("block");
        let size =
            block.as_ref().and_then(|name| number::<u64>(&directory.join("block").join(name).join("size")));
        let plain = |name: &String| number_after(name, "st").is_some();
        Some(Self {
            address,
            remote,
            vendor: word("vendor"),
            model: word("model"),
            revision: word("rev"),
            wwid: text(&directory.join("wwid")),
            device_type: number(&directory.join("type")),
            state: word("state"),
            links: block.as_deref().map(|block| links.of(block)).unwrap_or_default(),
            block,
            // In units of 512 bytes, whatever its blocks are.
            bytes: size.and_then(|size| size.checked_mul(512)),
            sg: node("scsi_generic"),
            bsg: node("bsg"),
            tape: names(&directory.join("scsi_tape")).into_iter().find(plain),
            directory,
        })
    }
}

/// Links that udev has made below `/dev/disk`, with the nodes they lead to.
struct Links(Vec<(String, String)>);

impl Links {
    fn read(roots: &Roots) -> Self {
        let mut found = Vec::new();
        for place in ["by-path", "by-id"] {
            let directory = roots.dev.join("disk").join(place);
            for name in names(&directory) {
                if let Some(node) = sysfs::link_name(&directory.join(&name)) {
                    found.push((format!("/dev/disk/{place}/{name}"), node));
                }
            }
        }
        Self(found)
    }

    fn of(&self, node: &str) -> Vec<String> {
        self.0.iter().filter(|(_, to)| to == node).map(|(link, _)| link.clone()).collect()
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
