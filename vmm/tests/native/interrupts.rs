//! Interrupts from devices through the PIC and the I/O APIC, and the timers behind them.

use super::asm::*;
use super::guest::{COM1, Guest};
use super::vm::{Vm, hypervisor};

/// The interrupt descriptor table, and a counter for each vector.
const IDT: u32 = 0x21_0000;
const COUNTERS: u32 = 0x21_1000;
/// First vectors of the two PICs.
pub const PIC1: u8 = 0x20;
const PIC2: u8 = 0x28;

const IO_APIC: u32 = 0xfec0_0000;
const SVR: u32 = 0xfee0_00f0;
const EOI: u32 = 0xfee0_00b0;

/// Where an interrupt is acknowledged.
#[derive(Clone, Copy)]
pub enum Ack {
    Pic,
    BothPics,
    LocalApic,
}

pub fn counter(vector: u8) -> u32 {
    COUNTERS + 4 * u32::from(vector)
}

/// A handler that counts, does `more`, and acknowledges; its gate goes into the table.
pub fn handler(g: &mut Guest, vector: u8, ack: Ack, more: impl FnOnce(&mut Guest)) {
    let (entry, skip) = (g.label(), g.label());
    g.jmp(skip);
    g.place(entry);
    g.push(Eax);
    g.push(Edx);
    // inc dword [counter] (FF /0)
    g.bytes(&[0xff, 0x05]);
    g.bytes(&counter(vector).to_le_bytes());
    more(g);
    match ack {
        Ack::Pic => g.out8(0x20, 0x20),
        Ack::BothPics => {
            g.out8(0xa0, 0x20);
            g.out8(0x20, 0x20);
        }
        Ack::LocalApic => {
            g.set(Eax, 0);
            g.store_abs(EOI, Eax);
        }
    }
    g.pop(Edx);
    g.pop(Eax);
    // KVM's emulator has no iret in protected mode. ret 8 (C2) takes EIP and drops CS and EFLAGS: interrupts stay off,
    // which is what `wait_for` wants next.
    g.bytes(&[0xc2, 8, 0]);
    g.place(skip);
    // A 32-bit interrupt gate, present (8E00h), to the code segment of the boot protocol (10h).
    g.set_address(Eax, entry);
    g.copy(Ebx, Eax);
    g.and(Eax, 0xffff);
    g.or(Eax, 0x0010_0000);
    g.and(Ebx, 0xffff_0000);
    g.or(Ebx, 0x8e00);
    g.store_abs(IDT + 8 * u32::from(vector), Eax);
    g.store_abs(IDT + 8 * u32::from(vector) + 4, Ebx);
    g.set(Eax, 0);
    g.store_abs(counter(vector), Eax);
}

/// Loads IDTR.
pub fn load_idt(g: &mut Guest) {
    let (table, skip) = (g.label(), g.label());
    g.jmp(skip);
    g.place(table);
    g.bytes(&[0xff, 0x07]);
    g.bytes(&IDT.to_le_bytes());
    g.place(skip);
    g.bytes(&[0x0f, 0x01, 0x1d]);
    g.address(table);
}

/// Initialises both PICs; a zero bit of the masks lets an interrupt through.
pub fn pics(g: &mut Guest, mask1: u8, mask2: u8) {
    for (port, value) in [(0x20, 0x11), (0x21, PIC1), (0x21, 0x04), (0x21, 0x01), (0x21, mask1)] {
        g.out8(port, value);
    }
    for (port, value) in [(0xa0, 0x11), (0xa1, PIC2), (0xa1, 0x02), (0xa1, 0x01), (0xa1, mask2)] {
        g.out8(port, value);
    }
}

/// Programs a redirection entry of the I/O APIC: edge, to APIC 0.
fn redirect(g: &mut Guest, pin: u32, vector: u8) {
    for (register, value) in [(0x11 + 2 * pin, 0), (0x10 + 2 * pin, vector.into())] {
        g.set(Eax, register);
        g.store_abs(IO_APIC, Eax);
        g.set(Eax, value);
        g.store_abs(IO_APIC + 0x10, Eax);
    }
}

/// Switches the local APIC on.
pub fn local_apic(g: &mut Guest) {
    g.set(Eax, 0x1ff);
    g.store_abs(SVR, Eax);
}

/// Channel 0 of the interval timer, rate generator: a tick for each `count` of 1193182 a second.
pub fn interval_timer(g: &mut Guest, count: u16) {
    let [low, high] = count.to_le_bytes();
    g.out8(0x43, 0x34);
    g.out8(0x40, low);
    g.out8(0x40, high);
}

