//! `vmm fc` on a stock kernel: hosts without a port, with one vport and with sixteen, on three adapters at two fabrics; and
//! what becomes of vports whose process was ended, or that the fabric does not take.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::bed::Bed;
use testbed::guest::Vmm;
use testbed::report::note;

use super::fabric::{San, adapter};
use super::fc_errors;
use super::fc_tool::{Tool, has, items, quoted, wait_for, word};

const ONE: &str = "2100000000000a01";
const NODE: &str = "2000000000000a01";
const NAMES: &str = "--wwpn 21:00:00:00:00:00:0a:01 --wwnn 0x2000000000000A01";
/// The array's port at each of the fabrics.
const TARGETS: [&str; 2] = ["502fcf0000000001", "502fcf0000000002"];
const ARRAY: &str = "502fcf0000000000";
const FABRICS: [&str; 2] = ["100002fcf0000001", "100002fcf0000002"];

const UNITS: &str = "disk d0 64M
disk d1 96M
tape t0
map any
map 2100000000000a01 0=d0 5=d1 27=t0 513=d0
";

pub(crate) const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;

/// What a test has at hand.
pub(crate) struct Room<'a> {
    pub(crate) tool: Tool<'a>,
    pub(crate) san: San<'a>,
    /// The adapters' hosts, such as `host3`; the first two are on one fabric.
    pub(crate) hosts: [String; 3],
}

impl Room<'_> {
    /// All hosts, as messages name them.
    pub(crate) fn all(&self) -> String {
        self.hosts.join(", ")
    }

    fn vports(&self) -> Result<Vec<Value>> {
        let list = self.tool.json("list")?;
        Ok(items(list.get("vports").context("no vports")?)?.clone())
    }

    /// There is no vport, and no record of one.
    fn is_empty(&self) -> Result<()> {
        let said = self.san.shell("ls /sys/class/fc_vports /run/vmm/fc/vports", 30)?;
        let rest: Vec<&str> = said.lines().filter(|line| !line.is_empty() && !line.ends_with(':')).collect();
        ensure!(rest.is_empty(), "there are still {rest:?}");
        Ok(())
    }
}

/// What takes little time.
pub(crate) fn command(bed: &Bed, _: Vmm) -> Result<()> {
    run(
        bed,
        &[
            ("ports", ports),
            ("ports that are not there", fc_errors::ports),
            ("one vport", one),
            ("names that will not do", fc_errors::names),
            ("deletion", delete),
            ("processes that end", ended),
        ],
    )
}

/// All the rest.
pub(crate) fn vports(bed: &Bed, _: Vmm) -> Result<()> {
    run(
        bed,
        &[
            ("rights", fc_errors::rights),
            ("definitions", definitions),
            ("sixteen vports", sixteen),
            ("watch", watch),
            ("fabrics that say no", fc_errors::fabrics),
        ],
    )
}

/// Something to try.
type Check = (&'static str, fn(&mut Room<'_>) -> Result<()>);

fn run(bed: &Bed, checks: &[Check]) -> Result<()> {
    let tool = Tool::new(bed)?;
    let mut faults = Vec::new();
    if let Err(error) = nothing(&tool) {
        faults.push(format!("without a port: {error:#}"));
    }
    let san = San::new(bed, &[2, 1], 1, UNITS)?;
    let mut hosts: [String; 3] = Default::default();
    for (number, host) in hosts.iter_mut().enumerate() {
        *host = san.shell(&format!("host_of {}", adapter(number + 1)), 30)?.trim().to_string();
    }
    let mut room = Room { tool, san, hosts };
    for (what, check) in checks {
        let begin = Instant::now();
        faults.extend(check(&mut room).err().map(|error| format!("{what}: {error:#}")));
        note(&format!("{what}: {:.1} s", begin.elapsed().as_secs_f64()));
    }
    let left = room.san.shell("rm -f /var/lib/vmm/fc/test-*; ls /sys/class/fc_vports", 30)?;
    ensure!(faults.is_empty(), "{}\n{}", faults.join("\n"), room.san.log());
    ensure!(left.trim().is_empty(), "there are still {left}");
    Ok(())
}

