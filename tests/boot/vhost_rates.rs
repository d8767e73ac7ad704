//! How quick a unit of the kernel's target is, beside a disk of ours: the same device of the host in one guest, in turns.

use anyhow::{Context, Result};
use testbed::bed::Bed;
use testbed::fio::{Fio, Job};
use testbed::guest::{Disk, Vmm};
use testbed::report::{median, note};

use super::fc_guest::shell;
use super::fc_scale::{Inside, inside_at};
use super::vhost::{Lio, machine};

/// Memory, which answers at once.
const DEVICE: &str = "/dev/nullb0";
const MAKE: &str = "[ -d /sys/kernel/debug/kvm ] || mount -t debugfs debugfs /sys/kernel/debug
    [ -e /dev/nullb0 ] || modprobe null_blk nr_devices=1 memory_backed=1 gb=1 bs=512 hw_queue_depth=256
    dd if=/dev/urandom of=/dev/nullb0 bs=1M count=512 oflag=direct 2>/dev/null";
const BYTES: u64 = 1 << 30;

const JOBS: [(&str, u32, u32); 6] = [
    ("randread", 4, 1),
    ("randwrite", 4, 1),
    ("randread", 4, 32),
    ("randwrite", 4, 32),
    ("read", 128, 8),
    ("write", 128, 8),
];
const ROUNDS: usize = 3;

/// Disks of ours, and of the kernel's target with direct I/O and with the host's page cache.
pub(crate) fn rates(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    bed.host().shell(MAKE, 120)?;
    let lio = Lio::new(bed)?;
    lio.shell(&format!(
        "direct 0 {DEVICE} {BYTES}; link 0
         mkdir -p $core/fileio_0/v1 $port/lun/lun_1
         echo fd_dev_name={DEVICE},fd_dev_size={BYTES},fd_buffered_io=1 > $core/fileio_0/v1/control
         echo 00000001 > $core/fileio_0/v1/wwn/vpd_unit_serial; echo 1 > $core/fileio_0/v1/enable; link 1"
    ))?;
    let archive = Fio::prepare()?.archive()?;
    let guest = machine(bed, vmm).memory("1GiB").archive(archive).disk(Disk::file(DEVICE).cache("none"));
    let mut vm = guest.quick_shell().spawn()?;
    shell(&mut vm)?;
    vm.run("within 100 '[ $(units | wc -l) = 3 ]'")?;
    let find = "for disk in /sys/block/sd*; do
            echo none > $disk/queue/scheduler
            echo DISK $(cat $disk/device/vendor) $(readlink $disk/device | sed 's/.*://') /dev/${disk##*/}
        done";
    let said = vm.run(find)?;
    let disk = |theirs: bool, lun: &str| {
        let line = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|words| {
            matches!(words[..], ["DISK", vendor, number, _] if (vendor == "LIO-ORG") == theirs && number == lun)
        });
        line.and_then(|words| words.last().map(ToString::to_string)).with_context(|| said.clone())
    };
    let disks = [disk(false, "0")?, disk(true, "0")?, disk(true, "1")?];
    for (pattern, block_kib, depth) in JOBS {
        let job = Job::new(pattern, block_kib, depth, 1);
        let mut all: [Vec<Inside>; 3] = Default::default();
        for round in 1..=ROUNDS {
            for (disk, list) in disks.iter().zip(&mut all) {
                list.push(inside_at(bed, &mut vm, &job, disk)?);
            }
            let last: Vec<String> =
                all.iter().filter_map(|list| list.last().map(ToString::to_string)).collect();
            note(&format!("{}, round {round}: ours {}", job.name(), last.join("; vhost-scsi ")));
        }
        let rate = |list: &[Inside]| median(&list.iter().map(|one| one.rate).collect::<Vec<_>>());
        let cpu = |list: &[Inside]| median(&list.iter().map(|one| one.cpu).collect::<Vec<_>>());
        let [ours, direct, cached] = &all;
        println!(
            "{}: ours {:.0}/s, {:.0} us CPU each; vhost-scsi past the page cache {:.0}/s, {:.0} us: {:.2}; by the page cache {:.0}/s, {:.0} us: {:.2}",
            job.name(),
            rate(ours),
            cpu(ours),
            rate(direct),
            cpu(direct),
            rate(ours) / rate(direct),
            rate(cached),
            cpu(cached),
            rate(ours) / rate(cached),
        );
    }
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 60)?;
    Ok(())
}
