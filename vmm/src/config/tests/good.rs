//! Files that mean a machine.

use hba_megasas::Difference;

use super::*;

#[test]
fn the_smallest_file_has_every_default() {
    let (fixture, config) = good(SMALLEST, &[]);
    let image = fixture.path("a.img");
    assert_eq!(
        config,
        Config {
            vm: Vm {
                name: "vm".into(),
                cpus: 1,
                memory: 1_073_741_824,
                uuid: None,
                smbios: Smbios::default(),
                huge_pages: None,
                shared_memory: false,
                hyperv: false,
                rtc: RtcBase::Utc,
                on_reset: Restart::Restart,
                on_crash: Restart::Restart,
                shutdown_timeout: std::time::Duration::from_secs(30),
            },
            boot: Boot::Kernel { kernel: fixture.path("vmlinuz"), initrd: None, cmdline: String::new() },
            debug_log: None,
            serial: Serial::Stdio,
            control: None,
            security: Security {
                host_devices: false,
                sandbox: Sandbox::On,
                directories: vec![],
                readonly_directories: vec![],
                user: None
            },
            directory: fixture.path(""),
            own: vec![
                Own { what: "configuration file".into(), path: fixture.path("vm.toml"), read: true },
                Own {
                    what: "`kernel` in [boot] of line 4".into(),
                    path: fixture.path("vmlinuz"),
                    read: true
                },
            ],
            hbas: vec![Hba {
                id: "hba0".into(),
                controller: Controller::VirtioScsi(VirtioScsi::with_queues(1)),
                threads: IoThreads { count: 1, polling: Polling::Auto, polling_us: 50, cpus: vec![] },
                fc: None,
                luns: vec![Lun {
                    target: 0,
                    lun: 0,
                    device: Device::Disk(Disk {
                        image,
                        format: Format::Raw,
                        backing: devices::storage::Backing::SameDirectory,
                        cache: Cache::Writeback,
                        bounce: false,
                        read_only: false,
                        identity: Identity::default(),
                        block_size: 512,
                        physical_block_size: None,
                        rotation_rate: 0,
                        discard: false,
                        on_no_space: NoSpace::Report,
                        throttle: None,
                        protection: None,
                    }),
                }],
            }],
        }
    );
    assert_eq!(config.summary(), "vm: 1 vCPU, 1GiB, 1 HBA, 1 logical unit");
}