/// A host without Fibre Channel.
fn nothing(tool: &Tool<'_>) -> Result<()> {
    let said = tool.ok("list")?;
    ensure!(said == "no Fibre Channel ports\n", "{said}");
    let value = tool.json("list")?;
    ensure!(value == json!({ "ports": [], "vports": [], "definitions": [] }), "{value:#}");
    ensure!(tool.ok("luns")? == "no logical units\n");
    ensure!(tool.json("luns")? == json!([]));
    ensure!(tool.json("start-defined")? == json!([]));
    ensure!(tool.json("clean")? == json!([]));
    tool.fails("show host9", &["there is no port host9; vmm fc list shows what there is"])?;
    let none = "this host has no Fibre Channel port: no driver of an adapter (lpfc, qla2xxx, fcoe ...) has one in /sys/class/fc_host";
    tool.fails(&format!("create {NAMES}"), &[&quoted(none, &[])?])
}

/// Three adapters, none of which has a vport.
fn ports(room: &mut Room<'_>) -> Result<()> {
    let list = room.tool.json("list")?;
    note(&format!("list:\n{}", room.tool.ok("list")?));
    ensure!(list.get("vports") == Some(&json!([])) && list.get("definitions") == Some(&json!([])));
    let ports = items(list.get("ports").context("no ports")?)?;
    ensure!(ports.len() == 3, "{list:#}");
    for (number, port) in ports.iter().enumerate() {
        let host = room.hosts.get(number).context("a fourth port")?;
        let (fabric, id) =
            if number < 2 { (FABRICS[0], 0x01_0101 + 0x100 * number) } else { (FABRICS[1], 0x02_0101) };
        has(
            port,
            json!({
                "name": host, "host": host.trim_start_matches("host").parse::<u32>()?, "vport": null,
                "wwpn": adapter(number + 1), "wwnn": adapter(number + 1).replacen('2', "1", 1), "permanent_wwpn": null,
                "fabric": fabric, "port_id": id, "state": "Online", "type": "NPort (fabric via point-to-point)",
                "speed": "10 Gbit", "dev_loss_tmo": 60, "max_vports": 65535, "vports_in_use": 0, "driver": "fcoe",
                "parent": format!("fi{}", number + 1),
            }),
        )?;
    }
    ensure!(room.tool.json("list --capable")? == list);
    // Each of them sees its fabric's port of the array, and the other adapter at the same fabric.
    let show = room.tool.json("show fi1")?;
    ensure!(show.get("vport") == Some(&Value::Null) && show.get("luns") == Some(&json!([])), "{show:#}");
    let remotes = items(show.get("remote_ports").context("no remote ports")?)?;
    let target = remotes.iter().find(|remote| remote.get("wwpn") == Some(&TARGETS[0].into()));
    has(
        target.context("the array is not there")?,
        json!({
            "wwnn": ARRAY, "port_id": 0x01_f000, "roles": ["FCP Target"], "state": "Online", "target": 0, "dev_loss_tmo": 60,
            "fast_io_fail_tmo": null,
        }),
    )?;
    let show = room.tool.json(&format!("show {}", adapter(3)))?;
    let remotes = items(show.get("remote_ports").context("no remote ports")?)?;
    let targets = remotes.iter().filter(|remote| remote.get("target") != Some(&Value::Null));
    let targets: Vec<_> = targets.map(|remote| remote.get("wwpn")).collect();
    ensure!(targets == [Some(&json!(TARGETS[1]))], "{show:#}");
    Ok(())
}

