//! How the process ends, for scripts: one exit code for each outcome.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

/// Why the process ends. The values are the exit codes and part of the command's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// The guest powered off, or the user quit from the console.
    PoweredOff = 0,
    /// The host, the configuration or the command line is at fault; a line on standard error says how.
    Failed = 1,
    /// The guest reset, and resets end the process (`--no-reboot`, `on_reset = "exit"`).
    Reset = 2,
    /// The guest crashed with a triple fault, and crashes end the process (`--no-reboot`, `on_crash = "exit"`).
    Crashed = 3,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(outcome as u8)
    }
}

/// The exit codes for `--help`.
pub const HELP: &str = "\
Exit codes:
  0  the guest powered off, or you quit with Ctrl-A x
  1  the host, the configuration or the command line is at fault
  2  the guest reset and resets are not allowed
  3  the guest crashed (triple fault) and crashes are not restarted
  A signal ends the process in its own way: a shell shows 128 plus its number.
  159 (SIGSYS) is the sandbox: a line on standard error, and in no log file, names the call.";

/// Writes what the user asked for to standard output.
pub fn tell(text: &str) {
    // A reader that has seen enough may close the pipe.
    let _ = io::stdout().write_all(text.as_bytes());
}

/// Tells the operator what went wrong, on one line of standard error, without waiting for who reads it. The end of the
/// process does, for a moment ([`settle`](crate::lines::settle)).
pub fn complain(what: impl fmt::Display) {
    let line = format!("vmm: error: {}", what.to_string().replace(char::is_control, " "));
    crate::lines::standard_error(format!("{line}{}\n", crate::lines::line_end()).as_bytes());
}

/// An error with its causes, each reason once, and what to raise where descriptors are out.
pub fn explain(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Most errors say their cause themselves, with its number or without.
        let words = cause.split(" (os error").next().unwrap_or(&cause).to_lowercase();
        if !line.to_lowercase().contains(&words) {
            line.push_str(": ");
            line.push_str(&cause);
        }
    }
    if let Some(remedy) = code(error).and_then(out_of_descriptors).filter(|_| !line.contains("raise the")) {
        line.push_str("; ");
        line.push_str(remedy);
    }
    line
}

/// Whether there is no descriptor for what failed, neither in this process nor on the host.
pub fn is_out_of_descriptors(error: &anyhow::Error) -> bool {
    code(error).and_then(out_of_descriptors).is_some()
}

/// What the system said.
fn code(error: &anyhow::Error) -> Option<i32> {
    error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error())
}

/// What to raise where descriptors are out.
fn out_of_descriptors(code: i32) -> Option<&'static str> {
    match code {
        libc::EMFILE => Some("raise the limit of open files (LimitNOFILE= of its service, or ulimit -n)"),
        libc::ENFILE => Some("raise the sysctl fs.file-max"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[derive(Debug, thiserror::Error)]
    #[error("no descriptor for {what}: {source}")]
    struct Descriptor {
        what: &'static str,
        source: io::Error,
    }

    #[test]
    fn reasons_are_said_once_with_what_to_do() {
        let out = |code| {
            anyhow::Error::from(Descriptor {
                what: "an interrupt line",
                source: io::Error::from_raw_os_error(code),
            })
        };
        assert_eq!(
            explain(&out(24)),
            "no descriptor for an interrupt line: Too many open files (os error 24); raise the limit of open files \
             (LimitNOFILE= of its service, or ulimit -n)"
        );
        let host = explain(&out(23));
        assert!(host.ends_with("(os error 23); raise the sysctl fs.file-max"), "{host}");
        let told = Err::<(), _>(io::Error::from_raw_os_error(30))
            .context("a.log: read-only file system; choose another");
        assert_eq!(explain(&told.unwrap_err()), "a.log: read-only file system; choose another");
        let both = Err::<(), _>(io::Error::from_raw_os_error(13)).context("rom");
        assert_eq!(explain(&both.unwrap_err()), "rom: Permission denied (os error 13)");
    }
}
