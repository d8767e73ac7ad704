//! Kernel modules: `guest-linux`, built as its users build it, by the headers and the compiler of the release whose kernel loads it; and one of
//! the test bed's own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::kernel::{Debian, Kernel};
use crate::packages::{root_tar, run};
use crate::tools::Tools;
use crate::{cache, extras, images, paths};

/// What builds modules and looks at their source, beside the headers of a kernel.
const PACKAGES: [&str; 3] = ["make", "sparse", "perl"];

/// The name of the module's file.
const MODULE: &str = "virtio_scsi_fc.ko";

/// Builds the module for a release's kernel, without a warning of compiler or sparse, and returns its file.
pub fn build(debian: Debian, kernel: &Kernel) -> Result<PathBuf> {
    let root = headers(debian, kernel)?;
    let sources = sources()?;
    let text: String = sources.iter().map(|(name, text)| format!("{name}\n{text}")).collect();
    let name = format!("module{}", debian.number());
    let dir = cache::build(&name, &format!("module 1 {} {text}", root.display()), |dir| {
        for (name, text) in &sources {
            std::fs::write(dir.join(name), text)?;
        }
        let headers = format!("/usr/src/linux-headers-{}", kernel.release());
        let script = format!(
            "set -e; cd /mnt
             make -s KDIR={headers} KCFLAGS=-Werror
             make -s KDIR={headers} sparse 2>&1 | tee said
             ! grep -E 'warning:|error:' said
             strip --strip-debug {MODULE}"
        );
        run(&mut within(&root, dir, &script)).context("building the guest's module")
    })?;
    Ok(dir.join(MODULE))
}

/// Builds a module of one file, of the test bed's own, and returns it.
pub fn own(debian: Debian, kernel: &Kernel, name: &str, source: &str) -> Result<PathBuf> {
    let root = headers(debian, kernel)?;
    let recipe = format!("own module 1 {} {source}", root.display());
    let dir = cache::build(&format!("{name}{}", debian.number()), &recipe, |dir| {
        std::fs::write(dir.join(format!("{name}.c")), source)?;
        std::fs::write(dir.join("Makefile"), format!("obj-m := {name}.o\n"))?;
        let headers = format!("/usr/src/linux-headers-{}", kernel.release());
        let script = format!(
            "make -s -C {headers} M=/mnt KCFLAGS=-Werror modules && strip --strip-debug /mnt/{name}.ko"
        );
        run(&mut within(&root, dir, &script)).with_context(|| format!("building the module {name}"))
    })?;
    Ok(dir.join(name).with_extension("ko"))
}

/// The module with what it needs, for the quick initramfs, where no driver of virtio-scsi is loaded then. `/modules.fc` names what the module
/// needs.
pub fn archive(debian: Debian, kernel: &Kernel, tools: &Tools) -> Result<PathBuf> {
    add(debian, kernel, tools, false)
}

/// The same, loaded by the initramfs in place of virtio_scsi.
pub fn instead(debian: Debian, kernel: &Kernel, tools: &Tools) -> Result<PathBuf> {
    add(debian, kernel, tools, true)
}

fn add(debian: Debian, kernel: &Kernel, tools: &Tools, is_loaded: bool) -> Result<PathBuf> {
    let module = build(debian, kernel)?;
    let recipe = format!("module archive 2 {is_loaded} {} {}", module.display(), tools.dir().display());
    extras::archive(&format!("module{}-archive", debian.number()), &recipe, |_, archive| {
        extras::add_modules(archive, kernel, tools, &["scsi_transport_fc"], "modules.fc")?;
        let mut others = images::QUICK_MODULES.to_vec();
        others.retain(|name| *name != "virtio_scsi");
        others.push("scsi_transport_fc");
        let mut order = extras::add_modules(archive, kernel, tools, &others, "modules")?;
        if is_loaded {
            // Of two files of one name the later one counts.
            order.push_str(&format!("/lib/{MODULE}\n"));
            archive.file("modules", 0o644, order.as_bytes());
        }
        archive.copy(&format!("lib/{MODULE}"), 0o644, &module)
    })
}

/// A root file system with the headers of this very kernel, and the compiler that its release has for them.
fn headers(debian: Debian, kernel: &Kernel) -> Result<PathBuf> {
    let package = format!("linux-headers-{}", kernel.release());
    let recipe = format!("headers 1 {} {package} {PACKAGES:?}", debian.suite());
    cache::build(&format!("headers{}", debian.number()), &recipe, |dir| {
        let tar = dir.join("root.tar");
        let packages: Vec<_> = PACKAGES.into_iter().chain([package.as_str()]).collect();
        root_tar(debian.suite(), &packages, "true", &tar).with_context(|| {
            format!("{package}: if the archive has a newer kernel by now, remove the old one from the cache")
        })?;
        let mut unpack = Command::new("tar");
        unpack.arg("-C").arg(dir).args(["--no-same-owner", "--exclude=./dev/*", "-xf"]).arg(&tar);
        run(&mut unpack)?;
        Ok(std::fs::remove_file(&tar)?)
    })
}

/// A command that runs a shell text in a root file system, with this directory at `/mnt`, and the machine's devices.
fn within(root: &Path, dir: &Path, script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let enter =
        "mount --bind \"$2\" \"$1/mnt\" && mount --rbind /dev \"$1/dev\" && exec chroot \"$1\" sh -c \"$3\"";
    command.args(["sh", "-c", enter, "sh"]).args([root, dir]).arg(script);
    command.env("LC_ALL", "C").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// The files of the module, by name.
fn sources() -> Result<Vec<(String, String)>> {
    let dir = paths::workspace().join("guest-linux");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".c") || name.ends_with(".h") || name == "Kbuild" || name == "Makefile" {
            let text = std::fs::read_to_string(dir.join(&name))?;
            // What a build here has left is no source.
            if !name.ends_with(".mod.c") {
                found.push((name, text));
            }
        }
    }
    found.sort();
    Ok(found)
}
