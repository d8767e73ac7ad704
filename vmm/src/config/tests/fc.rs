//! `[hba.fc]`: what it means, and what can be wrong with it.

use ::fc::Wwn;
use ::fc::choose::Rules;
use ::fc::names::Names;

use super::*;

const HBA: &str = "[vm]\nname = \"web\"\nmemory = \"1GiB\"\n[boot]\nkernel = \"vmlinuz\"\n[[hba]]\nid = \"fc0\"\n[hba.fc]\n";

/// The port of a file with these lines in `[hba.fc]`, of which the first is line 9.
fn port(lines: &str) -> Fc {
    let (_fixture, config) = good(&format!("{HBA}{lines}"), &[]);
    config.hbas[0].fc.clone().unwrap()
}

#[track_caller]
fn refused(lines: &str, expected: &[&str]) {
    assert_eq!(Fixture::new().lines(&format!("{HBA}{lines}\n"), &[]), expected, "{lines}");
}

fn names(wwnn: u64, wwpn: u64) -> Option<Names> {
    Some(Names { wwnn: Wwn::new(wwnn), wwpn: Wwn::new(wwpn) })
}

#[test]
fn a_virtual_port_needs_no_key() {
    let Fc::Virtual(port) = port("") else { panic!() };
    let expected = VirtualPort {
        rules: Rules::default(),
        names: None,
        any_oui: false,
        secondary: None,
        vports: None,
        dev_loss_tmo: None,
        fast_io_fail_tmo: 5,
        luns: Vec::new(),
        passthrough: Passthrough::Block,
        allow: Allow::NoManagement,
        shared: false,
        bounce: false,
        timeout: 30,
    };
    assert_eq!(port, expected);
    let (_fixture, config) = good(HBA, &[]);
    assert!(config.security.host_devices, "commands are sent to what is behind it");
    assert_eq!(fc_owner(&config.vm.name, &config.hbas[0].id), "web.fc0");
}

/// At these registers no driver is offered anything of a port.
#[test]
fn legacy_registers_show_no_port() {
    let warnings = |line: &str| {
        let (_fixture, config) = good(&HBA.replace("[hba.fc]", &format!("{line}\n[hba.fc]")), &[]);
        crate::config::fc::warnings(&config.hbas).collect::<Vec<_>>()
    };
    for line in ["", "interface = \"modern\"", "interface = \"transitional\""] {
        assert_eq!(warnings(line), [""; 0]);
    }
    let said = warnings("interface = \"legacy\"").concat();
    assert!(said.starts_with("hba fc0: with interface = \"legacy\" no driver is offered"), "{said}");
    let plain = "[vm]\nname = \"web\"\nmemory = \"1GiB\"\n[boot]\nkernel = \"vmlinuz\"\n[[hba]]\ninterface = \"legacy\"\n";
    let (_fixture, config) = good(plain, &[]);
    assert_eq!(crate::config::fc::warnings(&config.hbas).count(), 0, "it has no port");
}

#[test]
fn every_key_of_a_virtual_port() {
    let lines = "parent_wwnn = \"20:00:00:10:9b:aa:bb:05\"\nparent_wwpn = \"0x100000109baabb05\"\nwwnn = \"2000020000000001\"\n\
                 wwpn = \"21-00-02-00-00-00-00-01\"\nsecondary_wwnn = \"2000020000000001\"\nsecondary_wwpn = \"2101020000000001\"\n\
                 dev_loss_tmo = 60\nfast_io_fail_tmo = 0\nluns = \"0-63, 513,0x0001000200000000\"\npassthrough = \"generic\"\n\
                 allow = \"all\"\nshared = true\nbounce = true\ntimeout = 90\n";
    let expected = VirtualPort {
        rules: Rules {
            parent_wwnn: Some(Wwn::new(0x2000_0010_9baa_bb05)),
            parent_wwpn: Some(Wwn::new(0x1000_0010_9baa_bb05)),
            ..Rules::default()
        },
        names: names(0x2000_0200_0000_0001, 0x2100_0200_0000_0001),
        any_oui: false,
        secondary: names(0x2000_0200_0000_0001, 0x2101_0200_0000_0001),
        vports: None,
        dev_loss_tmo: Some(60),
        fast_io_fail_tmo: 0,
        luns: vec![(0, 63), (513, 513), (0x0001_0002_0000_0000, 0x0001_0002_0000_0000)],
        passthrough: Passthrough::Generic,
        allow: Allow::All,
        shared: true,
        bounce: true,
        timeout: 90,
    };
    assert_eq!(port(lines), Fc::Virtual(expected));
    for (line, rules) in [
        ("parent = \"0000:10:00.0\"", Rules { parent: Some("0000:10:00.0".into()), ..Rules::default() }),
        (
            "parent_fabric = \"100000fcf0000001\"",
            Rules { parent_fabric: Some(Wwn::new(0x1000_00fc_f000_0001)), ..Rules::default() },
        ),
    ] {
        let Fc::Virtual(port) = port(line) else { panic!("{line}") };
        assert_eq!(port.rules, rules);
    }
    // Others than the default are allowed by either key.
    assert!(matches!(
        port("any_oui = true\nwwnn = \"5006016044602190\"\nwwpn = \"5006016044602199\""),
        Fc::Virtual(_)
    ));
}

