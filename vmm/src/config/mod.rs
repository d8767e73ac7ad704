//! The configuration of a virtual machine: a TOML file and `--set` options, read into a checked [`Config`].
//!
//! ```text
//!   file, --set ──> tree ──> section ──────> machine, hba ──────> Config
//!                (values and (schema: names, (defaults, relations,
//!                 origins)    types, support) files of the host)
//! ```
//!
//! Every stage collects its errors and goes on, so that the user sees all of them, each on one line that names
//! the file, the line, the key and what would be right. Names, types and what this version supports are one
//! table, [`schema`].

mod error;
mod fc;
mod hba;
mod host;
mod image;
mod machine;
mod overrides;
mod paths;
pub mod schema;
mod section;
mod security;
mod size;
mod smbios;
pub(crate) mod spell;
#[cfg(test)]
mod tests;
mod tree;
mod types;
mod volumes;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub use error::{ConfigError, Origin};
pub use fc::{EmulatedPort, Fc, VirtualPort, owner as fc_owner};
pub use hba::volume_warning;
pub use host::{Host, Medium, huge_page_pool, medium, reason};
pub(crate) use host::{files_below, parent};
pub use smbios::{Bios, Part, Smbios, System};
pub use types::*;

use error::Errors;
use paths::Paths;
use section::Section;
use tree::{Table, Value};

/// Most bytes of a configuration file, with room for every disk that a machine can have.
const MOST: u64 = 16 << 20;
/// So many bytes show whether it is text.
const BEGINNING: u64 = 4 << 10;

/// A configuration file with the arguments of `--set`, read once: it may be a pipe.
pub struct Source {
    path: PathBuf,
    read: Result<(Table, Errors), Vec<ConfigError>>,
}

impl Source {
    /// Reads the file at `path` and applies the arguments. What is wrong is told by [`load`].
    pub fn read(path: &Path, set: &[String]) -> Self {
        let read = text(path).and_then(|text| tree(&text, path, set));
        Self { path: path.to_owned(), read }
    }

    /// Whether the process shall be confined, before anything is checked. "Off" where that cannot be said.
    pub fn sandbox(&self) -> Sandbox {
        let Ok((tree, _)) = &self.read else { return Sandbox::Off };
        let Some(security) = tree.get("security") else { return Sandbox::default() };
        let Value::Table(security) = &security.node.value else { return Sandbox::Off };
        match security.get("sandbox").map(|entry| &entry.node.value) {
            None => Sandbox::default(),
            Some(Value::Text(text)) => Sandbox::named(text).unwrap_or(Sandbox::Off),
            Some(_) => Sandbox::Off,
        }
    }

    /// Whether an HBA has a virtual Fibre Channel port of the host, before anything is checked.
    pub fn has_virtual_ports(&self) -> bool {
        let Ok((tree, _)) = &self.read else { return false };
        tables(tree, "hba").any(|hba| {
            let Some(Value::Table(fc)) = hba.get("fc").map(|entry| &entry.node.value) else { return false };
            let emulated = fc.get("emulated").map(|entry| &entry.node.value);
            !matches!(emulated, Some(Value::Bool(true)))
        })
    }

    /// Whether there are devices of the host by name, before anything is checked.
    pub fn has_host_devices(&self) -> bool {
        let Ok((tree, _)) = &self.read else { return false };
        let host = [LunType::Generic.name(), LunType::Block.name()];
        tables(tree, "hba").flat_map(|hba| tables(hba, "lun")).any(|lun| {
            let kind = lun.get("type").map(|entry| &entry.node.value);
            matches!(kind, Some(Value::Text(kind)) if host.contains(&kind.as_str()))
        })
    }
}

/// The tables of an array.
fn tables<'a>(table: &'a Table, name: &str) -> impl Iterator<Item = &'a Table> {
    let all = match table.get(name).map(|entry| &entry.node.value) {
        Some(Value::Array(all)) => all.as_slice(),
        _ => &[],
    };
    all.iter().filter_map(|node| if let Value::Table(table) = &node.value { Some(table) } else { None })
}

/// Checks everything against the host. The file `log`, which takes the log, is compared with all that the machine uses.
///
/// # Errors
/// Everything that is wrong, in the order of the file.
pub fn load(source: Source, log: Option<&Path>) -> Result<Config, Vec<ConfigError>> {
    let (tree, errors) = source.read?;
    check(&tree, errors, &source.path, log, &Host::probe())
}

fn text(path: &Path) -> Result<String, Vec<ConfigError>> {
    let file = path.display().to_string();
    let bytes = read(path).map_err(|message| vec![ConfigError::new(&file, message)])?;
    String::from_utf8(bytes).map_err(|error| {
        let good = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = 1 + good.iter().filter(|&&byte| byte == b'\n').count();
        vec![ConfigError::new(format!("{file}:{line}"), "not TOML: not UTF-8")]
    })
}

/// What is in the file, which may be a pipe, unless it can be no configuration.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let cannot_read = |error| format!("cannot read: {}", reason(&error));
    let mut file = File::open(path).map_err(cannot_read)?;
    let mut bytes = Vec::new();
    file.by_ref().take(BEGINNING).read_to_end(&mut bytes).map_err(cannot_read)?;
    // An image by mistake.
    if bytes.contains(&0) {
        return Err("not text, expected a configuration in TOML".into());
    }
    file.take(MOST - BEGINNING + 1).read_to_end(&mut bytes).map_err(cannot_read)?;
    if bytes.len() as u64 > MOST {
        return Err(format!("has more than {}, expected a configuration in TOML", size::show(MOST)));
    }
    Ok(bytes)
}

