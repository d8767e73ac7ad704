//! Firmware for guests, as Debian ships it.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::packages;
use crate::tools::Tools;

/// The variable that tells tests where SeaBIOS is: images separated by colons, all of which must be there.
pub const SEABIOS: &str = "VMM_TEST_SEABIOS";

/// Fetches SeaBIOS of Debian 12; that of Debian 13 is among the tools. The value for [`SEABIOS`].
pub fn seabios() -> Result<OsString> {
    let bookworm = packages::extract("seabios12", "bookworm", &["seabios"])?;
    let images = [bookworm, Tools::prepare()?.dir().to_owned()];
    let images: Vec<PathBuf> = images.iter().map(|dir| dir.join("usr/share/seabios/bios-256k.bin")).collect();
    for image in &images {
        ensure!(image.is_file(), "the package seabios has no {}", image.display());
    }
    Ok(std::env::join_paths(images)?)
}
