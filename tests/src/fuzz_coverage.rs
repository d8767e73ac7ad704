//! Which lines the inputs of the fuzz targets reach: the compiler counts (`-Cinstrument-coverage`), and LLVM's tools of the
//! same compiler add up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::fuzz::{folder, select};
use crate::fuzz_corpus::{build, empty};
use crate::paths::{runs, target, workspace};

/// Part of a crate that only tests use.
const OF_TESTS: &[&str] = &["/testing", "/suite/", "/tests/", "_tests.rs", "/fakes.rs", "tests/fuzz/"];

/// Lines: those reached, and all.
#[derive(Clone, Copy, Default)]
struct Lines(u64, u64);

impl Lines {
    fn add(&mut self, other: Self) {
        (self.0, self.1) = (self.0 + other.0, self.1 + other.1);
    }

    fn percent(self) -> f64 {
        100.0 * self.0 as f64 / (self.1.max(1)) as f64
    }
}

/// Runs the inputs of the repository and prints what they reach: each part of a crate, and each file.
pub fn run(filters: &[String]) -> Result<()> {
    let program = build(&target()?.join("coverage"), "-Cinstrument-coverage")?;
    let dir = runs()?.join("coverage");
    empty(&dir)?;
    let mut counts = Vec::new();
    for name in select(filters)? {
        let raw = dir.join(format!("{name}.profraw"));
        let mut replay = Command::new(&program);
        replay.arg(folder()).arg(runs()?).arg(format!("={name}")).env("LLVM_PROFILE_FILE", &raw);
        ensure!(replay.status()?.success(), "{name} fails");
        counts.push(raw);
    }
    let all = dir.join("all.profdata");
    let mut merge = Command::new(tool("llvm-profdata")?);
    merge.args(["merge", "--sparse", "-o"]).arg(&all).args(&counts);
    ensure!(merge.status()?.success(), "llvm-profdata fails");
    let mut export = Command::new(tool("llvm-cov")?);
    export.args(["export", "--format=lcov", "--summary-only", "--instr-profile"]).arg(&all).arg(&program);
    let output = export.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "llvm-cov fails");
    print(&files(&String::from_utf8_lossy(&output.stdout), &workspace()));
    Ok(())
}

/// A tool of the compiler's own LLVM.
fn tool(name: &str) -> Result<PathBuf> {
    let output =
        Command::new("rustc").args(["--print", "target-libdir"]).current_dir(workspace()).output()?;
    let libs = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let path = libs.parent().context("no folder of the compiler")?.join("bin").join(name);
    ensure!(path.exists(), "there is no {}: rustup component add llvm-tools", path.display());
    Ok(path)
}

/// The lines of each file of the machine, by its path in the workspace.
fn files(lcov: &str, workspace: &Path) -> BTreeMap<String, Lines> {
    let (mut files, mut file) = (BTreeMap::<String, Lines>::new(), None);
    for line in lcov.lines() {
        let number = |text: &str| text.parse().unwrap_or(0);
        if let Some(path) = line.strip_prefix("SF:") {
            let path =
                Path::new(path).strip_prefix(workspace).ok().map(|path| path.to_string_lossy().into_owned());
            file = path.filter(|path| !OF_TESTS.iter().any(|part| path.contains(part)));
        } else if let (Some(file), Some(all)) = (&file, line.strip_prefix("LF:")) {
            files.entry(file.clone()).or_default().1 = number(all);
        } else if let (Some(file), Some(hit)) = (&file, line.strip_prefix("LH:")) {
            files.entry(file.clone()).or_default().0 = number(hit);
        }
    }
    files
}

fn print(files: &BTreeMap<String, Lines>) {
    let mut parts = BTreeMap::<String, Lines>::new();
    for (file, lines) in files {
        println!("{:6} of {:6}  {:5.1} %  {file}", lines.0, lines.1, lines.percent());
        parts.entry(part(file)).or_default().add(*lines);
    }
    println!("\n| part | lines | reached |\n|---|---|---|");
    for (part, lines) in parts {
        println!("| `{part}` | {} | {:.0} % |", lines.1, lines.percent());
    }
}

/// The folder of a file, not deeper than two below `src`.
fn part(file: &str) -> String {
    let parts: Vec<&str> = file.split('/').filter(|part| *part != "src").collect();
    let folders = parts.split_last().map_or(&[][..], |(_, folders)| folders);
    folders.get(..folders.len().min(3)).unwrap_or_default().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_the_machine() {
        let lcov = "SF:/w/devices/src/scsi/disk/copy/list.rs\nLF:10\nLH:7\nend_of_record\n\
                    SF:/w/devices/src/testing/pci.rs\nLF:5\nLH:5\nend_of_record\n\
                    SF:/elsewhere/lib.rs\nLF:5\nLH:5\nend_of_record\n";
        let files = files(lcov, Path::new("/w"));
        let found: Vec<_> = files.iter().map(|(file, lines)| (part(file), lines.0, lines.1)).collect();
        assert_eq!(found, [("devices/scsi/disk".to_string(), 7, 10)]);
    }
}
