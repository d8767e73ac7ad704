//! What SeaBIOS finds without a disk, line by line.

use std::fs;
use std::time::{Duration, Instant};

use super::machine::{Machine, Plan, image, images};

/// Lines that must appear in this order, for the versions of Debian 12 and 13.
fn lines(version: &str, cpus: u32) -> Vec<String> {
    let cpus = format!("Found {cpus} cpu(s) max supported {cpus} cpu(s)");
    [
        version,
        "Running on QEMU (q35)",
        "Found QEMU fw_cfg",
        "QEMU fw_cfg DMA interface supported",
        "qemu/e820: addr 0x0000000000000000",
        "Relocating init from",
        "Moving pm_base to 0x600",
        "=== PCI bus & bridge init ===",
        "Found 2 PCI devices (max PCI bus is 00)",
        "PCIe: using q35 mmconfig at 0xb0000000",
        "Q35 LPC init: elcr=00 0c",
        &cpus,
        "Copying SMBIOS",
        "table(50434146)=",
        "ACPI: parse DSDT at",
        "PS2 keyboard initialized",
        "All threads complete.",
        "e820 map has",
        "enter handle_19:",
        "No bootable device.",
    ]
    .map(str::to_owned)
    .to_vec()
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
fn every_version_passes_every_step() {
    for image in images() {
        let mut machine = Plan { cpus: 2, memory: "512MiB", ..Plan::new(&image) }.start();
        machine.expect("debug", "No bootable device.");
        let log = machine.text("debug");
        let version = ["1.16.2-debian-1.16.2-1", "1.16.3-debian-1.16.3-2"]
            .into_iter()
            .find(|version| log.contains(version))
            .unwrap_or("SeaBIOS (version ");
        in_order(&log, &lines(version, 2));
        machine.expect("serial", "No bootable device.");
        assert_eq!(machine.text("log"), "", "nothing to warn of");
    }
}

#[test]
fn processors_and_memory_are_found() {
    let Some(image) = image() else { return };
    let sizes = [
        (1, "64MiB", 0x400_0000_u64, None),
        (2, "512MiB", 0x2000_0000, None),
        (4, "3GiB", 0x8000_0000, Some(0x4000_0000_u64)),
        (3, "6GiB", 0x8000_0000, Some(0x1_0000_0000)),
    ];
    for (cpus, memory, low, high) in sizes {
        let mut machine = Plan { cpus, memory, ..Plan::new(&image) }.start();
        machine.expect("debug", " max supported ");
        machine.expect("debug", "Copying SMBIOS");
        let log = machine.text("debug");
        let mut expected = vec![format!("qemu/e820: addr 0x0000000000000000 len {low:#018x} [RAM]")];
        expected.extend(high.map(|len| format!("qemu/e820: addr 0x0000000100000000 len {len:#018x} [RAM]")));
        expected.push(format!("Found {cpus} cpu(s) max supported {cpus} cpu(s)"));
        in_order(&log, &expected);
        assert_eq!(log.contains("0x0000000100000000 len"), high.is_some(), "{log}");
    }
}

/// Processor time of a process so far, in user mode and altogether.
fn processor_time(machine: &Machine) -> (Duration, Duration) {
    let stat = fs::read_to_string(format!("/proc/{}/stat", machine.id())).unwrap();
    // proc(5): utime and stime are fields 14 and 15, the 12th and 13th after the name in parentheses, in 1/100 s.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let time = |at: usize| Duration::from_millis(10 * fields[at].parse::<u64>().unwrap());
    (time(11), time(11) + time(12))
}

#[test]
fn a_machine_without_a_bootable_device_waits() {
    let Some(image) = image() else { return };
    let mut machine = Plan { cpus: 4, ..Plan::new(&image) }.start();
    machine.expect("serial", "No bootable device.");
    let (before, begin) = (processor_time(&machine), Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let (after, elapsed) = (processor_time(&machine), begin.elapsed());
    // In user mode next to nothing. In the kernel KVM polls for a while before a halted processor sleeps, which is
    // the host's choice; a processor that spins takes the whole time.
    let (user, all) = (after.0 - before.0, after.1 - before.1);
    assert!(user * 20 < elapsed && all * 4 < elapsed * 3, "{user:?} and {all:?} of {elapsed:?}");
}

#[test]
fn accesses_are_traced_by_name_and_few() {
    let Some(image) = image() else { return };
    let mut machine = Plan { log: "vmm::access=trace", ..Plan::new(&image) }.start();
    machine.expect("debug", "All threads complete.");
    let log = machine.text("log");
    for line in [
        "out 0x0cf8/4 pci.CONFIG_ADDRESS = 0x80000000",
        "in  0x0cfc/2 00:00.0 mch.VENDOR_ID = 0x8086",
        "out 0x0510/2 fw_cfg.SELECT = 0x0000",
        "in  0x0511/1 fw_cfg.DATA = 0x51",
        "out 0x0cfc/4 00:00.0 mch.PCIEXBAR = 0xb0000001",
        "00:1f.0 lpc.PMBASE = 0x00000601",
        "in  0x0402/1 debug.CONSOLE = 0xe9",
        "cmos.INDEX = 0x8f",
    ] {
        assert!(log.contains(line), "no line with {line}");
    }
    let accesses = log.lines().filter(|line| !line.contains("debug.CONSOLE")).count();
    assert!(accesses < 1500, "{accesses} accesses besides the debug console's");
}
