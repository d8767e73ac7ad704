//! The virtio-scsi HBA with a stock driver: queues, and disks that come and go while the machine runs.

use anyhow::{Result, ensure};
use testbed::bed::Bed;
use testbed::guest::{Disk, Vmm};
use testbed::kernel::Debian;

use super::hotplug::{self, Place};
use super::messages;

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
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    hotplug::many(bed, bed.guest().vmm(vmm).disk(Disk::empty("1G")), 500)
}

fn hotplug_rounds(bed: &Bed, vmm: Vmm, debian: Debian, rounds: u32) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let guest = bed.guest().vmm(vmm).kernel(debian).cpus(2).disk(Disk::empty("1G"));
    hotplug::run(bed, guest, &Place { channel: 0, rescans: false }, rounds)
}

pub(crate) fn legacy_kernel12(bed: &Bed, vmm: Vmm) -> Result<()> {
    legacy(bed, vmm, Debian::Bookworm)
}

pub(crate) fn legacy_kernel13(bed: &Bed, vmm: Vmm) -> Result<()> {
    legacy(bed, vmm, Debian::Trixie)
}

/// The driver through the legacy registers: of a device that has no others, and of one that has both.
fn legacy(bed: &Bed, vmm: Vmm, debian: Debian) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let script = format!(
        "set -e
         disk=$(readlink -f /dev/at/0:0:0:0)
         dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null
         dd if=/tmp/data of=$disk bs=64k oflag=direct 2>/dev/null
         dd if=$disk of=/tmp/back bs=64k count=128 iflag=direct 2>/dev/null
         cmp /tmp/data /tmp/back
         echo FEATURES $(cat /sys/bus/virtio/drivers/virtio_scsi/virtio*/features)
         grep virtio /proc/interrupts
         {}",
        messages::SHOW
    );
    for (interface, word) in
        [("legacy", ""), ("transitional", "virtio_pci.force_legacy=1"), ("transitional", "")]
    {
        let guest = bed.guest().vmm(vmm).kernel(debian).cpus(2).disk(Disk::empty("64M"));
        let guest = guest.hba_key("interface", interface).cmdline(word).script(&script);
        let output = guest.spawn()?.finish_script(300)?;
        let features = output.lines().find_map(|line| line.trim().strip_prefix("FEATURES "));
        let modern = interface == "transitional" && word.is_empty();
        // VIRTIO_F_VERSION_1 is bit 32.
        let version_1 = features.and_then(|bits| bits.chars().nth(32)) == Some('1');
        ensure!(version_1 == modern, "{interface} {word}: features {features:?}");
        ensure!(output.contains("-request"), "no MSI-X:\n{output}");
        messages::check(&output)?;
    }
    Ok(())
}

/// Linux makes protection information, sends it beside the data, and checks what comes back; the disk keeps it.
pub(crate) fn protection(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let script = format!(
        "set -e
         disk=$(readlink -f /dev/at/0:0:0:0); name=${{disk##*/}}
         echo \"FORMAT $(cat /sys/block/$name/integrity/format)\"
         dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null
         dd if=/tmp/data of=$disk bs=64k seek=100 oflag=direct 2>/dev/null
         dd if=$disk of=/tmp/back bs=64k skip=100 count=64 iflag=direct 2>/dev/null
         cmp /tmp/data /tmp/back
         mkfs.ext4 -q -F $disk && mount $disk /mnt
         cp /tmp/data /mnt/file && umount /mnt && mount $disk /mnt && cmp /tmp/data /mnt/file && umount /mnt
         sg_readcap -l $disk
         echo DATA IS RIGHT
         {}",
        messages::SHOW
    );
    let disk = Disk::empty("64M").set("protection", 1);
    let mut vm = bed.guest().vmm(vmm).disk(disk).script(&script).spawn()?;
    let dir = vm.dir().to_string();
    let output = vm.finish_script(300)?;
    for text in ["FORMAT T10-DIF-TYPE1-CRC", "Protection: prot_en=1, p_type=0", "DATA IS RIGHT"] {
        ensure!(output.contains(text), "{text} is missing:\n{output}");
    }
    let tuple = bed.host().shell(&format!("od -An -tx1 -j 106496 -N 8 {dir}/disk0.raw.pi"), 30)?;
    // Behind a header of 4096 bytes. Block 12800 is 3200h; bits are kept turned over.
    ensure!(tuple.trim().ends_with("ff ff cd ff"), "the reference tag is not kept: {tuple}");
    messages::check(&output)
}
