//! The guest's own module beside a disk whose host does not answer: its commands' time is over again and again, and the adapter's other
//! disks go on, at the same port and at another one.

use std::time::Instant;

use anyhow::{Result, ensure};
use testbed::bed::Bed;
use testbed::guest::{Disk, Vmm};
use testbed::kernel::Debian;
use testbed::report::note;
use testbed::vm::Vm;

use super::fc_guest::{address, guest, keys, shell};
use super::fc_module::{self, FUNCTIONS, with_module};
use super::mapper::Mapped;

const PORT: &str = "2100000000000a01";
/// The disk that hangs, and others of the adapter, each a target and a LUN.
const HUNG: (u32, u32) = (0, 0);
const OTHERS: [(u32, u32); 2] = [(0, 5), (1, 0)];
/// A disk at the other port that loses a command, and how many reads the first one has then: more than there is room for functions.
const LOSES: (u32, u32) = (1, 3);
const READS: u32 = 48;
/// Seconds after which the time of the command that is lost is over.
const LOSES_TIME: u64 = 10;
/// Seconds after which a command's time is over, in which the guest aborts it, resets its unit and goes on to wait.
const TIME: u64 = 5;
/// Seconds in which the others have to answer beside it: hosts are busy.
const BOUND: u64 = 20;

pub(crate) fn hung(bed: &Bed, vmm: Vmm) -> Result<()> {
    if vmm == Vmm::Qemu {
        return Ok(());
    }
    let device = Mapped::whole(bed, "fchung", 64)?;
    let loses = Mapped::whole(bed, "fcloses", 64)?;
    let at = |disk: Disk, (target, lun): (u32, u32)| {
        disk.set("target", i64::from(target)).set("lun", i64::from(lun))
    };
    let mut guest =
        with_module(bed, guest(bed, "web"), Debian::Trixie)?.hba_key("fc", keys(PORT, &["emulated=true"])?);
    guest = guest.disk(at(Disk::file(&device.path()).cache("none"), HUNG));
    guest = guest.disk(at(Disk::file(&loses.path()).cache("none"), LOSES));
    for other in OTHERS {
        guest = guest.disk(at(Disk::empty("64M"), other));
    }
    let mut vm = guest.spawn()?;
    shell(&mut vm)?;
    vm.run(FUNCTIONS)?;
    vm.run("load")?;
    let done = steps(&device, &mut vm).and_then(|()| lost(&device, &loses, &mut vm));
    if done.is_err() {
        note(&format!("the guest's log:\n{}", vm.run("dmesg | tail -n 100").unwrap_or_default()));
    }
    done?;
    fc_module::quiet(&mut vm)?;
    vm.send("poweroff -f\n")?;
    vm.expect_exit(0, 60)
}

fn steps(device: &Mapped<'_>, vm: &mut Vm<'_>) -> Result<()> {
    let hung = address(0, HUNG.0, HUNG.1);
    let others = OTHERS.map(|(target, lun)| address(0, target, lun)).join(" ");
    let said = vm.run(&format!(
        "for at in {hung} {others}; do within 150 \"there $at && read_one $at\" || echo NOT THERE $at; done
         echo {TIME} > $(at {hung})/timeout && head -c 65536 /dev/zero > /tmp/zeros"
    ))?;
    ensure!(!said.contains("NOT THERE"), "{said}");
    device.suspend()?;
    vm.run(&format!(
        "disk=$(disk {hung})
         for n in 1 2 3 4; do (dd if=$disk of=/dev/null bs=4k count=1 skip=$((n * 100)) iflag=direct 2>/dev/null; echo $? > /tmp/ended$n) & done
         (dd if=/tmp/zeros of=$disk bs=64k count=1 seek=8 oflag=direct 2>/dev/null; echo $? > /tmp/ended5) & true"
    ))?;
    // Through abort, reset of the unit, and what follows.
    for round in 0..4 {
        let begin = Instant::now();
        vm.run_for(
            &format!(
                "sleep {TIME}; for at in {others}; do
                     read_one $at && dd if=/tmp/zeros of=$(disk $at) bs=64k count=1 oflag=direct 2>/dev/null || echo FAILED $at
                 done; ls /tmp/ended* 2>/dev/null | wc -l"
            ),
            TIME + BOUND,
        )
        .and_then(|said| {
            note(&format!("round {round}: other disks answered after {:.1} s", begin.elapsed().as_secs_f64()));
            // What hangs is nobody else's memory: nothing of it has ended.
            ensure!(said.trim() == "0", "beside a disk that hangs: {said}");
            Ok(())
        })?;
    }
    device.resume()?;
    let said = vm.run_for(
        "within 600 '[ -e /tmp/ended5 -a $(ls /tmp/ended* | wc -l) = 5 ]'; echo CODES $(cat /tmp/ended*)",
        90,
    )?;
    let codes = said.lines().find_map(|line| line.trim().strip_prefix("CODES "));
    // Sent again they succeed, unless the midlayer's patience for all attempts together is over by then.
    note(&format!("the disk answers again: its commands end with {codes:?}"));
    let codes: Vec<_> = codes.unwrap_or_default().split(' ').collect();
    ensure!(codes.len() == 5 && codes.iter().all(|code| matches!(*code, "0" | "1")), "they end with {said}");
    vm.run(&format!("read_one {hung}")).map(drop)
}

/// Beside a disk that hangs with many commands, one that is lost at another port is aborted when its time is over, and sent again;
/// nothing is reset for it.
fn lost(device: &Mapped<'_>, loses: &Mapped<'_>, vm: &mut Vm<'_>) -> Result<()> {
    let (hung, at) = (address(0, HUNG.0, HUNG.1), address(0, LOSES.0, LOSES.1));
    device.suspend()?;
    vm.run(&format!(
        "within 150 'there {at}' && read_one {at} && echo {LOSES_TIME} > $(at {at})/timeout
         for n in $(seq {READS}); do (dd if=$disk of=/dev/null bs=4k count=1 skip=$((n * 50)) iflag=direct 2>/dev/null; echo $? >> /tmp/read) & done
         sleep {}",
        TIME + 3
    ))?;
    loses.suspend()?;
    vm.run(&format!(
        "resets() {{ dmesg | grep {at} | grep -c 'reset occurred'; }}; before=$(resets)
         sent=$(cat $(at {at})/iorequest_cnt); (read_one {at}; echo $? > /tmp/lost) & sleep {}",
        LOSES_TIME + 4
    ))?;
    loses.resume()?;
    let said = vm.run(&format!(
        "within 200 '[ -e /tmp/lost ]'
         echo LOST $(cat /tmp/lost), sent $(($(cat $(at {at})/iorequest_cnt) - sent)) times, resets: $(($(resets) - before))"
    ))?;
    note(&format!("a command that was lost beside a disk that hangs: {}", said.trim()));
    ensure!(said.contains("LOST 0, sent 2 times, resets: 0"), "it is to be aborted once: {said}");
    device.resume()?;
    vm.run_for(&format!("within 900 '[ $(wc -l < /tmp/read) = {READS} ]' && read_one {hung}"), 120).map(drop)
}
