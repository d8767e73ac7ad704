//! A disk of the host that hangs beside healthy ones: these go on, and the machine can be operated and ended.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use testbed::bed::Bed;
use testbed::guest::{Disk, HbaKind, Vmm};
use testbed::report::note;
use testbed::vm::Vm;

use super::hotplug::ask_all;
use super::mapper::Mapped;

const SIGTERM: i32 = 15;
/// Seconds in which what is documented to end within 30 s must do so: hosts are busy.
const BOUND: u64 = 90;

/// What the operator does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Takes the disk away, then asks for the end.
    DetachAndQuit,
    /// Stops the process with the disk still there.
    Terminate,
}

pub(crate) fn virtio(bed: &Bed, vmm: Vmm) -> Result<()> {
    hung(bed, vmm, HbaKind::Virtio, "none", End::DetachAndQuit)
}

pub(crate) fn virtio_terminate(bed: &Bed, vmm: Vmm) -> Result<()> {
    hung(bed, vmm, HbaKind::Virtio, "writeback", End::Terminate)
}

pub(crate) fn megasas(bed: &Bed, vmm: Vmm) -> Result<()> {
    hung(bed, vmm, HbaKind::Megasas, "none", End::Terminate)
}

pub(crate) fn megasas_detach(bed: &Bed, vmm: Vmm) -> Result<()> {
    hung(bed, vmm, HbaKind::Megasas, "writeback", End::DetachAndQuit)
}

/// Target 0 hangs, 1 is a healthy raw image, 2 a healthy qcow2 one. `rate DISK` prints how many hundredths of a second its 8 MiB
/// take to read, the quickest of three times; `reset DISK` how many seconds a reset of the unit takes.
pub(super) const FUNCTIONS: &str = r#"
    at() { echo /dev/$(ls /sys/class/scsi_device/0:CHANNEL:$1:0/device/block); }
    now() { tr -d . < /proc/uptime | cut -d' ' -f1; }
    rate() {
        best=99999
        for turn in 1 2 3; do
            begin=$(now)
            dd if=$(at $1) of=/dev/null bs=64k count=128 iflag=direct 2>/dev/null || echo READ FAILED
            took=$(($(now) - begin))
            [ $took -ge $best ] || best=$took
        done
        echo "RATE $1 $best."
    }
    reset() { begin=$(now); sg_reset -N --device $(at $1); echo "RESET $1 $? $((($(now) - begin) / 100))."; }
    fill() { dd if=/tmp/z of=$(at $1) bs=1M oflag=direct 2>/dev/null; }
    head -c 8388608 /dev/zero | tr '\0' Z > /tmp/z"#;

