//! What an administrator of a guest sees of its port with the usual programs, and LUNs that are mapped while it runs.

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::guest::{Guest, Vmm};
use testbed::kernel::Debian;
use testbed::report::note;
use testbed::vm::Vm;
use testbed::{guest_module, san_tools};

use super::fabric::San;
use super::fc_guest::{after, guest, keys, nothing_left, shell, units};
use super::fc_module::{FUNCTIONS, with_module};
use super::fc_tool::Tool;

const ONE: &str = "2100000000000a01";
const NODE: &str = "2000000000000a01";
/// Names of the array's ports.
pub(super) const PORTS: [&str; 2] = ["502fcf0000000001", "502fcf0000000002"];

/// A LUN of three levels, and how Linux counts it.
const LEVELS: (&str, u64) = ("4010400a40070000", 0x4007_400a_4010);
/// Numbers that the array has, disks, and how Linux counts the numbers.
const MAPPED: [(&str, &str, u64); 5] = [
    ("0", "d0", 0),
    ("5", "d1", 5),
    ("27", "d2", 27),
    ("513", "d3", 0x4000 | 513),
    (LEVELS.0, "d4", LEVELS.1),
];

fn map(more: &str) -> String {
    let units: Vec<_> = MAPPED.iter().map(|(lun, disk, _)| format!("{lun}={disk}")).collect();
    format!("map {ONE} {}{more}", units.join(" "))
}

/// A guest with its own driver, and with what hosts at a SAN have.
pub(super) fn with_tools<'a>(bed: &'a Bed, name: &str) -> Result<Guest<'a>> {
    let prepared = bed.prepared();
    let mut guest = with_module(bed, guest(bed, name), Debian::Trixie)?;
    for archive in san_tools::archives(prepared.kernel(Debian::Trixie)?, prepared.tools())? {
        guest = guest.archive(archive);
    }
    Ok(guest)
}

/// Starts all of it in the guest: the handler of ALUA before the driver, so that it has each disk from the first moment on.
pub(super) fn tools_up(vm: &mut Vm<'_>, paths: usize) -> Result<()> {
    shell(vm)?;
    vm.run(FUNCTIONS)?;
    vm.run(san_tools::FUNCTIONS)?;
    vm.run("for module in $(cat /modules.san); do insmod $module 2>/dev/null; done; load")?;
    vm.run_for(&format!("within 600 '[ $(units | wc -l) = {paths} ]'"), 120)?;
    vm.run_for("san_up", 180)?;
    Ok(())
}

pub(crate) fn tour(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let _tool = Tool::new(bed)?;
    let disks: String = (0..7).map(|number| format!("disk d{number} 64M\n")).collect();
    let san = San::new(bed, &[1], 2, &format!("{disks}map any\n{}\n", map("")))?;
    let done = run(bed, &san);
    note(&format!("the fabric: {}", san.tell("info").unwrap_or_default()));
    done.map_err(|error| error.context(san.log()))
}

/// The host's adapter, fcoe, has no room for more than one level; this has its virtual port be like those that have.
fn raise_limit(bed: &Bed, san: &San<'_>, host: &str) -> Result<()> {
    let prepared = bed.prepared();
    let kernel = prepared.kernel(Debian::Trixie)?;
    let module = guest_module::own(Debian::Trixie, kernel, "max_lun", include_str!("../host/max_lun.c"))?;
    let tool = |name| Ok::<_, anyhow::Error>(prepared.tools().words("kmod", name, None)?.join(" "));
    let number = host.strip_prefix("host").context("no host")?;
    let script =
        format!("{} {} host={number} && {} max_lun", tool("insmod")?, module.display(), tool("rmmod")?);
    san.shell(&script, 60).map(drop)
}

