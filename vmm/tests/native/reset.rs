//! Resets and crashes: as an end of the process, and as a new start of the same machine.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::asm::*;
use super::guest::{COM1, Guest};
use super::vm::{Ended, Vm, emulated, hypervisor, turn};

/// The ways to a reset.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Reset Control (ICH9, RST_CNT): hard reset chosen, then its rising edge.
    Cf9,
    /// System Control Port A: fast reset.
    Port92,
    /// Keyboard controller: pulse output line 0.
    I8042,
    /// No way to report an exception.
    TripleFault,
}

const WAYS: [Way; 4] = [Way::Cf9, Way::Port92, Way::I8042, Way::TripleFault];

fn reset(g: &mut Guest, way: Way) {
    match way {
        Way::Cf9 => {
            g.out8(0xcf9, 0x02);
            g.out8(0xcf9, 0x06);
        }
        Way::Port92 => g.out8(0x92, 0x01),
        Way::I8042 => g.out8(0x64, 0xfe),
        Way::TripleFault => g.triple_fault(),
    }
}

#[test]
fn without_reboot_a_reset_is_exit_code_2_and_a_crash_3() {
    if !hypervisor("without_reboot_a_reset_is_exit_code_2_and_a_crash_3") {
        return;
    }
    for way in WAYS {
        let kernel = Guest::kernel(|g| {
            g.print("up\n");
            reset(g, way);
            g.print("still here\n");
        });
        let Ended { code, output, errors } =
            Vm::new(&kernel).set("vm.on_crash=restart").arg("--no-reboot").run();
        assert_eq!(output, "up\n", "{way:?}: no instruction after the reset");
        if matches!(way, Way::TripleFault) {
            assert_eq!(code, 3);
            assert!(errors.starts_with("vmm: error: vCPU 0: triple fault: "), "{errors}");
            // The instruction at fault, ud2, which an AMD processor does not tell.
            let lost = "where it was is lost, the processor is as after a reset\n";
            assert!(errors.contains("bytes there [0f, 0b, ") || errors.ends_with(lost), "{errors}");
            assert_eq!(errors.lines().count(), 1, "{errors}");
        } else {
            assert_eq!((code, errors.as_str()), (2, ""), "{way:?}");
        }
    }
}

#[test]
fn the_configuration_decides_as_well() {
    if !hypervisor("the_configuration_decides_as_well") {
        return;
    }
    let resets = Guest::kernel(|g| reset(g, Way::Cf9));
    assert_eq!(Vm::new(&resets).set("vm.on_reset=exit").run().code, 2);
    let crashes = Guest::kernel(|g| reset(g, Way::TripleFault));
    assert_eq!(Vm::new(&crashes).set("vm.on_crash=exit").run().code, 3);
}

/// Bytes of the CMOS memory that nothing else uses: they outlive a reset.
const BOOTS: u8 = 0x50;

const IO_APIC: u32 = 0xfec0_0000;
const LOCAL_APIC: u32 = 0xfee0_0000;

/// Reports everything that a boot relies on.
fn report_state(g: &mut Guest) {
    for (name, device, register) in [
        ("host bridge command", 0, 0x04),
        ("PCIEXBAR", 0, 0x60),
        ("PAM", 0, 0x90),
        ("LPC command", 0x1f, 0x04),
        ("PMBASE", 0x1f, 0x40),
        ("ACPI_CNTL", 0x1f, 0x44),
        ("PIRQ A-D", 0x1f, 0x60),
        ("PIRQ E-H", 0x1f, 0x68),
        ("RCBA", 0x1f, 0xf0),
    ] {
        g.pci_read(device, 0, register);
        g.report(name, Eax);
    }
    g.in32(0x600);
    // TMR_STS comes by itself every 2.3 seconds.
    g.and(Eax, !1);
    g.report("PM1_STS and PM1_EN", Eax);
    for (name, port) in [
        ("PIC 1 mask", 0x21),
        ("PIC 2 mask", 0xa1),
        ("ELCR 1", 0x4d0),
        ("ELCR 2", 0x4d1),
        ("IER", COM1 + 1),
        ("LCR", COM1 + 3),
        ("MCR", COM1 + 4),
        ("SCR", COM1 + 7),
        ("keyboard status", 0x64),
        ("port 92h", 0x92),
        ("APM status", 0xb3),
        ("Reset Control", 0xcf9),
    ] {
        g.in8(port);
        g.report(name, Eax);
    }
    g.cmos_read(0x0b);
    g.report("RTC register B", Eax);
    for register in [0x14, 0x18, 0x3e] {
        g.set(Eax, register);
        g.store_abs(IO_APIC, Eax);
        g.load_abs(Eax, IO_APIC + 0x10);
        g.report(&format!("I/O APIC {register:x}"), Eax);
    }
    for register in [0x20, 0x80, 0xd0, 0xe0, 0xf0, 0x300, 0x320, 0x350, 0x360, 0x370, 0x380] {
        g.load_abs(Eax, LOCAL_APIC + register);
        g.report(&format!("local APIC {register:x}"), Eax);
    }
    // mov eax, cr0; mov eax, cr4; pushfd, pop eax
    for (name, code) in
        [("CR0", &[0x0f, 0x20, 0xc0][..]), ("CR4", &[0x0f, 0x20, 0xe0]), ("EFLAGS", &[0x9c, 0x58])]
    {
        g.bytes(code);
        // The reports before have left arithmetic flags behind.
        g.and(Eax, !0x8d5);
        g.report(name, Eax);
    }
    // mov eax, cr0: with the flags' mask above it would lose bits of interest.
    g.bytes(&[0x0f, 0x20, 0xc0]);
    g.report("all of CR0", Eax);
    // mov eax, dr7
    g.bytes(&[0x0f, 0x21, 0xf8]);
    g.report("DR7", Eax);
}

