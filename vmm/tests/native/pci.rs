//! Configuration space by both mechanisms, BARs, and what lies where nothing is.

use std::fs::File;

use super::asm::*;
use super::guest::{COM1, Guest};
use super::vm::{Vm, hypervisor};

/// Where a direct boot puts the memory-mapped configuration space.
const ECAM: u32 = 0xb000_0000;
/// The first HBA's device number.
const HBA: u8 = 1;
/// The BAR of a virtio-scsi HBA's structures, and its size.
const BAR4: u8 = 0x20;
const BAR4_SIZE: u32 = 0x4000;

/// Adds a virtio-scsi HBA with a small disk.
fn with_disk(vm: Vm) -> Vm {
    File::create(vm.path("disk.img")).unwrap().set_len(1 << 20).unwrap();
    vm.set("hba.0.lun.0.image=disk.img")
}

#[test]
fn both_mechanisms_show_the_same_functions() {
    if !hypervisor("both_mechanisms_show_the_same_functions") {
        return;
    }
    let kernel = Guest::kernel(|g| {
        g.set(Ebx, 0);
        g.set(Edi, 0);
        let (top, next, absent) = (g.here(), g.label(), g.label());
        // Mechanism #1: EBX is device and function.
        g.copy(Eax, Ebx);
        g.shl(Eax, 8);
        g.or(Eax, 1 << 31);
        g.out_eax(0xcf8);
        g.in32(0xcfc);
        // ECAM: 4 KiB for each function.
        g.copy(Esi, Ebx);
        g.shl(Esi, 12);
        g.add(Esi, ECAM);
        g.load(Ecx, Esi, 0);
        let same = g.label();
        g.cmp_reg(Eax, Ecx);
        g.jump_if(Cond::Equal, same);
        g.report("differs", Ebx);
        g.place(same);
        g.cmp(Eax, u32::MAX);
        g.jump_if(Cond::Equal, absent);
        g.report("function", Ebx);
        g.report("ids", Eax);
        g.jmp(next);
        g.place(absent);
        g.add(Edi, 1);
        g.place(next);
        g.add(Ebx, 1);
        g.cmp(Ebx, 256);
        g.jump_if(Cond::NotEqual, top);
        g.report("absent", Edi);
        // Another bus, by both.
        g.load_abs(Eax, ECAM + (5 << 20));
        g.report("bus 5 by ECAM", Eax);
        g.out32(0xcf8, 0x8005_0000);
        g.in32(0xcfc);
        g.report("bus 5 by ports", Eax);
        // Parts of a register: the device id's bytes.
        g.out32(0xcf8, 0x8000_0000);
        g.in8(0xcff);
        g.report("byte 3 by ports", Eax);
        g.in16(0xcfe);
        g.report("word 2 by ports", Eax);
        g.set(Esi, ECAM);
        g.load8(Eax, Esi, 3);
        g.report("byte 3 by ECAM", Eax);
        // Without the enable bit there is no configuration access.
        g.out32(0xcf8, 0);
        g.in32(0xcfc);
        g.report("disabled", Eax);
        // What is behind the 256 bytes of a conventional function.
        g.load_abs(Eax, ECAM + 0x100);
        g.report("extended", Eax);
    });
    let output = with_disk(Vm::new(&kernel)).run().ok();
    let expected = "function=00000000\nids=29c08086\n\
                    function=00000008\nids=10481af4\n\
                    function=000000f8\nids=29188086\n\
                    absent=000000fd\nbus 5 by ECAM=ffffffff\nbus 5 by ports=ffffffff\n\
                    byte 3 by ports=00000029\nword 2 by ports=000029c0\nbyte 3 by ECAM=00000029\n\
                    disabled=ffffffff\n";
    let (head, extended) = output.split_at(expected.len());
    assert_eq!(head, expected);
    assert_eq!(extended, "extended=00000000\n", "a header of zeroes: no extended capabilities");
}

/// Reads num_queues (offset 12h) of the common structure at `address`.
fn queues_at(g: &mut Guest, name: &str, address: u32) {
    g.set(Esi, address);
    g.load16(Eax, Esi, 0x12);
    g.report(name, Eax);
}

#[test]
fn a_bar_is_sized_and_moved() {
    if !hypervisor("a_bar_is_sized_and_moved") {
        return;
    }
    let [first, second] = [0xd000_0000, 0xe123_4000];
    let kernel = Guest::kernel(|g| {
        g.pci_read(HBA, 0, BAR4);
        g.report("assigned", Eax);
        g.copy(Ebx, Eax);
        g.pci_read(HBA, 0, 0x04);
        g.report("command", Eax);
        g.pci_write(HBA, 0, BAR4, u32::MAX);
        g.pci_read(HBA, 0, BAR4);
        g.report("size", Eax);
        g.pci_write(HBA, 0, BAR4, first);
        queues_at(g, "not decoded", first);
        // Memory space and bus master.
        g.pci_write(HBA, 0, 0x04, 0x06);
        queues_at(g, "first", first);
        g.pci_write(HBA, 0, BAR4, second);
        queues_at(g, "left", first);
        queues_at(g, "second", second);
        queues_at(g, "before second", second - 0x1000);
        queues_at(g, "behind second", second + BAR4_SIZE);
        // Onto RAM, and onto the controllers: what was there stays.
        g.pci_write(HBA, 0, BAR4, 0x0100_0000);
        g.set(Eax, 0x1234_5678);
        g.store_abs(0x0100_0010, Eax);
        queues_at(g, "RAM", 0x0100_0000);
        g.pci_write(HBA, 0, BAR4, 0xfec0_0000);
        g.set(Eax, 1);
        g.store_abs(0xfec0_0000, Eax);
        g.load_abs(Eax, 0xfec0_0010);
        g.and(Eax, 0xff_00ff);
        g.report("I/O APIC", Eax);
        // Back where it was.
        g.copy(Ecx, Ebx);
        g.out32(0xcf8, 0x8000_0000 | u32::from(HBA) << 11 | u32::from(BAR4));
        g.copy(Eax, Ebx);
        g.out_eax(0xcfc);
        g.load16(Eax, Ecx, 0x12);
        g.report("home", Eax);
    });
    let got = with_disk(Vm::new(&kernel)).run().reports();
    let assigned = got["assigned"];
    assert!(
        (0xc000_0000..0xfec0_0000).contains(&assigned) && assigned.is_multiple_of(BAR4_SIZE),
        "{assigned:x}"
    );
    for (name, value) in [
        ("size", !(BAR4_SIZE - 1)),
        ("not decoded", 0xffff),
        // One request queue for the one vCPU, the control queue and the event queue.
        ("first", 3),
        ("left", 0xffff),
        ("second", 3),
        ("before second", 0xffff),
        ("behind second", 0xffff),
        ("RAM", 0x1234),
        // Version 11h or 20h; 24 pins.
        ("home", 3),
    ] {
        assert_eq!(got[name], value, "{name}");
    }
    assert_eq!(got["I/O APIC"] >> 16, 23, "the highest redirection entry");
    assert_eq!(got["command"] & 7, 0, "nothing is decoded before the driver says so");
}

