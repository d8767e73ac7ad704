//! Flushes that the host failed: what was acknowledged and then lost is never called stable.

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::guest::{Disk, HbaKind, Vmm};
use testbed::report::note;
use testbed::vm::Vm;

use super::hotplug::{ask, ask_all};
use super::mapper::Mapped;

const CONTROL: &str = "--set=control.path=control.sock";

/// Finds the disk at target 1 of either kind of adapter, whatever its name is now.
const FIND: &str =
    "disk() { for block in /sys/class/scsi_device/0:0:1:0/device/block/*; do echo /dev/${block##*/}; done; }
    head -c 1048576 /dev/zero | tr '\\0' D > /tmp/data";

pub(crate) fn failed_virtio(bed: &Bed, vmm: Vmm) -> Result<()> {
    failed(bed, vmm, HbaKind::Virtio)
}

pub(crate) fn failed_megasas(bed: &Bed, vmm: Vmm) -> Result<()> {
    failed(bed, vmm, HbaKind::Megasas)
}

/// A MiB of the host's device fails writes. The guest hears of it with every flush, until the image is opened anew.
fn failed(bed: &Bed, vmm: Vmm, hba: HbaKind) -> Result<()> {
    let table = "0 65536 linear DEVICE 0
        65536 2048 error
        67584 63488 linear DEVICE 67584";
    let device = Mapped::new(bed, "flush", "/dev/shm", 64, table)?;
    let disk = Disk::file(&device.path()).cache("writeback").on(hba);
    let mut guest = bed.guest().vmm(vmm).megasas("mode", "jbod").quick_shell();
    if vmm == Vmm::Ours {
        guest = guest.option(CONTROL);
    }
    let mut vm = guest.disk(Disk::empty("64M").on(hba)).disk(disk).spawn()?;
    vm.quick_shell()?;
    vm.run(FIND)?;
    // The first flush fails, or the write itself where each is stable at once.
    let written = fails(&mut vm, "dd if=/tmp/data of=$(disk) bs=1M seek=32 oflag=direct 2>&1")?;
    let flushed = fails(&mut vm, "sg_sync -v $(disk) 2>&1")?;
    ensure!(written || flushed, "neither the write nor the flush failed");
    let mut faults = Vec::new();
    for (what, command) in [
        ("the second flush succeeded", "sg_sync -v $(disk) 2>&1"),
        ("dd conv=fsync succeeded", "dd if=/tmp/data of=$(disk) bs=1M seek=32 conv=fsync 2>&1"),
        ("fsync of another place succeeded", "dd if=/tmp/data of=$(disk) bs=1M seek=8 conv=fsync 2>&1"),
    ] {
        if !fails(&mut vm, command)? {
            faults.push(what);
        }
    }
    if vmm == Vmm::Ours {
        let state = ask(bed, &vm, "query-hbas", "")?;
        note(&format!("query-hbas: {}", state.trim()));
        if !state.contains("\"flush_failed\":true") {
            faults.push("query-hbas does not say so");
        }
    }
    device.change("0 131072 linear DEVICE 0")?;
    if !fails(&mut vm, "sg_sync -v $(disk) 2>&1")? {
        faults.push("the flush after the device was mended succeeded");
    }
    note(&format!("the log:\n{}", vm.errors().trim()));
    ensure!(faults.is_empty(), "although data is lost: {}", faults.join(", "));
    if vmm == Vmm::Ours {
        reopen(bed, &mut vm, &device.path())?;
    }
    vm.send("exit\n")?;
    vm.expect_exit(0, 120)
}

/// The disk leaves and comes again: its writes are stable from then on.
fn reopen(bed: &Bed, vm: &mut Vm<'_>, image: &str) -> Result<()> {
    // The image cannot be called clean when it closes, which is said; it is closed all the same.
    let answer = ask_all(bed, vm, &[("detach", "\"target\": 1")], 60)?;
    note(&format!("detach: {}", answer.trim()));
    vm.run("while [ -e /sys/class/scsi_device/0:0:1:0 ]; do sleep 0.1; done")?;
    ask(bed, vm, "attach", &format!("\"image\": \"{image}\", \"target\": 1"))?;
    vm.run("until [ -b \"$(disk)\" ]; do sleep 0.1; done")?;
    vm.run("dd if=/tmp/data of=$(disk) bs=1M seek=32 conv=fsync 2>&1 && sg_sync $(disk)")?;
    let script = format!("dd if={image} bs=1M skip=32 count=1 iflag=direct 2>/dev/null | tr -d D | wc -c");
    let left = bed.host().shell(&script, 60)?;
    ensure!(left.trim() == "0", "{} bytes of what was flushed are not there", left.trim());
    Ok(())
}

