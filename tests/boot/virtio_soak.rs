//! The virtio-scsi HBA under a driver that comes, goes and resets with I/O under way, and on a host that is slow.

use std::time::Instant;

use anyhow::{Result, ensure};
use testbed::bed::Bed;
use testbed::bench::own_memory;
use testbed::guest::{Disk, Guest, Vmm};
use testbed::kernel::Debian;
use testbed::report::note;
use testbed::vm::Vm;

/// Shell functions: `disk` waits for the disk and names it, `load` keeps reading and writing it until that fails,
/// `guard` takes memory that transfers of before may still know, and `check` looks whether one of them wrote there.
const FUNCTIONS: &str = r#"
    disk() {
        while :; do
            for block in /sys/class/scsi_device/*:0:0:0/device/block/*; do
                [ -b "/dev/${block##*/}" ] && echo "/dev/${block##*/}" && return
            done
            sleep 0.1
        done
    }
    load() {
        for part in 0 1 2 3; do
            while dd if=$1 of=/dev/null bs=64k skip=$((part * 64)) count=64 iflag=direct 2>/dev/null; do :; done &
        done
        while dd if=/tmp/z of=$1 bs=64k seek=256 oflag=direct 2>/dev/null; do :; done &
    }
    guard() { dd if=/dev/zero of=/tmp/canary bs=1M count=$1 2>/dev/null; }
    check() { cmp -n $(($1 * 1048576)) /tmp/canary /dev/zero || echo "CANARY DIED"; rm /tmp/canary; }
    head -c 4194304 /dev/zero | tr '\0' Z > /tmp/z
"#;

/// A disk full of letters, so that a transfer to the wrong place shows.
fn full_disk(bed: &Bed) -> Result<Disk> {
    let dir = bed.new_dir()?;
    let file = format!("{dir}/full.img");
    bed.host().shell(&format!("head -c 33554432 /dev/zero | tr '\\0' Z > {file}"), 60)?;
    Ok(Disk::file(&file))
}

/// Bytes and descriptors of the VMM's process.
pub(super) fn footprint(bed: &Bed, vm: &Vm<'_>) -> Result<(u64, u64)> {
    let count = bed.host().shell(&format!("ls /proc/{}/fd | wc -l", vm.pid()), 30)?;
    Ok((own_memory(bed, vm.pid())?, count.trim().parse()?))
}

/// Lets `rounds` rounds go by, each announced by "ROUND n", and compares the footprints from the tenth part on.
fn watch(bed: &Bed, mut vm: Vm<'_>, rounds: u32, what: &str) -> Result<()> {
    let begin = Instant::now();
    let mut early = (0, 0);
    for round in 1..=rounds {
        vm.wait_for(&format!("ROUND {round} "), 300)?;
        if round == rounds.div_ceil(10) {
            early = footprint(bed, &vm)?;
        }
    }
    let late = footprint(bed, &vm)?;
    ensure!(late.0 > 0, "the process is gone already");
    let output = vm.wait_for("TESTBED EXIT 0", 300)?;
    let console = vm.console();
    ensure!(!console.contains("CANARY DIED"), "a write after a reset:\n{output}");
    note(&format!(
        "{what}: {rounds} rounds in {:.0} s, from {} KiB and {} descriptors to {} KiB and {}",
        begin.elapsed().as_secs_f64(),
        early.0,
        early.1,
        late.0,
        late.1
    ));
    ensure!(late.1 <= early.1, "{early:?} became {late:?}: descriptors leak");
    // Pages of stacks and pools are touched as time goes by; a leak of a page for each round would show.
    ensure!(late.0 < early.0 + 256 + 2 * u64::from(rounds), "{early:?} became {late:?}: memory leaks");
    vm.expect_exit(0, 120)
}

pub(crate) fn unbind(bed: &Bed, vmm: Vmm) -> Result<()> {
    unbind_rounds(bed, vmm, 10)
}

pub(crate) fn unbind_100(bed: &Bed, vmm: Vmm) -> Result<()> {
    unbind_rounds(bed, vmm, 100)
}

/// The device is taken from its driver under I/O and given back.
fn unbind_rounds(bed: &Bed, vmm: Vmm, rounds: u32) -> Result<()> {
    let step = "echo $device > $driver/unbind
             guard 24
             wait
             check 24
             echo $device > $driver/bind";
    again_under_load(bed, vmm, rounds, step, "unbind and bind")
}

pub(crate) fn reload(bed: &Bed, vmm: Vmm) -> Result<()> {
    reload_rounds(bed, vmm, 10)
}

pub(crate) fn reload_100(bed: &Bed, vmm: Vmm) -> Result<()> {
    reload_rounds(bed, vmm, 100)
}

