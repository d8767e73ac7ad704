//! Discs in a CD drive: mounted, locked, ejected, changed, with the guest's own tools.

use anyhow::{Result, ensure};
use testbed::bed::Bed;
use testbed::extras;
use testbed::guest::{Disk, HbaKind, Vmm};
use testbed::kernel::Debian;
use testbed::report::note;
use testbed::tools::Tools;
use testbed::vm::Vm;

use super::hotplug::{ask, ask_all};
use super::messages;

/// Bytes of a sector.
const SECTOR: usize = 2048;

/// The beginning of a disc of so many sectors with an ISO 9660 file system (ECMA-119) that has one file, `text`. The rest is zeros.
fn iso(sectors: u32, text: &str) -> Vec<u8> {
    let both_16 = |value: u16| [value.to_le_bytes(), value.to_be_bytes()].concat();
    let both_32 = |value: u32| [value.to_le_bytes(), value.to_be_bytes()].concat();
    // ECMA-119, 9.1: its length, where it is, how long, a date, whether it is a directory, and the name.
    let record = |sector: u32, len: usize, directory: bool, name: &[u8]| {
        let whole = (33 + name.len()).next_multiple_of(2);
        let mut record = vec![whole as u8, 0];
        record.extend([both_32(sector), both_32(len as u32)].concat());
        record.extend([125, 1, 1, 0, 0, 0, 0, if directory { 2 } else { 0 }, 0, 0]);
        record.extend(both_16(1));
        record.push(name.len() as u8);
        record.extend(name);
        record.resize(whole, 0);
        record
    };
    let mut disc = vec![0; 20 * SECTOR];
    let mut put = |sector: usize, at: usize, bytes: &[u8]| {
        disc.iter_mut().skip(sector * SECTOR + at).zip(bytes).for_each(|(to, from)| *to = *from);
    };
    // The primary volume descriptor and the end of the set (ECMA-119, 8.4 and 8.3).
    put(16, 0, b"\x01CD001\x01");
    put(16, 8, &[b' '; 64]);
    put(16, 40, b"DISC");
    put(16, 80, &both_32(sectors));
    put(16, 120, &[both_16(1), both_16(1), both_16(SECTOR as u16)].concat());
    put(16, 156, &record(18, SECTOR, true, &[0]));
    put(17, 0, b"\xffCD001\x01");
    let root = [
        record(18, SECTOR, true, &[0]),
        record(18, SECTOR, true, &[1]),
        record(19, text.len(), false, b"TEXT.;1"),
    ];
    put(18, 0, &root.concat());
    put(19, 0, text.as_bytes());
    disc
}

pub(crate) fn virtio(bed: &Bed, vmm: Vmm) -> Result<()> {
    run(bed, vmm, Debian::Trixie, HbaKind::Virtio)
}

pub(crate) fn megasas(bed: &Bed, vmm: Vmm) -> Result<()> {
    run(bed, vmm, Debian::Bookworm, HbaKind::Megasas)
}

/// The guest's commands to mount, and what it finds then.
const MOUNT: &str = "mount -t iso9660 -o ro $d /mnt && cat /mnt/text && cat /sys/block/sr0/size";
/// Discs of 300 and 400 sectors of 2048 bytes, in the kernel's of 512.
const FIRST: &str = "the first disc\n1200";
const SECOND: &str = "the second disc\n1600";

/// Puts a disc where guests run.
fn burn(bed: &Bed, file: &str, sectors: u32, text: &str) -> Result<()> {
    bed.host().put(file, &iso(sectors, text))?;
    bed.host().shell(&format!("truncate -s {} {file}", u64::from(sectors) * SECTOR as u64), 30).map(|_| ())
}

/// The same by Debian's xorriso, with Rock Ridge and Joliet.
fn author(bed: &Bed, file: &str, sectors: u32, text: &str) -> Result<()> {
    let words = Tools::of("xorriso", &["xorriso"])?.words("xorriso", "xorriso", None)?.join(" ");
    let script = format!(
        "set -e; mkdir -p {file}.d; printf '%s' '{text}' > {file}.d/text
         {words} -as mkisofs -quiet -no-pad -V DISC -R -J -o {file} {file}.d
         [ $(wc -c < {file}) -le {length} ]; truncate -s {length} {file}",
        length = u64::from(sectors) * SECTOR as u64
    );
    bed.host().shell(&script, 60).map(|_| ())
}

