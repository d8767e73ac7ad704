//! What `vmm fc` says to what will not do, word for word as docs/fc.md has it: what a kernel and a fabric can be brought to.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use testbed::report::note;

use super::fabric::adapter;
use super::fc_command::Room;
use super::fc_tool::{quoted, word};

const GOOD: &str = "--wwpn 2100020000000b01 --wwnn 2000020000000b01";
const GOOD_WWPN: &str = "2100020000000b01";

/// Ports that are not there.
pub(crate) fn ports(room: &mut Room<'_>) -> Result<()> {
    let all = room.all();
    let there = ("host5, host6", all.as_str());
    for (rule, line, more) in [
        (
            "--parent host9999",
            "there is no Fibre Channel port host9; there are host5, host6",
            Some(("host9", "host9999")),
        ),
        (
            "--parent 0000:99:00.0",
            "there is no Fibre Channel port on 0000:99:00.0; there are host5, host6",
            None,
        ),
        (
            "--parent-wwnn 0000000000002000 --parent-wwpn 0000000000002100",
            "there is no Fibre Channel port with WWNN 0000000000002000 and WWPN 0000000000002100; there are host5, host6",
            None,
        ),
        (
            "--parent-fabric 1000000000000009",
            "there is no Fibre Channel port on fabric 1000000000000009; there are host5, host6",
            None,
        ),
    ] {
        let places: Vec<_> = more.into_iter().chain([there]).collect();
        room.tool.fails(&format!("create {GOOD} {rule}"), &[&quoted(line, &places)?])?;
    }
    room.tool.fails(
        "delete vport-9:0-0",
        &[&quoted("there is no virtual port vport-9:0-0; vmm fc list shows what there is", &[])?],
    )?;
    let [first, ..] = &room.hosts;
    room.tool.fails(
        &format!("delete {first}"),
        &[&quoted("host5 is a port of an adapter, and no virtual one", &[("host5", first)])?],
    )
}

