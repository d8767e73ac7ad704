//! A disk makes room for another at the same place while the guest uses it: nothing that was meant for the one lands in
//! the other, however fast it comes.

use anyhow::{Result, ensure};
use testbed::bed::Bed;
use testbed::guest::{Disk, HbaKind, Vmm};
use testbed::report::note;
use testbed::vm::Vm;

use super::hotplug::{ask, ask_all};

/// How the guest finds target 5, and how busy it is.
#[derive(Clone, Copy)]
struct Case {
    hba: HbaKind,
    mode: &'static str,
    /// A file system is mounted; else a program writes to the disk, past the guest's cache.
    mounted: bool,
    /// The machine is paused meanwhile.
    pause: bool,
}

const JBOD: Case = Case { hba: HbaKind::Megasas, mode: "jbod", mounted: true, pause: true };
const VOLUMES: Case = Case { hba: HbaKind::Megasas, mode: "raid", mounted: false, pause: false };
const VIRTIO: Case = Case { hba: HbaKind::Virtio, mode: "raid", mounted: true, pause: true };

pub(crate) fn jbod_paused(bed: &Bed, vmm: Vmm) -> Result<()> {
    swap(bed, vmm, JBOD, 2)
}

pub(crate) fn jbod_idle(bed: &Bed, vmm: Vmm) -> Result<()> {
    swap(bed, vmm, Case { pause: false, ..JBOD }, 24)
}

pub(crate) fn volumes_busy(bed: &Bed, vmm: Vmm) -> Result<()> {
    swap(bed, vmm, VOLUMES, 12)
}

pub(crate) fn virtio_paused(bed: &Bed, vmm: Vmm) -> Result<()> {
    swap(bed, vmm, VIRTIO, 4)
}

pub(crate) fn virtio_busy(bed: &Bed, vmm: Vmm) -> Result<()> {
    swap(bed, vmm, Case { mounted: false, pause: false, ..VIRTIO }, 12)
}

/// Shell functions: `name` is the disk at target 5, `wait_for SECTORS` waits until that has this size, `use FILE-SYSTEM` begins
/// to use it, and `leave` ends that.
const FUNCTIONS: &str = r#"
    name() { ls /sys/class/scsi_device/0:CHANNEL:5:0/device/block 2>/dev/null; }
    wait_for() {
        end=$(($(cut -d. -f1 /proc/uptime) + 60))
        until [ "$(cat /sys/block/$(name)/size 2>/dev/null)" = $1 ] && [ -b /dev/$(name) ]; do
            sleep 0.2
            [ $(cut -d. -f1 /proc/uptime) -lt $end ] || return 1
        done
    }
    mounted() {
        mkfs.ext4 -q -F /dev/$(name) && mount -t ext4 /dev/$(name) /mnt && dd if=/tmp/old of=/mnt/begin conv=fsync 2>/dev/null || return 1
        [ $1 = idle ] || (n=0; while dd if=/tmp/old of=/mnt/$((n % 4)) bs=64k conv=fsync; do n=$((n + 1)); done >/dev/null 2>&1) &
    }
    direct() { (exec dd if=/dev/zero of=/dev/$(name) bs=4k oflag=direct 2>/dev/null) & sleep 1; }
    leave() { killall dd 2>/dev/null; umount -l /mnt 2>/dev/null; sync & sleep 1; }
    head -c 1048576 /dev/zero | tr '\0' O > /tmp/old"#;

/// Changes the disk at target 5 again and again: by `change`, and by `detach` and `attach` sent in one packet.
fn swap(bed: &Bed, vmm: Vmm, case: Case, rounds: u32) -> Result<()> {
    let channel = if case.hba == HbaKind::Megasas && case.mode == "raid" { "2" } else { "0" };
    let first = Disk::empty("256M").on(case.hba).set("target", 5);
    let guest = bed.guest().vmm(vmm).cpus(2).megasas("mode", case.mode);
    let guest = guest.disk(Disk::empty("64M").on(case.hba)).disk(first).quick_shell();
    let mut vm =
        guest.option("--set=control.path=control.sock").option("--set=security.directories=['.']").spawn()?;
    vm.quick_shell()?;
    vm.run(&FUNCTIONS.replace("CHANNEL", channel))?;
    let mut faults = Vec::new();
    let mut sectors: u32 = 512 << 10;
    for round in 1..=rounds {
        vm.run_for(&format!("wait_for {sectors}"), 300)?;
        vm.run_for(
            if !case.mounted {
                "direct"
            } else if case.pause {
                "mounted busy"
            } else {
                "mounted idle"
            },
            300,
        )?;
        // Each is larger than the one before, which tells them apart.
        sectors += 2048;
        let image = format!("{}/new{round}.img", vm.dir());
        bed.host().shell(&format!("truncate -s {} {image}", u64::from(sectors) * 512), 30)?;
        let answers = exchange(bed, &vm, case, round)?;
        let found = vm.run_code(&format!("wait_for {sectors}; found=$?; leave; [ $found = 0 ]"), 300)?.1 == 0;
        // A file without a block was never written to.
        let blocks = bed.host().shell(&format!("sync {image}; stat -c %b {image}"), 60)?;
        let blocks = blocks.trim();
        if blocks != "0" {
            let count = format!("tr -d '\\0' < {image} | wc -c");
            let bytes = bed.host().shell(&count, 300)?;
            faults.push(format!(
                "round {round}: {blocks} blocks of the new image are written, {} bytes of it are not zero",
                bytes.trim()
            ));
        }
        if !found {
            faults.push(format!("round {round}: the guest still has the old disk after a minute"));
        }
        note(&format!(
            "round {round}: {blocks} blocks written, found {found}; {}",
            answers.trim().replace('\n', " ")
        ));
        if !faults.is_empty() && (rounds < 5 || !found) {
            break;
        }
    }
    note(&format!("the log:\n{}", vm.errors().trim()));
    ensure!(
        faults.is_empty(),
        "{}\nthe guest's kernel:\n{}",
        faults.join("\n"),
        vm.run("dmesg | tail -n 30")?
    );
    vm.kill()
}

fn exchange(bed: &Bed, vm: &Vm<'_>, case: Case, round: u32) -> Result<String> {
    let new = format!("\"target\": 5, \"image\": \"new{round}.img\"");
    if case.pause {
        ask(bed, vm, "pause", "")?;
    }
    let requests: &[_] = if round.is_multiple_of(2) {
        &[("change", new.as_str())]
    } else {
        &[("detach", "\"target\": 5"), ("attach", new.as_str())]
    };
    let answers = ask_all(bed, vm, requests, 120)?;
    ensure!(!answers.contains("\"error\""), "{requests:?}: {answers}");
    if case.pause {
        ask(bed, vm, "resume", "")?;
    }
    Ok(answers)
}
