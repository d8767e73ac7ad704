//! Several processors: start-up by INIT and SIPI, and who each believes to be.

use super::asm::*;
use super::guest::Guest;
use super::vm::{Vm, hypervisor};

/// Where the application processors begin: SIPI vector 3.
const TRAMPOLINE: u32 = 0x3000;
/// The number of the next processor, and how many have finished.
const NEXT: u32 = 0x2000;
const FINISHED: u32 = 0x2004;
/// A dword from each: APIC id of leaf 1 in the low half, of leaf Bh in the high half.
const IDS: u32 = 0x2400;

/// Interrupt command register, its high half, and the spurious vector register.
const ICR: u32 = 0xfee0_0300;
const ICR_HIGH: u32 = 0xfee0_0310;
const SVR: u32 = 0xfee0_00f0;
/// A CMOS byte that outlives a reset.
const BOOTS: u8 = 0x50;

/// What an application processor does, in real mode: notes its ids and halts.
#[rustfmt::skip]
const AP: &[u8] = &[
    0xfa,                                     // cli
    0x31, 0xc0,                               // xor ax, ax
    0x8e, 0xd8,                               // mov ds, ax
    0x66, 0xb8, 0x01, 0x00, 0x00, 0x00,       // mov eax, 1
    0x0f, 0xa2,                               // cpuid
    0x66, 0xc1, 0xeb, 24,                     // shr ebx, 24
    0x66, 0x89, 0xde,                         // mov esi, ebx
    0x66, 0xb8, 0x0b, 0x00, 0x00, 0x00,       // mov eax, 0bh
    0x66, 0x31, 0xc9,                         // xor ecx, ecx
    0x0f, 0xa2,                               // cpuid
    0x66, 0x89, 0xd7,                         // mov edi, edx
    0x66, 0xb8, 0x01, 0x00, 0x00, 0x00,       // mov eax, 1
    0xf0, 0x66, 0x0f, 0xc1, 0x06, 0x00, 0x20, // lock xadd [NEXT], eax
    0x89, 0xc3,                               // mov bx, ax
    0xc1, 0xe3, 2,                            // shl bx, 2
    0x81, 0xc3, 0x00, 0x24,                   // add bx, IDS
    0x89, 0x37,                               // mov [bx], si
    0x89, 0x7f, 0x02,                         // mov [bx + 2], di
    0xf0, 0x66, 0xff, 0x06, 0x04, 0x20,       // lock inc dword [FINISHED]
    0xf4,                                     // hlt
    0xeb, 0xfd,                               // jmp to it
];

/// Starts all others, waits for them and prints what they found; does it all again after a reset, if wanted.
fn kernel(cpus: u32, reset: bool) -> Vec<u8> {
    Guest::kernel(|g| {
        let (trampoline, skip) = (g.label(), g.label());
        g.jmp(skip);
        g.place(trampoline);
        g.bytes(AP);
        g.place(skip);
        // cld; rep movsb (F3 A4) to the trampoline.
        g.bytes(&[0xfc]);
        g.set_address(Esi, trampoline);
        g.set(Edi, TRAMPOLINE);
        g.set(Ecx, AP.len() as u32);
        g.bytes(&[0xf3, 0xa4]);
        g.set(Eax, 0);
        g.store_abs(NEXT, Eax);
        g.store_abs(FINISHED, Eax);
        g.set(Eax, 0x1ff);
        g.store_abs(SVR, Eax);
        if cpus > 1 {
            // To all but myself: INIT, then SIPI twice, as the MP specification has it (B.4).
            for command in [0x000c_4500, 0x000c_4600 | TRAMPOLINE >> 12, 0x000c_4600 | TRAMPOLINE >> 12] {
                g.set(Eax, 0);
                g.store_abs(ICR_HIGH, Eax);
                g.set(Eax, command);
                g.store_abs(ICR, Eax);
            }
        }
        let wait = g.here();
        // pause
        g.bytes(&[0xf3, 0x90]);
        g.load_abs(Eax, FINISHED);
        g.cmp(Eax, cpus - 1);
        g.jump_if(Cond::NotEqual, wait);
        g.cpuid(0, 0);
        g.report("highest leaf", Eax);
        g.cpuid(1, 0);
        g.report("boot processor", Ebx);
        g.cpuid(0xb, 1);
        g.report("processors by leaf Bh", Ebx);
        if cpus > 1 {
            g.set(Esi, IDS);
            g.set(Ecx, cpus - 1);
            let top = g.here();
            g.load(Eax, Esi, 0);
            g.report("ids", Eax);
            g.add(Esi, 4);
            g.sub(Ecx, 1);
            g.jump_if(Cond::NotEqual, top);
        }
        if reset {
            let done = g.label();
            g.cmos_read(BOOTS);
            g.cmp(Eax, 0);
            g.jump_if(Cond::NotEqual, done);
            g.set(Ebx, 1);
            g.cmos_write_ebx(BOOTS);
            g.out8(0xcf9, 0x06);
            g.stop();
            g.place(done);
        }
    })
}

fn run(cpus: u32, reset: bool) {
    let output = Vm::new(&kernel(cpus, reset)).set(&format!("vm.cpus={cpus}")).run().ok();
    let mut lines = output.lines().map(|line| {
        let (name, value) = line.split_once('=').unwrap();
        (name, u32::from_str_radix(value, 16).unwrap())
    });
    for _ in 0..=u32::from(reset) {
        let (_, highest) = lines.next().unwrap();
        assert!(highest >= 1);
        let (_, boot) = lines.next().unwrap();
        assert_eq!(boot >> 24, 0, "the boot processor's APIC id");
        assert_eq!(boot >> 16 & 0xff, cpus, "logical processors in the package");
        let topology = highest >= 0xb;
        let (_, processors) = lines.next().unwrap();
        assert!(!topology || processors == cpus, "{processors}");
        let mut ids: Vec<u32> = Vec::new();
        for _ in 1..cpus {
            let (name, both) = lines.next().unwrap();
            assert_eq!(name, "ids");
            assert!(!topology || both >> 16 == both & 0xffff, "leaves 1 and Bh agree: {both:x}");
            ids.push(both & 0xffff);
        }
        ids.sort_unstable();
        assert_eq!(ids, (1..cpus).collect::<Vec<_>>(), "each other id once");
    }
    assert_eq!(lines.next(), None);
}

#[test]
fn one_processor() {
    if hypervisor("one_processor") {
        run(1, false);
    }
}

#[test]
fn two_processors_start_and_start_again_after_a_reset() {
    if hypervisor("two_processors_start_and_start_again_after_a_reset") {
        run(2, true);
    }
}

#[test]
fn four_processors_start_and_start_again_after_a_reset() {
    if hypervisor("four_processors_start_and_start_again_after_a_reset") {
        run(4, true);
    }
}

#[test]
fn the_most_processors_start() {
    if hypervisor("the_most_processors_start") {
        run(255, false);
    }
}
