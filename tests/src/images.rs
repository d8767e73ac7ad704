//! What guests boot from: Debian root file systems and the quick initramfs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::kernel::{Debian, Kernel, read_module};
use crate::packages::{capture, root_tar};
use crate::tools::Tools;
use crate::{cache, paths};

/// What a Debian root file system holds beyond the smallest there is.
const ROOT_PACKAGES: &[&str] = &[
    "linux-image-amd64",
    "initramfs-tools",
    "zstd",
    "systemd-sysv",
    "udev",
    "dbus",
    "login",
    "passwd",
    "kmod",
    "e2fsprogs",
    "util-linux",
    "procps",
    "pciutils",
    "iproute2",
    "fio",
    "sg3-utils",
    "lsscsi",
    "acpica-tools",
];

/// A system that has been booted before: with a machine id, and with the work of a first boot done. Root has
/// no password; the serial terminal is started by systemd itself, from console= of the command line.
const ROOT_SETUP: &str = r#"set -eu
echo debian > "$1/etc/hostname"
chroot "$1" passwd -d root
echo "LABEL=root / ext4 defaults 0 1" > "$1/etc/fstab"
chroot "$1" systemd-machine-id-setup
chroot "$1" ldconfig
chroot "$1" journalctl --update-catalog
sleep 1
touch "$1/etc/.updated" "$1/var/.updated""#;

/// Bytes of a root image.
pub const ROOT_SIZE: u64 = 4 << 30;

pub(crate) const QUICK_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_scsi",
    "virtio_blk",
    "megaraid_sas",
    "sd_mod",
    "sr_mod",
    "sg",
    "crc32c_generic",
    "ext4",
];

/// Programs of the quick initramfs beyond those of busybox.
const QUICK_PROGRAMS: &[&str] = &[
    "mke2fs",
    "lscpu",
    "sg_compare_and_write",
    "sg_copy_results",
    "sg_format",
    "sg_get_lba_status",
    "sg_inq",
    "sg_logs",
    "sg_luns",
    "sg_modes",
    "sg_opcodes",
    "sg_persist",
    "sg_raw",
    "sg_readcap",
    "sg_requests",
    "sg_reset",
    "sg_sanitize",
    "sg_start",
    "sg_sync",
    "sg_turs",
    "sg_unmap",
    "sg_verify",
    "sg_vpd",
    "sg_wr_mode",
    "sg_write_same",
    "sg_write_x",
    "sg_xcopy",
];

/// A Debian root file system on an ext4 image, with the kernel and initrd it ships.
#[derive(Clone, Debug)]
pub struct RootImage {
    dir: PathBuf,
}

impl RootImage {
    /// Finds the release's image in the cache or makes it.
    pub fn prepare(debian: Debian, tools: &Tools) -> Result<Self> {
        let name = format!("debian{}", debian.number());
        let recipe = format!("root 1 {ROOT_SIZE} {ROOT_PACKAGES:?} {ROOT_SETUP}");
        let dir = cache::build(&name, &recipe, |dir| {
            let tar = dir.join("root.tar");
            root_tar(debian.suite(), ROOT_PACKAGES, ROOT_SETUP, &tar)?;
            let image = dir.join("root.img");
            std::fs::File::create(&image)?.set_len(ROOT_SIZE)?;
            let mut mke2fs = tools.command("mke2fs")?;
            mke2fs.args(["-q", "-F", "-t", "ext4", "-L", "root", "-d"]).arg(&tar).arg(&image);
            capture(&mut mke2fs)?;
            let mut unpack = Command::new("tar");
            unpack.arg("-C").arg(dir).args(["--no-same-owner", "--wildcards", "--strip-components=2", "-xf"]);
            capture(unpack.arg(&tar).args(["./boot/vmlinuz-*", "./boot/initrd.img-*"]))?;
            for (start, name) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd")] {
                let file = find(dir, start)?;
                std::fs::rename(file, dir.join(name))?;
            }
            std::fs::remove_file(&tar)?;
            Ok(())
        })?;
        Ok(Self { dir })
    }

    /// The ext4 image.
    pub fn image(&self) -> PathBuf {
        self.dir.join("root.img")
    }

    /// The kernel in the image.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The initrd in the image.
    pub fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }
}

fn find(dir: &Path, start: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(dir)?.flatten().map(|entry| entry.path());
    let mut named =
        entries.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start)));
    named.next().with_context(|| format!("the root file system has no {start}*"))
}

