//! The port that a virtual port is created on, by the rules that users of libvirt know: by name, by its own names, by the fabric, or
//! else the first that is online and has a free one.

use serde::{Deserialize, Serialize};

use crate::address::number_after;
use crate::model::{Host, San};
use crate::wwn::Wwn;

/// Which port is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// Any.
    #[default]
    Any,
    /// By its number: `host5`, or `scsi_host5` as libvirt writes it.
    Number(u32),
    /// By what it is a part of: a bus address, a network interface.
    Parent(String),
    /// By its own names, of which one does.
    Names {
        /// That of its node.
        wwnn: Option<Wwn>,
        /// Its own.
        wwpn: Option<Wwn>,
    },
    /// The first on this fabric.
    Fabric(Wwn),
}

/// Why there is no port to create a virtual one on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPort {
    /// The host has no Fibre Channel.
    #[error(
        "this host has no Fibre Channel port: no driver of an adapter (lpfc, qla2xxx, fcoe ...) has one in /sys/class/fc_host"
    )]
    NoHosts,
    /// There is no such port.
    #[error("there is no Fibre Channel port {wanted}; there are {there}")]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// What there is.
        there: String,
    },
    /// Its driver, or it itself, creates none.
    #[error("{host} creates no virtual ports: {why}")]
    Incapable {
        /// `host5`
        host: String,
        /// The reason.
        why: String,
        /// It never will. Else its driver may not be done yet with what it does first.
        for_good: bool,
    },
    /// Its link is down.
    #[error("{host} is {state}; look at cable, transceiver and switch port")]
    Offline {
        /// `host5`
        host: String,
        /// Its state.
        state: String,
    },
    /// There is no room for one more.
    #[error(
        "{host} has all of its {max} virtual ports in use; delete one (vmm fc list shows them), or take another port"
    )]
    Full {
        /// `host5`
        host: String,
        /// How many.
        max: u32,
    },
    /// None of all will do.
    #[error("no Fibre Channel port {what}: {why}")]
    None {
        /// Which were looked at.
        what: String,
        /// Each with its reason.
        why: String,
    },
}

/// Which port is wanted, as a file or a command line says it: the first of these that is there counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// By name ([`Wanted::named`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// By the name of its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_wwnn: Option<Wwn>,
    /// By its own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_wwpn: Option<Wwn>,
    /// By the fabric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_fabric: Option<Wwn>,
}

impl Rules {
    /// The port that they ask for.
    pub fn wanted(&self) -> Wanted {
        match (&self.parent, self.parent_wwnn, self.parent_wwpn, self.parent_fabric) {
            (Some(name), ..) => Wanted::named(name),
            (None, None, None, Some(fabric)) => Wanted::Fabric(fabric),
            (None, None, None, None) => Wanted::Any,
            (None, wwnn, wwpn, _) => Wanted::Names { wwnn, wwpn },
        }
    }
}

impl Wanted {
    /// The port of a name: `host5`, `scsi_host5`, or what it is a part of, such as 0000:10:00.0, or `pci_0000_10_00_0` as libvirt writes it.
    pub fn named(name: &str) -> Self {
        let number = ["host", "scsi_host"].into_iter().find_map(|prefix| number_after(name, prefix));
        match (number, name.strip_prefix("pci_").map(|name| name.split('_').collect::<Vec<_>>())) {
            (Some(number), _) => Self::Number(number),
            (None, Some(parts)) => match parts[..] {
                [domain, bus, slot, function] => Self::Parent(format!("{domain}:{bus}:{slot}.{function}")),
                _ => Self::Parent(name.to_owned()),
            },
            (None, None) => Self::Parent(name.to_owned()),
        }
    }

    /// The port to take.
    ///
    /// # Errors
    /// [`NoPort`] says why there is none.
    pub fn choose<'a>(&self, san: &'a San) -> Result<&'a Host, NoPort> {
        let ports: Vec<&Host> = san.hosts.iter().filter(|host| host.vport.is_none()).collect();
        if ports.is_empty() {
            return Err(NoPort::NoHosts);
        }
        let one = |found: Option<&'a Host>, wanted: String| match found {
            Some(host) => usable(host).map(|()| host),
            None => {
                let there = ports.iter().map(|host| host.name()).collect::<Vec<_>>().join(", ");
                Err(NoPort::Unknown { wanted, there })
            }
        };
        match self {
            Self::Number(number) => one(san.host(*number), format!("host{number}")),
            Self::Parent(parent) => {
                let on = |host: &&&Host| host.parent.as_ref() == Some(parent);
                one(ports.iter().find(on).copied(), format!("on {parent}"))
            }
            Self::Names { wwnn, wwpn } => {
                let has = |own: Option<Wwn>, wanted: Option<Wwn>| wanted.is_none() || own == wanted;
                let is = |host: &&&Host| has(host.wwnn, *wwnn) && has(host.wwpn, *wwpn);
                let part = |what: &str, name: Option<Wwn>| name.map(|name| format!("{what} {name}"));
                let parts = [part("WWNN", *wwnn), part("WWPN", *wwpn)];
                let wanted = parts.into_iter().flatten().collect::<Vec<_>>().join(" and ");
                // Several ports of an adapter may have one node.
                let with = || ports.iter().filter(is).copied();
                let is_free = |host: &&Host| usable(host).is_ok();
                let best = with().find(|host| is_free(host) && host.is_online());
                let found = best.or_else(|| with().find(is_free)).or_else(|| with().next());
                one(found, format!("with {wanted}"))
            }
            Self::Fabric(fabric) => {
                let on: Vec<&Host> =
                    ports.iter().filter(|host| host.fabric == Some(*fabric)).copied().collect();
                if on.is_empty() {
                    return one(None, format!("on fabric {fabric}"));
                }
                first(&on, format!("on fabric {fabric} will do"))
            }
            Self::Any => first(&ports, "will do".into()),
        }
    }
}

