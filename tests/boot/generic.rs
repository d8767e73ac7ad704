//! Devices of the host that guests get whole: what programs in the guest hear of them is, byte for byte, what the same programs
//! hear on the host.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use testbed::bed::Bed;
use testbed::cpio::Archive;
use testbed::extras;
use testbed::fio::Fio;
use testbed::guest::{Disk, Guest, HbaKind, Vmm};
use testbed::kernel::Debian;
use testbed::report::note;
use testbed::vm::Vm;

use super::messages;
use super::passed::Passed;

/// The same on both sides. `t NAME COMMAND` keeps what a command prints and its exit code, `unit NODE` says which device comes next,
/// `sums` prints the sum of each thing kept.
const FUNCTIONS: &str = r#"
    T=/tmp/tour; d=/tmp/unit; n=/dev/nst0
    t() { name=$1; shift; { eval "$*"; echo "code $?"; } > $T/$name 2>&1; }
    unit() { rm -rf $T; mkdir -p $T; ln -sfn $1 $d; sg_raw $d 00 00 00 00 00 00 >/dev/null 2>&1; }
    sums() { for file in $T/*; do echo "SUM ${file##*/} $(md5sum < $file | cut -d' ' -f1)"; done; }
    hex() { od -An -v -tx1 | tr -d ' \n'; }
"#;

/// What is asked of each device.
const ANY: &str = r#"
    t inquiry 'sg_inq -H $d'
    t pages 'sg_vpd -a -H $d | grep -v "^Block limits VPD"'
    t no-page 'sg_raw -r 64 $d 12 01 d1 00 40 00'
    t unknown 'sg_raw -r 64 $d c5 00 00 00 00 00'
    t short 'sg_raw -r 255 $d 12 00 00 00 ff 00'
    t ready 'sg_raw $d 00 00 00 00 00 00'
    t requests 'sg_requests -H $d'
"#;

/// A disk. Of its block limits all but lengths of transfers is the same, which is looked at elsewhere.
const DISK: &str = r#"
    t pages 'sg_vpd -a -H $d | sed "/^Block limits VPD/,/^$/d"'
    t modes 'sg_modes -a $d'
    t logs 'sg_logs -a -H $d'
    t codes 'sg_opcodes -H -H $d; sg_opcodes --rctd $d'
    t functions 'sg_opcodes --tmf -H $d'
    t capacity 'sg_readcap -l -H $d; sg_readcap $d'
    t smart 'smartctl -d scsi -x $d | grep -v "^Local Time\|^smartctl"'
    t read 'sg_raw -r 4096 $d 28 00 00 00 00 10 00 00 08 00'
    t beyond 'sg_raw -r 4096 $d 28 00 ff ff ff ff 00 00 08 00'
    t long 'sg_raw -r 65536 -o /tmp/long $d 88 00 00 00 00 00 00 00 00 07 00 00 00 80 00 00; md5sum < /tmp/long'
    t keys 'sg_persist -k $d; sg_persist -r $d; sg_persist -s $d; sg_persist -c $d'
"#;

/// An enclosure.
const ENCLOSURE: &str = r#"
    t services 'sg_ses -p 0 $d; sg_ses -p 1 -H $d; sg_ses -p 2 -H $d'
    t none 'sg_ses -p 0x0a $d'
    t join 'sg_ses --join $d'
"#;

