//! The SCSI layer as sg3_utils and fio see it from a stock guest: what the tools print, and what is in the image.

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::extras;
use testbed::fio::Fio;
use testbed::guest::{Disk, Guest, Vmm};
use testbed::kernel::Debian;
use testbed::vm::Vm;

use super::messages;

/// Begins a script: `t NAME COMMAND...` prints the command's output between marks, with its exit code.
const HEAD: &str = r#"d=$(readlink -f /dev/at/0:0:0:0)
    t() {
        name=$1; shift
        echo "BEGIN $name"
        "$@" 2>&1
        echo "END $name $?"
    }
    b() { head -c "$2" /dev/zero | tr '\0' "\\$1"; }
"#;

/// What one `t` of a script printed, and its exit code.
fn section<'a>(output: &'a str, name: &str) -> Result<(&'a str, i32)> {
    let missing = || format!("the guest did not run {name}:\n{output}");
    let (_, rest) = output.split_once(&format!("BEGIN {name}\n")).with_context(missing)?;
    let (text, rest) = rest.split_once(&format!("END {name} ")).with_context(missing)?;
    let code = rest.split_whitespace().next().and_then(|code| code.parse().ok());
    Ok((text, code.with_context(missing)?))
}

/// Checks that a command ended with `code` and printed all of `words`, each on some line.
fn expect(output: &str, name: &str, code: i32, words: &[&str]) -> Result<()> {
    let (text, ended) = section(output, name)?;
    ensure!(ended == code, "{name} ended with {ended}, not {code}:\n{text}");
    let absent: Vec<_> = words.iter().filter(|word| !text.contains(**word)).collect();
    ensure!(absent.is_empty(), "{name} did not print {absent:?}:\n{text}");
    Ok(())
}