#[test]
fn an_emulated_fabric_has_a_port_for_each_target() {
    let of = |more: &str| port(&format!("emulated = true\n{more}"));
    let emulated = |ports| Fc::Emulated(EmulatedPort { names: None, secondary: None, vports: None, ports });
    assert_eq!(of(""), emulated(1));
    assert_eq!(of("ports = 4"), emulated(4));
    assert_eq!(of("[[hba.lun]]\nimage = \"a.img\"\n[[hba.lun]]\nimage = \"b.img\""), emulated(2));
    let (fixture, config) =
        good(&format!("{HBA}emulated = true\n[[hba.lun]]\ntarget = 2\nlun = 513\nimage = \"a.img\""), &[]);
    assert_eq!(config.hbas[0].fc, Some(emulated(3)));
    assert!(!config.security.host_devices);
    drop(fixture);
    refused(
        "emulated = true\nports = 2\n[[hba.lun]]\ntarget = 2\nimage = \"a.img\"",
        &["vm.toml:10: `ports` in [hba.fc] is 2, expected 3 at least: each target of the units is a port"],
    );
}

#[test]
fn before_anything_is_checked_it_is_known_who_needs_ports() {
    let needs = |lines: &str| {
        let fixture = Fixture::new();
        fs::write(fixture.path("vm.toml"), format!("{HBA}{lines}")).unwrap();
        Source::read(&fixture.path("vm.toml"), &[]).has_virtual_ports()
    };
    assert!(needs("") && needs("emulated = false") && needs("emulated = 7"));
    assert!(!needs("emulated = true"));
    let fixture = Fixture::new();
    fs::write(fixture.path("vm.toml"), SMALLEST).unwrap();
    assert!(!Source::read(&fixture.path("vm.toml"), &[]).has_virtual_ports());
    let set = ["hba.0.fc.parent=host5".to_owned()];
    assert!(Source::read(&fixture.path("vm.toml"), &set).has_virtual_ports());
}

#[test]
fn names_come_in_twos_and_are_those_of_ports() {
    refused(
        "wwpn = \"2100020000000001\"",
        &["vm.toml:9: `wwpn` in [hba.fc]: a port has two names; expected `wwnn` as well, or neither"],
    );
    refused(
        "secondary_wwnn = \"2100020000000001\"",
        &[
            "vm.toml:9: `secondary_wwnn` in [hba.fc]: a port has two names; expected `secondary_wwpn` as well, or neither",
        ],
    );
    for value in ["\"20:00\"", "2100020000000001", "true"] {
        refused(
            &format!("parent_wwpn = {value}"),
            &[&format!(
                "vm.toml:9: `parent_wwpn` in [hba.fc] is {value}, expected 16 hexadecimal digits such as \"2100001b32a9da4e\" or \
                 \"21:00:00:1b:32:a9:da:4e\""
            )],
        );
    }
    refused(
        "wwnn = \"2000020000000001\"\nwwpn = \"0000000000000000\"",
        &[
            "vm.toml:10: `wwpn` in [hba.fc]: WWPN 0000000000000000 is all zeros, which is no name; leave the names out, and they are \
           made",
        ],
    );
    refused(
        "wwnn = \"2000001b32000001\"\nwwpn = \"2100020000000001\"",
        &[
            "vm.toml:9: `wwnn` in [hba.fc]: WWNN 2000001b32000001 is of 001b32 (QLogic), whose hardware has such names, and two \
           ports of one name would break both; leave the names out, and they are made, or say any_oui = true if it is yours to \
           give",
        ],
    );
    refused(
        "wwnn = \"2000020000000001\"\nwwpn = \"2100020000000001\"\nsecondary_wwnn = \"2000020000000001\"\nsecondary_wwpn = \
         \"2100020000000001\"",
        &[
            "vm.toml:12: `secondary_wwpn` in [hba.fc]: is the first name of the port as well; expected another one, or none",
        ],
    );
    refused(
        "wwnn = \"2000020000000001\"\nwwpn = \"2100020000000001\"\n[[hba]]\n[hba.fc]\nwwnn = \"2000020000000001\"\nwwpn = \
         \"2100020000000001\"",
        &["vm.toml:14: `wwpn` in [hba.fc] is \"2100020000000001\", which the [hba.fc] of line 8 has already"],
    );
}

