//! Asymmetric access: states that the array changes, or the guest, and what its handler and multipathd make of them; and referrals, which
//! nothing on the way knows.

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::extras;
use testbed::fio::Fio;
use testbed::guest::Vmm;
use testbed::report::note;
use testbed::vm::Vm;

use super::fabric::San;
use super::fc_guest::{after, keys, nothing_left};
use super::fc_tool::Tool;
use super::fc_tour::{PORTS, show, tools_up, with_tools};

/// The first may do all, and its reads and writes are the host's own; the second may do what guests may by themselves, and all is sent as it is.
const ONE: &str = "2100000000000a01";
const TWO: &str = "2100000000000a02";

/// What the test writes.
const BLOCK: &str = "a5";

/// `access ADDRESS` prints the state that the handler has, `priority NODE` what multipathd makes of it.
const FUNCTIONS: &str = r#"
    access() { cat $(at $1)/access_state; }
    priority() { multipathd show paths raw format '%d %p' | grep "^${1#/dev/} " | cut -d' ' -f2; }
"#;

pub(crate) fn alua(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let _tool = Tool::new(bed)?;
    let setup = format!(
        "disk d0 64M\ndisk d1 64M\nmap any\nmap {ONE} 1=d1\nmap {TWO} 0=d0 1=d1\nalua 2 non-optimized\n"
    );
    let san = San::new(bed, &[1], 2, &setup)?;
    let done = run(bed, &san);
    note(&format!("the fabric: {}", san.tell("info").unwrap_or_default()));
    done.map_err(|error| error.context(san.log()))
}

fn run(bed: &Bed, san: &San<'_>) -> Result<()> {
    let guest = with_tools(bed, "web")?.archive(Fio::prepare()?.archive()?).archive(extras::sense()?);
    let guest =
        guest.fabric("san0", keys(ONE, &["allow=all"])?).fabric("san1", keys(TWO, &["passthrough=generic"])?);
    let mut vm = guest.spawn()?;
    tools_up(&mut vm, 6)?;
    vm.run(FUNCTIONS)?;
    let done = steps(san, &mut vm);
    if done.is_err() {
        note(&format!(
            "said: {}\n{}",
            vm.errors(),
            vm.run("dmesg | tail -n 60; cat /run/multipathd.log").unwrap_or_default()
        ));
    }
    done?;
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 120)?;
    nothing_left(san, &[ONE, TWO], 10)
}

/// The unit at each port of the array: of the disk d0 by the second adapter, and of d1 by the first; and that of d1 by the other one.
struct Paths {
    d0: [String; 2],
    d1: [String; 2],
    other: String,
}

fn steps(san: &San<'_>, vm: &mut Vm<'_>) -> Result<()> {
    let paths = paths(vm)?;
    heard(san, vm, &paths)?;
    referrals(san, vm, &paths)?;
    set_by_the_guest(san, vm, &paths)?;
    multipath(san, vm, &paths)?;
    own_reads(san, vm, &paths)
}

fn paths(vm: &mut Vm<'_>) -> Result<Paths> {
    // Which of the two adapters is which, and its number of each port.
    let script = |wwpn: &str, port: &str| {
        format!(
            "host=$(dirname $(grep -l 0x{wwpn} /sys/class/fc_host/*/port_name)); host=${{host##*/host}}
             for port in /sys/class/fc_remote_ports/rport-$host:*; do
                 grep -q 0x{port} $port/port_name && echo $host:0:$(cat $port/scsi_target_id)
             done; true"
        )
    };
    let mut at = |wwpn: &str, port: &str| anyhow::Ok(vm.run(&script(wwpn, port))?.trim().to_string());
    let [first, second] = PORTS;
    let mut both = |wwpn: &str| anyhow::Ok([at(wwpn, first)?, at(wwpn, second)?]);
    let (one, two) = (both(ONE)?, both(TWO)?);
    let of = |places: &[String; 2], lun: u32| places.each_ref().map(|place| format!("{place}:{lun}"));
    let (d0, d1, [other, _]) = (of(&two, 0), of(&one, 1), of(&two, 1));
    Ok(Paths { d0, d1, other })
}

