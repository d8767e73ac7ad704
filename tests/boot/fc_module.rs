//! The guest's own module, `guest-linux`: the port and the remote ports in the guest, native numbers, ports that are lost for a while
//! and for good, and a driver that goes while its disks work.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::bed::Bed;
use testbed::guest::{Disk, Guest, Vmm};
use testbed::kernel::Debian;
use testbed::report::note;
use testbed::vm::Vm;
use testbed::{extras, guest_module};

use super::fc_guest::{Unit, address, guest, keys, shell, units};
use super::fc_machine::EMULATED;
use super::hotplug::{self, IMAGES, Place, ask};
use super::messages;

const ONE: &str = "2100000000000a01";

/// `load` loads the module, and then the stock driver, which finds nothing left. `attribute NAME` prints one of the port's, `port WWPN` the
/// directory of a remote port, `state WWPN` how that is.
pub(crate) const FUNCTIONS: &str = r#"
    load() {
        for module in $(cat /modules.fc); do insmod $module 2>/dev/null; done
        insmod /lib/virtio_scsi_fc.ko && insmod /lib/virtio_scsi.ko
    }
    attribute() { cat /sys/class/fc_host/host*/$1; }
    port() { dirname $(grep -l 0x$1 /sys/class/fc_remote_ports/*/port_name); }
    state() { cat $(port $1)/port_state; }
"#;

/// What the guest's kernel says of a module that is not its own, of ports that it gives up, and of disks that come, fail, or go while they are read.
const EXPECTED: [&str; 17] = [
    "virtio_scsi_fc: loading out-of-tree module taints kernel",
    "blocked FC remote port time out",
    "I/O error, dev sd",
    "Buffer I/O error on dev sd",
    "callbacks suppressed",
    "unable to read RDB block",
    "rejecting I/O to offline device",
    "rejecting I/O to dead device",
    "LUN assignments on this target have changed",
    "timing out command, waited",
    "device offline error, dev sd",
    // Of dm-multipath, over a port that is off and back.
    "multipath: 253:0: Failing path",
    "multipath: 253:0: Reinstating path",
    // Of a guest that does not sleep while a port is blocked.
    "scsi_bus_suspend [scsi_mod] returns -22",
    "PM: failed to suspend async: error -22",
    "PM: Some devices failed to suspend",
    // Of a port that is refused.
    "FC Virtual Port LLDD Create failed",
];

pub(crate) fn with_module<'a>(bed: &Bed, guest: Guest<'a>, debian: Debian) -> Result<Guest<'a>> {
    let prepared = bed.prepared();
    let archive = guest_module::archive(debian, prepared.kernel(debian)?, prepared.tools())?;
    Ok(guest.kernel(debian).archive(archive).archive(extras::lsscsi()?))
}

pub(crate) fn emulated_13(bed: &Bed, vmm: Vmm) -> Result<()> {
    emulated(bed, vmm, Debian::Trixie, steps)
}

pub(crate) fn emulated_12(bed: &Bed, vmm: Vmm) -> Result<()> {
    emulated(bed, vmm, Debian::Bookworm, steps)
}

pub(crate) fn reload_50_13(bed: &Bed, vmm: Vmm) -> Result<()> {
    emulated(bed, vmm, Debian::Trixie, reloads)
}

pub(crate) fn reload_50_12(bed: &Bed, vmm: Vmm) -> Result<()> {
    emulated(bed, vmm, Debian::Bookworm, reloads)
}

fn reloads(_: &Bed, vm: &mut Vm<'_>) -> Result<()> {
    numbers(vm)?;
    reload(vm, 50, &address(0, 0, 5))?;
    numbers(vm)
}

/// At an adapter without a port it is the driver that the stock one is.
pub(crate) fn plain(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let prepared = bed.prepared();
    let kernel = prepared.kernel(Debian::Trixie)?;
    let archive = guest_module::instead(Debian::Trixie, kernel, prepared.tools())?;
    let guest = bed.guest().vmm(vmm).cpus(2).disk(Disk::empty("1G")).archive(archive);
    hotplug::run(bed, guest, &Place { channel: 0, rescans: false }, 3)
}

/// A guest with the module at emulated ports, and what a test does with it.
pub(crate) fn emulated(
    bed: &Bed,
    vmm: Vmm,
    debian: Debian,
    steps: fn(&Bed, &mut Vm<'_>) -> Result<()>,
) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let mut guest =
        with_module(bed, guest(bed, "web"), debian)?.hba_key("fc", keys(ONE, &["emulated=true"])?);
    for (target, lun, name) in EMULATED {
        let disk = Disk::empty("16M").set("target", i64::from(target)).set("lun", i64::from(lun));
        guest = guest.disk(disk.set("serial", name));
    }
    let mut vm = guest.option("--set=control.path=control.sock").option(IMAGES).spawn()?;
    shell(&mut vm)?;
    vm.run(FUNCTIONS)?;
    vm.run("load")?;
    let done = steps(bed, &mut vm);
    if done.is_err() {
        note(&format!("the guest's log:\n{}", vm.run("dmesg | tail -n 100").unwrap_or_default()));
    }
    done?;
    quiet(&mut vm)?;
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 60)
}

fn steps(bed: &Bed, vm: &mut Vm<'_>) -> Result<()> {
    let fabric = fabric(bed, vm)?;
    local_port(vm, &fabric)?;
    let ports = remote_ports(vm, &fabric)?;
    numbers(vm)?;
    data(bed, vm)?;
    comes_and_goes(bed, vm)?;
    lost_for_a_while(bed, vm, &ports)?;
    lost_for_good(bed, vm, &ports)?;
    reload(vm, 3, &address(0, 0, 5))?;
    numbers(vm)
}

/// What the machine says of its port.
pub(crate) fn fabric(bed: &Bed, vm: &Vm<'_>) -> Result<Value> {
    let said: Value = serde_json::from_str(&ask(bed, vm, "query-hbas", "")?)?;
    Ok(said.pointer("/return/0/fc").context("the adapter has no port")?.clone())
}

fn text<'v>(value: &'v Value, key: &str) -> Result<&'v str> {
    value.get(key).and_then(Value::as_str).with_context(|| format!("no {key} in {value}"))
}

/// The port is there under its own names.
fn local_port(vm: &mut Vm<'_>, fabric: &Value) -> Result<()> {
    let id = fabric.get("port_id").and_then(Value::as_u64).context("no port_id")?;
    for (name, wanted) in [
        ("port_name", format!("0x{ONE}")),
        ("node_name", format!("0x{}", text(fabric, "wwnn")?)),
        ("permanent_port_name", format!("0x{ONE}")),
        ("fabric_name", format!("0x{}", text(fabric, "fabric")?)),
        ("port_id", format!("0x{id:06x}")),
        ("port_state", "Online".into()),
        ("port_type", "NPIV VPORT".into()),
        ("speed", "16 Gbit".into()),
        ("supported_classes", "Class 3".into()),
        ("maxframe_size", "2048 bytes".into()),
    ] {
        let said = vm.run(&format!("attribute {name}"))?;
        ensure!(said.trim() == wanted, "{name} is {said}, not {wanted}");
    }
    note(&format!("symbolic name: {}", vm.run("attribute symbolic_name")?.trim()));
    Ok(())
}

/// The array's ports are there; returns their names, by target.
pub(crate) fn remote_ports(vm: &mut Vm<'_>, fabric: &Value) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (target, port) in
        fabric.get("ports").and_then(Value::as_array).context("no ports")?.iter().enumerate()
    {
        let wwpn = text(port, "wwpn")?;
        let id = port.get("port_id").and_then(Value::as_u64).context("no port_id")?;
        let said = vm.run(&format!(
            "cd $(port {wwpn}) && cat node_name port_id port_state roles scsi_target_id; cd /"
        ))?;
        let wanted = format!("0x{}\n0x{id:06x}\nOnline\nFCP Target\n{target}\n", text(port, "wwnn")?);
        ensure!(said == wanted, "port {wwpn} is\n{said}, not\n{wanted}");
        names.push(wwpn.to_string());
    }
    Ok(names)
}

/// All units are there under the array's numbers, and known by the port.
pub(crate) fn numbers(vm: &mut Vm<'_>) -> Result<()> {
    vm.run_code(&format!("within 150 '[ $(units | wc -l) = {} ]'", EMULATED.len()), 60)?;
    let found = units(vm)?;
    let unit = |name: &str| Unit { name: name.into(), blocks: Some(32_768) };
    let wanted: BTreeMap<_, _> =
        EMULATED.iter().map(|(target, lun, name)| (address(0, *target, *lun), unit(name))).collect();
    ensure!(found == wanted, "the guest sees {found:?}, not {wanted:?}");
    let said = vm.run("list-scsi -t; list-scsi -H -t")?;
    note(&format!("lsscsi -t; lsscsi -H -t\n{said}"));
    ensure!(said.contains("fc:0x2100"), "{said}");
    Ok(())
}

/// What the guest writes is in the image, and is read again.
fn data(bed: &Bed, vm: &mut Vm<'_>) -> Result<()> {
    for (index, (target, lun, _)) in EMULATED.into_iter().enumerate() {
        let said = vm.run(&format!(
            "head -c 4194304 /dev/urandom > /tmp/data; disk=$(disk {})
             dd if=/tmp/data of=$disk bs=256k oflag=direct 2>/dev/null
             dd if=$disk bs=64k count=64 iflag=direct 2>/dev/null | cmp - /tmp/data && md5sum < /tmp/data",
            address(0, target, lun)
        ))?;
        let image = format!("head -c 4M {}/disk{index}.raw | md5sum", vm.dir());
        let sum = bed.host().shell(&image, 60)?;
        ensure!(said.trim() == sum.trim() && sum.len() > 32, "the image has {sum}, the guest wrote {said}");
    }
    Ok(())
}

/// A unit that comes is found by itself, and by a scan; one that goes is gone.
fn comes_and_goes(bed: &Bed, vm: &mut Vm<'_>) -> Result<()> {
    let image = format!("{}/plugged.img", vm.dir());
    bed.host().shell(&format!("truncate -s 16M {image}"), 30)?;
    let at = address(0, 1, 700);
    for _ in 0..2 {
        ask(
            bed,
            vm,
            "attach",
            "\"image\": \"plugged.img\", \"target\": 1, \"lun\": 700, \"cache\": \"none\"",
        )?;
        vm.run(&format!("within 100 'there {at}' && read_one {at}"))?;
        // It goes without the array's word, and is found when somebody asks.
        vm.run(&format!("echo 1 > $(at {at})/delete; within 100 'gone {at}'"))?;
        vm.run(&format!(
            "echo '- - -' > /sys/class/scsi_host/host0/scan; within 100 'there {at}' && read_one {at}"
        ))?;
        vm.run(&format!("echo 1 > $(at {at})/delete; within 100 'gone {at}'"))?;
        vm.run(&format!(
            "echo 1 > /sys/class/fc_host/host0/issue_lip; within 100 'there {at}' && read_one {at}"
        ))?;
        ask(bed, vm, "detach", "\"target\": 1, \"lun\": 700")?;
        vm.run(&format!("within 100 'gone {at}'"))?;
    }
    Ok(())
}

pub(crate) fn set_port(bed: &Bed, vm: &Vm<'_>, target: usize, state: &str) -> Result<()> {
    ask(bed, vm, "fc-port", &format!("\"hba\": \"scsi0\", \"target\": {target}, \"state\": \"{state}\""))
        .map(drop)
}

/// A port is off for 20 seconds: its disks keep their names, an open file goes on, others hear of nothing.
fn lost_for_a_while(bed: &Bed, vm: &mut Vm<'_>, ports: &[String]) -> Result<()> {
    let (port, at, other) = (ports.get(1).context("one port")?, address(0, 1, 513), address(0, 0, 5));
    vm.run(&format!("name=$(disk {at}); exec 5<>$name; echo 60 > $(port {port})/dev_loss_tmo"))?;
    set_port(bed, vm, 1, "lost")?;
    vm.run(&format!("within 50 '[ $(state {port}) = Blocked ]'"))?;
    // It waits for the port; what was not read before is in no cache.
    vm.run("(dd bs=4k skip=1000 count=1 of=/dev/null <&5 2>/dev/null; echo $? > /tmp/waited) & true")?;
    vm.run(&format!("sleep 20; [ $(disk {at}) = $name ] && [ ! -e /tmp/waited ] && read_one {other}"))?;
    set_port(bed, vm, 1, "online")?;
    let begin = Instant::now();
    vm.run(&format!(
        "within 100 '[ -e /tmp/waited ]' && [ $(cat /tmp/waited) = 0 ] && [ $(state {port}) = Online ] &&
         [ $(disk {at}) = $name ] && dd bs=4k skip=1000 count=1 of=/dev/null <&5 2>/dev/null && exec 5>&-"
    ))?;
    note(&format!(
        "a read that waited 20 s for its port is done {:.1} s after that",
        begin.elapsed().as_secs_f64()
    ));
    // Without patience reads fail instead, those too that the device has.
    vm.run(&format!("echo 2 > $(port {port})/fast_io_fail_tmo"))?;
    set_port(bed, vm, 1, "blocked")?;
    vm.run(&format!(
        "(while read_one {at}; do :; done; echo $? > /tmp/ended) & within 150 '[ -e /tmp/ended ]'"
    ))?;
    let said = vm.run(&format!("[ $(disk {at}) = $name ] && state {port}"))?;
    ensure!(said.trim() == "Blocked", "{said}");
    set_port(bed, vm, 1, "online")?;
    vm.run(&format!("within 100 'read_one {at}' && echo off > $(port {port})/fast_io_fail_tmo"))?;
    Ok(())
}

/// A port that stays away is given up with its disks; when it is back they are, too.
fn lost_for_good(bed: &Bed, vm: &mut Vm<'_>, ports: &[String]) -> Result<()> {
    let (port, at, other) = (ports.get(1).context("one port")?, address(0, 1, 513), address(0, 0, 5));
    vm.run(&format!("echo 3 > $(port {port})/dev_loss_tmo"))?;
    set_port(bed, vm, 1, "lost")?;
    vm.run(&format!("within 200 'gone {at}' && read_one {other}"))?;
    set_port(bed, vm, 1, "online")?;
    vm.run(&format!("within 200 'there {at}' && read_one {at}"))?;
    numbers(vm)
}

/// The driver goes under I/O and comes again.
pub(crate) fn reload(vm: &mut Vm<'_>, rounds: u32, at: &str) -> Result<()> {
    for _ in 0..rounds {
        vm.run_for(
            &format!(
                "disk=$(disk {at}); for n in 1 2 3 4; do (while dd if=$disk of=/dev/null bs=64k iflag=direct 2>/dev/null; do :; done) & done
                 sleep 0.5; driver=/sys/bus/virtio/drivers/virtio_scsi_fc
                 for device in $driver/virtio*; do echo ${{device##*/}} > $driver/unbind; done
                 wait; within 200 'rmmod virtio_scsi_fc' && rmmod virtio_scsi
                 [ -z \"$(ls /sys/class/fc_host)\" ] && load && within 150 'there {at}' && read_one {at}"
            ),
            180,
        )?;
    }
    Ok(())
}

/// Nothing that the guest's kernel would complain of.
pub(crate) fn quiet(vm: &mut Vm<'_>) -> Result<()> {
    let said = vm.run(messages::SHOW)?;
    let lines = said.lines().filter(|line| !EXPECTED.iter().any(|text| line.contains(text)));
    messages::check(&lines.map(|line| format!("{line}\n")).collect::<String>())
}
