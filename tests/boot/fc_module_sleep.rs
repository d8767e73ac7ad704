//! The guest's own module in a guest that sleeps and wakes again and again, while a port is lost and back, for a while and for good:
//! units are looked for then, and a look at a unit that is quiet would not end before the guest wakes.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::guest::Vmm;
use testbed::kernel::Debian;
use testbed::report::note;
use testbed::vm::Vm;

use super::fc_guest::address;
use super::fc_module::{emulated, fabric, numbers, remote_ports, set_port};

/// How often the port is lost and back.
const ROUNDS: u64 = 16;
/// Least number of sleeps in that time.
const LEAST: u32 = 4;

/// Sleeps are those of `pm_test`: all devices go through it, and after a second the guest wakes by itself. While a port is blocked, a
/// sleep fails at once. The others are read in between.
const LOOP: &str = r#"
    echo devices > /sys/power/pm_test && echo 1 > /sys/module/suspend/parameters/pm_test_delay
    sleeps() {
        while [ ! -e /tmp/stop ]; do
            if echo freeze > /sys/power/state; then echo slept; else echo failed; fi >> /tmp/sleeps
            read_one $1 || echo unread >> /tmp/sleeps
            sleep 0.$(($(now) % 10))
        done 2>/dev/null
        echo > /tmp/stopped
    }
"#;

pub(crate) fn sleeps(bed: &Bed, vmm: Vmm) -> Result<()> {
    emulated(bed, vmm, Debian::Trixie, steps)
}

fn steps(bed: &Bed, vm: &mut Vm<'_>) -> Result<()> {
    numbers(vm)?;
    let said = fabric(bed, vm)?;
    let ports = remote_ports(vm, &said)?;
    let (port, other) = (ports.get(1).context("one port")?, address(0, 0, 5));
    vm.run(LOOP)?;
    vm.run(&format!("echo 3 > $(port {port})/dev_loss_tmo; sleeps {other} & true"))?;
    for round in 0..ROUNDS {
        sleep(Duration::from_millis(2_000 + round * 270 % 1_000));
        set_port(bed, vm, 1, "lost")?;
        // Every fourth time it is given up, with its units.
        sleep(Duration::from_millis(if round % 4 == 3 { 5_000 } else { 300 + round * 130 % 1_000 }));
        set_port(bed, vm, 1, "online")?;
    }
    let said = vm.run_for(
        "echo > /tmp/stop; within 600 '[ -e /tmp/stopped ]' && for what in slept failed unread; do grep -c $what /tmp/sleeps; done; true",
        180,
    )?;
    let counts: Vec<u32> = said.lines().filter_map(|line| line.trim().parse().ok()).collect();
    note(&format!("sleeps, sleeps that failed, disks that could not be read: {counts:?}"));
    ensure!(matches!(counts[..], [slept, _, 0] if slept >= LEAST), "slept, failed, unread: {said}");
    let state = vm.run(&format!("within 300 '[ $(state {port}) = Online ]'; state {port}"))?;
    ensure!(state.trim() == "Online", "the port is {state}");
    numbers(vm)?;
    vm.run("for unit in $(units | cut -d' ' -f2); do read_one $unit || exit; done").map(drop)
}