fn run(bed: &Bed, san: &San<'_>) -> Result<()> {
    let host = san.create_vport(1, ONE, NODE)?;
    raise_limit(bed, san, &host)?;
    let mut vm = with_tools(bed, "web")?.fabric("san0", keys(ONE, &["allow=all"])?).spawn()?;
    tools_up(&mut vm, 2 * MAPPED.len())?;
    let done = steps(san, &mut vm);
    if done.is_err() {
        note(&format!("said: {}\n{}", vm.errors(), vm.run("dmesg | tail -n 60").unwrap_or_default()));
    }
    done?;
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 120)?;
    // It was there before the machine, and is there after it.
    san.delete_vport(1, ONE, NODE)?;
    nothing_left(san, &[ONE], 10)
}

/// Runs a command line in the guest, and prints it with what it says.
pub(super) fn show(vm: &mut Vm<'_>, line: &str) -> Result<String> {
    let said = vm.run_for(line, 180)?;
    note(&format!("$ {line}\n{said}"));
    Ok(said)
}

fn steps(san: &San<'_>, vm: &mut Vm<'_>) -> Result<()> {
    let targets = ports(vm)?;
    numbers(vm, &targets)?;
    paths(vm, &targets)?;
    commands(vm, &targets)?;
    found(san, vm, &targets)
}

/// The port and those of the array are there under their names. Returns the midlayer's number of each.
fn ports(vm: &mut Vm<'_>) -> Result<Vec<u32>> {
    let port = show(vm, "systool -c fc_host -v")?;
    let has = |line: String| {
        ensure!(port.lines().any(|said| said.trim() == line), "no {line} in {port}");
        Ok(())
    };
    has(format!("port_name           = \"0x{ONE}\""))?;
    has(format!("node_name           = \"0x{NODE}\""))?;
    has("port_state          = \"Online\"".into())?;
    let remote = show(vm, "systool -c fc_remote_ports -v")?;
    let mut names: Vec<_> = remote
        .lines()
        .filter_map(|line| line.trim().strip_prefix("port_name")?.split('"').nth(1)?.strip_prefix("0x"))
        .collect();
    names.sort_unstable();
    ensure!(names == PORTS, "the remote ports are {names:?}");
    let mut targets = Vec::new();
    for port in PORTS {
        targets.push(vm.run(&format!("cat $(port {port})/scsi_target_id"))?.trim().parse()?);
    }
    Ok(targets)
}

/// Each LUN is there at both ports under the array's number, and known by the name of the port.
fn numbers(vm: &mut Vm<'_>, targets: &[u32]) -> Result<()> {
    let said = show(vm, "/usr/bin/lsscsi -t")?;
    let seen = units(vm)?;
    ensure!(seen.len() == 2 * MAPPED.len(), "the guest sees {seen:?}");
    for (port, target) in PORTS.iter().zip(targets) {
        for (_, disk, lun) in MAPPED {
            let at = format!("0:0:{target}:{lun}");
            ensure!(seen.get(&at).is_some_and(|unit| unit.name == disk), "{at} is not {disk}: {seen:?}");
            let line = said.lines().find(|line| line.starts_with(&format!("[{at}]")));
            ensure!(line.is_some_and(|line| line.contains(&format!("fc:0x{port},0x"))), "{at} in {said}");
        }
    }
    let said = show(vm, "/usr/bin/lsscsi -H -t -L")?;
    ensure!(said.contains(&format!("fc:0x{ONE},0x")), "{said}");
    show(vm, "/usr/bin/lsscsi -x -g -s | tail -n 3; ls /dev/disk/by-path | grep fc- | head -n 5")?;
    Ok(())
}

