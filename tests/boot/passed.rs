//! Devices of the host that guests get whole: disks of scsi_debug, and behind the kernel's loopback target disks that keep
//! persistent reservations, a tape, an enclosure and a changer. And the guests' own programs on the host, to ask the devices there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use testbed::bed::Bed;
use testbed::extras;
use testbed::guest::Disk;
use testbed::host::{Event, Process};
use testbed::kernel::Debian;
use testbed::report::note;
use testbed::wire::Launch;

/// The disks of scsi_debug are `debug0` and `debug1`, with 64 MiB each, on adapters of their own. The others are `disk`, `other` (the
/// same once more), `tape`, `enclosure` and `changer`. What an earlier test left goes first.
const MAKE: &str = "modprobe -a sd_mod sg st ses ch target_core_user target_core_file
    grep -q ' /sys/kernel/config ' /proc/mounts || mount -t configfs configfs /sys/kernel/config
    grep -q ' /sys/kernel/debug ' /proc/mounts || mount -t debugfs debugfs /sys/kernel/debug
    # Where the target notes reservations: without such a folder it takes none. It can be changed until the first driver is there.
    mkdir -p /run/testbed/target/pr; echo /run/testbed/target > /sys/kernel/config/target/dbroot
    modprobe tcm_loop
    set -e
    modprobe scsi_debug dev_size_mb=64 add_host=2 per_host_store=1 lbpu=1 lbpws=1 delay=0
    mkdir -p $port; echo naa.6001405feed00002 > $port/nexus
    for unit in $units; do
        mkdir -p $core/$unit
        case $unit in
        fileio*)
            file=/dev/shm/passed-${unit#*/}.img
            rm -f $file; truncate -s 64M $file
            echo fd_dev_name=$file,fd_dev_size=67108864 > $core/$unit/control
            echo PASSED-${unit#*/} > $core/$unit/wwn/vpd_unit_serial ;;
        *) echo dev_config=${unit#*/}/bed,dev_size=1048576,hw_block_size=512,nl_reply_supported=-1 > $core/$unit/control ;;
        esac
    done
    for unit in $units; do echo 1 > $core/$unit/enable; done";

/// `place NAME ADDRESS` says where a device is, once it is there: name, address, node of sg, and of a disk.
const PLACE: &str = "place() {
        device=/sys/class/scsi_device/$2/device
        for turn in $(seq 50); do [ -e $device/scsi_generic ] && break; sleep 0.1; done
        echo \"UNIT $1 $2 $(ls $device/scsi_generic) $([ ! -e $device/scsi_disk ] || ls $device/block)\"
    }\n";

/// The hardware is in level 1 all the time; the drivers come with the first test.
const ADAPTERS: &str = "modprobe -a sd_mod sg virtio_scsi ahci xhci_pci usb_storage
    seen() {
        for turn in $(seq 100); do
            for device in /sys/class/scsi_device/*; do
                host=${device##*/}; host=/sys/class/scsi_host/host${host%%:*}
                [ \"$(cat $host/proc_name)\" = $2 ] && [ -e $device/device/scsi_disk ] && place $1 ${device##*/} && return
            done
            sleep 0.1
        done
        return 1
    }
    seen few virtio_scsi && seen sata ahci && seen usb usb-storage";

/// Links the units, now that somebody serves them, and says where all are.
const LINK: &str = "set -e
    lun=0
    for unit in $units; do
        mkdir $port/lun/lun_$lun
        ln -s $core/$unit $port/lun/lun_$lun/unit
        lun=$((lun + 1))
    done
    sleep 0.5
    number=0
    for host in /sys/class/scsi_host/host*; do
        case $(cat $host/proc_name) in
        scsi_debug) place debug$number ${host##*host}:0:0:0; number=$((number + 1)) ;;
        tcm_loopback)
            lun=0
            for unit in $units; do place ${unit#*/} ${host##*host}:0:1:$lun; lun=$((lun + 1)); done ;;
        esac
    done";

const REMOVE: &str = "{
        rm -f $port/lun/lun_*/unit; rmdir $port/lun/lun_* $port ${port%/*}
        for unit in $units; do rmdir $core/$unit ; done
        rmdir $core/fileio_* $core/user_0
        rm -f /dev/shm/passed-*.img
    } 2>/dev/null
    for turn in $(seq 50); do
        [ ! -e /sys/module/scsi_debug ] || modprobe -r scsi_debug 2>/dev/null
        [ -e /sys/module/scsi_debug ] || break
        sleep 0.2
    done
    ! [ -e /sys/module/scsi_debug ]";

/// Where the loopback target and its devices are configured.
const PLACES: &str =
    "port=/sys/kernel/config/target/loopback/naa.6001405feed00001/tpgt_1; core=/sys/kernel/config/target/core
    units='fileio_0/disk fileio_1/other user_0/tape user_0/enclosure user_0/changer'\n";

/// A device.
#[derive(Clone, Debug)]
struct Unit {
    address: String,
    sg: String,
    block: Option<String>,
}

/// The devices. They go when this is dropped, so that has to be after the VMM that uses them.
pub(crate) struct Passed<'a> {
    bed: &'a Bed,
    units: BTreeMap<String, Unit>,
    /// What tape, enclosure and changer are.
    _served: Vec<Process>,
}

/// A root with what is in a guest's, for the host: the same programs are asked the same things in the same places.
const ROOT: &str = "/run/testbed/passed";

/// Unpacks what the guest's memory begins with, and makes devices known there.
fn root(bed: &Bed, archives: &[PathBuf]) -> Result<()> {
    let busybox = bed.prepared().tools().file("busybox")?.display().to_string();
    let quick = bed.prepared().quick(Debian::Trixie)?;
    let files: Vec<_> = [quick].into_iter().chain(archives).map(|file| file.display().to_string()).collect();
    let script = format!(
        "set -e
         mkdir -p {ROOT}; cd {ROOT}
         for file in {}; do {busybox} cpio -idu < $file 2>/dev/null; done
         grep -q ' {ROOT}/dev ' /proc/mounts && exit
         mount -t devtmpfs dev dev; mount -t sysfs sys sys; mount -t proc proc proc
         chroot . /bin/busybox --install -s /bin",
        files.join(" ")
    );
    bed.host().shell(&script, 120).map(|_| ())
}

impl<'a> Passed<'a> {
    /// Makes them. `archives` are what the guest has beside the quick initramfs, and programs on the host have as well.
    pub(crate) fn new(bed: &'a Bed, archives: &[PathBuf]) -> Result<Self> {
        let program = extras::unit()?.to_string_lossy().into_owned();
        root(bed, archives)?;
        drop(remove(bed));
        bed.host().shell(&format!("{PLACES}{MAKE}"), 60)?;
        let mut passed = Self { bed, units: BTreeMap::new(), _served: Vec::new() };
        for unit in ["tape", "enclosure", "changer"] {
            passed._served.push(serve(bed, &program, unit)?);
        }
        let made = bed.host().shell(&format!("{PLACES}{PLACE}{LINK}"), 60)?;
        passed.add(&made)?;
        ensure!(passed.units.len() == 7, "not all devices are there: {made}");
        Ok(passed)
    }

    /// Adds `few`, `sata` and `usb`: disks of 64 MiB on adapters of level 1 whose queues take little, each in another way.
    pub(crate) fn add_adapters(&mut self) -> Result<()> {
        let found = self.bed.host().shell(&format!("{PLACE}{ADAPTERS}"), 60)?;
        self.add(&found)
    }

    fn add(&mut self, lines: &str) -> Result<()> {
        for line in lines.lines().filter_map(|line| line.strip_prefix("UNIT ")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, address, sg, block @ ..] = &*words else { bail!("no device: {line}") };
            let node = |name: &&str| format!("/dev/{name}");
            let unit = Unit { address: (*address).into(), sg: node(sg), block: block.first().map(node) };
            self.units.insert((*name).to_string(), unit);
        }
        Ok(())
    }

    fn unit(&self, name: &str) -> Result<&Unit> {
        self.units.get(name).with_context(|| format!("there is no {name}"))
    }

    /// Its node of sg.
    pub(crate) fn sg(&self, name: &str) -> Result<&str> {
        Ok(&self.unit(name)?.sg)
    }

    /// Its node as a disk.
    pub(crate) fn block(&self, name: &str) -> Result<&str> {
        self.unit(name)?.block.as_deref().with_context(|| format!("{name} is no disk"))
    }

    /// Where sysfs has it.
    pub(crate) fn sysfs(&self, name: &str) -> Result<String> {
        Ok(format!("/sys/class/scsi_device/{}/device", self.unit(name)?.address))
    }

    /// Has scsi_debug treat commands of a disk in a way of its own; see `error` of its debugfs.
    pub(crate) fn inject(&self, name: &str, rule: &str) -> Result<()> {
        let file = format!("/sys/kernel/debug/scsi_debug/{}/error", self.unit(name)?.address);
        self.bed.host().shell(&format!("echo '{rule}' > {file}"), 30).map(|_| ())
    }

    /// It as a unit of this type, which may do all: by its node of sg, or as a disk.
    pub(crate) fn unit_of(&self, kind: &'static str, name: &str) -> Result<Disk> {
        let node = if kind == "block" { self.block(name)? } else { self.sg(name)? };
        Ok(Disk::passed(kind, node).set("allow", "all"))
    }

    /// Runs a shell text on the host, where all is as in a guest.
    pub(crate) fn host(&self, script: &str, seconds: u64) -> Result<String> {
        let words = ["chroot", ROOT, "/bin/busybox", "env", "PATH=/bin", "/bin/sh", "-c", script];
        let output = self.bed.host().run(&words, Duration::from_secs(seconds))?;
        ensure!(output.status.success(), "{}: {script}\n{}", output.status, output.text);
        Ok(output.text)
    }
}

fn serve(bed: &Bed, program: &str, unit: &str) -> Result<Process> {
    let words = [program, unit, unit].map(str::to_string).to_vec();
    let mut process = bed.host().start(&Launch { words, ..Launch::default() })?;
    match process.next(Duration::from_secs(30))? {
        Event::Output(_) => Ok(process),
        other => bail!("the {unit} is not served: {other:?}"),
    }
}

fn remove(bed: &Bed) -> Result<()> {
    bed.host().shell(&format!("{PLACES}{REMOVE}"), 60).map(|_| ())
}

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        drop(remove(self.bed).inspect_err(|error| note(&format!("{error:#}"))));
    }
}
