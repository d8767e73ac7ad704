//! Ports of machines with a tape, with many units, and how quick they are.

use std::fmt;

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::bench_storage::{exits, processor_time};
use testbed::extras;
use testbed::fio::{self, Fio, Job};
use testbed::guest::{Disk, Vmm};
use testbed::kernel::Debian;
use testbed::report::{median, note};
use testbed::vm::Vm;

use super::fabric::San;
use super::fc_guest::{guest, keys, memory, nothing_left, shell, units};
use super::fc_tool::Tool;

const ONE: &str = "2100000000000a01";
const TWO: &str = "2100000000000a02";

/// A tape behind the port: `tar` writes, `mt` winds, `tar` compares, and the array has it.
pub(crate) fn tape(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let _tool = Tool::new(bed)?;
    let san = San::new(bed, &[1], 1, &format!("tape t0\ndisk d0 64M\nmap any\nmap {ONE} 0=d0 27=t0\n"))?;
    let prepared = bed.prepared();
    let drivers = extras::passed(prepared.kernel(Debian::Trixie)?, prepared.tools())?;
    let guest = guest(bed, "web").archive(drivers).archive(extras::tar()?).fabric("san0", keys(ONE, &[])?);
    let done = guest.spawn().and_then(|mut vm| {
        shell(&mut vm)?;
        wind(&san, &mut vm)?;
        vm.send("poweroff -f\n")?;
        vm.expect_exit(0, 120)
    });
    done.map_err(|error| error.context(san.log()))?;
    nothing_left(&san, &[ONE], 10)
}

pub(crate) fn wind(san: &San<'_>, vm: &mut Vm<'_>) -> Result<()> {
    let said = vm.run(
            "for module in $(cat /modules.passed); do insmod $module 2>/dev/null; done
         within 100 '[ -e /dev/nst0 ]'
         (
             set -e
             mkdir /tmp/files; for number in 1 2 3 4; do head -c ${number}00000 /dev/urandom > /tmp/files/$number; done
             cd /tmp; sums=$(md5sum files/*)
             mt -f /dev/nst0 rewind; mt -f /dev/nst0 setblk 0
             gtar -cf /dev/nst0 files; gtar -cf /dev/nst0 files/1
             mt -f /dev/nst0 rewind; rm -r files
             gtar -xf /dev/nst0; [ \"$sums\" = \"$(md5sum files/*)\" ] && echo SAME SUMS
             mt -f /dev/nst0 rewind; mt -f /dev/nst0 fsf 1; gtar -tvf /dev/nst0
             mt -f /dev/nst0 rewind; gtar -df /dev/nst0
         ) 2>&1",
    )?;
    note(&format!("the guest's tape: {said}"));
    ensure!(said.contains("SAME SUMS") && said.contains("files/1"), "{said}");
    let info = san.tell("info")?;
    let tape = info.lines().find(|line| line.starts_with("tape t0")).context("no tape")?;
    note(tape);
    let bytes: u64 = tape.split_whitespace().nth(2).context("no size")?.parse()?;
    ensure!(bytes > 1_100_000, "the array's tape has {bytes} bytes");
    Ok(())
}

/// A machine with one unit, and one with 64: time and memory.
pub(crate) fn many(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let _tool = Tool::new(bed)?;
    let mut setup = "map any\n".to_string();
    for number in 0..64 {
        setup += &format!("disk d{number} 64M\n");
    }
    let san = San::new(bed, &[1], 1, &setup)?;
    for count in [1, 64] {
        let pairs: Vec<String> = (0..count).map(|number| format!("{number}=d{number}")).collect();
        san.tell(&format!("map {ONE} {}", pairs.join(" ")))?;
        let mut vm = guest(bed, "web").fabric("san0", keys(ONE, &[])?).spawn()?;
        shell(&mut vm)?;
        let ready = vm.age().as_secs_f64();
        vm.run_for(&format!("within 600 '[ $(units | wc -l) = {count} ]'"), 120)?;
        let all = vm.age().as_secs_f64();
        let found = units(&mut vm)?;
        ensure!(found.len() == count, "{} units of {count}: {}", found.len(), vm.errors());
        note(&format!(
            "{count} LUNs: the guest is there after {ready:.1} s, all of them after {all:.1} s; {}",
            memory(&san, &vm)?
        ));
        vm.run_for(
            "for unit in /sys/class/scsi_device/*; do read_one ${unit##*/} || echo FAILED $unit; done",
            120,
        )?;
        note(&format!("after a read of each: {}", memory(&san, &vm)?));
        vm.send("poweroff -f\n")?;
        vm.expect_exit(0, 120)?;
        nothing_left(&san, &[ONE], 20)?;
    }
    Ok(())
}

/// What is measured, with 32 commands at once: beside an array that takes as many milliseconds for each as disks do, and one that is as
/// quick as this machine.
const JOBS: [(&str, u32, &str); 5] = [
    ("randread", 4, "40-80"),
    ("randwrite", 4, "40-80"),
    ("randread", 4, "0"),
    ("randwrite", 4, "0"),
    ("read", 128, "0"),
];
const ROUNDS: usize = 3;
const SECONDS: u32 = 10;