#[test]
fn every_supported_key_is_read() {
    let text = r#"
        [vm]
        name = "deb13"
        cpus = 4
        memory = 1073741824
        uuid = "123E4567-e89b-12d3-a456-426614174000"
        hugepages = "2MiB"
        rtc = "localtime"
        shared_memory = true
        on_reset = "exit"
        on_crash = "exit"
        shutdown_timeout = 5
        [boot]
        kernel = "vmlinuz"
        initrd = "initrd"
        cmdline = "console=ttyS0 root=/dev/sda rw"
        [serial]
        mode = "file"
        path = "serial.log"
        [[hba]]
        id = "scsi0"
        type = "virtio-scsi"
        queues = 2
        queue_size = 1024
        interface = "transitional"
        io_threads = 2
        io_cpus = "0-1,3"
        polling = "adaptive"
        polling_us = 80
        [[hba.lun]]
        target = 7
        lun = 300
        type = "disk"
        image = "d.qcow2"
        format = "raw"
        cache = "directsync"
        bounce = true
        readonly = true
        serial = "S3R1AL"
        wwn = "0x5000c500a1b2c3d4"
        vendor = "ACME"
        product = "FAST DISK"
        revision = "1.0"
        block_size = 4096
        physical_block_size = 8192
        rotation_rate = 7200
        discard = "unmap"
        on_no_space = "report"
        throttle = { iops = 500, bps_write = "100MiB", burst_seconds = 3 }
        protection = 3
        protection_image = "d.pi"
        [control]
        path = "control.sock"
    "#;
    let (fixture, config) = good(text, &[]);
    assert_eq!(config.control, Some(fixture.path("control.sock")));
    assert_eq!(
        config.hbas[0].threads,
        IoThreads { count: 2, polling: Polling::Adaptive, polling_us: 80, cpus: vec![0, 1, 3] }
    );
    assert_eq!(config.vm.name, "deb13");
    assert_eq!((config.vm.cpus, config.vm.memory), (4, 1 << 30));
    let uuid = config.vm.uuid.unwrap();
    assert_eq!(uuid.0, *b"\x12\x3e\x45\x67\xe8\x9b\x12\xd3\xa4\x56\x42\x66\x14\x17\x40\x00");
    assert_eq!(uuid.to_string(), "123e4567-e89b-12d3-a456-426614174000");
    assert_eq!(config.vm.huge_pages, Some(2_097_152));
    assert!(config.vm.shared_memory);
    assert_eq!(config.vm.rtc, RtcBase::LocalTime);
    assert_eq!((config.vm.on_reset, config.vm.on_crash), (Restart::Exit, Restart::Exit));
    assert_eq!(config.vm.shutdown_timeout.as_secs(), 5);
    assert_eq!(
        config.boot,
        Boot::Kernel {
            kernel: fixture.path("vmlinuz"),
            initrd: Some(fixture.path("initrd")),
            cmdline: "console=ttyS0 root=/dev/sda rw".into(),
        }
    );
    assert_eq!(config.serial, Serial::File(fixture.path("serial.log")));
    let hba = &config.hbas[0];
    let virtio = VirtioScsi { queues: 2, queue_size: 1024, interface: VirtioInterface::Transitional };
    assert_eq!((hba.id.as_str(), &hba.controller), ("scsi0", &Controller::VirtioScsi(virtio)));
    assert_eq!((hba.luns[0].target, hba.luns[0].lun), (7, 300));
    let disk = Disk {
        image: fixture.path("d.qcow2"),
        format: Format::Raw,
        backing: devices::storage::Backing::SameDirectory,
        cache: Cache::Directsync,
        bounce: true,
        read_only: true,
        identity: Identity {
            vendor: Some("ACME".into()),
            product: Some("FAST DISK".into()),
            revision: Some("1.0".into()),
            serial: Some("S3R1AL".into()),
            wwn: Some(0x5000_c500_a1b2_c3d4),
        },
        block_size: 4096,
        physical_block_size: Some(8192),
        rotation_rate: 7200,
        discard: true,
        on_no_space: NoSpace::Report,
        throttle: Some(Throttle {
            iops: Some(500),
            bps_write: Some(100 << 20),
            burst_seconds: Some(3),
            ..Throttle::default()
        }),
        protection: Some(Protection { type_3: true, image: fixture.path("d.pi") }),
    };
    assert_eq!(hba.luns[0].device, Device::Disk(disk));
    assert_eq!(config.summary(), "deb13: 4 vCPUs, 1GiB, 1 HBA, 1 logical unit");
}

#[test]
fn defaults_depend_on_what_is_written() {
    let more = "cache = \"none\"\n[[hba.lun]]\nimage = \"b.img\"\ndiscard = true\n[[hba.lun]]\ntarget = 1\nlun = 3\n\
                image = \"c.img\"\n[[hba]]\nid = \"hba0\"\n[[hba]]\n[[hba.lun]]\nimage = \"b.img\"";
    let (_fixture, config) = good(&format!("{SMALLEST}{more}"), &["vm.cpus=3"]);
    let addresses: Vec<_> = config.hbas[0].luns.iter().map(|lun| (lun.target, lun.lun)).collect();
    assert_eq!(addresses, [(0, 0), (2, 0), (1, 3)], "the next free target is none that is written");
    let ids: Vec<_> = config.hbas.iter().map(|hba| hba.id.as_str()).collect();
    assert_eq!(ids, ["hba1", "hba0", "hba2"], "a default id is none that is written");
    for hba in &config.hbas {
        assert_eq!(
            hba.controller,
            Controller::VirtioScsi(VirtioScsi::with_queues(3)),
            "one queue for each vCPU"
        );
    }
    let Device::Disk(disk) = &config.hbas[0].luns[1].device else { panic!() };
    assert!(disk.discard);
}