/// Names that will not do, while there is one vport on the first adapter.
pub(crate) fn names(room: &mut Room<'_>) -> Result<()> {
    let list = room.tool.json("list")?;
    let vport = list.get("vports").and_then(|all| all.get(0)).context("no vport")?.clone();
    let (vport_name, vport_host) = (word(&vport, "name")?, vport.get("host").context("no host")?.to_string());
    let remote = room.san.shell(
        "for port in /sys/class/fc_remote_ports/*; do
             read name < $port/port_name; [ $name != 0x502fcf0000000001 ] || { echo ${port##*/}; break; }
         done",
        30,
    )?;
    let remote = remote.trim();
    let first = room.hosts.first().context("no host")?.clone();
    let (base, node) = (adapter(1), adapter(1).replacen('2', "1", 1));
    let on_vport = format!("create {GOOD} --parent host{vport_host}");
    let itself = quoted(
        "host8 creates no virtual ports: it is one itself (vport-5:0-0)",
        &[("host8", &format!("host{vport_host}")), ("vport-5:0-0", vport_name)],
    )?;
    room.tool.fails(&on_vport, &[&itself])?;
    let good = "2000020000000b01";
    let array = "502fcf0000000000";
    for (wwpn, wwnn, line, places) in [
        (
            "0000000000000000",
            good,
            "WWPN 0000000000000000 is all zeros, which is no name; leave the names out, and they are made",
            vec![],
        ),
        (
            "ff:ff:ff:ff:ff:ff:ff:ff",
            good,
            "WWPN ffffffffffffffff is all ones, which is no name; leave the names out, and they are made",
            vec![],
        ),
        (
            "6001405123456789",
            good,
            "WWPN 6001405123456789 begins with 6, which is the first half of a name of 16 bytes, as logical units have; names of ports begin with 1, 2, 3, 5, or c to f",
            vec![],
        ),
        (
            "400000000a000001",
            good,
            "WWPN 400000000a000001 begins with 4, which is an IP address; names of ports begin with 1, 2, 3, 5, or c to f",
            vec![],
        ),
        (
            "0000020000000001",
            good,
            "WWPN 0000020000000001 begins with 0, which no standard knows; names of ports begin with 1, 2, 3, 5, or c to f",
            vec![],
        ),
        (
            "1001020000000001",
            good,
            "WWPN 1001020000000001 begins with 1, so that three zeros follow; a name with digits there begins with 2",
            vec![],
        ),
        (
            "210001005e000001",
            good,
            "WWPN 210001005e000001 has a multicast address in it (01005e: the lowest bit of its first byte is set), which is no port's",
            vec![],
        ),
        (
            "naa.5006016044602199",
            good,
            "WWPN 5006016044602199 is of 006016 (Dell EMC CLARiiON), whose hardware has such names, and two ports of one name would break both; leave the names out, and they are made, or say --any-oui if it is yours to give",
            vec![],
        ),
        (good, good, "WWNN and WWPN are both 2000020000000b01; a port and its node have a name each", vec![]),
        (
            &base,
            good,
            "WWPN 10000000c9aabb05 is taken: the port host5 of this host has it",
            vec![("10000000c9aabb05", base.as_str()), ("host5", first.as_str())],
        ),
        (
            GOOD_WWPN,
            &node,
            "WWNN 20000000c9aabb05 is taken: the node of host5 has it",
            vec![("20000000c9aabb05", node.as_str()), ("host5", first.as_str())],
        ),
        (
            "2100000000000a01",
            good,
            "WWPN 2100000000000a01 is taken: the virtual port vport-5:0-0 of host5 has it",
            vec![("vport-5:0-0", vport_name), ("host5", first.as_str())],
        ),
        (
            "502fcf0000000001",
            good,
            "WWPN 5006016044602198 is taken: a target on the fabric has it (rport-5:0-0)",
            vec![("5006016044602198", "502fcf0000000001"), ("rport-5:0-0", remote)],
        ),
        (
            GOOD_WWPN,
            array,
            "WWNN 50060160c4602198 is taken: the node of rport-5:0-0 on the fabric has it",
            vec![("50060160c4602198", array), ("rport-5:0-0", remote)],
        ),
    ] {
        room.tool.fails(&format!("create --wwpn {wwpn} --wwnn {wwnn}"), &[&quoted(line, &places)?])?;
    }
    let malformed = quoted(
        "\"20:00\" is no World Wide Name: that is 16 hex digits, such as 2100001b32a9da4e or 21:00:00:1b:32:a9:da:4e",
        &[],
    )?;
    let usage = format!("invalid value '20:00' for '--wwpn <NAME>': {malformed}; see vmm fc --help");
    room.tool.fails("create --wwpn 20:00 --wwnn 2000020000000b01", &[&usage])?;
    room.tool.ok("define test-n --wwpn 2100020000000001 --wwnn 2000020000000001")?;
    let defined =
        quoted("WWPN 2100020000000001 is taken: the definition \"a\" has it", &[("\"a\"", "test-n")])?;
    room.tool.fails("create --wwpn 2100020000000001 --wwnn 2000020000000002", &[&defined])?;
    room.tool.ok("undefine test-n").map(drop)
}

/// Who may not.
pub(crate) fn rights(room: &mut Room<'_>) -> Result<()> {
    let first = room.hosts.first().context("no host")?.clone();
    let program = room.tool.program();
    let command = format!("{program} fc create {GOOD} --parent {first}");
    // Containers have it so.
    let said = room
        .san
        .shell(&format!("unshare -m sh -c 'mount -o remount,bind,ro /sys && {command}' 2>&1; true"), 60)?;
    let wanted = quoted(
        "host5 does not create the virtual port: sysfs is mounted read-only, as containers have it; do it on the host",
        &[("host5", &first)],
    )?;
    ensure!(said == format!("vmm: error: {wanted}\n"), "{said}");
    // Whoever may write where it is noted, and not in sysfs.
    let said = room.san.shell(
        &format!(
            "mount -t tmpfs -o mode=777 vports /run/vmm/fc
             setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs {command} 2>&1
             umount /run/vmm/fc"
        ),
        60,
    )?;
    let wanted = quoted(
        "host5 does not create the virtual port: only root may (the files vport_create and vport_delete in sysfs are root's; CAP_DAC_OVERRIDE does it as well)",
        &[("host5", &first)],
    )?;
    ensure!(said == format!("vmm: error: {wanted}\n"), "{said}");
    let said = room.san.shell(
        &format!("setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs {command} 2>&1; true"),
        60,
    )?;
    note(&format!("to a user: {}", said.trim()));
    ensure!(said.contains("; be root, or let this user write there"), "{said}");
    Ok(())
}

/// Links that are down, a fabric without NPIV, and one that refuses the name: the deadline is kept, the reason is the one, and nothing is left.
pub(crate) fn fabrics(room: &mut Room<'_>) -> Result<()> {
    let [first, second, third] = room.hosts.clone();
    let (initializing, down, no_npiv) = (
        quoted(
            "the virtual port 210002123456789a is \"Initializing\" after 10 s: the fabric does not answer its login (FDISC), or refuses it again and again; look at the switch port: NPIV, its limit of logins, port security, and whether the WWPN is logged in elsewhere",
            &[("210002123456789a", GOOD_WWPN), ("10 s", "3 s")],
        )?,
        quoted(
            "the virtual port 210002123456789a is \"Linkdown\" after 10 s: the link of host5 is down; look at cable, transceiver and switch port",
            &[("210002123456789a", GOOD_WWPN), ("10 s", "3 s"), ("host5", &third)],
        )?,
        quoted(
            "the virtual port 210002123456789a is \"No Fabric Support\" after 5 s: the switch port of host5 does not offer NPIV, or there is no switch; enable it there (Brocade: portcfgnpivport, Cisco: feature npiv)",
            &[("210002123456789a", GOOD_WWPN), ("5 s", "5 s"), ("host5", &third)],
        )?,
    );
    let timed = |room: &Room<'_>, line: &str, said: &str, most: f64| -> Result<()> {
        let begin = Instant::now();
        room.tool.fails(line, &[said])?;
        let took = begin.elapsed().as_secs_f64();
        note(&format!("{took:.1} s: {said}"));
        ensure!(took < most, "it took {took:.1} s");
        let rest = room.san.shell("ls /sys/class/fc_vports /run/vmm/fc/vports | grep -v : ; true", 30)?;
        ensure!(rest.trim().is_empty(), "there is still {rest}");
        Ok(())
    };
    room.san.tell(&format!("reject fdisc {GOOD_WWPN} 9 29"))?;
    timed(room, &format!("create {GOOD} --parent {first} --timeout 3"), &initializing, 10.0)?;
    room.san.tell("reject fdisc off")?;

    let create = format!("create {GOOD} --parent {third} --timeout 3");
    room.san.tell("link sw3 down")?;
    room.san.shell(&format!("wait_for 20 '[ \"$(state_of {})\" = Linkdown ]'", adapter(3)), 40)?;
    timed(room, &create, &down, 10.0)?;
    // It comes up again without NPIV.
    room.san.tell("@2 npiv off")?;
    room.san.tell("link sw3 up")?;
    let online = format!("wait_for 60 '[ \"$(state_of {})\" = Online ]'", adapter(3));
    room.san.shell(&online, 90)?;
    timed(room, &format!("create {GOOD} --parent {third} --timeout 20"), &no_npiv, 15.0)?;
    for link in ["sw1", "sw2", "sw3"] {
        room.san.tell(&format!("link {link} down"))?;
    }
    for number in 1..=3 {
        room.san.shell(&format!("wait_for 20 '[ \"$(state_of {})\" = Linkdown ]'", adapter(number)), 40)?;
    }
    let none = quoted(
        "no Fibre Channel port will do: host3 has all of its 254 virtual ports in use; host4 is Linkdown; host11 creates no virtual ports: its driver fnic has no NPIV",
        &[
            ("host3 has all of its 254 virtual ports in use", &format!("{first} is Linkdown")),
            ("host4 is", &format!("{second} is")),
            ("host11 creates no virtual ports: its driver fnic has no NPIV", &format!("{third} is Linkdown")),
        ],
    )?;
    timed(room, &format!("create {GOOD}"), &none, 10.0)?;
    // When the host starts, links come later: start-defined waits for them.
    room.san.tell("@2 npiv on")?;
    room.tool.ok("define test-late --parent-fabric 100002fcf0000002")?;
    let mut late = room.tool.start("start-defined --timeout 60")?;
    room.san.shell("sleep 2", 30)?;
    for link in ["sw1", "sw2", "sw3"] {
        room.san.tell(&format!("link {link} up"))?;
    }
    let end = late.finish(std::time::Duration::from_secs(90))?;
    note(&format!("start-defined, when links come late: {}", end.text.trim()));
    ensure!(
        end.status.success() && end.text.starts_with("test-late: vport-"),
        "{}: {}",
        end.status,
        end.text
    );
    room.tool.ok("delete test-late")?;
    room.tool.ok("undefine test-late").map(drop)
}
