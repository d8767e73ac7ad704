//! Events of the kernel about its devices: a message begins with what happened and to what, and has a line for each property.

use crate::address::{Address, number_after, port};

/// Something of Fibre Channel comes, goes or changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uevent {
    /// What happens.
    pub action: Action,
    /// To what.
    pub thing: Thing,
    /// Why a unit has changed.
    pub reason: Option<Reason>,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is there.
    Came,
    /// It is not there any more.
    Gone,
    /// It is another one, or in another state.
    Changed,
}

/// What it happens to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thing {
    /// A port, or the host of a virtual one.
    Host(u32),
    /// A virtual port: `vport-5:0-0`.
    Vport(String),
    /// A remote port: `rport-5:0-2`.
    Remote(String),
    /// A logical unit behind a remote port.
    Unit(Address),
    /// A node of one.
    Node(Address, Node, String),
}

/// By which driver a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// `sdc`
    Block,
    /// `sg3`
    Sg,
    /// `5:0:0:27`
    Bsg,
    /// `st0`
    Tape,
}

/// Why a unit has changed: a unit attention that it had for the host, or a medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The array has other LUNs for this host.
    Luns,
    /// It has another size.
    Capacity,
    /// It says something else of itself.
    Inquiry,
    /// Its paths have other states (ALUA).
    Access,
    /// It has other parameters.
    Parameters,
    /// It runs out of space.
    Space,
    /// It was reset.
    Reset,
    /// It has another medium.
    Medium,
}

/// Reasons by the kernel's properties for them.
const REASONS: [(&str, &str, Reason); 8] = [
    ("SDEV_UA", "REPORTED_LUNS_DATA_HAS_CHANGED", Reason::Luns),
    ("SDEV_UA", "CAPACITY_DATA_HAS_CHANGED", Reason::Capacity),
    ("SDEV_UA", "INQUIRY_DATA_HAS_CHANGED", Reason::Inquiry),
    ("SDEV_UA", "ASYMMETRIC_ACCESS_STATE_CHANGED", Reason::Access),
    ("SDEV_UA", "MODE_PARAMETERS_CHANGED", Reason::Parameters),
    ("SDEV_UA", "THIN_PROVISIONING_SOFT_THRESHOLD_REACHED", Reason::Space),
    ("SDEV_UA", "POWER_ON_RESET_OCCURRED", Reason::Reset),
    ("SDEV_MEDIA_CHANGE", "1", Reason::Medium),
];

impl Reason {
    /// The kernel's word for it.
    pub fn word(self) -> &'static str {
        let known = REASONS.iter().find(|(.., reason)| *reason == self);
        known.map_or("", |(key, word, _)| if *word == "1" { key } else { word })
    }
}

impl Thing {
    /// The host that it is, or is of.
    pub fn host(&self) -> Option<u32> {
        match self {
            Self::Host(number) => Some(*number),
            Self::Vport(name) => port(name, "vport-").map(|(host, ..)| host),
            Self::Remote(name) => port(name, "rport-").map(|(host, ..)| host),
            Self::Unit(address) | Self::Node(address, ..) => Some(address.host),
        }
    }
}

/// What a message says; `None` if it is about something else, or is none. Only the kernel sends them, but a driver may have put
/// anything into one.
pub(super) fn parse(message: &[u8]) -> Option<Uevent> {
    let mut lines = message.split(|byte| *byte == 0);
    // Those of udev begin with its name.
    lines.next().filter(|head| head.contains(&b'@'))?;
    let (mut action, mut path, mut subsystem, mut kind, mut reason) = (None, None, None, None, None);
    for line in lines.filter_map(|line| std::str::from_utf8(line).ok()) {
        let Some((key, value)) = line.split_once('=') else { continue };
        let property = match key {
            "ACTION" => &mut action,
            "DEVPATH" => &mut path,
            "SUBSYSTEM" => &mut subsystem,
            "DEVTYPE" => &mut kind,
            _ => {
                let known = REASONS.iter().find(|(name, word, _)| *name == key && *word == value);
                reason = reason.or(known.map(|(.., reason)| *reason));
                continue;
            }
        };
        // The kernel's own are first.
        property.get_or_insert(value);
    }
    let action = match action? {
        "add" => Action::Came,
        "remove" => Action::Gone,
        "change" => Action::Changed,
        _ => return None,
    };
    let parts: Vec<&str> = path?.split('/').collect();
    let name = *parts.last()?;
    let own = |prefix: &str| port(name, prefix).map(|_| name.to_owned());
    let behind = || {
        parts.iter().any(|part| port(part, "rport-").is_some()).then_some(())?;
        parts.iter().find_map(|part| part.parse::<Address>().ok())
    };
    let node = |node| Some(Thing::Node(behind()?, node, plain(name)?));
    let thing = match (subsystem?, kind) {
        ("fc_host", _) => Thing::Host(number_after(name, "host")?),
        ("fc_vports", _) => Thing::Vport(own("vport-")?),
        ("fc_remote_ports", _) => Thing::Remote(own("rport-")?),
        ("scsi", Some("scsi_device")) => Thing::Unit(behind()?),
        ("block", Some("disk")) => node(Node::Block)?,
        ("scsi_generic", _) => node(Node::Sg)?,
        ("bsg", _) => node(Node::Bsg)?,
        ("scsi_tape", _) => node(Node::Tape)?,
        _ => return None,
    };
    Some(Uevent { action, thing, reason })
}

