//! Configuration space as bytes with rules: which bits a guest may write, and which bits a one clears.

use super::PciError;

/// Bytes of configuration space, PCI Express extended space included (PCIe 3.0, 7.2).
pub const CONFIG_SIZE: usize = 4096;

/// Configuration registers of a type 0 header and the bits of them that we act on (PCI 3.0, 6.1 and 6.2).
pub mod reg {
    /// Vendor ID, Device ID.
    pub const ID: u16 = 0x00;
    /// Command.
    pub const COMMAND: u16 = 0x04;
    /// Status.
    pub const STATUS: u16 = 0x06;
    /// Revision ID; the class code follows.
    pub const REVISION: u16 = 0x08;
    /// Header Type; bit 7 says that the device has more functions.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// The first of six base address registers.
    pub const BAR0: u16 = 0x10;
    /// Subsystem Vendor ID, Subsystem ID.
    pub const SUBSYSTEM: u16 = 0x2c;
    /// Expansion ROM base address register.
    pub const ROM: u16 = 0x30;
    /// Offset of the first capability.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt Line: storage for firmware.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt Pin: 0 for none, 1 for INTA#.
    pub const INTERRUPT_PIN: u16 = 0x3d;
}

/// Bits of the command and status registers (PCI 3.0, 6.2.2 and 6.2.3).
pub mod bits {
    /// Command: I/O space decoding.
    pub const IO_SPACE: u16 = 1 << 0;
    /// Command: memory space decoding.
    pub const MEMORY_SPACE: u16 = 1 << 1;
    /// Command: bus master.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// Command: parity error response, SERR# enable; storage only.
    pub const ERROR_REPORTING: u16 = 1 << 6 | 1 << 8;
    /// Command: INTx# stays inactive.
    pub const INTERRUPT_DISABLE: u16 = 1 << 10;
    /// Status: the function wants to interrupt.
    pub const INTERRUPT_STATUS: u16 = 1 << 3;
    /// Status: there is a capability list.
    pub const CAPABILITY_LIST: u16 = 1 << 4;
}

/// Capability IDs (PCI 3.0, appendix H).
pub mod cap {
    /// Message-signalled interrupts.
    pub const MSI: u8 = 0x05;
    /// Vendor-specific; virtio uses it.
    pub const VENDOR: u8 = 0x09;
    /// PCI Express.
    pub const PCI_EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
}

const FIRST_CAPABILITY: u16 = 0x40;
const END_OF_CAPABILITIES: u16 = 0x100;

/// What identifies a function: the constant part of a type 0 header.
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code: base class, sub-class and programming interface as 0xBBSSPP.
    pub class: u32,
    /// Subsystem Vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Interrupt Pin: 0 for none, 1 for INTA#.
    pub interrupt_pin: u8,
    /// Function 0 of a device with more functions.
    pub multifunction: bool,
}

/// 4096 bytes of registers. What was never defined reads zero and ignores writes.
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
    writable: Vec<u8>,
    one_clears: Vec<u8>,
    power_on: Vec<u8>,
    /// Where the offset of the next capability goes.
    link: u16,
    /// Dwords of 0x40..0x100 that a capability or a register occupies.
    taken: u64,
}

impl ConfigSpace {
    /// A type 0 header. Command and Interrupt Line are writable; BARs and capabilities are to be added.
    pub fn new(header: &Header) -> Self {
        let zeros = || vec![0; CONFIG_SIZE];
        let mut config = Self {
            bytes: zeros(),
            writable: zeros(),
            one_clears: zeros(),
            power_on: zeros(),
            link: reg::CAPABILITIES,
            taken: 0,
        };
        config.set(reg::ID, &header.vendor.to_le_bytes());
        config.set(reg::ID + 2, &header.device.to_le_bytes());
        config.set_u32(reg::REVISION, header.class << 8 | u32::from(header.revision));
        config.set(reg::HEADER_TYPE, &[u8::from(header.multifunction) << 7]);
        config.set(reg::SUBSYSTEM, &header.subsystem_vendor.to_le_bytes());
        config.set(reg::SUBSYSTEM + 2, &header.subsystem.to_le_bytes());
        config.set(reg::INTERRUPT_PIN, &[header.interrupt_pin]);
        let command = bits::IO_SPACE
            | bits::MEMORY_SPACE
            | bits::BUS_MASTER
            | bits::ERROR_REPORTING
            | bits::INTERRUPT_DISABLE;
        config.allow(reg::COMMAND, &command.to_le_bytes());
        config.allow(reg::INTERRUPT_LINE, &[0xff]);
        // Cache Line Size: storage that firmware and drivers fill in.
        config.allow(0x0c, &[0xff]);
        config.seal();
        config
    }

