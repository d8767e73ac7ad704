//! One kernel after the other while the host still reads into the memory of the first: what it reads late must not land in
//! the memory of the second.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::extras;
use testbed::guest::{Disk, HbaKind, Vmm};
use testbed::kernel::Debian;
use testbed::report::note;

use super::mapper::Mapped;

/// What the VMM says when the first kernel takes bus mastering away and has to wait: after 5 s.
const WAITS: &str = "taking bus mastering away waits for the host";
/// What the second kernel says when its program has all memory.
const FILLED: &str = "FILLED";
/// Until then, or until the second kernel has all memory, the host does not answer. For longer than taking bus mastering away
/// waits at most, 30 s: emulated machines are slow.
const PATIENCE: Duration = Duration::from_secs(180);
/// Reads of a MiB that are under way.
const READS: u32 = 24;

pub(crate) fn megasas(bed: &Bed, vmm: Vmm) -> Result<()> {
    late(bed, vmm, HbaKind::Megasas, Debian::Trixie)
}

/// Linux before 6.15 does not reset these devices when it shuts down: that bus mastering is taken away is all that protects
/// the next kernel.
pub(crate) fn virtio(bed: &Bed, vmm: Vmm) -> Result<()> {
    late(bed, vmm, HbaKind::Virtio, Debian::Bookworm)
}

/// The disk is read-only, so that nothing is flushed before the jump, and without `bounce`, so that the host reads into the
/// guest's own memory.
fn late(bed: &Bed, vmm: Vmm, hba: HbaKind, debian: Debian) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let device = Mapped::whole(bed, "late", READS)?;
    let fill = format!("head -c {READS}M /dev/zero | tr '\\0' '\\252' > {}", device.path());
    bed.host().shell(&fill, 60)?;
    let script = format!(
        "set -e
         cd /second; find . | cpio -o -H newc 2>/dev/null > /tmp/initrd
         echo LOADED
         read line
         for n in $(seq 0 {last}); do
             (dd if=$(ls -d /dev/at/*) of=/dev/null bs=1M count=1 skip=$n iflag=direct 2>/dev/null) &
         done
         sleep 1
         echo \"UNDER WAY $(cat /sys/block/sd?/inflight)\"
         kexec now /vmlinuz /tmp/initrd 'console=ttyS0 quiet panic=-1'",
        last = READS - 1
    );
    let kernel = bed.prepared().kernel(debian)?.image();
    let guest = bed.guest().vmm(vmm).kernel(debian).memory("384MiB").script(&script);
    let guest = guest.archive(extras::kexec(&kernel)?).archive(extras::scan()?);
    let disk = Disk::file(&device.path()).on(hba).set("readonly", true).set("bounce", false);
    let mut vm = guest.disk(disk).spawn()?;
    vm.wait_for("LOADED", 240)?;
    device.suspend()?;
    vm.send("\n")?;
    vm.wait_for("UNDER WAY", 30)?;
    let under_way = vm.wait_for("\n", 10)?;
    let jump = Instant::now();
    let early = loop {
        if vm.console().contains(FILLED) {
            break true;
        }
        if vm.errors().contains(WAITS) {
            break false;
        }
        ensure!(jump.elapsed() < PATIENCE, "neither a second kernel nor a first one that waits");
        ensure!(vm.next_output(Duration::from_secs(1))?.is_some(), "the VMM ended");
    };
    let what = if early { "the second kernel has all memory" } else { "the first kernel waits" };
    note(&format!("{what} {:.1} s after the jump", jump.elapsed().as_secs_f32()));
    device.resume()?;
    vm.wait_for(FILLED, 120)?;
    std::thread::sleep(Duration::from_secs(1));
    vm.send("\n")?;
    vm.wait_for("CHANGED ", 60)?;
    let changed = vm.wait_for(" PAGES", 10)?;
    vm.expect_exit(0, 60)?;
    let under_way: u32 =
        under_way.split_whitespace().next().and_then(|n| n.parse().ok()).context("no number")?;
    ensure!(under_way >= READS, "only {under_way} reads were under way");
    ensure!(changed == "0", "{changed} pages of the second kernel were written by reads of the first");
    ensure!(!early, "the second kernel was started while reads of the first were under way");
    note(&format!("{under_way} reads were under way"));
    Ok(())
}