/// Everything a disk tells about itself.
pub(crate) fn identity(bed: &Bed, vmm: Vmm) -> Result<()> {
    let script = format!(
        "{HEAD}
         t inquiry sg_inq $d
         t versions sg_inq -d $d
         t pages sg_vpd $d
         for page in 0x00 0x80 0x83 0x86 0x87 0x8f 0xb0 0xb1 0xb2; do t vpd-$page sg_vpd -l -p $page $d; done
         t rate sg_vpd -H -p 0xb1 $d
         t no-page sg_raw -r 8 $d 12 01 d0 00 08 00
         t capacity10 sg_readcap $d
         t capacity16 sg_readcap -l $d
         t codes sg_opcodes --rctd $d
         t one-code sg_opcodes --opcode=0x28 $d
         t functions sg_opcodes --tmf $d
         t modes sg_modes -a $d
         t mode-caching sg_modes -p 8 $d
         wce=ff,ff,4,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0
         t wce-off sg_wr_mode -p 8 -c 8,12,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0 -m $wce $d
         t mode-uncached sg_modes -p 8 $d
         t cannot sg_wr_mode -p 8 -c 8,12,4,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0 $d
         t wce-on sg_wr_mode -p 8 -c 8,12,4,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0 -m $wce $d
         t mode-recached sg_modes -p 8 $d
         t logs sg_logs -a $d
         t luns sg_luns $d
         t ready sg_raw $d 00 00 00 00 00 00
         t requests sg_requests $d
         t reset sg_reset -d $d
         t attention sg_raw $d 00 00 00 00 00 00
         t defects sg_raw -r 8 $d 37 00 18 00 00 00 00 00 08 00
         t results sg_copy_results -p $d
         {}",
        messages::SHOW
    );
    let disk = Disk::empty("1G")
        .set("serial", "SN-77")
        .set("wwn", "5000c50012345678")
        .set("rotation_rate", 7200)
        .set("discard", true);
    let guest = bed.guest().vmm(vmm).disk(disk).archive(extras::sg_wr_mode()?).script(&script);
    let output = guest.spawn()?.finish_script(300)?;
    expect(&output, "inquiry", 0, &["version=0x06", "3PC=1"])?;
    expect(&output, "versions", 0, &["SPC-4", "SBC-3"])?;
    expect(&output, "pages", 0, &["[di]", "[bl]", "[bdc]", "[lbpv]", "[tpc]", "[ei]", "[mpp]"])?;
    for page in ["0x00", "0x80", "0x83", "0x86", "0x87", "0x8f", "0xb0", "0xb1", "0xb2"] {
        expect(&output, &format!("vpd-{page}"), 0, &[])?;
    }
    expect(&output, "vpd-0x80", 0, &["SN-77"])?;
    expect(
        &output,
        "vpd-0x83",
        0,
        &[
            "0x5000c50012345678",
            "naa.5000C50012345678",
            "IEEE identifier: 0xc500012345678",
            "Relative target port: 0x1",
        ],
    )?;
    expect(
        &output,
        "vpd-0xb0",
        0,
        &[
            "Write same non-zero (WSNZ): 1",
            "Maximum compare and write length: 0x80",
            "Maximum transfer length: 0x10000",
            "Maximum unmap LBA count: 0x100000",
            "Maximum unmap block descriptor count: 0x100",
        ],
    )?;
    // Of sg3_utils 1.48, sg_vpd prints a rotation rate only when there is none, and sg_turs sends nothing. 7200 is 1c20h.
    expect(&output, "rate", 0, &["00 b1 00 3c 1c 20"])?;
    let thin = ["LBPU=1", "LBPWS=1", "LBPWS10=1", "LBPRZ=0x1", "Provisioning type: thin provisioned"];
    expect(&output, "vpd-0xb2", 0, &thin)?;
    expect(&output, "no-page", 5, &[])?;
    expect(&output, "capacity10", 0, &["Last LBA=2097151", "Logical block length=512 bytes"])?;
    expect(&output, "capacity16", 0, &["lbpme=1, lbprz=1", "Last LBA=2097151"])?;
    let codes = ["Compare and write", "Extended copy", "Populate token", "Format Unit"];
    expect(&output, "codes", 0, &codes)?;
    // A file guarantees no write as a whole, and nobody can tell that nothing is left of data below an image.
    let (codes, _) = section(&output, "codes")?;
    ensure!(!codes.contains("Write atomic") && !codes.contains("Sanitize"), "promised too much:\n{codes}");
    expect(&output, "one-code", 0, &["28 1e ff ff ff ff 3f ff ff"])?;
    expect(&output, "functions", 0, &["Abort task", "Logical unit reset", "Query task"])?;
    expect(&output, "modes", 0, &["Caching", "Control", "Power condition"])?;
    expect(&output, "wce-off", 0, &[])?;
    expect(&output, "wce-on", 0, &[])?;
    // 5 is sg3_utils' exit code for ILLEGAL REQUEST: a value that is not changeable.
    expect(&output, "cannot", 5, &[])?;
    let caching = |name| section(&output, name).map(|(text, _)| text);
    ensure!(caching("mode-caching")? != caching("mode-uncached")?, "WCE did not change");
    ensure!(caching("mode-caching")? == caching("mode-recached")?, "WCE did not come back");
    expect(&output, "logs", 0, &["Supported log pages"])?;
    expect(&output, "luns", 0, &["0000000000000000"])?;
    for name in ["ready", "requests", "reset", "defects"] {
        expect(&output, name, 0, &[])?;
    }
    expect(&output, "attention", 6, &["Bus device reset function occurred"])?;
    expect(&output, "results", 0, &["Held data limit"])?;
    messages::check(&output)
}

