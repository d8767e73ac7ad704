//! Linux on MegaRAID SAS boards: what its driver says, what sysfs shows, what tools get.

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::extras;
use testbed::guest::{Disk, Guest, HbaKind, Vmm};
use testbed::kernel::Debian;

use super::hotplug::{self, Place};
use super::{disk, messages};

/// What the driver must never say.
const FORBIDDEN: &[&str] = &[
    "FAULT",
    "killing",
    "start aen failed",
    "not supported by firmware",
    "Unit Not Ready",
    "Unexpected context",
    "I/O error",
];

/// A board as Linux sees it.
struct Board {
    model: &'static str,
    /// Lines of the kernel's log.
    lines: &'static [&'static str],
    /// Attributes of the host, of its disks' queues, and its status word.
    attributes: &'static [&'static str],
    interrupt: &'static str,
}

const GEN2: Board = Board {
    model: "gen2",
    lines: &[
        "requested/available msix 1/1",
        "megasas_init_mfi: fw_support_ieee=67108864",
        "(0x1000)/(0x0079)/(0x1000)/(0x9261)",
        "Max firmware commands: 1007 shared with default hw_queues = 1",
    ],
    attributes: &["can_queue=975", "sg_tablesize=60", "max_hw_sectors_kb=128", "status=c43c03f0"],
    interrupt: "megasas0-msix0",
};

const SAS1078: Board = Board {
    model: "1078",
    lines: &[
        "megasas_init_mfi: fw_support_ieee=0",
        "(0x1000)/(0x0060)/(0x1000)/(0x1013)",
        "Max firmware commands: 999 shared with default hw_queues = 1",
    ],
    attributes: &["can_queue=967", "sg_tablesize=80", "max_hw_sectors_kb=320", "status=c05003e8"],
    interrupt: "megasas0",
};

const COMMON_LINES: &[&str] = &[
    "FW now in Ready state",
    "63 bit DMA mask and 32 bit consistent mask",
    "controller type\t: MR(512MB)",
    "Online Controller Reset(OCR)\t: Enabled",
    "INIT adapter done",
    "Avago SAS based MegaRAID driver",
];
const COMMON_ATTRIBUTES: &[&str] = &["proc_name=megaraid_sas", "cmd_per_lun=256", "fw_cmds_outstanding=0"];

/// Shell functions: `look` prints attributes; `check DISK BLOCK` writes 4 MiB at a block of 1 MiB and compares.
const FUNCTIONS: &str = r#"
    set -e
    look() {
        host=$(echo /sys/class/scsi_host/host*)
        for name in proc_name can_queue cmd_per_lun sg_tablesize fw_cmds_outstanding; do
            echo $name=$(cat $host/$name)
        done
        echo status=$(sed -n 's/^000000b0: //p' $host/dump_system_regs)
        for at in /dev/at/*; do
            disk=$(readlink $at); queue=/sys/block/${disk##*/}/queue
            echo ${at#/dev/at/} size=$(cat $queue/../size) block=$(cat $queue/logical_block_size) \
                cache="$(cat $queue/write_cache)" max_hw_sectors_kb=$(cat $queue/max_hw_sectors_kb)
        done
        grep megasas /proc/interrupts
    }
    check() {
        dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null
        dd if=/tmp/data of=$1 bs=1M seek=$2 oflag=direct conv=notrunc 2>/dev/null
        dd if=$1 of=/tmp/back bs=1M skip=$2 count=4 iflag=direct 2>/dev/null
        cmp /tmp/data /tmp/back
        echo "checked $1"
    }
"#;

fn guest<'a>(bed: &'a Bed, vmm: Vmm, debian: Debian, model: &str) -> Guest<'a> {
    bed.guest().vmm(vmm).kernel(debian).cpus(2).megasas("model", model)
}

fn empty(size: &str) -> Disk {
    Disk::empty(size).on(HbaKind::Megasas)
}

fn expect(output: &str, texts: &[&str]) -> Result<()> {
    let missing: Vec<&&str> = texts.iter().filter(|text| !output.contains(**text)).collect();
    ensure!(missing.is_empty(), "{missing:?} is missing in:\n{output}");
    Ok(())
}