/// Changes all of that.
fn disturb(g: &mut Guest) {
    g.pci_write(0, 0, 0x04, 0x0000_0147);
    g.pci_write(0, 0, 0x90, 0x3333_3330);
    g.pci_write(0x1f, 0, 0x60, 0x0b0b_0a0a);
    g.pci_write(0x1f, 0, 0x68, 0x0303_0505);
    g.pci_write(0x1f, 0, 0xf0, 0xfed1_c001);
    // ECAM off, power management elsewhere.
    g.pci_write(0, 0, 0x60, 0xe000_0000);
    g.out16(0x602, 0x0120);
    g.pci_write(0x1f, 0, 0x40, 0x0000_0701);
    // PIC: initialised, everything unmasked; ELCR: 10 and 11 level.
    for (port, value) in [(0x20, 0x11), (0x21, 0x40), (0x21, 0x04), (0x21, 0x01), (0x21, 0x5a)] {
        g.out8(port, value);
    }
    for (port, value) in [(0xa0, 0x11), (0xa1, 0x48), (0xa1, 0x02), (0xa1, 0x01), (0xa1, 0xa5)] {
        g.out8(port, value);
    }
    g.out8(0x4d1, 0x0c);
    for (port, value) in [(1, 0x0f), (3, 0x1b), (4, 0x0b), (7, 0x77)] {
        g.out8(COM1 + port, value);
    }
    g.out8(0x92, 0x00);
    g.out8(0xb3, 0x99);
    // Timer 0: fast.
    g.out8(0x43, 0x34);
    g.out8(0x40, 0x10);
    g.out8(0x40, 0x00);
    // Periodic interrupts of the clock.
    g.out8(0x70, 0x0b);
    g.out8(0x71, 0x42);
    for register in [0x14, 0x18, 0x3e] {
        g.set(Eax, register);
        g.store_abs(IO_APIC, Eax);
        g.set(Eax, 0x0000_a051);
        g.store_abs(IO_APIC + 0x10, Eax);
    }
    for (register, value) in [
        (0xf0, 0x1ef),
        (0x80, 0x30),
        (0xd0, 0x0400_0000),
        (0x320, 0x2_0055),
        (0x350, 0x1_0000),
        (0x370, 0x45),
        (0x380, 5000),
    ] {
        g.set(Eax, value);
        g.store_abs(LOCAL_APIC + register, Eax);
    }
}

/// Checks and then fills what the kernel file says is zero, behind the code.
fn bss(g: &mut Guest, bss: Label) {
    g.set_address(Esi, bss);
    g.set(Edi, 0);
    g.repeat(boot::testing::BSS_SIZE / 4, |a| {
        a.load(Eax, Esi, 0);
        a.or_reg(Edi, Eax);
        a.set(Eax, 0xdead_beef);
        a.store(Esi, 0, Eax);
        a.add(Esi, 4);
    });
    g.report("BSS", Edi);
}