/// Commands that change the medium, and what they leave in the image.
pub(crate) fn medium(bed: &Bed, vmm: Vmm) -> Result<()> {
    let script = format!(
        "{HEAD}
         b 101 1048576 > /tmp/a; b 102 512 > /tmp/b; b 102 4096 > /tmp/b8; b 101 512 > /tmp/one; cat /tmp/one /tmp/b > /tmp/swap
         t fill dd if=/tmp/a of=$d bs=1M oflag=direct
         t same sg_write_same --lba 16 --num 8 --in /tmp/b --10 $d
         t same-16 sg_write_same --lba 32 --num 8 --in /tmp/b --16 $d
         t same-zero sg_write_same --lba 64 --num 64 --unmap --in /dev/zero --16 $d
         t unmap sg_unmap --lba 256 --num 256 $d
         t mapped sg_get_lba_status --lba 0 $d
         t unmapped sg_get_lba_status --lba 256 $d
         t swap sg_compare_and_write --lba 2 --in /tmp/swap --num 1 --xferlen 1024 $d
         t swap-again sg_compare_and_write --lba 2 --in /tmp/swap --num 1 --xferlen 1024 $d
         t verify sg_verify --lba 0 --count 2048 $d
         t verify-same sg_verify --lba 16 --count 8 --in /tmp/b --ndo 512 --ebytchk 3 $d
         t verify-other sg_verify --lba 3 --count 1 --in /tmp/b --ndo 512 $d
         t sync sg_sync $d
         t beyond sg_verify --lba 0x200000 --count 1 --16 $d
         t copy sg_xcopy if=/dev/sg0 of=/dev/sg0 skip=16 seek=1024 count=8 bs=512
         t atomic sg_write_x --atomic=0 --lba=1104 --num=8 --in=/tmp/b8 --16 $d
         t stop sg_start --stop $d
         t stopped sg_turs $d
         t start sg_start --start $d
         t keys-register sg_persist --out --register --param-sark=0xabc $d
         t keys sg_persist -k $d
         t reserve sg_persist --out --reserve --param-rk=0xabc --prout-type=5 $d
         t reservation sg_persist -r $d
         t capabilities sg_persist -c $d
         t full sg_persist -s $d
         t clear sg_persist --out --clear --param-rk=0xabc $d
         {}",
        messages::SHOW
    );
    let disk = Disk::empty("1G").set("discard", true).set("physical_block_size", 4096);
    let mut vm = bed.guest().vmm(vmm).disk(disk).script(&script).spawn()?;
    let output = vm.finish_script(300)?;
    for name in ["fill", "same", "same-16", "same-zero", "unmap", "swap", "verify", "verify-same", "sync"] {
        expect(&output, name, 0, &[])?;
    }
    expect(&output, "mapped", 0, &["mapped"])?;
    expect(&output, "unmapped", 0, &["deallocated"])?;
    // Exit codes of sg3_utils: 14 for MISCOMPARE, 22 for an LBA out of range.
    expect(&output, "swap-again", 14, &[])?;
    expect(&output, "verify-other", 14, &[])?;
    expect(&output, "beyond", 22, &[])?;
    // Exit code 9 of sg3_utils: the operation code is not supported. A file guarantees no write as a whole.
    expect(&output, "atomic", 9, &[])?;
    for name in ["copy", "stop", "start", "keys-register", "reserve", "full", "clear"] {
        expect(&output, name, 0, &[])?;
    }
    expect(&output, "keys", 0, &["0xabc"])?;
    expect(&output, "reservation", 0, &["Write Exclusive, registrants only"])?;
    let head = format!("{}/head", vm.dir());
    bed.host().shell(&format!("dd if={}/disk0.raw of={head} bs=1M count=1 2>/dev/null", vm.dir()), 60)?;
    let bytes = bed.host().get(&head)?;
    for (lba, byte) in [
        (0, b'A'),
        (2, b'B'),
        (3, b'A'),
        (15, b'A'),
        (16, b'B'),
        (23, b'B'),
        (24, b'A'),
        (32, b'B'),
        (40, b'A'),
        (64, 0),
        (127, 0),
        (128, b'A'),
        (255, b'A'),
        (256, 0),
        (511, 0),
        (512, b'A'),
        (1023, b'A'),
        (1024, b'B'),
        (1031, b'B'),
        (1032, b'A'),
        (1104, b'A'),
        (1111, b'A'),
    ] {
        let block = bytes.get(lba * 512..(lba + 1) * 512).context("the image is too short")?;
        ensure!(
            block.iter().all(|b| *b == byte),
            "block {lba} is not full of {byte:#x}: {:02x?}",
            block.get(..8)
        );
    }
    messages::check(&output)
}

