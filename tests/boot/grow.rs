//! Block devices of the host that are small and grow while the machine runs, as thin volumes do that a manager extends.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testbed::bed::Bed;
use testbed::guest::{Disk, Vmm};
use testbed::report::note;
use testbed::vm::Vm;

use super::hotplug::{ask, ask_all};
use super::mapper::Mapped;

const CONTROL: &str = "--set=control.path=control.sock";
/// Sectors of the device at first, and later.
const SMALL: u32 = 8 * 2048;
const LARGE: u32 = 48 * 2048;

/// Shell functions: `write N` writes the Nth MiB; it is stable when that succeeds.
const WRITE: &str = "d=$(readlink -f /dev/at/0:0:0:0)
    head -c 1048576 /dev/zero | tr '\\0' G > /tmp/data
    write() { dd if=/tmp/data of=$d bs=1M seek=$1 oflag=direct conv=fsync 2>&1; }";

/// A qcow2 image of 1 GiB on the device.
fn prepare<'a>(bed: &'a Bed, name: &str) -> Result<(Mapped<'a>, Disk)> {
    let device = Mapped::new(bed, name, "/dev/shm", 64, &format!("0 {SMALL} linear DEVICE 0"))?;
    let img = bed.prepared().tools().words("qemu-img", "qemu-img", None)?.join(" ");
    bed.host().shell(&format!("{img} create -q -f qcow2 {} 1G", device.path()), 60)?;
    let disk = Disk::file(&device.path()).qcow2();
    Ok((device, disk))
}

fn grow(device: &Mapped<'_>) -> Result<()> {
    device.change(&format!("0 {LARGE} linear DEVICE 0"))
}

/// Checks the image, and that all 24 MiB are in it.
fn check(bed: &Bed, vm: &Vm<'_>, device: &Mapped<'_>) -> Result<()> {
    let img = bed.prepared().tools().words("qemu-img", "qemu-img", None)?.join(" ");
    let (path, copy) = (device.path(), format!("{}/copy.raw", vm.dir()));
    bed.host().shell(&format!("{img} check {path} && {img} convert -f qcow2 -O raw {path} {copy}"), 120)?;
    let wrong = bed.host().shell(&format!("head -c 25165824 {copy} | tr -d G | wc -c"), 120)?;
    ensure!(wrong.trim() == "0", "{} bytes of 24 MiB are wrong", wrong.trim());
    Ok(())
}

/// With `on_no_space = "pause"` the machine waits, says so, and goes on when the device has grown.
pub(crate) fn pause(bed: &Bed, vmm: Vmm) -> Result<()> {
    let (device, disk) = prepare(bed, "grow-pause")?;
    let guest = bed.guest().vmm(vmm).option(CONTROL).disk(disk.set("on_no_space", "pause"));
    let mut vm = guest.quick_shell().spawn()?;
    vm.quick_shell()?;
    vm.run(WRITE)?;
    vm.send("for n in $(seq 0 23); do write $n || echo FAILED $n; done; echo WRITTEN ALL\n")?;
    let end = Instant::now() + Duration::from_secs(200);
    while !vm.errors().contains("the machine is paused") {
        ensure!(Instant::now() < end, "the machine is not paused: {}", vm.errors());
        vm.next_output(Duration::from_secs(1))?;
    }
    let mut faults = Vec::new();
    let status = ask(bed, &vm, "query-status", "")?;
    note(&format!("paused: {}", status.trim()));
    if status.contains("\"running\":true") {
        faults.push(format!("query-status of a machine that waits for space: {}", status.trim()));
    }
    grow(&device)?;
    match vm.wait_for("WRITTEN ALL", 90) {
        Ok(output) if output.contains("FAILED") => faults.push(format!("a write failed: {output}")),
        Ok(_) => {
            let status = ask(bed, &vm, "query-status", "")?;
            note(&format!("afterwards: {}", status.trim()));
            ensure!(status.contains("\"running\":true"), "{status}");
            vm.send("exit\n")?;
            vm.expect_exit(0, 120)?;
            check(bed, &vm, &device)?;
        }
        Err(error) => faults.push(format!("90 s after the device has grown: {error:#}")),
    }
    note(&format!("the log:\n{}", vm.errors().trim()));
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// With `on_no_space = "report"` writes fail until the device has grown, and then succeed.
pub(crate) fn report(bed: &Bed, vmm: Vmm) -> Result<()> {
    let (device, disk) = prepare(bed, "grow-report")?;
    let guest = bed.guest().vmm(vmm).option(CONTROL).disk(disk).quick_shell();
    let mut vm = guest.spawn()?;
    vm.quick_shell()?;
    vm.run(WRITE)?;
    let (output, _) =
        vm.run_code("for n in $(seq 0 23); do write $n >/dev/null && echo WROTE || echo FULL; done", 200)?;
    let (wrote, full) = (output.matches("WROTE").count(), output.matches("FULL").count());
    note(&format!("on the small device {wrote} writes of 1 MiB succeeded, {full} failed"));
    ensure!(wrote > 3 && full > 3, "{output}");
    grow(&device)?;
    let (output, code) =
        vm.run_code("for n in $(seq 0 23); do write $n || exit_code=1; done; [ -z \"$exit_code\" ]", 200)?;
    note(&format!("the log:\n{}", vm.errors().trim()));
    ensure!(code == 0, "writes fail although the device has grown:\n{output}");
    vm.send("exit\n")?;
    vm.expect_exit(0, 120)?;
    check(bed, &vm, &device)
}

/// A raw image on the device: `resize` to the size that it has now, and no further.
pub(crate) fn resize(bed: &Bed, vmm: Vmm) -> Result<()> {
    let device = Mapped::new(bed, "grow-resize", "/dev/shm", 64, &format!("0 {SMALL} linear DEVICE 0"))?;
    let guest = bed.guest().vmm(vmm).option(CONTROL).disk(Disk::file(&device.path())).quick_shell();
    let mut vm = guest.spawn()?;
    vm.quick_shell()?;
    grow(&device)?;
    let bytes = u64::from(LARGE) * 512;
    let more =
        ask_all(bed, &vm, &[("resize", &format!("\"target\": 0, \"size\": {}", bytes + (1 << 20)))], 60)?;
    note(&format!("resize to more than it has: {}", more.trim()));
    ensure!(more.contains("\"error\""), "a device was made larger than it is: {more}");
    let answer = ask_all(bed, &vm, &[("resize", &format!("\"target\": 0, \"size\": {bytes}"))], 60)?;
    note(&format!("resize to what it has: {}", answer.trim()));
    ensure!(answer.contains(&format!("\"size\":{bytes}")), "resize to the size of the device: {answer}");
    vm.run_for(&format!("until [ $(cat /sys/block/sda/size) = {LARGE} ]; do sleep 0.1; done"), 60)?;
    vm.send("exit\n")?;
    vm.expect_exit(0, 120)
}
