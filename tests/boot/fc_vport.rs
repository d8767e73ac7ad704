//! Ports that the guest creates beside its adapter's, by its own module, at the fabric: what is masked to them alone, who may have which
//! name, and that nothing is left of them.

use std::time::Instant;

use anyhow::{Result, ensure};
use testbed::bed::Bed;
use testbed::guest::{Guest, Vmm};
use testbed::kernel::Debian;
use testbed::report::note;
use testbed::vm::Vm;

use super::fabric::San;
use super::fc_guest::{guest, keys, no_process, nothing_left, shell};
use super::fc_module::{FUNCTIONS, with_module};
use super::fc_tool::Tool;

/// The adapter's own port, one that the guest may create, and one that it may not.
const ONE: &str = "2100000000000a01";
const TWO: &str = "2100000000000a02";
const OTHER: &str = "2100000000000b01";
const NODE: &str = "2000000000000a02";
const ALLOWED: &str = "vport_names=2100000000000a02-2100000000000a0f, 2000000000000a02";

/// In the guest: the port with a name, its SCSI host, and what becomes of a wish.
const PORTS: &str = r#"
    own=/sys/class/fc_host/host0
    host_of() { for port in /sys/class/fc_host/host*; do [ "$(cat $port/port_name)" != 0x$1 ] || echo ${port##*host}; done; }
    units_of() { ls -d /sys/class/scsi_device/$1:* 2>/dev/null | wc -l; }
    wish() { echo $2 > $own/vport_$1; echo "CODE $?"; }
"#;

pub(crate) fn vport(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let tool = Tool::new(bed)?;
    let setup =
        format!("disk d0 64M\ndisk v0 64M\ndisk v1 64M\nmap any\nmap {ONE} 0=d0\nmap {TWO} 5=v0 513=v1\n");
    let san = San::new(bed, &[1], 2, &setup)?;
    let done = lives(bed, &tool, &san);
    note(&format!("the fabric: {}", san.tell("info").unwrap_or_default()));
    done.map_err(|error| error.context(san.log()))
}

fn lives(bed: &Bed, tool: &Tool<'_>, san: &San<'_>) -> Result<()> {
    let machine = |bed| with_module(bed, guest(bed, "web"), Debian::Trixie);
    let mut vm = start(machine(bed)?)?;
    let done = steps(san, &mut vm);
    if done.is_err() {
        note(&format!("said: {}\n{}", vm.errors(), vm.run("dmesg | tail -n 100").unwrap_or_default()));
    }
    done?;
    // A reset of the guest deletes it, and the machine's own stays.
    vm.send("reboot -f\n")?;
    shell(&mut vm)?;
    san.shell(
        &format!("wait_for 30 '[ -z \"$(vport_state {TWO})\" ]'; [ -n \"$(vport_state {ONE})\" ]"),
        60,
    )?;
    ready(&mut vm)?;
    create(&mut vm)?;
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 120)?;
    nothing_left(san, &[ONE, TWO], 10)?;

    // Both processes are killed: the next start, and the tool, clean what they have left.
    for cleans in ["start", "tool"] {
        let mut vm = start(machine(bed)?)?;
        create(&mut vm)?;
        bed.host().shell(
            &format!("kill -9 $(grep -lx vmm-fcport /proc/[0-9]*/comm | cut -d/ -f3) {}", vm.pid()),
            30,
        )?;
        vm.wait_exit(60)?;
        no_process(san, 10)?;
        let left = tool.ok("list")?;
        note(&left);
        ensure!(left.contains(TWO) && left.contains("web.san0"), "whose it was is not shown: {left}");
        if cleans == "tool" {
            note(&tool.ok("clean")?);
        } else {
            let mut vm = start(machine(bed)?)?;
            let info = san.tell("info")?;
            ensure!(!info.contains(TWO), "the next start leaves it: {info}");
            vm.send("poweroff -f\n")?;
            vm.expect_exit(0, 120)?;
        }
        nothing_left(san, &[ONE, TWO], 20)?;
    }
    Ok(())
}

fn start(guest: Guest<'_>) -> Result<Vm<'_>> {
    let guest = guest.option("--log-level").option("info");
    let mut vm = guest.fabric("san0", keys(ONE, &[ALLOWED, "vports=1"])?).spawn()?;
    shell(&mut vm)?;
    ready(&mut vm)?;
    Ok(vm)
}

fn ready(vm: &mut Vm<'_>) -> Result<()> {
    vm.run(FUNCTIONS)?;
    vm.run(PORTS)?;
    vm.run("load")?;
    vm.run_for("within 600 '[ $(units_of 0) = 2 ]'", 120)?;
    Ok(())
}

/// Has the guest create its port, and waits for what is masked to that; returns its SCSI host.
fn create(vm: &mut Vm<'_>) -> Result<String> {
    let begin = Instant::now();
    let said = vm.run_for(&format!("wish create {TWO}:{NODE}"), 120)?;
    ensure!(said.contains("CODE 0"), "{said}");
    note(&format!("the guest's port is there after {:.1} s", begin.elapsed().as_secs_f64()));
    let host = vm.run(&format!("host_of {TWO}"))?.trim().to_string();
    vm.run_for(&format!("within 600 '[ $(units_of {host}) = 4 ]'; ls /sys/class/scsi_device"), 120)?;
    note(&format!("and its units after {:.1} s", begin.elapsed().as_secs_f64()));
    Ok(host)
}

fn steps(san: &San<'_>, vm: &mut Vm<'_>) -> Result<()> {
    let most = vm.run("cat $own/max_npiv_vports $own/npiv_vports_inuse")?;
    ensure!(most.split_whitespace().eq(["1", "0"]), "{most}");
    let host = create(vm)?;
    let port = format!("/sys/class/fc_host/host{host}");
    note(&vm.run(&format!("list-scsi -t; grep -H . {port}/* 2>/dev/null; true"))?);
    let said =
        vm.run(&format!("cat {port}/port_name {port}/node_name {port}/port_state $own/npiv_vports_inuse"))?;
    let wanted = [format!("0x{TWO}"), format!("0x{NODE}"), "Online".into(), "1".into()];
    ensure!(said.split_whitespace().eq(wanted), "{said}");
    // What is masked to it alone, under the array's numbers, and not what is the adapter's.
    for (lun, disk) in [(5, "v0"), (0x4000 | 513, "v1")] {
        let said = vm.run(&format!(
            "unit=$(cd /sys/class/scsi_device; ls -d {host}:*:{lun} | head -n 1)
             head -c 1048576 /dev/urandom > /tmp/data
             dd if=/tmp/data of=$(disk $unit) bs=64k oflag=direct 2>/dev/null; md5sum < /tmp/data"
        ))?;
        san.tell(&format!("save {disk} /dev/shm/fabric.disk"))?;
        let sum = san.shell("head -c 1M /dev/shm/fabric.disk | md5sum; rm /dev/shm/fabric.disk", 60)?;
        ensure!(
            said.trim() == sum.trim() && sum.len() > 32,
            "the array's {disk} is {sum}, the guest's {said}"
        );
    }
    let own = vm.run("ls -d /sys/class/scsi_device/0:*; units_of 0")?;
    ensure!(own.trim().ends_with('2') && !own.contains(":5"), "the adapter's own port sees {own}");
    // What it has no room for, and may not have.
    let refused = |vm: &mut Vm<'_>, names: &str, why: &str| -> Result<()> {
        let said = vm.run_for(&format!("wish create {names} 2>&1"), 60)?;
        note(said.trim());
        ensure!(said.contains(why) && !said.contains("CODE 0"), "{names}: {said}");
        Ok(())
    };
    refused(vm, &format!("2100000000000a03:{NODE}"), "No space left on device")?;
    let begin = Instant::now();
    let said = vm.run_for(&format!("wish delete {TWO}:{NODE}"), 120)?;
    ensure!(said.contains("CODE 0"), "{said}");
    vm.run(&format!("within 100 '[ ! -e {port} ]'; [ $(cat $own/npiv_vports_inuse) = 0 ]"))?;
    let left = san.shell(&format!("vport_state {TWO}"), 30)?;
    let info = san.tell("info")?;
    ensure!(left.trim().is_empty() && !info.contains(TWO), "it is still there: {left} {info}");
    note(&format!("it is deleted, on the fabric too, after {:.1} s", begin.elapsed().as_secs_f64()));
    refused(vm, &format!("{OTHER}:{NODE}"), "Operation not permitted")?;
    let said = vm.errors();
    let line =
        format!("the guest asked for a port {OTHER}: its WWPN {OTHER} is not among vport_names of [hba.fc]");
    ensure!(said.matches(&line).count() == 1, "the operator reads: {said}");
    create(vm).map(drop)
}
