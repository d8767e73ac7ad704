//! Disks whose host kills, runs out of space, or cannot read: what the guest sees, and what is in the image afterwards.

use anyhow::{Context, Result, ensure};
use testbed::bed::Bed;
use testbed::guest::{Disk, Vmm};
use testbed::tools::Tools;
use testbed::vm::Vm;

const SIGTERM: i32 = 15;

/// Writes records of 4096 bytes one after the other, each stable before it is acknowledged, though not each acknowledgement
/// is printed; ends when one fails.
const RECORDS: &str = r#"d=$(readlink -f /dev/at/0:0:0:0)
    echo 0 > /sys/block/$(basename $d)/device/timeout 2>/dev/null
    i=0
    while printf 'record %-4089d' $i | dd of=$d bs=4096 seek=$((i * STRIDE)) oflag=direct conv=fsync 2>/dev/null; do
        [ $((i % 8)) -ne 0 ] || echo "acknowledged $i."
        i=$((i + 1))
        [ $i -lt LIMIT ] || break
    done
    [ $i -eq 0 ] || echo "acknowledged $((i - 1))."
    echo "ended at $i.""#;

fn records(stride: u32, limit: u32) -> String {
    RECORDS.replace("STRIDE", &stride.to_string()).replace("LIMIT", &limit.to_string())
}

/// The last record that the guest is known to have been told is stable.
fn acknowledged(console: &str) -> Option<u64> {
    let number = |line: &str| line.trim().strip_prefix("acknowledged ")?.strip_suffix('.')?.parse().ok();
    console.lines().filter_map(number).max()
}

/// Checks that records 0 to `last` are in the image, `stride` times 4096 bytes apart.
fn check_records(bed: &Bed, image: &str, last: u64, stride: u64) -> Result<()> {
    // One process for all: starting one takes its time on an emulated processor.
    const READ: &str = r#"open(F, "<", $ARGV[0]) or die; binmode F;
        for (0 .. $ARGV[1]) { seek(F, $_ * $ARGV[2] * 4096, 0); read(F, $b, 40); print "$b\n"; }"#;
    let text = bed.host().shell(&format!("perl -e '{READ}' {image} {last} {stride}"), 300)?;
    let found: Vec<Option<u64>> =
        text.lines().map(|line| line.strip_prefix("record ")?.trim().parse().ok()).collect();
    let missing: Vec<u64> = (0..=last).filter(|n| found.get(*n as usize) != Some(&Some(*n))).collect();
    ensure!(missing.is_empty(), "of {} acknowledged records these are missing: {missing:?}", last + 1);
    Ok(())
}

fn qemu_img(bed: &Bed) -> Result<String> {
    Ok(bed.prepared().tools().words("qemu-img", "qemu-img", None)?.join(" "))
}

/// Killed while it writes, a qcow2 image has everything that was acknowledged, and at most clusters too many.
pub(crate) fn qcow2_kill(bed: &Bed, vmm: Vmm) -> Result<()> {
    // Every record in another cluster, so that tables change with each.
    let guest = bed.guest().vmm(vmm).disk(Disk::empty("4G").qcow2());
    let mut vm = guest.script(&records(17, 100_000)).spawn()?;
    vm.wait_for("acknowledged 200.", 300)?;
    vm.kill()?;
    let last = acknowledged(&vm.console()).context("nothing was acknowledged")?;
    let (img, dir) = (qemu_img(bed)?, vm.dir());
    let said = bed.host().shell(&format!("{img} check {dir}/disk0.qcow2; echo code $?"), 60)?;
    println!("killed after {} records; qemu-img check: {}", last + 1, said.trim().replace('\n', "; "));
    ensure!(said.contains("code 0") || said.contains("code 3"), "the image is damaged: {said}");
    bed.host().shell(&format!("{img} convert -f qcow2 -O raw {dir}/disk0.qcow2 {dir}/disk0.raw"), 120)?;
    check_records(bed, &format!("{dir}/disk0.raw"), last, 17)
}

