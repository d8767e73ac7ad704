//! Devices of the host that guests get whole, when the host's queue takes less than the guest sends, when they go, when they do not
//! answer, and when the guest may not do all.

use std::time::Instant;

use anyhow::{Result, ensure};
use testbed::bed::Bed;
use testbed::guest::{Disk, HbaKind, Vmm};
use testbed::kernel::Debian;
use testbed::report::note;
use testbed::vm::Vm;

use super::generic::{archives, guest, shell, verify};
use super::passed::Passed;

/// Hundredths of a second that 4 MiB take to read, the quickest of three times.
const RATE: &str = "now() { tr -d . < /proc/uptime | cut -d' ' -f1; }
    rate() {
        best=99999
        for turn in 1 2 3; do
            begin=$(now)
            dd if=$1 of=/dev/null bs=64k count=64 iflag=direct 2>/dev/null || echo READ FAILED
            took=$(($(now) - begin))
            [ $took -ge $best ] || best=$took
        done
        echo \"RATE $best.\"
    }";

pub(crate) fn limits_virtio(bed: &Bed, vmm: Vmm) -> Result<()> {
    limits(bed, vmm, HbaKind::Virtio)
}

pub(crate) fn limits_megasas(bed: &Bed, vmm: Vmm) -> Result<()> {
    limits(bed, vmm, HbaKind::Megasas)
}

/// Queues that take 64 KiB at once, and 256 pages; the guest sends what it is told, and by a bare command more.
fn limits(bed: &Bed, vmm: Vmm, hba: HbaKind) -> Result<()> {
    let archives = archives(bed, Debian::Trixie)?;
    let passed = Passed::new(bed, &archives)?;
    let script = |name: &str| -> Result<String> {
        let node = passed.block(name)?;
        Ok(format!(
            "dd if=/dev/urandom of={node} bs=1M count=64 oflag=direct 2>/dev/null; cd /sys/block/{}/queue;
             echo $(cat max_sectors_kb max_hw_sectors_kb max_segments max_segment_size dma_alignment);",
            node.trim_start_matches("/dev/")
        ))
    };
    let small = format!("{} echo 64 > max_sectors_kb; {}", script("debug0")?, script("disk")?);
    note(&format!("queues: {}", bed.host().shell(&small, 60)?.trim().replace('\n', "; ")));
    let disks = [passed.generic("debug0")?, passed.generic("disk")?];
    let mut vm = disks
        .into_iter()
        .fold(guest(bed, vmm, Debian::Trixie, &archives), |guest, disk| guest.disk(disk.on(hba)))
        .spawn()?;
    shell(&mut vm)?;
    let mut faults = Vec::new();
    for target in 0..2 {
        let queue = vm.run(&format!("cd /sys/block/$(ls $(at {target})/block)/queue; echo $(cat max_sectors_kb max_hw_sectors_kb max_segments)"))?;
        note(&format!("the guest's queue {target}: {}", queue.trim()));
    }
    for (name, target) in [("debug0", 0), ("disk", 1)] {
        // READ(16) of 1 MiB, unless the guest's driver was told that this is too much.
        let read = format!(
            "[ $(cat /sys/block/$(ls $(at {target})/block)/queue/max_hw_sectors_kb) -ge 1024 ] || echo TOO LONG; rm -f /tmp/long;
             sg_raw -r 1048576 -o /tmp/long $(sg {target}) 88 00 00 00 00 00 00 00 00 07 00 00 08 00 00 00; md5sum < /tmp/long"
        );
        let here = vm.run(&read)?;
        let host = format!("dd if={} bs=512 skip=7 count=2048 2>/dev/null | md5sum", passed.block(name)?);
        let there = passed.host(&host, 60)?;
        if here.contains("TOO LONG") {
            note(&format!("{name}: the guest's driver sends no 1 MiB"));
        } else if !here.contains(there.trim()) {
            faults.push(format!("{name}: 1 MiB by one command are {here}, on the host {there}"));
        }
    }
    let units = [("debug0", 0), ("disk", 1)];
    verify(&passed, &mut vm, &units, "--size=24m --bsrange=512-2m", &mut faults)?;
    verify(&passed, &mut vm, &units, "--size=8m --bsrange=512-16k --iodepth=64", &mut faults)?;
    ensure!(faults.is_empty(), "{}\nthe log:\n{}", faults.join("\n"), vm.errors());
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 120)
}

