//! A firmware of our own that looks at the machine as it is after each reset: what SeaBIOS does not tell.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::machine::{Plan, image};

/// A byte of CMOS memory that nobody uses: it survives resets.
const COUNTER: u8 = 0x40;
/// How often the machine resets.
const TURNS: u8 = 100;

/// 16-bit code without memory: registers and ports only.
struct Code(Vec<u8>);

impl Code {
    fn code(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// mov dx, port; mov al, value; out dx, al
    fn out(self, port: u16, value: u8) -> Self {
        let [low, high] = port.to_le_bytes();
        self.code(&[0xba, low, high, 0xb0, value, 0xee])
    }

    fn print(self, text: &str) -> Self {
        text.bytes().fold(self, |code, byte| code.out(0x402, byte))
    }

    /// mov dx, port; in al, dx; mov dx, 402h; out dx, al
    fn show_port(self, port: u16) -> Self {
        let [low, high] = port.to_le_bytes();
        self.code(&[0xba, low, high, 0xec]).show()
    }

    /// mov dx, 402h; out dx, al
    fn show(self) -> Self {
        self.code(&[0xba, 0x02, 0x04, 0xee])
    }

    /// mov dx, cf8h; mov eax, address; out dx, eax; mov dx, cfch
    fn config(self, device: u32, register: u32) -> Self {
        let address = (1 << 31 | device << 11 | register).to_le_bytes();
        self.code(&[0xba, 0xf8, 0x0c, 0x66, 0xb8]).code(&address).code(&[0x66, 0xef, 0xba, 0xfc, 0x0c])
    }

    /// Shows a dword of configuration space: in eax, dx; then byte by byte, shr eax, 8 between.
    fn show_config(self, device: u32, register: u32) -> Self {
        let mut code = self.config(device, register).code(&[0x66, 0xed]);
        for _ in 0..4 {
            code = code.show().code(&[0x66, 0xc1, 0xe8, 8]);
        }
        code
    }

    /// Writes a dword of configuration space: mov eax, value; out dx, eax
    fn write_config(self, device: u32, register: u32, value: u32) -> Self {
        self.config(device, register).code(&[0x66, 0xb8]).code(&value.to_le_bytes()).code(&[0x66, 0xef])
    }
}

/// Shows what it finds between "<" and ">", changes all of it, and resets in four ways by turns.
fn image_bytes() -> Vec<u8> {
    let mut code = Code(Vec::new()).print("<");
    // smsw ax; then both bytes of it
    code = code.code(&[0x0f, 0x01, 0xe0]).show().code(&[0xc1, 0xe8, 8]).show();
    code = code.show_config(0, 0x60).show_config(0, 0x64).show_config(0, 0x90);
    code =
        code.show_config(0x1f, 0x40).show_config(0x1f, 0x44).show_config(0x1f, 0x60).show_config(0x1f, 0xf0);
    // A20, the master PIC's mask, the UART's scratch register, an unclaimed port.
    code = code.show_port(0x92).show_port(0x21).show_port(0x3ff).show_port(0x510).show_port(0x2f8);
    code = code.print(">");
    code = code.write_config(0, 0x60, 0xb000_0001).write_config(0, 0x90, 0x3333_3330);
    code = code.write_config(0x1f, 0x40, 0x601).write_config(0x1f, 0x44, 0x80).write_config(
        0x1f,
        0x60,
        0x0b0b_0a0a,
    );
    code = code.write_config(0x1f, 0xf0, 0xfed1_c001).out(0x21, 0xfe).out(0x3ff, 0x5a).out(0x92, 0);
    // The counter: mov al, index; out 70h, al; in al, 71h; mov bl, al; inc al; out 71h, al; cmp bl, TURNS
    code = code.code(&[
        0xb0, COUNTER, 0xe6, 0x70, 0xe4, 0x71, 0x88, 0xc3, 0xfe, 0xc0, 0xe6, 0x71, 0x80, 0xfb, TURNS,
    ]);
    // jb on; print; hlt
    let done = Code(Vec::new()).print("done").code(&[0xf4, 0xeb, 0xfd]).0;
    code = code.code(&[0x72, done.len() as u8]).code(&done);
    // and bl, 3
    code = code.code(&[0x80, 0xe3, 3]);
    let kinds = [
        Code(Vec::new()).out(0xcf9, 0x06),
        Code(Vec::new()).out(0x92, 0x01),
        Code(Vec::new()).out(0x64, 0xfe),
        // lidt [500h], which is zero; mov eax, cr0; or al, 1; mov cr0, eax; mov ax, fff8h; mov ds, ax
        Code(Vec::new())
            .code(&[0x0f, 0x01, 0x1e, 0, 5, 0x0f, 0x20, 0xc0, 0x0c, 1, 0x0f, 0x22, 0xc0])
            .code(&[0xb8, 0xf8, 0xff, 0x8e, 0xd8]),
    ];
    for (number, kind) in (0..).zip(kinds) {
        let kind = kind.code(&[0xf4, 0xeb, 0xfd]).0;
        // cmp bl, number; jne next
        code = code.code(&[0x80, 0xfb, number, 0x75, kind.len() as u8]).code(&kind);
    }
    let mut bytes = vec![0x90; 0x1_0000];
    let start = 0x8000;
    bytes[start..start + code.0.len()].copy_from_slice(&code.0);
    // The reset vector: jmp near to the code.
    let distance = (start as u16).wrapping_sub(0xfff3).to_le_bytes();
    bytes[0xfff0..0xfff3].copy_from_slice(&[0xe9, distance[0], distance[1]]);
    bytes
}

/// What a machine is like after power-on.
const EXPECTED: [u8; 35] = [
    // CR0: ET.
    0x10, 0x00, // PCIEXBAR off; PAM0 to PAM3 closed.
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // PMBASE: I/O, nowhere; ACPI off.
    1, 0, 0, 0, 0, 0, 0, 0, // Routes off.
    0x80, 0x80, 0x80, 0x80, // RCBA off.
    0, 0, 0, 0, // A20 open; all interrupts unmasked; scratch; selector is write-only; no second UART.
    2, 0, 0, 0xff, 0xff,
];

#[test]
fn a_hundred_resets_of_four_kinds_lead_to_the_same_state() {
    // Only to know whether there is KVM, and whether it must be there.
    if image().is_none() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let path: &Path = &dir.path().join("own.bin");
    fs::write(path, image_bytes()).unwrap();
    let mut machine = Plan { cpus: 2, memory: "16MiB", log: "info", ..Plan::new(path) }.start();
    machine.wait("the end", |machine| machine.bytes("debug").ends_with(b"done").then_some(()));
    let debug = machine.bytes("debug");
    let records: Vec<&[u8]> = debug.chunks(EXPECTED.len() + 2).collect();
    assert_eq!(records.len(), usize::from(TURNS) + 2, "101 starts and the end");
    for record in &records[..records.len() - 1] {
        assert_eq!((record[0], record[record.len() - 1]), (b'<', b'>'));
        assert_eq!(record[1..record.len() - 1], EXPECTED);
    }
    // How often each is logged is limited.
    let log = machine.text("log");
    for reset in ["port 0xcf9", "port 92h", "keyboard controller", "triple fault"] {
        assert!(log.contains(reset), "{reset}:\n{log}");
    }
}