/// Boots until the CMOS counter says `boots`, by each way in turn. Every boot reports its state, then disturbs it.
fn many_boots(boots: u8) -> Vec<u8> {
    Guest::kernel(|g| {
        // The count of this boot, from 1.
        g.cmos_read(BOOTS);
        g.add(Eax, 1);
        g.copy(Ebx, Eax);
        g.cmos_write_ebx(BOOTS);
        let end_of_code = g.end_of_code();
        report_state(g);
        bss(g, end_of_code);
        g.print("--\n");
        let done = g.label();
        g.cmp(Ebx, boots.into());
        g.jump_if(Cond::Equal, done);
        disturb(g);
        g.and(Ebx, 3);
        for (way, number) in WAYS.into_iter().zip(0..) {
            let next = g.label();
            g.cmp(Ebx, number);
            g.jump_if(Cond::NotEqual, next);
            reset(g, way);
            g.stop();
            g.place(next);
        }
        g.place(done);
    })
}

fn boots(output: &str) -> Vec<BTreeMap<&str, &str>> {
    let boots = output.split("--\n").filter(|boot| !boot.is_empty());
    boots.map(|boot| boot.lines().map(|line| line.split_once('=').unwrap()).collect()).collect()
}

#[test]
fn a_hundred_resets_start_the_same_machine_again() {
    if !hypervisor("a_hundred_resets_start_the_same_machine_again") {
        return;
    }
    let vm = Vm::new(&many_boots(101)).set("vm.on_crash=restart").arg("--log-level").arg("error");
    let output = vm.run().ok();
    let boots = boots(&output);
    assert_eq!(boots.len(), 101);
    let first = &boots[0];
    // What a direct boot promises.
    for (name, value) in [
        ("PCIEXBAR", "b0000001"),
        ("PMBASE", "00000601"),
        ("ACPI_CNTL", "00000080"),
        ("PM1_STS and PM1_EN", "00000000"),
        ("IER", "00000000"),
        ("Reset Control", "00000000"),
        ("I/O APIC 14", "00010000"),
        ("I/O APIC 18", "00010000"),
        // Software-disabled; task priority 0; LINT0 carries the PIC's interrupts, LINT1 is NMI.
        ("local APIC f0", "000000ff"),
        ("local APIC 80", "00000000"),
        ("local APIC 350", "00000700"),
        ("local APIC 360", "00000400"),
        ("local APIC 370", "00010000"),
        ("all of CR0", "00000011"),
        ("CR4", "00000000"),
        ("BSS", "00000000"),
    ] {
        assert_eq!(first[name], value, "{name}");
    }
    for (number, boot) in boots.iter().enumerate() {
        assert_eq!(boot, first, "boot {number}");
    }
}

/// Crashes, or resets, until it has done so `count` times; then powers off.
fn again_and_again(way: Way, count: u8) -> Vec<u8> {
    Guest::kernel(|g| {
        let done = g.label();
        g.cmos_read(BOOTS);
        g.cmp(Eax, count.into());
        g.jump_if(Cond::Equal, done);
        g.add(Eax, 1);
        g.copy(Ebx, Eax);
        g.cmos_write_ebx(BOOTS);
        reset(g, way);
        g.stop();
        g.place(done);
    })
}

#[test]
fn a_guest_that_crashes_without_end_does_not_fill_the_log() {
    if !hypervisor("a_guest_that_crashes_without_end_does_not_fill_the_log") {
        return;
    }
    let vm = Vm::new(&again_and_again(Way::TripleFault, 100)).set("vm.on_crash=restart");
    let Ended { code, errors, .. } = vm.run();
    let lines = errors.lines().count();
    assert_eq!(code, 0, "{errors}");
    assert!(errors.contains("triple fault") && errors.contains("restarting"), "{errors}");
    assert!((1..50).contains(&lines), "{lines} lines for 100 crashes");
}

#[test]
fn a_reset_is_quick() {
    if !hypervisor("a_reset_is_quick") {
        return;
    }
    const RESETS: u8 = 50;
    let vm = Vm::new(&again_and_again(Way::Cf9, RESETS));
    let turn = turn();
    let begin = Instant::now();
    assert_eq!(vm.start().wait().ok(), "");
    let each = begin.elapsed() / RESETS.into();
    drop(turn);
    // Past the test harness: the number is the point.
    io::stderr().write_all(format!("a reset takes {each:?}\n").as_bytes()).unwrap();
    assert!(each < Duration::from_millis(300) || emulated(), "{each:?}");
}
