//! Every way to reset leads back to the first line.

use std::time::Duration;

use super::machine::{Plan, image, images};
use super::sector::Sector;

/// A byte of CMOS memory that nobody uses: it survives resets, RAM contents are the firmware's.
const COUNTER: u8 = 0x40;

/// Resets in its own way for each remainder by four.
fn resets(turns: u8) -> Vec<u8> {
    let kind = |sector: Sector, kind: u8| match kind {
        0 => sector.out(0xcf9, 0x06),
        1 => sector.out(0x92, 0x03),
        2 => sector.out(0x64, 0xfe),
        _ => sector.triple_fault(),
    };
    Sector::new().print("boot sector\n").count(COUNTER, kind, turns).print("all done").finish()
}

#[test]
#[ignore = "takes minutes"]
fn a_hundred_resets_in_a_row_boot_again() {
    let Some(image) = image() else { return };
    let mut machine = Plan { cpus: 2, disks: vec![resets(100)], ..Plan::new(&image) }.start();
    machine.patience(Duration::from_secs(3600));
    machine.expect("debug", "all done");
    let debug = machine.text("debug");
    for line in
        ["boot sector\n", "Found 2 cpu(s) max supported 2 cpu(s)", "virtio-scsi blksize=512 sectors=2048"]
    {
        assert_eq!(debug.matches(line).count(), 101, "{line}");
    }
}

#[test]
fn each_kind_of_reset_boots_again() {
    for image in images() {
        let mut machine = Plan { cpus: 2, disks: vec![resets(4)], log: "info", ..Plan::new(&image) }.start();
        // Five starts, each of which may take half a minute on a busy machine.
        machine.patience(Duration::from_secs(600));
        machine.expect("debug", "all done");
        let (debug, log) = (machine.text("debug"), machine.text("log"));
        assert_eq!(debug.matches("boot sector\n").count(), 5);
        assert_eq!(debug.matches("Found 2 cpu(s) max supported 2 cpu(s)").count(), 5, "{debug}");
        assert_eq!(debug.matches("Moving pm_base to 0x600").count(), 5, "{debug}");
        for reset in ["port 0xcf9", "port 92h", "keyboard controller", "triple fault"] {
            assert!(log.contains(reset), "{reset}:\n{log}");
        }
    }
}