/// Whether a command in the guest fails; says what it printed.
fn fails(vm: &mut Vm<'_>, command: &str) -> Result<bool> {
    let (output, code) = vm.run_code(command, 120)?;
    note(&format!("{command}: {code}: {}", output.trim().replace('\n', "; ")));
    Ok(code != 0)
}

pub(crate) fn no_space_report(bed: &Bed, vmm: Vmm) -> Result<()> {
    no_space(bed, vmm, "report")
}

pub(crate) fn no_space_pause(bed: &Bed, vmm: Vmm) -> Result<()> {
    no_space(bed, vmm, "pause")
}

/// A file system that is provisioned thinly: writes succeed until the host writes its cache back. What was written is lost then, so the
/// flush fails, also when the machine may be paused for want of space; and once there is space, every flush fails still.
fn no_space(bed: &Bed, vmm: Vmm, what: &str) -> Result<()> {
    let thin = Thin::new(bed)?;
    let disk = Disk::file(&format!("{}/fs/image", thin.dir)).cache("writeback").set("on_no_space", what);
    let guest = bed.guest().vmm(vmm).option(CONTROL).disk(Disk::empty("64M")).disk(disk);
    let mut vm = guest.quick_shell().spawn()?;
    vm.quick_shell()?;
    vm.run(FIND)?;
    vm.run(
        "for n in $(seq 0 31); do dd if=/tmp/data of=$(disk) bs=1M seek=$n oflag=direct 2>/dev/null; done",
    )?;
    let flush = fails(&mut vm, "sg_sync -v $(disk) 2>&1").context("the first flush is not answered")?;
    let again = fails(&mut vm, "sg_sync -v $(disk) 2>&1")?;
    bed.host().shell(&format!("mount -o remount,size=200m {}/tmp", thin.dir), 30)?;
    let fsync = fails(&mut vm, "dd if=/tmp/data of=$(disk) bs=1M seek=1 conv=fsync 2>&1")?;
    let log = vm.errors();
    note(&format!("the log:\n{}", log.trim()));
    ensure!(
        flush && again && fsync,
        "not all failed: the flush {flush}, the next one {again}, dd conv=fsync with space {fsync}"
    );
    let status = ask(bed, &vm, "query-status", "")?;
    ensure!(status.contains("\"running\":true"), "not running: {status}");
    vm.send("exit\n")?;
    vm.wait_exit(120)?;
    vm.done();
    Ok(())
}

/// An ext4 of 64 MiB over 16 MiB of memory, which goes when this is dropped.
struct Thin<'a> {
    bed: &'a Bed,
    dir: &'static str,
}

impl<'a> Thin<'a> {
    /// Makes it, with an image in `fs`.
    fn new(bed: &'a Bed) -> Result<Self> {
        let thin = Self { bed, dir: "/run/testbed/thin" };
        thin.remove();
        let (dir, mke2fs) = (thin.dir, bed.prepared().tools().words("mke2fs", "mke2fs", None)?.join(" "));
        let script = format!(
            "set -e
             mkdir -p {dir}/tmp {dir}/fs
             mount -t tmpfs -o size=16m thin {dir}/tmp
             truncate -s 64M {dir}/tmp/thin
             {mke2fs} -q -F -t ext4 -O ^has_journal -E lazy_itable_init=0,nodiscard {dir}/tmp/thin
             mount -t ext4 -o loop {dir}/tmp/thin {dir}/fs
             truncate -s 48M {dir}/fs/image"
        );
        bed.host().shell(&script, 60)?;
        Ok(thin)
    }

    fn remove(&self) {
        let script = format!("umount {0}/fs; umount {0}/tmp; true", self.dir);
        drop(self.bed.host().shell(&script, 60).inspect_err(|error| note(&format!("{error:#}"))));
    }
}

impl Drop for Thin<'_> {
    fn drop(&mut self) {
        self.remove();
    }
}