/// FORMAT UNIT runs in the background, says how far it is, and leaves what it promises. SANITIZE is refused: 9 is
/// sg3_utils' exit code for an invalid operation code.
pub(crate) fn wipe(bed: &Bed, vmm: Vmm) -> Result<()> {
    let script = format!(
        "{HEAD}
         b 101 1048576 > /tmp/a
         t fill dd if=/tmp/a of=$d bs=1M oflag=direct
         t block sg_sanitize --block --quick --wait $d
         t crypto sg_sanitize --crypto --quick --wait $d
         t kept cmp -n 1048576 $d /tmp/a
         t format sg_format --format --wait --quick $d
         t formatted cmp -n 67108864 $d /dev/zero
         {}",
        messages::SHOW
    );
    let disk = Disk::empty("64M").set("discard", true);
    let mut vm = bed.guest().vmm(vmm).disk(disk).script(&script).spawn()?;
    let output = vm.finish_script(600)?;
    for (name, code) in
        [("fill", 0), ("block", 9), ("crypto", 9), ("kept", 0), ("format", 0), ("formatted", 0)]
    {
        expect(&output, name, code, &[])?;
    }
    messages::check(&output)
}

/// A disk whose space can be given back.
fn thin(size: &str, block: i64) -> Disk {
    Disk::empty(size).set("discard", true).set("block_size", block).set("physical_block_size", 4096)
}

/// A guest with fio in which two initiators at once write with checksums over raw and qcow2, with blocks of 512 and 4096
/// bytes, random lengths and alignments; afterwards everything is read again.
fn verifier<'a>(bed: &'a Bed, vmm: Vmm, options: &str, ending: &str) -> Result<Guest<'a>> {
    let mut script = String::from("set -e\n");
    for (target, block) in [(0, 512), (1, 4096), (2, 512), (3, 4096)] {
        script.push_str(&format!(
            "d=$(readlink -f /dev/at/0:0:{target}:0)
             for half in 0 1; do
                 fio --name=v$half --filename=$d --offset=$((half * 64))m --size=32m --direct=1 --rw=randwrite --bsrange={block}-192k \
                     --blockalign={block} --iodepth=16 --ioengine=libaio --thread --verify=crc32c \
                     --verify_fatal=1 --do_verify=1 {options} --randseed=$((half + {target} * 7)) --output-format=terse > /tmp/fio$half 2>&1 &
                 eval job$half=$!
             done
             wait $job0 && wait $job1 || {{ cat /tmp/fio0 /tmp/fio1; exit 1; }}
             echo \"VERIFIED {target} $(cut -s -d';' -f5 /tmp/fio0 /tmp/fio1 | tr '\\n' ' ')\"
"
        ));
    }
    script.push_str(ending);
    let guest = bed.guest().vmm(vmm).cpus(2).memory("1GiB").archive(Fio::prepare()?.archive()?);
    let guest = guest.disk(thin("128M", 512)).disk(thin("128M", 4096));
    let guest = guest.disk(thin("128M", 512).qcow2()).disk(thin("128M", 4096).qcow2());
    Ok(guest.script(&script))
}

/// fio with checksums where everything goes well.
pub(crate) fn verify(bed: &Bed, vmm: Vmm) -> Result<()> {
    let mut vm = verifier(bed, vmm, "", messages::SHOW)?.spawn()?;
    let output = vm.finish_script(900)?;
    for target in 0..4 {
        ensure!(
            output.contains(&format!("VERIFIED {target} 0 0")),
            "target {target}: fio found errors: {output}"
        );
    }
    check_qcow2(bed, &vm, &["disk2", "disk3"])?;
    messages::check(&output)
}

