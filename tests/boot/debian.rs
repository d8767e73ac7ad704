//! A whole Debian, from its own root file system to its own power-off.

use anyhow::{Result, ensure};
use testbed::bed::Bed;
use testbed::guest::{Disk, Vmm};
use testbed::kernel::Debian;
use testbed::vm::Vm;

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
    works(&mut vm, debian, "sda")?;
    let messages = vm.run(messages::SHOW)?;
    vm.send("poweroff\n")?;
    vm.expect_exit(0, 180)?;
    messages::check(&messages)
}

/// It has its root where it is expected, and its disk keeps what is written.
pub(crate) fn works(vm: &mut Vm<'_>, debian: Debian, root: &str) -> Result<()> {
    let disks = vm.run("lsblk --noheadings --list --output NAME,MOUNTPOINT")?;
    let found = disks.lines().any(|line| line.split_whitespace().eq([root, "/"]));
    ensure!(found, "/ is not on {root}:\n{disks}");
    let version = vm.run("cat /etc/debian_version")?;
    ensure!(version.starts_with(&debian.number().to_string()), "this is Debian {version}");
    vm.run_for("dd if=/dev/urandom of=/var/tmp/a bs=1M count=16 && cp /var/tmp/a /var/tmp/b && sync", 300)?;
    vm.run("echo 3 > /proc/sys/vm/drop_caches; cmp /var/tmp/a /var/tmp/b").map(|_| ())
}
