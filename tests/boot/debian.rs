//! A whole Debian, from its own root file system to its own power-off.

use anyhow::{Result, ensure};
use testbed::bed::Bed;
use testbed::guest::{Disk, Vmm};
use testbed::kernel::Debian;

use super::messages;

pub(crate) fn trixie(bed: &Bed, vmm: Vmm) -> Result<()> {
    system(bed, vmm, Debian::Trixie)
}

pub(crate) fn bookworm(bed: &Bed, vmm: Vmm) -> Result<()> {
    system(bed, vmm, Debian::Bookworm)
}

fn system(bed: &Bed, vmm: Vmm, debian: Debian) -> Result<()> {
    let guest = bed.guest().vmm(vmm).kernel(debian).cpus(2).memory("1GiB");
    let mut vm = guest.disk(Disk::debian_root(debian)).spawn()?;
    vm.wait_for_boot("login: ")?;
    vm.login("root")?;
    let disks = vm.run("lsblk --noheadings --output NAME,MOUNTPOINT")?;
    ensure!(disks.lines().any(|line| line.split_whitespace().eq(["sda", "/"])), "/ is not on sda:\n{disks}");
    let version = vm.run("cat /etc/debian_version")?;
    ensure!(version.starts_with(&debian.number().to_string()), "this is Debian {version}");
    vm.run_for("dd if=/dev/urandom of=/var/tmp/a bs=1M count=16 && cp /var/tmp/a /var/tmp/b && sync", 300)?;
    vm.run("echo 3 > /proc/sys/vm/drop_caches; cmp /var/tmp/a /var/tmp/b")?;
    let messages = vm.run(messages::SHOW)?;
    vm.send("poweroff\n")?;
    vm.expect_exit(0, 180)?;
    messages::check(&messages)
}
