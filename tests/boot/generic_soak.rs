//! Devices of the host that guests get whole, as units of either type, when the host's queue takes less than the guest sends, when they go,
//! when they do not answer, and when the guest may not do all.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
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

/// What a guest has: devices of the host as units of this type on this adapter, at targets 0, 1, ...
#[derive(Clone, Copy)]
pub(crate) struct Units {
    kind: &'static str,
    hba: HbaKind,
}

pub(crate) const GENERIC_VIRTIO: Units = Units { kind: "generic", hba: HbaKind::Virtio };
pub(crate) const GENERIC_MEGASAS: Units = Units { kind: "generic", hba: HbaKind::Megasas };
pub(crate) const BLOCK_VIRTIO: Units = Units { kind: "block", hba: HbaKind::Virtio };
pub(crate) const BLOCK_MEGASAS: Units = Units { kind: "block", hba: HbaKind::Megasas };

impl Units {
    /// The guest, whose shell is ready.
    fn start<'a>(
        self,
        bed: &'a Bed,
        vmm: Vmm,
        archives: &[PathBuf],
        passed: &Passed<'_>,
        names: &[&str],
    ) -> Result<Vm<'a>> {
        let mut guest = guest(bed, vmm, Debian::Trixie, archives);
        for name in names {
            guest = guest.disk(passed.unit_of(self.kind, name)?.on(self.hba));
        }
        let mut vm = guest.spawn()?;
        shell(&mut vm)?;
        vm.run(RATE)?;
        Ok(vm)
    }
}

/// Queues that take 64 KiB at once, and 256 pages.
pub(crate) fn limits(bed: &Bed, vmm: Vmm, units: Units) -> Result<()> {
    let archives = archives(bed, Debian::Trixie)?;
    let passed = Passed::new(bed, &archives)?;
    little(bed, vmm, units, &archives, &passed, &["debug0", "disk"])
}

/// Adapters that take little: of level 1, which has their hardware.
pub(crate) fn adapters(bed: &Bed, vmm: Vmm, units: Units) -> Result<()> {
    if !bed.is_emulated() {
        println!("SKIPPED: adapters that take little are hardware of level 1");
        return Ok(());
    }
    let archives = archives(bed, Debian::Trixie)?;
    let mut passed = Passed::new(bed, &archives)?;
    passed.add_adapters()?;
    little(bed, vmm, units, &archives, &passed, &["few", "sata", "usb"])
}