#[test]
fn disks_of_a_board_bounce_unless_they_are_told_not_to() {
    for (kind, default) in [("virtio-scsi", false), ("megasas", true)] {
        for (line, expected) in [("", default), ("bounce = true", true), ("bounce = false", false)] {
            let text = SMALLEST.replace("[[hba]]", &format!("[[hba]]\ntype = \"{kind}\""));
            let (_fixture, config) = good(&format!("{text}{line}"), &[]);
            let Device::Disk(disk) = &config.hbas[0].luns[0].device else { panic!() };
            assert_eq!(disk.bounce, expected, "{kind} {line}");
        }
    }
}

#[test]
fn every_cache_mode_and_serial_mode_is_read() {
    for (name, cache, direct) in [
        ("none", Cache::None, true),
        ("writeback", Cache::Writeback, false),
        ("writethrough", Cache::Writethrough, false),
        ("directsync", Cache::Directsync, true),
        ("unsafe", Cache::Unsafe, false),
    ] {
        let (_fixture, config) = good(SMALLEST, &[&format!("hba.0.lun.0.cache={name}")]);
        let Device::Disk(disk) = &config.hbas[0].luns[0].device else { panic!() };
        assert_eq!((disk.cache, disk.cache.direct()), (cache, direct));
    }
    let serial = |text: &str| {
        let (fixture, config) = good(&format!("{SMALLEST}[serial]\n{text}"), &[]);
        (config.serial, fixture.path("p"))
    };
    assert_eq!(serial("mode = \"stdio\"").0, Serial::Stdio);
    assert_eq!(serial("mode = \"off\"").0, Serial::Off);
    assert_eq!(serial("mode = \"pty\"").0, Serial::Pty(None));
    let (found, path) = serial("mode = \"pty\"\npath = \"p\"");
    assert_eq!(found, Serial::Pty(Some(path)));
    let (found, path) = serial("mode = \"socket\"\npath = \"p\"");
    assert_eq!(found, Serial::Socket(path));
    assert_eq!(serial("mode = \"file\"\npath = \"/dev/null\"").0, Serial::File("/dev/null".into()));
}

#[test]
fn the_host_is_known() {
    let host = Host::probe();
    assert!(host.memory.unwrap() > 64 << 20);
    assert!(host.huge_pages.iter().all(|(size, _)| size.is_power_of_two()));
}
/// A MegaRAID SAS board of which nothing is written.
fn board() -> Megasas {
    Megasas {
        model: MegasasModel::Gen2,
        mode: MegasasMode::Raid,
        write_policy: WritePolicy::WriteThrough,
        serial: None,
        sas_address: None,
        event_log: None,
        qemu_answers: vec![],
    }
}

#[test]
fn a_board_with_everything() {
    let text = r#"
        [vm]
        memory = "1GiB"
        [boot]
        kernel = "vmlinuz"
        [[hba]]
        type = "megasas"
        serial = "SV12345678"
        sas_address = "500605b012345600"
        write_policy = "write-back"
        event_log = "events"
        qemu_answers = ["init-twice", "after-shutdown"]
        [[hba.lun]]
        image = "a.img"
    "#;
    let (fixture, config) = good(text, &[]);
    let expected = Megasas {
        serial: Some("SV12345678".into()),
        sas_address: Some(0x5006_05b0_1234_5600),
        write_policy: WritePolicy::WriteBack,
        event_log: Some(fixture.path("events")),
        qemu_answers: vec![Difference::InitTwice, Difference::AfterShutdown],
        ..board()
    };
    assert_eq!(config.hbas[0].controller, Controller::Megasas(expected));
}

/// Guests that flush disks may have caches on any image; those that never flush volumes may not.
#[test]
fn disks_of_a_board_may_be_written_back_if_the_administrator_says_so() {
    let text = r#"
        [vm]
        memory = "1GiB"
        [boot]
        kernel = "vmlinuz"
        [[hba]]
        type = "megasas"
        mode = "jbod"
        write_policy = "write-back"
        [[hba.lun]]
        image = "d.qcow2"
    "#;
    let (_fixture, config) = good(text, &[]);
    let expected = Megasas { mode: MegasasMode::Jbod, write_policy: WritePolicy::WriteBack, ..board() };
    assert_eq!(config.hbas[0].controller, Controller::Megasas(expected));
}

