//! A machine that is paused: no time goes by for the guest, whichever of its clocks it goes by, and its kernel has nothing
//! to say about it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::guest::{Disk, HbaKind, Vmm};
use testbed::kernel::Debian;
use testbed::report::note;
use testbed::vm::Vm;

use super::hotplug::ask;
use super::messages::is_allowed;

/// How the guest's kernel looks for what is stuck: after seconds, and how long it is let look.
#[derive(Clone, Copy)]
struct Watch {
    stall: Option<u64>,
    look: u64,
}

/// As Linux does by itself: watchdogs look every few seconds, and for a stall after 21.
const PATIENT: Watch = Watch { stall: None, look: 25 };
/// In more of a hurry: a pause of six seconds that is time for the guest is a stall.
const HASTY: Watch = Watch { stall: Some(5), look: 8 };

/// Shell functions: `clocks` prints the time since the start, that of the guest's system clock and that of the RTC, in
/// seconds; `busy` begins work on both processors and the disk; `complaints N` prints what the kernel has said since message N.
const FUNCTIONS: &str = r#"
    source=/sys/devices/system/clocksource/clocksource0
    clocks() { echo $(cut -d' ' -f1 /proc/uptime) $(date +%s) $(cat /sys/class/rtc/rtc0/since_epoch); }
    busy() {
        (while :; do :; done) &
        (while :; do dd if=/dev/sda of=/dev/null bs=64k count=64 iflag=direct; done >/dev/null 2>&1) &
        (while :; do sleep 0.1; done) &
    }
    complaints() { dmesg -r | tail -n +$(($1 + 1)) | awk -F'[<>]' '$2 % 8 < 5 || /rcu|stall|lockup|unstable|skew|hung|clocksource/'; }"#;

/// Clock sources of Linux that this is about; the last is the power management timer.
const SOURCES: [&str; 3] = ["kvm-clock", "tsc", "acpi_pm"];

pub(crate) fn pause_6(bed: &Bed, vmm: Vmm) -> Result<()> {
    pause(bed, vmm, Debian::Trixie, 6, HASTY)
}

pub(crate) fn pause_60(bed: &Bed, vmm: Vmm) -> Result<()> {
    pause(bed, vmm, Debian::Trixie, 60, PATIENT)
}

pub(crate) fn pause_60_kernel12(bed: &Bed, vmm: Vmm) -> Result<()> {
    pause(bed, vmm, Debian::Bookworm, 60, PATIENT)
}

pub(crate) fn pause_300(bed: &Bed, vmm: Vmm) -> Result<()> {
    pause(bed, vmm, Debian::Trixie, 300, PATIENT)
}

/// The three clocks of the guest, in seconds.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    uptime: f64,
    system: f64,
    rtc: f64,
}

impl Clocks {
    fn read(vm: &mut Vm<'_>) -> Result<Self> {
        let text = vm.run("clocks")?;
        let numbers = text.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>();
        match numbers.with_context(|| text.clone())?.as_slice() {
            &[uptime, system, rtc] => Ok(Self { uptime, system, rtc }),
            _ => anyhow::bail!("no clocks: {text}"),
        }
    }

    fn since(self, earlier: Self) -> Self {
        let (uptime, system) = (self.uptime - earlier.uptime, self.system - earlier.system);
        Self { uptime, system, rtc: self.rtc - earlier.rtc }
    }
}

fn pause(bed: &Bed, vmm: Vmm, debian: Debian, seconds: u64, watch: Watch) -> Result<()> {
    let guest = bed.guest().vmm(vmm).kernel(debian).cpus(2).disk(Disk::empty("64M").on(HbaKind::Megasas));
    let mut vm = guest.option("--set=control.path=control.sock").quick_shell().spawn()?;
    vm.quick_shell()?;
    vm.run(FUNCTIONS)?;
    let available = vm.run("cat $source/available_clocksource")?;
    note(&format!("available: {}", available.trim()));
    if let Some(stall) = watch.stall {
        vm.run(&format!("echo {stall} > /sys/module/rcupdate/parameters/rcu_cpu_stall_timeout"))?;
    }
    vm.run("busy")?;
    let mut faults = Vec::new();
    for source in SOURCES {
        if !available.split_whitespace().any(|name| name == source) {
            note(&format!("the guest has no {source}"));
            continue;
        }
        vm.run(&format!("echo {source} > $source/current_clocksource; sleep 2"))?;
        let said = vm.run("dmesg | wc -l")?;
        let (before, begin) = (Clocks::read(&mut vm)?, Instant::now());
        ask(bed, &vm, "pause", "")?;
        let paused = Instant::now();
        sleep(Duration::from_secs(seconds));
        let paused = paused.elapsed().as_secs_f64();
        ask(bed, &vm, "resume", "")?;
        let passed = Clocks::read(&mut vm)?.since(before);
        let awake = begin.elapsed().as_secs_f64() - paused;
        note(&format!(
            "{source}: paused for {paused:.1} s, awake for {awake:.1} s, for the guest {passed:?}"
        ));
        vm.run_for(&format!("sleep {}", watch.look), 300)?;
        let complaints = vm.run(&format!("complaints {}", said.trim()))?;
        let complaints: Vec<&str> =
            complaints.lines().filter(|line| !line.trim().is_empty() && !is_allowed(line)).collect();
        if !complaints.is_empty() {
            faults.push(format!("{source}: the kernel complains:\n{}", complaints.join("\n")));
        }
        let now = vm.run("cat $source/current_clocksource")?;
        if now.trim() != source {
            faults.push(format!("{source} was given up for {}", now.trim()));
        }
        // Whole seconds: each may be one off.
        if passed.uptime > awake + 0.5 || passed.system > awake + 1.5 {
            faults.push(format!("{source}: the pause was time for the guest: {passed:?}"));
        }
        if passed.rtc < paused - 1.5 {
            faults.push(format!("{source}: the RTC does not follow the host: {passed:?}"));
        }
    }
    ensure!(available.contains("kvm-clock") || available.contains("tsc"), "{available}");
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    vm.kill()
}
