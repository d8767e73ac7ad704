//! The PCI function: identity, BARs and capabilities of each board.

use std::sync::Arc;

use devices::bus::BusDevice;
use devices::pci::{
    Bar, BarIndex, BarKind, Header, InterruptSpec, MsiSpec, MsixSpec, PciDevice, PciDeviceBuilder, PciError,
    PciSeat, RegisterPage,
};

use crate::model::Model;

/// Bytes of the register window in memory. Linux maps 8 KiB.
const REGISTERS: u64 = 0x4000;
/// Bytes of the register window in ports.
const PORTS: u64 = 0x100;
/// Bytes of the auxiliary window, in which nothing answers.
const AUXILIARY: u64 = 0x4_0000;
const AUXILIARY_BAR: BarIndex = 3;

/// Offsets in the register window and in configuration space. The dwords at 0x64 and 0x84 of configuration space stay
/// free: a reset of the 1078 by Linux looks at them.
const MSIX_TABLE: u32 = 0x2000;
const MSIX_PBA: u32 = 0x3800;
const MSI_CAPABILITY: u16 = 0x50;
const MSIX_CAPABILITY: u16 = 0x68;
const EXPRESS_CAPABILITY: u16 = 0xa0;
/// Vectors of the board; the driver gets all its interrupts from the first.
const VECTORS: u16 = 15;

const LSI_LOGIC: u16 = 0x1000;
/// Mass storage, RAID.
const CLASS: u32 = 0x01_04_00;

/// Builds the function with `registers` in both of its windows; `page` holds what they read.
pub(crate) fn build(
    model: Model,
    seat: PciSeat,
    registers: Arc<dyn BusDevice>,
    page: Option<Arc<RegisterPage>>,
) -> Result<PciDevice, PciError> {
    let header = Header {
        vendor: LSI_LOGIC,
        device: model.device_id(),
        revision: model.revision(),
        class: CLASS,
        subsystem_vendor: LSI_LOGIC,
        subsystem: model.subsystem_id(),
        interrupt_pin: 1,
        multifunction: false,
    };
    // On gen2 SeaBIOS takes BAR 2 for the ports unless it reads as zero. It is the upper half of BAR 1 on the real board,
    // which is not zero where firmware places BARs of 64 bits above 4 GiB: here BAR 1 has 32 bits.
    let (memory, kind, ports) = match model {
        Model::Gen2 => (1, BarKind::Memory32, 0),
        Model::Sas1078 => (0, BarKind::Memory64, 2),
    };
    let msix = MsixSpec {
        vectors: VECTORS,
        table: (memory, MSIX_TABLE),
        pba: (memory, MSIX_PBA),
        offset: Some(MSIX_CAPABILITY),
    };
    let msi = MsiSpec { messages: 1, per_vector_mask: false, offset: Some(MSI_CAPABILITY) };
    let interrupts = InterruptSpec { msi: Some(msi), msix: Some(msix) };
    let mut builder = PciDeviceBuilder::new("megasas", &header, &interrupts, seat)?;
    let bar = Bar::new(kind, REGISTERS, registers.clone());
    builder.bar(
        memory,
        match page {
            Some(page) => bar.page(page),
            None => bar,
        },
    );
    builder.bar(ports, Bar::new(BarKind::Port, PORTS, registers));
    builder.bar(AUXILIARY_BAR, Bar::empty(BarKind::Memory64, AUXILIARY));
    if model == Model::Gen2 {
        builder.express(Some(EXPRESS_CAPABILITY), false)?;
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::pci::PciFunction;
    use devices::testing::pci::{TestSeat, config_dword, find_capability, set_config_dword};

    struct Nothing;
    impl BusDevice for Nothing {
        fn read(&self, _: u64, data: &mut [u8]) {
            data.fill(0);
        }
        fn write(&self, _: u64, _: &[u8]) {}
        fn name(&self) -> &str {
            "nothing"
        }
    }

    fn built(model: Model) -> PciDevice {
        let page = Some(Arc::new(RegisterPage::new().unwrap()));
        build(model, TestSeat::new(1 << 16).seat, Arc::new(Nothing), page).unwrap()
    }

    fn sizes(function: &dyn PciFunction) -> Vec<u32> {
        (0..6).for_each(|bar| set_config_dword(function, 0x10 + 4 * bar, u32::MAX));
        (0..6).map(|bar| config_dword(function, 0x10 + 4 * bar)).collect()
    }

    #[test]
    fn gen2_identity() {
        let function = built(Model::Gen2);
        assert_eq!(config_dword(&function, 0), 0x0079_1000);
        assert_eq!(config_dword(&function, 8) >> 8, 0x01_0400);
        assert_eq!(config_dword(&function, 0x2c), 0x9261_1000);
        assert_eq!(config_dword(&function, 0x3c) >> 8 & 0xff, 1);
        let bars = [0xffff_ff01, 0xffff_c000, 0, 0xfffc_0004, u32::MAX, 0];
        assert_eq!(sizes(&function), bars);
        assert_eq!(find_capability(&function, 0x05), Some(0x50));
        assert_eq!(find_capability(&function, 0x11), Some(0x68));
        assert_eq!(find_capability(&function, 0x10), Some(0xa0));
    }

    #[test]
    fn sas1078_identity() {
        let function = built(Model::Sas1078);
        assert_eq!(config_dword(&function, 0), 0x0060_1000);
        assert_eq!(config_dword(&function, 0x2c), 0x1013_1000);
        let bars = [0xffff_c004, u32::MAX, 0xffff_ff01, 0xfffc_0004, u32::MAX, 0];
        assert_eq!(sizes(&function), bars);
        assert_eq!(find_capability(&function, 0x10), None);
    }

    #[test]
    fn what_a_linux_reset_of_the_1078_reads_is_zero() {
        for model in [Model::Gen2, Model::Sas1078] {
            let function = built(model);
            assert_eq!((config_dword(&function, 0x64), config_dword(&function, 0x84)), (0, 0));
        }
    }
}