/// A tape, which both sides fill anew: records of 3000 and 100 bytes, a filemark, blocks of 512 bytes with an archive, by the
/// driver of tapes; then each way to read a record is tried with bare commands. (Of what was not read the loopback target says as
/// if it had been, without any data.)
const TAPE: &str = r#"
    seq 1 2000 | head -c 3000 > /tmp/data; touch -d '2026-01-01 00:00:00' /tmp/data
    t variable 'mt -f $n rewind; mt -f $n setblk 0; dd if=/tmp/data of=$n bs=3000 2>/dev/null'
    t more 'head -c 100 /tmp/data | dd of=$n bs=100 2>/dev/null; mt -f $n eof'
    t fixed 'mt -f $n setblk 512; cd /tmp; tar -cf whole data; dd if=whole of=$n obs=10240 conv=sync 2>/dev/null'
    t limits 'sg_read_block_limits $d'
    t archive 'mt -f $n rewind; mt -f $n fsf 3; dd if=$n ibs=10240 of=/tmp/back 2>/dev/null; tar -xOf /tmp/back | md5sum'
    t position 'sg_raw -r 20 $d 34 00 00 00 00 00 00 00 00 00'
    t same 'mt -f $n rewind; mt -f $n setblk 0; dd if=$n bs=64k count=1 2>/dev/null | md5sum'
    t longer 'mt -f $n rewind; sg_raw -r 65536 $d 08 00 01 00 00 00'
    t shorter 'mt -f $n rewind; sg_raw -r 100 $d 08 00 00 00 64 00'
    t silent 'mt -f $n rewind; sg_raw -r 65536 $d 08 02 01 00 00 00'
    t exact 'mt -f $n rewind; sg_raw -r 3000 $d 08 00 00 0b b8 00'
    t mark 'sg_raw -r 100 $d 08 00 00 00 64 00 2>&1 | sed /^Received/q'
    t blocks 'mt -f $n rewind; mt -f $n fsf 3; mt -f $n setblk 512; sg_raw -r 1024 $d 08 01 00 00 02 00'
    t back 'sg_raw $d 11 01 ff ff fe 00; sg_raw -r 20 $d 34 00 00 00 00 00 00 00 00 00'
    t end 'mt -f $n eom; sg_raw -r 512 $d 08 01 00 00 01 00 2>&1 | sed /^Received/q'
    t rewound 'mt -f $n rewind; mt -f $n bsf 1; sg_raw $d 11 00 ff ff fe 00'
    t density 'sg_modes -a $d'
"#;

/// A changer, which is afterwards as it was: what it has, where that can go, and what cannot be done.
const CHANGER: &str = r#"
    t elements 'sg_raw -r 4096 $d b8 10 00 00 ff ff 00 00 10 00 00 00'
    t drives 'sg_raw -r 4096 $d b8 04 00 00 00 08 01 00 10 00 00 00'
    t modes 'sg_modes -a $d; sg_raw -r 24 $d 1a 08 1d 00 18 00'
    t initialize 'sg_raw $d 07 00 00 00 00 00'
    t status 'mtx -f $d inquiry; mtx -f $d status'
    t load 'mtx -f $d load 2 0; mtx -f $d status'
    t occupied 'sg_raw $d a5 00 00 00 00 10 00 30 00 00 00 00'
    t empty 'sg_raw $d a5 00 00 00 00 11 00 13 00 00 00 00'
    t unload 'mtx -f $d unload 2 0; mtx -f $d status'
    t transfer 'mtx -f $d transfer 1 5; mtx -f $d status; mtx -f $d transfer 5 1'
    t exchange 'sg_raw $d a6 00 00 00 00 10 00 11 00 10 00 00; mtx -f $d status; sg_raw $d a6 00 00 00 00 10 00 11 00 10 00 00'
    t locked 'sg_raw $d 1e 00 00 00 01 00; mtx -f $d transfer 1 5; sg_raw $d 1e 00 00 00 00 00'
    t nowhere 'sg_raw $d a5 00 00 00 00 10 00 77 00 00 00 00'
    t after 'mtx -f $d status'
"#;

/// The devices, with the type of unit, where they are in the guest, and what is asked of them.
const UNITS: [(&str, &str, u32, &str); 7] = [
    ("debug0", "generic", 0, DISK),
    ("debug1", "block", 1, DISK),
    ("disk", "generic", 2, DISK),
    ("enclosure", "generic", 3, ENCLOSURE),
    ("tape", "generic", 4, TAPE),
    ("other", "block", 5, DISK),
    ("changer", "generic", 6, CHANGER),
];
/// Those of them that the host asks meanwhile.
const SHARED: [&str; 4] = ["disk", "other", "enclosure", "changer"];