/// A small file system of the host with an image in it: its folder, and the image. Some 500 records of a page fit into either
/// kind of file, since what is not written of a cluster takes no space.
fn small_host(bed: &Bed, name: &str, qcow2: bool) -> Result<(String, Disk)> {
    let dir = format!("/run/testbed/{name}");
    let host = bed.host();
    host.shell(
        &format!("umount {dir} 2>/dev/null; mkdir -p {dir} && mount -t tmpfs -o size=2m small {dir}"),
        30,
    )?;
    let file = format!("{dir}/image");
    if qcow2 {
        host.shell(&format!("{} create -q -f qcow2 {file} 1G", qemu_img(bed)?), 30)?;
    } else {
        host.shell(&format!("truncate -s 1G {file}"), 30)?;
    }
    let disk = Disk::file(&file).cache("writeback");
    Ok((dir, if qcow2 { disk.qcow2() } else { disk }))
}

fn lines_with(vm: &Vm<'_>, text: &str) -> usize {
    vm.errors().lines().filter(|line| line.contains(text)).count()
}

/// A full host: the guest gets the sense data for it, the log one line, and what was acknowledged is there.
pub(crate) fn no_space(bed: &Bed, vmm: Vmm) -> Result<()> {
    for qcow2 in [false, true] {
        let (dir, disk) = small_host(bed, "full", qcow2)?;
        let script = format!(
            "{}
             for n in 1 2 3 4 5 6 7 8; do dd if=/dev/zero of=$d bs=1M seek=$((900 + n)) count=1 oflag=direct 2>/dev/null && echo FITS; done
             dd if=$d bs=4096 count=1 iflag=direct 2>/dev/null | head -c 9; echo
             dmesg | grep -A5 'FAILED Result' | head -12",
            records(16, 100_000)
        );
        let mut vm = bed.guest().vmm(vmm).disk(disk).script(&script).spawn()?;
        let output = vm.finish_script(300)?;
        let last = acknowledged(&output).context("nothing was acknowledged")?;
        println!("qcow2 {qcow2}: {} records fitted; the log:\n{}", last + 1, vm.errors().trim());
        ensure!(
            output.contains("Data Protect") && output.contains("Space allocation failed write protect"),
            "{output}"
        );
        ensure!(output.contains("record 0"), "what is there cannot be read: {output}");
        ensure!(lines_with(&vm, "No space left on device") == 1, "not one line in the log: {}", vm.errors());
        let image = format!("{dir}/image");
        if qcow2 {
            let img = qemu_img(bed)?;
            bed.host().shell(&format!("{img} check {image}"), 60)?;
            bed.host().shell(&format!("{img} convert -f qcow2 -O raw {image} {}/copy.raw", vm.dir()), 120)?;
            check_records(bed, &format!("{}/copy.raw", vm.dir()), last, 16)?;
        } else {
            check_records(bed, &image, last, 16)?;
        }
        bed.host().shell(&format!("umount {dir}"), 30)?;
    }
    Ok(())
}

/// With `on_no_space = "pause"` the guest sees nothing of a full host, and nothing is lost.
pub(crate) fn pause(bed: &Bed, vmm: Vmm) -> Result<()> {
    for qcow2 in [false, true] {
        let (dir, disk) = small_host(bed, "full", qcow2)?;
        let disk = disk.set("on_no_space", "pause");
        let mut vm = bed.guest().vmm(vmm).disk(disk).script(&records(16, 800)).spawn()?;
        wait_for_log(&mut vm, "the machine is paused", 300)?;
        let before = acknowledged(&vm.console()).context("nothing was acknowledged")?;
        ensure!(before < 700, "the host was not full");
        bed.host().shell(&format!("mount -o remount,size=200m {dir}"), 30)?;
        let output = vm.finish_script(300)?;
        ensure!(output.contains("ended at 800."), "{output}");
        ensure!(
            lines_with(&vm, "the machine is paused") == 1 && lines_with(&vm, "the machine goes on") == 1,
            "{}",
            vm.errors()
        );
        println!(
            "qcow2 {qcow2}: paused after {} of 800 records, and went on; the log:\n{}",
            before + 1,
            vm.errors().trim()
        );
        let image = format!("{dir}/image");
        if qcow2 {
            let img = qemu_img(bed)?;
            bed.host().shell(&format!("{img} check {image}"), 60)?;
            bed.host().shell(&format!("{img} convert -f qcow2 -O raw {image} {}/copy.raw", vm.dir()), 120)?;
            check_records(bed, &format!("{}/copy.raw", vm.dir()), 799, 16)?;
        } else {
            check_records(bed, &image, 799, 16)?;
        }
        bed.host().shell(&format!("umount {dir}"), 30)?;
    }
    Ok(())
}

