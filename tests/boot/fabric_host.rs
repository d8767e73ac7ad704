//! What the host sees of a Fibre Channel SAN: a vport, LUNs with their own numbers, and what changes and goes wrong.

use std::time::Instant;

use anyhow::{Result, ensure};
use testbed::bed::Bed;
use testbed::guest::Vmm;
use testbed::report::note;

use super::fabric::{San, find};

const ONE: &str = "2100000000000a01";
const TWO: &str = "2100000000000a02";
const NODE: &str = "2000000000000a01";
/// The array's ports.
const PORTS: [&str; 2] = ["502fcf0000000001", "502fcf0000000002"];
const LUNS: [u64; 4] = [0, 5, 27, 513];

const UNITS: &str = "disk d0 64M
disk d1 64M
disk d2 64M
disk d3 64M
disk d4 64M
tape t0
map 2100000000000a01 0=d0 5=d1 27=d2 513=d3 600=t0
map 2100000000000a02 0=d1
";

/// A SAN without a guest.
pub(crate) fn host(bed: &Bed, _: Vmm) -> Result<()> {
    let begin = Instant::now();
    let san = San::new(bed, &[1], 2, UNITS)?;
    note(&format!("the adapter is online after {:.1} s", begin.elapsed().as_secs_f64()));
    let begin = Instant::now();
    let vport = san.create_vport(1, ONE, NODE)?;
    let luns = san.wait_for_luns(&vport, &PORTS, &LUNS)?;
    note(&format!("{vport} and its LUNs are there after {:.1} s: {luns:?}", begin.elapsed().as_secs_f64()));
    // The adapter's own name is mapped nothing.
    let base = san.shell(&format!("host_of {}", super::fabric::adapter(1)), 30)?;
    ensure!(san.luns(base.trim())?.is_empty(), "the adapter sees what is the vport's");
    let mut faults = Vec::new();
    let done =
        move_data(&san, find(&luns, PORTS[0], 5)?.node.as_str(), find(&luns, PORTS[1], 5)?.node.as_str())
            .and_then(|()| tape(&san))
            .and_then(|()| changes(&san, &vport))
            .and_then(|()| fences(&san, &find(&luns, PORTS[0], 5)?.node))
            .and_then(|()| breaks(&san, &vport, &mut faults));
    note(&format!("the fabric: {}", san.tell("info").unwrap_or_default()));
    done.map_err(|error| error.context(san.log()))?;
    san.delete_vport(1, ONE, NODE)?;
    let gone =
        format!("wait_for 20 '[ -z \"$(vport_state {ONE})\" -a ! -e {} ]'", find(&luns, PORTS[0], 0)?.node);
    san.shell(&gone, 30)?;
    ensure!(!san.tell("info")?.contains(ONE), "the vport is still logged in");
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// Data go by one path, come back by the other, and are in the array's memory.
fn move_data(san: &San<'_>, one: &str, other: &str) -> Result<()> {
    san.shell(
        &format!(
            "set -e; cd /dev/shm
             head -c 8M /dev/urandom > fabric.data
             dd if=fabric.data of={one} bs=1M oflag=direct 2>/dev/null
             dd if={other} bs=64k count=128 iflag=direct 2>/dev/null | cmp - fabric.data"
        ),
        120,
    )?;
    san.tell("save d1 /dev/shm/fabric.disk")?;
    san.shell("cmp -n 8388608 /dev/shm/fabric.disk /dev/shm/fabric.data; rm /dev/shm/fabric.disk", 60)?;
    let rates = san.shell(
        &format!(
            "for size in 4k 64k 1M; do
                 count=2000; [ $size = 4k ] || count=400; [ $size != 1M ] || count=64
                 for way in read write; do
                     if [ $way = read ]; then words=\"if={one} of=/dev/null iflag=direct\"; else words=\"if=/dev/zero of={one} oflag=direct\"; fi
                     [ $way$size != write64k ] || count=400
                     echo $way $size: $(dd $words bs=$size count=$count 2>&1 | tail -n 1)
                 done
             done"
        ),
        300,
    )?;
    note(&format!("rates on the host:\n{rates}"));
    Ok(())
}

/// An archive goes to the tape by one path and is compared by the other; closing the device rewinds.
fn tape(san: &San<'_>) -> Result<()> {
    let said = san.shell(
        "set -e; modprobe st; wait_for 10 '[ -e /dev/st0 -a -e /dev/st1 ]'; cd /usr/share
         tar -cf /dev/st0 common-licenses; tar -df /dev/st1; tar -tf /dev/st0 | wc -l",
        120,
    )?;
    note(&format!(
        "files on the tape: {}; {}",
        said.trim(),
        san.tell("info")?.lines().filter(|line| line.starts_with("tape")).collect::<String>()
    ));
    Ok(())
}

/// What the array changes.
fn changes(san: &San<'_>, vport: &str) -> Result<()> {
    let scan = format!("echo '- - -' > /sys/class/scsi_host/{vport}/scan");
    san.tell(&format!("map {ONE} 0=d0 5=d1 9=d4 27=d2 513=d3 600=t0"))?;
    san.shell(&scan, 60)?;
    let mut more = LUNS.to_vec();
    more.push(9);
    let luns = san.wait_for_luns(vport, &PORTS, &more)?;
    // One that is no longer there fails, and goes by hand; the others stay.
    san.tell(&format!("map {ONE} 0=d0 5=d1 27=d2 513=d3 600=t0"))?;
    for port in PORTS {
        let gone = find(&luns, port, 9)?;
        san.shell(
            &format!(
                "! dd if={} of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null || exit 1
                 echo 1 > /sys/class/scsi_device/{}/device/delete",
                gone.node, gone.address
            ),
            60,
        )?;
    }
    let luns = san.wait_for_luns(vport, &PORTS, &LUNS)?;
    san.tell("resize d2 96M")?;
    let grown = find(&luns, PORTS[0], 27)?;
    let size = san.shell(
        &format!(
            "dd if={0} of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null
             echo 1 > /sys/class/scsi_device/{1}/device/rescan; cat /sys/block/{2}/size",
            grown.node,
            grown.address,
            grown.node.trim_start_matches("/dev/")
        ),
        60,
    )?;
    ensure!(size.trim() == "196608", "the disk has {size} sectors");
    let said = san
        .shell("dmesg | grep -oE 'LUN assignments.*|[Cc]apacity data has changed.*' | sort | uniq -c", 30)?;
    note(&format!("the host heard:\n{said}"));
    Ok(())
}

/// Reservations belong to names; a login that is refused heals.
fn fences(san: &San<'_>, one: &str) -> Result<()> {
    san.tell(&format!("reject fdisc {TWO} 9 29"))?;
    san.ask_for_vport(1, TWO, NODE)?;
    let state = san.shell(&format!("sleep 1; vport_state {TWO}"), 30)?;
    ensure!(state.trim() == "Initializing", "a vport that is refused is {state}");
    san.tell("reject fdisc off")?;
    let begin = Instant::now();
    san.shell(&format!("wait_for 60 '[ \"$(vport_state {TWO})\" = Active ]'"), 90)?;
    note(&format!("a vport that was refused is active {:.1} s later", begin.elapsed().as_secs_f64()));
    let host = san.shell(&format!("host_of {TWO}"), 30)?;
    let luns = san.wait_for_luns(host.trim(), &PORTS, &[0])?;
    let two = &find(&luns, PORTS[0], 0)?.node;
    reserve(san, one, two)?;
    san.delete_vport(1, TWO, NODE)
}

/// One name fences another at the same disk.
fn reserve(san: &San<'_>, one: &str, two: &str) -> Result<()> {
    let write = |node: &str| format!("dd if=/dev/zero of={node} bs=4k count=1 oflag=direct 2>/dev/null");
    let full = san.shell(
        &format!(
            "set -e
             # What is to be heard first, the host's driver hears.
             for node in {one} {two}; do dd if=$node of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null; done
             sg_persist -n --out --register --param-sark=0xa {one}
             sg_persist -n --out --reserve --param-rk=0xa --prout-type=5 {one}
             {}
             ! {} || exit 1
             sg_persist -n --out --register --param-sark=0xb {two}
             {}
             sg_persist -n --in --read-full-status {two}
             sg_persist -n --out --preempt-abort --param-rk=0xb --param-sark=0xa --prout-type=5 {two}
             ! {} || exit 1
             {}
             sg_persist -n --out --clear --param-rk=0xb {two}",
            write(one),
            write(two),
            write(two),
            write(one),
            write(two)
        ),
        120,
    )?;
    note(&format!("all registrations:\n{full}"));
    let digits: String = full.chars().filter(char::is_ascii_hexdigit).collect();
    ensure!(digits.contains(ONE) && digits.contains(TWO), "the names are not there");
    Ok(())
}

/// What breaks, and how long a read takes that begins right after it.
fn breaks(san: &San<'_>, vport: &str, faults: &mut Vec<String>) -> Result<()> {
    // What there is to wait for before the next one.
    let settled = format!(
        "wait_for 60 '[ \"$(vport_state {ONE})\" = Active -a \"$(port_state {vport} {})\" = Online -a \"$(port_state {vport} {})\" = Online ]'",
        PORTS[0], PORTS[1]
    );
    san.tell("port 2 down")?;
    san.shell(&format!("wait_for 20 '[ \"$(port_state {vport} {})\" = Blocked ]'", PORTS[1]), 40)?;
    san.tell("port 2 up")?;
    san.shell(&settled, 90)?;
    for (what, command) in [
        ("nothing", ""),
        ("LOGO by the target", "logo 2100000000000a01 2"),
        ("one medium error", "inject any 28 1 sense=3/11/0"),
        ("BUSY, three times", "inject any 28 3 busy"),
        ("a read is lost", "inject any 28 1 drop"),
        ("its response is lost", "lose rsp 1"),
        ("half of its data is lost", "lose data 1"),
        ("Clear Virtual Links of the vport", "cvl 2100000000000a01"),
        ("Clear Virtual Links of the node", "cvl node 2100000000000a01"),
        ("the fabric is off for a second", "restart 1000"),
        ("the link is down for a second", "link sw1 down"),
        ("the target port is silent for 3 s", "port 2 silent"),
        // Where nobody can ask what became of a command, the driver waits.
        ("a read is lost by an array without REC", "inject any 28 1 drop"),
    ] {
        let luns = san.luns(vport)?;
        let node = &find(&luns, PORTS[1], 0)?.node;
        san.tell(if what.ends_with("without REC") { "rec off" } else { "rec on" })?;
        let fault = san.fault(command)?;
        let up = match command {
            "link sw1 down" => "sleep 1; ip link set sw1 up;",
            "port 2 silent" => "(sleep 3; fabric_tell port 2 heard) >/dev/null 2>&1 &",
            _ => "",
        };
        // Not a page of memory: one read of 4 KiB.
        let read = format!(
            "{up} begin=$(now); dd if={node} of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null; echo $? after $(($(now) - begin)) /100 s"
        );
        let said = san.shell(&read, 180)?;
        let begin = Instant::now();
        let after = san.shell(&settled, 90);
        note(&format!(
            "{what}: the read: {}, all well {:.1} s later",
            said.trim(),
            begin.elapsed().as_secs_f64()
        ));
        let expected = if command.contains("sense=3") { "1 after" } else { "0 after" };
        if !said.contains(expected) {
            faults.push(format!("{what}: the read: {}", said.trim()));
        }
        if let Err(error) = after {
            faults.push(format!("{what}: {error:#}"));
        }
        if let Err(error) = san.mend(&fault) {
            faults.push(format!("{what}: {error:#}"));
        }
    }
    san.tell("rec on").map(drop)
}

/// The kernel's own target as the array, on a second adapter of the same fabric: files of 64 MiB, which one name is mapped.
const LIO: &str = "set -e
    modprobe -a target_core_mod target_core_file
    grep -q ' /sys/kernel/config ' /proc/mounts || mount -t configfs configfs /sys/kernel/config
    # Where the target notes reservations: without such a folder it takes none. It can be changed until the first driver is there.
    mkdir -p /run/testbed/target/pr; echo /run/testbed/target > /sys/kernel/config/target/dbroot 2>/dev/null || true
    modprobe tcm_fc
    core=/sys/kernel/config/target/core; port=/sys/kernel/config/target/fc/20:00:02:aa:00:00:00:02/tpgt_1
    mkdir -p $port/acls/21:00:00:00:00:00:0a:01 $port/acls/21:00:00:00:00:00:0a:02
    number=0
    for lun in 0 5 27; do
        truncate -s 64M /dev/shm/lio$number
        mkdir -p $core/fileio_0/d$number $port/lun/lun_$number $port/acls/21:00:00:00:00:00:0a:01/lun_$lun
        echo fd_dev_name=/dev/shm/lio$number,fd_dev_size=67108864 > $core/fileio_0/d$number/control
        echo abcdef0$number > $core/fileio_0/d$number/wwn/vpd_unit_serial
        echo 1 > $core/fileio_0/d$number/enable
        ln -s $core/fileio_0/d$number $port/lun/lun_$number/unit
        ln -s $port/lun/lun_$number $port/acls/21:00:00:00:00:00:0a:01/lun_$lun/unit
        number=$((number + 1))
    done
    mkdir $port/acls/21:00:00:00:00:00:0a:02/lun_0
    ln -s $port/lun/lun_1 $port/acls/21:00:00:00:00:00:0a:02/lun_0/unit";

const LIO_REMOVE: &str = "{
        core=/sys/kernel/config/target/core; port=/sys/kernel/config/target/fc/20:00:02:aa:00:00:00:02/tpgt_1
        rm -f $port/acls/*/lun_*/unit; rmdir $port/acls/*/lun_* $port/acls/*
        rm -f $port/lun/lun_*/unit; rmdir $port/lun/lun_* $port ${port%/*}
        rmdir $core/fileio_0/d* $core/fileio_0; rm -f /dev/shm/lio*
    } 2>/dev/null; true";

/// Its configuration, which goes when this is dropped.
struct Lio<'a>(&'a Bed);

impl Drop for Lio<'_> {
    fn drop(&mut self) {
        drop(self.0.host().shell(LIO_REMOVE, 120).inspect_err(|error| note(&format!("{error:#}"))));
    }
}

/// A second opinion: the fabric carries frames between the kernel's initiator and the kernel's target.
pub(crate) fn lio(bed: &Bed, _: Vmm) -> Result<()> {
    bed.host().shell(LIO_REMOVE, 120)?;
    let _lio = Lio(bed);
    // The target has to be there when the adapters come.
    bed.host().shell(LIO, 120)?;
    let san = San::new(bed, &[2], 0, "")?;
    let port = super::fabric::adapter(2);
    let done = san.create_vport(1, ONE, NODE).and_then(|vport| {
        let luns = san.wait_for_luns(&vport, &[&port], &[0, 5, 27])?;
        let one = &find(&luns, &port, 5)?.node;
        san.shell(
            &format!(
                "set -e; cd /dev/shm
                 head -c 8M /dev/urandom > fabric.data
                 dd if=fabric.data of={one} bs=1M oflag=direct 2>/dev/null
                 dd if={one} bs=64k count=128 iflag=direct 2>/dev/null | cmp - fabric.data
                 cmp -n 8388608 lio1 fabric.data"
            ),
            120,
        )?;
        let host = san.create_vport(1, TWO, NODE)?;
        let luns = san.wait_for_luns(&host, &[&port], &[0])?;
        reserve(&san, one, &find(&luns, &port, 0)?.node)?;
        san.delete_vport(1, TWO, NODE)?;
        san.delete_vport(1, ONE, NODE)
    });
    note(&format!("the fabric: {}", san.tell("info").unwrap_or_default()));
    done.map_err(|error| error.context(san.log()))
}