/// Makes, once, the initramfs that boots to a shell, or runs a script, within a second. It holds busybox,
/// a few programs and the modules for both HBAs.
pub fn quick_initramfs(debian: Debian, kernel: &Kernel, tools: &Tools) -> Result<PathBuf> {
    let init = include_str!("quick-init.sh");
    let name = format!("quick{}", debian.number());
    let recipe = format!(
        "quick 2 {} {} {QUICK_MODULES:?} {QUICK_PROGRAMS:?} {init}",
        kernel.dir().display(),
        tools.dir().display()
    );
    let dir = cache::build(&name, &recipe, |dir| {
        let mut archive = Archive::default();
        add_base(&mut archive, tools, init)?;
        add_modules(&mut archive, kernel, tools, QUICK_MODULES)?;
        add_programs(&mut archive, tools, QUICK_PROGRAMS)?;
        // Under this name busybox's shell does not take it for its own, lesser mke2fs.
        archive.link("bin/mkfs.ext4", "mke2fs");
        Ok(std::fs::write(dir.join("initrd"), archive.finish())?)
    })?;
    Ok(dir.join("initrd"))
}

/// The archive that, appended to a quick initramfs, makes it run `script`.
pub fn script_archive(script: &str) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.file("script", 0o755, format!("{}\n", script.trim()).as_bytes());
    archive.finish()
}

/// Adds busybox, the device nodes early user space needs, and the init script.
pub fn add_base(archive: &mut Archive, tools: &Tools, init: &str) -> Result<()> {
    for dir in ["dev", "proc", "sys", "tmp", "mnt", "root"] {
        archive.dir(dir);
    }
    archive.char_device("dev/console", 5, 1);
    archive.copy("bin/busybox", 0o755, &tools.file("busybox")?)?;
    archive.link("bin/sh", "busybox");
    archive.file("init", 0o755, init.as_bytes());
    Ok(())
}

/// Adds modules, and the file `modules` that names them in the order to load them.
pub fn add_modules(archive: &mut Archive, kernel: &Kernel, tools: &Tools, names: &[&str]) -> Result<()> {
    let mut order = String::new();
    for file in kernel.modules(names)? {
        let name = file.file_name().map(|name| name.to_string_lossy().replace(".xz", ""));
        let name = name.context("a module without a name")?;
        archive.file(&format!("lib/{name}"), 0o644, &read_module(&file, tools)?);
        order.push_str(&format!("/lib/{name}\n"));
    }
    archive.file("modules", 0o644, order.as_bytes());
    Ok(())
}

fn add_programs(archive: &mut Archive, tools: &Tools, programs: &[&str]) -> Result<()> {
    let mut libraries = Vec::new();
    archive.copy("lib64/ld-linux-x86-64.so.2", 0o755, &tools.loader())?;
    for program in programs {
        archive.copy(&format!("bin/{program}"), 0o755, &tools.file(program)?)?;
        libraries.extend(tools.needs(program)?);
    }
    libraries.sort();
    libraries.dedup();
    for library in libraries {
        let name = library.file_name().context("a library without a name")?.to_string_lossy().into_owned();
        archive.copy(&format!("usr/lib/x86_64-linux-gnu/{name}"), 0o755, &library)?;
    }
    Ok(())
}

/// A file system with fresh copies of the root images, for level 1, where guests' images have to be made
/// fast: XFS can share a file's blocks with its copies.
pub fn scratch(images: &[(&str, PathBuf)], tools: &Tools) -> Result<PathBuf> {
    let names: Vec<_> = images.iter().map(|(name, path)| format!("{name} {}", path.display())).collect();
    let dir = cache::build("scratch", &format!("scratch 1 {names:?}"), |dir| {
        let mut list = String::from("/\n0 0\nd--755 0 0\n");
        for (name, path) in images {
            list.push_str(&format!("{name}.img ---644 0 0 {}\n", path.display()));
        }
        let (plan, image) = (dir.join("plan"), dir.join("scratch.img"));
        std::fs::write(&plan, list + "$\n")?;
        std::fs::File::create(&image)?.set_len(64 << 30)?;
        capture(tools.command("mkfs.xfs")?.arg("-q").arg("-p").arg(plan).arg(&image))?;
        Ok(())
    })?;
    paths::make_dir(&dir)?;
    Ok(dir.join("scratch.img"))
}
