//! A port that changes its names while the guest reads and writes: from the first to the second and back, with the kernel's own driver in the
//! guest and with ours.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::fio::Fio;
use testbed::guest::Vmm;
use testbed::kernel::Debian;
use testbed::report::note;
use testbed::vm::Vm;

use super::fabric::San;
use super::fc_guest::{guest, keys, nothing_left, shell, units};
use super::fc_module::{FUNCTIONS, with_module};
use super::fc_tool::Tool;
use super::hotplug::{ask, ask_all};

const ONE: &str = "2100000000000a01";
const TWO: &str = "2100000000000a02";

const SETUP: &str = "disk d0 64M
disk d1 64M
map any
map 2100000000000a01 0=d0 5=d1
map 2100000000000a02 0=d0 5=d1
";

/// Seconds that a guest may be without an answer: emulated hosts are busy with other things.
const PAUSE: f64 = 10.0;

/// Reads of 4 KiB, one after the other, until /tmp/stop is there: /tmp/pause has the longest time from one to the next in hundredths of a
/// second, and /tmp/failed how many failed.
const READS: &str = "reads() {
        last=$(now); longest=0; failed=0
        until [ -e /tmp/stop ]; do
            read_one $1 || failed=$((failed + 1))
            then=$last; last=$(now)
            [ $((last - then)) -le $longest ] || longest=$((last - then))
        done
        echo $longest > /tmp/pause; echo $failed > /tmp/failed
    }";

pub(crate) fn names(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let tool = Tool::new(bed)?;
    let san = San::new(bed, &[1], 2, SETUP)?;
    let done = [false, true].into_iter().try_for_each(|module| life(bed, &tool, &san, module));
    note(&format!("the fabric: {}", san.tell("info").unwrap_or_default()));
    done.map_err(|error| error.context(san.log()))
}

fn start<'a>(bed: &'a Bed, module: bool) -> Result<Vm<'a>> {
    let guest =
        guest(bed, "web").option("--log-level").option("info").option("--set=control.path=control.sock");
    let guest = guest.archive(Fio::prepare()?.archive()?);
    let guest = if module { with_module(bed, guest, Debian::Trixie)? } else { guest };
    let second = format!("secondary_wwpn={TWO}");
    let node = format!("secondary_wwnn={}", TWO.replacen("21", "20", 1));
    let mut vm = guest.fabric("san0", keys(ONE, &["allow=all", "timeout=15", &second, &node])?).spawn()?;
    shell(&mut vm)?;
    if module {
        vm.run(FUNCTIONS)?;
        vm.run("load")?;
    }
    vm.run(READS)?;
    Ok(vm)
}

/// One life of a machine, which ends with its other names.
fn life(bed: &Bed, tool: &Tool<'_>, san: &San<'_>, module: bool) -> Result<()> {
    let mut vm = start(bed, module)?;
    let done = steps(bed, tool, san, &mut vm, module);
    note(&format!("said: {}", vm.errors()));
    if done.is_err() {
        note(&vm.run("dmesg | tail -n 60; cat /tmp/fio").unwrap_or_default());
    }
    done?;
    bed.host().shell(&format!("kill -9 {}", vm.pid()), 30)?;
    let exit = vm.wait_exit(60)?;
    ensure!(exit.signal() == Some(9), "it was not killed: {exit:?}");
    nothing_left(san, &[ONE, TWO], 20)?;
    vm.done();
    Ok(())
}

fn steps(bed: &Bed, tool: &Tool<'_>, san: &San<'_>, vm: &mut Vm<'_>, module: bool) -> Result<()> {
    vm.run_code("within 300 '[ $(units | wc -l) = 4 ]'", 120)?;
    let found = units(vm)?;
    let at = |name: &str| {
        let (address, _) = found.iter().find(|(_, unit)| unit.name == name)?;
        Some(address.clone())
    };
    let (read, written) = at("d0").zip(at("d1")).with_context(|| format!("not both disks: {found:?}"))?;
    vm.run(&format!("(reads {read}) & true"))?;
    vm.run(&format!(
        "(fio --name=names --filename=$(disk {written}) --direct=1 --rw=randrw --bs=4k --iodepth=8 --size=16m --io_size=1g \
         --ioengine=libaio --thread --verify=crc32c --verify_backlog=256 --verify_fatal=1 --time_based --runtime=40 --randseed=1 \
         --output-format=terse --terse-version=3 > /tmp/fio 2>&1; touch /tmp/over) & sleep 5"
    ))?;
    for (names, has, other) in [("secondary", TWO, ONE), ("primary", ONE, TWO)] {
        let begin = Instant::now();
        ask(bed, vm, "fc-names", &format!("\"names\": \"{names}\""))?;
        let took = begin.elapsed().as_secs_f64();
        let gone = format!("wait_for 30 '[ -z \"$(vport_state {other})\" ]'; vport_state {has}");
        let state = san.shell(&gone, 60)?;
        ensure!(state.trim() == "Active", "the port with the {names} names is {state}");
        note(&format!(
            "the {names} names after {took:.1} s, and the others gone after {:.1} s",
            begin.elapsed().as_secs_f64()
        ));
        let shown = ask(bed, vm, "query-hbas", "")?;
        ensure!(shown.contains(&format!("\"names\":\"{names}\"")), "{shown}");
        if module {
            let name = vm.run("attribute port_name")?;
            ensure!(name.trim() == format!("0x{has}"), "the port of the guest is {name}");
        }
        ensure!(tool.ok("list")?.contains(has), "it is not listed");
    }
    vm.run_for("within 900 '[ -e /tmp/over ]'; touch /tmp/stop; within 300 '[ -e /tmp/failed ]'", 240)?;
    let said = vm.run("cut -c1-300 /tmp/fio")?;
    let errors = said.lines().find(|line| line.starts_with("3;")).and_then(|line| line.split(';').nth(4));
    ensure!(errors == Some("0"), "fio failed: {said}");
    let (failed, pause) =
        (vm.run("cat /tmp/failed")?, vm.run("cat /tmp/pause")?.trim().parse::<f64>()? / 100.0);
    note(&format!(
        "the guest was without an answer for {pause:.2} s at most, {} reads failed",
        failed.trim()
    ));
    ensure!(failed.trim() == "0" && pause <= PAUSE, "{failed} reads failed, and the longest took {pause} s");
    ensure!(!vm.run("dmesg")?.contains("I/O error"), "an error reached the users");
    ensure!(units(vm)? == found, "the disks are others than before");
    sees_less(bed, san, vm, &read)?;
    ask(bed, vm, "fc-names", "\"names\": \"secondary\"")?;
    vm.run(&format!("read_one {read}"))?;
    Ok(())
}

/// Nothing changes where the other names see less.
fn sees_less(bed: &Bed, san: &San<'_>, vm: &mut Vm<'_>, read: &str) -> Result<()> {
    san.tell(&format!("map {TWO} 0=d0"))?;
    let said = ask_all(bed, vm, &[("fc-names", "\"names\": \"secondary\"")], 60)?;
    ensure!(said.contains("sees less: LUN 5 of target") && said.contains(TWO), "{said}");
    vm.run(&format!("read_one {read}"))?;
    san.shell(&format!("wait_for 30 '[ -z \"$(vport_state {TWO})\" ]'"), 60)?;
    let shown = ask(bed, vm, "query-hbas", "")?;
    ensure!(shown.contains("\"names\":\"primary\""), "{shown}");
    san.tell(&format!("map {TWO} 0=d0 5=d1"))?;
    Ok(())
}