/// One vport, under all of its names, with its units.
fn one(room: &mut Room<'_>) -> Result<()> {
    let [first, ..] = room.hosts.clone();
    let begin = Instant::now();
    let made = room.tool.json(&format!("create {NAMES} --parent {first}"))?;
    note(&format!("a vport is there after {:.1} s", begin.elapsed().as_secs_f64()));
    has(
        &made,
        json!({ "parent": first, "wwpn": ONE, "wwnn": NODE, "state": "Active", "type": "NPIV VPORT", "owner": null }),
    )?;
    let name = word(&made, "name")?;
    ensure!(name.starts_with(&format!("vport-{}:0-", first.trim_start_matches("host"))), "{name}");
    let host = format!("host{}", made.get("host").and_then(Value::as_u64).context("no host")?);
    let luns = room.san.wait_for_disks(&host, &[(TARGETS[0], 0), (TARGETS[0], 5), (TARGETS[0], 513)])?;
    room.san.shell("modprobe st; wait_for 10 '[ -e /dev/st0 ]'", 30)?;
    let list = room.tool.json("list")?;
    let ports = items(list.get("ports").context("no ports")?)?;
    let in_use: Vec<_> = ports.iter().map(|port| port.get("vports_in_use").and_then(Value::as_u64)).collect();
    ensure!(in_use == [Some(1), Some(0), Some(0)], "{in_use:?}");
    let show = room.tool.json(&format!("show {name}"))?;
    for what in [ONE, &host, &format!("scsi_{host}")] {
        let other = room.tool.json(&format!("show {what}"))?;
        ensure!(other == show, "{what}: {other:#}");
    }
    has(
        show.get("port").context("no port")?,
        json!({
            "name": host, "vport": name, "wwpn": ONE, "wwnn": NODE, "fabric": FABRICS[0], "port_id": 0x01_0102, "state": "Online",
            "type": "NPort (fabric via point-to-point)", "max_vports": null, "vports_in_use": null, "driver": "fcoe",
        }),
    )?;
    note(&format!("show:\n{}", room.tool.ok(&format!("show {name}"))?));
    // The array knows LUNs by 8 bytes, the kernel by a number with the addressing method in it.
    let units = room.tool.json(&format!("luns {host}"))?;
    let units = items(&units)?;
    let wanted = [
        (0, "0000000000000000", Some(0), 64 << 20, "disk"),
        (5, "0005000000000000", Some(5), 96 << 20, "disk"),
        (27, "001b000000000000", Some(27), 0, "tape"),
        (16897, "4201000000000000", Some(513), 64 << 20, "disk"),
    ];
    ensure!(units.len() == wanted.len(), "{units:#?}");
    for (unit, (number, bytes, flat, size, kind)) in units.iter().zip(wanted) {
        let address = format!("{}:0:0:{number}", host.trim_start_matches("host"));
        let size = if size == 0 { Value::Null } else { size.into() };
        has(
            unit,
            json!({
                "address": address, "lun": bytes, "lun_number": flat, "target_wwpn": TARGETS[0], "type": kind, "bytes": size,
                "state": "running", "in_use": false, "users": [],
            }),
        )?;
        ensure!(
            word(unit, "sg")?.starts_with("/dev/sg") && word(unit, "bsg")? == format!("/dev/bsg/{address}"),
            "{unit:#}"
        );
        match luns.iter().find(|lun| lun.address == address) {
            Some(lun) => {
                has(unit, json!({ "block": lun.node, "tape": null }))?;
                ensure!(word(unit, "name")?.starts_with("naa.6"), "{unit:#}");
            }
            None => has(unit, json!({ "block": null, "tape": "/dev/st0" }))?,
        }
    }
    let all = room.tool.json("luns")?;
    ensure!(items(&all)?.len() == 4, "the adapters see units themselves: {all:#}");
    Ok(())
}

