//! A machine that owns a port on the fabric: the array's units are there by themselves under their own numbers, come and go, and
//! nothing is left of it when it ends, in whatever way.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::guest::{Disk, Vmm};
use testbed::report::note;
use testbed::vm::Vm;

use super::fabric::San;
use super::fc_guest::{Unit, address, after, guest, keys, memory, no_process, nothing_left, shell, units};
use super::fc_tool::{Tool, has, items};

const ONE: &str = "2100000000000a01";
const TWO: &str = "2100000000000a02";

const UNITS: &str = "disk d0 64M
disk d1 64M
disk d2 64M
disk d3 64M
disk d4 64M
map any
map 2100000000000a01 0=d0 5=d1 27=d2 513=d3
map 2100000000000a02 0=d4
";
const MAPPED: [(u32, &str); 4] = [(0, "d0"), (5, "d1"), (27, "d2"), (513, "d3")];

/// Seconds in which a guest hears of what the array shows it, without anybody's help, are five; emulated hosts are busy with other things.
const SOON: f64 = 15.0;

pub(crate) fn machine(bed: &Bed, vmm: Vmm) -> Result<()> {
    run(bed, vmm, lives)
}

pub(crate) fn killed(bed: &Bed, vmm: Vmm) -> Result<()> {
    run(bed, vmm, deaths)
}

fn run(bed: &Bed, vmm: Vmm, test: fn(&Bed, &Tool<'_>, &San<'_>) -> Result<()>) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let tool = Tool::new(bed)?;
    let san = San::new(bed, &[1], 2, UNITS)?;
    let done = test(bed, &tool, &san);
    note(&format!("the fabric: {}", san.tell("info").unwrap_or_default()));
    done.map_err(|error| error.context(san.log()))
}

fn start<'a>(bed: &'a Bed, san: &San<'_>) -> Result<Vm<'a>> {
    let guest = guest(bed, "web").option("--log-level").option("info");
    let mut vm = guest.fabric("san0", keys(ONE, &["allow=all"])?).spawn()?;
    if let Err(error) = shell(&mut vm) {
        return Err(error.context(format!("{}\n{}", vm.errors(), san.log())));
    }
    note(&format!("the guest is there after {:.1} s", vm.age().as_secs_f64()));
    Ok(vm)
}