/// What is refused is parsed all the same, so that supporting it is one entry of the schema.
#[test]
fn unsupported_parts_are_parsed() {
    let text = r#"
        [vm]
        memory = "1GiB"
        hyperv = true
        [boot]
        firmware = "vmlinuz"
        vars = "initrd"
        order = ["raid0:3", "hba0:1:0"]
        [[hba]]
        id = "raid0"
        type = "megasas"
        model = "1078"
        mode = "jbod"
        [[hba.lun]]
        target = 3
        image = "d.qcow2"
        [[hba]]
        [[hba.lun]]
        type = "cd"
        [[hba.lun]]
        type = "generic"
        image = "/dev/null"
        [[hba.lun]]
        type = "block"
        image = "/dev/null"
        [[hba]]
        type = "megasas"
    "#;
    let (fixture, errors, config) = parsed(text);
    for error in &errors {
        assert!(error.ends_with("is not supported yet"), "{error}");
    }
    let config = config.unwrap();
    assert!(config.vm.hyperv);
    let device = |hba: &str, target| BootDevice { hba: hba.into(), target, lun: 0 };
    assert_eq!(
        config.boot,
        Boot::Firmware {
            firmware: fixture.path("vmlinuz"),
            vars: Some(fixture.path("initrd")),
            order: vec![device("raid0", 3), device("hba0", 1)],
            fw_cfg: Vec::new(),
            option_roms: Vec::new(),
        }
    );
    let controllers: Vec<_> = config.hbas.iter().map(|hba| hba.controller.clone()).collect();
    assert_eq!(
        controllers,
        [
            Controller::Megasas(Megasas { model: MegasasModel::Sas1078, mode: MegasasMode::Jbod, ..board() }),
            Controller::VirtioScsi(VirtioScsi::with_queues(1)),
            Controller::Megasas(board()),
        ]
    );
    let Device::Disk(disk) = &config.hbas[0].luns[0].device else { panic!() };
    assert_eq!(disk.format, Format::Qcow2);
    let devices: Vec<_> = config.hbas[1].luns.iter().map(|lun| lun.device.clone()).collect();
    let empty = Cd { disc: None, identity: Identity::default() };
    let null = HostDevice {
        place: HostPlace::Path("/dev/null".into()),
        allow: Allow::NoManagement,
        shared: false,
        bounce: false,
    };
    assert_eq!(devices, [Device::Cd(empty), Device::Generic(null.clone()), Device::Block(null)]);
}

#[test]
fn devices_of_the_host() {
    let text = format!(
        "{SMALLEST}[[hba.lun]]\ntype = \"generic\"\nimage = \"/dev/null\"\nallow = \"all\"\nshared = true\n[[hba]]\n\
         type = \"megasas\"\nmode = \"jbod\"\n[[hba.lun]]\ntype = \"generic\"\n\
         wwn = \"naa.600140512345678900000000000ABCDE\"\nallow = \"read-only\"\n[[hba.lun]]\ntype = \"generic\"\n\
         wwn = \"35000c500a1b2c3d4\"\nbounce = false\n"
    );
    let (_, config) = good(&text, &[]);
    assert!(config.security.host_devices, "commands can be sent");
    let host = |hba: usize, lun: usize| config.hbas[hba].luns[lun].device.host().unwrap().clone();
    let place = HostPlace::Path("/dev/null".into());
    assert_eq!(host(0, 1), HostDevice { place, allow: Allow::All, shared: true, bounce: false });
    let place = HostPlace::Wwn("600140512345678900000000000abcde".into());
    assert_eq!(host(1, 0), HostDevice { place, allow: Allow::ReadOnly, shared: false, bounce: true });
    let place = HostPlace::Wwn("5000c500a1b2c3d4".into());
    assert_eq!(host(1, 1), HostDevice { place, allow: Allow::NoManagement, shared: false, bounce: false });
}