/// Not while somebody has a unit; then nothing of it is left.
fn delete(room: &mut Room<'_>) -> Result<()> {
    let vports = room.vports()?;
    let [vport] = &vports[..] else { anyhow::bail!("not one vport: {vports:?}") };
    let (name, host) = (word(vport, "name")?, vport.get("host").and_then(Value::as_u64).context("no host")?);
    let luns = room.san.luns(&format!("host{host}"))?;
    let node = &luns.first().context("no disk")?.node;
    let disk = node.trim_start_matches("/dev/");
    let user = room.san.shell(&format!("sleep 300 < {node} > /dev/null 2>&1 & echo $!"), 30)?;
    let in_use = quoted(
        "vport-5:0-0 has units that are in use: 8:0:0:27 is open by qemu (4711); free it, or vmm fc delete --force vport-5:0-0",
        &[("vport-5:0-0", name), ("8:0:0:27", disk), ("qemu", "sleep"), ("4711", user.trim())],
    )?;
    room.tool.fails(&format!("delete {ONE}"), &[&in_use])?;
    let units = room.tool.json("luns")?;
    let unit = items(&units)?.iter().find(|unit| unit.get("block") == Some(&json!(node))).cloned();
    let used = json!([{ "kind": "process", "name": "sleep", "pid": user.trim().parse::<u32>()? }]);
    has(&unit.context("no such unit")?, json!({ "in_use": true, "users": used }))?;
    room.san.shell(&format!("kill {}", user.trim()), 30)?;
    let begin = Instant::now();
    let deleted = room.tool.json(&format!("delete host{host}"))?;
    note(&format!("it is gone after {:.1} s", begin.elapsed().as_secs_f64()));
    ensure!(deleted == json!({ "deleted": name }), "{deleted:#}");
    room.is_empty()?;
    room.san.shell(&format!("wait_for 20 '[ ! -e {node} ]'"), 40)?;
    let info = room.san.tell("info")?;
    ensure!(!info.contains(ONE), "it is still logged in: {info}");
    Ok(())
}

/// Names that are made once, by each rule for the port, and come back.
fn definitions(room: &mut Room<'_>) -> Result<()> {
    let [_, second, third] = room.hosts.clone();
    let tool = &room.tool;
    let base = adapter(2);
    let defined = [
        tool.json(&format!("define test-a --parent-fabric {}", FABRICS[1]))?,
        tool.json(&format!("define test-b --parent-wwpn {base}"))?,
        tool.json("define test-c --names-only --parent fi1")?,
    ];
    for (definition, (name, boot)) in
        defined.iter().zip([("test-a", true), ("test-b", true), ("test-c", false)])
    {
        has(definition, json!({ "name": name, "boot": boot }))?;
        let (wwpn, wwnn) = (word(definition, "wwpn")?, word(definition, "wwnn")?);
        ensure!(
            wwpn.starts_with("2100") && wwnn.starts_with("2000") && wwpn.get(4..) == wwnn.get(4..),
            "{definition:#}"
        );
    }
    let [a, b, c] = &defined;
    has(a, json!({ "parent": null, "parent_fabric": FABRICS[1] }))?;
    has(b, json!({ "parent_wwpn": base }))?;
    has(c, json!({ "parent": "fi1" }))?;
    let mut before = Vec::new();
    for round in 0..2 {
        let started = tool.json("start-defined")?;
        let started = items(&started)?;
        ensure!(started.len() == 2, "{started:?}");
        for (one, (definition, parent)) in started.iter().zip([(a, &third), (b, &second)]) {
            has(one, json!({ "definition": word(definition, "name")? }))?;
            let vport = one.get("vport").context("no vport")?;
            has(
                vport,
                json!({
                    "parent": parent, "wwpn": word(definition, "wwpn")?, "wwnn": word(definition, "wwnn")?, "state": "Active",
                    "owner": format!("definition {}", word(definition, "name")?),
                }),
            )?;
        }
        // What is there already is left as it is.
        ensure!(round == 0 || before == *started, "{before:?} became {started:?}");
        before = started.clone();
    }
    let third_one = tool.json("create test-c")?;
    has(&third_one, json!({ "parent": room.hosts.first(), "wwpn": word(c, "wwpn")? }))?;
    ensure!(tool.json("clean")? == json!([]), "what is for good was cleaned away");
    ensure!(room.vports()?.len() == 3);
    note(&format!("list:\n{}", tool.ok("list")?));
    for (name, definition) in [("test-a", a), ("test-b", b), ("test-c", c)] {
        tool.json(&format!("delete {name}"))?;
        if name == "test-b" {
            let again = tool.json("start-defined test-b")?;
            let vport = items(&again)?.first().and_then(|one| one.get("vport")).context("no vport")?;
            has(vport, json!({ "wwpn": word(definition, "wwpn")? }))?;
            tool.json("delete test-b")?;
        }
        tool.ok(&format!("undefine {name}"))?;
    }
    tool.fails("undefine test-a", &["test-a is not defined; vmm fc define test-a does it"])?;
    room.is_empty()
}

