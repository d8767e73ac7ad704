//! A target of the host's kernel as the array: the guest's queues go there past the process (vhost-scsi).

use anyhow::{Result, ensure};
use testbed::bed::Bed;
use testbed::grub::{self, Terminal};
use testbed::guest::{Guest, Vmm};
use testbed::guest_module;
use testbed::kernel::Debian;
use testbed::report::note;
use testbed::vm::Vm;

use super::{debian, messages};

const WWPN: &str = "naa.5001405000000001";
/// What the tests make of the kernel's target, in words for the shell: `target`, and `unit N FILE`, which can be linked to a LUN.
const LIO: &str = "set -e
    modprobe configfs
    grep -q ' /sys/kernel/config ' /proc/mounts || mount -t configfs configfs /sys/kernel/config
    core=/sys/kernel/config/target/core; port=/sys/kernel/config/target/vhost/naa.5001405000000001/tpgt_1
    target() {
        modprobe -a target_core_mod target_core_file
        mkdir -p /run/testbed/target/pr; echo /run/testbed/target > /sys/kernel/config/target/dbroot 2>/dev/null || true
        modprobe vhost_scsi
        mkdir -p $port
        [ -n \"$(cat $port/nexus 2>/dev/null)\" ] || echo naa.5001405000000002 > $port/nexus
    }
    unit() {
        mkdir -p $core/fileio_0/v$1 $port/lun/lun_$1
        echo fd_dev_name=$2,fd_dev_size=$(stat -c %s $2),fd_buffered_io=1 > $core/fileio_0/v$1/control
        echo 0000000$1 > $core/fileio_0/v$1/wwn/vpd_unit_serial
        echo 1 > $core/fileio_0/v$1/enable
    }
    link() { ln -s $core/fileio_0/v$1 $port/lun/lun_$1/unit; }
    # The same file once more, past the host's page cache.
    direct() {
        mkdir -p $core/fileio_0/v$1 $port/lun/lun_$1
        echo fd_dev_name=$2,fd_dev_size=$3,fd_async_io=1 > $core/fileio_0/v$1/control
        echo 0000000$1 > $core/fileio_0/v$1/wwn/vpd_unit_serial
        echo 1 > $core/fileio_0/v$1/enable
    }
    unlink() { rm $port/lun/lun_$1/unit; }
    ";

const REMOVE: &str = "{
        port=/sys/kernel/config/target/vhost/naa.5001405000000001/tpgt_1; core=/sys/kernel/config/target/core
        rm -f $port/lun/lun_*/unit; rmdir $port/lun/lun_*; echo NULL > $port/nexus; rmdir $port ${port%/*}
        rmdir $core/fileio_0/v* $core/fileio_0
    } 2>/dev/null; true";

/// The target, which goes when this is dropped.
pub(crate) struct Lio<'a>(&'a Bed);

impl<'a> Lio<'a> {
    pub(crate) fn new(bed: &'a Bed) -> Result<Self> {
        bed.host().shell(REMOVE, 120)?;
        let lio = Self(bed);
        lio.shell("target")?;
        Ok(lio)
    }

    pub(crate) fn shell(&self, script: &str) -> Result<String> {
        self.0.host().shell(&format!("{LIO}{script}"), 120)
    }
}

impl Drop for Lio<'_> {
    fn drop(&mut self) {
        drop(self.0.host().shell(REMOVE, 120).inspect_err(|error| note(&format!("{error:#}"))));
    }
}

pub(crate) fn machine<'a>(bed: &'a Bed, vmm: Vmm) -> Guest<'a> {
    let guest = bed.guest().vmm(vmm).kernel(Debian::Trixie).cpus(2);
    guest.adapter("lio0", "vhost-scsi", toml::Table::from_iter([("wwpn".into(), WWPN.into())]))
}

/// What the machine says that cannot start.
fn refusal(guest: &Guest<'_>) -> Result<String> {
    let mut vm = guest.spawn()?;
    vm.expect_exit(1, 60)?;
    let said = vm.errors();
    note(said.trim());
    Ok(said)
}

/// Waits in the guest.
fn wait_until(vm: &mut Vm<'_>, condition: &str) -> Result<()> {
    let wait =
        format!("i=0; until {condition} || [ $i = 300 ]; do sleep 0.1; i=$((i + 1)); done; {condition}");
    vm.run(&wait).map(|_| ())
}

/// What is not there is said; units that come and go; drivers that come and go; resets; nothing of it passes through the process.
pub(crate) fn quick(bed: &Bed, vmm: Vmm) -> Result<()> {
    bed.host().shell(REMOVE, 120)?;
    bed.host().shell("rmmod vhost_scsi 2>/dev/null; true", 60)?;
    let guest = machine(bed, vmm).quick_shell();
    let said = refusal(&guest)?;
    ensure!(said.contains("hba lio0: /dev/vhost-scsi: does not exist; load the module vhost_scsi"), "{said}");
    bed.host().shell("modprobe vhost_scsi", 60)?;
    let said = refusal(&guest)?;
    ensure!(said.contains("the host's kernel has no such target") && said.contains(WWPN), "{said}");
    let lio = Lio::new(bed)?;
    let dir = bed.new_dir()?;
    lio.shell(&format!(
        "cd {dir}; head -c 64M /dev/urandom > a; truncate -s 16M b; unit 0 {dir}/a; unit 5 {dir}/b; link 0"
    ))?;
    let sum = bed.host().shell(&format!("md5sum < {dir}/a"), 60)?;
    let mut vm = guest.spawn()?;
    vm.quick_shell()?;
    let said = refusal(&guest)?;
    ensure!(said.contains("another machine has this target"), "{said}");
    let read = "dd if=/dev/sda bs=1M iflag=direct 2>/dev/null | md5sum";
    wait_until(&mut vm, "[ -b /dev/sda ]")?;
    ensure!(vm.run(read)?.trim() == sum.trim(), "other data");
    // The I/O thread slept all the while.
    let switches = format!(
        "for task in /proc/{}/task/*; do [ \"$(cat $task/comm)\" != io-lio0 ] || grep ^voluntary $task/status; done",
        vm.pid()
    );
    let before = bed.host().shell(&switches, 30)?;
    vm.run_for("dd if=/dev/zero of=/dev/sda bs=64k count=512 oflag=direct 2>/dev/null", 120)?;
    ensure!(bed.host().shell(&switches, 30)? == before, "the process took part: {before}");
    ensure!(before.contains("voluntary"), "no I/O thread");
    // A unit comes and goes.
    lio.shell("link 5")?;
    wait_until(&mut vm, "[ -b /dev/sdb ]")?;
    vm.run("ls -d /sys/class/scsi_device/0:0:1:5 && dd if=/dev/sdb of=/dev/null bs=64k iflag=direct")?;
    lio.shell("unlink 5")?;
    wait_until(&mut vm, "[ ! -e /dev/sdb ]")?;
    // The driver lets go of the device, and takes it again.
    for _ in 0..5 {
        let again = "cd /sys/bus/virtio/drivers/virtio_scsi; d=$(ls -d virtio*); echo $d > unbind; echo $d > bind; cd /";
        vm.run(again)?;
        wait_until(&mut vm, "[ -b /dev/sda ]")?;
        vm.run_for("dd if=/dev/sda of=/dev/null bs=64k iflag=direct", 120)?;
    }
    lio.shell("link 5")?;
    wait_until(&mut vm, "[ -b /dev/sdb ]")?;
    // A reset amid reads.
    vm.send("for n in 1 2 3 4; do (while :; do dd if=/dev/sda of=/dev/null bs=64k iflag=direct 2>/dev/null; done) & done\n")?;
    vm.send("sleep 1; reboot -f\n")?;
    vm.quick_shell()?;
    wait_until(&mut vm, "[ -b /dev/sda -a -b /dev/sdb ]")?;
    vm.run_for("dd if=/dev/sda of=/dev/null bs=64k iflag=direct", 120)?;
    let messages = vm.run(messages::SHOW)?;
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 60)?;
    messages::check(&messages)
}

/// The guest's own module at such an adapter: what the kernel's target answers has no length in the ring.
pub(crate) fn module(bed: &Bed, vmm: Vmm) -> Result<()> {
    let lio = Lio::new(bed)?;
    let dir = bed.new_dir()?;
    lio.shell(&format!(
        "cd {dir}; head -c 16M /dev/urandom > a; truncate -s 16M b; unit 0 {dir}/a; unit 5 {dir}/b; link 0"
    ))?;
    let sum = bed.host().shell(&format!("md5sum < {dir}/a"), 60)?;
    let prepared = bed.prepared();
    let archive = guest_module::instead(Debian::Trixie, prepared.kernel(Debian::Trixie)?, prepared.tools())?;
    let mut vm = machine(bed, vmm).archive(archive).quick_shell().spawn()?;
    vm.quick_shell()?;
    wait_until(&mut vm, "[ -b /dev/sda ]")?;
    vm.run("[ $(cat /sys/class/scsi_host/host0/proc_name) = virtio_scsi_fc ]")?;
    let read = "dd if=/dev/sda bs=1M iflag=direct 2>/dev/null | md5sum";
    ensure!(vm.run(read)?.trim() == sum.trim(), "other data");
    vm.run("dd if=/dev/zero of=/dev/sda bs=64k count=16 oflag=direct conv=fsync 2>/dev/null")?;
    let zeros = format!("head -c 1M {dir}/a | tr -d '\\0' | wc -c");
    ensure!(bed.host().shell(&zeros, 60)?.trim() == "0", "it is not written");
    lio.shell("link 5")?;
    wait_until(&mut vm, "[ -b /dev/sdb ]")?;
    lio.shell("unlink 5")?;
    wait_until(&mut vm, "[ ! -e /dev/sdb ]")?;
    let messages = vm.run(messages::SHOW)?;
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 60)?;
    let known = |line: &&str| !line.contains("virtio_scsi_fc: loading out-of-tree module taints kernel");
    messages::check(&messages.lines().filter(known).map(|line| format!("{line}\n")).collect::<String>())
}

/// Debian starts from the kernel's target by SeaBIOS, and again after a reboot.
pub(crate) fn trixie(bed: &Bed, vmm: Vmm) -> Result<()> {
    let lio = Lio::new(bed)?;
    let (dir, release) = (bed.new_dir()?, Debian::Trixie);
    let menu = grub::menu(Terminal::Serial, testbed::guest::SYSTEM_CMDLINE);
    bed.bootable_disk(release, &menu, &format!("{dir}/root"))?;
    lio.shell(&format!("unit 0 {dir}/root; link 0"))?;
    let mut vm = machine(bed, vmm).seabios().memory("1GiB").spawn()?;
    super::firmware::login(&mut vm)?;
    debian::works(&mut vm, release, "sda1")?;
    let inquiry = vm.run("cat /sys/block/sda/device/vendor /sys/block/sda/device/model")?;
    ensure!(inquiry.contains("LIO-ORG"), "{inquiry}");
    let messages = vm.run(messages::SHOW)?;
    vm.send("reboot\n")?;
    super::firmware::login(&mut vm)?;
    vm.send("poweroff\n")?;
    vm.expect_exit(0, 180)?;
    messages::check(&messages)
}
