//! Unit tests under Miri, which interprets them and finds what a processor does not show: reads outside of what a pointer was made
//! for, races, memory that nobody has set.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::paths::{target, workspace};
use crate::report::note;

/// Tests of a package: those whose names hold one of these words.
struct Set {
    package: &'static str,
    words: &'static [&'static str],
}

/// Plain Rust over what comes from guests and images. What maps files, has rings of the kernel or KVM cannot be interpreted.
const SETS: &[Set] = &[
    Set { package: "devices", words: &["mem::"] },
    Set { package: "hba-virtio-scsi", words: &["ring::", "request::", "config::"] },
];

/// What Miri is told: tests may look at the clock and at the environment.
const FLAGS: &str = "-Zmiri-disable-isolation";

/// Runs the sets whose package or words hold one of `filters`, or all; fails with the first that finds something.
pub fn run(filters: &[String]) -> Result<()> {
    ensure!(
        miri(&["--version"])?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success()),
        "there is no Miri; install it: rustup toolchain install nightly --component miri,rust-src"
    );
    let begin = Instant::now();
    for Set { package, words } in SETS {
        let words: Vec<&str> = words.iter().copied().filter(|word| wanted(package, word, filters)).collect();
        if words.is_empty() {
            continue;
        }
        note(&format!("Miri: {package} {}", words.join(" ")));
        let status = miri(&["test", "--package", package, "--lib", "--"])?.args(&words).status();
        ensure!(status.context("running Miri")?.success(), "Miri found something in {package}");
    }
    note(&format!("{:.0} s", begin.elapsed().as_secs_f64()));
    Ok(())
}

fn wanted(package: &str, word: &str, filters: &[String]) -> bool {
    filters.is_empty()
        || filters.iter().any(|filter| package.contains(filter.as_str()) || word.contains(filter.as_str()))
}

/// `cargo miri` of the nightly toolchain, with a target directory of its own. Cargo has told this process about its own
/// toolchain, which is another one.
fn miri(words: &[&str]) -> Result<Command> {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo", "miri"]).args(words).current_dir(workspace());
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PROFILE_")
            || [OsStr::new("CARGO"), OsStr::new("RUSTC"), OsStr::new("RUSTUP_TOOLCHAIN")]
                .contains(&name.as_os_str())
        {
            command.env_remove(name);
        }
    }
    command.env("CARGO_TARGET_DIR", target()?.join("miri")).env("MIRIFLAGS", FLAGS);
    Ok(command)
}
