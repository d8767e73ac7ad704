//! What guests have in common: printing, and ways to end.

use super::asm::*;

/// COM1's data register.
pub const COM1: u16 = 0x3f8;
/// PM1_CNT, with the power management registers where a direct boot puts them.
pub const PM1_CNT: u16 = 0x604;

/// A guest: code with subroutines behind it.
pub struct Guest {
    pub asm: Asm,
    print: Label,
    print_hex: Label,
    end: Label,
}

impl std::ops::Deref for Guest {
    type Target = Asm;
    fn deref(&self) -> &Asm {
        &self.asm
    }
}

impl std::ops::DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Asm {
        &mut self.asm
    }
}

impl Guest {
    /// The code that `body` writes, then a power-off, as a kernel file.
    pub fn kernel(body: impl FnOnce(&mut Self)) -> Vec<u8> {
        let mut asm = Asm::default();
        let (print, print_hex, end) = (asm.label(), asm.label(), asm.label());
        let mut guest = Self { asm, print, print_hex, end };
        body(&mut guest);
        guest.power_off();
        guest.subroutines();
        guest.asm.place(end);
        boot::testing::pvh_elf32(&guest.asm.finish())
    }

    /// The end of the code, where the zeroes begin that the kernel file asks for.
    pub fn end_of_code(&self) -> Label {
        self.end
    }

    /// Prints text on COM1. Keeps all registers.
    pub fn print(&mut self, text: &str) {
        let print = self.print;
        self.call(print);
        self.bytes(text.as_bytes());
        self.bytes(&[0]);
    }

    /// Prints `name=`, the eight hexadecimal digits of `reg`, and a line feed. Keeps all registers.
    pub fn report(&mut self, name: &str, reg: Reg) {
        self.print(&format!("{name}="));
        self.push(Eax);
        self.copy(Eax, reg);
        let print_hex = self.print_hex;
        self.call(print_hex);
        self.pop(Eax);
        self.print("\n");
    }

    /// Prints EAX in hexadecimal, nothing around it. Keeps all registers.
    pub fn print_eax(&mut self) {
        let print_hex = self.print_hex;
        self.call(print_hex);
    }

    /// S5: SLP_TYP 0 and SLP_EN to PM1_CNT, then nothing.
    pub fn power_off(&mut self) {
        self.out16(PM1_CNT, 0x2001);
        self.stop();
    }

    /// Halts for good.
    pub fn stop(&mut self) {
        self.cli();
        let here = self.here();
        self.hlt();
        self.jmp(here);
    }

    /// A triple fault: an interrupt gate is wanted where there is no table of them.
    pub fn triple_fault(&mut self) {
        let (skip, table) = (self.label(), self.label());
        self.jmp(skip);
        self.place(table);
        self.bytes(&[0; 6]);
        self.place(skip);
        // lidt [table] (0F 01 /3), then ud2 (0F 0B).
        self.bytes(&[0x0f, 0x01, 0x1d]);
        self.address(table);
        self.bytes(&[0x0f, 0x0b]);
    }

    /// EAX = a byte of the CMOS memory.
    pub fn cmos_read(&mut self, index: u8) {
        self.out8(0x70, index);
        self.in8(0x71);
    }

    /// Writes BL to a byte of the CMOS memory.
    pub fn cmos_write_ebx(&mut self, index: u8) {
        self.out8(0x70, index);
        self.copy(Eax, Ebx);
        self.out_al(0x71);
    }

    /// EAX = a dword of configuration space on bus 0, by configuration mechanism #1.
    pub fn pci_read(&mut self, device: u8, function: u8, register: u8) {
        self.out32(0xcf8, pci_address(device, function, register));
        self.in32(0xcfc);
    }

    /// Writes a dword of configuration space on bus 0.
    pub fn pci_write(&mut self, device: u8, function: u8, register: u8, value: u32) {
        self.out32(0xcf8, pci_address(device, function, register));
        self.out32(0xcfc, value);
    }

    fn subroutines(&mut self) {
        // print: the text follows the call; lodsb is AC, test al,al 84 C0.
        let (print, print_hex) = (self.print, self.print_hex);
        self.place(print);
        // xchg esi, [esp] (87 34 24): the text's address, and the caller's ESI to where it was.
        self.bytes(&[0x87, 0x34, 0x24]);
        self.push(Eax);
        self.push(Edx);
        self.set(Edx, COM1.into());
        let (top, end) = (self.here(), self.label());
        self.bytes(&[0xac, 0x84, 0xc0]);
        self.jump_if(Cond::Equal, end);
        self.bytes(&[0xee]);
        self.jmp(top);
        self.place(end);
        self.pop(Edx);
        self.pop(Eax);
        // Back to the byte after the text.
        self.bytes(&[0x87, 0x34, 0x24]);
        self.ret();

        // print_hex: EAX, the highest digit first.
        self.place(print_hex);
        for reg in [Eax, Ebx, Ecx, Edx] {
            self.push(reg);
        }
        self.copy(Ebx, Eax);
        self.set(Edx, COM1.into());
        self.repeat(8, |asm| {
            // rol ebx, 4 (C1 /0)
            asm.bytes(&[0xc1, 0xc3, 4]);
            asm.copy(Eax, Ebx);
            asm.and(Eax, 0xf);
            asm.cmp(Eax, 10);
            let digit = asm.label();
            asm.jump_if(Cond::Below, digit);
            asm.add(Eax, u32::from(b'a' - b'9' - 1));
            asm.place(digit);
            asm.add(Eax, b'0'.into());
            asm.bytes(&[0xee]);
        });
        for reg in [Edx, Ecx, Ebx, Eax] {
            self.pop(reg);
        }
        self.ret();
    }
}

/// CONFIG_ADDRESS of a register of a function on bus 0.
fn pci_address(device: u8, function: u8, register: u8) -> u32 {
    1 << 31 | u32::from(device) << 11 | u32::from(function) << 8 | u32::from(register)
}
