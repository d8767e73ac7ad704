//! The part of vm.toml that the test bed writes.

use anyhow::Result;
use serde::Serialize;

/// A machine, in the words of the file.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// `[vm]`
    pub vm: Machine,
    /// `[boot]`
    pub boot: Boot,
    /// `[serial]`
    pub serial: Serial,
    /// `[[hba]]`
    pub hba: Vec<Hba>,
}

/// `[vm]`
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The machine's name.
    pub name: String,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Size of the memory, such as "1GiB".
    pub memory: String,
    /// What a crash of the guest does: "restart" or "exit".
    pub on_crash: String,
}

/// `[boot]`
#[derive(Clone, Debug, Default, Serialize)]
pub struct Boot {
    /// Linux boot image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Initial root file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// Kernel command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Firmware image, instead of a kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
}

/// `[serial]`
#[derive(Clone, Debug, Serialize)]
pub struct Serial {
    /// Where the first serial port goes.
    pub mode: String,
}

/// `[[hba]]`
#[derive(Clone, Debug, Serialize)]
pub struct Hba {
    /// Name of the HBA.
    pub id: String,
    /// virtio-scsi or megasas.
    #[serde(rename = "type")]
    pub kind: String,
    /// Further keys of the HBA.
    #[serde(flatten)]
    pub more: toml::Table,
    /// Its logical units.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lun: Vec<Lun>,
}

/// `[[hba.lun]]`
#[derive(Clone, Debug, Serialize)]
pub struct Lun {
    /// SCSI target.
    pub target: u32,
    /// disk, cd, generic or block.
    #[serde(rename = "type")]
    pub kind: String,
    /// The image's file, or a device; none where the unit is called by a name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// raw or qcow2; devices of the host have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Cache mode, as in QEMU; devices of the host have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// Further keys of the unit.
    #[serde(flatten)]
    pub more: toml::Table,
}

impl Config {
    /// The text of the file.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }
}