fn run(bed: &Bed, vmm: Vmm, debian: Debian, hba: HbaKind) -> Result<()> {
    let dir = bed.new_dir()?;
    let [first, second, third] = ["first", "second", "third"].map(|name| format!("{dir}/{name}.iso"));
    burn(bed, &first, 300, "the first disc\n")?;
    author(bed, &second, 400, "the second disc\n")?;
    burn(bed, &third, 600_000, "the third disc\n")?;
    let prepared = bed.prepared();
    let mut guest = bed
        .guest()
        .vmm(vmm)
        .kernel(debian)
        .megasas("mode", "jbod")
        .disk(Disk::empty("64M").on(hba))
        .disk(Disk::file(&first).cd().on(hba).set("target", 5))
        .archive(extras::discs(prepared.kernel(debian)?, prepared.tools())?)
        .quick_shell();
    for archive in extras::disc_programs()? {
        guest = guest.archive(archive);
    }
    if vmm == Vmm::Ours {
        guest = guest.option("--set=control.path=control.sock");
        guest = guest.option(&format!("--set=security.readonly_directories=['{dir}']"));
    }
    let mut vm = guest.spawn()?;
    vm.quick_shell()?;
    vm.run("for module in $(cat /modules.disc); do insmod $module 2>/dev/null; done; d=$(readlink -f /dev/at/0:0:5:0)")?;
    programs(&mut vm, 300, "CD-ROM")?;
    // QEMU's drive tells of no features of reading.
    if vmm == Vmm::Qemu {
        vm.send("poweroff -f\n")?;
        return vm.expect_exit(0, 120);
    }
    expect(&vm.run("sg_inq $d")?, &["PDT=5", "RMB=1", "VIRTUAL DVD-ROM"])?;
    expect(&vm.run("sg_get_config $d")?, &["CD read feature", "DVD read feature"])?;
    // What is read is what is on it.
    let sums = [vm.run("md5sum < $d")?, bed.host().shell(&format!("md5sum < {first}"), 30)?];
    ensure!(sums[0].trim() == sums[1].trim(), "{sums:?}");
    // Mounted, it is locked, and the guest hears that somebody wants it.
    vm.run("uevent env > /tmp/events 2>/dev/null & echo 500 > /sys/block/sr0/events_poll_msecs")?;
    expect(&vm.run(MOUNT)?, &[FIRST])?;
    state(bed, &vm, "closed", true)?;
    refused(bed, &vm, "eject", "")?;
    heard(&mut vm, "DISK_EJECT_REQUEST=1")?;
    refused(bed, &vm, "change", &format!(", \"image\": \"{second}\""))?;
    expect(&vm.run("cat /mnt/text; umount /mnt")?, &["the first disc"])?;
    // Out, in, and another one, of all of which the guest hears by itself.
    state(bed, &vm, "closed", false)?;
    ask(bed, &vm, "eject", "\"target\": 5")?;
    state(bed, &vm, "open", false)?;
    heard(&mut vm, "DISK_MEDIA_CHANGE=1")?;
    let (said, code) = vm.run_code("dd if=$d of=/dev/null count=1", 60)?;
    ensure!(code != 0, "an open tray was read: {said}");
    ask(bed, &vm, "insert", &format!("\"target\": 5, \"image\": \"{second}\", \"cache\": \"none\""))?;
    heard(&mut vm, "DISK_MEDIA_CHANGE=1")?;
    expect(&vm.run(MOUNT)?, &[SECOND])?;
    vm.run("umount /mnt")?;
    ask(bed, &vm, "change", &format!("\"target\": 5, \"image\": \"{first}\""))?;
    heard(&mut vm, "DISK_MEDIA_CHANGE=1")?;
    expect(&vm.run(MOUNT)?, &[FIRST])?;
    vm.run("umount /mnt")?;
    // One of the size of a DVD is a DVD.
    ask(bed, &vm, "change", &format!("\"target\": 5, \"image\": \"{third}\""))?;
    heard(&mut vm, "DISK_MEDIA_CHANGE=1")?;
    programs(&mut vm, 600_000, "DVD-ROM")?;
    ask(bed, &vm, "change", &format!("\"target\": 5, \"image\": \"{first}\""))?;
    heard(&mut vm, "DISK_MEDIA_CHANGE=1")?;
    // The guest opens the tray and closes it again; the disc has stayed in it.
    vm.run("sg_start --eject $d")?;
    state(bed, &vm, "open", false)?;
    vm.run("sg_start --load $d")?;
    expect(&vm.run(MOUNT)?, &[FIRST])?;
    // With force the disc goes whatever the guest says.
    ask(bed, &vm, "eject", "\"target\": 5, \"force\": true")?;
    state(bed, &vm, "open", false)?;
    vm.run("umount /mnt; killall uevent")?;
    messages::check(&vm.run(messages::SHOW)?)?;
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 120)
}

