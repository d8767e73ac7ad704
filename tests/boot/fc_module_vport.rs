//! The guest's own module, and ports that the guest creates at its adapter: what it may have and what not, and a driver that goes with them.

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::guest::{Disk, Vmm};
use testbed::kernel::Debian;
use testbed::report::note;
use testbed::vm::Vm;

use super::fc_guest::{address, guest, keys, shell};
use super::fc_module::{self, FUNCTIONS, with_module};

const OWN: &str = "2100000000000a01";
/// Names that the guest may have, two at a time, and one that it may not.
const NAMES: [&str; 3] = ["2100000000000b01", "2100000000000b02", "2100000000000b03"];
const OTHER: &str = "2100000000000c01";
const NODE: &str = "2000000000000b00";

/// `create WWPN` and `delete WWPN` say what the shell says. `vport WWPN` prints the directory of a port's host, `in_use` how many there are.
const VPORTS: &str = r#"
    own=/sys/class/fc_host/host0
    create() { (echo $1:NODE > $own/vport_create) 2>&1; }
    delete() { (echo $1:NODE > $own/vport_delete) 2>&1; }
    vport() { dirname $(grep -l 0x$1 /sys/class/fc_host/*/port_name); }
    in_use() { cat $own/npiv_vports_inuse; }
"#;

pub(crate) fn vport(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let names = format!("vport_names={}, {NODE}", NAMES.join(", "));
    let keys = keys(OWN, &["emulated=true", "vports=2", &names])?;
    let disk = Disk::empty("16M").set("target", 0).set("lun", 5).set("serial", "own");
    let guest = with_module(bed, guest(bed, "web"), Debian::Trixie)?.hba_key("fc", keys).disk(disk);
    let mut vm = guest.spawn()?;
    shell(&mut vm)?;
    vm.run(FUNCTIONS)?;
    vm.run(&VPORTS.replace("NODE", NODE))?;
    vm.run("load")?;
    let done = steps(&mut vm);
    if done.is_err() {
        note(&format!("said: {}\n{}", vm.errors(), vm.run("dmesg | tail -n 100").unwrap_or_default()));
    }
    done?;
    let said = vm.errors();
    let line =
        format!("the guest asked for a port {OTHER}: its WWPN {OTHER} is not among vport_names of [hba.fc]");
    ensure!(said.matches(&line).count() == 1, "the operator reads: {said}");
    fc_module::quiet(&mut vm)?;
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 60)
}

fn steps(vm: &mut Vm<'_>) -> Result<()> {
    let [first, second, third] = NAMES;
    let disk = address(0, 0, 5);
    vm.run(&format!("within 150 'there {disk}' && read_one {disk} && name=$(disk {disk})"))?;
    in_use(vm, 0)?;
    create(vm, OTHER, "Operation not permitted")?;
    create(vm, first, "")?;
    shown(vm, first)?;
    create(vm, first, "File exists")?;
    create(vm, OWN, "File exists")?;
    create(vm, second, "")?;
    create(vm, third, "No space left on device")?;
    in_use(vm, 2)?;
    vm.run(&format!("delete {second} && ! vport {second} 2>/dev/null"))?;
    create(vm, third, "")?;
    in_use(vm, 2)?;
    // Ports go by their own file as well, and what others do goes on.
    vm.run(&format!(
        "(while dd if=$name of=/dev/null bs=64k iflag=direct 2>/dev/null; do :; done; echo FAILED > /tmp/failed) & reads=$!
         echo 1 > $(dirname $(grep -l 0x{third} /sys/class/fc_vports/*/port_name))/vport_delete
         within 100 '! vport {third}' && sleep 1 && [ ! -e /tmp/failed ]; code=$?
         kill $reads; wait $reads 2>/dev/null; [ $code = 0 ]"
    ))?;
    in_use(vm, 1)?;
    // A driver that goes takes its ports along, and the device has room for them again.
    fc_module::reload(vm, 3, &disk)?;
    in_use(vm, 0)?;
    create(vm, first, "")?;
    create(vm, second, "")?;
    vm.run(&format!("[ $(disk {disk}) = $name ] && read_one {disk}"))?;
    // A module that goes is no part of its disks any more, which write back what their caches have all the same.
    let said = vm.run(
        "dd if=/dev/zero of=$name bs=64k count=16 oflag=direct 2>/dev/null; echo '<6>the module goes' > /dev/kmsg
         rmmod virtio_scsi_fc && dmesg | sed '1,/the module goes/d'; rmmod virtio_scsi; load",
    )?;
    ensure!(said.contains("Synchronizing SCSI cache") && !said.contains("failed"), "{said}");
    vm.run(&format!("within 150 'there {disk}' && read_one {disk}"))?;
    Ok(())
}

/// Creates a port, or hears why not.
fn create(vm: &mut Vm<'_>, name: &str, refused: &str) -> Result<()> {
    let (said, code) = vm.run_code(&format!("create {name}"), 60)?;
    let is_refused = !refused.is_empty();
    ensure!((code != 0) == is_refused && said.contains(refused), "{name}: {said:?}, code {code}");
    Ok(())
}

fn in_use(vm: &mut Vm<'_>, wanted: u32) -> Result<()> {
    let said = vm.run("in_use; cat $own/max_npiv_vports")?;
    ensure!(said == format!("{wanted}\n2\n"), "ports in use, and at most: {said}");
    Ok(())
}

fn shown(vm: &mut Vm<'_>, name: &str) -> Result<()> {
    for (file, wanted) in [
        ("port_name", format!("0x{name}")),
        ("node_name", format!("0x{NODE}")),
        ("permanent_port_name", format!("0x{name}")),
        ("port_state", "Online".into()),
        ("port_type", "NPIV VPORT".into()),
        ("speed", "16 Gbit".into()),
    ] {
        let said = vm.run(&format!("cat $(vport {name})/{file}"))?;
        ensure!(said.trim() == wanted, "{file} of {name} is {said}, not {wanted}");
    }
    let ids = vm.run(&format!(
        "cat $own/port_id $(vport {name})/port_id $own/fabric_name $(vport {name})/fabric_name"
    ))?;
    let lines: Vec<_> = ids.lines().collect();
    let [own, id, fabric, same] = lines[..] else { anyhow::bail!("{ids}") };
    ensure!(own != id && id != "0x000000" && fabric == same, "{ids}");
    let state = vm.run(&format!(
        "for port in /sys/class/fc_vports/*; do [ $(cat $port/port_name) != 0x{name} ] || cat $port/vport_state $port/vport_type; done"
    ))?;
    ensure!(state == "Active\nNPIV VPORT\n", "{state}");
    vm.run(&format!("cat $(vport {name})/symbolic_name"))
        .map(|said| note(said.trim()))
        .context("a symbolic name")
}