/// The driver's module goes as soon as it can after the device was taken from it under I/O, and comes again.
fn reload_rounds(bed: &Bed, vmm: Vmm, rounds: u32) -> Result<()> {
    let step = "echo $device > $driver/unbind
             wait
             until rmmod virtio_scsi 2>/dev/null; do sleep 0.1; done
             guard 24
             insmod /lib/virtio_scsi.ko
             check 24";
    again_under_load(bed, vmm, rounds, step, "rmmod and insmod")
}

/// Does `step` in a guest that writes, and looks whether the disk is there afterwards, again and again.
fn again_under_load(bed: &Bed, vmm: Vmm, rounds: u32, step: &str, what: &str) -> Result<()> {
    let script = format!(
        "{FUNCTIONS}
         driver=/sys/bus/virtio/drivers/virtio_scsi
         device=$(cd $driver; echo virtio*)
         round=1
         while [ $round -le {rounds} ]; do
             load $(disk)
             sleep 0.5
             {step}
             dd if=$(disk) of=/tmp/back bs=1M count=1 iflag=direct 2>/dev/null
             cmp -n 1048576 /tmp/back /tmp/z || exit 1
             echo \"ROUND $round done\"
             round=$((round + 1))
         done
         # Long enough for a look at the process.
         sleep 10"
    );
    let vm = bed.guest().vmm(vmm).cpus(2).disk(full_disk(bed)?).script(&script).spawn()?;
    watch(bed, vm, rounds, what)
}

pub(crate) fn resets(bed: &Bed, vmm: Vmm) -> Result<()> {
    reset_rounds(bed, vmm, 4)
}

pub(crate) fn resets_30(bed: &Bed, vmm: Vmm) -> Result<()> {
    reset_rounds(bed, vmm, 30)
}

/// The guest resets itself at once (sysrq b) with slow transfers under way; what the next kernel has in its memory stays.
fn reset_rounds(bed: &Bed, vmm: Vmm, rounds: u32) -> Result<()> {
    let script = format!(
        "{FUNCTIONS}
         count=/dev/at/0:0:1:0
         [ -e $count ] || count=$(readlink -f /dev/at/*:0:1:0)
         guard 300
         round=$(dd if=$count bs=512 count=1 iflag=direct 2>/dev/null | tr -dc 0-9)
         sleep 1
         check 300
         dd if=$(disk) of=/tmp/back bs=64k count=1 iflag=direct 2>/dev/null
         cmp -n 65536 /tmp/back /tmp/z || exit 1
         round=$((${{round:-0}} + 1))
         echo \"ROUND $round done\"
         if [ $round -le {rounds} ]; then
             echo $round | dd of=$count bs=512 conv=sync oflag=direct 2>/dev/null
             load $(disk)
             sleep 1
             echo b > /proc/sysrq-trigger
             sleep 100
         fi
         true"
    );
    let slow: toml::Table = [("iops".to_owned(), toml::Value::from(40))].into_iter().collect();
    let disk = full_disk(bed)?.set("throttle", slow);
    let guest = bed.guest().vmm(vmm).cpus(2).disk(disk).disk(Disk::empty("1M"));
    watch(bed, guest.script(&script).spawn()?, rounds, "guest resets")
}

/// Resets by `sg_reset` and timeouts, on a disk that answers twice in a second. Linux's driver never gives a command up:
/// its device promises to answer (`virtscsi_eh_timed_out`).
pub(crate) fn recovery(bed: &Bed, vmm: Vmm) -> Result<()> {
    let script = format!(
        "{FUNCTIONS}
         disk=$(disk)
         echo 1 > /sys/block/${{disk##*/}}/device/timeout
         for kind in none device target bus host; do
             for part in 0 1 2 3 4 5; do
                 dd if=$disk of=/tmp/part$part bs=4k count=1 skip=$((part * 8)) iflag=direct 2>/dev/null &
             done
             sleep 0.3
             if [ $kind != none ]; then
                 sg_reset -N --$kind $disk
                 echo \"RESET $kind $?\"
             fi
             wait
             for part in 0 1 2 3 4 5; do
                 cmp -n 4096 /tmp/part$part /tmp/z || echo \"PART $part IS WRONG\"
             done
             echo \"SERVED $kind $(cat /sys/block/${{disk##*/}}/device/state)\"
         done
         dmesg | tail -n 30"
    );
    let slow: toml::Table = [("iops".to_owned(), toml::Value::from(2))].into_iter().collect();
    let disk = full_disk(bed)?.set("throttle", slow);
    let output = bed.guest().vmm(vmm).disk(disk).script(&script).spawn()?.finish_script(500)?;
    note(&output);
    ensure!(!output.contains("IS WRONG"), "data is wrong:\n{output}");
    ensure!(output.contains("RESET device 0"), "LOGICAL UNIT RESET failed:\n{output}");
    for kind in ["none", "device", "target", "bus", "host"] {
        ensure!(output.contains(&format!("SERVED {kind} running")), "after {kind}:\n{output}");
    }
    for bad in ["offline", "I/O error", "blocked for more than"] {
        ensure!(!output.contains(bad), "the kernel says \"{bad}\":\n{output}");
    }
    Ok(())
}