/// What every guest on a board has to show, in the output of `look` and [`messages::SHOW`].
fn expect_board(output: &str, board: &Board) -> Result<()> {
    for texts in [COMMON_LINES, COMMON_ATTRIBUTES, board.lines, board.attributes, &[board.interrupt]] {
        expect(output, texts)?;
    }
    let said = FORBIDDEN.iter().find(|text| output.contains(**text));
    ensure!(said.is_none(), "the driver says {said:?}:\n{output}");
    messages::check(output)
}

pub(crate) fn volumes_gen2_kernel13(bed: &Bed, vmm: Vmm) -> Result<()> {
    volumes(bed, vmm, Debian::Trixie, &GEN2)
}

pub(crate) fn volumes_gen2_kernel12(bed: &Bed, vmm: Vmm) -> Result<()> {
    volumes(bed, vmm, Debian::Bookworm, &GEN2)
}

pub(crate) fn volumes_1078_kernel12(bed: &Bed, vmm: Vmm) -> Result<()> {
    volumes(bed, vmm, Debian::Bookworm, &SAS1078)
}

pub(crate) fn volumes_1078_kernel13(bed: &Bed, vmm: Vmm) -> Result<()> {
    volumes(bed, vmm, Debian::Trixie, &SAS1078)
}

/// Logical drives: one beyond what 32 bits count, one with blocks of 4096 bytes; then the driver again, without MSI-X.
fn volumes(bed: &Bed, vmm: Vmm, debian: Debian, board: &Board) -> Result<()> {
    let script = format!(
        "{FUNCTIONS}
         look
         check /dev/at/0:2:0:0 0
         check /dev/at/0:2:1:0 7
         check /dev/at/0:2:2:0 3145724
         rmmod megaraid_sas
         insmod /lib/megaraid_sas.ko msix_disable=1
         grep megasas /proc/interrupts
         until [ $(ls -d /sys/block/sd* 2>/dev/null | wc -l) = 3 ]; do sleep 0.2; done
         dd if=/tmp/data of=/dev/sda bs=1M oflag=direct conv=notrunc 2>/dev/null
         {}",
        messages::SHOW
    );
    let guest = guest(bed, vmm, debian, board.model)
        .disk(empty("1G"))
        .disk(empty("1G").set("block_size", 4096))
        .disk(empty("3T"));
    let output = guest.script(&script).spawn()?.finish_script(300)?;
    expect_board(&output, board)?;
    expect(
        &output,
        &[
            "0:2:0:0 size=2097152 block=512 cache=write through",
            "0:2:1:0 size=2097152 block=4096 cache=write through",
            "0:2:2:0 size=6442450944 block=512 cache=write through",
            "scsi 0:2:2:0: Direct-Access     LSI ",
        ],
    )?;
    let line = output.lines().rfind(|line| line.contains("megasas0") && line.contains(':'));
    ensure!(line.is_some_and(|line| line.contains("IO-APIC")), "no INTx without MSI-X:\n{output}");
    Ok(())
}

pub(crate) fn jbod_gen2_kernel12(bed: &Bed, vmm: Vmm) -> Result<()> {
    jbod(bed, vmm, Debian::Bookworm, &GEN2)
}

pub(crate) fn jbod_1078_kernel13(bed: &Bed, vmm: Vmm) -> Result<()> {
    jbod(bed, vmm, Debian::Trixie, &SAS1078)
}

/// Disks given to the guest as they are: with their own names, and without a write cache, which older guests never flush.
fn jbod(bed: &Bed, vmm: Vmm, debian: Debian, board: &Board) -> Result<()> {
    let script = format!(
        "{FUNCTIONS}
         look
         check /dev/at/0:0:0:0 3
         check /dev/at/0:0:1:0 3145724
         mkfs.ext4 -q -F /dev/at/0:0:0:0
         mount /dev/at/0:0:0:0 /mnt
         dd if=/dev/urandom of=/mnt/file bs=4k count=64 conv=fsync 2>/dev/null
         umount /mnt
         {}",
        messages::SHOW
    );
    let guest = guest(bed, vmm, debian, board.model).megasas("mode", "jbod");
    let disk = empty("1G").set("vendor", "ACME").set("product", "FAST DISK");
    let output = guest.disk(disk).disk(empty("3T")).script(&script).spawn()?.finish_script(300)?;
    expect_board(&output, board)?;
    let cache = if vmm == Vmm::Qemu { "write back" } else { "write through" };
    expect(
        &output,
        &[
            &format!("0:0:0:0 size=2097152 block=512 cache={cache}"),
            &format!("0:0:1:0 size=6442450944 block=512 cache={cache}"),
            "scsi 0:0:0:0: Direct-Access     ACME     FAST DISK",
        ],
    )
}