pub(crate) fn gone_virtio(bed: &Bed, vmm: Vmm) -> Result<()> {
    gone(bed, vmm, HbaKind::Virtio)
}

pub(crate) fn gone_megasas(bed: &Bed, vmm: Vmm) -> Result<()> {
    gone(bed, vmm, HbaKind::Megasas)
}

/// Whether a device that the host finds again is one for the guest as well.
const COMES_BACK: bool = true;

/// The host loses a device while the guest writes to it: the guest hears so, and the other disk goes on.
fn gone(bed: &Bed, vmm: Vmm, hba: HbaKind) -> Result<()> {
    let archives = archives(bed, Debian::Trixie)?;
    let passed = Passed::new(bed, &archives)?;
    let disks = [passed.generic("debug0")?, passed.generic("debug1")?];
    let mut vm = disks
        .into_iter()
        .fold(guest(bed, vmm, Debian::Trixie, &archives), |guest, disk| guest.disk(disk.on(hba)))
        .spawn()?;
    shell(&mut vm)?;
    vm.run(RATE)?;
    vm.run(
        "fio --name=w --filename=$(disk 0) --size=32m --direct=1 --rw=randwrite --bs=4k --iodepth=16 --ioengine=libaio --thread \
         --time_based --runtime=300 > /tmp/fio 2>&1 & fio=$!; sleep 3",
    )?;
    let device = passed.sysfs("debug0")?;
    bed.host().shell(&format!("echo 1 > {device}/delete"), 60)?;
    let begin = Instant::now();
    let (said, _) = vm.run_code("wait $fio; echo \"FIO $?\"; grep -m2 -i error /tmp/fio", 200)?;
    note(&format!(
        "fio ended {:.1} s after the device: {}",
        begin.elapsed().as_secs_f64(),
        said.trim().replace('\n', "; ")
    ));
    ensure!(said.contains("FIO 1"), "fio did not fail: {said}");
    note(&format!("the guest: {}", vm.run("dmesg | grep -iE 'sense|offline|rejecting' | tail -4")?.trim()));
    let rate = vm.run_for("rate $(disk 1)", 120)?;
    ensure!(rate.contains("RATE") && !rate.contains("FAILED"), "the other disk: {rate}");
    let host: String =
        device.split('/').nth(4).and_then(|at| at.split(':').next()).unwrap_or_default().into();
    bed.host().shell(
        &format!(
            "echo '- - -' > /sys/class/scsi_host/host{host}/scan
             for turn in $(seq 50); do [ -e {device}/block ] && exit; sleep 0.1; done; exit 1"
        ),
        60,
    )?;
    if COMES_BACK {
        let begin = Instant::now();
        let script = "for turn in $(seq 60); do dd if=$(disk 0) of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null && break; sleep 1; done
             cat $(at 0)/state; dd if=$(disk 0) of=/dev/null bs=4k count=1 iflag=direct";
        let (said, code) = vm.run_code(script, 200)?;
        note(&format!(
            "after {:.1} s: {code}: {}",
            begin.elapsed().as_secs_f64(),
            said.trim().replace('\n', "; ")
        ));
        note(&format!("the log:\n{}", vm.errors().trim()));
        ensure!(code == 0, "the device is back on the host, not in the guest: {said}");
    }
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 120)
}

pub(crate) fn stalled_virtio(bed: &Bed, vmm: Vmm) -> Result<()> {
    stalled(bed, vmm, HbaKind::Virtio)
}

pub(crate) fn stalled_megasas(bed: &Bed, vmm: Vmm) -> Result<()> {
    stalled(bed, vmm, HbaKind::Megasas)
}

