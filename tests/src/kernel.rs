//! Stock Debian kernels: the package, its modules and what they depend on.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cache;
use crate::packages::{capture, extract};
use crate::tools::Tools;

/// A Debian release a guest can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Debian {
    /// Debian 12, Linux 6.1.
    Bookworm,
    /// Debian 13, Linux 6.12.
    Trixie,
}

impl Debian {
    /// Both releases.
    pub const ALL: [Self; 2] = [Self::Bookworm, Self::Trixie];

    /// The suite's name in the archive.
    pub fn suite(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// The release's number.
    pub fn number(self) -> u32 {
        match self {
            Self::Bookworm => 12,
            Self::Trixie => 13,
        }
    }
}

/// An unpacked kernel package.
#[derive(Clone, Debug)]
pub struct Kernel {
    dir: PathBuf,
    release: String,
}

impl Kernel {
    /// Finds the release's kernel in the cache or fetches it.
    pub fn prepare(debian: Debian, tools: &Tools) -> Result<Self> {
        let name = format!("kernel{}", debian.number());
        let package = extract(&format!("{name}-package"), debian.suite(), &["linux-image-amd64"])?;
        let release = the_release(&package)?;
        let recipe = format!("kernel 1 {}", package.display());
        let dir = cache::build(&name, &recipe, |dir| {
            std::fs::copy(package.join(format!("boot/vmlinuz-{release}")), dir.join("vmlinuz"))?;
            let modules = dir.join("lib/modules");
            crate::paths::make_dir(&modules)?;
            let from = package.join("lib/modules").join(&release);
            capture(std::process::Command::new("cp").arg("-a").arg(from).arg(&modules))?;
            paths_for_depmod(dir)?;
            capture(tools.named("kmod", "depmod")?.arg("-b").arg(dir).arg(&release))?;
            Ok(())
        })?;
        Ok(Self { dir, release })
    }

    /// The boot image.
    pub fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The folder that holds `lib/modules`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The version as `uname -r` prints it.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The files of these modules and of all they depend on, in an order in which they can be loaded.
    /// Modules built into the kernel are left out.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let root = self.dir.join("lib/modules").join(&self.release);
        let read = |file: &str| {
            let path = root.join(file);
            std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let (builtin, dep) = (read("modules.builtin")?, read("modules.dep")?);
        let builtin: BTreeSet<String> = builtin.lines().map(module_name).collect();
        let mut needs = HashMap::new();
        for line in dep.lines() {
            let (file, rest) = line.split_once(':').context("modules.dep has a line without a colon")?;
            needs.insert(module_name(file), (file, rest.split_whitespace().collect::<Vec<_>>()));
        }
        let mut order: Vec<PathBuf> = Vec::new();
        for name in names {
            let Some((file, before)) = needs.get(&module_name(name)) else {
                if builtin.contains(&module_name(name)) {
                    continue;
                }
                bail!("{} has no module {name}", self.release);
            };
            for file in before.iter().rev().chain([file]) {
                let path = root.join(file);
                if !order.contains(&path) {
                    order.push(path);
                }
            }
        }
        Ok(order)
    }
}

/// A module's bytes, unpacked if need be.
pub fn read_module(file: &Path, tools: &Tools) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|extension| extension == "xz") {
        return capture(tools.command("xz")?.arg("-dc").arg(file));
    }
    std::fs::read(file).with_context(|| format!("reading {}", file.display()))
}

/// `kernel/drivers/net/virtio-net.ko.xz` is the module `virtio_net`.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split(".ko").next().unwrap_or(name).replace('-', "_")
}

fn the_release(package: &Path) -> Result<String> {
    let boot = package.join("boot");
    for entry in std::fs::read_dir(&boot).with_context(|| format!("reading {}", boot.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(release) = name.strip_prefix("vmlinuz-") {
            return Ok(release.to_string());
        }
    }
    bail!("no kernel in {}", boot.display())
}

/// Newer depmods look in usr/lib, older ones in lib: both have to find the modules.
fn paths_for_depmod(dir: &Path) -> Result<()> {
    crate::paths::make_dir(&dir.join("usr"))?;
    std::os::unix::fs::symlink("../lib", dir.join("usr/lib")).context("linking usr/lib")
}

#[cfg(test)]
mod tests {
    use super::module_name;

    #[test]
    fn module_names() {
        assert_eq!(module_name("kernel/drivers/net/virtio-net.ko.xz"), "virtio_net");
        assert_eq!(module_name("sd_mod"), "sd_mod");
    }
}