/// The first that is online and has a free one.
fn first<'a>(ports: &[&'a Host], what: String) -> Result<&'a Host, NoPort> {
    let mut reasons = Vec::new();
    for host in ports.iter().copied() {
        match usable(host) {
            Ok(()) if host.is_online() => return Ok(host),
            Ok(()) if host.state.is_empty() => reasons.push(format!("{} is going", host.name())),
            Ok(()) => reasons.push(format!("{} is {}", host.name(), host.state)),
            Err(error) => {
                let text = error.to_string();
                reasons.push(text.split("; ").next().unwrap_or_default().to_owned());
            }
        }
    }
    Err(NoPort::None { what, why: reasons.join("; ") })
}

/// Whether it creates virtual ports, and has a free one.
fn usable(host: &Host) -> Result<(), NoPort> {
    match host.npiv {
        Some(npiv) if npiv.in_use < npiv.max => Ok(()),
        Some(npiv) if npiv.max > 0 => Err(NoPort::Full { host: host.name(), max: npiv.max }),
        npiv => Err(NoPort::Incapable { host: host.name(), why: why_not(host), for_good: npiv.is_none() }),
    }
}

fn why_not(host: &Host) -> String {
    if let Some(vport) = &host.vport {
        return format!("it is one itself ({vport})");
    }
    match &*host.driver {
        "zfcp" => {
            "on IBM Z the machine gives each device a port; assign an FCP device with NPIV to this system"
                .into()
        }
        "lpfc" => "the firmware or the driver has NPIV off (module lpfc, option lpfc_enable_npiv=1)".into(),
        "qla2xxx" => {
            "the firmware or the adapter has no NPIV (module qla2xxx), or it is a target (qlini_mode)".into()
        }
        "" => "its driver has no NPIV".into(),
        driver => format!("its driver {driver} has no NPIV"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NPORT, PCI, Port, Tree};

    fn chosen(tree: &Tree, wanted: &Wanted) -> Result<u32, String> {
        let san = San::read(&tree.roots());
        wanted.choose(&san).map(|host| host.number).map_err(|error| error.to_string())
    }

    fn refused(tree: &Tree, wanted: &Wanted) -> String {
        let said = chosen(tree, wanted).unwrap_err();
        if !said.contains("on fabric 100000fcf0000001") {
            crate::testing::assert_quoted(&said);
        }
        said
    }

    #[test]
    fn ports_have_the_names_that_libvirt_gives_them_too() {
        assert_eq!(Wanted::named("host5"), Wanted::Number(5));
        assert_eq!(Wanted::named("scsi_host5"), Wanted::Number(5));
        assert_eq!(Wanted::named("pci_0000_10_00_0"), Wanted::Parent("0000:10:00.0".into()));
        assert_eq!(Wanted::named("0000:10:00.0"), Wanted::Parent("0000:10:00.0".into()));
        assert_eq!(Wanted::named("fi0"), Wanted::Parent("fi0".into()));
        assert_eq!(Wanted::named("pci_x"), Wanted::Parent("pci_x".into()));
    }

    #[test]
    fn the_first_rule_that_is_there_counts() {
        let (wwn, other) = (Some(Wwn::new(1)), Some(Wwn::new(2)));
        let mut rules = Rules { parent_fabric: other, ..Rules::default() };
        assert_eq!(Rules::default().wanted(), Wanted::Any);
        assert_eq!(rules.wanted(), Wanted::Fabric(Wwn::new(2)));
        rules.parent_wwpn = wwn;
        assert_eq!(rules.wanted(), Wanted::Names { wwnn: None, wwpn: wwn });
        rules.parent = Some("host5".into());
        assert_eq!(rules.wanted(), Wanted::Number(5));
    }

    #[test]
    fn the_rules_of_libvirt() {
        let (lpfc, qla) = (Tree::lpfc(), Tree::qla2xxx());
        assert_eq!(chosen(&lpfc, &Wanted::Any), Ok(5));
        assert_eq!(chosen(&qla, &Wanted::Any), Ok(4), "the first has no free one");
        // By name also one whose link is down: it may come.
        assert_eq!(chosen(&lpfc, &Wanted::Number(6)), Ok(6));
        assert_eq!(chosen(&lpfc, &Wanted::named("0000:10:00.1")), Ok(6));
        assert_eq!(chosen(&Tree::fcoe(), &Wanted::named("fi0")), Ok(1));
        let names = |wwnn: Option<u64>, wwpn: Option<u64>| Wanted::Names {
            wwnn: wwnn.map(Wwn::new),
            wwpn: wwpn.map(Wwn::new),
        };
        assert_eq!(chosen(&qla, &names(Some(0x2001_001b_32a9_da4e), Some(0x2101_001b_32a9_da4e))), Ok(4));
        assert_eq!(chosen(&qla, &names(None, Some(0x2101_001b_32a9_da4e))), Ok(4));
        assert_eq!(chosen(&qla, &Wanted::Fabric(Wwn::new(0x1000_00fc_f000_0001))), Ok(4));
        // Two ports of one node: the one that has a free virtual port, and that is online.
        qla.file("sys/class/fc_host/host4/node_name", "0x2000001b32a9da4e\n");
        let node = names(Some(0x2000_001b_32a9_da4e), None);
        assert_eq!(chosen(&qla, &node), Ok(4));
        qla.file("sys/class/fc_host/host3/npiv_vports_inuse", "0\n");
        assert_eq!(chosen(&qla, &node), Ok(3));
        qla.file("sys/class/fc_host/host3/port_state", "Linkdown\n");
        assert_eq!(chosen(&qla, &node), Ok(4));
        qla.file("sys/class/fc_host/host4/npiv_vports_inuse", "254\n");
        assert_eq!(chosen(&qla, &node), Ok(3));
    }

    /// Word for word, as docs/fc.md quotes them.
    #[test]
    fn why_there_is_no_port_is_said() {
        let (lpfc, qla, zfcp) = (Tree::lpfc(), Tree::qla2xxx(), Tree::zfcp());
        assert_eq!(
            refused(&Tree::new(), &Wanted::Any),
            "this host has no Fibre Channel port: no driver of an adapter (lpfc, qla2xxx, fcoe ...) has one in /sys/class/fc_host"
        );
        assert_eq!(
            refused(&lpfc, &Wanted::Number(9)),
            "there is no Fibre Channel port host9; there are host5, host6"
        );
        assert_eq!(
            refused(&lpfc, &Wanted::named("0000:99:00.0")),
            "there is no Fibre Channel port on 0000:99:00.0; there are host5, host6"
        );
        let names = Wanted::Names { wwnn: Some(Wwn::new(0x2000)), wwpn: Some(Wwn::new(0x2100)) };
        assert_eq!(
            refused(&lpfc, &names),
            "there is no Fibre Channel port with WWNN 0000000000002000 and WWPN 0000000000002100; there are host5, host6"
        );
        assert_eq!(
            refused(&lpfc, &Wanted::Fabric(Wwn::new(0x1000_0000_0000_0009))),
            "there is no Fibre Channel port on fabric 1000000000000009; there are host5, host6"
        );
        assert_eq!(
            refused(&lpfc, &Wanted::Number(8)),
            "host8 creates no virtual ports: it is one itself (vport-5:0-0)"
        );
        assert_eq!(
            refused(&zfcp, &Wanted::Number(0)),
            "host0 creates no virtual ports: on IBM Z the machine gives each device a port; assign an FCP device with NPIV to this system"
        );
        assert_eq!(
            refused(&qla, &Wanted::Number(3)),
            "host3 has all of its 254 virtual ports in use; delete one (vmm fc list shows them), or take another port"
        );
        let fnic = Port {
            number: 11,
            wwpn: "0x20000025b5000001",
            wwnn: "0x20000025b5000002",
            state: "Online",
            kind: NPORT,
            driver: "fnic",
            npiv: None,
        };
        qla.host(PCI, &fnic);
        qla.file("sys/class/fc_host/host4/port_state", "Linkdown\n");
        assert_eq!(
            refused(&qla, &Wanted::Any),
            "no Fibre Channel port will do: host3 has all of its 254 virtual ports in use; host4 is Linkdown; host11 creates no \
             virtual ports: its driver fnic has no NPIV"
        );
        assert!(
            refused(&qla, &Wanted::Fabric(Wwn::new(0x1000_00fc_f000_0001)))
                .starts_with("no Fibre Channel port on fabric 100000fcf0000001 will do: host3 has all")
        );
        // NPIV that is switched off.
        lpfc.file("sys/class/fc_host/host5/max_npiv_vports", "0\n");
        assert_eq!(
            refused(&lpfc, &Wanted::Number(5)),
            "host5 creates no virtual ports: the firmware or the driver has NPIV off (module lpfc, option lpfc_enable_npiv=1)"
        );
    }
}
