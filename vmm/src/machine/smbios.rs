//! SMBIOS structures of this machine: the configuration's texts, and our own where it has none.

use boot::smbios;

use super::firmware::Wiring;
use crate::config::{Config, Part, Smbios};

/// Who makes the machine, its parts and, in a direct boot, the tables.
const MANUFACTURER: &str = "VMM";
const PRODUCT: &str = "Virtual Machine (q35)";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Kernels compare it to tell old machines: month, day, year.
const RELEASE_DATE: &str = "01/01/2026";

/// The structures: 2.8 for firmware, which adds its own name and version; 3.0 for a directly booted kernel.
pub fn tables(wiring: &Wiring<'_>, revision: smbios::Version) -> smbios::Tables {
    let texts = &wiring.config.vm.smbios;
    let system = system(wiring.config);
    let machine = smbios::Machine {
        revision,
        firmware: firmware(texts, revision),
        enclosure: part(&texts.chassis, &system, &system.version),
        processor: part(&texts.processor, &system, &system.version),
        memory: part(&texts.memory, &system, ""),
        system,
        cpus: wiring.config.vm.cpus.into(),
        processor_id: wiring.processor_id,
        ram: *wiring.layout,
    };
    machine.tables()
}

fn or(text: &Option<String>, own: &str) -> String {
    text.clone().unwrap_or_else(|| own.to_owned())
}

/// Type 0, unless firmware is to say it for itself.
fn firmware(texts: &Smbios, revision: smbios::Version) -> Option<smbios::Firmware> {
    let bios = &texts.bios;
    let given = *bios != crate::config::Bios::default();
    (given || revision == smbios::Version::V3).then(|| smbios::Firmware {
        vendor: or(&bios.vendor, MANUFACTURER),
        version: or(&bios.version, VERSION),
        date: or(&bios.date, RELEASE_DATE),
    })
}

fn system(config: &Config) -> smbios::System {
    let texts = &config.vm.smbios.system;
    smbios::System {
        manufacturer: or(&texts.manufacturer, MANUFACTURER),
        product: or(&texts.product, PRODUCT),
        version: or(&texts.version, VERSION),
        serial: or(&texts.serial, ""),
        uuid: config.vm.uuid.map(|uuid| uuid.0),
        sku: or(&texts.sku, ""),
        family: or(&texts.family, &config.vm.name),
    }
}

/// Parts have the machine's maker unless they are given their own.
fn part(texts: &Part, system: &smbios::System, version: &str) -> smbios::Part {
    smbios::Part {
        manufacturer: or(&texts.manufacturer, &system.manufacturer),
        version: or(&texts.version, version),
        serial: or(&texts.serial, ""),
        asset: or(&texts.asset, ""),
        part: or(&texts.part, ""),
        sku: or(&texts.sku, ""),
    }
}