/// A device of the host that takes four seconds for each operation, which nobody can end sooner: a reset of the unit waits
/// until the kernel lets go of the guest's memory, and all goes on.
pub(crate) fn stall(bed: &Bed, vmm: Vmm) -> Result<()> {
    let device = bed.host().shell(
        "modprobe null_blk nr_devices=0 2>/dev/null
         [ -d /sys/kernel/config/nullb ] || mount -t configfs configfs /sys/kernel/config
         cd /sys/kernel/config/nullb
         if [ ! -d slow ]; then
             mkdir slow; cd slow
             echo 64 > size; echo 1 > memory_backed; echo 2 > irqmode; echo 4000000000 > completion_nsec; echo 1 > power
         fi
         [ -b /dev/slow ] && echo /dev/slow || echo /dev/nullb$(cat /sys/kernel/config/nullb/slow/index)",
        60,
    )?;
    let script = format!(
        "{FUNCTIONS}
         disk=$(disk)
         echo 1 > /sys/block/${{disk##*/}}/device/timeout
         for part in 0 1 2 3; do
             dd if=/tmp/z of=$disk bs=4k count=1 seek=$part oflag=direct 2>/dev/null && echo WRITTEN $part &
         done
         sleep 1
         begin=$(date +%s)
         sg_reset -N --device $disk
         echo \"RESET $? after $(($(date +%s) - begin)) s\"
         wait
         dd if=$disk of=/tmp/back bs=16k count=1 iflag=direct 2>/dev/null
         cmp -n 16384 /tmp/back /tmp/z || echo DATA IS WRONG
         echo \"STATE $(cat /sys/block/${{disk##*/}}/device/state)\"
         dmesg | tail -n 12"
    );
    let disk = Disk::file(device.trim());
    let output = bed.guest().vmm(vmm).disk(disk).script(&script).spawn()?.finish_script(400)?;
    note(&output);
    ensure!(output.contains("RESET 0") && !output.contains("IS WRONG"), "no recovery:\n{output}");
    ensure!(output.matches("WRITTEN").count() == 4, "a write is lost:\n{output}");
    ensure!(output.contains("STATE running"), "the disk is not running:\n{output}");
    for bad in ["offline", "I/O error", "blocked for more than"] {
        ensure!(!output.contains(bad), "the kernel says \"{bad}\":\n{output}");
    }
    Ok(())
}

/// 1024 disks: 256 targets with four units each.
pub(crate) fn scale(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let dir = bed.new_dir()?;
    let image = format!("{dir}/one.img");
    bed.host().shell(&format!("truncate -s 1M {image}"), 30)?;
    let script = "until [ $(ls /sys/class/scsi_disk | wc -l) = 1024 ]; do sleep 1; done
         echo \"ALL $(cut -d' ' -f1 /proc/uptime) s\"
         ls /sys/class/scsi_disk | cut -d: -f3 | sort -un | wc -l
         cat /sys/class/scsi_disk/*:0:255:3/device/block/*/size";
    let unit = |target: i64, lun: i64| {
        Disk::file(&image).set("readonly", true).set("target", target).set("lun", lun).cache("writeback")
    };
    let units = (0..256).flat_map(|target| (0..4).map(move |lun| (target, lun)));
    let guest = units.fold(bed.guest(), |guest: Guest<'_>, (target, lun)| guest.disk(unit(target, lun)));
    let mut vm = guest.vmm(vmm).kernel(Debian::Trixie).cpus(2).script(script).spawn()?;
    let begin = Instant::now();
    vm.wait_for("ALL ", 580)?;
    let (kib, descriptors) = footprint(bed, &vm)?;
    note(&format!(
        "1024 disks: found after {:.0} s; {kib} KiB and {descriptors} descriptors",
        begin.elapsed().as_secs_f64()
    ));
    let output = vm.wait_for("TESTBED EXIT 0", 120)?;
    vm.expect_exit(0, 60)?;
    ensure!(output.contains("256\n") && output.contains("2048\n"), "not all units are there:\n{output}");
    Ok(())
}
