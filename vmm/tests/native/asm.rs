//! A small assembler for 32-bit protected mode: the few instructions that the guests of these tests need.
//!
//! Encodings: Intel SDM volume 2. "/n" is a number in the reg field of the ModRM byte, "+r" a register number added to
//! the opcode. Immediates and displacements are always 32 bits wide unless the name says otherwise.

/// Where the code is loaded and entered.
pub const BASE: u32 = boot::testing::CODE_ADDRESS;

/// General registers by their number in encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    Eax = 0,
    Ecx = 1,
    Edx = 2,
    Ebx = 3,
    Esi = 6,
    Edi = 7,
}
pub use Reg::*;

/// Condition codes by their number in encodings.
#[derive(Clone, Copy, Debug)]
pub enum Cond {
    Below = 2,
    Equal = 4,
    NotEqual = 5,
}

/// A place in the code, known now or later.
#[derive(Clone, Copy, Debug)]
pub struct Label(usize);

/// Code under construction.
#[derive(Default)]
pub struct Asm {
    code: Vec<u8>,
    labels: Vec<Option<u32>>,
    /// Four bytes of code at the offset take the label's address: absolute, or relative to the byte after them.
    fixups: Vec<(usize, Label, bool)>,
}

impl Asm {
    /// The finished code.
    pub fn finish(mut self) -> Vec<u8> {
        for (at, label, relative) in std::mem::take(&mut self.fixups) {
            let target = self.labels[label.0].expect("a label that was never placed");
            let value = if relative { target.wrapping_sub(at as u32 + 4) } else { BASE + target };
            self.code[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        self.code
    }

    /// Bytes as they are: instructions in hand-made form, or data.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend(bytes);
    }

    fn op_imm(&mut self, opcode: &[u8], value: u32) {
        self.bytes(opcode);
        self.bytes(&value.to_le_bytes());
    }

    // Labels and jumps.

    /// A label to be placed later.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// A label at this place.
    pub fn here(&mut self) -> Label {
        let label = self.label();
        self.place(label);
        label
    }

    /// Places a label here.
    pub fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len() as u32);
    }

    fn fixup(&mut self, label: Label, relative: bool) {
        self.fixups.push((self.code.len(), label, relative));
        self.bytes(&[0; 4]);
    }

    /// The absolute address of the label, as four bytes of data.
    pub fn address(&mut self, label: Label) {
        self.fixup(label, false);
    }

    /// `jmp label` (E9).
    pub fn jmp(&mut self, label: Label) {
        self.bytes(&[0xe9]);
        self.fixup(label, true);
    }

    /// `jcc label` (0F 80+cc).
    pub fn jump_if(&mut self, cond: Cond, label: Label) {
        self.bytes(&[0x0f, 0x80 + cond as u8]);
        self.fixup(label, true);
    }

    /// `call label` (E8).
    pub fn call(&mut self, label: Label) {
        self.bytes(&[0xe8]);
        self.fixup(label, true);
    }

    /// `ret`.
    pub fn ret(&mut self) {
        self.bytes(&[0xc3]);
    }

    // Data movement.

    /// `mov reg, value` (B8+r).
    pub fn set(&mut self, reg: Reg, value: u32) {
        self.op_imm(&[0xb8 + reg as u8], value);
    }

    /// `mov reg, address of label`.
    pub fn set_address(&mut self, reg: Reg, label: Label) {
        self.bytes(&[0xb8 + reg as u8]);
        self.address(label);
    }

    /// `mov to, from` (89 /r).
    pub fn copy(&mut self, to: Reg, from: Reg) {
        self.bytes(&[0x89, 0xc0 | (from as u8) << 3 | to as u8]);
    }

    /// `mov reg, [base + offset]` (8B /r).
    pub fn load(&mut self, reg: Reg, base: Reg, offset: i32) {
        self.op_imm(&[0x8b, 0x80 | (reg as u8) << 3 | base as u8], offset.cast_unsigned());
    }

    /// `mov [base + offset], reg` (89 /r).
    pub fn store(&mut self, base: Reg, offset: i32, reg: Reg) {
        self.op_imm(&[0x89, 0x80 | (reg as u8) << 3 | base as u8], offset.cast_unsigned());
    }

    /// `movzx reg, byte [base + offset]` (0F B6 /r).
    pub fn load8(&mut self, reg: Reg, base: Reg, offset: i32) {
        self.op_imm(&[0x0f, 0xb6, 0x80 | (reg as u8) << 3 | base as u8], offset.cast_unsigned());
    }

    /// `movzx reg, word [base + offset]` (0F B7 /r).
    pub fn load16(&mut self, reg: Reg, base: Reg, offset: i32) {
        self.op_imm(&[0x0f, 0xb7, 0x80 | (reg as u8) << 3 | base as u8], offset.cast_unsigned());
    }

    /// `mov reg, [address]` (8B /r with a bare displacement).
    pub fn load_abs(&mut self, reg: Reg, address: u32) {
        self.op_imm(&[0x8b, (reg as u8) << 3 | 5], address);
    }

    /// `mov [address], reg` (89 /r with a bare displacement).
    pub fn store_abs(&mut self, address: u32, reg: Reg) {
        self.op_imm(&[0x89, (reg as u8) << 3 | 5], address);
    }

    /// `push reg` (50+r).
    pub fn push(&mut self, reg: Reg) {
        self.bytes(&[0x50 + reg as u8]);
    }

    /// `pop reg` (58+r).
    pub fn pop(&mut self, reg: Reg) {
        self.bytes(&[0x58 + reg as u8]);
    }

    // Arithmetic: 81 /n with an immediate.

    /// `add reg, value`.
    pub fn add(&mut self, reg: Reg, value: u32) {
        self.op_imm(&[0x81, 0xc0 | reg as u8], value);
    }

    /// `sub reg, value`.
    pub fn sub(&mut self, reg: Reg, value: u32) {
        self.op_imm(&[0x81, 0xe8 | reg as u8], value);
    }

    /// `and reg, value`.
    pub fn and(&mut self, reg: Reg, value: u32) {
        self.op_imm(&[0x81, 0xe0 | reg as u8], value);
    }

    /// `or reg, value`.
    pub fn or(&mut self, reg: Reg, value: u32) {
        self.op_imm(&[0x81, 0xc8 | reg as u8], value);
    }

    /// `cmp reg, value`.
    pub fn cmp(&mut self, reg: Reg, value: u32) {
        self.op_imm(&[0x81, 0xf8 | reg as u8], value);
    }

    /// `cmp a, b` (39 /r).
    pub fn cmp_reg(&mut self, a: Reg, b: Reg) {
        self.bytes(&[0x39, 0xc0 | (b as u8) << 3 | a as u8]);
    }

    /// `and to, from` (21 /r).
    pub fn and_reg(&mut self, to: Reg, from: Reg) {
        self.bytes(&[0x21, 0xc0 | (from as u8) << 3 | to as u8]);
    }

    /// `or to, from` (09 /r).
    pub fn or_reg(&mut self, to: Reg, from: Reg) {
        self.bytes(&[0x09, 0xc0 | (from as u8) << 3 | to as u8]);
    }

    /// `shl reg, count` (C1 /4).
    pub fn shl(&mut self, reg: Reg, count: u8) {
        self.bytes(&[0xc1, 0xe0 | reg as u8, count]);
    }

    // Ports. The value travels in EAX, the port number in EDX.

    /// Writes a byte to a port: `mov edx, port; mov eax, value; out dx, al` (EE).
    pub fn out8(&mut self, port: u16, value: u8) {
        self.set(Edx, port.into());
        self.set(Eax, value.into());
        self.bytes(&[0xee]);
    }

    /// Writes two bytes to a port (66 EF).
    pub fn out16(&mut self, port: u16, value: u16) {
        self.set(Edx, port.into());
        self.set(Eax, value.into());
        self.bytes(&[0x66, 0xef]);
    }

    /// Writes four bytes to a port (EF).
    pub fn out32(&mut self, port: u16, value: u32) {
        self.set(Edx, port.into());
        self.set(Eax, value);
        self.bytes(&[0xef]);
    }

    /// Writes AL to a port.
    pub fn out_al(&mut self, port: u16) {
        self.set(Edx, port.into());
        self.bytes(&[0xee]);
    }

    /// Writes EAX to a port.
    pub fn out_eax(&mut self, port: u16) {
        self.set(Edx, port.into());
        self.bytes(&[0xef]);
    }

    /// EAX = a byte from a port (EC).
    pub fn in8(&mut self, port: u16) {
        self.set(Edx, port.into());
        self.set(Eax, 0);
        self.bytes(&[0xec]);
    }

    /// EAX = two bytes from a port (66 ED).
    pub fn in16(&mut self, port: u16) {
        self.set(Edx, port.into());
        self.set(Eax, 0);
        self.bytes(&[0x66, 0xed]);
    }

    /// EAX = four bytes from a port (ED).
    pub fn in32(&mut self, port: u16) {
        self.set(Edx, port.into());
        self.bytes(&[0xed]);
    }

    // Others.

    /// `hlt`.
    pub fn hlt(&mut self) {
        self.bytes(&[0xf4]);
    }

    /// `cli`.
    pub fn cli(&mut self) {
        self.bytes(&[0xfa]);
    }

    /// `sti`.
    pub fn sti(&mut self) {
        self.bytes(&[0xfb]);
    }

    /// CPUID of `leaf` and `subleaf` (0F A2): the result is in EAX to EDX.
    pub fn cpuid(&mut self, leaf: u32, subleaf: u32) {
        self.set(Eax, leaf);
        self.set(Ecx, subleaf);
        self.bytes(&[0x0f, 0xa2]);
    }

    /// Repeats `body` while ECX counts down from `count` to zero. The body keeps ECX.
    pub fn repeat(&mut self, count: u32, body: impl FnOnce(&mut Self)) {
        self.set(Ecx, count);
        let top = self.here();
        body(self);
        self.sub(Ecx, 1);
        self.jump_if(Cond::NotEqual, top);
    }
}