/// A machine that waits for space can be stopped.
pub(crate) fn stop_while_paused(bed: &Bed, vmm: Vmm) -> Result<()> {
    let (dir, disk) = small_host(bed, "full", false)?;
    let disk = disk.set("on_no_space", "pause");
    let mut vm = bed.guest().vmm(vmm).disk(disk).script(&records(16, 800)).spawn()?;
    wait_for_log(&mut vm, "the machine is paused", 300)?;
    let last = acknowledged(&vm.console()).context("nothing was acknowledged")?;
    vm.send_signal(SIGTERM)?;
    let exit = vm.wait_exit(30)?;
    println!("stopped while paused: {exit:?}");
    check_records(bed, &format!("{dir}/image"), last, 16)?;
    bed.host().shell(&format!("umount {dir}"), 30)?;
    Ok(())
}

/// Waits for text on the VMM's standard error.
fn wait_for_log(vm: &mut Vm<'_>, text: &str, seconds: u64) -> Result<()> {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    while !vm.errors().contains(text) {
        ensure!(std::time::Instant::now() < end, "the log does not say {text:?}: {}", vm.errors());
        vm.next_output(std::time::Duration::from_secs(1))?;
    }
    Ok(())
}

/// A block device of the host with a part that cannot be read or written, another that is slow, and one in between, with
/// records written to all of it.
pub(crate) fn bad_sectors(bed: &Bed, vmm: Vmm) -> Result<()> {
    let dmsetup = Tools::of("dmsetup", &["dmsetup"])?.words("dmsetup", "dmsetup", None)?.join(" ");
    let host = bed.host();
    let table = "0 65536 linear $loop 0\n65536 8192 error\n73728 40960 delay $loop 73728 5 $loop 73728 8";
    host.shell(
        &format!(
            "modprobe dm-mod; modprobe dm-delay; truncate -s 64M /dev/shm/bad.img
             loop=$(losetup -f); losetup $loop /dev/shm/bad.img
             printf '{}\n' | sed \"s,LOOP,$loop,g\" | {dmsetup} create --noudevsync bad
             {dmsetup} mknodes; ls -l /dev/mapper/bad",
            table.replace("$loop", "LOOP")
        ),
        60,
    )?;
    let script = "d=$(readlink -f /dev/at/0:0:0:0)
         for part in 0 40; do
             dd if=/dev/zero bs=1M count=8 2>/dev/null | tr '\\0' 'A' | dd of=$d bs=64k seek=$((part * 16)) oflag=direct 2>/dev/null && echo \"WROTE $part\" &
         done
         dd if=/dev/zero of=$d bs=64k seek=512 count=16 oflag=direct 2>/dev/null || echo WRITE FAILED
         dd if=$d of=/dev/null bs=64k skip=512 count=16 iflag=direct 2>/dev/null || echo READ FAILED
         wait
         for part in 0 40; do
             [ \"$(dd if=$d bs=1M skip=$part count=8 iflag=direct 2>/dev/null | tr -d 'A' | wc -c)\" = 0 ] && echo \"SAME $part\"
         done
         dmesg | grep -A5 'FAILED Result' | head -20";
    let mut vm = bed.guest().vmm(vmm).disk(Disk::file("/dev/mapper/bad")).script(script).spawn()?;
    let output = vm.finish_script(300);
    let errors = vm.errors();
    drop(vm);
    host.shell(&format!("{dmsetup} remove --noudevsync bad; losetup -D; rm -f /dev/shm/bad.img"), 60)?;
    let output = output?;
    println!("the log:\n{}", errors.trim());
    for words in ["WRITE FAILED", "READ FAILED", "WROTE 0", "WROTE 40", "SAME 0", "SAME 40"] {
        ensure!(output.contains(words), "{words} is missing: {output}");
    }
    for words in ["Medium Error", "Write error", "Unrecovered read error"] {
        ensure!(output.contains(words), "{words} is missing: {output}");
    }
    let count = |text: &str| errors.lines().filter(|line| line.contains(text)).count();
    ensure!(count("reading") == 1 && count("writing") == 1, "not one line for each kind: {errors}");
    Ok(())
}