/// Sixteen vports on three adapters, each of which sees a disk of its own.
fn sixteen(room: &mut Room<'_>) -> Result<()> {
    let name = |number: usize| format!("21000000000{:05x}", 0xb00 + number);
    for number in 0..16 {
        room.san.tell(&format!("disk own{number} {}M", number + 1))?;
        room.san.tell(&format!("map {} {number}=own{number}", name(number)))?;
    }
    let begin = Instant::now();
    for number in 0..16 {
        let host = room.hosts.get(number % 3).context("no host")?;
        let node = name(number).replacen("21", "20", 1);
        room.tool.ok(&format!("create --wwpn {} --wwnn {node} --parent {host}", name(number)))?;
    }
    note(&format!("16 vports after {:.1} s", begin.elapsed().as_secs_f64()));
    let begin = Instant::now();
    let list = room.tool.json("list")?;
    note(&format!("list of them takes {:.1} s", begin.elapsed().as_secs_f64()));
    let ports = items(list.get("ports").context("no ports")?)?;
    let in_use: Vec<_> = ports.iter().map(|port| port.get("vports_in_use").and_then(Value::as_u64)).collect();
    ensure!(in_use == [Some(6), Some(5), Some(5)], "{in_use:?}");
    let vports = room.vports()?;
    ensure!(vports.len() == 16, "{vports:?}");
    room.san.shell("wait_for 20 '[ $(ls -d /sys/block/sd* | wc -l) -ge 16 ]'", 40)?;
    let units = room.tool.json("luns")?;
    for number in 0..16 {
        let vport = vports.iter().find(|vport| vport.get("wwpn") == Some(&name(number).into()));
        let vport = vport.with_context(|| format!("{} is not there", name(number)))?;
        has(vport, json!({ "state": "Active", "parent": room.hosts.get(number % 3) }))?;
        let own: Vec<_> =
            items(&units)?.iter().filter(|unit| unit.get("host") == vport.get("host")).collect();
        let [unit] = own[..] else { anyhow::bail!("{} sees {own:?}", name(number)) };
        has(
            unit,
            json!({
                "lun_number": number, "bytes": (number + 1) << 20, "target_wwpn": TARGETS.get(number % 3 / 2),
            }),
        )?;
    }
    let begin = Instant::now();
    for vport in &vports {
        room.tool.ok(&format!("delete {}", word(vport, "name")?))?;
    }
    note(&format!("16 vports are gone after {:.1} s", begin.elapsed().as_secs_f64()));
    room.is_empty()
}

/// What changes is told as it does.
fn watch(room: &mut Room<'_>) -> Result<()> {
    let [first, ..] = room.hosts.clone();
    let mut watch = room.tool.start("watch --json --timeout 60")?;
    // It says nothing before something changes; then the port of a fabric that everybody looks at does.
    room.san.shell("sleep 1", 30)?;
    let made = room.tool.json(&format!("create {NAMES} --parent {first}"))?;
    let name = word(&made, "name")?;
    let host = made.get("host").and_then(Value::as_u64).context("no host")?;
    let mut all = wait_for(&mut watch, "/dev/sd", 20)?;
    room.san.tell("resize d1 128M")?;
    let luns = room.san.luns(&format!("host{host}"))?;
    let five = luns.iter().find(|lun| lun.lun == 5).context("no LUN 5")?;
    room.san
        .shell(&format!("dd if={} of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null", five.node), 30)?;
    all += &wait_for(&mut watch, "CAPACITY_DATA_HAS_CHANGED", 20)?;
    room.san.tell("port 1 down")?;
    all += &wait_for(&mut watch, "\"Blocked\"", 20)?;
    room.san.tell("port 1 up")?;
    all += &wait_for(&mut watch, "\"Online\"", 20)?;
    room.tool.ok(&format!("delete {ONE}"))?;
    all += &wait_for(&mut watch, &format!("\"gone\",\"kind\":\"vport\",\"name\":\"{name}\""), 20)?;
    watch.signal(SIGINT)?;
    let end = watch.finish(Duration::from_secs(20))?;
    all += &end.text;
    let mut values = Vec::new();
    for line in all.lines() {
        values.push(serde_json::from_str::<Value>(line).with_context(|| format!("no value: {line}"))?);
    }
    for wanted in [
        json!({ "event": "came", "kind": "vport", "name": name }),
        json!({ "event": "came", "kind": "lun", "name": five.address }),
        json!({ "event": "came", "kind": "node", "name": five.node, "address": five.address }),
        json!({ "event": "changed", "kind": "lun", "name": five.address, "reason": "CAPACITY_DATA_HAS_CHANGED" }),
        json!({ "event": "state", "kind": "remote_port", "wwpn": TARGETS[0], "before": "Online", "state": "Blocked" }),
        json!({ "event": "state", "kind": "remote_port", "wwpn": TARGETS[0], "before": "Blocked", "state": "Online" }),
        json!({ "event": "gone", "kind": "lun", "name": five.address }),
        json!({ "event": "gone", "kind": "vport", "name": name }),
    ] {
        ensure!(
            values.iter().any(|value| has(value, wanted.clone()).is_ok()),
            "there is no {wanted} in:\n{all}"
        );
    }
    note(&format!("{} changes were told; it ended with {}", values.len(), end.status));
    Ok(())
}