fn hung(bed: &Bed, vmm: Vmm, hba: HbaKind, cache: &str, end: End) -> Result<()> {
    let device = Mapped::whole(bed, "hung", 64)?;
    let (raid, channel) = (hba == HbaKind::Megasas, if hba == HbaKind::Megasas { "2" } else { "0" });
    let guest = bed.guest().vmm(vmm).cpus(2).disk(Disk::file(&device.path()).cache(cache).on(hba));
    let guest = guest.disk(Disk::empty("64M").on(hba)).disk(Disk::empty("64M").qcow2().on(hba));
    let mut vm = guest.option("--set=control.path=control.sock").quick_shell().spawn()?;
    vm.quick_shell()?;
    vm.run(&FUNCTIONS.replace("CHANNEL", channel))?;
    vm.run("fill 1; fill 2")?;
    let mut faults = Vec::new();
    let before = rates(&mut vm)?;
    device.suspend()?;
    vm.run(
        "for n in 0 1 2 3; do (dd if=$(at 0) of=/dev/null bs=4k count=1 skip=$((n * 100)) iflag=direct 2>/dev/null &) ; done
         (dd if=/tmp/z of=$(at 0) bs=64k count=1 seek=8 oflag=direct 2>/dev/null &)
         sleep 2",
    )?;
    match rates(&mut vm) {
        Ok(beside) => {
            note(&format!("healthy disks, 1/100 s: {before:?}, beside the hung one: {beside:?}"));
            for (disk, (before, beside)) in before.iter().zip(&beside).enumerate() {
                if *beside > 10 * before + 500 {
                    faults.push(format!("healthy disk {}: {before} became {beside}", disk + 1));
                }
            }
        }
        Err(error) => faults.push(format!("healthy disks: {error:#}")),
    }
    if !raid && faults.is_empty() {
        // The board has no such function for its driver to call. The hung unit is not reset: while one function is under way, Linux
        // holds back whatever goes to the same adapter.
        match vm.run_for("reset 1; reset 2", BOUND) {
            Ok(output) => {
                note(&output.trim().replace('\n', "; "));
                let seconds = |disk: &str| -> Option<u64> {
                    let begin = format!("RESET {disk} 0 ");
                    let line = output.lines().find_map(|line| line.trim().strip_prefix(&begin))?;
                    line.strip_suffix('.')?.parse().ok()
                };
                for disk in ["1", "2"] {
                    if seconds(disk).is_none_or(|seconds| seconds > 5) {
                        faults.push(format!("the reset of healthy disk {disk} failed or waited: {output}"));
                    }
                }
            }
            Err(error) => faults.push(format!("resets of healthy units: {error:#}")),
        }
    }
    if end == End::DetachAndQuit {
        timed(&mut faults, "detach of the hung disk", || {
            let answer = ask_all(bed, &vm, &[("detach", "\"target\": 0")], BOUND)?;
            note(&format!("detach: {}", answer.trim()));
            Ok(())
        });
        timed(&mut faults, "reading the healthy disks after that", || {
            note(&format!("healthy disks, 1/100 s: {:?}", rates(&mut vm)?));
            Ok(())
        });
        timed(&mut faults, "quit", || {
            let answer = ask_all(bed, &vm, &[("quit", "")], BOUND)?;
            note(&format!("quit: {}", answer.trim()));
            ended(bed, &mut vm, BOUND)
        });
    } else {
        timed(&mut faults, "SIGTERM", || {
            vm.send_signal(SIGTERM)?;
            ended(bed, &mut vm, BOUND)
        });
        if !faults.is_empty() {
            timed(&mut faults, "a second SIGTERM", || {
                vm.send_signal(SIGTERM)?;
                ended(bed, &mut vm, 20)
            });
        }
    }
    check_healthy(bed, &vm, &mut faults)?;
    let log = vm.errors();
    note(&format!("the log:\n{}", log.trim()));
    if !log.contains("/dev/mapper/hung") {
        faults.push("the log does not name the hung disk".into());
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    device.resume()?;
    vm.wait_exit(60)?;
    vm.done();
    Ok(())
}

/// Waits until the process has ended, but for what the kernel keeps of it as long as the device does not answer: then it is a zombie.
fn ended(bed: &Bed, vm: &mut Vm<'_>, seconds: u64) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        if let Ok(exit) = vm.wait_exit(2) {
            note(&format!("{exit:?}"));
            return Ok(());
        }
        let state =
            bed.host().shell(&format!("sed 's/.*) //' /proc/{}/stat | cut -d' ' -f1", vm.pid()), 30)?;
        if matches!(state.trim(), "Z" | "X") {
            note("the process is a zombie");
            return Ok(());
        }
    }
    bail!("the process still runs after {seconds} s")
}

/// Hundredths of a second that reading each of the healthy disks takes.
fn rates(vm: &mut Vm<'_>) -> Result<Vec<u64>> {
    let output = vm.run_for("rate 1; rate 2", 120)?;
    let number =
        |line: &str| line.trim().strip_prefix("RATE ")?.split(' ').nth(1)?.strip_suffix('.')?.parse().ok();
    let rates: Vec<u64> = output.lines().filter_map(number).collect();
    ensure!(rates.len() == 2 && !output.contains("FAILED"), "{output}");
    Ok(rates)
}

/// Does something that must end in time, and says how long it took.
fn timed(faults: &mut Vec<String>, what: &str, work: impl FnOnce() -> Result<()>) {
    let begin = Instant::now();
    match work() {
        Ok(()) => note(&format!("{what} took {:.1} s", begin.elapsed().as_secs_f64())),
        Err(error) => faults.push(format!("{what}: {error:#}")),
    }
}

/// The healthy qcow2 image is closed, whole, and free for others to open.
fn check_healthy(bed: &Bed, vm: &Vm<'_>, faults: &mut Vec<String>) -> Result<()> {
    let image = format!("{}/disk2.qcow2", vm.dir());
    let tools = bed.prepared().tools();
    let img = tools.words("qemu-img", "qemu-img", None)?.join(" ");
    let io = tools.words("qemu-io", "qemu-io", None)?.join(" ");
    let script = format!(
        "{img} check {image} 2>&1; echo check $?; {io} -c 'write -P 1 0 512' {image} 2>&1; echo open $?"
    );
    let said = bed.host().run(&["sh", "-c", &script], Duration::from_secs(120))?.text;
    note(&format!("the healthy qcow2 image: {}", said.trim().replace('\n', "; ")));
    if !said.contains("check 0") || !said.contains("open 0") {
        faults.push(format!("the healthy qcow2 image is not closed, unlocked and whole: {said}"));
    }
    Ok(())
}