/// Sleeps until the vector came `count` times, then reports how often it did.
fn wait_for(g: &mut Guest, vector: u8, count: u32) {
    let top = g.here();
    // Nothing comes between sti and hlt.
    g.sti();
    g.hlt();
    g.cli();
    g.load_abs(Eax, counter(vector));
    g.cmp(Eax, count);
    g.jump_if(Cond::Below, top);
    g.report("count", Eax);
}

#[test]
fn the_interval_timer_through_the_pic() {
    if !hypervisor("the_interval_timer_through_the_pic") {
        return;
    }
    let kernel = Guest::kernel(|g| {
        handler(g, PIC1, Ack::Pic, |_| ());
        load_idt(g);
        pics(g, !1, !0);
        interval_timer(g, 1000);
        wait_for(g, PIC1, 20);
    });
    let got = Vm::new(&kernel).run().reports();
    assert!(got["count"] >= 20);
}

#[test]
fn the_interval_timer_through_pin_2_of_the_io_apic() {
    if !hypervisor("the_interval_timer_through_pin_2_of_the_io_apic") {
        return;
    }
    const VECTOR: u8 = 0x51;
    const OTHER: u8 = 0x52;
    let kernel = Guest::kernel(|g| {
        handler(g, VECTOR, Ack::LocalApic, |_| ());
        handler(g, OTHER, Ack::LocalApic, |_| ());
        load_idt(g);
        pics(g, !0, !0);
        local_apic(g);
        // Pin 0 is not the timer's.
        redirect(g, 0, OTHER);
        redirect(g, 2, VECTOR);
        interval_timer(g, 1000);
        wait_for(g, VECTOR, 20);
        g.load_abs(Eax, counter(OTHER));
        g.report("pin 0", Eax);
    });
    let got = Vm::new(&kernel).run().reports();
    assert!(got["count"] >= 20);
    assert_eq!(got["pin 0"], 0);
}

#[test]
fn the_power_management_timer_keeps_pace() {
    if !hypervisor("the_power_management_timer_keeps_pace") {
        return;
    }
    let kernel = Guest::kernel(|g| {
        handler(g, PIC1, Ack::Pic, |_| ());
        load_idt(g);
        pics(g, !1, !0);
        interval_timer(g, 1000);
        // Begin at a tick.
        wait_for(g, PIC1, 1);
        g.in32(0x608);
        g.copy(Edi, Eax);
        wait_for(g, PIC1, 61);
        g.in32(0x608);
        // sub eax, edi (29 /r), in the timer's 24 bits.
        g.bytes(&[0x29, 0xf8]);
        g.and(Eax, 0x00ff_ffff);
        g.report("ticks", Eax);
    });
    let ticks = Vm::new(&kernel).run().reports()["ticks"];
    // Sixty periods of 1000 at 1193182 Hz are 180000 ticks of 3579545 Hz. KVM makes up for interrupts that came late, so
    // less than half is wrong; more only means that the host was busy.
    assert!((90_000..4_000_000).contains(&ticks), "{ticks}");
}

#[test]
fn the_clock_interrupts_periodically() {
    if !hypervisor("the_clock_interrupts_periodically") {
        return;
    }
    let vector = PIC2;
    let kernel = Guest::kernel(|g| {
        handler(g, vector, Ack::BothPics, |g| {
            // Register C must be read, or there is no other interrupt.
            g.cmos_read(0x0c);
        });
        load_idt(g);
        pics(g, !(1 << 2), !1);
        // 1024 Hz; periodic interrupt enable.
        for (register, value) in [(0x0a, 0x26), (0x0b, 0x42)] {
            g.out8(0x70, register);
            g.out8(0x71, value);
        }
        wait_for(g, vector, 20);
    });
    let got = Vm::new(&kernel).run().reports();
    assert!(got["count"] >= 20);
}

