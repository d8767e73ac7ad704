//! The guest's own module over a port at the fabric: the array's numbers as it gives them, masks that change, and a port of the
//! array that is off for a while and for longer.

use std::time::Instant;

use anyhow::{Result, ensure};
use testbed::bed::Bed;
use testbed::guest::Vmm;
use testbed::kernel::Debian;
use testbed::report::note;
use testbed::vm::Vm;

use super::fabric::San;
use super::fc_guest::{after, guest, keys, nothing_left, shell, units};
use super::fc_module::{self, FUNCTIONS, with_module};
use super::fc_tool::Tool;

const ONE: &str = "2100000000000a01";
/// Names of the array's ports.
const PORTS: [&str; 2] = ["502fcf0000000001", "502fcf0000000002"];

/// Number 16, but by the flat space method, and how Linux counts that. The host's driver, fcoe, has no room for more levels.
const FLAT: (&str, u64) = ("4010000000000000", 0x4010);
/// Numbers that the array has, disks, and how Linux counts the numbers.
const MAPPED: [(&str, &str, u64); 5] =
    [("0", "d0", 0), ("5", "d1", 5), ("27", "d2", 27), ("513", "d3", 0x4000 | 513), (FLAT.0, "d4", FLAT.1)];

fn map(more: &str) -> String {
    let units: Vec<_> = MAPPED.iter().map(|(lun, disk, _)| format!("{lun}={disk}")).collect();
    format!("map {ONE} {}{more}", units.join(" "))
}

pub(crate) fn fabric(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let _tool = Tool::new(bed)?;
    let disks: String = (0..6).map(|number| format!("disk d{number} 64M\n")).collect();
    let san = San::new(bed, &[1], 2, &format!("{disks}map any\n{}\n", map("")))?;
    let done = run(bed, &san);
    note(&format!("the fabric: {}", san.tell("info").unwrap_or_default()));
    done.map_err(|error| error.context(san.log()))
}

fn run(bed: &Bed, san: &San<'_>) -> Result<()> {
    let guest = with_module(bed, guest(bed, "web"), Debian::Trixie)?;
    let mut vm = guest.fabric("san0", keys(ONE, &["allow=all"])?).spawn()?;
    shell(&mut vm)?;
    vm.run(FUNCTIONS)?;
    vm.run("load")?;
    let done = steps(san, &mut vm);
    if done.is_err() {
        note(&format!("said: {}\n{}", vm.errors(), vm.run("dmesg | tail -n 100").unwrap_or_default()));
    }
    done?;
    fc_module::quiet(&mut vm)?;
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 120)?;
    nothing_left(san, &[ONE], 10)
}

fn steps(san: &San<'_>, vm: &mut Vm<'_>) -> Result<()> {
    let name = vm.run("attribute port_name")?;
    ensure!(name.trim() == format!("0x{ONE}"), "the port is {name}");
    for port in PORTS {
        let state = vm.run(&format!("within 300 '[ \"$(state {port})\" = Online ]'; state {port}"))?;
        ensure!(state.trim() == "Online", "{port} is {state}");
    }
    let targets = numbers(vm)?;
    data(san, vm, &targets)?;
    masks(san, vm, &targets)?;
    lost_for_a_while(san, vm, &targets)?;
    lost_for_good(san, vm, &targets)?;
    fc_module::reload(vm, 3, &at(&targets, 0, 5))?;
    ensure!(numbers(vm)? == targets, "targets are others than before");
    Ok(())
}

/// The midlayer's number of each port, at which all units are under the array's numbers, and no others.
fn numbers(vm: &mut Vm<'_>) -> Result<Vec<u32>> {
    vm.run_code(&format!("within 300 '[ $(units | wc -l) = {} ]'", 2 * MAPPED.len()), 120)?;
    let mut targets = Vec::new();
    for port in PORTS {
        targets.push(vm.run(&format!("cat $(port {port})/scsi_target_id"))?.trim().parse()?);
    }
    let found: Vec<_> = units(vm)?.into_iter().map(|(at, unit)| (at, unit.name)).collect();
    let mut wanted: Vec<_> = targets
        .iter()
        .flat_map(|target| MAPPED.map(|(_, disk, lun)| (format!("0:0:{target}:{lun}"), disk.to_string())))
        .collect();
    wanted.sort();
    ensure!(found == wanted, "the guest sees {found:?}, not {wanted:?}");
    note(&vm.run("list-scsi -t")?);
    Ok(targets)
}