pub(crate) fn virtio(bed: &Bed, vmm: Vmm) -> Result<()> {
    run(bed, vmm, Debian::Trixie, HbaKind::Virtio, "on")
}

pub(crate) fn megasas(bed: &Bed, vmm: Vmm) -> Result<()> {
    run(bed, vmm, Debian::Bookworm, HbaKind::Megasas, "off")
}

pub(crate) fn virtio_without_sandbox(bed: &Bed, vmm: Vmm) -> Result<()> {
    run(bed, vmm, Debian::Bookworm, HbaKind::Virtio, "off")
}

/// What guests have beside the quick initramfs, and what they do with it.
pub(crate) fn archives(bed: &Bed, debian: Debian) -> Result<Vec<PathBuf>> {
    let prepared = bed.prepared();
    let mut archive = Archive::default();
    archive.file("functions", 0o644, FUNCTIONS.as_bytes());
    for (name, _, _, tour) in UNITS {
        archive.file(&format!("tour-{name}"), 0o644, format!("{ANY}{tour}").as_bytes());
    }
    let file = format!("{}/tours", bed.new_dir()?);
    bed.host().put(&file, &archive.finish())?;
    Ok(vec![
        extras::passed(prepared.kernel(debian)?, prepared.tools())?,
        extras::smartctl()?,
        extras::mtx()?,
        extras::odd()?,
        Fio::prepare()?.archive()?,
        file.into(),
    ])
}

/// A guest with these, whose shell is waited for by [`shell`].
pub(crate) fn guest<'a>(bed: &'a Bed, vmm: Vmm, debian: Debian, archives: &[PathBuf]) -> Guest<'a> {
    let guest = bed.guest().vmm(vmm).kernel(debian).cpus(2).megasas("mode", "jbod").quick_shell();
    archives.iter().fold(guest, |guest, archive| guest.archive(archive.clone()))
}

/// Waits for the guest, whose shell then knows how to find units: `sg TARGET` and `disk TARGET` print nodes.
pub(crate) fn shell(vm: &mut Vm<'_>) -> Result<()> {
    vm.quick_shell()?;
    vm.run(". /functions; for module in $(cat /modules.passed); do insmod $module 2>/dev/null; done")?;
    vm.run("at() { echo /sys/class/scsi_device/0:0:$1:0/device; }")?;
    vm.run("sg() { echo /dev/$(ls $(at $1)/scsi_generic); }; disk() { echo /dev/$(ls $(at $1)/block); }")?;
    Ok(())
}

/// All that is quick, with units of both types. In the sandbox most commands go by sg, since the kernel filters what goes by block devices; without it all go by
/// those, where there is one.
fn run(bed: &Bed, vmm: Vmm, debian: Debian, hba: HbaKind, sandbox: &str) -> Result<()> {
    let archives = archives(bed, debian)?;
    let passed = Passed::new(bed, &archives)?;
    let random = "dd if=/dev/urandom of=NODE bs=1M count=16 oflag=direct 2>/dev/null; ";
    for (name, _, _, _) in UNITS.iter().filter(|(_, _, _, tour)| *tour == DISK) {
        bed.host().shell(&random.replace("NODE", passed.block(name)?), 60)?;
    }
    let said = Said::of(&passed, hba)?;
    let mut guest = guest(bed, vmm, debian, &archives);
    if vmm == Vmm::Ours {
        guest = guest.option(&format!("--set=security.sandbox={sandbox}"));
    }
    for (name, kind, _, _) in UNITS {
        let mut disk = passed.unit_of(kind, name)?;
        if vmm == Vmm::Ours && ["disk", "other"].contains(&name) {
            let wwn = bed.host().shell(&format!("cat {}/wwid", passed.sysfs(name)?), 30)?;
            disk = Disk::passed(kind, "").set("wwn", wwn.trim()).set("allow", "all");
        }
        if SHARED.contains(&name) {
            disk = disk.set("shared", true);
        }
        guest = guest.disk(disk.on(hba));
    }
    let mut vm = guest.spawn()?;
    shell(&mut vm)?;
    let mut faults = Vec::new();
    for (name, _, target, _) in UNITS {
        if let Err(error) = compare(&mut vm, &said, name, target, &mut faults) {
            faults.push(format!("{name}: {error:#}"));
        }
    }
    for (name, _, target, _) in UNITS.iter().filter(|(_, _, _, tour)| *tour == DISK) {
        limits(&said, &mut vm, name, *target, &mut faults)?;
    }
    note(&format!("REPORT LUNS in the guest: {}", vm.run("sg_luns -H $(sg 0)")?.trim()));
    let seen = [
        reservations(&passed, &mut vm, "disk", 2),
        reservations(&passed, &mut vm, "other", 5),
        lamps(&passed, &mut vm),
        cartridges(&passed, &mut vm),
    ];
    faults.extend(seen.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")));
    if hba == HbaKind::Virtio {
        for target in [0, 1] {
            reset(&mut vm, target, sandbox == "off", &mut faults)?;
        }
    }
    verify(&passed, &mut vm, &[("debug0", 0), ("debug1", 1)], "--size=4m --bsrange=512-256k", &mut faults)?;
    ensure!(faults.is_empty(), "{}\nthe log:\n{}", faults.join("\n"), vm.errors());
    let said = vm.run(messages::SHOW)?;
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 120)?;
    messages::check(&said)
}