/// Management tools: the driver's ioctl node, and smartctl for the disks behind volumes.
pub(crate) fn tools(bed: &Bed, vmm: Vmm) -> Result<()> {
    let script = r"
        set -e
        mfi info; mfi pds; mfi lds; mfi config; mfi events
        mfi wait 'mfi dcmd 0x02070100 0'
        mfi dcmd 0x0300e101 64
        smartctl --scan
        smartctl -i -H -A -d megaraid,0 /dev/sda
        smartctl -i -H -A -d megaraid,1 /dev/sda
        smartctl -i -d megaraid,99 /dev/sda || true";
    let guest =
        guest(bed, vmm, Debian::Trixie, "gen2").disk(empty("1G").set("serial", "DISK0001")).disk(empty("2G"));
    let guest = guest.archive(extras::mfi()?).archive(extras::smartctl()?);
    let output = guest.script(script).spawn()?.finish_script(300)?;
    expect(
        &output,
        &[
            "id 1000:0079:1000:9261",
            "limits 1008 commands 60 elements",
            "drives 2 logical 2 physical 2 disks",
            "pd 0 state 0x18 slot 0 sectors 2097152 block 512",
            "pd 1 state 0x18 slot 1 sectors 4194304 block 512",
            "ld 1 state 3 sectors 4194304 level 0 drives 1 cache 0",
            "config 1120 bytes 2 arrays of 288 2 volumes of 256",
            "code 0 Firmware initialization started",
            "code 0x72 Locate LED on: PD 00",
            "status 0x2 00",
            "/dev/bus/0 -d megaraid,0",
            "/dev/bus/0 -d megaraid,1",
            "Serial number:        DISK0001",
            "SMART support is:     Enabled",
            "SMART Health Status: OK",
            "[megaraid_disk_99] failed: INQUIRY failed",
        ],
    )?;
    ensure!(!output.contains("code 0x8a"), "disks that are there at the start are events:\n{output}");
    ensure!(!output.contains("not as listed"), "two SAS addresses for one disk:\n{output}");
    // The name of the disk is one, by SCSI and by the firmware.
    let address = output
        .lines()
        .find(|line| line.starts_with("pd 0 "))
        .and_then(|line| line.split_once("address ")?.1.split_whitespace().next());
    expect(&output, &[&format!("Logical Unit id:      0x{}", address.context("no address")?)])
}

pub(crate) fn hotplug_gen2_kernel13(bed: &Bed, vmm: Vmm) -> Result<()> {
    hotplug_of(bed, vmm, Debian::Trixie, "gen2", "raid")
}

pub(crate) fn hotplug_1078_kernel12(bed: &Bed, vmm: Vmm) -> Result<()> {
    hotplug_of(bed, vmm, Debian::Bookworm, "1078", "raid")
}

pub(crate) fn hotplug_jbod_kernel12(bed: &Bed, vmm: Vmm) -> Result<()> {
    hotplug_of(bed, vmm, Debian::Bookworm, "gen2", "jbod")
}

pub(crate) fn hotplug_jbod_kernel13(bed: &Bed, vmm: Vmm) -> Result<()> {
    hotplug_of(bed, vmm, Debian::Trixie, "gen2", "jbod")
}

/// The driver has no event for a size, so that the guest is asked to look; disks come and go by events.
fn hotplug_of(bed: &Bed, vmm: Vmm, debian: Debian, model: &str, mode: &str) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let channel = if mode == "raid" { 2 } else { 0 };
    let guest = guest(bed, vmm, debian, model).megasas("mode", mode).disk(empty("1G"));
    hotplug::run(bed, guest, &Place { channel, rescans: true }, 5)
}

