//! What a guest writes is on the disk: after a clean end, and after the VMM was killed.

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::guest::{Disk, Vmm};
use testbed::kernel::Debian;

use super::messages;

const RECORD: u64 = 512;

pub(crate) fn ext4_kernel12(bed: &Bed, vmm: Vmm) -> Result<()> {
    ext4(bed, vmm, Debian::Bookworm)
}

pub(crate) fn ext4_kernel13(bed: &Bed, vmm: Vmm) -> Result<()> {
    ext4(bed, vmm, Debian::Trixie)
}

/// The guest makes a file system on its second disk and fills it; the host finds all of it.
fn ext4(bed: &Bed, vmm: Vmm, debian: Debian) -> Result<()> {
    let script = format!(
        "set -e
         mkfs.ext4 -q -F /dev/at/0:0:1:0
         mount -t ext4 /dev/at/0:0:1:0 /mnt
         for i in 1 2 3 4 5 6 7 8; do
             dd if=/dev/urandom of=/mnt/file$i bs=1M count=$i 2>/dev/null
             mkdir /mnt/dir$i
             for j in 1 2 3 4 5 6 7 8 9; do echo $i $j > /mnt/dir$i/$j; done
         done
         cd /mnt
         find . -type f ! -name sums -exec sha256sum '{{}}' + > /tmp/sums
         cp /tmp/sums sums
         cd /
         umount /mnt
         {}",
        messages::SHOW
    );
    let guest = bed.guest().vmm(vmm).kernel(debian).cpus(2).disk(Disk::empty("1G")).disk(Disk::empty("2G"));
    let mut vm = guest.script(&script).spawn()?;
    let output = vm.finish_script(300)?;
    check_file_system(bed, &format!("{}/disk1.raw", vm.dir()))?;
    let sums =
        on_mounted(bed, &format!("{}/disk1.raw", vm.dir()), "sha256sum -c --quiet sums && wc -l < sums")?;
    ensure!(sums.trim() == "80", "the disk does not hold 80 files: {sums}");
    messages::check(&output)
}

pub(crate) fn kill_none(bed: &Bed, vmm: Vmm) -> Result<()> {
    kill(bed, vmm, Disk::empty("1G").cache("none"))
}

pub(crate) fn kill_writeback(bed: &Bed, vmm: Vmm) -> Result<()> {
    kill(bed, vmm, Disk::empty("1G").cache("writeback"))
}

/// Every record the guest was told is on the disk is there after the VMM was killed.
pub(crate) fn kill(bed: &Bed, vmm: Vmm, disk: Disk) -> Result<()> {
    let script = format!(
        "set -e
         mkfs.ext4 -q -F /dev/sda
         mount -t ext4 /dev/sda /mnt
         i=0
         while :; do
             printf 'record %-{}d\\n' $i | dd of=/mnt/records bs={RECORD} seek=$i conv=notrunc,fsync 2>/dev/null
             echo \"acknowledged $i.\"
             i=$((i + 1))
         done",
        RECORD - 8
    );
    let guest = bed.guest().vmm(vmm).cpus(2).disk(disk);
    let mut vm = guest.script(&script).spawn()?;
    vm.wait_for("acknowledged 100.", 300)?;
    vm.kill()?;
    let console = vm.console();
    let last = console.lines().filter_map(acknowledged).max().context("nothing was acknowledged")?;
    // The journal is played back by mounting; only then is the file system one to check.
    let image = format!("{}/disk0.raw", vm.dir());
    let text = on_mounted_writable(bed, &image, "cat records")?;
    check_file_system(bed, &image)?;
    let found: Vec<u64> =
        text.lines().filter_map(|line| line.strip_prefix("record ")?.trim().parse().ok()).collect();
    let missing: Vec<u64> = (0..=last).filter(|number| found.get(*number as usize) != Some(number)).collect();
    ensure!(missing.is_empty(), "of {} acknowledged records these are missing: {missing:?}", last + 1);
    Ok(())
}

fn acknowledged(line: &str) -> Option<u64> {
    line.trim().strip_prefix("acknowledged ")?.strip_suffix('.')?.parse().ok()
}

fn check_file_system(bed: &Bed, image: &str) -> Result<()> {
    let e2fsck = bed.prepared().tools().words("e2fsck", "e2fsck", None)?.join(" ");
    bed.host()
        .shell(&format!("{e2fsck} -fn {image} 2>&1"), 120)
        .map(|_| ())
        .context("checking the file system")
}

fn on_mounted(bed: &Bed, image: &str, command: &str) -> Result<String> {
    mounted(bed, image, "ro,noload,loop", command)
}

fn on_mounted_writable(bed: &Bed, image: &str, command: &str) -> Result<String> {
    mounted(bed, image, "loop", command)
}

/// Runs a command in the mounted image. It needs a root of its own on this machine, or level 1.
fn mounted(bed: &Bed, image: &str, options: &str, command: &str) -> Result<String> {
    let script = format!(
        "set -e
         mkdir -p {image}.mnt
         mount -t ext4 -o {options} {image} {image}.mnt
         (cd {image}.mnt && {command}) && code=0 || code=$?
         umount {image}.mnt
         exit $code"
    );
    bed.host().shell(&script, 120)
}