/// What the devices said on the host before the guest had them.
struct Said {
    /// By device and question, the sum.
    sums: BTreeMap<String, BTreeMap<String, String>>,
    /// Of disks, the page of block limits, and the kernel's of the queue.
    limits: BTreeMap<String, String>,
    /// Where the guest has the devices.
    hba: HbaKind,
}

impl Said {
    fn of(passed: &Passed<'_>, hba: HbaKind) -> Result<Self> {
        let mut said = Self { sums: BTreeMap::new(), limits: BTreeMap::new(), hba };
        for (name, _, _, tour) in UNITS {
            let node = passed.sg(name)?;
            let script = format!(". /functions; unit {node}; . /tour-{name}; sums");
            said.sums.insert(name.into(), sums(&passed.host(&script, 120)?));
            if tour == DISK {
                let queue = passed.block(name)?.replace("/dev/", "/sys/block/") + "/queue";
                let script = format!(
                    ". /functions; echo $(sg_vpd --raw -p bl {node} | hex) $(cat {queue}/max_hw_sectors_kb {queue}/max_segments)"
                );
                said.limits.insert(name.into(), passed.host(&script, 60)?);
            }
        }
        Ok(said)
    }
}

fn sums(output: &str) -> BTreeMap<String, String> {
    let sum = |line: &str| {
        let mut words = line.trim().strip_prefix("SUM ")?.split(' ').map(str::to_string);
        Some((words.next()?, words.next()?))
    };
    output.lines().filter_map(sum).collect()
}

/// Answers that are shorter than what was asked for: the driver of MegaRAID SAS boards tells nobody the residual, so that programs
/// take all of their memory for the answer.
const RESIDUALS: [&str; 6] = ["short", "requests", "longer", "silent", "elements", "drives"];

/// Asks a device in the guest, and notes what is not as on the host.
fn compare(vm: &mut Vm<'_>, said: &Said, name: &str, target: u32, faults: &mut Vec<String>) -> Result<()> {
    let host = said.sums.get(name).context("a device that was not asked")?;
    let here = sums(&vm.run_for(&format!("unit $(sg {target}); . /tour-{name}; sums"), 180)?);
    ensure!(host.len() > 5 && here.keys().eq(host.keys()), "the guest asked {:?}", here.keys());
    for (question, _) in host.iter().filter(|(question, sum)| here.get(*question) != Some(sum)) {
        if said.hba == HbaKind::Megasas && RESIDUALS.contains(&question.as_str()) {
            continue;
        }
        let heard = vm.run(&format!("head -c 3000 $T/{question}"))?;
        note(&format!("{name}, {question}: the guest heard\n{heard}"));
        faults.push(format!("{name}: {question} is not as on the host"));
    }
    note(&format!("{name}: {} answers compared", host.len()));
    Ok(())
}

