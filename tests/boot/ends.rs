//! How a guest can end, and what the VMM's exit code says about it.

use anyhow::{Result, bail, ensure};
use testbed::bed::Bed;
use testbed::guest::{Disk, Vmm};

/// Exit codes of the VMM: the host is at fault, the guest reset while that is not allowed, the guest crashed.
const HOST_ERROR: i32 = 1;
const RESET: i32 = 2;
const CRASH: i32 = 3;

/// A reset starts the guest again in the same process.
pub(crate) fn reboot(bed: &Bed, vmm: Vmm) -> Result<()> {
    again(bed, vmm, "")
}

/// So does a triple fault, after which KVM on AMD has forgotten the offset of one processor's clock.
pub(crate) fn triple_fault(bed: &Bed, vmm: Vmm) -> Result<()> {
    again(bed, vmm, "reboot=triple")
}

fn again(bed: &Bed, vmm: Vmm, cmdline: &str) -> Result<()> {
    let script = r#"
        if [ "$(head -c 5 /dev/sda)" = again ]; then
            echo SECOND BOOT
            for cpu in 1 0 1; do
                echo clock=$(taskset -c $cpu cut -d' ' -f1 /proc/uptime)
            done
            exit 0
        fi
        echo again | dd of=/dev/sda bs=512 conv=sync,fsync 2>/dev/null
        echo FIRST BOOT
        reboot -f"#;
    let guest = bed.guest().vmm(vmm).cpus(2).cmdline(cmdline).disk(Disk::empty("1G"));
    let mut vm = guest.restart_after_crash().script(script).spawn()?;
    let pid = vm.pid();
    vm.wait_for("FIRST BOOT", 180)?;
    let output = vm.finish_script(180)?;
    ensure!(output.contains("SECOND BOOT"), "the guest did not find what it wrote before its reset");
    ensure!(vm.pid() == pid);
    let clocks = output.lines().filter_map(|line| line.trim().strip_prefix("clock="));
    let clocks = clocks.map(str::parse).collect::<Result<Vec<f64>, _>>()?;
    let [first, middle, last] = clocks[..] else { bail!("no three clocks: {output}") };
    ensure!(first <= middle && middle <= last && last - first < 5.0, "the clocks disagree: {clocks:?}");
    Ok(())
}

/// With --no-reboot a reset ends the VMM.
pub(crate) fn no_reboot(bed: &Bed, vmm: Vmm) -> Result<()> {
    let guest = bed.guest().vmm(vmm).disk(Disk::empty("1G")).option("--no-reboot");
    let mut vm = guest.script("echo RESETTING; reboot -f").spawn()?;
    vm.wait_for("RESETTING", 180)?;
    vm.expect_exit(if vmm == Vmm::Ours { RESET } else { 0 }, 60)
}

/// With --no-reboot a triple fault ends the VMM, and its code tells that from a reset. QEMU takes one for the other.
pub(crate) fn crash(bed: &Bed, vmm: Vmm) -> Result<()> {
    let guest = bed.guest().vmm(vmm).disk(Disk::empty("1G")).cmdline("reboot=triple").option("--no-reboot");
    let mut vm = guest.script("echo CRASHING; reboot -f").spawn()?;
    vm.wait_for("CRASHING", 180)?;
    vm.expect_exit(if vmm == Vmm::Ours { CRASH } else { 0 }, 60)
}

/// A missing image is said on standard error, with its name.
pub(crate) fn host_error(bed: &Bed, vmm: Vmm) -> Result<()> {
    let missing = "/nowhere/missing.img";
    let mut vm = bed.guest().vmm(vmm).disk(Disk::file(missing)).script("echo STARTED").spawn()?;
    vm.expect_exit(HOST_ERROR, 60)?;
    ensure!(vm.errors().contains(missing), "the message does not name the file: {}", vm.errors());
    Ok(())
}
