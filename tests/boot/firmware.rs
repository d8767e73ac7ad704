//! Stock SeaBIOS boots disks with boot loaders.

use anyhow::{Result, ensure};
use testbed::bed::{Bed, build_tests};
use testbed::firmware::SEABIOS;
use testbed::grub::Terminal;
use testbed::guest::{Disk, Guest, Vmm};
use testbed::kernel::Debian;
use testbed::report::note;
use testbed::vm::Vm;

use super::{debian, messages};

/// Waits are for an emulated processor on a busy machine.
const PATIENCE: u64 = 180;
/// How often the long test starts the machine.
const ROUNDS: u32 = 20;

pub(crate) fn trixie(bed: &Bed, vmm: Vmm) -> Result<()> {
    grub(bed, vmm, Debian::Trixie, Terminal::Serial, Second::Menu)
}

pub(crate) fn bookworm(bed: &Bed, vmm: Vmm) -> Result<()> {
    grub(bed, vmm, Debian::Bookworm, Terminal::Bios, Second::Login)
}

/// How far the second start goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Second {
    /// To GRUB's menu, which takes the firmware's whole way.
    Menu,
    /// To the login, and off from inside.
    Login,
}

/// A whole Debian through GRUB: to the login, where it works, and once more after a reboot from inside.
fn grub(bed: &Bed, vmm: Vmm, release: Debian, terminal: Terminal, second: Second) -> Result<()> {
    let mut vm = guest(bed, vmm, release).disk(Disk::debian_grub(release, terminal)).spawn()?;
    login(&mut vm)?;
    debian::works(&mut vm, release, "sda1")?;
    let messages = vm.run(messages::SHOW)?;
    let tables = vm.run_for(TABLES, 300)?;
    vm.send("reboot\n")?;
    match second {
        Second::Menu => {
            menu(&mut vm)?;
            vm.kill()?;
        }
        Second::Login => {
            login(&mut vm)?;
            vm.send("poweroff\n")?;
            vm.expect_exit(0, 180)?;
        }
    }
    messages::check(&messages)?;
    check_tables(&tables)
}

/// The same disk started and restarted again and again.
pub(crate) fn rounds(bed: &Bed, vmm: Vmm) -> Result<()> {
    let debian = Debian::Trixie;
    // One processor: a test of the firmware's way, many times, not of the kernel's.
    let machine = |disk| guest(bed, vmm, debian).cpus(1).disk(disk);
    let first = machine(Disk::debian_grub(debian, Terminal::Serial)).spawn()?;
    let image = format!("{}/disk0.raw", first.dir());
    let mut next = Some(first);
    for round in 0..ROUNDS {
        note(&format!("round {} of {ROUNDS}", round + 1));
        let mut vm = match next.take() {
            Some(vm) => vm,
            None => machine(Disk::file(&image)).spawn()?,
        };
        login(&mut vm)?;
        vm.send("reboot\n")?;
        login(&mut vm)?;
        vm.send("poweroff\n")?;
        vm.expect_exit(0, 180)?;
    }
    Ok(())
}

/// The native tests of resets once more, where guests run: there the processor has virtualization, and KVM on AMD
/// forgets more at a triple fault than it does where it emulates every instruction.
pub(crate) fn resets(bed: &Bed, _: Vmm) -> Result<()> {
    let program = build_tests("seabios")?;
    let image = bed.prepared().seabios(Debian::Trixie)?;
    // Only there can be written.
    let dir = bed.new_dir()?;
    let script = format!(
        "cd {dir} && TMPDIR={dir} {SEABIOS}={} {} --test-threads=1 resets:: rom:: 2>&1",
        image.display(),
        program.display()
    );
    let output = bed.host().shell(&script, 600)?;
    ensure!(output.contains("test result: ok. 2 passed"), "not all tests ran:\n{output}");
    Ok(())
}

fn guest(bed: &Bed, vmm: Vmm, debian: Debian) -> Guest<'_> {
    bed.guest().vmm(vmm).kernel(debian).seabios().cpus(2).memory("1GiB")
}

/// From the BIOS to GRUB's menu.
fn menu(vm: &mut Vm<'_>) -> Result<()> {
    // SeaBIOS draws what changed on its screen since it last looked, in pieces.
    vm.wait_for_drawn("Booting from Hard Disk...", PATIENCE)?;
    vm.wait_for_drawn("GNU GRUB", PATIENCE)?;
    vm.wait_for_drawn("Debian GNU/Linux", PATIENCE)
}

/// From the BIOS by way of GRUB's menu to a shell.
pub(crate) fn login(vm: &mut Vm<'_>) -> Result<()> {
    menu(vm)?;
    vm.wait_for_boot("login: ")?;
    vm.login("root")
}

/// Takes the tables apart and makes them again, as firmware developers do.
const TABLES: &str = "rm -rf /tmp/tables && mkdir /tmp/tables && cd /tmp/tables && acpidump -b > /dev/null && ls -1 && \
    { iasl -d *.dat > /tmp/taken-apart 2>&1 || cat /tmp/taken-apart; } && iasl *.dsl 2>&1 | grep -E 'Error|Warning'; cd /";

/// Every table was understood, and the text made from it compiles without a complaint.
fn check_tables(output: &str) -> Result<()> {
    for table in ["apic", "dsdt", "facp", "facs", "mcfg", "waet"] {
        ensure!(output.lines().any(|line| line.trim() == format!("{table}.dat")), "no {table}:\n{output}");
    }
    let results: Vec<&str> = output.lines().filter(|line| line.contains("Compilation ")).collect();
    ensure!(!results.is_empty(), "nothing was compiled:\n{output}");
    for line in results {
        ensure!(line.contains("0 Errors, 0 Warnings"), "{line}:\n{output}");
    }
    Ok(())
}
