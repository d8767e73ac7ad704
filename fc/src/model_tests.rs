use super::*;
use crate::address::Lun;
use crate::testing::Tree;

#[test]
fn an_adapter_of_emulex_with_a_virtual_port() {
    let tree = Tree::lpfc();
    let san = San::read(&tree.roots());
    let numbers: Vec<u32> = san.hosts.iter().map(|host| host.number).collect();
    assert_eq!(numbers, [5, 6, 8]);
    let host = san.host(5).unwrap();
    let wanted = Host {
        number: 5,
        vport: None,
        wwpn: Some(Wwn::new(0x1000_0000_c9aa_bb05)),
        wwnn: Some(Wwn::new(0x2000_0000_c9aa_bb05)),
        permanent_wwpn: None,
        fabric: Some(Wwn::new(0x1000_00fc_f000_0001)),
        port_id: Some(0x01_0105),
        state: "Online".into(),
        kind: "NPort (fabric via point-to-point)".into(),
        speed: "16 Gbit".into(),
        supported_speeds: "4 Gbit, 8 Gbit, 16 Gbit".into(),
        symbolic_name: "an adapter".into(),
        dev_loss_tmo: Some(60),
        npiv: Some(Npiv { max: 64, in_use: 1 }),
        driver: "lpfc".into(),
        parent: Some("0000:10:00.0".into()),
        directory: fs::canonicalize(tree.path(&format!("sys/{}/host5", crate::testing::PCI))).unwrap(),
    };
    assert_eq!(*host, wanted);
    let other = san.host(6).unwrap();
    assert_eq!(
        (other.port_id, other.is_online(), other.parent.as_deref()),
        (None, false, Some("0000:10:00.1"))
    );
    // The host of the virtual port: of the same adapter, and it creates none.
    let own = san.host(8).unwrap();
    assert_eq!(
        (own.vport.as_deref(), own.npiv, own.parent.as_deref()),
        (Some("vport-5:0-0"), None, Some("0000:10:00.0"))
    );

    let [vport] = &san.vports[..] else { panic!("{:?}", san.vports) };
    assert_eq!((&*vport.name, vport.parent, vport.host), ("vport-5:0-0", 5, Some(8)));
    assert_eq!(vport.wwpn, Some(Wwn::new(0x2100_0000_0000_0a01)));
    assert_eq!(vport.wwnn, Some(Wwn::new(0x2000_0000_0000_0a01)));
    assert_eq!((&vport.state, vport.last_state.as_ref()), (&VportState::Active, Some(&VportState::Unknown)));
    assert_eq!((&*vport.kind, &*vport.roles, &*vport.symbolic_name), ("NPIV VPORT", "FCP Initiator", ""));
    assert_eq!(san.vport(Wwn::new(0x2100_0000_0000_0a01)), Some(vport));

    let remotes: Vec<_> =
        san.remotes_of(8).map(|remote| (&*remote.name, remote.target, remote.is_target())).collect();
    assert_eq!(remotes, [("rport-8:0-0", Some(0), true), ("rport-8:0-1", Some(1), true)]);
    let initiator = san.remotes_of(5).find(|remote| remote.name == "rport-5:0-1").unwrap();
    assert_eq!((initiator.target, initiator.is_target(), initiator.fast_io_fail_tmo), (None, false, None));
    assert_eq!(
        (initiator.port_id, initiator.dev_loss_tmo, &*initiator.state),
        (Some(0x01_0201), Some(60), "Online")
    );
}

#[test]
fn units_are_behind_their_remote_ports_with_their_nodes() {
    let tree = Tree::lpfc();
    let san = San::read(&tree.roots());
    assert_eq!(san.units_of(0).count(), 0, "a disk of another kind of host");
    let units: Vec<String> = san.units_of(8).map(|unit| unit.address.to_string()).collect();
    assert_eq!(units, ["8:0:0:0", "8:0:0:27", "8:0:0:16897"]);
    let disk = san.units_of(8).next().unwrap();
    assert_eq!(san.remote_of(disk).unwrap().wwpn, Some(Wwn::new(0x5006_0160_4460_2198)));
    assert_eq!(
        (&*disk.vendor, &*disk.model, &*disk.revision, &*disk.state),
        ("ACME", "Array", "4.02", "running")
    );
    assert_eq!(disk.wwid.as_deref(), Some("naa.60060160a1b2c3d4e5f60718293a4b5c"));
    assert_eq!(
        (disk.block.as_deref(), disk.sg.as_deref(), disk.bsg.as_deref()),
        (Some("sdc"), Some("sg2"), Some("8:0:0:0"))
    );
    assert_eq!((disk.bytes, disk.device_type, disk.tape.as_deref()), (Some(1 << 30), Some(0), None));
    assert_eq!(
        disk.links,
        [
            "/dev/disk/by-path/pci-0000:10:00.0-vport-0x2100000000000a01-fc-0x5006016044602198-lun-0",
            "/dev/disk/by-id/wwn-0x60060160a1b2c3d4e5f60718293a4b5c"
        ]
    );
    let tape = san.units_of(8).nth(1).unwrap();
    assert_eq!((tape.device_type, tape.tape.as_deref(), tape.bytes), (Some(1), Some("st0"), None));
    assert_eq!(san.units_of(8).nth(2).unwrap().address.lun.flat(), Some(513));
}