#[test]
fn one_way_to_choose_the_port() {
    let second = "is a second way to choose the port of the host; expected `parent`, or its names (`parent_wwnn`, `parent_wwpn`), \
                  or `parent_fabric`";
    refused(
        "parent = \"host5\"\nparent_wwpn = \"2100001b32a9da4e\"\nparent_fabric = \"100000fcf0000001\"",
        &[
            &format!("vm.toml:10: `parent_wwpn` in [hba.fc]: {second}"),
            &format!("vm.toml:11: `parent_fabric` in [hba.fc]: {second}"),
        ],
    );
    refused(
        "parent = \"\"",
        &["vm.toml:9: `parent` in [hba.fc] is \"\", expected text without control characters"],
    );
}

#[test]
fn timeouts_are_those_that_the_kernel_takes() {
    let fast = "`fast_io_fail_tmo` in [hba.fc]";
    refused(
        "fast_io_fail_tmo = 20\ndev_loss_tmo = 20",
        &[&format!("vm.toml:9: {fast} is 20, expected less than the 20 s of `dev_loss_tmo`")],
    );
    refused(
        "dev_loss_tmo = 5",
        &[
            "vm.toml:9: `dev_loss_tmo` in [hba.fc] is 5, expected more than 5 s, after which commands fail (`fast_io_fail_tmo`), or \
           less there",
        ],
    );
    refused(
        "fast_io_fail_tmo = 30",
        &[&format!(
            "vm.toml:9: {fast} is 30, expected `dev_loss_tmo` as well, which is more: drivers give a port up after 30 s or later"
        )],
    );
    refused(
        "fast_io_fail_tmo = 601",
        &[&format!("vm.toml:9: {fast} is 601, expected an integer from 0 to 600")],
    );
    refused(
        "dev_loss_tmo = 0",
        &["vm.toml:9: `dev_loss_tmo` in [hba.fc] is 0, expected an integer from 1 to 2147483647"],
    );
    refused("timeout = 0", &["vm.toml:9: `timeout` in [hba.fc] is 0, expected an integer from 1 to 3600"]);
}

#[test]
fn lists_of_units() {
    for text in ["", "63-0", "5-", "-5", "0x", "a", "+5", "1,,2", "0x10001000200030004"] {
        if text.is_empty() {
            refused(
                "luns = \"\"",
                &["vm.toml:9: `luns` in [hba.fc] is \"\", expected text without control characters"],
            );
            continue;
        }
        refused(
            &format!("luns = \"{text}\""),
            &[&format!(
                "vm.toml:9: `luns` in [hba.fc] is \"{text}\", expected numbers of LUNs such as \"0-63,513\", those of several levels \
                 with all their 16 digits: \"0x0001000200000000\""
            )],
        );
    }
}

