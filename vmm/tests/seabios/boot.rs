//! Boot sectors from disks.

use std::time::Duration;

use super::machine::{Plan, has_virtualization, image, images};
use super::sector::Sector;

/// Processors, RAM, and the bytes of it below and above 4 GiB. With RAM above 4 GiB SeaBIOS 1.16.3 moves 64-bit BARs
/// there, out of reach of its own disk drivers.
const MACHINES: [(u32, &str, u64, Option<u64>); 4] = [
    (1, "64MiB", 0x400_0000, None),
    (2, "512MiB", 0x2000_0000, None),
    (4, "3GiB", 0x8000_0000, Some(0x4000_0000)),
    (4, "6GiB", 0x8000_0000, Some(0x1_0000_0000)),
];

#[test]
fn a_boot_sector_runs_from_a_virtio_scsi_disk_of_every_machine() {
    for (image, (cpus, memory, low, high)) in images().iter().flat_map(|image| MACHINES.map(|m| (image, m))) {
        let disks = vec![Sector::new().print("hello from the disk").finish()];
        let mut machine = Plan { cpus, memory, disks, ..Plan::new(image) }.start();
        let time = machine.expect("serial", "hello from the disk");
        // Where KVM emulates every instruction, 2.9 s pass on a machine that has nothing else to do. On a busy one
        // processor time tells what the boot costs, twice as much where caches and pipelines are shared.
        let (_, worked) = machine.processor_time();
        let limit = Duration::from_secs(3);
        assert!(time < limit || !has_virtualization() && worked < 2 * limit, "{time:?}, {worked:?} of work");
        machine.expect("debug", "hello from the disk");
        let log = machine.text("debug");
        let ram = |start: u64, len: u64| format!("qemu/e820: addr {start:#018x} len {len:#018x} [RAM]");
        assert!(log.contains(&ram(0, low)), "{log}");
        assert_eq!(log.matches(" [RAM]").count(), 1 + usize::from(high.is_some()), "{log}");
        assert!(high.is_none_or(|len| log.contains(&ram(1 << 32, len))), "{log}");
        assert!(log.contains(&format!("Found {cpus} cpu(s) max supported {cpus} cpu(s)")), "{log}");
        assert!(log.contains("found virtio-scsi at 00:01.0"), "{log}");
        assert!(log.contains("Booting from 0000:7c00"), "{log}");
        assert_eq!(machine.text("log"), "");
    }
}

/// SeaBIOS prefers the registers of virtio 1 where they are.
#[test]
fn a_boot_sector_runs_from_a_virtio_scsi_disk_of_either_interface() {
    for image in images() {
        for (hba, mode) in [
            ("interface = \"transitional\"", "using modern (1.0) virtio mode"),
            ("interface = \"legacy\"", "using legacy (0.9.5) virtio mode"),
        ] {
            let disks = vec![Sector::new().print("hello from the disk").finish()];
            let mut machine = Plan { disks, hba, ..Plan::new(&image) }.start();
            machine.expect("debug", "hello from the disk");
            let log = machine.text("debug");
            assert!(log.contains(mode), "{log}");
            assert!(log.contains("found virtio-scsi at 00:01.0"), "{log}");
            assert!(log.contains("virtio-scsi blksize=512 sectors=2048"), "{log}");
            assert_eq!(machine.text("log"), "");
        }
    }
}

#[test]
fn disks_boot_in_the_order_of_the_configuration() {
    let Some(image) = image() else { return };
    let sector = |text| Sector::new().print(text).finish();
    for (boot, first) in [
        ("order = [\"hba0:1\", \"hba0:0\"]", "this is disk one"),
        ("order = [\"hba0:0\", \"hba0:1\"]", "this is disk zero"),
    ] {
        let disks = vec![sector("this is disk zero"), sector("this is disk one")];
        let mut machine = Plan { disks, boot, ..Plan::new(&image) }.start();
        machine.wait("a boot sector", |machine| {
            let text = machine.text("serial");
            let at = text.find("this is disk")?;
            text.get(at..at + first.len()).map(|found| assert_eq!(found, first))
        });
    }
}

/// A BIOS starts from the first hard disk only.
#[test]
fn a_disk_without_a_boot_sector_ends_in_a_message() {
    let Some(image) = image() else { return };
    let mut machine = Plan { disks: vec![vec![0; 512]], ..Plan::new(&image) }.start();
    machine.expect("serial", "Boot failed: not a bootable disk");
    machine.expect("serial", "No bootable device.");
}
