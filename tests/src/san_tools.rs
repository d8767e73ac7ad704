//! What hosts at a SAN have, for the quick initramfs: lsscsi, systool, sg3_utils and multipath-tools with udev, as Debian 13 ships them, and the kernel's side of
//! devices of several paths.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::extras;
use crate::kernel::Kernel;
use crate::packages::{capture, extract};
use crate::tools::Tools;

const PACKAGES: &[&str] = &[
    "multipath-tools",
    "udev",
    "dmsetup",
    "sysfsutils",
    "lsscsi",
    "sg3-utils",
    "sg3-utils-udev",
    "bash",
    "findutils",
];

/// Modules, in `/modules.san`.
const MODULES: &[&str] = &["dm_mod", "dm_multipath", "dm_service_time", "scsi_dh_alua"];

/// Programs in their places. What is not in a directory of programs is what rules of udev call.
const PROGRAMS: &[&str] = &[
    "usr/bin/bash",
    "usr/bin/find",
    "usr/bin/lsscsi",
    "usr/bin/pr",
    "usr/bin/sg_inq",
    "usr/bin/sg_luns",
    "usr/bin/sg_raw",
    "usr/bin/sg_referrals",
    "usr/bin/sg_requests",
    "usr/bin/sg_rtpg",
    "usr/bin/sg_stpg",
    "usr/bin/sg_turs",
    "usr/bin/sg_vpd",
    "usr/bin/systool",
    "usr/bin/udevadm",
    "usr/lib/udev/scsi_id",
    "usr/sbin/dmsetup",
    "usr/sbin/multipath",
    "usr/sbin/multipathd",
];

/// Rules of udev that concern disks.
const RULES: &[&str] = &[
    "50-udev-default",
    "55-dm",
    "55-scsi-sg3_id",
    "56-dm-mpath",
    "58-scsi-sg3_symlink",
    "60-block",
    "60-multipath",
    "60-persistent-storage",
    "60-persistent-storage-dm",
    "95-dm-notify",
    "99-z-dm-mpath-late",
];

/// What udev and multipathd want to find.
const FILES: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    (
        "etc/group",
        "root:x:0:\ntty:x:5:\ndisk:x:6:\nlp:x:7:\nkmem:x:15:\ndialout:x:20:\ncdrom:x:24:\ntape:x:26:\naudio:x:29:\n\
         video:x:44:\ninput:x:101:\nkvm:x:102:\nrender:x:103:\nsgx:x:104:\n",
    ),
];

/// Shell text that makes all of it ready: `san_up` loads the modules, starts udev and waits for it; `multipath_up` starts multipathd with
/// what is in `/etc/multipath.conf`.
pub const FUNCTIONS: &str = r#"
    export PATH=/usr/sbin:/usr/bin:/bin
    san_up() {
        for module in $(cat /modules.san); do insmod $module 2>/dev/null; done
        mkdir -p /run /var/lib /etc/multipath
        mount -t tmpfs -o mode=755 run /run && mkdir -p /run/udev
        /usr/lib/systemd/systemd-udevd --daemon --children-max=4 2>/run/udev.log
        udevadm trigger --action=add --subsystem-match=block --subsystem-match=scsi_generic && udevadm settle --timeout=120
    }
    multipath_up() {
        (setsid /usr/sbin/multipathd -d -s </dev/null >/run/multipathd.log 2>&1 &)
        within 600 'multipathd show status >/dev/null'
    }
"#;

/// The archives to append.
pub fn archives(kernel: &Kernel, tools: &Tools) -> Result<[PathBuf; 2]> {
    let recipe = format!("san modules 1 {} {MODULES:?}", kernel.dir().display());
    let modules = extras::archive("san-modules", &recipe, |_, archive| {
        extras::add_modules(archive, kernel, tools, MODULES, "modules.san").map(drop)
    })?;
    let root = extract("san-packages", "trixie", PACKAGES)?;
    let recipe = format!("san tools 1 {} {PROGRAMS:?} {RULES:?} {FILES:?}", root.display());
    Ok([modules, extras::archive("san-tools", &recipe, |_, archive| fill(archive, &root))?])
}

fn fill(archive: &mut Archive, root: &Path) -> Result<()> {
    let mut files: Vec<PathBuf> = PROGRAMS.iter().map(PathBuf::from).collect();
    let plugins = root.join("usr/lib/multipath");
    for entry in std::fs::read_dir(&plugins).with_context(|| format!("reading {}", plugins.display()))? {
        files.push(Path::new("usr/lib/multipath").join(entry?.file_name()));
    }
    let mut libraries = BTreeSet::new();
    for file in &files {
        archive.copy(&file.to_string_lossy(), 0o755, &root.join(file))?;
        libraries.extend(needs(root, file)?);
    }
    archive.copy("lib64/ld-linux-x86-64.so.2", 0o755, &root.join("usr/lib64/ld-linux-x86-64.so.2"))?;
    for library in libraries {
        let path =
            library.strip_prefix(root).context("a library of another place")?.to_string_lossy().into_owned();
        archive.copy(&path, 0o755, &library)?;
    }
    archive.copy("usr/bin/rescan-scsi-bus.sh", 0o755, &root.join("usr/bin/rescan-scsi-bus.sh"))?;
    archive.link("bin/bash", "/usr/bin/bash");
    archive.link("bin/udevadm", "/usr/bin/udevadm");
    archive.link("usr/bin/rm", "/bin/busybox");
    archive.link("usr/lib/systemd/systemd-udevd", "/usr/bin/udevadm");
    for name in RULES {
        let path = format!("usr/lib/udev/rules.d/{name}.rules");
        archive.copy(&path, 0o644, &root.join(&path))?;
    }
    for (path, text) in FILES {
        archive.file(path, 0o644, text.as_bytes());
    }
    Ok(())
}

/// The libraries of a program, as files. Those of multipath-tools and of systemd are in places of their own.
fn needs(root: &Path, file: &Path) -> Result<BTreeSet<PathBuf>> {
    let places = ["usr/lib/x86_64-linux-gnu", "usr/lib", "usr/lib/x86_64-linux-gnu/systemd"];
    let path = places.map(|place| root.join(place).to_string_lossy().into_owned()).join(":");
    let mut list = Command::new(root.join("usr/lib64/ld-linux-x86-64.so.2"));
    list.args(["--library-path", &path, "--list"]).arg(root.join(file));
    // The loader has a place of its own; plugins may need nothing.
    let found = crate::tools::listed(&capture(&mut list)?, root);
    Ok(found.into_iter().filter(|path| !path.to_string_lossy().contains("/ld-linux")).collect())
}
