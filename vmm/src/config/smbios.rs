//! `[vm.smbios]`: what the machine says about itself to tools such as dmidecode.

use super::error::Errors;
use super::section::Section;

/// `[vm.smbios]`: a table for each kind of structure. `None` leaves the machine's own text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Smbios {
    /// `bios`: type 0. When any of it is given the firmware does not put its own there.
    pub bios: Bios,
    /// `system`: type 1.
    pub system: System,
    /// `chassis`: type 3.
    pub chassis: Part,
    /// `processor`: type 4.
    pub processor: Part,
    /// `memory`: type 17, each memory device.
    pub memory: Part,
}

/// Who made the firmware.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bios {
    /// Its vendor.
    pub vendor: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Its release date, mm/dd/yyyy.
    pub date: Option<String>,
}

/// What the machine is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct System {
    /// Who made it.
    pub manufacturer: Option<String>,
    /// The product's name.
    pub product: Option<String>,
    /// The product's version.
    pub version: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// Stock keeping unit.
    pub sku: Option<String>,
    /// Family of products.
    pub family: Option<String>,
}

/// A part of the machine. Not every kind of part has every text; what it has not cannot be written in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Who made it.
    pub manufacturer: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// Asset tag.
    pub asset: Option<String>,
    /// Part number.
    pub part: Option<String>,
    /// Stock keeping unit.
    pub sku: Option<String>,
}

/// Reads the table of `[vm]`.
pub(super) fn smbios(vm: &Section<'_>, errors: &mut Errors) -> Smbios {
    let Some(section) = vm.sections("smbios").first() else { return Smbios::default() };
    let part = |key| section.sections(key).first().map(part).unwrap_or_default();
    Smbios {
        bios: section
            .sections("bios")
            .first()
            .map(|bios_section| bios(bios_section, errors))
            .unwrap_or_default(),
        system: section.sections("system").first().map(system).unwrap_or_default(),
        chassis: part("chassis"),
        processor: part("processor"),
        memory: part("memory"),
    }
}

fn owned(section: &Section<'_>, key: &str) -> Option<String> {
    section.text(key).map(str::to_owned)
}

fn bios(section: &Section<'_>, errors: &mut Errors) -> Bios {
    let date = owned(section, "date");
    if date.as_deref().is_some_and(|date| !is_date(date)) {
        section.refuse("date", "expected month, day and year: \"mm/dd/yyyy\"", errors);
    }
    Bios { vendor: owned(section, "vendor"), version: owned(section, "version"), date }
}

/// The form of DSP0134, 7.1: two digits, two digits, four digits.
fn is_date(text: &str) -> bool {
    let fields: Vec<&str> = text.split('/').collect();
    let number = |at: usize, len: usize| {
        let field = fields.get(at).filter(|field| field.len() == len)?;
        field.bytes().all(|byte| byte.is_ascii_digit()).then(|| field.parse::<u16>().ok())?
    };
    let in_range = |value: Option<u16>, most| value.is_some_and(|value| (1..=most).contains(&value));
    fields.len() == 3 && in_range(number(0, 2), 12) && in_range(number(1, 2), 31) && number(2, 4).is_some()
}

fn system(section: &Section<'_>) -> System {
    System {
        manufacturer: owned(section, "manufacturer"),
        product: owned(section, "product"),
        version: owned(section, "version"),
        serial: owned(section, "serial"),
        sku: owned(section, "sku"),
        family: owned(section, "family"),
    }
}

fn part(section: &Section<'_>) -> Part {
    Part {
        manufacturer: owned(section, "manufacturer"),
        version: owned(section, "version"),
        serial: owned(section, "serial"),
        asset: owned(section, "asset"),
        part: owned(section, "part"),
        sku: owned(section, "sku"),
    }
}

#[cfg(test)]
mod tests {
    use super::is_date;

    #[test]
    fn dates() {
        assert!(is_date("04/01/2014") && is_date("12/31/1999"));
        for wrong in [
            "4/1/2014",
            "13/01/2014",
            "00/01/2014",
            "01/32/2014",
            "01/01/14",
            "2014-04-01",
            "+1/01/2014",
            "01/01/2014/",
        ] {
            assert!(!is_date(wrong), "{wrong}");
        }
    }
}
