//! What udev, multipathd, MD and LVM of a host do with the disks of a machine's port, and what keeps them from it: the rules and lists of
//! docs/fc.md, word for word, in this machine's own programs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::guest::Vmm;
use testbed::report::note;
use testbed::vm::Vm;

use super::fabric::San;
use super::fc_guest::{guest, keys, nothing_left, shell, units};
use super::fc_tool::Tool;

const DOCS: &str = include_str!("../../docs/fc.md");

const ONE: &str = "2100000000000a01";
const NODE: &str = "2000000000000a01";

/// What the programs are called with. None of them may write to the host's own `/etc`.
const PROGRAMS: &str = "/lib/systemd/systemd-udevd /sbin/multipathd /sbin/mdadm /sbin/lvm";

/// One disk by both ports, and two by the first: one of an array, one of a volume group.
const UNITS: &str = "disk d0 64M
disk d1 64M
disk d2 64M
map any
map 2100000000000a01 0=d0 5=d1 27=d2
map 2100000000000a01@2 0=d0
";

/// Two disks get what other programs look for, while none of them looks.
const FILL: &str = "set -e
    modprobe -a dm-mod dm-multipath dm-service-time raid1
    mkdir -p /run/etc && cp -a /etc/. /run/etc && mount --bind /run/etc /etc
    mkdir -p /etc/multipath /etc/lvm/devices /run/udev/rules.d
    printf 'defaults {\\n    find_multipaths yes\\n}\\n' > /etc/multipath.conf
    echo 'global { event_activation = 0 }' > /etc/lvm/lvmlocal.conf
    mdadm --create /dev/md7 --run --level 1 --raid-devices 2 --metadata 1.2 --homehost any $array missing 2>&1
    mdadm --stop /dev/md7
    pvcreate -qq $volumes && vgcreate -qq guest $volumes && lvcreate -qq -an -Zn -Wn -L 8M -n root guest
    sync";

const LOOK: &str = "set -e
    /lib/systemd/systemd-udevd --daemon
    udevadm trigger --action=add --subsystem-match=block; udevadm settle
    (setsid multipathd -d -s > /run/multipathd.log 2>&1 &)
    wait_for 30 'multipathd show status'";

/// What the host has of disks that are the guest's.
const TAKEN: &str = "echo MAPS $(multipath -ll -v1); echo ARRAYS $(grep -o '^md[0-9]*' /proc/mdstat); echo GROUPS $(vgs --noheadings -o vg_name)";

/// Why they do not.
const WHY: &str = "udevadm settle; cat /proc/mdstat /run/multipathd.log; multipath -v3 -d 2>&1 | tail -n 60
    for node in /sys/block/sd*; do udevadm info -q property $node; done";

pub(crate) fn rules(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    if bed.host().shell(&format!("ls {PROGRAMS}"), 30).is_err() {
        println!("SKIPPED: needs {PROGRAMS} (packages udev, multipath-tools, mdadm, lvm2)");
        return Ok(());
    }
    let _tool = Tool::new(bed)?;
    let san = San::new(bed, &[1], 2, UNITS)?;
    let done = looked_at(bed, &san);
    let ends = "multipathd shutdown; pkill -x systemd-udevd; multipath -F; mdadm --stop --scan; umount -l /etc; rm -rf /run/udev /run/etc";
    drop(san.shell(&format!("({ends}) 2>&1; true"), 60));
    done.map_err(|error| error.context(san.log()))
}