/// What programs for discs say of the one that is in the drive, and of the drive. What they ask goes by SCSI commands of their own.
fn programs(vm: &mut Vm<'_>, sectors: u32, profile: &str) -> Result<()> {
    let said = vm.run("isoinfo -d dev=$d && isoinfo -l dev=$d")?;
    note(&format!("isoinfo: {}", said.trim()));
    let size = format!("Volume size is: {sectors}");
    expect(&said, &["Volume id: DISC", "Logical block size is: 2048", &size, "TEXT.;1"])?;
    let said = vm.run("sg_get_config $d")?;
    note(&format!("sg_get_config: {}", said.trim()));
    expect(&said, &[&format!("Current profile: {profile}"), "Removable media feature"])?;
    let said = vm.run("sg_readcap $d && sg_raw -r 64 $d 43 00 00 00 00 00 00 00 40 00 2>&1")?;
    expect(&said, &[&format!("Number of logical blocks={sectors}"), "Logical block length=2048 bytes"])?;
    // It runs with real-time priority, of which the kernel would complain where a processor is emulated.
    let said = vm.run("echo -1 > /proc/sys/kernel/sched_rt_runtime_us; wodim -prcap dev=$d 2>&1")?;
    note(&format!("wodim -prcap: {}", said.trim()));
    expect(
        &said,
        &[
            "Removable CD-ROM",
            "Does read DVD-ROM media",
            "Does not write CD-R media",
            "Does not write DVD-R media",
            "Does allow media to be locked in the drive via PREVENT/ALLOW command",
            "Does support ejection of CD via START/STOP command",
            "Loading mechanism type: tray",
        ],
    )?;
    let (said, code) = vm.run_code("wodim -atip dev=$d 2>&1; wodim -toc dev=$d 2>&1", 60)?;
    note(&format!("wodim -atip, -toc: {code}: {}", said.trim()));
    expect(&said, &["first: 1 last 1", &format!("lout lba: {sectors:>9}")])
}

fn expect(output: &str, texts: &[&str]) -> Result<()> {
    let output = output.replace('\r', "");
    let missing: Vec<&&str> = texts.iter().filter(|text| !output.contains(**text)).collect();
    ensure!(missing.is_empty(), "{missing:?} is missing in:\n{output}");
    Ok(())
}

/// The guest's kernel tells of this within a few looks of its own; what it told before is forgotten.
fn heard(vm: &mut Vm<'_>, what: &str) -> Result<()> {
    let command = format!(
        "for turn in $(seq 100); do grep -q {what} /tmp/events && break; sleep 0.2; done; grep {what} /tmp/events; : > /tmp/events"
    );
    expect(&vm.run(&command)?, &[what])
}

/// How the tray is, as the control socket tells.
fn state(bed: &Bed, vm: &Vm<'_>, tray: &str, locked: bool) -> Result<()> {
    let hbas = ask(bed, vm, "query-hbas", "")?;
    expect(&hbas, &[&format!("\"tray\":\"{tray}\""), &format!("\"locked\":{locked}")])
}

/// The guest's lock stands against a request.
fn refused(bed: &Bed, vm: &Vm<'_>, command: &str, more: &str) -> Result<()> {
    let answer = ask_all(bed, vm, &[(command, &format!("\"target\": 5{more}"))], 60)?;
    expect(&answer, &["the guest has locked the drive at target 5 lun 0"])
}
