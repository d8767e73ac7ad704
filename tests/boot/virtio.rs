//! The virtio-scsi HBA with a stock driver: queues, and disks that come and go while the machine runs.

use anyhow::{Result, ensure};
use testbed::bed::Bed;
use testbed::guest::{Disk, Vmm};
use testbed::kernel::Debian;

use super::hotplug::{self, Place};

/// Each vCPU has a queue, and uses it; two I/O threads serve them.
pub(crate) fn queues(bed: &Bed, vmm: Vmm) -> Result<()> {
    let script = "set -e
         disk=$(readlink -f /dev/at/0:0:0:0); name=${disk##*/}
         echo \"QUEUES $(ls -d /sys/block/$name/mq/* | wc -l)\"
         for cpu in 0 1 2 3; do
             taskset $((1 << cpu)) dd if=/dev/urandom of=$disk bs=64k count=16 seek=$((cpu * 16)) conv=fsync 2>/dev/null
         done
         awk '/virtio.*-request/ { sum = 0; for (i = 2; i <= 5; i++) sum += $i; print \"REQUEST\", sum }' /proc/interrupts";
    let guest = bed.guest().vmm(vmm).cpus(4).hba_key("io_threads", 2).disk(Disk::empty("1G"));
    let output = guest.script(script).spawn()?.finish_script(300)?;
    ensure!(output.contains("QUEUES 4"), "not one queue for each vCPU:\n{output}");
    let counts: Vec<u64> =
        output.lines().filter_map(|line| line.trim().strip_prefix("REQUEST ")?.parse().ok()).collect();
    ensure!(counts.len() == 4 && counts.iter().all(|&count| count > 0), "a queue is idle: {counts:?}");
    Ok(())
}

pub(crate) fn hotplug_kernel12(bed: &Bed, vmm: Vmm) -> Result<()> {
    hotplug_rounds(bed, vmm, Debian::Bookworm, 3)
}

pub(crate) fn hotplug_kernel13(bed: &Bed, vmm: Vmm) -> Result<()> {
    hotplug_rounds(bed, vmm, Debian::Trixie, 3)
}

/// For the soak list.
pub(crate) fn hotplug_many(bed: &Bed, vmm: Vmm) -> Result<()> {
    hotplug_rounds(bed, vmm, Debian::Trixie, 500)
}

fn hotplug_rounds(bed: &Bed, vmm: Vmm, debian: Debian, rounds: u32) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let guest = bed.guest().vmm(vmm).kernel(debian).cpus(2).disk(Disk::empty("1G"));
    hotplug::run(bed, guest, &Place { channel: 0, rescans: false }, rounds)
}
