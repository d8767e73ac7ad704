//! The fuzz targets of `tests/fuzz`, under libFuzzer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::fuzz_corpus;
use crate::paths::{cache, make_dir, runs, target, workspace};
use crate::report::note;

/// What the compiler is told so that libFuzzer sees which code runs and what is compared.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";
/// Given with `--target`, the flags do not reach build scripts.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// One input may take this long, in seconds.
const TIMEOUT: u32 = 20;

/// The targets whose name holds one of the words, or all.
pub fn select(filters: &[String]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder().join("targets")).context("tests/fuzz/targets")? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().replace('_', "-");
        if filters.is_empty() || filters.iter().any(|word| name.contains(word.as_str())) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Builds and runs targets for `seconds` each; fails with the first that finds something.
pub fn run(filters: &[String], seconds: u64) -> Result<()> {
    let names = select(filters)?;
    ensure!(!names.is_empty(), "no such fuzz target");
    let programs = build(&names)?;
    let corpus = cache()?.join("fuzz");
    // What the conformance suite sends.
    let suite = corpus.join("suite");
    ensure!(Command::new(programs.join("seeds")).arg(&suite).status()?.success(), "the seeds failed");
    for name in names {
        let found = runs()?.join(format!("fuzz-{name}-"));
        let own = corpus.join(&name);
        make_dir(&own)?;
        let kept = corpus.join("kept").join(&name);
        fuzz_corpus::unpack(&name, &kept)?;
        let mut fuzzer = Command::new(programs.join(&name));
        fuzzer.arg(&own).arg(format!("-max_total_time={seconds}"));
        fuzzer.args([format!("-timeout={TIMEOUT}"), format!("-artifact_prefix={}", found.display())]);
        fuzzer.args(["-print_final_stats=1"]);
        let dictionary = folder().join("dictionaries").join(&name);
        if dictionary.exists() {
            fuzzer.arg(format!("-dict={}", dictionary.display()));
        }
        let seeds = folder().join("seeds").join(&name);
        for dir in [seeds.as_path(), kept.as_path(), suite.as_path()] {
            if dir.is_dir() && (dir != suite || name == "scsi-commands") {
                fuzzer.arg(dir);
            }
        }
        note(&format!("{name} for {seconds} s"));
        let status = fuzzer.status().with_context(|| format!("running {name}"))?;
        ensure!(status.success(), "{name} found something; the input is {}*", found.display());
    }
    Ok(())
}

/// Replaces what the repository keeps of the targets' inputs by the smallest set that reaches as much as all that there are.
pub fn keep(filters: &[String]) -> Result<()> {
    let names = select(filters)?;
    ensure!(!names.is_empty(), "no such fuzz target");
    let programs = build(&names)?;
    let corpus = cache()?.join("fuzz");
    for name in names {
        let (kept, smallest) = (corpus.join("kept").join(&name), corpus.join("smallest").join(&name));
        fuzz_corpus::unpack(&name, &kept)?;
        fuzz_corpus::empty(&smallest)?;
        let mut fuzzer = Command::new(programs.join(&name));
        fuzzer.arg("-merge=1").arg(&smallest);
        for dir in [kept, corpus.join(&name), folder().join("seeds").join(&name)] {
            if dir.is_dir() {
                fuzzer.arg(dir);
            }
        }
        let status = fuzzer.status().with_context(|| format!("running {name}"))?;
        ensure!(status.success(), "{name}: no smallest set was found");
        let (count, bytes) = fuzz_corpus::pack(&name, &smallest)?;
        note(&format!("{name}: {count} inputs, {bytes} bytes"));
    }
    Ok(())
}

/// The workspace of the targets.
pub fn folder() -> PathBuf {
    workspace().join("tests/fuzz")
}

/// Builds these targets and what writes seeds; returns where they are.
fn build(names: &[String]) -> Result<PathBuf> {
    let dir = target()?.join("fuzz");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--release", "--quiet", "--bin", "seeds", "--target", TRIPLE, "--target-dir"])
        .arg(&dir);
    for name in names {
        cargo.args(["--bin", name]);
    }
    cargo.current_dir(folder()).env("RUSTFLAGS", FLAGS).env_remove("CARGO_INCREMENTAL");
    ensure!(cargo.status().context("running cargo")?.success(), "the fuzz targets do not build");
    Ok(Path::new(&dir).join(TRIPLE).join("release"))
}
