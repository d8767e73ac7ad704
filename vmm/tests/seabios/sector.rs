//! Boot sectors: 16-bit code, made here byte by byte.

/// Where the BIOS loads a boot sector.
const ORIGIN: u16 = 0x7c00;

/// A boot sector under construction.
pub(crate) struct Sector(Vec<u8>);

impl Sector {
    /// cli; xor ax, ax; mov ds, ax; cld. Without interrupts: at each tick SeaBIOS prints to COM1 too.
    pub(crate) fn new() -> Self {
        Self(vec![0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0xfc])
    }

    pub(crate) fn code(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Prints `text` to COM1 and the debug console.
    pub(crate) fn print(self, text: &str) -> Self {
        let over = text.len() as u8 + 1;
        // jmp over the text; the text; mov si, text
        let at = (ORIGIN + self.0.len() as u16 + 2).to_le_bytes();
        let sector = self.code(&[0xeb, over]).code(text.as_bytes()).code(&[0, 0xbe, at[0], at[1]]);
        // lodsb; test al, al; jz end; mov dx, 3f8h; out dx, al; mov dx, 402h; out dx, al; jmp lodsb
        sector
            .code(&[0xac, 0x84, 0xc0, 0x74, 0x0a, 0xba, 0xf8, 0x03, 0xee, 0xba, 0x02, 0x04, 0xee, 0xeb, 0xf1])
    }

    /// mov dx, port; mov al, value; out dx, al
    pub(crate) fn out(self, port: u16, value: u8) -> Self {
        let [low, high] = port.to_le_bytes();
        self.code(&[0xba, low, high, 0xb0, value, 0xee])
    }

    /// Soft-off: mov dx, 604h (PM1_CNT); mov ax, 2000h (SLP_EN); out dx, ax
    pub(crate) fn power_off(self) -> Self {
        self.code(&[0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef])
    }

    /// Shuts the processor down: lidt of a limit of zero from the operand that follows the code; mov eax, cr0;
    /// or al, 1; mov cr0, eax; then in protected mode mov ax, fff8h; mov ds, ax, a selector that is none.
    pub(crate) fn triple_fault(self) -> Self {
        let at = (ORIGIN + self.0.len() as u16 + 18).to_le_bytes();
        let code = [0x0f, 0x01, 0x1e, at[0], at[1], 0x0f, 0x20, 0xc0, 0x0c, 1, 0x0f, 0x22, 0xc0];
        self.code(&code).code(&[0xb8, 0xf8, 0xff, 0x8e, 0xd8]).code(&[0; 6])
    }

    /// Reads CMOS memory at `index` and goes on with `then` for each value from 0 on, else with what follows; the
    /// value in memory is one more afterwards.
    pub(crate) fn count(mut self, index: u8, then: impl Fn(Self, u8) -> Self, turns: u8) -> Self {
        // mov al, index; out 70h, al; in al, 71h; mov bl, al
        self = self.code(&[0xb0, index, 0xe6, 0x70, 0xe4, 0x71, 0x88, 0xc3]);
        // inc al; out 71h, al
        self = self.code(&[0xfe, 0xc0, 0xe6, 0x71]);
        // cmp bl, turns; jae behind all kinds
        self = self.code(&[0x80, 0xfb, turns, 0x0f, 0x83, 0, 0]);
        let (behind, kinds) = (self.0.len(), 4);
        // and bl, 3
        self = self.code(&[0x80, 0xe3, 0x03]);
        for kind in 0..kinds {
            // cmp bl, kind; jne next
            self = self.code(&[0x80, 0xfb, kind, 0x75, 0]);
            let from = self.0.len();
            self = then(self, kind).halt();
            self.0[from - 1] = (self.0.len() - from) as u8;
        }
        let distance = ((self.0.len() - behind) as u16).to_le_bytes();
        self.0[behind - 2..behind].copy_from_slice(&distance);
        self
    }

    /// Sends `len` bytes of physical memory at `address` to COM1.
    pub(crate) fn dump(self, address: u32, len: u32) -> Self {
        // The table: a null descriptor, data of 4 GiB; then its limit and address.
        let table = ORIGIN + self.0.len() as u16 + 2;
        let [low, high] = table.to_le_bytes();
        let pointer = (table + 16).to_le_bytes();
        let mut sector = self.code(&[0xeb, 22]).code(&[0; 8]).code(&[0xff, 0xff, 0, 0, 0, 0x92, 0xcf, 0]);
        sector = sector.code(&[15, 0, low, high, 0, 0]);
        // cli; lgdt; mov eax, cr0; or al, 1; mov cr0, eax; mov bx, 8; mov ds, bx; and al, feh; mov cr0, eax
        sector = sector.code(&[0xfa, 0x0f, 0x01, 0x16, pointer[0], pointer[1]]).code(&[
            0x0f, 0x20, 0xc0, 0x0c, 1, 0x0f, 0x22, 0xc0, 0xbb, 8, 0, 0x8e, 0xdb, 0x24, 0xfe, 0x0f, 0x22, 0xc0,
        ]);
        // xor bx, bx; mov ds, bx: the limit stays. mov esi, address; mov ecx, len; mov dx, 3f8h
        sector = sector.code(&[0x31, 0xdb, 0x8e, 0xdb, 0x66, 0xbe]).code(&address.to_le_bytes());
        sector = sector.code(&[0x66, 0xb9]).code(&len.to_le_bytes()).code(&[0xba, 0xf8, 0x03]);
        // next: mov al, [esi]; out dx, al; inc esi; dec ecx; jnz next
        sector.code(&[0x67, 0x8a, 0x06, 0xee, 0x66, 0x46, 0x66, 0x49, 0x75, 0xf6])
    }

    /// next: hlt; jmp next
    pub(crate) fn halt(self) -> Self {
        self.code(&[0xf4, 0xeb, 0xfd])
    }

    /// The sector, with the signature.
    pub(crate) fn finish(self) -> Vec<u8> {
        let mut bytes = self.halt().0;
        assert!(bytes.len() <= 510, "{} bytes are no boot sector", bytes.len());
        bytes.resize(510, 0);
        bytes.extend([0x55, 0xaa]);
        bytes
    }
}
