//! `--set` options.

use super::*;

#[track_caller]
fn set(options: &[&str], expected: &[&str]) {
    assert_eq!(Fixture::new().lines(SMALLEST, options), expected, "{options:?}");
}

#[test]
fn options_replace_and_add_values() {
    let options = [
        "vm.cpus=4",
        "vm.memory=2GiB",
        "vm.name=007",
        "boot.cmdline=console=ttyS0 root=/dev/sda",
        "serial.mode=off",
        "hba.0.id=scsi0",
        "hba.scsi0.lun.0.serial=12345",
        "hba.scsi0.lun.0.image = 'b.img'",
        "hba.0.lun.1.image=c.img",
        "hba.1.lun.0.image=a.img",
    ];
    let (fixture, config) = good(SMALLEST, &options);
    assert_eq!((config.vm.cpus, config.vm.memory, config.vm.name.as_str()), (4, 2 << 30, "007"));
    let Boot::Kernel { cmdline, .. } = &config.boot else { panic!() };
    assert_eq!(cmdline, "console=ttyS0 root=/dev/sda");
    assert_eq!(config.serial, Serial::Off);
    assert_eq!(config.hbas.len(), 2);
    let disk = |hba: usize, lun: usize| match &config.hbas[hba].luns[lun].device {
        Device::Disk(disk) => disk.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(disk(0, 0).identity.serial.as_deref(), Some("12345"));
    assert_eq!(disk(0, 0).image, fixture.path("b.img"));
    assert_eq!((config.hbas[0].luns[1].target, disk(0, 1).image), (1, fixture.path("c.img")));
    assert_eq!((config.hbas[1].id.as_str(), disk(1, 0).image), ("hba0", fixture.path("a.img")));
}

#[test]
fn errors_of_options_name_the_option() {
    set(&["vm.cpus=0"], &["--set vm.cpus=0: `cpus` in [vm] is 0, expected an integer from 1 to 255"]);
    set(
        &["vm.cpus=two"],
        &["--set vm.cpus=two: `cpus` in [vm] is \"two\", expected an integer from 1 to 255"],
    );
    set(&["vm.cpuz=2"], &["--set vm.cpuz=2: unknown key `cpuz` in [vm], did you mean `cpus`?"]);
    set(&["mv.cpus=2"], &["--set mv.cpus=2: unknown table `mv`, did you mean [vm]?"]);
    set(&["vm.cpus"], &["--set vm.cpus: expected KEY=VALUE with a dotted KEY, such as vm.cpus=4"]);
    set(&["vm..cpus=1"], &["--set vm..cpus=1: expected KEY=VALUE with a dotted KEY, such as vm.cpus=4"]);
    set(&["vm.memory.x=1"], &["--set vm.memory.x=1: `memory` is \"1GiB\", not a table"]);
    set(
        &["boot.cmdline=\"abc"],
        &["--set boot.cmdline=\"abc: the value is not TOML: invalid basic string, expected `\"`"],
    );
    set(&["hba.2.id=x"], &["--set hba.2.id=x: no `2` among the `hba` tables, they count from 0 to 0"]);
    set(
        &["hba.0.id=scsi0", "hba.raid0.id=x"],
        &[
            "--set hba.raid0.id=x: no `raid0` among the `hba` tables, they count from 0 to 0 and are called `scsi0`",
        ],
    );
    set(
        &["hba.0.lun.0.image=gone"],
        &[
            "--set hba.0.lun.0.image=gone: `image` in [[hba.lun]]: cannot open gone: No such file or directory",
        ],
    );
    set(&["net.0.mac=1"], &["--set net.0.mac=1: `[[net]]` is not supported yet"]);
    set(
        &["vm.name=a\nb"],
        &["--set vm.name=a b: `name` in [vm] is \"a b\", expected text without control characters"],
    );
}

/// What is within a table or a list is no text of its own.
#[test]
fn numbers_within_an_option_are_no_texts() {
    for (option, key) in [
        ("vm={memory=\"64MiB\",name=7}", "`name` in [vm] is 7, expected"),
        ("vm.smbios.system={serial=815}", "`serial` in [vm.smbios.system] is 815, expected"),
        ("hba.0.lun.0={image=\"disk.img\",vendor=1}", "`vendor` in [[hba.lun]] is 1, expected"),
    ] {
        let errors = Fixture::new().lines(SMALLEST, &[option]);
        assert!(errors.iter().any(|error| error.contains(key)), "{option}: {errors:?}");
    }
}

#[test]
fn no_value_of_any_key_is_lost_without_an_error() {
    let fixture = Fixture::new();
    let keys = [
        "vm",
        "vm.name",
        "vm.cpus",
        "vm.memory",
        "vm.rtc",
        "vm.uuid",
        "vm.hugepages",
        "vm.on_crash",
        "boot",
        "boot.kernel",
        "boot.initrd",
        "boot.firmware",
        "boot.order",
        "serial",
        "serial.mode",
        "serial.path",
        "hba",
        "hba.0",
        "hba.0.id",
        "hba.0.type",
        "hba.0.queues",
        "hba.0.lun",
        "hba.0.lun.0",
        "hba.0.lun.0.target",
        "hba.0.lun.0.lun",
        "hba.0.lun.0.type",
        "hba.0.lun.0.image",
        "hba.0.lun.0.wwn",
        "hba.0.lun.0.discard",
    ];
    let values = [
        "0",
        "1",
        "-1",
        "true",
        "text",
        "[]",
        "[1]",
        "[{}]",
        "{}",
        "1.5",
        "nan",
        "1979-05-27",
        "''",
        "megasas",
        "generic",
        "cd",
        "pty",
        "65535",
        "18446744073709551616",
    ];
    for key in keys {
        for value in values {
            let option = format!("{key}={value}");
            match fixture.parse(SMALLEST, &[&option]) {
                Ok(_) => {}
                Err(errors) => assert!(!errors.is_empty(), "{option}"),
            }
        }
    }
}