/// [`load`] for the text of a file that is, or could be, at `path`, on the given host.
///
/// # Errors
/// Everything that is wrong, in the order of the file.
pub fn parse(text: &str, path: &Path, set: &[String], host: &Host) -> Result<Config, Vec<ConfigError>> {
    let (tree, errors) = tree(text, path, set)?;
    check(&tree, errors, path, None, host)
}

fn tree(text: &str, path: &Path, set: &[String]) -> Result<(Table, Errors), Vec<ConfigError>> {
    let mut errors = Errors::default();
    let mut tree = tree::parse(text, &mut errors);
    if !errors.is_empty() {
        // What a broken file means is a guess: no more than its syntax errors are worth reading.
        return Err(errors.finish(&path.display().to_string()));
    }
    overrides::apply(&mut tree, set, &mut errors);
    Ok((tree, errors))
}

fn check(
    tree: &Table,
    mut errors: Errors,
    path: &Path,
    log: Option<&Path>,
    host: &Host,
) -> Result<Config, Vec<ConfigError>> {
    let mut root = Section::root(tree, &mut errors);
    let config = build(&mut root, path, log, host, &mut errors);
    match config {
        Some(config) if errors.is_empty() => Ok(config),
        _ => Err(errors.finish(&path.display().to_string())),
    }
}

/// One `[[hba]]` with what is below it, written as in a file; paths are relative to `directory`.
///
/// # Errors
/// Everything that is wrong.
pub fn parse_hba(text: &str, directory: &Path) -> Result<Hba, Vec<ConfigError>> {
    parse_new_hba(text, directory, &[])
}

/// [`parse_hba`] for a machine that runs and uses the paths of `own`.
///
/// # Errors
/// Everything that is wrong.
pub fn parse_new_hba(text: &str, directory: &Path, own: &[Own]) -> Result<Hba, Vec<ConfigError>> {
    let mut errors = Errors::default();
    let tree = tree::parse(text, &mut errors);
    let root = Section::root(&tree, &mut errors);
    let hbas = hba::hbas(&root, directory, 1, &mut errors);
    let mut paths = Paths::running(own);
    paths.hbas(root.sections("hba"), directory);
    paths.below(root.sections("hba"), hbas.as_deref().unwrap_or_default());
    paths.check(&mut errors);
    match hbas.and_then(|mut hbas| hbas.pop()) {
        Some(hba) if errors.is_empty() => Ok(hba),
        _ => Err(errors.finish("request")),
    }
}

impl Config {
    /// The machine in a few words.
    pub fn summary(&self) -> String {
        let count =
            |number: usize, one: &str| format!("{number} {one}{}", if number == 1 { "" } else { "s" });
        let luns = self.hbas.iter().map(|hba| hba.luns.len()).sum();
        format!(
            "{}: {}, {}, {}, {}",
            self.vm.name,
            count(self.vm.cpus.into(), "vCPU"),
            size::show(self.vm.memory),
            count(self.hbas.len(), "HBA"),
            count(luns, "logical unit"),
        )
    }
}

fn build(
    root: &mut Section<'_>,
    path: &Path,
    log: Option<&Path>,
    host: &Host,
    errors: &mut Errors,
) -> Option<Config> {
    let directory = path.parent().unwrap_or(Path::new(""));
    let section = root.take("vm");
    let named = section.written("name").is_some();
    let vm = machine::vm(&section, path, host, errors);
    let mut paths = Paths::of(path);
    paths.hbas(root.sections("hba"), directory);
    let hbas = hba::hbas(root, directory, vm.as_ref().map_or(1, |vm| vm.cpus), errors);
    paths.below(root.sections("hba"), hbas.as_deref().unwrap_or_default());
    let name = vm.as_ref().map(|vm| &*vm.name);
    fc::check(root.sections("hba"), hbas.as_deref().unwrap_or_default(), name, named, errors);
    hba::warn(hbas.as_deref().unwrap_or_default());
    fc::warnings(hbas.as_deref().unwrap_or_default()).for_each(|line| tracing::warn!("{line}"));
    let section = root.take("boot");
    let boot = machine::boot(&section, directory, hbas.as_deref(), errors);
    let debug_log = machine::debug_log(&section, directory, errors);
    paths.boot(&section, directory);
    let section = root.take("serial");
    paths.output(&section, directory);
    let serial = machine::serial(&section, directory, errors);
    let section = root.take("control");
    paths.output(&section, directory);
    let control = machine::control(&section, directory, errors);
    let security = security::security(&root.take("security"), hbas.as_deref(), directory, host, errors);
    let warnings = security.iter().flat_map(|security| security::warnings(security, control.is_some()));
    warnings.for_each(|line| tracing::warn!("{line}"));
    log.into_iter().for_each(|log| paths.log(log));
    let own = paths.own();
    paths.check(errors);
    let directory = directory.to_path_buf();
    Some(Config {
        vm: vm?,
        boot: boot?,
        debug_log,
        serial: serial?,
        control,
        security: security?,
        hbas: hbas?,
        directory,
        own,
    })
}
