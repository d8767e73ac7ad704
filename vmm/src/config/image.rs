//! How an image is opened: `format`, `backing`, `cache` and `bounce` of `[[hba.lun]]`.

use std::path::Path;

use devices::storage::Backing;

use super::error::Errors;
use super::host;
use super::section::Section;
use super::types::{Cache, Format, HbaType};

/// What a section says of its image besides its path.
pub(super) struct ImageOf {
    pub(super) format: Format,
    pub(super) backing: Backing,
    pub(super) cache: Cache,
    pub(super) bounce: bool,
}

impl ImageOf {
    /// Reads it, and checks that there is such an image at `path`, with at least one whole block of `block` bytes.
    pub(super) fn read(
        section: &Section<'_>,
        hba: HbaType,
        path: &Path,
        read_only: bool,
        block: u64,
        directory: &Path,
        errors: &mut Errors,
    ) -> Self {
        let cache = section.text("cache").and_then(Cache::named).unwrap_or(Cache::Writeback);
        let found = host::check_image(path, read_only, cache.direct());
        if let Err(reason) = &found {
            section.reject("image", reason, errors);
        }
        let format = format(section, path, errors);
        let backing = backing(section, format, directory, errors);
        if found == Ok(()) {
            let written = section.written("format").is_some();
            let ending = host::check_content(path, format, written, read_only, &backing);
            if let Err(reason) = ending.and_then(|ending| host::check_ending(path, ending, block)) {
                section.reject("image", &reason, errors);
            }
        }
        // Drivers of these boards reset the board, with all its disks, when one command does not come back.
        let bounce = section.boolean("bounce").unwrap_or(hba == HbaType::Megasas);
        Self { format, backing, cache, bounce }
    }
}

/// The format, by the image's suffix where it is not written; never by its content, which the guest controls. What does not
/// look like it is refused later.
fn format(section: &Section<'_>, image: &Path, errors: &mut Errors) -> Format {
    if let Some(format) = section.text("format").and_then(Format::named) {
        return format;
    }
    let suffix = image.extension().is_some_and(|suffix| suffix == "qcow2");
    if suffix && !section.supports("format", Format::Qcow2.name()) {
        let reason = "`format = \"qcow2\"`, which the suffix stands for, is not supported yet";
        section.reject("image", reason, errors);
    }
    if suffix { Format::Qcow2 } else { Format::Raw }
}

/// Which files an image may name.
fn backing(section: &Section<'_>, format: Format, directory: &Path, errors: &mut Errors) -> Backing {
    if format == Format::Raw {
        section.meaningless(&["backing"], "with format = \"raw\", which names no other file", errors);
    }
    if let Some(name) = section.text("backing") {
        return Backing::named(name).unwrap_or_default();
    }
    let listed: Vec<_> = section.strings("backing").iter().map(|path| directory.join(path)).collect();
    for path in &listed {
        if let Err(reason) = host::check_exists(path) {
            section.reject("backing", &reason, errors);
        }
    }
    // An empty list allows nothing.
    if section.written("backing").is_some() { Backing::Listed(listed) } else { Backing::default() }
}