/// A change by the array reaches who sends the next command, as the array says it.
fn heard(san: &San<'_>, vm: &mut Vm<'_>, paths: &Paths) -> Result<()> {
    let [at, second] = &paths.d1;
    let said = show(vm, &format!("sg_rtpg -d $(sg {at}); access {at}; access {second}"))?;
    ensure!(said.contains("0x01 (active/non optimized)"), "{said}");
    ensure!(said.ends_with("active/optimized\nactive/non-optimized\n"), "{said}");
    san.tell("alua 1 standby")?;
    // REQUEST SENSE has it as its data. Of any other command Linux' handler takes it, and sends that again.
    let other = &paths.other;
    let said = show(vm, &format!("sg_raw -r 18 $(sg {other}) 03 00 00 00 12 00 2>&1"))?;
    ensure!(said.contains("70 00 06 00 00 00 00 0a  00 00 00 00 2a 06"), "no unit attention: {said}");
    let said = show(vm, &format!("sg_raw -v $(sg {at}) 00 00 00 00 00 00 2>&1; true"))?;
    ensure!(said.contains("70 00 02 00 00 00 00 0a  00 00 00 00 04 0b"), "{said}");
    let said = vm.run("dmesg")?;
    ensure!(said.contains(&format!("sd {at}: Asymmetric access state changed")), "{said}");
    vm.run(&format!("within 200 '[ $(access {at}) = standby ]'"))?;
    show(vm, "dmesg | grep -i -E 'asymmetric access|alua: port group' | tail -n 4")?;
    let said = show(vm, &format!("sg_rtpg -d $(sg {second})"))?;
    ensure!(said.contains("0x02 (standby)"), "{said}");
    san.tell("alua 1 optimized")?;
    vm.run(&format!(
        "sg_raw $(sg {at}) 00 00 00 00 00 00 2>&1; within 200 '[ $(access {at}) = active/optimized ]'"
    ))?;
    Ok(())
}

/// Hexadecimal digits without what is between them.
fn hex(text: &str) -> String {
    text.chars().filter(char::is_ascii_hexdigit).collect::<String>().to_lowercase()
}

/// REPORT REFERRALS, its page and its sense data go through, byte for byte.
fn referrals(san: &San<'_>, vm: &mut Vm<'_>, paths: &Paths) -> Result<()> {
    let [at, second] = &paths.d1;
    san.tell("referrals d1 128 1 2 quiet")?;
    let said = show(vm, &format!("sg_referrals $(sg {at}); sg_vpd -p ref $(sg {at})"))?;
    ensure!(said.contains("first lba 128, last lba 131071"), "{said}");
    let send = |vm: &mut Vm<'_>, length: u32, cdb: &str| vm.run(&format!("sense $(sg {at}) {length} {cdb}"));
    let said = send(vm, 16, "12 01 b3 00 10 00")?;
    note(&format!("INQUIRY, page B3h\n{said}"));
    ensure!(is(&said, "data", "00b3000c 00000000 00000080 00000002"), "{said}");
    let said = send(vm, 52, "9e 13 00 00 00 00 00 00 00 00 00 00 00 34 00 00")?;
    note(&format!("REPORT REFERRALS\n{said}"));
    let wanted = "00000030 00000001 0000000000000000 000000000001ffff 00000001 00000001 0000000000000080 000000000001ffff 00000002";
    ensure!(is(&said, "data", wanted), "{said}");
    vm.run(&format!("tr '\\0' '\\245' < /dev/zero | dd of=$(disk {at}) bs=64k count=2 iflag=fullblock oflag=direct 2>/dev/null"))?;
    // The user data segment referral descriptor, of a read that the kernel of the host does as its own (without FUA) and of one that is
    // sent as it is.
    for (referred, key) in [("aborted", "0b"), ("completed", "0f")] {
        san.tell(&format!("referrals d1 128 1 2 {referred}"))?;
        for flags in ["00", "08"] {
            let said = send(vm, 512, &format!("88 {flags} 00 00 00 00 00 00 00 82 00 00 00 01 00 00"))?;
            let shown: Vec<String> = said.lines().map(|line| line.chars().take(120).collect()).collect();
            note(&format!("{referred}, READ(16) with {flags}h in byte 1\n{}", shown.join("\n")));
            let wanted = format!(
                "72 {key} 3f 15 000000 1c 0b 1a 0000 00000001 0000000000000080 00000000000000ff 00000002"
            );
            ensure!(
                said.starts_with("status 02 host 00") && is(&said, "sense", &wanted),
                "{referred}: {said}"
            );
            // Done, where it is COMPLETED.
            ensure!(referred == "aborted" || is(&said, "data", &BLOCK.repeat(512)), "{referred}: {said}");
        }
        // By the group where it is at home nothing is said.
        vm.run(&format!(
            "sg_raw -r 512 $(sg {second}) 88 00 00 00 00 00 00 00 00 82 00 00 00 01 00 00 >/dev/null 2>&1"
        ))?;
    }
    san.tell("referrals d1 off").map(drop)
}

