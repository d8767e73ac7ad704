//! One kernel after the other on a MegaRAID SAS board, without a reset of the machine in between.

use anyhow::{Result, ensure};
use testbed::bed::Bed;
use testbed::extras;
use testbed::guest::{Disk, HbaKind, Vmm};
use testbed::kernel::Debian;

/// The next kernel is started by the first, which shuts its devices down while commands are under way.
pub(crate) fn kexec(bed: &Bed, vmm: Vmm) -> Result<()> {
    hand_over(bed, vmm, Debian::Trixie, "gen2", false)
}

/// The first kernel crashes: the next finds a controller that is operational, with a ring and commands in flight.
pub(crate) fn kdump(bed: &Bed, vmm: Vmm) -> Result<()> {
    hand_over(bed, vmm, Debian::Trixie, "gen2", true)
}

pub(crate) fn kdump_1078_kernel12(bed: &Bed, vmm: Vmm) -> Result<()> {
    hand_over(bed, vmm, Debian::Bookworm, "1078", true)
}

/// The second disk takes a write in a second: some are under way at any time.
fn hand_over(bed: &Bed, vmm: Vmm, debian: Debian, model: &str, crash: bool) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let how = if crash { "crash" } else { "now" };
    let script = format!(
        "set -e
         sum() {{ dd if=/dev/at/0:2:0:0 bs=1M count=16 iflag=direct 2>/dev/null | md5sum; }}
         if grep -q second /proc/cmdline; then
             echo SECOND $(sum)
             dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null
             for disk in /dev/at/*; do
                 dd if=/tmp/data of=$disk bs=4k count=4 seek=8192 oflag=direct conv=notrunc 2>/dev/null
                 dd if=$disk of=/tmp/back bs=4k count=4 skip=8192 iflag=direct 2>/dev/null
                 cmp -n 16384 /tmp/data /tmp/back
             done
             cat /sys/class/scsi_host/host0/fw_cmds_outstanding | sed 's/^/OUTSTANDING /'
             dmesg | grep -i megaraid
             exit 0
         fi
         dd if=/dev/urandom of=/dev/at/0:2:0:0 bs=1M count=16 oflag=direct conv=notrunc 2>/dev/null
         echo FIRST $(sum)
         cd /
         find . -xdev | grep -v -e '^./proc/' -e '^./sys/' -e '^./dev/' -e '^./tmp/' | cpio -o -H newc 2>/dev/null > /tmp/initrd
         kexec {how} /vmlinuz /tmp/initrd 'console=ttyS0 quiet panic=-1 second maxcpus=1' || [ {how} = now ]
         for n in 1 2 3 4 5 6; do
             (while dd if=/dev/at/0:2:0:0 of=/dev/null bs=64k iflag=direct 2>/dev/null; do :; done) &
             (while dd if=/dev/zero of=/dev/at/0:2:1:0 bs=4k count=1 seek=$n oflag=direct conv=notrunc 2>/dev/null; do :; done) &
         done
         sleep 2
         cat /sys/class/scsi_host/host0/fw_cmds_outstanding | sed 's/^/UNDER WAY /'
         echo c > /proc/sysrq-trigger"
    );
    // Without a crash, the kernel is loaded and started in one, while commands are under way.
    let script = if crash {
        script
    } else {
        let kexec = script.lines().find(|line| line.trim_start().starts_with("kexec ")).unwrap_or_default();
        script.replace(kexec, "").replace("echo c > /proc/sysrq-trigger", kexec.trim())
    };
    let disk = |size: &str| Disk::empty(size).on(HbaKind::Megasas);
    let slow =
        disk("64M").set("throttle", toml::Table::from_iter([("iops_write".into(), toml::Value::from(1))]));
    let kernel = bed.prepared().kernel(debian)?.image();
    let guest = bed.guest().vmm(vmm).kernel(debian).megasas("model", model).memory("2GiB");
    let guest = guest.cmdline("crashkernel=320M").archive(extras::kexec(&kernel)?);
    let output = guest.disk(disk("1G")).disk(slow).script(&script).spawn()?.finish_script(400)?;
    let word = |name: &str| output.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    ensure!(word("FIRST ").is_some() && word("FIRST ") == word("SECOND "), "not the same data:\n{output}");
    let under_way = word("UNDER WAY ").and_then(|count| count.parse::<u32>().ok()).unwrap_or(0);
    ensure!(under_way > 1, "nothing was under way:\n{output}");
    ensure!(output.contains("FW now in Ready state"), "the second kernel did not take over:\n{output}");
    for text in ["killing", "FAULT", "start aen failed", "failed to init"] {
        ensure!(!output.contains(text), "the driver says {text}:\n{output}");
    }
    println!("  {under_way} commands were under way");
    Ok(())
}
