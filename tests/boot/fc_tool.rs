//! `vmm fc` as operators and programs call it, on the host.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use testbed::bed::Bed;
use testbed::host::{Event, Process};
use testbed::wire::Launch;

/// What users are told that it says.
const DOCS: &str = include_str!("../../docs/fc.md");

/// The host's own file system may be one that cannot be written to: definitions are stored in `/var/lib`.
const STORE: &str = "mkdir -p /var/lib/vmm/fc 2>/dev/null && touch /var/lib/vmm/fc/.test 2>/dev/null || {
        mount -t tmpfs -o mode=755 var /var/lib && mkdir -p /var/lib/vmm/fc
    }
    rm -f /var/lib/vmm/fc/.test";

/// The tool.
pub(crate) struct Tool<'a> {
    bed: &'a Bed,
    program: String,
}

impl<'a> Tool<'a> {
    /// Of the program that is tested.
    pub(crate) fn new(bed: &'a Bed) -> Result<Self> {
        bed.host().shell(STORE, 30)?;
        Ok(Self { bed, program: bed.vmm()?.to_string_lossy().into_owned() })
    }

    /// Where the program is.
    pub(crate) fn program(&self) -> &str {
        &self.program
    }

    fn run(&self, line: &str) -> Result<(bool, String)> {
        let words = [self.program.as_str(), "fc"].into_iter().chain(line.split_whitespace());
        let output = self.bed.host().run(&words.collect::<Vec<_>>(), Duration::from_secs(120))?;
        Ok((output.status.success(), output.text))
    }

    /// Runs it, and returns what it printed.
    pub(crate) fn ok(&self, line: &str) -> Result<String> {
        let (well, text) = self.run(line)?;
        ensure!(well, "vmm fc {line} failed: {text}");
        Ok(text)
    }

    /// The value that it prints for programs.
    pub(crate) fn json(&self, line: &str) -> Result<Value> {
        let text = self.ok(&format!("{line} --json"))?;
        serde_json::from_str(&text).with_context(|| format!("vmm fc {line} --json printed {text}"))
    }

    /// It fails, with these lines.
    pub(crate) fn fails(&self, line: &str, said: &[&str]) -> Result<()> {
        let (well, text) = self.run(line)?;
        let wanted: String = said.iter().map(|said| format!("vmm: error: {said}\n")).collect();
        ensure!(!well, "vmm fc {line} did not fail: {text}");
        ensure!(text == wanted, "vmm fc {line} said\n{text}not\n{wanted}");
        Ok(())
    }

    /// Starts it.
    pub(crate) fn start(&self, line: &str) -> Result<Process> {
        let words = [self.program.as_str(), "fc"].into_iter().chain(line.split_whitespace());
        let words = words.map(str::to_string).collect();
        self.bed.host().start(&Launch { words, ..Launch::default() })
    }
}

/// What a process prints until there is this in it.
pub(crate) fn wait_for(process: &mut Process, text: &str, seconds: u64) -> Result<String> {
    let end = std::time::Instant::now() + Duration::from_secs(seconds);
    let mut all = String::new();
    while !all.contains(text) {
        match process.next(end.saturating_duration_since(std::time::Instant::now()))? {
            Event::Output(bytes) | Event::Errors(bytes) => all += &String::from_utf8_lossy(&bytes),
            Event::Ended(status) => bail!("it ended with {status} before it printed {text}: {all}"),
            Event::Nothing => bail!("it did not print {text} in {seconds} s: {all}"),
        }
    }
    Ok(all)
}

/// A line of docs/fc.md, with what is here in place of what is there.
pub(crate) fn quoted(line: &str, places: &[(&str, &str)]) -> Result<String> {
    ensure!(DOCS.contains(&format!("- `{line}`")), "docs/fc.md does not quote: {line}");
    let mut said = line.to_string();
    for (there, here) in places {
        ensure!(said.contains(there), "there is no {there} in: {line}");
        said = said.replace(there, here);
    }
    Ok(said)
}

/// A value has these keys with these values, and may have others.
pub(crate) fn has(value: &Value, wanted: Value) -> Result<()> {
    for (key, wanted) in wanted.as_object().context("an object is wanted")? {
        let found = value.get(key);
        ensure!(found == Some(wanted), "{key} is {found:?}, not {wanted}, in {value:#}");
    }
    Ok(())
}

/// An array's values.
pub(crate) fn items(value: &Value) -> Result<&Vec<Value>> {
    value.as_array().with_context(|| format!("no array: {value:#}"))
}

/// The string at a key.
pub(crate) fn word<'v>(value: &'v Value, key: &str) -> Result<&'v str> {
    value.get(key).and_then(Value::as_str).with_context(|| format!("no string {key} in {value:#}"))
}
