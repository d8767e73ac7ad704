use super::*;

const WWPN: &str = "naa.5001405a1b2c3d4e";

/// What the kernel's one answer means, by what is configured.
#[test]
fn a_target_that_cannot_be_had_is_named_with_the_reason() {
    let targets = tempfile::tempdir().unwrap();
    let said = || diagnosis(targets.path(), WWPN).replace(&targets.path().display().to_string(), TARGETS);
    let at = "/sys/kernel/config/target/vhost/naa.5001405a1b2c3d4e";
    assert_eq!(
        said(),
        format!(
            "the host's kernel has no such target: {at} does not exist; make it there, or with targetcli (/vhost create {WWPN})"
        )
    );
    let group = targets.path().join(WWPN).join("tpgt_1");
    fs::create_dir_all(group.parent().unwrap()).unwrap();
    assert_eq!(said(), format!("{at} has no portal group; make {at}/tpgt_1"));
    fs::create_dir(&group).unwrap();
    let alone = format!("{at}/tpgt_1/nexus has no initiator; write a name such as {WWPN} to it");
    assert_eq!(said(), alone);
    fs::write(group.join("nexus"), "\n").unwrap();
    assert_eq!(said(), alone);
    fs::write(group.join("nexus"), "naa.5001405000000001\n").unwrap();
    assert_eq!(said(), format!("another machine has this target ({at}); each needs one of its own"));
    fs::create_dir(group.with_file_name("tpgt_0")).unwrap();
    let names = |all: [&str; 1]| all.map(str::to_owned).to_vec();
    assert_eq!(groups(&targets.path().join(WWPN)), (names(["tpgt_1"]), names(["tpgt_0"])));
    let other = diagnosis(targets.path(), "iqn.2003-01.org.linux-iscsi:x");
    assert!(other.ends_with("does not exist; make it there"), "targetcli does not make it: {other}");
}

#[test]
fn a_device_that_cannot_be_opened_says_what_to_do() {
    for (number, said) in [
        (libc::ENOENT, "load the module vhost_scsi"),
        (libc::ENODEV, "load the module vhost_scsi"),
        (libc::EACCES, "permission denied; give the device"),
        (libc::EPERM, "DeviceAllow=/dev/vhost-scsi rw"),
        (libc::EMFILE, "cannot open: "),
    ] {
        let line = cannot_open(io::Error::from_raw_os_error(number)).to_string();
        assert!(line.starts_with("/dev/vhost-scsi: ") && line.contains(said), "{number}: {line}");
    }
}

/// The kernel looks at addresses of this process, so that a ring has to be RAM of the guest from its first byte to its last.
#[test]
fn rings_are_in_ram_as_a_whole() {
    let ranges = [(GuestAddress(0), 0x1_0000), (GuestAddress(0x2_0000), 0x1_0000)];
    let ram = Arc::new(GuestRam::from_ranges(&ranges).unwrap());
    let device = tempfile::tempfile().unwrap();
    let vhost = Vhost { device, ram, id: "lio0".into(), wwpn: WWPN.into(), queues: 3, features: 0 };
    let valid = |size, desc, driver, device| {
        vhost.is_valid(&VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr: desc,
            used_ring_addr: device,
            avail_ring_addr: driver,
            log_addr: None,
        })
    };
    assert!(valid(256, 0x1000, 0x2000, 0x3000));
    // Up to the last byte: 4096, 518 and 2054 of them.
    assert!(valid(256, 0xf000, 0x2_fdfa, 0x2_f7fa));
    assert!(!valid(256, 0xf010, 0x2000, 0x3000));
    assert!(!valid(256, 0x1000, 0x2_fdfc, 0x3000));
    assert!(!valid(256, 0x1000, 0x2000, 0x2_f7fc));
    assert!(!valid(256, 0x1_8000, 0x2000, 0x3000), "the hole");
    assert!(!valid(256, u64::MAX - 15, 0x2000, 0x3000));
    assert!(!valid(0, 0x1000, 0x2000, 0x3000) && !valid(3, 0x1000, 0x2000, 0x3000));
}