/// A device does not answer four reads: another disk is as quick as before, the guest gives up on them and is answered, and the device
/// goes on.
fn stalled(bed: &Bed, vmm: Vmm, hba: HbaKind) -> Result<()> {
    let archives = archives(bed, Debian::Trixie)?;
    let passed = Passed::new(bed, &archives)?;
    let disks = [passed.generic("debug0")?, passed.generic("debug1")?];
    let mut vm = disks
        .into_iter()
        .fold(guest(bed, vmm, Debian::Trixie, &archives), |guest, disk| guest.disk(disk.on(hba)))
        .spawn()?;
    shell(&mut vm)?;
    vm.run(RATE)?;
    let before = rate(&mut vm)?;
    // scsi_debug, `error`: 0 for a command that is not answered, how often, and the operation code.
    passed.inject("debug0", "0 -4 0x28")?;
    vm.run(
        "for n in 0 1 2 3; do (dd if=$(disk 0) of=/dev/null bs=4k count=1 skip=$((n * 100)) iflag=direct 2>/tmp/dd$n; echo \"READ $n $?\" >> /tmp/reads) & done; sleep 2",
    )?;
    let begin = Instant::now();
    let beside = rate(&mut vm)?;
    note(&format!("4 MiB of the other disk, 1/100 s: {before}, beside the stalled one {beside}"));
    ensure!(beside <= 10 * before + 200, "the other disk: {before} became {beside}");
    if hba == HbaKind::Virtio {
        let (said, code) = vm.run_code(
            "begin=$(now); sg_reset -N -d $(sg 0); echo \"$? after $(($(now) - begin))/100 s\"",
            200,
        )?;
        note(&format!("a reset of the stalled disk: {code}: {}", said.trim().replace('\n', "; ")));
    }
    let said = vm.run_for("wait; cat /tmp/reads; cat /tmp/dd0", 400)?;
    note(&format!(
        "reads ended after {:.1} s: {}",
        begin.elapsed().as_secs_f64(),
        said.trim().replace('\n', "; ")
    ));
    note(&format!("the guest: {}", vm.run("dmesg | tail -12")?.trim()));
    let after = vm.run_for("rate $(disk 0); cat $(at 0)/state", 120)?;
    note(&format!(
        "the disk afterwards: {}; the log:\n{}",
        after.trim().replace('\n', "; "),
        vm.errors().trim()
    ));
    ensure!(after.contains("RATE") && !after.contains("FAILED"), "the disk does not go on: {after}");
    rate(&mut vm)?;
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 180)
}

/// Of the healthy disk.
fn rate(vm: &mut Vm<'_>) -> Result<u64> {
    let output = vm.run_for("rate $(disk 1)", 120)?;
    ensure!(!output.contains("FAILED"), "{output}");
    let line = output.lines().find_map(|line| line.trim().strip_prefix("RATE ")?.strip_suffix('.'));
    Ok(line.unwrap_or_default().parse()?)
}

/// What a guest may not do never reaches the device, and says why.
pub(crate) fn refused(bed: &Bed, vmm: Vmm) -> Result<()> {
    let archives = archives(bed, Debian::Trixie)?;
    let passed = Passed::new(bed, &archives)?;
    let disks = ["no-management", "read-only"].into_iter().zip(["debug0", "disk"]);
    let mut description = guest(bed, vmm, Debian::Trixie, &archives);
    for (allow, name) in disks {
        let disk = Disk::passed("generic", passed.sg(name)?).set("allow", allow).set("shared", true);
        description = description.disk(disk);
    }
    let mut vm = description.spawn()?;
    shell(&mut vm)?;
    let mut faults = Vec::new();
    for (target, command, words) in [
        (0, "28 00 00 00 00 00 00 00 08 00 -r 4096", "SCSI Status: Good"),
        (0, "3b 00 00 00 00 00 00 00 00 00", "Invalid command operation code"),
        (0, "04 00 00 00 00 00", "Invalid command operation code"),
        (0, "1b 00 00 00 00 00", "Invalid command operation code"),
        (0, "c5 00 00 00 00 00", "Invalid command operation code"),
        (1, "5e 00 00 00 00 00 00 00 08 00 -r 8", "SCSI Status: Good"),
        (1, "5f 00 01 00 00 00 00 00 18 00 -s 24 -i /dev/zero", "Invalid command operation code"),
        (1, "2a 00 00 00 00 00 00 00 01 00 -s 512 -i /dev/zero", "Write protected"),
    ] {
        let (cdb, options) = command
            .split_once(" -")
            .map_or((command, String::new()), |(cdb, more)| (cdb, format!("-{more}")));
        let (said, code) =
            vm.run_code(&format!("sg_raw {options} $(sg {target}) {cdb} 2>&1 | head -8"), 60)?;
        if !said.contains(words) {
            faults.push(format!("{cdb} at {target}: {code}: {said}"));
        }
    }
    let read_only = vm.run("cat /sys/block/$(ls $(at 0)/block)/ro /sys/block/$(ls $(at 1)/block)/ro")?;
    if read_only.split_whitespace().ne(["0", "1"]) {
        faults.push(format!("read only: {read_only}"));
    }
    note(&format!("the log:\n{}", vm.errors().trim()));
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 120)
}