/// Two lives: one that ends well, and one whose process is killed.
fn lives(bed: &Bed, tool: &Tool<'_>, san: &San<'_>) -> Result<()> {
    let mut faults = Vec::new();
    let mut vm = start(bed, san)?;
    owns(tool, &vm)?;
    let targets = numbers(&mut vm)?;
    let [one, other] = targets[..] else { anyhow::bail!("not two target ports: {targets:?}") };
    note(&memory(san, &vm)?);
    data(san, &mut vm, one, other)?;
    for check in [masks, sizes] {
        faults.extend(check(san, &mut vm, &targets).err().map(|error| format!("{error:#}")));
    }
    note(&memory(san, &vm)?);
    let said = vm.errors();
    note(&format!("said: {said}"));
    let line = format!("hba san0: its port is WWPN {ONE}, WWNN {}, vport-", ONE.replacen("21", "20", 1));
    ensure!(said.contains(&line) && said.contains(" (fcoe, fi1); made, and goes with the machine"), "{said}");
    vm.send("poweroff -f\n")?;
    let begin = Instant::now();
    vm.expect_exit(0, 120)?;
    note(&format!("it has ended after {:.1} s", begin.elapsed().as_secs_f64()));
    nothing_left(san, &[ONE], 10)?;
    drop(vm);
    san.tell("resize d2 64M")?;

    let mut vm = start(bed, san)?;
    ensure!(numbers(&mut vm)? == targets, "target ids are others than before");
    bed.host().shell(&format!("kill -9 {}", vm.pid()), 30)?;
    let exit = vm.wait_exit(60)?;
    ensure!(exit.signal() == Some(9), "it was not killed: {exit:?}");
    nothing_left(san, &[ONE], 20)?;
    vm.done();
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// Two lives that end with all processes at once.
fn deaths(bed: &Bed, tool: &Tool<'_>, san: &San<'_>) -> Result<()> {
    let mut vm = start(bed, san)?;
    let targets = numbers(&mut vm)?;
    // All its processes at once: nobody is there to clean up, until the next start.
    kill_all(bed, &mut vm)?;
    no_process(san, 20)?;
    let list = tool.ok("list")?;
    note(&format!("left of a machine all of which was killed:\n{list}"));
    ensure!(list.contains(ONE) && list.contains(", ended)"), "{list}");
    vm.done();

    let mut vm = start(bed, san)?;
    let said = vm.errors();
    ensure!(
        said.contains(&format!("deletes the virtual port {ONE} first, which an ended process has left")),
        "{said}"
    );
    ensure!(numbers(&mut vm)? == targets, "target ids are others than before");
    kill_all(bed, &mut vm)?;
    no_process(san, 20)?;
    clean(tool)?;
    nothing_left(san, &[ONE], 10)?;
    vm.done();

    // The process that has the port alone: the machine says at its end what is left.
    let mut vm = start(bed, san)?;
    bed.host().shell(&format!("kill -9 {PORT_PROCESSES}"), 30)?;
    no_process(san, 20)?;
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 120)?;
    let said = vm.errors();
    note(&format!("said: {said}"));
    ensure!(
        said.contains(
            ") may still be there, for the process that had it (vmm-fcport) has ended without deleting it"
        ),
        "{said}"
    );
    clean(tool)?;
    nothing_left(san, &[ONE], 10)
}

/// What a process has left is deleted.
fn clean(tool: &Tool<'_>) -> Result<()> {
    let cleaned = tool.json("clean")?;
    let cleaned = items(&cleaned)?.first().context("nothing was cleaned")?.clone();
    note(&format!("cleaned: {cleaned}"));
    has(&cleaned, serde_json::json!({ "wwpn": ONE, "result": "deleted" }))
}

/// The numbers of processes that have ports, for the shell.
const PORT_PROCESSES: &str = "$(grep -lx vmm-fcport /proc/[0-9]*/comm | cut -d/ -f3)";

/// Kills the machine together with the process that has its ports, which is in no group of the machine's.
fn kill_all(bed: &Bed, vm: &mut Vm<'_>) -> Result<()> {
    let script = format!("kill -9 {} {PORT_PROCESSES}", vm.pid());
    bed.host().shell(&script, 30)?;
    vm.wait_exit(60).map(drop)
}

/// The virtual port is the machine's.
fn owns(tool: &Tool<'_>, vm: &Vm<'_>) -> Result<()> {
    note(&format!("list:\n{}", tool.ok("list")?));
    let list = tool.json("list")?;
    let vports = items(list.get("vports").context("no vports")?)?;
    let [vport] = &vports[..] else { anyhow::bail!("not one vport: {vports:?}") };
    has(vport, serde_json::json!({ "wwpn": ONE, "state": "Active" }))?;
    let owner = vport.get("owner").and_then(serde_json::Value::as_str).context("it is nobody's")?;
    ensure!(owner.contains("web") && !owner.contains("ended"), "{owner} ({})", vm.pid());
    // Its units are in use.
    let luns = tool.json(&format!("luns {ONE}"))?;
    let unused: Vec<_> = items(&luns)?.iter().filter(|lun| lun.get("in_use") != Some(&true.into())).collect();
    note(&format!("luns:\n{}", tool.ok(&format!("luns {ONE}"))?));
    ensure!(items(&luns)?.len() == 8 && unused.is_empty(), "not in use: {unused:?}");
    Ok(())
}