/// Whether a line of what `sense` prints has these bytes.
fn is(said: &str, name: &str, bytes: &str) -> bool {
    let line = said.lines().find_map(|line| line.trim_end().strip_prefix(name));
    line.is_some_and(|line| hex(line) == hex(bytes))
}

/// SET TARGET PORT GROUPS: with `allow = "all"` the array gets it.
fn set_by_the_guest(san: &San<'_>, vm: &mut Vm<'_>, paths: &Paths) -> Result<()> {
    let [at, second] = &paths.d1;
    let set = |at: &str| format!("sg_stpg -v --tp=1,2 --state=an,ao $(sg {at}) 2>&1");
    let before = san.tell("info")?;
    let (said, _) = vm.run_code(&set(&paths.other), 60)?;
    note(&format!("by the adapter with `allow` as it is by itself\n{said}"));
    ensure!(said.contains("Invalid command operation code"), "{said}");
    ensure!(groups(&san.tell("info")?) == groups(&before), "the array has done it: {said}");
    show(vm, &format!("{}; sg_rtpg -d $(sg {at})", set(at)))?;
    let after = san.tell("info")?;
    ensure!(groups(&after) == ["NonOptimized", "Optimized"], "{after}");
    vm.run(&format!(
        "sg_raw $(sg {second}) 00 00 00 00 00 00 2>&1; within 200 '[ $(access {second}) = active/optimized ]'"
    ))?;
    vm.run(&format!("within 200 '[ $(access {at}) = active/non-optimized ]'"))?;
    vm.run(&format!("sg_stpg --tp=1,2 --state=ao,an $(sg {at})")).map(drop)
}

/// The state of each port's group.
fn groups(info: &str) -> Vec<String> {
    let state = |line: &str| {
        let (_, rest) = line.strip_prefix("target ")?.split_once(" group ")?;
        Some(rest.split([' ', ',']).nth(1)?.to_string())
    };
    info.lines().filter_map(state).collect()
}

