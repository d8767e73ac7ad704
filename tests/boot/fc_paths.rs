//! Paths that fail behind ports of machines: several machines at one unit, several paths to one, and what a guest sees of each fault.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::extras;
use testbed::fio::Fio;
use testbed::guest::Vmm;
use testbed::kernel::Debian;
use testbed::report::note;
use testbed::vm::Vm;

use super::fabric::San;
use super::fc_guest::{guest, keys, nothing_left, shell, units};
use super::fc_tool::Tool;

const ONE: &str = "2100000000000a01";
const TWO: &str = "2100000000000a02";

/// SCSI's RESERVATION CONFLICT, as the programs of sg3_utils end with it.
const CONFLICT: i32 = 24;

/// Two machines, a port each, one unit: each is known by the name of its port, and one fences the other.
pub(crate) fn cluster(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let _tool = Tool::new(bed)?;
    let setup = format!("disk d0 64M\nmap any\nmap {ONE} 0=d0\nmap {TWO} 0=d0\n");
    let san = San::new(bed, &[1], 1, &setup)?;
    let done = fences(bed, &san);
    note(&format!("the fabric: {}", san.tell("info").unwrap_or_default()));
    done.map_err(|error| error.context(san.log()))
}

fn fences(bed: &Bed, san: &San<'_>) -> Result<()> {
    let more = ["allow=all", "shared=true"];
    let mut one = guest(bed, "one").fabric("san0", keys(ONE, &more)?).spawn()?;
    let mut two = guest(bed, "two").fabric("san0", keys(TWO, &more)?).spawn()?;
    for vm in [&mut one, &mut two] {
        shell(vm)?;
        let found = units(vm)?;
        ensure!(found.len() == 1, "not one unit: {found:?}\n{}", vm.errors());
        let unit = found.keys().next().context("no unit")?;
        vm.run(&format!(
            "node=$(sg {unit}); disk=$(disk {unit}); head -c 512 /dev/urandom > /tmp/block
             put() {{ sg_raw -s 512 -i /tmp/block $node 2a 00 00 00 00 08 00 00 01 00 >/tmp/put 2>&1; }}
             pr() {{ sg_persist -n \"$@\" $node; }}
             read_one {unit}"
        ))?;
    }
    one.run(
        "pr --out --register --param-sark=0xa && pr --out --reserve --param-rk=0xa --prout-type=5 && put",
    )?;
    let (said, code) = two.run_code("put; code=$?; cat /tmp/put; (exit $code)", 60)?;
    ensure!(code == CONFLICT, "a write of who is not registered ended with {code}: {said}");
    two.run("pr --out --register --param-sark=0xb && put")?;
    let full = one.run("pr --in --read-full-status")?;
    note(&format!("all registrations, as a guest sees them:\n{full}"));
    let digits: String = full.chars().filter(char::is_ascii_hexdigit).collect();
    ensure!(digits.contains(ONE) && digits.contains(TWO), "the names of the ports are not there: {full}");
    // The second fences the first, in the middle of its writes.
    one.send(
        "(while put; do :; done; echo $? > /tmp/ended; cp /tmp/put /tmp/last) & sleep 1; echo writ''ing\n",
    )?;
    one.wait_for("writing", 60)?;
    two.run("pr --out --preempt-abort --param-rk=0xb --param-sark=0xa --prout-type=5")?;
    let said = one.run("within 100 '[ -e /tmp/last ]'; cat /tmp/ended /tmp/last")?;
    note(&format!("the write of who was fenced: {}", said.trim()));
    let (again, code) = one.run_code("put; code=$?; cat /tmp/put; (exit $code)", 60)?;
    ensure!(code == CONFLICT, "a fenced write ended with {code}: {again}");
    let (direct, code) = one.run_code(
        "dd if=/tmp/block of=$disk count=1 oflag=direct; code=$?; dmesg | tail -n 3; (exit $code)",
        60,
    )?;
    note(&format!("a fenced write of the block device: {}", direct.trim()));
    ensure!(code != 0, "a fenced write of the block device succeeded");
    two.run("put && dd if=/tmp/block of=$disk count=1 oflag=direct 2>/dev/null")?;
    let said = two.run("pr --in --read-keys")?;
    ensure!(said.contains("0xb") && !said.contains("0xa"), "{said}");
    two.run("pr --out --clear --param-rk=0xb")?;
    one.run("put; put")?;
    for vm in [&mut one, &mut two] {
        vm.send("poweroff -f\n")?;
        vm.expect_exit(0, 120)?;
    }
    nothing_left(san, &[ONE, TWO], 10)
}

/// A device of two paths, as multipathd would make it; `follow` looks after its paths, as that does: a failed one is back when it can
/// be read.
const MULTIPATH: &str = r#"
    for module in $(cat /modules.paths); do insmod $module 2>/dev/null; done
    one=$(disk $1); other=$(disk $2)
    blocks=$(cat /sys/block/${one##*/}/size)
    echo "0 $blocks multipath 1 queue_if_no_path 0 1 1 service-time 0 2 1 $one 1 $other 1" | dmsetup create --noudevsync mp
    dmsetup mknodes
    follow() {
        while sleep 0.5; do
            [ ! -e /tmp/stop ] || return
            for path in $one $other; do
                number=$(cat /sys/block/${path##*/}/dev)
                case $(dmsetup status mp) in *"$number F "*)
                    echo "$(now) $path failed" >> /tmp/paths
                    dd if=$path of=/dev/null bs=512 count=1 iflag=direct 2>/dev/null || continue
                    echo "$(now) $path is back" >> /tmp/paths
                    dmsetup message mp 0 reinstate_path $number ;;
                esac
            done
        done
    }
    (follow &)
"#;

/// Two adapters at two fabrics, one disk: what its users see while a port of the array is off for 20 seconds, and each other fault.
pub(crate) fn multipath(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let _tool = Tool::new(bed)?;
    let setup = format!("disk d0 64M\nmap any\nmap {ONE} 0=d0\nmap {TWO} 0=d0\n");
    let san = San::new(bed, &[1, 1], 1, &setup)?;
    let done = both(bed, &san);
    note(&format!("the fabric: {}", san.tell("info").unwrap_or_default()));
    done.map_err(|error| error.context(san.log()))
}

fn both(bed: &Bed, san: &San<'_>) -> Result<()> {
    let prepared = bed.prepared();
    let mut guest = guest(bed, "web");
    for archive in extras::paths(prepared.kernel(Debian::Trixie)?, prepared.tools())? {
        guest = guest.archive(archive);
    }
    let more = ["fast_io_fail_tmo=5", "allow=all"];
    let guest = guest
        .archive(Fio::prepare()?.archive()?)
        .fabric("san0", keys(ONE, &[&more[..], &["parent=fi1"]].concat())?)
        .fabric("san1", keys(TWO, &[&more[..], &["parent=fi2"]].concat())?);
    let mut vm = guest.spawn()?;
    shell(&mut vm)?;
    let found = units(&mut vm)?;
    let paths: Vec<&String> = found.keys().collect();
    let [one, other] = paths[..] else { anyhow::bail!("not two paths: {found:?}\n{}", vm.errors()) };
    vm.run(&format!("set -- {one} {other}\n{MULTIPATH}"))?;
    fio_beside_a_fault(san, &mut vm)?;
    note(&format!("said: {}", vm.errors()));
    vm.run("touch /tmp/stop; sleep 1.5; dmsetup remove --noudevsync mp")?;
    let mut faults = Vec::new();
    table(san, &mut vm, one, &mut faults)?;
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 120)?;
    nothing_left(san, &[ONE, TWO], 10)?;
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// fio with checksums on the device of two paths, while one of them is off for 20 seconds.
fn fio_beside_a_fault(san: &San<'_>, vm: &mut Vm<'_>) -> Result<()> {
    vm.run(
        "fio --name=mp --filename=/dev/mapper/mp --direct=1 --rw=randrw --bs=4k --iodepth=16 --size=16m --io_size=1g \
         --ioengine=libaio --thread --verify=crc32c --verify_backlog=256 --verify_fatal=1 --time_based --runtime=60 --randseed=1 \
         --output-format=terse --terse-version=3 > /tmp/fio 2>&1 &\n sleep 8",
    )?;
    let begin = Instant::now();
    san.tell("port 2 down")?;
    san.shell("sleep 20", 60)?;
    san.tell("port 2 up")?;
    note(&format!("the port was down for {:.1} s", begin.elapsed().as_secs_f64()));
    vm.run_for("wait; cat /tmp/fio", 240)?;
    let said = vm.run("cat /tmp/fio | cut -c1-400; echo; cat /tmp/paths; dmesg | grep -iE 'multipath|I/O error|device-mapper' | tail -n 20; dmsetup status mp")?;
    note(&format!("fio beside a port that was down:\n{said}"));
    let errors = said.lines().find(|line| line.starts_with("3;")).and_then(|line| line.split(';').nth(4));
    ensure!(errors == Some("0"), "fio failed: {said}");
    ensure!(said.contains("failed") && said.contains("is back"), "no path failed: {said}");
    ensure!(!vm.run("dmesg")?.contains("Buffer I/O error"), "an error reached the users");
    Ok(())
}

/// A read of 4 KiB on one path that begins right after each fault: how it ends, and when.
fn table(san: &San<'_>, vm: &mut Vm<'_>, path: &str, faults: &mut Vec<String>) -> Result<()> {
    // The host may have tried a medium error once more.
    for (what, command, then, is_read) in [
        ("nothing", "", "", Some(true)),
        ("LOGO by the target", "logo 2100000000000a01 1", "", Some(true)),
        ("BUSY, three times", "inject any 28 3 busy", "", Some(true)),
        ("one medium error", "inject any 28 1 sense=3/11/0", "", None),
        ("the command is lost", "lose cmnd 1", "", Some(true)),
        ("its response is lost", "lose rsp 1", "", Some(true)),
        ("half of its data is lost", "lose data 1", "", Some(true)),
        ("Clear Virtual Links of the vport", "cvl 2100000000000a01", "", Some(true)),
        ("Clear Virtual Links of the node", "cvl node 2100000000000a01", "", Some(true)),
        ("the fabric is off for a second", "@1 restart 1000", "", Some(true)),
        ("the link is down for a second", "link sw1 down", "sleep 1; ip link set sw1 up", None),
        ("the target port is off for 3 s", "port 1 down", "sleep 3", Some(true)),
        (
            "the target port is off for 10 s, longer than fast_io_fail_tmo",
            "port 1 down",
            "sleep 10",
            Some(false),
        ),
        ("the target port is silent for 3 s", "port 1 silent", "sleep 3", Some(true)),
        // Where nobody can ask what became of a command, the host's driver waits.
        ("the command is lost by an array without REC", "lose cmnd 1", "", Some(true)),
    ] {
        san.tell(if what.ends_with("without REC") { "rec off" } else { "rec on" })?;
        let fault = san.fault(command)?;
        vm.send(&format!("begin=$(now); read_one {path}; echo \"READ $? $(($(now) - begin)).\"\n"))?;
        if !then.is_empty() {
            san.shell(then, 60)?;
        }
        if command.starts_with("port") {
            san.tell(if command.ends_with("silent") { "port 1 heard" } else { "port 1 up" })?;
        }
        vm.wait_for("READ ", 180)?;
        let said = vm.wait_for(".", 10)?;
        vm.wait_for("\n", 10)?;
        let (code, time) = said.split_once(' ').context("no time")?;
        let begin = Instant::now();
        let (well, code_after) = vm.run_code(&format!("within 600 'read_one {path}'"), 120)?;
        note(&format!(
            "{what}: the read {} after {:.1} s, all well {:.1} s later",
            if code == "0" { "is done" } else { "fails" },
            time.parse::<f64>()? / 100.0,
            begin.elapsed().as_secs_f64()
        ));
        if is_read.is_some_and(|is_read| is_read != (code == "0")) || code_after != 0 {
            faults.push(format!(
                "{what}: the read ended with {code} after {time}/100 s; then {code_after} {well}"
            ));
        }
        faults.extend(san.mend(&fault).err().map(|error| format!("{what}: {error:#}")));
        // The adapter itself may need longer than its port.
        san.shell(&format!("wait_for 60 '[ \"$(vport_state {ONE})\" = Active ]'; sleep 1"), 90)?;
    }
    san.tell("rec on").map(drop)
}