fn at(targets: &[u32], port: usize, lun: u64) -> String {
    format!("0:0:{}:{lun}", targets.get(port).copied().unwrap_or(u32::MAX))
}

/// What the guest writes by one port is in the array's memory, and is read by the other.
fn data(san: &San<'_>, vm: &mut Vm<'_>, targets: &[u32]) -> Result<()> {
    for (_, disk, lun) in MAPPED {
        let said = vm.run(&format!(
            "head -c 4194304 /dev/urandom > /tmp/data
             dd if=/tmp/data of=$(disk {}) bs=256k oflag=direct 2>/dev/null
             dd if=$(disk {}) bs=64k count=64 iflag=direct 2>/dev/null | cmp - /tmp/data && md5sum < /tmp/data",
            at(targets, 0, lun),
            at(targets, 1, lun)
        ))?;
        san.tell(&format!("save {disk} /dev/shm/fabric.disk"))?;
        let sum = san.shell("head -c 4M /dev/shm/fabric.disk | md5sum; rm /dev/shm/fabric.disk", 60)?;
        ensure!(
            said.trim() == sum.trim() && sum.len() > 32,
            "the array's {disk} is {sum}, the guest's {said}"
        );
    }
    Ok(())
}

/// A LUN that is mapped is found when somebody in the guest scans, and one that is not any more is gone.
fn masks(san: &San<'_>, vm: &mut Vm<'_>, targets: &[u32]) -> Result<()> {
    let new = at(targets, 1, 9);
    let scan = "echo '- - -' > /sys/class/scsi_host/host0/scan";
    let took = after(san, vm, &map(" 9=d5"), &format!("{scan}; there {new}"), 60)?;
    note(&format!("a LUN that is mapped: found by a scan after {took:.1} s"));
    vm.run(&format!("read_one {new}"))?;
    let took = after(san, vm, &map(""), &format!("gone {new}"), 60)?;
    note(&format!("a LUN that is not any more: gone after {took:.1} s"));
    ensure!(numbers(vm)? == targets, "targets are others than before");
    Ok(())
}

/// A port of the array is off for 20 seconds: its disks keep their names, an open file goes on, the other port's hear of nothing.
fn lost_for_a_while(san: &San<'_>, vm: &mut Vm<'_>, targets: &[u32]) -> Result<()> {
    let (unit, other) = (at(targets, 0, FLAT.1), at(targets, 1, 5));
    let port = PORTS.first().copied().unwrap_or_default();
    vm.run(&format!("name=$(disk {unit}); exec 5<>$name; echo 60 > $(port {port})/dev_loss_tmo"))?;
    let took = after(san, vm, "port 1 down", &format!("[ $(state {port}) = Blocked ]"), 30)?;
    note(&format!("a port that is off: blocked after {took:.1} s"));
    vm.run("(dd bs=4k skip=1000 count=1 of=/dev/null <&5 2>/dev/null; echo $? > /tmp/waited) & true")?;
    vm.run(&format!("sleep 20; [ $(disk {unit}) = $name ] && [ ! -e /tmp/waited ] && read_one {other}"))?;
    let begin = Instant::now();
    san.tell("port 1 up")?;
    vm.run(&format!(
        "within 600 '[ -e /tmp/waited ]'; [ $(cat /tmp/waited) = 0 ] && [ $(state {port}) = Online ] &&
         [ $(disk {unit}) = $name ] && dd bs=4k skip=1000 count=1 of=/dev/null <&5 2>/dev/null && exec 5>&-"
    ))?;
    note(&format!("it is on: a read that waited is done after {:.1} s", begin.elapsed().as_secs_f64()));
    Ok(())
}

/// It stays off: its disks are given up, and are back with it.
fn lost_for_good(san: &San<'_>, vm: &mut Vm<'_>, targets: &[u32]) -> Result<()> {
    let (unit, other) = (at(targets, 0, FLAT.1), at(targets, 1, 5));
    let port = PORTS.first().copied().unwrap_or_default();
    vm.run(&format!("echo 5 > $(port {port})/dev_loss_tmo"))?;
    after(san, vm, "port 1 down", &format!("gone {unit} && read_one {other}"), 60)?;
    let took = after(san, vm, "port 1 up", &format!("there {unit} && read_one {unit}"), 60)?;
    note(&format!("a port that was given up: its disks are back after {took:.1} s"));
    ensure!(numbers(vm)? == targets, "targets are others than before");
    Ok(())
}
