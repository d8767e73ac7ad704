//! The pinned tools: QEMU and file system programs of one Debian suite, run through their own loader.
//!
//! They live in the cache and need nothing of the machine, so every machine tests against the same ones.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::packages;

const PACKAGES: &[&str] = &[
    "qemu-system-x86",
    "qemu-utils",
    "seabios",
    "ovmf",
    "xfsprogs",
    "e2fsprogs",
    "libarchive13t64",
    "busybox-static",
    "kmod",
    "xz-utils",
    "util-linux",
    "sg3-utils",
];

/// The unpacked tools.
#[derive(Clone, Debug)]
pub struct Tools {
    dir: PathBuf,
}

impl Tools {
    /// Finds the tools in the cache or fetches them.
    pub fn prepare() -> Result<Self> {
        Ok(Self { dir: packages::extract("tools", "trixie", PACKAGES)? })
    }

    /// Other packages with all they depend on, from the same suite.
    pub fn of(name: &str, packages: &[&str]) -> Result<Self> {
        Ok(Self { dir: packages::extract(name, "trixie", packages)? })
    }

    /// The same from another suite.
    pub fn of_suite(name: &str, suite: &str, packages: &[&str]) -> Result<Self> {
        Ok(Self { dir: packages::extract(name, suite, packages)? })
    }

    /// The folder they are in, laid out like a root file system.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of a program.
    pub fn file(&self, program: &str) -> Result<PathBuf> {
        let dirs = ["usr/sbin", "usr/bin"].map(|dir| self.dir.join(dir).join(program));
        dirs.into_iter().find(|file| file.is_file()).with_context(|| format!("the tools have no {program}"))
    }

    /// The dynamic loader the programs need.
    pub fn loader(&self) -> PathBuf {
        self.dir.join("usr/lib64/ld-linux-x86-64.so.2")
    }

    /// The folder of the shared libraries.
    pub fn libraries(&self) -> PathBuf {
        self.dir.join("usr/lib/x86_64-linux-gnu")
    }

    /// The words that run `program`, called by the name `name`, with `preload` loaded into it.
    pub fn words(&self, program: &str, name: &str, preload: Option<&Path>) -> Result<Vec<String>> {
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut words = vec![path(self.loader()), "--library-path".into(), path(self.libraries())];
        if let Some(library) = preload {
            words.extend(["--preload".into(), library.to_string_lossy().into_owned()]);
        }
        words.extend(["--argv0".into(), name.into(), path(self.file(program)?)]);
        Ok(words)
    }

    /// A command that runs `program` here.
    pub fn command(&self, program: &str) -> Result<Command> {
        self.named(program, program)
    }

    /// A command that runs `program` under another name, for programs that look at it.
    pub fn named(&self, program: &str, name: &str) -> Result<Command> {
        let mut command = Command::new(self.loader());
        command.args(self.words(program, name, None)?.get(1..).unwrap_or_default());
        Ok(command)
    }

    /// The shared libraries a program needs, with the loader, as files.
    pub fn needs(&self, program: &str) -> Result<Vec<PathBuf>> {
        let mut list = Command::new(self.loader());
        list.arg("--library-path").arg(self.libraries()).arg("--list").arg(self.file(program)?);
        let libraries = listed(&packages::capture(&mut list)?, &self.libraries());
        ensure!(!libraries.is_empty(), "{program} needs no library of the tools, which is hard to believe");
        Ok(libraries)
    }

    /// The words with which a QEMU started from the tools finds its firmware and option ROMs.
    pub fn qemu_data(&self) -> Vec<String> {
        ["usr/share/qemu", "usr/share/seabios"]
            .iter()
            .flat_map(|dir| ["-L".to_string(), self.dir.join(dir).to_string_lossy().into_owned()])
            .collect()
    }
}

/// The libraries below `dir` that a loader listed.
pub(crate) fn listed(output: &[u8], dir: &Path) -> Vec<PathBuf> {
    String::from_utf8_lossy(output)
        .lines()
        .filter_map(|line| line.split_once("=> ")?.1.split_whitespace().next().map(PathBuf::from))
        .filter(|path| path.starts_with(dir))
        .collect()
}
