//! Disks that boot by themselves: a partition table, GRUB for BIOS before the first partition, and Debian in it.
//!
//! GRUB is put where `grub-install` puts it (GRUB manual, "BIOS installation"), without mounting or installing
//! anything here: its first stage in sector 0, its core behind it, its modules and menu in `/boot/grub`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache;
use crate::kernel::Debian;
use crate::packages::{capture, extract};
use crate::tools::Tools;

const PACKAGES: &[&str] = &["grub-pc-bin", "grub-common", "memtest86+"];
/// What the core needs to reach its modules.
const CORE_MODULES: &[&str] = &["biosdisk", "part_msdos", "ext2"];
const SECTOR: usize = 512;
/// The first partition begins at 1 MiB; what lies before it is the head.
const HEAD: usize = 1 << 20;
/// Where the menu is, as GRUB calls it.
const PREFIX: &str = "(hd0,msdos1)/boot/grub";
/// Words of `serial` with which GRUB talks to the first serial port by itself; without them it prints through the BIOS.
const SERIAL_TERMINAL: &str =
    "serial --unit=0 --speed=115200\nterminal_input serial\nterminal_output serial\n";

/// Whom GRUB's menu is shown by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal {
    /// The BIOS, which has the first serial port for its console.
    Bios,
    /// GRUB's own driver of the serial port.
    Serial,
}

/// A release's GRUB and memtest86+.
#[derive(Clone, Debug)]
pub struct Grub {
    package: PathBuf,
    dir: PathBuf,
}

impl Grub {
    /// Finds the release's packages in the cache or fetches them, and makes the head of a disk for partitions of
    /// `size` bytes.
    pub fn prepare(debian: Debian, size: u64) -> Result<Self> {
        let name = format!("grub{}", debian.number());
        let package = extract(&format!("{name}-package"), debian.suite(), PACKAGES)?;
        let recipe = format!("grub 1 {} {size} {CORE_MODULES:?} {PREFIX}", package.display());
        let dir = cache::build(&name, &recipe, |dir| {
            let core = dir.join("core.img");
            capture(mkimage(&package).arg("-o").arg(&core).args(CORE_MODULES))?;
            let boot = std::fs::read(package.join("usr/lib/grub/i386-pc/boot.img"))?;
            std::fs::write(dir.join("head"), head(boot, &std::fs::read(core)?, size)?)?;
            Ok(())
        })?;
        Ok(Self { package, dir })
    }

    /// The first MiB of a disk.
    pub fn head(&self) -> PathBuf {
        self.dir.join("head")
    }

    /// memtest86+ for 32-bit or 64-bit processors, as a Linux boot image.
    pub fn memtest(&self, bits: u32) -> PathBuf {
        let name = if bits == 64 { "memtest86+x64.bin" } else { "memtest86+ia32.bin" };
        self.package.join("boot").join(name)
    }

    /// Shell text that makes the disk `disk`: this head, then a copy of the root file system `root`, into which GRUB's
    /// files and the menu at `menu` go.
    pub fn script(&self, tools: &Tools, root: &str, menu: &str, disk: &str) -> Result<String> {
        let words = |program| Ok::<_, anyhow::Error>(tools.words(program, program, None)?.join(" "));
        let (xfs_io, debugfs) = (words("xfs_io")?, words("debugfs")?);
        let mut files = String::from("mkdir /boot/grub\nmkdir /boot/grub/i386-pc\n");
        writeln!(files, "write {menu} /boot/grub/grub.cfg")?;
        writeln!(files, "write {} /boot/memtest86+x64.bin", self.memtest(64).display())?;
        files.push_str("cd /boot/grub/i386-pc\n");
        for file in self.modules()? {
            let name = file.file_name().context("a module without a name")?.to_string_lossy().into_owned();
            writeln!(files, "write {} {name}", file.display())?;
        }
        let head = self.head();
        // Where blocks can be shared the copy takes no time and no space.
        Ok(format!(
            "set -e
             size=$(stat -c %s {root})
             truncate -s $(({HEAD} + size)) {disk}
             {xfs_io} -c \"reflink {root} 0 {HEAD} $size\" {disk} > {disk}.log 2>&1 && grep -q '^linked' {disk}.log ||
                 dd if={root} of={disk} bs=1M seek=1 conv=notrunc,sparse 2>> {disk}.log
             dd if={} of={disk} bs=1M conv=notrunc 2>> {disk}.log
             cat > {disk}.files << 'END'\n{files}END
             {debugfs} -w -f {disk}.files \"{disk}?offset={HEAD}\" >> {disk}.log 2>&1
             {debugfs} -R 'stat /boot/grub/i386-pc/normal.mod' \"{disk}?offset={HEAD}\" 2>&1 | grep -q 'Type: regular'",
            head.display()
        ))
    }