    /// Fills `data` from `offset`; beyond the last register it reads zero.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let stored = self.bytes.get(usize::from(offset)..).unwrap_or_default();
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = stored.get(i).copied().unwrap_or(0);
        }
    }

    /// A write by the guest: changes writable bits, clears write-one-to-clear bits, ignores the rest.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let start = usize::from(offset);
        let rules = self.writable.iter().zip(&self.one_clears).skip(start);
        for ((stored, (writable, one_clears)), value) in
            self.bytes.iter_mut().skip(start).zip(rules).zip(data)
        {
            *stored = (*stored & !writable | value & writable) & !(value & one_clears);
        }
    }

    /// The byte at `offset`.
    pub fn u8(&self, offset: u16) -> u8 {
        let mut b = [0; 1];
        self.read(offset, &mut b);
        u8::from_le_bytes(b)
    }

    /// The word at `offset`.
    pub fn u16(&self, offset: u16) -> u16 {
        let mut b = [0; 2];
        self.read(offset, &mut b);
        u16::from_le_bytes(b)
    }

    /// The dword at `offset`.
    pub fn u32(&self, offset: u16) -> u32 {
        let mut b = [0; 4];
        self.read(offset, &mut b);
        u32::from_le_bytes(b)
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        self.u16(reg::COMMAND)
    }

    /// Stores `data` at `offset` whatever the guest may do there.
    pub fn set(&mut self, offset: u16, data: &[u8]) {
        put(&mut self.bytes, offset, data);
    }

    /// Stores a dword as [`set`](Self::set) does.
    pub fn set_u32(&mut self, offset: u16, value: u32) {
        self.set(offset, &value.to_le_bytes());
    }

    /// Sets or clears bits of a word, as hardware does with status bits.
    pub fn assign_bits(&mut self, offset: u16, mask: u16, on: bool) {
        let value = self.u16(offset);
        let value = if on { value | mask } else { value & !mask };
        self.set(offset, &value.to_le_bytes());
    }

    /// Makes the one bits of `mask` at `offset` writable, and the others read-only.
    pub fn allow(&mut self, offset: u16, mask: &[u8]) {
        put(&mut self.writable, offset, mask);
    }

    /// Makes a written one clear the bits of `mask` at `offset`.
    pub fn clear_on_one(&mut self, offset: u16, mask: &[u8]) {
        put(&mut self.one_clears, offset, mask);
    }

    /// Adds a device-specific register of `power_on.len()` bytes with its writable bits.
    pub fn register(&mut self, offset: u16, power_on: &[u8], writable: &[u8]) {
        self.set(offset, power_on);
        self.allow(offset, writable);
    }

    /// Appends a capability at the first free dword of 0x40..0x100 and returns its offset. `body` is what
    /// follows the ID and the next pointer, read-only until [`allow`](Self::allow) says otherwise.
    pub fn capability(&mut self, id: u8, body: &[u8]) -> Result<u16, PciError> {
        let offset = (FIRST_CAPABILITY..END_OF_CAPABILITIES)
            .step_by(4)
            .find(|&offset| self.is_free(offset, body.len()))
            .ok_or(PciError::NoRoom { id })?;
        self.capability_at(offset, id, body)
    }

    /// Appends a capability at `offset`, for devices whose drivers expect it there.
    pub fn capability_at(&mut self, offset: u16, id: u8, body: &[u8]) -> Result<u16, PciError> {
        if !offset.is_multiple_of(4) || !self.is_free(offset, body.len()) {
            return Err(PciError::NoRoom { id });
        }
        self.taken |= dwords(offset, body.len()).ok_or(PciError::NoRoom { id })?;
        let [low, _] = offset.to_le_bytes();
        self.set(self.link, &[low]);
        self.set(offset, &[id, 0]);
        self.set(offset + 2, body);
        self.link = offset + 1;
        self.assign_bits(reg::STATUS, bits::CAPABILITY_LIST, true);
        Ok(offset)
    }

    fn is_free(&self, offset: u16, body: usize) -> bool {
        dwords(offset, body).is_some_and(|wanted| self.taken & wanted == 0)
    }

    /// What the registers hold now is their state after power-on.
    pub fn seal(&mut self) {
        self.power_on.clone_from(&self.bytes);
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        self.bytes.clone_from(&self.power_on);
    }
}

