//! What SeaBIOS finds without a disk, line by line.

use std::time::{Duration, Instant};

use super::machine::{Plan, image, images};
use super::sector::Sector;

/// Lines that must appear in this order, for the versions of Debian 12 and 13, up to the search for disks.
fn first_lines(version: &str, cpus: u32, functions: u32) -> Vec<String> {
    [
        version,
        "Running on QEMU (q35)",
        "Found QEMU fw_cfg",
        "QEMU fw_cfg DMA interface supported",
        "qemu/e820: addr 0x0000000000000000",
        "Relocating init from",
        "Moving pm_base to 0x600",
        "=== PCI bus & bridge init ===",
        &format!("Found {functions} PCI devices (max PCI bus is 00)"),
        "PCIe: using q35 mmconfig at 0xb0000000",
        "=== PCI new allocation pass #2 ===",
        "PCI: init bdf=00:00.0 id=8086:29c0",
        "PCI: init bdf=00:1f.0 id=8086:2918",
        "Q35 LPC init: elcr=00 0c",
        &format!("Found {cpus} cpu(s) max supported {cpus} cpu(s)"),
        "Copying SMBIOS",
        "table(50434146)=",
        "ACPI: parse DSDT at",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// The line with its version that begins the log of an image.
fn version(log: &str) -> &'static str {
    let versions = ["SeaBIOS (version 1.16.2-debian-1.16.2-1", "SeaBIOS (version 1.16.3-debian-1.16.3-2"];
    versions.into_iter().find(|version| log.contains(version)).unwrap_or("SeaBIOS (version ")
}

/// `first` and then `more`.
fn then(mut first: Vec<String>, more: &[&str]) -> Vec<String> {
    first.extend(more.iter().map(|line| (*line).to_owned()));
    first
}

#[track_caller]
fn in_order(text: &str, lines: &[String]) {
    let mut rest = text;
    for line in lines {
        let at = rest.find(line).unwrap_or_else(|| panic!("\"{line}\" is missing or too early:\n{text}"));
        rest = &rest[at + line.len()..];
    }
}

#[test]
fn every_version_passes_every_step_without_a_disk() {
    for image in images() {
        let mut machine = Plan { cpus: 2, memory: "512MiB", ..Plan::new(&image) }.start();
        machine.expect("debug", "No bootable device.");
        let log = machine.text("debug");
        let last = [
            "PS2 keyboard initialized",
            "All threads complete.",
            "e820 map has",
            "enter handle_19:",
            "No bootable device.",
        ];
        in_order(&log, &then(first_lines(version(&log), 2, 2), &last));
        machine.expect("serial", "No bootable device.");
        assert_eq!(machine.text("log"), "", "nothing to warn of");
    }
}

/// An option ROM whose start prints "rom" to the debug console and returns.
fn option_rom() -> Vec<u8> {
    // Signature, length, entry: mov dx, 402h; mov al, c; out dx, al ...; retf
    let mut rom = vec![0x55, 0xaa, 1, 0xba, 0x02, 0x04];
    b"<rom>\n".iter().for_each(|byte| rom.extend([0xb0, *byte, 0xee]));
    rom.push(0xcb);
    rom.resize(511, 0);
    rom.push(rom.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte)));
    rom
}

#[test]
fn every_version_passes_every_step_to_a_boot_sector() {
    for image in images() {
        let plan = Plan {
            cpus: 4,
            memory: "3GiB",
            boot: "order = [\"hba0:0\"]\noption_roms = { \"genroms/test.rom\" = \"test.rom\" }",
            files: vec![("test.rom", option_rom())],
            disks: vec![Sector::new().print("hello").finish()],
            ..Plan::new(&image)
        };
        let mut machine = plan.start();
        machine.expect("debug", "hello");
        let log = machine.text("debug");
        let last = [
            "sercon: using ioport 0x3f8",
            "found virtio-scsi at 00:01.0",
            "using modern (1.0) virtio mode",
            "Searching bootorder for: /pci@i0cf8/*@1/*@0/*@0,0",
            "virtio-scsi blksize=512 sectors=2048",
            "All threads complete.",
            "Running option rom at c000:0003",
            "<rom>",
            "e820 map has",
            "enter handle_19:",
            "Booting from Hard Disk...",
            "Booting from 0000:7c00",
            "hello",
        ];
        in_order(&log, &then(first_lines(version(&log), 4, 3), &last));
        // The keyboard comes when it comes: it and the disks are looked for at the same time.
        let keyboard = ["found virtio-scsi at 00:01.0", "PS2 keyboard initialized", "All threads complete."];
        in_order(&log, &keyboard.map(str::to_owned));
        // How it measures time: the paravirtual clock where KVM has one, or else the PM timer.
        assert!(log.contains("(kvmclock)") || log.contains("Using pmtimer, ioport 0x608"), "{log}");
        let bars = ["PCI: map device bdf=00:01.0  bar 4, addr ", "PCI: map device bdf=00:01.0  bar 1, addr "];
        in_order(&log, &bars.map(str::to_owned));
        assert_eq!(machine.text("log"), "", "nothing to warn of");
    }
}

#[test]
fn a_machine_without_a_bootable_device_waits() {
    let Some(image) = image() else { return };
    let mut machine = Plan { cpus: 4, ..Plan::new(&image) }.start();
    machine.expect("serial", "No bootable device.");
    let (before, begin) = (machine.processor_time(), Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let (after, elapsed) = (machine.processor_time(), begin.elapsed());
    // Measured: 1 in 100, for the ticks of the interval timer. A processor that spins takes the whole time.
    let (user, all) = (after.0 - before.0, after.1 - before.1);
    assert!(user * 20 < elapsed && all * 5 < elapsed, "{user:?} and {all:?} of {elapsed:?}");
}