/// multipathd follows the states, and fio goes on by the path that is left.
fn multipath(san: &San<'_>, vm: &mut Vm<'_>, paths: &Paths) -> Result<()> {
    let [first, second] = &paths.d0;
    vm.run("printf 'defaults {\\n    find_multipaths yes\\n    polling_interval 2\\n    no_path_retry queue\\n}\\n' > /etc/multipath.conf")?;
    vm.run_for(
        "multipath_up && udevadm trigger --action=change --subsystem-match=block && udevadm settle",
        180,
    )?;
    vm.run_for(
        &format!("one=$(disk {first}); two=$(disk {second}); within 600 '[ $(multipath -ll -v1 | wc -l) = 2 ] && [ $(priority $two) = 10 ]'"),
        120,
    )?;
    let said = show(vm, "multipath -ll | cat; name=$(multipath -ll $one -v1)")?;
    ensure!(said.contains("prio=50 status=active") && said.contains("prio=10 status=enabled"), "{said}");
    vm.run(
        "fio --name=mp --filename=/dev/mapper/$name --direct=1 --rw=randrw --bs=4k --iodepth=4 --size=16m --io_size=1g \
         --ioengine=libaio --thread --verify=crc32c --verify_backlog=256 --verify_fatal=1 --time_based --runtime=50 --randseed=1 \
         --output-format=terse --terse-version=3 > /tmp/fio 2>&1 &\n sleep 5",
    )?;
    let is = |at: &str, state: &str, node: &str, priority: u32| {
        format!("[ $(access {at}) = {state} ] && [ $(priority {node}) = {priority} ]")
    };
    for (what, commands, condition) in [
        (
            "a failover by the array",
            &["alua 1 non-optimized", "alua 2 optimized"][..],
            format!(
                "{} && {}",
                is(first, "active/non-optimized", "$one", 10),
                is(second, "active/optimized", "$two", 50)
            ),
        ),
        ("the group with nothing is in standby", &["alua 1 standby"], is(first, "standby", "$one", 1)),
        (
            "the other way round, at once",
            &["alua 1 optimized", "alua 2 unavailable"],
            format!(
                "{} && [ $(access {second}) = unavailable ] && multipathd show paths raw format \"%d %T\" | grep -q \"^${{two#/dev/}} faulty\"",
                is(first, "active/optimized", "$one", 50)
            ),
        ),
        ("and back", &["alua 2 non-optimized"], is(second, "active/non-optimized", "$two", 10)),
    ] {
        for command in commands {
            san.tell(command)?;
        }
        let took = after(san, vm, "", &condition, 30)?;
        let said = vm.run("multipath -ll $one | cat; sg_rtpg -d $two | grep -E 'group id|access state'")?;
        note(&format!("{what}: seen after {took:.1} s\n{said}"));
    }
    vm.run_for("wait; cat /tmp/fio", 240)?;
    let said = vm.run("cut -c1-300 /tmp/fio; dmesg | grep -iE 'I/O error|multipath|asymm' | tail -n 20")?;
    note(&format!("fio beside it:\n{said}"));
    let errors = said.lines().find(|line| line.starts_with("3;")).and_then(|line| line.split(';').nth(4));
    ensure!(errors.context("fio said nothing")? == "0", "fio failed: {said}");
    Ok(())
}

/// Where reads are the host's own, its kernel may be who hears the unit attention. The states are seen when anybody asks for them; whether
/// the handler asks, is said here.
fn own_reads(san: &San<'_>, vm: &mut Vm<'_>, paths: &Paths) -> Result<()> {
    let [at, _] = &paths.d1;
    vm.run("multipathd shutdown; within 100 '! multipathd show status >/dev/null'; multipath -F; true")?;
    vm.run(&format!("(while [ ! -e /tmp/stop ]; do read_one {at}; done) & sleep 1"))?;
    let seen =
        after(san, vm, "alua 1 non-optimized d1", &format!("[ $(access {at}) = active/non-optimized ]"), 15);
    vm.run("touch /tmp/stop; wait")?;
    match seen {
        Ok(took) => note(&format!(
            "a state that changes while a disk with passthrough = \"block\" is read: seen after {took:.1} s"
        )),
        Err(error) => note(&format!(
            "a state that changes while a disk with passthrough = \"block\" is read is NOT SEEN: {error:#}"
        )),
    }
    note(&san.shell("dmesg | grep -i 'symmetric access state changed' | tail -n 4", 30)?);
    let said = vm.run(&format!("sg_rtpg -d $(sg {at})"))?;
    ensure!(said.contains("0x01 (active/non optimized)"), "{said}");
    Ok(())
}