/// multipathd finds two paths to each unit, one by each port.
fn paths(vm: &mut Vm<'_>, targets: &[u32]) -> Result<()> {
    vm.run(
        "printf 'defaults {\\n    find_multipaths yes\\n    polling_interval 2\\n}\\n' > /etc/multipath.conf",
    )?;
    vm.run_for(
        "multipath_up && udevadm trigger --action=change --subsystem-match=block && udevadm settle",
        180,
    )?;
    vm.run_for(&format!("within 600 '[ $(multipath -ll -v1 | wc -l) = {} ]'", MAPPED.len()), 120)?;
    let said = show(vm, "multipath -ll | cat")?;
    for (_, _, lun) in MAPPED {
        for target in targets {
            let at = format!("0:0:{target}:{lun} ");
            let line =
                said.lines().find(|line| line.contains(&at)).with_context(|| format!("no {at} in {said}"))?;
            ensure!(line.contains("active ready running"), "{line}");
        }
    }
    ensure!(said.matches("FABRIC,DISK").count() == MAPPED.len(), "{said}");
    Ok(())
}

fn commands(vm: &mut Vm<'_>, targets: &[u32]) -> Result<()> {
    let at = format!("0:0:{}:0", targets.first().context("no port")?);
    let said = show(vm, &format!("sg_inq $(sg {at}); sg_inq -p sn $(sg {at})"))?;
    ensure!(said.contains("FABRIC") && said.contains("Unit serial number: d0"), "{said}");
    let said = show(vm, &format!("sg_luns $(sg {at})"))?;
    for lun in ["0000000000000000", "0005000000000000", "001b000000000000", "4201000000000000", LEVELS.0] {
        ensure!(said.contains(lun), "no {lun} in {said}");
    }
    let said = show(vm, &format!("sg_rtpg -d $(sg {at})"))?;
    ensure!(said.matches("target port group id").count() == 2, "{said}");
    Ok(())
}

/// A LUN that is mapped while the guest runs, without a hand on the host: who scans has it when the scan is over.
fn found(san: &San<'_>, vm: &mut Vm<'_>, targets: &[u32]) -> Result<()> {
    let target = *targets.get(1).context("one port")?;
    let at = |lun: u32| format!("0:0:{target}:{lun}");
    // The array says nothing of it, so that nobody looks but who was told to.
    san.tell("attentions 3f/0e off")?;
    san.tell(&map(" 9=d5"))?;
    let said = show(
        vm,
        &format!(
            "echo '- - -' > /sys/class/scsi_host/host0/scan; within 50 'there {} && there {}' && /usr/bin/lsscsi -t | grep ':9\\]'",
            at(9),
            format_args!("0:0:{}:9", targets.first().context("one port")?)
        ),
    )?;
    ensure!(said.lines().count() == 2, "not at both ports: {said}");
    // Asked for a look at the fabric (-i), it is there when the script comes to it; what somebody has deleted is new to it.
    san.tell(&map(" 9=d5 10=d6"))?;
    show(vm, "rescan-scsi-bus.sh -i | tr -d '\\r' | tail -n 4")?;
    vm.run(&format!("within 50 'there {} && read_one {}'", at(10), at(10)))?;
    vm.run(&format!(
        "for at in 0:0:0:10 0:0:1:10; do echo 1 > $(at $at)/delete; done; within 100 'gone {}'",
        at(10)
    ))?;
    let said = show(vm, "rescan-scsi-bus.sh")?;
    ensure!(said.contains("2 new or changed device(s) found."), "{said}");
    vm.run(&format!("within 50 'there {} && read_one {}'", at(10), at(10)))?;
    after(san, vm, &map(""), &format!("gone {} && gone {}", at(9), at(10)), 60)?;
    // As arrays do, it says so; nobody scans.
    san.tell("attentions 3f/0e all")?;
    let took = after(san, vm, &map(" 9=d5"), &format!("there {}", at(9)), 60)?;
    note(&format!("a LUN that is mapped, and nobody scans: there after {took:.1} s"));
    let maps = MAPPED.len() + 1;
    vm.run_for(&format!("within 600 '[ $(multipath -ll -v1 | wc -l) = {maps} ]'"), 120)?;
    show(vm, "multipath -ll | grep -B3 -A1 -m1 ':9 '")?;
    Ok(())
}