#[test]
fn what_belongs_to_the_other_kind() {
    refused(
        "emulated = true\nparent = \"host5\"\nallow = \"all\"\ntimeout = 5",
        &[
            "vm.toml:10: `parent` in [hba.fc] has no meaning with emulated = true",
            "vm.toml:11: `allow` in [hba.fc] has no meaning with emulated = true",
            "vm.toml:12: `timeout` in [hba.fc] has no meaning with emulated = true",
        ],
    );
    refused("ports = 2", &["vm.toml:9: `ports` in [hba.fc] has no meaning without emulated = true"]);
    refused(
        "[[hba.lun]]\nimage = \"a.img\"",
        &[
            "vm.toml:9: [[hba.lun]] at an [[hba]] with a virtual port, which has the units that the array shows it; expected them at \
           another [[hba]], or emulated = true in [hba.fc]",
        ],
    );
    let board = HBA.replace("id = \"fc0\"", "type = \"megasas\"");
    assert_eq!(
        Fixture::new().lines(&board, &[]),
        [
            "vm.toml:8: `fc` in [[hba]]: a MegaRAID SAS board has no Fibre Channel port; expected type = \"virtio-scsi\""
        ]
    );
    assert_eq!(
        Fixture::new().lines(&format!("{HBA}[security]\nhost_devices = false"), &[]),
        [
            "vm.toml:10: `host_devices` in [security] is false, but there is a [hba.fc] with a virtual port of the host"
        ]
    );
    let name = HBA.replace("\"web\"", "\"my web\"");
    assert_eq!(
        Fixture::new().lines(&name, &[]),
        [
            "vm.toml:8: [hba.fc]: the port would be known on the host as \"my web.fc0\", which is no name for it; expected `name` in \
          [vm] of letters, digits, dots, dashes and underscores, up to 64 with the `id` of the HBA"
        ]
    );
}

#[test]
fn names_are_stored_under_a_name_that_is_written() {
    let text = HBA.replace("name = \"web\"\n", "");
    assert_eq!(
        Fixture::new().lines(&text, &[]),
        [
            "vm.toml:7: [hba.fc]: the names of the port would be stored as \"vm.fc0\", and a machine of another file with this name had \
             the same port and data; expected `name` in [vm], or `wwnn` and `wwpn` here"
        ]
    );
    // One is enough: a name of the machine, wherever it is written, or those of the port. An emulated fabric stores none.
    good(&text, &["vm.name=web"]);
    good(&format!("{text}wwnn = \"2000020000000001\"\nwwpn = \"2100020000000001\"\n"), &[]);
    good(&format!("{text}emulated = true\n"), &[]);
}

#[test]
fn a_boot_device_may_be_behind_a_virtual_port() {
    let text = HBA.replace("kernel = \"vmlinuz\"", "firmware = \"vmlinuz\"\norder = [\"fc0:1:27\"]");
    good(&text, &[]);
}

#[test]
fn a_guest_may_create_ports_under_names_that_are_listed() {
    let Fc::Virtual(port) = port("vport_names = \"2100020000000001, 2100020000000100-21000200000001ff\"")
    else {
        panic!()
    };
    let allowed = port.vports.unwrap();
    assert_eq!(allowed.most, 4);
    let has = |name| allowed.names.has(Wwn::new(name));
    assert!(has(0x2100_0200_0000_0001) && has(0x2100_0200_0000_01ff) && !has(0x2100_0200_0000_0002));
    let Fc::Emulated(port) = self::port("emulated = true\nvports = 64\nvport_names = \"2100020000000001\"")
    else {
        panic!()
    };
    assert_eq!(port.vports.unwrap().most, 64);
}

#[test]
fn what_a_guest_may_create_is_written_whole() {
    refused(
        "vports = 4",
        &[
            "vm.toml:9: `vports` in [hba.fc]: the guest may create no port as long as it may have no name; expected `vport_names` as well",
        ],
    );
    refused(
        "vports = 0\nvport_names = \"2100020000000001\"",
        &["vm.toml:9: `vports` in [hba.fc] is 0, expected an integer from 1 to 64"],
    );
    refused(
        "vport_names = \"web\"",
        &[
            "vm.toml:9: `vport_names` in [hba.fc] is \"web\", expected names and ranges of names such as \"2100020000000001, \
           2100020000000100-21000200000001ff\"",
        ],
    );
    refused(
        "vport_names = \"6000020000000001\"",
        &[
            "vm.toml:9: `vport_names` in [hba.fc]: 6000020000000001 begins with 6, which is the first half of a name of 16 bytes, as \
           logical units have; names of ports begin with 1, 2, 3, 5, or c to f",
        ],
    );
    refused(
        "wwnn = \"2000020000000001\"\nwwpn = \"2100020000000001\"\nvport_names = \"2100020000000000-2100020000000009\"",
        &[
            "vm.toml:11: `vport_names` in [hba.fc]: has 2100020000000001 in it, which the [hba.fc] of line 8 has for its own port; \
           expected a list without it",
        ],
    );
}