/// As many logical drives as there can be.
pub(crate) fn volumes_64(bed: &Bed, vmm: Vmm) -> Result<()> {
    let script = format!(
        "{FUNCTIONS}
         ls /sys/class/scsi_device | wc -l | sed 's/^/units=/'
         for id in 0 31 63; do check /dev/at/0:2:$id:0 3; done
         {}",
        messages::SHOW
    );
    let mut guest = guest(bed, vmm, Debian::Trixie, "gen2");
    for _ in 0..64 {
        guest = guest.disk(empty("64M"));
    }
    let output = guest.script(&script).spawn()?.finish_script(400)?;
    expect(&output, &["units=64", "checked /dev/at/0:2:63:0"])?;
    messages::check(&output)
}

pub(crate) fn kill_none(bed: &Bed, vmm: Vmm) -> Result<()> {
    disk::kill(bed, vmm, empty("1G").cache("none"))
}

pub(crate) fn kill_writeback(bed: &Bed, vmm: Vmm) -> Result<()> {
    disk::kill(bed, vmm, empty("1G").cache("writeback"))
}

pub(crate) fn reload(bed: &Bed, vmm: Vmm) -> Result<()> {
    reload_times(bed, vmm, 2)
}

pub(crate) fn reload_50(bed: &Bed, vmm: Vmm) -> Result<()> {
    reload_times(bed, vmm, 50)
}

/// The driver leaves the board while commands are under way and takes it again; what was written stays.
fn reload_times(bed: &Bed, vmm: Vmm, times: u32) -> Result<()> {
    let script = format!(
        "{FUNCTIONS}
         disk() {{ until ls /sys/block/sda >/dev/null 2>&1; do sleep 0.1; done; sleep 0.2; }}
         check /dev/sda 100
         for turn in $(seq {times}); do
             for reader in 1 2 3 4; do dd if=/dev/sda of=/dev/null bs=64k iflag=direct 2>/dev/null & done
             sleep 0.3
             device=$(basename $(echo /sys/bus/pci/drivers/megaraid_sas/0000*))
             if [ $((turn % 2)) = 0 ]; then
                 echo $device > /sys/bus/pci/drivers/megaraid_sas/unbind
                 wait
                 echo $device > /sys/bus/pci/drivers/megaraid_sas/bind
             else
                 killall dd; wait
                 rmmod megaraid_sas
                 insmod /lib/megaraid_sas.ko
             fi
             disk
             echo turn $turn
         done
         dd if=/dev/sda of=/tmp/back bs=1M skip=100 count=4 iflag=direct 2>/dev/null
         cmp /tmp/data /tmp/back
         echo intact
         dmesg | grep -iE 'fault|kill|unexpected|fail|error' || true"
    );
    let guest = guest(bed, vmm, Debian::Trixie, "gen2").disk(empty("1G"));
    let output = guest.script(&script).spawn()?.finish_script(900)?;
    expect(&output, &[&format!("turn {times}"), "intact"])?;
    // Reads that are under way when the disk goes may fail.
    let said = FORBIDDEN.iter().find(|text| **text != "I/O error" && output.contains(**text));
    ensure!(said.is_none(), "the driver says {said:?}:\n{output}");
    Ok(())
}

/// A disk that takes longer than the driver waits, one write in a second. The driver gives up after 20 s and 5 s more,
/// and a reset has to help within some seconds, three times at most: it resets the controller, sends everything again, and all ends well.
pub(crate) fn reset_of_a_stalled_disk(bed: &Bed, vmm: Vmm) -> Result<()> {
    let script = format!(
        "{FUNCTIONS}
         rmmod megaraid_sas
         insmod /lib/megaraid_sas.ko scmd_timeout=10 resetwaittime=5
         until [ $(ls -d /sys/block/sd* 2>/dev/null | wc -l) = 2 ]; do sleep 0.2; done
         slow=$(basename $(dirname $(grep -lx 131072 /sys/block/sd?/size)))
         fast=$(basename $(dirname $(grep -lx 2097152 /sys/block/sd?/size)))
         trap 'dmesg | grep -i -e mega -e scsi -e reset' EXIT
         dd if=/dev/urandom of=/tmp/slow bs=4k count=32 2>/dev/null
         for block in $(seq 0 31); do
             dd if=/tmp/slow of=/dev/$slow bs=4k skip=$block seek=$((block * 2)) count=1 oflag=direct conv=notrunc 2>/dev/null &
         done
         dd if=/dev/urandom of=/tmp/fast bs=1M count=32 2>/dev/null
         dd if=/tmp/fast of=/dev/$fast bs=64k oflag=direct conv=notrunc 2>/dev/null
         wait
         dd if=/dev/$fast of=/tmp/back bs=64k count=512 iflag=direct 2>/dev/null
         cmp /tmp/fast /tmp/back
         for block in $(seq 0 31); do
             dd if=/dev/$slow bs=4k skip=$((block * 2)) count=1 iflag=direct 2>/dev/null
         done | cmp - /tmp/slow
         echo intact
         dmesg | grep -q 'reset successful' && echo was reset"
    );
    let slow =
        empty("64M").set("throttle", toml::Table::from_iter([("iops_write".into(), toml::Value::from(1))]));
    let guest = guest(bed, vmm, Debian::Trixie, "gen2").disk(empty("1G")).disk(slow);
    let output = guest.script(&script).spawn()?.finish_script(900)?;
    expect(&output, &["intact", "was reset", "ADP_RESET_GEN2: HostDiag=80"])
}

