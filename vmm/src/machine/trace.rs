//! The trace of accesses: what the guest reads and writes, with the names of the registers.
//!
//! Target [`TARGET`] at level trace, one line for each access: direction, address, width in bytes, name, value.
//!
//! ```text
//! out 0x0cf8/4 pci.CONFIG_ADDRESS = 0x8000f844
//! in  0x0cfc/1 00:1f.0 lpc.ACPI_CNTL = 0x80
//! rd  0xb00f8060/4 00:1f.0 lpc.PIRQA = 0x0b0b0a0a
//! ```
//!
//! When it is off, an access costs one load and one comparison more.

use std::fmt;

use devices::bus::Bus;
use devices::pci::{Bdf, ConfigPorts};

use super::symbols;

/// The filter's name for the trace: `VMM_LOG=vmm::access=trace`.
macro_rules! target {
    () => {
        "vmm::access"
    };
}

/// Whether anyone listens. The answer is cached where it is asked.
#[inline]
pub fn is_on() -> bool {
    tracing::enabled!(target: target!(), tracing::Level::TRACE)
}

/// Logs an access to a port: `direction` is "in" or "out".
#[cold]
pub fn port(bus: &Bus, direction: &str, port: u16, data: &[u8]) {
    let symbol = Symbol::of(bus, u64::from(port), data.len());
    tracing::trace!(target: target!(), "{direction:3} {port:#06x}/{} {symbol} = {}", data.len(), Value(data));
}

/// Logs an access to memory that is not RAM: `direction` is "rd" or "wr".
#[cold]
pub fn memory(bus: &Bus, direction: &str, addr: u64, data: &[u8]) {
    let symbol = Symbol::of(bus, addr, data.len());
    tracing::trace!(target: target!(), "{direction:3} {addr:#010x}/{} {symbol} = {}", data.len(), Value(data));
}

/// The bytes of an access as a number.
struct Value<'a>(&'a [u8]);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.0.iter().rev().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What an address means.
#[derive(Debug, PartialEq, Eq)]
enum Symbol {
    /// Nobody answers.
    Nobody,
    /// A register of a device on the bus.
    Register { device: &'static str, name: &'static str, at: u64 },
    /// A device without a table, such as an HBA's BAR.
    Device { name: String, at: u64 },
    /// A register in configuration space.
    Config { bdf: Bdf, at: u16 },
}

impl Symbol {
    /// Asks the bus. After a write that moved a device, the old place is nobody's.
    fn of(bus: &Bus, addr: u64, len: usize) -> Self {
        let Some((device, offset)) = bus.find(addr) else { return Self::Nobody };
        match device.name() {
            "pci-config" if offset >= 4 => {
                let mut address = [0; 4];
                bus.read(ConfigPorts::BASE, &mut address);
                let address = u32::from_le_bytes(address);
                let at = (address & 0xfc) as u16 + (offset & 3) as u16;
                Self::Config { bdf: Bdf::from_bits((address >> 8) as u16), at }
            }
            // The address register is a dword; a byte in it is another device's.
            "pci-config" if len < 4 => Self::Register { device: "lpc", name: "RST_CNT", at: 0 },
            "pci-ecam" => {
                Self::Config { bdf: Bdf::from_bits((offset >> 12) as u16), at: (offset & 0xfff) as u16 }
            }
            name => match symbols::register(name, offset) {
                Some((device, name, at)) => Self::Register { device, name, at },
                None => Self::Device { name: name.to_owned(), at: offset },
            },
        }
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => f.write_str("(nobody)"),
            Self::Register { device, name, at: 0 } => write!(f, "{device}.{name}"),
            Self::Register { device, name, at } => write!(f, "{device}.{name}+{at}"),
            Self::Device { name, at } => write!(f, "{name}+{at:#x}"),
            Self::Config { bdf, at } => {
                let (device, name, within) = symbols::config(*bdf, *at);
                write!(f, "{bdf} {device}.")?;
                match (name, within) {
                    (Some(name), 0) => f.write_str(name),
                    (Some(name), within) => write!(f, "{name}+{within}"),
                    (None, _) => write!(f, "{at:#05x}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use devices::pci::{Mch, PciHost};
    use devices::platform::ports::ApmPorts;
    use devices::platform::{MachineControl, MachineRequest};

    struct Nothing;
    impl MachineControl for Nothing {
        fn request(&self, _: MachineRequest) {}
    }

    fn symbol(bus: &Bus, addr: u64, len: usize) -> String {
        Symbol::of(bus, addr, len).to_string()
    }

    #[test]
    fn ports_have_names() {
        let bus = Bus::new();
        bus.map(0xb2, 2, Arc::new(ApmPorts::new("APM"))).unwrap();
        assert_eq!(symbol(&bus, 0xb3, 1), "apm.APM_STS");
        assert_eq!(symbol(&bus, 0x80, 1), "(nobody)");
        bus.map(0x300, 2, Arc::new(ApmPorts::new("other"))).unwrap();
        assert_eq!(symbol(&bus, 0x301, 1), "other+0x1");
    }

    #[test]
    fn configuration_space_has_names_by_both_ways() {
        let (ports, memory) = (Bus::new(), Arc::new(Bus::new()));
        let host = PciHost::new();
        host.add(Mch::BDF, Mch::new(&host, memory.clone())).unwrap();
        ports.map(0xcf8, 8, ConfigPorts::new(host, Arc::new(Nothing))).unwrap();
        assert_eq!(symbol(&ports, 0xcf8, 4), "pci.CONFIG_ADDRESS");
        assert_eq!(symbol(&ports, 0xcf9, 1), "lpc.RST_CNT");
        ports.write(0xcf8, &0x8000_f844_u32.to_le_bytes());
        assert_eq!(symbol(&ports, 0xcfc, 1), "00:1f.0 lpc.ACPI_CNTL");
        ports.write(0xcf8, &0x8000_0060_u32.to_le_bytes());
        assert_eq!(symbol(&ports, 0xcfe, 2), "00:00.0 mch.PCIEXBAR+2");
        ports.write(0xcfc, &0xb000_0001_u32.to_le_bytes());
        assert_eq!(symbol(&memory, 0xb00f_8060, 4), "00:1f.0 lpc.PIRQA");
        assert_eq!(symbol(&memory, 0xb000_8014, 4), "00:01.0 pci.BAR1");
        assert_eq!(symbol(&memory, 0xb000_80f0, 4), "00:01.0 pci.0x0f0");
    }

    #[test]
    fn values_are_numbers() {
        assert_eq!(Value(&[0x78, 0x56, 0x34, 0x12]).to_string(), "0x12345678");
        assert_eq!(Value(&[5]).to_string(), "0x05");
    }
}
