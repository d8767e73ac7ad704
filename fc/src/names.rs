//! Names for a new port: which are fit for it, and how they are made.

use std::io;

use crate::model::San;
use crate::wwn::{Oui, Wwn};

/// The two names of a virtual port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Names {
    /// Of its node.
    pub wwnn: Wwn,
    /// Of the port itself: what zoning and LUN masking go by.
    pub wwpn: Wwn,
}

/// Why names are not fit for a new port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// All bits are zero.
    #[error("{0} {1} is all zeros, which is no name; leave the names out, and they are made")]
    Zero(&'static str, Wwn),
    /// All bits are one.
    #[error("{0} {1} is all ones, which is no name; leave the names out, and they are made")]
    Ones(&'static str, Wwn),
    /// Not a kind of name that a port can have.
    #[error("{0} {1} begins with {naa:x}, {why}; names of ports begin with 1, 2, 3, 5, or c to f", naa = .1.naa(), why = why_not(.1.naa()))]
    Kind(&'static str, Wwn),
    /// NAA 1 has 12 bits that are zero.
    #[error("{0} {1} begins with 1, so that three zeros follow; a name with digits there begins with 2")]
    Reserved(&'static str, Wwn),
    /// A group's.
    #[error(
        "{0} {1} has a multicast address in it ({2}: the lowest bit of its first byte is set), which is no port's"
    )]
    Group(&'static str, Wwn, Oui),
    /// A company's whose hardware has such names.
    #[error(
        "{0} {1} is of {2} ({3}), whose hardware has such names, and two ports of one name would break both; leave the names out, \
             and they are made, or say --any-oui if it is yours to give"
    )]
    Foreign(&'static str, Wwn, Oui, String),
    /// Both names are one.
    #[error("WWNN and WWPN are both {0}; a port and its node have a name each")]
    Same(Wwn),
    /// Another port has it.
    #[error("{0} {1} is taken: {2}")]
    Taken(&'static str, Wwn, String),
    /// An initiator on the fabric has it, or had it a moment ago.
    #[error("{0} {1} is logged in on the fabric ({2} is that port): another port has it")]
    LoggedIn(&'static str, Wwn, String),
}

fn why_not(naa: u8) -> &'static str {
    match naa {
        4 => "which is an IP address",
        6 => "which is the first half of a name of 16 bytes, as logical units have",
        _ => "which no standard knows",
    }
}

/// Companies whose adapters, switches and arrays have names of theirs. What others make names of for virtual ports is not among
/// them: 001a4a (libvirt), 000c29 and 005056 (VMware), 0025b5 (Cisco UCS), 00163e (Xen).
const HARDWARE: [(u32, &str); 34] = [
    (0x00_0097, "Dell EMC"),
    (0x00_01fe, "Digital Equipment, HPE EVA"),
    (0x00_02ac, "HPE 3PAR"),
    (0x00_0533, "Brocade"),
    (0x00_051e, "Brocade"),
    (0x00_0573, "Cisco"),
    (0x00_0b5d, "Fujitsu"),
    (0x00_0dec, "Cisco"),
    (0x00_0e1e, "QLogic"),
    (0x00_109b, "Emulex"),
    (0x00_1086, "ATTO"),
    (0x00_1248, "Dell EMC"),
    (0x00_1438, "HPE"),
    (0x00_1738, "IBM XIV"),
    (0x00_1b32, "QLogic"),
    (0x00_22a1, "Huawei"),
    (0x00_24ff, "QLogic"),
    (0x00_27f8, "Brocade"),
    (0x00_2a6a, "Cisco"),
    (0x00_00c9, "Emulex"),
    (0x00_5076, "IBM"),
    (0x00_6016, "Dell EMC CLARiiON"),
    (0x00_6048, "Dell EMC"),
    (0x00_6069, "Brocade"),
    (0x00_60e8, "Hitachi"),
    (0x00_a098, "NetApp"),
    (0x00_a0b8, "NetApp"),
    (0x00_c0ff, "Dot Hill, Seagate"),
    (0x00_e08b, "QLogic"),
    (0x24_a937, "Pure Storage"),
    (0x54_7fee, "Cisco"),
    (0x74_2b0f, "Infinidat"),
    (0x8c_7cff, "Brocade"),
    (0xf4_e9d4, "QLogic"),
];

/// Names that ports have, or are promised to somebody, and companies of which there is hardware here.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Names of ports, with whose they are.
    ports: Vec<(Wwn, String)>,
    /// Names of nodes that are no virtual port's: several ports of one machine may share their node's.
    nodes: Vec<(Wwn, String)>,
    /// Names of initiators that the host's ports see. One that has just gone may be among them.
    seen: Vec<(Wwn, String)>,
    /// Companies that the host's ports, and targets on the fabric, are of.
    companies: Vec<(Oui, String)>,
}

impl Known {
    /// What the host sees.
    pub fn of(san: &San) -> Self {
        let mut known = Self::default();
        for host in san.hosts.iter().filter(|host| host.vport.is_none()) {
            let whose = format!("the port {} of this host has it", host.name());
            for wwpn in [host.wwpn, host.permanent_wwpn].into_iter().flatten() {
                known.ports.push((wwpn, whose.clone()));
                known
                    .companies
                    .extend(company(wwpn).map(|oui| (oui, format!("{} has it, too", host.name()))));
            }
            known.nodes.extend(host.wwnn.map(|wwnn| (wwnn, format!("the node of {} has it", host.name()))));
        }
        for vport in &san.vports {
            let whose = format!("the virtual port {} of host{} has it", vport.name, vport.parent);
            known.ports.extend(vport.wwpn.map(|wwpn| (wwpn, whose.clone())));
        }
        for remote in &san.remotes {
            if !remote.is_target() {
                // Others may have its name when it has gone.
                let there = remote.wwpn.filter(|_| remote.state == "Online");
                known.seen.extend(there.map(|wwpn| (wwpn, remote.name.clone())));
            } else {
                let whose = format!("a target on the fabric has it ({})", remote.name);
                known.ports.extend(remote.wwpn.map(|wwpn| (wwpn, whose)));
                let whose = format!("the node of {} on the fabric has it", remote.name);
                known.nodes.extend(remote.wwnn.map(|wwnn| (wwnn, whose)));
                let whose = format!("the target {} has it, too", remote.name);
                known.companies.extend(remote.wwpn.and_then(company).map(|oui| (oui, whose)));
            }
        }
        known
    }

    /// Promises a name of a port to somebody.
    pub fn promise(&mut self, wwpn: Wwn, whose: String) {
        self.ports.push((wwpn, whose));
    }

    /// Whose hardware has names of this company.
    fn hardware(&self, name: Wwn) -> Option<(Oui, String)> {
        let oui = company(name)?;
        let listed = HARDWARE.iter().find(|(known, _)| Oui::new(*known) == oui);
        let seen = || self.companies.iter().find(|(known, _)| *known == oui).map(|(_, whose)| whose.clone());
        listed.map(|(_, company)| (*company).to_owned()).or_else(seen).map(|whose| (oui, whose))
    }
}

/// The company that a name is of, if it is one of those that hardware is given.
fn company(name: Wwn) -> Option<Oui> {
    matches!(name.naa(), 1 | 2 | 5).then(|| name.oui())?.filter(|oui| !oui.is_local())
}

impl Names {
    /// Whether a new port may have these names.
    ///
    /// # Errors
    /// The first reason why not.
    pub fn check(self, known: &Known, any_oui: bool) -> Result<(), Unfit> {
        for (what, name) in [("WWPN", self.wwpn), ("WWNN", self.wwnn)] {
            check_one(what, name)?;
            if let Some((oui, whose)) = known.hardware(name).filter(|_| !any_oui) {
                return Err(Unfit::Foreign(what, name, oui, whose));
            }
        }
        if self.wwnn == self.wwpn {
            return Err(Unfit::Same(self.wwpn));
        }
        let taken = |what, name, lists: &[&[(Wwn, String)]]| {
            let taken = lists.iter().copied().flatten().find(|(other, _)| *other == name);
            taken.map_or(Ok(()), |(_, whose)| Err(Unfit::Taken(what, name, whose.clone())))
        };
        taken("WWPN", self.wwpn, &[&known.ports, &known.nodes])?;
        taken("WWNN", self.wwnn, &[&known.nodes, &known.ports])?;
        match known.seen.iter().find(|(name, _)| *name == self.wwpn) {
            Some((_, remote)) => Err(Unfit::LoggedIn("WWPN", self.wwpn, remote.clone())),
            None => Ok(()),
        }
    }

    /// Makes names that nobody has: of NAA 2, with an address that is locally administered (quadrant AAI of IEEE 802c), so that no
    /// hardware has it. Node and port differ in one digit: `20000...`, `21000...`.
    ///
    /// # Errors
    /// What `random`, which fills its argument, says; or if it says the same again and again.
    pub fn make(known: &Known, mut random: impl FnMut(&mut [u8]) -> io::Result<()>) -> io::Result<Self> {
        for _ in 0..16 {
            let mut bytes = [0; 8];
            random(&mut bytes)?;
            let address = u64::from_be_bytes(bytes) & 0xf0ff_ffff_ffff | 0x0200_0000_0000;
            let names =
                Self { wwnn: Wwn::new(0x2000 << 48 | address), wwpn: Wwn::new(0x2100 << 48 | address) };
            if names.check(known, false).is_ok() {
                return Ok(names);
            }
        }
        Err(io::Error::other("no random numbers: 16 names in a row are taken"))
    }
}

fn check_one(what: &'static str, name: Wwn) -> Result<(), Unfit> {
    match (name.bits(), name.naa()) {
        (0, _) => return Err(Unfit::Zero(what, name)),
        (u64::MAX, _) => return Err(Unfit::Ones(what, name)),
        (bits, 1) if (bits >> 48) & 0xfff != 0 => return Err(Unfit::Reserved(what, name)),
        (_, 1 | 2 | 3 | 5 | 0xc..=0xf) => {}
        _ => return Err(Unfit::Kind(what, name)),
    }
    // EUI-64 mapped names have no such bit.
    match name.oui().filter(|oui| oui.is_group()) {
        Some(oui) => Err(Unfit::Group(what, name, oui)),
        None => Ok(()),
    }
}

/// Random bytes of the kernel.
///
/// # Errors
/// The file system's.
pub fn random(into: &mut [u8]) -> io::Result<()> {
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tree, assert_quoted};

    fn names(wwpn: u64, wwnn: u64) -> Names {
        Names { wwpn: Wwn::new(wwpn), wwnn: Wwn::new(wwnn) }
    }

    /// Every error, word for word, as docs/fc.md quotes them.
    #[test]
    fn what_is_wrong_with_names_is_said_with_what_to_do() {
        let known = Known::of(&San::read(&Tree::lpfc().roots()));
        let good = 0x2000_0200_0000_0b01;
        for (wwpn, wwnn, said) in [
            (
                0,
                good,
                "WWPN 0000000000000000 is all zeros, which is no name; leave the names out, and they are made",
            ),
            (
                u64::MAX,
                good,
                "WWPN ffffffffffffffff is all ones, which is no name; leave the names out, and they are made",
            ),
            (
                0x6001_4051_2345_6789,
                good,
                "WWPN 6001405123456789 begins with 6, which is the first half of a name of 16 bytes, as logical units have; \
                 names of ports begin with 1, 2, 3, 5, or c to f",
            ),
            (
                0x4000_0000_0a00_0001,
                good,
                "WWPN 400000000a000001 begins with 4, which is an IP address; names of ports begin with 1, 2, 3, 5, or c to f",
            ),
            (
                0x0000_0200_0000_0001,
                good,
                "WWPN 0000020000000001 begins with 0, which no standard knows; names of ports begin with 1, 2, 3, 5, or c to f",
            ),
            (
                0x1001_0200_0000_0001,
                good,
                "WWPN 1001020000000001 begins with 1, so that three zeros follow; a name with digits there begins with 2",
            ),
            (
                0x2100_0100_5e00_0001,
                good,
                "WWPN 210001005e000001 has a multicast address in it (01005e: the lowest bit of its first byte is set), which is no \
                 port's",
            ),
            (
                0x5006_0160_4460_2199,
                good,
                "WWPN 5006016044602199 is of 006016 (Dell EMC CLARiiON), whose hardware has such names, and two ports of one name \
                 would break both; leave the names out, and they are made, or say --any-oui if it is yours to give",
            ),
            (
                0x5089_99a0_0000_0001,
                good,
                "WWPN 508999a000000001 is of 08999a (the target rport-8:0-1 has it, too), whose hardware has such names, and two \
                 ports of one name would break both; leave the names out, and they are made, or say --any-oui if it is yours to \
                 give",
            ),
            (
                good,
                0,
                "WWNN 0000000000000000 is all zeros, which is no name; leave the names out, and they are made",
            ),
            (good, good, "WWNN and WWPN are both 2000020000000b01; a port and its node have a name each"),
            (
                0x2100_0000_0000_0a01,
                good,
                "WWPN 2100000000000a01 is taken: the virtual port vport-5:0-0 of host5 has it",
            ),
        ] {
            assert_eq!(names(wwpn, wwnn).check(&known, false).unwrap_err().to_string(), said);
            if wwnn != 0 {
                assert_quoted(said);
            }
        }
        for (wwpn, wwnn, said) in [
            (
                0x1000_0000_c9aa_bb05,
                good,
                "WWPN 10000000c9aabb05 is taken: the port host5 of this host has it",
            ),
            (good, 0x2000_0000_c9aa_bb05, "WWNN 20000000c9aabb05 is taken: the node of host5 has it"),
            (
                0x5006_0160_4460_2198,
                good,
                "WWPN 5006016044602198 is taken: a target on the fabric has it (rport-5:0-0)",
            ),
            (
                good,
                0x5006_0160_c460_2198,
                "WWNN 50060160c4602198 is taken: the node of rport-5:0-0 on the fabric has it",
            ),
        ] {
            assert_eq!(names(wwpn, wwnn).check(&known, true).unwrap_err().to_string(), said);
            assert_quoted(said);
        }
    }

    #[test]
    fn names_that_are_logged_in_elsewhere_are_taken_while_they_are() {
        let tree = Tree::lpfc();
        let host = format!("{}/host5", crate::testing::PCI);
        let other = ("0x2100020000000c01", "0x2000020000000c01");
        tree.remote(&host, "rport-5:0-9", other, "FCP Initiator", -1);
        let check = || {
            names(0x2100_0200_0000_0c01, 0x2000_0200_0000_0c01)
                .check(&Known::of(&San::read(&tree.roots())), false)
        };
        assert_eq!(
            check().unwrap_err().to_string(),
            "WWPN 2100020000000c01 is logged in on the fabric (rport-5:0-9 is that port): another port has it"
        );
        assert_quoted(&check().unwrap_err().to_string());
        tree.file("sys/class/fc_remote_ports/rport-5:0-9/port_state", "Not Present\n");
        assert_eq!(check(), Ok(()));
    }

    #[test]
    fn what_others_make_names_of_is_fit() {
        let mut known = Known::of(&San::read(&Tree::lpfc().roots()));
        for (wwpn, wwnn) in [
            (0x5001_a4a7_7192_b864, 0x5001_a4aa_f3ca_174b),
            (0x2800_000c_2900_0001, 0x2800_000c_2900_0002),
            (0x2000_0025_b500_0001, 0x2000_0025_b500_0002),
            (0xc050_76ff_fb00_1230, 0xc050_76ff_fb00_1231),
            (0x3123_4567_89ab_cdef, 0x3123_4567_89ab_cdee),
            (0x2000_02aa_0000_0001, 0x1000_02aa_0000_0001),
            // Two ports of one machine, of one node.
            (0x2100_0000_0000_0a02, 0x2000_0000_0000_0a01),
        ] {
            assert_eq!(names(wwpn, wwnn).check(&known, false), Ok(()), "{wwpn:x}");
        }
        assert_eq!(names(0x5006_0160_4460_2199, 0x5006_0160_4460_219a).check(&known, true), Ok(()));
        known.promise(Wwn::new(0x2100_0200_0000_0001), "the definition \"a\" has it".into());
        assert_eq!(
            names(0x2100_0200_0000_0001, 0x2000_0200_0000_0001).check(&known, false).unwrap_err().to_string(),
            "WWPN 2100020000000001 is taken: the definition \"a\" has it"
        );
    }

    #[test]
    fn names_that_are_made_are_nobodys() {
        let mut known = Known::default();
        let fill = |byte| {
            move |into: &mut [u8]| {
                into.fill(byte);
                Ok(())
            }
        };
        let made = Names::make(&known, fill(0xff)).unwrap();
        assert_eq!(made, names(0x2100_f2ff_ffff_ffff, 0x2000_f2ff_ffff_ffff));
        assert_eq!(made.check(&known, false), Ok(()));
        assert_eq!(
            Names::make(&known, fill(0)).unwrap(),
            names(0x2100_0200_0000_0000, 0x2000_0200_0000_0000)
        );
        let mut bytes = [0_u8, 0, 7].into_iter();
        known.promise(made.wwpn, String::new());
        known.promise(Wwn::new(0x2100_0200_0000_0000), String::new());
        // The first two are taken, as somebody has it so.
        let next = Names::make(&known, |into| fill(bytes.next().unwrap())(into)).unwrap();
        assert_eq!(next, names(0x2100_0207_0707_0707, 0x2000_0207_0707_0707));
        assert_eq!(
            Names::make(&known, fill(0)).unwrap_err().to_string(),
            "no random numbers: 16 names in a row are taken"
        );
        assert!(Names::make(&known, |_| Err(io::ErrorKind::PermissionDenied.into())).is_err());
        assert_ne!(Names::make(&known, random).unwrap(), Names::make(&known, random).unwrap());
    }
}