/// Block limits (SBC-4, 6.6.4) are those of the device, and of its queue where that takes less.
fn limits(said: &Said, vm: &mut Vm<'_>, name: &str, target: u32, faults: &mut Vec<String>) -> Result<()> {
    let there = said.limits.get(name).context("no limits")?;
    let here = vm.run(&format!("sg_vpd --raw -p bl $(sg {target}) | hex"))?;
    let words: Vec<&str> = there.split_whitespace().collect();
    let [page, kib, segments] = &*words else { bail!("no limits: {there}") };
    let queue = (kib.parse::<u64>()? * 1024).min(segments.parse::<u64>()? * 4096);
    // On a megasas adapter `bounce` is the default: all goes through 4 MiB of the process.
    let most = if said.hba == HbaKind::Megasas { queue.min(4 << 20) } else { queue } / 512;
    let (device, guest) = (bytes(page)?, bytes(here.trim())?);
    let field = |page: &[u8], from: usize, len: usize| {
        page.iter().skip(from).take(len).fold(0, |value, byte| value << 8 | u64::from(*byte))
    };
    ensure!(device.len() == guest.len(), "{name}: {page} became {}", here.trim());
    let mut masked = guest.clone();
    // Targets leave off the end.
    for (from, len) in [(5, 1), (8, 4), (12, 4), (44, 4)].into_iter().filter(|(from, _)| *from < guest.len())
    {
        let (device_has, guest_has) = (field(&device, from, len), field(&guest, from, len));
        // For the longest transfer, 0 says that there is no limit.
        let wanted = if from == 8 && device_has == 0 { most } else { device_has.min(most) };
        if guest_has != wanted {
            faults.push(format!(
                "{name}: byte {from} of the block limits is {guest_has}, not {wanted} (device {device_has}, queue {most})"
            ));
        }
        masked.iter_mut().zip(&device).skip(from).take(len).for_each(|(to, from)| *to = *from);
    }
    if masked != device {
        faults.push(format!("{name}: of the block limits {page} became {}", here.trim()));
    }
    Ok(())
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    let digits: Vec<char> = hex.chars().collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16);
    digits.chunks(2).map(byte).collect::<Result<_, _>>().with_context(|| format!("no digits: {hex}"))
}

/// A reservation of the guest is one for the host.
fn reservations(passed: &Passed<'_>, vm: &mut Vm<'_>, name: &str, target: u32) -> Result<()> {
    vm.run(&format!("sg_persist --out --register --param-sark=0xabc $(sg {target})"))?;
    vm.run(&format!("sg_persist --out --reserve --param-rk=0xabc --prout-type=5 $(sg {target})"))?;
    let node = passed.sg(name)?;
    let said = passed.host(&format!("sg_persist -k {node}; sg_persist -r {node}"), 60)?;
    ensure!(said.contains("0xabc") && said.contains("Write Exclusive, registrants only"), "{said}");
    vm.run(&format!("sg_persist --out --clear --param-rk=0xabc $(sg {target})"))?;
    let said = passed.host(&format!("sg_persist -k {node}"), 60)?;
    ensure!(said.contains("NO registered reservation keys"), "the guest's clear left {said}");
    Ok(())
}

/// A lamp that the guest lights is lit for the host.
fn lamps(passed: &Passed<'_>, vm: &mut Vm<'_>) -> Result<()> {
    let node = passed.sg("enclosure")?;
    for (word, lit) in [("--set", "Ident=1"), ("--clear", "Ident=0")] {
        vm.run(&format!("sg_ses --index=0,1 {word}=ident $(sg 3)"))?;
        let said = passed.host(&format!("sg_ses -p 2 --index=0,1 {node}"), 60)?;
        ensure!(said.contains(lit), "not {lit} after {word}: {said}");
    }
    Ok(())
}