/// A name of a node, if it is one.
fn plain(name: &str) -> Option<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    (!name.is_empty() && name.chars().all(fine)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "/devices/pci0000:00/0000:00:04.0/host5";

    fn message(action: &str, path: &str, properties: &[&str]) -> Vec<u8> {
        let head = [format!("{action}@{path}"), format!("ACTION={action}"), format!("DEVPATH={path}")];
        let all = head.iter().map(String::as_str).chain(properties.iter().copied()).chain(["SEQNUM=4711"]);
        all.flat_map(|line| [line.as_bytes(), b"\0"].concat()).collect()
    }

    fn read(path: &str, properties: &[&str]) -> Option<Thing> {
        parse(&message("add", &format!("{HOST}{path}"), properties)).map(|event| event.thing)
    }

    #[test]
    fn what_comes_and_goes_is_read() {
        let unit = "/rport-5:0-2/target5:0:0/5:0:0:27";
        let address: Address = "5:0:0:27".parse().unwrap();
        assert_eq!(read("/fc_host/host5", &["SUBSYSTEM=fc_host"]), Some(Thing::Host(5)));
        let vport = "/vport-5:0-0/fc_vports/vport-5:0-0";
        assert_eq!(read(vport, &["SUBSYSTEM=fc_vports"]), Some(Thing::Vport("vport-5:0-0".into())));
        let remote = "/rport-5:0-2/fc_remote_ports/rport-5:0-2";
        assert_eq!(read(remote, &["SUBSYSTEM=fc_remote_ports"]), Some(Thing::Remote("rport-5:0-2".into())));
        assert_eq!(read(unit, &["SUBSYSTEM=scsi", "DEVTYPE=scsi_device"]), Some(Thing::Unit(address)));
        for (place, properties, node, name) in [
            ("block/sdc", &["SUBSYSTEM=block", "DEVTYPE=disk"][..], Node::Block, "sdc"),
            ("scsi_generic/sg3", &["SUBSYSTEM=scsi_generic"], Node::Sg, "sg3"),
            ("bsg/5:0:0:27", &["SUBSYSTEM=bsg"], Node::Bsg, "5:0:0:27"),
            ("scsi_tape/nst0", &["SUBSYSTEM=scsi_tape"], Node::Tape, "nst0"),
        ] {
            let thing = read(&format!("{unit}/{place}"), properties).unwrap();
            assert_eq!(thing, Thing::Node(address, node, name.into()));
            assert_eq!(thing.host(), Some(5));
        }
        for (action, wanted) in [
            ("add", Some(Action::Came)),
            ("remove", Some(Action::Gone)),
            ("change", Some(Action::Changed)),
            ("bind", None),
        ] {
            let event = parse(&message(action, &format!("{HOST}/fc_host/host5"), &["SUBSYSTEM=fc_host"]));
            assert_eq!(event.map(|event| event.action), wanted);
        }
    }

    #[test]
    fn units_change_for_a_reason() {
        for (key, word, reason) in REASONS {
            let path = format!("{HOST}/rport-5:0-2/target5:0:0/5:0:0:27");
            let property = format!("{key}={word}");
            let message = message("change", &path, &["SUBSYSTEM=scsi", "DEVTYPE=scsi_device", &property]);
            let event = parse(&message).unwrap();
            assert_eq!((event.action, event.reason), (Action::Changed, Some(reason)));
            assert!([key, word].contains(&reason.word()));
        }
    }

    #[test]
    fn what_is_something_else_is_none() {
        let scsi = ["SUBSYSTEM=scsi", "DEVTYPE=scsi_device"];
        // A disk that is not behind a remote port, a partition, a target.
        assert_eq!(read("/target5:0:0/5:0:0:27", &scsi), None);
        let part = "/rport-5:0-2/target5:0:0/5:0:0:27/block/sdc/sdc1";
        assert_eq!(read(part, &["SUBSYSTEM=block", "DEVTYPE=partition"]), None);
        assert_eq!(read("/rport-5:0-2/target5:0:0", &["SUBSYSTEM=scsi", "DEVTYPE=scsi_target"]), None);
        assert_eq!(read("/fc_host/hostx", &["SUBSYSTEM=fc_host"]), None);
        assert_eq!(read("/rport-5:0-2/fc_remote_ports/rport-5", &["SUBSYSTEM=fc_remote_ports"]), None);
        assert_eq!(read("/rport-5:0-2/5:0:0:27/block/s\x1b[2J", &["SUBSYSTEM=block", "DEVTYPE=disk"]), None);
        let whole = message("add", &format!("{HOST}/rport-5:0-2/target5:0:0/5:0:0:27"), &scsi);
        for len in 0..whole.len() {
            let _ = parse(&whole[..len]);
        }
        assert_eq!(parse(&[&b"libudev\0"[..], &whole].concat()), None);
        for byte in [0, b'=', b'@', 0xff] {
            assert_eq!(parse(&[byte; 4096]), None);
        }
        // The first of a kind is the kernel's.
        let twice = [&whole[..], b"ACTION=remove\0DEVPATH=/devices/x\0SUBSYSTEM=net\0=\0="].concat();
        assert_eq!(parse(&twice).unwrap().action, Action::Came);
    }
}
