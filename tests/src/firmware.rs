//! Firmware for guests, as Debian ships it.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::kernel::Debian;
use crate::packages;
use crate::tools::Tools;

/// The variable that tells tests where SeaBIOS is: images separated by colons, all of which must be there.
pub const SEABIOS: &str = "VMM_TEST_SEABIOS";

/// Fetches SeaBIOS of both releases. The value for [`SEABIOS`].
pub fn seabios() -> Result<OsString> {
    let tools = Tools::prepare()?;
    let images = [seabios_of(Debian::Bookworm, &tools)?, seabios_of(Debian::Trixie, &tools)?];
    Ok(std::env::join_paths(images)?)
}

/// SeaBIOS of a release: that of Debian 13 is among the tools, that of Debian 12 is fetched.
pub fn seabios_of(debian: Debian, tools: &Tools) -> Result<PathBuf> {
    let dir = match debian {
        Debian::Bookworm => packages::extract("seabios12", debian.suite(), &["seabios"])?,
        Debian::Trixie => tools.dir().to_owned(),
    };
    let image = dir.join("usr/share/seabios/bios-256k.bin");
    ensure!(image.is_file(), "the package seabios has no {}", image.display());
    Ok(image)
}