#[test]
fn where_nothing_is_reads_give_ones_and_writes_nothing() {
    if !hypervisor("where_nothing_is_reads_give_ones_and_writes_nothing") {
        return;
    }
    let holes = [0x000a_0000, 0x0400_0000, 0x8000_0000, 0xc000_0000, 0xfed0_0000, 0xfff0_0000];
    // Among them where QEMU has the registers of its PCI hot-plug.
    let ports = [0x170, 0x278, 0x2f8, 0x3f0, 0xcc0, 0x5000, 0xae08, 0xffff];
    let kernel = Guest::kernel(|g| {
        g.set(Edi, u32::MAX);
        for address in holes {
            g.set(Eax, 0);
            g.store_abs(address, Eax);
            g.load_abs(Eax, address);
            g.and_reg(Edi, Eax);
            g.set(Esi, address);
            g.load8(Eax, Esi, 3);
            g.or(Eax, 0xffff_ff00);
            g.and_reg(Edi, Eax);
        }
        g.report("memory", Edi);
        g.set(Edi, u32::MAX);
        for port in ports {
            g.out32(port, 0);
            g.in32(port);
            g.and_reg(Edi, Eax);
            g.in8(port);
            g.or(Eax, 0xffff_ff00);
            g.and_reg(Edi, Eax);
        }
        g.report("ports", Edi);
    });
    let got = Vm::new(&kernel).run().reports();
    assert_eq!((got["memory"], got["ports"]), (u32::MAX, u32::MAX));
}

#[test]
fn string_instructions_move_every_element() {
    if !hypervisor("string_instructions_move_every_element") {
        return;
    }
    const TEXT: &str =
        "a text that rep outsb prints, longer than any FIFO of a serial port could hold at once\n";
    let kernel = Guest::kernel(|g| {
        let (text, skip) = (g.label(), g.label());
        g.jmp(skip);
        g.place(text);
        g.bytes(TEXT.as_bytes());
        g.place(skip);
        // cld; rep outsb (F3 6E): ECX bytes from [ESI] to port DX.
        g.bytes(&[0xfc]);
        g.set_address(Esi, text);
        g.set(Ecx, TEXT.len() as u32);
        g.set(Edx, COM1.into());
        g.bytes(&[0xf3, 0x6e]);
        g.report("outsb left", Ecx);
        // rep insb (F3 6C): 100 bytes from the debug console, which reads as E9h.
        g.set(Edi, 0x20_0000);
        g.set(Ecx, 100);
        g.set(Edx, 0x402);
        g.bytes(&[0xf3, 0x6c]);
        g.report("insb end", Edi);
        g.load_abs(Eax, 0x20_0000);
        g.report("insb first", Eax);
        g.load_abs(Eax, 0x20_0062);
        g.report("insb last", Eax);
        // rep insd (F3 6D): the host bridge's ids, three times.
        g.out32(0xcf8, 0x8000_0000);
        g.set(Edi, 0x20_0000);
        g.set(Ecx, 3);
        g.set(Edx, 0xcfc);
        g.bytes(&[0xf3, 0x6d]);
        for at in [0, 8, 12] {
            g.load_abs(Eax, 0x20_0000 + at);
            g.report(&format!("insd {at}"), Eax);
        }
        // rep outsw (F3 66 6F): three words to a scratch pair of ports; the last stays.
        g.set(Eax, 0x2222_1111);
        g.store_abs(0x20_0000, Eax);
        g.set(Eax, 0x4444_3333);
        g.store_abs(0x20_0004, Eax);
        g.set(Esi, 0x20_0000);
        g.set(Ecx, 3);
        g.set(Edx, 0xb2);
        g.bytes(&[0xf3, 0x66, 0x6f]);
        g.in16(0xb2);
        g.report("outsw", Eax);
    });
    let output = Vm::new(&kernel).set("boot.debug_log=debug").run().ok();
    let rest = output.strip_prefix(TEXT).unwrap_or_else(|| panic!("{output}"));
    assert_eq!(
        rest,
        "outsb left=00000000\ninsb end=00200064\ninsb first=e9e9e9e9\ninsb last=0000e9e9\n\
         insd 0=29c08086\ninsd 8=29c08086\ninsd 12=e9e9e9e9\noutsw=00003333\n"
    );
}
