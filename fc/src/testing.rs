//! Trees of sysfs as drivers lay them out, written by hand from their documentation.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::sysfs::Roots;

/// docs/fc.md quotes this.
#[cfg(test)]
#[track_caller]
pub(crate) fn assert_quoted(said: &str) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fc.md");
    assert!(fs::read_to_string(docs).unwrap().contains(&format!("- `{said}`")), "docs/fc.md lacks: {said}");
}

/// `sys`, `dev` and `proc` in a directory of their own.
pub struct Tree(TempDir);

/// What a port says.
pub struct Port<'a> {
    /// Of the host.
    pub number: u32,
    /// `port_name`
    pub wwpn: &'a str,
    /// `node_name`
    pub wwnn: &'a str,
    /// `port_state`
    pub state: &'a str,
    /// `port_type`
    pub kind: &'a str,
    /// `proc_name`
    pub driver: &'a str,
    /// Most virtual ports, and how many there are.
    pub npiv: Option<(u32, u32)>,
}

const FABRIC: &str = "0x100000fcf0000001";
/// A port on a fabric.
pub const NPORT: &str = "NPort (fabric via point-to-point)";
/// The first adapter.
pub const PCI: &str = "devices/pci0000:00/0000:00:04.0/0000:10:00.0";

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// Nothing yet.
    pub fn new() -> Self {
        let tree = Self(TempDir::new().unwrap());
        for directory in ["sys/class", "sys/devices", "dev", "proc"] {
            fs::create_dir_all(tree.path(directory)).unwrap();
        }
        tree
    }

    /// Where something is.
    pub fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// Where all is.
    pub fn roots(&self) -> Roots {
        Roots::below(self.0.path())
    }

    /// Writes a file.
    pub fn file(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Writes files.
    pub fn files(&self, files: &[(&str, &str)]) {
        files.iter().for_each(|(path, text)| self.file(path, text));
    }

    /// Makes a link.
    pub fn link(&self, path: &str, to: impl AsRef<Path>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
    }

    /// A device with its directory in a class: `class/NAME` leads to `DEVICE/CLASS/NAME`, which leads back by `device`.
    fn class(&self, class: &str, name: &str, device: &str, files: &[(&str, &str)]) {
        let own = format!("sys/{device}/{class}/{name}");
        for (file, text) in files {
            self.file(&format!("{own}/{file}"), &format!("{text}\n"));
        }
        self.link(&format!("{own}/device"), self.path(&format!("sys/{device}")));
        self.link(&format!("sys/class/{class}/{name}"), self.path(&own));
    }

    /// A port, or the host of a virtual one: its device.
    pub fn host(&self, above: &str, port: &Port<'_>) -> String {
        let (name, device) = (format!("host{}", port.number), format!("{above}/host{}", port.number));
        let npiv = port.npiv.map(|(max, used)| (max.to_string(), used.to_string()));
        let id =
            if port.state == "Online" { format!("0x0101{:02x}", port.number) } else { "0xffffffff".into() };
        let mut files = vec![
            ("port_name", port.wwpn),
            ("node_name", port.wwnn),
            ("port_state", port.state),
            ("port_type", port.kind),
            ("port_id", &id),
            ("fabric_name", FABRIC),
            ("speed", "16 Gbit"),
            ("supported_speeds", "4 Gbit, 8 Gbit, 16 Gbit"),
            ("symbolic_name", "an adapter"),
            ("dev_loss_tmo", "60"),
        ];
        if let Some((max, used)) = &npiv {
            files.extend([("max_npiv_vports", &**max), ("npiv_vports_inuse", used)]);
            files.extend([("vport_create", ""), ("vport_delete", "")]);
        }
        self.class("fc_host", &name, &device, &files);
        self.class("scsi_host", &name, &device, &[("proc_name", port.driver)]);
        device
    }

    /// A virtual port on a host's device, with its own host if that has a number.
    pub fn vport(
        &self,
        parent: &str,
        name: &str,
        names: (&str, &str),
        state: &str,
        host: Option<u32>,
    ) -> String {
        let device = format!("{parent}/{name}");
        self.class(
            "fc_vports",
            name,
            &device,
            &[
                ("port_name", names.0),
                ("node_name", names.1),
                ("vport_state", state),
                ("vport_last_state", "Unknown"),
                ("vport_type", "NPIV VPORT"),
                ("roles", "FCP Initiator"),
                ("symbolic_name", ""),
            ],
        );
        if let Some(number) = host {
            let online = if state == "Active" { "Online" } else { "Linkdown" };
            let (wwpn, wwnn) = names;
            let port =
                Port { number, wwpn, wwnn, state: online, kind: "NPIV VPORT", driver: "lpfc", npiv: None };
            self.host(&device, &port);
        }
        device
    }

    /// A remote port below a host's device: its device.
    pub fn remote(&self, host: &str, name: &str, names: (&str, &str), roles: &str, target: i32) -> String {
        let device = format!("{host}/{name}");
        let target = target.to_string();
        self.class(
            "fc_remote_ports",
            name,
            &device,
            &[
                ("port_name", names.0),
                ("node_name", names.1),
                ("port_id", "0x010201"),
                ("roles", roles),
                ("port_state", "Online"),
                ("scsi_target_id", &target),
                ("dev_loss_tmo", "60"),
                ("fast_io_fail_tmo", "off"),
            ],
        );
        device
    }

    /// A logical unit below a remote port: its device.
    pub fn unit(&self, remote: &str, address: &str, kind: u8, nodes: &[(&str, &str)]) -> String {
        let target = address.rsplit_once(':').unwrap().0;
        let device = format!("{remote}/target{target}/{address}");
        let kind = kind.to_string();
        let files = [("vendor", "ACME    "), ("model", "Array           "), ("rev", "4.02"), ("type", &kind)];
        for (file, text) in files.iter().chain(&[("state", "running")]) {
            self.file(&format!("sys/{device}/{file}"), &format!("{text}\n"));
        }
        for (driver, node) in nodes {
            self.file(&format!("sys/{device}/{driver}/{node}/dev"), "8:99\n");
        }
        self.class("scsi_device", address, &device, &[("uevent", "")]);
        device
    }

    /// An Emulex adapter with a port that has a virtual one, and a second one whose link is down.
    pub fn lpfc() -> Self {
        let tree = Self::new();
        let port = |number, wwpn, wwnn, state, npiv| Port {
            number,
            wwpn,
            wwnn,
            state,
            kind: if state == "Online" { NPORT } else { "Unknown" },
            driver: "lpfc",
            npiv: Some(npiv),
        };
        let host = tree.host(PCI, &port(5, "0x10000000c9aabb05", "0x20000000c9aabb05", "Online", (64, 1)));
        let other = "devices/pci0000:00/0000:00:04.0/0000:10:00.1";
        tree.host(other, &port(6, "0x10000000c9aabb06", "0x20000000c9aabb06", "Linkdown", (64, 0)));
        let names = ("0x2100000000000a01", "0x2000000000000a01");
        let vport = tree.vport(&host, "vport-5:0-0", names, "Active", Some(8));
        let own = format!("{vport}/host8");
        let roles = "FCP Target";
        let target = tree.remote(&own, "rport-8:0-0", ("0x5006016044602198", "0x50060160c4602198"), roles, 0);
        tree.remote(&own, "rport-8:0-1", ("0x508999a000000002", "0x508999a000000003"), roles, 1);
        let base = tree.remote(&host, "rport-5:0-0", ("0x5006016044602198", "0x50060160c4602198"), roles, 0);
        tree.remote(&host, "rport-5:0-1", ("0x2100000000000a01", "0x2000000000000a01"), "FCP Initiator", -1);
        tree.unit(&base, "5:0:0:0", 0, &[("block", "sdb"), ("scsi_generic", "sg1"), ("bsg", "5:0:0:0")]);
        let unit = tree.unit(
            &target,
            "8:0:0:0",
            0,
            &[("block", "sdc"), ("scsi_generic", "sg2"), ("bsg", "8:0:0:0")],
        );
        tree.file(&format!("sys/{unit}/wwid"), "naa.60060160a1b2c3d4e5f60718293a4b5c\n");
        tree.file(&format!("sys/{unit}/block/sdc/size"), "2097152\n");
        tree.unit(&target, "8:0:0:16897", 0, &[("scsi_generic", "sg3")]);
        let tape = tree.unit(&target, "8:0:0:27", 1, &[("scsi_generic", "sg4")]);
        for node in ["st0", "st0a", "nst0"] {
            tree.file(&format!("sys/{tape}/scsi_tape/{node}/dev"), "9:0\n");
        }
        tree.link(
            "dev/disk/by-path/pci-0000:10:00.0-vport-0x2100000000000a01-fc-0x5006016044602198-lun-0",
            "../../sdc",
        );
        tree.link("dev/disk/by-id/wwn-0x60060160a1b2c3d4e5f60718293a4b5c", "../../sdc");
        // What has nothing to do with it.
        tree.unit("devices/pci0000:00/0000:00:1f.2/ata1/host0", "0:0:0:0", 0, &[("block", "sda")]);
        tree
    }

    /// Two ports of a QLogic adapter, one of which has all the virtual ports that it may have.
    pub fn qla2xxx() -> Self {
        let tree = Self::new();
        let port = |number, wwpn, wwnn, npiv| Port {
            number,
            wwpn,
            wwnn,
            state: "Online",
            kind: NPORT,
            driver: "qla2xxx",
            npiv: Some(npiv),
        };
        tree.host(PCI, &port(3, "0x2100001b32a9da4e", "0x2000001b32a9da4e", (254, 254)));
        let other = "devices/pci0000:00/0000:00:04.0/0000:10:00.1";
        tree.host(other, &port(4, "0x2101001b32a9da4e", "0x2001001b32a9da4e", (254, 0)));
        tree
    }

    /// Fibre Channel over Ethernet, on an interface that is no device.
    pub fn fcoe() -> Self {
        let tree = Self::new();
        let port = Port {
            number: 1,
            wwpn: "0x200002aa00000001",
            wwnn: "0x100002aa00000001",
            state: "Online",
            kind: NPORT,
            driver: "fcoe",
            npiv: Some((65535, 0)),
        };
        tree.host("devices/virtual/net/fi0/ctlr_1", &port);
        tree
    }

    /// A subchannel of IBM Z, to which the machine gives a virtual port.
    pub fn zfcp() -> Self {
        let tree = Self::new();
        let port = Port {
            number: 0,
            wwpn: "0xc05076fffb001230",
            wwnn: "0x5005076400c12345",
            state: "Online",
            kind: "NPIV VPORT",
            driver: "zfcp",
            npiv: None,
        };
        let host = tree.host("devices/css0/0.0.0017/0.0.1900", &port);
        tree.file(&format!("sys/{host}/fc_host/host0/permanent_port_name"), "0xc05076fffb001900\n");
        let names = ("0x500507630300c562", "0x5005076303ffc562");
        let target = tree.remote(&host, "rport-0:0-0", names, "FCP Target", 0);
        tree.unit(&target, "0:0:0:1074413584", 0, &[("block", "sda"), ("scsi_generic", "sg0")]);
        tree
    }
}
