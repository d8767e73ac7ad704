//! Runs boot tests one after the other on one bed, and counts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use anyhow::{Result, anyhow};

use crate::bed::Bed;
use crate::guest::Vmm;
use crate::report::Heartbeat;

/// A test that boots guests.
pub struct Test {
    /// Its name, made of words that filters find.
    pub name: &'static str,
    /// The test itself.
    pub run: fn(&Bed, Vmm) -> Result<()>,
}

/// How many tests ended how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Those that passed.
    pub passed: u32,
    /// Those that did not.
    pub failed: u32,
    /// Those that say that they could not be carried out here, or not as a whole. They are among the others, too.
    pub skipped: u32,
    /// The names of those that did not.
    pub names: Vec<String>,
}

impl Count {
    /// Counts one more test, and prints its line.
    pub fn add(&mut self, name: &str, seconds: f64, result: &Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => {
                self.failed += 1;
                self.names.push(name.to_string());
                println!("{error:#}");
            }
        }
        let word = if result.is_ok() { "PASS" } else { "FAIL" };
        println!("{word} {name} ({seconds:.1} s)");
    }

    /// What ends a run: the names of those that failed, and as the last line the numbers.
    pub fn summary(&self) -> String {
        let names: String = self.names.iter().map(|name| format!("FAILED {name}\n")).collect();
        let skipped = if self.skipped > 0 { format!(", {} skipped", self.skipped) } else { String::new() };
        format!("{names}{} passed, {} failed{skipped}", self.passed, self.failed)
    }
}

/// The tests whose name holds one of the filters; all, if there is none.
pub fn select<'a>(tests: &'a [Test], filters: &[String]) -> Vec<&'a Test> {
    let wanted =
        |test: &&Test| filters.is_empty() || filters.iter().any(|filter| test.name.contains(filter.as_str()));
    tests.iter().filter(wanted).collect()
}

/// How often a test fails on an emulated processor until that counts.
const ATTEMPTS: u32 = 2;
/// How often level 1 may end under one test.
const ENDS: u32 = 3;

/// Runs the tests in their order.
///
/// On an emulated processor a test that fails runs once more, in a level 1 that is started anew: guests were seen to
/// triple-fault or to stand still at random there, for reasons of QEMU's that `preload/nested.c` mends; there may be
/// others. When level 1 itself ends nothing is known of the test, so it runs anew. All attempts are shown, and the end names the tests that took more than one.
pub fn run(bed: &mut Bed, vmm: Vmm, tests: &[&Test], count: &mut Count) {
    let mut again = Vec::new();
    for (index, test) in tests.iter().enumerate() {
        println!("RUN  {} ({} of {}, {})", test.name, index + 1, tests.len(), vmm.name());
        let begin = Instant::now();
        let (mut failures, mut ends) = (0, 0);
        let result = loop {
            let attempt = attempt(bed, vmm, test);
            let Err(error) = &attempt.result else { break attempt.result };
            if attempt.level1_ended {
                ends += 1
            } else {
                failures += 1
            }
            if !bed.is_emulated() || failures == ATTEMPTS || ends == ENDS {
                break attempt.result;
            }
            let why = if attempt.level1_ended { "level 1 ended" } else { "the processor is emulated" };
            println!("{error:#}\nAGAIN {}: {why}", test.name);
            if !attempt.level1_ended {
                drop(bed.renew().inspect_err(|error| println!("{error:#}")));
            }
        };
        if failures + ends > 0 {
            again.push(test.name);
        }
        count.add(test.name, begin.elapsed().as_secs_f64(), &result);
    }
    if !again.is_empty() {
        println!("tests that took more than one attempt: {}", again.join(", "));
    }
}

struct Attempt {
    result: Result<()>,
    level1_ended: bool,
}

fn attempt(bed: &mut Bed, vmm: Vmm, test: &Test) -> Attempt {
    let beat = Heartbeat::start(test.name);
    let shared: &Bed = bed;
    let result = catch_unwind(AssertUnwindSafe(|| (test.run)(shared, vmm)));
    let result = result.unwrap_or_else(|_| Err(anyhow!("the test panicked")));
    drop(beat);
    for text in bed.take_diagnostics() {
        if result.is_err() {
            println!("{text}");
        }
    }
    let mut level1_ended = false;
    match bed.revive() {
        Ok(None) => drop(bed.clear().inspect_err(|error| println!("{error:#}"))),
        Ok(Some(obituary)) => {
            level1_ended = true;
            println!("{obituary}");
        }
        Err(error) => println!("{error:#}"),
    }
    Attempt { result, level1_ended }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &Bed, _: Vmm) -> Result<()> {
        Ok(())
    }

    #[test]
    fn filters_by_parts_of_names() {
        let tests = [Test { name: "disk-none", run: nothing }, Test { name: "boot", run: nothing }];
        assert_eq!(select(&tests, &[]).len(), 2);
        assert_eq!(select(&tests, &["disk".into()]).len(), 1);
    }

    #[test]
    fn summary_line() {
        let mut count = Count { passed: 2, ..Count::default() };
        count.add("good", 1.0, &Ok(()));
        assert_eq!(count.summary(), "3 passed, 0 failed");
        count.add("bad", 1.0, &Err(anyhow!("why")));
        assert_eq!(count.summary(), "FAILED bad\n3 passed, 1 failed");
    }
}
