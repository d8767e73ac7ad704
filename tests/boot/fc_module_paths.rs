//! The guest's own driver where ports of the array are off: two adapters at two fabrics below multipathd, and one path by itself.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::fio::Fio;
use testbed::guest::Vmm;
use testbed::report::note;
use testbed::vm::Vm;

use super::fabric::San;
use super::fc_guest::{after, keys, nothing_left};
use super::fc_module::quiet;
use super::fc_tool::Tool;
use super::fc_tour::{PORTS, show, tools_up, with_tools};

const ONE: &str = "2100000000000a01";
const TWO: &str = "2100000000000a02";

pub(crate) fn paths(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let _tool = Tool::new(bed)?;
    let setup = format!("disk d0 64M\nmap any\nmap {ONE} 0=d0\nmap {TWO} 0=d0\n");
    let san = San::new(bed, &[1, 1], 1, &setup)?;
    let done = run(bed, &san);
    note(&format!("the fabric: {}", san.tell("info").unwrap_or_default()));
    done.map_err(|error| error.context(san.log()))
}

fn run(bed: &Bed, san: &San<'_>) -> Result<()> {
    let more = |parent| [format!("parent={parent}"), "allow=all".into()];
    let keys_of = |wwpn, parent| keys(wwpn, &more(parent).each_ref().map(String::as_str));
    let guest = with_tools(bed, "web")?.archive(Fio::prepare()?.archive()?);
    let guest = guest.fabric("san0", keys_of(ONE, "fi1")?).fabric("san1", keys_of(TWO, "fi2")?);
    let mut vm = guest.spawn()?;
    tools_up(&mut vm, 2)?;
    let done = below_multipath(san, &mut vm).and_then(|()| by_itself(san, &mut vm));
    if done.is_err() {
        let said = vm.run("dmesg | tail -n 80; cat /run/multipathd.log").unwrap_or_default();
        note(&format!("said: {}\n{said}", vm.errors()));
    }
    done?;
    quiet(&mut vm)?;
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 120)?;
    nothing_left(san, &[ONE, TWO], 10)
}

/// fio with checksums on the device of both paths, while the port of one is off for 20 seconds.
fn below_multipath(san: &San<'_>, vm: &mut Vm<'_>) -> Result<()> {
    let [_, lost] = PORTS;
    vm.run(
        "printf 'defaults {\\n    find_multipaths yes\\n    polling_interval 2\\n}\\n' > /etc/multipath.conf",
    )?;
    vm.run_for(
        "multipath_up && udevadm trigger --action=change --subsystem-match=block && udevadm settle",
        180,
    )?;
    vm.run_for("within 600 '[ $(multipath -ll -v1 | wc -l) = 1 ]'", 120)?;
    show(
        vm,
        "multipath -ll | cat; name=$(multipath -ll -v1); grep . /sys/class/fc_remote_ports/*/fast_io_fail_tmo /sys/class/fc_remote_ports/*/dev_loss_tmo",
    )?;
    vm.run(
        "fio --name=mp --filename=/dev/mapper/$name --direct=1 --rw=randrw --bs=4k --iodepth=16 --size=16m --io_size=1g \
         --ioengine=libaio --thread --verify=crc32c --verify_backlog=256 --verify_fatal=1 --time_based --runtime=50 --randseed=1 \
         --output-format=terse --terse-version=3 > /tmp/fio 2>&1 &\n sleep 5",
    )?;
    let begin = Instant::now();
    let took = after(san, vm, "port 2 down", "multipathd show paths format %t | grep -q -w failed", 60)?;
    note(&format!("a port that is off: multipathd takes the other path after {took:.1} s"));
    show(vm, &format!("multipath -ll | cat; state {lost}"))?;
    let left = 20.0 - begin.elapsed().as_secs_f64();
    san.shell(&format!("sleep {:.1}", left.max(0.1)), 60)?;
    note(&format!("the port was off for {:.1} s", begin.elapsed().as_secs_f64()));
    let took =
        after(san, vm, "port 2 up", "[ $(multipathd show paths format %t | grep -w -c active) = 2 ]", 60)?;
    note(&format!("it is on again: both paths are active after {took:.1} s"));
    vm.run_for("wait", 240)?;
    let said = show(
        vm,
        "cut -c1-300 /tmp/fio; multipath -ll | cat; dmesg | grep -iE 'multipath|I/O error|rport' | tail -n 12",
    )?;
    let errors = said.lines().find(|line| line.starts_with("3;")).and_then(|line| line.split(';').nth(4));
    ensure!(errors.context("fio said nothing")? == "0", "fio failed: {said}");
    ensure!(said.matches("active ready running").count() == 2, "{said}");
    ensure!(!vm.run("dmesg")?.contains("Buffer I/O error"), "an error reached the users");
    vm.run_for("within 200 'multipath -F; [ -z \"$(multipath -ll -v1)\" ]'; multipathd shutdown; true", 90)?;
    Ok(())
}