#[test]
fn ports_of_other_drivers() {
    let san = San::read(&Tree::qla2xxx().roots());
    let npiv: Vec<_> = san.hosts.iter().map(|host| (&*host.driver, host.npiv.unwrap())).collect();
    assert_eq!(
        npiv,
        [("qla2xxx", Npiv { max: 254, in_use: 254 }), ("qla2xxx", Npiv { max: 254, in_use: 0 })]
    );

    let tree = Tree::fcoe();
    tree.file("sys/class/fc_host/host1/supported_speeds", "unknown\n");
    let san = San::read(&tree.roots());
    let host = &san.hosts[0];
    assert_eq!((&*host.speed, &*host.supported_speeds), ("16 Gbit", ""));
    assert_eq!((&*host.driver, host.parent.as_deref(), host.npiv.is_some()), ("fcoe", Some("fi0"), true));

    let san = San::read(&Tree::zfcp().roots());
    let host = &san.hosts[0];
    assert_eq!((&*host.driver, host.parent.as_deref(), host.npiv), ("zfcp", Some("0.0.1900"), None));
    assert_eq!((host.vport.as_deref(), host.permanent_wwpn), (None, Some(Wwn::new(0xc050_76ff_fb00_1900))));
    let unit = &san.units[0];
    // As the array counts it: 4010400a00000000.
    assert_eq!(unit.address.lun, Lun::from_bytes([0x40, 0x10, 0x40, 0x0a, 0, 0, 0, 0]));
    assert_eq!(unit.remote.as_deref(), Some("rport-0:0-0"));
}

/// bfa gives its hosts no name: it is its device's.
#[test]
fn a_driver_without_a_name_is_that_of_the_device() {
    let tree = Tree::qla2xxx();
    tree.file("sys/class/scsi_host/host3/proc_name", "<NULL>\n");
    tree.link(&format!("sys/{}/driver", crate::testing::PCI), "../../../../bus/pci/drivers/bfa");
    tree.file("sys/class/scsi_host/host4/proc_name", "(null)\n");
    let san = San::read(&tree.roots());
    assert_eq!((&*san.hosts[0].driver, &*san.hosts[1].driver), ("bfa", ""));
}

#[test]
fn nonsense_and_what_is_missing_are_normal() {
    assert!(San::read(&Tree::new().roots()).hosts.is_empty());
    let tree = Tree::lpfc();
    for file in
        ["port_name", "node_name", "port_state", "max_npiv_vports", "npiv_vports_inuse", "port_id", "speed"]
    {
        tree.file(&format!("sys/class/fc_host/host5/{file}"), "0xffffffffffffffffffffffffffff\n");
        fs::remove_file(tree.path(&format!("sys/class/fc_host/host6/{file}"))).unwrap();
    }
    for file in ["scsi_target_id", "dev_loss_tmo", "fast_io_fail_tmo", "port_id", "port_name", "roles"] {
        tree.file(&format!("sys/class/fc_remote_ports/rport-8:0-0/{file}"), "-99999999999999999999\n");
    }
    tree.file("sys/class/fc_vports/vport-5:0-0/vport_state", "Asleep\x1b[2J\n");
    tree.file("sys/class/scsi_device/8:0:0:0/device/type", "256\n");
    tree.file("sys/class/scsi_device/8:0:0:0/device/block/sdc/size", "18446744073709551615\n");
    // Names that are none, and a device that has just gone.
    tree.file("sys/class/fc_host/hostx/port_name", "");
    tree.file("sys/class/fc_host/host4294967296/port_name", "");
    tree.file("sys/class/fc_vports/vport-5/port_name", "");
    tree.link("sys/class/fc_host/host7", "/no/such/place");
    tree.link("sys/class/scsi_device/8:0:0:99", "/no/such/place");
    let san = San::read(&tree.roots());
    let host = san.host(5).unwrap();
    assert_eq!((host.wwpn, host.wwnn, host.port_id, host.npiv), (None, None, None, Some(Npiv::default())));
    let host = san.host(6).unwrap();
    assert_eq!((host.wwpn, &*host.state, host.npiv), (None, "", Some(Npiv::default())));
    let remote = san.remotes_of(8).next().unwrap();
    assert_eq!((remote.target, remote.dev_loss_tmo, remote.port_id, remote.wwpn), (None, None, None, None));
    assert_eq!(san.vports[0].state, VportState::Other("Asleep [2J".into()));
    assert_eq!(san.vports[0].state.word(), "Asleep [2J");
    let unit = san.units_of(8).next().unwrap();
    assert_eq!((unit.device_type, unit.bytes), (None, None));
    assert_eq!(san.hosts.len(), 3);
}

#[test]
fn states_have_the_kernels_words() {
    for (word, state) in STATES {
        assert_eq!(state.word(), word);
    }
}