/// The same on a host where operations fail, come short and take long: what fails says so, and nothing else is wrong.
pub(crate) fn mischief(bed: &Bed, vmm: Vmm) -> Result<()> {
    // What fio was told has failed it does not look for. 61 is ENODATA: Linux says that of a medium error.
    // Since it counts writes that failed, the seeds it expects in the headers of later ones are those of others; no place is
    // written twice, so that old bytes would be zeros, without a header.
    let ending = "dmesg | grep -o 'Sense Key : [A-Za-z ]*' | sort | uniq -c";
    let options = "--continue_on_error=io --ignore_error=EIO:61,EIO:ENOSPC --verify_header_seed=0";
    let guest = verifier(bed, vmm, options, ending)?.mischief(27);
    let mut vm = guest.spawn()?;
    let output = vm.finish_script(900)?;
    println!("{output}");
    for target in 0..4 {
        // fio ends well, though it names the first of its errors.
        ensure!(output.contains(&format!("VERIFIED {target} ")), "target {target}: {output}");
    }
    // The guest's kernel does not print every failure.
    ensure!(output.contains("Sense Key"), "the guest saw no sense data: {output}");
    for line in ["reading", "writing", "Input/output error", "No space left on device"] {
        ensure!(vm.errors().contains(line), "the log does not say {line:?}: {}", vm.errors());
    }
    check_qcow2(bed, &vm, &["disk2", "disk3"])
}

/// fio with checksums over a block device of the host that takes 127 KiB at once, with requests of up to 1 MiB; in the end the
/// device holds what the guest reads.
pub(crate) fn pieces(bed: &Bed, vmm: Vmm) -> Result<()> {
    let host = bed.host();
    let device = "/dev/nullb0";
    let limit = host.shell(
        &format!(
            "[ -e {device} ] || modprobe null_blk nr_devices=1 memory_backed=1 gb=1 bs=512 hw_queue_depth=256
             cat /sys/block/nullb0/queue/max_sectors_kb"
        ),
        60,
    )?;
    ensure!(limit.trim() == "127", "the device takes {} KiB at once", limit.trim());
    let script = "set -e
         d=$(readlink -f /dev/at/0:0:0:0)
         fio --name=v --filename=$d --size=256m --direct=1 --rw=randwrite --bsrange=4k-1m --blockalign=4k --iodepth=16 \
             --ioengine=libaio --thread --verify=crc32c --verify_fatal=1 --do_verify=1 --output-format=terse > /tmp/fio || { cat /tmp/fio; exit 1; }
         echo VERIFIED; sync
         dd if=$d bs=1M count=256 iflag=direct 2>/dev/null | md5sum";
    let guest = bed.guest().vmm(vmm).archive(Fio::prepare()?.archive()?).disk(Disk::file(device));
    let output = guest.script(script).spawn()?.finish_script(600)?;
    ensure!(output.contains("VERIFIED"), "{output}");
    let sum = host.shell(&format!("dd if={device} bs=1M count=256 2>/dev/null | md5sum"), 120)?;
    ensure!(output.contains(sum.trim()), "the device has {sum}, the guest read {output}");
    Ok(())
}

/// qemu-img finds nothing wrong with images of a machine that has ended.
fn check_qcow2(bed: &Bed, vm: &Vm<'_>, disks: &[&str]) -> Result<()> {
    let check = bed.prepared().tools().words("qemu-img", "qemu-img", None)?.join(" ");
    for disk in disks {
        bed.host().shell(&format!("{check} check {}/{disk}.qcow2", vm.dir()), 60)?;
    }
    Ok(())
}

