//! Everything that has to pass before a change is taken.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};

use crate::bed::{Bed, build_vmm};
use crate::firmware;
use crate::fuzz_corpus;
use crate::guest::Vmm;
use crate::packages::on_path;
use crate::paths::{make_dir, runs, workspace};
use crate::report::note;
use crate::runner::{self, Count, Test};
use crate::tools::Tools;

/// Runs the checks, the unit tests and the boot tests, and prints the summary as the last line.
pub fn run(tests: &[Test]) -> bool {
    let mut count = Count::default();
    check("format", &["fmt", "--all", "--check"], &mut count);
    check(
        "lints",
        &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
        &mut count,
    );
    if on_path("cargo-deny") {
        check("dependencies", &["deny", "check", "licenses", "bans", "sources"], &mut count);
        advisories(&mut count);
    } else {
        note("cargo-deny is not installed: licences and sources of dependencies are not checked");
    }
    let begin = Instant::now();
    match unit_tests(&mut count) {
        Ok(()) => note(&format!("unit tests took {:.1} s", begin.elapsed().as_secs_f64())),
        Err(error) => count.add("unit-tests", begin.elapsed().as_secs_f64(), &Err(error)),
    }
    println!("RUN  fuzz corpora");
    let begin = Instant::now();
    let replayed = fuzz_corpus::replay(&[]);
    count.add("fuzz-corpora", begin.elapsed().as_secs_f64(), &replayed);
    let begin = Instant::now();
    match build_vmm().and_then(|_| Bed::new()) {
        Ok(mut bed) => runner::run(&mut bed, Vmm::Ours, &runner::select(tests, &[]), &mut count),
        Err(error) => count.add("test-bed", begin.elapsed().as_secs_f64(), &Err(error)),
    }
    println!("{}", count.summary());
    count.failed == 0
}

fn check(name: &str, words: &[&str], count: &mut Count) {
    println!("RUN  {name}");
    let begin = Instant::now();
    let result = cargo(words).status().context("running cargo").and_then(|status| {
        ensure!(status.success(), "cargo {}: {status}", words.join(" "));
        Ok(())
    });
    count.add(name, begin.elapsed().as_secs_f64(), &result);
}

/// Known defects of dependencies: a list of others, that changes. Where it cannot be fetched, nothing is known; what it says fails
/// a run where all is to be tested, and is told elsewhere.
fn advisories(count: &mut Count) {
    let fetched = cargo(&["deny", "fetch", "db"]).stderr(Stdio::null()).status();
    if !fetched.is_ok_and(|status| status.success()) {
        note("the list of known defects cannot be fetched: dependencies are not looked up there");
    } else if is_ci() {
        check("advisories", &["deny", "check", "advisories"], count);
    } else if !cargo(&["deny", "check", "advisories"]).status().is_ok_and(|status| status.success()) {
        note("dependencies have known defects, see above");
    }
}

/// Runs all unit tests, counting each.
fn unit_tests(count: &mut Count) -> Result<()> {
    println!("RUN  unit tests");
    let mut tests = cargo(&["test", "--workspace", "--no-fail-fast"]);
    tests.env(firmware::SEABIOS, firmware::seabios()?).env("PATH", with_tools()?);
    let mut child = tests.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("cargo test has no output")?;
    let errors = child.stderr.take().context("cargo test has no output")?;
    let skipped = thread::spawn(move || skipped(errors));
    let before = count.failed;
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        if let Some(name) = line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... FAILED")) {
            count.names.push(name.to_string());
        }
        if let Some((passed, failed)) = counts(&line) {
            count.passed += passed;
            count.failed += failed;
        }
    }
    let status = child.wait()?;
    let skipped = skipped.join().map_err(|_| anyhow!("what the tests say cannot be read"))?;
    count.skipped += skipped.len() as u32;
    ensure!(status.success() || count.failed > before, "cargo test: {status}");
    // Nowhere is it said that these pass without it.
    let of_images = skipped.iter().filter(|line| line.contains("qemu-img")).count();
    ensure!(of_images == 0 || !is_ci(), "{of_images} tests are skipped for want of qemu-img");
    Ok(())
}

/// Whether this runs for others, on a machine where all is to be tested that can be.
fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !value.is_empty() && value != "false")
}

/// Passes on what the tests say on standard error; returns the lines in which a test, or a part of one, says that it is skipped.
fn skipped(errors: impl Read) -> Vec<String> {
    let mut skipped = Vec::new();
    for line in BufReader::new(errors).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        eprintln!("{line}");
        // Tests at work at the same time share the line now and then.
        if line.contains("SKIPPED ") {
            skipped.push(line);
        }
    }
    skipped
}

/// Programs of the pinned tools under the names that unit tests call, before those that this machine may have.
fn with_tools() -> Result<OsString> {
    let (tools, dir) = (Tools::prepare()?, runs()?.join("bin"));
    let loaders = dir.join("as");
    make_dir(&loaders)?;
    for program in ["qemu-img", "qemu-io"] {
        let mut words = tools.words(program, program, None)?;
        // The system calls a process as the file that it runs, which here is the loader: by the program's name.
        let (loader, new) = (loaders.join(program), loaders.join(format!("{program}.new")));
        let _ = std::fs::remove_file(&new);
        let target = words.first_mut().context("no program")?;
        std::os::unix::fs::symlink(&target, &new)?;
        std::fs::rename(&new, &loader)?;
        *target = loader.to_string_lossy().into_owned();
        let words: Vec<_> = words.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect();
        let (file, new) = (dir.join(program), dir.join(format!("{program}.new")));
        std::fs::write(&new, format!("#!/bin/sh\nexec {} \"$@\"\n", words.join(" ")))?;
        std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755))?;
        std::fs::rename(&new, &file)?;
    }
    let old = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::join_paths(std::iter::once(dir).chain(std::env::split_paths(&old)))?)
}

/// The numbers of a line like "test result: ok. 3 passed; 0 failed; ...".
fn counts(line: &str) -> Option<(u32, u32)> {
    let (_, line) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut parts = line.split("; ");
    let mut number = |word: &str| parts.next()?.strip_suffix(word)?.trim().parse().ok();
    Some((number("passed")?, number("failed")?))
}

fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()).args(words);
    command
}

#[cfg(test)]
mod tests {
    use super::{counts, skipped};

    #[test]
    fn tests_that_are_skipped_are_counted() {
        let said: &[u8] = b"     Running unittests\nSKIPPED a::b: qemu-img is not installed\n\xff\nerror SKIPPED c: no FUSE here";
        let lines = skipped(said);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].contains("qemu-img") && !lines[1].contains("qemu-img"));
    }

    #[test]
    fn reads_the_result_line() {
        assert_eq!(counts("test result: ok. 3 passed; 1 failed; 0 ignored"), Some((3, 1)));
        assert_eq!(counts("test a ... ok"), None);
    }
}
