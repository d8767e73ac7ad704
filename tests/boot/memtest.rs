//! memtest86+: a guest that is no Linux, drives every processor itself and touches all of memory.

use anyhow::{Result, ensure};
use testbed::bed::Bed;
use testbed::grub::Terminal;
use testbed::guest::{Disk, Vmm};
use testbed::kernel::Debian;
use testbed::vm::Vm;

/// Waits are for an emulated processor on a busy machine.
const PATIENCE: u64 = 300;
/// Leaves the tests: the machine resets.
const ESCAPE: &[u8] = b"\x1b";
/// Moves to the menu's second entry and takes it.
const SECOND_ENTRY: &[u8] = b"\x1b[B\r";

/// The builds for 64-bit and for 32-bit processors, of one release each.
pub(crate) fn direct(bed: &Bed, vmm: Vmm) -> Result<()> {
    for (debian, bits) in [(Debian::Trixie, 64), (Debian::Bookworm, 32)] {
        let image = bed.prepared().grub(debian)?.memtest(bits);
        let guest = bed.guest().vmm(vmm).kernel(debian).boot_image(&image.to_string_lossy());
        let guest = guest.cmdline("console=ttyS0,115200 nosm nobench").cpus(2).memory("64MiB");
        let mut vm = guest.option("--no-reboot").spawn()?;
        tests_pass(&mut vm)?;
        vm.send_bytes(ESCAPE)?;
        vm.expect_exit(2, PATIENCE)?;
    }
    Ok(())
}

/// From a disk, by way of SeaBIOS and GRUB's menu, and back to the BIOS.
pub(crate) fn disk(bed: &Bed, vmm: Vmm) -> Result<()> {
    let debian = Debian::Trixie;
    let disk = Disk::debian_grub(debian, Terminal::Serial);
    let guest = bed.guest().vmm(vmm).kernel(debian).seabios().cpus(2).memory("64MiB");
    let mut vm = guest.disk(disk).spawn()?;
    vm.wait_for_drawn("Booting from Hard Disk...", PATIENCE)?;
    vm.wait_for_drawn("Memory test", PATIENCE)?;
    vm.send_bytes(SECOND_ENTRY)?;
    tests_pass(&mut vm)?;
    vm.send_bytes(ESCAPE)?;
    vm.wait_for_drawn("Booting from Hard Disk...", PATIENCE)
}

/// The first tests run, on all processors, and find nothing.
fn tests_pass(vm: &mut Vm<'_>) -> Result<()> {
    vm.wait_for_drawn("Memtest86+ v", PATIENCE)?;
    let from = vm.console().len();
    vm.wait_for_drawn("[Moving inversions", PATIENCE)?;
    vm.wait_for_drawn("All Cores", PATIENCE)?;
    vm.wait_for_drawn("Errors: ", PATIENCE)?;
    let console = vm.console();
    let shown = console.get(from..).unwrap_or_default();
    let none = |found: &str| found.trim_start().starts_with("0 ") || found.trim_start().starts_with('\x1b');
    let mut counts = shown.split("Errors: ").skip(1).filter(|found| found.len() > 8);
    ensure!(counts.all(none) && !shown.contains("FAIL"), "memory errors:\n{shown}");
    Ok(())
}