/// The firmware stops in the middle of writes: the driver resets it, and nothing is lost.
pub(crate) fn reset_of_stopped_firmware(bed: &Bed, vmm: Vmm) -> Result<()> {
    let script = format!(
        "{FUNCTIONS}
         rmmod megaraid_sas
         insmod /lib/megaraid_sas.ko scmd_timeout=10 resetwaittime=5
         until ls /sys/block/sda >/dev/null 2>&1; do sleep 0.2; done
         dd if=/dev/urandom of=/tmp/data bs=1M count=16 2>/dev/null
         (sleep 0.5; mfi out 0x20 0x20; echo stopped) &
         for turn in 1 2 3 4; do
             dd if=/tmp/data of=/dev/sda bs=64k seek=$((turn * 256)) oflag=direct conv=notrunc
         done
         wait
         for turn in 1 2 3 4; do
             dd if=/dev/sda of=/tmp/back bs=64k skip=$((turn * 256)) count=256 iflag=direct 2>/dev/null
             cmp /tmp/data /tmp/back
         done
         echo intact
         mfi wait 'mfi dcmd 0x02070100 0'
         dmesg | grep -i reset"
    );
    let guest =
        guest(bed, vmm, Debian::Trixie, "gen2").memory("2GiB").disk(empty("1G")).archive(extras::mfi()?);
    let output = guest.script(&script).spawn()?.finish_script(900)?;
    expect(&output, &["stopped", "intact", "reset successful", "code 0x72"])
}

pub(crate) fn debian_13(bed: &Bed, vmm: Vmm) -> Result<()> {
    system(bed, vmm, Debian::Trixie, "gen2")
}

pub(crate) fn debian_12_1078(bed: &Bed, vmm: Vmm) -> Result<()> {
    system(bed, vmm, Debian::Bookworm, "1078")
}

/// A whole Debian on a volume, with fio that verifies on a second one.
fn system(bed: &Bed, vmm: Vmm, debian: Debian, model: &str) -> Result<()> {
    let root = Disk::debian_root(debian).on(HbaKind::Megasas);
    let mut vm = guest(bed, vmm, debian, model).disk(root).disk(empty("1G")).spawn()?;
    vm.wait_for_boot("login: ")?;
    vm.login("root")?;
    let disks = vm.run("lsscsi; lsblk --noheadings --output NAME,MOUNTPOINT")?;
    expect(&disks, &["[0:2:0:0]    disk    LSI ", "[0:2:1:0]    disk    LSI "])?;
    vm.run_for(
        "fio --name=a --filename=$(readlink -f /dev/disk/by-path/*scsi-0:2:1:0) --rw=randwrite --bsrange=512-256k --blockalign=512 \
         --size=128m --ioengine=libaio --direct=1 --iodepth=128 --serialize_overlap=1 --verify=crc32c --do_verify=1 \
         --verify_fatal=1 --randrepeat=0",
        400,
    )?;
    let messages = vm.run(messages::SHOW)?;
    vm.send("poweroff\n")?;
    vm.expect_exit(0, 180)?;
    messages::check(&messages)
}