/// The target ids at which all units are, each under its own number, and no others are.
fn numbers(vm: &mut Vm<'_>) -> Result<Vec<u32>> {
    vm.run_code(&format!("within 150 '[ $(units | wc -l) = {} ]'", 2 * MAPPED.len()), 60)?;
    let found = units(vm)?;
    let mut targets: Vec<u32> =
        found.keys().filter_map(|address| address.split(':').nth(2)?.parse().ok()).collect();
    targets.dedup();
    let unit = |name: &str| Unit { name: name.into(), blocks: Some(131_072) };
    let at = |target: &u32| MAPPED.map(|(lun, name)| (address(0, *target, lun), unit(name)));
    let wanted: BTreeMap<_, _> = targets.iter().flat_map(at).collect();
    ensure!(found == wanted && targets.len() == 2, "the guest sees {found:?}, not {wanted:?}");
    Ok(targets)
}

/// What the guest writes by one target port is in the array's memory, and the guest reads it by the other.
fn data(san: &San<'_>, vm: &mut Vm<'_>, one: u32, other: u32) -> Result<()> {
    for (lun, name) in MAPPED {
        let (to, from) = (address(0, one, lun), address(0, other, lun));
        let said = vm.run(&format!(
            "head -c 4194304 /dev/urandom > /tmp/data
             dd if=/tmp/data of=$(disk {to}) bs=256k oflag=direct 2>/dev/null
             dd if=$(disk {from}) bs=64k count=64 iflag=direct 2>/dev/null | cmp - /tmp/data && md5sum < /tmp/data"
        ))?;
        san.tell(&format!("save {name} /dev/shm/fabric.disk"))?;
        let sum = san.shell("head -c 4M /dev/shm/fabric.disk | md5sum; rm /dev/shm/fabric.disk", 60)?;
        ensure!(
            said.trim() == sum.trim() && sum.len() > 32,
            "the array's {name} is {sum}, the guest's {said}"
        );
    }
    Ok(())
}

/// What the array shows it and hides from it, comes and goes; what it shows to others is nothing to it.
fn masks(san: &San<'_>, vm: &mut Vm<'_>, targets: &[u32]) -> Result<()> {
    let at = |lun: u32| targets.iter().map(move |target| address(0, *target, lun));
    let is = |word: &str, lun: u32| at(lun).map(|at| format!("{word} {at}")).collect::<Vec<_>>().join(" && ");
    let mut slow = Vec::new();
    for (what, command, condition) in [
        ("a LUN that is mapped", format!("map {ONE} 0=d0 5=d1 9=d4 27=d2 513=d3"), is("there", 9)),
        ("a LUN that is not any more", format!("map {ONE} 0=d0 5=d1 27=d2 513=d3"), is("gone", 9)),
        ("one above 255", format!("map {ONE} 0=d0 5=d1 27=d2 513=d3 4660=d4"), is("there", 4660)),
        ("that goes", format!("map {ONE} 0=d0 5=d1 27=d2 513=d3"), is("gone", 4660)),
        ("LUN 0 that goes", format!("map {ONE} 5=d1 27=d2 513=d3"), is("gone", 0)),
        ("and is back", format!("map {ONE} 0=d0 5=d1 27=d2 513=d3"), is("there", 0)),
        ("all go", format!("map {ONE}"), format!("{} && {}", is("gone", 0), is("gone", 513))),
        (
            "all are back",
            format!("map {ONE} 0=d0 5=d1 27=d2 513=d3"),
            format!("{} && {}", is("there", 0), is("there", 513)),
        ),
    ] {
        match after(san, vm, &command, &condition, 30) {
            Ok(took) => {
                note(&format!("{what}: seen after {took:.1} s"));
                if took > SOON {
                    slow.push(format!("{what}: seen after {took:.1} s"));
                }
            }
            Err(error) => slow.push(format!("{what}: {error:#}\n{:?}\n{}", units(vm)?, vm.errors())),
        }
    }
    ensure!(numbers(vm)? == targets, "targets are others now");
    san.tell(&format!("map {TWO} 0=d4 1=d4"))?;
    ensure!(numbers(vm)? == targets, "targets are others now");
    // One number with another disk at each port: nobody mixes them up. The array says so with the answer to a command.
    let both = at(0).collect::<Vec<_>>().join(" ");
    let names = format!("for at in {both}; do tail -c +5 $(at $at)/vpd_pg80; done");
    for (what, command, wanted) in [
        ("another disk at one of the ports", format!("map {ONE}@2 0=d4 5=d1 27=d2 513=d3"), "d0d4|d4d0"),
        ("and the same again", format!("unmap {ONE}@2"), "d0d0"),
    ] {
        let condition = format!(
            "{{ for at in {both}; do read_one $at; done; case $({names}) in {wanted}) true;; *) false;; esac; }} && {}",
            is("there", 0)
        );
        match after(san, vm, &command, &condition, 40) {
            Ok(took) => note(&format!("{what}: seen after {took:.1} s")),
            Err(error) => slow.push(format!("{what}: {error:#}\n{:?}\n{}", units(vm)?, vm.errors())),
        }
    }
    ensure!(numbers(vm)? == targets, "targets are others now");
    // What was there all the time works.
    vm.run(&format!("read_one {}", address(0, targets.first().copied().unwrap_or(0), 5)))?;
    ensure!(slow.is_empty(), "{}", slow.join("\n"));
    Ok(())
}

