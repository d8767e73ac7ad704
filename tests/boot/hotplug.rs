//! Disks that come, grow and go while the machine runs, asked for at the control socket.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testbed::bed::Bed;
use testbed::guest::Guest;
use testbed::{paths, vm::Vm};

use super::virtio_soak::footprint;

/// Where the images come from: the machine's own directory.
pub(crate) const IMAGES: &str = "--set=security.directories=['.']";

/// Where the guest finds the disk, which is at target 5.
pub(crate) struct Place {
    /// The channel of its driver.
    pub(crate) channel: u32,
    /// The guest has to be asked to look at the size: its driver never hears of it.
    pub(crate) rescans: bool,
}

/// A disk comes, is written, grows, and goes in the middle of reads, again and again, while the guest reads another,
/// which is at target 0.
pub(crate) fn run(bed: &Bed, guest: Guest<'_>, place: &Place, rounds: u32) -> Result<()> {
    let Place { channel, rescans } = *place;
    let look = if rescans { "echo 1 > $place/device/rescan" } else { "true" };
    let script = format!(
        "(while :; do
              echo 1 > /proc/sys/vm/drop_caches
              dd if=/dev/at/0:{channel}:0:0 of=/dev/null bs=64k count=64 2>/dev/null || echo READ FAILED
          done) &
         reader=$!
         place=/sys/class/scsi_device/0:{channel}:5:0
         i=0
         echo HOTPLUG READY
         while [ $i -lt {rounds} ]; do
             until ls $place/device/block/*/size >/dev/null 2>&1; do sleep 0.1; done
             name=$(ls $place/device/block)
             until [ -b /dev/$name ]; do sleep 0.1; done
             echo round $i > /tmp/text
             dd if=/tmp/text of=/dev/$name bs=512 conv=sync,fsync 2>/dev/null || echo WRITE FAILED
             echo \"SEEN $i $(cat /sys/block/$name/size)\"
             until [ \"$(cat /sys/block/$name/size)\" = 65536 ]; do sleep 0.1; {look}; done
             for n in 1 2 3 4; do (while dd if=/dev/$name of=/dev/null bs=64k iflag=direct 2>/dev/null; do :; done) & eval p$n=$!; done
             echo \"GREW $i\"
             while [ -e $place ]; do sleep 0.1; done
             wait $p1 $p2 $p3 $p4
             echo \"GONE $i\"
             i=$((i + 1))
         done
         kill $reader
         ! ls /sys/class/scsi_device | grep 0:{channel}:5"
    );
    let mut vm = guest.option("--set=control.path=control.sock").option(IMAGES).script(&script).spawn()?;
    vm.wait_for("HOTPLUG READY", 300)?;
    let image = format!("{}/plugged.img", vm.dir());
    let (mut came, mut went) = (Duration::ZERO, Duration::ZERO);
    for round in 0..rounds {
        bed.host().shell(&format!("rm -f {image}; truncate -s 16M {image}"), 30)?;
        let start = Instant::now();
        ask(bed, &vm, "attach", "\"image\": \"plugged.img\", \"target\": 5, \"cache\": \"none\"")?;
        vm.wait_for(&format!("SEEN {round} 32768"), 120)?;
        came = came.max(start.elapsed());
        let text = bed.host().shell(&format!("head -c 16 {image} | tr -d '\\0'"), 30)?;
        ensure!(text.trim() == format!("round {round}"), "the image has {text:?}");
        if round == 0 {
            ask(bed, &vm, "pause", "")?;
            let status = ask(bed, &vm, "query-status", "")?;
            ensure!(status.contains("\"paused\""), "not paused: {status}");
            ask(bed, &vm, "resume", "")?;
        }
        ask(bed, &vm, "resize", "\"target\": 5, \"size\": 33554432")?;
        vm.wait_for(&format!("GREW {round}"), 120)?;
        let start = Instant::now();
        ask(bed, &vm, "detach", "\"target\": 5")?;
        vm.wait_for(&format!("GONE {round}"), 120)?;
        went = went.max(start.elapsed());
        let open = format!("ls -l /proc/{}/fd 2>/dev/null | grep -c plugged || true", vm.pid());
        let open = bed.host().shell(&open, 30)?;
        ensure!(open.trim() == "0", "the image of a detached disk is still open");
    }
    println!(
        "  {rounds} rounds; slowest from request to written {came:.1?}, from request to gone {went:.1?}"
    );
    vm.wait_for("TESTBED EXIT 0", 120)?;
    ensure!(!vm.console().contains("FAILED"), "an operation failed");
    vm.expect_exit(0, 60)
}

/// Disks that one round of [`many`] attaches, on targets 1 and up.
const AT_ONCE: u32 = 20;

/// Many disks come at once, are written and read, and go in the middle of reads, until it was `disks` of them, while the guest
/// reads another. Neither memory nor descriptors of the VMM grow.
pub(crate) fn many(bed: &Bed, guest: Guest<'_>, disks: u32) -> Result<()> {
    let rounds = disks.div_ceil(AT_ONCE);
    let script = format!(
        "(while :; do
              echo 1 > /proc/sys/vm/drop_caches
              dd if=/dev/at/0:0:0:0 of=/dev/null bs=64k count=64 2>/dev/null || echo READ FAILED
          done) &
         reader=$!
         devices() {{ ls -d /sys/class/scsi_device/0:0:[1-9]*:0/device/block/* 2>/dev/null; }}
         i=0
         echo HOTPLUG READY
         while [ $i -lt {rounds} ]; do
             tries=0
             until [ $(devices | wc -l) = {AT_ONCE} ]; do
                 sleep 0.2
                 tries=$((tries + 1))
                 if [ $tries = 200 ]; then
                     echo \"ONLY $(devices | wc -l) of {AT_ONCE}\"; ls -d /sys/class/scsi_device/* /sys/class/scsi_device/*/device/block/*; cat /sys/class/scsi_device/*/device/state
                     echo w > /proc/sysrq-trigger; dmesg | tail -60
                 fi
             done
             for place in $(devices); do
                 name=${{place##*/}}
                 until [ -b /dev/$name ]; do sleep 0.1; done
                 echo round $i > /tmp/text
                 dd if=/tmp/text of=/dev/$name bs=512 conv=sync,fsync 2>/dev/null || echo WRITE FAILED
                 (while dd if=/dev/$name of=/dev/null bs=64k iflag=direct 2>/dev/null; do :; done) &
             done
             echo \"SEEN $i.\"
             while [ -n \"$(devices)\" ]; do sleep 0.2; done
             echo \"GONE $i.\"
             i=$((i + 1))
         done
         kill $reader
         # The VMM is looked at once more.
         sleep 20
         ! ls -d /sys/class/scsi_device/0:0:[1-9]*:0"
    );
    let mut vm = guest.option("--set=control.path=control.sock").option(IMAGES).script(&script).spawn()?;
    vm.wait_for("HOTPLUG READY", 300)?;
    let dir = vm.dir().to_string();
    let mut early = (0, 0);
    for round in 0..rounds {
        let images =
            format!("for n in $(seq {AT_ONCE}); do rm -f {dir}/many$n; truncate -s 4M {dir}/many$n; done");
        bed.host().shell(&images, 30)?;
        for target in 1..=AT_ONCE {
            let arguments = format!("\"image\": \"many{target}\", \"target\": {target}, \"cache\": \"none\"");
            ask(bed, &vm, "attach", &arguments)?;
        }
        vm.wait_for(&format!("SEEN {round}."), 300)?;
        let wanted = format!("grep -l '^round {round}$' -a {dir}/many* | wc -l");
        let written = bed.host().shell(&wanted, 60)?;
        ensure!(written.trim() == AT_ONCE.to_string(), "{} of {AT_ONCE} images were written", written.trim());
        for target in 1..=AT_ONCE {
            ask(bed, &vm, "detach", &format!("\"target\": {target}"))?;
        }
        vm.wait_for(&format!("GONE {round}."), 300)?;
        if round == 1 {
            early = footprint(bed, &vm)?;
        }
    }
    let late = footprint(bed, &vm)?;
    println!("  {} disks; memory in KiB and descriptors: {early:?}, at the end {late:?}", rounds * AT_ONCE);
    ensure!(late.1 == early.1, "{early:?} became {late:?}: descriptors leak");
    ensure!(late.0 < early.0 + 512, "{early:?} became {late:?}: memory leaks");
    vm.wait_for("TESTBED EXIT 0", 120)?;
    ensure!(!vm.console().contains("FAILED"), "an operation failed");
    vm.expect_exit(0, 60)
}

/// Asks the control socket; the answer must be no error.
pub(crate) fn ask(bed: &Bed, vm: &Vm<'_>, command: &str, arguments: &str) -> Result<String> {
    let answer = ask_all(bed, vm, &[(command, arguments)], 60)?;
    ensure!(answer.contains("\"return\""), "{command} {arguments}: {answer}");
    Ok(answer)
}

/// Sends all requests in one packet and returns the answers, whatever they say, a line each.
pub(crate) fn ask_all(bed: &Bed, vm: &Vm<'_>, requests: &[(&str, &str)], seconds: u64) -> Result<String> {
    let program = paths::program()?.to_string_lossy().into_owned();
    let mut words = vec![program, "ask".into(), format!("{}/control.sock", vm.dir())];
    words.extend(requests.iter().map(|(command, arguments)| {
        format!("{{\"execute\": \"{command}\", \"arguments\": {{{arguments}}}}}")
    }));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output = bed.host().run(&words, Duration::from_secs(seconds))?;
    ensure!(output.status.success(), "{requests:?}: {}", output.text);
    Ok(output.text)
}