/// What the guest moves the host sees moved, and the other way round. The guest's own driver of changers has it as well.
fn cartridges(passed: &Passed<'_>, vm: &mut Vm<'_>) -> Result<()> {
    let node = passed.sg("changer")?;
    let loaded = "Data Transfer Element 0:Full (Storage Element 3 Loaded):VolumeTag = BED003L8";
    vm.run("mtx -f $(sg 6) load 3 0")?;
    let said = passed.host(&format!("mtx -f {node} status; mtx -f {node} unload 4 0"), 60)?;
    ensure!(said.contains(loaded), "the guest's load is for the host {said}");
    let said = vm.run("mtx -f $(sg 6) status; mtx -f $(sg 6) transfer 4 3; ls $(at 6)/scsi_changer")?;
    ensure!(
        said.contains("Storage Element 4:Full :VolumeTag=BED003L8"),
        "the host's unload is for the guest {said}"
    );
    ensure!(said.contains("sch0"), "the guest has no driver for it: {said}");
    let said = passed.host(&format!("mtx -f {node} status"), 60)?;
    ensure!(
        said.contains("Storage Element 3:Full :VolumeTag=BED003L8"),
        "the guest's transfer is for the host {said}"
    );
    Ok(())
}

/// A reset of the unit is answered, and the guest hears that it was one. It reaches the device if the process has the right to do so;
/// else the log says that it does not.
fn reset(vm: &mut Vm<'_>, target: u32, reaches: bool, faults: &mut Vec<String>) -> Result<()> {
    let ready = format!("sg_raw $(sg {target}) 00 00 00 00 00 00");
    vm.run(&ready)?;
    let (said, code) = vm.run_code(&format!("sg_reset -N -d $(sg {target}) && {ready}"), 60)?;
    let heard = code == 6 && said.contains("Sense key: Unit Attention") && said.contains("reset");
    if !heard || vm.errors().contains("the device is not reset") == reaches {
        faults.push(format!("after a reset of {target}: {code}: {said}"));
    }
    // The device may have to say so as well.
    vm.run_code(&ready, 60).map(|_| ())
}

/// fio with checksums, random lengths and alignments, on all of these at once: no error in the guest, none on the host, and what
/// the host reads is what the guest reads.
pub(crate) fn verify(
    passed: &Passed<'_>,
    vm: &mut Vm<'_>,
    units: &[(&str, u32)],
    options: &str,
    faults: &mut Vec<String>,
) -> Result<()> {
    let errors = |passed: &Passed<'_>| -> Result<String> {
        let counts: Result<Vec<_>> =
            units.iter().map(|(name, _)| Ok(format!("{}/ioerr_cnt", passed.sysfs(name)?))).collect();
        passed.host(&format!("cat {}", counts?.join(" ")), 30)
    };
    let before = errors(passed)?;
    let mut script = String::new();
    for (_, target) in units {
        script += &format!(
            "fio --name=v{target} --filename=$(disk {target}) --direct=1 --rw=randwrite --blockalign=512 --iodepth=16 \
             --ioengine=libaio --thread --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed={target} {options} \
             --output-format=terse > /tmp/fio{target} 2>&1 || {{ cat /tmp/fio{target}; echo FIO FAILED; }} &\n"
        );
    }
    script += "wait\n";
    for (_, target) in units {
        script += &format!("echo \"VERIFIED {target} $(cut -s -d';' -f5 /tmp/fio{target})\"\n");
        script += &format!("dd if=$(disk {target}) bs=1M count=4 iflag=direct 2>/dev/null | md5sum\n");
    }
    let said = vm.run_for(&format!("({script})"), 600)?;
    for (name, target) in units {
        if !said.contains(&format!("VERIFIED {target} 0")) || said.contains("FAILED") {
            faults.push(format!("{name}: fio found errors: {said}"));
        }
        let node = passed.block(name)?;
        let sum =
            passed.host(&format!("dd if={node} bs=1M count=4 iflag=direct 2>/dev/null | md5sum"), 60)?;
        if !said.contains(sum.trim()) {
            faults.push(format!("{name}: the host reads {sum}, the guest {said}"));
        }
    }
    let after = errors(passed)?;
    if before != after {
        faults.push(format!("the host's devices counted errors: {before} became {after}"));
    }
    Ok(())
}
