//! The processors and the memory that a guest finds.

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::guest::{Disk, HbaKind, Vmm};
use testbed::kernel::Debian;

use super::messages;

pub(crate) fn kernel12_one_cpu(bed: &Bed, vmm: Vmm) -> Result<()> {
    check(bed, vmm, Debian::Bookworm, 1, 512)
}

pub(crate) fn kernel13_two_cpus(bed: &Bed, vmm: Vmm) -> Result<()> {
    check(bed, vmm, Debian::Trixie, 2, 3 << 10)
}

pub(crate) fn kernel13_four_cpus(bed: &Bed, vmm: Vmm) -> Result<()> {
    check(bed, vmm, Debian::Trixie, 4, 512)
}

pub(crate) fn kernel12_four_cpus(bed: &Bed, vmm: Vmm) -> Result<()> {
    check(bed, vmm, Debian::Bookworm, 4, 6 << 10)
}

/// Without IOAPIC and MSI: the interrupts of both adapters come through the router of the LPC bridge and the PICs.
pub(crate) fn without_ioapic(bed: &Bed, vmm: Vmm) -> Result<()> {
    let script = "set -e
         for d in /dev/sda /dev/sdb; do
             dd if=/dev/zero of=$d bs=64k count=32 oflag=direct 2>/dev/null
             dd if=$d of=/dev/null bs=64k count=32 iflag=direct 2>/dev/null
             echo DONE $d
         done
         dmesg | grep -i 'interrupt link' || true
         cat /proc/interrupts";
    let guest = bed.guest().vmm(vmm).kernel(Debian::Trixie).cmdline("noapic pci=nomsi");
    let guest = guest.disk(Disk::empty("64M")).disk(Disk::empty("64M").on(HbaKind::Megasas));
    let output = guest.script(script).spawn()?.finish_script(180)?;
    ensure!(output.matches("DONE /dev/sd").count() == 2, "a disk does not answer:\n{output}");
    for driver in ["virtio", "megasas"] {
        let line = output.lines().find(|line| line.contains("XT-PIC") && line.contains(driver));
        let line = line.with_context(|| format!("{driver} has no interrupt of the PICs:\n{output}"))?;
        let count = line.split_whitespace().nth(1).and_then(|count| count.parse::<u64>().ok());
        ensure!(count.is_some_and(|count| (32..100_000).contains(&count)), "{line}");
    }
    ensure!(!output.contains("nobody cared"), "interrupts are lost or wrong:\n{output}");
    Ok(())
}

fn check(bed: &Bed, vmm: Vmm, debian: Debian, cpus: u32, mebibytes: u64) -> Result<()> {
    let script = format!(
        "echo nproc=$(nproc)
         echo memory=$(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)
         lscpu -p=CPU,CORE,SOCKET | grep -v '^#' | sed 's/^/cpu=/'
         echo blocks=$(cat /sys/block/sda/size)
         {}",
        messages::SHOW
    );
    let guest = bed.guest().vmm(vmm).kernel(debian).cpus(cpus).memory(&format!("{mebibytes}MiB"));
    let output = guest.disk(Disk::empty("1G")).script(&script).spawn()?.finish_script(180)?;
    ensure!(value(&output, "nproc=")? == u64::from(cpus), "not {cpus} processors:\n{output}");
    let memory = value(&output, "memory=")?;
    // The kernel keeps some for itself: never more than 100 MiB and a part of the memory's size.
    let (most, least) = (mebibytes << 10, (mebibytes - 100 - mebibytes / 24) << 10);
    ensure!((least..=most).contains(&memory), "{memory} KiB of memory, not {least} to {most}");
    let cores = output.lines().filter_map(|line| line.trim().strip_prefix("cpu=")).collect::<Vec<_>>();
    ensure!(cores.len() as u64 == u64::from(cpus), "lscpu does not show {cpus} processors: {cores:?}");
    let mut places: Vec<_> =
        cores.iter().filter_map(|line| line.split_once(',')).map(|(_, place)| place).collect();
    places.sort_unstable();
    places.dedup();
    ensure!(places.len() == cores.len(), "processors share a core: {cores:?}");
    ensure!(value(&output, "blocks=")? == 2 << 20, "the disk does not have 1 GiB:\n{output}");
    messages::check(&output)
}

fn value(output: &str, key: &str) -> Result<u64> {
    let found = output.lines().find_map(|line| line.trim().strip_prefix(key));
    let text = found.with_context(|| format!("the guest did not print {key}:\n{output}"))?;
    text.trim().parse().with_context(|| format!("{key}{text}"))
}