/// A unit through the guest's port beside the same unit by the host's node, and beside that node passed through by QEMU: one after the
/// other, in turns.
pub(crate) fn rates(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let _tool = Tool::new(bed)?;
    let setup = format!("disk d0 512M\nmap any\nmap {ONE} 0=d0\nmap {TWO} 0=d0\n");
    let san = San::new(bed, &[1], 1, &setup)?;
    let host = san.create_vport(1, TWO, "2000000000000a02")?;
    let luns = san.wait_for_luns(&host, &["502fcf0000000001"], &[0])?;
    let node = luns.first().context("no disk on the host")?.node.clone();
    bed.host().shell("[ -d /sys/kernel/debug/kvm ] || mount -t debugfs debugfs /sys/kernel/debug", 30)?;
    let fio = Fio::prepare()?;
    let archive = fio.archive()?;
    let mut ours =
        guest(bed, "web").archive(archive.clone()).fabric("san0", keys(ONE, &["shared=true"])?).spawn()?;
    shell(&mut ours)?;
    let mut theirs =
        guest(bed, "qemu").vmm(Vmm::Qemu).archive(archive).disk(Disk::passed("block", &node)).spawn()?;
    shell(&mut theirs)?;
    for (pattern, block_kib, delay) in JOBS {
        let job = Job::new(pattern, block_kib, 32, 1);
        let code = if pattern.contains("write") { "2a" } else { "28" };
        let slow = format!("inject any {code} 1000000000 delay={delay}");
        let fault = (delay != "0").then(|| san.fault(&slow)).transpose()?;
        let (mut to_host, mut to_qemu) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            let here = measure(bed, &fio, &job, &node)?;
            let there = inside(bed, &mut ours, &job)?;
            let rival = inside(bed, &mut theirs, &job)?;
            note(&format!(
                "{}, array with {delay} ms of its own, round {round}: host {here:.0}/s; guest {there}; guest of QEMU's scsi-block {rival}",
                job.name()
            ));
            to_host.push(there.rate / here);
            to_qemu.push(there.rate / rival.rate);
        }
        fault.map_or(Ok(()), |fault| san.mend(&fault))?;
        println!(
            "{}, array with {delay} ms of its own: {:.3} of what the host's node does, {:.3} of what a guest of QEMU gets of that node",
            job.name(),
            median(&to_host),
            median(&to_qemu)
        );
    }
    note(&memory(&san, &ours)?);
    for mut vm in [ours, theirs] {
        vm.send("poweroff -f\n")?;
        vm.expect_exit(0, 120)?;
    }
    san.delete_vport(1, TWO, "2000000000000a02")
}

fn measure(bed: &Bed, fio: &Fio, job: &Job, node: &str) -> Result<f64> {
    let file = "/run/testbed/tmp/fabric.jobs";
    bed.host().put(file, fio::job_file(&[*job], node, "libaio", SECONDS, None).as_bytes())?;
    let command = format!("{} {} {file}", fio.words().join(" "), fio::OPTIONS.join(" "));
    Ok(fio::parse(&bed.host().shell(&command, 120)?, job)?.iops)
}

/// What a guest gets, and what it costs.
pub(crate) struct Inside {
    /// Operations in a second.
    pub(crate) rate: f64,
    /// Microseconds of processor time of the VMM for each, without the guest's own.
    pub(crate) cpu: f64,
    /// Exits of the guest for each.
    exits: f64,
}

impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0}/s ({:.0} us of processor, {:.2} exits each)", self.rate, self.cpu, self.exits)
    }
}

/// The same in a guest, at its only disk.
fn inside(bed: &Bed, vm: &mut Vm<'_>, job: &Job) -> Result<Inside> {
    let unit = units(vm)?.into_keys().next().context("no unit in the guest")?;
    let disk = vm.run(&format!("disk {unit}"))?;
    inside_at(bed, vm, job, disk.trim())
}

/// The same at a disk.
pub(crate) fn inside_at(bed: &Bed, vm: &mut Vm<'_>, job: &Job, disk: &str) -> Result<Inside> {
    let text = fio::job_file(&[*job], disk, "libaio", SECONDS, None);
    vm.run(&fio::here_document("/tmp/jobs".as_ref(), &text))?;
    let count = |pid| anyhow::Ok((processor_time(bed, pid)?, exits(bed)));
    let (cpu, left) = count(vm.pid())?;
    let figures = fio::parse(&vm.run_for(&format!("fio {} /tmp/jobs", fio::OPTIONS.join(" ")), 120)?, job)?;
    let (cpu_after, left_after) = count(vm.pid())?;
    // fio's second before it counts is in what was counted here.
    let operations = figures.operations.max(1.0) * f64::from(SECONDS + 1) / f64::from(SECONDS);
    Ok(Inside {
        rate: figures.iops,
        cpu: (cpu_after - cpu) * 1e6 / operations,
        exits: (left_after - left) / operations,
    })
}
