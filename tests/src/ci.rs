//! Everything that has to pass before a change is taken.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::bed::{Bed, build_vmm};
use crate::firmware;
use crate::fuzz_corpus;
use crate::guest::Vmm;
use crate::packages::on_path;
use crate::paths::workspace;
use crate::report::note;
use crate::runner::{self, Count, Test};

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
    count.add("fuzz-corpora", begin.elapsed().as_secs_f64(), &fuzz_corpus::replay(&[]));
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

/// Runs all unit tests, counting each.
fn unit_tests(count: &mut Count) -> Result<()> {
    println!("RUN  unit tests");
    let mut tests = cargo(&["test", "--workspace", "--no-fail-fast"]);
    tests.env(firmware::SEABIOS, firmware::seabios()?);
    let mut child = tests.stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("cargo test has no output")?;
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
    ensure!(status.success() || count.failed > before, "cargo test: {status}");
    Ok(())
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
    use super::counts;

    #[test]
    fn reads_the_result_line() {
        assert_eq!(counts("test result: ok. 3 passed; 1 failed; 0 ignored"), Some((3, 1)));
        assert_eq!(counts("test a ... ok"), None);
    }
}
