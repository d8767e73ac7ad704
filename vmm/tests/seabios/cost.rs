//! What a boot costs: accesses and exits, processor time, and instructions where KVM emulates them.

use std::path::Path;

use super::machine::{Plan, has_virtualization, image, images};
use super::sector::Sector;

/// Returns from KVM_RUN to a boot sector under QEMU 10 with the same devices, without those for the bytes of a debug
/// console (docs/performance.md).
const QEMU_RETURNS: u64 = 1308;
/// Bytes that SeaBIOS prints there before it looks whether there is such a console.
const PRINTED_BLINDLY: u64 = 145;
/// The boot sector's own: "hello" to two ports, and the power off.
const SECTOR: u64 = 2 * 5 + 1;
/// Instructions that KVM emulates for them. Most are SeaBIOS' own clearing of memory, five for each of 900,000 bytes.
const EMULATED: u64 = 6_100_000;

/// The number behind `name=` in the line of a vCPU's counters.
fn counter(line: &str, name: &str) -> Option<u64> {
    let mut words = line.split_whitespace().filter_map(|word| word.split_once('='));
    words.find(|(found, _)| *found == name)?.1.parse().ok()
}

/// Boots once; the line of its vCPU's counters.
fn counters(image: &Path) -> String {
    let disks = vec![Sector::new().print("hello").power_off().finish()];
    let log = "vmm::counters=debug";
    let mut machine = Plan { disks, log, debug: false, uuid: None, ..Plan::new(image) }.start();
    machine.expect_end();
    assert!(machine.text("serial").contains("hello"));
    machine.text("log").lines().find(|line| line.contains("vCPU 0: ")).unwrap().into()
}

#[test]
fn a_boot_takes_no_more_exits_than_under_qemu() {
    let limit = QEMU_RETURNS + PRINTED_BLINDLY + SECTOR;
    for image in images() {
        // SeaBIOS reads its timer while it waits for the disk: a busy host makes some more exits, never fewer.
        let boots: Vec<_> = (0..3).map(|_| counters(&image)).collect();
        let returns = boots.iter().filter_map(|line| counter(line, "returns")).min().unwrap();
        assert!((500..=limit).contains(&returns), "more than {limit}: {boots:#?}");
        let emulated = boots.iter().filter_map(|line| counter(line, "insn_emulation")).min();
        assert!(has_virtualization() || emulated.is_none_or(|count| count <= EMULATED), "{boots:#?}");
    }
}

#[test]
fn without_a_reader_there_is_no_debug_console() {
    let Some(image) = image() else { return };
    let disks = vec![Sector::new().print("hello").finish()];
    let mut machine = Plan { disks, log: "vmm::access=trace", debug: false, ..Plan::new(&image) }.start();
    machine.expect("serial", "hello");
    let log = machine.text("log");
    let console: Vec<&str> = log.lines().filter(|line| line.contains(" 0x0402/1 ")).collect();
    // SeaBIOS asks after its first lines, once; the boot sector prints without asking.
    let asked = console.iter().position(|line| line.ends_with("in  0x0402/1 (nobody) = 0xff")).unwrap();
    assert!(asked < 200, "{asked}");
    assert_eq!(console.len() - asked, 1 + "hello".len(), "{console:#?}");
}

#[test]
fn accesses_are_traced_by_name() {
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
}