/// The array's disk grows while the guest uses it: it says so with the answer to a command, as arrays do.
fn sizes(san: &San<'_>, vm: &mut Vm<'_>, targets: &[u32]) -> Result<()> {
    let at: Vec<String> = targets.iter().map(|target| address(0, *target, 27)).collect();
    let of = |at: &String| format!("[ $(cat $(at {at})/block/*/size) = 196608 ]");
    let sizes = at.iter().map(of).collect::<Vec<_>>().join(" && ");
    let condition = format!("{{ for at in {}; do read_one $at; done; {sizes}; }}", at.join(" "));
    let took = after(san, vm, "resize d2 96M", &condition, 30)?;
    note(&format!("a disk in use that grew: seen after {took:.1} s"));
    ensure!(took <= SOON, "a size is seen after {took:.1} s");
    Ok(())
}

/// The same face over emulated disks: LUNs have their numbers, behind two ports.
pub(crate) fn emulated(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let mut guest =
        guest(bed, "web").hba_key("fc", toml::Table::from_iter([("emulated".to_string(), true.into())]));
    for (target, lun, name) in EMULATED {
        let disk = Disk::empty("16M").set("target", i64::from(target)).set("lun", i64::from(lun));
        guest = guest.disk(disk.set("serial", name));
    }
    let mut vm = guest.spawn()?;
    shell(&mut vm)?;
    let found = units(&mut vm)?;
    let unit = |name: &str| Unit { name: name.into(), blocks: Some(32_768) };
    let wanted: BTreeMap<_, _> =
        EMULATED.iter().map(|(target, lun, name)| (address(0, *target, *lun), unit(name))).collect();
    ensure!(found == wanted, "the guest sees {found:?}, not {wanted:?}");
    let said = vm.run(&format!("sg_luns {}; sg_luns {}", sg(0, 0), sg(1, 513)))?;
    note(&said);
    for (target, lun, _) in EMULATED {
        vm.run(&format!(
            "dd if=/dev/urandom of=$(disk {}) bs=64k count=16 oflag=direct 2>/dev/null",
            address(0, target, lun)
        ))?;
    }
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 60)
}

pub(crate) const EMULATED: [(u32, u32, &str); 5] =
    [(0, 0, "e0"), (0, 5, "e1"), (0, 513, "e2"), (1, 0, "e3"), (1, 513, "e4")];

fn sg(target: u32, lun: u32) -> String {
    format!("$(sg {})", address(0, target, lun))
}
