//! What firmware finds in the battery-backed memory behind the clock, as the PC's convention has it.

/// What the CMOS memory tells the firmware about the machine.
#[derive(Clone, Debug)]
pub struct CmosConfig {
    /// Bytes of RAM from address 0 up to the hole below 4 GiB.
    pub ram_below_4g: u64,
    /// Bytes of RAM from 4 GiB up.
    pub ram_above_4g: u64,
    /// Number of vCPUs, at least 1. SeaBIOS waits for exactly so many.
    pub vcpus: u32,
    /// Where the firmware looks for an operating system, first choice first.
    pub boot_order: [BootDevice; 3],
    /// Seconds by which the clock is ahead of UTC: 0, or [`local_utc_offset_secs`] for guests that expect local time.
    ///
    /// [`local_utc_offset_secs`]: crate::platform::clock::local_utc_offset_secs
    pub utc_offset_secs: i32,
}

/// A class of boot devices, by its code in the CMOS memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BootDevice {
    /// No further device.
    None = 0,
    /// Floppy disk.
    Floppy = 1,
    /// Hard disk.
    HardDisk = 2,
    /// CD or DVD.
    CdRom = 3,
    /// Network.
    Network = 4,
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// Bytes of CMOS memory.
pub(super) const SIZE: usize = 128;

/// The memory as the factory ships it. The clock's registers are zero.
pub(super) fn contents(config: &CmosConfig) -> [u8; SIZE] {
    let mut memory = [0; SIZE];
    let mut put = |index: usize, bytes: &[u8]| {
        if let Some(target) = memory.get_mut(index..index + bytes.len()) {
            target.copy_from_slice(bytes);
        }
    };
    let word = |value: u64| u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes();
    // Equipment: a coprocessor and a PS/2 mouse.
    put(0x14, &[0x06]);
    put(0x15, &word(640));
    let above_1m = word(config.ram_below_4g.saturating_sub(MIB) / KIB);
    put(0x17, &above_1m);
    put(0x30, &above_1m);
    put(0x34, &word(config.ram_below_4g.saturating_sub(16 * MIB) / (64 * KIB)));
    let [first, second, third] = config.boot_order.map(|device| device as u8);
    put(0x38, &[third << 4]);
    put(0x3d, &[second << 4 | first]);
    let [low, middle, high, ..] = (config.ram_above_4g / (64 * KIB)).min(0xff_ffff).to_le_bytes();
    put(0x5b, &[low, middle, high]);
    put(0x5f, &[u8::try_from(config.vcpus.saturating_sub(1)).unwrap_or(u8::MAX)]);
    let sum = memory.get(0x10..0x2e).unwrap_or_default().iter().map(|byte| u16::from(*byte)).sum::<u16>();
    let [low, high] = sum.to_le_bytes();
    if let Some(target) = memory.get_mut(0x2e..0x30) {
        target.copy_from_slice(&[high, low]);
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(ram_below_4g: u64, ram_above_4g: u64, vcpus: u32) -> CmosConfig {
        let boot_order = [BootDevice::HardDisk, BootDevice::CdRom, BootDevice::Network];
        CmosConfig { ram_below_4g, ram_above_4g, vcpus, boot_order, utc_offset_secs: 0 }
    }

    #[test]
    fn sizes_and_counts() {
        let memory = contents(&config(2 << 30, 6 << 30, 8));
        assert_eq!(memory[0x15..0x19], [0x80, 0x02, 0xff, 0xff]);
        assert_eq!(memory[0x30..0x32], [0xff, 0xff], "more than 64 MiB saturates");
        assert_eq!(memory[0x34..0x36], [0x00, 0x7f], "(2 GiB - 16 MiB) / 64 KiB");
        assert_eq!(memory[0x5b..0x5e], [0x00, 0x80, 0x01], "6 GiB / 64 KiB");
        assert_eq!(memory[0x5f], 7);
        assert_eq!((memory[0x3d], memory[0x38]), (0x32, 0x40));
        assert_eq!(memory[0x0f], 0, "no shutdown code");
    }

    #[test]
    fn small_and_absurd_machines() {
        let memory = contents(&config(8 << 20, 0, 1));
        assert_eq!(memory[0x30..0x32], [0x00, 0x1c], "7 MiB in KiB");
        assert_eq!(memory[0x34..0x36], [0, 0]);
        assert_eq!(memory[0x5f], 0);
        let memory = contents(&config(u64::MAX, u64::MAX, 100_000));
        assert_eq!((memory[0x5f], memory[0x5d]), (0xff, 0xff));
        contents(&config(0, 0, 0));
    }

    #[test]
    fn checksum_covers_10h_to_2dh_high_byte_first() {
        let memory = contents(&config(2 << 30, 0, 1));
        // 06 + 80 + 02 + ff + ff = 286h.
        assert_eq!(memory[0x2e..0x30], [0x02, 0x86]);
    }
}