#[test]
fn the_serial_port_interrupts_both_ways() {
    if !hypervisor("the_serial_port_interrupts_both_ways") {
        return;
    }
    let vector = PIC1 + 4;
    let kernel = Guest::kernel(|g| {
        handler(g, vector, Ack::Pic, |g| {
            g.in8(COM1 + 2);
            g.store_abs(COUNTERS - 4, Eax);
            // One is enough: with this on, each byte that the guest prints would leave a request in the PIC.
            g.out8(COM1 + 1, 0x00);
        });
        load_idt(g);
        pics(g, !(1 << 4), !0);
        // Transmitter holding register empty; OUT2 lets the interrupt through on a PC.
        g.out8(COM1 + 4, 0x0b);
        g.out8(COM1 + 1, 0x02);
        wait_for(g, vector, 1);
        g.load_abs(Eax, COUNTERS - 4);
        g.report("IIR for empty", Eax);
        // Received data: what the test sends.
        g.out8(COM1 + 1, 0x01);
        wait_for(g, vector, 2);
        g.in8(COM1);
        g.report("received", Eax);
        g.load_abs(Eax, COUNTERS - 4);
        g.report("IIR for received", Eax);
    });
    let vm = Vm::new(&kernel);
    std::fs::write(vm.path("input"), "x").unwrap();
    let input = std::fs::File::open(vm.path("input")).unwrap();
    let output = vm.run_with(vm.command().stdin(input)).ok();
    assert_eq!(
        output.lines().filter(|line| !line.starts_with("count=")).collect::<Vec<_>>(),
        ["IIR for empty=00000002", "received=00000078", "IIR for received=00000004"]
    );
}

#[test]
fn keyboard_and_mouse_interrupt_for_each_byte() {
    if !hypervisor("keyboard_and_mouse_interrupt_for_each_byte") {
        return;
    }
    let (keyboard, mouse) = (PIC1 + 1, PIC2 + 4);
    let (key, motion) = (COUNTERS - 4, COUNTERS - 8);
    let kernel = Guest::kernel(|g| {
        for (vector, ack, byte) in [(keyboard, Ack::Pic, key), (mouse, Ack::BothPics, motion)] {
            handler(g, vector, ack, |g| {
                g.in8(0x60);
                g.store_abs(byte, Eax);
            });
        }
        load_idt(g);
        pics(g, !(1 << 1 | 1 << 2), !(1 << 4));
        let data = |g: &mut Guest, command: u8, byte: u8| {
            g.out8(0x64, command);
            g.out8(0x60, byte);
        };
        let reports = |g: &mut Guest, name: &str, byte: u32| {
            g.load_abs(Eax, byte);
            g.report(name, Eax);
        };
        // Both interrupts on, codes as the keyboard sends them; then bytes that the controller makes up.
        data(g, 0x60, 0x03);
        data(g, 0xd2, 0x5a);
        wait_for(g, keyboard, 1);
        reports(g, "as the keyboard", key);
        data(g, 0xd3, 0xa5);
        wait_for(g, mouse, 1);
        reports(g, "as the mouse", motion);
        // An echo from the keyboard; the mouse's acknowledgement and its identifier.
        g.out8(0x60, 0xee);
        wait_for(g, keyboard, 2);
        reports(g, "echo", key);
        data(g, 0xd4, 0xf2);
        wait_for(g, mouse, 3);
        reports(g, "identifier", motion);
        g.in8(0x64);
        g.and(Eax, 0x21);
        g.report("full", Eax);
    });
    let output = Vm::new(&kernel).run().ok();
    assert_eq!(
        output.lines().collect::<Vec<_>>(),
        [
            "count=00000001",
            "as the keyboard=0000005a",
            "count=00000001",
            "as the mouse=000000a5",
            "count=00000002",
            "echo=000000ee",
            "count=00000003",
            "identifier=00000000",
            "full=00000000",
        ]
    );
}

/// The SCI is level-triggered: it comes again until its cause is gone.
#[test]
fn the_power_management_timer_raises_the_sci() {
    if !hypervisor("the_power_management_timer_raises_the_sci") {
        return;
    }
    const PM1_STS: u16 = 0x600;
    const PM1_EN: u16 = 0x602;
    const TIMER: u16 = 1;
    let sci = PIC2 + 1;
    let kernel = Guest::kernel(|g| {
        handler(g, sci, Ack::BothPics, |g| {
            // The first time, the cause stays.
            let first = g.label();
            g.load_abs(Eax, counter(sci));
            g.cmp(Eax, 2);
            g.jump_if(Cond::Below, first);
            g.out16(PM1_STS, TIMER);
            g.place(first);
        });
        load_idt(g);
        pics(g, !(1 << 2), !(1 << 1));
        // ELCR: interrupt 9 is level-triggered.
        g.out8(0x4d1, 1 << 1);
        g.out16(PM1_EN, TIMER);
        wait_for(g, sci, 2);
        g.in32(PM1_STS);
        g.report("status and enable", Eax);
        // Nothing is pending any more: a look at the second PIC's request register.
        g.out8(0xa0, 0x0a);
        g.in8(0xa0);
        g.and(Eax, 1 << 1);
        g.report("requested", Eax);
    });
    let got = Vm::new(&kernel).run().reports();
    assert_eq!((got["count"], got["status and enable"], got["requested"]), (2, 0x0001_0000, 0));
}