#[test]
fn cd_drives_with_and_without_a_disc() {
    let text = format!(
        "{SMALLEST}[[hba.lun]]\ntype = \"cd\"\nserial = \"C1\"\n[[hba]]\ntype = \"megasas\"\nmode = \"jbod\"\n\
         [[hba.lun]]\ntype = \"cd\"\nimage = \"b.img\"\ncache = \"writethrough\"\nreadonly = true\n"
    );
    let (fixture, config) = good(&text, &[]);
    let identity = Identity { serial: Some("C1".into()), ..Identity::default() };
    assert_eq!(config.hbas[0].luns[1].device, Device::Cd(Cd { disc: None, identity }));
    let Device::Cd(Cd { disc: Some(disc), .. }) = &config.hbas[1].luns[0].device else { panic!("no disc") };
    assert_eq!((&disc.image, disc.format, disc.block_size), (&fixture.path("b.img"), Format::Raw, 2048));
    assert!(disc.read_only && disc.bounce);
    assert_eq!(config.hbas[1].luns[0].device.image(), Some(disc));
}

#[test]
fn firmware_with_everything() {
    let text = r#"
        [vm]
        memory = "64MiB"
        [boot]
        firmware = "vmlinuz"
        order = ["hba0:0"]
        fw_cfg = { "opt/org.test/a" = "one", "opt/b" = "" }
        option_roms = { "genroms/x" = "initrd", "pci1af4,1048.rom" = "a.img" }
        debug_log = "debug.log"
        [[hba]]
        [[hba.lun]]
        image = "a.img"
    "#;
    let (fixture, config) = good(text, &["boot.fw_cfg.opt/c=3"]);
    let entry = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    assert_eq!(
        config.boot,
        Boot::Firmware {
            firmware: fixture.path("vmlinuz"),
            vars: None,
            order: vec![BootDevice { hba: "hba0".into(), target: 0, lun: 0 }],
            fw_cfg: vec![entry("opt/b", ""), entry("opt/org.test/a", "one"), entry("opt/c", "3")],
            option_roms: vec![
                ("genroms/x".into(), fixture.path("initrd")),
                ("pci1af4,1048.rom".into(), fixture.path("a.img")),
            ],
        }
    );
    assert_eq!(config.debug_log, Some(fixture.path("debug.log")));
}

#[test]
fn smbios_has_a_table_for_each_structure() {
    let text = SMALLEST.replacen(
        "[boot]",
        r#"[vm.smbios]
        bios = { vendor = "V", version = "1", date = "12/31/2025" }
        system = { manufacturer = "M", product = "P", version = "2", serial = "S", sku = "K", family = "F" }
        chassis = { manufacturer = "CM", version = "3", serial = "CS", asset = "CA", sku = "CK" }
        [vm.smbios.processor]
        manufacturer = "PM"
        version = "4"
        serial = "PS"
        asset = "PA"
        part = "PP"
        [vm.smbios.memory]
        manufacturer = "MM"
        serial = "MS"
        asset = "MA"
        part = "MP"
        [boot]"#,
        1,
    );
    let (_, config) = good(&text, &["vm.smbios.system.serial=0815"]);
    let text = |text: &str| Some(text.to_owned());
    let part = |name: &str, version: Option<&str>| Part {
        manufacturer: Some(format!("{name}M")),
        version: version.map(str::to_owned),
        serial: Some(format!("{name}S")),
        asset: Some(format!("{name}A")),
        part: Some(format!("{name}P")),
        sku: None,
    };
    assert_eq!(
        config.vm.smbios,
        Smbios {
            bios: Bios { vendor: text("V"), version: text("1"), date: text("12/31/2025") },
            system: System {
                manufacturer: text("M"),
                product: text("P"),
                version: text("2"),
                serial: text("0815"),
                sku: text("K"),
                family: text("F"),
            },
            chassis: Part { part: None, sku: text("CK"), ..part("C", Some("3")) },
            processor: part("P", Some("4")),
            memory: part("M", None),
        }
    );
}