fn looked_at(bed: &Bed, san: &San<'_>) -> Result<()> {
    let host = san.create_vport(1, ONE, NODE)?;
    let disks = san.wait_for_disks(
        &host,
        &[
            ("502fcf0000000001", 0),
            ("502fcf0000000001", 5),
            ("502fcf0000000001", 27),
            ("502fcf0000000002", 0),
        ],
    )?;
    let node = |lun| disks.iter().find(|disk| disk.lun == lun).map(|disk| disk.node.as_str());
    let (array, volumes) = (node(5).context("no LUN 5")?, node(27).context("no LUN 27")?);
    note(&san.shell(&format!("array={array} volumes={volumes}\n{FILL}"), 120)?);
    san.delete_vport(1, ONE, NODE)?;
    note(&san.shell(LOOK, 90)?);

    // As hosts are: they take what they know, of a port that is there before the machine.
    san.create_vport(1, ONE, NODE)?;
    let took = san.shell("wait_for 30 'multipath -ll -v1 | grep -q . && grep -q ^md /proc/mdstat'", 60);
    let taken = san.shell(TAKEN, 60)?;
    took.with_context(|| format!("{taken}{}", san.shell(WHY, 60).unwrap_or_default()))?;
    let mut vm = start(bed)?;
    note(&format!("a host that nobody told has\n{taken}"));
    ensure!(taken.contains("GROUPS guest"), "{taken}");
    let end = Instant::now() + Duration::from_secs(60);
    while vm.errors().matches("is in use: part of").count() < 3 {
        ensure!(Instant::now() < end, "not said that the LUNs are in use: {}", vm.errors());
        std::thread::sleep(Duration::from_millis(200));
    }
    note(&format!("said: {}", vm.errors()));

    // As docs/fc.md has it.
    let rules = quoted("```text\n# /etc/udev/rules.d/59-vmm-fc.rules\n", "```")?;
    let (first, second) = rules.split_once("# /etc/udev/rules.d/61-vmm-fc.rules\n").context("one file")?;
    bed.host().put("/run/udev/rules.d/59-vmm-fc.rules", first.as_bytes())?;
    bed.host().put("/run/udev/rules.d/61-vmm-fc.rules", second.as_bytes())?;
    let list = quoted("```text\n# /etc/multipath.conf\n", "```")?;
    let kept = quoted("`use_devicesfile = 1` in `/etc/lvm/lvm.conf`, and `", "`")?;
    let told = san.shell(
        &format!(
            "set -e; exec 2>&1
             echo '{list}' >> /etc/multipath.conf
             sed -i 's/^.*use_devicesfile = .*$/\\tuse_devicesfile = 1/' /etc/lvm/lvm.conf; {kept}
             (timeout 60 udevadm monitor -k -u > /run/udev.log 2>&1 &)
             udevadm control --reload; udevadm trigger --action=change --subsystem-match=block --sysname-match='sd*'
             udevadm settle -t 60 || {{ cat /run/udev.log; exit 1; }}
             multipathd reconfigure; multipath -F; mdadm --stop --scan
             multipath -v4 -d 2>&1 | grep blacklisted
             {TAKEN}"
        ),
        90,
    )?;
    note(&format!("after that\n{told}"));
    ensure!(told.contains("udev property FC_GUEST blacklisted"), "{told}");
    free(&told)?;
    vm.run_for("within 300 '[ $(units | wc -l) = 4 ]'", 90)?;
    note("the units have come by themselves");
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 120)?;
    // It is not the machine's.
    san.delete_vport(1, ONE, NODE)?;

    // And at the next start nobody takes them.
    let mut vm = start(bed)?;
    vm.run_for("within 300 '[ $(units | wc -l) = 4 ]'", 90)?;
    ensure!(units(&mut vm)?.len() == 4, "{}", vm.errors());
    free(&san.shell(&format!("udevadm settle; {TAKEN}"), 60)?)?;
    ensure!(!vm.errors().contains("in use"), "{}", vm.errors());
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 120)?;
    nothing_left(san, &[ONE], 20)
}

fn start(bed: &Bed) -> Result<Vm<'_>> {
    let mut vm = guest(bed, "web").fabric("san0", keys(ONE, &[])?).spawn()?;
    shell(&mut vm)?;
    Ok(vm)
}

/// Nothing of the guest's is the host's.
fn free(taken: &str) -> Result<()> {
    let clean =
        ["MAPS", "ARRAYS", "GROUPS"].iter().all(|word| taken.lines().any(|line| line.trim() == *word));
    ensure!(clean, "the host has of the guest's disks: {taken}");
    Ok(())
}

fn quoted(from: &str, to: &str) -> Result<&'static str> {
    let (_, rest) = DOCS.split_once(from).with_context(|| format!("docs/fc.md has no {from}"))?;
    Ok(rest.split_once(to).context("it does not end")?.0)
}
