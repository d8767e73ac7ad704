//! Names of registers, for the trace of accesses.

use devices::pci::{Bdf, Lpc, Mch};

/// First byte, length and name.
type Register = (u64, u64, &'static str);

/// The registers of a device on a bus: its name there, its name in the trace, and its registers.
const DEVICES: &[(&str, &str, &[Register])] = &[
    // ICH9, 13.8.3; ACPI 4.8.
    (
        "acpi-pm",
        "pm",
        &[
            (0x00, 2, "PM1_STS"),
            (0x02, 2, "PM1_EN"),
            (0x04, 4, "PM1_CNT"),
            (0x08, 4, "PM_TMR"),
            (0x20, 8, "GPE0_STS"),
            (0x28, 8, "GPE0_EN"),
            (0x30, 4, "SMI_EN"),
            (0x34, 4, "SMI_STS"),
            (0x60, 32, "TCO"),
        ],
    ),
    ("rtc", "cmos", &[(0, 1, "INDEX"), (1, 1, "DATA")]),
    ("i8042", "i8042", &[(0, 1, "DATA"), (4, 1, "CMD_STS")]),
    ("port92", "lpc", &[(0, 1, "PORT92")]),
    ("APM", "apm", &[(0, 1, "APM_CNT"), (1, 1, "APM_STS")]),
    ("DMA pages", "dma", &[(0, 1, "POST_CODE"), (1, 15, "PAGE")]),
    ("debug-console", "debug", &[(0, 1, "CONSOLE")]),
    ("rcba", "rcba", &[(0, 1 << 14, "REG")]),
    (
        "serial",
        "com1",
        &[
            (0, 1, "DATA"),
            (1, 1, "IER"),
            (2, 1, "IIR_FCR"),
            (3, 1, "LCR"),
            (4, 1, "MCR"),
            (5, 1, "LSR"),
            (6, 1, "MSR"),
            (7, 1, "SCR"),
        ],
    ),
    ("fw_cfg", "fw_cfg", &[(0, 1, "SELECT"), (1, 1, "DATA"), (4, 4, "DMA_HIGH"), (8, 4, "DMA_LOW")]),
    ("pci-config", "pci", &[(0, 4, "CONFIG_ADDRESS")]),
];

/// PCI 3.0, 6.1: the header of every function.
const HEADER: &[Register] = &[
    (0x00, 2, "VENDOR_ID"),
    (0x02, 2, "DEVICE_ID"),
    (0x04, 2, "COMMAND"),
    (0x06, 2, "STATUS"),
    (0x08, 1, "REVISION"),
    (0x09, 3, "CLASS"),
    (0x0c, 1, "CACHE_LINE"),
    (0x0d, 1, "LATENCY"),
    (0x0e, 1, "HEADER_TYPE"),
    (0x0f, 1, "BIST"),
    (0x10, 4, "BAR0"),
    (0x14, 4, "BAR1"),
    (0x18, 4, "BAR2"),
    (0x1c, 4, "BAR3"),
    (0x20, 4, "BAR4"),
    (0x24, 4, "BAR5"),
    (0x28, 4, "CARDBUS_CIS"),
    (0x2c, 2, "SUBSYSTEM_VENDOR"),
    (0x2e, 2, "SUBSYSTEM"),
    (0x30, 4, "ROM"),
    (0x34, 1, "CAPABILITIES"),
    (0x3c, 1, "INTERRUPT_LINE"),
    (0x3d, 1, "INTERRUPT_PIN"),
    (0x3e, 1, "MIN_GNT"),
    (0x3f, 1, "MAX_LAT"),
];

/// Intel 3 Series datasheet, 5.1.
const MCH: &[Register] = &[
    (0x40, 8, "EPBAR"),
    (0x48, 8, "MCHBAR"),
    (0x60, 8, "PCIEXBAR"),
    (0x68, 8, "DMIBAR"),
    (0x90, 1, "PAM0"),
    (0x91, 1, "PAM1"),
    (0x92, 1, "PAM2"),
    (0x93, 1, "PAM3"),
    (0x94, 1, "PAM4"),
    (0x95, 1, "PAM5"),
    (0x96, 1, "PAM6"),
    (0x9d, 1, "SMRAM"),
    (0x9e, 1, "ESMRAMC"),
];

/// ICH9, 13.1.
const LPC: &[Register] = &[
    (0x40, 4, "PMBASE"),
    (0x44, 1, "ACPI_CNTL"),
    (0x48, 4, "GPIOBASE"),
    (0x60, 1, "PIRQA"),
    (0x61, 1, "PIRQB"),
    (0x62, 1, "PIRQC"),
    (0x63, 1, "PIRQD"),
    (0x68, 1, "PIRQE"),
    (0x69, 1, "PIRQF"),
    (0x6a, 1, "PIRQG"),
    (0x6b, 1, "PIRQH"),
    (0x80, 2, "LPC_IO_DEC"),
    (0x82, 2, "LPC_EN"),
    (0xa0, 2, "GEN_PMCON_1"),
    (0xa2, 2, "GEN_PMCON_2"),
    (0xa4, 1, "GEN_PMCON_3"),
    (0xdc, 1, "BIOS_CNTL"),
    (0xf0, 4, "RCBA"),
];

fn find(registers: &[Register], at: u64) -> Option<(&'static str, u64)> {
    let (first, _, name) = registers.iter().find(|(first, len, _)| (*first..first + len).contains(&at))?;
    Some((name, at - first))
}

/// The register at `offset` of the bus device called `name`: device, register, and the distance from its first byte.
pub fn register(name: &str, offset: u64) -> Option<(&'static str, &'static str, u64)> {
    let (_, device, registers) = DEVICES.iter().find(|(known, _, _)| *known == name)?;
    let (register, at) = find(registers, offset)?;
    Some((device, register, at))
}

/// The register at `offset` of the configuration space of `bdf`.
pub fn config(bdf: Bdf, offset: u16) -> (&'static str, Option<&'static str>, u64) {
    let (device, own): (_, &[Register]) = match bdf {
        Mch::BDF => ("mch", MCH),
        Lpc::BDF => ("lpc", LPC),
        _ => ("pci", &[]),
    };
    let found = find(HEADER, offset.into()).or_else(|| find(own, offset.into()));
    (device, found.map(|(name, _)| name), found.map_or(0, |(_, at)| at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_in_order_and_apart() {
        let tables = DEVICES.iter().map(|(_, _, registers)| *registers).chain([HEADER, MCH, LPC]);
        for table in tables {
            for pair in table.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?}");
            }
        }
    }

    #[test]
    fn names_by_device_and_offset() {
        assert_eq!(register("acpi-pm", 0), Some(("pm", "PM1_STS", 0)));
        assert_eq!(register("acpi-pm", 0x29), Some(("pm", "GPE0_EN", 1)));
        assert_eq!(register("acpi-pm", 0x40), None);
        assert_eq!(register("nobody", 0), None);
        assert_eq!(config(Lpc::BDF, 0x60), ("lpc", Some("PIRQA"), 0));
        assert_eq!(config(Mch::BDF, 0x64), ("mch", Some("PCIEXBAR"), 4));
        assert_eq!(config(Bdf::new(0, 3, 0), 0x60), ("pci", None, 0));
    }
}