/// Who creates one and is killed leaves it, until somebody cleans up; who is interrupted leaves nothing.
fn ended(room: &mut Room<'_>) -> Result<()> {
    let [first, ..] = room.hosts.clone();
    room.san.tell(&format!("reject fdisc {ONE} 9 29"))?;
    let begin = |room: &Room<'_>| -> Result<_> {
        let process = room.tool.start(&format!("create {NAMES} --parent {first} --timeout 60"))?;
        room.san.shell(&format!("wait_for 10 '[ -n \"$(vport_state {ONE})\" ]'"), 20)?;
        Ok(process)
    };
    let mut process = begin(room)?;
    let vports = room.vports()?;
    let vport = vports.first().context("no vport")?;
    has(vport, json!({ "state": "Initializing", "owner": format!("vmm fc create ({})", process.pid()) }))?;
    let owned = quoted(
        "vport-5:0-1 belongs to machine web (process 4711), which runs; end that, or say --force",
        &[
            ("vport-5:0-1", word(vport, "name")?),
            ("machine web", "vmm fc create"),
            ("4711", &process.pid().to_string()),
        ],
    )?;
    room.tool.fails(&format!("delete {ONE}"), &[&owned])?;
    ensure!(room.tool.json("clean")? == json!([]), "what is somebody's was cleaned away");
    process.signal(SIGKILL)?;
    let pid = process.pid();
    process.finish(Duration::from_secs(20))?;
    let vports = room.vports()?;
    has(vports.first().context("no vport")?, json!({ "owner": format!("vmm fc create ({pid}, ended)") }))?;
    let cleaned = room.tool.json("clean")?;
    let wanted = json!([{ "wwpn": ONE, "owner": "vmm fc create", "pid": pid, "result": "deleted" }]);
    ensure!(cleaned == wanted, "{cleaned:#}");
    room.is_empty()?;
    let mut process = begin(room)?;
    process.signal(SIGINT)?;
    let end = process.finish(Duration::from_secs(20))?;
    let said = quoted(
        "interrupted before the fabric had the virtual port 210002123456789a",
        &[("210002123456789a", ONE)],
    )?;
    ensure!(
        !end.status.success() && end.text == format!("vmm: error: {said}\n"),
        "{}: {}",
        end.status,
        end.text
    );
    room.is_empty()?;
    // One that was killed is in nobody's way.
    let mut process = begin(room)?;
    process.signal(SIGKILL)?;
    process.finish(Duration::from_secs(20))?;
    room.san.tell("reject fdisc off")?;
    room.tool.ok(&format!("create {NAMES} --parent {first}"))?;
    room.tool.ok(&format!("delete {ONE}"))?;
    room.is_empty()
}