/// The dwords that a capability at `offset` occupies, as bits; `None` outside of 0x40..0x100.
fn dwords(offset: u16, body: usize) -> Option<u64> {
    let end = usize::from(offset).checked_add(2 + body)?;
    if offset < FIRST_CAPABILITY || end > usize::from(END_OF_CAPABILITIES) {
        return None;
    }
    let count = (2 + body).div_ceil(4);
    Some(((1_u64 << count) - 1) << (offset / 4))
}

fn put(into: &mut [u8], offset: u16, data: &[u8]) {
    for (byte, value) in into.iter_mut().skip(usize::from(offset)).zip(data) {
        *byte = *value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hba() -> ConfigSpace {
        ConfigSpace::new(&Header {
            vendor: 0x1000,
            device: 0x0079,
            revision: 5,
            class: 0x01_04_00,
            subsystem_vendor: 0x1000,
            subsystem: 0x9261,
            interrupt_pin: 1,
            multifunction: false,
        })
    }

    #[test]
    fn header_bytes() {
        let c = hba();
        let mut head = [0; 0x40];
        c.read(0, &mut head);
        let mut want = [0; 0x40];
        want[..4].copy_from_slice(&[0x00, 0x10, 0x79, 0x00]);
        want[8..12].copy_from_slice(&[0x05, 0x00, 0x04, 0x01]);
        want[0x2c..0x30].copy_from_slice(&[0x00, 0x10, 0x61, 0x92]);
        want[0x3d] = 1;
        assert_eq!(head, want);
    }

    #[test]
    fn command_keeps_only_defined_bits() {
        let mut c = hba();
        c.write(4, &[0xff; 4]);
        assert_eq!(c.u32(4), 0x0000_0547);
        c.write(5, &[0]);
        assert_eq!(c.u32(4), 0x0000_0047);
    }

    #[test]
    fn capabilities_chain_around_fixed_ones() {
        let mut c = hba();
        assert_eq!(c.capability_at(0x50, 0x05, &[0; 12]).unwrap(), 0x50);
        assert_eq!(c.capability_at(0x68, 0x11, &[0; 10]).unwrap(), 0x68);
        // 18 bytes do not fit below 0x50, nor between 0x60 and 0x68.
        assert_eq!(c.capability(0x09, &[0xaa; 16]).unwrap(), 0x74);
        assert_eq!(c.capability(0x09, &[1, 2]).unwrap(), 0x40);
        assert_eq!(c.u8(0x34), 0x50);
        assert_eq!((c.u16(0x50), c.u16(0x68), c.u16(0x74), c.u16(0x40)), (0x6805, 0x7411, 0x4009, 0x0009));
        assert_eq!(c.u16(6) & 0x10, 0x10);
        assert!(c.capability_at(0x52, 9, &[]).is_err());
        assert!(c.capability_at(0x64, 9, &[0; 6]).is_err(), "overlaps 0x68");
        assert!(c.capability_at(0xfc, 9, &[0; 6]).is_err(), "beyond 0x100");
        assert!(c.capability_at(0x3c, 9, &[0; 2]).is_err(), "in the header");
        assert!(c.capability(9, &[0; 0x80]).is_err());
    }

    #[test]
    fn ones_clear_and_reset_restores() {
        let mut c = hba();
        c.register(0x80, &[0x0f, 0x21], &[0xf0, 0]);
        c.clear_on_one(0x80, &[0x0f]);
        c.seal();
        c.write(0x80, &[0xa5, 0xff]);
        assert_eq!(c.u16(0x80), 0x21aa);
        c.reset();
        assert_eq!(c.u16(0x80), 0x210f);
    }

    #[test]
    fn the_end_reads_zero() {
        let c = hba();
        let mut b = [0xee; 4];
        c.read(0xffe, &mut b);
        assert_eq!(b, [0; 4]);
        c.read(0xffff, &mut b);
        assert_eq!(b, [0; 4]);
    }

    proptest! {
        #[test]
        fn any_write_touches_writable_bits_only(offset: u16, data: Vec<u8>) {
            let mut c = hba();
            c.write(offset, &data);
            let identity = (c.u32(0), c.u32(8), c.u32(0x2c), c.u16(6));
            prop_assert_eq!(identity, (0x0079_1000, 0x0104_0005, 0x9261_1000, 0));
            prop_assert_eq!(c.command() & !0x0547, 0);
        }
    }
}
