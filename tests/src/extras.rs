//! Programs that only a few tests need in the quick initramfs, as archives to append to it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache;
use crate::cpio::Archive;
use crate::kernel::{Kernel, read_module};
use crate::packages::{capture, extract};
use crate::tools::Tools;

/// `mfi`: a MegaRAID management tool of the test bed's own, see `tests/guest/mfi.c`.
pub fn mfi() -> Result<PathBuf> {
    let source = include_str!("../guest/mfi.c");
    archive("mfi", &format!("mfi 1 {source}"), |dir, archive| compile("mfi", source, dir, archive))
}

/// `odd`, see `tests/guest/odd.c`: direct I/O with memory of all kinds.
pub fn odd() -> Result<PathBuf> {
    let source = include_str!("../guest/odd.c");
    archive("odd", &format!("odd 1 {source}"), |dir, archive| compile("odd", source, dir, archive))
}

/// `sense`, see `tests/guest/sense.c`: a command, and all of its sense data.
pub fn sense() -> Result<PathBuf> {
    let source = include_str!("../guest/sense.c");
    archive("sense", &format!("sense 1 {source}"), |dir, archive| compile("sense", source, dir, archive))
}

/// `kexec`, see `tests/guest/kexec.c`, and a kernel for it: `/vmlinuz`.
pub fn kexec(kernel: &Path) -> Result<PathBuf> {
    let source = include_str!("../guest/kexec.c");
    archive("kexec", &format!("kexec 1 {} {source}", kernel.display()), |dir, archive| {
        archive.copy("vmlinuz", 0o644, kernel)?;
        compile("kexec", source, dir, archive)
    })
}

/// An initramfs of its own, which is at `/second` in that of a script: looks for memory that something else
/// writes, see `tests/guest/scan.c`.
pub fn scan() -> Result<PathBuf> {
    let source = include_str!("../guest/scan.c");
    archive("scan", &format!("scan 1 {source}"), |dir, archive| {
        archive.dir("second");
        archive.copy("second/init", 0o755, &compiled("scan", source, dir)?)
    })
}

/// A tape, an enclosure or a changer of the host, see `tests/host/unit.c`: the program.
pub fn unit() -> Result<PathBuf> {
    let (source, changer) = (include_str!("../host/unit.c"), include_str!("../host/changer.h"));
    let dir = cache::build("unit", &format!("unit 1 {source}{changer}"), |dir| {
        std::fs::write(dir.join("changer.h"), changer)?;
        compiled("unit", source, dir).map(|_| ())
    })?;
    Ok(dir.join("unit"))
}

/// A program of the test bed's own, linked statically.
fn compile(name: &str, source: &str, dir: &Path, archive: &mut Archive) -> Result<()> {
    archive.copy(&format!("bin/{name}"), 0o755, &compiled(name, source, dir)?)
}

fn compiled(name: &str, source: &str, dir: &Path) -> Result<PathBuf> {
    let (text, program) = (dir.join(name).with_extension("c"), dir.join(name));
    std::fs::write(&text, source)?;
    capture(Command::new("cc").args(["-static", "-O2", "-o"]).arg(&program).arg(&text))?;
    Ok(program)
}

/// `smartctl`, as Debian 13 ships it.
pub fn smartctl() -> Result<PathBuf> {
    program("smartctl", "smartmontools")
}

/// `mtx`, as Debian 13 ships it: what operators ask changers with.
pub fn mtx() -> Result<PathBuf> {
    program("mtx", "mtx")
}

/// `tar`, as Debian 13 ships it, under the name `gtar`: that of busybox, which the shell there prefers, reads no tape.
pub fn tar() -> Result<PathBuf> {
    program_as("gtar", "tar", "tar")
}

/// `isoinfo` and `wodim`, as Debian 13 ships them.
pub fn disc_programs() -> Result<[PathBuf; 2]> {
    Ok([program("isoinfo", "genisoimage")?, program("wodim", "wodim")?])
}

/// What mounts discs, and what asks their drives: modules, listed in `/modules.disc` in an order in which they can be loaded,
/// and `sg_get_config`.
pub fn discs(kernel: &Kernel, tools: &Tools) -> Result<PathBuf> {
    let recipe = format!("discs 1 {} {}", kernel.dir().display(), tools.dir().display());
    archive("discs", &recipe, |_, archive| {
        add_modules(archive, kernel, tools, &["isofs"], "modules.disc")?;
        // With libraries that the initramfs has already.
        archive.copy("bin/sg_get_config", 0o755, &tools.file("sg_get_config")?)
    })
}

