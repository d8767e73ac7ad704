//! A MegaRAID SAS board of which one disk hangs on the host: its driver resets the board, which lives, and so do the other disks.

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::guest::{Disk, HbaKind, Vmm};
use testbed::report::note;
use testbed::vm::Vm;

use super::hung::FUNCTIONS;
use super::mapper::Mapped;

const SIGTERM: i32 = 15;

/// How the driver comes to reset the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// A tool asks for it.
    Tool,
    /// Commands do not come back in time.
    Timeout,
}

pub(crate) fn reset(bed: &Bed, vmm: Vmm) -> Result<()> {
    hung(bed, vmm, "none", Cause::Tool)
}

pub(crate) fn timeout(bed: &Bed, vmm: Vmm) -> Result<()> {
    hung(bed, vmm, "writeback", Cause::Timeout)
}

/// Linux waits 90 s before it doubts a command, as long again before it resets the board, and 180 s more for commands to come back
/// by themselves. Here it is in more of a hurry.
const DRIVER: &str = "rmmod megaraid_sas && insmod /lib/megaraid_sas.ko scmd_timeout=10 resetwaittime=5
    for turn in $(seq 100); do [ -e /sys/class/scsi_device/?:2:1:0/device/block ] && break; sleep 0.2; done
    at() { echo /dev/$(ls /sys/class/scsi_device/?:2:$1:0/device/block); }
    fill 0; fill 1; echo FILLED";

fn hung(bed: &Bed, vmm: Vmm, cache: &str, cause: Cause) -> Result<()> {
    let device = Mapped::whole(bed, "hungboard", 64)?;
    let guest = bed.guest().vmm(vmm).cpus(2);
    let guest = guest.disk(Disk::file(&device.path()).cache(cache).on(HbaKind::Megasas));
    let guest = guest.disk(Disk::empty("64M").on(HbaKind::Megasas));
    let mut vm = guest.quick_shell().spawn()?;
    vm.quick_shell()?;
    vm.run(FUNCTIONS)?;
    ensure!(vm.run_for(DRIVER, 60)?.contains("FILLED"), "the driver was not loaded anew");
    let before = rate(&mut vm)?;
    device.suspend()?;
    vm.run(
        "for n in 0 1 2 3; do (dd if=$(at 0) of=/dev/null bs=4k count=1 skip=$((n * 100)) iflag=direct 2>/dev/null; echo read $n: $? >> /tmp/ends) & done
         (head -c 65536 /dev/zero | tr '\\0' W | dd of=$(at 0) bs=64k count=1 seek=8 oflag=direct 2>/dev/null; echo write: $? >> /tmp/ends) &
         sleep 1",
    )?;
    let beside = rate(&mut vm)?;
    let waits = match cause {
        Cause::Tool => vm.run_for("begin=$(now); sg_reset -N --host $(at 1); echo \"RESET $? after $((($(now) - begin) / 100)) s.\"", 120)?,
        Cause::Timeout => vm.run_for(
            "for turn in $(seq 90); do dmesg | grep -qE 'reset (successful|handling)|killing adapter|Shutting down the HBA' && break; sleep 1; done",
            120,
        )?,
    };
    note(waits.trim());
    // While the driver recovers it holds back whatever goes to the board.
    let after = rate(&mut vm);
    let said = vm.run_for("dmesg | grep -iE 'megaraid|megasas|sd .:2' | tail -40; cat /sys/class/scsi_device/?:2:?:0/device/state", 30)?;
    note(&format!("the driver:\n{}", said.trim()));
    let after = after.context("the healthy disk after the reset")?;
    note(&format!(
        "the healthy disk, 1/100 s: {before}, beside the hung one {beside}, after the reset {after}"
    ));
    ensure!(
        !said.contains("killing adapter") && !said.contains("Shutting down the HBA"),
        "the board is lost"
    );
    ensure!(
        said.contains("reset successful") || said.contains("no more pending commands"),
        "no reset was made"
    );
    ensure!(!said.contains("offline"), "a disk is offline");
    for rate in [beside, after] {
        ensure!(rate <= 10 * before + 500, "the healthy disk became slow: {before}, then {rate}");
    }
    device.resume()?;
    let works = vm.run_for(
        "wait; cat /tmp/ends
         dd if=$(at 0) bs=64k count=1 skip=8 iflag=direct 2>/dev/null | tr -d 'WZ' | wc -c
         dd if=/tmp/z of=$(at 0) bs=1M oflag=direct 2>/dev/null && dd if=$(at 0) bs=1M count=8 iflag=direct 2>/dev/null | cmp - /tmp/z && echo IT WORKS",
        120,
    )?;
    note(&format!("after that: {}", works.trim()));
    ensure!(works.contains("IT WORKS"), "the disk does not work again");
    note(&format!("the log:\n{}", vm.errors().trim()));
    ensure!(vm.errors().contains("/dev/mapper/hungboard"), "the log does not name the hung disk");
    vm.send_signal(SIGTERM)?;
    vm.wait_exit(60)?;
    vm.done();
    Ok(())
}

/// Hundredths of a second that reading the healthy disk takes.
fn rate(vm: &mut Vm<'_>) -> Result<u64> {
    let output = vm.run_for("rate 1", 120)?;
    let number = |line: &str| line.trim().strip_prefix("RATE 1 ")?.strip_suffix('.')?.parse().ok();
    ensure!(!output.contains("FAILED"), "{output}");
    output.lines().find_map(number).with_context(|| format!("no rate: {output}"))
}