    fn modules(&self) -> Result<Vec<PathBuf>> {
        let dir = self.package.join("usr/lib/grub/i386-pc");
        let entries = std::fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|end| end == "mod" || end == "lst"));
        files.sort();
        ensure!(!files.is_empty(), "{} has no modules", dir.display());
        Ok(files)
    }
}

/// The menu: Debian with `cmdline` first, then memtest86+.
pub fn menu(terminal: Terminal, cmdline: &str) -> String {
    let terminal = if terminal == Terminal::Serial { SERIAL_TERMINAL } else { "" };
    format!(
        "{terminal}set timeout=3
menuentry 'Debian GNU/Linux' {{
    linux /vmlinuz {cmdline}
    initrd /initrd.img
}}
menuentry 'Memory test' {{
    linux /boot/memtest86+x64.bin console=ttyS0,115200 nosm
}}
"
    )
}

/// grub-mkimage of the package, run with the package's own loader and libraries.
fn mkimage(package: &Path) -> Command {
    let mut command = Command::new(package.join("lib64/ld-linux-x86-64.so.2"));
    let dirs = ["usr/lib", "lib"].map(|dir| package.join(dir).join("x86_64-linux-gnu").display().to_string());
    command.arg("--library-path").arg(dirs.join(":")).arg(package.join("usr/bin/grub-mkimage"));
    command.args(["-O", "i386-pc", "-p", PREFIX, "-d"]).arg(package.join("usr/lib/grub/i386-pc"));
    command
}

/// Sector 0 with one active Linux partition of `size` bytes, then the core. Both parts of GRUB expect the core from
/// sector 1 on when nothing else is written into them.
fn head(mut boot: Vec<u8>, core: &[u8], size: u64) -> Result<Vec<u8>> {
    /// Drive number, start and end in cylinders and so on (all ones: too far for them), type, first sector, sectors.
    const PARTITION: usize = 0x1be;
    const LINUX: u8 = 0x83;
    ensure!(boot.len() == SECTOR && boot.ends_with(&[0x55, 0xaa]), "GRUB's first stage is no boot sector");
    ensure!(core.len() <= HEAD - SECTOR, "GRUB's core has {} bytes", core.len());
    let mut entry = vec![0x80, 0xfe, 0xff, 0xff, LINUX, 0xfe, 0xff, 0xff];
    entry.extend(u32::try_from(HEAD / SECTOR)?.to_le_bytes());
    entry.extend(u32::try_from(size / SECTOR as u64)?.to_le_bytes());
    entry.resize(64, 0);
    let table = boot.get_mut(PARTITION..PARTITION + entry.len()).context("a sector has 512 bytes")?;
    table.copy_from_slice(&entry);
    boot.extend_from_slice(core);
    boot.resize(HEAD, 0);
    Ok(boot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_holds_both_stages_and_the_partition() {
        let mut boot = vec![0xaa; 510];
        boot.extend([0x55, 0xaa]);
        let made = head(boot, &[7; 1000], 4 << 30).unwrap();
        assert_eq!(made.len(), 1 << 20);
        assert_eq!(made[0x1be..0x1ce], *b"\x80\xfe\xff\xff\x83\xfe\xff\xff\0\x08\0\0\0\0\x80\0");
        assert_eq!((&made[0x1ce..0x1fe], &made[510..512]), (&[0; 48][..], &b"\x55\xaa"[..]));
        assert_eq!((made[511 + 1], made[512 + 999], made[512 + 1000]), (7, 7, 0));
        assert!(head(vec![0; 512], &[], 0).is_err());
    }

    #[test]
    fn the_menu_starts_debian_with_the_command_line() {
        let text = menu(Terminal::Bios, "a b");
        assert!(text.contains("linux /vmlinuz a b\n") && !text.contains("serial"));
        assert!(menu(Terminal::Serial, "").starts_with("serial --unit=0"));
    }
}