/// Drivers of tapes, enclosures and changers, listed in `/modules.passed`, and what asks the devices.
pub fn passed(kernel: &Kernel, tools: &Tools) -> Result<PathBuf> {
    let recipe = format!("passed 2 {} {}", kernel.dir().display(), tools.dir().display());
    archive("passed", &recipe, |_, archive| {
        add_modules(archive, kernel, tools, &["st", "ses", "ch"], "modules.passed")?;
        for program in ["sg_ses", "sg_read_block_limits"] {
            archive.copy(&format!("bin/{program}"), 0o755, &tools.file(program)?)?;
        }
        Ok(())
    })
}

/// Devices of several paths: the device mapper with what chooses between them, listed in `/modules.paths`, and `dmsetup`.
pub fn paths(kernel: &Kernel, tools: &Tools) -> Result<[PathBuf; 2]> {
    let recipe = format!("paths 1 {}", kernel.dir().display());
    let modules = archive("paths", &recipe, |_, archive| {
        add_modules(archive, kernel, tools, &["dm_mod", "dm_multipath", "dm_service_time"], "modules.paths")
            .map(drop)
    })?;
    Ok([modules, program("dmsetup", "dmsetup")?])
}

/// Adds modules, and a file that names them in an order in which they can be loaded, which is returned.
pub(crate) fn add_modules(
    archive: &mut Archive,
    kernel: &Kernel,
    tools: &Tools,
    names: &[&str],
    list: &str,
) -> Result<String> {
    let mut order = String::new();
    for file in kernel.modules(names)? {
        let name = file.file_name().context("a module without a name")?;
        let path = format!("lib/{}", name.to_string_lossy().replace(".xz", ""));
        archive.file(&path, 0o644, &read_module(&file, tools)?);
        order.push_str(&format!("/{path}\n"));
    }
    archive.file(list, 0o644, order.as_bytes());
    Ok(order)
}

/// `lsscsi`, as Debian 13 ships it, under the name `list-scsi`: that of busybox, which the shell there prefers, knows no options.
pub fn lsscsi() -> Result<PathBuf> {
    program_as("list-scsi", "lsscsi", "lsscsi")
}

/// `iscsi-test-cu`, the conformance tests of libiscsi, which also run on local devices.
pub fn libiscsi_tests() -> Result<PathBuf> {
    program("iscsi-test-cu", "libiscsi-bin")
}

/// `sg_wr_mode`, as Debian 12 ships it: that of Debian 13 (sg3_utils 1.48) takes no page in any form. It has its own
/// library; the others are those of Debian 13's tools, which the initramfs has.
pub fn sg_wr_mode() -> Result<PathBuf> {
    let dir = extract("sg3-utils", "bookworm", &["sg3-utils"])?;
    archive("sg_wr_mode", &format!("sg_wr_mode 1 {}", dir.display()), |_, archive| {
        let library = "usr/lib/x86_64-linux-gnu/libsgutils2-1.46.so.2";
        archive.copy(library, 0o755, &dir.join(library))?;
        archive.copy("bin/sg_wr_mode", 0o755, &dir.join("usr/bin/sg_wr_mode"))
    })
}

/// A program of a package with the libraries it needs.
fn program(name: &str, package: &str) -> Result<PathBuf> {
    program_as(name, name, package)
}

/// The same under a name of its own.
fn program_as(own: &str, name: &str, package: &str) -> Result<PathBuf> {
    let tools = Tools::of(package, &[package])?;
    archive(own, &format!("{own} 1 {}", tools.dir().display()), |_, archive| {
        archive.copy("lib64/ld-linux-x86-64.so.2", 0o755, &tools.loader())?;
        archive.copy(&format!("bin/{own}"), 0o755, &tools.file(name)?)?;
        for library in tools.needs(name)? {
            let name = library.file_name().context("a library without a name")?.to_string_lossy();
            archive.copy(&format!("usr/lib/x86_64-linux-gnu/{name}"), 0o755, &library)?;
        }
        Ok(())
    })
}

pub(crate) fn archive(
    name: &str,
    recipe: &str,
    fill: impl FnOnce(&Path, &mut Archive) -> Result<()>,
) -> Result<PathBuf> {
    let dir = cache::build(name, recipe, |dir| {
        let mut archive = Archive::default();
        fill(dir, &mut archive)?;
        Ok(std::fs::write(dir.join("archive"), archive.finish())?)
    })?;
    Ok(dir.join("archive"))
}