/// The guest sends what it is told, and by a bare command more.
fn little(
    bed: &Bed,
    vmm: Vmm,
    units: Units,
    archives: &[PathBuf],
    passed: &Passed<'_>,
    names: &[&str],
) -> Result<()> {
    for name in names {
        let node = passed.block(name)?;
        let script = format!(
            "dd if=/dev/urandom of={node} bs=1M count=64 oflag=direct 2>/dev/null; cd /sys/block/{}/queue
             [ {name} = disk ] || [ $(cat max_sectors_kb) -le 64 ] || echo 64 > max_sectors_kb
             grep . max_sectors_kb max_hw_sectors_kb max_segments max_segment_size dma_alignment virt_boundary_mask",
            node.trim_start_matches("/dev/")
        );
        let queue = bed.host().shell(&script, 60)?;
        note(&format!("the queue of {name}: {}", queue.trim().replace('\n', ", ")));
    }
    let mut vm = units.start(bed, vmm, archives, passed, names)?;
    let mut faults = Vec::new();
    for target in 0..names.len() {
        let queue = vm.run(&format!("cd /sys/block/$(ls $(at {target})/block)/queue; echo $(cat max_sectors_kb max_hw_sectors_kb max_segments)"))?;
        note(&format!("the guest's queue {target}: {}", queue.trim()));
    }
    let numbered: Vec<(&str, u32)> = names.iter().copied().zip(0..).collect();
    for (name, target) in &numbered {
        // READ(16) of 1 MiB, or as much as the guest's driver was told at most.
        let read = format!(
            "kib=$(cat /sys/block/$(ls $(at {target})/block)/queue/max_hw_sectors_kb); [ $kib -le 1024 ] || kib=1024; rm -f /tmp/long
             sg_raw -r $((kib * 1024)) -o /tmp/long $(sg {target}) 88 00 00 00 00 00 00 00 00 07 00 00 $(printf '%02x %02x' $((kib * 2 / 256)) $((kib * 2 % 256))) 00 00
             echo \"LONG $kib.\"; md5sum < /tmp/long"
        );
        let here = vm.run(&read)?;
        let kib =
            here.lines().find_map(|line| line.trim().strip_prefix("LONG ")?.strip_suffix('.')?.parse().ok());
        let kib: u32 = kib.with_context(|| format!("{name}: {here}"))?;
        let count = kib * 2;
        let host = format!("dd if={} bs=512 skip=7 count={count} 2>/dev/null | md5sum", passed.block(name)?);
        let there = passed.host(&host, 60)?;
        note(&format!("{name}: {kib} KiB were read by one command"));
        if !here.contains(there.trim()) {
            faults.push(format!("{name}: {kib} KiB by one command are {here}, on the host {there}"));
        }
    }
    for (name, target) in &numbered {
        // Memory that begins anywhere, in more and smaller pieces than the host's adapter takes.
        let (said, code) = vm.run_code(&format!("odd $(disk {target}) 2>&1"), 300)?;
        note(&format!("{name}: {}", said.trim()));
        if code != 0 {
            faults.push(format!("{name}: {said}"));
        }
    }
    let [long, short] = if names.len() > 2 { [8, 3] } else { [24, 8] };
    verify(passed, &mut vm, &numbered, &format!("--size={long}m --bsrange=512-2m"), &mut faults)?;
    let options = format!("--size={short}m --bsrange=512-16k --iodepth=64");
    verify(passed, &mut vm, &numbered, &options, &mut faults)?;
    ensure!(faults.is_empty(), "{}\nthe log:\n{}", faults.join("\n"), vm.errors());
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 120)
}

/// The host loses a device while the guest writes to it: the guest hears so, and the other disk goes on. Then the host finds it again,
/// and so does the guest.
pub(crate) fn gone(bed: &Bed, vmm: Vmm, units: Units) -> Result<()> {
    let archives = archives(bed, Debian::Trixie)?;
    let passed = Passed::new(bed, &archives)?;
    let mut vm = units.start(bed, vmm, &archives, &passed, &["debug0", "debug1"])?;
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
    // Both ways, and it is the device that is read and written.
    let written = vm.run(
        "dd if=/dev/urandom of=/tmp/new bs=64k count=4 2>/dev/null; dd if=/tmp/new of=$(disk 0) bs=64k seek=3 oflag=direct 2>/dev/null
         md5sum < /tmp/new; dd if=$(disk 0) bs=64k skip=3 count=4 iflag=direct 2>/dev/null | md5sum",
    )?;
    let node = bed.host().shell(&format!("ls {device}/block"), 30)?;
    let script =
        format!("dd if=/dev/{} bs=64k skip=3 count=4 iflag=direct 2>/dev/null | md5sum", node.trim());
    let there = passed.host(&script, 60)?;
    let same = written.lines().filter(|line| line.trim() == there.trim()).count();
    ensure!(same == 2, "the guest wrote and read {written}, the host {there}");
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 120)
}

/// A device does not answer four reads: another disk is as quick as before, the guest gives up on them and is answered, and the device
/// goes on.
pub(crate) fn stalled(bed: &Bed, vmm: Vmm, units: Units) -> Result<()> {
    let archives = archives(bed, Debian::Trixie)?;
    let passed = Passed::new(bed, &archives)?;
    let mut vm = units.start(bed, vmm, &archives, &passed, &["debug0", "debug1"])?;
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
    if units.hba == HbaKind::Virtio {
        let (said, code) = vm.run_code(
            "begin=$(now); sg_reset -N -d $(sg 0); echo \"$? after $(($(now) - begin))/100 s\"",
            200,
        )?;
        note(&format!("a reset of the stalled disk: {code}: {}", said.trim().replace('\n', "; ")));
        ensure!(code == 0 && said.trim().starts_with("0 after"), "the reset is not answered: {said}");
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