/// The conformance tests of libiscsi, with data loss, but for those that need iSCSI.
fn libiscsi_on(bed: &Bed, vmm: Vmm, disk: Disk) -> Result<()> {
    // Of libiscsi 1.20, ReportLUNs crashes on anything that is no iSCSI session, OneCommand has no room for CDBs of more than
    // 16 bytes, and WriteAtomic16.Simple does not ask how much can be written at once. A request with more pages than the
    // queue has descriptors is refused by the guest's own driver, which some tests take for one that went well.
    let script = "d=$(readlink -f /dev/at/0:0:0:0)
         for test in $(iscsi-test-cu --list | grep -x 'SCSI\\.[A-Za-z0-9]*\\.[A-Za-z0-9]*'); do
             case $test in *.ReportLUNs.* | *.OneCommand | *.WriteAtomic16.Simple) continue;; esac
             echo \"TEST $test\"
             iscsi-test-cu --dataloss --allow-sanitize --ignore --normal --test $test $d 2>&1 | grep -v '^ *$'
         done";
    let guest = bed.guest().vmm(vmm).hba_key("queue_size", 1024).disk(disk);
    let output = guest.archive(extras::libiscsi_tests()?).script(script).spawn()?.finish_script(1500)?;
    let tests: Vec<&str> = output.split("TEST SCSI.").skip(1).collect();
    ensure!(
        tests.len() > 200 && tests.iter().all(|test| test.contains("Run Summary")),
        "ended early:\n{output}"
    );
    // Some tests send more than the guest's own driver takes for one request, 32 MiB and more.
    let (refused, others): (Vec<&str>, Vec<&str>) =
        tests.iter().partition(|test| test.contains("SG_IO ioctl failed"));
    let failed: Vec<_> = others.into_iter().filter(|test| test.contains("[FAILED]")).collect();
    let skipped = tests.iter().filter(|test| test.contains("[SKIPPED]")).count();
    println!("libiscsi: {} tests; {skipped} were skipped, {} too large", tests.len(), refused.len());
    ensure!(failed.is_empty(), "libiscsi:\n{}", failed.join("\n"));
    ensure!(refused.len() < 40, "the guest refused too many:\n{}", refused.join("\n"));
    Ok(())
}
pub(crate) fn libiscsi(bed: &Bed, vmm: Vmm) -> Result<()> {
    // GetLBAStatus.UnmapSingle asks for single blocks and wants to hear of whole physical ones: so they are the same.
    libiscsi_on(bed, vmm, thin("64M", 512).set("physical_block_size", 512))
}

pub(crate) fn libiscsi_4096(bed: &Bed, vmm: Vmm) -> Result<()> {
    libiscsi_on(bed, vmm, thin("64M", 4096).qcow2())
}

/// What a file system trims is free at the host.
pub(crate) fn files(bed: &Bed, vmm: Vmm) -> Result<()> {
    let guest = bed.guest().vmm(vmm).kernel(Debian::Trixie).cpus(2).disk(Disk::debian_root(Debian::Trixie));
    let guest = guest.disk(thin("1G", 512));
    let mut vm = guest.spawn()?;
    vm.wait_for("login: ", 1200)?;
    vm.login("root")?;
    vm.run("ln -s $(ls -d /sys/bus/scsi/devices/*:1:0/block/*) /tmp/t1")?;
    vm.run("d=/dev/$(basename $(readlink /tmp/t1)); lsblk -D $d; mkfs.ext4 -q -F $d && mount $d /mnt")?;
    vm.run_for("dd if=/dev/urandom of=/mnt/f bs=1M count=200 && sync", 300)?;
    let used = |bed: &Bed, dir: &str| -> Result<u64> {
        let text = bed.host().shell(&format!("du -k {dir}/disk1.raw"), 60)?;
        text.split_whitespace().next().and_then(|n| n.parse().ok()).context("du")
    };
    let before = used(bed, vm.dir())?;
    let trimmed = vm.run_for("rm /mnt/f; sync; fstrim -v /mnt", 120)?;
    let after = used(bed, vm.dir())?;
    println!("{before} KiB before fstrim, {after} KiB after: {}", trimmed.trim());
    ensure!(before > 200 << 10, "the file is not in the image: {before} KiB");
    ensure!(after < before - (190 << 10), "{before} KiB became {after} KiB after {trimmed}");
    let messages = vm.run(messages::SHOW)?;
    vm.send("poweroff\n")?;
    vm.expect_exit(0, 180)?;
    messages::check(&messages)
}
