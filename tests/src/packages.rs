//! Debian packages and root file systems, fetched with the system's own client.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{cache, report};

/// Unpacks packages and all they depend on, without running any of their scripts, into a cached folder.
pub fn extract(name: &str, suite: &str, packages: &[&str]) -> Result<PathBuf> {
    let include = packages.join(",");
    cache::build(name, &format!("extract 1 {suite} {include}"), |dir| {
        let tar = dir.join("packages.tar");
        let options = ["--variant=extract", "--skip=output/dev", &format!("--include={include}")];
        mmdebstrap(&options, suite, &tar)?;
        run(Command::new("tar")
            .arg("-C")
            .arg(dir)
            .arg("-xf")
            .arg(&tar)
            .args(["--no-same-owner", "--no-same-permissions"]))?;
        std::fs::remove_file(&tar)?;
        for (link, target) in [("lib", "usr/lib"), ("lib64", "usr/lib64")] {
            let link = dir.join(link);
            if !link.exists() && dir.join(target).exists() {
                std::os::unix::fs::symlink(target, link)?;
            }
        }
        Ok(())
    })
}

/// Makes a root file system with `packages` installed, as a tar file. `setup` is a shell text that runs at
/// the end with the root's path as `$1`.
pub fn root_tar(suite: &str, packages: &[&str], setup: &str, tar: &Path) -> Result<()> {
    let include = format!("--include={}", packages.join(","));
    let hook = format!("--customize-hook={setup}");
    let without = ["man", "doc", "locale"].map(|dir| format!("--dpkgopt=path-exclude=/usr/share/{dir}/*"));
    let mut options = vec!["--variant=minbase", &include, &hook];
    options.extend(without.iter().map(String::as_str));
    mmdebstrap(&options, suite, tar)
}

fn mmdebstrap(options: &[&str], suite: &str, tar: &Path) -> Result<()> {
    require("mmdebstrap", "mmdebstrap")?;
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--format=tar", "--architectures=amd64"]).args(options);
    if suite == "sid" {
        // Its index is signed for a week, and mirrors lag behind. The signature itself is checked as ever.
        command.arg("--aptopt=Acquire::Check-Valid-Until \"false\"");
    }
    command.arg(suite).arg(tar);
    if let Some(mirror) = mirror() {
        command.arg(format!("deb {mirror} {suite} main"));
    }
    run(&mut command)
}

/// The Debian archive this machine uses; None where it is not a Debian, and mmdebstrap knows best.
fn mirror() -> Option<String> {
    let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)";
    let output = Command::new("apt-get").args(["indextargets", "--format", format]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("Debian|Debian|").map(str::to_string))
}

/// Checks that `program` can be run here; if not, installs `package` when root, or says what to do.
pub fn require(program: &str, package: &str) -> Result<()> {
    if on_path(program) {
        return Ok(());
    }
    ensure!(rustix::process::geteuid().is_root(), "{program} is missing: install the package {package}");
    report::step(&format!("installing {package}"), || {
        let mut install = Command::new("apt-get");
        install.env("DEBIAN_FRONTEND", "noninteractive");
        let first = run(install.args(["install", "-y", "-q", "--no-install-recommends", package]));
        if first.is_err() {
            run(Command::new("apt-get").args(["update", "-q"]))?;
            run(&mut install)?;
        }
        Ok(())
    })?;
    ensure!(on_path(program), "{program} is still missing after the package {package} was installed");
    Ok(())
}

/// Whether a program of this name is on the search path.
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Runs a command to its end; if it fails, the error holds the end of what it printed.
pub fn run(command: &mut Command) -> Result<()> {
    capture(command).map(|_| ())
}

/// Runs a command to its end and returns its standard output.
pub fn capture(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        bail!("{command:?}: {}\n{}", output.status, report::last_lines(&String::from_utf8_lossy(&text), 30));
    }
    Ok(output.stdout)
}