/// One path, and nobody above it. That commands wait through such a time `fc-module-fabric` has shown.
fn by_itself(san: &San<'_>, vm: &mut Vm<'_>) -> Result<()> {
    let [port, _] = PORTS;
    let at = vm.run(&format!(
        "rport=$(port {port}); host=${{rport##*rport-}}; echo ${{host%%:*}}:0:$(cat $rport/scsi_target_id):0"
    ))?;
    let at = at.trim();
    // `begin` starts a read of 4096 bytes; `ended` waits for its end, and says how many bytes it has got, after how many hundredths of a second.
    vm.run(&format!(
        "name=$(disk {at}); exec 3<$name
         read_held() {{ was=$(now); got=$(dd bs=4k skip=$1 count=1 <&3 2>/dev/null | wc -c); echo \"$got $(($(now) - was))\" > /tmp/read.$1; }}
         begin() {{ rm -f /tmp/read.$1; (read_held $1 &); }}
         ended() {{ within 600 \"[ -s /tmp/read.$1 ]\"; echo READ $(cat /tmp/read.$1); }}
         set_times() {{ rport=$(port {port}); echo $1 > $rport/dev_loss_tmo; echo $2 > $rport/fast_io_fail_tmo; }}"
    ))?;
    vm.run("set_times 60 5")?;
    show(vm, "/usr/bin/lsscsi -t; ls -l /proc/self/fd/3 | sed 's/.*3 ->/3 ->/'")?;
    // It fails after fast_io_fail_tmo, and the disk stays.
    after(san, vm, "port 1 down", &format!("[ $(state {port}) = Blocked ]"), 30)?;
    let begin = Instant::now();
    vm.run("begin 1000; sleep 2; [ ! -e /tmp/read.1000 ]")?;
    let (bytes, time) = ended(&vm.run("ended 1000")?)?;
    note(&format!("a read of a port that is off, fast_io_fail_tmo = 5: {bytes} bytes after {time:.1} s"));
    ensure!(bytes == 0 && (2.0..15.0).contains(&time), "the read has {bytes} bytes after {time} s");
    let said = vm.run(&format!("begin 1001; ended 1001; state {port}; cat $(at {at})/state"))?;
    note(&format!(
        "another one after that, the port's state, and the disk's: {}",
        said.trim().replace('\n', ", ")
    ));
    let left = 20.0 - begin.elapsed().as_secs_f64();
    san.shell(&format!("sleep {:.1}", left.max(0.1)), 60)?;
    let took = after(san, vm, "port 1 up", &format!("[ $(state {port}) = Online ]"), 30)?;
    let said = vm.run(&format!(
        "within 100 'read_one {at}'; begin 1002; ended 1002; [ $(disk {at}) = $name ] && /usr/bin/lsscsi -t"
    ))?;
    note(&format!(
        "it was off for 20 s; online after {took:.1} s, a read by the descriptor that was open all the time, and the disks: {said}"
    ));
    ensure!(ended(&said)?.0 == 4096, "{said}");

    // It is given up: the disk goes. Without anybody who has it open its name is free then, and the new one gets it.
    for held in [false, true] {
        vm.run(if held { "exec 3<$name" } else { "exec 3<&-" })?;
        vm.run("set_times 6 off")?;
        let before = vm.run("/usr/bin/lsscsi -t")?;
        let took = after(san, vm, "port 1 down", &format!("gone {at}"), 60)?;
        let gone = vm.run("/usr/bin/lsscsi -t; ls -d /sys/block/sd*")?;
        let read = if held { vm.run("begin 2000; ended 2000")? } else { "nobody has it open".into() };
        let back = after(san, vm, "port 1 up", &format!("there {at} && read_one {at}"), 60)?;
        let name = vm.run(&format!("/usr/bin/lsscsi -t; echo $name, $(disk {at})"))?;
        note(&format!(
            "dev_loss_tmo = 6, {}: before\n{before}the disk is gone after {took:.1} s\n{gone}a read by the old descriptor: {}\nback after {back:.1} s\n{name}",
            if held { "a descriptor of the disk is open" } else { "nobody has the disk open" },
            read.trim()
        ));
        let is_same = vm.run_code(&format!("[ $(disk {at}) = $name ]"), 30)?.1 == 0;
        ensure!(is_same != held && (!held || ended(&read)?.0 == 0), "the disk's name: {name}{read}");
    }
    vm.run("exec 3<&-").map(drop)
}

/// How many bytes a read has got, and after how many seconds.
fn ended(said: &str) -> Result<(u32, f64)> {
    let line = said.lines().find_map(|line| line.trim().strip_prefix("READ ")).context("no read")?;
    let (bytes, time) = line.split_once(' ').context("no time")?;
    Ok((bytes.parse()?, time.parse::<f64>()? / 100.0))
}
